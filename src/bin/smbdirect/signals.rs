//! SIGTERM and SIGINT as a readable file descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGINT, SIGTERM};

/// Becomes readable when the program is told to stop.
pub(crate) struct StopSignal {
    stream: UnixStream,
}

impl StopSignal {
    /// Catches SIGTERM and SIGINT from now on.
    pub(crate) fn new() -> io::Result<Self> {
        let (stream, sender) = UnixStream::pair()?;
        stream.set_nonblocking(true)?;
        for signal in [SIGTERM, SIGINT] {
            signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
        }
        Ok(Self { stream })
    }
}

impl AsFd for StopSignal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl From<StopSignal> for OwnedFd {
    fn from(stop: StopSignal) -> Self {
        stop.stream.into()
    }
}
