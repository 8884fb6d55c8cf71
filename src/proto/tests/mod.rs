//! Whole connections under a virtual clock.

mod captures;
mod cases;
mod pair;
mod random;

use std::time::{Duration, Instant};

use super::{EndReason, Params, Role, SendError, ViolationError};
use crate::wire::{status, DataTransfer, NegotiateRequest, NegotiateResponse};
use pair::{End, Message, Pair};

const SECOND: Duration = Duration::from_secs(1);
const MSEC: Duration = Duration::from_millis(1);

/// A message with recognisable content.
fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|i| {
            (i as u8)
                .wrapping_mul(31)
                .wrapping_add((i >> 8) as u8 ^ seed)
        })
        .collect()
}

fn credits(count: u16) -> Params {
    Params {
        receive_credit_max: count,
        send_credit_target: count,
        ..Params::active()
    }
}

#[test]
fn negotiation_takes_the_smaller_sizes() {
    let active = Params {
        max_send_size: 2000,
        max_receive_size: 3000,
        max_read_write_size: 1 << 20,
        max_fragmented_size: 200_000,
        ..Params::active()
    };
    let passive = Params {
        max_send_size: 8136,
        max_receive_size: 1500,
        ..Params::default()
    };
    let pair = Pair::established(&active, &passive, [300, 300]);
    let [a, p] = [0, 1].map(|i| pair.ends[i].negotiated.expect("negotiated"));
    assert_eq!((a.max_send_size, a.max_receive_size), (1500, 3000));
    assert_eq!((p.max_send_size, p.max_receive_size), (3000, 1500));
    assert_eq!(
        (a.max_fragmented_send_size, p.max_fragmented_send_size),
        (1 << 20, 200_000)
    );
    assert_eq!(
        (a.max_read_write_size, p.max_read_write_size),
        (1 << 20, 8 << 20)
    );
    assert_eq!(pair.ends[0].conn.send_credits(), 255);
}

#[test]
fn the_request_may_come_before_the_established_event() {
    let now = Instant::now();
    let mut end = End::new(Role::Passive, &Params::default(), 300, now);
    end.pump(now);
    end.receive(now, Message::plain(request().emit()));
    assert!(end.outbox.is_empty());
    end.conn.handle_established(now);
    end.pump(now);
    assert_eq!(response(&mut end).status, status::SUCCESS);
    assert!(end.negotiated.is_some());
}

#[test]
fn receives_are_posted_before_they_are_granted() {
    // End::pump asserts it for every message; here for the response with a short pool.
    let now = Instant::now();
    let mut end = passive(&Params::default(), 7, now);
    end.receive(now, Message::plain(request().emit()));
    assert_eq!(response(&mut end).credits_granted, 7);
    assert_eq!((end.posted, end.pool), (7, 0));
}

#[test]
fn without_receives_the_negotiation_is_refused() {
    let now = Instant::now();
    let mut end = passive(&Params::default(), 1, now);
    end.completes = false;
    let first = request().emit();
    end.conn
        .handle_receive(now, &first, 20, first.to_vec(), None);
    end.posted = 0;
    // The one buffer there is has been taken away meanwhile.
    let recycled = end.conn.poll(now);
    assert!(
        matches!(recycled, Some(super::Output::Recycle { .. })),
        "{recycled:?}"
    );
    end.pump(now);
    let response = response(&mut end);
    assert_eq!(
        response,
        NegotiateResponse::failure(status::INSUFFICIENT_RESOURCES)
    );
    assert_eq!(end.ended, None, "not before the response has left");
    end.conn.handle_send_done(now, 1);
    end.pump(now);
    assert_eq!(end.ended, Some((EndReason::NoReceives, true)));
}

#[test]
fn the_active_side_reports_a_refusal() {
    let now = Instant::now();
    let mut end = active(&Params::active(), now);
    let failure = NegotiateResponse::failure(status::NOT_SUPPORTED).emit();
    end.receive(now, Message::plain(failure));
    let status = status::NOT_SUPPORTED;
    assert_eq!(end.ended, Some((EndReason::Refused { status }, false)));
    assert!(end.outbox.is_empty());
}

