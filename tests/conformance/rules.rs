//! Rules of `[MS-SMBD]` 3.1 that no case of the suite is about.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use smbdirect::client::{EventKind, Handle, SendPdu};
use smbdirect::fabric::{Access, ListenOptions};
use smbdirect::ipc::Params;
use smbdirect::mem::MemSlice;
use smbdirect::peer::{Config, Endpoint, PeerEvent};
use smbdirect::wire::{DataTransfer, NegotiateRequest, NegotiateResponse};

use crate::common::{connect_spec, open_at, test_address, test_kind, wait_for};
use crate::engine_process::EngineProcess;
use crate::samba::{send_signal, wait_until, Process};
use crate::smb::noise;
use crate::smbd_peer::{data, empty, request, Listening, SmbdPeer};
use crate::Bed;

/// An engine that connects to a scripted peer; nothing was answered yet.
struct Active {
    _engine: EngineProcess,
    client: Handle,
    peer: SmbdPeer,
    request: NegotiateRequest,
}

impl Active {
    fn new(name: &str) -> Self {
        let engine = EngineProcess::new(&format!("conformance-{name}"));
        let mut client = open_at(&engine.socket, false);
        let listening = Listening::new();
        client.connect(&connect_spec(listening.address)).unwrap();
        let mut peer = listening.accept();
        let (bytes, _) = peer.raw().unwrap();
        assert_eq!(bytes.len(), NegotiateRequest::LEN);
        assert_eq!(bytes[4..6], [0, 0], "Reserved");
        let request = NegotiateRequest::parse(&bytes).unwrap();
        Self {
            _engine: engine,
            client,
            peer,
            request,
        }
    }
}

/// A response that is as it has to be.
fn response() -> NegotiateResponse {
    NegotiateResponse {
        min_version: 0x0100,
        max_version: 0x0100,
        negotiated_version: 0x0100,
        credits_requested: 10,
        credits_granted: 10,
        status: 0,
        max_read_write_size: 1 << 20,
        preferred_send_size: 1024,
        max_receive_size: 1024,
        max_fragmented_size: 131_072,
    }
}

/// 3.1.5.2: what the request tells; 3.1.5.7: what is made of the response.
#[test]
fn the_active_side_negotiates() {
    let mut active = Active::new("active");
    let expected = NegotiateRequest {
        min_version: 0x0100,
        max_version: 0x0100,
        credits_requested: 255,
        preferred_send_size: 1364,
        max_receive_size: 8192,
        max_fragmented_size: 1 << 20,
    };
    assert_eq!(active.request, expected);
    active.peer.answer(active.request, response());
    wait_for(&mut active.client, EventKind::Attached);
    // It has ten credits and we have none: its first message grants, though there is no PDU.
    let first = active.peer.take().unwrap();
    assert!(first.is_empty());
    assert!(first.header.credits_granted > 0);
    assert_eq!(first.header.credits_requested, 255);
    active.peer.send_pdu(b"\xfeSMB hello").unwrap();
    let (event, bytes) = wait_for(&mut active.client, EventKind::PduReceived);
    assert_eq!(bytes, b"\xfeSMB hello");
    let pdu = noise(131_072, 1);
    crate::common::send(&mut active.client, event.connection, 1, &pdu);
    assert!(active.peer.receive_pdu().unwrap().0 == pdu);
}

/// 3.1.5.7: whatever is wrong with the response, the connection ends without a word.
#[test]
fn the_active_side_verifies_the_response() {
    type Change = fn(&mut NegotiateResponse);
    let changes: [Change; 9] = [
        |it| it.negotiated_version = 0x0101,
        |it| it.negotiated_version = 0,
        |it| it.status = 0xc000_009a,
        |it| it.max_receive_size = 127,
        |it| it.max_fragmented_size = 131_071,
        |it| it.credits_granted = 0,
        |it| it.credits_requested = 0,
        |it| it.preferred_send_size = 8193,
        |it| *it = NegotiateResponse::failure(0xc000_00bb),
    ];
    let engine = EngineProcess::new("conformance-responses");
    let mut client = open_at(&engine.socket, false);
    let mut ends = |bytes: &[u8]| {
        let listening = Listening::new();
        client.connect(&connect_spec(listening.address)).unwrap();
        let mut peer = listening.accept();
        peer.raw().unwrap();
        peer.send_bytes(bytes);
        peer.expect_end();
        let end = wait_for(&mut client, EventKind::Disconnected).0;
        assert_ne!(end.status, 0, "{bytes:02x?}");
    };
    for change in changes {
        let mut bad = response();
        change(&mut bad);
        ends(&bad.emit());
    }
    ends(&response().emit()[..31]);
}

