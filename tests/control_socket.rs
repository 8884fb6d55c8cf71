//! The control socket against strangers, nonsense and crowds, and the engine's command line against
//! values that cannot work.

#[path = "common/engine_host.rs"]
mod common;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{until_status, wait_for, TestEngine, PATIENCE};
use smbdirect::client::{EventKind, Handle, OpenOptions};
use smbdirect::ipc::{self, Caller, Params};
use smbdirect::sys::SeqPacket;

/// Names the socket of the engine that this test binary, run again as another user, is to reach.
const SOCKET: &str = "SMBDIRECT_TEST_STRANGER";

/// A number that nobody has as a user id here.
const STRANGER: u32 = 54_321;

/// Run by [`another_user_is_refused`] as another user; alone it does nothing.
#[test]
fn stranger() {
    let Some(socket) = std::env::var_os(SOCKET) else {
        return;
    };
    let options = OpenOptions {
        socket: socket.into(),
        ..Default::default()
    };
    let error = Handle::open(options).unwrap_err();
    println!("stranger: errno {}: {error}", error.errno());
}

fn run_stranger(socket: &Path) -> String {
    use std::os::unix::process::CommandExt;
    // Where it lies another user may not reach it. A process of its own copies it: a fork of another
    // test could keep a file that is open for writing here, which then could not be run.
    let copy = std::env::temp_dir().join(format!("smbdirect-stranger-{}", std::process::id()));
    let own = std::env::current_exe().unwrap();
    let status = Command::new("cp").arg(own).arg(&copy).status().unwrap();
    assert!(status.success());
    let output = Command::new(&copy)
        .args(["stranger", "--exact", "--nocapture"])
        .env(SOCKET, socket)
        .current_dir("/")
        .uid(STRANGER)
        .gid(STRANGER)
        .output();
    std::fs::remove_file(&copy).unwrap();
    let output = output.unwrap();
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    text
}

#[test]
fn another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: another_user_is_refused: only root can become another user");
        return;
    }
    // The file mode keeps strangers out; with a mode that lets them in, the engine does.
    let engine = TestEngine::start();
    let text = run_stranger(&engine.socket);
    assert!(text.contains("stranger: errno 13:"), "{text}");

    let engine = TestEngine::start_with(|config| config.socket_mode = 0o666);
    let text = run_stranger(&engine.socket);
    assert!(text.contains("stranger: errno 13: user 54321"), "{text}");
    assert!(text.contains("--allow-uid 54321"), "{text}");
    assert!(engine.status().handles.is_empty());

    let engine = TestEngine::start_with(|config| {
        config.socket_mode = 0o666;
        config.allow_uids = vec![STRANGER + 1];
    });
    let text = run_stranger(&engine.socket);
    assert!(text.contains("stranger: errno 13: user 54321"), "{text}");
}

