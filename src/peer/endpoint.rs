//! The endpoint: one fabric, one epoll set, all connections.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::fabric::iwarp::IwarpFabric;
use crate::fabric::{
    Access, ConnectOptions, Fabric, FabricEvent, FabricKind, ListenOptions, ListenerKey,
    LocalAddress, QpKey,
};
use crate::mem::MemSlice;
use crate::proto::{Negotiated, Params, Role};
use crate::sys::{Lookout, Poller, Ready, Registry};
use crate::wire::BufferDescriptor;

use super::buffers::{Pdu, PduPool, SendBuffer, SendPool};
use super::connection::{Connection, Context, Direction, Message};
use super::event::{Config, ConnectionStats, PeerError, PeerEvent};

/// The parts of an endpoint that its connections use, borrowed beside the connection itself.
macro_rules! context {
    ($endpoint:ident) => {
        Context {
            fabric: &mut *$endpoint.fabric,
            events: &mut $endpoint.events,
            pdus: &mut $endpoint.pdus,
            sends: &mut $endpoint.sends,
        }
    };
}

/// SMB Direct connections of one thread. See the [module](super).
pub struct Endpoint {
    config: Config,
    poller: Poller,
    lookout: Lookout,
    ready: Vec<Ready>,
    fabric: Box<dyn Fabric>,
    fabric_events: Vec<FabricEvent>,
    connections: HashMap<QpKey, Connection>,
    /// Connections whose state machine may want something.
    dirty: Vec<QpKey>,
    /// When state machines want to be woken; an entry may be out of date.
    timers: BinaryHeap<Reverse<(Instant, QpKey)>>,
    /// Told at the next poll.
    events: VecDeque<PeerEvent>,
    pdus: PduPool,
    sends: SendPool,
}

impl Endpoint {
    /// An endpoint without connections.
    ///
    /// # Errors
    /// A parameter out of range, by name; or what the operating system says.
    pub fn new(config: Config) -> Result<Self, PeerError> {
        for params in [&config.active, &config.passive] {
            params
                .validate()
                .map_err(|error| PeerError::Range(error.to_string()))?;
        }
        let poller = Poller::new()?;
        let fabric = make_fabric(poller.registry(FABRIC_TAG), &config)?;
        Ok(Self {
            config,
            poller,
            lookout: Lookout::new(Instant::now()),
            ready: Vec::new(),
            fabric,
            fabric_events: Vec::new(),
            connections: HashMap::new(),
            dirty: Vec::new(),
            timers: BinaryHeap::new(),
            events: VecDeque::new(),
            pdus: PduPool::default(),
            sends: SendPool::default(),
        })
    }

    /// Where the caller may register descriptors of its own; they come as [`PeerEvent::Ready`].
    pub fn registry(&self) -> Registry {
        self.poller.registry(CALLER_TAG)
    }

    /// Listens on an address (port 0: any free one). Returns the address taken.
    pub fn listen(
        &mut self,
        address: SocketAddr,
        options: &ListenOptions,
    ) -> Result<(ListenerKey, SocketAddr), PeerError> {
        Ok(self.fabric.listen(address, options)?)
    }

    /// What the fabric knows of an address of this host; an error says why connections cannot come to
    /// it. See [`Fabric::local_address`].
    pub fn local_address(&self, address: IpAddr) -> Result<LocalAddress, String> {
        self.fabric.local_address(None, address)
    }

    /// Stops listening. Established connections stay.
    pub fn close_listener(&mut self, listener: ListenerKey) {
        self.fabric.close_listener(listener);
    }

    /// Starts to connect; ends in [`PeerEvent::Connected`] or [`PeerEvent::Disconnected`].
    pub fn connect(&mut self, options: &ConnectOptions) -> Result<QpKey, PeerError> {
        let now = Instant::now();
        let qp = self.fabric.connect(now, options)?;
        let params = &self.config.active;
        self.fabric.expect_receives(qp, receives_of(params));
        let connection = if self.config.raw {
            Connection::raw(qp, params)
        } else {
            Connection::new(qp, params, Role::Active, now)
        };
        match connection {
            Ok(connection) => {
                self.connections.insert(qp, connection);
                self.drive(now, qp);
                Ok(qp)
            }
            Err(error) => {
                self.fabric.disconnect(now, qp, Duration::ZERO);
                Err(error)
            }
        }
    }

