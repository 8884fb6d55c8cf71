//! MPA connection set-up: the Request and Reply frames (RFC 5044 section 7.1, RFC 6581 section 6
//! and 9), and what the two sides agree on. Bytes in, bytes out; no socket here.

/// Bytes of a frame before the private data.
pub(super) const HEADER_LEN: usize = 20;
/// The most bytes that may follow the header.
pub(super) const MAX_PRIVATE: usize = 512;
/// The most bytes that we let follow the header: Linux siw takes no more.
pub(super) const MAX_PRIVATE_SENT: usize = 256;
/// The largest depth that the 14-bit fields carry; the value above it means "not negotiated".
pub(super) const MAX_DEPTH: u16 = 0x3FFE;

const NOT_NEGOTIATED: u16 = 0x3FFF;
const FLAG_MARKERS: u8 = 0x80;
const FLAG_CRC: u8 = 0x40;
const FLAG_REJECT: u8 = 0x20;
const FLAG_ENHANCED: u8 = 0x10;

/// Which frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Initiator to responder.
    Request,
    /// Responder to initiator.
    Reply,
}

impl Kind {
    fn key(self) -> &'static [u8; 16] {
        match self {
            Self::Request => b"MPA ID Req Frame",
            Self::Reply => b"MPA ID Rep Frame",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Request => "MPA Request",
            Self::Reply => "MPA Reply",
        }
    }
}

/// Ready-to-receive messages: what an initiator can send first so that the responder may speak
/// (RFC 6581 section 9).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rtr {
    /// A frame without a ULPDU (flag B).
    pub zero_fpdu: bool,
    /// A zero-length RDMA WRITE (flag C).
    pub write: bool,
    /// A zero-length RDMA READ (flag D).
    pub read: bool,
}

/// The ready-to-receive message that both sides agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RtrKind {
    ZeroFpdu,
    Write,
    Read,
}

impl Rtr {
    fn any(self) -> bool {
        self.zero_fpdu || self.write || self.read
    }

    fn only(kind: RtrKind) -> Self {
        Self {
            zero_fpdu: kind == RtrKind::ZeroFpdu,
            write: kind == RtrKind::Write,
            read: kind == RtrKind::Read,
        }
    }

    fn both(self, other: Self) -> Self {
        Self {
            zero_fpdu: self.zero_fpdu && other.zero_fpdu,
            write: self.write && other.write,
            read: self.read && other.read,
        }
    }

    /// A Write costs the responder nothing, a Read costs it an answer; a frame without ULPDU is
    /// what the fewest peers know.
    fn best(self) -> Option<RtrKind> {
        if self.write {
            Some(RtrKind::Write)
        } else if self.read {
            Some(RtrKind::Read)
        } else {
            self.zero_fpdu.then_some(RtrKind::ZeroFpdu)
        }
    }
}

/// The four bytes of RFC 6581. Depths are from the sender's view; `None`: not negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Enhanced {
    pub(super) peer_to_peer: bool,
    pub(super) rtr: Rtr,
    pub(super) ird: Option<u16>,
    pub(super) ord: Option<u16>,
}

/// A Request or Reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) markers: bool,
    pub(super) crc: bool,
    pub(super) reject: bool,
    pub(super) revision: u8,
    pub(super) enhanced: Option<Enhanced>,
    pub(super) private_data: Vec<u8>,
}

impl Frame {
    /// Reads a frame that may not be here as a whole yet (`None`). A byte beyond it is an error:
    /// neither side may send before the set-up is done (RFC 5044 section 7.1.2).
    pub(super) fn parse(kind: Kind, bytes: &[u8]) -> Result<Option<Self>, String> {
        let name = kind.name();
        let key = kind.key();
        let seen = bytes.len().min(key.len());
        if bytes.get(..seen) != key.get(..seen) {
            return Err(format!(
                "not an {name}: it starts with {:02x?}",
                bytes.get(..seen).unwrap_or_default()
            ));
        }
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let [.., flags, revision, len_high, len_low] = *header;
        let len = usize::from(u16::from_be_bytes([len_high, len_low]));
        if len > MAX_PRIVATE {
            return Err(format!("PD_Length of {name} is {len}, more than 512"));
        }
        if rest.len() > len {
            return Err(format!("{} bytes behind the {name}", rest.len() - len));
        }
        if rest.len() < len {
            return Ok(None);
        }
        let mut private_data = rest;
        let mut enhanced = None;
        // The S flag means something from revision 2 on (RFC 6581 section 6).
        if revision >= 2 && flags & FLAG_ENHANCED != 0 {
            let Some((words, tail)) = rest.split_first_chunk::<4>() else {
                return Err(format!("PD_Length of {name} is {len}, but flag S needs 4"));
            };
            enhanced = Some(Enhanced::parse(*words));
            private_data = tail;
        }
        Ok(Some(Self {
            markers: flags & FLAG_MARKERS != 0,
            crc: flags & FLAG_CRC != 0,
            reject: kind == Kind::Reply && flags & FLAG_REJECT != 0,
            revision,
            enhanced,
            private_data: private_data.to_vec(),
        }))
    }

