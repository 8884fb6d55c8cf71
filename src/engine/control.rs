//! The control socket: processes come and go, and ask for things.

use std::time::{Duration, Instant};

use log::{debug, error, info, warn};

use super::clients::{ready_key, Client};
use super::handle::{Handle, HandleId};
use super::{tag, Engine, ServerParams};
use crate::fabric::{Access, FabricError, ListenOptions};
use crate::ipc::{self, Reply, Request};
use crate::proto;
use crate::ring::{AreaOptions, Descriptor, EngineSide, Layout, RingError};
use crate::router;
use crate::sys::{is_exhaustion, Interest, Pidfd, SeqPacket};

/// Requests answered for one process before others get their turn.
const REQUEST_BATCH: usize = 16;
/// How long accepting rests after the system had no descriptor or memory for a process.
const ACCEPT_REST: Duration = Duration::from_millis(200);

impl Engine {
    /// Processes connect.
    pub(super) fn accept_clients(&mut self, now: Instant) {
        loop {
            let added = match self.listener.accept() {
                Ok(Some(socket)) => self.add_client(socket),
                Ok(None) => return,
                Err(error) => Err(error),
            };
            match added {
                Ok(()) => {}
                Err(error) if is_exhaustion(&error) => return self.rest_accepting(now, &error),
                Err(error) => debug!("a process is gone again: {error}"),
            }
        }
    }

    /// Waits with the next process: accepting it at once would fail again, and again.
    fn rest_accepting(&mut self, now: Instant, error: &std::io::Error) {
        warn!(
            "control socket: {error}: raise the limit of open files (ulimit -n, LimitNOFILE=); \
             processes wait for {ACCEPT_REST:?}"
        );
        let registry = self.poller.registry(tag::LISTENER);
        match registry.modify(&self.listener, 0, Interest::NONE) {
            Ok(()) => self.accept_rests = Some(now + ACCEPT_REST),
            Err(error) => warn!("control socket: cannot rest: {error}"),
        }
    }

    pub(super) fn resume_accepting(&mut self) {
        self.accept_rests = None;
        let registry = self.poller.registry(tag::LISTENER);
        if let Err(error) = registry.modify(&self.listener, 0, Interest::READ) {
            error!("control socket: no process is accepted any more: {error}");
        }
    }

    fn add_client(&mut self, socket: SeqPacket) -> std::io::Result<()> {
        let credentials = socket.peer_credentials()?;
        let pid = credentials.pid;
        if self.clients.len() >= self.config.max_clients {
            let most = self.config.max_clients;
            warn!("process {pid} refused: {most} processes already");
            return Ok(());
        }
        // A process that hides in another pid namespace is watched by its socket alone.
        let pidfd = if pid == 0 {
            None
        } else {
            Some(Pidfd::open(pid)?)
        };
        let uid = credentials.uid;
        let allowed = self.is_allowed(uid);
        let share = if allowed {
            self.config.max_clients / 4
        } else {
            MAX_STRANGERS
        };
        if !self.is_trusted(uid) && self.clients.of_user(uid, allowed) >= share.max(1) {
            warn!("process {pid} of user {uid} refused: {share} processes already");
            return Ok(());
        }
        let registry = self.poller.registry(tag::CONTROL);
        let process = registry.with_tag(tag::PROCESS);
        let key = self.clients.add(|_, serial| Client {
            serial,
            socket,
            credentials,
            allowed,
            pidfd,
            handle: None,
            opened: Instant::now(),
        });
        let Some(client) = self.clients.get(key) else {
            return Ok(());
        };
        let name = ready_key(key, client.serial);
        let mut added = registry.add(&client.socket, name, Interest::READ);
        if let (Ok(()), Some(pidfd)) = (&added, &client.pidfd) {
            added = process.add(pidfd, name, Interest::READ);
        }
        if added.is_err() {
            self.clients.remove(key);
        }
        added
    }

