#![forbid(unsafe_code)]
//! The engine's end of an area.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::entry::{CqEntry, CqKind, Descriptor, Segment, SqEntry};
use super::layout::{at, AreaOptions, Layout, Part, ENTRY_BYTES, MAGIC, RETURN_BYTES};
use super::record::{self, ConnectionCounters, ConnectionRecord};
use super::spsc::{Consumer, Full, Producer};
use super::{wake, RingError, ABI};
use crate::mem::{MemSlice, Region};
use crate::sys::{Bell, Cleared, Memfd};

/// One handle's area, as the engine holds it. See the module's documentation for how to use it.
#[derive(Debug)]
pub struct EngineSide {
    layout: Layout,
    memfd: Memfd,
    region: Arc<Region>,
    bell: Bell,
    /// The handle's end, until it was handed over.
    peer_bell: Option<Bell>,
    sq: Consumer<{ ENTRY_BYTES as usize }>,
    cq: Producer<{ ENTRY_BYTES as usize }>,
    returns: Consumer<{ RETURN_BYTES as usize }>,
    /// Which receive slots the handle has.
    lent: Vec<bool>,
    lent_count: u32,
}

/// A place in the completion ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CqPosition(u32);

/// Why a completion could not be pushed.
#[derive(Debug)]
pub enum PushError {
    /// No room: the handle does not take its entries. Only [`EngineSide::push_offer`] fails like
    /// this for an honest handle.
    Full,
    /// The handle lies.
    Ring(RingError),
}

