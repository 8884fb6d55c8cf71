//! The C program in README: it is the file in examples/, it compiles, and it works.

mod common;
#[path = "common/engine_host.rs"]
mod engine_host;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{library, program, root, skip, tool_is_missing};
use engine_host::wait_for;
use smbdirect::client::{EventKind, Handle, OpenOptions, SendPdu};
use smbdirect::ipc::{ConnectSpec, Fabric, Params};

#[test]
fn program_in_readme_is_the_example() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let blocks: Vec<_> = readme
        .split("\n```c\n")
        .skip(1)
        .map(|rest| &rest[..=rest.find("\n```").expect("the end of the block")])
        .collect();
    let example = std::fs::read_to_string(root().join("examples/server.c")).unwrap();
    assert_eq!(blocks, [example], "copy examples/server.c into README.md");
}

#[test]
fn example_answers_a_peer() {
    if tool_is_missing("cc") {
        return skip("example_answers_a_peer", "cc is not installed");
    }
    let directory = directory();
    let server = compile(&directory);
    let socket = directory.join(format!("engine-{}.sock", std::process::id()));

    let mut engine = Running::start(
        Command::new(program())
            .args(["engine", "--socket"])
            .arg(&socket)
            .stdout(Stdio::piped()),
    );
    let mut said = BufReader::new(engine.0.stdout.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap() == "ready"));

    let mut server = Running::start(
        Command::new(server)
            .arg(&socket)
            .arg("0")
            .stdout(Stdio::piped()),
    );
    let mut said = BufReader::new(server.0.stdout.take().unwrap()).lines();
    let first = said.next().expect("the server starts").unwrap();
    let port = first.strip_prefix("listening on port ").expect(&first);

    let mut peer = Handle::open(OpenOptions {
        socket,
        ..OpenOptions::default()
    })
    .unwrap();
    let connection = peer.connect(&connect_spec(port.parse().unwrap())).unwrap();
    wait_for(&mut peer, EventKind::Attached);
    // The first one has to be NEGOTIATE, the others may be anything.
    for bytes in [negotiate(), vec![0x5a; 300_000]] {
        let pdu = SendPdu {
            connection,
            cookie: 1,
            has_event: false,
            invalidate: None,
            length: bytes.len(),
        };
        peer.queue_bytes(&pdu, &bytes).unwrap();
        peer.submit().unwrap();
        let (_, answer) = wait_for(&mut peer, EventKind::PduReceived);
        assert!(answer == bytes, "the answer differs");
    }
    peer.disconnect(connection).unwrap();
    wait_for(&mut peer, EventKind::Disconnected);

    let rest: Vec<_> = said.map(Result::unwrap).collect();
    let pdus = ["PDU of 102 bytes", "PDU of 300000 bytes"];
    assert_eq!(rest[..2], pdus);
    assert!(rest[2].starts_with("end: "), "{rest:?}");
    assert!(server.0.wait().unwrap().success());
}

/// A process that ends with the test.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn directory() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("readme");
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

/// Compiles the example as its first lines tell, with every warning an error.
fn compile(directory: &Path) -> PathBuf {
    let by_soname = directory.join("libsmbdirect.so.1");
    let _ = std::fs::remove_file(&by_soname);
    std::os::unix::fs::symlink(library(), &by_soname).unwrap();
    let server = directory.join("server");
    let output = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror"])
        .arg("-I")
        .arg(root().join("include"))
        .arg("-o")
        .arg(&server)
        .arg(root().join("examples/server.c"))
        .arg(&by_soname)
        .arg(format!("-Wl,-rpath,{}", directory.display()))
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    server
}

fn connect_spec(port: u16) -> ConnectSpec {
    ConnectSpec {
        fabric: Fabric::SoftIwarp,
        address: ([127, 0, 0, 1], port).into(),
        crc: false,
        mpa_revision: 2,
        timeout_msec: 60_000,
        params: Params {
            max_send_size: 1364,
            ..Params::default()
        },
    }
}

/// An SMB2 NEGOTIATE request for 3.0, `[MS-SMB2] 2.2.3`.
fn negotiate() -> Vec<u8> {
    let mut pdu = vec![0; 64];
    pdu[..4].copy_from_slice(b"\xfeSMB");
    pdu[4] = 64;
    pdu[14] = 1;
    pdu.extend([36, 0, 1, 0, 1, 0, 0, 0, 0x44, 0, 0, 0]);
    pdu.extend([7; 16]);
    pdu.extend([0; 8]);
    pdu.extend([0x00, 0x03]);
    pdu
}
