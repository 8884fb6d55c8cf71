#![forbid(unsafe_code)]
//! Calls that ask the engine and wait for its answer.

use std::net::SocketAddr;

use super::connection::Connection;
use super::error::ClientError;
use super::events::Ready;
use super::handle::{unexpected, Handle};
use crate::ipc::{
    gather_interfaces, ConnectSpec, InterfaceRecord, ListenSpec, Params, Reply, Request,
    SessionSpec,
};
use crate::ring::{ConnectionCounters, ConnectionRecord, Descriptor, Segment};

impl Handle {
    /// Sets the server's parameters.
    pub fn set_params(&mut self, params: &Params) -> Result<(), ClientError> {
        self.check_link()?;
        params.check()?;
        self.ask(&Request::SetParams(params.clone()))?;
        self.replay.params = Some(params.clone());
        Ok(())
    }

    /// The parameters in force.
    pub fn params(&mut self) -> Result<Params, ClientError> {
        match self.call(&Request::GetParams)? {
            Reply::Params(params) => Ok(params),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Registers or unregisters what routes connections here.
    pub fn set_session(&mut self, session: &SessionSpec) -> Result<(), ClientError> {
        self.check_link()?;
        session.check()?;
        self.ask(&Request::SetSession(session.clone()))?;
        let replay = &mut self.replay;
        if session.remove {
            session.session_id.map(|id| replay.session_ids.remove(&id));
            session
                .client_guid
                .map(|guid| replay.client_guids.remove(&guid));
        } else {
            replay.session_ids.extend(session.session_id);
            replay.client_guids.extend(session.client_guid);
        }
        Ok(())
    }

    /// Listens; returns the address taken.
    pub fn listen(&mut self, listen: &ListenSpec) -> Result<SocketAddr, ClientError> {
        match self.call(&Request::Listen(listen.clone()))? {
            Reply::Address(address) => {
                // A free port that was chosen once is asked for again after a reconnect.
                self.replay.listeners.push(ListenSpec {
                    address,
                    ..listen.clone()
                });
                Ok(address)
            }
            reply => Err(unexpected(&reply)),
        }
    }

    /// Stops listening.
    pub fn unlisten(&mut self, listen: &ListenSpec) -> Result<(), ClientError> {
        self.ask(&Request::Unlisten(listen.clone()))?;
        self.replay
            .listeners
            .retain(|l| (l.fabric, l.address) != (listen.fabric, listen.address));
        Ok(())
    }

    /// Connects to a peer; its Attached or Disconnected event follows.
    pub fn connect(&mut self, connect: &ConnectSpec) -> Result<u64, ClientError> {
        self.check_link()?;
        connect.check()?;
        let id = self.ask_connection(&Request::Connect(connect.clone()))?;
        self.adopt(id)?;
        Ok(id)
    }

    /// Takes over an offered or exported connection.
    pub fn accept(&mut self, token: [u8; 16]) -> Result<u64, ClientError> {
        let id = self.ask_connection(&Request::Accept { token })?;
        self.adopt(id)?.is_attached = true;
        Ok(id)
    }

    /// Refuses an offered connection.
    pub fn reject(&mut self, token: [u8; 16]) -> Result<(), ClientError> {
        self.ask(&Request::Reject { token })
    }

    /// Makes a token with which another handle takes a connection over. From then on it delivers
    /// no PDUs here, until [`Handle::set_receive`] starts it again.
    pub fn export(&mut self, connection: u64) -> Result<[u8; 16], ClientError> {
        self.check_link()?;
        self.connection(connection)?;
        let token = match self.call(&Request::Export { connection })? {
            Reply::Token(token) => token,
            reply => return Err(unexpected(&reply)),
        };
        // What was published before the answer is in the ring now. It could not follow the
        // connection to its new owner.
        self.drain_completions();
        let is_ready =
            |ready: &Ready| matches!(ready, Ready::Pdu(pdu) if pdu.connection == connection);
        let has_pdus = self.link.ready.iter().any(is_ready);
        self.keep_readable();
        let entry = self.connection(connection)?;
        if has_pdus || entry.partial.is_some() || !entry.waiting.is_empty() {
            self.ask(&Request::CancelExport { connection })?;
            return Err(ClientError::new(
                libc::EBUSY,
                "PDUs of the connection wait here: take them with smbd_get_events, then try again",
            ));
        }
        entry.is_exported = true;
        Ok(token)
    }

    /// Lets the peer of a connection reach a piece of the RDMA buffers. The token holds for a peer that
    /// has got a PDU which was queued afterwards.
    pub fn register(
        &mut self,
        connection: u64,
        segment: Segment,
        remote_read: bool,
        remote_write: bool,
    ) -> Result<Descriptor, ClientError> {
        self.check_link()?;
        self.connection(connection)?;
        let inside = self.link.ring.layout().rdma;
        let length = u32::try_from(segment.length).unwrap_or(0);
        if length == 0 || inside.position(segment.offset, segment.length).is_none() {
            return Err(ClientError::new(
                libc::EINVAL,
                format!(
                    "{} bytes at {} are not a piece of the RDMA buffers, {} bytes at {}",
                    segment.length, segment.offset, inside.len, inside.offset
                ),
            ));
        }
        if !remote_read && !remote_write {
            return Err(ClientError::new(
                libc::EINVAL,
                "access is 0, it may be SMBD_ACCESS_REMOTE_READ, SMBD_ACCESS_REMOTE_WRITE or both",
            ));
        }
        let request = Request::Register {
            connection,
            offset: segment.offset,
            length,
            remote_read,
            remote_write,
        };
        match self.call(&request)? {
            Reply::Registered(descriptor) => Ok(descriptor),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Takes that back.
    pub fn deregister(&mut self, connection: u64, token: u32) -> Result<(), ClientError> {
        self.check_link()?;
        self.connection(connection)?;
        self.ask(&Request::Deregister { connection, token })
    }

    /// The addresses of this host.
    pub fn interfaces(&mut self) -> Result<Vec<InterfaceRecord>, ClientError> {
        gather_interfaces(|request| self.call(&request), unexpected)
    }

    /// A connection's addresses, negotiated values and counters. Makes no system call.
    pub fn connection_info(
        &mut self,
        connection: u64,
    ) -> Result<(ConnectionRecord, ConnectionCounters), ClientError> {
        self.check_opener()?;
        self.connection(connection)?;
        self.link.ring.connection(connection)?.ok_or_else(|| {
            ClientError::new(
                libc::ENOTCONN,
                format!("connection {connection:#x} is gone"),
            )
        })
    }

    /// Stops or starts the delivery of PDUs of a connection. Starting also ends an export.
    pub fn set_receive(&mut self, connection: u64, enable: bool) -> Result<(), ClientError> {
        self.check_opener()?;
        let entry = self.connection(connection)?;
        if enable && entry.is_exported {
            self.ask(&Request::CancelExport { connection })?;
        }
        let link = &mut self.link;
        let Some(entry) = link.connections.get_mut(&connection) else {
            return Ok(());
        };
        entry.is_exported &= !enable;
        if enable && entry.is_stopped {
            entry.is_stopped = false;
            // They are older than anything of this connection that is in the queue.
            for pdu in entry.waiting.drain(..).rev() {
                link.ready.push_front(Ready::Pdu(pdu));
            }
        } else if !enable && !entry.is_stopped {
            entry.is_stopped = true;
            for ready in std::mem::take(&mut link.ready) {
                match ready {
                    Ready::Pdu(pdu) if pdu.connection == connection => entry.waiting.push_back(pdu),
                    other => link.ready.push_back(other),
                }
            }
        }
        self.keep_readable();
        Ok(())
    }

    /// A connection that the engine has just named.
    fn adopt(&mut self, id: u64) -> Result<&mut Connection, ClientError> {
        let Some((record, _)) = self.link.ring.connection(id)? else {
            return Err(ClientError::new(
                libc::EPROTO,
                format!("the engine named connection {id:#x}, which its table lacks"),
            ));
        };
        let connections = &mut self.link.connections;
        Ok(connections
            .entry(id)
            .or_insert_with(|| Connection::new(record)))
    }

    fn ask(&mut self, request: &Request) -> Result<(), ClientError> {
        match self.call(request)? {
            Reply::Ok => Ok(()),
            reply => Err(unexpected(&reply)),
        }
    }

    fn ask_connection(&mut self, request: &Request) -> Result<u64, ClientError> {
        match self.call(request)? {
            Reply::Connection(connection) => Ok(connection),
            reply => Err(unexpected(&reply)),
        }
    }
}
