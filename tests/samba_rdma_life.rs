//! RDMA channels whose file, session, process or engine ends while they are in use: our own SMB
//! client against the patched smbd.

mod common;
#[path = "common/samba.rs"]
mod samba;
#[path = "common/smb.rs"]
mod smb;

use std::fs;

use rustix::process::Signal;

use smb::{direct, noise, open_direct, open_share, options, profiles, start, start_with, tcp};
use smb::{Client, SOURCE, TARGET};
use smbdirect::mem::MemSlice;
use smbdirect::smb::{
    channel, status, Connection, Dialect, FileId, Memory, MessageId, OpenMode, Profile,
    ReadRequest, Request, Session, Signing, WriteRequest,
};

const MIB: usize = 1 << 20;

/// A request in flight.
struct Flying {
    id: MessageId,
    /// Which MiB of the file.
    block: usize,
    memory: Memory,
}

/// Asks for the first `blocks` MiB of a file to be written from or read to `whole`.
fn submit_all(
    it: &mut Connection,
    (tree, file): (u32, FileId),
    whole: &MemSlice,
    blocks: usize,
    is_read: bool,
) -> Vec<Flying> {
    let one = |block: usize| {
        let piece = whole.slice(block * MIB, MIB).unwrap();
        let direct = it.direct_mut().unwrap();
        let access = if is_read { TARGET } else { SOURCE };
        let memory = direct.register(&piece, access).unwrap();
        let (offset, length) = ((block * MIB) as u64, MIB as u32);
        let id = channel::RDMA_V1;
        let named = memory.descriptors();
        let request = if is_read {
            ReadRequest::rdma(file, offset, length, id, named).to_request(tree)
        } else {
            WriteRequest::rdma(file, offset, length, id, named).to_request(tree)
        };
        let id = it.submit(request.unwrap()).unwrap();
        Flying { id, block, memory }
    };
    (0..blocks).map(one).collect()
}

#[test]
fn signed_sessions_use_rdma() {
    let Some(server) = start("signed_sessions_use_rdma") else {
        return;
    };
    for dialect in Dialect::ALL {
        for profile in profiles() {
            let what = format!("{dialect:?} {}", profile.name);
            let options = options(dialect, Signing::Always);
            let (it, session, tree) = open_direct(&server, &profile, &options);
            assert!(session.signs());
            let mut client = Client::with(it, tree, "signed");
            let data = noise(3 * MIB, 1);
            for &id in smb::channels(dialect) {
                let pieces = smb::pieces(data.len(), 1_000_000);
                client.write(7, &data, &pieces, id, &what);
                let got = client.read(7, data.len() as u32, &pieces, id, &what);
                assert!(got.1 == data, "{what}");
            }
        }
    }
    server.wait_for_baseline();
}

/// Without asynchronous I/O, and with smaller maxima, it is the same.
#[test]
fn synchronous_io_and_small_maxima() {
    let global = "aio read size = 0\naio write size = 0\nsmb2 max read = 131072\n\
                  smb2 max write = 131072\n";
    let Some(server) = start_with("synchronous_io_and_small_maxima", global) else {
        return;
    };
    let mut client = Client::new(&server, &Profile::windows(), Dialect::Smb311, "sync");
    let data = noise(131_072, 2);
    let id = smb::invalidate();
    client.write(0, &data, &[131_000, 72], id, "sync");
    let (count, got) = client.read(0, 131_072, &[131_072], id, "sync");
    assert!((count, got) == (131_072, data.clone()));
    let memory = client.register(&MemSlice::from_bytes(&noise(131_073, 3)).unwrap(), SOURCE);
    let (tree, file) = (client.tree, client.file);
    // A server may invalidate with an error, too; this memory is used twice.
    let id = channel::RDMA_V1;
    let refused = client.it.rdma_write(tree, file, 0, 131_073, id, &memory);
    assert_eq!(
        refused.unwrap_err().status(),
        Some(status::INVALID_PARAMETER)
    );
    let refused = client.it.rdma_read(tree, file, 0, 131_073, id, &memory);
    assert_eq!(
        refused.unwrap_err().status(),
        Some(status::INVALID_PARAMETER)
    );
    drop(client);
    assert!(fs::read(server.share("sync")).unwrap() == data);
    server.wait_for_baseline();
}

