//! Which handle gets a new connection, and how a connection changes hands: the three tiers, and
//! hand-over by a token. Both ends are handles on one engine, over 127.0.0.1.

#[path = "common/engine_host.rs"]
mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{
    binding, connect_and_send, connect_spec, negotiate, send, smb2_header, status_at, test_address,
    test_fabric, until_end, until_status, wait_for, TestEngine, PATIENCE,
};
use smbdirect::client::{EventKind, Handle, OpenOptions};
use smbdirect::engine::{Config, Listen};
use smbdirect::ipc::{Fabric, Params, SessionSpec, Status};
use smbdirect::ring::{flags, AreaOptions};

const GUID: [u8; 16] = *b"client-guid-0001";
const DIALECTS: &[u16] = &[0x0300, 0x0302, 0x0311];

/// An engine, the server's parent that listens on it, and where.
struct Server {
    engine: TestEngine,
    parent: Handle,
    address: SocketAddr,
}

impl Server {
    fn start(change: impl FnOnce(&mut Config), params: &Params) -> Self {
        let engine = TestEngine::start_with(change);
        let mut parent = engine.open(true);
        parent.set_params(params).unwrap();
        let address = engine.listen(&mut parent);
        Self {
            engine,
            parent,
            address,
        }
    }

    fn plain() -> Self {
        Self::start(|_| (), &Params::default())
    }

    /// The engine answers NEGOTIATE itself.
    fn answering() -> Self {
        let params = Params {
            answer_negotiate: true,
            security_blob: b"security-blob".to_vec(),
            server_guid: *b"server-guid-0001",
            capabilities: 0xc, // LARGE_MTU, MULTI_CHANNEL
            ..Params::default()
        };
        Self::start(|_| (), &params)
    }

    fn open_with(&self, area: AreaOptions) -> Handle {
        let options = OpenOptions {
            socket: self.engine.socket.clone(),
            area,
            timeout: PATIENCE,
            ..Default::default()
        };
        Handle::open(options).unwrap()
    }

    /// A connection that `worker` has accepted: its ids at the client and at the worker. The
    /// NEGOTIATE has been taken.
    fn connected(&mut self, client: &mut Handle, worker: &mut Handle) -> (u64, u64) {
        let active = connect_and_send(client, self.address, &negotiate([0; 16], DIALECTS));
        let offer = wait_for(&mut self.parent, EventKind::Offered).0;
        let passive = worker.accept(offer.token).unwrap();
        let got = wait_for(worker, EventKind::PduReceived).1;
        assert_eq!(got, negotiate([0; 16], DIALECTS));
        assert_eq!(wait_for(client, EventKind::PduSent).0.status, 0);
        (active, passive)
    }

    fn until_rejected(&self, reason: &str) {
        until_status(&self.engine.socket, reason, |status| {
            status.engine.rejected.get(reason) == Some(&1)
        });
    }
}

fn guid(client_guid: [u8; 16], remove: bool) -> SessionSpec {
    SessionSpec {
        session_id: None,
        client_guid: Some(client_guid),
        remove,
    }
}

fn session(id: u64, remove: bool) -> SessionSpec {
    SessionSpec {
        session_id: Some(id),
        client_guid: None,
        remove,
    }
}

fn errno<T: std::fmt::Debug>(result: Result<T, smbdirect::client::ClientError>) -> i32 {
    result.unwrap_err().errno()
}

#[test]
fn a_registered_client_guid_attracts_its_connections() {
    let mut server = Server::plain();
    let (mut worker, mut client) = (server.engine.open(false), server.engine.open(false));
    worker.set_session(&guid(GUID, false)).unwrap();
    let request = negotiate(GUID, DIALECTS);

    connect_and_send(&mut client, server.address, &request);
    let attached = wait_for(&mut worker, EventKind::Attached).0;
    assert_eq!(attached.flags, flags::ROUTED);
    let (event, got) = wait_for(&mut worker, EventKind::PduReceived);
    assert_eq!((event.connection, event.flags), (attached.connection, 0));
    assert_eq!(got, request);
    assert!(server.parent.next_event().unwrap().is_none());

    // Not registered any more: the parent is asked.
    worker.set_session(&guid(GUID, true)).unwrap();
    let mut second = server.engine.open(false);
    connect_and_send(&mut second, server.address, &request);
    wait_for(&mut server.parent, EventKind::Offered);

    // A handle that closes takes its registration along, and a connection that it has used.
    send(&mut worker, attached.connection, 1, b"response");
    wait_for(&mut client, EventKind::PduReceived);
    worker.set_session(&guid(GUID, false)).unwrap();
    worker.close().unwrap();
    let mut third = server.engine.open(false);
    connect_and_send(&mut third, server.address, &request);
    wait_for(&mut server.parent, EventKind::Offered);
    assert_eq!(until_end(&mut client).1, -libc::ECONNRESET);
}

