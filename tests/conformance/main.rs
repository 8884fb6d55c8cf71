//! Conformance: the cases of Microsoft's test suite for MS-SMBD servers, the rules of `[MS-SMBD]`
//! 3.1, and what went wrong in other implementations. docs/conformance.md has the tables.
//!
//! The side under test is `smbdirect engine` as a process and, where a case speaks SMB2, the patched
//! smbd. The peer is scripted ([`smbd_peer`]), or our SMB client.

mod credits;
mod negotiate;
mod rdma;
mod rules;
mod transfer;
mod wounds;

#[path = "../common/engine_host.rs"]
mod engine_host;
#[path = "../common/engine_process.rs"]
mod engine_process;
#[path = "../common/samba.rs"]
mod samba;
#[path = "../common/smb.rs"]
mod smb;
#[path = "../common/smbd_peer.rs"]
mod smbd_peer;
#[path = "../common/mod.rs"]
mod tools;

/// Where the shared files look for each other.
mod common {
    pub(crate) use crate::engine_host::*;
    pub(crate) use crate::tools::*;
}

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use common::{listen, negotiate as smb2_negotiate, open_at, wait_for};
use engine_process::{register, EngineProcess};
use samba::Server;
use smbd_peer::{Shared, SmbdPeer};
use smbdirect::client::{EventKind, Handle, OpenOptions};
use smbdirect::ipc::Params;
use smbdirect::smb::{Connection, Dialect, FileId, OpenMode, Signing};
use smbdirect::wire::NegotiateRequest;

/// An engine with one owner of connections instead of smbd.
struct Bed {
    engine: EngineProcess,
    _parent: Handle,
    address: SocketAddr,
    owner: Handle,
}

/// Connections with this ClientGuid come to the owner.
const GUID: [u8; 16] = *b"guid-of-the-peer";

impl Bed {
    fn new(name: &str) -> Self {
        Self::with(name, &Params::default())
    }

    fn with(name: &str, params: &Params) -> Self {
        let engine = EngineProcess::new(&format!("conformance-{name}"));
        let mut parent = open_at(&engine.socket, true);
        parent.set_params(params).unwrap();
        let address = listen(&mut parent);
        let mut options = OpenOptions {
            socket: engine.socket.clone(),
            timeout: common::PATIENCE,
            ..OpenOptions::default()
        };
        options.area.receive_slot_size = params.max_receive_size;
        options.area.max_connections = 512;
        let mut owner = Handle::open(options).unwrap();
        register(&mut owner, GUID);
        Self {
            engine,
            _parent: parent,
            address,
            owner,
        }
    }

    /// A peer that the owner has got; returns the connection's name there.
    fn attached(&mut self, request: NegotiateRequest) -> (SmbdPeer, u64) {
        let mut peer = SmbdPeer::negotiated_with(self.address, request);
        let id = self.attach(&mut peer);
        (peer, id)
    }

    /// Brings a connection that has negotiated to the owner.
    fn attach(&mut self, peer: &mut SmbdPeer) -> u64 {
        let pdu = smb2_negotiate(GUID, &[0x0300]);
        peer.send_pdu(&pdu).unwrap();
        let (event, bytes) = wait_for(&mut self.owner, EventKind::PduReceived);
        assert_eq!(bytes, pdu);
        event.connection
    }

    /// The owner sends a PDU.
    fn send(&mut self, connection: u64, pdu: &[u8]) {
        common::send(&mut self.owner, connection, 7, pdu);
    }

    /// Others are served as ever.
    fn check_others(&mut self) {
        let (mut peer, id) = self.attached(smbd_peer::request());
        self.send(id, b"\xfeSMB here");
        assert_eq!(peer.receive_pdu().unwrap().0, b"\xfeSMB here");
    }
}

/// The patched smbd that the tests of this program share, with the suite's MaxFragmentedSize. It
/// ends with the last test that holds it.
fn server(test: &str) -> Option<Arc<Server>> {
    static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(server) = shared.upgrade() {
        return Some(server);
    }
    let server = Arc::new(smb::start_with(
        test,
        "smbdirect:max fragmented size = 131072",
    )?);
    *shared = Arc::downgrade(&server);
    Some(server)
}

/// An SMB client with an open file, on a scripted peer.
struct Scripted {
    peer: Shared,
    it: Connection,
    tree: u32,
    file: FileId,
}

impl Scripted {
    fn new(server: &Server, name: &str) -> Self {
        Self::with(server, name, smbd_peer::request(), |_| ())
    }

    /// Negotiates with this request, and lets the peer be changed before SMB2 starts.
    fn with(
        server: &Server,
        name: &str,
        request: NegotiateRequest,
        change: impl FnOnce(&mut SmbdPeer),
    ) -> Self {
        let mut peer = SmbdPeer::negotiated_with(smb::rdma(server), request);
        change(&mut peer);
        let options = smb::options(Dialect::Smb311, Signing::IfRequired);
        let (it, peer) = Shared::under(peer, &options).unwrap();
        let (mut it, _, tree) = smb::open_share(it);
        let file = it.open(tree, name, OpenMode::Overwrite).unwrap().id;
        Self {
            peer,
            it,
            tree,
            file,
        }
    }

    /// WRITEs `data` with what the script makes of it; it has to be in the file then.
    fn write(&mut self, server: &Server, name: &str, data: &[u8]) {
        let count = self.it.write(self.tree, self.file, 0, data).unwrap();
        assert_eq!(count as usize, data.len());
        let written = std::fs::read(server.share(name)).unwrap();
        assert!(written == data, "{name}: not what was written");
    }
}
