//! Our own SMB client against the patched smbd: dialects, signing, peers, multichannel.

mod common;
#[path = "common/samba.rs"]
mod samba;
#[path = "common/smb.rs"]
mod smb;

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;

use rustix::process::Signal;
use samba::Server;
use smb::{credentials, noise, open_share, options, profiles, rdma, start, tcp};
use smbdirect::smb::{
    status, Connection, Credentials, Dialect, FileId, Negotiating, OpenMode, Options, Profile,
    ReadRequest, Request, Signing, WriteRequest,
};

#[test]
fn every_dialect_signs_and_moves_files() {
    let Some(server) = start("every_dialect_signs_and_moves_files") else {
        return;
    };
    let signings = [
        Signing::IfRequired,
        Signing::Always,
        Signing::AlwaysGmac,
        Signing::AlwaysCmac,
        Signing::AlwaysHmac,
    ];
    let data = noise(300_000, 1);
    for dialect in Dialect::ALL {
        for signing in signings {
            let is_of_311 = matches!(signing, Signing::AlwaysGmac | Signing::AlwaysHmac);
            if is_of_311 && dialect != Dialect::Smb311 {
                continue;
            }
            for direct in [false, true] {
                let what = format!("{dialect:?} {signing:?} direct {direct}");
                let options = options(dialect, signing);
                let connection = if direct {
                    smb::direct(&server, &Profile::windows(), &options)
                } else {
                    Connection::tcp(tcp(&server), &options)
                };
                let (mut it, session, tree) = open_share(connection.expect(&what));
                assert_eq!(it.negotiated().dialect, dialect);
                assert!(!session.is_guest(), "{what}");
                assert_eq!(session.signs(), signing != Signing::IfRequired);
                let file = it.open(tree, "file", OpenMode::Overwrite).expect(&what);
                assert_eq!(it.write(tree, file.id, 5, &data).expect(&what), 300_000);
                it.flush(tree, file.id).expect(&what);
                let back = it.read(tree, file.id, 0, 400_000).expect(&what);
                assert!(back[..5] == [0; 5] && back[5..] == data, "{what}");
                let end = it.read(tree, file.id, 300_005, 1).unwrap_err();
                assert_eq!(end.status(), Some(status::END_OF_FILE), "{what}");
                it.close(tree, file.id).expect(&what);
                let names = it.list(tree, "", "*").expect(&what);
                let found = names.iter().find(|it| it.name == "file");
                assert_eq!(found.expect("is listed").size, 300_005, "{what}");
                it.tree_disconnect(tree).expect(&what);
                it.logoff().expect(&what);
            }
        }
    }
    server.wait_for_baseline();
}

#[test]
fn every_profile_keeps_many_requests_in_flight() {
    let Some(server) = start("every_profile_keeps_many_requests_in_flight") else {
        return;
    };
    for profile in profiles() {
        let options = options(Dialect::Smb311, Signing::IfRequired);
        let connection = smb::direct(&server, &profile, &options).unwrap();
        let (mut it, _, tree) = open_share(connection);
        let name = format!("many-{}", profile.name);
        let file = it.open(tree, &name, OpenMode::Overwrite).unwrap();
        // The last ones are as long as fits one message.
        let longest = it.max_inline_write().min(it.max_inline_read()) as usize;
        let lengths: Vec<usize> = (0..40).map(|i| 1 + i * 977).chain([longest; 3]).collect();
        let data = noise(lengths.iter().sum(), 7);
        let mut offset = 0;
        let mut writes = Vec::new();
        for &length in &lengths {
            let piece = Arc::new(data[offset..offset + length].to_vec());
            let request = WriteRequest::inline(file.id, offset as u64, piece);
            writes.push(it.submit(request.to_request(tree).unwrap()).unwrap());
            offset += length;
        }
        for id in writes {
            it.wait(id).unwrap().success().unwrap();
        }
        assert!(fs::read(server.share(&name)).unwrap() == data);

        let mut reads = HashMap::new();
        let mut offset = 0;
        for &length in &lengths {
            let request = ReadRequest::inline(file.id, offset as u64, length as u32);
            let id = it.submit(request.to_request(tree).unwrap()).unwrap();
            reads.insert(id, offset..offset + length);
            offset += length;
        }
        while !reads.is_empty() {
            let (id, response) = it.wait_any().unwrap();
            let range = reads.remove(&id).expect("one of ours");
            let response = response.success().unwrap();
            assert!(response.read_result().unwrap().data == &data[range]);
            it.recycle(response);
        }
        assert_eq!(it.in_flight(), 0);
        it.close(tree, file.id).unwrap();
    }
    server.wait_for_baseline();
}