/// An smbd ends when its client's last connection has gone; the client may be back before that.
#[test]
fn an_owner_that_ends_does_not_take_a_new_connection_along() {
    let mut server = Server::plain();
    let (mut dying, mut client) = (server.engine.open(false), server.engine.open(false));
    dying.set_session(&guid(GUID, false)).unwrap();
    let request = negotiate(GUID, DIALECTS);
    let (mine, _) = (
        connect_and_send(&mut client, server.address, &request),
        wait_for(&mut dying, EventKind::PduReceived),
    );
    dying.close().unwrap();

    let offer = wait_for(&mut server.parent, EventKind::Offered).0;
    let mut worker = server.engine.open(false);
    let id = worker.accept(offer.token).unwrap();
    assert_eq!(wait_for(&mut worker, EventKind::PduReceived).1, request);
    send(&mut worker, id, 1, b"response");
    let (event, got) = wait_for(&mut client, EventKind::PduReceived);
    assert_eq!((event.connection, &got[..]), (mine, &b"response"[..]));

    // It is forgiven once: a NEGOTIATE that kills its server does not kill another one after that.
    let mut second = server.engine.open(false);
    connect_and_send(&mut second, server.address, &request);
    for _ in 0..2 {
        let offer = wait_for(&mut server.parent, EventKind::Offered).0;
        let mut victim = server.engine.open(false);
        victim.accept(offer.token).unwrap();
        victim.close().unwrap();
    }
    assert_eq!(until_end(&mut second).1, -libc::ECONNRESET);
    assert!(server.parent.next_event().unwrap().is_none());
}

#[test]
fn an_id_belongs_to_one_handle() {
    let server = Server::plain();
    let (mut one, mut two) = (server.engine.open(false), server.engine.open(false));
    for spec in [guid, |_, remove| session(7, remove)] {
        one.set_session(&spec(GUID, false)).unwrap();
        one.set_session(&spec(GUID, false)).unwrap();
        assert_eq!(errno(two.set_session(&spec(GUID, false))), libc::EEXIST);
        assert_eq!(errno(two.set_session(&spec(GUID, true))), libc::EEXIST);
        one.set_session(&spec(GUID, true)).unwrap();
        assert_eq!(errno(one.set_session(&spec(GUID, true))), libc::ENOENT);
        two.set_session(&spec(GUID, false)).unwrap();
    }
}

#[test]
fn the_engine_answers_negotiate_and_routes_by_session() {
    let server = Server::answering();
    let mut worker = server.engine.open(false);
    worker.set_session(&session(0x1122_3344, false)).unwrap();
    for (dialects, answer) in [
        (&[0x0300][..], 0x0300u16),
        (&[0x0300, 0x0302], 0x0302),
        (&[0x0202, 0x0210, 0x0300, 0x0302, 0x0311], 0x0311),
    ] {
        let mut client = server.engine.open(false);
        let request = negotiate(GUID, dialects);
        let active = connect_and_send(&mut client, server.address, &request);
        let response = wait_for(&mut client, EventKind::PduReceived).1;
        assert_eq!(response[..4], *b"\xfeSMB");
        assert_eq!(response[8..12], [0; 4], "Status");
        assert_eq!(response[68..70], answer.to_le_bytes(), "DialectRevision");
        assert_eq!(response[72..88], *b"server-guid-0001");
        assert_eq!(response[128..141], *b"security-blob");

        let setup = binding(0x1122_3344);
        send(&mut client, active, 2, &setup);
        let attached = wait_for(&mut worker, EventKind::Attached).0;
        assert_eq!(attached.flags, flags::ROUTED);
        for (bits, bytes) in [
            (flags::NEGOTIATE_REQUEST, &request),
            (flags::NEGOTIATE_RESPONSE, &response),
            (0, &setup),
        ] {
            let (event, got) = wait_for(&mut worker, EventKind::PduReceived);
            assert_eq!((event.connection, event.flags), (attached.connection, bits));
            assert_eq!(got, *bytes);
        }
        // The owner answers from here on.
        send(&mut worker, attached.connection, 3, b"\xfeSMB the owner's");
        let got = wait_for(&mut client, EventKind::PduReceived).1;
        assert_eq!(got, b"\xfeSMB the owner's");
    }
}

