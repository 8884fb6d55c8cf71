//! Where tests of engine and smbd listen and connect, and over which fabric: software iWARP on
//! 127.0.0.1, or what the guests of tests/uml say, where the same tests use an RDMA device.
#![allow(dead_code)] // Each test uses a part of it.

use std::fmt::Display;
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

/// Whether the server may invalidate memory of the client. On the verbs fabric that takes memory
/// windows of type 2, which siw (SMBDIRECT_TEST_DEVICE) has not.
pub(crate) fn can_be_invalidated() -> bool {
    let device = std::env::var("SMBDIRECT_TEST_DEVICE");
    client_kind() == FabricKind::SoftIwarp || device.as_deref() != Ok("siw")
}

/// Whether the client's memory that may only be written cannot be read. siw lets a peer read it.
pub(crate) fn checks_reads() -> bool {
    can_be_invalidated()
}

/// The fabric of SMB clients: that of the server, unless SMBDIRECT_TEST_CLIENT is `soft-iwarp`, which
/// speaks with iWARP devices.
pub(crate) fn client_kind() -> FabricKind {
    match std::env::var("SMBDIRECT_TEST_CLIENT").as_deref() {
        Ok("soft-iwarp") => FabricKind::SoftIwarp,
        Ok(other) => panic!("SMBDIRECT_TEST_CLIENT is {other}"),
        Err(_) => kind(),
    }
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

/// Connects. siw binds to a port that rdma_cm has chosen without asking TCP, which may have it in use;
/// then another one is chosen.
pub(crate) fn connect<T, E: Display>(mut how: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    for _ in 0..5 {
        match how() {
            Err(error) if is_verbs() && error.to_string().contains("Address already in use") => {}
            result => return result,
        }
    }
    panic!("five ports of rdma_cm were in use")
}

/// The address with a port, as the programs take it to listen.
pub(crate) fn target(port: u16) -> String {
    with_fabric(kind(), port)
}

/// The same for clients.
pub(crate) fn client_target(port: u16) -> String {
    with_fabric(client_kind(), port)
}

fn with_fabric(kind: FabricKind, port: u16) -> String {
    let fabric = match kind {
        FabricKind::Verbs => "verbs:",
        FabricKind::SoftIwarp => "",
    };
    format!("{fabric}{}:{port}", address())
}