    /// Queues an upper-layer message made of `pieces`, which are copied.
    /// [`PeerEvent::Sent`] with `cookie` follows. `invalidate` is a token of the peer's that it
    /// may give up with this message.
    ///
    /// # Errors
    /// [`PeerError::Send`]; with `QueueFull` wait for a `Sent`.
    pub fn send(
        &mut self,
        connection: QpKey,
        pieces: &[&[u8]],
        cookie: u64,
        invalidate: Option<u32>,
    ) -> Result<(), PeerError> {
        let message = self.message_of(pieces, cookie)?;
        self.queue(connection, message, invalidate)
    }

    /// Memory for a message of `len` bytes, to be filled and given to
    /// [`send_buffer`](Self::send_buffer).
    pub fn send_buffer_of(&mut self, len: usize) -> Result<SendBuffer, PeerError> {
        Ok(SendBuffer(self.sends.take(len)?))
    }

    /// As [`send`](Self::send), without a copy.
    pub fn send_buffer(
        &mut self,
        connection: QpKey,
        buffer: SendBuffer,
        cookie: u64,
    ) -> Result<(), PeerError> {
        let memory = buffer.0;
        self.queue(connection, Message { memory, cookie }, None)
    }

    /// Stops or resumes receiving. While stopped no receives are posted, so that the peer runs out
    /// of credits; what it has credits for still comes. A connection stopped for longer than the
    /// peer's keepalive interval may be ended by the peer.
    pub fn set_receiving(&mut self, connection: QpKey, is_on: bool) {
        if let Some(entry) = self.connections.get_mut(&connection) {
            entry.set_receiving(Instant::now(), is_on);
            if !entry.is_dirty {
                entry.is_dirty = true;
                self.dirty.push(connection);
            }
        }
    }

    /// Sends bytes as one message of the fabric, on a raw connection.
    pub fn send_raw(
        &mut self,
        connection: QpKey,
        bytes: &[u8],
        cookie: u64,
        invalidate: Option<u32>,
    ) -> Result<(), PeerError> {
        let message = self.message_of(&[bytes], cookie)?;
        let entry = self
            .connections
            .get_mut(&connection)
            .ok_or(PeerError::NoSuchConnection)?;
        entry.send_raw(&mut *self.fabric, message, invalidate)
    }

    /// Fetches `memory.len()` bytes, starting `skip` bytes into the peer's memory that
    /// `descriptors` name. [`PeerEvent::Rdma`] follows.
    ///
    /// # Errors
    /// [`PeerError::Range`] when the descriptors are too short.
    pub fn rdma_read(
        &mut self,
        connection: QpKey,
        memory: &MemSlice,
        descriptors: &[BufferDescriptor],
        skip: u64,
        cookie: u64,
    ) -> Result<(), PeerError> {
        self.rdma(
            connection,
            Direction::Read,
            memory,
            descriptors,
            skip,
            cookie,
        )
    }

    /// Places `memory`, starting `skip` bytes into the peer's memory that `descriptors` name.
    /// [`PeerEvent::Rdma`] follows; a PDU sent after this call arrives after the bytes.
    ///
    /// # Errors
    /// [`PeerError::Range`] when the descriptors are too short.
    pub fn rdma_write(
        &mut self,
        connection: QpKey,
        memory: &MemSlice,
        descriptors: &[BufferDescriptor],
        skip: u64,
        cookie: u64,
    ) -> Result<(), PeerError> {
        self.rdma(
            connection,
            Direction::Write,
            memory,
            descriptors,
            skip,
            cookie,
        )
    }

