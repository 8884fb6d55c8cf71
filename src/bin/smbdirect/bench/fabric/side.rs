//! This side of the operations: on a raw connection of a fabric, and on TCP.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use smbdirect::fabric::{FabricKind, Status};
use smbdirect::mem::MemSlice;
use smbdirect::peer::{Config, Endpoint, PeerEvent};
use smbdirect::wire::BufferDescriptor;

use super::server::{Answer, Order, Pieces};
use super::{What, DEPTH, MEMORY, WINDOW};
use crate::bench::helper::{connect_options, patience};
use crate::failure::Failure;
use crate::session::{Link, Session};

/// A connection to the helper.
pub(super) trait Way {
    fn name(&self) -> String;

    /// Does so many operations. Of those that come one by one each delay is appended, in
    /// microseconds.
    fn run(&mut self, what: What, count: u64, delays: &mut Vec<f64>) -> Result<(), Failure>;
}

/// Sends of a stream between two that are answered.
const TELL_EVERY: u64 = WINDOW / 4;

/// Appends the time that each of `count` operations takes, its `share` of it.
fn each(
    count: u64,
    share: f64,
    delays: &mut Vec<f64>,
    mut one: impl FnMut() -> Result<(), Failure>,
) -> Result<(), Failure> {
    for _ in 0..count {
        let start = Instant::now();
        one()?;
        delays.push(start.elapsed().as_secs_f64() * 1e6 * share);
    }
    Ok(())
}

/// A connection of one fabric.
pub(super) struct Rdma {
    name: String,
    session: Session,
    link: Link,
    /// The helper's memory.
    remote: BufferDescriptor,
    memory: MemSlice,
    message: Vec<u8>,
}

impl Rdma {
    pub(super) fn connect(kind: FabricKind, peer: SocketAddr) -> Result<Self, Failure> {
        let config = Config {
            kind,
            raw: true,
            ..Config::default()
        };
        let endpoint = Endpoint::new(config).map_err(Failure::of("starting"))?;
        let name = match kind {
            FabricKind::SoftIwarp => "software iWARP".to_owned(),
            FabricKind::Verbs => {
                let address = endpoint.local_address(peer.ip());
                let address = address.map_err(Failure::of(peer))?;
                format!("verbs, {}", address.device.unwrap_or_default())
            }
        };
        let mut session = Session::new(endpoint);
        let link = session.connect(&connect_options(peer, false))?;
        let memory = MemSlice::from_bytes(&vec![0x5a; MEMORY])
            .map_err(Failure::of("memory for the fabric test"))?;
        let mut this = Self {
            name,
            session,
            link,
            remote: BufferDescriptor {
                offset: 0,
                token: 0,
                length: 0,
            },
            memory,
            message: Vec::new(),
        };
        this.send(1, Answer::Memory)?;
        let answer = this.answer()?;
        this.remote =
            BufferDescriptor::parse(&answer).map_err(Failure::of("the helper's memory"))?;
        Ok(this)
    }

    /// Queues a message; it leaves at the next wait.
    fn send(&mut self, bytes: usize, answer: Answer) -> Result<(), Failure> {
        self.message.clear();
        self.message.resize(bytes.max(1), answer as u8);
        let endpoint = &mut self.session.endpoint;
        endpoint
            .send_raw(self.link.id, &self.message, 0, None)
            .map_err(Failure::of("sending"))
    }

    /// The next message or end of an RDMA operation; of a message its bytes are appended.
    fn wait(&mut self, mut message: Option<&mut Vec<u8>>) -> Result<Seen, Failure> {
        loop {
            match self.session.next(Some(patience()))? {
                Some(PeerEvent::Raw { message: came, .. }) => {
                    if let Some(message) = &mut message {
                        message.extend_from_slice(&came);
                    }
                    self.session.endpoint.recycle(came);
                    return Ok(Seen::Message);
                }
                Some(PeerEvent::Rdma { status, .. }) => {
                    if status != Status::Success {
                        return Err(Failure::Failed(format!("{}: {status:?}", self.name)));
                    }
                    return Ok(Seen::Rdma);
                }
                Some(PeerEvent::Disconnected { reason, .. }) => {
                    let name = &self.name;
                    return Err(Failure::Failed(format!(
                        "{name}: connection lost: {reason}"
                    )));
                }
                Some(_) => {}
                None => return Err(Failure::Failed(format!("{}: no answer", self.name))),
            }
        }
    }

    fn answer(&mut self) -> Result<Vec<u8>, Failure> {
        let mut message = Vec::new();
        while self.wait(Some(&mut message))? != Seen::Message {}
        Ok(message)
    }

    fn await_answer(&mut self) -> Result<(), Failure> {
        while self.wait(None)? != Seen::Message {}
        Ok(())
    }

    fn post(&mut self, is_read: bool, at: usize, bytes: usize) -> Result<(), Failure> {
        let piece = self.memory.slice(at, bytes);
        let piece = piece.map_err(Failure::of("memory for the fabric test"))?;
        let (endpoint, id, remote) = (&mut self.session.endpoint, self.link.id, [self.remote]);
        let posted = match is_read {
            true => endpoint.rdma_read(id, &piece, &remote, at as u64, 0),
            false => endpoint.rdma_write(id, &piece, &remote, at as u64, 0),
        };
        posted.map_err(Failure::of("posting RDMA"))
    }

