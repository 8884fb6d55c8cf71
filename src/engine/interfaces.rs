//! The addresses of this host, and whether the engine takes SMB Direct connections on them.
//!
//! smbd asks for them to answer FSCTL_QUERY_NETWORK_INTERFACE_INFO ([MS-SMB2] 3.3.5.15.11), and
//! people by `smbdirect interfaces`. An address is RDMA capable when its interface can be used, a
//! listener covers it, the listener's fabric can use it ([`Fabric::local_address`]), and a server
//! takes connections.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use super::Engine;
use crate::fabric::{Fabric, LocalAddress};
use crate::ipc::{self, InterfaceRecord, Reply};
use crate::sys::{NetDevice, NetDevices};

/// One address of one network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HostAddress {
    /// Without the label of an alias (`eth0`, not `eth0:1`).
    name: String,
    address: IpAddr,
    device: NetDevice,
}

/// What the kernel said last. Some drivers ask their firmware for the speed, and clients decide
/// how often the question comes, so the answer is used for a while.
#[derive(Debug, Default)]
pub(super) struct HostAddresses {
    taken: Option<(Instant, Vec<HostAddress>)>,
}

/// A place where the engine listens.
struct Listening<'a> {
    at: SocketAddr,
    fabric: ipc::Fabric,
    /// [`Fabric::local_address`] of its fabric.
    local_address: &'a dyn Fn(IpAddr) -> Result<LocalAddress, String>,
}

/// Whether SMB Direct works on an address.
struct Verdict {
    /// The listener that takes connections, and what its fabric knows.
    yes: Option<(SocketAddr, ipc::Fabric, LocalAddress)>,
    /// Why, or why not; in the latter case with the cure.
    reason: String,
}

impl Engine {
    /// One page of the addresses of this host.
    pub(super) fn interfaces(&mut self, now: Instant, from: u32) -> Result<Reply, (i32, String)> {
        let addresses = self
            .host_addresses
            .get(now)
            .map_err(|error| (libc::EIO, format!("the host's addresses: {error}")))?;
        let ask: Vec<_> = self
            .listeners
            .iter()
            .map(|listener| {
                let fabric: &dyn Fabric = &*self.fabrics[listener.fabric];
                let key = listener.key;
                (
                    listener.address,
                    super::fabrics::kind(listener.fabric),
                    move |address| fabric.local_address(Some(key), address),
                )
            })
            .collect();
        let listeners: Vec<_> = ask
            .iter()
            .map(|(at, fabric, local_address)| Listening {
                at: *at,
                fabric: *fabric,
                local_address,
            })
            .collect();
        let has_server = self.params.is_some();
        let total = addresses.len() as u32;
        let mut bytes = 0;
        let interfaces = addresses
            .iter()
            .skip(from as usize)
            .map(|address| record(address, verdict(address, &listeners, has_server)))
            .take_while(|record| {
                bytes += 64 + record.name.len() + record.reason.len();
                bytes < ipc::PAGE_BYTES
            })
            .collect();
        Ok(Reply::Interfaces { interfaces, total })
    }
}

impl HostAddresses {
    /// All addresses, of interfaces that are down, too; at most a second old.
    fn get(&mut self, now: Instant) -> std::io::Result<&[HostAddress]> {
        let is_fresh = |(taken, _): &(Instant, _)| now.saturating_duration_since(*taken) < MAX_AGE;
        if !self.taken.as_ref().is_some_and(is_fresh) {
            self.taken = Some((now, read_addresses()?));
        }
        Ok(self.taken.as_ref().map_or(&[], |(_, addresses)| addresses))
    }
}

fn read_addresses() -> std::io::Result<Vec<HostAddress>> {
    let kernel = NetDevices::new()?;
    let mut devices: HashMap<String, Option<NetDevice>> = HashMap::new();
    let mut addresses = Vec::new();
    for interface in if_addrs::get_if_addrs()? {
        let address = interface.ip();
        let label = interface.name.as_str();
        let name = label.split_once(':').map_or(label, |(name, _)| name);
        let device = devices
            .entry(name.to_owned())
            .or_insert_with(|| kernel.get(name).ok());
        // Without a device: it went away meanwhile.
        if let Some(device) = *device {
            addresses.push(HostAddress {
                name: name.to_owned(),
                address,
                device,
            });
        }
    }
    addresses.sort_by_key(|a| (a.device.index, a.address));
    addresses.dedup();
    Ok(addresses)
}

