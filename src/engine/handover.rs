//! From one owner to another, and the end of a connection.

use std::time::{Duration, Instant};

use log::info;

use super::connection::{Owner, Phase, LINGER};
use super::rights::ROOT;
use super::routing::Refused;
use super::{Engine, SUBMIT_BATCH};
use crate::fabric::EndReason;
use crate::ring::{CqEntry, CqKind};

impl Engine {
    /// A handle takes a connection over by its token.
    pub(super) fn accept(
        &mut self,
        now: Instant,
        client: usize,
        token: &[u8; 16],
    ) -> Result<u64, Refused> {
        let unknown = || {
            (
                libc::ENOENT,
                String::from("no offer or export with this token"),
            )
        };
        let key = *self.by_token.get(token).ok_or_else(unknown)?;
        let id = self.clients.handle_at(client).ok_or_else(unknown)?.id;
        let uid = self
            .clients
            .get(client)
            .map_or(u32::MAX, |c| c.credentials.uid);
        let token_uid = self.conns[key].token_uid;
        if uid != ROOT && uid != token_uid {
            let text = format!("the token is for processes of user {token_uid}, not {uid}");
            return Err((libc::EACCES, text));
        }
        // Slots that it has returned count as free.
        self.take_from(now, client, SUBMIT_BATCH);
        self.check_room(now, key, id)?;
        let old = self.conns[key].owner;
        if old.is_some_and(|old| old.handle == id) {
            return Err((
                libc::EALREADY,
                "the connection belongs to this handle".into(),
            ));
        }
        if self.conns[key].has_operations() {
            return Err((libc::EBUSY, "its owner has operations in flight".into()));
        }
        let owner = self.claim_index(client, key)?;
        match old {
            Some(old) => {
                self.counters.connections_moved += 1;
                let entry = CqEntry {
                    status: -libc::EREMCHG,
                    ..CqEntry::new(CqKind::Disconnected, old.id)
                };
                self.end_ownership(old, &entry);
            }
            None => self.unowned.remove(self.conns[key].counted),
        }
        self.attach(now, key, owner, 0);
        Ok(owner.id)
    }

    /// The parent does not want an offered connection.
    pub(super) fn reject(
        &mut self,
        now: Instant,
        client: usize,
        token: &[u8; 16],
    ) -> Result<(), Refused> {
        if !self
            .clients
            .handle_at(client)
            .is_some_and(|handle| handle.parent)
        {
            return Err((libc::EPERM, "only the parent handle rejects offers".into()));
        }
        match self.by_token.get(token) {
            Some(&key) if self.conns[key].phase == Phase::Offered => {
                self.forget_token(key);
                self.turn_away(now, key, "rejected by the parent process", None);
                Ok(())
            }
            _ => Err((libc::ENOENT, "no offer with this token".into())),
        }
    }

    pub(super) fn forget_token(&mut self, key: usize) {
        if let Some(token) = self.conns.get_mut(key).and_then(|conn| conn.token.take()) {
            self.by_token.remove(&token);
        }
    }

    /// The connection that a handle knows by `id`.
    pub(super) fn owned(&mut self, client: usize, id: u64) -> Result<usize, Refused> {
        let missing = || (libc::ENOTCONN, format!("no connection {id:#x}"));
        let handle = self.clients.handle_at(client).ok_or_else(missing)?;
        let index = usize::from(crate::ring::connection_index(id));
        let key = handle
            .table
            .get(index)
            .copied()
            .flatten()
            .ok_or_else(missing)?;
        let owner = Owner {
            handle: handle.id,
            index,
            id,
        };
        match self.conns.get(key) {
            Some(conn) if conn.owner == Some(owner) && conn.phase != Phase::Closing => Ok(key),
            _ => Err(missing()),
        }
    }

    /// Makes a token with which another handle can take a connection over.
    pub(super) fn export(&mut self, client: usize, id: u64) -> Result<[u8; 16], Refused> {
        let key = self.owned(client, id)?;
        let uid = self.clients.get(client).map_or(0, |c| c.credentials.uid);
        let conn = &mut self.conns[key];
        match (conn.phase, conn.token) {
            (Phase::Exported, Some(token)) => return Ok(token),
            (Phase::Attached, _) => {}
            (phase, _) => {
                let text = format!("the connection is {}, not attached", phase.as_str());
                return Err((libc::ENOTCONN, text));
            }
        }
        if conn.half_delivered() {
            return Err((libc::EBUSY, "a PDU is half received: try again".into()));
        }
        let mut token = [0; 16];
        getrandom::fill(&mut token)
            .map_err(|error| (libc::EIO, format!("no random bytes: {error}")))?;
        conn.phase = Phase::Exported;
        conn.unanswered = None;
        conn.token = Some(token);
        conn.token_uid = uid;
        self.by_token.insert(token, key);
        Ok(token)
    }

