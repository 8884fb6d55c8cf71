//! NEGOTIATE requests and their answers.

use std::time::Duration;

use super::answer::{assert_error, Answer};
use super::vectors::{CIFS_6_12_NEGOTIATE, CIFS_7_3_NEGOTIATE, KSMBD_6_12_NEGOTIATE_RESPONSE};
use super::*;

fn answer(pdu: &[u8], config: &ServerConfig) -> Result<Answer, RouteError> {
    let request = parse_negotiate(pdu)?;
    match answer_negotiate(&request, config, &INPUTS) {
        Ok(response) => Ok(Answer::read(pdu, &response)),
        Err(refusal) => {
            assert_error(pdu, &refusal.pdu, refusal.reason.status().unwrap().0);
            assert_eq!(refusal.reason.response(pdu), Some(refusal.pdu));
            Err(refusal.reason)
        }
    }
}

fn reason(request: &Negotiate) -> RouteError {
    answer(&request.pdu(), &config()).unwrap_err()
}

fn context_fault(contexts: Vec<(u16, Vec<u8>)>) -> RouteError {
    let reason = reason(&Negotiate::with_contexts(contexts));
    assert_eq!(reason.status(), Some(NtStatus::INVALID_PARAMETER));
    reason
}

#[test]
fn test_parse_cifs() {
    let request = parse_negotiate(&CIFS_6_12_NEGOTIATE).unwrap();
    assert_eq!(
        request.header,
        RequestHeader {
            credit_charge: 0,
            command: 0,
            credit_request: 10,
            flags: 0,
            next_command: 0,
            message_id: 0,
            process_id: 0x45,
            tree_id: 0,
            session_id: 0,
        }
    );
    assert_eq!(
        request.client_guid,
        [
            0xf8, 0x99, 0x34, 0xf0, 0x81, 0x5d, 0x4e, 0x17, 0xbf, 0x9d, 0xc1, 0x58, 0x47, 0x59,
            0x29, 0x6b
        ]
    );
    assert_eq!(request.security_mode, 1);
    assert_eq!(request.capabilities, 0x77);
    assert!(request.dialects.contains(Dialect::Smb311));
    assert!(!request.dialects.contains(Dialect::Smb302));
    let contexts = request.contexts.unwrap();
    assert!(contexts.offers_sha512());
    assert!(contexts.has_encryption());
    assert!(contexts.offers_cipher(Cipher::Aes128Gcm));
    assert!(contexts.offers_cipher(Cipher::Aes256Gcm));
    assert!(contexts.offers_cipher(Cipher::Aes128Ccm));
    assert!(!contexts.offers_cipher(Cipher::Aes256Ccm));
    assert!(SigningAlgorithm::ALL
        .iter()
        .all(|a| !contexts.offers_signing(*a)));

    let newer = parse_negotiate(&CIFS_7_3_NEGOTIATE).unwrap();
    assert_eq!(newer.capabilities, 0x7f);
    assert_eq!(newer.client_guid[..4], [0xea, 0x6b, 0x31, 0x06]);
    assert_eq!(newer.contexts, Ok(contexts));
}

#[test]
fn test_answer_matches_ksmbd() {
    // The same configuration as the kernel's server has, the same inputs: the same bytes, up to
    // the POSIX context that ksmbd adds behind the others.
    let theirs = &KSMBD_6_12_NEGOTIATE_RESPONSE;
    let config = ServerConfig {
        guid: [0; 16],
        security_blob: theirs[128..128 + 74].to_vec(),
        security_mode: flags::NEGOTIATE_SIGNING_ENABLED,
        capabilities: flags::CAP_LARGE_MTU,
        max_read_size: 0x10_0000,
        max_write_size: 0x10_0000,
        ..config()
    };
    let salt = theirs[208 + 8 + 6..208 + 8 + 38].try_into().unwrap();
    let request = parse_negotiate(&CIFS_6_12_NEGOTIATE).unwrap();
    let ours = answer_negotiate(&request, &config, &Inputs { salt, ..INPUTS }).unwrap();
    let end = 208 + 48 + 12;
    assert_eq!(ours.len(), end);
    // Two contexts, not three; the kernel says multi-channel to clients that did not.
    let expected = patched(&patched(&theirs[..end], 70, &[2]), 88, &[4]);
    assert_eq!(ours, expected);
}

