#![forbid(unsafe_code)]
//! From the completion queue to events.

use super::conn::{Conn, Phase, Posted, Registration};
use super::post::{kind, transport};
use super::sys::{Completion, Outcome};
use crate::fabric::{EndReason, FabricEvent, Status};

/// What a look at a completion queue found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Some,
}

impl Conn {
    /// Takes one batch of completions, so that a busy connection leaves time for others. An error
    /// is the reason for the end.
    pub(super) fn poll(&mut self, events: &mut Vec<FabricEvent>) -> Result<Found, EndReason> {
        let Some(queues) = &mut self.queues else {
            return Ok(Found::Nothing);
        };
        let mut batch = [Completion::EMPTY; super::sys::POLL_BATCH];
        let count = queues
            .qp
            .poll(&mut batch)
            .map_err(|error| transport("ibv_poll_cq", &error))?;
        let mut end = None;
        for completion in batch.iter().take(count) {
            if let Err(reason) = self.completed(completion, events) {
                end.get_or_insert(reason);
            }
        }
        match (end, count) {
            (Some(reason), _) => Err(reason),
            (None, 0) => Ok(Found::Nothing),
            (None, _) => Ok(Found::Some),
        }
    }

    /// Takes all completions there are; for the end.
    pub(super) fn poll_all(&mut self, events: &mut Vec<FabricEvent>) -> Option<EndReason> {
        let mut first = None;
        // There cannot be more than were posted.
        let batches =
            2 + (self.sends.len() + self.reads.len() + self.recvs.len()) / super::sys::POLL_BATCH;
        for _ in 0..batches {
            match self.poll(events) {
                Ok(Found::Nothing) => break,
                Ok(Found::Some) => {}
                Err(reason) => {
                    first.get_or_insert(reason);
                }
            }
        }
        first
    }

    /// Asks to be told of the next completion.
    pub(super) fn arm(&mut self) -> Result<(), EndReason> {
        match &mut self.queues {
            Some(queues) => queues
                .qp
                .arm()
                .map_err(|error| transport("ibv_req_notify_cq", &error)),
            None => Ok(()),
        }
    }

    fn completed(
        &mut self,
        completion: &Completion,
        events: &mut Vec<FabricEvent>,
    ) -> Result<(), EndReason> {
        let seq = completion.wr_id >> kind::BITS;
        let outcome = completion.outcome;
        let status = status_of(outcome);
        let what = match completion.wr_id & ((1 << kind::BITS) - 1) {
            kind::RECV => {
                self.received(seq, completion, status, events)?;
                "receive"
            }
            kind::READ => {
                if let Some(at) = self.reads.iter().position(|read| read.seq == seq) {
                    if let Some(read) = self.reads.remove(at) {
                        self.finish(read, status, events);
                    }
                }
                "RDMA READ"
            }
            _ => {
                self.sent(seq, status, events);
                "send, RDMA WRITE or bind"
            }
        };
        if outcome == Outcome::Success {
            return Ok(());
        }
        if outcome == Outcome::Flushed {
            // The queue pair is in error; rdma_cm tells why, or a completion that failed does.
            if matches!(self.phase, Phase::Open | Phase::Draining | Phase::Accepting) {
                self.phase = Phase::Broken;
            }
            return Ok(());
        }
        Err(reason_of(outcome, what))
    }

