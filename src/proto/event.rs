//! What the machine tells its caller: outputs, and why a connection ended.

use std::fmt;

use crate::wire::ParseError;

/// What the caller has to do next; yielded by [`Connection::poll`](super::Connection::poll).
///
/// `B` is the caller's receive buffer, `M` its upper-layer message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output<B, M> {
    /// Post up to this many receives of [`receive_buffer_size`] bytes each, then call
    /// [`handle_posted`] with the number really posted, before the next `poll`.
    ///
    /// [`receive_buffer_size`]: super::Params::receive_buffer_size
    /// [`handle_posted`]: super::Connection::handle_posted
    PostReceives(u16),
    /// Send one message: header, then payload if any. To be handed to the fabric in this order,
    /// and reported by [`handle_send_done`](super::Connection::handle_send_done) when complete.
    Send {
        /// Header bytes: 20 for an empty and for a Negotiate Request message, 32 for a Negotiate
        /// Response, 24 in front of payload.
        header: Header,
        /// The piece of an upper-layer message that follows the header.
        payload: Option<Payload<M>>,
        /// True on the message with the last piece of `M`: when it completes, `M` is sent.
        last: bool,
        /// Use Send with Invalidate for this token. On the first piece of a message only.
        invalidate: Option<u32>,
    },
    /// A received piece of an upper-layer message. The caller keeps the buffer. Pieces of one
    /// message come in order and nothing of another message comes between.
    ///
    /// The caller should copy the piece out and post the buffer again soon: a peer may send one
    /// byte per message, so a buffer held per piece could exhaust any pool.
    Deliver {
        /// The buffer the message was received in.
        buffer: B,
        /// Where the piece starts in the buffer.
        data_offset: usize,
        /// Bytes of the piece, above 0. It ends inside the received message.
        data_length: usize,
        /// Bytes of the upper-layer message that are still to come.
        remaining: u32,
        /// First piece of its upper-layer message. Then `data_length + remaining` is the length
        /// of the whole, at most MaxFragmentedRecvSize.
        first: bool,
        /// Last piece of its upper-layer message; `remaining` is 0.
        last: bool,
        /// A token that the peer invalidated with this message.
        invalidated: Option<u32>,
    },
    /// A receive buffer with nothing in it for the upper layer. The caller may use it for
    /// another receive, but it is posted only by [`PostReceives`](Output::PostReceives).
    Recycle {
        /// The buffer.
        buffer: B,
    },
    /// The negotiation succeeded; messages may be queued from now on.
    Negotiated(Negotiated),
    /// The connection is over: tear down the fabric. Comes exactly once and is the last output
    /// but for `Recycle`. Messages not sent are got back by
    /// [`take_unsent`](super::Connection::take_unsent).
    Disconnect {
        /// Why; the first reason there was.
        reason: EndReason,
        /// True when the fabric should first deliver what was handed to it.
        drain: bool,
    },
}

/// The bytes of a message before its payload.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Header {
    bytes: [u8; Self::MAX_LEN],
    len: u8,
}

impl Header {
    /// Longest header, bytes.
    pub const MAX_LEN: usize = 32;

    pub(super) fn new<const N: usize>(from: &[u8; N]) -> Self {
        const { assert!(N <= Self::MAX_LEN) };
        let mut bytes = [0; Self::MAX_LEN];
        bytes[..N].copy_from_slice(from);
        Self {
            bytes,
            len: N as u8,
        }
    }
}

impl AsRef<[u8]> for Header {
    fn as_ref(&self) -> &[u8] {
        // `new` sets len to an N it has asserted to be within the array.
        &self.bytes[..usize::from(self.len)]
    }
}

impl std::ops::Deref for Header {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_ref()
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x?}", self.as_ref())
    }
}

/// A piece of an upper-layer message to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload<M> {
    /// The message.
    pub message: M,
    /// Where the piece starts in it.
    pub offset: usize,
    /// Bytes of the piece, above 0.
    pub length: usize,
}

/// What the two sides agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    /// Longest message we may send, bytes with header.
    pub max_send_size: u32,
    /// Longest message the peer may send, bytes with header.
    pub max_receive_size: u32,
    /// Longest upper-layer message we may send, bytes.
    pub max_fragmented_send_size: u32,
    /// Longest upper-layer message the peer may send, bytes.
    pub max_fragmented_receive_size: u32,
    /// Largest RDMA transfer for one upper-layer operation, bytes.
    pub max_read_write_size: u32,
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndReason {
    /// [`close`](super::Connection::close) was called and all it could send is sent.
    LocalClose,
    /// The fabric lost the connection, or the peer closed it.
    Disconnected,
    /// The negotiation took too long.
    NegotiateTimeout,
    /// The peer did not answer a probe.
    KeepaliveTimeout,
    /// The peer was to be probed, but its credits (or the fabric) did not allow a message to it.
    KeepaliveUnsendable,
    /// No version in common with the peer's range; it was told so.
    VersionMismatch {
        /// Lowest version of the peer.
        min: u16,
        /// Highest version of the peer.
        max: u16,
    },
    /// Not one receive could be posted for the peer; it was told so.
    NoReceives,
    /// The peer refused the negotiation with this NTSTATUS.
    Refused {
        /// NTSTATUS of the Negotiate Response.
        status: u32,
    },
    /// The peer broke a rule of the protocol.
    Violation(ViolationError),
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LocalClose => f.write_str("closed locally"),
            Self::Disconnected => f.write_str("disconnected"),
            Self::NegotiateTimeout => f.write_str("negotiation timed out"),
            Self::KeepaliveTimeout => f.write_str("peer did not answer a keepalive"),
            Self::KeepaliveUnsendable => {
                f.write_str("peer silent, and no send credit to probe it with")
            }
            Self::VersionMismatch { min, max } => {
                write!(
                    f,
                    "peer speaks versions {min:#06x} to {max:#06x}, we speak 0x0100"
                )
            }
            Self::NoReceives => f.write_str("no receive buffers free for the connection"),
            Self::Refused { status } => {
                write!(f, "peer refused the negotiation with status {status:#010x}")
            }
            Self::Violation(violation) => write!(f, "peer broke the protocol: {violation}"),
        }
    }
}

