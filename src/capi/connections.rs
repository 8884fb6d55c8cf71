//! The C ABI: connections, listeners, information.

use libc::{c_int, sockaddr_storage};

use super::boundary::{self, check_count, null, read_sized, with_handle, write_sized};
use super::calls::{c_count, connect_spec, connection_info, interface, listen_spec, read_token};
use super::types::*;
use super::{convert, smbd_handle};
use crate::client::Handle;

/// Ends one connection. PDUs taken before still leave, for at most 5 seconds. The DISCONNECTED
/// event follows with a status: 0: ended by us; -ECONNRESET: by the peer; -ETIMEDOUT: the peer
/// went silent; -EPROTO: the peer broke the protocol; -EREMCHG: handed over to another handle;
/// -ECONNREFUSED: the peer refused; -ENETDOWN: the engine is gone; -ECONNABORTED: the fabric
/// failed.
///
/// Parameters: handle; connection.
/// Returns: 0; -ENOTCONN.
#[no_mangle]
pub unsafe extern "C" fn smbd_disconnect(handle: *mut smbd_handle, connection: u64) -> c_int {
    // SAFETY: the caller gives a handle that is not closed and not in use.
    unsafe { with_handle(handle, |handle| handle.disconnect(connection).map(|()| 0)) }
}

/// Takes over an offered connection, or one that smbd_export has given a token for.
///
/// Parameters: handle; token: 16 bytes; out_connection: gets the connection.
/// Returns: 0; -ENOENT: unknown or expired token; -EACCES: the token is another user's; -ENOSPC:
/// the handle has max_connections already, or no receive slots; -EMSGSIZE: its receive slots are
/// too small; -EBUSY: the connection's owner has operations in flight; -EALREADY: it belongs to
/// this handle.
#[no_mangle]
pub unsafe extern "C" fn smbd_accept(
    handle: *mut smbd_handle,
    token: *const u8,
    out_connection: *mut u64,
) -> c_int {
    let call = |handle: &mut Handle| {
        // SAFETY: the caller gives null or 16 bytes.
        let token = unsafe { read_token(token) }?;
        if out_connection.is_null() {
            return Err(null("out_connection"));
        }
        let connection = handle.accept(token)?;
        // SAFETY: not null, and the caller's to be written.
        unsafe { out_connection.write(connection) };
        Ok(0)
    };
    // SAFETY: the caller gives a handle that is not closed and not in use.
    unsafe { with_handle(handle, call) }
}

/// Refuses an offered connection.
///
/// Parameters: handle: the parent's; token: 16 bytes.
/// Returns: 0; -ENOENT; -EPERM: not the parent handle.
#[no_mangle]
pub unsafe extern "C" fn smbd_reject(handle: *mut smbd_handle, token: *const u8) -> c_int {
    let call = |handle: &mut Handle| {
        // SAFETY: the caller gives null or 16 bytes.
        let token = unsafe { read_token(token) }?;
        handle.reject(token).map(|()| 0)
    };
    // SAFETY: the caller gives a handle that is not closed and not in use.
    unsafe { with_handle(handle, call) }
}

/// Makes a token with which another handle of the same user (or of root) takes this connection over. Until
/// then the connection stays here, but delivers no PDUs: those that come go to the new owner.
/// At the hand-over it ends here with -EREMCHG. If this process ends first the engine keeps the
/// connection for 10 seconds. smbd_set_receive makes the token void and the PDUs come here again.
///
/// Parameters: handle; connection; out_token: gets 16 bytes.
/// Returns: 0; -ENOTCONN; -EBUSY: PDUs wait here, or one is half received: take them with
/// smbd_get_events first.
#[no_mangle]
pub unsafe extern "C" fn smbd_export(
    handle: *mut smbd_handle,
    connection: u64,
    out_token: *mut u8,
) -> c_int {
    let call = |handle: &mut Handle| {
        if out_token.is_null() {
            return Err(null("out_token"));
        }
        let token = handle.export(connection)?;
        // SAFETY: not null, and room for 16 bytes.
        unsafe { out_token.cast::<[u8; 16]>().write(token) };
        Ok(0)
    };
    // SAFETY: the caller gives a handle that is not closed and not in use.
    unsafe { with_handle(handle, call) }
}

/// Listens for peers on an address, until smbd_unlisten or the end of the handle.
///
/// Parameters: handle: the parent's; options; out_address: gets the address with the port taken,
/// may be NULL.
/// Returns: 0; -EADDRINUSE; -EADDRNOTAVAIL; -EACCES; -EINVAL; -EPERM: not the parent handle;
/// -EOPNOTSUPP: no such fabric in this build.
#[no_mangle]
pub unsafe extern "C" fn smbd_listen(
    handle: *mut smbd_handle,
    options: *const smbd_listen_options,
    out_address: *mut sockaddr_storage,
) -> c_int {
    let call = |handle: &mut Handle| {
        // SAFETY: the caller gives a structure that tells its size.
        let listen = listen_spec(&unsafe { read_sized(options) }?)?;
        let address = handle.listen(&listen)?;
        if !out_address.is_null() {
            // SAFETY: not null, and the caller's to be written.
            unsafe { out_address.write(convert::sockaddr(address)) };
        }
        Ok(0)
    };
    // SAFETY: the caller gives a handle that is not closed and not in use.
    unsafe { with_handle(handle, call) }
}

