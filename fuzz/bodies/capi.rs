//! The C interface as lists of calls on a few handles of a real engine: structures of odd sizes,
//! handles that were closed, a descriptor that is not there any more, values out of range.
//!
//! What C may not do is not done: pointers are valid for what they are said to be, and a closed
//! handle is not used again.

use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::ptr;
use std::sync::OnceLock;

use libc::{iovec, sockaddr_in, sockaddr_storage};
use smbdirect::capi::connections::*;
use smbdirect::capi::data::*;
use smbdirect::capi::types::*;
use smbdirect::capi::*;

use super::input::{pattern, Input};
use super::lab::{negotiate, Lab};

/// The bytes that follow every structure here: the largest size that a structure may claim.
const ROOM: usize = 4096;

/// A structure with room behind it, so that any size up to [`ROOM`] is a valid claim.
#[repr(C, align(16))]
struct Roomy {
    bytes: [u8; ROOM + 16],
}

impl Roomy {
    /// A structure that claims `size` bytes.
    fn of<T: Copy>(value: T, size: usize) -> Box<Self> {
        let mut roomy = Box::new(Self {
            bytes: [0; ROOM + 16],
        });
        // SAFETY: the structure is far smaller than the array, which is aligned for it.
        unsafe { roomy.as_mut_ptr::<T>().write(value) };
        roomy.bytes[..4].copy_from_slice(&(size as u32).to_ne_bytes());
        roomy
    }

    fn as_mut_ptr<T>(&mut self) -> *mut T {
        self.bytes.as_mut_ptr().cast()
    }
}

/// Mostly the right size.
fn size_of_odd<T>(input: &mut Input<'_>) -> usize {
    match input.below(12) {
        0 => input.pick(&[0, 1, 4, 8, 4095, 4096, 4097, 1 << 20, u32::MAX as usize]),
        1 => size_of::<T>() + 8 * input.below(16),
        2 => size_of::<T>() - 8.min(size_of::<T>()),
        _ => size_of::<T>(),
    }
}

fn zeroed<T: Copy>() -> T {
    // SAFETY: used for the C structures only, all of which may be zeros.
    unsafe { std::mem::zeroed() }
}

pub(crate) fn run(bytes: &[u8]) {
    static LAB: OnceLock<Lab> = OnceLock::new();
    let lab = LAB.get_or_init(Lab::start);
    let mut input = Input::new(bytes);
    let mut calls = Calls {
        path: CString::new(lab.socket.to_str().expect("a path")).expect("a path"),
        handles: [ptr::null_mut(); 3],
        connections: Vec::new(),
        tokens: Vec::new(),
        keys: Vec::new(),
        address: None,
    };
    let mut left = 60;
    while !input.is_empty() && left > 0 {
        left -= 1;
        let (result, handle) = calls.call(&mut input);
        if result < 0 {
            assert_ne!(result, -libc::ENOTRECOVERABLE, "{}", text(handle));
            assert!(result > -4096);
            // SAFETY: the text is the library's, ended by NUL.
            let words = unsafe { CStr::from_ptr(smbd_strerror(result)) };
            assert!(!words.to_bytes().is_empty());
        }
    }
    for handle in calls.handles {
        // SAFETY: null or a live handle, not used again.
        unsafe { smbd_close(handle) };
    }
    lab.until_handles(0);
}

fn text(handle: *mut smbd_handle) -> String {
    // SAFETY: null or a live handle; the text is ended by NUL.
    let text = unsafe { CStr::from_ptr(smbd_last_error(handle)) };
    text.to_string_lossy().into_owned()
}

struct Calls {
    path: CString,
    handles: [*mut smbd_handle; 3],
    connections: Vec<u64>,
    tokens: Vec<[u8; 16]>,
    keys: Vec<smbd_descriptor>,
    /// Where a handle listens.
    address: Option<sockaddr_storage>,
}

