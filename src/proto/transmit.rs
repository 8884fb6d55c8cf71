//! Outputs: what to post, what to send and when, `[MS-SMBD] 3.1.5.1` and 3.1.5.4.

use std::time::Instant;

use super::connection::{Connection, Pace, Phase, Role};
use super::credits::EmptyGrant;
use super::event::{EndReason, Header, Output, Payload};
use crate::wire::DataTransfer;

impl<B, M: Clone> Connection<B, M> {
    /// The next thing to do, or `None` when there is nothing until the next input. To be called
    /// until `None` after every input.
    pub fn poll(&mut self, now: Instant) -> Option<Output<B, M>> {
        if let Some(output) = self.inbound.pop_front() {
            return Some(output);
        }
        if let Some((reason, drain)) = self.ended {
            if self.has_reported_end {
                return None;
            }
            self.has_reported_end = true;
            return Some(Output::Disconnect { reason, drain });
        }
        self.credits.expire_question();
        let wanted = self.wanted_receives();
        if wanted > 0 {
            return Some(Output::PostReceives(wanted));
        }
        if self.phase != Phase::Established {
            let header = self.request().or_else(|| self.respond(now))?;
            self.in_flight += 1;
            return Some(Output::Send {
                header,
                payload: None,
                last: false,
                invalidate: None,
            });
        }
        if self.is_news {
            self.is_news = false;
            return Some(Output::Negotiated(self.negotiated));
        }
        if self.is_closing && self.queue.is_empty() && self.in_flight == 0 {
            self.end(EndReason::LocalClose, true);
            return self.poll(now);
        }
        self.poll_send(now)
    }

    /// Receives to ask for now; 0 if none. Before the peer can know of them, that is before the
    /// message that grants them goes out.
    fn wanted_receives(&mut self) -> u16 {
        let urgent = match self.phase {
            Phase::AwaitingResponse | Phase::AwaitingRequest => self.credits.posted() == 0,
            // The negotiate message has used up its receive, or is about to.
            Phase::Connecting(Some(_)) | Phase::Refusing(..) | Phase::Refused(_) => return 0,
            Phase::Connecting(None) | Phase::Requesting | Phase::Responding(_) => true,
            Phase::Established => self.send_immediate,
        };
        let is_last_credit = self.phase == Phase::Established
            && self.send_credits == 1
            && (!self.queue.is_empty() || self.send_immediate || self.keepalive.is_pending());
        self.credits.wanted(urgent, is_last_credit)
    }

    fn poll_send(&mut self, now: Instant) -> Option<Output<B, M>> {
        if self.in_flight >= u32::from(self.params.send_window) {
            // A send done brings us back here, so no timer is needed.
            self.pace.at = None;
            self.spare.rest();
            return None;
        }
        if self.queue.is_empty() && !self.is_empty_message_due(now) {
            self.spare.rest();
            return None;
        }
        let Some(credits_granted) = self.take_send_credit(now) else {
            self.stats.credit_stalls += u64::from(!self.is_stalled && !self.queue.is_empty());
            self.is_stalled = true;
            self.pace.at = None;
            return None;
        };
        self.is_stalled = false;
        self.pace.at = None;
        let mut header = DataTransfer {
            credits_requested: self.params.send_credit_target,
            credits_granted,
            ..DataTransfer::default()
        };
        if self.keepalive.is_pending() {
            header.flags = DataTransfer::RESPONSE_REQUESTED;
            self.keepalive.on_sent(now);
            self.stats.keepalives_sent += 1;
        }
        self.send_immediate = false;
        self.in_flight += 1;
        self.stats.pdus_sent += 1;

        // At least 104 bytes: MaxSendSize is 128 or more.
        let max_payload = self.negotiated.max_send_size - DataTransfer::DATA_OFFSET as u32;
        let Some(segment) = self.queue.next_segment(max_payload) else {
            self.stats.empty_sent += 1;
            let header = Header::new(&header.emit());
            return Some(Output::Send {
                header,
                payload: None,
                last: false,
                invalidate: None,
            });
        };
        header.remaining_data_length = segment.remaining;
        header.data_offset = DataTransfer::DATA_OFFSET as u32;
        header.data_length = segment.length;
        let last = segment.remaining == 0;
        self.is_mid_message = !last;
        self.pace.on_payload();
        self.stats.bytes_sent += u64::from(segment.length);
        self.stats.messages_sent += u64::from(last);
        Some(Output::Send {
            header: Header::new(&header.emit_padded()),
            payload: Some(Payload {
                message: segment.message,
                offset: segment.offset as usize,
                length: segment.length as usize,
            }),
            last,
            invalidate: segment.invalidate,
        })
    }

    /// Spends a send credit and decides what the message grants; `None` when nothing may be
    /// sent: without a credit, or with the last one and nothing to grant (`[MS-SMBD] 3.1.5.1`,
    /// the rule that keeps two sides from starving each other), or with one of the spare ones that
    /// would not feed the peer. A probe and the answer to one may go with those.
    fn take_send_credit(&mut self, now: Instant) -> Option<u16> {
        let mut grant = self.credits.grantable();
        let is_control = self.send_immediate || self.keepalive.is_pending();
        if self.send_credits > 0
            && !is_control
            && !self.credits.is_starving()
            && self.spare.holds(now, self.send_credits)
        {
            return None;
        }
        // Without a credit only the peer can help. The timer of kept ones, which probes have used up
        // meanwhile, would expire again and again.
        match self.send_credits {
            0 => {
                self.spare.rest();
                return None;
            }
            1 => {
                grant = self.credits.grantable_with_last_credit();
                if grant == 0 {
                    self.spare.rest();
                    return None;
                }
            }
            // The answer to a probe gives back the credit that the probe took.
            _ if grant == 0 && self.send_immediate => {
                grant = self.credits.grantable_with_reserve().min(1);
            }
            _ => {}
        }
        self.send_credits -= 1;
        if grant > 0 {
            self.grant(grant);
            self.pace.has_payload = false;
        }
        Some(grant)
    }

    /// Is there a reason for a message without payload? The queue is empty, so that such a
    /// message cannot come between the segments of another.
    fn is_empty_message_due(&mut self, now: Instant) -> bool {
        if self.send_immediate || self.keepalive.is_pending() {
            return true;
        }
        match self.credits.empty_grant() {
            EmptyGrant::No => {
                self.pace.at = None;
                false
            }
            _ if self.role == Role::Active && self.stats.pdus_sent == 0 => {
                now >= *self.pace.at.get_or_insert(now + Pace::FIRST_GRANT)
            }
            EmptyGrant::Now => true,
            EmptyGrant::Single if self.pace.has_payload => true,
            EmptyGrant::Single => self.is_single_grant_due(now),
        }
    }

    /// A single credit, without payload to answer: a few at once, then ever more slowly.
    fn is_single_grant_due(&mut self, now: Instant) -> bool {
        if self.send_credits == 0 {
            self.pace.at = None;
            return false;
        }
        if self.pace.budget > 0 {
            self.pace.budget -= 1;
            return true;
        }
        let at = *self.pace.at.get_or_insert(now + self.pace.delay);
        if now < at {
            return false;
        }
        self.pace.delay = (self.pace.delay * 2).min(Pace::DELAY_MAX);
        true
    }

    pub(super) fn grant(&mut self, count: u16) {
        self.credits.on_granted(count);
        self.stats.credits_granted += u64::from(count);
    }
}
