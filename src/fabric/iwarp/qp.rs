//! A queue pair: one TCP connection with its work queues and registrations.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

use super::ddp::ReadRequest;
use super::mpa::{Agreed, RtrKind};
use super::receive::Receive;
use super::setup::Setup;
use super::shared::Shared;
use super::stag::Registrations;
use super::terminate;
use super::transmit::{terminate_frame, Pumped, Transmit, Work};
use super::End;
use crate::fabric::{EndReason, FabricError, FabricEvent, QpKey, RemoteKey, Status, WrId};
use crate::mem::MemSlice;
use crate::sys::{Interest, Ready};

/// Bytes that one connection may send before the others get their turn.
const BUDGET: usize = 2 << 20;

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Active: TCP connects.
    Connecting,
    /// Active: the Request is on its way, the Reply is awaited.
    AwaitReply,
    /// Passive: the Request is awaited.
    AwaitRequest,
    /// Passive: the caller decides.
    AwaitAccept,
    /// Passive: the Reply is on its way.
    SendReply,
    /// Frames flow.
    Open,
    /// We end it: what was posted still leaves.
    Draining,
    /// We have ended our direction and wait for the peer to end its own.
    AwaitClose,
}

impl Phase {
    /// What a timeout in this phase is called.
    pub(super) fn awaited(self) -> &'static str {
        match self {
            Self::Connecting => "TCP connect",
            Self::AwaitReply => "MPA Reply",
            Self::AwaitRequest => "MPA Request",
            Self::AwaitAccept => "accept or reject by the caller",
            Self::SendReply => "sending the MPA Reply",
            Self::Open => "nothing",
            Self::Draining | Self::AwaitClose => "the end of the connection",
        }
    }
}

/// How far an RDMA READ of ours is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadState {
    Posted,
    /// The peer has refused it.
    Refused,
}

/// An RDMA READ of ours. The sink token is known to nobody but the peer that answers it, and
/// good for nothing but this answer.
pub(super) struct Read {
    /// `None`: ready to receive.
    pub(super) wr_id: Option<WrId>,
    order: u64,
    pub(super) request: ReadRequest,
    pub(super) memory: Option<MemSlice>,
    pub(super) received: usize,
    pub(super) state: ReadState,
}

/// A connection.
pub(super) struct Qp {
    pub(super) key: u64,
    pub(super) socket: OwnedFd,
    interest: Interest,
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) phase: Phase,
    pub(super) deadline: Option<Instant>,
    /// The caller knows the key, so it is told the end.
    pub(super) told: bool,
    /// Counts as half open.
    pub(super) half_open: bool,
    /// What only the set-up needs.
    pub(super) setup: Option<Box<Setup>>,
    /// Waits for [`super::IwarpFabric::flush`].
    pub(super) dirty: bool,
    /// An end that came up in a call that cannot tell events.
    pub(super) ended: Option<End>,
    pub(super) tx: Transmit,
    pub(super) rx: Receive,
    pub(super) recvs: VecDeque<(WrId, MemSlice)>,
    pub(super) registrations: Registrations,
    /// Our reads: the first `requested_reads` are at the peer, the others wait.
    pub(super) reads: VecDeque<Read>,
    pub(super) requested_reads: u32,
    pub(super) ord: u32,
    pub(super) ird: u32,
    pub(super) inbound_reads: u32,
    posted: u64,
    /// Bytes that make the socket readable.
    pub(super) threshold: usize,
}

impl Qp {
    pub(super) fn new(
        key: u64,
        socket: OwnedFd,
        interest: Interest,
        (local, peer): (SocketAddr, SocketAddr),
        phase: Phase,
        setup: Setup,
    ) -> Self {
        Self {
            key,
            socket,
            interest,
            local,
            peer,
            phase,
            deadline: None,
            told: false,
            half_open: false,
            setup: Some(Box::new(setup)),
            dirty: false,
            ended: None,
            tx: Transmit::new(),
            rx: Receive::new(),
            recvs: VecDeque::new(),
            registrations: Registrations::default(),
            reads: VecDeque::new(),
            requested_reads: 0,
            ord: 0,
            ird: 0,
            inbound_reads: 0,
            posted: 0,
            threshold: 1,
        }
    }

    pub(super) fn next_order(&mut self) -> u64 {
        self.posted += 1;
        self.posted
    }

