//! RDMA transforms against the patched smbd: what must not pass.

mod common;
#[path = "common/samba.rs"]
mod samba;
#[path = "common/smb.rs"]
mod smb;
#[path = "common/transform.rs"]
mod transform;

use std::fs;

use smb::{noise, options, start, tcp, Client, SOURCE, TARGET};
use smbdirect::mem::MemSlice;
use smbdirect::smb::{
    channel, status, Cipher, Connection, Dialect, Encrypting, Options, Profile, Protection,
    ReadRequest, Request, Signing, WriteRequest,
};
use transform::{
    encrypted, mismatch, open, protections, signed, Draft, Untouched, BOTH, LARGE, SIGNING,
};

/// Data, tag, nonce and signature are what was sealed, or the file stays as it was.
#[test]
fn what_was_tampered_with_is_refused() {
    let Some(server) = start("what_was_tampered_with_is_refused") else {
        return;
    };
    type Change<'a> = (&'a str, &'a dyn Fn(&mut Draft));
    let changes: [Change<'_>; 9] = [
        ("first byte", &|draft| draft.tamper(0)),
        ("last byte", &|draft| {
            draft.tamper(draft.length as usize - 1)
        }),
        ("tag", &|draft| draft.crypto().signature[15] ^= 1),
        ("no tag", &|draft| draft.crypto().signature.clear()),
        ("short tag", &|draft| draft.crypto().signature.truncate(15)),
        ("long tag", &|draft| draft.crypto().signature.push(0)),
        ("nonce", &|draft| match &mut draft.crypto().nonce[..] {
            [] => draft.crypto().signature[0] ^= 1,
            [first, ..] => *first ^= 1,
        }),
        ("nonce of 13", &|draft| match &mut draft.crypto().nonce {
            // Without a meaning for it the server may ignore it.
            nonce if nonce.is_empty() => draft.tamper(0),
            nonce => nonce.resize(13, 0),
        }),
        ("less data", &|draft| draft.length -= 1),
    ];
    for (name, options, protection) in protections() {
        let mut file = Untouched::new(&server, &name, noise(100_000, 1));
        let mut client = open(&server, &options, &name);
        let data = noise(70_000, 2);
        for (change, apply) in changes {
            let what = format!("{name}, {change}");
            let mut draft = client.draft(protection, &data, channel::RDMA_V1);
            apply(&mut draft);
            draft.place();
            let response = client.write_draft(&draft, 0);
            assert_eq!(response.status(), mismatch(protection), "{what}");
            file.check(&mut client, Some(protection), &what);
        }
    }
    server.wait_for_baseline();
}

/// The transform of one request, and the data of another.
#[test]
fn payloads_are_not_those_of_other_requests() {
    let Some(server) = start("payloads_are_not_those_of_other_requests") else {
        return;
    };
    for (name, options, protection) in protections() {
        let mut file = Untouched::new(&server, &name, noise(100_000, 3));
        let mut client = open(&server, &options, &name);
        let one = client.draft(protection, &noise(50_000, 4), channel::RDMA_V1);
        let two = client.draft(protection, &noise(50_000, 5), channel::RDMA_V1);
        let mut ids = Vec::new();
        for (offset, (transform, data)) in [(0, (&one, &two)), (50_000, (&two, &one))] {
            let info = transform.transform.channel_info(data.memory.descriptors());
            let write = client.request(transform, offset, info);
            let request = write.to_request(client.tree).unwrap();
            ids.push(client.it.submit(request).unwrap());
        }
        for id in ids {
            let status = client.it.wait(id).unwrap().status();
            assert_eq!(status, mismatch(protection), "{name}");
        }
        file.check(&mut client, Some(protection), &name);
        // Each of them is good where it belongs.
        for (draft, seed) in [(&one, 4), (&two, 5)] {
            let response = client.write_draft(draft, 0).success().unwrap();
            assert_eq!(response.written().unwrap(), 50_000, "{name}");
            let content = fs::read(server.share(&name)).unwrap();
            assert!(content[..50_000] == noise(50_000, seed), "{name}");
        }
    }
    server.wait_for_baseline();
}