impl Calls {
    fn call(&mut self, input: &mut Input<'_>) -> (c_int, *mut smbd_handle) {
        let at = input.below(3);
        if self.handles[at].is_null() && input.below(8) > 0 {
            return (self.open(input, at), ptr::null_mut());
        }
        let handle = self.handles[at];
        let connection = self.connection(input);
        let result = match input.below(24) {
            0 => {
                self.handles[at] = ptr::null_mut();
                // SAFETY: null or a live handle, forgotten just now.
                let result = unsafe { smbd_close(handle) };
                assert_eq!(result, 0);
                return (result, ptr::null_mut());
            }
            1 | 2 => self.set_params(input, handle),
            3 => self.set_session(input, handle),
            4 | 5 => self.listen(input, handle),
            6 | 7 => self.connect(input, handle),
            8..=11 => self.get_events(input, handle),
            12..=14 => self.send(input, handle, connection),
            15 | 16 => self.rdma(input, handle, connection),
            17 => self.register(input, handle, connection),
            18 => self.take_over(input, handle, connection),
            19 => {
                let token = self.key(input).token;
                // SAFETY: null or a live handle.
                unsafe { smbd_deregister_buffer(handle, connection, token) }
            }
            20 => {
                // SAFETY: null or a live handle.
                unsafe { smbd_set_receive(handle, connection, c_int::from(input.u8())) }
            }
            21 => {
                // SAFETY: null or a live handle.
                unsafe { smbd_disconnect(handle, connection) }
            }
            _ => self.ask(input, handle, connection),
        };
        (result, handle)
    }

    fn connection(&self, input: &mut Input<'_>) -> u64 {
        if self.connections.is_empty() || input.below(8) == 7 {
            input.u64()
        } else {
            self.connections[input.below(self.connections.len())]
        }
    }

    fn key(&self, input: &mut Input<'_>) -> smbd_descriptor {
        if self.keys.is_empty() || input.below(8) == 7 {
            smbd_descriptor {
                offset: input.u64(),
                token: input.u32(),
                length: input.odd_u32(),
            }
        } else {
            self.keys[input.below(self.keys.len())]
        }
    }

    fn open(&mut self, input: &mut Input<'_>, at: usize) -> c_int {
        let nowhere = c"/nonexistent/engine.sock";
        let mut options = smbd_open_options {
            flags: input.pick(&[0, SMBD_OPEN_PARENT, SMBD_OPEN_PARENT, 0x80]),
            socket_path: if input.below(16) == 15 {
                nowhere.as_ptr()
            } else {
                self.path.as_ptr()
            },
            rdma_buffers: 4,
            rdma_buffer_size: 65536,
            max_connections: 4,
            receive_slots: 64,
            receive_slot_size: 1024,
            send_area_size: 128 << 10,
            timeout_msec: 30_000,
            size: 0,
        };
        if input.below(4) == 3 {
            match input.below(4) {
                0 => options.rdma_buffers = input.pick(&[0, 1, 5000]),
                1 => options.receive_slots = input.odd_u32(),
                2 => options.send_area_size = input.pick(&[0, 1, 65536, u32::MAX]),
                _ => options.max_connections = input.odd_u32(),
            }
        }
        let size = size_of_odd::<smbd_open_options>(input);
        let mut options = Roomy::of(options, size);
        let mut handle = ptr::null_mut();
        // SAFETY: both are valid.
        let result = unsafe { smbd_open(options.as_mut_ptr(), &mut handle) };
        assert_eq!(result == 0, !handle.is_null());
        self.handles[at] = handle;
        result
    }

    fn params(&self, input: &mut Input<'_>, blob: &[u8]) -> smbd_params {
        let mut params: smbd_params = zeroed();
        params.max_receive_size = 1024;
        params.max_send_size = 1024;
        params.receive_credit_max = 10;
        params.security_blob = blob.as_ptr();
        params.security_blob_length = blob.len() as u32;
        for _ in 0..input.below(3) {
            match input.below(8) {
                0 => params.flags = input.pick(&[0, 1, 2]),
                1 => params.receive_credit_max = input.odd_u32(),
                2 => params.max_send_size = input.odd_u32(),
                3 => params.max_receive_size = input.odd_u32(),
                4 => params.max_fragment_size = input.odd_u32(),
                5 => params.keepalive_interval_msec = input.odd_u32(),
                6 => params.security_blob = ptr::null(),
                _ => params.max_dialect = input.pick(&[0, 0x0300, 0x0311, 0x0999]),
            }
        }
        params
    }

