//! One proxied connection: a TCP socket and an SMB Direct connection.

use std::fmt;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;
use smbdirect::fabric::ConnectOptions;
use smbdirect::peer::{ConnectionId, ConnectionStats, EndReason, Endpoint, Pdu};
use smbdirect::proto::Negotiated;
use smbdirect::sys::{Interest, Ready, Registry};

use super::tcp::{Input, Tcp};
use crate::units;

/// A client and its connection to the server.
pub(super) struct Link {
    tcp: Tcp,
    client: SocketAddr,
    connection: ConnectionId,
    state: State,
    started: Instant,
    ended: Option<Instant>,
    /// The first reason to end.
    end: Option<String>,
    /// Longest message the server takes.
    max_message: usize,
    /// Bytes given to the endpoint and not yet sent.
    unsent: usize,
    is_receiving: bool,
    stats: ConnectionStats,
    interest: Interest,
    /// Both directions of the client's socket are closed; waiting for it makes no sense any more.
    is_hung_up: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The client waits for the server.
    Connecting,
    Open,
    /// The server's side is being closed; what the client still gets is written meanwhile.
    Closing,
    /// The server's side is gone; what is queued for the client is written.
    Draining,
    Over,
}

impl Link {
    /// Starts to connect to the server for a client.
    pub(super) fn new(
        stream: TcpStream,
        client: SocketAddr,
        endpoint: &mut Endpoint,
        options: &ConnectOptions,
    ) -> Result<Self, String> {
        let tcp = Tcp::new(stream).map_err(|error| error.to_string())?;
        let connection = endpoint
            .connect(options)
            .map_err(|error| format!("cannot connect to {}: {error}", options.peer))?;
        Ok(Self {
            tcp,
            client,
            connection,
            state: State::Connecting,
            started: Instant::now(),
            ended: None,
            end: None,
            max_message: 0,
            unsent: 0,
            is_receiving: true,
            stats: ConnectionStats::default(),
            interest: Interest::NONE,
            is_hung_up: false,
        })
    }

    pub(super) fn tcp(&self) -> &Tcp {
        &self.tcp
    }

    pub(super) fn connection(&self) -> ConnectionId {
        self.connection
    }

    pub(super) fn name(&self) -> String {
        format!("client {}", self.client)
    }

    pub(super) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Why it ended.
    pub(super) fn end_text(&self) -> &str {
        self.end.as_deref().unwrap_or("open")
    }

    pub(super) fn totals(&self) -> Totals {
        let ended = self.ended.unwrap_or_else(Instant::now);
        Totals {
            stats: self.stats,
            time: ended.saturating_duration_since(self.started),
        }
    }

    /// The client can be read from or written to.
    pub(super) fn handle_ready(&mut self, endpoint: &mut Endpoint, ready: Ready) {
        if ready.writable && self.tcp.queued() > 0 {
            self.write(endpoint);
        }
        if ready.readable && self.state == State::Open {
            self.read(endpoint, true);
        }
        if ready.hangup && self.state != State::Open {
            self.is_hung_up = true;
            self.finish(endpoint, "the client went away");
        }
    }

    /// The server's side is up.
    pub(super) fn handle_connected(&mut self, endpoint: &mut Endpoint, negotiated: &Negotiated) {
        if self.state == State::Connecting {
            self.state = State::Open;
            self.max_message = negotiated.max_fragmented_send_size as usize;
            self.read(endpoint, true);
        }
    }

    /// A message came from the server.
    pub(super) fn handle_pdu(&mut self, endpoint: &mut Endpoint, pdu: Pdu) {
        if matches!(self.state, State::Draining | State::Over) {
            return endpoint.recycle(pdu);
        }
        match self.tcp.queue(pdu) {
            Ok(()) => self.write(endpoint),
            Err(text) => self.abort(endpoint, &text),
        }
    }

    /// A message of `cookie` bytes has left for the server.
    pub(super) fn handle_sent(&mut self, endpoint: &mut Endpoint, cookie: u64) {
        self.unsent = self.unsent.saturating_sub(cookie as usize);
        if self.state == State::Open {
            // What the buffer holds; the socket tells on its own when there is more.
            self.read(endpoint, false);
        }
    }

    /// The server's side is gone.
    pub(super) fn handle_disconnected(
        &mut self,
        endpoint: &mut Endpoint,
        reason: &EndReason,
        stats: &ConnectionStats,
    ) {
        self.stats = *stats;
        self.end.get_or_insert_with(|| {
            let failed = if self.max_message == 0 {
                "cannot connect: "
            } else {
                "server: "
            };
            format!("{failed}{reason}")
        });
        if self.state != State::Over {
            self.state = State::Draining;
            self.write(endpoint);
        }
    }

    /// Ends both sides at once.
    pub(super) fn abort(&mut self, endpoint: &mut Endpoint, why: &str) {
        if let Some(stats) = endpoint.stats(self.connection) {
            self.stats = stats;
        }
        endpoint.abort(self.connection);
        self.end.get_or_insert_with(|| why.to_owned());
        self.over();
    }

