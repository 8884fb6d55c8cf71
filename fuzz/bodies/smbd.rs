//! MS-SMBD messages: two honest machines that do anything in any order, and one honest machine
//! whose peer is a list of messages.

use std::time::{Duration, Instant};

use smbdirect::proto::{Params, Role};
use smbdirect::wire::{DataTransfer, NegotiateRequest, NegotiateResponse};

use super::input::{pattern, Input};

#[path = "../../src/proto/tests/pair.rs"]
#[allow(dead_code, unreachable_pub)]
mod pair;
use pair::{End, Message, Pair};

const MSEC: Duration = Duration::from_millis(1);

fn params(input: &mut Input<'_>) -> Params {
    let counts = [1, 2, 3, 4, 5, 7, 10, 32, 255, 65535];
    let sizes = [128, 136, 512, 1024, 1364, 8136, 65536];
    Params {
        receive_credit_max: input.pick(&counts),
        send_credit_target: input.pick(&counts),
        max_send_size: input.pick(&sizes),
        max_receive_size: input.pick(&sizes),
        max_fragmented_size: input.pick(&[131_072, 1 << 20, 64 << 20]),
        send_window: input.pick(&[1, 2, 8, 256]),
        ..Params::default()
    }
}

/// Two honest ends. Nothing is lost, changes or overtakes; credits balance; nothing gets stuck.
/// [`Pair`] asserts on the way that no end sends without a credit, spends its last one without a
/// grant, grants more than it has posted, or interrupts a message.
pub(crate) fn run_pair(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (a, p) = (params(&mut input), params(&mut input));
    let pools = [0; 2].map(|_: usize| input.pick(&[1, 2, 3, 8, 20, 300]));
    let mut pair = Pair::established(&a, &p, pools);
    pair.delay = [0; 2].map(|_: u64| Duration::from_micros(input.pick(&[0, 1, 50, 1000, 20_000])));
    let mut left = 300;
    while !input.is_empty() && left > 0 {
        left -= 1;
        let end = input.below(2);
        let now = pair.now;
        match input.below(8) {
            0..=2 => {
                let limit = input.pick(&[1, 100, 2000, 20_000, 120_000]);
                let length = 1 + input.below(limit);
                let token = input.flag().then_some(7);
                if pair.ends[end].conn.queued() < 100 {
                    pair.ends[end].queue(now, pattern(length, length as u8), token);
                }
            }
            3 => pair.ends[end].holds ^= true,
            4 => pair.ends[end].release(now),
            5 => {
                let limit = input.pick(&[1, 2, 3, 8, 300, 65535]);
                pair.ends[end].conn.set_receive_limit(limit);
            }
            6 => {
                let micros = u64::from(input.u16());
                pair.drive_for(Duration::from_micros(micros));
            }
            // No longer than keepalive allows: an end that holds its only buffer for minutes is dead.
            _ => pair.drive_for(Duration::from_millis(300)),
        }
        pair.pump();
        let ended = pair.ends.iter().any(|end| end.ended.is_some());
        assert!(!ended, "ended\n{a:?}\n{p:?}\n{}", pair.state());
    }
    // Whatever was asked for: from here on both ends take what comes.
    for end in &mut pair.ends {
        end.holds = false;
        end.conn.set_receive_limit(300);
    }
    let limit = pair.now + Duration::from_secs(4000);
    while !pair.is_delivered() {
        for end in 0..2 {
            let now = pair.now;
            pair.ends[end].release(now);
        }
        pair.drive_for(10 * MSEC);
        assert!(pair.now < limit, "stuck\n{a:?}\n{p:?}\n{}", pair.state());
        let ended = pair.ends.iter().any(|end| end.ended.is_some());
        assert!(!ended, "ended\n{a:?}\n{p:?}\n{}", pair.state());
    }
    pair.assert_delivered();
    // What one end has granted is what the other has got, once nothing is under way.
    pair.drive_for(Duration::from_secs(5));
    let [x, y] = [0, 1].map(|end| *pair.ends[end].conn.stats());
    if x.pdus_sent == y.pdus_received && y.pdus_sent == x.pdus_received {
        assert_eq!(x.credits_granted, y.credits_received);
        assert_eq!(y.credits_granted, x.credits_received);
    }
}

/// A message that is nearly right, or not at all.
fn hostile_message(input: &mut Input<'_>, max_receive: usize) -> Message {
    let bytes = match input.below(8) {
        0 => input.bytes(80).to_vec(),
        1 => {
            let mut request = negotiate_request(input).emit().to_vec();
            flip(input, &mut request);
            request
        }
        2 => {
            let mut response = negotiate_response(input).emit().to_vec();
            flip(input, &mut response);
            response
        }
        kind => {
            let length = input.pick(&[0, 0, 1, 8, 100, 1000, 8168]).min(max_receive);
            let remaining = if kind < 6 {
                input.pick(&[0, 0, 1, 100, 1000, 131_072 - 1000])
            } else {
                input.odd_u32()
            };
            let header = DataTransfer {
                credits_requested: input.pick(&[1, 1, 0, 255, 65535]),
                credits_granted: input.pick(&[0, 1, 1, 2, 255, 65535]),
                flags: input.pick(&[0, 0, 0, 1, 2, 0xffff]),
                remaining_data_length: remaining,
                data_offset: if length == 0 { 0 } else { 24 },
                data_length: length as u32,
            };
            let mut bytes = header.emit().to_vec();
            if length > 0 {
                bytes.resize(24, 0);
                bytes.extend(pattern(length, length as u8));
            }
            if input.below(4) == 3 {
                flip(input, &mut bytes);
            }
            bytes
        }
    };
    let bytes = bytes[..bytes.len().min(max_receive)].to_vec();
    let invalidate = input.flag().then(|| input.u32());
    Message { bytes, invalidate }
}

