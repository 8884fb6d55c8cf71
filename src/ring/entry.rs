#![forbid(unsafe_code)]
//! Entries of the rings: plain values here, eight 64-bit words in the area.

/// Bits of [`SqEntry::flags`] and [`CqEntry::flags`].
pub mod flags {
    /// SqOp::SendPdu: `token` goes with it as Send with Invalidate.
    pub const INVALIDATE: u16 = 0x1;
    /// SqOp::SendPdu, RdmaRead, RdmaWrite: the handle need not be woken for its success.
    pub const LAZY: u16 = 0x2;

    /// CqKind::Fragment: the peer has invalidated `token` with it.
    pub const INVALIDATED: u16 = 0x1;
    /// CqKind::Fragment: part of the NEGOTIATE request that the engine has answered.
    pub const NEGOTIATE_REQUEST: u16 = 0x2;
    /// CqKind::Fragment: part of the NEGOTIATE response that the engine has sent.
    pub const NEGOTIATE_RESPONSE: u16 = 0x4;
    /// CqKind::Attached: routed here by ClientGuid or session id.
    pub const ROUTED: u16 = 0x8;
    /// CqKind::Attached: made by Connect of this handle.
    pub const ACTIVE: u16 = 0x10;
}

/// The most segments of one RDMA operation.
pub const MAX_SEGMENTS: u32 = 1024;
/// The most descriptors of one RDMA operation.
pub const MAX_DESCRIPTORS: u32 = 65536;

/// What a handle asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum SqOp {
    /// Send `length` bytes at `offset` of the send area as one upper-layer PDU.
    SendPdu = 1,
    /// Read from the peer's memory: `segments` [`Segment`]s, then `descriptors` [`Descriptor`]s at
    /// `offset` of the send area, `length` bytes together.
    RdmaRead = 2,
    /// Write to the peer's memory, likewise.
    RdmaWrite = 3,
    /// End the connection after what was asked for before. Has no completion of its own.
    Disconnect = 4,
}

/// An entry of the submission ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SqEntry {
    /// What to do.
    pub op: SqOp,
    /// [`flags`].
    pub flags: u16,
    /// The peer's token to invalidate.
    pub token: u32,
    /// The connection.
    pub connection: u64,
    /// Comes back in the completion.
    pub cookie: u64,
    /// Where it starts, from the start of the area; inside the send area.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
    /// How many segments.
    pub segments: u32,
    /// How many descriptors.
    pub descriptors: u32,
}

/// What the engine tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum CqKind {
    /// `data_length` bytes of a PDU at `data_offset` of receive slot `slot`; `remaining` more bytes
    /// of the same PDU follow in later fragments. Lends the slot.
    Fragment = 1,
    /// The PDU `cookie` has left (or not: `status`). Its place in the send area is free.
    Sent = 2,
    /// The RDMA operation `cookie` has ended; `data_length` bytes were moved.
    RdmaDone = 3,
    /// A connection waits to be accepted with `key`.
    Offered = 4,
    /// The connection belongs to this handle; its record is complete.
    Attached = 5,
    /// The connection is gone; its last entry.
    Disconnected = 6,
}

/// An entry of the completion ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CqEntry {
    /// What happened.
    pub kind: CqKind,
    /// [`flags`].
    pub flags: u16,
    /// 0 or a negative errno.
    pub status: i32,
    /// The connection.
    pub connection: u64,
    /// That of the operation.
    pub cookie: u64,
    /// The receive slot.
    pub slot: u32,
    /// Where the data starts in the slot.
    pub data_offset: u32,
    /// Bytes of data.
    pub data_length: u32,
    /// Bytes of the same PDU that are still to come.
    pub remaining: u32,
    /// The token of ours that the peer invalidated.
    pub token: u32,
    /// Names an offer.
    pub key: [u8; 16],
}

/// A piece of the RDMA buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// From the start of the area.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// A piece of the peer's memory ([MS-SMBD] 2.2.3.1), host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Descriptor {
    /// Where it starts, in the peer's addressing.
    pub offset: u64,
    /// The peer's token.
    pub token: u32,
    /// Bytes.
    pub length: u32,
}

