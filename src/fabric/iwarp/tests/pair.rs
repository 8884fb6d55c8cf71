//! Every operation between two fabrics.

use super::*;

const SIZES: [usize; 11] = [
    1,
    2,
    3,
    1364,
    4096,
    4097,
    65_535,
    65_536,
    200_001,
    1 << 20,
    8 << 20,
];

fn every_operation(address: &str, connect: Connect, config: IwarpConfig) {
    let mut world = World::with(config.clone(), config);
    let (a, b) = world.connect(address, connect);
    for (index, size) in SIZES.into_iter().enumerate() {
        let id = index as u64 * 10;
        let sent = filled(size, id);
        // A Write, then a Send behind it that tells.
        let target = memory(size);
        let key = world.fabric(B).register(b, target.clone(), ALL).unwrap();
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
        // A reads it back, then B takes the token away with a send.
        let back = memory(size);
        world
            .fabric(A)
            .post_read(a, WrId(id + 3), back.clone(), token, offset)
            .unwrap();
        assert_eq!(world.take_done(A, id + 3), Status::Success);
        assert!(back.to_vec() == sent.to_vec(), "read {size}");
        world.recv(B, b, id + 4, &inbox);
        let request = send_request(id + 5, b"bye", None, Some(token));
        world.fabric(A).post_send(a, request).unwrap();
        assert_eq!(
            world.take_recv(B, id + 4),
            (3, Some(token), Status::Success)
        );
        assert_eq!(world.take_done(A, id + 5), Status::Success);
        assert!(!world.fabric(B).deregister(b, token), "it is gone");
    }
    let now = world.now;
    world.fabric(A).disconnect(now, a, Duration::from_secs(1));
    assert_eq!(world.take_end(B), EndReason::PeerClosed);
    assert_eq!(world.take_end(A), EndReason::Local);
    assert!(world.sides.iter().all(|side| side.events.is_empty()));
}

#[test]
fn every_operation_ipv4() {
    every_operation("127.0.0.1:0", Connect::default(), IwarpConfig::default());
}

#[test]
fn every_operation_ipv6_crc() {
    let connect = Connect {
        crc: true,
        ..Connect::default()
    };
    every_operation("[::1]:0", connect, IwarpConfig::default());
}

#[test]
fn every_operation_revision_1() {
    let connect = Connect {
        revision: 1,
        listen_crc: true,
        ..Connect::default()
    };
    every_operation("127.0.0.1:0", connect, IwarpConfig::default());
}

#[test]
fn every_operation_small_segments() {
    let config = IwarpConfig {
        segment: SegmentSize::Bytes(1442),
        ..IwarpConfig::default()
    };
    every_operation("127.0.0.1:0", Connect::default(), config.clone());
    let connect = Connect {
        crc: true,
        ..Connect::default()
    };
    every_operation("127.0.0.1:0", connect, config);
}

#[test]
fn every_operation_small_socket_buffers() {
    let config = IwarpConfig {
        send_buffer: Some(8 << 10),
        receive_buffer: Some(8 << 10),
        segment: SegmentSize::Bytes(60_000),
        ..IwarpConfig::default()
    };
    every_operation("127.0.0.1:0", Connect::default(), config);
}

/// Many messages both ways at once, in the order they were posted, none lost.
#[test]
fn both_directions_at_once() {
    let mut world = World::new();
    let (a, b) = world.connect("127.0.0.1:0", Connect::default());
    let mut random = Random(77);
    let sizes: Vec<usize> = (0..300).map(|_| 1 + random.below(9000)).collect();
    let inbox: Vec<[MemSlice; 2]> = sizes.iter().map(|_| [memory(9000), memory(9000)]).collect();
    for (id, [at_a, at_b]) in inbox.iter().enumerate() {
        world.recv(A, a, id as u64, at_a);
        world.recv(B, b, id as u64, at_b);
    }
    for (id, &size) in sizes.iter().enumerate() {
        world.post_send(A, a, id as u64 + 1000, &filled(size, id as u64));
        world.post_send(B, b, id as u64 + 1000, &filled(size, id as u64 + 500));
        if id % 37 == 0 {
            world.step(Duration::ZERO);
        }
    }
    world.run_until("all of it", |world| {
        world.sides.iter().all(|side| side.events.len() == 600)
    });
    for side in &world.sides {
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
    }
    for (id, ([at_a, at_b], &size)) in inbox.iter().zip(&sizes).enumerate() {
        assert!(at_b.to_vec()[..size] == pattern(size, id as u64));
        assert!(at_a.to_vec()[..size] == pattern(size, id as u64 + 500));
    }
}
