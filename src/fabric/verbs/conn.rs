#![forbid(unsafe_code)]
//! One connection: its identifier, its queues, and what waits.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::config::VerbsConfig;
use super::memory::Kept;
use super::queues::Queues;
use super::resolve::Attempt;
use super::sys::{CmId, ConnParams, Mr, Mw, Rights, Transport};
use crate::fabric::{
    Access, EndReason, FabricError, FabricEvent, ListenerKey, QpKey, RemoteKey, SendRequest,
    Status, WrId,
};
use crate::mem::{MemSlice, Region};

/// Where a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Active: which device leads to the peer?
    ResolvingAddress,
    /// Active: which path?
    ResolvingRoute,
    /// Active: asked the peer.
    Connecting,
    /// Passive: the caller has to decide.
    AwaitAccept,
    /// Passive: accepted, and the peer has not confirmed it.
    Accepting,
    /// Both sides may send.
    Open,
    /// What is posted leaves, then it ends.
    Draining,
    /// The queue pair is in error; why comes with an event.
    Broken,
}

impl Phase {
    /// What is waited for, in the words of a time-out.
    pub(super) fn awaited(self) -> &'static str {
        match self {
            Self::ResolvingAddress => "the peer's address to be resolved",
            Self::ResolvingRoute => "the route to the peer",
            Self::Connecting => "the peer's answer to the connect request",
            Self::AwaitAccept => "accept or reject",
            Self::Accepting => "the peer's confirmation",
            Self::Open | Self::Draining => "the end",
            Self::Broken => "the reason of an error of the queue pair",
        }
    }
}

/// A receive, waiting or posted.
pub(super) struct Recv {
    pub(super) seq: u64,
    pub(super) wr_id: WrId,
    pub(super) memory: MemSlice,
    pub(super) kept: Kept,
}

/// What the caller wants done on the send queue.
pub(super) enum Work {
    Send(SendRequest),
    Write {
        memory: MemSlice,
        token: u32,
        offset: u64,
    },
    Read {
        memory: MemSlice,
        token: u32,
        offset: u64,
    },
    /// Lets the peer use a token that was given out.
    Bind {
        token: u32,
    },
}

/// What the peer may reach by a token.
pub(super) enum Registration {
    /// A plain memory region: only we can end it.
    Region(Mr),
    /// A memory window, which the peer can invalidate.
    Window {
        window: Mw,
        /// The device said so.
        is_bound: bool,
    },
}

/// Work that the device has not got yet.
pub(super) struct Waiting {
    pub(super) seq: u64,
    /// Whom to tell; none: work of the fabric itself.
    pub(super) wr_id: Option<WrId>,
    pub(super) work: Work,
}

/// Work that the device has.
pub(super) struct Posted {
    pub(super) seq: u64,
    pub(super) wr_id: Option<WrId>,
    /// The token that is in force when it is done.
    pub(super) binds: Option<u32>,
    pub(super) header: Option<u16>,
    pub(super) _kept: Kept,
}

/// A connection.
pub(super) struct Conn {
    pub(super) key: u64,
    /// What the peer may reach, by token. Declared before the queues: rxe does not let a queue pair
    /// go that windows are bound to.
    pub(super) registrations: HashMap<u32, Registration>,
    /// Declared before the identifier: goes first.
    pub(super) queues: Option<Queues>,
    pub(super) id: CmId,
    pub(super) phase: Phase,
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    /// The caller knows the key.
    pub(super) told: bool,
    pub(super) deadline: Option<Instant>,
    /// When the whole set-up has to be over (active).
    pub(super) setup_until: Option<Instant>,
    /// At the address, then at the route (active).
    pub(super) attempt: Attempt,
    pub(super) expected_recvs: Option<u32>,
    pub(super) ird: u32,
    /// Wish, then what was agreed on.
    pub(super) ord: u32,
    pub(super) private_data: Vec<u8>,
    /// The listener it came to.
    pub(super) listener: Option<ListenerKey>,
    /// Reads the peer serves, if it said so.
    pub(super) peer_ird: Option<u32>,
    pub(super) peer_ord: Option<u32>,
    pub(super) recvs_waiting: VecDeque<Recv>,
    pub(super) recvs: VecDeque<Recv>,
    pub(super) waiting: VecDeque<Waiting>,
    pub(super) reads_waiting: VecDeque<Waiting>,
    pub(super) sends: VecDeque<Posted>,
    pub(super) reads: VecDeque<Posted>,
    next_seq: u64,
    /// Why it has to end; kept from the first that said so.
    pub(super) end: Option<EndReason>,
    /// Among the connections with something to do at the next flush.
    pub(super) is_dirty: bool,
    /// Its completion queue is looked at in each flush, and will not tell by itself.
    pub(super) is_hot: bool,
    /// Counts among the connections in set-up.
    pub(super) is_half_open: bool,
    /// rdma_cm was told that the connection is up, and has not told it back.
    pub(super) is_notified: bool,
}

