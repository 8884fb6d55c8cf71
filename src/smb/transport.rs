//! The transport of a connection: one of our two, or the caller's own.

use std::time::Instant;

use super::direct::Direct;
use super::error::SmbError;
use super::tcp::Tcp;

/// What a transport received: one SMB2 message.
pub(super) struct Message {
    pub(super) bytes: Vec<u8>,
    /// The token of ours that came with it.
    pub(super) invalidated: Option<u32>,
}

/// A transport of the caller's own: see [`Connection::over`](super::Connection::over).
pub trait Carrier {
    /// Sends one SMB2 message, made of `parts`.
    ///
    /// # Errors
    /// The connection is gone, or the time is up.
    fn send(&mut self, parts: &[&[u8]], deadline: Instant) -> Result<(), SmbError>;

    /// The next SMB2 message, and the token of ours that the server invalidated with it.
    ///
    /// # Errors
    /// As [`Carrier::send`].
    fn receive(&mut self, deadline: Instant) -> Result<(Vec<u8>, Option<u32>), SmbError>;

    /// Longest message that can be sent, bytes.
    fn max_send(&self) -> usize;

    /// Longest message that can be received, bytes.
    fn max_receive(&self) -> usize;
}

/// A connected transport.
pub(super) enum Transport {
    Tcp(Tcp),
    Direct(Box<Direct>),
    Own(Box<dyn Carrier>),
}

impl Transport {
    /// Sends one message, made of `parts`.
    pub(super) fn send(&mut self, parts: &[&[u8]], deadline: Instant) -> Result<(), SmbError> {
        match self {
            Self::Tcp(tcp) => tcp.send(parts, deadline),
            Self::Direct(direct) => direct.send(parts, deadline),
            Self::Own(carrier) => carrier.send(parts, deadline),
        }
    }

    /// The next message.
    pub(super) fn receive(&mut self, deadline: Instant) -> Result<Message, SmbError> {
        match self {
            Self::Tcp(tcp) => tcp.receive(deadline),
            Self::Direct(direct) => direct.receive(deadline),
            Self::Own(carrier) => {
                let (bytes, invalidated) = carrier.receive(deadline)?;
                Ok(Message { bytes, invalidated })
            }
        }
    }

    /// Longest message that can be sent, bytes.
    pub(super) fn max_send(&self) -> usize {
        match self {
            Self::Tcp(_) => super::tcp::MAX_MESSAGE,
            Self::Direct(direct) => direct.negotiated().max_fragmented_send_size as usize,
            Self::Own(carrier) => carrier.max_send(),
        }
    }

    /// Longest message that can be received, bytes.
    pub(super) fn max_receive(&self) -> usize {
        match self {
            Self::Tcp(_) => super::tcp::MAX_MESSAGE,
            Self::Direct(direct) => direct.negotiated().max_fragmented_receive_size as usize,
            Self::Own(carrier) => carrier.max_receive(),
        }
    }

    /// Takes memory of a message back.
    pub(super) fn recycle(&mut self, bytes: Vec<u8>) {
        if let Self::Tcp(tcp) = self {
            tcp.recycle(bytes);
        }
    }
}

/// What is left until `deadline`; an error when it has passed.
pub(super) fn time_left(deadline: Instant) -> Result<std::time::Duration, SmbError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(SmbError::TimedOut("no answer in time".into()));
    }
    Ok(left)
}
