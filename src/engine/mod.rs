#![forbid(unsafe_code)]
//! The engine: the process that owns every RDMA connection of a server.
//!
//! One thread, one event loop. What it turns over:
//!
//! ```text
//!   control socket ── requests of handles and tools           control.rs
//!   rings of handles ─ sends, RDMA operations, returned slots  submit.rs
//!   fabrics ───────── connections, completions                 connection.rs
//!   new connections ── from the request to the first PDU       arrival.rs
//!   first PDUs ────── which handle gets a connection            routing.rs
//!   tokens ────────── from one handle to another, and the end   handover.rs
//!   users ─────────── who may do what, and how much             rights.rs, shares.rs
//!   host addresses ── where clients find SMB Direct              interfaces.rs
//!   listeners ─────── which fabric, port and device             fabrics.rs
//! ```
//!
//! A turn of the loop takes what is ready, lets each touched connection do what its MS-SMBD machine
//! wants, pushes posted work to the wire once, and publishes completions once per handle. While
//! handles are busy their rings are looked at in each turn and nobody makes a system call to wake
//! the engine; when a turn found nothing, the engine asks to be woken and blocks.
//!
//! Everything that comes from a handle or from the network is hostile until checked. A handle that
//! lies loses itself, a peer that breaks a protocol loses its connection, and nobody else notices.

mod arrival;
mod clients;
mod connection;
mod control;
mod fabrics;
mod handle;
mod handover;
mod interfaces;
mod records;
mod rights;
mod routing;
mod shares;
mod status;
mod stop;
mod submit;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use log::debug;
use slab::Slab;

use self::clients::Clients;
use self::connection::{Conn, Phase};
use self::handle::HandleId;
use self::interfaces::HostAddresses;
use self::shares::{MemoryWatch, Unowned};
use crate::fabric::iwarp::{IwarpConfig, IwarpFabric};
#[cfg(feature = "verbs")]
use crate::fabric::verbs::{VerbsConfig, VerbsFabric};
use crate::fabric::{Fabric, FabricEvent, ListenOptions, ListenerKey, QpKey};
use crate::ipc::{self, EngineCounters};
use crate::proto;
use crate::router;
use crate::sys::{Cleared, Interest, Lookout, Poller, Ready, SeqPacketListener};

/// What an engine is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Path of the control socket.
    pub socket_path: PathBuf,
    /// File mode of the control socket.
    pub socket_mode: u32,
    /// Where to listen from the start, besides what the parent handle asks for.
    pub listen: Vec<Listen>,
    /// Users whose processes may open handles and connect out, besides root, the engine's own user
    /// and those of `allow_parent_uids`. They have no part in what comes in.
    pub allow_uids: Vec<u32>,
    /// Users whose processes may also be the server: open the parent handle, and take what comes in
    /// while one of their processes is the parent.
    pub allow_parent_uids: Vec<u32>,
    /// Connections at the same time.
    pub max_connections: usize,
    /// Connections without an owner at the same time.
    pub max_unowned: usize,
    /// As many of them from one peer: an IPv4 address, or the IPv6 addresses that share 64 bits.
    /// 0: a quarter of `max_unowned`.
    pub max_unowned_per_peer: usize,
    /// Processes on the control socket at the same time.
    pub max_clients: usize,
    /// Bytes of shared memory that all handles together may have committed before further handles
    /// and connections are refused. A user other than root and the engine's own may not open areas
    /// of more than a quarter of it.
    pub max_memory: u64,
    /// How long a connection may take from NEGOTIATE to an owner.
    pub offer_timeout: Duration,
    /// How long a negotiated connection may take to send its first PDU.
    pub first_pdu_timeout: Duration,
    /// How long an exported connection outlives its owner.
    pub export_timeout: Duration,
    /// How long the engine goes on looking at busy rings before it sleeps.
    pub busy_poll: Duration,
    /// The software iWARP fabric.
    pub iwarp: IwarpConfig,
    /// The verbs fabric.
    #[cfg(feature = "verbs")]
    pub verbs: VerbsConfig,
}