/// 3.1.5.5: bytes behind the 32 mean nothing, nor do MinVersion and MaxVersion of a response.
#[test]
fn the_active_side_ignores_what_it_has_to() {
    let mut active = Active::new("ignores");
    let odd = NegotiateResponse {
        min_version: 0xffff,
        max_version: 0,
        ..response()
    };
    let mut bytes = odd.emit().to_vec();
    bytes[6..8].fill(0xff);
    bytes.resize(512, 0xee);
    active.peer.answer_bytes(active.request, odd, &bytes);
    wait_for(&mut active.client, EventKind::Attached);
    assert!(active.peer.take().unwrap().header.credits_granted > 0);
}

/// 3.1.5.3, 3.1.5.6, 3.1.5.9: receives are posted before they are granted, so all credits may be
/// used at once; afterwards there are more.
#[test]
fn all_credits_may_be_used_at_once() {
    let mut bed = Bed::new("at-once");
    for credits_requested in [1, 2, 3, 10, 255, 0xffff] {
        let request = NegotiateRequest {
            credits_requested,
            ..request()
        };
        let mut peer = SmbdPeer::negotiated_with(bed.address, request);
        peer.script.credits_requested = credits_requested;
        bed.attach(&mut peer);
        for _ in 0..20 {
            for _ in 0..peer.credits {
                peer.grant(1);
            }
            assert!(peer.take().unwrap().header.credits_granted > 0);
        }
    }
}

/// 3.1.5.9: never more than ReceiveCreditMax, whatever is asked for.
#[test]
fn no_more_than_receive_credit_max() {
    for most in [1, 2, 5] {
        let params = Params {
            receive_credit_max: most,
            ..Params::default()
        };
        let mut bed = Bed::with("credit-max", &params);
        let request = NegotiateRequest {
            credits_requested: 100,
            ..request()
        };
        let mut peer = SmbdPeer::negotiated_with(bed.address, request);
        peer.script.credits_requested = 100;
        let id = bed.attach(&mut peer);
        // All segments of a PDU have room in the owner's area, who only looks at whole ones here.
        let pdu = noise(10_000, 2);
        for _ in 0..20 {
            bed.send(id, &pdu);
            assert!(peer.receive_pdu().unwrap().0 == pdu);
            assert!(peer.credits <= most, "{} credits", peer.credits);
            peer.send_pdu(&pdu).unwrap();
            assert!(wait_for(&mut bed.owner, EventKind::PduReceived).1 == pdu);
        }
    }
}

/// 3.1.1.1: every legal value at its ends, of ours and of the peer's, and all of them together.
#[test]
fn the_ends_of_what_is_legal() {
    let least = Params {
        receive_credit_max: 1,
        send_credit_max: 1,
        max_send_size: 128,
        max_receive_size: 128,
        max_fragment_size: 131_072,
        max_read_write_size: 1 << 20,
        ..Params::default()
    };
    let most = Params {
        receive_credit_max: 65_535,
        send_credit_max: 65_535,
        max_send_size: 65_536,
        max_receive_size: 65_536,
        max_fragment_size: 64 << 20,
        max_read_write_size: 1 << 30,
        ..Params::default()
    };
    let few = Params {
        receive_credit_max: 1,
        send_credit_max: 1,
        ..most.clone()
    };
    let short = Params {
        max_send_size: 128,
        max_receive_size: 128,
        ..most.clone()
    };
    let all = |value: u32, credits_requested| NegotiateRequest {
        credits_requested,
        preferred_send_size: value,
        max_receive_size: value.max(128),
        max_fragmented_size: value.max(131_072),
        ..request()
    };
    for (i, params) in [least, most, few, short].iter().enumerate() {
        let mut bed = Bed::with(&format!("ends-{i}"), params);
        for request in [
            all(0, 1),
            all(0, 65_535),
            all(u32::MAX, 1),
            all(u32::MAX, 65_535),
        ] {
            let mut peer = SmbdPeer::negotiated_with(bed.address, request);
            peer.script.credits_requested = request.credits_requested;
            peer.script.grants = params.send_credit_max.min(255);
            let id = bed.attach(&mut peer);
            // As many segments as there is room for in the smallest area.
            let inward = 8 * (peer.response.max_receive_size as usize - 24);
            let outward = 8 * (peer.response.preferred_send_size as usize - 24);
            for round in 0..3 {
                let pdu = noise(inward.min(131_072) - round, 1);
                peer.send_pdu(&pdu).unwrap();
                assert!(wait_for(&mut bed.owner, EventKind::PduReceived).1 == pdu);
                let pdu = noise(outward.min(131_072) - round, 2);
                bed.send(id, &pdu);
                assert!(peer.receive_pdu().unwrap().0 == pdu);
            }
            assert!(peer.credits <= params.receive_credit_max);
        }
    }
}

