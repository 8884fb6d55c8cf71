//! The RDMA transforms as they stand in messages: `[MS-SMB2] 2.2.43`, 2.2.43.1.

use super::error::SmbError;
use super::message::encode;
use crate::wire::BufferDescriptor;

/// What an SMB2_RDMA_TRANSFORM_CAPABILITIES names: `[MS-SMB2] 2.2.3.1.6`.
pub mod transform_id {
    /// No transform; what a server answers that has none of those asked for.
    pub const NONE: u16 = 0;
    /// Payloads of encrypted messages are encrypted.
    pub const ENCRYPTION: u16 = 1;
    /// Payloads of signed messages are signed.
    pub const SIGNING: u16 = 2;
}

/// TransformType of a [`CryptoTransform`].
pub mod transform_type {
    /// The payload is encrypted.
    pub const ENCRYPTION: u16 = 1;
    /// The payload is signed.
    pub const SIGNING: u16 = 2;
}

/// SMB2_RDMA_CRYPTO_TRANSFORM, every field free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CryptoTransform {
    /// One of [`transform_type`].
    pub kind: u16,
    /// At most 16 bytes by the specification.
    pub signature: Vec<u8>,
    /// 11 bytes for AES-CCM, 12 for AES-GCM and AES-GMAC, else none.
    pub nonce: Vec<u8>,
}

impl CryptoTransform {
    fn emit(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.kind.to_le_bytes());
        bytes.extend_from_slice(&(self.signature.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&(self.nonce.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&self.signature);
        bytes.extend_from_slice(&self.nonce);
    }
}

/// SMB2_RDMA_TRANSFORM with the transforms behind it, every field free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RdmaTransform {
    /// RdmaDescriptorOffset, from the start of this structure.
    pub descriptor_offset: u16,
    /// RdmaDescriptorLength, bytes.
    pub descriptor_length: u16,
    /// One of [`channel`](super::channel) but RDMA_TRANSFORM.
    pub channel: u32,
    /// TransformCount.
    pub count: u16,
    /// The transforms that are there.
    pub transforms: Vec<CryptoTransform>,
}

impl RdmaTransform {
    /// What a WRITE request has: one transform, and descriptors at the first place behind it that
    /// is a multiple of 8.
    pub fn of_write(
        channel: u32,
        transform: CryptoTransform,
        descriptors: &[BufferDescriptor],
    ) -> Self {
        let mut it = Self {
            descriptor_offset: 0,
            descriptor_length: (descriptors.len() * BufferDescriptor::LEN) as u16,
            channel,
            count: 1,
            transforms: vec![transform],
        };
        it.descriptor_offset = it.emit().len() as u16;
        it
    }

    /// The structure and its transforms, each filled up to a multiple of 8 bytes.
    pub fn emit(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&self.descriptor_offset.to_le_bytes());
        bytes.extend_from_slice(&self.descriptor_length.to_le_bytes());
        bytes.extend_from_slice(&self.channel.to_le_bytes());
        bytes.extend_from_slice(&self.count.to_le_bytes());
        bytes.extend_from_slice(&[0; 6]);
        for transform in &self.transforms {
            transform.emit(&mut bytes);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes
    }

    /// The channel information of a WRITE: structure, transforms, descriptors.
    pub fn channel_info(&self, descriptors: &[BufferDescriptor]) -> Vec<u8> {
        let mut bytes = self.emit();
        bytes.extend(encode(descriptors));
        bytes
    }

