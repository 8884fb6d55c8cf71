#![forbid(unsafe_code)]
//! A readiness of our own making, inside one process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::EventfdFlags;

/// An eventfd that is not shared with other processes (for those, see [`super::Bell`]).
#[derive(Debug)]
pub struct SelfEvent {
    fd: OwnedFd,
    is_set: bool,
}

impl SelfEvent {
    /// A new one, not set.
    pub fn new() -> io::Result<Self> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd, is_set: false })
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.is_set
    }

    /// Makes it readable. Returns whether that took a system call.
    pub fn set(&mut self) -> bool {
        if self.is_set {
            return false;
        }
        // Adding 1 to 0 can neither block nor fail.
        let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
        self.is_set = true;
        true
    }

    /// Makes it unreadable. Returns whether that took a system call.
    pub fn clear(&mut self) -> bool {
        if !self.is_set {
            return false;
        }
        let _ = rustix::io::read(&self.fd, &mut [0_u8; 8]);
        self.is_set = false;
        true
    }
}

impl AsFd for SelfEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
