//! Bulk transfer over the software iWARP fabric against plain TCP, between two threads on
//! loopback. Usage: `iwarp_bulk [MIB] [CASE]`; prints GB/s, CPU seconds of the process, and the
//! ratio to plain TCP of the same run.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use smbdirect::fabric::iwarp::{IwarpConfig, IwarpFabric, SegmentSize};
use smbdirect::fabric::{
    AcceptOptions, Access, ConnectOptions, Fabric, FabricEvent, ListenOptions, QpKey, RemoteKey,
    SendRequest, WrId,
};
use smbdirect::mem::{MemSlice, Region};
use smbdirect::sys::Poller;

const MIB: usize = 1 << 20;
const BUFFERS: usize = 16;

/// One fabric with its poller, as a process would have it.
struct Node {
    poller: Poller,
    fabric: IwarpFabric,
    ready: Vec<smbdirect::sys::Ready>,
}

impl Node {
    fn new(segment: SegmentSize) -> Self {
        let poller = Poller::new().expect("epoll");
        let config = IwarpConfig {
            segment,
            ..IwarpConfig::default()
        };
        let fabric = IwarpFabric::new(poller.registry(0), config).expect("fabric");
        Self {
            poller,
            fabric,
            ready: Vec::new(),
        }
    }

    fn step(&mut self, events: &mut Vec<FabricEvent>) {
        let now = Instant::now();
        self.fabric.flush(now, events);
        if !events.is_empty() {
            return;
        }
        self.ready.clear();
        self.poller.wait(None, &mut self.ready).expect("wait");
        for ready in &self.ready {
            self.fabric.handle_ready(now, *ready, events);
        }
    }
}

fn memory(len: usize) -> MemSlice {
    let region = Region::anonymous(len).expect("memory");
    let slice = MemSlice::new(&region, 0, len).expect("slice");
    slice.write(0, &vec![0x5A; len]).expect("fill");
    slice
}

fn message(id: u64, key: RemoteKey) -> SendRequest {
    let mut header = [0; 32];
    header[..4].copy_from_slice(&key.token.to_be_bytes());
    header[4..12].copy_from_slice(&key.offset.to_be_bytes());
    SendRequest {
        wr_id: WrId(id),
        header_len: 12,
        header,
        payload: None,
        invalidate: None,
    }
}

/// The passive side: registers memory, tells its key, waits for the word that all is done.
fn serve(segment: SegmentSize, crc: bool, address: mpsc::Sender<SocketAddr>) {
    let mut node = Node::new(segment);
    let (_, taken) = node
        .fabric
        .listen(
            "127.0.0.1:0".parse().expect("address"),
            &ListenOptions {
                crc,
                ..ListenOptions::default()
            },
        )
        .expect("listen");
    address.send(taken).expect("send");
    let target = memory(BUFFERS * MIB);
    let inbox = memory(4096);
    let access = Access {
        remote_read: true,
        remote_write: true,
    };
    let mut events = Vec::new();
    let mut received = 0;
    loop {
        node.step(&mut events);
        let now = Instant::now();
        for event in std::mem::take(&mut events) {
            match event {
                FabricEvent::ConnectRequest { qp, .. } => {
                    for id in 0..2 {
                        node.fabric
                            .post_recv(qp, WrId(id), inbox.clone())
                            .expect("post");
                    }
                    let options = AcceptOptions {
                        ird: 32,
                        ord: 32,
                        private_data: Vec::new(),
                    };
                    node.fabric.accept(now, qp, &options).expect("accept");
                }
                FabricEvent::Recv { qp, .. } => {
                    received += 1;
                    let key = if received == 1 {
                        let key = node.fabric.register(qp, target.clone(), access);
                        key.expect("register")
                    } else {
                        RemoteKey {
                            token: 0,
                            offset: 0,
                        }
                    };
                    node.fabric.post_send(qp, message(9, key)).expect("send");
                }
                FabricEvent::Disconnected { .. } => return,
                _ => {}
            }
        }
    }
}

fn wait_recv(node: &mut Node, events: &mut Vec<FabricEvent>) {
    loop {
        node.step(events);
        if std::mem::take(events)
            .iter()
            .any(|event| matches!(event, FabricEvent::Recv { .. }))
        {
            return;
        }
    }
}