/// 3.1.5.8: ReceiveCreditTarget is what was asked for last. Less takes nothing back; with one
/// credit the connection still works; more is given again.
#[test]
fn the_credit_target_follows_the_peer() {
    let mut bed = Bed::new("target");
    let (mut peer, id) = bed.attached(request());
    let mut exchange = |peer: &mut SmbdPeer, bytes: usize| {
        let pdu = noise(bytes, 3);
        peer.send_pdu(&pdu).unwrap();
        assert!(wait_for(&mut bed.owner, EventKind::PduReceived).1 == pdu);
        bed.send(id, &pdu);
        assert!(peer.receive_pdu().unwrap().0 == pdu);
    };
    exchange(&mut peer, 50_000);
    peer.script.credits_requested = 1;
    exchange(&mut peer, 50_000);
    // What it held has been used up; since then it gets one or, with a last credit, two.
    let held = peer.credits;
    assert!(held <= 2, "{held} credits");
    peer.script.credits_requested = 200;
    exchange(&mut peer, 120_000);
    let held = peer.credits;
    assert!(held > 50, "{held} credits");
}

/// 3.1.5.5: a message beyond the credits finds no receive, or is refused: the connection ends.
#[test]
fn a_message_without_a_credit_ends_the_connection() {
    let mut bed = Bed::new("no-credit");
    let (mut peer, _) = bed.attached(request());
    // Not one of them grants, so nothing can be granted in return.
    peer.script.grants = 0;
    while peer.granted > 0 {
        peer.probe(0).unwrap();
    }
    while peer.credits > 0 {
        peer.send(empty(0), &[]);
    }
    peer.send_bytes(&empty(0).emit());
    peer.until_end();
    bed.check_others();
}

/// 3.1.5.4: there is one Negotiate Request. A second is a Data Transfer message, and wrong as such.
#[test]
fn a_second_negotiate_request_ends_the_connection() {
    let mut bed = Bed::new("second");
    let (mut peer, _) = bed.attached(request());
    peer.send_bytes(&request().emit());
    peer.until_end();
    bed.check_others();
}

/// 2.2.1, 2.2.3: Reserved, unknown flags and padding are ignored.
#[test]
fn reserved_fields_are_ignored() {
    let mut bed = Bed::new("reserved");
    let mut peer = SmbdPeer::connect(bed.address);
    let mut bytes = request().emit();
    bytes[4..6].fill(0xff);
    peer.negotiate_bytes(request(), &bytes).unwrap();
    bed.attach(&mut peer);
    let pdu = b"\xfeSMB with padding";
    let header = DataTransfer {
        flags: 0xfffe,
        ..data(1, pdu.len() as u32, 0)
    };
    let mut bytes = header.emit_padded().to_vec();
    bytes[6..8].fill(0xff);
    bytes[20..24].fill(0xff);
    bytes.extend(pdu);
    peer.credits -= 1;
    peer.granted += 1;
    peer.send_bytes(&bytes);
    assert_eq!(wait_for(&mut bed.owner, EventKind::PduReceived).1, pdu);
    // Payload may start later, and the message end later.
    let mut bytes = DataTransfer {
        data_offset: 40,
        ..header
    }
    .emit()
    .to_vec();
    bytes.resize(40, 0xee);
    bytes.extend(pdu);
    bytes.resize(99, 0xee);
    peer.credits -= 1;
    peer.granted += 1;
    peer.send_bytes(&bytes);
    assert_eq!(wait_for(&mut bed.owner, EventKind::PduReceived).1, pdu);
}

