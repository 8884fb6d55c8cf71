//! The receiving half of a connection: an incremental parser that takes any split of the stream.
//!
//! Bytes come in through one scratch buffer that all connections of the fabric share, many small
//! frames per call, and are copied to where they belong. While a large segment is under way, the
//! rest of its payload is received straight into its final memory, and only what follows it goes
//! to the scratch buffer. Between calls a connection keeps some hundred bytes of state, no buffer.
//!
//! Payload is placed before the CRC of its frame is known; what it belongs to is delivered only
//! after. A wrong CRC ends the connection, so the memory is never taken for good.
//!
//! This file has the stream: bytes, frames, CRC, where payload goes. What the segments in the
//! frames mean is in `segment`.

mod segment;

use std::io;

use super::crc;
use super::ddp::{header_len, Header, Opcode, Untagged, READ_REQUEST_LEN, UNTAGGED_LEN};
use super::qp::Qp;
use super::terminate::{Code, MAX_BODY};
use super::End;
use crate::fabric::{EndReason, FabricEvent};
use crate::mem::{recv_vectored, MemSlice, PartsStorage, RecvParts};

/// Bytes of the scratch buffer that the connections share.
pub(super) const SCRATCH_BYTES: usize = 256 << 10;
/// A payload rest of at least this many bytes is received straight into place.
const DIRECT_MIN: usize = 8 << 10;
/// How much is received behind or between large segments: their next header, and not so much of
/// their payload that copying it would matter.
const LARGE_SCRATCH: usize = 4 << 10;
/// Bytes that one connection may take before the others get their turn.
const BUDGET: usize = 1 << 20;

/// What the fabric lends for receiving.
pub(super) struct ReceiveTools {
    pub(super) scratch: Box<[u8]>,
    pub(super) storage: PartsStorage,
    chunk: crc::Chunk,
}

impl ReceiveTools {
    pub(super) fn new() -> Self {
        Self {
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
            storage: PartsStorage::default(),
            chunk: crc::chunk(),
        }
    }
}

/// ULPDU length, DDP header, and the Read Request behind it.
pub(super) type Segment<'a> = (u16, &'a [u8], Option<&'a [u8]>);

/// What of a frame comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Header,
    Payload,
    Trailer,
}

/// Where payload goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// To the receive at the front of the queue.
    Receive { at: usize },
    /// To registered memory.
    Registered { token: u32, at: usize },
    /// To the read at the front of the queue.
    Read { at: usize },
    /// To the small buffer of Read Request and Terminate.
    Control { at: usize },
}

/// Bytes to wait for within a long response.
const THRESHOLD: usize = 32 << 10;

/// State between two calls.
pub(super) struct Receive {
    expect: Expect,
    /// Length field and header of the frame.
    header: [u8; 2 + UNTAGGED_LEN],
    /// Bytes of the header, later of the trailer, that are here.
    have: usize,
    /// The parsed header; `None` for a frame without ULPDU.
    frame: Option<Header>,
    trailer: [u8; 8],
    trailer_len: usize,
    target: Target,
    /// Payload bytes that are still to come.
    left: usize,
    control: [u8; MAX_BODY],
    control_len: usize,
    crc: u32,
    pub(super) with_crc: bool,
    /// The last payloads were large: expect more of that kind.
    large: bool,
    send_msn: u32,
    read_msn: u32,
    /// Bytes of the present untagged message in front of this segment.
    message_len: usize,
    /// First segment of the present message.
    message: Option<(Opcode, u32)>,
    /// A frame without ULPDU may come first.
    pub(super) zero_fpdu: bool,
    /// No frame was complete yet.
    first: bool,
}

impl Receive {
    pub(super) fn new() -> Self {
        Self {
            expect: Expect::Header,
            header: [0; 2 + UNTAGGED_LEN],
            have: 0,
            frame: None,
            trailer: [0; 8],
            trailer_len: 0,
            target: Target::Control { at: 0 },
            left: 0,
            control: [0; MAX_BODY],
            control_len: 0,
            crc: 0,
            with_crc: false,
            large: false,
            send_msn: 1,
            read_msn: 1,
            message_len: 0,
            message: None,
            zero_fpdu: false,
            first: true,
        }
    }

    /// Whether the stream is between two frames.
    pub(super) fn is_between_frames(&self) -> bool {
        self.expect == Expect::Header && self.have == 0
    }

    /// Whether a frame has been here, at least in part: the peer has begun to send frames.
    pub(super) fn has_seen_frame(&self) -> bool {
        !self.first || !self.is_between_frames()
    }

