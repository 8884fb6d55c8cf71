#![forbid(unsafe_code)]
//! From what waits to the device: work requests in chains, one call for each queue and flush.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::time::Instant;

use super::conn::{Conn, Phase, Posted, Recv, Registration, Waiting, Work};
use super::memory::{Kept, MAX_PIECES};
use super::queues::{Queues, HEADER};
use super::sys::{RecvBatch, Rights, SendBatch, SendOp, Sge, Transport};
use crate::fabric::{EndReason, SendRequest};

/// Every so many sends one tells its completion, and the last of a chain does; the others are done
/// with it.
const SIGNAL_EVERY: usize = 32;

/// Storage that all connections use in turn.
#[derive(Default)]
pub(super) struct PostTools {
    sends: SendBatch,
    recvs: RecvBatch,
    pieces: Vec<Sge>,
}

/// Why nothing was posted.
pub(super) enum PostError {
    /// Memory cannot be registered now. What had to be posted waits as before: give some back and
    /// try again.
    Memory(io::Error, usize),
    End(EndReason),
}

/// The kind of a work request, in the low bits of its number.
pub(super) mod kind {
    pub(in crate::fabric::verbs) const SEND: u64 = 0;
    pub(in crate::fabric::verbs) const READ: u64 = 1;
    pub(in crate::fabric::verbs) const RECV: u64 = 2;
    pub(in crate::fabric::verbs) const BITS: u32 = 2;
}

fn number(seq: u64, kind: u64) -> u64 {
    seq << kind::BITS | kind
}

impl Conn {
    /// Posts what waits, as far as the queues have room.
    pub(super) fn post(&mut self, now: Instant, tools: &mut PostTools) -> Result<(), PostError> {
        // Receives first: a send may grant credits for them.
        self.post_recvs(now, tools)?;
        if matches!(self.phase, Phase::Open | Phase::Draining) {
            self.post_sends(now, tools)?;
        }
        Ok(())
    }

    fn post_recvs(&mut self, now: Instant, tools: &mut PostTools) -> Result<(), PostError> {
        let Some(queues) = &mut self.queues else {
            return Ok(());
        };
        let options = *queues.qp.options();
        let mut failed = None;
        while self.recvs.len() < options.recvs as usize {
            let Some(mut recv) = self.recvs_waiting.pop_front() else {
                break;
            };
            tools.pieces.clear();
            let most = options.recv_sges as usize;
            let kept = queues
                .memory
                .local(now, &recv.memory, most, true, &mut tools.pieces);
            match kept {
                Ok(kept) => {
                    tools
                        .recvs
                        .push(number(recv.seq, kind::RECV), &tools.pieces);
                    recv.kept = kept;
                    self.recvs.push_back(recv);
                }
                Err(error) => {
                    failed = Some(lacking(error, recv.memory.len()));
                    self.recvs_waiting.push_front(recv);
                    break;
                }
            }
        }
        queues
            .qp
            .post_recv(&mut tools.recvs)
            .map_err(|error| PostError::End(transport("ibv_post_recv", &error)))?;
        failed.map_or(Ok(()), Err)
    }

    fn post_sends(&mut self, now: Instant, tools: &mut PostTools) -> Result<(), PostError> {
        let Some(queues) = &mut self.queues else {
            return Ok(());
        };
        let room = queues.qp.options().sends as usize;
        let mut failed = None;
        let mut last_send = None;
        while self.sends.len() + self.reads.len() < room {
            // Reads wait for their turn; others may pass them.
            let may_read = self.reads.len() < self.ord as usize;
            let read = self.reads_waiting.front().filter(|_| may_read);
            let is_read = match (self.waiting.front(), read) {
                (Some(send), Some(read)) => read.seq < send.seq,
                (None, Some(_)) => true,
                (Some(_), None) => false,
                (None, None) => break,
            };
            let is_bind = |next: &Waiting| matches!(next.work, Work::Bind { .. });
            if queues.device.repeats_binds
                && !is_read
                && self.waiting.front().is_some_and(is_bind)
                && may_be_repeated(&self.sends, &self.reads)
            {
                // The next completion brings it back here.
                break;
            }
            let queue = if is_read {
                &mut self.reads_waiting
            } else {
                &mut self.waiting
            };
            let Some(waiting) = queue.pop_front() else {
                break;
            };
            match push(queues, &self.registrations, now, tools, &waiting) {
                Ok(None) => {}
                Ok(Some(posted)) if is_read => self.reads.push_back(posted),
                Ok(Some(posted)) => {
                    let index = tools.sends.len() - 1;
                    last_send = Some(index);
                    let len = waiting.work.len() + HEADER;
                    let tells = queues.device.tells_from.is_some_and(|from| len >= from);
                    if tells || index % SIGNAL_EVERY == SIGNAL_EVERY - 1 {
                        tools.sends.signal(index);
                    }
                    self.sends.push_back(posted);
                }
                Err(error) => {
                    failed = Some(lacking(error, waiting.work.len()));
                    queue.push_front(waiting);
                    break;
                }
            }
        }
        if let Some(index) = last_send {
            tools.sends.signal(index);
        }
        queues
            .qp
            .post_send(&mut tools.sends)
            .map_err(|error| PostError::End(transport("ibv_post_send", &error)))?;
        failed.map_or(Ok(()), Err)
    }
}

/// Whether the device may have to send again something that it has got.
fn may_be_repeated(sends: &VecDeque<Posted>, reads: &VecDeque<Posted>) -> bool {
    !reads.is_empty() || sends.iter().any(|posted| posted.binds.is_none())
}