impl Conn {
    pub(super) fn new(
        key: u64,
        id: CmId,
        phase: Phase,
        local: SocketAddr,
        peer: SocketAddr,
    ) -> Self {
        Self {
            key,
            queues: None,
            registrations: HashMap::new(),
            id,
            phase,
            local,
            peer,
            told: false,
            deadline: None,
            setup_until: None,
            attempt: Attempt::first(Instant::now()),
            expected_recvs: None,
            ird: 0,
            ord: 0,
            private_data: Vec::new(),
            listener: None,
            peer_ird: None,
            peer_ord: None,
            recvs_waiting: VecDeque::new(),
            recvs: VecDeque::new(),
            waiting: VecDeque::new(),
            reads_waiting: VecDeque::new(),
            sends: VecDeque::new(),
            reads: VecDeque::new(),
            next_seq: 0,
            end: None,
            is_dirty: false,
            is_hot: false,
            is_half_open: false,
            is_notified: false,
        }
    }

    pub(super) fn qp_key(&self) -> QpKey {
        QpKey(self.key)
    }

    pub(super) fn seq(&mut self) -> u64 {
        self.next_seq += 1;
        self.next_seq
    }

    /// Makes the queues, sized by what the device can do. The identifier is bound to it.
    pub(super) fn make_queues(&mut self, config: &VerbsConfig) -> Result<(), FabricError> {
        if self.queues.is_some() {
            return Ok(());
        }
        let recvs = self.expected_recvs;
        self.queues = Some(Queues::new(&self.id, self.key, self.peer, config, recvs)?);
        Ok(())
    }

