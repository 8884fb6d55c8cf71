//! One handle of a process: its shared area, its receive slots, its registrations.

use crate::mem::MemSlice;
use crate::ring::{CqEntry, CqPosition, EngineSide, PushError, RingError};

/// Names a handle for as long as the engine runs; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct HandleId {
    /// Index among the clients.
    pub(super) client: usize,
    /// Tells it from an earlier client at the same index.
    pub(super) serial: u64,
}

/// A handle.
pub(super) struct Handle {
    pub(super) id: HandleId,
    pub(super) parent: bool,
    pub(super) pid: u32,
    /// The user who opened it.
    pub(super) uid: u32,
    pub(super) side: EngineSide,
    slot_count: usize,
    free: Vec<u32>,
    /// Connections by their index in the handle's table.
    pub(super) table: Vec<Option<usize>>,
    /// Indices whose Disconnected entry the owner has not taken yet.
    retired: Vec<(usize, CqPosition)>,
    pub(super) attached: usize,
    /// Connections have used pages of the area since they were last given back.
    pub(super) has_pages: bool,
    /// Operations taken from the submission ring whose completion was not told yet.
    pub(super) outstanding: u32,
    /// Connections that could not post all the receives they may.
    pub(super) starved: Vec<usize>,
    pub(super) session_ids: Vec<u64>,
    pub(super) client_guids: Vec<[u8; 16]>,
    /// Looked up for writing since it was last published.
    pub(super) used: bool,
    /// Its rings are looked at in each turn of the loop.
    pub(super) active: bool,
    /// Returned slots wait for which the owner did not ring.
    pub(super) returns_wait: bool,
    /// Completions were pushed and not published yet.
    dirty: bool,
    /// Something of it is worth waking the owner.
    urgent: bool,
    /// Completions pushed since the last publish.
    pub(super) pushed: u64,
    /// A broken rule of the rings; the handle has to go.
    pub(super) broken: Option<RingError>,
}

impl Handle {
    pub(super) fn new(
        id: HandleId,
        parent: bool,
        (pid, uid): (u32, u32),
        side: EngineSide,
    ) -> Self {
        let slots = side.layout().options().receive_slots;
        let connections = side.layout().options().max_connections as usize;
        Self {
            id,
            parent,
            pid,
            uid,
            side,
            slot_count: slots as usize,
            // Handed out from the end: low slots first, so that a quiet handle touches few pages.
            free: (0..slots).rev().collect(),
            table: vec![None; connections],
            retired: Vec::new(),
            attached: 0,
            has_pages: false,
            outstanding: 0,
            starved: Vec::new(),
            session_ids: Vec::new(),
            client_guids: Vec::new(),
            used: false,
            active: false,
            returns_wait: false,
            dirty: false,
            urgent: false,
            pushed: 0,
            broken: None,
        }
    }

    /// Free receive slots.
    pub(super) fn free_slots(&self) -> usize {
        self.free.len()
    }

    /// All receive slots.
    pub(super) fn slot_count(&self) -> usize {
        self.slot_count
    }

    /// Free slots that only connections with few receives may take, so that a further connection
    /// always finds some, however many the others have posted.
    pub(super) fn reserve(&self) -> usize {
        self.slot_count / 8
    }

    /// Takes a slot for a receive.
    pub(super) fn take_slot(&mut self) -> Option<(u32, MemSlice)> {
        let slot = self.free.pop()?;
        match self.side.recv_slot(slot) {
            Ok(memory) => Some((slot, memory)),
            Err(error) => {
                self.broken.get_or_insert(error);
                None
            }
        }
    }

    /// Gives a slot back that was not told to the owner.
    pub(super) fn release_slot(&mut self, slot: u32) {
        self.free.push(slot);
    }

    /// Takes back what the owner has returned. Returns how many slots came.
    pub(super) fn take_returns(&mut self) -> usize {
        let before = self.free.len();
        loop {
            match self.side.pop_return() {
                Ok(Some(slot)) => self.free.push(slot),
                Ok(None) => break,
                Err(error) => {
                    self.broken.get_or_insert(error);
                    break;
                }
            }
        }
        self.free.len() - before
    }

    /// A connection could not get all the slots it may have.
    pub(super) fn starve(&mut self, conn: usize) {
        if !self.starved.contains(&conn) {
            self.starved.push(conn);
        }
        self.want_returns();
    }

