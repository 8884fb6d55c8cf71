#![forbid(unsafe_code)]
//! Why a call of a handle failed.

use crate::ipc::{CallError, RangeError};
use crate::ring::{LayoutError, RingError};

/// An errno and the words for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientError {
    errno: i32,
    text: String,
}

impl ClientError {
    /// An error with a positive errno.
    pub fn new(errno: i32, text: impl Into<String>) -> Self {
        Self {
            errno,
            text: text.into(),
        }
    }

    /// A failed system call.
    pub(super) fn os(what: impl std::fmt::Display, error: &std::io::Error) -> Self {
        Self::new(
            error.raw_os_error().unwrap_or(libc::EPROTO),
            format!("{what}: {error}"),
        )
    }

    /// The positive errno.
    pub fn errno(&self) -> i32 {
        self.errno
    }
}

impl std::fmt::Display for ClientError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for ClientError {}

impl From<CallError> for ClientError {
    fn from(error: CallError) -> Self {
        Self::new(error.errno(), error.to_string())
    }
}

impl From<RangeError> for ClientError {
    fn from(error: RangeError) -> Self {
        Self::new(libc::EINVAL, error.to_string())
    }
}

impl From<LayoutError> for ClientError {
    fn from(error: LayoutError) -> Self {
        Self::new(libc::EINVAL, error.to_string())
    }
}

impl From<RingError> for ClientError {
    fn from(error: RingError) -> Self {
        match error {
            RingError::Layout(error) => error.into(),
            RingError::Os(what, error) => Self::os(what, &error),
            other => Self::new(libc::EPROTO, other.to_string()),
        }
    }
}