/// What the file system or the open refuses, by RDMA as without it.
#[test]
fn refused_by_the_file() {
    let Some(server) = start("refused_by_the_file") else {
        return;
    };
    let data = noise(10_000, 3);
    fs::write(server.share("refuse"), &data).unwrap();
    for profile in profiles() {
        let mut client = Client::new(&server, &profile, Dialect::Smb311, "refuse");
        let tree = client.tree;
        let source = client.register(&MemSlice::from_bytes(&[1; 8192]).unwrap(), SOURCE);
        let target = client.register(&MemSlice::from_bytes(&[1; 8192]).unwrap(), TARGET);
        let id = channel::RDMA_V1;
        let it = &mut client.it;
        let for_reading = it.open(tree, "refuse", OpenMode::Read).unwrap().id;
        let denied = it.rdma_write(tree, for_reading, 0, 8192, id, &source);
        assert_eq!(denied.unwrap_err().status(), Some(status::ACCESS_DENIED));
        let directory = it.open(tree, "", OpenMode::Directory).unwrap().id;
        let denied = it.rdma_read(tree, directory, 0, 8192, id, &target);
        assert!(denied.unwrap_err().status().is_some());
        let (count, _) = it
            .rdma_read(tree, for_reading, 0, 8192, id, &target)
            .unwrap();
        assert_eq!(count, 8192);
        assert!(target.memory().to_vec() == data[..8192]);
    }
    assert!(fs::read(server.share("refuse")).unwrap() == data);
    server.wait_for_baseline();
}

/// Cancelled, or their file closed, or their session ended, with all of them in flight: each gets
/// one answer, and the connection is as good as new.
#[test]
fn requests_that_are_not_wanted_any_more() {
    let Some(server) = start("requests_that_are_not_wanted_any_more") else {
        return;
    };
    let data = noise(16 * MIB, 4);
    let whole = MemSlice::from_bytes(&data).unwrap();
    for profile in profiles() {
        for is_read in [true, false] {
            for way in ["cancel", "close", "tree", "logoff"] {
                let what = format!("{} read {is_read} {way}", profile.name);
                fs::write(server.share("unwanted"), &data).unwrap();
                let mut client = Client::new(&server, &profile, Dialect::Smb311, "unwanted");
                let (tree, file) = (client.tree, client.file);
                let it = &mut client.it;
                let all = submit_all(it, (tree, file), &whole, 16, is_read);
                match way {
                    "cancel" => all.iter().for_each(|flying| it.cancel(flying.id).unwrap()),
                    "close" => it.close(tree, file).expect(&what),
                    "tree" => it.tree_disconnect(tree).expect(&what),
                    _ => it.logoff().expect(&what),
                }
                for flying in &all {
                    let response = it.wait(flying.id).expect(&what);
                    let allowed = [
                        status::SUCCESS,
                        status::CANCELLED,
                        status::FILE_CLOSED,
                        status::NETWORK_NAME_DELETED,
                        status::USER_SESSION_DELETED,
                    ];
                    let status = response.status();
                    assert!(allowed.contains(&status), "{what}: {status:#x}");
                    it.direct_mut().unwrap().deregister(&flying.memory);
                }
                if way == "logoff" {
                    it.set_up_session(&smb::credentials()).expect(&what);
                }
                it.echo().expect(&what);
                drop(client);
                // Written or not, it is the same, and so is what was read.
                assert!(
                    fs::read(server.share("unwanted")).unwrap() == data,
                    "{what}"
                );
                assert!(whole.to_vec() == data, "{what}");
            }
        }
    }
    server.wait_for_baseline();
}

/// A session with a TCP channel and two by SMB Direct.
fn three_channels(server: &samba::Server) -> (Session, u32, Connection, [Connection; 2]) {
    let options = options(Dialect::Smb311, Signing::IfRequired);
    let first = Connection::tcp(tcp(server), &options).unwrap();
    let (first, session, tree) = open_share(first);
    let direct = [Profile::linux(), Profile::windows()].map(|profile| {
        let mut it = direct(server, &profile, &options).unwrap();
        it.bind(&session, &smb::credentials()).unwrap();
        it
    });
    (session, tree, first, direct)
}

