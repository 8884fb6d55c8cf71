//! One connection of an endpoint: the state machine, the receive buffers, work under way.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;

use crate::fabric::{self, Fabric, ListenerKey, QpKey, SendRequest, Status, WrId};
use crate::mem::{MemSlice, Region};
use crate::proto::{self, Negotiated, Output, Params, Role};
use crate::wire::BufferDescriptor;

use super::buffers::{Pdu, PduPool, SendPool};
use super::event::{ConnectionStats, EndReason, PeerError, PeerEvent};

/// A connection. Lives from connect or accept until the fabric's last word.
pub(super) struct Connection {
    qp: QpKey,
    machine: Machine,
    receives: Receives,
    /// Sends the fabric has, oldest first; each with the message it completes.
    sending: VecDeque<Option<Message>>,
    rdma: Slab<RdmaOp>,
    /// The message that is being received.
    partial: Option<(Pdu, Option<u32>)>,
    negotiated: Option<Negotiated>,
    end: Option<EndReason>,
    stats: ConnectionStats,
    /// Addresses, once known: ours, the peer's.
    pub(super) addresses: Option<(SocketAddr, SocketAddr)>,
    /// The listener it came to.
    pub(super) listener: Option<ListenerKey>,
    /// In the endpoint's list of connections that want to be driven.
    pub(super) is_dirty: bool,
    /// The earliest entry in the endpoint's timer heap.
    pub(super) armed: Option<Instant>,
}

/// Who decides what is posted and sent.
enum Machine {
    Smbd(Box<proto::Connection<Slot, Message>>),
    /// The caller.
    Raw,
}

/// A message on its way out.
#[derive(Clone)]
pub(super) struct Message {
    pub(super) memory: MemSlice,
    pub(super) cookie: u64,
}

impl Connection {
    /// A connection with the state machine for its role.
    pub(super) fn new(
        qp: QpKey,
        params: &Params,
        role: Role,
        now: Instant,
    ) -> Result<Self, PeerError> {
        let machine = proto::Connection::new(role, params, now);
        Self::with(qp, params, Machine::Smbd(Box::new(machine)))
    }

    /// A connection without one.
    pub(super) fn raw(qp: QpKey, params: &Params) -> Result<Self, PeerError> {
        Self::with(qp, params, Machine::Raw)
    }

    fn with(qp: QpKey, params: &Params, machine: Machine) -> Result<Self, PeerError> {
        Ok(Self {
            qp,
            machine,
            receives: Receives::new(params)?,
            sending: VecDeque::new(),
            rdma: Slab::new(),
            partial: None,
            negotiated: None,
            end: None,
            stats: ConnectionStats::default(),
            addresses: None,
            listener: None,
            is_dirty: false,
            armed: None,
        })
    }

    pub(super) fn is_raw(&self) -> bool {
        matches!(self.machine, Machine::Raw)
    }

    pub(super) fn negotiated(&self) -> Option<Negotiated> {
        self.negotiated
    }

    pub(super) fn stats(&self) -> ConnectionStats {
        let mut stats = self.stats;
        if let Machine::Smbd(machine) = &self.machine {
            stats.smbd = *machine.stats();
        }
        stats
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        match &self.machine {
            Machine::Smbd(machine) => machine.next_timeout(),
            Machine::Raw => None,
        }
    }

    /// Queues an upper-layer message.
    pub(super) fn send(
        &mut self,
        now: Instant,
        message: Message,
        invalidate: Option<u32>,
    ) -> Result<(), PeerError> {
        let Machine::Smbd(machine) = &mut self.machine else {
            return Err(PeerError::WrongKind);
        };
        let length = message.memory.len();
        Ok(machine.send(now, message, length, invalidate)?)
    }

    /// Sends one message as it is, on a raw connection.
    pub(super) fn send_raw(
        &mut self,
        fabric: &mut dyn Fabric,
        message: Message,
        invalidate: Option<u32>,
    ) -> Result<(), PeerError> {
        if !self.is_raw() {
            return Err(PeerError::WrongKind);
        }
        let request = SendRequest {
            wr_id: WrId(SEND),
            header_len: 0,
            header: [0; 32],
            payload: Some(message.memory.clone()).filter(|memory| !memory.is_empty()),
            invalidate,
        };
        fabric.post_send(self.qp, request)?;
        self.sending.push_back(Some(message));
        Ok(())
    }

