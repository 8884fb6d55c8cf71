//! Everything that a peer can do wrong once frames flow, and the Terminate it gets for it.

use super::raw::*;
use super::*;

const SIZE: usize = 64;

/// What the raw initiator may name.
struct Names {
    /// Readable and writable.
    both: RemoteKey,
    read: RemoteKey,
    write: RemoteKey,
    /// Of another connection.
    other: RemoteKey,
}

/// A raw initiator sends `frames`; the Terminate it gets must say `code` (first byte, second).
fn check(what: &str, code: [u8; 2], frames: impl Fn(&Names) -> Vec<Vec<u8>>) {
    let mut world = World::new();
    let (_other, other_qp) = raw_initiator(&mut world, REQUEST_1, 1);
    let (mut raw, qp) = raw_initiator(&mut world, REQUEST_1, 1);
    let mut register = |qp, read, write| {
        let access = Access {
            remote_read: read,
            remote_write: write,
        };
        world.fabric(B).register(qp, memory(SIZE), access).unwrap()
    };
    let names = Names {
        both: register(qp, true, true),
        read: register(qp, true, false),
        write: register(qp, false, true),
        other: register(other_qp, true, true),
    };
    world.recv(B, qp, 1, &memory(SIZE));
    let frames = frames(&names);
    let bytes: Vec<u8> = frames
        .iter()
        .flat_map(|ulpdu| frame(ulpdu, false))
        .collect();
    raw.send(&bytes);
    let reason = world.take_end(B);
    assert!(
        matches!(reason, EndReason::Protocol(_)),
        "{what}: {reason:?}"
    );
    // Flushed, or used by a correct message in front of the wrong one.
    let receives = world.sides[B].events.iter();
    assert_eq!(
        receives
            .filter(|event| matches!(event, FabricEvent::Recv { .. }))
            .count(),
        1
    );
    let mut ulpdu = raw.read_frame(&mut world);
    while ulpdu[1] != 0x47 {
        ulpdu = raw.read_frame(&mut world);
    }
    assert_eq!(
        ulpdu[..18],
        untagged([0x41, 0x47], [0, 2, 1, 0], b""),
        "{what}"
    );
    assert_eq!(ulpdu[18..20], code, "{what}: {reason:?}");
    if code[0] < 0x20 {
        // Length and header of the segment, and the Read Request when there is one.
        let last = frames.last().unwrap();
        let header = if last[0] & 0x80 != 0 { 14 } else { 18 };
        assert_eq!(ulpdu[22..24], (last.len() as u16).to_be_bytes(), "{what}");
        assert_eq!(ulpdu[24..24 + header], last[..header], "{what}");
        if ulpdu[20] & 0x20 != 0 {
            assert_eq!(ulpdu[24 + header..], last[header..], "{what}");
        }
    }
    assert!(raw.read_to_end(&mut world).is_empty(), "{what}");
    raw.finish();
}

#[test]
fn wrong_headers() {
    check("tagged DDP version", [0x11, 4], |_| {
        vec![tagged([0xC2, 0x40], 1, 0, b"x")]
    });
    check("untagged DDP version", [0x12, 6], |_| {
        vec![untagged([0x40, 0x43], [0, 0, 1, 0], b"x")]
    });
    check("RDMAP version", [0x02, 5], |_| {
        vec![untagged([0x41, 0x03], [0, 0, 1, 0], b"x")]
    });
    check("opcode 8", [0x02, 6], |_| {
        vec![untagged([0x41, 0x48], [0, 0, 1, 0], b"x")]
    });
    check("tagged Send", [0x02, 6], |_| {
        vec![tagged([0xC1, 0x43], 1, 0, b"x")]
    });
    check("untagged Write", [0x02, 6], |_| {
        vec![untagged([0x41, 0x40], [0, 0, 1, 0], b"x")]
    });
    check("queue 3", [0x12, 1], |_| {
        vec![untagged([0x41, 0x43], [0, 3, 1, 0], b"x")]
    });
    check("Send on the read queue", [0x02, 6], |_| {
        vec![untagged([0x41, 0x43], [0, 1, 1, 0], b"x")]
    });
    check("short tagged ULPDU", [0x20, 3], |names| {
        vec![
            tagged([0xC1, 0x40], names.both.token, names.both.offset, b"x"),
            vec![0xC1; 13],
        ]
    });
    check("short untagged ULPDU", [0x20, 3], |_| {
        vec![send(1, b""), vec![0x41; 17]]
    });
    check("no ULPDU", [0x20, 3], |_| vec![send(1, b""), vec![]]);
}

