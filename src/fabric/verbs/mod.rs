//! RoCE, InfiniBand and hardware iWARP: librdmacm and libibverbs.
//!
//! ```text
//!   VerbsFabric (this file)    the Fabric trait; keys, readiness, time
//!     drive                    what a flush does, and what time does
//!     events                   what rdma_cm tells, and the end of connections
//!     resolve                  how the active side finds device and path
//!     listener                 one identifier for each address of a device
//!     conn                     one connection: its queues, sized by the device, and what waits
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

mod complete;
mod config;
mod conn;
mod drive;
mod events;
mod limits;
mod listener;
mod memory;
mod post;
mod resolve;
#[allow(unsafe_code)]
mod sys;
mod watch;

use std::cell::OnceCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::info;

pub use config::VerbsConfig;

use self::conn::{Conn, Phase, Recv, Work};
use self::listener::Listener;
use self::post::PostTools;
use self::resolve::Attempt;
use self::sys::{CmId, DeviceId, EventChannel};
use self::watch::Watch;
use super::slots::{Slots, Timers};
use super::{
    AcceptOptions, Access, ConnectOptions, EndReason, Fabric, FabricError, FabricEvent,
    ListenOptions, ListenerKey, LocalAddress, QpKey, RemoteKey, SendRequest, WrId,
};
use crate::mem::{MemSlice, Region};
use crate::sys::{Interest, Ready, Registry};

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
    /// Devices in use, each with the key of its entry; none: it cannot be watched.
    watched: HashMap<DeviceId, Option<u64>>,
    /// RLIMIT_MEMLOCK was found to be enough.
    is_limit_checked: bool,
    /// It was told that a device does not moderate events.
    is_moderation_told: bool,
    /// It was told that there are no devices.
    is_missing_told: bool,
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
            watched: HashMap::new(),
            is_limit_checked: false,
            is_moderation_told: false,
            is_missing_told: false,
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

