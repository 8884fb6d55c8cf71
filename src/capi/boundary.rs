//! What stands between C and Rust: panics, pointers, structures that grow, the text of the last
//! error.

use std::cell::UnsafeCell;
use std::ffi::{c_char, c_int, CString};
use std::panic::{catch_unwind, AssertUnwindSafe};

use super::smbd_handle;
use crate::client::{ClientError, Handle};

/// What an `smbd_handle` pointer points to.
pub(super) struct HandleState {
    pub(super) handle: Handle,
    last_error: CString,
    /// A call panicked: nobody knows what state the handle is in.
    is_poisoned: bool,
}

impl HandleState {
    /// A pointer for C that owns `handle`.
    pub(super) fn into_raw(handle: Handle) -> *mut smbd_handle {
        let state = Self {
            handle,
            last_error: CString::default(),
            is_poisoned: false,
        };
        Box::into_raw(Box::new(state)).cast()
    }

    pub(super) fn last_error(&self) -> *const c_char {
        self.last_error.as_ptr()
    }
}

/// Runs a call on a handle.
///
/// # Safety
///
/// `handle` is null or came from [`HandleState::into_raw`], was not closed, and no other call with
/// it runs.
pub(super) unsafe fn with_handle(
    handle: *mut smbd_handle,
    call: impl FnOnce(&mut Handle) -> Result<c_int, ClientError>,
) -> c_int {
    // SAFETY: the caller promises that it is null or a live HandleState used by nobody else.
    let Some(state) = (unsafe { handle.cast::<HandleState>().as_mut() }) else {
        return -libc::EINVAL;
    };
    if state.is_poisoned {
        return -libc::ENOTRECOVERABLE;
    }
    match catch_unwind(AssertUnwindSafe(|| call(&mut state.handle))) {
        Ok(Ok(value)) => value,
        Ok(Err(error)) => {
            state.last_error = text(&error.to_string());
            -error.errno()
        }
        Err(_) => {
            state.is_poisoned = true;
            state.last_error = text("the library failed inside this call: close the handle");
            -libc::ENOTRECOVERABLE
        }
    }
}

/// Runs a call that has no handle; its error text goes to `smbd_last_error(NULL)`.
pub(super) fn without_handle(call: impl FnOnce() -> Result<c_int, ClientError>) -> c_int {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => value,
        Ok(Err(error)) => {
            set_thread_error(&error.to_string());
            -error.errno()
        }
        Err(_) => {
            set_thread_error("the library failed inside this call");
            -libc::ENOTRECOVERABLE
        }
    }
}

/// The text of this thread's last failed call without a handle.
pub(super) fn thread_error() -> *const c_char {
    THREAD_ERROR.with(|text| text.get().cast())
}

/// A structure whose first field is its size.
///
/// # Safety
///
/// All zero bytes are a valid value, and so is any pattern that C may store; the first field is a
/// `u32`.
pub(super) unsafe trait Sized32: Copy {
    /// Bytes of the structure in the first release of this ABI.
    const FIRST_SIZE: usize;
    /// Its name.
    const NAME: &'static str;
}

macro_rules! sized {
    ($($name:ident)*) => {$(
        // SAFETY: repr(C), starts with `size: u32`; integers, arrays of them and raw pointers only.
        unsafe impl Sized32 for super::types::$name {
            const FIRST_SIZE: usize = std::mem::size_of::<Self>();
            const NAME: &'static str = stringify!($name);
        }
    )*};
}

sized! {
    smbd_open_options smbd_params smbd_session smbd_meminfo smbd_event smbd_pdu smbd_rdma_op
    smbd_listen_options smbd_connect_options smbd_connection_info smbd_statistics smbd_interface
}

