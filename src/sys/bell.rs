#![forbid(unsafe_code)]
//! The wake-up between an engine and one handle.
//!
//! A pair of stream sockets and not an eventfd: the two holders of an eventfd share its file
//! flags, so that either one could make it blocking and then hang the other with it. The ends of a
//! socket pair have flags of their own, each call here asks not to block, and none raises SIGPIPE.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// One end. It is readable (level) from a ring of the other end until [`Bell::clear`].
#[derive(Debug)]
pub struct Bell {
    fd: OwnedFd,
}

/// What [`Bell::clear`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cleared {
    /// It had not been rung.
    Silent,
    /// It had been rung.
    Rung,
    /// The other end is gone.
    Closed,
}

impl Bell {
    /// Two connected ends, close-on-exec.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        Ok((Self { fd: a }, Self { fd: b }))
    }

    /// The end that came through a control socket.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Rings. A bell that was rung often and never cleared stays rung; a closed other end is not
    /// an error either, because its owner learns of it elsewhere.
    pub fn ring(&self) {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        while let Err(rustix::io::Errno::INTR) = rustix::net::send(&self.fd, &[1], flags) {}
    }

    /// Takes the rings of the other end back, at most 256 of them.
    pub fn clear(&self) -> Cleared {
        let mut bytes = [0_u8; 256];
        loop {
            return match rustix::net::recv(&self.fd, &mut bytes, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => Cleared::Closed,
                Ok(_) => Cleared::Rung,
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => Cleared::Silent,
                Err(_) => Cleared::Closed,
            };
        }
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bell_rings_clears_and_closes() {
        let (a, b) = Bell::pair().unwrap();
        assert_eq!(b.clear(), Cleared::Silent);
        a.ring();
        a.ring();
        assert_eq!(b.clear(), Cleared::Rung);
        assert_eq!(b.clear(), Cleared::Silent);
        assert_eq!(a.clear(), Cleared::Silent);
        drop(a);
        b.ring();
        assert_eq!(b.clear(), Cleared::Closed);
    }

    #[test]
    fn a_bell_that_nobody_clears_never_blocks() {
        let (a, b) = Bell::pair().unwrap();
        for _ in 0..10_000 {
            a.ring();
        }
        assert_eq!(b.clear(), Cleared::Rung);
    }

    #[test]
    fn the_other_end_cannot_make_ours_block() {
        let (a, b) = Bell::pair().unwrap();
        rustix::fs::fcntl_setfl(&b, rustix::fs::OFlags::empty()).unwrap();
        assert_eq!(a.clear(), Cleared::Silent);
        for _ in 0..10_000 {
            a.ring();
        }
    }
}
