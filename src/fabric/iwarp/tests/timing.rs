//! Times, limits and ends.

use super::raw::*;
use super::*;

fn second() -> Duration {
    Duration::from_secs(1)
}

#[test]
fn silent_peers_are_few_and_short() {
    let config = IwarpConfig {
        max_half_open: 2,
        ..IwarpConfig::default()
    };
    let mut world = World::with(IwarpConfig::default(), config);
    let (_, address) = world.listen(B, "127.0.0.1:0", false);
    let mut silent: Vec<_> = (0..3).map(|_| Raw::connect(&world, address)).collect();
    world.run_until("two accepted", |world| world.fabric(B).half_open() == 2);
    // The third, with a Request, has to wait for a place.
    silent[2].send(REQUEST_1);
    // A slow one: some bytes do not buy time.
    silent[1].send(&REQUEST_1[..10]);
    world.settle();
    assert_eq!(world.fabric(B).half_open(), 2);
    assert!(world.sides[B].events.is_empty());
    world.pass(5 * second() - Duration::from_millis(1));
    assert_eq!(world.fabric(B).half_open(), 2);
    world.pass(Duration::from_millis(1));
    assert!(silent[0].read_to_end(&mut world).is_empty());
    assert!(silent[1].read_to_end(&mut world).is_empty());
    let qp = world.take_request(B);
    let now = world.now;
    world.fabric(B).accept(now, qp, &depths(1, 1)).unwrap();
    world.take_established(B);
    assert_eq!(world.fabric(B).half_open(), 0);
    assert_eq!(world.fabric(B).next_timeout(), None);
}

#[test]
fn caller_that_does_not_decide() {
    let mut world = World::new();
    let (_, address) = world.listen(B, "127.0.0.1:0", false);
    let mut raw = Raw::connect(&world, address);
    raw.send(REQUEST_1);
    world.take_request(B);
    world.pass(11 * second());
    assert!(matches!(world.take_end(B), EndReason::TimedOut(_)));
    assert!(raw.read_to_end(&mut world).is_empty());
    assert_eq!(world.fabric(B).half_open(), 0);
}

#[test]
fn responder_that_does_not_answer() {
    let mut world = World::new();
    let (listener, address) = RawListener::new();
    let now = world.now;
    let options = Connect::default().options(address);
    let a = world.fabric(A).connect(now, &options).unwrap();
    world.recv(A, a, 1, &memory(1));
    let mut raw = listener.accept(&world);
    raw.read(&mut world, 24);
    assert_eq!(world.fabric(A).next_timeout(), Some(now + 10 * second()));
    world.pass(10 * second());
    assert_eq!(world.take_recv(A, 1), (0, None, Status::Flushed));
    let reason = world.take_end(A);
    assert!(matches!(&reason, EndReason::TimedOut(text) if text == "MPA Reply"));
}

#[test]
fn listener_that_closes_takes_its_requests_along() {
    let mut world = World::new();
    let (listener, address) = world.listen(B, "127.0.0.1:0", false);
    let mut asked = Raw::connect(&world, address);
    asked.send(REQUEST_1);
    let qp = world.take_request(B);
    let mut silent = Raw::connect(&world, address);
    world.run_until("accepted", |world| world.fabric(B).half_open() == 2);
    world.fabric(B).close_listener(listener);
    assert_eq!(world.take_end(B), EndReason::Local);
    assert!(asked.read_to_end(&mut world).is_empty());
    assert!(silent.read_to_end(&mut world).is_empty());
    assert_eq!(world.fabric(B).half_open(), 0);
    let now = world.now;
    assert!(world.fabric(B).accept(now, qp, &depths(1, 1)).is_err());
    assert!(std::net::TcpStream::connect(address).is_err());
}