#[test]
fn test_answer_windows_311() {
    let answer = answer(&Negotiate::windows().pdu(), &config()).unwrap();
    let mut preauth = words(&[1, 32, 1]);
    preauth.extend(INPUTS.salt);
    assert_eq!(
        answer,
        Answer {
            security_mode: flags::NEGOTIATE_SIGNING_ENABLED,
            dialect: 0x0311,
            guid: *b"server-guid-0001",
            // Encryption is no capability of 3.1.1, and this client knows no notifications.
            capabilities: 0x3f,
            sizes: [0x10_0000, 0x80_0000, 0x40_0000],
            system_time: INPUTS.system_time,
            blob: SPNEGO.to_vec(),
            contexts: vec![(1, preauth), (2, words(&[1, 2])), (8, words(&[1, 2]))],
        }
    );
}

#[test]
fn test_dialect_selection() {
    let (d300, d302, d311) = (Dialect::Smb300, Dialect::Smb302, Dialect::Smb311);
    for (offered, min, max, selected) in [
        (
            &[0x0202, 0x0210, 0x0300, 0x0302, 0x0311][..],
            d300,
            d311,
            Some(0x0311),
        ),
        (&[0x0311, 0x0302, 0x0300], d300, d302, Some(0x0302)),
        (&[0x0302, 0x0311, 0x0300], d300, d300, Some(0x0300)),
        (&[0x0300, 0x0311], d302, d302, None),
        (&[0x0300], d300, d311, Some(0x0300)),
        (&[0x0302, 0x0302], d300, d311, Some(0x0302)),
        (&[0x0300, 0x0302], d311, d311, None),
        (&[0x0311], d300, d302, None),
        // SMB Direct carries 3.x only.
        (&[0x0202, 0x0210], d300, d311, None),
        (&[0x02ff], d300, d311, None),
        (&[0x0310, 0x0312, 0x1103], d300, d311, None),
    ] {
        let pdu = Negotiate::with_dialects(offered).pdu();
        let config = ServerConfig {
            min_dialect: min,
            max_dialect: max,
            ..config()
        };
        let dialect = answer(&pdu, &config).map(|answer| answer.dialect);
        assert_eq!(
            dialect,
            selected.ok_or(RouteError::NoCommonDialect),
            "{offered:x?}"
        );
    }
    assert_eq!(RouteError::NoCommonDialect.status().unwrap().0, 0xc000_00bb);
}

#[test]
fn test_many_dialects() {
    let mut dialects = vec![0x0555; 30_000];
    dialects.push(0x0302);
    let request = Negotiate {
        contexts: Vec::new(),
        ..Negotiate::with_dialects(&dialects)
    };
    assert_eq!(answer(&request.pdu(), &config()).unwrap().dialect, 0x0302);
    let request = Negotiate {
        dialects: vec![0x0302; 40_000],
        ..request
    };
    let pdu = request.pdu();
    assert_eq!(parse_negotiate(&pdu), Err(RouteError::TooLong(pdu.len())));
}

