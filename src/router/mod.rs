//! The SMB2 side of connection routing: reads the first PDUs of a new connection, answers NEGOTIATE.
//!
//! Pure functions over bytes: no I/O, no clock, no randomness; the time and the salt of an answer
//! are given in. Nothing here allocates by a number the peer sent, indexes unchecked, or panics on
//! peer bytes; the only allocations are the responses, of at most a few hundred bytes plus the
//! configured security blob.
//!
//! # How the engine uses it
//!
//! SMB Direct has no socket to hand over, so the engine decides from the first upper-layer PDU of a
//! connection which process gets it. Until then it reassembles no PDU longer than [`MAX_FIRST_PDU`].
//!
//! ```text
//! PDU 1 -> parse_negotiate --Err(e)--> e.response(pdu): send it if there is one; drop
//!            |
//!            +- tier 1: client_guid is registered -> attach to that handle, deliver the PDU
//!            +- tier 2: the engine answers        -> answer_negotiate(&request, &config, &inputs)
//!            |            Ok(response)  -> send; keep request and response bytes; wait for PDU 2
//!            |            Err(refusal)  -> send refusal.pdu; drop
//!            +- tier 3: otherwise                 -> offer to the parent handle with the PDU
//!
//! PDU 2 -> parse_session_setup --Err(e)--> as above
//!   (tier 2 only)  |
//!                  +- setup.route(|id| registered(id))
//!                       Ok(session_id) -> attach to its handle; deliver NEGOTIATE request, NEGOTIATE
//!                                         response and SESSION_SETUP request, byte for byte
//!                       Err(e)         -> send e.response(pdu); drop
//! ```
//!
//! A [`RouteError`] always ends the connection; [`RouteError::status`] says whether the peer is told
//! why first ([MS-SMB2] 3.3.4.4) or not (3.3.7.1).
//!
//! # What is left to the owner of the connection
//!
//! The engine holds no session keys. It checks that a binding request is signed, and the process
//! that owns the session verifies the signature, the dialect, the user and the state of the session
//! ([MS-SMB2] 3.3.5.5). It also owes the owner the exact NEGOTIATE bytes of both directions, which
//! enter the preauthentication hash (3.3.5.4, 3.3.5.5), and the credit window it left: the answer
//! grants one credit, so when SESSION_SETUP has arrived with MessageId 1 no credit is outstanding.
//!
//! # Dialects
//!
//! RDMA transports carry the SMB 3.x family only ([MS-SMB2] 2.1), and session binding, the one thing
//! that tier 2 routes by, exists only there (3.3.5.5). So the answers are 3.0, 3.0.2 or 3.1.1.

#![forbid(unsafe_code)]

mod contexts;
mod error;
mod header;
mod negotiate;
mod session_setup;

pub use contexts::{Cipher, NegotiateContexts, SigningAlgorithm};
pub use error::{ContextFault, NtStatus, Refusal, RouteError};
pub use header::{error_response, RequestHeader};
pub use negotiate::{
    answer_negotiate, filetime, parse_negotiate, ConfigError, Dialect, DialectSet, Inputs,
    NegotiateRequest, ServerConfig,
};
pub use session_setup::{parse_session_setup, SessionSetup};

/// Longest PDU that is accepted before a connection has an owner, in bytes.
///
/// The largest legal SESSION_SETUP is 88 bytes and a security buffer of 65,535; a NEGOTIATE of that
/// length is far beyond what any client sends. The same figure as the limit of a single-credit
/// request, 64 KiB and its headers.
pub const MAX_FIRST_PDU: usize = 65_536 + 256;

/// Longest security blob of a NEGOTIATE response, in bytes.
pub const MAX_SECURITY_BLOB: usize = 16_384;

/// Capabilities and SecurityMode bits ([MS-SMB2] 2.2.3, 2.2.4).
pub mod flags {
    /// SecurityMode: signing is enabled; set in every answer.
    pub const NEGOTIATE_SIGNING_ENABLED: u16 = 0x0001;
    /// SecurityMode: signing is required.
    pub const NEGOTIATE_SIGNING_REQUIRED: u16 = 0x0002;
    /// Capabilities: DFS.
    pub const CAP_DFS: u32 = 0x0000_0001;
    /// Capabilities: leasing.
    pub const CAP_LEASING: u32 = 0x0000_0002;
    /// Capabilities: multi-credit operations. A server on RDMA has it ([MS-SMB2] 3.3.5.4).
    pub const CAP_LARGE_MTU: u32 = 0x0000_0004;
    /// Capabilities: several channels for one session. Clients bind only where it is answered.
    pub const CAP_MULTI_CHANNEL: u32 = 0x0000_0008;
    /// Capabilities: persistent handles.
    pub const CAP_PERSISTENT_HANDLES: u32 = 0x0000_0010;
    /// Capabilities: directory leasing.
    pub const CAP_DIRECTORY_LEASING: u32 = 0x0000_0020;
    /// Capabilities: encryption; in answers a matter of 3.0 and 3.0.2 only.
    pub const CAP_ENCRYPTION: u32 = 0x0000_0040;
    /// Capabilities: server-to-client notifications; in answers a matter of 3.1.1 only.
    pub const CAP_NOTIFICATIONS: u32 = 0x0000_0080;
}

/// `N` bytes of `bytes` at `offset`, or nothing when they are not all there.
fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    let end = offset.checked_add(N)?;
    bytes.get(offset..end)?.try_into().ok()
}

/// The little-endian 16-bit number at `offset`.
fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    array_at(bytes, offset).map(u16::from_le_bytes)
}

/// The little-endian 32-bit number at `offset`.
fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    array_at(bytes, offset).map(u32::from_le_bytes)
}

/// The little-endian 64-bit number at `offset`.
fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    array_at(bytes, offset).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests;
