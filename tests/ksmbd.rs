//! The Linux kernel's own server, ksmbd, and our client: negotiation, NTLM, RDMA channels of every
//! size, remote invalidation, and ends of connections from either side.
//!
//! ksmbd is in a User-mode Linux guest, and so is the client: this program, which the guest runs
//! again.

mod common;
#[path = "common/samba.rs"]
mod samba;
#[path = "common/smb.rs"]
mod smb;
#[path = "common/uml.rs"]
mod uml;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use smb::{
    channels, invalidate, noise, open_share, options, pieces, Client, BLANK, SOURCE, TARGET,
};
use smbdirect::mem::MemSlice;
use smbdirect::smb::{
    channel, status, Connection, Dialect, Memory, OpenMode, Options, Profile, ReadRequest, Signing,
    SmbError, WriteRequest,
};
use smbdirect::wire::BufferDescriptor;
use uml::{isolated, kernel_and_tools, Bed, Guest, VERBS};

const MIB: usize = 1 << 20;
/// What MS-SMBD and SMB2 agree on with this server: 8 MiB of both.
const MAX: usize = 8 * MIB;

#[test]
fn by_software_iwarp() {
    run("by_software_iwarp", "soft-iwarp", &SOFT_IWARP);
}

#[test]
fn by_verbs_over_rxe() {
    run("by_verbs_over_rxe", "rxe", &[]);
}

#[test]
fn by_verbs_over_siw() {
    run("by_verbs_over_siw", "siw", &[]);
}

type Case = (&'static str, fn(&Ksmbd));

const ANY_FABRIC: [Case; 12] = [
    ("dialects_and_signatures", dialects_and_signatures),
    ("every_size_goes_both_ways", every_size_goes_both_ways),
    ("memory_in_pieces", memory_in_pieces),
    ("data_inside_messages", data_inside_messages),
    ("the_end_of_a_file", the_end_of_a_file),
    ("many_requests_in_flight", many_requests_in_flight),
    ("a_channel_of_a_tcp_session", a_channel_of_a_tcp_session),
    ("what_is_refused", what_is_refused),
    ("memory_that_is_not_there", memory_that_is_not_there),
    ("a_small_client_refuses", a_small_client_refuses),
    ("a_small_client_is_refused", a_small_client_is_refused),
    ("the_client_goes_away", the_client_goes_away),
];

const SOFT_IWARP: [Case; 1] = [("revisions_and_crc", revisions_and_crc)];

/// After it there is no server any more.
const LAST: [Case; 1] = [("the_server_goes_away", the_server_goes_away)];

/// On the host boots a guest, in the guest makes the tests.
fn run(test: &str, fabric: &str, more: &[Case]) {
    if let Some(server) = Ksmbd::here() {
        return inside(&server, ANY_FABRIC.iter().chain(more).chain(&LAST));
    }
    let mut tools = vec![("ksmbd.mountd", "ksmbd-tools")];
    if fabric != "soft-iwarp" {
        tools.extend(VERBS);
    }
    let Some(kernel) = kernel_and_tools(test, &tools) else {
        return;
    };
    if !isolated(test) {
        return;
    }
    let program = std::env::current_exe().unwrap();
    let settings = [
        ("TEST", test.to_owned()),
        ("TEST_PROGRAM", program.display().to_string()),
        ("FABRIC", fabric.to_owned()),
        ("PASSWORD", smb::PASSWORD.to_owned()),
    ];
    let guest = Guest::boot(&kernel, Bed::Ksmbd, "ksmbd", &settings);
    let ended = guest.finish(|question| Err(format!("nobody answers '{question}'")));
    assert!(!ended.hangs, "there is no mount that could hang");
    let passed = ended.passed;
    assert_eq!(passed.len(), ANY_FABRIC.len() + more.len() + LAST.len());
    println!(
        "GUEST: {test}: {} passed: {}",
        passed.len(),
        passed.join(" ")
    );
}

/// Makes the tests, and tells of each on the console of the guest.
fn inside<'a>(server: &Ksmbd, cases: impl Iterator<Item = &'a Case>) {
    for (name, case) in cases {
        println!("--- {name}");
        let verdict = match catch_unwind(AssertUnwindSafe(|| case(server))) {
            Ok(()) => "pass",
            Err(_) => "fail",
        };
        println!("@@ {verdict} {name}");
    }
}

