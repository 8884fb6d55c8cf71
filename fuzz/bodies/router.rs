//! The first PDUs of a connection: NEGOTIATE and SESSION_SETUP, as a peer may send them.

use smbdirect::router::{
    answer_negotiate, parse_negotiate, parse_session_setup, Cipher, Dialect, Inputs, ServerConfig,
    SigningAlgorithm,
};

use super::input::Input;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let dialects = [Dialect::Smb300, Dialect::Smb302, Dialect::Smb311];
    let [a, b] = [input.below(3), input.below(3)];
    let config = ServerConfig {
        guid: [7; 16],
        security_blob: vec![0x60; input.pick(&[0, 1, 74, 16384])],
        security_mode: input.pick(&[0, 1, 2, 3]),
        capabilities: input.pick(&[0, 0xc, 0x7f, 0x40, u32::MAX]),
        max_transact_size: 1 << 20,
        max_read_size: 1 << 20,
        max_write_size: 1 << 20,
        min_dialect: dialects[a.min(b)],
        max_dialect: dialects[a.max(b)],
        ciphers: if input.flag() {
            Cipher::ALL.to_vec()
        } else {
            Vec::new()
        },
        signing_algorithms: if input.flag() {
            SigningAlgorithm::ALL.to_vec()
        } else {
            Vec::new()
        },
    };
    let inputs = Inputs {
        system_time: 1,
        salt: [9; 32],
    };
    let pdu = input.rest();
    match parse_negotiate(pdu) {
        Ok(request) => match answer_negotiate(&request, &config, &inputs) {
            Ok(response) => {
                check_response(pdu, &response);
                // [MS-SMB2] 2.2.4: 64 bytes of header, StructureSize 65.
                assert_eq!(response[64..66], [65, 0]);
                let revision = u16::from_le_bytes([response[68], response[69]]);
                let dialect = Dialect::from_revision(revision).expect("a dialect we have");
                assert!(request.dialects.contains(dialect), "not offered");
                assert!(config.check().is_ok());
            }
            Err(refusal) => check_response(pdu, &refusal.pdu),
        },
        Err(error) => check_error(pdu, &error),
    }
    match parse_session_setup(pdu) {
        Ok(setup) => {
            let id = setup.session_id;
            for is_there in [true, false] {
                match setup.route(|asked| asked == id && is_there) {
                    Ok(routed) => assert!(is_there && routed == id && setup.signed && id != 0),
                    Err(error) => check_error(pdu, &error),
                }
            }
        }
        Err(error) => check_error(pdu, &error),
    }
}

fn check_error(pdu: &[u8], error: &smbdirect::router::RouteError) {
    assert!(!error.to_string().is_empty());
    if let Some(response) = error.response(pdu) {
        check_response(pdu, &response);
        let status = error.status().expect("a response has a status");
        assert_eq!(response[8..12], status.0.to_le_bytes());
    }
}

/// It is an SMB2 response to this request, of bounded size.
fn check_response(request: &[u8], response: &[u8]) {
    assert!((64..=32_768).contains(&response.len()));
    assert_eq!(response[..4], *b"\xfeSMB");
    assert_eq!(response[16] & 1, 1, "SMB2_FLAGS_SERVER_TO_REDIR");
    assert_eq!(response[12..14], request[12..14], "command");
    assert_eq!(response[24..32], request[24..32], "message id");
}
