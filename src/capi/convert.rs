//! Values of C as values of Rust, and back.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use libc::{c_char, sa_family_t, sockaddr_in, sockaddr_in6, sockaddr_storage};

use super::boundary::{check_flags, null};
use super::types::*;
use crate::client::{ClientError, EventKind};
use crate::ipc::{Fabric, Params};

fn or_default(value: u32, default: u32) -> u32 {
    if value == 0 {
        default
    } else {
        value
    }
}

/// Parameters with their defaults. Ranges are checked later, by [`Params::check`].
///
/// # Safety
///
/// `security_blob` is null or valid for reads of `security_blob_length` bytes.
pub(super) unsafe fn params(from: &smbd_params) -> Result<Params, ClientError> {
    check_flags(from.flags, SMBD_PARAMS_ANSWER_NEGOTIATE)?;
    let length = from.security_blob_length as usize;
    if length > MAX_BLOB {
        return Err(ClientError::new(
            libc::EINVAL,
            format!("security_blob_length is {length}, it may be 0..={MAX_BLOB}"),
        ));
    }
    let security_blob = if length == 0 {
        Vec::new()
    } else if from.security_blob.is_null() {
        return Err(null("security_blob"));
    } else {
        // SAFETY: the caller's promise; it was checked that it is not null.
        unsafe { std::slice::from_raw_parts(from.security_blob, length) }.to_vec()
    };
    let security_mode = u16::try_from(from.security_mode).map_err(|_| {
        ClientError::new(
            libc::EINVAL,
            format!(
                "security_mode is {}, it may be 0..=65535",
                from.security_mode
            ),
        )
    })?;
    let default = Params::default();
    let max_read_write_size = or_default(from.max_read_write_size, default.max_read_write_size);
    let dialect = |value: u16, default: u16| if value == 0 { default } else { value };
    Ok(Params {
        answer_negotiate: from.flags & SMBD_PARAMS_ANSWER_NEGOTIATE != 0,
        receive_credit_max: or_default(from.receive_credit_max, default.receive_credit_max),
        send_credit_max: or_default(from.send_credit_max, default.send_credit_max),
        max_send_size: or_default(from.max_send_size, default.max_send_size),
        max_receive_size: or_default(from.max_receive_size, default.max_receive_size),
        max_fragment_size: or_default(from.max_fragment_size, default.max_fragment_size),
        max_read_write_size,
        keepalive_interval_msec: or_default(
            from.keepalive_interval_msec,
            default.keepalive_interval_msec,
        ),
        security_blob,
        server_guid: from.server_guid,
        security_mode,
        capabilities: from.capabilities,
        max_transact_size: or_default(from.max_transact_size, default.max_transact_size),
        max_read_size: or_default(from.max_read_size, max_read_write_size),
        max_write_size: or_default(from.max_write_size, max_read_write_size),
        min_dialect: dialect(from.min_dialect, default.min_dialect),
        max_dialect: dialect(from.max_dialect, default.max_dialect),
    })
}

/// Parameters for C, without the blob's bytes.
pub(super) fn c_params(from: &Params) -> smbd_params {
    smbd_params {
        size: 0,
        flags: if from.answer_negotiate {
            SMBD_PARAMS_ANSWER_NEGOTIATE
        } else {
            0
        },
        receive_credit_max: from.receive_credit_max,
        send_credit_max: from.send_credit_max,
        max_send_size: from.max_send_size,
        max_receive_size: from.max_receive_size,
        max_fragment_size: from.max_fragment_size,
        max_read_write_size: from.max_read_write_size,
        keepalive_interval_msec: from.keepalive_interval_msec,
        security_blob_length: u32::try_from(from.security_blob.len()).unwrap_or(u32::MAX),
        security_blob: std::ptr::null(),
        server_guid: from.server_guid,
        security_mode: from.security_mode.into(),
        capabilities: from.capabilities,
        max_transact_size: from.max_transact_size,
        max_read_size: from.max_read_size,
        max_write_size: from.max_write_size,
        min_dialect: from.min_dialect,
        max_dialect: from.max_dialect,
    }
}

/// The fabric of an SMBD_FABRIC_* number, 0 being the default.
pub(super) fn fabric(number: u32) -> Result<Fabric, ClientError> {
    Fabric::from_number(or_default(number, SMBD_FABRIC_SOFT_IWARP)).ok_or_else(|| {
        ClientError::new(
            libc::EOPNOTSUPP,
            format!(
                "fabric is {number}, it may be SMBD_FABRIC_SOFT_IWARP (1) or SMBD_FABRIC_VERBS (2)"
            ),
        )
    })
}

