//! The other side: a child process with memory, that answers messages as they ask it to.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::mpsc::channel;

use smbdirect::fabric::{Access, FabricKind};
use smbdirect::mem::{MemSlice, Region};
use smbdirect::peer::{Config, Endpoint, PeerEvent};
use smbdirect::sys::Interest;

use super::MEMORY;
use crate::failure::Failure;
use crate::session::{say, Session};

/// What a message asks for; its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Answer {
    /// Nothing.
    None,
    /// The same message.
    Same,
    /// One byte.
    Byte,
    /// The descriptor of the memory.
    Memory,
}

/// What is asked for by TCP, for so many pieces of so many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Order {
    /// To have them back.
    Echo,
    /// To take them, and to answer one byte in the end.
    Sink,
    /// To take them, and to answer one byte to each.
    Answer,
    /// To send them.
    Source,
}

/// Order, bytes, count.
const ORDER: usize = 13;

impl Order {
    pub(super) fn emit(self, bytes: usize, count: u64) -> [u8; ORDER] {
        let mut order = [0; ORDER];
        order[0] = self as u8;
        order[1..5].copy_from_slice(&(bytes as u32).to_le_bytes());
        order[5..].copy_from_slice(&count.to_le_bytes());
        order
    }
}

/// Listens for TCP, for software iWARP and, at each address, for verbs. Runs until standard input ends.
pub(in crate::bench) fn run(addresses: &[IpAddr]) -> Result<(), Failure> {
    let first = addresses.first().copied().unwrap_or([127, 0, 0, 1].into());
    let listener = TcpListener::bind((first, 0)).map_err(Failure::of("listening"))?;
    let address = listener.local_addr().map_err(Failure::of("listening"))?;
    say(format_args!("listening on {address}"));
    std::thread::spawn(move || serve_tcp(&listener));
    let mut session = listen(FabricKind::SoftIwarp, &[first])?;
    if !addresses.is_empty() {
        // An endpoint is its thread's own; this one ends with the process.
        let addresses = addresses.to_vec();
        let (tell, told) = channel();
        std::thread::spawn(move || match listen(FabricKind::Verbs, &addresses) {
            Ok(mut other) => {
                let _ = tell.send(Ok(()));
                if let Err(error) = serve(&mut other) {
                    say(error);
                }
            }
            Err(error) => {
                let _ = tell.send(Err(error));
            }
        });
        told.recv().map_err(Failure::of("the thread for verbs"))??;
    }
    session
        .endpoint
        .registry()
        .add(io::stdin(), 0, Interest::READ)
        .map_err(Failure::of("standard input"))?;
    serve(&mut session)
}

fn listen(kind: FabricKind, addresses: &[IpAddr]) -> Result<Session, Failure> {
    let config = Config {
        kind,
        raw: true,
        ..Config::default()
    };
    let mut endpoint = Endpoint::new(config).map_err(Failure::of("starting"))?;
    for &address in addresses {
        let wanted = SocketAddr::new(address, 0);
        let listening = endpoint.listen(wanted, &Default::default());
        let (_, address) = listening.map_err(Failure::of(format!("listening on {address}")))?;
        say(format_args!("listening on {address}"));
    }
    Ok(Session::new(endpoint))
}

fn serve(session: &mut Session) -> Result<(), Failure> {
    let region = Region::anonymous(MEMORY).map_err(Failure::of("memory"))?;
    let memory = MemSlice::new(&region, 0, MEMORY).map_err(Failure::of("memory"))?;
    memory
        .write(0, &vec![0xa5; MEMORY])
        .map_err(Failure::of("memory"))?;
    let access = Access {
        remote_read: true,
        remote_write: true,
    };
    while let Some(event) = session.next(None)? {
        let endpoint = &mut session.endpoint;
        match event {
            PeerEvent::Ready(_) => break,
            PeerEvent::Raw {
                connection,
                message,
                ..
            } => {
                let mut answer = |bytes: &[u8]| {
                    let sent = endpoint.send_raw(connection, bytes, 0, None);
                    sent.map_err(Failure::of("sending"))
                };
                match message.first() {
                    Some(&kind) if kind == Answer::Same as u8 => answer(&message)?,
                    Some(&kind) if kind == Answer::Byte as u8 => answer(&[0])?,
                    Some(&kind) if kind == Answer::Memory as u8 => {
                        let descriptor = endpoint.register(connection, memory.clone(), access);
                        let descriptor = descriptor.map_err(Failure::of("registering"))?;
                        endpoint
                            .send_raw(connection, &descriptor.emit(), 0, None)
                            .map_err(Failure::of("sending"))?;
                    }
                    _ => {}
                }
                endpoint.recycle(message);
            }
            _ => {}
        }
    }
    Ok(())
}

fn serve_tcp(listener: &TcpListener) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut memory = vec![0xa5; MEMORY];
    loop {
        let mut order = [0; ORDER];
        stream.read_exact(&mut order)?;
        let [kind, a, b, c, d, count @ ..] = order;
        let bytes = (u32::from_le_bytes([a, b, c, d]) as usize).clamp(1, MEMORY);
        let count = u64::from_le_bytes(count);
        if kind == Order::Echo as u8 {
            let mut left = count * bytes as u64;
            while left > 0 {
                let most = left.min(64 << 10) as usize;
                let got = stream.read(&mut memory[..most])?;
                if got == 0 {
                    return Ok(());
                }
                stream.write_all(&memory[..got])?;
                left -= got as u64;
            }
            continue;
        }
        let mut pieces = Pieces::new(bytes);
        for _ in 0..count {
            let piece = &mut memory[pieces.next()..][..bytes];
            if kind == Order::Source as u8 {
                stream.write_all(piece)?;
                continue;
            }
            stream.read_exact(piece)?;
            if kind == Order::Answer as u8 {
                stream.write_all(&[0])?;
            }
        }
        if kind == Order::Sink as u8 {
            stream.write_all(&[0])?;
        }
    }
}

/// Where pieces of the memory lie, one after the other and again from the begin: neither side has the
/// processor's caches for itself.
pub(super) struct Pieces {
    bytes: usize,
    at: usize,
}

impl Pieces {
    pub(super) fn new(bytes: usize) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn next(&mut self) -> usize {
        let at = if self.at + self.bytes > MEMORY {
            0
        } else {
            self.at
        };
        self.at = at + self.bytes;
        at
    }
}
