#![forbid(unsafe_code)]
//! By what time the timers may run.
//!
//! A timer is about what has not come. A process may have been kept from looking for longer than
//! the timer waits (a debugger, SIGSTOP, a suspended machine), or there may be more to look at than
//! one wait tells. What came in time must not be taken for missing then (`[MS-SMBD] 3.1.5.5`). So
//! timers run by the time before which all that came has been looked at.

use std::time::Instant;

use super::{Poller, Told};

/// What has been looked at.
pub(crate) struct Lookout {
    /// All that came before has been dispatched.
    seen: Instant,
    /// Waits in a row that told as much as one can, and when the first began.
    full: Option<(Instant, usize)>,
}

impl Lookout {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            seen: now,
            full: None,
        }
    }

    /// A wait that began at `began` or later has told something. There are at most `descriptors`
    /// that can be ready. Returns by what time timers may run, once that is dispatched.
    pub(crate) fn after(&mut self, told: Told, began: Instant, descriptors: usize) -> Instant {
        match told {
            Told::Nothing => {}
            Told::All => {
                self.full = None;
                self.seen = began;
            }
            Told::Part => {
                let (since, waits) = self.full.unwrap_or((began, 0));
                let waits = waits + 1;
                // Ready ones take turns: by now, each that was ready at first has been told.
                if waits * Poller::BATCH > descriptors {
                    self.full = None;
                    self.seen = since;
                } else {
                    self.full = Some((since, waits));
                }
            }
        }
        self.seen
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timers_wait_for_a_look_at_everything() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lookout = Lookout::new(start);
        assert_eq!(lookout.after(Told::All, at(1), 10), at(1));
        assert_eq!(lookout.after(Told::Nothing, at(2), 10), at(1));
        assert_eq!(lookout.after(Told::All, at(3), 10), at(3));
    }

    #[test]
    fn they_do_not_wait_for_ever() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lookout = Lookout::new(start);
        let descriptors = 2 * Poller::BATCH;
        for seconds in [1, 2] {
            assert_eq!(lookout.after(Told::Part, at(seconds), descriptors), start);
        }
        assert_eq!(lookout.after(Told::Part, at(3), descriptors), at(1));
        assert_eq!(lookout.after(Told::Part, at(4), descriptors), at(1));
        assert_eq!(lookout.after(Told::All, at(5), descriptors), at(5));
    }
}
