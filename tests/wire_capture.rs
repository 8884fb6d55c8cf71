//! A run over the loopback interface, captured and dissected by tshark: everything on the wire is
//! iWARP, SMB Direct and SMB2 without a malformed or an unknown frame.

#[path = "common/engine_host.rs"]
mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{negotiate, send, smb2_header, until_end, wait_for, TestEngine};
use smbdirect::client::{EventKind, RdmaOp};
use smbdirect::ipc::{ConnectSpec, Fabric, ListenSpec, Params};
use smbdirect::ring::Segment;

/// A capture of one TCP port of one loopback address.
struct Capture {
    child: Child,
    file: PathBuf,
}

impl Capture {
    /// Starts it and returns when it captures; else why it cannot.
    fn start(address: SocketAddr) -> Result<Self, String> {
        let name = format!(
            "smbdirect-capture-{}-{}",
            std::process::id(),
            address.port()
        );
        let file = std::env::temp_dir().join(name);
        let mut child = Command::new("dumpcap")
            .args(["-i", "lo", "-P", "-f"])
            .arg(format!(
                "host {} and tcp port {}",
                address.ip(),
                address.port()
            ))
            .arg("-w")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("dumpcap does not start: {error}"))?;
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = Vec::new();
        // It names its file once the filter is in force.
        let is_on = lines.any(|line| {
            let line = line.unwrap();
            let is_on = line.starts_with("File: ");
            said.push(line);
            is_on
        });
        if !is_on {
            child.wait().unwrap();
            return Err(format!("dumpcap cannot capture: {}", said.join(" ")));
        }
        // What it says later has to go somewhere.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self { child, file })
    }

    /// Ends it once its file is complete.
    fn stop(mut self, is_complete: impl Fn(&Path) -> bool) -> PathBuf {
        let start = std::time::Instant::now();
        while !is_complete(&self.file) {
            assert!(
                start.elapsed() < common::PATIENCE,
                "the capture lacks the end"
            );
        }
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        assert!(self.child.wait().unwrap().success());
        self.file
    }
}

