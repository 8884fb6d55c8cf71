//! One SMB Direct connection: the MS-SMBD machine on one side, a queue pair on the other, and the
//! memory that both use.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use slab::Slab;

use super::clients::Clients;
use super::handle::{Handle, HandleId};
use crate::fabric::{self, Fabric, QpKey, SendRequest, Status, WrId};
use crate::mem::{MemSlice, Region};
use crate::proto::{self, Output, Role};
use crate::ring::{flags, CqEntry, CqKind, Descriptor, Segment};
use crate::router;

/// Receives posted from the engine's own memory until the connection has an owner: enough for an
/// SMB2 NEGOTIATE in small segments, little enough for many strangers.
pub(super) const PRIVATE_RECEIVES: u16 = 8;

/// Bytes of PDUs held for a connection that never had an owner. A NEGOTIATE takes some hundred.
const HELD_MAX: usize = router::MAX_FIRST_PDU;

/// How long sends may take to leave after a disconnect.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// RDMA work requests of one connection in the fabric at the same time. More wait here.
const RDMA_WINDOW: usize = 256;

/// A receive, from its posting until its bytes were told or are of no more use.
struct Recv {
    home: Home,
    slot: u32,
    memory: MemSlice,
}

/// Whose memory a receive lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Home {
    /// The connection's memory in the engine.
    Private,
    /// A handle's area.
    Handle(HandleId),
}

/// Where a connection is on its way to an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The fabric or MS-SMBD is being set up.
    Negotiating,
    /// Waits for its first PDU.
    Routing,
    /// The engine has answered NEGOTIATE and waits for SESSION_SETUP.
    AwaitingSession,
    /// Offered to the parent.
    Offered,
    /// Belongs to a handle.
    Attached,
    /// Belongs to a handle (or did until its process ended), and may be taken over with a token.
    Exported,
    /// On its way out.
    Closing,
}

impl Phase {
    /// The word for logs and status.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Negotiating => "negotiating",
            Self::Routing => "awaiting NEGOTIATE",
            Self::AwaitingSession => "awaiting SESSION_SETUP",
            Self::Offered => "offered",
            Self::Attached => "attached",
            Self::Exported => "exported",
            Self::Closing => "closing",
        }
    }
}

/// The owner's view of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) handle: HandleId,
    /// Index in the handle's connection table.
    pub(super) index: usize,
    /// The id the owner knows: serial and index.
    pub(super) id: u64,
}

/// Memory of the engine for receives before there is an owner.
struct Private {
    region: std::sync::Arc<Region>,
    slot_size: usize,
    free: Vec<u32>,
}

/// An upper-layer message on its way out.
struct Message {
    memory: MemSlice,
    invalidate: Option<u32>,
    /// Whom to tell; none for the engine's own.
    told: Option<(Owner, u64)>,
}

/// An RDMA operation of the owner.
struct RdmaOp {
    owner: Owner,
    cookie: u64,
    read: bool,
    segments: Vec<Segment>,
    descriptors: Vec<Descriptor>,
    next_segment: usize,
    next_descriptor: usize,
    /// What is left of the current segment: area offset, bytes.
    segment: (u64, u64),
    /// What is left of the current descriptor: peer's offset, token, bytes.
    descriptor: (u64, u32, u32),
    in_flight: u32,
    posted_all: bool,
    bytes: u64,
    error: i32,
}

/// What a work request in the fabric stands for.
#[derive(Clone, Copy)]
enum Wr {
    /// A message of MS-SMBD, with the upper-layer message it ends.
    Send { last_of: Option<u32> },
    /// A piece of an RDMA operation.
    Rdma { op: u32, bytes: u32 },
}

/// What the owner has submitted and the connection has not started yet, in order.
#[derive(Clone, Copy)]
enum Work {
    Pdu(u32),
    Rdma(u32),
    Close,
}

/// A PDU kept until there is an owner.
pub(super) struct HeldPdu {
    pub(super) bytes: Vec<u8>,
    pub(super) flags: u16,
    pub(super) invalidated: Option<u32>,
}

/// Bytes moved by RDMA, for status.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RdmaCounters {
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) read_bytes: u64,
    pub(super) write_bytes: u64,
}

