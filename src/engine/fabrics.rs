#![forbid(unsafe_code)]
//! The fabrics of an engine, and what listens on which.

use std::net::SocketAddr;

use log::info;

use super::handle::HandleId;
use super::{Engine, Listen, Listener};
use crate::fabric::{DeviceKind, Fabric, FabricError, ListenOptions};
use crate::ipc;

/// SMB Direct's port on InfiniBand and RoCE ([MS-SMBD] 1.9).
const PORT_INFINIBAND: u16 = 445;
/// SMB Direct's port on iWARP, where 445 is the port of TCP ([MS-SMBD] 1.9).
const PORT_IWARP: u16 = 5445;

/// Which place in the engine's list a fabric has.
pub(super) const INDEX: [ipc::Fabric; 2] = [ipc::Fabric::SoftIwarp, ipc::Fabric::Verbs];

/// The fabric at a place in the engine's list.
pub(super) fn kind(index: usize) -> ipc::Fabric {
    INDEX.get(index).copied().unwrap_or(ipc::Fabric::SoftIwarp)
}

impl Engine {
    /// Where a fabric is, if this engine has it.
    pub(super) fn fabric_index(&self, fabric: ipc::Fabric) -> Result<usize, FabricError> {
        let index = INDEX.iter().position(|&it| it == fabric);
        index.filter(|&it| it < self.fabrics.len()).ok_or_else(|| {
            FabricError::Os(
                format!(
                    "this engine was built without the feature {}",
                    fabric.name()
                ),
                std::io::Error::from_raw_os_error(libc::EOPNOTSUPP),
            )
        })
    }

    /// Listens as the command line says.
    pub(super) fn listen_from_start(&mut self, listen: &Listen) -> Result<(), FabricError> {
        let index = self.fabric_index(listen.fabric)?;
        let ports = if listen.is_default_port && listen.fabric == ipc::Fabric::Verbs {
            default_ports(&*self.fabrics[index], listen.address)
        } else {
            vec![listen.address.port()]
        };
        for port in ports {
            let mut address = listen.address;
            address.set_port(port);
            let address = self.listen(listen.fabric, address, &listen.options, None)?;
            info!("listening on {address} ({})", listen.fabric.name());
        }
        Ok(())
    }

    /// Listens. Returns the address taken.
    pub(super) fn listen(
        &mut self,
        fabric: ipc::Fabric,
        address: SocketAddr,
        options: &ListenOptions,
        owner: Option<HandleId>,
    ) -> Result<SocketAddr, FabricError> {
        let index = self.fabric_index(fabric)?;
        let options = ListenOptions {
            device: device_kind(options.device, address.port()),
            ..options.clone()
        };
        let (key, address) = self.fabrics[index].listen(address, &options)?;
        self.listeners.push(Listener {
            fabric: index,
            key,
            address,
            crc: options.crc,
            accepted: 0,
            owner,
        });
        Ok(address)
    }
}

/// The devices that a port is for, as far as nobody has said it: a client that comes to 445 wants
/// InfiniBand or RoCE, and one that comes to 5445 iWARP.
fn device_kind(asked: DeviceKind, port: u16) -> DeviceKind {
    match (asked, port) {
        (DeviceKind::Any, PORT_INFINIBAND) => DeviceKind::Infiniband,
        (DeviceKind::Any, PORT_IWARP) => DeviceKind::Iwarp,
        (asked, _) => asked,
    }
}

/// The ports where clients look for a server at an address: by the device, if there is one; both,
/// for any device there will be.
fn default_ports(fabric: &dyn Fabric, address: SocketAddr) -> Vec<u16> {
    let known = match address.ip().is_unspecified() {
        true => None,
        false => fabric.local_address(None, address.ip()).ok(),
    };
    match known.and_then(|local| local.kind) {
        Some(DeviceKind::Infiniband) => vec![PORT_INFINIBAND],
        Some(DeviceKind::Iwarp) => vec![PORT_IWARP],
        _ => vec![PORT_INFINIBAND, PORT_IWARP],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_choose_devices() {
        let any = DeviceKind::Any;
        assert_eq!(device_kind(any, 445), DeviceKind::Infiniband);
        assert_eq!(device_kind(any, 5445), DeviceKind::Iwarp);
        assert_eq!(device_kind(any, 4445), DeviceKind::Any);
        assert_eq!(device_kind(DeviceKind::Iwarp, 445), DeviceKind::Iwarp);
    }
}
