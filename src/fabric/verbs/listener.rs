#![forbid(unsafe_code)]
//! Listeners: one identifier for each address of a device.
//!
//! A wildcard address is not handed to rdma_cm: it would listen on all devices, also on those that
//! the port is not meant for, and on an iWARP device that takes the TCP port of the host (445 would
//! be lost for smbd). Here the host's addresses are asked one by one which device they have.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use log::{debug, info, warn};

use super::sys::{CmId, Device, DeviceId, EventChannel, Transport};
use crate::fabric::{DeviceKind, FabricError, LocalAddress};

/// An address that is listened on.
struct Endpoint {
    address: SocketAddr,
    device: Device,
    id: CmId,
}

impl Endpoint {
    /// Whether the address is still that of the device. An identifier that listens belongs to one
    /// device, and nobody tells it that its address has gone to another one. What cannot be found
    /// out is left alone.
    fn has_its_address(&self, channel: &EventChannel) -> bool {
        let mut address = self.address;
        address.set_port(0);
        let found = channel.id(0).and_then(|id| {
            id.bind(address)?;
            Ok(id.device())
        });
        match found {
            Ok(device) => device == self.id.device(),
            Err(error) => !is_no_device(&error),
        }
    }
}

/// A listener.
pub(super) struct Listener {
    key: u64,
    address: SocketAddr,
    kind: DeviceKind,
    backlog: i32,
    endpoints: Vec<Endpoint>,
    /// Addresses that could not be listened on, with the reason, which was told.
    failed: HashMap<SocketAddr, String>,
    /// It was told that there is nothing to listen on.
    is_waiting_told: bool,
}

impl Listener {
    pub(super) fn new(key: u64, address: SocketAddr, kind: DeviceKind, backlog: i32) -> Self {
        Self {
            key,
            address,
            kind,
            backlog,
            endpoints: Vec::new(),
            failed: HashMap::new(),
            is_waiting_told: false,
        }
    }

    /// Listens on the one address asked for. Returns the address taken.
    pub(super) fn open(&mut self, channel: &EventChannel) -> Result<SocketAddr, FabricError> {
        let endpoint = self.endpoint(channel, self.address)?;
        self.address = endpoint.address;
        self.endpoints.push(endpoint);
        Ok(self.address)
    }

    /// Starts to listen on addresses that have come, and stops on those that have gone, or moved to
    /// another device.
    pub(super) fn scan(&mut self, channel: &EventChannel) {
        let wanted = self.wanted();
        self.failed.retain(|address, _| wanted.contains(address));
        self.endpoints.retain(|endpoint| {
            let stays = wanted.contains(&endpoint.address) && endpoint.has_its_address(channel);
            if !stays {
                info!("verbs: not listening on {} any more", endpoint.address);
            }
            stays
        });
        for address in wanted {
            if self.endpoints.iter().any(|it| it.address == address) {
                continue;
            }
            match self.endpoint(channel, address) {
                Ok(endpoint) => {
                    info!("verbs: listening on {address} ({})", endpoint.device.name);
                    self.failed.remove(&address);
                    self.is_waiting_told = false;
                    self.endpoints.push(endpoint);
                }
                Err(error) => self.not_listening(address, &error),
            }
        }
        if self.endpoints.is_empty() {
            self.tell_waiting();
        }
    }

    /// There are no devices any more.
    pub(super) fn drop_endpoints(&mut self) {
        self.endpoints.clear();
    }

    /// A device went away: its identifiers have to go.
    pub(super) fn drop_device(&mut self, device: DeviceId) {
        self.endpoints.retain(|it| it.id.device() != Some(device));
    }

    /// The identifiers that listen.
    pub(super) fn ids(&self) -> impl Iterator<Item = &CmId> {
        self.endpoints.iter().map(|endpoint| &endpoint.id)
    }

    /// The device behind an address that this listener takes connections on.
    pub(super) fn local_address(&self, address: IpAddr) -> Result<LocalAddress, String> {
        let endpoint = self.endpoints.iter().find(|it| it.address.ip() == address);
        if let Some(endpoint) = endpoint {
            return Ok(local_address(&endpoint.device));
        }
        let failed = self.failed.iter().find(|(it, _)| it.ip() == address);
        Err(failed.map_or_else(
            || format!("no RDMA device has {address}"),
            |(_, why)| why.clone(),
        ))
    }

