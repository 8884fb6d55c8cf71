//! The end of the engine, in good order.

use std::time::{Duration, Instant};

use log::info;

use super::{tag, Engine};

/// How long peers have to come to rest and to close.
const PATIENCE: Duration = Duration::from_secs(3);

impl Engine {
    /// Takes no more connections and begins to end those that there are.
    pub(super) fn begin_stop(&mut self, now: Instant, stop: &impl std::os::fd::AsFd) {
        info!("stopping: {} connections", self.conns.len());
        self.stopping = Some(now + PATIENCE);
        // It stays readable.
        let registry = self.poller.registry(tag::STOP);
        let _ = registry.modify(stop, 0, crate::sys::Interest::NONE);
        for listener in self.listeners.drain(..) {
            self.fabrics[listener.fabric].close_listener(listener.key);
        }
        self.params = None;
        let keys: Vec<usize> = self.conns.iter().map(|(key, _)| key).collect();
        for key in keys {
            if let Some(conn) = self.conns.get_mut(key) {
                conn.latch_end(-libc::ENETDOWN, "the engine stops");
                conn.machine.close(now);
            }
            self.touch(key);
        }
    }

    /// Whether it is time to go.
    pub(super) fn is_stopped(&self, now: Instant) -> bool {
        let until = self.stopping;
        until.is_some_and(|until| self.conns.is_empty() || until <= now)
    }

    /// Ends what is left, without waiting for peers.
    pub(super) fn stop(&mut self, now: Instant) {
        for (_, conn) in &mut self.conns {
            conn.disconnect(&mut *self.fabrics[conn.fabric], now, Duration::ZERO);
        }
        for index in 0..self.fabrics.len() {
            self.fabrics[index].flush(now, &mut self.events);
            self.take_events(now, index);
        }
        self.publish(now);
    }
}