    /// Moves `memory` from or to the concatenation of `descriptors`, starting `skip` bytes into it
    /// (`[MS-SMBD] 3.1.4.5` and 3.1.4.6).
    pub(super) fn rdma(
        &mut self,
        fabric: &mut dyn Fabric,
        direction: Direction,
        memory: &MemSlice,
        descriptors: &[BufferDescriptor],
        skip: u64,
        cookie: u64,
    ) -> Result<(), PeerError> {
        let total: u64 = descriptors.iter().map(|d| u64::from(d.length)).sum();
        if skip
            .checked_add(memory.len() as u64)
            .is_none_or(|end| end > total)
        {
            let len = memory.len();
            return Err(PeerError::Range(format!(
                "{len} bytes at {skip} are not inside the {total} bytes of the descriptors"
            )));
        }
        let op = self.rdma.insert(RdmaOp {
            cookie,
            bytes: memory.len() as u64,
            direction,
            parts: 0,
            status: Status::Success,
        });
        let wr_id = WrId(RDMA | op as u64);
        let mut skip = skip;
        let mut done = 0;
        let mut failed = None;
        for descriptor in descriptors {
            let length = u64::from(descriptor.length);
            if skip >= length {
                skip -= length;
                continue;
            }
            let part = (length - skip).min((memory.len() - done) as u64) as usize;
            if part == 0 {
                break;
            }
            let piece = memory.slice(done, part)?;
            let offset = descriptor.offset.wrapping_add(skip);
            let token = descriptor.token;
            let posted = match direction {
                Direction::Read => fabric.post_read(self.qp, wr_id, piece, token, offset),
                Direction::Write => fabric.post_write(self.qp, wr_id, piece, token, offset),
            };
            if let Err(error) = posted {
                failed = Some(error);
                break;
            }
            self.rdma[op].parts += 1;
            done += part;
            skip = 0;
        }
        match failed {
            // Parts already posted still complete, and then tell the failure.
            Some(_) if self.rdma[op].parts > 0 => {
                self.rdma[op].status = Status::Failed;
                Ok(())
            }
            Some(error) => {
                self.rdma.remove(op);
                Err(error.into())
            }
            None => Ok(()),
        }
    }

    /// The fabric is connected.
    pub(super) fn handle_established(&mut self, now: Instant) {
        if let Machine::Smbd(machine) = &mut self.machine {
            machine.handle_established(now);
        }
    }

    /// A posted receive came back.
    pub(super) fn handle_recv(
        &mut self,
        now: Instant,
        wr_id: WrId,
        len: usize,
        invalidated: Option<u32>,
        status: Status,
        context: &mut Context<'_>,
    ) {
        let Ok(slot) = u16::try_from(wr_id.0) else {
            return;
        };
        let slot = Slot(slot);
        if status != Status::Success {
            self.receives.put(slot);
            return;
        }
        match &mut self.machine {
            Machine::Smbd(machine) => {
                let mut header = [0; 32];
                let head = len.min(header.len());
                if self.receives.read(slot, 0, &mut header[..head]).is_err() {
                    self.receives.put(slot);
                    return;
                }
                machine.handle_receive(now, &header[..head], len, slot, invalidated);
            }
            Machine::Raw => {
                let mut message = context.pdus.take();
                let copied = self.receives.read(slot, 0, message.grow(len));
                self.receives.put(slot);
                self.post_receives(1, context.fabric);
                if copied.is_ok() {
                    let connection = self.qp;
                    context.events.push_back(PeerEvent::Raw {
                        connection,
                        message,
                        invalidated,
                    });
                }
            }
        }
    }

    /// A send, WRITE or READ came back.
    pub(super) fn handle_done(
        &mut self,
        now: Instant,
        wr_id: WrId,
        status: Status,
        context: &mut Context<'_>,
    ) {
        let connection = self.qp;
        if wr_id.0 & RDMA != 0 {
            let index = (wr_id.0 & !RDMA) as usize;
            let Some(op) = self.rdma.get_mut(index) else {
                return;
            };
            if op.status == Status::Success {
                op.status = status;
            }
            op.parts -= 1;
            if op.parts == 0 {
                let RdmaOp {
                    cookie,
                    bytes,
                    direction,
                    status,
                    ..
                } = self.rdma.remove(index);
                if status == Status::Success {
                    match direction {
                        Direction::Read => self.stats.rdma_read_bytes += bytes,
                        Direction::Write => self.stats.rdma_write_bytes += bytes,
                    }
                }
                context.events.push_back(PeerEvent::Rdma {
                    connection,
                    cookie,
                    status,
                });
            }
            return;
        }
        let Some(completes) = self.sending.pop_front() else {
            return;
        };
        if let Machine::Smbd(machine) = &mut self.machine {
            machine.handle_send_done(now, 1);
        }
        if let Some(message) = completes {
            context.release(&message);
            if status == Status::Success {
                let cookie = message.cookie;
                context
                    .events
                    .push_back(PeerEvent::Sent { connection, cookie });
            }
        }
    }

