//! Two fabrics on one poller over loopback TCP, and a peer of raw bytes: what is software iWARP's
//! own. What it has in common with other fabrics is in `tests/fabric.rs`.

mod capture;
mod raw;
mod setup;
mod stream;
mod timing;
mod violation;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::fabric::Status;
use crate::mem::Region;
use crate::sys::Poller;

/// How long a test waits for something that must come. Only a failing test waits that long.
const PATIENCE: Duration = Duration::from_secs(20);

/// One fabric and what it told.
struct Side {
    fabric: IwarpFabric,
    events: Vec<FabricEvent>,
}

/// Two fabrics on one poller.
struct World {
    poller: Poller,
    sides: [Side; 2],
    now: Instant,
}

const A: usize = 0;
const B: usize = 1;

impl World {
    fn new() -> Self {
        Self::with(IwarpConfig::default(), IwarpConfig::default())
    }

    fn with(a: IwarpConfig, b: IwarpConfig) -> Self {
        let poller = Poller::new().unwrap();
        let side = |tag, config| Side {
            fabric: IwarpFabric::new(poller.registry(tag), config).unwrap(),
            events: Vec::new(),
        };
        let sides = [side(A as u8, a), side(B as u8, b)];
        Self {
            poller,
            sides,
            now: Instant::now(),
        }
    }

    /// Flushes and hands out readiness once. False: nothing was ready within the time.
    fn step(&mut self, timeout: Duration) -> bool {
        self.turn(timeout).0
    }

    /// Lets the fabrics do all that they can without the raw peer.
    fn settle(&mut self) {
        while self.turn(Duration::ZERO).1 {}
    }

    /// Whether anything was ready, and whether a fabric was.
    fn turn(&mut self, timeout: Duration) -> (bool, bool) {
        let now = self.now;
        for side in &mut self.sides {
            side.fabric.flush(now, &mut side.events);
        }
        let mut ready = Vec::new();
        self.poller.wait(Some(timeout), &mut ready).unwrap();
        let any = !ready.is_empty();
        let mut fabric = false;
        for mut ready in ready {
            let (tag, key) = Poller::split(ready.key);
            if tag == raw::TAG {
                continue;
            }
            fabric = true;
            ready.key = key;
            let side = &mut self.sides[usize::from(tag)];
            side.fabric.handle_ready(now, ready, &mut side.events);
        }
        (any, fabric)
    }