    /// An exported connection stays where it is.
    pub(super) fn cancel_export(&mut self, now: Instant, key: usize) {
        match self.conns.get(key) {
            Some(conn) if conn.phase == Phase::Exported && conn.owner.is_some() => {}
            _ => return,
        }
        self.forget_token(key);
        let conn = &mut self.conns[key];
        conn.phase = Phase::Attached;
        conn.deadline = None;
        conn.deliver_held(key, &mut self.clients);
        conn.machine.handle_receives_available(now);
        self.touch(key);
    }

    /// Tells an owner its connection's last event.
    fn end_ownership(&mut self, owner: Owner, entry: &CqEntry) {
        if let Some(handle) = self.clients.handle(owner.handle) {
            handle.push_disconnected(owner.index, entry);
            self.share_slots(owner.handle);
        }
    }

    /// The queue pair is gone.
    pub(super) fn finish(&mut self, now: Instant, key: usize, reason: &EndReason) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        conn.finish(&mut self.clients, now, reason);
        if conn.owner.is_some() {
            self.write_counters(key);
        }
        let conn = self.conns.remove(key);
        self.counters.connections_ended += 1;
        if let Some(token) = conn.token {
            self.by_token.remove(&token);
        }
        if let Some(at) = conn.timer {
            self.timers.remove(&(at, key));
        }
        match conn.owner {
            None => self.unowned.remove(conn.counted),
            Some(owner) => {
                let status = conn.end.as_ref().map_or(0, |(errno, _)| *errno);
                let entry = CqEntry {
                    status,
                    ..CqEntry::new(CqKind::Disconnected, owner.id)
                };
                self.end_ownership(owner, &entry);
            }
        }
    }

    /// An administrator ends a connection, whoever owns it.
    pub(super) fn disconnect(
        &mut self,
        now: Instant,
        client: usize,
        id: u64,
        abort: bool,
    ) -> Result<(), Refused> {
        let asker = self.clients.get(client).map(|client| client.credentials);
        let Some(asker) = asker.filter(|it| self.is_trusted(it.uid)) else {
            let text = format!(
                "only root and user {} may end connections of others",
                self.uid
            );
            return Err((libc::EPERM, text));
        };
        let serial = id >> 16;
        let found = self.conns.iter().find(|(_, conn)| conn.serial == serial);
        let Some((key, _)) = found.filter(|(_, conn)| conn.phase != Phase::Closing) else {
            let text = format!("no connection {id} (any more); `smbdirect status` shows them");
            return Err((libc::ENOENT, text));
        };
        let conn = &mut self.conns[key];
        let how = if abort { "aborted" } else { "ended" };
        conn.latch_end(
            -libc::ECONNABORTED,
            format!(
                "{how} on request of process {}, user {}",
                asker.pid, asker.uid
            ),
        );
        if abort {
            conn.deadline = None;
            conn.disconnect(&mut *self.fabrics[conn.fabric], now, Duration::ZERO);
        } else {
            conn.deadline = Some(now + LINGER);
            conn.submit_close(now);
            conn.phase = Phase::Closing;
        }
        self.forget_token(key);
        self.touch(key);
        Ok(())
    }

    /// The process of a handle is gone, or has closed it.
    pub(super) fn orphan(&mut self, now: Instant, key: usize) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        conn.owner = None;
        self.unowned.add(conn.counted);
        let is_up = conn.phase == Phase::Attached && conn.end.is_none();
        if conn.phase == Phase::Exported {
            conn.deadline = Some(now + self.config.export_timeout);
        } else if let Some(request) = conn.unanswered.take().filter(|_| is_up) {
            // An smbd that is about to end, because the client's last connection has gone, must not
            // take the next connection of the same client along.
            info!(
                "connection {} with {}: its process ended before it answered; it gets another one",
                conn.serial, conn.peer
            );
            conn.route_again(request, now + self.config.first_pdu_timeout);
        } else {
            conn.latch_end(0, "its process closed it or ended");
            conn.submit_close(now);
        }
        self.touch(key);
    }
}
