//! Set-up with raw peers: revisions, flags, refusals, ready to receive.

use super::raw::*;
use super::*;

/// A connects to a raw responder, which gets the Request.
fn raw_responder(world: &mut World, connect: Connect) -> (Raw, QpKey, Vec<u8>, RawListener) {
    let (listener, address) = RawListener::new();
    let now = world.now;
    let qp = world
        .fabric(A)
        .connect(now, &connect.options(address))
        .unwrap();
    let mut raw = listener.accept(world);
    let len = if connect.revision == 2 { 24 } else { 20 };
    let request = raw.read(world, len);
    (raw, qp, request, listener)
}

fn only(zero_fpdu: bool, write: bool, read: bool) -> World {
    let config = IwarpConfig {
        rtr: Rtr {
            zero_fpdu,
            write,
            read,
        },
        ..IwarpConfig::default()
    };
    World::with(config, IwarpConfig::default())
}

#[test]
fn initiator_sends_each_ready_to_receive_first() {
    // Flags of the Request, of the Reply, the first frame.
    let write = tagged([0xC1, 0x40], 1, 0, b"");
    type Case = (World, [u8; 4], [u8; 4], Vec<u8>);
    let cases: [Case; 3] = [
        (
            only(false, true, true),
            [0x80, 32, 0xC0, 32],
            [0x80, 7, 0x80, 0],
            write,
        ),
        (
            only(true, false, false),
            [0xC0, 32, 0, 32],
            [0xC0, 7, 0, 0],
            vec![],
        ),
        (
            only(false, false, true),
            [0x80, 32, 0x40, 32],
            [0x80, 7, 0x40, 0],
            vec![0; 46],
        ),
    ];
    for (mut world, asked, told, first) in cases {
        let (mut raw, qp, request, _) = raw_responder(&mut world, Connect::default());
        assert_eq!(
            request,
            [b"MPA ID Req Frame\x10\x02\x00\x04", &asked[..]].concat()
        );
        // Posted early: goes out behind the ready-to-receive frame.
        world.post_send(A, qp, 5, &MemSlice::from_bytes(b"hello").unwrap());
        raw.send(&[b"MPA ID Rep Frame\x10\x02\x00\x04", &told[..]].concat());
        assert_eq!(world.take_established(A), (7, vec![]));
        let frame_1 = raw.read_frame(&mut world);
        if first.len() == 46 {
            assert_eq!(frame_1[..18], untagged([0x41, 0x41], [0, 1, 1, 0], b""));
            assert_eq!(frame_1[30..34], [0; 4], "zero-length");
            let token = u32::from_be_bytes(frame_1[18..22].try_into().unwrap());
            raw.send(&frame(&tagged([0xC1, 0x42], token, 0, b""), false));
        } else {
            assert_eq!(frame_1, first);
        }
        assert_eq!(raw.read_frame(&mut world), send(1, b"hello"));
        assert_eq!(world.take_done(A, 5), Status::Success);
        raw.finish();
        assert_eq!(world.take_end(A), EndReason::PeerClosed);
        assert!(world.sides[A].events.is_empty(), "nothing of it is told");
    }
}

