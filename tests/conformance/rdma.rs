//! Cases 43 to 57 and 91, 92: READ and WRITE over RDMA, and channels of both transports. The peer is
//! our SMB client, as nothing is wrong with its MS-SMBD.

use std::fs;

use smbdirect::mem::MemSlice;
use smbdirect::smb::{
    channel, status, Connection, Dialect, Memory, OpenMode, Profile, ReadRequest, Signing,
    SmbError, WriteRequest,
};
use smbdirect::wire::BufferDescriptor;

use crate::common::target;
use crate::samba::{samba, Options, Server};
use crate::server;
use crate::smb::{
    credentials, noise, open_share, options, pieces, rdma, tcp, Client, PASSWORD, SOURCE, TARGET,
};

const MIB: usize = 1 << 20;
/// MaxReadSize and MaxWriteSize.
const MOST: usize = 8 * MIB;
/// The suite's buffers where size does not matter.
const SIZE: usize = 65_536;

fn client(server: &Server, dialect: Dialect, name: &str) -> Client {
    Client::new(server, &Profile::windows(), dialect, name)
}

#[test]
fn case_43_read_large_file() {
    let test = "case_43_read_large_file";
    let Some(server) = server(test) else {
        return;
    };
    let content = noise(MOST, 43);
    fs::write(server.share(test), &content).unwrap();
    let mut client = client(&server, Dialect::Smb311, test);
    assert_eq!(client.it.negotiated().max_read_size as usize, MOST);
    let memory = MemSlice::from_bytes(&vec![0; MOST]).unwrap();
    let memory = client.register(&memory, TARGET);
    let (tree, file, id) = (client.tree, client.file, channel::RDMA_V1);
    let read = client.it.rdma_read(tree, file, 0, MOST as u32, id, &memory);
    let (count, response) = read.unwrap();
    assert_eq!(count as usize, MOST, "DataRemaining");
    let result = response.read_result().unwrap();
    assert_eq!((result.data_offset, result.data.len()), (80, 0));
    assert!(memory.memory().to_vec() == content);
    client.deregister(&memory, false, test);
}

#[test]
fn case_44_write_large_file() {
    let test = "case_44_write_large_file";
    let Some(server) = server(test) else {
        return;
    };
    let content = noise(MOST, 44);
    let mut client = client(&server, Dialect::Smb311, test);
    assert_eq!(client.it.negotiated().max_write_size as usize, MOST);
    let id = channel::RDMA_V1;
    client.write(0, &content, &[MOST], id, test);
    assert!(fs::read(server.share(test)).unwrap() == content);
    let read = client.read(0, MOST as u32, &[MOST], id, test);
    assert!(read == (MOST as u32, content));
}

#[test]
fn case_45_read_multiple_operation() {
    let test = "case_45_read_multiple_operation";
    let Some(server) = server(test) else {
        return;
    };
    let content = noise(64 * SIZE, 45);
    fs::write(server.share(test), &content).unwrap();
    let mut client = client(&server, Dialect::Smb311, test);
    let reads: Vec<_> = (0..64)
        .map(|i| {
            let memory = Memory::allocate(SIZE).unwrap();
            let memory = client.register(&memory, TARGET);
            let (offset, id) = ((i * SIZE) as u64, channel::RDMA_V1);
            let read =
                ReadRequest::rdma(client.file, offset, SIZE as u32, id, memory.descriptors());
            let request = read.to_request(client.tree).unwrap();
            (client.it.submit(request).unwrap(), memory)
        })
        .collect();
    for (i, (id, memory)) in reads.into_iter().enumerate() {
        let response = client.it.wait(id).unwrap().success().unwrap();
        let result = response.read_result().unwrap();
        assert_eq!(result.data_remaining as usize, SIZE);
        assert!(
            memory.memory().to_vec() == content[i * SIZE..][..SIZE],
            "{i}"
        );
    }
}

