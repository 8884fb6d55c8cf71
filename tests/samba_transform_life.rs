//! RDMA transforms against the patched smbd: sizes, channels, sessions, smb.conf, and that others go
//! on meanwhile.

mod common;
#[path = "common/relay.rs"]
mod relay;
#[path = "common/samba.rs"]
mod samba;
#[path = "common/smb.rs"]
mod smb;
#[path = "common/transform.rs"]
mod transform;

use std::fs;
use std::process::Command;

use relay::Relay;
use serde_json::Value;
use smb::{noise, open_share, rdma, start, start_with, Client, SOURCE, TARGET};
use smbdirect::mem::MemSlice;
use smbdirect::smb::{
    channel, status, Cipher, Connection, Encrypting, FileId, Memory, OpenMode, Profile, Protection,
    RdmaTransform, ReadRequest, Request, Signing, SmbError, WriteRequest,
};
use transform::{
    encrypted, mismatch, open, protections, signed, Draft, Untouched, BOTH, ENCRYPTION, LARGE,
    SIGNING,
};

/// Every size both ways, in one piece of memory and in many, with both inner channels.
#[test]
fn payloads_of_every_size_go_both_ways() {
    let Some(server) = start("payloads_of_every_size_go_both_ways") else {
        return;
    };
    let sizes = [
        1, 2, 15, 16, 17, 4095, 4096, 65_535, 65_536, 65_537, 1_000_003, LARGE,
    ];
    for (name, options, protection) in protections() {
        let mut client = open(&server, &options, &name);
        assert_eq!(client.it.protection(client.tree), Some(protection));
        let mut expected = Vec::new();
        for (i, &size) in sizes.iter().enumerate() {
            let id = [channel::RDMA_V1, smb::invalidate()][i % 2];
            let what = format!("{name}, {size} bytes, {id}");
            let pieces = smb::pieces(size, [size, 1 + size / 3, 4099.max(size / 100)][i % 3]);
            let data = noise(size, i as u64);
            let offset = (expected.len() + 7 * i) as u64;
            let draft = client.draft_pieces(protection, &data, &pieces, id);
            let write = client.request(&draft, offset, draft.channel_info());
            let response = client.answer(&write).success().expect(&what);
            assert_eq!(response.written().unwrap() as usize, size, "{what}");
            client.finish(&draft.memory, &response, id, &what);
            expected.resize(offset as usize, 0);
            expected.extend(&data);
            let (count, got) = client.read(offset, size as u32, &pieces, id, &what);
            assert!((count as usize, &got) == (size, &data), "{what}");
        }
        assert!(fs::read(server.share(&name)).unwrap() == expected, "{name}");
        // Up to the end of the file, and behind it.
        let end = expected.len() as u64;
        let (data, response) = client.read_verified(end - 5, 100);
        assert!(data == expected[expected.len() - 5..], "{name}");
        assert_eq!(response.read_result().unwrap().flags, 1, "{name}");
        let target = MemSlice::from_bytes(&[0; 100]).unwrap();
        let memory = client.register(&target, TARGET);
        let read = ReadRequest::rdma(client.file, end, 100, 1, memory.descriptors());
        let error = client.it.call(read.to_request(client.tree).unwrap());
        assert_eq!(error.unwrap_err().status(), Some(status::END_OF_FILE));
        client.it.direct_mut().unwrap().deregister(&memory);
        drop(client);
        fs::remove_file(server.share(&name)).unwrap();
    }
    server.wait_for_baseline();
}

