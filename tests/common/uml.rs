//! A User-mode Linux guest with the kernel's own client, and a place of its own to run it in.
#![allow(dead_code)] // Each test uses a part of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::common::{library, program, root, skip, tool_is_missing};
use crate::samba::{samba, Process};

/// How long a check may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// What the end of a guest is called that the client has crashed.
const CRASHED: &str = "crashed";
/// The server, and further addresses of it for further channels.
pub(crate) const SERVER: &str = "10.77.0.1";
pub(crate) const MORE_ADDRESSES: [&str; 3] = ["10.77.0.3", "10.77.0.4", "10.77.0.5"];
const CLIENT: &str = "10.77.0.2";
/// Of the user root.
pub(crate) const PASSWORD: &str = "secret";
/// Says that this process has namespaces of its own.
const INSIDE: &str = "SMBDIRECT_TEST_ISOLATED";

/// What a test of the kernel's client needs besides itself.
pub(crate) struct Parts {
    pub(crate) samba: &'static Path,
    pub(crate) kernel: PathBuf,
}

/// Looks for everything, and builds what has to be built. `None`: something is not available here,
/// which has been told.
pub(crate) fn parts(test: &str) -> Option<Parts> {
    let samba = samba(test)?;
    let kernel = kernel_and_tools(test, &[])?;
    Some(Parts { samba, kernel })
}

/// What the verbs fabric uses in a guest.
pub(crate) const VERBS: [(&str, &str); 2] = [
    ("/usr/include/rdma/rdma_cma.h", "librdmacm-dev"),
    ("/etc/libibverbs.d/rxe.driver", "ibverbs-providers"),
];

/// A kernel, and what its guests use; `tools` are further ones, or files, each with its package. `None`:
/// something is not available here, which has been told.
pub(crate) fn kernel_and_tools(test: &str, tools: &[(&str, &str)]) -> Option<PathBuf> {
    match find_tools(tools).and_then(|()| kernel()) {
        Ok(kernel) => Some(kernel),
        Err(reason) => {
            let strict = std::env::var("CI").is_ok_and(|value| value == "true");
            assert!(!strict, "{test}: {reason}");
            skip(test, &reason);
            None
        }
    }
}

fn find_tools(more: &[(&str, &str)]) -> Result<(), String> {
    let tools = [
        ("mount.cifs", "cifs-utils"),
        ("rdma", "iproute2"),
        ("ip", "iproute2"),
        ("pgrep", "procps"),
        ("cc", "gcc"),
    ];
    for (tool, package) in tools.iter().chain(more) {
        let is_missing = match tool.starts_with('/') {
            true => !Path::new(tool).exists(),
            false => tool_is_missing(tool),
        };
        if is_missing {
            return Err(format!("{tool} is not installed (package {package})"));
        }
    }
    Ok(())
}

/// Builds the kernel, or finds it built. For work on its configuration, SMBDIRECT_TEST_KERNEL may
/// name one to use instead.
fn kernel() -> Result<PathBuf, String> {
    static BUILD: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILD.get_or_init(build_kernel).clone()
}

fn build_kernel() -> Result<PathBuf, String> {
    if let Some(kernel) = std::env::var_os("SMBDIRECT_TEST_KERNEL") {
        return Ok(kernel.into());
    }
    let script = root().join("scripts/uml-build.sh");
    let output = Command::new(&script)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", script.display()));
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        let stdout = String::from_utf8_lossy(&output.stdout);
        return Ok(PathBuf::from(stdout.lines().last().unwrap_or_default()));
    }
    let unavailable = [
        "packages are missing",
        "this needs Debian",
        "apt-get could not install",
        "fetching failed",
    ];
    let reason = said
        .lines()
        .find(|line| unavailable.iter().any(|text| line.contains(text)));
    match reason {
        Some(line) => Err(line.to_owned()),
        None => panic!("{} failed:\n{said}", script.display()),
    }
}

