//! Peers that break off, dawdle, scan or speak something else. The engine is a process of its own;
//! whatever they do, nothing of them is left and a bystander's connection goes on.

#[path = "common/engine_host.rs"]
mod common;
#[path = "common/engine_process.rs"]
mod engine_process;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{
    connect_and_send, negotiate, open_at, send, until_status, wait_for, TestEngine, PATIENCE,
};
use engine_process::{register, Bystanders, EngineProcess};
use smbdirect::client::{EventKind, Handle};
use smbdirect::ipc::Params;

const GUID: [u8; 16] = *b"guid-of-a-victim";

/// Answers every PDU of a handle until `stop`.
fn answer_all(handle: &mut Handle, stop: &AtomicBool) {
    use rustix::event::{poll, PollFd, PollFlags, Timespec};
    while !stop.load(Ordering::Relaxed) {
        while let Some((event, _)) = handle.next_event().unwrap() {
            if event.kind == EventKind::PduReceived {
                let pdu = smbdirect::client::SendPdu {
                    connection: event.connection,
                    cookie: 0,
                    has_event: false,
                    invalidate: None,
                    length: 0,
                };
                // The peer may be gone again.
                let _ = handle.queue_bytes(&pdu, b"\xfeSMB an answer");
            }
        }
        handle.submit().unwrap();
        let fd = handle.fd().unwrap();
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: 10_000_000,
        };
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap();
    }
}

/// What went over a connection: bytes of the client, or how many bytes the server had to say before
/// the client went on.
#[derive(Debug, Clone)]
enum Step {
    Client(Vec<u8>),
    Server,
}

/// Records a connection that negotiates, sends NEGOTIATE and a PDU in fragments, and gets answers.
fn record(engine: &EngineProcess, server: SocketAddr) -> Vec<Step> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let tap = std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let server = TcpStream::connect(server).unwrap();
        let mut steps: Vec<Step> = Vec::new();
        let mut buffer = vec![0; 65_536];
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
            stream.set_nonblocking(true).unwrap();
        }
        loop {
            use rustix::event::{poll, PollFd, PollFlags};
            let mut fds = [&client, &server].map(|it| PollFd::new(it, PollFlags::IN));
            poll(&mut fds, None).unwrap();
            let ready = fds.map(|it| !it.revents().is_empty());
            if ready[0] {
                let count = (&client).read(&mut buffer).unwrap_or(0);
                if count == 0 {
                    return steps;
                }
                (&server).write_all(&buffer[..count]).unwrap();
                match steps.last_mut() {
                    Some(Step::Client(bytes)) => bytes.extend(&buffer[..count]),
                    _ => steps.push(Step::Client(buffer[..count].to_vec())),
                }
            }
            if ready[1] {
                let count = (&server).read(&mut buffer).unwrap_or(0);
                if count == 0 {
                    return steps;
                }
                (&client).write_all(&buffer[..count]).unwrap();
                if !matches!(steps.last(), Some(Step::Server)) {
                    steps.push(Step::Server);
                }
            }
        }
    });
    let mut client = open_at(&engine.socket, false);
    let active = connect_and_send(&mut client, address, &negotiate(GUID, &[0x0300]));
    wait_for(&mut client, EventKind::PduReceived);
    send(&mut client, active, 2, &[0x77; 3000]);
    wait_for(&mut client, EventKind::PduReceived);
    client.disconnect(active).unwrap();
    wait_for(&mut client, EventKind::Disconnected);
    drop(client);
    tap.join().unwrap()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// RST.
    Reset,
    /// FIN, with everything closed.
    Close,
    /// FIN, and the rest is read.
    Half,
}

