#![forbid(unsafe_code)]
//! The library's side: a [`Handle`] on an engine.
//!
//! A handle has a control socket for requests that wait for an answer, and a shared area for
//! everything else. It starts no thread; all work is done inside the calls of its user, who waits
//! on [`Handle::fd`] and then takes events. The C API is a thin layer over it.
//!
//! What belongs to whom: a receive slot is ours from the completion that names it until its number is
//! put into the return ring. A page of the send area is ours to give out; the engine reads it from
//! the submission to the completion. Everything read from the connection table is a copy.

mod connection;
mod control;
mod data;
mod error;
mod events;
mod handle;
mod operations;
mod send_area;
#[cfg(test)]
mod tests;

pub use connection::{Pdu, PduBytes, Piece};
pub use data::{RdmaOp, SendPdu};
pub use error::ClientError;
pub use events::{Event, EventKind, Taken};
pub use handle::{default_socket, Handle, MemInfo, OpenOptions, Statistics};
