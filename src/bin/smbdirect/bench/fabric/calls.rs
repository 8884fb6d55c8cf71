//! Counts the system calls of processes, by strace.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{kill_process, Pid, Signal};

use crate::failure::Failure;

/// How long strace may take to attach.
const PATIENCE: Duration = Duration::from_secs(10);

/// The system calls of processes, this one perhaps among them, while `run` runs.
///
/// Those of the clock do not count: they are none where the kernel has a vDSO for it.
pub(super) fn count(
    pids: &[u32],
    run: impl FnOnce() -> Result<(), Failure>,
) -> Result<u64, Failure> {
    let failed = || Failure::of("strace, for --calls");
    let file = std::env::temp_dir().join(format!("smbdirect-bench-{}", std::process::id()));
    let mut command = Command::new("strace");
    command.args(["-f", "-c", "-o"]).arg(&file);
    for pid in pids {
        command.arg("-p").arg(pid.to_string());
    }
    let child = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed())?;
    let mut strace = Strace(child);
    let begin = Instant::now();
    while !pids.iter().all(|&pid| is_traced(pid)) {
        if begin.elapsed() > PATIENCE {
            return Err(Failure::Failed("strace does not attach".into()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let result = run();
    strace.stop().map_err(failed())?;
    result?;
    let text = fs::read_to_string(&file);
    let _ = fs::remove_file(&file);
    Ok(total(&text.map_err(failed())?))
}

struct Strace(Child);

impl Strace {
    /// Has it detach and write what it has counted.
    fn stop(&mut self) -> std::io::Result<()> {
        kill_process(Pid::from_child(&self.0), Signal::INT)?;
        self.0.wait().map(|_| ())
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        // Ended already, unless there was an error.
        let _ = self.stop();
    }
}

/// Whether all threads of a process are traced.
fn is_traced(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    threads.flatten().all(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        let tracer = status
            .lines()
            .find_map(|line| line.strip_prefix("TracerPid:"));
        tracer.is_some_and(|pid| pid.trim() != "0")
    })
}

/// The sum of the lines `% seconds usecs/call calls [errors] name`.
fn total(text: &str) -> u64 {
    text.lines()
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let name = *fields.last()?;
            let is_call = !matches!(name, "clock_gettime" | "total");
            fields.get(3)?.parse::<u64>().ok().filter(|_| is_call)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_does_not_count() {
        let text = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.000300           3       100        50 recvmsg
 30.00    0.000150           1       150           clock_gettime
 10.00    0.000050           2        25           sendmsg
------ ----------- ----------- --------- --------- ----------------
100.00    0.000500           1       275        50 total
";
        assert_eq!(total(text), 125);
        assert_eq!(total(""), 0);
    }
}
