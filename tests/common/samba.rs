//! Engine, patched smbd and proxy of a test's own, and Debian's smbclient to use them.
#![allow(dead_code)] // Each test uses a part of it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{kill_process, kill_process_group, Pid, Signal};
use serde_json::Value;

use crate::common::{library, program, root, skip, target, tool_is_missing};

/// How long anything may take before the test says that it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Folder of the patched Samba's programs. `None`: not available here, which has been told.
///
/// With CI=true in the environment that is a failure.
pub(crate) fn samba(test: &str) -> Option<&'static Path> {
    static BUILD: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let mut folder = BUILD.get_or_init(build).clone();
    if tool_is_missing("smbclient") {
        folder = Err("smbclient is not installed".into());
    }
    match folder {
        Ok(_) => BUILD.get().and_then(|it| it.as_deref().ok()),
        Err(reason) => {
            let strict = std::env::var("CI").is_ok_and(|value| value == "true");
            assert!(!strict, "{test}: {reason}");
            skip(test, &reason);
            None
        }
    }
}

/// Builds the patched Samba, or finds it built. A build that fails is an error; that the source or
/// the packages to build it cannot be had is a reason to skip.
///
/// For work on the patches, SMBDIRECT_TEST_SAMBA may name a build tree to use instead.
fn build() -> Result<PathBuf, String> {
    if let Some(tree) = std::env::var_os("SMBDIRECT_TEST_SAMBA") {
        return Ok(PathBuf::from(tree).join("bin"));
    }
    let script = root().join("scripts/samba-build.sh");
    let output = Command::new(&script)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", script.display()));
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        let stdout = String::from_utf8_lossy(&output.stdout);
        let folder = PathBuf::from(stdout.lines().last().unwrap_or_default()).join("bin");
        assert!(folder.join("smbd").exists(), "no smbd in {folder:?}");
        return Ok(folder);
    }
    let unavailable = [
        "packages are missing",
        "this needs Debian",
        "apt-get could not install",
        "fetching failed",
    ];
    match said
        .lines()
        .find(|line| unavailable.iter().any(|text| line.contains(text)))
    {
        Some(line) => Err(line.to_owned()),
        None => panic!("{} failed:\n{said}", script.display()),
    }
}

/// Polls a condition until it holds.
pub(crate) fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    assert!(holds_in_time(condition), "{what}: not within {PATIENCE:?}");
}

fn holds_in_time(mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// A process that does not outlive the value.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        match command.spawn() {
            Ok(child) => Self(child),
            Err(error) => panic!("{command:?}: {error}"),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Standard input and output, if both are piped and were not taken yet.
    ///
    /// # Panics
    ///
    /// Otherwise.
    pub(crate) fn take_pipes(&mut self) -> (ChildStdin, ChildStdout) {
        let input = self.0.stdin.take().expect("is piped");
        (input, self.0.stdout.take().expect("is piped"))
    }

    pub(crate) fn kill(&self, signal: Signal) {
        send_signal(self.pid(), signal);
    }

    /// Waits for the end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the end of a process", || {
            status = self.0.try_wait().expect("our own child");
            status.is_some()
        });
        status.expect("the end was seen")
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.0.try_wait().expect("our own child").is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn send_signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid as i32).expect("a process id");
    kill_process(pid, signal).expect("the process is there");
}

pub(crate) fn is_alive(pid: u32) -> bool {
    stat_of(pid).is_some_and(|(state, _)| state != 'Z')
}

/// State and process group of a process.
fn stat_of(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // PID (NAME) STATE PPID PGRP; the name may contain anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let group = fields.nth(1)?.parse().ok()?;
    Some((state, group))
}

/// A free TCP port on 127.0.0.1, below those that the kernel gives to connections.
pub(crate) fn free_port() -> u16 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    (0..1000)
        .map(|_| {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            20000 + (std::process::id().wrapping_mul(37).wrapping_add(count) % 12000) as u16
        })
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .expect("a free port")
}

/// What a [`Server`] starts with.
pub(crate) struct Options<'a> {
    /// Lines for `[global]`; `@DIR@` stands for the private folder, `@RDMA@` for the port of SMB
    /// Direct.
    pub(crate) global: &'a str,
    /// Instead of the library under test.
    pub(crate) library: Option<&'a str>,
    /// Whether to start an engine before smbd.
    pub(crate) engine: bool,
    /// What goes before smbd's command line; `@DIR@` stands for the private folder.
    pub(crate) wrapper: &'a [&'a str],
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            global: "",
            library: None,
            engine: true,
            wrapper: &[],
        }
    }
}

