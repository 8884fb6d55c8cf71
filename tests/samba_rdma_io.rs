//! READ and WRITE with RDMA channels on the patched smbd: sizes, descriptors, refusals, and
//! requests that are in flight or wait for memory while something else happens.
//!
//! A client serves the server's RDMA READs only while it waits for something. So a WRITE that was
//! submitted stays in flight until the client waits, which is what the tests below make use of.

mod common;
#[path = "common/samba.rs"]
mod samba;
#[path = "common/smb.rs"]
mod smb;

use std::fs;

use common::target;
use rustix::process::Signal;
use samba::{send_signal, Server};
use smb::{credentials, direct, noise, open_share, start_with, tcp, SOURCE, TARGET};
use smbdirect::fabric::Access;
use smbdirect::mem::MemSlice;
use smbdirect::smb::{
    channel, status, Connection, Dialect, FileId, Memory, MessageId, OpenMode, Options, Profile,
    ReadRequest, Request, Session, Signing, WriteRequest,
};

const MIB: usize = 1 << 20;

/// A session on the share, over SMB Direct.
struct Client {
    it: Connection,
    session: Session,
    tree: u32,
}

impl Client {
    fn new(server: &Server, profile: &Profile, options: &Options) -> Self {
        Self::over(direct(server, profile, options).unwrap())
    }

    fn over(it: Connection) -> Self {
        let (it, session, tree) = open_share(it);
        Self { it, session, tree }
    }

    fn create(&mut self, name: &str) -> FileId {
        self.it
            .open(self.tree, name, OpenMode::Overwrite)
            .unwrap()
            .id
    }

    /// Registered memory with this content.
    fn memory(&mut self, content: &[u8], access: Access) -> Memory {
        self.memory_in_pieces(content, &[content.len()], access)
    }

    fn memory_in_pieces(&mut self, content: &[u8], pieces: &[usize], access: Access) -> Memory {
        let memory = Memory::allocate(content.len()).unwrap();
        memory.write(0, content).unwrap();
        let direct = self.it.direct_mut().unwrap();
        direct.register_pieces(&memory, pieces, access).unwrap()
    }

    fn forget(&mut self, memory: &Memory) -> Vec<bool> {
        self.it.direct_mut().unwrap().deregister(memory)
    }

    fn submit_write(&mut self, file: FileId, offset: u64, memory: &Memory) -> MessageId {
        let length = memory.memory().len() as u32;
        let descriptors = memory.descriptors();
        let request = WriteRequest::rdma(file, offset, length, channel::RDMA_V1, descriptors);
        let request = request.to_request(self.tree).unwrap();
        self.it.submit(request).unwrap()
    }

    fn submit_read(&mut self, file: FileId, offset: u64, memory: &Memory) -> MessageId {
        let length = memory.memory().len() as u32;
        let descriptors = memory.descriptors();
        let request = ReadRequest::rdma(file, offset, length, channel::RDMA_V1, descriptors);
        let request = request.to_request(self.tree).unwrap();
        self.it.submit(request).unwrap()
    }

    fn status_of(&mut self, id: MessageId) -> u32 {
        self.it.wait(id).unwrap().status()
    }

    /// Has enough credits for many requests.
    fn collect_credits(&mut self, wanted: u32) {
        for _ in 0..64 {
            if self.it.credits() >= wanted {
                return;
            }
            self.it.echo().unwrap();
        }
        panic!("{} credits, {wanted} wanted", self.it.credits());
    }
}

fn options(dialect: Dialect) -> Options {
    smb::options(dialect, Signing::IfRequired)
}

const BOTH: Access = Access {
    remote_read: true,
    remote_write: true,
};

fn content(memory: &MemSlice) -> Vec<u8> {
    memory.to_vec()
}

