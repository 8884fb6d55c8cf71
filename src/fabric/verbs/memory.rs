#![forbid(unsafe_code)]
//! Registered memory of one connection.
//!
//! Memory is registered in chunks as work requests name it, with local rights only, in the
//! protection domain of the connection: no peer can reach it, and no other connection. A chunk is
//! in use as long as a work request holds it; unused it is kept for a while, because the next
//! request will most likely want it again.
//!
//! The sink of an RDMA READ on iWARP is the exception: there the peer addresses it, so it needs
//! the right of remote writing (RFC 5040 section 4.4), and is registered by itself, for one read.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::sys::{Mr, Pd, Rights, Sge};
use crate::mem::{MemSlice, Region};

/// Pieces of memory that one work request names at most, besides a header.
pub(super) const MAX_PIECES: u32 = 4;

/// Keeps registrations in use. Mostly one, and then without an allocation.
#[derive(Default)]
pub(super) enum Kept {
    #[default]
    None,
    One(#[allow(dead_code)] Rc<Mr>),
    More(#[allow(dead_code)] Vec<Rc<Mr>>),
}

struct Cached {
    mr: Rc<Mr>,
    used: Instant,
}

/// Registered pieces of one region, by first chunk and number of chunks.
struct RegionCache {
    region: Arc<Region>,
    chunks: HashMap<(usize, usize), Cached>,
}

impl RegionCache {
    /// Gives back what no work request uses, but what `keeps` says. Returns how many bytes.
    fn give_back(&mut self, keeps: impl Fn(&Cached) -> bool) -> usize {
        let mut given = 0;
        self.chunks.retain(|_, cached| {
            let keep = Rc::strong_count(&cached.mr) > 1 || keeps(cached);
            if !keep {
                given += cached.mr.len();
            }
            keep
        });
        given
    }
}

/// The registrations of one connection, for its own work requests.
pub(super) struct Memory {
    pd: Pd,
    chunk: usize,
    register_each: bool,
    /// What cached registrations allow.
    local: Rights,
    /// By address of the region, which stays its own as long as it is held here.
    regions: HashMap<usize, RegionCache>,
    /// Bytes registered and cached.
    bytes: usize,
}

impl Memory {
    pub(super) fn new(pd: Pd, chunk: usize, register_each: bool, has_windows: bool) -> Self {
        Self {
            pd,
            chunk,
            register_each,
            local: Rights {
                bind: has_windows,
                ..LOCAL
            },
            regions: HashMap::new(),
            bytes: 0,
        }
    }

    pub(super) fn pd(&self) -> &Pd {
        &self.pd
    }

    /// Bytes kept registered.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Registers one operation by itself: the sink of a read on iWARP, or everything when that is
    /// asked for. Appends to `pieces`.
    pub(super) fn once(
        &self,
        slice: &MemSlice,
        rights: Rights,
        pieces: &mut Vec<Sge>,
    ) -> io::Result<Kept> {
        let mr = Mr::new(
            &self.pd,
            slice.region(),
            slice.offset(),
            slice.len(),
            rights,
        )?;
        let piece = mr.piece(slice.offset(), slice.len()).ok_or_else(outside)?;
        pieces.push(piece);
        Ok(Kept::One(Rc::new(mr)))
    }

    /// The registered pieces of a slice, at most `most` of them, for local use. Appends to
    /// `pieces`.
    pub(super) fn local(
        &mut self,
        now: Instant,
        slice: &MemSlice,
        most: usize,
        is_recv: bool,
        pieces: &mut Vec<Sge>,
    ) -> io::Result<Kept> {
        if slice.is_empty() {
            return Ok(Kept::None);
        }
        if self.register_each && !is_recv {
            return self.once(slice, LOCAL, pieces);
        }
        let region = slice.region();
        let (offset, end) = (slice.offset(), slice.offset() + slice.len());
        let grid = Grid::new(region.len(), self.chunk);
        let first = grid.index(offset);
        let count = grid.index(end - 1) - first + 1;
        if count == 1 || count > most {
            let mr = self.chunk(now, region, &grid, first, count)?;
            pieces.push(mr.piece(offset, slice.len()).ok_or_else(outside)?);
            return Ok(Kept::One(mr));
        }
        let mut keep = Vec::with_capacity(count);
        for index in first..first + count {
            let mr = self.chunk(now, region, &grid, index, 1)?;
            let range = grid.range(index, 1);
            let (from, to) = (range.start.max(offset), range.end.min(end));
            pieces.push(mr.piece(from, to - from).ok_or_else(outside)?);
            keep.push(mr);
        }
        Ok(Kept::More(keep))
    }

    /// One registration with all of a slice in it, to bind a window to.
    pub(super) fn whole(&mut self, now: Instant, slice: &MemSlice) -> io::Result<Rc<Mr>> {
        if self.register_each {
            let region = slice.region();
            let mr = Mr::new(&self.pd, region, slice.offset(), slice.len(), self.local)?;
            return Ok(Rc::new(mr));
        }
        let grid = Grid::new(slice.region().len(), self.chunk);
        let first = grid.index(slice.offset());
        let count = grid.index(slice.offset() + slice.len() - 1) - first + 1;
        self.chunk(now, slice.region(), &grid, first, count)
    }

    fn chunk(
        &mut self,
        now: Instant,
        region: &Arc<Region>,
        grid: &Grid,
        first: usize,
        count: usize,
    ) -> io::Result<Rc<Mr>> {
        let key = Arc::as_ptr(region) as usize;
        let cache = self.regions.entry(key).or_insert_with(|| RegionCache {
            region: region.clone(),
            chunks: HashMap::new(),
        });
        if let Some(cached) = cache.chunks.get_mut(&(first, count)) {
            cached.used = now;
            return Ok(cached.mr.clone());
        }
        let range = grid.range(first, count);
        let mr = Mr::new(&self.pd, region, range.start, range.len(), self.local)?;
        let mr = Rc::new(mr);
        self.bytes += mr.len();
        cache.chunks.insert(
            (first, count),
            Cached {
                mr: mr.clone(),
                used: now,
            },
        );
        Ok(mr)
    }

    /// Gives back what is registered of a region and not in use. False: some of it is.
    pub(super) fn forget(&mut self, region: &Arc<Region>) -> bool {
        let key = Arc::as_ptr(region) as usize;
        let Some(cache) = self.regions.get_mut(&key) else {
            return true;
        };
        self.bytes -= cache.give_back(|_| false);
        let is_forgotten = cache.chunks.is_empty();
        if is_forgotten {
            self.regions.remove(&key);
        }
        is_forgotten
    }

    /// Gives back what nobody has used for `idle`, and what is of a region that nobody else has any
    /// more.
    pub(super) fn give_back(&mut self, now: Instant, idle: Duration) {
        let bytes = &mut self.bytes;
        self.regions.retain(|_, cache| {
            // Each registration holds its region, and so does the cache.
            let is_ours = Arc::strong_count(&cache.region) == cache.chunks.len() + 1;
            *bytes -= cache.give_back(|cached| {
                let is_recent = now.saturating_duration_since(cached.used) < idle;
                is_recent && !is_ours
            });
            !cache.chunks.is_empty()
        });
    }
}

const LOCAL: Rights = Rights {
    local_write: true,
    remote_read: false,
    remote_write: false,
    bind: false,
};

fn outside() -> io::Error {
    io::Error::other("a piece is not inside its registration")
}

/// How a region is cut into chunks. The cuts count from its end: the RDMA buffers are the last part
/// of a handle's area, so a buffer whose size divides a chunk lies in one, and larger ones start
/// with one.
struct Grid {
    len: usize,
    chunk: usize,
    /// Bytes of the first chunk, which may be short.
    first: usize,
}

impl Grid {
    fn new(len: usize, chunk: usize) -> Self {
        let rest = len % chunk;
        let first = if rest == 0 { chunk } else { rest };
        Self { len, chunk, first }
    }

    fn index(&self, offset: usize) -> usize {
        match offset.checked_sub(self.first) {
            None => 0,
            Some(beyond) => 1 + beyond / self.chunk,
        }
    }

    fn range(&self, index: usize, count: usize) -> Range<usize> {
        let start = match index {
            0 => 0,
            _ => self.first + (index - 1) * self.chunk,
        };
        let end = self.first + (index + count - 1) * self.chunk;
        start..end.min(self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_count_from_the_end() {
        let chunk = 1 << 20;
        let grid = Grid::new(5 * chunk + 12288, chunk);
        assert_eq!(grid.range(0, 1), 0..12288);
        assert_eq!(grid.index(12287), 0);
        assert_eq!(grid.index(12288), 1);
        assert_eq!(grid.range(1, 1), 12288..12288 + chunk);
        assert_eq!(grid.range(5, 1).end, 5 * chunk + 12288);
        assert_eq!(grid.range(0, 3), 0..12288 + 2 * chunk);
        // Every byte is in the chunk that its index names.
        for offset in (0..grid.len).step_by(4099) {
            assert!(grid.range(grid.index(offset), 1).contains(&offset));
        }
    }

    #[test]
    fn a_small_region_is_one_chunk() {
        let grid = Grid::new(4096, 1 << 20);
        assert_eq!((grid.index(4095), grid.range(0, 1)), (0, 0..4096));
        let grid = Grid::new(1 << 20, 1 << 20);
        assert_eq!(grid.range(grid.index((1 << 20) - 1), 1), 0..1 << 20);
    }
}
