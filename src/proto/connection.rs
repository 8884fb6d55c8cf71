//! The connection object of `[MS-SMBD] 3.1.1.1` and its inputs. Outputs: `transmit.rs`.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::credits::Credits;
use super::event::{EndReason, Negotiated, Output, SendError, Stats, ViolationError};
use super::keepalive::{Expiry, Keepalive};
use super::params::Params;
use super::reassembly::Reassembly;
use super::send_queue::SendQueue;
use super::spare::Spare;
use crate::wire::{DataTransfer, NegotiateRequest, MIN_MESSAGE_SIZE};

/// Which side opened the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// We connected; we send the Negotiate Request.
    Active,
    /// The peer connected; we answer its Negotiate Request.
    Passive,
}

/// One MS-SMBD connection; see the [module](super) for how to drive it.
///
/// `B` is a receive buffer of the caller's, `M` an upper-layer message of the caller's (cheap to
/// clone: a key or a reference-counted pointer; it is cloned once per segment but the last).
#[derive(Debug)]
pub struct Connection<B, M> {
    pub(super) params: Params,
    pub(super) role: Role,
    pub(super) phase: Phase,
    /// Latched first reason; set means no input changes anything any more.
    pub(super) ended: Option<(EndReason, bool)>,
    pub(super) has_reported_end: bool,
    /// Received and not yet yielded; at most one entry per receive posted.
    pub(super) inbound: VecDeque<Output<B, M>>,
    pub(super) negotiated: Negotiated,
    /// Negotiated has to be yielded.
    pub(super) is_news: bool,

    pub(super) credits: Credits,
    /// SendCredits.
    pub(super) send_credits: u32,
    pub(super) spare: Spare,
    pub(super) queue: SendQueue<M>,
    /// The front message of the queue has been sent in part: no empty message may go now.
    pub(super) is_mid_message: bool,
    /// SendImmediate.
    pub(super) send_immediate: bool,
    /// Sends yielded and not reported done.
    pub(super) in_flight: u32,
    /// The queue waits for a credit (statistics).
    pub(super) is_stalled: bool,
    pub(super) reassembly: Reassembly,
    pub(super) keepalive: Keepalive,
    pub(super) pace: Pace,
    /// Negotiation timer, then close timer.
    pub(super) deadline: Option<Instant>,
    pub(super) is_closing: bool,
    pub(super) stats: Stats,
}

/// How far the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The fabric is not up. A passive side may have the peer's request already: on some RDMA
    /// devices a receive completes before the connection is reported established.
    Connecting(Option<NegotiateRequest>),
    /// Active: the request has to be sent.
    Requesting,
    /// Active: waiting for the response.
    AwaitingResponse,
    /// Passive: waiting for the request.
    AwaitingRequest,
    /// Passive: receives have to be posted, then the response has to be sent.
    Responding(NegotiateRequest),
    /// Passive: a failure response with this status has to be sent.
    Refusing(u32, EndReason),
    /// Passive: the failure response is on its way.
    Refused(EndReason),
    /// Data Transfer messages may flow.
    Established,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Connecting(_) => "connecting",
            Self::Requesting => "sending the negotiate request",
            Self::AwaitingResponse => "awaiting the negotiate response",
            Self::AwaitingRequest => "awaiting the negotiate request",
            Self::Responding(_) => "sending the negotiate response",
            Self::Refusing(..) | Self::Refused(_) => "refusing the negotiation",
            Self::Established => "established",
        }
    }
}

/// Slows down empty messages that grant a single credit ([`EmptyGrant::Single`]).
///
/// [`EmptyGrant::Single`]: super::credits::EmptyGrant::Single
#[derive(Debug, Clone)]
pub(super) struct Pace {
    /// Payload has come since the last grant: the next one is not the answer to a mere grant.
    pub(super) has_payload: bool,
    /// Grants that may go at once.
    pub(super) budget: u8,
    /// When the next one may go, if one is due.
    pub(super) at: Option<Instant>,
    /// How long the next one has to wait when the budget is used up.
    pub(super) delay: Duration,
}

impl Pace {
    const BUDGET: u8 = 16;
    pub(super) const DELAY_MIN: Duration = Duration::from_millis(10);
    pub(super) const DELAY_MAX: Duration = Duration::from_secs(1);
    /// The active side owes its first grant with its first message, which should come at once
    /// from the upper layer. If it does not, the grant goes alone after this time.
    pub(super) const FIRST_GRANT: Duration = Duration::from_millis(100);

