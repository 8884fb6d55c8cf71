//! Set-up of a connection: TCP connect, MPA Request and Reply, in both roles.

use std::time::Instant;

use rustix::io::Errno;
use rustix::net::SendFlags;

use super::mpa::{self, Agreed, Frame, Kind, ReplyError};
use super::qp::{Phase, Qp};
use super::shared::Shared;
use super::socket;
use super::terminate::Code;
use super::End;
use crate::fabric::{
    AcceptOptions, ConnectOptions, EndReason, FabricError, FabricEvent, ListenerKey, QpKey,
};
use crate::sys::{Interest, Ready};

/// The longest frame, and one byte to see that there is more.
const INPUT_MAX: usize = mpa::HEADER_LEN + mpa::MAX_PRIVATE + 1;

/// What a connection needs until it is open.
pub(super) struct Setup {
    input: Vec<u8>,
    /// A frame that is to be sent, and how much of it was.
    output: Vec<u8>,
    sent: usize,
    role: Role,
}

enum Role {
    Active {
        options: ConnectOptions,
        revision: u8,
        request: Option<Frame>,
    },
    Passive {
        listener: ListenerKey,
        crc: bool,
        request: Option<Frame>,
        agreed: Option<Agreed>,
    },
}

impl Setup {
    pub(super) fn active(options: ConnectOptions) -> Self {
        let revision = options.mpa_revision;
        Self::new(Role::Active {
            options,
            revision,
            request: None,
        })
    }

    pub(super) fn passive(listener: ListenerKey, crc: bool) -> Self {
        Self::new(Role::Passive {
            listener,
            crc,
            request: None,
            agreed: None,
        })
    }

    fn new(role: Role) -> Self {
        Self {
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            role,
        }
    }

    /// The listener that a passive connection came to.
    pub(super) fn listener(&self) -> Option<ListenerKey> {
        match &self.role {
            Role::Passive { listener, .. } => Some(*listener),
            Role::Active { .. } => None,
        }
    }
}

/// What reading the set-up stream gave.
enum Input {
    /// Nothing more for now.
    Some,
    Closed,
}

