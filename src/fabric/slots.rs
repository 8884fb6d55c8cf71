#![forbid(unsafe_code)]
//! Places for sockets, under keys that do not come back, and their deadlines.

use std::collections::BTreeSet;
use std::time::Instant;

use slab::Slab;

/// Bits of a key that say where; the 32 above count what was ever inserted.
const INDEX_BITS: u32 = 24;

/// Values under 56-bit keys. A key of a removed value finds nothing, also when its place is taken
/// again: readiness that was reported before the removal does no harm.
pub(super) struct Slots<T> {
    slab: Slab<(u64, T)>,
    inserted: u32,
}

impl<T> Slots<T> {
    pub(super) fn new() -> Self {
        Self {
            slab: Slab::new(),
            inserted: 0,
        }
    }

    /// Puts a value in; `make` is told its key. `None`: no place left.
    pub(super) fn insert(&mut self, make: impl FnOnce(u64) -> T) -> Option<u64> {
        if self.slab.len() >= (1 << INDEX_BITS) - 1 {
            return None;
        }
        self.inserted = self.inserted.wrapping_add(1);
        let entry = self.slab.vacant_entry();
        let key = u64::from(self.inserted) << INDEX_BITS | entry.key() as u64;
        entry.insert((key, make(key)));
        Some(key)
    }

    pub(super) fn get_mut(&mut self, key: u64) -> Option<&mut T> {
        match self.slab.get_mut(index(key)) {
            Some((held, value)) if *held == key => Some(value),
            _ => None,
        }
    }

    pub(super) fn get(&self, key: u64) -> Option<&T> {
        match self.slab.get(index(key)) {
            Some((held, value)) if *held == key => Some(value),
            _ => None,
        }
    }

    pub(super) fn remove(&mut self, key: u64) -> Option<T> {
        self.get(key)?;
        Some(self.slab.remove(index(key)).1)
    }

    // Without the verbs fabric nobody needs it.
    #[cfg_attr(not(feature = "verbs"), allow(dead_code))]
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut T)> {
        self.slab.iter_mut().map(|(_, (key, value))| (*key, value))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.slab.iter().map(|(_, (key, value))| (*key, value))
    }
}

fn index(key: u64) -> usize {
    (key & ((1 << INDEX_BITS) - 1)) as usize
}

/// Deadlines in order. Only connections in set-up or at their end have one.
#[derive(Default)]
pub(super) struct Timers {
    queue: BTreeSet<(Instant, u64)>,
}

impl Timers {
    /// Moves the deadline of `key`, which its owner keeps in `held`.
    pub(super) fn set(&mut self, key: u64, held: &mut Option<Instant>, at: Option<Instant>) {
        if let Some(old) = held.take() {
            self.queue.remove(&(old, key));
        }
        if let Some(at) = at {
            self.queue.insert((at, key));
        }
        *held = at;
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Takes a key whose deadline has come. Its owner's `held` still names it.
    pub(super) fn pop(&mut self, now: Instant) -> Option<u64> {
        let (at, key) = *self.queue.first()?;
        if at > now {
            return None;
        }
        self.queue.pop_first();
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn keys_do_not_come_back() {
        let mut slots = Slots::new();
        let a = slots.insert(|key| key).unwrap();
        assert_eq!(slots.get(a), Some(&a));
        assert_eq!(slots.remove(a), Some(a));
        let b = slots.insert(|key| key).unwrap();
        assert_eq!(index(a), index(b));
        assert_ne!(a, b);
        assert_eq!(slots.get_mut(a), None);
        assert_eq!(slots.remove(a), None);
        assert_eq!(slots.get(b), Some(&b));
    }

    #[test]
    fn timers_in_order() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut timers = Timers::default();
        let (mut a, mut b) = (None, None);
        timers.set(1, &mut a, Some(at(5)));
        timers.set(2, &mut b, Some(at(3)));
        assert_eq!(timers.next(), Some(at(3)));
        timers.set(2, &mut b, Some(at(7)));
        assert_eq!(timers.pop(at(4)), None);
        assert_eq!(timers.pop(at(5)), Some(1));
        timers.set(1, &mut a, None);
        timers.set(2, &mut b, None);
        assert_eq!(timers.next(), None);
    }
}