/// Encryption keys are those of the session, signing keys those of the channel. No nonce comes twice
/// on any of them: our client looks.
#[test]
fn channels_have_signing_keys_of_their_own() {
    let Some(server) = start("channels_have_signing_keys_of_their_own") else {
        return;
    };
    for (name, options, protection) in protections() {
        let mut file = Untouched::new(&server, &name, noise(200_000, 15));
        let profile = Profile::windows();
        let (first, session, tree) = smb::open_direct(&server, &profile, &options);
        let mut first = Client::with(first, tree, &name);
        let file_id = first.file;
        let bind = || {
            let mut it = smb::direct(&server, &profile, &options).unwrap();
            it.bind(&session, &smb::credentials()).unwrap();
            Client {
                it,
                tree,
                file: file_id,
            }
        };
        let mut second = bind();
        for round in 0..12u64 {
            for client in [&mut first, &mut second] {
                file.check(client, Some(protection), &name);
                let offset = round * 1000;
                let (data, _) = client.read_verified(offset, 100_000);
                let content = fs::read(server.share(&name)).unwrap();
                assert!(data == content[offset as usize..][..100_000], "{name}");
            }
            if round % 4 == 3 {
                // A channel that comes back: message ids start anew, nonces of the session do not.
                second.it.direct_mut().unwrap().abort();
                second = bind();
            }
        }
        // Sealed on the first channel, sent on the second, from memory of the second.
        let data = noise(8192, 16);
        let memory = MemSlice::from_bytes(&data).unwrap();
        let sealed = first.it.seal_payload(protection, &memory, 8192);
        let transform = sealed.unwrap().unwrap();
        let memory = second.register(&memory, SOURCE);
        let draft = Draft {
            transform: RdmaTransform::of_write(1, transform, memory.descriptors()),
            memory,
            length: 8192,
        };
        let response = second.write_draft(&draft, 0);
        let expected = match protection {
            Protection::Encrypted => status::SUCCESS,
            _ => status::INVALID_SIGNATURE,
        };
        assert_eq!(response.status(), expected, "{name}");
        if protection == Protection::Signed {
            file.check(&mut second, Some(protection), &name);
            file.check(&mut first, Some(protection), &name);
        }
    }
    server.wait_for_baseline();
}

/// After a reconnect there is another session with other keys.
#[test]
fn a_new_session_has_other_keys() {
    let Some(mut server) = start("a_new_session_has_other_keys") else {
        return;
    };
    for (name, options, protection) in protections() {
        let data = noise(8192, 17);
        let mut client = open(&server, &options, &name);
        let draft = client.draft(protection, &data, channel::RDMA_V1);
        let transform = draft.transform.transforms[0].clone();
        let sealed = draft.memory.memory().to_vec();
        client.write_draft(&draft, 0).success().unwrap();
        client.it.direct_mut().unwrap().abort();
        drop(client);
        if name == "Aes128Gcm" {
            server.restart_smbd();
            server.wait_for_smb_direct();
        }
        let mut file = Untouched::new(&server, &name, noise(10_000, 18));
        let mut client = open(&server, &options, &name);
        let memory = MemSlice::from_bytes(&sealed).unwrap();
        let memory = client.register(&memory, SOURCE);
        let draft = Draft {
            transform: RdmaTransform::of_write(1, transform, memory.descriptors()),
            memory,
            length: 8192,
        };
        let response = client.write_draft(&draft, 0);
        assert_eq!(response.status(), mismatch(protection), "{name}");
        file.check(&mut client, Some(protection), &name);
    }
    server.wait_for_baseline();
}