    /// Lets the peer of one connection reach `memory` (`[MS-SMBD] 3.1.4.3`).
    pub fn register(
        &mut self,
        connection: QpKey,
        memory: MemSlice,
        access: Access,
    ) -> Result<BufferDescriptor, PeerError> {
        let length = u32::try_from(memory.len())
            .map_err(|_| PeerError::Range(format!("{} bytes, at most 4 GiB", memory.len())))?;
        let key = self.fabric.register(connection, memory, access)?;
        Ok(BufferDescriptor {
            offset: key.offset,
            token: key.token,
            length,
        })
    }

    /// Takes it back (`[MS-SMBD] 3.1.4.4`). False: the token is not registered (any more).
    pub fn deregister(&mut self, connection: QpKey, token: u32) -> bool {
        self.fabric.deregister(connection, token)
    }

    /// Ends a connection in good order: what is queued still leaves, then
    /// [`PeerEvent::Disconnected`] comes.
    pub fn disconnect(&mut self, connection: QpKey) {
        let now = Instant::now();
        if let Some(entry) = self.connections.get_mut(&connection) {
            entry.close(now, &mut *self.fabric);
            self.drive(now, connection);
        }
    }

    /// Ends a connection at once; what is queued is dropped.
    pub fn abort(&mut self, connection: QpKey) {
        self.fabric
            .disconnect(Instant::now(), connection, Duration::ZERO);
    }

    /// Gives a received PDU's memory back for others.
    pub fn recycle(&mut self, pdu: Pdu) {
        self.pdus.put(pdu);
    }

    /// Whether connections are raw, see [`Config::raw`].
    pub fn is_raw(&self) -> bool {
        self.config.raw
    }

    /// Connections there are, in any state.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// What was agreed on with the peer, once it is.
    pub fn negotiated(&self, connection: QpKey) -> Option<Negotiated> {
        self.connections.get(&connection)?.negotiated()
    }

    /// Counters of a connection so far.
    pub fn stats(&self, connection: QpKey) -> Option<ConnectionStats> {
        Some(self.connections.get(&connection)?.stats())
    }

    /// Our and the peer's address, once connected.
    pub fn addresses(&self, connection: QpKey) -> Option<(SocketAddr, SocketAddr)> {
        self.connections.get(&connection)?.addresses
    }

    /// Waits until something happens, at most `timeout` (`None`: for ever), and appends what did.
    /// May append nothing before the time is up.
    pub fn poll(
        &mut self,
        timeout: Option<Duration>,
        events: &mut Vec<PeerEvent>,
    ) -> Result<(), PeerError> {
        let now = Instant::now();
        self.settle(now);
        let mut wait = timeout;
        if !self.events.is_empty() {
            wait = Some(Duration::ZERO);
        } else if let Some(next) = self.next_timeout() {
            let until = next.saturating_duration_since(now);
            wait = Some(wait.map_or(until, |wait| wait.min(until)));
        }
        self.ready.clear();
        let told = self.poller.wait(wait, &mut self.ready)?;
        // The caller may have registered one for each connection, too.
        let descriptors = 2 * self.connections.len() + FEW_DESCRIPTORS;
        let seen = self.lookout.after(told, now, descriptors);
        let now = Instant::now();
        for index in 0..self.ready.len() {
            let ready = self.ready[index];
            let (tag, key) = Poller::split(ready.key);
            if tag == FABRIC_TAG {
                self.fabric
                    .handle_ready(now, Ready { key, ..ready }, &mut self.fabric_events);
                self.handle_fabric_events(now);
            } else {
                self.events
                    .push_back(PeerEvent::Ready(Ready { key, ..ready }));
            }
        }
        if self
            .timers
            .peek()
            .is_some_and(|Reverse((at, _))| *at <= seen)
        {
            // Readiness may only tell that there is something; a flush takes it.
            self.settle(now);
        }
        self.handle_timers(now, seen);
        self.settle(now);
        events.extend(self.events.drain(..));
        Ok(())
    }