    /// The bytes of the frame. The private data was checked with [`check_private_data`].
    pub(super) fn emit(&self, kind: Kind) -> Vec<u8> {
        let mut flags = 0;
        for (set, flag) in [
            (self.markers, FLAG_MARKERS),
            (self.crc, FLAG_CRC),
            (self.reject, FLAG_REJECT),
            (self.enhanced.is_some(), FLAG_ENHANCED),
        ] {
            flags |= if set { flag } else { 0 };
        }
        let extra = if self.enhanced.is_some() { 4 } else { 0 };
        let len = (self.private_data.len() + extra) as u16;
        let mut bytes = Vec::with_capacity(HEADER_LEN + usize::from(len));
        bytes.extend_from_slice(kind.key());
        bytes.extend_from_slice(&[flags, self.revision]);
        bytes.extend_from_slice(&len.to_be_bytes());
        if let Some(enhanced) = &self.enhanced {
            bytes.extend_from_slice(&enhanced.emit());
        }
        bytes.extend_from_slice(&self.private_data);
        bytes
    }
}

impl Enhanced {
    fn parse(words: [u8; 4]) -> Self {
        let [a, b, c, d] = words;
        let (first, second) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let depth = |word: u16| match word & NOT_NEGOTIATED {
            NOT_NEGOTIATED => None,
            depth => Some(depth),
        };
        Self {
            peer_to_peer: first & 0x8000 != 0,
            rtr: Rtr {
                zero_fpdu: first & 0x4000 != 0,
                write: second & 0x8000 != 0,
                read: second & 0x4000 != 0,
            },
            ird: depth(first),
            ord: depth(second),
        }
    }

    fn emit(self) -> [u8; 4] {
        let flag = |set, bit| if set { bit } else { 0 };
        let depth = |value: Option<u16>| value.map_or(NOT_NEGOTIATED, |v| v.min(MAX_DEPTH));
        let first =
            flag(self.peer_to_peer, 0x8000) | flag(self.rtr.zero_fpdu, 0x4000) | depth(self.ird);
        let second = flag(self.rtr.write, 0x8000) | flag(self.rtr.read, 0x4000) | depth(self.ord);
        let ([a, b], [c, d]) = (first.to_be_bytes(), second.to_be_bytes());
        [a, b, c, d]
    }
}

/// What a connection runs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Agreed {
    /// CRC in both directions: on when either side asked (RFC 5044 section 7.1.1).
    pub(super) crc: bool,
    /// Inbound reads that we serve at once.
    pub(super) ird: u32,
    /// Outbound reads that we may have outstanding.
    pub(super) ord: u32,
    /// The first frame that the initiator sends.
    pub(super) rtr: Option<RtrKind>,
}

/// Why a Reply is no base for a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReplyError {
    /// The peer refused; its private data.
    Rejected(Vec<u8>),
    /// The peer answered a revision 2 Request as a peer of revision 1.
    Revision(u8),
    /// It wants more outstanding reads than we serve: Terminate, MPA, insufficient IRD.
    InsufficientIrd(u16),
    /// It took no ready-to-receive message that we offered: Terminate, MPA, no matching RTR.
    NoMatchingRtr,
    /// Anything else that is wrong.
    Bad(String),
}

/// Private data that we may send.
pub(super) fn check_private_data(bytes: &[u8], revision: u8) -> Result<(), String> {
    let most = MAX_PRIVATE_SENT - if revision >= 2 { 4 } else { 0 };
    if bytes.len() > most {
        return Err(format!(
            "{} bytes of private data; at most {most} fit what Linux siw accepts",
            bytes.len()
        ));
    }
    Ok(())
}

