//! Protection domains, registered memory, memory windows.

use std::io;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::sync::Arc;

use libc::c_int;

use super::cm::{CmId, Id};
use super::ffi;
use crate::mem::{MemError, Region};

/// A protection domain: memory and queue pairs of one do not reach those of another. Clones are the
/// same domain.
#[derive(Clone)]
pub(in crate::fabric::verbs) struct Pd(pub(super) Rc<PdInner>);

pub(super) struct PdInner {
    pub(super) raw: NonNull<ffi::ibv_pd>,
    /// Keeps the device open.
    id: Rc<Id>,
}

impl Pd {
    /// A new one on the device of an identifier.
    pub(in crate::fabric::verbs) fn new(id: &CmId) -> io::Result<Self> {
        let verbs = id.0.verbs().ok_or_else(no_device)?;
        // SAFETY: the context lives as long as the identifier.
        let raw = unsafe { (id.0.functions().ibv_alloc_pd)(verbs.as_ptr()) };
        Ok(Self(Rc::new(PdInner {
            raw: made(raw)?,
            id: id.0.clone(),
        })))
    }
}

impl Drop for PdInner {
    fn drop(&mut self) {
        // SAFETY: ours, and what was made of it (memory, queue pair) holds this value.
        unsafe { (self.id.functions().ibv_dealloc_pd)(self.raw.as_ptr()) };
    }
}

pub(super) fn no_device() -> io::Error {
    io::Error::from_raw_os_error(libc::ENODEV)
}

pub(super) fn made<T>(raw: *mut T) -> io::Result<NonNull<T>> {
    NonNull::new(raw).ok_or_else(io::Error::last_os_error)
}

/// Who may do what with registered memory, besides reading it locally.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::fabric::verbs) struct Rights {
    pub(in crate::fabric::verbs) local_write: bool,
    pub(in crate::fabric::verbs) remote_read: bool,
    pub(in crate::fabric::verbs) remote_write: bool,
    /// Memory windows may be bound to it.
    pub(in crate::fabric::verbs) bind: bool,
}

impl Rights {
    pub(super) fn flags(self) -> c_int {
        let flag = |is_on, flag| if is_on { flag } else { 0 };
        flag(
            self.local_write || self.remote_write,
            ffi::IBV_ACCESS_LOCAL_WRITE,
        ) | flag(self.remote_read, ffi::IBV_ACCESS_REMOTE_READ)
            | flag(self.remote_write, ffi::IBV_ACCESS_REMOTE_WRITE)
            | flag(self.bind, ffi::IBV_ACCESS_MW_BIND)
    }
}

/// A registered piece of a region. The region stays mapped, and its pages pinned, until this is
/// dropped; after that the device cannot reach them by it.
pub(in crate::fabric::verbs) struct Mr {
    pub(super) raw: NonNull<ffi::ibv_mr>,
    offset: usize,
    len: usize,
    region: Arc<Region>,
    pd: Rc<PdInner>,
}

impl Mr {
    /// Registers `len` bytes (at least one) at `offset` of a region.
    pub(in crate::fabric::verbs) fn new(
        pd: &Pd,
        region: &Arc<Region>,
        offset: usize,
        len: usize,
        rights: Rights,
    ) -> io::Result<Self> {
        let inside = offset
            .checked_add(len)
            .is_some_and(|end| len > 0 && end <= region.len());
        if !inside {
            let region = region.len();
            let error = MemError {
                offset,
                len,
                region,
            };
            return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        }
        let access = rights.flags();
        let address = region.address().wrapping_add(offset);
        // SAFETY: the piece is inside the mapping, which lives as long as this value. Nobody holds
        // references into a region, so the device may change it at any time.
        let raw = unsafe {
            (pd.0.id.functions().ibv_reg_mr)(pd.0.raw.as_ptr(), address.cast(), len, access)
        };
        Ok(Self {
            raw: made(raw)?,
            offset,
            len,
            region: region.clone(),
            pd: pd.0.clone(),
        })
    }

