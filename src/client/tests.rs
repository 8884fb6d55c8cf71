//! A handle against an engine of a few lines: the real rings and messages, no network.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::ipc::{self, ConnectSpec, Fabric, ListenSpec, Params, Reply, Request, SessionSpec};
use crate::ring::{
    flags, AreaOptions, ConnectionRecord, CqEntry, CqKind, Descriptor, EngineSide, Segment,
    SqEntry, SqOp,
};
use crate::sys::{SeqPacket, SeqPacketListener};

const WAIT: Duration = Duration::from_secs(30);

fn area() -> AreaOptions {
    AreaOptions {
        rdma_buffers: 2,
        rdma_buffer_size: 65536,
        max_connections: 4,
        receive_slots: 16,
        receive_slot_size: 512,
        send_area_size: 64 << 10,
    }
}

fn record(id: u64) -> ConnectionRecord {
    ConnectionRecord {
        connection: id,
        fabric: 1,
        local: "127.0.0.1:5445".parse().unwrap(),
        peer: "127.0.0.1:1024".parse().unwrap(),
        max_send_size: 1364,
        max_receive_size: 512,
        max_fragmented_send_size: 131_072,
        max_fragmented_receive_size: 131_072,
        max_read_write_size: 100_000,
        max_rdma_reads: 4,
        receive_credit_max: 8,
    }
}

/// The engine's ends: the test plays the engine on the shared area; a thread answers requests.
struct FakeEngine {
    side: EngineSide,
    requests: mpsc::Receiver<Request>,
    server: std::thread::JoinHandle<SeqPacketListener>,
    free_slots: Vec<u32>,
}

fn socket_path() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!(
        "smbdirect-client-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    std::env::temp_dir().join(name)
}

