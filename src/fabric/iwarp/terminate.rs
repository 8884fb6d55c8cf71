//! Terminate messages and their codes (RFC 5040 section 4.8, RFC 5041 section 7, RFC 5044 section
//! 8, RFC 6581 section 8).

use std::fmt;

use super::ddp::{READ_REQUEST_LEN, UNTAGGED_LEN};

/// Layer, error type and error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Code {
    pub(super) layer: u8,
    pub(super) kind: u8,
    pub(super) code: u8,
}

const fn code(layer: u8, kind: u8, code: u8) -> Code {
    Code { layer, kind, code }
}

impl Code {
    pub(super) const READ_INVALID_TOKEN: Self = code(0, 1, 0);
    pub(super) const READ_BOUNDS: Self = code(0, 1, 1);
    pub(super) const ACCESS: Self = code(0, 1, 2);
    pub(super) const READ_WRAP: Self = code(0, 1, 4);
    pub(super) const CANNOT_INVALIDATE: Self = code(0, 1, 9);
    pub(super) const RDMAP_VERSION: Self = code(0, 2, 5);
    pub(super) const UNEXPECTED_OPCODE: Self = code(0, 2, 6);
    pub(super) const STREAM_CATASTROPHIC: Self = code(0, 2, 7);
    pub(super) const TAGGED_INVALID_TOKEN: Self = code(1, 1, 0);
    pub(super) const TAGGED_BOUNDS: Self = code(1, 1, 1);
    pub(super) const TAGGED_WRAP: Self = code(1, 1, 3);
    pub(super) const TAGGED_DDP_VERSION: Self = code(1, 1, 4);
    pub(super) const INVALID_QUEUE: Self = code(1, 2, 1);
    pub(super) const NO_BUFFER: Self = code(1, 2, 2);
    pub(super) const MSN_RANGE: Self = code(1, 2, 3);
    pub(super) const INVALID_OFFSET: Self = code(1, 2, 4);
    pub(super) const TOO_LONG: Self = code(1, 2, 5);
    pub(super) const UNTAGGED_DDP_VERSION: Self = code(1, 2, 6);
    pub(super) const CRC: Self = code(2, 0, 2);
    pub(super) const LENGTH_MISMATCH: Self = code(2, 0, 3);
    pub(super) const INSUFFICIENT_IRD: Self = code(2, 0, 6);
    pub(super) const NO_MATCHING_RTR: Self = code(2, 0, 7);

    /// What the RFCs call it; `None` for a triple that they do not have.
    fn meaning(self) -> Option<&'static str> {
        Some(match (self.layer, self.kind, self.code) {
            (0, 0, _) => "RDMAP local catastrophic error",
            (0, 1, 0) => "RDMAP invalid STag",
            (0, 1, 1) => "RDMAP base or bounds violation",
            (0, 1, 2) => "RDMAP access rights violation",
            (0, 1, 3) => "RDMAP STag not associated with the stream",
            (0, 1, 4) => "RDMAP TO wrap",
            (0, 1 | 2, 9) => "RDMAP STag cannot be invalidated",
            (0, 1, 0xFF) => "RDMAP unspecified protection error",
            (0, 2, 5) => "RDMAP invalid version",
            (0, 2, 6) => "RDMAP unexpected opcode",
            (0, 2, 7) => "RDMAP catastrophic error of the stream",
            (0, 2, 8) => "RDMAP catastrophic error of the adapter",
            (0, 2, 0xFF) => "RDMAP unspecified operation error",
            (1, 0, _) => "DDP local catastrophic error",
            (1, 1, 0) => "DDP invalid STag",
            (1, 1, 1) => "DDP base or bounds violation",
            (1, 1, 2) => "DDP STag not associated with the stream",
            (1, 1, 3) => "DDP TO wrap",
            (1, 1, 4) | (1, 2, 6) => "DDP invalid version",
            (1, 2, 1) => "DDP invalid queue number",
            (1, 2, 2) => "DDP no buffer for the message",
            (1, 2, 3) => "DDP MSN out of range",
            (1, 2, 4) => "DDP invalid message offset",
            (1, 2, 5) => "DDP message too long for its buffer",
            (2, 0, 1) => "MPA connection lost",
            (2, 0, 2) => "MPA CRC error",
            (2, 0, 3) => "MPA length mismatch",
            (2, 0, 4) => "MPA bad Request or Reply",
            (2, 0, 5) => "MPA local catastrophic error",
            (2, 0, 6) => "MPA insufficient IRD",
            (2, 0, 7) => "MPA no matching RTR",
            _ => return None,
        })
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let meaning = self.meaning().unwrap_or("unknown");
        write!(
            f,
            "layer {}, type {}, code {:#04x}: {meaning}",
            self.layer, self.kind, self.code
        )
    }
}

