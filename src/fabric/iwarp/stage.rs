//! Where frames wait for the socket: bytes of our own, and pieces of memory that stay where they
//! are.

use std::collections::VecDeque;

use crate::mem::{MemError, MemSlice};

/// Bytes of one stage: enough copied bytes for one large call, and a largest frame on top.
const STAGE_BYTES: usize = COPIED_TARGET + (66 << 10);
/// Copied bytes after which framing pauses. Measured on loopback with 1,442-byte ULPDUs: 512 KiB
/// needs 15 % less CPU than 256 KiB (fewer wake-ups of the receiver), 1 MiB no less.
const COPIED_TARGET: usize = 512 << 10;
/// Bytes to send, copied or named, after which framing pauses.
const UNSENT_TARGET: usize = 1 << 20;
/// Pieces after which framing pauses: a call takes 1,024.
const PIECES_TARGET: usize = 1000;
/// Stages that are kept for the next use.
const POOLED: usize = 8;

/// Where a piece lies.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    /// At this place of the stage.
    Staged(usize),
    /// In the memory of a queue entry.
    Item { number: u64, offset: usize },
}

/// A run of bytes to send.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) source: Source,
    pub(super) len: usize,
}

/// Frames that wait for the socket.
pub(super) struct Stage {
    bytes: Box<[u8]>,
    used: usize,
    pieces: VecDeque<Piece>,
    unsent: usize,
    /// Stream positions behind the frames that TCP did not take as a whole yet.
    pub(super) frame_ends: VecDeque<u64>,
}

impl Stage {
    fn new() -> Self {
        Self {
            bytes: vec![0; STAGE_BYTES].into_boxed_slice(),
            used: 0,
            pieces: VecDeque::new(),
            unsent: 0,
            frame_ends: VecDeque::new(),
        }
    }

    /// Whether another frame of any size fits.
    pub(super) fn has_room(&self) -> bool {
        self.used < COPIED_TARGET
            && self.unsent < UNSENT_TARGET
            && self.pieces.len() < PIECES_TARGET
    }

    /// Bytes of the stage in use.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    pub(super) fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.pieces.iter()
    }

    /// Staged bytes.
    pub(super) fn bytes(&self, at: usize, len: usize) -> &[u8] {
        // Only what `put` and `put_mem` handed out is asked for.
        &self.bytes[at..at + len]
    }

    /// Copies bytes in.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.used..self.used + bytes.len()].copy_from_slice(bytes);
        self.grew(bytes.len());
    }

    /// Copies memory in.
    pub(super) fn put_mem(
        &mut self,
        memory: &MemSlice,
        offset: usize,
        len: usize,
    ) -> Result<(), MemError> {
        memory.read(offset, &mut self.bytes[self.used..self.used + len])?;
        self.grew(len);
        Ok(())
    }

    fn grew(&mut self, len: usize) {
        if len == 0 {
            return;
        }
        let at = self.used;
        self.used += len;
        self.unsent += len;
        if let Some(Piece {
            source: Source::Staged(start),
            len: before,
        }) = self.pieces.back_mut()
        {
            if *start + *before == at {
                *before += len;
                return;
            }
        }
        self.pieces.push_back(Piece {
            source: Source::Staged(at),
            len,
        });
    }

    /// Names memory of a queue entry.
    pub(super) fn name(&mut self, number: u64, offset: usize, len: usize) {
        self.unsent += len;
        self.pieces.push_back(Piece {
            source: Source::Item { number, offset },
            len,
        });
    }

    /// `n` bytes have left.
    pub(super) fn take(&mut self, mut n: usize) {
        self.unsent = self.unsent.saturating_sub(n);
        while let Some(piece) = self.pieces.front_mut() {
            if n < piece.len {
                match &mut piece.source {
                    Source::Staged(at) => *at += n,
                    Source::Item { offset, .. } => *offset += n,
                }
                piece.len -= n;
                return;
            }
            n -= piece.len;
            self.pieces.pop_front();
        }
        // All has left: start at the front again.
        self.used = 0;
    }

    fn clear(&mut self) {
        self.used = 0;
        self.unsent = 0;
        self.pieces.clear();
        self.frame_ends.clear();
    }
}

/// Stages that are not in use.
#[derive(Default)]
pub(super) struct StagePool {
    // Boxed, so that a connection without one holds no more than a pointer.
    #[expect(clippy::vec_box)]
    stages: Vec<Box<Stage>>,
}

impl StagePool {
    pub(super) fn get(&mut self) -> Box<Stage> {
        self.stages.pop().unwrap_or_else(|| Box::new(Stage::new()))
    }

    pub(super) fn put(&mut self, mut stage: Box<Stage>) {
        if self.stages.len() < POOLED {
            stage.clear();
            self.stages.push(stage);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_across_pieces() {
        let mut stage = Stage::new();
        stage.put(b"head");
        stage.put(b"er");
        stage.name(9, 100, 50);
        stage.put(b"tail");
        assert_eq!(stage.pieces().count(), 3);
        stage.take(5);
        assert_eq!(stage.pieces().next().unwrap().len, 1);
        stage.take(11);
        let piece = stage.pieces().next().unwrap();
        assert!(matches!(
            piece.source,
            Source::Item {
                number: 9,
                offset: 110
            }
        ));
        assert_eq!(piece.len, 40);
        stage.take(44);
        assert_eq!(
            (stage.pieces().count(), stage.used(), stage.unsent),
            (0, 0, 0)
        );
    }

    #[test]
    fn a_largest_frame_always_fits() {
        let mut stage = Stage::new();
        let mut frames = 0;
        while stage.has_room() {
            stage.put(&[0; 65_532 + 6 + 3]);
            frames += 1;
        }
        assert!(frames >= 4);
    }
}
