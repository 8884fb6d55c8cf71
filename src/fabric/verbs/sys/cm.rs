//! rdma_cm: the event channel, identifiers, events.

use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::time::Duration;

use libc::{c_int, c_void};

use super::ffi::{self, Functions};
use super::library;
use super::watch::DeviceId;

/// Where all events of connection management come.
pub(in crate::fabric::verbs) struct EventChannel(Rc<Channel>);

struct Channel {
    raw: NonNull<ffi::rdma_event_channel>,
    functions: &'static Functions,
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: made by rdma_create_event_channel; every identifier on it holds this value, so
        // none is left.
        unsafe { (self.functions.rdma_destroy_event_channel)(self.raw.as_ptr()) };
    }
}

impl AsFd for EventChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel owns this descriptor as long as it lives.
        unsafe { BorrowedFd::borrow_raw(self.0.raw.as_ref().fd) }
    }
}

impl EventChannel {
    /// Opens /dev/infiniband/rdma_cm. The error says what is missing.
    pub(in crate::fabric::verbs) fn open() -> Result<Self, String> {
        let functions = library::functions()?;
        // SAFETY: no arguments; null is an error with errno.
        let raw = unsafe { (functions.rdma_create_event_channel)() };
        let Some(raw) = NonNull::new(raw) else {
            let error = io::Error::last_os_error();
            return Err(match error.raw_os_error() {
                Some(libc::ENODEV | libc::ENOENT) => {
                    "no /dev/infiniband/rdma_cm (kernel module rdma_ucm)".into()
                }
                _ => format!("/dev/infiniband/rdma_cm: {error}"),
            });
        };
        let channel = Self(Rc::new(Channel { raw, functions }));
        rustix::io::ioctl_fionbio(&channel, true)
            .map_err(|error| format!("/dev/infiniband/rdma_cm: {error}"))?;
        Ok(channel)
    }

    /// A new identifier; `key` comes with its events.
    pub(in crate::fabric::verbs) fn id(&self, key: u64) -> io::Result<CmId> {
        let mut raw = ptr::null_mut();
        // SAFETY: channel and out pointer are valid; the context is only a number to us.
        let result = unsafe {
            (self.0.functions.rdma_create_id)(
                self.0.raw.as_ptr(),
                &mut raw,
                key as *mut c_void,
                ffi::RDMA_PS_TCP,
            )
        };
        check(result)?;
        Ok(CmId(Rc::new(Id {
            raw: NonNull::new(raw).ok_or_else(io::Error::last_os_error)?,
            channel: self.0.clone(),
        })))
    }

    /// The next event; `None`: none is there.
    pub(in crate::fabric::verbs) fn next(&self) -> io::Result<Option<CmEvent>> {
        let functions = self.0.functions;
        let mut raw = ptr::null_mut();
        // SAFETY: channel and out pointer are valid; the descriptor does not block.
        let result = unsafe { (functions.rdma_get_cm_event)(self.0.raw.as_ptr(), &mut raw) };
        match check(result) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
        // SAFETY: success gives an event, valid until it is acknowledged below.
        let event = unsafe { &*raw };
        let kind = CmEventKind::from_raw(event.event);
        let is_request = kind == CmEventKind::ConnectRequest;
        let named = if is_request {
            event.listen_id
        } else {
            event.id
        };
        // SAFETY: an event names an identifier that exists: `Id::drop` waits until its events are
        // acknowledged, and no further ones come after it.
        let key = unsafe { (*named).context } as u64;
        let conn = &event.conn;
        let private_data = if conn.private_data.is_null() || !kind.has_params() {
            Vec::new()
        } else {
            let len = usize::from(conn.private_data_len);
            // SAFETY: the event owns that many bytes.
            unsafe { std::slice::from_raw_parts(conn.private_data.cast::<u8>(), len) }.to_vec()
        };
        let request = NonNull::new(event.id).filter(|_| is_request).map(|raw| {
            // The request's identifier is ours from now on.
            CmId(Rc::new(Id {
                raw,
                channel: self.0.clone(),
            }))
        });
        let told = CmEvent {
            kind,
            status: event.status,
            key,
            // SAFETY: as above.
            device: DeviceId::new(unsafe { (*named).verbs }),
            request,
            private_data,
            responder_resources: conn.responder_resources,
            initiator_depth: conn.initiator_depth,
        };
        // SAFETY: acknowledged once; nothing refers to the event any more.
        check(unsafe { (functions.rdma_ack_cm_event)(raw) })?;
        Ok(Some(told))
    }
}

