//! The byte stream of MPA, DDP and RDMAP into a software iWARP endpoint: both roles, CRC on and off,
//! any split, with work of the endpoint's own in between.

use std::collections::{HashMap, HashSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crc_fast::{checksum, CrcAlgorithm};
use smbdirect::fabric::iwarp::{IwarpConfig, IwarpFabric};
use smbdirect::fabric::{
    AcceptOptions, Access, ConnectOptions, Fabric, FabricEvent, ListenOptions, QpKey, RemoteKey,
    SendRequest, Status, WrId,
};
use smbdirect::mem::{MemSlice, Region};
use smbdirect::sys::Poller;

use super::input::{pattern, Input};

const PATIENCE: Duration = Duration::from_secs(20);

/// Parts of the endpoint's memory.
const RECEIVES: usize = 0;
const SINKS: usize = 16 << 10;
const WINDOWS: usize = 32 << 10;
const SOURCE: usize = 48 << 10;
const END: usize = 64 << 10;
/// From one writable window to the next, and the bytes of it that are registered.
const STRIDE: usize = 512;
const WINDOW: usize = 400;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let active = input.flag();
    let mut world = World::new(&mut input, active);
    world.set_up(&mut input, active);
    let mut left = 80;
    while !input.is_empty() && left > 0 {
        left -= 1;
        world.act(&mut input);
        world.settle();
        world.check_memory();
    }
    world.finish();
}

/// A READ that the endpoint has asked its peer for.
#[derive(Clone, Copy)]
struct Asked {
    token: u32,
    offset: u64,
    length: u32,
}

struct World {
    poller: Poller,
    fabric: IwarpFabric,
    events: Vec<FabricEvent>,
    now: Instant,
    peer: Option<TcpStream>,
    /// What the endpoint has sent and nobody has looked at.
    output: Vec<u8>,
    is_framed: bool,
    asked: Vec<Asked>,
    qp: Option<QpKey>,
    is_up: bool,
    /// Work requests without a completion: whether they are receives.
    posted: HashMap<u64, bool>,
    done: HashSet<u64>,
    next: u64,
    region: Arc<Region>,
    windows: Vec<RemoteKey>,
    readable: Vec<RemoteKey>,
    crc: bool,
    msn: [u32; 3],
    ends: usize,
}

impl World {
    fn new(input: &mut Input<'_>, active: bool) -> Self {
        let poller = Poller::new().expect("epoll");
        let fabric = IwarpFabric::new(poller.registry(1), IwarpConfig::default()).expect("iwarp");
        let region = Region::anonymous(END).expect("memory");
        let source = pattern(END - SOURCE, 5);
        region.write(SOURCE, &source).expect("inside");
        let mut world = Self {
            poller,
            fabric,
            events: Vec::new(),
            now: Instant::now(),
            peer: None,
            output: Vec::new(),
            is_framed: false,
            asked: Vec::new(),
            qp: None,
            is_up: false,
            posted: HashMap::new(),
            done: HashSet::new(),
            next: 1,
            region,
            windows: Vec::new(),
            readable: Vec::new(),
            crc: false,
            msn: [1; 3],
            ends: 0,
        };
        let crc = input.flag();
        let peer = if active {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
            let options = ConnectOptions {
                peer: listener.local_addr().expect("an address"),
                crc,
                mpa_revision: input.pick(&[2, 1]),
                ird: input.pick(&[0, 1, 32]),
                ord: input.pick(&[0, 1, 32]),
                private_data: input.bytes(16).to_vec(),
                timeout: PATIENCE,
            };
            let now = world.now;
            world.qp = Some(world.fabric.connect(now, &options).expect("connects"));
            listener.accept().expect("a connection").0
        } else {
            let any = "127.0.0.1:0".parse().expect("an address");
            let options = ListenOptions {
                crc,
                ..ListenOptions::default()
            };
            let (_, address) = world.fabric.listen(any, &options).expect("listens");
            TcpStream::connect(address).expect("connects")
        };
        world.crc = crc;
        peer.set_nonblocking(true).expect("a socket");
        peer.set_nodelay(true).expect("a socket");
        world.peer = Some(peer);
        world.settle();
        world
    }

