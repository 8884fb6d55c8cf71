//! The longer parts of the functions.

use std::ffi::{c_int, CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use super::boundary::{check_count, check_flags, null, read_sized, size_of_struct, HandleState};
use super::boundary::{write_sized, Sized32};
use super::types::*;
use super::{convert, smbd_handle};
use crate::client::{
    ClientError, Event, Handle, OpenOptions, PduBytes, Piece, RdmaOp, SendPdu, Taken,
};
use crate::ipc::{ConnectSpec, InterfaceRecord, ListenSpec, Params};
use crate::mem::MemSlice;
use crate::ring::{
    AreaOptions, ConnectionCounters, ConnectionRecord, Descriptor, Segment, MAX_DESCRIPTORS,
    MAX_SEGMENTS,
};

/// Frees what a handle pointer points to.
///
/// # Safety
///
/// It came from [`HandleState::into_raw`] and is not used again.
pub(super) unsafe fn release(handle: *mut smbd_handle) {
    // SAFETY: the caller's promise.
    let state = unsafe { Box::from_raw(handle.cast::<HandleState>()) };
    super::boundary::without_handle(|| {
        drop(state);
        Ok(0)
    });
}

/// # Safety
///
/// `socket_path` is null or a string ended by NUL.
pub(super) unsafe fn open_options(from: &smbd_open_options) -> Result<OpenOptions, ClientError> {
    check_flags(from.flags, SMBD_OPEN_PARENT)?;
    let default = OpenOptions::default();
    let or = |value: u32, default: u32| if value == 0 { default } else { value };
    let socket = if from.socket_path.is_null() {
        default.socket
    } else {
        // SAFETY: the caller's promise.
        let path = unsafe { CStr::from_ptr(from.socket_path) };
        OsStr::from_bytes(path.to_bytes()).into()
    };
    let timeout = match from.timeout_msec {
        0 => default.timeout,
        msec => Duration::from_millis(msec.into()),
    };
    Ok(OpenOptions {
        socket,
        parent: from.flags & SMBD_OPEN_PARENT != 0,
        area: AreaOptions {
            rdma_buffers: or(from.rdma_buffers, default.area.rdma_buffers),
            rdma_buffer_size: or(from.rdma_buffer_size, default.area.rdma_buffer_size),
            max_connections: or(from.max_connections, default.area.max_connections),
            receive_slots: from.receive_slots,
            receive_slot_size: or(from.receive_slot_size, default.area.receive_slot_size),
            send_area_size: or(from.send_area_size, default.area.send_area_size),
        },
        timeout,
    })
}

/// Writes one event to an entry of the caller's array.
///
/// # Safety
///
/// `entry` is an entry of an array whose first one told its size, its buffer is null or valid for
/// writes of buffer_size bytes.
pub(super) unsafe fn fill_event(
    entry: *mut smbd_event,
    event: &Event,
    pdu: Option<PduBytes<'_>>,
) -> Result<Taken, ClientError> {
    // SAFETY: the caller's promise.
    let mut out = unsafe { read_sized(entry.cast_const()) }?;
    out.event = convert::event_number(event.kind);
    out.flags = event.flags.into();
    out.status = event.status;
    out.connection = event.connection;
    out.cookie = event.cookie;
    out.length = event.length;
    out.invalidated_token = event.invalidated_token;
    out.reserved = 0;
    out.token = event.token;
    let mut taken = Taken::Done;
    if let Some(pdu) = pdu {
        if event.length > out.buffer_size {
            out.status = -libc::EMSGSIZE;
            taken = Taken::TooSmall;
        } else if out.buffer.is_null() && event.length > 0 {
            return Err(null("smbd_event.buffer"));
        } else {
            // SAFETY: the buffer has room for buffer_size bytes, and the PDU has no more.
            unsafe { copy_pdu(&pdu, out.buffer.cast()) };
        }
    }
    // SAFETY: the caller's promise.
    unsafe { write_sized(entry, &out) }?;
    Ok(taken)
}

/// Copies a PDU, straight from its receive slots.
///
/// # Safety
///
/// `to` is valid for writes of the PDU's length.
unsafe fn copy_pdu(pdu: &PduBytes<'_>, mut to: *mut u8) {
    for piece in pdu.pieces() {
        match piece {
            Piece::Heap(bytes) => {
                // SAFETY: the pieces together are as long as the PDU.
                unsafe {
                    std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
                    to = to.add(bytes.len());
                }
            }
            Piece::Shared {
                region,
                offset,
                len,
            } => {
                // SAFETY: as above; a buffer inside the area would be the caller's own doing.
                let result = unsafe { region.read_raw(offset, to, len) };
                debug_assert!(
                    result.is_ok(),
                    "the place was checked when the fragment came"
                );
                // SAFETY: as above.
                to = unsafe { to.add(len) };
            }
        }
    }
}

/// Queues the entries of an array until one is refused, then submits. Returns how many were queued;
/// the error only if none was.
///
/// # Safety
///
/// `entries` is null or an array of `count` entries that tell their size.
pub(super) unsafe fn queue_all<T: Sized32>(
    handle: &mut Handle,
    entries: *const T,
    count: u32,
    queue: impl Fn(&mut Handle, &T) -> Result<(), ClientError>,
) -> Result<c_int, ClientError> {
    check_count(count)?;
    // SAFETY: the caller's promise.
    let stride = unsafe { size_of_struct(entries) }?;
    for i in 0..count as usize {
        // SAFETY: an entry of the array.
        let entry = unsafe { read_sized(entries.cast::<u8>().add(i * stride).cast::<T>()) };
        if let Err(error) = entry.and_then(|entry| queue(handle, &entry)) {
            if i == 0 {
                return Err(error);
            }
            handle.submit()?;
            return Ok(c_count(i));
        }
    }
    handle.submit()?;
    Ok(c_count(count as usize))
}

/// # Safety
///
/// `iov` is null or an array of `iov_count` pieces that are valid for reads.
pub(super) unsafe fn queue_pdu(handle: &mut Handle, pdu: &smbd_pdu) -> Result<(), ClientError> {
    check_flags(pdu.flags, SMBD_PDU_INVALIDATE | SMBD_PDU_NO_EVENT)?;
    // SAFETY: the caller's promise.
    let iov = unsafe { array("iov", pdu.iov, pdu.iov_count, 1024) }?;
    let mut length = 0_usize;
    for piece in iov {
        if piece.iov_base.is_null() && piece.iov_len > 0 {
            return Err(null("iov_base"));
        }
        length = length.saturating_add(piece.iov_len);
    }
    let request = SendPdu {
        connection: pdu.connection,
        cookie: pdu.cookie,
        has_event: pdu.flags & SMBD_PDU_NO_EVENT == 0,
        invalidate: (pdu.flags & SMBD_PDU_INVALIDATE != 0).then_some(pdu.invalidate_token),
        length,
    };
    handle.queue_pdu(&request, &mut |to: &MemSlice| {
        let mut at = to.offset();
        for piece in iov {
            // SAFETY: the piece is valid for reads; `to` has room for all of them, and what lies
            // outside the region is refused.
            unsafe {
                to.region()
                    .write_raw(at, piece.iov_base.cast(), piece.iov_len)
            }
            .map_err(|error| ClientError::new(libc::EINVAL, error.to_string()))?;
            at += piece.iov_len;
        }
        Ok(())
    })
}

/// # Safety
///
/// The arrays are null or have the lengths that are told.
pub(super) unsafe fn queue_rdma(handle: &mut Handle, op: &smbd_rdma_op) -> Result<(), ClientError> {
    let known = SMBD_RDMA_READ
        | SMBD_RDMA_WRITE
        | SMBD_RDMA_REMOTE_INVALIDATE
        | SMBD_RDMA_NO_EVENT
        | SMBD_RDMA_LAZY;
    check_flags(op.flags, known)?;
    let has = |flag| op.flags & flag != 0;
    if has(SMBD_RDMA_READ) == has(SMBD_RDMA_WRITE) {
        return Err(ClientError::new(
            libc::EINVAL,
            "flags must have exactly one of SMBD_RDMA_READ and SMBD_RDMA_WRITE",
        ));
    }
    // SAFETY: the caller's promise.
    let segments = unsafe { array("segments", op.segments, op.segment_count, MAX_SEGMENTS) }?;
    let count = op.descriptor_count;
    // SAFETY: the caller's promise.
    let descriptors = unsafe { array("descriptors", op.descriptors, count, MAX_DESCRIPTORS) }?;
    let segments: Vec<_> = segments
        .iter()
        .map(|from| Segment {
            offset: from.offset,
            length: from.length,
        })
        .collect();
    let descriptors: Vec<_> = descriptors
        .iter()
        .map(|from| Descriptor {
            offset: from.offset,
            token: from.token,
            length: from.length,
        })
        .collect();
    handle.queue_rdma(&RdmaOp {
        connection: op.connection,
        cookie: op.cookie,
        has_event: !has(SMBD_RDMA_NO_EVENT),
        is_lazy: has(SMBD_RDMA_LAZY),
        is_read: has(SMBD_RDMA_READ),
        invalidate_next: has(SMBD_RDMA_REMOTE_INVALIDATE),
        segments: &segments,
        descriptors: &descriptors,
    })
}

pub(super) fn listen_spec(from: &smbd_listen_options) -> Result<ListenSpec, ClientError> {
    check_flags(from.flags, SMBD_FABRIC_CRC)?;
    Ok(ListenSpec {
        fabric: convert::fabric(from.fabric)?,
        address: convert::socket_addr(&from.address, from.address_length)?,
        crc: from.flags & SMBD_FABRIC_CRC != 0,
    })
}

/// # Safety
///
/// `params` is null or a structure that tells its size, with a blob of the length it tells.
pub(super) unsafe fn connect_spec(from: &smbd_connect_options) -> Result<ConnectSpec, ClientError> {
    check_flags(from.flags, SMBD_FABRIC_CRC)?;
    let params = if from.params.is_null() {
        Params {
            max_send_size: 1364,
            ..Params::default()
        }
    } else {
        // SAFETY: the caller's promise.
        unsafe { convert::params(&read_sized(from.params)?) }?
    };
    let revision = match from.mpa_revision {
        0 => 2,
        // Anything above is refused by `ConnectSpec::check`.
        revision => u8::try_from(revision).unwrap_or(u8::MAX),
    };
    Ok(ConnectSpec {
        fabric: convert::fabric(from.fabric)?,
        address: convert::socket_addr(&from.address, from.address_length)?,
        crc: from.flags & SMBD_FABRIC_CRC != 0,
        mpa_revision: revision,
        timeout_msec: match from.timeout_msec {
            0 => 120_000,
            msec => msec,
        },
        params,
    })
}

pub(super) fn connection_info(
    record: &ConnectionRecord,
    counters: &ConnectionCounters,
) -> smbd_connection_info {
    let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    smbd_connection_info {
        size: 0,
        fabric: record.fabric,
        local: convert::sockaddr(record.local),
        peer: convert::sockaddr(record.peer),
        max_send_size: record.max_send_size,
        max_receive_size: record.max_receive_size,
        max_fragmented_send_size: record.max_fragmented_send_size,
        max_fragmented_receive_size: record.max_fragmented_receive_size,
        max_read_write_size: record.max_read_write_size,
        send_credits: narrow(counters.send_credits),
        receive_credits: narrow(counters.receive_credits),
        max_rdma_reads: record.max_rdma_reads,
        pdus_received: counters.pdus_received,
        pdus_sent: counters.pdus_sent,
        messages_received: counters.messages_received,
        messages_sent: counters.messages_sent,
        bytes_received: counters.bytes_received,
        bytes_sent: counters.bytes_sent,
        rdma_reads: counters.rdma_reads,
        rdma_writes: counters.rdma_writes,
        rdma_read_bytes: counters.rdma_read_bytes,
        rdma_write_bytes: counters.rdma_write_bytes,
    }
}

pub(super) fn interface(from: &InterfaceRecord) -> smbd_interface {
    smbd_interface {
        size: 0,
        if_index: from.if_index,
        capability: from.capability,
        fabric: from.fabric.map_or(0, |fabric| fabric.number()),
        link_speed: from.link_speed,
        address: convert::sockaddr(from.address),
        name: convert::c_text(&from.name),
        reason: convert::c_text(&from.reason),
    }
}

/// # Safety
///
/// `token` is null or valid for reads of 16 bytes.
pub(super) unsafe fn read_token(token: *const u8) -> Result<[u8; 16], ClientError> {
    if token.is_null() {
        return Err(null("token"));
    }
    // SAFETY: the caller's promise; an array of bytes needs no alignment.
    Ok(unsafe { token.cast::<[u8; 16]>().read() })
}

/// A count of at most 65536 for C.
pub(super) fn c_count(count: usize) -> c_int {
    c_int::try_from(count).unwrap_or(c_int::MAX)
}

/// A decimal number of the crate's version.
pub(super) const fn number(digits: &str) -> u32 {
    let digits = digits.as_bytes();
    let mut value = 0;
    let mut i = 0;
    while i < digits.len() {
        value = value * 10 + (digits[i] - b'0') as u32;
        i += 1;
    }
    value
}

pub(super) fn error_text(error: c_int) -> &'static CStr {
    // c_int::MIN has no positive counterpart, and no meaning.
    match error.checked_abs().unwrap_or(c_int::MAX) {
        0 => c"no error",
        libc::EPERM => c"not allowed for this handle or in this process",
        libc::ENOENT => c"not found",
        libc::EIO => c"input/output error",
        libc::E2BIG => c"the library is too old for what was asked",
        libc::EAGAIN => c"no room now, try again",
        libc::ENOMEM => c"out of memory",
        libc::EACCES => c"permission denied",
        libc::EBUSY => c"in use",
        libc::EEXIST => c"exists already",
        libc::EINVAL => c"invalid argument",
        libc::EMFILE => c"too many open files",
        libc::ENOSPC => c"a limit is reached",
        libc::ENODATA => c"nothing was set",
        libc::EPROTO => c"protocol violation",
        libc::EMSGSIZE => c"wrong size for a buffer or message",
        libc::EREMCHG => c"handed over to another handle",
        libc::EOPNOTSUPP => c"not supported by this build",
        libc::EADDRINUSE => c"address in use",
        libc::EADDRNOTAVAIL => c"address not available on this host",
        libc::ENETDOWN => c"the engine is gone",
        libc::ECONNABORTED => c"the fabric failed",
        libc::ECONNRESET => c"connection ended by the peer",
        libc::ENOTCONN => c"not connected",
        libc::ETIMEDOUT => c"timed out",
        libc::ECONNREFUSED => c"connection refused",
        libc::EALREADY => c"already so",
        libc::ENOTRECOVERABLE => c"the library failed inside a call, the handle is unusable",
        _ => c"unknown error",
    }
}

/// # Safety
///
/// `array` is null or has `count` entries.
unsafe fn array<'a, T>(
    name: &str,
    array: *const T,
    count: u32,
    max: u32,
) -> Result<&'a [T], ClientError> {
    if !(1..=max).contains(&count) {
        return Err(ClientError::new(
            libc::EINVAL,
            format!("the count of {name} is {count}, it may be 1..={max}"),
        ));
    }
    if array.is_null() {
        return Err(null(name));
    }
    // SAFETY: not null, `count` entries by the caller's promise, which nobody changes meanwhile.
    Ok(unsafe { std::slice::from_raw_parts(array, count as usize) })
}
