//! Fabric: sends, RDMA READ and RDMA WRITE between two processes, over each fabric and over TCP.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use smbdirect::fabric::FabricKind;
use smbdirect::mem::MemSlice;
use smbdirect::peer::{Config, Endpoint, PeerEvent};

use super::bulk::{tcp_rate, Direction, Remote, Shape};
use super::helper::{patience, BULK_BYTES, ECHO};
use super::process::Process;
use super::{median, Args, Row};
use crate::failure::Failure;
use crate::session::Session;

/// What is measured.
#[derive(Debug, Clone, Copy)]
enum What {
    /// A PDU of so many bytes there and back.
    RoundTrip(usize),
    /// An RDMA READ of so many bytes, one at a time; by TCP a request and its answer.
    ReadDelay(usize),
    /// PDUs of so many bytes there and back, several at once.
    Echo(usize),
    /// RDMA operations of so many bytes, several at once.
    Rate(Direction, u64),
}

const ALL: [What; 9] = [
    What::RoundTrip(64),
    What::RoundTrip(4096),
    What::ReadDelay(64),
    What::ReadDelay(65_536),
    What::Echo(65_536),
    What::Rate(Direction::Write, 64 << 10),
    What::Rate(Direction::Write, 1 << 20),
    What::Rate(Direction::Read, 64 << 10),
    What::Rate(Direction::Read, 1 << 20),
];

impl What {
    fn name(self) -> String {
        let size = |bytes: usize| match bytes {
            bytes if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
            bytes if bytes >= 1 << 10 => format!("{} KiB", bytes >> 10),
            bytes => format!("{bytes} B"),
        };
        match self {
            Self::RoundTrip(bytes) => format!("Send {} and back", size(bytes)),
            Self::ReadDelay(bytes) => format!("RDMA READ {}", size(bytes)),
            Self::Echo(bytes) => format!("Send {} and back, 8 at once", size(bytes)),
            Self::Rate(Direction::Write, bytes) => {
                format!("RDMA WRITE {}, several", size(bytes as usize))
            }
            Self::Rate(Direction::Read, bytes) => {
                format!("RDMA READ {}, several", size(bytes as usize))
            }
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::RoundTrip(_) | Self::ReadDelay(_) => "us",
            Self::Echo(_) | Self::Rate(..) => "MB/s",
        }
    }
}

/// PDUs that are under way at once in [`What::Echo`].
const WINDOW: u64 = 8;

/// Measures all fabrics that there are: software iWARP, and verbs if the address was given.
pub(super) fn measure(args: &Args) -> Result<Vec<Row>, Failure> {
    let address = args.address.unwrap_or([127, 0, 0, 1].into()).to_string();
    let mut helper = vec!["bench-helper", "bulk", "--address", &address];
    let mut kinds = vec![("software iWARP", FabricKind::SoftIwarp)];
    if args.address.is_some() {
        helper.push("--verbs");
        kinds.push(("verbs", FabricKind::Verbs));
    }
    let mut helper = Process::start(&helper)?;
    let peers: Vec<_> = kinds
        .iter()
        .map(|_| helper.address())
        .collect::<Result<_, Failure>>()?;
    let mut tcp = Tcp::connect(helper.address()?)?;
    let mut sides: Vec<_> = kinds
        .iter()
        .zip(peers)
        .map(|((_, kind), peer)| Rdma::connect(*kind, peer))
        .collect::<Result<_, Failure>>()?;

    let mut rows = Vec::new();
    for what in ALL {
        let mut over_tcp = Vec::new();
        let mut figures = vec![Vec::new(); sides.len()];
        // The first round warms up, and does not count.
        for round in 0..=args.repeat {
            let tcp = tcp.run(what, args)?;
            over_tcp.extend((round > 0).then_some(tcp));
            for (side, figures) in sides.iter_mut().zip(&mut figures) {
                let figure = side.run(what, args)?;
                figures.extend((round > 0).then_some(figure));
            }
        }
        let tcp = median(&mut over_tcp);
        for ((name, _), figures) in kinds.iter().zip(&mut figures) {
            rows.push(Row {
                what: format!("{}, {name}", what.name()),
                ours: median(figures),
                tcp: Some(tcp),
                unit: what.unit(),
                goal: "",
            });
        }
    }
    Ok(rows)
}

/// Microseconds of one of `count` operations since `start`.
fn each(start: Instant, count: u64) -> f64 {
    start.elapsed().as_secs_f64() * 1e6 / count.max(1) as f64
}

/// MB/s of so many bytes since `start`.
fn rate(start: Instant, bytes: u64) -> f64 {
    bytes as f64 / start.elapsed().as_secs_f64() / 1e6
}

/// A connection of one fabric.
struct Rdma {
    session: Session,
    remote: Remote,
    memory: MemSlice,
}