/// How the peer broke the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ViolationError {
    /// A message is too short or has an illegal field.
    Malformed(ParseError),
    /// A message came without a receive posted for it, or before its time.
    Unexpected {
        /// Phase the connection was in.
        phase: &'static str,
    },
    /// A message came although the peer held no send credit.
    NoCredit,
    /// A message is longer than MaxReceiveSize.
    TooLong {
        /// Bytes received.
        length: usize,
        /// MaxReceiveSize.
        max_receive_size: u32,
    },
    /// A segment carries more than its upper-layer message has left.
    DataBeyondMessage {
        /// DataLength of the segment.
        data_length: u32,
        /// Bytes that were to come.
        outstanding: u32,
    },
    /// RemainingDataLength of a segment does not follow from the segment before.
    WrongRemaining {
        /// RemainingDataLength of the segment.
        remaining_data_length: u32,
        /// What it had to be.
        expected: u32,
    },
    /// More than one token invalidated with one upper-layer message.
    SecondInvalidate {
        /// The token that was one too many.
        token: u32,
    },
}

impl fmt::Display for ViolationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(error) => error.fmt(f),
            Self::Unexpected { phase } => write!(f, "message while {phase}"),
            Self::NoCredit => f.write_str("message without a send credit"),
            Self::TooLong {
                length,
                max_receive_size,
            } => {
                write!(
                    f,
                    "message of {length} bytes, at most {max_receive_size} agreed"
                )
            }
            Self::DataBeyondMessage {
                data_length,
                outstanding,
            } => {
                write!(
                    f,
                    "segment with DataLength {data_length}, only {outstanding} outstanding"
                )
            }
            Self::WrongRemaining {
                remaining_data_length,
                expected,
            } => write!(
                f,
                "segment with RemainingDataLength {remaining_data_length}, {expected} expected"
            ),
            Self::SecondInvalidate { token } => {
                write!(f, "second invalidated token {token:#010x} in one message")
            }
        }
    }
}

impl std::error::Error for ViolationError {}

impl From<ParseError> for ViolationError {
    fn from(error: ParseError) -> Self {
        Self::Malformed(error)
    }
}

/// Why a message was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// The negotiation is not over.
    NotEstablished,
    /// The connection is closing or closed.
    Closed,
    /// The message has no bytes.
    Empty,
    /// The message is longer than the peer reassembles (`[MS-SMBD] 3.1.4.2`).
    TooLong {
        /// Bytes of the message.
        length: usize,
        /// Bytes the peer takes.
        max: u32,
    },
    /// The queue is full; try again after a message has been sent.
    QueueFull {
        /// Messages queued.
        limit: u16,
    },
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotEstablished => f.write_str("connection is not negotiated yet"),
            Self::Closed => f.write_str("connection is closed"),
            Self::Empty => f.write_str("message has no bytes"),
            Self::TooLong { length, max } => {
                write!(f, "message of {length} bytes, the peer takes at most {max}")
            }
            Self::QueueFull { limit } => {
                write!(
                    f,
                    "send queue full with {limit} messages, wait until one is sent"
                )
            }
        }
    }
}

impl std::error::Error for SendError {}

/// Counters of one connection. All grow only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Data Transfer messages sent, with and without payload.
    pub pdus_sent: u64,
    /// Data Transfer messages received, with and without payload.
    pub pdus_received: u64,
    /// Of those sent, the ones without payload.
    pub empty_sent: u64,
    /// Of those received, the ones without payload.
    pub empty_received: u64,
    /// Upper-layer messages sent completely.
    pub messages_sent: u64,
    /// Upper-layer messages received completely.
    pub messages_received: u64,
    /// Payload bytes sent.
    pub bytes_sent: u64,
    /// Payload bytes received.
    pub bytes_received: u64,
    /// Send credits given to the peer.
    pub credits_granted: u64,
    /// Send credits got from the peer.
    pub credits_received: u64,
    /// Probes sent.
    pub keepalives_sent: u64,
    /// Probes received.
    pub keepalives_received: u64,
    /// Times a queued message began to wait for a credit.
    pub credit_stalls: u64,
}
