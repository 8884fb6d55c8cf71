//! Children of the bench, and what the kernel says about a process.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::failure::Failure;

/// This program as a child. It ends when its standard input is closed, or with the bench.
pub(super) struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    /// Starts this binary with other arguments.
    pub(super) fn start(arguments: &[&str]) -> Result<Self, Failure> {
        let failed = || Failure::of(format!("starting `smbdirect {}`", arguments.join(" ")));
        let program = std::env::current_exe().map_err(failed())?;
        let mut child = Command::new(program)
            .args(arguments)
            .env("SMBDIRECT_LOG", "warn")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed())?;
        let stdin = child.stdin.take();
        let Some(stdout) = child.stdout.take() else {
            return Err(Failure::Failed("a child without standard output".into()));
        };
        Ok(Self {
            child,
            stdin,
            stdout: BufReader::new(stdout),
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line it prints.
    pub(super) fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        match self.stdout.read_line(&mut line) {
            Ok(0) => Err(Failure::Failed(
                "a child process of the bench ended early".into(),
            )),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(error) => Err(Failure::Failed(format!("reading from a child: {error}"))),
        }
    }

    /// Reads lines until `listening on ADDRESS`.
    pub(super) fn address(&mut self) -> Result<SocketAddr, Failure> {
        loop {
            let line = self.line()?;
            if let Some(address) = line.strip_prefix("listening on ") {
                return address.parse().map_err(Failure::of(format!("`{line}`")));
            }
        }
    }

    /// Tells it to end, and reads its last line.
    pub(super) fn finish(mut self) -> Result<String, Failure> {
        self.stdin = None;
        self.line()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Proportional set size of a process, bytes: shared pages count by their share.
pub(super) fn pss_bytes(pid: u32) -> Result<u64, Failure> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).map_err(Failure::of(&path))?;
    text.lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .ok_or_else(|| Failure::Failed(format!("{path} has no Pss line")))
}

/// Memory of a process that it shares with nobody, bytes.
pub(super) fn own_bytes(pid: u32) -> Result<u64, Failure> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).map_err(Failure::of(&path))?;
    text.lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .ok_or_else(|| Failure::Failed(format!("{path} has no RssAnon line")))
}

/// Open file descriptors of a process.
pub(super) fn open_files(pid: u32) -> Result<usize, Failure> {
    let path = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&path).map_err(Failure::of(&path))?.count())
}

/// CPU time of a process so far, seconds.
pub(super) fn cpu_seconds(pid: u32) -> Result<f64, Failure> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).map_err(Failure::of(&path))?;
    // After the name in parentheses: fields 3 and on; utime is field 14, stime 15.
    let rest = text
        .rsplit_once(')')
        .map(|(_, rest)| rest)
        .unwrap_or_default();
    let ticks: u64 = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// CPU time of processes and all their descendants so far, seconds. A descendant that has ended
/// counts no more, so take the difference while they are all there.
pub(super) fn cpu_seconds_of_trees(roots: &[u32]) -> Result<f64, Failure> {
    let mut parents = HashMap::new();
    for entry in fs::read_dir("/proc")
        .map_err(Failure::of("/proc"))?
        .flatten()
    {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process may end meanwhile.
        let Ok(text) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let parent = text
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        parents.insert(pid, parent.unwrap_or_default());
    }
    let mut seconds = 0.0;
    for &root in roots {
        seconds += cpu_seconds(root)?;
    }
    for &pid in parents.keys().filter(|pid| !roots.contains(pid)) {
        let mut at = pid;
        while let Some(&parent) = parents.get(&at).filter(|&&parent| parent != 0) {
            if roots.contains(&parent) {
                seconds += cpu_seconds(pid).unwrap_or_default();
                break;
            }
            at = parent;
        }
    }
    Ok(seconds)
}

/// Times a process went to sleep.
pub(super) fn voluntary_switches(pid: u32) -> Result<u64, Failure> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).map_err(Failure::of(&path))?;
    text.lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
        .and_then(|count| count.trim().parse().ok())
        .ok_or_else(|| Failure::Failed(format!("{path} has no count of switches")))
}