/// smb.conf: what the server requires, what it offers, and the transforms switched off.
#[test]
fn what_smb_conf_says_of_transforms() {
    let test = "what_smb_conf_says_of_transforms";
    struct Case {
        global: &'static str,
        /// What NEGOTIATE gives to a client that asks for both.
        transforms: &'static [u16],
        /// Of a client that leaves it to the server.
        protection: Option<Protection>,
    }
    let cases = [
        Case {
            global: "server smb encrypt = required",
            transforms: BOTH,
            protection: Some(Protection::Encrypted),
        },
        Case {
            global: "server smb encrypt = desired",
            transforms: BOTH,
            protection: Some(Protection::Encrypted),
        },
        Case {
            global: "server signing = mandatory",
            transforms: BOTH,
            protection: Some(Protection::Signed),
        },
        Case {
            global: "server smb encrypt = off",
            transforms: SIGNING,
            protection: Some(Protection::Plain),
        },
        Case {
            global: "server smb encrypt = off\nserver signing = mandatory",
            transforms: SIGNING,
            protection: Some(Protection::Signed),
        },
        Case {
            global: "smbdirect:rdma transforms = no",
            transforms: &[],
            protection: Some(Protection::Plain),
        },
        Case {
            global: "smbdirect:rdma transforms = no\nserver smb encrypt = required",
            transforms: &[],
            protection: None,
        },
        Case {
            global: "smbdirect:rdma transforms = no\nserver signing = mandatory",
            transforms: &[],
            protection: None,
        },
    ];
    for case in cases {
        let Some(server) = start_with(test, case.global) else {
            return;
        };
        let what = case.global;
        let mut client = open(&server, &signed(Signing::IfRequired, BOTH), "conf");
        assert_eq!(client.it.transforms(), case.transforms, "{what}");
        assert_eq!(client.it.protection(client.tree), case.protection, "{what}");
        let data = noise(100_000, 19);
        match case.protection {
            Some(_) => client.write(0, &data, &[100_000], channel::RDMA_V1, what),
            None => {
                let written = client.it.write(client.tree, client.file, 0, &data);
                assert_eq!(written.unwrap(), 100_000, "{what}");
                for protection in [Protection::Signed, Protection::Encrypted] {
                    let draft = client.draft(protection, &[1; 100], channel::RDMA_V1);
                    let response = client.write_draft(&draft, 0);
                    assert_eq!(response.status(), status::INVALID_PARAMETER, "{what}");
                }
            }
        }
        assert!(fs::read(server.share("conf")).unwrap() == data, "{what}");
        if case.protection.is_some() {
            let (read, response) = client.read_verified(0, 100_000);
            assert!(read == data, "{what}");
            let is_plain = case.protection == Some(Protection::Plain);
            let flags = response.read_result().unwrap().flags;
            assert_eq!(flags, u32::from(!is_plain), "{what}");
        }
        drop(client);
        server.wait_for_baseline();
    }
}

/// smb.conf names the ciphers and the algorithms; the transforms use what is negotiated.
#[test]
fn algorithms_are_those_of_smb_conf() {
    let global = "server smb3 encryption algorithms = AES-256-CCM AES-128-GCM
        server smb3 signing algorithms = HMAC-SHA256 AES-128-CMAC";
    let Some(server) = start_with("algorithms_are_those_of_smb_conf", global) else {
        return;
    };
    for (cipher, is_offered) in [
        (Cipher::Aes128Gcm, true),
        (Cipher::Aes256Ccm, true),
        (Cipher::Aes128Ccm, false),
        (Cipher::Aes256Gcm, false),
    ] {
        let mut options = encrypted(cipher, BOTH);
        if is_offered {
            let mut client = open(&server, &options, "algorithms");
            client.write(0, b"data", &[4], channel::RDMA_V1, "algorithms");
            assert!(client.read_verified(0, 4).0 == b"data");
            continue;
        }
        options.encrypting = Encrypting::IfRequired;
        let it = smb::direct(&server, &Profile::windows(), &options).unwrap();
        assert_eq!(it.negotiated().cipher, None, "{cipher:?}");
        assert_eq!(it.transforms(), SIGNING, "{cipher:?}");
    }
    for signing in [Signing::AlwaysHmac, Signing::AlwaysCmac] {
        let mut client = open(&server, &signed(signing, SIGNING), "algorithms");
        client.write(0, b"more", &[4], channel::RDMA_V1, "algorithms");
        assert!(client.read_verified(0, 4).0 == b"more", "{signing:?}");
    }
    server.wait_for_baseline();
}

/// A share that wants encryption in a session that does not.
#[test]
fn shares_that_are_encrypted() {
    let global = "[secret]\npath = @DIR@/share\nsmb encrypt = required\nread only = no";
    let Some(server) = start_with("shares_that_are_encrypted", global) else {
        return;
    };
    let options = signed(Signing::Always, BOTH);
    let it = smb::direct(&server, &Profile::windows(), &options).unwrap();
    let (mut it, _, open_tree) = open_share(it);
    let secret = it.tree_connect(r"\\127.0.0.1\secret").unwrap();
    assert_eq!(it.protection(open_tree), Some(Protection::Signed));
    assert_eq!(it.protection(secret), Some(Protection::Encrypted));
    let mut client = Client::with(it, secret, "secret");
    let data = noise(100_000, 20);
    client.write(0, &data, &[100_000], smb::invalidate(), "secret");
    let (read, response) = client.read_verified(0, 100_000);
    assert!(read == data && response.is_encrypted);
    let mut client = Client::with(client.it, open_tree, "secret");
    let (read, response) = client.read_verified(0, 100_000);
    assert!(read == data && !response.is_encrypted);
    assert_eq!(response.read_result().unwrap().flags, 1);
    drop(client);
    server.wait_for_baseline();
}

