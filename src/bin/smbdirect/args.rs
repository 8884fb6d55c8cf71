//! Options that several commands have, and how addresses are read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::Duration;

use smbdirect::fabric::{AcceptOptions, ConnectOptions, DeviceKind, FabricKind, ListenOptions};
use smbdirect::peer::Endpoint;
use smbdirect::proto::Params;

use crate::failure::Failure;
use crate::units::{parse_seconds, parse_size_u32};

/// Port of SMB Direct on iWARP, `[MS-SMBD] 1.9`.
pub(crate) const SMBDIRECT_PORT: u16 = 5445;
/// Port of SMB Direct on InfiniBand and RoCE, `[MS-SMBD] 1.9`.
pub(crate) const INFINIBAND_PORT: u16 = 445;

/// What this side offers in the SMB Direct negotiation, and how its RDMA transport behaves.
#[derive(clap::Args, Debug, Clone)]
#[command(next_help_heading = "SMB Direct and RDMA options")]
pub(crate) struct SmbdArgs {
    /// CRC32C in every frame (the peer has to agree to sending it)
    #[arg(long)]
    pub(crate) crc: bool,
    /// Receive credits the peer gets at most: ReceiveCreditMax, 1 to 65535
    #[arg(long, value_name = "COUNT", default_value_t = 255)]
    pub(crate) receive_credits: u16,
    /// Send credits asked of the peer: SendCreditTarget, 1 to 65535
    #[arg(long, value_name = "COUNT", default_value_t = 255)]
    pub(crate) send_credits: u16,
    /// Longest SMB Direct message sent, bytes with its header: MaxSendSize, 128 to 64K [default:
    /// 8136 or, for ping and bench as the active side, 1364]
    #[arg(long, value_name = "BYTES", value_parser = parse_size_u32)]
    pub(crate) max_send_size: Option<u32>,
    /// Longest SMB Direct message received, bytes with its header: MaxReceiveSize, 128 to 64K
    #[arg(long, value_name = "BYTES", value_parser = parse_size_u32, default_value = "8192")]
    pub(crate) max_receive_size: u32,
    /// Seconds without a message from the peer after which it is asked for one
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "120")]
    pub(crate) keepalive: Duration,
    /// MPA revision to connect with (software iWARP): 1 or 2
    #[arg(long, value_name = "REVISION", default_value_t = 2,
          value_parser = clap::value_parser!(u8).range(1..=2))]
    pub(crate) mpa_revision: u8,
    /// RDMA READs of the peer served at once: IRD
    #[arg(long, value_name = "COUNT", default_value_t = 32)]
    pub(crate) ird: u32,
    /// RDMA READs outstanding at the peer: ORD
    #[arg(long, value_name = "COUNT", default_value_t = 32)]
    pub(crate) ord: u32,
}

impl SmbdArgs {
    /// The parameters of a connection; those not given come from `defaults`.
    pub(crate) fn params(&self, defaults: Params) -> Result<Params, Failure> {
        let params = Params {
            receive_credit_max: self.receive_credits,
            send_credit_target: self.send_credits,
            max_send_size: self.max_send_size.unwrap_or(defaults.max_send_size),
            max_receive_size: self.max_receive_size,
            keepalive_interval: self.keepalive,
            ..defaults
        };
        params
            .validate()
            .map_err(|error| Failure::Usage(error.to_string()))?;
        Ok(params)
    }

    /// How to connect to `peer`.
    pub(crate) fn connect_options(&self, peer: SocketAddr) -> ConnectOptions {
        ConnectOptions {
            peer,
            crc: self.crc,
            mpa_revision: self.mpa_revision,
            ird: self.ird,
            ord: self.ord,
            private_data: Vec::new(),
            timeout: CONNECT_TIMEOUT,
        }
    }

    /// How to listen.
    pub(crate) fn listen_options(&self) -> ListenOptions {
        ListenOptions {
            crc: self.crc,
            ..ListenOptions::default()
        }
    }

    /// How to accept.
    pub(crate) fn accept_options(&self) -> AcceptOptions {
        AcceptOptions {
            ird: self.ird,
            ord: self.ord,
            private_data: Vec::new(),
        }
    }
}

/// An address and the fabric that leads there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) fabric: FabricKind,
    pub(crate) address: SocketAddr,
    /// The port was not given.
    pub(crate) is_default_port: bool,
}

impl Target {
    /// The address to connect to: a port that was not given is that of the device that leads there,
    /// 5445 for iWARP, and 445 for others and where it is not known.
    pub(crate) fn peer(&self, endpoint: &Endpoint) -> SocketAddr {
        let source = match self.has_device_port() {
            true => source_of(self.address).ok(),
            false => None,
        };
        self.with_port_of(endpoint, source)
    }

