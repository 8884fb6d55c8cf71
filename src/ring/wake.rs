#![forbid(unsafe_code)]
//! Who wakes whom: the one place of the protocol that all three rings use.
//!
//! A flag says that the consumer of a ring sleeps, or is about to. Whoever changes it from 1 to 0
//! rings the bell, so a sleeper is rung once. The consumer stores the flag and then looks at the
//! ring; the producer stores the index and then looks at the flag. The fences keep both from doing
//! it the other way round, so that one of the two sees the other. `loom/` checks all orders.

use super::atomic::{fence, AtomicU32, Ordering};
use super::spsc::{Consumer, Producer};
use super::RingError;

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

/// Sets the flag of a ring's consumer. True: there are entries already, for which nobody may ring.
pub(super) fn set_sleeping<const N: usize>(
    ring: &mut Consumer<N>,
    sleeps: &AtomicU32,
    sleeping: bool,
) -> Result<bool, RingError> {
    sleeps.store(sleeping.into(), Ordering::Relaxed);
    // The store of the flag above stays before the load of the index below. Partner: the fence in
    // `announce`.
    fence(Ordering::SeqCst);
    Ok(ring.pending()? > 0)
}

/// Takes a flag: whoever changes it from 1 to 0 rings. The plain load first keeps the line shared
/// while the flag is 0.
pub(super) fn take_flag(flag: &AtomicU32) -> bool {
    flag.load(Ordering::Relaxed) != 0 && flag.swap(0, Ordering::AcqRel) != 0
}
