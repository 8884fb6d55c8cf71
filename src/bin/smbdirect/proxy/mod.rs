//! `smbdirect proxy`: TCP clients of SMB on one side, SMB Direct on the other.
//!
//! Nothing but the framing is looked at. Memory is bounded both ways: a client that sends faster
//! than the peer gives credits is not read from, and a peer that sends faster than the client
//! reads gets no more credits.

mod framing;
mod link;
mod tcp;

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};

use smbdirect::peer::{Config, ConnectionId, Endpoint, PeerEvent};
use smbdirect::proto::Params;
use smbdirect::sys::{Interest, Ready};

use crate::args::{resolve, resolve_target, SmbdArgs};
use crate::failure::Failure;
use crate::session::{describe, say};
use crate::signals::StopSignal;
use crate::units::parse_size_u32;

use link::{Link, Totals};

/// Let SMB clients that only know TCP use a server over SMB Direct.
///
/// Listens on TCP, and opens one SMB Direct connection to the server for each TCP connection that
/// comes in. SMB2 messages pass unchanged and unread, so signing, encryption and
/// every dialect from 3.0 on work; SMB1 is refused.
///
/// When a connection ends, one line on standard output tells what it moved: PDUs are whole SMB2
/// messages, fragments the SMB Direct messages that carried them; "sent" is towards the server.
/// The proxy runs until SIGTERM or SIGINT and then prints the sum of all connections.
#[derive(clap::Args, Debug)]
#[command(after_long_help = "Examples:\n  \
    smbdirect proxy --listen 127.0.0.1:4450 --connect server\n  \
    smbclient -p 4450 //127.0.0.1/share\n\n  \
    smbdirect proxy --listen 127.0.0.1:0 --connect 192.0.2.7:5445 --crc --once\n\n\
    Exit status: 0 stopped by a signal or done (--once), 1 failure, 2 wrong usage.")]
pub(crate) struct Args {
    /// TCP address for clients; port 0 takes a free one. The address taken is printed as
    /// `listening on ADDRESS:PORT`
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:4450")]
    listen: String,
    /// SMB Direct server to connect to, by software iWARP or, with verbs: in front, through an RDMA
    /// device [port: 5445, with verbs: 445 if the device is not iWARP]
    #[arg(long, value_name = "[verbs:]HOST[:PORT]")]
    connect: String,
    /// End when the first client's connection has ended
    #[arg(long)]
    once: bool,
    /// Summaries as JSON, one object per line
    #[arg(long)]
    json: bool,
    /// Clients at once; further ones wait in the kernel's queue
    #[arg(long, value_name = "COUNT", default_value_t = 1000,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_clients: u32,
    /// Longest SMB2 message from the server, bytes: MaxFragmentedSize, 128K to 64M. The default
    /// has room for the largest READ that fits a TCP frame
    #[arg(long, value_name = "BYTES", value_parser = parse_size_u32, default_value = "16448K")]
    max_fragmented_size: u32,
    #[command(flatten)]
    smbd: SmbdArgs,
}

/// Runs the proxy until a signal.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let stop = StopSignal::new().map_err(Failure::of("catching SIGTERM"))?;
    let address = resolve(&args.listen, DEFAULT_PORT)?;
    let target = resolve_target(&args.connect)?;
    // 8136 is the largest offer that every known server takes.
    let defaults = Params {
        max_fragmented_size: args.max_fragmented_size,
        ..Params::default()
    };
    let active = args.smbd.params(defaults)?;
    let endpoint = Endpoint::new(Config {
        kind: target.fabric,
        active,
        ..Config::default()
    })
    .map_err(Failure::of("starting"))?;
    let server = target.peer(&endpoint);
    let listener = TcpListener::bind(address).map_err(Failure::of(format!(
        "--listen {address}: choose another address or port"
    )))?;
    let mut proxy = Proxy {
        options: args,
        server,
        endpoint,
        listener,
        links: HashMap::new(),
        next_link: 0,
        by_connection: HashMap::new(),
        is_accepting: false,
        ended: 0,
        totals: Totals::default(),
    };
    proxy.run(&stop)
}

struct Proxy<'a> {
    options: &'a Args,
    server: SocketAddr,
    endpoint: Endpoint,
    listener: TcpListener,
    /// By numbers that do not come back: readiness may be late for a link that is over.
    links: HashMap<u64, Link>,
    next_link: u64,
    by_connection: HashMap<ConnectionId, u64>,
    is_accepting: bool,
    ended: u64,
    totals: Totals,
}

