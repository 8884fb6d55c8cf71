//! RDMA READs and WRITEs that are in flight when the worker, the engine or the peer goes.
//!
//! The peer is an endpoint of this process that is not polled once it has named its memory. With
//! software iWARP it takes nothing from its socket then and answers nothing, so that what was posted
//! stays in flight. An RDMA device answers all the same, as fast as it can.

#[path = "common/engine_host.rs"]
mod common;
#[path = "common/engine_process.rs"]
mod engine_process;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use common::{
    is_verbs, negotiate, open_at, send, status_at, test_kind, until_end, until_status, wait_for,
    wait_readable, PATIENCE,
};
use engine_process::{register, Bystanders, EngineProcess};
use smbdirect::client::{Event, EventKind, Handle, RdmaOp};
use smbdirect::fabric::{Access, ConnectOptions};
use smbdirect::mem::{MemSlice, Region};
use smbdirect::peer::{Config, Endpoint, PeerEvent};
use smbdirect::ring::{Descriptor, Segment};

/// Names the control socket for the worker process; see [`worker_process`].
const WORKER: &str = "SMBDIRECT_TEST_RDMA_WORKER";
/// `read`, `write` or `answer`, for the worker process.
const DIRECTION: &str = "SMBDIRECT_TEST_RDMA_DIRECTION";
const GUID: [u8; 16] = *b"guid-of-a-worker";
const SIZE: usize = 1 << 20;
/// More than the socket buffers of a connection hold.
const OPERATIONS: u64 = 64;
/// More than the engine starts of one connection at once, so that some still wait there.
const BEFORE_ANSWER: u64 = 400;
const PAGE: usize = 4096;
/// What tells of a peer that has gone without a word: TCP's end, or a reset of TCP.
const PEER_GONE: [i32; 2] = [-libc::ECONNRESET, -libc::ECONNABORTED];

/// The endpoint that stops to take part.
struct Peer {
    endpoint: Endpoint,
    memory: MemSlice,
}

impl Peer {
    /// Connects to the handle that has registered [`GUID`], and tells it where memory is.
    fn connect(address: SocketAddr) -> Self {
        let config = Config {
            kind: test_kind(),
            ..Config::default()
        };
        let mut endpoint = Endpoint::new(config).unwrap();
        let memory = MemSlice::new(&Region::anonymous(SIZE).unwrap(), 0, SIZE).unwrap();
        let options = ConnectOptions {
            peer: address,
            crc: false,
            mpa_revision: 2,
            ird: 32,
            ord: 32,
            private_data: Vec::new(),
            timeout: PATIENCE,
        };
        let id = endpoint.connect(&options).unwrap();
        let mut peer = Self { endpoint, memory };
        peer.until(|event| matches!(event, PeerEvent::Connected { .. }));
        let access = Access {
            remote_read: true,
            remote_write: true,
        };
        let memory = peer.memory.clone();
        let there = peer.endpoint.register(id, memory, access).unwrap();
        let mut named = there.offset.to_le_bytes().to_vec();
        named.extend(there.token.to_le_bytes());
        for (cookie, pdu) in [negotiate(GUID, &[0x0300]), named].iter().enumerate() {
            let cookie = cookie as u64;
            peer.endpoint.send(id, &[pdu], cookie, None).unwrap();
            peer.until(
                |event| matches!(event, PeerEvent::Sent { cookie: sent, .. } if *sent == cookie),
            );
        }
        peer
    }

    fn until(&mut self, is_it: impl Fn(&PeerEvent) -> bool) {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "the peer waits in vain");
            let mut events = Vec::new();
            self.endpoint.poll(Some(PATIENCE), &mut events).unwrap();
            if events.iter().any(&is_it) {
                return;
            }
        }
    }

    /// Takes part again until its connection has ended.
    fn until_end(mut self) {
        self.until(|event| matches!(event, PeerEvent::Disconnected { .. }));
    }
}

/// Takes what [`Peer::connect`] sends: the connection, and the peer's memory.
fn await_memory(handle: &mut Handle) -> (u64, Descriptor) {
    wait_for(handle, EventKind::PduReceived);
    let (event, bytes) = wait_for(handle, EventKind::PduReceived);
    let (offset, token) = bytes.split_at(8);
    let there = Descriptor {
        offset: u64::from_le_bytes(offset.try_into().unwrap()),
        token: u32::from_le_bytes(token.try_into().unwrap()),
        length: SIZE as u32,
    };
    (event.connection, there)
}

/// Our RDMA buffers, as far as they are used.
fn our_memory(handle: &Handle) -> Segment {
    Segment {
        offset: handle.meminfo().unwrap().layout.rdma.offset,
        length: SIZE as u64,
    }
}

