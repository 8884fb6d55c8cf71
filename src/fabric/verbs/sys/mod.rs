//! libibverbs and librdmacm behind types that cannot be used wrongly: the only unsafe code of the
//! fabric.
//!
//! A value owns its object of the library and holds what that object is made of: a queue pair its
//! identifier, completion queue and protection domain, a memory region its protection domain and
//! the memory. So the library sees every object destroyed once, after all that use it. None of the
//! types leaves its thread.

mod batch;
mod cm;
mod device;
mod ffi;
mod library;
mod memory;
mod queue;
mod watch;

pub(super) use batch::{RecvBatch, SendBatch, SendOp};
pub(super) use cm::{CmEvent, CmEventKind, CmId, ConnParams, EventChannel};
pub(super) use device::{Device, Transport};
pub(super) use memory::{Mr, Mw, Pd, Rights, Sge};
pub(super) use queue::{Completion, Outcome, Qp, QueueOptions, POLL_BATCH};
pub(super) use watch::{AsyncEvent, AsyncEventKind, AsyncEvents, DeviceId};
