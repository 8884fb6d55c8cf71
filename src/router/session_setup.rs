//! SESSION_SETUP, the PDU that tier 2 routes by ([MS-SMB2] 2.2.5, 3.3.5.5).

use super::error::RouteError;
use super::header::{RequestHeader, HEADER_LEN};
use super::{array_at, u16_at, u64_at};

/// The first SESSION_SETUP request of a connection whose NEGOTIATE the engine answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionSetup {
    /// The header of the request.
    pub header: RequestHeader,
    /// SMB2_SESSION_FLAG_BINDING is set: the connection is to become a channel of `session_id`.
    pub binding: bool,
    /// SessionId: the session to bind to; 0 asks for a new one.
    pub session_id: u64,
    /// SMB2_FLAGS_SIGNED is set; the session's owner verifies the signature.
    pub signed: bool,
    /// SecurityMode of the client.
    pub security_mode: u8,
    /// PreviousSessionId, which a client that reconnects wants closed.
    pub previous_session_id: u64,
}

impl SessionSetup {
    /// The session that gets this connection, which is one for which `is_registered` holds.
    ///
    /// # Errors
    /// - [`RouteError::NewSession`]: no binding; the engine authenticates nobody.
    /// - [`RouteError::UnknownSession`]: not registered, or not of this connection.
    /// - [`RouteError::UnsignedBinding`]: registered, but the request is not signed.
    ///
    /// Each has a response to send before the connection is dropped.
    pub fn route(&self, is_registered: impl FnOnce(u64) -> bool) -> Result<u64, RouteError> {
        // [MS-SMB2] 3.3.5.5: a SessionId of zero is a new authentication, binding or not.
        if self.session_id == 0 {
            return Err(RouteError::NewSession);
        }
        // Without the flag it would be a reauthentication, whose session is looked up among those
        // of this connection; there are none.
        if !self.binding || !is_registered(self.session_id) {
            return Err(RouteError::UnknownSession(self.session_id));
        }
        if !self.signed {
            return Err(RouteError::UnsignedBinding(self.session_id));
        }
        Ok(self.session_id)
    }
}

/// Reads the SESSION_SETUP that follows an [answered](super::answer_negotiate) NEGOTIATE.
///
/// `pdu` is the whole upper-layer PDU as SMB Direct reassembled it.
///
/// # Errors
/// Any but a single, synchronous, well-formed SESSION_SETUP that uses the one credit granted. See
/// [`RouteError::status`] for which of them the peer is told.
pub fn parse_session_setup(pdu: &[u8]) -> Result<SessionSetup, RouteError> {
    let header = RequestHeader::parse(pdu)?;
    header.check_due(COMMAND_SESSION_SETUP, 1)?;
    // [MS-SMB2] 3.3.5.2.3: all CreditCharge sequence numbers lie in the window, which is {1}.
    if header.credit_charge > 1 {
        return Err(RouteError::CreditCharge(header.credit_charge));
    }
    let truncated = RouteError::BodyTruncated(pdu.len());
    let structure_size = u16_at(pdu, HEADER_LEN).ok_or(truncated)?;
    if structure_size != STRUCTURE_SIZE {
        return Err(RouteError::BodySize {
            due: STRUCTURE_SIZE,
            got: structure_size,
        });
    }
    let [flags, security_mode] = array_at(pdu, HEADER_LEN + 2).ok_or(truncated)?;
    let offset = u16_at(pdu, HEADER_LEN + 12).ok_or(truncated)?;
    let length = u16_at(pdu, HEADER_LEN + 14).ok_or(truncated)?;
    let previous_session_id = u64_at(pdu, HEADER_LEN + 16).ok_or(truncated)?;
    // Two 16-bit numbers: no overflow.
    let end = usize::from(offset) + usize::from(length);
    if length > 0 && (usize::from(offset) < BUFFER_OFFSET || end > pdu.len()) {
        return Err(RouteError::SecurityBuffer { offset, length });
    }
    Ok(SessionSetup {
        binding: flags & SESSION_FLAG_BINDING != 0,
        session_id: header.session_id,
        signed: header.is_signed(),
        security_mode,
        previous_session_id,
        header,
    })
}

const COMMAND_SESSION_SETUP: u16 = 1;
const STRUCTURE_SIZE: u16 = 25;
/// Header and the 24 bytes before the security buffer.
const BUFFER_OFFSET: usize = HEADER_LEN + 24;
const SESSION_FLAG_BINDING: u8 = 0x01;
