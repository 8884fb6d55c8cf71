//! NEGOTIATE: reading the request, building the answer ([MS-SMB2] 2.2.3, 2.2.4, 3.3.5.4).

use std::fmt;
use std::time::Duration;

use super::contexts::{Cipher, ContextWriter, NegotiateContexts, SigningAlgorithm, ALIGNMENT};
use super::error::{NtStatus, Refusal, RouteError};
use super::header::{error_response, push_response_header, RequestHeader, HEADER_LEN};
use super::{array_at, flags, u16_at, u32_at, MAX_SECURITY_BLOB};

/// An SMB dialect that SMB Direct carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Dialect {
    /// SMB 3.0
    Smb300 = 0x0300,
    /// SMB 3.0.2
    Smb302 = 0x0302,
    /// SMB 3.1.1
    Smb311 = 0x0311,
}

impl Dialect {
    /// Every dialect, lowest first.
    pub const ALL: [Self; 3] = [Self::Smb300, Self::Smb302, Self::Smb311];

    /// The dialect with this DialectRevision; none for other numbers, 2.x among them.
    pub fn from_revision(revision: u16) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|dialect| *dialect as u16 == revision)
    }
}

/// The dialects of a request that are of interest here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DialectSet(u8);

impl DialectSet {
    /// The client offers `dialect`.
    pub fn contains(self, dialect: Dialect) -> bool {
        self.0 & Self::bit(dialect) != 0
    }

    /// The highest offered dialect in `min..=max`.
    pub fn highest_in(self, min: Dialect, max: Dialect) -> Option<Dialect> {
        Dialect::ALL
            .into_iter()
            .rev()
            .find(|d| (min..=max).contains(d) && self.contains(*d))
    }

    fn insert(&mut self, dialect: Dialect) {
        self.0 |= Self::bit(dialect);
    }

    fn bit(dialect: Dialect) -> u8 {
        match dialect {
            Dialect::Smb300 => 1,
            Dialect::Smb302 => 2,
            Dialect::Smb311 => 4,
        }
    }
}

/// A NEGOTIATE request, read from the first PDU of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NegotiateRequest {
    /// The header of the request.
    pub header: RequestHeader,
    /// ClientGuid, which tier 1 routes by.
    pub client_guid: [u8; 16],
    /// SecurityMode of the client.
    pub security_mode: u16,
    /// Capabilities of the client.
    pub capabilities: u32,
    /// The 3.x dialects it offers.
    pub dialects: DialectSet,
    /// What it offers for 3.1.1, or what is wrong with that. A fault counts only for the one who
    /// answers the request, and only if 3.1.1 is the outcome.
    pub contexts: Result<NegotiateContexts, RouteError>,
}

/// Reads the first PDU of a connection, which is an SMB2 NEGOTIATE and nothing else.
///
/// `pdu` is the whole upper-layer PDU as SMB Direct reassembled it.
///
/// # Errors
/// Any other PDU, a malformed one, and one without dialects. See [`RouteError::status`] for which
/// of them the peer is told. A request that offers no 3.x dialect is read all the same: the answer
/// is up to the process that gets it.
pub fn parse_negotiate(pdu: &[u8]) -> Result<NegotiateRequest, RouteError> {
    let header = RequestHeader::parse(pdu)?;
    // CreditCharge is not looked at: the connection is not multi-credit yet (3.3.5.2.3).
    header.check_due(COMMAND_NEGOTIATE, 0)?;
    // [MS-SMB2] 3.3.5.2.4: a signed NEGOTIATE fails with STATUS_INVALID_PARAMETER.
    if header.is_signed() {
        return Err(RouteError::SignedNegotiate);
    }
    let truncated = RouteError::BodyTruncated(pdu.len());
    let structure_size = u16_at(pdu, HEADER_LEN).ok_or(truncated)?;
    if structure_size != REQUEST_STRUCTURE_SIZE {
        return Err(RouteError::BodySize {
            due: REQUEST_STRUCTURE_SIZE,
            got: structure_size,
        });
    }
    let dialect_count = usize::from(u16_at(pdu, HEADER_LEN + 2).ok_or(truncated)?);
    let security_mode = u16_at(pdu, HEADER_LEN + 4).ok_or(truncated)?;
    let capabilities = u32_at(pdu, HEADER_LEN + 8).ok_or(truncated)?;
    let client_guid = array_at(pdu, HEADER_LEN + 12).ok_or(truncated)?;
    let context_offset = u32_at(pdu, HEADER_LEN + 28).ok_or(truncated)?;
    let context_count = u16_at(pdu, HEADER_LEN + 32).ok_or(truncated)?;
    // [MS-SMB2] 3.3.5.4: no dialects fail the request with STATUS_INVALID_PARAMETER.
    if dialect_count == 0 {
        return Err(RouteError::NoDialects);
    }
    let dialects_end = DIALECTS_OFFSET + 2 * dialect_count;
    let mut dialects = DialectSet::default();
    for entry in pdu
        .get(DIALECTS_OFFSET..dialects_end)
        .ok_or(truncated)?
        .chunks_exact(2)
    {
        if let Some(dialect) = u16_at(entry, 0).and_then(Dialect::from_revision) {
            dialects.insert(dialect);
        }
    }
    // The same eight bytes are ClientStartTime for a client without 3.1.1 (2.2.3).
    let contexts = if dialects.contains(Dialect::Smb311) {
        NegotiateContexts::parse(pdu, context_offset, context_count, dialects_end)
    } else {
        Ok(NegotiateContexts::default())
    };
    Ok(NegotiateRequest {
        header,
        client_guid,
        security_mode,
        capabilities,
        dialects,
        contexts,
    })
}

