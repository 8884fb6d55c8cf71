//! What dies, lies or stays silent costs its own connections and nothing else. The engine is a
//! process of its own here.

#[path = "common/engine_host.rs"]
mod common;
#[path = "common/engine_process.rs"]
mod engine_process;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use common::{
    binding, connect_and_send, negotiate, open_at, send, test_kind, until_end, until_status,
    wait_for, TestEngine,
};
use engine_process::{register, Bystanders, EngineProcess};
use smbdirect::client::{EventKind, Handle};
use smbdirect::fabric::ConnectOptions;
use smbdirect::ipc::{Params, SessionSpec};
use smbdirect::peer::{Config, Endpoint, PeerEvent};
use smbdirect::wire::NegotiateRequest;

/// Names the control socket for the worker process; see [`worker_process`].
const WORKER: &str = "SMBDIRECT_TEST_WORKER";
const GUID: [u8; 16] = *b"guid-of-a-worker";

/// Run by other tests as a process that is to be killed: it sends without end.
#[test]
fn worker_process() {
    let Some(socket) = std::env::var_os(WORKER) else {
        return;
    };
    let mut handle = open_at(socket.as_ref(), false);
    register(&mut handle, GUID);
    println!("registered");
    let connection = wait_for(&mut handle, EventKind::Attached).0.connection;
    loop {
        send(&mut handle, connection, 1, &[0x5a; 200_000]);
        wait_for(&mut handle, EventKind::PduSent);
    }
}

#[test]
fn a_killed_worker_leaves_nothing_behind() {
    let engine = EngineProcess::new("worker");
    let (_parent, address) = engine.parent();
    let mut bystanders = Bystanders::new(&engine, address);
    let mut client = open_at(&engine.socket, false);
    let handles = until_status(&engine.socket, "quiet", |_| true)
        .handles
        .len();
    let base = (engine.fds(), engine.areas());
    for _ in 0..3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["worker_process", "--exact", "--nocapture"])
            .env(WORKER, &engine.socket)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().ends_with("registered")));
        connect_and_send(&mut client, address, &negotiate(GUID, &[0x0300]));
        wait_for(&mut client, EventKind::PduReceived);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(until_end(&mut client).1, -libc::ECONNRESET);
        until_status(&engine.socket, "as before", |s| {
            s.connections.len() == 2 && s.handles.len() == handles
        });
        engine.wait_for_no_more_than(base);
        bystanders.check();
    }
}

#[test]
fn handles_survive_a_killed_engine() {
    let mut engine = EngineProcess::new("engine");
    let (mut parent, address) = engine.parent();
    let (mut client, mut worker) = (
        open_at(&engine.socket, false),
        open_at(&engine.socket, false),
    );
    register(&mut worker, GUID);
    let request = negotiate(GUID, &[0x0300]);
    let active = connect_and_send(&mut client, address, &request);
    wait_for(&mut worker, EventKind::PduReceived);
    for cookie in 0..8 {
        send(&mut client, active, cookie, &[1; 200_000]);
    }
    engine.kill();
    for handle in [&mut client, &mut worker] {
        assert_eq!(until_end(handle).1, -libc::ENETDOWN);
    }
    for handle in [&mut client, &mut worker, &mut parent] {
        wait_for(handle, EventKind::EngineLost);
        assert_eq!(
            handle.set_params(&Params::default()).unwrap_err().errno(),
            libc::ENOTCONN
        );
        assert!(handle.reconnect().is_err(), "there is no engine yet");
    }
    let _second = EngineProcess::start(engine.socket.clone());
    for handle in [&mut parent, &mut client, &mut worker] {
        handle.reconnect().unwrap();
    }
    // Parameters, the listener's port and the registration are back.
    connect_and_send(&mut client, address, &request);
    assert_eq!(wait_for(&mut worker, EventKind::PduReceived).1, request);
}

