//! The engine under what its systemd unit takes from it: no root, no privileges to gain, and only the
//! system calls of the unit's filter, where any other one ends the process.

#[path = "common/engine_host.rs"]
mod common;
#[path = "common/engine_process.rs"]
mod engine_process;

use std::collections::BTreeSet;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::Command;

use common::{connect_and_send, negotiate, open_at, send, status_at, test_fabric, wait_for};
use engine_process::{copy_program, register, Bystanders, EngineProcess};
use rustix::process::{setrlimit, Pid, Resource, Rlimit, Signal};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use smbdirect::client::{EventKind, Handle, RdmaOp};
use smbdirect::ipc::Fabric;
use smbdirect::ring::Segment;

/// Numbers that nobody has as user ids here.
const ENGINE: u32 = 54_330;

/// What a unit's filter lets through besides what it names (systemd.exec, SystemCallFilter=): the
/// start of the program, its end, and the calls for time and sleep.
const IMPLIED: [&str; 12] = [
    "clock_getres",
    "clock_gettime",
    "clock_nanosleep",
    "execve",
    "exit",
    "exit_group",
    "getrlimit",
    "gettimeofday",
    "nanosleep",
    "rt_sigreturn",
    "set_thread_area",
    "time",
];

macro_rules! calls {
    ($($name:ident = $number:ident,)*) => {
        /// The number of a system call that the unit may name.
        fn number(name: &str) -> Option<i64> {
            match name {
                $(stringify!($name) => Some(libc::$number),)*
                _ => None,
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
include!("common/system_calls.rs");

#[cfg(not(target_arch = "x86_64"))]
fn number(_: &str) -> Option<i64> {
    None
}

/// The names in the filter of the unit.
fn unit_filter() -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/smbdirect.service.in");
    let unit = std::fs::read_to_string(path).unwrap();
    let lines = unit
        .lines()
        .filter_map(|line| line.strip_prefix("SystemCallFilter="));
    let names: BTreeSet<String> = lines
        .flat_map(|line| line.split_whitespace())
        .map(str::to_owned)
        .collect();
    assert!(names.len() > 30, "{names:?}");
    names
}

/// A filter that ends the process at any call but these.
fn program(names: impl IntoIterator<Item = String>) -> BpfProgram {
    let implied = IMPLIED.iter().map(|name| (*name).to_owned());
    let rules = names
        .into_iter()
        .chain(implied)
        .map(|name| {
            let number = number(&name);
            let number = number.unwrap_or_else(|| {
                panic!("tests/common/system_calls.rs does not know {name}: add it there")
            });
            (number, Vec::new())
        })
        .collect();
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        arch,
    );
    filter.unwrap().try_into().unwrap()
}

/// An engine under a filter, as a user without rights where this process can become one.
fn engine(name: &str, filter: BpfProgram) -> EngineProcess {
    let socket = EngineProcess::path(name);
    let copy = socket.with_extension("program");
    copy_program(Path::new(env!("CARGO_BIN_EXE_smbdirect")), &copy);
    let is_verbs = test_fabric() == Fabric::Verbs;
    let limit = |most| Rlimit {
        current: most,
        maximum: most,
    };
    if is_verbs {
        // The unit gives it, and only root can.
        setrlimit(Resource::Memlock, limit(None)).unwrap();
    }
    let mut program = Command::new(&copy);
    program.current_dir("/");
    if rustix::process::geteuid().is_root() {
        program.uid(ENGINE).gid(ENGINE);
    }
    // SAFETY: between fork and exec only system calls are made, on memory that is there already.
    // The filter is applied last, and sets that no privileges can be gained.
    unsafe {
        program.pre_exec(move || {
            if !is_verbs {
                setrlimit(Resource::Memlock, limit(Some(0)))?;
            }
            setrlimit(Resource::Core, limit(Some(0)))?;
            seccompiler::apply_filter(&filter).map_err(|_| std::io::Error::last_os_error())
        });
    }
    let engine = EngineProcess::spawn_with(program, socket, &["--listen", "127.0.0.1:0"]);
    std::fs::remove_file(copy).unwrap();
    engine
}

/// A line of /proc/PID/status.
fn status_line(pid: u32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().trim_start_matches(':').trim().to_owned()
}

fn is_supported(name: &str) -> bool {
    let is_ours = cfg!(target_arch = "x86_64");
    if !is_ours {
        println!("SKIP: {name}: the numbers of system calls are those of x86_64");
    }
    is_ours
}

/// PDUs and RDMA both ways between two handles.
fn traffic(engine: &EngineProcess) {
    let (mut parent, address) = engine.parent();
    let mut bystanders = Bystanders::new(engine, address);
    bystanders.check();
    let guid = *b"a hardened guid.";
    let mut worker = open_at(&engine.socket, false);
    register(&mut worker, guid);
    let mut client = open_at(&engine.socket, false);
    let active = connect_and_send(&mut client, address, &negotiate(guid, &[0x0300]));
    let passive = wait_for(&mut worker, EventKind::PduReceived).0.connection;
    rdma(&mut client, active, &mut worker, passive);
    client.interfaces().unwrap();
    assert!(status_at(&engine.socket).connections.len() >= 4);
    // One goes in good order, one is exported, the rest end with the processes' handles.
    let token = worker.export(passive).unwrap();
    let mut other = open_at(&engine.socket, false);
    let moved = other.accept(token).unwrap();
    send(&mut client, active, 9, b"\xfeSMB after the move");
    wait_for(&mut other, EventKind::PduReceived);
    other.disconnect(moved).unwrap();
    wait_for(&mut client, EventKind::Disconnected);
    bystanders.check();
    assert!(parent.params().is_ok());
}

/// What one writes into the other's memory is there, and can be read back.
fn rdma(client: &mut Handle, active: u64, worker: &mut Handle, passive: u64) {
    let memory = |handle: &Handle| {
        let info = handle.meminfo().unwrap();
        (info.layout.rdma.offset, info.region.clone())
    };
    let ((client_at, client_memory), (worker_at, worker_memory)) = (memory(client), memory(worker));
    let length = 300_000;
    let bytes: Vec<u8> = (0..length).map(|i| ((i * 7) >> 3) as u8).collect();
    worker_memory.write(worker_at as usize, &bytes).unwrap();
    let segment = Segment {
        offset: client_at,
        length: length as u64,
    };
    let key = client.register(active, segment, true, true).unwrap();
    // It holds for a peer that has been told of it by the connection.
    send(client, active, 9, b"token");
    assert_eq!(wait_for(worker, EventKind::PduReceived).1, b"token");
    let operations = [(false, worker_at), (true, worker_at + (1 << 20))];
    for (cookie, (is_read, offset)) in operations.into_iter().enumerate() {
        let segments = [Segment {
            offset,
            length: length as u64,
        }];
        let op = RdmaOp {
            connection: passive,
            cookie: cookie as u64,
            is_read,
            has_event: true,
            is_lazy: false,
            invalidate_next: false,
            segments: &segments,
            descriptors: &[key],
        };
        worker.queue_rdma(&op).unwrap();
        worker.submit().unwrap();
        let kind = if is_read {
            EventKind::RdmaReadComplete
        } else {
            EventKind::RdmaWriteComplete
        };
        assert_eq!(wait_for(worker, kind).0.status, 0);
    }
    let mut there = vec![0; length];
    client_memory.read(client_at as usize, &mut there).unwrap();
    assert!(there == bytes, "written");
    worker_memory
        .read(worker_at as usize + (1 << 20), &mut there)
        .unwrap();
    assert!(there == bytes, "read back");
}

#[test]
fn the_engine_needs_no_more_than_its_unit_allows() {
    if !is_supported("the_engine_needs_no_more_than_its_unit_allows") {
        return;
    }
    let mut engine = engine("hardened", program(unit_filter()));
    let pid = engine.pid();
    assert_eq!(status_line(pid, "NoNewPrivs"), "1");
    assert_eq!(status_line(pid, "Seccomp"), "2");
    if rustix::process::geteuid().is_root() {
        for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(status_line(pid, set), "0000000000000000", "{set}");
        }
    }
    traffic(&engine);
    // It stops in good order, and says goodbye.
    let mut handle = open_at(&engine.socket, false);
    let process = Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(process, Signal::TERM).unwrap();
    assert_eq!(engine.wait().code(), Some(0));
    wait_for(&mut handle, EventKind::EngineLost);
    assert!(!engine.socket.exists(), "the control socket is left");
}

/// The filter of the test above does something: without one of its calls the engine is ended by it.
#[test]
fn a_call_that_the_filter_lacks_ends_the_engine() {
    if !is_supported("a_call_that_the_filter_lacks_ends_the_engine") {
        return;
    }
    let mut names = unit_filter();
    assert!(names.remove("memfd_create"));
    let mut engine = engine("too-hard", program(names));
    let options = smbdirect::client::OpenOptions {
        socket: engine.socket.clone(),
        ..Default::default()
    };
    assert!(Handle::open(options).is_err());
    assert_eq!(engine.wait().signal(), Some(libc::SIGSYS));
}

/// systemd reads the unit without a complaint, and counts little exposure.
#[test]
fn systemd_understands_the_unit() {
    let name = "systemd_understands_the_unit";
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        println!("SKIP: {name}: systemd-analyze is not installed");
        return;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/smbdirect.service.in");
    let unit = std::fs::read_to_string(path).unwrap();
    let program = env!("CARGO_BIN_EXE_smbdirect");
    let unit = unit
        .replace("@BINDIR@/smbdirect", program)
        .replace("@SYSCONFDIR@", "/etc");
    assert!(!unit.contains("DIR@"), "{unit}");
    let directory = std::env::temp_dir().join(format!("smbdirect-unit-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let path = directory.join("smbdirect.service");
    std::fs::write(&path, unit).unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new("systemd-analyze")
            .args(arguments)
            .arg(&path)
            .output();
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), text)
    };
    let (is_valid, words) = run(&["verify", "--man=no"]);
    // What other units of this machine are blamed for is not ours.
    let ours: Vec<&str> = words
        .lines()
        .filter(|line| line.contains("smbdirect"))
        .collect();
    assert!(is_valid && ours.is_empty(), "{words}");
    // 10 is a service without any hardening, 2.5 is what is left to a network service.
    let (is_low, words) = run(&["security", "--offline=true", "--threshold=25"]);
    assert!(is_low, "{words}");
    std::fs::remove_dir_all(&directory).unwrap();
}
