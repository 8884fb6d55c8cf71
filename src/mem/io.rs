//! Socket I/O on lists of pieces, some in plain memory and some in regions.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};

use super::region::{MemError, MemSlice};

/// The most pieces that one call may have (the kernel's UIO_MAXIOV).
const MAX_PARTS: usize = 1024;

/// Storage of a list of pieces, to be used again by the next list: a caller that keeps it pays no
/// allocation per call.
#[derive(Default)]
pub struct PartsStorage {
    parts: Vec<libc::iovec>,
}

/// Pieces to send, in order. Borrows what it names.
#[derive(Default)]
pub struct SendParts<'a> {
    parts: Vec<libc::iovec>,
    bytes: usize,
    _borrow: PhantomData<&'a [u8]>,
}

impl<'a> SendParts<'a> {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty list in storage that an earlier list has left.
    pub fn with_storage(storage: PartsStorage) -> Self {
        let mut parts = storage.parts;
        parts.clear();
        Self {
            parts,
            ..Self::default()
        }
    }

    /// Ends the list and gives its storage back.
    pub fn into_storage(mut self) -> PartsStorage {
        self.parts.clear();
        PartsStorage { parts: self.parts }
    }

    /// Adds plain bytes.
    pub fn push(&mut self, bytes: &'a [u8]) {
        if !bytes.is_empty() {
            self.add(bytes.as_ptr().cast_mut(), bytes.len());
        }
    }

    /// Adds `len` bytes at `offset` of a piece of a region.
    pub fn push_mem(
        &mut self,
        slice: &'a MemSlice,
        offset: usize,
        len: usize,
    ) -> Result<(), MemError> {
        let at = slice.region().range(slice.at(offset, len)?, len)?;
        if len > 0 {
            self.add(at, len);
        }
        Ok(())
    }

    fn add(&mut self, base: *mut u8, len: usize) {
        self.parts.push(libc::iovec {
            iov_base: base.cast(),
            iov_len: len,
        });
        self.bytes += len;
    }

    /// How many pieces.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Whether no further piece fits one call.
    pub fn is_full(&self) -> bool {
        self.parts.len() >= MAX_PARTS
    }

    /// Bytes of all pieces together.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Room to receive into, in order. Borrows what it names.
#[derive(Default)]
pub struct RecvParts<'a> {
    parts: Vec<libc::iovec>,
    _borrow: PhantomData<&'a mut [u8]>,
}

impl<'a> RecvParts<'a> {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty list in storage that an earlier list has left.
    pub fn with_storage(storage: PartsStorage) -> Self {
        let mut parts = storage.parts;
        parts.clear();
        Self {
            parts,
            ..Self::default()
        }
    }

    /// Ends the list and gives its storage back.
    pub fn into_storage(mut self) -> PartsStorage {
        self.parts.clear();
        PartsStorage { parts: self.parts }
    }

    /// Adds plain room.
    pub fn push(&mut self, room: &'a mut [u8]) {
        if !room.is_empty() {
            self.parts.push(libc::iovec {
                iov_base: room.as_mut_ptr().cast(),
                iov_len: room.len(),
            });
        }
    }

    /// Adds `len` bytes of room at `offset` of a piece of a region.
    pub fn push_mem(
        &mut self,
        slice: &'a MemSlice,
        offset: usize,
        len: usize,
    ) -> Result<(), MemError> {
        let at = slice.region().range(slice.at(offset, len)?, len)?;
        if len > 0 {
            self.parts.push(libc::iovec {
                iov_base: at.cast(),
                iov_len: len,
            });
        }
        Ok(())
    }
}

/// Sends pieces on a socket without blocking and without SIGPIPE; `more` says that further bytes
/// follow at once (MSG_MORE). Returns how many bytes the socket took.
pub fn send_vectored(fd: impl AsFd, parts: &SendParts<'_>, more: bool) -> io::Result<usize> {
    // SAFETY: an all-zero msghdr is a valid empty message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.parts.as_ptr().cast_mut();
    message.msg_iovlen = parts.parts.len().min(MAX_PARTS);
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | if more { libc::MSG_MORE } else { 0 };
    loop {
        // SAFETY: the vectors name memory that `parts` borrows (or that its slices keep mapped)
        // and that stays valid during the call; the kernel only reads it.
        let n = unsafe { libc::sendmsg(fd.as_fd().as_raw_fd(), &message, flags) };
        if let Ok(n) = usize::try_from(n) {
            return Ok(n);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Receives from a socket without blocking. Returns how many bytes came; 0 is the end of the
/// stream.
pub fn recv_vectored(fd: impl AsFd, parts: &mut RecvParts<'_>) -> io::Result<usize> {
    // SAFETY: an all-zero msghdr is a valid empty message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.parts.as_mut_ptr();
    message.msg_iovlen = parts.parts.len().min(MAX_PARTS);
    loop {
        // SAFETY: the vectors name memory that `parts` borrows mutably, or region memory, which
        // anybody may change at any time; it stays valid during the call.
        let n = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
        if let Ok(n) = usize::try_from(n) {
            return Ok(n);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
