#![forbid(unsafe_code)]
//! A handle: opening, closing, losing the engine and finding it again.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::epoll;

use super::connection::Connection;
use super::error::ClientError;
use super::events::Ready;
use super::operations::Operations;
use super::send_area::SendArea;
use crate::ipc::{self, CallError, Caller, ListenSpec, OpenRequest, Params, Reply, Request};
use crate::mem::Region;
use crate::ring::{self, AreaOptions, ClientSide, Layout, RingFor};
use crate::sys::{secure_env, ForkGuard, SelfEvent};

/// How to open a handle.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// The engine's control socket.
    pub socket: PathBuf,
    /// The handle of the server's parent process.
    pub parent: bool,
    /// The shared area. receive_slots 0 leaves the choice to the engine.
    pub area: AreaOptions,
    /// How long a control call waits for the engine.
    pub timeout: Duration,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            socket: default_socket(),
            parent: false,
            area: AreaOptions {
                receive_slots: 0,
                ..AreaOptions::default()
            },
            timeout: Duration::from_secs(5),
        }
    }
}

/// The control socket that SMBDIRECT_SOCKET names, else [`ipc::DEFAULT_SOCKET`].
pub fn default_socket() -> PathBuf {
    secure_env("SMBDIRECT_SOCKET")
        .filter(|path| !path.is_empty())
        .map_or_else(|| ipc::DEFAULT_SOCKET.into(), PathBuf::from)
}

/// The shared area, for its user.
#[derive(Debug, Clone, Copy)]
pub struct MemInfo<'a> {
    /// The memory's file descriptor.
    pub fd: BorrowedFd<'a>,
    /// Its layout.
    pub layout: &'a Layout,
    /// Where it is mapped here.
    pub region: &'a Arc<Region>,
}

/// What a handle has done since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Connections attached now.
    pub connections: u32,
    /// Calls that took events.
    pub get_events_calls: u64,
    /// Events taken.
    pub events: u64,
    /// System calls of the data path.
    pub syscalls: u64,
    /// How many of them woke the engine.
    pub doorbells: u64,
    /// PDUs copied from receive slots only.
    pub pdus_direct: u64,
    /// PDUs gathered on the heap first.
    pub pdus_reassembled: u64,
    /// Refusals for want of room.
    pub back_pressure: u64,
}

/// A handle on an engine. Used by one thread at a time, in the process that opened it.
#[derive(Debug)]
pub struct Handle {
    opener: ForkGuard,
    options: OpenOptions,
    epoll: OwnedFd,
    /// Keeps the epoll set readable for events that the engine has not rung for.
    pub(super) local_event: SelfEvent,
    pub(super) link: Link,
    /// The engine is gone; [`Handle::reconnect`] ends that.
    pub(super) is_lost: bool,
    /// Lazy operations may complete without waking the process.
    pub(super) is_lazy: bool,
    pub(super) replay: Replay,
    pub(super) statistics: Statistics,
}

/// What ends with the engine.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) caller: Caller,
    pub(super) ring: ClientSide,
    pub(super) send_area: SendArea,
    pub(super) operations: Operations,
    pub(super) connections: HashMap<u64, Connection>,
    /// Events to be taken.
    pub(super) ready: VecDeque<Ready>,
    /// Receive slots to be returned.
    pub(super) returned: Vec<u32>,
    /// Somebody was told to wait for so many pages of the send area (0: only for an operation).
    pub(super) room_wanted: Option<u32>,
}

/// What [`Handle::reconnect`] repeats.
#[derive(Debug, Default)]
pub(super) struct Replay {
    pub(super) params: Option<Params>,
    pub(super) session_ids: BTreeSet<u64>,
    pub(super) client_guids: BTreeSet<[u8; 16]>,
    pub(super) listeners: Vec<ListenSpec>,
}

