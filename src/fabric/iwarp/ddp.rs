//! DDP and RDMAP headers (RFC 5041 section 4, RFC 5040 section 4).

use super::terminate::Code;

/// Length field of a frame and tagged header.
pub(super) const TAGGED_LEN: usize = 14;
/// Untagged header.
pub(super) const UNTAGGED_LEN: usize = 18;
/// Read Request body (RFC 5040 section 4.4).
pub(super) const READ_REQUEST_LEN: usize = 28;

/// Queue numbers of untagged buffers.
pub(super) const QUEUE_SEND: u32 = 0;
pub(super) const QUEUE_READ_REQUEST: u32 = 1;
pub(super) const QUEUE_TERMINATE: u32 = 2;

const DDP_TAGGED: u8 = 0x80;
const DDP_LAST: u8 = 0x40;
const DDP_VERSION: u8 = 0x01;
const DDP_VERSION_MASK: u8 = 0x03;
const RDMAP_VERSION: u8 = 0x40;
const RDMAP_VERSION_MASK: u8 = 0xC0;

/// RDMAP operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Opcode {
    Write = 0,
    ReadRequest = 1,
    ReadResponse = 2,
    Send = 3,
    SendInvalidate = 4,
    SendSolicited = 5,
    SendSolicitedInvalidate = 6,
    Terminate = 7,
}

impl Opcode {
    fn parse(ctrl: u8) -> Option<Self> {
        Some(match ctrl & 0x0F {
            0 => Self::Write,
            1 => Self::ReadRequest,
            2 => Self::ReadResponse,
            3 => Self::Send,
            4 => Self::SendInvalidate,
            5 => Self::SendSolicited,
            6 => Self::SendSolicitedInvalidate,
            7 => Self::Terminate,
            _ => return None,
        })
    }

    /// Whether the segment carries a token to invalidate.
    pub(super) fn invalidates(self) -> bool {
        matches!(self, Self::SendInvalidate | Self::SendSolicitedInvalidate)
    }
}

/// A header that says where its payload goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tagged {
    pub(super) last: bool,
    pub(super) opcode: Opcode,
    pub(super) token: u32,
    pub(super) offset: u64,
}

/// A header whose payload goes to the next buffer of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Untagged {
    pub(super) last: bool,
    pub(super) opcode: Opcode,
    pub(super) ulp: u32,
    pub(super) queue: u32,
    pub(super) msn: u32,
    pub(super) offset: u32,
}

/// Either header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    Tagged(Tagged),
    Untagged(Untagged),
}

/// Bytes of the header whose first byte is `ctrl`.
pub(super) fn header_len(ctrl: u8) -> usize {
    if ctrl & DDP_TAGGED != 0 {
        TAGGED_LEN
    } else {
        UNTAGGED_LEN
    }
}

impl Header {
    /// Reads a header of [`header_len`] bytes. Reserved bits are ignored, as both RFCs say.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Code> {
        let mut reader = Reader(bytes);
        let [ddp, rdmap] = reader.take().ok_or(Code::LENGTH_MISMATCH)?;
        let tagged = ddp & DDP_TAGGED != 0;
        let last = ddp & DDP_LAST != 0;
        if ddp & DDP_VERSION_MASK != DDP_VERSION {
            return Err(if tagged {
                Code::TAGGED_DDP_VERSION
            } else {
                Code::UNTAGGED_DDP_VERSION
            });
        }
        if rdmap & RDMAP_VERSION_MASK != RDMAP_VERSION {
            return Err(Code::RDMAP_VERSION);
        }
        let opcode = Opcode::parse(rdmap).ok_or(Code::UNEXPECTED_OPCODE)?;
        if tagged != matches!(opcode, Opcode::Write | Opcode::ReadResponse) {
            return Err(Code::UNEXPECTED_OPCODE);
        }
        let short = Code::LENGTH_MISMATCH;
        if tagged {
            return Ok(Self::Tagged(Tagged {
                last,
                opcode,
                token: u32::from_be_bytes(reader.take().ok_or(short)?),
                offset: u64::from_be_bytes(reader.take().ok_or(short)?),
            }));
        }
        let header = Untagged {
            last,
            opcode,
            ulp: u32::from_be_bytes(reader.take().ok_or(short)?),
            queue: u32::from_be_bytes(reader.take().ok_or(short)?),
            msn: u32::from_be_bytes(reader.take().ok_or(short)?),
            offset: u32::from_be_bytes(reader.take().ok_or(short)?),
        };
        let queue = match opcode {
            Opcode::ReadRequest => QUEUE_READ_REQUEST,
            Opcode::Terminate => QUEUE_TERMINATE,
            _ => QUEUE_SEND,
        };
        if header.queue > QUEUE_TERMINATE {
            return Err(Code::INVALID_QUEUE);
        }
        if header.queue != queue {
            return Err(Code::UNEXPECTED_OPCODE);
        }
        Ok(Self::Untagged(header))
    }
}

