//! The sending half of a connection: work waits in a queue, is framed into a stage of some hundred
//! KiB, and leaves the stage in few large calls.
//!
//! A stage is taken from a pool while there are bytes to send and goes back when all have left, so
//! an idle connection holds none. A work request is done when TCP took its last byte: from then
//! on its memory is the caller's again. (That the peer's TCP has it, or that the peer has placed
//! it, is not known at that point; RDMAP has no acknowledgement for Sends and Writes.)

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;

use super::crc;
use super::ddp::{
    Opcode, ReadRequest, Tagged, Untagged, QUEUE_READ_REQUEST, QUEUE_SEND, QUEUE_TERMINATE,
    READ_REQUEST_LEN, TAGGED_LEN, UNTAGGED_LEN,
};
use super::stag::Registrations;
use super::stage::{Source, Stage, StagePool};
use super::terminate::Code;
use super::End;
use crate::fabric::{EndReason, WrId};
use crate::mem::{send_vectored, MemSlice, PartsStorage, SendParts};

/// What a queue entry sends.
pub(super) enum Work {
    /// One of the Send family: header, then memory.
    Send {
        header: [u8; 32],
        header_len: u8,
        payload: Option<MemSlice>,
        invalidate: Option<u32>,
    },
    /// An RDMA WRITE. Without memory: zero-length (ready to receive).
    Write {
        memory: Option<MemSlice>,
        token: u32,
        offset: u64,
    },
    /// Asks for an RDMA READ.
    ReadRequest(ReadRequest),
    /// Answers the peer's. The source is looked up again each time it is touched, so that it is
    /// out of reach as soon as its registration ends.
    ReadResponse { request: ReadRequest, at: usize },
    /// A frame without a ULPDU (ready to receive).
    ZeroFpdu,
}

/// A queue entry.
struct Item {
    wr_id: Option<WrId>,
    /// Place among all work requests of the connection.
    order: u64,
    work: Work,
    /// Bytes of the message.
    total: usize,
    /// Bytes of the message that are framed.
    framed: usize,
    /// Stream position behind the message, once it is framed as a whole.
    end: Option<u64>,
}

impl Item {
    fn new(work: Work, wr_id: Option<WrId>, order: u64) -> Self {
        let total = match &work {
            Work::Send {
                header_len,
                payload,
                ..
            } => usize::from(*header_len) + payload.as_ref().map_or(0, MemSlice::len),
            Work::Write { memory, .. } => memory.as_ref().map_or(0, MemSlice::len),
            Work::ReadRequest(_) => READ_REQUEST_LEN,
            Work::ReadResponse { request, .. } => request.len as usize,
            Work::ZeroFpdu => 0,
        };
        Self {
            wr_id,
            order,
            work,
            total,
            framed: 0,
            end: None,
        }
    }
}

/// What the send call needs besides the connection.
pub(super) struct SendTools {
    pub(super) storage: PartsStorage,
    pub(super) pool: StagePool,
    pub(super) chunk: crc::Chunk,
}

/// How a pump ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pumped {
    /// Nothing is left.
    Empty,
    /// The socket is full, or it is the others' turn: go on when it is writable.
    More,
}

/// What a pump has finished.
#[derive(Default)]
pub(super) struct Finished {
    pub(super) wr_ids: Vec<WrId>,
    pub(super) responses: u32,
}

/// The sending half of a connection.
pub(super) struct Transmit {
    items: VecDeque<Item>,
    /// Number of `items[0]`; numbers never come back.
    first: u64,
    /// Number of the first item that is not framed as a whole.
    cursor: u64,
    stage: Option<Box<Stage>>,
    /// Stream position behind what is framed.
    framed: u64,
    /// Stream position behind what TCP took.
    taken: u64,
    /// Stream position behind the last frame that TCP took as a whole.
    frame_end: u64,
    send_msn: u32,
    read_msn: u32,
    /// False until we may send frames.
    pub(super) open: bool,
    pub(super) crc: bool,
    pub(super) max_ulpdu: usize,
}

/// Payload up to this many bytes is copied into the stage; larger payload is named to the kernel
/// where it lies. Measured on loopback, CPU of both sides for 1 GiB of RDMA WRITEs, copied against
/// named: ULPDUs of 256 bytes 0.91 s : 1.28 s, of 600 bytes 0.70 : 0.79, of 1,442 bytes 0.69 : 0.62
/// (and 30 % more throughput), of 64 KiB 0.62 : 0.38.
const COPY_MAX: usize = 1 << 10;
/// The same with CRC, where memory of others is copied once in any case, to sum it up: ULPDUs of
/// 1,442 bytes 0.85 s : 0.92 s, of 64 KiB 0.73 : 0.59.
const COPY_MAX_CRC: usize = 4 << 10;