    /// Reads the buffer of a READ response whose Flags say that it is one.
    ///
    /// # Errors
    /// A structure does not fit, a length is not allowed, or there is more than the structures.
    pub fn parse(bytes: &[u8]) -> Result<Self, SmbError> {
        let total = bytes.len();
        let wrong = |what: &str| SmbError::Message(format!("RDMA transform: {what}, of {total}"));
        let mut rest = Rest(bytes);
        let mut it = Self {
            descriptor_offset: rest.le16().ok_or_else(|| wrong("too short"))?,
            descriptor_length: rest.le16().ok_or_else(|| wrong("too short"))?,
            channel: rest.le32().ok_or_else(|| wrong("too short"))?,
            count: rest.le16().ok_or_else(|| wrong("too short"))?,
            transforms: Vec::new(),
        };
        rest.take(6).ok_or_else(|| wrong("too short"))?;
        if it.count > MAX_COUNT {
            return Err(wrong(&format!("TransformCount {}", it.count)));
        }
        for _ in 0..it.count {
            // Each one starts at a multiple of 8.
            let consumed = total - rest.0.len();
            let padding = consumed.next_multiple_of(8) - consumed;
            let one = (|| {
                rest.take(padding)?;
                let kind = rest.le16()?;
                let signature = rest.le16()?;
                let nonce = rest.le16()?;
                rest.take(2)?;
                Some(CryptoTransform {
                    kind,
                    signature: rest.take(signature.into())?.to_vec(),
                    nonce: rest.take(nonce.into())?.to_vec(),
                })
            })();
            it.transforms
                .push(one.ok_or_else(|| wrong("a transform too long"))?);
        }
        // Padding, which receivers ignore.
        if rest.0.len() > 7 {
            let text = format!("{} bytes behind the transforms", rest.0.len());
            return Err(wrong(&text));
        }
        Ok(it)
    }

    /// What a READ response has: one transform and no descriptors.
    #[cfg(test)]
    pub(super) fn of_read(transform: CryptoTransform) -> Self {
        Self {
            descriptor_offset: 0,
            descriptor_length: 0,
            channel: super::channel::NONE,
            count: 1,
            transforms: vec![transform],
        }
    }
}

/// What was not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn le16(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_le_bytes(bytes.try_into().ok()?))
    }

    fn le32(&mut self) -> Option<u32> {
        let bytes = self.take(4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }
}

/// What a READ response with data by RDMA is checked against: `[MS-SMB2] 3.2.5.11`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected<'a> {
    pub(super) is_311_over_rdma: bool,
    /// Connection.RDMATransformIds.
    pub(super) ids: &'a [u16],
    pub(super) is_encrypted: bool,
    pub(super) is_signed: bool,
    /// Of the cipher, when the session has one.
    pub(super) cipher_nonce: Option<usize>,
}

impl Expected<'_> {
    /// The transform by which the payload has to be opened; none if it is plain.
    ///
    /// # Errors
    /// STATUS_INVALID_NETWORK_RESPONSE, with its reason.
    pub(super) fn check(
        &self,
        has_flag: bool,
        data: &[u8],
        data_remaining: u32,
    ) -> Result<Option<CryptoTransform>, SmbError> {
        let wrong = |what: String| Err(SmbError::InvalidResponse(what));
        let has = |id| self.ids.contains(&id);
        let wants_encryption = has(transform_id::ENCRYPTION) && self.is_encrypted;
        let wants_signing = has(transform_id::SIGNING) && self.is_signed && !self.is_encrypted;
        if !has_flag {
            if data_remaining > 0 && (wants_encryption || wants_signing) {
                return wrong(format!(
                    "{data_remaining} bytes by RDMA without a transform"
                ));
            }
            return Ok(None);
        }
        if !self.is_311_over_rdma {
            return wrong("a transform, but not 3.1.1 over RDMA".into());
        }
        if self.ids.is_empty() {
            return wrong("a transform, and none was negotiated".into());
        }
        if data_remaining == 0 {
            return wrong("a transform of no data".into());
        }
        let found = match RdmaTransform::parse(data) {
            Ok(found) => found,
            Err(error) => return wrong(error.to_string()),
        };
        let [transform] = &found.transforms[..] else {
            return wrong(format!("{} transforms instead of one", found.count));
        };
        match transform.kind {
            transform_type::ENCRYPTION if !self.is_encrypted => {
                return wrong("an encrypted payload of a response that is not".into());
            }
            transform_type::SIGNING if self.is_encrypted => {
                return wrong("a signed payload of an encrypted response".into());
            }
            transform_type::ENCRYPTION if has(transform_id::ENCRYPTION) => {
                let length = transform.nonce.len();
                if Some(length) != self.cipher_nonce {
                    return wrong(format!("a nonce of {length} bytes"));
                }
            }
            transform_type::SIGNING if has(transform_id::SIGNING) && self.is_signed => {}
            kind => return wrong(format!("TransformType {kind}, negotiated {:?}", self.ids)),
        }
        let length = transform.signature.len();
        if length != 16 {
            return wrong(format!("a signature of {length} bytes"));
        }
        Ok(Some(transform.clone()))
    }
}

