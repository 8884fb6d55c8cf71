//! A reader of NEGOTIATE and ERROR responses that shares no code with their writer and checks what
//! a strict client would.

/// What a NEGOTIATE response says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) security_mode: u16,
    pub(super) dialect: u16,
    pub(super) guid: [u8; 16],
    pub(super) capabilities: u32,
    pub(super) sizes: [u32; 3],
    pub(super) system_time: u64,
    pub(super) blob: Vec<u8>,
    /// (ContextType, Data)
    pub(super) contexts: Vec<(u16, Vec<u8>)>,
}

impl Answer {
    /// Reads the answer to `request`, both whole PDUs.
    pub(super) fn read(request: &[u8], pdu: &[u8]) -> Self {
        assert_header(request, pdu, 0);
        assert_eq!(u16(pdu, 64), 65, "StructureSize");
        assert_eq!(u64(pdu, 112), 0, "ServerStartTime");
        let dialect = u16(pdu, 68);
        let blob_offset = usize::from(u16(pdu, 120));
        let blob_end = blob_offset + usize::from(u16(pdu, 122));
        assert_eq!(blob_offset, 128);
        let mut contexts = Vec::new();
        if dialect == 0x0311 {
            let mut at = u32(pdu, 124) as usize;
            assert_eq!(
                at,
                blob_end.div_ceil(8) * 8,
                "contexts follow the blob, aligned"
            );
            assert!(pdu[blob_end..at].iter().all(|byte| *byte == 0), "padding");
            for index in 0..u16(pdu, 70) {
                if index > 0 {
                    let aligned = at.div_ceil(8) * 8;
                    assert!(pdu[at..aligned].iter().all(|byte| *byte == 0), "padding");
                    at = aligned;
                }
                assert_eq!(u32(pdu, at + 4), 0, "Reserved");
                let end = at + 8 + usize::from(u16(pdu, at + 2));
                contexts.push((u16(pdu, at), pdu[at + 8..end].to_vec()));
                at = end;
            }
            assert_eq!(at, pdu.len(), "nothing behind the last context");
        } else {
            assert_eq!(u16(pdu, 70), 0, "Reserved");
            assert_eq!(u32(pdu, 124), 0, "Reserved2");
            assert_eq!(blob_end, pdu.len(), "nothing behind the blob");
        }
        Self {
            security_mode: u16(pdu, 66),
            dialect,
            guid: pdu[72..88].try_into().unwrap(),
            capabilities: u32(pdu, 88),
            sizes: [u32(pdu, 92), u32(pdu, 96), u32(pdu, 100)],
            system_time: u64(pdu, 104),
            blob: pdu[blob_offset..blob_end].to_vec(),
            contexts,
        }
    }
}

/// Checks that `pdu` is an SMB2 ERROR response with `status` to `request`.
pub(super) fn assert_error(request: &[u8], pdu: &[u8], status: u32) {
    assert_header(request, pdu, status);
    assert_eq!(pdu[64..], [9, 0, 0, 0, 0, 0, 0, 0, 0], "ERROR body");
}

fn assert_header(request: &[u8], pdu: &[u8], status: u32) {
    assert_eq!(&pdu[..4], b"\xfeSMB");
    assert_eq!(u16(pdu, 4), 64, "StructureSize");
    assert_eq!(pdu[6..8], request[6..8], "CreditCharge");
    assert_eq!(u32(pdu, 8), status, "Status");
    assert_eq!(pdu[12..14], request[12..14], "Command");
    assert_eq!(u16(pdu, 14), 1, "CreditResponse");
    let keeps_signed = status == 0xc000_0203;
    let signed = if keeps_signed {
        u32(request, 16) & 8
    } else {
        0
    };
    assert_eq!(u32(pdu, 16), 1 | signed, "Flags");
    assert_eq!(u32(pdu, 20), 0, "NextCommand");
    assert_eq!(
        pdu[24..48],
        request[24..48],
        "MessageId, Reserved, TreeId, SessionId"
    );
    assert_eq!(pdu[48..64], [0; 16], "Signature");
}

fn u16(pdu: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(pdu[at..at + 2].try_into().unwrap())
}

fn u32(pdu: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(pdu[at..at + 4].try_into().unwrap())
}

fn u64(pdu: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(pdu[at..at + 8].try_into().unwrap())
}