#[test]
fn responder_takes_each_ready_to_receive() {
    let cases: [([u8; 4], [u8; 4], Vec<u8>); 3] = [
        (
            [0xC0, 9, 0xC0, 5],
            [0x80, 1, 0x80, 9],
            tagged([0xC1, 0x40], 1, 0, b""),
        ),
        (
            [0xC0, 9, 0x40, 5],
            [0x80, 1, 0x40, 9],
            read_request(1, 1, 0, 0),
        ),
        ([0xC0, 9, 0, 5], [0xC0, 1, 0, 9], vec![]),
    ];
    for (asked, told, first) in cases {
        let mut world = World::new();
        let (_, address) = world.listen(B, "127.0.0.1:0", false);
        let mut raw = Raw::connect(&world, address);
        raw.send(&[b"MPA ID Req Frame\x10\x02\x00\x04", &asked[..]].concat());
        let depth = world.take(B, "connect request", |event| match event {
            FabricEvent::ConnectRequest {
                qp,
                peer_ird,
                peer_ord,
                ..
            } => Some((*qp, *peer_ird, *peer_ord)),
            _ => None,
        });
        assert_eq!((depth.1, depth.2), (Some(9), Some(5)));
        let (qp, now) = (depth.0, world.now);
        world.fabric(B).accept(now, qp, &depths(1, 32)).unwrap();
        // A responder may not speak first: this waits.
        world.post_send(B, qp, 5, &MemSlice::from_bytes(b"hello").unwrap());
        let reply = raw.read(&mut world, 24);
        assert_eq!(
            reply,
            [b"MPA ID Rep Frame\x10\x02\x00\x04", &told[..]].concat()
        );
        assert_eq!(world.take_established(B).0, 9);
        assert!(!world.step(Duration::ZERO) && world.sides[B].events.is_empty());
        raw.send(&frame(&first, false));
        let mut answer = raw.read_frame(&mut world);
        if first.len() == 46 {
            // The order of the two is ours.
            let other = raw.read_frame(&mut world);
            assert!([&answer, &other].contains(&&tagged([0xC1, 0x42], 0x2222, 0x3333, b"")));
            if answer[1] == 0x42 {
                answer = other;
            }
        }
        assert_eq!(answer, send(1, b"hello"));
        assert_eq!(world.take_done(B, 5), Status::Success);
    }
}

#[test]
fn either_side_turns_crc_on() {
    for (crc, listen_crc) in [(true, false), (false, true), (true, true)] {
        let mut world = World::new();
        let connect = Connect {
            crc,
            listen_crc,
            ..Connect::default()
        };
        let (a, b) = world.connect("127.0.0.1:0", connect);
        let inbox = memory(10);
        world.recv(B, b, 1, &inbox);
        world.post_send(A, a, 2, &filled(10, 1));
        assert_eq!(world.take_recv(B, 1), (10, None, Status::Success));
        assert_eq!(inbox.to_vec(), pattern(10, 1));
    }
}

#[test]
fn reply_that_is_no_base() {
    let cases: [(&[u8], &str); 5] = [
        (b"MPA ID Rep Frame\x90\x02\x00\x04\0\0\0\0", "markers"),
        (b"MPA ID Rep Frame\x00\x02\x00\x00", "flag S"),
        (b"HTTP/1.1 400 Bad Request\r\n", "not an MPA Reply"),
        (
            b"MPA ID Rep Frame\x10\x02\x00\x04\0\0\0\0x",
            "1 bytes behind",
        ),
        (b"MPA ID Rep Frame\x10\x02\x02\x01", "513"),
    ];
    for (reply, word) in cases {
        let mut world = World::new();
        let (mut raw, ..) = raw_responder(&mut world, Connect::default());
        raw.send(reply);
        let reason = world.take_end(A);
        assert!(
            matches!(&reason, EndReason::Protocol(text) if text.contains(word)),
            "{word}: {reason:?}"
        );
        assert!(raw.read_to_end(&mut world).is_empty());
    }
}

#[test]
fn reply_that_rejects() {
    let mut world = World::new();
    let (mut raw, qp, ..) = raw_responder(&mut world, Connect::default());
    world.recv(A, qp, 1, &memory(10));
    raw.send(b"MPA ID Rep Frame\x30\x02\x00\x06\0\0\0\0no");
    assert_eq!(world.take_recv(A, 1), (0, None, Status::Flushed));
    let reason = world.take_end(A);
    assert!(matches!(&reason, EndReason::Refused(text) if text.contains("[6e, 6f]")));
}

#[test]
fn reply_that_asks_too_much_gets_a_terminate() {
    // 200 reads at once; then a ready-to-receive message that was not offered.
    for (told, code) in [([0x80, 1, 0x80, 200], 6), ([0xC0, 1, 0, 1], 7)] {
        let mut world = World::new();
        let (mut raw, ..) = raw_responder(&mut world, Connect::default());
        raw.send(&[b"MPA ID Rep Frame\x10\x02\x00\x04", &told[..]].concat());
        assert!(matches!(world.take_end(A), EndReason::Protocol(_)));
        let ulpdu = raw.read_frame(&mut world);
        assert_eq!(ulpdu[1], 0x47);
        assert_eq!(ulpdu[18..], [0x20, code, 0, 0]);
        assert!(raw.read_to_end(&mut world).is_empty());
    }
}

