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

mod boundary;
mod calls;
pub mod connections;
mod convert;
pub mod data;
mod logger;
#[cfg(test)]
mod tests;
pub mod types;

use std::os::fd::AsRawFd;

use libc::{c_char, c_int, c_void};

use crate::client::{ClientError, Handle, OpenOptions};
use crate::ipc::SessionSpec;
use boundary::{check_flags, null, read_sized, with_handle, write_sized, HandleState};
use calls::{error_text, number, open_options, release};
use types::*;

/// A connection to the engine, with its shared memory. Opaque.
pub struct smbd_handle {
    _private: [u8; 0],
}

/// The library's version as (major << 16 | minor << 8 | patch).
///
/// Returns: the version. Never fails.
#[no_mangle]
pub extern "C" fn smbd_version() -> u32 {
    (number(env!("CARGO_PKG_VERSION_MAJOR")) << 16)
        | (number(env!("CARGO_PKG_VERSION_MINOR")) << 8)
        | number(env!("CARGO_PKG_VERSION_PATCH"))
}

/// The ABI that the library offers, to be compared with SMBD_ABI_VERSION of the header.
///
/// Returns: the ABI's number.
#[no_mangle]
pub extern "C" fn smbd_abi_version() -> u32 {
    SMBD_ABI_VERSION
}

/// The library's version as text, for instance "0.1.0".
///
/// Returns: a static string.
#[no_mangle]
pub extern "C" fn smbd_version_string() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// A text for a negative errno as the functions below return it.
///
/// Parameters: error: the negative (or positive) errno.
/// Returns: a static string, never NULL.
#[no_mangle]
pub extern "C" fn smbd_strerror(error: c_int) -> *const c_char {
    error_text(error).as_ptr()
}

/// The text of the last error, with the value that was refused and the cure.
///
/// Parameters: handle: the handle; NULL: the last failed smbd_open of this thread.
/// Returns: a string, "" if there was no error.
/// Ownership: the library's; valid until the next call with the same handle.
#[no_mangle]
pub unsafe extern "C" fn smbd_last_error(handle: *const smbd_handle) -> *const c_char {
    // SAFETY: the caller gives null or a handle that is not closed.
    match unsafe { handle.cast::<HandleState>().as_ref() } {
        Some(state) => state.last_error(),
        None => boundary::thread_error(),
    }
}

/// Sends the library's log lines to callback. Without it they are dropped.
///
/// Parameters: callback: NULL stops it; user_data: given to callback; max_level: SMBD_LOG_*.
/// Returns: 0; -EINVAL: no such level; -EBUSY: the program, written in Rust, has its own logger.
/// Threads: process-wide; call it before the first smbd_open.
#[no_mangle]
pub unsafe extern "C" fn smbd_set_log_callback(
    callback: smbd_log_callback,
    user_data: *mut c_void,
    max_level: c_int,
) -> c_int {
    boundary::without_handle(|| {
        let level = logger::level(max_level).ok_or_else(|| {
            ClientError::new(
                libc::EINVAL,
                format!(
                    "max_level is {max_level}, it may be SMBD_LOG_ERROR (1)..SMBD_LOG_DEBUG (4)"
                ),
            )
        })?;
        if !logger::set(callback, user_data, level) {
            let text = "this program has set a logger of its own";
            return Err(ClientError::new(libc::EBUSY, text));
        }
        Ok(0)
    })
}

/// Opens a handle: connects to the engine and maps the shared area.
///
/// Parameters: options: NULL takes all defaults; out_handle: gets the handle.
/// Returns: 0; -ENOENT or -ECONNREFUSED: no engine at that path; -EACCES: the engine refuses this
/// user; -EBUSY: another parent handle exists; -EINVAL: a bad option; -EPROTO: engine and library
/// do not fit together; -EMFILE: this process or the engine has no file descriptor left; -EFBIG: the
/// shared area is larger than the engine's RLIMIT_FSIZE; -ENOMEM; -ETIMEDOUT.
/// Ownership: the caller's, to be given to smbd_close.
#[no_mangle]
pub unsafe extern "C" fn smbd_open(
    options: *const smbd_open_options,
    out_handle: *mut *mut smbd_handle,
) -> c_int {
    boundary::without_handle(|| {
        if out_handle.is_null() {
            return Err(null("out_handle"));
        }
        let options = if options.is_null() {
            OpenOptions::default()
        } else {
            // SAFETY: the caller gives a structure that tells its size.
            let options = unsafe { read_sized(options) }?;
            // SAFETY: socket_path is null or a string ended by NUL.
            unsafe { open_options(&options) }?
        };
        let handle = HandleState::into_raw(Handle::open(options)?);
        // SAFETY: not null, and the caller's to be written.
        unsafe { out_handle.write(handle) };
        Ok(0)
    })
}

/// Closes a handle: its connections end, its registrations go.
///
/// Parameters: handle: NULL is allowed.
/// Returns: 0; -EPERM in a process that did not open it (use smbd_close_after_fork there).
#[no_mangle]
pub unsafe extern "C" fn smbd_close(handle: *mut smbd_handle) -> c_int {
    if handle.is_null() {
        return 0;
    }
    // SAFETY: the caller gives a handle that is not closed and not in use.
    let result = unsafe { with_handle(handle, |handle| handle.close().map(|()| 0)) };
    if result != -libc::EPERM {
        // SAFETY: it came from `HandleState::into_raw`, and the caller does not use it again.
        unsafe { release(handle) };
        return 0;
    }
    result
}