    fn new() -> Self {
        Self {
            has_payload: false,
            budget: Self::BUDGET,
            at: None,
            delay: Self::DELAY_MIN,
        }
    }

    /// Payload went either way: the connection is in use.
    pub(super) fn on_payload(&mut self) {
        self.budget = Self::BUDGET;
        self.delay = Self::DELAY_MIN;
    }
}

impl<B, M: Clone> Connection<B, M> {
    /// Makes a connection and starts its negotiation timer (`[MS-SMBD] 3.1.4.1`, 3.1.7.2).
    ///
    /// `params` should have passed [`Params::validate`]. Poll at once: a receive for the
    /// negotiate message has to be posted before the fabric connects.
    pub fn new(role: Role, params: &Params, now: Instant) -> Self {
        let timeout = match role {
            Role::Active => params.negotiate_timeout_active,
            Role::Passive => params.negotiate_timeout_passive,
        };
        Self {
            role,
            phase: Phase::Connecting(None),
            ended: None,
            has_reported_end: false,
            inbound: VecDeque::new(),
            negotiated: Negotiated {
                max_send_size: MIN_MESSAGE_SIZE,
                max_receive_size: params.max_receive_size,
                max_fragmented_send_size: 0,
                max_fragmented_receive_size: params.max_fragmented_size,
                max_read_write_size: params.max_read_write_size,
            },
            is_news: false,
            credits: Credits::new(params.receive_credit_max),
            send_credits: 0,
            spare: Spare::new(),
            queue: SendQueue::new(),
            is_mid_message: false,
            send_immediate: false,
            in_flight: 0,
            is_stalled: false,
            reassembly: Reassembly::default(),
            keepalive: Keepalive::new(params.keepalive_interval, params.keepalive_response_timeout),
            pace: Pace::new(),
            deadline: Some(now + timeout),
            is_closing: false,
            stats: Stats::default(),
            params: params.clone(),
        }
    }

    /// The fabric is connected.
    pub fn handle_established(&mut self, now: Instant) {
        if self.ended.is_some() {
            return;
        }
        if let Phase::Connecting(early) = self.phase {
            self.phase = match self.role {
                Role::Active => Phase::Requesting,
                Role::Passive => Phase::AwaitingRequest,
            };
            if let Some(request) = early {
                self.on_request(now, request);
            }
        }
    }

    /// A message arrived: `len` bytes in `buffer`, of which `bytes` are the first 32 (or all, if
    /// fewer), copied out so that nobody can change them behind the checks. `invalidated` is the
    /// token when the peer used Send with Invalidate.
    ///
    /// The buffer comes back by `Deliver` or `Recycle`.
    pub fn handle_receive(
        &mut self,
        now: Instant,
        bytes: &[u8],
        len: usize,
        buffer: B,
        invalidated: Option<u32>,
    ) {
        if self.ended.is_some() {
            self.inbound.push_back(Output::Recycle { buffer });
            return;
        }
        let bytes = bytes.get(..len.min(bytes.len())).unwrap_or(bytes);
        if self.phase == Phase::Established {
            match self.on_data(now, bytes, len, buffer, invalidated) {
                Ok(output) => self.inbound.push_back(output),
                Err((violation, buffer)) => {
                    self.inbound.push_back(Output::Recycle { buffer });
                    self.end(EndReason::Violation(violation), false);
                }
            }
            return;
        }
        self.inbound.push_back(Output::Recycle { buffer });
        self.credits.on_room();
        let result = if self.credits.on_negotiate_received() {
            self.on_negotiate(now, bytes)
        } else {
            Err(self.unexpected().into())
        };
        if let Err(reason) = result {
            self.end(reason, false);
        }
    }

