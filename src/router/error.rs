//! Why a connection was not routed, and what its peer is told.

use std::fmt;

use super::header::{error_response, RequestHeader};

/// An NTSTATUS code ([MS-ERREF] 2.3) as it stands in the SMB2 header.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct NtStatus(pub u32);

impl NtStatus {
    /// The request is malformed or its values contradict each other.
    pub const INVALID_PARAMETER: Self = Self(0xC000_000D);
    /// No dialect in common.
    pub const NOT_SUPPORTED: Self = Self(0xC000_00BB);
    /// This server takes no new session here.
    pub const REQUEST_NOT_ACCEPTED: Self = Self(0xC000_00D0);
    /// The session is unknown.
    pub const USER_SESSION_DELETED: Self = Self(0xC000_0203);
    /// No preauthentication hash algorithm in common.
    pub const SMB_NO_PREAUTH_INTEGRITY_HASH_OVERLAP: Self = Self(0xC05D_0000);
    /// The server cannot answer because of its own configuration.
    pub const UNSUCCESSFUL: Self = Self(0xC000_0001);
}

impl fmt::Debug for NtStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NtStatus({:#010x})", self.0)
    }
}

impl fmt::Display for NtStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::INVALID_PARAMETER => "STATUS_INVALID_PARAMETER",
            Self::NOT_SUPPORTED => "STATUS_NOT_SUPPORTED",
            Self::REQUEST_NOT_ACCEPTED => "STATUS_REQUEST_NOT_ACCEPTED",
            Self::USER_SESSION_DELETED => "STATUS_USER_SESSION_DELETED",
            Self::SMB_NO_PREAUTH_INTEGRITY_HASH_OVERLAP => {
                "STATUS_SMB_NO_PREAUTH_INTEGRITY_HASH_OVERLAP"
            }
            Self::UNSUCCESSFUL => "STATUS_UNSUCCESSFUL",
            _ => return write!(f, "{:#010x}", self.0),
        };
        f.write_str(name)
    }
}

/// What is wrong with the negotiate contexts of a 3.1.1 request ([MS-SMB2] 2.2.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ContextFault {
    /// NegotiateContextOffset is unaligned, before the end of the dialects, or beyond the PDU.
    Offset(u32),
    /// The PDU ends before context number `0`, counted from zero, does.
    Truncated(u16),
    /// A context type that may appear once appears again.
    Repeated(u16),
    /// The data of a context of this type is shorter than the lists it announces.
    Short(u16),
    /// A context of this type announces an empty list.
    Empty(u16),
    /// The mandatory SMB2_PREAUTH_INTEGRITY_CAPABILITIES is missing.
    NoPreauthIntegrity,
}

impl fmt::Display for ContextFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offset(offset) => write!(f, "context offset {offset} is not usable"),
            Self::Truncated(index) => write!(f, "pdu ends inside context number {index}"),
            Self::Repeated(kind) => write!(f, "context type {kind:#06x} appears twice"),
            Self::Short(kind) => write!(f, "data of context type {kind:#06x} is too short"),
            Self::Empty(kind) => write!(f, "context type {kind:#06x} has an empty list"),
            Self::NoPreauthIntegrity => f.write_str("no preauthentication integrity context"),
        }
    }
}

/// Why a connection ends here. Every value ends it; see [`RouteError::status`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RouteError {
    /// The PDU has fewer bytes than an SMB2 header.
    TooShort(usize),
    /// The PDU has more bytes than [`super::MAX_FIRST_PDU`].
    TooLong(usize),
    /// ProtocolId is not that of plain SMB2: SMB1, encrypted, compressed, or no SMB at all.
    ProtocolId([u8; 4]),
    /// StructureSize of the header is not 64.
    HeaderSize(u16),
    /// The PDU is a response, not a request.
    NotRequest,
    /// Another command than the one due now.
    Command {
        /// The command due: 0 NEGOTIATE, 1 SESSION_SETUP.
        due: u16,
        /// The command received.
        got: u16,
    },
    /// The request is the head of a compound chain; holds NextCommand.
    Compounded(u32),
    /// MessageId is outside the command window.
    MessageId {
        /// The only sequence number the peer holds.
        due: u64,
        /// The one received.
        got: u64,
    },
    /// The request charges more credits than the one granted.
    CreditCharge(u16),
    /// SMB2_FLAGS_ASYNC_COMMAND or SMB2_FLAGS_RELATED_OPERATIONS is set; holds Flags.
    Flags(u32),
    /// NEGOTIATE is signed.
    SignedNegotiate,
    /// StructureSize of the body is wrong.
    BodySize {
        /// The size that the command has.
        due: u16,
        /// The one received.
        got: u16,
    },
    /// The PDU ends before the fixed part or the dialects do; holds its length.
    BodyTruncated(usize),
    /// DialectCount is zero.
    NoDialects,
    /// Client and configuration have no dialect in common.
    NoCommonDialect,
    /// The negotiate contexts are malformed.
    Context(ContextFault),
    /// The client does not offer SHA-512, the only preauthentication hash there is.
    NoCommonHash,
    /// The security buffer of SESSION_SETUP is not inside the PDU.
    SecurityBuffer {
        /// SecurityBufferOffset
        offset: u16,
        /// SecurityBufferLength
        length: u16,
    },
    /// SESSION_SETUP asks for a new session; the engine only routes bindings.
    NewSession,
    /// SESSION_SETUP names a session that nobody registered.
    UnknownSession(u64),
    /// SESSION_SETUP binds to a registered session without a signature.
    UnsignedBinding(u64),
    /// The configuration cannot be put into a response; [`super::ServerConfig::check`] says why.
    Config,
}