/// smbd_reconnect repeats what smbd_set_session registered, and not what it took back.
#[test]
fn session_ids_survive_a_killed_engine() {
    let mut engine = EngineProcess::new("session");
    let mut parent = open_at(&engine.socket, true);
    let params = Params {
        answer_negotiate: true,
        security_blob: b"security-blob".to_vec(),
        ..Params::default()
    };
    parent.set_params(&params).unwrap();
    let address = common::listen(&mut parent);
    let mut worker = open_at(&engine.socket, false);
    let session = |id, remove| SessionSpec {
        session_id: Some(id),
        client_guid: None,
        remove,
    };
    for id in [6, 7, 8] {
        worker.set_session(&session(id, false)).unwrap();
    }
    worker.set_session(&session(8, true)).unwrap();
    engine.kill();
    for handle in [&mut parent, &mut worker] {
        wait_for(handle, EventKind::EngineLost);
    }
    let second = EngineProcess::start(engine.socket.clone());
    for handle in [&mut parent, &mut worker] {
        handle.reconnect().unwrap();
    }
    assert_eq!(parent.params().unwrap(), params);

    // A connection that binds to a session: the engine answers NEGOTIATE, SESSION_SETUP decides.
    let request = negotiate([0; 16], &[0x0300]);
    let bind = |client: &mut Handle, id| {
        let active = connect_and_send(client, address, &request);
        wait_for(client, EventKind::PduReceived);
        send(client, active, 2, &binding(id));
    };
    for id in [6, 7] {
        let mut client = open_at(&second.socket, false);
        bind(&mut client, id);
        assert_eq!(wait_for(&mut worker, EventKind::PduReceived).1, request);
        wait_for(&mut worker, EventKind::PduReceived);
        let setup = wait_for(&mut worker, EventKind::PduReceived).1;
        assert_eq!(setup, binding(id));
    }
    let mut client = open_at(&second.socket, false);
    bind(&mut client, 8);
    let (pdus, status) = until_end(&mut client);
    assert_eq!((pdus.len(), status), (1, -libc::ECONNRESET));
    // The registrations are the handle's again: it can take them back, others cannot have them.
    let mut other = open_at(&second.socket, false);
    let refused = other.set_session(&session(7, false)).unwrap_err();
    assert_eq!(refused.errno(), libc::EEXIST);
    worker.set_session(&session(7, true)).unwrap();
    other.set_session(&session(7, false)).unwrap();
}