    /// A process asks something, or its socket was closed.
    pub(super) fn control_ready(&mut self, now: Instant, key: usize) {
        for _ in 0..REQUEST_BATCH {
            let Some(client) = self.clients.get(key) else {
                return;
            };
            let received = match client.socket.recv(&mut self.control_buffer) {
                Ok(Some(received)) => received,
                Ok(None) => return self.remove_client(now, key, "closed its socket"),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) => return self.remove_client(now, key, &error.to_string()),
            };
            let bytes = self.control_buffer.get(..received.len).unwrap_or_default();
            let (number, request) = match ipc::decode_request(bytes) {
                Ok(envelope) => (envelope.number, envelope.body),
                Err(error) => return self.remove_client(now, key, &error.to_string()),
            };
            self.counters.requests += 1;
            let closes = request == Request::Close;
            let allowed = self.clients.get(key).is_some_and(|client| client.allowed);
            let reply = self
                .answer(now, key, request)
                .unwrap_or_else(|(errno, text)| {
                    debug!("request refused with errno {errno}: {text}");
                    Reply::Error { errno, text }
                });
            // What the answer speaks of must be in the rings before the answer is seen.
            self.publish(now);
            if !self.send_reply(key, number, reply) {
                return self.remove_client(now, key, "does not take its answers");
            }
            if closes || !allowed {
                return self.remove_client(now, key, "closed its handle, or may have none");
            }
        }
    }

    fn send_reply(&mut self, key: usize, number: u32, reply: Reply) -> bool {
        let Some(client) = self.clients.get_mut(key) else {
            return true;
        };
        let opened = matches!(reply, Reply::Opened { .. });
        let bytes = match ipc::encode_reply(number, &reply) {
            Ok(bytes) => bytes,
            Err(error) => {
                warn!("answer to process {}: {error}", client.credentials.pid);
                return false;
            }
        };
        let fds = match &client.handle {
            Some(handle) if opened => handle.side.fds(),
            _ => Vec::new(),
        };
        let sent = client.socket.send(&bytes, &fds);
        drop(fds);
        if let Some(handle) = client.handle.as_mut().filter(|_| opened) {
            handle.side.handed_over();
        }
        sent.is_ok()
    }

    fn answer(
        &mut self,
        now: Instant,
        key: usize,
        request: Request,
    ) -> Result<Reply, (i32, String)> {
        let Some(client) = self.clients.get(key) else {
            return Err((libc::EBADF, "gone".into()));
        };
        if !client.allowed {
            let text = format!(
                "user {} may not use this engine: run as root or as user {}, or start the engine \
                 with --allow-uid {0}",
                client.credentials.uid, self.uid
            );
            return Err((libc::EACCES, text));
        }
        let parent = client.handle.as_ref().is_some_and(|handle| handle.parent);
        let needs_parent = |what: &str| {
            if parent {
                Ok(())
            } else {
                Err((libc::EPERM, format!("only the parent handle may {what}")))
            }
        };
        match request {
            Request::Open(open) => self.open(now, key, &open),
            Request::Close => Ok(Reply::Ok),
            Request::SetParams(params) => {
                needs_parent("set parameters")?;
                self.set_params(params)
            }
            Request::GetParams => match &self.params {
                Some(params) => Ok(Reply::Params(params.wire.clone())),
                None => Err((libc::ENODATA, "no parameters were set".into())),
            },
            Request::SetSession(spec) => {
                self.check_serves(client.credentials.uid)?;
                self.set_session(key, &spec)
            }
            Request::Listen(spec) => {
                needs_parent("listen")?;
                let owner = self
                    .clients
                    .get(key)
                    .and_then(|c| c.handle.as_ref())
                    .map(|h| h.id);
                let options = ListenOptions {
                    crc: spec.crc,
                    ..ListenOptions::default()
                };
                let address = self
                    .listen(spec.fabric, spec.address, &options, owner)
                    .map_err(|error| fabric_errno("listen on", &spec.address, error))?;
                info!("listening on {address} for process {}", self.pid_of(key));
                Ok(Reply::Address(address))
            }
            Request::Unlisten(spec) => {
                let id = self
                    .clients
                    .get(key)
                    .and_then(|c| c.handle.as_ref())
                    .map(|h| h.id);
                let at = self.listeners.iter().position(|listener| {
                    listener.address == spec.address
                        && super::fabrics::kind(listener.fabric) == spec.fabric
                        && listener.owner.is_some()
                        && listener.owner == id
                });
                match at {
                    Some(at) => {
                        let listener = self.listeners.swap_remove(at);
                        self.fabrics[listener.fabric].close_listener(listener.key);
                        Ok(Reply::Ok)
                    }
                    None => {
                        let text = format!("this handle does not listen on {}", spec.address);
                        Err((libc::ENOENT, text))
                    }
                }
            }
            Request::Connect(spec) => {
                spec.check()
                    .map_err(|error| (libc::EINVAL, error.to_string()))?;
                self.connect(now, key, &spec).map(Reply::Connection)
            }
            Request::Accept { token } => self.accept(now, key, &token).map(Reply::Connection),
            Request::Reject { token } => self.reject(now, key, &token).map(|()| Reply::Ok),
            Request::Export { connection } => {
                // What the handle submitted before has to be known first.
                self.take_all(now, key);
                self.export(key, connection).map(Reply::Token)
            }
            Request::CancelExport { connection } => {
                let conn = self.owned(key, connection)?;
                self.cancel_export(now, conn);
                Ok(Reply::Ok)
            }
            Request::Register {
                connection,
                offset,
                length,
                remote_read,
                remote_write,
            } => {
                let conn = self.owned(key, connection)?;
                let access = Access {
                    remote_read,
                    remote_write,
                };
                self.register(key, conn, offset, length, access)
            }
            Request::Deregister { connection, token } => {
                let conn = self.owned(key, connection)?;
                let conn = &self.conns[conn];
                if self.fabrics[conn.fabric].deregister(conn.qp, token) {
                    Ok(Reply::Ok)
                } else {
                    let text = format!("token {token:#010x} is not registered (any more)");
                    Err((libc::ENOENT, text))
                }
            }
            Request::Disconnect { connection, abort } => {
                self.disconnect(now, key, connection, abort)?;
                Ok(Reply::Ok)
            }
            Request::Interfaces { from } => self.interfaces(now, from),
            Request::Status { from } => {
                let uid = client.credentials.uid;
                Ok(Reply::Status(self.status(now, from, uid)))
            }
        }
    }

    fn pid_of(&self, key: usize) -> u32 {
        self.clients
            .get(key)
            .map_or(0, |client| client.credentials.pid)
    }

    fn open(
        &mut self,
        now: Instant,
        key: usize,
        open: &ipc::OpenRequest,
    ) -> Result<Reply, (i32, String)> {
        if open.abi != crate::ring::ABI {
            let text = format!(
                "library {} has ABI {}, engine {} has {}: use both of one version",
                open.version,
                open.abi,
                env!("CARGO_PKG_VERSION"),
                crate::ring::ABI
            );
            return Err((libc::EPROTO, text));
        }
        if self.clients.handle_at(key).is_some() {
            return Err((libc::EALREADY, "this socket has a handle already".into()));
        }
        let uid = self.clients.get(key).map(|c| c.credentials.uid);
        let uid = uid.ok_or_else(|| (libc::EBADF, String::from("gone")))?;
        if open.parent {
            if !self.may_be_parent(uid) {
                let text = format!(
                    "user {uid} may not open the parent handle: run as root or as user {}, or start \
                     the engine with --allow-parent-uid {uid}",
                    self.uid
                );
                return Err((libc::EPERM, text));
            }
            if let Some(parent) = self.clients.parent() {
                let text = format!("process {} has the parent handle already", parent.pid);
                return Err((libc::EBUSY, text));
            }
        }
        let credits = self
            .params
            .as_ref()
            .map_or(255, |p| u32::from(p.smbd.receive_credit_max));
        let mut area = open.area;
        if area.receive_slots == 0 {
            // The credits of 8 connections, and the reserve of an eighth.
            area = AreaOptions {
                receive_slots: credits.saturating_mul(64).div_ceil(7).clamp(16, 65536),
                ..area
            };
        }
        let layout = Layout::new(&area).map_err(|error| (libc::EINVAL, error.to_string()))?;
        self.check_area(uid, layout.area_size())?;
        self.check_memory(now)?;
        let side = EngineSide::new(&area).map_err(|error| {
            let errno = match &error {
                RingError::Os(_, error) => error.raw_os_error(),
                _ => None,
            };
            (errno.unwrap_or(libc::ENOMEM), error.to_string())
        })?;
        let registry = self.poller.registry(tag::BELL);
        let Some(client) = self.clients.get_mut(key) else {
            return Err((libc::EBADF, "gone".into()));
        };
        registry
            .add(side.bell(), ready_key(key, client.serial), Interest::READ)
            .map_err(|error| (libc::ENOMEM, format!("epoll: {error}")))?;
        let id = HandleId {
            client: key,
            serial: client.serial,
        };
        let pid = client.credentials.pid;
        let mut handle = Handle::new(id, open.parent, (pid, uid), side);
        handle.arm();
        client.handle = Some(handle);
        debug!(
            "process {pid} opened a handle{}",
            if open.parent { " as parent" } else { "" }
        );
        Ok(Reply::Opened {
            area,
            version: env!("CARGO_PKG_VERSION").into(),
        })
    }

    fn set_params(&mut self, params: ipc::Params) -> Result<Reply, (i32, String)> {
        params
            .check()
            .map_err(|error| (libc::EINVAL, error.to_string()))?;
        let smbd = smbd_params(&params);
        smbd.validate()
            .map_err(|error| (libc::EINVAL, error.to_string()))?;
        let answer = if params.answer_negotiate {
            let config = router_config(&params);
            config
                .check()
                .map_err(|error| (libc::EINVAL, error.to_string()))?;
            Some(config)
        } else {
            None
        };
        self.params = Some(ServerParams {
            smbd,
            answer,
            wire: params,
        });
        Ok(Reply::Ok)
    }

    fn set_session(&mut self, key: usize, spec: &ipc::SessionSpec) -> Result<Reply, (i32, String)> {
        spec.check()
            .map_err(|error| (libc::EINVAL, error.to_string()))?;
        let Some(handle) = self.clients.handle_at(key) else {
            return Err((libc::EBADF, "open a handle first".into()));
        };
        let (id, uid) = (handle.id, handle.uid);
        let session = spec
            .session_id
            .map(|session| self.by_session.get(&(uid, session)).copied());
        let guid = spec
            .client_guid
            .map(|guid| self.by_guid.get(&(uid, guid)).copied());
        for registered in [session, guid].into_iter().flatten() {
            match registered {
                Some(other) if other != id => {
                    return Err((libc::EEXIST, "another handle has registered it".into()));
                }
                None if spec.remove => {
                    return Err((libc::ENOENT, "it is not registered".into()));
                }
                _ => {}
            }
        }
        let new = usize::from(session == Some(None)) + usize::from(guid == Some(None));
        if handle.session_ids.len() + handle.client_guids.len() + new > MAX_REGISTRATIONS {
            let text = format!("a handle registers at most {MAX_REGISTRATIONS} ids");
            return Err((libc::ENOSPC, text));
        }
        if let Some(session) = spec.session_id {
            handle.session_ids.retain(|&one| one != session);
            if spec.remove {
                self.by_session.remove(&(uid, session));
            } else {
                handle.session_ids.push(session);
                self.by_session.insert((uid, session), id);
            }
        }
        if let Some(guid) = spec.client_guid {
            handle.client_guids.retain(|&one| one != guid);
            if spec.remove {
                self.by_guid.remove(&(uid, guid));
            } else {
                handle.client_guids.push(guid);
                self.by_guid.insert((uid, guid), id);
            }
        }
        Ok(Reply::Ok)
    }

    fn register(
        &mut self,
        client: usize,
        conn: usize,
        offset: u64,
        length: u32,
        access: Access,
    ) -> Result<Reply, (i32, String)> {
        if length == 0 || !(access.remote_read || access.remote_write) {
            return Err((
                libc::EINVAL,
                "nothing to register: no bytes, or no access".into(),
            ));
        }
        let Some(handle) = self.clients.handle_at(client) else {
            return Err((libc::EBADF, "open a handle first".into()));
        };
        let memory = handle
            .side
            .rdma_slice(offset, length.into())
            .map_err(|error| (libc::EINVAL, error.to_string()))?;
        let conn = &self.conns[conn];
        match self.fabrics[conn.fabric].register(conn.qp, memory, access) {
            Ok(key) => Ok(Reply::Registered(Descriptor {
                offset: key.offset,
                token: key.token,
                length,
            })),
            Err(FabricError::NoResources(what)) => {
                Err((libc::ENOSPC, format!("too many registrations: {what}")))
            }
            Err(error) => Err((libc::ENOTCONN, error.to_string())),
        }
    }

    /// A process is gone: its handle ends, its connections with it.
    pub(super) fn remove_client(&mut self, now: Instant, key: usize, why: &str) {
        // What it has submitted still leaves, unless it lied.
        let honest = self
            .clients
            .handle_at(key)
            .is_some_and(|handle| handle.broken.is_none());
        if honest {
            self.take_all(now, key);
        }
        let Some(mut client) = self.clients.remove(key) else {
            return;
        };
        let pid = client.credentials.pid;
        self.active.retain(|&active| active != key);
        let Some(handle) = client.handle.take() else {
            return;
        };
        let id = handle.id;
        if let Some(error) = &handle.broken {
            warn!("process {pid} loses its handle: {error}");
        } else {
            debug!("process {pid} {why}");
        }
        for session in &handle.session_ids {
            self.by_session.remove(&(handle.uid, *session));
        }
        for guid in &handle.client_guids {
            self.by_guid.remove(&(handle.uid, *guid));
        }
        let (gone, kept): (Vec<_>, Vec<_>) = self
            .listeners
            .drain(..)
            .partition(|listener| listener.owner == Some(id));
        self.listeners = kept;
        for listener in gone {
            info!("no longer listening on {}", listener.address);
            self.fabrics[listener.fabric].close_listener(listener.key);
        }
        if handle.parent {
            info!("the parent process {pid} is gone: new connections are refused");
            self.params = None;
        }
        let conns: Vec<usize> = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.owner.is_some_and(|owner| owner.handle == id))
            .map(|(conn, _)| conn)
            .collect();
        for conn in conns {
            self.orphan(now, conn);
        }
    }
}

