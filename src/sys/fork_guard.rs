//! Whether this is still the process that opened something.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use rustix::mm::Advice;

/// A page that the kernel hands to forked children as zeros: a load tells an opener from its
/// children, with no system call. (A process id would need one, and it can be used again.)
#[derive(Debug)]
pub struct ForkGuard {
    page: MmapRaw,
}

impl ForkGuard {
    /// A guard that holds in this process.
    pub fn new() -> io::Result<Self> {
        let page = MmapRaw::from(MmapOptions::new().len(PAGE_BYTES).map_anon()?);
        // SAFETY: the range is the page just mapped; the advice changes only what children see.
        unsafe {
            rustix::mm::madvise(
                page.as_mut_ptr().cast(),
                PAGE_BYTES,
                Advice::LinuxWipeOnFork,
            )?;
        }
        let guard = Self { page };
        guard.word().store(OPENER, Ordering::Relaxed);
        Ok(guard)
    }

    /// True in the process that made the guard, false in its forked children.
    pub fn is_opener(&self) -> bool {
        self.word().load(Ordering::Relaxed) == OPENER
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: the page is mapped for as long as `self`, is aligned, larger than the atomic, and
        // used for nothing else.
        unsafe { AtomicU32::from_ptr(self.page.as_mut_ptr().cast()) }
    }
}

const PAGE_BYTES: usize = 4096;
const OPENER: u32 = 0x5d1e_c7ed;

/// Runs `child` in a forked child and returns what it returned, for tests. (The C library keeps its
/// allocator usable in children of threaded processes.)
#[cfg(test)]
pub(crate) fn in_forked_child(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child runs on its copy of this thread and ends below.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(99);
        // SAFETY: ends the child without running what belongs to the parent.
        unsafe { libc::_exit(code) };
    }
    let mut status = -1;
    // SAFETY: `status` is valid for the call; the child is ours.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert!(libc::WIFEXITED(status), "{status:#x}");
    libc::WEXITSTATUS(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forked_child_is_told_apart() {
        let guard = ForkGuard::new().unwrap();
        assert!(guard.is_opener());
        assert_eq!(in_forked_child(|| i32::from(guard.is_opener())), 0);
        assert!(guard.is_opener());
    }
}
