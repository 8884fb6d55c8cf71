#![forbid(unsafe_code)]
//! What a flush does, and what time does: posting, looking at completion queues, giving memory back,
//! following the host's addresses.

use std::time::{Duration, Instant};

use log::{info, warn};

use super::complete::Found;
use super::conn::Phase;
use super::listener::Listener;
use super::post::PostError;
use super::sys::CmId;
use super::{has_devices, limits, Entry, VerbsFabric};
use crate::fabric::{EndReason, FabricEvent};

impl VerbsFabric {
    /// Posts what a connection has waiting. When memory cannot be registered, all that is not in
    /// use is given back first.
    pub(super) fn post(&mut self, key: u64) -> Result<(), EndReason> {
        for is_last in [false, true] {
            let Some(Entry::Conn(conn)) = self.slots.get_mut(key) else {
                return Ok(());
            };
            match conn.post(self.now, &mut self.tools) {
                Ok(()) => return Ok(()),
                Err(PostError::End(reason)) => return Err(reason),
                Err(PostError::Memory(error, bytes)) if is_last => {
                    let text = limits::explain(error, "register memory", bytes).to_string();
                    return Err(EndReason::Transport(text));
                }
                Err(PostError::Memory(..)) => self.give_back(Duration::ZERO),
            }
        }
        Ok(())
    }

    /// A window cannot be given back while the device is about to bind it. That takes no time, but
    /// the completion has to be looked for; and a device that does not bind in time loses the
    /// connection, so that the peer cannot use the token later. Nobody else is served meanwhile, so
    /// there is not much time for all connections together.
    pub(super) fn await_bind(&mut self, key: u64, token: u32) {
        let began = Instant::now();
        let patience = self.bind_patience.left(began);
        let mut events = std::mem::take(&mut self.early);
        while let Some(Entry::Conn(conn)) = self.slots.get_mut(key) {
            if !conn.is_being_bound(token) {
                break;
            }
            let before = conn.phase;
            let late = began.elapsed() >= patience;
            let reason = match conn.poll(&mut events) {
                Ok(Found::Nothing) if late => {
                    EndReason::Transport("a memory window is not bound".to_owned())
                }
                Ok(_) => {
                    self.phase_was(key, before);
                    continue;
                }
                Err(reason) => reason,
            };
            self.end(key, reason, &mut events);
        }
        self.early = events;
        self.bind_patience.spend(Instant::now());
        // What was done meanwhile may have made room.
        self.mark(key, None);
    }

    /// Gives registrations back that nobody has used for `idle`.
    pub(super) fn give_back(&mut self, idle: Duration) {
        let now = self.now;
        for (_, entry) in self.slots.iter_mut() {
            if let Entry::Conn(conn) = entry {
                if let Some(queues) = &mut conn.queues {
                    queues.memory.give_back(now, idle);
                }
            }
        }
    }

