//! Listeners: accepting connections, and when not to.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::qp::Phase;
use super::setup::Setup;
use super::{socket, End, Entry, IwarpFabric};
use crate::fabric::{ListenOptions, ListenerKey};
use crate::sys::Interest;

/// Connections that one readiness takes before others get their turn.
const BATCH: usize = 64;
/// How long accepting rests after the system had no descriptor or memory for a connection.
const REST: Duration = Duration::from_millis(200);

/// A listening socket.
pub(super) struct Listener {
    socket: OwnedFd,
    crc: bool,
    /// Not waited for, so that the connections in its queue do not wake us up.
    paused: bool,
    pub(super) deadline: Option<Instant>,
}

impl IwarpFabric {
    pub(super) fn add_listener(
        &mut self,
        address: SocketAddr,
        options: &ListenOptions,
    ) -> io::Result<(u64, SocketAddr)> {
        let socket = socket::listen(&self.shared.config, address)?;
        let taken = socket::local_address(&socket)?;
        let listener = Listener {
            socket,
            crc: options.crc,
            paused: false,
            deadline: None,
        };
        let key = self
            .slots
            .insert(|_| Entry::Listener(listener))
            .ok_or_else(|| io::Error::other("more than 16 million sockets"))?;
        if let Some(Entry::Listener(listener)) = self.slots.get_mut(key) {
            let added = self
                .shared
                .registry
                .add(&listener.socket, key, Interest::READ);
            if let Err(error) = added {
                self.slots.remove(key);
                return Err(error);
            }
        }
        Ok((key, taken))
    }

    pub(super) fn remove_listener(&mut self, key: ListenerKey) {
        match self.slots.get_mut(key.0) {
            Some(Entry::Listener(listener)) => {
                self.shared.timers.set(key.0, &mut listener.deadline, None);
            }
            _ => return,
        }
        self.slots.remove(key.0);
        self.full.retain(|held| *held != key.0);
        let of_listener: Vec<u64> = self
            .slots
            .iter()
            .filter_map(|(qp_key, entry)| match entry {
                Entry::Qp(qp) if qp.setup.as_deref()?.listener()? == key => Some(qp_key),
                _ => None,
            })
            .collect();
        for qp_key in of_listener {
            self.mark(qp_key, Some(End::LOCAL));
        }
    }

    /// Takes connections while there is room for half-open ones.
    pub(super) fn accept_connections(&mut self, key: u64) {
        for _ in 0..BATCH {
            let Some(Entry::Listener(listener)) = self.slots.get_mut(key) else {
                return;
            };
            if self.shared.half_open >= self.shared.config.max_half_open {
                log::warn!(
                    "{} half-open connections: accepting pauses",
                    self.shared.half_open
                );
                self.full.push(key);
                self.pause(key);
                return;
            }
            let crc = listener.crc;
            let accepted = match socket::accept(&self.shared.config, &listener.socket) {
                Ok(Some(socket)) => self.add_accepted(ListenerKey(key), crc, socket),
                Ok(None) => return,
                Err(error) => Err(error),
            };
            match accepted {
                Ok(()) => {}
                Err(error) if is_exhaustion(&error) => {
                    log::warn!("accept: {error}; accepting rests for {REST:?}");
                    let until = self.now + REST;
                    if let Some(Entry::Listener(listener)) = self.slots.get_mut(key) {
                        self.shared
                            .timers
                            .set(key, &mut listener.deadline, Some(until));
                    }
                    self.pause(key);
                    return;
                }
                // The peer was gone before we looked.
                Err(error) => log::debug!("accept: {error}"),
            }
        }
    }

    fn add_accepted(
        &mut self,
        listener: ListenerKey,
        crc: bool,
        socket: OwnedFd,
    ) -> io::Result<()> {
        let addresses = (
            socket::local_address(&socket)?,
            socket::peer_address(&socket)?,
        );
        let setup = Setup::passive(listener, crc);
        let until = self.now + self.shared.config.request_timeout;
        let (phase, interest) = (Phase::AwaitRequest, Interest::READ);
        let key = self.insert_qp(socket, interest, addresses, phase, setup, until)?;
        if let Some(Entry::Qp(qp)) = self.slots.get_mut(key) {
            qp.half_open = true;
            self.shared.half_open += 1;
        }
        Ok(())
    }

    fn pause(&mut self, key: u64) {
        if let Some(Entry::Listener(listener)) = self.slots.get_mut(key) {
            match self
                .shared
                .registry
                .modify(&listener.socket, key, Interest::NONE)
            {
                Ok(()) => listener.paused = true,
                Err(error) => log::warn!("pause a listener: {error}"),
            }
        }
    }

    pub(super) fn resume_listener(&mut self, key: u64) {
        if let Some(Entry::Listener(listener)) = self.slots.get_mut(key) {
            if !listener.paused {
                return;
            }
            match self
                .shared
                .registry
                .modify(&listener.socket, key, Interest::READ)
            {
                Ok(()) => listener.paused = false,
                Err(error) => log::error!("resume a listener: {error}"),
            }
        }
    }

    /// Accepts again when there is room.
    pub(super) fn resume_listeners(&mut self) {
        if !self.full.is_empty() && self.shared.half_open < self.shared.config.max_half_open {
            for key in std::mem::take(&mut self.full) {
                self.resume_listener(key);
            }
        }
    }
}

/// The system has no room for another socket: accepting again at once would fail again.
fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::ENOSPC)
    )
}
