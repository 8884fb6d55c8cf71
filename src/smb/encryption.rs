//! Encryption of a session: SMB2 TRANSFORM_HEADER (`[MS-SMB2] 2.2.41`, 3.1.4.3) and the nonces that
//! its messages and its RDMA payloads draw from one source.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::cipher::{Cipher, Sealer, Tag};
use super::crypto::{derive_key, Preauth};
use super::error::SmbError;
use super::options::Dialect;

/// The keys of a session, the same on all of its channels.
pub(super) struct Encryption {
    /// What we send: Session.EncryptionKey of a client.
    ours: Sealer,
    /// What the server sends: Session.DecryptionKey of a client.
    theirs: Sealer,
    /// Nonces that were used up.
    drawn: AtomicU64,
    seen: Seen,
}

impl Encryption {
    /// `[MS-SMB2] 3.2.5.3.1`: keys of 128 bits come from Session.SessionKey, those of 256 bits
    /// from all of what the authentication gave, `full_key`.
    pub(super) fn derive(
        dialect: Dialect,
        cipher: Cipher,
        session_key: &[u8],
        full_key: &[u8],
        preauth: &Preauth,
    ) -> Option<Self> {
        let key = |label: &[u8], context: &[u8]| {
            if cipher.key_length() == 32 {
                Sealer::new(cipher, &derive_key::<32>(full_key, label, context))
            } else {
                Sealer::new(cipher, &derive_key::<16>(session_key, label, context))
            }
        };
        let (ours, theirs) = match dialect {
            Dialect::Smb311 => (
                key(b"SMBC2SCipherKey\0", &preauth.0)?,
                key(b"SMBS2CCipherKey\0", &preauth.0)?,
            ),
            Dialect::Smb300 | Dialect::Smb302 => (
                key(b"SMB2AESCCM\0", b"ServerIn \0")?,
                key(b"SMB2AESCCM\0", b"ServerOut\0")?,
            ),
        };
        Some(Self {
            ours,
            theirs,
            drawn: AtomicU64::new(0),
            seen: Seen::default(),
        })
    }

    pub(super) fn cipher(&self) -> Cipher {
        self.ours.cipher()
    }

    /// A nonce that was never used with our key: not in this session, on none of its channels.
    pub(super) fn draw_nonce(&self) -> Vec<u8> {
        let number = self.drawn.fetch_add(1, Ordering::Relaxed);
        let mut nonce = number.to_le_bytes().to_vec();
        nonce.resize(self.cipher().nonce_length(), 0);
        nonce
    }

    /// Encrypts a payload in place: no associated data, as there is no header.
    pub(super) fn seal_payload(&self, nonce: &[u8], data: &mut [u8]) -> Result<Tag, SmbError> {
        self.ours.seal(nonce, &[], data).ok_or_else(|| {
            SmbError::Usage(format!("cannot encrypt a payload of {} bytes", data.len()))
        })
    }

    /// Decrypts a payload in place.
    pub(super) fn open_payload(
        &self,
        nonce: &[u8],
        data: &mut [u8],
        tag: &[u8],
    ) -> Result<(), SmbError> {
        if !self.theirs.open(nonce, &[], data, tag) {
            let length = data.len();
            return Err(SmbError::Signature(format!(
                "RDMA payload of {length} bytes: the tag does not match"
            )));
        }
        self.seen.add(nonce)
    }

    /// The encrypted message, with its header, of the message that `parts` make.
    pub(super) fn seal_message(
        &self,
        session_id: u64,
        parts: &[&[u8]],
    ) -> Result<Vec<u8>, SmbError> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let size = u32::try_from(length)
            .map_err(|_| SmbError::Usage(format!("a message of {length} bytes")))?;
        let nonce = self.draw_nonce();
        let mut message = Vec::with_capacity(TRANSFORM_HEADER + length);
        message.extend_from_slice(PROTOCOL_ID);
        message.extend_from_slice(&[0; 16]);
        message.extend_from_slice(&nonce);
        message.resize(36, 0);
        message.extend_from_slice(&size.to_le_bytes());
        message.extend_from_slice(&[0; 2]);
        // Flags of 3.1.1: encrypted. EncryptionAlgorithm of 3.0: AES-128-CCM.
        message.extend_from_slice(&1u16.to_le_bytes());
        message.extend_from_slice(&session_id.to_le_bytes());
        for part in parts {
            message.extend_from_slice(part);
        }
        let (header, data) = message.split_at_mut(TRANSFORM_HEADER);
        let tag = self
            .ours
            .seal(&nonce, &header[AAD], data)
            .ok_or_else(|| SmbError::Usage(format!("cannot encrypt {length} bytes")))?;
        header[TAG].copy_from_slice(&tag);
        Ok(message)
    }

    /// The message inside an encrypted one: `[MS-SMB2] 3.2.5.1.1.1`.
    pub(super) fn open_message(
        &self,
        session_id: u64,
        mut message: Vec<u8>,
    ) -> Result<Vec<u8>, SmbError> {
        let wrong = |text: String| Err(SmbError::Message(format!("encrypted message: {text}")));
        if !is_encrypted(&message) || message.len() < TRANSFORM_HEADER {
            return wrong(format!("{} bytes without its header", message.len()));
        }
        let mut data = message.split_off(TRANSFORM_HEADER);
        let size = le32(&message[36..40]) as usize;
        if size != data.len() {
            return wrong(format!("OriginalMessageSize {size}, {} bytes", data.len()));
        }
        if message[42..44] != [1, 0] {
            return wrong(format!("Flags {:02x?} instead of 1", &message[42..44]));
        }
        if message[44..52] != session_id.to_le_bytes() {
            return wrong(format!("SessionId {:02x?}", &message[44..52]));
        }
        let length = self.cipher().nonce_length();
        let nonce = &message[20..20 + length];
        if !self
            .theirs
            .open(nonce, &message[AAD], &mut data, &message[TAG])
        {
            return Err(SmbError::Signature(
                "encrypted message: the tag does not match".into(),
            ));
        }
        self.seen.add(nonce)?;
        Ok(data)
    }
}

