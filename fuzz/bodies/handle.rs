//! A handle that lies: anything in its shared memory, at any time, while the engine works. The
//! engine goes on, and so do others' connections; what cannot be honest costs the handle.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::net::SendFlags;
use smbdirect::ipc::{Caller, OpenRequest, Reply, Request, SessionSpec};
use smbdirect::ring::{ClientSide, CqKind, Descriptor, Part, RingFor, Segment, SqEntry, SqOp, ABI};

use super::input::Input;
use super::lab::{connect_spec, negotiate, small_area, Bystanders, Lab, PATIENCE};

/// Where indices and flags are in the header page (`ring::layout`): those of the submission,
/// completion and return ring, and the wake flags.
const WORDS: [usize; 9] = [128, 256, 384, 512, 640, 768, 896, 1024, 1152];
const SQ_TAIL: usize = WORDS[0];

pub(crate) fn run(bytes: &[u8]) {
    thread_local! {
        static STAGE: (Lab, RefCell<Bystanders>) = {
            let lab = Lab::start();
            let bystanders = RefCell::new(Bystanders::new(&lab));
            (lab, bystanders)
        };
    }
    STAGE.with(|(lab, bystanders)| play(bytes, lab, &mut bystanders.borrow_mut()));
}

fn play(bytes: &[u8], lab: &Lab, bystanders: &mut Bystanders) {
    let mut input = Input::new(bytes);
    let mut liar = Liar::open(lab);
    if input.below(4) > 0 {
        liar.connect(bystanders.address);
    }
    let mut left = 60;
    while !input.is_empty() && left > 0 {
        left -= 1;
        liar.act(&mut input);
        if input.below(8) == 7 {
            lab.status();
        }
    }
    bystanders.check();
    liar.lie_beyond_doubt(lab);
    drop(liar);
    lab.until_handles(3);
    bystanders.check();
}

struct Liar {
    caller: Caller,
    ring: ClientSide,
    connections: Vec<u64>,
    keys: Vec<Descriptor>,
    tokens: Vec<[u8; 16]>,
}

impl Liar {
    fn open(lab: &Lab) -> Self {
        let mut caller = Caller::connect(&lab.socket, PATIENCE).expect("the engine accepts");
        let open = Request::Open(OpenRequest {
            abi: ABI,
            version: "liar".into(),
            parent: false,
            area: small_area(),
        });
        let (reply, fds) = caller.call(&open, PATIENCE).expect("a handle");
        let Reply::Opened { area, .. } = reply else {
            panic!("{reply:?}")
        };
        let [memfd, bell]: [OwnedFd; 2] = fds.try_into().expect("memory and bell");
        let ring = ClientSide::new(&area, memfd, bell).expect("an area");
        Self {
            caller,
            ring,
            connections: Vec::new(),
            keys: Vec::new(),
            tokens: Vec::new(),
        }
    }

    /// A connection to itself, in good order.
    fn connect(&mut self, address: SocketAddr) {
        let guid = *b"the liar's guid.";
        let spec = SessionSpec {
            session_id: None,
            client_guid: Some(guid),
            remove: false,
        };
        let registered = self.caller.call(&Request::SetSession(spec), PATIENCE);
        registered.expect("a registration");
        let connect = Request::Connect(connect_spec(address));
        let (reply, _) = self.caller.call(&connect, PATIENCE).expect("a connection");
        let Reply::Connection(active) = reply else {
            panic!("{reply:?}")
        };
        self.await_attached(1);
        let pdu = negotiate(guid);
        let at = self.ring.layout().send.offset;
        let _ = self.ring.region().write(at as usize, &pdu);
        let mut entry = SqEntry::new(SqOp::SendPdu, active, 0);
        (entry.offset, entry.length) = (at, pdu.len() as u32);
        let _ = self.ring.push_sq(&entry);
        let _ = self.ring.submit();
        self.await_attached(2);
    }

    fn await_attached(&mut self, count: usize) {
        let start = Instant::now();
        while self.connections.len() < count {
            match self.ring.pop_cq().expect("an honest engine") {
                Some(entry) if entry.kind == CqKind::Attached => {
                    self.connections.push(entry.connection);
                }
                Some(_) => {}
                None => {
                    assert!(start.elapsed() < PATIENCE, "no connection");
                    std::thread::yield_now();
                }
            }
        }
    }

    fn act(&mut self, input: &mut Input<'_>) {
        let layout = *self.ring.layout();
        let region = self.ring.region().clone();
        match input.below(14) {
            // An index or a flag: near what it is, or anything.
            0 | 1 => {
                let at = input.pick(&WORDS);
                let mut word = [0; 4];
                let _ = region.read(at, &mut word);
                let near = u32::from_ne_bytes(word).wrapping_add(u32::from(input.u8()));
                let value = if input.flag() { near } else { input.odd_u32() };
                let _ = region.write(at, &value.to_ne_bytes());
            }
            // Bytes anywhere, preferably where the engine looks.
            2 | 3 => {
                let header = Part {
                    offset: 0,
                    len: 4096,
                };
                let parts = [
                    header,
                    layout.sq,
                    layout.sq,
                    layout.returns,
                    layout.send,
                    layout.send,
                    layout.connections,
                    layout.cq,
                    layout.receive,
                    layout.rdma,
                ];
                let part = input.pick(&parts);
                let near = input.below(part.len.min(4096) as usize);
                let bytes = input.bytes(96);
                let _ = region.write(part.offset as usize + near, bytes);
            }
            // An entry that is nearly right.
            4..=7 => {
                let entry = self.entry(input);
                let _ = self.ring.push_sq(&entry);
            }
            8 => {
                let slot = if input.flag() {
                    input.below(64) as u32
                } else {
                    input.odd_u32()
                };
                let _ = self.ring.push_return(slot);
                let _ = self.ring.submit_returns();
            }
            9 => {
                let _ = self.ring.submit();
            }
            10 => self.ring_bell(input.pick(&[1, 1, 1, 1000])),
            11 => {
                for _ in 0..input.below(40) {
                    if !matches!(self.ring.pop_cq(), Ok(Some(_))) {
                        break;
                    }
                }
                if input.flag() {
                    let _ = self.ring.release();
                }
            }
            12 => {
                let ring_for = match input.flag() {
                    true => RingFor::All,
                    false => RingFor::Urgent,
                };
                let _ = self.ring.arm(ring_for);
            }
            _ => self.ask(input),
        }
    }

