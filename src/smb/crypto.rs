//! Keys, signatures and the pre-authentication hash: `[MS-SMB2] 3.1.4.1`, 3.1.4.2, 3.1.1.1.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use aes::Aes128;
use aes_gcm::aead::AeadInPlace;
use aes_gcm::{Aes128Gcm, KeyInit};
use cmac::Cmac;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256, Sha512};
use smb_msg::SigningAlgorithmId;

use super::cipher::Tag;
use super::encryption::Seen;
use super::error::SmbError;
use super::options::Dialect;

/// A key of 128 bits.
pub(super) type Key = [u8; 16];

/// Signs and verifies the messages of one channel, and its RDMA payloads.
#[derive(Clone)]
pub(super) struct Signer {
    algorithm: SigningAlgorithmId,
    key: Key,
    payloads: Arc<PayloadNonces>,
}

/// The nonces of AES-GMAC over payloads. Client and server have the same key, for messages and for
/// payloads, and none of them knows the other's nonces. So one of ours has a bit that nonces of
/// messages ([`gmac_nonce`]) have not, and 88 bits of which the server cannot have the same.
struct PayloadNonces {
    next: AtomicU64,
    salt: [u8; 3],
    /// The server's.
    seen: Seen,
}

impl PayloadNonces {
    fn new() -> Result<Self, SmbError> {
        let mut random = [0; 11];
        getrandom::fill(&mut random).map_err(|error| SmbError::Usage(error.to_string()))?;
        let [a, b, c, d, e, f, g, h, salt @ ..] = random;
        Ok(Self {
            next: AtomicU64::new(u64::from_le_bytes([a, b, c, d, e, f, g, h])),
            salt,
            seen: Seen::default(),
        })
    }

    fn draw(&self) -> Vec<u8> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut nonce = number.to_le_bytes().to_vec();
        nonce.push(4);
        nonce.extend_from_slice(&self.salt);
        nonce
    }
}

impl Signer {
    /// The signer of a channel whose authentication gave `session_key`; `preauth` is the
    /// pre-authentication hash of that exchange, without its last response.
    pub(super) fn derive(
        dialect: Dialect,
        algorithm: SigningAlgorithmId,
        session_key: &Key,
        preauth: &Preauth,
    ) -> Result<Self, SmbError> {
        let key = match dialect {
            Dialect::Smb311 => derive_key(session_key, b"SMBSigningKey\0", &preauth.0),
            Dialect::Smb300 | Dialect::Smb302 => {
                derive_key(session_key, b"SMB2AESCMAC\0", b"SmbSign\0")
            }
        };
        Self::new(algorithm, key)
    }

    fn new(algorithm: SigningAlgorithmId, key: Key) -> Result<Self, SmbError> {
        Ok(Self {
            algorithm,
            key,
            payloads: Arc::new(PayloadNonces::new()?),
        })
    }

    /// A nonce for [`sign_payload`](Self::sign_payload) that was never used; empty if the
    /// algorithm takes none.
    pub(super) fn draw_payload_nonce(&self) -> Vec<u8> {
        match self.algorithm {
            SigningAlgorithmId::AesGmac => self.payloads.draw(),
            SigningAlgorithmId::AesCmac | SigningAlgorithmId::HmacSha256 => Vec::new(),
        }
    }

    /// Bytes of the nonces of payloads.
    fn payload_nonce_length(&self) -> usize {
        match self.algorithm {
            SigningAlgorithmId::AesGmac => 12,
            SigningAlgorithmId::AesCmac | SigningAlgorithmId::HmacSha256 => 0,
        }
    }

    /// The signature of a payload: `[MS-SMB2] 3.1.4.1`, over the payload alone. None: the nonce
    /// has not the length that the algorithm wants.
    pub(super) fn sign_payload(&self, nonce: &[u8], payload: &[u8]) -> Option<Tag> {
        if nonce.len() != self.payload_nonce_length() {
            return None;
        }
        Some(self.mac(nonce, payload, &[]))
    }

