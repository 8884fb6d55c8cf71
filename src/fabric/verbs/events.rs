#![forbid(unsafe_code)]
//! What rdma_cm tells, and how connections end.

use log::{debug, info};

use super::conn::{Conn, Phase};
use super::sys::{CmEvent, CmEventKind, CmId, Transport};
use super::{Entry, VerbsFabric};
use crate::fabric::{EndReason, FabricError, FabricEvent, ListenerKey};
use crate::sys::Registry;

/// Events taken in one turn.
const EVENT_BATCH: usize = 64;

impl VerbsFabric {
    pub(super) fn take_cm_events(&mut self, events: &mut Vec<FabricEvent>) {
        for _ in 0..EVENT_BATCH {
            let next = match self.cm.get() {
                Some(channel) => channel.next(),
                None => return,
            };
            match next {
                Ok(Some(event)) => self.cm_event(event, events),
                Ok(None) => return,
                Err(error) => {
                    // The channel stays; what it had to tell times out.
                    info!("verbs: rdma_get_cm_event: {error}");
                    return;
                }
            }
        }
    }

    fn cm_event(&mut self, event: CmEvent, events: &mut Vec<FabricEvent>) {
        let key = event.key;
        if event.kind == CmEventKind::DeviceRemoval {
            if let Some(device) = event.device {
                return self.device_removed(device, events);
            }
        }
        match self.slots.get_mut(key) {
            Some(Entry::Conn(_)) => self.conn_event(key, &event, events),
            Some(Entry::Listener(_)) if event.kind == CmEventKind::ConnectRequest => {
                self.connect_request(event, events);
            }
            Some(Entry::Listener(_) | Entry::Watch(_)) => {
                // The address of a listener has gone to another link of a bond.
                if event.kind == CmEventKind::AddrChange {
                    self.rescan(events);
                }
            }
            Some(Entry::Closing { id, .. }) if event.kind == CmEventKind::Established => {
                // Fails when the other side was faster.
                let _ = id.disconnect();
            }
            Some(Entry::Closing { .. }) => self.end_goodbye(key),
            // Its listener is gone: the identifier is dropped, which refuses.
            None => debug!("verbs: {:?} of a connection that is over", event.kind),
        }
    }

