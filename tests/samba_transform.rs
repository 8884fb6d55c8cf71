//! RDMA transforms against the patched smbd: the cases of Microsoft's test suite for MS-SMBD
//! (`Smb2OverRdmaChannelTransformEncryption` and `...TransformSigning`), each as one test.

mod common;
#[path = "common/samba.rs"]
mod samba;
#[path = "common/smb.rs"]
mod smb;
#[path = "common/transform.rs"]
mod transform;

use std::fs;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use samba::Server;
use smb::{noise, start, SOURCE};
use smbdirect::mem::MemSlice;
use smbdirect::smb::{
    channel, status, transform_type, Cipher, Options, Protection, RdmaTransform, Signing,
};
use transform::{encrypted, open, signed, Draft, Untouched, BOTH, ENCRYPTION, LARGE, MIB, SIGNING};

/// The server of the tests that run at the moment: each of them is short.
fn server(test: &str) -> Option<Arc<Server>> {
    static SERVER: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    let mut shared = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(server) = shared.upgrade() {
        return Some(server);
    }
    let server = Arc::new(start(test)?);
    *shared = Arc::downgrade(&server);
    Some(server)
}

/// Reads a large file in `count` READs, each of which has to come with a transform of `kind` and
/// `data_length` bytes of structures.
fn read_file(test: &str, options: &Options, count: usize, kind: u16, data_length: usize) {
    let Some(server) = server(test) else {
        return;
    };
    let content = noise(LARGE, 58);
    fs::write(server.share(test), &content).unwrap();
    let mut client = open(&server, options, test);
    assert_eq!(client.it.transforms(), options.transforms, "{test}");
    assert_eq!(client.it.negotiated().max_read_size as usize, LARGE);
    let size = LARGE / count;
    let mut nonces = Vec::new();
    for i in 0..count {
        let (data, response) = client.read_verified((i * size) as u64, size);
        assert!(data == content[i * size..(i + 1) * size], "{test} {i}");
        let result = response.read_result().unwrap();
        assert_eq!(result.data_remaining as usize, size, "{test}");
        assert_eq!((result.data_offset, result.flags), (80, 1), "{test}");
        assert_eq!(result.data.len(), data_length, "{test}");
        let found = RdmaTransform::parse(result.data).unwrap();
        assert_eq!((found.count, found.channel), (1, channel::NONE), "{test}");
        assert_eq!((found.descriptor_offset, found.descriptor_length), (0, 0));
        let transform = &found.transforms[0];
        assert_eq!(transform.kind, kind, "{test}");
        assert_eq!(response.is_encrypted, kind == transform_type::ENCRYPTION);
        assert_eq!(response.header.flags.signed(), !response.is_encrypted);
        nonces.push(transform.nonce.clone());
    }
    if !nonces[0].is_empty() {
        nonces.sort_unstable();
        nonces.dedup();
        assert_eq!(nonces.len(), count, "{test}");
    }
    if kind == transform_type::SIGNING {
        // The key is that of messages, whose nonces have nothing but two flags in these bits.
        let is_free = |it: &Vec<u8>| it.is_empty() || it[8] > 3 || it[9..] != [0; 3];
        assert!(nonces.iter().all(is_free), "{test}: {nonces:02x?}");
    }
    fs::remove_file(server.share(test)).unwrap();
}

/// What a case does to a WRITE before it is sent.
type Change<'a> = &'a dyn Fn(&mut Draft) -> Vec<u8>;

fn nothing(draft: &mut Draft) -> Vec<u8> {
    draft.channel_info()
}

/// Writes a large file in one WRITE that has to succeed, and reads it back.
fn write_file(test: &str, options: &Options, protection: Protection) {
    let Some(server) = server(test) else {
        return;
    };
    let content = noise(LARGE, 63);
    let mut client = open(&server, options, test);
    assert_eq!(client.it.transforms(), options.transforms, "{test}");
    let draft = client.draft(protection, &content, channel::RDMA_V1);
    let response = client.write_draft(&draft, 0).success().unwrap();
    assert_eq!(response.written().unwrap() as usize, LARGE, "{test}");
    drop(client);
    validate(&server, test, &content);
}

