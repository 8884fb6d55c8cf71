//! The C ABI: `extern "C"` functions and nothing else.
//!
//! API conventions, for all functions:
//! - They return 0 or a count, or a negative errno; `smbd_last_error` has the text.
//! - Outputs are written only on success.
//! - A handle is used by one thread at a time; different handles are independent.
//! - A handle works only in the process that opened it; elsewhere each call gives -EPERM,
//!   and only `smbd_close_after_fork` is allowed.
//! - The library starts no threads, installs no signal or exit handlers, and opens every file
//!   descriptor close-on-exec.

#![allow(non_camel_case_types)]
// The C documentation says under Parameters what a pointer must be; a Rust-only section would end up
// in the header.
#![allow(clippy::missing_safety_doc)]

pub mod types;

use libc::{c_char, c_int, c_void};
use types::*;

/// A connection to the engine, with its shared memory. Opaque.
pub struct smbd_handle {
    _private: [u8; 0],
}

use libc::sockaddr_storage;

/// The library's version as (major << 16 | minor << 8 | patch).
///
/// Returns: the version. Never fails.
#[no_mangle]
pub extern "C" fn smbd_version() -> u32 {
    unimplemented!()
}

/// The ABI that the library offers, to be compared with SMBD_ABI_VERSION of the header.
///
/// Returns: the ABI's number.
#[no_mangle]
pub extern "C" fn smbd_abi_version() -> u32 {
    unimplemented!()
}

/// The library's version as text, for instance "0.1.0".
///
/// Returns: a static string.
#[no_mangle]
pub extern "C" fn smbd_version_string() -> *const c_char {
    unimplemented!()
}

/// A text for a negative errno as the functions below return it.
///
/// Parameters: error: the negative (or positive) errno.
/// Returns: a static string, never NULL.
#[no_mangle]
pub extern "C" fn smbd_strerror(error: c_int) -> *const c_char {
    unimplemented!()
}

/// The text of the last error, with the value that was refused and the cure.
///
/// Parameters: handle: the handle; NULL: the last failed smbd_open of this thread.
/// Returns: a string, "" if there was no error.
/// Ownership: the library's; valid until the next call with the same handle.
#[no_mangle]
pub unsafe extern "C" fn smbd_last_error(handle: *const smbd_handle) -> *const c_char {
    unimplemented!()
}

/// Sends the library's log lines to callback. Without it they are dropped.
///
/// Parameters: callback: NULL stops it; user_data: given to callback; max_level: SMBD_LOG_*.
/// Returns: 0.
/// Threads: process-wide; call it before the first smbd_open.
#[no_mangle]
pub unsafe extern "C" fn smbd_set_log_callback(
    callback: smbd_log_callback,
    user_data: *mut c_void,
    max_level: c_int,
) -> c_int {
    unimplemented!()
}

/// Opens a handle: connects to the engine and maps the shared area.
///
/// Parameters: options: NULL takes all defaults; out_handle: gets the handle.
/// Returns: 0; -ENOENT or -ECONNREFUSED: no engine at that path; -EACCES: the engine refuses this
/// user; -EBUSY: another parent handle exists; -EINVAL: a bad option; -EPROTO: engine and library
/// do not fit together; -ENOMEM; -ETIMEDOUT.
/// Ownership: the caller's, to be given to smbd_close.
#[no_mangle]
pub unsafe extern "C" fn smbd_open(
    options: *const smbd_open_options,
    out_handle: *mut *mut smbd_handle,
) -> c_int {
    unimplemented!()
}

/// Closes a handle: its connections end, its registrations go.
///
/// Parameters: handle: NULL is allowed.
/// Returns: 0; -EPERM in a process that did not open it (use smbd_close_after_fork there).
#[no_mangle]
pub unsafe extern "C" fn smbd_close(handle: *mut smbd_handle) -> c_int {
    unimplemented!()
}

/// Drops an inherited handle in a forked child: closes the file descriptors and frees the memory,
/// and tells the engine nothing, so that the opener's handle goes on working.
///
/// Parameters: handle: NULL is allowed.
/// Returns: 0; -EPERM in the process that opened it.
#[no_mangle]
pub unsafe extern "C" fn smbd_close_after_fork(handle: *mut smbd_handle) -> c_int {
    unimplemented!()
}

