//! NTLMv2 as one exchange of raw NTLMSSP messages, as the Linux client does it: `[MS-NLMP]`.
//!
//! A server takes NTLMSSP without SPNEGO round it (`[MS-SMB2] 3.3.5.5.3` hands the blob to GSS,
//! which recognises it). Without NEGOTIATE_KEY_EXCHANGE the session key is what NTLMv2 gives.

use std::time::{SystemTime, UNIX_EPOCH};

use ntlmclient::{
    AuthenticateMessage, Flags, Message, NegotiateMessage, OsVersion, TargetInfoEntry,
    TargetInfoType,
};

use super::crypto::Key;
use super::error::SmbError;
use super::options::Credentials;

/// The first message.
pub(super) fn negotiate() -> Result<Vec<u8>, SmbError> {
    store(&Message::Negotiate(NegotiateMessage {
        flags: flags(),
        supplied_domain: String::new(),
        supplied_workstation: String::new(),
        os_version: OsVersion::default(),
    }))
}

/// The answer to the server's challenge, and the session key.
pub(super) fn authenticate(
    challenge: &[u8],
    credentials: &Credentials,
) -> Result<(Vec<u8>, Key), SmbError> {
    let wrong = |text: &str| SmbError::Authentication(format!("NTLMSSP challenge: {text}"));
    let challenge = match Message::try_from(challenge) {
        Ok(Message::Challenge(challenge)) => challenge,
        Ok(other) => {
            let number = other.message_number();
            return Err(wrong(&format!("message {number} instead of 2")));
        }
        Err(error) => return Err(wrong(&error.to_string())),
    };
    let user = ntlmclient::Credentials {
        username: credentials.user.clone(),
        password: credentials.password.clone(),
        domain: credentials.domain.clone(),
    };
    let info = &challenge.target_information;
    let info_bytes: Vec<u8> = info.iter().flat_map(TargetInfoEntry::to_bytes).collect();
    let time = server_time(info).unwrap_or_else(now);
    let response =
        ntlmclient::respond_challenge_ntlm_v2(challenge.challenge, &info_bytes, time, &user);
    let key = <Key>::try_from(&response.session_key[..])
        .map_err(|_| wrong("the session key has not 16 bytes"))?;
    let message = store(&Message::Authenticate(AuthenticateMessage {
        lm_response: response.lm_response,
        ntlm_response: response.ntlm_response,
        domain_name: user.domain,
        user_name: user.username,
        workstation_name: "SMBDIRECT".into(),
        // Only for key exchange.
        session_key: Vec::new(),
        flags: flags() & challenge.flags,
        os_version: OsVersion::default(),
    }))?;
    Ok((message, key))
}

fn flags() -> Flags {
    Flags::NEGOTIATE_UNICODE
        | Flags::REQUEST_TARGET
        | Flags::NEGOTIATE_SIGN
        | Flags::NEGOTIATE_NTLM
        | Flags::NEGOTIATE_ALWAYS_SIGN
        | Flags::NEGOTIATE_NTLM2_KEY
        | Flags::NEGOTIATE_TARGET_INFO
        | Flags::NEGOTIATE_128BIT
}

fn store(message: &Message) -> Result<Vec<u8>, SmbError> {
    message
        .to_bytes()
        .map_err(|error| SmbError::Authentication(error.to_string()))
}

/// MsvAvTimestamp, which the client has to use when it is there.
fn server_time(info: &[TargetInfoEntry]) -> Option<i64> {
    let entry = info
        .iter()
        .find(|entry| entry.entry_type == TargetInfoType::Timestamp)?;
    let bytes = entry.data.first_chunk()?;
    Some(i64::from_le_bytes(*bytes))
}

/// 100 ns since 1601.
fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    (since.as_nanos() / 100) as i64 + SECONDS_1601_TO_1970 * 10_000_000
}

const SECONDS_1601_TO_1970: i64 = 11_644_473_600;