/// Stops listening on an address.
///
/// Parameters: handle; options: as given to smbd_listen, with the port that was taken.
/// Returns: 0; -ENOENT.
#[no_mangle]
pub unsafe extern "C" fn smbd_unlisten(
    handle: *mut smbd_handle,
    options: *const smbd_listen_options,
) -> c_int {
    let call = |handle: &mut Handle| {
        // SAFETY: the caller gives a structure that tells its size.
        let listen = listen_spec(&unsafe { read_sized(options) }?)?;
        handle.unlisten(&listen).map(|()| 0)
    };
    // SAFETY: the caller gives a handle that is not closed and not in use.
    unsafe { with_handle(handle, call) }
}

/// Connects to a peer as a client. ATTACHED follows when the connection is negotiated, else
/// DISCONNECTED with the reason.
///
/// Parameters: handle; options; out_connection: gets the connection.
/// Returns: 0; -EINVAL; -ENOSPC: max_connections; -EOPNOTSUPP: no such fabric in this build.
#[no_mangle]
pub unsafe extern "C" fn smbd_connect(
    handle: *mut smbd_handle,
    options: *const smbd_connect_options,
    out_connection: *mut u64,
) -> c_int {
    let call = |handle: &mut Handle| {
        // SAFETY: the caller gives a structure that tells its size, and params that do.
        let connect = unsafe { connect_spec(&read_sized(options)?) }?;
        if out_connection.is_null() {
            return Err(null("out_connection"));
        }
        let connection = handle.connect(&connect)?;
        // SAFETY: not null, and the caller's to be written.
        unsafe { out_connection.write(connection) };
        Ok(0)
    };
    // SAFETY: the caller gives a handle that is not closed and not in use.
    unsafe { with_handle(handle, call) }
}

/// A connection's addresses, negotiated values and counters. Makes no system call.
///
/// Parameters: handle; connection; out_info: size set by the caller.
/// Returns: 0; -ENOTCONN.
#[no_mangle]
pub unsafe extern "C" fn smbd_get_connection_info(
    handle: *mut smbd_handle,
    connection: u64,
    out_info: *mut smbd_connection_info,
) -> c_int {
    let call = |handle: &mut Handle| {
        let (record, counters) = handle.connection_info(connection)?;
        let info = connection_info(&record, &counters);
        // SAFETY: the caller gives a structure that tells its size.
        unsafe { write_sized(out_info, &info) }.map(|()| 0)
    };
    // SAFETY: the caller gives a handle that is not closed and not in use.
    unsafe { with_handle(handle, call) }
}

/// What the handle has done so far. Makes no system call.
///
/// Parameters: handle; out_statistics: size set by the caller.
/// Returns: 0; -EINVAL.
#[no_mangle]
pub unsafe extern "C" fn smbd_get_statistics(
    handle: *mut smbd_handle,
    out_statistics: *mut smbd_statistics,
) -> c_int {
    let call = |handle: &mut Handle| {
        let from = handle.statistics()?;
        let statistics = smbd_statistics {
            size: 0,
            connections: from.connections,
            get_events_calls: from.get_events_calls,
            events: from.events,
            syscalls: from.syscalls,
            doorbells: from.doorbells,
            pdus_direct: from.pdus_direct,
            pdus_reassembled: from.pdus_reassembled,
            back_pressure: from.back_pressure,
        };
        // SAFETY: the caller gives a structure that tells its size.
        unsafe { write_sized(out_statistics, &statistics) }.map(|()| 0)
    };
    // SAFETY: the caller gives a handle that is not closed and not in use.
    unsafe { with_handle(handle, call) }
}

/// The addresses of this host, and on which of them the engine takes SMB Direct connections now.
/// Loopback addresses and those of interfaces that are down are among them. What the kernel knows
/// of an address is at most a second old.
///
/// Parameters: handle; interfaces: array, size set in each entry; count: its entries; out_total:
/// gets how many there are, may be NULL.
/// Returns: how many entries were filled.
#[no_mangle]
pub unsafe extern "C" fn smbd_query_interfaces(
    handle: *mut smbd_handle,
    interfaces: *mut smbd_interface,
    count: u32,
    out_total: *mut u32,
) -> c_int {
    let call = |handle: &mut Handle| {
        check_count(count)?;
        // SAFETY: the caller gives an array whose entries tell their size.
        let stride = unsafe { boundary::size_of_struct(interfaces) }?;
        let all = handle.interfaces()?;
        let mut next = interfaces.cast::<u8>();
        let filled = all.len().min(count as usize);
        for from in &all[..filled] {
            // SAFETY: an entry of the array.
            unsafe { write_sized(next.cast(), &interface(from)) }?;
            // SAFETY: the next entry, or the end of the array.
            next = unsafe { next.add(stride) };
        }
        if !out_total.is_null() {
            // SAFETY: not null, and the caller's to be written.
            unsafe { out_total.write(u32::try_from(all.len()).unwrap_or(u32::MAX)) };
        }
        Ok(c_count(filled))
    };
    // SAFETY: the caller gives a handle that is not closed and not in use.
    unsafe { with_handle(handle, call) }
}