/// A connection from a raw peer that reads nothing, with far more posted than TCP takes.
fn stuck(world: &mut World) -> (Raw, QpKey) {
    let (mut raw, qp) = raw_initiator(world, REQUEST_1, 1);
    world.recv(B, qp, 1, &memory(8));
    raw.send(&frame(&send(1, b"go"), false));
    world.take_recv(B, 1);
    world.recv(B, qp, 2, &memory(8));
    let block = filled(8 << 20, 6);
    for id in 10..14 {
        world
            .fabric(B)
            .post_write(qp, WrId(id), block.clone(), 5, 0)
            .unwrap();
    }
    let read = world.fabric(B).post_read(qp, WrId(14), memory(10), 5, 0);
    read.unwrap();
    world.post_send(B, qp, 15, &block);
    world.settle();
    (raw, qp)
}

/// All that was posted on a stuck connection has ended, in order: what TCP took well, the rest
/// flushed, then the end.
fn check_ends(events: &[FabricEvent]) {
    let mut flushed = false;
    let ids: Vec<u64> = events
        .iter()
        .filter_map(|event| match event {
            FabricEvent::Done { wr_id, status, .. } | FabricEvent::Recv { wr_id, status, .. } => {
                assert!(!flushed || *status == Status::Flushed, "{events:?}");
                flushed |= *status == Status::Flushed;
                Some(wr_id.0)
            }
            _ => None,
        })
        .collect();
    assert!(flushed);
    assert_eq!(ids, [10, 11, 12, 13, 14, 15, 2]);
    assert_eq!(events.len(), ids.len() + 1);
    assert!(matches!(
        events.last(),
        Some(FabricEvent::Disconnected {
            reason: EndReason::Local,
            ..
        })
    ));
}

#[test]
fn linger_ends() {
    let mut world = World::new();
    let (_raw, qp) = stuck(&mut world);
    let now = world.now;
    world.fabric(B).disconnect(now, qp, second());
    world.settle();
    world.pass(second());
    check_ends(&world.sides[B].events);
}

#[test]
fn end_without_linger_flushes_in_order() {
    let mut world = World::new();
    let (_raw, qp) = stuck(&mut world);
    let now = world.now;
    world.fabric(B).disconnect(now, qp, Duration::ZERO);
    // Also without a flush, the end is told.
    assert_eq!(world.fabric(B).next_timeout(), Some(now));
    world.pass(Duration::ZERO);
    check_ends(&world.sides[B].events);
    assert!(world.fabric(B).post_recv(qp, WrId(1), memory(1)).is_err());
    world.fabric(B).disconnect(now, qp, second());
    world.settle();
    check_ends(&world.sides[B].events);
}

#[test]
fn terminate_waits_for_the_rest_of_a_frame() {
    let mut world = World::new();
    let (mut raw, _) = stuck(&mut world);
    // No receive fits a second message of this size.
    raw.send(&frame(&send(2, &[0; 9]), false));
    assert!(matches!(world.take_end(B), EndReason::Protocol(_)));
    // The raw peer reads at last: whole frames up to a Terminate.
    let mut frames = 0;
    loop {
        let ulpdu = raw.read_frame(&mut world);
        if ulpdu[1] == 0x47 {
            assert_eq!(ulpdu[18..20], [0x12, 5]);
            break;
        }
        assert_eq!(ulpdu[1], 0x40);
        frames += 1;
    }
    assert!(frames > 1);
    assert!(raw.read_to_end(&mut world).is_empty());
}

#[test]
fn terminate_is_not_waited_for_longer_than_its_time() {
    let mut world = World::new();
    let (mut raw, _) = stuck(&mut world);
    raw.send(&frame(&send(2, &[0; 9]), false));
    assert!(matches!(world.take_end(B), EndReason::Protocol(_)));
    assert_eq!(world.fabric(B).closing, 1);
    world.pass(2 * second());
    assert_eq!(world.fabric(B).closing, 0);
    assert_eq!(world.fabric(B).next_timeout(), None);
}

