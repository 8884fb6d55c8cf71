//! Cases 1 to 18: the negotiation.

use std::time::{Duration, Instant};

use smbdirect::wire::{status, NegotiateRequest, NegotiateResponse};

use crate::smbd_peer::{check_success, request, SmbdPeer};
use crate::{server, smb, Bed, Scripted};

/// Small, moderate and large, as the suite has them.
const SMALL: usize = 500;
/// The negotiation timer of a passive side: `[MS-SMBD] 3.1.7.2`.
const NEGOTIATION: Duration = Duration::from_secs(5);

/// The request succeeds.
fn succeeds(bed: &mut Bed, request: NegotiateRequest) -> NegotiateResponse {
    let mut peer = SmbdPeer::negotiated_with(bed.address, request);
    // It does not only say so: PDUs go both ways.
    let id = bed.attach(&mut peer);
    bed.send(id, b"\xfeSMB answer");
    assert_eq!(peer.receive_pdu().unwrap().0, b"\xfeSMB answer");
    peer.response
}

/// The engine ends the connection without an answer.
fn terminates(bed: &mut Bed, request: NegotiateRequest) {
    let mut peer = SmbdPeer::connect(bed.address);
    peer.send_bytes(&request.emit());
    peer.expect_end();
}

#[test]
fn case_01_negotiate_basic() {
    let mut bed = Bed::new("01");
    let response = succeeds(&mut bed, request());
    assert_eq!(response.preferred_send_size, 1024);
    assert_eq!(response.max_receive_size, 1024);
}

#[test]
fn case_02_preferred_send_size_with_zero() {
    let mut bed = Bed::new("02");
    let request = NegotiateRequest {
        preferred_send_size: 0,
        ..request()
    };
    assert_eq!(succeeds(&mut bed, request).max_receive_size, 128);
}

#[test]
fn case_03_preferred_send_size_less_than_128() {
    let mut bed = Bed::new("03");
    for preferred_send_size in [127, 128] {
        let request = NegotiateRequest {
            preferred_send_size,
            ..request()
        };
        assert_eq!(succeeds(&mut bed, request).max_receive_size, 128);
    }
}

#[test]
fn case_04_preferred_send_size_max_value() {
    let mut bed = Bed::new("04");
    for preferred_send_size in [8136, u32::MAX] {
        let request = NegotiateRequest {
            preferred_send_size,
            ..request()
        };
        let max_receive_size = succeeds(&mut bed, request).max_receive_size;
        assert_eq!(max_receive_size, preferred_send_size.min(8192));
    }
}

#[test]
fn case_05_negotiate_redundancy() {
    let mut bed = Bed::new("05");
    let mut peer = SmbdPeer::connect(bed.address);
    let mut bytes = request().emit().to_vec();
    bytes.resize(512, 0);
    let response = peer.negotiate_bytes(request(), &bytes).unwrap();
    check_success(&request(), &response);
    bed.attach(&mut peer);
}

#[test]
fn case_06_disconnect_after_negotiate() {
    let mut bed = Bed::new("06");
    SmbdPeer::negotiated(bed.address).abort();
    succeeds(&mut bed, request());
}

#[test]
fn case_07_negotiate_uncompleted_message() {
    let mut bed = Bed::new("07");
    let mut peer = SmbdPeer::connect(bed.address);
    peer.send_bytes(&request().emit()[..19]);
    peer.expect_end();
    succeeds(&mut bed, request());
}

fn version_refused(name: &str, min_version: u16, max_version: u16) {
    let mut bed = Bed::new(name);
    let request = NegotiateRequest {
        min_version,
        max_version,
        ..request()
    };
    let mut peer = SmbdPeer::connect(bed.address);
    let response = peer.negotiate(request).unwrap();
    assert_eq!(response, NegotiateResponse::failure(status::NOT_SUPPORTED));
    // SMB2 is not possible any more.
    peer.send_bytes(&crate::smb2_negotiate(crate::GUID, &[0x0300]));
    peer.expect_end();
    bed.check_others();
}

#[test]
fn case_08_version_range_less_than_min_version() {
    version_refused("08", 0x0101, 0xffff);
}

#[test]
fn case_09_version_range_larger_than_max_version() {
    version_refused("09", 0, 0x00ff);
}

/// SMB2 works after a negotiation with these versions.
fn version_covered(test: &str, min_version: u16, max_version: u16) {
    let Some(server) = server(test) else {
        return;
    };
    let request = NegotiateRequest {
        min_version,
        max_version,
        ..request()
    };
    let mut client = Scripted::with(&server, test, request, |_| ());
    let data = smb::noise(SMALL, min_version.into());
    client.write(&server, test, &data);
    let (tree, file) = (client.tree, client.file);
    let read = client.it.read(tree, file, 0, SMALL as u32).unwrap();
    assert!(read == data);
}

#[test]
fn case_10_version_range_equal_min_version() {
    version_covered("case_10_version_range_equal_min_version", 0x0100, 0xffff);
}

#[test]
fn case_11_version_range_equal_max_version() {
    version_covered("case_11_version_range_equal_max_version", 0, 0x0100);
}

#[test]
fn case_12_version_range_in_middle() {
    version_covered("case_12_version_range_in_middle", 0x00ff, 0x0101);
}

#[test]
fn case_13_version_range_equal_min_and_max() {
    version_covered("case_13_version_range_equal_min_and_max", 0x0100, 0x0100);
}

#[test]
fn case_14_negative_credits_requested() {
    let mut bed = Bed::new("14");
    let with = |credits_requested| NegotiateRequest {
        credits_requested,
        ..request()
    };
    terminates(&mut bed, with(0));
    succeeds(&mut bed, with(0xffff));
}

#[test]
fn case_15_negative_max_receive_size() {
    let mut bed = Bed::new("15");
    let with = |max_receive_size| NegotiateRequest {
        max_receive_size,
        ..request()
    };
    terminates(&mut bed, with(127));
    assert_eq!(succeeds(&mut bed, with(128)).preferred_send_size, 128);
    assert_eq!(succeeds(&mut bed, with(u32::MAX)).preferred_send_size, 8136);
}

#[test]
fn case_16_negative_max_fragmented_size() {
    let mut bed = Bed::new("16");
    let with = |max_fragmented_size| NegotiateRequest {
        max_fragmented_size,
        ..request()
    };
    terminates(&mut bed, with(131_071));
    succeeds(&mut bed, with(131_072));
    succeeds(&mut bed, with(u32::MAX));
}

/// Waits as long as the case says (4 s), unless the machine is so busy that this says nothing.
#[test]
fn case_17_negotiation_timer() {
    let bed = Bed::new("17");
    for _ in 0..10 {
        let start = Instant::now();
        let mut peer = SmbdPeer::connect(bed.address);
        let has_ended = peer.has_news(Duration::from_secs(4));
        peer.send_bytes(&request().emit());
        if start.elapsed() < NEGOTIATION {
            assert!(!has_ended, "before its time");
        }
        if peer.raw().is_ok() {
            return;
        }
        // The request may have been on its way when the time was up.
        assert!(start.elapsed() >= NEGOTIATION, "before its time");
    }
    panic!("no request within {NEGOTIATION:?} in ten attempts");
}

#[test]
fn case_18_negotiation_timer_timeout() {
    let mut bed = Bed::new("18");
    let mut peer = SmbdPeer::connect(bed.address);
    peer.expect_end();
    succeeds(&mut bed, request());
}
