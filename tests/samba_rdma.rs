//! READ and WRITE through RDMA channels: our own SMB client against the patched smbd.

mod common;
#[path = "common/samba.rs"]
mod samba;
#[path = "common/smb.rs"]
mod smb;

use std::fs;
use std::process::Command;

use serde_json::Value;
use smb::{channels, invalidate, noise, pieces, profiles, start, Client, BLANK, SOURCE, TARGET};
use smbdirect::mem::MemSlice;
use smbdirect::smb::{
    channel, status, Dialect, FileId, Memory, OpenMode, Profile, ReadRequest, Request, WriteRequest,
};
use smbdirect::wire::BufferDescriptor;

const MIB: usize = 1 << 20;

#[test]
fn every_size_goes_both_ways() {
    let Some(server) = start("every_size_goes_both_ways") else {
        return;
    };
    let sizes = [
        1,
        2,
        7,
        511,
        4095,
        4096,
        4097,
        65_535,
        65_536,
        65_537,
        MIB - 1,
        MIB,
        MIB + 1,
        3 * MIB + 12_345,
        8 * MIB,
    ];
    for dialect in Dialect::ALL {
        for profile in profiles() {
            for &id in channels(dialect) {
                let name = format!("{dialect:?}-{}-{id}", profile.name);
                let mut client = Client::new(&server, &profile, dialect, &name);
                let mut expected = Vec::new();
                for (i, &size) in sizes.iter().enumerate() {
                    let what = format!("{name}, {size} bytes");
                    let data = noise(size, i as u64);
                    // Offsets that are no multiple of anything, with holes between.
                    let offset = expected.len() + 13 * i;
                    let pieces = pieces(size, profile.descriptor_size.min(size));
                    client.write(offset as u64, &data, &pieces, id, &what);
                    expected.resize(offset, 0);
                    expected.extend(&data);
                    let got = client.read(offset as u64, size as u32, &pieces, id, &what);
                    assert!(got == (size as u32, data), "{what}");
                }
                assert!(fs::read(server.share(&name)).unwrap() == expected, "{name}");
                fs::remove_file(server.share(&name)).unwrap();
            }
        }
    }
    server.wait_for_baseline();
}

#[test]
fn memory_in_any_pieces() {
    let Some(server) = start("memory_in_any_pieces") else {
        return;
    };
    let mut odd = vec![1, 1, 3, 4093, 1, 65_536, 2, 131_071, 4096];
    odd.extend(pieces(300_000, 7001));
    let splits = [
        vec![1],
        vec![1; 100],
        vec![1, 4096],
        vec![4096, 1],
        vec![65_536; 16],
        odd,
        // As many as one request can name: `[MS-SMB2] 2.2.19` has 16 bits for their length.
        vec![1; 4095],
        pieces(MIB, 257)[..4080].to_vec(),
    ];
    for profile in profiles() {
        let mut client = Client::new(&server, &profile, Dialect::Smb311, "pieces");
        for (i, split) in splits.iter().enumerate() {
            let size = split.iter().sum();
            let what = format!("{}, {} pieces, {size} bytes", profile.name, split.len());
            let data = noise(size, i as u64);
            let id = invalidate();
            client.write(0, &data, split, id, &what);
            assert!(
                fs::read(server.share("pieces")).unwrap()[..size] == data,
                "{what}"
            );
            let got = client.read(0, size as u32, split, id, &what);
            assert!(got == (size as u32, data.clone()), "{what}");

            // Less than the memory holds, so that the rest of it stays as it is.
            let part = size.div_ceil(2);
            let (count, got) = client.read(0, part as u32, split, channel::RDMA_V1, &what);
            assert_eq!(count, part as u32, "{what}");
            assert!(got[..part] == data[..part], "{what}");
            assert!(got[part..].iter().all(|&byte| byte == BLANK), "{what}");
        }
    }
    server.wait_for_baseline();
}

