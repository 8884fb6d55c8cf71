//! An engine in a thread, and handles on it.

#![allow(dead_code)]

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use smbdirect::client::{Event, EventKind, Handle, OpenOptions, SendPdu};
use smbdirect::engine::{Config, Engine};
use smbdirect::ipc::{self, Caller, ConnectSpec, ListenSpec, Params, Status};

#[allow(clippy::duplicate_mod)]
#[path = "target.rs"]
mod target;
#[allow(unused_imports)]
pub(crate) use target::{
    address as test_address, fabric as test_fabric, is_verbs, kind as test_kind,
};

/// How long anything may take before the test says that it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// An engine of a test's own. It ends with the value.
pub(crate) struct TestEngine {
    pub(crate) socket: PathBuf,
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl TestEngine {
    pub(crate) fn start() -> Self {
        Self::start_with(|_| ())
    }

    pub(crate) fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let _ = env_logger::builder().is_test(true).try_init();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let socket =
            std::env::temp_dir().join(format!("smbdirect-test-{}-{count}", std::process::id()));
        let mut config = Config {
            socket_path: socket.clone(),
            ..Config::default()
        };
        change(&mut config);
        let (stop, stopped) = UnixStream::pair().unwrap();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let engine = Engine::new(config).unwrap();
            ready.send(()).unwrap();
            engine.run(Some(OwnedFd::from(stopped))).unwrap();
        });
        is_ready.recv().expect("the engine starts");
        Self {
            socket,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(crate) fn open(&self, parent: bool) -> Handle {
        open_at(&self.socket, parent)
    }

    pub(crate) fn listen(&self, parent: &mut Handle) -> SocketAddr {
        listen(parent)
    }

    pub(crate) fn connect_spec(&self, address: SocketAddr) -> ConnectSpec {
        connect_spec(address)
    }

    pub(crate) fn status(&self) -> Status {
        status_at(&self.socket)
    }
}

/// Opens a handle at the engine with this control socket.
pub(crate) fn open_at(socket: &Path, parent: bool) -> Handle {
    let options = OpenOptions {
        socket: socket.to_owned(),
        parent,
        timeout: PATIENCE,
        ..Default::default()
    };
    Handle::open(options).unwrap()
}

/// Listens on a free port.
pub(crate) fn listen(parent: &mut Handle) -> SocketAddr {
    let spec = ListenSpec {
        fabric: test_fabric(),
        address: (test_address(), 0).into(),
        crc: false,
    };
    parent.listen(&spec).unwrap()
}

/// How to connect there.
pub(crate) fn connect_spec(address: SocketAddr) -> ConnectSpec {
    ConnectSpec {
        fabric: test_fabric(),
        address,
        crc: false,
        mpa_revision: 2,
        timeout_msec: 120_000,
        params: Params {
            max_send_size: 1364,
            ..Params::default()
        },
    }
}

/// What an engine tells of itself.
pub(crate) fn status_at(socket: &Path) -> Status {
    let mut caller = Caller::connect(socket, PATIENCE).unwrap();
    ipc::fetch_status(&mut caller, PATIENCE).unwrap()
}

/// Asks an engine for its status until it is as `wanted`.
pub(crate) fn until_status(socket: &Path, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
    let start = Instant::now();
    loop {
        let status = status_at(socket);
        if wanted(&status) {
            return status;
        }
        assert!(start.elapsed() < PATIENCE, "not {what}: {status:?}");
    }
}

/// Sends one PDU; its completion is told.
pub(crate) fn send(handle: &mut Handle, connection: u64, cookie: u64, bytes: &[u8]) {
    let pdu = SendPdu {
        connection,
        cookie,
        has_event: true,
        invalidate: None,
        length: bytes.len(),
    };
    handle.queue_bytes(&pdu, bytes).unwrap();
    handle.submit().unwrap();
}

/// Connects `client`, sends `first` there, and returns the connection.
pub(crate) fn connect_and_send(client: &mut Handle, address: SocketAddr, first: &[u8]) -> u64 {
    let connection = client.connect(&connect_spec(address)).unwrap();
    assert_eq!(
        wait_for(client, EventKind::Attached).0.connection,
        connection
    );
    send(client, connection, 1, first);
    connection
}

