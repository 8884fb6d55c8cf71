//! Two connections, a virtual clock and a wire with delays, which checks on the way what no
//! connection may ever do.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::proto::{Connection, EndReason, Negotiated, Output, Params, Role};
use crate::wire::DataTransfer;

/// A message on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) bytes: Vec<u8>,
    pub(super) invalidate: Option<u32>,
}

impl Message {
    pub(super) fn plain(bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            bytes: bytes.into(),
            invalidate: None,
        }
    }

    pub(super) fn header(&self) -> DataTransfer {
        DataTransfer::parse(&self.bytes).expect("a data transfer")
    }
}

/// One side: a connection, its receive pool and its upper layer.
pub(super) struct End {
    pub(super) conn: Connection<Vec<u8>, u64>,
    /// Receive buffers free.
    pub(super) pool: usize,
    /// Receives posted in the fabric.
    pub(super) posted: usize,
    /// Buffers the upper layer has not given back, when it holds on to them.
    pub(super) held: usize,
    pub(super) holds: bool,
    messages: HashMap<u64, Vec<u8>>,
    next_key: u64,
    assembling: Vec<u8>,
    pub(super) sent: Vec<Vec<u8>>,
    pub(super) received: Vec<Vec<u8>>,
    pub(super) tokens: Vec<u32>,
    pub(super) negotiated: Option<Negotiated>,
    pub(super) ended: Option<(EndReason, bool)>,
    pub(super) outbox: VecDeque<Message>,
    /// Send completions are reported at once, not by the test.
    pub(super) completes: bool,
    /// Between the pieces of a message sent.
    is_mid: bool,
}

impl End {
    pub(super) fn new(role: Role, params: &Params, pool: usize, now: Instant) -> Self {
        assert_eq!(params.validate(), Ok(()));
        Self {
            conn: Connection::new(role, params, now),
            pool,
            posted: 0,
            held: 0,
            holds: false,
            messages: HashMap::new(),
            next_key: 0,
            assembling: Vec::new(),
            sent: Vec::new(),
            received: Vec::new(),
            tokens: Vec::new(),
            negotiated: None,
            ended: None,
            outbox: VecDeque::new(),
            completes: true,
            is_mid: false,
        }
    }

    /// Does what the machine wants, until it wants nothing.
    pub(super) fn pump(&mut self, now: Instant) {
        while let Some(output) = self.conn.poll(now) {
            match output {
                Output::PostReceives(asked) => {
                    assert!(asked > 0);
                    let posted = usize::from(asked).min(self.pool);
                    self.pool -= posted;
                    self.posted += posted;
                    self.conn.handle_posted(posted as u16);
                }
                Output::Send {
                    header,
                    payload,
                    last,
                    invalidate,
                } => {
                    assert!(self.ended.is_none(), "send after disconnect");
                    let mut bytes = header.to_vec();
                    if let Some(payload) = &payload {
                        assert_eq!(bytes.len(), 24);
                        assert!(payload.length > 0);
                        let message = &self.messages[&payload.message];
                        bytes.extend(&message[payload.offset..payload.offset + payload.length]);
                        assert_eq!(last, payload.offset + payload.length == message.len());
                        assert!(invalidate.is_none() || payload.offset == 0);
                        self.is_mid = !last;
                    } else {
                        assert!(!self.is_mid, "empty message between fragments");
                        assert!(!last && invalidate.is_none());
                    }
                    let granted = usize::from(self.conn.receive_credits());
                    assert!(
                        granted <= self.posted,
                        "{granted} granted, {} posted",
                        self.posted
                    );
                    self.outbox.push_back(Message { bytes, invalidate });
                    if self.completes {
                        self.conn.handle_send_done(now, 1);
                    }
                }
                Output::Deliver {
                    buffer,
                    data_offset,
                    data_length,
                    remaining,
                    first,
                    last,
                    invalidated,
                } => {
                    assert_eq!(first, self.assembling.is_empty());
                    assert_eq!(last, remaining == 0);
                    self.assembling
                        .extend(&buffer[data_offset..data_offset + data_length]);
                    self.tokens.extend(invalidated);
                    if last {
                        self.received.push(std::mem::take(&mut self.assembling));
                    }
                    if self.holds {
                        self.held += 1;
                    } else {
                        self.give_back(now, 1);
                    }
                }
                Output::Recycle { .. } => self.pool += 1,
                Output::Negotiated(negotiated) => {
                    assert!(self.negotiated.replace(negotiated).is_none());
                    assert_eq!(self.conn.negotiated(), Some(&negotiated));
                }
                Output::Disconnect { reason, drain } => {
                    assert!(
                        self.ended.replace((reason, drain)).is_none(),
                        "second disconnect"
                    );
                    assert_eq!(self.conn.next_timeout(), None);
                }
            }
            if self.conn.end_reason().is_none() {
                assert_eq!(self.posted, usize::from(self.conn.receives_posted()));
            }
        }
    }

