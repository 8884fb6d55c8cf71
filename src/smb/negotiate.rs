//! NEGOTIATE: what is offered, and what came out of it.

use std::io::Cursor;
use std::net::SocketAddr;
use std::time::Instant;

use binrw::BinWrite;
use smb_dtyp::Guid;
use smb_msg::{
    Command, EncryptionCapabilities, EncryptionCipher, GlobalCapabilities, HashAlgorithm,
    NegotiateContext, NegotiateContextValue, NegotiateDialect, NegotiateRequest, NegotiateResponse,
    NegotiateSecurityMode, PreauthIntegrityCapabilities, RdmaTransformId, SigningAlgorithmId,
    SigningCapabilities,
};

use super::cipher::Cipher;
use super::connection::{Built, Connection};
use super::direct::Direct;
use super::error::SmbError;
use super::message::{Request, Response};
use super::options::{Dialect, Negotiated, Options, Profile};
use super::tcp::Tcp;
use super::transform::transform_id;
use super::transport::{Carrier, Transport};

/// A connection whose NEGOTIATE was sent and is not answered yet. For several that negotiate at the
/// same moment.
pub struct Negotiating {
    connection: Connection,
    request: Built,
}

impl Negotiating {
    /// Connects by plain TCP and sends NEGOTIATE.
    ///
    /// # Errors
    /// No connection.
    pub fn tcp(peer: SocketAddr, options: &Options) -> Result<Self, SmbError> {
        let tcp = Tcp::connect(peer, Instant::now() + options.patience)?;
        Self::begin(Transport::Tcp(tcp), options)
    }

    /// Connects by SMB Direct and sends NEGOTIATE.
    ///
    /// # Errors
    /// No connection.
    pub fn direct(
        peer: SocketAddr,
        profile: &Profile,
        options: &Options,
    ) -> Result<Self, SmbError> {
        let direct = Direct::connect(peer, profile, Instant::now() + options.patience)?;
        Self::begin(Transport::Direct(Box::new(direct)), options)
    }

    /// Sends NEGOTIATE over a transport of the caller's.
    ///
    /// # Errors
    /// The transport's.
    pub fn over(carrier: Box<dyn Carrier>, options: &Options) -> Result<Self, SmbError> {
        Self::begin(Transport::Own(carrier), options)
    }

    fn begin(transport: Transport, options: &Options) -> Result<Self, SmbError> {
        let mut connection = Connection::new(transport, options);
        let body = negotiate_request(options)?;
        let mut request = Request::new(Command::Negotiate, &body)?;
        for (kind, data) in contexts(options) {
            append_context(&mut request.head, kind, &data)?;
        }
        let request = connection.build(request)?;
        connection.send(&request)?;
        Ok(Self {
            connection,
            request,
        })
    }

    /// Waits for the answer.
    ///
    /// # Errors
    /// None came, or there is no dialect in common.
    pub fn finish(self) -> Result<Connection, SmbError> {
        let Self {
            mut connection,
            request,
        } = self;
        let response = connection.wait(request.id)?.success()?;
        connection.preauth.add(&request.head);
        connection.preauth.add(&response.bytes);
        let (response, has_cipher) = without_cipher_none(response);
        let body = response.body()?;
        connection.negotiated = negotiated(&connection.options, &body, has_cipher)?;
        if connection.negotiated.dialect == Dialect::Smb311 {
            connection.transforms = transforms(&connection.options, &body)?;
        }
        Ok(connection)
    }
}

/// Contexts that `smb-msg` does not write as freely as tests want them.
fn contexts(options: &Options) -> Vec<(u16, Vec<u8>)> {
    let mut contexts = Vec::new();
    if !options.dialects.contains(&Dialect::Smb311) {
        return contexts;
    }
    if !options.transforms.is_empty() {
        // `[MS-SMB2] 2.2.3.1.6`.
        let mut data = (options.transforms.len() as u16).to_le_bytes().to_vec();
        data.extend([0; 6]);
        for id in &options.transforms {
            data.extend(id.to_le_bytes());
        }
        contexts.push((RDMA_TRANSFORM_CAPABILITIES, data));
    }
    contexts.extend(options.contexts.iter().cloned());
    contexts
}

