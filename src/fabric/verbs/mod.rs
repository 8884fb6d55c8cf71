//! RoCE, InfiniBand and hardware iWARP: librdmacm and libibverbs.
//!
//! ```text
//!   VerbsFabric (this file)    what it has, keys
//!     calls                    the Fabric trait: calls, readiness, time
//!     drive                    what a flush does, and what time does
//!     events                   what rdma_cm tells, and the end of connections
//!     resolve                  how the active side finds device and path
//!     listener                 one identifier for each address of a device
//!     conn                     one connection: its queues, sized by the device, and what waits
//!       queues                 what it has of a device
//!       post                   work requests in chains, one doorbell for each flush
//!       complete               the completion queue, a batch at a time
//!       memory                 chunks of memory, registered as they come into use
//!     watch                    devices: what they tell by themselves, and their removal
//!     limits                   RLIMIT_MEMLOCK
//!     sys                      the libraries behind safe types; the only unsafe code
//! ```
//!
//! Each connection has a protection domain, a completion queue and a completion channel of its own:
//! no peer reaches memory of another connection, a device that goes takes nothing along but its
//! connections, and one epoll set tells which of them has something. A completion queue is looked
//! at as long as a look finds something; only then it is armed. One look takes one batch, so that a
//! busy connection leaves time for others.
//!
//! The libraries are loaded when the first listener, connect or query of an address wants them.
//! This process must not fork after that and use memory or connections in the child; the engine
//! forks nothing, and smbd, which does, never loads them. So `ibv_fork_init` is not called.

mod calls;
mod complete;
mod config;
mod conn;
mod drive;
mod events;
mod limits;
mod listener;
mod memory;
mod post;
mod queues;
mod resolve;
#[allow(unsafe_code)]
mod sys;
mod watch;

use std::cell::OnceCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::time::Instant;

use log::info;

pub use config::VerbsConfig;

use self::conn::Conn;
use self::limits::Patience;
use self::listener::Listener;
use self::post::PostTools;
use self::sys::{CmId, DeviceId, EventChannel};
use self::watch::Watch;
use super::slots::{Slots, Timers};
use super::{EndReason, FabricError, FabricEvent, QpKey};
use crate::sys::{Interest, Registry};

/// The event channel's readiness; no entry has this key.
const CM_KEY: u64 = 0;

/// What a key names.
enum Entry {
    Listener(Listener),
    Conn(Box<Conn>),
    /// Over for the caller; the peer is still told.
    Closing {
        id: CmId,
        deadline: Option<Instant>,
    },
    /// A device.
    Watch(Watch),
}

/// The verbs fabric. Belongs to one thread.
pub struct VerbsFabric {
    // Declared before the channel: identifiers go first.
    slots: Slots<Entry>,
    cm: OnceCell<EventChannel>,
    registry: Registry,
    config: VerbsConfig,
    timers: Timers,
    tools: PostTools,
    /// Connections with something to do at the next flush.
    dirty: Vec<u64>,
    /// Connections whose completion queue is looked at in each flush.
    hot: Vec<u64>,
    /// What happened while a bind was waited for.
    early: Vec<FabricEvent>,
    half_open: usize,
    /// Peers that are told of the end, the first ones first; some may be through with it.
    goodbyes: VecDeque<u64>,
    /// Devices in use, each with the key of its entry; none: it cannot be watched.
    watched: HashMap<DeviceId, Option<u64>>,
    /// RLIMIT_MEMLOCK was found to be enough.
    is_limit_checked: bool,
    /// How long may be waited for windows to be bound.
    bind_patience: Patience,
    /// It was told that a device does not moderate events.
    is_moderation_told: bool,
    /// What was told last of why listeners have no device.
    told_missing: String,
    /// Listeners look for devices and addresses then.
    rescan_at: Option<Instant>,
    /// Unused registrations are given back then.
    sweep_at: Option<Instant>,
    /// The last time we were told.
    now: Instant,
}

impl VerbsFabric {
    /// A fabric whose descriptors are registered with `registry`. The owner of the poller hands
    /// readiness under that registry's tag to [`Fabric::handle_ready`], the tag taken off the key.
    /// Nothing is loaded or opened before it is used.
    pub fn new(registry: Registry, config: VerbsConfig) -> io::Result<Self> {
        config
            .check()
            .map_err(|text| io::Error::new(io::ErrorKind::InvalidInput, text))?;
        Ok(Self {
            slots: Slots::new(),
            cm: OnceCell::new(),
            registry,
            config,
            timers: Timers::default(),
            tools: PostTools::default(),
            dirty: Vec::new(),
            hot: Vec::new(),
            early: Vec::new(),
            half_open: 0,
            goodbyes: VecDeque::new(),
            watched: HashMap::new(),
            is_limit_checked: false,
            bind_patience: Patience::new(Instant::now()),
            is_moderation_told: false,
            told_missing: String::new(),
            rescan_at: None,
            sweep_at: None,
            now: Instant::now(),
        })
    }

