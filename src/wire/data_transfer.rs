//! The Data Transfer message, `[MS-SMBD] 2.2.3`: everything after the negotiation.

use super::{fixed_part, put_u16, put_u32, u16_at, u32_at, ParseError};

/// The header of a Data Transfer message, host order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DataTransfer {
    /// Send credits the sender wants in total, counting those it holds.
    pub credits_requested: u16,
    /// Send credits given to the receiver on top of those it holds.
    pub credits_granted: u16,
    /// See [`RESPONSE_REQUESTED`](Self::RESPONSE_REQUESTED).
    pub flags: u16,
    /// Payload bytes of the upper-layer message that follow after this segment.
    pub remaining_data_length: u32,
    /// Where the payload starts, from the start of the message; 0 without payload.
    pub data_offset: u32,
    /// Payload bytes in this message.
    pub data_length: u32,
}

impl DataTransfer {
    /// Size of the fixed part, and of a whole message without payload, bytes.
    pub const LEN: usize = 20;

    /// Where we put the payload: the fixed part and four bytes of padding.
    pub const DATA_OFFSET: usize = 24;

    /// Flag: the peer shall send something promptly (keepalive).
    pub const RESPONSE_REQUESTED: u16 = 0x0001;

    /// Reads the header from the first bytes of a message.
    ///
    /// # Errors
    /// `Truncated` below 20 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let b = fixed_part::<{ Self::LEN }>(PDU, bytes)?;
        Ok(Self {
            credits_requested: u16_at(b, 0),
            credits_granted: u16_at(b, 2),
            flags: u16_at(b, 4),
            remaining_data_length: u32_at(b, 8),
            data_offset: u32_at(b, 12),
            data_length: u32_at(b, 16),
        })
    }

    /// True when the peer wants a prompt answer.
    pub fn is_response_requested(&self) -> bool {
        self.flags & Self::RESPONSE_REQUESTED != 0
    }

    /// Applies the field rules of `[MS-SMBD] 3.1.5.8` to a message of `message_length` bytes
    /// received on a connection whose MaxFragmentedRecvSize is `max_fragmented_size`.
    ///
    /// One rule is ours: payload may not start inside the header. The specification sets no
    /// lower bound for DataOffset.
    ///
    /// # Errors
    /// `Illegal` names the first field that breaks a rule.
    pub fn validate(
        &self,
        message_length: usize,
        max_fragmented_size: u32,
    ) -> Result<(), ParseError> {
        let illegal = |field, value: u32, rule| {
            Err(ParseError::Illegal {
                pdu: PDU,
                field,
                value: value.into(),
                rule,
            })
        };
        if self.credits_requested == 0 {
            return illegal("CreditsRequested", 0, "must be 1 or more");
        }
        if self.data_offset % 8 != 0 {
            return illegal("DataOffset", self.data_offset, "must be a multiple of 8");
        }
        let end = u64::from(self.data_offset) + u64::from(self.data_length);
        if end > message_length as u64 {
            if u64::from(self.data_offset) > message_length as u64 {
                return illegal(
                    "DataOffset",
                    self.data_offset,
                    "must lie inside the message",
                );
            }
            return illegal(
                "DataLength",
                self.data_length,
                "must end inside the message",
            );
        }
        let total = u64::from(self.data_length) + u64::from(self.remaining_data_length);
        if total > u64::from(max_fragmented_size) {
            if self.data_length > max_fragmented_size {
                let rule = "must not exceed the fragmented size";
                return illegal("DataLength", self.data_length, rule);
            }
            let rule = "must not exceed the fragmented size together with DataLength";
            return illegal("RemainingDataLength", self.remaining_data_length, rule);
        }
        if self.data_length > 0 && (self.data_offset as usize) < Self::DATA_OFFSET {
            return illegal(
                "DataOffset",
                self.data_offset,
                "must be 24 or more with data",
            );
        }
        Ok(())
    }

    /// The wire form of the fixed part: the whole message when there is no payload.
    pub fn emit(&self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        self.put(&mut b);
        b
    }

    /// The wire form up to the payload: fixed part and padding. `data_offset` should be
    /// [`DATA_OFFSET`](Self::DATA_OFFSET).
    pub fn emit_padded(&self) -> [u8; Self::DATA_OFFSET] {
        let mut b = [0; Self::DATA_OFFSET];
        self.put(&mut b);
        b
    }

    fn put<const N: usize>(&self, b: &mut [u8; N]) {
        put_u16(b, 0, self.credits_requested);
        put_u16(b, 2, self.credits_granted);
        put_u16(b, 4, self.flags);
        put_u32(b, 8, self.remaining_data_length);
        put_u32(b, 12, self.data_offset);
        put_u32(b, 16, self.data_length);
    }
}