impl Rdma {
    fn connect(kind: FabricKind, peer: SocketAddr) -> Result<Self, Failure> {
        let config = Config {
            kind,
            ..Config::default()
        };
        let endpoint = Endpoint::new(config).map_err(Failure::of("starting"))?;
        let mut session = Session::new(endpoint);
        let remote = Remote::connect(&mut session, peer, false)?;
        let memory = MemSlice::from_bytes(&vec![0x5a; BULK_BYTES])
            .map_err(Failure::of("memory for the fabric test"))?;
        Ok(Self {
            session,
            remote,
            memory,
        })
    }

    fn run(&mut self, what: What, args: &Args) -> Result<f64, Failure> {
        let iterations = u64::from(args.iters);
        match what {
            What::RoundTrip(bytes) => {
                let start = Instant::now();
                self.echo(bytes, iterations, 1)?;
                Ok(each(start, iterations))
            }
            What::Echo(bytes) => {
                let count = (args.bytes / bytes as u64).max(1);
                let start = Instant::now();
                self.echo(bytes, count, WINDOW)?;
                Ok(rate(start, count * bytes as u64))
            }
            What::ReadDelay(bytes) => {
                let shape = Shape {
                    bytes: iterations * bytes as u64,
                    chunk: bytes as u64,
                    depth: 1,
                };
                let start = Instant::now();
                let (session, memory) = (&mut self.session, &self.memory);
                self.remote.rate(session, memory, Direction::Read, &shape)?;
                Ok(each(start, iterations))
            }
            What::Rate(direction, chunk) => {
                let shape = Shape {
                    bytes: args.bytes,
                    chunk,
                    depth: args.depth,
                };
                let (session, memory) = (&mut self.session, &self.memory);
                self.remote.rate(session, memory, direction, &shape)
            }
        }
    }

    /// Sends `count` PDUs that come back, at most `window` of them at once.
    fn echo(&mut self, bytes: usize, count: u64, window: u64) -> Result<(), Failure> {
        let pdu = vec![0x5a; bytes];
        let (mut sent, mut back) = (0, 0);
        while back < count {
            while sent < count && sent - back < window {
                let endpoint = &mut self.session.endpoint;
                endpoint
                    .send(self.remote.link.id, &[&pdu], 0, None)
                    .map_err(Failure::of("sending"))?;
                sent += 1;
            }
            match self.session.next(Some(patience()))? {
                Some(PeerEvent::Pdu { pdu, .. }) => {
                    self.session.endpoint.recycle(pdu);
                    back += 1;
                }
                Some(PeerEvent::Disconnected { reason, .. }) => {
                    return Err(Failure::Failed(format!("connection lost: {reason}")));
                }
                Some(_) => {}
                None => return Err(Failure::Failed("the helper does not answer".into())),
            }
        }
        Ok(())
    }
}

/// The same over TCP.
struct Tcp {
    stream: TcpStream,
    memory: Vec<u8>,
}

impl Tcp {
    fn connect(peer: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect(peer).map_err(Failure::of("TCP"))?;
        stream.set_nodelay(true).map_err(Failure::of("TCP"))?;
        Ok(Self {
            stream,
            memory: vec![0x5a; BULK_BYTES],
        })
    }

    fn run(&mut self, what: What, args: &Args) -> Result<f64, Failure> {
        let iterations = u64::from(args.iters);
        match what {
            What::RoundTrip(bytes) => {
                let start = Instant::now();
                self.echo(bytes, iterations, 1)?;
                Ok(each(start, iterations))
            }
            What::Echo(bytes) => {
                let count = (args.bytes / bytes as u64).max(1);
                let start = Instant::now();
                self.echo(bytes, count, WINDOW)?;
                Ok(rate(start, count * bytes as u64))
            }
            What::ReadDelay(bytes) => {
                let shape = Shape {
                    bytes: bytes as u64,
                    chunk: bytes as u64,
                    depth: 1,
                };
                let start = Instant::now();
                for _ in 0..iterations {
                    tcp_rate(&mut self.stream, &mut self.memory, Direction::Read, &shape)?;
                }
                Ok(each(start, iterations))
            }
            What::Rate(direction, chunk) => {
                let shape = Shape {
                    bytes: args.bytes,
                    chunk,
                    depth: args.depth,
                };
                tcp_rate(&mut self.stream, &mut self.memory, direction, &shape)
            }
        }
    }

    fn echo(&mut self, bytes: usize, count: u64, window: u64) -> Result<(), Failure> {
        let failed = || Failure::of("TCP");
        let mut order = [ECHO; 9];
        order[1..].copy_from_slice(&(count * bytes as u64).to_le_bytes());
        self.stream.write_all(&order).map_err(failed())?;
        let piece = self.memory.get_mut(..bytes).unwrap_or_default();
        let mut sent = 0;
        for back in 0..count {
            while sent < count && sent - back < window {
                self.stream.write_all(piece).map_err(failed())?;
                sent += 1;
            }
            self.stream.read_exact(piece).map_err(failed())?;
        }
        Ok(())
    }
}