    fn set_params(&mut self, input: &mut Input<'_>, handle: *mut smbd_handle) -> c_int {
        let blob = vec![1; input.pick(&[0, 1, 74, 16384])];
        let params = self.params(input, &blob);
        let mut params = Roomy::of(params, size_of_odd::<smbd_params>(input));
        // SAFETY: null or a live handle; a structure with a blob of the length it tells.
        unsafe { smbd_set_params(handle, params.as_mut_ptr()) }
    }

    fn set_session(&mut self, input: &mut Input<'_>, handle: *mut smbd_handle) -> c_int {
        let mut session: smbd_session = zeroed();
        session.flags = input.below(9) as u32;
        session.session_id = u64::from(input.u8() & 3);
        session.client_guid = [input.u8() & 1; 16];
        let mut session = Roomy::of(session, size_of_odd::<smbd_session>(input));
        // SAFETY: null or a live handle; a structure.
        unsafe { smbd_set_session(handle, session.as_mut_ptr()) }
    }

    /// An address of this host, whatever else is wrong.
    fn address(&self, input: &mut Input<'_>) -> (sockaddr_storage, u32) {
        let mut storage: sockaddr_storage = zeroed();
        let v4 = ptr::from_mut(&mut storage).cast::<sockaddr_in>();
        // SAFETY: a sockaddr_storage is large and aligned enough.
        unsafe {
            (*v4).sin_family = input.pick(&[2, 2, 2, 2, 0, 1]);
            (*v4).sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
        }
        if let Some(address) = self.address.filter(|_| input.below(4) > 0) {
            storage = address;
        }
        (storage, input.pick(&[16, 16, 16, 16, 28, 128, 15, 0]))
    }

    fn listen(&mut self, input: &mut Input<'_>, handle: *mut smbd_handle) -> c_int {
        let mut options: smbd_listen_options = zeroed();
        options.flags = input.pick(&[0, 1, 2]);
        options.fabric = input.pick(&[0, 1, 1, 77]);
        (options.address, options.address_length) = self.address(input);
        let unlisten = input.below(4) == 3;
        if !unlisten && input.flag() {
            // Any free port.
            let v4 = ptr::from_mut(&mut options.address).cast::<sockaddr_in>();
            // SAFETY: as above.
            unsafe { (*v4).sin_port = 0 };
        }
        let mut options = Roomy::of(options, size_of_odd::<smbd_listen_options>(input));
        let mut bound: sockaddr_storage = zeroed();
        // SAFETY: null or a live handle; valid structures.
        unsafe {
            if unlisten {
                return smbd_unlisten(handle, options.as_mut_ptr());
            }
            let result = smbd_listen(handle, options.as_mut_ptr(), &mut bound);
            if result == 0 {
                self.address = Some(bound);
            }
            result
        }
    }

    fn connect(&mut self, input: &mut Input<'_>, handle: *mut smbd_handle) -> c_int {
        let params = self.params(input, &[]);
        let mut params = Roomy::of(params, size_of_odd::<smbd_params>(input));
        let mut options: smbd_connect_options = zeroed();
        options.flags = input.pick(&[0, 1, 2]);
        options.mpa_revision = input.pick(&[0, 1, 2, 3]);
        options.timeout_msec = input.pick(&[0, 1, 5000, u32::MAX]);
        (options.address, options.address_length) = self.address(input);
        options.params = if input.below(4) > 0 {
            params.as_mut_ptr()
        } else {
            ptr::null()
        };
        let mut options = Roomy::of(options, size_of_odd::<smbd_connect_options>(input));
        let mut connection = 0;
        // SAFETY: null or a live handle; valid structures.
        let result = unsafe { smbd_connect(handle, options.as_mut_ptr(), &mut connection) };
        if result == 0 {
            self.connections.push(connection);
        }
        result
    }