    /// `[MS-SMBD] 3.1.5.5` and 3.1.5.8: a Data Transfer arrived.
    fn on_data(
        &mut self,
        now: Instant,
        bytes: &[u8],
        length: usize,
        buffer: B,
        invalidated: Option<u32>,
    ) -> Result<Output<B, M>, (ViolationError, B)> {
        let max_receive_size = self.negotiated.max_receive_size;
        let checked = DataTransfer::parse(bytes)
            .map_err(ViolationError::from)
            .and_then(|header| {
                if length as u64 > u64::from(max_receive_size) {
                    return Err(ViolationError::TooLong {
                        length,
                        max_receive_size,
                    });
                }
                header.validate(length, self.negotiated.max_fragmented_receive_size)?;
                if !self.credits.on_data_received() {
                    return Err(ViolationError::NoCredit);
                }
                let piece = self.reassembly.on_segment(&header, invalidated)?;
                Ok((header, piece))
            });
        let (header, piece) = match checked {
            Ok(checked) => checked,
            Err(violation) => return Err((violation, buffer)),
        };

        self.stats.pdus_received += 1;
        self.keepalive.on_alive(now);
        self.credits.set_target(header.credits_requested);
        self.send_credits = self
            .send_credits
            .saturating_add(header.credits_granted.into());
        if header.credits_granted > 0 {
            self.spare.on_granted(self.send_credits);
        }
        self.stats.credits_received += u64::from(header.credits_granted);
        if header.is_response_requested() {
            // Not the flag back: 3.1.5.8 sets KeepaliveRequested here, which would make every
            // answer a probe.
            self.send_immediate = true;
            self.stats.keepalives_received += 1;
        }
        let Some(piece) = piece else {
            self.stats.empty_received += 1;
            self.credits.on_room();
            return Ok(Output::Recycle { buffer });
        };
        self.stats.bytes_received += u64::from(header.data_length);
        self.stats.messages_received += u64::from(piece.last);
        self.pace.on_payload();
        self.pace.has_payload = true;
        if self.is_closing {
            self.credits.on_room();
            return Ok(Output::Recycle { buffer });
        }
        Ok(Output::Deliver {
            buffer,
            data_offset: header.data_offset as usize,
            data_length: header.data_length as usize,
            remaining: header.remaining_data_length,
            first: piece.first,
            last: piece.last,
            invalidated: piece.invalidated,
        })
    }

    /// Answers [`Output::PostReceives`]: that many receives have been posted, 0 to the number
    /// asked for. When it is fewer, the machine does not ask again until
    /// [`handle_receives_available`](Self::handle_receives_available) or a `Recycle`.
    pub fn handle_posted(&mut self, posted: u16) {
        self.credits.on_posted(posted);
    }

    /// The caller has receive buffers again after it posted fewer than asked for.
    pub fn handle_receives_available(&mut self, _now: Instant) {
        self.credits.on_room();
    }

    /// The oldest `count` sends have completed. They complete in the order they were yielded.
    pub fn handle_send_done(&mut self, _now: Instant, count: u32) {
        self.in_flight = self.in_flight.saturating_sub(count);
        if self.in_flight > 0 {
            return;
        }
        if let Phase::Refused(reason) = self.phase {
            self.end(reason, true);
        }
    }

