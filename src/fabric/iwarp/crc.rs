//! CRC-32C over frames (RFC 5044 section 4.4), also where their payload lies in shared memory.

use crate::mem::{MemError, MemSlice};

/// Room for copies of shared memory. Fits the L1 cache beside what else is in use.
pub(super) type Chunk = Box<[u8; 8 << 10]>;

/// A chunk to keep.
pub(super) fn chunk() -> Chunk {
    Box::new([0; 8 << 10])
}

/// Goes on with `crc` over plain bytes.
pub(super) fn append(crc: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, bytes)
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
