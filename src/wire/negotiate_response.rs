//! The Negotiate Response, `[MS-SMBD] 2.2.2`: the second message, from the passive side.

use super::{fixed_part, put_u16, put_u32, status, u16_at, u32_at, ParseError};
use super::{MIN_FRAGMENTED_SIZE, MIN_MESSAGE_SIZE, VERSION};

/// A Negotiate Response, host order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NegotiateResponse {
    /// Lowest version the sender speaks.
    pub min_version: u16,
    /// Highest version the sender speaks.
    pub max_version: u16,
    /// The version chosen; 0 in a failure response.
    pub negotiated_version: u16,
    /// Send credits the sender wants (its SendCreditTarget).
    pub credits_requested: u16,
    /// Send credits given to the receiver: all receives posted for it.
    pub credits_granted: u16,
    /// NTSTATUS, see [`status`].
    pub status: u32,
    /// Largest RDMA transfer for one upper-layer operation, bytes.
    pub max_read_write_size: u32,
    /// Longest message the sender will send, bytes.
    pub preferred_send_size: u32,
    /// Longest message the sender can receive, bytes.
    pub max_receive_size: u32,
    /// Longest upper-layer message the sender can reassemble, bytes.
    pub max_fragmented_size: u32,
}

impl NegotiateResponse {
    /// Size on the wire, bytes.
    pub const LEN: usize = 32;

    /// A failure response: versions and status, all else zero (`[MS-SMBD] 3.1.5.6`).
    pub fn failure(status: u32) -> Self {
        Self {
            min_version: VERSION,
            max_version: VERSION,
            status,
            ..Self::default()
        }
    }

    /// Reads the fields. Bytes past the 32 are ignored.
    ///
    /// # Errors
    /// `Truncated` below 32 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let b = fixed_part::<{ Self::LEN }>(PDU, bytes)?;
        Ok(Self {
            min_version: u16_at(b, 0),
            max_version: u16_at(b, 2),
            negotiated_version: u16_at(b, 4),
            credits_requested: u16_at(b, 8),
            credits_granted: u16_at(b, 10),
            status: u32_at(b, 12),
            max_read_write_size: u32_at(b, 16),
            preferred_send_size: u32_at(b, 20),
            max_receive_size: u32_at(b, 24),
            max_fragmented_size: u32_at(b, 28),
        })
    }

    /// Applies the rules of `[MS-SMBD] 3.1.5.7` to a response that answers an offer of
    /// `own_max_receive_size` bytes. Status is for the caller to look at first: a failure
    /// response has zeros in the fields checked here.
    ///
    /// # Errors
    /// `Illegal` names the first field that breaks a rule.
    pub fn validate(&self, own_max_receive_size: u32) -> Result<(), ParseError> {
        let illegal = |field, value: u32, rule| {
            Err(ParseError::Illegal {
                pdu: PDU,
                field,
                value: value.into(),
                rule,
            })
        };
        if self.negotiated_version != VERSION {
            let value = self.negotiated_version.into();
            return illegal("NegotiatedVersion", value, "must be 0x0100");
        }
        if self.status != status::SUCCESS {
            return illegal("Status", self.status, "must be 0");
        }
        if self.max_receive_size < MIN_MESSAGE_SIZE {
            return illegal(
                "MaxReceiveSize",
                self.max_receive_size,
                "must be 128 or more",
            );
        }
        if self.max_fragmented_size < MIN_FRAGMENTED_SIZE {
            let value = self.max_fragmented_size;
            return illegal("MaxFragmentedSize", value, "must be 131072 or more");
        }
        if self.credits_granted == 0 {
            return illegal("CreditsGranted", 0, "must be above 0");
        }
        if self.credits_requested == 0 {
            return illegal("CreditsRequested", 0, "must be above 0");
        }
        if self.preferred_send_size > own_max_receive_size {
            let value = self.preferred_send_size;
            return illegal(
                "PreferredSendSize",
                value,
                "must not exceed the offered receive size",
            );
        }
        Ok(())
    }

    /// The wire form.
    pub fn emit(&self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        put_u16(&mut b, 0, self.min_version);
        put_u16(&mut b, 2, self.max_version);
        put_u16(&mut b, 4, self.negotiated_version);
        put_u16(&mut b, 8, self.credits_requested);
        put_u16(&mut b, 10, self.credits_granted);
        put_u32(&mut b, 12, self.status);
        put_u32(&mut b, 16, self.max_read_write_size);
        put_u32(&mut b, 20, self.preferred_send_size);
        put_u32(&mut b, 24, self.max_receive_size);
        put_u32(&mut b, 28, self.max_fragmented_size);
        b
    }
}

