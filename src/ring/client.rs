#![forbid(unsafe_code)]
//! The handle's end of an area.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::entry::{CqEntry, SqEntry};
use super::layout::{at, AreaOptions, Layout, ENTRY_BYTES, MAGIC, RETURN_BYTES};
use super::record::{self, ConnectionCounters, ConnectionRecord};
use super::spsc::{Consumer, Full, Producer};
use super::{wake, RingError, ABI};
use crate::mem::Region;
use crate::sys::{Bell, Cleared, Memfd};

/// For which completions the engine is to ring. The values are those of the wake flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum RingFor {
    /// For all but successes that were asked for with [`flags::LAZY`](super::flags::LAZY).
    Urgent = wake::URGENT,
    /// For each.
    All = wake::ALL,
}

/// One handle's area, as the handle holds it.
#[derive(Debug)]
pub struct ClientSide {
    layout: Layout,
    memfd: Memfd,
    region: Arc<Region>,
    bell: Bell,
    sq: Producer<{ ENTRY_BYTES as usize }>,
    cq: Consumer<{ ENTRY_BYTES as usize }>,
    returns: Producer<{ RETURN_BYTES as usize }>,
}

impl ClientSide {
    /// Maps an area that the engine has made with `options`.
    pub fn new(options: &AreaOptions, memfd: OwnedFd, bell: OwnedFd) -> Result<Self, RingError> {
        let layout = Layout::new(options)?;
        let size = layout.area_size();
        let memfd = Memfd::from_fd(memfd, size)
            .map_err(|error| RingError::Os("cannot use the shared memory", error))?;
        let region = Region::map_shared(&memfd, size as usize)
            .map_err(|error| RingError::Os("cannot map the shared memory", error))?;
        let magic = region.atomic_u64(at::MAGIC)?.load(Ordering::Relaxed);
        let abi = region.atomic_u32(at::ABI)?.load(Ordering::Relaxed);
        if magic != MAGIC || abi != ABI {
            return Err(RingError::Header { magic, abi });
        }
        Ok(Self {
            sq: Producer::new(&region, layout.sq_place())?,
            cq: Consumer::new(&region, layout.cq_place())?,
            returns: Producer::new(&region, layout.returns_place())?,
            layout,
            memfd,
            region,
            bell: Bell::from_fd(bell),
        })
    }

    /// The layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The mapping.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// The memory's file descriptor.
    pub fn memfd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }

    /// Readable when the engine rings, and when it has closed its end.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Writes a submission, invisible until [`ClientSide::submit`].
    pub fn push_sq(&mut self, entry: &SqEntry) -> Result<Result<(), Full>, RingError> {
        self.sq.push(&entry.encode())
    }

    /// Free entries of the submission ring.
    pub fn free_sq(&mut self) -> Result<u32, RingError> {
        self.sq.free()
    }

    /// Shows the engine all submissions, and rings if it sleeps. Returns whether it rang.
    pub fn submit(&mut self) -> Result<bool, RingError> {
        let sleeps = self.region.atomic_u32(at::ENGINE_SLEEPING)?;
        let rings = wake::announce(&mut self.sq, sleeps)?;
        Ok(self.ring_if(rings))
    }

    /// Returns a receive slot, invisible until [`ClientSide::submit_returns`].
    pub fn push_return(&mut self, slot: u32) -> Result<Result<(), Full>, RingError> {
        self.returns.push(&slot.to_ne_bytes())
    }

    /// Shows the engine all returned slots, and rings if it waits for some. Returns whether it rang.
    pub fn submit_returns(&mut self) -> Result<bool, RingError> {
        let wanted = self.region.atomic_u32(at::RETURNS_WANTED)?;
        let rings = wake::announce(&mut self.returns, wanted)?;
        Ok(self.ring_if(rings))
    }

    /// Copies the next completion out.
    pub fn pop_cq(&mut self) -> Result<Option<CqEntry>, RingError> {
        match self.cq.pop()? {
            Some(bytes) => Ok(Some(CqEntry::decode(&bytes)?)),
            None => Ok(None),
        }
    }

    /// Lets the engine use the places of all popped completions again.
    pub fn release(&mut self) -> Result<(), RingError> {
        self.cq.release()
    }

    /// For what the engine was asked to ring; `None`: for nothing, or it has rung.
    pub fn armed_for(&self) -> Result<Option<RingFor>, RingError> {
        let armed = self.region.atomic_u32(at::CQ_ARMED)?;
        Ok(match armed.load(Ordering::Relaxed) {
            0 => None,
            wake if wake == RingFor::All as u32 => Some(RingFor::All),
            _ => Some(RingFor::Urgent),
        })
    }

    /// Asks an engine that was asked to ring for what is urgent, and has not yet, to ring for all.
    /// True: there are completions already, for which it may not ring.
    pub fn arm_for_all(&mut self) -> Result<bool, RingError> {
        let armed = self.region.atomic_u32(at::CQ_ARMED)?;
        wake::sleep_for_all(&mut self.cq, armed)
    }

    /// Takes the rings back and asks the engine to ring at its next completion. True: there are
    /// completions already, for which it may not ring.
    pub fn arm(&mut self, ring_for: RingFor) -> Result<(Cleared, bool), RingError> {
        let cleared = self.bell.clear();
        let armed = self.region.atomic_u32(at::CQ_ARMED)?;
        let ready = wake::sleep_for(&mut self.cq, armed, ring_for as u32)?;
        Ok((cleared, ready))
    }

    /// Asks the engine not to ring; true if it had been asked to and has not rung.
    pub fn disarm(&self) -> Result<bool, RingError> {
        Ok(wake::take_flag(self.region.atomic_u32(at::CQ_ARMED)?))
    }

    /// A connection's record; `None`: it has none any more.
    pub fn connection(
        &self,
        connection: u64,
    ) -> Result<Option<(ConnectionRecord, ConnectionCounters)>, RingError> {
        record::read(&self.region, &self.layout, connection)
    }

    fn ring_if(&self, rings: bool) -> bool {
        if rings {
            self.bell.ring();
        }
        rings
    }
}
