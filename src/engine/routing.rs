//! Which owner a new connection gets.
//!
//! After the MS-SMBD negotiation the first PDU decides (three tiers): its ClientGuid is registered,
//! or the engine answers NEGOTIATE and the session of SESSION_SETUP is registered, or the parent
//! gets an offer.

use std::time::{Duration, Instant, SystemTime};

use log::{debug, info};

use super::connection::{HeldPdu, Owner, Phase, LINGER, PRIVATE_RECEIVES};
use super::handle::HandleId;
use super::rights::ROOT;
use super::{Engine, SUBMIT_BATCH};
use crate::mem::MemSlice;
use crate::ring::{flags, CqEntry, CqKind};
use crate::router;

/// Why a connection does not get an owner: errno and text.
pub(super) type Refused = (i32, String);

impl Engine {
    /// A whole PDU of a connection without an owner is there. True: look again.
    pub(super) fn route(&mut self, now: Instant, key: usize) -> bool {
        match self.conns[key].phase {
            Phase::Routing => self.route_negotiate(now, key),
            Phase::AwaitingSession => self.route_session(now, key),
            _ => return false,
        }
        true
    }

    fn route_negotiate(&mut self, now: Instant, key: usize) {
        let conn = &self.conns[key];
        let Some(pdu) = conn.held.front() else {
            return;
        };
        let request = match router::parse_negotiate(&pdu.bytes) {
            Ok(request) => request,
            Err(error) => {
                let response = error.response(&pdu.bytes);
                return self.turn_away(now, key, &error.to_string(), response);
            }
        };
        // Tier 1: the process that this client has already.
        let server = self.conns[key].server;
        if let Some(id) = self.owner_of_guid(server, request.client_guid) {
            match self.attach_routed(now, key, id) {
                Ok(()) => return,
                Err((_, text)) => {
                    debug!("connection {}: not to its ClientGuid's owner: {text}", {
                        self.conns[key].serial
                    });
                }
            }
        }
        // Tier 2: the engine answers.
        if let Some(config) = self
            .params
            .as_ref()
            .and_then(|params| params.answer.as_ref())
        {
            let mut salt = [0; 32];
            if let Err(error) = getrandom::fill(&mut salt) {
                let text = format!("no random bytes: {error}");
                return self.turn_away(now, key, &text, None);
            }
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let system_time = router::filetime(since.unwrap_or_default());
            let inputs = router::Inputs { system_time, salt };
            match router::answer_negotiate(&request, config, &inputs) {
                Ok(response) => self.answered(now, key, response),
                Err(refusal) => {
                    let text = refusal.reason.to_string();
                    self.turn_away(now, key, &text, Some(refusal.pdu));
                }
            }
            return;
        }
        // Tier 3: the parent.
        self.offer(now, key);
    }

    /// The engine's own NEGOTIATE response goes out; SESSION_SETUP has to follow.
    fn answered(&mut self, now: Instant, key: usize, response: Vec<u8>) {
        let deadline = now + self.config.first_pdu_timeout;
        let memory = match MemSlice::from_bytes(&response) {
            Ok(memory) => memory,
            Err(error) => {
                let text = format!("no memory for the NEGOTIATE response: {error}");
                return self.turn_away(now, key, &text, None);
            }
        };
        let conn = &mut self.conns[key];
        conn.submit_own_pdu(memory);
        conn.phase = Phase::AwaitingSession;
        conn.deadline = Some(deadline);
        if let Some(request) = conn.held.pop_front() {
            conn.negotiate.push(HeldPdu {
                flags: flags::NEGOTIATE_REQUEST,
                ..request
            });
            conn.negotiate.push(HeldPdu {
                bytes: response,
                flags: flags::NEGOTIATE_RESPONSE,
                invalidated: None,
                delivered: 0,
            });
        }
        self.touch(key);
    }

    fn route_session(&mut self, now: Instant, key: usize) {
        let Some(pdu) = self.conns[key].held.front() else {
            return;
        };
        let server = self.conns[key].server;
        let setup = router::parse_session_setup(&pdu.bytes);
        let routed = setup.and_then(|setup| {
            let session = setup.route(|id| self.owner_of_session(server, id).is_some())?;
            Ok(self.owner_of_session(server, session))
        });
        match routed {
            Ok(Some(id)) => {
                // The owner needs the exact NEGOTIATE bytes for its pre-authentication hash.
                let conn = &mut self.conns[key];
                for held in std::mem::take(&mut conn.negotiate).into_iter().rev() {
                    conn.held.push_front(held);
                }
                if let Err((_, text)) = self.attach_routed(now, key, id) {
                    self.turn_away(now, key, &text, None);
                }
            }
            Ok(None) => self.turn_away(now, key, "its session has no owner", None),
            Err(error) => {
                let response = error.response(&pdu.bytes);
                self.turn_away(now, key, &error.to_string(), response);
            }
        }
    }

    /// Attaches to a handle that has registered for it.
    fn attach_routed(&mut self, now: Instant, key: usize, id: HandleId) -> Result<(), Refused> {
        self.take_from(now, id.client, SUBMIT_BATCH);
        self.check_room(now, key, id)?;
        let owner = self.claim_index(id.client, key)?;
        self.unowned.remove(self.conns[key].counted);
        self.attach(now, key, owner, flags::ROUTED);
        Ok(())
    }