/// The RDMA device of our side, if it has one.
fn device() -> String {
    std::env::var("SMBDIRECT_TEST_DEVICE").unwrap_or_default()
}

/// The server, seen from inside the guest.
struct Ksmbd {
    address: IpAddr,
    share: PathBuf,
}

impl Ksmbd {
    fn here() -> Option<Self> {
        let address = std::env::var("SMBDIRECT_TEST_KSMBD").ok()?;
        Some(Self {
            address: address.parse().expect("an address"),
            share: std::env::var_os("SMBDIRECT_TEST_SHARE").unwrap().into(),
        })
    }

    fn tcp(&self) -> SocketAddr {
        (self.address, 445).into()
    }

    /// ksmbd listens on 5445 when there is an iWARP device, else on 445.
    fn rdma(&self) -> SocketAddr {
        let port = if device() == "rxe" { 445 } else { 5445 };
        (self.address, port).into()
    }

    fn connect(&self, profile: &Profile, options: &Options) -> Result<Connection, SmbError> {
        smb::direct_to(self.rdma(), profile, options)
    }

    /// Why there is no connection.
    fn refusal(&self, profile: &Profile) -> String {
        let options = options(Dialect::Smb311, Signing::IfRequired);
        match self.connect(profile, &options) {
            Err(SmbError::Connection(reason)) => reason,
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("connected"),
        }
    }

    fn client(&self, profile: &Profile, dialect: Dialect, name: &str) -> Client {
        let options = options(dialect, Signing::IfRequired);
        let (it, _, tree) = open_share(self.connect(profile, &options).unwrap());
        Client::with(it, tree, name)
    }

    /// The content of a file.
    fn content(&self, name: &str) -> Vec<u8> {
        fs::read(self.share.join(name)).unwrap()
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.share.join(name)).unwrap();
    }

    /// A new connection moves data.
    fn is_well(&self) {
        let mut client = self.client(&Profile::linux(), Dialect::Smb311, "well");
        client.moves_data(70_001, "afterwards");
    }
}

impl Client {
    /// WRITE and READ of as many bytes, with each channel of the dialect.
    fn moves_data(&mut self, size: usize, what: &str) {
        for data in self.writes_data(size, what) {
            for &id in channels(self.it.negotiated().dialect) {
                self.write(1, &data, &[size], id, what);
                let got = self.read(1, size as u32, &[size], id, what);
                assert!(got == (size as u32, data.clone()), "{what}, channel {id}");
            }
        }
    }

    /// WRITE alone; what was written, in order.
    fn writes_data(&mut self, size: usize, what: &str) -> Vec<Vec<u8>> {
        let ids = channels(self.it.negotiated().dialect);
        let write = |&id: &u32| {
            let data = noise(size, size as u64 + u64::from(id));
            self.write(1, &data, &[size], id, what);
            data
        };
        ids.iter().map(write).collect()
    }
}

/// Those that ksmbd can serve. It computes MaxFragmentedSize from the size of messages, and with
/// small ones that is less than `[MS-SMBD] 3.1.5.7` lets a client take. It takes one of 9 tokens for
/// each descriptor and MiB, and waits forever when one request wants more of them.
fn profiles() -> [Profile; 2] {
    let mut windows = Profile::windows();
    windows.descriptor_size = MIB;
    [Profile::linux(), windows]
}