    /// The token for the peer.
    pub(in crate::fabric::verbs) fn rkey(&self) -> u32 {
        // SAFETY: valid as long as `self`.
        unsafe { self.raw.as_ref().rkey }
    }

    /// Whether it is a piece of a region.
    pub(in crate::fabric::verbs) fn is_of(&self, region: &Arc<Region>) -> bool {
        Arc::ptr_eq(&self.region, region)
    }

    /// Bytes.
    pub(in crate::fabric::verbs) fn len(&self) -> usize {
        self.len
    }

    /// The address of the first byte, which is its tagged offset for the peer.
    pub(in crate::fabric::verbs) fn address(&self) -> u64 {
        self.region.address() as u64 + self.offset as u64
    }

    /// `len` bytes at `offset` of the region, for a work request.
    pub(in crate::fabric::verbs) fn piece(&self, offset: usize, len: usize) -> Option<Sge> {
        let start = offset.checked_sub(self.offset)?;
        if start.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: valid as long as `self`.
        let lkey = unsafe { self.raw.as_ref().lkey };
        Some(Sge(ffi::ibv_sge {
            addr: self.address() + start as u64,
            length: u32::try_from(len).ok()?,
            lkey,
        }))
    }
}

impl Drop for Mr {
    fn drop(&mut self) {
        // SAFETY: ours, deregistered once. A work request that still names its key fails, no more.
        unsafe { (self.pd.id.functions().ibv_dereg_mr)(self.raw.as_ptr()) };
    }
}

/// A memory window of type 2: a piece of registered memory that the peer reaches by a token of its
/// own, from when it is bound (`SendBatch::push_bind`) until the peer invalidates it or this is
/// dropped.
pub(in crate::fabric::verbs) struct Mw {
    pub(super) raw: NonNull<ffi::ibv_mw>,
    /// Outlives the window.
    pub(super) mr: Rc<Mr>,
    pub(super) address: u64,
    pub(super) len: usize,
    pub(super) rights: Rights,
}

impl Mw {
    /// A window onto `len` bytes at `offset` of a region, inside a registration with the right to
    /// bind.
    pub(in crate::fabric::verbs) fn new(
        mr: Rc<Mr>,
        offset: usize,
        len: usize,
        rights: Rights,
    ) -> io::Result<Self> {
        let piece = mr.piece(offset, len).ok_or_else(no_device)?;
        // SAFETY: the domain lives as long as the registration; a context has the operation or
        // null.
        let raw = unsafe {
            let context = mr.pd.raw.as_ref().context;
            let alloc = (*context).ops.alloc_mw;
            alloc.map_or(ptr::null_mut(), |alloc| {
                alloc(mr.pd.raw.as_ptr(), ffi::IBV_MW_TYPE_2)
            })
        };
        Ok(Self {
            raw: made(raw)?,
            address: piece.0.addr,
            len,
            mr,
            rights,
        })
    }

    /// The token for the peer: the next one of the window (`ibv_inc_rkey`), which is bound once.
    pub(in crate::fabric::verbs) fn rkey(&self) -> u32 {
        // SAFETY: valid as long as `self`.
        let rkey = unsafe { self.raw.as_ref().rkey };
        (rkey & !0xff) | (rkey.wrapping_add(1) & 0xff)
    }

    /// The tagged offset for the peer.
    pub(in crate::fabric::verbs) fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Mw {
    fn drop(&mut self) {
        // SAFETY: ours, given back once; after the call nobody reaches memory by it.
        unsafe {
            let context = self.mr.pd.raw.as_ref().context;
            if let Some(dealloc) = (*context).ops.dealloc_mw {
                dealloc(self.raw.as_ptr());
            }
        }
    }
}

/// A piece of registered memory, by its local key. Worth nothing once that is gone.
#[derive(Clone, Copy)]
pub(in crate::fabric::verbs) struct Sge(pub(super) ffi::ibv_sge);
