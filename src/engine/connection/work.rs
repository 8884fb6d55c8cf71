//! What the owner has submitted: PDUs and RDMA operations, from the queue to their completion.

use std::time::{Duration, Instant};

use log::debug;

use super::{Conn, Owner};
use crate::engine::clients::Clients;
use crate::fabric::{Fabric, SendRequest, Status, WrId};
use crate::mem::MemSlice;
use crate::proto;
use crate::ring::{flags, CqEntry, CqKind, Descriptor, Segment, SqEntry, SqOp};

/// RDMA work requests of one connection in the fabric at the same time. More wait here.
const RDMA_WINDOW: usize = 256;

/// An upper-layer message on its way out.
pub(super) struct Message {
    memory: MemSlice,
    invalidate: Option<u32>,
    /// Whom to tell; none for the engine's own.
    told: Option<(Owner, u64)>,
    /// The owner need not be woken for its success.
    lazy: bool,
}

/// An RDMA operation of the owner.
pub(super) struct RdmaOp {
    pub(super) owner: Owner,
    pub(super) cookie: u64,
    pub(super) lazy: bool,
    pub(super) read: bool,
    pub(super) segments: Vec<Segment>,
    pub(super) descriptors: Vec<Descriptor>,
    pub(super) next_segment: usize,
    pub(super) next_descriptor: usize,
    /// What is left of the current segment: area offset, bytes.
    pub(super) segment: (u64, u64),
    /// What is left of the current descriptor: peer's offset, token, bytes.
    pub(super) descriptor: (u64, u32, u32),
    pub(super) in_flight: u32,
    pub(super) posted_all: bool,
    pub(super) bytes: u64,
    pub(super) error: i32,
}

/// What a work request in the fabric stands for.
#[derive(Clone, Copy)]
pub(super) enum Wr {
    /// A message of MS-SMBD, with the upper-layer message it ends.
    Send { last_of: Option<u32> },
    /// A piece of an RDMA operation.
    Rdma { op: u32, bytes: u32 },
}

/// What the owner has submitted and the connection has not started yet, in order.
#[derive(Clone, Copy)]
pub(super) enum Work {
    Pdu(u32),
    Rdma(u32),
    Close,
}

impl Conn {
    /// A posted send, write or read ended.
    pub(in crate::engine) fn on_done(
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
                self.heard(now);
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

    pub(super) fn message_done(&mut self, clients: &mut Clients, message: u32, error: i32) {
        let Some(message) = self.messages.try_remove(message as usize) else {
            return;
        };
        let Some((owner, cookie)) = message.told else {
            return;
        };
        if let Some(handle) = clients.handle(owner.handle) {
            handle.outstanding = handle.outstanding.saturating_sub(1);
            let entry = CqEntry {
                status: error,
                cookie,
                data_length: message.memory.len() as u32,
                ..CqEntry::new(CqKind::Sent, owner.id)
            };
            match message.lazy && error == 0 {
                true => handle.push_lazy(&entry),
                false => handle.push(&entry),
            };
        }
    }

    pub(super) fn finish_op_if_done(&mut self, clients: &mut Clients, key: u32) {
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
            let entry = CqEntry {
                status: op.error,
                cookie: op.cookie,
                data_length: u32::try_from(op.bytes).unwrap_or(u32::MAX),
                ..CqEntry::new(CqKind::RdmaDone, op.owner.id)
            };
            match op.lazy && op.error == 0 {
                true => handle.push_lazy(&entry),
                false => handle.push(&entry),
            };
        }
    }

    /// Queues a PDU of the owner; its memory is in the owner's area.
    pub(in crate::engine) fn submit_pdu(
        &mut self,
        owner: Owner,
        entry: &SqEntry,
        memory: MemSlice,
    ) {
        self.unanswered = None;
        let message = Message {
            memory,
            invalidate: (entry.flags & flags::INVALIDATE != 0).then_some(entry.token),
            told: Some((owner, entry.cookie)),
            lazy: entry.flags & flags::LAZY != 0,
        };
        let key = self.messages.insert(message) as u32;
        self.work.push_back(Work::Pdu(key));
    }

    /// Queues a PDU of the engine itself.
    pub(in crate::engine) fn submit_own_pdu(&mut self, memory: MemSlice) {
        let key = self.messages.insert(Message {
            memory,
            invalidate: None,
            told: None,
            lazy: false,
        }) as u32;
        self.work.push_back(Work::Pdu(key));
    }

    /// Queues an RDMA operation of the owner; the lists are checked copies.
    pub(in crate::engine) fn submit_rdma(
        &mut self,
        owner: Owner,
        entry: &SqEntry,
        segments: Vec<Segment>,
        descriptors: Vec<Descriptor>,
    ) {
        self.unanswered = None;
        let op = RdmaOp {
            owner,
            cookie: entry.cookie,
            lazy: entry.flags & flags::LAZY != 0,
            read: entry.op == SqOp::RdmaRead,
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
    pub(in crate::engine) fn submit_close(&mut self, now: Instant) {
        self.unanswered = None;
        if self.machine.negotiated().is_some() {
            self.work.push_back(Work::Close);
        } else {
            self.machine.close(now);
        }
    }

    /// Starts what was submitted, in its order, as far as windows allow.
    pub(super) fn start_work(
        &mut self,
        fabric: &mut dyn Fabric,
        clients: &mut Clients,
        now: Instant,
    ) {
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
                    let error = self.ops.get(key as usize).map_or(0, |op| op.error);
                    self.finish_op_if_done(clients, key);
                    if error != 0 {
                        // A response behind it would tell the peer that its data is in place. The
                        // handle's memory may be gone because its process is.
                        self.latch_end(error, "an RDMA operation could not be started");
                        self.work.clear();
                        self.disconnect(fabric, now, Duration::ZERO);
                        return;
                    }
                }
            }
        }
    }

    /// Posts work requests of an RDMA operation; false: the window is full.
    pub(super) fn post_rdma(
        &mut self,
        fabric: &mut dyn Fabric,
        clients: &mut Clients,
        key: u32,
    ) -> bool {
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

    pub(super) fn send(
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
}
