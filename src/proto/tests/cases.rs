//! The cases of Microsoft's MS-SMBD server test suite that concern the transport alone, each
//! named after its original, against a passive connection. Where a case sends SMB2 requests, plain
//! patterns take their place.

use super::*;

/// Ends the case with a terminated connection; nothing was answered.
fn assert_terminated(mut end: End) {
    assert!(
        matches!(end.ended, Some((EndReason::Violation(_), false))),
        "{:?}",
        end.ended
    );
    assert_eq!(end.outbox.pop_front(), None);
}

/// Negotiates with `request` and applies the suite's checker for success.
fn negotiate(request: NegotiateRequest, now: Instant) -> (End, NegotiateResponse) {
    let mut end = passive(&Params::default(), 300, now);
    end.receive(now, Message::plain(request.emit()));
    let r = response(&mut end);
    assert_eq!(
        (r.min_version, r.max_version, r.negotiated_version),
        (0x100, 0x100, 0x100)
    );
    assert_eq!(r.status, status::SUCCESS);
    assert!((1..=request.credits_requested).contains(&r.credits_granted));
    assert!(r.credits_requested > 0);
    assert!(r.max_read_write_size >= 1 << 20);
    assert!((128..=request.max_receive_size).contains(&r.preferred_send_size));
    assert!((128..=request.preferred_send_size.max(128)).contains(&r.max_receive_size));
    assert!(r.max_fragmented_size >= 131_072);
    assert_eq!(end.ended, None);
    (end, r)
}

fn terminates(request: NegotiateRequest) {
    let now = Instant::now();
    let mut end = passive(&Params::default(), 300, now);
    end.receive(now, Message::plain(request.emit()));
    assert_terminated(end);
}

/// Ten credits, sizes of 1024, and a fragmented limit of 128 KiB on our side too.
fn connected() -> (End, Instant) {
    let now = Instant::now();
    let params = Params {
        max_fragmented_size: 131_072,
        ..Params::default()
    };
    (negotiated(&params, 10, now), now)
}

/// Sends `message` to `end` in segments of the lengths given, which are repeated as needed,
/// granting 2 with each, and obeying the credits of `end`.
fn write(end: &mut End, now: Instant, message: &[u8], lengths: impl IntoIterator<Item = usize>) {
    let mut left = message;
    let mut held = usize::from(end.conn.receive_credits());
    for length in lengths {
        if left.is_empty() {
            break;
        }
        while let Some(answer) = end.outbox.pop_front() {
            held += usize::from(answer.header().credits_granted);
        }
        assert!(held > 0, "out of credits with {} bytes left", left.len());
        held -= 1;
        let (segment, rest) = left.split_at(length.min(left.len()));
        left = rest;
        end.receive(now, data(2, rest.len() as u32, segment));
        assert_eq!(end.ended, None);
    }
    assert!(left.is_empty());
    assert_eq!(end.received.last().map(Vec::as_slice), Some(message));
}

#[test]
fn case_01_negotiate_basic() {
    negotiate(request(), Instant::now());
}

#[test]
fn case_02_negotiate_preferred_send_size_with_zero() {
    let request = NegotiateRequest {
        preferred_send_size: 0,
        ..request()
    };
    assert_eq!(negotiate(request, Instant::now()).1.max_receive_size, 128);
}

#[test]
fn case_03_negotiate_preferred_send_size_less_than_128() {
    for preferred_send_size in [127, 128] {
        let request = NegotiateRequest {
            preferred_send_size,
            ..request()
        };
        assert_eq!(negotiate(request, Instant::now()).1.max_receive_size, 128);
    }
}

#[test]
fn case_04_negotiate_preferred_send_size_max_value() {
    let request = NegotiateRequest {
        preferred_send_size: u32::MAX,
        ..request()
    };
    assert_eq!(negotiate(request, Instant::now()).1.max_receive_size, 8192);
}

#[test]
fn case_05_negotiate_redundancy() {
    let now = Instant::now();
    let mut end = passive(&Params::default(), 300, now);
    let mut bytes = request().emit().to_vec();
    bytes.resize(512, 0);
    end.receive(now, Message::plain(bytes));
    assert_eq!(response(&mut end).status, status::SUCCESS);
}

