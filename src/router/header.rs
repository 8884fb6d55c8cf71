//! The SMB2 header of requests that arrive here, and the headers and error bodies that go out.

use super::error::{NtStatus, RouteError};
use super::{array_at, u16_at, u32_at, u64_at, MAX_FIRST_PDU};

/// The fields of a synchronous SMB2 request header that routing reads or echoes
/// ([MS-SMB2] 2.2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// CreditCharge
    pub credit_charge: u16,
    /// Command
    pub command: u16,
    /// CreditRequest
    pub credit_request: u16,
    /// Flags
    pub flags: u32,
    /// NextCommand
    pub next_command: u32,
    /// MessageId
    pub message_id: u64,
    /// Reserved, where clients put a process id; echoed.
    pub process_id: u32,
    /// TreeId
    pub tree_id: u32,
    /// SessionId
    pub session_id: u64,
}

impl RequestHeader {
    /// Reads the header of `pdu` and checks what holds for every plain SMB2 request.
    ///
    /// # Errors
    /// [`RouteError::TooShort`], [`RouteError::TooLong`], [`RouteError::ProtocolId`],
    /// [`RouteError::HeaderSize`], [`RouteError::NotRequest`]: all without a reply.
    pub fn parse(pdu: &[u8]) -> Result<Self, RouteError> {
        if pdu.len() > MAX_FIRST_PDU {
            return Err(RouteError::TooLong(pdu.len()));
        }
        let short = RouteError::TooShort(pdu.len());
        // [MS-SMB2] 3.3.5.2: another ProtocolId is SMB1 (only where the client may fall back, never
        // on RDMA), a transform (no session, no compression yet), or nothing to answer.
        let protocol_id: [u8; 4] = array_at(pdu, 0).ok_or(short)?;
        if protocol_id != PROTOCOL_ID {
            return Err(RouteError::ProtocolId(protocol_id));
        }
        if pdu.len() < HEADER_LEN {
            return Err(short);
        }
        let structure_size = u16_at(pdu, 4).ok_or(short)?;
        if usize::from(structure_size) != HEADER_LEN {
            return Err(RouteError::HeaderSize(structure_size));
        }
        let header = Self {
            credit_charge: u16_at(pdu, 6).ok_or(short)?,
            command: u16_at(pdu, 12).ok_or(short)?,
            credit_request: u16_at(pdu, 14).ok_or(short)?,
            flags: u32_at(pdu, 16).ok_or(short)?,
            next_command: u32_at(pdu, 20).ok_or(short)?,
            message_id: u64_at(pdu, 24).ok_or(short)?,
            process_id: u32_at(pdu, 32).ok_or(short)?,
            tree_id: u32_at(pdu, 36).ok_or(short)?,
            session_id: u64_at(pdu, 40).ok_or(short)?,
        };
        if header.flags & FLAG_SERVER_TO_REDIR != 0 {
            return Err(RouteError::NotRequest);
        }
        Ok(header)
    }

    /// SMB2_FLAGS_SIGNED is set. The signature itself is the session owner's to verify.
    pub fn is_signed(&self) -> bool {
        self.flags & FLAG_SIGNED != 0
    }

    /// Checks that this is the single request due now: `command` with the sequence number
    /// `message_id`, alone and synchronous.
    pub(super) fn check_due(&self, command: u16, message_id: u64) -> Result<(), RouteError> {
        if self.command != command {
            return Err(RouteError::Command {
                due: command,
                got: self.command,
            });
        }
        // [MS-SMB2] 3.3.1.1, 3.3.5.2.3: the command window is {0} on a new connection and {1} after
        // an answer that granted one credit; anything else terminates the connection.
        if self.message_id != message_id {
            return Err(RouteError::MessageId {
                due: message_id,
                got: self.message_id,
            });
        }
        // [MS-SMB2] 3.2.4.1.4: neither NEGOTIATE nor the first SESSION_SETUP has anything it could
        // be compounded with.
        if self.next_command != 0 {
            return Err(RouteError::Compounded(self.next_command));
        }
        // [MS-SMB2] 3.3.5.2.7.2: a related operation cannot be first. 2.2.1.1: of requests only
        // CANCEL has the asynchronous header.
        if self.flags & (FLAG_ASYNC_COMMAND | FLAG_RELATED_OPERATIONS) != 0 {
            return Err(RouteError::Flags(self.flags));
        }
        Ok(())
    }
}

/// The SMB2 ERROR response to a request ([MS-SMB2] 2.2.2, 3.3.4.4), without error data.
///
/// The header echoes the request's and grants one credit, so that a client always holds one. A
/// response with STATUS_USER_SESSION_DELETED to a signed request keeps SMB2_FLAGS_SIGNED with an
/// empty signature: there is no key to sign with, and clients that required the signature take this
/// status without verifying it, but only with the flag.
pub fn error_response(request: &RequestHeader, status: NtStatus) -> Vec<u8> {
    let flags = if request.is_signed() && status == NtStatus::USER_SESSION_DELETED {
        FLAG_SIGNED
    } else {
        0
    };
    let mut out = Vec::with_capacity(HEADER_LEN + ERROR_BODY.len());
    push_response_header(&mut out, request, status, flags);
    out.extend_from_slice(&ERROR_BODY);
    out
}

/// Appends the 64-byte header of the response to `request`.
pub(super) fn push_response_header(
    out: &mut Vec<u8>,
    request: &RequestHeader,
    status: NtStatus,
    flags: u32,
) {
    out.extend_from_slice(&PROTOCOL_ID);
    out.extend_from_slice(&64u16.to_le_bytes());
    out.extend_from_slice(&request.credit_charge.to_le_bytes());
    out.extend_from_slice(&status.0.to_le_bytes());
    out.extend_from_slice(&request.command.to_le_bytes());
    out.extend_from_slice(&CREDITS_GRANTED.to_le_bytes());
    out.extend_from_slice(&(FLAG_SERVER_TO_REDIR | flags).to_le_bytes());
    out.extend_from_slice(&0u32.to_le_bytes());
    out.extend_from_slice(&request.message_id.to_le_bytes());
    out.extend_from_slice(&request.process_id.to_le_bytes());
    out.extend_from_slice(&request.tree_id.to_le_bytes());
    out.extend_from_slice(&request.session_id.to_le_bytes());
    out.extend_from_slice(&[0; 16]);
}

/// Bytes of an SMB2 header.
pub(super) const HEADER_LEN: usize = 64;
/// 0xFE 'S' 'M' 'B'
const PROTOCOL_ID: [u8; 4] = [0xfe, b'S', b'M', b'B'];
/// [MS-SMB2] 3.3.1.2: at least one in answer to NEGOTIATE. One keeps the window a single number
/// until the owner of the connection decides how many the client gets.
const CREDITS_GRANTED: u16 = 1;
/// StructureSize 9, no error contexts, ByteCount 0, and the one byte of ErrorData that stands there
/// when ByteCount is 0 ([MS-SMB2] 2.2.2).
const ERROR_BODY: [u8; 9] = [9, 0, 0, 0, 0, 0, 0, 0, 0];

const FLAG_SERVER_TO_REDIR: u32 = 0x0000_0001;
const FLAG_ASYNC_COMMAND: u32 = 0x0000_0002;
const FLAG_RELATED_OPERATIONS: u32 = 0x0000_0004;
pub(super) const FLAG_SIGNED: u32 = 0x0000_0008;