/// One descriptor; many of the same length; and lengths all over the place.
fn splits(length: usize) -> Vec<Vec<usize>> {
    let mut splits = vec![vec![length]];
    if length >= 4095 {
        let size = length / 4095;
        let mut even = vec![size; 4095];
        even[4094] += length - size * 4095;
        splits.push(even);
        let mut odd = vec![1, 7, 4096 - 9];
        odd.retain(|&it| it < length);
        let rest = length - odd.iter().sum::<usize>();
        odd.extend([rest / 3, rest - rest / 3]);
        odd.retain(|&it| it > 0);
        splits.push(odd);
    }
    splits
}

fn sizes_and_splits(test: &str, global: &str) {
    let Some(server) = start_with(test, global) else {
        return;
    };
    for (profile, dialect) in [
        (Profile::linux(), Dialect::Smb311),
        (Profile::windows(), Dialect::Smb300),
        (Profile::windows(), Dialect::Smb311),
        (Profile::small(), Dialect::Smb302),
    ] {
        let mut client = Client::new(&server, &profile, &options(dialect));
        let negotiated = *client.it.negotiated();
        assert_eq!(negotiated.max_read_size as usize, 8 * MIB);
        assert_eq!(negotiated.max_write_size as usize, 8 * MIB);
        client.collect_credits(130);
        let file = client.create("file");
        let path = server.share("file");
        for length in [1, 4096, 65_537, MIB, 8 * MIB] {
            let data = noise(length, length as u64);
            for pieces in splits(length) {
                // A request of 64 KiB in messages of 128 bytes with one credit takes a while.
                if profile.name == "small" && pieces.len() > 100 {
                    continue;
                }
                let what = format!("{} {length} in {}", profile.name, pieces.len());
                let tree = client.tree;
                let source = client.memory_in_pieces(&data, &pieces, SOURCE);
                let (count, _) = client
                    .it
                    .rdma_write(tree, file, 3, length as u32, channel::RDMA_V1, &source)
                    .expect(&what);
                assert_eq!(count as usize, length, "{what}");
                assert!(client.forget(&source).iter().all(|&it| it), "{what}");
                assert!(fs::read(&path).unwrap()[3..][..length] == data, "{what}");

                let sink = client.memory_in_pieces(&vec![0; length], &pieces, TARGET);
                let (count, response) = client
                    .it
                    .rdma_read(tree, file, 3, length as u32, channel::RDMA_V1, &sink)
                    .expect(&what);
                assert_eq!(count as usize, length, "{what}");
                assert_eq!(response.read_result().unwrap().data_offset, 80);
                assert_eq!(response.invalidated, None);
                assert!(content(sink.memory()) == data, "{what}");
                assert!(client.forget(&sink).iter().all(|&it| it), "{what}");
            }
        }
        client.it.close(client.tree, file).unwrap();
        drop(client);
    }
    server.wait_for_baseline();
}

#[test]
fn all_sizes_and_splits() {
    sizes_and_splits("all_sizes_and_splits", "");
}

#[test]
fn all_sizes_and_splits_with_synchronous_file_io() {
    sizes_and_splits(
        "all_sizes_and_splits_with_synchronous_file_io",
        "aio read size = 0\naio write size = 0",
    );
}