/// Adds a context behind the others: `[MS-SMB2] 2.2.3.1`.
fn append_context(message: &mut Vec<u8>, kind: u16, data: &[u8]) -> Result<(), SmbError> {
    let missing = || SmbError::Usage("negotiate contexts go with 3.1.1 only".into());
    let count = message.get_mut(CONTEXT_COUNT).ok_or_else(missing)?;
    let number = u16::from_le_bytes([count[0], count[1]]);
    if number == 0 {
        return Err(missing());
    }
    count.copy_from_slice(&(number + 1).to_le_bytes());
    message.resize(message.len().next_multiple_of(8), 0);
    message.extend(kind.to_le_bytes());
    message.extend((data.len() as u16).to_le_bytes());
    message.extend([0; 4]);
    message.extend(data);
    Ok(())
}

/// A server that has none of the ciphers offered answers with 0 (`[MS-SMB2] 3.3.5.4`), which
/// `smb-msg` does not know. False: it was that, and now is one of those that it does know.
fn without_cipher_none(mut response: Response) -> (Response, bool) {
    let Some(at) = context_data(&response.bytes, ENCRYPTION_CAPABILITIES) else {
        return (response, true);
    };
    match response.bytes.get_mut(at..at + 4) {
        Some(data @ [1, 0, 0, 0]) => {
            data[2] = EncryptionCipher::Aes128Ccm as u8;
            (response, false)
        }
        _ => (response, true),
    }
}

/// Where the data of a context is in a response of 3.1.1.
fn context_data(message: &[u8], wanted: u16) -> Option<usize> {
    let le16 = |at: usize| {
        let bytes = message.get(at..at.checked_add(2)?)?;
        Some(u16::from_le_bytes(bytes.try_into().ok()?))
    };
    if le16(64 + 4)? != smb_msg::Dialect::Smb0311 as u16 {
        return None;
    }
    let offset = message.get(64 + 60..64 + 64)?;
    let mut at = u32::from_le_bytes(offset.try_into().ok()?) as usize;
    for _ in 0..le16(64 + 6)? {
        if le16(at)? == wanted {
            return Some(at + 8);
        }
        let length = usize::from(le16(at + 2)?);
        at = at.checked_add(8 + length)?.next_multiple_of(8);
    }
    None
}

/// NegotiateContextCount of a request.
const CONTEXT_COUNT: std::ops::Range<usize> = 64 + 32..64 + 34;
const ENCRYPTION_CAPABILITIES: u16 = 2;
const RDMA_TRANSFORM_CAPABILITIES: u16 = 7;

/// Connection.RDMATransformIds: `[MS-SMB2] 3.2.5.2`.
fn transforms(options: &Options, response: &NegotiateResponse) -> Result<Vec<u16>, SmbError> {
    let contexts = response.negotiate_context_list.iter().flatten();
    let mut found = contexts.filter_map(|it| match &it.data {
        NegotiateContextValue::RdmaTransformCapabilities(it) => Some(&it.transforms),
        _ => None,
    });
    let Some(ids) = found.next() else {
        return Ok(Vec::new());
    };
    let ids: Vec<u16> = ids
        .iter()
        .map(|id| match id {
            RdmaTransformId::None => transform_id::NONE,
            RdmaTransformId::Encryption => transform_id::ENCRYPTION,
            RdmaTransformId::Signing => transform_id::SIGNING,
        })
        .collect();
    let wrong = |what: &str| {
        let offered = &options.transforms;
        Err(SmbError::Message(format!(
            "RDMA transforms {ids:?} for {offered:?} offered: {what}"
        )))
    };
    if found.next().is_some() {
        return wrong("more than one context");
    }
    if options.transforms.is_empty() {
        return wrong("none was asked for");
    }
    let mut left = options.transforms.clone();
    left.push(transform_id::NONE);
    for id in &ids {
        match left.iter().position(|it| it == id) {
            Some(at) => left.remove(at),
            None => return wrong("not offered, or twice"),
        };
    }
    match ids[..] {
        [] => wrong("TransformCount 0"),
        [transform_id::NONE] => Ok(Vec::new()),
        _ if ids.contains(&transform_id::NONE) => wrong("NONE among others"),
        _ => Ok(ids),
    }
}