fn dialects_and_signatures(server: &Ksmbd) {
    for dialect in Dialect::ALL {
        for signing in [Signing::IfRequired, Signing::Always] {
            let what = format!("{dialect:?} {signing:?}");
            let connection = server.connect(&Profile::linux(), &options(dialect, signing));
            let (it, session, tree) = open_share(connection.unwrap());
            assert_eq!(session.dialect(), dialect);
            assert!(!session.is_guest(), "{what}");
            assert_eq!(session.signs(), signing == Signing::Always, "{what}");
            let mut client = Client::with(it, tree, "signed");
            match signing {
                Signing::IfRequired => client.moves_data(100_000, &what),
                // ksmbd signs responses to READ as if there were always data in them: with RDMA
                // there is none, and the signature is wrong.
                _ => {
                    let data = client.writes_data(100_000, &what).pop().unwrap();
                    assert!(server.content("signed")[1..] == data, "{what}");
                }
            }
            let data = noise(5000, 1);
            assert_eq!(client.it.write(tree, client.file, 7, &data).unwrap(), 5000);
            let got = client.it.read(tree, client.file, 7, 5000).unwrap();
            assert!(got == data, "{what}");
            client.it.close(tree, client.file).unwrap();
            client.it.tree_disconnect(tree).unwrap();
            client.it.logoff().unwrap();
        }
    }
    server.remove("signed");
}

fn every_size_goes_both_ways(server: &Ksmbd) {
    let sizes = [
        1,
        2,
        7,
        4095,
        4096,
        4097,
        65_535,
        65_537,
        MIB - 1,
        MIB,
        MIB + 1,
        3 * MIB + 12_345,
        MAX,
    ];
    for profile in profiles() {
        let name = profile.name;
        let mut client = server.client(&profile, Dialect::Smb311, name);
        let agreed = client.it.negotiated();
        assert_eq!(agreed.max_read_size as usize, MAX);
        assert_eq!(agreed.max_write_size as usize, MAX);
        let agreed = client.it.direct_mut().unwrap().negotiated();
        assert_eq!(agreed.max_read_write_size as usize, MAX);
        let mut expected = Vec::new();
        for (i, &size) in sizes.iter().enumerate() {
            for &id in channels(Dialect::Smb311) {
                let what = format!("{name}, {size} bytes, channel {id}");
                let data = noise(size, i as u64);
                // With holes between.
                let offset = expected.len() + 13 * i;
                let pieces = pieces(size, profile.descriptor_size.min(size));
                client.write(offset as u64, &data, &pieces, id, &what);
                expected.resize(offset, 0);
                expected.extend(&data);
                let got = client.read(offset as u64, size as u32, &pieces, id, &what);
                assert!(got == (size as u32, data), "{what}");
            }
        }
        assert!(server.content(name) == expected, "{name}");
        server.remove(name);
    }
}

fn memory_in_pieces(server: &Ksmbd) {
    // Requests with more than nine pieces get no answer: see `profiles`.
    let splits = [
        vec![1, 4096],
        vec![4096, 1],
        vec![65_536; 8],
        vec![1, 1, 3, 4093, 1, 65_536, 2, 131_071, 4096],
    ];
    let mut client = server.client(&Profile::windows(), Dialect::Smb311, "pieces");
    for (i, split) in splits.iter().enumerate() {
        let size: usize = split.iter().sum();
        let what = format!("{} pieces, {size} bytes", split.len());
        let data = noise(size, i as u64);
        for &id in channels(Dialect::Smb311) {
            client.write(0, &data, split, id, &what);
            assert!(server.content("pieces")[..size] == data, "{what}");
            let got = client.read(0, size as u32, split, id, &what);
            assert!(got == (size as u32, data.clone()), "{what}");
        }
        // Less than the memory holds: the rest of it stays as it is.
        let part = size.div_ceil(2);
        let (count, got) = client.read(0, part as u32, split, channel::RDMA_V1, &what);
        assert_eq!(count as usize, part, "{what}");
        assert!(got[..part] == data[..part], "{what}");
        assert!(got[part..].iter().all(|&byte| byte == BLANK), "{what}");
    }
    server.remove("pieces");
}