/// What the server says about itself in a NEGOTIATE response.
///
/// The owner of the connection takes over what was said here, so it contains only what the owner
/// really offers: nothing is added to it but SMB2_NEGOTIATE_SIGNING_ENABLED.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// ServerGuid
    pub guid: [u8; 16],
    /// The GSS token, at most [`MAX_SECURITY_BLOB`] bytes.
    pub security_blob: Vec<u8>,
    /// SecurityMode, of [`flags`]; signing enabled is always answered.
    pub security_mode: u16,
    /// Capabilities, of [`flags`]. Each is answered where the dialect has it and, as the rules
    /// want for some, the client has it too. Bindings need `CAP_MULTI_CHANNEL`, and a server on
    /// RDMA has `CAP_LARGE_MTU`.
    pub capabilities: u32,
    /// MaxTransactSize in bytes; clients may refuse less than 65,536.
    pub max_transact_size: u32,
    /// MaxReadSize in bytes; clients may refuse less than 65,536.
    pub max_read_size: u32,
    /// MaxWriteSize in bytes; clients may refuse less than 65,536.
    pub max_write_size: u32,
    /// Lowest dialect answered.
    pub min_dialect: Dialect,
    /// Highest dialect answered.
    pub max_dialect: Dialect,
    /// Ciphers for 3.1.1, preferred first; empty: no encryption. With AES-128-CCM among them
    /// `CAP_ENCRYPTION` is answered on 3.0 and 3.0.2.
    pub ciphers: Vec<Cipher>,
    /// Signing algorithms for 3.1.1, preferred first; empty: AES-CMAC, not negotiated.
    pub signing_algorithms: Vec<SigningAlgorithm>,
}

impl ServerConfig {
    /// Checks the values before they are used.
    ///
    /// # Errors
    /// The first value that cannot be used, with its cure.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.security_blob.len() > MAX_SECURITY_BLOB {
            return Err(ConfigError::SecurityBlob(self.security_blob.len()));
        }
        if self.min_dialect > self.max_dialect {
            return Err(ConfigError::DialectRange(
                self.min_dialect,
                self.max_dialect,
            ));
        }
        let known = flags::NEGOTIATE_SIGNING_ENABLED | flags::NEGOTIATE_SIGNING_REQUIRED;
        if self.security_mode & !known != 0 {
            return Err(ConfigError::SecurityMode(self.security_mode));
        }
        if self.capabilities & !KNOWN_CAPABILITIES != 0 {
            return Err(ConfigError::Capabilities(self.capabilities));
        }
        for (name, size) in [
            ("max_transact_size", self.max_transact_size),
            ("max_read_size", self.max_read_size),
            ("max_write_size", self.max_write_size),
        ] {
            // [MS-SMB2] 3.3.5.4: each should be at least 65,536; 3.2.5.2: clients should leave a
            // server that says less.
            if size < MIN_SIZE {
                return Err(ConfigError::Size(name, size));
            }
        }
        Ok(())
    }

    fn answer_capabilities(&self, dialect: Dialect, client: u32) -> u32 {
        // [MS-SMB2] 3.3.5.4: these are the server's to say ...
        let mut allowed = flags::CAP_DFS | flags::CAP_LEASING | flags::CAP_LARGE_MTU;
        // ... these are answered to clients that have them too ...
        let mut shared =
            flags::CAP_MULTI_CHANNEL | flags::CAP_PERSISTENT_HANDLES | flags::CAP_DIRECTORY_LEASING;
        // ... and 3.1.1 has a context for the ciphers where 3.0 and 3.0.2 have a bit and a cipher.
        if dialect == Dialect::Smb311 {
            shared |= flags::CAP_NOTIFICATIONS;
        } else if self.ciphers.contains(&Cipher::Aes128Ccm) {
            shared |= flags::CAP_ENCRYPTION;
        }
        allowed |= shared & client;
        self.capabilities & allowed
    }
}

