//! Limits of the system: address space, file size, descriptors, a log that takes nothing. What runs
//! into one is told so, and nobody else notices.

#[path = "common/engine_host.rs"]
mod common;
#[path = "common/engine_process.rs"]
mod engine_process;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{open_at, until_status, PATIENCE};
use engine_process::{Bystanders, EngineProcess};
use rustix::process::{prlimit, Pid, Resource, Rlimit};
use smbdirect::client::{ClientError, Handle, OpenOptions};

/// Names the control socket for [`process_with_few_descriptors`].
const SOCKET: &str = "SMBDIRECT_TEST_EXHAUSTION";

fn try_open(socket: &Path) -> Result<Handle, ClientError> {
    Handle::open(OpenOptions {
        socket: socket.to_owned(),
        timeout: PATIENCE,
        ..OpenOptions::default()
    })
}

/// Lets a process have no more than `soft` of something; the hard limit stays. Returns what it had.
fn limit(pid: u32, resource: Resource, soft: u64) -> Rlimit {
    let pid = Pid::from_raw(pid as i32);
    let old = prlimit(pid, resource, rustix::process::getrlimit(resource)).unwrap();
    let new = Rlimit {
        current: Some(soft),
        maximum: old.maximum,
    };
    prlimit(pid, resource, new).unwrap();
    old
}

fn restore(pid: u32, resource: Resource, old: Rlimit) {
    prlimit(Pid::from_raw(pid as i32), resource, old).unwrap();
}

/// The limit of descriptors that leaves a process so many free ones: what counts is the highest number.
fn descriptors_for(pid: u32, room: usize) -> u64 {
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.ok()?.file_name().to_str()?.parse::<u64>().ok()
    };
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut open: Vec<u64> = open.filter_map(name).collect();
    if pid == std::process::id() {
        // The one with which they were listed.
        open.retain(|fd| std::fs::read_link(format!("/proc/self/fd/{fd}")).is_ok());
    }
    (0..).filter(|fd| !open.contains(fd)).nth(room).unwrap()
}

/// Bytes of address space that a process uses.
fn address_space(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|it| it.strip_prefix("VmSize:"));
    let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kib.parse::<u64>().unwrap() * 1024
}

#[test]
fn an_engine_without_address_space_refuses_areas() {
    let mut engine = EngineProcess::new("as");
    let (_parent, address) = engine.parent();
    let mut bystanders = Bystanders::new(&engine, address);
    let pid = engine.pid();
    let base = (engine.fds(), engine.areas());
    let before = address_space(pid);
    let first = try_open(&engine.socket).unwrap();
    let area = first.meminfo().unwrap().layout.area_size();
    // Room for two more, and for half of one, which is more than anything else needs.
    let old = limit(pid, Resource::As, before + 3 * area + area / 2);
    let mut open = vec![first];
    let error = loop {
        match try_open(&engine.socket) {
            Ok(handle) => open.push(handle),
            Err(error) => break error,
        }
        assert!(open.len() < 10, "the limit has no effect");
    };
    assert_eq!(open.len(), 3);
    assert_eq!(error.errno(), libc::ENOMEM, "{error}");
    assert!(error.to_string().contains("RLIMIT_AS"), "{error}");
    bystanders.check();
    // One goes, one comes.
    open.pop().unwrap().close().unwrap();
    open.push(try_open(&engine.socket).unwrap());
    assert!(try_open(&engine.socket).is_err());
    restore(pid, Resource::As, old);
    open.push(try_open(&engine.socket).unwrap());
    drop(open);
    engine.wait_for_no_more_than(base);
    bystanders.check();
    assert!(engine.is_running());
}

#[test]
fn an_engine_that_may_write_no_large_files_refuses_areas() {
    let mut engine = EngineProcess::new("fsize");
    let (_parent, address) = engine.parent();
    let mut bystanders = Bystanders::new(&engine, address);
    let base = (engine.fds(), engine.areas());
    let old = limit(engine.pid(), Resource::Fsize, 1 << 20);
    // More than one signal would take.
    for _ in 0..3 {
        let Err(error) = try_open(&engine.socket) else {
            panic!("it has memory");
        };
        assert_eq!(error.errno(), libc::EFBIG, "{error}");
        assert!(error.to_string().contains("RLIMIT_FSIZE"), "{error}");
    }
    bystanders.check();
    restore(engine.pid(), Resource::Fsize, old);
    drop(try_open(&engine.socket).unwrap());
    engine.wait_for_no_more_than(base);
    bystanders.check();
    assert!(engine.is_running());
}

