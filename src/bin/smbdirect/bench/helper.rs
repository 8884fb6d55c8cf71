//! The bench's child processes.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use smbdirect::client::{EventKind, Handle, OpenOptions, SendPdu, Taken};
use smbdirect::fabric::{Access, ConnectOptions};
use smbdirect::ipc::{self, ConnectSpec};
use smbdirect::mem::{MemSlice, Region};
use smbdirect::peer::{Config, Endpoint, PeerEvent};
use smbdirect::sys::{Interest, Poller, Ready};

use super::fabric;
use super::load;
use super::process::pss_bytes;
use crate::failure::Failure;
use crate::session::{say, Session};

/// Bytes that either side of the bulk test has to read from and write to.
pub(super) const BULK_BYTES: usize = 16 << 20;

/// How long the other side may take for anything.
pub(super) fn patience() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

pub(super) fn connect_options(peer: SocketAddr, crc: bool) -> ConnectOptions {
    ConnectOptions {
        peer,
        crc,
        mpa_revision: 2,
        ird: 32,
        ord: 32,
        private_data: Vec::new(),
        timeout: Duration::from_secs(10),
    }
}

/// A child process of `smbdirect bench`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    role: Role,
}

#[derive(clap::Subcommand, Debug)]
enum Role {
    /// Memory for RDMA, and a TCP source and sink
    Bulk,
    /// The same for each fabric, without MS-SMBD; verbs at the addresses
    Fabric { addresses: Vec<IpAddr> },
    /// A TCP echo
    Echo,
    /// A TCP relay to the address
    Relay { upstream: SocketAddr },
    /// Handles at the engine, each connected to the peer, that send PDUs back
    Handles {
        socket: PathBuf,
        peer: SocketAddr,
        count: u32,
    },
    /// Handles at the engine that serve the load, and some more for the storm
    LoadServer {
        socket: PathBuf,
        count: u32,
        storms: u32,
    },
    /// Short connections to the handles from the first one on
    LoadStorm {
        server: SocketAddr,
        first: u32,
        count: u32,
    },
}

/// Runs until standard input ends.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    match &args.role {
        Role::Bulk => bulk(),
        Role::Fabric { addresses } => fabric::run_server(addresses),
        Role::Echo => echo(),
        Role::Relay { upstream } => relay(*upstream),
        Role::Handles {
            socket,
            peer,
            count,
        } => handles(socket, *peer, *count),
        Role::LoadServer {
            socket,
            count,
            storms,
        } => load::run_server(socket, *count, *storms),
        Role::LoadStorm {
            server,
            first,
            count,
        } => load::run_storm(*server, *first, *count),
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn tcp_listener() -> Result<TcpListener, Failure> {
    let listener = TcpListener::bind(loopback()).map_err(Failure::of("listening"))?;
    let address = listener.local_addr().map_err(Failure::of("listening"))?;
    say(format_args!("listening on {address}"));
    Ok(listener)
}

