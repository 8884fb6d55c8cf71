//! The end of a connection that is in order on both sides: not while the peer has something under
//! way.
//!
//! A peer may have posted sends that its adapter has not got to, because it answers RDMA READs of
//! ours first. When the connection ends at that moment, they are flushed with an error. That is
//! what RDMA does, but Linux's client (seen in 6.12: `smbd_send` waits for its sends to be done and
//! nobody wakes it) then hangs for good, with the lock that everything else of the mount needs. So
//! the end waits until our RDMA operations are done and nothing has come for a moment: the peer gets
//! no answers any more, so it has soon nothing left to say.

use std::time::{Duration, Instant};

use super::{Conn, Phase, LINGER};
use crate::fabric::Fabric;

/// How long nothing has to come.
const QUIET: Duration = Duration::from_millis(50);

/// The longest that is waited for it.
const PATIENCE: Duration = Duration::from_secs(2);

/// A connection about to end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settling {
    /// When something came last.
    heard: Instant,
    /// When it ends anyway.
    until: Instant,
}

impl Conn {
    /// Ends the connection when the peer has come to rest. What it sends until then is dropped.
    pub(super) fn settle(&mut self, now: Instant) {
        self.phase = Phase::Closing;
        if self.settling.is_none() && !self.disconnecting {
            self.settling = Some(Settling {
                heard: now,
                until: now + PATIENCE,
            });
            self.deadline = Some(now + QUIET);
        }
    }

    /// Something has come.
    pub(super) fn heard(&mut self, now: Instant) {
        if let Some(settling) = &mut self.settling {
            settling.heard = now;
        }
    }

    /// Looks whether it is time; false: the deadline that passed was another one.
    pub(in crate::engine) fn try_settled(&mut self, fabric: &mut dyn Fabric, now: Instant) -> bool {
        let Some(settling) = self.settling else {
            return false;
        };
        let quiet_at = settling.heard + QUIET;
        let is_quiet = quiet_at <= now && self.rdma_in_fabric == 0;
        if is_quiet || settling.until <= now {
            self.settling = None;
            self.disconnect(fabric, now, LINGER);
        } else {
            let next = if quiet_at <= now {
                now + QUIET
            } else {
                quiet_at
            };
            self.deadline = Some(next.min(settling.until));
        }
        true
    }
}