/// 3.1.4.2: a PDU beyond the peer's MaxFragmentedSize is refused here, and nothing of it is sent.
#[test]
fn a_pdu_that_is_too_long_is_not_sent() {
    let mut bed = Bed::new("too-long");
    let (mut peer, id) = bed.attached(request());
    let pdu = noise(131_073, 4);
    let long = SendPdu {
        connection: id,
        cookie: 1,
        has_event: true,
        invalidate: None,
        length: pdu.len(),
    };
    let refused = bed.owner.queue_bytes(&long, &pdu).unwrap_err();
    assert_eq!(refused.errno(), libc::EMSGSIZE);
    bed.send(id, &pdu[..131_072]);
    assert!(peer.receive_pdu().unwrap().0 == pdu[..131_072]);
}

/// 3.1.1.1: the SendQueue is first in, first out.
#[test]
fn pdus_leave_in_their_order() {
    let mut bed = Bed::new("order");
    let (mut peer, id) = bed.attached(request());
    let lengths = [1, 5000, 999, 1000, 1001, 70_000, 20, 2000];
    for (seed, length) in lengths.into_iter().enumerate() {
        bed.send(id, &noise(length, seed as u64));
    }
    for (seed, length) in lengths.into_iter().enumerate() {
        let pdu = peer.receive_pdu().unwrap().0;
        assert!(pdu == noise(length, seed as u64), "{seed}");
    }
}

/// 3.1.5.4: a token to invalidate goes with one segment of its PDU; then it leads nowhere.
#[test]
fn a_token_goes_with_one_segment() {
    let mut bed = Bed::new("token");
    let (mut peer, id) = bed.attached(request());
    for length in [10, 5000] {
        let memory = MemSlice::from_bytes(&[0; 4096]).unwrap();
        let access = Access {
            remote_read: true,
            remote_write: false,
        };
        let token = peer.register(&memory, access).token;
        let pdu = noise(length, 5);
        let with_token = SendPdu {
            connection: id,
            cookie: 1,
            has_event: true,
            invalidate: Some(token),
            length,
        };
        bed.owner.queue_bytes(&with_token, &pdu).unwrap();
        bed.owner.submit().unwrap();
        let (got, invalidated) = peer.receive_pdu().unwrap();
        assert!(got == pdu);
        assert_eq!(invalidated, Some(token));
        assert!(!peer.deregister(token), "it is still there");
    }
}

/// 3.1.5.5: every message that comes puts the idle timer off. The interval is a second here; an
/// attempt in which this machine kept the peer from sending for that long says nothing.
#[test]
fn any_message_is_a_sign_of_life() {
    let interval = Duration::from_secs(1);
    let params = Params {
        keepalive_interval_msec: 1000,
        ..Params::default()
    };
    let mut bed = Bed::with("alive", &params);
    for _ in 0..10 {
        let (mut peer, _) = bed.attached(request());
        let (start, mut last) = (Instant::now(), Instant::now());
        let mut longest = Duration::ZERO;
        while start.elapsed() < 3 * interval {
            peer.send(empty(1), &[]);
            longest = longest.max(last.elapsed());
            last = Instant::now();
            while peer.has_news(interval / 8) {
                peer.take().unwrap();
            }
        }
        let was_probed = peer.log.iter().any(DataTransfer::is_response_requested);
        if longest < interval * 3 / 4 {
            assert!(!was_probed, "a probe to a peer that was heard");
            return;
        }
    }
    panic!("ten attempts with pauses of more than {interval:?}");
}

