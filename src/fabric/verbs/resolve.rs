#![forbid(unsafe_code)]
//! The active side until the peer is asked: which device leads to the peer, and by which path?
//!
//! The kernel asks for the peer's hardware address as often as its neighbour table says (three
//! times, for IPv4), and then waits without asking until the time it was given has passed. One lost
//! ARP packet too many, or a peer that comes a little later, would cost the whole time. So it is
//! given a short time and asked again, each time for twice as long, until the time of the connect
//! is over.

use std::time::{Duration, Instant};

use super::conn::Phase;
use super::events::failed;
use super::post::transport;
use super::{Entry, VerbsFabric};
use crate::fabric::{EndReason, FabricError};

/// One of several attempts to resolve something.
pub(super) struct Attempt {
    /// How long this one may take.
    length: Duration,
    began: Instant,
    /// How many there were.
    count: u32,
    /// Why the last one failed.
    reason: Option<EndReason>,
    /// The next one waits for its time.
    is_due: bool,
}

impl Attempt {
    pub(super) fn first(now: Instant) -> Self {
        Self {
            length: FIRST,
            began: now,
            count: 1,
            reason: None,
            is_due: false,
        }
    }

    /// What the kernel gets of the time that is left.
    pub(super) fn timeout(&self, left: Duration) -> Duration {
        self.length.min(left)
    }

    /// The time for the next one: what failed at once is not tried again at once.
    fn next_at(&self) -> Instant {
        self.began + self.length
    }

    fn next(&mut self, now: Instant) {
        self.length = (self.length * 2).min(LONGEST);
        self.began = now;
        self.count += 1;
        self.is_due = false;
    }
}

impl VerbsFabric {
    pub(super) fn address_resolved(&mut self, key: u64) -> Result<(), EndReason> {
        let text = |error: FabricError| EndReason::Transport(error.to_string());
        self.make_queues(key).map_err(text)?;
        let now = self.now;
        let Some(Entry::Conn(conn)) = self.slots.get_mut(key) else {
            return Ok(());
        };
        if let Some(local) = conn.id.local() {
            conn.local = local;
        }
        conn.phase = Phase::ResolvingRoute;
        conn.attempt = Attempt::first(now);
        self.resolve(key)
    }

    pub(super) fn route_resolved(&mut self, key: u64) -> Result<(), EndReason> {
        // Receives have to be there before the peer can send.
        self.post(key)?;
        let Some(Entry::Conn(conn)) = self.slots.get_mut(key) else {
            return Ok(());
        };
        let params = conn.params();
        let ord = params.initiator_depth;
        // iWARP may know at once that nobody listens.
        conn.id.connect(&params).map_err(|error| {
            failed("connect with", conn.peer, error.raw_os_error().unwrap_or(0))
        })?;
        conn.ord = ord.into();
        conn.phase = Phase::Connecting;
        Ok(())
    }

    /// Asks the kernel, for as long as the attempt may take.
    fn resolve(&mut self, key: u64) -> Result<(), EndReason> {
        let now = self.now;
        let Some(Entry::Conn(conn)) = self.slots.get_mut(key) else {
            return Ok(());
        };
        let left = conn.setup_until.map(|it| it.saturating_duration_since(now));
        let timeout = conn.attempt.timeout(left.unwrap_or_default());
        let (asked, call) = match conn.phase {
            Phase::ResolvingAddress => (
                conn.id.resolve_address(conn.peer, timeout),
                "rdma_resolve_addr",
            ),
            _ => (conn.id.resolve_route(timeout), "rdma_resolve_route"),
        };
        match asked {
            Ok(()) => Ok(()),
            Err(error) if conn.attempt.count > 1 && may_pass(&error) => {
                self.attempt_failed(key, error.raw_os_error().unwrap_or(0))
            }
            Err(error) => Err(transport(call, &error)),
        }
    }

    /// An address or route could not be resolved, for the reason of an errno, negative or not. An
    /// error is the reason for the end.
    pub(super) fn attempt_failed(&mut self, key: u64, status: i32) -> Result<(), EndReason> {
        let Some(Entry::Conn(conn)) = self.slots.get_mut(key) else {
            return Ok(());
        };
        let what = match conn.phase {
            Phase::ResolvingAddress => "resolve the address of",
            _ => "find a route to",
        };
        let errno = status.saturating_abs();
        let reason = match errno {
            libc::ETIMEDOUT => EndReason::TimedOut(format!(
                "cannot {what} {}: no answer to {} attempts",
                conn.peer, conn.attempt.count
            )),
            _ => failed(what, conn.peer, errno),
        };
        let at = conn.attempt.next_at();
        let has_time = conn.setup_until.is_some_and(|until| at < until);
        if !has_time || !may_pass(&std::io::Error::from_raw_os_error(errno)) {
            return Err(reason);
        }
        conn.attempt.reason = Some(reason);
        conn.attempt.is_due = true;
        // Not from here: an attempt that fails at once would lead back here.
        self.set_deadline(key, Some(at));
        Ok(())
    }

    /// The deadline of a connection that is being resolved has come: time for the next attempt, or
    /// for the end.
    pub(super) fn attempt_due(&mut self, key: u64) -> Result<(), EndReason> {
        let now = self.now;
        let Some(Entry::Conn(conn)) = self.slots.get_mut(key) else {
            return Ok(());
        };
        let until = conn.setup_until;
        if !conn.attempt.is_due || until.is_none_or(|until| until <= now) {
            let reason = conn.attempt.reason.take();
            return Err(reason.unwrap_or_else(|| EndReason::TimedOut(conn.phase.awaited().into())));
        }
        conn.attempt.next(now);
        self.set_deadline(key, until);
        self.resolve(key)
    }
}

/// Whether the next attempt may go better: nobody answers, or the way there is interrupted.
fn may_pass(error: &std::io::Error) -> bool {
    let errno = error.raw_os_error().unwrap_or(0);
    matches!(
        errno,
        libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENETDOWN
    )
}

/// How long the first attempt may take.
const FIRST: Duration = Duration::from_millis(250);

/// How long one attempt may take at most: about as long as the kernel goes on asking for a hardware
/// address.
const LONGEST: Duration = Duration::from_secs(4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_grow_within_the_time_that_is_left() {
        let start = Instant::now();
        let mut attempt = Attempt::first(start);
        let mut at = Duration::ZERO;
        let mut lengths = Vec::new();
        for _ in 0..6 {
            lengths.push(attempt.timeout(Duration::from_secs(10)).as_millis());
            at += attempt.length;
            assert_eq!(attempt.next_at(), start + at);
            attempt.next(start + at);
        }
        assert_eq!(lengths, [250, 500, 1000, 2000, 4000, 4000]);
        assert_eq!(attempt.timeout(Duration::from_millis(7)).as_millis(), 7);
    }

    #[test]
    fn what_cannot_pass_is_not_tried_again() {
        for (errno, passes) in [
            (libc::ETIMEDOUT, true),
            (libc::EHOSTUNREACH, true),
            (libc::ENODEV, false),
            (libc::EINVAL, false),
        ] {
            let error = std::io::Error::from_raw_os_error(errno);
            assert_eq!(may_pass(&error), passes, "{error}");
        }
    }
}