    /// rdma_cm, opened at its first use; or why there is none.
    fn channel(&self) -> Result<&EventChannel, String> {
        if let Some(channel) = self.cm.get() {
            return Ok(channel);
        }
        let channel = EventChannel::open()?;
        self.registry
            .add(&channel, CM_KEY, Interest::READ)
            .map_err(|error| format!("epoll: {error}"))?;
        Ok(self.cm.get_or_init(|| channel))
    }

    /// Checks once whether enough memory may be pinned.
    fn check_limit(&mut self) -> Result<(), FabricError> {
        if !self.is_limit_checked {
            limits::check_locked_memory().map_err(FabricError::Invalid)?;
            self.is_limit_checked = true;
        }
        Ok(())
    }

    fn conn(&mut self, qp: QpKey) -> Result<&mut Conn, FabricError> {
        match self.slots.get_mut(qp.0) {
            Some(Entry::Conn(conn)) => Ok(conn),
            _ => Err(FabricError::NoSuchKey),
        }
    }

    /// A connection that may post, marked for the next flush.
    fn posting(&mut self, qp: QpKey) -> Result<&mut Conn, FabricError> {
        let Some(Entry::Conn(conn)) = self.slots.get_mut(qp.0) else {
            return Err(FabricError::NoSuchKey);
        };
        conn.check_posting()?;
        if !std::mem::replace(&mut conn.is_dirty, true) {
            self.dirty.push(qp.0);
        }
        Ok(conn)
    }

    /// A connection is up: its set-up has no deadline and no place any more.
    fn is_set_up(&mut self, key: u64) {
        self.set_deadline(key, None);
        if let Some(Entry::Conn(conn)) = self.slots.get_mut(key) {
            if std::mem::take(&mut conn.is_half_open) {
                self.half_open -= 1;
            }
        }
    }

    /// Has something done at the next flush: the end, if a reason is given.
    fn mark(&mut self, key: u64, end: Option<EndReason>) {
        let Some(Entry::Conn(conn)) = self.slots.get_mut(key) else {
            return;
        };
        if let Some(end) = end {
            conn.end.get_or_insert(end);
        }
        if !std::mem::replace(&mut conn.is_dirty, true) {
            self.dirty.push(key);
        }
    }

    fn set_deadline(&mut self, key: u64, at: Option<Instant>) {
        if let Some(Entry::Conn(conn)) = self.slots.get_mut(key) {
            self.timers.set(key, &mut conn.deadline, at);
        }
    }

    /// Makes the queues of a connection, if it has none, and waits for its completions.
    fn make_queues(&mut self, key: u64) -> Result<(), FabricError> {
        let Some(Entry::Conn(conn)) = self.slots.get_mut(key) else {
            return Err(FabricError::NoSuchKey);
        };
        if conn.queues.is_some() {
            return Ok(());
        }
        conn.make_queues(&self.config)?;
        if let Some(queues) = &conn.queues {
            let moderated = match self.config.moderation {
                Some((count, time)) => queues.qp.moderate(count, time),
                None => Ok(()),
            };
            if let Err(error) = moderated {
                if !std::mem::replace(&mut self.is_moderation_told, true) {
                    let name = &queues.device.name;
                    info!("verbs: {name} does not moderate events: {error}");
                }
            }
            self.registry
                .add(&queues.qp, key, Interest::READ)
                .map_err(|error| FabricError::Os("epoll".into(), error))?;
        }
        let id = conn.id.clone();
        self.watch(&id);
        let Some(Entry::Conn(conn)) = self.slots.get_mut(key) else {
            return Err(FabricError::NoSuchKey);
        };
        // The first look arms it.
        if !std::mem::replace(&mut conn.is_hot, true) {
            self.hot.push(key);
        }
        let sweep = self.now + self.config.keep_idle;
        self.sweep_at.get_or_insert(sweep);
        Ok(())
    }
}

/// Whether the kernel knows an RDMA device.
fn has_devices() -> bool {
    std::fs::read_dir("/sys/class/infiniband").is_ok_and(|mut it| it.next().is_some())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::fabric::Fabric;
    use crate::sys::Poller;

    #[test]
    fn what_is_overdue_is_not_hidden_by_work() {
        let poller = Poller::new().unwrap();
        let mut fabric = VerbsFabric::new(poller.registry(1), VerbsConfig::default()).unwrap();
        assert_eq!(fabric.next_timeout(), None);
        let due = fabric.now;
        let later = due + Duration::from_secs(1);
        fabric.now = later;
        fabric.dirty.push(0);
        assert_eq!(fabric.next_timeout(), Some(later));
        for at in [due, later + Duration::from_secs(1)] {
            fabric.rescan_at = Some(at);
            assert_eq!(fabric.next_timeout(), Some(at.min(later)));
        }
    }
}