/// As much as messages can carry, in fragments.
fn data_inside_messages(server: &Ksmbd) {
    for profile in profiles() {
        let name = profile.name;
        let mut client = server.client(&profile, Dialect::Smb311, name);
        let (tree, file) = (client.tree, client.file);
        let (most_read, most_write) = (client.it.max_inline_read(), client.it.max_inline_write());
        println!("{name}: at most {most_read} and {most_write} bytes inside");
        for size in [1, 1340, 65_536, most_write] {
            let data = noise(size as usize, size.into());
            assert_eq!(client.it.write(tree, file, 3, &data).unwrap(), size);
            assert!(server.content(name)[3..][..size as usize] == data, "{size}");
            let part = size.min(most_read);
            let got = client.it.read(tree, file, 3, part).unwrap();
            assert!(got == data[..part as usize], "{name}, {size}");
        }
        server.remove(name);
    }
}

fn the_end_of_a_file(server: &Ksmbd) {
    let data = noise(100_000, 9);
    fs::write(server.share.join("end"), &data).unwrap();
    let mut client = server.client(&Profile::linux(), Dialect::Smb311, "end");
    for &id in channels(Dialect::Smb311) {
        for offset in [0, 65_536, 99_999] {
            let (count, got) = client.read(offset, 200_000, &[200_000], id, "end");
            let there = &data[offset as usize..];
            assert_eq!(count as usize, there.len());
            assert!(got[..there.len()] == *there);
            assert!(got[there.len()..].iter().all(|&byte| byte == BLANK));
        }
        let memory = MemSlice::from_bytes(&[BLANK; 4096]).unwrap();
        let memory = client.register(&memory, TARGET);
        let read = ReadRequest::rdma(client.file, 100_000, 4096, id, memory.descriptors());
        let asked = client.it.submit(read.to_request(client.tree).unwrap());
        let response = client.it.wait(asked.unwrap()).unwrap();
        assert_eq!(response.status(), status::END_OF_FILE);
        client.it.direct_mut().unwrap().deregister(&memory);
    }
    server.remove("end");
}

/// A request that goes by RDMA, and its memory.
fn submit(client: &mut Client, at: usize, memory: &MemSlice, is_read: bool) -> Pending {
    let access = if is_read { TARGET } else { SOURCE };
    let memory = client.register(memory, access);
    let length = memory.memory().len() as u32;
    let (file, at, id) = (client.file, at as u64, invalidate());
    let request =
        match is_read {
            true => ReadRequest::rdma(file, at, length, id, memory.descriptors())
                .to_request(client.tree),
            false => WriteRequest::rdma(file, at, length, id, memory.descriptors())
                .to_request(client.tree),
        };
    let id = client.it.submit(request.unwrap()).unwrap();
    Pending { id, memory }
}

struct Pending {
    id: smbdirect::smb::MessageId,
    memory: Memory,
}

fn many_requests_in_flight(server: &Ksmbd) {
    for profile in profiles() {
        let name = profile.name;
        let mut client = server.client(&profile, Dialect::Smb311, name);
        client.it.echo().unwrap();
        let sizes: Vec<usize> = (0..40).map(|i| [MIB, 4096, 300_001, 100][i % 4]).collect();
        let data = noise(sizes.iter().sum(), 3);
        let target = Memory::allocate(data.len()).unwrap();
        for is_read in [false, true] {
            let whole = match is_read {
                true => target.clone(),
                false => MemSlice::from_bytes(&data).unwrap(),
            };
            let mut at = 0;
            let mut pending = Vec::new();
            for &size in &sizes {
                let memory = whole.slice(at, size).unwrap();
                pending.push(submit(&mut client, at, &memory, is_read));
                at += size;
            }
            for it in pending {
                let response = client.it.wait(it.id).unwrap().success().unwrap();
                client.finish(&it.memory, &response, invalidate(), name);
            }
        }
        assert!(server.content(name) == data, "{name}");
        assert!(target.to_vec() == data, "{name}");
        server.remove(name);
    }
}

