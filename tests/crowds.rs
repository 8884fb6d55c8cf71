//! Many at once: what is limited stays within its limit, and nobody takes the turn of others.

#[path = "common/engine_host.rs"]
mod common;
#[path = "common/engine_process.rs"]
mod engine_process;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use common::{
    connect_and_send, connect_spec, negotiate, open_at, send, status_at, test_fabric, until_status,
    wait_for, wait_readable, TestEngine, PATIENCE,
};
use engine_process::{register, EngineProcess};
use smbdirect::client::{EventKind, Handle};
use smbdirect::ipc::{self, Caller, ConnectSpec, Fabric, Params, Status};

/// Connections that TCP has established and nobody has accepted yet, at these listeners.
fn not_accepted(listeners: &[SocketAddr]) -> usize {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (_, port) = fields.next()?.split_once(':')?;
            let port = u16::from_str_radix(port, 16).ok()?;
            let is_ours = listeners.iter().any(|address| address.port() == port);
            let is_listening = fields.nth(1)? == "0A";
            let (_, waiting) = fields.next()?.split_once(':')?;
            let waiting = usize::from_str_radix(waiting, 16).ok()?;
            (is_ours && is_listening).then_some(waiting)
        })
        .sum()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "not {what}");
        std::thread::yield_now();
    }
}

#[test]
fn half_open_connections_are_capped_over_all_listeners() {
    const CAP: usize = 4;
    let engine = TestEngine::start_with(|config| {
        config.iwarp.max_half_open = CAP;
        // Longer than the test takes.
        config.iwarp.request_timeout = 10 * PATIENCE;
    });
    let mut parent = engine.open(true);
    parent.set_params(&Params::default()).unwrap();
    let listeners = [(); 3].map(|()| engine.listen(&mut parent));
    let mut strangers: Vec<_> = (0..30)
        .map(|i| TcpStream::connect(listeners[i % 3]).unwrap())
        .collect();
    until("full", || not_accepted(&listeners) == 30 - CAP);
    // It stays like that, however often the engine has its turn.
    for _ in 0..20 {
        engine.status();
        assert_eq!(not_accepted(&listeners), 30 - CAP);
    }
    strangers.clear();
    // All listeners are served again.
    for address in listeners {
        let mut client = engine.open(false);
        connect_and_send(&mut client, address, &negotiate([7; 16], &[0x0300]));
        wait_for(&mut parent, EventKind::Offered);
    }
}

/// File descriptors of an engine that runs out of them. Whoever runs the tests may have left it
/// one or two more, above this number.
const LIMIT: usize = 48;

/// Turns of the engine's loop, asked on a socket that is open already.
fn loops(caller: &mut Caller) -> u64 {
    let status = ipc::fetch_status(caller, PATIENCE).unwrap();
    status.engine.counters.loops
}

/// Waits for `count` ends of the 5 s that a connection may take for its MPA request.
fn wait_for_ends(strangers: &mut [TcpStream], count: usize) {
    use std::io::Read as _;
    for stranger in strangers.iter_mut().take(count) {
        stranger.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stranger.read(&mut [0; 16]);
    }
}

#[test]
fn an_engine_without_descriptors_for_connections_waits() {
    let mut engine = EngineProcess::with_descriptors("fds-tcp", LIMIT as u32);
    let (_parent, address) = engine.parent();
    let mut worker = open_at(&engine.socket, false);
    register(&mut worker, [1; 16]);
    let mut client = open_at(&engine.socket, false);
    let mut caller = Caller::connect(&engine.socket, PATIENCE).unwrap();
    loops(&mut caller);
    let mut strangers: Vec<_> = (0..100)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    until("out of descriptors", || engine.fds() >= LIMIT);
    let before = loops(&mut caller);
    // The first of them are ended after 5 s. Meanwhile the engine has to sleep, but for five looks
    // a second whether there is room again.
    wait_for_ends(&mut strangers, 1);
    let turns = loops(&mut caller) - before;
    println!("{turns} turns without descriptors");
    assert!(turns < 1000, "{turns} turns of the loop for nothing");
    assert!(engine.is_running());
    strangers.clear();
    connect_and_send(&mut client, address, &negotiate([1; 16], &[0x0300]));
    wait_for(&mut worker, EventKind::PduReceived);
}