/// Whether a message starts as encrypted ones do.
pub(super) fn is_encrypted(message: &[u8]) -> bool {
    message.starts_with(PROTOCOL_ID)
}

/// The nonces that came from the server. One that comes again gives the plain text of both
/// messages away, so that it is an error here, although a client need not look.
#[derive(Default)]
pub(super) struct Seen(Mutex<HashSet<Box<[u8]>>>);

impl Seen {
    /// # Errors
    /// It was there before.
    pub(super) fn add(&self, nonce: &[u8]) -> Result<(), SmbError> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() < MAX_SEEN && !seen.insert(nonce.into()) {
            return Err(SmbError::Signature(format!(
                "the server used a nonce twice: {nonce:02x?}"
            )));
        }
        Ok(())
    }
}

fn le32(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_le_bytes)
}

/// Bytes of a TRANSFORM_HEADER.
pub(super) const TRANSFORM_HEADER: usize = 52;
const PROTOCOL_ID: &[u8] = b"\xfdSMB";
const TAG: std::ops::Range<usize> = 4..20;
/// The header but for ProtocolId and Signature.
const AAD: std::ops::Range<usize> = 20..52;
/// Later ones are not remembered: about 64 MB.
const MAX_SEEN: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::super::crypto::tests::bytes;
    use super::*;

    fn smb300() -> Encryption {
        let key = bytes("B4546771B515F766A86735532DD6C4F0");
        let cipher = Cipher::Aes128Ccm;
        Encryption::derive(Dialect::Smb300, cipher, &key, &key, &Preauth::new()).unwrap()
    }

    fn smb311() -> Encryption {
        let key = bytes("419FDDF34C1E001909D362AE7FB6AF79");
        let preauth = bytes(
            "B23F3CBFD69487D9832B79B1594A367CDD950909B774C3A4C412B4FCEA9EDDDB
             A7DB256BA2EA30E977F11F9B113247578E0E915C6D2A513B8F2FCA5707DC8770",
        );
        let preauth = Preauth(preauth.try_into().unwrap());
        let cipher = Cipher::Aes128Gcm;
        Encryption::derive(Dialect::Smb311, cipher, &key, &key, &preauth).unwrap()
    }

    const ID_300: u64 = 0x0008_e400_1400_0011;
    const ID_311: u64 = 0x1000_0000_0025;
    /// From Microsoft's article "Encryption in SMB 3.0: A protocol perspective", AES-128-CCM.
    const REQUEST_300: &str = "
        FD534D4281A286535415445DAE393921E44FA42E66E69A111892584FB5ED524A
        744DA3EE87000000000001001100001400E4080025C8FEE16605A437832D1CD5
        2DA9F4645333482A175FE5384563F45FCDAFAEF38BC62BA4D5C62897996625A4
        4C29BE5658DE2E6117585779E7B59FFD971278D08580D7FA899E410E910EABF5
        AA1DB43050B33B49182637759AC15D84BFCDF5B6B238993C0F4CF4D6012023F6
        C627297075D84B7803912D0A9639634453595EF3E33FFE4E7AC2AB";
    const RESPONSE_300: &str = "
        FD534D42A6015530A18F6D9AFFE22AFAE8E66484860000000000000011000014
        00E4080050000000000001001100001400E40800DBF46435C5F14169293CE079
        E344479BF670227E49873F458672C3098DAC467DD5809F369D67409166515787
        1483E01F7BECD02064EAC3E235F913668BBC2F097980D4B378F1993EFF6E60D1
        77309E5B";
    /// From Microsoft's article "SMB 3.1.1 Encryption in Windows 10", AES-128-GCM.
    const REQUEST_311: &str = "
        FD534D42BD73D97D2BC9001BCAFAC0FDFF5FEEBCC7D6822D269CAF48904C664C
        00000000870000000000010025000000001000006ECDD2A7AFC7B47763057A04
        1B8FD4DAFFE990B70C9E09D36C084E02D14EF247F8BDE38ACF6256F8B1D3B56F
        77FBDEB312FEA5E92CBCC1ED8FB2EBBFAA75E49A4A394BB44576545567C24D4C
        014D47C9FBDFDAFD2C4F9B72F8D256452620A299F48E29E53D6B61D1C13A19E9
        1AF013F00D17E3ABC2FC3D36C8C1B6B93973253852DBD442E46EE8";
    const RESPONSE_311: &str = "
        FD534D42ACBE1CB7ED343ADF1725EF144D90D4B0E06831DD2E8EB7B400000000
        000000005000000000000100250000000010000026BBBF949983A6C1C796559D
        0F2C510CB651D1F7B6AC8DED32A2A0B8F2D793A815C6F6B848D69767A215841A
        42D400AE6DDB5F0B44173A014973321FDD7950DA6179159B82E03C9E18A050FF
        0EA1C967";

    #[test]
    fn messages_are_those_of_microsoft() {
        let cases = [
            (smb300(), ID_300, REQUEST_300, RESPONSE_300),
            (smb311(), ID_311, REQUEST_311, RESPONSE_311),
        ];
        for (it, id, request, response) in cases {
            let opened = it.open_message(id, bytes(response)).unwrap();
            assert_eq!(opened[..12], *b"\xfeSMB\x40\0\x01\0\0\0\0\0");
            assert_eq!(opened[64..72], [17, 0, 0, 0, 23, 0, 0, 0]);

            // The request again, from what is in it.
            let request = bytes(request);
            let nonce = &request[20..20 + it.cipher().nonce_length()];
            let mut data = request[TRANSFORM_HEADER..].to_vec();
            assert!(it.ours.open(nonce, &request[AAD], &mut data, &request[TAG]));
            assert_eq!(data[112..], *b"Smb3 encryption testing");
            let tag = it.ours.seal(nonce, &request[AAD], &mut data).unwrap();
            assert_eq!(tag, request[TAG]);
            assert_eq!(data, request[TRANSFORM_HEADER..]);
        }
    }

    /// What one side sends, the other one reads: the keys are those of two directions.
    #[test]
    fn a_message_that_was_changed_does_not_open() {
        let client = smb311();
        let mut server = smb311();
        std::mem::swap(&mut server.ours, &mut server.theirs);
        let sealed = client.seal_message(5, &[b"one", b"", b"two"]).unwrap();
        assert_eq!(sealed.len(), TRANSFORM_HEADER + 6);
        for at in 0..sealed.len() {
            let mut wrong = sealed.clone();
            wrong[at] ^= 1;
            assert!(server.open_message(5, wrong).is_err(), "{at}");
        }
        for length in [0, 3, 51, 52, sealed.len() - 1] {
            assert!(server.open_message(5, sealed[..length].to_vec()).is_err());
        }
        assert!(server.open_message(6, sealed.clone()).is_err());
        assert!(client.open_message(5, sealed.clone()).is_err());
        assert_eq!(server.open_message(5, sealed.clone()).unwrap(), b"onetwo");
        let again = server.open_message(5, sealed).unwrap_err();
        assert!(again.to_string().contains("twice"), "{again}");
    }

    #[test]
    fn nonces_do_not_repeat() {
        for it in [smb300(), smb311()] {
            let seen = Seen::default();
            for _ in 0..1000 {
                let nonce = it.draw_nonce();
                assert_eq!(nonce.len(), it.cipher().nonce_length());
                seen.add(&nonce).unwrap();
            }
            let mut payload = *b"payload";
            let nonce = it.draw_nonce();
            let message = it.seal_message(1, &[b"message"]).unwrap();
            seen.add(&nonce).unwrap();
            seen.add(&message[20..20 + nonce.len()]).unwrap();
            assert!(seen.add(&nonce).is_err());
            assert!(it.seal_payload(&nonce, &mut payload).is_ok());
            assert_ne!(payload, *b"payload");
        }
    }

    /// Keys of 256 bits come from the whole key of the authentication.
    #[test]
    fn long_keys_come_from_the_full_key() {
        let cipher = Cipher::Aes256Gcm;
        let derive = |session: &[u8], full: &[u8]| {
            let preauth = Preauth::new();
            Encryption::derive(Dialect::Smb311, cipher, session, full, &preauth).unwrap()
        };
        let sealed = |it: &Encryption| it.seal_message(1, &[b"message"]).unwrap();
        let one = sealed(&derive(&[1; 16], &[1; 32]));
        assert_eq!(one, sealed(&derive(&[2; 16], &[1; 32])));
        assert_ne!(one, sealed(&derive(&[1; 16], &[1; 31])));
    }
}