fn flip(input: &mut Input<'_>, bytes: &mut Vec<u8>) {
    match input.below(3) {
        0 => {}
        1 => {
            if !bytes.is_empty() {
                let at = input.below(bytes.len());
                bytes[at] = input.u8();
            }
        }
        _ => {
            let length = input.below(bytes.len() + 1);
            bytes.truncate(length);
        }
    }
}

fn negotiate_request(input: &mut Input<'_>) -> NegotiateRequest {
    let is_odd = input.below(4) == 3;
    let mut size = |good: &[u32]| {
        if is_odd {
            input.odd_u32()
        } else {
            input.pick(good)
        }
    };
    NegotiateRequest {
        min_version: 0x100,
        max_version: 0x100,
        preferred_send_size: size(&[1364, 128, 8136, 65536]),
        max_receive_size: size(&[8192, 128, 1364]),
        max_fragmented_size: size(&[1 << 20, 131_072, u32::MAX]),
        credits_requested: input.pick(&[255, 1, 10, 0, 65535]),
    }
}

fn negotiate_response(input: &mut Input<'_>) -> NegotiateResponse {
    let is_odd = input.below(4) == 3;
    let mut size = |good: &[u32]| {
        if is_odd {
            input.odd_u32()
        } else {
            input.pick(good)
        }
    };
    NegotiateResponse {
        min_version: 0x100,
        max_version: 0x100,
        negotiated_version: 0x100,
        status: size(&[0]),
        max_read_write_size: size(&[8 << 20, 4096, u32::MAX]),
        preferred_send_size: size(&[1364, 128]),
        max_receive_size: size(&[8192, 128, 1364]),
        max_fragmented_size: size(&[1 << 20, 131_072, u32::MAX]),
        credits_requested: input.pick(&[255, 1, 10, 0, 65535]),
        credits_granted: input.pick(&[1, 2, 10, 0, 255, 65535]),
    }
}

/// One honest end against a list of messages. [`End`] asserts what it may do; it ends at most once,
/// does nothing after that, holds no more than what was agreed, and always has a timer while it
/// waits for its peer.
pub(crate) fn run_hostile(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let own = params(&mut input);
    let role = input.pick(&[Role::Passive, Role::Active]);
    let pool = input.pick(&[300, 1, 2, 8]);
    let mut now = Instant::now();
    let mut end = End::new(role, &own, pool, now);
    end.pump(now);
    if input.below(16) > 0 {
        end.conn.handle_established(now);
        end.pump(now);
    }
    // Most peers negotiate before they attack.
    if input.below(8) > 0 && end.posted > 0 {
        let bytes = match role {
            Role::Passive => negotiate_request(&mut input).emit().to_vec(),
            Role::Active => negotiate_response(&mut input).emit().to_vec(),
        };
        end.receive(now, Message::plain(bytes));
    }
    let (mut sent, mut left, mut is_closing) = (0, 500, false);
    while !input.is_empty() && left > 0 {
        left -= 1;
        match input.below(12) {
            0..=5 => {
                if end.posted > 0 {
                    let message = hostile_message(&mut input, own.max_receive_size as usize);
                    end.receive(now, message);
                }
            }
            6 => {
                let length = 1 + input.below(20_000);
                let is_up = end.negotiated.is_some() && end.conn.end_reason().is_none();
                let goes = is_up && !is_closing;
                if goes && sent < 100 {
                    sent += 1;
                    end.queue(now, pattern(length, sent), input.flag().then_some(9));
                }
            }
            7 => end.holds ^= true,
            8 => end.release(now),
            9 => now += Duration::from_millis(input.pick(&[1, 100, 5000, 120_000])),
            10 => pass_timer(&mut end, &mut now),
            _ => match input.below(8) {
                0 => {
                    is_closing = true;
                    end.conn.close(now);
                }
                1 => end.conn.handle_disconnected(now),
                _ => end.conn.set_receive_limit(input.pick(&[1, 2, 300])),
            },
        }
        end.pump(now);
        end.outbox.clear();
        let most = own.max_fragmented_size as usize;
        assert!(end.received.iter().all(|message| message.len() <= most));
        end.received.clear();
        end.tokens.clear();
        if end.conn.end_reason().is_none() && end.negotiated.is_some() {
            assert!(end.conn.next_timeout().is_some(), "waits for ever");
        }
    }
    // Silence ends it.
    for _ in 0..40 {
        pass_timer(&mut end, &mut now);
    }
    assert!(
        end.conn.end_reason().is_some(),
        "a dead peer is not noticed"
    );
}

/// Lets its next timer expire. It asks for a later one then, or for none: its caller would turn in
/// circles otherwise.
fn pass_timer(end: &mut End, now: &mut Instant) {
    let Some(at) = end.conn.next_timeout() else {
        return;
    };
    *now = at.max(*now);
    end.timeout(*now);
    let next = end.conn.next_timeout();
    assert!(
        next.is_none_or(|next| next > *now),
        "a timer that never ends"
    );
}