    /// MPA: as it should be in most cases.
    fn set_up(&mut self, input: &mut Input<'_>, active: bool) {
        let is_right = input.below(8) > 0;
        let mut frame = if active {
            b"MPA ID Rep Frame".to_vec()
        } else {
            b"MPA ID Req Frame".to_vec()
        };
        let (revision, crc) = (input.pick(&[2, 1]), input.flag());
        let private = input.bytes(20);
        let enhanced = revision == 2;
        let length = private.len() + if enhanced { 4 } else { 0 };
        frame.push(if crc { 0x40 } else { 0 } | if enhanced { 0x10 } else { 0 });
        frame.push(revision);
        frame.extend((length as u16).to_be_bytes());
        if enhanced {
            // No peer-to-peer mode by default; depths as they come.
            let depths = input.pick(&[[0, 32, 0, 32], [0, 0, 0, 0], [0x3f, 0xff, 0x3f, 0xff]]);
            frame.extend(depths);
        }
        frame.extend(private);
        if !is_right {
            let at = input.below(frame.len());
            match input.below(3) {
                0 => frame[at] = input.u8(),
                1 => frame.truncate(at),
                _ => frame.extend(input.bytes(600)),
            }
        }
        self.crc |= crc;
        self.write(input, &frame);
        self.settle();
    }

    /// Writes to the endpoint in pieces.
    fn write(&mut self, input: &mut Input<'_>, mut bytes: &[u8]) {
        let mut pieces = input.below(4);
        while !bytes.is_empty() {
            let length = if pieces > 0 {
                1 + input.below(bytes.len())
            } else {
                bytes.len()
            };
            let (piece, rest) = bytes.split_at(length);
            let Some(peer) = &mut self.peer else {
                return;
            };
            match peer.write(piece) {
                Ok(written) if written == piece.len() => {}
                // It does not read, or is gone.
                _ => return,
            }
            bytes = rest;
            if pieces > 0 {
                pieces -= 1;
                self.settle();
            }
        }
    }

    /// Lets the endpoint do all that it can.
    fn settle(&mut self) {
        while self.step(Duration::ZERO) {}
    }

    fn step(&mut self, timeout: Duration) -> bool {
        let now = self.now;
        self.fabric.flush(now, &mut self.events);
        let mut ready = Vec::new();
        let waited = self.poller.wait(Some(timeout), &mut ready);
        waited.expect("epoll");
        for mut one in ready.iter().copied() {
            one.key = Poller::split(one.key).1;
            self.fabric.handle_ready(now, one, &mut self.events);
        }
        self.fabric.flush(now, &mut self.events);
        self.take_events();
        !ready.is_empty()
    }

    fn take_events(&mut self) {
        for event in std::mem::take(&mut self.events) {
            match event {
                FabricEvent::ConnectRequest { qp, .. } => {
                    assert!(self.qp.replace(qp).is_none(), "two requests");
                    for _ in 0..3 {
                        self.post_recv(200);
                    }
                    let options = AcceptOptions {
                        ird: 4,
                        ord: 4,
                        private_data: Vec::new(),
                    };
                    let now = self.now;
                    self.fabric.accept(now, qp, &options).expect("accepts");
                }
                FabricEvent::Established { .. } => {
                    assert!(!std::mem::replace(&mut self.is_up, true), "twice up");
                }
                FabricEvent::Recv {
                    wr_id, len, status, ..
                } => {
                    assert_eq!(
                        self.posted.remove(&wr_id.0),
                        Some(true),
                        "receive {wr_id:?}"
                    );
                    assert!(len <= 2048);
                    assert!(matches!(status, Status::Success | Status::Flushed));
                    assert!(self.done.insert(wr_id.0));
                }
                FabricEvent::Done { wr_id, .. } => {
                    assert_eq!(self.posted.remove(&wr_id.0), Some(false), "work {wr_id:?}");
                    assert!(self.done.insert(wr_id.0));
                }
                FabricEvent::Disconnected { qp, .. } => {
                    assert_eq!(self.qp, Some(qp));
                    assert!(self.posted.is_empty(), "not flushed: {:?}", self.posted);
                    self.ends += 1;
                    assert_eq!(self.ends, 1);
                    self.is_up = false;
                }
                other => panic!("{other:?}"),
            }
            if self.ends > 0 {
                assert!(self.posted.is_empty());
            }
        }
    }