/// A nonce that comes again is no fault that a server has to see (Microsoft's own cases send one 64
/// times): messages are protected against replay, and a transform is inside of one. With other
/// data, nonce and tag of before are worth nothing.
#[test]
fn a_nonce_of_before_does_not_open_other_data() {
    let Some(server) = start("a_nonce_of_before_does_not_open_other_data") else {
        return;
    };
    for (name, options, protection) in protections() {
        let mut client = open(&server, &options, &name);
        let data = noise(20_000, 6);
        let first = client.draft(protection, &data, channel::RDMA_V1);
        for offset in [0, 20_000] {
            let write = client.request(&first, offset, first.channel_info());
            client.answer(&write).success().unwrap();
        }
        client.it.direct_mut().unwrap().deregister(&first.memory);
        let mut file = Untouched::new(&server, &name, data.repeat(2));
        for has_tag in [false, true] {
            let mut again = client.draft(protection, &noise(20_000, 7), channel::RDMA_V1);
            let mut before = first.transform.transforms[0].clone();
            if !has_tag {
                before.signature = again.crypto().signature.clone();
            }
            if before.nonce.is_empty() && !has_tag {
                continue;
            }
            *again.crypto() = before;
            let response = client.write_draft(&again, 0);
            assert_eq!(response.status(), mismatch(protection), "{name}");
            file.check(&mut client, Some(protection), &name);
        }
    }
    server.wait_for_baseline();
}

/// What `[MS-SMB2] 2.2.43` and 3.3.5.13 say of the structures, besides Microsoft's cases.
#[test]
fn structures_that_are_not_as_they_must_be() {
    let Some(server) = start("structures_that_are_not_as_they_must_be") else {
        return;
    };
    type Change<'a> = (&'a str, &'a dyn Fn(&mut Draft) -> Vec<u8>);
    // Changes 16 bits of the channel information.
    fn put(draft: &Draft, at: usize, value: u16) -> Vec<u8> {
        let mut info = draft.channel_info();
        info[at..at + 2].copy_from_slice(&value.to_le_bytes());
        info
    }
    let changes: [Change<'_>; 22] = [
        ("no info", &|_| Vec::new()),
        ("info of 15", &|draft| draft.channel_info()[..15].to_vec()),
        ("info of 16", &|draft| draft.channel_info()[..16].to_vec()),
        ("half a transform", &|draft| {
            draft.channel_info()[..30].to_vec()
        }),
        ("half a descriptor", &|draft| {
            let info = draft.channel_info();
            info[..info.len() - 8].to_vec()
        }),
        ("descriptors at 0", &|draft| put(draft, 0, 0)),
        ("descriptors at 16", &|draft| put(draft, 0, 16)),
        ("descriptors 8 before", &|draft| {
            put(draft, 0, draft.transform.descriptor_offset - 8)
        }),
        ("descriptors 8 behind", &|draft| {
            let mut info = draft.channel_info();
            let at = usize::from(draft.transform.descriptor_offset);
            info.splice(at..at, [0; 8]);
            info[..2].copy_from_slice(&(at as u16 + 8).to_le_bytes());
            info
        }),
        ("descriptors 1 behind", &|draft| {
            let mut info = draft.channel_info();
            let at = usize::from(draft.transform.descriptor_offset);
            info.insert(at, 0);
            info[..2].copy_from_slice(&(at as u16 + 1).to_le_bytes());
            info
        }),
        ("descriptors at the end", &|draft| put(draft, 0, 0xffff)),
        ("no descriptors", &|draft| put(draft, 2, 0)),
        ("descriptors of 15", &|draft| put(draft, 2, 15)),
        ("descriptors of 17", &|draft| {
            let mut info = put(draft, 2, 17);
            info.push(0);
            info
        }),
        ("more descriptors than there are", &|draft| {
            put(draft, 2, 32)
        }),
        ("descriptors of 0xfff0", &|draft| put(draft, 2, 0xfff0)),
        ("inner channel 0", &|draft| put(draft, 4, 0)),
        ("inner channel 3", &|draft| put(draft, 4, 3)),
        ("inner channel 0x10001", &|draft| put(draft, 6, 1)),
        ("TransformCount 0xffff", &|draft| put(draft, 8, 0xffff)),
        ("TransformType 0", &|draft| put(draft, 16, 0)),
        ("TransformType 3", &|draft| put(draft, 16, 3)),
    ];
    for (name, options, protection) in protections() {
        let mut file = Untouched::new(&server, &name, noise(10_000, 8));
        let mut client = open(&server, &options, &name);
        for (change, apply) in changes {
            let what = format!("{name}, {change}");
            let mut draft = client.draft(protection, &noise(8192, 9), channel::RDMA_V1);
            let info = apply(&mut draft);
            let write = client.request(&draft, 0, info);
            let response = client.answer(&write);
            assert_eq!(response.status(), status::INVALID_PARAMETER, "{what}");
            client.it.direct_mut().unwrap().deregister(&draft.memory);
            file.check(&mut client, Some(protection), &what);
        }
        // Fields of the WRITE around it: `[MS-SMB2] 3.3.5.13`.
        let draft = client.draft(protection, &noise(8192, 9), channel::RDMA_V1);
        let good = client.request(&draft, 0, draft.channel_info());
        let wrong = [
            WriteRequest {
                remaining_bytes: 0,
                ..good.clone()
            },
            WriteRequest {
                remaining_bytes: 8193,
                ..good.clone()
            },
            WriteRequest {
                remaining_bytes: LARGE as u32 + 1,
                ..good.clone()
            },
            WriteRequest {
                length: 1,
                ..good.clone()
            },
            WriteRequest {
                data_offset: 112,
                ..good.clone()
            },
            WriteRequest {
                channel_info_offset: 0,
                ..good.clone()
            },
            WriteRequest {
                channel_info_length: 0xffff,
                ..good.clone()
            },
        ];
        for (i, write) in wrong.iter().enumerate() {
            let response = client.answer(write);
            assert_eq!(response.status(), status::INVALID_PARAMETER, "{name} {i}");
            file.check(&mut client, Some(protection), &name);
        }
        client.answer(&good).success().unwrap();
        client.it.direct_mut().unwrap().deregister(&draft.memory);
    }
    server.wait_for_baseline();
}

