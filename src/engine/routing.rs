//! From a connect request to an owner, and from one owner to another.
//!
//! After the MS-SMBD negotiation the first PDU decides (three tiers): its ClientGuid is registered,
//! or the engine answers NEGOTIATE and the session of SESSION_SETUP is registered, or the parent
//! gets an offer.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use log::{debug, info, warn};

use super::connection::{Conn, HeldPdu, Owner, Phase, LINGER, PRIVATE_RECEIVES};
use super::handle::HandleId;
use super::{Engine, SUBMIT_BATCH};
use crate::fabric::{AcceptOptions, EndReason, QpKey};
use crate::ipc;
use crate::mem::MemSlice;
use crate::proto::{Params, Role};
use crate::ring::{flags, ConnectionCounters, ConnectionRecord, CqEntry, CqKind};
use crate::router;

/// RDMA READs a peer may have outstanding towards us: a server offers no memory, but an SMB Direct
/// client does, and cifs.ko asks for 1.
pub(super) const IRD: u32 = 32;
/// RDMA READs we would like to have outstanding.
pub(super) const ORD: u32 = 32;

/// Why a connection does not get an owner: errno and text.
type Refused = (i32, String);

impl Engine {
    /// A peer knocks.
    pub(super) fn connect_request(
        &mut self,
        now: Instant,
        fabric: usize,
        qp: QpKey,
        local: SocketAddr,
        peer: SocketAddr,
        private_data: &[u8],
    ) {
        let refusal = if self.params.is_none() {
            Some("no parameters set")
        } else if self.conns.len() >= self.config.max_connections {
            Some("max_connections")
        } else if self.unowned >= self.config.max_unowned {
            Some("max_unowned")
        } else {
            None
        };
        if let Some(reason) = refusal {
            warn!("connection from {peer} refused: {reason}");
            self.reject_count(reason);
            self.fabrics[fabric].reject(qp, &[]);
            return;
        }
        let Some(params) = self.params.as_ref().map(|p| p.smbd.clone()) else {
            return;
        };
        let Some(key) = self.add_conn(now, fabric, qp, local, peer, Role::Passive, &params) else {
            self.fabrics[fabric].reject(qp, &[]);
            return;
        };
        // Posts the receive for the Negotiate Request: it has to be there before the accept.
        self.pump(now, key);
        let legacy = LegacyDepth::parse(private_data);
        let options = AcceptOptions {
            ird: IRD,
            ord: legacy.map_or(ORD, |peer| peer.limit(ORD)),
            private_data: legacy.map_or_else(Vec::new, |_| LegacyDepth::ours()),
        };
        if let Err(error) = self.fabrics[fabric].accept(now, qp, &options) {
            debug!("connection from {peer} not accepted: {error}");
        }
    }

    /// Takes a connection into the tables.
    #[allow(clippy::too_many_arguments)]
    fn add_conn(
        &mut self,
        now: Instant,
        fabric: usize,
        qp: QpKey,
        local: SocketAddr,
        peer: SocketAddr,
        role: Role,
        params: &Params,
    ) -> Option<usize> {
        let serial = self.next_serial;
        match Conn::new(serial, fabric, qp, local, peer, role, params, now) {
            Ok(conn) => {
                self.next_serial += 1;
                self.unowned += 1;
                let key = self.conns.insert(conn);
                self.by_qp.insert((fabric, qp), key);
                Some(key)
            }
            Err(error) => {
                warn!("connection with {peer}: no memory for receives: {error}");
                self.reject_count("no memory");
                None
            }
        }
    }

    /// Connects for a handle.
    pub(super) fn connect(
        &mut self,
        now: Instant,
        client: usize,
        spec: &ipc::ConnectSpec,
    ) -> Result<u64, Refused> {
        let params = super::control::smbd_params(&spec.params);
        let no_handle = (libc::EBADF, String::from("open a handle first"));
        let handle = self.clients.handle_at(client).ok_or(no_handle)?;
        let slot_size = handle.side.layout().options().receive_slot_size;
        if params.max_receive_size > slot_size {
            let text = format!(
                "max_receive_size is {}, the handle's receive slots have {slot_size} bytes: open it \
                 with a larger receive_slot_size",
                params.max_receive_size
            );
            return Err((libc::EMSGSIZE, text));
        }
        if handle.free_slots() < usize::from(PRIVATE_RECEIVES) {
            return Err((libc::ENOSPC, "no receive slots free: open more".into()));
        }
        let fabric = 0;
        let timeout = Duration::from_millis(spec.timeout_msec.into());
        let options = crate::fabric::ConnectOptions {
            peer: spec.address,
            crc: spec.crc,
            mpa_revision: spec.mpa_revision,
            ird: IRD,
            ord: ORD,
            private_data: LegacyDepth::ours(),
            timeout,
        };
        let local = SocketAddr::new(
            if spec.address.is_ipv4() {
                std::net::Ipv4Addr::UNSPECIFIED.into()
            } else {
                std::net::Ipv6Addr::UNSPECIFIED.into()
            },
            0,
        );
        let params = Params {
            negotiate_timeout_active: timeout,
            ..params
        };
        let qp = self.fabrics[fabric]
            .connect(now, &options)
            .map_err(|error| (libc::ECONNABORTED, error.to_string()))?;
        let added = self.add_conn(now, fabric, qp, local, spec.address, Role::Active, &params);
        let Some(key) = added else {
            self.fabrics[fabric].disconnect(now, qp, Duration::ZERO);
            return Err((libc::ENOMEM, "no memory for receives".into()));
        };
        match self.claim_index(client, key) {
            Ok(owner) => {
                self.conns[key].owner = Some(owner);
                self.unowned -= 1;
                self.write_record(key);
                self.touch(key);
                Ok(owner.id)
            }
            Err(refused) => {
                self.conns[key].latch_end(-refused.0, refused.1.clone());
                self.conns[key].machine.close(now);
                self.touch(key);
                Err(refused)
            }
        }
    }

