//! A process of another user with handles on an engine: it does what lines on its standard input
//! say, and answers each with one line.
#![allow(dead_code)] // Each test uses a part of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use smbdirect::client::{ClientError, EventKind, Handle, OpenOptions};
use smbdirect::ipc::{self, Caller, OpenRequest, Params, Reply, Request, SessionSpec};
use smbdirect::ring::{AreaOptions, ClientSide, SqEntry, SqOp, ABI};
use smbdirect::sys::SeqPacket;

use crate::common::{send, test_address, test_fabric, wait_for, PATIENCE};
use crate::engine_process::copy_program;

/// Names the control socket for [`run`].
const SOCKET: &str = "SMBDIRECT_TEST_USER";
/// Begins each answer: the test harness prints lines of its own.
const ANSWER: &str = "answer: ";

/// The process, seen from the test. It ends with the value.
pub(crate) struct User {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
    program: PathBuf,
}

impl User {
    /// Starts one. The test program has a test named `user_process` that calls [`run`].
    pub(crate) fn start(name: &str, uid: u32, socket: &Path) -> Self {
        let name = format!("smbdirect-user-{name}-{}", std::process::id());
        let program = std::env::temp_dir().join(name);
        copy_program(&std::env::current_exe().unwrap(), &program);
        let mut child = Command::new(&program)
            .args(["user_process", "--exact", "--nocapture"])
            .env(SOCKET, socket)
            .current_dir("/")
            .uid(uid)
            .gid(uid)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            answers,
            program,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn ask(&mut self, line: &str) -> String {
        let input = self.child.stdin.as_mut().unwrap();
        writeln!(input, "{line}").unwrap();
        loop {
            let mut answer = String::new();
            let read = self.answers.read_line(&mut answer).unwrap();
            assert_ne!(read, 0, "{line}: the process has ended");
            if let Some((_, answer)) = answer.split_once(ANSWER) {
                return answer.trim_end().to_owned();
            }
        }
    }

    /// Does something that works. Returns what it says.
    pub(crate) fn ok(&mut self, line: &str) -> String {
        let answer = self.ask(line);
        match answer.strip_prefix("ok ") {
            Some(text) => text.to_owned(),
            None => panic!("{line}: {answer}"),
        }
    }

    /// Tries something that is refused. Returns errno and text.
    pub(crate) fn refused(&mut self, line: &str) -> String {
        let answer = self.ask(line);
        match answer.strip_prefix("errno ") {
            Some(text) => text.to_owned(),
            None => panic!("{line}: {answer}"),
        }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.program);
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digits).collect()
}

/// Looks for `mark` in all shared memory that another process has open. "found", "not found" or
/// "errno N".
pub(crate) fn peek(pid: u32, mark: &str) -> String {
    let looked = (|| {
        // Neither its memory as such nor its descriptors.
        std::fs::File::open(format!("/proc/{pid}/mem"))?;
        let mut found = false;
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
            let path = entry?.path();
            let target = std::fs::read_link(&path)?;
            if !target.to_string_lossy().starts_with("/memfd:smbdirect") {
                continue;
            }
            // To alter it is asked for as well.
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.read(true).write(true).open(&path)?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            found |= bytes.windows(mark.len()).any(|w| w == mark.as_bytes());
        }
        Ok::<_, std::io::Error>(found)
    })();
    match looked {
        Ok(true) => "found".into(),
        Ok(false) => "not found".into(),
        Err(error) => format!("errno {}", error.raw_os_error().unwrap_or(0)),
    }
}

/// The process's own part.
pub(crate) fn run() {
    let Some(socket) = std::env::var_os(SOCKET) else {
        return;
    };
    let mut me = Me {
        socket: socket.into(),
        handles: Vec::new(),
        crowd: Vec::new(),
    };
    for line in std::io::stdin().lines() {
        match me.obey(&line.unwrap()) {
            Ok(text) => println!("{ANSWER}ok {text}"),
            Err(error) => println!("{ANSWER}errno {} {error}", error.errno()),
        }
    }
}