#[test]
fn the_active_side_verifies_the_response() {
    let now = Instant::now();
    let params = Params::active();
    let good = NegotiateResponse {
        min_version: 0x0100,
        max_version: 0x0100,
        negotiated_version: 0x0100,
        credits_requested: 10,
        credits_granted: 10,
        status: 0,
        max_read_write_size: 1 << 20,
        preferred_send_size: 8192,
        max_receive_size: 128,
        max_fragmented_size: 131_072,
    };
    let answer = |response: NegotiateResponse| {
        let mut end = active(&params, now);
        end.receive(now, Message::plain(response.emit()));
        (end.negotiated.is_some(), end.reason())
    };
    assert_eq!(answer(good), (true, None));
    let top = NegotiateResponse {
        max_receive_size: u32::MAX,
        max_fragmented_size: u32::MAX,
        max_read_write_size: u32::MAX,
        credits_granted: u16::MAX,
        preferred_send_size: 0,
        ..good
    };
    assert_eq!(answer(top), (true, None));
    for bad in [
        NegotiateResponse {
            negotiated_version: 0x0200,
            ..good
        },
        NegotiateResponse {
            max_receive_size: 127,
            ..good
        },
        NegotiateResponse {
            max_fragmented_size: 131_071,
            ..good
        },
        NegotiateResponse {
            credits_granted: 0,
            ..good
        },
        NegotiateResponse {
            credits_requested: 0,
            ..good
        },
        NegotiateResponse {
            preferred_send_size: 8193,
            ..good
        },
    ] {
        let (done, reason) = answer(bad);
        assert!(!done);
        assert!(matches!(
            reason,
            Some(EndReason::Violation(ViolationError::Malformed(_)))
        ));
    }
    let mut end = active(&params, now);
    end.receive(now, Message::plain(&good.emit()[..31]));
    assert!(matches!(
        end.reason(),
        Some(EndReason::Violation(ViolationError::Malformed(_)))
    ));
}

#[test]
fn negotiation_times_out_on_both_sides() {
    let mut pair = Pair::new(&Params::active(), &Params::default(), [300, 300]);
    pair.is_cut = true;
    let start = pair.now;
    pair.drive_until("passive timeout", |p| p.ends[1].ended.is_some());
    assert_eq!(pair.now - start, 5 * SECOND);
    assert_eq!(
        pair.ends[1].ended,
        Some((EndReason::NegotiateTimeout, false))
    );
    pair.drive_until("active timeout", |p| p.ends[0].ended.is_some());
    assert_eq!(pair.now - start, 120 * SECOND);
    assert_eq!(
        pair.ends[0].ended,
        Some((EndReason::NegotiateTimeout, false))
    );
}

#[test]
fn messages_go_both_ways_in_all_sizes() {
    for count in [1, 2, 3, 4, 10, 255] {
        for size in [128, 129, 512, 1364, 4096, 8192] {
            let mut params = credits(count);
            params.max_send_size = size;
            params.max_receive_size = size;
            let mut pair = Pair::established(&params, &params, [300, 300]);
            for (i, length) in [1, 7, 104, 105, 1340, 1341, 9000, 65_536]
                .into_iter()
                .enumerate()
            {
                let now = pair.now;
                pair.ends[i & 1].queue(now, pattern(length, 1), None);
                pair.ends[i & 1 ^ 1].queue(now, pattern(length, 2), None);
            }
            pair.drive_until("delivery", Pair::is_delivered);
            pair.assert_delivered();
        }
    }
}

#[test]
fn the_passive_side_gets_credits_without_data_of_the_active() {
    let mut pair = Pair::established(&Params::active(), &Params::default(), [300, 300]);
    let now = pair.now;
    pair.ends[1].send(now, pattern(3000, 0));
    pair.drive_until("delivery", Pair::is_delivered);
    pair.assert_delivered();
}

#[test]
fn an_idle_connection_is_quiet() {
    for count in [4, 5, 10, 255] {
        let params = credits(count);
        let mut pair = Pair::established(&params, &params, [300, 300]);
        for i in 0..20 {
            let now = pair.now;
            pair.ends[i & 1].send(now, pattern(100 * i + 1, 0));
            pair.drive_for(MSEC);
        }
        pair.drive_until("delivery", Pair::is_delivered);
        pair.drive_for(SECOND);
        let before = pair.carried;
        pair.drive_for(60 * SECOND);
        assert_eq!(pair.carried, before, "{count} credits");
    }
}

