//! Our own SMB client on a server of a test's own.
#![allow(dead_code)] // Each test uses a part of it.

use std::net::SocketAddr;

use smbdirect::fabric::Access;
use smbdirect::mem::MemSlice;
use smbdirect::smb::{
    channel, Connection, Credentials, Dialect, FileId, Memory, OpenMode, Options, Profile,
    Response, Session, Signing, SmbError,
};

use crate::common::target;
use crate::samba::{samba, user, Server};

/// The password of the one user.
pub(crate) const PASSWORD: &str = "a password";

/// Bytes without a pattern, the same for the same seed.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A server with multichannel and a user who can sign.
pub(crate) fn start(test: &str) -> Option<Server> {
    start_with(test, "")
}

/// The same with more lines for `[global]`.
pub(crate) fn start_with(test: &str, global: &str) -> Option<Server> {
    let bin = samba(test)?;
    let global = format!("server multi channel support = yes\n{global}");
    let server = Server::start(bin, &global);
    server.add_user(PASSWORD);
    Some(server)
}

pub(crate) fn credentials() -> Credentials {
    Credentials {
        user: user(),
        password: PASSWORD.into(),
        domain: String::new(),
    }
}

pub(crate) fn options(dialect: Dialect, signing: Signing) -> Options {
    Options {
        dialects: vec![dialect],
        signing,
        ..Options::new().unwrap()
    }
}

/// Where the server takes SMB Direct.
pub(crate) fn rdma(server: &Server) -> SocketAddr {
    (target::address(), server.rdma_port).into()
}

/// Where the server takes plain TCP.
pub(crate) fn tcp(server: &Server) -> SocketAddr {
    (target::address(), server.tcp_port).into()
}

pub(crate) fn profiles() -> [Profile; 3] {
    [Profile::linux(), Profile::windows(), Profile::small()]
}

/// A connection with a session and the share.
pub(crate) fn open_share(mut connection: Connection) -> (Connection, Session, u32) {
    let session = connection.set_up_session(&credentials()).unwrap();
    let tree = connection.tree_connect(r"\\127.0.0.1\share").unwrap();
    (connection, session, tree)
}

/// An SMB Direct connection with a session and the share.
pub(crate) fn open_direct(
    server: &Server,
    profile: &Profile,
    options: &Options,
) -> (Connection, Session, u32) {
    open_share(direct(server, profile, options).unwrap())
}

/// An SMB Direct connection.
pub(crate) fn direct(
    server: &Server,
    profile: &Profile,
    options: &Options,
) -> Result<Connection, SmbError> {
    direct_to(rdma(server), profile, options)
}

/// The same to an address.
pub(crate) fn direct_to(
    address: SocketAddr,
    profile: &Profile,
    options: &Options,
) -> Result<Connection, SmbError> {
    let profile = over_fabric(profile);
    target::connect(|| Connection::direct(address, &profile, options))
}

/// The profile, over the fabric of the tests.
pub(crate) fn over_fabric(profile: &Profile) -> Profile {
    let mut profile = profile.clone();
    profile.config.kind = target::client_kind();
    profile
}

/// The channel whose first token the server invalidates, where it can.
pub(crate) fn invalidate() -> u32 {
    match target::can_be_invalidated() {
        true => channel::RDMA_V1_INVALIDATE,
        false => channel::RDMA_V1,
    }
}

/// The server may place data.
pub(crate) const TARGET: Access = Access {
    remote_read: false,
    remote_write: true,
};
/// The server may fetch data.
pub(crate) const SOURCE: Access = Access {
    remote_read: true,
    remote_write: false,
};
/// What memory contains before the server places data there.
pub(crate) const BLANK: u8 = 0xa5;

/// A connection with an open file.
pub(crate) struct Client {
    pub(crate) it: Connection,
    pub(crate) tree: u32,
    pub(crate) file: FileId,
}