#[test]
fn an_unknown_session_gets_an_error_and_is_dropped() {
    let server = Server::answering();
    let mut worker = server.engine.open(false);
    worker.set_session(&session(1, false)).unwrap();
    let mut client = server.engine.open(false);
    let active = connect_and_send(&mut client, server.address, &negotiate(GUID, DIALECTS));
    wait_for(&mut client, EventKind::PduReceived);
    send(&mut client, active, 2, &binding(2));
    let (pdus, status) = until_end(&mut client);
    assert_eq!(status, -libc::ECONNRESET);
    assert_eq!(pdus.len(), 1);
    // STATUS_USER_SESSION_DELETED ([MS-SMB2] 3.3.5.5), in answer to SESSION_SETUP.
    assert_eq!(pdus[0][8..12], 0xc000_0203u32.to_le_bytes());
    assert_eq!(pdus[0][12..14], [1, 0]);
    assert!(worker.next_event().unwrap().is_none());
}

#[test]
fn what_is_no_negotiate_is_dropped() {
    let mut server = Server::plain();
    for first in [binding(1), vec![0x5a; 100], smb2_header(3, 0, 0), vec![0]] {
        let mut client = server.engine.open(false);
        connect_and_send(&mut client, server.address, &first);
        let (pdus, status) = until_end(&mut client);
        assert_eq!((pdus.len(), status), (0, -libc::ECONNRESET));
    }
    // The first PDU may not be longer than any first PDU is.
    let mut client = server.engine.open(false);
    let mut long = negotiate(GUID, DIALECTS);
    long.resize(200_000, 0);
    connect_and_send(&mut client, server.address, &long);
    assert_eq!(until_end(&mut client).1, -libc::ECONNRESET);
    assert!(server.parent.next_event().unwrap().is_none());
}

#[test]
fn the_parent_rejects_an_offer() {
    let mut server = Server::plain();
    let (mut worker, mut client) = (server.engine.open(false), server.engine.open(false));
    connect_and_send(&mut client, server.address, &negotiate(GUID, DIALECTS));
    let token = wait_for(&mut server.parent, EventKind::Offered).0.token;
    assert_eq!(errno(worker.reject(token)), libc::EPERM);
    server.parent.reject(token).unwrap();
    assert_eq!(errno(server.parent.reject(token)), libc::ENOENT);
    assert_eq!(errno(worker.accept(token)), libc::ENOENT);
    assert_eq!(until_end(&mut client).1, -libc::ECONNRESET);
}

#[test]
fn an_offer_does_not_wait_for_ever() {
    let mut server = Server::start(
        |config| config.offer_timeout = Duration::from_millis(20),
        &Params::default(),
    );
    let (mut worker, mut client) = (server.engine.open(false), server.engine.open(false));
    connect_and_send(&mut client, server.address, &negotiate(GUID, DIALECTS));
    let token = wait_for(&mut server.parent, EventKind::Offered).0.token;
    assert_eq!(until_end(&mut client).1, -libc::ECONNRESET);
    assert_eq!(errno(worker.accept(token)), libc::ENOENT);
    server.until_rejected("nobody accepted the offer in time");
}

#[test]
fn a_silent_connection_does_not_wait_for_ever() {
    let server = Server::start(
        |config| config.first_pdu_timeout = Duration::from_millis(20),
        &Params::default(),
    );
    let mut client = server.engine.open(false);
    client.connect(&connect_spec(server.address)).unwrap();
    assert_eq!(until_end(&mut client).1, -libc::ECONNRESET);
    server.until_rejected("no NEGOTIATE in time");
}

#[test]
fn without_a_parent_nothing_new_is_taken() {
    let engine = TestEngine::start_with(|config| {
        config.listen.push(Listen {
            fabric: test_fabric(),
            address: (test_address(), 0).into(),
            is_default_port: false,
            options: Default::default(),
        })
    });
    let address = engine.status().listeners[0].address;
    let mut parent = engine.open(true);
    parent.set_params(&Params::default()).unwrap();
    let mut client = engine.open(false);
    let active = client.connect(&connect_spec(address)).unwrap();
    wait_for(&mut client, EventKind::Attached);
    parent.close().unwrap();
    // Negotiated before, without an owner: nobody is left to offer it to.
    send(&mut client, active, 1, &negotiate(GUID, DIALECTS));
    assert_eq!(until_end(&mut client).1, -libc::ECONNRESET);
    // After it, refused at once.
    client.connect(&connect_spec(address)).unwrap();
    assert_eq!(until_end(&mut client).1, -libc::ECONNREFUSED);
}