/// A place to listen.
#[derive(Debug, Clone)]
pub struct Listen {
    /// The fabric.
    pub fabric: ipc::Fabric,
    /// The address; port 0 takes a free one.
    pub address: SocketAddr,
    /// The port was not chosen: on the verbs fabric it is 445 for InfiniBand and RoCE devices and
    /// 5445 for iWARP devices ([MS-SMBD] 1.9), whatever `address` says.
    pub is_default_port: bool,
    /// Options of the fabric.
    pub options: ListenOptions,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket_path: PathBuf::from(ipc::DEFAULT_SOCKET),
            socket_mode: 0o600,
            listen: Vec::new(),
            allow_uids: Vec::new(),
            allow_parent_uids: Vec::new(),
            max_connections: 8192,
            max_unowned: 256,
            max_unowned_per_peer: 0,
            max_clients: 8192,
            max_memory: crate::sys::physical_memory() / 2,
            offer_timeout: Duration::from_secs(20),
            first_pdu_timeout: Duration::from_secs(30),
            export_timeout: Duration::from_secs(10),
            // One more look and then sleep. On two processors 20 or 100 us of looking took the time
            // from the process that was to answer: the round trip of a small PDU went from 39 to
            // 59 us. Worth trying where processors are plenty.
            busy_poll: Duration::ZERO,
            iwarp: IwarpConfig::default(),
            #[cfg(feature = "verbs")]
            verbs: VerbsConfig::default(),
        }
    }
}

/// Why an engine did not start.
#[derive(Debug)]
#[non_exhaustive]
pub enum EngineError {
    /// The control socket cannot be made.
    Socket(PathBuf, std::io::Error),
    /// An address cannot be listened on.
    Listen(SocketAddr, crate::fabric::FabricError),
    /// The operating system refused something basic.
    Os(&'static str, std::io::Error),
}

impl std::fmt::Display for EngineError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(path, error) => {
                let path = path.display();
                match error.kind() {
                    std::io::ErrorKind::AddrInUse => write!(
                        f,
                        "control socket {path}: another engine answers there: stop it, or give \
                         this one another --socket"
                    ),
                    std::io::ErrorKind::NotFound => write!(
                        f,
                        "control socket {path}: its directory does not exist: create it, or give \
                         another --socket"
                    ),
                    _ => write!(f, "control socket {path}: {error}"),
                }
            }
            Self::Listen(address, error) => write!(f, "listen on {address}: {error}"),
            Self::Os(what, error) => write!(f, "{what}: {error}"),
        }
    }
}

impl std::error::Error for EngineError {}

/// Who registered readiness.
mod tag {
    pub(super) const FABRIC: u8 = 1;
    pub(super) const LISTENER: u8 = 16;
    pub(super) const CONTROL: u8 = 17;
    pub(super) const BELL: u8 = 18;
    pub(super) const PROCESS: u8 = 19;
    pub(super) const STOP: u8 = 20;
}

/// Entries taken from one handle's submission ring in one turn.
const SUBMIT_BATCH: usize = 256;
/// Descriptors beside those of connections and processes: listeners, half-open connections, those
/// of the fabrics.
const FEW_DESCRIPTORS: usize = 256;

/// Where the engine listens.
struct Listener {
    fabric: usize,
    key: ListenerKey,
    address: SocketAddr,
    crc: bool,
    /// Connections taken.
    accepted: u64,
    /// The handle that asked for it; none: the command line.
    owner: Option<HandleId>,
}

/// What the parent has set.
struct ServerParams {
    smbd: proto::Params,
    answer: Option<router::ServerConfig>,
    /// As it came, for `smbd_get_params`.
    wire: ipc::Params,
}

/// An engine, ready to run.
pub struct Engine {
    config: Config,
    started: Instant,
    poller: Poller,
    listener: SeqPacketListener,
    uid: u32,
    /// In the order of [`fabrics::INDEX`].
    fabrics: Vec<Box<dyn Fabric>>,
    events: Vec<FabricEvent>,
    listeners: Vec<Listener>,
    params: Option<ServerParams>,
    clients: Clients,
    conns: Slab<Conn>,
    by_qp: HashMap<(usize, QpKey), usize>,
    /// Registrations. Each user has a name space of his own.
    by_guid: HashMap<(u32, [u8; 16]), HandleId>,
    by_session: HashMap<(u32, u64), HandleId>,
    by_token: HashMap<[u8; 16], usize>,
    /// Connections to pump in this turn.
    touched: Vec<usize>,
    /// Clients whose handle is looked at in each turn.
    active: Vec<usize>,
    timers: BTreeSet<(Instant, usize)>,
    /// Processes are not accepted until then: the system had no descriptor for one.
    accept_rests: Option<Instant>,
    /// The engine has been told to stop, and goes by then.
    stopping: Option<Instant>,
    unowned: Unowned,
    memory: MemoryWatch,
    next_serial: u64,
    counters: EngineCounters,
    /// Connections refused or ended without an owner, by reason.
    rejected: BTreeMap<String, u64>,
    control_buffer: Vec<u8>,
    host_addresses: HostAddresses,
    /// While set, an empty turn does not sleep yet.
    busy_until: Option<Instant>,
}

