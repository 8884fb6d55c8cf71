//! RDMA channels that are asked for wrongly, memory that is not there, sides that go away: our own
//! SMB client against the patched smbd.

mod common;
#[path = "common/samba.rs"]
mod samba;
#[path = "common/smb.rs"]
mod smb;

use std::fs;

use common::target;
use smb::{noise, options, profiles, start, tcp, Client, SOURCE, TARGET};
use smbdirect::mem::MemSlice;
use smbdirect::smb::{
    channel, status, Connection, Dialect, FileId, Memory, OpenMode, Profile, ReadRequest, Request,
    Signing, SmbError, WriteRequest,
};
use smbdirect::wire::BufferDescriptor;

const LENGTH: u32 = 8192;

/// What is wrong with a request, and how it is changed to that.
type Case<T> = (&'static str, Box<dyn Fn(&mut T)>);

/// An array of descriptors of memory that is not there.
fn named<const N: usize>(lengths: [u32; N]) -> Vec<u8> {
    let descriptor = |length| BufferDescriptor {
        offset: 0,
        token: 1,
        length,
    };
    lengths.map(|length| descriptor(length).emit()).concat()
}

/// What READ and WRITE have in common: `[MS-SMB2] 3.3.5.12`, 3.3.5.13. The array itself is checked
/// as ksmbd does.
macro_rules! channel_cases {
    ($request:ty, $length:ident, $max:ident) => {{
        fn case(name: &'static str, change: impl Fn(&mut $request) + 'static) -> Case<$request> {
            (name, Box::new(change))
        }
        fn array(request: &mut $request, bytes: Vec<u8>) {
            request.channel_info_length = bytes.len() as u16;
            request.channel_info = bytes;
        }
        vec![
            case("channel 3", |r| r.channel = channel::RDMA_TRANSFORM),
            case("channel 4", |r| r.channel = 4),
            case("channel ffffffff", |r| r.channel = u32::MAX),
            case("nothing to move", |r| r.$length = 0),
            case("more than the maximum", move |r| {
                r.$length = $max + 1;
                array(r, named([u32::MAX]));
            }),
            case("no offset", |r| r.channel_info_offset = 0),
            case("offset in the header", |r| r.channel_info_offset = 48),
            case("offset in the fixed part", |r| r.channel_info_offset = 96),
            case("offset behind the end", |r| r.channel_info_offset = 128),
            case("offset ffff", |r| r.channel_info_offset = u16::MAX),
            case("no array", |r| r.channel_info_length = 0),
            case("half a descriptor", |r| r.channel_info_length = 8),
            case("one and a half", |r| {
                array(r, named([LENGTH, LENGTH]));
                r.channel_info_length = 24;
            }),
            case("array behind the end", |r| r.channel_info_length = 32),
            case("array of fff0 bytes", |r| r.channel_info_length = 0xfff0),
            case("empty first descriptor", |r| array(r, named([0, LENGTH]))),
            case("too little memory", |r| array(r, named([4096, 4095]))),
        ]
    }};
}

fn bad_reads(max: u32, dialect: Dialect) -> Vec<Case<ReadRequest>> {
    let mut cases: Vec<Case<ReadRequest>> = channel_cases!(ReadRequest, length, max);
    if dialect == Dialect::Smb300 {
        let invalidate = |r: &mut ReadRequest| r.channel = channel::RDMA_V1_INVALIDATE;
        cases.push(("channel 2", Box::new(invalidate)));
    }
    cases
}

fn bad_writes(max: u32, dialect: Dialect) -> Vec<Case<WriteRequest>> {
    let mut cases: Vec<Case<WriteRequest>> = channel_cases!(WriteRequest, remaining_bytes, max);
    cases.push(("Length", Box::new(|r| r.length = 1)));
    cases.push(("DataOffset", Box::new(|r| r.data_offset = 112)));
    if dialect == Dialect::Smb300 {
        let invalidate = |r: &mut WriteRequest| r.channel = channel::RDMA_V1_INVALIDATE;
        cases.push(("channel 2", Box::new(invalidate)));
    }
    cases
}

impl Client {
    /// The status of the answer to a request.
    fn status_of(&mut self, request: Request, what: &str) -> u32 {
        let id = self.it.submit(request).unwrap();
        let response = self.it.wait(id);
        let response = response.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(response.invalidated, None, "{what}");
        response.status()
    }

    /// Both directions work.
    fn expect_good(&mut self, what: &str) {
        let data = noise(LENGTH as usize, 77);
        self.write(0, &data, &[LENGTH as usize], channel::RDMA_V1, what);
        let got = self.read(0, LENGTH, &[LENGTH as usize], channel::RDMA_V1, what);
        assert!(got == (LENGTH, data), "{what}");
    }
}

#[test]
fn malformed_channel_information_is_refused() {
    let Some(server) = start("malformed_channel_information_is_refused") else {
        return;
    };
    for dialect in Dialect::ALL {
        let name = format!("malformed-{dialect:?}");
        let mut client = Client::new(&server, &Profile::windows(), dialect, &name);
        client.expect_good(&name);
        let before = fs::read(server.share(&name)).unwrap();
        let negotiated = *client.it.negotiated();
        let memory = MemSlice::from_bytes(&noise(LENGTH as usize, 1)).unwrap();
        let source = client.register(&memory, SOURCE);
        let target = client.register(&memory, TARGET);
        let (file, tree) = (client.file, client.tree);

        let id = channel::RDMA_V1;
        let read = ReadRequest::rdma(file, 0, LENGTH, id, target.descriptors());
        for (what, change) in bad_reads(negotiated.max_read_size, dialect) {
            let mut bad = read.clone();
            change(&mut bad);
            // Paid for in full, so that nothing else is wrong.
            let request = bad
                .to_request(tree)
                .unwrap()
                .with_payload(LENGTH.max(bad.length));
            let status = client.status_of(request, what);
            assert_eq!(
                status,
                status::INVALID_PARAMETER,
                "READ, {dialect:?}, {what}"
            );
        }
        let write = WriteRequest::rdma(file, 0, LENGTH, id, source.descriptors());
        for (what, change) in bad_writes(negotiated.max_write_size, dialect) {
            let mut bad = write.clone();
            change(&mut bad);
            let request = bad.to_request(tree).unwrap();
            let status = client.status_of(request, what);
            assert_eq!(
                status,
                status::INVALID_PARAMETER,
                "WRITE, {dialect:?}, {what}"
            );
        }

        // Credits for less than is read.
        let long = ReadRequest {
            length: 65_537,
            channel_info: named([65_537]),
            ..read.clone()
        };
        let request = long.to_request(tree).unwrap().with_payload(65_536);
        let status = client.status_of(request, "credits");
        assert_eq!(status, status::INVALID_PARAMETER, "{dialect:?}");
        // A file that is not open.
        let closed = ReadRequest {
            file_id: FileId {
                persistent: 1234,
                volatile: 5678,
            },
            ..read.clone()
        };
        let status = client.status_of(closed.to_request(tree).unwrap(), "closed");
        assert_eq!(status, status::FILE_CLOSED, "{dialect:?}");
        // RemainingBytes of a READ means nothing.
        let remaining = ReadRequest {
            remaining_bytes: u32::MAX,
            ..read
        };
        let status = client.status_of(remaining.to_request(tree).unwrap(), "remaining");
        assert_eq!(status, status::SUCCESS, "{dialect:?}");

        client.expect_good(&name);
        assert!(fs::read(server.share(&name)).unwrap() == before);
    }
    server.wait_for_baseline();
}

#[test]
fn rdma_channels_are_nothing_for_tcp() {
    let Some(server) = start("rdma_channels_are_nothing_for_tcp") else {
        return;
    };
    for dialect in Dialect::ALL {
        let options = options(dialect, Signing::IfRequired);
        let (it, _, tree) = smb::open_share(Connection::tcp(tcp(&server), &options).unwrap());
        let mut client = Client::with(it, tree, "tcp");
        client.it.write(tree, client.file, 0, &[7; 10_000]).unwrap();
        for id in [channel::RDMA_V1, channel::RDMA_V1_INVALIDATE] {
            let memory = [BufferDescriptor {
                offset: 0,
                token: 1,
                length: LENGTH,
            }];
            let read = ReadRequest::rdma(client.file, 0, LENGTH, id, &memory);
            let status = client.status_of(read.to_request(tree).unwrap(), "READ");
            assert_eq!(status, status::INVALID_PARAMETER, "READ {dialect:?}");
            let write = WriteRequest::rdma(client.file, 0, LENGTH, id, &memory);
            let status = client.status_of(write.to_request(tree).unwrap(), "WRITE");
            assert_eq!(status, status::INVALID_PARAMETER, "WRITE {dialect:?}");
        }
    }
    server.wait_for_baseline();
}

/// Cases 48 to 53 of Microsoft's suite: the server cannot see that the memory is not there. The
/// request does not succeed, or the connection ends; the server goes on.
#[test]
fn memory_that_is_not_there() {
    let Some(server) = start("memory_that_is_not_there") else {
        return;
    };
    fs::write(server.share("gone"), noise(LENGTH as usize, 6)).unwrap();
    type Change = fn(&mut BufferDescriptor);
    let cases: [(&str, Change); 6] = [
        ("offset", |it| it.offset += 1),
        ("offset far away", |it| it.offset = u64::MAX - 100),
        ("length", |it| it.length += 1),
        ("token", |it| it.token = it.token.wrapping_add(1)),
        ("access", |_| ()),
        ("deregistered", |_| ()),
    ];
    for (what, change) in cases {
        for is_read in [true, false] {
            let name = "gone";
            let mut client = Client::new(&server, &Profile::windows(), Dialect::Smb311, name);
            let memory = MemSlice::from_bytes(&[0; LENGTH as usize]).unwrap();
            if what == "access" && !is_read && !target::checks_reads() {
                continue;
            }
            let is_target = is_read != (what == "access");
            let memory = client.register(&memory, if is_target { TARGET } else { SOURCE });
            let mut descriptor = memory.descriptors()[0];
            change(&mut descriptor);
            if what == "deregistered" {
                client.deregister(&memory, false, what);
            }
            let length = descriptor.length;
            client.expect_failure(is_read, length, descriptor, what);
        }
    }
    // A token that the server invalidated is gone for good.
    for is_read in [true, false] {
        if !target::can_be_invalidated() {
            continue;
        }
        let mut client = Client::new(&server, &Profile::windows(), Dialect::Smb311, "gone");
        let memory = MemSlice::from_bytes(&[1; LENGTH as usize]).unwrap();
        let memory = client.register(&memory, if is_read { TARGET } else { SOURCE });
        let id = channel::RDMA_V1_INVALIDATE;
        let (tree, file) = (client.tree, client.file);
        let done = if is_read {
            client.it.rdma_read(tree, file, 0, LENGTH, id, &memory)
        } else {
            client.it.rdma_write(tree, file, 0, LENGTH, id, &memory)
        };
        let descriptor = memory.descriptors()[0];
        assert_eq!(done.unwrap().1.invalidated, Some(descriptor.token));
        client.expect_failure(is_read, LENGTH, descriptor, "invalidated");
    }
    Client::new(&server, &Profile::windows(), Dialect::Smb311, "gone").expect_good("afterwards");
    server.wait_for_baseline();
}

impl Client {
    /// A READ or WRITE that cannot succeed.
    fn expect_failure(
        mut self,
        is_read: bool,
        length: u32,
        descriptor: BufferDescriptor,
        what: &str,
    ) {
        let id = channel::RDMA_V1;
        let request = if is_read {
            ReadRequest::rdma(self.file, 0, length, id, &[descriptor]).to_request(self.tree)
        } else {
            WriteRequest::rdma(self.file, 0, length, id, &[descriptor]).to_request(self.tree)
        };
        let id = self.it.submit(request.unwrap()).unwrap();
        match self.it.wait(id).map(|response| response.status()) {
            // A short file is the reason, not the memory.
            Ok(status) if is_read && length > LENGTH && status == status::SUCCESS => {}
            Ok(status) => assert_ne!(status, status::SUCCESS, "{what}, read {is_read}"),
            Err(SmbError::Connection(_)) => {}
            Err(error) => panic!("{what}, read {is_read}: {error}"),
        }
    }
}

/// Requests in flight, and then the client is gone: nothing stays behind in engine and smbd.
#[test]
fn clients_that_go_away_leave_nothing() {
    let Some(server) = start("clients_that_go_away_leave_nothing") else {
        return;
    };
    let data = noise(16 << 20, 8);
    fs::write(server.share("leave"), &data).unwrap();
    for profile in profiles() {
        for round in 0..6 {
            let mut client = Client::new(&server, &profile, Dialect::Smb311, "leave");
            let whole = MemSlice::from_bytes(&data).unwrap();
            for i in 0..24 {
                let piece = whole.slice((i % 16) << 20, 1 << 20).unwrap();
                let (offset, length) = ((i as u64 % 16) << 20, 1 << 20);
                let id = smb::invalidate();
                let request = if i % 2 == 0 {
                    let memory = client.register(&piece, TARGET);
                    ReadRequest::rdma(client.file, offset, length, id, memory.descriptors())
                        .to_request(client.tree)
                } else {
                    let memory = client.register(&piece, SOURCE);
                    WriteRequest::rdma(client.file, offset, length, id, memory.descriptors())
                        .to_request(client.tree)
                };
                client.it.submit(request.unwrap()).unwrap();
            }
            // At different moments: before the first answer, or after some.
            for _ in 0..round * 3 {
                client.it.wait_any().unwrap();
            }
            if round % 2 == 0 {
                client.it.direct_mut().unwrap().abort();
            }
            drop(client);
            server.wait_for_baseline();
        }
    }
    assert!(fs::read(server.share("leave")).unwrap() == data);
}

/// The SMB Direct channel of a session dies with WRITEs in flight; they are made again over TCP.
#[test]
fn a_session_survives_its_rdma_channel() {
    let Some(server) = start("a_session_survives_its_rdma_channel") else {
        return;
    };
    for dialect in Dialect::ALL {
        let options = options(dialect, Signing::IfRequired);
        let first = Connection::tcp(tcp(&server), &options).unwrap();
        let (mut first, session, tree) = smb::open_share(first);
        let mut second = smb::direct(&server, &Profile::linux(), &options).unwrap();
        second.bind(&session, &smb::credentials()).unwrap();
        let name = format!("survives-{dialect:?}");
        let file = first.open(tree, &name, OpenMode::Overwrite).unwrap().id;

        let data = noise(16 << 20, 12);
        let whole = MemSlice::from_bytes(&data).unwrap();
        let mut pending = Vec::new();
        for i in 0..16 {
            let piece = whole.slice(i << 20, 1 << 20).unwrap();
            let direct = second.direct_mut().unwrap();
            let memory: Memory = direct.register(&piece, SOURCE).unwrap();
            let (offset, id) = ((i << 20) as u64, channel::RDMA_V1);
            let write = WriteRequest::rdma(file, offset, 1 << 20, id, memory.descriptors());
            pending.push((second.submit(write.to_request(tree).unwrap()).unwrap(), i));
        }
        for _ in 0..4 {
            let (id, response) = second.wait_any().unwrap();
            response.success().unwrap();
            pending.retain(|(it, _)| *it != id);
        }
        second.direct_mut().unwrap().abort();
        drop(second);
        for (_, i) in pending {
            let range = i << 20..(i + 1) << 20;
            first
                .write(tree, file, (i << 20) as u64, &data[range])
                .unwrap();
        }
        first.close(tree, file).unwrap();
        assert!(
            fs::read(server.share(&name)).unwrap() == data,
            "{dialect:?}"
        );
        drop(first);
        server.wait_for_baseline();
    }
}
