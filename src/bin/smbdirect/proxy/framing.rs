//! Direct TCP's framing, `[MS-SMB2] 2.1`: a zero byte, a length of 24 bits (big-endian), a message.

use std::fmt;

/// Bytes in front of each message.
pub(super) const HEADER_LEN: usize = 4;

/// What a header announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame {
    /// A message of so many bytes.
    Message(usize),
    /// NetBIOS keepalive: nothing follows (RFC 1002 section 4.3.7).
    KeepAlive,
}

/// Why bytes of a client are no SMB2 over Direct TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FramingError {
    /// The first byte of a header is something else.
    Type(u8),
    /// A message without bytes.
    Empty,
    /// The first message is SMB1.
    Smb1,
}

impl fmt::Display for FramingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Type(0x81) => f.write_str(
                "the client starts a NetBIOS session (port 139's protocol); use port 445's",
            ),
            Self::Type(byte) => write!(f, "frame of type {byte:#04x}, SMB2 over TCP has 0x00"),
            Self::Empty => f.write_str("frame without a message"),
            Self::Smb1 => f.write_str(
                "the client begins with SMB1, SMB Direct needs SMB3; \
                 set its minimum protocol (smbclient: --option='client min protocol=SMB3')",
            ),
        }
    }
}

/// Reads a header.
pub(super) fn parse(header: [u8; HEADER_LEN]) -> Result<Frame, FramingError> {
    let [kind, a, b, c] = header;
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    match (kind, length) {
        (0x00, 0) => Err(FramingError::Empty),
        (0x00, length) => Ok(Frame::Message(length)),
        (0x85, 0) => Ok(Frame::KeepAlive),
        (kind, _) => Err(FramingError::Type(kind)),
    }
}

/// Writes a header; `None` when the length has more than 24 bits.
pub(super) fn header(length: usize) -> Option<[u8; HEADER_LEN]> {
    let [kind, a, b, c] = u32::try_from(length).ok()?.to_be_bytes();
    (kind == 0).then_some([0, a, b, c])
}

/// Judges the first four bytes of the first message.
pub(super) fn check_first(magic: [u8; 4]) -> Result<(), FramingError> {
    if magic == *b"\xffSMB" {
        return Err(FramingError::Smb1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_and_written() {
        assert_eq!(parse([0, 0, 0, 1]), Ok(Frame::Message(1)));
        assert_eq!(parse([0, 0xff, 0xff, 0xff]), Ok(Frame::Message(0xff_ffff)));
        assert_eq!(parse([0x85, 0, 0, 0]), Ok(Frame::KeepAlive));
        assert_eq!(parse([0, 0, 0, 0]), Err(FramingError::Empty));
        assert_eq!(parse([0x81, 0, 0, 68]), Err(FramingError::Type(0x81)));
        assert_eq!(
            parse([b'G', b'E', b'T', b' ']),
            Err(FramingError::Type(b'G'))
        );
        assert_eq!(header(0x01_0203), Some([0, 1, 2, 3]));
        assert_eq!(header(1 << 24), None);
    }

    #[test]
    fn smb1_is_refused_with_the_cure() {
        assert_eq!(check_first(*b"\xfeSMB"), Ok(()));
        let text = check_first(*b"\xffSMB").unwrap_err().to_string();
        assert!(
            text.contains("SMB1") && text.contains("min protocol"),
            "{text}"
        );
    }
}