    fn give_back(&mut self, now: Instant, count: usize) {
        self.pool += count;
        self.conn.handle_receives_available(now);
    }

    /// The upper layer gives back the buffers it holds.
    pub(super) fn release(&mut self, now: Instant) {
        let held = std::mem::take(&mut self.held);
        self.give_back(now, held);
        self.pump(now);
    }

    /// A message arrives.
    pub(super) fn receive(&mut self, now: Instant, message: Message) {
        assert!(
            self.posted > 0,
            "no receive posted for {:02x?}",
            message.bytes
        );
        if self.ended.is_none() {
            self.posted -= 1;
        }
        let Message { bytes, invalidate } = message;
        let first = bytes[..bytes.len().min(32)].to_vec();
        let len = bytes.len();
        self.conn
            .handle_receive(now, &first, len, bytes, invalidate);
        self.pump(now);
    }

    /// Queues a message and sends what can be sent.
    pub(super) fn send(&mut self, now: Instant, message: Vec<u8>) {
        self.queue(now, message, None);
        self.pump(now);
    }

    pub(super) fn queue(&mut self, now: Instant, message: Vec<u8>, invalidate: Option<u32>) {
        let key = self.next_key;
        self.next_key += 1;
        let sent = self.conn.send(now, key, message.len(), invalidate);
        assert_eq!(sent, Ok(()));
        self.sent.push(message.clone());
        self.messages.insert(key, message);
    }

    pub(super) fn timeout(&mut self, now: Instant) {
        self.conn.handle_timeout(now);
        self.pump(now);
    }

    pub(super) fn reason(&self) -> Option<EndReason> {
        self.ended.map(|(reason, _)| reason)
    }
}

/// Two ends and what is between them. End 0 is active, end 1 passive.
pub(super) struct Pair {
    pub(super) now: Instant,
    pub(super) ends: [End; 2],
    /// One-way delay of messages from each end.
    pub(super) delay: [Duration; 2],
    /// Messages on their way from each end.
    wire: [VecDeque<(Instant, Message)>; 2],
    /// Credits each end knows of, by what has arrived.
    known: [u32; 2],
    /// Messages that have been put on the wire by each end.
    pub(super) carried: [u64; 2],
    /// Cut: nothing arrives any more.
    pub(super) is_cut: bool,
}

impl Pair {
    pub(super) fn new(active: &Params, passive: &Params, pools: [usize; 2]) -> Self {
        let now = Instant::now();
        let mut pair = Self {
            now,
            ends: [
                End::new(Role::Active, active, pools[0], now),
                End::new(Role::Passive, passive, pools[1], now),
            ],
            delay: [Duration::from_micros(50); 2],
            wire: [VecDeque::new(), VecDeque::new()],
            known: [0; 2],
            carried: [0; 2],
            is_cut: false,
        };
        for end in &mut pair.ends {
            end.pump(now);
            assert_eq!(end.posted, 1, "a receive for the negotiate message");
        }
        pair
    }

    /// A pair that has negotiated.
    pub(super) fn established(active: &Params, passive: &Params, pools: [usize; 2]) -> Self {
        let mut pair = Self::new(active, passive, pools);
        pair.connect();
        pair.drive_until("negotiation", |p| {
            p.ends.iter().all(|e| e.negotiated.is_some())
        });
        pair
    }

    pub(super) fn connect(&mut self) {
        for end in &mut self.ends {
            end.conn.handle_established(self.now);
        }
        self.pump();
    }