impl Handle {
    /// Connects to the engine and maps the shared area.
    pub fn open(options: OpenOptions) -> Result<Self, ClientError> {
        let os = |what: &'static str| move |error: std::io::Error| ClientError::os(what, &error);
        let opener = ForkGuard::new().map_err(os("cannot make a wipe-on-fork page"))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|error| ClientError::os("cannot make an epoll set", &error.into()))?;
        let local_event = SelfEvent::new().map_err(os("cannot make an eventfd"))?;
        add(&epoll, local_event.as_fd())?;
        let link = Link::open(&options)?;
        add(&epoll, link.ring.bell())?;
        Ok(Self {
            opener,
            options,
            epoll,
            local_event,
            link,
            is_lost: false,
            is_lazy: true,
            replay: Replay::default(),
            statistics: Statistics::default(),
        })
    }

    /// Ends the handle in good order: when it returns, the engine has dropped it. Only dropping the
    /// handle is sensible afterwards (which alone also ends it, but without waiting).
    pub fn close(&mut self) -> Result<(), ClientError> {
        self.check_opener()?;
        // An engine that does not answer sees the end of the socket.
        if !self.is_lost {
            let _ = self.link.caller.call(&Request::Close, self.options.timeout);
        }
        self.link.caller.socket().shutdown();
        Ok(())
    }

    /// Whether this process is the one that opened the handle.
    pub fn is_opener(&self) -> bool {
        self.opener.is_opener()
    }

    /// Connects again when the engine was lost, and repeats parameters, sessions and listeners.
    pub fn reconnect(&mut self) -> Result<(), ClientError> {
        self.check_opener()?;
        if !self.is_lost {
            return Err(ClientError::new(
                libc::EALREADY,
                "the handle has its engine",
            ));
        }
        if !self.link.ready.is_empty() {
            return Err(ClientError::new(
                libc::EBUSY,
                "events of the lost engine are left: take them with smbd_get_events",
            ));
        }
        let mut link = Link::open(&self.options)?;
        self.replay.run(&mut link.caller, self.options.timeout)?;
        add(&self.epoll, link.ring.bell())?;
        self.link = link;
        self.is_lost = false;
        log::info!("connected again to {}", self.options.socket.display());
        Ok(())
    }

    /// The one file descriptor to wait on, readable (level) while events are outstanding.
    pub fn fd(&self) -> Result<BorrowedFd<'_>, ClientError> {
        self.check_opener()?;
        Ok(self.epoll.as_fd())
    }

    /// The shared area.
    pub fn meminfo(&self) -> Result<MemInfo<'_>, ClientError> {
        self.check_opener()?;
        Ok(MemInfo {
            fd: self.link.ring.memfd(),
            layout: self.link.ring.layout(),
            region: self.link.ring.region(),
        })
    }

    /// What the handle has done so far.
    pub fn statistics(&self) -> Result<Statistics, ClientError> {
        self.check_opener()?;
        let attached = self.link.connections.values();
        let attached = attached.filter(|c| c.is_attached && !c.has_ended).count();
        Ok(Statistics {
            connections: u32::try_from(attached).unwrap_or(u32::MAX),
            ..self.statistics
        })
    }

    /// Refuses calls in forked children.
    pub(super) fn check_opener(&self) -> Result<(), ClientError> {
        if self.opener.is_opener() {
            return Ok(());
        }
        Err(ClientError::new(
            libc::EPERM,
            "another process opened this handle: open one here, and drop this one with \
             smbd_close_after_fork",
        ))
    }

    /// Refuses calls in forked children and without an engine.
    pub(super) fn check_link(&self) -> Result<(), ClientError> {
        self.check_opener()?;
        if self.is_lost {
            return Err(ClientError::new(
                libc::ENOTCONN,
                "the engine is gone: call smbd_reconnect",
            ));
        }
        Ok(())
    }

    /// A connection that has not ended.
    pub(super) fn connection(&mut self, id: u64) -> Result<&mut Connection, ClientError> {
        match self.link.connections.get_mut(&id) {
            Some(connection) if !connection.has_ended => Ok(connection),
            _ => Err(ClientError::new(
                libc::ENOTCONN,
                format!("this handle has no connection {id:#x} (any more)"),
            )),
        }
    }

    /// Asks the engine and waits for its answer.
    pub(super) fn call(&mut self, request: &Request) -> Result<Reply, ClientError> {
        self.check_link()?;
        match self.link.caller.call(request, self.options.timeout) {
            Ok((reply, _)) => Ok(reply),
            Err(error) => {
                if matches!(error, CallError::Gone | CallError::Codec(_)) {
                    self.on_engine_lost(&error.to_string());
                }
                Err(error.into())
            }
        }
    }

    /// Waits no longer for an engine that is gone.
    pub(super) fn forget_bell(&mut self) {
        // It was added when the link was made, and its descriptor is still open.
        let _ = epoll::delete(&self.epoll, self.link.ring.bell());
    }
}