#[test]
fn the_end_of_the_file() {
    let Some(server) = start_with("the_end_of_the_file", "") else {
        return;
    };
    let mut client = Client::new(&server, &Profile::windows(), &options(Dialect::Smb311));
    let data = noise(100_000, 5);
    fs::write(server.share("file"), &data).unwrap();
    let opened = client.it.open(client.tree, "file", OpenMode::Read).unwrap();
    let (tree, file) = (client.tree, opened.id);
    let sink = client.memory(&vec![0xee; 65_536], TARGET);
    let read = |client: &mut Client, offset: u64, minimum: u32| {
        let mut request =
            ReadRequest::rdma(file, offset, 65_536, channel::RDMA_V1, sink.descriptors());
        request.minimum_count = minimum;
        // Not a word about it in [MS-SMB2] 3.3.5.12, so it has no meaning.
        request.remaining_bytes = 17;
        let id = client.it.submit(request.to_request(tree).unwrap()).unwrap();
        client.it.wait(id).unwrap()
    };

    let response = read(&mut client, 90_000, 10_000).success().unwrap();
    assert_eq!(response.read_result().unwrap().data_remaining, 10_000);
    let bytes = content(sink.memory());
    assert!(bytes[..10_000] == data[90_000..]);
    assert!(bytes[10_000..].iter().all(|&it| it == 0xee));

    for (offset, minimum) in [(100_000, 0), (1 << 40, 0), (90_000, 10_001)] {
        let response = read(&mut client, offset, minimum);
        assert_eq!(response.status(), status::END_OF_FILE);
        assert!(content(sink.memory()) == bytes, "nothing was written");
    }

    // Without the right to write, the server does not even fetch the data.
    let source = client.memory(&data[..1000], SOURCE);
    let id = client.submit_write(file, 0, &source);
    assert_eq!(client.status_of(id), status::ACCESS_DENIED);
    let connections = server.owned_connections();
    assert_eq!(connections.len(), 1);
    assert_eq!(connections[0]["rdma_reads"], 0);
    assert_eq!(connections[0]["rdma_writes"], 1);
    drop(client);
    server.wait_for_baseline();
}

#[test]
fn the_first_token_is_invalidated_with_the_final_response() {
    let test = "the_first_token_is_invalidated_with_the_final_response";
    let Some(server) = start_with(test, "") else {
        return;
    };
    let invalidate = channel::RDMA_V1_INVALIDATE;
    for dialect in [Dialect::Smb302, Dialect::Smb311] {
        let mut client = Client::new(&server, &Profile::windows(), &options(dialect));
        let (tree, file) = (client.tree, client.create("file"));
        let data = noise(50_000, 9);
        let pieces = [20_000, 30_000];

        let source = client.memory_in_pieces(&data, &pieces, SOURCE);
        let first = Some(source.descriptors()[0].token);
        let (_, response) = client
            .it
            .rdma_write(tree, file, 0, 50_000, invalidate, &source)
            .unwrap();
        assert_eq!(response.invalidated, first);
        assert_eq!(response.invalidated_by_interim, None);
        assert_eq!(client.forget(&source), [false, true]);

        let sink = client.memory_in_pieces(&vec![0; 50_000], &pieces, TARGET);
        let first = Some(sink.descriptors()[0].token);
        let (_, response) = client
            .it
            .rdma_read(tree, file, 0, 50_000, invalidate, &sink)
            .unwrap();
        assert_eq!(response.invalidated, first);
        assert!(content(sink.memory()) == data);
        assert_eq!(client.forget(&sink), [false, true]);

        // Errors do it, too: at the end of the file, and of a file that is not open.
        for (file, offset, expected) in [
            (file, 50_000, status::END_OF_FILE),
            (
                FileId {
                    persistent: 77,
                    volatile: 77,
                },
                0,
                status::FILE_CLOSED,
            ),
        ] {
            let sink = client.memory(&[0; 1000], TARGET);
            let descriptors = sink.descriptors();
            let request = ReadRequest::rdma(file, offset, 1000, invalidate, descriptors);
            let id = client.it.submit(request.to_request(tree).unwrap()).unwrap();
            let response = client.it.wait(id).unwrap();
            assert_eq!(response.status(), expected);
            assert_eq!(
                response.invalidated,
                Some(descriptors[0].token),
                "{expected:x}"
            );
            assert_eq!(client.forget(&sink), [false]);
        }
    }
    server.wait_for_baseline();
}

/// What is wrong with a request.
enum Broken {
    Read(fn(&mut ReadRequest)),
    Write(fn(&mut WriteRequest)),
}
use Broken::{Read, Write};

