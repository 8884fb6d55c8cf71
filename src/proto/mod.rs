//! The MS-SMBD connection, sans-IO: `[MS-SMBD] 3.1`, active and passive role.
//!
//! A [`Connection`] is fed with what happens (the fabric is up, a message arrived, a send is
//! complete, time passed, the upper layer wants to send) and yields what to do by
//! [`poll`](Connection::poll). It has no clock, descriptor, thread or log of its own, and it
//! knows neither the fabric nor the memory: a receive buffer is an opaque `B`, an upper-layer
//! message an opaque `M`.
//!
//! The caller's loop:
//!
//! 1. make the connection with [`Connection::new`] as soon as the fabric connection is there to
//!    post receives to; the first output asks for the receive of the negotiate message;
//! 2. call a `handle_*` method for each thing that happens;
//! 3. after each, call `poll` until it yields `None`, doing what it says, in order;
//! 4. look at [`next_timeout`](Connection::next_timeout), and call
//!    [`handle_timeout`](Connection::handle_timeout) when that moment has come.
//!
//! Everything is bounded: the machine holds at most one entry per receive posted and per message
//! queued, never an amount set by the peer. In steady state it allocates nothing.
//!
//! Where we go beyond the text of the specification: segments of one upper-layer message must
//! agree on what remains (3.1.5.8 checks only the end); payload may not start inside the header;
//! the answer to a probe does not carry the flag (3.1.5.8 read literally would answer probes with
//! probes for ever); a message without payload in the middle of an upper-layer message is taken
//! as mere control, as Linux does; the time for the answer to a probe also runs while the probe
//! waits for a credit; more than the last send credit is kept for grants, as Linux does not keep
//! its own (`spare`).

#![forbid(unsafe_code)]

mod connection;
mod credits;
mod event;
mod keepalive;
mod negotiate;
mod params;
mod reassembly;
mod send_queue;
mod spare;
#[cfg(test)]
mod tests;
mod transmit;

pub use connection::{Connection, Role};
pub use event::{EndReason, Header, Negotiated, Output, Payload, SendError, Stats, ViolationError};
pub use params::{ParamError, Params};