impl Tagged {
    /// The bytes of the header.
    pub(super) fn emit(&self) -> [u8; TAGGED_LEN] {
        let mut bytes = [0; TAGGED_LEN];
        bytes[0] = DDP_TAGGED | DDP_VERSION | if self.last { DDP_LAST } else { 0 };
        bytes[1] = RDMAP_VERSION | self.opcode as u8;
        bytes[2..6].copy_from_slice(&self.token.to_be_bytes());
        bytes[6..14].copy_from_slice(&self.offset.to_be_bytes());
        bytes
    }
}

impl Untagged {
    /// The bytes of the header.
    pub(super) fn emit(&self) -> [u8; UNTAGGED_LEN] {
        let mut bytes = [0; UNTAGGED_LEN];
        bytes[0] = DDP_VERSION | if self.last { DDP_LAST } else { 0 };
        bytes[1] = RDMAP_VERSION | self.opcode as u8;
        bytes[2..6].copy_from_slice(&self.ulp.to_be_bytes());
        bytes[6..10].copy_from_slice(&self.queue.to_be_bytes());
        bytes[10..14].copy_from_slice(&self.msn.to_be_bytes());
        bytes[14..18].copy_from_slice(&self.offset.to_be_bytes());
        bytes
    }
}

/// What a Read Request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReadRequest {
    pub(super) sink_token: u32,
    pub(super) sink_offset: u64,
    pub(super) len: u32,
    pub(super) source_token: u32,
    pub(super) source_offset: u64,
}

impl ReadRequest {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let request = Self {
            sink_token: u32::from_be_bytes(reader.take()?),
            sink_offset: u64::from_be_bytes(reader.take()?),
            len: u32::from_be_bytes(reader.take()?),
            source_token: u32::from_be_bytes(reader.take()?),
            source_offset: u64::from_be_bytes(reader.take()?),
        };
        reader.0.is_empty().then_some(request)
    }

    pub(super) fn emit(&self) -> [u8; READ_REQUEST_LEN] {
        let mut bytes = [0; READ_REQUEST_LEN];
        bytes[0..4].copy_from_slice(&self.sink_token.to_be_bytes());
        bytes[4..12].copy_from_slice(&self.sink_offset.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.len.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.source_token.to_be_bytes());
        bytes[20..28].copy_from_slice(&self.source_offset.to_be_bytes());
        bytes
    }
}

/// Takes arrays off the front of bytes.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literal_headers() {
        let write = [0xC1, 0x40, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2];
        let parsed = Header::parse(&write).unwrap();
        let tagged = Tagged {
            last: true,
            opcode: Opcode::Write,
            token: 1,
            offset: 2,
        };
        assert_eq!(parsed, Header::Tagged(tagged));
        assert_eq!(tagged.emit(), write);
        let send = [
            0x01, 0x44, 0xDE, 0xAD, 0xBE, 0xEF, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 5, 0,
        ];
        let untagged = Untagged {
            last: false,
            opcode: Opcode::SendInvalidate,
            ulp: 0xDEAD_BEEF,
            queue: 0,
            msn: 9,
            offset: 0x500,
        };
        assert_eq!(Header::parse(&send).unwrap(), Header::Untagged(untagged));
        assert_eq!(untagged.emit(), send);
        assert_eq!(header_len(0xC1), 14);
        assert_eq!(header_len(0x41), 18);
    }

    #[test]
    fn bad_headers() {
        let with = |ddp, rdmap, queue: u8| {
            let mut bytes = [0; 18];
            bytes[0] = ddp;
            bytes[1] = rdmap;
            bytes[9] = queue;
            Header::parse(&bytes).unwrap_err()
        };
        assert_eq!(with(0xC2, 0x40, 0), Code::TAGGED_DDP_VERSION);
        assert_eq!(with(0x40, 0x43, 0), Code::UNTAGGED_DDP_VERSION);
        assert_eq!(with(0x41, 0x83, 0), Code::RDMAP_VERSION);
        assert_eq!(with(0x41, 0x48, 0), Code::UNEXPECTED_OPCODE);
        assert_eq!(with(0xC1, 0x43, 0), Code::UNEXPECTED_OPCODE);
        assert_eq!(with(0x41, 0x40, 0), Code::UNEXPECTED_OPCODE);
        assert_eq!(with(0x41, 0x43, 1), Code::UNEXPECTED_OPCODE);
        assert_eq!(with(0x41, 0x41, 0), Code::UNEXPECTED_OPCODE);
        assert_eq!(with(0x41, 0x43, 3), Code::INVALID_QUEUE);
        for len in 0..18 {
            let bytes = [0x41, 0x43, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            assert_eq!(Header::parse(&bytes[..len]), Err(Code::LENGTH_MISMATCH));
        }
    }

    #[test]
    fn read_request_round_trip() {
        let request = ReadRequest {
            sink_token: 0x0102_0304,
            sink_offset: 0x0506_0708_090A_0B0C,
            len: 0x0D0E_0F10,
            source_token: 0x1112_1314,
            source_offset: 0x1516_1718_191A_1B1C,
        };
        let bytes = request.emit();
        assert!(bytes.iter().copied().eq(1..=28));
        assert_eq!(ReadRequest::parse(&bytes), Some(request));
        assert_eq!(ReadRequest::parse(&bytes[..27]), None);
        assert_eq!(ReadRequest::parse(&[0; 29]), None);
    }
}