    /// Tells the poller what to wait for.
    pub(super) fn update_interest(&mut self, registry: &Registry, key: u64) {
        if self.is_hung_up {
            // Told for ever otherwise. A second removal does nothing.
            let _ = registry.remove(&self.tcp);
            return;
        }
        let wanted = Interest {
            readable: self.state == State::Open && self.unsent < MAX_UNSENT && !self.tcp.is_at_end,
            writable: self.state != State::Over && self.tcp.queued() > 0,
        };
        if wanted != self.interest && registry.modify(&self.tcp, key, wanted).is_ok() {
            self.interest = wanted;
        }
    }

    /// Passes messages on to the server, as long as not too much is on its way.
    fn read(&mut self, endpoint: &mut Endpoint, may_read: bool) {
        let mut may_read = may_read;
        while self.unsent < MAX_UNSENT {
            match self.tcp.next(endpoint, self.max_message, &mut may_read) {
                Ok(Input::Message(buffer)) => {
                    let bytes = buffer.memory().len();
                    if let Err(error) = endpoint.send_buffer(self.connection, buffer, bytes as u64)
                    {
                        return self.abort(endpoint, &format!("sending to the server: {error}"));
                    }
                    self.unsent += bytes;
                }
                Ok(Input::Nothing) => break,
                Err(text) => return self.finish(endpoint, &text),
            }
        }
        if self.tcp.is_at_end && self.state == State::Open {
            self.finish(endpoint, "closed by the client");
        }
    }

    fn write(&mut self, endpoint: &mut Endpoint) {
        if let Err(text) = self.tcp.write(endpoint) {
            return self.abort(endpoint, &text);
        }
        let queued = self.tcp.queued();
        if self.state == State::Draining {
            if queued == 0 {
                self.over();
            }
            return;
        }
        let is_receiving = if self.is_receiving {
            queued < MAX_QUEUED
        } else {
            queued == 0
        };
        if is_receiving != self.is_receiving {
            self.is_receiving = is_receiving;
            endpoint.set_receiving(self.connection, is_receiving);
        }
    }

    /// Ends the server's side in good order; the client's follows.
    fn finish(&mut self, endpoint: &mut Endpoint, why: &str) {
        if self.state == State::Connecting {
            return self.abort(endpoint, why);
        }
        self.end.get_or_insert_with(|| why.to_owned());
        if self.state == State::Open {
            self.state = State::Closing;
            endpoint.disconnect(self.connection);
        }
    }

    fn over(&mut self) {
        self.state = State::Over;
        self.ended.get_or_insert_with(Instant::now);
    }
}

/// What connections moved.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Totals {
    stats: ConnectionStats,
    time: Duration,
}

impl Totals {
    pub(super) fn add(&mut self, other: &Self) {
        let (sum, smbd) = (&mut self.stats.smbd, &other.stats.smbd);
        sum.messages_sent += smbd.messages_sent;
        sum.messages_received += smbd.messages_received;
        sum.pdus_sent += smbd.pdus_sent;
        sum.pdus_received += smbd.pdus_received;
        sum.credits_granted += smbd.credits_granted;
        sum.credits_received += smbd.credits_received;
        sum.credit_stalls += smbd.credit_stalls;
        sum.bytes_sent += smbd.bytes_sent;
        sum.bytes_received += smbd.bytes_received;
        self.time += other.time;
    }

    fn rate(&self) -> f64 {
        let smbd = &self.stats.smbd;
        units::mb_per_second(smbd.bytes_sent + smbd.bytes_received, self.time)
    }

    pub(super) fn to_json(self, what: &str, link: Option<&Link>) -> serde_json::Value {
        let smbd = &self.stats.smbd;
        let mut value = json!({
            "type": what,
            "pdus_sent": smbd.messages_sent,
            "pdus_received": smbd.messages_received,
            "fragments_sent": smbd.pdus_sent,
            "fragments_received": smbd.pdus_received,
            "credits_received": smbd.credits_received,
            "credits_granted": smbd.credits_granted,
            "credit_stalls": smbd.credit_stalls,
            "bytes_sent": smbd.bytes_sent,
            "bytes_received": smbd.bytes_received,
            "seconds": self.time.as_secs_f64(),
            "mb_per_second": self.rate(),
        });
        if let Some(link) = link {
            value["client"] = link.client.to_string().into();
            value["end"] = link.end_text().into();
        }
        value
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let smbd = &self.stats.smbd;
        write!(
            f,
            "sent {} PDUs in {} fragments, {}; received {} PDUs in {} fragments, {}; \
             credits got {}, granted {}; {:.2} s, {:.1} MB/s",
            smbd.messages_sent,
            smbd.pdus_sent,
            units::bytes(smbd.bytes_sent),
            smbd.messages_received,
            smbd.pdus_received,
            units::bytes(smbd.bytes_received),
            smbd.credits_received,
            smbd.credits_granted,
            self.time.as_secs_f64(),
            self.rate(),
        )
    }
}

/// On their way to the server at most, bytes, before the client is not read from any more; one
/// more message may come on top.
const MAX_UNSENT: usize = 16 << 20;
/// Queued for the client at most, bytes, before the server gets no more credits. What it has
/// credits for may come on top.
const MAX_QUEUED: usize = 16 << 20;