const PDU: &str = "Data Transfer";

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: [u8; 24] = [
        0xff, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x27, 0x00, 0x00, 0x18, 0x00, 0x00,
        0x00, 0x3c, 0x05, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    ];
    const REPR: DataTransfer = DataTransfer {
        credits_requested: 255,
        credits_granted: 1,
        flags: 0,
        remaining_data_length: 10_000,
        data_offset: 24,
        data_length: 1340,
    };
    const MAX: u32 = 131_072;

    #[test]
    fn parses_and_emits() {
        assert_eq!(DataTransfer::parse(&BYTES), Ok(REPR));
        assert_eq!(REPR.emit_padded(), BYTES);
        assert_eq!(REPR.emit(), BYTES[..20]);
        assert_eq!(REPR.validate(1364, MAX), Ok(()));
        assert!(!REPR.is_response_requested());
        assert!(DataTransfer {
            flags: 0xffff,
            ..REPR
        }
        .is_response_requested());
        assert!(!DataTransfer {
            flags: 0xfffe,
            ..REPR
        }
        .is_response_requested());
    }

    #[test]
    fn an_empty_message_is_20_bytes() {
        let empty = DataTransfer {
            credits_requested: 10,
            credits_granted: 9,
            ..REPR
        };
        let empty = DataTransfer {
            remaining_data_length: 0,
            data_offset: 0,
            data_length: 0,
            ..empty
        };
        let bytes = [10, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(empty.emit(), bytes);
        assert_eq!(DataTransfer::parse(&bytes), Ok(empty));
        assert_eq!(empty.validate(20, MAX), Ok(()));
    }

    #[test]
    fn every_truncation_is_refused() {
        for got in 0..20 {
            assert_eq!(
                DataTransfer::parse(&BYTES[..got]),
                Err(ParseError::Truncated {
                    pdu: PDU,
                    needed: 20,
                    got
                })
            );
        }
    }

    #[test]
    fn illegal_values_are_named() {
        let cases = [
            (
                DataTransfer {
                    credits_requested: 0,
                    ..REPR
                },
                "CreditsRequested",
            ),
            (
                DataTransfer {
                    data_offset: 23,
                    ..REPR
                },
                "DataOffset",
            ),
            (
                DataTransfer {
                    data_offset: 25,
                    ..REPR
                },
                "DataOffset",
            ),
            (
                DataTransfer {
                    data_offset: 16,
                    data_length: 4,
                    ..REPR
                },
                "DataOffset",
            ),
            (
                DataTransfer {
                    data_offset: 1368,
                    ..REPR
                },
                "DataOffset",
            ),
            (
                DataTransfer {
                    data_offset: u32::MAX - 7,
                    ..REPR
                },
                "DataOffset",
            ),
            (
                DataTransfer {
                    data_offset: 32,
                    ..REPR
                },
                "DataLength",
            ),
            (
                DataTransfer {
                    data_length: 1341,
                    ..REPR
                },
                "DataLength",
            ),
            (
                DataTransfer {
                    data_length: u32::MAX,
                    ..REPR
                },
                "DataLength",
            ),
            (
                DataTransfer {
                    remaining_data_length: MAX - 1339,
                    ..REPR
                },
                "RemainingDataLength",
            ),
            (
                DataTransfer {
                    remaining_data_length: u32::MAX,
                    ..REPR
                },
                "RemainingDataLength",
            ),
        ];
        for (repr, name) in cases {
            match repr.validate(1364, MAX) {
                Err(ParseError::Illegal { field, .. }) => assert_eq!(field, name, "{repr:?}"),
                other => panic!("{repr:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn limits_are_legal() {
        let exact = DataTransfer {
            remaining_data_length: MAX - 1340,
            ..REPR
        };
        assert_eq!(exact.validate(1364, MAX), Ok(()));
        // Junk behind the payload, and a payload further back than 24, are legal.
        assert_eq!(REPR.validate(8192, MAX), Ok(()));
        let back = DataTransfer {
            data_offset: 32,
            data_length: 1332,
            ..REPR
        };
        assert_eq!(back.validate(1364, MAX), Ok(()));
        // No data but more to come, [MS-SMBD] 3.1.5.8 has nothing against it.
        let none = DataTransfer {
            data_offset: 0,
            data_length: 0,
            ..REPR
        };
        assert_eq!(none.validate(20, MAX), Ok(()));
    }
}