#[test]
fn a_connection_changes_hands() {
    let mut server = Server::plain();
    let mut handles: Vec<_> = (0..3).map(|_| server.engine.open(false)).collect();
    let [client, old, new] = &mut handles[..] else {
        unreachable!()
    };
    let (active, passive) = server.connected(client, old);
    let token = old.export(passive).unwrap();
    assert_eq!(old.export(passive).unwrap(), token);
    // Sent while nobody may have it: it is the new owner's.
    let late: Vec<u8> = (0..5_000u32).map(|i| (i % 253) as u8).collect();
    send(client, active, 5, &late);
    assert_eq!(wait_for(client, EventKind::PduSent).0.cookie, 5);
    assert_eq!(errno(old.accept(token)), libc::EALREADY);
    let moved = new.accept(token).unwrap();
    let attached = wait_for(new, EventKind::Attached).0;
    assert_eq!((attached.connection, attached.flags), (moved, 0));
    assert!(wait_for(new, EventKind::PduReceived).1 == late);
    let (pdus, status) = until_end(old);
    assert_eq!((pdus.len(), status), (0, -libc::EREMCHG));
    // A token is good for one time.
    assert_eq!(errno(old.accept(token)), libc::ENOENT);
    send(new, moved, 6, b"\xfeSMB from the new owner");
    let got = wait_for(client, EventKind::PduReceived).1;
    assert_eq!(got, b"\xfeSMB from the new owner");
    // A connection with work of its owner moves to nobody.
    assert_eq!(wait_for(new, EventKind::PduSent).0.cookie, 6);
    // Back again.
    let back = new.export(moved).unwrap();
    let again = old.accept(back).unwrap();
    send(client, active, 7, b"\xfeSMB to the first owner");
    let (event, got) = wait_for(old, EventKind::PduReceived);
    assert_eq!(event.connection, again);
    assert_eq!(got, b"\xfeSMB to the first owner");
    assert_eq!(server.engine.status().engine.counters.connections_moved, 2);
}

/// A handle without connections gives its pages back, but none that a device has registered, or a
/// receive stands for: those would be other ones to the device than to everybody else.
#[test]
fn pages_go_when_no_device_has_them() {
    let mut server = Server::plain();
    let mut handles: Vec<_> = (0..3).map(|_| server.engine.open(false)).collect();
    let [client, old, new] = &mut handles[..] else {
        unreachable!()
    };
    let (active, passive) = server.connected(client, old);
    let large: Vec<u8> = (0..1_000_000u32).map(|i| (i * 7 % 251) as u8).collect();
    send(client, active, 5, &large);
    assert!(wait_for(old, EventKind::PduReceived).1 == large);
    let socket = server.engine.socket.clone();
    let committed = |status: &Status| {
        let handles = status.handles.iter().filter(|it| !it.parent);
        handles.map(|it| it.committed_bytes).collect::<Vec<_>>()
    };
    let registered = |status: &Status| status.engine.memory.registered_bytes[&test_fabric()];
    let busy = status_at(&socket);
    assert!(committed(&busy)[1] > large.len() as u64, "{busy:?}");
    if test_fabric() == Fabric::Verbs {
        let memory = &busy.engine.memory;
        assert!(registered(&busy) > 0, "{memory:?}");
        assert!(memory.pinned_bytes >= registered(&busy), "{memory:?}");
    }
    // It moves away. Receives still stand in the first owner's slots; the peer uses them up.
    let token = old.export(passive).unwrap();
    let moved = new.accept(token).unwrap();
    assert_eq!(until_end(old).1, -libc::EREMCHG);
    for cookie in 0..300 {
        let pdu = [b"\xfeSMB", &[cookie as u8; 2000][..]].concat();
        send(client, active, 100 + cookie, &pdu);
        assert!(wait_for(new, EventKind::PduReceived).1 == pdu, "{cookie}");
    }
    let is_small = |bytes: u64| bytes < 500_000;
    until_status(&socket, "given back", |status| {
        is_small(committed(status)[1])
    });
    // And comes back, to other pages.
    let token = new.export(moved).unwrap();
    let again = old.accept(token).unwrap();
    send(client, active, 7, &large);
    assert!(wait_for(old, EventKind::PduReceived).1 == large);
    send(old, again, 8, &large);
    assert!(wait_for(client, EventKind::PduReceived).1 == large);
    // Nobody has anything of the old kind when all is over.
    old.disconnect(again).unwrap();
    until_end(client);
    until_end(old);
    until_status(&socket, "given back", |status| {
        let all = committed(status);
        registered(status) == 0 && all.into_iter().all(is_small)
    });
}

