//! Work requests in chains, as the library takes them.

use std::ptr;

use libc::{c_int, c_uint};

use super::ffi;
use super::memory::{Mw, Sge};

/// What a work request of the send queue does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fabric::verbs) enum SendOp {
    Send,
    /// And gives a token of the peer up.
    SendInvalidate(u32),
    Write {
        token: u32,
        offset: u64,
    },
    Read {
        token: u32,
        offset: u64,
    },
}

/// Work requests on their way to a send queue. Storage that is used again and again.
#[derive(Default)]
pub(in crate::fabric::verbs) struct SendBatch {
    wrs: Vec<ffi::ibv_send_wr>,
    sges: Vec<ffi::ibv_sge>,
    /// Bytes of inline sends.
    bytes: Vec<u8>,
}

impl SendBatch {
    /// Work requests in it.
    pub(in crate::fabric::verbs) fn len(&self) -> usize {
        self.wrs.len()
    }

    /// Adds one with registered memory.
    pub(in crate::fabric::verbs) fn push(&mut self, wr_id: u64, op: SendOp, pieces: &[Sge]) {
        self.sges.extend(pieces.iter().map(|piece| piece.0));
        self.add(wr_id, op, pieces.len(), 0);
    }

    /// Adds one that binds a window. The window has to live until it is done.
    pub(in crate::fabric::verbs) fn push_bind(&mut self, wr_id: u64, window: &Mw) {
        self.add(wr_id, SendOp::Send, 0, ffi::IBV_SEND_SIGNALED);
        if let Some(wr) = self.wrs.last_mut() {
            wr.opcode = ffi::IBV_WR_BIND_MW;
            // A window has remote rights only.
            let remote = ffi::IBV_ACCESS_REMOTE_READ | ffi::IBV_ACCESS_REMOTE_WRITE;
            let flags = window.rights.flags() & remote;
            wr.bind_mw = ffi::wr_bind_mw {
                mw: window.raw.as_ptr(),
                rkey: window.rkey(),
                mr: window.mr.raw.as_ptr(),
                addr: window.address,
                length: window.len as u64,
                mw_access_flags: flags as c_uint,
            };
        }
    }

    /// Adds one whose `len` bytes are copied: `fill` is given their place.
    pub(in crate::fabric::verbs) fn push_inline(
        &mut self,
        wr_id: u64,
        op: SendOp,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) {
        let start = self.bytes.len();
        self.bytes.resize(start + len, 0);
        fill(&mut self.bytes[start..]);
        let count = usize::from(len > 0);
        if count > 0 {
            self.sges.push(ffi::ibv_sge {
                // The place in `bytes`, until `link` knows its address.
                addr: start as u64,
                length: len as u32,
                lkey: 0,
            });
        }
        self.add(wr_id, op, count, ffi::IBV_SEND_INLINE);
    }

    /// Makes one of them tell its completion.
    pub(in crate::fabric::verbs) fn signal(&mut self, index: usize) {
        if let Some(wr) = self.wrs.get_mut(index) {
            wr.send_flags |= ffi::IBV_SEND_SIGNALED;
        }
    }

    fn add(&mut self, wr_id: u64, op: SendOp, sges: usize, flags: c_uint) {
        let (opcode, invalidate_rkey, remote_addr, rkey) = match op {
            SendOp::Send => (ffi::IBV_WR_SEND, 0, 0, 0),
            // libsiw takes the token from where RDMA operations have theirs.
            SendOp::SendInvalidate(token) => (ffi::IBV_WR_SEND_WITH_INV, token, 0, token),
            SendOp::Write { token, offset } => (ffi::IBV_WR_RDMA_WRITE, 0, offset, token),
            SendOp::Read { token, offset } => (ffi::IBV_WR_RDMA_READ, 0, offset, token),
        };
        let mut wr = ffi::send_wr_wr { atomic: [0; 4] };
        wr.rdma = ffi::wr_rdma { remote_addr, rkey };
        self.wrs.push(ffi::ibv_send_wr {
            wr_id,
            next: ptr::null_mut(),
            sg_list: ptr::null_mut(),
            num_sge: sges as c_int,
            opcode,
            send_flags: flags,
            invalidate_rkey,
            wr,
            remote_srqn: 0,
            bind_mw: NO_WINDOW,
        });
    }

    /// Sets all pointers, now that nothing moves any more.
    pub(super) fn link(&mut self) -> Option<*mut ffi::ibv_send_wr> {
        let bytes = self.bytes.as_ptr() as u64;
        let sges = self.sges.as_mut_ptr();
        let mut at = 0;
        for wr in &mut self.wrs {
            wr.sg_list = sges.wrapping_add(at);
            at += wr.num_sge as usize;
            if wr.send_flags & ffi::IBV_SEND_INLINE != 0 && wr.num_sge == 1 {
                // SAFETY: `add` counts the pieces pushed for each request, so this is one of them.
                unsafe { (*wr.sg_list).addr += bytes };
            }
        }
        let first = self.wrs.as_mut_ptr();
        for index in 1..self.wrs.len() {
            // SAFETY: both are elements of the vector.
            unsafe { (*first.add(index - 1)).next = first.add(index) };
        }
        (!self.wrs.is_empty()).then_some(first)
    }

    pub(super) fn clear(&mut self) {
        self.wrs.clear();
        self.sges.clear();
        self.bytes.clear();
    }
}

const NO_WINDOW: ffi::wr_bind_mw = ffi::wr_bind_mw {
    mw: ptr::null_mut(),
    rkey: 0,
    mr: ptr::null_mut(),
    addr: 0,
    length: 0,
    mw_access_flags: 0,
};

/// Receives on their way to a queue.
#[derive(Default)]
pub(in crate::fabric::verbs) struct RecvBatch {
    wrs: Vec<ffi::ibv_recv_wr>,
    sges: Vec<ffi::ibv_sge>,
}

impl RecvBatch {
    /// Adds one.
    pub(in crate::fabric::verbs) fn push(&mut self, wr_id: u64, pieces: &[Sge]) {
        self.sges.extend(pieces.iter().map(|piece| piece.0));
        self.wrs.push(ffi::ibv_recv_wr {
            wr_id,
            next: ptr::null_mut(),
            sg_list: ptr::null_mut(),
            num_sge: pieces.len() as c_int,
        });
    }

    pub(super) fn link(&mut self) -> Option<*mut ffi::ibv_recv_wr> {
        let sges = self.sges.as_mut_ptr();
        let mut at = 0;
        for wr in &mut self.wrs {
            wr.sg_list = sges.wrapping_add(at);
            at += wr.num_sge as usize;
        }
        let first = self.wrs.as_mut_ptr();
        for index in 1..self.wrs.len() {
            // SAFETY: both are elements of the vector.
            unsafe { (*first.add(index - 1)).next = first.add(index) };
        }
        (!self.wrs.is_empty()).then_some(first)
    }

    pub(super) fn clear(&mut self) {
        self.wrs.clear();
        self.sges.clear();
    }
}