#[test]
fn with_very_few_credits_the_token_goes_round_slowly() {
    for count in [1, 2, 3] {
        let params = credits(count);
        let mut pair = Pair::established(&params, &params, [300, 300]);
        let now = pair.now;
        pair.ends[0].send(now, pattern(1000, 0));
        pair.drive_until("delivery", Pair::is_delivered);
        pair.drive_for(10 * SECOND);
        let before = pair.carried;
        pair.drive_for(60 * SECOND);
        let count = pair.carried[0] + pair.carried[1] - before[0] - before[1];
        assert!(count <= 130, "{count} empty messages in a minute");
    }
}

#[test]
fn bulk_one_way_needs_few_grants() {
    let mut pair = Pair::established(&Params::active(), &Params::default(), [300, 300]);
    let now = pair.now;
    for i in 0..100 {
        pair.ends[0].queue(now, pattern(100_000, i), None);
    }
    pair.drive_until("delivery", Pair::is_delivered);
    pair.assert_delivered();
    let pdus = pair.ends[1].conn.stats().pdus_received;
    let grants = pair.ends[1].conn.stats().empty_sent;
    assert!(
        pdus > 7000 && grants * 50 < pdus,
        "{grants} grants for {pdus} messages"
    );
}

#[test]
fn a_receive_limit_holds_until_it_is_raised() {
    let now = Instant::now();
    let mut end = passive(&Params::default(), 300, now);
    end.conn.set_receive_limit(8);
    end.receive(
        now,
        Message::plain(
            NegotiateRequest {
                credits_requested: 255,
                ..request()
            }
            .emit(),
        ),
    );
    assert_eq!(response(&mut end).credits_granted, 8);
    assert_eq!(end.posted, 8);
    let grant = DataTransfer {
        credits_requested: 255,
        credits_granted: 5,
        ..empty()
    };
    end.receive(now, Message::plain(grant.emit()));
    assert!(end.outbox.is_empty());
    end.conn.set_receive_limit(u16::MAX);
    end.pump(now);
    assert_eq!(end.posted, 255);
    let grant = end.outbox.pop_front().expect("a grant").header();
    assert_eq!((grant.data_length, grant.credits_granted), (0, 254 - 7));
}

#[test]
fn a_short_pool_throttles_and_recovers() {
    for pool in 1..10 {
        let mut pair = Pair::established(&Params::active(), &Params::default(), [pool, pool]);
        pair.ends[1].holds = true;
        let now = pair.now;
        pair.ends[0].queue(now, pattern(50_000, 0), None);
        pair.ends[1].queue(now, pattern(5_000, 0), None);
        pair.drive_for(SECOND);
        assert_eq!(
            pair.ends[1].held, pool,
            "all buffers are with the upper layer"
        );
        assert!(!pair.is_delivered());
        while !pair.is_delivered() {
            let now = pair.now;
            assert!(pair.ends[1].held > 0, "{}", pair.state());
            pair.ends[1].release(now);
            pair.drive_for(3 * SECOND);
        }
        pair.assert_delivered();
    }
}

#[test]
fn lowering_the_target_takes_nothing_back() {
    let now = Instant::now();
    let mut end = negotiated(&Params::default(), 100, now);
    let header = DataTransfer {
        credits_requested: 5,
        credits_granted: 10,
        ..empty()
    };
    end.receive(now, Message::plain(header.emit()));
    assert_eq!(end.conn.receive_credits(), 99);
    assert_eq!(end.conn.receive_credit_target(), 5);
    for _ in 0..96 {
        end.receive(
            now,
            Message::plain(
                DataTransfer {
                    credits_requested: 5,
                    ..empty()
                }
                .emit(),
            ),
        );
        assert!(end.outbox.is_empty());
    }
    assert_eq!(end.conn.receive_credits(), 3);
    end.receive(
        now,
        Message::plain(
            DataTransfer {
                credits_requested: 5,
                ..empty()
            }
            .emit(),
        ),
    );
    assert_eq!(
        end.outbox.pop_front().map(|m| m.header().credits_granted),
        Some(2)
    );
}

