#![forbid(unsafe_code)]
//! Software iWARP: MPA, DDP and RDMAP in user space over TCP (RFC 5044, 5041, 5040, 6581).
//!
//! ```text
//!   IwarpFabric (this file)   the Fabric trait; keys, end of connections
//!     listener, closing       sockets before and after a connection's life
//!     qp                      one connection
//!       setup   <- mpa        Request, Reply, depths, ready to receive
//!       receive <- ddp, crc   the parser; payload to its place (receive/segment: its meaning)
//!       transmit <- stage     the queue; frames to the socket
//!     stag                    what a peer may reach
//! ```
//!
//! Limits, on purpose: no markers (asked for by a peer: refused), one segment never shares its
//! message with another, the DDP/RDMAP stream 0 only. The eight bytes of IRD/ORD that SMB Direct
//! peers put into the private data are the caller's business.

mod closing;
mod config;
mod crc;
mod ddp;
mod listener;
mod mpa;
mod qp;
mod receive;
mod setup;
mod shared;
mod socket;
mod stag;
mod stage;
mod terminate;
mod transmit;

#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

pub use config::{IwarpConfig, SegmentSize, DEFAULT_READ_DEPTH};
pub use mpa::Rtr;

use super::slots::Slots;
use super::{
    AcceptOptions, Access, ConnectOptions, EndReason, Fabric, FabricError, FabricEvent,
    ListenOptions, ListenerKey, QpKey, RemoteKey, SendRequest, WrId,
};
use crate::mem::MemSlice;
use crate::sys::{Interest, Ready, Registry};
use closing::{Closing, Progress};
use ddp::ReadRequest;
use listener::Listener;
use qp::{Phase, Qp};
use setup::{check_depths, Setup};
use shared::Shared;
use terminate::Code;
use transmit::Work;

/// Connections that are over for the caller and still give their peer time to read. Beyond that
/// they are closed at once.
const MAX_CLOSING: usize = 1024;

/// Why a connection ends, and what the peer is told.
#[derive(Debug)]
struct End {
    reason: EndReason,
    terminate: Option<Code>,
}

impl End {
    const LOCAL: Self = Self {
        reason: EndReason::Local,
        terminate: None,
    };

    fn plain(reason: EndReason) -> Self {
        Self {
            reason,
            terminate: None,
        }
    }

    /// The peer broke the rules before frames flowed.
    fn protocol(text: String) -> Self {
        Self::plain(EndReason::Protocol(text))
    }

    /// The peer broke the rules; it is told the code.
    fn violation(code: Code, text: String) -> Self {
        Self {
            reason: EndReason::Protocol(format!("{text} ({code})")),
            terminate: Some(code),
        }
    }

    fn transport(what: &str, error: &io::Error) -> Self {
        Self::plain(EndReason::Transport(format!("{what}: {error}")))
    }

    /// Something of our own is wrong.
    fn local(text: String) -> Self {
        Self::plain(EndReason::Transport(format!("internal: {text}")))
    }
}

/// What a key names.
enum Entry {
    Listener(Listener),
    Qp(Box<Qp>),
    Closing(Closing),
}

/// The software iWARP fabric. Belongs to one thread.
pub struct IwarpFabric {
    slots: Slots<Entry>,
    shared: Shared,
    /// Connections with something to do at the next flush.
    dirty: Vec<u64>,
    /// Listeners that wait for half-open connections to become fewer.
    full: Vec<u64>,
    closing: usize,
    /// The last time we were told.
    now: Instant,
}

impl IwarpFabric {
    /// A fabric whose sockets are registered with `registry`. The owner of the poller hands
    /// readiness under that registry's tag to [`Fabric::handle_ready`], the tag taken off the key.
    pub fn new(registry: Registry, config: IwarpConfig) -> io::Result<Self> {
        config
            .check()
            .map_err(|text| io::Error::new(io::ErrorKind::InvalidInput, text))?;
        Ok(Self {
            slots: Slots::new(),
            shared: Shared::new(registry, config)?,
            dirty: Vec::new(),
            full: Vec::new(),
            closing: 0,
            now: Instant::now(),
        })
    }

    /// Connections that were accepted by TCP and are not established yet.
    pub fn half_open(&self) -> usize {
        self.shared.half_open
    }

    /// A connection that the caller may still name, and what all share.
    fn qp(&mut self, qp: QpKey) -> Result<(&mut Qp, &mut Shared), FabricError> {
        match self.slots.get_mut(qp.0) {
            Some(Entry::Qp(held)) if held.told => Ok((held, &mut self.shared)),
            _ => Err(FabricError::NoSuchKey),
        }
    }