/// One connection.
pub(super) struct Conn {
    pub(super) serial: u64,
    pub(super) fabric: usize,
    pub(super) qp: QpKey,
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) role: Role,
    pub(super) machine: proto::Connection<u32, u32>,
    pub(super) phase: Phase,
    pub(super) owner: Option<Owner>,
    pub(super) token: Option<[u8; 16]>,
    pub(super) created: Instant,
    /// When the phase has to be over.
    pub(super) deadline: Option<Instant>,
    /// What the engine's timer queue holds for this connection.
    pub(super) timer: Option<Instant>,
    /// Has to be pumped.
    pub(super) touched: bool,
    pub(super) max_rdma_reads: u32,
    pub(super) rdma: RdmaCounters,
    pub(super) held: VecDeque<HeldPdu>,
    /// NEGOTIATE request and response, when the engine has answered.
    pub(super) negotiate: Vec<HeldPdu>,
    /// The first reason for the end, as the owner's errno and as text.
    pub(super) end: Option<(i32, String)>,
    private: Private,
    recvs: Slab<Recv>,
    messages: Slab<Message>,
    ops: Slab<RdmaOp>,
    wrs: Slab<Wr>,
    rdma_in_fabric: usize,
    work: VecDeque<Work>,
    assembly: Vec<u8>,
    /// The owner has got the first fragments of a PDU and not its last.
    half_delivered: bool,
    disconnecting: bool,
    receive_credit_max: u16,
}

