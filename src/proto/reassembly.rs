//! Checks that received segments form upper-layer messages: `[MS-SMBD] 3.1.5.8`, last part.
//!
//! Nothing is copied together here: each piece goes to the upper layer as it is.

use super::event::ViolationError;
use crate::wire::DataTransfer;

/// Where we are in the upper-layer message being received.
#[derive(Debug, Clone, Default)]
pub(super) struct Reassembly {
    /// Bytes still to come; 0 between messages.
    outstanding: u32,
    /// A piece of the current message has been delivered.
    has_delivered: bool,
    /// A token invalidated since the last piece delivered, waiting for the next.
    token: Option<u32>,
    /// A token has come with the current message.
    has_token: bool,
}

/// A piece for the upper layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) first: bool,
    pub(super) last: bool,
    pub(super) invalidated: Option<u32>,
}

impl Reassembly {
    /// Takes the header of a segment that passed [`DataTransfer::validate`]. `None` when it
    /// carries nothing for the upper layer.
    pub(super) fn on_segment(
        &mut self,
        header: &DataTransfer,
        invalidated: Option<u32>,
    ) -> Result<Option<Piece>, ViolationError> {
        let DataTransfer {
            data_length,
            remaining_data_length,
            ..
        } = *header;
        if let Some(token) = invalidated {
            if self.has_token {
                return Err(ViolationError::SecondInvalidate { token });
            }
            self.has_token = true;
            self.token = invalidated;
        }
        if data_length == 0 && remaining_data_length == 0 {
            // Control only, between messages or inside one.
            return Ok(None);
        }
        if self.outstanding > 0 {
            let outstanding = self.outstanding;
            let expected =
                outstanding
                    .checked_sub(data_length)
                    .ok_or(ViolationError::DataBeyondMessage {
                        data_length,
                        outstanding,
                    })?;
            if remaining_data_length != expected {
                return Err(ViolationError::WrongRemaining {
                    remaining_data_length,
                    expected,
                });
            }
        }
        self.outstanding = remaining_data_length;
        if data_length == 0 {
            return Ok(None);
        }
        let piece = Piece {
            first: !self.has_delivered,
            last: remaining_data_length == 0,
            invalidated: self.token.take(),
        };
        self.has_delivered = !piece.last;
        if piece.last {
            self.has_token = false;
        }
        Ok(Some(piece))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(data_length: u32, remaining_data_length: u32) -> DataTransfer {
        DataTransfer {
            data_length,
            remaining_data_length,
            ..DataTransfer::default()
        }
    }

    fn piece(first: bool, last: bool) -> Result<Option<Piece>, ViolationError> {
        Ok(Some(Piece {
            first,
            last,
            invalidated: None,
        }))
    }

    #[test]
    fn whole_messages_and_fragments() {
        let mut r = Reassembly::default();
        assert_eq!(r.on_segment(&segment(10, 0), None), piece(true, true));
        assert_eq!(r.on_segment(&segment(10, 15), None), piece(true, false));
        assert_eq!(
            r.on_segment(&segment(0, 0), None),
            Ok(None),
            "control inside a message"
        );
        assert_eq!(r.on_segment(&segment(5, 10), None), piece(false, false));
        assert_eq!(
            r.on_segment(&segment(0, 10), None),
            Ok(None),
            "empty segment"
        );
        assert_eq!(r.on_segment(&segment(10, 0), None), piece(false, true));
        assert_eq!(
            r.on_segment(&segment(0, 7), None),
            Ok(None),
            "empty first segment"
        );
        assert_eq!(r.on_segment(&segment(7, 0), None), piece(true, true));
    }

    #[test]
    fn disagreeing_segments_are_refused() {
        let started = || {
            let mut r = Reassembly::default();
            assert_eq!(r.on_segment(&segment(10, 100), None), piece(true, false));
            r
        };
        let wrong = |remaining_data_length, expected| {
            Err(ViolationError::WrongRemaining {
                remaining_data_length,
                expected,
            })
        };
        assert_eq!(started().on_segment(&segment(10, 0), None), wrong(0, 90));
        assert_eq!(started().on_segment(&segment(10, 91), None), wrong(91, 90));
        assert_eq!(started().on_segment(&segment(0, 99), None), wrong(99, 100));
        assert_eq!(
            started().on_segment(&segment(101, 0), None),
            Err(ViolationError::DataBeyondMessage {
                data_length: 101,
                outstanding: 100
            })
        );
    }

    #[test]
    fn tokens_go_with_the_next_piece() {
        let mut r = Reassembly::default();
        let token = |r: Result<Option<Piece>, _>| r.map(|p| p.and_then(|p| p.invalidated));
        assert_eq!(token(r.on_segment(&segment(1, 1), Some(7))), Ok(Some(7)));
        assert_eq!(token(r.on_segment(&segment(1, 0), None)), Ok(None));
        assert_eq!(token(r.on_segment(&segment(0, 2), Some(8))), Ok(None));
        assert_eq!(token(r.on_segment(&segment(1, 1), None)), Ok(Some(8)));
        assert_eq!(
            r.on_segment(&segment(1, 0), Some(9)),
            Err(ViolationError::SecondInvalidate { token: 9 })
        );
    }
}
