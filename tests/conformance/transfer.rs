//! Cases 19 to 36: Data Transfer messages.

use std::time::{Duration, Instant};

use smbdirect::ipc::Params;
use smbdirect::smb::{MessageId, WriteRequest};
use smbdirect::wire::DataTransfer;

use crate::samba::Server;
use crate::smbd_peer::{data, empty, request, SmbdPeer};
use crate::{server, smb, Bed, Scripted};

const SMALL: usize = 500;
const MODERATE: usize = 65_536;
/// MaxSendSize of the peer.
const SEGMENT: usize = 1024 - DataTransfer::DATA_OFFSET;

impl Scripted {
    /// A WRITE as it would be sent.
    fn held_write(&mut self, content: &[u8]) -> (Vec<u8>, MessageId) {
        let content = content.to_vec().into();
        let write = WriteRequest::inline(self.file, 0, content);
        let write = write.to_request(self.tree).unwrap();
        let mut id = None;
        let it = &mut self.it;
        let pdu = self.peer.hold(|| id = Some(it.submit(write).unwrap()));
        (pdu, id.unwrap())
    }
}

/// A WRITE with the segments of `lengths`, over and over, has to end up in the file.
fn accepted(test: &str, size: usize, lengths: &[usize], has_junk: bool) {
    let Some(server) = server(test) else {
        return;
    };
    let mut client = Scripted::new(&server, test);
    {
        let mut peer = client.peer.get();
        peer.script.segments = lengths.to_vec();
        peer.script.has_junk = has_junk;
        peer.log.clear();
    }
    client.write(&server, test, &smb::noise(size, 1));
    let peer = client.peer.get();
    let answer = peer.log.iter().find(|it| it.data_length > 0).unwrap();
    assert_eq!(answer.data_offset % 8, 0);
    assert_eq!(answer.remaining_data_length, 0);
    assert!(answer.credits_requested > 0);
}

/// A WRITE that `wrong` sends ends the connection without an answer and without a change of the
/// file; others are served.
fn terminates(test: &str, size: usize, wrong: impl Fn(&mut SmbdPeer, &[u8])) {
    let Some(server) = server(test) else {
        return;
    };
    let mut client = Scripted::new(&server, test);
    let (pdu, _) = client.held_write(&smb::noise(size, 2));
    let mut peer = client.peer.get();
    wrong(&mut peer, &pdu);
    peer.until_end();
    let written = std::fs::metadata(server.share(test)).unwrap().len();
    assert_eq!(written, 0, "it was written");
    check_others(&server);
}

fn check_others(server: &Server) {
    let options = smb::options(
        smbdirect::smb::Dialect::Smb311,
        smbdirect::smb::Signing::IfRequired,
    );
    let profile = smbdirect::smb::Profile::linux();
    let mut other = smb::direct(server, &profile, &options).unwrap();
    other.set_up_session(&smb::credentials()).unwrap();
    other.echo().unwrap();
}

#[test]
fn case_19_send_small_bytes() {
    accepted("case_19_send_small_bytes", SMALL, &[], false);
}

#[test]
fn case_20_send_moderate_bytes() {
    accepted("case_20_send_moderate_bytes", MODERATE, &[SEGMENT], false);
}

#[test]
fn case_21_variable_length_segment() {
    let lengths: Vec<_> = std::iter::once(0).chain((1..=128).rev()).collect();
    accepted("case_21_variable_length_segment", MODERATE, &lengths, false);
}

#[test]
fn case_22_small_length_segment() {
    accepted("case_22_small_length_segment", MODERATE, &[1], false);
}

#[test]
fn case_23_data_transfer_redundancy() {
    accepted("case_23_data_transfer_redundancy", SMALL, &[700], true);
}

