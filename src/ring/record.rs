#![forbid(unsafe_code)]
//! The connection table: what a handle can know of its connections without asking.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::Ordering;

use super::{Layout, RingError};
use crate::mem::Region;

/// The index in the connection table that a connection's id names (its low 16 bits; the upper 48
/// are a number that the engine uses once).
pub fn connection_index(connection: u64) -> u16 {
    connection as u16
}

/// What does not change while a connection is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionRecord {
    /// Its id.
    pub connection: u64,
    /// SMBD_FABRIC_*.
    pub fabric: u32,
    /// Our address.
    pub local: SocketAddr,
    /// The peer's address.
    pub peer: SocketAddr,
    /// Largest message we send.
    pub max_send_size: u32,
    /// Largest message the peer may send.
    pub max_receive_size: u32,
    /// Largest PDU the peer takes.
    pub max_fragmented_send_size: u32,
    /// Largest PDU we take.
    pub max_fragmented_receive_size: u32,
    /// Largest RDMA transfer of one SMB2 READ or WRITE.
    pub max_read_write_size: u32,
    /// RDMA READs outstanding at most.
    pub max_rdma_reads: u32,
    /// Receives kept posted at most (ReceiveCreditMax).
    pub receive_credit_max: u32,
}

/// What changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConnectionCounters {
    /// Credits we hold now.
    pub send_credits: u64,
    /// Credits the peer holds now.
    pub receive_credits: u64,
    /// PDUs received.
    pub pdus_received: u64,
    /// PDUs sent.
    pub pdus_sent: u64,
    /// SMBD messages received.
    pub messages_received: u64,
    /// SMBD messages sent.
    pub messages_sent: u64,
    /// Bytes of PDUs received.
    pub bytes_received: u64,
    /// Bytes of PDUs sent.
    pub bytes_sent: u64,
    /// RDMA READs completed.
    pub rdma_reads: u64,
    /// RDMA WRITEs completed.
    pub rdma_writes: u64,
    /// Bytes moved by RDMA READs.
    pub rdma_read_bytes: u64,
    /// Bytes moved by RDMA WRITEs.
    pub rdma_write_bytes: u64,
}

impl ConnectionRecord {
    fn words(&self) -> [u64; STATIC_WORDS] {
        let local = address_words(self.local);
        let peer = address_words(self.peer);
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        [
            local[0],
            local[1],
            local[2],
            peer[0],
            peer[1],
            peer[2],
            pair(self.max_send_size, self.max_receive_size),
            pair(
                self.max_fragmented_send_size,
                self.max_fragmented_receive_size,
            ),
            pair(self.max_read_write_size, self.max_rdma_reads),
            pair(self.receive_credit_max, self.fabric),
        ]
    }

    fn from_words(connection: u64, words: &[u64; STATIC_WORDS]) -> Self {
        let [l0, l1, l2, p0, p1, p2, sizes, fragmented, rdma, credits] = *words;
        Self {
            connection,
            fabric: (credits >> 32) as u32,
            local: address([l0, l1, l2]),
            peer: address([p0, p1, p2]),
            max_send_size: sizes as u32,
            max_receive_size: (sizes >> 32) as u32,
            max_fragmented_send_size: fragmented as u32,
            max_fragmented_receive_size: (fragmented >> 32) as u32,
            max_read_write_size: rdma as u32,
            max_rdma_reads: (rdma >> 32) as u32,
            receive_credit_max: credits as u32,
        }
    }
}

impl ConnectionCounters {
    fn words(&self) -> [u64; COUNTER_WORDS] {
        [
            self.send_credits,
            self.receive_credits,
            self.pdus_received,
            self.pdus_sent,
            self.messages_received,
            self.messages_sent,
            self.bytes_received,
            self.bytes_sent,
            self.rdma_reads,
            self.rdma_writes,
            self.rdma_read_bytes,
            self.rdma_write_bytes,
        ]
    }

    fn from_words(words: &[u64; COUNTER_WORDS]) -> Self {
        Self {
            send_credits: words[0],
            receive_credits: words[1],
            pdus_received: words[2],
            pdus_sent: words[3],
            messages_received: words[4],
            messages_sent: words[5],
            bytes_received: words[6],
            bytes_sent: words[7],
            rdma_reads: words[8],
            rdma_writes: words[9],
            rdma_read_bytes: words[10],
            rdma_write_bytes: words[11],
        }
    }
}

