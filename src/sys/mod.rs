//! Thin, safe covers over what the kernel gives: readiness, wake-ups, shared memory, control
//! sockets with file descriptors and credentials.

mod poller;

pub use poller::{Interest, Poller, Ready, Registry};
