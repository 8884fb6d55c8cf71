//! What owners and status are told of a connection.

use super::connection::Conn;
use super::fabrics::kind;
use super::Engine;
use crate::ring::{ConnectionCounters, ConnectionRecord};

impl Engine {
    /// What a connection is, for its owner's eyes.
    pub(super) fn write_record(&mut self, key: usize) {
        let conn = &self.conns[key];
        let Some(owner) = conn.owner else {
            return;
        };
        let negotiated = conn.machine.negotiated();
        let record = ConnectionRecord {
            connection: owner.id,
            fabric: kind(conn.fabric).number(),
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