/// A value of [`ServerConfig`] that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// The security blob has this many bytes, more than [`MAX_SECURITY_BLOB`].
    SecurityBlob(usize),
    /// The lowest dialect is above the highest.
    DialectRange(Dialect, Dialect),
    /// SecurityMode has unknown bits.
    SecurityMode(u16),
    /// Capabilities has unknown bits.
    Capabilities(u32),
    /// The named size is below 65,536 bytes.
    Size(&'static str, u32),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SecurityBlob(len) => {
                write!(
                    f,
                    "security blob of {len} bytes: give at most {MAX_SECURITY_BLOB}"
                )
            }
            Self::DialectRange(min, max) => write!(
                f,
                "lowest dialect {:#06x} is above the highest {:#06x}: swap or widen them",
                *min as u16, *max as u16
            ),
            Self::SecurityMode(mode) => {
                write!(
                    f,
                    "security mode {mode:#06x} has bits beyond 0x0003: clear them"
                )
            }
            Self::Capabilities(bits) => write!(
                f,
                "capabilities {bits:#010x} have bits beyond {KNOWN_CAPABILITIES:#010x}: clear them"
            ),
            Self::Size(name, size) => write!(f, "{name} {size}: give at least {MIN_SIZE}"),
        }
    }
}

impl std::error::Error for ConfigError {}

/// What an answer needs from the world outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inputs {
    /// The time now as a FILETIME; see [`filetime`].
    pub system_time: u64,
    /// Fresh random bytes for the preauthentication hash.
    pub salt: [u8; 32],
}

/// The FILETIME (100 ns units since 1601, [MS-DTYP] 2.3.3) of a time since the Unix epoch.
pub fn filetime(since_unix_epoch: Duration) -> u64 {
    let ticks = since_unix_epoch.as_nanos() / 100;
    u64::try_from(ticks)
        .unwrap_or(u64::MAX)
        .saturating_add(UNIX_EPOCH_FILETIME)
}

/// Builds the NEGOTIATE response to `request` ([MS-SMB2] 2.2.4, 3.3.5.4).
///
/// One credit is granted; the next request has MessageId 1.
///
/// # Errors
/// The [`Refusal`] to send before the connection is dropped:
/// - [`RouteError::NoCommonDialect`], no 3.x dialect that both have: STATUS_NOT_SUPPORTED
/// - [`RouteError::Context`]: 3.1.1 with malformed contexts, STATUS_INVALID_PARAMETER
/// - [`RouteError::NoCommonHash`], no SHA-512: STATUS_SMB_NO_PREAUTH_INTEGRITY_HASH_OVERLAP
/// - [`RouteError::Config`]: `config` fails its [`check`](ServerConfig::check), STATUS_UNSUCCESSFUL
pub fn answer_negotiate(
    request: &NegotiateRequest,
    config: &ServerConfig,
    inputs: &Inputs,
) -> Result<Vec<u8>, Refusal> {
    build_answer(request, config, inputs).map_err(|reason| Refusal {
        reason,
        pdu: error_response(
            &request.header,
            reason.status().unwrap_or(NtStatus::UNSUCCESSFUL),
        ),
    })
}

