//! Data that goes by RDMA while messages are signed or encrypted: `[MS-SMB2] 3.2.4.6`, 3.2.4.7,
//! 3.2.5.11.

use crate::mem::MemSlice;

use super::connection::Connection;
use super::error::SmbError;
use super::message::{Response, READ_TRANSFORM};
use super::options::Dialect;
use super::transform::{transform_id, transform_type, CryptoTransform, Expected};
use super::transport::Transport;

/// How data that goes by RDMA is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// As it is.
    Plain,
    /// A signature goes with it in the message.
    Signed,
    /// It is encrypted; the tag goes with it in the message.
    Encrypted,
}

impl Connection {
    /// How data of requests in a tree goes by RDMA, if everything is as session and share want it.
    /// None: it must not, as messages are signed or encrypted and there is no RDMA transform for
    /// that; or this is no RDMA connection.
    pub fn protection(&self, tree_id: u32) -> Option<Protection> {
        if !matches!(self.transport, Transport::Direct(_)) {
            return None;
        }
        let has = |id, protection| self.transforms.contains(&id).then_some(protection);
        if self.channel.encrypts || self.is_encrypted_tree(tree_id) {
            has(transform_id::ENCRYPTION, Protection::Encrypted)
        } else if self.channel.signs {
            has(transform_id::SIGNING, Protection::Signed)
        } else {
            Some(Protection::Plain)
        }
    }

    /// Makes the first `length` bytes of memory ready to be fetched by the server, in place:
    /// [`Protection::Encrypted`] leaves nothing of what was there. Returns the transform to send
    /// along.
    ///
    /// # Errors
    /// The session has no keys, or the memory is shorter.
    pub fn seal_payload(
        &mut self,
        protection: Protection,
        memory: &MemSlice,
        length: usize,
    ) -> Result<Option<CryptoTransform>, SmbError> {
        if protection == Protection::Plain {
            return Ok(None);
        }
        let mut data = std::mem::take(&mut self.scratch);
        let sealed = self.seal_data(protection, memory, length, &mut data);
        self.scratch = data;
        sealed.map(Some)
    }

    fn seal_data(
        &self,
        protection: Protection,
        memory: &MemSlice,
        length: usize,
        data: &mut Vec<u8>,
    ) -> Result<CryptoTransform, SmbError> {
        let outside = |error: crate::mem::MemError| SmbError::Usage(error.to_string());
        let no_keys = || SmbError::Usage(format!("{protection:?}: the session has no keys"));
        copy_out(memory, length, data)?;
        if protection == Protection::Signed {
            let signer = self.channel.signer.as_ref().ok_or_else(no_keys)?;
            let nonce = signer.draw_payload_nonce();
            let signature = signer.sign_payload(&nonce, data).ok_or_else(no_keys)?;
            return Ok(CryptoTransform {
                kind: transform_type::SIGNING,
                signature: signature.to_vec(),
                nonce,
            });
        }
        let encryption = &self.channel.crypt.as_ref().ok_or_else(no_keys)?.encryption;
        let nonce = encryption.draw_nonce();
        let tag = encryption.seal_payload(&nonce, data)?;
        memory.write(0, data).map_err(outside)?;
        Ok(CryptoTransform {
            kind: transform_type::ENCRYPTION,
            signature: tag.to_vec(),
            nonce,
        })
    }

    /// Verifies, and decrypts in place, what a READ response says that the server has placed in
    /// memory. Returns how many bytes of it there are.
    ///
    /// # Errors
    /// [`SmbError::InvalidResponse`]: the transform is not as it must be.
    /// [`SmbError::Signature`]: the data is not what was signed or encrypted.
    pub fn open_payload(
        &mut self,
        response: &Response,
        memory: &MemSlice,
    ) -> Result<u32, SmbError> {
        let (remaining, transform) = self.read_transform(response)?;
        let Some(transform) = transform else {
            return Ok(remaining);
        };
        let mut data = std::mem::take(&mut self.scratch);
        let opened = self.open_data(memory, remaining as usize, &transform, &mut data);
        self.scratch = data;
        opened.map(|()| remaining)
    }

    fn open_data(
        &self,
        memory: &MemSlice,
        length: usize,
        transform: &CryptoTransform,
        data: &mut Vec<u8>,
    ) -> Result<(), SmbError> {
        let no_keys = || SmbError::Usage("a transform, and the session has no keys".into());
        let (nonce, signature) = (&transform.nonce, &transform.signature);
        copy_out(memory, length, data)?;
        if transform.kind == transform_type::SIGNING {
            let signer = self.channel.signer.as_ref().ok_or_else(no_keys)?;
            return signer.verify_payload(nonce, data, signature);
        }
        let encryption = &self.channel.crypt.as_ref().ok_or_else(no_keys)?.encryption;
        encryption.open_payload(nonce, data, signature)?;
        memory
            .write(0, data)
            .map_err(|error| SmbError::Usage(error.to_string()))
    }

    /// DataRemaining of a READ response, and the transform of the data, both checked.
    ///
    /// # Errors
    /// As [`open_payload`](Self::open_payload).
    pub fn read_transform(
        &self,
        response: &Response,
    ) -> Result<(u32, Option<CryptoTransform>), SmbError> {
        let result = response.read_result()?;
        let is_direct = matches!(self.transport, Transport::Direct(_));
        let is_311 = self.negotiated.dialect == Dialect::Smb311;
        let crypt = self.channel.crypt.as_ref();
        let expected = Expected {
            is_311_over_rdma: is_direct && is_311,
            ids: &self.transforms,
            is_encrypted: response.is_encrypted,
            is_signed: response.header.flags.signed(),
            cipher_nonce: crypt.map(|it| it.encryption.cipher().nonce_length()),
        };
        // Before 3.1.1 the field is reserved.
        let has_flag = is_311 && result.flags & READ_TRANSFORM != 0;
        let transform = expected.check(has_flag, result.data, result.data_remaining)?;
        Ok((result.data_remaining, transform))
    }
}

fn copy_out(memory: &MemSlice, length: usize, data: &mut Vec<u8>) -> Result<(), SmbError> {
    if length > memory.len() {
        return Err(SmbError::InvalidResponse(format!(
            "{length} bytes of memory of {}",
            memory.len()
        )));
    }
    data.resize(length, 0);
    memory
        .read(0, data)
        .map_err(|error| SmbError::Usage(error.to_string()))
}