#[test]
fn malformed_channel_information_is_refused() {
    let Some(server) = start_with("malformed_channel_information_is_refused", "") else {
        return;
    };
    let cases: &[(&str, Broken)] = &[
        ("channel 3", Read(|it| it.channel = channel::RDMA_TRANSFORM)),
        ("channel 4", Read(|it| it.channel = 4)),
        ("no length", Read(|it| it.length = 0)),
        ("too long", Read(|it| it.length = (8 << 20) + 1)),
        ("no offset", Read(|it| it.channel_info_offset = 0)),
        (
            "offset in the header",
            Read(|it| it.channel_info_offset = 96),
        ),
        (
            "offset behind it",
            Read(|it| it.channel_info_offset = 112 + 33),
        ),
        ("largest offset", Read(|it| it.channel_info_offset = 0xffff)),
        ("no info", Read(|it| it.channel_info_length = 0)),
        ("info too long", Read(|it| it.channel_info_length = 48)),
        ("not whole", Read(|it| it.channel_info_length = 31)),
        ("sum too short", Read(|it| it.channel_info_length = 16)),
        (
            "first one empty",
            Read(|it| it.channel_info[12..16].fill(0)),
        ),
        (
            "channel 3",
            Write(|it| it.channel = channel::RDMA_TRANSFORM),
        ),
        ("channel 9", Write(|it| it.channel = 9)),
        ("no length", Write(|it| it.remaining_bytes = 0)),
        ("too long", Write(|it| it.remaining_bytes = (8 << 20) + 1)),
        ("length", Write(|it| it.length = 1)),
        ("data offset", Write(|it| it.data_offset = 112)),
        ("no offset", Write(|it| it.channel_info_offset = 0)),
        (
            "offset in the header",
            Write(|it| it.channel_info_offset = 111),
        ),
        ("no info", Write(|it| it.channel_info_length = 0)),
        ("info too long", Write(|it| it.channel_info_length = 0xfff0)),
        ("not whole", Write(|it| it.channel_info_length = 17)),
        ("sum too short", Write(|it| it.channel_info_length = 16)),
        (
            "first one empty",
            Write(|it| it.channel_info[12..16].fill(0)),
        ),
    ];
    for dialect in Dialect::ALL {
        let mut client = Client::new(&server, &Profile::windows(), &options(dialect));
        client.collect_credits(200);
        let (tree, file) = (client.tree, client.create("file"));
        client.it.write(tree, file, 0, &[1; 3000]).unwrap();
        let memory = client.memory_in_pieces(&[7; 3000], &[1000, 2000], BOTH);
        let info = memory.descriptors();
        for (name, broken) in cases {
            let request = match broken {
                Read(change) => {
                    let mut request = ReadRequest::rdma(file, 0, 3000, channel::RDMA_V1, info);
                    change(&mut request);
                    request.to_request(tree)
                }
                Write(change) => {
                    let mut request = WriteRequest::rdma(file, 0, 3000, channel::RDMA_V1, info);
                    change(&mut request);
                    request.to_request(tree)
                }
            };
            let id = client.it.submit(request.unwrap()).unwrap();
            let status = client.status_of(id);
            assert_eq!(status, status::INVALID_PARAMETER, "{dialect:?} {name}");
        }
        // The second channel value came with 3.0.2.
        let expected = match dialect {
            Dialect::Smb300 => status::INVALID_PARAMETER,
            _ => status::SUCCESS,
        };
        let write = WriteRequest::rdma(file, 0, 3000, channel::RDMA_V1_INVALIDATE, info);
        let id = client.it.submit(write.to_request(tree).unwrap()).unwrap();
        assert_eq!(client.status_of(id), expected);

        // Without RDMA there are no channels.
        let mut tcp = Client::over(Connection::tcp(tcp(&server), &options(dialect)).unwrap());
        let (tree, file) = (tcp.tree, tcp.create("other"));
        for channel in [channel::RDMA_V1, channel::RDMA_V1_INVALIDATE, 77] {
            let read = ReadRequest::rdma(file, 0, 3000, channel, info);
            let write = WriteRequest::rdma(file, 0, 3000, channel, info);
            for request in [read.to_request(tree), write.to_request(tree)] {
                let id = tcp.it.submit(request.unwrap()).unwrap();
                assert_eq!(tcp.status_of(id), status::INVALID_PARAMETER, "{dialect:?}");
            }
        }
    }
    server.wait_for_baseline();
}