impl Transmit {
    pub(super) fn new() -> Self {
        Self {
            items: VecDeque::new(),
            first: 0,
            cursor: 0,
            stage: None,
            framed: 0,
            taken: 0,
            frame_end: 0,
            send_msn: 1,
            read_msn: 1,
            open: false,
            crc: false,
            max_ulpdu: 128,
        }
    }

    /// Queues work. `order` is its place among the work requests.
    pub(super) fn push(&mut self, work: Work, wr_id: Option<WrId>, order: u64) {
        self.items.push_back(Item::new(work, wr_id, order));
    }

    /// Queues work in front of all other. Only while nothing is framed.
    pub(super) fn push_front(&mut self, work: Work) {
        debug_assert_eq!(self.framed, 0);
        self.items.push_front(Item::new(work, None, 0));
    }

    /// Whether everything has left.
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    #[cfg(test)]
    pub(super) fn has_stage(&self) -> bool {
        self.stage.is_some()
    }

    /// Frames and sends up to about `budget` bytes.
    pub(super) fn pump(
        &mut self,
        socket: impl AsFd + Copy,
        registrations: &Registrations,
        tools: &mut SendTools,
        mut budget: usize,
        finished: &mut Finished,
    ) -> Result<Pumped, End> {
        if !self.open {
            return Ok(Pumped::Empty);
        }
        let pumped = loop {
            self.frame(registrations, tools)?;
            if self.items.is_empty() {
                break Pumped::Empty;
            }
            if budget == 0 {
                break Pumped::More;
            }
            let (taken, wanted) = match self.send(socket, registrations, &mut tools.storage)? {
                Some(sent) => sent,
                None => break Pumped::More,
            };
            self.take(taken, finished);
            budget = budget.saturating_sub(taken);
            if taken < wanted {
                break Pumped::More;
            }
        };
        if pumped == Pumped::Empty {
            if let Some(stage) = self.stage.take() {
                tools.pool.put(stage);
            }
            if self.items.capacity() > 256 {
                self.items.shrink_to(16);
            }
        }
        Ok(pumped)
    }