/// Serves one handle until it is gone.
fn serve(
    listener: SeqPacketListener,
    sides: &mpsc::Sender<EngineSide>,
    requests: &mpsc::Sender<Request>,
) -> SeqPacketListener {
    let socket = loop {
        if let Some(socket) = listener.accept().unwrap() {
            break socket;
        }
        let mut poll = [rustix::event::PollFd::new(
            &listener,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut poll, None).unwrap();
    };
    let mut buffer = vec![0; ipc::MAX_MESSAGE];
    while let Some(message) = receive(&socket, &mut buffer) {
        let reply = match &message.body {
            Request::Open(open) => {
                let mut area = open.area;
                if area.receive_slots == 0 {
                    area.receive_slots = 16;
                }
                let mut side = EngineSide::new(&area).unwrap();
                let version = "test".into();
                let opened = Reply::Opened { area, version };
                let bytes = ipc::encode_reply(message.number, &opened).unwrap();
                socket.send(&bytes, &side.fds()).unwrap();
                side.handed_over();
                sides.send(side).unwrap();
                continue;
            }
            Request::Listen(listen) => Reply::Address(listen.address),
            Request::Export { .. } => Reply::Token([7; 16]),
            Request::Connect(_) => Reply::Connection(1 << 16),
            Request::Accept { token } => Reply::Connection(u64::from(token[0]) << 16),
            Request::Reject { .. } => Reply::Error {
                errno: libc::ENOENT,
                text: "no such offer".into(),
            },
            Request::Register { length, .. } => Reply::Registered(Descriptor {
                offset: 5,
                token: 6,
                length: *length,
            }),
            // Ends like an engine that was killed.
            Request::Unlisten(_) => return listener,
            _ => Reply::Ok,
        };
        let is_close = message.body == Request::Close;
        // The test may have stopped to listen.
        let _ = requests.send(message.body);
        let bytes = ipc::encode_reply(message.number, &reply).unwrap();
        socket.send(&bytes, &[]).unwrap();
        if is_close {
            break;
        }
    }
    listener
}

fn receive(socket: &SeqPacket, buffer: &mut [u8]) -> Option<ipc::Envelope<Request>> {
    while !socket.wait(false, WAIT).unwrap() {}
    let received = socket.recv(buffer).unwrap()?;
    Some(ipc::decode_request(&buffer[..received.len]).unwrap())
}

fn start(listener: SeqPacketListener) -> (FakeEngine, Handle) {
    let (options, engine) = start_engine(listener);
    let handle = Handle::open(options).unwrap();
    (engine(), handle)
}

fn start_engine(listener: SeqPacketListener) -> (OpenOptions, impl FnOnce() -> FakeEngine) {
    let options = OpenOptions {
        socket: listener.path().to_owned(),
        parent: true,
        area: area(),
        timeout: WAIT,
    };
    let (side_to, side_from) = mpsc::channel();
    let (request_to, requests) = mpsc::channel();
    let server = std::thread::spawn(move || serve(listener, &side_to, &request_to));
    let finish = move || FakeEngine {
        side: side_from.recv().unwrap(),
        requests,
        server,
        free_slots: (0..16).rev().collect(),
    };
    (options, finish)
}

fn new_pair() -> (FakeEngine, Handle) {
    start(SeqPacketListener::bind(&socket_path(), 0o600).unwrap())
}

impl FakeEngine {
    fn push(&mut self, entry: &CqEntry) {
        self.publish(entry, true);
    }

    fn publish(&mut self, entry: &CqEntry, urgent: bool) {
        self.side.push_cq(entry).unwrap();
        self.side.publish(urgent).unwrap();
    }

    fn attach(&mut self, id: u64) {
        self.side.write_connection(&record(id)).unwrap();
        self.push(&CqEntry {
            flags: flags::ROUTED,
            ..CqEntry::new(CqKind::Attached, id)
        });
    }

    /// Delivers a PDU in fragments of at most `piece` bytes.
    fn deliver(&mut self, id: u64, pdu: &[u8], piece: usize) {
        let mut left = pdu.len();
        for part in pdu.chunks(piece) {
            self.take_returns();
            left -= part.len();
            let slot = self.free_slots.pop().expect("slots come back");
            let memory = self.side.recv_slot(slot).unwrap();
            memory.write(24, part).unwrap();
            self.push(&CqEntry {
                slot,
                data_offset: 24,
                data_length: part.len() as u32,
                remaining: left as u32,
                ..CqEntry::new(CqKind::Fragment, id)
            });
        }
    }

    fn take_returns(&mut self) {
        while let Some(slot) = self.side.pop_return().unwrap() {
            self.free_slots.push(slot);
        }
        self.side.release().unwrap();
    }

    fn sq(&mut self) -> Option<SqEntry> {
        let entry = self.side.pop_sq().unwrap();
        self.side.release().unwrap();
        entry
    }

    fn complete(&mut self, entry: &SqEntry, status: i32) {
        let kind = match entry.op {
            SqOp::SendPdu => CqKind::Sent,
            _ => CqKind::RdmaDone,
        };
        let done = CqEntry {
            cookie: entry.cookie,
            status,
            data_length: entry.length,
            ..CqEntry::new(kind, entry.connection)
        };
        self.publish(&done, entry.flags & flags::LAZY == 0 || status != 0);
    }

    fn disconnect(&mut self, id: u64, status: i32) {
        self.push(&CqEntry {
            status,
            ..CqEntry::new(CqKind::Disconnected, id)
        });
    }
}

fn is_readable(handle: &Handle) -> bool {
    let fd = handle.fd().unwrap();
    let mut poll = [rustix::event::PollFd::new(
        &fd,
        rustix::event::PollFlags::IN,
    )];
    rustix::event::poll(&mut poll, Some(&rustix::event::Timespec::default())).unwrap() == 1
}

fn next(handle: &mut Handle) -> (Event, Vec<u8>) {
    handle.next_event().unwrap().expect("an event")
}

/// All that is there.
fn take(handle: &mut Handle) -> Vec<Event> {
    std::iter::from_fn(|| handle.next_event().unwrap())
        .map(|(event, _)| event)
        .collect()
}

fn pdu_of(connection: u64, cookie: u64) -> SendPdu {
    SendPdu {
        connection,
        cookie,
        has_event: true,
        invalidate: None,
        length: 0,
    }
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 256) as u8).collect()
}

const ID: u64 = 9 << 16 | 2;

