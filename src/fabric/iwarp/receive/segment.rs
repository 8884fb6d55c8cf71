//! What the segments in the frames mean: checks of a header before its payload is placed, and
//! delivery once a frame is here as a whole.

use super::super::ddp::{
    header_len, Header, Opcode, ReadRequest, Tagged, Untagged, QUEUE_TERMINATE, READ_REQUEST_LEN,
    TAGGED_LEN, UNTAGGED_LEN,
};
use super::super::qp::{Qp, ReadState};
use super::super::stag::Want;
use super::super::terminate::{Code, Received, MAX_BODY};
use super::super::transmit::Work;
use super::super::{crc, End};
use super::{Expect, Target, DIRECT_MIN};
use crate::fabric::{EndReason, FabricEvent, QpKey, Status};

impl Qp {
    /// Length field and header are here: find out where the payload goes.
    pub(super) fn on_header(&mut self) -> Result<(), End> {
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
    pub(super) fn on_frame(&mut self, events: &mut Vec<FabricEvent>) -> Result<(), End> {
        let payload = match self.rx.frame {
            None => return Ok(()),
            Some(Header::Tagged(_)) => self.rx.ulpdu_len() - TAGGED_LEN,
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
