#![deny(unsafe_code)]
//! RDMA transports behind one trait.
//!
//! A fabric owns its queue pairs. The caller drives it: it hands in readiness and time, posts work
//! requests, calls [`Fabric::flush`] once after a batch of them, and takes [`FabricEvent`]s out of a
//! vector that it provides. Nothing here knows MS-SMBD, and nothing blocks.
//!
//! Rules that every fabric keeps:
//! - Work requests of one queue pair complete in the order they were posted, per kind (receives;
//!   sends, writes and reads together, where a read may complete after later sends).
//! - An RDMA WRITE posted before a send is placed at the peer before the send is delivered.
//! - When a connection ends, every outstanding work request first completes with
//!   [`Status::Flushed`] (a failed one with its own status), then comes exactly one
//!   [`FabricEvent::Disconnected`]. After it the key is dead; no call with it does anything.
//! - Memory named by a work request is not touched any more once its completion was told.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::mem::{MemSlice, Region};
use crate::sys::Ready;

pub mod iwarp;
mod slots;
#[cfg(feature = "verbs")]
pub mod verbs;

/// A queue pair of one fabric. Keys are not used again soon after their connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QpKey(pub u64);

/// A listener of one fabric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ListenerKey(pub u64);

/// The caller's name for a work request; comes back in its completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WrId(pub u64);

/// What the peer may do with registered memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// RDMA READ by the peer.
    pub remote_read: bool,
    /// RDMA WRITE by the peer.
    pub remote_write: bool,
}

/// What a peer needs to reach registered memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteKey {
    /// STag / rkey.
    pub token: u32,
    /// Tagged offset / virtual address of the first byte.
    pub offset: u64,
}

/// Which fabric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FabricKind {
    /// Software iWARP over TCP: any network interface.
    #[default]
    SoftIwarp,
    /// RDMA devices.
    Verbs,
}

/// The kinds of RDMA devices, whose ports differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceKind {
    /// No matter.
    #[default]
    Any,
    /// InfiniBand and RoCE.
    Infiniband,
    /// iWARP.
    Iwarp,
}

/// How to listen.
#[derive(Debug, Clone, Default)]
pub struct ListenOptions {
    /// Ask peers for a CRC in every frame (software iWARP).
    pub crc: bool,
    /// Take connections on devices of this kind only (verbs).
    pub device: DeviceKind,
}

/// How to connect.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// The peer's address.
    pub peer: SocketAddr,
    /// Ask the peer for a CRC in every frame (software iWARP).
    pub crc: bool,
    /// MPA revision to start with: 1 or 2 (software iWARP).
    pub mpa_revision: u8,
    /// Inbound RDMA READs we can serve at once.
    pub ird: u32,
    /// Outbound RDMA READs we would like to have outstanding.
    pub ord: u32,
    /// CM private data, sent on iWARP only: InfiniBand and RoCE carry the depths themselves.
    pub private_data: Vec<u8>,
    /// How long the set-up may take.
    pub timeout: Duration,
}

/// How to answer a connect request.
#[derive(Debug, Clone, Default)]
pub struct AcceptOptions {
    /// Inbound RDMA READs we can serve at once.
    pub ird: u32,
    /// Outbound RDMA READs we would like to have outstanding.
    pub ord: u32,
    /// CM private data, sent on iWARP only.
    pub private_data: Vec<u8>,
}

/// A send: up to 32 bytes of header from the fabric's own copy, then memory.
#[derive(Debug, Clone)]
pub struct SendRequest {
    /// The caller's name.
    pub wr_id: WrId,
    /// Bytes of `header` in use.
    pub header_len: u8,
    /// Bytes that go first.
    pub header: [u8; 32],
    /// Memory that follows.
    pub payload: Option<MemSlice>,
    /// The peer's token to invalidate with this send.
    pub invalidate: Option<u32>,
}

impl SendRequest {
    /// Whether `header` has the bytes that are said to be in use.
    fn check_header(&self) -> Result<(), FabricError> {
        if usize::from(self.header_len) <= self.header.len() {
            return Ok(());
        }
        Err(FabricError::Invalid(format!(
            "header_len is {}; at most 32",
            self.header_len
        )))
    }
}

