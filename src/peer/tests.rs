//! Two endpoints in one thread over TCP on the loopback address.

use std::time::{Duration, Instant};

use super::*;
use crate::fabric::{Access, ConnectOptions, ListenOptions, Status};
use crate::mem::{MemSlice, Region};
use crate::proto::{self, Params};
use crate::wire::{DataTransfer, NegotiateRequest, NegotiateResponse};

/// An active and a passive endpoint, and what they told and nobody has asked for yet.
struct Pair {
    active: Endpoint,
    passive: Endpoint,
    told: [Vec<PeerEvent>; 2],
    address: std::net::SocketAddr,
}

const ACTIVE: usize = 0;
const PASSIVE: usize = 1;

impl Pair {
    fn new(active: Config, passive: Config) -> Self {
        let active = Endpoint::new(active).unwrap();
        let mut passive = Endpoint::new(passive).unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let (_, address) = passive.listen(any, &ListenOptions::default()).unwrap();
        Self {
            active,
            passive,
            told: Default::default(),
            address,
        }
    }

    fn options(&self) -> ConnectOptions {
        ConnectOptions {
            peer: self.address,
            crc: true,
            mpa_revision: 2,
            ird: 4,
            ord: 4,
            private_data: Vec::new(),
            timeout: Duration::from_secs(10),
        }
    }

    /// Runs both until `wanted` finds what it looks for in what one side told.
    fn until<T>(&mut self, side: usize, mut wanted: impl FnMut(&mut PeerEvent) -> Option<T>) -> T {
        let give_up = Instant::now() + Duration::from_secs(30);
        loop {
            let told = &mut self.told[side];
            for index in 0..told.len() {
                if let Some(found) = wanted(&mut told[index]) {
                    told.remove(index);
                    return found;
                }
            }
            assert!(Instant::now() < give_up, "only {:?}", self.told);
            let wait = Some(Duration::from_millis(1));
            self.active.poll(wait, &mut self.told[ACTIVE]).unwrap();
            let wait = Some(Duration::ZERO);
            self.passive.poll(wait, &mut self.told[PASSIVE]).unwrap();
        }
    }

    /// Connects and negotiates: the connection as each side calls it.
    fn connect(&mut self) -> (ConnectionId, ConnectionId) {
        let options = self.options();
        let id = self.active.connect(&options).unwrap();
        let connected = |event: &mut PeerEvent| match event {
            PeerEvent::Connected { connection, .. } => Some(*connection),
            _ => None,
        };
        assert_eq!(self.until(ACTIVE, connected), id);
        (id, self.until(PASSIVE, connected))
    }

    fn pdu(&mut self, side: usize) -> (Vec<u8>, Option<u32>) {
        self.until(side, |event| match event {
            PeerEvent::Pdu {
                pdu, invalidated, ..
            } => Some((pdu.to_vec(), *invalidated)),
            _ => None,
        })
    }

    fn raw(&mut self, side: usize) -> Vec<u8> {
        self.until(side, |event| match event {
            PeerEvent::Raw { message, .. } => Some(message.to_vec()),
            _ => None,
        })
    }

    fn end(&mut self, side: usize) -> (EndReason, ConnectionStats) {
        self.until(side, |event| match event {
            PeerEvent::Disconnected { reason, stats, .. } => Some((reason.clone(), *stats)),
            _ => None,
        })
    }