#[test]
fn an_engine_without_descriptors_for_processes_waits() {
    let mut engine = EngineProcess::with_descriptors("fds-unix", LIMIT as u32);
    let (_parent, address) = engine.parent();
    let mut worker = open_at(&engine.socket, false);
    register(&mut worker, [1; 16]);
    let mut client = open_at(&engine.socket, false);
    let mut caller = Caller::connect(&engine.socket, PATIENCE).unwrap();
    loops(&mut caller);
    // Of the two kinds of descriptors, connections take all, and one more process knocks.
    let mut strangers: Vec<_> = (0..100)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    until("out of descriptors", || engine.fds() >= LIMIT);
    let waiting: Vec<_> = (0..50)
        .map(|_| Caller::connect(&engine.socket, PATIENCE).unwrap())
        .collect();
    let before = loops(&mut caller);
    wait_for_ends(&mut strangers, 1);
    let turns = loops(&mut caller) - before;
    println!("{turns} turns without descriptors");
    assert!(turns < 1000, "{turns} turns of the loop for nothing");
    assert!(engine.is_running());
    drop(waiting);
    strangers.clear();
    until("an engine that answers", || {
        Caller::connect(&engine.socket, PATIENCE)
            .ok()
            .is_some_and(|mut caller| ipc::fetch_status(&mut caller, PATIENCE).is_ok())
    });
    connect_and_send(&mut client, address, &negotiate([1; 16], &[0x0300]));
    wait_for(&mut worker, EventKind::PduReceived);
}

/// Takes events until `stop`, and keeps `window` PDUs outstanding on `connection` if there is one.
fn flood(handle: &mut Handle, connection: Option<u64>, stop: &AtomicBool, pdus: &AtomicU64) {
    let pdu = vec![0x5a; 500_000];
    if let Some(connection) = connection {
        for cookie in 0..8 {
            send(handle, connection, cookie, &pdu);
        }
    }
    while !stop.load(Ordering::Relaxed) {
        while let Some((event, _)) = handle.next_event().unwrap() {
            match (event.kind, connection) {
                (EventKind::PduSent, Some(connection)) => send(handle, connection, 9, &pdu),
                (EventKind::PduReceived, _) => {
                    pdus.fetch_add(1, Ordering::Relaxed);
                }
                (EventKind::Disconnected, _) => panic!("the flood ended early"),
                _ => {}
            }
        }
        wait_readable(handle);
    }
}

#[test]
fn a_flood_does_not_starve_small_pdus() {
    const ROUNDS: u64 = 300;
    let engine = TestEngine::start();
    let mut parent = engine.open(true);
    parent.set_params(&Params::default()).unwrap();
    let address = engine.listen(&mut parent);
    let [mut flooded, mut worker, mut flooding, mut client] = [(); 4].map(|()| engine.open(false));
    register(&mut flooded, [1; 16]);
    register(&mut worker, [2; 16]);
    let wide = connect_and_send(&mut flooding, address, &negotiate([1; 16], &[0x0300]));
    let narrow = connect_and_send(&mut client, address, &negotiate([2; 16], &[0x0300]));
    let back = wait_for(&mut worker, EventKind::PduReceived).0.connection;
    wait_for(&mut client, EventKind::PduSent);
    let (stop, pdus) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| flood(&mut flooded, None, &stop, &pdus));
        scope.spawn(|| flood(&mut flooding, Some(wide), &stop, &pdus));
        until("in full swing", || pdus.load(Ordering::Relaxed) > 20);
        let moved = |status: &ipc::Status| {
            let all = status.connections.iter();
            all.map(|it| it.bytes_received).max().unwrap_or(0)
        };
        let before = status_at(&engine.socket);
        for round in 0..ROUNDS {
            let pdu = format!("\u{fe}SMB question {round}").into_bytes();
            send(&mut client, narrow, round, &pdu);
            assert_eq!(wait_for(&mut worker, EventKind::PduReceived).1, pdu);
            send(&mut worker, back, round, &pdu);
            assert_eq!(wait_for(&mut client, EventKind::PduReceived).1, pdu);
        }
        let after = status_at(&engine.socket);
        let swung = pdus.load(Ordering::Relaxed);
        until("still in full swing", || {
            pdus.load(Ordering::Relaxed) > swung
        });
        stop.store(true, Ordering::Relaxed);
        // What the flood may take before others have their turn: about 1 MiB from its socket, and
        // as much to it.
        let turns = after.engine.counters.loops - before.engine.counters.loops;
        let bytes = moved(&after) - moved(&before);
        println!("{bytes} bytes in {turns} turns and {ROUNDS} rounds");
        assert!(bytes / turns < 4 << 20, "{bytes} bytes in {turns} turns");
    });
}

