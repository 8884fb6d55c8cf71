//! Log lines on standard error, and not too many of them.
//!
//! Strangers on the network can cause lines as fast as they connect. One statement writes at most
//! [`LINES`] lines a second at the levels info, warn and error; how many were left out is told with
//! its next line. Whoever asks for debug or trace gets all of these.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::{Level, Log, Metadata, Record};

/// Lines of one statement in one second.
const LINES: u32 = 20;
const PERIOD: Duration = Duration::from_secs(1);

/// Starts to log what SMBDIRECT_LOG asks for.
pub(crate) fn init() {
    let logger =
        env_logger::Builder::from_env(env_logger::Env::new().filter_or("SMBDIRECT_LOG", "info"))
            .format_timestamp_millis()
            .build();
    log::set_max_level(logger.filter());
    let limited = Limited {
        inner: logger,
        limits: Mutex::default(),
    };
    // Only a second call could fail.
    let _ = log::set_boxed_logger(Box::new(limited));
}

/// Where a statement stands.
type Place = (Option<&'static str>, Option<u32>);

struct Limited {
    inner: env_logger::Logger,
    limits: Mutex<HashMap<Place, Limit>>,
}

impl Log for Limited {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.inner.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.inner.matches(record) {
            return;
        }
        if record.level() <= Level::Info {
            let place = (record.file_static(), record.line());
            let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
            match limits.entry(place).or_default().take(Instant::now()) {
                None => return,
                Some(0) => {}
                Some(count) => self.inner.log(
                    &Record::builder()
                        .metadata(record.metadata().clone())
                        .args(format_args!(
                            "{count} lines like the next one were left out"
                        ))
                        .build(),
                ),
            }
        }
        self.inner.log(record);
    }

    fn flush(&self) {
        self.inner.flush();
    }
}

/// What one statement has written lately.
#[derive(Default)]
struct Limit {
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Limit {
    /// Whether a line may be written, and how many before it were not.
    fn take(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now - since >= PERIOD) {
            self.since = Some(now);
            self.lines = 0;
        }
        if self.lines == LINES {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_has_so_many_lines_a_second() {
        let mut limit = Limit::default();
        let start = Instant::now();
        for _ in 0..LINES {
            assert_eq!(limit.take(start), Some(0));
        }
        for _ in 0..3 {
            assert_eq!(limit.take(start + PERIOD / 2), None);
        }
        assert_eq!(limit.take(start + PERIOD), Some(3));
        assert_eq!(limit.take(start + PERIOD), Some(0));
    }
}