/// `[MS-SMB2] 3.2.4.2.3`: the session begins over TCP, as Windows does it.
fn a_channel_of_a_tcp_session(server: &Ksmbd) {
    for dialect in Dialect::ALL {
        let options = options(dialect, Signing::IfRequired);
        let first = Connection::tcp(server.tcp(), &options).unwrap();
        assert!(first.negotiated().multi_channel, "{dialect:?}");
        let (mut first, session, tree) = open_share(first);
        let mut second = server.connect(&Profile::windows(), &options).unwrap();
        second.bind(&session, &smb::credentials()).unwrap();
        let mut client = Client::with(second, tree, "channel");
        client.moves_data(MIB, "bound");
        // And by TCP what came by RDMA.
        let opened = first.open(tree, "channel", OpenMode::Read).unwrap();
        let got = first.read(tree, opened.id, 1, 1000).unwrap();
        assert!(got == server.content("channel")[1..1001], "{dialect:?}");
    }
    server.remove("channel");
}

/// Requests that cannot be served get an answer; the connection goes on.
fn what_is_refused(server: &Ksmbd) {
    for dialect in Dialect::ALL {
        let mut client = server.client(&Profile::linux(), dialect, "refused");
        client.moves_data(5000, "before");
        let memory = MemSlice::from_bytes(&[1; 4096]).unwrap();
        let memory = client.register(&memory, TARGET);
        let named = memory.descriptors()[0];
        let empty = BufferDescriptor { length: 0, ..named };
        let mut cases = vec![
            ("nothing named", 100, channel::RDMA_V1, vec![]),
            (
                "an empty one first",
                100,
                channel::RDMA_V1,
                vec![empty, named],
            ),
        ];
        if dialect == Dialect::Smb300 {
            let id = channel::RDMA_V1_INVALIDATE;
            cases.push(("not in 3.0", 100, id, vec![named]));
        }
        for (what, length, id, descriptors) in cases {
            let read = ReadRequest::rdma(client.file, 0, length, id, &descriptors);
            let write = WriteRequest::rdma(client.file, 0, length, id, &descriptors);
            for request in [read.to_request(client.tree), write.to_request(client.tree)] {
                let asked = client.it.submit(request.unwrap()).unwrap();
                let response = client.it.wait(asked).unwrap();
                let got = response.status();
                assert_eq!(got, status::INVALID_PARAMETER, "{dialect:?}, {what}");
            }
        }
        client.deregister(&memory, false, "refused");
        client.moves_data(5000, "after");
    }
    server.remove("refused");
}

/// The server's RDMA operation fails, which ends the connection: `[MS-SMBD] 3.1.4.5`, 3.1.4.6.
fn memory_that_is_not_there(server: &Ksmbd) {
    type Change = fn(&mut BufferDescriptor);
    let changes: [(&str, Change); 3] = [
        ("token", |it| it.token = it.token.wrapping_add(1)),
        ("offset", |it| it.offset = u64::MAX - (1 << 20)),
        ("access", |_| ()),
    ];
    for (what, change) in changes {
        for is_read in [true, false] {
            let mut client = server.client(&Profile::linux(), Dialect::Smb311, "gone");
            client.moves_data(70_000, "before");
            let memory = MemSlice::from_bytes(&[0; 65_536]).unwrap();
            if what == "access" && !is_read && device() == "siw" {
                // siw serves RDMA READ of memory that may only be written.
                continue;
            }
            let is_target = is_read != (what == "access");
            let memory = client.register(&memory, if is_target { TARGET } else { SOURCE });
            let mut named = memory.descriptors()[0];
            change(&mut named);
            let (file, id) = (client.file, channel::RDMA_V1);
            let request = match is_read {
                true => ReadRequest::rdma(file, 0, 65_536, id, &[named]).to_request(client.tree),
                false => WriteRequest::rdma(file, 0, 65_536, id, &[named]).to_request(client.tree),
            };
            let asked = client.it.submit(request.unwrap()).unwrap();
            match client.it.wait(asked).map(|response| response.status()) {
                Ok(got) => assert_ne!(got, status::SUCCESS, "{what}, read {is_read}"),
                Err(SmbError::Connection(reason)) => println!("{what}, {is_read}: {reason}"),
                Err(error) => panic!("{what}, read {is_read}: {error}"),
            }
        }
    }
    server.is_well();
    server.remove("gone");
}