/// Microsoft's tests read back on a new session that is encrypted and has negotiated no transform.
/// There smbd does not give data away by RDMA, as nothing would protect it, so this one has.
fn validate(server: &Server, name: &str, content: &[u8]) {
    let mut client = open(server, &encrypted(Cipher::Aes128Ccm, ENCRYPTION), name);
    for (i, part) in content.chunks(LARGE).enumerate() {
        let (data, response) = client.read_verified((i * LARGE) as u64, part.len());
        assert!(data == part, "{name}");
        let result = response.read_result().unwrap();
        assert_eq!((result.data_offset, result.flags), (80, 1), "{name}");
    }
    assert!(fs::read(server.share(name)).unwrap() == content, "{name}");
    fs::remove_file(server.share(name)).unwrap();
}

/// A WRITE that has to be refused and to change nothing. `protection` is how it is sealed,
/// `session` what the session's next, good WRITE has.
fn refused(
    test: &str,
    options: &Options,
    protection: Protection,
    session: Option<Protection>,
    change: Change<'_>,
    expected: u32,
) {
    let Some(server) = server(test) else {
        return;
    };
    let mut file = Untouched::new(&server, test, noise(10_000, 68));
    let mut client = open(&server, options, test);
    assert_eq!(client.it.transforms(), options.transforms, "{test}");
    let data = noise(MIB, 68);
    for inner in [channel::RDMA_V1, smb::invalidate()] {
        let mut draft = client.draft(protection, &data, inner);
        let info = change(&mut draft);
        let write = client.request(&draft, 0, info);
        let response = client.answer(&write);
        assert_eq!(response.status(), expected, "{test} {inner}");
        client.it.direct_mut().unwrap().deregister(&draft.memory);
        file.check(&mut client, session, test);
    }
    drop(client);
    fs::remove_file(server.share(test)).unwrap();
}

/// The same for a session that is encrypted and has that transform.
fn refused_encrypted(test: &str, cipher: Cipher, change: Change<'_>, expected: u32) {
    let options = encrypted(cipher, ENCRYPTION);
    let protection = Protection::Encrypted;
    refused(
        test,
        &options,
        protection,
        Some(protection),
        change,
        expected,
    );
}

const ENCRYPTED: u16 = transform_type::ENCRYPTION;
const SIGNED: u16 = transform_type::SIGNING;

#[test]
fn case_58_encryption_read_large_file_aes128ccm() {
    let options = encrypted(Cipher::Aes128Ccm, ENCRYPTION);
    read_file("case_58", &options, 1, ENCRYPTED, 56);
}

#[test]
fn case_59_encryption_read_large_file_aes128gcm() {
    let options = encrypted(Cipher::Aes128Gcm, ENCRYPTION);
    read_file("case_59", &options, 1, ENCRYPTED, 56);
}

#[test]
fn case_60_encryption_read_large_file_aes256ccm() {
    let options = encrypted(Cipher::Aes256Ccm, ENCRYPTION);
    read_file("case_60", &options, 1, ENCRYPTED, 56);
}

#[test]
fn case_61_encryption_read_large_file_aes256gcm() {
    let options = encrypted(Cipher::Aes256Gcm, ENCRYPTION);
    read_file("case_61", &options, 1, ENCRYPTED, 56);
}

#[test]
fn case_62_encryption_read_multiple_operation() {
    let options = encrypted(Cipher::Aes128Ccm, ENCRYPTION);
    read_file("case_62", &options, 64, ENCRYPTED, 56);
}

#[test]
fn case_63_encryption_write_large_file_aes128ccm() {
    let options = encrypted(Cipher::Aes128Ccm, ENCRYPTION);
    write_file("case_63", &options, Protection::Encrypted);
}

#[test]
fn case_64_encryption_write_large_file_aes128gcm() {
    let options = encrypted(Cipher::Aes128Gcm, ENCRYPTION);
    write_file("case_64", &options, Protection::Encrypted);
}

#[test]
fn case_65_encryption_write_large_file_aes256ccm() {
    let options = encrypted(Cipher::Aes256Ccm, ENCRYPTION);
    write_file("case_65", &options, Protection::Encrypted);
}

#[test]
fn case_66_encryption_write_large_file_aes256gcm() {
    let options = encrypted(Cipher::Aes256Gcm, ENCRYPTION);
    write_file("case_66", &options, Protection::Encrypted);
}