impl Engine {
    /// Makes the control socket and starts to listen.
    pub fn new(config: Config) -> Result<Self, EngineError> {
        let os = |what| move |error| EngineError::Os(what, error);
        let poller = Poller::new().map_err(os("epoll"))?;
        let listener = SeqPacketListener::bind(&config.socket_path, config.socket_mode)
            .map_err(|error| EngineError::Socket(config.socket_path.clone(), error))?;
        poller
            .registry(tag::LISTENER)
            .add(&listener, 0, Interest::READ)
            .map_err(os("epoll"))?;
        let iwarp = IwarpFabric::new(poller.registry(tag::FABRIC), config.iwarp.clone())
            .map_err(os("software iWARP"))?;
        let fabrics: Vec<Box<dyn Fabric>> = vec![
            Box::new(iwarp),
            #[cfg(feature = "verbs")]
            Box::new(
                VerbsFabric::new(poller.registry(tag::FABRIC + 1), config.verbs.clone())
                    .map_err(os("verbs"))?,
            ),
        ];
        let mut engine = Self {
            started: Instant::now(),
            poller,
            listener,
            uid: rustix::process::geteuid().as_raw(),
            fabrics,
            events: Vec::new(),
            listeners: Vec::new(),
            params: None,
            clients: Clients::default(),
            conns: Slab::new(),
            by_qp: HashMap::new(),
            by_guid: HashMap::new(),
            by_session: HashMap::new(),
            by_token: HashMap::new(),
            touched: Vec::new(),
            active: Vec::new(),
            timers: BTreeSet::new(),
            accept_rests: None,
            stopping: None,
            unowned: Unowned::default(),
            memory: MemoryWatch::default(),
            next_serial: 1,
            counters: EngineCounters::default(),
            rejected: BTreeMap::new(),
            control_buffer: vec![0; ipc::MAX_MESSAGE],
            host_addresses: HostAddresses::default(),
            busy_until: None,
            config,
        };
        for listen in engine.config.listen.clone() {
            engine
                .listen_from_start(&listen)
                .map_err(|error| EngineError::Listen(listen.address, error))?;
        }
        Ok(engine)
    }

