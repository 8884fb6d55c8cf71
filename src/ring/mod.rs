//! The area that an engine shares with one handle, and the rings in it.
//!
//! One sealed memfd per handle, made by the engine, its pages committed when they are first used:
//!
//! ```text
//!   header page        magic, ABI; ring indices and wake flags, each on lines of its own
//!   connection table   max_connections records: what smbd_connection_info tells
//!   submission ring    handle -> engine, SqEntry
//!   completion ring    engine -> handle, CqEntry
//!   return ring        handle -> engine, numbers of receive slots
//!   receive slots      the fabric receives SMBD messages here
//!   send area          PDUs on their way out, placed by the handle
//!   RDMA buffers       placed by the handle's user
//! ```
//!
//! # Capacity
//! The completion ring cannot overflow while the handle is honest: it has room for one entry of
//! every receive slot, one of every operation ([`Layout::max_operations`]), four of every connection
//! and [`Layout::MAX_OFFERS`] offers. A handle has at most `max_operations` sends and RDMA operations
//! outstanding and disconnects a connection once, so that its submission ring cannot overflow either.
//! [`EngineSide::push_cq`] therefore fails only for a handle that does not take its entries, with
//! one exception: offers come unasked and go through [`EngineSide::push_offer`], which
//! keeps the room of the others free.
//!
//! # Trust
//! The handle trusts the engine; the engine trusts nothing in the area. It keeps its own indices in
//! private memory, copies every entry once and uses the checked copy. A [`RingError`] from any
//! method of [`EngineSide`] means that the handle lies: drop the handle.
//!
//! # How the engine drives it
//! - On [`Bell`](crate::sys::Bell) readiness of [`EngineSide::bell`]: [`EngineSide::clear_bell`], then
//!   take work: [`EngineSide::pop_sq`] until `None`, [`EngineSide::pop_return`] until `None`,
//!   then [`EngineSide::release`] once.
//! - Push completions with [`EngineSide::push_cq`], then [`EngineSide::publish`] once per batch: it
//!   rings the handle's bell only if the handle waits.
//! - Before it blocks: [`EngineSide::set_sleeping`]`(true)`. If that returns true, work came in between:
//!   take it instead of blocking. The flag goes to 0 by itself when the handle rings; while the
//!   engine polls the ring anyway, `set_sleeping(false)` saves the handle the system calls. An
//!   idle handle may stay flagged as sleeping for as long as its bell is watched.
//! - When receive slots run short: [`EngineSide::set_returns_wanted`]`(true)`; else returned slots do
//!   not ring, and are found whenever the engine looks.
//! - A receive slot is lent to the handle by pushing a [`CqKind::Fragment`] that names it, and
//!   belongs to the engine again when [`EngineSide::pop_return`] yields it (it is checked there
//!   that it had been lent).
//! - Index `i` of the connection table is free for a new connection when
//!   [`EngineSide::is_consumed`] of the position of its Disconnected entry holds.
//! - The record of a connection is complete ([`EngineSide::write_connection`]) before its Attached
//!   entry is pushed. For a connection that the handle made with Connect, it is also written (with
//!   zero for what is not negotiated yet) before the reply that names the connection.
//!   [`EngineSide::write_counters`] later, whenever convenient.
//! - Entries per connection: Attached first, Disconnected last, one Sent or RdmaDone for each
//!   operation in between, those of a lost connection included.
//! - [`EngineSide::punch_idle`] when the last connection has gone.

mod atomic;
mod client;
mod engine;
mod entry;
mod layout;
mod record;
mod spsc;
#[cfg(test)]
mod tests;
mod wake;

pub use client::{ClientSide, RingFor};
pub use engine::{CqPosition, EngineSide, PushError};
pub use entry::{
    flags, CqEntry, CqKind, Descriptor, EntryError, Segment, SqEntry, SqOp, MAX_DESCRIPTORS,
    MAX_SEGMENTS,
};
pub use layout::{AreaOptions, Layout, LayoutError, Part};
pub use record::{connection_index, ConnectionCounters, ConnectionRecord};
pub use spsc::{Consumer, Full, Producer, RingPlace};

use crate::mem::MemError;

/// Version of the area's layout and of the control messages. Engine and library must agree.
pub const ABI: u32 = 1;

/// What is wrong with the shared area, or with what the other side has put there.
#[derive(Debug)]
#[non_exhaustive]
pub enum RingError {
    /// The other side's index is further away than the ring has entries.
    Index {
        /// Which ring.
        ring: &'static str,
        /// Entries that would be in use.
        used: u32,
        /// Entries that the ring has.
        capacity: u32,
    },
    /// An entry has a value that no honest side writes.
    Entry(EntryError),
    /// A returned receive slot had not been lent.
    Slot(u32),
    /// A range outside the part of the area where it must lie.
    Range {
        /// Which part of the area.
        part: &'static str,
        /// Where the range starts.
        offset: u64,
        /// Bytes of the range.
        length: u64,
    },
    /// A place outside the mapping.
    Memory(MemError),
    /// The header page is not that of this ABI.
    Header {
        /// The magic number found.
        magic: u64,
        /// The ABI found.
        abi: u32,
    },
    /// The operating system refused.
    Os(&'static str, std::io::Error),
    /// The area cannot be laid out like this.
    Layout(LayoutError),
}

impl std::fmt::Display for RingError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Index {
                ring,
                used,
                capacity,
            } => write!(f, "{ring} claims {used} entries in use, it has {capacity}"),
            Self::Entry(error) => write!(f, "{error}"),
            Self::Slot(slot) => write!(f, "receive slot {slot} was returned but not lent"),
            Self::Range {
                part,
                offset,
                length,
            } => write!(f, "{length} bytes at {offset} are not inside the {part}"),
            Self::Memory(error) => write!(f, "{error}"),
            Self::Header { magic, abi } => write!(
                f,
                "the shared area has magic {magic:#x} and ABI {abi}, this library needs ABI {ABI}: \
                 use library and engine of one version"
            ),
            Self::Os(what, error) => {
                let cure = match error.raw_os_error() {
                    Some(libc::EMFILE) => ": raise the limit of open files (LimitNOFILE=)",
                    Some(libc::EFBIG) => ": raise RLIMIT_FSIZE (LimitFSIZE=)",
                    Some(libc::ENOMEM) => ": raise RLIMIT_AS (LimitAS=), or the memory there is",
                    _ => "",
                };
                write!(f, "{what}: {error}{cure}")
            }
            Self::Layout(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for RingError {}

impl From<MemError> for RingError {
    fn from(error: MemError) -> Self {
        Self::Memory(error)
    }
}

impl From<EntryError> for RingError {
    fn from(error: EntryError) -> Self {
        Self::Entry(error)
    }
}

impl From<LayoutError> for RingError {
    fn from(error: LayoutError) -> Self {
        Self::Layout(error)
    }
}
