//! An engine in a thread, and handles on it.

#![allow(dead_code)]

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use smbdirect::client::{Event, EventKind, Handle, OpenOptions};
use smbdirect::engine::{Config, Engine};
use smbdirect::ipc::{ConnectSpec, Fabric, ListenSpec, Params};

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
        let options = OpenOptions {
            socket: self.socket.clone(),
            parent,
            ..Default::default()
        };
        Handle::open(options).unwrap()
    }

    pub(crate) fn listen(&self, parent: &mut Handle) -> SocketAddr {
        let spec = ListenSpec {
            fabric: Fabric::SoftIwarp,
            address: "127.0.0.1:0".parse().unwrap(),
            crc: false,
        };
        parent.listen(&spec).unwrap()
    }

    pub(crate) fn connect_spec(&self, address: SocketAddr) -> ConnectSpec {
        ConnectSpec {
            fabric: Fabric::SoftIwarp,
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