/// While smbd decrypts 8 MiB it answers others. An ECHO is sent when the data of a WRITE has left
/// us, all of it, so that the server has it before the ECHO; and its answer comes before that of
/// the WRITE. The tag is wrong, so that nothing but the transform is between data and answer. It
/// fails with `aio max threads = 0`.
#[test]
fn others_go_on_while_a_large_payload_is_transformed() {
    let test = "others_go_on_while_a_large_payload_is_transformed";
    let Some(server) = start(test) else {
        return;
    };
    let relay = Relay::start(rdma(&server));
    let options = encrypted(Cipher::Aes256Ccm, ENCRYPTION);
    let mut it = Connection::direct(relay.address, &Profile::windows(), &options).unwrap();
    it.set_up_session(&smb::credentials()).unwrap();
    let tree = it.tree_connect(r"\\127.0.0.1\share").unwrap();
    let mut client = Client::with(it, tree, "large");
    let mut draft = client.draft(Protection::Encrypted, &noise(LARGE, 21), channel::RDMA_V1);
    draft.crypto().signature[0] ^= 1;
    let request = client.request(&draft, 0, draft.channel_info());
    let request = request.to_request(tree).unwrap();
    let mut overtaken = 0;
    for _ in 0..50 {
        let before = relay.forwarded();
        let write = client.it.submit(request.clone()).unwrap();
        let mut sent = before;
        let mut was_last = false;
        loop {
            let now = relay.forwarded();
            // Nothing but the last ECHO has left since the ECHO before it.
            let is_all_sent = now - before > LARGE as u64 && now - sent < 4096;
            sent = now;
            let echo = client.it.submit(Request::echo().unwrap()).unwrap();
            let (first, response) = client.it.wait_any().unwrap();
            if first == echo {
                was_last |= is_all_sent;
                continue;
            }
            assert_eq!(first, write);
            assert_eq!(response.status(), status::AUTH_TAG_MISMATCH);
            client.it.wait(echo).unwrap().success().unwrap();
            break;
        }
        overtaken += u32::from(was_last);
        if overtaken == 3 {
            break;
        }
    }
    assert!(overtaken > 0, "no ECHO was answered during a transform");
    assert_eq!(fs::metadata(server.share("large")).unwrap().len(), 0);
    drop(client);
    server.wait_for_baseline();
}

/// More than the server has buffers for; AES-CCM needs room for the tag behind each payload.
#[test]
fn many_payloads_wait_for_their_turn() {
    let Some(server) = start("many_payloads_wait_for_their_turn") else {
        return;
    };
    for (name, options, protection) in protections() {
        let mut client = open(&server, &options, &name);
        let sizes: Vec<usize> = (0..8)
            .map(|i| [LARGE, 65_536, 3_000_001, 100][i % 4])
            .collect();
        let data = noise(sizes.iter().sum(), 26);
        let mut at = 0;
        let mut writes = Vec::new();
        for &size in &sizes {
            let draft = client.draft(protection, &data[at..at + size], channel::RDMA_V1);
            let write = client.request(&draft, at as u64, draft.channel_info());
            let id = client.it.submit(write.to_request(client.tree).unwrap());
            writes.push((id.unwrap(), draft.memory));
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
            let descriptors = memory.descriptors();
            let id = smb::invalidate();
            let read = ReadRequest::rdma(client.file, at as u64, size as u32, id, descriptors);
            let id = client.it.submit(read.to_request(client.tree).unwrap());
            reads.push((id.unwrap(), memory));
            at += size;
        }
        for (id, memory) in reads {
            let response = client.it.wait(id).unwrap().success().unwrap();
            let count = client.it.open_payload(&response, memory.memory());
            assert_eq!(count.unwrap() as usize, memory.memory().len(), "{name}");
            client.finish(&memory, &response, smb::invalidate(), &name);
        }
        assert!(target.to_vec() == data, "{name}");
        fs::remove_file(server.share(&name)).unwrap();
    }
    server.wait_for_baseline();
}

