#![forbid(unsafe_code)]
//! Who wakes whom: the one place of the protocol that all three rings use.
//!
//! A flag says that the consumer of a ring sleeps, or is about to. Whoever changes it to 0
//! rings the bell, so a sleeper is rung once. The consumer stores the flag and then looks at the
//! ring; the producer stores the index and then looks at the flag. The fences keep both from doing
//! it the other way round, so that one of the two sees the other. `loom/` checks all orders.
//!
//! A consumer may sleep for what is urgent only. Then what is announced lazily does not wake it, and
//! waits for something that does, or for the consumer to change its mind.

use super::atomic::{fence, AtomicU32, Ordering};
use super::spsc::{Consumer, Producer};
use super::RingError;

/// The flag of a consumer that only sleeps for what is urgent.
pub(super) const URGENT: u32 = 1;
/// The flag of a consumer that sleeps for everything.
pub(super) const ALL: u32 = 2;

/// Shows the consumer all that was pushed. True: it sleeps, and the caller has to ring.
pub(super) fn announce<const N: usize>(
    ring: &mut Producer<N>,
    sleeps: &AtomicU32,
) -> Result<bool, RingError> {
    if !ring.publish()? {
        return Ok(false);
    }
    // The store of the index above stays before the load of the flag below. Partner: the fence in
    // `set_sleeping`.
    fence(Ordering::SeqCst);
    Ok(take_flag(sleeps))
}

/// As [`announce`], for what does not wake a consumer that sleeps for what is urgent.
pub(super) fn announce_lazily<const N: usize>(
    ring: &mut Producer<N>,
    sleeps: &AtomicU32,
) -> Result<bool, RingError> {
    if !ring.publish()? {
        return Ok(false);
    }
    // As in `announce`.
    fence(Ordering::SeqCst);
    Ok(sleeps.load(Ordering::Relaxed) == ALL
        && sleeps
            .compare_exchange(ALL, 0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok())
}

/// Sets the flag of a ring's consumer to what it sleeps for. True: there are entries already, for
/// which nobody may ring.
pub(super) fn sleep_for<const N: usize>(
    ring: &mut Consumer<N>,
    sleeps: &AtomicU32,
    what: u32,
) -> Result<bool, RingError> {
    sleeps.store(what, Ordering::Relaxed);
    // The store of the flag above stays before the load of the index below. Partner: the fence in
    // `announce`.
    fence(Ordering::SeqCst);
    Ok(ring.pending()? > 0)
}

/// Makes a consumer that sleeps for what is urgent sleep for everything. True: there are entries
/// already, for which nobody may ring. A flag that was taken stays so: the bell has been rung.
pub(super) fn sleep_for_all<const N: usize>(
    ring: &mut Consumer<N>,
    sleeps: &AtomicU32,
) -> Result<bool, RingError> {
    let changed = sleeps.compare_exchange(URGENT, ALL, Ordering::Relaxed, Ordering::Relaxed);
    // As in `sleep_for`.
    fence(Ordering::SeqCst);
    Ok(changed.is_ok() && ring.pending()? > 0)
}

/// Sets the flag of a ring's consumer. True: there are entries already, for which nobody may ring.
pub(super) fn set_sleeping<const N: usize>(
    ring: &mut Consumer<N>,
    sleeps: &AtomicU32,
    sleeping: bool,
) -> Result<bool, RingError> {
    sleep_for(ring, sleeps, sleeping.into())
}

/// Takes a flag: whoever changes it to 0 rings. The plain load first keeps the line shared
/// while the flag is 0.
pub(super) fn take_flag(flag: &AtomicU32) -> bool {
    flag.load(Ordering::Relaxed) != 0 && flag.swap(0, Ordering::AcqRel) != 0
}