#[test]
fn test_capabilities() {
    let mut config = config();
    let capabilities = |dialect, client, config: &ServerConfig| {
        let request = Negotiate {
            capabilities: client,
            ..Negotiate::with_dialects(&[dialect])
        };
        answer(&request.pdu(), config).unwrap().capabilities
    };
    // DFS, leasing and large MTU are the server's; the others take both sides.
    for (dialect, both) in [(0x0300, 0x7f), (0x0302, 0x7f), (0x0311, 0xbf)] {
        assert_eq!(capabilities(dialect, 0, &config), 0x07, "{dialect:x}");
        assert_eq!(
            capabilities(dialect, u32::MAX, &config),
            both,
            "{dialect:x}"
        );
    }
    // 3.0 encrypts with AES-128-CCM or not at all.
    config.ciphers = vec![Cipher::Aes256Gcm];
    assert_eq!(capabilities(0x0300, u32::MAX, &config), 0x3f);
    config.ciphers = vec![Cipher::Aes128Ccm];
    assert_eq!(capabilities(0x0300, u32::MAX, &config), 0x7f);
    config.capabilities = flags::CAP_MULTI_CHANNEL;
    assert_eq!(capabilities(0x0300, u32::MAX, &config), 0x08);
    config.capabilities = 0;
    assert_eq!(capabilities(0x0311, u32::MAX, &config), 0);
}

#[test]
fn test_cipher_and_signing_selection() {
    let with = |ciphers: Option<&[u16]>, signing: Option<&[u16]>, config: &ServerConfig| {
        let list = |ids: &[u16]| [words(&[u16::try_from(ids.len()).unwrap()]), words(ids)].concat();
        let mut contexts = vec![preauth(&[1], &[])];
        contexts.extend(signing.map(|ids| (8, list(ids))));
        contexts.extend(ciphers.map(|ids| (2, list(ids))));
        let pdu = Negotiate::with_contexts(contexts).pdu();
        let mut contexts = answer(&pdu, config).unwrap().contexts;
        assert_eq!(contexts.remove(0).0, 1);
        contexts
    };
    let mut config = config();
    config.ciphers = vec![Cipher::Aes256Gcm, Cipher::Aes128Ccm];
    config.signing_algorithms = vec![SigningAlgorithm::AesGmac, SigningAlgorithm::HmacSha256];
    let cipher = |id| (2, words(&[1, id]));
    let signing = |id| (8, words(&[1, id]));
    // The server's order counts.
    assert_eq!(with(Some(&[1, 2, 3, 4]), None, &config), [cipher(4)]);
    assert_eq!(with(Some(&[2, 1, 0xffff]), None, &config), [cipher(1)]);
    assert_eq!(with(None, Some(&[0, 1, 2]), &config), [signing(2)]);
    assert_eq!(
        with(Some(&[1]), Some(&[1, 0]), &config),
        [cipher(1), signing(0)]
    );
    // No cipher in common: cipher 0. No signing algorithm in common: no context, so AES-CMAC.
    assert_eq!(
        with(Some(&[2, 0x1001]), Some(&[1, 17]), &config),
        [cipher(0)]
    );
    // Not offered: not answered.
    assert_eq!(with(None, None, &config), []);
    // Not configured: not answered.
    config.ciphers.clear();
    config.signing_algorithms.clear();
    assert_eq!(with(Some(&[1, 2]), Some(&[0, 1, 2]), &config), []);
}

#[test]
fn test_preauth_integrity_rules() {
    let others = [(2, words(&[1, 2]))];
    let no_preauth = RouteError::Context(ContextFault::NoPreauthIntegrity);
    assert_eq!(context_fault(Vec::new()), no_preauth);
    assert_eq!(context_fault(others.to_vec()), no_preauth);
    let twice = vec![preauth(&[1], &[]), preauth(&[1], &[])];
    assert_eq!(
        context_fault(twice),
        RouteError::Context(ContextFault::Repeated(1))
    );
    let empty = vec![preauth(&[], &[1, 2])];
    assert_eq!(
        context_fault(empty),
        RouteError::Context(ContextFault::Empty(1))
    );
    let unknown_hash = Negotiate::with_contexts(vec![preauth(&[2, 0x0101], &[9; 32])]);
    assert_eq!(reason(&unknown_hash), RouteError::NoCommonHash);
    assert_eq!(RouteError::NoCommonHash.status().unwrap().0, 0xc05d_0000);
    // One of several, an empty salt, a long one: fine.
    for context in [preauth(&[7, 1], &[]), preauth(&[1], &[1; 500])] {
        assert!(answer(&Negotiate::with_contexts(vec![context]).pdu(), &config()).is_ok());
    }
}