    /// Time passed: fires the timers that have expired (`[MS-SMBD] 3.1.6`).
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.ended.is_some() {
            return;
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            if self.is_closing {
                return self.end(EndReason::LocalClose, true);
            }
            let reason = match self.phase {
                Phase::Refused(reason) | Phase::Refusing(_, reason) => reason,
                _ => EndReason::NegotiateTimeout,
            };
            return self.end(reason, false);
        }
        if self.phase == Phase::Established {
            match self.keepalive.on_timeout(now) {
                Ok(()) => {}
                Err(Expiry::Unanswered) => self.end(EndReason::KeepaliveTimeout, false),
                Err(Expiry::Unsendable) => self.end(EndReason::KeepaliveUnsendable, false),
            }
        }
    }

    /// The fabric has lost the connection or the peer has closed it. A `Disconnect` follows, so
    /// that the caller has one way of tearing down.
    pub fn handle_disconnected(&mut self, _now: Instant) {
        let reason = match self.phase {
            // A refused peer goes away; that is not the news.
            Phase::Refused(reason) => reason,
            _ if self.is_closing => EndReason::LocalClose,
            _ => EndReason::Disconnected,
        };
        self.end(reason, false);
    }

    /// Queues an upper-layer message of `len` bytes. `invalidate` is a token of the peer's that
    /// it may give up with this message.
    ///
    /// The message is sent when a `Send` with `last` set and this `M` has completed.
    ///
    /// # Errors
    /// See [`SendError`]; nothing has been queued then.
    pub fn send(
        &mut self,
        _now: Instant,
        message: M,
        len: usize,
        invalidate: Option<u32>,
    ) -> Result<(), SendError> {
        if self.ended.is_some() || self.is_closing {
            return Err(SendError::Closed);
        }
        if self.phase != Phase::Established {
            return Err(SendError::NotEstablished);
        }
        let max = self.negotiated.max_fragmented_send_size;
        let length = match u32::try_from(len) {
            Ok(0) => return Err(SendError::Empty),
            Ok(length) if length <= max => length,
            _ => return Err(SendError::TooLong { length: len, max }),
        };
        if self.queue.len() >= usize::from(self.params.send_queue_limit) {
            return Err(SendError::QueueFull {
                limit: self.params.send_queue_limit,
            });
        }
        self.queue.push(message, length, invalidate);
        Ok(())
    }

    /// Ends the connection from our side. Queued messages are still sent; the `Disconnect` comes
    /// when the last of them has completed, or after the keepalive response timeout if the peer
    /// gives no credits or the fabric does not move. Payload that arrives meanwhile is dropped.
    pub fn close(&mut self, now: Instant) {
        if self.ended.is_some() || self.is_closing {
            return;
        }
        if self.phase == Phase::Established {
            self.is_closing = true;
            self.deadline = Some(now + self.params.keepalive_response_timeout);
        } else {
            self.end(EndReason::LocalClose, true);
        }
    }

    /// Bounds the receives posted and granted, beside ReceiveCreditMax and the peer's wish; for
    /// the time before a connection has an owner. At least 2; raising it makes the peer get the
    /// rest at the next `poll`, lowering it takes nothing back.
    pub fn set_receive_limit(&mut self, limit: u16) {
        self.credits.set_limit(limit);
    }

    /// When [`handle_timeout`](Self::handle_timeout) has to be called next.
    pub fn next_timeout(&self) -> Option<Instant> {
        if self.ended.is_some() {
            return None;
        }
        let timers = [
            self.deadline,
            self.keepalive.deadline(),
            self.pace.at,
            self.spare.deadline(),
        ];
        timers.into_iter().flatten().min()
    }

    /// Takes back a message that has not been sent to its end, oldest first. Meant for after
    /// `Disconnect`; before, it cancels a message unless part of it is on the wire already.
    pub fn take_unsent(&mut self) -> Option<M> {
        if self.is_mid_message && self.ended.is_none() {
            return None;
        }
        self.queue.pop()
    }

    /// What was agreed on, once it is.
    pub fn negotiated(&self) -> Option<&Negotiated> {
        (self.phase == Phase::Established).then_some(&self.negotiated)
    }

    /// Why the connection ended, once it has.
    pub fn end_reason(&self) -> Option<EndReason> {
        self.ended.map(|(reason, _)| reason)
    }

    /// Name of the phase the connection is in, for people.
    pub fn phase_name(&self) -> &'static str {
        match (self.ended.is_some(), self.is_closing) {
            (true, _) => "ended",
            (_, true) => "closing",
            _ => self.phase.name(),
        }
    }

    /// The side we are on.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Messages we may send before the peer grants more (SendCredits).
    pub fn send_credits(&self) -> u32 {
        self.send_credits
    }

    /// Messages the peer may send before we grant more (ReceiveCredits).
    pub fn receive_credits(&self) -> u16 {
        self.credits.granted()
    }

    /// Receives posted in the fabric, granted or not.
    pub fn receives_posted(&self) -> u16 {
        self.credits.posted()
    }

    /// Credits the peer asked for last (ReceiveCreditTarget).
    pub fn receive_credit_target(&self) -> u16 {
        self.credits.target()
    }

    /// Upper-layer messages queued, with the one sent in part.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Sends yielded and not reported done.
    pub fn sends_in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    pub(super) fn unexpected(&self) -> ViolationError {
        ViolationError::Unexpected {
            phase: self.phase.name(),
        }
    }

    /// Latches the first reason. From here on inputs only give buffers back.
    pub(super) fn end(&mut self, reason: EndReason, drain: bool) {
        if self.ended.is_none() {
            self.ended = Some((reason, drain));
        }
    }
}

impl From<ViolationError> for EndReason {
    fn from(violation: ViolationError) -> Self {
        Self::Violation(violation)
    }
}
