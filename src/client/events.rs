#![forbid(unsafe_code)]
//! Taking events.
//!
//! Completions are moved from the ring to a queue, so that it is known exactly how many events are
//! left; the bytes of PDUs stay in their slots meanwhile. Then events are taken from the queue.
//!
//! The file descriptor of a handle is readable while the queue holds events. Either the engine has
//! rung since the bell was last cleared (the `armed` flag is 0), or the handle sets an event of its own
//! ([`Handle::keep_readable`]), which is needed only when events come from elsewhere: a stopped
//! connection that goes on, room after back-pressure, a lost engine, or a completion that came
//! between the last look at the ring and arming.

use super::connection::{Connection, Pdu, PduBytes};
use super::error::ClientError;
use super::handle::Handle;
use super::operations::Outcome;
use crate::ring::{flags, CqEntry, CqKind, RingError, RingFor, SqOp};
use crate::sys::Cleared;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Which kind.
    pub kind: EventKind,
    /// Bits of [`flags`] that belong to the kind.
    pub flags: u16,
    /// 0 or a negative errno.
    pub status: i32,
    /// The connection; 0: none.
    pub connection: u64,
    /// That of the operation.
    pub cookie: u64,
    /// Bytes of the PDU, or moved.
    pub length: u32,
    /// The token of ours that the peer invalidated.
    pub invalidated_token: u32,
    /// Names an offer.
    pub token: [u8; 16],
}

/// The kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// A PDU came.
    PduReceived,
    /// A PDU has left.
    PduSent,
    /// An RDMA READ has ended.
    RdmaReadComplete,
    /// An RDMA WRITE has ended.
    RdmaWriteComplete,
    /// A connection waits to be accepted.
    Offered,
    /// A connection is ours.
    Attached,
    /// A connection is gone.
    Disconnected,
    /// There is room again.
    Writable,
    /// The engine is gone.
    EngineLost,
}

/// What the taker did with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It has it.
    Done,
    /// The PDU does not fit: the event stays, and no further ones are taken.
    TooSmall,
}

/// An event that waits.
#[derive(Debug)]
pub(super) enum Ready {
    /// A complete PDU.
    Pdu(Pdu),
    /// An operation with an outcome, by its cookie in the ring.
    Done(u64),
    /// Anything else.
    Other(Event),
}

impl Event {
    fn new(kind: EventKind, connection: u64) -> Self {
        Self {
            kind,
            flags: 0,
            status: 0,
            connection,
            cookie: 0,
            length: 0,
            invalidated_token: 0,
            token: [0; 16],
        }
    }
}