/// Queues one operation between `here` and `there`.
fn queue(
    handle: &mut Handle,
    to: u64,
    cookie: u64,
    is_read: bool,
    here: Segment,
    there: Descriptor,
) {
    let op = RdmaOp {
        connection: to,
        cookie,
        has_event: true,
        is_lazy: false,
        is_read,
        invalidate_next: false,
        segments: &[here],
        descriptors: &[there],
    };
    handle.queue_rdma(&op).unwrap();
}

/// Submits operations that stay in flight.
fn start_operations(handle: &mut Handle, is_read: bool) -> u64 {
    let (connection, there) = await_memory(handle);
    let here = our_memory(handle);
    for cookie in 0..OPERATIONS {
        queue(handle, connection, cookie, is_read, here, there);
    }
    handle.submit().unwrap();
    connection
}

/// Submits more RDMA WRITEs than the engine starts at once, one that fills the last page of the
/// peer's memory, and the answer that tells that all is there.
fn start_answer(handle: &mut Handle) {
    let (connection, there) = await_memory(handle);
    let here = our_memory(handle);
    let info = handle.meminfo().unwrap();
    let last = SIZE - PAGE;
    let page = here.offset as usize + last;
    info.region.write(page, &[0x5a; PAGE]).unwrap();
    let before = |mut here: Segment, mut there: Descriptor| {
        (here.length, there.length) = (last as u64, last as u32);
        (here, there)
    };
    for cookie in 0..BEFORE_ANSWER {
        let (here, there) = before(here, there);
        queue(handle, connection, cookie, false, here, there);
    }
    let here = Segment {
        offset: here.offset + last as u64,
        length: PAGE as u64,
    };
    let there = Descriptor {
        offset: there.offset + last as u64,
        length: PAGE as u32,
        ..there
    };
    queue(handle, connection, BEFORE_ANSWER, false, here, there);
    send(handle, connection, BEFORE_ANSWER + 1, b"all is there");
}

/// The events of a handle up to and with the end of its connection.
fn all_until_end(handle: &mut Handle) -> Vec<Event> {
    let start = Instant::now();
    let mut events = Vec::new();
    loop {
        while let Some((event, _)) = handle.next_event().unwrap() {
            events.push(event);
            if event.kind == EventKind::Disconnected {
                return events;
            }
        }
        assert!(start.elapsed() < PATIENCE, "the connection goes on");
        wait_readable(handle);
    }
}

/// Each operation is told once, in any case before the end, and those that were cut off with the
/// error of the end.
fn check_completions(events: &[Event], is_read: bool, expected: &[i32]) {
    let kind = if is_read {
        EventKind::RdmaReadComplete
    } else {
        EventKind::RdmaWriteComplete
    };
    let (end, operations) = events.split_last().unwrap();
    assert_eq!(end.kind, EventKind::Disconnected);
    assert!(expected.contains(&end.status), "{end:?}");
    let mut cookies: Vec<_> = operations
        .iter()
        .filter(|event| event.kind == kind)
        .map(|event| event.cookie)
        .collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..OPERATIONS).collect::<Vec<_>>());
    let cut_off = operations.iter().filter(|event| event.status != 0);
    let statuses: Vec<_> = cut_off.map(|event| event.status).collect();
    // A device of the peer answers by itself, and refuses when memory goes before the connection.
    let refused = is_verbs().then_some(-libc::EACCES);
    assert!(
        statuses
            .iter()
            .all(|one| expected.contains(one) || refused == Some(*one)),
        "{statuses:?}"
    );
    if is_verbs() {
        return;
    }
    assert!(!statuses.is_empty(), "nothing was in flight");
    if is_read {
        assert_eq!(statuses.len() as u64, OPERATIONS, "who answered them?");
    }
}

/// Run by another test as a process that is to be killed.
#[test]
fn worker_process() {
    let Some(socket) = std::env::var_os(WORKER) else {
        return;
    };
    let direction = std::env::var(DIRECTION).unwrap();
    let mut handle = open_at(socket.as_ref(), false);
    register(&mut handle, GUID);
    println!("registered");
    match direction.as_str() {
        "answer" => start_answer(&mut handle),
        direction => drop(start_operations(&mut handle, direction == "read")),
    }
    println!("in flight");
    wait_for(&mut handle, EventKind::EngineLost);
}

/// Starts [`worker_process`]; it has registered on return.
fn start_worker(
    engine: &EngineProcess,
    direction: &str,
) -> (Child, impl Iterator<Item = std::io::Result<String>>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["worker_process", "--exact", "--nocapture"])
        .env(WORKER, &engine.socket)
        .env(DIRECTION, direction)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("registered")));
    (child, lines)
}

