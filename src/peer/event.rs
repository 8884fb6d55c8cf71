//! What an endpoint is told, and what it tells.

use std::fmt;
use std::net::SocketAddr;

use crate::fabric::iwarp::IwarpConfig;
use crate::fabric::{self, AcceptOptions, FabricError, FabricKind, ListenerKey, QpKey, Status};
use crate::mem::MemError;
use crate::proto::{self, Negotiated, Params, SendError, Stats};
use crate::sys::Ready;

use super::Pdu;

/// How connections of an endpoint behave.
#[derive(Debug, Clone)]
pub struct Config {
    /// MS-SMBD parameters of connections we start.
    pub active: Params,
    /// MS-SMBD parameters of connections we accept.
    pub passive: Params,
    /// How connections are accepted.
    pub accept: AcceptOptions,
    /// The fabric.
    pub kind: FabricKind,
    /// How the software iWARP fabric behaves.
    pub fabric: IwarpConfig,
    /// Connections at once, both kinds; further ones are refused.
    pub max_connections: usize,
    /// No state machine on new connections: receives of MaxReceiveSize are posted (ReceiveCreditMax
    /// of them, each again as soon as it was filled), messages come as [`PeerEvent::Raw`] and go
    /// by `send_raw`. For tests of the other side.
    pub raw: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            active: Params::active(),
            passive: Params::default(),
            accept: AcceptOptions {
                ird: 32,
                ord: 32,
                private_data: Vec::new(),
            },
            kind: FabricKind::default(),
            fabric: IwarpConfig::default(),
            max_connections: 4096,
            raw: false,
        }
    }
}

/// What [`Endpoint::poll`](super::Endpoint::poll) tells.
#[derive(Debug)]
#[non_exhaustive]
pub enum PeerEvent {
    /// The fabric has connected; the negotiation follows. On a raw connection this is all there
    /// is.
    Established {
        /// The connection.
        connection: QpKey,
        /// The listener it came to; none when we started it.
        listener: Option<ListenerKey>,
        /// Our address.
        local: SocketAddr,
        /// The peer's address.
        peer: SocketAddr,
        /// RDMA READs that may be outstanding at once.
        ord: u32,
    },
    /// The negotiation succeeded; PDUs may be sent.
    Connected {
        /// The connection.
        connection: QpKey,
        /// What was agreed on.
        negotiated: Negotiated,
    },
    /// An upper-layer message came, whole.
    Pdu {
        /// The connection.
        connection: QpKey,
        /// Its bytes.
        pdu: Pdu,
        /// The token of ours that the peer invalidated with it.
        invalidated: Option<u32>,
    },
    /// An upper-layer message has left; its memory may be used again.
    Sent {
        /// The connection.
        connection: QpKey,
        /// What the sender called it.
        cookie: u64,
    },
    /// An RDMA READ or WRITE ended.
    Rdma {
        /// The connection.
        connection: QpKey,
        /// What the caller called it.
        cookie: u64,
        /// How it ended; the first failure of its parts.
        status: Status,
    },
    /// A message came on a raw connection.
    Raw {
        /// The connection.
        connection: QpKey,
        /// Its bytes.
        message: Pdu,
        /// The token of ours that the peer invalidated with it.
        invalidated: Option<u32>,
    },
    /// A file descriptor that the caller registered is ready; the key is the registered one.
    Ready(Ready),
    /// The connection is over. Its last event; operations not told as ended never ended.
    Disconnected {
        /// The connection.
        connection: QpKey,
        /// Why.
        reason: EndReason,
        /// What it did in its life.
        stats: ConnectionStats,
    },
}

/// Why a connection ended: the first reason there was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndReason {
    /// MS-SMBD ended it.
    Proto(proto::EndReason),
    /// The fabric ended it.
    Fabric(fabric::EndReason),
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fabric::EndReason as End;
        match self {
            Self::Proto(reason) => reason.fmt(f),
            Self::Fabric(reason) => match reason {
                End::Local => f.write_str("closed locally"),
                End::PeerClosed => f.write_str("closed by the peer"),
                End::Refused(text)
                | End::TimedOut(text)
                | End::Protocol(text)
                | End::Terminated(text)
                | End::Transport(text) => f.write_str(text),
            },
        }
    }
}

/// Counters of one connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectionStats {
    /// MS-SMBD's own.
    pub smbd: Stats,
    /// RDMA READs done (bytes we fetched).
    pub rdma_read_bytes: u64,
    /// RDMA WRITEs done (bytes we placed).
    pub rdma_write_bytes: u64,
}

/// Why a call on an endpoint was refused.
#[derive(Debug)]
#[non_exhaustive]
pub enum PeerError {
    /// No such connection (any more).
    NoSuchConnection,
    /// The call does not fit a raw connection, or needs one.
    WrongKind,
    /// MS-SMBD cannot take the message (now).
    Send(SendError),
    /// The fabric refused.
    Fabric(FabricError),
    /// The range is not inside the memory, or the descriptors are shorter than the memory.
    Range(String),
    /// No memory, or the operating system refused.
    Os(std::io::Error),
}

impl fmt::Display for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchConnection => f.write_str("no such connection"),
            Self::WrongKind => f.write_str("not possible on this kind of connection"),
            Self::Send(error) => error.fmt(f),
            Self::Fabric(error) => error.fmt(f),
            Self::Range(text) => f.write_str(text),
            Self::Os(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for PeerError {}

impl From<SendError> for PeerError {
    fn from(error: SendError) -> Self {
        Self::Send(error)
    }
}

impl From<FabricError> for PeerError {
    fn from(error: FabricError) -> Self {
        match error {
            FabricError::NoSuchKey => Self::NoSuchConnection,
            error => Self::Fabric(error),
        }
    }
}

impl From<MemError> for PeerError {
    fn from(error: MemError) -> Self {
        Self::Range(error.to_string())
    }
}

impl From<std::io::Error> for PeerError {
    fn from(error: std::io::Error) -> Self {
        Self::Os(error)
    }
}