#[test]
fn events_come_in_order_and_the_fd_follows_them() {
    let (mut engine, mut handle) = new_pair();
    assert!(!is_readable(&handle));
    assert!(handle.next_event().unwrap().is_none());
    engine.attach(ID);
    assert!(is_readable(&handle));
    engine.deliver(ID, b"one", 100);
    engine.deliver(ID, b"two", 100);
    let (event, _) = next(&mut handle);
    assert_eq!(
        (event.kind, event.flags),
        (EventKind::Attached, flags::ROUTED)
    );
    assert!(is_readable(&handle), "two are left");
    let mut seen = Vec::new();
    let left = handle
        .take_events(1, &mut |event, pdu| {
            seen.push((event.kind, pdu.unwrap().to_vec()));
            Taken::Done
        })
        .unwrap();
    assert_eq!(left, (1, 1));
    assert_eq!(seen, [(EventKind::PduReceived, b"one".to_vec())]);
    assert!(is_readable(&handle));
    assert_eq!(next(&mut handle).1, b"two");
    assert!(handle.next_event().unwrap().is_none());
    assert!(!is_readable(&handle));
    engine.take_returns();
    assert_eq!(engine.side.lent_slots(), 0, "slots come back at once");
    let statistics = handle.statistics().unwrap();
    assert_eq!((statistics.connections, statistics.pdus_direct), (1, 2));
}

#[test]
fn many_events_cost_few_system_calls() {
    let (mut engine, mut handle) = new_pair();
    engine.attach(ID);
    next(&mut handle);
    handle.next_event().unwrap();
    let before = handle.statistics().unwrap().syscalls;
    for _ in 0..100 {
        for _ in 0..16 {
            engine.deliver(ID, b"x", 100);
        }
        let taken = handle.take_events(16, &mut |_, _| Taken::Done).unwrap();
        assert_eq!(taken, (16, 0));
    }
    let after = handle.statistics().unwrap().syscalls;
    assert!(after - before <= 200, "{}", after - before);
}

#[test]
fn fragments_become_one_pdu_whatever_their_number() {
    let (mut engine, mut handle) = new_pair();
    engine.attach(ID);
    next(&mut handle);
    // Two fragments stay in their slots (half of 8 credits, an eighth of 16 slots).
    let small = bytes(900);
    engine.deliver(ID, &small, 480);
    assert_eq!(next(&mut handle).1, small);
    assert_eq!(handle.statistics().unwrap().pdus_direct, 1);
    // Far more fragments than there are slots.
    let large = bytes(131_072);
    let mut left = large.len();
    for part in large.chunks(480) {
        assert!(handle.next_event().unwrap().is_none());
        engine.take_returns();
        assert!(engine.free_slots.len() >= 14, "the peer must not run dry");
        left -= part.len();
        let slot = engine.free_slots.pop().unwrap();
        let memory = engine.side.recv_slot(slot).unwrap();
        memory.write(20, part).unwrap();
        let is_third = large.len() - left == 3 * 480;
        engine.push(&CqEntry {
            slot,
            data_offset: 20,
            data_length: part.len() as u32,
            remaining: left as u32,
            flags: if is_third { flags::INVALIDATED } else { 0 },
            token: if is_third { 0xabc } else { 0 },
            ..CqEntry::new(CqKind::Fragment, ID)
        });
    }
    let (event, got) = next(&mut handle);
    assert!(got == large);
    assert_eq!(event.invalidated_token, 0xabc);
    assert_eq!(event.flags, flags::INVALIDATED);
    assert_eq!(handle.statistics().unwrap().pdus_reassembled, 1);
    engine.take_returns();
    assert_eq!(engine.side.lent_slots(), 0);
}

#[test]
fn a_pdu_that_does_not_fit_stays() {
    let (mut engine, mut handle) = new_pair();
    engine.attach(ID);
    engine.deliver(ID, &bytes(300), 480);
    engine.deliver(ID, b"small", 480);
    let mut take = |max: usize, room: u32| {
        let mut seen = Vec::new();
        let counts = handle.take_events(max, &mut |event, _| {
            seen.push((event.kind, event.length));
            if event.length > room {
                Taken::TooSmall
            } else {
                Taken::Done
            }
        });
        (counts.unwrap(), seen)
    };
    let attached = (EventKind::Attached, 0);
    let large = (EventKind::PduReceived, 300);
    let small = (EventKind::PduReceived, 5);
    assert_eq!(take(8, 100), ((2, 2), vec![attached, large]));
    assert_eq!(take(8, 299), ((1, 2), vec![large]));
    assert_eq!(take(8, 300), ((2, 0), vec![large, small]));
}

