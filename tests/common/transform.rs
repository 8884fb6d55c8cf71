//! READ and WRITE with RDMA transforms: what is sent, and what of it a test makes wrong.
#![allow(dead_code)] // Each test uses a part of it.

use std::fs;

use smbdirect::mem::MemSlice;
use smbdirect::smb::{
    channel, status, transform_id, Cipher, CryptoTransform, Dialect, Encrypting, Memory, Options,
    Profile, Protection, RdmaTransform, ReadRequest, Response, Signing, WriteRequest,
};

use crate::samba::Server;
use crate::smb::{open_direct, options, Client, BLANK, SOURCE, TARGET};

pub(crate) const MIB: usize = 1 << 20;
/// MaxReadSize and MaxWriteSize of smbd.
pub(crate) const LARGE: usize = 8 * MIB;

/// A session that is encrypted, with these transforms asked for.
pub(crate) fn encrypted(cipher: Cipher, transforms: &[u16]) -> Options {
    Options {
        encrypting: Encrypting::Always,
        ciphers: vec![cipher],
        transforms: transforms.to_vec(),
        ..options(Dialect::Smb311, Signing::IfRequired)
    }
}

/// A session that is signed, with these transforms asked for.
pub(crate) fn signed(signing: Signing, transforms: &[u16]) -> Options {
    Options {
        transforms: transforms.to_vec(),
        ..options(Dialect::Smb311, signing)
    }
}

pub(crate) const ENCRYPTION: &[u16] = &[transform_id::ENCRYPTION];
pub(crate) const SIGNING: &[u16] = &[transform_id::SIGNING];
pub(crate) const BOTH: &[u16] = &[transform_id::ENCRYPTION, transform_id::SIGNING];

/// Each way to protect payloads: a name, what to ask for, what comes of it.
pub(crate) fn protections() -> Vec<(String, Options, Protection)> {
    let mut all = Vec::new();
    for cipher in Cipher::ALL {
        let name = format!("{cipher:?}");
        all.push((name, encrypted(cipher, BOTH), Protection::Encrypted));
    }
    for signing in [
        Signing::AlwaysGmac,
        Signing::AlwaysCmac,
        Signing::AlwaysHmac,
    ] {
        let name = format!("{signing:?}");
        all.push((name, signed(signing, BOTH), Protection::Signed));
    }
    all
}

/// What a server answers when data is not what was sealed.
pub(crate) fn mismatch(protection: Protection) -> u32 {
    match protection {
        Protection::Encrypted => status::AUTH_TAG_MISMATCH,
        _ => status::INVALID_SIGNATURE,
    }
}

/// An SMB Direct connection with an open file.
pub(crate) fn open(server: &Server, options: &Options, name: &str) -> Client {
    let (it, _, tree) = open_direct(server, &Profile::windows(), options);
    Client::with(it, tree, name)
}

/// A WRITE that is ready to be sent: sealed data in registered memory.
pub(crate) struct Draft {
    pub(crate) memory: Memory,
    pub(crate) length: u32,
    pub(crate) transform: RdmaTransform,
}

impl Draft {
    pub(crate) fn crypto(&mut self) -> &mut CryptoTransform {
        &mut self.transform.transforms[0]
    }

    /// Changes a byte of the data.
    pub(crate) fn tamper(&self, at: usize) {
        let memory = self.memory.memory();
        let mut byte = [0];
        memory.read(at, &mut byte).unwrap();
        memory.write(at, &[byte[0] ^ 1]).unwrap();
    }

    pub(crate) fn channel_info(&self) -> Vec<u8> {
        self.transform.channel_info(self.memory.descriptors())
    }

    /// Puts the descriptors behind the transforms again, after those have changed.
    pub(crate) fn place(&mut self) {
        self.transform.descriptor_offset = self.transform.emit().len() as u16;
    }
}

impl Client {
    /// Seals `data` in memory of its own.
    pub(crate) fn draft(&mut self, protection: Protection, data: &[u8], channel: u32) -> Draft {
        self.draft_pieces(protection, data, &[data.len()], channel)
    }

