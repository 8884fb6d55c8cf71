#![forbid(unsafe_code)]
//! PDUs and RDMA operations on their way to the engine.

use super::error::ClientError;
use super::handle::Handle;
use super::send_area::Run;
use crate::mem::MemSlice;
use crate::ring::{
    flags, Descriptor, Layout, Segment, SqEntry, SqOp, MAX_DESCRIPTORS, MAX_SEGMENTS,
};

/// A PDU to send.
#[derive(Debug, Clone, Copy)]
pub struct SendPdu {
    /// The connection.
    pub connection: u64,
    /// Comes back in the event.
    pub cookie: u64,
    /// Whether success is told by an event.
    pub has_event: bool,
    /// The peer's token to invalidate.
    pub invalidate: Option<u32>,
    /// Bytes of the PDU.
    pub length: usize,
}

/// An RDMA operation.
#[derive(Debug, Clone, Copy)]
pub struct RdmaOp<'a> {
    /// The connection.
    pub connection: u64,
    /// Comes back in the event.
    pub cookie: u64,
    /// Whether success is told by an event.
    pub has_event: bool,
    /// The event of its success may wait for another one.
    pub is_lazy: bool,
    /// From the peer to us; else from us to the peer.
    pub is_read: bool,
    /// The next PDU invalidates the first descriptor's token.
    pub invalidate_next: bool,
    /// Local memory.
    pub segments: &'a [Segment],
    /// The peer's memory.
    pub descriptors: &'a [Descriptor],
}

impl Handle {
    /// Queues a PDU, whose bytes `fill` writes to the memory it is given. The engine does not see it
    /// before [`Handle::submit`]. EAGAIN: no room now, a Writable event will follow.
    pub fn queue_pdu(
        &mut self,
        pdu: &SendPdu,
        fill: &mut dyn FnMut(&MemSlice) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        let limit = self
            .sending(pdu.connection)?
            .record
            .max_fragmented_send_size;
        let length = u32::try_from(pdu.length).unwrap_or(u32::MAX);
        if length == 0 {
            return Err(ClientError::new(libc::EINVAL, "the PDU is empty"));
        }
        if length > limit {
            return Err(ClientError::new(
                libc::EMSGSIZE,
                format!("the PDU has {length} bytes, the peer takes {limit}"),
            ));
        }
        let mut entry = SqEntry::new(SqOp::SendPdu, pdu.connection, pdu.cookie);
        entry.length = length;
        if !pdu.has_event {
            entry.flags |= flags::LAZY;
        }
        self.queue(entry, pdu.has_event, fill, |entry, connection| {
            let next = connection.next_invalidate.take();
            if let Some(token) = pdu.invalidate.or(next) {
                entry.flags |= flags::INVALIDATE;
                entry.token = token;
            }
        })
    }

    /// Queues a PDU that is in one piece.
    pub fn queue_bytes(&mut self, pdu: &SendPdu, bytes: &[u8]) -> Result<(), ClientError> {
        let pdu = SendPdu {
            length: bytes.len(),
            ..*pdu
        };
        self.queue_pdu(&pdu, &mut |to| to.write(0, bytes).map_err(outside))
    }

    /// Queues an RDMA operation; as [`Handle::queue_pdu`].
    pub fn queue_rdma(&mut self, op: &RdmaOp<'_>) -> Result<(), ClientError> {
        let limit = self.sending(op.connection)?.record.max_read_write_size;
        let (segments, descriptors) = self.check_rdma(op, limit)?;
        let sq_op = if op.is_read {
            SqOp::RdmaRead
        } else {
            SqOp::RdmaWrite
        };
        let mut entry = SqEntry::new(sq_op, op.connection, op.cookie);
        entry.segments = segments;
        entry.descriptors = descriptors;
        // At most 66,560 * 16 bytes.
        entry.length = (segments + descriptors) * 16;
        if op.is_lazy || !op.has_event {
            entry.flags |= flags::LAZY;
        }
        let mut fill = |to: &MemSlice| {
            let segments = op.segments.iter().map(Segment::encode);
            let records = segments.chain(op.descriptors.iter().map(Descriptor::encode));
            for (i, record) in records.enumerate() {
                to.write(i * 16, &record).map_err(outside)?;
            }
            Ok(())
        };
        self.queue(entry, op.has_event, &mut fill, |_, connection| {
            if op.invalidate_next {
                connection.next_invalidate = op.descriptors.first().map(|first| first.token);
            }
        })
    }

    /// Shows the engine all that was queued.
    pub fn submit(&mut self) -> Result<(), ClientError> {
        self.check_opener()?;
        if self.link.ring.submit()? {
            self.statistics.syscalls += 1;
            self.statistics.doorbells += 1;
        }
        Ok(())
    }

    /// Ends a connection, after what was queued before. Submits.
    pub fn disconnect(&mut self, connection: u64) -> Result<(), ClientError> {
        self.check_link()?;
        let entry = self.connection(connection)?;
        if entry.is_ending {
            return Ok(());
        }
        entry.is_ending = true;
        // Each connection needs one entry of the ring at most, for which it has room.
        let request = SqEntry::new(SqOp::Disconnect, connection, 0);
        if self.link.ring.push_sq(&request)?.is_err() {
            self.connection(connection)?.is_ending = false;
            return Err(ClientError::new(
                libc::EAGAIN,
                "the submission ring is full",
            ));
        }
        self.submit()
    }

