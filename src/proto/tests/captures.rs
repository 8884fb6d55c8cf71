//! Messages that the Linux kernel's client (cifs.ko) and server (ksmbd) really sent, replayed.
//! Headers are literal; SMB2 payloads beyond their first bytes are cut to zeros.

use super::*;

const REQUEST: [u8; 20] = [
    0x00, 0x01, 0x00, 0x01, 0x00, 0x00, 0xff, 0x00, 0x54, 0x05, 0x00, 0x00, 0x54, 0x05, 0x00, 0x00,
    0x56, 0xa7, 0x02, 0x00,
];
/// ksmbd of Linux 7.3; that of 6.12 grants 254.
const RESPONSE: [u8; 32] = [
    0x00, 0x01, 0x00, 0x01, 0x00, 0x01, 0x00, 0x00, 0xff, 0x00, 0xff, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x80, 0x00, 0x54, 0x05, 0x00, 0x00, 0x54, 0x05, 0x00, 0x00, 0x56, 0xa7, 0x02, 0x00,
];
/// First Data Transfer of cifs.ko 7.3: grants all 255 with SMB2 NEGOTIATE.
const FIRST_7_3: [u8; 32] = [
    0xff, 0x00, 0xff, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x18, 0x00, 0x00, 0x00,
    0xe0, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xfe, 0x53, 0x4d, 0x42, 0x40, 0x00, 0x00, 0x00,
];
/// First Data Transfer of cifs.ko 6.12: nothing but a grant of 255.
const FIRST_6_12: [u8; 20] = [
    0xff, 0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];
/// Three segments of one compound request, none of them full: credits granted, remaining, length.
const COMPOUND: [(u16, u32, u32); 3] = [(1, 192, 152), (0, 88, 104), (0, 0, 88)];

/// A captured header and the length of its payload.
fn captured(header: &[u8], data_length: usize) -> Message {
    let mut bytes = header.to_vec();
    if data_length > 0 {
        bytes.resize(24 + data_length, 0);
    }
    Message::plain(bytes)
}

#[test]
fn cifs_negotiates_with_us() {
    let now = Instant::now();
    for first in [captured(&FIRST_7_3, 224), captured(&FIRST_6_12, 0)] {
        let mut end = passive(&Params::default(), 300, now);
        end.receive(now, Message::plain(REQUEST));
        let r = response(&mut end);
        assert_eq!(
            (r.credits_granted, r.preferred_send_size, r.max_receive_size),
            (255, 1364, 1364)
        );
        let is_data = first.bytes.len() > 20;
        end.receive(now, first);
        assert_eq!(end.conn.send_credits(), 255);
        assert_eq!(end.received.len(), usize::from(is_data));
        assert_eq!(end.outbox.pop_front(), None, "no empty message in return");
        for (credits_granted, remaining_data_length, data_length) in COMPOUND {
            let header = DataTransfer {
                credits_requested: 255,
                credits_granted,
                flags: 0,
                remaining_data_length,
                data_offset: 24,
                data_length,
            };
            end.receive(now, captured(&header.emit_padded(), data_length as usize));
        }
        assert_eq!(end.received.last().map(Vec::len), Some(344));
        assert_eq!(end.ended, None);
    }
}

#[test]
fn we_negotiate_with_ksmbd() {
    let now = Instant::now();
    let mut end = End::new(Role::Active, &Params::active(), 300, now);
    end.pump(now);
    end.conn.handle_established(now);
    end.pump(now);
    let request = end.outbox.pop_front().expect("a request");
    // As cifs.ko asks, but for our larger receive and fragmented sizes.
    assert_eq!(request.bytes[..12], REQUEST[..12]);
    end.receive(now, Message::plain(RESPONSE));
    let negotiated = end.negotiated.expect("negotiated");
    assert_eq!(
        (negotiated.max_send_size, negotiated.max_receive_size),
        (1364, 1364)
    );
    assert_eq!(negotiated.max_fragmented_send_size, 173_910);
    assert_eq!(end.conn.send_credits(), 255);

    end.send(now, pattern(224, 0));
    let first = end.outbox.pop_front().expect("a message");
    assert_eq!(first.header().credits_granted, 254);
    // ksmbd of 6.12 answers the grant with an empty message that gives nothing, then with data.
    let nothing = DataTransfer {
        credits_requested: 255,
        ..DataTransfer::default()
    };
    end.receive(now, Message::plain(nothing.emit()));
    let answer = DataTransfer {
        credits_granted: 1,
        data_offset: 24,
        data_length: 312,
        ..nothing
    };
    end.receive(now, captured(&answer.emit_padded(), 312));
    assert_eq!(end.received.len(), 1);
    assert_eq!(end.outbox.pop_front(), None);
    assert_eq!(end.ended, None);
}