impl std::fmt::Display for PushError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full => write!(f, "the completion ring is full"),
            Self::Ring(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for PushError {}

impl From<RingError> for PushError {
    fn from(error: RingError) -> Self {
        Self::Ring(error)
    }
}

impl EngineSide {
    /// Makes a new area.
    pub fn new(options: &AreaOptions) -> Result<Self, RingError> {
        let layout = Layout::new(options)?;
        let os = |what| move |error| RingError::Os(what, error);
        let size = layout.area_size();
        let memfd = Memfd::sealed("smbdirect", size).map_err(os("cannot make shared memory"))?;
        let region =
            Region::map_shared(&memfd, size as usize).map_err(os("cannot map shared memory"))?;
        let (bell, peer_bell) = Bell::pair().map_err(os("cannot make a socket pair"))?;
        region.atomic_u32(at::ABI)?.store(ABI, Ordering::Relaxed);
        region
            .atomic_u64(at::MAGIC)?
            .store(MAGIC, Ordering::Relaxed);
        Ok(Self {
            sq: Consumer::new(&region, layout.sq_place())?,
            cq: Producer::new(&region, layout.cq_place())?,
            returns: Consumer::new(&region, layout.returns_place())?,
            lent: vec![false; layout.options().receive_slots as usize],
            lent_count: 0,
            layout,
            memfd,
            region,
            bell,
            peer_bell: Some(peer_bell),
        })
    }

    /// What to send to the handle with [`crate::ipc::Reply::Opened`]: the memory, then its end of the
    /// bell.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds = vec![self.memfd.as_fd()];
        fds.extend(self.peer_bell.as_ref().map(AsFd::as_fd));
        fds
    }

    /// Closes our copy of the handle's end of the bell; call it when the descriptors were sent.
    pub fn handed_over(&mut self) {
        self.peer_bell = None;
    }

    /// The layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The mapping.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Readable when the handle rings, and when it has closed its end.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Takes the rings back.
    pub fn clear_bell(&self) -> Cleared {
        self.bell.clear()
    }

    /// Copies the next submission out and checks it.
    pub fn pop_sq(&mut self) -> Result<Option<SqEntry>, RingError> {
        match self.sq.pop()? {
            Some(bytes) => Ok(Some(SqEntry::decode(&bytes)?)),
            None => Ok(None),
        }
    }

    /// Submissions that wait.
    pub fn sq_pending(&mut self) -> Result<u32, RingError> {
        self.sq.pending()
    }

    /// Takes one returned receive slot.
    pub fn pop_return(&mut self) -> Result<Option<u32>, RingError> {
        let Some(bytes) = self.returns.pop()? else {
            return Ok(None);
        };
        let slot = u32::from_ne_bytes(bytes);
        match self.lent.get_mut(slot as usize) {
            Some(lent) if *lent => {
                *lent = false;
                self.lent_count -= 1;
                Ok(Some(slot))
            }
            _ => Err(RingError::Slot(slot)),
        }
    }

    /// Returned slots that wait.
    pub fn returns_pending(&mut self) -> Result<u32, RingError> {
        self.returns.pending()
    }

    /// Receive slots that the handle has now.
    pub fn lent_slots(&self) -> u32 {
        self.lent_count
    }

    /// Lets the handle use the places of all popped entries again.
    pub fn release(&mut self) -> Result<(), RingError> {
        self.sq.release()?;
        self.returns.release()
    }

    /// Writes a completion, invisible until [`EngineSide::publish`]. A Fragment lends its slot.
    pub fn push_cq(&mut self, entry: &CqEntry) -> Result<CqPosition, PushError> {
        if entry.kind == CqKind::Fragment {
            match self.lent.get(entry.slot as usize) {
                Some(false) => {}
                _ => return Err(RingError::Slot(entry.slot).into()),
            }
        }
        match self.cq.push(&entry.encode())? {
            Ok(()) => {}
            Err(Full) => return Err(PushError::Full),
        }
        if entry.kind == CqKind::Fragment {
            self.lent[entry.slot as usize] = true;
            self.lent_count += 1;
        }
        Ok(CqPosition(self.cq.position()))
    }

    /// Writes an Offered entry if the room of all other completions stays free.
    pub fn push_offer(&mut self, entry: &CqEntry) -> Result<CqPosition, PushError> {
        // The capacity is this sum rounded up to a power of two, see `Layout::new`.
        let options = self.layout.options();
        let reserved =
            options.receive_slots + self.layout.max_operations() + 4 * options.max_connections;
        if self.cq.free()? <= reserved {
            return Err(PushError::Full);
        }
        self.push_cq(entry)
    }

    /// Whether the handle has taken the entry that was pushed at `position`.
    pub fn is_consumed(&mut self, position: CqPosition) -> Result<bool, RingError> {
        self.cq.is_consumed(position.0)
    }

    /// Shows the handle all that was pushed, and rings if it waits for such: `urgent` tells that not
    /// only lazy completions were pushed. Returns whether it rang.
    pub fn publish(&mut self, urgent: bool) -> Result<bool, RingError> {
        let armed = self.region.atomic_u32(at::CQ_ARMED)?;
        let rings = if urgent {
            wake::announce(&mut self.cq, armed)?
        } else {
            wake::announce_lazily(&mut self.cq, armed)?
        };
        if rings {
            self.bell.ring();
        }
        Ok(rings)
    }

    /// Tells the handle whether to ring when it submits. True: there is work already (submissions,
    /// or returned slots while they are wanted).
    pub fn set_sleeping(&mut self, sleeping: bool) -> Result<bool, RingError> {
        let flag = self.region.atomic_u32(at::ENGINE_SLEEPING)?;
        if wake::set_sleeping(&mut self.sq, flag, sleeping)? {
            return Ok(true);
        }
        let wanted = self.region.atomic_u32(at::RETURNS_WANTED)?;
        Ok(wanted.load(Ordering::Relaxed) != 0 && self.returns.pending()? > 0)
    }

    /// Tells the handle whether to ring when it returns receive slots. True: some wait already.
    pub fn set_returns_wanted(&mut self, wanted: bool) -> Result<bool, RingError> {
        let flag = self.region.atomic_u32(at::RETURNS_WANTED)?;
        wake::set_sleeping(&mut self.returns, flag, wanted)
    }

    /// The whole of receive slot `slot` (receive_slot_size bytes).
    pub fn recv_slot(&self, slot: u32) -> Result<MemSlice, RingError> {
        let offset = self.layout.slot_offset(slot).ok_or(RingError::Slot(slot))?;
        let len = self.layout.options().receive_slot_size;
        Ok(MemSlice::new(&self.region, offset as usize, len as usize)?)
    }

    /// A piece of the send area; `offset` counts from the start of the area, as in [`SqEntry`].
    pub fn send_slice(&self, offset: u64, length: u32) -> Result<MemSlice, RingError> {
        self.slice("send area", &self.layout.send, offset, length.into())
    }

    /// A piece of the RDMA buffers; `offset` counts from the start of the area.
    pub fn rdma_slice(&self, offset: u64, length: u64) -> Result<MemSlice, RingError> {
        self.slice("RDMA buffers", &self.layout.rdma, offset, length)
    }

    /// The segments and descriptors of an RDMA operation, copied once. The segments are not empty
    /// and lie inside the RDMA buffers.
    pub fn rdma_arrays(
        &self,
        entry: &SqEntry,
    ) -> Result<(Vec<Segment>, Vec<Descriptor>), RingError> {
        // `SqEntry::decode` has bounded both counts and compared them with the length.
        let bytes = self.send_slice(entry.offset, entry.length)?.to_vec();
        let mut records = bytes.chunks_exact(16).map(|chunk| {
            let mut record = [0; 16];
            record.copy_from_slice(chunk);
            record
        });
        let mut segments = Vec::with_capacity(entry.segments as usize);
        for record in records.by_ref().take(entry.segments as usize) {
            let segment = Segment::decode(&record);
            let inside = self.layout.rdma.position(segment.offset, segment.length);
            if segment.length == 0 || inside.is_none() {
                return Err(RingError::Range {
                    part: "RDMA buffers",
                    offset: segment.offset,
                    length: segment.length,
                });
            }
            segments.push(segment);
        }
        Ok((segments, records.map(|r| Descriptor::decode(&r)).collect()))
    }

    /// Writes the record of a connection and sets its counters to 0. The low 16 bits of its id
    /// must be below max_connections.
    pub fn write_connection(&self, record: &ConnectionRecord) -> Result<(), RingError> {
        if record::write(&self.region, &self.layout, record)? {
            return Ok(());
        }
        Err(self.no_record(record.connection))
    }

    /// Writes the counters of a connection.
    pub fn write_counters(
        &self,
        connection: u64,
        counters: &ConnectionCounters,
    ) -> Result<(), RingError> {
        if record::write_counters(&self.region, &self.layout, connection, counters)? {
            return Ok(());
        }
        Err(self.no_record(connection))
    }

    /// Bytes of the area that are committed now.
    pub fn committed_bytes(&self) -> Result<u64, RingError> {
        self.memfd
            .committed_bytes()
            .map_err(|error| RingError::Os("cannot look at shared memory", error))
    }

    /// Gives the memory of receive slots and send area back, for a handle without connections.
    /// Does nothing while the handle still has slots to read. The RDMA buffers stay: their content is
    /// the user's, who may be writing it to a file after its connection has gone.
    pub fn punch_idle(&self) -> Result<(), RingError> {
        if self.lent_count > 0 {
            return Ok(());
        }
        for part in [&self.layout.receive, &self.layout.send] {
            self.memfd
                .punch(part.offset, part.len)
                .map_err(|error| RingError::Os("cannot give shared memory back", error))?;
        }
        Ok(())
    }

    fn slice(
        &self,
        name: &'static str,
        part: &Part,
        offset: u64,
        length: u64,
    ) -> Result<MemSlice, RingError> {
        if part.position(offset, length).is_none() {
            return Err(RingError::Range {
                part: name,
                offset,
                length,
            });
        }
        Ok(MemSlice::new(
            &self.region,
            offset as usize,
            length as usize,
        )?)
    }

    fn no_record(&self, connection: u64) -> RingError {
        RingError::Range {
            part: "connection table",
            offset: record::connection_index(connection).into(),
            length: 1,
        }
    }
}
