//! Send credits that are kept for messages which feed a starving peer.
//!
//! `[MS-SMBD] 3.1.5.4` has each side keep its last send credit for a message that grants credits.
//! Linux (6.12 at least) does not: it spends all it has on the segments of a large request, while
//! the receives it could grant are found by a work item that then waits for a credit itself. If we
//! have spent our last credit by then, on a grant that went the same way, nobody can send any more.
//! So more than one credit is kept, and only a grant to a peer that has used up most of what it had
//! may spend one of them. Each one makes the peer send again, and what it sends then grants.

use std::time::{Duration, Instant};

/// How many credits are kept, and since when something waits because of that.
#[derive(Debug, Clone)]
pub(super) struct Spare {
    kept: u32,
    /// When fewer will do.
    until: Option<Instant>,
}

impl Spare {
    pub(super) fn new() -> Self {
        Self {
            kept: 0,
            until: None,
        }
    }

    /// The peer has granted; we now have `send_credits`.
    pub(super) fn on_granted(&mut self, send_credits: u32) {
        self.until = None;
        if send_credits >= GENEROUS {
            self.kept = KEPT;
        }
    }

    /// Nothing waits.
    pub(super) fn rest(&mut self) {
        self.until = None;
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.until
    }

    /// Whether a message that does not feed the peer has to wait. Not forever: a peer may have
    /// become frugal, and only grant when we have spent nearly all.
    pub(super) fn holds(&mut self, now: Instant, send_credits: u32) -> bool {
        if send_credits > self.kept {
            self.until = None;
            return false;
        }
        if now >= *self.until.get_or_insert(now + PATIENCE) {
            self.kept /= 2;
            self.until = Some(now + PATIENCE);
        }
        if send_credits > self.kept {
            self.until = None;
        }
        self.until.is_some()
    }
}

/// Credits kept.
const KEPT: u32 = 8;
/// A peer that has let us have that many will not miss them.
const GENEROUS: u32 = 4 * KEPT;
/// How long to wait before half of them will do.
const PATIENCE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_kept_of_a_few() {
        let mut spare = Spare::new();
        spare.on_granted(GENEROUS - 1);
        assert!(!spare.holds(Instant::now(), 1));
        assert_eq!(spare.deadline(), None);
    }

    #[test]
    fn keeping_ends_in_time() {
        let mut now = Instant::now();
        let mut spare = Spare::new();
        spare.on_granted(GENEROUS);
        assert!(!spare.holds(now, KEPT + 1));
        assert!(spare.holds(now, KEPT));
        now = spare.deadline().expect("something waits");
        assert!(!spare.holds(now, KEPT), "half of them will do");
        assert!(spare.holds(now, KEPT / 2));
        spare.on_granted(KEPT);
        assert_eq!(spare.deadline(), None, "a grant is a sign of life");
        while spare.holds(now, 1) {
            now = spare.deadline().expect("something waits");
        }
        assert_eq!(spare.deadline(), None);
    }
}