impl Conn {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        serial: u64,
        fabric: usize,
        qp: QpKey,
        local: SocketAddr,
        peer: SocketAddr,
        role: Role,
        params: &proto::Params,
        now: Instant,
    ) -> std::io::Result<Self> {
        let slot_size = params.receive_buffer_size() as usize;
        let mut machine = proto::Connection::new(role, params, now);
        machine.set_receive_limit(PRIVATE_RECEIVES);
        Ok(Self {
            serial,
            fabric,
            qp,
            local,
            peer,
            role,
            machine,
            phase: Phase::Negotiating,
            owner: None,
            token: None,
            created: now,
            deadline: None,
            timer: None,
            touched: false,
            max_rdma_reads: 0,
            rdma: RdmaCounters::default(),
            held: VecDeque::new(),
            negotiate: Vec::new(),
            end: None,
            private: Private {
                region: Region::anonymous(slot_size * usize::from(PRIVATE_RECEIVES))?,
                slot_size,
                free: (0..u32::from(PRIVATE_RECEIVES)).collect(),
            },
            recvs: Slab::new(),
            messages: Slab::new(),
            ops: Slab::new(),
            wrs: Slab::new(),
            rdma_in_fabric: 0,
            work: VecDeque::new(),
            assembly: Vec::new(),
            half_delivered: false,
            disconnecting: false,
            receive_credit_max: params.receive_credit_max,
        })
    }

    /// Keeps the first reason for the end.
    pub(super) fn latch_end(&mut self, errno: i32, text: impl Into<String>) {
        if self.end.is_none() {
            self.end = Some((errno, text.into()));
        }
    }

    /// Operations of the owner whose completion it was not told yet.
    pub(super) fn has_operations(&self) -> bool {
        !self.messages.is_empty() || !self.ops.is_empty()
    }

    /// Whether the owner has got a part of a PDU whose rest is still to come.
    pub(super) fn half_delivered(&self) -> bool {
        self.half_delivered
    }

    /// The owner gets PDUs now; it may not during an export.
    fn delivers_to(&self) -> Option<Owner> {
        if self.phase == Phase::Attached {
            self.owner
        } else {
            None
        }
    }

    /// Lets the connection post as many receives as its share of the owner's slots allows.
    pub(super) fn set_share(&mut self, slots: usize) {
        let limit = slots.clamp(
            usize::from(PRIVATE_RECEIVES),
            usize::from(self.receive_credit_max),
        );
        self.machine.set_receive_limit(limit as u16);
    }

    /// A posted receive was filled or flushed.
    pub(super) fn on_recv(
        &mut self,
        clients: &mut Clients,
        now: Instant,
        wr_id: WrId,
        len: usize,
        invalidated: Option<u32>,
        status: Status,
    ) {
        let buffer = wr_id.0 as u32;
        let Some(recv) = self.recvs.get(buffer as usize) else {
            return;
        };
        if status != Status::Success {
            self.recycle(clients, buffer);
            return;
        }
        // What is parsed is this copy; the owner may change its area at any time.
        let mut first = [0; 32];
        let head = len.min(first.len()).min(recv.memory.len());
        if recv.memory.read(0, &mut first[..head]).is_ok() {
            self.machine
                .handle_receive(now, &first[..head], len, buffer, invalidated);
        }
    }

    /// A posted send, write or read ended.
    pub(super) fn on_done(
        &mut self,
        clients: &mut Clients,
        now: Instant,
        wr_id: WrId,
        status: Status,
    ) {
        match self.wrs.try_remove(wr_id.0 as usize) {
            None => {}
            Some(Wr::Send { last_of }) => {
                if status == Status::Success {
                    self.machine.handle_send_done(now, 1);
                }
                if let Some(message) = last_of {
                    let error = if status == Status::Success {
                        0
                    } else {
                        self.end_errno()
                    };
                    self.message_done(clients, message, error);
                }
            }
            Some(Wr::Rdma { op, bytes }) => {
                self.rdma_in_fabric -= 1;
                let error = match status {
                    Status::Success => 0,
                    Status::RemoteAccess => -libc::EACCES,
                    _ => self.end_errno(),
                };
                if let Some(op) = self.ops.get_mut(op as usize) {
                    op.in_flight -= 1;
                    if error == 0 {
                        op.bytes += u64::from(bytes);
                    } else if op.error == 0 {
                        op.error = error;
                    }
                }
                self.finish_op_if_done(clients, op);
            }
        }
    }

    /// The errno for operations that the end of the connection has cut off.
    fn end_errno(&self) -> i32 {
        match &self.end {
            Some((errno, _)) if *errno != 0 => *errno,
            _ => -libc::ECONNRESET,
        }
    }

    fn message_done(&mut self, clients: &mut Clients, message: u32, error: i32) {
        let Some(message) = self.messages.try_remove(message as usize) else {
            return;
        };
        let Some((owner, cookie)) = message.told else {
            return;
        };
        if let Some(handle) = clients.handle(owner.handle) {
            handle.outstanding = handle.outstanding.saturating_sub(1);
            handle.push(&CqEntry {
                status: error,
                cookie,
                data_length: message.memory.len() as u32,
                ..CqEntry::new(CqKind::Sent, owner.id)
            });
        }
    }

    fn finish_op_if_done(&mut self, clients: &mut Clients, key: u32) {
        match self.ops.get(key as usize) {
            Some(op) if op.in_flight == 0 && op.posted_all => {}
            _ => return,
        }
        let op = self.ops.remove(key as usize);
        if op.error == 0 {
            if op.read {
                self.rdma.reads += 1;
                self.rdma.read_bytes += op.bytes;
            } else {
                self.rdma.writes += 1;
                self.rdma.write_bytes += op.bytes;
            }
        }
        if let Some(handle) = clients.handle(op.owner.handle) {
            handle.outstanding = handle.outstanding.saturating_sub(1);
            handle.push(&CqEntry {
                status: op.error,
                cookie: op.cookie,
                data_length: u32::try_from(op.bytes).unwrap_or(u32::MAX),
                ..CqEntry::new(CqKind::RdmaDone, op.owner.id)
            });
        }
    }

    /// Queues a PDU of the owner; its memory is in the owner's area.
    pub(super) fn submit_pdu(
        &mut self,
        owner: Owner,
        cookie: u64,
        memory: MemSlice,
        invalidate: Option<u32>,
    ) {
        let message = Message {
            memory,
            invalidate,
            told: Some((owner, cookie)),
        };
        let key = self.messages.insert(message) as u32;
        self.work.push_back(Work::Pdu(key));
    }

    /// Queues a PDU of the engine itself.
    pub(super) fn submit_own_pdu(&mut self, memory: MemSlice) {
        let key = self.messages.insert(Message {
            memory,
            invalidate: None,
            told: None,
        }) as u32;
        self.work.push_back(Work::Pdu(key));
    }

    /// Queues an RDMA operation of the owner; the lists are checked copies.
    pub(super) fn submit_rdma(
        &mut self,
        owner: Owner,
        cookie: u64,
        read: bool,
        segments: Vec<Segment>,
        descriptors: Vec<Descriptor>,
    ) {
        let op = RdmaOp {
            owner,
            cookie,
            read,
            segments,
            descriptors,
            next_segment: 0,
            next_descriptor: 0,
            segment: (0, 0),
            descriptor: (0, 0, 0),
            in_flight: 0,
            posted_all: false,
            bytes: 0,
            error: 0,
        };
        let key = self.ops.insert(op) as u32;
        self.work.push_back(Work::Rdma(key));
    }

    /// Ends the connection after what was submitted before.
    pub(super) fn submit_close(&mut self, now: Instant) {
        if self.machine.negotiated().is_some() {
            self.work.push_back(Work::Close);
        } else {
            self.machine.close(now);
        }
    }

    /// Most receives this connection may have posted.
    pub(super) fn receive_credit_max(&self) -> u16 {
        self.receive_credit_max
    }

    /// Starts what was submitted, in its order, as far as windows allow.
    fn start_work(&mut self, fabric: &mut dyn Fabric, clients: &mut Clients, now: Instant) {
        while let Some(&work) = self.work.front() {
            match work {
                Work::Pdu(key) => {
                    let Some(message) = self.messages.get(key as usize) else {
                        self.work.pop_front();
                        continue;
                    };
                    let (len, invalidate) = (message.memory.len(), message.invalidate);
                    match self.machine.send(now, key, len, invalidate) {
                        Ok(()) => {}
                        Err(proto::SendError::QueueFull { .. }) => return,
                        Err(error) => {
                            let errno = match error {
                                proto::SendError::TooLong { .. } => -libc::EMSGSIZE,
                                proto::SendError::Empty => -libc::EINVAL,
                                _ => -libc::ENOTCONN,
                            };
                            debug!("connection {}: PDU not sent: {error}", self.serial);
                            self.message_done(clients, key, errno);
                        }
                    }
                    self.work.pop_front();
                }
                Work::Close => {
                    self.machine.close(now);
                    self.work.clear();
                }
                Work::Rdma(key) => {
                    if !self.post_rdma(fabric, clients, key) {
                        return;
                    }
                    self.work.pop_front();
                    self.finish_op_if_done(clients, key);
                }
            }
        }
    }

    /// Posts work requests of an RDMA operation; false: the window is full.
    fn post_rdma(&mut self, fabric: &mut dyn Fabric, clients: &mut Clients, key: u32) -> bool {
        let Some(op) = self.ops.get_mut(key as usize) else {
            return true;
        };
        loop {
            if self.rdma_in_fabric >= RDMA_WINDOW {
                return false;
            }
            if op.error != 0 {
                break;
            }
            if op.segment.1 == 0 {
                match op.segments.get(op.next_segment) {
                    None => break,
                    Some(segment) => {
                        op.segment = (segment.offset, segment.length);
                        op.next_segment += 1;
                        continue;
                    }
                }
            }
            if op.descriptor.2 == 0 {
                match op.descriptors.get(op.next_descriptor) {
                    None => {
                        op.error = -libc::EINVAL;
                        break;
                    }
                    Some(d) => {
                        op.descriptor = (d.offset, d.token, d.length);
                        op.next_descriptor += 1;
                        continue;
                    }
                }
            }
            let bytes = op.segment.1.min(u64::from(op.descriptor.2)) as u32;
            let memory = clients
                .handle(op.owner.handle)
                .and_then(|h| h.side.rdma_slice(op.segment.0, bytes.into()).ok());
            let Some(memory) = memory else {
                op.error = -libc::EINVAL;
                break;
            };
            let wr = self.wrs.insert(Wr::Rdma { op: key, bytes });
            let (remote, token, _) = op.descriptor;
            let wr_id = WrId(wr as u64);
            let posted = if op.read {
                fabric.post_read(self.qp, wr_id, memory, token, remote)
            } else {
                fabric.post_write(self.qp, wr_id, memory, token, remote)
            };
            if let Err(error) = posted {
                debug!("connection {}: RDMA not posted: {error}", self.serial);
                self.wrs.remove(wr);
                op.error = -libc::ECONNRESET;
                break;
            }
            op.in_flight += 1;
            self.rdma_in_fabric += 1;
            op.segment = (
                op.segment.0 + u64::from(bytes),
                op.segment.1 - u64::from(bytes),
            );
            op.descriptor = (
                remote.wrapping_add(u64::from(bytes)),
                token,
                op.descriptor.2 - bytes,
            );
        }
        op.posted_all = true;
        true
    }

    /// Carries out what the machine wants. True: a held PDU waits for routing.
    pub(super) fn pump(
        &mut self,
        key: usize,
        fabric: &mut dyn Fabric,
        clients: &mut Clients,
        now: Instant,
    ) -> bool {
        self.touched = false;
        loop {
            if self.machine.negotiated().is_some() && !self.disconnecting {
                self.start_work(fabric, clients, now);
            }
            let mut sent = false;
            while let Some(output) = self.machine.poll(now) {
                match output {
                    Output::PostReceives(count) => self.post_receives(key, fabric, clients, count),
                    Output::Send {
                        header,
                        payload,
                        last,
                        invalidate,
                    } => {
                        sent = true;
                        self.send(fabric, &header, payload, last, invalidate);
                    }
                    Output::Deliver {
                        buffer,
                        data_offset,
                        data_length,
                        remaining,
                        last,
                        invalidated,
                        ..
                    } => {
                        let piece = Piece {
                            data_offset,
                            data_length,
                            remaining,
                            last,
                            invalidated,
                        };
                        self.deliver(clients, buffer, &piece, now);
                    }
                    Output::Recycle { buffer } => self.recycle(clients, buffer),
                    Output::Negotiated(_) => self.phase = Phase::Routing,
                    Output::Disconnect { reason, drain } => {
                        self.latch_end(errno_of_proto(&reason), reason.to_string());
                        self.disconnect(fabric, now, if drain { LINGER } else { Duration::ZERO });
                    }
                }
            }
            // Sends make room in the machine's queue for work that waits.
            if !sent || self.work.is_empty() {
                break;
            }
        }
        !self.held.is_empty() && matches!(self.phase, Phase::Routing | Phase::AwaitingSession)
    }

    fn post_receives(
        &mut self,
        key: usize,
        fabric: &mut dyn Fabric,
        clients: &mut Clients,
        count: u16,
    ) {
        let mut posted = 0;
        let owner = self
            .owner
            .filter(|_| matches!(self.phase, Phase::Attached | Phase::Exported));
        while posted < count {
            let taken = match owner.map(|o| (o.handle, clients.handle(o.handle))) {
                Some((id, Some(handle))) => handle
                    .take_slot()
                    .map(|(slot, m)| (Home::Handle(id), slot, m)),
                _ => self
                    .private
                    .take()
                    .map(|(slot, m)| (Home::Private, slot, m)),
            };
            let Some((home, slot, memory)) = taken else {
                break;
            };
            let buffer = self.recvs.insert(Recv {
                home,
                slot,
                memory: memory.clone(),
            });
            if let Err(error) = fabric.post_recv(self.qp, WrId(buffer as u64), memory) {
                debug!("connection {}: receive not posted: {error}", self.serial);
                self.recycle(clients, buffer as u32);
                break;
            }
            posted += 1;
        }
        if posted < count {
            if let Some(handle) = owner.and_then(|o| clients.handle(o.handle)) {
                if !handle.starved.contains(&key) {
                    handle.starved.push(key);
                }
                handle.want_returns();
            }
        }
        self.machine.handle_posted(posted);
    }

    fn send(
        &mut self,
        fabric: &mut dyn Fabric,
        header: &[u8],
        payload: Option<proto::Payload<u32>>,
        last: bool,
        invalidate: Option<u32>,
    ) {
        let mut bytes = [0; 32];
        let header_len = header.len().min(bytes.len());
        bytes[..header_len].copy_from_slice(&header[..header_len]);
        let mut last_of = None;
        let payload = payload.and_then(|piece| {
            if last {
                last_of = Some(piece.message);
            }
            let message = self.messages.get(piece.message as usize)?;
            message.memory.slice(piece.offset, piece.length).ok()
        });
        let wr = self.wrs.insert(Wr::Send { last_of });
        let request = SendRequest {
            wr_id: WrId(wr as u64),
            header_len: header_len as u8,
            header: bytes,
            payload,
            invalidate,
        };
        if let Err(error) = fabric.post_send(self.qp, request) {
            // The fabric has lost the connection; its Disconnected event is on the way.
            debug!("connection {}: send not posted: {error}", self.serial);
        }
    }

    /// A piece of a PDU came.
    fn deliver(&mut self, clients: &mut Clients, buffer: u32, piece: &Piece, now: Instant) {
        if let Some(owner) = self.delivers_to().filter(|_| self.assembly.is_empty()) {
            if let Some(handle) = clients.handle(owner.handle) {
                if let Some(slot) = self.to_owner_slot(handle, owner, buffer, piece) {
                    self.half_delivered = !piece.last;
                    handle.push(&piece.entry(owner.id, slot));
                    return;
                }
            }
        }
        self.hold(clients, buffer, piece, now);
    }

    /// The slot of the owner's area that holds the piece; copied there when it lies elsewhere (a
    /// receive that was posted before the connection had this owner). On success the receive is
    /// used up.
    fn to_owner_slot(
        &mut self,
        handle: &mut Handle,
        owner: Owner,
        buffer: u32,
        piece: &Piece,
    ) -> Option<u32> {
        let recv = self.recvs.get(buffer as usize)?;
        if recv.home == Home::Handle(owner.handle) {
            let slot = recv.slot;
            self.recvs.remove(buffer as usize);
            return Some(slot);
        }
        let (slot, memory) = handle.take_slot()?;
        let copied = recv
            .memory
            .slice(piece.data_offset, piece.data_length)
            .and_then(|from| {
                let to = memory.slice(piece.data_offset, piece.data_length)?;
                from.region()
                    .copy_to(from.offset(), to.region(), to.offset(), from.len())
            });
        if copied.is_err() {
            handle.release_slot(slot);
            return None;
        }
        if recv.home == Home::Private {
            self.private.free.push(recv.slot);
        }
        self.recvs.remove(buffer as usize);
        Some(slot)
    }

    /// Keeps a piece until the connection has an owner that takes PDUs.
    fn hold(&mut self, clients: &mut Clients, buffer: u32, piece: &Piece, now: Instant) {
        let limit = if self.owner.is_some() {
            self.machine
                .negotiated()
                .map_or(0, |n| n.max_fragmented_receive_size as usize)
        } else {
            0
        };
        let limit = limit.max(HELD_MAX);
        let held: usize = self.held.iter().map(|pdu| pdu.bytes.len()).sum();
        let source = self
            .recvs
            .get(buffer as usize)
            .map(|recv| recv.memory.clone());
        let fits = held + self.assembly.len() + piece.data_length <= limit;
        match source.and_then(|s| s.slice(piece.data_offset, piece.data_length).ok()) {
            Some(bytes) if fits => self.assembly.extend_from_slice(&bytes.to_vec()),
            _ => {
                self.latch_end(
                    -libc::EPROTO,
                    format!("more than {limit} bytes before the connection has an owner"),
                );
                self.machine.close(now);
            }
        }
        self.recycle(clients, buffer);
        if piece.last && fits {
            let bytes = std::mem::take(&mut self.assembly);
            let pdu = HeldPdu {
                bytes,
                flags: 0,
                invalidated: piece.invalidated,
            };
            match self.delivers_to() {
                Some(owner) => self.deliver_held(clients, owner, pdu),
                None => self.held.push_back(pdu),
            }
        }
    }

    /// Hands a PDU that the engine holds to the owner, in as many slots as it takes.
    pub(super) fn deliver_held(&mut self, clients: &mut Clients, owner: Owner, pdu: HeldPdu) {
        let Some(handle) = clients.handle(owner.handle) else {
            return;
        };
        let slot_size = handle.side.layout().options().receive_slot_size as usize;
        let mut rest = pdu.bytes.as_slice();
        let mut first = true;
        while first || !rest.is_empty() {
            let Some((slot, memory)) = handle.take_slot() else {
                self.latch_end(-libc::ENOBUFS, "no receive slot for a PDU handed over");
                return;
            };
            let (chunk, left) = rest.split_at(rest.len().min(slot_size));
            if memory.write(0, chunk).is_err() {
                handle.release_slot(slot);
                return;
            }
            rest = left;
            let piece = Piece {
                data_offset: 0,
                data_length: chunk.len(),
                remaining: rest.len() as u32,
                last: rest.is_empty(),
                invalidated: pdu.invalidated,
            };
            let mut entry = piece.entry(owner.id, slot);
            entry.flags |= pdu.flags;
            handle.push(&entry);
            first = false;
        }
    }

    /// A receive is of no more use.
    fn recycle(&mut self, clients: &mut Clients, buffer: u32) {
        match self.recvs.try_remove(buffer as usize) {
            None => {}
            Some(Recv {
                home: Home::Private,
                slot,
                ..
            }) => self.private.free.push(slot),
            Some(Recv {
                home: Home::Handle(id),
                slot,
                ..
            }) => {
                if let Some(handle) = clients.handle(id) {
                    handle.release_slot(slot);
                }
            }
        }
    }

    /// Ends the connection in the fabric, once.
    pub(super) fn disconnect(&mut self, fabric: &mut dyn Fabric, now: Instant, linger: Duration) {
        self.phase = Phase::Closing;
        if !std::mem::replace(&mut self.disconnecting, true) {
            fabric.disconnect(now, self.qp, linger);
        }
    }

    /// The queue pair is gone: completes everything that is left.
    pub(super) fn finish(
        &mut self,
        clients: &mut Clients,
        now: Instant,
        reason: &fabric::EndReason,
    ) {
        let (errno, text) = errno_of_fabric(reason);
        self.latch_end(errno, text);
        self.disconnecting = true;
        self.machine.handle_disconnected(now);
        while let Some(output) = self.machine.poll(now) {
            if let Output::Deliver { buffer, .. } | Output::Recycle { buffer } = output {
                self.recycle(clients, buffer);
            }
        }
        let buffers: Vec<u32> = self.recvs.iter().map(|(key, _)| key as u32).collect();
        for buffer in buffers {
            self.recycle(clients, buffer);
        }
        let error = self.end_errno();
        let messages: Vec<u32> = self.messages.iter().map(|(key, _)| key as u32).collect();
        for key in messages {
            self.message_done(clients, key, error);
        }
        let ops: Vec<u32> = self.ops.iter().map(|(key, _)| key as u32).collect();
        for key in ops {
            if let Some(op) = self.ops.get_mut(key as usize) {
                op.in_flight = 0;
                op.posted_all = true;
                if op.error == 0 {
                    op.error = error;
                }
            }
            self.finish_op_if_done(clients, key);
        }
        let text = self.end.as_ref().map_or("", |(_, text)| text);
        if matches!(self.end, Some((0, _))) || self.owner.is_some() {
            info!(
                "connection {} with {} ended: {text}",
                self.serial, self.peer
            );
        } else {
            warn!(
                "connection {} with {} ended: {text}",
                self.serial, self.peer
            );
        }
    }
}