#[test]
fn revision_1_is_tried_once() {
    let mut world = World::new();
    let (raw, _, _, listener) = raw_responder(&mut world, Connect::default());
    // A peer of revision 1 only drops what it does not know.
    drop(raw);
    world.run_until("a second connect", |world| {
        world.step(Duration::ZERO);
        true
    });
    let mut raw = listener.accept(&world);
    assert_eq!(raw.read(&mut world, 20), REQUEST_1);
    raw.send(b"MPA ID Rep Frame\x00\x01\x00\x02hi");
    assert_eq!(world.take_established(A), (32, b"hi".to_vec()));
    // And no third time.
    let mut world = World::new();
    let (raw, _, _, listener) = raw_responder(&mut world, Connect::default());
    drop(raw);
    world.step(PATIENCE);
    let mut raw = listener.accept(&world);
    raw.read(&mut world, 20);
    drop(raw);
    assert!(matches!(world.take_end(A), EndReason::Refused(_)));
}

#[test]
fn no_fall_back_when_it_is_off() {
    let config = IwarpConfig {
        revision_fallback: false,
        ..IwarpConfig::default()
    };
    let mut world = World::with(config, IwarpConfig::default());
    let (raw, ..) = raw_responder(&mut world, Connect::default());
    drop(raw);
    let reason = world.take_end(A);
    assert!(matches!(&reason, EndReason::Refused(text) if text.contains("revision 2")));
}

#[test]
fn requests_that_are_refused() {
    let cases: [(&[u8], &[u8]); 5] = [
        (
            b"MPA ID Req Frame\x80\x01\x00\x00",
            b"MPA ID Rep Frame\x20\x01\x00\x00",
        ),
        (
            b"MPA ID Req Frame\x90\x02\x00\x04\0\x01\0\x01",
            b"MPA ID Rep Frame\x30\x02\x00\x04\0\0\0\0",
        ),
        (b"MPA ID Req Frame\x00\x03\x00\x00", b""),
        (b"GET / HTTP/1.0\r\n\r\n", b""),
        (b"MPA ID Req Frame\x00\x01\x00\x00x", b""),
    ];
    for (request, answer) in cases {
        let mut world = World::new();
        let (_, address) = world.listen(B, "127.0.0.1:0", false);
        let mut raw = Raw::connect(&world, address);
        raw.send(request);
        assert_eq!(raw.read_to_end(&mut world), answer);
        assert_eq!(world.fabric(B).half_open(), 0);
        assert!(
            world.sides[B].events.is_empty(),
            "the caller sees none of it"
        );
    }
}

#[test]
fn bytes_behind_the_request() {
    let mut world = World::new();
    let (_, address) = world.listen(B, "127.0.0.1:0", false);
    let mut raw = Raw::connect(&world, address);
    raw.send(REQUEST_1);
    world.take_request(B);
    raw.send(b"x");
    let reason = world.take_end(B);
    assert!(matches!(&reason, EndReason::Protocol(text) if text.contains("behind")));
}

#[test]
fn caller_rejects() {
    let mut world = World::new();
    let (_, peer) = world.listen(B, "127.0.0.1:0", false);
    let now = world.now;
    let options = Connect::default().options(peer);
    world.fabric(A).connect(now, &options).unwrap();
    let b = world.take_request(B);
    world.fabric(B).reject(b, b"no");
    assert_eq!(world.take_end(B), EndReason::Local);
    let reason = world.take_end(A);
    assert!(matches!(&reason, EndReason::Refused(text) if text.contains("[6e, 6f]")));
    assert!(world.fabric(B).accept(now, b, &depths(1, 1)).is_err());
}

#[test]
fn values_out_of_range() {
    let mut world = World::new();
    let now = world.now;
    let peer = "127.0.0.1:1".parse().unwrap();
    let mut refused = |change: fn(&mut ConnectOptions), word: &str| {
        let mut options = Connect::default().options(peer);
        change(&mut options);
        let error = world.fabric(A).connect(now, &options).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    };
    refused(|options| options.mpa_revision = 3, "3");
    refused(|options| options.ird = 129, "129");
    refused(|options| options.private_data = vec![0; 253], "253");
    let error = world
        .fabric(A)
        .listen("192.0.2.1:0".parse().unwrap(), &ListenOptions::default());
    assert!(error.unwrap_err().to_string().contains("192.0.2.1"));
}
