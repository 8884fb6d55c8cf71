//! Memory that another process or the kernel may change while we look at it.
//!
//! A [`Region`] is a mapping shared between the engine and one owner, or memory private to this
//! process. No reference into it is ever made: bytes go in and out by copies with checked bounds,
//! by atomics, or straight to and from a socket as I/O vectors. A [`MemSlice`] is a piece of a
//! region that keeps the region alive.

mod io;
mod region;

pub use io::{recv_vectored, send_vectored, PartsStorage, RecvParts, SendParts};
pub use region::{MemError, MemSlice, Region};
