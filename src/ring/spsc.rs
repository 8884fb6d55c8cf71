#![forbid(unsafe_code)]
//! Rings with one producer and one consumer in different processes.
//!
//! Indices run freely over all of u32 and are masked only to find an entry. Each side keeps its own
//! index in private memory and never reads it back from the area. The other side's index is believed
//! only after the check in [`Producer::refresh`] and [`Consumer::refresh`].

use super::atomic::{Arc, AtomicU32, Ordering};
use super::RingError;
use crate::mem::Region;

/// Where a ring is in the area.
#[derive(Debug, Clone, Copy)]
pub struct RingPlace {
    /// Its name in errors.
    pub name: &'static str,
    /// Where its entries start.
    pub entries: u64,
    /// How many entries it has; a power of two.
    pub capacity: u32,
    /// Where the producer's index is.
    pub tail: usize,
    /// Where the consumer's index is.
    pub head: usize,
}

/// No free entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// The writing end of a ring of entries of `N` bytes.
#[derive(Debug)]
pub struct Producer<const N: usize> {
    region: Arc<Region>,
    place: RingPlace,
    /// Where the next entry goes.
    tail: u32,
    /// The tail that the consumer was told.
    published: u32,
    /// The consumer's index when it was last looked at.
    head: u32,
}

impl<const N: usize> Producer<N> {
    /// The writing end of an empty ring.
    pub fn new(region: &Arc<Region>, place: RingPlace) -> Result<Self, RingError> {
        check_place::<N>(region, &place)?;
        Ok(Self {
            region: region.clone(),
            place,
            tail: 0,
            published: 0,
            head: 0,
        })
    }

    /// Writes an entry, invisible to the consumer until [`Producer::publish`].
    pub fn push(&mut self, entry: &[u8; N]) -> Result<Result<(), Full>, RingError> {
        if self.used() == self.place.capacity {
            self.refresh()?;
            if self.used() == self.place.capacity {
                return Ok(Err(Full));
            }
        }
        self.region
            .write(entry_at::<N>(&self.place, self.tail), entry)?;
        self.tail = self.tail.wrapping_add(1);
        Ok(Ok(()))
    }

    /// Shows the consumer all that was pushed. Returns whether there was anything new.
    pub fn publish(&mut self) -> Result<bool, RingError> {
        if self.published == self.tail {
            return Ok(false);
        }
        // Release: the entries are written before the index says so. Partner: the Acquire load in
        // `Consumer::refresh`.
        index(&self.region, self.place.tail)?.store(self.tail, Ordering::Release);
        self.published = self.tail;
        Ok(true)
    }

    /// Free entries, with a fresh look at the consumer's index.
    pub fn free(&mut self) -> Result<u32, RingError> {
        self.refresh()?;
        Ok(self.place.capacity - self.used())
    }

    /// How many entries were pushed so far, modulo 2^32.
    pub fn position(&self) -> u32 {
        self.tail
    }

    /// Whether the consumer has taken all entries before `position` (which must not be older than
    /// 2^31 entries).
    pub fn is_consumed(&mut self, position: u32) -> Result<bool, RingError> {
        self.refresh()?;
        Ok(self.head.wrapping_sub(position) < 1 << 31)
    }

    fn used(&self) -> u32 {
        self.tail.wrapping_sub(self.head)
    }

    fn refresh(&mut self) -> Result<(), RingError> {
        // Acquire: the consumer has copied an entry before its index moves past it, so that the
        // entry can be overwritten. Partner: the Release store in `Consumer::release`.
        let head = index(&self.region, self.place.head)?.load(Ordering::Acquire);
        check_index(&self.place, self.tail, head)?;
        // An index that moves backwards stays inside the capacity, and only delays its owner.
        self.head = head;
        Ok(())
    }
}

/// The reading end of a ring of entries of `N` bytes.
#[derive(Debug)]
pub struct Consumer<const N: usize> {
    region: Arc<Region>,
    place: RingPlace,
    /// The next entry to read.
    head: u32,
    /// The head that the producer was told.
    released: u32,
    /// The producer's index when it was last looked at.
    tail: u32,
}

impl<const N: usize> Consumer<N> {
    /// The reading end of an empty ring.
    pub fn new(region: &Arc<Region>, place: RingPlace) -> Result<Self, RingError> {
        check_place::<N>(region, &place)?;
        Ok(Self {
            region: region.clone(),
            place,
            head: 0,
            released: 0,
            tail: 0,
        })
    }

    /// Copies the next entry out, once. Its place can be used again after [`Consumer::release`].
    pub fn pop(&mut self) -> Result<Option<[u8; N]>, RingError> {
        if self.head == self.tail {
            self.refresh()?;
            if self.head == self.tail {
                return Ok(None);
            }
        }
        let mut entry = [0; N];
        self.region
            .read(entry_at::<N>(&self.place, self.head), &mut entry)?;
        self.head = self.head.wrapping_add(1);
        Ok(Some(entry))
    }

    /// Gives the places of all entries popped so far back.
    pub fn release(&mut self) -> Result<(), RingError> {
        if self.released != self.head {
            // Release: the copies are complete before the index says so. Partner: the Acquire load
            // in `Producer::refresh`.
            index(&self.region, self.place.head)?.store(self.head, Ordering::Release);
            self.released = self.head;
        }
        Ok(())
    }

    /// Entries that can be popped, with a fresh look at the producer's index.
    pub fn pending(&mut self) -> Result<u32, RingError> {
        self.refresh()?;
        Ok(self.tail.wrapping_sub(self.head))
    }

    fn refresh(&mut self) -> Result<(), RingError> {
        // Acquire: the entries are read after the index that tells of them. Partner: the Release
        // store in `Producer::publish`.
        let tail = index(&self.region, self.place.tail)?.load(Ordering::Acquire);
        check_index(&self.place, tail, self.head)?;
        self.tail = tail;
        Ok(())
    }
}

/// The only place where an index of the other side is judged: between head and tail there are at
/// most as many entries as the ring has.
fn check_index(place: &RingPlace, tail: u32, head: u32) -> Result<(), RingError> {
    let used = tail.wrapping_sub(head);
    if used > place.capacity {
        return Err(RingError::Index {
            ring: place.name,
            used,
            capacity: place.capacity,
        });
    }
    Ok(())
}

/// Where entry `index` is. The product is below 2^32 * N and the sum was checked by `check_place`.
fn entry_at<const N: usize>(place: &RingPlace, index: u32) -> usize {
    let masked = index & (place.capacity - 1);
    place.entries as usize + masked as usize * N
}

fn index(region: &Region, at: usize) -> Result<&AtomicU32, RingError> {
    Ok(region.atomic_u32(at)?)
}

fn check_place<const N: usize>(region: &Region, place: &RingPlace) -> Result<(), RingError> {
    let end = u64::from(place.capacity)
        .checked_mul(N as u64)
        .and_then(|bytes| bytes.checked_add(place.entries));
    let fits = end.is_some_and(|end| end <= region.len() as u64);
    if !place.capacity.is_power_of_two() || place.capacity > 1 << 31 || !fits {
        return Err(RingError::Range {
            part: place.name,
            offset: place.entries,
            length: u64::from(place.capacity) * N as u64,
        });
    }
    index(region, place.tail)?;
    index(region, place.head)?;
    Ok(())
}