#[test]
fn wrong_sends() {
    check("MSN too high", [0x12, 3], |_| vec![send(2, b"x")]);
    check("MSN again", [0x12, 3], |_| {
        vec![send(1, b"x"), send(1, b"x")]
    });
    check("MO at the start", [0x12, 4], |_| {
        vec![untagged([0x41, 0x43], [0, 0, 1, 1], b"x")]
    });
    check("MO with a gap", [0x12, 4], |_| {
        vec![
            untagged([0x01, 0x43], [0, 0, 1, 0], b"abc"),
            untagged([0x41, 0x43], [0, 0, 1, 4], b"x"),
        ]
    });
    check("another opcode inside", [0x02, 6], |_| {
        vec![
            untagged([0x01, 0x43], [0, 0, 1, 0], b"abc"),
            untagged([0x41, 0x45], [0, 0, 1, 3], b"x"),
        ]
    });
    check("too long", [0x12, 5], |_| vec![send(1, &[0; SIZE + 1])]);
    check("too long in two", [0x12, 5], |_| {
        vec![
            untagged([0x01, 0x43], [0, 0, 1, 0], &[0; SIZE]),
            untagged([0x41, 0x43], [0, 0, 1, SIZE as u32], b"x"),
        ]
    });
    check("no receive", [0x12, 2], |_| {
        vec![send(1, b"x"), send(2, b"y")]
    });
    check("invalidates nothing", [0x01, 9], |_| {
        vec![untagged([0x41, 0x44], [5, 0, 1, 0], b"x")]
    });
    check("invalidates another connection", [0x01, 9], |names| {
        vec![untagged([0x41, 0x46], [names.other.token, 0, 1, 0], b"x")]
    });
}

#[test]
fn wrong_writes() {
    let write = |key: RemoteKey, at: u64, len: usize| {
        tagged(
            [0xC1, 0x40],
            key.token,
            key.offset.wrapping_add(at),
            &vec![1; len],
        )
    };
    check("unknown token", [0x11, 0], |names| {
        let token = names.both.token ^ 1;
        vec![write(
            RemoteKey {
                token,
                ..names.both
            },
            0,
            1,
        )]
    });
    check("token of another connection", [0x11, 0], |names| {
        vec![write(names.other, 0, 1)]
    });
    check("token that was invalidated", [0x11, 0], |names| {
        vec![
            untagged([0x41, 0x44], [names.both.token, 0, 1, 0], b"x"),
            write(names.both, 0, 1),
        ]
    });
    check("behind the end", [0x11, 1], |names| {
        vec![write(names.both, SIZE as u64, 1)]
    });
    check("across the end", [0x11, 1], |names| {
        vec![write(names.both, 1, SIZE)]
    });
    check("in front", [0x11, 1], |names| {
        vec![write(names.both, u64::MAX, 1)]
    });
    check("around the end of the space", [0x11, 3], |names| {
        let at = u64::MAX - names.both.offset;
        vec![write(names.both, at, 2)]
    });
    check("only readable", [0x01, 2], |names| {
        vec![write(names.read, 0, 1)]
    });
}

#[test]
fn wrong_reads() {
    let read = |key: RemoteKey, at: u64, len: u32| {
        read_request(1, key.token, key.offset.wrapping_add(at), len)
    };
    check("unknown token", [0x01, 0], |names| {
        let token = names.both.token ^ 1;
        vec![read(
            RemoteKey {
                token,
                ..names.both
            },
            0,
            1,
        )]
    });
    check("token of another connection", [0x01, 0], |names| {
        vec![read(names.other, 0, 1)]
    });
    check("across the end", [0x01, 1], |names| {
        vec![read(names.both, 1, SIZE as u32)]
    });
    check("all there is", [0x01, 1], |names| {
        vec![read(names.both, 0, u32::MAX)]
    });
    check("around the end of the space", [0x01, 4], |names| {
        let at = u64::MAX - names.both.offset;
        vec![read(names.both, at, 2)]
    });
    check("only writable", [0x01, 2], |names| {
        vec![read(names.write, 0, 1)]
    });
    check("two at once with IRD 1", [0x02, 7], |names| {
        vec![
            read(names.both, 0, 1),
            read_request(2, names.both.token, names.both.offset, 1),
        ]
    });
    check("MSN", [0x12, 3], |_| vec![read_request(2, 5, 0, 0)]);
    check("MO", [0x12, 4], |_| {
        vec![untagged([0x41, 0x41], [0, 1, 1, 1], &[0; 28])]
    });
    check("long body", [0x12, 5], |_| {
        vec![untagged([0x41, 0x41], [0, 1, 1, 0], &[0; 29])]
    });
    check("short body", [0x02, 7], |_| {
        vec![untagged([0x41, 0x41], [0, 1, 1, 0], &[0; 27])]
    });
    check("not the last segment", [0x02, 7], |_| {
        vec![untagged([0x01, 0x41], [0, 1, 1, 0], &[0; 28])]
    });
    check("response to nothing", [0x02, 6], |_| {
        vec![tagged([0xC1, 0x42], 5, 0, b"x")]
    });
}

