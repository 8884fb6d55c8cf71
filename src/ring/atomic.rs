//! The atomics of the rings. `loom/` compiles `spsc` and `wake` with those of a model instead.

pub(super) use std::sync::atomic::{fence, AtomicU32, Ordering};
pub(super) use std::sync::Arc;
