//! Completion queue and queue pair of one connection.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::rc::Rc;

use libc::{c_int, c_uint, c_void};

use super::batch::{RecvBatch, SendBatch};
use super::cm::{CmId, Id};
use super::ffi;
use super::memory::{made, no_device, Pd, PdInner};

/// A completion channel, made of a device.
struct CompChannel {
    raw: NonNull<ffi::ibv_comp_channel>,
    id: Rc<Id>,
}

impl Drop for CompChannel {
    fn drop(&mut self) {
        // SAFETY: ours; its completion queue holds this value, so it is gone.
        unsafe { (self.id.functions().ibv_destroy_comp_channel)(self.raw.as_ptr()) };
    }
}

/// A completion queue with a channel of its own.
struct Cq {
    raw: NonNull<ffi::ibv_cq>,
    /// Events taken from the channel that are not acknowledged yet.
    unacknowledged: c_uint,
    channel: CompChannel,
}

impl Cq {
    fn new(id: &CmId, key: u64, entries: u32, vector: u32) -> io::Result<Self> {
        let verbs = id.0.verbs().ok_or_else(no_device)?;
        let functions = id.0.functions();
        // SAFETY: the context lives as long as the identifier.
        let raw = unsafe { (functions.ibv_create_comp_channel)(verbs.as_ptr()) };
        let channel = CompChannel {
            raw: made(raw)?,
            id: id.0.clone(),
        };
        // SAFETY: the channel owns the descriptor.
        let fd = unsafe { BorrowedFd::borrow_raw(channel.raw.as_ref().fd) };
        rustix::io::ioctl_fionbio(fd, true)?;
        // SAFETY: the context lives as long as the identifier.
        let vectors = unsafe { verbs.as_ref().num_comp_vectors }.max(1);
        let vector = (vector % vectors.unsigned_abs()) as c_int;
        let entries = c_int::try_from(entries).unwrap_or(c_int::MAX);
        // SAFETY: context and channel are valid; the context pointer of the queue is only a number.
        let raw = unsafe {
            (functions.ibv_create_cq)(
                verbs.as_ptr(),
                entries,
                key as *mut c_void,
                channel.raw.as_ptr(),
                vector,
            )
        };
        Ok(Self {
            raw: made(raw)?,
            unacknowledged: 0,
            channel,
        })
    }

    /// Asks the device for one event in `count` completions, or `period` microseconds after the first.
    fn moderate(&self, count: u16, period: u16) -> io::Result<()> {
        let unsupported = || io::Error::from_raw_os_error(libc::EOPNOTSUPP);
        // SAFETY: the context lives as long as the identifier.
        let context = unsafe { self.raw.as_ref().context };
        // SAFETY: as above.
        if unsafe { (*context).abi_compat } as usize != ffi::VERBS_ABI_IS_EXTENDED {
            return Err(unsupported());
        }
        // SAFETY: so says the context: this stands before it, as far as its size reaches.
        let modify = unsafe {
            let extended = context.cast::<ffi::verbs_context>().sub(1);
            let size = size_of::<ffi::verbs_context>() + size_of::<ffi::ibv_context>();
            match (*extended).sz < size {
                true => None,
                false => (*extended).modify_cq,
            }
        };
        let modify = modify.ok_or_else(unsupported)?;
        let mut attr = ffi::ibv_modify_cq_attr {
            attr_mask: ffi::IBV_CQ_ATTR_MODERATE,
            cq_count: count,
            cq_period: period,
        };
        // SAFETY: queue and attributes are valid.
        returned(unsafe { modify(self.raw.as_ptr(), &mut attr) })
    }

    fn acknowledge(&mut self) {
        let count = std::mem::take(&mut self.unacknowledged);
        if count > 0 {
            // SAFETY: so many events of this queue were taken and not acknowledged.
            unsafe { (self.channel.id.functions().ibv_ack_cq_events)(self.raw.as_ptr(), count) };
        }
    }
}

impl Drop for Cq {
    fn drop(&mut self) {
        // The library waits for this before it destroys the queue.
        self.acknowledge();
        // SAFETY: ours; its queue pair is gone (see `Qp`).
        unsafe { (self.channel.id.functions().ibv_destroy_cq)(self.raw.as_ptr()) };
    }
}

/// How large the queues are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fabric::verbs) struct QueueOptions {
    pub(in crate::fabric::verbs) sends: u32,
    pub(in crate::fabric::verbs) recvs: u32,
    /// Pieces of memory of a send.
    pub(in crate::fabric::verbs) send_sges: u32,
    /// Pieces of memory of a receive.
    pub(in crate::fabric::verbs) recv_sges: u32,
    /// Bytes of a send that need no registered memory.
    pub(in crate::fabric::verbs) inline: u32,
    /// Spreads completion queues over interrupts.
    pub(in crate::fabric::verbs) vector: u32,
}