/// A value in an entry that no honest side writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryError {
    /// Which field.
    pub field: &'static str,
    /// Its value.
    pub value: u64,
}

impl std::fmt::Display for EntryError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a ring entry has {} {}", self.field, self.value)
    }
}

impl std::error::Error for EntryError {}

impl SqEntry {
    /// An entry of which only these fields matter.
    pub fn new(op: SqOp, connection: u64, cookie: u64) -> Self {
        Self {
            op,
            flags: 0,
            token: 0,
            connection,
            cookie,
            offset: 0,
            length: 0,
            segments: 0,
            descriptors: 0,
        }
    }

    pub(super) fn encode(&self) -> [u8; 64] {
        words([
            u64::from(self.op as u16) | u64::from(self.flags) << 16 | u64::from(self.token) << 32,
            self.connection,
            self.cookie,
            self.offset,
            pair(self.length, self.segments),
            self.descriptors.into(),
            0,
            0,
        ])
    }

    pub(super) fn decode(bytes: &[u8; 64]) -> Result<Self, EntryError> {
        let [first, connection, cookie, offset, lengths, descriptors, _, _] = split(bytes);
        let op = match low(first) & 0xffff {
            1 => SqOp::SendPdu,
            2 => SqOp::RdmaRead,
            3 => SqOp::RdmaWrite,
            4 => SqOp::Disconnect,
            other => {
                return Err(EntryError {
                    field: "operation",
                    value: other.into(),
                })
            }
        };
        let entry = Self {
            op,
            flags: (first >> 16) as u16,
            token: high(first),
            connection,
            cookie,
            offset,
            length: low(lengths),
            segments: high(lengths),
            descriptors: low(descriptors),
        };
        let refuse = |field, value: u32| {
            Err(EntryError {
                field,
                value: value.into(),
            })
        };
        if matches!(op, SqOp::RdmaRead | SqOp::RdmaWrite) {
            if !(1..=MAX_SEGMENTS).contains(&entry.segments) {
                return refuse("segment count", entry.segments);
            }
            if !(1..=MAX_DESCRIPTORS).contains(&entry.descriptors) {
                return refuse("descriptor count", entry.descriptors);
            }
            // At most 66,560 * 16 bytes.
            if entry.length != (entry.segments + entry.descriptors) * 16 {
                return refuse("length", entry.length);
            }
        }
        if op == SqOp::SendPdu && entry.length == 0 {
            return refuse("length", 0);
        }
        Ok(entry)
    }
}

impl CqEntry {
    /// An entry of which only these fields matter.
    pub fn new(kind: CqKind, connection: u64) -> Self {
        Self {
            kind,
            flags: 0,
            status: 0,
            connection,
            cookie: 0,
            slot: 0,
            data_offset: 0,
            data_length: 0,
            remaining: 0,
            token: 0,
            key: [0; 16],
        }
    }

    pub(super) fn encode(&self) -> [u8; 64] {
        let [a, b] = split(&self.key);
        words([
            u64::from(self.kind as u16)
                | u64::from(self.flags) << 16
                | u64::from(self.status as u32) << 32,
            self.connection,
            self.cookie,
            pair(self.slot, self.data_offset),
            pair(self.data_length, self.remaining),
            self.token.into(),
            a,
            b,
        ])
    }

    pub(super) fn decode(bytes: &[u8; 64]) -> Result<Self, EntryError> {
        let [first, connection, cookie, place, lengths, token, a, b] = split(bytes);
        let kind = match low(first) & 0xffff {
            1 => CqKind::Fragment,
            2 => CqKind::Sent,
            3 => CqKind::RdmaDone,
            4 => CqKind::Offered,
            5 => CqKind::Attached,
            6 => CqKind::Disconnected,
            other => {
                return Err(EntryError {
                    field: "kind",
                    value: other.into(),
                })
            }
        };
        Ok(Self {
            kind,
            flags: (first >> 16) as u16,
            status: high(first) as i32,
            connection,
            cookie,
            slot: low(place),
            data_offset: high(place),
            data_length: low(lengths),
            remaining: high(lengths),
            token: low(token),
            key: words([a, b]),
        })
    }
}

