#![forbid(unsafe_code)]
//! Control messages between engine and handles (or tools), over a SOCK_SEQPACKET socket.
//!
//! One message is one packet: an [`Envelope`] in postcard form, at most [`MAX_MESSAGE`] bytes. The
//! side that connects sends [`Request`]s, each with a new number; the engine answers every one, in
//! order, with a [`Reply`] of the same number. The engine sends nothing unasked: all events go
//! through the completion ring, and the readiness of a handle's control socket means that the engine
//! is gone (or that an answer comes that nobody waits for any more).
//!
//! # The engine's part
//! - `accept` a [`SeqPacket`](crate::sys::SeqPacket), take its credentials, then for each packet
//!   [`decode_request`], act, [`encode_reply`], send. A packet that does not decode ends that client.
//! - The first request of a handle is [`Request::Open`]; its answer [`Reply::Opened`] carries the
//!   descriptors of [`EngineSide::fds`](crate::ring::EngineSide::fds) (then call `handed_over`).
//!   Tools send [`Request::Status`] or [`Request::Interfaces`] without opening.
//! - A handle ends with [`Request::Close`], or when its socket closes, or when its process ends
//!   (pidfd: forked children may hold copies of the socket). Connections whose token was exported are
//!   kept for 10 seconds.
//! - Values are checked again with the `check` methods here; the library has checked them too, but
//!   anybody can write to the socket.
//! - [`Request::Export`]: fragments that come after the answer are held back by the engine (their
//!   credits too) until the hand-over, and published to the new owner then;
//!   [`Request::CancelExport`] makes the token void and publishes them to the old owner. The library
//!   cancels when it finds PDUs that it had not delivered yet, so that none is lost between owners.

mod call;
mod messages;
mod status;
#[cfg(test)]
mod tests;

pub(crate) use call::gather_interfaces;
pub use call::{fetch_interfaces, CallError, Caller};
pub use messages::{
    ConnectSpec, Fabric, InterfaceRecord, ListenSpec, OpenRequest, Params, RangeError, Reply,
    Request, SessionSpec, INTERFACE_RDMA, INTERFACE_RSS,
};
pub use status::{
    fetch_status, ConnectionStatus, EngineCounters, EngineStatus, HandleStatus, ListenerStatus,
    MemoryStatus, Status, StatusItem, StatusPage,
};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Where the engine's control socket is unless SMBDIRECT_SOCKET or an option says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/smbdirect/engine.sock";

/// The most bytes of one message.
pub const MAX_MESSAGE: usize = 64 << 10;

/// The most bytes of the items of one page of [`Reply::Status`] and [`Reply::Interfaces`].
pub const PAGE_BYTES: usize = 48 << 10;

/// A message with its number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// The request's number; that of the answered request in a reply.
    pub number: u32,
    /// The message.
    pub body: T,
}

/// A message that cannot be encoded or decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CodecError {
    /// It would be longer than [`MAX_MESSAGE`].
    TooLong(usize),
    /// Its bytes are not a message of this ABI.
    Malformed(String),
}

impl std::fmt::Display for CodecError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLong(len) => write!(
                f,
                "a control message of {len} bytes is longer than {MAX_MESSAGE}"
            ),
            Self::Malformed(what) => write!(
                f,
                "a control message cannot be read ({what}): use library and engine of one version"
            ),
        }
    }
}

impl std::error::Error for CodecError {}

/// A request, as the engine received it.
pub fn decode_request(bytes: &[u8]) -> Result<Envelope<Request>, CodecError> {
    decode(bytes)
}

/// A reply to request `number`.
pub fn encode_reply(number: u32, body: &Reply) -> Result<Vec<u8>, CodecError> {
    encode(&Envelope { number, body })
}

/// The bytes of a message.
pub(crate) fn encode<T: Serialize>(message: &Envelope<T>) -> Result<Vec<u8>, CodecError> {
    let bytes =
        postcard::to_stdvec(message).map_err(|error| CodecError::Malformed(error.to_string()))?;
    if bytes.len() > MAX_MESSAGE {
        return Err(CodecError::TooLong(bytes.len()));
    }
    Ok(bytes)
}

/// The message in `bytes`, which must hold nothing else.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<Envelope<T>, CodecError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(CodecError::TooLong(bytes.len()));
    }
    let malformed = |error: String| CodecError::Malformed(error);
    let (message, rest) =
        postcard::take_from_bytes(bytes).map_err(|error| malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(malformed(format!("{} bytes too many", rest.len())));
    }
    Ok(message)
}
