//! The PDUs of \[MS-SMBD\] 2.2: one file each, parse and emit.
//!
//! Every type here is a plain struct of host-order values. `parse` copies the fields out of the
//! received bytes and judges nothing but the length, so that a bad PDU can still be logged in
//! full; `validate` then applies the field rules of the specification, in its order. `emit`
//! returns an array of exactly the PDU's size. Nothing in this module can panic, whatever the
//! bytes are, and nothing allocates.
//!
//! All multi-byte fields are little-endian and unsigned; Reserved fields are sent as zero and
//! ignored on receipt (\[MS-SMBD\] 2.2).

#![forbid(unsafe_code)]

use std::fmt;

mod buffer_descriptor;
mod data_transfer;
mod negotiate_request;
mod negotiate_response;

pub use buffer_descriptor::{BufferDescriptor, BufferDescriptors};
pub use data_transfer::DataTransfer;
pub use negotiate_request::NegotiateRequest;
pub use negotiate_response::NegotiateResponse;

/// The only protocol version defined, `[MS-SMBD] 1.7`.
pub const VERSION: u16 = 0x0100;

/// Smallest legal MaxReceiveSize and MaxSendSize, bytes.
pub const MIN_MESSAGE_SIZE: u32 = 128;

/// Our limit for MaxReceiveSize and MaxSendSize, bytes: with a receive buffer for each credit,
/// larger messages only cost memory.
pub const MAX_MESSAGE_SIZE: u32 = 65_536;

/// Smallest legal MaxFragmentedSize, bytes.
pub const MIN_FRAGMENTED_SIZE: u32 = 131_072;

/// Our limit for MaxFragmentedSize, bytes: eight times the largest SMB2 message of any known peer.
pub const MAX_FRAGMENTED_SIZE: u32 = 64 << 20;

/// The negotiation receive has to take this many bytes: a Negotiate Request may be padded to it
/// (`[MS-SMBD] 3.1.7.2`).
pub const NEGOTIATE_RECEIVE_SIZE: u32 = 512;

/// NTSTATUS values that travel in a Negotiate Response.
pub mod status {
    /// The negotiation succeeded.
    pub const SUCCESS: u32 = 0;
    /// No common protocol version.
    pub const NOT_SUPPORTED: u32 = 0xC000_00BB;
    /// The responder could post no receives.
    pub const INSUFFICIENT_RESOURCES: u32 = 0xC000_009A;
}

/// Why bytes are no legal PDU: which field, which value, which rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParseError {
    /// Fewer bytes than the PDU's fixed part.
    Truncated {
        /// Name of the PDU.
        pdu: &'static str,
        /// Bytes it needs.
        needed: usize,
        /// Bytes there were.
        got: usize,
    },
    /// A field holds a value that the specification forbids.
    Illegal {
        /// Name of the PDU.
        pdu: &'static str,
        /// Name of the field, in the specification's spelling.
        field: &'static str,
        /// The value received.
        value: u64,
        /// What it had to be.
        rule: &'static str,
    },
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Truncated { pdu, needed, got } => {
                write!(f, "{pdu} of {got} bytes, {needed} needed")
            }
            Self::Illegal {
                pdu,
                field,
                value,
                rule,
            } => {
                write!(f, "{pdu} with {field} {value} ({value:#x}), {rule}")
            }
        }
    }
}

impl std::error::Error for ParseError {}

// The offsets passed to these four are constants below N, in every call in this module.

fn u16_at<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn put_u16<const N: usize>(bytes: &mut [u8; N], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn put_u32<const N: usize>(bytes: &mut [u8; N], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// The first `N` bytes of a message, or the error that says how many there were.
fn fixed_part<'a, const N: usize>(
    pdu: &'static str,
    bytes: &'a [u8],
) -> Result<&'a [u8; N], ParseError> {
    bytes.first_chunk::<N>().ok_or(ParseError::Truncated {
        pdu,
        needed: N,
        got: bytes.len(),
    })
}