#[test]
fn test_context_lists() {
    let good = preauth(&[1], &[5; 32]);
    for kind in [2, 8] {
        let fault = |data| context_fault(vec![good.clone(), (kind, data)]);
        assert_eq!(
            fault(vec![]),
            RouteError::Context(ContextFault::Short(kind))
        );
        assert_eq!(
            fault(vec![1]),
            RouteError::Context(ContextFault::Short(kind))
        );
        assert_eq!(
            fault(words(&[2, 1])),
            RouteError::Context(ContextFault::Short(kind))
        );
        assert_eq!(
            fault(words(&[0xffff, 1])),
            RouteError::Context(ContextFault::Short(kind))
        );
        assert_eq!(
            fault(words(&[0, 1])),
            RouteError::Context(ContextFault::Empty(kind))
        );
        let one = (kind, words(&[1, 1]));
        assert_eq!(
            context_fault(vec![one.clone(), good.clone(), one]),
            RouteError::Context(ContextFault::Repeated(kind))
        );
    }
    for cut in 0..good.1.len() {
        let fault = context_fault(vec![(1, good.1[..cut].to_vec())]);
        assert_eq!(fault, RouteError::Context(ContextFault::Short(1)), "{cut}");
    }
    // Contexts that are not ours may be repeated and hold anything.
    let foreign = vec![
        (3, vec![]),
        (0x0100, vec![1; 3]),
        (3, vec![]),
        (0xffff, vec![2]),
        good,
    ];
    assert!(answer(&Negotiate::with_contexts(foreign).pdu(), &config()).is_ok());
}

#[test]
fn test_context_offsets() {
    let pdu = Negotiate::windows().pdu();
    let len = u32::try_from(pdu.len()).unwrap();
    assert_eq!(pdu[92], 112);
    for offset in [
        0,
        8,
        104,
        108,
        113,
        116,
        len,
        len + 8,
        u32::MAX - 7,
        u32::MAX,
    ] {
        let reason = answer(&patched(&pdu, 92, &offset.to_le_bytes()), &config()).unwrap_err();
        assert_eq!(reason, RouteError::Context(ContextFault::Offset(offset)));
        assert_eq!(reason.status(), Some(NtStatus::INVALID_PARAMETER));
    }
    // One context more than there is.
    assert_eq!(
        answer(&patched(&pdu, 96, &[8]), &config()),
        Err(RouteError::Context(ContextFault::Truncated(7)))
    );
    assert_eq!(
        answer(&patched(&pdu, 96, &[0xff, 0xff]), &config()),
        Err(RouteError::Context(ContextFault::Truncated(7)))
    );
}

#[test]
fn test_context_faults_count_for_311_only() {
    // The eight bytes are ClientStartTime for a client without 3.1.1 ...
    let pdu = Negotiate::with_dialects(&[0x0300, 0x0302]).pdu();
    let pdu = patched(&pdu, 92, &[0xff; 8]);
    assert_eq!(answer(&pdu, &config()).unwrap().dialect, 0x0302);
    // ... and a fault in contexts does not hinder 3.0.2, nor routing by ClientGuid.
    let request = Negotiate::with_contexts(Vec::new());
    assert_eq!(request.parse().client_guid, *b"client-guid-0001");
    let config = ServerConfig {
        max_dialect: Dialect::Smb302,
        ..config()
    };
    assert_eq!(answer(&request.pdu(), &config).unwrap().dialect, 0x0302);
}

#[test]
fn test_truncations() {
    let pdu = &CIFS_6_12_NEGOTIATE;
    for len in 0..pdu.len() {
        let cut = &pdu[..len];
        let reason = match answer(cut, &config()) {
            Err(reason) => reason,
            // Behind the data of the last context there is only padding.
            Ok(_) => {
                assert!(pdu[len..].iter().all(|byte| *byte == 0) && pdu.len() - len < 8);
                continue;
            }
        };
        match len {
            0..64 => assert_eq!(reason, RouteError::TooShort(len)),
            64..102 => assert_eq!(reason, RouteError::BodyTruncated(len)),
            102..=104 => assert_eq!(reason, RouteError::Context(ContextFault::Offset(104))),
            _ => assert!(matches!(
                reason,
                RouteError::Context(ContextFault::Truncated(_))
            )),
        }
        assert_eq!(reason.response(cut).is_some(), len >= 64);
    }
    assert!(answer(pdu, &config()).is_ok());
}