/// Adds one work request to the chain.
fn push(
    queues: &mut Queues,
    registrations: &HashMap<u32, Registration>,
    now: Instant,
    tools: &mut PostTools,
    waiting: &Waiting,
) -> io::Result<Option<Posted>> {
    let mut posted = Posted {
        seq: waiting.seq,
        wr_id: waiting.wr_id,
        binds: None,
        header: None,
        _kept: Kept::None,
    };
    tools.pieces.clear();
    match &waiting.work {
        Work::Bind { token } => match registrations.get(token) {
            Some(Registration::Window { window, .. }) => {
                tools
                    .sends
                    .push_bind(number(waiting.seq, kind::SEND), window);
                posted.binds = Some(*token);
            }
            // Taken back before it was bound.
            _ => return Ok(None),
        },
        Work::Send(request) => push_send(queues, now, tools, request, &mut posted)?,
        Work::Write {
            memory,
            token,
            offset,
        } => {
            let most = queues.qp.options().send_sges.min(MAX_PIECES) as usize;
            posted._kept = queues
                .memory
                .local(now, memory, most, false, &mut tools.pieces)?;
            let op = SendOp::Write {
                token: *token,
                offset: *offset,
            };
            let id = number(waiting.seq, kind::SEND);
            tools.sends.push(id, op, &tools.pieces);
        }
        Work::Read {
            memory,
            token,
            offset,
        } => {
            let device = &queues.device;
            posted._kept = match device.transport {
                // The peer addresses the sink: that right is given for this read alone.
                Transport::Iwarp if !memory.is_empty() => {
                    queues.memory.once(memory, SINK, &mut tools.pieces)?
                }
                _ => {
                    let options = queues.qp.options();
                    let most = options.send_sges.min(device.max_sge_rd).min(MAX_PIECES) as usize;
                    queues
                        .memory
                        .local(now, memory, most, false, &mut tools.pieces)?
                }
            };
            let op = SendOp::Read {
                token: *token,
                offset: *offset,
            };
            let id = number(waiting.seq, kind::READ);
            tools.sends.push(id, op, &tools.pieces);
            tools.sends.signal(tools.sends.len() - 1);
        }
    }
    Ok(Some(posted))
}

fn push_send(
    queues: &mut Queues,
    now: Instant,
    tools: &mut PostTools,
    request: &SendRequest,
    posted: &mut Posted,
) -> io::Result<()> {
    let id = number(posted.seq, kind::SEND);
    let op = match request.invalidate {
        // [MS-SMBD] 3.1.5.4: a transport that cannot sends without.
        Some(token) if queues.device.send_with_invalidate => SendOp::SendInvalidate(token),
        _ => SendOp::Send,
    };
    let header = request
        .header
        .get(..usize::from(request.header_len))
        .unwrap_or_default();
    let payload = request.payload.as_ref().filter(|memory| !memory.is_empty());
    let len = header.len() + payload.map_or(0, |memory| memory.len());
    let may_inline = matches!(op, SendOp::Send) || queues.device.inlines_invalidate;
    if may_inline && len <= queues.qp.options().inline as usize {
        tools.sends.push_inline(id, op, len, |bytes| {
            let (first, rest) = bytes.split_at_mut(header.len());
            first.copy_from_slice(header);
            if let Some(memory) = payload {
                // The slice has exactly these bytes.
                let _ = memory.read(0, rest);
            }
        });
        return Ok(());
    }
    if !header.is_empty() {
        let slot = queues.headers.free.last().copied();
        let slot = slot.ok_or_else(|| io::Error::other("no place for a header"))?;
        let at = usize::from(slot) * HEADER;
        let piece = queues.headers.mr.piece(at, header.len());
        let written = queues.headers.region.write(at, header);
        let piece = piece.filter(|_| written.is_ok());
        let piece = piece.ok_or_else(|| io::Error::other("a header is not inside its pool"))?;
        tools.pieces.push(piece);
        posted.header = Some(slot);
    }
    if let Some(memory) = payload {
        let most = queues.qp.options().send_sges as usize - tools.pieces.len();
        posted._kept = queues
            .memory
            .local(now, memory, most, false, &mut tools.pieces)?;
    }
    // Taken only now: an error above leaves the place free.
    if posted.header.is_some() {
        queues.headers.free.pop();
    }
    tools.sends.push(id, op, &tools.pieces);
    Ok(())
}

const SINK: Rights = Rights {
    local_write: true,
    remote_read: false,
    remote_write: true,
    bind: false,
};

impl Work {
    fn len(&self) -> usize {
        match self {
            Self::Send(request) => request.payload.as_ref().map_or(0, |memory| memory.len()),
            Self::Write { memory, .. } | Self::Read { memory, .. } => memory.len(),
            Self::Bind { .. } => 0,
        }
    }
}

impl Recv {
    pub(super) fn new(seq: u64, wr_id: crate::fabric::WrId, memory: crate::mem::MemSlice) -> Self {
        Self {
            seq,
            wr_id,
            memory,
            kept: Kept::None,
        }
    }
}

fn lacking(error: io::Error, bytes: usize) -> PostError {
    match error.raw_os_error() {
        Some(libc::ENOMEM | libc::EAGAIN) => PostError::Memory(error, bytes),
        _ => PostError::End(EndReason::Transport(
            super::limits::explain(error, "register memory", bytes).to_string(),
        )),
    }
}

pub(super) fn transport(what: &str, error: &io::Error) -> EndReason {
    EndReason::Transport(format!("{what}: {error}"))
}
