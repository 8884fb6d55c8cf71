//! What every fabric has to do.

use std::time::{Duration, Instant};

use smbdirect::fabric::{
    DeviceKind, EndReason, FabricError, FabricEvent, ListenOptions, RemoteKey, Status, WrId,
};
use smbdirect::mem::{MemSlice, Region};

use super::world::*;

const SIZES: [usize; 12] = [
    1,
    2,
    3,
    63,
    1364,
    4096,
    4097,
    65_535,
    65_536,
    200_001,
    1 << 20,
    4 << 20,
];

/// Sends, writes, reads, tokens, of every size.
pub(crate) fn every_operation(world: &mut World) {
    let (a, b) = world.connected();
    world.speak_first(a, b);
    for (index, size) in SIZES.into_iter().enumerate() {
        let id = index as u64 * 10;
        let sent = filled(size, id);
        // A Write, then a Send behind it that tells.
        let target = memory(size);
        let key = world.register(a, b, &target);
        let inbox = memory(size + 5);
        world.recv(B, b, id, &inbox);
        let RemoteKey { token, offset } = key;
        world
            .fabric(A)
            .post_write(a, WrId(id + 1), sent.clone(), token, offset)
            .unwrap();
        let request = send_request(id + 2, b"hello", Some(sent.clone()), None);
        world.fabric(A).post_send(a, request).unwrap();
        assert_eq!(
            world.take_recv(B, id),
            (size + 5, None, Status::Success),
            "size {size}"
        );
        assert!(target.to_vec() == sent.to_vec(), "written {size}");
        let message = inbox.to_vec();
        assert!(message.starts_with(b"hello") && message[5..] == sent.to_vec());
        assert_eq!(world.take_done(A, id + 1), Status::Success);
        assert_eq!(world.take_done(A, id + 2), Status::Success);
        // A reads it back, then B's token goes.
        let back = memory(size);
        world
            .fabric(A)
            .post_read(a, WrId(id + 3), back.clone(), token, offset)
            .unwrap();
        assert_eq!(world.take_done(A, id + 3), Status::Success);
        assert!(back.to_vec() == sent.to_vec(), "read {size}");
        world.recv(B, b, id + 4, &inbox);
        let by_peer = world.fabric(B).can_be_invalidated(b);
        let invalidate = Some(token).filter(|_| by_peer);
        let request = send_request(id + 5, b"bye", None, invalidate);
        world.fabric(A).post_send(a, request).unwrap();
        assert_eq!(world.take_recv(B, id + 4), (3, invalidate, Status::Success));
        assert_eq!(world.take_done(A, id + 5), Status::Success);
        assert_eq!(world.fabric(B).deregister(b, token), !by_peer, "once");
        assert!(!world.fabric(B).deregister(b, token), "it is gone");
    }
    let linger = Duration::from_secs(5);
    world.fabric(A).disconnect(Instant::now(), a, linger);
    assert_eq!(world.take_end(B), EndReason::PeerClosed);
    assert_eq!(world.take_end(A), EndReason::Local);
    world.check_quiet();
}