    /// The addresses to listen on now.
    fn wanted(&self) -> Vec<SocketAddr> {
        if !self.address.ip().is_unspecified() {
            return vec![self.address];
        }
        let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
        let addresses = interfaces.iter().filter(|it| !it.is_loopback());
        let addresses = addresses.filter_map(|interface| {
            let port = self.address.port();
            match interface.ip() {
                IpAddr::V4(ip) if self.address.is_ipv4() => Some(SocketAddr::new(ip.into(), port)),
                IpAddr::V6(ip) if self.address.is_ipv6() => {
                    let is_local = ip.is_unicast_link_local();
                    let index = interface.index.filter(|_| is_local).unwrap_or(0);
                    Some(SocketAddrV6::new(ip, port, 0, index).into())
                }
                _ => None,
            }
        });
        let mut addresses: Vec<_> = addresses.collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    fn endpoint(
        &self,
        channel: &EventChannel,
        address: SocketAddr,
    ) -> Result<Endpoint, FabricError> {
        let os = |what: String| move |error| FabricError::Os(what, error);
        let id = channel
            .id(self.key)
            .map_err(os("rdma_create_id".to_owned()))?;
        bind(&id, address)?;
        let device = match Device::of(&id) {
            Some(device) => device.map_err(os(format!("query the device of {address}")))?,
            None => return Err(no_device(address)),
        };
        if !fits(self.kind, device.transport) {
            return Err(FabricError::Invalid(format!(
                "{} of {} is {}; this listener is for {}",
                device.name,
                address.ip(),
                transport_name(device.transport),
                kind_name(self.kind)
            )));
        }
        id.listen(self.backlog)
            .map_err(|error| FabricError::Os(format!("rdma_listen on {address}"), error))?;
        let address = id.local().unwrap_or(address);
        Ok(Endpoint {
            address,
            device,
            id,
        })
    }

    /// Most addresses of a host have no device, which is nothing to tell.
    fn not_listening(&mut self, address: SocketAddr, error: &FabricError) {
        let text = error.to_string();
        let is_wildcard = self.address.ip().is_unspecified();
        // No device, or one of the other kind.
        let is_expected = is_wildcard
            && match error {
                FabricError::Invalid(_) => true,
                FabricError::Os(_, error) => error.raw_os_error() == Some(libc::EADDRNOTAVAIL),
                _ => false,
            };
        if self.failed.get(&address) != Some(&text) {
            if is_expected {
                debug!("verbs: {text}");
            } else if !is_wildcard {
                info!("verbs: not listening on {address}: {text}");
                self.is_waiting_told = true;
            } else {
                warn!("verbs: not listening on {address}: {text}");
            }
            self.failed.insert(address, text);
        }
    }

    fn tell_waiting(&mut self) {
        if !std::mem::replace(&mut self.is_waiting_told, true) {
            let (kind, address) = (kind_name(self.kind), self.address);
            info!("verbs: the listener on {address} waits for {kind} with an address");
        }
    }
}

/// Binds an identifier to an address of a device.
fn bind(id: &CmId, address: SocketAddr) -> Result<(), FabricError> {
    id.bind(address)
        .map_err(|error| match error.raw_os_error() {
            _ if is_no_device(&error) => no_device(address),
            Some(libc::EACCES) => FabricError::Os(
                format!("{address}: ports below 1024 need CAP_NET_BIND_SERVICE"),
                error,
            ),
            _ => FabricError::Os(format!("rdma_bind_addr to {address}"), error),
        })
}

/// What the kernel says when no device has the address.
fn is_no_device(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENODEV | libc::EADDRNOTAVAIL)
    )
}

fn no_device(address: SocketAddr) -> FabricError {
    let text = format!(
        "no RDMA device has the address {}: `rdma link` lists devices, use an address of their \
         network interfaces",
        address.ip()
    );
    FabricError::Os(text, io::Error::from_raw_os_error(libc::EADDRNOTAVAIL))
}

/// Which device an address has, apart from a listener.
pub(super) fn probe(channel: &EventChannel, address: IpAddr) -> Result<LocalAddress, String> {
    let text = |error: io::Error| error.to_string();
    let id = channel.id(0).map_err(text)?;
    bind(&id, SocketAddr::new(address, 0)).map_err(|error| error.to_string())?;
    match Device::of(&id) {
        Some(device) => Ok(local_address(&device.map_err(text)?)),
        None => Err(no_device(SocketAddr::new(address, 0)).to_string()),
    }
}

fn local_address(device: &Device) -> LocalAddress {
    LocalAddress {
        device: Some(device.name.clone()),
        link_speed: device.link_speed,
        kind: Some(match device.transport {
            Transport::Infiniband => DeviceKind::Infiniband,
            Transport::Iwarp => DeviceKind::Iwarp,
        }),
    }
}

fn fits(kind: DeviceKind, transport: Transport) -> bool {
    match kind {
        DeviceKind::Any => true,
        DeviceKind::Infiniband => transport == Transport::Infiniband,
        DeviceKind::Iwarp => transport == Transport::Iwarp,
    }
}

fn transport_name(transport: Transport) -> &'static str {
    match transport {
        Transport::Infiniband => "InfiniBand or RoCE",
        Transport::Iwarp => "iWARP",
    }
}

fn kind_name(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Any => "any RDMA device",
        DeviceKind::Infiniband => "an InfiniBand or RoCE device",
        DeviceKind::Iwarp => "an iWARP device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_for_their_devices() {
        assert!(fits(DeviceKind::Any, Transport::Iwarp));
        assert!(fits(DeviceKind::Infiniband, Transport::Infiniband));
        assert!(!fits(DeviceKind::Infiniband, Transport::Iwarp));
        assert!(!fits(DeviceKind::Iwarp, Transport::Infiniband));
    }

    #[test]
    fn a_wildcard_names_addresses_of_its_family() {
        let any = Listener::new(1, "0.0.0.0:445".parse().unwrap(), DeviceKind::Any, 1);
        for address in any.wanted() {
            assert!(address.is_ipv4() && address.port() == 445);
            assert!(!address.ip().is_loopback());
        }
        let one = "192.0.2.1:445".parse().unwrap();
        assert_eq!(Listener::new(1, one, DeviceKind::Any, 1).wanted(), [one]);
    }

    #[test]
    fn an_address_without_a_device_is_named() {
        let listener = Listener::new(1, "0.0.0.0:445".parse().unwrap(), DeviceKind::Any, 1);
        let why = listener.local_address("192.0.2.1".parse().unwrap());
        assert!(why.unwrap_err().contains("192.0.2.1"));
    }
}
