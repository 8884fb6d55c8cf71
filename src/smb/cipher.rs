//! The ciphers of SMB 3: `[MS-SMB2] 2.2.3.1.2`. All of them are AEAD ciphers with tags of 16 bytes.

use aes::{Aes128, Aes256};
use aes_gcm::aead::consts::{U11, U16};
use aes_gcm::aead::generic_array::GenericArray;
use aes_gcm::{AeadInPlace, Aes128Gcm, Aes256Gcm, KeyInit};
use ccm::Ccm;
use smb_msg::EncryptionCipher;

/// A cipher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cipher {
    /// AES-128-CCM, the one of 3.0 and 3.0.2.
    Aes128Ccm,
    /// AES-128-GCM.
    Aes128Gcm,
    /// AES-256-CCM.
    Aes256Ccm,
    /// AES-256-GCM.
    Aes256Gcm,
}

impl Cipher {
    /// All of them, that of Windows' choice first.
    pub const ALL: [Self; 4] = [
        Self::Aes128Gcm,
        Self::Aes128Ccm,
        Self::Aes256Gcm,
        Self::Aes256Ccm,
    ];

    /// Bytes of its nonces: `[MS-SMB2] 2.2.41`.
    pub fn nonce_length(self) -> usize {
        match self {
            Self::Aes128Ccm | Self::Aes256Ccm => 11,
            Self::Aes128Gcm | Self::Aes256Gcm => 12,
        }
    }

    /// Bytes of its keys.
    pub(super) fn key_length(self) -> usize {
        match self {
            Self::Aes128Ccm | Self::Aes128Gcm => 16,
            Self::Aes256Ccm | Self::Aes256Gcm => 32,
        }
    }

    pub(super) fn id(self) -> EncryptionCipher {
        match self {
            Self::Aes128Ccm => EncryptionCipher::Aes128Ccm,
            Self::Aes128Gcm => EncryptionCipher::Aes128Gcm,
            Self::Aes256Ccm => EncryptionCipher::Aes256Ccm,
            Self::Aes256Gcm => EncryptionCipher::Aes256Gcm,
        }
    }

    pub(super) fn of(id: EncryptionCipher) -> Self {
        match id {
            EncryptionCipher::Aes128Ccm => Self::Aes128Ccm,
            EncryptionCipher::Aes128Gcm => Self::Aes128Gcm,
            EncryptionCipher::Aes256Ccm => Self::Aes256Ccm,
            EncryptionCipher::Aes256Gcm => Self::Aes256Gcm,
        }
    }
}

/// The tag of what was encrypted, or a signature.
pub(super) type Tag = [u8; 16];

/// A cipher with its key: one direction of a session.
pub(super) struct Sealer {
    cipher: Cipher,
    keyed: Keyed,
}

enum Keyed {
    Ccm128(Box<Ccm<Aes128, U16, U11>>),
    Ccm256(Box<Ccm<Aes256, U16, U11>>),
    Gcm128(Box<Aes128Gcm>),
    Gcm256(Box<Aes256Gcm>),
}

impl Sealer {
    /// None: the key has not the length of the cipher's keys.
    pub(super) fn new(cipher: Cipher, key: &[u8]) -> Option<Self> {
        let keyed = match cipher {
            Cipher::Aes128Ccm => Keyed::Ccm128(Box::new(Ccm::new_from_slice(key).ok()?)),
            Cipher::Aes256Ccm => Keyed::Ccm256(Box::new(Ccm::new_from_slice(key).ok()?)),
            Cipher::Aes128Gcm => Keyed::Gcm128(Box::new(Aes128Gcm::new_from_slice(key).ok()?)),
            Cipher::Aes256Gcm => Keyed::Gcm256(Box::new(Aes256Gcm::new_from_slice(key).ok()?)),
        };
        Some(Self { cipher, keyed })
    }

    pub(super) fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// Encrypts in place. None: the nonce has not the length of the cipher's nonces, or there is
    /// more data than the cipher takes.
    pub(super) fn seal(&self, nonce: &[u8], aad: &[u8], data: &mut [u8]) -> Option<Tag> {
        if nonce.len() != self.cipher.nonce_length() {
            return None;
        }
        let tag = match &self.keyed {
            Keyed::Ccm128(it) => it.encrypt_in_place_detached(nonce.into(), aad, data),
            Keyed::Ccm256(it) => it.encrypt_in_place_detached(nonce.into(), aad, data),
            Keyed::Gcm128(it) => it.encrypt_in_place_detached(nonce.into(), aad, data),
            Keyed::Gcm256(it) => it.encrypt_in_place_detached(nonce.into(), aad, data),
        };
        tag.ok().map(Into::into)
    }