#[test]
fn case_24_receive_max_receive_size() {
    let test = "case_24_receive_max_receive_size";
    let Some(server) = server(test) else {
        return;
    };
    let mut client = Scripted::new(&server, test);
    let content = smb::noise(MODERATE, 3);
    client.write(&server, test, &content);
    // The READ response has 80 bytes before its data.
    for (length, segments) in [(SEGMENT - 80, 1), (SEGMENT - 79, 2), (MODERATE, 66)] {
        client.peer.get().log.clear();
        let read = client.it.read(client.tree, client.file, 0, length as u32);
        assert!(read.unwrap() == content[..length]);
        let peer = client.peer.get();
        let carriers: Vec<_> = peer.log.iter().filter(|it| it.data_length > 0).collect();
        assert_eq!(carriers.len(), segments, "{length}");
        let mut left = 80 + length;
        for carrier in carriers {
            assert_eq!(carrier.data_offset % 8, 0);
            assert_eq!(carrier.data_length as usize, left.min(SEGMENT));
            left -= carrier.data_length as usize;
            assert_eq!(carrier.remaining_data_length as usize, left);
        }
    }
}

#[test]
fn case_25_data_transfer_uncompleted_message() {
    let test = "case_25_data_transfer_uncompleted_message";
    terminates(test, SMALL, |peer, _| {
        peer.send_bytes(&empty(1).emit()[..19]);
    });
}

/// The WRITE in one segment whose header is changed.
fn terminates_with(test: &str, size: usize, change: impl Fn(&mut DataTransfer)) {
    terminates(test, size, |peer, pdu| {
        let mut header = data(1, pdu.len() as u32, 0);
        change(&mut header);
        peer.send(header, pdu);
    });
}

#[test]
fn case_26_data_offset_against_8_byte_aligned() {
    let test = "case_26_data_offset_against_8_byte_aligned";
    terminates_with(test, SMALL, |header| header.data_offset = 23);
    // With room behind, so that the alignment alone is wrong.
    terminates(test, SMALL, |peer, pdu| {
        let header = DataTransfer {
            data_offset: 25,
            ..data(1, pdu.len() as u32, 0)
        };
        peer.send(header, &[&[0], pdu, &[0; 8]].concat());
    });
}

#[test]
fn case_27_data_offset_against_message_length() {
    let test = "case_27_data_offset_against_message_length";
    for data_offset in [32, u32::MAX, u32::MAX - 7] {
        terminates_with(test, SMALL, |header| header.data_offset = data_offset);
    }
}

#[test]
fn case_28_data_length_against_message_length() {
    let test = "case_28_data_length_against_message_length";
    terminates_with(test, SMALL, |header| header.data_length += 1);
    // The WRITE has 112 bytes before its data.
    terminates_with(test, SEGMENT - 112, |header| header.data_length += 1);
    terminates_with(test, SMALL, |header| header.data_length = u32::MAX);
}

#[test]
fn case_29_data_length_against_max_receive_size() {
    let test = "case_29_data_length_against_max_receive_size";
    terminates_with(test, SEGMENT - 111, |_| ());
    accepted(test, SEGMENT - 112, &[SEGMENT], false);
}

#[test]
fn case_30_message_against_max_fragmented_size() {
    let test = "case_30_message_against_max_fragmented_size";
    let Some(server) = server(test) else {
        return;
    };
    let max = {
        let client = Scripted::new(&server, test);
        let peer = client.peer.get();
        peer.response.max_fragmented_size
    } as usize;
    terminates(test, max - 111, |peer, pdu| {
        assert_eq!(pdu.len(), max + 1);
        let rest = (pdu.len() - SEGMENT) as u32;
        peer.send(data(1, SEGMENT as u32, rest), &pdu[..SEGMENT]);
    });
    let mut client = Scripted::new(&server, test);
    let content = smb::noise(max - 112, 4);
    let (pdu, id) = client.held_write(&content);
    assert_eq!(pdu.len(), max);
    client.peer.get().send_pdu(&pdu).unwrap();
    client.it.wait(id).unwrap().success().unwrap();
    assert!(std::fs::read(server.share(test)).unwrap() == content);
}

#[test]
fn case_31_remaining_data_length_against_max_fragmented_size() {
    let test = "case_31_remaining_data_length_against_max_fragmented_size";
    for is_most in [false, true] {
        terminates(test, SMALL, |peer, _| {
            let max = peer.response.max_fragmented_size;
            let remaining = if is_most { u32::MAX } else { max + 1 };
            peer.send(data(1, 0, remaining), &[]);
        });
    }
}

