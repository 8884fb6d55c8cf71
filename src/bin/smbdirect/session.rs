//! Steps that the tools have in common: connect and wait, describe what was agreed on.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use smbdirect::fabric::ConnectOptions;
use smbdirect::peer::{ConnectionId, Endpoint, PeerEvent};
use smbdirect::proto::Negotiated;

use crate::failure::Failure;

/// An endpoint whose events are taken one by one.
pub(crate) struct Session {
    pub(crate) endpoint: Endpoint,
    events: VecDeque<PeerEvent>,
    batch: Vec<PeerEvent>,
}

impl Session {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            events: VecDeque::new(),
            batch: Vec::new(),
        }
    }

    /// The next event; `None` when there was none until `deadline`.
    pub(crate) fn next(&mut self, deadline: Option<Instant>) -> Result<Option<PeerEvent>, Failure> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            let wait = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            self.endpoint
                .poll(wait, &mut self.batch)
                .map_err(Failure::of("waiting for events"))?;
            self.events.extend(self.batch.drain(..));
            if self.events.is_empty() && wait == Some(Duration::ZERO) {
                return Ok(None);
            }
        }
    }

    /// Connects and negotiates (on a raw endpoint: connects).
    pub(crate) fn connect(&mut self, options: &ConnectOptions) -> Result<Link, Failure> {
        let peer = options.peer;
        let cannot = |reason: &dyn std::fmt::Display| {
            Failure::Failed(format!(
                "cannot connect to {peer}: {reason}; is an SMB Direct listener there?"
            ))
        };
        let id = self
            .endpoint
            .connect(options)
            .map_err(|error| cannot(&error))?;
        let mut link = Link {
            id,
            local: peer,
            peer,
            ord: 0,
            negotiated: None,
        };
        loop {
            match self.next(None)? {
                Some(PeerEvent::Established {
                    connection,
                    local,
                    peer,
                    ord,
                    ..
                }) if connection == id => {
                    link = Link {
                        local,
                        peer,
                        ord,
                        ..link
                    };
                    if self.endpoint.is_raw() {
                        return Ok(link);
                    }
                }
                Some(PeerEvent::Connected {
                    connection,
                    negotiated,
                }) if connection == id => {
                    link.negotiated = Some(negotiated);
                    return Ok(link);
                }
                Some(PeerEvent::Disconnected {
                    connection, reason, ..
                }) if connection == id => {
                    return Err(cannot(&reason));
                }
                _ => {}
            }
        }
    }
}

/// A connection that is up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) id: ConnectionId,
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
    /// RDMA READs that may be outstanding.
    pub(crate) ord: u32,
    pub(crate) negotiated: Option<Negotiated>,
}

/// A line on standard output, at once even when that is a pipe; nobody may be listening.
pub(crate) fn say(line: impl std::fmt::Display) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// What was agreed on, in one line.
pub(crate) fn describe(negotiated: &Negotiated) -> String {
    format!(
        "send size {}, receive size {}, fragmented send {}, fragmented receive {}, \
         read/write {} bytes",
        negotiated.max_send_size,
        negotiated.max_receive_size,
        negotiated.max_fragmented_send_size,
        negotiated.max_fragmented_receive_size,
        negotiated.max_read_write_size,
    )
}