/// The engine has hung up on this socket.
fn assert_closed(socket: &SeqPacket) {
    let mut buffer = vec![0; ipc::MAX_MESSAGE];
    loop {
        assert!(socket.wait(false, PATIENCE).unwrap(), "it was not closed");
        match socket.recv(&mut buffer) {
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn nonsense_ends_only_its_sender() {
    let engine = TestEngine::start();
    let mut parent = engine.open(true);
    parent.set_params(&Params::default()).unwrap();
    let mut messages = vec![
        vec![0xff; 1],
        vec![0xff; 64],
        vec![0xff; ipc::MAX_MESSAGE],
        vec![0x80; ipc::MAX_MESSAGE - 1],
        vec![0xff; ipc::MAX_MESSAGE + 1],
        vec![0xff; 100_000],
        // Number 1, an Open that is cut off; then counts that are not there.
        vec![1, 0],
        vec![1, 0, 1, 0xff, 0xff, 0xff, 0xff, 0x0f],
        // Number 1, SetParams with a blob said to be huge.
        vec![1, 2, 0, 1, 1, 1, 1, 1, 1, 1, 0xff, 0xff, 0xff, 0xff, 0x7f],
    ];
    // A generator of its own: the same bytes in each run.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for length in 1..200usize {
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            (state >> 33) as u8
        };
        // Postcard has no request with so large a number.
        let mut bytes = vec![1, 0x7f];
        bytes.extend((0..length).map(|_| next()));
        messages.push(bytes);
    }
    for message in messages {
        let socket = SeqPacket::connect(&engine.socket).unwrap();
        socket.send(&message, &[]).unwrap();
        assert_closed(&socket);
    }
    let status = engine.status();
    assert_eq!(status.handles.len(), 1);
    assert!(status.handles[0].parent);
    assert_eq!(parent.params().unwrap(), Params::default());
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    use std::os::fd::AsFd;
    let engine = TestEngine::start();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let socket = SeqPacket::connect(&engine.socket).unwrap();
    socket.send(&[0xff; 8], &[writer.as_fd()]).unwrap();
    drop(writer);
    assert_closed(&socket);
    // End of file only once nobody has the other end.
    let mut byte = [0];
    assert_eq!(rustix::io::read(&reader, &mut byte).unwrap(), 0);
}

#[test]
fn more_processes_than_allowed_are_turned_away() {
    let engine = TestEngine::start_with(|config| config.max_clients = 3);
    let mut handles: Vec<_> = (0..3).map(|_| engine.open(false)).collect();
    let socket = SeqPacket::connect(&engine.socket).unwrap();
    assert_closed(&socket);
    let options = OpenOptions {
        socket: engine.socket.clone(),
        ..Default::default()
    };
    assert!(Handle::open(options).is_err());
    // One goes, one comes.
    handles.pop().unwrap().close().unwrap();
    let mut parent = engine.open(true);
    parent.set_params(&Params::default()).unwrap();
    handles[0].close().unwrap();
    let status = until_status(&engine.socket, "two handles", |s| s.handles.len() == 2);
    assert!(status.engine.has_params);
}

#[test]
fn one_socket_has_one_handle_and_one_engine_one_parent() {
    let engine = TestEngine::start();
    let mut parent = engine.open(true);
    let options = OpenOptions {
        socket: engine.socket.clone(),
        parent: true,
        ..Default::default()
    };
    let error = Handle::open(options.clone()).unwrap_err();
    assert_eq!(error.errno(), libc::EBUSY);
    let pid = std::process::id().to_string();
    assert!(error.to_string().contains(&pid), "{error}");
    parent.close().unwrap();
    drop(parent);
    let mut parent = Handle::open(options).unwrap();
    parent.set_params(&Params::default()).unwrap();
    // Tools that open nothing may ask for what there is, and for nothing else.
    let mut caller = Caller::connect(&engine.socket, PATIENCE).unwrap();
    let refused = caller.call(&ipc::Request::SetParams(Params::default()), PATIENCE);
    assert_eq!(refused.unwrap_err().errno(), libc::EPERM);
    let refused = caller.call(&ipc::Request::Accept { token: [0; 16] }, PATIENCE);
    assert_eq!(refused.unwrap_err().errno(), libc::ENOENT);
    assert!(caller.call(&ipc::Request::GetParams, PATIENCE).is_ok());
}

#[test]
fn an_administrator_ends_connections() {
    let engine = TestEngine::start();
    let mut parent = engine.open(true);
    parent.set_params(&Params::default()).unwrap();
    let address = engine.listen(&mut parent);
    let request = common::negotiate([3; 16], &[0x0311]);
    let disconnect = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_smbdirect"))
            .args(["disconnect", "--socket", engine.socket.to_str().unwrap()])
            .args(arguments)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let complaint = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), said.trim_end().to_owned(), complaint)
    };
    let peer = address.ip().to_string();
    let ways: [&[&str]; 4] = [
        &[],
        &["--abort"],
        &["--peer", &peer],
        &["--local", &peer, "--abort"],
    ];
    for way in ways {
        let mut client = engine.open(false);
        common::connect_and_send(&mut client, address, &request);
        let offer = wait_for(&mut parent, EventKind::Offered).0;
        let mut server = engine.open(false);
        let connection = server.accept(offer.token).unwrap();
        wait_for(&mut server, EventKind::PduReceived);
        let by_number = connection.to_string();
        let mut arguments = way.to_vec();
        let is_by_number = !way
            .iter()
            .any(|it| it.contains("--peer") || it.contains("--local"));
        if is_by_number {
            arguments.push(&by_number);
        }
        // By address both ends are found, which are in one engine here; when one is cut off, the
        // other may be gone before its turn.
        let (status, said, complaint) = disconnect(&arguments);
        assert_eq!(status, Some(0), "{complaint}");
        let is_expected = said == "1 ended" || !is_by_number && said == "2 ended";
        assert!(is_expected, "{way:?}: {said}");
        let end = wait_for(&mut server, EventKind::Disconnected).0;
        assert_eq!(end.connection, connection);
        let is_told = end.status == -libc::ECONNABORTED || !is_by_number && end.status < 0;
        assert!(is_told, "{way:?}: {end:?}");
        let end = wait_for(&mut client, EventKind::Disconnected).0;
        assert!(end.status < 0, "{way:?}: {end:?}");
        let (status, _, complaint) = disconnect(&[&by_number]);
        assert_eq!(status, Some(1));
        assert!(complaint.contains(&by_number), "{complaint}");
    }
    // One that nobody has accepted yet; its offer is void then.
    let mut client = engine.open(false);
    common::connect_and_send(&mut client, address, &request);
    let offer = wait_for(&mut parent, EventKind::Offered).0;
    let status = until_status(&engine.socket, "an offered connection", |status| {
        status.connections.iter().any(|it| it.state == "offered")
    });
    let offered = status.connections.iter().find(|it| it.state == "offered");
    let number = offered.unwrap().id.to_string();
    assert_eq!(disconnect(&[&number]).0, Some(0));
    let mut server = engine.open(false);
    let refused = server.accept(offer.token).unwrap_err();
    assert_eq!(refused.errno(), libc::ENOENT);
    wait_for(&mut client, EventKind::Disconnected);
    // Wrong usage.
    for arguments in [&[][..], &["--abort"], &["7", "--peer", "127.0.0.1"]] {
        assert_eq!(disconnect(arguments).0, Some(2), "{arguments:?}");
    }
}

