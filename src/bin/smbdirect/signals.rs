//! SIGTERM and SIGINT as a readable file descriptor; SIGXFSZ for nothing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};

/// An area beyond RLIMIT_FSIZE is refused to the one who wants it (EFBIG); the signal that comes with
/// that would end the engine.
pub(crate) fn survive_file_limit() -> io::Result<()> {
    // A handler that does nothing that anybody looks at. To ignore the signal would go on to
    // programs that are executed.
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false))).map(drop)
}

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