    /// Sends what is staged once. `None`: the socket is full.
    fn send(
        &self,
        socket: impl AsFd,
        registrations: &Registrations,
        storage: &mut PartsStorage,
    ) -> Result<Option<(usize, usize)>, End> {
        let Some(stage) = self.stage.as_deref() else {
            return Ok(Some((0, 0)));
        };
        let mut parts = SendParts::with_storage(std::mem::take(storage));
        for piece in stage.pieces() {
            if parts.is_full() {
                break;
            }
            match piece.source {
                Source::Staged(at) => parts.push(stage.bytes(at, piece.len)),
                Source::Item { number, offset } => {
                    let memory = self.memory(number, registrations)?;
                    parts
                        .push_mem(memory, offset, piece.len)
                        .map_err(|error| End::local(format!("memory to send: {error}")))?;
                }
            }
        }
        let wanted = parts.bytes();
        // More frames follow at once: TCP need not push a short segment out for this one.
        let more = self.cursor < self.first + self.items.len() as u64;
        let result = send_vectored(socket, &parts, more);
        *storage = parts.into_storage();
        match result {
            Ok(taken) => Ok(Some((taken, wanted))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(End::transport("send", &error)),
        }
    }

    /// The memory of an item, if it may still be touched.
    fn memory<'a>(
        &'a self,
        number: u64,
        registrations: &'a Registrations,
    ) -> Result<&'a MemSlice, End> {
        let item = number
            .checked_sub(self.first)
            .and_then(|index| self.items.get(index as usize));
        match item.map(|item| &item.work) {
            Some(Work::Send { payload: m, .. } | Work::Write { memory: m, .. }) => m.as_ref(),
            Some(Work::ReadResponse { request, .. }) => {
                return registrations
                    .memory(request.source_token)
                    .ok_or_else(|| source_gone(request.source_token));
            }
            _ => None,
        }
        .ok_or_else(|| End::local("a staged piece lost its memory".into()))
    }

    /// TCP took `n` bytes.
    fn take(&mut self, n: usize, finished: &mut Finished) {
        self.taken += n as u64;
        if let Some(stage) = self.stage.as_deref_mut() {
            stage.take(n);
            while let Some(end) = stage.frame_ends.front() {
                if *end > self.taken {
                    break;
                }
                self.frame_end = *end;
                stage.frame_ends.pop_front();
            }
        }
        while let Some(item) = self.items.front() {
            if item.end.is_none_or(|end| end > self.taken) {
                break;
            }
            if let Some(wr_id) = item.wr_id {
                if !matches!(item.work, Work::ReadRequest(_)) {
                    finished.wr_ids.push(wr_id);
                }
            }
            if matches!(item.work, Work::ReadResponse { .. }) {
                finished.responses += 1;
            }
            self.items.pop_front();
            self.first += 1;
        }
    }

    /// Frames queued work while there is room.
    fn frame(&mut self, registrations: &Registrations, tools: &mut SendTools) -> Result<(), End> {
        loop {
            let index = (self.cursor - self.first) as usize;
            let Some(item) = self.items.get_mut(index) else {
                return Ok(());
            };
            let stage = self.stage.get_or_insert_with(|| tools.pool.get());
            if !stage.has_room() {
                return Ok(());
            }
            let mut framer = Framer {
                stage,
                registrations,
                number: self.cursor,
                crc: self.crc.then_some(0),
                summed: 0,
                chunk: &mut tools.chunk,
                max_ulpdu: self.max_ulpdu,
                send_msn: &mut self.send_msn,
                read_msn: &mut self.read_msn,
            };
            let len = framer.frame(item)?;
            self.framed += len as u64;
            stage.frame_ends.push_back(self.framed);
            if item.framed == item.total {
                item.end = Some(self.framed);
                self.cursor += 1;
            }
        }
    }

    /// The bytes that must still leave before another frame may: the rest of a frame that TCP took
    /// in part. `None`: it cannot be sent any more.
    pub(super) fn rest_of_frame(&self, registrations: &Registrations) -> Option<Vec<u8>> {
        if self.taken == self.frame_end {
            return Some(Vec::new());
        }
        let stage = self.stage.as_deref()?;
        let mut left = usize::try_from(stage.frame_ends.front()?.checked_sub(self.taken)?).ok()?;
        let mut rest = Vec::with_capacity(left);
        for piece in stage.pieces() {
            let len = piece.len.min(left);
            if len == 0 {
                break;
            }
            match piece.source {
                Source::Staged(at) => rest.extend_from_slice(stage.bytes(at, len)),
                Source::Item { number, offset } => {
                    let memory = self.memory(number, registrations).ok()?;
                    rest.extend_from_slice(&memory.slice(offset, len).ok()?.to_vec());
                }
            }
            left -= len;
        }
        (left == 0).then_some(rest)
    }

    /// Ends the queue: the work requests that did not get out, with their order.
    pub(super) fn drain(&mut self, pool: &mut StagePool) -> Vec<(u64, WrId)> {
        if let Some(stage) = self.stage.take() {
            pool.put(stage);
        }
        std::mem::take(&mut self.items)
            .into_iter()
            .filter(|item| !matches!(item.work, Work::ReadRequest(_)))
            .filter_map(|item| Some((item.order, item.wr_id?)))
            .collect()
    }
}

fn source_gone(token: u32) -> End {
    End {
        reason: EndReason::Protocol(format!(
            "the memory of token {token:#010x} was taken back while the peer still read it"
        )),
        terminate: Some(Code::READ_INVALID_TOKEN),
    }
}

/// A Terminate as a whole frame.
pub(super) fn terminate_frame(body: &[u8], with_crc: bool) -> Vec<u8> {
    let header = Untagged {
        last: true,
        opcode: Opcode::Terminate,
        ulp: 0,
        queue: QUEUE_TERMINATE,
        msn: 1,
        offset: 0,
    };
    let len = (UNTAGGED_LEN + body.len()) as u16;
    let mut frame = len.to_be_bytes().to_vec();
    frame.extend_from_slice(&header.emit());
    frame.extend_from_slice(body);
    frame.resize(frame.len().next_multiple_of(4), 0);
    let crc = if with_crc { crc::append(0, &frame) } else { 0 };
    frame.extend_from_slice(&crc::to_wire(crc));
    frame
}

/// Puts one frame of an item into the stage.
struct Framer<'a> {
    stage: &'a mut Stage,
    registrations: &'a Registrations,
    number: u64,
    /// CRC of the frame up to `summed`, when there is one.
    crc: Option<u32>,
    /// Place in the stage up to which the CRC was computed.
    summed: usize,
    chunk: &'a mut crc::Chunk,
    max_ulpdu: usize,
    send_msn: &'a mut u32,
    read_msn: &'a mut u32,
}