#[test]
fn wrong_crc() {
    let request = b"MPA ID Req Frame\x40\x01\x00\x00";
    let mut world = World::new();
    let (mut raw, qp) = raw_initiator(&mut world, request, 1);
    world.recv(B, qp, 1, &memory(SIZE));
    let mut bytes = frame(&send(1, b"right"), true);
    let mut wrong = frame(&send(2, b"wrong"), true);
    wrong[22] ^= 1;
    world.recv(B, qp, 2, &memory(SIZE));
    bytes.extend_from_slice(&wrong);
    raw.send(&bytes);
    assert_eq!(world.take_recv(B, 1), (5, None, Status::Success));
    assert_eq!(world.take_recv(B, 2), (0, None, Status::Flushed));
    let reason = world.take_end(B);
    assert!(matches!(&reason, EndReason::Protocol(text) if text.contains("CRC")));
    // Our Terminate has a right CRC.
    let expected = untagged([0x41, 0x47], [0, 2, 1, 0], &[0x20, 2, 0, 0]);
    assert_eq!(raw.read_to_end(&mut world), frame(&expected, true));
}

#[test]
fn wrong_crc_in_the_first_frame_gets_no_answer() {
    let request = b"MPA ID Req Frame\x40\x01\x00\x00";
    let mut world = World::new();
    let (mut raw, qp) = raw_initiator(&mut world, request, 1);
    world.recv(B, qp, 1, &memory(SIZE));
    raw.send(&frame(&send(1, b"without"), false));
    assert!(matches!(world.take_end(B), EndReason::Protocol(_)));
    assert!(raw.read_to_end(&mut world).is_empty());
}

#[test]
fn zero_length_operations_name_no_memory() {
    let mut world = World::new();
    let (mut raw, qp) = raw_initiator(&mut world, REQUEST_1, 1);
    world.recv(B, qp, 1, &memory(SIZE));
    raw.send(&frame(&tagged([0xC1, 0x40], 1, 0, b""), false));
    raw.send(&frame(&read_request(1, 1, 0, 0), false));
    let answer = raw.read_frame(&mut world);
    assert_eq!(answer, tagged([0xC1, 0x42], 0x2222, 0x3333, b""));
    raw.send(&frame(&send(1, b""), false));
    assert_eq!(world.take_recv(B, 1), (0, None, Status::Success));
}

/// What a raw responder does wrong with the answer to a read of 100 bytes.
fn check_response(what: &str, code: [u8; 2], answer: impl Fn(u32, u64) -> Vec<Vec<u8>>) {
    let mut world = World::new();
    let (listener, address) = RawListener::new();
    let options = Connect {
        revision: 1,
        ..Connect::default()
    };
    let now = world.now;
    let qp = world
        .fabric(A)
        .connect(now, &options.options(address))
        .unwrap();
    let mut raw = listener.accept(&world);
    raw.read(&mut world, 20);
    raw.send(b"MPA ID Rep Frame\x00\x01\x00\x00");
    world.take_established(A);
    let sink = memory(100);
    world
        .fabric(A)
        .post_read(qp, WrId(1), sink, 0xABCD, 0x1000)
        .unwrap();
    let request = raw.read_frame(&mut world);
    assert_eq!(request[..18], untagged([0x41, 0x41], [0, 1, 1, 0], b""));
    assert_eq!(request[30..34], 100u32.to_be_bytes());
    assert_eq!(request[34..38], 0xABCDu32.to_be_bytes());
    assert_eq!(request[38..46], 0x1000u64.to_be_bytes());
    let token = u32::from_be_bytes(request[18..22].try_into().unwrap());
    let offset = u64::from_be_bytes(request[22..30].try_into().unwrap());
    for ulpdu in answer(token, offset) {
        raw.send(&frame(&ulpdu, false));
    }
    if code == [0, 0] {
        assert_eq!(world.take_done(A, 1), Status::Success, "{what}");
        return;
    }
    assert_eq!(world.take_done(A, 1), Status::Flushed, "{what}");
    assert!(
        matches!(world.take_end(A), EndReason::Protocol(_)),
        "{what}"
    );
    assert_eq!(raw.read_frame(&mut world)[18..20], code, "{what}");
}

#[test]
fn wrong_read_responses() {
    let part = |last: bool, token, offset, len| {
        tagged(
            [if last { 0xC1 } else { 0x81 }, 0x42],
            token,
            offset,
            &vec![7; len],
        )
    };
    check_response("right, in two", [0, 0], |token, offset| {
        vec![
            part(false, token, offset, 33),
            part(true, token, offset + 33, 67),
        ]
    });
    check_response("token", [0x11, 0], |token, offset| {
        vec![part(true, token ^ 1, offset, 100)]
    });
    check_response("offset", [0x11, 1], |token, offset| {
        vec![
            part(false, token, offset, 33),
            part(true, token, offset + 34, 66),
        ]
    });
    check_response("too long", [0x11, 1], |token, offset| {
        vec![part(true, token, offset, 101)]
    });
    check_response("too short", [0x02, 7], |token, offset| {
        vec![part(true, token, offset, 99)]
    });
    check_response("without an end", [0x02, 7], |token, offset| {
        vec![part(false, token, offset, 100)]
    });
    check_response("a Write to the sink", [0x11, 0], |token, offset| {
        vec![tagged([0xC1, 0x40], token, offset, b"x")]
    });
}
