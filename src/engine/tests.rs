//! What only the engine's inside can show.

use std::time::Instant;

use super::clients::ready_key;
use super::{tag, Config, Engine};
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