    /// Whether the pages of receive slots and send area can go, if no device has them registered: the
    /// last connection has gone, and all slots are back. Receives that stand for a connection that
    /// has moved away are not.
    pub(super) fn has_idle_pages(&self) -> bool {
        self.has_pages && self.attached == 0 && self.free.len() == self.slot_count
    }

    /// Gives them back.
    pub(super) fn give_pages_back(&mut self) {
        self.has_pages = false;
        if let Err(error) = self.side.punch_idle() {
            self.broken.get_or_insert(error);
        }
    }

    /// Puts a completion into the ring; the owner sees it after [`Handle::publish`].
    pub(super) fn push(&mut self, entry: &CqEntry) -> Option<CqPosition> {
        self.urgent = true;
        self.push_lazy(entry)
    }

    /// Like [`Handle::push`], but does not wake the owner, unless it waits for all.
    pub(super) fn push_lazy(&mut self, entry: &CqEntry) -> Option<CqPosition> {
        self.dirty = true;
        self.pushed += 1;
        match self.side.push_cq(entry) {
            Ok(position) => Some(position),
            Err(PushError::Full) => {
                // The ring has room for all that an honest owner can have outstanding.
                self.broken.get_or_insert(RingError::Index {
                    ring: "the completion ring",
                    used: self.side.layout().cq_capacity,
                    capacity: self.side.layout().cq_capacity,
                });
                None
            }
            Err(PushError::Ring(error)) => {
                self.broken.get_or_insert(error);
                None
            }
        }
    }

    /// Offers a connection; false: too many offers wait already.
    pub(super) fn push_offer(&mut self, entry: &CqEntry) -> bool {
        self.dirty = true;
        self.urgent = true;
        match self.side.push_offer(entry) {
            Ok(_) => true,
            Err(PushError::Full) => false,
            Err(PushError::Ring(error)) => {
                self.broken.get_or_insert(error);
                false
            }
        }
    }

    /// Tells the last event of a connection; its place in the table is free once that was taken.
    pub(super) fn push_disconnected(&mut self, index: usize, entry: &CqEntry) {
        if let Some(position) = self.push(entry) {
            self.retired.push((index, position));
        }
        self.attached = self.attached.saturating_sub(1);
        if self.attached == 0 && self.free.len() < self.slot_count {
            // The pages go when the owner has returned what it still reads.
            self.want_returns();
        }
        self.starved
            .retain(|&conn| self.table.get(index) != Some(&Some(conn)));
    }

    /// Shows the owner what was pushed, and wakes it if it sleeps. True: it did.
    pub(super) fn publish(&mut self) -> bool {
        if !std::mem::take(&mut self.dirty) {
            return false;
        }
        let urgent = std::mem::take(&mut self.urgent);
        self.side.publish(urgent).unwrap_or_else(|error| {
            self.broken.get_or_insert(error);
            false
        })
    }

    /// Wants to be woken when the owner returns receive slots.
    pub(super) fn want_returns(&mut self) {
        match self.side.set_returns_wanted(true) {
            Ok(some_wait) => self.returns_wait |= some_wait,
            Err(error) => {
                self.broken.get_or_insert(error);
            }
        }
    }

    /// Whether the engine may sleep as far as this handle goes: arms its bell, and looks once more.
    pub(super) fn arm(&mut self) -> bool {
        match self.side.set_sleeping(true) {
            Ok(false) => true,
            Ok(true) => {
                self.disarm();
                false
            }
            // No sleep before it is dropped: nothing else may come to wake the engine for that.
            Err(error) => {
                self.broken.get_or_insert(error);
                false
            }
        }
    }

    /// The engine looks at the rings anyway: the owner need not ring.
    pub(super) fn disarm(&mut self) {
        if let Err(error) = self.side.set_sleeping(false) {
            self.broken.get_or_insert(error);
        }
    }

    /// Takes a free place in the connection table for a connection.
    pub(super) fn take_index(&mut self, conn: usize) -> Option<usize> {
        let (side, table) = (&mut self.side, &mut self.table);
        self.retired.retain(|&(index, position)| {
            let consumed = side.is_consumed(position).unwrap_or(false);
            if consumed {
                table[index] = None;
            }
            !consumed
        });
        let index = self.table.iter().position(Option::is_none)?;
        self.table[index] = Some(conn);
        Some(index)
    }
}