/// Processes of users who may ask for nothing, at once.
const MAX_STRANGERS: usize = 64;
/// Session ids and ClientGuids that one handle may register.
const MAX_REGISTRATIONS: usize = 65536;

/// The MS-SMBD machine's parameters from those of the control socket, which were checked.
pub(super) fn smbd_params(params: &ipc::Params) -> proto::Params {
    let clip = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    proto::Params {
        receive_credit_max: clip(params.receive_credit_max),
        send_credit_target: clip(params.send_credit_max),
        max_send_size: params.max_send_size,
        max_receive_size: params.max_receive_size,
        max_fragmented_size: params.max_fragment_size,
        max_read_write_size: params.max_read_write_size,
        keepalive_interval: Duration::from_millis(params.keepalive_interval_msec.into()),
        ..proto::Params::default()
    }
}

fn router_config(params: &ipc::Params) -> router::ServerConfig {
    let dialect = |value: u16| match value {
        0x0300 => router::Dialect::Smb300,
        0x0302 => router::Dialect::Smb302,
        _ => router::Dialect::Smb311,
    };
    router::ServerConfig {
        guid: params.server_guid,
        security_blob: params.security_blob.clone(),
        security_mode: params.security_mode,
        capabilities: params.capabilities,
        max_transact_size: params.max_transact_size,
        max_read_size: params.max_read_size,
        max_write_size: params.max_write_size,
        min_dialect: dialect(params.min_dialect),
        max_dialect: dialect(params.max_dialect),
        ciphers: if params.capabilities & router::flags::CAP_ENCRYPTION != 0 {
            router::Cipher::ALL.to_vec()
        } else {
            Vec::new()
        },
        signing_algorithms: router::SigningAlgorithm::ALL.to_vec(),
    }
}

/// The errno and text for a fabric's refusal.
fn fabric_errno(what: &str, address: &std::net::SocketAddr, error: FabricError) -> (i32, String) {
    let errno = match &error {
        FabricError::Os(_, error) => error.raw_os_error().unwrap_or(libc::EIO),
        FabricError::NoResources(_) => libc::ENOSPC,
        _ => libc::EINVAL,
    };
    let cure = match errno {
        libc::EADDRINUSE => ": stop the program that has this port, or take another one",
        libc::EADDRNOTAVAIL => ": no interface of this host has this address",
        libc::EACCES => ": ports below 1024 need CAP_NET_BIND_SERVICE",
        _ => "",
    };
    (errno, format!("cannot {what} {address}: {error}{cure}"))
}