/// Microsoft's code encrypts once: every WRITE has the nonce, the tag and the data of the first.
/// And its channel information grows: each WRITE has that of all before it, of which only the
/// first structures count.
#[test]
fn case_67_encryption_write_multiple_operation() {
    let Some(server) = server("case_67") else {
        return;
    };
    const COUNT: usize = 64;
    let size = LARGE / COUNT;
    let content = noise(size, 67);
    let mut client = open(
        &server,
        &encrypted(Cipher::Aes128Ccm, ENCRYPTION),
        "case_67",
    );
    let sealed = MemSlice::from_bytes(&content).unwrap();
    let transform = client.it.seal_payload(Protection::Encrypted, &sealed, size);
    let transform = transform.unwrap().unwrap();
    let mut info = Vec::new();
    let mut registered = Vec::new();
    for i in 0..COUNT {
        let memory = client.register(&sealed, SOURCE);
        let descriptors = memory.descriptors();
        let it = RdmaTransform::of_write(channel::RDMA_V1, transform.clone(), descriptors);
        info.extend(it.channel_info(descriptors));
        let draft = Draft {
            memory,
            length: size as u32,
            transform: it,
        };
        let write = client.request(&draft, (i * size) as u64, info.clone());
        let response = client.answer(&write).success().unwrap();
        assert_eq!(response.written().unwrap() as usize, size, "{i}");
        registered.push(draft.memory);
    }
    for memory in registered {
        client.it.direct_mut().unwrap().deregister(&memory);
    }
    drop(client);
    validate(&server, "case_67", &content.repeat(COUNT));
}

#[test]
fn case_68_encryption_write_no_transform_ids() {
    refused(
        "case_68",
        &encrypted(Cipher::Aes128Ccm, &[]),
        Protection::Encrypted,
        None,
        &nothing,
        status::INVALID_PARAMETER,
    );
}

#[test]
fn case_69_encryption_write_zero_transform_count() {
    let change = |draft: &mut Draft| {
        draft.transform.count = 0;
        draft.channel_info()
    };
    refused_encrypted(
        "case_69",
        Cipher::Aes128Ccm,
        &change,
        status::INVALID_PARAMETER,
    );
}

#[test]
fn case_70_encryption_write_multiple_encryption_structure() {
    let change = |draft: &mut Draft| {
        let first = draft.crypto().clone();
        draft.transform.transforms.push(first);
        draft.transform.count = 2;
        draft.place();
        draft.channel_info()
    };
    refused_encrypted(
        "case_70",
        Cipher::Aes128Ccm,
        &change,
        status::INVALID_PARAMETER,
    );
}

