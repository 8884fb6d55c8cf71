#![forbid(unsafe_code)]
//! The end of another process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags};

/// A process. Its descriptor is readable when the process has ended, even while forked children
/// still hold copies of the sockets it had opened.
#[derive(Debug)]
pub struct Pidfd {
    fd: OwnedFd,
}

impl Pidfd {
    /// The process `pid`; fails with ESRCH when there is none.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::from(rustix::io::Errno::SRCH))?;
        let fd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { fd })
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Interest, Poller};
    use std::process::{Command, Stdio};

    #[test]
    fn it_tells_the_end_of_a_process() {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let pidfd = Pidfd::open(child.id()).unwrap();
        let mut poller = Poller::new().unwrap();
        poller.registry(0).add(&pidfd, 1, Interest::READ).unwrap();
        let mut ready = Vec::new();
        poller
            .wait(Some(std::time::Duration::ZERO), &mut ready)
            .unwrap();
        assert!(ready.is_empty());
        drop(child.stdin.take());
        while ready.is_empty() {
            poller.wait(None, &mut ready).unwrap();
        }
        assert!(ready[0].readable);
        assert!(child.wait().unwrap().success());
        assert!(Pidfd::open(0).is_err());
    }
}