    fn conn_event(&mut self, key: u64, event: &CmEvent, events: &mut Vec<FabricEvent>) {
        if event.kind == CmEventKind::Disconnected {
            // What the device has to say of a queue pair is nearer to the cause.
            if let Some(Entry::Conn(conn)) = self.slots.get_mut(key) {
                let id = conn.id.clone();
                self.take_async_events_of(&id, events);
            }
        }
        let Some(Entry::Conn(conn)) = self.slots.get_mut(key) else {
            return;
        };
        let peer = conn.peer;
        let phase = conn.phase;
        debug!(
            "verbs: {peer}: {:?} ({}) in {phase:?}",
            event.kind, event.status
        );
        let result = match (event.kind, phase) {
            (CmEventKind::AddrResolved, Phase::ResolvingAddress) => self.address_resolved(key),
            (CmEventKind::RouteResolved, Phase::ResolvingRoute) => self.route_resolved(key),
            (CmEventKind::Established, Phase::Connecting | Phase::Accepting) => {
                conn.is_notified = false;
                self.established(key, event, events);
                Ok(())
            }
            (CmEventKind::Established, _) => {
                conn.is_notified = false;
                Ok(())
            }
            (CmEventKind::AddrError, Phase::ResolvingAddress)
            | (CmEventKind::RouteError, Phase::ResolvingRoute) => {
                self.attempt_failed(key, event.status)
            }
            (CmEventKind::ConnectError, _) => Err(failed("connect with", peer, event.status)),
            (CmEventKind::Rejected, _) => Err(EndReason::Refused(rejection(conn, event))),
            (CmEventKind::Disconnected, Phase::Draining) => Err(EndReason::Local),
            (CmEventKind::Disconnected, _) => Err(EndReason::PeerClosed),
            // The peer's hardware address is another one: a queue pair of RoCE goes on with the old.
            (CmEventKind::Unreachable, Phase::Open | Phase::Draining) => Err(EndReason::Transport(
                format!("{peer} has another hardware address, or is unreachable"),
            )),
            (CmEventKind::Unreachable, _) => Err(failed("reach", peer, event.status)),
            // The address has gone to another link of a bond. The queue pair stays where it is, and
            // the connection goes on as long as its path does.
            (CmEventKind::AddrChange, _) => {
                info!("verbs: {peer}: our address has gone to another link");
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(reason) = result {
            self.end(key, reason, events);
        }
    }

    fn established(&mut self, key: u64, event: &CmEvent, events: &mut Vec<FabricEvent>) {
        self.is_set_up(key);
        let Some(Entry::Conn(conn)) = self.slots.get_mut(key) else {
            return;
        };
        let is_iwarp = is_iwarp(conn);
        if conn.phase == Phase::Connecting {
            conn.ord = agreed_ord(conn.ord, event, is_iwarp);
            if let Some(local) = conn.id.local() {
                conn.local = local;
            }
        }
        let private_data = if is_iwarp {
            event.private_data.clone()
        } else {
            Vec::new()
        };
        conn.establish(private_data, events);
        self.mark(key, None);
    }

    fn connect_request(&mut self, event: CmEvent, events: &mut Vec<FabricEvent>) {
        let Some(id) = event.request else {
            return;
        };
        let (Some(local), Some(peer)) = (id.local(), id.peer()) else {
            return;
        };
        if self.half_open >= self.config.max_half_open {
            info!("verbs: {peer} refused: max_half_open");
            let _ = id.reject(&[]);
            return;
        }
        let is_iwarp = matches!(
            super::sys::Device::of(&id),
            Some(Ok(device)) if device.transport == Transport::Iwarp
        );
        let depth = |value: u8| Some(u32::from(value)).filter(|&value| value > 0 || !is_iwarp);
        let (peer_ird, peer_ord) = (
            depth(event.initiator_depth),
            depth(event.responder_resources),
        );
        let new = |key| {
            id.set_key(key);
            let mut conn = Conn::new(key, id, Phase::AwaitAccept, local, peer);
            conn.told = true;
            conn.is_half_open = true;
            conn.listener = Some(ListenerKey(event.key));
            conn.peer_ird = peer_ird;
            conn.peer_ord = peer_ord;
            Entry::Conn(Box::new(conn))
        };
        let Some(key) = self.slots.insert(new) else {
            return;
        };
        self.half_open += 1;
        self.set_deadline(key, Some(self.now + self.config.decision_timeout));
        events.push(FabricEvent::ConnectRequest {
            qp: crate::fabric::QpKey(key),
            listener: ListenerKey(event.key),
            local,
            peer,
            private_data: if is_iwarp {
                event.private_data
            } else {
                Vec::new()
            },
            peer_ird,
            peer_ord,
        });
    }

    /// Carries an accept out.
    pub(super) fn accept_request(&mut self, key: u64) -> Result<(), FabricError> {
        self.make_queues(key)?;
        // Receives have to be there before the peer can send.
        if let Err(reason) = self.post(key) {
            return Err(FabricError::Invalid(format!("{reason:?}")));
        }
        let Some(Entry::Conn(conn)) = self.slots.get_mut(key) else {
            return Err(FabricError::NoSuchKey);
        };
        let params = conn.params();
        let ord = params.initiator_depth;
        conn.id
            .accept(&params)
            .map_err(|error| FabricError::Os(format!("rdma_accept of {}", conn.peer), error))?;
        conn.ord = ord.into();
        conn.phase = Phase::Accepting;
        self.set_deadline(key, Some(self.now + self.config.establish_timeout));
        Ok(())
    }

    /// Ends a connection: what completed is told first, then what is left as flushed, then the
    /// end.
    pub(super) fn end(&mut self, key: u64, reason: EndReason, events: &mut Vec<FabricEvent>) {
        let Some(Entry::Conn(conn)) = self.slots.get_mut(key) else {
            return;
        };
        self.timers.set(key, &mut conn.deadline, None);
        if std::mem::take(&mut conn.is_half_open) {
            self.half_open -= 1;
        }
        let first = conn.end.take();
        let found = conn.poll_all(events);
        let reason = match (first, found, reason) {
            (Some(first), _, _) => first,
            // What a completion says is nearer to the cause than that the connection is gone.
            (None, Some(found), EndReason::PeerClosed | EndReason::Local) => found,
            (None, _, reason) => reason,
        };
        let was_up = matches!(
            conn.phase,
            Phase::Accepting | Phase::Open | Phase::Draining | Phase::Broken
        );
        // Between rdma_notify and the event Established, the kernel loses sight of its own message:
        // destroying the identifier would wait until the retries of that are over.
        let is_notified = conn.is_notified;
        if is_notified {
            // Disconnects then.
        } else if was_up {
            // Fails when the other side was faster.
            let _ = conn.id.disconnect();
        } else if conn.phase == Phase::AwaitAccept {
            let _ = conn.id.reject(&conn.private_data);
        }
        take_down(conn, &self.registry);
        conn.flush_all(events);
        if conn.told {
            debug!("verbs: {}: ended: {reason:?}", conn.peer);
            events.push(FabricEvent::Disconnected {
                qp: conn.qp_key(),
                reason: reason.clone(),
            });
        }
        // A goodbye of ours is repeated by the kernel until it is answered, or the identifier is
        // gone. Without it a peer that has nothing to send would not learn of the end.
        let waits = is_notified || (was_up && reason != EndReason::PeerClosed);
        let id: Option<CmId> = waits.then(|| conn.id.clone());
        match id {
            Some(id) => self.say_goodbye(key, id),
            None => {
                self.slots.remove(key);
            }
        }
    }

    /// Keeps the identifier of a connection until the peer has heard of the end. Peers that never
    /// answer must not have us keep more and more of them.
    fn say_goodbye(&mut self, key: u64, id: CmId) {
        if self.goodbyes.len() >= self.config.max_goodbyes {
            if let Some(first) = self.goodbyes.pop_front() {
                self.end_goodbye(first);
            }
        }
        self.goodbyes.push_back(key);
        let mut deadline = None;
        let until = self.now + self.config.goodbye_timeout;
        self.timers.set(key, &mut deadline, Some(until));
        if let Some(entry) = self.slots.get_mut(key) {
            *entry = Entry::Closing { id, deadline };
        }
    }

    /// The peer knows, or is not told any longer.
    pub(super) fn end_goodbye(&mut self, key: u64) {
        if let Some(Entry::Closing { deadline, .. }) = self.slots.get_mut(key) {
            self.timers.set(key, deadline, None);
            self.slots.remove(key);
        }
    }
}

/// Takes the queues away; after it the device touches no memory for this connection.
fn take_down(conn: &mut Conn, registry: &Registry) {
    conn.registrations.clear();
    if let Some(queues) = conn.queues.take() {
        // Closing the descriptor would do; an error changes nothing.
        let _ = registry.remove(&queues.qp);
    }
}

fn is_iwarp(conn: &Conn) -> bool {
    let queues = conn.queues.as_ref();
    queues.is_some_and(|queues| queues.device.transport == Transport::Iwarp)
}

/// The depth of outbound reads after the peer's answer to our connect.
fn agreed_ord(ours: u32, event: &CmEvent, is_iwarp: bool) -> u32 {
    let serves = u32::from(event.initiator_depth);
    if !is_iwarp {
        return ours.min(serves);
    }
    // Before MPA revision 2 nothing is said: 0. After that cxgb4 tells both depths as the peer sees
    // them, siw and irdma as we do; the smaller one is safe.
    let other = u32::from(event.responder_resources);
    let said = [serves, other].into_iter().filter(|&depth| depth > 0);
    said.fold(ours, u32::min)
}

/// The reason that goes with an errno, negative or not.
pub(super) fn failed(what: &str, peer: std::net::SocketAddr, status: i32) -> EndReason {
    let errno = status.saturating_abs();
    let error = std::io::Error::from_raw_os_error(errno);
    match errno {
        libc::ETIMEDOUT => EndReason::TimedOut(format!("{peer} does not answer")),
        libc::ECONNREFUSED => EndReason::Refused(format!("{peer} refused: {error}")),
        0 => EndReason::Transport(format!("cannot {what} {peer}")),
        _ => EndReason::Transport(format!("cannot {what} {peer}: {error}")),
    }
}

/// The words for a REJECTED event. InfiniBand and RoCE give a reason of their own (InfiniBand
/// Architecture 12.6.7.2), iWARP an errno.
fn rejection(conn: &Conn, event: &CmEvent) -> String {
    let peer = conn.peer;
    let data = if is_iwarp(conn) && !event.private_data.is_empty() {
        format!(" (private data {:02x?})", event.private_data)
    } else {
        String::new()
    };
    let why = match event.status {
        8 => "nobody listens there".to_owned(),
        28 => "its program refused".to_owned(),
        10 => "it remembers an older connection of ours".to_owned(),
        3 => "it has no resources".to_owned(),
        status if status < 0 => std::io::Error::from_raw_os_error(-status).to_string(),
        status => format!("reason {status}"),
    };
    format!("{peer} refused the connection: {why}{data}")
}
