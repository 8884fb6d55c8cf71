//! The negotiate contexts of SMB 3.1.1 ([MS-SMB2] 2.2.3.1, 2.2.4.1).

use super::error::{ContextFault, RouteError};
use super::u16_at;

/// An encryption algorithm ([MS-SMB2] 2.2.3.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Cipher {
    /// AES-128-CCM, the one of 3.0 and 3.0.2
    Aes128Ccm = 1,
    /// AES-128-GCM
    Aes128Gcm = 2,
    /// AES-256-CCM
    Aes256Ccm = 3,
    /// AES-256-GCM
    Aes256Gcm = 4,
}

impl Cipher {
    /// Every cipher, the fastest on current processors first.
    pub const ALL: [Self; 4] = [
        Self::Aes128Gcm,
        Self::Aes128Ccm,
        Self::Aes256Gcm,
        Self::Aes256Ccm,
    ];
}

/// A signing algorithm ([MS-SMB2] 2.2.3.1.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum SigningAlgorithm {
    /// HMAC-SHA256
    HmacSha256 = 0,
    /// AES-CMAC, in force when none is negotiated
    AesCmac = 1,
    /// AES-GMAC
    AesGmac = 2,
}

impl SigningAlgorithm {
    /// Every signing algorithm, the fastest on current processors first.
    pub const ALL: [Self; 3] = [Self::AesGmac, Self::AesCmac, Self::HmacSha256];
}

/// What a 3.1.1 client offered in its negotiate contexts, as far as routing answers it.
///
/// Compression, RDMA transforms, transport security, the server name and unknown types are left
/// alone, which in an answer means "not supported" ([MS-SMB2] 3.3.5.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NegotiateContexts {
    hashes: Option<IdSet>,
    ciphers: Option<IdSet>,
    signing: Option<IdSet>,
}

impl NegotiateContexts {
    /// Reads `count` contexts that start at `offset` of `pdu`, the earliest place being `earliest`.
    pub(super) fn parse(
        pdu: &[u8],
        offset: u32,
        count: u16,
        earliest: usize,
    ) -> Result<Self, RouteError> {
        let mut contexts = Self::default();
        let mut at = usize::try_from(offset).unwrap_or(usize::MAX);
        // [MS-SMB2] 2.2.3: the first context is 8-byte aligned and behind the dialects.
        if count > 0 && (at % ALIGNMENT != 0 || at < earliest || at >= pdu.len()) {
            return Err(RouteError::Context(ContextFault::Offset(offset)));
        }
        for index in 0..count {
            let truncated = RouteError::Context(ContextFault::Truncated(index));
            let kind = u16_at(pdu, at).ok_or(truncated)?;
            let length = usize::from(u16_at(pdu, at.saturating_add(2)).ok_or(truncated)?);
            let start = at.checked_add(CONTEXT_HEADER_LEN).ok_or(truncated)?;
            let end = start.checked_add(length).ok_or(truncated)?;
            let data = pdu.get(start..end).ok_or(truncated)?;
            contexts.add(kind, data).map_err(RouteError::Context)?;
            at = end.checked_next_multiple_of(ALIGNMENT).ok_or(truncated)?;
        }
        // [MS-SMB2] 3.3.5.4: not exactly one of these fails the request with
        // STATUS_INVALID_PARAMETER; `add` has seen to "not more".
        if contexts.hashes.is_none() {
            return Err(RouteError::Context(ContextFault::NoPreauthIntegrity));
        }
        Ok(contexts)
    }

    /// The client offers SHA-512 for preauthentication.
    pub fn offers_sha512(&self) -> bool {
        self.hashes.is_some_and(|set| set.contains(HASH_SHA512))
    }

    /// The client sent SMB2_ENCRYPTION_CAPABILITIES.
    pub fn has_encryption(&self) -> bool {
        self.ciphers.is_some()
    }

    /// The client offers `cipher`.
    pub fn offers_cipher(&self, cipher: Cipher) -> bool {
        self.ciphers.is_some_and(|set| set.contains(cipher as u16))
    }

    /// The client offers `algorithm` in SMB2_SIGNING_CAPABILITIES.
    pub fn offers_signing(&self, algorithm: SigningAlgorithm) -> bool {
        self.signing
            .is_some_and(|set| set.contains(algorithm as u16))
    }

