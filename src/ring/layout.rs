#![forbid(unsafe_code)]
//! Where everything is in the shared area.

use serde::{Deserialize, Serialize};

use super::spsc::RingPlace;
use crate::wire::{MAX_MESSAGE_SIZE, MIN_MESSAGE_SIZE};

/// What a handle asks for when it opens. All values are already defaulted, none is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AreaOptions {
    /// RDMA buffers, 1..=4096.
    pub rdma_buffers: u32,
    /// Bytes of one RDMA buffer, a multiple of 4096, 4096..=64 MiB.
    pub rdma_buffer_size: u32,
    /// Connections at the same time, 1..=4096.
    pub max_connections: u32,
    /// Receive slots, 16..=65536.
    pub receive_slots: u32,
    /// Bytes of one receive slot, 128..=65536.
    pub receive_slot_size: u32,
    /// Bytes for PDUs on their way out, 64 KiB..=1 GiB.
    pub send_area_size: u32,
}

impl Default for AreaOptions {
    fn default() -> Self {
        Self {
            rdma_buffers: 64,
            rdma_buffer_size: 1 << 20,
            max_connections: 32,
            receive_slots: 2332,
            receive_slot_size: 8192,
            send_area_size: 16 << 20,
        }
    }
}

/// An option out of range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutError {
    /// The option's name in smbd_open_options.
    pub option: &'static str,
    /// Its value.
    pub value: u64,
    /// What it may be.
    pub allowed: &'static str,
}

impl std::fmt::Display for LayoutError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} is {}, it may be {}",
            self.option, self.value, self.allowed
        )
    }
}

impl std::error::Error for LayoutError {}

/// A part of the area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Where it starts, from the start of the area; a multiple of [`Layout::PAGE`].
    pub offset: u64,
    /// Bytes; a multiple of [`Layout::PAGE`].
    pub len: u64,
}

impl Part {
    /// Where `len` bytes at `offset` of the area are in this part; `None` if they are not inside.
    pub fn position(&self, offset: u64, len: u64) -> Option<u64> {
        let start = offset.checked_sub(self.offset)?;
        (start.checked_add(len)? <= self.len).then_some(start)
    }
}

/// The layout that follows from checked options. Both sides compute it for themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    options: AreaOptions,
    /// Bytes from one receive slot to the next.
    pub slot_stride: u32,
    /// The connection table.
    pub connections: Part,
    /// Entries of the submission ring.
    pub sq: Part,
    /// Entries of the completion ring.
    pub cq: Part,
    /// Entries of the return ring.
    pub returns: Part,
    /// The receive slots.
    pub receive: Part,
    /// The send area.
    pub send: Part,
    /// The RDMA buffers.
    pub rdma: Part,
    /// Capacity of the submission ring.
    pub sq_capacity: u32,
    /// Capacity of the completion ring.
    pub cq_capacity: u32,
    /// Capacity of the return ring.
    pub returns_capacity: u32,
}

impl Layout {
    /// Parts of the area start on multiples of this, and the send area is allocated in it.
    pub const PAGE: u64 = 4096;
    /// The most offers that wait in a completion ring.
    pub const MAX_OFFERS: u32 = 256;
    /// Bytes of one record of the connection table.
    pub const CONNECTION_BYTES: u64 = 512;

    /// Checks the options and lays the area out.
    pub fn new(options: &AreaOptions) -> Result<Self, LayoutError> {
        check(options)?;
        let pages = |bytes: u64| bytes.next_multiple_of(Self::PAGE);
        let connections = options.max_connections;
        // The largest values: 1024 + 4096 -> 8192; 65536 + 1024 + 16384 + 256 -> 131072. All fit.
        let sq_capacity = (MAX_OPERATIONS + connections).next_power_of_two();
        let cq_capacity =
            (options.receive_slots + MAX_OPERATIONS + 4 * connections + Self::MAX_OFFERS)
                .next_power_of_two();
        let returns_capacity = options.receive_slots.next_power_of_two();
        let slot_stride = options.receive_slot_size.next_multiple_of(64);

        // The largest area: 2 MiB table + 512 KiB + 8 MiB + 256 KiB rings + 4 GiB slots + 1 GiB send
        // area + 256 GiB buffers: far below 2^63.
        let mut end = Self::PAGE;
        let mut part = |bytes: u64| {
            let part = Part {
                offset: end,
                len: pages(bytes),
            };
            end += part.len;
            part
        };
        Ok(Self {
            options: *options,
            slot_stride,
            connections: part(u64::from(connections) * Self::CONNECTION_BYTES),
            sq: part(u64::from(sq_capacity) * ENTRY_BYTES),
            cq: part(u64::from(cq_capacity) * ENTRY_BYTES),
            returns: part(u64::from(returns_capacity) * RETURN_BYTES),
            receive: part(u64::from(options.receive_slots) * u64::from(slot_stride)),
            send: part(options.send_area_size.into()),
            rdma: part(u64::from(options.rdma_buffers) * u64::from(options.rdma_buffer_size)),
            sq_capacity,
            cq_capacity,
            returns_capacity,
        })
    }

    /// The options it was made of.
    pub fn options(&self) -> &AreaOptions {
        &self.options
    }