#[test]
fn compounds_use_rdma() {
    let Some(server) = start_with("compounds_use_rdma", "") else {
        return;
    };
    let mut client = Client::new(&server, &Profile::windows(), &options(Dialect::Smb311));
    client.collect_credits(100);
    let tree = client.tree;
    let data = noise(200_000, 21);
    let source = client.memory(&data, SOURCE);
    let sinks: Vec<_> = (0..2)
        .map(|_| client.memory(&vec![0; 100_000], TARGET))
        .collect();
    let read = |offset, sink: &Memory, channel| {
        let descriptors = sink.descriptors();
        let request = ReadRequest::rdma(FileId::FULL, offset, 100_000, channel, descriptors);
        request.to_request(tree).unwrap()
    };
    let write = WriteRequest::rdma(
        FileId::FULL,
        0,
        200_000,
        channel::RDMA_V1,
        source.descriptors(),
    );
    let related = vec![
        Request::create(tree, "compound", OpenMode::Overwrite).unwrap(),
        write.to_request(tree).unwrap(),
        read(0, &sinks[0], channel::RDMA_V1),
        read(100_000, &sinks[1], smb::invalidate()),
        read(200_000, &sinks[1], channel::RDMA_V1),
        Request::close(tree, FileId::FULL).unwrap(),
    ];
    let ids = client.it.submit_compound(related, true).unwrap();
    let statuses: Vec<_> = ids.iter().map(|&id| client.status_of(id)).collect();
    let mut expected = [status::SUCCESS; 6];
    expected[4] = status::END_OF_FILE;
    assert_eq!(statuses, expected);
    assert!(content(sinks[0].memory()) == data[..100_000]);
    assert!(content(sinks[1].memory()) == data[100_000..]);
    assert_eq!(client.forget(&sinks[0]), [true]);
    let is_left = !target::can_be_invalidated();
    assert_eq!(client.forget(&sinks[1]), [is_left]);
    assert!(fs::read(server.share("compound")).unwrap() == data);
    drop(client);
    server.wait_for_baseline();
}

/// One buffer of 1 MiB: two requests of 512 KiB use all of it.
const LITTLE_MEMORY: &str = "smbdirect:rdma buffers = 1";

#[test]
fn requests_wait_for_memory_in_their_order() {
    let Some(server) = start_with("requests_wait_for_memory_in_their_order", LITTLE_MEMORY) else {
        return;
    };
    let mut client = Client::new(&server, &Profile::windows(), &options(Dialect::Smb311));
    assert_eq!(client.it.negotiated().max_read_size as usize, MIB);
    assert_eq!(client.it.negotiated().max_write_size as usize, MIB);
    client.collect_credits(300);
    let file = client.create("file");
    let data = noise(24 * MIB / 2, 31);
    // All sizes, so that the small ones could overtake the large ones.
    let lengths: Vec<usize> = (0..24)
        .map(|i| [MIB / 2, 4096, MIB, 70_000][i % 4])
        .collect();
    let mut writes = Vec::new();
    let mut offset = 0;
    for &length in &lengths {
        let memory = client.memory(&data[offset..][..length], SOURCE);
        writes.push(client.submit_write(file, offset as u64, &memory));
        offset += length;
    }
    // None of them is done: we did not serve the server's RDMA READs yet. This one waits.
    let waits = writes[20];
    client.it.cancel(waits).unwrap();
    for id in writes {
        let expected = match id == waits {
            true => status::CANCELLED,
            false => status::SUCCESS,
        };
        assert_eq!(client.status_of(id), expected);
    }
    let start = lengths[..20].iter().sum::<usize>();
    let missing = start..start + lengths[20];
    let written = fs::read(server.share("file")).unwrap();
    assert_eq!(written.len(), offset);
    for (at, (&is, &was)) in written.iter().zip(&data).enumerate() {
        let expected = if missing.contains(&at) { 0 } else { was };
        assert_eq!(is, expected, "at {at}");
    }

    let mut reads = Vec::new();
    let mut offset = 0;
    for &length in &lengths {
        let sink = client.memory(&vec![0; length], TARGET);
        reads.push((client.submit_read(file, offset as u64, &sink), sink));
        offset += length;
    }
    let mut offset = 0;
    for (id, sink) in reads {
        assert_eq!(client.status_of(id), status::SUCCESS);
        let bytes = content(sink.memory());
        assert!(bytes == written[offset..][..bytes.len()]);
        offset += bytes.len();
    }
    drop(client);
    server.wait_for_baseline();
}

