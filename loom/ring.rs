//! What stands for the crate's `ring`: its own files, and what they need of it.

pub(crate) mod atomic {
    pub(crate) use loom::sync::atomic::{fence, AtomicU32, Ordering};
    pub(crate) use loom::sync::Arc;
}
#[path = "../src/ring/spsc.rs"]
pub(crate) mod spsc;
#[path = "../src/ring/wake.rs"]
mod wake;

/// As in the crate, as far as these files name it.
#[derive(Debug)]
pub(crate) enum RingError {
    Index {
        ring: &'static str,
        used: u32,
        capacity: u32,
    },
    Range {
        part: &'static str,
        offset: u64,
        length: u64,
    },
    Memory(&'static str),
}

impl From<&'static str> for RingError {
    fn from(what: &'static str) -> Self {
        Self::Memory(what)
    }
}

pub(crate) fn announce(
    ring: &mut spsc::Producer<4>,
    flag: &atomic::AtomicU32,
) -> Result<bool, RingError> {
    wake::announce(ring, flag)
}

pub(crate) fn set_sleeping(
    ring: &mut spsc::Consumer<4>,
    flag: &atomic::AtomicU32,
) -> Result<bool, RingError> {
    wake::set_sleeping(ring, flag, true)
}

pub(crate) fn take_flag(flag: &atomic::AtomicU32) -> bool {
    wake::take_flag(flag)
}

pub(crate) const URGENT: u32 = wake::URGENT;
pub(crate) const ALL: u32 = wake::ALL;

pub(crate) fn announce_lazily(
    ring: &mut spsc::Producer<4>,
    flag: &atomic::AtomicU32,
) -> Result<bool, RingError> {
    wake::announce_lazily(ring, flag)
}

pub(crate) fn sleep_for(
    ring: &mut spsc::Consumer<4>,
    flag: &atomic::AtomicU32,
    what: u32,
) -> Result<bool, RingError> {
    wake::sleep_for(ring, flag, what)
}

pub(crate) fn sleep_for_all(
    ring: &mut spsc::Consumer<4>,
    flag: &atomic::AtomicU32,
) -> Result<bool, RingError> {
    wake::sleep_for_all(ring, flag)
}