    /// Bytes of the whole area.
    pub fn area_size(&self) -> u64 {
        self.rdma.offset + self.rdma.len
    }

    /// The most sends and RDMA operations that a handle has outstanding.
    pub fn max_operations(&self) -> u32 {
        MAX_OPERATIONS
    }

    /// Where receive slot `slot` starts; `None` if there is no such slot.
    pub fn slot_offset(&self, slot: u32) -> Option<u64> {
        (slot < self.options.receive_slots)
            .then(|| self.receive.offset + u64::from(slot) * u64::from(self.slot_stride))
    }

    /// Where the record of connection `index` starts; `None` if there is no such record.
    pub fn connection_offset(&self, index: u16) -> Option<u64> {
        (u32::from(index) < self.options.max_connections)
            .then(|| self.connections.offset + u64::from(index) * Self::CONNECTION_BYTES)
    }

    /// The submission ring.
    pub(super) fn sq_place(&self) -> RingPlace {
        RingPlace {
            name: "the submission ring",
            entries: self.sq.offset,
            capacity: self.sq_capacity,
            tail: at::SQ_TAIL,
            head: at::SQ_HEAD,
        }
    }

    /// The completion ring.
    pub(super) fn cq_place(&self) -> RingPlace {
        RingPlace {
            name: "the completion ring",
            entries: self.cq.offset,
            capacity: self.cq_capacity,
            tail: at::CQ_TAIL,
            head: at::CQ_HEAD,
        }
    }

    /// The return ring.
    pub(super) fn returns_place(&self) -> RingPlace {
        RingPlace {
            name: "the return ring",
            entries: self.returns.offset,
            capacity: self.returns_capacity,
            tail: at::RETURNS_TAIL,
            head: at::RETURNS_HEAD,
        }
    }
}

/// Places in the header page. What one side writes often stands 128 bytes from what the other one
/// writes: processors fetch lines of 64 bytes in pairs.
pub(super) mod at {
    /// u64: [`super::MAGIC`].
    pub(crate) const MAGIC: usize = 0;
    /// u32: the ABI.
    pub(crate) const ABI: usize = 8;
    /// u32 index, written by the handle.
    pub(crate) const SQ_TAIL: usize = 128;
    /// u32 index, written by the engine.
    pub(crate) const SQ_HEAD: usize = 256;
    /// u32 index, written by the engine.
    pub(crate) const CQ_TAIL: usize = 384;
    /// u32 index, written by the handle.
    pub(crate) const CQ_HEAD: usize = 512;
    /// u32 index, written by the handle.
    pub(crate) const RETURNS_TAIL: usize = 640;
    /// u32 index, written by the engine.
    pub(crate) const RETURNS_HEAD: usize = 768;
    /// u32: 1 when the handle waits for its bell.
    pub(crate) const CQ_ARMED: usize = 896;
    /// u32: 1 when the engine waits for its bell.
    pub(crate) const ENGINE_SLEEPING: usize = 1024;
    /// u32: 1 when the engine waits for receive slots.
    pub(crate) const RETURNS_WANTED: usize = 1152;
    /// Bytes used. rustc 1.85 does not count the assertion below as a use.
    #[allow(dead_code)]
    pub(crate) const END: usize = 1280;
}

/// "SMBDAREA", read as a little-endian number.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"SMBDAREA");
/// Bytes of an entry of the submission and of the completion ring.
pub(super) const ENTRY_BYTES: u64 = 64;
/// Bytes of an entry of the return ring.
pub(super) const RETURN_BYTES: u64 = 4;

/// Sends and RDMA operations that a handle has outstanding at most.
const MAX_OPERATIONS: u32 = 1024;

const _: () = assert!(at::END as u64 <= Layout::PAGE);
const _: () = assert!(Layout::CONNECTION_BYTES % 64 == 0);

fn check(options: &AreaOptions) -> Result<(), LayoutError> {
    let AreaOptions {
        rdma_buffers,
        rdma_buffer_size,
        max_connections,
        receive_slots,
        receive_slot_size,
        send_area_size,
    } = *options;
    let refuse = |option, value: u32, allowed| {
        Err(LayoutError {
            option,
            value: value.into(),
            allowed,
        })
    };
    if !(1..=4096).contains(&rdma_buffers) {
        return refuse("rdma_buffers", rdma_buffers, "1..=4096");
    }
    if !(4096..=64 << 20).contains(&rdma_buffer_size) || rdma_buffer_size % 4096 != 0 {
        let allowed = "a multiple of 4096 in 4096..=67108864";
        return refuse("rdma_buffer_size", rdma_buffer_size, allowed);
    }
    if !(1..=4096).contains(&max_connections) {
        return refuse("max_connections", max_connections, "1..=4096");
    }
    if !(16..=65536).contains(&receive_slots) {
        return refuse("receive_slots", receive_slots, "16..=65536");
    }
    if !(MIN_MESSAGE_SIZE..=MAX_MESSAGE_SIZE).contains(&receive_slot_size) {
        return refuse("receive_slot_size", receive_slot_size, "128..=65536");
    }
    if !(64 << 10..=1 << 30).contains(&send_area_size) {
        return refuse("send_area_size", send_area_size, "65536..=1073741824");
    }
    Ok(())
}