/// Descriptors without length in between are no memory, and no mistake (`[MS-SMB2] 3.3.5.13` looks
/// at the first one only).
#[test]
fn empty_descriptors_in_between() {
    let Some(server) = start("empty_descriptors_in_between") else {
        return;
    };
    let mut client = Client::new(&server, &Profile::windows(), Dialect::Smb311, "empty");
    let data = noise(10_000, 5);
    let memory = MemSlice::from_bytes(&data).unwrap();
    let memory = client.register_pieces(&memory, &[4000, 6000], SOURCE);
    let [first, second] = memory.descriptors() else {
        panic!("two pieces");
    };
    let empty = BufferDescriptor {
        offset: 1,
        token: 2,
        length: 0,
    };
    let descriptors = [*first, empty, empty, *second, empty];
    let write = WriteRequest::rdma(client.file, 0, 10_000, channel::RDMA_V1, &descriptors);
    client
        .it
        .call(write.to_request(client.tree).unwrap())
        .unwrap();
    client.deregister(&memory, false, "write");
    assert!(fs::read(server.share("empty")).unwrap() == data);
}

#[test]
fn reads_at_the_end_of_the_file() {
    let Some(server) = start("reads_at_the_end_of_the_file") else {
        return;
    };
    let data = noise(100_000, 9);
    fs::write(server.share("end"), &data).unwrap();
    for profile in profiles() {
        let mut client = Client::new(&server, &profile, Dialect::Smb311, "end");
        for &id in channels(Dialect::Smb311) {
            let what = format!("{} {id}", profile.name);
            for offset in [0, 1, 65_536, 99_999] {
                let (count, got) = client.read(offset, 200_000, &[150_000, 50_000], id, &what);
                let there = &data[offset as usize..];
                assert_eq!(count as usize, there.len(), "{what}");
                assert!(got[..there.len()] == *there, "{what}");
                assert!(got[there.len()..].iter().all(|&it| it == BLANK), "{what}");
            }
            for (offset, minimum) in [(100_000, 0), (1 << 40, 0), (99_000, 1001)] {
                let memory = MemSlice::from_bytes(&[BLANK; 4096]).unwrap();
                let memory = client.register(&memory, TARGET);
                let read = ReadRequest {
                    minimum_count: minimum,
                    ..ReadRequest::rdma(client.file, offset, 4096, id, memory.descriptors())
                };
                let id = client.it.submit(read.to_request(client.tree).unwrap());
                let response = client.it.wait(id.unwrap()).unwrap();
                assert_eq!(response.status(), status::END_OF_FILE, "{what} {offset}");
                client.it.direct_mut().unwrap().deregister(&memory);
            }
        }
    }
    server.wait_for_baseline();
}

/// More than the server has buffers for: what does not fit has to wait, and nothing fails.
#[test]
fn many_requests_wait_for_their_turn() {
    let Some(server) = start("many_requests_wait_for_their_turn") else {
        return;
    };
    for profile in profiles() {
        let name = format!("turn-{}", profile.name);
        let mut client = Client::new(&server, &profile, Dialect::Smb311, &name);
        client.it.echo().unwrap();
        let sizes: Vec<usize> = (0..40)
            .map(|i| [8 * MIB, 4096, 3 * MIB + 1, 100][i % 4])
            .collect();
        let data = noise(sizes.iter().sum(), 3);
        let whole = MemSlice::from_bytes(&data).unwrap();
        let mut at = 0;
        let mut writes = Vec::new();
        for &size in &sizes {
            let memory = client.register(&whole.slice(at, size).unwrap(), SOURCE);
            let id = channel::RDMA_V1;
            let descriptors = memory.descriptors();
            let write = WriteRequest::rdma(client.file, at as u64, size as u32, id, descriptors);
            let id = client.it.submit(write.to_request(client.tree).unwrap());
            writes.push((id.unwrap(), memory));
            at += size;
        }
        for (id, memory) in writes {
            client.it.wait(id).unwrap().success().unwrap();
            client.deregister(&memory, false, &name);
        }
        assert!(fs::read(server.share(&name)).unwrap() == data, "{name}");

        let target = Memory::allocate(data.len()).unwrap();
        let mut at = 0;
        let mut reads = Vec::new();
        for &size in &sizes {
            let memory = client.register(&target.slice(at, size).unwrap(), TARGET);
            let id = invalidate();
            let descriptors = memory.descriptors();
            let read = ReadRequest::rdma(client.file, at as u64, size as u32, id, descriptors);
            let id = client.it.submit(read.to_request(client.tree).unwrap());
            reads.push((id.unwrap(), memory, size));
            at += size;
        }
        // What is small, and asked for in between, is not kept waiting by lack of buffers.
        client.it.echo().unwrap();
        for (id, memory, size) in reads {
            let response = client.it.wait(id).unwrap().success().unwrap();
            let result = response.read_result().unwrap();
            assert_eq!(result.data_remaining as usize, size, "{name}");
            client.finish(&memory, &response, invalidate(), &name);
        }
        assert!(target.to_vec() == data, "{name}");
        fs::remove_file(server.share(&name)).unwrap();
    }
    server.wait_for_baseline();
}

