//! Keys, signatures and the pre-authentication hash: `[MS-SMB2] 3.1.4.1`, 3.1.4.2, 3.1.1.1.

use aes::Aes128;
use aes_gcm::aead::AeadInPlace;
use aes_gcm::{Aes128Gcm, KeyInit};
use cmac::Cmac;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256, Sha512};
use smb_msg::SigningAlgorithmId;

use super::options::Dialect;

/// A key of 128 bits.
pub(super) type Key = [u8; 16];

/// Signs and verifies the messages of one channel.
#[derive(Clone)]
pub(super) struct Signer {
    pub(super) algorithm: SigningAlgorithmId,
    pub(super) key: Key,
}

impl Signer {
    /// The signer of a channel whose authentication gave `session_key`; `preauth` is the
    /// pre-authentication hash of that exchange, without its last response.
    pub(super) fn derive(
        dialect: Dialect,
        algorithm: SigningAlgorithmId,
        session_key: &Key,
        preauth: &Preauth,
    ) -> Self {
        let key = match dialect {
            Dialect::Smb311 => derive_key(session_key, b"SMBSigningKey\0", &preauth.0),
            Dialect::Smb300 | Dialect::Smb302 => {
                derive_key(session_key, b"SMB2AESCMAC\0", b"SmbSign\0")
            }
        };
        Self { algorithm, key }
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
    fn signature(&self, head: &[u8], tail: &[u8]) -> Key {
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
                let nonce = gmac_nonce(head);
                let message = [head, tail].concat();
                let cipher = Aes128Gcm::new(&self.key.into());
                // All of the message is associated data. AES-GCM takes 2^61 bytes of it.
                if let Ok(tag) = cipher.encrypt_in_place_detached(&nonce.into(), &message, &mut [])
                {
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

/// SP800-108 in counter mode with HMAC-SHA256, r = 32, L = 128: one block is all there is to it.
fn derive_key(key: &Key, label: &[u8], context: &[u8]) -> Key {
    let mut mac = hmac_sha256(key);
    mac.update(&1u32.to_be_bytes());
    mac.update(label);
    mac.update(&[0]);
    mac.update(context);
    mac.update(&128u32.to_be_bytes());
    let mut derived = [0; 16];
    derived.copy_from_slice(&mac.finalize().into_bytes()[..16]);
    derived
}

fn hmac_sha256(key: &Key) -> Hmac<Sha256> {
    <Hmac<Sha256> as Mac>::new_from_slice(key).expect("HMAC takes keys of any length")
}

/// Bytes of an SMB2 header.
pub(super) const HEADER: usize = 64;
const SIGNATURE: std::ops::Range<usize> = 48..64;

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
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
        let signer = Signer {
            algorithm: SigningAlgorithmId::AesCmac,
            key: key("2b7e151628aed2a6abf7158809cf4f3c"),
        };
        let message = bytes(
            "6bc1bee22e409f96e93d7e117393172a ae2d8a571e03ac9c9eb76fac45af8e51
             30c81c46a35ce411",
        );
        let (head, tail) = message.split_at(16);
        let expected = key("dfa66747de9ae63030ca32611497c827");
        assert_eq!(signer.signature(head, tail), expected);
    }

    #[test]
    fn a_changed_message_is_noticed() {
        for algorithm in [
            SigningAlgorithmId::AesCmac,
            SigningAlgorithmId::AesGmac,
            SigningAlgorithmId::HmacSha256,
        ] {
            let signer = Signer {
                algorithm,
                key: [7; 16],
            };
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