/// Plays the client's first `cut` bytes, and ends like that.
fn replay(server: SocketAddr, steps: &[Step], mut cut: usize, waits: bool, end: End) {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 65_536];
    for step in steps {
        match step {
            Step::Client(bytes) => {
                let part = bytes.len().min(cut);
                // The server may have ended it already.
                if stream.write_all(&bytes[..part]).is_err() {
                    return;
                }
                cut -= part;
            }
            Step::Server if waits && cut > 0 => {
                if !stream.read(&mut buffer).is_ok_and(|count| count > 0) {
                    return;
                }
            }
            Step::Server => {}
        }
        if cut == 0 {
            break;
        }
    }
    match end {
        End::Reset => {
            let linger = Some(Duration::ZERO);
            rustix::net::sockopt::set_socket_linger(&stream, linger).unwrap();
        }
        End::Close => {}
        End::Half => {
            // It may be reset already.
            let _ = stream.shutdown(Shutdown::Write);
            while stream.read(&mut buffer).is_ok_and(|count| count > 0) {}
        }
    }
}

#[test]
fn a_peer_that_breaks_off_at_any_byte_leaves_nothing() {
    let mut engine = EngineProcess::new("break-off");
    let (_parent, address) = engine.parent();
    let mut bystanders = Bystanders::new(&engine, address);
    let mut worker = open_at(&engine.socket, false);
    register(&mut worker, GUID);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| answer_all(&mut worker, &stop));
        let steps = record(&engine, address);
        let length = |step: &Step| match step {
            Step::Client(bytes) => bytes.len(),
            Step::Server => 0,
        };
        let total: usize = steps.iter().map(length).sum();
        assert!(
            total > 3200 && steps.len() > 4,
            "{total} bytes in {steps:?}"
        );
        until_status(&engine.socket, "quiet", |s| s.connections.len() == 2);
        let base = (engine.fds(), engine.areas());
        for end in [End::Reset, End::Close, End::Half] {
            for waits in [true, false] {
                // Each byte of the set-up, then some; all of it at last.
                let cuts = (0..400).step_by(if waits { 1 } else { 3 });
                let cuts = cuts.chain((400..total).step_by(61)).chain([total]);
                for (index, cut) in cuts.enumerate() {
                    replay(address, &steps, cut, waits, end);
                    if index % 64 == 63 {
                        bystanders.check();
                    }
                }
                until_status(&engine.socket, "rid of them", |s| s.connections.len() == 2);
                engine.wait_for_no_more_than(base);
                bystanders.check();
            }
        }
        stop.store(true, Ordering::Relaxed);
        answering.join().unwrap();
    });
    let counters = until_status(&engine.socket, "alive", |_| true)
        .engine
        .counters;
    assert_eq!(counters.handles_dropped, 0);
    assert!(engine.is_running());
}

#[test]
fn who_scans_or_speaks_something_else_is_sent_away() {
    let mut engine = EngineProcess::new("scan");
    let (_parent, address) = engine.parent();
    let mut bystanders = Bystanders::new(&engine, address);
    let base = (engine.fds(), engine.areas());
    let mut noise = Vec::new();
    let mut state = 88_172_645_463_325_252u64;
    while noise.len() < 70_000 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend(state.to_le_bytes());
    }
    // A TLS 1.2 ClientHello: record of 512 bytes, handshake of 508.
    let mut tls = vec![22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    tls.resize(517, 0x11);
    // SMB over TCP: a client that takes the port for another one. A length of 108 bytes in front.
    let smb = [&[0, 0, 0, 108][..], &negotiate(GUID, &[0x0300])].concat();
    let words: [&[u8]; 10] = [
        b"",
        b"\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"MPA ID Rep Frame\x40\x02\x00\x00",
        &tls,
        &smb,
        &[0; 65_536],
        &[0xff; 65_536],
        &noise,
    ];
    for round in 0..8 {
        for words in words {
            let Ok(mut stream) = TcpStream::connect(address) else {
                panic!("nobody listens any more");
            };
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let sent = stream.write_all(words);
            if round % 2 == 0 {
                // Until the server says that this is the end. Who says nothing has 5 s, which is too
                // long here; shut down, it is over at once.
                let _ = stream.shutdown(Shutdown::Write);
                let mut rest = Vec::new();
                match stream.read_to_end(&mut rest) {
                    Ok(_) => {}
                    Err(error) => assert_eq!(
                        error.kind(),
                        std::io::ErrorKind::ConnectionReset,
                        "{sent:?}, {:?}",
                        &words[..words.len().min(20)]
                    ),
                }
            }
        }
        bystanders.check();
    }
    engine.wait_for_no_more_than(base);
    let status = until_status(&engine.socket, "rid of them", |s| s.connections.len() == 2);
    assert_eq!(status.engine.counters.handles_dropped, 0);
    assert!(engine.is_running());
}

