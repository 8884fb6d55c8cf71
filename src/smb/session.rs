//! SESSION_SETUP: a new session, or one more channel of a session.

use smb_msg::{
    Command, LogoffRequest, NegotiateCapabilities, SessionSecurityMode, SessionSetupRequest,
    SessionSetupResponse, SetupRequestFlags,
};

use std::sync::Arc;

use super::connection::{Channel, Connection, Crypt};
use super::crypto::{Key, Preauth, Signer};
use super::encryption::Encryption;
use super::error::{status, SmbError};
use super::message::{Request, Response};
use super::ntlm;
use super::options::{Credentials, Dialect, Encrypting};

/// What further connections need to join a session.
#[derive(Clone)]
pub struct Session {
    id: u64,
    dialect: Dialect,
    /// Session.SigningKey; none for guests.
    signer: Option<Signer>,
    signs: bool,
    /// Session.EncryptionKey and so on; none for guests, and if no cipher was negotiated.
    crypt: Option<Arc<Crypt>>,
    encrypts: bool,
}

impl Session {
    /// SessionId.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The dialect of its connections.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The server made us a guest; nothing can be signed, no channel be bound.
    pub fn is_guest(&self) -> bool {
        self.signer.is_none()
    }

    /// Every request is signed.
    pub fn signs(&self) -> bool {
        self.signs
    }

    /// Every message is encrypted.
    pub fn encrypts(&self) -> bool {
        self.encrypts
    }
}

/// How an authentication ended.
struct Authenticated {
    session_key: Key,
    /// Everything but the last response.
    preauth: Preauth,
    last: Response,
}

impl Connection {
    /// Authenticates with NTLMv2: a new session.
    ///
    /// # Errors
    /// [`SmbError::Status`] when the server does not accept the user.
    pub fn set_up_session(&mut self, credentials: &Credentials) -> Result<Session, SmbError> {
        self.channel = Channel::default();
        let done = self.authenticate(credentials, SetupRequestFlags::new())?;
        let id = done.last.header.session_id;
        let flags = done.last.body::<SessionSetupResponse>()?.session_flags;
        let mut signer = None;
        let mut crypt = None;
        if !flags.is_guest_or_null_session() {
            signer = Some(self.channel_signer(&done)?);
            crypt = self.crypt(&done)?;
        }
        let encrypts = flags.encrypt_data() || self.options.encrypting == Encrypting::Always;
        if encrypts && crypt.is_none() {
            return Err(SmbError::Usage(
                "encryption is wanted: offer a cipher that the server has, and no guest".into(),
            ));
        }
        let required = self.options.signing.is_required() || self.negotiated.signing_required;
        let session = Session {
            id,
            dialect: self.negotiated.dialect,
            signs: required && signer.is_some(),
            signer,
            crypt,
            encrypts,
        };
        self.join(&session, session.signer.clone());
        Ok(session)
    }

    /// Makes this connection one more channel of a session: `[MS-SMB2] 3.2.4.2.3`, 3.3.5.5.2.
    ///
    /// # Errors
    /// [`SmbError::Status`] when the server refuses.
    pub fn bind(&mut self, session: &Session, credentials: &Credentials) -> Result<(), SmbError> {
        // A request for a session that is already on this connection is signed with its key here.
        let is_here = self.channel.session_id == session.id;
        let before = self.channel.clone();
        let signer = if is_here {
            before.signer.clone()
        } else {
            session.signer.clone()
        };
        self.channel = Channel {
            session_id: session.id,
            signer,
            signs: true,
            // `[MS-SMB2] 3.2.4.1.8`: a binding SESSION_SETUP is never encrypted.
            ..Channel::default()
        };
        let flags = SetupRequestFlags::new().with_binding(true);
        let bound = self
            .authenticate(credentials, flags)
            .and_then(|done| self.channel_signer(&done));
        match bound {
            Ok(signer) => self.join(session, Some(signer)),
            Err(error) => {
                self.channel = before;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Ends the session.
    ///
    /// # Errors
    /// [`SmbError::Status`].
    pub fn logoff(&mut self) -> Result<(), SmbError> {
        let request = Request::new(Command::Logoff, &LogoffRequest::default())?;
        self.call(request)?;
        self.channel = Channel::default();
        Ok(())
    }

    fn join(&mut self, session: &Session, signer: Option<Signer>) {
        self.channel = Channel {
            session_id: session.id,
            signs: session.signs,
            signer,
            verifies: true,
            crypt: session.crypt.clone(),
            encrypts: session.encrypts,
        };
    }

    /// The keys with which messages of the session are encrypted, if both sides can.
    fn crypt(&self, done: &Authenticated) -> Result<Option<Arc<Crypt>>, SmbError> {
        let Some(cipher) = self.negotiated.cipher else {
            return Ok(None);
        };
        // NTLMv2 gives 16 bytes, so the full session key is no longer than the session key.
        let key = &done.session_key;
        let dialect = self.negotiated.dialect;
        let encryption = Encryption::derive(dialect, cipher, key, key, &done.preauth)
            .ok_or_else(|| SmbError::Usage(format!("no keys for {cipher:?}")))?;
        Ok(Some(Arc::new(Crypt::new(encryption))))
    }

    /// The key of this channel, with which the last response has to be signed.
    fn channel_signer(&self, done: &Authenticated) -> Result<Signer, SmbError> {
        let signer = Signer::derive(
            self.negotiated.dialect,
            self.negotiated.algorithm,
            &done.session_key,
            &done.preauth,
        )?;
        if !done.last.header.flags.signed() || !signer.is_valid(&done.last.bytes) {
            return Err(SmbError::Signature(
                "the last SESSION_SETUP response is not signed with the channel's key".into(),
            ));
        }
        Ok(signer)
    }

    fn authenticate(
        &mut self,
        credentials: &Credentials,
        flags: SetupRequestFlags,
    ) -> Result<Authenticated, SmbError> {
        let is_binding = flags.binding();
        let flags = || SetupRequestFlags::new().with_binding(is_binding);
        let mut preauth = self.preauth.clone();
        let response = self.session_setup(ntlm::negotiate()?, flags(), &mut preauth)?;
        if response.status() != status::MORE_PROCESSING_REQUIRED {
            response.success()?;
            return Err(SmbError::Authentication("no challenge came".into()));
        }
        preauth.add(&response.bytes);
        self.channel.session_id = response.header.session_id;
        let challenge = response.body::<SessionSetupResponse>()?.buffer;
        let (token, session_key) = ntlm::authenticate(&challenge, credentials)?;
        let last = self
            .session_setup(token, flags(), &mut preauth)?
            .success()?;
        Ok(Authenticated {
            session_key,
            preauth,
            last,
        })
    }

    fn session_setup(
        &mut self,
        token: Vec<u8>,
        flags: SetupRequestFlags,
        preauth: &mut Preauth,
    ) -> Result<Response, SmbError> {
        let mode = SessionSecurityMode::new()
            .with_signing_enabled(true)
            .with_signing_required(self.options.signing.is_required());
        let body = SessionSetupRequest::new(token, mode, flags, NegotiateCapabilities::new());
        let built = self.build(Request::new(Command::SessionSetup, &body)?)?;
        self.send(&built)?;
        preauth.add(&built.head);
        self.wait(built.id)
    }
}