/// The PDUs that a handle gets until its connection ends, and the status of the end.
pub(crate) fn until_end(handle: &mut Handle) -> (Vec<Vec<u8>>, i32) {
    let start = Instant::now();
    let mut pdus = Vec::new();
    loop {
        while let Some((event, bytes)) = handle.next_event().unwrap() {
            match event.kind {
                EventKind::PduReceived => pdus.push(bytes),
                EventKind::Disconnected => return (pdus, event.status),
                _ => {}
            }
        }
        assert!(start.elapsed() < PATIENCE, "the connection goes on");
        wait_readable(handle);
    }
}

/// An SMB2 request header.
pub(crate) fn smb2_header(command: u16, message_id: u64, flags: u32) -> Vec<u8> {
    let mut pdu = b"\xfeSMB".to_vec();
    for word in [64, 1, 0, 0, command, 33] {
        pdu.extend(u16::to_le_bytes(word));
    }
    pdu.extend(flags.to_le_bytes());
    pdu.extend([0; 4]);
    pdu.extend(message_id.to_le_bytes());
    pdu.resize(64, 0);
    pdu
}

/// An SMB2 NEGOTIATE request; with 3.1.1 it has the one context that has to be there.
pub(crate) fn negotiate(client_guid: [u8; 16], dialects: &[u16]) -> Vec<u8> {
    let mut pdu = smb2_header(0, 0, 0);
    pdu.extend([36, 0, dialects.len() as u8, 0, 1, 0, 0, 0, 0x4f, 0, 0, 0]);
    pdu.extend(client_guid);
    pdu.extend([0; 8]);
    pdu.extend(dialects.iter().flat_map(|dialect| dialect.to_le_bytes()));
    if dialects.contains(&0x0311) {
        pdu.resize(pdu.len().next_multiple_of(8), 0);
        pdu[92] = pdu.len() as u8; // NegotiateContextOffset
        pdu[96] = 1; // NegotiateContextCount
        pdu.extend([1, 0, 38, 0, 0, 0, 0, 0]); // PREAUTH_INTEGRITY, 38 bytes
        pdu.extend([1, 0, 32, 0, 1, 0]); // SHA-512, a salt of 32 bytes
        pdu.extend([0x5a; 32]);
    }
    pdu
}

/// A SESSION_SETUP request that binds, signed, to a session.
pub(crate) fn binding(session_id: u64) -> Vec<u8> {
    let mut pdu = smb2_header(1, 1, 0x8);
    pdu[40..48].copy_from_slice(&session_id.to_le_bytes());
    pdu[48..64].copy_from_slice(b"signature-bytes!");
    pdu.extend([25, 0, 1, 1]);
    pdu.extend([0; 8]);
    pdu.extend([88, 0, 4, 0]);
    pdu.extend([0; 8]);
    pdu.extend(b"blob");
    pdu
}

impl Drop for TestEngine {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            assert!(
                result.is_ok() || std::thread::panicking(),
                "the engine panicked"
            );
        }
    }
}

/// Takes events until one of `kind` comes; others are dropped.
pub(crate) fn wait_for(handle: &mut Handle, kind: EventKind) -> (Event, Vec<u8>) {
    let start = Instant::now();
    loop {
        while let Some((event, bytes)) = handle.next_event().unwrap() {
            if event.kind == kind {
                return (event, bytes);
            }
            assert_ne!(event.kind, EventKind::EngineLost, "waiting for {kind:?}");
        }
        assert!(
            start.elapsed() < PATIENCE,
            "no {kind:?} event in {PATIENCE:?}"
        );
        wait_readable(handle);
    }
}

/// Waits until the handle's descriptor is readable.
pub(crate) fn wait_readable(handle: &Handle) {
    use rustix::event::{poll, PollFd, PollFlags, Timespec};
    let fd = handle.fd().unwrap();
    let timeout = Timespec {
        tv_sec: PATIENCE.as_secs() as i64,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap();
}