    /// Whether a handle can take a connection.
    pub(super) fn check_room(
        &mut self,
        now: Instant,
        key: usize,
        id: HandleId,
    ) -> Result<(), Refused> {
        self.check_memory(now)?;
        let conn = &self.conns[key];
        let need = conn.machine.negotiated().map_or(0, |n| n.max_receive_size);
        let gone = (libc::ENOENT, String::from("the handle is gone"));
        let handle = self.clients.handle(id).ok_or(gone)?;
        let have = handle.side.layout().options().receive_slot_size;
        if need > have {
            let text = format!(
                "the peer sends messages of up to {need} bytes, the handle's receive slots have \
                 {have}: open it with a larger receive_slot_size"
            );
            return Err((libc::EMSGSIZE, text));
        }
        if handle.free_slots() < usize::from(PRIVATE_RECEIVES) {
            let text = "the handle has no receive slots free: open it with more receive_slots";
            return Err((libc::ENOSPC, text.into()));
        }
        Ok(())
    }

    /// The connection belongs to `owner` from now on.
    pub(super) fn attach(&mut self, now: Instant, key: usize, owner: Owner, flags: u16) {
        let conn = &mut self.conns[key];
        let is_first = matches!(conn.phase, Phase::Routing | Phase::Offered) && !conn.was_dropped;
        conn.owner = Some(owner);
        conn.phase = Phase::Attached;
        conn.deadline = None;
        if let Some(token) = conn.token.take() {
            self.by_token.remove(&token);
        }
        self.counters.connections_attached += 1;
        self.write_record(key);
        let conn = &mut self.conns[key];
        let Some(handle) = self.clients.handle(owner.handle) else {
            return;
        };
        info!(
            "connection {} with {} belongs to process {}",
            conn.serial, conn.peer, handle.pid
        );
        handle.push(&CqEntry {
            flags,
            ..CqEntry::new(CqKind::Attached, owner.id)
        });
        conn.unanswered = match conn.held.front() {
            Some(request) if is_first && conn.held.len() == 1 => Some(request.clone()),
            _ => None,
        };
        conn.deliver_held(key, &mut self.clients);
        self.share_slots(owner.handle);
        self.touch(key);
        if self.conns[key].machine.negotiated().is_some() {
            self.conns[key].machine.handle_receives_available(now);
        }
    }

    /// Splits a handle's receive slots but the reserve among its connections: one may use at most an
    /// eighth, or its equal part when there are more than eight.
    pub(super) fn share_slots(&mut self, id: HandleId) {
        let Some(handle) = self.clients.handle(id) else {
            return;
        };
        let share = (handle.slot_count() - handle.reserve()) / handle.attached.max(8);
        let keys: Vec<usize> = handle.table.iter().flatten().copied().collect();
        for key in keys {
            if let Some(conn) = self.conns.get_mut(key) {
                if conn.phase == Phase::Attached {
                    conn.set_share(share);
                    self.touch(key);
                }
            }
        }
    }

    /// Offers a connection to the parent.
    fn offer(&mut self, now: Instant, key: usize) {
        let deadline = now + self.config.offer_timeout;
        let mut token = [0; 16];
        if let Err(error) = getrandom::fill(&mut token) {
            return self.turn_away(now, key, &format!("no random bytes: {error}"), None);
        }
        // Not to the parent of another user, who became it meanwhile.
        let server = self.conns[key].server;
        let user = self.clients.parent_user();
        let parent = self.clients.parent();
        let parent = parent.filter(|_| user == Some(server) || user == Some(ROOT));
        let Some(parent) = parent else {
            return self.turn_away(now, key, "no parent process to offer it to", None);
        };
        let entry = CqEntry {
            key: token,
            ..CqEntry::new(CqKind::Offered, 0)
        };
        if !parent.push_offer(&entry) {
            return self.turn_away(now, key, "the parent does not take its offers", None);
        }
        let conn = &mut self.conns[key];
        conn.phase = Phase::Offered;
        conn.token = Some(token);
        conn.token_uid = server;
        conn.deadline = Some(deadline);
        self.by_token.insert(token, key);
    }

    /// Ends a connection that gets no owner, after a last response.
    pub(super) fn turn_away(
        &mut self,
        now: Instant,
        key: usize,
        reason: &str,
        response: Option<Vec<u8>>,
    ) {
        self.reject_count("turned away");
        let conn = &mut self.conns[key];
        conn.latch_end(-libc::ECONNREFUSED, reason);
        conn.held.clear();
        conn.deadline = Some(now + LINGER);
        if let Some(memory) = response.and_then(|bytes| MemSlice::from_bytes(&bytes).ok()) {
            conn.submit_own_pdu(memory);
        }
        conn.submit_close(now);
        conn.phase = Phase::Closing;
        self.touch(key);
    }

    /// A phase took too long.
    pub(super) fn deadline_passed(&mut self, now: Instant, key: usize) {
        let conn = &mut self.conns[key];
        if conn.try_settled(&mut *self.fabrics[conn.fabric], now) {
            return self.touch(key);
        }
        let text = match conn.phase {
            Phase::Routing => "no NEGOTIATE in time",
            Phase::AwaitingSession => "no SESSION_SETUP in time",
            Phase::Offered => "nobody accepted the offer in time",
            Phase::Exported => "nobody took over the exported connection in time",
            Phase::Negotiating | Phase::Attached | Phase::Closing => "took too long to close",
        };
        conn.latch_end(-libc::ETIMEDOUT, text);
        conn.disconnect(&mut *self.fabrics[conn.fabric], now, Duration::ZERO);
        self.reject_count(text);
        self.touch(key);
    }

    pub(super) fn reject_count(&mut self, reason: &str) {
        *self.rejected.entry(reason.to_owned()).or_default() += 1;
    }
}
