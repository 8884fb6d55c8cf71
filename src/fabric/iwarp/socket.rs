//! TCP sockets of the fabric.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{self, sockopt, AddressFamily, SocketFlags, SocketType};

use super::config::IwarpConfig;
use super::End;
use crate::fabric::EndReason;

fn new(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(net::socket_with(family, SocketType::STREAM, flags, None)?)
}

/// Listens on an address.
pub(super) fn listen(config: &IwarpConfig, address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = new(address)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        // Each family has its own listener.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    // Accepted sockets inherit the sizes, and the window is agreed on before accept returns.
    set_buffers(config, &socket)?;
    net::bind(&socket, &address)?;
    net::listen(&socket, config.backlog)?;
    Ok(socket)
}

/// Starts to connect.
pub(super) fn connect(config: &IwarpConfig, peer: SocketAddr) -> io::Result<OwnedFd> {
    let socket = new(peer)?;
    set_buffers(config, &socket)?;
    set_options(config, &socket)?;
    match net::connect(&socket, &peer) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// Takes a connection from a listener; `None`: there is none.
pub(super) fn accept(config: &IwarpConfig, listener: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    match net::accept_with(listener, flags) {
        Ok(socket) => {
            set_options(config, &socket)?;
            Ok(Some(socket))
        }
        // The peer has gone already; others may wait behind it (they are told as readiness).
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED | Errno::PROTO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn set_options(config: &IwarpConfig, socket: &OwnedFd) -> io::Result<()> {
    sockopt::set_tcp_nodelay(socket, config.nodelay)?;
    // A peer that vanished without a word is found by the upper layer's keepalive; this one costs
    // nothing and also serves callers without any.
    sockopt::set_socket_keepalive(socket, true)?;
    Ok(())
}

fn set_buffers(config: &IwarpConfig, socket: &OwnedFd) -> io::Result<()> {
    if let Some(bytes) = config.send_buffer {
        sockopt::set_socket_send_buffer_size(socket, bytes)?;
    }
    if let Some(bytes) = config.receive_buffer {
        sockopt::set_socket_recv_buffer_size(socket, bytes)?;
    }
    Ok(())
}

/// How a connect ended that was under way.
pub(super) fn connect_result(socket: &OwnedFd) -> io::Result<()> {
    match sockopt::socket_error(socket)? {
        Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The end of a connection whose TCP connect failed.
pub(super) fn connect_failed(peer: SocketAddr, error: &io::Error) -> End {
    let text = format!("TCP connect to {peer}: {error}");
    End::plain(match error.kind() {
        io::ErrorKind::ConnectionRefused => EndReason::Refused(text),
        io::ErrorKind::TimedOut => EndReason::TimedOut(text),
        _ => EndReason::Transport(text),
    })
}

/// Our address.
pub(super) fn local_address(socket: impl AsFd) -> io::Result<SocketAddr> {
    let any = net::getsockname(socket)?;
    SocketAddr::try_from(any).map_err(|error| io::Error::other(error.to_string()))
}

/// The peer's address.
pub(super) fn peer_address(socket: impl AsFd) -> io::Result<SocketAddr> {
    let any = net::getpeername(socket)?.ok_or(Errno::NOTCONN)?;
    SocketAddr::try_from(any).map_err(|error| io::Error::other(error.to_string()))
}
