#![forbid(unsafe_code)]
//! What an engine tells of itself: the records behind `smbdirect status`, in its tables and in JSON.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::messages::{Fabric, Reply, Request};
use super::{CallError, Caller, PAGE_BYTES};

/// One answer: the engine's own record, and as many items as fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusPage {
    /// The engine.
    pub engine: EngineStatus,
    /// Items after those that were to be skipped.
    pub items: Vec<StatusItem>,
    /// What to skip for the next page; `None`: this was the last.
    pub next: Option<u32>,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum StatusItem {
    /// A listener.
    Listener(ListenerStatus),
    /// A handle.
    Handle(HandleStatus),
    /// A connection.
    Connection(Box<ConnectionStatus>),
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The engine.
    pub engine: EngineStatus,
    /// Its listeners.
    pub listeners: Vec<ListenerStatus>,
    /// Its handles.
    pub handles: Vec<HandleStatus>,
    /// Its connections.
    pub connections: Vec<ConnectionStatus>,
}

/// The engine.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct EngineStatus {
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Whether a parent handle has set the parameters.
    pub has_params: bool,
    /// Its counters.
    pub counters: EngineCounters,
    /// Connections that were refused or ended before they had an owner, by reason.
    pub rejected: BTreeMap<String, u64>,
    /// Memory that RDMA devices have.
    pub memory: MemoryStatus,
}

/// Memory that RDMA devices have.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// Bytes that each fabric keeps registered for sends, receives and RDMA operations.
    pub registered_bytes: BTreeMap<Fabric, u64>,
    /// Bytes that are pinned (VmPin of /proc/PID/status), each as often as it was registered.
    pub pinned_bytes: u64,
    /// How many may be (RLIMIT_MEMLOCK); none: without limit.
    pub pin_limit_bytes: Option<u64>,
}

/// Counters since the engine started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EngineCounters {
    /// Turns of the event loop.
    pub loops: u64,
    /// Turns that began with waiting.
    pub waits: u64,
    /// Fabric events handled.
    pub fabric_events: u64,
    /// Completions pushed to handles.
    pub completions: u64,
    /// Submissions taken from handles.
    pub submissions: u64,
    /// Bells rung at handles.
    pub bells_rung: u64,
    /// Bells heard from handles.
    pub bells_heard: u64,
    /// Control requests answered.
    pub requests: u64,
    /// Connections that reached an owner.
    pub connections_attached: u64,
    /// Connections handed from one handle to another.
    pub connections_moved: u64,
    /// Connections that have ended.
    pub connections_ended: u64,
    /// Handles dropped because they broke the rules of the shared area.
    pub handles_dropped: u64,
}

/// A listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// The fabric.
    pub fabric: Fabric,
    /// Where it listens.
    pub address: SocketAddr,
    /// Whether it asks for CRCs.
    pub crc: bool,
    /// The process whose handle asked for it; 0: the engine's command line.
    pub owner_pid: u32,
    /// Connections it has taken.
    pub accepted: u64,
}

/// A handle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandleStatus {
    /// The engine's number for it.
    pub id: u64,
    /// Its process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Whether it is the parent.
    pub parent: bool,
    /// Connections it owns.
    pub connections: u32,
    /// Registered session ids and ClientGuids.
    pub sessions: u32,
    /// Bytes of its area.
    pub area_bytes: u64,
    /// Bytes of it that are committed.
    pub committed_bytes: u64,
    /// Seconds since it was opened.
    pub age_seconds: u64,
}

/// A connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionStatus {
    /// Its id.
    pub id: u64,
    /// The fabric.
    pub fabric: Fabric,
    /// Our address.
    pub local: SocketAddr,
    /// The peer's address.
    pub peer: SocketAddr,
    /// What it is doing, in a word.
    pub state: String,
    /// Whether we connected.
    pub active: bool,
    /// The owner's process; `None`: it has no owner yet.
    pub owner_pid: Option<u32>,
    /// Seconds since it began.
    pub age_seconds: u64,
    /// Largest message we send.
    pub max_send_size: u32,
    /// Largest message the peer may send.
    pub max_receive_size: u32,
    /// Largest PDU the peer takes.
    pub max_fragmented_send_size: u32,
    /// Largest PDU we take.
    pub max_fragmented_receive_size: u32,
    /// Largest RDMA transfer.
    pub max_read_write_size: u32,
    /// Credits we hold.
    pub send_credits: u64,
    /// Credits the peer holds.
    pub receive_credits: u64,
    /// PDUs received.
    pub pdus_received: u64,
    /// PDUs sent.
    pub pdus_sent: u64,
    /// Messages received.
    pub messages_received: u64,
    /// Messages sent.
    pub messages_sent: u64,
    /// Bytes of PDUs received.
    pub bytes_received: u64,
    /// Bytes of PDUs sent.
    pub bytes_sent: u64,
    /// RDMA READs completed.
    pub rdma_reads: u64,
    /// RDMA WRITEs completed.
    pub rdma_writes: u64,
    /// Bytes moved by RDMA READs.
    pub rdma_read_bytes: u64,
    /// Bytes moved by RDMA WRITEs.
    pub rdma_write_bytes: u64,
    /// Keepalive probes sent.
    pub keepalives_sent: u64,
    /// Keepalive probes received.
    pub keepalives_received: u64,
}

impl StatusPage {
    /// Takes as many items as fit a message, from item `from` on.
    pub fn cut(
        engine: EngineStatus,
        items: impl IntoIterator<Item = StatusItem>,
        from: u32,
    ) -> Self {
        let mut page = Self {
            engine,
            items: Vec::new(),
            next: None,
        };
        let mut bytes = 0;
        // Any process may ask for any `from`: numbers are taken from the items that there are.
        for (next, item) in items.into_iter().enumerate().skip(from as usize) {
            // An item is a few hundred bytes, apart from its state text.
            bytes += postcard::experimental::serialized_size(&item).unwrap_or(PAGE_BYTES);
            if bytes > PAGE_BYTES && !page.items.is_empty() {
                page.next = u32::try_from(next).ok();
                break;
            }
            page.items.push(item);
        }
        page
    }
}

/// Asks an engine for everything, page by page. Items that come and go meanwhile may be missed or
/// be seen twice.
pub fn fetch_status(caller: &mut Caller, timeout: Duration) -> Result<Status, CallError> {
    let mut status = Status {
        engine: EngineStatus::default(),
        listeners: Vec::new(),
        handles: Vec::new(),
        connections: Vec::new(),
    };
    let mut from = 0;
    loop {
        let (Reply::Status(page), _) = caller.call(&Request::Status { from }, timeout)? else {
            return Err(CallError::Unexpected("something else than its status"));
        };
        status.engine = page.engine;
        for item in page.items {
            match item {
                StatusItem::Listener(listener) => status.listeners.push(listener),
                StatusItem::Handle(handle) => status.handles.push(handle),
                StatusItem::Connection(connection) => status.connections.push(*connection),
            }
        }
        match page.next {
            Some(next) if next > from => from = next,
            _ => return Ok(status),
        }
    }
}
