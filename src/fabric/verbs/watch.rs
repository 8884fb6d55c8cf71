#![forbid(unsafe_code)]
//! The devices in use: what they tell by themselves, and their removal.
//!
//! For each device there is an identifier of its own, bound to an address of it. It keeps the device
//! open as long as its asynchronous events are read, and is told when the device is removed, also
//! when nobody is connected.
//!
//! A device is removed in one of three ways. Where the driver can take a device from its users, the
//! device tells (`IBV_EVENT_DEVICE_FATAL`), and so does rdma_cm, in any order. Where it cannot (siw
//! and rxe), the kernel takes the device's file away and waits for its users to let go, without a
//! word to them; so it is looked for from time to time.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use log::{debug, info, warn};

use super::conn::Phase;
use super::sys::{AsyncEvent, AsyncEventKind, AsyncEvents, CmId, DeviceId};
use super::{Entry, VerbsFabric};
use crate::fabric::{EndReason, FabricEvent};
use crate::sys::Interest;

/// Where the kernel has the devices that can be used.
const DEVICE_FILES: &str = "/sys/class/infiniband_verbs";

/// Events taken in one turn.
const EVENT_BATCH: usize = 64;

/// A device in use.
pub(super) struct Watch {
    device: DeviceId,
    name: String,
    /// Its file; none: it was not found, so it cannot be missed.
    file: Option<DeviceFile>,
    events: AsyncEvents,
}

impl VerbsFabric {
    /// Watches the device of a connection, unless that was tried already.
    pub(super) fn watch(&mut self, id: &CmId) {
        let is_known = |device| self.watched.contains_key(&device);
        if !id.device().is_some_and(is_known) {
            self.try_to_watch(id);
        }
    }

    /// Watches the device of an identifier, if it is not watched.
    pub(super) fn try_to_watch(&mut self, id: &CmId) {
        let Some(device) = id.device() else {
            return;
        };
        if let Some(Some(_)) = self.watched.get(&device) {
            return;
        }
        let name = id.device_name().unwrap_or_default();
        match self.start_watch(id, device, &name) {
            Ok(key) => {
                self.watched.insert(device, Some(key));
                let rescan = self.now + self.config.rescan;
                self.rescan_at.get_or_insert(rescan);
            }
            Err(error) => {
                // Known from now on, so that a failure is told once.
                if self.watched.insert(device, None).is_none() {
                    warn!("verbs: {name}: its asynchronous events are not read: {error}");
                }
            }
        }
    }

    fn start_watch(&mut self, id: &CmId, device: DeviceId, name: &str) -> std::io::Result<u64> {
        let error = std::io::Error::other;
        let local = id.local().ok_or_else(|| error("no address"))?;
        let channel = self.cm.get().ok_or_else(|| error("no channel"))?;
        let own = channel.id(0)?;
        let mut address = local;
        address.set_port(0);
        own.bind(address)?;
        if own.device() != Some(device) {
            return Err(error("its address has gone to another device"));
        }
        let events = AsyncEvents::new(&own)?;
        let registry = &self.registry;
        let mut added = Ok(());
        let key = self.slots.insert(|key| {
            own.set_key(key);
            added = registry.add(&events, key, Interest::READ);
            Entry::Watch(Watch {
                device,
                name: name.to_owned(),
                file: own.device_node().and_then(|node| DeviceFile::of(&node)),
                events,
            })
        });
        let key = key.ok_or_else(|| error("no place"))?;
        if let Err(error) = added {
            self.slots.remove(key);
            return Err(error);
        }
        debug!("verbs: {name} is in use, from {}", local.ip());
        Ok(key)
    }

    /// Takes what a device has told.
    pub(super) fn take_async_events(&mut self, key: u64, events: &mut Vec<FabricEvent>) {
        for _ in 0..EVENT_BATCH {
            let Some(Entry::Watch(watch)) = self.slots.get(key) else {
                return;
            };
            let (device, name) = (watch.device, watch.name.clone());
            match watch.events.next() {
                Ok(Some(event)) => self.async_event(device, &name, event, events),
                Ok(None) => return,
                Err(error) => {
                    // So it is after a removal.
                    info!("verbs: {name}: ibv_get_async_event: {error}");
                    return self.device_removed(device, events);
                }
            }
        }
    }

    /// The same for the device of a connection.
    pub(super) fn take_async_events_of(&mut self, id: &CmId, events: &mut Vec<FabricEvent>) {
        let key = id.device().and_then(|device| self.watched.get(&device));
        if let Some(&Some(key)) = key {
            self.take_async_events(key, events);
        }
    }

    fn async_event(
        &mut self,
        device: DeviceId,
        name: &str,
        event: AsyncEvent,
        events: &mut Vec<FabricEvent>,
    ) {
        use AsyncEventKind as Kind;
        debug!("verbs: {name}: {event:?}");
        match event.kind {
            Kind::CqError | Kind::QpFatal | Kind::QpRequestError | Kind::QpAccessError => {
                let key = event.key.unwrap_or_default();
                let Some(Entry::Conn(conn)) = self.slots.get_mut(key) else {
                    return;
                };
                // A completion that failed is nearer to the cause.
                let found = conn.poll_all(events);
                let reason = found.unwrap_or_else(|| reason_of(event.kind, name));
                self.end(key, reason, events);
            }
            Kind::CommEstablished => {
                if let Some(Entry::Conn(conn)) = self.slots.get_mut(event.key.unwrap_or_default()) {
                    if conn.phase == Phase::Accepting && !conn.is_notified {
                        conn.notify_established();
                    }
                }
            }
            Kind::DeviceFatal => {
                let why = format!("fatal error of the RDMA device {name}");
                self.leave_device(device, &why, events);
            }
            Kind::PortActive | Kind::PortError | Kind::PortChange => {
                let port = event.port.unwrap_or_default();
                let what = match event.kind {
                    Kind::PortActive => "is up",
                    Kind::PortError => "is down",
                    _ => "has changed",
                };
                info!("verbs: {name}: port {port} {what}");
                // Addresses and routes may have changed with it.
                if self.rescan_at.is_some() {
                    self.rescan_at = Some(self.now);
                }
            }
            Kind::Other(_) => {}
        }
    }