impl Framer<'_> {
    /// Frames the next segment of the message. Returns the bytes of the frame.
    fn frame(&mut self, item: &mut Item) -> Result<usize, End> {
        self.summed = self.stage.used();
        let left = item.total - item.framed;
        let (len, on_wire) = match &item.work {
            Work::ZeroFpdu => {
                self.stage.put(&[0, 0]);
                (0, 0)
            }
            Work::Send {
                header,
                header_len,
                payload,
                invalidate,
            } => {
                let len = left.min(self.max_ulpdu - UNTAGGED_LEN);
                let last = len == left;
                self.untagged(
                    Untagged {
                        last,
                        opcode: match invalidate {
                            Some(_) => Opcode::SendInvalidate,
                            None => Opcode::Send,
                        },
                        ulp: invalidate.unwrap_or(0),
                        queue: QUEUE_SEND,
                        msn: *self.send_msn,
                        offset: item.framed as u32,
                    },
                    len,
                );
                let header = header.get(..usize::from(*header_len)).unwrap_or_default();
                let inline = header.get(item.framed..).unwrap_or_default();
                let inline = inline.get(..len).unwrap_or(inline);
                self.stage.put(inline);
                if let Some(memory) = payload {
                    let at = (item.framed + inline.len()).saturating_sub(header.len());
                    self.payload(memory, at, len - inline.len())?;
                }
                if last {
                    *self.send_msn = self.send_msn.wrapping_add(1);
                }
                (len, UNTAGGED_LEN + len)
            }
            Work::Write {
                memory,
                token,
                offset,
            } => {
                let len = left.min(self.max_ulpdu - TAGGED_LEN);
                self.tagged(
                    Tagged {
                        last: len == left,
                        opcode: Opcode::Write,
                        token: *token,
                        offset: offset.wrapping_add(item.framed as u64),
                    },
                    len,
                );
                if let Some(memory) = memory {
                    self.payload(memory, item.framed, len)?;
                }
                (len, TAGGED_LEN + len)
            }
            Work::ReadRequest(request) => {
                self.untagged(
                    Untagged {
                        last: true,
                        opcode: Opcode::ReadRequest,
                        ulp: 0,
                        queue: QUEUE_READ_REQUEST,
                        msn: *self.read_msn,
                        offset: 0,
                    },
                    READ_REQUEST_LEN,
                );
                self.stage.put(&request.emit());
                *self.read_msn = self.read_msn.wrapping_add(1);
                (READ_REQUEST_LEN, UNTAGGED_LEN + READ_REQUEST_LEN)
            }
            Work::ReadResponse { request, at } => {
                let len = left.min(self.max_ulpdu - TAGGED_LEN);
                self.tagged(
                    Tagged {
                        last: len == left,
                        opcode: Opcode::ReadResponse,
                        token: request.sink_token,
                        offset: request.sink_offset.wrapping_add(item.framed as u64),
                    },
                    len,
                );
                if len > 0 {
                    let memory = self
                        .registrations
                        .memory(request.source_token)
                        .ok_or_else(|| source_gone(request.source_token))?;
                    self.payload(memory, at + item.framed, len)?;
                }
                (len, TAGGED_LEN + len)
            }
        };
        item.framed += len;
        let unpadded = 2 + on_wire;
        let pad = unpadded.next_multiple_of(4) - unpadded;
        self.stage.put(&[0; 3][..pad]);
        self.sum_staged();
        self.stage.put(&crc::to_wire(self.crc.unwrap_or(0)));
        Ok(unpadded + pad + 4)
    }

    fn untagged(&mut self, header: Untagged, len: usize) {
        self.stage.put(&((UNTAGGED_LEN + len) as u16).to_be_bytes());
        self.stage.put(&header.emit());
    }

    fn tagged(&mut self, header: Tagged, len: usize) {
        self.stage.put(&((TAGGED_LEN + len) as u16).to_be_bytes());
        self.stage.put(&header.emit());
    }

    /// Brings the CRC up to the end of what is staged.
    fn sum_staged(&mut self) {
        if let Some(crc) = &mut self.crc {
            let len = self.stage.used() - self.summed;
            *crc = crc::append(*crc, self.stage.bytes(self.summed, len));
            self.summed += len;
        }
    }

    fn payload(&mut self, memory: &MemSlice, offset: usize, len: usize) -> Result<(), End> {
        let lost = |error| End::local(format!("memory to send: {error}"));
        let copy_max = match self.crc {
            Some(_) => COPY_MAX_CRC,
            None => COPY_MAX,
        };
        if len <= copy_max {
            return self.stage.put_mem(memory, offset, len).map_err(lost);
        }
        self.sum_staged();
        if let Some(crc) = &mut self.crc {
            *crc = crc::append_mem(*crc, memory, offset, len, self.chunk).map_err(lost)?;
        }
        self.stage.name(self.number, offset, len);
        Ok(())
    }
}