/// Runs tshark on a capture; its lines.
fn tshark(file: &Path, arguments: &[&str]) -> Vec<String> {
    let output = Command::new("tshark")
        .args(["-o", "tcp.try_heuristic_first:TRUE", "-n", "-r"])
        .arg(file)
        .args(arguments)
        .output()
        .unwrap();
    // A file that is still written may end in the middle of a packet: that is no failure here.
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

/// One field of the frames that a filter shows.
fn frames(file: &Path, filter: &str, fields: &[&str]) -> Vec<String> {
    let mut arguments = vec!["-Y", filter, "-T", "fields"];
    for field in fields {
        arguments.extend(["-e", field]);
    }
    tshark(file, &arguments)
}

/// Two handles do everything that makes bytes on the wire. Returns when both ends are closed.
fn run(engine: &TestEngine, server: SocketAddr, crc: bool, capture: impl FnOnce()) {
    let mut parent = engine.open(true);
    parent.set_params(&Params::default()).unwrap();
    let spec = ListenSpec {
        fabric: Fabric::SoftIwarp,
        address: server,
        crc,
    };
    parent.listen(&spec).unwrap();
    capture();
    let (mut client, mut worker) = (engine.open(false), engine.open(false));
    let active = client
        .connect(&ConnectSpec {
            crc,
            ..engine.connect_spec(server)
        })
        .unwrap();
    wait_for(&mut client, EventKind::Attached);
    send(
        &mut client,
        active,
        1,
        &negotiate([7; 16], &[0x0300, 0x0311]),
    );
    let offer = wait_for(&mut parent, EventKind::Offered).0;
    let passive = worker.accept(offer.token).unwrap();
    wait_for(&mut worker, EventKind::PduReceived);

    // An ECHO in one message, then a PDU in fragments. tshark 4.0 does not put together those of
    // which several lie in one TCP segment: it shows their SMB Direct headers.
    let mut echo = smb2_header(13, 1, 0);
    echo.extend([4, 0, 0, 0]);
    send(&mut client, active, 2, &echo);
    assert_eq!(wait_for(&mut worker, EventKind::PduReceived).1, echo);
    let large = vec![0x5a; 60_000];
    send(&mut client, active, 2, &large);
    assert!(wait_for(&mut worker, EventKind::PduReceived).1 == large);

    let info = worker.meminfo().unwrap();
    let start = info.layout.rdma.offset;
    let length = 300_000;
    let data: Vec<u8> = (0..length).map(|i| (i * 7 % 251) as u8).collect();
    info.region.write(start as usize, &data).unwrap();
    let target = Segment {
        offset: start,
        length: length as u64,
    };
    let descriptor = client.register(active, target, true, true).unwrap();
    let op = RdmaOp {
        connection: passive,
        cookie: 3,
        has_event: true,
        is_lazy: false,
        is_read: false,
        invalidate_next: false,
        segments: &[target],
        descriptors: &[descriptor],
    };
    worker.queue_rdma(&op).unwrap();
    worker.submit().unwrap();
    assert_eq!(
        wait_for(&mut worker, EventKind::RdmaWriteComplete).0.status,
        0
    );
    worker
        .queue_rdma(&RdmaOp {
            is_read: true,
            ..op
        })
        .unwrap();
    worker.submit().unwrap();
    assert_eq!(
        wait_for(&mut worker, EventKind::RdmaReadComplete).0.status,
        0
    );
    worker.disconnect(passive).unwrap();
    until_end(&mut client);
    until_end(&mut worker);
}

fn check(name: &str, crc: bool) {
    for tool in ["tshark", "dumpcap"] {
        let mut command = Command::new(tool);
        command.arg("--version").stdout(Stdio::null());
        if command.stderr(Stdio::null()).status().is_err() {
            println!("SKIP: {name}: {tool} is not installed");
            return;
        }
    }
    // An address of its own, so that no other test is given the same port once it is free again.
    let [_, high, middle, low] = (std::process::id() << 1 | u32::from(crc)).to_be_bytes();
    let host = Ipv4Addr::new(127, high | 128, middle, low);
    let holder = std::net::TcpListener::bind((host, 0)).unwrap();
    let address = holder.local_addr().unwrap();
    drop(holder);
    let port = address.port();
    let engine = TestEngine::start();
    let mut capture = None;
    run(&engine, address, crc, || {
        capture = Some(Capture::start(address))
    });
    let capture = match capture.unwrap() {
        Ok(capture) => capture,
        Err(reason) => {
            println!("SKIP: {name}: {reason}");
            return;
        }
    };
    // Nobody listens any more: a refused connection marks the end of the capture.
    drop(engine);
    TcpStream::connect(address).unwrap_err();
    let end = format!("tcp.flags.reset==1 && tcp.srcport=={port} && tcp.len==0 && tcp.seq==1");
    let file = capture.stop(|file| {
        let resets = frames(file, &end, &["tcp.stream"]);
        resets.iter().any(|stream| stream == "1")
    });

    let bad = frames(
        &file,
        // A full window is TCP at work, the reset is the mark.
        "_ws.malformed || _ws.unreassembled || _ws.short \
         || (_ws.expert.severity >= 0x600000 && !tcp.analysis.window_full \
         && !tcp.analysis.zero_window && !(tcp.flags.reset == 1))",
        &["frame.number", "frame.protocols", "_ws.expert.message"],
    );
    assert_eq!(bad, [""; 0], "frames that tshark objects to");
    // Each frame with payload is iWARP all through.
    let unknown = frames(
        &file,
        "tcp.len > 0 && !iwarp_mpa && !tcp.reassembled_in",
        &["frame.number", "frame.protocols"],
    );
    assert_eq!(unknown, [""; 0], "frames that are not iWARP");
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for filter in [
        "iwarp_mpa.req",
        "iwarp_mpa.rep",
        "iwarp_mpa.fpdu",
        "iwarp_rdma.opcode == 0x0",
        "iwarp_rdma.opcode == 0x1",
        "iwarp_rdma.opcode == 0x2",
        "iwarp_rdma.opcode == 0x3",
        "smb_direct.negotiate_request",
        "smb_direct.negotiate_response",
        "smb_direct.data_message",
        "smb_direct.remaining_length > 0",
        "smb2.cmd == 0",
        "smb2.cmd == 13",
    ] {
        let count = frames(&file, filter, &["frame.number"]).len();
        seen.insert(filter, count);
    }
    println!("{seen:?}");
    let missing: Vec<_> = seen.iter().filter(|(_, &count)| count == 0).collect();
    assert!(missing.is_empty(), "not in the capture: {missing:?}");
    let crcs = frames(&file, "iwarp_mpa.crc_check", &["iwarp_mpa.crc_check"]);
    assert_eq!(crcs.is_empty(), !crc, "{crcs:?}");
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn a_capture_is_dissected_to_smb2() {
    check("a_capture_is_dissected_to_smb2", false);
}

#[test]
fn a_capture_with_crc_is_dissected_to_smb2() {
    check("a_capture_with_crc_is_dissected_to_smb2", true);
}