/// Engine, smbd and proxy in a private folder. They end with the value.
pub(crate) struct Server {
    pub(crate) dir: PathBuf,
    bin: &'static Path,
    /// Plain TCP of smbd.
    pub(crate) tcp_port: u16,
    /// SMB Direct.
    pub(crate) rdma_port: u16,
    /// TCP of the proxy, which leads to SMB Direct.
    pub(crate) proxy_port: u16,
    pub(crate) engine: Option<Process>,
    pub(crate) smbd: Option<Process>,
    pub(crate) proxy: Option<Process>,
    smbd_pid: u32,
    wrapper: Vec<String>,
    clients: AtomicU32,
}

impl Server {
    /// Everything up and ready for SMB Direct.
    pub(crate) fn start(bin: &'static Path, global: &str) -> Self {
        let mut server = Self::start_with(
            bin,
            &Options {
                global,
                ..Options::default()
            },
        );
        server.wait_for_smb_direct();
        server.start_proxy();
        server
    }

    /// smbd serving TCP, and the engine if wanted; no proxy.
    pub(crate) fn start_with(bin: &'static Path, options: &Options<'_>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("smbdirect-samba-{}-{count}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        for folder in ["", "share", "private", "run", "ncalrpc", "client"] {
            fs::create_dir_all(dir.join(folder)).unwrap();
        }
        for (folder, mode) in [("", 0o755), ("share", 0o777)] {
            fs::set_permissions(dir.join(folder), fs::Permissions::from_mode(mode)).unwrap();
        }
        let mut server = Self {
            dir,
            bin,
            tcp_port: free_port(),
            rdma_port: free_port(),
            proxy_port: 0,
            engine: None,
            smbd: None,
            proxy: None,
            smbd_pid: 0,
            wrapper: Vec::new(),
            clients: AtomicU32::new(0),
        };
        let place = server.dir.display().to_string();
        let words = options.wrapper.iter();
        server.wrapper = words.map(|it| it.replace("@DIR@", &place)).collect();
        server.write_configuration(options);
        let passwords = server.dir.join("private/smbpasswd");
        fs::write(&passwords, "").unwrap();
        fs::set_permissions(&passwords, fs::Permissions::from_mode(0o600)).unwrap();
        if options.engine {
            server.start_engine();
        }
        server.start_smbd();
        server
    }

    fn write_configuration(&self, options: &Options<'_>) {
        let dir = self.dir.display();
        let library = match options.library {
            Some(name) => name.to_owned(),
            None => library().display().to_string(),
        };
        let mut text = String::from("[global]\n");
        for folder in ["lock", "state", "cache", "pid"] {
            let _ = writeln!(text, "{folder} directory = {dir}/run");
        }
        let _ = write!(
            text,
            "server role = standalone server
             map to guest = Bad User
             smb ports = {}
             interfaces = 127.0.0.1 {}
             bind interfaces only = yes
             disable netbios = yes
             private dir = {dir}/private
             smb passwd file = {dir}/private/smbpasswd
             passdb backend = smbpasswd
             ncalrpc dir = {dir}/ncalrpc
             log file = {dir}/smbd.log
             log level = 1
             max log size = 0
             rpc start on demand helpers = false
             disable spoolss = yes
             load printers = no
             printcap name = /dev/null
             server smb direct = yes
             smb direct library = {library}
             smb direct engine socket = {dir}/engine.sock
             smb direct listen = {}
             {}
             [share]
             path = {dir}/share
             read only = no
             guest ok = yes
             create mask = 0777
             directory mask = 0777
             ",
            self.tcp_port,
            // What RDMA devices have is told to clients, too.
            match target::is_verbs() {
                true => target::address().to_string(),
                false => String::new(),
            },
            target::target(self.rdma_port),
            options
                .global
                .replace("@DIR@", &dir.to_string())
                .replace("@RDMA@", &self.rdma_port.to_string()),
        );
        if !rustix::process::geteuid().is_root() {
            let _ = writeln!(text, "force user = {}", user());
        }
        fs::write(self.dir.join("smb.conf"), text).unwrap();
    }

    fn log(&self, name: &str) -> File {
        File::options()
            .create(true)
            .append(true)
            .open(self.dir.join(name))
            .unwrap()
    }