/// The most bytes of a Terminate body that have a meaning: control, segment length, DDP header,
/// Read Request header.
pub(super) const MAX_BODY: usize = 4 + 2 + UNTAGGED_LEN + READ_REQUEST_LEN;

/// The body of a Terminate that we send. `segment` is the ULPDU that was wrong: its length and
/// header; `request` the Read Request in it.
pub(super) fn emit(code: Code, segment: Option<(u16, &[u8])>, request: Option<&[u8]>) -> Vec<u8> {
    let mut flags = 0;
    if segment.is_some() {
        flags |= 0xC0;
        if request.is_some() {
            flags |= 0x20;
        }
    }
    let mut body = Vec::with_capacity(MAX_BODY);
    body.extend_from_slice(&[code.layer << 4 | code.kind & 0x0F, code.code, flags, 0]);
    if let Some((len, header)) = segment {
        body.extend_from_slice(&len.to_be_bytes());
        body.extend_from_slice(header);
        body.extend_from_slice(request.unwrap_or_default());
    }
    body
}

/// A Terminate that came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Received {
    /// What it says, as well as that can be told.
    pub(super) code: Code,
    /// The bit fields are in the order of a little-endian host (Linux siw), not the RFC's.
    pub(super) swapped: bool,
    /// The body, for the log.
    raw: Vec<u8>,
}

impl Received {
    /// Never fails: whatever a peer says last, we take note of it. Linux siw on a little-endian
    /// host swaps the nibbles of the first byte and has the M, D and R flags in the low bits of
    /// the third; where the flags tell nothing, the reading that the RFCs know is taken, the
    /// RFC's own order first.
    pub(super) fn parse(body: &[u8]) -> Self {
        let at = |index| body.get(index).copied().unwrap_or(0);
        let (high, low) = (at(0) >> 4, at(0) & 0x0F);
        let plain = code(high, low, at(1));
        let other = code(low, high, at(1));
        let swapped = match (at(2) & 0xE0, at(2) & 0x07) {
            (0, 1..) => true,
            (1.., 0) => false,
            _ => plain.meaning().is_none() && other.meaning().is_some(),
        };
        Self {
            code: if swapped { other } else { plain },
            swapped,
            raw: body.to_vec(),
        }
    }

    /// Whether it refuses access to memory.
    pub(super) fn is_protection(&self) -> bool {
        matches!((self.code.layer, self.code.kind), (0, 1) | (1, 1))
    }
}

impl fmt::Display for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if self.swapped {
            write!(f, " (bit fields in the order of a little-endian host)")?;
        }
        write!(f, "; raw {:02x?}", self.raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emits_the_rfc_order() {
        assert_eq!(emit(Code::CRC, None, None), [0x20, 2, 0, 0]);
        let header = [0xC1, 0x40, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2];
        let body = emit(Code::TAGGED_BOUNDS, Some((20, &header)), None);
        assert_eq!(body[..6], [0x11, 1, 0xC0, 0, 0, 20]);
        assert_eq!(body[6..], header);
        let body = emit(Code::ACCESS, Some((46, &[0; 18])), Some(&[7; 28]));
        assert_eq!(body.len(), MAX_BODY);
        assert_eq!(body[..4], [0x01, 2, 0xE0, 0]);
    }

    #[test]
    fn parses_both_orders() {
        let rfc = Received::parse(&[0x12, 2, 0xC0, 0]);
        assert_eq!((rfc.code, rfc.swapped), (Code::NO_BUFFER, false));
        let siw = Received::parse(&[0x21, 2, 0x03, 0]);
        assert_eq!((siw.code, siw.swapped), (Code::NO_BUFFER, true));
        // Without flags the known reading wins: 2/0/2 is a CRC error, 0/2/2 is nothing.
        let crc = Received::parse(&[0x20, 2, 0, 0]);
        assert_eq!((crc.code, crc.swapped), (Code::CRC, false));
        let crc = Received::parse(&[0x02, 2, 0, 0]);
        assert_eq!((crc.code, crc.swapped), (Code::CRC, true));
        assert_eq!(Received::parse(&[]).code, code(0, 0, 0));
        assert!(Received::parse(&[0xFF, 0xFF])
            .to_string()
            .contains("[ff, ff]"));
        assert!(Received::parse(&[0x01, 0, 0xE0]).is_protection());
    }
}