    /// The fabric's last word: tells the end.
    pub(super) fn handle_disconnected(
        mut self,
        now: Instant,
        reason: fabric::EndReason,
        context: &mut Context<'_>,
    ) {
        if let Machine::Smbd(machine) = &mut self.machine {
            machine.handle_disconnected(now);
            self.drive(now, context);
        }
        if let Machine::Smbd(machine) = &mut self.machine {
            while let Some(message) = machine.take_unsent() {
                context.release(&message);
            }
        }
        // The machine only knows that the connection broke; the fabric knows why.
        let reason = match self.end.take() {
            None | Some(EndReason::Proto(proto::EndReason::Disconnected)) => {
                EndReason::Fabric(reason)
            }
            Some(reason) => reason,
        };
        let stats = self.stats();
        let connection = self.qp;
        context.events.push_back(PeerEvent::Disconnected {
            connection,
            reason,
            stats,
        });
    }

    /// Stops or resumes posting receives.
    pub(super) fn set_receiving(&mut self, now: Instant, is_on: bool) {
        self.receives.is_stopped = !is_on;
        if let (true, Machine::Smbd(machine)) = (is_on, &mut self.machine) {
            machine.handle_receives_available(now);
        }
    }

    /// A timer of the state machine may be due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if let Machine::Smbd(machine) = &mut self.machine {
            machine.handle_timeout(now);
        }
    }

    /// Ends the connection in good order: what is queued still leaves.
    pub(super) fn close(&mut self, now: Instant, fabric: &mut dyn Fabric) {
        match &mut self.machine {
            Machine::Smbd(machine) => machine.close(now),
            Machine::Raw => fabric.disconnect(now, self.qp, LINGER),
        }
    }

    /// Carries out what the state machine wants.
    pub(super) fn drive(&mut self, now: Instant, context: &mut Context<'_>) {
        if self.is_raw() {
            if !self.receives.is_posted {
                self.receives.is_posted = true;
                let count = self.receives.free.len();
                self.post_receives(u16::try_from(count).unwrap_or(u16::MAX), context.fabric);
            }
            return;
        }
        loop {
            let Machine::Smbd(machine) = &mut self.machine else {
                return;
            };
            let Some(output) = machine.poll(now) else {
                return;
            };
            match output {
                Output::PostReceives(count) => {
                    let posted = self.post_receives(count, context.fabric);
                    if let Machine::Smbd(machine) = &mut self.machine {
                        machine.handle_posted(posted);
                    }
                }
                Output::Send {
                    header,
                    payload,
                    last,
                    invalidate,
                } => {
                    self.post_send(now, &header, payload, last, invalidate, context);
                }
                Output::Deliver {
                    buffer,
                    data_offset,
                    data_length,
                    remaining,
                    first: _,
                    last,
                    invalidated,
                } => {
                    let (pdu, token) = self
                        .partial
                        .get_or_insert_with(|| (context.pdus.take(), None));
                    if pdu.is_empty() {
                        pdu.reserve(data_length.saturating_add(remaining as usize));
                    }
                    let _ = self
                        .receives
                        .read(buffer, data_offset, pdu.grow(data_length));
                    *token = token.or(invalidated);
                    self.receives.put(buffer);
                    if last {
                        if let Some((pdu, invalidated)) = self.partial.take() {
                            let connection = self.qp;
                            let event = PeerEvent::Pdu {
                                connection,
                                pdu,
                                invalidated,
                            };
                            context.events.push_back(event);
                        }
                    }
                }
                Output::Recycle { buffer } => self.receives.put(buffer),
                Output::Negotiated(negotiated) => {
                    self.negotiated = Some(negotiated);
                    let connection = self.qp;
                    context.events.push_back(PeerEvent::Connected {
                        connection,
                        negotiated,
                    });
                }
                Output::Disconnect { reason, drain } => {
                    self.end.get_or_insert(EndReason::Proto(reason));
                    let linger = if drain { LINGER } else { Duration::ZERO };
                    context.fabric.disconnect(now, self.qp, linger);
                }
            }
        }
    }

    fn post_receives(&mut self, count: u16, fabric: &mut dyn Fabric) -> u16 {
        let mut posted = 0;
        while posted < count {
            let Some((slot, memory)) = self.receives.take() else {
                break;
            };
            if fabric
                .post_recv(self.qp, WrId(slot.0.into()), memory)
                .is_err()
            {
                self.receives.put(slot);
                break;
            }
            posted += 1;
        }
        posted
    }

    fn post_send(
        &mut self,
        now: Instant,
        header: &[u8],
        payload: Option<proto::Payload<Message>>,
        last: bool,
        invalidate: Option<u32>,
        context: &mut Context<'_>,
    ) {
        let mut request = SendRequest {
            wr_id: WrId(SEND),
            header_len: header.len() as u8,
            header: [0; 32],
            payload: None,
            invalidate,
        };
        if let Some(room) = request.header.get_mut(..header.len()) {
            room.copy_from_slice(header);
        }
        let mut completes = None;
        if let Some(proto::Payload {
            message,
            offset,
            length,
        }) = payload
        {
            // The machine cuts pieces inside the length that `send` told it.
            request.payload = message.memory.slice(offset, length).ok();
            completes = last.then_some(message);
        }
        if context.fabric.post_send(self.qp, request).is_ok() {
            self.sending.push_back(completes);
        } else {
            // Only a dead connection refuses a send inside the window; its end follows.
            if let Some(message) = completes {
                context.release(&message);
            }
            context.fabric.disconnect(now, self.qp, Duration::ZERO);
        }
    }
}