    fn slice(&self, offset: usize, length: usize) -> MemSlice {
        MemSlice::new(&self.region, offset, length).expect("inside")
    }

    fn id(&mut self, is_receive: bool, is_posted: bool) {
        if is_posted {
            self.posted.insert(self.next, is_receive);
        }
        self.next += 1;
    }

    fn post_recv(&mut self, length: usize) {
        let Some(qp) = self.qp else { return };
        let memory = self.slice(RECEIVES + (self.next as usize % 8) * 2048, length);
        let posted = self.fabric.post_recv(qp, WrId(self.next), memory);
        self.id(true, posted.is_ok());
    }

    fn act(&mut self, input: &mut Input<'_>) {
        match input.below(16) {
            0..=6 => {
                let ulpdu = self.ulpdu(input);
                let frame = self.frame(input, &ulpdu);
                self.write(input, &frame);
            }
            7 => {
                let bytes = input.bytes(100);
                self.write(input, bytes);
            }
            8 => {
                let length = input.pick(&[200, 1, 2048]);
                self.post_recv(length);
            }
            9 | 10 => self.post_work(input),
            11 => self.register(input),
            12 => {
                let Some(qp) = self.qp else { return };
                let key = self.key(input);
                let was_there = self.fabric.deregister(qp, key.token);
                let known = self.windows.iter().chain(&self.readable);
                let known = known.copied().any(|known| known.token == key.token);
                // Known ones may have been invalidated, or gone with the connection.
                assert!(known || !was_there);
            }
            13 => self.read_output(),
            14 => {
                self.now += Duration::from_millis(input.pick(&[1, 1000, 6000]));
                let now = self.now;
                self.fabric.handle_timeout(now, &mut self.events);
                self.take_events();
                // A timer that stays in the past keeps its caller turning in circles.
                let next = self.fabric.next_timeout();
                assert!(
                    next.is_none_or(|next| next > now),
                    "a timer that never ends"
                );
            }
            _ => match input.below(8) {
                0 => self.peer = None,
                1 => {
                    if let Some(peer) = &self.peer {
                        let _ = peer.shutdown(std::net::Shutdown::Write);
                    }
                }
                2 => {
                    let linger = Duration::from_millis(input.pick(&[0, 1000]));
                    if let Some(qp) = self.qp {
                        let now = self.now;
                        self.fabric.disconnect(now, qp, linger);
                    }
                }
                _ => self.settle(),
            },
        }
    }

    fn frame(&self, input: &mut Input<'_>, ulpdu: &[u8]) -> Vec<u8> {
        let mut frame = (ulpdu.len() as u16).to_be_bytes().to_vec();
        frame.extend(ulpdu);
        frame.resize(frame.len().next_multiple_of(4), 0);
        let is_right = input.below(16) < 15;
        let sum = if is_right && self.crc {
            checksum(CrcAlgorithm::Crc32Iscsi, &frame) as u32
        } else if is_right {
            0
        } else {
            input.u32()
        };
        frame.extend(sum.to_le_bytes());
        frame
    }