struct Me {
    socket: PathBuf,
    /// Kept open; the last one does what is asked, `await` looks at all.
    handles: Vec<Handle>,
    crowd: Vec<SeqPacket>,
}

impl Me {
    fn open(&mut self, parent: bool) -> Result<(), ClientError> {
        let options = OpenOptions {
            socket: self.socket.clone(),
            parent,
            area: small_area(),
            timeout: PATIENCE,
        };
        self.handles.push(Handle::open(options)?);
        Ok(())
    }

    fn obey(&mut self, line: &str) -> Result<String, ClientError> {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (first, second) = rest.split_once(' ').unwrap_or((rest, ""));
        let done = |()| String::from("done");
        match (verb, first) {
            ("open", "many") => {
                let mut count = 0;
                loop {
                    match self.open(false) {
                        Ok(()) => count += 1,
                        Err(error) => return Ok(format!("{count} {} {error}", error.errno())),
                    }
                }
            }
            ("open", kind) => return self.open(kind == "parent").map(done),
            ("peek", pid) => return Ok(peek(pid.parse().unwrap(), second)),
            ("status", _) => {
                let mut caller = Caller::connect(&self.socket, PATIENCE).unwrap();
                let status = ipc::fetch_status(&mut caller, PATIENCE)
                    .map_err(|error| ClientError::new(error.errno(), error.to_string()))?;
                let (handles, connections) = (status.handles.len(), status.connections.len());
                return Ok(format!("{handles} handles, {connections} connections"));
            }
            ("end", connection) => {
                let mut caller = Caller::connect(&self.socket, PATIENCE).unwrap();
                let request = Request::Disconnect {
                    connection: connection.parse().unwrap(),
                    abort: true,
                };
                return match caller.call(&request, PATIENCE) {
                    Ok((reply, _)) => Ok(format!("{reply:?}")),
                    Err(error) => Err(ClientError::new(error.errno(), error.to_string())),
                };
            }
            ("crowd", count) => return Ok(self.make_crowd(count.parse().unwrap())),
            ("hangup", _) => return Ok(self.is_hung_up_on()),
            ("lie", connection) => return Ok(self.lie(connection.parse().unwrap())),
            ("await", kind) => return Ok(self.wait_for(kind)),
            ("events", _) => {
                let mut events = self.handles.iter_mut();
                let some = events.any(|handle| handle.next_event().unwrap().is_some());
                return Ok(if some { "some" } else { "none" }.into());
            }
            _ => {}
        }
        let handle = self.handles.last_mut().expect("open first");
        match verb {
            "mark" => {
                let memory = handle.meminfo()?;
                let at = memory.layout.rdma.offset as usize;
                memory.region.write(at, rest.as_bytes()).unwrap();
                Ok("done".into())
            }
            "params" => handle.set_params(&Params::default()).map(done),
            "listen" => {
                let spec = ipc::ListenSpec {
                    fabric: test_fabric(),
                    address: (test_address(), 0).into(),
                    crc: false,
                };
                handle.listen(&spec).map(|address| address.to_string())
            }
            "guid" | "session" => {
                let is_guid = verb == "guid";
                let spec = SessionSpec {
                    session_id: (!is_guid).then(|| first.parse().unwrap()),
                    client_guid: is_guid.then(|| unhex(first).try_into().unwrap()),
                    remove: false,
                };
                handle.set_session(&spec).map(done)
            }
            "accept" => handle
                .accept(unhex(first).try_into().unwrap())
                .map(|connection| connection.to_string()),
            "reject" => handle.reject(unhex(first).try_into().unwrap()).map(done),
            "export" => handle
                .export(first.parse().unwrap())
                .map(|token| hex(&token)),
            "send" => {
                send(handle, first.parse().unwrap(), 1, &unhex(second));
                Ok("done".into())
            }
            _ => panic!("what is {line}?"),
        }
    }