    /// Notes that a call took fewer operations than it was offered.
    pub(super) fn no_room(&mut self, pages: u32) -> ClientError {
        let wanted = self.link.room_wanted.get_or_insert(0);
        *wanted = (*wanted).max(pages);
        self.statistics.back_pressure += 1;
        self.hurry();
        ClientError::new(
            libc::EAGAIN,
            "no room for another operation: wait for SMBD_EVENT_WRITABLE",
        )
    }

    fn sending(
        &mut self,
        connection: u64,
    ) -> Result<&mut super::connection::Connection, ClientError> {
        self.check_link()?;
        let entry = self.connection(connection)?;
        if entry.can_send() {
            return Ok(entry);
        }
        Err(ClientError::new(
            libc::ENOTCONN,
            format!("connection {connection:#x} is not attached yet, or not any more"),
        ))
    }

    fn queue(
        &mut self,
        mut entry: SqEntry,
        has_event: bool,
        fill: &mut dyn FnMut(&MemSlice) -> Result<(), ClientError>,
        finish: impl FnOnce(&mut SqEntry, &mut super::connection::Connection),
    ) -> Result<(), ClientError> {
        let pages = entry.length.div_ceil(Layout::PAGE as u32);
        if pages > self.link.send_area.total() {
            return Err(ClientError::new(
                libc::EMSGSIZE,
                format!(
                    "{} bytes do not fit the send area: open with a larger send_area_size",
                    entry.length
                ),
            ));
        }
        if !self.link.operations.has_room() {
            return Err(self.no_room(pages));
        }
        let Some(run) = self.link.send_area.allocate(pages) else {
            return Err(self.no_room(pages));
        };
        entry.offset = self.link.ring.layout().send.offset + u64::from(run.start) * Layout::PAGE;
        match self.fill_and_push(entry, has_event, run, fill, finish) {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.link.send_area.release(run);
                Err(self.no_room(pages))
            }
            Err(error) => {
                self.link.send_area.release(run);
                Err(error)
            }
        }
    }

    /// False: the submission ring is full.
    fn fill_and_push(
        &mut self,
        mut entry: SqEntry,
        has_event: bool,
        run: Run,
        fill: &mut dyn FnMut(&MemSlice) -> Result<(), ClientError>,
        finish: impl FnOnce(&mut SqEntry, &mut super::connection::Connection),
    ) -> Result<bool, ClientError> {
        let link = &mut self.link;
        let memory = MemSlice::new(
            link.ring.region(),
            entry.offset as usize,
            entry.length as usize,
        )
        .map_err(outside)?;
        fill(&memory)?;
        if link.ring.free_sq()? == 0 {
            return Ok(false);
        }
        if let Some(connection) = link.connections.get_mut(&entry.connection) {
            finish(&mut entry, connection);
        }
        let user_cookie = entry.cookie;
        let operations = &mut link.operations;
        entry.cookie = operations.begin(entry.op, entry.connection, user_cookie, has_event, run);
        // `free_sq` has found room, and nobody else pushes.
        let _ = link.ring.push_sq(&entry)?;
        Ok(true)
    }

    /// Checks an operation; returns how many segments and descriptors it has.
    fn check_rdma(&self, op: &RdmaOp<'_>, limit: u32) -> Result<(u32, u32), ClientError> {
        let invalid = |text: String| Err(ClientError::new(libc::EINVAL, text));
        let count = |name, n: usize, max: u32| match u32::try_from(n) {
            Ok(n) if (1..=max).contains(&n) => Ok(n),
            _ => Err(ClientError::new(
                libc::EINVAL,
                format!("{name} is {n}, it may be 1..={max}"),
            )),
        };
        let segments = count("segment_count", op.segments.len(), MAX_SEGMENTS)?;
        let descriptors = count("descriptor_count", op.descriptors.len(), MAX_DESCRIPTORS)?;
        let rdma = self.link.ring.layout().rdma;
        let mut total = 0_u64;
        for segment in op.segments {
            let inside = rdma.position(segment.offset, segment.length).is_some();
            if !inside || segment.length == 0 {
                return invalid(format!(
                    "the segment of {} bytes at {} is not a piece of the RDMA buffers, {} bytes \
                     at {}",
                    segment.length, segment.offset, rdma.len, rdma.offset
                ));
            }
            // At most 1024 * 256 GiB.
            total += segment.length;
        }
        if total > limit.into() {
            return Err(ClientError::new(
                libc::EMSGSIZE,
                format!("{total} bytes in one operation, the connection allows {limit}"),
            ));
        }
        let there: u64 = op.descriptors.iter().map(|d| u64::from(d.length)).sum();
        if there < total {
            return invalid(format!(
                "the descriptors have {there} bytes, the segments {total}"
            ));
        }
        Ok((segments, descriptors))
    }
}

fn outside(error: crate::mem::MemError) -> ClientError {
    ClientError::new(libc::EINVAL, error.to_string())
}