/// `[MS-SMB2] 3.2.5.2`.
fn cipher(
    options: &Options,
    dialect: Dialect,
    response: &NegotiateResponse,
) -> Result<Option<Cipher>, SmbError> {
    if dialect != Dialect::Smb311 {
        let has = response.capabilities.encryption();
        return Ok(has.then_some(Cipher::Aes128Ccm));
    }
    let Some(context) = response.get_ctx_encryption_capabilities() else {
        return Ok(None);
    };
    let [chosen] = context.ciphers[..] else {
        let count = context.ciphers.len();
        return Err(SmbError::Message(format!("{count} ciphers chosen")));
    };
    let chosen = Cipher::of(chosen);
    if !options.ciphers.contains(&chosen) {
        return Err(SmbError::Message(format!(
            "the server chose {chosen:?}, which was not offered"
        )));
    }
    Ok(Some(chosen))
}

/// `[MS-SMB2] 3.2.4.2.2.2`.
fn negotiate_request(options: &Options) -> Result<NegotiateRequest, SmbError> {
    let mut contexts: Option<Vec<NegotiateContext>> = None;
    if options.dialects.contains(&Dialect::Smb311) {
        let mut salt = vec![0; 32];
        getrandom::fill(&mut salt).map_err(|error| SmbError::Usage(error.to_string()))?;
        let preauth = PreauthIntegrityCapabilities {
            hash_algorithms: vec![HashAlgorithm::Sha512],
            salt,
        };
        let signing = SigningCapabilities {
            signing_algorithms: options.signing.algorithms(),
        };
        let mut list: Vec<NegotiateContext> = vec![preauth.into(), signing.into()];
        if !options.ciphers.is_empty() {
            let ciphers = options.ciphers.iter().map(|it| it.id()).collect();
            list.push(EncryptionCapabilities { ciphers }.into());
        }
        contexts = Some(list);
    }
    let dialects = options.dialects.iter().map(|dialect| match dialect {
        Dialect::Smb300 => smb_msg::Dialect::Smb030,
        Dialect::Smb302 => smb_msg::Dialect::Smb0302,
        Dialect::Smb311 => smb_msg::Dialect::Smb0311,
    });
    Ok(NegotiateRequest {
        security_mode: NegotiateSecurityMode::new()
            .with_signing_enabled(true)
            .with_signing_required(options.signing.is_required()),
        capabilities: GlobalCapabilities::new()
            .with_large_mtu(true)
            .with_multi_channel(true)
            // 3.1.1 has a context for it, but smbd wants both.
            .with_encryption(!options.ciphers.is_empty() || options.dialects != [Dialect::Smb311]),
        client_guid: Guid::try_from(&options.client_guid)?,
        dialects: dialects.collect(),
        negotiate_context_list: contexts,
    })
}

