//! One SMB Direct connection: the MS-SMBD machine on one side, a queue pair on the other, and the
//! memory that both use.

mod delivery;
mod settle;
mod work;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use log::{info, warn};
use slab::Slab;

use self::delivery::{Piece, Private, Recv};
use self::settle::Settling;
use self::work::{Message, RdmaOp, Work, Wr};
use super::clients::Clients;
use super::handle::HandleId;
use crate::fabric::{self, Fabric, QpKey};
use crate::proto::{self, Output, Role};

/// Receives posted from the engine's own memory until the connection has an owner: enough for an
/// SMB2 NEGOTIATE in small segments, little enough for many strangers.
pub(super) const PRIVATE_RECEIVES: u16 = 8;

/// How long sends may take to leave after a disconnect.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// Where a connection is on its way to an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The fabric or MS-SMBD is being set up.
    Negotiating,
    /// Waits for its first PDU.
    Routing,
    /// The engine has answered NEGOTIATE and waits for SESSION_SETUP.
    AwaitingSession,
    /// Offered to the parent.
    Offered,
    /// Belongs to a handle.
    Attached,
    /// Belongs to a handle (or did until its process ended), and may be taken over with a token.
    Exported,
    /// On its way out.
    Closing,
}

impl Phase {
    /// The word for logs and status.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Negotiating => "negotiating",
            Self::Routing => "awaiting NEGOTIATE",
            Self::AwaitingSession => "awaiting SESSION_SETUP",
            Self::Offered => "offered",
            Self::Attached => "attached",
            Self::Exported => "exported",
            Self::Closing => "closing",
        }
    }
}

/// The owner's view of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) handle: HandleId,
    /// Index in the handle's connection table.
    pub(super) index: usize,
    /// The id the owner knows: serial and index.
    pub(super) id: u64,
}

/// A PDU kept until there is an owner.
#[derive(Clone)]
pub(super) struct HeldPdu {
    pub(super) bytes: Vec<u8>,
    pub(super) flags: u16,
    pub(super) invalidated: Option<u32>,
    /// Bytes that the owner has got already.
    pub(super) delivered: usize,
}

/// Bytes moved by RDMA, for status.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RdmaCounters {
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) read_bytes: u64,
    pub(super) write_bytes: u64,
}

/// One connection.
pub(super) struct Conn {
    pub(super) serial: u64,
    pub(super) fabric: usize,
    pub(super) qp: QpKey,
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    /// The address it counts under while it has no owner.
    pub(super) counted: IpAddr,
    /// The user whose server it came to; of one that we made, nobody's.
    pub(super) server: u32,
    pub(super) role: Role,
    pub(super) machine: proto::Connection<u32, u32>,
    pub(super) phase: Phase,
    pub(super) owner: Option<Owner>,
    pub(super) token: Option<[u8; 16]>,
    /// The user whose processes (and root's) may use the token.
    pub(super) token_uid: u32,
    pub(super) created: Instant,
    /// When the phase has to be over.
    pub(super) deadline: Option<Instant>,
    /// What the engine's timer queue holds for this connection.
    pub(super) timer: Option<Instant>,
    /// Has to be pumped.
    pub(super) touched: bool,
    pub(super) max_rdma_reads: u32,
    pub(super) rdma: RdmaCounters,
    pub(super) held: VecDeque<HeldPdu>,
    /// The NEGOTIATE that the owner got, as long as it did nothing with the connection: should the
    /// owner end now, another one gets it.
    pub(super) unanswered: Option<HeldPdu>,
    /// An owner has ended with the NEGOTIATE unanswered. That is not forgiven twice.
    pub(super) was_dropped: bool,
    /// NEGOTIATE request and response, when the engine has answered.
    pub(super) negotiate: Vec<HeldPdu>,
    /// The first reason for the end, as the owner's errno and as text.
    pub(super) end: Option<(i32, String)>,
    private: Private,
    recvs: Slab<Recv>,
    messages: Slab<Message>,
    ops: Slab<RdmaOp>,
    wrs: Slab<Wr>,
    rdma_in_fabric: usize,
    work: VecDeque<Work>,
    assembly: Vec<u8>,
    /// The owner has got the first fragments of a PDU and not its last.
    half_delivered: bool,
    disconnecting: bool,
    settling: Option<Settling>,
    receive_credit_max: u16,
}