    /// Whether work may be posted.
    pub(super) fn check_posting(&self) -> Result<(), FabricError> {
        if self.ended.is_some() || matches!(self.phase, Phase::Draining | Phase::AwaitClose) {
            return Err(FabricError::WrongState("the connection is being ended"));
        }
        Ok(())
    }

    /// Changes what is waited for, when it is not that already.
    pub(super) fn set_interest(
        &mut self,
        shared: &mut Shared,
        interest: Interest,
    ) -> Result<(), End> {
        if self.interest != interest {
            shared
                .registry
                .modify(&self.socket, self.key, interest)
                .map_err(|error| End::transport("epoll_ctl", &error))?;
            self.interest = interest;
        }
        Ok(())
    }

    /// Takes another socket (a second try to connect).
    pub(super) fn replace_socket(&mut self, socket: OwnedFd, interest: Interest) {
        self.socket = socket;
        self.interest = interest;
    }

    /// The set-up is done.
    pub(super) fn open(&mut self, shared: &mut Shared, agreed: Agreed, active: bool) {
        self.phase = Phase::Open;
        self.setup = None;
        shared.timers.set(self.key, &mut self.deadline, None);
        if std::mem::take(&mut self.half_open) {
            shared.half_open -= 1;
        }
        let segment = crate::sys::max_segment_bytes(&self.socket).unwrap_or_else(|error| {
            log::warn!("{}: TCP_MAXSEG: {error}; frames of 536 bytes", self.peer);
            536
        });
        self.tx.max_ulpdu = shared.config.max_ulpdu(segment);
        self.tx.crc = agreed.crc;
        self.rx.with_crc = agreed.crc;
        self.ird = agreed.ird;
        self.ord = agreed.ord;
        self.rx.zero_fpdu = !active && agreed.rtr == Some(RtrKind::ZeroFpdu);
        // RFC 5044 section 7.1.2: the initiator speaks first.
        self.tx.open = active;
        log::debug!(
            "{}: open, CRC {}, IRD {}, ORD {}, ready to receive {:?}, ULPDUs up to {} bytes",
            self.peer,
            agreed.crc,
            agreed.ird,
            agreed.ord,
            agreed.rtr,
            self.tx.max_ulpdu
        );
    }

    /// Queues the first frame of an initiator in peer-to-peer mode (RFC 6581 section 9), in front
    /// of all that was posted.
    pub(super) fn push_ready_to_receive(&mut self, shared: &mut Shared, kind: RtrKind) {
        match kind {
            RtrKind::ZeroFpdu => self.tx.push_front(Work::ZeroFpdu),
            RtrKind::Write => self.tx.push_front(Work::Write {
                memory: None,
                token: 1,
                offset: 0,
            }),
            RtrKind::Read => {
                let sink = shared.tokens.key().unwrap_or(RemoteKey {
                    token: 1,
                    offset: 0,
                });
                let request = ReadRequest {
                    sink_token: sink.token,
                    sink_offset: sink.offset,
                    len: 0,
                    source_token: 1,
                    source_offset: 0,
                };
                self.tx.push_front(Work::ReadRequest(request));
                self.reads.push_front(Read {
                    wr_id: None,
                    order: 0,
                    request,
                    memory: None,
                    received: 0,
                    state: ReadState::Posted,
                });
                self.requested_reads += 1;
            }
        }
    }

    /// Posts a read; it goes out when the depth allows.
    pub(super) fn push_read(&mut self, wr_id: WrId, request: ReadRequest, memory: MemSlice) {
        let order = self.next_order();
        self.reads.push_back(Read {
            wr_id: Some(wr_id),
            order,
            request,
            memory: Some(memory),
            received: 0,
            state: ReadState::Posted,
        });
        if self.phase == Phase::Open {
            self.request_reads();
        }
    }

    /// Asks for as many reads as the peer serves at once.
    pub(super) fn request_reads(&mut self) {
        while self.requested_reads < self.ord {
            let Some(read) = self.reads.get(self.requested_reads as usize) else {
                return;
            };
            self.tx
                .push(Work::ReadRequest(read.request), None, read.order);
            self.requested_reads += 1;
        }
    }

