//! The `smbdirect` program as its users start it: exit status, error lines, ping, proxy, bench.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_smbdirect");

/// A running command; ended with the test.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(PROGRAM)
            .args(arguments)
            .env("SMBDIRECT_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdout }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn address(&mut self) -> SocketAddr {
        let line = self.line();
        line.strip_prefix("listening on ").unwrap().parse().unwrap()
    }

    /// What it still prints, and whether it ended well.
    fn rest(mut self) -> (String, bool) {
        let mut text = String::new();
        self.stdout.read_to_string(&mut text).unwrap();
        (text, self.child.wait().unwrap().success())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().unwrap()
}

/// Exit status and the one line on standard error.
fn failure(arguments: &[&str]) -> (i32, String) {
    let output = run(arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), text)
}

#[test]
fn help_tells_purpose_examples_and_exit_status() {
    for command in [
        "engine",
        "proxy",
        "ping",
        "bench",
        "status",
        "interfaces",
        "disconnect",
    ] {
        let output = run(&[command, "--help"]);
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        for word in ["Usage:", "Examples:", "Exit status:"] {
            assert!(text.contains(word), "{command}: no {word}");
        }
    }
}

#[test]
fn wrong_usage_is_status_2_and_names_the_value() {
    let cases: [(&[&str], &str); 8] = [
        (&["ping", "127.0.0.1", "-s", "1Q"], "1Q"),
        (&["ping", "127.0.0.1:port"], "127.0.0.1:port"),
        (
            &[
                "proxy",
                "--connect",
                "127.0.0.1",
                "--max-receive-size",
                "127",
            ],
            "max_receive_size 127",
        ),
        (&["engine", "--socket-mode", "888"], "888"),
        (&["bench", "--chunk", "1"], "--chunk 1"),
        (&["bench", "--smb", "//127.0.0.1/data"], "--user"),
        (
            &[
                "bench",
                "--smb",
                "//127.0.0.1/d",
                "--user",
                "me",
                "--case",
                "9K",
            ],
            "--case '9K'",
        ),
        (
            &["bench", "--smb", "//127.0.0.1", "--user", "me"],
            "--smb //127.0.0.1",
        ),
    ];
    for (arguments, value) in cases {
        let (status, text) = failure(arguments);
        assert_eq!(status, 2, "{arguments:?}: {text}");
        assert!(text.contains(value), "{arguments:?}: {text}");
    }
}

#[test]
fn failures_are_status_1_and_one_line() {
    // Bound and not listening: nobody can take the port meanwhile, and nobody answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let cases: [(&[&str], &str); 6] = [
        (
            &["status", "--socket", "/nonexistent/engine.sock"],
            "/nonexistent/engine.sock",
        ),
        (
            &["disconnect", "7", "--socket", "/nonexistent/engine.sock"],
            "/nonexistent/engine.sock",
        ),
        (
            &["interfaces", "--socket", "/nonexistent/engine.sock"],
            "/nonexistent/engine.sock",
        ),
        (
            &["engine", "--socket", "/nonexistent/engine.sock"],
            "/nonexistent/engine.sock",
        ),
        (
            &["proxy", "--connect", "127.0.0.1", "--listen", &taken],
            &taken,
        ),
        (&["ping", "--listen", &taken], &taken),
    ];
    for (arguments, value) in cases {
        let (status, text) = failure(arguments);
        assert_eq!(status, 1, "{arguments:?}: {text}");
        assert!(text.contains(value), "{arguments:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
    }
}

