//! Segments of any size, cut anywhere by TCP, from a raw peer.

use super::raw::*;
use super::*;

/// Sends `bytes` in pieces of at most `most` bytes, with the fabric running in between.
fn send_in_pieces(
    world: &mut World,
    raw: &mut Raw,
    bytes: &[u8],
    random: &mut Random,
    most: usize,
) {
    let mut rest = bytes;
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at((1 + random.below(most)).min(rest.len()));
        raw.send(piece);
        rest = behind;
        world.step(Duration::ZERO);
    }
}

/// Cuts a message into segments of random sizes, empty ones among them.
fn segments(len: usize, most: usize, random: &mut Random) -> Vec<(usize, usize)> {
    let mut cuts = Vec::new();
    let mut at = 0;
    loop {
        let n = random.below(most + 1).min(len - at);
        cuts.push((at, n));
        at += n;
        if at == len {
            return cuts;
        }
    }
}

/// Writes, sends and answers to reads from the raw peer.
fn any_cut(crc: bool, sizes: &[usize], most_segment: usize, most_piece: usize, seed: u64) {
    let mut world = World::new();
    let mut random = Random(seed);
    let request: &[u8] = if crc {
        b"MPA ID Req Frame\x40\x01\x00\x00"
    } else {
        REQUEST_1
    };
    let (mut raw, qp) = raw_initiator(&mut world, request, 4);
    let (mut msn, mut reads) = (0, 0);
    for &size in sizes {
        let data = pattern(size, seed + size as u64);
        let mut bytes = Vec::new();
        // A Write.
        let target = memory(size);
        let key = world.fabric(B).register(qp, target.clone(), ALL).unwrap();
        for (at, n) in segments(size, most_segment, &mut random) {
            let ctrl = [if at + n == size { 0xC1 } else { 0x81 }, 0x40];
            let ulpdu = tagged(ctrl, key.token, key.offset + at as u64, &data[at..at + n]);
            bytes.extend_from_slice(&frame(&ulpdu, crc));
        }
        // A Send with SE that takes the token away.
        msn += 1;
        let inbox = memory(size);
        world.recv(B, qp, u64::from(msn), &inbox);
        let mut cuts = segments(size, most_segment, &mut random);
        // Only the end of the list may be empty: an empty last segment is one, too.
        cuts.push((size, 0));
        let last = cuts.len() - 1;
        for (index, (at, n)) in cuts.into_iter().enumerate() {
            let ctrl = [if index == last { 0x41 } else { 0x01 }, 0x46];
            let words = [key.token, 0, msn, at as u32];
            let ulpdu = untagged(ctrl, words, &data[at..at + n]);
            bytes.extend_from_slice(&frame(&ulpdu, crc));
        }
        send_in_pieces(&mut world, &mut raw, &bytes, &mut random, most_piece);
        assert_eq!(
            world.take_recv(B, u64::from(msn)),
            (size, Some(key.token), Status::Success)
        );
        assert!(
            target.to_vec() == data && inbox.to_vec() == data,
            "size {size}"
        );
        // A read of ours.
        let sink = memory(size);
        world
            .fabric(B)
            .post_read(qp, WrId(1000), sink.clone(), 0x77, 0x88)
            .unwrap();
        reads += 1;
        let request = raw.read_frame(&mut world);
        assert_eq!(request[..18], untagged([0x41, 0x41], [0, 1, reads, 0], b""));
        let token = u32::from_be_bytes(request[18..22].try_into().unwrap());
        let offset = u64::from_be_bytes(request[22..30].try_into().unwrap());
        let mut bytes = Vec::new();
        for (at, n) in segments(size, most_segment, &mut random) {
            let ctrl = [if at + n == size { 0xC1 } else { 0x81 }, 0x42];
            let ulpdu = tagged(ctrl, token, offset + at as u64, &data[at..at + n]);
            bytes.extend_from_slice(&frame(&ulpdu, crc));
        }
        send_in_pieces(&mut world, &mut raw, &bytes, &mut random, most_piece);
        assert_eq!(world.take_done(B, 1000), Status::Success);
        assert!(sink.to_vec() == data, "read {size}");
    }
    raw.finish();
    assert_eq!(world.take_end(B), EndReason::PeerClosed);
}

