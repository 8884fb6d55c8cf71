#![forbid(unsafe_code)]
//! Readiness of file descriptors: one epoll set, shared by the parts of a process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::event::epoll;

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interest {
    /// Bytes to read, or a connection to accept.
    pub readable: bool,
    /// Room to write, or a connect that ended.
    pub writable: bool,
}

impl Interest {
    /// Only reading.
    pub const READ: Self = Self {
        readable: true,
        writable: false,
    };
    /// Only writing.
    pub const WRITE: Self = Self {
        readable: false,
        writable: true,
    };
    /// Both.
    pub const BOTH: Self = Self {
        readable: true,
        writable: true,
    };
    /// Neither; errors and hang-ups are still told.
    pub const NONE: Self = Self {
        readable: false,
        writable: false,
    };

    fn flags(self) -> epoll::EventFlags {
        let mut flags = epoll::EventFlags::empty();
        flags.set(epoll::EventFlags::IN, self.readable);
        flags.set(epoll::EventFlags::OUT, self.writable);
        flags
    }
}

/// What a file descriptor is ready for (level-triggered).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// The key it was registered with.
    pub key: u64,
    /// Readable, or at its end, or in error: a read does not block.
    pub readable: bool,
    /// Writable, or in error: a write does not block.
    pub writable: bool,
    /// The other side is gone, or the descriptor is in error.
    pub hangup: bool,
}

/// Where file descriptors are registered. Each holder owns a name space of keys: the upper 8 bits
/// are its tag.
#[derive(Clone)]
pub struct Registry {
    epoll: Rc<OwnedFd>,
    tag: u8,
}

impl Registry {
    /// Bits of a key below the tag.
    pub const KEY_BITS: u32 = 56;

    /// Waits for `interest` on `fd`; readiness comes with `key` (its upper 8 bits are ignored).
    pub fn add(&self, fd: impl AsFd, key: u64, interest: Interest) -> io::Result<()> {
        let data = epoll::EventData::new_u64(self.tagged(key));
        Ok(epoll::add(&*self.epoll, fd, data, interest.flags())?)
    }

    /// Changes what is waited for.
    pub fn modify(&self, fd: impl AsFd, key: u64, interest: Interest) -> io::Result<()> {
        let data = epoll::EventData::new_u64(self.tagged(key));
        Ok(epoll::modify(&*self.epoll, fd, data, interest.flags())?)
    }

    /// Waits no longer.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&*self.epoll, fd)?)
    }

    /// The same epoll set under another tag.
    pub fn with_tag(&self, tag: u8) -> Self {
        Self {
            epoll: self.epoll.clone(),
            tag,
        }
    }

    fn tagged(&self, key: u64) -> u64 {
        (key & ((1 << Self::KEY_BITS) - 1)) | u64::from(self.tag) << Self::KEY_BITS
    }
}

/// How much of what is ready one [`Poller::wait`] has told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// Everything.
    All,
    /// [`Poller::BATCH`]; there may be more.
    Part,
    /// It was interrupted before it could look.
    Nothing,
}

/// One epoll set and the room for its answers.
pub struct Poller {
    epoll: Rc<OwnedFd>,
    events: Vec<epoll::Event>,
}

impl Poller {
    /// How many descriptors one [`Poller::wait`] tells at most.
    pub const BATCH: usize = 256;

    /// A new, empty set.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self {
            epoll: Rc::new(epoll),
            events: Vec::with_capacity(Self::BATCH),
        })
    }

    /// A registry whose keys come back under `tag` (see [`Poller::split`]).
    pub fn registry(&self, tag: u8) -> Registry {
        Registry {
            epoll: self.epoll.clone(),
            tag,
        }
    }

    /// Waits for readiness, at most `timeout` (`None`: for ever), and appends what is ready.
    /// A signal ends the wait early, with nothing; so does SIGCONT after SIGSTOP.
    pub fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<Told> {
        self.events.clear();
        let timeout = timeout.map(|t| rustix::event::Timespec {
            tv_sec: t.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: t.subsec_nanos().into(),
        });
        let spare = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&*self.epoll, spare, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Told::Nothing),
            Err(error) => return Err(error.into()),
        }
        ready.extend(self.events.iter().map(|event| {
            let flags = event.flags;
            let hangup = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
            Ready {
                key: event.data.u64(),
                readable: hangup || flags.contains(epoll::EventFlags::IN),
                writable: hangup || flags.contains(epoll::EventFlags::OUT),
                hangup,
            }
        }));
        Ok(match self.events.len() {
            Self::BATCH.. => Told::Part,
            _ => Told::All,
        })
    }

    /// Splits a key from [`Ready`] into tag and the key that was registered.
    pub fn split(key: u64) -> (u8, u64) {
        (
            (key >> Registry::KEY_BITS) as u8,
            key & ((1 << Registry::KEY_BITS) - 1),
        )
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn readiness_comes_under_its_tag() {
        let mut poller = Poller::new().unwrap();
        let (mut a, b) = UnixStream::pair().unwrap();
        poller.registry(3).add(&b, 77, Interest::READ).unwrap();
        let mut ready = Vec::new();
        poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert!(ready.is_empty());
        a.write_all(b"x").unwrap();
        poller.wait(None, &mut ready).unwrap();
        assert_eq!(ready.len(), 1);
        assert_eq!(Poller::split(ready[0].key), (3, 77));
        assert!(ready[0].readable && !ready[0].writable && !ready[0].hangup);
        poller.registry(3).modify(&b, 78, Interest::NONE).unwrap();
        ready.clear();
        poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert!(ready.is_empty());
        drop(a);
        poller.wait(None, &mut ready).unwrap();
        assert!(ready[0].hangup);
    }
}