impl Fabric for VerbsFabric {
    fn name(&self) -> &'static str {
        "verbs"
    }

    fn local_address(
        &self,
        listener: Option<ListenerKey>,
        address: IpAddr,
    ) -> Result<LocalAddress, String> {
        match listener.and_then(|key| self.slots.get(key.0)) {
            Some(Entry::Listener(listener)) => listener.local_address(address),
            _ => {
                self.usable_channel()?;
                listener::probe(self.channel()?, address)
            }
        }
    }

    fn listen(
        &mut self,
        address: SocketAddr,
        options: &ListenOptions,
    ) -> Result<(ListenerKey, SocketAddr), FabricError> {
        if address.ip().is_unspecified() && address.port() == 0 {
            return Err(FabricError::Invalid(format!(
                "{address}: a wildcard is many addresses, which would get a port each: name a port"
            )));
        }
        let (kind, backlog) = (options.device, self.config.backlog);
        let new = |key| Entry::Listener(Listener::new(key, address, kind, backlog));
        let key = self.slots.insert(new);
        let key = key.ok_or(FabricError::NoResources("listeners and connections"))?;
        let mut taken = address;
        match self.usable_channel() {
            Ok(()) => {
                let opened = self.check_limit().and_then(|()| {
                    let cm = self.cm.get().ok_or(FabricError::NoSuchKey)?;
                    match self.slots.get_mut(key) {
                        Some(Entry::Listener(listener)) if address.ip().is_unspecified() => {
                            listener.scan(cm);
                            Ok(address)
                        }
                        Some(Entry::Listener(listener)) => listener.open(cm),
                        _ => Err(FabricError::NoSuchKey),
                    }
                });
                match opened {
                    Ok(address) => taken = address,
                    Err(error) => {
                        self.slots.remove(key);
                        return Err(error);
                    }
                }
            }
            // A device may come later; that there is none now is no error of the caller.
            Err(why) => self.tell_missing(&why),
        }
        let rescan = self.now + self.config.rescan;
        self.rescan_at.get_or_insert(rescan);
        self.watch_listeners();
        Ok((ListenerKey(key), taken))
    }

    fn close_listener(&mut self, listener: ListenerKey) {
        if !matches!(self.slots.get(listener.0), Some(Entry::Listener(_))) {
            return;
        }
        self.slots.remove(listener.0);
        // Requests that nobody has accepted end with it.
        let asked: Vec<u64> = self
            .slots
            .iter()
            .filter_map(|(key, entry)| match entry {
                Entry::Conn(conn) if conn.listener == Some(listener) => {
                    (conn.phase == Phase::AwaitAccept).then_some(key)
                }
                _ => None,
            })
            .collect();
        for key in asked {
            self.mark(key, Some(EndReason::Local));
        }
    }

    fn connect(&mut self, now: Instant, options: &ConnectOptions) -> Result<QpKey, FabricError> {
        self.now = now;
        self.usable_channel().map_err(FabricError::Invalid)?;
        self.check_limit()?;
        check_private_data(&options.private_data)?;
        let peer = options.peer;
        let failed = |error| FabricError::Os(format!("connect to {peer}"), error);
        let id = self
            .channel()
            .map_err(FabricError::Invalid)?
            .id(0)
            .map_err(failed)?;
        let attempt = Attempt::first(now);
        id.resolve_address(peer, attempt.timeout(options.timeout))
            .map_err(failed)?;
        let local = match peer {
            SocketAddr::V4(_) => SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), 0),
            SocketAddr::V6(_) => SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), 0),
        };
        let new = |key| {
            id.set_key(key);
            let mut conn = Conn::new(key, id, Phase::ResolvingAddress, local, peer);
            conn.attempt = attempt;
            conn.told = true;
            conn.ird = options.ird;
            conn.ord = options.ord;
            conn.private_data = options.private_data.clone();
            conn.setup_until = Some(now + options.timeout);
            Entry::Conn(Box::new(conn))
        };
        let key = self.slots.insert(new);
        let key = key.ok_or(FabricError::NoResources("listeners and connections"))?;
        self.set_deadline(key, Some(now + options.timeout));
        Ok(QpKey(key))
    }

    fn accept(
        &mut self,
        now: Instant,
        qp: QpKey,
        options: &AcceptOptions,
    ) -> Result<(), FabricError> {
        self.now = now;
        check_private_data(&options.private_data)?;
        let conn = self.conn(qp)?;
        if conn.phase != Phase::AwaitAccept || conn.end.is_some() {
            return Err(FabricError::WrongState("not a connect request (any more)"));
        }
        conn.ird = options.ird;
        conn.ord = options.ord;
        conn.private_data = options.private_data.clone();
        let accepted = self.accept_request(qp.0);
        if let Err(error) = &accepted {
            self.mark(qp.0, Some(EndReason::Transport(error.to_string())));
        }
        accepted
    }

    fn reject(&mut self, qp: QpKey, private_data: &[u8]) {
        let Ok(conn) = self.conn(qp) else {
            return;
        };
        if conn.phase == Phase::AwaitAccept && conn.end.is_none() {
            conn.private_data = private_data.to_vec();
            self.mark(qp.0, Some(EndReason::Local));
        }
    }

    fn expect_receives(&mut self, qp: QpKey, count: u32) {
        if let Ok(conn) = self.conn(qp) {
            conn.expected_recvs = Some(count);
        }
    }

    fn post_recv(&mut self, qp: QpKey, wr_id: WrId, memory: MemSlice) -> Result<(), FabricError> {
        let default_room = self.config.recv_depth;
        let conn = self.posting(qp)?;
        let expected = conn.expected_recvs.unwrap_or(default_room) as usize;
        let room = conn.recv_room().unwrap_or(expected);
        if conn.recvs.len() + conn.recvs_waiting.len() >= room {
            return Err(FabricError::NoResources("receives of one connection"));
        }
        let seq = conn.seq();
        conn.recvs_waiting.push_back(Recv::new(seq, wr_id, memory));
        Ok(())
    }

    fn post_send(&mut self, qp: QpKey, request: SendRequest) -> Result<(), FabricError> {
        if usize::from(request.header_len) > request.header.len() {
            return Err(FabricError::Invalid(format!(
                "header_len is {}; at most 32",
                request.header_len
            )));
        }
        check_len("send", request.payload.as_ref().map_or(0, MemSlice::len))?;
        let wr_id = request.wr_id;
        self.posting(qp)?
            .push_work(Some(wr_id), Work::Send(request));
        Ok(())
    }

    fn post_write(
        &mut self,
        qp: QpKey,
        wr_id: WrId,
        memory: MemSlice,
        token: u32,
        offset: u64,
    ) -> Result<(), FabricError> {
        check_len("write", memory.len())?;
        let work = Work::Write {
            memory,
            token,
            offset,
        };
        self.posting(qp)?.push_work(Some(wr_id), work);
        Ok(())
    }

    fn post_read(
        &mut self,
        qp: QpKey,
        wr_id: WrId,
        memory: MemSlice,
        token: u32,
        offset: u64,
    ) -> Result<(), FabricError> {
        check_len("read", memory.len())?;
        let conn = self.posting(qp)?;
        if conn.phase == Phase::Open && conn.ord == 0 {
            return Err(FabricError::WrongState(
                "the connection was set up without RDMA READs (ORD 0)",
            ));
        }
        let work = Work::Read {
            memory,
            token,
            offset,
        };
        conn.push_work(Some(wr_id), work);
        Ok(())
    }

    fn register(
        &mut self,
        qp: QpKey,
        memory: MemSlice,
        access: Access,
    ) -> Result<RemoteKey, FabricError> {
        let Some(Entry::Conn(conn)) = self.slots.get_mut(qp.0) else {
            return Err(FabricError::NoSuchKey);
        };
        let key = conn.register(self.now, &self.config, &memory, access)?;
        self.mark(qp.0, None);
        Ok(key)
    }

    fn deregister(&mut self, qp: QpKey, token: u32) -> bool {
        self.await_bind(qp.0, token);
        match self.conn(qp) {
            Ok(conn) => conn.registrations.remove(&token).is_some(),
            Err(_) => false,
        }
    }

    /// Memory windows of type 2 can be. Plain memory regions, which is what user space has on other
    /// devices, cannot: InfiniBand refuses, and libsiw does not tell that it was done.
    fn can_be_invalidated(&self, qp: QpKey) -> bool {
        match self.slots.get(qp.0) {
            Some(Entry::Conn(conn)) => {
                let queues = conn.queues.as_ref();
                queues.is_some_and(|queues| queues.device.has_windows)
            }
            _ => false,
        }
    }

    fn registered_bytes(&self) -> u64 {
        let conns = self.slots.iter().filter_map(|(_, entry)| match entry {
            Entry::Conn(conn) => conn.queues.as_ref(),
            _ => None,
        });
        conns.map(|queues| queues.memory.bytes() as u64).sum()
    }

    fn forget(&mut self, region: &Arc<Region>) -> bool {
        let mut is_forgotten = true;
        for (_, entry) in self.slots.iter_mut() {
            if let Entry::Conn(conn) = entry {
                is_forgotten &= conn.forget(region);
            }
        }
        is_forgotten
    }

    fn flush(&mut self, now: Instant, events: &mut Vec<FabricEvent>) {
        self.now = now;
        events.append(&mut self.early);
        self.run_dirty(events);
        self.run_hot(events);
    }

    fn disconnect(&mut self, now: Instant, qp: QpKey, linger: Duration) {
        self.now = now;
        let Ok(conn) = self.conn(qp) else {
            return;
        };
        if conn.end.is_some() || conn.phase == Phase::Draining {
            return;
        }
        if conn.phase == Phase::Open && !linger.is_zero() {
            conn.phase = Phase::Draining;
            self.set_deadline(qp.0, Some(now + linger));
            self.mark(qp.0, None);
        } else {
            self.mark(qp.0, Some(EndReason::Local));
        }
    }

    fn handle_ready(&mut self, now: Instant, ready: Ready, events: &mut Vec<FabricEvent>) {
        self.now = now;
        events.append(&mut self.early);
        if ready.key == CM_KEY {
            return self.take_cm_events(events);
        }
        let conn = match self.slots.get_mut(ready.key) {
            Some(Entry::Conn(conn)) => conn,
            Some(Entry::Watch(_)) => return self.take_async_events(ready.key, events),
            _ => return,
        };
        let Some(queues) = &mut conn.queues else {
            return;
        };
        // One event for each time it was armed, and one look takes it all. If there is another one,
        // the descriptor stays readable.
        if let Err(error) = queues.qp.take_event() {
            let reason = post::transport("completion channel", &error);
            return self.end(ready.key, reason, events);
        }
        if !std::mem::replace(&mut conn.is_hot, true) {
            self.hot.push(ready.key);
        }
    }

    fn handle_timeout(&mut self, now: Instant, events: &mut Vec<FabricEvent>) {
        self.flush(now, events);
        while let Some(key) = self.timers.pop(now) {
            match self.slots.get_mut(key) {
                Some(Entry::Conn(conn)) => {
                    conn.deadline = None;
                    let reason = match conn.phase {
                        Phase::ResolvingAddress | Phase::ResolvingRoute => {
                            match self.attempt_due(key) {
                                Ok(()) => continue,
                                Err(reason) => reason,
                            }
                        }
                        Phase::Open | Phase::Draining => EndReason::Local,
                        Phase::Broken => {
                            EndReason::Transport("the queue pair is in error".to_owned())
                        }
                        phase => EndReason::TimedOut(phase.awaited().into()),
                    };
                    self.end(key, reason, events);
                }
                Some(Entry::Closing { .. }) => {
                    self.slots.remove(key);
                }
                Some(Entry::Listener(_) | Entry::Watch(_)) | None => {}
            }
        }
        if self.rescan_at.is_some_and(|at| at <= now) {
            self.rescan(events);
        }
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.give_back(self.config.keep_idle);
            let has_conns = self
                .slots
                .iter()
                .any(|(_, entry)| matches!(entry, Entry::Conn(conn) if conn.queues.is_some()));
            self.sweep_at = has_conns.then(|| now + self.config.keep_idle);
        }
    }

    fn next_timeout(&self) -> Option<Instant> {
        if !self.dirty.is_empty() || !self.hot.is_empty() || !self.early.is_empty() {
            return Some(self.now);
        }
        let times = [self.timers.next(), self.rescan_at, self.sweep_at];
        times.into_iter().flatten().min()
    }
}

/// A message has at most 2 GiB (InfiniBand) or 4 GiB (iWARP).
fn check_len(what: &str, len: usize) -> Result<(), FabricError> {
    if len <= 1 << 31 {
        return Ok(());
    }
    Err(FabricError::Invalid(format!(
        "{what} of {len} bytes; at most 2 GiB"
    )))
}

fn check_private_data(data: &[u8]) -> Result<(), FabricError> {
    if data.len() <= MAX_PRIVATE_DATA {
        return Ok(());
    }
    Err(FabricError::Invalid(format!(
        "private data of {} bytes; at most {MAX_PRIVATE_DATA}",
        data.len()
    )))
}

/// How long a device may take to bind a memory window.
const BIND_PATIENCE: Duration = Duration::from_millis(500);

/// What every transport carries (InfiniBand in a connect request: 92 less the 36 of rdma_cm).
const MAX_PRIVATE_DATA: usize = 56;
