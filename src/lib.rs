//! SMB Direct (SMB3 over RDMA, \[MS-SMBD\]) in user space.
//!
//! Layers, each using only those below it:
//!
//! ```text
//!   capi (C ABI)          bin/smbdirect (program)
//!     |                     |        |
//!   client (handle)       engine    peer (in-process endpoint)
//!     |                   |  |  \    |  |
//!     +------ ipc --------+  |   proto  fabric::iwarp
//!     |                      |     |      |
//!     +------ ring ----------+    wire   mem, sys
//! ```
//!
//! `proto` (the MS-SMBD state machine) and `fabric` (the RDMA transports) never name each other;
//! only `engine` and `peer` bring them together. `smb`, a client of the tools and tests, stands on
//! `peer`; it needs the feature `tools`.

pub mod capi;
pub mod client;
pub mod engine;
pub mod fabric;
pub mod ipc;
pub mod mem;
pub mod peer;
pub mod proto;
pub mod ring;
pub mod router;
#[cfg(feature = "tools")]
pub mod smb;
pub mod sys;
pub mod wire;