    /// Sends what is queued without waiting for anything.
    pub fn flush(&mut self) {
        self.settle(Instant::now());
    }

    fn message_of(&mut self, pieces: &[&[u8]], cookie: u64) -> Result<Message, PeerError> {
        let memory = self
            .sends
            .take(pieces.iter().map(|piece| piece.len()).sum())?;
        let mut at = 0;
        for piece in pieces {
            memory.write(at, piece)?;
            at += piece.len();
        }
        Ok(Message { memory, cookie })
    }

    fn queue(
        &mut self,
        connection: QpKey,
        message: Message,
        invalidate: Option<u32>,
    ) -> Result<(), PeerError> {
        let entry = self
            .connections
            .get_mut(&connection)
            .ok_or(PeerError::NoSuchConnection)?;
        entry.send(Instant::now(), message, invalidate)?;
        if !entry.is_dirty {
            entry.is_dirty = true;
            self.dirty.push(connection);
        }
        Ok(())
    }

    fn rdma(
        &mut self,
        connection: QpKey,
        direction: Direction,
        memory: &MemSlice,
        descriptors: &[BufferDescriptor],
        skip: u64,
        cookie: u64,
    ) -> Result<(), PeerError> {
        // An RDMA WRITE must not pass the PDUs that were queued before it.
        self.drive(Instant::now(), connection);
        let entry = self
            .connections
            .get_mut(&connection)
            .ok_or(PeerError::NoSuchConnection)?;
        entry.rdma(
            &mut *self.fabric,
            direction,
            memory,
            descriptors,
            skip,
            cookie,
        )
    }

