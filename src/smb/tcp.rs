//! Direct TCP: `[MS-SMB2] 2.1`, four bytes of length before each message.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use super::error::SmbError;
use super::transport::{time_left, Message};

/// A TCP connection.
pub(super) struct Tcp {
    stream: TcpStream,
    /// Memory of a message that was read, for the next.
    spare: Vec<Vec<u8>>,
}

impl Tcp {
    pub(super) fn connect(peer: SocketAddr, deadline: Instant) -> Result<Self, SmbError> {
        let stream = TcpStream::connect_timeout(&peer, time_left(deadline)?)
            .map_err(|error| SmbError::Connection(format!("cannot connect to {peer}: {error}")))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            spare: Vec::new(),
        })
    }

    pub(super) fn send(&mut self, parts: &[&[u8]], deadline: Instant) -> Result<(), SmbError> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if length > MAX_MESSAGE {
            return Err(SmbError::Usage(format!(
                "a message of {length} bytes, at most {MAX_MESSAGE}"
            )));
        }
        self.stream.set_write_timeout(Some(time_left(deadline)?))?;
        let prefix = (length as u32).to_be_bytes();
        let mut slices = vec![IoSlice::new(&prefix)];
        slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            match self.stream.write_vectored(rest) {
                Ok(0) => return Err(SmbError::Connection("closed by the server".into())),
                Ok(sent) => IoSlice::advance_slices(&mut rest, sent),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failure(&error)),
            }
        }
        Ok(())
    }

    pub(super) fn receive(&mut self, deadline: Instant) -> Result<Message, SmbError> {
        let mut prefix = [0; 4];
        self.read_exact(&mut prefix, deadline)?;
        let length = u32::from_be_bytes(prefix) as usize;
        if length > MAX_MESSAGE {
            return Err(SmbError::Message(format!("a prefix of {length:#x}")));
        }
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.resize(length, 0);
        self.read_exact(&mut bytes, deadline)?;
        Ok(Message {
            bytes,
            invalidated: None,
        })
    }

    pub(super) fn recycle(&mut self, bytes: Vec<u8>) {
        if self.spare.len() < 32 {
            self.spare.push(bytes);
        }
    }

    fn read_exact(&mut self, mut bytes: &mut [u8], deadline: Instant) -> Result<(), SmbError> {
        while !bytes.is_empty() {
            self.stream.set_read_timeout(Some(time_left(deadline)?))?;
            match self.stream.read(bytes) {
                Ok(0) => return Err(SmbError::Connection("closed by the server".into())),
                Ok(count) => bytes = &mut bytes[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failure(&error)),
            }
        }
        Ok(())
    }
}

fn failure(error: &std::io::Error) -> SmbError {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            SmbError::TimedOut("no answer in time".into())
        }
        _ => SmbError::Connection(error.to_string()),
    }
}

/// What the length before a message can say.
pub(super) const MAX_MESSAGE: usize = 0xff_ffff;
