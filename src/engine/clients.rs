//! The processes on the control socket.

use std::time::Instant;

use slab::Slab;

use super::handle::{Handle, HandleId};
use crate::sys::{PeerCredentials, Pidfd, SeqPacket};

/// A process that has connected to the control socket.
pub(super) struct Client {
    pub(super) serial: u64,
    pub(super) socket: SeqPacket,
    pub(super) credentials: PeerCredentials,
    /// Its user may use this engine.
    pub(super) allowed: bool,
    pub(super) opened: Instant,
    /// Readable when the process has ended; its socket may live on in children.
    pub(super) pidfd: Option<Pidfd>,
    /// What it has opened; tools open nothing.
    pub(super) handle: Option<Handle>,
}

/// Bits of a readiness key for the index of a client; its serial is above.
const INDEX_BITS: u32 = 24;

/// Names a client in readiness. The index alone would not do: among the descriptors that became
/// ready together, one may belong to a client that was removed because of another, while its index
/// already belongs to a new client.
pub(super) fn ready_key(index: usize, serial: u64) -> u64 {
    (index as u64 & ((1 << INDEX_BITS) - 1)) | (serial & u64::from(u32::MAX)) << INDEX_BITS
}

/// All of them.
#[derive(Default)]
pub(super) struct Clients {
    slab: Slab<Client>,
    next_serial: u64,
    /// Handles that were looked up for writing since they were last published.
    used: Vec<usize>,
}

impl Clients {
    /// Adds a process and returns its index.
    pub(super) fn add(&mut self, make: impl FnOnce(usize, u64) -> Client) -> usize {
        self.next_serial += 1;
        let serial = self.next_serial;
        let entry = self.slab.vacant_entry();
        let key = entry.key();
        entry.insert(make(key, serial));
        key
    }

    /// The index of the client that a key of [`ready_key`] names, if it is still there.
    pub(super) fn index_of(&self, ready_key: u64) -> Option<usize> {
        let index = (ready_key & ((1 << INDEX_BITS) - 1)) as usize;
        let client = self.slab.get(index)?;
        (self::ready_key(index, client.serial) == ready_key).then_some(index)
    }

    pub(super) fn get(&self, key: usize) -> Option<&Client> {
        self.slab.get(key)
    }

    pub(super) fn get_mut(&mut self, key: usize) -> Option<&mut Client> {
        self.slab.get_mut(key)
    }

    pub(super) fn remove(&mut self, key: usize) -> Option<Client> {
        self.slab.try_remove(key)
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    /// The handle with this id, if it still exists. It counts as used.
    pub(super) fn handle(&mut self, id: HandleId) -> Option<&mut Handle> {
        match self.slab.get(id.client) {
            Some(client) if client.serial == id.serial => self.handle_at(id.client),
            _ => None,
        }
    }

    /// The handle of the client at this index. It counts as used.
    pub(super) fn handle_at(&mut self, key: usize) -> Option<&mut Handle> {
        let handle = self.slab.get_mut(key)?.handle.as_mut()?;
        if !std::mem::replace(&mut handle.used, true) {
            self.used.push(key);
        }
        Some(handle)
    }

    /// A handle that was used, once.
    pub(super) fn next_used(&mut self) -> Option<usize> {
        loop {
            let key = self.used.pop()?;
            if let Some(handle) = self.slab.get_mut(key).and_then(|c| c.handle.as_mut()) {
                handle.used = false;
                return Some(key);
            }
        }
    }

    /// Processes of one user, or of all who are not allowed.
    pub(super) fn of_user(&self, uid: u32, allowed: bool) -> usize {
        let clients = self.slab.iter().map(|(_, client)| client);
        let same = |c: &&Client| c.allowed == allowed && (!allowed || c.credentials.uid == uid);
        clients.filter(same).count()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Client)> {
        self.slab.iter()
    }

    /// The user of the parent handle.
    pub(super) fn parent_user(&self) -> Option<u32> {
        let parent = |c: &&Client| c.handle.as_ref().is_some_and(|handle| handle.parent);
        self.slab
            .iter()
            .map(|(_, client)| client)
            .find(parent)
            .map(|c| c.credentials.uid)
    }

    /// The server's parent handle.
    pub(super) fn parent(&mut self) -> Option<&mut Handle> {
        let is_parent = |c: &Client| c.handle.as_ref().is_some_and(|h| h.parent);
        let (key, _) = self.slab.iter().find(|(_, client)| is_parent(client))?;
        self.handle_at(key)
    }
}