    /// As [`Self::qp`], for posting: the connection is looked at in the next flush.
    fn posting(&mut self, qp: QpKey) -> Result<(&mut Qp, &mut Shared), FabricError> {
        let Some(Entry::Qp(held)) = self.slots.get_mut(qp.0) else {
            return Err(FabricError::NoSuchKey);
        };
        if !held.told {
            return Err(FabricError::NoSuchKey);
        }
        held.check_posting()?;
        if !std::mem::replace(&mut held.dirty, true) {
            self.dirty.push(qp.0);
        }
        Ok((held, &mut self.shared))
    }

    fn mark(&mut self, key: u64, end: Option<End>) {
        if let Some(Entry::Qp(qp)) = self.slots.get_mut(key) {
            if qp.ended.is_none() {
                qp.ended = end;
            }
            if !std::mem::replace(&mut qp.dirty, true) {
                self.dirty.push(key);
            }
        }
    }

    /// Lets a connection do something; ends it when that fails.
    fn with_qp(
        &mut self,
        key: u64,
        events: &mut Vec<FabricEvent>,
        act: impl FnOnce(&mut Qp, &mut Shared, &mut Vec<FabricEvent>) -> Result<(), End>,
    ) {
        let Some(Entry::Qp(qp)) = self.slots.get_mut(key) else {
            return;
        };
        let result = match qp.ended.take() {
            Some(end) => Err(end),
            None => act(qp, &mut self.shared, events),
        };
        if let Err(end) = result {
            self.end(key, end, events);
        }
    }

    /// The one way in which connections end.
    fn end(&mut self, key: u64, end: End, events: &mut Vec<FabricEvent>) {
        let Some(Entry::Qp(mut qp)) = self.slots.remove(key) else {
            return;
        };
        match &end.reason {
            EndReason::Local | EndReason::PeerClosed => {
                log::debug!("{}: ended: {:?}", qp.peer, end.reason);
            }
            reason => log::info!("{}: ended: {reason:?}", qp.peer),
        }
        // What still goes out: a Reply that refuses, or a Terminate; and after a plain end in the
        // middle of things, the time to read what TCP has of ours already.
        let mut last = qp.unsent_setup().or_else(|| qp.last_words(&end));
        if last.is_none() && end.reason == EndReason::Local && qp.phase == Phase::Open {
            let rest = qp.tx.rest_of_frame(&qp.registrations);
            last = rest.filter(Vec::is_empty);
        }
        qp.flush_all(&mut self.shared, end.reason, events);
        let socket = qp.socket;
        // Dropping the last descriptor of a socket takes it out of the epoll set as well.
        let Some(bytes) = last.filter(|_| self.closing < MAX_CLOSING) else {
            return;
        };
        if self.shared.registry.remove(&socket).is_err() {
            return;
        }
        let closing = Closing::new(socket, bytes);
        let Some(key) = self.slots.insert(|_| Entry::Closing(closing)) else {
            return;
        };
        self.closing += 1;
        let until = self.now + self.shared.config.close_timeout;
        let mut added = Ok(());
        if let Some(Entry::Closing(closing)) = self.slots.get_mut(key) {
            self.shared
                .timers
                .set(key, &mut closing.deadline, Some(until));
            added = self
                .shared
                .registry
                .add(&closing.socket, key, Interest::BOTH);
        }
        if added.is_err() {
            self.drop_closing(key);
        } else {
            self.advance_closing(key);
        }
    }

    fn advance_closing(&mut self, key: u64) {
        let Some(Entry::Closing(closing)) = self.slots.get_mut(key) else {
            return;
        };
        let interest = match closing.advance(&mut self.shared.receive_tools.scratch) {
            Progress::Sending => return,
            Progress::Waiting => Interest::READ,
            Progress::Done => return self.drop_closing(key),
        };
        if self
            .shared
            .registry
            .modify(&closing.socket, key, interest)
            .is_err()
        {
            self.drop_closing(key);
        }
    }

    fn drop_closing(&mut self, key: u64) {
        if let Some(Entry::Closing(mut closing)) = self.slots.remove(key) {
            self.shared.timers.set(key, &mut closing.deadline, None);
            self.closing -= 1;
        }
    }