/// `[MS-SMBD] 3.1.5.7`: a MaxFragmentedSize below 131,072 is not for a client to take.
fn a_small_client_refuses(server: &Ksmbd) {
    let mut small = Profile::linux();
    small.config.active.max_send_size = 1000;
    let reason = server.refusal(&small);
    assert!(reason.contains("MaxFragmentedSize"), "{reason}");
}

/// The least that `[MS-SMBD]` allows is too little for ksmbd, which ends the connection. With RoCE
/// that end is lost when it comes before the last message of the set-up was looked at, see
/// tests/uml/README.md; then our own timer is what ends it. An end that was sent is always taken.
fn a_small_client_is_refused(server: &Ksmbd) {
    let mut least = Profile::small();
    least.config.active.negotiate_timeout_active = Duration::from_secs(15);
    for _ in 0..4 {
        let before = goodbyes_sent();
        let reason = server.refusal(&least);
        println!("{reason}");
        if reason.contains("closed by the peer") {
            // It may come before the kernel has counted it.
            let is_counted = || before.is_none() || goodbyes_sent() > before;
            samba::wait_until("the end that came was sent", is_counted);
        } else {
            assert!(reason.contains("negotiation timed out"), "{reason}");
            assert!(before.is_some(), "over TCP an end is always told");
            assert_eq!(goodbyes_sent(), before, "an end that was sent is taken");
        }
    }
    server.is_well();
}

/// How many requests to disconnect the server's device has sent; `None`: it is an iWARP device,
/// where TCP does that.
fn goodbyes_sent() -> Option<u64> {
    let file = "/sys/class/infiniband/rxe0/ports/1/cm_tx_msgs/dreq";
    let text = fs::read_to_string(file).ok().filter(|_| device() == "rxe");
    assert_eq!(text.is_some(), device() == "rxe", "{file}");
    text.map(|text| text.trim().parse().expect("a number"))
}

fn the_client_goes_away(server: &Ksmbd) {
    for is_read in [true, false] {
        for in_flight in [0, 1, 12] {
            let mut client = server.client(&Profile::windows(), Dialect::Smb311, "away");
            client.moves_data(MIB, "before");
            let memory = Memory::allocate(MIB).unwrap();
            for _ in 0..in_flight {
                submit(&mut client, 1, &memory, is_read);
            }
            client.it.direct_mut().unwrap().abort();
        }
        server.is_well();
    }
    server.remove("away");
}

fn the_server_goes_away(server: &Ksmbd) {
    let options = options(Dialect::Smb311, Signing::IfRequired);
    let mut client = server.client(&Profile::linux(), Dialect::Smb311, "server");
    client.moves_data(MIB, "before");
    // It waits for the client, who has to notice meanwhile.
    let mut stopping = Command::new("ksmbd.control").arg("-s").spawn().unwrap();
    let start = Instant::now();
    let reason = loop {
        // Until the end is there requests may be refused as well.
        match client.it.echo() {
            Err(SmbError::Connection(reason)) => break reason,
            _ => assert!(start.elapsed() < Duration::from_secs(60), "it goes on"),
        }
    };
    println!("the end: {reason}");
    drop(client);
    assert!(stopping.wait().unwrap().success());
    assert!(server.connect(&Profile::linux(), &options).is_err());
}

/// Software iWARP: what MPA negotiates. siw takes both revisions, and CRC when it is asked for.
fn revisions_and_crc(server: &Ksmbd) {
    for revision in [1, 2] {
        for crc in [false, true] {
            for mut profile in profiles() {
                let what = format!("{} MPA {revision}, CRC {crc}", profile.name);
                profile.connect.mpa_revision = revision;
                profile.connect.crc = crc;
                let mut client = server.client(&profile, Dialect::Smb311, "mpa");
                client.moves_data(1, &what);
                client.moves_data(2 * MIB + 1, &what);
                let data = noise(60_000, 2);
                let (tree, file) = (client.tree, client.file);
                assert_eq!(client.it.write(tree, file, 0, &data).unwrap(), 60_000);
                let got = client.it.read(tree, file, 0, 60_000).unwrap();
                assert!(got == data, "{what}");
            }
        }
    }
    server.remove("mpa");
}