/// Connects again after SMBD_EVENT_ENGINE_LOST and repeats smbd_set_params, smbd_set_session and
/// smbd_listen. The file descriptor of smbd_get_fd stays the same; the shared area is new (see
/// smbd_get_meminfo).
///
/// Parameters: handle.
/// Returns: 0; -EALREADY: the engine was not lost; else as smbd_open, and it can be tried again.
#[no_mangle]
pub unsafe extern "C" fn smbd_reconnect(handle: *mut smbd_handle) -> c_int {
    unimplemented!()
}

/// The one file descriptor to wait on: readable (level) as long as events are outstanding. Works
/// with select, poll and epoll.
///
/// Parameters: handle.
/// Returns: the file descriptor, or -EPERM.
/// Ownership: the handle's; do not read or close it.
#[no_mangle]
pub unsafe extern "C" fn smbd_get_fd(handle: *mut smbd_handle) -> c_int {
    unimplemented!()
}

/// Sets the server's parameters. Connections are refused until it was called. Only the parent
/// handle may call it. A later call counts for new connections.
///
/// Parameters: handle; params.
/// Returns: 0; -EINVAL: a value is out of range, the old set stays in force; -EPERM: not the
/// parent handle; -ENOTCONN: the engine is lost.
#[no_mangle]
pub unsafe extern "C" fn smbd_set_params(
    handle: *mut smbd_handle,
    params: *const smbd_params,
) -> c_int {
    unimplemented!()
}

/// The parameters in force.
///
/// Parameters: handle; out_params: size set by the caller; security_blob is returned as NULL with
/// its length.
/// Returns: 0; -ENODATA: none were set.
#[no_mangle]
pub unsafe extern "C" fn smbd_get_params(
    handle: *mut smbd_handle,
    out_params: *mut smbd_params,
) -> c_int {
    unimplemented!()
}

/// Registers (or with SMBD_SESSION_REMOVE unregisters) a session id, a ClientGuid or both: new
/// connections that name them come to this handle. They also go when the handle is closed or its
/// process dies.
///
/// Parameters: handle; session.
/// Returns: 0; -EEXIST: another handle has it; -ENOENT: to be removed and not there; -EINVAL.
#[no_mangle]
pub unsafe extern "C" fn smbd_set_session(
    handle: *mut smbd_handle,
    session: *const smbd_session,
) -> c_int {
    unimplemented!()
}

/// Size and layout of the shared area.
///
/// Parameters: handle; out_info: size set by the caller.
/// Returns: 0; -EINVAL.
#[no_mangle]
pub unsafe extern "C" fn smbd_get_meminfo(
    handle: *mut smbd_handle,
    out_info: *mut smbd_meminfo,
) -> c_int {
    unimplemented!()
}

/// Takes events: fills the array with as many as there are and fit. With events waiting it makes
/// no system call. Never blocks.
///
/// Parameters: handle; events: array, size, buffer and buffer_size set in each entry; count: its
/// entries, 1..=65536; out_remaining: gets how many events are known to remain (0: none), may be
/// NULL.
/// Returns: how many entries were filled. An entry with status -EMSGSIZE is the last one filled:
/// its PDU stays. -EINVAL.
#[no_mangle]
pub unsafe extern "C" fn smbd_get_events(
    handle: *mut smbd_handle,
    events: *mut smbd_event,
    count: u32,
    out_remaining: *mut u32,
) -> c_int {
    unimplemented!()
}

/// Stops (or starts again) the delivery of received PDUs of one connection. While it is stopped
/// they stay where they are and the peer runs out of credits.
///
/// Parameters: handle; connection; enable: 0 stops, 1 starts.
/// Returns: 0; -ENOTCONN: no such connection.
#[no_mangle]
pub unsafe extern "C" fn smbd_set_receive(
    handle: *mut smbd_handle,
    connection: u64,
    enable: c_int,
) -> c_int {
    unimplemented!()
}

