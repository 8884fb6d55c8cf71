//! The peers of all connections, and what each of them has in flight.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use smbdirect::fabric::Access;
use smbdirect::mem::{MemSlice, Region};
use smbdirect::peer::{Config, ConnectionId, Endpoint, PeerEvent};

use super::super::helper::{connect_options, patience};
use super::message::{negotiate, Kind, Message, RDMA_BYTES};
use crate::failure::Failure;
use crate::session::Session;

/// What a connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// PDUs of 256 bytes there and back, four in flight.
    Small,
    /// PDUs of 64 KiB there and back, in fragments.
    Large,
    /// The server places 64 KiB here.
    Read,
    /// The server fetches 64 KiB from here.
    Write,
    /// A PDU of 256 bytes each second.
    Quiet,
}

impl Class {
    pub(super) const ALL: [Self; 5] = [
        Self::Small,
        Self::Large,
        Self::Read,
        Self::Write,
        Self::Quiet,
    ];

    /// Of ten connections four are small, one is quiet, two read, two write, one is large.
    fn of(index: u32) -> Self {
        match index % 10 {
            0..=3 => Self::Small,
            4 => Self::Large,
            5 | 6 => Self::Read,
            7 | 8 => Self::Write,
            _ => Self::Quiet,
        }
    }

    fn window(self) -> usize {
        match self {
            Self::Small => 4,
            _ => 1,
        }
    }
}

/// What a connection has done.
#[derive(Debug, Clone)]
pub(super) struct Done {
    pub(super) class: Class,
    /// Answers in each half.
    pub(super) answers: [u64; 2],
    /// The longest that an answer took, in each half.
    pub(super) longest: [Duration; 2],
}

struct Link {
    id: ConnectionId,
    done: Done,
    sequence: u64,
    /// Requests without an answer, and when they were sent.
    in_flight: VecDeque<(Message, Instant)>,
    /// What the server may reach.
    memory: Option<(MemSlice, (u64, u32, u32))>,
}

/// All connections.
pub(super) struct Load {
    session: Session,
    links: Vec<Link>,
    by_id: HashMap<ConnectionId, usize>,
    half: usize,
    /// When the answers that are counted began.
    since: Instant,
    /// Seconds of each half.
    seconds: [f64; 2],
    next_quiet: Instant,
    scratch: Vec<u8>,
}

/// What all connections have done.
pub(super) struct Outcome {
    pub(super) links: Vec<Done>,
    pub(super) seconds: [f64; 2],
}

/// Connections that may be in their set-up at once; the engine takes 256 without an owner.
const CONNECTING: usize = 64;

impl Load {
    /// Connects all of them, one to each handle.
    pub(super) fn connect(server: SocketAddr, count: u32) -> Result<Self, Failure> {
        let config = Config {
            max_connections: count as usize + 1,
            ..Config::default()
        };
        let endpoint = Endpoint::new(config).map_err(Failure::of("starting"))?;
        let now = Instant::now();
        let mut load = Self {
            session: Session::new(endpoint),
            links: Vec::new(),
            by_id: HashMap::new(),
            half: 0,
            since: now,
            seconds: [0.0; 2],
            next_quiet: now,
            scratch: vec![0; RDMA_BYTES],
        };
        let mut welcome = 0;
        while welcome < count as usize {
            while load.links.len() < count as usize && load.links.len() - welcome < CONNECTING {
                load.add(server)?;
            }
            match load.next(patience())? {
                Some(PeerEvent::Connected { connection, .. }) => {
                    let index = load.index_of(connection)?;
                    load.send(index, &negotiate(index as u32))?;
                }
                Some(PeerEvent::Pdu { pdu, .. }) => {
                    if Message::parse(&pdu).is_none_or(|(it, _)| it.kind != Kind::Welcome) {
                        return Err(Failure::Failed("no welcome".into()));
                    }
                    welcome += 1;
                }
                Some(_) => {}
                None => return Err(Failure::Failed(format!("{welcome} of {count} connected"))),
            }
        }
        load.since = Instant::now();
        for index in 0..load.links.len() {
            load.name_memory(index)?;
            if load.links[index].done.class != Class::Quiet {
                load.ask(index)?;
            }
        }
        Ok(load)
    }

    fn add(&mut self, server: SocketAddr) -> Result<(), Failure> {
        let index = self.links.len();
        let id = self
            .session
            .endpoint
            .connect(&connect_options(server, false))
            .map_err(Failure::of("connecting"))?;
        self.by_id.insert(id, index);
        self.links.push(Link {
            id,
            done: Done {
                class: Class::of(index as u32),
                answers: [0; 2],
                longest: [Duration::ZERO; 2],
            },
            sequence: 0,
            in_flight: VecDeque::new(),
            memory: None,
        });
        Ok(())
    }

    fn name_memory(&mut self, index: usize) -> Result<(), Failure> {
        let link = &mut self.links[index];
        let access = Access {
            remote_read: link.done.class == Class::Write,
            remote_write: link.done.class == Class::Read,
        };
        if !access.remote_read && !access.remote_write {
            return Ok(());
        }
        let region = Region::anonymous(RDMA_BYTES).map_err(Failure::of("memory"))?;
        let memory = MemSlice::new(&region, 0, RDMA_BYTES).map_err(Failure::of("memory"))?;
        let endpoint = &mut self.session.endpoint;
        let named = endpoint
            .register(link.id, memory.clone(), access)
            .map_err(Failure::of("memory"))?;
        link.memory = Some((memory, (named.offset, named.token, named.length)));
        Ok(())
    }