/// Why a work request or a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// Done.
    Success,
    /// The connection ended before it.
    Flushed,
    /// The peer refused access to its memory.
    RemoteAccess,
    /// The transport failed.
    Failed,
}

/// Why a connection ended. The first reason is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndReason {
    /// [`Fabric::disconnect`] or [`Fabric::reject`] was called.
    Local,
    /// The peer closed in good order.
    PeerClosed,
    /// The peer refused the connect.
    Refused(String),
    /// A phase of the set-up took too long.
    TimedOut(String),
    /// The peer broke the protocol of the fabric; the text names field and value.
    Protocol(String),
    /// The peer sent a Terminate; the text names its codes.
    Terminated(String),
    /// The transport underneath failed.
    Transport(String),
}

/// What a fabric knows of an address of this host that it can use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalAddress {
    /// The RDMA device behind the address, if there is one.
    pub device: Option<String>,
    /// Bits per second of that device's port, where the fabric knows them.
    pub link_speed: Option<u64>,
    /// What that device is.
    pub kind: Option<DeviceKind>,
}

/// What a fabric tells.
#[derive(Debug)]
#[non_exhaustive]
pub enum FabricEvent {
    /// A peer wants to connect: post receives, then call accept or reject.
    ConnectRequest {
        /// The new queue pair.
        qp: QpKey,
        /// The listener it came to.
        listener: ListenerKey,
        /// Our address.
        local: SocketAddr,
        /// The peer's address.
        peer: SocketAddr,
        /// CM private data of the peer.
        private_data: Vec<u8>,
        /// Inbound reads the peer serves, if it said so.
        peer_ird: Option<u32>,
        /// Outbound reads the peer would like to have, if it said so.
        peer_ord: Option<u32>,
    },
    /// The connection is up.
    Established {
        /// The queue pair.
        qp: QpKey,
        /// Our address.
        local: SocketAddr,
        /// The peer's address.
        peer: SocketAddr,
        /// RDMA READs we may have outstanding.
        ord: u32,
        /// CM private data of the peer (active side).
        private_data: Vec<u8>,
    },
    /// A posted receive was filled, or flushed.
    Recv {
        /// The queue pair.
        qp: QpKey,
        /// The receive.
        wr_id: WrId,
        /// Bytes received.
        len: usize,
        /// The token of ours that the peer has invalidated with it.
        invalidated: Option<u32>,
        /// Success or flushed.
        status: Status,
    },
    /// A posted send, write or read ended.
    Done {
        /// The queue pair.
        qp: QpKey,
        /// The work request.
        wr_id: WrId,
        /// How it ended.
        status: Status,
    },
    /// The connection is gone. Its last event.
    Disconnected {
        /// The queue pair.
        qp: QpKey,
        /// The first reason.
        reason: EndReason,
    },
}

/// Why a call was refused.
#[derive(Debug)]
#[non_exhaustive]
pub enum FabricError {
    /// No such queue pair or listener (any more).
    NoSuchKey,
    /// Not possible in this state of the connection.
    WrongState(&'static str),
    /// A value is out of range; the text names it and the cure.
    Invalid(String),
    /// A limit of the fabric is reached; the text names it.
    NoResources(&'static str),
    /// The operating system refused; the text says what was tried.
    Os(String, std::io::Error),
}

impl std::fmt::Display for FabricError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoSuchKey => write!(f, "no such connection or listener"),
            Self::WrongState(what) => write!(f, "{what}"),
            Self::Invalid(what) => write!(f, "{what}"),
            Self::NoResources(what) => write!(f, "limit reached: {what}"),
            Self::Os(what, error) => write!(f, "{what}: {error}"),
        }
    }
}

impl std::error::Error for FabricError {}

/// One RDMA transport.
pub trait Fabric {
    /// Its name in logs and status.
    fn name(&self) -> &'static str;

    /// Whether connections to an address of this host can come over this fabric: to a listener that
    /// covers the address, or at all. The error says why not, and what would help. A fabric that
    /// needs a device asks for the one behind the address; one that runs over plain sockets takes
    /// any address.
    fn local_address(
        &self,
        listener: Option<ListenerKey>,
        address: IpAddr,
    ) -> Result<LocalAddress, String> {
        let _ = (listener, address);
        Ok(LocalAddress::default())
    }

