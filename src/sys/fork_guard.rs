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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forked_child_is_told_apart() {
        let guard = ForkGuard::new().unwrap();
        assert!(guard.is_opener());
        // SAFETY: the child calls only functions that are safe after a fork of a threaded process.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(guard.is_opener())) };
        }
        let mut status = -1;
        // SAFETY: `status` is valid for the call; the child is ours.
        assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
        assert!(libc::WIFEXITED(status));
        assert_eq!(libc::WEXITSTATUS(status), 0);
        assert!(guard.is_opener());
    }
}