#[test]
fn test_illegal_headers() {
    let pdu = Negotiate::windows().pdu();
    let of = |offset, bytes: &[u8]| {
        let pdu = patched(&pdu, offset, bytes);
        let reason = parse_negotiate(&pdu).unwrap_err();
        (
            reason,
            reason.response(&pdu).map(|r| u32_at(&r, 8).unwrap()),
        )
    };
    let invalid = Some(0xc000_000d);
    // Dropped without a word.
    assert_eq!(of(0, &[0xff]), (RouteError::ProtocolId(*b"\xffSMB"), None));
    assert_eq!(of(0, &[0xfd]), (RouteError::ProtocolId(*b"\xfdSMB"), None));
    assert_eq!(of(0, &[0xfc]), (RouteError::ProtocolId(*b"\xfcSMB"), None));
    assert_eq!(of(0, &[0; 4]), (RouteError::ProtocolId([0; 4]), None));
    assert_eq!(of(4, &[65]), (RouteError::HeaderSize(65), None));
    assert_eq!(of(12, &[1]), (RouteError::Command { due: 0, got: 1 }, None));
    assert_eq!(of(16, &[1]), (RouteError::NotRequest, None));
    assert_eq!(of(20, &[0, 1]), (RouteError::Compounded(256), None));
    assert_eq!(
        of(24, &[1]),
        (RouteError::MessageId { due: 0, got: 1 }, None)
    );
    assert_eq!(
        of(24, &[0xff; 8]),
        (
            RouteError::MessageId {
                due: 0,
                got: u64::MAX
            },
            None
        )
    );
    // Told.
    assert_eq!(of(16, &[2]), (RouteError::Flags(2), invalid));
    assert_eq!(of(16, &[4]), (RouteError::Flags(4), invalid));
    assert_eq!(of(16, &[8]), (RouteError::SignedNegotiate, invalid));
    assert_eq!(
        of(64, &[37]),
        (RouteError::BodySize { due: 36, got: 37 }, invalid)
    );
    assert_eq!(of(66, &[0]), (RouteError::NoDialects, invalid));
    assert_eq!(
        of(66, &[0xff; 2]),
        (RouteError::BodyTruncated(pdu.len()), invalid)
    );
    // Of no interest: CreditCharge, ChannelSequence, CreditRequest, priority, TreeId, SessionId.
    for (offset, bytes) in [
        (6, &[9][..]),
        (8, &[1, 2, 3, 4]),
        (14, &[0, 0]),
        (16, &[0x70]),
        (36, &[7; 12]),
    ] {
        assert!(
            answer(&patched(&pdu, offset, bytes), &config()).is_ok(),
            "{offset}"
        );
    }
    // An SMB1 multi-protocol NEGOTIATE is shorter than an SMB2 header and still named.
    let smb1 = b"\xffSMBr\0\0\0\0\x18S\xc8\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let reason = parse_negotiate(smb1).unwrap_err();
    assert_eq!(reason, RouteError::ProtocolId(*b"\xffSMB"));
    assert!(reason.to_string().contains("smb1"));
}

#[test]
fn test_every_byte_altered() {
    // Nothing panics; what is answered is a well-formed answer, what is refused is too.
    for pdu in [CIFS_6_12_NEGOTIATE.to_vec(), Negotiate::windows().pdu()] {
        let (mut answered, mut refused, mut dropped) = (0, 0, 0);
        for at in 0..pdu.len() {
            for value in [0, 1, 2, 4, 7, 8, 0x10, 0x40, 0x7f, 0x80, 0xfe, 0xff] {
                match answer(&patched(&pdu, at, &[value]), &config()) {
                    Ok(_) => answered += 1,
                    Err(reason) if reason.status().is_some() => refused += 1,
                    Err(_) => dropped += 1,
                }
            }
        }
        assert!(answered > 500 && refused > 100 && dropped > 100);
    }
}