    /// `count` RDMA operations, until the last byte is known to be there.
    fn bulk(&mut self, is_read: bool, bytes: usize, count: u64) -> Result<(), Failure> {
        let mut pieces = Pieces::new(bytes);
        let (mut posted, mut done) = (0, 0);
        while done < count {
            while posted < count && posted - done < DEPTH {
                self.post(is_read, pieces.next(), bytes)?;
                posted += 1;
            }
            if self.wait(None)? == Seen::Rdma {
                done += 1;
            }
        }
        if !is_read {
            // A WRITE is done when its memory is free again.
            self.send(1, Answer::Byte)?;
            self.await_answer()?;
        }
        Ok(())
    }

    /// `count` messages one way; now and then one asks for an answer.
    fn stream(&mut self, bytes: usize, count: u64) -> Result<(), Failure> {
        let (mut sent, mut taken) = (0, 0);
        while taken < count {
            while sent < count && sent - taken < WINDOW {
                sent += 1;
                let tells = sent % TELL_EVERY == 0 || sent == count;
                let answer = if tells { Answer::Byte } else { Answer::None };
                self.send(bytes, answer)?;
            }
            self.await_answer()?;
            taken = count.min(taken + TELL_EVERY);
        }
        Ok(())
    }

    fn messages(&mut self, bytes: usize, count: u64) -> Result<(), Failure> {
        let (mut sent, mut back) = (0, 0);
        while back < count {
            while sent < count && sent - back < WINDOW {
                self.send(bytes, Answer::Same)?;
                sent += 1;
            }
            self.await_answer()?;
            back += 1;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Message,
    Rdma,
}

impl Way for Rdma {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn run(&mut self, what: What, count: u64, delays: &mut Vec<f64>) -> Result<(), Failure> {
        match what {
            What::Send(bytes) => each(count, 0.5, delays, || {
                self.send(bytes, Answer::Same)?;
                self.await_answer()
            }),
            What::Write(bytes) => each(count, 1.0, delays, || {
                self.post(false, 0, bytes)?;
                self.send(64, Answer::Same)?;
                self.await_answer()
            }),
            What::Read(bytes) => each(count, 1.0, delays, || {
                self.post(true, 0, bytes)?;
                while self.wait(None)? != Seen::Rdma {}
                Ok(())
            }),
            What::Sends(bytes) => self.stream(bytes, count),
            What::Writes(bytes) => self.bulk(false, bytes, count),
            What::Reads(bytes) => self.bulk(true, bytes, count),
            What::Messages(bytes) => self.messages(bytes, count),
        }
    }
}

/// The same over TCP, blocking: what one thread with one connection does best.
pub(super) struct Tcp {
    stream: TcpStream,
    memory: Vec<u8>,
}

impl Tcp {
    pub(super) fn connect(peer: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect(peer).map_err(Failure::of("TCP"))?;
        stream.set_nodelay(true).map_err(Failure::of("TCP"))?;
        Ok(Self {
            stream,
            memory: vec![0x5a; MEMORY],
        })
    }

    fn order(&mut self, order: Order, bytes: usize, count: u64) -> Result<(), Failure> {
        let order = order.emit(bytes, count);
        self.stream.write_all(&order).map_err(Failure::of("TCP"))
    }

    fn write(&mut self, at: usize, bytes: usize) -> Result<(), Failure> {
        let piece = &self.memory[at..at + bytes];
        self.stream.write_all(piece).map_err(Failure::of("TCP"))
    }

    fn read(&mut self, at: usize, bytes: usize) -> Result<(), Failure> {
        let piece = &mut self.memory[at..at + bytes];
        self.stream.read_exact(piece).map_err(Failure::of("TCP"))
    }

    fn sink(&mut self, bytes: usize, count: u64) -> Result<(), Failure> {
        self.order(Order::Sink, bytes, count)?;
        let mut pieces = Pieces::new(bytes);
        for _ in 0..count {
            self.write(pieces.next(), bytes)?;
        }
        self.read(0, 1)
    }

    fn fetch(&mut self, bytes: usize, count: u64) -> Result<(), Failure> {
        self.order(Order::Source, bytes, count)?;
        let mut pieces = Pieces::new(bytes);
        for _ in 0..count {
            self.read(pieces.next(), bytes)?;
        }
        Ok(())
    }

    /// What has come back is answered in one write.
    fn messages(&mut self, bytes: usize, count: u64) -> Result<(), Failure> {
        self.order(Order::Echo, bytes, count)?;
        let (mut sent, mut back) = (0, 0);
        while back < count * bytes as u64 {
            let whole = back / bytes as u64;
            let more = (WINDOW - (sent - whole)).min(count - sent);
            self.write(0, more as usize * bytes)?;
            sent += more;
            let room = &mut self.memory[..WINDOW as usize * bytes];
            let got = self.stream.read(room).map_err(Failure::of("TCP"))?;
            if got == 0 {
                return Err(Failure::Failed("the TCP echo ended".into()));
            }
            back += got as u64;
        }
        Ok(())
    }
}

impl Way for Tcp {
    fn name(&self) -> String {
        "TCP".to_owned()
    }

    fn run(&mut self, what: What, count: u64, delays: &mut Vec<f64>) -> Result<(), Failure> {
        match what {
            What::Send(bytes) => {
                self.order(Order::Echo, bytes, count)?;
                each(count, 0.5, delays, || {
                    self.write(0, bytes)?;
                    self.read(0, bytes)
                })
            }
            What::Write(bytes) => {
                self.order(Order::Answer, bytes + 64, count)?;
                each(count, 1.0, delays, || {
                    self.write(0, bytes + 64)?;
                    self.read(0, 1)
                })
            }
            What::Read(bytes) => each(count, 1.0, delays, || self.fetch(bytes, 1)),
            What::Sends(bytes) | What::Writes(bytes) => self.sink(bytes, count),
            What::Reads(bytes) => self.fetch(bytes, count),
            What::Messages(bytes) => self.messages(bytes, count),
        }
    }
}