    pub(super) fn run_dirty(&mut self, events: &mut Vec<FabricEvent>) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for key in dirty.drain(..) {
            let Some(Entry::Conn(conn)) = self.slots.get_mut(key) else {
                continue;
            };
            conn.is_dirty = false;
            if conn.end.is_some() {
                self.end(key, EndReason::Local, events);
                continue;
            }
            if let Err(reason) = self.post(key) {
                self.end(key, reason, events);
                continue;
            }
            let Some(Entry::Conn(conn)) = self.slots.get_mut(key) else {
                continue;
            };
            if conn.phase == Phase::Draining && conn.is_drained() {
                self.end(key, EndReason::Local, events);
            }
        }
        // Keeps its storage, unless something was marked meanwhile.
        dirty.append(&mut self.dirty);
        self.dirty = dirty;
    }

    /// Looks at busy completion queues, one batch each.
    pub(super) fn run_hot(&mut self, events: &mut Vec<FabricEvent>) {
        let mut hot = std::mem::take(&mut self.hot);
        hot.retain(|&key| self.look(key, events));
        hot.append(&mut self.hot);
        self.hot = hot;
    }

    /// One look at a completion queue. True: look again in the next flush.
    pub(super) fn look(&mut self, key: u64, events: &mut Vec<FabricEvent>) -> bool {
        let Some(Entry::Conn(conn)) = self.slots.get_mut(key) else {
            return false;
        };
        let before = conn.phase;
        let mut found = conn.poll(events);
        if found == Ok(Found::Nothing) {
            // What comes before the queue is armed tells nothing, so a second look has to follow.
            found = conn.arm().and_then(|()| conn.poll(events));
        }
        let is_hot = found == Ok(Found::Some);
        conn.is_hot = is_hot;
        match found {
            Err(reason) => self.end(key, reason, events),
            Ok(_) => {
                self.phase_was(key, before);
                // Room in the queues, or the end of draining.
                if is_hot {
                    self.mark(key, None);
                }
            }
        }
        is_hot
    }

    /// What follows from a look at a completion queue that has changed the phase.
    fn phase_was(&mut self, key: u64, before: Phase) {
        let Some(Entry::Conn(conn)) = self.slots.get(key) else {
            return;
        };
        match (before, conn.phase) {
            // A message came before rdma_cm has told that the connection is up.
            (Phase::Accepting, Phase::Open) => self.is_set_up(key),
            (Phase::Broken, _) => {}
            (_, Phase::Broken) => {
                self.set_deadline(key, Some(self.now + self.config.close_timeout));
            }
            _ => {}
        }
    }

    /// Listeners follow the addresses and devices of the host.
    pub(super) fn rescan(&mut self, events: &mut Vec<FabricEvent>) {
        self.rescan_at = Some(self.now + self.config.rescan);
        if self.look_for_removed(events) {
            // Until the kernel is through with it, it can be found, but not used.
            return;
        }
        let mut listeners = 0;
        let limit = |this: &mut Self| this.check_limit().map_err(|error| error.to_string());
        let channel = self.usable_channel().and_then(|()| limit(self));
        let cm = self.cm.get();
        for (_, entry) in self.slots.iter_mut() {
            if let Entry::Listener(listener) = entry {
                listeners += 1;
                match (&channel, cm) {
                    (Ok(()), Some(cm)) => listener.scan(cm),
                    _ => listener.drop_endpoints(),
                }
            }
        }
        match channel {
            Err(why) if listeners > 0 => self.tell_missing(&why),
            Ok(()) => self.told_missing.clear(),
            _ => {}
        }
        self.watch_listeners();
        let is_needed = listeners > 0 || !self.watched.is_empty();
        self.rescan_at = is_needed.then(|| self.now + self.config.rescan);
    }

    /// Watches all devices that are listened on, also those that could not be watched before.
    pub(super) fn watch_listeners(&mut self) {
        let listeners = self.slots.iter().filter_map(|(_, entry)| match entry {
            Entry::Listener(listener) => Some(listener),
            _ => None,
        });
        let new = |id: &&CmId| {
            id.device()
                .is_some_and(|it| !matches!(self.watched.get(&it), Some(Some(_))))
        };
        let ids: Vec<CmId> = listeners
            .flat_map(Listener::ids)
            .filter(new)
            .cloned()
            .collect();
        for id in ids {
            self.try_to_watch(&id);
        }
    }

    /// Says once that listeners have nothing to listen on. A machine without devices may be meant so;
    /// one that has some and cannot use them is not.
    pub(super) fn tell_missing(&mut self, why: &str) {
        if self.told_missing == why {
            return;
        }
        why.clone_into(&mut self.told_missing);
        if has_devices() {
            warn!("verbs: {why}: the RDMA devices of this machine cannot be used");
        } else {
            info!("verbs: {why}: listeners wait for a device");
        }
    }

    /// Whether there are RDMA devices at all, and rdma_cm to use them.
    pub(super) fn usable_channel(&self) -> Result<(), String> {
        if !has_devices() {
            return Err("this machine has no RDMA devices".into());
        }
        self.channel().map(|_| ())
    }
}
