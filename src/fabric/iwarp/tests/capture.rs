//! Streams of the Linux kernel's SMB Direct over siw, both directions, two kernels (see
//! `tests/data`): every frame of them is taken for what it is.

use std::collections::BTreeMap;

use super::ddp::READ_REQUEST_LEN;
use super::raw::*;
use super::*;

/// The frames of a capture; the first is the Request or Reply.
fn frames(text: &str) -> Vec<Vec<u8>> {
    let decode = |hex: &str| -> Vec<u8> {
        (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect()
    };
    text.lines()
        .map(|line| {
            let mut bytes = Vec::new();
            for word in line.split(' ') {
                match word.strip_prefix('+') {
                    Some(zeros) => bytes.resize(bytes.len() + zeros.parse::<usize>().unwrap(), 0),
                    None => bytes.extend_from_slice(&decode(word)),
                }
            }
            bytes
        })
        .collect()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// What the other side must have had for the stream to be right, read off the frames.
#[derive(Default)]
struct Needs {
    /// Memory named by Writes and Read Requests: token, first and last place.
    memory: BTreeMap<u32, (u64, u64)>,
    /// Reads that are answered: sink token, sink place, bytes.
    reads: Vec<(u32, u64, u32)>,
}

impl Needs {
    fn of(frames: &[Vec<u8>]) -> Self {
        let mut needs = Self::default();
        let mut open = None;
        for frame in &frames[1..] {
            let len = u64::from(u16::from_be_bytes([frame[0], frame[1]]));
            match frame[3] & 0x0F {
                0 => needs.name(u32_at(frame, 4), u64_at(frame, 8), len - 14),
                1 => needs.name(
                    u32_at(frame, 36),
                    u64_at(frame, 40),
                    u32_at(frame, 32).into(),
                ),
                2 => {
                    let (_, _, total) = open.get_or_insert((u32_at(frame, 4), u64_at(frame, 8), 0));
                    *total += len as u32 - 14;
                    if frame[2] & 0x40 != 0 {
                        needs.reads.extend(open.take());
                    }
                }
                4 | 6 => {
                    // Memory that the peer has not used after all.
                    needs.memory.entry(u32_at(frame, 4)).or_insert((0, 1));
                }
                _ => {}
            }
        }
        needs
    }

    fn name(&mut self, token: u32, at: u64, len: u64) {
        let range = self.memory.entry(token).or_insert((at, at + len));
        *range = (range.0.min(at), range.1.max(at + len));
    }
}

/// What a side was told.
#[derive(Debug, Default, PartialEq)]
struct Told {
    sends: usize,
    send_bytes: usize,
    invalidated: usize,
    reads: usize,
}

/// Sends the stream to a fabric, cut into pieces; what the fabric told.
fn replay(world: &mut World, side: usize, qp: QpKey, raw: &mut Raw, frames: &[Vec<u8>]) -> Told {
    let needs = Needs::of(frames);
    for id in 0..100 {
        world.recv(side, qp, id, &memory(8192));
    }
    let Some(Entry::Qp(held)) = world.fabric(side).slots.get_mut(qp.0) else {
        panic!("no connection");
    };
    for (token, (from, to)) in needs.memory {
        let key = RemoteKey {
            token,
            offset: from,
        };
        let slice = memory((to - from) as usize);
        assert!(held.registrations.insert(key, slice, ALL));
    }
    held.ord = 32;
    for (id, (sink_token, sink_offset, len)) in needs.reads.iter().copied().enumerate() {
        let request = ReadRequest {
            sink_token,
            sink_offset,
            len,
            source_token: 0,
            source_offset: 0,
        };
        held.push_read(WrId(id as u64), request, memory(len as usize));
    }
    for (index, frame) in frames[1..].iter().enumerate() {
        // Cut somewhere; the peer has its answers before it goes on.
        let (head, tail) = frame.split_at(index % frame.len());
        for piece in [head, tail] {
            raw.send(piece);
            world.settle();
            raw.take_input(world);
        }
    }
    raw.finish();
    assert_eq!(world.take_end(side), EndReason::PeerClosed);
    let mut told = Told::default();
    for event in &world.sides[side].events {
        match event {
            FabricEvent::Recv {
                len,
                invalidated,
                status: Status::Success,
                ..
            } => {
                told.sends += 1;
                told.send_bytes += len;
                told.invalidated += usize::from(invalidated.is_some());
            }
            FabricEvent::Done {
                status: Status::Success,
                ..
            } => told.reads += 1,
            _ => {}
        }
    }
    told
}

/// What the client said, to a passive fabric.
fn client(text: &str, private_data: [u8; 8], peer_ord: u32) -> Told {
    let frames = frames(text);
    let mut world = World::new();
    let (_, address) = world.listen(B, "127.0.0.1:0", false);
    let mut raw = Raw::connect(&world, address);
    raw.send(&frames[0]);
    let (qp, data, depths_of_peer) = world.take(B, "connect request", |event| match event {
        FabricEvent::ConnectRequest {
            qp,
            private_data,
            peer_ird,
            peer_ord,
            ..
        } => Some((*qp, private_data.clone(), (*peer_ird, *peer_ord))),
        _ => None,
    });
    assert_eq!(data, private_data);
    assert_eq!(depths_of_peer, (Some(32), Some(peer_ord)));
    let now = world.now;
    world.fabric(B).accept(now, qp, &depths(1, 8)).unwrap();
    assert_eq!(
        raw.read(&mut world, 24),
        b"MPA ID Rep Frame\x10\x02\x00\x04\x00\x01\x00\x08"
    );
    assert_eq!(world.take_established(B).0, 8);
    replay(&mut world, B, qp, &mut raw, &frames)
}

/// What the server said, to an active fabric; and the bytes that it read.
fn server(text: &str) -> (Told, u32) {
    let frames = frames(text);
    let mut world = World::new();
    let (listener, address) = RawListener::new();
    let now = world.now;
    let options = Connect::default().options(address);
    let qp = world.fabric(A).connect(now, &options).unwrap();
    let mut raw = listener.accept(&world);
    raw.read(&mut world, 24);
    raw.send(&frames[0]);
    world.take_established(A);
    let told = replay(&mut world, A, qp, &mut raw, &frames);
    // All that the server asked for was sent.
    let asked = frames[1..]
        .iter()
        .filter(|frame| frame[3] & 0x0F == 1)
        .map(|frame| u32_at(frame, 2 + 18 + READ_REQUEST_LEN - 16));
    let mut answered = 0;
    let answer = raw.read_to_end(&mut world);
    let mut rest = &answer[..];
    while !rest.is_empty() {
        let len = usize::from(u16::from_be_bytes([rest[0], rest[1]]));
        assert_eq!(rest[3], 0x42);
        answered += len as u32 - 14;
        rest = &rest[(2 + len).next_multiple_of(4) + 4..];
    }
    assert_eq!(answered, asked.sum::<u32>());
    (told, answered)
}

#[test]
fn linux_7_3() {
    let text = include_str!("../../../../tests/data/siw_7_3_initiator.hex");
    let told = client(text, [0, 0, 0, 32, 0, 0, 0, 1], 1);
    assert_eq!(
        told,
        Told {
            sends: 46,
            send_bytes: 6614,
            invalidated: 0,
            reads: 4,
        }
    );
    let text = include_str!("../../../../tests/data/siw_7_3_responder.hex");
    let (told, answered) = server(text);
    assert_eq!(
        told,
        Told {
            sends: 43,
            send_bytes: 8460,
            invalidated: 9,
            reads: 0,
        }
    );
    assert_eq!(answered, 200 << 10);
}

#[test]
fn linux_6_12() {
    // This one wrote the eight bytes of SMB Direct in its own byte order.
    let text = include_str!("../../../../tests/data/siw_6_12_initiator.hex");
    let told = client(text, [32, 0, 0, 0, 1, 0, 0, 0], 0);
    assert_eq!(
        told,
        Told {
            sends: 54,
            send_bytes: 7330,
            invalidated: 0,
            reads: 4,
        }
    );
    let text = include_str!("../../../../tests/data/siw_6_12_responder.hex");
    let (told, answered) = server(text);
    assert_eq!(
        told,
        Told {
            sends: 44,
            send_bytes: 9018,
            invalidated: 9,
            reads: 0,
        }
    );
    assert_eq!(answered, 200 << 10);
}
