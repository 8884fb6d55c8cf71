//! Thin, safe covers over what the kernel gives: readiness, wake-ups, shared memory, control
//! sockets with file descriptors and credentials.

mod bell;
mod fork_guard;
mod memfd;
mod pidfd;
mod poller;
mod seqpacket;
mod tcp;

pub use bell::{Bell, Cleared};
pub use fork_guard::ForkGuard;
pub use memfd::Memfd;
pub use pidfd::Pidfd;
pub use poller::{Interest, Poller, Ready, Registry};
pub use seqpacket::{PeerCredentials, Received, SeqPacket, SeqPacketListener, MAX_FDS};
pub use tcp::max_segment_bytes;
