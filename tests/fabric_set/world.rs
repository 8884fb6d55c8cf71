//! Two fabrics on one poller.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use smbdirect::fabric::{
    AcceptOptions, Access, ConnectOptions, EndReason, Fabric, FabricEvent, ListenOptions,
    ListenerKey, QpKey, RemoteKey, SendRequest, Status, WrId,
};
use smbdirect::mem::{MemSlice, Region};
use smbdirect::sys::{Poller, Ready, Registry};

/// How long a test waits for something that must come. Only a failing test waits that long.
const PATIENCE: Duration = Duration::from_secs(60);

/// One fabric and what it told.
pub(crate) struct Side {
    pub(crate) fabric: Box<dyn Fabric>,
    pub(crate) events: Vec<FabricEvent>,
}

/// What the sides ask of each other in MPA.
pub(crate) struct Mpa {
    pub(crate) connect_crc: bool,
    pub(crate) listen_crc: bool,
    pub(crate) revision: u8,
}

impl Default for Mpa {
    fn default() -> Self {
        Self {
            connect_crc: false,
            listen_crc: false,
            revision: 2,
        }
    }
}

/// Two fabrics on one poller.
pub(crate) struct World {
    pub(crate) poller: Poller,
    pub(crate) sides: [Side; 2],
    pub(crate) address: IpAddr,
    /// Software iWARP: the CRC of both sides, and the MPA revision to start with.
    pub(crate) mpa: Mpa,
    /// The side that does nothing now, and what is ready for it meanwhile.
    asleep: Option<(usize, Vec<Ready>)>,
    /// This side is not told what rdma_cm has to say.
    pub(crate) withheld: Option<usize>,
}

/// The readiness of the verbs fabric's event channel; software iWARP has no such key.
const CM_KEY: u64 = 0;

/// The active side.
pub(crate) const A: usize = 0;
/// The passive side.
pub(crate) const B: usize = 1;

impl World {
    /// Two of one kind.
    pub(crate) fn new(address: IpAddr, make: impl Fn(Registry) -> Box<dyn Fabric>) -> Self {
        Self::mixed(address, |_, registry| make(registry))
    }

    /// What `make` makes for A and for B.
    pub(crate) fn mixed(
        address: IpAddr,
        make: impl Fn(usize, Registry) -> Box<dyn Fabric>,
    ) -> Self {
        let poller = Poller::new().unwrap();
        let sides = [A, B].map(|side| Side {
            fabric: make(side, poller.registry(side as u8)),
            events: Vec::new(),
        });
        Self {
            poller,
            sides,
            address,
            mpa: Mpa::default(),
            asleep: None,
            withheld: None,
        }
    }

    /// From now on a side does nothing.
    pub(crate) fn put_to_sleep(&mut self, side: usize) {
        self.asleep = Some((side, Vec::new()));
    }

    /// And does again.
    pub(crate) fn wake(&mut self) {
        let (side, ready) = self.asleep.take().expect("sleeps");
        for ready in ready {
            self.hand_in(side, ready);
        }
    }

    fn hand_in(&mut self, to: usize, ready: Ready) {
        match &mut self.asleep {
            Some((side, later)) if *side == to => later.push(ready),
            _ => {
                let Side { fabric, events } = &mut self.sides[to];
                fabric.handle_ready(Instant::now(), ready, events);
            }
        }
    }

    pub(crate) fn fabric(&mut self, side: usize) -> &mut dyn Fabric {
        &mut *self.sides[side].fabric
    }