    /// A place in a handle's table for a connection.
    fn claim_index(&mut self, client: usize, key: usize) -> Result<Owner, Refused> {
        let serial = self.conns[key].serial;
        let no_handle = (libc::EBADF, String::from("open a handle first"));
        let handle = self.clients.handle_at(client).ok_or(no_handle)?;
        let most = handle.table.len();
        let index = handle.take_index(key).ok_or_else(|| {
            (
                libc::ENOSPC,
                format!("the handle has {most} connections already (max_connections)"),
            )
        })?;
        handle.attached += 1;
        Ok(Owner {
            handle: handle.id,
            index,
            id: serial << 16 | index as u64,
        })
    }

    /// The fabric is up.
    pub(super) fn established(
        &mut self,
        now: Instant,
        key: usize,
        local: SocketAddr,
        peer: SocketAddr,
        ord: u32,
        private_data: &[u8],
    ) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        conn.local = local;
        conn.peer = peer;
        conn.max_rdma_reads = ord;
        if conn.role == Role::Active {
            if let Some(legacy) = LegacyDepth::parse(private_data) {
                conn.max_rdma_reads = legacy.limit(ord);
            }
        }
        conn.machine.handle_established(now);
        self.touch(key);
    }

    /// The MS-SMBD negotiation is over.
    pub(super) fn negotiated(&mut self, now: Instant, key: usize) {
        let timeout = self.config.first_pdu_timeout;
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        debug!("connection {} with {} negotiated", conn.serial, conn.peer);
        match conn.owner {
            // Made by this handle's smbd_connect.
            Some(owner) => self.attach(now, key, owner, flags::ACTIVE),
            None => conn.deadline = Some(now + timeout),
        }
    }

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
        if let Some(&id) = self.by_guid.get(&request.client_guid) {
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
        let setup = router::parse_session_setup(&pdu.bytes);
        let routed = setup.and_then(|setup| {
            let session = setup.route(|id| self.by_session.contains_key(&id))?;
            Ok(self.by_session.get(&session).copied())
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
        self.check_room(key, id)?;
        let owner = self.claim_index(id.client, key)?;
        self.unowned -= 1;
        self.attach(now, key, owner, flags::ROUTED);
        Ok(())
    }

    /// Whether a handle can take a connection.
    fn check_room(&mut self, key: usize, id: HandleId) -> Result<(), Refused> {
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
    fn attach(&mut self, now: Instant, key: usize, owner: Owner, flags: u16) {
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
        let Some(parent) = self.clients.parent() else {
            return self.turn_away(now, key, "no parent process to offer it to", None);
        };
        let entry = CqEntry {
            key: token,
            ..CqEntry::new(CqKind::Offered, 0)
        };
        if !parent.push_offer(&entry) {
            return self.turn_away(now, key, "the parent does not take its offers", None);
        }
        let uid = self.clients.parent_uid();
        let conn = &mut self.conns[key];
        conn.phase = Phase::Offered;
        conn.token = Some(token);
        conn.token_uid = uid;
        conn.deadline = Some(deadline);
        self.by_token.insert(token, key);
    }

    /// Ends a connection that gets no owner, after a last response.
    fn turn_away(&mut self, now: Instant, key: usize, reason: &str, response: Option<Vec<u8>>) {
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
        if uid != 0 && uid != token_uid {
            let text = format!("the token is for processes of user {token_uid}, not {uid}");
            return Err((libc::EACCES, text));
        }
        // Slots that it has returned count as free.
        self.take_from(now, client, SUBMIT_BATCH);
        self.check_room(key, id)?;
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
            None => self.unowned -= 1,
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

    fn forget_token(&mut self, key: usize) {
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
            handle.give_memory_back();
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
            None => self.unowned = self.unowned.saturating_sub(1),
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

    /// The process of a handle is gone, or has closed it.
    pub(super) fn orphan(&mut self, now: Instant, key: usize) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        conn.owner = None;
        self.unowned += 1;
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

    /// What a connection is, for its owner's eyes.
    fn write_record(&mut self, key: usize) {
        let conn = &self.conns[key];
        let Some(owner) = conn.owner else {
            return;
        };
        let negotiated = conn.machine.negotiated();
        let record = ConnectionRecord {
            connection: owner.id,
            fabric: ipc::Fabric::SoftIwarp.number(),
            local: conn.local,
            peer: conn.peer,
            max_send_size: negotiated.map_or(0, |n| n.max_send_size),
            max_receive_size: negotiated.map_or(0, |n| n.max_receive_size),
            max_fragmented_send_size: negotiated.map_or(0, |n| n.max_fragmented_send_size),
            max_fragmented_receive_size: negotiated.map_or(0, |n| n.max_fragmented_receive_size),
            max_read_write_size: negotiated.map_or(0, |n| n.max_read_write_size),
            max_rdma_reads: conn.max_rdma_reads,
            receive_credit_max: conn.receive_credit_max().into(),
        };
        if let Some(handle) = self.clients.handle(owner.handle) {
            if let Err(error) = handle.side.write_connection(&record) {
                handle.broken.get_or_insert(error);
            }
        }
    }

    /// The counters of a connection, for its owner's eyes.
    pub(super) fn write_counters(&mut self, key: usize) {
        let Some(conn) = self.conns.get(key) else {
            return;
        };
        let Some(owner) = conn.owner else {
            return;
        };
        let counters = conn.counters();
        if let Some(handle) = self.clients.handle(owner.handle) {
            if let Err(error) = handle.side.write_counters(owner.id, &counters) {
                handle.broken.get_or_insert(error);
            }
        }
    }

    fn reject_count(&mut self, reason: &str) {
        *self.rejected.entry(reason.to_owned()).or_default() += 1;
    }
}

impl Conn {
    /// Everything that is counted.
    pub(super) fn counters(&self) -> ConnectionCounters {
        let stats = self.machine.stats();
        ConnectionCounters {
            send_credits: self.machine.send_credits().into(),
            receive_credits: self.machine.receive_credits().into(),
            // MS-SMBD calls the upper layer's units messages and its own PDUs; here, as in the C
            // API, a PDU is the upper layer's and a message is one RDMA send.
            pdus_received: stats.messages_received,
            pdus_sent: stats.messages_sent,
            messages_received: stats.pdus_received,
            messages_sent: stats.pdus_sent,
            bytes_received: stats.bytes_received,
            bytes_sent: stats.bytes_sent,
            rdma_reads: self.rdma.reads,
            rdma_writes: self.rdma.writes,
            rdma_read_bytes: self.rdma.read_bytes,
            rdma_write_bytes: self.rdma.write_bytes,
        }
    }
}

/// The IRD and ORD that SMB Direct peers may put into the CM private data where the transport has
/// no place for them ([MS-SMBD] 6). cifs.ko always sends them, in network byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LegacyDepth {
    ird: u32,
    ord: u32,
}

impl LegacyDepth {
    fn parse(private_data: &[u8]) -> Option<Self> {
        let bytes: [u8; 8] = private_data.try_into().ok()?;
        let [a, b, c, d, e, f, g, h] = bytes;
        let (ird, ord) = (
            u32::from_be_bytes([a, b, c, d]),
            u32::from_be_bytes([e, f, g, h]),
        );
        Some(Self { ird, ord })
    }

    fn ours() -> Vec<u8> {
        [IRD.to_be_bytes(), ORD.to_be_bytes()].concat()
    }

    /// The reads we may have outstanding towards this peer. Values of old cifs.ko came in the other
    /// byte order and are then far above any real limit.
    fn limit(self, ord: u32) -> u32 {
        let ird = if self.ird > 0xffff {
            self.ird.swap_bytes()
        } else {
            self.ird
        };
        if ird == 0 {
            ord
        } else {
            ord.min(ird)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_data_of_cifs_limits_reads() {
        // As in the capture of Linux 6.12: IRD 32, ORD 1.
        let depth = LegacyDepth::parse(&[0, 0, 0, 0x20, 0, 0, 0, 1]).unwrap();
        assert_eq!(depth, LegacyDepth { ird: 32, ord: 1 });
        assert_eq!(depth.limit(128), 32);
        assert_eq!(depth.limit(8), 8);
        // Old cifs.ko: little-endian.
        assert_eq!(
            LegacyDepth::parse(&[0x10, 0, 0, 0, 1, 0, 0, 0])
                .unwrap()
                .limit(128),
            16
        );
        assert_eq!(LegacyDepth::parse(&[0; 8]).unwrap().limit(7), 7);
        assert_eq!(LegacyDepth::parse(&[0; 7]), None);
    }
}
