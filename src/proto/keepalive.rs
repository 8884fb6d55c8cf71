//! The idle timer and the probe: `[MS-SMBD] 3.1.6.2` and 3.1.5.1.

use std::time::{Duration, Instant};

/// KeepaliveRequested and its timer.
#[derive(Debug, Clone)]
pub(super) struct Keepalive {
    interval: Duration,
    response_timeout: Duration,
    phase: Phase,
    /// When the peer has been silent for too long; `None` before the connection is established.
    deadline: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The peer has been heard of.
    None,
    /// A probe has to be sent.
    Pending,
    /// A probe has been sent.
    Sent,
}

/// What an expired idle timer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expiry {
    /// The peer was probed in vain.
    Unanswered,
    /// The probe could not be sent.
    Unsendable,
}

impl Keepalive {
    pub(super) fn new(interval: Duration, response_timeout: Duration) -> Self {
        Self {
            interval,
            response_timeout,
            phase: Phase::None,
            deadline: None,
        }
    }

    /// Something arrived (or the connection has just been established): the peer lives.
    pub(super) fn on_alive(&mut self, now: Instant) {
        self.phase = Phase::None;
        self.deadline = Some(now + self.interval);
    }

    pub(super) fn is_pending(&self) -> bool {
        self.phase == Phase::Pending
    }

    /// The flagged message is on its way.
    pub(super) fn on_sent(&mut self, now: Instant) {
        self.phase = Phase::Sent;
        self.deadline = Some(now + self.response_timeout);
    }

    /// Time passed. The specification starts the short timer when the probe is sent; it starts
    /// here already when the probe becomes due, so that a lack of credits cannot put it off for
    /// ever.
    ///
    /// # Errors
    /// The peer is to be given up.
    pub(super) fn on_timeout(&mut self, now: Instant) -> Result<(), Expiry> {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return Ok(());
        }
        match self.phase {
            Phase::None => {
                self.phase = Phase::Pending;
                self.deadline = Some(now + self.response_timeout);
                Ok(())
            }
            Phase::Pending => Err(Expiry::Unsendable),
            Phase::Sent => Err(Expiry::Unanswered),
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at_idle_end() -> (Keepalive, Instant) {
        let start = Instant::now();
        let mut k = Keepalive::new(120 * SECOND, 5 * SECOND);
        assert_eq!(k.deadline(), None);
        k.on_alive(start);
        assert_eq!(k.on_timeout(start + 119 * SECOND), Ok(()));
        assert!(!k.is_pending());
        let end = start + 120 * SECOND;
        assert_eq!(k.on_timeout(end), Ok(()));
        assert!(k.is_pending());
        (k, end)
    }

    #[test]
    fn an_answered_probe_starts_over() {
        let (mut k, now) = at_idle_end();
        k.on_sent(now);
        assert!(!k.is_pending());
        k.on_alive(now + SECOND);
        assert_eq!(k.deadline(), Some(now + 121 * SECOND));
    }

    #[test]
    fn an_unanswered_probe_ends_it() {
        let (mut k, now) = at_idle_end();
        k.on_sent(now + 2 * SECOND);
        assert_eq!(k.on_timeout(now + 6 * SECOND), Ok(()));
        assert_eq!(k.on_timeout(now + 7 * SECOND), Err(Expiry::Unanswered));
    }

    #[test]
    fn an_unsendable_probe_ends_it() {
        let (mut k, now) = at_idle_end();
        assert_eq!(k.on_timeout(now + 5 * SECOND), Err(Expiry::Unsendable));
    }
}