impl Qp {
    /// The socket is ready, the connection not open yet.
    pub(super) fn handle_setup(
        &mut self,
        shared: &mut Shared,
        ready: Ready,
        events: &mut Vec<FabricEvent>,
    ) -> Result<(), End> {
        match self.phase {
            Phase::Connecting if ready.writable => {
                if let Err(error) = socket::connect_result(&self.socket) {
                    return Err(socket::connect_failed(self.peer, &error));
                }
                self.send_request(shared)
            }
            Phase::AwaitReply => {
                if ready.writable {
                    self.send_output(shared)?;
                }
                if ready.readable {
                    self.await_reply(shared, events)?;
                }
                Ok(())
            }
            Phase::AwaitRequest if ready.readable => self.await_request(events),
            Phase::AwaitAccept | Phase::SendReply => {
                if ready.readable {
                    self.expect_silence()?;
                }
                if self.phase == Phase::SendReply {
                    self.finish_reply(shared, events)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn send_request(&mut self, shared: &mut Shared) -> Result<(), End> {
        if let Ok(local) = socket::local_address(&self.socket) {
            self.local = local;
        }
        let rtr = shared.config.rtr;
        if let Some(Setup {
            role:
                Role::Active {
                    options,
                    revision,
                    request,
                },
            output,
            ..
        }) = self.setup.as_deref_mut()
        {
            let depths = (options.ird, options.ord);
            let private_data = &options.private_data;
            let frame = mpa::request(*revision, options.crc, rtr, depths, private_data);
            *output = frame.emit(Kind::Request);
            *request = Some(frame);
        }
        self.phase = Phase::AwaitReply;
        self.send_output(shared)
    }

    /// Sends the frame of the set-up, or what of it is left.
    fn send_output(&mut self, shared: &mut Shared) -> Result<(), End> {
        let Some(setup) = self.setup.as_deref_mut() else {
            return Ok(());
        };
        while let Some(rest) = setup.output.get(setup.sent..).filter(|r| !r.is_empty()) {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(&self.socket, rest, flags) {
                Ok(n) => setup.sent += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return self.set_interest(shared, Interest::BOTH),
                Err(error) => return Err(End::transport("send", &error.into())),
            }
        }
        self.set_interest(shared, Interest::READ)
    }

    /// Reads into the set-up buffer, no byte more than a frame may have.
    fn read_input(&mut self) -> Result<Input, End> {
        let Some(setup) = self.setup.as_deref_mut() else {
            return Ok(Input::Some);
        };
        let mut room = [0; INPUT_MAX];
        let want = INPUT_MAX.saturating_sub(setup.input.len());
        match rustix::io::read(&self.socket, room.get_mut(..want).unwrap_or_default()) {
            Ok(0) => Ok(Input::Closed),
            Ok(n) => {
                setup
                    .input
                    .extend_from_slice(room.get(..n).unwrap_or_default());
                Ok(Input::Some)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(Input::Some),
            Err(Errno::CONNRESET) => Ok(Input::Closed),
            Err(error) => Err(End::transport("receive", &error.into())),
        }
    }

    fn await_request(&mut self, events: &mut Vec<FabricEvent>) -> Result<(), End> {
        if let Input::Closed = self.read_input()? {
            return Err(End::plain(EndReason::PeerClosed));
        }
        let Some(Setup {
            input,
            output,
            role: Role::Passive {
                listener, request, ..
            },
            ..
        }) = self.setup.as_deref_mut()
        else {
            return Ok(());
        };
        let Some(frame) = Frame::parse(Kind::Request, input).map_err(End::protocol)? else {
            return Ok(());
        };
        *input = Vec::new();
        if !(1..=2).contains(&frame.revision) {
            return Err(End::protocol(format!(
                "MPA Request of revision {}; we speak 1 and 2",
                frame.revision
            )));
        }
        if frame.markers {
            // RFC 5044 section 7.1.1: a responder that cannot do markers rejects.
            *output = mpa::reject(&frame, &[]).emit(Kind::Reply);
            return Err(End::protocol("the peer wants MPA markers".into()));
        }
        let depth = |pick: fn(&mpa::Enhanced) -> Option<u16>| {
            frame.enhanced.as_ref().and_then(pick).map(u32::from)
        };
        events.push(FabricEvent::ConnectRequest {
            qp: QpKey(self.key),
            listener: *listener,
            local: self.local,
            peer: self.peer,
            private_data: frame.private_data.clone(),
            peer_ird: depth(|enhanced| enhanced.ird),
            peer_ord: depth(|enhanced| enhanced.ord),
        });
        *request = Some(frame);
        self.told = true;
        self.phase = Phase::AwaitAccept;
        Ok(())
    }

    /// Between Request and Reply the initiator says nothing (RFC 5044 section 7.1.2).
    fn expect_silence(&mut self) -> Result<(), End> {
        let mut byte = [0; 1];
        match rustix::io::read(&self.socket, &mut byte[..]) {
            Ok(0) => Err(End::plain(EndReason::PeerClosed)),
            Ok(_) => Err(End::protocol("bytes behind the MPA Request".into())),
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(End::transport("receive", &error.into())),
        }
    }

    /// The caller takes the connection.
    pub(super) fn accept(
        &mut self,
        shared: &mut Shared,
        now: Instant,
        options: &AcceptOptions,
    ) -> Result<(), FabricError> {
        let wrong = FabricError::WrongState("accept needs a connect request that is still open");
        if self.phase != Phase::AwaitAccept || self.ended.is_some() {
            return Err(wrong);
        }
        let Some(Setup {
            output,
            role:
                Role::Passive {
                    crc,
                    request: Some(request),
                    agreed,
                    ..
                },
            ..
        }) = self.setup.as_deref_mut()
        else {
            return Err(wrong);
        };
        let depths = check_depths(shared, options.ird, options.ord)?;
        mpa::check_private_data(&options.private_data, request.revision)
            .map_err(FabricError::Invalid)?;
        let (reply, settled) = mpa::accept(request, *crc, depths, &options.private_data);
        *output = reply.emit(Kind::Reply);
        *agreed = Some(settled);
        self.phase = Phase::SendReply;
        let until = now + shared.config.accept_timeout;
        shared.timers.set(self.key, &mut self.deadline, Some(until));
        Ok(())
    }

    /// Sends the Reply; when it has left, the connection is open.
    pub(super) fn finish_reply(
        &mut self,
        shared: &mut Shared,
        events: &mut Vec<FabricEvent>,
    ) -> Result<(), End> {
        self.send_output(shared)?;
        let Some(setup) = self.setup.as_deref() else {
            return Ok(());
        };
        let Role::Passive {
            agreed: Some(agreed),
            ..
        } = setup.role
        else {
            return Ok(());
        };
        if setup.sent < setup.output.len() {
            return Ok(());
        }
        self.open(shared, agreed, false);
        self.established(Vec::new(), events);
        self.request_reads();
        Ok(())
    }

    fn established(&self, private_data: Vec<u8>, events: &mut Vec<FabricEvent>) {
        events.push(FabricEvent::Established {
            qp: QpKey(self.key),
            local: self.local,
            peer: self.peer,
            ord: self.ord,
            private_data,
        });
    }

    /// The caller refuses the connect request: the Reply is sent with the end.
    pub(super) fn reject(&mut self, private_data: &[u8]) {
        if let Some(Setup {
            output,
            role:
                Role::Passive {
                    request: Some(request),
                    ..
                },
            ..
        }) = self.setup.as_deref_mut()
        {
            *output = mpa::reject(request, private_data).emit(Kind::Reply);
        }
    }

    /// A frame of the set-up that has not left, to be sent after the end.
    pub(super) fn unsent_setup(&self) -> Option<Vec<u8>> {
        let setup = self.setup.as_deref()?;
        let rest = setup.output.get(setup.sent..)?;
        let refused = matches!(self.phase, Phase::AwaitRequest | Phase::AwaitAccept);
        (refused && !rest.is_empty()).then(|| rest.to_vec())
    }

    fn await_reply(
        &mut self,
        shared: &mut Shared,
        events: &mut Vec<FabricEvent>,
    ) -> Result<(), End> {
        if let Input::Closed = self.read_input()? {
            return self.try_revision_1(shared, "closed the connection without a Reply");
        }
        let Some(Setup {
            input,
            role:
                Role::Active {
                    options,
                    request: Some(request),
                    ..
                },
            ..
        }) = self.setup.as_deref_mut()
        else {
            return Ok(());
        };
        let Some(reply) = Frame::parse(Kind::Reply, input).map_err(End::protocol)? else {
            return Ok(());
        };
        let depths = (options.ird, options.ord);
        let result = mpa::conclude(request, &reply, depths, shared.config.max_ird);
        let terminate = match result {
            Ok(agreed) => {
                self.open(shared, agreed, true);
                if let Some(kind) = agreed.rtr {
                    self.push_ready_to_receive(shared, kind);
                }
                self.request_reads();
                self.established(reply.private_data, events);
                return self.pump(shared, events);
            }
            Err(ReplyError::Rejected(data)) => {
                let text = format!("the peer rejected the connect, private data {data:02x?}");
                return Err(End::plain(EndReason::Refused(text)));
            }
            Err(ReplyError::Revision(revision)) => {
                let what = format!("answered with revision {revision}");
                return self.try_revision_1(shared, &what);
            }
            Err(ReplyError::Bad(text)) => return Err(End::protocol(text)),
            Err(ReplyError::InsufficientIrd(wanted)) => (
                Code::INSUFFICIENT_IRD,
                format!("the peer wants {wanted} RDMA READs at once, more than we serve"),
            ),
            Err(ReplyError::NoMatchingRtr) => (
                Code::NO_MATCHING_RTR,
                "the peer chose no ready-to-receive message that we offered".into(),
            ),
        };
        // Our Terminate is a frame, so CRC counts.
        self.tx.crc = reply.crc || request_crc(self);
        self.tx.open = true;
        Err(End::violation(terminate.0, terminate.1))
    }

    /// RFC 6581 section 10: a peer that knows only revision 1 drops a revision 2 Request. One
    /// more try, on a new TCP connection, within the same timeout.
    fn try_revision_1(&mut self, shared: &mut Shared, what: &str) -> Result<(), End> {
        let Some(Setup {
            input,
            output,
            sent,
            role: Role::Active {
                revision, request, ..
            },
        }) = self.setup.as_deref_mut()
        else {
            return Err(End::plain(EndReason::PeerClosed));
        };
        if *revision < 2
            || !shared.config.revision_fallback
            || !input.is_empty() && request.is_none()
        {
            return Err(End::plain(EndReason::Refused(format!(
                "the peer {what} to an MPA Request of revision {revision}"
            ))));
        }
        log::warn!(
            "{}: the peer {what}; once more with MPA revision 1",
            self.peer
        );
        *revision = 1;
        *request = None;
        input.clear();
        output.clear();
        *sent = 0;
        let socket = socket::connect(&shared.config, self.peer)
            .map_err(|error| socket::connect_failed(self.peer, &error))?;
        let _ = shared.registry.remove(&self.socket);
        shared
            .registry
            .add(&socket, self.key, Interest::WRITE)
            .map_err(|error| End::transport("epoll_ctl", &error))?;
        self.replace_socket(socket, Interest::WRITE);
        self.phase = Phase::Connecting;
        Ok(())
    }
}

fn request_crc(qp: &Qp) -> bool {
    match qp.setup.as_deref().map(|setup| &setup.role) {
        Some(Role::Active { options, .. }) => options.crc,
        _ => false,
    }
}

/// Depths that a caller asks for, within the limits.
pub(super) fn check_depths(shared: &Shared, ird: u32, ord: u32) -> Result<(u32, u32), FabricError> {
    for (name, value, most) in [
        ("ird", ird, shared.config.max_ird),
        ("ord", ord, shared.config.max_ord),
    ] {
        if value > most {
            return Err(FabricError::Invalid(format!(
                "{name} is {value}; this fabric is set to at most {most}"
            )));
        }
    }
    Ok((ird, ord))
}