    fn key(&self, input: &mut Input<'_>) -> RemoteKey {
        let keys = if input.flag() {
            &self.windows
        } else {
            &self.readable
        };
        if keys.is_empty() || input.below(8) == 7 {
            RemoteKey {
                token: input.u32(),
                offset: input.u64(),
            }
        } else {
            keys[input.below(keys.len())]
        }
    }

    /// A DDP segment that is nearly right.
    fn ulpdu(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        self.read_output();
        let last = if input.below(4) > 0 { 0x41 } else { 0x01 };
        let length = input.pick(&[0, 1, 20, 200, 400, 2000]);
        let payload = pattern(length, length as u8);
        let mut ulpdu = match input.below(8) {
            0 | 1 => {
                let key = self.key(input);
                let at = key.offset.wrapping_add(input.pick(&[0, 0, 1, 300, 399]));
                tagged([last | 0x80, 0x40], key.token, at, &payload)
            }
            2..=4 => {
                let opcode = input.pick(&[3, 3, 3, 4, 5, 6]);
                let reserved = if opcode & 1 == 0 {
                    self.key(input).token
                } else {
                    0
                };
                let offset = input.pick(&[0, 0, 0, 200, 2000]);
                let words = [reserved, 0, self.msn[0], offset];
                if last == 0x41 {
                    self.msn[0] = self.msn[0].wrapping_add(1);
                }
                untagged([last, 0x40 | opcode], words, &payload)
            }
            5 => {
                let key = self.key(input);
                let mut body = vec![0, 0, 0x22, 0x22, 0, 0, 0, 0, 0, 0, 0x33, 0x33];
                let length: u32 = input.pick(&[0, 1, 400, 401, 1 << 20]);
                body.extend(length.to_be_bytes());
                body.extend(key.token.to_be_bytes());
                body.extend(key.offset.to_be_bytes());
                let words = [0, 1, self.msn[1], 0];
                self.msn[1] = self.msn[1].wrapping_add(1);
                untagged([0x41, 0x41], words, &body)
            }
            6 => {
                // The answer to a READ of the endpoint.
                let asked = self.asked.first().copied().unwrap_or(Asked {
                    token: 1,
                    offset: 0,
                    length: 0,
                });
                if last == 0x41 && !self.asked.is_empty() {
                    self.asked.remove(0);
                }
                let payload = pattern(asked.length.min(4096) as usize, 3);
                tagged([last | 0x80, 0x42], asked.token, asked.offset, &payload)
            }
            _ => {
                let codes = input.array::<4>();
                untagged([0x41, 0x47], [0, 2, 1, 0], &codes)
            }
        };
        if input.below(8) == 7 {
            match input.below(3) {
                0 => {
                    let at = input.below(ulpdu.len());
                    ulpdu[at] = input.u8();
                }
                1 => {
                    let at = input.below(ulpdu.len());
                    ulpdu.truncate(at);
                }
                _ => ulpdu = input.bytes(60).to_vec(),
            }
        }
        ulpdu
    }