#[test]
fn a_peer_that_spends_its_last_credit_on_nothing_is_served() {
    // Linux spends its last credit without a grant in the message.
    let now = Instant::now();
    let mut end = negotiated(&Params::default(), 1, now);
    let first = DataTransfer {
        credits_requested: 1,
        credits_granted: 3,
        ..empty()
    };
    end.receive(now, Message::plain(first.emit()));
    for _ in 0..3 {
        let grant = end.outbox.pop_front().expect("a grant").header();
        assert_eq!(grant.credits_granted, 1);
        end.receive(
            now,
            Message::plain(
                DataTransfer {
                    credits_requested: 1,
                    ..empty()
                }
                .emit(),
            ),
        );
    }
    assert!(end.outbox.is_empty(), "no credit left");
    assert_eq!(end.ended, None);
}

#[test]
fn a_peer_that_spends_all_its_credits_on_nothing_is_fed() {
    // Linux in the middle of a large request, while we are in the middle of a large response.
    let now = Instant::now();
    let mut end = negotiated(&Params::default(), 255, now);
    let mut held = end.conn.receive_credits();
    let message = |credits_granted| {
        let header = DataTransfer {
            credits_requested: 255,
            credits_granted,
            ..empty()
        };
        Message::plain(header.emit())
    };
    end.receive(now, message(255));
    held -= 1;
    end.queue(now, pattern(131_072, 0), None);
    let mut fed = 0;
    loop {
        let outbox = std::mem::take(&mut end.outbox);
        let granted: u16 = outbox.iter().map(|it| it.header().credits_granted).sum();
        held += granted;
        if held == 0 {
            break;
        }
        fed += u32::from(granted > 1);
        for _ in 0..std::mem::take(&mut held) {
            end.receive(now, message(0));
        }
    }
    assert_eq!(end.ended, None);
    assert_eq!(end.conn.send_credits(), 0);
    assert!(fed >= 8, "fed {fed} times");
}

#[test]
fn a_message_without_credit_is_a_violation() {
    let now = Instant::now();
    let mut end = negotiated(&Params::default(), 2, now);
    // The passive side has no send credit, so it cannot grant more.
    end.receive(now, data(0, 0, b"1"));
    end.receive(now, data(0, 0, b"2"));
    assert!(end.posted > 0, "a receive is posted but not granted");
    end.receive(now, data(0, 0, b"3"));
    assert_eq!(
        end.reason(),
        Some(EndReason::Violation(ViolationError::NoCredit))
    );
    assert_eq!(end.received.len(), 2);
}

#[test]
fn buffers_come_back_after_the_end() {
    let now = Instant::now();
    let mut end = negotiated(&Params::default(), 10, now);
    end.receive(now, Message::plain([0; 19]));
    assert!(end.ended.is_some());
    let pool = end.pool;
    end.receive(now, data(1, 0, b"late"));
    assert_eq!(end.pool, pool + 1);
    end.conn.handle_timeout(now + 1000 * SECOND);
    end.conn.handle_disconnected(now);
    end.conn.close(now);
    assert_eq!(end.conn.poll(now), None);
    assert!(
        matches!(end.reason(), Some(EndReason::Violation(_))),
        "the first reason stays"
    );
}

#[test]
fn a_token_goes_with_the_first_segment() {
    let mut pair = Pair::established(&Params::active(), &Params::default(), [300, 300]);
    let now = pair.now;
    pair.ends[0].queue(now, pattern(10_000, 0), Some(0xabcd));
    pair.ends[0].queue(now, pattern(10, 0), None);
    pair.ends[0].queue(now, pattern(20, 0), Some(7));
    pair.drive_until("delivery", Pair::is_delivered);
    pair.assert_delivered();
    assert_eq!(pair.ends[1].tokens, [0xabcd, 7]);
}

#[test]
fn send_refuses_what_cannot_go() {
    let mut pair = Pair::new(&Params::active(), &Params::default(), [300, 300]);
    let now = pair.now;
    assert_eq!(
        pair.ends[0].conn.send(now, 0, 1, None),
        Err(SendError::NotEstablished)
    );
    pair.connect();
    pair.drive_until("negotiation", |p| {
        p.ends.iter().all(|e| e.negotiated.is_some())
    });
    let conn = &mut pair.ends[0].conn;
    assert_eq!(conn.send(now, 0, 0, None), Err(SendError::Empty));
    let max = 1 << 20;
    let length = max as usize + 1;
    assert_eq!(
        conn.send(now, 0, length, None),
        Err(SendError::TooLong { length, max })
    );
    let length = usize::MAX;
    assert_eq!(
        conn.send(now, 0, length, None),
        Err(SendError::TooLong { length, max })
    );
    for _ in 0..4096 {
        assert_eq!(conn.send(now, 0, 1, None), Ok(()));
    }
    assert_eq!(
        conn.send(now, 0, 1, None),
        Err(SendError::QueueFull { limit: 4096 })
    );
    conn.close(now);
    assert_eq!(conn.send(now, 0, 1, None), Err(SendError::Closed));
}

