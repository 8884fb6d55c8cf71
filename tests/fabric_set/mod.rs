//! Tests of what every fabric has to do, and what they need.
#![allow(dead_code)]

pub(crate) mod cases;
pub(crate) mod world;

#[cfg(feature = "verbs")]
use std::net::IpAddr;

/// The RDMA devices of this machine, each with an address of its own.
#[cfg(feature = "verbs")]
pub(crate) fn devices() -> Vec<(String, IpAddr)> {
    use smbdirect::fabric::verbs::{VerbsConfig, VerbsFabric};
    use smbdirect::fabric::Fabric;
    use smbdirect::sys::Poller;

    let poller = Poller::new().unwrap();
    let fabric = VerbsFabric::new(poller.registry(0), VerbsConfig::default()).unwrap();
    let mut devices: Vec<(String, IpAddr)> = Vec::new();
    for interface in if_addrs::get_if_addrs().unwrap() {
        let address = interface.ip();
        let is_odd = matches!(address, IpAddr::V6(ip) if ip.is_unicast_link_local());
        if address.is_loopback() || is_odd {
            continue;
        }
        let found = fabric.local_address(None, address);
        if let Some(device) = found.ok().and_then(|local| local.device) {
            if devices.iter().all(|(known, _)| *known != device) {
                devices.push((device, address));
            }
        }
    }
    devices
}
