//! A TCP relay that counts what passes it, between a client and a server on one machine.
#![allow(dead_code)] // Each test uses a part of it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::thread;

/// Takes one connection. Its threads end with the connection.
pub(crate) struct Relay {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    forwarded: Arc<AtomicU64>,
}

impl Relay {
    /// A relay to `server`.
    pub(crate) fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let forwarded = Arc::new(AtomicU64::new(0));
        let count = forwarded.clone();
        thread::spawn(move || {
            let (client, _) = listener.accept().unwrap();
            let server = TcpStream::connect(server).unwrap();
            client.set_nodelay(true).unwrap();
            server.set_nodelay(true).unwrap();
            let (from, to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || copy(from, to, &AtomicU64::new(0)));
            copy(client, server, &count);
        });
        Self { address, forwarded }
    }

    /// Bytes that have gone to the server.
    pub(crate) fn forwarded(&self) -> u64 {
        self.forwarded.load(Ordering::Acquire)
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; 256 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
        count.fetch_add(length as u64, Ordering::AcqRel);
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
    let _ = from.shutdown(std::net::Shutdown::Both);
}