    /// Lets the world go on until `done`.
    fn run_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        loop {
            if done(self) {
                return;
            }
            if !self.step(PATIENCE) && !done(self) {
                let events = self
                    .sides
                    .each_ref()
                    .map(|side| format!("{:?}", side.events));
                panic!("{what} does not come; events {events:#?}");
            }
        }
    }

    /// Lets virtual time pass.
    fn pass(&mut self, time: Duration) {
        self.now += time;
        for side in &mut self.sides {
            side.fabric.handle_timeout(self.now, &mut side.events);
        }
    }

    /// Waits for an event of one side and takes it.
    fn take<T>(
        &mut self,
        side: usize,
        what: &str,
        mut pick: impl FnMut(&FabricEvent) -> Option<T>,
    ) -> T {
        let mut found = None;
        self.run_until(what, |world| {
            let events = &mut world.sides[side].events;
            if let Some(index) = events.iter().position(|event| pick(event).is_some()) {
                found = pick(&events.remove(index));
            }
            found.is_some()
        });
        found.unwrap()
    }

    fn take_recv(&mut self, side: usize, id: u64) -> (usize, Option<u32>, Status) {
        self.take(side, &format!("receive {id}"), |event| match event {
            FabricEvent::Recv {
                wr_id,
                len,
                invalidated,
                status,
                ..
            } if wr_id.0 == id => Some((*len, *invalidated, *status)),
            _ => None,
        })
    }

    fn take_done(&mut self, side: usize, id: u64) -> Status {
        self.take(side, &format!("completion {id}"), |event| match event {
            FabricEvent::Done { wr_id, status, .. } if wr_id.0 == id => Some(*status),
            _ => None,
        })
    }

    fn take_end(&mut self, side: usize) -> EndReason {
        self.take(side, "end", |event| match event {
            FabricEvent::Disconnected { reason, .. } => Some(reason.clone()),
            _ => None,
        })
    }

    fn take_request(&mut self, side: usize) -> QpKey {
        self.take(side, "connect request", |event| match event {
            FabricEvent::ConnectRequest { qp, .. } => Some(*qp),
            _ => None,
        })
    }

    /// Outbound depth and private data.
    fn take_established(&mut self, side: usize) -> (u32, Vec<u8>) {
        self.take(side, "established", |event| match event {
            FabricEvent::Established {
                ord, private_data, ..
            } => Some((*ord, private_data.clone())),
            _ => None,
        })
    }

    fn listen(&mut self, side: usize, address: &str, crc: bool) -> (ListenerKey, SocketAddr) {
        let options = ListenOptions {
            crc,
            ..ListenOptions::default()
        };
        self.sides[side]
            .fabric
            .listen(address.parse().unwrap(), &options)
            .unwrap()
    }

    /// Connects A to B; both keys.
    fn connect(&mut self, address: &str, connect: Connect) -> (QpKey, QpKey) {
        let (_, peer) = self.listen(B, address, connect.listen_crc);
        let now = self.now;
        let a = self.sides[A]
            .fabric
            .connect(now, &connect.options(peer))
            .unwrap();
        let b = self.take_request(B);
        self.sides[B]
            .fabric
            .accept(now, b, &depths(32, 32))
            .unwrap();
        self.take_established(B);
        self.take_established(A);
        (a, b)
    }

    fn recv(&mut self, side: usize, qp: QpKey, id: u64, memory: &MemSlice) {
        self.sides[side]
            .fabric
            .post_recv(qp, WrId(id), memory.clone())
            .unwrap();
    }

    fn post_send(&mut self, side: usize, qp: QpKey, id: u64, memory: &MemSlice) {
        self.sides[side]
            .fabric
            .post_send(qp, send_request(id, b"", Some(memory.clone()), None))
            .unwrap();
    }

    fn fabric(&mut self, side: usize) -> &mut IwarpFabric {
        &mut self.sides[side].fabric
    }
}

/// How to connect in a test.
#[derive(Clone, Copy)]
struct Connect {
    crc: bool,
    listen_crc: bool,
    revision: u8,
    ird: u32,
    ord: u32,
}

impl Default for Connect {
    fn default() -> Self {
        Self {
            crc: false,
            listen_crc: false,
            revision: 2,
            ird: 32,
            ord: 32,
        }
    }
}

impl Connect {
    fn options(self, peer: SocketAddr) -> ConnectOptions {
        ConnectOptions {
            peer,
            crc: self.crc,
            mpa_revision: self.revision,
            ird: self.ird,
            ord: self.ord,
            private_data: Vec::new(),
            timeout: Duration::from_secs(10),
        }
    }
}

fn depths(ird: u32, ord: u32) -> AcceptOptions {
    AcceptOptions {
        ird,
        ord,
        private_data: Vec::new(),
    }
}

fn send_request(
    id: u64,
    head: &[u8],
    payload: Option<MemSlice>,
    invalidate: Option<u32>,
) -> SendRequest {
    let mut header = [0; 32];
    header[..head.len()].copy_from_slice(head);
    SendRequest {
        wr_id: WrId(id),
        header_len: head.len() as u8,
        header,
        payload,
        invalidate,
    }
}

const ALL: Access = Access {
    remote_read: true,
    remote_write: true,
};

/// Bytes that differ from place to place.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed + 1);
    (0..len.div_ceil(8))
        .flat_map(|_| random.next().to_le_bytes())
        .take(len)
        .collect()
}

fn memory(len: usize) -> MemSlice {
    let region: Arc<Region> = Region::anonymous(len).unwrap();
    MemSlice::new(&region, 0, len).unwrap()
}

fn filled(len: usize, seed: u64) -> MemSlice {
    let slice = memory(len);
    slice.write(0, &pattern(len, seed)).unwrap();
    slice
}

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