impl Drop for Handle {
    /// In a forked child the opener notices nothing of it.
    fn drop(&mut self) {
        if self.opener.is_opener() {
            self.link.caller.socket().shutdown();
        } else {
            // The area is not mapped here (MADV_DONTFORK). Its addresses may hold something else by
            // now, which must not be unmapped: a reference that is never dropped prevents that. It
            // is kept where a leak checker sees it.
            let region = self.link.ring.region().clone();
            match INHERITED.try_lock() {
                Ok(mut inherited) => inherited.push(region),
                Err(_) => std::mem::forget(region),
            }
        }
    }
}

impl Link {
    /// Opens the handle at the engine.
    fn open(options: &OpenOptions) -> Result<Self, ClientError> {
        let chosen = AreaOptions {
            receive_slots: options.area.receive_slots.max(MIN_RECEIVE_SLOTS),
            ..options.area
        };
        let checked = if options.area.receive_slots == 0 {
            &chosen
        } else {
            &options.area
        };
        Layout::new(checked)?;
        let path = &options.socket;
        let mut caller = Caller::connect(path, options.timeout).map_err(|error| {
            let hint = match error.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
                    ": is `smbdirect engine` running, with this --socket?"
                }
                std::io::ErrorKind::PermissionDenied => ": this user may not reach the engine",
                _ => "",
            };
            let what = format!("cannot connect to the engine at {}", path.display());
            let error = ClientError::os(what, &error);
            ClientError::new(error.errno(), format!("{error}{hint}"))
        })?;
        let request = Request::Open(OpenRequest {
            abi: ring::ABI,
            version: env!("CARGO_PKG_VERSION").into(),
            parent: options.parent,
            area: options.area,
        });
        let (reply, fds) = caller.call(&request, options.timeout)?;
        let Reply::Opened { area, version } = reply else {
            return Err(unexpected(&reply));
        };
        let fits = AreaOptions {
            receive_slots: if options.area.receive_slots == 0 {
                0
            } else {
                area.receive_slots
            },
            ..area
        };
        let Ok([memfd, bell]) = <[OwnedFd; 2]>::try_from(fds) else {
            return Err(ClientError::new(
                libc::EPROTO,
                "the engine sent no memory: use library and engine of one version",
            ));
        };
        if fits != options.area {
            return Err(ClientError::new(
                libc::EPROTO,
                format!("asked for {:?}, the engine made {area:?}", options.area),
            ));
        }
        let mut ring = ClientSide::new(&area, memfd, bell)?;
        ring.arm(RingFor::All)?;
        let layout = ring.layout();
        let pages = u32::try_from(layout.send.len / Layout::PAGE).unwrap_or(u32::MAX);
        log::debug!("opened a handle at {} (engine {version})", path.display());
        Ok(Self {
            caller,
            send_area: SendArea::new(pages),
            operations: Operations::new(layout.max_operations()),
            ring,
            connections: HashMap::new(),
            ready: VecDeque::new(),
            returned: Vec::new(),
            room_wanted: None,
        })
    }
}

impl Replay {
    fn run(&self, caller: &mut Caller, timeout: Duration) -> Result<(), ClientError> {
        let params = self.params.iter().cloned().map(Request::SetParams);
        let ids = self.session_ids.iter().map(|id| {
            Request::SetSession(ipc::SessionSpec {
                session_id: Some(*id),
                client_guid: None,
                remove: false,
            })
        });
        let guids = self.client_guids.iter().map(|guid| {
            Request::SetSession(ipc::SessionSpec {
                session_id: None,
                client_guid: Some(*guid),
                remove: false,
            })
        });
        let listeners = self.listeners.iter().cloned().map(Request::Listen);
        for request in params.chain(ids).chain(guids).chain(listeners) {
            caller.call(&request, timeout)?;
        }
        Ok(())
    }
}

/// The engine's answer does not belong to the request.
pub(super) fn unexpected(reply: &Reply) -> ClientError {
    ClientError::new(
        libc::EPROTO,
        format!(
            "the engine gave a wrong answer ({reply:?}): use library and engine of one version"
        ),
    )
}

fn add(epoll: &OwnedFd, fd: BorrowedFd<'_>) -> Result<(), ClientError> {
    let data = epoll::EventData::new_u64(0);
    epoll::add(epoll, fd, data, epoll::EventFlags::IN)
        .map_err(|error| ClientError::os("cannot add to the epoll set", &error.into()))
}

/// Areas of handles that a parent process had opened; not mapped here.
static INHERITED: Mutex<Vec<Arc<Region>>> = Mutex::new(Vec::new());

/// Stands for the engine's choice when the other options are checked.
const MIN_RECEIVE_SLOTS: u32 = 16;
