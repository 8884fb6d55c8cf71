//! Control sockets: messages with boundaries, file descriptors and the peer's credentials.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// The most file descriptors that one message carries.
pub const MAX_FDS: usize = 4;

/// A connected SOCK_SEQPACKET socket, close-on-exec and non-blocking.
#[derive(Debug)]
pub struct SeqPacket {
    fd: OwnedFd,
}

/// Who opened the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Its process; 0 when it lives in a pid namespace that we cannot see.
    pub pid: u32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// One message.
#[derive(Debug)]
pub struct Received {
    /// Its bytes.
    pub len: usize,
    /// File descriptors that came with it, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

impl SeqPacket {
    /// Connects to a listener's path. Does not block: a listener whose queue is full gives EAGAIN.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let fd = socket()?;
        rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)?;
        Ok(Self { fd })
    }

    /// Two connected ends.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
        Ok((Self { fd: a }, Self { fd: b }))
    }

    /// Sends one message. EAGAIN: the other side does not read; EPIPE: it is gone.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::other(format!(
                "{} file descriptors in one message, at most {MAX_FDS}",
                fds.len()
            )));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match rustix::net::sendmsg(&self.fd, &[IoSlice::new(bytes)], &mut control, flags) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Receives one message into `buffer`. `Ok(None)`: the other side is gone. EAGAIN: none is
    /// here; a message longer than `buffer` is InvalidData; EMFILE: there was no room for the
    /// descriptors that came with it.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message = loop {
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let mut parts = [IoSliceMut::new(buffer)];
            match rustix::net::recvmsg(&self.fd, &mut parts, &mut control, flags) {
                Ok(message) => break message,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        };
        let mut fds = Vec::new();
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = part {
                fds.extend(rights);
            }
        }
        if message.flags.contains(ReturnFlags::CTRUNC) {
            // Those that had room are closed with `fds`. The limit of this process is the reason, or
            // somebody sends more than [`MAX_FDS`].
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        if message.flags.contains(ReturnFlags::TRUNC) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a control message is longer than {} bytes", buffer.len()),
            ));
        }
        if message.bytes == 0 {
            return Ok(None);
        }
        Ok(Some(Received {
            len: message.bytes,
            fds,
        }))
    }

    /// Whether the other side is gone; messages not yet received do not matter.
    pub fn is_closed(&self) -> bool {
        let mut poll = [PollFd::new(&self.fd, PollFlags::empty())];
        matches!(
            rustix::event::poll(&mut poll, Some(&rustix::event::Timespec::default())),
            Ok(1..)
        )
    }

    /// Ends the connection in both directions, also for copies of the descriptor in forked children.
    pub fn shutdown(&self) {
        // It fails only for a socket that is not connected any more.
        let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Both);
    }

    /// Waits until there is something to receive (or the other side is gone), or to send. False:
    /// the time is over.
    pub fn wait(&self, to_send: bool, timeout: Duration) -> io::Result<bool> {
        let flags = if to_send {
            PollFlags::OUT
        } else {
            PollFlags::IN
        };
        let timeout = rustix::event::Timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        match rustix::event::poll(&mut [PollFd::new(&self.fd, flags)], Some(&timeout)) {
            Ok(n) => Ok(n > 0),
            // The caller looks at the clock and comes back.
            Err(rustix::io::Errno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Who connected (for a listener's end) or listens (for a connector's end).
    pub fn peer_credentials(&self) -> io::Result<PeerCredentials> {
        let mut cred = libc::ucred {
            pid: 0,
            uid: 0,
            gid: 0,
        };
        let mut len = std::mem::size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: `cred` is valid for writes of `len` bytes, any bytes are a valid ucred.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                std::ptr::from_mut(&mut cred).cast(),
                &mut len,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(PeerCredentials {
            pid: u32::try_from(cred.pid).unwrap_or(0),
            uid: cred.uid,
            gid: cred.gid,
        })
    }
}

impl AsFd for SeqPacket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A SOCK_SEQPACKET socket at a path. Dropping it removes the path.
#[derive(Debug)]
pub struct SeqPacketListener {
    fd: OwnedFd,
    path: PathBuf,
}

impl SeqPacketListener {
    /// Listens at `path` with file mode `mode`. A socket that a dead process left there is
    /// replaced; one that answers, or anything else at that path, is EADDRINUSE.
    pub fn bind(path: &Path, mode: u32) -> io::Result<Self> {
        if let Ok(stat) = rustix::fs::lstat(path) {
            let is_socket = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_socket();
            let is_stale = is_socket
                && matches!(SeqPacket::connect(path), Err(error)
                    if error.kind() == io::ErrorKind::ConnectionRefused);
            if !is_stale {
                return Err(rustix::io::Errno::ADDRINUSE.into());
            }
            std::fs::remove_file(path)?;
        }
        let fd = socket()?;
        rustix::net::bind(&fd, &SocketAddrUnix::new(path)?)?;
        // Until `listen` nobody can connect, whatever the umask gave.
        rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(mode))?;
        rustix::net::listen(&fd, 128)?;
        Ok(Self {
            fd,
            path: path.to_owned(),
        })
    }

    /// Takes one connection; `None`: there is none now.
    pub fn accept(&self) -> io::Result<Option<SeqPacket>> {
        loop {
            match rustix::net::accept_with(&self.fd, FLAGS) {
                Ok(fd) => return Ok(Some(SeqPacket { fd })),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED) => return Ok(None),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for SeqPacketListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for SeqPacketListener {
    fn drop(&mut self) {
        // A path that is gone already needs no removal; there is nobody to tell of anything else.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        FLAGS,
        None,
    )?)
}

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn messages_and_descriptors_pass() {
        let (a, b) = SeqPacket::pair().unwrap();
        let (mut x, y) = std::os::unix::net::UnixStream::pair().unwrap();
        a.send(b"hello", &[y.as_fd()]).unwrap();
        a.send(b"again", &[]).unwrap();
        let mut buffer = [0; 16];
        let first = b.recv(&mut buffer).unwrap().unwrap();
        assert_eq!((&buffer[..first.len], first.fds.len()), (&b"hello"[..], 1));
        let flags = rustix::io::fcntl_getfd(&first.fds[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        x.write_all(b"!").unwrap();
        drop(y);
        assert_eq!(rustix::io::read(&first.fds[0], &mut buffer).unwrap(), 1);
        assert_eq!(b.recv(&mut buffer).unwrap().unwrap().len, 5);
        let empty = b.recv(&mut buffer).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        assert!(!b.is_closed());
        drop(a);
        assert!(b.is_closed());
        assert!(b.recv(&mut buffer).unwrap().is_none());
        assert!(b.send(b"x", &[]).is_err());
    }

    #[test]
    fn a_message_that_is_too_long_is_an_error() {
        let (a, b) = SeqPacket::pair().unwrap();
        a.send(&[7; 100], &[]).unwrap();
        let error = b.recv(&mut [0; 99]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_listener_replaces_only_a_dead_socket() {
        let path = std::env::temp_dir().join(format!("smbdirect-seqpacket-{}", std::process::id()));
        let listener = SeqPacketListener::bind(&path, 0o600).unwrap();
        assert!(listener.accept().unwrap().is_none());
        let client = SeqPacket::connect(&path).unwrap();
        let server = listener.accept().unwrap().unwrap();
        assert_eq!(server.peer_credentials().unwrap().pid, std::process::id());
        client.send(b"x", &[]).unwrap();
        assert!(server.wait(false, Duration::from_secs(5)).unwrap());
        let busy = SeqPacketListener::bind(&path, 0o600).unwrap_err();
        assert_eq!(busy.kind(), io::ErrorKind::AddrInUse);
        // What a killed engine leaves: the path without a listener.
        let SeqPacketListener { fd, .. } = &listener;
        rustix::net::shutdown(fd, rustix::net::Shutdown::Both).unwrap();
        let again = SeqPacketListener::bind(&path, 0o600);
        assert!(again.is_ok(), "{again:?}");
        drop(again);
        assert!(!path.exists());
        std::fs::write(&path, b"a file").unwrap();
        assert!(SeqPacketListener::bind(&path, 0o600).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"a file");
        std::fs::remove_file(&path).unwrap();
    }
}
