#![forbid(unsafe_code)]
//! What the fabric may pin, RLIMIT_MEMLOCK, and what to say when it is too little; and how long it may
//! stand still.

use std::io;
use std::time::{Duration, Instant};

use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};

use crate::fabric::FabricError;
use crate::sys::pinned_memory;

/// Below this no server runs: receives and some RDMA buffers of one connection.
const LEAST: u64 = 64 << 20;

/// Raises the soft limit to the hard one, and checks that it is worth starting. The error names
/// limit, need and cure.
pub(super) fn check_locked_memory() -> Result<(), String> {
    let limit = getrlimit(Resource::Memlock);
    if limit.current != limit.maximum {
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        // Refused at worst, and then the soft limit counts.
        let _ = setrlimit(Resource::Memlock, raised);
    }
    judge(pinned_memory().limit)
}

fn judge(limit: Option<u64>) -> Result<(), String> {
    match limit {
        Some(bytes) if bytes < LEAST => Err(format!(
            "RLIMIT_MEMLOCK is {} KiB, and RDMA memory is pinned: at least {} KiB are needed, about \
             70 MiB for each busy client: set LimitMEMLOCK=infinity in the engine's unit, or \
             `ulimit -l unlimited`",
            bytes >> 10,
            LEAST >> 10
        )),
        _ => Ok(()),
    }
}

/// What a failed registration means.
pub(super) fn explain(error: io::Error, what: &str, bytes: usize) -> FabricError {
    let mut text = format!("{what} ({bytes} bytes)");
    if error.raw_os_error() == Some(libc::ENOMEM) {
        let limit = pinned_memory().limit;
        let limit = limit.map_or("unlimited".into(), |bytes| format!("{} KiB", bytes >> 10));
        text = format!("{text}: RLIMIT_MEMLOCK is {limit} (LimitMEMLOCK in the engine's unit)");
    }
    FabricError::Os(text, error)
}

/// The longest wait for devices to bind memory windows.
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// Of all time, waits may take one part in so many.
const WAITING_SHARE: u32 = 20;

/// How long the fabric may stand still for one connection. Nobody is served meanwhile, so many
/// connections to peers that are gone must not take the time of all others.
pub(super) struct Patience {
    left: Duration,
    /// When that was so.
    at: Instant,
}

impl Patience {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            left: LONGEST_WAIT,
            at: now,
        }
    }

    /// How long a wait may be that begins now.
    pub(super) fn left(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.at);
        self.left = LONGEST_WAIT.min(self.left + passed / WAITING_SHARE);
        self.at = now;
        self.left
    }

    /// The wait is over that began at the last call of [`left`](Self::left).
    pub(super) fn spend(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        self.left = self.left.saturating_sub(passed);
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_take_a_small_part_of_the_time() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let ms = Duration::from_millis;
        let mut patience = Patience::new(start);
        assert_eq!(patience.left(after(0)), ms(500));
        patience.spend(after(200));
        assert_eq!(patience.left(after(200)), ms(300));
        patience.spend(after(600));
        assert_eq!(patience.left(after(600)), ms(0), "longer than it may");
        patience.spend(after(600));
        assert_eq!(patience.left(after(2600)), ms(100), "a twentieth");
        patience.spend(after(2600));
        assert_eq!(patience.left(after(100_000)), ms(500), "and no more");
    }

    #[test]
    fn a_small_limit_is_named_with_its_cure() {
        let error = judge(Some(8 << 20)).unwrap_err();
        for word in ["8192 KiB", "65536 KiB", "LimitMEMLOCK=infinity"] {
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(judge(None), Ok(()));
        assert_eq!(judge(Some(LEAST)), Ok(()));
    }

    #[test]
    fn lack_of_memory_names_the_limit() {
        let error = io::Error::from_raw_os_error(libc::ENOMEM);
        let text = explain(error, "register a chunk", 1 << 20).to_string();
        assert!(
            text.contains("RLIMIT_MEMLOCK") && text.contains("1048576"),
            "{text}"
        );
        let error = io::Error::from_raw_os_error(libc::EINVAL);
        let text = explain(error, "register a chunk", 1).to_string();
        assert!(!text.contains("RLIMIT_MEMLOCK"), "{text}");
    }
}