#[test]
fn case_06_negotiate_disconnect_after_negotiate() {
    let now = Instant::now();
    let (mut end, _) = negotiate(request(), now);
    end.conn.handle_disconnected(now);
    end.pump(now);
    assert_eq!(end.ended, Some((EndReason::Disconnected, false)));
}

#[test]
fn case_07_negotiate_uncompleted_message() {
    let now = Instant::now();
    let mut end = passive(&Params::default(), 300, now);
    end.receive(now, Message::plain(&request().emit()[..19]));
    assert_terminated(end);
    negotiate(request(), now);
}

fn version_refused(min_version: u16, max_version: u16) {
    let now = Instant::now();
    let mut end = passive(&Params::default(), 300, now);
    end.completes = false;
    let request = NegotiateRequest {
        min_version,
        max_version,
        ..request()
    };
    end.receive(now, Message::plain(request.emit()));
    assert_eq!(
        response(&mut end),
        NegotiateResponse::failure(status::NOT_SUPPORTED)
    );
    assert_eq!(
        (end.ended, end.negotiated),
        (None, None),
        "the response has to leave first"
    );
    end.conn.handle_send_done(now, 1);
    end.pump(now);
    let (min, max) = (min_version, max_version);
    assert_eq!(
        end.ended,
        Some((EndReason::VersionMismatch { min, max }, true))
    );
}

#[test]
fn case_08_negotiate_version_range_less_than_min_version() {
    version_refused(0x0101, 0xffff);
}

#[test]
fn case_09_negotiate_version_range_larger_than_max_version() {
    version_refused(0, 0x00ff);
}

#[test]
fn cases_10_to_13_negotiate_version_range_cover() {
    for (min_version, max_version) in [
        (0x0100, 0xffff),
        (0, 0x0100),
        (0x00ff, 0x0101),
        (0x0100, 0x0100),
    ] {
        let now = Instant::now();
        let (mut end, _) = negotiate(
            NegotiateRequest {
                min_version,
                max_version,
                ..request()
            },
            now,
        );
        write(&mut end, now, &pattern(500, 0), [500]);
    }
}

#[test]
fn case_14_negotiate_credits_requested() {
    terminates(NegotiateRequest {
        credits_requested: 0,
        ..request()
    });
    let all = NegotiateRequest {
        credits_requested: 0xffff,
        ..request()
    };
    assert_eq!(negotiate(all, Instant::now()).1.credits_granted, 255);
}

#[test]
fn case_15_negotiate_max_receive_size() {
    terminates(NegotiateRequest {
        max_receive_size: 127,
        ..request()
    });
    for (max_receive_size, sends) in [(128, 128), (u32::MAX, 8136)] {
        let request = NegotiateRequest {
            max_receive_size,
            ..request()
        };
        assert_eq!(
            negotiate(request, Instant::now()).1.preferred_send_size,
            sends
        );
    }
}

#[test]
fn case_16_negotiate_max_fragmented_size() {
    terminates(NegotiateRequest {
        max_fragmented_size: 131_071,
        ..request()
    });
    for max_fragmented_size in [131_072, u32::MAX] {
        negotiate(
            NegotiateRequest {
                max_fragmented_size,
                ..request()
            },
            Instant::now(),
        );
    }
}

#[test]
fn case_17_negotiate_negotiation_timer() {
    let now = Instant::now();
    let mut end = passive(&Params::default(), 300, now);
    end.timeout(now + 4 * SECOND);
    end.receive(now + 4 * SECOND, Message::plain(request().emit()));
    assert_eq!(response(&mut end).status, status::SUCCESS);
    end.timeout(now + 5 * SECOND);
    assert_eq!(end.ended, None, "the timer is stopped");
}

#[test]
fn case_18_negotiate_negotiation_timer_timeout() {
    let now = Instant::now();
    let mut end = passive(&Params::default(), 300, now);
    assert_eq!(end.conn.next_timeout(), Some(now + 5 * SECOND));
    end.timeout(now + 5 * SECOND);
    assert_eq!(end.ended, Some((EndReason::NegotiateTimeout, false)));
}

