//! The addresses of this host, as an administrator wants to know them.

use std::fs;
use std::net::{IpAddr, SocketAddr};

/// One address of one network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostAddress {
    pub(super) name: String,
    pub(super) index: u32,
    pub(super) address: IpAddr,
    /// Bits per second; 0: unknown.
    pub(super) link_speed: u64,
    /// More than one receive queue.
    pub(super) rss: bool,
}

/// All addresses of interfaces that are up.
pub(super) fn host_addresses() -> std::io::Result<Vec<HostAddress>> {
    let mut addresses: Vec<HostAddress> = if_addrs::get_if_addrs()?
        .into_iter()
        .map(|interface| HostAddress {
            index: interface.index.unwrap_or(0),
            address: interface.ip(),
            link_speed: link_speed(&interface.name),
            rss: receive_queues(&interface.name) > 1,
            name: interface.name,
        })
        .collect();
    addresses.sort_by_key(|a| (a.index, a.address));
    addresses.dedup();
    Ok(addresses)
}

/// What the kernel says in sysfs, in Mbit/s there; -1 or no file for interfaces without a speed.
fn link_speed(name: &str) -> u64 {
    fs::read_to_string(format!("/sys/class/net/{name}/speed"))
        .ok()
        .and_then(|text| text.trim().parse::<i64>().ok())
        .and_then(|mbit| u64::try_from(mbit).ok())
        .map_or(0, |mbit| mbit.saturating_mul(1_000_000))
}

fn receive_queues(name: &str) -> usize {
    fs::read_dir(format!("/sys/class/net/{name}/queues")).map_or(0, |entries| {
        entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("rx-"))
            .count()
    })
}

/// Why SMB Direct works, or does not work, on an address, given where the engine listens.
pub(super) fn verdict<'a>(
    address: &HostAddress,
    listeners: impl IntoIterator<Item = (SocketAddr, &'a str)>,
) -> (Option<SocketAddr>, String) {
    let mut any = false;
    for (listener, fabric) in listeners {
        any = true;
        if takes(listener, address.address) {
            let reason = format!("{fabric} listens on {listener}");
            return (Some(listener), reason);
        }
    }
    let reason = if any {
        "no listener covers this address: add it with --listen or smbd_listen"
    } else {
        "the engine does not listen anywhere: give it --listen, or call smbd_listen"
    };
    (None, reason.into())
}

/// Whether a listener takes connections to an address. An IPv6 wildcard here does not take IPv4.
fn takes(listener: SocketAddr, address: IpAddr) -> bool {
    match (listener.ip(), address) {
        (IpAddr::V4(ip), IpAddr::V4(address)) => ip.is_unspecified() || ip == address,
        (IpAddr::V6(ip), IpAddr::V6(address)) => ip.is_unspecified() || ip == address,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_among_the_addresses() {
        let addresses = host_addresses().unwrap();
        let loopback = addresses
            .iter()
            .find(|a| a.address.is_loopback())
            .expect("lo");
        assert!(loopback.index > 0);
    }

    #[test]
    fn verdict_names_the_listener_or_the_cure() {
        let address = HostAddress {
            name: "eth0".into(),
            index: 2,
            address: "192.0.2.1".parse().unwrap(),
            link_speed: 0,
            rss: false,
        };
        let at = |text: &str| (text.parse::<SocketAddr>().unwrap(), "soft-iwarp");
        assert!(verdict(&address, [at("0.0.0.0:5445")]).0.is_some());
        assert!(verdict(&address, [at("192.0.2.1:5445")]).0.is_some());
        let (none, reason) = verdict(&address, [at("192.0.2.2:5445"), at("[::]:5445")]);
        assert!(none.is_none() && reason.contains("--listen"));
        assert!(verdict(&address, None).1.contains("anywhere"));
    }
}