#[test]
fn close_waits_for_what_was_asked_before() {
    let Some(server) = start_with("close_waits_for_what_was_asked_before", LITTLE_MEMORY) else {
        return;
    };
    let mut client = Client::new(&server, &Profile::windows(), &options(Dialect::Smb311));
    client.collect_credits(300);
    let file = client.create("file");
    let data = noise(4 * MIB, 41);
    let writes: Vec<_> = data
        .chunks(MIB / 2)
        .enumerate()
        .map(|(i, piece)| {
            let memory = client.memory(piece, SOURCE);
            client.submit_write(file, (i * MIB / 2) as u64, &memory)
        })
        .collect();
    let close = Request::close(client.tree, file).unwrap();
    let close = client.it.submit(close).unwrap();
    for id in writes {
        assert_eq!(client.status_of(id), status::SUCCESS);
    }
    assert_eq!(client.status_of(close), status::SUCCESS);
    assert!(fs::read(server.share("file")).unwrap() == data);
    drop(client);
    server.wait_for_baseline();
}

#[test]
fn sessions_and_shares_go_while_requests_are_in_flight() {
    let test = "sessions_and_shares_go_while_requests_are_in_flight";
    let Some(server) = start_with(test, LITTLE_MEMORY) else {
        return;
    };
    for logs_off in [false, true] {
        let mut client = Client::new(&server, &Profile::windows(), &options(Dialect::Smb311));
        client.collect_credits(300);
        let file = client.create("file");
        let piece = noise(MIB / 2, 51);
        let requests: Vec<_> = (0..12)
            .map(|i| {
                let memory = client.memory(&piece, BOTH);
                match i % 3 {
                    2 => client.submit_read(file, 0, &memory),
                    _ => client.submit_write(file, (i * MIB) as u64, &memory),
                }
            })
            .collect();
        if logs_off {
            client.it.logoff().unwrap();
        } else {
            client.it.tree_disconnect(client.tree).unwrap();
        }
        // Those that wait are cancelled, those in flight may end either way.
        let statuses: Vec<_> = requests.iter().map(|&id| client.status_of(id)).collect();
        let cancelled = statuses.iter().filter(|&&it| it == status::CANCELLED);
        assert!(cancelled.count() >= 8, "{statuses:x?}");
        // The connection is as good as before, and all memory is back.
        if logs_off {
            client.session = client.it.set_up_session(&credentials()).unwrap();
        }
        client.tree = client.it.tree_connect(r"\\127.0.0.1\share").unwrap();
        let file = client.create("after");
        let all = noise(MIB, 52);
        let memory = client.memory(&all, SOURCE);
        let id = client.submit_write(file, 0, &memory);
        assert_eq!(client.status_of(id), status::SUCCESS);
        assert!(fs::read(server.share("after")).unwrap() == all);
    }
    server.wait_for_baseline();
}

