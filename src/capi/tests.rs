//! The boundary itself; the functions are tested by C programs.

use std::ffi::CStr;

use super::boundary::{without_handle, Sized32};
use super::*;

/// Sets the size of a structure of zeros, as a C program does.
fn zeroed<T: Sized32>() -> T {
    // SAFETY: a Sized32 may be all zeros; its first field is a u32.
    unsafe {
        let mut value: T = std::mem::zeroed();
        std::ptr::from_mut(&mut value)
            .cast::<u32>()
            .write(size_of::<T>() as u32);
        value
    }
}

#[test]
fn sizes_are_checked_and_respected() {
    let mut session: smbd_session = zeroed();
    session.session_id = 5;
    // SAFETY: a structure that tells its size, or null.
    let read = |session: *const smbd_session| unsafe { read_sized(session) };
    assert_eq!(read(&session).unwrap().session_id, 5);
    assert_eq!(read(std::ptr::null()).err().unwrap().errno(), libc::EINVAL);
    for size in [0, 1, 31, 33, 4097, u32::MAX] {
        session.size = size;
        assert_eq!(
            read(&session).err().unwrap().errno(),
            libc::EINVAL,
            "{size}"
        );
    }
    // A program that is newer than the library.
    let mut newer = [session, session];
    newer[0].size = 64;
    // SAFETY: all of a smbd_session may be zeros.
    newer[1] = unsafe { std::mem::zeroed() };
    assert!(read(newer.as_ptr()).is_ok());
    newer[1].client_guid[15] = 1;
    assert_eq!(read(newer.as_ptr()).err().unwrap().errno(), libc::E2BIG);
}

#[test]
fn a_panic_becomes_an_error() {
    assert_eq!(
        without_handle(|| panic!("on purpose")),
        -libc::ENOTRECOVERABLE
    );
    // SAFETY: the library's string.
    let text = unsafe { CStr::from_ptr(smbd_last_error(std::ptr::null())) };
    assert!(text.to_str().unwrap().contains("failed inside"));
}

#[test]
fn null_handles_are_refused() {
    let none = std::ptr::null_mut();
    // SAFETY: null is allowed everywhere.
    unsafe {
        assert_eq!(smbd_close(none), 0);
        assert_eq!(smbd_close_after_fork(none), 0);
        assert_eq!(smbd_get_fd(none), -libc::EINVAL);
        assert_eq!(
            smbd_open(std::ptr::null(), std::ptr::null_mut()),
            -libc::EINVAL
        );
        let text = CStr::from_ptr(smbd_last_error(none));
        assert_eq!(text.to_str().unwrap(), "out_handle is NULL");
    }
}

#[test]
fn version_and_texts_are_there() {
    // SAFETY: static strings.
    let (version, text) = unsafe {
        (
            CStr::from_ptr(smbd_version_string()),
            CStr::from_ptr(smbd_strerror(-libc::EAGAIN)),
        )
    };
    assert_eq!(version.to_str().unwrap(), env!("CARGO_PKG_VERSION"));
    assert_eq!(text, c"no room now, try again");
    assert_eq!(
        smbd_version() >> 16,
        number(env!("CARGO_PKG_VERSION_MAJOR"))
    );
    assert_eq!(error_text(i32::MIN), c"unknown error");
}