/// Many messages both ways at once, in the order they were posted, none lost.
pub(crate) fn both_directions_at_once(world: &mut World) {
    let (a, b) = world.connected();
    let mut random = Random(77);
    let sizes: Vec<usize> = (0..300).map(|_| 1 + random.below(9000)).collect();
    // One region for each side, as a handle's area is.
    let region = |_| Region::anonymous(300 * 9000).unwrap();
    let [at_a, at_b] = [A, B].map(region);
    let slot = |region, id: usize| MemSlice::new(region, id * 9000, 9000).unwrap();
    for id in 0..sizes.len() {
        world.recv(A, a, id as u64, &slot(&at_a, id));
        world.recv(B, b, id as u64, &slot(&at_b, id));
    }
    for (id, &size) in sizes.iter().enumerate() {
        let id = id as u64;
        world.send(A, a, id + 1000, &filled(size, id));
        world.send(B, b, id + 1000, &filled(size, id + 500));
        if id % 37 == 0 {
            world.step(Duration::ZERO);
        }
    }
    world.run_until("all of it", |world| {
        world.sides.iter().all(|side| side.events.len() == 600)
    });
    for side in &mut world.sides {
        let recvs = side.events.iter().filter_map(|event| match event {
            FabricEvent::Recv { wr_id, len, .. } => Some((wr_id.0, *len)),
            _ => None,
        });
        assert!(recvs.eq((0..).zip(sizes.iter().copied())));
        let dones = side.events.iter().filter_map(|event| match event {
            FabricEvent::Done { wr_id, status, .. } => Some((wr_id.0, *status)),
            _ => None,
        });
        assert!(dones.eq((1000..1300).map(|id| (id, Status::Success))));
        side.events.clear();
    }
    for (id, &size) in sizes.iter().enumerate() {
        let seed = id as u64;
        assert!(slot(&at_b, id).to_vec()[..size] == pattern(size, seed));
        assert!(slot(&at_a, id).to_vec()[..size] == pattern(size, seed + 500));
    }
}

/// Each side reads no deeper than the other serves, and more reads wait.
pub(crate) fn depths_are_agreed_on_and_kept(world: &mut World) {
    let (_, peer) = world.listen();
    let (a, b) = world.connect_to(peer, (4, 16), (2, 32));
    assert_eq!(world.take_established(B), 4);
    // A device may serve more than it was asked to; siw serves what the peer would like.
    let most = match world.fabric(A).name() {
        "verbs" => 16,
        _ => 2,
    };
    assert!((2..=most).contains(&world.take_established(A)));
    let source = filled(1000, 3);
    let key = world.register(a, b, &source);
    let sinks: Vec<_> = (0..20).map(|_| memory(1000)).collect();
    for (id, sink) in sinks.iter().enumerate() {
        world
            .fabric(A)
            .post_read(a, WrId(id as u64), sink.clone(), key.token, key.offset)
            .unwrap();
    }
    for (id, sink) in sinks.iter().enumerate() {
        let first = world.take(A, "a completion", |event| match event {
            FabricEvent::Done { wr_id, status, .. } => Some((wr_id.0, *status)),
            _ => None,
        });
        assert_eq!(first, (id as u64, Status::Success));
        assert!(sink.to_vec() == source.to_vec());
    }
}

pub(crate) fn no_reads_without_depth(world: &mut World) {
    let (_, peer) = world.listen();
    let (a, _) = world.connect_to(peer, (0, 0), (0, 0));
    assert_eq!(world.take_established(A), 0);
    world.take_established(B);
    let refused = world.fabric(A).post_read(a, WrId(1), memory(1), 5, 0);
    assert!(matches!(refused, Err(FabricError::WrongState(_))));
}

pub(crate) fn rejected(world: &mut World) {
    let (_, peer) = world.listen();
    let a = world.start(peer, (1, 1));
    world.recv(A, a, 1, &memory(8));
    let b = world.take_request(B);
    world.fabric(B).reject(b, &[]);
    assert_eq!(world.take_end(B), EndReason::Local);
    assert_eq!(world.take_recv(A, 1), (0, None, Status::Flushed));
    let reason = world.take_end(A);
    assert!(matches!(reason, EndReason::Refused(_)), "{reason:?}");
    let late = world
        .fabric(B)
        .accept(Instant::now(), b, &accept_options((1, 1)));
    assert!(late.is_err());
    world.check_quiet();
}

pub(crate) fn nobody_listens(world: &mut World) {
    let (listener, peer) = world.listen();
    world.fabric(B).close_listener(listener);
    world.start(peer, (1, 1));
    let reason = world.take_end(A);
    assert!(
        matches!(&reason, EndReason::Refused(text) if text.contains(&peer.to_string())),
        "{reason:?}"
    );
}

