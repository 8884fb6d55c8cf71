//! Small PDUs through engine and handle, against a TCP echo through one relay process.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use smbdirect::ipc::{self, Caller};
use smbdirect::peer::{Config, ConnectionId, Endpoint, PeerEvent};

use super::helper::patience;
use super::process::{voluntary_switches, Process};
use super::{median, Args, Row};
use crate::failure::Failure;
use crate::session::Session;

/// How long the message rate is measured, per repetition.
const RATE_TIME: Duration = Duration::from_millis(500);

pub(super) fn measure(args: &Args) -> Result<Vec<Row>, Failure> {
    let bed = Bed::new()?;
    let mut session = passive()?;
    let address = listen(&mut session)?;
    let mut handle = bed.handles(address, 1)?;
    let id = wait_connected(&mut session)?;
    handle.line()?;

    let mut echo = Process::start(&["bench-helper", "echo"])?;
    let upstream = echo.address()?.to_string();
    let mut relay = Process::start(&["bench-helper", "relay", &upstream])?;
    let mut stream = TcpStream::connect(relay.address()?).map_err(Failure::of("TCP"))?;
    stream.set_nodelay(true).map_err(Failure::of("TCP"))?;

    let payload = vec![0x5a; args.size as usize];
    let [mut ours, mut tcp, mut our_rate, mut tcp_rate] = [const { Vec::new() }; 4];
    for round in 0..=args.repeat {
        let a = round_trips(args, || echo_smbd(&mut session, id, &payload))?;
        let b = round_trips(args, || echo_tcp(&mut stream, &payload))?;
        let c = rate_smbd(&mut session, id, &payload, args.window)?;
        let d = rate_tcp(&mut stream, &payload, args.window)?;
        if round > 0 {
            ours.push(a);
            tcp.push(b);
            our_rate.push(c);
            tcp_rate.push(d);
        }
    }
    let what = |text: &str| format!("{text}, {} bytes", args.size);
    let mut rows = vec![
        Row {
            what: what("PDU round trip, engine + handle | relay"),
            ours: median(&mut ours),
            tcp: Some(median(&mut tcp)),
            unit: "usec",
            goal: "<= 1.30",
        },
        Row {
            what: what(&format!("PDU rate, {} outstanding", args.window)),
            ours: median(&mut our_rate),
            tcp: Some(median(&mut tcp_rate)),
            unit: "PDU/s",
            goal: "",
        },
    ];

    // Sleeps of the engine under load, over one more second; the handle's process has counted on
    // its own.
    let engine_switches = voluntary_switches(bed.engine.pid())?;
    let mut pdus = 0.0;
    for _ in 0..2 {
        pdus += rate_smbd(&mut session, id, &payload, args.window)? * RATE_TIME.as_secs_f64();
    }
    let engine_switches = voluntary_switches(bed.engine.pid())? - engine_switches;
    let statistics: Value =
        serde_json::from_str(&handle.finish()?).map_err(Failure::of("the handle's statistics"))?;
    let number = |key: &str| statistics[key].as_f64().unwrap_or_default();
    let share = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
    let per_wake = share(number("load_pdus"), number("load_batches"));
    let mut figure = |what: &str, value: f64, unit, goal| {
        rows.push(Row {
            what: what.into(),
            ours: value,
            tcp: None,
            unit,
            goal,
        });
    };
    figure(
        "events per wake-up of the handle's process, under load",
        per_wake,
        "",
        ">= 16",
    );
    figure(
        "sleeps of the engine per PDU, under load",
        share(engine_switches as f64, pdus),
        "",
        "",
    );
    figure(
        "system calls of the handle per PDU, under load",
        share(number("load_syscalls"), number("load_pdus")),
        "",
        "<= 0.10",
    );
    Ok(rows)
}

/// An engine of our own.
pub(super) struct Bed {
    pub(super) engine: Process,
    directory: tempdir::Directory,
}

impl Bed {
    pub(super) fn new() -> Result<Self, Failure> {
        let directory = tempdir::Directory::new().map_err(Failure::of("a temporary folder"))?;
        let socket = directory.path().join("engine.sock");
        let mut engine = Process::start(&["engine", "--socket", &socket.to_string_lossy()])?;
        while engine.line()? != "ready" {}
        Ok(Self { engine, directory })
    }

    /// The engine's control socket.
    pub(super) fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("engine.sock")
    }

    /// A process with so many handles, each connected to `peer`.
    pub(super) fn handles(&self, peer: SocketAddr, count: u32) -> Result<Process, Failure> {
        let socket = self.socket();
        Process::start(&[
            "bench-helper",
            "handles",
            &socket.to_string_lossy(),
            &peer.to_string(),
            &count.to_string(),
        ])
    }

    pub(super) fn status(&self) -> Result<ipc::Status, Failure> {
        let mut caller = Caller::connect(&self.socket(), Duration::from_secs(5))
            .map_err(Failure::of("the engine's socket"))?;
        ipc::fetch_status(&mut caller, Duration::from_secs(5)).map_err(Failure::of("status"))
    }

    /// Bytes committed in the areas of all handles.
    pub(super) fn committed_bytes(&self) -> Result<u64, Failure> {
        Ok(self
            .status()?
            .handles
            .iter()
            .map(|handle| handle.committed_bytes)
            .sum())
    }
}