#[test]
fn connections_end_while_requests_are_in_flight() {
    let test = "connections_end_while_requests_are_in_flight";
    let Some(server) = start_with(test, LITTLE_MEMORY) else {
        return;
    };
    let options = options(Dialect::Smb311);
    let mut client = Client::new(&server, &Profile::windows(), &options);
    client.collect_credits(300);
    let file = client.create("file");
    for round in 0..3 {
        // Another channel of the same session uses up all memory, and dies.
        let mut dying = direct(&server, &Profile::windows(), &options).unwrap();
        dying.bind(&client.session, &credentials()).unwrap();
        let mut dying = Client {
            it: dying,
            session: client.session.clone(),
            tree: client.tree,
        };
        dying.collect_credits(300);
        let piece = noise(MIB / 2, 61);
        for i in 0..12 {
            let memory = dying.memory(&piece, BOTH);
            match i % 3 {
                1 => dying.submit_read(file, 0, &memory),
                _ => dying.submit_write(file, (i * MIB) as u64, &memory),
            };
        }
        // They wait behind them.
        let all = noise(MIB, 62 + round);
        let memory = client.memory(&all, SOURCE);
        let id = client.submit_write(file, 0, &memory);
        drop(dying);
        assert_eq!(client.status_of(id), status::SUCCESS);
        let sink = client.memory(&vec![0; MIB], TARGET);
        let id = client.submit_read(file, 0, &sink);
        assert_eq!(client.status_of(id), status::SUCCESS);
        assert!(content(sink.memory()) == all);
    }
    client.it.close(client.tree, file).unwrap();

    // And now the last one.
    let file = client.create("file");
    let piece = noise(MIB / 2, 63);
    for i in 0..8 {
        let memory = client.memory(&piece, SOURCE);
        client.submit_write(file, (i * MIB) as u64, &memory);
    }
    client.it.direct_mut().unwrap().abort();
    drop(client);
    server.wait_for_baseline();
}

#[test]
fn interim_responses_invalidate_nothing() {
    let test = "interim_responses_invalidate_nothing";
    let Some(server) = start_with(test, LITTLE_MEMORY) else {
        return;
    };
    let options = options(Dialect::Smb311);
    let mut client = Client::new(&server, &Profile::windows(), &options);
    let file = client.create("file");
    let mut other = direct(&server, &Profile::windows(), &options).unwrap();
    other.bind(&client.session, &credentials()).unwrap();
    let mut other = Client {
        it: other,
        session: client.session.clone(),
        tree: client.tree,
    };
    other.collect_credits(100);
    let all = noise(MIB, 71);
    let memory = other.memory(&all, SOURCE);
    let blocking = other.submit_write(file, 0, &memory);

    // It waits for its memory longer than smbd lets a client wait without a word.
    let memory = client.memory(&all[..1000], SOURCE);
    let descriptors = memory.descriptors();
    let request = WriteRequest::rdma(
        file,
        MIB as u64,
        1000,
        channel::RDMA_V1_INVALIDATE,
        descriptors,
    );
    let request = request.to_request(client.tree).unwrap();
    let id = client.it.submit(request).unwrap();
    client.it.wait_for_interim(id).unwrap();
    assert_eq!(other.status_of(blocking), status::SUCCESS);
    let response = client.it.wait(id).unwrap().success().unwrap();
    assert!(response.was_pending);
    assert_eq!(response.invalidated_by_interim, None);
    assert_eq!(response.invalidated, Some(descriptors[0].token));
    drop((client, other));
    server.wait_for_baseline();
}

/// Submits writes of half a MiB that stay in flight or wait for memory.
fn submit_many(client: &mut Client, file: FileId) {
    client.collect_credits(300);
    let piece = noise(MIB / 2, 81);
    for i in 0..8 {
        let memory = client.memory(&piece, SOURCE);
        client.submit_write(file, (i * MIB) as u64, &memory);
    }
}