/// An address of C.
pub(super) fn socket_addr(from: &sockaddr_storage, length: u32) -> Result<SocketAddr, ClientError> {
    let length = length as usize;
    match i32::from(from.ss_family) {
        libc::AF_INET if length >= size_of::<sockaddr_in>() => {
            // SAFETY: a sockaddr_storage is large and aligned enough for every address; any bytes
            // are a valid sockaddr_in.
            let v4 = unsafe { &*std::ptr::from_ref(from).cast::<sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Ok(SocketAddr::V4(SocketAddrV4::new(
                ip,
                u16::from_be(v4.sin_port),
            )))
        }
        libc::AF_INET6 if length >= size_of::<sockaddr_in6>() => {
            // SAFETY: as above.
            let v6 = unsafe { &*std::ptr::from_ref(from).cast::<sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            let port = u16::from_be(v6.sin6_port);
            Ok(SocketAddr::V6(SocketAddrV6::new(
                ip,
                port,
                0,
                v6.sin6_scope_id,
            )))
        }
        family => Err(ClientError::new(
            libc::EINVAL,
            format!(
                "address of family {family} with address_length {length}: use a sockaddr_in (16 \
                 bytes) or a sockaddr_in6 (28 bytes)"
            ),
        )),
    }
}

/// An address for C.
pub(super) fn sockaddr(from: SocketAddr) -> sockaddr_storage {
    // SAFETY: all zeros are a valid sockaddr_storage.
    let mut storage: sockaddr_storage = unsafe { std::mem::zeroed() };
    let to = std::ptr::from_mut(&mut storage);
    match from {
        SocketAddr::V4(v4) => {
            // SAFETY: large and aligned enough for every address, and ours alone.
            let to = unsafe { &mut *to.cast::<sockaddr_in>() };
            to.sin_family = libc::AF_INET as sa_family_t;
            to.sin_port = v4.port().to_be();
            to.sin_addr.s_addr = u32::from(*v4.ip()).to_be();
        }
        SocketAddr::V6(v6) => {
            // SAFETY: as above.
            let to = unsafe { &mut *to.cast::<sockaddr_in6>() };
            to.sin6_family = libc::AF_INET6 as sa_family_t;
            to.sin6_port = v6.port().to_be();
            to.sin6_addr.s6_addr = v6.ip().octets();
            to.sin6_scope_id = v6.scope_id();
        }
    }
    storage
}

/// Text in an array ended by NUL, cut if need be.
pub(super) fn c_text<const N: usize>(from: &str) -> [c_char; N] {
    let mut to = [0; N];
    let mut end = from.len().min(N - 1);
    while !from.is_char_boundary(end) {
        end -= 1;
    }
    for (to, from) in to.iter_mut().zip(from[..end].bytes()) {
        *to = from as c_char;
    }
    to
}

/// The SMBD_EVENT_* number of a kind.
pub(super) fn event_number(kind: EventKind) -> u32 {
    match kind {
        EventKind::PduReceived => SMBD_EVENT_PDU_RECEIVED,
        EventKind::PduSent => SMBD_EVENT_PDU_SENT,
        EventKind::RdmaReadComplete => SMBD_EVENT_RDMA_READ_COMPLETE,
        EventKind::RdmaWriteComplete => SMBD_EVENT_RDMA_WRITE_COMPLETE,
        EventKind::Offered => SMBD_EVENT_OFFERED,
        EventKind::Attached => SMBD_EVENT_ATTACHED,
        EventKind::Disconnected => SMBD_EVENT_DISCONNECTED,
        EventKind::Writable => SMBD_EVENT_WRITABLE,
        EventKind::EngineLost => SMBD_EVENT_ENGINE_LOST,
    }
}

const MAX_BLOB: usize = 16384;

// Flags of events have the same bits in the ring and in C.
const _: () = {
    use crate::ring::flags;
    assert!(flags::INVALIDATED as u32 == SMBD_EVENT_INVALIDATED);
    assert!(flags::NEGOTIATE_REQUEST as u32 == SMBD_EVENT_NEGOTIATE_REQUEST);
    assert!(flags::NEGOTIATE_RESPONSE as u32 == SMBD_EVENT_NEGOTIATE_RESPONSE);
    assert!(flags::ROUTED as u32 == SMBD_EVENT_ROUTED);
    assert!(flags::ACTIVE as u32 == SMBD_EVENT_ACTIVE);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_both_ways() {
        for text in ["127.0.0.1:5445", "[::1]:445", "[fe80::1%3]:1"] {
            let address: SocketAddr = text.parse().unwrap();
            let length = if address.is_ipv4() { 16 } else { 28 };
            let c = sockaddr(address);
            assert_eq!(socket_addr(&c, length).unwrap(), address);
            assert!(socket_addr(&c, length - 1).is_err());
        }
        assert!(socket_addr(&c_unix(), 128).is_err());
    }

    fn c_unix() -> sockaddr_storage {
        let mut storage = sockaddr("127.0.0.1:1".parse().unwrap());
        storage.ss_family = libc::AF_UNIX as sa_family_t;
        storage
    }

    #[test]
    fn texts_are_cut_at_a_character() {
        assert_eq!(c_text::<4>("abcdef").map(|c| c as u8), *b"abc\0");
        assert_eq!(c_text::<4>("ab\u{e4}").map(|c| c as u8), *b"ab\0\0");
    }
}
