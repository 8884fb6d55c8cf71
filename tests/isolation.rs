//! Two servers' users on one engine: neither reaches what is the other's. The engine and each user
//! are processes of users of their own, which takes root to start.

#[path = "common/engine_host.rs"]
mod common;
#[path = "common/engine_process.rs"]
mod engine_process;
#[path = "common/user_process.rs"]
mod user_process;

use common::{connect_and_send, negotiate, open_at, send, status_at, wait_for, PATIENCE};
use engine_process::EngineProcess;
use smbdirect::client::{EventKind, Handle};
use user_process::{peek, User};

/// Numbers that nobody has as user ids here.
const ENGINE: u32 = 54_320;
const ALICE: u32 = 54_321;
const BOB: u32 = 54_322;
const STRANGER: u32 = 54_323;

const GUID: [u8; 16] = *b"one client's id.";
const GUID_HEX: &str = "6f6e6520636c69656e7427732069642e";
const MARK: &str = "what only Alice may see";

/// The process behind [`User`]; alone it does nothing.
#[test]
fn user_process() {
    user_process::run();
}

fn is_root(name: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIP: {name}: only root can become other users");
    }
    root
}

/// An engine of its own user. Alice may be the server, Bob may only open handles.
fn engine(name: &str) -> EngineProcess {
    let uids = [ALICE, BOB].map(|uid| uid.to_string());
    let arguments = [
        "--socket-mode",
        "666",
        "--allow-parent-uid",
        &uids[0],
        "--allow-uid",
        &uids[1],
    ];
    EngineProcess::of_user(name, ENGINE, &arguments)
}

/// A client of Alice's server: a connection that says who it is.
fn client(engine: &EngineProcess, address: &str) -> (Handle, u64) {
    let mut client = open_at(&engine.socket, false);
    let address = address.parse().unwrap();
    let connection = connect_and_send(&mut client, address, &negotiate(GUID, &[0x0300]));
    (client, connection)
}

#[test]
fn a_user_reaches_no_area_of_another() {
    if !is_root("a_user_reaches_no_area_of_another") {
        return;
    }
    let engine = engine("areas");
    let mut alice = User::start("alice-areas", ALICE, &engine.socket);
    let mut bob = User::start("bob-areas", BOB, &engine.socket);
    for user in [&mut alice, &mut bob] {
        user.ok("open child");
    }
    alice.ok(&format!("mark {MARK}"));
    // It can be found by whom the system lets look: root.
    assert_eq!(peek(alice.pid(), MARK), "found");
    assert_eq!(peek(engine.pid(), MARK), "found");
    assert_eq!(peek(bob.pid(), MARK), "not found");
    for pid in [alice.pid(), engine.pid()] {
        assert_eq!(bob.ok(&format!("peek {pid} {MARK}")), "errno 13");
    }
    // Bob can look at his own; there is nothing of Alice in it.
    let own = bob.pid();
    assert_eq!(bob.ok(&format!("peek {own} {MARK}")), "not found");
    bob.ok("mark mine");
    assert_eq!(bob.ok(&format!("peek {own} mine")), "found");
}

#[test]
fn a_user_who_may_only_open_handles_is_no_server() {
    if !is_root("a_user_who_may_only_open_handles_is_no_server") {
        return;
    }
    let engine = engine("server");
    let mut alice = User::start("alice-server", ALICE, &engine.socket);
    let mut bob = User::start("bob-server", BOB, &engine.socket);
    bob.ok("open child");
    // Nor while there is no server yet.
    for what in ["open parent", &format!("guid {GUID_HEX}"), "session 7"] {
        let refused = bob.refused(what);
        assert!(refused.starts_with("1 "), "{what}: {refused}");
        assert!(refused.contains("--allow-parent-uid 54322"), "{refused}");
    }
    alice.ok("open parent");
    alice.ok("params");
    let address = alice.ok("listen");
    for what in [
        "open parent",
        "params",
        "listen",
        &format!("guid {GUID_HEX}"),
        "session 7",
    ] {
        let refused = bob.refused(what);
        assert!(refused.starts_with("1 "), "{what}: {refused}");
    }

    // An offer: Bob knows its token, and cannot use it.
    let (mut peer, active) = client(&engine, &address);
    let token = alice.ok("await offered");
    let refused = bob.refused(&format!("accept {token}"));
    assert!(refused.starts_with("13 "), "{refused}");
    assert!(refused.contains("user 54321, not 54322"), "{refused}");
    let refused = bob.refused(&format!("reject {token}"));
    assert!(refused.starts_with("1 "), "{refused}");
    let guessed = "00112233445566778899aabbccddeeff";
    let refused = bob.refused(&format!("accept {guessed}"));
    assert!(refused.starts_with("2 "), "{refused}");
    alice.ok("open child");
    let connection = alice.ok(&format!("accept {token}"));
    alice.ok("await pdu");

    // Its connection: Bob knows the number, and his submissions do not reach it.
    assert_eq!(bob.ok(&format!("lie {connection}")), "-107 -107");
    let refused = bob.refused(&format!("export {connection}"));
    assert!(refused.starts_with("107 "), "{refused}");
    // An export of it.
    let token = alice.ok(&format!("export {connection}"));
    let refused = bob.refused(&format!("accept {token}"));
    assert!(refused.starts_with("13 "), "{refused}");
    // Only an administrator ends it for others, and the server's user is none.
    for user in [&mut bob, &mut alice] {
        let refused = user.refused(&format!("end {connection}"));
        assert!(
            refused.starts_with("1 only root and user 54320"),
            "{refused}"
        );
    }
    // It still works: to Alice, and back.
    let pdu = b"\xfeSMB still Alice's";
    send(&mut peer, active, 2, pdu);
    alice.ok(&format!("send {connection} fe534d42"));
    assert_eq!(alice.ok("await pdu"), user_process::hex(pdu));
    assert_eq!(
        wait_for(&mut peer, EventKind::PduReceived).1,
        b"\xfeSMB".as_slice()
    );

    // The status shows Bob what is his, and the others everything.
    assert_eq!(bob.ok("status"), "1 handles, 0 connections");
    let all = status_at(&engine.socket);
    assert_eq!((all.handles.len(), all.connections.len()), (4, 2));
    assert_eq!(alice.ok("status"), "4 handles, 2 connections");
}

