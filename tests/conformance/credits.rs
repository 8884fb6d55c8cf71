//! Cases 37 to 42: credits.

use smbdirect::ipc::Params;
use smbdirect::wire::{DataTransfer, NegotiateRequest};

use crate::common::until_status;
use crate::smbd_peer::{data, empty, request, SmbdPeer};
use crate::{server, smb, Bed, Scripted};

const MODERATE: usize = 65_536;

/// A WRITE and a READ of moderate size with so many credits each way.
fn works_with(test: &str, credits: u16) {
    let Some(server) = server(test) else {
        return;
    };
    let request = NegotiateRequest {
        credits_requested: credits,
        ..request()
    };
    let mut client = Scripted::with(&server, test, request, |peer| {
        peer.script.credits_requested = credits;
        peer.script.grants = credits.into();
    });
    let content = smb::noise(MODERATE, 1);
    client.write(&server, test, &content);
    let length = MODERATE as u32;
    let read = client.it.read(client.tree, client.file, 0, length).unwrap();
    assert!(read == content);
}

#[test]
fn case_37_minimum_credits() {
    works_with("case_37_minimum_credits", 1);
}

#[test]
fn case_38_limited_credits() {
    works_with("case_38_limited_credits", 10);
}

#[test]
fn case_39_consume_all_send_credits() {
    let mut bed = Bed::new("39");
    let (mut peer, _) = bed.attached(request());
    // From a full set on: what was granted for the first PDU has come.
    while peer.credits > 0 {
        peer.send(empty(1), &[]);
    }
    let grant = peer.take().unwrap();
    assert!(grant.is_empty());
    assert!(grant.header.credits_granted > 0);
}

/// A peer that has ten credits granted and uses up none of its own: the owner's PDU is cut into
/// segments for all of them, and the engine stops.
fn starved(bed: &mut Bed, pdu: &[u8]) -> (SmbdPeer, u64) {
    let (mut peer, id) = bed.attached(request());
    peer.script.grants = 0;
    bed.send(id, pdu);
    let mut segments = 0;
    while peer.granted > 0 {
        // That the last credit goes with a grant is checked there.
        let message = peer.take().unwrap();
        segments += u32::from(!message.is_empty());
    }
    assert!((9..=10).contains(&segments), "{segments} segments");
    (peer, id)
}

#[test]
fn case_40_consume_all_receive_credits() {
    let mut bed = Bed::new("40");
    let pdu = smb::noise(MODERATE, 2);
    let (mut peer, _) = starved(&mut bed, &pdu);
    // A message that asks for an answer gets none, as there is no credit for it.
    let probe = DataTransfer {
        flags: DataTransfer::RESPONSE_REQUESTED,
        ..empty(0)
    };
    peer.send(probe, &[]);
    let status = until_status(&bed.engine.socket, "asked", |status| {
        status.connections[0].keepalives_received == 1
    });
    assert_eq!(status.connections[0].send_credits, 0);
    assert!(!peer.has_news(std::time::Duration::ZERO));
    // It goes on with what it gets, without empty messages inside of the fragments.
    loop {
        while peer.granted > 0 {
            peer.take().unwrap();
            let received: u32 = peer.log.iter().map(|it| it.data_length).sum();
            if received as usize == MODERATE {
                peer.script.grants = 10;
                assert!(peer.receive_pdu().unwrap().0 == pdu);
                return;
            }
        }
        peer.send(empty(3), &[]);
    }
}

/// An interval of one second; the five seconds for the answer cannot be changed.
#[test]
fn case_41_consume_all_credit_server_timeout() {
    let params = Params {
        keepalive_interval_msec: 1000,
        ..Params::default()
    };
    let mut bed = Bed::with("41", &params);
    let (mut peer, _) = starved(&mut bed, &smb::noise(MODERATE, 3));
    // Silence, as there is no credit, not even for a probe.
    peer.expect_end();
    bed.check_others();
}

#[test]
fn case_42_negative_credit_requested() {
    let test = "case_42_negative_credit_requested";
    let Some(server) = server(test) else {
        return;
    };
    let client = Scripted::new(&server, test);
    let mut peer = client.peer.get();
    let header = DataTransfer {
        credits_requested: 0,
        ..data(1, 500, 0)
    };
    peer.send(header, &[0; 500]);
    peer.until_end();
    let mut peer = SmbdPeer::negotiated(smb::rdma(&server));
    peer.send(
        DataTransfer {
            credits_requested: 0,
            ..empty(1)
        },
        &[],
    );
    peer.until_end();
}
