#![forbid(unsafe_code)]
//! The fabric's calls.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::conn::{Conn, Phase, Recv, Work};
use super::listener::{self, Listener};
use super::resolve::Attempt;
use super::{post, Entry, VerbsFabric, CM_KEY};
use crate::fabric::{
    AcceptOptions, Access, ConnectOptions, EndReason, Fabric, FabricError, FabricEvent,
    ListenOptions, ListenerKey, LocalAddress, QpKey, RemoteKey, SendRequest, WrId,
};
use crate::mem::{MemSlice, Region};
use crate::sys::Ready;

impl Fabric for VerbsFabric {
    fn name(&self) -> &'static str {
        "verbs"
    }

    fn local_address(
        &self,
        listener: Option<ListenerKey>,
        address: IpAddr,
    ) -> Result<LocalAddress, String> {
        match listener.and_then(|key| self.slots.get(key.0)) {
            Some(Entry::Listener(listener)) => listener.local_address(address),
            _ => {
                self.usable_channel()?;
                listener::probe(self.channel()?, address)
            }
        }
    }

    fn listen(
        &mut self,
        address: SocketAddr,
        options: &ListenOptions,
    ) -> Result<(ListenerKey, SocketAddr), FabricError> {
        if address.ip().is_unspecified() && address.port() == 0 {
            return Err(FabricError::Invalid(format!(
                "{address}: a wildcard is many addresses, which would get a port each: name a port"
            )));
        }
        let (kind, backlog) = (options.device, self.config.backlog);
        let new = |key| Entry::Listener(Listener::new(key, address, kind, backlog));
        let key = self.slots.insert(new);
        let key = key.ok_or(FabricError::NoResources("listeners and connections"))?;
        let mut taken = address;
        match self.usable_channel() {
            Ok(()) => {
                let opened = self.check_limit().and_then(|()| {
                    let cm = self.cm.get().ok_or(FabricError::NoSuchKey)?;
                    match self.slots.get_mut(key) {
                        Some(Entry::Listener(listener)) if address.ip().is_unspecified() => {
                            listener.scan(cm);
                            Ok(address)
                        }
                        Some(Entry::Listener(listener)) => listener.open(cm),
                        _ => Err(FabricError::NoSuchKey),
                    }
                });
                match opened {
                    Ok(address) => taken = address,
                    Err(error) => {
                        self.slots.remove(key);
                        return Err(error);
                    }
                }
            }
            // A device may come later; that there is none now is no error of the caller.
            Err(why) => self.tell_missing(&why),
        }
        let rescan = self.now + self.config.rescan;
        self.rescan_at.get_or_insert(rescan);
        self.watch_listeners();
        Ok((ListenerKey(key), taken))
    }

    fn close_listener(&mut self, listener: ListenerKey) {
        if !matches!(self.slots.get(listener.0), Some(Entry::Listener(_))) {
            return;
        }
        self.slots.remove(listener.0);
        // Requests that nobody has accepted end with it.
        let asked: Vec<u64> = self
            .slots
            .iter()
            .filter_map(|(key, entry)| match entry {
                Entry::Conn(conn) if conn.listener == Some(listener) => {
                    (conn.phase == Phase::AwaitAccept).then_some(key)
                }
                _ => None,
            })
            .collect();
        for key in asked {
            self.mark(key, Some(EndReason::Local));
        }
    }

    fn connect(&mut self, now: Instant, options: &ConnectOptions) -> Result<QpKey, FabricError> {
        self.now = now;
        self.usable_channel().map_err(FabricError::Invalid)?;
        self.check_limit()?;
        check_private_data(&options.private_data)?;
        let peer = options.peer;
        let failed = |error| FabricError::Os(format!("connect to {peer}"), error);
        let id = self
            .channel()
            .map_err(FabricError::Invalid)?
            .id(0)
            .map_err(failed)?;
        let attempt = Attempt::first(now);
        id.resolve_address(peer, attempt.timeout(options.timeout))
            .map_err(failed)?;
        let local = match peer {
            SocketAddr::V4(_) => SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), 0),
            SocketAddr::V6(_) => SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), 0),
        };
        let new = |key| {
            id.set_key(key);
            let mut conn = Conn::new(key, id, Phase::ResolvingAddress, local, peer);
            conn.attempt = attempt;
            conn.told = true;
            conn.ird = options.ird;
            conn.ord = options.ord;
            conn.private_data = options.private_data.clone();
            conn.setup_until = Some(now + options.timeout);
            Entry::Conn(Box::new(conn))
        };
        let key = self.slots.insert(new);
        let key = key.ok_or(FabricError::NoResources("listeners and connections"))?;
        self.set_deadline(key, Some(now + options.timeout));
        Ok(QpKey(key))
    }

    fn accept(
        &mut self,
        now: Instant,
        qp: QpKey,
        options: &AcceptOptions,
    ) -> Result<(), FabricError> {
        self.now = now;
        check_private_data(&options.private_data)?;
        let conn = self.conn(qp)?;
        if conn.phase != Phase::AwaitAccept || conn.end.is_some() {
            return Err(FabricError::WrongState("not a connect request (any more)"));
        }
        conn.ird = options.ird;
        conn.ord = options.ord;
        conn.private_data = options.private_data.clone();
        let accepted = self.accept_request(qp.0);
        if let Err(error) = &accepted {
            self.mark(qp.0, Some(EndReason::Transport(error.to_string())));
        }
        accepted
    }

    fn reject(&mut self, qp: QpKey, private_data: &[u8]) {
        let Ok(conn) = self.conn(qp) else {
            return;
        };
        if conn.phase == Phase::AwaitAccept && conn.end.is_none() {
            conn.private_data = private_data.to_vec();
            self.mark(qp.0, Some(EndReason::Local));
        }
    }

    fn expect_receives(&mut self, qp: QpKey, count: u32) {
        if let Ok(conn) = self.conn(qp) {
            conn.expected_recvs = Some(count);
        }
    }

    fn post_recv(&mut self, qp: QpKey, wr_id: WrId, memory: MemSlice) -> Result<(), FabricError> {
        let default_room = self.config.recv_depth;
        let conn = self.posting(qp)?;
        let expected = conn.expected_recvs.unwrap_or(default_room) as usize;
        let room = conn.recv_room().unwrap_or(expected);
        if conn.recvs.len() + conn.recvs_waiting.len() >= room {
            return Err(FabricError::NoResources("receives of one connection"));
        }
        let seq = conn.seq();
        conn.recvs_waiting.push_back(Recv::new(seq, wr_id, memory));
        Ok(())
    }

    fn post_send(&mut self, qp: QpKey, request: SendRequest) -> Result<(), FabricError> {
        request.check_header()?;
        check_len("send", request.payload.as_ref().map_or(0, MemSlice::len))?;
        let wr_id = request.wr_id;
        self.posting(qp)?
            .push_work(Some(wr_id), Work::Send(request));
        Ok(())
    }

    fn post_write(
        &mut self,
        qp: QpKey,
        wr_id: WrId,
        memory: MemSlice,
        token: u32,
        offset: u64,
    ) -> Result<(), FabricError> {
        check_len("write", memory.len())?;
        let work = Work::Write {
            memory,
            token,
            offset,
        };
        self.posting(qp)?.push_work(Some(wr_id), work);
        Ok(())
    }

    fn post_read(
        &mut self,
        qp: QpKey,
        wr_id: WrId,
        memory: MemSlice,
        token: u32,
        offset: u64,
    ) -> Result<(), FabricError> {
        check_len("read", memory.len())?;
        let conn = self.posting(qp)?;
        if conn.phase == Phase::Open && conn.ord == 0 {
            return Err(FabricError::WrongState(
                "the connection was set up without RDMA READs (ORD 0)",
            ));
        }
        let work = Work::Read {
            memory,
            token,
            offset,
        };
        conn.push_work(Some(wr_id), work);
        Ok(())
    }

    fn register(
        &mut self,
        qp: QpKey,
        memory: MemSlice,
        access: Access,
    ) -> Result<RemoteKey, FabricError> {
        let Some(Entry::Conn(conn)) = self.slots.get_mut(qp.0) else {
            return Err(FabricError::NoSuchKey);
        };
        let key = conn.register(self.now, &self.config, &memory, access)?;
        self.mark(qp.0, None);
        Ok(key)
    }

    fn deregister(&mut self, qp: QpKey, token: u32) -> bool {
        self.await_bind(qp.0, token);
        match self.conn(qp) {
            Ok(conn) => conn.registrations.remove(&token).is_some(),
            Err(_) => false,
        }
    }

    /// Memory windows of type 2 can be. Plain memory regions, which is what user space has on other
    /// devices, cannot: InfiniBand refuses, and libsiw does not tell that it was done.
    fn can_be_invalidated(&self, qp: QpKey) -> bool {
        match self.slots.get(qp.0) {
            Some(Entry::Conn(conn)) => {
                let queues = conn.queues.as_ref();
                queues.is_some_and(|queues| queues.device.has_windows)
            }
            _ => false,
        }
    }

    fn registered_bytes(&self) -> u64 {
        let conns = self.slots.iter().filter_map(|(_, entry)| match entry {
            Entry::Conn(conn) => conn.queues.as_ref(),
            _ => None,
        });
        conns.map(|queues| queues.memory.bytes() as u64).sum()
    }

    fn forget(&mut self, region: &Arc<Region>) -> bool {
        let mut is_forgotten = true;
        for (_, entry) in self.slots.iter_mut() {
            if let Entry::Conn(conn) = entry {
                is_forgotten &= conn.forget(region);
            }
        }
        is_forgotten
    }

    fn flush(&mut self, now: Instant, events: &mut Vec<FabricEvent>) {
        self.now = now;
        events.append(&mut self.early);
        self.run_dirty(events);
        self.run_hot(events);
    }

    fn disconnect(&mut self, now: Instant, qp: QpKey, linger: Duration) {
        self.now = now;
        let Ok(conn) = self.conn(qp) else {
            return;
        };
        if conn.end.is_some() || conn.phase == Phase::Draining {
            return;
        }
        if conn.phase == Phase::Open && !linger.is_zero() {
            conn.phase = Phase::Draining;
            self.set_deadline(qp.0, Some(now + linger));
            self.mark(qp.0, None);
        } else {
            self.mark(qp.0, Some(EndReason::Local));
        }
    }

    fn handle_ready(&mut self, now: Instant, ready: Ready, events: &mut Vec<FabricEvent>) {
        self.now = now;
        events.append(&mut self.early);
        if ready.key == CM_KEY {
            return self.take_cm_events(events);
        }
        let conn = match self.slots.get_mut(ready.key) {
            Some(Entry::Conn(conn)) => conn,
            Some(Entry::Watch(_)) => return self.take_async_events(ready.key, events),
            _ => return,
        };
        let Some(queues) = &mut conn.queues else {
            return;
        };
        // One event for each time it was armed, and one look takes it all. If there is another one,
        // the descriptor stays readable.
        if let Err(error) = queues.qp.take_event() {
            let reason = post::transport("completion channel", &error);
            return self.end(ready.key, reason, events);
        }
        if !std::mem::replace(&mut conn.is_hot, true) {
            self.hot.push(ready.key);
        }
    }

    fn handle_timeout(&mut self, now: Instant, events: &mut Vec<FabricEvent>) {
        self.flush(now, events);
        while let Some(key) = self.timers.pop(now) {
            match self.slots.get_mut(key) {
                Some(Entry::Conn(conn)) => {
                    conn.deadline = None;
                    let reason = match conn.phase {
                        Phase::ResolvingAddress | Phase::ResolvingRoute => {
                            match self.attempt_due(key) {
                                Ok(()) => continue,
                                Err(reason) => reason,
                            }
                        }
                        Phase::Open | Phase::Draining => EndReason::Local,
                        Phase::Broken => EndReason::Transport(
                            "the queue pair is in error, and its device does not say why"
                                .to_owned(),
                        ),
                        phase => EndReason::TimedOut(phase.awaited().into()),
                    };
                    self.end(key, reason, events);
                }
                Some(Entry::Closing { .. }) => {
                    self.slots.remove(key);
                }
                Some(Entry::Listener(_) | Entry::Watch(_)) | None => {}
            }
        }
        if self.rescan_at.is_some_and(|at| at <= now) {
            self.rescan(events);
        }
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.give_back(self.config.keep_idle);
            let has_conns = self
                .slots
                .iter()
                .any(|(_, entry)| matches!(entry, Entry::Conn(conn) if conn.queues.is_some()));
            self.sweep_at = has_conns.then(|| now + self.config.keep_idle);
        }
    }

    fn next_timeout(&self) -> Option<Instant> {
        let has_work = !self.dirty.is_empty() || !self.hot.is_empty() || !self.early.is_empty();
        // What is overdue comes first: whoever looks only at what was due before the last events
        // would never get to it under load.
        let work = has_work.then_some(self.now);
        let times = [work, self.timers.next(), self.rescan_at, self.sweep_at];
        times.into_iter().flatten().min()
    }
}

/// A message has at most 2 GiB (InfiniBand) or 4 GiB (iWARP).
fn check_len(what: &str, len: usize) -> Result<(), FabricError> {
    if len <= 1 << 31 {
        return Ok(());
    }
    Err(FabricError::Invalid(format!(
        "{what} of {len} bytes; at most 2 GiB"
    )))
}

fn check_private_data(data: &[u8]) -> Result<(), FabricError> {
    if data.len() <= MAX_PRIVATE_DATA {
        return Ok(());
    }
    Err(FabricError::Invalid(format!(
        "private data of {} bytes; at most {MAX_PRIVATE_DATA}",
        data.len()
    )))
}

/// What every transport carries (InfiniBand in a connect request: 92 less the 36 of rdma_cm).
const MAX_PRIVATE_DATA: usize = 56;
