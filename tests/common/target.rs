//! Where tests of engine and smbd listen and connect, and over which fabric: software iWARP on
//! 127.0.0.1, or what the guests of tests/uml say, where the same tests use an RDMA device.
#![allow(dead_code)] // Each test uses a part of it.

use std::net::IpAddr;

use smbdirect::fabric::FabricKind;
use smbdirect::ipc::Fabric;

/// SMBDIRECT_TEST_ADDRESS.
pub(crate) fn address() -> IpAddr {
    match std::env::var("SMBDIRECT_TEST_ADDRESS") {
        Ok(text) => text.parse().expect("SMBDIRECT_TEST_ADDRESS"),
        Err(_) => [127, 0, 0, 1].into(),
    }
}

/// SMBDIRECT_TEST_FABRIC is `verbs`.
pub(crate) fn is_verbs() -> bool {
    match std::env::var("SMBDIRECT_TEST_FABRIC").as_deref() {
        Ok("verbs") => true,
        Ok("soft-iwarp") | Err(_) => false,
        Ok(other) => panic!("SMBDIRECT_TEST_FABRIC is {other}"),
    }
}

/// Whether the peer may invalidate memory of our side. On the verbs fabric that takes memory windows
/// of type 2, which siw (SMBDIRECT_TEST_DEVICE) has not.
pub(crate) fn can_be_invalidated() -> bool {
    let device = std::env::var("SMBDIRECT_TEST_DEVICE");
    !is_verbs() || device.as_deref() != Ok("siw")
}

/// The fabric.
pub(crate) fn fabric() -> Fabric {
    match is_verbs() {
        true => Fabric::Verbs,
        false => Fabric::SoftIwarp,
    }
}

/// The same for endpoints.
pub(crate) fn kind() -> FabricKind {
    match is_verbs() {
        true => FabricKind::Verbs,
        false => FabricKind::SoftIwarp,
    }
}

/// The address with a port, as the programs take it.
pub(crate) fn target(port: u16) -> String {
    let fabric = if is_verbs() { "verbs:" } else { "" };
    format!("{fabric}{}:{port}", address())
}
