//! Who may use how much: connections without an owner by peer, shared memory by user.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::clients::Clients;
use super::routing::Refused;
use super::Engine;

/// How long a sum of committed memory counts as new.
const MEMORY_AGE: Duration = Duration::from_secs(1);

/// Connections without an owner, in all and of each peer.
#[derive(Default)]
pub(super) struct Unowned {
    total: usize,
    by_peer: HashMap<IpAddr, usize>,
}

impl Unowned {
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// How many belong to the peer with this address.
    pub(super) fn of(&self, address: IpAddr) -> usize {
        self.by_peer.get(&peer_of(address)).copied().unwrap_or(0)
    }

    pub(super) fn add(&mut self, address: IpAddr) {
        self.total += 1;
        *self.by_peer.entry(peer_of(address)).or_default() += 1;
    }

    pub(super) fn remove(&mut self, address: IpAddr) {
        self.total = self.total.saturating_sub(1);
        let peer = peer_of(address);
        if let Some(count) = self.by_peer.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                self.by_peer.remove(&peer);
            }
        }
    }
}

/// What stands for a peer: its IPv4 address, or the upper half of its IPv6 address, because a host
/// may take any address of its network. Link-local addresses all have the same upper half.
fn peer_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_unicast_link_local() => {
            let network = u128::from(v6) & !u128::from(u64::MAX);
            IpAddr::V6(network.into())
        }
        other => other,
    }
}

/// The sum of the memory that handles have committed, looked at now and then.
#[derive(Default)]
pub(super) struct MemoryWatch {
    last: Option<(Instant, u64)>,
}

impl MemoryWatch {
    fn committed(&mut self, now: Instant, clients: &Clients) -> u64 {
        if let Some((at, bytes)) = self.last {
            if now.saturating_duration_since(at) < MEMORY_AGE {
                return bytes;
            }
        }
        let handles = clients.iter().filter_map(|(_, c)| c.handle.as_ref());
        let bytes = handles.map(|h| h.side.committed_bytes().unwrap_or(0)).sum();
        self.last = Some((now, bytes));
        bytes
    }
}

impl Engine {
    /// Connections without an owner that one peer may have.
    pub(super) fn peer_share(&self) -> usize {
        match self.config.max_unowned_per_peer {
            0 => (self.config.max_unowned / 4).max(1),
            most => most,
        }
    }

    /// Whether handles may commit more memory. What they commit themselves cannot be stopped by
    /// refusing; but each has only its area, and further ones are refused here.
    pub(super) fn check_memory(&mut self, now: Instant) -> Result<(), Refused> {
        let most = self.config.max_memory;
        let committed = self.memory.committed(now, &self.clients);
        if committed < most {
            return Ok(());
        }
        let text = format!(
            "all handles together have {committed} bytes of shared memory, of {most} allowed: \
             start the engine with a larger --max-memory"
        );
        Err((libc::ENOMEM, text))
    }

    /// Whether a user may have another area of `size` bytes.
    pub(super) fn check_area(&self, uid: u32, size: u64) -> Result<(), Refused> {
        if self.is_trusted(uid) {
            return Ok(());
        }
        let most = self.config.max_memory / 4;
        let handles = self.clients.iter();
        let own = handles.filter(|(_, c)| c.credentials.uid == uid);
        let areas = own.filter_map(|(_, c)| c.handle.as_ref());
        let has: u64 = areas.map(|h| h.side.layout().area_size()).sum();
        if has.saturating_add(size) <= most {
            return Ok(());
        }
        let text = format!(
            "user {uid} has areas of {has} bytes, with another {size} it would be more than {most}, \
             a quarter of --max-memory: open handles with fewer or smaller buffers"
        );
        Err((libc::ENOSPC, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn peers_are_told_apart_by_what_they_cannot_choose() {
        for (a, b, same) in [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("2001:db8::1", "2001:db8::ffff:1", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
            ("fe80::1", "fe80::2", false),
            ("::1", "::2", true),
        ] {
            assert_eq!(peer_of(ip(a)) == peer_of(ip(b)), same, "{a} {b}");
        }
    }

    #[test]
    fn counts_go_back_to_nothing() {
        let mut unowned = Unowned::default();
        unowned.add(ip("2001:db8::1"));
        unowned.add(ip("2001:db8::2"));
        unowned.add(ip("192.0.2.1"));
        assert_eq!((unowned.total(), unowned.of(ip("2001:db8::3"))), (3, 2));
        unowned.remove(ip("2001:db8::1"));
        unowned.remove(ip("2001:db8::2"));
        unowned.remove(ip("192.0.2.1"));
        // One too many changes nothing.
        unowned.remove(ip("192.0.2.1"));
        assert_eq!(unowned.total(), 0);
        assert!(unowned.by_peer.is_empty());
    }
}