/// Drops an inherited handle in a forked child: closes the file descriptors and frees the memory,
/// and tells the engine nothing, so that the opener's handle goes on working.
///
/// Parameters: handle: NULL is allowed.
/// Returns: 0; -EPERM in the process that opened it.
#[no_mangle]
pub unsafe extern "C" fn smbd_close_after_fork(handle: *mut smbd_handle) -> c_int {
    if handle.is_null() {
        return 0;
    }
    let opened_here = || {
        let text = "this process opened the handle: use smbd_close";
        Err(ClientError::new(libc::EPERM, text))
    };
    let check = |handle: &mut Handle| {
        if handle.is_opener() {
            opened_here()
        } else {
            Ok(0)
        }
    };
    // SAFETY: the caller gives a handle that is not closed and not in use.
    let result = unsafe { with_handle(handle, check) };
    if result != -libc::EPERM {
        // SAFETY: it came from `HandleState::into_raw`, and the caller does not use it again.
        unsafe { release(handle) };
        return 0;
    }
    result
}

/// Connects again after SMBD_EVENT_ENGINE_LOST and repeats smbd_set_params, smbd_set_session and
/// smbd_listen. The file descriptor of smbd_get_fd stays the same; the shared area is new (see
/// smbd_get_meminfo).
///
/// Parameters: handle.
/// Returns: 0; -EALREADY: the engine was not lost; -EBUSY: events are left, ENGINE_LOST being the
/// last of them; else as smbd_open, and it can be tried again.
#[no_mangle]
pub unsafe extern "C" fn smbd_reconnect(handle: *mut smbd_handle) -> c_int {
    // SAFETY: the caller gives a handle that is not closed and not in use.
    unsafe { with_handle(handle, |handle| handle.reconnect().map(|()| 0)) }
}

/// The one file descriptor to wait on: readable (level) as long as events are outstanding. Works
/// with select, poll and epoll.
///
/// Parameters: handle.
/// Returns: the file descriptor, or -EPERM.
/// Ownership: the handle's; do not read or close it.
#[no_mangle]
pub unsafe extern "C" fn smbd_get_fd(handle: *mut smbd_handle) -> c_int {
    // SAFETY: the caller gives a handle that is not closed and not in use.
    unsafe { with_handle(handle, |handle| Ok(handle.fd()?.as_raw_fd())) }
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
    let call = |handle: &mut Handle| {
        // SAFETY: the caller gives a structure that tells its size, with a blob of the length it tells.
        let params = unsafe { convert::params(&read_sized(params)?) }?;
        handle.set_params(&params).map(|()| 0)
    };
    // SAFETY: the caller gives a handle that is not closed and not in use.
    unsafe { with_handle(handle, call) }
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
    let call = |handle: &mut Handle| {
        // SAFETY: the caller gives a structure that tells its size.
        unsafe { boundary::size_of_struct(out_params) }?;
        let params = convert::c_params(&handle.params()?);
        // SAFETY: as above.
        unsafe { write_sized(out_params, &params) }.map(|()| 0)
    };
    // SAFETY: the caller gives a handle that is not closed and not in use.
    unsafe { with_handle(handle, call) }
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
    let call = |handle: &mut Handle| {
        // SAFETY: the caller gives a structure that tells its size.
        let session = unsafe { read_sized(session) }?;
        let known = SMBD_SESSION_ID | SMBD_SESSION_CLIENT_GUID | SMBD_SESSION_REMOVE;
        check_flags(session.flags, known)?;
        let has = |flag| session.flags & flag != 0;
        let spec = SessionSpec {
            session_id: has(SMBD_SESSION_ID).then_some(session.session_id),
            client_guid: has(SMBD_SESSION_CLIENT_GUID).then_some(session.client_guid),
            remove: has(SMBD_SESSION_REMOVE),
        };
        handle.set_session(&spec).map(|()| 0)
    };
    // SAFETY: the caller gives a handle that is not closed and not in use.
    unsafe { with_handle(handle, call) }
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
    let call = |handle: &mut Handle| {
        let info = handle.meminfo()?;
        let layout = info.layout;
        let area = layout.options();
        let c_info = smbd_meminfo {
            size: 0,
            fd: info.fd.as_raw_fd(),
            area_size: layout.area_size(),
            pdu_offset: layout.receive.offset,
            pdu_size: layout.receive.len + layout.send.len,
            rdma_offset: layout.rdma.offset,
            rdma_buffers: area.rdma_buffers,
            rdma_buffer_size: area.rdma_buffer_size,
            address: info.region.address().cast(),
        };
        // SAFETY: the caller gives a structure that tells its size.
        unsafe { write_sized(out_info, &c_info) }.map(|()| 0)
    };
    // SAFETY: the caller gives a handle that is not closed and not in use.
    unsafe { with_handle(handle, call) }
}