    fn next_timeout(&self) -> Option<Instant> {
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        match (timer, self.fabric.next_timeout()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Runs the timers of what has not come; `seen` is what [`Lookout::after`] returned.
    fn handle_timers(&mut self, now: Instant, seen: Instant) {
        if self.fabric.next_timeout().is_some_and(|at| at <= seen) {
            self.fabric.handle_timeout(now, &mut self.fabric_events);
            self.handle_fabric_events(now);
        }
        while let Some(&Reverse((at, qp))) = self.timers.peek() {
            if at > seen {
                break;
            }
            self.timers.pop();
            let Some(entry) = self.connections.get_mut(&qp) else {
                continue;
            };
            if entry.armed == Some(at) {
                entry.armed = None;
                if entry.next_timeout().is_some_and(|due| due <= seen) {
                    entry.handle_timeout(now);
                }
                // Also arms the timer again.
                self.drive(now, qp);
            }
        }
    }

    /// Drives what is dirty and flushes, until nothing moves any more.
    fn settle(&mut self, now: Instant) {
        loop {
            while let Some(qp) = self.dirty.pop() {
                self.drive(now, qp);
            }
            self.fabric.flush(now, &mut self.fabric_events);
            if self.fabric_events.is_empty() {
                return;
            }
            self.handle_fabric_events(now);
        }
    }

    fn drive(&mut self, now: Instant, qp: QpKey) {
        let Some(entry) = self.connections.get_mut(&qp) else {
            return;
        };
        entry.is_dirty = false;
        entry.drive(now, &mut context!(self));
        // Timers only need a new entry when they move forward in time; a later one is found when
        // the old entry comes up.
        if let Some(at) = entry.next_timeout() {
            if entry.armed.is_none_or(|armed| at < armed) {
                entry.armed = Some(at);
                self.timers.push(Reverse((at, qp)));
            }
        }
    }

    fn handle_fabric_events(&mut self, now: Instant) {
        let mut events = std::mem::take(&mut self.fabric_events);
        for event in events.drain(..) {
            self.handle_fabric_event(now, event);
        }
        // Handling events posts work but never runs the fabric, so none were added meanwhile.
        self.fabric_events = events;
    }

    fn handle_fabric_event(&mut self, now: Instant, event: FabricEvent) {
        let qp = match event {
            FabricEvent::ConnectRequest {
                qp,
                listener,
                local,
                peer,
                ..
            } => {
                return self.accept(now, qp, listener, (local, peer));
            }
            FabricEvent::Established { qp, .. }
            | FabricEvent::Recv { qp, .. }
            | FabricEvent::Done { qp, .. }
            | FabricEvent::Disconnected { qp, .. } => qp,
        };
        let Some(entry) = self.connections.get_mut(&qp) else {
            return;
        };
        match event {
            FabricEvent::ConnectRequest { .. } => {}
            FabricEvent::Established {
                local, peer, ord, ..
            } => {
                entry.addresses = Some((local, peer));
                let listener = entry.listener;
                let connection = qp;
                self.events.push_back(PeerEvent::Established {
                    connection,
                    listener,
                    local,
                    peer,
                    ord,
                });
                entry.handle_established(now);
            }
            FabricEvent::Recv {
                wr_id,
                len,
                invalidated,
                status,
                ..
            } => {
                entry.handle_recv(now, wr_id, len, invalidated, status, &mut context!(self));
            }
            FabricEvent::Done { wr_id, status, .. } => {
                entry.handle_done(now, wr_id, status, &mut context!(self));
            }
            FabricEvent::Disconnected { reason, .. } => {
                if let Some(entry) = self.connections.remove(&qp) {
                    entry.handle_disconnected(now, reason, &mut context!(self));
                }
                return;
            }
        }
        if !entry.is_dirty {
            entry.is_dirty = true;
            self.dirty.push(qp);
        }
    }

    fn accept(
        &mut self,
        now: Instant,
        qp: QpKey,
        listener: ListenerKey,
        addresses: (SocketAddr, SocketAddr),
    ) {
        let params = &self.config.passive;
        self.fabric.expect_receives(qp, receives_of(params));
        let connection = if self.connections.len() >= self.config.max_connections {
            log::warn!(
                "refused {}: {} connections already, the limit",
                addresses.1,
                self.config.max_connections
            );
            return self.fabric.reject(qp, &[]);
        } else if self.config.raw {
            Connection::raw(qp, params)
        } else {
            Connection::new(qp, params, Role::Passive, now)
        };
        let mut connection = match connection {
            Ok(connection) => connection,
            Err(error) => {
                log::warn!("refused {}: {error}", addresses.1);
                return self.fabric.reject(qp, &[]);
            }
        };
        connection.listener = Some(listener);
        connection.addresses = Some(addresses);
        self.connections.insert(qp, connection);
        // Receives have to stand before the peer can send.
        self.drive(now, qp);
        if let Err(error) = self.fabric.accept(now, qp, &self.config.accept) {
            log::warn!("refused {}: {error}", addresses.1);
            self.fabric.reject(qp, &[]);
        }
    }
}

impl AsFd for Endpoint {
    /// Readable when [`Endpoint::poll`] has something to do; timers apart.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }
}

fn make_fabric(registry: Registry, config: &Config) -> Result<Box<dyn Fabric>, PeerError> {
    match config.kind {
        FabricKind::SoftIwarp => {
            let fabric = IwarpFabric::new(registry, config.fabric.clone())?;
            Ok(Box::new(fabric))
        }
        #[cfg(feature = "verbs")]
        FabricKind::Verbs => {
            let config = crate::fabric::verbs::VerbsConfig::default();
            let fabric = crate::fabric::verbs::VerbsFabric::new(registry, config)?;
            Ok(Box::new(fabric))
        }
        #[cfg(not(feature = "verbs"))]
        FabricKind::Verbs => Err(PeerError::Range(
            "built without the feature verbs: build with it, or use software iWARP".into(),
        )),
    }
}

/// The most receives that a connection has posted: those with credits, and the first.
fn receives_of(params: &Params) -> u32 {
    u32::from(params.receive_credit_max) + 1
}

const FABRIC_TAG: u8 = 1;
const CALLER_TAG: u8 = 2;
/// Descriptors beside those of connections: listeners, half-open connections, the fabric's own.
const FEW_DESCRIPTORS: usize = 256;
