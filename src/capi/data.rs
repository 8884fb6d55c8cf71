//! The C ABI: events, PDUs, RDMA.

use libc::c_int;

use super::boundary::{self, check_count, check_flags, null, with_handle};
use super::calls::{c_count, fill_event, queue_all, queue_pdu, queue_rdma};
use super::smbd_handle;
use super::types::*;
use crate::client::{Handle, Taken};
use crate::ring::Segment;

/// Takes events: fills the array with as many as there are and fit. With events waiting it makes
/// no system call. Never blocks.
///
/// Parameters: handle; events: array, size, buffer and buffer_size set in each entry; count: its
/// entries, 1..=65536; out_remaining: gets how many events are known to remain (0: none), may be
/// NULL.
/// Returns: how many entries were filled. An entry with status -EMSGSIZE is the last one filled:
/// its PDU stays, and all events behind it. -EINVAL: count, the first entry's size, or a buffer that
/// is NULL with a buffer_size; no event is lost then.
#[no_mangle]
pub unsafe extern "C" fn smbd_get_events(
    handle: *mut smbd_handle,
    events: *mut smbd_event,
    count: u32,
    out_remaining: *mut u32,
) -> c_int {
    let call = |handle: &mut Handle| {
        check_count(count)?;
        // SAFETY: the caller gives an array whose entries tell their size.
        let stride = unsafe { boundary::size_of_struct(events) }?;
        let mut next = events.cast::<u8>();
        let mut error = None;
        let (filled, left) = handle.take_events(count as usize, &mut |event, pdu| {
            let entry: *mut smbd_event = next.cast();
            // SAFETY: at most `count` calls, so that this is an entry of the array.
            match unsafe { fill_event(entry, event, pdu) } {
                Ok(taken) => {
                    // SAFETY: the next entry, or the end of the array.
                    next = unsafe { next.add(stride) };
                    taken
                }
                Err(refused) => {
                    error = Some(refused);
                    Taken::TooSmall
                }
            }
        })?;
        // The entry that was refused was counted; what came before it is delivered.
        let filled = match error {
            Some(error) if filled == 1 => return Err(error),
            Some(_) => filled - 1,
            None => filled,
        };
        if !out_remaining.is_null() {
            // SAFETY: not null, and the caller's to be written.
            unsafe { out_remaining.write(u32::try_from(left).unwrap_or(u32::MAX)) };
        }
        Ok(c_count(filled))
    };
    // SAFETY: the caller gives a handle that is not closed and not in use.
    unsafe { with_handle(handle, call) }
}

/// Stops (or starts again) the delivery of received PDUs of one connection. While it is stopped
/// they stay where they are and the peer runs out of credits; if the connection ends meanwhile they
/// are dropped, so that DISCONNECTED is told at once. Starting also takes back an smbd_export.
///
/// Parameters: handle; connection; enable: 0 stops, 1 starts.
/// Returns: 0; -ENOTCONN: no such connection.
#[no_mangle]
pub unsafe extern "C" fn smbd_set_receive(
    handle: *mut smbd_handle,
    connection: u64,
    enable: c_int,
) -> c_int {
    // SAFETY: the caller gives a handle that is not closed and not in use.
    unsafe {
        with_handle(handle, |handle| {
            handle.set_receive(connection, enable != 0).map(|()| 0)
        })
    }
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
    let call = |handle: &mut Handle| {
        let queue = |handle: &mut Handle, pdu: &smbd_pdu| {
            // SAFETY: the caller gives entries with iovecs that are valid for reads.
            unsafe { queue_pdu(handle, pdu) }
        };
        // SAFETY: the caller gives an array whose entries tell their size.
        unsafe { queue_all(handle, pdus, count, queue) }
    };
    // SAFETY: the caller gives a handle that is not closed and not in use.
    unsafe { with_handle(handle, call) }
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
    let call = |handle: &mut Handle| {
        let queue = |handle: &mut Handle, op: &smbd_rdma_op| {
            // SAFETY: the caller gives entries with arrays of the lengths they tell.
            unsafe { queue_rdma(handle, op) }
        };
        // SAFETY: the caller gives an array whose entries tell their size.
        unsafe { queue_all(handle, ops, count, queue) }
    };
    // SAFETY: the caller gives a handle that is not closed and not in use.
    unsafe { with_handle(handle, call) }
}

/// Tells whether SMBD_RDMA_LAZY holds, as it does at first. A process that has to wait for RDMA
/// buffers which such operations still use turns it off meanwhile: from then on they are told as if
/// they had no such flag, also those that were started before. No system call, unless one of them
/// has completed already.
///
/// Parameters: handle; lazy: 1, or 0.
/// Returns: 0; -ENOTCONN: the engine is gone. The setting outlives smbd_reconnect.
#[no_mangle]
pub unsafe extern "C" fn smbd_set_lazy(handle: *mut smbd_handle, lazy: c_int) -> c_int {
    // SAFETY: the caller gives a handle that is not closed and not in use.
    unsafe { with_handle(handle, |handle| handle.set_lazy(lazy != 0).map(|()| 0)) }
}

/// Lets the peer of one connection read or write a piece of the RDMA buffers ([MS-SMBD] 3.1.4.3).
/// A client needs it. The token holds for a peer that has got a PDU which was given to smbd_send_pdus
/// afterwards: on an RDMA device that may bind a memory window, PDUs wait for the binding. A peer that
/// learns the token by another way may use it too early, which ends the connection.
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
    let call = |handle: &mut Handle| {
        check_flags(access, SMBD_ACCESS_REMOTE_READ | SMBD_ACCESS_REMOTE_WRITE)?;
        // SAFETY: the caller gives null or a segment.
        let segment = unsafe { segment.as_ref() }.ok_or_else(|| null("segment"))?;
        if out_descriptor.is_null() {
            return Err(null("out_descriptor"));
        }
        let segment = Segment {
            offset: segment.offset,
            length: segment.length,
        };
        let read = access & SMBD_ACCESS_REMOTE_READ != 0;
        let write = access & SMBD_ACCESS_REMOTE_WRITE != 0;
        let registered = handle.register(connection, segment, read, write)?;
        let descriptor = smbd_descriptor {
            offset: registered.offset,
            token: registered.token,
            length: registered.length,
        };
        // SAFETY: not null, and the caller's to be written.
        unsafe { out_descriptor.write(descriptor) };
        Ok(0)
    };
    // SAFETY: the caller gives a handle that is not closed and not in use.
    unsafe { with_handle(handle, call) }
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
    // SAFETY: the caller gives a handle that is not closed and not in use.
    unsafe {
        with_handle(handle, |handle| {
            handle.deregister(connection, token).map(|()| 0)
        })
    }
}