#[test]
fn case_19_data_transfer_send_small_bytes() {
    let (mut end, now) = connected();
    write(&mut end, now, &pattern(500, 0), [500]);
    end.send(now, pattern(84, 1));
    let answer = end.outbox.pop_back().expect("an answer");
    let header = answer.header();
    assert_eq!(
        (header.data_offset % 8, header.remaining_data_length),
        (0, 0)
    );
    assert!(header.credits_requested > 0);
    assert_eq!(answer.bytes[24..], pattern(84, 1));
}

#[test]
fn case_20_data_transfer_send_moderate_bytes() {
    let (mut end, now) = connected();
    write(&mut end, now, &pattern(65_536, 0), std::iter::repeat(1000));
}

#[test]
fn case_21_data_transfer_variable_length_segment() {
    let (mut end, now) = connected();
    let lengths = std::iter::once(0).chain((1..=128).rev()).cycle();
    write(&mut end, now, &pattern(65_536, 0), lengths);
}

#[test]
fn case_22_data_transfer_small_length_segment() {
    let (mut end, now) = connected();
    write(&mut end, now, &pattern(65_536, 0), std::iter::repeat(1));
    assert_eq!(end.pool + end.posted, 300, "no buffer is kept");
}

#[test]
fn case_23_data_transfer_redundancy() {
    let (mut end, now) = connected();
    let mut message = data(1, 0, &pattern(500, 0));
    message.bytes.resize(1024, 0xee);
    end.receive(now, message);
    assert_eq!(end.received, [pattern(500, 0)]);
}

#[test]
fn case_24_data_transfer_receive_max_receive_size() {
    let (mut end, now) = connected();
    end.receive(now, data(10, 0, b"read"));
    end.send(now, pattern(1500, 0));
    let first = end.outbox.pop_front().expect("a segment");
    assert_eq!(first.bytes.len(), 1024);
    let header = first.header();
    assert_eq!((header.data_offset, header.data_length), (24, 1000));
    assert_eq!(header.remaining_data_length, 500);
}

#[test]
fn case_25_data_transfer_uncompleted_message() {
    let (mut end, now) = connected();
    end.receive(now, Message::plain(&empty().emit()[..19]));
    assert_terminated(end);
}

/// Sends a message of `size` bytes with this header; true when it ends the connection.
fn is_refused(header: DataTransfer, size: usize) -> bool {
    let (mut end, now) = connected();
    let mut bytes = header.emit().to_vec();
    bytes.resize(size, 0);
    end.receive(now, Message::plain(bytes));
    let refused = end.ended.is_some();
    if refused {
        assert_terminated(end);
    }
    refused
}

fn small() -> DataTransfer {
    DataTransfer {
        data_offset: 24,
        data_length: 500,
        ..empty()
    }
}

#[test]
fn case_26_data_transfer_data_offset_against_8_byte_aligned() {
    assert!(!is_refused(small(), 600));
    assert!(is_refused(
        DataTransfer {
            data_offset: 23,
            ..small()
        },
        600
    ));
    assert!(is_refused(
        DataTransfer {
            data_offset: 25,
            ..small()
        },
        600
    ));
}

#[test]
fn case_27_data_transfer_data_offset_against_message_length() {
    assert!(is_refused(
        DataTransfer {
            data_offset: 32,
            ..small()
        },
        524
    ));
    assert!(is_refused(
        DataTransfer {
            data_offset: u32::MAX,
            ..small()
        },
        524
    ));
    assert!(is_refused(
        DataTransfer {
            data_offset: u32::MAX - 7,
            ..small()
        },
        524
    ));
}

#[test]
fn case_28_data_transfer_data_length_against_message_length() {
    assert!(is_refused(
        DataTransfer {
            data_length: 501,
            ..small()
        },
        524
    ));
    assert!(is_refused(
        DataTransfer {
            data_length: 1001,
            ..small()
        },
        1024
    ));
    assert!(is_refused(
        DataTransfer {
            data_length: u32::MAX,
            ..small()
        },
        524
    ));
}

#[test]
fn case_29_data_transfer_data_length_against_max_receive_size() {
    assert!(is_refused(
        DataTransfer {
            data_length: 1001,
            ..small()
        },
        1025
    ));
    assert!(!is_refused(
        DataTransfer {
            data_length: 1000,
            ..small()
        },
        1024
    ));
}