#[test]
fn case_46_write_multiple_operation() {
    let test = "case_46_write_multiple_operation";
    let Some(server) = server(test) else {
        return;
    };
    let content = noise(64 * SIZE, 46);
    let mut client = client(&server, Dialect::Smb311, test);
    let writes: Vec<_> = content
        .chunks(SIZE)
        .enumerate()
        .map(|(i, piece)| {
            let memory = MemSlice::from_bytes(piece).unwrap();
            let memory = client.register(&memory, SOURCE);
            let (offset, id) = ((i * SIZE) as u64, channel::RDMA_V1);
            let write =
                WriteRequest::rdma(client.file, offset, SIZE as u32, id, memory.descriptors());
            let request = write.to_request(client.tree).unwrap();
            (client.it.submit(request).unwrap(), memory)
        })
        .collect();
    for (id, _) in writes {
        let response = client.it.wait(id).unwrap().success().unwrap();
        assert_eq!(response.written().unwrap() as usize, SIZE);
    }
    let read = client.read(0, MOST as u32 / 2, &[MOST / 2], channel::RDMA_V1, test);
    assert!(read.1 == content);
}

/// 4,095 descriptors of 2,049 bytes are 8,390,655 bytes, more than a request may move: 8,388,608
/// are asked for (WindowsProtocolTestSuites issue 202).
#[test]
fn case_47_read_write_multiple_buffer_descriptor_list() {
    let test = "case_47_read_write_multiple_buffer_descriptor_list";
    let Some(server) = server(test) else {
        return;
    };
    let split = vec![2049; 4095];
    let all: usize = split.iter().sum();
    assert_eq!(all, 8_390_655);
    let content = noise(all, 47);
    let mut client = client(&server, Dialect::Smb311, test);
    let (tree, file, id) = (client.tree, client.file, channel::RDMA_V1);
    let source = MemSlice::from_bytes(&content).unwrap();
    let source = client.register_pieces(&source, &split, SOURCE);
    let write = client
        .it
        .rdma_write(tree, file, 0, MOST as u32, id, &source);
    assert_eq!(write.unwrap().0 as usize, MOST);
    client.deregister(&source, false, test);
    assert!(fs::read(server.share(test)).unwrap() == content[..MOST]);

    let target = Memory::allocate(all).unwrap();
    let target = client.register_pieces(&target, &split, TARGET);
    let read = client.it.rdma_read(tree, file, 0, MOST as u32, id, &target);
    assert_eq!(read.unwrap().0 as usize, MOST);
    let got = target.memory().to_vec();
    assert!(got[..MOST] == content[..MOST]);
    assert!(got[MOST..].iter().all(|&byte| byte == 0));
    client.deregister(&target, false, test);

    // One byte more is refused.
    let target = Memory::allocate(all).unwrap();
    let target = client.register_pieces(&target, &split, TARGET);
    let read = ReadRequest::rdma(file, 0, MOST as u32 + 1, id, target.descriptors());
    let id = client.it.submit(read.to_request(tree).unwrap()).unwrap();
    assert_eq!(
        client.it.wait(id).unwrap().status(),
        status::INVALID_PARAMETER
    );
}

/// A READ and a WRITE whose descriptor is `wrong` do not succeed: an error, or the end of the
/// connection. smbd is there for others, and the file is what it was.
fn refused(test: &str, wrong: impl Fn(&mut Client, &Memory) -> BufferDescriptor) {
    let Some(server) = server(test) else {
        return;
    };
    // One byte more than registered may be asked for.
    let content = noise(SIZE + 1, 48);
    fs::write(server.share(test), &content).unwrap();
    for is_read in [true, false] {
        let mut client = client(&server, Dialect::Smb311, test);
        let memory = MemSlice::from_bytes(&vec![0x11; SIZE]).unwrap();
        let memory = client.register(&memory, if is_read { TARGET } else { SOURCE });
        let descriptor = wrong(&mut client, &memory);
        expect_failure(&mut client, is_read, descriptor, test);
    }
    assert!(fs::read(server.share(test)).unwrap() == content);
    let mut client = client(&server, Dialect::Smb311, test);
    let read = client.read(0, SIZE as u32, &[SIZE], channel::RDMA_V1, test);
    assert!(read.1 == content[..SIZE]);
}

fn expect_failure(client: &mut Client, is_read: bool, descriptor: BufferDescriptor, what: &str) {
    let (file, length, id) = (client.file, descriptor.length, channel::RDMA_V1);
    let request = if is_read {
        ReadRequest::rdma(file, 0, length, id, &[descriptor]).to_request(client.tree)
    } else {
        WriteRequest::rdma(file, 0, length, id, &[descriptor]).to_request(client.tree)
    };
    let id = client.it.submit(request.unwrap()).unwrap();
    match client.it.wait(id).map(|response| response.status()) {
        Ok(status) => assert_ne!(status, status::SUCCESS, "{what}, read {is_read}"),
        Err(SmbError::Connection(_)) => {}
        Err(error) => panic!("{what}, read {is_read}: {error}"),
    }
}

