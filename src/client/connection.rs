#![forbid(unsafe_code)]
//! A connection of a handle, and PDUs being put together.

use std::collections::VecDeque;

use super::error::ClientError;
use crate::mem::Region;
use crate::ring::{flags, ConnectionRecord, CqEntry, Layout};

/// What a handle knows of a connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// The values that do not change.
    pub(super) record: ConnectionRecord,
    /// Its Attached entry has come, or its accept was answered.
    pub(super) is_attached: bool,
    /// smbd_disconnect was called, or its Disconnected entry has come: nothing can be sent.
    pub(super) is_ending: bool,
    /// Its Disconnected entry has come (its event may not have been taken yet).
    pub(super) has_ended: bool,
    /// smbd_set_receive has stopped it.
    pub(super) is_stopped: bool,
    /// smbd_export has made a token.
    pub(super) is_exported: bool,
    /// Token to invalidate with the next PDU.
    pub(super) next_invalidate: Option<u32>,
    /// The PDU of which some fragments are here.
    pub(super) partial: Option<Partial>,
    /// Complete PDUs, while it is stopped.
    pub(super) waiting: VecDeque<Pdu>,
}

/// A piece of a receive slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlotPart {
    /// The slot.
    pub(super) slot: u32,
    /// Where the piece starts, from the start of the area.
    offset: usize,
    /// Its bytes.
    len: usize,
}

/// A PDU of which fragments are missing.
#[derive(Debug)]
pub(super) struct Partial {
    body: Body,
    /// Bytes here.
    len: usize,
    /// Bytes that must still come.
    remaining: u32,
    flags: u16,
    token: u32,
}

/// A complete upper-layer PDU.
#[derive(Debug)]
pub struct Pdu {
    pub(super) connection: u64,
    pub(super) body: Body,
    pub(super) len: usize,
    pub(super) flags: u16,
    pub(super) token: u32,
}

/// Where the bytes of a PDU are.
#[derive(Debug)]
pub(super) enum Body {
    /// In one receive slot.
    One(SlotPart),
    /// In several.
    Many(Vec<SlotPart>),
    /// In memory of our own.
    Heap(Vec<u8>),
}

/// Reads the bytes of a PDU.
#[derive(Debug, Clone, Copy)]
pub struct PduBytes<'a> {
    pub(super) pdu: &'a Pdu,
    pub(super) region: &'a Region,
}

/// One piece of a PDU.
#[derive(Debug, Clone, Copy)]
pub enum Piece<'a> {
    /// In the shared area.
    Shared {
        /// The area.
        region: &'a Region,
        /// Where it starts there.
        offset: usize,
        /// Bytes.
        len: usize,
    },
    /// In plain memory.
    Heap(&'a [u8]),
}

impl Connection {
    pub(super) fn new(record: ConnectionRecord) -> Self {
        Self {
            record,
            is_attached: false,
            is_ending: false,
            has_ended: false,
            is_stopped: false,
            is_exported: false,
            next_invalidate: None,
            partial: None,
            waiting: VecDeque::new(),
        }
    }

    /// Whether something can be sent.
    pub(super) fn can_send(&self) -> bool {
        self.is_attached && !self.is_ending
    }

    /// Takes a fragment. `returned` gets slots that are not needed any more; the result is the PDU
    /// that it completes.
    ///
    /// Fragments stay in their slots, to be copied once, while that costs the connection no more
    /// than half of its credits and the handle no more than an eighth of its slots: a peer must not
    /// run dry before its PDU is complete. Beyond that they are gathered on the heap.
    pub(super) fn on_fragment(
        &mut self,
        entry: &CqEntry,
        layout: &Layout,
        region: &Region,
        returned: &mut Vec<u32>,
    ) -> Result<Option<Pdu>, ClientError> {
        let part = SlotPart::new(entry, layout)?;
        let total_so_far = self.partial.as_ref().map_or(0, |partial| partial.len);
        let expected = self.partial.as_ref().map(|partial| partial.remaining);
        let claimed = u64::from(entry.data_length) + u64::from(entry.remaining);
        let limit = u64::from(self.record.max_fragmented_receive_size);
        // [MS-SMBD] 3.1.5.8: the engine has refused PDUs above MaxFragmentedSize, and fragments
        // whose RemainingDataLength does not count down. This only guards the allocation.
        if expected.is_some_and(|expected| u64::from(expected) != claimed)
            || total_so_far as u64 + claimed > limit
        {
            return Err(ClientError::new(
                libc::EPROTO,
                format!("the engine delivered a PDU of {claimed} bytes more, the limit is {limit}"),
            ));
        }
        let partial = match &mut self.partial {
            Some(partial) => partial,
            None => {
                if entry.remaining == 0 {
                    return Ok(Some(Pdu {
                        connection: entry.connection,
                        body: Body::One(part),
                        len: part.len,
                        flags: entry.flags,
                        token: entry.token,
                    }));
                }
                self.partial.insert(Partial {
                    body: Body::Many(Vec::new()),
                    len: 0,
                    remaining: 0,
                    flags: 0,
                    token: 0,
                })
            }
        };
        let hold = (layout.options().receive_slots / 8).min(self.record.receive_credit_max / 2);
        partial.body.append(part, hold as usize, region, returned)?;
        partial.len += part.len;
        partial.remaining = entry.remaining;
        partial.flags |= entry.flags;
        if entry.flags & flags::INVALIDATED != 0 {
            partial.token = entry.token;
        }
        if partial.remaining > 0 {
            return Ok(None);
        }
        Ok(self.partial.take().map(|partial| Pdu {
            connection: entry.connection,
            body: partial.body,
            len: partial.len,
            flags: partial.flags,
            token: partial.token,
        }))
    }