/// 3.1.5.5, 3.1.6.2: answers that came in time count, also when the engine could not look at them
/// until later, and also when there are more than it looks at in one go. An attempt in which this
/// machine kept peers from answering in time says nothing.
#[test]
fn answers_count_when_the_engine_was_stopped() {
    let response = Duration::from_secs(5);
    let params = Params {
        keepalive_interval_msec: 1000,
        ..Params::default()
    };
    let mut bed = Bed::with("stopped", &params);
    for _ in 0..5 {
        let first = Instant::now();
        let mut peers: Vec<_> = (0..300).map(|_| bed.attached(request()).0).collect();
        let start = Instant::now();
        // All of them are probed at about the same time.
        for peer in &mut peers {
            peer.grant(1);
        }
        // The first ones were asked before, while the others came.
        if first.elapsed() > response {
            continue;
        }
        let mut is_probed = |peer: &mut SmbdPeer| loop {
            match peer.take() {
                Ok(message) if message.header.is_response_requested() => return true,
                Ok(_) => {}
                Err(_) if start.elapsed() > response => return false,
                Err(end) => panic!("{end}"),
            }
        };
        if !peers.iter_mut().all(&mut is_probed) {
            continue;
        }
        let engine = bed.engine.pid();
        send_signal(engine, Signal::STOP);
        let is_in_time = start.elapsed() < response;
        for peer in &mut peers {
            peer.grant(1);
        }
        let has_news = peers[0].has_news(response + response / 4);
        send_signal(engine, Signal::CONT);
        if !is_in_time {
            continue;
        }
        assert!(!has_news, "it was stopped");
        let lost = peers.iter_mut().filter_map(|peer| peer.probe(1).err());
        assert_eq!(lost.collect::<Vec<_>>(), []);
        return;
    }
    panic!("five attempts in which the probes took longer than {response:?}");
}

/// In the environment of a process that is an endpoint and nothing else.
const AN_ENDPOINT: &str = "SMBDIRECT_TEST_ENDPOINT";
const RESPONSE: Duration = Duration::from_secs(5);

/// An endpoint that waits for one connection and tells its end.
fn be_an_endpoint() {
    let mut config = Config {
        kind: test_kind(),
        ..Config::default()
    };
    config.passive.keepalive_interval = Duration::from_secs(1);
    config.passive.keepalive_response_timeout = RESPONSE;
    let mut endpoint = Endpoint::new(config).unwrap();
    let any = (test_address(), 0).into();
    let (_, address) = endpoint.listen(any, &ListenOptions::default()).unwrap();
    println!("\nlistening on {address}");
    let mut events = Vec::new();
    loop {
        endpoint.poll(None, &mut events).unwrap();
        for event in events.drain(..) {
            if let PeerEvent::Disconnected { reason, .. } = event {
                println!("\nended: {reason:?}");
                return;
            }
        }
    }
}

/// The same for the endpoint that `ping` and `proxy` use.
#[test]
fn answers_count_when_an_endpoint_was_stopped() {
    if std::env::var_os(AN_ENDPOINT).is_some() {
        return be_an_endpoint();
    }
    for _ in 0..5 {
        let mut endpoint = Process::start(
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "--nocapture"])
                .arg("rules::answers_count_when_an_endpoint_was_stopped")
                .env(AN_ENDPOINT, "1")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped()),
        );
        let mut lines = BufReader::new(endpoint.take_pipes().1).lines();
        let mut line_with = |start: &str| loop {
            let line = lines.next().expect("the endpoint goes on").unwrap();
            if let Some(rest) = line.strip_prefix(start) {
                return rest.to_owned();
            }
        };
        let address = line_with("listening on ").parse().unwrap();
        let mut peer = SmbdPeer::negotiated_with(address, request());
        let start = Instant::now();
        peer.grant(1);
        let ended = loop {
            match peer.take() {
                Ok(message) if message.header.is_response_requested() => break None,
                Ok(_) => {}
                Err(error) => break Some(error),
            }
        };
        if let Some(error) = ended {
            // This process stood still for so long that the endpoint gave up.
            assert!(start.elapsed() >= RESPONSE, "{error:?}");
            continue;
        }
        endpoint.kill(Signal::STOP);
        let tasks = format!("/proc/{}/task", endpoint.pid());
        wait_until("all its threads have stopped", || {
            let tasks = std::fs::read_dir(&tasks).unwrap();
            tasks.into_iter().all(|task| {
                let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
                // Or it has ended, because that came too late.
                status.contains("State:\tT") || status.contains("State:\tZ")
            })
        });
        let is_in_time = start.elapsed() < RESPONSE;
        peer.grant(1);
        let has_news = peer.has_news(RESPONSE + RESPONSE / 4);
        endpoint.kill(Signal::CONT);
        if !is_in_time {
            continue;
        }
        assert!(!has_news, "it was stopped");
        peer.probe(1).unwrap();
        peer.abort();
        assert!(!line_with("ended: ").contains("keepalive"));
        return;
    }
    panic!("five attempts in which a probe took longer than {RESPONSE:?}");
}