/// `[MS-SMB2] 3.2.5.2`.
fn negotiated(
    options: &Options,
    response: &NegotiateResponse,
    has_cipher: bool,
) -> Result<Negotiated, SmbError> {
    let dialect = match response.dialect_revision {
        NegotiateDialect::Smb030 => Dialect::Smb300,
        NegotiateDialect::Smb0302 => Dialect::Smb302,
        NegotiateDialect::Smb0311 => Dialect::Smb311,
        other => {
            return Err(SmbError::Message(format!(
                "the server chose dialect {other:?}"
            )))
        }
    };
    if !options.dialects.contains(&dialect) {
        let text = format!("the server chose {dialect:?}, which was not offered");
        return Err(SmbError::Message(text));
    }
    let chosen = response
        .get_ctx_signing_capabilities()
        .and_then(|context| context.signing_algorithms.first().copied());
    let mut guid = Cursor::new([0; 16]);
    response.server_guid.write_le(&mut guid)?;
    Ok(Negotiated {
        dialect,
        multi_channel: response.capabilities.multi_channel(),
        signing_required: response.security_mode.signing_required(),
        max_transact_size: response.max_transact_size,
        max_read_size: response.max_read_size,
        max_write_size: response.max_write_size,
        server_guid: guid.into_inner(),
        cipher: match has_cipher {
            true => cipher(options, dialect, response)?,
            false => None,
        },
        algorithm: chosen.unwrap_or(SigningAlgorithmId::AesCmac),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(transforms: &[u16]) -> Options {
        Options {
            transforms: transforms.to_vec(),
            ..Options::new().unwrap()
        }
    }

    /// The request that these options make.
    fn request(options: &Options) -> Vec<u8> {
        let body = negotiate_request(options).unwrap();
        let mut request = Request::new(Command::Negotiate, &body).unwrap();
        for (kind, data) in contexts(options) {
            append_context(&mut request.head, kind, &data).unwrap();
        }
        request.head
    }

    /// `[MS-SMB2] 2.2.3.1.6`.
    #[test]
    fn transforms_are_asked_for_in_a_context_of_their_own() {
        let without = request(&options(&[]));
        let with = request(&options(&[1, 2]));
        assert_eq!(with[CONTEXT_COUNT][0], without[CONTEXT_COUNT][0] + 1);
        let at = without.len().next_multiple_of(8);
        let context = [7, 0, 12, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0];
        assert_eq!(with[at..], context);
        let before = Options {
            dialects: vec![Dialect::Smb300, Dialect::Smb302],
            ..options(&[1, 2])
        };
        assert!(contexts(&before).is_empty());
    }

    /// A response of 3.1.1 with these contexts.
    fn response(contexts: &[(u16, &[u8])]) -> Response {
        let mut bytes = vec![0; 128];
        bytes[..8].copy_from_slice(b"\xfeSMB\x40\0\0\0");
        bytes[16] = 1;
        bytes[64] = 65;
        bytes[68..70].copy_from_slice(&0x311u16.to_le_bytes());
        bytes[70] = contexts.len() as u8;
        bytes[120] = 128;
        bytes[124] = 128;
        for (kind, data) in contexts {
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            bytes.extend(kind.to_le_bytes());
            bytes.extend((data.len() as u16).to_le_bytes());
            bytes.extend([0; 4]);
            bytes.extend(*data);
        }
        Response::parse(bytes, None).unwrap()
    }

    const PREAUTH: (u16, &[u8]) = (1, &[1, 0, 0, 0, 1, 0]);

    fn chosen(asked: &[u16], contexts: &[(u16, &[u8])]) -> Result<Vec<u16>, SmbError> {
        let body = response(&[&[PREAUTH], contexts].concat()).body()?;
        transforms(&options(asked), &body)
    }

    #[test]
    fn transforms_have_to_be_among_those_asked_for() {
        let both: (u16, &[u8]) = (7, &[2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0]);
        let one: (u16, &[u8]) = (7, &[1, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        let none: (u16, &[u8]) = (7, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let empty: (u16, &[u8]) = (7, &[0; 8]);
        let twice: (u16, &[u8]) = (7, &[2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0]);
        let mixed: (u16, &[u8]) = (7, &[2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(chosen(&[1, 2], &[both]).unwrap(), [1, 2]);
        assert_eq!(chosen(&[1, 2], &[one]).unwrap(), [1]);
        assert!(chosen(&[1, 2], &[none]).unwrap().is_empty());
        assert!(chosen(&[1, 2], &[]).unwrap().is_empty());
        for (asked, contexts) in [
            (&[1, 2][..], &[empty][..]),
            (&[1, 2], &[twice]),
            (&[1, 2], &[mixed]),
            (&[1, 2], &[one, one]),
            (&[2], &[one]),
            (&[1], &[both]),
            (&[], &[one]),
            (&[], &[none]),
        ] {
            assert!(chosen(asked, contexts).is_err(), "{asked:?} {contexts:?}");
        }
    }

    #[test]
    fn a_server_may_have_none_of_the_ciphers() {
        let of = |data: &[u8]| {
            let (response, has_cipher) = without_cipher_none(response(&[PREAUTH, (2, data)]));
            let chosen = cipher(&options(&[]), Dialect::Smb311, &response.body().unwrap());
            (has_cipher, chosen.ok().flatten())
        };
        assert_eq!(of(&[1, 0, 2, 0]), (true, Some(Cipher::Aes128Gcm)));
        assert!(!of(&[1, 0, 0, 0]).0);
        assert_eq!(of(&[2, 0, 1, 0, 2, 0]), (true, None));
        assert!(without_cipher_none(response(&[PREAUTH])).1);
    }
}