    fn get_events(&mut self, input: &mut Input<'_>, handle: *mut smbd_handle) -> c_int {
        // The size of the first entry is the distance of all.
        let stride = match input.below(8) {
            0 => size_of::<smbd_event>() + 16,
            1 => input.pick(&[0, 64, 4096, 5000]),
            _ => size_of::<smbd_event>(),
        };
        let count = input.pick(&[1_u32, 1, 4, 16, 0, 65537]);
        let entries = if (1..=16).contains(&count) {
            count as usize
        } else {
            1
        };
        let mut memory = vec![0_u64; entries * stride.clamp(96, 4096) / 8 + 1024];
        let mut buffers = vec![vec![0_u8; input.pick(&[0, 1, 100, 4096])]; entries];
        for (index, buffer) in buffers.iter_mut().enumerate() {
            let mut event: smbd_event = zeroed();
            event.size = stride as u32;
            event.buffer = buffer.as_mut_ptr().cast::<c_void>();
            event.buffer_size = buffer.len() as u32;
            // SAFETY: inside `memory`, aligned to 8.
            unsafe {
                let at = memory.as_mut_ptr().cast::<u8>();
                at.add(index * stride.clamp(96, 4096))
                    .cast::<smbd_event>()
                    .write_unaligned(event);
            }
        }
        let mut remaining = 0;
        let remaining = if input.flag() {
            &mut remaining
        } else {
            ptr::null_mut()
        };
        let events = memory.as_mut_ptr().cast::<smbd_event>();
        // SAFETY: null or a live handle; as many entries as said where that is a valid number.
        let taken = unsafe { smbd_get_events(handle, events, count, remaining) };
        assert!(taken <= count as c_int || count > 65536);
        for index in 0..taken.max(0) as usize {
            // SAFETY: it was filled.
            let event = unsafe {
                let at = memory.as_ptr().cast::<u8>().add(index * stride);
                at.cast::<smbd_event>().read_unaligned()
            };
            assert_eq!(event.size as usize, stride, "the size is the caller's");
            assert!((1..=9).contains(&event.event));
            match event.event {
                SMBD_EVENT_OFFERED => self.tokens.push(event.token),
                SMBD_EVENT_ATTACHED => self.connections.push(event.connection),
                _ => {}
            }
        }
        taken
    }

    fn send(&mut self, input: &mut Input<'_>, handle: *mut smbd_handle, connection: u64) -> c_int {
        let body = match input.below(3) {
            0 => negotiate([input.u8() & 1; 16]),
            _ => {
                let length = input.pick(&[1, 100, 5000, 60_000]);
                pattern(length, 1)
            }
        };
        let iovs: Vec<iovec> = body
            .chunks(1 + input.below(body.len()))
            .map(|piece| iovec {
                iov_base: piece.as_ptr().cast_mut().cast(),
                iov_len: piece.len(),
            })
            .collect();
        let pdu = smbd_pdu {
            size: 0,
            flags: input.pick(&[0, 0, SMBD_PDU_NO_EVENT, SMBD_PDU_INVALIDATE, 0x10]),
            connection,
            cookie: input.u64(),
            iov: if input.below(16) == 15 {
                ptr::null()
            } else {
                iovs.as_ptr()
            },
            iov_count: iovs.len() as u32,
            invalidate_token: self.key(input).token,
        };
        let mut pdu = Roomy::of(pdu, size_of_odd::<smbd_pdu>(input));
        let count = input.pick(&[1, 1, 1, 0, 65537]);
        // SAFETY: null or a live handle; one entry, other counts are refused before they are used.
        unsafe { smbd_send_pdus(handle, pdu.as_mut_ptr(), count) }
    }

    fn rdma_offset(handle: *mut smbd_handle) -> u64 {
        let mut info: smbd_meminfo = zeroed();
        info.size = size_of::<smbd_meminfo>() as u32;
        // SAFETY: null or a live handle; a valid structure.
        unsafe { smbd_get_meminfo(handle, &mut info) };
        info.rdma_offset
    }

    fn rdma(&mut self, input: &mut Input<'_>, handle: *mut smbd_handle, connection: u64) -> c_int {
        let base = Self::rdma_offset(handle);
        let segments: Vec<smbd_segment> = (0..1 + input.below(3))
            .map(|_| smbd_segment {
                offset: base + u64::from(input.u16()),
                length: input.pick(&[1, 64, 4096, 0, 1 << 40]),
            })
            .collect();
        let descriptors: Vec<smbd_descriptor> =
            (0..1 + input.below(3)).map(|_| self.key(input)).collect();
        let op = smbd_rdma_op {
            size: 0,
            flags: input.pick(&[1, 2, 1 | 4, 2 | 8, 3, 0, 0x80]),
            connection,
            cookie: input.u64(),
            segments: segments.as_ptr(),
            descriptors: descriptors.as_ptr(),
            segment_count: segments.len() as u32,
            descriptor_count: descriptors.len() as u32,
        };
        let mut op = Roomy::of(op, size_of_odd::<smbd_rdma_op>(input));
        // SAFETY: null or a live handle; an entry with arrays of the lengths it tells.
        unsafe { smbd_rdma_read_write(handle, op.as_mut_ptr(), 1) }
    }