#[test]
fn compounds_and_cancel() {
    let Some(server) = start("compounds_and_cancel") else {
        return;
    };
    for signing in [Signing::IfRequired, Signing::Always] {
        for profile in profiles() {
            let options = options(Dialect::Smb311, signing);
            let connection = smb::direct(&server, &profile, &options).unwrap();
            let (mut it, _, tree) = open_share(connection);

            let data = noise(5000, 3);
            let write = WriteRequest::inline(FileId::FULL, 0, Arc::new(data.clone()));
            let read = ReadRequest::inline(FileId::FULL, 1000, 65_536);
            let related = vec![
                Request::create(tree, "compound", OpenMode::Overwrite).unwrap(),
                write.to_request(tree).unwrap(),
                read.to_request(tree).unwrap(),
                Request::close(tree, FileId::FULL).unwrap(),
            ];
            let ids = it.submit_compound(related, true).unwrap();
            let responses: Vec<_> = ids
                .iter()
                .map(|&id| it.wait(id).unwrap().success().unwrap())
                .collect();
            assert_eq!(responses[0].opened_file().unwrap().size, 0);
            assert!(responses[2].read_result().unwrap().data == &data[1000..]);

            // The first fails, and so do those that need its file.
            let related = vec![
                Request::create(tree, "is-not-there", OpenMode::Read).unwrap(),
                Request::close(tree, FileId::FULL).unwrap(),
            ];
            let ids = it.submit_compound(related, true).unwrap();
            for id in ids {
                let status = it.wait(id).unwrap().status();
                assert_eq!(status, status::OBJECT_NAME_NOT_FOUND);
            }
            let unrelated = vec![Request::echo().unwrap(), Request::echo().unwrap()];
            for id in it.submit_compound(unrelated, false).unwrap() {
                it.wait(id).unwrap().success().unwrap();
            }

            let root = it.open(tree, "", OpenMode::Directory).unwrap();
            let notify = Request::change_notify(tree, root.id).unwrap();
            let notify = it.submit(notify).unwrap();
            it.wait_for_interim(notify).unwrap();
            it.echo().unwrap();
            it.cancel(notify).unwrap();
            let response = it.wait(notify).unwrap();
            assert!(response.was_pending);
            assert_eq!(response.status(), status::CANCELLED);
            it.close(tree, root.id).unwrap();
        }
    }
    server.wait_for_baseline();
}

/// Sessions that smbstatus shows, as numbers of channels.
fn channels_of_sessions(server: &Server) -> Vec<usize> {
    let status = server.smbstatus();
    let sessions = status["sessions"].as_object().expect("sessions");
    let count = |it: &serde_json::Value| it["channels"].as_object().map_or(0, |it| it.len());
    sessions.values().map(count).collect()
}

