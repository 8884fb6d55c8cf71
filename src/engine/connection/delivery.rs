//! Receives: from their posting to the owner's area.

use std::time::Instant;

use log::debug;

use super::{Conn, HeldPdu, Owner, Phase, PRIVATE_RECEIVES};
use crate::engine::clients::Clients;
use crate::engine::handle::HandleId;
use crate::fabric::{Fabric, Status, WrId};
use crate::mem::{MemSlice, Region};
use crate::ring::{flags, CqEntry, CqKind};
use crate::router;

/// Bytes of PDUs held for a connection that never had an owner. A NEGOTIATE takes some hundred.
const HELD_MAX: usize = router::MAX_FIRST_PDU;

/// A receive, from its posting until its bytes were told or are of no more use.
pub(super) struct Recv {
    home: Home,
    slot: u32,
    memory: MemSlice,
}

/// Whose memory a receive lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Home {
    /// The connection's memory in the engine.
    Private,
    /// A handle's area.
    Handle(HandleId),
}

/// Memory of the engine for receives before there is an owner.
pub(super) struct Private {
    region: std::sync::Arc<Region>,
    slot_size: usize,
    free: Vec<u32>,
}

impl Conn {
    /// A posted receive was filled or flushed.
    pub(in crate::engine) fn on_recv(
        &mut self,
        clients: &mut Clients,
        now: Instant,
        wr_id: WrId,
        len: usize,
        invalidated: Option<u32>,
        status: Status,
    ) {
        let buffer = wr_id.0 as u32;
        self.heard(now);
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

    pub(super) fn post_receives(
        &mut self,
        key: usize,
        fabric: &mut dyn Fabric,
        clients: &mut Clients,
        count: u16,
    ) {
        if self.holds_back() {
            return self.machine.handle_posted(0);
        }
        let mut posted = 0;
        let owner = self
            .owner
            .filter(|_| matches!(self.phase, Phase::Attached | Phase::Exported));
        while posted < count {
            let taken = match owner.map(|o| (o.handle, clients.handle(o.handle))) {
                Some((id, Some(handle))) => {
                    let has_few = self.recvs.len() < usize::from(PRIVATE_RECEIVES);
                    let may_take = has_few || handle.free_slots() > handle.reserve();
                    let taken = if may_take { handle.take_slot() } else { None };
                    taken.map(|(slot, m)| (Home::Handle(id), slot, m))
                }
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
                handle.starve(key);
            }
        }
        self.machine.handle_posted(posted);
    }

    /// Whether the peer has to wait for further credits: its PDUs are held for an owner and would
    /// grow without end. What it has credits for still comes.
    fn holds_back(&self) -> bool {
        match self.phase {
            Phase::Exported => true,
            Phase::Attached => !self.held.is_empty(),
            _ => false,
        }
    }

    /// A piece of a PDU came.
    pub(super) fn deliver(
        &mut self,
        clients: &mut Clients,
        buffer: u32,
        piece: &Piece,
        now: Instant,
    ) {
        if self.owner.is_some() {
            self.unanswered = None;
        }
        if let Some(owner) = self
            .delivers_to()
            .filter(|_| self.assembly.is_empty() && self.held.is_empty())
        {
            if let Some(slot) = self.owner_slot(clients, owner, buffer, piece) {
                self.half_delivered = !piece.last;
                if let Some(handle) = clients.handle(owner.handle) {
                    handle.push(&piece.entry(owner.id, slot));
                }
                return;
            }
        }
        self.hold(clients, buffer, piece, now);
    }

    /// The slot of the owner's area that holds the piece; copied there when it lies elsewhere (a
    /// receive that was posted before the connection had this owner). On success the receive is
    /// used up.
    fn owner_slot(
        &mut self,
        clients: &mut Clients,
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
        let handle = clients.handle(owner.handle)?;
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
        self.recycle(clients, buffer);
        Some(slot)
    }

    /// Keeps a piece until the connection has an owner that takes PDUs.
    pub(super) fn hold(&mut self, clients: &mut Clients, buffer: u32, piece: &Piece, now: Instant) {
        if self.phase == Phase::Closing {
            return self.recycle(clients, buffer);
        }
        // What the peer had credits for, and the rest of a PDU that began before.
        let limit = self.machine.negotiated().map_or(0, |n| {
            let message = n.max_receive_size as usize;
            let credited = usize::from(self.receive_credit_max) * message;
            n.max_fragmented_receive_size as usize + credited
        });
        let has_or_had_owner = self.owner.is_some() || self.phase == Phase::Exported;
        let limit = if has_or_had_owner { limit } else { 0 };
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
                    format!("more than {limit} bytes that wait for an owner to take them"),
                );
                self.machine.close(now);
            }
        }
        self.recycle(clients, buffer);
        if piece.last && fits {
            let bytes = std::mem::take(&mut self.assembly);
            self.held.push_back(HeldPdu {
                bytes,
                flags: 0,
                invalidated: piece.invalidated,
                delivered: 0,
            });
        }
    }

    /// Hands the PDUs that the engine holds to the owner, as far as it has receive slots; the rest
    /// goes on when it returns some.
    pub(in crate::engine) fn deliver_held(&mut self, key: usize, clients: &mut Clients) {
        let Some(owner) = self.delivers_to() else {
            return;
        };
        let Some(handle) = clients.handle(owner.handle) else {
            return;
        };
        let slot_size = handle.side.layout().options().receive_slot_size as usize;
        while let Some(pdu) = self.held.front_mut() {
            let rest = pdu.bytes.get(pdu.delivered..).unwrap_or_default();
            let chunk = rest.get(..slot_size).unwrap_or(rest);
            let Some((slot, memory)) = handle.take_slot() else {
                handle.starve(key);
                return;
            };
            if memory.write(0, chunk).is_err() {
                handle.release_slot(slot);
                return;
            }
            let remaining = rest.len() - chunk.len();
            let piece = Piece {
                data_offset: 0,
                data_length: chunk.len(),
                remaining: remaining as u32,
                last: remaining == 0,
                invalidated: pdu.invalidated.filter(|_| pdu.delivered == 0),
            };
            let mut entry = piece.entry(owner.id, slot);
            entry.flags |= pdu.flags;
            pdu.delivered += chunk.len();
            self.half_delivered = remaining != 0;
            handle.push(&entry);
            if remaining == 0 {
                self.held.pop_front();
            }
        }
    }

    /// A receive is of no more use.
    pub(super) fn recycle(&mut self, clients: &mut Clients, buffer: u32) {
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
}

impl Private {
    pub(super) fn new(slot_size: usize) -> std::io::Result<Self> {
        Ok(Self {
            region: Region::anonymous(slot_size * usize::from(PRIVATE_RECEIVES))?,
            slot_size,
            free: (0..u32::from(PRIVATE_RECEIVES)).collect(),
        })
    }

    fn slice(&self, slot: u32) -> Option<MemSlice> {
        MemSlice::new(&self.region, slot as usize * self.slot_size, self.slot_size).ok()
    }

    fn take(&mut self) -> Option<(u32, MemSlice)> {
        let slot = self.free.pop()?;
        Some((slot, self.slice(slot)?))
    }
}

/// A piece of a PDU in a receive buffer.
pub(super) struct Piece {
    pub(super) data_offset: usize,
    pub(super) data_length: usize,
    pub(super) remaining: u32,
    pub(super) last: bool,
    pub(super) invalidated: Option<u32>,
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
