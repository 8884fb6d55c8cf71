//! Regions, slices of them, and the copies in and out.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};

/// A mapping that others may change at any time.
pub struct Region {
    map: MmapRaw,
}

impl Region {
    /// Maps `len` bytes of `fd` from its start, shared, and keeps the mapping out of forked
    /// children. The file must be at least that long and must not shrink (a sealed memfd).
    pub fn map_shared(fd: impl AsFd, len: usize) -> std::io::Result<Arc<Self>> {
        let map = MmapOptions::new()
            .len(len)
            .map_raw(fd.as_fd().as_raw_fd())?;
        map.advise(memmap2::Advice::DontFork)?;
        Ok(Arc::new(Self { map }))
    }

    /// Memory of this process alone; its pages are committed when they are first touched.
    pub fn anonymous(len: usize) -> std::io::Result<Arc<Self>> {
        let map = MmapOptions::new().len(len.max(1)).map_anon()?;
        Ok(Arc::new(Self { map: map.into() }))
    }

    /// Bytes of the region.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether the region has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The address of the first byte in this process, for callers of the C API.
    pub fn address(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    /// A pointer to `offset`, valid for `len` bytes.
    pub(super) fn range(&self, offset: usize, len: usize) -> Result<*mut u8, MemError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => {
                // SAFETY: offset <= end <= len of the mapping, so the pointer stays inside it (or
                // one past its end, when len is 0).
                Ok(unsafe { self.map.as_mut_ptr().add(offset) })
            }
            _ => Err(MemError {
                offset,
                len,
                region: self.len(),
            }),
        }
    }

    /// Copies `bytes.len()` bytes at `offset` out.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), MemError> {
        let from = self.range(offset, bytes.len())?;
        // SAFETY: `range` checked that `from` is valid for the length; `bytes` is a unique
        // reference to process memory, so the two cannot overlap. The other side may change the
        // source during the copy; whatever bytes come out are treated as untrusted.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Copies `bytes` in at `offset`.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), MemError> {
        let to = self.range(offset, bytes.len())?;
        // SAFETY: `range` checked that `to` is valid for the length; no reference into a region
        // exists, so it cannot overlap with `bytes`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    /// Copies `len` bytes from here to another region (or another place of this one).
    pub fn copy_to(
        &self,
        offset: usize,
        to: &Region,
        to_offset: usize,
        len: usize,
    ) -> Result<(), MemError> {
        let from = self.range(offset, len)?;
        let to = to.range(to_offset, len)?;
        // SAFETY: both ranges were checked; `copy` allows them to overlap.
        unsafe { std::ptr::copy(from, to, len) };
        Ok(())
    }

    /// Copies `len` bytes at `offset` to plain memory of a C caller.
    ///
    /// # Safety
    ///
    /// `to` is valid for writes of `len` bytes and does not overlap the region.
    pub unsafe fn read_raw(&self, offset: usize, to: *mut u8, len: usize) -> Result<(), MemError> {
        let from = self.range(offset, len)?;
        // SAFETY: the source was checked, the caller answers for the target.
        unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
        Ok(())
    }

    /// Copies `len` bytes of plain memory of a C caller to `offset`.
    ///
    /// # Safety
    ///
    /// `from` is valid for reads of `len` bytes and does not overlap the region.
    pub unsafe fn write_raw(
        &self,
        offset: usize,
        from: *const u8,
        len: usize,
    ) -> Result<(), MemError> {
        let to = self.range(offset, len)?;
        // SAFETY: the target was checked, the caller answers for the source.
        unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
        Ok(())
    }

    /// The 32-bit atomic at `offset`, which must be a multiple of 4.
    pub fn atomic_u32(&self, offset: usize) -> Result<&AtomicU32, MemError> {
        let at = self.range(offset, 4)?;
        if offset % 4 != 0 {
            return Err(MemError {
                offset,
                len: 4,
                region: self.len(),
            });
        }
        // SAFETY: inside the mapping, aligned (mappings start on a page), lives as long as
        // `self`; the place is only ever used as an atomic by both sides.
        Ok(unsafe { AtomicU32::from_ptr(at.cast()) })
    }

    /// The 64-bit atomic at `offset`, which must be a multiple of 8.
    pub fn atomic_u64(&self, offset: usize) -> Result<&AtomicU64, MemError> {
        let at = self.range(offset, 8)?;
        if offset % 8 != 0 {
            return Err(MemError {
                offset,
                len: 8,
                region: self.len(),
            });
        }
        // SAFETY: as for `atomic_u32`.
        Ok(unsafe { AtomicU64::from_ptr(at.cast()) })
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({} bytes)", self.len())
    }
}

