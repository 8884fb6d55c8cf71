//! Log lines for a C callback.

use std::ffi::{c_void, CString};
use std::sync::{PoisonError, RwLock};

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::types::*;

/// The one logger of the library.
struct CallbackLogger;

/// Where lines go.
struct Target {
    callback: unsafe extern "C" fn(*mut c_void, i32, *const libc::c_char),
    user_data: *mut c_void,
}

// SAFETY: the callback and its data are the C program's, which was told that lines come from every
// thread that calls the library.
unsafe impl Send for Target {}
// SAFETY: as for Send.
unsafe impl Sync for Target {}

static LOGGER: CallbackLogger = CallbackLogger;
static TARGET: RwLock<Option<Target>> = RwLock::new(None);

/// Sets or clears the callback. False: the program has a logger of its own.
pub(super) fn set(callback: smbd_log_callback, user_data: *mut c_void, level: LevelFilter) -> bool {
    let is_ours = log::set_logger(&LOGGER).is_ok()
        || std::ptr::addr_eq(std::ptr::from_ref(log::logger()), &raw const LOGGER);
    if !is_ours {
        return false;
    }
    log::set_max_level(if callback.is_some() {
        level
    } else {
        LevelFilter::Off
    });
    *TARGET.write().unwrap_or_else(PoisonError::into_inner) = callback.map(|callback| Target {
        callback,
        user_data,
    });
    true
}

/// The level of an SMBD_LOG_* number.
pub(super) fn level(number: i32) -> Option<LevelFilter> {
    match number {
        SMBD_LOG_ERROR => Some(LevelFilter::Error),
        SMBD_LOG_WARN => Some(LevelFilter::Warn),
        SMBD_LOG_INFO => Some(LevelFilter::Info),
        SMBD_LOG_DEBUG => Some(LevelFilter::Debug),
        _ => None,
    }
}

impl Log for CallbackLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let number = match record.level() {
            Level::Error => SMBD_LOG_ERROR,
            Level::Warn => SMBD_LOG_WARN,
            Level::Info => SMBD_LOG_INFO,
            Level::Debug | Level::Trace => SMBD_LOG_DEBUG,
        };
        let line = record.args().to_string().replace(['\0', '\n'], " ");
        let line = CString::new(line).unwrap_or_default();
        let target = TARGET.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(target) = &*target {
            // SAFETY: the C program gave callback and data together and keeps them valid until it
            // sets others; the line lives through the call.
            unsafe { (target.callback)(target.user_data, number, line.as_ptr()) };
        }
    }

    fn flush(&self) {}
}