#[test]
fn case_48_invalid_buffer_descriptor_offset() {
    refused("case_48_invalid_buffer_descriptor_offset", |_, memory| {
        let it = memory.descriptors()[0];
        BufferDescriptor {
            offset: it.offset + u64::from(it.length),
            ..it
        }
    });
}

#[test]
fn case_49_invalid_buffer_descriptor_length() {
    refused("case_49_invalid_buffer_descriptor_length", |_, memory| {
        let it = memory.descriptors()[0];
        BufferDescriptor {
            length: it.length + 1,
            ..it
        }
    });
}

#[test]
fn case_50_invalid_buffer_descriptor_token() {
    refused("case_50_invalid_buffer_descriptor_token", |_, memory| {
        let it = memory.descriptors()[0];
        BufferDescriptor {
            token: it.token.wrapping_add(1),
            ..it
        }
    });
}

#[test]
fn case_51_invalid_buffer_descriptor_deregistered() {
    let test = "case_51_invalid_buffer_descriptor_deregistered";
    refused(test, |client, memory| {
        client.deregister(memory, false, test);
        memory.descriptors()[0]
    });
}

/// Channel 2 works once; the server has given the token back then, and it leads nowhere any more.
fn invalidated(test: &str, is_read: bool) {
    let Some(server) = server(test) else {
        return;
    };
    let content = noise(SIZE, 52);
    fs::write(server.share(test), &content).unwrap();
    let mut client = client(&server, Dialect::Smb302, test);
    let memory = MemSlice::from_bytes(&content).unwrap();
    let memory = client.register(&memory, if is_read { TARGET } else { SOURCE });
    let (tree, file) = (client.tree, client.file);
    let (length, id) = (SIZE as u32, channel::RDMA_V1_INVALIDATE);
    let done = if is_read {
        client.it.rdma_read(tree, file, 0, length, id, &memory)
    } else {
        client.it.rdma_write(tree, file, 0, length, id, &memory)
    };
    let descriptor = memory.descriptors()[0];
    assert_eq!(done.unwrap().1.invalidated, Some(descriptor.token));
    let id = client.it.submit({
        let id = channel::RDMA_V1;
        let read = ReadRequest::rdma(file, 0, length, id, &[descriptor]);
        let write = WriteRequest::rdma(file, 0, length, id, &[descriptor]);
        let request = if is_read {
            read.to_request(tree)
        } else {
            write.to_request(tree)
        };
        request.unwrap()
    });
    let end = client.it.wait(id.unwrap());
    assert!(matches!(end, Err(SmbError::Connection(_))), "{end:?}");
}

#[test]
fn case_52_smb302_write_v1_invalidate() {
    invalidated("case_52_smb302_write_v1_invalidate", false);
}

#[test]
fn case_53_smb302_read_v1_invalidate() {
    invalidated("case_53_smb302_read_v1_invalidate", true);
}

/// Channel 1 is as good with the later dialects, and invalidates nothing.
fn channel_1(test: &str, is_read: bool) {
    let Some(server) = server(test) else {
        return;
    };
    let content = noise(SIZE, 54);
    for dialect in [Dialect::Smb302, Dialect::Smb311] {
        fs::write(server.share(test), if is_read { &content[..] } else { &[] }).unwrap();
        let mut client = client(&server, dialect, test);
        let id = channel::RDMA_V1;
        if is_read {
            let read = client.read(0, SIZE as u32, &pieces(SIZE, 9000), id, test);
            assert!(read == (SIZE as u32, content.clone()));
        } else {
            client.write(0, &content, &pieces(SIZE, 9000), id, test);
            assert!(fs::read(server.share(test)).unwrap() == content);
        }
    }
}

#[test]
fn case_54_write_channel_rdma_v1() {
    channel_1("case_54_write_channel_rdma_v1", false);
}

#[test]
fn case_55_read_channel_rdma_v1() {
    channel_1("case_55_read_channel_rdma_v1", true);
}