/// What rdma_cm tells (`rdma_get_cm_event(3)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fabric::verbs) enum CmEventKind {
    AddrResolved,
    AddrError,
    RouteResolved,
    RouteError,
    ConnectRequest,
    ConnectResponse,
    ConnectError,
    Unreachable,
    Rejected,
    Established,
    Disconnected,
    DeviceRemoval,
    AddrChange,
    TimewaitExit,
    Other(i32),
}

impl CmEventKind {
    fn from_raw(raw: c_int) -> Self {
        match raw {
            0 => Self::AddrResolved,
            1 => Self::AddrError,
            2 => Self::RouteResolved,
            3 => Self::RouteError,
            4 => Self::ConnectRequest,
            5 => Self::ConnectResponse,
            6 => Self::ConnectError,
            7 => Self::Unreachable,
            8 => Self::Rejected,
            9 => Self::Established,
            10 => Self::Disconnected,
            11 => Self::DeviceRemoval,
            14 => Self::AddrChange,
            15 => Self::TimewaitExit,
            other => Self::Other(other),
        }
    }

    /// Whether the connection parameters of the event mean something.
    fn has_params(self) -> bool {
        matches!(
            self,
            Self::ConnectRequest | Self::ConnectResponse | Self::Rejected | Self::Established
        )
    }
}

/// One event, copied.
pub(in crate::fabric::verbs) struct CmEvent {
    pub(in crate::fabric::verbs) kind: CmEventKind,
    /// 0, a negative errno, or a reason of the transport.
    pub(in crate::fabric::verbs) status: i32,
    /// The key of the identifier; of a connect request: of the listener.
    pub(in crate::fabric::verbs) key: u64,
    /// The device of that identifier.
    pub(in crate::fabric::verbs) device: Option<DeviceId>,
    /// The new identifier of a connect request.
    pub(in crate::fabric::verbs) request: Option<CmId>,
    pub(in crate::fabric::verbs) private_data: Vec<u8>,
    /// Reads the peer would like to have outstanding.
    pub(in crate::fabric::verbs) responder_resources: u8,
    /// Reads the peer serves.
    pub(in crate::fabric::verbs) initiator_depth: u8,
}

/// Parameters of connect and accept.
pub(in crate::fabric::verbs) struct ConnParams<'a> {
    pub(in crate::fabric::verbs) private_data: &'a [u8],
    /// Inbound reads we serve.
    pub(in crate::fabric::verbs) responder_resources: u8,
    /// Outbound reads we would like to have outstanding.
    pub(in crate::fabric::verbs) initiator_depth: u8,
}

impl ConnParams<'_> {
    fn raw(&self) -> ffi::rdma_conn_param {
        ffi::rdma_conn_param {
            private_data: self.private_data.as_ptr().cast(),
            private_data_len: self.private_data.len().min(255) as u8,
            responder_resources: self.responder_resources,
            initiator_depth: self.initiator_depth,
            flow_control: 0,
            // Both as the SMB Direct of Linux has them: credits make sure that a receive is there.
            retry_count: 6,
            rnr_retry_count: 0,
            srq: 0,
            qp_num: 0,
        }
    }
}

/// An identifier of rdma_cm. Clones are the same identifier.
#[derive(Clone)]
pub(in crate::fabric::verbs) struct CmId(pub(super) Rc<Id>);

pub(super) struct Id {
    raw: NonNull<ffi::rdma_cm_id>,
    channel: Rc<Channel>,
}