    /// Makes a queue pair of a socket that is registered as `interest`.
    fn insert_qp(
        &mut self,
        socket: std::os::fd::OwnedFd,
        interest: Interest,
        addresses: (SocketAddr, SocketAddr),
        phase: Phase,
        setup: Setup,
        until: Instant,
    ) -> io::Result<u64> {
        let key = self.slots.insert(|key| {
            let qp = Qp::new(key, socket, interest, addresses, phase, setup);
            Entry::Qp(Box::new(qp))
        });
        let key = key.ok_or_else(|| io::Error::other("more than 16 million connections"))?;
        let Some(Entry::Qp(qp)) = self.slots.get_mut(key) else {
            return Err(io::Error::other("a key went lost"));
        };
        if let Err(error) = self.shared.registry.add(&qp.socket, key, interest) {
            self.slots.remove(key);
            return Err(error);
        }
        self.shared.timers.set(key, &mut qp.deadline, Some(until));
        Ok(key)
    }

    fn run_dirty(&mut self, events: &mut Vec<FabricEvent>) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for key in dirty.drain(..) {
            if let Some(Entry::Qp(qp)) = self.slots.get_mut(key) {
                qp.dirty = false;
            }
            self.with_qp(key, events, |qp, shared, events| match qp.phase {
                Phase::Open => qp.pump(shared, events),
                Phase::SendReply => qp.finish_reply(shared, events),
                Phase::Draining => qp.drain(shared, events),
                _ => Ok(()),
            });
        }
        // Keeps its storage, unless something was marked meanwhile.
        dirty.append(&mut self.dirty);
        self.dirty = dirty;
        self.resume_listeners();
    }
}

