//! Bytes as choices. When they are used up, every choice is the first one.

use arbitrary::Unstructured;

pub(crate) struct Input<'a>(Unstructured<'a>);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(Unstructured::new(bytes))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A number below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0.int_in_range(0..=limit - 1).unwrap_or(0)
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.below(2) == 1
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.0.arbitrary().unwrap_or(0)
    }

    pub(crate) fn u16(&mut self) -> u16 {
        self.0.arbitrary().unwrap_or(0)
    }

    pub(crate) fn u32(&mut self) -> u32 {
        self.0.arbitrary().unwrap_or(0)
    }

    pub(crate) fn u64(&mut self) -> u64 {
        self.0.arbitrary().unwrap_or(0)
    }

    /// At most `limit` bytes as they stand.
    pub(crate) fn bytes(&mut self, limit: usize) -> &'a [u8] {
        let length = self.below(limit + 1).min(self.0.len());
        self.0.bytes(length).unwrap_or_default()
    }

    /// All that is left.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.0.take_rest()
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        self.0.arbitrary().unwrap_or([0; N])
    }

    /// A value near a border, or any.
    pub(crate) fn odd_u32(&mut self) -> u32 {
        match self.below(6) {
            0 => self.pick(&[0, 1, 2, 3, 4, 7, 8, 16, 24, 32]),
            1 => self.pick(&[63, 64, 127, 128, 255, 256, 1024, 4095, 4096]),
            2 => self.pick(&[65535, 65536, 131_072, 1 << 20, 1 << 31]),
            3 => u32::MAX - self.below(16) as u32,
            4 => self.u16().into(),
            _ => self.u32(),
        }
    }
}

/// `length` bytes that tell where they are.
pub(crate) fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed) ^ (at >> 8) as u8)
        .collect()
}