#[test]
fn registrations_of_one_user_do_not_count_for_another() {
    if !is_root("registrations_of_one_user_do_not_count_for_another") {
        return;
    }
    // Both may be servers, one after the other.
    let uids = [ALICE, BOB].map(|uid| uid.to_string());
    let mut arguments = vec!["--socket-mode", "666"];
    for uid in &uids {
        arguments.extend(["--allow-parent-uid", uid]);
    }
    let engine = EngineProcess::of_user("registrations", ENGINE, &arguments);
    let mut alice = User::start("alice-registrations", ALICE, &engine.socket);
    let mut bob = User::start("bob-registrations", BOB, &engine.socket);
    // Bob is first, and stands in nobody's way.
    bob.ok("open child");
    bob.ok(&format!("guid {GUID_HEX}"));
    bob.ok("session 7");
    alice.ok("open parent");
    alice.ok("params");
    let address = alice.ok("listen");
    let refused = bob.refused("session 8");
    assert!(refused.contains("for user 54321"), "{refused}");
    // Without a registration of Alice it is her parent's, not Bob's.
    let (_one, _) = client(&engine, &address);
    alice.ok("await offered");
    // With one it is hers.
    alice.ok("open child");
    alice.ok(&format!("guid {GUID_HEX}"));
    let (_two, _) = client(&engine, &address);
    alice.ok("await attached");
    // Root's processes belong to every server.
    let mut root = open_at(&engine.socket, false);
    let guid = *b"root's client id";
    engine_process::register(&mut root, guid);
    let mut peer = open_at(&engine.socket, false);
    connect_and_send(
        &mut peer,
        address.parse().unwrap(),
        &negotiate(guid, &[0x0300]),
    );
    wait_for(&mut root, EventKind::PduReceived);
    assert_eq!(bob.ok("status"), "7 handles, 6 connections");
    assert_eq!(bob.ok("events"), "none");
}

#[test]
fn strangers_are_told_so_and_hung_up_on() {
    if !is_root("strangers_are_told_so_and_hung_up_on") {
        return;
    }
    let engine = engine("strangers");
    let mut stranger = User::start("stranger", STRANGER, &engine.socket);
    for what in ["open child", "open parent", "status"] {
        let refused = stranger.refused(what);
        assert!(
            refused.starts_with("13 user 54323 may not"),
            "{what}: {refused}"
        );
    }
    // Many that say nothing take nobody's place but each other's.
    assert_eq!(stranger.ok("crowd 100"), "64 of 100 are left");
    drop(open_at(&engine.socket, false));
    assert_eq!(stranger.ok("hangup"), "closed");
}

#[test]
fn areas_of_a_user_are_bounded() {
    if !is_root("areas_of_a_user_are_bounded") {
        return;
    }
    // A quarter of 8 MiB is 2 MiB; "open" asks for 0.3 MiB.
    let bob_uid = BOB.to_string();
    let arguments = [
        "--socket-mode",
        "666",
        "--allow-uid",
        &bob_uid,
        "--max-memory",
        "8",
    ];
    let engine = EngineProcess::of_user("bounded", ENGINE, &arguments);
    let mut bob = User::start("bob-bounded", BOB, &engine.socket);
    let opened = bob.ok("open many");
    let (count, refused) = opened.split_once(' ').unwrap();
    let count: u32 = count.parse().unwrap();
    assert!((2..=8).contains(&count), "{opened}");
    assert!(refused.starts_with("28 user 54322 has areas"), "{opened}");
    // Root is not a user like others.
    let handles: Vec<_> = (0..4).map(|_| open_at(&engine.socket, false)).collect();
    // But the sum of what is in use counts for all.
    let memory = handles[0].meminfo().unwrap();
    let (rdma, region) = (memory.layout.rdma, memory.region);
    region
        .write(rdma.offset as usize, &vec![1; 9 << 20])
        .unwrap();
    let start = std::time::Instant::now();
    let error = loop {
        let options = smbdirect::client::OpenOptions {
            socket: engine.socket.clone(),
            timeout: PATIENCE,
            ..Default::default()
        };
        match Handle::open(options) {
            // The engine looks at most once a second.
            Ok(_) => assert!(start.elapsed() < PATIENCE, "memory without end"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.errno(), libc::ENOMEM);
    assert!(error.to_string().contains("--max-memory"), "{error}");
}