impl Handle {
    /// Takes up to `max` events; `take` gets each of them, with the bytes of a PDU. Returns how many
    /// `take` was called for, and how many are known to be left. Never blocks.
    pub fn take_events(
        &mut self,
        max: usize,
        take: &mut dyn FnMut(&Event, Option<PduBytes<'_>>) -> Taken,
    ) -> Result<(usize, usize), ClientError> {
        self.check_opener()?;
        self.statistics.get_events_calls += 1;
        let mut count = 0;
        loop {
            self.drain_completions();
            let was_small = self.deliver(max, &mut count, take);
            self.tell_room();
            if was_small || !self.wait_for_more(count) {
                break;
            }
            if count == max {
                // What came meanwhile counts as left.
                self.drain_completions();
                break;
            }
        }
        self.return_slots();
        self.keep_readable();
        self.statistics.events += count as u64;
        Ok((count, self.link.ready.len()))
    }

    /// Takes one event, with a copy of its PDU.
    pub fn next_event(&mut self) -> Result<Option<(Event, Vec<u8>)>, ClientError> {
        let mut next = None;
        self.take_events(1, &mut |event, bytes| {
            next = Some((*event, bytes.map(|b| b.to_vec()).unwrap_or_default()));
            Taken::Done
        })?;
        Ok(next)
    }

    /// Moves completions from the ring to the queue.
    pub(super) fn drain_completions(&mut self) {
        if self.is_lost {
            return;
        }
        if let Err(error) = self.try_drain() {
            self.on_engine_lost(&error.to_string());
        }
    }

    fn try_drain(&mut self) -> Result<(), ClientError> {
        // A user who takes fewer events than come leaves the rest in the ring.
        let limit = self.link.ring.layout().cq_capacity as usize;
        while self.link.ready.len() < limit {
            match self.link.ring.pop_cq()? {
                Some(entry) => self.on_completion(&entry)?,
                None => break,
            }
        }
        Ok(self.link.ring.release()?)
    }

    fn on_completion(&mut self, entry: &CqEntry) -> Result<(), ClientError> {
        match entry.kind {
            CqKind::Fragment => return self.on_fragment(entry),
            CqKind::Sent | CqKind::RdmaDone => {
                let outcome = Outcome {
                    status: entry.status,
                    length: entry.data_length,
                };
                self.on_operation_done(entry.cookie, outcome);
            }
            CqKind::Offered => {
                let mut event = Event::new(EventKind::Offered, 0);
                event.token = entry.key;
                self.link.ready.push_back(Ready::Other(event));
            }
            CqKind::Attached => self.on_attached(entry)?,
            CqKind::Disconnected => self.on_disconnected(entry.connection, entry.status),
        }
        Ok(())
    }

    fn on_fragment(&mut self, entry: &CqEntry) -> Result<(), ClientError> {
        let link = &mut self.link;
        let Some(connection) = link.connections.get_mut(&entry.connection) else {
            link.returned.push(entry.slot);
            return Ok(());
        };
        let layout = *link.ring.layout();
        let region = link.ring.region().clone();
        let pdu = connection.on_fragment(entry, &layout, &region, &mut link.returned)?;
        if let Some(pdu) = pdu {
            if connection.is_stopped {
                connection.waiting.push_back(pdu);
            } else {
                link.ready.push_back(Ready::Pdu(pdu));
            }
        }
        Ok(())
    }

    fn on_attached(&mut self, entry: &CqEntry) -> Result<(), ClientError> {
        let id = entry.connection;
        let Some((record, _)) = self.link.ring.connection(id)? else {
            return Err(ClientError::new(
                libc::EPROTO,
                format!("the engine attached connection {id:#x}, which its table lacks"),
            ));
        };
        let connections = &mut self.link.connections;
        let connection = connections
            .entry(id)
            .or_insert_with(|| Connection::new(record));
        // That of a connection made by `connect` was not complete before.
        connection.record = record;
        connection.is_attached = true;
        let mut event = Event::new(EventKind::Attached, id);
        event.flags = entry.flags & (flags::ROUTED | flags::ACTIVE);
        self.link.ready.push_back(Ready::Other(event));
        Ok(())
    }

    fn on_disconnected(&mut self, id: u64, status: i32) {
        for cookie in self.outstanding(id) {
            // The engine completes them itself; this keeps the order of events if it did not.
            let outcome = Outcome { status, length: 0 };
            self.on_operation_done(cookie, outcome);
        }
        let link = &mut self.link;
        let Some(connection) = link.connections.get_mut(&id) else {
            return;
        };
        connection.is_ending = true;
        connection.has_ended = true;
        // Nobody could answer PDUs of a connection that was stopped; the others are in the queue.
        connection.drop_pdus(&mut link.returned);
        let mut event = Event::new(EventKind::Disconnected, id);
        event.status = status;
        link.ready.push_back(Ready::Other(event));
    }

    fn on_operation_done(&mut self, ring_cookie: u64, outcome: Outcome) {
        let link = &mut self.link;
        let Some(operation) = link.operations.get_mut(ring_cookie) else {
            // It was submitted while the end of its connection was on the way, which has completed
            // it here; the engine has refused it.
            log::debug!("the engine completed an operation that is not outstanding (any more)");
            return;
        };
        if operation.outcome.is_some() {
            return;
        }
        operation.outcome = Some(outcome);
        let is_told = operation.has_event || outcome.status != 0;
        if let Some(run) = operation.run.take() {
            link.send_area.release(run);
        }
        if is_told {
            link.ready.push_back(Ready::Done(ring_cookie));
        } else {
            link.operations.end(ring_cookie);
        }
    }

    /// Outstanding operations of a connection that the handle knows.
    fn outstanding(&self, id: u64) -> Vec<u64> {
        if self.link.connections.contains_key(&id) {
            self.link.operations.outstanding(Some(id))
        } else {
            Vec::new()
        }
    }

    /// The engine is gone, or cannot be understood any more.
    pub(super) fn on_engine_lost(&mut self, why: &str) {
        if self.is_lost {
            return;
        }
        // Every process of a server has its handle, and each is told by an event. It is the parent
        // that tells the administrator.
        log::info!("lost the engine: {why}");
        // What it published before its end still counts.
        while let Ok(Some(entry)) = self.link.ring.pop_cq() {
            if self.on_completion(&entry).is_err() {
                break;
            }
        }
        self.is_lost = true;
        self.forget_bell();
        self.link.caller.socket().shutdown();
        let mut connections: Vec<_> = self
            .link
            .connections
            .values()
            .filter(|connection| !connection.has_ended)
            .map(|connection| connection.record.connection)
            .collect();
        connections.sort_unstable();
        for id in connections {
            self.on_disconnected(id, -libc::ENETDOWN);
        }
        self.link.room_wanted = None;
        let event = Event::new(EventKind::EngineLost, 0);
        self.link.ready.push_back(Ready::Other(event));
        self.keep_readable();
    }

    /// Hands events from the queue to `take`. True: one did not fit.
    fn deliver(
        &mut self,
        max: usize,
        count: &mut usize,
        take: &mut dyn FnMut(&Event, Option<PduBytes<'_>>) -> Taken,
    ) -> bool {
        while *count < max {
            let Some(ready) = self.link.ready.pop_front() else {
                return false;
            };
            match ready {
                Ready::Pdu(pdu) => {
                    *count += 1;
                    if self.deliver_pdu(&pdu, take) == Taken::TooSmall {
                        self.link.ready.push_front(Ready::Pdu(pdu));
                        return true;
                    }
                    pdu.body.slots(&mut self.link.returned);
                }
                Ready::Done(cookie) => {
                    if let Some(event) = self.end_operation(cookie) {
                        *count += 1;
                        take(&event, None);
                    }
                }
                Ready::Other(event) => {
                    *count += 1;
                    if event.kind == EventKind::Disconnected {
                        self.link.connections.remove(&event.connection);
                    }
                    take(&event, None);
                }
            }
        }
        false
    }

    fn deliver_pdu(
        &mut self,
        pdu: &Pdu,
        take: &mut dyn FnMut(&Event, Option<PduBytes<'_>>) -> Taken,
    ) -> Taken {
        let mut event = Event::new(EventKind::PduReceived, pdu.connection);
        event.flags = pdu.flags;
        event.length = u32::try_from(pdu.len).unwrap_or(u32::MAX);
        event.invalidated_token = pdu.token;
        let region = self.link.ring.region();
        let taken = take(&event, Some(PduBytes { pdu, region }));
        if taken == Taken::Done {
            match pdu.body {
                super::connection::Body::Heap(_) => self.statistics.pdus_reassembled += 1,
                _ => self.statistics.pdus_direct += 1,
            }
        }
        taken
    }

    fn end_operation(&mut self, ring_cookie: u64) -> Option<Event> {
        let operation = self.link.operations.end(ring_cookie)?;
        let outcome = operation.outcome?;
        let kind = match operation.op {
            SqOp::RdmaRead => EventKind::RdmaReadComplete,
            SqOp::RdmaWrite => EventKind::RdmaWriteComplete,
            SqOp::SendPdu | SqOp::Disconnect => EventKind::PduSent,
        };
        let mut event = Event::new(kind, operation.connection);
        event.cookie = operation.cookie;
        event.status = outcome.status;
        event.length = outcome.length;
        Some(event)
    }

    /// Queues a Writable event if somebody waits for room and there is some.
    fn tell_room(&mut self) {
        let link = &mut self.link;
        let Some(pages) = link.room_wanted else {
            return;
        };
        if link.operations.has_room() && (pages == 0 || link.send_area.fits(pages)) {
            link.room_wanted = None;
            let event = Event::new(EventKind::Writable, 0);
            link.ready.push_back(Ready::Other(event));
        }
    }

    /// With an empty queue: makes the file descriptor unreadable until something comes. True: there
    /// is something already.
    fn wait_for_more(&mut self, taken: usize) -> bool {
        if !self.link.ready.is_empty() {
            return true;
        }
        self.statistics.syscalls += u64::from(self.local_event.clear());
        if self.is_lost {
            return false;
        }
        match self.try_arm(taken) {
            Ok(more) => more,
            Err(error) => {
                self.on_engine_lost(&error.to_string());
                true
            }
        }
    }

    fn try_arm(&mut self, taken: usize) -> Result<bool, RingError> {
        // Armed and not rung since: the events found came without a ring, and none is to be taken
        // back. Without any event the bell is looked at all the same: a ring may have come late.
        let ring_for = self.waits_for();
        if taken > 0 && self.link.ring.armed_for()? == Some(ring_for) {
            return Ok(false);
        }
        let (cleared, has_more) = self.link.ring.arm(ring_for)?;
        self.statistics.syscalls += 1;
        if cleared == Cleared::Closed {
            self.on_engine_lost("it has closed its end");
            return Ok(true);
        }
        Ok(has_more)
    }

    /// What the process is to be woken for: lazy completions only if room hangs on them.
    fn waits_for(&self) -> RingFor {
        match self.is_lazy && self.link.room_wanted.is_none() {
            true => RingFor::Urgent,
            false => RingFor::All,
        }
    }

    /// From now on lazy completions may be what is waited for.
    pub(super) fn hurry(&mut self) {
        if self.is_lost || self.waits_for() != RingFor::All {
            return;
        }
        match self.link.ring.arm_for_all() {
            Ok(false) => {}
            // They are there: the next look at the queue takes them.
            Ok(true) => self.statistics.syscalls += u64::from(self.local_event.set()),
            Err(error) => self.on_engine_lost(&error.to_string()),
        }
    }

    /// Whether events of operations with [`RdmaOp::is_lazy`](super::RdmaOp::is_lazy) may wait for
    /// others, as is the case at first. Kept when the handle reconnects.
    pub fn set_lazy(&mut self, is_lazy: bool) -> Result<(), ClientError> {
        self.check_link()?;
        self.is_lazy = is_lazy;
        self.hurry();
        Ok(())
    }

    fn return_slots(&mut self) {
        if self.is_lost {
            self.link.returned.clear();
            return;
        }
        if let Err(error) = self.try_return_slots() {
            self.on_engine_lost(&error.to_string());
        }
    }

    fn try_return_slots(&mut self) -> Result<(), RingError> {
        let link = &mut self.link;
        for slot in link.returned.drain(..) {
            // Its capacity is the number of slots: there is always room.
            let _ = link.ring.push_return(slot)?;
        }
        if link.ring.submit_returns()? {
            self.statistics.syscalls += 1;
            self.statistics.doorbells += 1;
        }
        Ok(())
    }

    /// Makes sure that the file descriptor is readable while the queue holds events.
    pub(super) fn keep_readable(&mut self) {
        if self.link.ready.is_empty() {
            return;
        }
        let is_rung = !self.is_lost && matches!(self.link.ring.armed_for(), Ok(None));
        if !is_rung {
            self.statistics.syscalls += u64::from(self.local_event.set());
        }
    }
}
