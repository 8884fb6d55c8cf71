//! A small SMB 3 client: over plain TCP, and over SMB Direct with RDMA channels.
//!
//! The tests drive smbd with it, and `smbdirect bench --smb` measures with it. It is not part of
//! what smbd loads. SMB2 messages come from `smb-msg`, NTLMv2 from `ntlmclient`, signatures and
//! ciphers from the RustCrypto crates. Our own is what those lack: READ and WRITE with channel
//! information (`[MS-SMB2] 2.2.19`, 2.2.21), RDMA transforms (2.2.43) and the two transports.
//!
//! - [`Connection`]: one transport connection (a *channel*, once a session is on it). It negotiates
//!   3.0, 3.0.2 or 3.1.1, keeps message ids and credits, signs and encrypts, verifies what comes,
//!   and has any number of requests in flight: [`Connection::submit`], [`Connection::wait`].
//! - [`Session`]: what is needed to bind a further connection to a session. Tree and file ids are
//!   plain values and good on every channel.
//! - [`Memory`]: a buffer that a server reaches by RDMA, in as many descriptors as wanted.
//! - [`RdmaTransform`]: what a message says of data that goes by RDMA signed or encrypted.
//!   [`Connection::rdma_read`] and [`Connection::rdma_write`] do all of it; to do something wrong,
//!   build requests from [`Connection::seal_payload`] and [`WriteRequest::transformed`].
//! - [`Profile`]: how an SMB Direct client behaves: as Linux, as Windows, or with as little as
//!   possible.
//!
//! Everything happens in the caller's thread, inside the calls: an SMB Direct connection serves
//! the server's RDMA READs and WRITEs only while something waits on it.

#![forbid(unsafe_code)]

mod calls;
mod cipher;
mod connection;
mod crypto;
mod direct;
mod encryption;
mod error;
mod message;
mod negotiate;
mod ntlm;
mod options;
mod payload;
mod session;
mod tcp;
mod transform;
mod transport;

#[cfg(test)]
mod tests;

pub use calls::{Entry, Interface, OpenMode, OpenedFile};
pub use cipher::Cipher;
pub use connection::{Connection, MessageId};
pub use direct::{Direct, Memory};
pub use error::{status, SmbError};
pub use message::{ReadRequest, Request, Response, WriteRequest, READ_TRANSFORM};
pub use negotiate::Negotiating;
pub use options::{Credentials, Dialect, Encrypting, Negotiated, Options, Profile, Signing};
pub use payload::Protection;
pub use session::Session;
pub use smb_msg::{Command, FileId};
pub use transform::{transform_id, transform_type, CryptoTransform, RdmaTransform};
pub use transport::Carrier;

/// Values of the Channel field of READ and WRITE: `[MS-SMB2] 2.2.19`.
pub mod channel {
    /// Data is inside the message.
    pub const NONE: u32 = 0;
    /// Data goes by RDMA.
    pub const RDMA_V1: u32 = 1;
    /// Data goes by RDMA, and the server invalidates the first token with its response.
    pub const RDMA_V1_INVALIDATE: u32 = 2;
    /// Data goes by RDMA, transformed.
    pub const RDMA_TRANSFORM: u32 = 3;
}
