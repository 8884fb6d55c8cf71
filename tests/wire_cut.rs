//! Connections whose peer does not answer, any more or for a while: both ends of the verbs fabric, and
//! a wire between two RoCE devices that lets nothing through. The wire is in a User-mode Linux guest,
//! which runs this program again.

#![cfg(feature = "verbs")]

mod common;
mod fabric_set;
#[path = "common/samba.rs"]
mod samba;
#[path = "common/uml.rs"]
mod uml;

use std::net::IpAddr;
use std::process::Command;

use smbdirect::fabric::verbs::{VerbsConfig, VerbsFabric};
use smbdirect::fabric::{EndReason, Fabric, FabricEvent, QpKey, Status, WrId};
use smbdirect::sys::Registry;

use fabric_set::cases;
use fabric_set::world::{filled, memory, World, A, ALL, B};
use uml::{isolated, kernel_and_tools, Bed, Guest, VERBS};

#[test]
fn retries_exceeded() {
    in_a_guest("retries_exceeded", nobody_answers);
}

#[test]
fn sent_again() {
    in_a_guest("sent_again", goes_on_after_a_cut);
}

/// Runs a test in a guest, over the address of its first device.
fn in_a_guest(test: &str, body: fn(IpAddr)) {
    // In the guest.
    if std::env::var_os("SMBDIRECT_TEST_RDMA").is_some() {
        let address = std::env::var("SMBDIRECT_TEST_ADDRESS").unwrap();
        let _ = env_logger::try_init();
        return body(address.parse().unwrap());
    }
    let Some(kernel) = kernel_and_tools(test, &VERBS) else {
        return;
    };
    if !isolated(test) {
        return;
    }
    let this = std::env::current_exe().unwrap();
    let settings = [
        ("FABRIC", "rxe".to_owned()),
        ("TESTS", format!("wire_cut {} {test}", this.display())),
    ];
    let guest = Guest::boot(&kernel, Bed::Wire, "tests", &settings);
    let ended = guest.finish(|question| Err(format!("nobody answers '{question}'")));
    assert_eq!(ended.passed, [format!("wire_cut::{test}")]);
}

/// What one end has outstanding when the wire is cut.
#[derive(Debug, Clone, Copy)]
enum Work {
    Send,
    Write,
    Read,
}

impl Work {
    /// What the fabric calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Send | Self::Write => "send, RDMA WRITE or bind",
            Self::Read => "RDMA READ",
        }
    }
}

/// The work request of every connection, and its receive.
const WORK: u64 = 1;
const RECV: u64 = 2;

fn two_fabrics(address: IpAddr) -> World {
    let make = |registry: Registry| -> Box<dyn Fabric> {
        Box::new(VerbsFabric::new(registry, VerbsConfig::default()).unwrap())
    };
    World::new(address, make)
}

/// A connection for each kind of work and each end that has it outstanding.
fn nobody_answers(address: IpAddr) {
    let mut world = two_fabrics(address);
    let mut connections = Vec::new();
    for side in [A, B] {
        for work in [Work::Send, Work::Write, Work::Read] {
            let (a, b) = world.connected();
            world.recv(A, a, RECV, &memory(64));
            world.recv(B, b, RECV, &memory(64));
            let (ours, theirs) = if side == A { (a, b) } else { (b, a) };
            connections.push((side, work, ours, theirs));
        }
    }
    cut(true);
    for &(side, work, ours, _) in &connections {
        post(&mut world, side, ours, work);
    }
    for &(side, work, ours, _) in &connections {
        // The failed work comes first, then what is flushed, then the end.
        let mut told = Vec::new();
        while told.len() < 3 {
            told.push(world.take(side, &format!("the end of {work:?}"), |event| {
                told_of(event, ours)
            }));
        }
        let reason = format!(
            "{}: the peer does not answer (retries exceeded)",
            work.name()
        );
        let expected = [
            Told::Done(Status::Failed),
            Told::Recv(Status::Flushed),
            Told::End(EndReason::Transport(reason)),
        ];
        assert_eq!(told, expected, "side {side}, {work:?}");
    }
    for device in ["veth0", "veth1"] {
        assert!(dropped(device) > 0, "{device}");
    }
    cut(false);
    // The other ends had nothing to send. They learn of it, since the goodbye is said again.
    for &(side, _, _, theirs) in &connections {
        let other = if side == A { B } else { A };
        let take =
            |world: &mut World| world.take(other, "the other end", |event| told_of(event, theirs));
        assert_eq!(take(&mut world), Told::Recv(Status::Flushed));
        assert_eq!(take(&mut world), Told::End(EndReason::PeerClosed));
    }
    world.check_quiet();
    // Nothing of it is left in the fabrics or the devices.
    cases::every_operation(&mut world);
}