fn bulk(total: usize, segment: SegmentSize, crc: bool, read: bool) -> Duration {
    let (sender, receiver) = mpsc::channel();
    let server = std::thread::spawn(move || serve(segment, crc, sender));
    let peer = receiver.recv().expect("address");
    let mut node = Node::new(segment);
    let options = ConnectOptions {
        peer,
        crc,
        mpa_revision: 2,
        ird: 32,
        ord: 32,
        private_data: Vec::new(),
        timeout: Duration::from_secs(5),
    };
    let qp: QpKey = node
        .fabric
        .connect(Instant::now(), &options)
        .expect("connect");
    let inbox = memory(4096);
    let source = memory(BUFFERS * MIB);
    for id in 0..2 {
        node.fabric
            .post_recv(qp, WrId(id), inbox.clone())
            .expect("post");
    }
    let nothing = RemoteKey {
        token: 0,
        offset: 0,
    };
    node.fabric
        .post_send(qp, message(1, nothing))
        .expect("send");
    let mut events = Vec::new();
    wait_recv(&mut node, &mut events);
    let (mut token, mut offset) = ([0; 4], [0; 8]);
    inbox.read(0, &mut token).expect("read");
    inbox.read(4, &mut offset).expect("read");
    let (token, offset) = (u32::from_be_bytes(token), u64::from_be_bytes(offset));
    let start = Instant::now();
    let (mut posted, mut done) = (0, 0);
    while done < total / MIB {
        while posted - done < BUFFERS && posted < total / MIB {
            let at = posted % BUFFERS * MIB;
            let piece = source.slice(at, MIB).expect("slice");
            let id = WrId(posted as u64);
            let remote = offset + at as u64;
            if read {
                node.fabric.post_read(qp, id, piece, token, remote)
            } else {
                node.fabric.post_write(qp, id, piece, token, remote)
            }
            .expect("post");
            posted += 1;
        }
        node.step(&mut events);
        for event in events.drain(..) {
            match event {
                FabricEvent::Done { .. } => done += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    node.fabric
        .post_send(qp, message(2, nothing))
        .expect("send");
    wait_recv(&mut node, &mut events);
    let time = start.elapsed();
    node.fabric.disconnect(Instant::now(), qp, Duration::ZERO);
    node.fabric.flush(Instant::now(), &mut events);
    server.join().expect("server");
    time
}

fn plain(total: usize) -> Duration {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let address = listener.local_addr().expect("address");
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut room = vec![0; BUFFERS * MIB];
        let mut left = total;
        while left > 0 {
            let at = (total - left) % (BUFFERS * MIB) / MIB * MIB;
            let want = left.min(MIB);
            stream.read_exact(&mut room[at..at + want]).expect("read");
            left -= want;
        }
        stream.write_all(b"x").expect("write");
    });
    let mut stream = TcpStream::connect(address).expect("connect");
    let source = vec![0x5A; BUFFERS * MIB];
    let start = Instant::now();
    let mut left = total;
    while left > 0 {
        let at = (total - left) % (BUFFERS * MIB) / MIB * MIB;
        let want = left.min(MIB);
        stream.write_all(&source[at..at + want]).expect("write");
        left -= want;
    }
    stream.read_exact(&mut [0]).expect("read");
    let time = start.elapsed();
    server.join().expect("server");
    time
}

fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn main() {
    let mut args = std::env::args().skip(1);
    let mib: usize = args.next().map_or(4096, |arg| arg.parse().expect("MiB"));
    let only = args.next().unwrap_or_default();
    let total = mib * MIB;
    let tcp = SegmentSize::TcpSegment;
    let large = SegmentSize::Bytes(65_532);
    let small = SegmentSize::Bytes(1442);
    type Case<'a> = (&'a str, Box<dyn Fn() -> Duration>);
    let tiny = SegmentSize::Bytes(256);
    let half = SegmentSize::Bytes(600);
    let cases: Vec<Case> = vec![
        (
            "write, 256",
            Box::new(move || bulk(total, tiny, false, false)),
        ),
        (
            "write, 256, CRC",
            Box::new(move || bulk(total, tiny, true, false)),
        ),
        (
            "write, 600",
            Box::new(move || bulk(total, half, false, false)),
        ),
        (
            "write, 600, CRC",
            Box::new(move || bulk(total, half, true, false)),
        ),
        (
            "write, TCP segment",
            Box::new(move || bulk(total, tcp, false, false)),
        ),
        (
            "write, TCP segment, CRC",
            Box::new(move || bulk(total, tcp, true, false)),
        ),
        (
            "write, 64 KiB",
            Box::new(move || bulk(total, large, false, false)),
        ),
        (
            "write, 1442",
            Box::new(move || bulk(total, small, false, false)),
        ),
        (
            "write, 1442, CRC",
            Box::new(move || bulk(total, small, true, false)),
        ),
        (
            "read, TCP segment",
            Box::new(move || bulk(total, tcp, false, true)),
        ),
        (
            "read, TCP segment, CRC",
            Box::new(move || bulk(total, tcp, true, true)),
        ),
        (
            "read, 1442",
            Box::new(move || bulk(total, small, false, true)),
        ),
    ];
    for (name, case) in cases.iter().filter(|(name, _)| name.contains(&only)) {
        // The plain transfer runs before and after, so that a change of the machine shows.
        let before = plain(total);
        let start = cpu();
        let time = case();
        let used = cpu() - start;
        let after = plain(total);
        let rate = |time: Duration| total as f64 / time.as_secs_f64() / 1e9;
        println!(
            "{name:26} {:6.2} GB/s, CPU {:5.2} s, plain TCP {:5.2} / {:5.2} GB/s, ratio {:.2}",
            rate(time),
            used.as_secs_f64(),
            rate(before),
            rate(after),
            2.0 * rate(time) / (rate(before) + rate(after)),
        );
    }
}