pub(super) fn passive() -> Result<Session, Failure> {
    let config = Config {
        max_connections: 20_000,
        ..Config::default()
    };
    Ok(Session::new(
        Endpoint::new(config).map_err(Failure::of("starting"))?,
    ))
}

pub(super) fn listen(session: &mut Session) -> Result<SocketAddr, Failure> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listening = session.endpoint.listen(any, &Default::default());
    Ok(listening.map_err(Failure::of("listening"))?.1)
}

pub(super) fn wait_connected(session: &mut Session) -> Result<ConnectionId, Failure> {
    loop {
        match session.next(Some(patience()))? {
            Some(PeerEvent::Connected { connection, .. }) => return Ok(connection),
            Some(PeerEvent::Disconnected { reason, .. }) => {
                return Err(Failure::Failed(format!("connection lost: {reason}")));
            }
            Some(_) => {}
            None => return Err(Failure::Failed("the handle does not connect".into())),
        }
    }
}

/// The median round trip in microseconds.
fn round_trips(args: &Args, mut one: impl FnMut() -> Result<(), Failure>) -> Result<f64, Failure> {
    let mut times = Vec::with_capacity(args.iters as usize);
    for _ in 0..args.iters {
        let start = Instant::now();
        one()?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(&mut times))
}

fn echo_smbd(session: &mut Session, id: ConnectionId, payload: &[u8]) -> Result<(), Failure> {
    send(session, id, payload)?;
    answer(session)
}

fn send(session: &mut Session, id: ConnectionId, payload: &[u8]) -> Result<(), Failure> {
    session
        .endpoint
        .send(id, &[payload], 0, None)
        .map_err(Failure::of("sending"))
}

fn answer(session: &mut Session) -> Result<(), Failure> {
    loop {
        match session.next(Some(patience()))? {
            Some(PeerEvent::Pdu { pdu, .. }) => {
                session.endpoint.recycle(pdu);
                return Ok(());
            }
            Some(PeerEvent::Disconnected { reason, .. }) => {
                return Err(Failure::Failed(format!("connection lost: {reason}")));
            }
            Some(_) => {}
            None => return Err(Failure::Failed("the handle does not answer".into())),
        }
    }
}

fn rate_smbd(
    session: &mut Session,
    id: ConnectionId,
    payload: &[u8],
    window: u32,
) -> Result<f64, Failure> {
    for _ in 0..window {
        send(session, id, payload)?;
    }
    let start = Instant::now();
    let mut count = 0_u64;
    while start.elapsed() < RATE_TIME {
        answer(session)?;
        send(session, id, payload)?;
        count += 1;
    }
    let time = start.elapsed();
    for _ in 0..window {
        answer(session)?;
    }
    Ok(count as f64 / time.as_secs_f64())
}

fn echo_tcp(stream: &mut TcpStream, payload: &[u8]) -> Result<(), Failure> {
    let mut back = [0; 65_536];
    stream.write_all(payload).map_err(Failure::of("TCP"))?;
    stream
        .read_exact(&mut back[..payload.len()])
        .map_err(Failure::of("TCP"))
}

/// As [`rate_smbd`]: what has come is answered in one write, as the endpoint does it.
fn rate_tcp(stream: &mut TcpStream, payload: &[u8], window: u32) -> Result<f64, Failure> {
    let failed = || Failure::of("TCP");
    let size = payload.len();
    let block: Vec<u8> = payload.repeat(window as usize);
    let mut back = vec![0; block.len()];
    stream.write_all(&block).map_err(failed())?;
    let start = Instant::now();
    let (mut count, mut partial) = (0_u64, 0);
    while start.elapsed() < RATE_TIME {
        let got = stream.read(&mut back).map_err(failed())?;
        if got == 0 {
            return Err(Failure::Failed("the TCP echo ended".into()));
        }
        let whole = (partial + got) / size;
        partial = (partial + got) % size;
        stream.write_all(&block[..whole * size]).map_err(failed())?;
        count += whole as u64;
    }
    let time = start.elapsed();
    stream
        .read_exact(&mut back[..block.len() - partial])
        .map_err(failed())?;
    Ok(count as f64 / time.as_secs_f64())
}

/// A folder that goes away with its owner.
mod tempdir {
    use super::Path;
    use std::path::PathBuf;

    pub(super) struct Directory {
        path: PathBuf,
    }

    impl Directory {
        pub(super) fn new() -> std::io::Result<Self> {
            let name = format!("smbdirect-bench-{}-{:x}", std::process::id(), unique());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir(&path)?;
            Ok(Self { path })
        }

        pub(super) fn path(&self) -> &Path {
            &self.path
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }

    fn unique() -> u128 {
        let now = std::time::SystemTime::now();
        now.duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos())
    }
}