/// The transform has to be that which the protection of the request wants.
#[test]
fn transforms_of_requests_that_have_no_such_protection() {
    let Some(server) = start("transforms_of_requests_that_have_no_such_protection") else {
        return;
    };
    // Neither signed nor encrypted.
    let name = "plain";
    let mut file = Untouched::new(&server, name, noise(10_000, 10));
    let options = signed(Signing::IfRequired, BOTH);
    let mut client = open(&server, &options, name);
    assert_eq!(client.it.transforms(), BOTH);
    assert_eq!(client.it.protection(client.tree), Some(Protection::Plain));
    let data = noise(8192, 11);
    for protection in [Protection::Signed, Protection::Encrypted] {
        let draft = client.draft(protection, &data, channel::RDMA_V1);
        let response = client.write_draft(&draft, 0);
        assert_eq!(response.status(), status::INVALID_PARAMETER);
        file.check(&mut client, None, name);
    }
    let (read, response) = client.read_verified(0, 10_000);
    assert!(read == noise(10_000, 10));
    assert_eq!(response.read_result().unwrap().flags, 0);

    // One request that is signed, or encrypted, in a session that asks for neither.
    for is_encrypted in [false, true] {
        let protect = |request: Request| match is_encrypted {
            true => request.encrypted(true),
            false => request.signed(),
        };
        let (right, wrong) = match is_encrypted {
            true => (Protection::Encrypted, Protection::Signed),
            false => (Protection::Signed, Protection::Encrypted),
        };
        for (protection, expected) in [(wrong, status::INVALID_PARAMETER), (right, status::SUCCESS)]
        {
            let draft = client.draft(protection, &data, channel::RDMA_V1);
            let write = client.request(&draft, 0, draft.channel_info());
            let request = protect(write.to_request(client.tree).unwrap());
            let id = client.it.submit(request).unwrap();
            let status = client.it.wait(id).unwrap().status();
            assert_eq!(status, expected, "{protection:?} encrypted {is_encrypted}");
            client.it.direct_mut().unwrap().deregister(&draft.memory);
        }
        let target = MemSlice::from_bytes(&[0; 8192]).unwrap();
        let memory = client.register(&target, TARGET);
        let descriptors = memory.descriptors();
        let read = ReadRequest::rdma(client.file, 0, 8192, channel::RDMA_V1, descriptors);
        let request = protect(read.to_request(client.tree).unwrap());
        let response = client.it.call(request).unwrap();
        assert_eq!(response.read_result().unwrap().flags, 1);
        client.it.open_payload(&response, &target).unwrap();
        assert!(target.to_vec() == data);
        client.it.direct_mut().unwrap().deregister(&memory);
    }
    drop(client);
    server.wait_for_baseline();
}