impl Proxy<'_> {
    fn run(&mut self, stop: &StopSignal) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::Failed(format!("preparing to wait: {error}"));
        self.listener.set_nonblocking(true).map_err(failed)?;
        let registry = self.endpoint.registry();
        registry.add(stop, STOP, Interest::READ).map_err(failed)?;
        registry
            .add(&self.listener, LISTENER, Interest::READ)
            .map_err(failed)?;
        self.is_accepting = true;
        let address = self.listener.local_addr().map_err(failed)?;
        say(format!("listening on {address}"));

        let mut events = Vec::new();
        loop {
            self.endpoint
                .poll(None, &mut events)
                .map_err(Failure::of("waiting for events"))?;
            for event in events.drain(..) {
                if let PeerEvent::Ready(Ready { key: STOP, .. }) = event {
                    self.stop();
                    return Ok(());
                }
                self.handle(event)?;
            }
            if self.options.once && self.ended > 0 {
                self.stop();
                return Ok(());
            }
        }
    }

    fn handle(&mut self, event: PeerEvent) -> Result<(), Failure> {
        match event {
            PeerEvent::Ready(Ready { key: LISTENER, .. }) => self.accept()?,
            PeerEvent::Ready(ready) => {
                if let Some(link) = self.links.get_mut(&ready.key) {
                    link.handle_ready(&mut self.endpoint, ready);
                    self.settle(ready.key);
                }
            }
            PeerEvent::Connected {
                connection,
                negotiated,
            } => {
                self.with(connection, |link, endpoint| {
                    log::info!("{}: connected, {}", link.name(), describe(&negotiated));
                    link.handle_connected(endpoint, &negotiated);
                });
            }
            PeerEvent::Pdu {
                connection, pdu, ..
            } => {
                self.with(connection, |link, endpoint| link.handle_pdu(endpoint, pdu));
            }
            PeerEvent::Sent { connection, cookie } => {
                self.with(connection, |link, endpoint| {
                    link.handle_sent(endpoint, cookie)
                });
            }
            PeerEvent::Disconnected {
                connection,
                reason,
                stats,
            } => {
                self.with(connection, |link, endpoint| {
                    link.handle_disconnected(endpoint, &reason, &stats);
                });
                self.by_connection.remove(&connection);
            }
            _ => {}
        }
        Ok(())
    }

    fn with(&mut self, connection: ConnectionId, act: impl FnOnce(&mut Link, &mut Endpoint)) {
        let Some(&key) = self.by_connection.get(&connection) else {
            return;
        };
        if let Some(link) = self.links.get_mut(&key) {
            act(link, &mut self.endpoint);
            self.settle(key);
        }
    }

    /// After a link did something: what it waits for now, or its end.
    fn settle(&mut self, key: u64) {
        let Some(link) = self.links.get_mut(&key) else {
            return;
        };
        link.update_interest(&self.endpoint.registry(), key);
        if !link.is_over() {
            return;
        }
        let Some(link) = self.links.remove(&key) else {
            return;
        };
        self.by_connection.remove(&link.connection());
        let _ = self.endpoint.registry().remove(link.tcp());
        self.report(&link);
        self.ended += 1;
        if !self.is_accepting {
            self.is_accepting = true;
            let registry = self.endpoint.registry();
            let _ = registry.modify(&self.listener, LISTENER, Interest::READ);
        }
    }

    fn report(&mut self, link: &Link) {
        let totals = link.totals();
        self.totals.add(&totals);
        if self.options.json {
            say(totals.to_json("connection", Some(link)).to_string());
        } else {
            say(format!("{}: {totals}; {}", link.name(), link.end_text()));
        }
    }

    fn accept(&mut self) -> Result<(), Failure> {
        loop {
            if self.links.len() >= self.options.max_clients as usize {
                self.is_accepting = false;
                log::warn!("{} clients, the limit; others wait", self.links.len());
                return self
                    .endpoint
                    .registry()
                    .modify(&self.listener, LISTENER, Interest::NONE)
                    .map_err(Failure::of("waiting for clients to go"));
            }
            match self.listener.accept() {
                Ok((stream, client)) => self.start(stream, client),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    log::warn!("a client could not be accepted: {error}");
                    return Ok(());
                }
            }
        }
    }

    fn start(&mut self, stream: TcpStream, client: SocketAddr) {
        let options = self.options.smbd.connect_options(self.server);
        let link = Link::new(stream, client, &mut self.endpoint, &options);
        match link {
            Ok(link) => {
                let connection = link.connection();
                let key = self.next_link;
                let added = self
                    .endpoint
                    .registry()
                    .add(link.tcp(), key, Interest::NONE);
                if let Err(error) = added {
                    log::warn!("{client}: {error}");
                    self.endpoint.abort(connection);
                    return;
                }
                self.next_link += 1;
                self.links.insert(key, link);
                self.by_connection.insert(connection, key);
            }
            Err(error) => log::warn!("{client}: {error}"),
        }
    }

    /// Ends all connections and tells the sum.
    fn stop(&mut self) {
        for (_, mut link) in std::mem::take(&mut self.links) {
            link.abort(&mut self.endpoint, "the proxy was stopped");
            self.report(&link);
            self.ended += 1;
        }
        self.endpoint.flush();
        if self.options.json {
            let mut total = self.totals.to_json("total", None);
            total["connections"] = self.ended.into();
            say(total.to_string());
        } else {
            say(format!(
                "total of {} connections: {}",
                self.ended, self.totals
            ));
        }
    }
}

const DEFAULT_PORT: u16 = 4450;
/// Keys of what is waited for; links have their index.
const STOP: u64 = u64::MAX >> 8;
const LISTENER: u64 = STOP - 1;