/// The Request of an initiator.
pub(super) fn request(
    revision: u8,
    crc: bool,
    rtr: Rtr,
    (ird, ord): (u32, u32),
    private_data: &[u8],
) -> Frame {
    // A Read as RTR needs one outbound read.
    let rtr = Rtr {
        read: rtr.read && ord > 0,
        ..rtr
    };
    Frame {
        markers: false,
        crc,
        reject: false,
        revision,
        enhanced: (revision >= 2).then(|| Enhanced {
            peer_to_peer: rtr.any(),
            rtr,
            ird: Some(clamp(ird)),
            ord: Some(clamp(ord)),
        }),
        private_data: private_data.to_vec(),
    }
}

/// A responder's answer that takes the connection.
pub(super) fn accept(
    request: &Frame,
    crc: bool,
    (ird, ord): (u32, u32),
    private_data: &[u8],
) -> (Frame, Agreed) {
    let crc = crc || request.crc;
    let mut agreed = Agreed {
        crc,
        ird,
        ord,
        rtr: None,
    };
    let enhanced = request.enhanced.map(|asked| {
        // RFC 6581 section 9: the responder's ORD must fit the initiator's IRD.
        if let Some(ird) = asked.ird {
            agreed.ord = agreed.ord.min(u32::from(ird));
        }
        if asked.peer_to_peer {
            // A Read as RTR needs one inbound read. An initiator that offers nothing gets Write,
            // and may end the connection for it.
            let possible = Rtr {
                read: asked.rtr.read && agreed.ird > 0,
                ..asked.rtr
            };
            agreed.rtr = Some(possible.best().unwrap_or(RtrKind::Write));
        }
        Enhanced {
            peer_to_peer: asked.peer_to_peer,
            rtr: agreed.rtr.map(Rtr::only).unwrap_or_default(),
            ird: Some(clamp(agreed.ird)),
            ord: Some(clamp(agreed.ord)),
        }
    });
    let reply = Frame {
        markers: false,
        crc,
        reject: false,
        revision: request.revision,
        enhanced,
        private_data: private_data.to_vec(),
    };
    (reply, agreed)
}

/// A responder's answer that refuses.
pub(super) fn reject(request: &Frame, private_data: &[u8]) -> Frame {
    Frame {
        markers: false,
        crc: request.crc,
        reject: true,
        revision: request.revision,
        enhanced: request.enhanced.map(|_| Enhanced {
            peer_to_peer: false,
            rtr: Rtr::default(),
            ird: Some(0),
            ord: Some(0),
        }),
        private_data: private_data.to_vec(),
    }
}

/// What an initiator makes of the Reply to its Request.
pub(super) fn conclude(
    request: &Frame,
    reply: &Frame,
    (ird, ord): (u32, u32),
    max_ird: u32,
) -> Result<Agreed, ReplyError> {
    if reply.reject {
        return Err(ReplyError::Rejected(reply.private_data.clone()));
    }
    if reply.markers {
        // RFC 5044 section 4.3: markers are optional to implement for a sender.
        return Err(ReplyError::Bad("the peer wants MPA markers".into()));
    }
    if reply.revision != request.revision {
        return Err(ReplyError::Revision(reply.revision));
    }
    let mut agreed = Agreed {
        crc: request.crc || reply.crc,
        ird,
        ord,
        rtr: None,
    };
    match (&request.enhanced, &reply.enhanced) {
        (None, _) => {}
        (Some(_), None) => {
            // RFC 6581 section 9: a Request with S is answered with S.
            return Err(ReplyError::Bad("MPA Reply without flag S".into()));
        }
        (Some(asked), Some(told)) => {
            if let Some(ird) = told.ird {
                agreed.ord = agreed.ord.min(u32::from(ird));
            }
            if let Some(wanted) = told.ord {
                if u32::from(wanted) > ird.max(max_ird) {
                    return Err(ReplyError::InsufficientIrd(wanted));
                }
                // A queue entry is all that an inbound read costs us: follow the responder.
                agreed.ird = agreed.ird.max(u32::from(wanted));
            }
            if asked.peer_to_peer && told.peer_to_peer {
                let kind = asked.rtr.both(told.rtr).best();
                agreed.rtr = Some(kind.ok_or(ReplyError::NoMatchingRtr)?);
            }
        }
    }
    Ok(agreed)
}

fn clamp(depth: u32) -> u16 {
    u16::try_from(depth).unwrap_or(MAX_DEPTH).min(MAX_DEPTH)
}

#[cfg(test)]
#[path = "mpa_tests.rs"]
mod tests;
