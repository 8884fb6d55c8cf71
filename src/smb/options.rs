//! What a caller chooses, and what came out of the negotiation.

use std::time::Duration;

use crate::fabric::ConnectOptions;
use crate::peer;
use crate::proto::Params;

use smb_msg::SigningAlgorithmId;

use super::cipher::Cipher;

/// Dialects that SMB Direct may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dialect {
    /// SMB 3.0.
    Smb300,
    /// SMB 3.0.2.
    Smb302,
    /// SMB 3.1.1.
    Smb311,
}

impl Dialect {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Smb300, Self::Smb302, Self::Smb311];
}

/// How messages are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signing {
    /// When the server requires it, and where the protocol wants it in any case.
    IfRequired,
    /// Always, with the server's choice of algorithm (3.1.1), or AES-CMAC.
    Always,
    /// Always. AES-GMAC is the only one offered; needs 3.1.1.
    AlwaysGmac,
    /// Always. AES-CMAC is the only one offered.
    AlwaysCmac,
    /// Always. HMAC-SHA256 is the only one offered; needs 3.1.1.
    AlwaysHmac,
}

impl Signing {
    /// Whether the client requires signatures.
    pub(super) fn is_required(self) -> bool {
        self != Self::IfRequired
    }

    /// What SMB2_SIGNING_CAPABILITIES offers.
    pub(super) fn algorithms(self) -> Vec<SigningAlgorithmId> {
        match self {
            Self::IfRequired | Self::Always => vec![
                SigningAlgorithmId::AesGmac,
                SigningAlgorithmId::AesCmac,
                SigningAlgorithmId::HmacSha256,
            ],
            Self::AlwaysGmac => vec![SigningAlgorithmId::AesGmac],
            Self::AlwaysCmac => vec![SigningAlgorithmId::AesCmac],
            Self::AlwaysHmac => vec![SigningAlgorithmId::HmacSha256],
        }
    }
}

/// When messages are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encrypting {
    /// When the server requires it, for the session or for a share.
    IfRequired,
    /// All messages of the session.
    Always,
}

/// What a connection offers in its NEGOTIATE, and how long it waits.
#[derive(Debug, Clone)]
pub struct Options {
    /// Dialects offered.
    pub dialects: Vec<Dialect>,
    /// ClientGuid. The same one on all connections of a client.
    pub client_guid: [u8; 16],
    /// How messages are signed.
    pub signing: Signing,
    /// When messages are encrypted.
    pub encrypting: Encrypting,
    /// What SMB2_ENCRYPTION_CAPABILITIES offers, best first; nothing: no encryption with 3.1.1.
    pub ciphers: Vec<Cipher>,
    /// What SMB2_RDMA_TRANSFORM_CAPABILITIES offers, of [`transform_id`](super::transform_id);
    /// nothing: it is not sent. It goes with 3.1.1 on any transport.
    pub transforms: Vec<u16>,
    /// Further negotiate contexts of 3.1.1, type and data, as they are. For tests.
    pub contexts: Vec<(u16, Vec<u8>)>,
    /// SMB2 credits to hold, 1 to 8192; as many are asked for as are missing.
    pub credits: u16,
    /// How long anything may take.
    pub patience: Duration,
}

impl Options {
    /// Everything offered but RDMA transforms, a random ClientGuid.
    ///
    /// # Errors
    /// The operating system has no random bytes.
    pub fn new() -> Result<Self, super::SmbError> {
        let mut client_guid = [0; 16];
        getrandom::fill(&mut client_guid)
            .map_err(|error| super::SmbError::Usage(error.to_string()))?;
        Ok(Self {
            dialects: Dialect::ALL.to_vec(),
            client_guid,
            signing: Signing::IfRequired,
            encrypting: Encrypting::IfRequired,
            ciphers: Cipher::ALL.to_vec(),
            transforms: Vec::new(),
            contexts: Vec::new(),
            credits: 512,
            patience: Duration::from_secs(60),
        })
    }
}

/// Who the user is.
#[derive(Clone)]
pub struct Credentials {
    /// User name.
    pub user: String,
    /// Password.
    pub password: String,
    /// Domain or server name; may be empty.
    pub domain: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}\\{})", self.domain, self.user)
    }
}

/// What the NEGOTIATE response said.
#[derive(Debug, Clone, Copy)]
pub struct Negotiated {
    /// The dialect.
    pub dialect: Dialect,
    /// The server has multichannel.
    pub multi_channel: bool,
    /// The server requires signatures.
    pub signing_required: bool,
    /// MaxTransactSize, bytes.
    pub max_transact_size: u32,
    /// MaxReadSize, bytes.
    pub max_read_size: u32,
    /// MaxWriteSize, bytes.
    pub max_write_size: u32,
    /// ServerGuid.
    pub server_guid: [u8; 16],
    /// How sessions can be encrypted; none: not at all.
    pub cipher: Option<Cipher>,
    pub(super) algorithm: SigningAlgorithmId,
}

/// How the SMB Direct side of a client behaves.
#[derive(Debug, Clone)]
pub struct Profile {
    /// For messages of tests.
    pub name: &'static str,
    /// The endpoint; `active` has the MS-SMBD parameters.
    pub config: peer::Config,
    /// RDMA READs of the server that may be outstanding (IRD), ours (ORD), private data.
    pub connect: ConnectOptions,
    /// The longest piece of memory that one buffer descriptor names, bytes.
    pub descriptor_size: usize,
    /// Receive credits are granted again when this many are used up; 1 is at once.
    pub grant_batch: u16,
}

impl Profile {
    /// As `cifs.ko`: 255 credits, messages of 1364 bytes both ways, 173,910 bytes at most in
    /// fragments, one descriptor for each request, and the private data with which it tells IRD
    /// and ORD on iWARP.
    pub fn linux() -> Self {
        let params = Params {
            max_send_size: 1364,
            max_receive_size: 1364,
            max_fragmented_size: 173_910,
            ..Params::active()
        };
        let mut profile = Self::of("linux", params);
        profile.connect.ird = 32;
        profile.connect.ord = 1;
        profile.connect.private_data = vec![0, 0, 0, 32, 0, 0, 0, 1];
        profile
    }

    /// As Windows: 255 credits, 1364 and 8192 bytes, 1 MiB in fragments, 8 MiB by RDMA, several
    /// descriptors (here one for each 256 KiB), and credits granted in batches.
    pub fn windows() -> Self {
        let params = Params {
            max_send_size: 1364,
            max_receive_size: 8192,
            max_fragmented_size: 1 << 20,
            max_read_write_size: 8 << 20,
            ..Params::active()
        };
        Self {
            descriptor_size: 256 << 10,
            grant_batch: 128,
            ..Self::of("windows", params)
        }
    }

    /// As little as `[MS-SMBD]` allows: one credit, messages of 128 bytes, 128 KiB in fragments.
    pub fn small() -> Self {
        let params = Params {
            receive_credit_max: 1,
            send_credit_target: 1,
            max_send_size: 128,
            max_receive_size: 128,
            max_fragmented_size: 131_072,
            ..Params::active()
        };
        Self::of("small", params)
    }

    fn of(name: &'static str, active: Params) -> Self {
        Self {
            name,
            config: peer::Config {
                active,
                ..peer::Config::default()
            },
            connect: ConnectOptions {
                // Filled in by the connection.
                peer: ([127, 0, 0, 1], 0).into(),
                crc: false,
                mpa_revision: 2,
                ird: 32,
                ord: 32,
                private_data: Vec::new(),
                timeout: Duration::from_secs(30),
            },
            descriptor_size: usize::MAX,
            grant_batch: 1,
        }
    }
}