/// Numbers without a pattern, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// Peers that keep the rules in all kinds of ways: everything arrives, in both directions at once,
/// and every message that comes is checked. More of them with SMBDIRECT_TEST_SEEDS=NUMBER.
#[test]
fn peers_of_all_kinds() {
    let mut bed = Bed::new("kinds");
    let seeds = std::env::var("SMBDIRECT_TEST_SEEDS").ok();
    let seeds = seeds.map_or(40, |number| number.parse().unwrap());
    for seed in 1..=seeds {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let credits = [1, 2, 3, 5, 10, 33, 100, 255, 1000];
        let sizes = [128, 129, 1024, 1364, 8192, 65_536];
        let request = NegotiateRequest {
            credits_requested: dice.pick(&credits),
            preferred_send_size: dice.pick(&sizes),
            max_receive_size: dice.pick(&sizes),
            ..request()
        };
        let mut peer = SmbdPeer::negotiated_with(bed.address, request);
        peer.script.credits_requested = request.credits_requested;
        // It has receives for so many.
        peer.script.grants = dice.pick(&credits).min(255).into();
        peer.script.grant_batch = (peer.script.grants * 3 / 4).max(1);
        let id = bed.attach(&mut peer);
        let longest = peer.response.max_receive_size as usize - 24;
        for round in 0..12 {
            let what = format!("seed {seed}, round {round}");
            peer.script.segments = (0..1 + dice.below(9))
                .map(|_| dice.below(longest) + 1)
                .collect();
            if dice.below(2) == 0 {
                peer.script.segments.insert(0, 0);
            }
            // At most so many segments on average as the owner's area has room for.
            let average = peer.script.segments.iter().sum::<usize>() / peer.script.segments.len();
            let inward: Vec<_> = (0..dice.below(3))
                .map(|i| noise(1 + dice.below(average.max(1) * 40), i as u64))
                .collect();
            let outward: Vec<_> = (0..dice.below(4))
                .map(|i| noise(1 + dice.below(30_000), i as u64))
                .collect();
            for pdu in &outward {
                bed.send(id, pdu);
            }
            for pdu in &inward {
                peer.send_pdu(pdu).unwrap();
            }
            for pdu in &outward {
                assert!(peer.receive_pdu().unwrap().0 == *pdu, "{what}");
            }
            for pdu in &inward {
                let got = wait_for(&mut bed.owner, EventKind::PduReceived).1;
                assert!(got == *pdu, "{what}");
            }
            match dice.below(6) {
                0 if peer.credits > 0 && peer.granted > 0 => {
                    assert_eq!(peer.probe(1).unwrap().header.flags, 0, "{what}");
                }
                1 => peer.script.credits_requested = dice.pick(&credits),
                _ => {}
            }
        }
    }
}

/// 3.1.7.1: the upper layer is told, however the connection ends, and can use it no more.
#[test]
fn the_owner_is_told_of_the_end() {
    let mut bed = Bed::new("told");
    for is_violation in [false, true] {
        let (mut peer, id) = bed.attached(request());
        if is_violation {
            peer.send_bytes(&[0; 7]);
        } else {
            peer.abort();
        }
        let end = wait_for(&mut bed.owner, EventKind::Disconnected).0;
        assert_eq!(end.connection, id);
        assert!(end.status < 0);
        let pdu = SendPdu {
            connection: id,
            cookie: 1,
            has_event: false,
            invalidate: None,
            length: 1,
        };
        assert!(bed.owner.queue_bytes(&pdu, b"x").is_err());
    }
}