impl Client {
    pub(crate) fn new(server: &Server, profile: &Profile, dialect: Dialect, name: &str) -> Self {
        let options = options(dialect, Signing::IfRequired);
        let (it, _, tree) = open_direct(server, profile, &options);
        Self::with(it, tree, name)
    }

    pub(crate) fn with(mut it: Connection, tree: u32, name: &str) -> Self {
        let file = it.open(tree, name, OpenMode::ReadWrite).unwrap().id;
        Self { it, tree, file }
    }

    pub(crate) fn register(&mut self, memory: &MemSlice, access: Access) -> Memory {
        let direct = self.it.direct_mut().unwrap();
        direct.register(memory, access).unwrap()
    }

    pub(crate) fn register_pieces(
        &mut self,
        memory: &MemSlice,
        pieces: &[usize],
        access: Access,
    ) -> Memory {
        let direct = self.it.direct_mut().unwrap();
        direct.register_pieces(memory, pieces, access).unwrap()
    }

    /// Takes memory back. With `is_invalidated` the first token has to be gone already.
    pub(crate) fn deregister(&mut self, memory: &Memory, is_invalidated: bool, what: &str) {
        let there = self.it.direct_mut().unwrap().deregister(memory);
        let (first, rest) = there.split_first().unwrap();
        assert_eq!(*first, !is_invalidated, "{what}: the first token");
        assert!(rest.iter().all(|&it| it), "{what}: tokens behind the first");
    }

    /// Writes `data` by RDMA, described in `pieces`.
    pub(crate) fn write(
        &mut self,
        offset: u64,
        data: &[u8],
        pieces: &[usize],
        id: u32,
        what: &str,
    ) {
        let memory = MemSlice::from_bytes(data).unwrap();
        let memory = self.register_pieces(&memory, pieces, SOURCE);
        let length = data.len() as u32;
        let (count, response) = self
            .it
            .rdma_write(self.tree, self.file, offset, length, id, &memory)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(count, length, "{what}");
        self.finish(&memory, &response, id, what);
    }

    /// Reads by RDMA into memory described in `pieces`; returns all of the memory.
    pub(crate) fn read(
        &mut self,
        offset: u64,
        length: u32,
        pieces: &[usize],
        id: u32,
        what: &str,
    ) -> (u32, Vec<u8>) {
        let memory = MemSlice::from_bytes(&vec![BLANK; pieces.iter().sum()]).unwrap();
        let memory = self.register_pieces(&memory, pieces, TARGET);
        let (count, response) = self
            .it
            .rdma_read(self.tree, self.file, offset, length, id, &memory)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        // `[MS-SMB2] 3.3.5.12`.
        assert_eq!(response.read_result().unwrap().data_offset, 80, "{what}");
        self.finish(&memory, &response, id, what);
        (count, memory.memory().to_vec())
    }

    /// `[MS-SMB2] 3.3.5.12`, 3.3.5.13: the first token, and only if that was asked for.
    pub(crate) fn finish(&mut self, memory: &Memory, response: &Response, id: u32, what: &str) {
        let is_invalidated = id == channel::RDMA_V1_INVALIDATE;
        let first = memory.descriptors()[0].token;
        assert_eq!(
            response.invalidated,
            is_invalidated.then_some(first),
            "{what}"
        );
        assert_eq!(response.invalidated_by_interim, None, "{what}");
        self.deregister(memory, is_invalidated, what);
    }
}

/// The channels of a dialect: `[MS-SMB2] 2.2.19`.
pub(crate) fn channels(dialect: Dialect) -> &'static [u32] {
    match dialect {
        Dialect::Smb300 => &[channel::RDMA_V1],
        _ if !target::can_be_invalidated() => &[channel::RDMA_V1],
        _ => &[channel::RDMA_V1, channel::RDMA_V1_INVALIDATE],
    }
}

/// A length in pieces of at most `size`.
pub(crate) fn pieces(length: usize, size: usize) -> Vec<usize> {
    let mut pieces = vec![size; length / size];
    pieces.extend(Some(length % size).filter(|&rest| rest > 0));
    pieces
}
