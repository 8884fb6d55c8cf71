#![forbid(unsafe_code)]
//! Memory that is shared by passing its file descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};

/// A memfd sealed to its length: no holder can shrink it, so that no access inside a mapping can
/// fault. Its pages are committed when they are first touched.
#[derive(Debug)]
pub struct Memfd {
    fd: OwnedFd,
    len: u64,
}

impl Memfd {
    /// A new one of `len` zero bytes, close-on-exec.
    pub fn sealed(name: &str, len: u64) -> io::Result<Self> {
        let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, len)?;
        rustix::fs::fcntl_add_seals(&fd, REQUIRED_SEALS)?;
        Ok(Self { fd, len })
    }

    /// One that came through a control socket. It must be sealed and at least `len` bytes long.
    pub fn from_fd(fd: OwnedFd, len: u64) -> io::Result<Self> {
        let seals = rustix::fs::fcntl_get_seals(&fd)?;
        let stat = rustix::fs::fstat(&fd)?;
        if !seals.contains(REQUIRED_SEALS) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the shared memory has the seals {seals:?}, not {REQUIRED_SEALS:?}"),
            ));
        }
        if u64::try_from(stat.st_size).unwrap_or(0) < len {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the shared memory has {} bytes, not {len}", stat.st_size),
            ));
        }
        Ok(Self { fd, len })
    }

    /// Bytes of it.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that are committed now.
    pub fn committed_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstat(&self.fd)?;
        Ok(u64::try_from(stat.st_blocks).unwrap_or(0) * 512)
    }

    /// Gives the pages of a range back; it reads as zeros from then on.
    pub fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.fd, mode, offset, len)?)
    }
}

impl AsFd for Memfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

const REQUIRED_SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::Region;

    #[test]
    fn it_is_sealed_sparse_and_can_be_punched() {
        let memfd = Memfd::sealed("test", 1 << 30).unwrap();
        assert!(rustix::fs::ftruncate(&memfd, 4096).is_err());
        assert!(rustix::fs::ftruncate(&memfd, 1 << 31).is_err());
        assert_eq!(memfd.committed_bytes().unwrap(), 0);
        let region = Region::map_shared(&memfd, 1 << 30).unwrap();
        region.write(1 << 20, &[1; 4096]).unwrap();
        assert_eq!(memfd.committed_bytes().unwrap(), 4096);
        memfd.punch(0, 1 << 30).unwrap();
        assert_eq!(memfd.committed_bytes().unwrap(), 0);
        let mut byte = [9];
        region.read(1 << 20, &mut byte).unwrap();
        assert_eq!(byte, [0]);
    }

    #[test]
    fn an_unsealed_or_short_one_is_refused() {
        let plain = rustix::fs::memfd_create("plain", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&plain, 4096).unwrap();
        assert!(Memfd::from_fd(plain, 4096).is_err());
        let sealed = Memfd::sealed("sealed", 4096).unwrap();
        assert!(Memfd::from_fd(sealed.fd.try_clone().unwrap(), 4097).is_err());
        assert_eq!(Memfd::from_fd(sealed.fd, 4096).unwrap().len(), 4096);
    }
}