/// Two is too many already.
const MAX_COUNT: u16 = 8;

#[cfg(test)]
mod tests {
    use super::super::channel;
    use super::*;

    fn crypto(kind: u16, nonce: usize) -> CryptoTransform {
        CryptoTransform {
            kind,
            signature: (0..16).collect(),
            nonce: vec![0xee; nonce],
        }
    }

    const DESCRIPTOR: BufferDescriptor = BufferDescriptor {
        offset: 0x0102_0304_0506_0708,
        token: 0xaabb_ccdd,
        length: 0x1000,
    };

    /// `[MS-SMB2] 2.2.43`, 2.2.43.1.
    #[test]
    fn a_write_has_its_transform_before_its_descriptors() {
        for (nonce, offset) in [(0, 40), (11, 56), (12, 56), (13, 56), (17, 64)] {
            let transform = crypto(transform_type::SIGNING, nonce);
            let both = [DESCRIPTOR; 2];
            let it = RdmaTransform::of_write(channel::RDMA_V1_INVALIDATE, transform, &both);
            let bytes = it.channel_info(&both);
            assert_eq!(bytes.len(), offset + 32);
            assert_eq!(bytes[..2], (offset as u16).to_le_bytes());
            assert_eq!(bytes[2..8], [32, 0, 2, 0, 0, 0]);
            assert_eq!(bytes[8..16], [1, 0, 0, 0, 0, 0, 0, 0]);
            assert_eq!(bytes[16..24], [2, 0, 16, 0, nonce as u8, 0, 0, 0]);
            assert_eq!(bytes[24..40], it.transforms[0].signature);
            assert_eq!(bytes[40..40 + nonce], it.transforms[0].nonce);
            assert!(bytes[40 + nonce..offset].iter().all(|&byte| byte == 0));
            assert_eq!(bytes[offset..], encode(&both));
            assert_eq!(RdmaTransform::parse(&bytes[..offset]).unwrap(), it);
        }
    }

    #[test]
    fn nonsense_is_no_transform() {
        let good = RdmaTransform::of_read(crypto(transform_type::ENCRYPTION, 12));
        let bytes = good.emit();
        assert_eq!(bytes.len(), 56);
        for length in 0..52 {
            assert!(RdmaTransform::parse(&bytes[..length]).is_err(), "{length}");
        }
        for length in 52..=56 {
            assert_eq!(RdmaTransform::parse(&bytes[..length]).unwrap(), good);
        }
        let longer = [&bytes[..], &[0; 8]].concat();
        assert!(RdmaTransform::parse(&longer).is_err());
        for (at, value) in [(8, 2), (9, 1), (18, 200), (19, 255), (20, 200), (21, 255)] {
            let mut wrong = bytes.clone();
            wrong[at] = value;
            assert!(RdmaTransform::parse(&wrong).is_err(), "{at}");
        }
        let two = RdmaTransform {
            count: 2,
            transforms: vec![crypto(1, 11), crypto(2, 12)],
            ..good
        };
        assert_eq!(RdmaTransform::parse(&two.emit()).unwrap(), two);
    }

    const BOTH: &[u16] = &[transform_id::ENCRYPTION, transform_id::SIGNING];

