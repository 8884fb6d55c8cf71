//! An SMB Direct endpoint inside one process and one thread: MS-SMBD over a fabric, active and
//! passive, with no engine and no shared memory.
//!
//! [`Endpoint`] drives [`proto::Connection`](crate::proto::Connection) and the software iWARP
//! fabric from one epoll set. The program's tools (ping, bench, proxy) are built on it, and so
//! are the protocol tests, for which it can also misbehave: a *raw* connection (see
//! [`Config::raw`]) has no state machine, sends whatever bytes it is given and tells whatever it
//! receives.
//!
//! How it is used: call [`Endpoint::connect`] or [`Endpoint::listen`], then [`Endpoint::poll`] in
//! a loop and take what it tells. Calls in between (send, RDMA READ and WRITE, register) only
//! queue work; it leaves with the next `poll` or [`Endpoint::flush`].

#![forbid(unsafe_code)]

mod buffers;
mod connection;
mod endpoint;
mod event;

#[cfg(test)]
mod tests;

pub use buffers::{Pdu, SendBuffer};
pub use endpoint::Endpoint;
pub use event::{Config, ConnectionStats, EndReason, PeerError, PeerEvent};

/// A connection of an [`Endpoint`]. Never used again for another one.
pub use crate::fabric::QpKey as ConnectionId;