/// Knocks from an address of this host; whether the engine takes the connection. It is established
/// then and says no more.
fn knock(from: &str, to: SocketAddr) -> (TcpStream, bool) {
    use rustix::net::{bind, connect, socket, AddressFamily, SocketType};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    let from: SocketAddr = format!("{from}:0").parse().unwrap();
    bind(&socket, &from).unwrap();
    connect(&socket, &to).unwrap();
    let mut stream = TcpStream::from(socket);
    // An MPA Request of revision 1 (RFC 5044 section 7.1.1), and its Reply, which has R when it
    // refuses.
    stream
        .write_all(b"MPA ID Req Frame\x00\x01\x00\x00")
        .unwrap();
    let mut reply = [0; 20];
    stream.read_exact(&mut reply).unwrap();
    assert!(reply.starts_with(b"MPA ID Rep Frame"));
    (stream, reply[16] & 0x20 == 0)
}

#[test]
fn one_peer_does_not_take_the_place_of_others() {
    let engine = TestEngine::start_with(|config| config.max_unowned = 8);
    let mut parent = engine.open(true);
    parent.set_params(&Params::default()).unwrap();
    let address = engine.listen(&mut parent);
    // A quarter of 8 is 2.
    let (one, taken) = knock("127.0.0.1", address);
    assert!(taken);
    let (_two, taken) = knock("127.0.0.1", address);
    assert!(taken);
    assert!(!knock("127.0.0.1", address).1);
    assert!(!knock("127.0.0.1", address).1);
    // There is room for others, until nobody has any.
    let others: Vec<_> = (2..8)
        .map(|i| knock(&format!("127.0.0.{}", i / 2 + 1), address))
        .collect();
    assert!(others.iter().all(|(_, taken)| *taken));
    assert!(!knock("127.0.0.9", address).1);
    let rejected = engine.status().engine.rejected;
    assert_eq!(rejected.get("max_unowned_per_peer"), Some(&2));
    assert_eq!(rejected.get("max_unowned"), Some(&1));
    // One that goes makes room, for its own peer too.
    drop(one);
    until_status(&engine.socket, "one less", |s| s.connections.len() == 7);
    assert!(knock("127.0.0.1", address).1);
}

/// Each client has a handle at the server, as each smbd process has, whose area is 64 MiB and more.
/// It may use that as long as it is busy; quiet, it holds little more than its receives (255 slots of
/// 8 KiB, in chunks of 1 MiB), so that a thousand of them do not pin 64 GiB.
#[test]
fn idle_clients_hold_little_memory() {
    const CLIENTS: u64 = 24;
    const MIB: u64 = 1 << 20;
    let server = TestEngine::start();
    let mut parent = server.open(true);
    parent.set_params(&Params::default()).unwrap();
    let address = server.listen(&mut parent);
    // All clients are one handle at an engine of its own.
    let clients = TestEngine::start();
    let mut client = clients.open(false);
    let small = ConnectSpec {
        params: Params {
            receive_credit_max: 10,
            ..connect_spec(address).params
        },
        ..connect_spec(address)
    };
    let pdu = vec![0x5a; 800_000];
    let mut workers = Vec::new();
    for _ in 0..CLIENTS {
        let mut worker = server.open(false);
        let active = client.connect(&small).unwrap();
        wait_for(&mut client, EventKind::Attached);
        send(&mut client, active, 1, &negotiate([0; 16], &[0x0311]));
        let offer = wait_for(&mut parent, EventKind::Offered).0;
        let passive = worker.accept(offer.token).unwrap();
        wait_for(&mut worker, EventKind::PduReceived);
        for _ in 0..4 {
            send(&mut client, active, 2, &pdu);
            assert!(wait_for(&mut worker, EventKind::PduReceived).1 == pdu);
            send(&mut worker, passive, 3, &pdu);
            assert!(wait_for(&mut client, EventKind::PduReceived).1 == pdu);
        }
        workers.push((worker, passive));
    }
    let each = |status: &Status| status.engine.memory.registered_bytes[&test_fabric()] / CLIENTS;
    let busy = each(&server.status());
    let idle = until_status(&server.socket, "given back", |it| each(it) < 5 * MIB);
    let areas = idle.handles.iter().filter(|it| it.connections == 1);
    let committed = areas.map(|it| it.committed_bytes).sum::<u64>() / CLIENTS;
    let idle = each(&idle);
    println!("bytes of each of {CLIENTS}: registered {busy}, idle {idle}; committed {committed}");
    assert!(committed < 12 * MIB, "{committed}");
    match test_fabric() {
        Fabric::Verbs => assert!(0 < idle && idle < busy, "{busy}, then {idle}"),
        _ => assert_eq!((busy, idle), (0, 0)),
    }
    // They are all still there, and can be busy again.
    for (worker, passive) in &mut workers {
        send(worker, *passive, 4, &pdu);
        assert!(wait_for(&mut client, EventKind::PduReceived).1 == pdu);
    }
}