/// What of the endpoint a connection needs to work with.
pub(super) struct Context<'a> {
    pub(super) fabric: &'a mut dyn Fabric,
    pub(super) events: &'a mut VecDeque<PeerEvent>,
    pub(super) pdus: &'a mut PduPool,
    pub(super) sends: &'a mut SendPool,
}

impl Context<'_> {
    fn release(&mut self, message: &Message) {
        self.sends.put(&message.memory);
    }
}

/// Which way RDMA goes, seen from us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the peer's memory to ours.
    Read,
    /// From our memory to the peer's.
    Write,
}

struct RdmaOp {
    cookie: u64,
    bytes: u64,
    direction: Direction,
    /// Work requests not back yet.
    parts: u32,
    status: Status,
}

/// A receive buffer, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot(u16);

/// The receive buffers of a connection: one region, committed as it is used. The free list is a
/// stack, so that a quiet connection touches few pages.
struct Receives {
    region: Arc<Region>,
    size: usize,
    free: Vec<u16>,
    /// Raw connections: the first receives stand.
    is_posted: bool,
    is_stopped: bool,
}

impl Receives {
    fn new(params: &Params) -> Result<Self, PeerError> {
        let size = params.receive_buffer_size() as usize;
        // One more than can be granted: the one that the negotiation uses.
        let count = params.receive_credit_max.saturating_add(1);
        let region = Region::anonymous(size * usize::from(count))?;
        Ok(Self {
            region,
            size,
            free: (0..count).rev().collect(),
            is_posted: false,
            is_stopped: false,
        })
    }

    fn take(&mut self) -> Option<(Slot, MemSlice)> {
        if self.is_stopped {
            return None;
        }
        let slot = self.free.pop()?;
        let memory = MemSlice::new(&self.region, usize::from(slot) * self.size, self.size).ok()?;
        Some((Slot(slot), memory))
    }

    fn put(&mut self, slot: Slot) {
        self.free.push(slot.0);
    }

    fn read(&self, slot: Slot, offset: usize, bytes: &mut [u8]) -> Result<(), PeerError> {
        Ok(self
            .region
            .read(usize::from(slot.0) * self.size + offset, bytes)?)
    }
}

/// Kinds of work requests in the upper bits of a [`WrId`]; receives have neither.
const SEND: u64 = 1 << 62;
const RDMA: u64 = 1 << 63;
/// How long the fabric may take to get rid of what was handed to it before the end.
const LINGER: Duration = Duration::from_secs(2);