    /// The addresses listened on, with the ports that were taken.
    pub fn addresses(&self) -> impl Iterator<Item = (ipc::Fabric, SocketAddr)> + '_ {
        let of = |listener: &Listener| (fabrics::kind(listener.fabric), listener.address);
        self.listeners.iter().map(of)
    }

    /// Runs until `stop` becomes readable (or its other end is closed), or until a basic call of
    /// the operating system fails. Then all connections end; in the first case the engine takes up
    /// to three seconds until peers have come to rest.
    pub fn run(mut self, stop: Option<OwnedFd>) -> Result<(), EngineError> {
        if let Some(stop) = &stop {
            self.poller
                .registry(tag::STOP)
                .add(stop.as_fd(), 0, Interest::READ)
                .map_err(|error| EngineError::Os("epoll", error))?;
        }
        let mut ready = Vec::new();
        let mut now = Instant::now();
        let mut lookout = Lookout::new(now);
        loop {
            let timeout = self.sleep_time(now);
            ready.clear();
            let told = self
                .poller
                .wait(timeout, &mut ready)
                .map_err(|error| EngineError::Os("epoll_wait", error))?;
            let descriptors = self.conns.len() + 4 * self.clients.len() + FEW_DESCRIPTORS;
            let seen = lookout.after(told, now, descriptors);
            now = Instant::now();
            for &one in &ready {
                let (tag, key) = Poller::split(one.key);
                match &stop {
                    Some(stop) if tag == tag::STOP => self.begin_stop(now, stop),
                    _ => self.dispatch(now, tag, Ready { key, ..one }),
                }
            }
            self.turn(now, seen, !ready.is_empty());
            if self.is_stopped(now) {
                self.stop(now);
                return Ok(());
            }
        }
    }

    /// How long the next wait may take; arms the rings if it blocks.
    fn sleep_time(&mut self, now: Instant) -> Option<Duration> {
        if self.busy_until.is_some() {
            return Some(Duration::ZERO);
        }
        self.counters.waits += 1;
        let timers = self.timers.first().map(|&(at, _)| at);
        let fabrics = self.fabrics.iter();
        let fabrics = fabrics.filter_map(|fabric| fabric.next_timeout());
        let next = fabrics.chain(timers).chain(self.accept_rests);
        let next = next.chain(self.stopping).min();
        next.map(|at| at.saturating_duration_since(now))
    }

    fn dispatch(&mut self, now: Instant, tag: u8, ready: Ready) {
        match tag {
            tag::LISTENER => self.accept_clients(now),
            tag::CONTROL | tag::BELL | tag::PROCESS => {
                if let Some(key) = self.clients.index_of(ready.key) {
                    match tag {
                        tag::CONTROL => self.control_ready(now, key),
                        tag::BELL => self.bell_rung(now, key),
                        _ => self.remove_client(now, key, "its process ended"),
                    }
                }
            }
            fabric => {
                let index = usize::from(fabric - tag::FABRIC);
                if let Some(fabric) = self.fabrics.get_mut(index) {
                    fabric.handle_ready(now, ready, &mut self.events);
                    self.take_events(now, index);
                }
            }
        }
    }

    /// A handle has submitted something, or is gone.
    fn bell_rung(&mut self, now: Instant, key: usize) {
        let Some(handle) = self.clients.handle_at(key) else {
            return;
        };
        self.counters.bells_heard += 1;
        if handle.side.clear_bell() == Cleared::Closed {
            return self.remove_client(now, key, "closed its bell");
        }
        if !std::mem::replace(&mut handle.active, true) {
            handle.disarm();
            self.active.push(key);
        }
    }

    /// One turn after the readiness was dispatched; `seen` is what [`Lookout::after`] returned.
    fn turn(&mut self, now: Instant, seen: Instant, was_ready: bool) {
        self.counters.loops += 1;
        self.run_timers(now, seen);
        let submitted = self.take_submissions(now);
        let mut events = 0;
        loop {
            self.pump_touched(now);
            events += self.flush_fabrics(now);
            if self.touched.is_empty() {
                break;
            }
        }
        self.publish(now);
        self.plan_sleep(now, was_ready || submitted > 0 || events > 0);
    }

    /// Pushes posted work to the wire, and takes what the fabrics have to tell: so many events.
    fn flush_fabrics(&mut self, now: Instant) -> usize {
        let mut events = 0;
        for index in 0..self.fabrics.len() {
            self.fabrics[index].flush(now, &mut self.events);
            events += self.events.len();
            self.take_events(now, index);
        }
        events
    }

    /// Decides whether the next wait may block.
    fn plan_sleep(&mut self, now: Instant, progress: bool) {
        if self.active.is_empty() {
            self.busy_until = None;
            return;
        }
        if progress {
            self.busy_until = Some(now + self.config.busy_poll);
            return;
        }
        if self.busy_until.is_some_and(|until| now < until) {
            return;
        }
        // Nothing came for a while: ask all active handles to ring, and look once more.
        self.busy_until = None;
        let mut index = 0;
        while index < self.active.len() {
            let key = self.active[index];
            let Some(handle) = self.clients.handle_at(key) else {
                self.active.swap_remove(index);
                continue;
            };
            if handle.arm() {
                handle.active = false;
                self.active.swap_remove(index);
            } else {
                self.busy_until = Some(now);
                index += 1;
            }
        }
    }

    /// Runs what is due by `seen`, see [`Lookout::after`].
    fn run_timers(&mut self, now: Instant, seen: Instant) {
        if self.accept_rests.is_some_and(|until| until <= seen) {
            self.resume_accepting();
        }
        if self.timers.first().is_some_and(|&(at, _)| at <= seen) {
            // Readiness may only tell that there is something; a flush takes it.
            self.flush_fabrics(now);
        }
        for index in 0..self.fabrics.len() {
            if self.fabrics[index]
                .next_timeout()
                .is_some_and(|at| at <= seen)
            {
                self.fabrics[index].handle_timeout(seen, &mut self.events);
                self.take_events(now, index);
            }
        }
        while let Some(&(at, key)) = self.timers.first() {
            if at > seen {
                return;
            }
            self.timers.pop_first();
            let Some(conn) = self.conns.get_mut(key) else {
                continue;
            };
            conn.timer = None;
            if conn.machine.next_timeout().is_some_and(|at| at <= seen) {
                conn.machine.handle_timeout(seen);
            }
            if conn.deadline.is_some_and(|at| at <= seen) {
                conn.deadline = None;
                self.deadline_passed(seen, key);
            }
            self.touch(key);
        }
    }

    /// Makes sure that the connection's timers are looked at in time. A later time than the one
    /// already queued needs nothing: the queue is corrected when that one comes.
    fn schedule(&mut self, key: usize) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let next = match (conn.machine.next_timeout(), conn.deadline) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let Some(next) = next else {
            return;
        };
        match conn.timer {
            Some(at) if at <= next => {}
            old => {
                if let Some(old) = old {
                    self.timers.remove(&(old, key));
                }
                conn.timer = Some(next);
                self.timers.insert((next, key));
            }
        }
    }

    /// The connection has to be pumped in this turn.
    fn touch(&mut self, key: usize) {
        if let Some(conn) = self.conns.get_mut(key) {
            if !std::mem::replace(&mut conn.touched, true) {
                self.touched.push(key);
            }
        }
    }

    fn pump_touched(&mut self, now: Instant) {
        let mut touched = std::mem::take(&mut self.touched);
        for &key in &touched {
            self.pump(now, key);
        }
        touched.clear();
        // Pumping may have touched others; keep the larger storage.
        std::mem::swap(&mut touched, &mut self.touched);
        self.touched.extend(touched);
    }

    fn pump(&mut self, now: Instant, key: usize) {
        loop {
            let Some(conn) = self.conns.get_mut(key) else {
                return;
            };
            let fabric = &mut *self.fabrics[conn.fabric];
            let before = conn.phase;
            let route = conn.pump(key, fabric, &mut self.clients, now);
            if before == Phase::Negotiating && conn.phase == Phase::Routing {
                self.negotiated(now, key);
            }
            if !route || !self.route(now, key) {
                break;
            }
        }
        self.schedule(key);
        self.write_counters(key);
    }

    fn take_events(&mut self, now: Instant, fabric: usize) {
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            self.fabric_event(now, fabric, event);
        }
        // Handling events posts nothing that makes further events before the next flush.
        std::mem::swap(&mut events, &mut self.events);
        debug_assert!(events.is_empty());
    }

    fn fabric_event(&mut self, now: Instant, fabric: usize, event: FabricEvent) {
        self.counters.fabric_events += 1;
        match event {
            FabricEvent::Recv {
                qp,
                wr_id,
                len,
                invalidated,
                status,
            } => {
                if let Some(key) = self.conn_of(fabric, qp) {
                    self.conns[key].on_recv(
                        &mut self.clients,
                        now,
                        wr_id,
                        len,
                        invalidated,
                        status,
                    );
                    self.touch(key);
                }
            }
            FabricEvent::Done { qp, wr_id, status } => {
                if let Some(key) = self.conn_of(fabric, qp) {
                    self.conns[key].on_done(&mut self.clients, now, wr_id, status);
                    self.touch(key);
                }
            }
            FabricEvent::ConnectRequest {
                qp,
                listener,
                local,
                peer,
                private_data,
                ..
            } => {
                let mut listeners = self.listeners.iter_mut();
                if let Some(at) = listeners.find(|l| l.fabric == fabric && l.key == listener) {
                    at.accepted += 1;
                }
                self.connect_request(now, fabric, qp, local, peer, &private_data);
            }
            FabricEvent::Established {
                qp,
                local,
                peer,
                ord,
                private_data,
            } => {
                if let Some(key) = self.conn_of(fabric, qp) {
                    self.established(now, key, local, peer, ord, &private_data);
                }
            }
            FabricEvent::Disconnected { qp, reason } => {
                if let Some(key) = self.by_qp.remove(&(fabric, qp)) {
                    self.finish(now, key, &reason);
                } else {
                    debug!("{}: set-up ended: {reason:?}", self.fabrics[fabric].name());
                }
            }
        }
    }

    fn conn_of(&self, fabric: usize, qp: QpKey) -> Option<usize> {
        self.by_qp.get(&(fabric, qp)).copied()
    }

    /// Shows handles what was pushed; drops those that broke a rule.
    fn publish(&mut self, now: Instant) {
        while let Some(key) = self.clients.next_used() {
            // Not by `handle_at`: that would count as another use.
            let Some(handle) = self.clients.get_mut(key).and_then(|c| c.handle.as_mut()) else {
                continue;
            };
            if handle.has_idle_pages() {
                let region = handle.side.region().clone();
                let mut fabrics = self.fabrics.iter_mut();
                if fabrics.all(|fabric| fabric.forget(&region)) {
                    handle.give_pages_back();
                }
            }
            self.counters.completions += std::mem::take(&mut handle.pushed);
            self.counters.bells_rung += u64::from(handle.publish());
            if std::mem::take(&mut handle.returns_wait) && !handle.active {
                handle.active = true;
                handle.disarm();
                self.active.push(key);
            }
            if let Some(error) = &handle.broken {
                let error = error.to_string();
                self.counters.handles_dropped += 1;
                self.remove_client(now, key, &error);
            }
        }
    }
}