#[test]
fn the_send_window_bounds_what_is_in_flight() {
    let params = Params {
        send_window: 3,
        ..Params::active()
    };
    let mut pair = Pair::established(&params, &Params::default(), [300, 300]);
    let now = pair.now;
    let end = &mut pair.ends[0];
    end.completes = false;
    end.send(now, pattern(20_000, 0));
    assert_eq!((end.outbox.len(), end.conn.sends_in_flight()), (3, 3));
    end.conn.handle_send_done(now, 2);
    end.pump(now);
    assert_eq!((end.outbox.len(), end.conn.sends_in_flight()), (5, 3));
}

#[test]
fn close_drains_the_queue_first() {
    let mut pair = Pair::established(&credits(4), &credits(4), [300, 300]);
    let now = pair.now;
    pair.ends[0].queue(now, pattern(30_000, 0), None);
    pair.ends[0].conn.close(now);
    pair.drive_until("end", |p| p.ends[0].ended.is_some());
    assert_eq!(pair.ends[0].ended, Some((EndReason::LocalClose, true)));
    pair.drive_until("delivery", |p| p.ends[1].received.len() == 1);
    assert_eq!(pair.ends[1].received, pair.ends[0].sent);
}

#[test]
fn close_does_not_wait_for_credits_for_ever() {
    let mut pair = Pair::established(&credits(4), &credits(4), [300, 300]);
    pair.is_cut = true;
    let now = pair.now;
    pair.ends[0].queue(now, pattern(30_000, 0), None);
    pair.ends[0].queue(now, pattern(30_000, 1), None);
    pair.ends[0].conn.close(now);
    pair.drive_until("end", |p| p.ends[0].ended.is_some());
    assert_eq!(pair.now - now, 5 * SECOND);
    assert_eq!(pair.ends[0].ended, Some((EndReason::LocalClose, true)));
    assert_eq!(pair.ends[0].conn.take_unsent(), Some(0));
    assert_eq!(pair.ends[0].conn.take_unsent(), Some(1));
    assert_eq!(pair.ends[0].conn.take_unsent(), None);
}

#[test]
fn close_before_the_negotiation_ends_at_once() {
    let now = Instant::now();
    let mut end = active(&Params::active(), now);
    end.conn.close(now);
    end.pump(now);
    assert_eq!(end.ended, Some((EndReason::LocalClose, true)));
}

#[test]
fn a_lost_fabric_yields_one_disconnect() {
    let mut pair = Pair::established(&Params::active(), &Params::default(), [300, 300]);
    let now = pair.now;
    pair.ends[0].queue(now, pattern(10, 0), None);
    pair.ends[0].conn.handle_disconnected(now);
    pair.ends[0].pump(now);
    assert_eq!(pair.ends[0].ended, Some((EndReason::Disconnected, false)));
    assert!(pair.ends[0].outbox.is_empty());
    assert_eq!(pair.ends[0].conn.take_unsent(), Some(0));
}

#[test]
fn idle_connections_probe_and_answer() {
    let mut pair = Pair::established(&Params::active(), &Params::default(), [300, 300]);
    let now = pair.now;
    pair.ends[0].send(now, pattern(100, 0));
    pair.drive_for(1000 * SECOND);
    pair.assert_delivered();
    let [a, p] = [0, 1].map(|i| *pair.ends[i].conn.stats());
    let sent = a.keepalives_sent + p.keepalives_sent;
    assert!((8..=18).contains(&sent), "{sent} probes in 1000 s");
    assert_eq!(a.keepalives_sent, p.keepalives_received);
    assert!(pair.carried[0] + pair.carried[1] < 50, "no ping-pong");
}

