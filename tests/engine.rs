//! An engine in a thread and two handles on it: the server's parent and a client that connects to
//! it over 127.0.0.1.

#[path = "common/engine_host.rs"]
mod common;

use common::{wait_for, TestEngine};
use smbdirect::client::{EventKind, RdmaOp, SendPdu};
use smbdirect::ipc::Params;
use smbdirect::ring::{Descriptor, Segment};

/// A NEGOTIATE request as cifs.ko sends it, cut to what routing needs: 3.1.1 with its contexts
/// replaced by 3.0 alone.
fn negotiate(client_guid: [u8; 16]) -> Vec<u8> {
    let mut pdu = vec![0; 64];
    pdu[..4].copy_from_slice(b"\xfeSMB");
    pdu[4] = 64;
    pdu[14] = 1; // credits
    pdu.extend([36, 0, 1, 0, 1, 0, 0, 0, 0x44, 0, 0, 0]);
    pdu.extend(client_guid);
    pdu.extend([0; 8]);
    pdu.extend([0x00, 0x03]);
    pdu
}

fn send(connection: u64, cookie: u64, bytes: &[u8]) -> (SendPdu, Vec<u8>) {
    let pdu = SendPdu {
        connection,
        cookie,
        has_event: true,
        invalidate: None,
        length: bytes.len(),
    };
    (pdu, bytes.to_vec())
}

#[test]
fn a_pdu_each_way_and_rdma() {
    let engine = TestEngine::start();
    let mut parent = engine.open(true);
    parent.set_params(&Params::default()).unwrap();
    let address = engine.listen(&mut parent);
    let mut client = engine.open(false);
    let active = client.connect(&engine.connect_spec(address)).unwrap();
    let attached = wait_for(&mut client, EventKind::Attached).0;
    assert_eq!(attached.connection, active);

    let request = negotiate([7; 16]);
    let (pdu, bytes) = send(active, 1, &request);
    client.queue_bytes(&pdu, &bytes).unwrap();
    client.submit().unwrap();

    let offer = wait_for(&mut parent, EventKind::Offered).0;
    let mut worker = engine.open(false);
    let passive = worker.accept(offer.token).unwrap();
    assert_eq!(
        wait_for(&mut worker, EventKind::Attached).0.connection,
        passive
    );
    let (event, got) = wait_for(&mut worker, EventKind::PduReceived);
    assert_eq!(event.connection, passive);
    assert_eq!(got, request);
    assert_eq!(wait_for(&mut client, EventKind::PduSent).0.status, 0);

    // A PDU in many fragments, each way.
    let large: Vec<u8> = (0..300_000u32).map(|i| (i * 7 % 251) as u8).collect();
    let (pdu, bytes) = send(passive, 2, &large);
    worker.queue_bytes(&pdu, &bytes).unwrap();
    worker.submit().unwrap();
    assert_eq!(wait_for(&mut client, EventKind::PduReceived).1, large);
    assert_eq!(wait_for(&mut worker, EventKind::PduSent).0.cookie, 2);
    let (pdu, bytes) = send(active, 3, &large);
    client.queue_bytes(&pdu, &bytes).unwrap();
    client.submit().unwrap();
    assert_eq!(wait_for(&mut worker, EventKind::PduReceived).1, large);

    // RDMA WRITE from the server's buffer 0 to two descriptors in the client's buffer 1, then READ
    // back to buffer 2.
    let info = worker.meminfo().unwrap();
    let (rdma, size) = (
        info.layout.rdma.offset,
        u64::from(info.layout.options().rdma_buffer_size),
    );
    info.region.write(rdma as usize, &large).unwrap();
    let one = client
        .register(
            active,
            Segment {
                offset: rdma + size,
                length: 200_000,
            },
            true,
            true,
        )
        .unwrap();
    let two = client
        .register(
            active,
            Segment {
                offset: rdma + size + 400_000,
                length: 200_000,
            },
            true,
            true,
        )
        .unwrap();
    let descriptors = [
        Descriptor {
            length: 100_000,
            ..one
        },
        two,
    ];
    // A token holds for a peer that has been told of it by the connection.
    common::send(&mut client, active, 4, b"tokens");
    assert_eq!(wait_for(&mut worker, EventKind::PduReceived).1, b"tokens");
    let op = RdmaOp {
        connection: passive,
        cookie: 10,
        has_event: true,
        is_lazy: false,
        is_read: false,
        invalidate_next: false,
        segments: &[Segment {
            offset: rdma,
            length: 300_000,
        }],
        descriptors: &descriptors,
    };
    worker.queue_rdma(&op).unwrap();
    worker.submit().unwrap();
    let done = wait_for(&mut worker, EventKind::RdmaWriteComplete).0;
    assert_eq!((done.cookie, done.status, done.length), (10, 0, 300_000));
    let back = RdmaOp {
        cookie: 11,
        is_read: true,
        segments: &[Segment {
            offset: rdma + 2 * size,
            length: 300_000,
        }],
        ..op
    };
    worker.queue_rdma(&back).unwrap();
    worker.submit().unwrap();
    let done = wait_for(&mut worker, EventKind::RdmaReadComplete).0;
    assert_eq!((done.cookie, done.status, done.length), (11, 0, 300_000));
    let mut got = vec![0; 300_000];
    worker
        .meminfo()
        .unwrap()
        .region
        .read((rdma + 2 * size) as usize, &mut got)
        .unwrap();
    assert!(got == large, "the data that came back is not what went out");
    client.deregister(active, one.token).unwrap();
    assert_eq!(
        client.deregister(active, one.token).unwrap_err().errno(),
        libc::ENOENT
    );

    // A connection that is closed lets what is under way come to its end first.
    let last = RdmaOp {
        cookie: 12,
        descriptors: &descriptors[1..],
        segments: &[Segment {
            offset: rdma,
            length: 200_000,
        }],
        ..back
    };
    worker.queue_rdma(&last).unwrap();
    worker.disconnect(passive).unwrap();
    let done = wait_for(&mut worker, EventKind::RdmaReadComplete).0;
    assert_eq!((done.cookie, done.status, done.length), (12, 0, 200_000));
    assert_eq!(wait_for(&mut worker, EventKind::Disconnected).0.status, 0);
    let end = wait_for(&mut client, EventKind::Disconnected).0;
    assert_eq!((end.connection, end.status), (active, -libc::ECONNRESET));
}

#[test]
fn no_connection_before_the_parameters() {
    let engine = TestEngine::start();
    let mut parent = engine.open(true);
    let address = engine.listen(&mut parent);
    let mut client = engine.open(false);
    client.connect(&engine.connect_spec(address)).unwrap();
    let end = wait_for(&mut client, EventKind::Disconnected).0;
    assert_eq!(end.status, -libc::ECONNREFUSED);
}