    fn index_of(&self, id: ConnectionId) -> Result<usize, Failure> {
        let index = self.by_id.get(&id).copied();
        index.ok_or_else(|| Failure::Failed("an event of no connection".into()))
    }

    fn send(&mut self, index: usize, pdu: &[u8]) -> Result<(), Failure> {
        let endpoint = &mut self.session.endpoint;
        let sent = endpoint.send(self.links[index].id, &[pdu], 0, None);
        sent.map_err(Failure::of("sending"))
    }

    /// The next event; an end of a connection is a failure.
    fn next(&mut self, deadline: Instant) -> Result<Option<PeerEvent>, Failure> {
        match self.session.next(Some(deadline))? {
            Some(PeerEvent::Disconnected { reason, .. }) => {
                Err(Failure::Failed(format!("a connection was lost: {reason}")))
            }
            event => Ok(event),
        }
    }

    /// Fills the window of a connection with requests.
    fn ask(&mut self, index: usize) -> Result<(), Failure> {
        loop {
            let link = &mut self.links[index];
            if link.in_flight.len() >= link.done.class.window() {
                return Ok(());
            }
            let (kind, payload) = match link.done.class {
                Class::Small | Class::Quiet => (Kind::Echo, 256),
                Class::Large => (Kind::Echo, RDMA_BYTES),
                Class::Read => (Kind::Read, 0),
                Class::Write => (Kind::Write, 0),
            };
            let message = Message {
                kind,
                connection: index as u32,
                sequence: link.sequence,
                memory: link.memory.as_ref().map_or((0, 0, 0), |(_, named)| *named),
            };
            link.sequence += 1;
            link.in_flight.push_back((message, Instant::now()));
            if let (Kind::Write, Some((memory, _))) = (kind, &link.memory) {
                message.fill(false, &mut self.scratch);
                memory
                    .write(0, &self.scratch)
                    .map_err(Failure::of("memory"))?;
            }
            let content = &mut self.scratch[..payload];
            message.fill(false, content);
            let sent = self
                .session
                .endpoint
                .send(link.id, &[&message.emit(), content], 0, None);
            sent.map_err(Failure::of("sending"))?;
        }
    }

    /// Takes one answer.
    fn answer(&mut self, index: usize, pdu: &[u8]) -> Result<(), Failure> {
        let wrong = |what: &str| Err(Failure::Failed(format!("connection {index}: {what}")));
        let link = &mut self.links[index];
        let Some((message, payload)) = Message::parse(pdu) else {
            return wrong("an answer with a changed header");
        };
        let Some((asked, since)) = link.in_flight.pop_front() else {
            return wrong("an answer that nobody asked for");
        };
        if asked != message {
            return wrong("an answer to another request: one was lost");
        }
        let is_good = match (asked.kind, &link.memory) {
            (Kind::Read, Some((memory, _))) => {
                memory
                    .read(0, &mut self.scratch)
                    .map_err(Failure::of("memory"))?;
                message.matches(true, &self.scratch)
            }
            _ => message.matches(true, payload),
        };
        if !is_good {
            return wrong("changed content");
        }
        let longest = &mut link.done.longest[self.half];
        *longest = (*longest).max(since.elapsed());
        link.done.answers[self.half] += 1;
        Ok(())
    }

    fn take(&mut self, event: PeerEvent, goes_on: bool) -> Result<(), Failure> {
        let PeerEvent::Pdu {
            connection, pdu, ..
        } = event
        else {
            return Ok(());
        };
        let index = self.index_of(connection)?;
        self.answer(index, &pdu)?;
        self.session.endpoint.recycle(pdu);
        if goes_on && self.links[index].done.class != Class::Quiet {
            self.ask(index)?;
        }
        Ok(())
    }

    /// Works until then.
    pub(super) fn run(&mut self, until: Instant) -> Result<(), Failure> {
        loop {
            let now = Instant::now();
            if now >= until {
                return Ok(());
            }
            if now >= self.next_quiet {
                self.next_quiet = now + Duration::from_secs(1);
                for index in 0..self.links.len() {
                    if self.links[index].done.class == Class::Quiet {
                        self.ask(index)?;
                    }
                }
            }
            if let Some(event) = self.next(until.min(self.next_quiet))? {
                self.take(event, true)?;
            }
        }
    }

    /// What comes from now on counts for the second half.
    pub(super) fn next_half(&mut self) {
        self.end_half();
        self.half = 1;
    }

    fn end_half(&mut self) {
        self.seconds[self.half] = self.since.elapsed().as_secs_f64();
        self.since = Instant::now();
    }

    /// Waits for all answers that are still to come.
    pub(super) fn drain(&mut self) -> Result<(), Failure> {
        self.end_half();
        while self.links.iter().any(|link| !link.in_flight.is_empty()) {
            match self.next(patience())? {
                Some(event) => self.take(event, false)?,
                None => return Err(Failure::Failed("answers do not come: a stall".into())),
            }
        }
        Ok(())
    }

    /// Ends all connections in good order.
    pub(super) fn finish(mut self) -> Result<Outcome, Failure> {
        for link in &self.links {
            self.session.endpoint.disconnect(link.id);
        }
        let mut left = self.links.len();
        while left > 0 {
            match self.session.next(Some(patience()))? {
                Some(PeerEvent::Disconnected { .. }) => left -= 1,
                Some(_) => {}
                None => return Err(Failure::Failed(format!("{left} connections do not end"))),
            }
        }
        Ok(Outcome {
            links: self.links.into_iter().map(|link| link.done).collect(),
            seconds: self.seconds,
        })
    }
}