    /// Drops all PDUs that wait here; `returned` gets their slots.
    pub(super) fn drop_pdus(&mut self, returned: &mut Vec<u32>) {
        if let Some(partial) = self.partial.take() {
            partial.body.slots(returned);
        }
        for pdu in self.waiting.drain(..) {
            pdu.body.slots(returned);
        }
    }
}

impl SlotPart {
    fn new(entry: &CqEntry, layout: &Layout) -> Result<Self, ClientError> {
        let size = layout.options().receive_slot_size;
        let end = entry.data_offset.checked_add(entry.data_length);
        match (layout.slot_offset(entry.slot), end) {
            (Some(start), Some(end)) if end <= size => Ok(Self {
                slot: entry.slot,
                offset: start as usize + entry.data_offset as usize,
                len: entry.data_length as usize,
            }),
            _ => Err(ClientError::new(
                libc::EPROTO,
                format!(
                    "the engine delivered {} bytes at {} of receive slot {} of {size} bytes",
                    entry.data_length, entry.data_offset, entry.slot
                ),
            )),
        }
    }
}

impl Body {
    /// Adds a piece; once more than `hold` slots would be held, all goes to the heap.
    fn append(
        &mut self,
        part: SlotPart,
        hold: usize,
        region: &Region,
        returned: &mut Vec<u32>,
    ) -> Result<(), ClientError> {
        let copy = |part: &SlotPart, to: &mut Vec<u8>| {
            let start = to.len();
            to.resize(start + part.len, 0);
            region
                .read(part.offset, &mut to[start..])
                .map_err(|error| ClientError::new(libc::EPROTO, error.to_string()))
        };
        match self {
            Self::Heap(bytes) => {
                copy(&part, bytes)?;
                returned.push(part.slot);
            }
            Self::Many(parts) if parts.len() < hold => parts.push(part),
            Self::Many(_) | Self::One(_) => {
                let mut bytes = Vec::new();
                for held in self.parts().iter().chain([&part]) {
                    copy(held, &mut bytes)?;
                    returned.push(held.slot);
                }
                *self = Self::Heap(bytes);
            }
        }
        Ok(())
    }

    fn parts(&self) -> &[SlotPart] {
        match self {
            Self::One(part) => std::slice::from_ref(part),
            Self::Many(parts) => parts,
            Self::Heap(_) => &[],
        }
    }

    /// Adds the slots it holds.
    pub(super) fn slots(&self, slots: &mut Vec<u32>) {
        slots.extend(self.parts().iter().map(|part| part.slot));
    }
}

impl<'a> PduBytes<'a> {
    /// Bytes of the PDU.
    pub fn len(&self) -> usize {
        self.pdu.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its pieces, in order.
    pub fn pieces(&self) -> impl Iterator<Item = Piece<'a>> {
        let region = self.region;
        let heap = match &self.pdu.body {
            Body::Heap(bytes) => Some(Piece::Heap(bytes)),
            _ => None,
        };
        let parts = self.pdu.body.parts().iter();
        heap.into_iter().chain(parts.map(move |part| Piece::Shared {
            region,
            offset: part.offset,
            len: part.len,
        }))
    }

    /// A copy of it.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len());
        for piece in self.pieces() {
            match piece {
                Piece::Heap(piece) => bytes.extend_from_slice(piece),
                Piece::Shared {
                    region,
                    offset,
                    len,
                } => {
                    let start = bytes.len();
                    bytes.resize(start + len, 0);
                    region
                        .read(offset, &mut bytes[start..])
                        .expect("`SlotPart::new` has checked the place");
                }
            }
        }
        bytes
    }
}