    /// Starts an engine and waits until it answers.
    pub(crate) fn start_engine(&mut self) {
        let mut engine = Process::start(
            Command::new(program())
                .arg("engine")
                .arg("--socket")
                .arg(self.dir.join("engine.sock"))
                .stdin(Stdio::null())
                .stdout(self.log("engine.log"))
                .stderr(self.log("engine.log")),
        );
        self.wait_until("the engine answers", || {
            assert!(engine.is_running(), "the engine ended early");
            self.try_status().is_some()
        });
        self.engine = Some(engine);
    }

    /// Starts smbd and waits until it serves TCP.
    pub(crate) fn start_smbd(&mut self) {
        self.spawn_smbd();
        self.wait_until("the probe's process ends", || self.clients_served() == 0);
    }

    /// Kills smbd with all its processes and starts it again. Clients may be waiting for that.
    pub(crate) fn restart_smbd(&mut self) {
        let group = Pid::from_raw(self.smbd_pid as i32).expect("a process id");
        kill_process_group(group, Signal::KILL).expect("the group is there");
        self.respawn_smbd();
    }

    /// Starts smbd again once all its processes have ended; the first one was told to.
    pub(crate) fn respawn_smbd(&mut self) {
        self.smbd = None;
        self.wait_until("smbd's children end", || self.smbd_children().is_empty());
        self.spawn_smbd();
        self.wait_for_params();
    }

    fn spawn_smbd(&mut self) {
        let smbd = self.bin.join("smbd");
        let mut command = match self.wrapper.split_first() {
            None => Command::new(smbd),
            Some((program, rest)) => {
                let mut command = Command::new(program);
                command.args(rest).arg(smbd);
                command
            }
        };
        let mut smbd = Process::start(
            command
                .arg("--foreground")
                .arg("--no-process-group")
                .arg("--configfile")
                .arg(self.dir.join("smb.conf"))
                // Its children are told by the group.
                .process_group(0)
                .stdin(Stdio::null())
                .stdout(self.log("smbd.out"))
                .stderr(self.log("smbd.out")),
        );
        self.smbd_pid = smbd.pid();
        self.wait_until("smbd serves TCP", || {
            assert!(smbd.is_running(), "smbd ended early");
            TcpStream::connect(("127.0.0.1", self.tcp_port)).is_ok()
        });
        self.smbd = Some(smbd);
    }

    /// Waits until smbd has told the engine what to do.
    pub(crate) fn wait_for_smb_direct(&self) {
        self.wait_until("smbd listens for SMB Direct", || {
            self.try_status().is_some_and(|status| {
                let listeners = status["listeners"].as_array().map_or(0, Vec::len);
                status["engine"]["has_params"] == true && listeners == 1
            })
        });
    }

    /// Waits until smbd has attached to the engine.
    pub(crate) fn wait_for_params(&self) {
        self.wait_until("smbd attaches to the engine", || {
            self.try_status()
                .is_some_and(|status| status["engine"]["has_params"] == true)
        });
    }

