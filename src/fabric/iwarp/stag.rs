//! Steering tags: which memory a peer may reach, per connection.
//!
//! A token is valid on the connection that registered it and nowhere else; a token of another
//! connection is answered like one that never was, so that a peer learns nothing from trying.
//! Tokens and base offsets are random: nobody can guess those of others.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;

use super::terminate::Code;
use crate::fabric::{Access, RemoteKey};
use crate::mem::MemSlice;

/// Random tokens, drawn from the kernel some at a time.
pub(super) struct TokenSource {
    pool: [u8; 512],
    used: usize,
}

impl TokenSource {
    pub(super) fn new() -> io::Result<Self> {
        let mut source = Self {
            pool: [0; 512],
            used: 512,
        };
        source.draw()?;
        Ok(source)
    }

    /// 64 random bits.
    fn draw(&mut self) -> io::Result<u64> {
        if let Some(bytes) = self.pool.get(self.used..).and_then(<[u8]>::first_chunk) {
            self.used += 8;
            return Ok(u64::from_ne_bytes(*bytes));
        }
        getrandom::fill(&mut self.pool).map_err(|error| io::Error::other(error.to_string()))?;
        self.used = 8;
        let [a, b, c, d, e, f, g, h, ..] = self.pool;
        Ok(u64::from_ne_bytes([a, b, c, d, e, f, g, h]))
    }

    /// A token and a base offset. Token 0 is not used (some peers take it for none), nor 1 (what
    /// Linux siw names in a zero-length first frame). The base keeps the low 12 bits free, like
    /// an address, and stays far from the end of the 64-bit space.
    pub(super) fn key(&mut self) -> io::Result<RemoteKey> {
        loop {
            let token = self.draw()? as u32;
            let offset = (self.draw()? >> 32) << 12;
            if token > 1 {
                return Ok(RemoteKey { token, offset });
            }
        }
    }
}

/// Memory that the peer of one connection may reach.
struct Registration {
    memory: MemSlice,
    access: Access,
    base: u64,
}

/// Why an access is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    Token,
    Access,
    Bounds,
    Wrap,
}

impl Refused {
    /// The code for a tagged segment of the peer (a Write).
    pub(super) fn of_write(self) -> Code {
        match self {
            Self::Token => Code::TAGGED_INVALID_TOKEN,
            // DDP knows no access rights; RDMAP does (RFC 5040 section 7.2).
            Self::Access => Code::ACCESS,
            Self::Bounds => Code::TAGGED_BOUNDS,
            Self::Wrap => Code::TAGGED_WRAP,
        }
    }

    /// The code for the source of a Read Request.
    pub(super) fn of_read(self) -> Code {
        match self {
            Self::Token => Code::READ_INVALID_TOKEN,
            Self::Access => Code::ACCESS,
            Self::Bounds => Code::READ_BOUNDS,
            Self::Wrap => Code::READ_WRAP,
        }
    }
}

/// What a peer wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    Read,
    Write,
}

/// The registrations of one connection. Takes no memory while there are none.
#[derive(Default)]
pub(super) struct Registrations {
    map: HashMap<u32, Registration, BuildHasherDefault<TokenHasher>>,
}

impl Registrations {
    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    /// Registers memory under `key`, if its token is free here.
    pub(super) fn insert(&mut self, key: RemoteKey, memory: MemSlice, access: Access) -> bool {
        let std::collections::hash_map::Entry::Vacant(entry) = self.map.entry(key.token) else {
            return false;
        };
        entry.insert(Registration {
            memory,
            access,
            base: key.offset,
        });
        true
    }

    pub(super) fn contains(&self, token: u32) -> bool {
        self.map.contains_key(&token)
    }

    pub(super) fn remove(&mut self, token: u32) -> bool {
        let found = self.map.remove(&token).is_some();
        if self.map.is_empty() && self.map.capacity() > 64 {
            self.map.shrink_to(0);
        }
        found
    }

    /// The memory of a token.
    pub(super) fn memory(&self, token: u32) -> Option<&MemSlice> {
        self.map
            .get(&token)
            .map(|registration| &registration.memory)
    }

    /// Where `len` bytes at tagged offset `offset` are in the memory of `token`. Not for lengths
    /// of 0: those are not checked (RFC 5040 section 5.1 and 5.2).
    pub(super) fn check(
        &self,
        token: u32,
        offset: u64,
        len: u64,
        want: Want,
    ) -> Result<usize, Refused> {
        let registration = self.map.get(&token).ok_or(Refused::Token)?;
        let allowed = match want {
            Want::Read => registration.access.remote_read,
            Want::Write => registration.access.remote_write,
        };
        if !allowed {
            return Err(Refused::Access);
        }
        let end = offset.checked_add(len).ok_or(Refused::Wrap)?;
        let size = registration.memory.len() as u64;
        let at = offset
            .checked_sub(registration.base)
            .ok_or(Refused::Bounds)?;
        if end - registration.base > size {
            return Err(Refused::Bounds);
        }
        usize::try_from(at).map_err(|_| Refused::Bounds)
    }
}

/// Tokens are random already: one multiplication spreads them over the bits that the map uses.
/// A peer can look tokens up but not choose those that are in the map.
#[derive(Default)]
struct TokenHasher(u64);

impl Hasher for TokenHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, token: u32) {
        self.0 = (self.0 ^ u64::from(token)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Access = Access {
        remote_read: true,
        remote_write: false,
    };

    #[test]
    fn every_refusal() {
        let mut registrations = Registrations::default();
        let memory = MemSlice::from_bytes(&[0; 100]).unwrap();
        let key = RemoteKey {
            token: 7,
            offset: 0x1000,
        };
        assert!(registrations.insert(key, memory.clone(), READ));
        assert!(!registrations.insert(key, memory, READ));
        let check = |token, offset, len, want| registrations.check(token, offset, len, want);
        assert_eq!(check(7, 0x1000, 100, Want::Read), Ok(0));
        assert_eq!(check(7, 0x1063, 1, Want::Read), Ok(99));
        assert_eq!(check(7, 0x1064, 1, Want::Read), Err(Refused::Bounds));
        assert_eq!(check(7, 0xFFF, 1, Want::Read), Err(Refused::Bounds));
        assert_eq!(check(7, 0x1000, 101, Want::Read), Err(Refused::Bounds));
        assert_eq!(check(7, 0x1000, u64::MAX, Want::Read), Err(Refused::Wrap));
        assert_eq!(check(7, u64::MAX, 2, Want::Read), Err(Refused::Wrap));
        assert_eq!(check(7, u64::MAX, 0, Want::Read), Err(Refused::Bounds));
        assert_eq!(check(7, 0x1000, 1, Want::Write), Err(Refused::Access));
        assert_eq!(check(8, 0x1000, 1, Want::Read), Err(Refused::Token));
        assert!(registrations.remove(7));
        assert!(!registrations.remove(7));
    }

    #[test]
    fn tokens_differ() {
        let mut source = TokenSource::new().unwrap();
        let keys: std::collections::HashSet<_> = (0..1000)
            .map(|_| {
                let key = source.key().unwrap();
                assert!(key.token > 1 && key.offset % 4096 == 0 && key.offset < 1 << 44);
                (key.token, key.offset)
            })
            .collect();
        assert_eq!(keys.len(), 1000);
    }
}