    /// Rings whether the engine sleeps or not.
    fn ring_bell(&self, times: usize) {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        for _ in 0..times {
            let _ = rustix::net::send(self.ring.bell(), &[1], flags);
        }
    }

    fn id(&self, input: &mut Input<'_>) -> u64 {
        if self.connections.is_empty() || input.below(8) == 7 {
            input.u64()
        } else {
            self.connections[input.below(self.connections.len())]
        }
    }

    fn entry(&self, input: &mut Input<'_>) -> SqEntry {
        let layout = *self.ring.layout();
        let ops = [SqOp::SendPdu, SqOp::RdmaRead, SqOp::RdmaWrite];
        let op = if input.below(16) == 15 {
            SqOp::Disconnect
        } else {
            input.pick(&ops)
        };
        let id = self.id(input);
        let mut entry = SqEntry::new(op, id, u64::from(input.u8()));
        entry.flags = input.pick(&[0, 0, 1, 0xffff]);
        entry.token = self.key(input).token;
        let page = 4096 * input.below(8) as u64;
        entry.offset = layout.send.offset + page;
        entry.length = input.pick(&[1, 100, 1000, 4096, 100_000]);
        if matches!(op, SqOp::RdmaRead | SqOp::RdmaWrite) {
            (entry.segments, entry.descriptors) =
                (input.pick(&[1, 1, 2, 3]), input.pick(&[1, 1, 2, 3]));
            entry.length = 16 * (entry.segments + entry.descriptors);
            let mut at = entry.offset as usize;
            for _ in 0..entry.segments {
                let segment = Segment {
                    offset: layout.rdma.offset + u64::from(input.u16()),
                    length: input.pick(&[1, 64, 4096, 65536]),
                };
                let segment = if input.below(8) == 7 {
                    Segment {
                        offset: input.u64(),
                        length: input.u64(),
                    }
                } else {
                    segment
                };
                let _ = self.ring.region().write(at, &segment.encode());
                at += 16;
            }
            for _ in 0..entry.descriptors {
                let key = self.key(input);
                let _ = self.ring.region().write(at, &key.encode());
                at += 16;
            }
        }
        if input.below(8) == 7 {
            match input.below(5) {
                0 => entry.offset = input.u64(),
                1 => entry.length = input.odd_u32(),
                2 => entry.segments = input.odd_u32(),
                3 => entry.descriptors = input.odd_u32(),
                _ => entry.token = input.u32(),
            }
        }
        entry
    }

    fn key(&self, input: &mut Input<'_>) -> Descriptor {
        if self.keys.is_empty() || input.below(8) == 7 {
            Descriptor {
                offset: input.u64(),
                token: input.u32(),
                length: input.odd_u32(),
            }
        } else {
            self.keys[input.below(self.keys.len())]
        }
    }

    fn ask(&mut self, input: &mut Input<'_>) {
        let connection = self.id(input);
        let request = match input.below(6) {
            0 | 1 => Request::Register {
                connection,
                offset: self.ring.layout().rdma.offset + u64::from(input.u16()),
                length: input.pick(&[1, 64, 4096, 65536]),
                remote_read: true,
                remote_write: input.flag(),
            },
            2 => Request::Deregister {
                connection,
                token: self.key(input).token,
            },
            3 => Request::Export { connection },
            4 => Request::CancelExport { connection },
            _ => Request::Accept {
                token: self.tokens.last().copied().unwrap_or([3; 16]),
            },
        };
        match self.caller.call(&request, PATIENCE) {
            Ok((Reply::Registered(key), _)) => self.keys.push(key),
            Ok((Reply::Token(token), _)) => self.tokens.push(token),
            Ok((Reply::Connection(id), _)) => self.connections.push(id),
            Ok(_) => {}
            Err(error) => assert_ne!(error.errno(), libc::ETIMEDOUT, "{request:?}"),
        }
    }

    /// Two tails of which at least one is further away than the ring has entries, whatever the
    /// engine's head is: the engine hangs up.
    fn lie_beyond_doubt(&mut self, lab: &Lab) {
        for tail in [0x4000_0000_u32, 0xc000_0000] {
            let _ = self.ring.region().write(SQ_TAIL, &tail.to_ne_bytes());
            self.ring_bell(1);
            lab.status();
            lab.status();
        }
        let start = Instant::now();
        while !self.caller.socket().is_closed() {
            assert!(start.elapsed() < PATIENCE, "a liar keeps its handle");
            self.ring_bell(1);
            std::thread::yield_now();
        }
    }
}
