//! `smbdirect engine` as a process of its own. Needs `common/engine_host.rs` as `crate::common`.
#![allow(dead_code)] // Each test uses a part of it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use smbdirect::client::{EventKind, Handle};
use smbdirect::ipc::{Params, SessionSpec};

use crate::common::{
    connect_and_send, listen, negotiate, open_at, send, until_status, wait_for, PATIENCE,
};

/// `smbdirect engine`, killed with the value.
pub(crate) struct EngineProcess {
    child: Child,
    pub(crate) socket: PathBuf,
}

impl EngineProcess {
    /// Starts one with a control socket of its own.
    pub(crate) fn new(name: &str) -> Self {
        Self::start(Self::path(name))
    }

    /// Starts one at this control socket.
    pub(crate) fn start(socket: PathBuf) -> Self {
        Self::spawn(Command::new(env!("CARGO_BIN_EXE_smbdirect")), socket)
    }

    /// Starts one that may have no more than `limit` file descriptors.
    pub(crate) fn with_descriptors(name: &str, limit: u32) -> Self {
        let mut shell = Command::new("sh");
        shell
            .arg("-c")
            .arg(format!("ulimit -n {limit}; exec \"$0\" \"$@\""))
            .arg(env!("CARGO_BIN_EXE_smbdirect"));
        Self::spawn(shell, Self::path(name))
    }

    /// Starts one that runs as a user of its own, with these arguments.
    pub(crate) fn of_user(name: &str, uid: u32, arguments: &[&str]) -> Self {
        use std::os::unix::process::CommandExt;
        let socket = Self::path(name);
        let copy = socket.with_extension("program");
        copy_program(Path::new(env!("CARGO_BIN_EXE_smbdirect")), &copy);
        let mut program = Command::new(&copy);
        program.uid(uid).gid(uid).current_dir("/");
        let engine = Self::spawn_with(program, socket, arguments);
        std::fs::remove_file(copy).unwrap();
        engine
    }

    /// Where the control socket of one with this name is.
    pub(crate) fn path(name: &str) -> PathBuf {
        let name = format!("smbdirect-faults-{name}-{}", std::process::id());
        std::env::temp_dir().join(name)
    }

    fn spawn(program: Command, socket: PathBuf) -> Self {
        Self::spawn_with(program, socket, &[])
    }

    /// Starts one by `program`, which runs what its arguments name.
    pub(crate) fn spawn_with(mut program: Command, socket: PathBuf, arguments: &[&str]) -> Self {
        let mut child = program
            .args(["engine", "--socket"])
            .arg(&socket)
            .args(arguments)
            .env("SMBDIRECT_LOG", "error")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "ready"));
        Self { child, socket }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn proc(&self, file: &str) -> PathBuf {
        format!("/proc/{}/{file}", self.child.id()).into()
    }

    /// Its open file descriptors.
    pub(crate) fn fds(&self) -> usize {
        std::fs::read_dir(self.proc("fd")).unwrap().count()
    }

    /// Its mappings of shared areas.
    pub(crate) fn areas(&self) -> usize {
        let maps = std::fs::read_to_string(self.proc("maps")).unwrap();
        maps.lines().filter(|line| line.contains("memfd:")).count()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it has not more descriptors and areas than these.
    pub(crate) fn wait_for_no_more_than(&self, (fds, areas): (usize, usize)) {
        let start = Instant::now();
        while self.fds() > fds || self.areas() > areas {
            assert!(
                start.elapsed() < PATIENCE,
                "{} descriptors are left of {fds}, {} areas of {areas}",
                self.fds(),
                self.areas()
            );
            std::thread::yield_now();
        }
    }

    /// The parent handle, and the address where it listens.
    pub(crate) fn parent(&self) -> (Handle, SocketAddr) {
        let mut parent = open_at(&self.socket, true);
        parent.set_params(&Params::default()).unwrap();
        let address = listen(&mut parent);
        (parent, address)
    }
}

impl Drop for EngineProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Copies a program to where other users reach it. A process of its own does it: a fork of another
/// test could keep a file that is open for writing here, which then could not be run.
pub(crate) fn copy_program(from: &Path, to: &Path) {
    let status = Command::new("cp").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

/// Connections with this ClientGuid come to `handle`.
pub(crate) fn register(handle: &mut Handle, client_guid: [u8; 16]) {
    let spec = SessionSpec {
        session_id: None,
        client_guid: Some(client_guid),
        remove: false,
    };
    handle.set_session(&spec).unwrap();
}

/// A connection between two handles that has nothing to do with what goes wrong.
pub(crate) struct Bystanders {
    client: Handle,
    worker: Handle,
    active: u64,
}

impl Bystanders {
    pub(crate) fn new(engine: &EngineProcess, address: SocketAddr) -> Self {
        let guid = *b"bystander's guid";
        let mut worker = open_at(&engine.socket, false);
        register(&mut worker, guid);
        let mut client = open_at(&engine.socket, false);
        let active = connect_and_send(&mut client, address, &negotiate(guid, &[0x0300]));
        wait_for(&mut worker, EventKind::PduReceived);
        until_status(&engine.socket, "quiet", |s| s.connections.len() == 2);
        Self {
            client,
            worker,
            active,
        }
    }

    /// It still works.
    pub(crate) fn check(&mut self) {
        let pdu = b"\xfeSMB still here";
        send(&mut self.client, self.active, 2, pdu);
        assert_eq!(wait_for(&mut self.worker, EventKind::PduReceived).1, pdu);
    }
}