/// An MPA request that announces `length` bytes of private data; RFC 5044 section 7.1.1.
fn mpa_request(length: u16) -> Vec<u8> {
    let mut request = b"MPA ID Req Frame\x40\x01".to_vec();
    request.extend(length.to_be_bytes());
    request.resize(20 + usize::from(length), 0);
    request
}

/// The time for a phase is for all of it, not from byte to byte.
#[test]
fn who_dawdles_in_the_set_up_is_sent_away() {
    let short = Duration::from_millis(400);
    let engine = TestEngine::start_with(|config| {
        config.iwarp.request_timeout = short;
        // These are limits for the friend, too.
        config.first_pdu_timeout = 5 * short;
        config.offer_timeout = 5 * short;
    });
    let mut parent = engine.open(true);
    parent.set_params(&Params::default()).unwrap();
    let address = engine.listen(&mut parent);
    let mut worker = engine.open(false);
    register(&mut worker, GUID);
    let mut friend = engine.open(false);
    let good = connect_and_send(&mut friend, address, &negotiate(GUID, &[0x0300]));
    wait_for(&mut worker, EventKind::PduReceived);

    // 532 bytes, one every 2 ms: more than twice the time.
    let request = mpa_request(512);
    let mut dawdlers: Vec<_> = (0..8)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    let mut sent = 0;
    let is_open = |stream: &mut TcpStream| {
        stream.set_nonblocking(true).unwrap();
        match stream.read(&mut [0; 64]) {
            Ok(count) => count > 0,
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        }
    };
    while !dawdlers.is_empty() {
        assert!(sent < request.len(), "a byte at a time they got through");
        dawdlers.retain_mut(|it| it.write_all(&request[sent..=sent]).is_ok() && is_open(it));
        sent += 1;
        std::thread::sleep(Duration::from_millis(2));
    }
    println!("sent away after {sent} bytes");
    assert!(sent > 1, "nobody was listened to");

    // RDMA is there, MS-SMBD is not: [MS-SMBD] 3.1.5.1, 5 seconds.
    let mut mute = TcpStream::connect(address).unwrap();
    mute.write_all(&mpa_request(0)).unwrap();
    // MS-SMBD is there, NEGOTIATE is not; NEGOTIATE is there, nobody takes the offer.
    let [mut silent, mut offered] = [(); 2].map(|()| engine.open(false));
    let silent_connection = silent.connect(&engine.connect_spec(address)).unwrap();
    let attached = wait_for(&mut silent, EventKind::Attached).0.connection;
    assert_eq!(attached, silent_connection);
    connect_and_send(&mut offered, address, &negotiate([9; 16], &[0x0300]));
    wait_for(&mut parent, EventKind::Offered);
    for handle in [&mut silent, &mut offered] {
        wait_for(handle, EventKind::Disconnected);
    }
    mute.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rest = Vec::new();
    let _ = mute.read_to_end(&mut rest);
    assert!(!rest.is_empty(), "its MPA request was answered");

    let status = until_status(&engine.socket, "rid of them", |s| s.connections.len() == 2);
    let rejected = &status.engine.rejected;
    for reason in ["no NEGOTIATE in time", "nobody accepted the offer in time"] {
        assert_eq!(rejected.get(reason), Some(&1), "{rejected:?}");
    }
    send(&mut friend, good, 2, b"\xfeSMB still here");
    let got = wait_for(&mut worker, EventKind::PduReceived).1;
    assert_eq!(got, b"\xfeSMB still here");
}