fn build_answer(
    request: &NegotiateRequest,
    config: &ServerConfig,
    inputs: &Inputs,
) -> Result<Vec<u8>, RouteError> {
    config.check().map_err(|_| RouteError::Config)?;
    let blob_length = u16::try_from(config.security_blob.len()).map_err(|_| RouteError::Config)?;
    let dialect = request
        .dialects
        .highest_in(config.min_dialect, config.max_dialect)
        .ok_or(RouteError::NoCommonDialect)?;
    let contexts = match dialect {
        Dialect::Smb311 => Some(request.contexts?),
        Dialect::Smb300 | Dialect::Smb302 => None,
    };
    if contexts.is_some_and(|contexts| !contexts.offers_sha512()) {
        return Err(RouteError::NoCommonHash);
    }

    let mut list = Vec::new();
    let context_count = contexts.map_or(0, |c| push_contexts(&mut list, &c, config, inputs));
    let blob_end = BLOB_OFFSET + config.security_blob.len();
    // [MS-SMB2] 2.2.4: the context list starts at the first 8-byte boundary behind the blob; at
    // most 128 + 16384 here, so the 32-bit offset holds it.
    let list_offset = match contexts {
        Some(_) => blob_end.next_multiple_of(ALIGNMENT),
        None => 0,
    };

    let mut out = Vec::with_capacity(blob_end + ALIGNMENT + list.len());
    push_response_header(&mut out, &request.header, NtStatus(0), 0);
    out.extend_from_slice(&RESPONSE_STRUCTURE_SIZE.to_le_bytes());
    let security_mode = config.security_mode | flags::NEGOTIATE_SIGNING_ENABLED;
    out.extend_from_slice(&security_mode.to_le_bytes());
    out.extend_from_slice(&(dialect as u16).to_le_bytes());
    out.extend_from_slice(&context_count.to_le_bytes());
    out.extend_from_slice(&config.guid);
    let capabilities = config.answer_capabilities(dialect, request.capabilities);
    out.extend_from_slice(&capabilities.to_le_bytes());
    out.extend_from_slice(&config.max_transact_size.to_le_bytes());
    out.extend_from_slice(&config.max_read_size.to_le_bytes());
    out.extend_from_slice(&config.max_write_size.to_le_bytes());
    out.extend_from_slice(&inputs.system_time.to_le_bytes());
    // ServerStartTime is zero: when the server booted is nobody's business (3.3.5.4).
    out.extend_from_slice(&0u64.to_le_bytes());
    out.extend_from_slice(&(BLOB_OFFSET as u16).to_le_bytes());
    out.extend_from_slice(&blob_length.to_le_bytes());
    out.extend_from_slice(&(list_offset as u32).to_le_bytes());
    out.extend_from_slice(&config.security_blob);
    if contexts.is_some() {
        out.resize(list_offset, 0);
        out.extend_from_slice(&list);
    }
    Ok(out)
}

/// Appends the contexts of the answer to a client that sent `offered`; returns their number.
fn push_contexts(
    list: &mut Vec<u8>,
    offered: &NegotiateContexts,
    config: &ServerConfig,
    inputs: &Inputs,
) -> u16 {
    let mut writer = ContextWriter::new(list);
    writer.preauth_integrity(&inputs.salt);
    // [MS-SMB2] 3.3.5.4: answered when the client asks and the server can encrypt; no cipher in
    // common is cipher 0.
    if offered.has_encryption() && !config.ciphers.is_empty() {
        writer.encryption(
            config
                .ciphers
                .iter()
                .copied()
                .find(|c| offered.offers_cipher(*c)),
        );
    }
    // No algorithm in common leaves AES-CMAC in force, which is what no context says; naming an
    // algorithm that the client did not offer would end the connection on its side (3.2.5.2).
    let mut algorithms = config.signing_algorithms.iter().copied();
    if let Some(algorithm) = algorithms.find(|a| offered.offers_signing(*a)) {
        writer.signing(algorithm);
    }
    writer.count()
}

const COMMAND_NEGOTIATE: u16 = 0;
const REQUEST_STRUCTURE_SIZE: u16 = 36;
const RESPONSE_STRUCTURE_SIZE: u16 = 65;
/// Header and the 36 bytes before the dialects.
const DIALECTS_OFFSET: usize = HEADER_LEN + 36;
/// Header and the 64 bytes before the security buffer.
const BLOB_OFFSET: usize = HEADER_LEN + 64;
/// 1601-01-01 to 1970-01-01 in units of 100 ns.
const UNIX_EPOCH_FILETIME: u64 = 116_444_736_000_000_000;
const MIN_SIZE: u32 = 65_536;
const KNOWN_CAPABILITIES: u32 = flags::CAP_DFS
    | flags::CAP_LEASING
    | flags::CAP_LARGE_MTU
    | flags::CAP_MULTI_CHANNEL
    | flags::CAP_PERSISTENT_HANDLES
    | flags::CAP_DIRECTORY_LEASING
    | flags::CAP_ENCRYPTION
    | flags::CAP_NOTIFICATIONS;