#[test]
fn test_security_blob_sizes() {
    for len in [0, 1, 7, 8, 9, 74, MAX_SECURITY_BLOB] {
        let config = ServerConfig {
            security_blob: vec![0xab; len],
            ..config()
        };
        for dialects in [&[0x0311][..], &[0x0302]] {
            let answer = answer(&Negotiate::with_dialects(dialects).pdu(), &config).unwrap();
            assert_eq!(answer.blob, config.security_blob);
        }
    }
}

#[test]
fn test_signing_required() {
    let config = ServerConfig {
        security_mode: flags::NEGOTIATE_SIGNING_REQUIRED,
        ..config()
    };
    assert_eq!(
        answer(&Negotiate::windows().pdu(), &config)
            .unwrap()
            .security_mode,
        3
    );
}

#[test]
fn test_config_check() {
    assert_eq!(config().check(), Ok(()));
    let good = config();
    for (bad, error) in [
        (
            ServerConfig {
                security_blob: vec![0; MAX_SECURITY_BLOB + 1],
                ..good.clone()
            },
            ConfigError::SecurityBlob(MAX_SECURITY_BLOB + 1),
        ),
        (
            ServerConfig {
                min_dialect: Dialect::Smb311,
                max_dialect: Dialect::Smb300,
                ..good.clone()
            },
            ConfigError::DialectRange(Dialect::Smb311, Dialect::Smb300),
        ),
        (
            ServerConfig {
                security_mode: 4,
                ..good.clone()
            },
            ConfigError::SecurityMode(4),
        ),
        (
            ServerConfig {
                capabilities: 0x100,
                ..good.clone()
            },
            ConfigError::Capabilities(0x100),
        ),
        (
            ServerConfig {
                max_transact_size: 65_535,
                ..good.clone()
            },
            ConfigError::Size("max_transact_size", 65_535),
        ),
        (
            ServerConfig {
                max_read_size: 0,
                ..good.clone()
            },
            ConfigError::Size("max_read_size", 0),
        ),
        (
            ServerConfig {
                max_write_size: 1,
                ..good.clone()
            },
            ConfigError::Size("max_write_size", 1),
        ),
    ] {
        assert_eq!(bad.check(), Err(error));
        assert_eq!(
            answer(&Negotiate::windows().pdu(), &bad),
            Err(RouteError::Config)
        );
    }
    let text = ConfigError::Size("max_read_size", 17).to_string();
    assert!(
        text.contains("max_read_size 17") && text.contains("65536"),
        "{text}"
    );
}

#[test]
fn test_filetime() {
    assert_eq!(filetime(Duration::ZERO), 116_444_736_000_000_000);
    // 2026-11-23 06:59:36.1011347 UTC
    assert_eq!(
        filetime(Duration::new(1_795_417_176, 101_134_700)),
        INPUTS.system_time
    );
    assert_eq!(filetime(Duration::MAX), u64::MAX);
}

#[test]
fn test_reasons_name_their_values() {
    for (reason, part) in [
        (RouteError::MessageId { due: 0, got: 77 }, "77"),
        (RouteError::UnknownSession(0x4711), "0x0000000000004711"),
        (RouteError::Context(ContextFault::Repeated(8)), "0x0008"),
        (RouteError::ProtocolId(*b"HTTP"), "48545450"),
    ] {
        assert!(reason.to_string().contains(part), "{reason}");
    }
    assert_eq!(
        NtStatus::USER_SESSION_DELETED.to_string(),
        "STATUS_USER_SESSION_DELETED"
    );
    assert_eq!(NtStatus(0xc000_0022).to_string(), "0xc0000022");
}