    /// The address to listen on: a port that was not given is that of the address's device.
    pub(crate) fn own(&self, endpoint: &Endpoint) -> SocketAddr {
        let is_one = self.has_device_port() && !self.address.ip().is_unspecified();
        self.with_port_of(endpoint, is_one.then(|| self.address.ip()))
    }

    fn has_device_port(&self) -> bool {
        self.is_default_port && self.fabric == FabricKind::Verbs
    }

    fn with_port_of(&self, endpoint: &Endpoint, local: Option<IpAddr>) -> SocketAddr {
        let mut address = self.address;
        let device = local.and_then(|ip| endpoint.local_address(ip).ok());
        if device.and_then(|it| it.kind) == Some(DeviceKind::Iwarp) {
            address.set_port(SMBDIRECT_PORT);
        }
        address
    }
}

/// The address of this host from where the way to another one starts: the kernel's routing table
/// tells it, and nothing is sent.
fn source_of(peer: SocketAddr) -> std::io::Result<IpAddr> {
    let any: IpAddr = match peer {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(peer)?;
    Ok(socket.local_addr()?.ip())
}

/// Resolves an address with a fabric in front: `verbs:HOST`, `iwarp:HOST`; without one it is
/// software iWARP. The port defaults to SMB Direct's: 5445, with `verbs:` 445 until the device is
/// known ([`Target::peer`]).
pub(crate) fn resolve_target(text: &str) -> Result<Target, Failure> {
    let (fabric, rest, port) = match text.split_once(':') {
        Some(("verbs", rest)) => (FabricKind::Verbs, rest, INFINIBAND_PORT),
        Some(("iwarp", rest)) => (FabricKind::SoftIwarp, rest, SMBDIRECT_PORT),
        _ => (FabricKind::SoftIwarp, text, SMBDIRECT_PORT),
    };
    let address = resolve(rest, port)?;
    // A port that was given does not follow the default.
    let is_default_port = resolve(rest, port ^ 1)?.port() != address.port();
    Ok(Target {
        fabric,
        address,
        is_default_port,
    })
}

/// Resolves `HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT`; the port defaults to `port`.
pub(crate) fn resolve(text: &str, port: u16) -> Result<SocketAddr, Failure> {
    let no_address = |why: String| {
        Failure::Usage(format!(
            "`{text}` is no usable address ({why}); write HOST, HOST:PORT or [IPV6]:PORT"
        ))
    };
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, digits)) => (
            host,
            digits
                .parse()
                .map_err(|_| no_address(format!("port `{digits}`")))?,
        ),
        None => (text, port),
    };
    (host, port)
        .to_socket_addrs()
        .map_err(|error| no_address(error.to_string()))?
        .next()
        .ok_or_else(|| no_address("the name has no address".into()))
}

/// How long TCP and MPA set-up may take together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fabric_may_stand_in_front() {
        let read = |text| {
            let target = resolve_target(text).unwrap();
            (
                target.fabric,
                target.address.to_string(),
                target.is_default_port,
            )
        };
        let (verbs, iwarp) = (FabricKind::Verbs, FabricKind::SoftIwarp);
        assert_eq!(read("192.0.2.1"), (iwarp, "192.0.2.1:5445".into(), true));
        assert_eq!(
            read("iwarp:192.0.2.1:7"),
            (iwarp, "192.0.2.1:7".into(), false)
        );
        assert_eq!(
            read("verbs:192.0.2.1"),
            (verbs, "192.0.2.1:445".into(), true)
        );
        assert_eq!(read("verbs:[::]"), (verbs, "[::]:445".into(), true));
        assert_eq!(read("verbs:[::1]:445"), (verbs, "[::1]:445".into(), false));
        assert_eq!(read("::1"), (iwarp, "[::1]:5445".into(), true));
    }

    #[test]
    fn the_way_to_an_address_has_a_source() {
        let source = |text: &str| source_of(text.parse().unwrap()).unwrap().to_string();
        assert_eq!(source("127.0.0.1:445"), "127.0.0.1");
        assert_eq!(source("127.0.0.9:445"), "127.0.0.1");
    }

    #[test]
    fn addresses_are_read() {
        let read = |text| {
            resolve(text, 5445)
                .map(|a| a.to_string())
                .map_err(|e| e.to_string())
        };
        assert_eq!(read("127.0.0.1"), Ok("127.0.0.1:5445".into()));
        assert_eq!(read("127.0.0.1:80"), Ok("127.0.0.1:80".into()));
        assert_eq!(read("::1"), Ok("[::1]:5445".into()));
        assert_eq!(read("[::1]"), Ok("[::1]:5445".into()));
        assert_eq!(read("[::1]:80"), Ok("[::1]:80".into()));
        for bad in ["127.0.0.1:port", "127.0.0.1:70000", ":", "no host:1"] {
            let error = read(bad).unwrap_err();
            assert!(
                error.contains(bad) && error.contains("HOST:PORT"),
                "{error}"
            );
        }
    }
}
