//! NEGOTIATE: what is offered, and what came out of it.

use std::io::Cursor;
use std::net::SocketAddr;
use std::time::Instant;

use binrw::BinWrite;
use smb_dtyp::Guid;
use smb_msg::{
    Command, GlobalCapabilities, HashAlgorithm, NegotiateContext, NegotiateDialect,
    NegotiateRequest, NegotiateResponse, NegotiateSecurityMode, PreauthIntegrityCapabilities,
    SigningAlgorithmId, SigningCapabilities,
};

use super::connection::{Built, Connection};
use super::direct::Direct;
use super::error::SmbError;
use super::message::Request;
use super::options::{Dialect, Negotiated, Options, Profile};
use super::tcp::Tcp;
use super::transport::Transport;

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

    fn begin(transport: Transport, options: &Options) -> Result<Self, SmbError> {
        let mut connection = Connection::new(transport, options);
        let body = negotiate_request(options)?;
        let request = connection.build(Request::new(Command::Negotiate, &body)?)?;
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
        connection.negotiated = negotiated(&connection.options, &response.body()?)?;
        Ok(connection)
    }
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
        contexts = Some(vec![preauth.into(), signing.into()]);
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
            .with_multi_channel(true),
        client_guid: Guid::try_from(&options.client_guid)?,
        dialects: dialects.collect(),
        negotiate_context_list: contexts,
    })
}

/// `[MS-SMB2] 3.2.5.2`.
fn negotiated(options: &Options, response: &NegotiateResponse) -> Result<Negotiated, SmbError> {
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
        algorithm: chosen.unwrap_or(SigningAlgorithmId::AesCmac),
    })
}