#[test]
fn compounds_with_rdma() {
    let Some(server) = start("compounds_with_rdma") else {
        return;
    };
    let data = noise(200_000, 4);
    fs::write(server.share("compound"), &data).unwrap();
    let mut client = Client::new(&server, &Profile::windows(), Dialect::Smb311, "other");
    let memory = Memory::allocate(data.len()).unwrap();
    let id = invalidate();
    for round in 0..3 {
        let what = format!("round {round}");
        let target = client.register_pieces(&memory, &[150_000, 50_000], TARGET);
        let read = ReadRequest::rdma(FileId::FULL, 0, 200_000, id, target.descriptors());
        let related = vec![
            Request::create(client.tree, "compound", OpenMode::Read).unwrap(),
            read.to_request(client.tree).unwrap(),
            Request::close(client.tree, FileId::FULL).unwrap(),
        ];
        let ids = client.it.submit_compound(related, true).unwrap();
        let responses: Vec<_> = ids
            .iter()
            .map(|&id| client.it.wait(id).unwrap().success().unwrap())
            .collect();
        let result = responses[1].read_result().unwrap();
        assert_eq!(result.data_remaining, 200_000, "{what}");
        assert!(memory.to_vec() == data, "{what}");
        client.it.direct_mut().unwrap().deregister(&target);

        let source = MemSlice::from_bytes(&data).unwrap();
        let source = client.register(&source, SOURCE);
        let write = WriteRequest::rdma(FileId::FULL, 0, 200_000, id, source.descriptors());
        let name = format!("made-{round}");
        let related = vec![
            Request::create(client.tree, &name, OpenMode::Overwrite).unwrap(),
            write.to_request(client.tree).unwrap(),
            Request::flush(client.tree, FileId::FULL).unwrap(),
            Request::close(client.tree, FileId::FULL).unwrap(),
        ];
        for id in client.it.submit_compound(related, true).unwrap() {
            client.it.wait(id).unwrap().success().unwrap();
        }
        client.it.direct_mut().unwrap().deregister(&source);
        assert!(fs::read(server.share(&name)).unwrap() == data, "{what}");
    }
    drop(client);
    server.wait_for_baseline();
}

#[test]
fn the_bench_measures_a_server() {
    let Some(server) = start("the_bench_measures_a_server") else {
        return;
    };
    let output = Command::new(common::program())
        .args([
            "bench", "--json", "--repeat", "1", "--bytes", "4M", "--iters", "50",
        ])
        .args(["--smb", "//127.0.0.1/share", "--user", &samba::user()])
        .args(["--tcp", &smb::tcp(&server).to_string()])
        .args(["--rdma", &common::target::client_target(server.rdma_port)])
        .env("SMBDIRECT_PASSWORD", smb::PASSWORD)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = result["results"].as_array().unwrap();
    assert_eq!(rows.len(), 12, "{result:#}");
    for row in rows {
        assert!(row["ratio"].as_f64().unwrap() > 0.0, "{row}");
    }
    // The file is gone.
    assert_eq!(fs::read_dir(server.dir.join("share")).unwrap().count(), 0);
    server.wait_for_baseline();
}