    /// Verifies a payload of the server.
    pub(super) fn verify_payload(
        &self,
        nonce: &[u8],
        payload: &[u8],
        signature: &[u8],
    ) -> Result<(), SmbError> {
        let expected = self.sign_payload(nonce, payload);
        if expected.is_none_or(|expected| expected != signature) {
            let length = payload.len();
            return Err(SmbError::Signature(format!(
                "RDMA payload of {length} bytes: the signature is wrong"
            )));
        }
        if nonce.is_empty() {
            return Ok(());
        }
        self.payloads.seen.add(nonce)
    }

    /// Writes the signature of one request or response into its header. What `parts` make together
    /// is a whole message; the header is in the first part.
    pub(super) fn sign(&self, head: &mut [u8], tail: &[u8]) {
        head[SIGNATURE].fill(0);
        let signature = self.signature(head, tail);
        head[SIGNATURE].copy_from_slice(&signature);
    }

    /// Whether a message has the right signature.
    pub(super) fn is_valid(&self, message: &[u8]) -> bool {
        let mut copy = message.to_vec();
        if copy.len() < HEADER {
            return false;
        }
        self.sign(&mut copy[..], &[]);
        copy[SIGNATURE] == message[SIGNATURE]
    }

    /// The signature of a message whose signature field is zero.
    fn signature(&self, head: &[u8], tail: &[u8]) -> Tag {
        let nonce = match self.algorithm {
            SigningAlgorithmId::AesGmac => gmac_nonce(head),
            SigningAlgorithmId::AesCmac | SigningAlgorithmId::HmacSha256 => [0; 12],
        };
        self.mac(&nonce, head, tail)
    }

    /// `nonce`: 12 bytes for AES-GMAC, not used otherwise.
    fn mac(&self, nonce: &[u8], head: &[u8], tail: &[u8]) -> Tag {
        let mut signature = [0; 16];
        match self.algorithm {
            SigningAlgorithmId::AesCmac => {
                let mut mac = <Cmac<Aes128> as Mac>::new(&self.key.into());
                mac.update(head);
                mac.update(tail);
                signature.copy_from_slice(&mac.finalize().into_bytes());
            }
            SigningAlgorithmId::HmacSha256 => {
                let mut mac = hmac_sha256(&self.key);
                mac.update(head);
                mac.update(tail);
                signature.copy_from_slice(&mac.finalize().into_bytes()[..16]);
            }
            SigningAlgorithmId::AesGmac => {
                let joined;
                let message = if tail.is_empty() {
                    head
                } else {
                    joined = [head, tail].concat();
                    &joined
                };
                let cipher = Aes128Gcm::new(&self.key.into());
                // All of the message is associated data. AES-GCM takes 2^61 bytes of it.
                if let Ok(tag) = cipher.encrypt_in_place_detached(nonce.into(), message, &mut []) {
                    signature.copy_from_slice(&tag);
                }
            }
        }
        signature
    }
}

/// `[MS-SMB2] 3.1.4.1`: the message id, then bit 0 for responses, bit 1 for CANCEL.
fn gmac_nonce(head: &[u8]) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&head[24..32]);
    let is_response = head[16] & 1;
    let is_cancel = u8::from(head[12..14] == [12, 0]);
    nonce[8] = is_response | is_cancel << 1;
    nonce
}

/// The hash over everything that was said before authentication ended (SHA-512).
#[derive(Clone)]
pub(super) struct Preauth(pub(super) [u8; 64]);

impl Preauth {
    pub(super) fn new() -> Self {
        Self([0; 64])
    }

    pub(super) fn add(&mut self, message: &[u8]) {
        let mut hash = Sha512::new();
        hash.update(self.0);
        hash.update(message);
        self.0.copy_from_slice(&hash.finalize());
    }
}