/// A queue pair with its completion queue.
pub(in crate::fabric::verbs) struct Qp {
    /// Declared in the order in which they have to go, after `drop` took the queue pair itself.
    cq: Cq,
    _pd: Rc<PdInner>,
    id: Rc<Id>,
    raw: NonNull<ffi::ibv_qp>,
    options: QueueOptions,
}

impl Drop for Qp {
    fn drop(&mut self) {
        // SAFETY: the identifier has exactly this queue pair. After the call the device does not
        // touch memory for it any more.
        unsafe { (self.id.functions().rdma_destroy_qp)(self.id.raw()) };
    }
}

impl AsFd for Qp {
    /// The completion channel.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel owns the descriptor and lives as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.cq.channel.raw.as_ref().fd) }
    }
}

impl Qp {
    /// Makes the queue pair of an identifier, which must not have one yet. What the device grants
    /// stands in [`Qp::options`]; `key` comes with its asynchronous events.
    pub(in crate::fabric::verbs) fn new(
        id: &CmId,
        key: u64,
        pd: &Pd,
        options: QueueOptions,
    ) -> io::Result<Self> {
        // SAFETY: the identifier is valid.
        if !unsafe { (*id.0.raw()).qp }.is_null() {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        let cq = Cq::new(id, key, options.sends + options.recvs + 1, options.vector)?;
        let mut attr = ffi::ibv_qp_init_attr {
            qp_context: key as *mut c_void,
            send_cq: cq.raw.as_ptr(),
            recv_cq: cq.raw.as_ptr(),
            srq: ptr::null_mut(),
            cap: ffi::ibv_qp_cap {
                max_send_wr: options.sends,
                max_recv_wr: options.recvs,
                max_send_sge: options.send_sges,
                max_recv_sge: options.recv_sges,
                max_inline_data: options.inline,
            },
            qp_type: ffi::IBV_QPT_RC,
            sq_sig_all: 0,
        };
        // SAFETY: identifier, domain and attributes are valid; domain and completion queue are on
        // the identifier's device.
        let result =
            unsafe { (id.0.functions().rdma_create_qp)(id.0.raw(), pd.0.raw.as_ptr(), &mut attr) };
        super::cm::check(result)?;
        // SAFETY: the identifier is valid, and has a queue pair now.
        let raw = made(unsafe { (*id.0.raw()).qp })?;
        Ok(Self {
            cq,
            _pd: pd.0.clone(),
            id: id.0.clone(),
            raw,
            options: QueueOptions {
                // Providers round the rest up, and what they say of it cannot be relied on.
                inline: attr.cap.max_inline_data,
                ..options
            },
        })
    }

    /// Asks the device for fewer events: one in `count` completions, or `period` microseconds after
    /// the first. Many devices cannot.
    pub(in crate::fabric::verbs) fn moderate(&self, count: u16, period: u16) -> io::Result<()> {
        self.cq.moderate(count, period)
    }

    pub(in crate::fabric::verbs) fn options(&self) -> &QueueOptions {
        &self.options
    }

    /// Takes what the completion channel tells. True: the queue was told of, and has to be armed
    /// again for further events.
    pub(in crate::fabric::verbs) fn take_event(&mut self) -> io::Result<bool> {
        let functions = self.id.functions();
        let (mut cq, mut context) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: channel and out pointers are valid; the descriptor does not block.
        let result = unsafe {
            (functions.ibv_get_cq_event)(self.cq.channel.raw.as_ptr(), &mut cq, &mut context)
        };
        if result == 0 {
            self.cq.unacknowledged += 1;
            if self.cq.unacknowledged >= ACKNOWLEDGE_BATCH {
                self.cq.acknowledge();
            }
            return Ok(true);
        }
        match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            error => Err(error),
        }
    }

    /// Asks for an event when the next completion comes.
    pub(in crate::fabric::verbs) fn arm(&mut self) -> io::Result<()> {
        // SAFETY: the queue is valid; a context always has this operation.
        let result = unsafe {
            let operation = (*self.cq.raw.as_ref().context).ops.req_notify_cq;
            operation.map_or(libc::ENOSYS, |arm| arm(self.cq.raw.as_ptr(), 0))
        };
        returned(result)
    }

    /// Takes completions, as many as `into` has room for. Returns how many.
    pub(in crate::fabric::verbs) fn poll(
        &mut self,
        into: &mut [Completion; POLL_BATCH],
    ) -> io::Result<usize> {
        let mut raw = [EMPTY_WC; POLL_BATCH];
        // SAFETY: the queue is valid, the array has that many places.
        let count = unsafe {
            let operation = (*self.cq.raw.as_ref().context).ops.poll_cq;
            operation.map_or(-libc::ENOSYS, |poll| {
                poll(self.cq.raw.as_ptr(), POLL_BATCH as c_int, raw.as_mut_ptr())
            })
        };
        let count = usize::try_from(count)
            .map_err(|_| io::Error::other(format!("ibv_poll_cq returned {count}")))?;
        for (to, from) in into.iter_mut().zip(&raw).take(count) {
            *to = Completion {
                wr_id: from.wr_id,
                outcome: Outcome::from_raw(from.status),
                len: from.byte_len,
                is_write: from.opcode == ffi::IBV_WC_RECV_RDMA_WITH_IMM,
                invalidated: (from.wc_flags & ffi::IBV_WC_WITH_INV != 0)
                    .then_some(from.invalidated_rkey),
                maybe_invalidated: (from.wc_flags & ffi::IBV_WC_IP_CSUM_OK != 0)
                    .then_some(from.invalidated_rkey),
            };
        }
        Ok(count.min(POLL_BATCH))
    }

