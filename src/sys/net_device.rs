//! What the kernel knows of a network interface, by the ioctls of netdevice(7) and ethtool. They
//! speak of the network namespace of the calling process, which `/sys/class/net` need not.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Asks about network interfaces.
#[derive(Debug)]
pub struct NetDevices {
    socket: OwnedFd,
}

/// What is known of one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetDevice {
    /// Its index.
    pub index: u32,
    /// An administrator has set it up (IFF_UP).
    pub is_up: bool,
    /// It has a carrier and can be used (IFF_RUNNING).
    pub is_running: bool,
    /// Bits per second; 0: unknown. The kernel answers for the lower devices of VLANs, bonds and
    /// bridges.
    pub link_speed: u64,
    /// Receive queues that hashing spreads flows over; 0: unknown.
    pub receive_queues: u64,
}

impl NetDevices {
    /// Makes the socket that the questions go through.
    pub fn new() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
        Ok(Self { socket })
    }

    /// Asks about an interface. What the driver does not tell is unknown, not an error.
    pub fn get(&self, name: &str) -> io::Result<NetDevice> {
        let index = rustix::net::netdevice::name_to_index(&self.socket, name)?;
        let flags = i32::from(self.flags(name)?);
        Ok(NetDevice {
            index,
            is_up: flags & libc::IFF_UP != 0,
            is_running: flags & libc::IFF_RUNNING != 0,
            link_speed: self.link_speed(name).unwrap_or(0),
            receive_queues: self.receive_queues(name).unwrap_or(0),
        })
    }

    fn flags(&self, name: &str) -> io::Result<libc::c_short> {
        let mut request = request(name)?;
        // SAFETY: `request` is valid for the call, which writes into it only.
        let rc = unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCGIFFLAGS, &mut request) };
        if rc != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: SIOCGIFFLAGS has set this field; each bit pattern is a number.
        Ok(unsafe { request.ifr_ifru.ifru_flags })
    }

    /// Bits per second.
    fn link_speed(&self, name: &str) -> io::Result<u64> {
        let answer = self.ethtool(name, ETHTOOL_GSET)?;
        // struct ethtool_cmd: speed at 12, speed_hi at 28, both in Mbit/s and 16 bits wide.
        let [low, high] = [12, 28].map(|at| u16::from_ne_bytes([answer[at], answer[at + 1]]));
        let mbit = u32::from(high) << 16 | u32::from(low);
        // SPEED_UNKNOWN is -1.
        Ok(if mbit == u32::MAX {
            0
        } else {
            u64::from(mbit) * 1_000_000
        })
    }

    fn receive_queues(&self, name: &str) -> io::Result<u64> {
        let answer = self.ethtool(name, ETHTOOL_GRXRINGS)?;
        // struct ethtool_rxnfc: data at 8.
        let mut data = [0; 8];
        data.copy_from_slice(&answer[8..16]);
        Ok(u64::from_ne_bytes(data))
    }

    fn ethtool(&self, name: &str, command: u32) -> io::Result<[u8; ETHTOOL_BYTES]> {
        let mut buffer = EthtoolBuffer([0; ETHTOOL_BYTES]);
        buffer.0[..4].copy_from_slice(&command.to_ne_bytes());
        let mut request = request(name)?;
        request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut buffer).cast();
        // SAFETY: `request` and the buffer that it names are valid for the call. The structure of
        // either command is smaller than the buffer, which is aligned for it.
        let rc = unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCETHTOOL, &mut request) };
        if rc != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(buffer.0)
    }
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an ifreq may be all zeros.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    if name.len() > room || name.contains('\0') {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// The largest of the structures in use is struct ethtool_rxnfc with less than 200 bytes.
const ETHTOOL_BYTES: usize = 512;

/// As aligned as the 64-bit fields of these structures want it.
#[repr(align(8))]
struct EthtoolBuffer([u8; ETHTOOL_BYTES]);

const SIOCGIFFLAGS: libc::Ioctl = 0x8913;
const SIOCETHTOOL: libc::Ioctl = 0x8946;
/// The speed, for old and new drivers alike; the kernel translates.
const ETHTOOL_GSET: u32 = 0x0000_0001;
const ETHTOOL_GRXRINGS: u32 = 0x0000_002d;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_up_and_has_no_speed() {
        let devices = NetDevices::new().unwrap();
        let lo = devices.get("lo").unwrap();
        assert!(lo.index > 0 && lo.is_up && lo.is_running, "{lo:?}");
        assert_eq!(lo.link_speed, 0);
    }

    #[test]
    fn names_of_no_interface_are_refused() {
        let devices = NetDevices::new().unwrap();
        for name in ["", "no-such-device", "a name longer than any", "nul\0"] {
            assert!(devices.get(name).is_err(), "{name:?}");
        }
    }
}
