//! The load's handles: each takes connections of one ClientGuid, answers and moves data.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use smbdirect::client::{Event, EventKind, Handle, OpenOptions, RdmaOp, SendPdu, Taken};
use smbdirect::ipc::{Fabric, ListenSpec, Params, SessionSpec};
use smbdirect::ring::{AreaOptions, Descriptor, Segment};
use smbdirect::sys::{Interest, Poller, Ready};

use super::message::{client_guid, Kind, Message, RDMA_BYTES};
use crate::failure::Failure;
use crate::session::say;

/// Events taken from one handle before the next one has its turn.
const BATCH: usize = 64;

/// Handle `index` of the load, or one for a storm.
struct Served {
    handle: Handle,
    /// Its clients may be gone before they are answered.
    is_storm: bool,
    connections: HashMap<u64, Connection>,
}

#[derive(Default)]
struct Connection {
    /// The sequence of the next request.
    next: u64,
    /// The request whose RDMA operation is not done yet.
    moving: Option<Message>,
}

/// `bench-helper load-server`: a parent handle that listens, and `count` handles, of which those for
/// storms come last. Runs until standard input ends.
pub(in crate::bench) fn run(socket: &Path, count: u32, storms: u32) -> Result<(), Failure> {
    // Several descriptors for each handle.
    smbdirect::sys::raise_file_limit();
    let open = |parent, max_connections| {
        Handle::open(OpenOptions {
            socket: PathBuf::from(socket),
            parent,
            area: AreaOptions {
                rdma_buffers: 1,
                rdma_buffer_size: RDMA_BYTES as u32,
                max_connections,
                receive_slots: 0,
                ..AreaOptions::default()
            },
            ..OpenOptions::default()
        })
    };
    let mut parent = open(true, 1).map_err(Failure::of("load server"))?;
    parent
        .set_params(&Params::default())
        .map_err(Failure::of("load server"))?;
    let mut poller = Poller::new().map_err(Failure::of("load server"))?;
    let registry = poller.registry(0);
    registry
        .add(io::stdin(), u64::from(u32::MAX), Interest::READ)
        .map_err(Failure::of("load server"))?;
    let mut all = Vec::new();
    for index in 0..count + storms {
        let is_storm = index >= count;
        let mut handle =
            open(false, if is_storm { 256 } else { 4 }).map_err(Failure::of("load server"))?;
        handle
            .set_session(&SessionSpec {
                session_id: None,
                client_guid: Some(client_guid(index)),
                remove: false,
            })
            .map_err(Failure::of("load server"))?;
        let fd = handle.fd().map_err(Failure::of("load server"))?;
        registry
            .add(fd.as_fd(), index.into(), Interest::READ)
            .map_err(Failure::of("load server"))?;
        all.push(Served {
            handle,
            is_storm,
            connections: HashMap::new(),
        });
    }
    let address = parent
        .listen(&ListenSpec {
            fabric: Fabric::SoftIwarp,
            address: ([127, 0, 0, 1], 0).into(),
            crc: false,
        })
        .map_err(Failure::of("load server"))?;
    say(format_args!("listening on {address}"));
    let mut ready: Vec<Ready> = Vec::new();
    let mut scratch = vec![0; RDMA_BYTES];
    loop {
        ready.clear();
        poller
            .wait(None, &mut ready)
            .map_err(Failure::of("load server"))?;
        for one in &ready {
            match all.get_mut(one.key as usize) {
                Some(served) => served.serve(&mut scratch)?,
                None => return Ok(()),
            }
        }
    }
}

impl Served {
    fn serve(&mut self, scratch: &mut [u8]) -> Result<(), Failure> {
        let mut events: Vec<(Event, Vec<u8>)> = Vec::new();
        self.handle
            .take_events(BATCH, &mut |event, bytes| {
                events.push((*event, bytes.map(|it| it.to_vec()).unwrap_or_default()));
                Taken::Done
            })
            .map_err(Failure::of("load server"))?;
        for (event, bytes) in events {
            let id = event.connection;
            match event.kind {
                EventKind::PduReceived => self.request(id, &bytes, scratch)?,
                EventKind::RdmaReadComplete => self.fetched(&event, scratch)?,
                EventKind::RdmaWriteComplete => drop(self.moved(&event)?),
                EventKind::Disconnected => drop(self.connections.remove(&id)),
                EventKind::EngineLost => return Err(Failure::Failed("the engine is gone".into())),
                _ => {}
            }
        }
        self.handle.submit().map_err(Failure::of("load server"))
    }

