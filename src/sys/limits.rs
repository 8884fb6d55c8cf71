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