/// `[MS-SMB2] 3.3.5.13`: SMB2_CHANNEL_RDMA_TRANSFORM is of 3.1.1, and of RDMA, and of WRITE.
#[test]
fn transforms_where_there_are_none() {
    let Some(server) = start("transforms_where_there_are_none") else {
        return;
    };
    let data = noise(8192, 12);
    for dialect in [Dialect::Smb300, Dialect::Smb302] {
        for encrypting in [Encrypting::IfRequired, Encrypting::Always] {
            let what = format!("{dialect:?} {encrypting:?}");
            let mut file = Untouched::new(&server, "dialect", noise(10_000, 13));
            let options = Options {
                encrypting,
                transforms: BOTH.to_vec(),
                ..options(dialect, Signing::Always)
            };
            let mut client = open(&server, &options, "dialect");
            assert!(client.it.transforms().is_empty(), "{what}");
            let protection = match encrypting {
                Encrypting::Always => Protection::Encrypted,
                Encrypting::IfRequired => Protection::Signed,
            };
            let draft = client.draft(protection, &data, channel::RDMA_V1);
            let response = client.write_draft(&draft, 0);
            assert_eq!(response.status(), status::INVALID_PARAMETER, "{what}");
            file.check(&mut client, None, &what);
            if encrypting == Encrypting::IfRequired {
                let (read, response) = client.read_verified(0, 10_000);
                assert!(read == noise(10_000, 13), "{what}");
                assert_eq!(response.read_result().unwrap().flags, 0, "{what}");
            }
        }
    }

    // By TCP, where nothing is negotiated, as one more channel of a session that has transforms.
    for (name, options, protection) in protections() {
        let mut file = Untouched::new(&server, &name, noise(10_000, 14));
        let (direct, session, tree) = smb::open_direct(&server, &Profile::windows(), &options);
        let mut direct = Client::with(direct, tree, &name);
        let mut by_tcp = Connection::tcp(tcp(&server), &options).unwrap();
        assert!(by_tcp.transforms().is_empty(), "{name}");
        by_tcp.bind(&session, &smb::credentials()).unwrap();
        let draft = direct.draft(protection, &data, channel::RDMA_V1);
        let write = direct.request(&draft, 0, draft.channel_info());
        let id = by_tcp.submit(write.to_request(tree).unwrap()).unwrap();
        let status = by_tcp.wait(id).unwrap().status();
        assert_eq!(status, status::INVALID_PARAMETER, "{name}");
        by_tcp.echo().unwrap();
        direct.it.direct_mut().unwrap().deregister(&draft.memory);
        file.check(&mut direct, Some(protection), &name);

        // A READ has no such channel.
        let target = MemSlice::from_bytes(&[0; 8192]).unwrap();
        let memory = direct.register(&target, TARGET);
        let (file_id, id) = (direct.file, channel::RDMA_TRANSFORM);
        let read = ReadRequest::rdma(file_id, 0, 8192, id, memory.descriptors());
        let id = direct.it.submit(read.to_request(tree).unwrap()).unwrap();
        let status = direct.it.wait(id).unwrap().status();
        assert_eq!(status, status::INVALID_PARAMETER, "{name}");
        direct.it.direct_mut().unwrap().deregister(&memory);
    }
    server.wait_for_baseline();
}