/// How something ends while threads of the server work on payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Abort,
    Logoff,
    TreeDisconnect,
    Close,
    Cancel,
}

/// Whatever ends meanwhile: what is in the file is what was sealed, or nothing.
#[test]
fn what_ends_while_payloads_are_transformed() {
    let Some(server) = start("what_ends_while_payloads_are_transformed") else {
        return;
    };
    const COUNT: usize = 6;
    const SIZE: usize = 2 << 20;
    let data = noise(SIZE, 27);
    // The slow ones.
    let slow = ["Aes256Ccm", "AlwaysCmac"];
    let protections = protections().into_iter();
    for (name, options, protection) in protections.filter(|it| slow.contains(&&*it.0)) {
        for ending in [
            Ending::Abort,
            Ending::Logoff,
            Ending::TreeDisconnect,
            Ending::Close,
            Ending::Cancel,
        ] {
            let what = format!("{name} {ending:?}");
            let mut client = open(&server, &options, &what);
            let draft = client.draft(protection, &data, channel::RDMA_V1);
            let mut ids = Vec::new();
            for i in 0..COUNT {
                let write = client.request(&draft, (i * SIZE) as u64, draft.channel_info());
                let request = write.to_request(client.tree).unwrap();
                ids.push(client.it.submit(request).unwrap());
            }
            let (first, response) = client.it.wait_any().unwrap();
            assert_eq!(response.status(), status::SUCCESS, "{what}");
            let mut is_written = ids.iter().map(|&id| id == first).collect::<Vec<_>>();
            let (tree, file) = (client.tree, client.file);
            let others = ids.iter().enumerate().filter(|(_, &id)| id != first);
            match ending {
                Ending::Abort => client.it.direct_mut().unwrap().abort(),
                Ending::Logoff => client.it.logoff().expect(&what),
                Ending::TreeDisconnect => client.it.tree_disconnect(tree).expect(&what),
                Ending::Close => client.it.close(tree, file).expect(&what),
                Ending::Cancel => {
                    for (_, &id) in others.clone() {
                        // Those that are answered meanwhile are not in flight any more.
                        let _ = client.it.cancel(id);
                    }
                }
            }
            // What the server has not begun may be refused.
            let refusals: &[u32] = match ending {
                Ending::Abort | Ending::Close => &[],
                Ending::Logoff => &[status::USER_SESSION_DELETED, status::FILE_CLOSED],
                Ending::TreeDisconnect => &[status::NETWORK_NAME_DELETED, status::FILE_CLOSED],
                Ending::Cancel => &[status::CANCELLED],
            };
            if ending != Ending::Abort {
                for (i, &id) in others {
                    let status = client.it.wait(id).expect(&what).status();
                    is_written[i] = status == status::SUCCESS;
                    let is_known = is_written[i] || refusals.contains(&status);
                    assert!(is_known, "{what}: {status:#010x}");
                }
            }
            drop(client);
            server.wait_for_baseline();
            let mut content = fs::read(server.share(&what)).unwrap();
            content.resize(COUNT * SIZE, 0);
            for (block, is_written) in content.chunks(SIZE).zip(is_written) {
                let is_hole = !is_written && block.iter().all(|&byte| byte == 0);
                assert!(block == data || is_hole, "{what}");
            }
            fs::remove_file(server.share(&what)).unwrap();
        }
    }
}