/// As the name says, and as Microsoft's code has it: three transforms counted, two of them there,
/// both for encryption.
#[test]
fn case_71_encryption_write_encryption_and_signing_structure() {
    let options = Options {
        signing: Signing::AlwaysGmac,
        ..encrypted(Cipher::Aes128Ccm, BOTH)
    };
    let as_named = |draft: &mut Draft| {
        let mut second = draft.crypto().clone();
        second.kind = transform_type::SIGNING;
        draft.transform.transforms.push(second);
        draft.transform.count = 2;
        draft.place();
        draft.channel_info()
    };
    let as_coded = |draft: &mut Draft| {
        let first = draft.crypto().clone();
        draft.transform.transforms.push(first);
        draft.transform.count = 3;
        draft.transform.descriptor_offset = 16 + 3 * 40;
        draft.channel_info()
    };
    let changes: [Change<'_>; 2] = [&as_named, &as_coded];
    for change in changes {
        refused(
            "case_71",
            &options,
            Protection::Encrypted,
            Some(Protection::Encrypted),
            change,
            status::INVALID_PARAMETER,
        );
    }
}

#[test]
fn case_72_encryption_write_buffer_not_aligned() {
    let change = |draft: &mut Draft| {
        // 16 bytes of SMB2_RDMA_TRANSFORM, 36 of SMB2_RDMA_CRYPTO_TRANSFORM, no padding.
        let mut info = draft.channel_info();
        info.drain(52..56);
        info[..2].copy_from_slice(&52u16.to_le_bytes());
        info
    };
    refused_encrypted(
        "case_72",
        Cipher::Aes128Gcm,
        &change,
        status::INVALID_PARAMETER,
    );
}

#[test]
fn case_73_encryption_write_increase_signature_length() {
    let change = |draft: &mut Draft| {
        let first = draft.crypto().signature[0];
        draft.crypto().signature.insert(0, first);
        draft.place();
        draft.channel_info()
    };
    refused_encrypted(
        "case_73",
        Cipher::Aes128Gcm,
        &change,
        status::AUTH_TAG_MISMATCH,
    );
}

fn longer_nonce(draft: &mut Draft) -> Vec<u8> {
    let first = draft.crypto().nonce[0];
    draft.crypto().nonce.insert(0, first);
    draft.place();
    draft.channel_info()
}

fn shorter_nonce(draft: &mut Draft) -> Vec<u8> {
    draft.crypto().nonce.pop();
    draft.place();
    draft.channel_info()
}

fn wrong_nonce_length(test: &str, cipher: Cipher, change: Change<'_>) {
    refused_encrypted(test, cipher, change, status::AUTH_TAG_MISMATCH);
}

#[test]
fn case_74_encryption_write_increase_nonce_length_aes128ccm() {
    wrong_nonce_length("case_74", Cipher::Aes128Ccm, &longer_nonce);
}

#[test]
fn case_75_encryption_write_increase_nonce_length_aes128gcm() {
    wrong_nonce_length("case_75", Cipher::Aes128Gcm, &longer_nonce);
}

#[test]
fn case_76_encryption_write_increase_nonce_length_aes256ccm() {
    wrong_nonce_length("case_76", Cipher::Aes256Ccm, &longer_nonce);
}

#[test]
fn case_77_encryption_write_increase_nonce_length_aes256gcm() {
    wrong_nonce_length("case_77", Cipher::Aes256Gcm, &longer_nonce);
}

#[test]
fn case_78_encryption_write_decrease_nonce_length_aes128ccm() {
    wrong_nonce_length("case_78", Cipher::Aes128Ccm, &shorter_nonce);
}

#[test]
fn case_79_encryption_write_decrease_nonce_length_aes128gcm() {
    wrong_nonce_length("case_79", Cipher::Aes128Gcm, &shorter_nonce);
}

#[test]
fn case_80_encryption_write_decrease_nonce_length_aes256ccm() {
    wrong_nonce_length("case_80", Cipher::Aes256Ccm, &shorter_nonce);
}

#[test]
fn case_81_encryption_write_decrease_nonce_length_aes256gcm() {
    wrong_nonce_length("case_81", Cipher::Aes256Gcm, &shorter_nonce);
}

#[test]
fn case_82_signing_read_large_file_aes_gmac() {
    let options = signed(Signing::AlwaysGmac, SIGNING);
    read_file("case_82", &options, 1, SIGNED, 56);
}

#[test]
fn case_83_signing_read_large_file_aes_cmac() {
    let options = signed(Signing::AlwaysCmac, SIGNING);
    read_file("case_83", &options, 1, SIGNED, 40);
}

#[test]
fn case_84_signing_write_large_file_aes_gmac() {
    let options = signed(Signing::AlwaysGmac, SIGNING);
    write_file("case_84", &options, Protection::Signed);
}

#[test]
fn case_85_signing_write_large_file_aes_cmac() {
    let options = signed(Signing::AlwaysCmac, SIGNING);
    write_file("case_85", &options, Protection::Signed);
}

/// The session is encrypted, so that the request has no SMB2_FLAGS_SIGNED.
#[test]
fn case_86_signing_write_flags_signed_not_set() {
    refused(
        "case_86",
        &encrypted(Cipher::Aes128Gcm, SIGNING),
        Protection::Signed,
        None,
        &nothing,
        status::INVALID_PARAMETER,
    );
}

#[test]
fn case_87_signing_write_signing_structure_encryption_id() {
    refused(
        "case_87",
        &encrypted(Cipher::Aes128Gcm, ENCRYPTION),
        Protection::Signed,
        Some(Protection::Encrypted),
        &nothing,
        status::INVALID_PARAMETER,
    );
}

#[test]
fn case_88_signing_write_invalid_signature() {
    let change = |draft: &mut Draft| {
        let signature = &mut draft.crypto().signature;
        signature.swap(2, 3);
        if signature[2] == signature[3] {
            signature[2] ^= 1;
        }
        draft.channel_info()
    };
    refused(
        "case_88",
        &signed(Signing::AlwaysCmac, SIGNING),
        Protection::Signed,
        Some(Protection::Signed),
        &change,
        status::INVALID_SIGNATURE,
    );
}

#[test]
fn case_89_signing_write_no_transform_ids() {
    refused(
        "case_89",
        &signed(Signing::AlwaysGmac, &[]),
        Protection::Signed,
        None,
        &nothing,
        status::INVALID_PARAMETER,
    );
}

#[test]
fn case_90_signing_write_zero_transform_count() {
    let change = |draft: &mut Draft| {
        draft.transform.count = 0;
        draft.channel_info()
    };
    refused(
        "case_90",
        &signed(Signing::AlwaysCmac, SIGNING),
        Protection::Signed,
        Some(Protection::Signed),
        &change,
        status::INVALID_PARAMETER,
    );
}