impl RouteError {
    /// The status of the error response that goes out before the connection is dropped, or nothing
    /// when it is dropped without a word ([MS-SMB2] 3.3.7.1).
    pub fn status(&self) -> Option<NtStatus> {
        match self {
            // [MS-SMB2] 3.3.5.2 and 3.3.5.2.3: what is no valid SMB2 request, or is outside the
            // command window, disconnects. 3.3.5.4: so does a second NEGOTIATE.
            Self::TooShort(_)
            | Self::TooLong(_)
            | Self::ProtocolId(_)
            | Self::HeaderSize(_)
            | Self::NotRequest
            | Self::Command { .. }
            | Self::Compounded(_)
            | Self::MessageId { .. }
            | Self::CreditCharge(_) => None,
            Self::Flags(_)
            | Self::SignedNegotiate
            | Self::BodySize { .. }
            | Self::BodyTruncated(_)
            | Self::NoDialects
            | Self::Context(_)
            | Self::SecurityBuffer { .. }
            | Self::UnsignedBinding(_) => Some(NtStatus::INVALID_PARAMETER),
            Self::NoCommonDialect => Some(NtStatus::NOT_SUPPORTED),
            Self::NoCommonHash => Some(NtStatus::SMB_NO_PREAUTH_INTEGRITY_HASH_OVERLAP),
            Self::NewSession => Some(NtStatus::REQUEST_NOT_ACCEPTED),
            Self::UnknownSession(_) => Some(NtStatus::USER_SESSION_DELETED),
            Self::Config => Some(NtStatus::UNSUCCESSFUL),
        }
    }

    /// The error response to the request in `pdu`, or nothing when the peer gets none.
    pub fn response(&self, pdu: &[u8]) -> Option<Vec<u8>> {
        let status = self.status()?;
        let header = RequestHeader::parse(pdu).ok()?;
        Some(error_response(&header, status))
    }
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort(len) => write!(f, "pdu of {len} bytes is shorter than an smb2 header"),
            Self::TooLong(len) => write!(
                f,
                "pdu of {len} bytes on a connection without owner (limit {})",
                super::MAX_FIRST_PDU
            ),
            Self::ProtocolId([0xff, b'S', b'M', b'B']) => {
                f.write_str("smb1 negotiate, which smb direct does not carry")
            }
            Self::ProtocolId([0xfd, b'S', b'M', b'B']) => {
                f.write_str("encrypted pdu on a connection without session")
            }
            Self::ProtocolId([0xfc, b'S', b'M', b'B']) => {
                f.write_str("compressed pdu on a connection that negotiated no compression")
            }
            Self::ProtocolId([a, b, c, d]) => {
                write!(f, "protocol id {a:02x}{b:02x}{c:02x}{d:02x} is not smb2")
            }
            Self::HeaderSize(size) => write!(f, "smb2 header with structure size {size}, not 64"),
            Self::NotRequest => f.write_str("smb2 response from the client"),
            Self::Command { due, got } => write!(f, "smb2 command {got} where {due} is due"),
            Self::Compounded(next) => write!(f, "compounded request (next command at {next})"),
            Self::MessageId { due, got } => write!(f, "message id {got} where {due} is due"),
            Self::CreditCharge(charge) => write!(f, "credit charge {charge} with one credit held"),
            Self::Flags(flags) => write!(f, "header flags {flags:#010x} on a first request"),
            Self::SignedNegotiate => f.write_str("signed negotiate request"),
            Self::BodySize { due, got } => write!(f, "structure size {got} where {due} is due"),
            Self::BodyTruncated(len) => write!(f, "pdu of {len} bytes ends inside the request"),
            Self::NoDialects => f.write_str("negotiate request without dialects"),
            Self::NoCommonDialect => f.write_str("no dialect in common"),
            Self::Context(fault) => write!(f, "negotiate contexts: {fault}"),
            Self::NoCommonHash => {
                f.write_str("client does not offer sha-512 for preauthentication")
            }
            Self::SecurityBuffer { offset, length } => {
                write!(
                    f,
                    "security buffer of {length} bytes at {offset} is outside the pdu"
                )
            }
            Self::NewSession => f.write_str("session setup for a new session, not a binding"),
            Self::UnknownSession(id) => write!(f, "session {id:#018x} is not registered"),
            Self::UnsignedBinding(id) => write!(f, "unsigned binding to session {id:#018x}"),
            Self::Config => f.write_str("configuration does not fit a negotiate response"),
        }
    }
}

impl std::error::Error for RouteError {}

/// A refusal ready to be sent; the connection is dropped behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why, for the log.
    pub reason: RouteError,
    /// The SMB2 error response.
    pub pdu: Vec<u8>,
}
