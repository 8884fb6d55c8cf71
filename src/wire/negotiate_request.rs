//! The Negotiate Request, `[MS-SMBD] 2.2.1`: the first message, from the active side.

use super::{fixed_part, put_u16, put_u32, u16_at, u32_at, ParseError};
use super::{MIN_FRAGMENTED_SIZE, MIN_MESSAGE_SIZE, VERSION};

/// A Negotiate Request, host order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NegotiateRequest {
    /// Lowest version the sender speaks.
    pub min_version: u16,
    /// Highest version the sender speaks.
    pub max_version: u16,
    /// Send credits the sender wants (its SendCreditTarget).
    pub credits_requested: u16,
    /// Longest message the sender would like to send, bytes. Any value is legal.
    pub preferred_send_size: u32,
    /// Longest message the sender can receive, bytes.
    pub max_receive_size: u32,
    /// Longest upper-layer message the sender can reassemble, bytes.
    pub max_fragmented_size: u32,
}

impl NegotiateRequest {
    /// Size on the wire, bytes.
    pub const LEN: usize = 20;

    /// Reads the fields. Bytes past the 20 are ignored.
    ///
    /// # Errors
    /// `Truncated` below 20 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let b = fixed_part::<{ Self::LEN }>(PDU, bytes)?;
        Ok(Self {
            min_version: u16_at(b, 0),
            max_version: u16_at(b, 2),
            credits_requested: u16_at(b, 6),
            preferred_send_size: u32_at(b, 8),
            max_receive_size: u32_at(b, 12),
            max_fragmented_size: u32_at(b, 16),
        })
    }

    /// True when the version range contains 0x0100. Checked before [`validate`](Self::validate),
    /// because it is the one fault that is answered (`[MS-SMBD] 3.1.5.6`).
    pub fn covers_version(&self) -> bool {
        self.min_version <= VERSION && VERSION <= self.max_version
    }

    /// Applies the field rules of `[MS-SMBD] 3.1.5.6` that end the connection, in its order.
    ///
    /// # Errors
    /// `Illegal` names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ParseError> {
        let illegal = |field, value, rule| {
            Err(ParseError::Illegal {
                pdu: PDU,
                field,
                value,
                rule,
            })
        };
        if self.credits_requested == 0 {
            return illegal("CreditsRequested", 0, "must be above 0");
        }
        if self.max_receive_size < MIN_MESSAGE_SIZE {
            return illegal(
                "MaxReceiveSize",
                self.max_receive_size.into(),
                "must be 128 or more",
            );
        }
        if self.max_fragmented_size < MIN_FRAGMENTED_SIZE {
            let value = self.max_fragmented_size.into();
            return illegal("MaxFragmentedSize", value, "must be 131072 or more");
        }
        Ok(())
    }

    /// The wire form.
    pub fn emit(&self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        put_u16(&mut b, 0, self.min_version);
        put_u16(&mut b, 2, self.max_version);
        put_u16(&mut b, 6, self.credits_requested);
        put_u32(&mut b, 8, self.preferred_send_size);
        put_u32(&mut b, 12, self.max_receive_size);
        put_u32(&mut b, 16, self.max_fragmented_size);
        b
    }
}

const PDU: &str = "Negotiate Request";

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: [u8; 20] = [
        0x00, 0x01, 0x00, 0x01, 0x00, 0x00, 0x0a, 0x00, 0x00, 0x04, 0x00, 0x00, 0x00, 0x08, 0x00,
        0x00, 0x00, 0x00, 0x02, 0x00,
    ];
    const REPR: NegotiateRequest = NegotiateRequest {
        min_version: 0x0100,
        max_version: 0x0100,
        credits_requested: 10,
        preferred_send_size: 1024,
        max_receive_size: 2048,
        max_fragmented_size: 131_072,
    };

    #[test]
    fn parses_and_emits() {
        assert_eq!(NegotiateRequest::parse(&BYTES), Ok(REPR));
        assert_eq!(REPR.emit(), BYTES);
        assert_eq!(REPR.validate(), Ok(()));
        assert!(REPR.covers_version());
    }

    #[test]
    fn every_truncation_is_refused() {
        for got in 0..20 {
            assert_eq!(
                NegotiateRequest::parse(&BYTES[..got]),
                Err(ParseError::Truncated {
                    pdu: PDU,
                    needed: 20,
                    got
                })
            );
        }
    }

    #[test]
    fn reserved_and_trailing_bytes_are_ignored() {
        let mut long = [0xff; 512];
        long[..20].copy_from_slice(&BYTES);
        long[4] = 0xff;
        long[5] = 0xff;
        assert_eq!(NegotiateRequest::parse(&long), Ok(REPR));
    }

    #[test]
    fn illegal_values_are_named() {
        let field = |r: NegotiateRequest| match r.validate() {
            Err(ParseError::Illegal { field, value, .. }) => Some((field, value)),
            _ => None,
        };
        let r = NegotiateRequest {
            credits_requested: 0,
            ..REPR
        };
        assert_eq!(field(r), Some(("CreditsRequested", 0)));
        let r = NegotiateRequest {
            max_receive_size: 127,
            ..REPR
        };
        assert_eq!(field(r), Some(("MaxReceiveSize", 127)));
        let r = NegotiateRequest {
            max_fragmented_size: 131_071,
            ..REPR
        };
        assert_eq!(field(r), Some(("MaxFragmentedSize", 131_071)));
        let limits = NegotiateRequest {
            credits_requested: 1,
            preferred_send_size: 0,
            max_receive_size: 128,
            ..REPR
        };
        assert_eq!(limits.validate(), Ok(()));
        let top = NegotiateRequest {
            credits_requested: u16::MAX,
            preferred_send_size: u32::MAX,
            max_receive_size: u32::MAX,
            max_fragmented_size: u32::MAX,
            ..REPR
        };
        assert_eq!(top.validate(), Ok(()));
    }

    #[test]
    fn version_range() {
        let covers = |min_version, max_version| {
            NegotiateRequest {
                min_version,
                max_version,
                ..REPR
            }
            .covers_version()
        };
        assert!(covers(0, 0x0100));
        assert!(covers(0x0100, 0xffff));
        assert!(covers(0x00ff, 0x0101));
        assert!(!covers(0x0101, 0xffff));
        assert!(!covers(0, 0x00ff));
        assert!(!covers(0xffff, 0), "an empty range");
    }
}