    /// Decrypts in place. False: tag, nonce, data or `aad` is not what was sealed; `data` is
    /// nothing then.
    pub(super) fn open(&self, nonce: &[u8], aad: &[u8], data: &mut [u8], tag: &[u8]) -> bool {
        if nonce.len() != self.cipher.nonce_length() || tag.len() != size_of::<Tag>() {
            return false;
        }
        let tag = GenericArray::from_slice(tag);
        let opened = match &self.keyed {
            Keyed::Ccm128(it) => it.decrypt_in_place_detached(nonce.into(), aad, data, tag),
            Keyed::Ccm256(it) => it.decrypt_in_place_detached(nonce.into(), aad, data, tag),
            Keyed::Gcm128(it) => it.decrypt_in_place_detached(nonce.into(), aad, data, tag),
            Keyed::Gcm256(it) => it.decrypt_in_place_detached(nonce.into(), aad, data, tag),
        };
        opened.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::super::crypto::tests::bytes;
    use super::*;

    /// The test cases 1, 2, 13 and 14 of "The Galois/Counter Mode of Operation" (McGrew, Viega).
    #[test]
    fn gcm_is_that_of_its_specification() {
        let cases = [
            (Cipher::Aes128Gcm, 0, "", "58e2fccefa7e3061367f1d57a4e7455a"),
            (
                Cipher::Aes128Gcm,
                16,
                "0388dace60b6a392f328c2b971b2fe78",
                "ab6e47d42cec13bdf53a67b21257bddf",
            ),
            (Cipher::Aes256Gcm, 0, "", "530f8afbc74536b9a963b4f1c4cb738b"),
            (
                Cipher::Aes256Gcm,
                16,
                "cea7403d4d606b6e074ec5d3baf39d18",
                "d0d1c8a799996bf0265b98b5d48ab919",
            ),
        ];
        for (cipher, length, encrypted, tag) in cases {
            let sealer = Sealer::new(cipher, &vec![0; cipher.key_length()]).unwrap();
            let mut data = vec![0; length];
            let got = sealer.seal(&[0; 12], &[], &mut data).unwrap();
            assert_eq!(got[..], bytes(tag), "{cipher:?} {length}");
            assert_eq!(data, bytes(encrypted), "{cipher:?} {length}");
        }
    }

    #[test]
    fn what_was_sealed_opens_and_nothing_else() {
        for cipher in Cipher::ALL {
            let key: Vec<u8> = (0..cipher.key_length() as u8).collect();
            let sealer = Sealer::new(cipher, &key).unwrap();
            let nonce = vec![7; cipher.nonce_length()];
            for length in [0, 1, 15, 16, 17, 1000] {
                let plain: Vec<u8> = (0..length).map(|it| it as u8).collect();
                let mut sealed = plain.clone();
                let tag = sealer.seal(&nonce, b"aad", &mut sealed).unwrap();
                assert!(length == 0 || sealed != plain, "{cipher:?}");

                let open = |nonce: &[u8], aad: &[u8], data: &[u8], tag: &[u8]| {
                    let mut data = data.to_vec();
                    sealer.open(nonce, aad, &mut data, tag).then_some(data)
                };
                assert_eq!(open(&nonce, b"aad", &sealed, &tag), Some(plain.clone()));
                assert_eq!(open(&nonce, b"aae", &sealed, &tag), None);
                assert_eq!(open(&nonce, b"aad", &sealed, &tag[..15]), None);
                assert_eq!(open(&nonce[1..], b"aad", &sealed, &tag), None);
                let longer = [&nonce[..], &[7]].concat();
                assert_eq!(open(&longer, b"aad", &sealed, &tag), None);
                let other = vec![8; cipher.nonce_length()];
                assert_eq!(open(&other, b"aad", &sealed, &tag), None);
                let mut wrong = tag;
                wrong[15] ^= 1;
                assert_eq!(open(&nonce, b"aad", &sealed, &wrong), None);
                if let Some(last) = sealed.last_mut() {
                    *last ^= 0x80;
                    assert_eq!(open(&nonce, b"aad", &sealed, &tag), None);
                }
            }
            assert!(Sealer::new(cipher, &key[1..]).is_none());
            assert!(sealer.seal(&nonce[1..], b"", &mut [0; 4]).is_none());
        }
    }
}