/// Each end has work outstanding when the wire is cut, and makes a token meanwhile. All of it goes
/// through when the wire is good again, and the token holds.
fn goes_on_after_a_cut(address: IpAddr) {
    let mut world = two_fabrics(address);
    let mut ends = Vec::new();
    for side in [A, B] {
        let (a, b) = world.connected();
        world.speak_first(a, b);
        let (other, ours, theirs) = if side == A { (B, a, b) } else { (A, b, a) };
        let id = side as u64 * 10;
        // Memory of the peer's, and the message that makes its token usable.
        let shared = memory(SHARED);
        let fabric = world.fabric(other);
        let key = fabric.register(theirs, shared.clone(), ALL).unwrap();
        world.recv(side, ours, id, &memory(8));
        world.send(other, theirs, id, &memory(8));
        assert_eq!(world.take_recv(side, id), (8, None, Status::Success));
        assert_eq!(world.take_done(other, id), Status::Success);
        let inboxes = [memory(64), memory(64)];
        for (id, inbox) in (id..).zip(&inboxes) {
            world.recv(other, theirs, id, inbox);
        }
        ends.push((side, other, ours, theirs, shared, key, inboxes));
    }
    cut(true);
    let before = ["rxe0", "rxe1"].map(asked_again);
    let mut made = Vec::new();
    for (side, _, ours, _, _, key, _) in &ends {
        let (qp, id) = (*ours, *side as u64 * 10);
        let (back, target) = (memory(SHARED), memory(SHARED));
        let (written, token, offset) = (filled(SHARED, id), key.token, key.offset);
        world.send(*side, qp, id, &filled(64, id));
        let fabric = world.fabric(*side);
        fabric
            .post_write(qp, WrId(id + 2), written, token, offset)
            .unwrap();
        fabric
            .post_read(qp, WrId(id + 3), back.clone(), token, offset)
            .unwrap();
        let key = fabric.register(qp, target.clone(), ALL).unwrap();
        world.send(*side, qp, id + 1, &filled(64, id + 1));
        made.push((back, target, key));
    }
    world.run_until("both ask again", |_| {
        let now = ["rxe0", "rxe1"].map(asked_again);
        before.iter().zip(now).all(|(before, now)| now > *before)
    });
    cut(false);
    for (end, (back, target, key)) in ends.iter().zip(made) {
        let (side, other, _, theirs, shared, _, inboxes) = end;
        let id = *side as u64 * 10;
        for (id, inbox) in (id..).zip(inboxes) {
            let told = world.take_recv(*other, id);
            assert_eq!(told, (64, None, Status::Success), "side {side}");
            assert_eq!(inbox.to_vec(), filled(64, id).to_vec());
        }
        for work in id..id + 4 {
            assert_eq!(world.take_done(*side, work), Status::Success, "{work}");
        }
        let written = filled(SHARED, id).to_vec();
        assert!(shared.to_vec() == written && back.to_vec() == written);
        // By the new token.
        let (source, work) = (filled(SHARED, 9), WrId(id + 9));
        world
            .fabric(*other)
            .post_write(*theirs, work, source.clone(), key.token, key.offset)
            .unwrap();
        assert_eq!(world.take_done(*other, work.0), Status::Success);
        assert!(target.to_vec() == source.to_vec());
    }
    world.check_quiet();
}

/// Bytes that go by RDMA, several packets.
const SHARED: usize = 5000;

/// How often a device has asked again because nothing came.
fn asked_again(device: &str) -> u64 {
    let counters = format!("/sys/class/infiniband/{device}/ports/1/hw_counters");
    let text = std::fs::read_to_string(format!("{counters}/completer_retry_err")).unwrap();
    text.trim().parse().unwrap()
}

fn post(world: &mut World, side: usize, qp: QpKey, work: Work) {
    let ours = filled(100_000, 1);
    // It gets nowhere, so the token does not matter.
    let (id, token, offset) = (WrId(WORK), 0x1234, 0);
    match work {
        Work::Send => world.send(side, qp, WORK, &filled(64, 1)),
        Work::Write => world
            .fabric(side)
            .post_write(qp, id, ours, token, offset)
            .unwrap(),
        Work::Read => world
            .fabric(side)
            .post_read(qp, id, ours, token, offset)
            .unwrap(),
    }
}

#[derive(Debug, PartialEq)]
enum Told {
    Done(Status),
    Recv(Status),
    End(EndReason),
}

/// What an event says of one connection.
fn told_of(event: &FabricEvent, of: QpKey) -> Option<Told> {
    let (qp, told) = match event {
        FabricEvent::Done { qp, status, .. } => (qp, Told::Done(*status)),
        FabricEvent::Recv { qp, status, .. } => (qp, Told::Recv(*status)),
        FabricEvent::Disconnected { qp, reason } => (qp, Told::End(reason.clone())),
        _ => return None,
    };
    (*qp == of).then_some(told)
}

/// Lets nothing through, either way, or everything.
fn cut(is_cut: bool) {
    for device in ["veth0", "veth1"] {
        let line = match is_cut {
            true => format!("tc qdisc add dev {device} root netem loss 100%"),
            false => format!("tc qdisc del dev {device} root"),
        };
        uml::run(&line);
    }
}

/// Packets that netem took.
fn dropped(device: &str) -> u64 {
    let output = Command::new("tc")
        .args(["-s", "-j", "qdisc", "show", "dev", device])
        .output()
        .unwrap();
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    told[0]["drops"].as_u64().unwrap()
}
