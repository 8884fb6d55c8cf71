//! SESSION_SETUP and the decision it leads to.

use super::answer::assert_error;
use super::vectors::{CIFS_6_12_NEGOTIATE, CIFS_6_12_SESSION_SETUP, CIFS_7_3_SESSION_SETUP};
use super::*;

const SESSION: u64 = 0x0000_1c00_0000_0045;

#[test]
fn test_parse_cifs() {
    for (pdu, process_id) in [
        (&CIFS_6_12_SESSION_SETUP, 0x45),
        (&CIFS_7_3_SESSION_SETUP, 0x5f),
    ] {
        let setup = parse_session_setup(pdu).unwrap();
        assert_eq!(
            setup,
            SessionSetup {
                header: RequestHeader {
                    credit_charge: 0,
                    command: 1,
                    credit_request: 130,
                    flags: 0,
                    next_command: 0,
                    message_id: 1,
                    process_id,
                    tree_id: 0,
                    session_id: 0,
                },
                binding: false,
                session_id: 0,
                signed: false,
                security_mode: 1,
                previous_session_id: 0,
            }
        );
        assert_eq!(setup.route(|_| true), Err(RouteError::NewSession));
    }
}

#[test]
fn test_binding_to_registered_session() {
    let mut pdu = binding(SESSION);
    pdu[80..88].copy_from_slice(&7u64.to_le_bytes());
    let setup = parse_session_setup(&pdu).unwrap();
    assert!(setup.binding && setup.signed);
    assert_eq!(setup.previous_session_id, 7);
    assert_eq!(setup.route(|id| id == SESSION), Ok(SESSION));
}

#[test]
fn test_refused_session_setups() {
    let bind = binding(SESSION);
    let unsigned = patched(&bind, 16, &[0]);
    let reauthentication = patched(&bind, 66, &[0]);
    let new = patched(&bind, 40, &[0; 8]);
    let unknown = RouteError::UnknownSession(SESSION);
    for (pdu, registered, error, status) in [
        (&bind, false, unknown, 0xc000_0203),
        (&unsigned, false, unknown, 0xc000_0203),
        (
            &unsigned,
            true,
            RouteError::UnsignedBinding(SESSION),
            0xc000_000d,
        ),
        (&reauthentication, true, unknown, 0xc000_0203),
        (&new, true, RouteError::NewSession, 0xc000_00d0),
    ] {
        let setup = parse_session_setup(pdu).unwrap();
        assert_eq!(setup.route(|_| registered), Err(error));
        assert_error(pdu, &error.response(pdu).unwrap(), status);
    }
}

#[test]
fn test_security_buffer() {
    let pdu = binding(SESSION);
    let length = u16::try_from(pdu.len() - 88).unwrap();
    for (offset, length, legal) in [
        (88, length, true),
        (89, length - 1, true),
        (0, 0, true),
        (88, length + 1, false),
        (89, length, false),
        (87, 1, false),
        (0, 1, false),
        (u16::MAX, u16::MAX, false),
    ] {
        let pdu = patched(&pdu, 76, &words(&[offset, length]));
        let parsed = parse_session_setup(&pdu).map(|_| ());
        let error = RouteError::SecurityBuffer { offset, length };
        assert_eq!(parsed, if legal { Ok(()) } else { Err(error) });
        if !legal {
            assert_error(&pdu, &error.response(&pdu).unwrap(), 0xc000_000d);
        }
    }
}

#[test]
fn test_truncations() {
    let pdu = &CIFS_6_12_SESSION_SETUP;
    for len in 0..pdu.len() {
        let error = parse_session_setup(&pdu[..len]).unwrap_err();
        let due = match len {
            0..64 => RouteError::TooShort(len),
            64..88 => RouteError::BodyTruncated(len),
            _ => RouteError::SecurityBuffer {
                offset: 88,
                length: 44,
            },
        };
        assert_eq!(error, due);
        assert_eq!(error.response(&pdu[..len]).is_some(), len >= 64);
    }
    assert!(parse_session_setup(pdu).is_ok());
}

#[test]
fn test_illegal_headers() {
    let pdu = binding(SESSION);
    let of = |offset, bytes: &[u8]| parse_session_setup(&patched(&pdu, offset, bytes)).unwrap_err();
    assert_eq!(of(6, &[2]), RouteError::CreditCharge(2));
    assert_eq!(of(12, &[0]), RouteError::Command { due: 1, got: 0 });
    assert_eq!(of(12, &[13]), RouteError::Command { due: 1, got: 13 });
    assert_eq!(of(20, &[120]), RouteError::Compounded(120));
    assert_eq!(of(24, &[0]), RouteError::MessageId { due: 1, got: 0 });
    assert_eq!(of(24, &[2]), RouteError::MessageId { due: 1, got: 2 });
    assert_eq!(of(64, &[24]), RouteError::BodySize { due: 25, got: 24 });
    // Only the last of these is answered; the others just end the connection.
    assert_eq!(RouteError::CreditCharge(2).response(&pdu), None);
    assert_eq!(RouteError::Compounded(120).response(&pdu), None);
    assert!(of(64, &[24]).response(&pdu).is_some());
    assert_eq!(
        parse_session_setup(&CIFS_6_12_NEGOTIATE),
        Err(RouteError::Command { due: 1, got: 0 })
    );
}

#[test]
fn test_longest_session_setup() {
    let mut pdu = binding(SESSION);
    pdu.resize(88 + 65_535, 0);
    let pdu = patched(&pdu, 78, &[0xff, 0xff]);
    assert!(pdu.len() <= MAX_FIRST_PDU);
    assert!(parse_session_setup(&pdu).is_ok());
    let too_long = [pdu, vec![0; 1000]].concat();
    assert_eq!(
        parse_session_setup(&too_long),
        Err(RouteError::TooLong(too_long.len()))
    );
}

#[test]
fn test_every_byte_altered() {
    let pdu = binding(SESSION);
    let mut routed = 0;
    for at in 0..pdu.len() {
        for value in 0..=u8::MAX {
            let altered = patched(&pdu, at, &[value]);
            let outcome = parse_session_setup(&altered).and_then(|s| s.route(|id| id == SESSION));
            match outcome {
                Ok(id) => {
                    assert_eq!(id, SESSION);
                    routed += 1;
                }
                Err(error) => {
                    if let Some(response) = error.response(&altered) {
                        assert_error(&altered, &response, error.status().unwrap().0);
                    }
                }
            }
        }
    }
    assert!(routed > pdu.len() && routed < 256 * pdu.len());
}