    pub(crate) fn draft_pieces(
        &mut self,
        protection: Protection,
        data: &[u8],
        pieces: &[usize],
        channel: u32,
    ) -> Draft {
        let memory = MemSlice::from_bytes(data).unwrap();
        let sealed = self.it.seal_payload(protection, &memory, data.len());
        let transform = sealed.unwrap().expect("is protected");
        let memory = self.register_pieces(&memory, pieces, SOURCE);
        let transform = RdmaTransform::of_write(channel, transform, memory.descriptors());
        Draft {
            memory,
            length: data.len() as u32,
            transform,
        }
    }

    /// The WRITE request of a draft, with channel information as it is given.
    pub(crate) fn request(&self, draft: &Draft, offset: u64, info: Vec<u8>) -> WriteRequest {
        WriteRequest {
            channel_info_length: info.len() as u16,
            channel_info: info,
            ..WriteRequest::transformed(
                self.file,
                offset,
                draft.length,
                &draft.transform,
                draft.memory.descriptors(),
            )
        }
    }

    /// Sends a WRITE and waits for its answer.
    pub(crate) fn answer(&mut self, write: &WriteRequest) -> Response {
        let request = write.to_request(self.tree).unwrap();
        let id = self.it.submit(request).unwrap();
        self.it.wait(id).unwrap()
    }

    /// Sends a draft and takes its memory back.
    pub(crate) fn write_draft(&mut self, draft: &Draft, offset: u64) -> Response {
        let write = self.request(draft, offset, draft.channel_info());
        let response = self.answer(&write);
        self.it.direct_mut().unwrap().deregister(&draft.memory);
        response
    }

    /// A READ of which only the response is of interest; its payload is verified.
    pub(crate) fn read_verified(&mut self, offset: u64, length: usize) -> (Vec<u8>, Response) {
        let memory = MemSlice::from_bytes(&vec![BLANK; length]).unwrap();
        let memory = self.register(&memory, TARGET);
        let read = ReadRequest::rdma(
            self.file,
            offset,
            length as u32,
            channel::RDMA_V1,
            memory.descriptors(),
        );
        let response = self.it.call(read.to_request(self.tree).unwrap()).unwrap();
        let count = self.it.open_payload(&response, memory.memory()).unwrap();
        self.it.direct_mut().unwrap().deregister(&memory);
        let mut data = memory.memory().to_vec();
        assert!(data[count as usize..].iter().all(|&it| it == BLANK));
        data.truncate(count as usize);
        (data, response)
    }
}

/// A file before something is refused that must not change it.
pub(crate) struct Untouched<'a> {
    server: &'a Server,
    name: String,
    content: Vec<u8>,
}

impl<'a> Untouched<'a> {
    /// Makes the file.
    pub(crate) fn new(server: &'a Server, name: &str, content: Vec<u8>) -> Self {
        fs::write(server.share(name), &content).unwrap();
        let name = name.to_owned();
        Self {
            server,
            name,
            content,
        }
    }

    /// The file is as it was, and the connection serves the next request, which is a WRITE that
    /// has to come out right.
    pub(crate) fn check(
        &mut self,
        client: &mut Client,
        protection: Option<Protection>,
        what: &str,
    ) {
        let path = self.server.share(&self.name);
        assert!(fs::read(&path).unwrap() == self.content, "{what}: the file");
        client
            .it
            .echo()
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let Some(protection) = protection else {
            return;
        };
        let data = crate::smb::noise(4096, self.content.len() as u64);
        let draft = client.draft(protection, &data, channel::RDMA_V1);
        let response = client.write_draft(&draft, 0);
        assert_eq!(response.status(), status::SUCCESS, "{what}: the next WRITE");
        let length = self.content.len().max(data.len());
        self.content.resize(length, 0);
        self.content[..data.len()].copy_from_slice(&data);
        assert!(fs::read(&path).unwrap() == self.content, "{what}: the next");
    }
}
