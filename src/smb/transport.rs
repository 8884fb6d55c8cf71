//! One of the two transports.

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

/// A connected transport.
pub(super) enum Transport {
    Tcp(Tcp),
    Direct(Box<Direct>),
}

impl Transport {
    /// Sends one message, made of `parts`.
    pub(super) fn send(&mut self, parts: &[&[u8]], deadline: Instant) -> Result<(), SmbError> {
        match self {
            Self::Tcp(tcp) => tcp.send(parts, deadline),
            Self::Direct(direct) => direct.send(parts, deadline),
        }
    }

    /// The next message.
    pub(super) fn receive(&mut self, deadline: Instant) -> Result<Message, SmbError> {
        match self {
            Self::Tcp(tcp) => tcp.receive(deadline),
            Self::Direct(direct) => direct.receive(deadline),
        }
    }

    /// Longest message that can be sent, bytes.
    pub(super) fn max_send(&self) -> usize {
        match self {
            Self::Tcp(_) => super::tcp::MAX_MESSAGE,
            Self::Direct(direct) => direct.negotiated().max_fragmented_send_size as usize,
        }
    }

    /// Longest message that can be received, bytes.
    pub(super) fn max_receive(&self) -> usize {
        match self {
            Self::Tcp(_) => super::tcp::MAX_MESSAGE,
            Self::Direct(direct) => direct.negotiated().max_fragmented_receive_size as usize,
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
