//! What handles submit: PDUs, RDMA operations, disconnects, returned receive slots.

use std::time::Instant;

use super::connection::{Owner, Phase};
use super::{Engine, SUBMIT_BATCH};
use crate::ring::{connection_index, CqEntry, CqKind, RingError, SqEntry, SqOp};

impl Engine {
    /// Takes what active handles have submitted, a bounded amount from each. Returns how much.
    pub(super) fn take_submissions(&mut self, now: Instant) -> usize {
        let mut taken = 0;
        for index in 0..self.active.len() {
            if let Some(&key) = self.active.get(index) {
                taken += self.take_from(now, key, SUBMIT_BATCH);
            }
        }
        taken
    }

    /// Takes at most `limit` submissions and all returned slots of one handle.
    pub(super) fn take_from(&mut self, now: Instant, key: usize, limit: usize) -> usize {
        let mut taken = 0;
        let Some(handle) = self.clients.handle_at(key) else {
            return 0;
        };
        if handle.take_returns() > 0 {
            taken += 1;
            for conn in std::mem::take(&mut handle.starved) {
                if let Some(conn) = self.conns.get_mut(conn) {
                    conn.machine.handle_receives_available(now);
                }
                self.touch(conn);
            }
        }
        for _ in 0..limit {
            let Some(handle) = self.clients.handle_at(key) else {
                break;
            };
            if handle.broken.is_some() {
                break;
            }
            match handle.side.pop_sq() {
                Ok(None) => break,
                Ok(Some(entry)) => {
                    taken += 1;
                    self.counters.submissions += 1;
                    self.submit(now, key, &entry);
                }
                Err(error) => {
                    handle.broken = Some(error);
                    break;
                }
            }
        }
        if taken > 0 {
            if let Some(handle) = self.clients.handle_at(key) {
                if let Err(error) = handle.side.release() {
                    handle.broken.get_or_insert(error);
                }
            }
        }
        taken
    }

    /// Takes what a handle has submitted up to now: at most a ring full of it.
    pub(super) fn take_all(&mut self, now: Instant, key: usize) {
        if let Some(handle) = self.clients.handle_at(key) {
            let most = handle.side.layout().sq_capacity as usize;
            self.take_from(now, key, most);
        }
    }

    fn submit(&mut self, now: Instant, key: usize, entry: &SqEntry) {
        let Some(handle) = self.clients.handle_at(key) else {
            return;
        };
        let is_operation = entry.op != SqOp::Disconnect;
        if is_operation {
            handle.outstanding += 1;
            let most = handle.side.layout().max_operations();
            if handle.outstanding > most {
                handle.broken = Some(RingError::Index {
                    ring: "the set of outstanding operations",
                    used: handle.outstanding,
                    capacity: most,
                });
                return;
            }
        }
        let index = usize::from(connection_index(entry.connection));
        let owner = Owner {
            handle: handle.id,
            index,
            id: entry.connection,
        };
        let conn = handle.table.get(index).copied().flatten();
        let conn = conn.filter(|&c| {
            self.conns.get(c).is_some_and(|conn| {
                conn.owner == Some(owner) && !matches!(conn.phase, Phase::Closing)
            })
        });
        let Some(conn_key) = conn else {
            // It ended while this was on its way.
            if is_operation {
                self.refuse(key, entry, -libc::ENOTCONN);
            }
            return;
        };
        match entry.op {
            SqOp::Disconnect => {
                if let Some(conn) = self.conns.get_mut(conn_key) {
                    conn.submit_close(now);
                }
            }
            SqOp::SendPdu => match handle.side.send_slice(entry.offset, entry.length) {
                Err(error) => handle.broken = Some(error),
                Ok(memory) => {
                    self.cancel_export(now, conn_key);
                    if let Some(conn) = self.conns.get_mut(conn_key) {
                        conn.submit_pdu(owner, entry, memory);
                    }
                }
            },
            SqOp::RdmaRead | SqOp::RdmaWrite => match handle.side.rdma_arrays(entry) {
                Err(error) => handle.broken = Some(error),
                Ok((segments, descriptors)) => {
                    self.cancel_export(now, conn_key);
                    if let Some(conn) = self.conns.get_mut(conn_key) {
                        conn.submit_rdma(owner, entry, segments, descriptors);
                    }
                }
            },
        }
        self.touch(conn_key);
    }

    /// Completes an operation that was not started.
    fn refuse(&mut self, key: usize, entry: &SqEntry, status: i32) {
        if let Some(handle) = self.clients.handle_at(key) {
            handle.outstanding = handle.outstanding.saturating_sub(1);
            let kind = if entry.op == SqOp::SendPdu {
                CqKind::Sent
            } else {
                CqKind::RdmaDone
            };
            handle.push(&CqEntry {
                status,
                cookie: entry.cookie,
                ..CqEntry::new(kind, entry.connection)
            });
        }
    }
}