/// Reads a structure: as many bytes as both sides know, zeros for the rest. Bytes that only the
/// caller knows must be 0.
///
/// # Safety
///
/// `from` is null or points to a structure whose first field tells its size.
pub(super) unsafe fn read_sized<T: Sized32>(from: *const T) -> Result<T, ClientError> {
    // SAFETY: the caller's promise.
    let size = unsafe { size_of_struct(from) }?;
    let known = size.min(size_of::<T>());
    // SAFETY: a Sized32 may be all zeros.
    let mut value: T = unsafe { std::mem::zeroed() };
    // SAFETY: both are valid for `known` bytes and do not overlap.
    unsafe {
        std::ptr::copy_nonoverlapping(
            from.cast::<u8>(),
            std::ptr::from_mut(&mut value).cast::<u8>(),
            known,
        );
    }
    for at in known..size {
        // SAFETY: inside the caller's structure.
        if unsafe { from.cast::<u8>().add(at).read() } != 0 {
            return Err(ClientError::new(
                libc::E2BIG,
                format!(
                    "byte {at} of struct {} is set, this library knows {known}: use a newer one",
                    T::NAME
                ),
            ));
        }
    }
    Ok(value)
}

/// Writes a structure: as many bytes as both sides know, but for the size, which stays the caller's.
///
/// # Safety
///
/// `to` is null or points to a writable structure whose first field tells its size.
pub(super) unsafe fn write_sized<T: Sized32>(to: *mut T, value: &T) -> Result<(), ClientError> {
    // SAFETY: the caller's promise.
    let size = unsafe { size_of_struct(to) }?;
    let skip = size_of::<u32>();
    // SAFETY: both are valid for the length; `value` is ours, so they do not overlap.
    unsafe {
        std::ptr::copy_nonoverlapping(
            std::ptr::from_ref(value).cast::<u8>().add(skip),
            to.cast::<u8>().add(skip),
            size.min(size_of::<T>()) - skip,
        );
    }
    Ok(())
}

/// The size that a structure of the caller tells, which is also the distance to the next one of an
/// array.
///
/// # Safety
///
/// `at` is null or points to a structure whose first field tells its size.
pub(super) unsafe fn size_of_struct<T: Sized32>(at: *const T) -> Result<usize, ClientError> {
    if at.is_null() {
        return Err(null(T::NAME));
    }
    // SAFETY: the first field is a u32.
    let size = unsafe { at.cast::<u32>().read() } as usize;
    if size < T::FIRST_SIZE || size > MAX_SIZE || size % align_of::<T>() != 0 {
        return Err(ClientError::new(
            libc::EINVAL,
            format!(
                "size of struct {name} is {size}: set it to sizeof(struct {name}), at least {}",
                T::FIRST_SIZE,
                name = T::NAME
            ),
        ));
    }
    Ok(size)
}

/// A pointer that must not be null.
pub(super) fn null(name: &str) -> ClientError {
    ClientError::new(libc::EINVAL, format!("{name} is NULL"))
}

/// An array's entries, 1..=65536.
pub(super) fn check_count(count: u32) -> Result<(), ClientError> {
    if (1..=65536).contains(&count) {
        return Ok(());
    }
    Err(ClientError::new(
        libc::EINVAL,
        format!("count is {count}, it may be 1..=65536"),
    ))
}

/// Flags that this library knows.
pub(super) fn check_flags(flags: u32, known: u32) -> Result<(), ClientError> {
    if flags & !known == 0 {
        return Ok(());
    }
    Err(ClientError::new(
        libc::EINVAL,
        format!("flags are {flags:#x}, known are {known:#x}"),
    ))
}

fn text(words: &str) -> CString {
    CString::new(words.replace('\0', "?")).unwrap_or_default()
}

fn set_thread_error(words: &str) {
    THREAD_ERROR.with(|text| {
        // SAFETY: only this thread reaches it, and no reference to it is kept.
        let text = unsafe { &mut *text.get() };
        text.fill(0);
        let mut end = words.len().min(TEXT_BYTES - 1);
        while !words.is_char_boundary(end) {
            end -= 1;
        }
        text[..end].copy_from_slice(&words.as_bytes()[..end]);
    });
}

/// No structure of this ABI will be larger: a larger size is an uninitialised one.
const MAX_SIZE: usize = 4096;
const TEXT_BYTES: usize = 512;

thread_local! {
    /// Plain bytes: nothing to run when a thread ends.
    static THREAD_ERROR: UnsafeCell<[u8; TEXT_BYTES]> = const { UnsafeCell::new([0; TEXT_BYTES]) };
}