/// Sends a PDU in full segments; `change` has the number of each and its header.
fn send_changed(peer: &mut SmbdPeer, pdu: &[u8], change: impl Fn(usize, &mut DataTransfer)) {
    let count = pdu.len().div_ceil(SEGMENT);
    for (i, segment) in pdu.chunks(SEGMENT).enumerate() {
        let left = pdu.len() - i * SEGMENT - segment.len();
        let mut header = data(0, segment.len() as u32, left as u32);
        change(count - i, &mut header);
        let is_wrong = header.remaining_data_length as usize != left;
        peer.send_segment(header, segment).unwrap();
        if is_wrong {
            return;
        }
    }
    panic!("nothing was wrong");
}

#[test]
fn case_32_remaining_data_length_zero() {
    let test = "case_32_remaining_data_length_zero";
    // The second segment; the last but one.
    for from_end in [None, Some(2)] {
        terminates(test, MODERATE, |peer, pdu| {
            let count = pdu.len().div_ceil(SEGMENT);
            let wrong = from_end.unwrap_or(count - 1);
            send_changed(peer, pdu, |at, header| {
                if at == wrong {
                    header.remaining_data_length = 0;
                }
            });
        });
    }
}

#[test]
fn case_33_remaining_against_fragment_reassembly_remaining() {
    let test = "case_33_remaining_against_fragment_reassembly_remaining";
    terminates(test, MODERATE, |peer, pdu| {
        let second = pdu.len().div_ceil(SEGMENT) - 1;
        send_changed(peer, pdu, |at, header| {
            header.remaining_data_length += u32::from(at == second);
        });
    });
}

/// The peer's probe; how long it was idle before makes no difference (`proto/tests/cases.rs` has
/// the 119 s).
#[test]
fn case_34_idle_connection_client() {
    let mut bed = Bed::new("34");
    let (mut peer, id) = bed.attached(request());
    let reply = peer.probe(0).unwrap();
    assert_eq!(reply.bytes.len(), DataTransfer::LEN);
    assert_eq!(reply.header.flags, 0);
    assert!(reply.header.credits_granted > 0);
    bed.send(id, b"\xfeSMB still here");
    assert_eq!(peer.receive_pdu().unwrap().0, b"\xfeSMB still here");
}

/// An engine that probes after a second: the interval is a parameter, the five seconds for the
/// answer are not.
fn probing(name: &str) -> Bed {
    let params = Params {
        keepalive_interval_msec: 1000,
        ..Params::default()
    };
    Bed::with(name, &params)
}

const RESPONSE: Duration = Duration::from_secs(5);

/// Takes messages up to a probe.
fn take_probe(peer: &mut SmbdPeer) -> DataTransfer {
    loop {
        let message = peer.take().unwrap();
        assert!(message.is_empty());
        if message.header.is_response_requested() {
            return message.header;
        }
    }
}

#[test]
fn case_35_idle_connection_server() {
    let mut bed = probing("35");
    for _ in 0..10 {
        let start = Instant::now();
        let (mut peer, _) = bed.attached(request());
        take_probe(&mut peer);
        // Late, but in time unless the machine is very busy; then this attempt says nothing.
        let has_ended = peer.has_news(RESPONSE - Duration::from_secs(2));
        let answer = DataTransfer {
            flags: DataTransfer::RESPONSE_REQUESTED,
            ..empty(1)
        };
        peer.send(answer, &[]);
        if start.elapsed() < RESPONSE {
            assert!(!has_ended, "before its time");
        }
        let Ok(reply) = peer.take() else {
            assert!(start.elapsed() >= RESPONSE, "before its time");
            continue;
        };
        assert!(reply.is_empty());
        assert_eq!(reply.header.flags, 0, "a probe instead of the answer");
        take_probe(&mut peer);
        return;
    }
    panic!("no answer to a probe within {RESPONSE:?} in ten attempts");
}

#[test]
fn case_36_idle_connection_server_timeout() {
    let mut bed = probing("36");
    let (mut peer, _) = bed.attached(request());
    take_probe(&mut peer);
    peer.expect_end();
    bed.check_others();
}