    /// Starts the proxy.
    pub(crate) fn start_proxy(&mut self) {
        let proxy = Process::start(
            Command::new(program())
                .args(["proxy", "--listen", "127.0.0.1:0", "--connect"])
                .arg(target::client_target(self.rdma_port))
                .stdin(Stdio::null())
                .stdout(self.log("proxy.out"))
                .stderr(self.log("proxy.log")),
        );
        let mut port = None;
        self.wait_until("the proxy listens", || {
            let text = self.read("proxy.out");
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("listening on 127.0.0.1:"));
            port = line.and_then(|text| text.parse().ok());
            port.is_some()
        });
        self.proxy_port = port.expect("was waited for");
        self.proxy = Some(proxy);
    }

    /// The process id of smbd's parent.
    pub(crate) fn smbd_pid(&self) -> u32 {
        self.smbd_pid
    }

    /// What a file of the private folder contains.
    pub(crate) fn read(&self, name: &str) -> String {
        let bytes = fs::read(self.dir.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(crate) fn share(&self, name: &str) -> PathBuf {
        self.dir.join("share").join(name)
    }

    /// Like the function of this name, and shows the logs if it fails.
    pub(crate) fn wait_until(&self, what: &str, condition: impl FnMut() -> bool) {
        if !holds_in_time(condition) {
            panic!(
                "{what}: not within {PATIENCE:?}; processes {:?}",
                self.smbd_children()
            );
        }
    }

    /// `smbdirect status --json`, if an engine answers.
    pub(crate) fn try_status(&self) -> Option<Value> {
        let output = Command::new(program())
            .args(["status", "--json", "--socket"])
            .arg(self.dir.join("engine.sock"))
            .stderr(Stdio::null())
            .output()
            .unwrap();
        if !output.status.success() {
            return None;
        }
        Some(serde_json::from_slice(&output.stdout).expect("status --json prints JSON"))
    }

    /// The same; a machine that stands still for a while may make the program give up, so it is asked
    /// again.
    pub(crate) fn status(&self) -> Value {
        let mut status = None;
        holds_in_time(|| {
            status = self.try_status();
            status.is_some()
        });
        status.expect("an engine answers")
    }

    /// The records of connections that have an owner.
    pub(crate) fn owned_connections(&self) -> Vec<Value> {
        let mut status = self.status();
        let mut connections = Vec::new();
        if let Some(all) = status["connections"].as_array_mut() {
            connections.append(all);
        }
        connections.retain(|it| it["owner_pid"].is_u64());
        connections
    }

    /// Waits until the engine has no connection, no handle but smbd's own, and smbd no child that
    /// serves a client.
    pub(crate) fn wait_for_baseline(&self) {
        let is_idle = || {
            let status = self.status();
            let handles = status["handles"].as_array().expect("handles");
            status["connections"] == Value::Array(Vec::new())
                && handles.len() == 1
                && handles[0]["pid"] == self.smbd_pid
                && handles[0]["parent"] == true
                && self.clients_served() == 0
        };
        if !holds_in_time(is_idle) {
            panic!(
                "left over: {:#}\nprocesses {:?}",
                self.status(),
                self.smbd_children()
            );
        }
    }

    /// smbd's children, those that serve no client included.
    pub(crate) fn smbd_children(&self) -> BTreeSet<u32> {
        let processes = fs::read_dir("/proc").unwrap();
        processes
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|&pid| pid != self.smbd_pid)
            .filter(|&pid| {
                stat_of(pid).is_some_and(|(state, group)| group == self.smbd_pid && state != 'Z')
            })
            .collect()
    }

    /// How many of smbd's children serve a client. The others have a name of their own.
    pub(crate) fn clients_served(&self) -> usize {
        let title = |pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        self.smbd_children()
            .into_iter()
            .filter(|&pid| {
                let title = title(pid);
                !title.starts_with("smbd-") && title.trim_end() != "smbdirect"
            })
            .count()
    }

    /// `smbstatus --json`.
    pub(crate) fn smbstatus(&self) -> Value {
        let output = self.tool("smbstatus").arg("--json").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("smbstatus --json prints JSON")
    }

    /// A program of the patched Samba, with the configuration.
    pub(crate) fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        command.arg("-s").arg(self.dir.join("smb.conf"));
        command
    }

    /// Adds the user of this process with a password.
    pub(crate) fn add_user(&self, password: &str) {
        use std::io::Write as _;
        let mut child = Command::new(self.bin.join("smbpasswd"))
            .args(["-L", "-c"])
            .arg(self.dir.join("smb.conf"))
            .args(["-s", "-a", &user()])
            .stdin(Stdio::piped())
            .stdout(self.log("smbpasswd.log"))
            .stderr(self.log("smbpasswd.log"))
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().expect("is piped");
        write!(input, "{password}\n{password}\n").unwrap();
        drop(input);
        let status = child.wait().unwrap();
        assert!(status.success(), "{}", self.read("smbpasswd.log"));
    }

    /// A run of smbclient to be configured; `port` is the proxy's or smbd's own.
    pub(crate) fn client(&self, port: u16) -> Client<'_> {
        let count = self.clients.fetch_add(1, Ordering::Relaxed);
        let log = format!("client-{count}.log");
        let mut command = Command::new("smbclient");
        command
            .args(["//127.0.0.1/share", "--configfile=/dev/null", "--port"])
            .arg(port.to_string())
            .current_dir(self.dir.join("client"))
            .stdin(Stdio::null())
            .stdout(self.log(&log))
            .stderr(self.log(&log));
        Client {
            server: self,
            command,
            log,
            user: "%".into(),
        }
    }

    /// A guest's commands through the proxy.
    pub(crate) fn smb(&self, commands: &str) -> String {
        self.client(self.proxy_port).run(commands)
    }

    /// A guest's commands by plain TCP.
    pub(crate) fn smb_by_tcp(&self, commands: &str) -> String {
        self.client(self.tcp_port).run(commands)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.proxy = None;
        if let Some(mut smbd) = self.smbd.take() {
            let is_gone = smbd.is_running() && {
                smbd.kill(Signal::TERM);
                holds_in_time(|| !smbd.is_running())
            };
            let leftovers = self.smbd_children();
            if !is_gone || !leftovers.is_empty() {
                // The group is smbd's alone.
                let group = Pid::from_raw(self.smbd_pid as i32).expect("a process id");
                let _ = kill_process_group(group, Signal::KILL);
            }
        }
        self.engine = None;
        if std::thread::panicking() {
            for name in ["engine.log", "proxy.log", "smbd.out", "smbd.log"] {
                let text = self.read(name);
                let lines: Vec<_> = text.lines().collect();
                let end = lines.len().saturating_sub(30);
                println!("--- end of {name}\n{}", lines[end..].join("\n"));
            }
        }
        if std::env::var_os("SMBDIRECT_TEST_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// The name of the user that runs this.
pub(crate) fn user() -> String {
    let output = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// smbclient, about to start.
pub(crate) struct Client<'a> {
    server: &'a Server,
    command: Command,
    log: String,
    user: String,
}

impl<'a> Client<'a> {
    pub(crate) fn arg(mut self, arg: &str) -> Self {
        self.command.arg(arg);
        self
    }

    /// The user of this process instead of a guest.
    pub(crate) fn password(mut self, password: &str) -> Self {
        self.user = format!("{}%{password}", user());
        self
    }

    /// Runs commands that have to succeed; returns what smbclient said.
    pub(crate) fn run(self, commands: &str) -> String {
        let (status, said) = self.try_run(commands);
        let is_good = status.success() && !said.contains("NT_STATUS_");
        assert!(is_good, "smbclient -c '{commands}': {status}\n{said}");
        said
    }

    /// Runs commands; returns how smbclient ended and what it said.
    pub(crate) fn try_run(self, commands: &str) -> (ExitStatus, String) {
        self.start(commands).finish()
    }

    /// Starts commands.
    pub(crate) fn start(mut self, commands: &str) -> Running<'a> {
        self.command.args(["-U", &self.user, "-c", commands]);
        self.spawn()
    }

    /// Starts commands, with a pipe as standard input.
    pub(crate) fn start_with_input(mut self, commands: &str) -> Running<'a> {
        self.command.stdin(Stdio::piped());
        self.start(commands)
    }

    /// A session that is held until the value goes; it has done an `ls` on return.
    pub(crate) fn hold(self) -> Running<'a> {
        let mut session = self.begin();
        session.wait_for_ls();
        session
    }

    /// Like [`Client::hold`], but does not wait for the `ls`.
    pub(crate) fn begin(mut self) -> Running<'a> {
        // Standard error is not buffered.
        self.command
            .args(["--stderr", "-U", &self.user])
            .stdin(Stdio::piped());
        let mut session = self.spawn();
        session.command("ls");
        session
    }

    fn spawn(mut self) -> Running<'a> {
        let mut process = Process::start(&mut self.command);
        Running {
            server: self.server,
            input: process.0.stdin.take(),
            process,
            log: self.log,
        }
    }
}

/// smbclient, running.
pub(crate) struct Running<'a> {
    server: &'a Server,
    pub(crate) process: Process,
    pub(crate) input: Option<ChildStdin>,
    log: String,
}

impl Running<'_> {
    /// Gives a command to a held session.
    pub(crate) fn command(&mut self, text: &str) {
        use std::io::Write as _;
        writeln!(self.input.as_mut().expect("has input"), "{text}").unwrap();
    }

    /// What smbclient has said so far.
    pub(crate) fn output(&self) -> String {
        self.server.read(&self.log)
    }

    /// Waits until the first `ls` of a held session is done.
    pub(crate) fn wait_for_ls(&mut self) {
        self.wait_for_output("blocks available");
    }

    /// Waits until smbclient has said something.
    pub(crate) fn wait_for_output(&mut self, text: &str) {
        let start = Instant::now();
        while !self.output().contains(text) {
            let is_in_time = start.elapsed() < PATIENCE && self.process.is_running();
            assert!(is_in_time, "no `{text}` of smbclient:\n{}", self.output());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends a held session, or waits for the end of the commands.
    pub(crate) fn finish(mut self) -> (ExitStatus, String) {
        self.input = None;
        let status = self.process.wait();
        (status, self.output())
    }
}