    /// What goes with connect and accept: depths within the device's limits.
    pub(super) fn params(&self) -> ConnParams<'_> {
        let device = self.queues.as_ref().map(|queues| &queues.device);
        let (max_ird, max_ord) = device.map_or((0, 0), |d| (d.max_ird, d.max_ord));
        let within = |wish: u32, device: u8, peer: Option<u32>| {
            let most = wish.min(peer.unwrap_or(u32::MAX));
            most.min(u32::from(device)) as u8
        };
        // InfiniBand and RoCE carry the depths themselves; iWARP before MPA revision 2 does not,
        // and SMB Direct's private data makes up for it ([MS-SMBD] 6).
        let is_iwarp = device.is_some_and(|d| d.transport == Transport::Iwarp);
        ConnParams {
            private_data: if is_iwarp { &self.private_data } else { &[] },
            responder_resources: within(self.ird, max_ird, self.peer_ord),
            initiator_depth: within(self.ord, max_ord, self.peer_ird),
        }
    }

    /// Whether work can be posted at all.
    pub(super) fn check_posting(&self) -> Result<(), FabricError> {
        if self.end.is_some() || matches!(self.phase, Phase::Draining | Phase::Broken) {
            return Err(FabricError::WrongState("the connection is ending"));
        }
        Ok(())
    }

    /// Receives that the device can hold, once known.
    pub(super) fn recv_room(&self) -> Option<usize> {
        let queues = self.queues.as_ref()?;
        Some(queues.qp.options().recvs as usize)
    }

    pub(super) fn push_work(&mut self, wr_id: Option<WrId>, work: Work) {
        let seq = self.seq();
        let is_read = matches!(work, Work::Read { .. });
        let waiting = Waiting { seq, wr_id, work };
        if is_read {
            self.reads_waiting.push_back(waiting);
        } else {
            self.waiting.push_back(waiting);
        }
    }

    /// Whether everything on the send queue has ended.
    pub(super) fn is_drained(&self) -> bool {
        self.waiting.is_empty()
            && self.reads_waiting.is_empty()
            && self.sends.is_empty()
            && self.reads.is_empty()
    }

    /// Makes a token for the peer. A window is bound before anything that is posted from now on.
    pub(super) fn register(
        &mut self,
        now: Instant,
        config: &VerbsConfig,
        memory: &MemSlice,
        access: Access,
    ) -> Result<RemoteKey, FabricError> {
        self.check_posting()?;
        let Some(queues) = &mut self.queues else {
            return Err(FabricError::WrongState("no device yet"));
        };
        if self.registrations.len() >= config.max_registrations {
            return Err(FabricError::NoResources("registrations of one connection"));
        }
        if memory.is_empty() {
            return Err(FabricError::Invalid("no bytes to register".into()));
        }
        let rights = Rights {
            local_write: access.remote_write,
            remote_read: access.remote_read,
            remote_write: access.remote_write,
            bind: false,
        };
        let explain = |error| super::limits::explain(error, "register memory", memory.len());
        let (region, offset, len) = (memory.region(), memory.offset(), memory.len());
        if !queues.device.has_windows {
            let pd = queues.memory.pd();
            let mr = Mr::new(pd, region, offset, len, rights).map_err(explain)?;
            let (token, offset) = (mr.rkey(), mr.address());
            self.registrations.insert(token, Registration::Region(mr));
            return Ok(RemoteKey { token, offset });
        }
        let mr = queues.memory.whole(now, memory).map_err(explain)?;
        let window = Mw::new(mr, offset, len, rights).map_err(explain)?;
        let (token, offset) = (window.rkey(), window.address());
        let is_bound = false;
        self.registrations
            .insert(token, Registration::Window { window, is_bound });
        self.push_work(None, Work::Bind { token });
        Ok(RemoteKey { token, offset })
    }

    /// Gives back what is registered of a region and not in use. False: some of it is, or the peer
    /// has a token of it.
    pub(super) fn forget(&mut self, region: &Arc<Region>) -> bool {
        let is_of = |registration: &Registration| match registration {
            Registration::Region(mr) => mr.is_of(region),
            // Keeps a chunk in use.
            Registration::Window { .. } => false,
        };
        let has_token = self.registrations.values().any(is_of);
        let queues = self.queues.as_mut();
        queues.is_none_or(|queues| queues.memory.forget(region)) && !has_token
    }

    /// Whether a token is given out, and the device may still be about to bind its window.
    pub(super) fn is_being_bound(&self, token: u32) -> bool {
        let is_posted = self.sends.iter().any(|posted| posted.binds == Some(token));
        let registration = self.registrations.get(&token);
        is_posted
            && matches!(
                registration,
                Some(Registration::Window {
                    is_bound: false,
                    ..
                })
            )
    }

    /// A message of the peer shows that the connection is up. Otherwise rdma_cm would wait, give up
    /// and take the connection down, if the peer's last message of the set-up is lost.
    pub(super) fn notify_established(&mut self) {
        // An error: it has heard of it by itself.
        self.is_notified = self.id.notify_established().is_ok();
    }

    /// Tells that the connection is up, once.
    pub(super) fn establish(&mut self, private_data: Vec<u8>, events: &mut Vec<FabricEvent>) {
        self.phase = Phase::Open;
        self.private_data = Vec::new();
        events.push(FabricEvent::Established {
            qp: self.qp_key(),
            local: self.local,
            peer: self.peer,
            ord: self.ord,
            private_data,
        });
    }

    /// Tells everything that is left as flushed, in order. The device has to be through with it.
    pub(super) fn flush_all(&mut self, events: &mut Vec<FabricEvent>) {
        let mut left: Vec<(u64, Option<WrId>)> = Vec::new();
        let posted = self.sends.drain(..).chain(self.reads.drain(..));
        left.extend(posted.map(|work| (work.seq, work.wr_id)));
        let waiting = self.waiting.drain(..).chain(self.reads_waiting.drain(..));
        left.extend(waiting.map(|work| (work.seq, work.wr_id)));
        left.sort_unstable_by_key(|(seq, _)| *seq);
        let qp = self.qp_key();
        let status = Status::Flushed;
        let told = left.into_iter().filter_map(|(_, wr_id)| wr_id);
        events.extend(told.map(|wr_id| FabricEvent::Done { qp, wr_id, status }));
        let recvs = self.recvs.drain(..).chain(self.recvs_waiting.drain(..));
        events.extend(recvs.map(|recv| FabricEvent::Recv {
            qp,
            wr_id: recv.wr_id,
            len: 0,
            invalidated: None,
            status,
        }));
    }
}
