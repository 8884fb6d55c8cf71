#![forbid(unsafe_code)]
//! Asking and waiting for the answer.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{decode, encode, CodecError, Envelope, InterfaceRecord, Reply, Request, MAX_MESSAGE};
use crate::sys::SeqPacket;

/// The asking end of a control socket.
#[derive(Debug)]
pub struct Caller {
    socket: SeqPacket,
    number: u32,
    buffer: Vec<u8>,
}

/// A reply with its number, and what came with it.
type Answer = (Envelope<Reply>, Vec<OwnedFd>);

/// Why there is no answer.
#[derive(Debug)]
#[non_exhaustive]
pub enum CallError {
    /// The engine refused: a positive errno and its words.
    Refused(i32, String),
    /// The engine did not answer in time.
    TimedOut(Duration),
    /// The engine is gone.
    Gone,
    /// Its answer cannot be read, or this request cannot be written.
    Codec(CodecError),
    /// An answer that does not belong to the request.
    Unexpected(&'static str),
    /// The socket failed.
    Os(io::Error),
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(_, text) => write!(f, "{text}"),
            Self::TimedOut(after) => {
                write!(f, "the engine did not answer in {} ms", after.as_millis())
            }
            Self::Gone => write!(f, "the engine is gone"),
            Self::Codec(error) => write!(f, "{error}"),
            Self::Unexpected(what) => write!(f, "the engine answered with {what}"),
            Self::Os(error) => write!(f, "the control socket failed: {error}"),
        }
    }
}

impl std::error::Error for CallError {}

impl CallError {
    /// The positive errno that fits.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Refused(errno, _) => *errno,
            Self::TimedOut(_) => libc::ETIMEDOUT,
            Self::Gone => libc::ENOTCONN,
            Self::Codec(_) | Self::Unexpected(_) => libc::EPROTO,
            Self::Os(error) => error.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}

impl From<CodecError> for CallError {
    fn from(error: CodecError) -> Self {
        Self::Codec(error)
    }
}

impl Caller {
    /// Connects to an engine, waiting up to `timeout` while its queue of connections is full.
    pub fn connect(path: &Path, timeout: Duration) -> io::Result<Self> {
        let deadline = Instant::now() + timeout;
        loop {
            match SeqPacket::connect(path) {
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline =>
                {
                    // Nothing can be waited for: the kernel offers no readiness for this.
                    std::thread::sleep(Duration::from_millis(2));
                }
                result => return result.map(Self::new),
            }
        }
    }

    /// Asks through a connected socket.
    pub fn new(socket: SeqPacket) -> Self {
        Self {
            socket,
            number: 0,
            buffer: vec![0; MAX_MESSAGE],
        }
    }

    /// The socket, to wait for its end.
    pub fn socket(&self) -> &SeqPacket {
        &self.socket
    }

    /// Sends a request and waits for its answer. Late answers to earlier requests are dropped.
    pub fn call(
        &mut self,
        request: &Request,
        timeout: Duration,
    ) -> Result<(Reply, Vec<OwnedFd>), CallError> {
        let deadline = Instant::now() + timeout;
        self.number = self.number.wrapping_add(1);
        let bytes = encode(&Envelope {
            number: self.number,
            body: request,
        })?;
        loop {
            match self.socket.send(&bytes, &[]) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(true, deadline, timeout)?;
                }
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return Err(CallError::Gone)
                }
                Err(error) => return Err(CallError::Os(error)),
            }
        }
        loop {
            match self.receive()? {
                Some((reply, _)) if reply.number != self.number => {}
                Some((reply, fds)) => {
                    return match reply.body {
                        Reply::Error { errno, text } => Err(CallError::Refused(errno, text)),
                        body => Ok((body, fds)),
                    }
                }
                None => self.wait(false, deadline, timeout)?,
            }
        }
    }

    /// Drops late answers, without blocking. False: the engine is gone.
    pub fn drain(&mut self) -> bool {
        loop {
            match self.receive() {
                Ok(Some(_)) => {}
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }

    fn receive(&mut self) -> Result<Option<Answer>, CallError> {
        match self.socket.recv(&mut self.buffer) {
            Ok(Some(received)) => {
                let bytes = self.buffer.get(..received.len).unwrap_or(&[]);
                Ok(Some((decode(bytes)?, received.fds)))
            }
            Ok(None) => Err(CallError::Gone),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(CallError::Os(error)),
        }
    }

    fn wait(&self, to_send: bool, deadline: Instant, timeout: Duration) -> Result<(), CallError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let ready = !left.is_zero() && self.socket.wait(to_send, left).map_err(CallError::Os)?;
        if ready {
            Ok(())
        } else {
            Err(CallError::TimedOut(timeout))
        }
    }
}

/// Asks an engine for the addresses of its host.
pub fn fetch_interfaces(
    caller: &mut Caller,
    timeout: Duration,
) -> Result<Vec<InterfaceRecord>, CallError> {
    let unexpected = |_: &Reply| CallError::Unexpected("something else than its addresses");
    gather_interfaces(
        |request| caller.call(&request, timeout).map(|(reply, _)| reply),
        unexpected,
    )
}

/// Puts the pages of [`Reply::Interfaces`] together.
pub(crate) fn gather_interfaces<E>(
    mut call: impl FnMut(Request) -> Result<Reply, E>,
    unexpected: impl Fn(&Reply) -> E,
) -> Result<Vec<InterfaceRecord>, E> {
    let mut all = Vec::new();
    loop {
        let from = u32::try_from(all.len()).unwrap_or(u32::MAX);
        match call(Request::Interfaces { from })? {
            Reply::Interfaces { interfaces, total } => {
                let is_last = interfaces.is_empty();
                all.extend(interfaces);
                if is_last || all.len() >= total as usize {
                    return Ok(all);
                }
            }
            reply => return Err(unexpected(&reply)),
        }
    }
}
