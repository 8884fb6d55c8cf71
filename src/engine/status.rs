//! What the engine tells of itself.

use std::time::Instant;

use super::fabrics::kind;
use super::Engine;
use crate::ipc::{
    ConnectionStatus, EngineStatus, HandleStatus, ListenerStatus, MemoryStatus, StatusItem,
    StatusPage,
};
use crate::sys::pinned_memory;

impl Engine {
    /// One page of the status. A user who may not be the server sees only what is his own.
    pub(super) fn status(&mut self, now: Instant, from: u32, uid: u32) -> StatusPage {
        let sees_all = self.may_be_parent(uid);
        let seconds = |since: Instant| now.saturating_duration_since(since).as_secs();
        let engine = EngineStatus {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_seconds: seconds(self.started),
            has_params: self.params.is_some(),
            counters: self.counters,
            rejected: self.rejected.clone(),
            memory: self.memory_status(),
        };
        let mut items = Vec::new();
        for listener in &self.listeners {
            let owner = listener.owner.and_then(|id| self.clients.handle(id));
            items.push(StatusItem::Listener(ListenerStatus {
                fabric: kind(listener.fabric),
                address: listener.address,
                crc: listener.crc,
                owner_pid: owner.map_or(0, |handle| handle.pid),
                accepted: listener.accepted,
            }));
        }
        for (_, client) in self.clients.iter() {
            let Some(handle) = &client.handle else {
                continue;
            };
            if !sees_all && handle.uid != uid {
                continue;
            }
            items.push(StatusItem::Handle(HandleStatus {
                id: client.serial,
                pid: handle.pid,
                uid: client.credentials.uid,
                parent: handle.parent,
                connections: handle.attached as u32,
                sessions: (handle.session_ids.len() + handle.client_guids.len()) as u32,
                area_bytes: handle.side.layout().area_size(),
                committed_bytes: handle.side.committed_bytes().unwrap_or(0),
                age_seconds: seconds(client.opened),
            }));
        }
        for (key, conn) in &self.conns {
            let owner = conn
                .owner
                .and_then(|owner| self.clients.handle(owner.handle));
            if !sees_all && owner.as_ref().is_none_or(|handle| handle.uid != uid) {
                continue;
            }
            let owner_pid = owner.map(|handle| handle.pid);
            let counters = conn.counters();
            let negotiated = conn.machine.negotiated();
            let stats = conn.machine.stats();
            items.push(StatusItem::Connection(Box::new(ConnectionStatus {
                id: conn
                    .owner
                    .map_or(conn.serial << 16 | key as u64, |owner| owner.id),
                fabric: kind(conn.fabric),
                local: conn.local,
                peer: conn.peer,
                state: conn.phase.as_str().into(),
                active: conn.role == crate::proto::Role::Active,
                owner_pid,
                age_seconds: seconds(conn.created),
                max_send_size: negotiated.map_or(0, |n| n.max_send_size),
                max_receive_size: negotiated.map_or(0, |n| n.max_receive_size),
                max_fragmented_send_size: negotiated.map_or(0, |n| n.max_fragmented_send_size),
                max_fragmented_receive_size: negotiated
                    .map_or(0, |n| n.max_fragmented_receive_size),
                max_read_write_size: negotiated.map_or(0, |n| n.max_read_write_size),
                send_credits: counters.send_credits,
                receive_credits: counters.receive_credits,
                pdus_received: counters.pdus_received,
                pdus_sent: counters.pdus_sent,
                messages_received: counters.messages_received,
                messages_sent: counters.messages_sent,
                bytes_received: counters.bytes_received,
                bytes_sent: counters.bytes_sent,
                rdma_reads: counters.rdma_reads,
                rdma_writes: counters.rdma_writes,
                rdma_read_bytes: counters.rdma_read_bytes,
                rdma_write_bytes: counters.rdma_write_bytes,
                keepalives_sent: stats.keepalives_sent,
                keepalives_received: stats.keepalives_received,
            })));
        }
        StatusPage::cut(engine, items, from)
    }

    /// Memory that RDMA devices have.
    fn memory_status(&self) -> MemoryStatus {
        let pinned = pinned_memory();
        let registered = self.fabrics.iter().enumerate();
        MemoryStatus {
            registered_bytes: registered
                .map(|(index, fabric)| (kind(index), fabric.registered_bytes()))
                .collect(),
            pinned_bytes: pinned.bytes,
            pin_limit_bytes: pinned.limit,
        }
    }
}