impl Segment {
    /// The form in the send area.
    pub fn encode(&self) -> [u8; 16] {
        words([self.offset, self.length])
    }

    pub(super) fn decode(bytes: &[u8; 16]) -> Self {
        let [offset, length] = split(bytes);
        Self { offset, length }
    }
}

impl Descriptor {
    /// The form in the send area.
    pub fn encode(&self) -> [u8; 16] {
        words([self.offset, pair(self.token, self.length)])
    }

    pub(super) fn decode(bytes: &[u8; 16]) -> Self {
        let [offset, rest] = split(bytes);
        Self {
            offset,
            token: low(rest),
            length: high(rest),
        }
    }
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn low(word: u64) -> u32 {
    word as u32
}

fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

/// `N` bytes as `W` words, N = 8 * W.
fn split<const N: usize, const W: usize>(bytes: &[u8; N]) -> [u64; W] {
    const { assert!(N == 8 * W) };
    let mut out = [0; W];
    for (word, chunk) in out.iter_mut().zip(bytes.chunks_exact(8)) {
        let mut eight = [0; 8];
        eight.copy_from_slice(chunk);
        *word = u64::from_ne_bytes(eight);
    }
    out
}

/// `W` words as `N` bytes, N = 8 * W.
fn words<const N: usize, const W: usize>(words: [u64; W]) -> [u8; N] {
    const { assert!(N == 8 * W) };
    let mut out = [0; N];
    for (chunk, word) in out.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_the_area() {
        let sq = SqEntry {
            op: SqOp::RdmaWrite,
            flags: 0xabcd,
            token: 0x1234_5678,
            connection: u64::MAX - 1,
            cookie: 77,
            offset: 1 << 40,
            length: 5 * 16,
            segments: 2,
            descriptors: 3,
        };
        assert_eq!(SqEntry::decode(&sq.encode()), Ok(sq));
        let cq = CqEntry {
            kind: CqKind::Fragment,
            flags: flags::INVALIDATED,
            status: -104,
            connection: 3,
            cookie: u64::MAX,
            slot: 1,
            data_offset: 24,
            data_length: 3,
            remaining: u32::MAX,
            token: 9,
            key: *b"0123456789abcdef",
        };
        assert_eq!(CqEntry::decode(&cq.encode()), Ok(cq));
        let segment = Segment {
            offset: 1,
            length: 2,
        };
        assert_eq!(Segment::decode(&segment.encode()), segment);
        let descriptor = Descriptor {
            offset: 1,
            token: 2,
            length: 3,
        };
        assert_eq!(Descriptor::decode(&descriptor.encode()), descriptor);
    }

    #[test]
    fn impossible_entries_are_refused() {
        let refused = |entry: SqEntry| SqEntry::decode(&entry.encode()).unwrap_err().field;
        let rdma = SqEntry {
            length: 32,
            segments: 1,
            descriptors: 1,
            ..SqEntry::new(SqOp::RdmaRead, 1, 1)
        };
        assert!(SqEntry::decode(&rdma.encode()).is_ok());
        let many = MAX_SEGMENTS + 1;
        assert_eq!(
            refused(SqEntry {
                segments: 0,
                ..rdma
            }),
            "segment count"
        );
        assert_eq!(
            refused(SqEntry {
                segments: many,
                ..rdma
            }),
            "segment count"
        );
        assert_eq!(
            refused(SqEntry {
                descriptors: u32::MAX,
                ..rdma
            }),
            "descriptor count"
        );
        assert_eq!(refused(SqEntry { length: 48, ..rdma }), "length");
        assert_eq!(refused(SqEntry::new(SqOp::SendPdu, 1, 1)), "length");
        assert_eq!(SqEntry::decode(&[0; 64]).unwrap_err().field, "operation");
        assert_eq!(SqEntry::decode(&[0xff; 64]).unwrap_err().value, 0xffff);
        assert_eq!(CqEntry::decode(&[0; 64]).unwrap_err().field, "kind");
    }
}
