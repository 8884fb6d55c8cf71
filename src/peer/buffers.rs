//! Memory that is used again: whole received PDUs, and room for PDUs to send.

use std::ops::Deref;
use std::sync::Arc;

use crate::mem::{MemSlice, Region};

/// A received upper-layer message. Give it back with [`Endpoint::recycle`](super::Endpoint) to
/// save an allocation.
#[derive(Default)]
pub struct Pdu {
    /// Initialised once, up to the longest message it has held.
    bytes: Vec<u8>,
    len: usize,
}

impl Pdu {
    /// Room for the next `more` bytes, which belong to the message from now on.
    pub(super) fn grow(&mut self, more: usize) -> &mut [u8] {
        let start = self.len;
        self.len += more;
        if self.bytes.len() < self.len {
            self.bytes.resize(self.len, 0);
        }
        &mut self.bytes[start..self.len]
    }

    /// Makes one allocation out of the many that growing to `len` bytes would take.
    pub(super) fn reserve(&mut self, len: usize) {
        self.bytes.reserve(len.saturating_sub(self.bytes.len()));
    }

    fn clear(&mut self) {
        self.len = 0;
    }
}

impl Deref for Pdu {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // `grow` keeps len within the vector.
        &self.bytes[..self.len]
    }
}

impl std::fmt::Debug for Pdu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pdu({} bytes)", self.len)
    }
}

/// Buffers of finished PDUs, a few of them.
#[derive(Default)]
pub(super) struct PduPool {
    free: Vec<Pdu>,
    bytes: usize,
}

impl PduPool {
    /// An empty buffer.
    pub(super) fn take(&mut self) -> Pdu {
        let pdu = self.free.pop().unwrap_or_default();
        self.bytes -= pdu.bytes.capacity();
        pdu
    }

    /// Keeps the buffer for later, as long as all kept ones stay below a fixed sum.
    pub(super) fn put(&mut self, mut pdu: Pdu) {
        let capacity = pdu.bytes.capacity();
        if self.bytes + capacity <= KEEP_BYTES && self.free.len() < KEEP_COUNT {
            pdu.clear();
            self.bytes += capacity;
            self.free.push(pdu);
        }
    }
}

/// Memory for one message to send, from [`Endpoint::send_buffer_of`](super::Endpoint).
#[derive(Debug)]
pub struct SendBuffer(pub(super) MemSlice);

impl SendBuffer {
    /// Its memory: as many bytes as were asked for.
    pub fn memory(&self) -> &MemSlice {
        &self.0
    }
}

/// Regions for PDUs on their way out, by powers of two.
#[derive(Default)]
pub(super) struct SendPool {
    classes: [Vec<Arc<Region>>; CLASSES],
    bytes: usize,
}

impl SendPool {
    /// Room for `len` bytes; more may be behind it.
    pub(super) fn take(&mut self, len: usize) -> std::io::Result<MemSlice> {
        let size = len.max(MIN_REGION).next_power_of_two();
        let region = match self.class(size).and_then(Vec::pop) {
            Some(region) => {
                self.bytes -= size;
                region
            }
            None => Region::anonymous(size)?,
        };
        MemSlice::new(&region, 0, len).map_err(std::io::Error::other)
    }

    /// Takes room back when nobody else names it any more.
    pub(super) fn put(&mut self, memory: &MemSlice) {
        let region = memory.region();
        let size = region.len();
        if self.bytes + size > KEEP_BYTES || !size.is_power_of_two() {
            return;
        }
        let region = region.clone();
        if let Some(class) = self.class(size) {
            class.push(region);
            self.bytes += size;
        }
    }

    fn class(&mut self, size: usize) -> Option<&mut Vec<Arc<Region>>> {
        let index = size
            .trailing_zeros()
            .checked_sub(MIN_REGION.trailing_zeros())?;
        self.classes.get_mut(index as usize)
    }
}

/// Smallest region of [`SendPool`].
const MIN_REGION: usize = 4096;
/// 4 KiB to 32 MiB.
const CLASSES: usize = 14;
/// Kept per pool at most.
const KEEP_BYTES: usize = 64 << 20;
const KEEP_COUNT: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recycled_pdu_starts_empty() {
        let mut pool = PduPool::default();
        let mut pdu = pool.take();
        pdu.reserve(8);
        pdu.grow(3).copy_from_slice(b"abc");
        pdu.grow(2).copy_from_slice(b"de");
        assert_eq!(&pdu[..], b"abcde");
        pool.put(pdu);
        let mut pdu = pool.take();
        assert!(pdu.is_empty());
        pdu.grow(1)[0] = b'x';
        assert_eq!(&pdu[..], b"x");
    }

    #[test]
    fn regions_come_back_by_size() {
        let mut pool = SendPool::default();
        let small = pool.take(1).unwrap();
        assert_eq!((small.len(), small.region().len()), (1, 4096));
        let large = pool.take(4097).unwrap();
        assert_eq!(large.region().len(), 8192);
        let at = large.region().address();
        pool.put(&small);
        pool.put(&large);
        assert_eq!(pool.bytes, 4096 + 8192);
        assert_eq!(pool.take(5000).unwrap().region().address(), at);
        assert_eq!(pool.bytes, 4096);
        // Beyond the classes: served, but not kept.
        let huge = pool.take(KEEP_BYTES).unwrap();
        pool.put(&huge);
        assert_eq!(pool.bytes, 4096);
    }
}
