//! Thin, safe covers over what the kernel gives: readiness, wake-ups, shared memory, control
//! sockets with file descriptors and credentials.

mod bell;
mod env;
mod event;
mod fork_guard;
mod limits;
mod lookout;
mod memfd;
mod net_device;
mod pidfd;
mod poller;
mod seqpacket;
mod tcp;

pub use bell::{Bell, Cleared};
pub use env::secure_env;
pub use event::SelfEvent;
#[cfg(test)]
pub(crate) use fork_guard::in_forked_child;
pub use fork_guard::ForkGuard;
pub use limits::{is_exhaustion, physical_memory, pinned_memory, raise_file_limit, PinnedMemory};
pub(crate) use lookout::Lookout;
pub use memfd::Memfd;
pub use net_device::{NetDevice, NetDevices};
pub use pidfd::Pidfd;
pub use poller::{Interest, Poller, Ready, Registry, Told};
pub use seqpacket::{PeerCredentials, Received, SeqPacket, SeqPacketListener, MAX_FDS};
pub use tcp::{max_segment_bytes, set_receive_threshold};
