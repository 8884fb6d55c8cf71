//! The SMB Direct transport, and memory that the server reaches by RDMA.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

use crate::fabric::Access;
use crate::mem::{MemSlice, Region};
use crate::peer::{ConnectionId, ConnectionStats, Endpoint, PeerError, PeerEvent};
use crate::proto::{Negotiated, SendError};
use crate::wire::BufferDescriptor;

use super::error::SmbError;
use super::options::Profile;
use super::transport::{time_left, Message};

/// An SMB Direct connection of a client.
pub struct Direct {
    endpoint: Endpoint,
    connection: ConnectionId,
    negotiated: Negotiated,
    messages: VecDeque<Message>,
    events: Vec<PeerEvent>,
    end: Option<String>,
    /// Receive credits are granted in batches of this many; 1: at once.
    grant_batch: u64,
    receive_credits: u64,
    descriptor_size: usize,
}

impl Direct {
    /// Connects and negotiates MS-SMBD.
    pub(super) fn connect(
        peer: SocketAddr,
        profile: &Profile,
        deadline: Instant,
    ) -> Result<Self, SmbError> {
        let mut endpoint = Endpoint::new(profile.config.clone())?;
        let mut options = profile.connect.clone();
        options.peer = peer;
        let connection = endpoint.connect(&options)?;
        let mut events = Vec::new();
        let negotiated = 'connected: loop {
            endpoint.poll(Some(time_left(deadline)?), &mut events)?;
            for event in events.drain(..) {
                match event {
                    PeerEvent::Connected { negotiated, .. } => break 'connected negotiated,
                    PeerEvent::Disconnected { reason, .. } => {
                        return Err(SmbError::Connection(format!(
                            "cannot connect to {peer}: {reason}"
                        )))
                    }
                    _ => {}
                }
            }
        };
        Ok(Self {
            endpoint,
            connection,
            negotiated,
            messages: VecDeque::new(),
            events,
            end: None,
            grant_batch: profile.grant_batch.into(),
            receive_credits: profile.config.active.receive_credit_max.into(),
            descriptor_size: profile.descriptor_size,
        })
    }

    /// What MS-SMBD agreed on.
    pub fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    /// Counters, while the connection is there.
    pub fn stats(&self) -> Option<ConnectionStats> {
        self.endpoint.stats(self.connection)
    }

    /// The endpoint and its connection, for what only tests want.
    pub fn endpoint(&mut self) -> (&mut Endpoint, ConnectionId) {
        (&mut self.endpoint, self.connection)
    }

    /// Why the connection ended, if it did.
    pub fn end(&self) -> Option<&str> {
        self.end.as_deref()
    }

    /// Registers memory in pieces as long as the profile's descriptors may be.
    ///
    /// # Errors
    /// The fabric refuses: too many registrations, or the connection is gone.
    pub fn register(&mut self, memory: &MemSlice, access: Access) -> Result<Memory, SmbError> {
        let size = self.descriptor_size.min(memory.len()).max(1);
        let whole = memory.len() / size;
        let mut pieces = vec![size; whole];
        pieces.extend(Some(memory.len() % size).filter(|&rest| rest > 0));
        self.register_pieces(memory, &pieces, access)
    }

    /// Registers memory, one descriptor for each of the lengths in `pieces`, which make all of it.
    ///
    /// # Errors
    /// As [`register`](Self::register); or the pieces are not as long as the memory.
    pub fn register_pieces(
        &mut self,
        memory: &MemSlice,
        pieces: &[usize],
        access: Access,
    ) -> Result<Memory, SmbError> {
        if pieces.iter().sum::<usize>() != memory.len() {
            let len = memory.len();
            return Err(SmbError::Usage(format!(
                "pieces that do not make {len} bytes"
            )));
        }
        let mut registered = Memory {
            memory: memory.clone(),
            descriptors: Vec::with_capacity(pieces.len()),
        };
        let mut at = 0;
        for &length in pieces {
            let piece = memory
                .slice(at, length)
                .map_err(|error| SmbError::Usage(error.to_string()))?;
            match self.endpoint.register(self.connection, piece, access) {
                Ok(descriptor) => registered.descriptors.push(descriptor),
                Err(error) => {
                    self.deregister(&registered);
                    return Err(error.into());
                }
            }
            at += length;
        }
        Ok(registered)
    }

    /// Takes registrations back. Tells of each whether it was still there: one that the server
    /// invalidated is not.
    pub fn deregister(&mut self, memory: &Memory) -> Vec<bool> {
        let tokens = memory.descriptors.iter().map(|it| it.token);
        tokens
            .map(|token| self.endpoint.deregister(self.connection, token))
            .collect()
    }

    pub(super) fn send(&mut self, parts: &[&[u8]], deadline: Instant) -> Result<(), SmbError> {
        loop {
            self.check()?;
            match self.endpoint.send(self.connection, parts, 0, None) {
                Ok(()) => break,
                Err(PeerError::Send(SendError::QueueFull { .. })) => self.poll(deadline)?,
                Err(error) => return Err(error.into()),
            }
        }
        self.endpoint.flush();
        Ok(())
    }

    pub(super) fn receive(&mut self, deadline: Instant) -> Result<Message, SmbError> {
        loop {
            if let Some(message) = self.messages.pop_front() {
                return Ok(message);
            }
            self.check()?;
            self.poll(deadline)?;
        }
    }

    /// Ends the connection at once, as a peer that dies.
    pub fn abort(&mut self) {
        self.endpoint.abort(self.connection);
    }

    fn check(&self) -> Result<(), SmbError> {
        match &self.end {
            Some(reason) => Err(SmbError::Connection(reason.clone())),
            None => Ok(()),
        }
    }

    /// Waits for something to happen.
    fn poll(&mut self, deadline: Instant) -> Result<(), SmbError> {
        self.grant();
        let left = time_left(deadline)?;
        self.endpoint.poll(Some(left), &mut self.events)?;
        for event in self.events.drain(..) {
            match event {
                PeerEvent::Pdu {
                    pdu, invalidated, ..
                } => {
                    self.messages.push_back(Message {
                        bytes: pdu.to_vec(),
                        invalidated,
                    });
                    self.endpoint.recycle(pdu);
                }
                PeerEvent::Disconnected { reason, .. } => self.end = Some(reason.to_string()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Grants credits when a batch of them is used up. Receives are posted, and credits granted,
    /// only while receiving is on.
    fn grant(&mut self) {
        if self.grant_batch <= 1 {
            return;
        }
        let Some(stats) = self.stats() else {
            return;
        };
        let held = stats
            .smbd
            .credits_granted
            .saturating_sub(stats.smbd.pdus_received);
        if held + self.grant_batch <= self.receive_credits {
            self.endpoint.set_receiving(self.connection, true);
            self.endpoint.flush();
        }
        self.endpoint.set_receiving(self.connection, false);
    }
}

/// Memory registered on one SMB Direct connection.
#[derive(Debug, Clone)]
pub struct Memory {
    memory: MemSlice,
    descriptors: Vec<BufferDescriptor>,
}

impl Memory {
    /// Memory of `len` bytes to register; zero.
    ///
    /// # Errors
    /// There is none.
    pub fn allocate(len: usize) -> Result<MemSlice, SmbError> {
        let region = Region::anonymous(len)?;
        MemSlice::new(&region, 0, len).map_err(|error| SmbError::Usage(error.to_string()))
    }

    /// The memory.
    pub fn memory(&self) -> &MemSlice {
        &self.memory
    }

    /// What names it to the server, in order.
    pub fn descriptors(&self) -> &[BufferDescriptor] {
        &self.descriptors
    }
}
