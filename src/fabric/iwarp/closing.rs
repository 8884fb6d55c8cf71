//! Connections that are over for the caller but not for the peer: a Terminate or a refusing Reply
//! is still to leave, and the peer is given the time to read it. Closing at once could reset the
//! connection before it did.

use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::SendFlags;

/// A socket at its end, with bytes of its own.
pub(super) struct Closing {
    pub(super) socket: OwnedFd,
    pub(super) deadline: Option<Instant>,
    bytes: Vec<u8>,
    sent: usize,
    half_closed: bool,
}

/// Whether it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Bytes are still to leave.
    Sending,
    /// All has left; the peer has not closed yet.
    Waiting,
    /// Close it.
    Done,
}

impl Closing {
    pub(super) fn new(socket: OwnedFd, bytes: Vec<u8>) -> Self {
        Self {
            socket,
            deadline: None,
            bytes,
            sent: 0,
            half_closed: false,
        }
    }

    /// Sends on, and reads away what the peer still sends, at most one buffer of it per call.
    pub(super) fn advance(&mut self, scratch: &mut [u8]) -> Progress {
        while let Some(rest) = self.bytes.get(self.sent..).filter(|rest| !rest.is_empty()) {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(&self.socket, rest, flags) {
                Ok(n) => self.sent += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return Progress::Done,
            }
        }
        if self.sent == self.bytes.len() && !self.half_closed {
            self.half_closed = true;
            if rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write).is_err() {
                return Progress::Done;
            }
        }
        match rustix::io::read(&self.socket, scratch) {
            Ok(0) => Progress::Done,
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) if self.sent < self.bytes.len() => {
                Progress::Sending
            }
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Progress::Waiting,
            Err(_) => Progress::Done,
        }
    }
}
