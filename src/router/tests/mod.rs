//! Tests of the router: literal PDUs of real clients, every truncation and illegal value, and the
//! answers read by parties that share no code with it.

mod answer;
mod dissect;
mod negotiate;
mod session_setup;
mod stranger;
mod vectors;

use super::*;

/// A GSS token that offers NTLMSSP and nothing else.
pub(super) const SPNEGO: [u8; 30] = [
    0x60, 0x1c, 0x06, 0x06, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x02, 0xa0, 0x12, 0x30, 0x10, 0xa0, 0x0e,
    0x30, 0x0c, 0x06, 0x0a, 0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x02, 0x0a,
];

/// 2026-11-23 06:59:36.101134700 UTC
pub(super) const INPUTS: Inputs = Inputs {
    system_time: 0x01dd_7b18_334b_aa93,
    salt: *b"0123456789abcdef0123456789abcdef",
};

pub(super) const ALL_CAPABILITIES: u32 = 0xff;

/// A server that offers all there is.
pub(super) fn config() -> ServerConfig {
    ServerConfig {
        guid: *b"server-guid-0001",
        security_blob: SPNEGO.to_vec(),
        security_mode: 0,
        capabilities: ALL_CAPABILITIES,
        max_transact_size: 0x10_0000,
        max_read_size: 0x80_0000,
        max_write_size: 0x40_0000,
        min_dialect: Dialect::Smb300,
        max_dialect: Dialect::Smb311,
        ciphers: Cipher::ALL.to_vec(),
        signing_algorithms: SigningAlgorithm::ALL.to_vec(),
    }
}

/// A NEGOTIATE request in the making.
#[derive(Clone)]
pub(super) struct Negotiate {
    pub(super) dialects: Vec<u16>,
    pub(super) capabilities: u32,
    pub(super) contexts: Vec<(u16, Vec<u8>)>,
}

impl Negotiate {
    /// What Windows 11 sends on an RDMA connection, by the kinds and order of its contexts.
    pub(super) fn windows() -> Self {
        Self {
            dialects: vec![0x0202, 0x0210, 0x0300, 0x0302, 0x0311],
            capabilities: 0x7f,
            contexts: vec![
                preauth(&[1], &[0x5a; 32]),
                (2, words(&[4, 2, 1, 4, 3])),
                (3, vec![3, 0, 0, 0, 1, 0, 0, 0, 4, 0, 2, 0, 3, 0]),
                (8, words(&[3, 2, 1, 0])),
                (5, b"f\0i\0l\0e\0s\0".to_vec()),
                (6, vec![1, 0, 0, 0]),
                (7, vec![2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0]),
            ],
        }
    }

    /// The same client offering only `dialects` and, below 3.1.1, no contexts.
    pub(super) fn with_dialects(dialects: &[u16]) -> Self {
        let mut request = Self {
            dialects: dialects.to_vec(),
            ..Self::windows()
        };
        if !dialects.contains(&0x0311) {
            request.contexts.clear();
        }
        request
    }

    /// The same client with other contexts.
    pub(super) fn with_contexts(contexts: Vec<(u16, Vec<u8>)>) -> Self {
        Self {
            contexts,
            ..Self::windows()
        }
    }

    pub(super) fn pdu(&self) -> Vec<u8> {
        let mut pdu = header(0, 0, 0);
        pdu.extend(words(&[
            36,
            u16::try_from(self.dialects.len()).unwrap(),
            1,
            0,
        ]));
        pdu.extend(self.capabilities.to_le_bytes());
        pdu.extend(*b"client-guid-0001");
        pdu.extend([0; 8]);
        pdu.extend(words(&self.dialects));
        if !self.contexts.is_empty() {
            pdu.resize(pdu.len().next_multiple_of(8), 0);
            let offset = u32::try_from(pdu.len()).unwrap();
            pdu[92..96].copy_from_slice(&offset.to_le_bytes());
            let count = u16::try_from(self.contexts.len()).unwrap();
            pdu[96..98].copy_from_slice(&count.to_le_bytes());
        }
        for (kind, data) in &self.contexts {
            pdu.resize(pdu.len().next_multiple_of(8), 0);
            pdu.extend(words(&[*kind, u16::try_from(data.len()).unwrap(), 0, 0]));
            pdu.extend(data);
        }
        pdu
    }

    pub(super) fn parse(&self) -> NegotiateRequest {
        parse_negotiate(&self.pdu()).expect("request is well-formed")
    }
}

/// SMB2_PREAUTH_INTEGRITY_CAPABILITIES
pub(super) fn preauth(hashes: &[u16], salt: &[u8]) -> (u16, Vec<u8>) {
    let mut data = words(&[
        u16::try_from(hashes.len()).unwrap(),
        u16::try_from(salt.len()).unwrap(),
    ]);
    data.extend(words(hashes));
    data.extend(salt);
    (1, data)
}

/// A SESSION_SETUP request that binds, signed, to `session_id`.
pub(super) fn binding(session_id: u64) -> Vec<u8> {
    let mut pdu = header(1, 1, 0x8);
    pdu[40..48].copy_from_slice(&session_id.to_le_bytes());
    pdu[48..64].copy_from_slice(b"signature-bytes!");
    pdu.extend([25, 0, 1, 1]);
    pdu.extend([0; 8]);
    pdu.extend(words(&[88, u16::try_from(SPNEGO.len()).unwrap()]));
    pdu.extend([0; 8]);
    pdu.extend(SPNEGO);
    pdu
}

pub(super) fn header(command: u16, message_id: u64, flags: u32) -> Vec<u8> {
    let mut pdu = b"\xfeSMB".to_vec();
    pdu.extend(words(&[64, 1, 0, 0, command, 33]));
    pdu.extend(flags.to_le_bytes());
    pdu.extend([0; 4]);
    pdu.extend(message_id.to_le_bytes());
    pdu.extend(0x0000_feff_u32.to_le_bytes());
    pdu.extend([0; 28]);
    assert_eq!(pdu.len(), 64);
    pdu
}

pub(super) fn words(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// `pdu` with `bytes` written at `offset`.
pub(super) fn patched(pdu: &[u8], offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut pdu = pdu.to_vec();
    pdu[offset..offset + bytes.len()].copy_from_slice(bytes);
    pdu
}