/// SP800-108 in counter mode with HMAC-SHA256, r = 32, L = 128 or 256: one block is all there is to
/// it.
pub(super) fn derive_key<const N: usize>(key: &[u8], label: &[u8], context: &[u8]) -> [u8; N] {
    let mut mac = hmac_sha256(key);
    mac.update(&1u32.to_be_bytes());
    mac.update(label);
    mac.update(&[0]);
    mac.update(context);
    mac.update(&(N as u32 * 8).to_be_bytes());
    let mut derived = [0; N];
    derived.copy_from_slice(&mac.finalize().into_bytes()[..N]);
    derived
}

fn hmac_sha256(key: &[u8]) -> Hmac<Sha256> {
    <Hmac<Sha256> as Mac>::new_from_slice(key).expect("HMAC takes keys of any length")
}

/// Bytes of an SMB2 header.
pub(super) const HEADER: usize = 64;
const SIGNATURE: std::ops::Range<usize> = 48..64;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u32> = hex.chars().filter_map(|digit| digit.to_digit(16)).collect();
        digits
            .chunks(2)
            .map(|pair| (pair[0] << 4 | pair[1]) as u8)
            .collect()
    }

    fn key(hex: &str) -> Key {
        bytes(hex).try_into().unwrap()
    }

    /// The keys of Microsoft's article "SMB 2 and SMB 3 security in Windows 10: the anatomy of
    /// signing and cryptographic keys".
    #[test]
    fn signing_keys_are_those_of_microsoft() {
        let derive = |dialect, session_key, preauth: &str| {
            let preauth = Preauth(bytes(preauth).try_into().unwrap());
            Signer::derive(
                dialect,
                SigningAlgorithmId::AesCmac,
                &key(session_key),
                &preauth,
            )
            .unwrap()
            .key
        };
        let hash = "0DD13628CC3ED218EF9DF9772D436D0887AB9814BFAE63A80AA845F36909DB79
                    28622DDDAD522D9751640A459762C5A9D6BB084CBB3CE6BDADEF5D5BCE3C6C01";
        assert_eq!(
            derive(Dialect::Smb300, "7CD451825D0450D235424E44BA6E78CC", hash),
            key("0B7E9C5CAC36C0F6EA9AB275298CEDCE")
        );
        assert_eq!(
            derive(Dialect::Smb311, "270E1BA896585EEB7AF3472D3B4C75A7", hash),
            key("73FE7A9A77BEF0BDE49C650D8CCB5F76")
        );
    }

    /// RFC 4493 section 4, example 3: the same function that signs.
    #[test]
    fn cmac_is_that_of_rfc_4493() {
        let algorithm = SigningAlgorithmId::AesCmac;
        let signer = Signer::new(algorithm, key("2b7e151628aed2a6abf7158809cf4f3c")).unwrap();
        let message = bytes(
            "6bc1bee22e409f96e93d7e117393172a ae2d8a571e03ac9c9eb76fac45af8e51
             30c81c46a35ce411",
        );
        let (head, tail) = message.split_at(16);
        let expected = key("dfa66747de9ae63030ca32611497c827");
        assert_eq!(signer.signature(head, tail), expected);
        assert_eq!(signer.sign_payload(&[], &message), Some(expected));
    }

    /// RFC 4231 section 4.3, test case 2, cut to 16 bytes. Its key is shorter than ours: zeros at
    /// the end of an HMAC key change nothing.
    #[test]
    fn hmac_is_that_of_rfc_4231() {
        let mut key = [0; 16];
        key[..4].copy_from_slice(b"Jefe");
        let signer = Signer::new(SigningAlgorithmId::HmacSha256, key).unwrap();
        let expected = bytes("5bdcc146bf60754e6a042426089575c7");
        let got = signer.signature(b"what do ya want ", b"for nothing?");
        assert_eq!(got[..], expected);
        let payload = signer.sign_payload(&[], b"what do ya want for nothing?");
        assert_eq!(payload.unwrap()[..], expected);
    }

    /// The test case 3 of GMAC in IEEE 802.1AE annex C.1.1 (54-byte packet, authentication only).
    #[test]
    fn gmac_is_that_of_ieee_802_1ae() {
        let algorithm = SigningAlgorithmId::AesGmac;
        let signer = Signer::new(algorithm, key("AD7A2BD03EAC835A6F620FDCB506B345")).unwrap();
        let frame = bytes(
            "D609B1F056637A0D46DF998D88E5222A B2C2846512153524C0895E8108000F10
             1112131415161718191A1B1C1D1E1F20 2122232425262728292A2B2C2D2E2F30
             313233340001",
        );
        let nonce = bytes("12153524C0895E81B2C28465");
        let expected = key("F09478A9B09007D06F46E9B6A1DA25DD");
        assert_eq!(signer.sign_payload(&nonce, &frame), Some(expected));
        assert_eq!(signer.sign_payload(&nonce[1..], &frame), None);
        signer.verify_payload(&nonce, &frame, &expected).unwrap();
        assert!(signer.verify_payload(&nonce, &frame, &expected).is_err());
    }

    #[test]
    fn a_changed_payload_is_noticed() {
        for algorithm in [
            SigningAlgorithmId::AesCmac,
            SigningAlgorithmId::AesGmac,
            SigningAlgorithmId::HmacSha256,
        ] {
            let signer = Signer::new(algorithm, [7; 16]).unwrap();
            for length in [0, 1, 16, 1000] {
                let nonce = signer.draw_payload_nonce();
                let mut payload = vec![5; length];
                let signature = signer.sign_payload(&nonce, &payload).unwrap();
                let verify = |nonce: &[u8], payload: &[u8], signature: &[u8]| {
                    signer.verify_payload(nonce, payload, signature).is_ok()
                };
                assert!(!verify(&nonce, &payload, &signature[..15]));
                assert!(!verify(&[&nonce[..], &[0]].concat(), &payload, &signature));
                assert!(verify(&nonce, &payload, &signature), "{algorithm:?}");
                if let Some(last) = payload.last_mut() {
                    *last ^= 1;
                    assert!(!verify(&nonce, &payload, &signature), "{algorithm:?}");
                }
            }
        }
    }

    #[test]
    fn nonces_of_payloads_are_no_others() {
        let signer = Signer::new(SigningAlgorithmId::AesGmac, [7; 16]).unwrap();
        let clone = signer.clone();
        let seen = Seen::default();
        for _ in 0..500 {
            for it in [&signer, &clone] {
                let nonce = it.draw_payload_nonce();
                assert_eq!((nonce.len(), nonce[8]), (12, 4));
                seen.add(&nonce).unwrap();
            }
        }
    }

    #[test]
    fn a_changed_message_is_noticed() {
        for algorithm in [
            SigningAlgorithmId::AesCmac,
            SigningAlgorithmId::AesGmac,
            SigningAlgorithmId::HmacSha256,
        ] {
            let signer = Signer::new(algorithm, [7; 16]).unwrap();
            let mut head = vec![1; 70];
            signer.sign(&mut head, b"tail");
            let mut message = [&head[..], b"tail"].concat();
            assert!(signer.is_valid(&message), "{algorithm:?}");
            for at in [0, 24, 63, 73] {
                message[at] ^= 1;
                assert!(!signer.is_valid(&message), "{algorithm:?} {at}");
                message[at] ^= 1;
            }
            assert!(!signer.is_valid(&message[..63]));
        }
    }

    #[test]
    fn the_nonce_of_gmac_tells_direction_and_cancel() {
        let mut head = [0; 64];
        head[24] = 5;
        assert_eq!(gmac_nonce(&head), [5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        head[16] = 9; // a signed response
        assert_eq!(gmac_nonce(&head)[8], 1);
        head[12] = 12;
        assert_eq!(gmac_nonce(&head)[8], 3);
    }
}