    /// Sends what is queued and tells what has left.
    pub(super) fn pump(
        &mut self,
        shared: &mut Shared,
        events: &mut Vec<FabricEvent>,
    ) -> Result<(), End> {
        let finished = &mut shared.finished;
        let result = self.tx.pump(
            &self.socket,
            &self.registrations,
            &mut shared.send_tools,
            BUDGET,
            finished,
        );
        let qp = QpKey(self.key);
        events.extend(finished.wr_ids.drain(..).map(|wr_id| FabricEvent::Done {
            qp,
            wr_id,
            status: Status::Success,
        }));
        self.inbound_reads -= std::mem::take(&mut finished.responses);
        let interest = match result? {
            Pumped::Empty => Interest::READ,
            Pumped::More => Interest::BOTH,
        };
        self.set_interest(shared, interest)
    }

    /// The socket is ready, frames flow.
    pub(super) fn handle_ready(
        &mut self,
        shared: &mut Shared,
        ready: Ready,
        events: &mut Vec<FabricEvent>,
    ) -> Result<(), End> {
        match self.phase {
            Phase::Open => {
                if ready.readable {
                    self.receive(&mut shared.receive_tools, events)?;
                    self.set_threshold()?;
                }
                self.pump(shared, events)
            }
            Phase::Draining | Phase::AwaitClose => {
                if ready.readable {
                    self.discard_input(shared)?;
                }
                self.drain(shared, events)
            }
            _ => self.handle_setup(shared, ready, events),
        }
    }

    /// Sends the last frames, then ends our direction.
    pub(super) fn drain(
        &mut self,
        shared: &mut Shared,
        events: &mut Vec<FabricEvent>,
    ) -> Result<(), End> {
        if self.phase != Phase::Draining {
            return Ok(());
        }
        self.pump(shared, events)?;
        if self.tx.is_empty() || !self.tx.open {
            rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write)
                .map_err(|error| End::transport("shutdown", &error.into()))?;
            self.phase = Phase::AwaitClose;
        }
        Ok(())
    }

    /// Nobody waits for what the peer still sends.
    fn discard_input(&mut self, shared: &mut Shared) -> Result<(), End> {
        match rustix::io::read(&self.socket, &mut shared.receive_tools.scratch[..]) {
            Ok(0) => Err(End::LOCAL),
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(()),
            Err(error) => {
                log::debug!("{}: while closing: {error}", self.peer);
                Err(End::LOCAL)
            }
        }
    }

    /// The bytes that still go out after `end`: the rest of a frame and a Terminate.
    pub(super) fn last_words(&self, end: &End) -> Option<Vec<u8>> {
        let code = end.terminate?;
        // RFC 5044 section 7.1.2: a responder sends no frame before it got one of the initiator
        // that MPA takes. Where DDP or RDMAP refuse the first, the initiator sends frames at
        // least, so it can take one.
        if !(self.tx.open || self.rx.has_seen_frame() && code.layer < 2) {
            return None;
        }
        let mut bytes = self.tx.rest_of_frame(&self.registrations)?;
        let segment = self.rx.segment().filter(|_| code.layer < 2);
        let body = terminate::emit(
            code,
            segment.map(|(len, header, _)| (len, header)),
            segment.and_then(|(_, _, request)| request),
        );
        bytes.extend_from_slice(&terminate_frame(&body, self.tx.crc));
        Some(bytes)
    }

    /// Completes all that is outstanding, then tells the end.
    pub(super) fn flush_all(
        &mut self,
        shared: &mut Shared,
        reason: EndReason,
        events: &mut Vec<FabricEvent>,
    ) {
        if std::mem::take(&mut self.half_open) {
            shared.half_open -= 1;
        }
        shared.timers.set(self.key, &mut self.deadline, None);
        let qp = QpKey(self.key);
        let sends = self.tx.drain(&mut shared.send_tools.pool);
        let mut outstanding: Vec<_> = sends
            .into_iter()
            .map(|(order, wr_id)| (order, wr_id, Status::Flushed))
            .chain(self.reads.drain(..).filter_map(|read| {
                let status = match read.state {
                    ReadState::Posted => Status::Flushed,
                    ReadState::Refused => Status::RemoteAccess,
                };
                Some((read.order, read.wr_id?, status))
            }))
            .collect();
        outstanding.sort_by_key(|(order, ..)| *order);
        if !self.told {
            return;
        }
        events.extend(
            outstanding
                .into_iter()
                .map(|(_, wr_id, status)| FabricEvent::Done { qp, wr_id, status }),
        );
        events.extend(self.recvs.drain(..).map(|(wr_id, _)| FabricEvent::Recv {
            qp,
            wr_id,
            len: 0,
            invalidated: None,
            status: Status::Flushed,
        }));
        events.push(FabricEvent::Disconnected { qp, reason });
    }
}
