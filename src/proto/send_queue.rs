//! The queue of upper-layer messages and their cutting into segments: `[MS-SMBD] 3.1.4.2`.

use std::collections::VecDeque;

/// SendQueue: messages in order, the front one perhaps sent in part.
#[derive(Debug)]
pub(super) struct SendQueue<M> {
    messages: VecDeque<Queued<M>>,
}

#[derive(Debug)]
struct Queued<M> {
    message: M,
    length: u32,
    /// Bytes sent.
    offset: u32,
    invalidate: Option<u32>,
}

/// The next segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Segment<M> {
    pub(super) message: M,
    pub(super) offset: u32,
    pub(super) length: u32,
    pub(super) remaining: u32,
    pub(super) invalidate: Option<u32>,
}

impl<M: Clone> SendQueue<M> {
    pub(super) fn new() -> Self {
        Self {
            messages: VecDeque::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Queues a message; `length` is above 0.
    pub(super) fn push(&mut self, message: M, length: u32, invalidate: Option<u32>) {
        self.messages.push_back(Queued {
            message,
            length,
            offset: 0,
            invalidate,
        });
    }

    /// Takes the next segment of at most `max_payload` bytes, which is above 0. The token goes
    /// with the first segment of its message, as Linux does (`[MS-SMBD] 3.1.5.4` wants exactly
    /// one segment to carry it).
    pub(super) fn next_segment(&mut self, max_payload: u32) -> Option<Segment<M>> {
        let front = self.messages.front_mut()?;
        let offset = front.offset;
        let left = front.length - offset;
        let invalidate = front.invalidate.take();
        if left <= max_payload {
            let message = self.messages.pop_front()?.message;
            return Some(Segment {
                message,
                offset,
                length: left,
                remaining: 0,
                invalidate,
            });
        }
        front.offset += max_payload;
        let message = front.message.clone();
        let remaining = left - max_payload;
        Some(Segment {
            message,
            offset,
            length: max_payload,
            remaining,
            invalidate,
        })
    }

    /// Takes a message back whose last segment has not been taken.
    pub(super) fn pop(&mut self) -> Option<M> {
        self.messages.pop_front().map(|queued| queued.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_in_order() {
        let mut q = SendQueue::new();
        q.push('a', 250, Some(5));
        q.push('b', 100, None);
        let mut got = Vec::new();
        while let Some(s) = q.next_segment(100) {
            got.push((s.message, s.offset, s.length, s.remaining, s.invalidate));
        }
        assert_eq!(
            got,
            [
                ('a', 0, 100, 150, Some(5)),
                ('a', 100, 100, 50, None),
                ('a', 200, 50, 0, None),
                ('b', 0, 100, 0, None),
            ]
        );
        assert!(q.is_empty());
    }

    #[test]
    fn the_longest_message_does_not_overflow() {
        let mut q = SendQueue::new();
        q.push((), u32::MAX, None);
        let first = q.next_segment(104).map(|s| (s.offset, s.remaining));
        assert_eq!(first, Some((0, u32::MAX - 104)));
        assert_eq!(q.len(), 1);
        assert_eq!(q.pop(), Some(()));
        assert_eq!(q.pop(), None);
    }
}