/// Data of encrypted messages does not go in the clear, and where everything has to be signed, that
/// of a WRITE is signed by a client that has said it can.
#[test]
fn channels_without_the_transform_they_need() {
    let Some(server) = start("channels_without_the_transform_they_need") else {
        return;
    };
    let encrypted_302 = Options {
        encrypting: Encrypting::Always,
        ..options(Dialect::Smb302, Signing::IfRequired)
    };
    for (name, options, takes_read, protection) in [
        (
            "encrypted",
            encrypted(Cipher::Aes128Gcm, BOTH),
            true,
            Some(Protection::Encrypted),
        ),
        (
            "no-transform",
            encrypted(Cipher::Aes128Gcm, &[]),
            false,
            None,
        ),
        (
            "signing-only",
            encrypted(Cipher::Aes128Gcm, SIGNING),
            false,
            None,
        ),
        ("smb302", encrypted_302, false, None),
        (
            "signed",
            signed(Signing::AlwaysGmac, BOTH),
            true,
            Some(Protection::Signed),
        ),
    ] {
        let mut file = Untouched::new(&server, name, noise(10_000, 24));
        let mut client = open(&server, &options, name);
        assert_eq!(client.it.protection(client.tree), protection, "{name}");
        for id in [channel::RDMA_V1, smb::invalidate()] {
            let memory = MemSlice::from_bytes(&noise(8192, 25)).unwrap();
            let source = client.register(&memory, SOURCE);
            let descriptors = source.descriptors();
            let write = WriteRequest::rdma(client.file, 0, 8192, id, descriptors);
            let status = client.answer(&write).status();
            assert_eq!(status, status::INVALID_PARAMETER, "{name}");
            client.it.direct_mut().unwrap().deregister(&source);
            file.check(&mut client, protection, name);
        }
        let target = MemSlice::from_bytes(&[0; 8192]).unwrap();
        let memory = client.register(&target, TARGET);
        let read = ReadRequest::rdma(client.file, 0, 8192, 1, memory.descriptors());
        let request = read.to_request(client.tree).unwrap();
        let id = client.it.submit(request).unwrap();
        let response = client.it.wait(id).unwrap();
        if takes_read {
            let (_, transform) = client.it.read_transform(&response).unwrap();
            assert!(transform.is_some(), "{name}");
        } else {
            assert_eq!(response.status(), status::INVALID_PARAMETER, "{name}");
            assert!(target.to_vec() == [0; 8192], "{name}");
        }
        client.it.direct_mut().unwrap().deregister(&memory);
    }
    server.wait_for_baseline();
}

/// `[MS-SMB2] 3.3.5.4`, 2.2.3.1.6.
#[test]
fn what_negotiate_makes_of_transforms() {
    let Some(server) = start("what_negotiate_makes_of_transforms") else {
        return;
    };
    let connect = |options: &Options| smb::direct(&server, &Profile::windows(), options);
    let asking = |transforms: &[u16]| signed(Signing::IfRequired, transforms);
    for (asked, expected) in [
        (&[1][..], &[1][..]),
        (&[2], &[2]),
        (&[1, 2], &[1, 2]),
        (&[2, 1], &[1, 2]),
        (&[0], &[]),
        (&[0, 1], &[1]),
        (&[3, 2, 0x8000], &[2]),
        (&[7], &[]),
    ] {
        let mut found = connect(&asking(asked)).unwrap().transforms().to_vec();
        found.sort_unstable();
        assert_eq!(found, expected, "{asked:?}");
        // Plain TCP has none.
        let by_tcp = Connection::tcp(tcp(&server), &asking(asked)).unwrap();
        assert!(by_tcp.transforms().is_empty(), "{asked:?}");
    }
    // Encryption needs a cipher.
    let without = Options {
        ciphers: Vec::new(),
        ..asking(BOTH)
    };
    assert_eq!(connect(&without).unwrap().transforms(), SIGNING);

    let context = |bytes: &[u8]| (7, bytes.to_vec());
    let one = [1, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    for contexts in [
        // TransformCount 0, too short, fewer ids than counted, two contexts.
        vec![context(&[0; 8])],
        vec![context(&[0; 10])],
        vec![context(&one[..7])],
        vec![context(&[])],
        vec![context(&one[..8])],
        vec![context(&one[..9])],
        vec![context(&[2, 0, 0, 0, 0, 0, 0, 0, 1, 0])],
        vec![context(&[255; 10])],
        vec![context(&one), context(&one)],
    ] {
        let options = Options {
            contexts,
            ..asking(&[])
        };
        let Err(error) = connect(&options) else {
            panic!("{:?} was taken", options.contexts);
        };
        let status = error.status();
        let contexts = &options.contexts;
        assert_eq!(
            status,
            Some(status::INVALID_PARAMETER),
            "{contexts:?}: {error}"
        );
    }
    server.wait_for_baseline();
}