fn bulk() -> Result<(), Failure> {
    let mut endpoint = Endpoint::new(Config::default()).map_err(Failure::of("starting"))?;
    let (_, address) = endpoint
        .listen(loopback(), &Default::default())
        .map_err(Failure::of("listening"))?;
    say(format_args!("listening on {address}"));
    let listener = tcp_listener()?;
    std::thread::spawn(move || serve_bulk_tcp(&listener));
    endpoint
        .registry()
        .add(io::stdin(), 0, Interest::READ)
        .map_err(Failure::of("standard input"))?;
    let region = Region::anonymous(BULK_BYTES).map_err(Failure::of("memory"))?;
    let memory = MemSlice::new(&region, 0, BULK_BYTES).map_err(Failure::of("memory"))?;
    memory
        .write(0, &vec![0xa5; BULK_BYTES])
        .map_err(Failure::of("memory"))?;
    let access = Access {
        remote_read: true,
        remote_write: true,
    };
    let mut session = Session::new(endpoint);
    while let Some(event) = session.next(None)? {
        let endpoint = &mut session.endpoint;
        match event {
            PeerEvent::Ready(_) => break,
            PeerEvent::Connected { connection, .. } => {
                let descriptor = endpoint
                    .register(connection, memory.clone(), access)
                    .map_err(Failure::of("registering"))?;
                endpoint
                    .send(connection, &[&descriptor.emit()], 0, None)
                    .map_err(Failure::of("sending"))?;
            }
            PeerEvent::Pdu {
                connection, pdu, ..
            } => {
                endpoint
                    .send(connection, &[&pdu], 0, None)
                    .map_err(Failure::of("sending"))?;
                endpoint.recycle(pdu);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Orders of nine bytes: 0 sink or 1 source, and a count.
fn serve_bulk_tcp(listener: &TcpListener) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut memory = vec![0xa5; BULK_BYTES];
    loop {
        let mut order = [0; 9];
        stream.read_exact(&mut order)?;
        let [kind, count @ ..] = order;
        let mut left = u64::from_le_bytes(count);
        while left > 0 {
            for piece in memory.chunks_mut(1 << 20) {
                let part = left.min(piece.len() as u64) as usize;
                left -= part as u64;
                if kind == 0 {
                    stream.read_exact(&mut piece[..part])?;
                } else {
                    stream.write_all(&piece[..part])?;
                }
            }
        }
        if kind == 0 {
            stream.write_all(&[0])?;
        }
    }
}

/// Each process on TCP's side does what it does best with one connection: block.
fn echo() -> Result<(), Failure> {
    let (mut stream, _) = tcp_listener()?.accept().map_err(Failure::of("accept"))?;
    stream.set_nodelay(true).map_err(Failure::of("TCP"))?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer).map_err(Failure::of("TCP"))? {
            0 => return Ok(()),
            count => stream
                .write_all(&buffer[..count])
                .map_err(Failure::of("TCP"))?,
        }
    }
}

/// One thread between two sockets, level-triggered, as a relay is written.
fn relay(upstream: SocketAddr) -> Result<(), Failure> {
    let failed = || Failure::of("relay");
    let listener = tcp_listener()?;
    let (client, _) = listener.accept().map_err(failed())?;
    let server = TcpStream::connect(upstream).map_err(failed())?;
    let mut poller = Poller::new().map_err(failed())?;
    let registry = poller.registry(0);
    let streams = [client, server];
    for (key, stream) in streams.iter().enumerate() {
        stream.set_nodelay(true).map_err(failed())?;
        registry
            .add(stream, key as u64, Interest::READ)
            .map_err(failed())?;
    }
    let mut buffer = vec![0; 64 << 10];
    let mut ready: Vec<Ready> = Vec::new();
    loop {
        ready.clear();
        poller.wait(None, &mut ready).map_err(failed())?;
        for one in &ready {
            let (from, to) = if one.key == 0 { (0, 1) } else { (1, 0) };
            let [mut source, mut target] = [&streams[from], &streams[to]];
            match source.read(&mut buffer).map_err(failed())? {
                0 => return Ok(()),
                count => target.write_all(&buffer[..count]).map_err(failed())?,
            }
        }
    }
}

fn handles(socket: &std::path::Path, peer: SocketAddr, count: u32) -> Result<(), Failure> {
    // Several descriptors for each handle.
    smbdirect::sys::raise_file_limit();
    let before = pss_bytes(std::process::id())?;
    let mut poller = Poller::new().map_err(Failure::of("handles"))?;
    let registry = poller.registry(0);
    registry
        .add(io::stdin(), u64::from(u32::MAX), Interest::READ)
        .map_err(Failure::of("handles"))?;
    let start = Instant::now();
    let mut handles = Vec::new();
    for key in 0..count {
        let options = OpenOptions {
            socket: socket.to_owned(),
            ..OpenOptions::default()
        };
        let mut handle = Handle::open(options).map_err(Failure::of("handles"))?;
        let spec = ConnectSpec {
            fabric: ipc::Fabric::SoftIwarp,
            address: peer,
            crc: false,
            mpa_revision: 2,
            timeout_msec: 10_000,
            params: ipc::Params::default(),
        };
        handle.connect(&spec).map_err(Failure::of("handles"))?;
        let fd = handle.fd().map_err(Failure::of("handles"))?;
        registry
            .add(fd.as_fd(), key.into(), Interest::READ)
            .map_err(Failure::of("handles"))?;
        handles.push(handle);
    }

    let mut attached = 0;
    let mut ready: Vec<Ready> = Vec::new();
    let mut load = Load::default();
    let mut back = Vec::new();
    loop {
        ready.clear();
        poller
            .wait(None, &mut ready)
            .map_err(Failure::of("handles"))?;
        for one in &ready {
            let Some(handle) = handles.get_mut(one.key as usize) else {
                say(load.to_json());
                return Ok(());
            };
            let new = serve(handle, &mut back)?;
            load.note(handle, new.pdus);
            attached += new.attached;
            if new.attached > 0 && attached == count {
                let seconds = start.elapsed().as_secs_f64();
                say(format_args!("attached {seconds} {before}"));
            }
        }
    }
}

#[derive(Default)]
struct Served {
    attached: u32,
    pdus: u64,
}

/// Takes what a handle has, and sends PDUs back.
fn serve(handle: &mut Handle, back: &mut Vec<(u64, Vec<u8>)>) -> Result<Served, Failure> {
    let failed = || Failure::of("handle");
    let mut served = Served::default();
    let mut lost = None;
    handle
        .take_events(BATCH, &mut |event, bytes| {
            match event.kind {
                EventKind::PduReceived => {
                    let pdu = bytes.map(|bytes| bytes.to_vec()).unwrap_or_default();
                    back.push((event.connection, pdu));
                }
                EventKind::Attached => served.attached += 1,
                EventKind::Disconnected | EventKind::EngineLost => lost = Some(event.status),
                _ => {}
            }
            Taken::Done
        })
        .map_err(failed())?;
    if let Some(status) = lost {
        return Err(Failure::Failed(format!(
            "a connection of the bench ended: {status}"
        )));
    }
    served.pdus = back.len() as u64;
    for (connection, pdu) in back.drain(..) {
        let send = SendPdu {
            connection,
            cookie: 0,
            has_event: false,
            invalidate: None,
            length: pdu.len(),
        };
        handle.queue_bytes(&send, &pdu).map_err(failed())?;
    }
    if served.pdus > 0 {
        handle.submit().map_err(failed())?;
    }
    Ok(served)
}

/// System calls of the data path while PDUs came in batches: that is what load looks like here.
#[derive(Default)]
struct Load {
    syscalls_seen: u64,
    syscalls: u64,
    pdus: u64,
    batches: u64,
}

impl Load {
    fn note(&mut self, handle: &Handle, pdus: u64) {
        let Ok(statistics) = handle.statistics() else {
            return;
        };
        let new = statistics.syscalls.saturating_sub(self.syscalls_seen);
        self.syscalls_seen = statistics.syscalls;
        if pdus > 1 {
            // The wait that led here is one, too.
            self.syscalls += new + 1;
            self.pdus += pdus;
            self.batches += 1;
        }
    }

    fn to_json(&self) -> serde_json::Value {
        json!({
            "load_syscalls": self.syscalls,
            "load_pdus": self.pdus,
            "load_batches": self.batches,
        })
    }
}

/// Events taken at once.
const BATCH: usize = 64;