/// Writes a whole record, its id last; false: no such place in the table.
pub(super) fn write(
    region: &Region,
    layout: &Layout,
    record: &ConnectionRecord,
) -> Result<bool, RingError> {
    let Some(at) = layout.connection_offset(connection_index(record.connection)) else {
        return Ok(false);
    };
    let at = at as usize;
    region.atomic_u64(at + ID)?.store(0, Ordering::Relaxed);
    store(region, at + STATIC, &record.words())?;
    store(
        region,
        at + COUNTERS,
        &ConnectionCounters::default().words(),
    )?;
    // Release: a reader that finds the id finds what belongs to it. Partner: the load in `read`.
    let id = region.atomic_u64(at + ID)?;
    id.store(record.connection, Ordering::Release);
    Ok(true)
}

/// Writes the counters of a connection; false: no such place in the table.
pub(super) fn write_counters(
    region: &Region,
    layout: &Layout,
    connection: u64,
    counters: &ConnectionCounters,
) -> Result<bool, RingError> {
    let Some(at) = layout.connection_offset(connection_index(connection)) else {
        return Ok(false);
    };
    store(region, at as usize + COUNTERS, &counters.words())?;
    Ok(true)
}

/// Reads a connection's record; `None`: it is not (or no longer) in the table.
pub(super) fn read(
    region: &Region,
    layout: &Layout,
    connection: u64,
) -> Result<Option<(ConnectionRecord, ConnectionCounters)>, RingError> {
    let Some(at) = layout.connection_offset(connection_index(connection)) else {
        return Ok(None);
    };
    let at = at as usize;
    // Acquire: see `write`.
    if region.atomic_u64(at + ID)?.load(Ordering::Acquire) != connection {
        return Ok(None);
    }
    let fixed = load(region, at + STATIC)?;
    let counters = load(region, at + COUNTERS)?;
    Ok(Some((
        ConnectionRecord::from_words(connection, &fixed),
        ConnectionCounters::from_words(&counters),
    )))
}

fn store<const W: usize>(region: &Region, at: usize, words: &[u64; W]) -> Result<(), RingError> {
    for (i, word) in words.iter().enumerate() {
        region
            .atomic_u64(at + i * 8)?
            .store(*word, Ordering::Relaxed);
    }
    Ok(())
}

fn load<const W: usize>(region: &Region, at: usize) -> Result<[u64; W], RingError> {
    let mut words = [0; W];
    for (i, word) in words.iter_mut().enumerate() {
        *word = region.atomic_u64(at + i * 8)?.load(Ordering::Relaxed);
    }
    Ok(words)
}

/// Two words of address (IPv4 as mapped IPv6), then port, family and scope.
fn address_words(address: SocketAddr) -> [u64; 3] {
    let (ip, is_v6, scope) = match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0, 0),
        SocketAddr::V6(v6) => (*v6.ip(), 1 << 16, u64::from(v6.scope_id()) << 32),
    };
    let bits = ip.to_bits();
    [
        (bits >> 64) as u64,
        bits as u64,
        u64::from(address.port()) | is_v6 | scope,
    ]
}

fn address(words: [u64; 3]) -> SocketAddr {
    let ip = Ipv6Addr::from_bits(u128::from(words[0]) << 64 | u128::from(words[1]));
    let port = words[2] as u16;
    if words[2] & 1 << 16 == 0 {
        let v4 = ip.to_ipv4().unwrap_or(std::net::Ipv4Addr::UNSPECIFIED);
        return SocketAddr::new(IpAddr::V4(v4), port);
    }
    let scope = (words[2] >> 32) as u32;
    SocketAddr::V6(std::net::SocketAddrV6::new(ip, port, 0, scope))
}

/// Bytes from the start of a record: the id, the words that do not change, the counters (on a
/// cache line of their own).
const ID: usize = 0;
const STATIC: usize = 8;
const STATIC_WORDS: usize = 10;
const COUNTERS: usize = 128;
const COUNTER_WORDS: usize = 12;

const _: () = assert!(STATIC + STATIC_WORDS * 8 <= COUNTERS);
const _: () = assert!(COUNTERS + COUNTER_WORDS * 8 <= Layout::CONNECTION_BYTES as usize);
