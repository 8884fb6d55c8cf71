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