    /// Posts a batch of sends with one call, and empties it. After an error the connection cannot
    /// be used any more: some may have been posted.
    pub(in crate::fabric::verbs) fn post_send(&mut self, batch: &mut SendBatch) -> io::Result<()> {
        let Some(first) = batch.link() else {
            return Ok(());
        };
        let mut bad = ptr::null_mut();
        // SAFETY: the batch is a valid list until it is cleared; the provider copies it, and inline
        // bytes, during the call.
        let result = unsafe {
            let operation = (*self.raw.as_ref().context).ops.post_send;
            operation.map_or(libc::ENOSYS, |post| {
                post(self.raw.as_ptr(), first, &mut bad)
            })
        };
        batch.clear();
        returned(result)
    }

    /// The same for receives.
    pub(in crate::fabric::verbs) fn post_recv(&mut self, batch: &mut RecvBatch) -> io::Result<()> {
        let Some(first) = batch.link() else {
            return Ok(());
        };
        let mut bad = ptr::null_mut();
        // SAFETY: as for sends.
        let result = unsafe {
            let operation = (*self.raw.as_ref().context).ops.post_recv;
            operation.map_or(libc::ENOSYS, |post| {
                post(self.raw.as_ptr(), first, &mut bad)
            })
        };
        batch.clear();
        returned(result)
    }
}

/// Operations of a context return an errno; siw a negative one.
fn returned(result: c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(result.abs()))
    }
}

/// Acknowledging takes a lock, so it is done for several events at once.
const ACKNOWLEDGE_BATCH: c_uint = 64;

/// Completions taken with one call.
pub(in crate::fabric::verbs) const POLL_BATCH: usize = 32;

const EMPTY_WC: ffi::ibv_wc = ffi::ibv_wc {
    wr_id: 0,
    status: 0,
    opcode: 0,
    vendor_err: 0,
    byte_len: 0,
    invalidated_rkey: 0,
    qp_num: 0,
    src_qp: 0,
    wc_flags: 0,
    pkey_index: 0,
    slid: 0,
    sl: 0,
    dlid_path_bits: 0,
};

/// A completion.
#[derive(Debug, Clone, Copy)]
pub(in crate::fabric::verbs) struct Completion {
    pub(in crate::fabric::verbs) wr_id: u64,
    pub(in crate::fabric::verbs) outcome: Outcome,
    /// Bytes received.
    pub(in crate::fabric::verbs) len: u32,
    /// Of a receive that succeeded: it was used up by an RDMA WRITE with immediate data, so those
    /// bytes are elsewhere.
    pub(in crate::fabric::verbs) is_write: bool,
    /// The token that the peer has invalidated.
    pub(in crate::fabric::verbs) invalidated: Option<u32>,
    /// The same, if that is a token: rxe hands the kernel's flags on, where another bit means it
    /// (IB_WC_WITH_INVALIDATE is the user's IBV_WC_IP_CSUM_OK, which is not for connections).
    pub(in crate::fabric::verbs) maybe_invalidated: Option<u32>,
}

impl Completion {
    pub(in crate::fabric::verbs) const EMPTY: Self = Self {
        wr_id: 0,
        outcome: Outcome::Success,
        len: 0,
        is_write: false,
        invalidated: None,
        maybe_invalidated: None,
    };
}

/// How a work request ended (enum ibv_wc_status).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fabric::verbs) enum Outcome {
    Success,
    /// The queue pair was in error already.
    Flushed,
    /// A message longer than the receive.
    LocalLength,
    /// A key of our own that does not allow it.
    LocalProtection,
    /// The peer refuses access to its memory.
    RemoteAccess,
    /// The peer refuses the request.
    RemoteRequest,
    /// The peer failed.
    RemoteOperation,
    /// The peer does not acknowledge.
    RetriesExceeded,
    /// The peer has no receive posted.
    ReceiverNotReady,
    /// Anything else.
    Other(i32),
}

impl Outcome {
    fn from_raw(status: c_int) -> Self {
        match status {
            0 => Self::Success,
            1 => Self::LocalLength,
            4 | 8 => Self::LocalProtection,
            5 => Self::Flushed,
            9 => Self::RemoteRequest,
            10 => Self::RemoteAccess,
            11 => Self::RemoteOperation,
            12 => Self::RetriesExceeded,
            13 => Self::ReceiverNotReady,
            other => Self::Other(other),
        }
    }
}