#[test]
fn case_30_data_transfer_against_max_fragmented_size() {
    let with = |remaining_data_length| DataTransfer {
        remaining_data_length,
        ..small()
    };
    assert!(is_refused(with(131_072 - 500 + 1), 524));
    let (mut end, now) = connected();
    write(&mut end, now, &pattern(131_072, 0), std::iter::repeat(1000));
}

#[test]
fn case_31_data_transfer_remaining_data_length_against_max_fragmented_size() {
    let with = |remaining_data_length| DataTransfer {
        remaining_data_length,
        ..empty()
    };
    assert!(is_refused(with(131_073), 20));
    assert!(is_refused(with(u32::MAX), 20));
    assert!(!is_refused(with(131_072), 20));
}

#[test]
fn case_32_data_transfer_remaining_data_length_zero() {
    // Too early in the second segment, and in the one before the last.
    for segments in [2, 5] {
        let (mut end, now) = connected();
        for i in 1..segments {
            end.receive(now, data(2, 6000 - 1000 * i, &pattern(1000, 0)));
        }
        assert_eq!(end.ended, None);
        end.outbox.clear();
        end.receive(now, data(2, 0, &pattern(1000, 0)));
        assert_terminated(end);
    }
}

#[test]
fn case_33_data_transfer_remaining_against_fragment_reassembly_remaining() {
    let (mut end, now) = connected();
    end.receive(now, data(2, 1000, &pattern(1000, 0)));
    end.outbox.clear();
    end.receive(now, data(2, 501, &pattern(500, 0)));
    assert_terminated(end);
}

#[test]
fn case_34_data_transfer_idle_connection_client() {
    let (mut end, now) = connected();
    end.receive(now, data(10, 0, b"request"));
    end.outbox.clear();
    let flags = DataTransfer::RESPONSE_REQUESTED;
    let later = now + 119 * SECOND;
    end.receive(
        later,
        Message::plain(DataTransfer { flags, ..empty() }.emit()),
    );
    let reply = end.outbox.pop_front().expect("a reply");
    assert_eq!((reply.bytes.len(), reply.header().flags), (20, 0));
    assert!(reply.header().credits_granted > 0);
    assert_eq!(end.outbox.pop_front(), None);
}

#[test]
fn case_34_also_when_the_probe_is_the_first_message() {
    let (mut end, now) = connected();
    let probe = DataTransfer {
        flags: 1,
        credits_granted: 5,
        ..empty()
    };
    end.receive(now, Message::plain(probe.emit()));
    let reply = end.outbox.pop_front().expect("a reply").header();
    assert_eq!((reply.flags, reply.credits_granted), (0, 1));
}

#[test]
fn case_35_data_transfer_idle_connection_server() {
    let (mut end, now) = connected();
    end.receive(now, data(10, 0, b"request"));
    end.outbox.clear();
    let probed = now + 120 * SECOND;
    end.timeout(probed);
    let probe = end.outbox.pop_front().expect("a probe");
    assert_eq!((probe.bytes.len(), probe.header().flags), (20, 1));
    // The answer is late and asks for an answer itself.
    let answered = probed + 4 * SECOND;
    end.timeout(answered);
    end.receive(
        answered,
        Message::plain(
            DataTransfer {
                flags: 1,
                ..empty()
            }
            .emit(),
        ),
    );
    let reply = end.outbox.pop_front().expect("a reply").header();
    assert_eq!(reply.flags, 0);
    end.timeout(answered + 119 * SECOND);
    assert_eq!(end.outbox.pop_front(), None);
    end.timeout(answered + 120 * SECOND);
    assert_eq!(
        end.outbox.pop_front().map(|m| m.header().flags),
        Some(1),
        "probes again"
    );
}

#[test]
fn case_36_data_transfer_idle_connection_server_timeout() {
    let (mut end, now) = connected();
    end.receive(now, data(10, 0, b"request"));
    end.timeout(now + 120 * SECOND);
    end.timeout(now + 124 * SECOND);
    assert_eq!(end.ended, None);
    end.timeout(now + 125 * SECOND);
    assert_eq!(end.ended, Some((EndReason::KeepaliveTimeout, false)));
}