#[test]
fn sending_ends_an_export() {
    let mut server = Server::plain();
    let mut handles: Vec<_> = (0..3).map(|_| server.engine.open(false)).collect();
    let [client, old, new] = &mut handles[..] else {
        unreachable!()
    };
    let (active, passive) = server.connected(client, old);
    let token = old.export(passive).unwrap();
    send(client, active, 5, b"\xfeSMB held");
    assert_eq!(wait_for(client, EventKind::PduSent).0.cookie, 5);
    send(old, passive, 6, b"\xfeSMB I keep it");
    let got = wait_for(client, EventKind::PduReceived).1;
    assert_eq!(got, b"\xfeSMB I keep it");
    assert_eq!(errno(new.accept(token)), libc::ENOENT);
    assert_eq!(wait_for(old, EventKind::PduReceived).1, b"\xfeSMB held");
    // So does asking for PDUs again.
    let token = old.export(passive).unwrap();
    old.set_receive(passive, true).unwrap();
    assert_eq!(errno(new.accept(token)), libc::ENOENT);
}

/// During an export the peer gets no more credits: it has to wait, nothing is lost, and the engine
/// holds no more than those credits carry.
#[test]
fn a_peer_that_sends_on_during_an_export_waits() {
    let params = Params {
        receive_credit_max: 20,
        max_fragment_size: 131_072,
        ..Params::default()
    };
    let mut server = Server::start(|_| (), &params);
    let mut handles: Vec<_> = (0..3).map(|_| server.engine.open(false)).collect();
    let [client, old, new] = &mut handles[..] else {
        unreachable!()
    };
    let (active, mut passive) = server.connected(client, old);
    let pdu = |round: u8, number: u8| vec![round ^ number; 100_000];
    for (round, is_moved) in [(0, true), (8, false), (16, true)] {
        let token = old.export(passive).unwrap();
        for number in 0..8 {
            send(client, active, number.into(), &pdu(round, number));
        }
        let status = until_status(&server.engine.socket, "out of credits", |status| {
            let mut passive = status.connections.iter().filter(|it| !it.active);
            passive.all(|it| it.receive_credits == 0 && it.state == "exported")
        });
        let sent = status.connections.iter().find(|it| it.active).unwrap();
        assert!(sent.bytes_sent <= 800_000 * u64::from(round / 8) + 226 + 21 * 8192);
        if is_moved {
            passive = new.accept(token).unwrap();
            assert_eq!(until_end(old).1, -libc::EREMCHG);
            std::mem::swap(old, new);
        } else {
            old.set_receive(passive, true).unwrap();
        }
        for number in 0..8 {
            assert!(wait_for(old, EventKind::PduReceived).1 == pdu(round, number));
        }
    }
}

/// Receives that were posted in the old owner's area go back to it.
#[test]
fn moving_to_and_fro_costs_no_receive_slots() {
    let mut server = Server::plain();
    let area = AreaOptions {
        receive_slots: 64,
        ..AreaOptions::default()
    };
    let (mut old, mut new) = (server.open_with(area), server.open_with(area));
    let mut client = server.engine.open(false);
    let (active, mut passive) = server.connected(&mut client, &mut old);
    for round in 0..40 {
        let token = old.export(passive).unwrap();
        passive = new.accept(token).unwrap();
        std::mem::swap(&mut old, &mut new);
        for cookie in 0..20 {
            let pdu = format!("\u{fe}SMB {round} {cookie}").into_bytes();
            send(&mut client, active, cookie, &pdu);
            assert_eq!(wait_for(&mut old, EventKind::PduReceived).1, pdu);
        }
        wait_for(&mut new, EventKind::Disconnected);
    }
}