#[test]
fn half_open_connections_are_capped_and_end() {
    let engine = TestEngine::start_with(|config| {
        config.iwarp.max_half_open = 4;
        config.iwarp.request_timeout = std::time::Duration::from_millis(50);
    });
    let mut parent = engine.open(true);
    parent.set_params(&Params::default()).unwrap();
    let address = engine.listen(&mut parent);
    let mut strangers: Vec<_> = (0..40)
        .map(|index| {
            let mut stream = TcpStream::connect(address).unwrap();
            match index % 3 {
                0 => {}
                1 => stream.write_all(b"MPA ID Req F").unwrap(),
                _ => stream.write_all(&[0xff; 300]).unwrap(),
            }
            stream
        })
        .collect();
    let mut client = engine.open(false);
    connect_and_send(&mut client, address, &negotiate(GUID, &[0x0300]));
    wait_for(&mut parent, EventKind::Offered);
    for stream in &mut strangers {
        stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
        let mut rest = Vec::new();
        match stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
    assert_eq!(engine.status().connections.len(), 2);
}

#[test]
fn a_handle_that_takes_no_events_stops_nobody() {
    let engine = TestEngine::start();
    let mut parent = engine.open(true);
    parent.set_params(&Params::default()).unwrap();
    let address = engine.listen(&mut parent);
    let (mut lazy, mut busy) = (engine.open(false), engine.open(false));
    register(&mut lazy, [1; 16]);
    register(&mut busy, [2; 16]);
    let (mut one, mut two) = (engine.open(false), engine.open(false));
    let stuck = connect_and_send(&mut one, address, &negotiate([1; 16], &[0x0300]));
    let free = connect_and_send(&mut two, address, &negotiate([2; 16], &[0x0300]));
    wait_for(&mut busy, EventKind::PduReceived);
    // More than the lazy one's receive slots hold.
    for cookie in 0..16 {
        send(&mut one, stuck, cookie, &[3; 200_000]);
    }
    for cookie in 0..16 {
        send(&mut two, free, cookie, &[4; 200_000]);
        assert_eq!(wait_for(&mut busy, EventKind::PduReceived).1.len(), 200_000);
    }
    // Nothing was lost meanwhile.
    wait_for(&mut lazy, EventKind::PduReceived);
    for _ in 0..16 {
        assert!(wait_for(&mut lazy, EventKind::PduReceived).1 == [3; 200_000]);
    }
}

#[test]
fn a_handle_with_impossible_indices_is_dropped() {
    let engine = TestEngine::start();
    let mut parent = engine.open(true);
    parent.set_params(&Params::default()).unwrap();
    let address = engine.listen(&mut parent);
    // Offsets of the indices that a handle writes: submissions, slots returned.
    for (round, offset) in [128, 640].into_iter().enumerate() {
        let (mut liar, mut client) = (engine.open(false), engine.open(false));
        register(&mut liar, GUID);
        let active = connect_and_send(&mut client, address, &negotiate(GUID, &[0x0300]));
        let passive = wait_for(&mut liar, EventKind::PduReceived).0.connection;
        // Who has not answered would lose the connection to another process.
        send(&mut liar, passive, 1, b"response");
        wait_for(&mut client, EventKind::PduReceived);
        let area = liar.meminfo().unwrap().region.clone();
        area.write(offset, &0x8000_0001u32.to_ne_bytes()).unwrap();
        // The engine looks at all rings when it delivers or when the handle goes.
        send(&mut client, active, 2, b"\xfeSMB");
        let mut second = engine.open(false);
        connect_and_send(&mut second, address, &negotiate([3; 16], &[0x0300]));
        let token = wait_for(&mut parent, EventKind::Offered).0.token;
        let _ = liar.accept(token);
        assert_eq!(until_end(&mut client).1, -libc::ECONNRESET, "{offset}");
        let status = until_status(&engine.socket, "rid of the liar", |s| {
            s.engine.counters.handles_dropped == round as u64 + 1
        });
        assert!(status.handles.len() < 4);
    }
    assert_eq!(parent.params().unwrap(), Params::default());
}

#[test]
fn nonsense_after_the_negotiation_ends_that_connection() {
    let engine = TestEngine::start();
    let mut parent = engine.open(true);
    parent.set_params(&Params::default()).unwrap();
    let address = engine.listen(&mut parent);
    let mut worker = engine.open(false);
    register(&mut worker, [2; 16]);
    let mut friend = engine.open(false);
    let good = connect_and_send(&mut friend, address, &negotiate([2; 16], &[0x0300]));
    wait_for(&mut worker, EventKind::PduReceived);
    let request = NegotiateRequest {
        min_version: 0x0100,
        max_version: 0x0100,
        credits_requested: 10,
        preferred_send_size: 1364,
        max_receive_size: 8192,
        max_fragmented_size: 1 << 20,
    };
    let offset_outside = [10u16, 0, 0, 0, 0, 0, 0xffff, 0, 8, 0, 0, 0];
    let messages = [
        vec![0xff; 24],
        vec![0; 3],
        offset_outside
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect(),
    ];
    for message in messages {
        let config = Config {
            kind: test_kind(),
            raw: true,
            ..Config::default()
        };
        let mut stranger = Endpoint::new(config).unwrap();
        let options = ConnectOptions {
            peer: address,
            crc: false,
            mpa_revision: 2,
            ird: 4,
            ord: 4,
            private_data: Vec::new(),
            timeout: common::PATIENCE,
        };
        let id = stranger.connect(&options).unwrap();
        let start = std::time::Instant::now();
        let mut is_over = false;
        while !is_over {
            assert!(start.elapsed() < common::PATIENCE, "it goes on");
            let mut events = Vec::new();
            let wait = Some(common::PATIENCE);
            stranger.poll(wait, &mut events).unwrap();
            for event in events {
                let bytes = match event {
                    PeerEvent::Established { .. } => request.emit().to_vec(),
                    PeerEvent::Raw { .. } => message.clone(),
                    PeerEvent::Disconnected { .. } => {
                        is_over = true;
                        continue;
                    }
                    _ => continue,
                };
                stranger.send_raw(id, &bytes, 1, None).unwrap();
            }
        }
        until_status(&engine.socket, "alone again", |s| s.connections.len() == 2);
        send(&mut friend, good, 2, b"\xfeSMB still here");
        let got = wait_for(&mut worker, EventKind::PduReceived).1;
        assert_eq!(got, b"\xfeSMB still here");
    }
}

/// A peer that is polled until its NEGOTIATE has left.
fn raw_peer(address: std::net::SocketAddr) -> (Endpoint, smbdirect::peer::ConnectionId) {
    let config = Config {
        kind: test_kind(),
        ..Config::default()
    };
    let mut endpoint = Endpoint::new(config).unwrap();
    let options = ConnectOptions {
        peer: address,
        crc: false,
        mpa_revision: 2,
        ird: 4,
        ord: 4,
        private_data: Vec::new(),
        timeout: common::PATIENCE,
    };
    let id = endpoint.connect(&options).unwrap();
    let start = std::time::Instant::now();
    loop {
        assert!(start.elapsed() < common::PATIENCE, "it does not connect");
        let mut events = Vec::new();
        endpoint.poll(Some(common::PATIENCE), &mut events).unwrap();
        for event in events {
            match event {
                PeerEvent::Connected { .. } => {
                    let request = negotiate(GUID, &[0x0300]);
                    endpoint.send(id, &[&request], 1, None).unwrap();
                }
                PeerEvent::Sent { .. } => return (endpoint, id),
                PeerEvent::Disconnected { reason, .. } => panic!("{reason}"),
                _ => {}
            }
        }
    }
}

/// One never reads its socket, one reads and posts no receives again. The worker gets back-pressure
/// instead of endless room, and the keepalive ends the connection: each PDU is told once, before
/// the end.
#[test]
fn peers_that_take_nothing_lose_their_connection() {
    let engine = EngineProcess::new("take-nothing");
    let mut parent = open_at(&engine.socket, true);
    let params = Params {
        keepalive_interval_msec: 1000,
        ..Params::default()
    };
    parent.set_params(&params).unwrap();
    let address = common::listen(&mut parent);
    let mut bystanders = Bystanders::new(&engine, address);
    let mut worker = open_at(&engine.socket, false);
    register(&mut worker, GUID);
    let base = (engine.fds(), engine.areas());
    for reads in [false, true] {
        let (mut endpoint, id) = raw_peer(address);
        if reads {
            endpoint.set_receiving(id, false);
        }
        let connection = wait_for(&mut worker, EventKind::PduReceived).0.connection;
        let pdu = vec![7; 200_000];
        let mut queued = 0;
        let refused = loop {
            let send = smbdirect::client::SendPdu {
                connection,
                cookie: queued,
                has_event: true,
                invalidate: None,
                length: pdu.len(),
            };
            match worker.queue_bytes(&send, &pdu) {
                Ok(()) => queued += 1,
                Err(error) => break error,
            }
            assert!(queued < 1000, "room without end");
        };
        assert_eq!(refused.errno(), libc::EAGAIN, "{refused}");
        worker.submit().unwrap();
        bystanders.check();
        let start = std::time::Instant::now();
        let mut sent = Vec::new();
        let status = 'ended: loop {
            while let Some((event, _)) = worker.next_event().unwrap() {
                match event.kind {
                    EventKind::PduSent => sent.push(event.cookie),
                    EventKind::Disconnected => break 'ended event.status,
                    _ => {}
                }
            }
            assert!(start.elapsed() < common::PATIENCE, "reads {reads}: on");
            if reads {
                let wait = Some(std::time::Duration::from_millis(5));
                endpoint.poll(wait, &mut Vec::new()).unwrap();
            } else {
                common::wait_readable(&worker);
            }
        };
        assert_eq!(status, -libc::ETIMEDOUT, "reads {reads}");
        sent.sort_unstable();
        assert_eq!(sent, (0..queued).collect::<Vec<_>>(), "reads {reads}");
        drop(endpoint);
        bystanders.check();
        until_status(&engine.socket, "rid of it", |s| s.connections.len() == 2);
        engine.wait_for_no_more_than(base);
    }
}
