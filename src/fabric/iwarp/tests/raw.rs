//! A peer that is nothing but a TCP stream: it says what a test wants it to say.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use super::*;

/// Readiness under this tag wakes the world up and is looked at by nobody.
pub(super) const TAG: u8 = 9;

pub(super) struct Raw {
    stream: TcpStream,
    input: Vec<u8>,
    closed: bool,
}

impl Raw {
    /// Connects to a listener of a fabric.
    pub(super) fn connect(world: &World, address: SocketAddr) -> Self {
        Self::of(world, TcpStream::connect(address).unwrap())
    }

    pub(super) fn of(world: &World, stream: TcpStream) -> Self {
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        let registry = world.poller.registry(TAG);
        registry.add(&stream, 0, Interest::READ).unwrap();
        Self {
            stream,
            input: Vec::new(),
            closed: false,
        }
    }

    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Takes what is here.
    pub(super) fn take_input(&mut self, world: &World) {
        let mut room = [0; 65_536];
        while !self.closed {
            match self.stream.read(&mut room) {
                Ok(0) => self.closed = true,
                Ok(n) => self.input.extend_from_slice(&room[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.closed = true,
            }
        }
        // A closed stream stays ready: it would keep the world awake for ever.
        let _ = world.poller.registry(TAG).remove(&self.stream);
    }

    /// The next `len` bytes of the fabric.
    pub(super) fn read(&mut self, world: &mut World, len: usize) -> Vec<u8> {
        world.run_until(&format!("{len} bytes to the raw peer"), |world| {
            self.take_input(world);
            assert!(
                !self.closed || self.input.len() >= len,
                "closed after {:02x?}",
                self.input
            );
            self.input.len() >= len
        });
        self.input.drain(..len).collect()
    }

    /// A whole frame of the fabric; its ULPDU.
    pub(super) fn read_frame(&mut self, world: &mut World) -> Vec<u8> {
        let head = self.read(world, 2);
        let len = usize::from(u16::from_be_bytes([head[0], head[1]]));
        let rest = self.read(world, (len + 2).next_multiple_of(4) - 2 + 4);
        rest[..len].to_vec()
    }

    /// What comes until the fabric closes.
    pub(super) fn read_to_end(&mut self, world: &mut World) -> Vec<u8> {
        world.run_until("the end of the stream to the raw peer", |world| {
            self.take_input(world);
            self.closed
        });
        std::mem::take(&mut self.input)
    }

    /// Says that no more comes from this side.
    pub(super) fn finish(&self) {
        self.stream.shutdown(std::net::Shutdown::Write).unwrap();
    }
}

/// A listener for the fabric to connect to.
pub(super) struct RawListener(TcpListener);

impl RawListener {
    pub(super) fn new() -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (Self(listener), address)
    }

    /// Takes the connection that a fabric has started.
    pub(super) fn accept(&self, world: &World) -> Raw {
        Raw::of(world, self.0.accept().unwrap().0)
    }
}

/// A Request of revision 1 without private data.
pub(super) const REQUEST_1: &[u8] = b"MPA ID Req Frame\x00\x01\x00\x00";

/// A raw initiator at B, and B's queue pair. `ird` as given.
pub(super) fn raw_initiator(world: &mut World, request: &[u8], ird: u32) -> (Raw, QpKey) {
    let (_, address) = world.listen(B, "127.0.0.1:0", false);
    let mut raw = Raw::connect(world, address);
    raw.send(request);
    let qp = world.take_request(B);
    let now = world.now;
    world.fabric(B).accept(now, qp, &depths(ird, 32)).unwrap();
    let enhanced = request[16] & 0x10 != 0;
    let reply = raw.read(world, if enhanced { 24 } else { 20 });
    assert!(reply.starts_with(b"MPA ID Rep Frame"));
    world.take_established(B);
    (raw, qp)
}

/// A frame around a ULPDU, built without the code under test.
pub(super) fn frame(ulpdu: &[u8], crc: bool) -> Vec<u8> {
    let mut bytes = (ulpdu.len() as u16).to_be_bytes().to_vec();
    bytes.extend_from_slice(ulpdu);
    while bytes.len() % 4 != 0 {
        bytes.push(0);
    }
    let sum = if crc {
        crate::fabric::iwarp::crc::append(0, &bytes)
    } else {
        0
    };
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

/// A tagged ULPDU.
pub(super) fn tagged(ctrl: [u8; 2], token: u32, offset: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = ctrl.to_vec();
    bytes.extend_from_slice(&token.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// An untagged ULPDU: `words` are RsvdULP, QN, MSN, MO.
pub(super) fn untagged(ctrl: [u8; 2], words: [u32; 4], payload: &[u8]) -> Vec<u8> {
    let mut bytes = ctrl.to_vec();
    for word in words {
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// A Read Request ULPDU.
pub(super) fn read_request(msn: u32, token: u32, offset: u64, len: u32) -> Vec<u8> {
    let mut body = [0, 0, 0x22, 0x22, 0, 0, 0, 0, 0, 0, 0x33, 0x33].to_vec();
    body.extend_from_slice(&len.to_be_bytes());
    body.extend_from_slice(&token.to_be_bytes());
    body.extend_from_slice(&offset.to_be_bytes());
    untagged([0x41, 0x41], [0, 1, msn, 0], &body)
}

/// A whole Send in one segment.
pub(super) fn send(msn: u32, payload: &[u8]) -> Vec<u8> {
    untagged([0x41, 0x43], [0, 0, msn, 0], payload)
}