impl Private {
    fn slice(&self, slot: u32) -> Option<MemSlice> {
        MemSlice::new(&self.region, slot as usize * self.slot_size, self.slot_size).ok()
    }

    fn take(&mut self) -> Option<(u32, MemSlice)> {
        let slot = self.free.pop()?;
        Some((slot, self.slice(slot)?))
    }
}

/// A piece of a PDU in a receive buffer.
struct Piece {
    data_offset: usize,
    data_length: usize,
    remaining: u32,
    last: bool,
    invalidated: Option<u32>,
}

impl Piece {
    fn entry(&self, conn: u64, slot: u32) -> CqEntry {
        let mut entry = CqEntry {
            slot,
            data_offset: self.data_offset as u32,
            data_length: self.data_length as u32,
            remaining: self.remaining,
            ..CqEntry::new(CqKind::Fragment, conn)
        };
        if let Some(token) = self.invalidated {
            entry.flags |= flags::INVALIDATED;
            entry.token = token;
        }
        entry
    }
}

/// What the owner is told about an end that the MS-SMBD machine found.
fn errno_of_proto(reason: &proto::EndReason) -> i32 {
    use proto::EndReason as E;
    match reason {
        E::LocalClose => 0,
        E::Disconnected => -libc::ECONNRESET,
        E::NegotiateTimeout | E::KeepaliveTimeout | E::KeepaliveUnsendable => -libc::ETIMEDOUT,
        E::VersionMismatch { .. } | E::Refused { .. } => -libc::ECONNREFUSED,
        E::NoReceives => -libc::ENOBUFS,
        _ => -libc::EPROTO,
    }
}

/// What the owner is told about an end that the fabric found.
fn errno_of_fabric(reason: &fabric::EndReason) -> (i32, String) {
    use fabric::EndReason as E;
    match reason {
        E::Local => (0, "closed locally".into()),
        E::PeerClosed => (-libc::ECONNRESET, "closed by the peer".into()),
        E::Refused(text) => (-libc::ECONNREFUSED, text.clone()),
        E::TimedOut(text) => (-libc::ETIMEDOUT, text.clone()),
        E::Protocol(text) => (-libc::EPROTO, text.clone()),
        E::Terminated(text) => (-libc::ECONNRESET, text.clone()),
        E::Transport(text) => (-libc::ECONNABORTED, text.clone()),
    }
}