/// Two RDMA channels share the work; one dies, the other goes on.
#[test]
fn two_rdma_channels_of_a_session() {
    let Some(server) = start("two_rdma_channels_of_a_session") else {
        return;
    };
    let data = noise(16 * MIB, 5);
    let whole = MemSlice::from_bytes(&data).unwrap();
    let (_, tree, mut first, [mut a, mut b]) = three_channels(&server);
    let file = first.open(tree, "two", OpenMode::Overwrite).unwrap().id;
    let by_a = submit_all(&mut a, (tree, file), &whole, 16, false);
    let by_b = submit_all(&mut b, (tree, file), &whole, 16, false);
    for flying in &by_b[..3] {
        b.wait(flying.id).unwrap().success().unwrap();
    }
    a.direct_mut().unwrap().abort();
    drop((a, by_a));
    for flying in &by_b[3..] {
        b.wait(flying.id).unwrap().success().unwrap();
    }
    let target = Memory::allocate(data.len()).unwrap();
    for flying in submit_all(&mut b, (tree, file), &target, 16, true) {
        b.wait(flying.id).unwrap().success().unwrap();
        let range = flying.block * MIB..(flying.block + 1) * MIB;
        assert!(flying.memory.memory().to_vec() == data[range]);
    }
    first.close(tree, file).unwrap();
    assert!(fs::read(server.share("two")).unwrap() == data);
    drop((first, b));
    server.wait_for_baseline();
}

/// The engine dies with requests in flight. TCP goes on; with a new engine there are RDMA channels
/// for the same session again.
#[test]
fn a_session_survives_the_engine() {
    let Some(mut server) = start("a_session_survives_the_engine") else {
        return;
    };
    let data = noise(16 * MIB, 6);
    let whole = MemSlice::from_bytes(&data).unwrap();
    let (session, tree, mut first, [mut a, b]) = three_channels(&server);
    let file = first.open(tree, "engine", OpenMode::Overwrite).unwrap().id;
    let flying = submit_all(&mut a, (tree, file), &whole, 16, false);
    let (done, response) = a.wait_any().unwrap();
    response.success().unwrap();
    server.engine.as_ref().unwrap().kill(Signal::KILL);
    let mut lost = Vec::new();
    for flying in flying.iter().filter(|flying| flying.id != done) {
        match a.wait(flying.id) {
            Ok(response) => drop(response.success().unwrap()),
            Err(_) => lost.push(flying.block),
        }
    }
    drop((a, b));
    for &block in &lost {
        let range = block * MIB..(block + 1) * MIB;
        let offset = range.start as u64;
        first.write(tree, file, offset, &data[range]).unwrap();
    }
    server.engine = None;
    server.start_engine();
    server.wait_for_smb_direct();
    server.wait_until("the session's process is back at the engine", || {
        server.status()["handles"].as_array().map_or(0, Vec::len) == 2
    });
    let options = smbdirect::smb::Options {
        client_guid: first.client_guid(),
        ..options(Dialect::Smb311, Signing::IfRequired)
    };
    let mut again = direct(&server, &Profile::linux(), &options).unwrap();
    again.bind(&session, &smb::credentials()).unwrap();
    let target = Memory::allocate(data.len()).unwrap();
    for flying in submit_all(&mut again, (tree, file), &target, 16, true) {
        again.wait(flying.id).unwrap().success().unwrap();
    }
    assert!(target.to_vec() == data);
    first.close(tree, file).unwrap();
    drop((first, again));
    server.wait_for_baseline();
}

/// The process that serves a client dies with requests in flight: its connections end, the engine
/// and others go on.
#[test]
fn a_killed_smbd_takes_only_its_own_connections() {
    let Some(server) = start("a_killed_smbd_takes_only_its_own_connections") else {
        return;
    };
    let data = noise(16 * MIB, 7);
    let whole = MemSlice::from_bytes(&data).unwrap();
    let mut other = Client::new(&server, &Profile::windows(), Dialect::Smb311, "other");
    let others = server.owned_connections()[0]["owner_pid"].clone();
    let mut victim = Client::new(&server, &Profile::linux(), Dialect::Smb311, "victim");
    let (tree, file) = (victim.tree, victim.file);
    let flying = submit_all(&mut victim.it, (tree, file), &whole, 16, false);
    let owned = server.owned_connections();
    let owner = owned.iter().find(|it| it["owner_pid"] != others);
    let pid = owner.expect("two owners")["owner_pid"].as_u64().unwrap();
    samba::send_signal(pid as u32, Signal::KILL);
    let ended = flying
        .iter()
        .any(|flying| victim.it.wait(flying.id).is_err());
    assert!(ended || victim.it.echo().is_err());
    drop(victim);
    let length = data.len() as u32 / 2;
    let pieces = [length as usize];
    let half = &data[..length as usize];
    other.write(0, half, &pieces, channel::RDMA_V1, "other");
    let got = other.read(0, length, &pieces, channel::RDMA_V1, "other");
    assert!(got == (length, half.to_vec()));
    let id = other.it.submit(Request::echo().unwrap()).unwrap();
    other.it.wait(id).unwrap().success().unwrap();
    drop(other);
    server.wait_for_baseline();
}
