//! What only the engine's inside can show.

use std::time::Instant;

use super::clients::ready_key;
use super::{tag, Config, Engine};
use crate::ipc;
use crate::ring;
use crate::sys::{Ready, SeqPacket};

fn ready(key: u64) -> Ready {
    Ready {
        key,
        readable: true,
        writable: false,
        hangup: true,
    }
}

/// A process that ends makes its socket readable and then its pidfd. When both come in one batch
/// with a new process's connect between them, the second must not hit the new process, which has
/// got the index of the old one.
#[test]
fn late_readiness_of_a_removed_process_hits_nobody() {
    let dir = std::env::temp_dir().join(format!("smbdirect-engine-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let socket_path = dir.join("engine.sock");
    let mut engine = Engine::new(Config {
        socket_path: socket_path.clone(),
        ..Config::default()
    })
    .unwrap();
    let now = Instant::now();

    let old = SeqPacket::connect(&socket_path).unwrap();
    engine.dispatch(now, tag::LISTENER, ready(0));
    let (index, client) = engine.clients.iter().next().unwrap();
    let old_name = ready_key(index, client.serial);
    drop(old);
    engine.dispatch(now, tag::CONTROL, ready(old_name));
    assert_eq!(engine.clients.len(), 0);

    let _new = SeqPacket::connect(&socket_path).unwrap();
    engine.dispatch(now, tag::LISTENER, ready(0));
    let (new_index, client) = engine.clients.iter().next().unwrap();
    let new_name = ready_key(new_index, client.serial);
    assert_eq!(new_index, index);
    for tag in [tag::CONTROL, tag::BELL, tag::PROCESS] {
        engine.dispatch(now, tag, ready(old_name));
        assert_eq!(engine.clients.len(), 1);
    }
    engine.dispatch(now, tag::PROCESS, ready(new_name));
    assert_eq!(engine.clients.len(), 0);
    std::fs::remove_dir_all(&dir).unwrap();
}

/// An index that is impossible may be seen first by the last look before the engine sleeps. The
/// handle must not stay until something else wakes the engine. Found by running the tests under
/// strace.
#[test]
fn a_lie_seen_by_the_last_look_costs_the_handle() {
    let name = format!("smbdirect-engine-lie-{}", std::process::id());
    let socket_path = std::env::temp_dir().join(name);
    let mut engine = Engine::new(Config {
        socket_path: socket_path.clone(),
        ..Config::default()
    })
    .unwrap();
    let now = Instant::now();
    let socket = SeqPacket::connect(&socket_path).unwrap();
    engine.dispatch(now, tag::LISTENER, ready(0));
    let (key, client) = engine.clients.iter().next().unwrap();
    let name = ready_key(key, client.serial);
    let open = ipc::Request::Open(ipc::OpenRequest {
        abi: ring::ABI,
        version: "test".into(),
        parent: false,
        area: ring::AreaOptions::default(),
    });
    let number = 1;
    let bytes = ipc::encode(&ipc::Envelope { number, body: open }).unwrap();
    socket.send(&bytes, &[]).unwrap();
    engine.dispatch(now, tag::CONTROL, ready(name));
    let mut buffer = vec![0; ipc::MAX_MESSAGE];
    let received = socket.recv(&mut buffer).unwrap().unwrap();
    let [memfd, bell] = received.fds.try_into().unwrap();
    let area = ring::AreaOptions::default();
    let client = ring::ClientSide::new(&area, memfd, bell).unwrap();

    // The handle is active, there is nothing to do, and then it lies.
    rustix::io::write(client.bell(), &[1]).unwrap();
    engine.dispatch(now, tag::BELL, ready(name));
    engine.turn(now, now, true);
    assert_eq!(engine.active, [key]);
    let sq_tail = 128;
    client.region().write(sq_tail, &[0xff; 4]).unwrap();
    engine.plan_sleep(now, false);
    assert!(engine.busy_until.is_some(), "the engine sleeps");
    engine.turn(now, now, false);
    assert_eq!(engine.clients.len(), 0);
    drop(engine);
}