#[test]
fn a_dead_peer_is_given_up() {
    let mut pair = Pair::established(&Params::active(), &Params::default(), [300, 300]);
    let now = pair.now;
    pair.ends[0].send(now, pattern(100, 0));
    pair.drive_for(MSEC);
    pair.is_cut = true;
    pair.drive_until("both gone", |p| p.ends.iter().all(|e| e.ended.is_some()));
    assert!(pair.now - now <= 126 * SECOND);
    for end in &pair.ends {
        assert_eq!(end.ended, Some((EndReason::KeepaliveTimeout, false)));
    }
}

#[test]
fn a_peer_without_credits_for_the_probe_is_given_up() {
    let now = Instant::now();
    let mut end = negotiated(&Params::default(), 10, now);
    end.timeout(now + 120 * SECOND);
    assert_eq!(end.ended, None);
    assert!(end.outbox.is_empty());
    end.timeout(now + 125 * SECOND);
    assert_eq!(end.ended, Some((EndReason::KeepaliveUnsendable, false)));
}

// The other side by hand.

fn request() -> NegotiateRequest {
    NegotiateRequest {
        min_version: 0x0100,
        max_version: 0x0100,
        credits_requested: 10,
        preferred_send_size: 1024,
        max_receive_size: 1024,
        max_fragmented_size: 131_072,
    }
}

/// Found by fuzzing: a message waits because of kept credits, and then the answers to the peer's
/// probes use these up. The timer of the kept ones had expired then and stayed, and whoever waits
/// for the next timer turned in circles.
#[test]
fn a_timer_of_kept_credits_ends_with_them() {
    let mut now = Instant::now();
    let mut end = negotiated(&Params::default(), 10, now);
    let grant = DataTransfer {
        credits_granted: 40,
        ..empty()
    };
    end.receive(now, Message::plain(grant.emit()));
    end.send(now, pattern(100_000, 1));
    let kept = end.conn.send_credits();
    assert!(kept > 0 && end.conn.queued() > 0, "{kept} kept");
    assert!(end.conn.next_timeout().expect("a timer") < now + SECOND);
    let probe = DataTransfer {
        flags: DataTransfer::RESPONSE_REQUESTED,
        ..empty()
    };
    for _ in 0..kept {
        end.receive(now, Message::plain(probe.emit()));
    }
    assert_eq!(end.conn.send_credits(), 0);
    while let Some(at) = end.conn.next_timeout() {
        assert!(at > now, "a timer that has expired");
        now = at;
        end.timeout(now);
    }
    assert!(end.ended.is_some(), "a silent peer ends it");
}

fn empty() -> DataTransfer {
    DataTransfer {
        credits_requested: 10,
        ..DataTransfer::default()
    }
}

/// A Data Transfer with payload.
fn data(credits_granted: u16, remaining_data_length: u32, payload: &[u8]) -> Message {
    let header = DataTransfer {
        credits_granted,
        remaining_data_length,
        data_offset: 24,
        data_length: payload.len() as u32,
        ..empty()
    };
    Message::plain([&header.emit_padded()[..], payload].concat())
}

/// A passive end that awaits the request.
fn passive(params: &Params, pool: usize, now: Instant) -> End {
    let mut end = End::new(Role::Passive, params, pool, now);
    end.pump(now);
    end.conn.handle_established(now);
    end.pump(now);
    end
}

/// An active end that awaits the response.
fn active(params: &Params, now: Instant) -> End {
    let mut end = End::new(Role::Active, params, 300, now);
    end.pump(now);
    end.conn.handle_established(now);
    end.pump(now);
    assert_eq!(end.outbox.pop_front().map(|m| m.bytes.len()), Some(20));
    end
}

/// A passive end after a negotiation for so many credits.
fn negotiated(params: &Params, credits_requested: u16, now: Instant) -> End {
    let mut end = passive(params, 300, now);
    end.receive(
        now,
        Message::plain(
            NegotiateRequest {
                credits_requested,
                ..request()
            }
            .emit(),
        ),
    );
    assert_eq!(response(&mut end).credits_granted, credits_requested);
    end
}

fn response(end: &mut End) -> NegotiateResponse {
    let message = end.outbox.pop_front().expect("a response");
    assert_eq!(message.bytes.len(), 32);
    NegotiateResponse::parse(&message.bytes).expect("32 bytes")
}