    /// A device was removed: nobody uses it any more, and the system gets it back.
    pub(super) fn device_removed(&mut self, device: DeviceId, events: &mut Vec<FabricEvent>) {
        let watch = self.watched.remove(&device).flatten();
        let watch = watch.and_then(|key| self.slots.remove(key));
        let Some(Entry::Watch(watch)) = watch else {
            return self.leave_device(device, "the RDMA device was removed", events);
        };
        let why = format!("the RDMA device {} was removed", watch.name);
        self.leave_device(device, &why, events);
        // Closing the descriptor would do; an error changes nothing.
        let _ = self.registry.remove(&watch.events);
        if let Err(error) = watch.events.leave() {
            warn!("verbs: {}: cannot be let go of: {error}", watch.name);
        }
    }

    /// The connections of a device end, and nobody listens on it for a while.
    fn leave_device(&mut self, device: DeviceId, why: &str, events: &mut Vec<FabricEvent>) {
        warn!("verbs: {why}");
        let is_of = |id: &CmId| id.device() == Some(device);
        let mut keys = Vec::new();
        for (key, entry) in self.slots.iter_mut() {
            match entry {
                Entry::Listener(listener) => listener.drop_device(device),
                Entry::Conn(conn) if is_of(&conn.id) => keys.push(key),
                Entry::Closing { id, .. } if is_of(id) => keys.push(key),
                _ => {}
            }
        }
        for key in keys {
            self.end(key, EndReason::Transport(why.to_owned()), events);
            // One that has ended by itself says goodbye, which is in vain now.
            self.end_goodbye(key);
        }
        // Not at once: until the kernel is through with it, it can be found, but not used.
        if self.rescan_at.is_some() {
            self.rescan_at = Some(self.now + self.config.rescan);
        }
    }

    /// Looks for devices that the kernel wants back, and gives them. True: there was one.
    pub(super) fn look_for_removed(&mut self, events: &mut Vec<FabricEvent>) -> bool {
        let watches = self.slots.iter().filter_map(|(_, entry)| match entry {
            Entry::Watch(watch) => Some(watch),
            _ => None,
        });
        let gone = watches.filter(|watch| watch.file.as_ref().is_some_and(DeviceFile::is_gone));
        let gone: Vec<DeviceId> = gone.map(|watch| watch.device).collect();
        for &device in &gone {
            self.device_removed(device, events);
        }
        !gone.is_empty()
    }
}

/// What the kernel shows of a device as long as that can be used.
struct DeviceFile {
    path: PathBuf,
    /// Another device may get the same name, and a device another name.
    inode: u64,
}

impl DeviceFile {
    fn of(node: &str) -> Option<Self> {
        Self::at(Path::new(DEVICE_FILES).join(node))
    }

    fn at(path: PathBuf) -> Option<Self> {
        let inode = std::fs::metadata(&path).ok()?.ino();
        Some(Self { path, inode })
    }

    fn is_gone(&self) -> bool {
        match std::fs::metadata(&self.path) {
            Ok(found) => found.ino() != self.inode,
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        }
    }
}

/// Why a connection ends that its device has told of.
fn reason_of(kind: AsyncEventKind, name: &str) -> EndReason {
    match kind {
        AsyncEventKind::QpAccessError => EndReason::Protocol(format!(
            "{name}: the peer tried to reach memory that it may not (IBV_EVENT_QP_ACCESS_ERR)"
        )),
        AsyncEventKind::QpRequestError => EndReason::Protocol(format!(
            "{name}: a request of the peer's that cannot be carried out (IBV_EVENT_QP_REQ_ERR)"
        )),
        AsyncEventKind::CqError => EndReason::Transport(format!(
            "{name}: the completion queue has failed (IBV_EVENT_CQ_ERR)"
        )),
        _ => EndReason::Transport(format!(
            "{name}: the queue pair has failed (IBV_EVENT_QP_FATAL)"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_its_file_is_removed() {
        let root = std::env::temp_dir().join(format!("smbdirect-watch-{}", std::process::id()));
        let node = root.join("uverbs0");
        std::fs::create_dir_all(&node).unwrap();
        let file = DeviceFile::at(node.clone()).expect("is there");
        assert!(!file.is_gone());
        std::fs::rename(&node, root.join("uverbs1")).unwrap();
        assert!(file.is_gone(), "none");
        std::fs::create_dir(&node).unwrap();
        assert!(file.is_gone(), "another one");
        assert!(DeviceFile::at(root.join("uverbs2")).is_none());
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn reasons_name_device_and_event() {
        let reason = reason_of(AsyncEventKind::QpAccessError, "siw0");
        let EndReason::Protocol(text) = reason else {
            panic!("{reason:?}");
        };
        assert!(text.contains("siw0") && text.contains("QP_ACCESS_ERR"));
        let reason = reason_of(AsyncEventKind::CqError, "mlx5_0");
        assert!(matches!(reason, EndReason::Transport(text) if text.contains("CQ_ERR")));
    }
}
