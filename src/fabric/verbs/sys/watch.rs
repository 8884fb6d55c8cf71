//! Asynchronous events of a device (`ibv_get_async_event(3)`), and how to let go of one.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::rc::Rc;

use libc::c_int;

use super::cm::{CmId, Id};
use super::ffi;
use super::memory::no_device;

/// One opened device. Only good for comparing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::fabric::verbs) struct DeviceId(usize);

impl DeviceId {
    pub(super) fn new(context: *const ffi::ibv_context) -> Option<Self> {
        (!context.is_null()).then_some(Self(context as usize))
    }
}

/// What a device tells by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fabric::verbs) enum AsyncEventKind {
    CqError,
    QpFatal,
    QpRequestError,
    QpAccessError,
    /// The first message has come before the last of the set-up.
    CommEstablished,
    DeviceFatal,
    PortActive,
    PortError,
    /// Addresses, partitions or the subnet manager of a port.
    PortChange,
    Other(i32),
}

impl AsyncEventKind {
    fn from_raw(raw: c_int) -> Self {
        match raw {
            ffi::IBV_EVENT_CQ_ERR => Self::CqError,
            ffi::IBV_EVENT_QP_FATAL => Self::QpFatal,
            ffi::IBV_EVENT_QP_REQ_ERR => Self::QpRequestError,
            ffi::IBV_EVENT_QP_ACCESS_ERR => Self::QpAccessError,
            ffi::IBV_EVENT_COMM_EST => Self::CommEstablished,
            ffi::IBV_EVENT_DEVICE_FATAL => Self::DeviceFatal,
            ffi::IBV_EVENT_PORT_ACTIVE => Self::PortActive,
            ffi::IBV_EVENT_PORT_ERR => Self::PortError,
            ffi::IBV_EVENT_LID_CHANGE
            | ffi::IBV_EVENT_PKEY_CHANGE
            | ffi::IBV_EVENT_SM_CHANGE
            | ffi::IBV_EVENT_CLIENT_REREGISTER
            | ffi::IBV_EVENT_GID_CHANGE => Self::PortChange,
            other => Self::Other(other),
        }
    }

    fn names_qp(raw: c_int) -> bool {
        matches!(
            raw,
            ffi::IBV_EVENT_QP_FATAL
                | ffi::IBV_EVENT_QP_REQ_ERR
                | ffi::IBV_EVENT_QP_ACCESS_ERR
                | ffi::IBV_EVENT_COMM_EST
        )
    }

    fn names_port(self) -> bool {
        matches!(self, Self::PortActive | Self::PortError | Self::PortChange)
    }
}

/// One event, copied.
#[derive(Debug, Clone, Copy)]
pub(in crate::fabric::verbs) struct AsyncEvent {
    pub(in crate::fabric::verbs) kind: AsyncEventKind,
    /// The key of the queue pair or completion queue.
    pub(in crate::fabric::verbs) key: Option<u64>,
    /// The port.
    pub(in crate::fabric::verbs) port: Option<i32>,
}

/// The asynchronous events of one device. There must be one reader of them.
pub(in crate::fabric::verbs) struct AsyncEvents {
    context: NonNull<ffi::ibv_context>,
    /// Keeps the device open.
    id: Rc<Id>,
}

impl AsFd for AsyncEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the context owns the descriptor and lives as long as the identifier.
        unsafe { BorrowedFd::borrow_raw(self.context.as_ref().async_fd) }
    }
}

impl AsyncEvents {
    /// Those of the device that an identifier is bound to.
    pub(in crate::fabric::verbs) fn new(id: &CmId) -> io::Result<Self> {
        let events = Self {
            context: id.0.verbs().ok_or_else(no_device)?,
            id: id.0.clone(),
        };
        rustix::io::ioctl_fionbio(&events, true)?;
        Ok(events)
    }