#[test]
fn a_killed_worker() {
    let engine = EngineProcess::new("rdma-worker");
    let (_parent, address) = engine.parent();
    let mut bystanders = Bystanders::new(&engine, address);
    let base = (engine.fds(), engine.areas());
    for direction in ["read", "write"] {
        let before = status_at(&engine.socket).engine.counters.submissions;
        let (mut child, mut lines) = start_worker(&engine, direction);
        let peer = Peer::connect(address);
        assert!(lines.any(|line| line.unwrap().ends_with("in flight")));
        until_status(&engine.socket, "submitted", |s| {
            s.engine.counters.submissions >= before + OPERATIONS
        });
        child.kill().unwrap();
        child.wait().unwrap();
        bystanders.check();
        // The peer is still silent: nobody waits for it longer than for the last sends.
        until_status(&engine.socket, "rid of the worker", |s| {
            s.connections.len() == 2 && s.handles.len() == 3
        });
        engine.wait_for_no_more_than(base);
        peer.until_end();
        bystanders.check();
    }
}

/// An answer never comes without the data it tells of, also when the memory that had the data went
/// with its process. (Found as wrong bytes in a READ that succeeded, when smbd's parent was killed.)
#[test]
fn a_killed_worker_whose_answer_waits() {
    let engine = EngineProcess::new("rdma-answer");
    let (_parent, address) = engine.parent();
    let (mut child, mut lines) = start_worker(&engine, "answer");
    let mut peer = Peer::connect(address);
    assert!(lines.any(|line| line.unwrap().ends_with("in flight")));
    until_status(&engine.socket, "submitted", |s| {
        s.engine.counters.submissions >= BEFORE_ANSWER + 2
    });
    child.kill().unwrap();
    child.wait().unwrap();
    until_status(&engine.socket, "rid of the worker", |s| {
        s.handles.len() == 1
    });
    let mut has_answer = false;
    let mut has_ended = false;
    let start = Instant::now();
    while !has_ended {
        let mut events = Vec::new();
        peer.endpoint.poll(Some(PATIENCE), &mut events).unwrap();
        assert!(start.elapsed() < PATIENCE, "the peer waits in vain");
        for event in events {
            match event {
                PeerEvent::Pdu { .. } => {
                    let mut page = [0; PAGE];
                    peer.memory.read(SIZE - PAGE, &mut page).unwrap();
                    assert_eq!(page, [0x5a; PAGE], "an answer without its data");
                    has_answer = true;
                }
                PeerEvent::Disconnected { .. } => has_ended = true,
                _ => {}
            }
        }
    }
    println!("answered: {has_answer}");
}

#[test]
fn a_peer_that_goes() {
    let engine = EngineProcess::new("rdma-peer");
    let (_parent, address) = engine.parent();
    let mut bystanders = Bystanders::new(&engine, address);
    let mut worker = open_at(&engine.socket, false);
    register(&mut worker, GUID);
    let base = (engine.fds(), engine.areas());
    for is_read in [true, false] {
        let peer = Peer::connect(address);
        start_operations(&mut worker, is_read);
        drop(peer);
        let events = all_until_end(&mut worker);
        check_completions(&events, is_read, &PEER_GONE);
        until_status(&engine.socket, "rid of the peer", |s| {
            s.connections.len() == 2
        });
        engine.wait_for_no_more_than(base);
        bystanders.check();
    }
    // The handle is as good as new.
    let peer = Peer::connect(address);
    let connection = start_operations(&mut worker, true);
    worker.disconnect(connection).unwrap();
    peer.until_end();
    let events = all_until_end(&mut worker);
    assert_eq!(events.last().unwrap().kind, EventKind::Disconnected);
}

#[test]
fn a_killed_engine() {
    for is_read in [true, false] {
        let mut engine = EngineProcess::new(&format!("rdma-engine-{is_read}"));
        let (mut parent, address) = engine.parent();
        let mut worker = open_at(&engine.socket, false);
        register(&mut worker, GUID);
        let peer = Peer::connect(address);
        start_operations(&mut worker, is_read);
        until_status(&engine.socket, "submitted", |s| {
            s.engine.counters.submissions >= OPERATIONS
        });
        engine.kill();
        let events = all_until_end(&mut worker);
        check_completions(&events, is_read, &[-libc::ENETDOWN]);
        peer.until_end();
        for handle in [&mut parent, &mut worker] {
            wait_for(handle, EventKind::EngineLost);
        }
        let _second = EngineProcess::start(engine.socket.clone());
        for handle in [&mut parent, &mut worker] {
            handle.reconnect().unwrap();
        }
        let peer = Peer::connect(address);
        start_operations(&mut worker, is_read);
        drop(peer);
        let status = until_end(&mut worker).1;
        assert!(PEER_GONE.contains(&status), "{status}");
    }
}