    /// Length field and header of the present segment, and the Read Request in it.
    pub(super) fn segment(&self) -> Option<Segment<'_>> {
        let [high, low, ctrl, ..] = self.header;
        let len = u16::from_be_bytes([high, low]);
        let header = self.header.get(2..2 + header_len(ctrl))?;
        let is_request = matches!(
            self.frame,
            Some(Header::Untagged(Untagged {
                opcode: Opcode::ReadRequest,
                ..
            }))
        );
        let request = (is_request && self.control_len == READ_REQUEST_LEN)
            .then(|| self.control.get(..READ_REQUEST_LEN))
            .flatten();
        Some((len, header, request))
    }

    fn ulpdu_len(&self) -> usize {
        usize::from(u16::from_be_bytes([self.header[0], self.header[1]]))
    }

    /// Collects the length field and the header. True: both are here.
    fn collect_header(&mut self, input: &mut &[u8]) -> Result<bool, End> {
        loop {
            let need = match self.have {
                0..2 => 2,
                2 if self.ulpdu_len() == 0 => return Ok(true),
                2 => 3,
                _ => 2 + header_len(self.header[2]),
            };
            if self.have == need {
                return Ok(true);
            }
            let Some(room) = self.header.get_mut(self.have..need) else {
                return Err(End::local("header state".into()));
            };
            let n = fill(room, input);
            if n == 0 {
                return Ok(false);
            }
            self.have += n;
        }
    }

    /// Collects pad and CRC. True: both are here and right.
    fn collect_trailer(&mut self, input: &mut &[u8]) -> Result<bool, End> {
        if let Some(room) = self.trailer.get_mut(self.have..self.trailer_len) {
            self.have += fill(room, input);
        }
        if self.have < self.trailer_len {
            return Ok(false);
        }
        if !self.with_crc {
            return Ok(true);
        }
        let (pad, told) = self.trailer[..self.trailer_len].split_at(self.trailer_len - 4);
        let wire = crc::to_wire(crc::append(self.crc, pad));
        if told != wire {
            return Err(End::violation(
                Code::CRC,
                format!("CRC of a frame is {told:02x?}, computed {wire:02x?}"),
            ));
        }
        Ok(true)
    }
}

/// Moves bytes from the front of `input` into `room`.
fn fill(room: &mut [u8], input: &mut &[u8]) -> usize {
    let n = room.len().min(input.len());
    let (head, rest) = input.split_at(n);
    room[..n].copy_from_slice(head);
    *input = rest;
    n
}

impl Qp {
    /// Takes what the socket has, up to a budget.
    pub(super) fn receive(
        &mut self,
        tools: &mut ReceiveTools,
        events: &mut Vec<FabricEvent>,
    ) -> Result<(), End> {
        let mut budget = BUDGET;
        while budget > 0 {
            let cap = if self.rx.large {
                LARGE_SCRATCH
            } else {
                SCRATCH_BYTES
            };
            let mut parts = RecvParts::with_storage(std::mem::take(&mut tools.storage));
            let direct = match self.direct_target()? {
                Some((memory, at, len)) => {
                    parts.push_mem(memory, at, len).map_err(out_of_memory)?;
                    len
                }
                None => 0,
            };
            if let Some(room) = tools.scratch.get_mut(..cap) {
                parts.push(room);
            }
            let result = recv_vectored(&self.socket, &mut parts);
            tools.storage = parts.into_storage();
            let n = match result {
                Ok(0) => return Err(self.peer_closed()),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(End::transport("receive", &error)),
            };
            let placed = n.min(direct);
            if placed > 0 {
                self.placed_directly(placed, &mut tools.chunk)?;
            }
            // A scratch full of small frames: receive more per call again.
            if n == direct + cap {
                self.rx.large = false;
            }
            let behind = tools.scratch.get(..n - placed).unwrap_or_default();
            self.parse(behind, events)?;
            if n < direct + cap {
                // The socket had no more; if it has by now, it is ready again.
                return Ok(());
            }
            budget = budget.saturating_sub(n);
        }
        Ok(())
    }

    /// Within the response to a long read, is not woken for each segment of the peer's.
    ///
    /// Never waits for more than what is left of the response, whose bytes follow each other.
    pub(super) fn set_threshold(&mut self) -> Result<(), End> {
        let left = self.response_left();
        let threshold = match left < THRESHOLD / 2 {
            true => 1,
            false => left.min(THRESHOLD),
        };
        if threshold != self.threshold {
            crate::sys::set_receive_threshold(&self.socket, threshold)
                .map_err(|error| End::transport("set SO_RCVLOWAT", &error))?;
            self.threshold = threshold;
        }
        Ok(())
    }