impl Conn {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        serial: u64,
        fabric: usize,
        qp: QpKey,
        local: SocketAddr,
        peer: SocketAddr,
        server: u32,
        role: Role,
        params: &proto::Params,
        now: Instant,
    ) -> std::io::Result<Self> {
        let mut machine = proto::Connection::new(role, params, now);
        machine.set_receive_limit(PRIVATE_RECEIVES);
        Ok(Self {
            serial,
            fabric,
            qp,
            local,
            peer,
            counted: peer.ip(),
            server,
            role,
            machine,
            phase: Phase::Negotiating,
            owner: None,
            token: None,
            token_uid: 0,
            created: now,
            deadline: None,
            timer: None,
            touched: false,
            max_rdma_reads: 0,
            rdma: RdmaCounters::default(),
            held: VecDeque::new(),
            unanswered: None,
            was_dropped: false,
            negotiate: Vec::new(),
            end: None,
            private: Private::new(params.receive_buffer_size() as usize)?,
            recvs: Slab::new(),
            messages: Slab::new(),
            ops: Slab::new(),
            wrs: Slab::new(),
            rdma_in_fabric: 0,
            work: VecDeque::new(),
            assembly: Vec::new(),
            half_delivered: false,
            disconnecting: false,
            settling: None,
            receive_credit_max: params.receive_credit_max,
        })
    }

    /// Keeps the first reason for the end.
    pub(super) fn latch_end(&mut self, errno: i32, text: impl Into<String>) {
        if self.end.is_none() {
            self.end = Some((errno, text.into()));
        }
    }

    /// Operations of the owner whose completion it was not told yet.
    pub(super) fn has_operations(&self) -> bool {
        !self.messages.is_empty() || !self.ops.is_empty()
    }

    /// Whether the owner has got a part of a PDU whose rest is still to come.
    pub(super) fn half_delivered(&self) -> bool {
        self.half_delivered
    }

    /// The owner gets PDUs now; it may not during an export.
    fn delivers_to(&self) -> Option<Owner> {
        if self.phase == Phase::Attached {
            self.owner
        } else {
            None
        }
    }

    /// Lets the connection post as many receives as its share of the owner's slots allows.
    pub(super) fn set_share(&mut self, slots: usize) {
        // ReceiveCreditMax may be below what a connection without an owner gets.
        let limit = slots
            .max(PRIVATE_RECEIVES.into())
            .min(self.receive_credit_max.into());
        self.machine.set_receive_limit(limit as u16);
    }

    /// Back to the start: the connection has no owner, and its first PDU is looked at again.
    pub(super) fn route_again(&mut self, request: HeldPdu, deadline: Instant) {
        self.was_dropped = true;
        self.phase = Phase::Routing;
        self.deadline = Some(deadline);
        self.half_delivered = false;
        self.held.clear();
        self.held.push_back(request);
        self.machine.set_receive_limit(PRIVATE_RECEIVES);
    }

    /// The errno for operations that the end of the connection has cut off.
    fn end_errno(&self) -> i32 {
        match &self.end {
            Some((errno, _)) if *errno != 0 => *errno,
            _ => -libc::ECONNRESET,
        }
    }

    /// Most receives this connection may have posted.
    pub(super) fn receive_credit_max(&self) -> u16 {
        self.receive_credit_max
    }

    /// Carries out what the machine wants. True: a held PDU waits for routing.
    pub(super) fn pump(
        &mut self,
        key: usize,
        fabric: &mut dyn Fabric,
        clients: &mut Clients,
        now: Instant,
    ) -> bool {
        self.touched = false;
        loop {
            if self.machine.negotiated().is_some() && !self.disconnecting {
                self.start_work(fabric, clients, now);
            }
            let mut sent = false;
            while let Some(output) = self.machine.poll(now) {
                match output {
                    Output::PostReceives(count) => self.post_receives(key, fabric, clients, count),
                    Output::Send {
                        header,
                        payload,
                        last,
                        invalidate,
                    } => {
                        sent = true;
                        self.send(fabric, &header, payload, last, invalidate);
                    }
                    Output::Deliver {
                        buffer,
                        data_offset,
                        data_length,
                        remaining,
                        last,
                        invalidated,
                        ..
                    } => {
                        let piece = Piece {
                            data_offset,
                            data_length,
                            remaining,
                            last,
                            invalidated,
                        };
                        self.deliver(clients, buffer, &piece, now);
                    }
                    Output::Recycle { buffer } => self.recycle(clients, buffer),
                    Output::Negotiated(_) => self.phase = Phase::Routing,
                    Output::Disconnect { reason, drain } => {
                        self.latch_end(errno_of_proto(&reason), reason.to_string());
                        match drain {
                            false => self.disconnect(fabric, now, Duration::ZERO),
                            true if self.machine.negotiated().is_some() => self.settle(now),
                            true => self.disconnect(fabric, now, LINGER),
                        }
                    }
                }
            }
            // Sends make room in the machine's queue for work that waits.
            if sent && !self.work.is_empty() {
                continue;
            }
            if self.held.is_empty() {
                break;
            }
            self.deliver_held(key, clients);
            if !self.held.is_empty() {
                break;
            }
            // Receives were held back as long as there were PDUs to deliver first.
            self.machine.handle_receives_available(now);
        }
        !self.held.is_empty() && matches!(self.phase, Phase::Routing | Phase::AwaitingSession)
    }

    /// Ends the connection in the fabric, once.
    pub(super) fn disconnect(&mut self, fabric: &mut dyn Fabric, now: Instant, linger: Duration) {
        self.phase = Phase::Closing;
        if !std::mem::replace(&mut self.disconnecting, true) {
            fabric.disconnect(now, self.qp, linger);
        }
    }

    /// The queue pair is gone: completes everything that is left.
    pub(super) fn finish(
        &mut self,
        clients: &mut Clients,
        now: Instant,
        reason: &fabric::EndReason,
    ) {
        let (errno, text) = errno_of_fabric(reason);
        self.latch_end(errno, text);
        self.disconnecting = true;
        self.machine.handle_disconnected(now);
        while let Some(output) = self.machine.poll(now) {
            if let Output::Deliver { buffer, .. } | Output::Recycle { buffer } = output {
                self.recycle(clients, buffer);
            }
        }
        let buffers: Vec<u32> = self.recvs.iter().map(|(key, _)| key as u32).collect();
        for buffer in buffers {
            self.recycle(clients, buffer);
        }
        let error = self.end_errno();
        let messages: Vec<u32> = self.messages.iter().map(|(key, _)| key as u32).collect();
        for key in messages {
            self.message_done(clients, key, error);
        }
        let ops: Vec<u32> = self.ops.iter().map(|(key, _)| key as u32).collect();
        for key in ops {
            if let Some(op) = self.ops.get_mut(key as usize) {
                op.in_flight = 0;
                op.posted_all = true;
                if op.error == 0 {
                    op.error = error;
                }
            }
            self.finish_op_if_done(clients, key);
        }
        let text = self.end.as_ref().map_or("", |(_, text)| text);
        if matches!(self.end, Some((0, _))) || self.owner.is_some() {
            info!(
                "connection {} with {} ended: {text}",
                self.serial, self.peer
            );
        } else {
            warn!(
                "connection {} with {} ended: {text}",
                self.serial, self.peer
            );
        }
    }
}