    /// Waits for an event at any handle: a token, the bytes of a PDU, or a connection.
    fn wait_for(&mut self, kind: &str) -> String {
        let kind = match kind {
            "offered" => EventKind::Offered,
            "pdu" => EventKind::PduReceived,
            "attached" => EventKind::Attached,
            _ => panic!("what is {kind}?"),
        };
        // Offers come to the parent, which was opened first; the rest to the handle opened last.
        let handle = if kind == EventKind::Offered {
            self.handles.first_mut()
        } else {
            self.handles.last_mut()
        };
        let (event, bytes) = wait_for(handle.expect("open first"), kind);
        match kind {
            EventKind::Offered => hex(&event.token),
            EventKind::PduReceived => hex(&bytes),
            _ => event.connection.to_string(),
        }
    }

    /// Submits operations on a connection of somebody else, past the library's own checks. Returns
    /// how they ended.
    fn lie(&self, connection: u64) -> String {
        let mut caller = Caller::connect(&self.socket, PATIENCE).unwrap();
        let open = Request::Open(OpenRequest {
            abi: ABI,
            version: "liar".into(),
            parent: false,
            area: AreaOptions {
                receive_slots: 16,
                ..small_area()
            },
        });
        let (reply, fds) = caller.call(&open, PATIENCE).unwrap();
        let Reply::Opened { area, .. } = reply else {
            panic!("{reply:?}")
        };
        let [memfd, bell] = fds.try_into().unwrap();
        let mut ring = ClientSide::new(&area, memfd, bell).unwrap();
        let send = ring.layout().send.offset;
        for (cookie, op) in [
            (0, SqOp::Disconnect),
            (1, SqOp::SendPdu),
            (2, SqOp::RdmaRead),
        ] {
            let mut entry = SqEntry::new(op, connection, cookie);
            entry.offset = send;
            entry.length = 64;
            if op == SqOp::RdmaRead {
                (entry.segments, entry.descriptors) = (2, 2);
            }
            ring.push_sq(&entry).unwrap().unwrap();
        }
        ring.submit().unwrap();
        let mut ends = Vec::new();
        while ends.len() < 2 {
            match ring.pop_cq().unwrap() {
                Some(entry) => ends.push(entry.status.to_string()),
                None => assert!(!caller.socket().is_closed(), "the engine hung up"),
            }
        }
        ends.join(" ")
    }

    /// Connects often, says nothing, and counts who stays connected.
    fn make_crowd(&mut self, count: usize) -> String {
        for _ in 0..count {
            self.crowd.push(SeqPacket::connect(&self.socket).unwrap());
        }
        // The engine takes connections in order: once it has answered a later one, it has seen all.
        let mut caller = Caller::connect(&self.socket, PATIENCE).unwrap();
        let answer = caller.call(&Request::Status { from: 0 }, PATIENCE);
        assert!(answer.is_err());
        let left = self.crowd.iter().filter(|socket| !socket.is_closed());
        format!("{} of {count} are left", left.count())
    }

    /// Whether the engine hangs up after its answer.
    fn is_hung_up_on(&mut self) -> String {
        self.crowd.clear();
        let mut caller = loop {
            // Until there is room again.
            let mut caller = Caller::connect(&self.socket, PATIENCE).unwrap();
            match caller.call(&Request::Status { from: 0 }, PATIENCE) {
                Err(error) if error.errno() == libc::EACCES => break caller,
                _ => {}
            }
        };
        match caller.call(&Request::Status { from: 0 }, PATIENCE) {
            Err(ipc::CallError::Gone) => "closed".into(),
            other => format!("{other:?}"),
        }
    }
}

fn small_area() -> AreaOptions {
    AreaOptions {
        rdma_buffers: 1,
        rdma_buffer_size: 4096,
        max_connections: 4,
        receive_slots: 20,
        receive_slot_size: 8192,
        send_area_size: 64 << 10,
    }
}