/// Sends PDUs. Their bytes are copied before it returns.
///
/// Parameters: handle; pdus: array; count: its entries, 1..=65536.
/// Returns: how many were taken, the first n of the array; fewer than count means back-pressure
/// (or, at the entry after, an error that a call starting there returns). Nothing taken: -EAGAIN:
/// wait for SMBD_EVENT_WRITABLE; -EMSGSIZE: larger than the peer's MaxFragmentedSize or than the
/// send area; -ENOTCONN; -EINVAL.
#[no_mangle]
pub unsafe extern "C" fn smbd_send_pdus(
    handle: *mut smbd_handle,
    pdus: *const smbd_pdu,
    count: u32,
) -> c_int {
    unimplemented!()
}

/// Starts RDMA READs and WRITEs. A WRITE followed by smbd_send_pdus on the same connection needs
/// no wait between them: the peer sees the data before the PDU.
///
/// Parameters: handle; ops: array; count: its entries, 1..=65536.
/// Returns: how many were taken, as smbd_send_pdus. Nothing taken: -EAGAIN; -ENOTCONN; -EINVAL:
/// a segment outside the RDMA buffers, an empty segment, descriptors shorter than the segments;
/// -EMSGSIZE: longer than the connection's max_read_write_size.
#[no_mangle]
pub unsafe extern "C" fn smbd_rdma_read_write(
    handle: *mut smbd_handle,
    ops: *const smbd_rdma_op,
    count: u32,
) -> c_int {
    unimplemented!()
}

/// Lets the peer of one connection read or write a piece of the RDMA buffers ([MS-SMBD] 3.1.4.3).
/// A client needs it.
///
/// Parameters: handle; connection; segment; access: SMBD_ACCESS_*; out_descriptor: what to tell
/// the peer.
/// Returns: 0; -EINVAL; -ENOTCONN; -ENOSPC: too many registrations.
#[no_mangle]
pub unsafe extern "C" fn smbd_register_buffer(
    handle: *mut smbd_handle,
    connection: u64,
    segment: *const smbd_segment,
    access: u32,
    out_descriptor: *mut smbd_descriptor,
) -> c_int {
    unimplemented!()
}

/// Takes that right back ([MS-SMBD] 3.1.4.4). After it returned the peer cannot reach the memory.
///
/// Parameters: handle; connection; token.
/// Returns: 0; -ENOENT: not registered, or the peer has invalidated it; -ENOTCONN.
#[no_mangle]
pub unsafe extern "C" fn smbd_deregister_buffer(
    handle: *mut smbd_handle,
    connection: u64,
    token: u32,
) -> c_int {
    unimplemented!()
}

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
    unimplemented!()
}

/// Takes over an offered connection, or one that smbd_export has given a token for.
///
/// Parameters: handle; token: 16 bytes; out_connection: gets the connection.
/// Returns: 0; -ENOENT: unknown or expired token; -ENOSPC: the handle has max_connections
/// already, or no receive slots; -EMSGSIZE: its receive slots are too small.
#[no_mangle]
pub unsafe extern "C" fn smbd_accept(
    handle: *mut smbd_handle,
    token: *const u8,
    out_connection: *mut u64,
) -> c_int {
    unimplemented!()
}

/// Refuses an offered connection.
///
/// Parameters: handle: the parent's; token: 16 bytes.
/// Returns: 0; -ENOENT; -EPERM: not the parent handle.
#[no_mangle]
pub unsafe extern "C" fn smbd_reject(handle: *mut smbd_handle, token: *const u8) -> c_int {
    unimplemented!()
}

/// Makes a token with which another handle of the same user takes this connection over. Until
/// then the connection stays here; at the hand-over it ends here with -EREMCHG. If this process
/// ends first the engine keeps the connection for 10 seconds. PDUs that were not taken with
/// smbd_get_events before the hand-over go to the new owner.
///
/// Parameters: handle; connection; out_token: gets 16 bytes.
/// Returns: 0; -ENOTCONN.
#[no_mangle]
pub unsafe extern "C" fn smbd_export(
    handle: *mut smbd_handle,
    connection: u64,
    out_token: *mut u8,
) -> c_int {
    unimplemented!()
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
    unimplemented!()
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
    unimplemented!()
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
    unimplemented!()
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
    unimplemented!()
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
    unimplemented!()
}

/// The addresses of this host, and on which of them the engine takes SMB Direct connections now.
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
    unimplemented!()
}