#[test]
fn ping_measures_its_own_passive_side_and_by_probes() {
    let mut passive = Running::start(&["ping", "--listen", "127.0.0.1:0"]);
    let address = passive.address().to_string();
    let cases: [&[&str]; 3] = [
        &["ping", &address, "-n", "20", "--json"],
        &["ping", &address, "-n", "5", "-s", "300K", "--crc", "--json"],
        // More probes than there are credits at the start.
        &["ping", &address, "-n", "600", "--probe", "--json"],
    ];
    for arguments in cases {
        let output = run(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{arguments:?}: {text}");
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(result["iterations"].to_string(), arguments[3]);
    }
}

/// A passive side that sends everything back, and a proxy in front of it.
fn echo_behind_proxy(options: &[&str]) -> (Running, Running, TcpStream) {
    let mut passive = Running::start(&["ping", "--listen", "127.0.0.1:0", "--send-credits", "20"]);
    let peer = passive.address().to_string();
    let mut arguments = vec![
        "proxy",
        "--listen",
        "127.0.0.1:0",
        "--connect",
        &peer,
        "--once",
    ];
    arguments.extend(options);
    let mut proxy = Running::start(&arguments);
    let stream = TcpStream::connect(proxy.address()).unwrap();
    (passive, proxy, stream)
}

fn frame(message: &[u8]) -> Vec<u8> {
    let mut bytes = (message.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    bytes
}

#[test]
fn the_proxy_passes_messages_of_all_sizes_unchanged() {
    let (_passive, proxy, mut stream) = echo_behind_proxy(&["--json"]);
    let sizes = [1, 3, 64, 4096, 65_531, 65_533, 200_000, 1 << 20];
    let messages: Vec<Vec<u8>> = (0..40)
        .map(|i: usize| {
            (0..sizes[i % sizes.len()])
                .map(|at| (at * 31 + i) as u8)
                .collect()
        })
        .collect();
    let mut writer = stream.try_clone().unwrap();
    let sent = messages.clone();
    // Much more than sockets hold, and not read yet: both directions get stuck and go on.
    let thread = std::thread::spawn(move || {
        for message in &sent {
            // NetBIOS keepalives are passed over.
            writer.write_all(&[0x85, 0, 0, 0]).unwrap();
            writer.write_all(&frame(message)).unwrap();
        }
    });
    for message in &messages {
        let mut header = [0; 4];
        stream.read_exact(&mut header).unwrap();
        assert_eq!(u32::from_be_bytes(header) as usize, message.len());
        let mut bytes = vec![0; message.len()];
        stream.read_exact(&mut bytes).unwrap();
        assert!(bytes == *message, "{} bytes", message.len());
    }
    thread.join().unwrap();
    drop(stream);
    let (text, is_success) = proxy.rest();
    assert!(is_success);
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    let total: usize = messages.iter().map(Vec::len).sum();
    for line in lines {
        assert_eq!(line["pdus_sent"], 40);
        assert_eq!(line["pdus_received"], 40);
        assert_eq!(line["bytes_sent"], total);
        assert_eq!(line["bytes_received"], total);
    }
}

#[test]
fn the_proxy_refuses_what_is_no_smb2() {
    let too_long = frame(&[0; 1])[..1].to_vec();
    let long_header = [&too_long[..], &[0x20, 0, 0]].concat();
    let cases: [(Vec<u8>, &str); 4] = [
        (frame(b"\xffSMBr"), "SMB1"),
        (vec![0x81, 0, 0, 68], "NetBIOS"),
        (b"GET / HTTP/1.0\r\n\r\n".to_vec(), "type 0x47"),
        (long_header, "2097152 bytes"),
    ];
    for (bytes, reason) in cases {
        let (_passive, proxy, mut stream) = echo_behind_proxy(&[]);
        stream.write_all(&bytes).unwrap();
        // The proxy closes; whatever was sent is not answered.
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty());
        let (text, _) = proxy.rest();
        assert!(text.contains(reason), "{text}");
    }
}

#[test]
fn the_proxy_tells_that_the_server_is_not_there() {
    // A port that the kernel gives to nobody.
    let nobody = "127.0.0.1:1";
    let arguments = [
        "proxy",
        "--listen",
        "127.0.0.1:0",
        "--connect",
        nobody,
        "--once",
    ];
    let mut proxy = Running::start(&arguments);
    let mut stream = TcpStream::connect(proxy.address()).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    let (text, _) = proxy.rest();
    assert!(text.contains("cannot connect"), "{text}");
}

#[test]
fn the_bench_measures_everything() {
    let arguments = [
        "bench",
        "--json",
        "--repeat",
        "1",
        "--bytes",
        "4M",
        "--iters",
        "20",
        "--connections",
        "3",
        "--idle",
        "0.1",
    ];
    let output = run(&arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{text}");
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = result["results"].as_array().unwrap();
    assert_eq!(
        rows.iter().filter(|row| row["ratio"].is_number()).count(),
        6
    );
    assert!(rows
        .iter()
        .filter(|row| row["ratio"].is_number())
        .all(|row| { row["ours"].as_f64().unwrap() > 0.0 && row["tcp"].as_f64().unwrap() > 0.0 }));
}

#[test]
fn the_bench_measures_each_fabric() {
    let options = "--only fabric --json --repeat 1 --slice 0.01";
    let arguments: Vec<_> = ["bench"].into_iter().chain(options.split(' ')).collect();
    let output = run(&arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{text}");
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = result["results"].as_array().unwrap();
    assert_eq!(rows.len(), 22, "{result:#}");
    for row in rows {
        assert!(row["figures"]["median"].as_f64().unwrap() > 0.0, "{row}");
    }
    let none = run(&["bench", "--only", "fabric", "--case", "RDMA ATOMIC"]);
    assert_eq!(none.status.code(), Some(2));
}

#[test]
fn make_install_puts_everything_in_its_place() {
    for tool in ["make", "sed"] {
        if Command::new(tool).arg("--version").output().is_err() {
            println!("SKIP: make_install: {tool} is not installed");
            return;
        }
    }
    let root = std::env::temp_dir().join(format!("smbdirect-install-{}", std::process::id()));
    // A debug build is just as good to be put somewhere.
    let built = std::path::Path::new(PROGRAM).parent().unwrap();
    // `cargo build` puts the library beside the program, `cargo test` alone one folder below.
    let places = ["libsmbdirect.so", "deps/libsmbdirect.so"].map(|name| built.join(name));
    let library = places.iter().find(|place| place.exists()).unwrap();
    let output = Command::new("make")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["--silent", "install", "CARGO=true", "PREFIX=/usr"])
        .arg(format!("DESTDIR={}", root.display()))
        .arg(format!("RELEASE={}", built.display()))
        .arg(format!("LIBRARY={}", library.display()))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{text}");
    let soname = root.join("usr/lib/libsmbdirect.so.1");
    let target = std::fs::read_link(&soname).unwrap();
    assert!(target.to_str().unwrap().starts_with("libsmbdirect.so.1."));
    assert!(soname.exists() && root.join("usr/lib/libsmbdirect.so").exists());
    assert!(root.join("usr/include/smbdirect.h").exists());
    let program = Command::new(root.join("usr/bin/smbdirect"))
        .arg("--version")
        .output();
    let version = String::from_utf8(program.unwrap().stdout).unwrap();
    assert_eq!(
        version.trim(),
        concat!("smbdirect ", env!("CARGO_PKG_VERSION"))
    );
    let pc = std::fs::read_to_string(root.join("usr/lib/pkgconfig/smbdirect.pc")).unwrap();
    assert!(pc.contains("prefix=/usr\n") && !pc.contains('@'), "{pc}");
    assert!(pc.contains(concat!("Version: ", env!("CARGO_PKG_VERSION"))));
    let unit = root.join("usr/lib/systemd/system/smbdirect.service");
    let unit = std::fs::read_to_string(unit).unwrap();
    assert!(
        unit.contains("ExecStart=/usr/bin/smbdirect engine --socket /run/smbdirect/engine.sock")
    );
    assert!(unit.contains("EnvironmentFile=-/etc/default/smbdirect\n") && !unit.contains("DIR@"));
    std::fs::remove_dir_all(&root).unwrap();
}

/// A short load: what it compares is right, and all of its figures are there.
#[test]
fn a_load_loses_nothing_and_ends_clean() {
    let output = run(&[
        "bench",
        "--load",
        "--connections",
        "20",
        "--seconds",
        "2",
        "--json",
    ]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = result["results"].as_array().unwrap();
    let figure = |end: &str| {
        let is_it = |row: &&serde_json::Value| row["what"].as_str().unwrap().ends_with(end);
        let found: Vec<_> = rows.iter().filter(is_it).collect();
        assert!(!found.is_empty(), "no {end}");
        found
            .iter()
            .map(|row| row["ours"].as_f64().unwrap())
            .fold(f64::MAX, f64::min)
    };
    for end in [
        "answers",
        "Jain's index",
        "storm: connections",
        "storm: of them served",
    ] {
        assert!(figure(end) > 0.0, "{end}");
    }
}