#[test]
fn byte_by_byte() {
    any_cut(false, &[1, 2, 3, 4, 5, 63, 200], 17, 1, 1);
    any_cut(true, &[1, 2, 3, 4, 5, 63, 200], 17, 1, 2);
}

#[test]
fn small_pieces() {
    any_cut(false, &[1, 1364, 9000], 1500, 700, 3);
    any_cut(true, &[1, 1364, 9000], 1500, 700, 4);
}

#[test]
fn large_segments() {
    any_cut(false, &[8191, 8192, 65_000, 500_000], 65_400, 70_000, 5);
    any_cut(true, &[8191, 8192, 65_000, 500_000], 65_400, 70_000, 6);
    any_cut(true, &[100_000], 20_000, 9_000, 7);
}

#[test]
fn every_last_byte_of_a_length() {
    // All four pad lengths, each cut at each place.
    for len in 0..8 {
        let bytes = frame(&send(1, &pattern(len, 9)), true);
        for cut in 1..bytes.len() {
            let mut world = World::new();
            let request = b"MPA ID Req Frame\x40\x01\x00\x00";
            let (mut raw, qp) = raw_initiator(&mut world, request, 0);
            let inbox = memory(8);
            world.recv(B, qp, 1, &inbox);
            raw.send(&bytes[..cut]);
            world.step(Duration::ZERO);
            assert!(world.sides[B].events.is_empty());
            raw.send(&bytes[cut..]);
            assert_eq!(world.take_recv(B, 1), (len, None, Status::Success));
            assert_eq!(inbox.to_vec()[..len], pattern(len, 9));
        }
    }
}

#[test]
fn end_of_the_stream_inside_a_frame() {
    let bytes = frame(&send(1, b"hello"), false);
    for cut in [1, 2, 3, 20, 24, bytes.len() - 1] {
        let mut world = World::new();
        let (mut raw, qp) = raw_initiator(&mut world, REQUEST_1, 0);
        world.recv(B, qp, 1, &memory(8));
        raw.send(&bytes[..cut]);
        raw.finish();
        assert_eq!(world.take_recv(B, 1), (0, None, Status::Flushed));
        let reason = world.take_end(B);
        assert!(
            matches!(reason, EndReason::Transport(_)),
            "{cut}: {reason:?}"
        );
    }
}

#[test]
fn frames_that_we_send_fit_the_tcp_segment() {
    let config = IwarpConfig {
        segment: SegmentSize::Bytes(200),
        ..IwarpConfig::default()
    };
    let mut world = World::with(config.clone(), config);
    let (mut raw, qp) = raw_initiator(&mut world, REQUEST_1, 0);
    world.recv(B, qp, 1, &memory(8));
    raw.send(&frame(&send(1, b"go"), false));
    let payload = filled(500, 4);
    let request = send_request(2, b"head", Some(payload.clone()), Some(0x55));
    world.fabric(B).post_send(qp, request).unwrap();
    let whole = [b"head".to_vec(), payload.to_vec()].concat();
    for (at, len, last) in [(0, 182, 0x01), (182, 182, 0x01), (364, 140, 0x41)] {
        let expected = untagged([last, 0x44], [0x55, 0, 1, at as u32], &whole[at..at + len]);
        assert_eq!(raw.read_frame(&mut world), expected);
    }
    world
        .fabric(B)
        .post_write(qp, WrId(3), payload.clone(), 0x66, u64::MAX - 100)
        .unwrap();
    for (at, len, last) in [(0, 186, 0x81), (186, 186, 0x81), (372, 128, 0xC1)] {
        let offset = (u64::MAX - 100).wrapping_add(at as u64);
        let expected = tagged([last, 0x40], 0x66, offset, &payload.to_vec()[at..at + len]);
        assert_eq!(raw.read_frame(&mut world), expected);
    }
}
