//! What the two sides of the load say to each other, and content that tells where it belongs.

/// Bytes of a message before its payload.
pub(super) const HEADER: usize = 40;
/// Bytes that one RDMA operation moves.
pub(super) const RDMA_BYTES: usize = 64 << 10;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    /// The server has taken the connection.
    Welcome = 1,
    /// The payload comes back, with the content of the other direction.
    Echo = 2,
    /// The server places data in the client's memory (as for an SMB2 READ).
    Read = 3,
    /// The server fetches data from the client's memory (as for an SMB2 WRITE).
    Write = 4,
}

/// A message without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: Kind,
    /// Which connection of the load.
    pub(super) connection: u32,
    /// Counts the requests of the connection; answers have their request's.
    pub(super) sequence: u64,
    /// The client's memory: offset, token, length.
    pub(super) memory: (u64, u32, u32),
}

impl Message {
    pub(super) fn emit(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let (offset, token, length) = self.memory;
        bytes[0..4].copy_from_slice(&(self.kind as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&self.connection.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&offset.to_le_bytes());
        bytes[24..28].copy_from_slice(&token.to_le_bytes());
        bytes[28..32].copy_from_slice(&length.to_le_bytes());
        // Of all the others: content is compared, but not this.
        let sum = word(
            u64::from(self.connection) << 32 | self.kind as u64,
            self.sequence,
        );
        let sum = sum ^ word(offset, u64::from(token) << 32 | u64::from(length));
        bytes[32..40].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// The message and its payload. `None`: something in it has changed.
    pub(super) fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (header, payload) = bytes.split_at_checked(HEADER)?;
        let four = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i]));
        let eight = |at: usize| u64::from(four(at)) | u64::from(four(at + 4)) << 32;
        let kind = match four(0) {
            1 => Kind::Welcome,
            2 => Kind::Echo,
            3 => Kind::Read,
            4 => Kind::Write,
            _ => return None,
        };
        let message = Self {
            kind,
            connection: four(4),
            sequence: eight(8),
            memory: (eight(16), four(24), four(28)),
        };
        (message.emit() == header).then_some((message, payload))
    }

    /// Where the content of this message begins; each direction has its own.
    fn content(&self, is_answer: bool) -> u64 {
        let place = u64::from(self.connection) << 1 | u64::from(is_answer);
        word(place, self.sequence)
    }

    /// Writes the content of a direction.
    pub(super) fn fill(&self, is_answer: bool, bytes: &mut [u8]) {
        let start = self.content(is_answer);
        for (index, piece) in (0u64..).zip(bytes.chunks_mut(8)) {
            let word = start.wrapping_add(index.wrapping_mul(STEP)).to_le_bytes();
            piece.copy_from_slice(&word[..piece.len()]);
        }
    }

    /// Whether bytes are the content of a direction, all of it.
    pub(super) fn matches(&self, is_answer: bool, bytes: &[u8]) -> bool {
        let start = self.content(is_answer);
        (0u64..).zip(bytes.chunks(8)).all(|(index, piece)| {
            let word = start.wrapping_add(index.wrapping_mul(STEP)).to_le_bytes();
            piece == &word[..piece.len()]
        })
    }
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn word(a: u64, b: u64) -> u64 {
    let mixed = (a.wrapping_mul(STEP) ^ b).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed ^ mixed >> 32
}

/// The ClientGuid by which connections come to a handle.
pub(super) fn client_guid(handle: u32) -> [u8; 16] {
    let mut guid = *b"smbdirect load..";
    guid[12..].copy_from_slice(&handle.to_le_bytes());
    guid
}

/// The SMB2 NEGOTIATE request that brings a connection to a handle: `[MS-SMB2] 2.2.3`, SMB 3.0.
pub(super) fn negotiate(handle: u32) -> Vec<u8> {
    let mut pdu = b"\xfeSMB".to_vec();
    pdu.extend([64, 0]);
    pdu.resize(64, 0);
    pdu.extend([36, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    pdu.extend(client_guid(handle));
    pdu.extend([0; 8]);
    pdu.extend(0x0300u16.to_le_bytes());
    pdu
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_content_tell_where_they_belong() {
        let message = Message {
            kind: Kind::Read,
            connection: 7,
            sequence: 1 << 40,
            memory: (u64::MAX, 3, 65_536),
        };
        let mut bytes = message.emit().to_vec();
        bytes.extend([1, 2, 3]);
        assert_eq!(Message::parse(&bytes), Some((message, &[1, 2, 3][..])));
        for at in 0..HEADER {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!(Message::parse(&changed), None, "byte {at}");
        }
        assert_eq!(Message::parse(&bytes[..39]), None);

        let mut content = vec![0; 1003];
        message.fill(false, &mut content);
        assert!(message.matches(false, &content));
        assert!(!message.matches(true, &content));
        let next = Message {
            sequence: message.sequence + 1,
            ..message
        };
        assert!(!next.matches(false, &content));
        content[1002] ^= 0x80;
        assert!(!message.matches(false, &content));
    }
}