    /// Listens on an address (port 0: any free one). Returns the address taken.
    fn listen(
        &mut self,
        address: SocketAddr,
        options: &ListenOptions,
    ) -> Result<(ListenerKey, SocketAddr), FabricError>;

    /// Stops listening; requests not yet accepted end.
    fn close_listener(&mut self, listener: ListenerKey);

    /// Starts to connect. Receives may be posted at once. Ends in Established or Disconnected.
    fn connect(&mut self, now: Instant, options: &ConnectOptions) -> Result<QpKey, FabricError>;

    /// Accepts a connect request. Established follows.
    fn accept(
        &mut self,
        now: Instant,
        qp: QpKey,
        options: &AcceptOptions,
    ) -> Result<(), FabricError>;

    /// Refuses a connect request. Disconnected follows.
    fn reject(&mut self, qp: QpKey, private_data: &[u8]);

    /// Says how many receives the caller will have posted at most, before it posts the first. A
    /// fabric whose queues have a fixed size makes them so large; one that cannot refuses receives
    /// that do not fit with [`FabricError::NoResources`].
    fn expect_receives(&mut self, qp: QpKey, count: u32) {
        let _ = (qp, count);
    }

    /// Posts a receive for one message of at most `memory.len()` bytes.
    fn post_recv(&mut self, qp: QpKey, wr_id: WrId, memory: MemSlice) -> Result<(), FabricError>;

    /// Posts a send.
    fn post_send(&mut self, qp: QpKey, request: SendRequest) -> Result<(), FabricError>;

    /// Posts an RDMA WRITE of `memory` to the peer's `token` at `offset`.
    fn post_write(
        &mut self,
        qp: QpKey,
        wr_id: WrId,
        memory: MemSlice,
        token: u32,
        offset: u64,
    ) -> Result<(), FabricError>;

    /// Posts an RDMA READ of `memory.len()` bytes from the peer's `token` at `offset`. Reads beyond
    /// the negotiated depth wait their turn inside the fabric.
    fn post_read(
        &mut self,
        qp: QpKey,
        wr_id: WrId,
        memory: MemSlice,
        token: u32,
        offset: u64,
    ) -> Result<(), FabricError>;

    /// Lets the peer of one connection reach `memory`.
    fn register(
        &mut self,
        qp: QpKey,
        memory: MemSlice,
        access: Access,
    ) -> Result<RemoteKey, FabricError>;

    /// Takes it back; after it returned the peer cannot reach the memory. False: no such token
    /// (any more).
    fn deregister(&mut self, qp: QpKey, token: u32) -> bool;

    /// Whether the peer of a connection can give up a token of [`Fabric::register`] by a send with
    /// invalidate. Where it cannot, it must not be asked to: that would end the connection.
    fn can_be_invalidated(&self, qp: QpKey) -> bool {
        let _ = qp;
        true
    }

    /// Bytes of memory that the fabric keeps registered with devices for its own work requests,
    /// and so pinned.
    fn registered_bytes(&self) -> u64 {
        0
    }

    /// Gives back all registrations of a region that no work request uses, because the pages of it
    /// are about to go: a device would go on with the old ones. False: some are in use, so the pages
    /// have to stay.
    fn forget(&mut self, region: &Arc<Region>) -> bool {
        let _ = region;
        true
    }

    /// Pushes posted work towards the wire. Call it once after a batch of posts.
    fn flush(&mut self, now: Instant, events: &mut Vec<FabricEvent>);

    /// Ends a connection. Posted sends and writes still leave, for at most `linger`; zero drops
    /// them.
    fn disconnect(&mut self, now: Instant, qp: QpKey, linger: Duration);

    /// A registered file descriptor is ready.
    fn handle_ready(&mut self, now: Instant, ready: Ready, events: &mut Vec<FabricEvent>);

    /// Time has passed; see [`Fabric::next_timeout`].
    fn handle_timeout(&mut self, now: Instant, events: &mut Vec<FabricEvent>);

    /// When [`Fabric::handle_timeout`] wants to be called next.
    fn next_timeout(&self) -> Option<Instant>;
}