/// Channel 2 is none of SMB 3.0: `[MS-SMB2] 3.3.5.12`, 3.3.5.13.
fn no_channel_2(test: &str, is_read: bool) {
    let Some(server) = server(test) else {
        return;
    };
    let content = noise(SIZE, 56);
    fs::write(server.share(test), &content).unwrap();
    let mut client = client(&server, Dialect::Smb300, test);
    let memory = MemSlice::from_bytes(&vec![0x22; SIZE]).unwrap();
    let memory = client.register(&memory, if is_read { TARGET } else { SOURCE });
    let (file, length, id) = (client.file, SIZE as u32, channel::RDMA_V1_INVALIDATE);
    let request = if is_read {
        ReadRequest::rdma(file, 0, length, id, memory.descriptors()).to_request(client.tree)
    } else {
        WriteRequest::rdma(file, 0, length, id, memory.descriptors()).to_request(client.tree)
    };
    let id = client.it.submit(request.unwrap()).unwrap();
    let response = client.it.wait(id).unwrap();
    assert_eq!(response.status(), status::INVALID_PARAMETER);
    assert_eq!(response.invalidated, None);
    client.deregister(&memory, false, test);
    assert!(memory.memory().to_vec().iter().all(|&byte| byte == 0x22));
    assert!(fs::read(server.share(test)).unwrap() == content);
}

#[test]
fn case_56_smb300_write_v1_invalidate() {
    no_channel_2("case_56_smb300_write_v1_invalidate", false);
}

#[test]
fn case_57_smb300_read_v1_invalidate() {
    no_channel_2("case_57_smb300_read_v1_invalidate", true);
}

/// A session that starts on TCP asks where RDMA is, binds an SMB Direct channel there, and READs on
/// it the file that it opened on TCP.
fn channels_of_both(server: &Server, first: Connection, name: &str) {
    let content = noise(SIZE, 91);
    fs::write(server.share(name), &content).unwrap();
    let (mut first, session, tree) = open_share(first);
    let file = first.open(tree, name, OpenMode::Read).unwrap().id;
    let interfaces = first.interfaces(tree).unwrap();
    let capable = interfaces.iter().find(|it| it.is_rdma_capable);
    let address = capable.expect("an interface with RDMA").address;
    let peer = (address, server.rdma_port).into();
    let options = smbdirect::smb::Options {
        client_guid: first.client_guid(),
        ..options(session.dialect(), Signing::IfRequired)
    };
    let mut second = Connection::direct(
        peer,
        &crate::smb::over_fabric(&Profile::windows()),
        &options,
    )
    .unwrap();
    second.bind(&session, &credentials()).unwrap();
    let memory = Memory::allocate(SIZE).unwrap();
    let memory = second.direct_mut().unwrap().register(&memory, TARGET);
    let memory = memory.unwrap();
    let (length, id) = (SIZE as u32, channel::RDMA_V1);
    let read = second.rdma_read(tree, file, 0, length, id, &memory);
    assert_eq!(read.unwrap().0, length);
    assert!(memory.memory().to_vec() == content);
    assert!(first.read(tree, file, 0, length).unwrap() == content);
}

#[test]
fn case_91_multi_channel_diff_nic_type_diff_transport() {
    let test = "case_91_multi_channel_diff_nic_type_diff_transport";
    let Some(bin) = samba(test) else {
        return;
    };
    // 127.0.0.2 takes TCP alone.
    let device = match target::is_verbs() {
        true => target::address().to_string(),
        false => String::new(),
    };
    let global =
        format!("server multi channel support = yes\ninterfaces = 127.0.0.1 {device} 127.0.0.2/8");
    let options = Options {
        global: &global,
        ..Options::default()
    };
    let server = Server::start_with(bin, &options);
    server.add_user(PASSWORD);
    server.wait_for_smb_direct();
    for dialect in Dialect::ALL {
        let plain = ([127, 0, 0, 2], server.tcp_port).into();
        let offer = crate::smb::options(dialect, Signing::IfRequired);
        let mut first = Connection::tcp(plain, &offer).unwrap();
        assert!(first.negotiated().multi_channel);
        assert!(first.direct_mut().is_err());
        channels_of_both(&server, first, test);
    }
}

#[test]
fn case_92_multichannel_2_channels_diff_transport() {
    let test = "case_92_multichannel_2_channels_diff_transport";
    let Some(server) = server(test) else {
        return;
    };
    assert_eq!(tcp(&server).ip(), rdma(&server).ip());
    for dialect in Dialect::ALL {
        let offer = options(dialect, Signing::IfRequired);
        channels_of_both(
            &server,
            Connection::tcp(tcp(&server), &offer).unwrap(),
            test,
        );
    }
}