impl Drop for Id {
    fn drop(&mut self) {
        // SAFETY: the identifier is ours and destroyed once. Its queue pair (`super::queue::Qp`)
        // holds this value, so it is gone. All its events were acknowledged when they were taken,
        // so this does not wait.
        unsafe { (self.functions().rdma_destroy_id)(self.raw.as_ptr()) };
    }
}

impl Id {
    pub(super) fn functions(&self) -> &'static Functions {
        self.channel.functions
    }

    pub(super) fn raw(&self) -> *mut ffi::rdma_cm_id {
        self.raw.as_ptr()
    }

    /// The device's context, once an address is bound to a device; lives as long as `self`.
    pub(super) fn verbs(&self) -> Option<NonNull<ffi::ibv_context>> {
        // SAFETY: the identifier is valid; the library changes this member only in calls that we
        // make from this thread.
        NonNull::new(unsafe { (*self.raw.as_ptr()).verbs })
    }
}

impl CmId {
    /// Another key for the events of this identifier.
    pub(in crate::fabric::verbs) fn set_key(&self, key: u64) {
        // SAFETY: the identifier is valid, and nothing else runs in this thread.
        unsafe { (*self.0.raw()).context = key as *mut c_void };
    }

    pub(in crate::fabric::verbs) fn bind(&self, address: SocketAddr) -> io::Result<()> {
        let mut raw = RawAddress::new(address);
        // SAFETY: identifier and address are valid during the call.
        check(unsafe { (self.0.functions().rdma_bind_addr)(self.0.raw(), raw.pointer()) })
    }

    pub(in crate::fabric::verbs) fn listen(&self, backlog: i32) -> io::Result<()> {
        // SAFETY: the identifier is valid.
        check(unsafe { (self.0.functions().rdma_listen)(self.0.raw(), backlog) })
    }

    /// Starts to look for the way to an address.
    pub(in crate::fabric::verbs) fn resolve_address(
        &self,
        peer: SocketAddr,
        timeout: Duration,
    ) -> io::Result<()> {
        let mut raw = RawAddress::new(peer);
        // SAFETY: identifier and address are valid during the call; no source address is given.
        check(unsafe {
            (self.0.functions().rdma_resolve_addr)(
                self.0.raw(),
                ptr::null_mut(),
                raw.pointer(),
                millis(timeout),
            )
        })
    }

    pub(in crate::fabric::verbs) fn resolve_route(&self, timeout: Duration) -> io::Result<()> {
        // SAFETY: the identifier is valid.
        check(unsafe { (self.0.functions().rdma_resolve_route)(self.0.raw(), millis(timeout)) })
    }

    pub(in crate::fabric::verbs) fn connect(&self, params: &ConnParams<'_>) -> io::Result<()> {
        let mut raw = params.raw();
        // SAFETY: identifier and parameters are valid during the call; the library copies them.
        check(unsafe { (self.0.functions().rdma_connect)(self.0.raw(), &mut raw) })
    }

    pub(in crate::fabric::verbs) fn accept(&self, params: &ConnParams<'_>) -> io::Result<()> {
        let mut raw = params.raw();
        // SAFETY: as for connect.
        check(unsafe { (self.0.functions().rdma_accept)(self.0.raw(), &mut raw) })
    }

    pub(in crate::fabric::verbs) fn reject(&self, private_data: &[u8]) -> io::Result<()> {
        let len = private_data.len().min(255) as u8;
        // SAFETY: identifier and bytes are valid during the call.
        check(unsafe {
            (self.0.functions().rdma_reject)(self.0.raw(), private_data.as_ptr().cast(), len)
        })
    }

    pub(in crate::fabric::verbs) fn disconnect(&self) -> io::Result<()> {
        // SAFETY: the identifier is valid.
        check(unsafe { (self.0.functions().rdma_disconnect)(self.0.raw()) })
    }

    /// Tells that the connection is up, which a message of the peer shows: the last one of the
    /// set-up may come later, or never (rdma_notify(3)). Does nothing on iWARP.
    pub(in crate::fabric::verbs) fn notify_established(&self) -> io::Result<()> {
        // SAFETY: the identifier is valid.
        check(unsafe { (self.0.functions().rdma_notify)(self.0.raw(), ffi::IBV_EVENT_COMM_EST) })
    }