    /// Takes what the endpoint has sent, and looks for its Read Requests.
    fn read_output(&mut self) {
        let Some(peer) = &mut self.peer else { return };
        let mut room = [0; 16 << 10];
        loop {
            match peer.read(&mut room) {
                Ok(0) => break,
                Ok(count) => self.output.extend_from_slice(&room[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => break,
            }
        }
        if !self.is_framed {
            // The MPA frame goes before.
            let Some(head) = self.output.get(..20) else {
                return;
            };
            let length = 20 + usize::from(u16::from_be_bytes([head[18], head[19]]));
            if self.output.len() < length {
                return;
            }
            self.output.drain(..length);
            self.is_framed = true;
        }
        while let Some(head) = self.output.get(..2) {
            let length = usize::from(u16::from_be_bytes([head[0], head[1]]));
            let whole = (2 + length).next_multiple_of(4) + 4;
            if self.output.len() < whole {
                return;
            }
            let frame: Vec<u8> = self.output.drain(..whole).collect();
            let ulpdu = &frame[2..2 + length];
            if ulpdu.get(..2) == Some(&[0x41, 0x41]) && ulpdu.len() == 46 {
                let word = |at: usize| u32::from_be_bytes(ulpdu[at..at + 4].try_into().expect("4"));
                self.asked.push(Asked {
                    token: word(18),
                    offset: u64::from(word(22)) << 32 | u64::from(word(26)),
                    length: word(30),
                });
            }
            if self.crc && self.is_up {
                let sum = checksum(CrcAlgorithm::Crc32Iscsi, &frame[..whole - 4]) as u32;
                assert_eq!(frame[whole - 4..], sum.to_le_bytes());
            }
        }
    }

    fn post_work(&mut self, input: &mut Input<'_>) {
        let Some(qp) = self.qp else { return };
        let id = WrId(self.next);
        let length = input.pick(&[1, 20, 1000, 4096]);
        let (token, offset) = (input.u32(), input.u64());
        let posted = match input.below(3) {
            0 => {
                let request = SendRequest {
                    wr_id: id,
                    header_len: input.pick(&[0, 20, 32]),
                    header: [7; 32],
                    payload: input.flag().then(|| self.slice(SOURCE, length)),
                    invalidate: input.flag().then_some(token),
                };
                self.fabric.post_send(qp, request)
            }
            1 => {
                let memory = self.slice(SOURCE, length);
                self.fabric.post_write(qp, id, memory, token, offset)
            }
            _ => {
                let at = SINKS + (self.next as usize % 4) * 4096;
                let memory = self.slice(at, length);
                self.fabric.post_read(qp, id, memory, token, offset)
            }
        };
        self.id(false, posted.is_ok());
    }

    fn register(&mut self, input: &mut Input<'_>) {
        let Some(qp) = self.qp else { return };
        let writable = input.flag();
        let memory = if writable {
            let at = self.windows.len() % ((SOURCE - WINDOWS) / STRIDE);
            self.slice(WINDOWS + at * STRIDE, WINDOW)
        } else {
            self.slice(SOURCE + input.below(1000), 1000)
        };
        let access = Access {
            remote_read: !writable || input.flag(),
            remote_write: writable,
        };
        if let Ok(key) = self.fabric.register(qp, memory, access) {
            if writable {
                self.windows.push(key);
            } else {
                self.readable.push(key);
            }
        }
    }

    /// What nobody may write is as it was: memory to read from, and what lies between windows.
    fn check_memory(&self) {
        assert!(
            self.slice(SOURCE, END - SOURCE).to_vec() == pattern(END - SOURCE, 5),
            "memory to read from was written"
        );
        let windows = self.slice(WINDOWS, SOURCE - WINDOWS).to_vec();
        for stride in windows.chunks(STRIDE) {
            assert!(
                stride[WINDOW..].iter().all(|&byte| byte == 0),
                "written past a window"
            );
        }
    }

    /// Ends it: all that was posted comes back, then one end, and nothing is left.
    fn finish(&mut self) {
        if let Some(qp) = self.qp {
            let now = self.now;
            self.fabric.disconnect(now, qp, Duration::ZERO);
        }
        self.peer = None;
        let start = Instant::now();
        while (self.qp.is_some() && self.ends == 0) || self.fabric.half_open() > 0 {
            assert!(start.elapsed() < PATIENCE, "no end");
            self.step(Duration::from_millis(100));
        }
        assert!(self.posted.is_empty(), "lost: {:?}", self.posted);
        self.check_memory();
    }
}

fn tagged(ctrl: [u8; 2], token: u32, offset: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = ctrl.to_vec();
    bytes.extend(token.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// `words` are RsvdULP, QN, MSN, MO.
fn untagged(ctrl: [u8; 2], words: [u32; 4], payload: &[u8]) -> Vec<u8> {
    let mut bytes = ctrl.to_vec();
    for word in words {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(payload);
    bytes
}
