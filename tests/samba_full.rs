//! A patched smbd without room: on the disk of its share, for descriptors, for answers that nobody
//! takes. Requests fail one by one, connections and their neighbours go on.

mod common;
#[path = "common/samba.rs"]
mod samba;
#[path = "common/smb.rs"]
mod smb;

use std::fs;
use std::sync::Arc;

use rustix::process::{prlimit, Pid, Resource, Rlimit};
use samba::{samba, Server};
use smb::{noise, open_direct, options, profiles, start, Client, BLANK, PASSWORD, SOURCE, TARGET};
use smbdirect::mem::MemSlice;
use smbdirect::smb::{
    channel, Dialect, OpenMode, Profile, ReadRequest, Signing, SmbError, WriteRequest,
};

const MIB: usize = 1 << 20;
/// STATUS_DISK_FULL.
const DISK_FULL: u32 = 0xc000_007f;

/// A server whose share is a file system of 8 MiB that only smbd sees.
fn start_small(test: &str) -> Option<Server> {
    let bin = samba(test)?;
    // `unshare` and what it runs are executed in place, so the process is smbd in the end.
    let mount = "mount -t tmpfs -o size=8m,mode=777 none @DIR@/share && exec \"$@\"";
    let works = std::process::Command::new("unshare")
        .args(["-m", "mount", "-t", "tmpfs", "none", "/mnt"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !works {
        common::skip(test, "a mount namespace needs root");
        return None;
    }
    let mut server = Server::start_with(
        bin,
        &samba::Options {
            global: "server multi channel support = yes\n",
            wrapper: &["unshare", "-m", "sh", "-c", mount, "sh"],
            ..samba::Options::default()
        },
    );
    server.wait_for_smb_direct();
    server.add_user(PASSWORD);
    server.start_proxy();
    Some(server)
}

/// A write by RDMA: `None` if the disk is full.
fn write(client: &mut Client, block: usize, data: &[u8]) -> Option<()> {
    let memory = client.register(&MemSlice::from_bytes(data).unwrap(), SOURCE);
    let (tree, file) = (client.tree, client.file);
    let (offset, length) = ((block * data.len()) as u64, data.len() as u32);
    let id = channel::RDMA_V1;
    let done = client
        .it
        .rdma_write(tree, file, offset, length, id, &memory);
    client.deregister(&memory, false, "the write");
    match done {
        Ok((count, _)) => {
            assert_eq!(count, length);
            Some(())
        }
        Err(error) => {
            assert_eq!(error.status(), Some(DISK_FULL), "{error}");
            None
        }
    }
}

#[test]
fn a_full_disk() {
    let Some(server) = start_small("a_full_disk") else {
        return;
    };
    let root = format!(
        "/proc/{}/root{}",
        server.smbd_pid(),
        server.share("").display()
    );
    for profile in profiles() {
        let name = format!("full-{}", profile.name);
        let mut other = Client::new(&server, &Profile::windows(), Dialect::Smb311, "other");
        let few = noise(64 << 10, 3);
        other.write(0, &few, &[few.len()], channel::RDMA_V1, "other");
        let mut client = Client::new(&server, &profile, Dialect::Smb311, &name);
        let blocks: Vec<_> = (0..16).map(|block| noise(MIB, block)).collect();
        let written: Vec<_> = (0..16)
            .filter(|&block| write(&mut client, block, &blocks[block]).is_some())
            .collect();
        println!("{name}: {written:?} were written");
        assert!(written.len() > 4 && written.len() < 8);
        // Within the message, too; one that began was written in part, which is no success.
        let inline = Arc::new(noise(64 << 10, 99));
        let offset = (16 * MIB) as u64;
        let request = WriteRequest::inline(client.file, offset, inline);
        let request = request.to_request(client.tree).unwrap();
        let mut answers = Vec::new();
        for _ in 0..32 {
            let id = client.it.submit(request.clone()).unwrap();
            answers.push(client.it.wait(id).unwrap().status());
        }
        assert!(answers.contains(&DISK_FULL), "{answers:x?}");
        // What was acknowledged is there, and the neighbour does not need more room.
        for &block in &written {
            let length = MIB as u32;
            let got = client.read((block * MIB) as u64, length, &[MIB], 1, &name);
            assert!(got == (length, blocks[block].clone()), "{name} {block}");
        }
        let got = other.read(0, few.len() as u32, &[few.len()], 1, "other");
        assert!(got.1 == few);
        other.write(0, &few, &[few.len()], channel::RDMA_V1, "other");
        // Room again.
        fs::remove_file(format!("{root}/{name}")).unwrap();
        let (tree, file) = (client.tree, client.file);
        client.it.close(tree, file).unwrap();
        let again = client.it.open(tree, &name, OpenMode::ReadWrite).unwrap();
        client.file = again.id;
        assert!(write(&mut client, 0, &blocks[0]).is_some(), "room again");
        let got = client.read(0, MIB as u32, &[MIB], 1, &name);
        assert!(got.1 == blocks[0]);
        drop((client, other));
        server.wait_for_baseline();
        fs::remove_file(format!("{root}/{name}")).unwrap();
    }
}

/// Lets a process have only so many descriptors more; returns what it might have had.
fn few_descriptors(pid: u32, room: usize) -> Rlimit {
    let names = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let number = |it: std::io::Result<fs::DirEntry>| it.ok()?.file_name().to_str()?.parse().ok();
    let open: Vec<u64> = names.filter_map(number).collect();
    // What is limited is the highest number.
    let soft = (0..).filter(|fd| !open.contains(fd)).nth(room).unwrap();
    let pid = Pid::from_raw(pid as i32);
    let old = prlimit(
        pid,
        Resource::Nofile,
        rustix::process::getrlimit(Resource::Nofile),
    )
    .unwrap();
    let new = Rlimit {
        current: Some(soft),
        maximum: old.maximum,
    };
    prlimit(pid, Resource::Nofile, new).unwrap();
    old
}

/// The process of a client has no descriptors for further files, the parent none for anything.
#[test]
fn an_smbd_without_descriptors() {
    let Some(server) = start("an_smbd_without_descriptors") else {
        return;
    };
    let mut other = Client::new(&server, &Profile::windows(), Dialect::Smb311, "other");
    let others = server.owned_connections()[0]["owner_pid"].clone();
    let mut client = Client::new(&server, &Profile::linux(), Dialect::Smb311, "first");
    let owned = server.owned_connections();
    let owner = owned.iter().find(|it| it["owner_pid"] != others);
    let pid = owner.expect("two owners")["owner_pid"].as_u64().unwrap() as u32;
    let data = noise(MIB, 5);
    let id = channel::RDMA_V1;
    let old = few_descriptors(pid, 10);
    let mut open = Vec::new();
    let error = loop {
        let name = format!("file-{}", open.len());
        match client.it.open(client.tree, &name, OpenMode::ReadWrite) {
            Ok(file) => open.push(file.id),
            Err(error) => break error,
        }
        assert!(open.len() <= 10, "the limit has no effect");
    };
    assert!(error.status().is_some(), "{error}");
    // RDMA needs none.
    client.write(0, &data, &[MIB], id, "without descriptors");
    assert!(client.read(0, MIB as u32, &[MIB], id, "without").1 == data);
    other.write(0, &data, &[MIB], id, "other");
    let new = prlimit(Pid::from_raw(pid as i32), Resource::Nofile, old);
    new.expect("its limit is back");
    let file = client.it.open(client.tree, "after", OpenMode::ReadWrite);
    file.expect("descriptors are back");
    drop(client);

    // A child that closes what it has inherited may have enough; if not, its client is refused.
    let old = few_descriptors(server.smbd_pid(), 0);
    let refused = smb::direct(
        &server,
        &Profile::linux(),
        &options(Dialect::Smb311, Signing::IfRequired),
    );
    match refused {
        Ok(it) => {
            println!("a child had descriptors enough");
            drop(it);
        }
        Err(SmbError::Connection(text)) => println!("refused: {text}"),
        Err(error) => panic!("{error}"),
    }
    assert!(other.read(0, MIB as u32, &[MIB], id, "other").1 == data);
    let pid = Pid::from_raw(server.smbd_pid() as i32);
    prlimit(pid, Resource::Nofile, old).unwrap();
    let mut client = Client::new(&server, &Profile::linux(), Dialect::Smb311, "first");
    assert!(client.read(0, MIB as u32, &[MIB], id, "again").1 == data);
    drop((client, other));
    server.wait_for_baseline();
}

/// A client that asks for a lot and takes nothing: its smbd waits with a bounded number of answers,
/// the neighbour has its own. When it takes them at last, all are there.
#[test]
fn a_client_that_does_not_take_its_answers() {
    let Some(server) = start("a_client_that_does_not_take_its_answers") else {
        return;
    };
    let data = noise(16 * MIB, 6);
    fs::write(server.share("greedy"), &data).unwrap();
    let mut other = Client::new(&server, &Profile::windows(), Dialect::Smb311, "other");
    let half = &data[..8 * MIB];
    for profile in profiles() {
        for by_rdma in [false, true] {
            let what = format!("{} by rdma {by_rdma}", profile.name);
            let options = options(Dialect::Smb311, Signing::IfRequired);
            let (it, _, tree) = open_direct(&server, &profile, &options);
            let mut client = Client::with(it, tree, "greedy");
            let size = match by_rdma {
                true => MIB,
                false => (client.it.max_inline_read() as usize).min(64 << 10),
            };
            let count = (client.it.credits() as usize * (64 << 10) / size.max(64 << 10)).min(64);
            let target = MemSlice::from_bytes(&vec![BLANK; count * size]).unwrap();
            let mut asked = Vec::new();
            for index in 0..count {
                let (offset, length) = ((index * size % (8 * MIB)) as u64, size as u32);
                let memory = by_rdma.then(|| {
                    let piece = target.slice(index * size, size).unwrap();
                    client.register(&piece, TARGET)
                });
                let request = match &memory {
                    Some(memory) => {
                        let (id, named) = (channel::RDMA_V1, memory.descriptors());
                        ReadRequest::rdma(client.file, offset, length, id, named)
                    }
                    None => ReadRequest::inline(client.file, offset, length),
                };
                let request = request.to_request(tree).unwrap();
                asked.push((client.it.submit(request).unwrap(), offset as usize));
            }
            // It does not look at its socket while the neighbour works.
            for round in 0..4 {
                other.write(0, half, &[half.len()], channel::RDMA_V1, "other");
                let got = other.read(0, half.len() as u32, &[half.len()], 1, "other");
                assert!(got.1 == half, "{what} {round}");
            }
            for (index, &(id, offset)) in asked.iter().enumerate() {
                let response = client.it.wait(id).unwrap().success().expect(&what);
                let got = if by_rdma {
                    target.slice(index * size, size).unwrap().to_vec()
                } else {
                    response.read_result().unwrap().data.to_vec()
                };
                assert!(got == data[offset..offset + size], "{what} {index}");
            }
        }
    }
    drop(other);
    server.wait_for_baseline();
}