#[test]
fn an_engine_without_descriptors_refuses_areas() {
    let mut engine = EngineProcess::new("fds-area");
    let (_parent, address) = engine.parent();
    let mut bystanders = Bystanders::new(&engine, address);
    let base = (engine.fds(), engine.areas());
    // Enough for the process (a socket and a pidfd), not for its area (a memfd and two sockets).
    for room in 2..5 {
        let old = limit(
            engine.pid(),
            Resource::Nofile,
            descriptors_for(engine.pid(), room),
        );
        let error = try_open(&engine.socket).err();
        let error = error.unwrap_or_else(|| panic!("{room} descriptors were enough"));
        assert_eq!(error.errno(), libc::EMFILE, "{room}: {error}");
        assert!(error.to_string().contains("LimitNOFILE"), "{room}: {error}");
        bystanders.check();
        engine.wait_for_no_more_than(base);
        restore(engine.pid(), Resource::Nofile, old);
    }
    drop(try_open(&engine.socket).unwrap());
    engine.wait_for_no_more_than(base);
    bystanders.check();
    assert!(engine.is_running());
}

/// Run by the next test as a process of its own: it opens handles with ever fewer descriptors left.
#[test]
fn process_with_few_descriptors() {
    let Some(socket) = std::env::var_os(SOCKET) else {
        return;
    };
    let socket = Path::new(&socket);
    let pid = std::process::id();
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count() - 1;
    let before = count();
    drop(try_open(socket).unwrap());
    assert_eq!(count(), before, "an open and close takes descriptors");
    let mut failures = 0;
    for room in 0..20 {
        let old = limit(pid, Resource::Nofile, descriptors_for(pid, room));
        let opened = try_open(socket);
        restore(pid, Resource::Nofile, old);
        let Err(error) = opened else {
            break;
        };
        println!("descriptors {room}: errno {}: {error}", error.errno());
        failures += 1;
        assert_eq!(count(), before, "with room for {room}: {error}");
    }
    println!("descriptors failures {failures}");
    assert!((1..20).contains(&failures));
    open_at(socket, false).close().unwrap();
}

#[test]
fn a_process_without_descriptors_cannot_open_and_leaks_nothing() {
    let mut engine = EngineProcess::new("fds-process");
    let (_parent, address) = engine.parent();
    let mut bystanders = Bystanders::new(&engine, address);
    let base = (engine.fds(), engine.areas());
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["process_with_few_descriptors", "--exact", "--nocapture"])
        .args(["--test-threads", "1"])
        .env(SOCKET, &engine.socket)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{error}");
    let refusals: Vec<_> = said.lines().filter(|line| line.contains("errno")).collect();
    assert!(refusals.len() > 3, "{said}");
    for line in refusals {
        assert!(line.contains("errno 24: "), "{line}");
    }
    engine.wait_for_no_more_than(base);
    until_status(&engine.socket, "rid of it", |s| s.handles.len() == 3);
    bystanders.check();
    assert!(engine.is_running());
}

/// Whoever was to read the log has gone, or the disk with it is full.
#[test]
fn an_engine_whose_log_takes_nothing_goes_on() {
    let socket = std::env::temp_dir().join(format!("smbdirect-log-{}", std::process::id()));
    for is_full in [true, false] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_smbdirect"));
        command
            .args(["engine", "--socket"])
            .arg(&socket)
            .env("SMBDIRECT_LOG", "trace")
            .stdout(Stdio::piped());
        if is_full {
            let full = std::fs::File::options().write(true).open("/dev/full");
            command.stderr(full.unwrap());
        } else {
            command.stderr(Stdio::piped());
        }
        let mut child = command.spawn().unwrap();
        drop(child.stderr.take());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "ready"));
        drop(lines);
        for _ in 0..5 {
            open_at(&socket, true).close().unwrap();
        }
        assert!(child.try_wait().unwrap().is_none(), "full: {is_full}");
        let pid = Pid::from_raw(child.id() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let start = std::time::Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if start.elapsed() > PATIENCE {
                child.kill().unwrap();
                panic!("it does not stop");
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        assert!(status.success(), "full: {is_full}: {status}");
    }
}