impl Fabric for IwarpFabric {
    fn name(&self) -> &'static str {
        "soft-iwarp"
    }

    fn listen(
        &mut self,
        address: SocketAddr,
        options: &ListenOptions,
    ) -> Result<(ListenerKey, SocketAddr), FabricError> {
        let (key, taken) = self
            .add_listener(address, options)
            .map_err(|error| FabricError::Os(format!("listen on {address}"), error))?;
        Ok((ListenerKey(key), taken))
    }

    fn close_listener(&mut self, listener: ListenerKey) {
        self.remove_listener(listener);
    }

    fn connect(&mut self, now: Instant, options: &ConnectOptions) -> Result<QpKey, FabricError> {
        self.now = now;
        let revision = options.mpa_revision;
        if !(1..=2).contains(&revision) {
            return Err(FabricError::Invalid(format!(
                "mpa_revision is {revision}; use 1 or 2"
            )));
        }
        check_depths(&self.shared, options.ird, options.ord)?;
        mpa::check_private_data(&options.private_data, revision).map_err(FabricError::Invalid)?;
        let peer = options.peer;
        let failed = |error| FabricError::Os(format!("connect to {peer}"), error);
        let socket = socket::connect(&self.shared.config, peer).map_err(failed)?;
        let local = socket::local_address(&socket).map_err(failed)?;
        let setup = Setup::active(options.clone());
        let until = now + options.timeout;
        let (phase, interest) = (Phase::Connecting, Interest::WRITE);
        let key = self
            .insert_qp(socket, interest, (local, peer), phase, setup, until)
            .map_err(failed)?;
        if let Some(Entry::Qp(qp)) = self.slots.get_mut(key) {
            qp.told = true;
        }
        Ok(QpKey(key))
    }

    fn accept(
        &mut self,
        now: Instant,
        qp: QpKey,
        options: &AcceptOptions,
    ) -> Result<(), FabricError> {
        self.now = now;
        let (held, shared) = self.qp(qp)?;
        held.accept(shared, now, options)?;
        self.mark(qp.0, None);
        Ok(())
    }

    fn reject(&mut self, qp: QpKey, private_data: &[u8]) {
        if let Ok((held, _)) = self.qp(qp) {
            if held.phase == Phase::AwaitAccept && held.ended.is_none() {
                let most = private_data.len().min(mpa::MAX_PRIVATE_SENT - 4);
                held.reject(private_data.get(..most).unwrap_or_default());
                self.mark(qp.0, Some(End::LOCAL));
            }
        }
    }

    fn post_recv(&mut self, qp: QpKey, wr_id: WrId, memory: MemSlice) -> Result<(), FabricError> {
        let (held, _) = self.qp(qp)?;
        held.check_posting()?;
        held.recvs.push_back((wr_id, memory));
        Ok(())
    }

    fn post_send(&mut self, qp: QpKey, request: SendRequest) -> Result<(), FabricError> {
        request.check_header()?;
        check_len("send", request.payload.as_ref().map_or(0, MemSlice::len))?;
        let (held, _) = self.posting(qp)?;
        let order = held.next_order();
        let work = Work::Send {
            header: request.header,
            header_len: request.header_len,
            payload: request.payload,
            invalidate: request.invalidate,
        };
        held.tx.push(work, Some(request.wr_id), order);
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
        let (held, _) = self.posting(qp)?;
        let order = held.next_order();
        let work = Work::Write {
            memory: Some(memory),
            token,
            offset,
        };
        held.tx.push(work, Some(wr_id), order);
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
        let len = check_len("read", memory.len())?;
        let (held, shared) = self.posting(qp)?;
        if held.phase == Phase::Open && held.ord == 0 {
            return Err(FabricError::WrongState(
                "the connection was set up without RDMA READs (ORD 0)",
            ));
        }
        let sink = shared.tokens.key().map_err(no_random)?;
        let request = ReadRequest {
            sink_token: sink.token,
            sink_offset: sink.offset,
            len,
            source_token: token,
            source_offset: offset,
        };
        held.push_read(wr_id, request, memory);
        Ok(())
    }

    fn register(
        &mut self,
        qp: QpKey,
        memory: MemSlice,
        access: Access,
    ) -> Result<RemoteKey, FabricError> {
        let (held, shared) = self.qp(qp)?;
        held.check_posting()?;
        if held.registrations.len() >= shared.config.max_registrations {
            return Err(FabricError::NoResources("registrations of one connection"));
        }
        loop {
            let key = shared.tokens.key().map_err(no_random)?;
            if !held.registrations.contains(key.token) {
                held.registrations.insert(key, memory, access);
                return Ok(key);
            }
        }
    }

    fn deregister(&mut self, qp: QpKey, token: u32) -> bool {
        match self.qp(qp) {
            Ok((held, _)) => held.registrations.remove(token),
            Err(_) => false,
        }
    }

    fn flush(&mut self, now: Instant, events: &mut Vec<FabricEvent>) {
        self.now = now;
        self.run_dirty(events);
    }

    fn disconnect(&mut self, now: Instant, qp: QpKey, linger: Duration) {
        self.now = now;
        let Ok((held, shared)) = self.qp(qp) else {
            return;
        };
        if held.ended.is_some() || matches!(held.phase, Phase::Draining | Phase::AwaitClose) {
            return;
        }
        let mut end = None;
        if held.phase == Phase::Open && !linger.is_zero() && held.tx.open {
            held.phase = Phase::Draining;
            let until = now + linger;
            shared.timers.set(qp.0, &mut held.deadline, Some(until));
        } else {
            end = Some(End::LOCAL);
        }
        self.mark(qp.0, end);
    }

    fn handle_ready(&mut self, now: Instant, ready: Ready, events: &mut Vec<FabricEvent>) {
        self.now = now;
        match self.slots.get_mut(ready.key) {
            Some(Entry::Qp(_)) => self.with_qp(ready.key, events, |qp, shared, events| {
                qp.handle_ready(shared, ready, events)
            }),
            Some(Entry::Listener(_)) => self.accept_connections(ready.key),
            Some(Entry::Closing(_)) => self.advance_closing(ready.key),
            None => {}
        }
        self.resume_listeners();
    }

    fn handle_timeout(&mut self, now: Instant, events: &mut Vec<FabricEvent>) {
        self.now = now;
        self.run_dirty(events);
        while let Some(key) = self.shared.timers.pop(now) {
            match self.slots.get_mut(key) {
                Some(Entry::Qp(qp)) => {
                    qp.deadline = None;
                    let end = match qp.phase {
                        Phase::Draining | Phase::AwaitClose => End::LOCAL,
                        phase => End::plain(EndReason::TimedOut(phase.awaited().into())),
                    };
                    self.end(key, end, events);
                }
                Some(Entry::Listener(listener)) => {
                    listener.deadline = None;
                    self.resume_listener(key);
                }
                Some(Entry::Closing(closing)) => {
                    closing.deadline = None;
                    self.drop_closing(key);
                }
                None => {}
            }
        }
        self.resume_listeners();
    }

    fn next_timeout(&self) -> Option<Instant> {
        // What is overdue comes first: whoever looks only at what was due before the last events
        // would never get to it under load.
        let work = (!self.dirty.is_empty()).then_some(self.now);
        [work, self.shared.timers.next()]
            .into_iter()
            .flatten()
            .min()
    }
}

/// The length fields of RDMAP have 32 bits.
fn check_len(what: &str, len: usize) -> Result<u32, FabricError> {
    u32::try_from(len)
        .ok()
        .filter(|len| *len < u32::MAX - 32)
        .ok_or_else(|| {
            FabricError::Invalid(format!(
                "{what} of {len} bytes; at most 4 GiB less 33 bytes"
            ))
        })
}

fn no_random(error: io::Error) -> FabricError {
    FabricError::Os("getrandom for a token".into(), error)
}
