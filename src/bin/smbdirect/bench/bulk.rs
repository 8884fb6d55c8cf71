//! Bulk: RDMA READ and WRITE against TCP, between the same two processes.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use smbdirect::fabric::Status;
use smbdirect::mem::MemSlice;
use smbdirect::peer::{Config, Endpoint, PeerEvent};
use smbdirect::wire::BufferDescriptor;

use super::helper::{connect_options, patience, BULK_BYTES};
use super::process::Process;
use super::{median, Args, Row};
use crate::failure::Failure;
use crate::session::{Link, Session};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

pub(super) fn measure(args: &Args) -> Result<Vec<Row>, Failure> {
    let mut helper = Process::start(&["bench-helper", "bulk"])?;
    let smbd = helper.address()?;
    let tcp = helper.address()?;
    let endpoint = Endpoint::new(Config::default()).map_err(Failure::of("starting"))?;
    let mut session = Session::new(endpoint);
    let memory = MemSlice::from_bytes(&vec![0x5a; BULK_BYTES])
        .map_err(Failure::of("memory for the bulk test"))?;
    let mut plain_memory = vec![0x5a; BULK_BYTES];
    let mut plain = Remote::connect(&mut session, smbd, false)?;
    let mut checked = Remote::connect(&mut session, smbd, true)?;
    let mut stream = TcpStream::connect(tcp).map_err(Failure::of("TCP"))?;
    stream.set_nodelay(true).map_err(Failure::of("TCP"))?;

    let mut rows = Vec::new();
    for direction in [Direction::Write, Direction::Read] {
        let [mut over_tcp, mut without, mut with] = [const { Vec::new() }; 3];
        // The first round warms caches and TCP's windows up, and does not count.
        for round in 0..=args.repeat {
            let a = tcp_rate(&mut stream, &mut plain_memory, direction, args)?;
            let b = plain.rate(&mut session, &memory, direction, args)?;
            let c = checked.rate(&mut session, &memory, direction, args)?;
            if round > 0 {
                over_tcp.push(a);
                without.push(b);
                with.push(c);
            }
        }
        let tcp = median(&mut over_tcp);
        let name = match direction {
            Direction::Write => "RDMA WRITE",
            Direction::Read => "RDMA READ",
        };
        let cases = [(without, "", ">= 0.90"), (with, ", CRC32C", ">= 0.70")];
        for (mut rates, suffix, goal) in cases {
            rows.push(Row {
                what: format!("{name} bulk{suffix}"),
                ours: median(&mut rates),
                tcp: Some(tcp),
                unit: "MB/s",
                goal,
            });
        }
    }
    Ok(rows)
}

/// The helper's memory.
struct Remote {
    link: Link,
    descriptor: BufferDescriptor,
}

impl Remote {
    fn connect(session: &mut Session, peer: SocketAddr, crc: bool) -> Result<Self, Failure> {
        let link = session.connect(&connect_options(peer, crc))?;
        loop {
            match session.next(Some(patience()))? {
                Some(PeerEvent::Pdu {
                    pdu, connection, ..
                }) if connection == link.id => {
                    let descriptor = BufferDescriptor::parse(&pdu)
                        .map_err(Failure::of("the helper's memory"))?;
                    return Ok(Self { link, descriptor });
                }
                Some(_) => {}
                None => return Err(Failure::Failed("the helper does not answer".into())),
            }
        }
    }

    /// MB/s of one repetition, until the last byte is known to be there.
    fn rate(
        &mut self,
        session: &mut Session,
        memory: &MemSlice,
        direction: Direction,
        args: &Args,
    ) -> Result<f64, Failure> {
        let slots = (BULK_BYTES as u64 / args.chunk).max(1);
        let count = args.bytes.div_ceil(args.chunk).max(1);
        let (mut posted, mut done) = (0, 0);
        let start = Instant::now();
        while done < count {
            while posted < count && posted - done < u64::from(args.depth) {
                self.post(
                    session,
                    memory,
                    direction,
                    posted % slots * args.chunk,
                    args.chunk,
                )?;
                posted += 1;
            }
            match session.next(Some(patience()))? {
                Some(PeerEvent::Rdma {
                    status: Status::Success,
                    ..
                }) => done += 1,
                Some(PeerEvent::Disconnected { reason, .. }) => {
                    return Err(Failure::Failed(format!("connection lost: {reason}")));
                }
                Some(_) => {}
                None => return Err(Failure::Failed("RDMA does not end".into())),
            }
        }
        if direction == Direction::Write {
            // A WRITE is done when its memory is free again; the echo behind it shows that the
            // bytes have been placed.
            let sent = session.endpoint.send(self.link.id, &[b"placed?"], 0, None);
            sent.map_err(Failure::of("sending"))?;
            loop {
                match session.next(Some(patience()))? {
                    Some(PeerEvent::Pdu { pdu, .. }) => {
                        session.endpoint.recycle(pdu);
                        break;
                    }
                    Some(_) => {}
                    None => return Err(Failure::Failed("the helper does not answer".into())),
                }
            }
        }
        Ok((count * args.chunk) as f64 / start.elapsed().as_secs_f64() / 1e6)
    }

    fn post(
        &self,
        session: &mut Session,
        memory: &MemSlice,
        direction: Direction,
        at: u64,
        len: u64,
    ) -> Result<(), Failure> {
        let piece = memory
            .slice(at as usize, len as usize)
            .map_err(Failure::of("bulk memory"))?;
        let descriptors = [self.descriptor];
        let endpoint = &mut session.endpoint;
        match direction {
            Direction::Read => endpoint.rdma_read(self.link.id, &piece, &descriptors, at, 0),
            Direction::Write => endpoint.rdma_write(self.link.id, &piece, &descriptors, at, 0),
        }
        .map_err(Failure::of("posting RDMA"))
    }
}

/// MB/s of the same bytes over TCP. The helper answers one byte when it has all of a write.
fn tcp_rate(
    stream: &mut TcpStream,
    memory: &mut [u8],
    direction: Direction,
    args: &Args,
) -> Result<f64, Failure> {
    let failed = || Failure::of("TCP");
    let count = args.bytes.div_ceil(args.chunk).max(1);
    let total = count * args.chunk;
    // At most the memory, which has 16 MiB as the largest chunk.
    let (chunk, mut at) = (args.chunk as usize, 0);
    // As much memory as RDMA uses, so that neither side has the caches for itself.
    let start = Instant::now();
    let mut order = [0; 9];
    order[0] = u8::from(direction == Direction::Read);
    order[1..].copy_from_slice(&total.to_le_bytes());
    stream.write_all(&order).map_err(failed())?;
    match direction {
        Direction::Write => {
            for _ in 0..count {
                if at + chunk > memory.len() {
                    at = 0;
                }
                stream
                    .write_all(&memory[at..at + chunk])
                    .map_err(failed())?;
                at += chunk;
            }
            stream.read_exact(&mut [0]).map_err(failed())?;
        }
        Direction::Read => {
            for _ in 0..count {
                if at + chunk > memory.len() {
                    at = 0;
                }
                stream
                    .read_exact(&mut memory[at..at + chunk])
                    .map_err(failed())?;
                at += chunk;
            }
        }
    }
    Ok(total as f64 / start.elapsed().as_secs_f64() / 1e6)
}