fn verdict(address: &HostAddress, listeners: &[Listening], has_server: bool) -> Verdict {
    let no = |reason: &str| Verdict {
        yes: None,
        reason: reason.into(),
    };
    if !address.device.is_up {
        return no("the interface is down");
    }
    if !address.device.is_running {
        return no("the interface has no link");
    }
    if listeners.is_empty() {
        return no("the engine does not listen anywhere: give it --listen, or call smbd_listen");
    }
    let mut refusal = None;
    let mut usable = Vec::new();
    for listening in listeners.iter().filter(|l| takes(l.at, address)) {
        match (listening.local_address)(address.address) {
            Ok(local) => usable.push((listening.at, listening.fabric, local)),
            Err(why) => refusal = Some(format!("{}: {why}", listening.fabric.name())),
        }
    }
    // The first one, but rather one on a port where clients look.
    usable.sort_by_key(|(at, ..)| !CLIENT_PORTS.contains(&at.port()));
    let Some((at, fabric, local)) = usable.into_iter().next() else {
        return no(refusal
            .as_deref()
            .unwrap_or("no listener covers this address: add it with --listen or smbd_listen"));
    };
    if !has_server {
        return no("the engine listens, but no server takes connections: is smbd running?");
    }
    let device = local
        .device
        .as_deref()
        .map_or_else(String::new, |device| format!(" ({device})"));
    let port = if CLIENT_PORTS.contains(&at.port()) {
        ""
    } else {
        "; clients try only 5445 and 445"
    };
    let reason = format!("{} listens on {at}{device}{port}", fabric.name());
    Verdict {
        yes: Some((at, fabric, local)),
        reason,
    }
}

/// Whether a listener takes connections to an address. An IPv6 wildcard here does not take IPv4.
fn takes(listener: SocketAddr, to: &HostAddress) -> bool {
    match (listener, to.address) {
        (SocketAddr::V4(at), IpAddr::V4(address)) => {
            at.ip().is_unspecified() || *at.ip() == address
        }
        (SocketAddr::V6(at), IpAddr::V6(address)) => {
            let is_on_device = [0, to.device.index].contains(&at.scope_id());
            is_on_device && (at.ip().is_unspecified() || *at.ip() == address)
        }
        _ => false,
    }
}

fn record(from: &HostAddress, verdict: Verdict) -> InterfaceRecord {
    let mut capability = 0;
    if from.device.receive_queues > 1 {
        capability |= ipc::INTERFACE_RSS;
    }
    let mut link_speed = from.device.link_speed;
    let mut port = 0;
    let mut fabric = None;
    if let Some((at, its_fabric, local)) = verdict.yes {
        capability |= ipc::INTERFACE_RDMA;
        link_speed = local.link_speed.unwrap_or(link_speed);
        port = at.port();
        fabric = Some(its_fabric);
    }
    let address = match from.address {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => {
            SocketAddrV6::new(ip, port, 0, from.device.index).into()
        }
        ip => SocketAddr::new(ip, port),
    };
    InterfaceRecord {
        if_index: from.device.index,
        capability,
        fabric,
        link_speed,
        address,
        name: from.name.chars().take(15).collect(),
        reason: verdict.reason.chars().take(103).collect(),
    }
}

/// How old an answer may be. Clients ask when a link has just come up, and Linux does not ask again
/// for ten minutes.
const MAX_AGE: Duration = Duration::from_millis(100);

/// Where clients look that have found an address by FSCTL_QUERY_NETWORK_INTERFACE_INFO, which
/// names no port ([MS-SMB2] 2.2.32.5.1): iWARP, and InfiniBand or RoCE ([MS-SMBD] 1.9).
const CLIENT_PORTS: [u16; 2] = [5445, 445];

#[cfg(test)]
mod tests {
    use super::*;

    fn host(address: &str) -> HostAddress {
        HostAddress {
            name: "eth0".into(),
            address: address.parse().unwrap(),
            device: NetDevice {
                index: 2,
                is_up: true,
                is_running: true,
                link_speed: 10_000_000_000,
                receive_queues: 4,
            },
        }
    }

    fn any(_: IpAddr) -> Result<LocalAddress, String> {
        Ok(LocalAddress::default())
    }

    fn judge(host: &HostAddress, listeners: &[&str], has_server: bool) -> Result<String, String> {
        let listeners: Vec<_> = listeners
            .iter()
            .map(|at| Listening {
                at: at.parse().unwrap(),
                fabric: ipc::Fabric::SoftIwarp,
                local_address: &any,
            })
            .collect();
        let verdict = verdict(host, &listeners, has_server);
        match verdict.yes {
            Some((at, ..)) => Ok(at.to_string()),
            None => Err(verdict.reason),
        }
    }