    fn received(
        &mut self,
        seq: u64,
        completion: &Completion,
        status: Status,
        events: &mut Vec<FabricEvent>,
    ) -> Result<(), EndReason> {
        match self.recvs.front() {
            Some(recv) if recv.seq == seq => {}
            _ => {
                let text = format!("internal: receive {seq} completed out of order");
                return Err(EndReason::Transport(text));
            }
        }
        let Some(recv) = self.recvs.pop_front() else {
            return Ok(());
        };
        // Messages are sends ([MS-SMBD] 2.2); an RDMA WRITE puts nothing into this memory.
        let is_foreign = status == Status::Success && completion.is_write;
        let is_good = status == Status::Success && !is_foreign;
        // A message may overtake the event that the connection is up.
        if is_good && self.phase == Phase::Accepting {
            self.notify_established();
            self.establish(Vec::new(), events);
        }
        let known = |token: &u32| self.registrations.contains_key(token);
        let invalidated = completion
            .invalidated
            .or(completion.maybe_invalidated.filter(known))
            .filter(|_| is_good);
        if let Some(token) = invalidated {
            self.registrations.remove(&token);
        }
        events.push(FabricEvent::Recv {
            qp: self.qp_key(),
            wr_id: recv.wr_id,
            len: if is_good {
                (completion.len as usize).min(recv.memory.len())
            } else {
                0
            },
            invalidated,
            status: if is_good { status } else { Status::Flushed },
        });
        if is_foreign {
            let text = "the peer sent an RDMA WRITE with immediate data".to_owned();
            return Err(EndReason::Protocol(text));
        }
        Ok(())
    }

    /// A send or write ended, and with it those before that were not to tell.
    fn sent(&mut self, seq: u64, status: Status, events: &mut Vec<FabricEvent>) {
        while let Some(first) = self.sends.front() {
            if first.seq > seq {
                return;
            }
            let is_this = first.seq == seq;
            let status = match status {
                _ if is_this => status,
                // Flushed: nobody knows how far those before came.
                Status::Flushed => Status::Flushed,
                // They would have failed themselves.
                _ => Status::Success,
            };
            if let Some(posted) = self.sends.pop_front() {
                self.finish(posted, status, events);
            }
        }
    }

    fn finish(&mut self, posted: Posted, status: Status, events: &mut Vec<FabricEvent>) {
        if let (Some(slot), Some(queues)) = (posted.header, &mut self.queues) {
            queues.headers.free.push(slot);
        }
        if let (Some(token), Status::Success) = (posted.binds, status) {
            if let Some(Registration::Window { is_bound, .. }) = self.registrations.get_mut(&token)
            {
                *is_bound = true;
            }
        }
        if let Some(wr_id) = posted.wr_id {
            let qp = self.qp_key();
            events.push(FabricEvent::Done { qp, wr_id, status });
        }
    }
}

fn status_of(outcome: Outcome) -> Status {
    match outcome {
        Outcome::Success => Status::Success,
        Outcome::Flushed => Status::Flushed,
        Outcome::RemoteAccess => Status::RemoteAccess,
        _ => Status::Failed,
    }
}

fn reason_of(outcome: Outcome, what: &str) -> EndReason {
    let peer = |text: &str| EndReason::Terminated(format!("{what}: {text}"));
    let transport = |text: &str| EndReason::Transport(format!("{what}: {text}"));
    match outcome {
        Outcome::LocalLength => EndReason::Protocol(format!(
            "{what}: the peer's message is longer than the receive"
        )),
        Outcome::RemoteAccess => peer("the peer refused access to its memory"),
        Outcome::RemoteRequest => peer("the peer refused the request"),
        Outcome::RemoteOperation => peer("the peer failed to carry it out"),
        Outcome::RetriesExceeded => transport("the peer does not answer (retries exceeded)"),
        Outcome::ReceiverNotReady => {
            EndReason::Protocol(format!("{what}: the peer has no receive posted for it"))
        }
        Outcome::LocalProtection => transport("internal: not allowed by our own registration"),
        Outcome::Other(status) => transport(&format!("failed with ibv_wc_status {status}")),
        Outcome::Success | Outcome::Flushed => transport("the queue pair is in error"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_say_who_is_to_blame() {
        let reason = reason_of(Outcome::RemoteAccess, "RDMA READ");
        assert!(matches!(reason, EndReason::Terminated(text) if text.contains("RDMA READ")));
        let reason = reason_of(Outcome::RetriesExceeded, "receive");
        assert!(matches!(reason, EndReason::Transport(_)));
        let reason = reason_of(Outcome::LocalLength, "receive");
        assert!(matches!(reason, EndReason::Protocol(_)));
        assert_eq!(status_of(Outcome::RemoteAccess), Status::RemoteAccess);
        assert_eq!(status_of(Outcome::LocalLength), Status::Failed);
    }
}