    fn rdma(&mut self, side: usize) -> (u64, Status) {
        self.until(side, |event| match event {
            PeerEvent::Rdma { cookie, status, .. } => Some((*cookie, *status)),
            _ => None,
        })
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn raw() -> Config {
    Config {
        raw: true,
        ..Config::default()
    }
}

#[test]
fn pdus_of_all_sizes_arrive_whole_and_in_order() {
    let mut pair = Pair::new(Config::default(), Config::default());
    let (active, passive) = pair.connect();
    let sizes = [1, 1340, 1341, 8112, 8113, 100_000, 1 << 20];
    for (cookie, &size) in sizes.iter().enumerate() {
        let bytes = pattern(size);
        let (head, tail) = bytes.split_at(size / 3);
        pair.active
            .send(active, &[head, tail], cookie as u64, None)
            .unwrap();
        pair.passive
            .send(passive, &[&bytes], cookie as u64, None)
            .unwrap();
    }
    for (cookie, &size) in sizes.iter().enumerate() {
        for side in [ACTIVE, PASSIVE] {
            assert!(pair.pdu(side).0 == pattern(size), "{size} bytes");
            let sent = pair.until(side, |event| match event {
                PeerEvent::Sent { cookie, .. } => Some(*cookie),
                _ => None,
            });
            assert_eq!(sent, cookie as u64);
        }
    }
    pair.active.disconnect(active);
    let (reason, stats) = pair.end(ACTIVE);
    assert_eq!(reason, EndReason::Proto(proto::EndReason::LocalClose));
    assert_eq!(stats.smbd.messages_sent, sizes.len() as u64);
    let total: usize = sizes.iter().sum();
    assert_eq!(stats.smbd.bytes_received, total as u64);
    let (reason, _) = pair.end(PASSIVE);
    assert!(matches!(reason, EndReason::Fabric(_)), "{reason:?}");
    assert_eq!(
        (pair.active.connections(), pair.passive.connections()),
        (0, 0)
    );
}

#[test]
fn a_message_beyond_what_the_peer_takes_is_refused() {
    let mut pair = Pair::new(Config::default(), Config::default());
    let (active, _) = pair.connect();
    let max = pair
        .active
        .negotiated(active)
        .unwrap()
        .max_fragmented_send_size as usize;
    let error = pair.active.send(active, &[&vec![0; max + 1]], 0, None);
    assert!(error.unwrap_err().to_string().contains("1048577"));
    assert!(pair.active.send(active, &[], 0, None).is_err());
}

#[test]
fn rdma_walks_descriptors() {
    let mut pair = Pair::new(Config::default(), Config::default());
    let (active, passive) = pair.connect();
    let both = Access {
        remote_read: true,
        remote_write: true,
    };
    let memory = MemSlice::from_bytes(&pattern(300_000)).unwrap();
    let descriptors: Vec<_> = [(0, 100_000), (100_000, 1), (100_001, 199_999)]
        .iter()
        .map(|&(at, len)| {
            let piece = memory.slice(at, len).unwrap();
            pair.active.register(active, piece, both).unwrap()
        })
        .collect();
    let region = Region::anonymous(200_000).unwrap();
    let target = MemSlice::new(&region, 0, 200_000).unwrap();
    pair.passive
        .rdma_read(passive, &target, &descriptors, 50_000, 7)
        .unwrap();
    assert_eq!(pair.rdma(PASSIVE), (7, Status::Success));
    assert!(target.to_vec() == pattern(300_000)[50_000..250_000]);

    // A WRITE and the PDU behind it: the bytes are there when the PDU is.
    let ones = MemSlice::from_bytes(&vec![1; 150_000]).unwrap();
    pair.passive
        .rdma_write(passive, &ones, &descriptors, 99_999, 8)
        .unwrap();
    let token = descriptors[0].token;
    pair.passive
        .send(passive, &[b"done"], 0, Some(token))
        .unwrap();
    assert_eq!(pair.pdu(ACTIVE), (b"done".to_vec(), Some(token)));
    let mut expected = pattern(300_000);
    expected[99_999..249_999].fill(1);
    assert!(memory.to_vec() == expected);
    assert_eq!(pair.rdma(PASSIVE), (8, Status::Success));
    assert!(!pair.active.deregister(active, token));
    assert!(pair.active.deregister(active, descriptors[1].token));

    let too_far = pair
        .passive
        .rdma_read(passive, &target, &descriptors, 100_001, 9);
    assert!(matches!(too_far, Err(PeerError::Range(_))), "{too_far:?}");
    let stats = pair.passive.stats(passive).unwrap();
    assert_eq!(
        (stats.rdma_read_bytes, stats.rdma_write_bytes),
        (200_000, 150_000)
    );

    // Memory that was taken back ends the connection of who still uses it.
    pair.passive
        .rdma_write(passive, &ones.slice(0, 10).unwrap(), &descriptors, 0, 10)
        .unwrap();
    let (reason, _) = pair.end(PASSIVE);
    assert!(matches!(reason, EndReason::Fabric(_)), "{reason:?}");
    assert!(matches!(pair.end(ACTIVE).0, EndReason::Fabric(_)));
}

#[test]
fn a_stopped_receiver_holds_the_sender_up() {
    let few = Params {
        receive_credit_max: 4,
        ..Params::default()
    };
    let passive = Config {
        passive: few,
        ..Config::default()
    };
    let mut pair = Pair::new(Config::default(), passive);
    let (active, passive) = pair.connect();
    pair.passive.set_receiving(passive, false);
    for cookie in 0..20 {
        pair.active.send(active, &[b"x"], cookie, None).unwrap();
    }
    // What the peer had credits for still comes, and nothing more.
    let mut came = 0;
    for _ in 0..200 {
        pair.active
            .poll(Some(Duration::ZERO), &mut pair.told[ACTIVE])
            .unwrap();
        pair.passive
            .poll(Some(Duration::from_millis(1)), &mut pair.told[PASSIVE])
            .unwrap();
    }
    pair.told[PASSIVE].retain(|event| {
        came += usize::from(matches!(event, PeerEvent::Pdu { .. }));
        !matches!(event, PeerEvent::Pdu { .. })
    });
    assert!(came <= 4, "{came} PDUs");
    pair.passive.set_receiving(passive, true);
    for _ in came..20 {
        assert_eq!(pair.pdu(PASSIVE).0, b"x");
    }
}

#[test]
fn connections_beyond_the_limit_are_refused() {
    let passive = Config {
        max_connections: 1,
        ..Config::default()
    };
    let mut pair = Pair::new(Config::default(), passive);
    pair.connect();
    let options = pair.options();
    pair.active.connect(&options).unwrap();
    let (reason, _) = pair.end(ACTIVE);
    let refused = matches!(
        reason,
        EndReason::Fabric(crate::fabric::EndReason::Refused(_))
    );
    assert!(refused, "{reason:?}");
}

#[test]
fn a_raw_side_can_speak_and_misbehave() {
    let mut pair = Pair::new(raw(), Config::default());
    let options = pair.options();
    let id = pair.active.connect(&options).unwrap();
    let request = NegotiateRequest {
        min_version: 0x0100,
        max_version: 0x0100,
        credits_requested: 10,
        preferred_send_size: 1364,
        max_receive_size: 8192,
        max_fragmented_size: 1 << 20,
    };
    pair.until(ACTIVE, |event| {
        matches!(event, PeerEvent::Established { .. }).then_some(())
    });
    pair.active.send_raw(id, &request.emit(), 1, None).unwrap();
    let response = NegotiateResponse::parse(&pair.raw(ACTIVE)).unwrap();
    assert_eq!(response.status, 0);
    // A probe is answered.
    let mut probe = DataTransfer {
        credits_requested: 10,
        credits_granted: 5,
        flags: DataTransfer::RESPONSE_REQUESTED,
        ..DataTransfer::default()
    };
    pair.active.send_raw(id, &probe.emit(), 2, None).unwrap();
    let answer = DataTransfer::parse(&pair.raw(ACTIVE)).unwrap();
    assert_eq!((answer.flags, answer.data_length), (0, 0));
    // An illegal message ends the connection, with the field's name.
    probe.credits_requested = 0;
    pair.active.send_raw(id, &probe.emit(), 3, None).unwrap();
    let (reason, _) = pair.end(PASSIVE);
    assert!(reason.to_string().contains("CreditsRequested"), "{reason}");
    pair.end(ACTIVE);
    let gone = pair.active.send_raw(id, b"", 4, None);
    assert!(matches!(gone, Err(PeerError::NoSuchConnection)));
}

#[test]
fn a_silent_peer_is_probed_and_then_given_up() {
    let quick = Params {
        keepalive_interval: Duration::from_millis(50),
        keepalive_response_timeout: Duration::from_millis(50),
        ..Params::default()
    };
    let passive = Config {
        passive: quick,
        ..Config::default()
    };
    let mut pair = Pair::new(raw(), passive);
    let options = pair.options();
    let id = pair.active.connect(&options).unwrap();
    let request = NegotiateRequest {
        min_version: 0x0100,
        max_version: 0x0100,
        credits_requested: 10,
        preferred_send_size: 1364,
        max_receive_size: 8192,
        max_fragmented_size: 1 << 20,
    };
    pair.active.send_raw(id, &request.emit(), 1, None).unwrap();
    pair.raw(ACTIVE);
    let grant = DataTransfer {
        credits_requested: 10,
        credits_granted: 5,
        ..DataTransfer::default()
    };
    pair.active.send_raw(id, &grant.emit(), 2, None).unwrap();
    let (reason, stats) = pair.end(PASSIVE);
    assert_eq!(reason, EndReason::Proto(proto::EndReason::KeepaliveTimeout));
    assert_eq!(stats.smbd.keepalives_sent, 1);
}