pub(crate) fn posted_sends_leave_before_the_end(world: &mut World) {
    let (a, b) = world.connected();
    let inbox = memory(2 << 20);
    world.recv(B, b, 1, &inbox);
    let sent = filled(2 << 20, 5);
    world.send(A, a, 2, &sent);
    let linger = Duration::from_secs(20);
    world.fabric(A).disconnect(Instant::now(), a, linger);
    assert!(world.fabric(A).post_recv(a, WrId(3), memory(1)).is_err());
    assert_eq!(world.take_recv(B, 1), (2 << 20, None, Status::Success));
    assert!(inbox.to_vec() == sent.to_vec());
    assert_eq!(world.take_end(B), EndReason::PeerClosed);
    assert_eq!(world.take_done(A, 2), Status::Success);
    assert_eq!(world.take_end(A), EndReason::Local);
    world.check_quiet();
}

/// Everything that was posted completes, in order, flushed from some point on, before the end.
pub(crate) fn an_abrupt_end_flushes_in_order(world: &mut World) {
    let (a, b) = world.connected();
    let target = memory(4 << 20);
    let key = world.register(a, b, &target);
    for id in 1..=5 {
        world.recv(A, a, id, &memory(64));
    }
    let block = filled(4 << 20, 1);
    let (token, offset) = (key.token, key.offset);
    let fabric = world.fabric(A);
    for id in 10..20 {
        fabric
            .post_write(a, WrId(id), block.clone(), token, offset)
            .unwrap();
    }
    let send = send_request(20, b"x", None, None);
    fabric.post_send(a, send).unwrap();
    fabric.disconnect(Instant::now(), a, Duration::ZERO);
    assert_eq!(world.take_end(A), EndReason::Local);
    let mut flushed = false;
    let ids: Vec<u64> = world.sides[A]
        .events
        .drain(..)
        .map(|event| match event {
            FabricEvent::Done { wr_id, status, .. } | FabricEvent::Recv { wr_id, status, .. } => {
                assert!(!flushed || status == Status::Flushed);
                flushed |= status == Status::Flushed;
                wr_id.0
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(flushed);
    assert!(ids.iter().copied().eq((10..=20).chain(1..=5)), "{ids:?}");
    // The key is dead.
    assert!(world.fabric(A).post_recv(a, WrId(1), memory(1)).is_err());
    assert_eq!(world.take_end(B), EndReason::PeerClosed);
    world.check_quiet();
}

pub(crate) fn the_peer_ends(world: &mut World) {
    let (a, b) = world.connected();
    for id in 1..=3 {
        world.recv(A, a, id, &memory(64));
    }
    // On iWARP the active side speaks first.
    world.recv(B, b, 8, &memory(64));
    world.send(A, a, 7, &filled(64, 1));
    assert_eq!(world.take_recv(B, 8), (64, None, Status::Success));
    assert_eq!(world.take_done(A, 7), Status::Success);
    world.send(B, b, 9, &filled(64, 1));
    let linger = Duration::from_secs(5);
    world.fabric(B).disconnect(Instant::now(), b, linger);
    assert_eq!(world.take_recv(A, 1), (64, None, Status::Success));
    assert_eq!(world.take_recv(A, 2), (0, None, Status::Flushed));
    assert_eq!(world.take_recv(A, 3), (0, None, Status::Flushed));
    assert_eq!(world.take_end(A), EndReason::PeerClosed);
    assert_eq!(world.take_done(B, 9), Status::Success);
    assert_eq!(world.take_end(B), EndReason::Local);
    world.check_quiet();
}

/// Memory named by a work request is the caller's again when its completion was told, whatever the
/// peer has taken by then.
pub(crate) fn memory_is_free_after_the_completion(world: &mut World) {
    const SIZE: usize = 8192;
    const COUNT: usize = 8;
    let (a, b) = world.connected();
    world.speak_first(a, b);
    let target = memory(COUNT * SIZE);
    let key = world.register(a, b, &target);
    let inboxes: Vec<_> = (0..COUNT).map(|_| memory(SIZE)).collect();
    for (id, inbox) in inboxes.iter().enumerate() {
        world.recv(B, b, id as u64, inbox);
    }
    world.put_to_sleep(B);
    let source = memory(COUNT * SIZE);
    for id in 0..COUNT {
        let piece = source.slice(id * SIZE, SIZE).unwrap();
        piece.write(0, &pattern(SIZE, id as u64)).unwrap();
        let at = key.offset + (id * SIZE) as u64;
        let write = WrId(id as u64);
        let posted = world
            .fabric(A)
            .post_write(a, write, piece.clone(), key.token, at);
        posted.unwrap();
        world.send(A, a, (COUNT + id) as u64, &piece);
    }
    for id in 0..2 * COUNT as u64 {
        assert_eq!(world.take_done(A, id), Status::Success);
    }
    source.write(0, &vec![0xee; COUNT * SIZE]).unwrap();
    world.wake();
    for (id, inbox) in inboxes.iter().enumerate() {
        let got = world.take_recv(B, id as u64);
        assert_eq!(got, (SIZE, None, Status::Success));
        let expected = pattern(SIZE, id as u64);
        assert!(inbox.to_vec() == expected, "send {id}");
        assert!(
            target.to_vec()[id * SIZE..][..SIZE] == expected,
            "write {id}"
        );
    }
}

/// The passive side ends at the first message, which may overtake the last one of the set-up. (Over
/// RoCE, rdma_cm says nothing to the peer when it is asked to disconnect in between.)
pub(crate) fn the_end_at_the_first_message(world: &mut World) {
    let (_, peer) = world.listen();
    for round in 0..40 {
        let a = world.start(peer, (4, 4));
        let b = world.take_request(B);
        world.recv(B, b, 1, &memory(64));
        let accept = accept_options((4, 4));
        world.fabric(B).accept(Instant::now(), b, &accept).unwrap();
        world.take_established(A);
        world.send(A, a, 2, &filled(64, 1));
        assert_eq!(world.take_recv(B, 1), (64, None, Status::Success));
        let linger = Duration::from_secs([0, 5][round % 2]);
        world.fabric(B).disconnect(Instant::now(), b, linger);
        assert_eq!(world.take_end(B), EndReason::Local);
        world.take_established(B);
        world.take_done(A, 2);
        let reason = world.take_end(A);
        let is_told = matches!(reason, EndReason::PeerClosed | EndReason::Refused(_));
        assert!(is_told, "round {round}: {reason:?}");
        world.check_quiet();
    }
}

/// A message shows that the connection is up, also if the last message of the set-up is late or lost:
/// then rdma_cm has nothing to tell.
pub(crate) fn a_message_before_the_set_up_is_over(world: &mut World) {
    let (_, peer) = world.listen();
    let a = world.start(peer, (4, 4));
    let b = world.take_request(B);
    world.recv(B, b, 1, &memory(64));
    world.recv(A, a, 2, &memory(64));
    let accept = accept_options((4, 4));
    world.fabric(B).accept(Instant::now(), b, &accept).unwrap();
    world.withheld = Some(B);
    world.take_established(A);
    world.send(A, a, 3, &filled(64, 1));
    let is_recv = |event: &FabricEvent| matches!(event, FabricEvent::Recv { .. });
    world.run_until("the message", |world| {
        world.sides[B].events.iter().any(is_recv)
    });
    let first = &world.sides[B].events[0];
    assert!(
        matches!(first, FabricEvent::Established { .. }),
        "{first:?}"
    );
    world.take_established(B);
    assert_eq!(world.take_recv(B, 1), (64, None, Status::Success));
    // Both ways, and to the end.
    world.send(B, b, 4, &filled(64, 2));
    assert_eq!(world.take_recv(A, 2), (64, None, Status::Success));
    assert_eq!(world.take_done(B, 4), Status::Success);
    assert_eq!(world.take_done(A, 3), Status::Success);
    let linger = Duration::from_secs(5);
    world.fabric(B).disconnect(Instant::now(), b, linger);
    assert_eq!(world.take_end(B), EndReason::Local);
    world.withheld = None;
    assert_eq!(world.take_end(A), EndReason::PeerClosed);
    for _ in 0..10 {
        world.step(Duration::ZERO);
    }
    world.check_quiet();
}

/// A peer that uses a token after it was taken back gets nothing, and loses the connection.
pub(crate) fn memory_taken_back_is_out_of_reach(world: &mut World) {
    let (a, b) = world.connected();
    let target = memory(4096);
    let key = world.register(a, b, &target);
    let (token, offset) = (key.token, key.offset);
    let fabric = world.fabric(A);
    fabric
        .post_write(a, WrId(1), filled(4096, 1), token, offset)
        .unwrap();
    assert_eq!(world.take_done(A, 1), Status::Success);
    let back = memory(4096);
    world
        .fabric(A)
        .post_read(a, WrId(2), back, token, offset)
        .unwrap();
    assert_eq!(world.take_done(A, 2), Status::Success);
    let written = target.to_vec();
    assert!(world.fabric(B).deregister(b, token));
    world
        .fabric(A)
        .post_write(a, WrId(3), filled(4096, 2), token, offset)
        .unwrap();
    world
        .fabric(A)
        .post_read(a, WrId(4), memory(4096), token, offset)
        .unwrap();
    assert_ne!(world.take_done(A, 4), Status::Success);
    world.take_end(A);
    world.take_end(B);
    assert!(target.to_vec() == written, "it was written");
}

/// A token may be given back before anything was done with it.
pub(crate) fn a_token_given_back_at_once(world: &mut World) {
    let (a, b) = world.connected();
    for id in 0..20 {
        let target = memory(8192);
        let key = world.fabric(B).register(b, target, ALL).unwrap();
        if id % 2 == 0 {
            let Side { fabric, events } = &mut world.sides[B];
            fabric.flush(Instant::now(), events);
        }
        assert!(world.fabric(B).deregister(b, key.token));
        assert!(!world.fabric(B).deregister(b, key.token));
    }
    world.recv(B, b, 1, &memory(64));
    world.send(A, a, 2, &filled(64, 1));
    assert_eq!(world.take_recv(B, 1), (64, None, Status::Success));
    assert_eq!(world.take_done(A, 2), Status::Success);
    world.check_quiet();
}

/// What is registered for work requests is given back when they are done and time has passed, and
/// with the connection.
pub(crate) fn memory_is_given_back(world: &mut World) {
    let (a, b) = world.connected();
    // As in the area of a handle: receives at its start, buffers at its end.
    let area = Region::anonymous(9 << 20).unwrap();
    let slot = MemSlice::new(&area, 0, 4096).unwrap();
    let buffer = MemSlice::new(&area, 8 << 20, 1 << 20).unwrap();
    world.recv(A, a, 1, &slot);
    let posted = world.fabric(A).registered_bytes();
    assert!(posted <= 1 << 20, "{posted} bytes for one receive");
    let inbox = memory(1 << 20);
    world.recv(B, b, 2, &inbox);
    world.send(A, a, 3, &buffer);
    assert_eq!(world.take_done(A, 3), Status::Success);
    world.take_recv(B, 2);
    let busy = world.fabric(A).registered_bytes();
    assert!(busy >= posted, "{busy} < {posted}");
    // Used again at once: nothing more.
    world.recv(B, b, 4, &inbox);
    world.send(A, a, 5, &buffer);
    assert_eq!(world.take_done(A, 5), Status::Success);
    world.take_recv(B, 4);
    assert_eq!(world.fabric(A).registered_bytes(), busy);
    // An hour later only the receive is left.
    let later = Instant::now() + Duration::from_secs(3600);
    let Side { fabric, events } = &mut world.sides[A];
    fabric.handle_timeout(later, events);
    assert_eq!(fabric.registered_bytes(), posted);
    world
        .fabric(A)
        .disconnect(Instant::now(), a, Duration::from_secs(5));
    assert_eq!(world.take_recv(A, 1).2, Status::Flushed);
    world.take_end(A);
    assert_eq!(world.fabric(A).registered_bytes(), 0);
}

pub(crate) fn a_token_that_does_not_exist(world: &mut World) {
    let (a, b) = world.connected();
    world.recv(B, b, 1, &memory(8));
    let sink = filled(64, 3);
    let before = sink.to_vec();
    world
        .fabric(A)
        .post_read(a, WrId(2), sink.clone(), 0x00ab_cd01, 0x1000)
        .unwrap();
    assert_ne!(world.take_done(A, 2), Status::Success);
    assert!(sink.to_vec() == before);
    assert_eq!(world.take_recv(B, 1), (0, None, Status::Flushed));
    world.take_end(A);
    world.take_end(B);
    world.check_quiet();
}

/// More sends and writes than any queue holds go out all the same.
pub(crate) fn more_than_the_device_holds(world: &mut World) {
    let (a, b) = world.connected();
    let target = memory(1 << 20);
    let key = world.register(a, b, &target);
    let source = filled(1 << 20, 8);
    let count = 3000;
    for id in 0..count {
        let at = (id as usize * 64) % (1 << 20);
        let piece = source.slice(at, 64).unwrap();
        let offset = key.offset + at as u64;
        world
            .fabric(A)
            .post_write(a, WrId(id), piece, key.token, offset)
            .unwrap();
    }
    world.run_until("all writes", |world| {
        world.sides[A].events.len() == count as usize
    });
    let dones = world.sides[A].events.iter().map(|event| match event {
        FabricEvent::Done { wr_id, status, .. } => (wr_id.0, *status),
        other => panic!("{other:?}"),
    });
    assert!(dones.eq((0..count).map(|id| (id, Status::Success))));
    // A read behind them finds them placed.
    let back = memory(count as usize * 64);
    world
        .fabric(A)
        .post_read(a, WrId(count), back.clone(), key.token, key.offset)
        .unwrap();
    assert_eq!(world.take_done(A, count), Status::Success);
    assert!(back.to_vec() == source.to_vec()[..back.len()]);
}

/// A message that its receive has no room for ends the connection, and nothing beyond is written.
pub(crate) fn messages_too_long(world: &mut World) {
    let (a, b) = world.connected();
    let room = memory(128);
    world.recv(B, b, 1, &room.slice(0, 64).unwrap());
    world.send(A, a, 2, &filled(100, 1));
    assert_eq!(world.take_recv(B, 1).2, Status::Flushed);
    world.take_end(B);
    world.take_end(A);
    assert!(room.to_vec()[64..] == [0; 64]);
}

pub(crate) fn a_listener_that_closes(world: &mut World) {
    let (listener, peer) = world.listen();
    let (a, b) = world.connect_to(peer, (1, 1), (1, 1));
    world.take_established(A);
    world.take_established(B);
    let asked = world.start(peer, (1, 1));
    let request = world.take_request(B);
    world.fabric(B).close_listener(listener);
    // The request that nobody accepted goes, the connection stays.
    let ended = world.take(B, "end", |event| match event {
        FabricEvent::Disconnected { qp, .. } => Some(*qp),
        _ => None,
    });
    assert_eq!(ended, request);
    let ended = world.take(A, "end", |event| match event {
        FabricEvent::Disconnected { qp, .. } => Some(*qp),
        _ => None,
    });
    assert_eq!(ended, asked);
    world.recv(B, b, 1, &memory(64));
    world.send(A, a, 2, &filled(64, 1));
    assert_eq!(world.take_recv(B, 1), (64, None, Status::Success));
}

/// Connections do not get into each other's way.
pub(crate) fn many_connections(world: &mut World) {
    let (_, peer) = world.listen();
    let mut pairs = Vec::new();
    for _ in 0..24 {
        let pair = world.connect_to(peer, (4, 4), (4, 4));
        world.take_established(A);
        world.take_established(B);
        pairs.push(pair);
    }
    let inboxes: Vec<_> = pairs.iter().map(|_| memory(4096)).collect();
    for (index, &(a, b)) in pairs.iter().enumerate() {
        let id = index as u64;
        world.recv(B, b, id, &inboxes[index]);
        world.send(A, a, 100 + id, &filled(4096, id));
    }
    for (index, inbox) in inboxes.iter().enumerate() {
        let id = index as u64;
        assert_eq!(world.take_recv(B, id), (4096, None, Status::Success));
        assert!(inbox.to_vec() == pattern(4096, id));
        assert_eq!(world.take_done(A, 100 + id), Status::Success);
    }
    for &(a, _) in &pairs {
        let linger = Duration::from_secs(5);
        world.fabric(A).disconnect(Instant::now(), a, linger);
    }
    for _ in &pairs {
        assert_eq!(world.take_end(A), EndReason::Local);
        assert_eq!(world.take_end(B), EndReason::PeerClosed);
    }
    world.check_quiet();
}

/// A request that nobody decides about is refused in time.
pub(crate) fn caller_that_does_not_decide(world: &mut World) {
    let (_, peer) = world.listen();
    world.start(peer, (1, 1));
    world.take_request(B);
    let late = Instant::now() + Duration::from_secs(30);
    let side = &mut world.sides[B];
    side.fabric.handle_timeout(late, &mut side.events);
    assert!(matches!(world.take_end(B), EndReason::TimedOut(_)));
    let reason = world.take_end(A);
    let is_refused = matches!(
        reason,
        EndReason::Refused(_) | EndReason::PeerClosed | EndReason::Transport(_)
    );
    assert!(is_refused, "{reason:?}");
}

/// Verbs only: a listener for one kind of device has none of the other.
pub(crate) fn ports_are_for_their_devices(world: &mut World) {
    let address = world.address;
    let own = world.fabric(B).local_address(None, address).unwrap();
    let own_kind = own.kind.expect("a device has a kind");
    let other_kind = match own_kind {
        DeviceKind::Iwarp => DeviceKind::Infiniband,
        _ => DeviceKind::Iwarp,
    };
    let options = |device| ListenOptions {
        device,
        ..ListenOptions::default()
    };
    // By itself.
    let at = std::net::SocketAddr::new(address, 0);
    let refused = world.fabric(B).listen(at, &options(other_kind));
    let text = refused.unwrap_err().to_string();
    assert!(text.contains(own.device.as_deref().unwrap()), "{text}");
    let (one, taken) = world.fabric(B).listen(at, &options(own_kind)).unwrap();
    world.fabric(B).close_listener(one);
    // Under a wildcard, on a port that is known to be free; a wildcard has no port of its own.
    let mut any = std::net::SocketAddr::new([0, 0, 0, 0].into(), 0);
    assert!(world.fabric(B).listen(any, &options(own_kind)).is_err());
    any.set_port(taken.port());
    let (wrong, _) = world.fabric(B).listen(any, &options(other_kind)).unwrap();
    assert!(world.fabric(B).local_address(Some(wrong), address).is_err());
    world.start(taken, (1, 1));
    let reason = world.take_end(A);
    assert!(matches!(reason, EndReason::Refused(_)), "{reason:?}");
    world.fabric(B).close_listener(wrong);
    let (right, _) = world.fabric(B).listen(any, &options(own_kind)).unwrap();
    let known = world.fabric(B).local_address(Some(right), address);
    assert_eq!(known.unwrap().device, own.device);
    world.connect_to(taken, (1, 1), (1, 1));
    world.take_established(A);
    world.take_established(B);
}
