//! The receiving half of a connection: an incremental parser that takes any split of the stream.
//!
//! Bytes come in through one scratch buffer that all connections of the fabric share, many small
//! frames per call, and are copied to where they belong. While a large segment is under way, the
//! rest of its payload is received straight into its final memory, and only what follows it goes
//! to the scratch buffer. Between calls a connection keeps some hundred bytes of state, no buffer.
//!
//! Payload is placed before the CRC of its frame is known; what it belongs to is delivered only
//! after. A wrong CRC ends the connection, so the memory is never taken for good.

use std::io;

use super::crc;
use super::ddp::{
    header_len, Header, Opcode, ReadRequest, Tagged, Untagged, QUEUE_TERMINATE, READ_REQUEST_LEN,
    UNTAGGED_LEN,
};
use super::qp::{Qp, ReadState};
use super::stag::Want;
use super::terminate::{Code, Received, MAX_BODY};
use super::transmit::Work;
use super::End;
use crate::fabric::{EndReason, FabricEvent, QpKey, Status};
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

    /// Length field and header are here: find out where the payload goes.
    fn on_header(&mut self) -> Result<(), End> {
        let ulpdu_len = self.rx.ulpdu_len();
        let [_, _, ctrl, ..] = self.rx.header;
        let unpadded = 2 + ulpdu_len;
        self.rx.trailer_len = unpadded.next_multiple_of(4) - unpadded + 4;
        if self.rx.with_crc {
            let bytes = self.rx.header.get(..self.rx.have).unwrap_or_default();
            self.rx.crc = crc::append(0, bytes);
        }
        self.rx.control_len = 0;
        if ulpdu_len == 0 {
            if !(self.rx.first && self.rx.zero_fpdu) {
                return Err(End::violation(
                    Code::LENGTH_MISMATCH,
                    "a frame without ULPDU, which was not agreed on".into(),
                ));
            }
            self.rx.frame = None;
            self.rx.left = 0;
            self.rx.expect = Expect::Trailer;
            self.rx.have = 0;
            return Ok(());
        }
        let Some(len) = ulpdu_len.checked_sub(header_len(ctrl)) else {
            return Err(End::violation(
                Code::LENGTH_MISMATCH,
                format!("ULPDU_Length {ulpdu_len} is shorter than its header"),
            ));
        };
        let bytes = self.rx.header.get(2..self.rx.have).unwrap_or_default();
        let header = Header::parse(bytes)
            .map_err(|code| End::violation(code, format!("DDP/RDMAP header {bytes:02x?}")))?;
        self.rx.frame = Some(header);
        self.rx.left = len;
        self.rx.have = 0;
        self.rx.expect = if len == 0 {
            Expect::Trailer
        } else {
            Expect::Payload
        };
        if len >= DIRECT_MIN {
            self.rx.large = true;
        }
        match header {
            Header::Tagged(tagged) if tagged.opcode == Opcode::Write => {
                self.on_write_header(tagged, len)
            }
            Header::Tagged(tagged) => self.on_response_header(tagged, len),
            Header::Untagged(untagged) => match untagged.opcode {
                Opcode::ReadRequest => self.on_request_header(untagged, len),
                Opcode::Terminate => {
                    if untagged.queue != QUEUE_TERMINATE || untagged.msn != 1 {
                        log::debug!("Terminate with MSN {}", untagged.msn);
                    }
                    self.expect_control(len);
                    Ok(())
                }
                _ => self.on_send_header(untagged, len),
            },
        }
    }

    fn expect_control(&mut self, len: usize) {
        self.rx.control_len = len.min(MAX_BODY);
        self.rx.target = Target::Control { at: 0 };
    }

    fn on_write_header(&mut self, header: Tagged, len: usize) -> Result<(), End> {
        // A zero-length Write is placed nowhere, so its STag is not looked at (RFC 5040 5.1).
        if len == 0 {
            return Ok(());
        }
        let Tagged { token, offset, .. } = header;
        let at = self
            .registrations
            .check(token, offset, len as u64, Want::Write)
            .map_err(|refused| {
                End::violation(
                    refused.of_write(),
                    format!("Write of {len} bytes to token {token:#010x} at {offset:#x}"),
                )
            })?;
        self.rx.target = Target::Registered { token, at };
        Ok(())
    }

    fn on_response_header(&mut self, header: Tagged, len: usize) -> Result<(), End> {
        let Some(read) = self.reads.front().filter(|_| self.requested_reads > 0) else {
            return Err(End::violation(
                Code::UNEXPECTED_OPCODE,
                "Read Response without a Read Request".into(),
            ));
        };
        let total = read.request.len as usize;
        let what = |field: &str| {
            format!(
                "{field} of a Read Response: {header:?} with {len} bytes; {} of {total} were here \
                 for {:?}",
                read.received, read.request
            )
        };
        if len > 0 && header.token != read.request.sink_token {
            return Err(End::violation(Code::TAGGED_INVALID_TOKEN, what("STag")));
        }
        let expected = read.request.sink_offset.wrapping_add(read.received as u64);
        if len > total - read.received || (len > 0 && header.offset != expected) {
            return Err(End::violation(Code::TAGGED_BOUNDS, what("place")));
        }
        if header.last != (read.received + len == total) {
            return Err(End::violation(Code::STREAM_CATASTROPHIC, what("length")));
        }
        self.rx.target = Target::Read { at: read.received };
        Ok(())
    }

    fn on_request_header(&mut self, header: Untagged, len: usize) -> Result<(), End> {
        if header.msn != self.rx.read_msn {
            return Err(End::violation(
                Code::MSN_RANGE,
                format!("Read Request {}, expected {}", header.msn, self.rx.read_msn),
            ));
        }
        if header.offset != 0 {
            return Err(End::violation(
                Code::INVALID_OFFSET,
                format!("Read Request with MO {}", header.offset),
            ));
        }
        if len > READ_REQUEST_LEN {
            return Err(End::violation(
                Code::TOO_LONG,
                format!("Read Request of {len} bytes"),
            ));
        }
        if len < READ_REQUEST_LEN || !header.last {
            return Err(End::violation(
                Code::STREAM_CATASTROPHIC,
                format!("Read Request of {len} bytes in a segment of several"),
            ));
        }
        // RFC 5040 section 5.2, RFC 6581 section 9: no more than the agreed number at once.
        if self.inbound_reads >= self.ird {
            return Err(End::violation(
                Code::STREAM_CATASTROPHIC,
                format!("more than {} RDMA READs at once", self.ird),
            ));
        }
        self.expect_control(len);
        Ok(())
    }

    fn on_send_header(&mut self, header: Untagged, len: usize) -> Result<(), End> {
        if header.msn != self.rx.send_msn {
            return Err(End::violation(
                Code::MSN_RANGE,
                format!("Send {}, expected {}", header.msn, self.rx.send_msn),
            ));
        }
        if header.offset as usize != self.rx.message_len {
            return Err(End::violation(
                Code::INVALID_OFFSET,
                format!(
                    "Send with MO {}, expected {}",
                    header.offset, self.rx.message_len
                ),
            ));
        }
        match self.rx.message {
            None => self.rx.message = Some((header.opcode, header.ulp)),
            Some((opcode, _)) if opcode == header.opcode => {}
            Some((opcode, _)) => {
                return Err(End::violation(
                    Code::UNEXPECTED_OPCODE,
                    format!("{:?} inside a message of {opcode:?}", header.opcode),
                ));
            }
        }
        let Some((_, memory)) = self.recvs.front() else {
            return Err(End::violation(
                Code::NO_BUFFER,
                format!("no receive is posted for Send {}", header.msn),
            ));
        };
        if len > memory.len() - self.rx.message_len {
            return Err(End::violation(
                Code::TOO_LONG,
                format!(
                    "Send of {} bytes or more to a receive of {}",
                    self.rx.message_len + len,
                    memory.len()
                ),
            ));
        }
        self.rx.target = Target::Receive {
            at: self.rx.message_len,
        };
        Ok(())
    }

    /// A frame is here as a whole, its CRC right.
    fn on_frame(&mut self, events: &mut Vec<FabricEvent>) -> Result<(), End> {
        let payload = match self.rx.frame {
            None => return Ok(()),
            Some(Header::Tagged(_)) => self.rx.ulpdu_len() - super::ddp::TAGGED_LEN,
            Some(Header::Untagged(_)) => self.rx.ulpdu_len() - UNTAGGED_LEN,
        };
        match self.rx.frame {
            Some(Header::Untagged(header)) => match header.opcode {
                Opcode::ReadRequest => self.on_read_request(),
                Opcode::Terminate => Err(self.on_terminate()),
                _ => {
                    self.rx.message_len += payload;
                    if header.last {
                        self.on_send(events)
                    } else {
                        Ok(())
                    }
                }
            },
            Some(Header::Tagged(header)) if header.opcode == Opcode::ReadResponse => {
                self.on_read_response(payload, header.last, events);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Delivers a message.
    fn on_send(&mut self, events: &mut Vec<FabricEvent>) -> Result<(), End> {
        let len = std::mem::take(&mut self.rx.message_len);
        self.rx.send_msn = self.rx.send_msn.wrapping_add(1);
        let mut invalidated = None;
        if let Some((opcode, token)) = self.rx.message.take() {
            if opcode.invalidates() {
                // RFC 5040 section 5.3: before the message is delivered.
                if !self.registrations.remove(token) {
                    return Err(End::violation(
                        Code::CANNOT_INVALIDATE,
                        format!("Send invalidates token {token:#010x}, which is not registered"),
                    ));
                }
                invalidated = Some(token);
            }
        }
        if let Some((wr_id, _)) = self.recvs.pop_front() {
            events.push(FabricEvent::Recv {
                qp: QpKey(self.key),
                wr_id,
                len,
                invalidated,
                status: Status::Success,
            });
        }
        Ok(())
    }

    fn on_read_request(&mut self) -> Result<(), End> {
        self.rx.read_msn = self.rx.read_msn.wrapping_add(1);
        let body = self.rx.control.get(..READ_REQUEST_LEN).unwrap_or_default();
        let Some(request) = ReadRequest::parse(body) else {
            return Err(End::local("read request state".into()));
        };
        let mut at = 0;
        // A zero-length Read touches nothing, so its STag is not looked at (RFC 5040 5.2.2).
        if request.len > 0 {
            let len = u64::from(request.len);
            at = self
                .registrations
                .check(request.source_token, request.source_offset, len, Want::Read)
                .map_err(|refused| End::violation(refused.of_read(), format!("{request:?}")))?;
        }
        self.inbound_reads += 1;
        let order = self.next_order();
        self.tx
            .push(Work::ReadResponse { request, at }, None, order);
        Ok(())
    }

    fn on_read_response(&mut self, len: usize, last: bool, events: &mut Vec<FabricEvent>) {
        if let Some(read) = self.reads.front_mut() {
            read.received += len;
        }
        if !last {
            return;
        }
        if let Some(read) = self.reads.pop_front() {
            if let Some(wr_id) = read.wr_id {
                events.push(FabricEvent::Done {
                    qp: QpKey(self.key),
                    wr_id,
                    status: Status::Success,
                });
            }
        }
        self.requested_reads = self.requested_reads.saturating_sub(1);
        self.request_reads();
    }

    /// The peer has given up. The read that it refused ends with a status of its own.
    fn on_terminate(&mut self) -> End {
        let body = self.rx.control.get(..self.rx.control_len);
        let received = Received::parse(body.unwrap_or_default());
        log::warn!("{}: Terminate from the peer: {received}", self.peer);
        let refused = received.is_protection() && received.code.layer == 0;
        if let Some(read) = self.reads.front_mut().filter(|_| refused) {
            read.state = ReadState::Refused;
        }
        End {
            reason: EndReason::Terminated(received.to_string()),
            terminate: None,
        }
    }
}

fn out_of_memory(error: crate::mem::MemError) -> End {
    End::local(format!("place payload: {error}"))
}