    pub(in crate::fabric::verbs) fn local(&self) -> Option<SocketAddr> {
        // SAFETY: the identifier is valid.
        address_of(unsafe { &(*self.0.raw()).src_addr })
    }

    pub(in crate::fabric::verbs) fn peer(&self) -> Option<SocketAddr> {
        // SAFETY: the identifier is valid.
        address_of(unsafe { &(*self.0.raw()).dst_addr })
    }

    /// The port of the device, counted from 1.
    pub(in crate::fabric::verbs) fn device_port(&self) -> u8 {
        // SAFETY: the identifier is valid.
        unsafe { (*self.0.raw()).port_num }
    }

    /// The device, once there is one.
    pub(in crate::fabric::verbs) fn device(&self) -> Option<DeviceId> {
        DeviceId::new(self.0.verbs()?.as_ptr())
    }

    /// The name of its file in /dev/infiniband.
    pub(in crate::fabric::verbs) fn device_node(&self) -> Option<String> {
        let verbs = self.0.verbs()?;
        // SAFETY: as for the name below.
        let name = unsafe { CStr::from_ptr((*verbs.as_ref().device).dev_name.as_ptr()) };
        Some(name.to_string_lossy().into_owned())
    }

    /// The name of the device, once there is one.
    pub(in crate::fabric::verbs) fn device_name(&self) -> Option<String> {
        let verbs = self.0.verbs()?;
        // SAFETY: context and device live as long as the identifier; the name is an array that
        // ends with a NUL.
        let name = unsafe { CStr::from_ptr((*verbs.as_ref().device).name.as_ptr()) };
        Some(name.to_string_lossy().into_owned())
    }
}

fn millis(time: Duration) -> c_int {
    c_int::try_from(time.as_millis())
        .unwrap_or(c_int::MAX)
        .max(1)
}

pub(super) fn check(result: c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A socket address as C has it.
struct RawAddress(libc::sockaddr_storage);

impl RawAddress {
    fn new(address: SocketAddr) -> Self {
        // SAFETY: all zeros are a valid sockaddr_storage.
        let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let to: *mut libc::sockaddr_storage = &mut storage;
        match address {
            SocketAddr::V4(v4) => {
                let raw = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from(*v4.ip()).to_be(),
                    },
                    sin_zero: [0; 8],
                };
                // SAFETY: a sockaddr_storage has room and alignment for every address.
                unsafe { to.cast::<libc::sockaddr_in>().write(raw) };
            }
            SocketAddr::V6(v6) => {
                let raw = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr {
                        s6_addr: v6.ip().octets(),
                    },
                    sin6_scope_id: v6.scope_id(),
                };
                // SAFETY: as above.
                unsafe { to.cast::<libc::sockaddr_in6>().write(raw) };
            }
        }
        Self(storage)
    }

    fn pointer(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.0).cast()
    }
}

fn address_of(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let from: *const libc::sockaddr_storage = storage;
    match c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says what the bytes are, and there are enough of them.
            let raw = unsafe { &*from.cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let raw = unsafe { &*from.cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            let port = u16::from_be(raw.sin6_port);
            // A mapped address is the IPv4 address to everybody else.
            Some(match ip.to_ipv4_mapped() {
                Some(v4) => SocketAddr::new(IpAddr::V4(v4), port),
                None => SocketAddrV6::new(ip, port, raw.sin6_flowinfo, raw.sin6_scope_id).into(),
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_there_and_back() {
        for text in ["192.0.2.7:445", "[2001:db8::1]:5445", "[fe80::1%3]:445"] {
            let address: SocketAddr = text.parse().unwrap();
            let raw = RawAddress::new(address);
            assert_eq!(address_of(&raw.0), Some(address));
        }
        let mapped = RawAddress::new("[::ffff:192.0.2.7]:445".parse().unwrap());
        assert_eq!(address_of(&mapped.0), "192.0.2.7:445".parse().ok());
    }
}
