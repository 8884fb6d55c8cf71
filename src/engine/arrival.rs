//! Connections that come and those that we make, up to the end of the MS-SMBD negotiation.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use log::{debug, warn};

use super::connection::{Conn, Owner, PRIVATE_RECEIVES};
use super::rights::ROOT;
use super::routing::Refused;
use super::Engine;
use crate::fabric::{AcceptOptions, QpKey};
use crate::ipc;
use crate::proto::{Params, Role};
use crate::ring::flags;

/// RDMA READs a peer may have outstanding towards us: a server offers no memory, but an SMB Direct
/// client does, and cifs.ko asks for 1.
pub(super) const IRD: u32 = 32;
/// RDMA READs we would like to have outstanding.
pub(super) const ORD: u32 = 32;

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
        } else if self.unowned.total() >= self.config.max_unowned {
            Some("max_unowned")
        } else if self.unowned.of(peer.ip()) >= self.peer_share() {
            Some("max_unowned_per_peer")
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
        let server = self.clients.parent_user().unwrap_or(ROOT);
        let added = self.add_conn(now, fabric, qp, local, peer, server, Role::Passive, &params);
        let Some(key) = added else {
            self.fabrics[fabric].reject(qp, &[]);
            return;
        };
        self.fabrics[fabric].expect_receives(qp, receives_of(&params));
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
        server: u32,
        role: Role,
        params: &Params,
    ) -> Option<usize> {
        let serial = self.next_serial;
        match Conn::new(serial, fabric, qp, local, peer, server, role, params, now) {
            Ok(conn) => {
                self.next_serial += 1;
                self.unowned.add(peer.ip());
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
        self.check_memory(now)?;
        let fabric = self
            .fabric_index(spec.fabric)
            .map_err(|error| (libc::EOPNOTSUPP, error.to_string()))?;
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
        self.fabrics[fabric].expect_receives(qp, receives_of(&params));
        let (peer, role) = (spec.address, Role::Active);
        let added = self.add_conn(now, fabric, qp, local, peer, ROOT, role, &params);
        let Some(key) = added else {
            self.fabrics[fabric].disconnect(now, qp, Duration::ZERO);
            return Err((libc::ENOMEM, "no memory for receives".into()));
        };
        match self.claim_index(client, key) {
            Ok(owner) => {
                self.conns[key].owner = Some(owner);
                self.unowned.remove(self.conns[key].counted);
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
    pub(super) fn claim_index(&mut self, client: usize, key: usize) -> Result<Owner, Refused> {
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
        handle.has_pages = true;
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
}

/// The most receives that a connection has posted: those with credits, and the first.
fn receives_of(params: &Params) -> u32 {
    u32::from(params.receive_credit_max) + 1
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