#[test]
fn a_stopped_connection_keeps_its_pdus() {
    let (mut engine, mut handle) = new_pair();
    engine.attach(ID);
    engine.deliver(ID, b"one", 100);
    next(&mut handle);
    engine.deliver(ID, b"two", 100);
    // One is in the queue, one still in the ring.
    handle.take_events(0, &mut |_, _| Taken::Done).unwrap();
    engine.deliver(ID, b"three", 100);
    handle.set_receive(ID, false).unwrap();
    assert!(handle.next_event().unwrap().is_none());
    assert!(!is_readable(&handle));
    engine.deliver(ID, b"four", 100);
    assert!(handle.next_event().unwrap().is_none());
    engine.take_returns();
    assert_eq!(engine.side.lent_slots(), 4, "the peer gets no credits");
    handle.set_receive(ID, true).unwrap();
    assert!(is_readable(&handle), "without any sign of the engine");
    for expected in [&b"one"[..], b"two", b"three", b"four"] {
        assert!(is_readable(&handle));
        assert_eq!(next(&mut handle).1, expected);
    }
    assert!(handle.next_event().unwrap().is_none());
    assert!(!is_readable(&handle));
    // The end of the connection is told even while it is stopped, and its PDUs go.
    handle.set_receive(ID, false).unwrap();
    engine.deliver(ID, b"five", 100);
    engine.disconnect(ID, -libc::ECONNRESET);
    let (event, _) = next(&mut handle);
    assert_eq!(event.kind, EventKind::Disconnected);
    assert_eq!(event.status, -libc::ECONNRESET);
    assert!(handle.next_event().unwrap().is_none());
    engine.take_returns();
    assert_eq!(engine.side.lent_slots(), 0);
    let error = handle.set_receive(ID, true).unwrap_err();
    assert_eq!(error.errno(), libc::ENOTCONN);
}

#[test]
fn pdus_are_copied_and_completed() {
    let (mut engine, mut handle) = new_pair();
    let error = handle.queue_bytes(&pdu_of(ID, 1), b"x").unwrap_err();
    assert_eq!(error.errno(), libc::ENOTCONN);
    engine.attach(ID);
    next(&mut handle);
    let data = bytes(10_000);
    handle.queue_bytes(&pdu_of(ID, 77), &data).unwrap();
    assert!(engine.sq().is_none(), "not submitted yet");
    let silent = SendPdu {
        has_event: false,
        invalidate: Some(5),
        ..pdu_of(ID, 78)
    };
    handle.queue_bytes(&silent, b"silent").unwrap();
    handle.queue_bytes(&silent, b"failing").unwrap();
    handle.submit().unwrap();
    let first = engine.sq().unwrap();
    let memory = engine.side.send_slice(first.offset, first.length).unwrap();
    assert!(memory.to_vec() == data);
    let second = engine.sq().unwrap();
    let expected = flags::INVALIDATE | flags::LAZY;
    assert_eq!((second.flags, second.token), (expected, 5));
    let third = engine.sq().unwrap();
    engine.complete(&first, 0);
    engine.complete(&second, 0);
    engine.complete(&third, -libc::ECONNRESET);
    // A completion that no honest engine sends changes nothing.
    engine.complete(&first, 0);
    let (event, _) = next(&mut handle);
    assert_eq!(
        (event.kind, event.cookie, event.status),
        (EventKind::PduSent, 77, 0)
    );
    let (event, _) = next(&mut handle);
    assert_eq!((event.cookie, event.status), (78, -libc::ECONNRESET));
    assert!(handle.next_event().unwrap().is_none());
    for (length, errno) in [
        (0, libc::EINVAL),
        (131_073, libc::EMSGSIZE),
        (65537, libc::EMSGSIZE),
    ] {
        let error = handle
            .queue_bytes(&pdu_of(ID, 1), &bytes(length))
            .unwrap_err();
        assert_eq!(error.errno(), errno, "{error}");
    }
}