    /// Payload of a Read Response that has begun and is still to come.
    fn response_left(&self) -> usize {
        let Some(read) = self.reads.front().filter(|_| self.requested_reads > 0) else {
            return 0;
        };
        let here = match (self.rx.expect, self.rx.target) {
            (Expect::Header, _) if read.received > 0 => read.received,
            (Expect::Payload | Expect::Trailer, Target::Read { at }) => at,
            _ => return 0,
        };
        (read.request.len as usize).saturating_sub(here)
    }

    fn peer_closed(&self) -> End {
        End {
            reason: if self.rx.is_between_frames() {
                EndReason::PeerClosed
            } else {
                EndReason::Transport("the peer closed inside a frame".into())
            },
            terminate: None,
        }
    }

    /// The memory of a target.
    fn target_memory(&self, target: Target) -> Result<Option<(&MemSlice, usize)>, End> {
        Ok(Some(match target {
            Target::Receive { at } => match self.recvs.front() {
                Some((_, memory)) => (memory, at),
                None => return Err(End::local("a receive under way is gone".into())),
            },
            Target::Registered { token, at } => match self.registrations.memory(token) {
                Some(memory) => (memory, at),
                None => {
                    return Err(End::violation(
                        Code::TAGGED_INVALID_TOKEN,
                        format!("token {token:#010x} was taken back during a Write to it"),
                    ))
                }
            },
            Target::Read { at } => match self.reads.front() {
                Some(read) => match &read.memory {
                    Some(memory) => (memory, at),
                    None => return Err(End::local("a read without memory has payload".into())),
                },
                None => return Err(End::local("a read under way is gone".into())),
            },
            Target::Control { .. } => return Ok(None),
        }))
    }

    fn direct_target(&self) -> Result<Option<(&MemSlice, usize, usize)>, End> {
        if self.rx.expect != Expect::Payload || self.rx.left < DIRECT_MIN {
            return Ok(None);
        }
        let target = self.target_memory(self.rx.target)?;
        Ok(target.map(|(memory, at)| (memory, at, self.rx.left)))
    }

    /// `n` bytes of payload are in place already.
    fn placed_directly(&mut self, n: usize, chunk: &mut crc::Chunk) -> Result<(), End> {
        if self.rx.with_crc {
            if let Some((memory, at)) = self.target_memory(self.rx.target)? {
                self.rx.crc =
                    crc::append_mem(self.rx.crc, memory, at, n, chunk).map_err(out_of_memory)?;
            }
        }
        self.advance(n);
        Ok(())
    }

    fn advance(&mut self, n: usize) {
        match &mut self.rx.target {
            Target::Receive { at }
            | Target::Registered { at, .. }
            | Target::Read { at }
            | Target::Control { at } => *at += n,
        }
        self.rx.left -= n;
        if self.rx.left == 0 {
            self.rx.expect = Expect::Trailer;
            self.rx.have = 0;
        }
    }

    /// Takes the next bytes of the stream.
    pub(super) fn parse(
        &mut self,
        mut input: &[u8],
        events: &mut Vec<FabricEvent>,
    ) -> Result<(), End> {
        loop {
            match self.rx.expect {
                Expect::Header => {
                    if !self.rx.collect_header(&mut input)? {
                        return Ok(());
                    }
                    self.on_header()?;
                }
                Expect::Payload => {
                    let n = self.rx.left.min(input.len());
                    if n == 0 {
                        return Ok(());
                    }
                    let (payload, rest) = input.split_at(n);
                    input = rest;
                    self.place(payload)?;
                }
                Expect::Trailer => {
                    if !self.rx.collect_trailer(&mut input)? {
                        return Ok(());
                    }
                    self.rx.expect = Expect::Header;
                    self.on_frame(events)?;
                    self.rx.have = 0;
                    self.rx.first = false;
                    // RFC 5044 section 7.1.2: the responder may send from here on.
                    self.tx.open = true;
                }
            }
        }
    }

    fn place(&mut self, payload: &[u8]) -> Result<(), End> {
        if self.rx.with_crc {
            self.rx.crc = crc::append(self.rx.crc, payload);
        }
        if let Target::Control { at } = self.rx.target {
            // What is longer than the buffer has no meaning (a Terminate with a tail).
            for (to, from) in self.rx.control.iter_mut().skip(at).zip(payload) {
                *to = *from;
            }
        } else if let Some((memory, at)) = self.target_memory(self.rx.target)? {
            memory.write(at, payload).map_err(out_of_memory)?;
        }
        self.advance(payload.len());
        Ok(())
    }
}

fn out_of_memory(error: crate::mem::MemError) -> End {
    End::local(format!("place payload: {error}"))
}