    fn encrypted() -> Expected<'static> {
        Expected {
            is_311_over_rdma: true,
            ids: BOTH,
            is_encrypted: true,
            is_signed: false,
            cipher_nonce: Some(12),
        }
    }

    fn signed() -> Expected<'static> {
        Expected {
            is_encrypted: false,
            is_signed: true,
            ..encrypted()
        }
    }

    fn check(expected: &Expected<'_>, transform: &RdmaTransform) -> Option<CryptoTransform> {
        match expected.check(true, &transform.emit(), 1000) {
            Ok(found) => Some(found.unwrap()),
            Err(SmbError::InvalidResponse(_)) => None,
            Err(other) => panic!("{other}"),
        }
    }

    /// Each condition of `[MS-SMB2] 3.2.5.11`.
    #[test]
    fn responses_have_to_have_the_transform_that_was_negotiated() {
        let encryption = crypto(transform_type::ENCRYPTION, 12);
        let signing = crypto(transform_type::SIGNING, 12);
        let e = RdmaTransform::of_read(encryption.clone());
        let s = RdmaTransform::of_read(signing.clone());
        assert_eq!(check(&encrypted(), &e), Some(encryption.clone()));
        assert_eq!(check(&signed(), &s), Some(signing.clone()));

        // The other type, no type, an unknown type.
        assert_eq!(check(&encrypted(), &s), None);
        assert_eq!(check(&signed(), &e), None);
        for kind in [0, 3] {
            let unknown = RdmaTransform::of_read(crypto(kind, 12));
            assert_eq!(check(&encrypted(), &unknown), None);
            assert_eq!(check(&signed(), &unknown), None);
        }
        // Not negotiated.
        for (expected, transform, id) in [(encrypted(), &e, 2), (signed(), &s, 1)] {
            for ids in [&[][..], &[id]] {
                let expected = Expected { ids, ..expected };
                assert_eq!(check(&expected, transform), None, "{ids:?}");
            }
        }
        // Not 3.1.1, or TCP; neither signed nor encrypted.
        for (expected, transform) in [(encrypted(), &e), (signed(), &s)] {
            let elsewhere = Expected {
                is_311_over_rdma: false,
                ..expected
            };
            assert_eq!(check(&elsewhere, transform), None);
            let plain = Expected {
                is_encrypted: false,
                is_signed: false,
                ..expected
            };
            assert_eq!(check(&plain, transform), None);
        }
        // None, two of a type, one of each.
        for transforms in [
            vec![],
            vec![encryption.clone(), encryption.clone()],
            vec![signing.clone(), signing.clone()],
            vec![encryption.clone(), signing.clone()],
        ] {
            let count = transforms.len() as u16;
            let many = RdmaTransform {
                count,
                transforms,
                ..e.clone()
            };
            assert_eq!(check(&encrypted(), &many), None);
            assert_eq!(check(&signed(), &many), None);
        }
        // Lengths.
        for nonce in [0, 11, 13] {
            let wrong = RdmaTransform::of_read(crypto(transform_type::ENCRYPTION, nonce));
            assert_eq!(check(&encrypted(), &wrong), None);
        }
        for length in [0, 15, 17] {
            for (expected, right) in [(encrypted(), &encryption), (signed(), &signing)] {
                let wrong = RdmaTransform::of_read(CryptoTransform {
                    signature: vec![0; length],
                    ..right.clone()
                });
                assert_eq!(check(&expected, &wrong), None);
            }
        }
    }

    #[test]
    fn a_missing_transform_is_noticed() {
        for expected in [encrypted(), signed()] {
            assert!(expected.check(false, &[], 1).is_err());
            assert!(expected.check(false, &[], 0).unwrap().is_none());
            let none = Expected {
                ids: &[],
                ..expected
            };
            assert!(none.check(false, &[], 1).unwrap().is_none());
            // A transform where there is no data.
            let transform = RdmaTransform::of_read(crypto(1, 12)).emit();
            assert!(expected.check(true, &transform, 0).is_err());
        }
        let plain = Expected {
            is_encrypted: false,
            is_signed: false,
            ..encrypted()
        };
        assert!(plain.check(false, &[], 1).unwrap().is_none());
    }
}
