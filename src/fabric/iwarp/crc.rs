//! CRC-32C over frames (RFC 5044 section 4.4), also where their payload lies in shared memory.

use crc_fast::{CrcAlgorithm, Digest};

use crate::mem::{MemError, MemSlice};

/// Room for copies of shared memory. Fits the L1 cache beside what else is in use.
pub(super) type Chunk = Box<[u8; 8 << 10]>;

/// A chunk to keep.
pub(super) fn chunk() -> Chunk {
    Box::new([0; 8 << 10])
}

/// Goes on with `crc` over plain bytes.
pub(super) fn append(crc: u32, bytes: &[u8]) -> u32 {
    // The register starts with all bits set and is inverted at the end, so the register behind
    // some bytes is the inverted CRC of them.
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!crc));
    digest.update(bytes);
    !(digest.get_state() as u32)
}

/// Goes on with `crc` over memory that others may change: no reference into it is made, it is
/// copied a piece at a time and the copy is taken.
pub(super) fn append_mem(
    mut crc: u32,
    memory: &MemSlice,
    mut offset: usize,
    mut len: usize,
    chunk: &mut Chunk,
) -> Result<u32, MemError> {
    while len > 0 {
        let n = len.min(chunk.len());
        let bytes = &mut chunk[..n];
        memory.read(offset, bytes)?;
        crc = append(crc, bytes);
        offset += n;
        len -= n;
    }
    Ok(crc)
}

/// The value as it stands on the wire.
pub(super) fn to_wire(crc: u32) -> [u8; 4] {
    crc.to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 5044 section 4.4 by its polynomial, a bit at a time.
    fn by_bits(crc: u32, bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!crc, |mut register, byte| {
            register ^= u32::from(*byte);
            for _ in 0..8 {
                let low = register & 1;
                register = (register >> 1) ^ (low * 0x82F6_3B78);
            }
            register
        })
    }

    #[test]
    fn every_length_and_split() {
        let bytes: Vec<u8> = (0..1200u32).map(|i| ((i * i) >> 5) as u8).collect();
        for len in 0..bytes.len() {
            let whole = by_bits(0, &bytes[..len]);
            assert_eq!(append(0, &bytes[..len]), whole, "{len} bytes");
            let (front, back) = bytes[..len].split_at(len * 3 / 7);
            assert_eq!(append(append(0, front), back), whole, "{len} bytes, split");
        }
        let long: Vec<u8> = bytes.repeat(80);
        assert_eq!(append(7, &long[1..]), by_bits(7, &long[1..]));
    }

    #[test]
    fn known_value() {
        let crc = append(append(0, b"1234"), b"56789");
        assert_eq!(to_wire(crc), [0x83, 0x92, 0x06, 0xE3]);
        let bytes: Vec<u8> = (0..50_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
        let memory = MemSlice::from_bytes(&bytes).unwrap();
        assert_eq!(
            append_mem(5, &memory, 3, 40_000, &mut chunk()).unwrap(),
            append(5, &bytes[3..40_003])
        );
        assert!(append_mem(0, &memory, 3, 50_000, &mut chunk()).is_err());
    }
}
