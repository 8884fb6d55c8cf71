//! Buffer Descriptor V1, `[MS-SMBD] 2.2.3.1`: one piece of remotely accessible memory.

use super::{fixed_part, put_u32, u32_at, ParseError};

/// One Buffer Descriptor V1, host order.
///
/// The token is an integer: little-endian here, while DDP and RDMAP headers carry the same STag
/// big-endian. Compare values, never bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferDescriptor {
    /// Where the memory starts, as the RDMA provider counts (RDMAP tagged offset).
    pub offset: u64,
    /// STag or rkey.
    pub token: u32,
    /// Bytes.
    pub length: u32,
}

impl BufferDescriptor {
    /// Size on the wire, bytes.
    pub const LEN: usize = 16;

    /// Reads one descriptor. Every value is legal here.
    ///
    /// # Errors
    /// `Truncated` below 16 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let b = fixed_part::<{ Self::LEN }>(PDU, bytes)?;
        let offset = u64::from(u32_at(b, 4)) << 32 | u64::from(u32_at(b, 0));
        Ok(Self {
            offset,
            token: u32_at(b, 8),
            length: u32_at(b, 12),
        })
    }

    /// Reads an array of descriptors, as in the ChannelInfo of an SMB2 READ or WRITE.
    ///
    /// # Errors
    /// `Illegal` when the array is no multiple of 16 bytes.
    pub fn parse_array(bytes: &[u8]) -> Result<BufferDescriptors<'_>, ParseError> {
        if bytes.len() % Self::LEN != 0 {
            return Err(ParseError::Illegal {
                pdu: PDU,
                field: "array length",
                value: bytes.len() as u64,
                rule: "must be a multiple of 16",
            });
        }
        Ok(BufferDescriptors { bytes })
    }

    /// The wire form.
    pub fn emit(&self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        b[..8].copy_from_slice(&self.offset.to_le_bytes());
        put_u32(&mut b, 8, self.token);
        put_u32(&mut b, 12, self.length);
        b
    }
}

/// Walks an array of descriptors without allocating; made by [`BufferDescriptor::parse_array`].
#[derive(Debug, Clone)]
pub struct BufferDescriptors<'a> {
    bytes: &'a [u8],
}

impl Iterator for BufferDescriptors<'_> {
    type Item = BufferDescriptor;

    fn next(&mut self) -> Option<BufferDescriptor> {
        let (head, rest) = self.bytes.split_at_checked(BufferDescriptor::LEN)?;
        self.bytes = rest;
        BufferDescriptor::parse(head).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.bytes.len() / BufferDescriptor::LEN;
        (left, Some(left))
    }
}

impl ExactSizeIterator for BufferDescriptors<'_> {}

const PDU: &str = "Buffer Descriptor V1";

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: [u8; 16] = [
        0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01, 0x78, 0x56, 0x34, 0x12, 0x00, 0x00, 0x10,
        0x00,
    ];
    const REPR: BufferDescriptor = BufferDescriptor {
        offset: 0x0102_0304_0506_0708,
        token: 0x1234_5678,
        length: 0x10_0000,
    };

    #[test]
    fn parses_and_emits() {
        assert_eq!(BufferDescriptor::parse(&BYTES), Ok(REPR));
        assert_eq!(REPR.emit(), BYTES);
    }

    #[test]
    fn every_truncation_is_refused() {
        for got in 0..16 {
            assert_eq!(
                BufferDescriptor::parse(&BYTES[..got]),
                Err(ParseError::Truncated {
                    pdu: PDU,
                    needed: 16,
                    got
                })
            );
        }
    }

    #[test]
    fn arrays() {
        let mut bytes = BYTES.to_vec();
        bytes.extend([0xff; 16]);
        let list = BufferDescriptor::parse_array(&bytes).expect("two descriptors");
        assert_eq!(list.len(), 2);
        let top = BufferDescriptor {
            offset: u64::MAX,
            token: u32::MAX,
            length: u32::MAX,
        };
        assert_eq!(list.collect::<Vec<_>>(), [REPR, top]);
        assert_eq!(BufferDescriptor::parse_array(&[]).map(|l| l.len()), Ok(0));
        for cut in 1..16 {
            assert!(BufferDescriptor::parse_array(&bytes[..16 + cut]).is_err());
        }
    }
}