/// Compiles the program that works on files in the guest.
fn compile_filecheck(folder: &Path) {
    let output = Command::new("cc")
        .args([
            "-std=c11",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Wpedantic",
            "-Werror",
            "-o",
        ])
        .arg(folder.join("filecheck"))
        .arg(root().join("tests/uml/filecheck.c"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

/// Runs a test again in a process with network, mounts and process numbers of its own, and with a
/// folder for temporary files that is gone afterwards, and so is everything it has started. Returns
/// true in that process: the test has to go on there.
pub(crate) fn isolated(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let unshare = |program: &str| {
        let mut command = Command::new("unshare");
        command
            .args([
                "--net",
                "--pid",
                "--mount-proc",
                "--fork",
                "--kill-child",
                "--",
            ])
            .arg(program)
            .stdin(Stdio::null());
        command
    };
    let probe = unshare("true").output();
    match probe {
        Ok(output) if output.status.success() => (),
        Ok(output) => {
            let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            skip(test, &format!("no namespaces of its own: {reason}"));
            return false;
        }
        Err(error) => {
            skip(test, &format!("unshare cannot be started: {error}"));
            return false;
        }
    }
    let folder = std::env::temp_dir().join(format!("smbdirect-uml-{}-{test}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let this = std::env::current_exe().unwrap();
    let output = unshare(this.to_str().expect("a path in UTF-8"))
        .args(["--exact", test])
        .args(["--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        // What failed is told by the guest; where in the harness says nothing.
        .env("RUST_BACKTRACE", "0")
        .env("TMPDIR", &folder)
        .output()
        .unwrap();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        // Its own sums would be counted once more.
        if !line.starts_with("test result:") {
            println!("{line}");
        }
    }
    if !output.status.success() || std::env::var_os("SMBDIRECT_TEST_KEEP").is_some() {
        print!("{}", String::from_utf8_lossy(&output.stderr));
    }
    if std::env::var_os("SMBDIRECT_TEST_KEEP").is_none() {
        let _ = fs::remove_dir_all(&folder);
    }
    assert!(output.status.success(), "{test}: {}", output.status);
    false
}

/// Runs a command that has to succeed.
pub(crate) fn run(line: &str) {
    if let Err(said) = try_run(line) {
        panic!("{line}: {said}");
    }
}

/// Runs a command; an error is what it said.
pub(crate) fn try_run(line: &str) -> Result<(), String> {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().expect("a command"))
        .args(words)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

/// A tap with the server's addresses, for the guest's `vec0`. An error is the reason why it cannot
/// be had here.
pub(crate) fn make_tap() -> Result<(), String> {
    run("ip link set lo up");
    try_run("ip tuntap add dev tap0 mode tap vnet_hdr")
        .map_err(|said| format!("no tap device: {said}"))?;
    for address in [SERVER].iter().chain(&MORE_ADDRESSES) {
        run(&format!("ip addr add {address}/24 dev tap0"));
    }
    run("ip link set tap0 up");
    Ok(())
}

/// Where engine and smbd run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bed {
    /// On the host, at the other end of a tap.
    Tap,
    /// In the guest, in a network namespace.
    Guest,
    /// In the guest, with an RDMA device at its end of a pair; the client has another one.
    Verbs,
    /// There are none: a program of the host runs in the guest, against the kernel's server.
    Ksmbd,
    /// There are none: tests of the host run in the guest, over its RDMA device.
    Device,
    /// There are none: two RDMA devices at the ends of a pair.
    Wire,
    /// The set starts them, in the guest with two pairs: rxe at the ends of one, siw of the other.
    Pairs,
}

impl Bed {
    fn name(self) -> &'static str {
        match self {
            Self::Tap => "tap",
            Self::Guest => "guest",
            Self::Verbs => "verbs",
            Self::Ksmbd => "ksmbd",
            Self::Device => "device",
            Self::Wire => "wire",
            Self::Pairs => "pairs",
        }
    }
}

/// How the checks of a guest have ended.
pub(crate) struct Ended {
    /// Those that were good. None was not.
    pub(crate) passed: Vec<String>,
    /// The client hung or crashed by a fault of its own, so there were no more.
    pub(crate) hangs: bool,
}

/// A guest that runs one set of checks of `tests/uml/checks.sh`.
pub(crate) struct Guest {
    process: Process,
    input: ChildStdin,
    lines: Receiver<String>,
    console: String,
    log: File,
    /// What the console says of checks that have failed.
    why: Vec<String>,
    /// Where in `console` the current check begins.
    begin: usize,
}

impl Guest {
    /// Boots. `settings` go to the guest's shell; `MTU` is that of the tap, 1500 without it.
    pub(crate) fn start(parts: &Parts, bed: Bed, set: &str, settings: &[(&str, String)]) -> Self {
        let mut all = vec![("SAMBA", parts.samba.display().to_string())];
        all.extend_from_slice(settings);
        Self::boot(&parts.kernel, bed, set, &all)
    }

    /// Boots without Samba.
    pub(crate) fn boot(kernel: &Path, bed: Bed, set: &str, settings: &[(&str, String)]) -> Self {
        let folder = std::env::temp_dir().join("guest");
        fs::create_dir_all(&folder).unwrap();
        compile_filecheck(&folder);
        write_settings(bed, set, settings, &folder);
        let mut command = Command::new(kernel);
        command
            .args([
                "mem=1536M",
                "root=/dev/root",
                "rootfstype=hostfs",
                "ro",
                "quiet",
            ])
            .args(["con=null", "con0=fd:0,fd:1"])
            .arg(format!("init={}/tests/uml/init.sh", root().display()))
            .arg(format!("UML_FOLDER={}", folder.display()))
            .env("TMPDIR", memory_folder())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        if bed == Bed::Tap {
            let mtu = settings.iter().find(|(name, _)| *name == "MTU");
            let mtu = mtu.map_or("1500", |(_, value)| value);
            run(&format!("ip link set tap0 mtu {mtu}"));
            command.arg(format!(
                "vec0:transport=tap,ifname=tap0,depth=128,gro=1,mtu={mtu}"
            ));
        }
        let mut process = Process::start(&mut command);
        let (input, output) = process.take_pipes();
        let log = File::create(folder.join("console.log")).unwrap();
        Self {
            process,
            input,
            lines: read_lines(output),
            console: String::new(),
            log,
            why: Vec::new(),
            begin: 0,
        }
    }

    /// Waits until the checks are done and answers what the guest asks for meanwhile.
    ///
    /// # Panics
    ///
    /// If one was not good, or the guest ends or falls silent before.
    pub(crate) fn finish(
        mut self,
        mut answer: impl FnMut(&str) -> Result<String, String>,
    ) -> Ended {
        let (mut passed, mut failed) = (Vec::new(), Vec::new());
        let hangs = loop {
            let event = self.next_event();
            let (kind, rest) = event.split_once(' ').unwrap_or((event.as_str(), ""));
            match kind {
                "pass" => {
                    self.begin = self.console.len();
                    passed.push(rest.to_owned());
                }
                "fail" => {
                    self.keep_why(rest);
                    failed.push(rest.to_owned());
                }
                "ask" => {
                    let reply = match answer(rest) {
                        Ok(reply) => format!("ok {reply}"),
                        Err(reason) => format!("failed {reason}"),
                    };
                    self.note(&format!("[host] {reply}"));
                    if writeln!(self.input, "{reply}").is_err() {
                        self.ended_early();
                    }
                }
                "end" => break false,
                "stuck" => {
                    // It powers off, which lets go of the tap.
                    self.process.wait();
                    println!("the kernel's client hangs, see tests/uml/README.md");
                    break true;
                }
                CRASHED => {
                    println!("the kernel's client crashed, see tests/uml/README.md");
                    break true;
                }
                _ => self.fail("an unknown event"),
            }
        };
        if !failed.is_empty() {
            self.fail(&format!("failed: {}", failed.join(", ")));
        }
        if std::env::var_os("SMBDIRECT_TEST_KEEP").is_some() {
            println!("{}", self.console);
        }
        Ended { passed, hangs }
    }

    /// The next line that is for the test.
    fn next_event(&mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => self.fail("a check takes too long"),
                Err(RecvTimeoutError::Disconnected) if self.crashed_in_client() => {
                    return CRASHED.to_owned();
                }
                Err(RecvTimeoutError::Disconnected) => self.ended_early(),
            };
            self.note(&line);
            if let Some((_, event)) = line.split_once("@@ ") {
                return event.to_owned();
            }
        }
    }

    /// The kernel used what its client had freed when a mount ended, see tests/uml/README.md. No
    /// other crash is excused.
    fn crashed_in_client(&self) -> bool {
        let (panic, work) = ("Kernel panic", "smbd_disconnect_rdma_work");
        let after = self
            .console
            .split_once(panic)
            .map_or("", |(_, after)| after);
        after
            .lines()
            .any(|line| line.starts_with("Workqueue: smbd_") && line.ends_with(work))
    }

    /// Keeps a line; a file has them for whoever waits.
    fn note(&mut self, line: &str) {
        let _ = writeln!(self.console, "{line}");
        let _ = writeln!(self.log, "{line}");
        // A test in the guest that could not be made is one here.
        if line.starts_with("SKIP: ") {
            println!("{line}");
        }
    }

    /// Keeps what the console says of a check that has failed: how it begins, where a program tells
    /// what it found, and how it ends.
    fn keep_why(&mut self, check: &str) {
        const EACH: usize = 12;
        let said = &self.console[self.begin..];
        let lines: Vec<_> = said.lines().filter(|line| !line.is_empty()).collect();
        self.why.push(check.to_owned());
        for (at, line) in lines.iter().enumerate() {
            let is_shown = at < EACH || at + EACH >= lines.len();
            let tells = |line: &str| line.contains("panicked at") || line.contains("Kernel panic");
            if is_shown || lines[at.saturating_sub(4)..=at].iter().any(|it| tells(it)) {
                self.why.push(format!("    {line}"));
            }
        }
        self.begin = self.console.len();
    }

    fn ended_early(&mut self) -> ! {
        let status = self.process.wait();
        self.fail(&format!("the guest has ended early, {status}"));
    }

    fn fail(&mut self, reason: &str) -> ! {
        let lines: Vec<_> = self.console.lines().collect();
        let end = lines.len().saturating_sub(400);
        println!("--- console of the guest\n{}", lines[end..].join("\n"));
        if self.why.is_empty() {
            self.keep_why(reason);
        }
        // `make test` shows these once more at its end.
        for line in &self.why {
            println!("WHY: {line}");
        }
        panic!("{reason}");
    }
}

fn write_settings(bed: Bed, set: &str, settings: &[(&str, String)], folder: &Path) {
    let mut all = BTreeMap::from([
        ("BED", bed.name().to_owned()),
        ("SET", set.to_owned()),
        ("SERVER", SERVER.to_owned()),
        ("MORE_ADDRESSES", MORE_ADDRESSES.join(" ")),
        ("CLIENT", CLIENT.to_owned()),
        ("TCP_PORT", "445".to_owned()),
        ("PASSWORD", PASSWORD.to_owned()),
        ("PROGRAM", program().display().to_string()),
        ("LIBRARY", library().display().to_string()),
        ("PASSED", String::new()),
        ("WIRE", String::new()),
        ("UNIT", String::new()),
        ("SMB_CONF", smb_conf()),
    ]);
    all.extend(settings.iter().cloned());
    let mut text = String::new();
    for (name, value) in all {
        let _ = writeln!(text, "{name}='{}'", value.replace('\'', "'\\''"));
    }
    fs::write(folder.join("settings"), text).unwrap();
}

/// What both beds have in the `[global]` part of smb.conf.
pub(crate) fn smb_conf() -> String {
    let addresses = [SERVER].into_iter().chain(MORE_ADDRESSES);
    let listen: Vec<_> = addresses.map(|it| format!("{it}:5445")).collect();
    smb_conf_listening(&listen.join(" "))
}

/// The same with what `smb direct listen` is; empty: the engine knows where to listen.
pub(crate) fn smb_conf_listening(listen: &str) -> String {
    let addresses = [SERVER].into_iter().chain(MORE_ADDRESSES);
    let interfaces: Vec<_> = addresses.map(|it| format!("{it}/24")).collect();
    format!(
        "interfaces = 127.0.0.1 {}\n\
         bind interfaces only = yes\n\
         server multi channel support = yes\n\
         server smb direct = yes\n\
         smb direct listen = {listen}\n\
         log level = 1\n",
        interfaces.join(" "),
    )
}

/// Where the guest's memory may be: a file system in memory if it has the room.
fn memory_folder() -> PathBuf {
    const NEEDED: u64 = 2 << 30;
    let has_room = rustix::fs::statvfs("/dev/shm")
        .is_ok_and(|it| it.f_bavail.saturating_mul(it.f_frsize) > NEEDED);
    match has_room {
        true => PathBuf::from("/dev/shm"),
        false => std::env::temp_dir(),
    }
}

/// The lines of a console, as they come.
fn read_lines(output: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output
            .read_until(b'\n', &mut line)
            .is_ok_and(|count| count > 0)
        {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(text).is_err() {
                break;
            }
            line.clear();
        }
    });
    receiver
}