#[test]
fn an_export_outlives_its_owner_for_a_while() {
    let mut server = Server::plain();
    let (mut client, mut old) = (server.engine.open(false), server.engine.open(false));
    let (active, passive) = server.connected(&mut client, &mut old);
    let token = old.export(passive).unwrap();
    old.close().unwrap();
    drop(old);
    send(&mut client, active, 5, b"\xfeSMB to an orphan");
    assert_eq!(wait_for(&mut client, EventKind::PduSent).0.cookie, 5);
    let mut new = server.engine.open(false);
    let moved = new.accept(token).unwrap();
    assert_eq!(
        wait_for(&mut new, EventKind::PduReceived).1,
        b"\xfeSMB to an orphan"
    );
    new.disconnect(moved).unwrap();
    assert_eq!(until_end(&mut client).1, -libc::ECONNRESET);
}

#[test]
fn an_export_that_nobody_takes_ends() {
    let mut server = Server::start(
        |config| config.export_timeout = Duration::from_millis(20),
        &Params::default(),
    );
    let (mut client, mut old) = (server.engine.open(false), server.engine.open(false));
    let (_, passive) = server.connected(&mut client, &mut old);
    let token = old.export(passive).unwrap();
    old.close().unwrap();
    assert_eq!(until_end(&mut client).1, -libc::ECONNRESET);
    server.until_rejected("nobody took over the exported connection in time");
    let mut new = server.engine.open(false);
    assert_eq!(errno(new.accept(token)), libc::ENOENT);
}

#[test]
fn the_engine_takes_no_more_than_max_connections() {
    // Both ends are this engine's.
    let mut server = Server::start(|config| config.max_connections = 2, &Params::default());
    let (mut client, mut worker) = (server.engine.open(false), server.engine.open(false));
    server.connected(&mut client, &mut worker);
    let mut second = server.engine.open(false);
    second.connect(&connect_spec(server.address)).unwrap();
    assert_eq!(until_end(&mut second).1, -libc::ECONNREFUSED);
    server.until_rejected("max_connections");
}

/// Receives that are posted do not come back before the peer uses them, so the first connections must
/// not take all slots.
#[test]
fn every_place_of_a_handle_can_be_used() {
    let server = Server::plain();
    let mut worker = server.engine.open(false);
    worker.set_session(&guid(GUID, false)).unwrap();
    let request = negotiate(GUID, DIALECTS);
    let places = AreaOptions::default().max_connections;
    let mut clients: Vec<_> = (0..places).map(|_| server.engine.open(false)).collect();
    for client in &mut clients {
        let active = connect_and_send(client, server.address, &request);
        wait_for(&mut worker, EventKind::Attached);
        wait_for(&mut worker, EventKind::PduReceived);
        // More than the engine's own receives, so that slots of the handle take their place.
        for cookie in 0..20 {
            send(client, active, cookie, b"\xfeSMB");
            wait_for(&mut worker, EventKind::PduReceived);
        }
    }
}

#[test]
fn a_full_handle_refuses() {
    let mut server = Server::plain();
    let area = AreaOptions {
        receive_slots: 20,
        ..AreaOptions::default()
    };
    let single = AreaOptions {
        max_connections: 1,
        ..AreaOptions::default()
    };
    let small = AreaOptions {
        receive_slot_size: 512,
        ..AreaOptions::default()
    };
    let mut few_slots = server.open_with(area);
    let mut one = server.open_with(single);
    let mut short = server.open_with(small);
    let mut clients: Vec<_> = (0..4).map(|_| server.engine.open(false)).collect();
    for client in &mut clients[..2] {
        let (active, _) = server.connected(client, &mut few_slots);
        // The receives that the engine posted itself before there was an owner are used up, and
        // slots take their place: 8 for each connection at least.
        for cookie in 0..20 {
            send(client, active, cookie, b"\xfeSMB");
            wait_for(&mut few_slots, EventKind::PduReceived);
        }
    }
    server.connected(&mut clients[2], &mut one);

    let request = negotiate([0; 16], DIALECTS);
    connect_and_send(&mut clients[3], server.address, &request);
    let token = wait_for(&mut server.parent, EventKind::Offered).0.token;
    for (handle, errno, word) in [
        (&mut few_slots, libc::ENOSPC, "receive_slots"),
        (&mut one, libc::ENOSPC, "max_connections"),
        (&mut short, libc::EMSGSIZE, "receive_slot_size"),
    ] {
        let error = handle.accept(token).unwrap_err();
        assert_eq!(error.errno(), errno, "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    // A refusal costs the offer nothing.
    let mut roomy = server.engine.open(false);
    roomy.accept(token).unwrap();
    assert_eq!(wait_for(&mut roomy, EventKind::PduReceived).1, request);
}