#[test]
fn sessions_take_channels_over_both_transports() {
    let Some(server) = start("sessions_take_channels_over_both_transports") else {
        return;
    };
    let connect = |direct: bool, options: &Options| {
        if direct {
            smb::direct(&server, &Profile::windows(), options).unwrap()
        } else {
            Connection::tcp(tcp(&server), options).unwrap()
        }
    };
    let signings = [
        Signing::IfRequired,
        Signing::AlwaysCmac,
        Signing::AlwaysGmac,
    ];
    for dialect in Dialect::ALL {
        for signing in signings {
            if signing == Signing::AlwaysGmac && dialect != Dialect::Smb311 {
                continue;
            }
            for order in [[false, true, true], [true, false, true]] {
                let what = format!("{dialect:?} {signing:?} direct {order:?}");
                let options = options(dialect, signing);
                let (first, session, tree) = open_share(connect(order[0], &options));
                let mut channels = vec![first];
                for direct in &order[1..] {
                    let mut channel = connect(*direct, &options);
                    channel.bind(&session, &credentials()).expect(&what);
                    channels.push(channel);
                }
                assert_eq!(channels_of_sessions(&server), [3], "{what}");
                // All of them are in one process.
                assert_eq!(server.clients_served(), 1, "{what}");
                let direct = order.iter().filter(|&&direct| direct).count();
                assert_eq!(server.owned_connections().len(), direct, "{what}");

                // One file id on every channel.
                let file = channels[0]
                    .open(tree, "shared", OpenMode::Overwrite)
                    .unwrap();
                let data = noise(90_000, 11);
                for (i, channel) in channels.iter_mut().enumerate() {
                    let range = i * 30_000..(i + 1) * 30_000;
                    let offset = range.start as u64;
                    channel
                        .write(tree, file.id, offset, &data[range])
                        .expect(&what);
                }
                for channel in &mut channels {
                    assert!(channel.read(tree, file.id, 0, 100_000).expect(&what) == data);
                }
                // The first channel ends; the session goes on, its file is still open.
                drop(channels.remove(0));
                server.wait_until("one channel less", || channels_of_sessions(&server) == [2]);
                for channel in &mut channels {
                    assert!(channel.read(tree, file.id, 5, 100_000).expect(&what) == data[5..]);
                }
                channels[0].close(tree, file.id).expect(&what);
                drop(channels);
                server.wait_for_baseline();
            }
        }
    }
}

#[test]
fn channels_that_must_not_be_bound() {
    let Some(server) = start("channels_that_must_not_be_bound") else {
        return;
    };
    // One algorithm in every dialect, as a different one is refused before anything else is seen.
    let options = options(Dialect::Smb311, Signing::AlwaysCmac);
    let direct = |options: &Options| smb::direct(&server, &Profile::windows(), options).unwrap();
    let (mut first, session, tree) = open_share(Connection::tcp(tcp(&server), &options).unwrap());
    let bind = |channel: &mut Connection, credentials: &Credentials| {
        let refused = channel.bind(&session, credentials).unwrap_err();
        refused.status().unwrap_or_else(|| panic!("{refused}"))
    };

    let wrong = Credentials {
        password: "another".into(),
        ..credentials()
    };
    let status = bind(&mut direct(&options), &wrong);
    assert_eq!(status, status::LOGON_FAILURE);
    let other_dialect = Options {
        dialects: vec![Dialect::Smb302],
        ..options.clone()
    };
    let status = bind(&mut direct(&other_dialect), &credentials());
    assert_eq!(status, status::INVALID_PARAMETER);
    let mut bound = direct(&options);
    bound.bind(&session, &credentials()).unwrap();
    let status = bind(&mut bound, &credentials());
    assert_eq!(status, status::REQUEST_NOT_ACCEPTED);

    first.tree_disconnect(tree).unwrap();
    first.logoff().unwrap();
    let status = bind(&mut direct(&options), &credentials());
    assert_eq!(status, status::USER_SESSION_DELETED);
    drop((first, bound));
    server.wait_for_baseline();
}