    /// Lets both ends act and puts on the wire what they send.
    pub(super) fn pump(&mut self) {
        for from in 0..2 {
            let end = &mut self.ends[from];
            end.pump(self.now);
            while let Some(message) = end.outbox.pop_front() {
                self.carried[from] += 1;
                if self.carried[from] > 1 {
                    let header = message.header();
                    let known = &mut self.known[from];
                    assert!(*known > 0, "end {from} sends without a credit");
                    assert!(
                        *known > 1 || header.credits_granted > 0,
                        "end {from} spends its last credit without a grant"
                    );
                    *known -= 1;
                }
                let at = self.now + self.delay[from];
                self.wire[from].push_back((at, message));
            }
        }
    }

    /// Moves on to the next arrival, or to the next timer if that comes first. False when nothing
    /// will ever happen.
    pub(super) fn step(&mut self) -> bool {
        self.pump();
        let arrival = self
            .wire
            .iter()
            .filter_map(|w| w.front().map(|m| m.0))
            .min();
        let timer = self.ends.iter().filter_map(|e| e.conn.next_timeout()).min();
        let Some(next) = [arrival, timer].into_iter().flatten().min() else {
            return false;
        };
        self.now = self.now.max(next);
        for from in 0..2 {
            while self.wire[from].front().is_some_and(|m| m.0 <= self.now) {
                let Some((_, message)) = self.wire[from].pop_front() else {
                    break;
                };
                if self.is_cut {
                    continue;
                }
                self.known[from ^ 1] += match (from, message.bytes.len()) {
                    (1, 32) if self.known[0] == 0 && self.carried[0] == 1 => {
                        u32::from(u16::from_le_bytes([message.bytes[10], message.bytes[11]]))
                    }
                    (0, 20) if self.carried[1] == 0 => 0,
                    _ => message.header().credits_granted.into(),
                };
                self.ends[from ^ 1].receive(self.now, message);
            }
        }
        for end in &mut self.ends {
            end.timeout(self.now);
        }
        self.pump();
        true
    }

    /// Steps until `done`; `what` names it in the failure.
    pub(super) fn drive_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..1_000_000 {
            if done(self) {
                return;
            }
            assert!(
                self.step(),
                "{what}: nothing will ever happen\n{}",
                self.state()
            );
        }
        panic!("{what}: not reached\n{}", self.state());
    }

    /// Steps until so much time has passed.
    pub(super) fn drive_for(&mut self, time: Duration) {
        let end = self.now + time;
        self.pump();
        loop {
            let arrival = self
                .wire
                .iter()
                .filter_map(|w| w.front().map(|m| m.0))
                .min();
            let timer = self.ends.iter().filter_map(|e| e.conn.next_timeout()).min();
            match [arrival, timer].into_iter().flatten().min() {
                Some(next) if next <= end => assert!(self.step()),
                _ => break,
            }
        }
        self.now = end;
    }

    /// Everything queued has been received at the other end, unchanged and in order.
    pub(super) fn is_delivered(&self) -> bool {
        self.ends[0].received.len() == self.ends[1].sent.len()
            && self.ends[1].received.len() == self.ends[0].sent.len()
    }

    pub(super) fn assert_delivered(&self) {
        assert!(
            self.ends[0].received == self.ends[1].sent,
            "passive to active"
        );
        assert!(
            self.ends[1].received == self.ends[0].sent,
            "active to passive"
        );
        for end in &self.ends {
            assert_eq!(end.ended, None);
        }
    }

    pub(super) fn state(&self) -> String {
        let one = |e: &End| {
            format!(
                "{} ended {:?} queue {} sc {} granted {} posted {} target {} pool {} held {} \
                 in flight {} received {} {:?}\n",
                e.conn.phase_name(),
                e.ended,
                e.conn.queued(),
                e.conn.send_credits(),
                e.conn.receive_credits(),
                e.conn.receives_posted(),
                e.conn.receive_credit_target(),
                e.pool,
                e.held,
                e.conn.sends_in_flight(),
                e.received.len(),
                e.conn.stats(),
            )
        };
        self.ends.iter().map(one).collect()
    }
}