    /// The next event; `None`: none is there.
    pub(in crate::fabric::verbs) fn next(&self) -> io::Result<Option<AsyncEvent>> {
        let functions = self.id.functions();
        let mut raw = MaybeUninit::<ffi::ibv_async_event>::zeroed();
        // SAFETY: context and out pointer are valid; the descriptor does not block.
        let result =
            unsafe { (functions.ibv_get_async_event)(self.context.as_ptr(), raw.as_mut_ptr()) };
        if result != 0 {
            return match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                error => Err(error),
            };
        }
        // SAFETY: zeroed before, so initialised whatever was written.
        let mut raw = unsafe { raw.assume_init() };
        let kind = AsyncEventKind::from_raw(raw.event_type);
        let element = raw.element;
        let key = if AsyncEventKind::names_qp(raw.event_type) {
            // SAFETY: the event names a queue pair, and one that exists: the kernel drops the
            // events of queues that are destroyed, and only this thread destroys them. Its context
            // is the number that `Qp::new` has set.
            Some(unsafe { (*element.cast::<ffi::ibv_qp>()).qp_context } as u64)
        } else if kind == AsyncEventKind::CqError {
            // SAFETY: the same for a completion queue.
            Some(unsafe { (*element.cast::<ffi::ibv_cq>()).cq_context } as u64)
        } else {
            None
        };
        let port = kind.names_port().then_some(element as usize as i32);
        // SAFETY: acknowledged once, before anything can be destroyed: the library lets destroying
        // a queue wait for this.
        unsafe { (functions.ibv_ack_async_event)(&mut raw) };
        Ok(Some(AsyncEvent { kind, key, port }))
    }

    /// Lets go of a removed device, when nothing of it is used any more.
    ///
    /// librdmacm has it open, and closes it some day, when it looks for another device. Until then
    /// the kernel waits, where a driver cannot take a device from its users (`rdma link del` of siw
    /// and rxe). So its descriptors are turned into ones of /dev/null, which the library closes
    /// then. (`rdma_get_devices` would make it look, but open all devices, too.)
    pub(in crate::fabric::verbs) fn leave(self) -> io::Result<()> {
        // SAFETY: the context lives as long as the identifier.
        let context = unsafe { self.context.as_ref() };
        let files = [context.cmd_fd, context.async_fd];
        let before = node_of(files[0]);
        // The library gives its protection domain back with the last identifier.
        drop(self);
        if before.is_none() || node_of(files[0]) != before {
            return Ok(());
        }
        let null = File::options().read(true).write(true).open("/dev/null")?;
        for file in files {
            // SAFETY: an open descriptor of a library that uses it for system calls only, all of
            // which fail for the removed device anyway.
            if unsafe { libc::dup3(null.as_raw_fd(), file, libc::O_CLOEXEC) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

/// Which file a descriptor is; `None`: it is not open.
fn node_of(fd: c_int) -> Option<(u64, u64, u64)> {
    // SAFETY: all zeros are a valid value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the out pointer is valid; a number that is no descriptor gives an error.
    let result = unsafe { libc::fstat(fd, &mut stat) };
    (result == 0).then_some((stat.st_dev, stat.st_ino, stat.st_rdev))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_known_by_what_they_name() {
        use AsyncEventKind as Kind;
        for raw in 0..20 {
            let kind = Kind::from_raw(raw);
            let named = [
                Kind::names_qp(raw),
                kind == Kind::CqError,
                kind.names_port(),
            ];
            assert!(named.iter().filter(|&&it| it).count() <= 1, "{raw}");
        }
        assert_eq!(Kind::from_raw(4), Kind::CommEstablished);
        assert_eq!(Kind::from_raw(18), Kind::PortChange);
        assert_eq!(Kind::from_raw(16), Kind::Other(16), "last WQE reached");
    }

    #[test]
    fn a_file_is_told_from_others() {
        let null = File::open("/dev/null").unwrap();
        let again = File::open("/dev/null").unwrap();
        let zero = File::open("/dev/zero").unwrap();
        let node = |file: &File| node_of(file.as_raw_fd());
        assert!(node(&null).is_some());
        assert_eq!(node(&null), node(&again));
        assert_ne!(node(&null), node(&zero));
        assert_eq!(node_of(-1), None);
    }
}
