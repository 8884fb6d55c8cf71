//! Connections that come, say one thing and go, as fast as they can.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use serde_json::json;
use smbdirect::peer::{Config, ConnectionId, Endpoint, PeerEvent};
use smbdirect::sys::Interest;

use super::super::helper::{connect_options, patience};
use super::message::{negotiate, Kind, Message};
use crate::failure::Failure;
use crate::session::{say, Session};

/// Connections at the same moment.
const PARALLEL: usize = 16;
/// Payload of the one request.
const PAYLOAD: usize = 256;

/// `bench-helper load-storm`: connects to the handles from `first` on, `count` of them. Runs until
/// standard input ends.
pub(in crate::bench) fn run(server: SocketAddr, first: u32, count: u32) -> Result<(), Failure> {
    let endpoint = Endpoint::new(Config::default()).map_err(Failure::of("storm"))?;
    endpoint
        .registry()
        .add(io::stdin(), 0, Interest::READ)
        .map_err(Failure::of("standard input"))?;
    let mut storm = Storm {
        session: Session::new(endpoint),
        server,
        first,
        count,
        begun: 0,
        open: HashMap::new(),
        served: 0,
    };
    let start = Instant::now();
    while storm.open.len() < PARALLEL {
        storm.begin()?;
    }
    let mut goes_on = true;
    while !storm.open.is_empty() {
        match storm.session.next(Some(patience()))? {
            None => return Err(Failure::Failed("storm: a connection hangs".into())),
            Some(PeerEvent::Ready(_)) => goes_on = false,
            Some(event) => storm.take(event, goes_on)?,
        }
    }
    say(json!({
        "connections": storm.begun,
        "served": storm.served,
        "seconds": start.elapsed().as_secs_f64(),
    }));
    Ok(())
}

struct Storm {
    session: Session,
    server: SocketAddr,
    first: u32,
    count: u32,
    begun: u32,
    /// The number of each connection, and whether it has been ended by us.
    open: HashMap<ConnectionId, (u32, bool)>,
    served: u64,
}

impl Storm {
    fn begin(&mut self) -> Result<(), Failure> {
        let id = self
            .session
            .endpoint
            .connect(&connect_options(self.server, false))
            .map_err(Failure::of("storm: connecting"))?;
        self.open.insert(id, (self.begun, false));
        self.begun = self.begun.wrapping_add(1);
        Ok(())
    }

    /// Each of four ways to end is as frequent: without a word, after NEGOTIATE, by a reset after
    /// the answer, in good order.
    fn end(&mut self, id: ConnectionId, aborts: bool) {
        if let Some((_, ends)) = self.open.get_mut(&id) {
            *ends = true;
        }
        if aborts {
            self.session.endpoint.abort(id);
        } else {
            self.session.endpoint.disconnect(id);
        }
    }

    fn send(&mut self, id: ConnectionId, pdu: &[u8]) -> Result<(), Failure> {
        let sent = self.session.endpoint.send(id, &[pdu], 0, None);
        sent.map_err(Failure::of("storm: sending"))
    }

    fn take(&mut self, event: PeerEvent, goes_on: bool) -> Result<(), Failure> {
        match event {
            PeerEvent::Connected { connection, .. } => {
                let Some(&(number, _)) = self.open.get(&connection) else {
                    return Ok(());
                };
                if number % 4 == 0 {
                    self.end(connection, false);
                    return Ok(());
                }
                self.send(connection, &negotiate(self.first + number % self.count))?;
                if number % 4 == 1 {
                    self.end(connection, false);
                }
                Ok(())
            }
            PeerEvent::Pdu {
                connection, pdu, ..
            } => {
                let Some(&(number, false)) = self.open.get(&connection) else {
                    return Ok(());
                };
                let wrong = || Failure::Failed("storm: a wrong answer".into());
                let (message, payload) = Message::parse(&pdu).ok_or_else(wrong)?;
                if message.kind == Kind::Welcome {
                    let request = Message {
                        kind: Kind::Echo,
                        connection: number,
                        sequence: 0,
                        memory: (0, 0, 0),
                    };
                    let mut content = [0; PAYLOAD];
                    request.fill(false, &mut content);
                    return self.send(connection, &[&request.emit()[..], &content].concat());
                }
                if message.connection != number || !message.matches(true, payload) {
                    return Err(wrong());
                }
                self.served += 1;
                self.end(connection, number % 4 == 2);
                Ok(())
            }
            PeerEvent::Disconnected {
                connection, reason, ..
            } => {
                let ours = self.open.remove(&connection).is_some_and(|(_, ends)| ends);
                if !ours {
                    return Err(Failure::Failed(format!("storm: lost: {reason}")));
                }
                if goes_on {
                    self.begin()?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