    #[test]
    fn loopback_is_among_the_addresses() {
        let addresses = read_addresses().unwrap();
        let loopback = addresses
            .iter()
            .find(|a| a.address.is_loopback())
            .expect("lo");
        assert!(loopback.device.index > 0);
    }

    #[test]
    fn the_kernel_is_not_asked_each_time() {
        let mut addresses = HostAddresses::default();
        let start = Instant::now();
        assert!(!addresses.get(start).unwrap().is_empty());
        addresses.taken = Some((start, Vec::new()));
        let soon = start + MAX_AGE - Duration::from_millis(1);
        assert!(addresses.get(soon).unwrap().is_empty());
        let later = start + MAX_AGE;
        assert!(!addresses.get(later).unwrap().is_empty());
    }

    #[test]
    fn a_listener_that_covers_the_address_counts() {
        let v4 = host("192.0.2.1");
        for at in ["0.0.0.0:5445", "192.0.2.1:5445", "192.0.2.1:40001"] {
            assert_eq!(judge(&v4, &[at], true), Ok(at.into()));
        }
        let v6 = host("2001:db8::1");
        for at in ["[::]:5445", "[2001:db8::1]:5445"] {
            assert_eq!(judge(&v6, &["0.0.0.0:5445", at], true), Ok(at.into()));
        }
        let link_local = host("fe80::1");
        let at = "[fe80::1%2]:5445";
        assert_eq!(judge(&link_local, &[at], true), Ok(at.into()));
        assert!(judge(&link_local, &["[fe80::1%3]:5445"], true).is_err());
    }

    #[test]
    fn the_reason_names_the_cure() {
        let address = host("192.0.2.1");
        let cases: [(&[&str], bool, &str); 4] = [
            (&[], true, "--listen"),
            (&["192.0.2.2:5445", "[::]:5445"], true, "no listener covers"),
            (&["192.0.2.1:5445"], false, "is smbd running"),
            (&["[::ffff:192.0.2.1]:5445"], true, "no listener covers"),
        ];
        for (listeners, has_server, words) in cases {
            let reason = judge(&address, listeners, has_server).unwrap_err();
            assert!(reason.contains(words), "{listeners:?}: {reason}");
            assert!(reason.len() <= 103, "{reason}");
        }
        let mut down = host("192.0.2.1");
        down.device.is_running = false;
        let reason = judge(&down, &["0.0.0.0:5445"], true).unwrap_err();
        assert!(reason.contains("no link"), "{reason}");
        down.device.is_up = false;
        let reason = judge(&down, &["0.0.0.0:5445"], true).unwrap_err();
        assert!(reason.contains("down"), "{reason}");
    }

    #[test]
    fn a_port_where_clients_look_goes_first() {
        let address = host("192.0.2.1");
        let listeners = ["0.0.0.0:40001", "192.0.2.1:445"];
        assert_eq!(
            judge(&address, &listeners, true),
            Ok("192.0.2.1:445".into())
        );
        let other = Listening {
            at: "0.0.0.0:40001".parse().unwrap(),
            fabric: ipc::Fabric::SoftIwarp,
            local_address: &any,
        };
        let reason = verdict(&address, &[other], true).reason;
        assert!(
            reason.ends_with("clients try only 5445 and 445"),
            "{reason}"
        );
    }

    #[test]
    fn a_fabric_with_devices_decides_and_knows_the_speed() {
        let address = host("192.0.2.1");
        let no_device = |_| Err("no RDMA device has 192.0.2.1".to_owned());
        let device = |_| {
            Ok(LocalAddress {
                device: Some("mlx5_0".into()),
                link_speed: Some(100_000_000_000),
                kind: None,
            })
        };
        let at = "0.0.0.0:445".parse().unwrap();
        let fabric = ipc::Fabric::SoftIwarp;
        let refused = Listening {
            at,
            fabric,
            local_address: &no_device,
        };
        let is_refused = verdict(&address, &[refused], true);
        assert!(is_refused.yes.is_none() && is_refused.reason.contains("no RDMA device"));
        let usable = Listening {
            at,
            fabric,
            local_address: &device,
        };
        let record = record(&address, verdict(&address, &[usable], true));
        assert_eq!(record.link_speed, 100_000_000_000);
        assert_eq!(record.capability, ipc::INTERFACE_RSS | ipc::INTERFACE_RDMA);
        assert_eq!(record.address, "192.0.2.1:445".parse().unwrap());
        assert!(record.reason.contains("(mlx5_0)"), "{}", record.reason);
    }
}