    fn add(&mut self, kind: u16, data: &[u8]) -> Result<(), ContextFault> {
        let (slot, fixed) = match kind {
            // HashAlgorithmCount, SaltLength, HashAlgorithms, Salt ([MS-SMB2] 2.2.3.1.1)
            PREAUTH_INTEGRITY => (&mut self.hashes, 4),
            // CipherCount, Ciphers (2.2.3.1.2)
            ENCRYPTION => (&mut self.ciphers, 2),
            // SigningAlgorithmCount, SigningAlgorithms (2.2.3.1.7)
            SIGNING => (&mut self.signing, 2),
            _ => return Ok(()),
        };
        if slot.is_some() {
            return Err(ContextFault::Repeated(kind));
        }
        let short = ContextFault::Short(kind);
        let count = usize::from(u16_at(data, 0).ok_or(short)?);
        if count == 0 {
            return Err(ContextFault::Empty(kind));
        }
        let salt_length = match kind {
            PREAUTH_INTEGRITY => usize::from(u16_at(data, 2).ok_or(short)?),
            _ => 0,
        };
        // At most 4 + 2 * 65535 + 65535: no overflow.
        let list_end = fixed + 2 * count;
        if data.len() < list_end + salt_length {
            return Err(short);
        }
        let mut set = IdSet::default();
        for entry in data.get(fixed..list_end).ok_or(short)?.chunks_exact(2) {
            set.insert(u16_at(entry, 0).ok_or(short)?);
        }
        *slot = Some(set);
        Ok(())
    }
}

/// Writes negotiate contexts one behind the other, each 8-byte aligned.
pub(super) struct ContextWriter<'a> {
    out: &'a mut Vec<u8>,
    count: u16,
}

impl<'a> ContextWriter<'a> {
    /// Contexts are appended to `out`, whose start is 8-byte aligned in the PDU.
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, count: 0 }
    }

    /// SHA-512 with `salt` ([MS-SMB2] 2.2.4.1.1).
    pub(super) fn preauth_integrity(&mut self, salt: &[u8; 32]) {
        self.header(PREAUTH_INTEGRITY, 6 + 32);
        for word in [1, 32, HASH_SHA512] {
            self.out.extend_from_slice(&u16::to_le_bytes(word));
        }
        self.out.extend_from_slice(salt);
    }

    /// The one cipher of the connection, or 0 when none is in common ([MS-SMB2] 2.2.4.1.2).
    pub(super) fn encryption(&mut self, cipher: Option<Cipher>) {
        self.single(ENCRYPTION, cipher.map_or(0, |cipher| cipher as u16));
    }

    /// The signing algorithm of the connection ([MS-SMB2] 2.2.4.1.7).
    pub(super) fn signing(&mut self, algorithm: SigningAlgorithm) {
        self.single(SIGNING, algorithm as u16);
    }

    /// How many contexts were written.
    pub(super) fn count(&self) -> u16 {
        self.count
    }

    fn single(&mut self, kind: u16, id: u16) {
        self.header(kind, 4);
        self.out.extend_from_slice(&1u16.to_le_bytes());
        self.out.extend_from_slice(&id.to_le_bytes());
    }

    fn header(&mut self, kind: u16, data_length: u16) {
        self.out
            .resize(self.out.len().next_multiple_of(ALIGNMENT), 0);
        self.out.extend_from_slice(&kind.to_le_bytes());
        self.out.extend_from_slice(&data_length.to_le_bytes());
        self.out.extend_from_slice(&0u32.to_le_bytes());
        self.count += 1;
    }
}

/// Algorithm ids 0 to 15; all that are defined are below 5, others are of no use to us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct IdSet(u16);

impl IdSet {
    fn insert(&mut self, id: u16) {
        self.0 |= 1u16.checked_shl(u32::from(id)).unwrap_or(0);
    }

    fn contains(self, id: u16) -> bool {
        1u16.checked_shl(u32::from(id))
            .is_some_and(|bit| self.0 & bit != 0)
    }
}

pub(super) const ALIGNMENT: usize = 8;
const CONTEXT_HEADER_LEN: usize = 8;
const PREAUTH_INTEGRITY: u16 = 0x0001;
const ENCRYPTION: u16 = 0x0002;
const SIGNING: u16 = 0x0008;
const HASH_SHA512: u16 = 0x0001;