    fn request(&mut self, id: u64, bytes: &[u8], scratch: &mut [u8]) -> Result<(), Failure> {
        if bytes.starts_with(b"\xfeSMB") {
            let welcome = Message {
                kind: Kind::Welcome,
                connection: 0,
                sequence: 0,
                memory: (0, 0, 0),
            };
            self.connections.insert(id, Connection::default());
            return self.answer(id, &welcome, &[]);
        }
        let wrong = |what: &str| Err(Failure::Failed(format!("a request with {what}")));
        let Some((message, payload)) = Message::parse(bytes) else {
            return wrong("a changed header");
        };
        let Some(connection) = self.connections.get_mut(&id) else {
            return wrong("a connection that has ended");
        };
        if std::mem::replace(&mut connection.next, message.sequence + 1) != message.sequence {
            return wrong(&format!("sequence {}: one was lost", message.sequence));
        }
        if !message.matches(false, payload) {
            return wrong("changed content");
        }
        match message.kind {
            Kind::Welcome => wrong("an answer's kind"),
            Kind::Echo => {
                let content = &mut scratch[..payload.len()];
                message.fill(true, content);
                self.answer(id, &message, content)
            }
            Kind::Read | Kind::Write => self.start(id, message, scratch),
        }
    }

    /// Starts the RDMA operation of a request. An answer to a READ goes right behind it.
    fn start(&mut self, id: u64, message: Message, scratch: &mut [u8]) -> Result<(), Failure> {
        if let Some(connection) = self.connections.get_mut(&id) {
            // The client has the answer, so the data before it has left.
            if connection.moving.replace(message).is_some() {
                return Err(Failure::Failed(
                    "a request before the last one is done".into(),
                ));
            }
        }
        let is_read = message.kind == Kind::Write;
        let info = self.handle.meminfo().map_err(Failure::of("load server"))?;
        let start = info.layout.rdma.offset;
        if !is_read {
            message.fill(true, scratch);
            info.region
                .write(start as usize, scratch)
                .map_err(Failure::of("load server"))?;
        }
        let (offset, token, length) = message.memory;
        let op = RdmaOp {
            connection: id,
            cookie: message.sequence,
            has_event: true,
            is_lazy: false,
            is_read,
            invalidate_next: false,
            segments: &[Segment {
                offset: start,
                length: length.into(),
            }],
            descriptors: &[Descriptor {
                offset,
                token,
                length,
            }],
        };
        self.handle
            .queue_rdma(&op)
            .map_err(Failure::of("load server"))?;
        if is_read {
            return Ok(());
        }
        self.answer(id, &message, &[])
    }

    fn moved(&mut self, event: &Event) -> Result<Message, Failure> {
        let connection = self.connections.get_mut(&event.connection);
        match connection.and_then(|it| it.moving.take()) {
            Some(message) if event.status == 0 && event.cookie == message.sequence => Ok(message),
            other => Err(Failure::Failed(format!(
                "an RDMA operation ended with {}: {other:?}",
                event.status
            ))),
        }
    }

    fn fetched(&mut self, event: &Event, scratch: &mut [u8]) -> Result<(), Failure> {
        let message = self.moved(event)?;
        let info = self.handle.meminfo().map_err(Failure::of("load server"))?;
        let start = info.layout.rdma.offset as usize;
        info.region
            .read(start, scratch)
            .map_err(Failure::of("load server"))?;
        if !message.matches(false, scratch) {
            return Err(Failure::Failed(
                "an RDMA READ fetched something else".into(),
            ));
        }
        self.answer(event.connection, &message, &[])
    }

    fn answer(&mut self, id: u64, message: &Message, payload: &[u8]) -> Result<(), Failure> {
        let pdu = [&message.emit()[..], payload].concat();
        let send = SendPdu {
            connection: id,
            cookie: 0,
            has_event: false,
            invalidate: None,
            length: pdu.len(),
        };
        match self.handle.queue_bytes(&send, &pdu) {
            Err(_) if self.is_storm => Ok(()),
            sent => sent.map_err(Failure::of("load server")),
        }
    }
}
