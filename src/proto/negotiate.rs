//! The negotiation: `[MS-SMBD] 3.1.5.6` (passive) and 3.1.5.7 (active).

use std::time::Instant;

use super::connection::{Connection, Phase, Role};
use super::event::{EndReason, Header, Negotiated, ViolationError};
use crate::wire::{status, NegotiateRequest, NegotiateResponse, MIN_MESSAGE_SIZE, VERSION};

impl<B, M: Clone> Connection<B, M> {
    /// A message arrived before the connection is established.
    pub(super) fn on_negotiate(&mut self, now: Instant, bytes: &[u8]) -> Result<(), EndReason> {
        match (self.phase, self.role) {
            (Phase::AwaitingRequest | Phase::Connecting(None), Role::Passive) => {
                let request = NegotiateRequest::parse(bytes).map_err(ViolationError::from)?;
                if self.phase == Phase::AwaitingRequest {
                    self.on_request(now, request);
                } else {
                    self.phase = Phase::Connecting(Some(request));
                }
                Ok(())
            }
            (Phase::AwaitingResponse, _) => self.on_response(now, bytes),
            _ => Err(self.unexpected().into()),
        }
    }

    /// Passive: checks the request, in the order of `[MS-SMBD] 3.1.5.6`, and derives.
    pub(super) fn on_request(&mut self, _now: Instant, request: NegotiateRequest) {
        if !request.covers_version() {
            let (min, max) = (request.min_version, request.max_version);
            let reason = EndReason::VersionMismatch { min, max };
            self.phase = Phase::Refusing(status::NOT_SUPPORTED, reason);
            return;
        }
        if let Err(error) = request.validate() {
            return self.end(ViolationError::from(error).into(), false);
        }
        self.negotiated = Negotiated {
            // The peer's wish, whatever it is, down to the legal minimum.
            max_receive_size: self
                .params
                .max_receive_size
                .min(request.preferred_send_size)
                .max(MIN_MESSAGE_SIZE),
            max_send_size: self.params.max_send_size.min(request.max_receive_size),
            max_fragmented_send_size: request.max_fragmented_size,
            max_fragmented_receive_size: self.params.max_fragmented_size,
            max_read_write_size: self.params.max_read_write_size,
        };
        self.credits.set_target(request.credits_requested);
        self.phase = Phase::Responding(request);
    }

    /// Passive: the answer, after receives have been asked for. Grants all that is posted, which
    /// is at most what the peer asked for; with nothing posted the negotiation fails.
    pub(super) fn respond(&mut self, now: Instant) -> Option<Header> {
        match self.phase {
            Phase::Responding(_) => {
                let granted = self.credits.grantable_with_reserve();
                if granted == 0 {
                    let reason = EndReason::NoReceives;
                    self.phase = Phase::Refusing(status::INSUFFICIENT_RESOURCES, reason);
                    return self.respond(now);
                }
                self.grant(granted);
                let response = NegotiateResponse {
                    min_version: VERSION,
                    max_version: VERSION,
                    negotiated_version: VERSION,
                    credits_requested: self.params.send_credit_target,
                    credits_granted: granted,
                    status: status::SUCCESS,
                    max_read_write_size: self.negotiated.max_read_write_size,
                    preferred_send_size: self.negotiated.max_send_size,
                    max_receive_size: self.negotiated.max_receive_size,
                    max_fragmented_size: self.negotiated.max_fragmented_receive_size,
                };
                self.establish(now);
                Some(Header::new(&response.emit()))
            }
            Phase::Refusing(status, reason) => {
                self.phase = Phase::Refused(reason);
                Some(Header::new(&NegotiateResponse::failure(status).emit()))
            }
            _ => None,
        }
    }

    /// Active: the request. The fabric is up.
    pub(super) fn request(&mut self) -> Option<Header> {
        if self.phase != Phase::Requesting {
            return None;
        }
        self.phase = Phase::AwaitingResponse;
        let request = NegotiateRequest {
            min_version: VERSION,
            max_version: VERSION,
            credits_requested: self.params.send_credit_target,
            preferred_send_size: self.params.max_send_size,
            max_receive_size: self.params.max_receive_size,
            max_fragmented_size: self.params.max_fragmented_size,
        };
        Some(Header::new(&request.emit()))
    }

    /// Active: checks the response, `[MS-SMBD] 3.1.5.7`, and derives. Nothing is sent back to a
    /// bad one.
    fn on_response(&mut self, now: Instant, bytes: &[u8]) -> Result<(), EndReason> {
        let response = NegotiateResponse::parse(bytes).map_err(ViolationError::from)?;
        if response.status != status::SUCCESS {
            // First, because all else is zero then and would hide the real reason.
            return Err(EndReason::Refused {
                status: response.status,
            });
        }
        response
            .validate(self.params.max_receive_size)
            .map_err(ViolationError::from)?;
        self.negotiated = Negotiated {
            max_receive_size: self
                .params
                .max_receive_size
                .min(response.preferred_send_size)
                .max(MIN_MESSAGE_SIZE),
            max_send_size: self.params.max_send_size.min(response.max_receive_size),
            max_fragmented_send_size: response.max_fragmented_size,
            max_fragmented_receive_size: self.params.max_fragmented_size,
            max_read_write_size: self
                .params
                .max_read_write_size
                .min(response.max_read_write_size),
        };
        self.credits.set_target(response.credits_requested);
        self.send_credits = response.credits_granted.into();
        self.spare.on_granted(self.send_credits);
        self.stats.credits_received += u64::from(response.credits_granted);
        self.establish(now);
        Ok(())
    }

    /// Stops the negotiation timer, starts the idle timer.
    fn establish(&mut self, now: Instant) {
        self.phase = Phase::Established;
        self.deadline = None;
        self.keepalive.on_alive(now);
        self.is_news = true;
    }
}