#[test]
fn peer_that_resets() {
    let mut world = World::new();
    let (raw, qp) = raw_initiator(&mut world, REQUEST_1, 1);
    world.recv(B, qp, 1, &memory(8));
    // Closing with unread bytes resets the connection.
    let mut raw = raw;
    raw.send(&frame(&send(1, b"go"), false));
    world.take_recv(B, 1);
    world.recv(B, qp, 2, &memory(8));
    world.post_send(B, qp, 3, &filled(1000, 1));
    assert_eq!(world.take_done(B, 3), Status::Success);
    drop(raw);
    assert_eq!(world.take_recv(B, 2), (0, None, Status::Flushed));
    assert!(matches!(world.take_end(B), EndReason::Transport(_)));
}

#[test]
fn terminate_from_the_peer() {
    // As Linux siw on a little-endian host writes it, and as the RFC does.
    for body in [[0x10, 2, 0x07, 0], [0x01, 2, 0xE0, 0]] {
        let mut world = World::new();
        let (mut raw, qp) = raw_initiator(&mut world, REQUEST_1, 1);
        world.recv(B, qp, 1, &memory(8));
        raw.send(&frame(&send(1, b"go"), false));
        world.take_recv(B, 1);
        world
            .fabric(B)
            .post_read(qp, WrId(2), memory(10), 5, 0)
            .unwrap();
        world
            .fabric(B)
            .post_read(qp, WrId(3), memory(10), 5, 0)
            .unwrap();
        raw.read_frame(&mut world);
        raw.send(&frame(&untagged([0x41, 0x47], [0, 2, 1, 0], &body), false));
        assert_eq!(world.take_done(B, 2), Status::RemoteAccess);
        assert_eq!(world.take_done(B, 3), Status::Flushed);
        let reason = world.take_end(B);
        assert!(
            matches!(&reason, EndReason::Terminated(text) if text.contains("access rights")),
            "{reason:?}"
        );
    }
}

#[test]
fn memory_taken_back_is_not_read_any_more() {
    let mut world = World::new();
    let (mut raw, qp) = raw_initiator(&mut world, REQUEST_1, 1);
    let key = world
        .fabric(B)
        .register(qp, filled(32 << 20, 1), ALL)
        .unwrap();
    // A read of more than TCP takes.
    raw.send(&frame(
        &read_request(1, key.token, key.offset, 32 << 20),
        false,
    ));
    world.settle();
    let got = raw.read_frame(&mut world);
    assert_eq!(got[1], 0x42);
    assert!(world.fabric(B).deregister(qp, key.token));
    assert!(!world.fabric(B).deregister(qp, key.token));
    let rest = raw.read_to_end(&mut world);
    assert!(rest.len() < 32 << 20);
    let reason = world.take_end(B);
    assert!(matches!(&reason, EndReason::Protocol(text) if text.contains("taken back")));
}

#[test]
fn registrations_are_limited() {
    let config = IwarpConfig {
        max_registrations: 2,
        ..IwarpConfig::default()
    };
    let mut world = World::with(config.clone(), config);
    let (a, _) = world.connect("127.0.0.1:0", Connect::default());
    let first = world.fabric(A).register(a, memory(1), ALL).unwrap();
    world.fabric(A).register(a, memory(1), ALL).unwrap();
    let third = world.fabric(A).register(a, memory(1), ALL);
    assert!(matches!(third, Err(FabricError::NoResources(_))));
    assert!(world.fabric(A).deregister(a, first.token));
    world.fabric(A).register(a, memory(1), ALL).unwrap();
}

#[test]
fn idle_connections_hold_no_buffers() {
    let mut world = World::new();
    let (a, b) = world.connect("127.0.0.1:0", Connect::default());
    world.recv(B, b, 1, &memory(1 << 20));
    world.post_send(A, a, 2, &memory(1 << 20));
    world.take_recv(B, 1);
    world.take_done(A, 2);
    for (side, qp) in [(A, a), (B, b)] {
        let Some(Entry::Qp(qp)) = world.fabric(side).slots.get_mut(qp.0) else {
            panic!("no connection");
        };
        assert!(qp.setup.is_none() && !qp.tx.has_stage());
    }
    assert!(
        std::mem::size_of::<Qp>() < 1024,
        "{}",
        std::mem::size_of::<Qp>()
    );
}