/// What the owner is told about an end that the MS-SMBD machine found.
fn errno_of_proto(reason: &proto::EndReason) -> i32 {
    use proto::EndReason as E;
    match reason {
        E::LocalClose => 0,
        E::Disconnected => -libc::ECONNRESET,
        E::NegotiateTimeout | E::KeepaliveTimeout | E::KeepaliveUnsendable => -libc::ETIMEDOUT,
        E::VersionMismatch { .. } | E::Refused { .. } => -libc::ECONNREFUSED,
        E::NoReceives => -libc::ENOBUFS,
        _ => -libc::EPROTO,
    }
}

/// What the owner is told about an end that the fabric found.
fn errno_of_fabric(reason: &fabric::EndReason) -> (i32, String) {
    use fabric::EndReason as E;
    match reason {
        E::Local => (0, "closed locally".into()),
        E::PeerClosed => (-libc::ECONNRESET, "closed by the peer".into()),
        E::Refused(text) => (-libc::ECONNREFUSED, text.clone()),
        E::TimedOut(text) => (-libc::ETIMEDOUT, text.clone()),
        E::Protocol(text) => (-libc::EPROTO, text.clone()),
        E::Terminated(text) => (-libc::ECONNRESET, text.clone()),
        E::Transport(text) => (-libc::ECONNABORTED, text.clone()),
    }
}
