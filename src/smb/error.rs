//! What can go wrong, and the status values that callers look for.

use std::fmt;

use smb_msg::{Command, Status};

use crate::peer::PeerError;

/// Why a call of the SMB client failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum SmbError {
    /// The connection could not be made, or ended.
    Connection(String),
    /// Nothing came in the time that [`Options::patience`](super::Options) gives.
    TimedOut(String),
    /// The server answered with an error.
    Status {
        /// What was asked.
        command: Command,
        /// The NTSTATUS value.
        status: u32,
    },
    /// A message does not have the form it must have.
    Message(String),
    /// A response or its data is not signed or encrypted as it must be.
    Signature(String),
    /// Data by RDMA does not come as it must: STATUS_INVALID_NETWORK_RESPONSE of
    /// `[MS-SMB2] 3.2.5.11`.
    InvalidResponse(String),
    /// The server's authentication message makes no sense.
    Authentication(String),
    /// The caller asked for what cannot be.
    Usage(String),
}

impl SmbError {
    /// The NTSTATUS of [`SmbError::Status`].
    pub fn status(&self) -> Option<u32> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }
}

impl fmt::Display for SmbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(text)
            | Self::TimedOut(text)
            | Self::Message(text)
            | Self::Signature(text)
            | Self::InvalidResponse(text)
            | Self::Authentication(text)
            | Self::Usage(text) => f.write_str(text),
            Self::Status { command, status } => write!(
                f,
                "{command}: {status:#010x} {}",
                Status::try_display_as_status(*status)
            ),
        }
    }
}

impl std::error::Error for SmbError {}

impl From<std::io::Error> for SmbError {
    fn from(error: std::io::Error) -> Self {
        Self::Connection(error.to_string())
    }
}

impl From<PeerError> for SmbError {
    fn from(error: PeerError) -> Self {
        Self::Connection(error.to_string())
    }
}

impl From<binrw::Error> for SmbError {
    fn from(error: binrw::Error) -> Self {
        Self::Message(error.to_string())
    }
}

/// NTSTATUS values: `[MS-ERREF] 2.3`.
pub mod status {
    /// Done.
    pub const SUCCESS: u32 = 0;
    /// An interim response; the final one follows.
    pub const PENDING: u32 = 0x0000_0103;
    /// The directory has no further entries.
    pub const NO_MORE_FILES: u32 = 0x8000_0006;
    /// A field is not as it must be.
    pub const INVALID_PARAMETER: u32 = 0xc000_000d;
    /// The read starts at or behind the end of the file.
    pub const END_OF_FILE: u32 = 0xc000_0011;
    /// Authentication goes on.
    pub const MORE_PROCESSING_REQUIRED: u32 = 0xc000_0016;
    /// A signature is wrong.
    pub const INVALID_SIGNATURE: u32 = 0xc000_a000;
    /// The tag of what was encrypted is wrong, or its nonce or tag has a wrong length.
    pub const AUTH_TAG_MISMATCH: u32 = 0xc000_a002;
    /// Not allowed.
    pub const ACCESS_DENIED: u32 = 0xc000_0022;
    /// The name is not there.
    pub const OBJECT_NAME_NOT_FOUND: u32 = 0xc000_0034;
    /// Wrong user or password.
    pub const LOGON_FAILURE: u32 = 0xc000_006d;
    /// The server does not do this.
    pub const NOT_SUPPORTED: u32 = 0xc000_00bb;
    /// The tree is not connected.
    pub const NETWORK_NAME_DELETED: u32 = 0xc000_00c9;
    /// The session is already bound to the connection, or is being set up.
    pub const REQUEST_NOT_ACCEPTED: u32 = 0xc000_00d0;
    /// Cancelled.
    pub const CANCELLED: u32 = 0xc000_0120;
    /// The file id means nothing.
    pub const FILE_CLOSED: u32 = 0xc000_0128;
    /// There is no such session.
    pub const USER_SESSION_DELETED: u32 = 0xc000_0203;
    /// The session has to be authenticated again.
    pub const NETWORK_SESSION_EXPIRED: u32 = 0xc000_035c;
}