    fn register(
        &mut self,
        input: &mut Input<'_>,
        handle: *mut smbd_handle,
        connection: u64,
    ) -> c_int {
        let segment = smbd_segment {
            offset: Self::rdma_offset(handle) + u64::from(input.u16()),
            length: input.pick(&[64, 4096, 65536, 0, u64::MAX]),
        };
        let mut key: smbd_descriptor = zeroed();
        let access = input.pick(&[1, 2, 3, 0, 4]);
        // SAFETY: null or a live handle; valid structures.
        let result =
            unsafe { smbd_register_buffer(handle, connection, &segment, access, &mut key) };
        if result == 0 {
            assert_eq!(u64::from(key.length), segment.length);
            self.keys.push(key);
        }
        result
    }

    fn take_over(
        &mut self,
        input: &mut Input<'_>,
        handle: *mut smbd_handle,
        connection: u64,
    ) -> c_int {
        let mut token = match self.tokens.last() {
            Some(token) if input.below(8) < 7 => *token,
            _ => input.array(),
        };
        let mut taken = 0;
        // SAFETY: null or a live handle; 16 bytes.
        unsafe {
            match input.below(4) {
                0 => smbd_reject(handle, token.as_ptr()),
                1 | 2 => {
                    let result = smbd_accept(handle, token.as_ptr(), &mut taken);
                    if result == 0 {
                        self.connections.push(taken);
                    }
                    result
                }
                _ => {
                    let result = smbd_export(handle, connection, token.as_mut_ptr());
                    if result == 0 {
                        self.tokens.push(token);
                    }
                    result
                }
            }
        }
    }

    fn ask(&mut self, input: &mut Input<'_>, handle: *mut smbd_handle, connection: u64) -> c_int {
        // SAFETY: null or a live handle; structures with room behind them.
        unsafe {
            match input.below(8) {
                0 => {
                    let size = size_of_odd::<smbd_connection_info>(input);
                    let mut info = Roomy::of::<smbd_connection_info>(zeroed(), size);
                    smbd_get_connection_info(handle, connection, info.as_mut_ptr())
                }
                1 => {
                    let size = size_of_odd::<smbd_statistics>(input);
                    let mut statistics = Roomy::of::<smbd_statistics>(zeroed(), size);
                    smbd_get_statistics(handle, statistics.as_mut_ptr())
                }
                2 => {
                    let size = size_of_odd::<smbd_params>(input);
                    let mut params = Roomy::of::<smbd_params>(zeroed(), size);
                    smbd_get_params(handle, params.as_mut_ptr())
                }
                3 => {
                    let size = size_of_odd::<smbd_meminfo>(input);
                    let mut info = Roomy::of::<smbd_meminfo>(zeroed(), size);
                    smbd_get_meminfo(handle, info.as_mut_ptr())
                }
                4 => {
                    let size = size_of_odd::<smbd_interface>(input);
                    let mut interface = Roomy::of::<smbd_interface>(zeroed(), size);
                    let mut total = 0;
                    smbd_query_interfaces(handle, interface.as_mut_ptr(), 1, &mut total)
                }
                5 => smbd_reconnect(handle),
                6 => smbd_close_after_fork(handle),
                _ => {
                    // A descriptor that somebody has closed under the library's feet would be a
                    // broken program; one that somebody waits on is not.
                    let fd = smbd_get_fd(handle);
                    if fd >= 0 {
                        let mut poll = libc::pollfd {
                            fd,
                            events: libc::POLLIN,
                            revents: 0,
                        };
                        libc::poll(&mut poll, 1, 0);
                        assert_eq!(poll.revents & libc::POLLNVAL, 0);
                    }
                    let _: *const c_char = smbd_version_string();
                    fd
                }
            }
        }
    }
}
