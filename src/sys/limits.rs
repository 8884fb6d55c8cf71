//! Limits of the system: running into them, and raising them.

use std::io;

use rustix::process::{getrlimit, setrlimit, Resource};

/// Whether the system had no room for another descriptor or its memory: to try again at once would
/// fail again.
pub fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::ENOSPC)
    )
}

/// Bytes of memory that the machine has.
pub fn physical_memory() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit).max(1))
}

/// Lets this process have as many file descriptors as it may allow itself. Returns how many; `None`:
/// without limit.
pub fn raise_file_limit() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    if setrlimit(Resource::Nofile, limit).is_ok() {
        limit.maximum
    } else {
        before
    }
}

/// Memory of this process that devices have pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PinnedMemory {
    /// Bytes, each as often as it was registered.
    pub bytes: u64,
    /// How many there may be (RLIMIT_MEMLOCK); `None`: without limit, which CAP_IPC_LOCK gives, too.
    pub limit: Option<u64>,
}

/// How much memory devices have pinned, and may.
pub fn pinned_memory() -> PinnedMemory {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let limit = getrlimit(Resource::Memlock).current;
    PinnedMemory {
        bytes: pinned_bytes(&status).unwrap_or(0),
        limit: limit.filter(|_| !may_lock(&status)),
    }
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = status.lines();
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

fn pinned_bytes(status: &str) -> Option<u64> {
    let kib = field(status, "VmPin")?.trim().strip_suffix(" kB")?;
    kib.parse::<u64>().ok()?.checked_mul(1024)
}

/// Whether /proc/PID/status tells of CAP_IPC_LOCK, which lifts RLIMIT_MEMLOCK.
fn may_lock(status: &str) -> bool {
    let mask = field(status, "CapEff").and_then(|it| u64::from_str_radix(it.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << CAP_IPC_LOCK) != 0)
}

/// Bit of CAP_IPC_LOCK.
const CAP_IPC_LOCK: u32 = 14;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_of_a_process_is_read() {
        let status = "Name:\tx\nVmPin:\t    2052 kB\nCapPrm:\t0\nCapEff:\t0000000000004000\n";
        assert_eq!(pinned_bytes(status), Some(2052 << 10));
        assert!(may_lock(status));
        assert!(!may_lock("CapEff:\t0000000000000400\n"));
        assert_eq!(pinned_bytes("Name:\tx\n"), None);
        assert!(!may_lock("Name:\tx\n"));
        // The kernel has the lines where they are looked for.
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(pinned_bytes(&own).is_some() && field(&own, "CapEff").is_some());
    }
}