/// What the client makes of responses that are not what they must be is tested by itself; here a
/// READ whose memory somebody changed after the server had placed data there.
#[test]
fn the_client_notices_changed_data() {
    let Some(server) = start("the_client_notices_changed_data") else {
        return;
    };
    for (name, options, _) in protections() {
        fs::write(server.share(&name), noise(50_000, 22)).unwrap();
        let mut client = open(&server, &options, &name);
        let target = MemSlice::from_bytes(&[0; 50_000]).unwrap();
        let memory = client.register(&target, TARGET);
        let read = ReadRequest::rdma(client.file, 0, 50_000, 1, memory.descriptors());
        let response = client
            .it
            .call(read.to_request(client.tree).unwrap())
            .unwrap();
        let placed = target.to_vec();
        target.write(49_999, &[placed[49_999] ^ 1]).unwrap();
        let error = client.it.open_payload(&response, &target).unwrap_err();
        assert!(matches!(error, SmbError::Signature(_)), "{name}: {error}");
        target.write(49_999, &placed[49_999..]).unwrap();
        client.it.open_payload(&response, &target).unwrap();
        assert!(target.to_vec() == noise(50_000, 22), "{name}");
        // The nonce was used now; that it comes again is noticed, too.
        target.write(0, &placed).unwrap();
        let again = client.it.open_payload(&response, &target);
        let (_, transform) = client.it.read_transform(&response).unwrap();
        let has_nonce = !transform.unwrap().nonce.is_empty();
        assert_eq!(again.is_err(), has_nonce, "{name}");
        client.it.direct_mut().unwrap().deregister(&memory);
    }
    server.wait_for_baseline();
}

/// Compounds, whose WRITEs and READs have payloads of their own.
#[test]
fn compounds_with_transforms() {
    let Some(server) = start("compounds_with_transforms") else {
        return;
    };
    for (name, options, protection) in protections() {
        let mut client = open(&server, &options, "other");
        let data = noise(100_000, 23);
        let draft = client.draft(protection, &data, channel::RDMA_V1);
        let target = MemSlice::from_bytes(&[0; 100_000]).unwrap();
        let memory = client.register(&target, TARGET);
        let write = WriteRequest {
            file_id: FileId::FULL,
            ..client.request(&draft, 0, draft.channel_info())
        };
        let read = ReadRequest::rdma(FileId::FULL, 0, 100_000, 1, memory.descriptors());
        let mode = OpenMode::Overwrite;
        let related = vec![
            Request::create(client.tree, &name, mode).unwrap(),
            write.to_request(client.tree).unwrap(),
            read.to_request(client.tree).unwrap(),
            Request::close(client.tree, FileId::FULL).unwrap(),
        ];
        let ids = client.it.submit_compound(related, true).unwrap();
        let mut responses = Vec::new();
        for id in ids {
            responses.push(client.it.wait(id).unwrap().success().unwrap());
        }
        assert_eq!(
            client.it.open_payload(&responses[2], &target).unwrap(),
            100_000
        );
        assert!(target.to_vec() == data, "{name}");
        assert!(fs::read(server.share(&name)).unwrap() == data, "{name}");
        for memory in [&memory, &draft.memory] {
            client.it.direct_mut().unwrap().deregister(memory);
        }
    }
    server.wait_for_baseline();
}

#[test]
fn the_bench_measures_protection() {
    let Some(server) = start("the_bench_measures_protection") else {
        return;
    };
    let smbd = server.smbd.as_ref().expect("was started").pid().to_string();
    let output = Command::new(common::program())
        .args(["bench", "--json", "--repeat", "1", "--bytes", "1M"])
        .args(["--smb", "//127.0.0.1/share", "--user", &samba::user()])
        .args(["--tcp", &smb::tcp(&server).to_string()])
        .args(["--rdma", &common::target::client_target(server.rdma_port)])
        .args(["--protection", "--cpu-of", &smbd])
        .env("SMBDIRECT_PASSWORD", smb::PASSWORD)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let lines = result["results"].as_array().unwrap();
    assert_eq!(lines.len(), 16, "{result:#}");
    for line in lines {
        assert!(line["speed_to_tcp"].as_f64().unwrap() > 0.0, "{line}");
        assert!(line["speed_to_messages"].as_f64().unwrap() > 0.0, "{line}");
        assert!(line["rdma"]["cpu_seconds_per_gib"].is_f64(), "{line}");
    }
    // The files are gone.
    assert_eq!(fs::read_dir(server.dir.join("share")).unwrap().count(), 0);
    server.wait_for_baseline();
}
