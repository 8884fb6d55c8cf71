//! An engine in a thread of this process, for bodies that need a real one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use smbdirect::client::{Event, EventKind, Handle, OpenOptions, SendPdu};
use smbdirect::engine::{Config, Engine};
use smbdirect::ipc::{self, Caller, ConnectSpec, Fabric, ListenSpec, Params, SessionSpec, Status};
use smbdirect::ring::AreaOptions;

use super::input::pattern;

/// How long anything may take that has to come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Lab {
    pub(crate) socket: PathBuf,
    thread: JoinHandle<()>,
}

impl Lab {
    /// Starts an engine that runs as long as the process.
    pub(crate) fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("smbdirect-fuzz-{}-{count}", std::process::id());
        let socket = std::env::temp_dir().join(name);
        let config = Config {
            socket_path: socket.clone(),
            offer_timeout: Duration::from_secs(1),
            export_timeout: Duration::from_millis(100),
            ..Config::default()
        };
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let engine = Engine::new(config).expect("the engine starts");
            ready.send(()).expect("somebody waits");
            engine.run(None).expect("the engine runs");
        });
        is_ready.recv().expect("the engine starts");
        Self { socket, thread }
    }

    /// The engine goes on.
    pub(crate) fn status(&self) -> Status {
        assert!(!self.thread.is_finished(), "the engine has ended");
        let mut caller = Caller::connect(&self.socket, PATIENCE).expect("the engine accepts");
        ipc::fetch_status(&mut caller, PATIENCE).expect("the engine answers")
    }

    /// Waits until all handles are gone that were opened since there were `handles`.
    pub(crate) fn until_handles(&self, handles: usize) {
        let start = Instant::now();
        loop {
            let status = self.status();
            if status.handles.len() <= handles {
                // Listeners go with their handles.
                assert!(status.listeners.len() <= handles, "{:?}", status.listeners);
                return;
            }
            assert!(start.elapsed() < PATIENCE, "handles stay: {status:?}");
            std::thread::yield_now();
        }
    }

    pub(crate) fn open(&self, parent: bool) -> Handle {
        let options = OpenOptions {
            socket: self.socket.clone(),
            parent,
            area: small_area(),
            timeout: PATIENCE,
        };
        Handle::open(options).expect("a handle opens")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

pub(crate) fn small_area() -> AreaOptions {
    AreaOptions {
        rdma_buffers: 4,
        rdma_buffer_size: 64 << 10,
        max_connections: 4,
        receive_slots: 64,
        receive_slot_size: 1024,
        send_area_size: 128 << 10,
    }
}

pub(crate) fn params() -> Params {
    Params {
        receive_credit_max: 10,
        max_receive_size: 1024,
        max_send_size: 1024,
        ..Params::default()
    }
}

pub(crate) fn connect_spec(address: SocketAddr) -> ConnectSpec {
    ConnectSpec {
        fabric: Fabric::SoftIwarp,
        address,
        crc: false,
        mpa_revision: 2,
        timeout_msec: 10_000,
        params: params(),
    }
}

/// An SMB2 NEGOTIATE request for 3.0 of a client.
pub(crate) fn negotiate(client_guid: [u8; 16]) -> Vec<u8> {
    let mut pdu = b"\xfeSMB\x40\0".to_vec();
    pdu.resize(14, 0);
    pdu.extend([31, 0]);
    pdu.resize(64, 0);
    pdu.extend([36, 0, 1, 0, 1, 0, 0, 0, 0x4f, 0, 0, 0]);
    pdu.extend(client_guid);
    pdu.extend([0; 8]);
    pdu.extend(0x0300_u16.to_le_bytes());
    pdu
}

pub(crate) fn send(handle: &mut Handle, connection: u64, bytes: &[u8]) {
    let pdu = SendPdu {
        connection,
        cookie: 1,
        has_event: false,
        invalidate: None,
        length: bytes.len(),
    };
    handle.queue_bytes(&pdu, bytes).expect("room for a PDU");
    handle.submit().expect("a submission");
}

pub(crate) fn wait_for(handle: &mut Handle, kind: EventKind) -> (Event, Vec<u8>) {
    use rustix::event::{poll, PollFd, PollFlags, Timespec};
    let start = Instant::now();
    loop {
        while let Some((event, bytes)) = handle.next_event().expect("events") {
            if event.kind == kind {
                return (event, bytes);
            }
            let lost = matches!(event.kind, EventKind::EngineLost | EventKind::Disconnected);
            assert!(!lost, "{event:?} while waiting for {kind:?}");
        }
        assert!(start.elapsed() < PATIENCE, "no {kind:?}");
        let fd = handle.fd().expect("a descriptor");
        let second = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&second));
    }
}

/// Two handles with a connection between them that have nothing to do with what others do, and the
/// parent with its listener.
pub(crate) struct Bystanders {
    _parent: Handle,
    pub(crate) address: SocketAddr,
    client: Handle,
    worker: Handle,
    active: u64,
    passive: u64,
    round: u8,
}

impl Bystanders {
    pub(crate) fn new(lab: &Lab) -> Self {
        let mut parent = lab.open(true);
        parent.set_params(&params()).expect("parameters");
        let spec = ListenSpec {
            fabric: Fabric::SoftIwarp,
            address: "127.0.0.1:0".parse().expect("an address"),
            crc: false,
        };
        let address = parent.listen(&spec).expect("a listener");
        let guid = *b"bystander's guid";
        let mut worker = lab.open(false);
        register(&mut worker, guid);
        let mut client = lab.open(false);
        let active = client.connect(&connect_spec(address)).expect("connects");
        wait_for(&mut client, EventKind::Attached);
        send(&mut client, active, &negotiate(guid));
        let passive = wait_for(&mut worker, EventKind::PduReceived).0.connection;
        Self {
            _parent: parent,
            address,
            client,
            worker,
            active,
            passive,
            round: 0,
        }
    }

    /// What one sends the other gets, both ways.
    pub(crate) fn check(&mut self) {
        self.round = self.round.wrapping_add(1);
        let pdu = pattern(1 + 37 * usize::from(self.round), self.round);
        send(&mut self.client, self.active, &pdu);
        assert!(wait_for(&mut self.worker, EventKind::PduReceived).1 == pdu);
        send(&mut self.worker, self.passive, &pdu);
        assert!(wait_for(&mut self.client, EventKind::PduReceived).1 == pdu);
    }
}

pub(crate) fn register(handle: &mut Handle, client_guid: [u8; 16]) {
    let spec = SessionSpec {
        session_id: None,
        client_guid: Some(client_guid),
        remove: false,
    };
    handle.set_session(&spec).expect("a registration");
}