const PDU: &str = "Negotiate Response";

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: [u8; 32] = [
        0x00, 0x01, 0x00, 0x01, 0x00, 0x01, 0x00, 0x00, 0xff, 0x00, 0x0a, 0x00, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x80, 0x00, 0x54, 0x05, 0x00, 0x00, 0x00, 0x20, 0x00, 0x00, 0x00, 0x00,
        0x10, 0x00,
    ];
    const REPR: NegotiateResponse = NegotiateResponse {
        min_version: 0x0100,
        max_version: 0x0100,
        negotiated_version: 0x0100,
        credits_requested: 255,
        credits_granted: 10,
        status: 0,
        max_read_write_size: 8_388_608,
        preferred_send_size: 1364,
        max_receive_size: 8192,
        max_fragmented_size: 1_048_576,
    };

    #[test]
    fn parses_and_emits() {
        assert_eq!(NegotiateResponse::parse(&BYTES), Ok(REPR));
        assert_eq!(REPR.emit(), BYTES);
        assert_eq!(REPR.validate(1364), Ok(()));
    }

    #[test]
    fn failure_has_zeros() {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&[0, 1, 0, 1]);
        bytes[12..16].copy_from_slice(&[0xbb, 0, 0, 0xc0]);
        assert_eq!(
            NegotiateResponse::failure(status::NOT_SUPPORTED).emit(),
            bytes
        );
    }

    #[test]
    fn every_truncation_is_refused() {
        for got in 0..32 {
            assert_eq!(
                NegotiateResponse::parse(&BYTES[..got]),
                Err(ParseError::Truncated {
                    pdu: PDU,
                    needed: 32,
                    got
                })
            );
        }
    }

    #[test]
    fn illegal_values_are_named() {
        let cases = [
            (
                NegotiateResponse {
                    negotiated_version: 0x0101,
                    ..REPR
                },
                "NegotiatedVersion",
            ),
            (
                NegotiateResponse {
                    status: status::NOT_SUPPORTED,
                    ..REPR
                },
                "Status",
            ),
            (
                NegotiateResponse {
                    max_receive_size: 127,
                    ..REPR
                },
                "MaxReceiveSize",
            ),
            (
                NegotiateResponse {
                    max_fragmented_size: 131_071,
                    ..REPR
                },
                "MaxFragmentedSize",
            ),
            (
                NegotiateResponse {
                    credits_granted: 0,
                    ..REPR
                },
                "CreditsGranted",
            ),
            (
                NegotiateResponse {
                    credits_requested: 0,
                    ..REPR
                },
                "CreditsRequested",
            ),
            (
                NegotiateResponse {
                    preferred_send_size: 1365,
                    ..REPR
                },
                "PreferredSendSize",
            ),
        ];
        for (repr, name) in cases {
            match repr.validate(1364) {
                Err(ParseError::Illegal { field, .. }) => assert_eq!(field, name),
                other => panic!("{name}: {other:?}"),
            }
        }
        // Min and max version of a response are not checked, [MS-SMBD] 3.1.5.7.
        let odd = NegotiateResponse {
            min_version: 7,
            max_version: 3,
            ..REPR
        };
        assert_eq!(odd.validate(1364), Ok(()));
    }

    #[test]
    fn huge_sizes_are_legal() {
        let top = NegotiateResponse {
            credits_granted: u16::MAX,
            max_receive_size: u32::MAX,
            max_fragmented_size: u32::MAX,
            max_read_write_size: u32::MAX,
            ..REPR
        };
        assert_eq!(top.validate(1364), Ok(()));
        assert_eq!(NegotiateResponse::parse(&top.emit()), Ok(top));
    }
}