/// A range that is not inside its region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemError {
    /// Where the range starts.
    pub offset: usize,
    /// Bytes of the range.
    pub len: usize,
    /// Bytes of the region.
    pub region: usize,
}

impl fmt::Display for MemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} bytes at {} are not inside {} bytes",
            self.len, self.offset, self.region
        )
    }
}

impl std::error::Error for MemError {}

/// A piece of a region. Keeps the region mapped.
#[derive(Clone)]
pub struct MemSlice {
    region: Arc<Region>,
    offset: usize,
    len: usize,
}

impl MemSlice {
    /// The piece of `len` bytes at `offset`.
    pub fn new(region: &Arc<Region>, offset: usize, len: usize) -> Result<Self, MemError> {
        region.range(offset, len)?;
        Ok(Self {
            region: region.clone(),
            offset,
            len,
        })
    }

    /// A private region that holds a copy of `bytes`.
    pub fn from_bytes(bytes: &[u8]) -> std::io::Result<Self> {
        let region = Region::anonymous(bytes.len())?;
        region.write(0, bytes).map_err(std::io::Error::other)?;
        Ok(Self {
            region,
            offset: 0,
            len: bytes.len(),
        })
    }

    /// Bytes of the piece.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the piece has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The region it is a piece of.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Where it starts in its region.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// A piece of this piece.
    pub fn slice(&self, offset: usize, len: usize) -> Result<Self, MemError> {
        self.at(offset, len)?;
        Ok(Self {
            region: self.region.clone(),
            offset: self.offset + offset,
            len,
        })
    }

    /// Copies bytes at `offset` of the piece out.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), MemError> {
        self.region.read(self.at(offset, bytes.len())?, bytes)
    }

    /// Copies `bytes` in at `offset` of the piece.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), MemError> {
        self.region.write(self.at(offset, bytes.len())?, bytes)
    }

    /// A copy of the whole piece.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.read(0, &mut bytes)
            .expect("a slice lies inside its region");
        bytes
    }

    /// Where `len` bytes at `offset` of the piece are in the region.
    pub(super) fn at(&self, offset: usize, len: usize) -> Result<usize, MemError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.offset + offset),
            _ => Err(MemError {
                offset,
                len,
                region: self.len,
            }),
        }
    }
}

impl fmt::Debug for MemSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemSlice({}+{})", self.offset, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_checked() {
        let region = Region::anonymous(100).unwrap();
        assert!(region.write(96, &[1, 2, 3, 4]).is_ok());
        assert!(region.write(97, &[1, 2, 3, 4]).is_err());
        assert!(region.read(usize::MAX, &mut [0; 2]).is_err());
        assert!(region.atomic_u32(98).is_err());
        assert!(region.atomic_u32(2).is_err());
        assert!(region.atomic_u64(4).is_err());
        let slice = MemSlice::new(&region, 90, 10).unwrap();
        assert!(MemSlice::new(&region, 91, 10).is_err());
        assert_eq!(slice.slice(6, 4).unwrap().to_vec(), [1, 2, 3, 4]);
        assert!(slice.slice(7, 4).is_err());
        assert!(slice.slice(usize::MAX, 2).is_err());
        assert!(slice.write(8, &[0; 3]).is_err());
    }

    #[test]
    fn copies_between_regions() {
        let a = Region::anonymous(16).unwrap();
        let b = Region::anonymous(8).unwrap();
        a.write(4, b"smb3").unwrap();
        a.copy_to(4, &b, 2, 4).unwrap();
        assert_eq!(MemSlice::new(&b, 0, 8).unwrap().to_vec(), b"\0\0smb3\0\0");
        assert!(a.copy_to(4, &b, 6, 4).is_err());
    }
}