#[test]
fn the_engine_stops_and_handles_hear_of_it() {
    let engine = TestEngine::start();
    let mut handle = engine.open(false);
    let socket = engine.socket.clone();
    drop(engine);
    wait_for(&mut handle, EventKind::EngineLost);
    assert!(!socket.exists(), "the socket is left");
}

fn text(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    format!("{out}{err}")
}

/// Runs `smbdirect engine` with arguments that cannot work: the exit status and the one line.
fn engine_fails(arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_smbdirect"))
        .arg("engine")
        .args(arguments)
        .env("SMBDIRECT_LOG", "error")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), error)
}

#[test]
fn bad_arguments_get_one_line_and_an_exit_status() {
    let directory =
        std::env::temp_dir().join(format!("smbdirect-arguments-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let good = path("good.sock");
    let file = path("file");
    std::fs::write(&file, "mine").unwrap();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    let running = TestEngine::start();
    let missing = path("missing/engine.sock");
    let long = path(&"x".repeat(200));
    let cases = [
        (1, vec!["--socket", &missing], "directory does not exist"),
        (1, vec!["--socket", &long], "xxxx"),
        (1, vec!["--socket", &file], &file),
        (
            1,
            vec!["--socket", running.socket.to_str().unwrap()],
            "another engine",
        ),
        (1, vec!["--socket", &good, "--listen", &taken], &taken),
        (
            1,
            vec!["--socket", &good, "--listen", "192.0.2.1:5445"],
            "192.0.2.1:5445",
        ),
        (
            2,
            vec!["--socket", &good, "--listen", "127.0.0.1:port"],
            "127.0.0.1:port",
        ),
        (
            2,
            vec!["--socket", &good, "--listen", "127.0.0.1:70000"],
            "127.0.0.1:70000",
        ),
        // Nobody of that user could reach the socket.
        (
            2,
            vec!["--socket", &good, "--allow-uid", "12345"],
            "--socket-mode 660",
        ),
    ];
    for (code, arguments, word) in cases {
        let (got, error) = engine_fails(&arguments);
        assert_eq!(got, code, "{arguments:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{arguments:?}: {error}");
        assert!(error.starts_with("smbdirect: "), "{error}");
        assert!(error.contains(word), "{arguments:?}: {error}");
    }
    // The parser of the command line explains itself in some lines.
    for (option, value) in [("--max-connections", "0"), ("--allow-uid", "nobody")] {
        let (got, error) = engine_fails(&["--socket", &good, option, value]);
        assert_eq!(got, 2, "{error}");
        assert!(error.contains(option), "{error}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    assert!(!Path::new(&good).exists(), "a control socket is left");
    drop(holder);
    drop(running);
    std::fs::remove_dir_all(&directory).unwrap();
}