#[test]
fn case_37_credit_mgmt_minimum_credits() {
    let now = Instant::now();
    let mut end = negotiated(&Params::default(), 1, now);
    let message = pattern(65_536, 0);
    let mut left = &message[..];
    while !left.is_empty() {
        let (segment, rest) = left.split_at(left.len().min(1000));
        left = rest;
        let header = DataTransfer {
            credits_requested: 1,
            credits_granted: 1,
            remaining_data_length: rest.len() as u32,
            data_length: segment.len() as u32,
            ..small()
        };
        end.receive(
            now,
            Message::plain([&header.emit_padded()[..], segment].concat()),
        );
        let grant = end.outbox.pop_front().expect("a grant at once").header();
        assert_eq!((grant.credits_granted, grant.data_length), (1, 0));
    }
    assert_eq!(end.received, [message]);
}

#[test]
fn case_38_credit_mgmt_limited_credits() {
    let (mut end, now) = connected();
    for i in 0..6 {
        assert_eq!(end.outbox.pop_front(), None, "no grant after {i} messages");
        end.receive(now, data(1, 10_000 - 1000 * i, &pattern(1000, 0)));
    }
    // The suite's document expects five.
    assert_eq!(
        end.outbox.pop_front().map(|m| m.header().credits_granted),
        Some(5)
    );
}

#[test]
fn case_39_credit_mgmt_consume_all_send_credits() {
    let (mut end, now) = connected();
    let mut held = 10;
    while held > 0 && end.outbox.is_empty() {
        let grant = DataTransfer {
            credits_granted: 1,
            ..empty()
        };
        end.receive(now, Message::plain(grant.emit()));
        held -= 1;
    }
    let grant = end.outbox.pop_front().expect("a grant");
    assert_eq!(grant.bytes.len(), 20);
    assert!(grant.header().credits_granted > 0);
}

/// A connection whose peer has given ten credits and lets us send a long message with them;
/// returns it after it has used them all.
fn out_of_credits() -> (End, Instant, usize) {
    let (mut end, now) = connected();
    end.receive(now, data(10, 0, b"read"));
    end.send(now, pattern(65_536, 0));
    let mut sent = 0;
    assert_eq!(end.outbox.len(), 10);
    while let Some(message) = end.outbox.pop_front() {
        let header = message.header();
        assert!(header.data_length > 0, "no empty message inside fragments");
        sent += header.data_length as usize;
        if end.outbox.is_empty() {
            assert!(header.credits_granted > 0, "the last credit");
        }
    }
    (end, now, sent)
}

#[test]
fn case_40_credit_mgmt_consume_all_receive_credits() {
    let (mut end, now, mut sent) = out_of_credits();
    // Even a message that asks for an answer gets none.
    end.receive(
        now,
        Message::plain(
            DataTransfer {
                flags: 1,
                ..empty()
            }
            .emit(),
        ),
    );
    assert_eq!(end.outbox.pop_front(), None);
    while sent < 65_536 {
        end.receive(
            now,
            Message::plain(
                DataTransfer {
                    credits_granted: 7,
                    ..empty()
                }
                .emit(),
            ),
        );
        assert!(!end.outbox.is_empty(), "it goes on");
        while let Some(message) = end.outbox.pop_front() {
            let header = message.header();
            assert!(header.data_length > 0 || sent == 65_536);
            sent += header.data_length as usize;
        }
    }
    assert_eq!(end.ended, None);
}

#[test]
fn case_41_credit_mgmt_consume_all_credit_server_timeout() {
    let (mut end, now, _) = out_of_credits();
    end.timeout(now + 120 * SECOND);
    assert_eq!((end.ended, end.outbox.pop_front()), (None, None), "silent");
    end.timeout(now + 125 * SECOND);
    assert_eq!(end.ended, Some((EndReason::KeepaliveUnsendable, false)));
}

#[test]
fn case_42_credit_mgmt_negative_credit_requested() {
    assert!(is_refused(
        DataTransfer {
            credits_requested: 0,
            ..small()
        },
        524
    ));
}