#[test]
fn smbd_ends_while_requests_are_in_flight() {
    let test = "smbd_ends_while_requests_are_in_flight";
    let Some(server) = start_with(test, LITTLE_MEMORY) else {
        return;
    };
    for signal in [Signal::TERM, Signal::KILL] {
        let mut client = Client::new(&server, &Profile::windows(), &options(Dialect::Smb311));
        let file = client.create("file");
        submit_many(&mut client, file);
        // This has an answer, so all of the above have arrived.
        let owner = server.owned_connections()[0]["owner_pid"].as_u64().unwrap();
        send_signal(owner as u32, signal);
        server.wait_until("the end of the process", || server.clients_served() == 0);
        drop(client);
        server.wait_for_baseline();
    }
    let log = server.read("smbd.log");
    assert!(!log.contains("PANIC"), "{log}");
}

#[test]
fn the_engine_ends_while_requests_are_in_flight() {
    let test = "the_engine_ends_while_requests_are_in_flight";
    let Some(mut server) = start_with(test, LITTLE_MEMORY) else {
        return;
    };
    let options = options(Dialect::Smb311);
    let mut client = Client::over(Connection::tcp(tcp(&server), &options).unwrap());
    let file = client.create("file");
    for _ in 0..2 {
        let mut dying = direct(&server, &Profile::windows(), &options).unwrap();
        dying.bind(&client.session, &credentials()).unwrap();
        let mut dying = Client {
            it: dying,
            session: client.session.clone(),
            tree: client.tree,
        };
        submit_many(&mut dying, file);
        let engine = server.engine.take().unwrap();
        engine.kill(Signal::KILL);
        drop(engine);
        // The other channel goes on as if nothing had happened.
        client.it.write(client.tree, file, 0, b"here").unwrap();
        drop(dying);
        server.start_engine();
        server.wait_for_smb_direct();
        // smbd comes back to the engine within seconds, and all of its memory is free.
        let mut next = direct(&server, &Profile::windows(), &options).unwrap();
        next.bind(&client.session, &credentials()).unwrap();
        let mut next = Client {
            it: next,
            session: client.session.clone(),
            tree: client.tree,
        };
        let all = noise(MIB, 91);
        let memory = next.memory(&all, SOURCE);
        let id = next.submit_write(file, 0, &memory);
        assert_eq!(next.status_of(id), status::SUCCESS);
        assert!(client.it.read(client.tree, file, 0, MIB as u32).unwrap() == all);
    }
    drop(client);
    server.wait_for_baseline();
}

#[test]
fn memory_that_the_client_does_not_have() {
    let Some(server) = start_with("memory_that_the_client_does_not_have", "") else {
        return;
    };
    let other = Client::new(&server, &Profile::linux(), &options(Dialect::Smb311));
    for is_write in [false, true] {
        for change in 0..4 {
            let mut client = Client::new(&server, &Profile::linux(), &options(Dialect::Smb311));
            let (tree, file) = (client.tree, client.create("file"));
            client.it.write(tree, file, 0, &[1; 5000]).unwrap();
            let memory = client.memory(&[2; 5000], BOTH);
            let mut info = memory.descriptors().to_vec();
            match change {
                0 => info[0].token = info[0].token.wrapping_add(1),
                1 => info[0].offset = info[0].offset.wrapping_add(1),
                2 => info[0].length += 1,
                _ => {
                    client.forget(&memory);
                }
            }
            let length = 5000 + u32::from(change == 2);
            let request = if is_write {
                WriteRequest::rdma(file, 0, length, channel::RDMA_V1, &info).to_request(tree)
            } else {
                fs::write(server.share("file"), vec![1; length as usize]).unwrap();
                ReadRequest::rdma(file, 0, length, channel::RDMA_V1, &info).to_request(tree)
            };
            let id = client.it.submit(request.unwrap()).unwrap();
            let result = client.it.wait(id).and_then(|it| it.success());
            assert!(result.is_err(), "write {is_write}, change {change}");
        }
    }
    let mut other = other;
    other.it.echo().unwrap();
    drop(other);
    server.wait_for_baseline();
}