/// Channels that negotiate at the same moment, before any process knows the client: those that come
/// to a second process are passed on to the first, with what their key is made from (3.1.1).
#[test]
fn channels_that_negotiate_at_the_same_moment() {
    let Some(server) = start("channels_that_negotiate_at_the_same_moment") else {
        return;
    };
    let smbd = server.smbd.as_ref().expect("was started");
    for dialect in Dialect::ALL {
        for kinds in [[true, true, true], [true, false, true]] {
            let what = format!("{dialect:?} direct {kinds:?}");
            let options = options(dialect, Signing::IfRequired);
            smbd.kill(Signal::STOP);
            let direct = kinds.iter().filter(|&&direct| direct).count();
            let negotiating = kinds.map(|direct| {
                let begun = if direct {
                    Negotiating::direct(
                        rdma(&server),
                        &smb::over_fabric(&Profile::linux()),
                        &options,
                    )
                } else {
                    Negotiating::tcp(tcp(&server), &options)
                };
                begun.expect(&what)
            });
            server.wait_until("all are offered", || {
                let status = server.status();
                let connections = status["connections"].as_array().expect("connections");
                let offered = connections.iter().filter(|it| it["state"] == "offered");
                offered.count() == direct
            });
            smbd.kill(Signal::CONT);
            let mut channels = negotiating.map(|it| it.finish().expect(&what));
            let [first, others @ ..] = &mut channels;
            let session = first.set_up_session(&credentials()).expect(&what);
            for channel in others.iter_mut() {
                channel.bind(&session, &credentials()).expect(&what);
            }
            assert_eq!(channels_of_sessions(&server), [3], "{what}");
            // Those that have passed their connection on are on their way out.
            server.wait_until(&what, || server.clients_served() == 1);
            let tree = first.tree_connect(r"\\127.0.0.1\share").expect(&what);
            let file = first.open(tree, "moment", OpenMode::Overwrite).unwrap().id;
            for (i, channel) in channels.iter_mut().enumerate() {
                let written = channel.write(tree, file, i as u64, &[i as u8]);
                assert_eq!(written.expect(&what), 1);
            }
            let [first, ..] = &mut channels;
            assert_eq!(first.read(tree, file, 0, 10).unwrap(), [0, 1, 2]);
            drop(channels);
            server.wait_for_baseline();
        }
    }
}

/// As Windows does: come by TCP, ask for interfaces, add a channel where RDMA is.
#[test]
fn a_tcp_client_finds_rdma_by_itself() {
    let Some(server) = start("a_tcp_client_finds_rdma_by_itself") else {
        return;
    };
    for dialect in Dialect::ALL {
        let options = options(dialect, Signing::IfRequired);
        let (mut first, session, tree) =
            open_share(Connection::tcp(tcp(&server), &options).unwrap());
        assert!(first.negotiated().multi_channel);
        let interfaces = first.interfaces(tree).unwrap();
        let found = interfaces.iter().find(|it| it.is_rdma_capable);
        let found = found.unwrap_or_else(|| panic!("no RDMA in {interfaces:?}"));
        assert!(found.index != 0 && found.link_speed > 0, "{found:?}");
        // The port is not told: 5445 anywhere but in tests.
        let address = (found.address, server.rdma_port).into();
        let mut second = smb::direct_to(address, &Profile::windows(), &options).unwrap();
        second.bind(&session, &credentials()).unwrap();
        let file = first.open(tree, "found", OpenMode::Overwrite).unwrap().id;
        assert_eq!(second.write(tree, file, 0, b"by RDMA").unwrap(), 7);
        assert_eq!(first.read(tree, file, 0, 100).unwrap(), b"by RDMA");
    }
    server.wait_for_baseline();
}

#[test]
fn a_process_that_cannot_begin_does_not_keep_its_client_waiting() {
    let Some(server) = start("a_process_that_cannot_begin_does_not_keep_its_client_waiting") else {
        return;
    };
    let connect = || {
        let options = options(Dialect::Smb311, Signing::IfRequired);
        smb::direct(&server, &Profile::linux(), &options)
    };
    // The parent is connected; a new process does not find the engine.
    let (socket, hidden) = (server.dir.join("engine.sock"), server.dir.join("hidden"));
    fs::rename(&socket, &hidden).unwrap();
    let refused = connect();
    fs::rename(&hidden, &socket).unwrap();
    assert!(refused.is_err(), "nobody is there to serve it");
    // Not the end of the offer's time, but the parent.
    let rejected = &server.status()["engine"]["rejected"];
    assert_eq!(
        rejected,
        &serde_json::json!({"turned away": 1}),
        "{}",
        server.read("smbd.log")
    );
    connect().expect("the next one is served");
}