#[test]
fn back_pressure_ends_with_a_writable_event() {
    let (mut engine, mut handle) = new_pair();
    engine.attach(ID);
    next(&mut handle);
    // 16 pages: five PDUs of three pages.
    let data = bytes(3 * 4096);
    let mut sent = 0;
    let error = loop {
        match handle.queue_bytes(&pdu_of(ID, sent), &data) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((sent, error.errno()), (5, libc::EAGAIN));
    handle.submit().unwrap();
    assert!(handle.next_event().unwrap().is_none());
    assert!(!is_readable(&handle));
    let first = engine.sq().unwrap();
    engine.complete(&first, 0);
    assert!(is_readable(&handle));
    assert_eq!(next(&mut handle).0.kind, EventKind::PduSent);
    assert_eq!(next(&mut handle).0.kind, EventKind::Writable);
    assert!(handle.next_event().unwrap().is_none());
    assert!(!is_readable(&handle));
    handle.queue_bytes(&pdu_of(ID, 9), &data).unwrap();
    assert_eq!(handle.statistics().unwrap().back_pressure, 1);
}

#[test]
fn operations_are_bounded_until_their_events_are_taken() {
    let (mut engine, mut handle) = new_pair();
    engine.attach(ID);
    next(&mut handle);
    let max = u64::from(engine.side.layout().max_operations());
    let mut begun = 0;
    // Pages come back at completion, operations when their event was taken.
    loop {
        match handle.queue_bytes(&pdu_of(ID, begun), b"x") {
            Ok(()) => begun += 1,
            Err(error) => {
                assert_eq!(error.errno(), libc::EAGAIN);
                handle.submit().unwrap();
                let Some(first) = engine.sq() else { break };
                engine.complete(&first, 0);
                while let Some(entry) = engine.sq() {
                    engine.complete(&entry, 0);
                }
                // Only looks.
                handle.take_events(0, &mut |_, _| Taken::Done).unwrap();
            }
        }
    }
    assert_eq!(begun, max);
    let mut cookies = Vec::new();
    let mut is_writable = false;
    while let Some((event, _)) = handle.next_event().unwrap() {
        match event.kind {
            EventKind::PduSent => cookies.push(event.cookie),
            EventKind::Writable => is_writable = true,
            other => panic!("{other:?}"),
        }
    }
    assert!(cookies.into_iter().eq(0..max));
    assert!(is_writable);
    handle.queue_bytes(&pdu_of(ID, 1), b"x").unwrap();
}

#[test]
fn rdma_operations_are_checked_and_described() {
    let (mut engine, mut handle) = new_pair();
    engine.attach(ID);
    next(&mut handle);
    let start = handle.meminfo().unwrap().layout.rdma.offset;
    let segments = [
        Segment {
            offset: start + 100,
            length: 4000,
        },
        Segment {
            offset: start + 131_000,
            length: 72,
        },
    ];
    let descriptors = [
        Descriptor {
            offset: 1,
            token: 0xa,
            length: 4000,
        },
        Descriptor {
            offset: 2,
            token: 0xb,
            length: 100,
        },
    ];
    let good = RdmaOp {
        connection: ID,
        cookie: 5,
        has_event: true,
        is_read: false,
        is_lazy: false,
        invalidate_next: true,
        segments: &segments,
        descriptors: &descriptors,
    };
    handle.queue_rdma(&good).unwrap();
    handle.queue_bytes(&pdu_of(ID, 6), b"response").unwrap();
    handle.queue_bytes(&pdu_of(ID, 7), b"another").unwrap();
    handle.submit().unwrap();
    let entry = engine.sq().unwrap();
    assert_eq!(entry.op, SqOp::RdmaWrite);
    let (got_segments, got_descriptors) = engine.side.rdma_arrays(&entry).unwrap();
    assert_eq!(got_segments, segments);
    assert_eq!(got_descriptors, descriptors);
    let response = engine.sq().unwrap();
    assert_eq!((response.flags, response.token), (flags::INVALIDATE, 0xa));
    assert_eq!(engine.sq().unwrap().flags, 0, "only the next PDU");
    engine.complete(&entry, 0);
    let (event, _) = next(&mut handle);
    assert_eq!(
        (event.kind, event.cookie),
        (EventKind::RdmaWriteComplete, 5)
    );

    let bad_segments: [&[Segment]; 4] = [
        &[],
        &[Segment {
            offset: start,
            length: 0,
        }],
        &[Segment {
            offset: start - 1,
            length: 10,
        }],
        &[Segment {
            offset: start + 131_000,
            length: 73,
        }],
    ];
    for segments in bad_segments {
        let error = handle.queue_rdma(&RdmaOp { segments, ..good }).unwrap_err();
        assert_eq!(error.errno(), libc::EINVAL, "{error}");
    }
    let short = RdmaOp {
        descriptors: &descriptors[..1],
        ..good
    };
    assert_eq!(handle.queue_rdma(&short).unwrap_err().errno(), libc::EINVAL);
    let long = [Segment {
        offset: start,
        length: 100_001,
    }];
    let long = RdmaOp {
        segments: &long,
        ..good
    };
    assert_eq!(
        handle.queue_rdma(&long).unwrap_err().errno(),
        libc::EMSGSIZE
    );
}

#[test]
fn a_disconnect_follows_what_was_queued() {
    let (mut engine, mut handle) = new_pair();
    engine.attach(ID);
    next(&mut handle);
    handle.queue_bytes(&pdu_of(ID, 1), b"last words").unwrap();
    handle.disconnect(ID).unwrap();
    handle.disconnect(ID).unwrap();
    let error = handle.queue_bytes(&pdu_of(ID, 2), b"x").unwrap_err();
    assert_eq!(error.errno(), libc::ENOTCONN);
    let send = engine.sq().unwrap();
    assert_eq!(engine.sq().unwrap().op, SqOp::Disconnect);
    assert!(engine.sq().is_none(), "asked for once");
    engine.complete(&send, 0);
    engine.disconnect(ID, 0);
    assert_eq!(next(&mut handle).0.kind, EventKind::PduSent);
    let (event, _) = next(&mut handle);
    assert_eq!((event.kind, event.status), (EventKind::Disconnected, 0));
    assert_eq!(handle.disconnect(ID).unwrap_err().errno(), libc::ENOTCONN);
    assert_eq!(handle.statistics().unwrap().connections, 0);
}

#[test]
fn connections_are_made_accepted_and_exported() {
    let (mut engine, mut handle) = new_pair();
    engine.side.write_connection(&record(1 << 16)).unwrap();
    engine.side.write_connection(&record(3 << 16 | 1)).unwrap();
    let spec = ConnectSpec {
        fabric: Fabric::SoftIwarp,
        address: "127.0.0.1:5445".parse().unwrap(),
        crc: false,
        mpa_revision: 2,
        timeout_msec: 1000,
        params: Params::default(),
    };
    let active = handle.connect(&spec).unwrap();
    assert_eq!(active, 1 << 16);
    let error = handle.queue_bytes(&pdu_of(active, 1), b"x").unwrap_err();
    assert_eq!(error.errno(), libc::ENOTCONN, "not attached yet");
    engine.attach(active);
    next(&mut handle);
    handle.queue_bytes(&pdu_of(active, 1), b"x").unwrap();
    let (info, _) = handle.connection_info(active).unwrap();
    assert_eq!(info, record(active));

    assert_eq!(handle.reject([1; 16]).unwrap_err().errno(), libc::ENOENT);
    // An answer that names a connection which the table lacks.
    assert_eq!(handle.accept([8; 16]).unwrap_err().errno(), libc::EPROTO);

    engine.deliver(active, b"unread", 100);
    let error = handle.export(active).unwrap_err();
    assert_eq!(error.errno(), libc::EBUSY);
    let cancelled = Request::CancelExport { connection: active };
    assert!(engine
        .requests
        .try_iter()
        .any(|request| request == cancelled));
    assert!(is_readable(&handle));
    assert_eq!(next(&mut handle).1, b"unread");
    assert_eq!(handle.export(active).unwrap(), [7; 16]);
    handle.set_receive(active, true).unwrap();
    assert!(engine
        .requests
        .try_iter()
        .any(|request| request == cancelled));
}

#[test]
fn buffers_are_registered() {
    let (mut engine, mut handle) = new_pair();
    engine.attach(ID);
    next(&mut handle);
    let offset = handle.meminfo().unwrap().layout.rdma.offset;
    let segment = Segment { offset, length: 10 };
    let descriptor = handle.register(ID, segment, true, false).unwrap();
    assert_eq!((descriptor.token, descriptor.length), (6, 10));
    handle.deregister(ID, 6).unwrap();
    let outside = Segment {
        offset: 0,
        length: 10,
    };
    for (segment, read) in [(outside, true), (segment, false)] {
        let error = handle.register(ID, segment, read, false).unwrap_err();
        assert_eq!(error.errno(), libc::EINVAL);
    }
}

#[test]
fn a_lost_engine_is_told_in_order_and_found_again() {
    let (mut engine, mut handle) = new_pair();
    let params = Params::default();
    handle.set_params(&params).unwrap();
    let bad = Params {
        max_send_size: 1,
        ..params.clone()
    };
    assert_eq!(handle.set_params(&bad).unwrap_err().errno(), libc::EINVAL);
    let listen = ListenSpec {
        fabric: Fabric::SoftIwarp,
        address: "127.0.0.1:5445".parse().unwrap(),
        crc: false,
    };
    handle.listen(&listen).unwrap();
    let session = SessionSpec {
        session_id: Some(1),
        client_guid: Some([2; 16]),
        remove: false,
    };
    handle.set_session(&session).unwrap();
    assert_eq!(handle.reconnect().unwrap_err().errno(), libc::EALREADY);
    engine.attach(ID);
    next(&mut handle);
    handle
        .queue_bytes(&pdu_of(ID, 5), b"never completed")
        .unwrap();
    handle.submit().unwrap();
    engine.deliver(ID, b"before the end", 100);
    assert!(handle.unlisten(&listen).is_err(), "the engine dies of it");
    let FakeEngine { side, server, .. } = engine;
    drop(side);
    let listener = server.join().unwrap();
    assert!(is_readable(&handle));
    let (event, pdu) = next(&mut handle);
    assert_eq!(
        (event.kind, &pdu[..]),
        (EventKind::PduReceived, &b"before the end"[..])
    );
    assert_eq!(handle.reconnect().unwrap_err().errno(), libc::EBUSY);
    let (event, _) = next(&mut handle);
    assert_eq!(
        (event.kind, event.status),
        (EventKind::PduSent, -libc::ENETDOWN)
    );
    let (event, _) = next(&mut handle);
    assert_eq!(
        (event.kind, event.status),
        (EventKind::Disconnected, -libc::ENETDOWN)
    );
    assert!(is_readable(&handle));
    assert_eq!(next(&mut handle).0.kind, EventKind::EngineLost);
    assert!(handle.next_event().unwrap().is_none());
    assert!(
        !is_readable(&handle),
        "a lost engine does not keep it readable"
    );
    assert_eq!(
        handle.set_params(&params).unwrap_err().errno(),
        libc::ENOTCONN
    );

    let before = rustix::fs::fstat(handle.fd().unwrap()).unwrap().st_ino;
    let (_, finish) = start_engine(listener);
    handle.reconnect().unwrap();
    let mut engine = finish();
    assert_eq!(
        rustix::fs::fstat(handle.fd().unwrap()).unwrap().st_ino,
        before
    );
    let replayed: Vec<_> = engine.requests.try_iter().collect();
    assert!(replayed.contains(&Request::SetParams(params)));
    assert!(replayed.contains(&Request::Listen(listen)));
    assert_eq!(replayed.len(), 4);
    engine.attach(ID);
    assert!(is_readable(&handle));
    assert_eq!(next(&mut handle).0.kind, EventKind::Attached);
    handle.close().unwrap();
    engine.server.join().unwrap();
}

#[test]
fn an_engine_that_just_vanishes_is_noticed() {
    let (mut engine, mut handle) = new_pair();
    engine.attach(ID);
    next(&mut handle);
    assert!(handle.next_event().unwrap().is_none());
    drop(engine.side);
    assert!(is_readable(&handle));
    assert_eq!(next(&mut handle).0.kind, EventKind::Disconnected);
    assert_eq!(next(&mut handle).0.kind, EventKind::EngineLost);
    handle.close().unwrap();
}

#[test]
fn entries_that_make_no_sense_end_the_link_not_the_process() {
    let (mut engine, mut handle) = new_pair();
    engine.attach(ID);
    next(&mut handle);
    engine.push(&CqEntry {
        slot: 3,
        data_offset: 500,
        data_length: 13,
        ..CqEntry::new(CqKind::Fragment, ID)
    });
    assert_eq!(next(&mut handle).0.kind, EventKind::Disconnected);
    assert_eq!(next(&mut handle).0.kind, EventKind::EngineLost);
}

#[test]
fn opening_fails_with_a_reason() {
    let options = |socket| OpenOptions {
        socket,
        ..OpenOptions::default()
    };
    let error = Handle::open(options(socket_path())).unwrap_err();
    assert_eq!(error.errno(), libc::ENOENT);
    assert!(error.to_string().contains("smbdirect engine"), "{error}");
    let bad = OpenOptions {
        area: AreaOptions {
            rdma_buffers: 5000,
            ..area()
        },
        ..options(socket_path())
    };
    let error = Handle::open(bad).unwrap_err();
    assert_eq!(error.errno(), libc::EINVAL);
    assert!(
        error.to_string().contains("rdma_buffers is 5000"),
        "{error}"
    );
}

#[test]
fn a_forked_child_is_refused() {
    let (mut engine, handle) = new_pair();
    engine.attach(ID);
    let mut handle = Some(handle);
    let status = crate::sys::in_forked_child(|| {
        let mut inherited = handle.take().unwrap();
        let refused = |result: Result<(), ClientError>| matches!(result, Err(error) if error.errno() == libc::EPERM);
        let ok = refused(inherited.next_event().map(drop))
            && refused(inherited.fd().map(drop))
            && refused(inherited.meminfo().map(drop))
            && refused(inherited.disconnect(ID))
            && refused(inherited.queue_bytes(&pdu_of(ID, 1), b"x"))
            && refused(inherited.export(ID).map(drop));
        let is_refused = refused(inherited.close());
        i32::from(!ok || !is_refused || inherited.is_opener())
    });
    assert_eq!(status, 0);
    // The opener notices nothing.
    let mut handle = handle.take().unwrap();
    assert!(is_readable(&handle));
    assert_eq!(next(&mut handle).0.kind, EventKind::Attached);
    engine.deliver(ID, b"still here", 100);
    assert_eq!(next(&mut handle).1, b"still here");
    handle.close().unwrap();
    assert!(engine.requests.try_iter().any(|r| r == Request::Close));
    assert!(engine.side.bell().as_fd().try_clone_to_owned().is_ok());
}

#[test]
fn lazy_completions_wait_for_others_unless_room_hangs_on_them() {
    let (mut engine, mut handle) = new_pair();
    engine.attach(ID);
    assert_eq!(next(&mut handle).0.kind, EventKind::Attached);
    let start = handle.meminfo().unwrap().layout.rdma.offset;
    let write = |handle: &mut Handle, cookie| {
        let op = RdmaOp {
            connection: ID,
            cookie,
            has_event: true,
            is_lazy: true,
            is_read: false,
            invalidate_next: false,
            segments: &[Segment {
                offset: start,
                length: 10,
            }],
            descriptors: &[Descriptor {
                offset: 0,
                token: 1,
                length: 10,
            }],
        };
        handle.queue_rdma(&op).unwrap();
        let quiet = SendPdu {
            has_event: false,
            ..pdu_of(ID, cookie)
        };
        handle.queue_bytes(&quiet, b"response").unwrap();
        handle.submit().unwrap();
    };
    let complete_two = |engine: &mut FakeEngine| {
        for _ in 0..2 {
            let entry = engine.sq().unwrap();
            assert_ne!(entry.flags & flags::LAZY, 0);
            engine.complete(&entry, 0);
        }
    };
    let wait = |handle: &mut Handle| {
        assert!(take(handle).is_empty());
        assert!(!is_readable(handle));
    };
    write(&mut handle, 1);
    wait(&mut handle);
    complete_two(&mut engine);
    assert!(!is_readable(&handle), "nothing to wake up for");
    engine.deliver(ID, b"the next request", 100);
    assert!(is_readable(&handle));
    let kinds: Vec<_> = take(&mut handle).iter().map(|it| it.kind).collect();
    assert_eq!(
        kinds,
        [EventKind::RdmaWriteComplete, EventKind::PduReceived]
    );

    // Who waits for the memory says so, before or after.
    write(&mut handle, 2);
    wait(&mut handle);
    handle.set_lazy(false).unwrap();
    assert!(!is_readable(&handle));
    complete_two(&mut engine);
    assert!(is_readable(&handle));
    assert_eq!(next(&mut handle).0.cookie, 2);
    handle.set_lazy(true).unwrap();
    write(&mut handle, 3);
    wait(&mut handle);
    complete_two(&mut engine);
    assert!(!is_readable(&handle));
    handle.set_lazy(false).unwrap();
    assert!(is_readable(&handle), "it is there already");
    assert_eq!(next(&mut handle).0.cookie, 3);
    handle.set_lazy(true).unwrap();

    // A failure is told at once.
    write(&mut handle, 4);
    wait(&mut handle);
    let entry = engine.sq().unwrap();
    engine.complete(&entry, -libc::EACCES);
    assert!(is_readable(&handle));
    assert_eq!(next(&mut handle).0.status, -libc::EACCES);
    let entry = engine.sq().unwrap();
    engine.complete(&entry, 0);
    wait(&mut handle);

    // So is what gives room to somebody who was refused.
    let quiet = SendPdu {
        has_event: false,
        ..pdu_of(ID, 5)
    };
    while handle.queue_bytes(&quiet, b"one of many").is_ok() {}
    handle.submit().unwrap();
    wait(&mut handle);
    let entry = engine.sq().unwrap();
    engine.complete(&entry, 0);
    assert!(is_readable(&handle));
    assert_eq!(next(&mut handle).0.kind, EventKind::Writable);
}
