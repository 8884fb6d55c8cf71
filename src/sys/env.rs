//! The environment, as far as it can be trusted.

use std::ffi::OsString;

/// An environment variable; `None` too in programs that gained privileges by being executed.
pub fn secure_env(name: &str) -> Option<OsString> {
    // SAFETY: reads a word of the process's auxiliary vector; there is no precondition.
    let is_secure = unsafe { libc::getauxval(libc::AT_SECURE) } != 0;
    if is_secure {
        return None;
    }
    std::env::var_os(name)
}