    /// One turn: what was posted goes out, what is ready is handed in.
    pub(crate) fn step(&mut self, timeout: Duration) {
        let now = Instant::now();
        let mut wait = timeout;
        let sleeper = self.asleep.as_ref().map(|(side, _)| *side);
        let awake = move |side: &usize| Some(*side) != sleeper;
        for side in [A, B].into_iter().filter(awake) {
            let side = &mut self.sides[side];
            side.fabric.flush(now, &mut side.events);
            if let Some(at) = side.fabric.next_timeout() {
                wait = wait.min(at.saturating_duration_since(now));
            }
        }
        let mut ready = Vec::new();
        self.poller.wait(Some(wait), &mut ready).unwrap();
        for mut ready in ready {
            let (tag, key) = Poller::split(ready.key);
            ready.key = key;
            if key == CM_KEY && self.withheld == Some(tag.into()) {
                continue;
            }
            self.hand_in(tag.into(), ready);
        }
        let now = Instant::now();
        for side in [A, B].into_iter().filter(awake) {
            let side = &mut self.sides[side];
            if side.fabric.next_timeout().is_some_and(|at| at <= now) {
                side.fabric.handle_timeout(now, &mut side.events);
            }
        }
    }

    /// Goes on until `done`.
    pub(crate) fn run_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let give_up = Instant::now() + PATIENCE;
        while !done(self) {
            if Instant::now() > give_up {
                let events = self.sides.each_ref().map(|side| {
                    let some: Vec<_> = side.events.iter().take(8).collect();
                    format!("{} events, first {some:?}", side.events.len())
                });
                panic!("{what} does not come; {events:#?}");
            }
            self.step(Duration::from_millis(100));
        }
    }

    /// Waits for an event of one side and takes it.
    pub(crate) fn take<T>(
        &mut self,
        side: usize,
        what: &str,
        pick: impl Fn(&FabricEvent) -> Option<T>,
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

    pub(crate) fn take_recv(&mut self, side: usize, id: u64) -> (usize, Option<u32>, Status) {
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

    pub(crate) fn take_done(&mut self, side: usize, id: u64) -> Status {
        self.take(side, &format!("completion {id}"), |event| match event {
            FabricEvent::Done { wr_id, status, .. } if wr_id.0 == id => Some(*status),
            _ => None,
        })
    }

    pub(crate) fn take_end(&mut self, side: usize) -> EndReason {
        self.take(side, "end", |event| match event {
            FabricEvent::Disconnected { reason, .. } => Some(reason.clone()),
            _ => None,
        })
    }

    pub(crate) fn take_request(&mut self, side: usize) -> QpKey {
        self.take(side, "connect request", |event| match event {
            FabricEvent::ConnectRequest { qp, .. } => Some(*qp),
            _ => None,
        })
    }

    /// Outbound depth.
    pub(crate) fn take_established(&mut self, side: usize) -> u32 {
        self.take(side, "established", |event| match event {
            FabricEvent::Established { ord, .. } => Some(*ord),
            _ => None,
        })
    }

    /// B listens on a free port.
    pub(crate) fn listen(&mut self) -> (ListenerKey, SocketAddr) {
        let address = SocketAddr::new(self.address, 0);
        let options = ListenOptions {
            crc: self.mpa.listen_crc,
            ..ListenOptions::default()
        };
        self.fabric(B).listen(address, &options).unwrap()
    }

    /// Connects A to B; both keys.
    pub(crate) fn connect(&mut self) -> (QpKey, QpKey) {
        let (_, peer) = self.listen();
        self.connect_to(peer, (32, 32), (32, 32))
    }

    /// Connects A to where B listens, with the depths (IRD, ORD) of both.
    pub(crate) fn connect_to(
        &mut self,
        peer: SocketAddr,
        ours: (u32, u32),
        theirs: (u32, u32),
    ) -> (QpKey, QpKey) {
        let a = self.start(peer, ours);
        self.fabric(A).expect_receives(a, RECEIVES);
        let b = self.take_request(B);
        self.fabric(B).expect_receives(b, RECEIVES);
        self.fabric(B)
            .accept(Instant::now(), b, &accept_options(theirs))
            .unwrap();
        (a, b)
    }

    /// Connects, and waits until both sides know.
    pub(crate) fn connected(&mut self) -> (QpKey, QpKey) {
        let both = self.connect();
        self.take_established(A);
        self.take_established(B);
        both
    }

    /// A sends a message. On iWARP the active side has to, before the passive one may, unless MPA of
    /// revision 2 does it for them.
    pub(crate) fn speak_first(&mut self, a: QpKey, b: QpKey) {
        self.recv(B, b, TELL, &memory(8));
        self.send(A, a, TELL, &memory(8));
        assert_eq!(self.take_recv(B, TELL), (8, None, Status::Success));
        assert_eq!(self.take_done(A, TELL), Status::Success);
    }

    pub(crate) fn start(&mut self, peer: SocketAddr, depths: (u32, u32)) -> QpKey {
        let options = ConnectOptions {
            ird: depths.0,
            ord: depths.1,
            crc: self.mpa.connect_crc,
            mpa_revision: self.mpa.revision,
            ..connect_options(peer)
        };
        self.fabric(A).connect(Instant::now(), &options).unwrap()
    }

    /// Posts a receive, and has it posted before anything else happens.
    pub(crate) fn recv(&mut self, side: usize, qp: QpKey, id: u64, memory: &MemSlice) {
        let Side { fabric, events } = &mut self.sides[side];
        fabric.post_recv(qp, WrId(id), memory.clone()).unwrap();
        fabric.flush(Instant::now(), events);
    }

    pub(crate) fn send(&mut self, side: usize, qp: QpKey, id: u64, memory: &MemSlice) {
        let request = send_request(id, b"", Some(memory.clone()), None);
        self.fabric(side).post_send(qp, request).unwrap();
    }

    /// B registers memory and tells A of the token with a message, as a client of SMB Direct does:
    /// the peer may use a token when it has got it by this connection.
    pub(crate) fn register(&mut self, a: QpKey, b: QpKey, memory: &MemSlice) -> RemoteKey {
        let key = self
            .fabric(B)
            .register(b, memory.clone(), ALL)
            .expect("register");
        let told = self::memory(16);
        self.recv(A, a, TELL, &told);
        let token = key.token.to_be_bytes();
        let request = send_request(TELL, &token, None, None);
        self.fabric(B).post_send(b, request).unwrap();
        assert_eq!(self.take_recv(A, TELL), (4, None, Status::Success));
        assert_eq!(self.take_done(B, TELL), Status::Success);
        assert_eq!(told.to_vec()[..4], token);
        key
    }

    /// No event is left that the test has not taken.
    pub(crate) fn check_quiet(&self) {
        for side in &self.sides {
            assert!(side.events.is_empty(), "{:?}", side.events);
        }
    }
}

/// The work request that tells of a token.
const TELL: u64 = 1 << 40;

/// Receives that a test posts on one connection at most.
pub(crate) const RECEIVES: u32 = 320;

pub(crate) fn connect_options(peer: SocketAddr) -> ConnectOptions {
    ConnectOptions {
        peer,
        crc: false,
        mpa_revision: 2,
        ird: 32,
        ord: 32,
        private_data: Vec::new(),
        timeout: Duration::from_secs(20),
    }
}

pub(crate) fn accept_options(depths: (u32, u32)) -> AcceptOptions {
    AcceptOptions {
        ird: depths.0,
        ord: depths.1,
        private_data: Vec::new(),
    }
}

pub(crate) fn send_request(
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

pub(crate) const ALL: Access = Access {
    remote_read: true,
    remote_write: true,
};

/// Bytes that differ from place to place.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed + 1);
    (0..len.div_ceil(8))
        .flat_map(|_| random.next().to_le_bytes())
        .take(len)
        .collect()
}

pub(crate) fn memory(len: usize) -> MemSlice {
    let region = Region::anonymous(len).unwrap();
    MemSlice::new(&region, 0, len).unwrap()
}

pub(crate) fn filled(len: usize, seed: u64) -> MemSlice {
    let slice = memory(len);
    slice.write(0, &pattern(len, seed)).unwrap();
    slice
}

/// Numbers that are the same in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
