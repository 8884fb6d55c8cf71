//! Requests before they have a header, responses, and READ and WRITE with channel information.

use std::io::Cursor;
use std::sync::Arc;

use binrw::{BinRead, BinWrite};
use smb_msg::{Command, FileId, Header};

use super::channel;
use super::crypto::HEADER;
use super::error::{status, SmbError};
use super::transform::RdmaTransform;
use crate::wire::BufferDescriptor;

/// A request on its way to become a message: everything but what the connection knows.
#[derive(Clone)]
pub struct Request {
    pub(super) command: Command,
    /// Room for the header, then the body: the offsets inside bodies count from the header.
    pub(super) head: Vec<u8>,
    /// Data that follows, without a copy.
    pub(super) tail: Option<Arc<Vec<u8>>>,
    pub(super) tree_id: u32,
    pub(super) payload: u32,
    pub(super) is_signed: bool,
    /// None: as session and share want it.
    pub(super) is_encrypted: Option<bool>,
}

impl Request {
    /// A request with a body of `smb-msg`.
    ///
    /// # Errors
    /// The body cannot be written: a length does not fit its field.
    pub fn new<T>(command: Command, body: &T) -> Result<Self, SmbError>
    where
        T: for<'a> BinWrite<Args<'a> = ()>,
    {
        let mut cursor = Cursor::new(vec![0; HEADER]);
        cursor.set_position(HEADER as u64);
        body.write_le(&mut cursor)?;
        Ok(Self {
            command,
            head: cursor.into_inner(),
            tail: None,
            tree_id: 0,
            payload: 0,
            is_signed: false,
            is_encrypted: None,
        })
    }

    /// In this tree.
    #[must_use]
    pub fn in_tree(mut self, tree_id: u32) -> Self {
        self.tree_id = tree_id;
        self
    }

    /// Charges credits for `bytes` of data in one of the two directions: `[MS-SMB2] 3.2.4.1.5`.
    #[must_use]
    pub fn with_payload(mut self, bytes: u32) -> Self {
        self.payload = bytes;
        self
    }

    /// Signs it even when the session does not ask for it.
    #[must_use]
    pub fn signed(mut self) -> Self {
        self.is_signed = true;
        self
    }

    /// Encrypts it, or does not, whatever the session asks for.
    #[must_use]
    pub fn encrypted(mut self, is_encrypted: bool) -> Self {
        self.is_encrypted = Some(is_encrypted);
        self
    }

    /// Credits it costs: one for each 64 KiB begun.
    pub(super) fn charge(&self) -> u16 {
        let charge = self.payload.saturating_sub(1) / 65_536 + 1;
        u16::try_from(charge).unwrap_or(u16::MAX)
    }
}

/// A response. Its bytes are those of one response, also when it came in a compound.
#[derive(Debug)]
pub struct Response {
    /// Header.
    pub header: Header,
    /// The token of ours that the server invalidated with this message.
    pub invalidated: Option<u32>,
    /// An interim response came before it.
    pub was_pending: bool,
    /// The token that came with an interim response, which must not invalidate.
    pub invalidated_by_interim: Option<u32>,
    /// It came in an encrypted message.
    pub is_encrypted: bool,
    pub(super) bytes: Vec<u8>,
}

impl Response {
    /// Reads the header.
    pub(super) fn parse(bytes: Vec<u8>, invalidated: Option<u32>) -> Result<Self, SmbError> {
        let header = Header::read_le(&mut Cursor::new(&bytes))
            .map_err(|error| SmbError::Message(format!("header of a response: {error}")))?;
        if !header.flags.server_to_redir() {
            return Err(SmbError::Message("a request from the server".into()));
        }
        Ok(Self {
            header,
            invalidated,
            was_pending: false,
            invalidated_by_interim: None,
            is_encrypted: false,
            bytes,
        })
    }

    /// NTSTATUS.
    pub fn status(&self) -> u32 {
        self.header.status
    }

    /// The response, if it is a success.
    ///
    /// # Errors
    /// [`SmbError::Status`].
    pub fn success(self) -> Result<Self, SmbError> {
        match self.header.status {
            status::SUCCESS => Ok(self),
            status => Err(SmbError::Status {
                command: self.header.command,
                status,
            }),
        }
    }

    /// The body as a type of `smb-msg`.
    ///
    /// # Errors
    /// It has another form.
    pub fn body<T>(&self) -> Result<T, SmbError>
    where
        T: for<'a> BinRead<Args<'a> = ()>,
    {
        let mut cursor = Cursor::new(&self.bytes[..]);
        cursor.set_position(HEADER as u64);
        T::read_le(&mut cursor).map_err(|error| {
            SmbError::Message(format!("{} response: {error}", self.header.command))
        })
    }

    /// All bytes, from the header on.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The fields of a READ response: `[MS-SMB2] 2.2.20`.
    ///
    /// # Errors
    /// It is none, or its data is not inside the message.
    pub fn read_result(&self) -> Result<ReadResult<'_>, SmbError> {
        let body = self.body::<ReadResponse>()?;
        let start = usize::from(body.data_offset);
        let data = start
            .checked_add(body.data_length as usize)
            .and_then(|end| self.bytes.get(start..end))
            .ok_or_else(|| {
                SmbError::Message(format!(
                    "READ response: {} bytes at {start} of {}",
                    body.data_length,
                    self.bytes.len()
                ))
            })?;
        Ok(ReadResult {
            data_offset: body.data_offset,
            data_remaining: body.data_remaining,
            flags: body.flags,
            data,
        })
    }
}

/// What a READ response carries.
#[derive(Debug, Clone, Copy)]
pub struct ReadResult<'a> {
    /// DataOffset.
    pub data_offset: u8,
    /// DataRemaining: bytes that went by RDMA.
    pub data_remaining: u32,
    /// Flags; of 3.1.1 only.
    pub flags: u32,
    /// Data inside the message; the transform, if [`READ_TRANSFORM`] is in Flags.
    pub data: &'a [u8],
}

/// `[MS-SMB2] 2.2.20`. That of `smb-msg` takes no response without data.
#[derive(BinRead)]
#[br(little, magic = 17u16)]
struct ReadResponse {
    data_offset: u8,
    _reserved: u8,
    data_length: u32,
    data_remaining: u32,
    flags: u32,
}

/// SMB2_READFLAG_RESPONSE_RDMA_TRANSFORM: `[MS-SMB2] 2.2.20`.
pub const READ_TRANSFORM: u32 = 1;

/// SMB2 READ request, every field free: `[MS-SMB2] 2.2.19`.
#[derive(Debug, Clone, BinWrite)]
#[bw(little)]
pub struct ReadRequest {
    /// 49.
    pub structure_size: u16,
    /// Padding.
    pub padding: u8,
    /// Flags.
    pub flags: u8,
    /// Bytes to read.
    pub length: u32,
    /// Where in the file.
    pub offset: u64,
    /// The open file.
    pub file_id: FileId,
    /// Fewer bytes are an error.
    pub minimum_count: u32,
    /// One of [`channel`].
    pub channel: u32,
    /// Not used by servers.
    pub remaining_bytes: u32,
    /// From the header; 112 is where `channel_info` is.
    pub channel_info_offset: u16,
    /// Bytes.
    pub channel_info_length: u16,
    /// Buffer descriptors; one byte when there is none.
    pub channel_info: Vec<u8>,
}

impl ReadRequest {
    /// Data comes in the response.
    pub fn inline(file_id: FileId, offset: u64, length: u32) -> Self {
        Self {
            structure_size: 49,
            padding: 80,
            flags: 0,
            length,
            offset,
            file_id,
            minimum_count: 0,
            channel: channel::NONE,
            remaining_bytes: 0,
            channel_info_offset: 0,
            channel_info_length: 0,
            channel_info: vec![0],
        }
    }

    /// Data is placed in our memory.
    pub fn rdma(
        file_id: FileId,
        offset: u64,
        length: u32,
        channel: u32,
        descriptors: &[BufferDescriptor],
    ) -> Self {
        let channel_info = encode(descriptors);
        Self {
            channel,
            channel_info_offset: BUFFER_OFFSET,
            channel_info_length: channel_info.len() as u16,
            channel_info,
            ..Self::inline(file_id, offset, length)
        }
    }

    /// The message, charged for `length` bytes.
    ///
    /// # Errors
    /// None in practice.
    pub fn to_request(&self, tree_id: u32) -> Result<Request, SmbError> {
        let request = Request::new(Command::Read, self)?;
        Ok(request.in_tree(tree_id).with_payload(self.length))
    }
}

/// SMB2 WRITE request, every field free: `[MS-SMB2] 2.2.21`.
#[derive(Debug, Clone, BinWrite)]
#[bw(little)]
pub struct WriteRequest {
    /// 49.
    pub structure_size: u16,
    /// From the header; 112 for data inside the message, 0 for RDMA.
    pub data_offset: u16,
    /// Bytes inside the message.
    pub length: u32,
    /// Where in the file.
    pub offset: u64,
    /// The open file.
    pub file_id: FileId,
    /// One of [`channel`].
    pub channel: u32,
    /// Bytes that the server fetches.
    pub remaining_bytes: u32,
    /// From the header; 112 is where `channel_info` is.
    pub channel_info_offset: u16,
    /// Bytes.
    pub channel_info_length: u16,
    /// Flags.
    pub flags: u32,
    /// Buffer descriptors.
    pub channel_info: Vec<u8>,
    /// Data inside the message, behind the descriptors if there are any.
    #[bw(ignore)]
    pub data: Option<Arc<Vec<u8>>>,
}

impl WriteRequest {
    /// Data goes in the request.
    pub fn inline(file_id: FileId, offset: u64, data: Arc<Vec<u8>>) -> Self {
        Self {
            structure_size: 49,
            data_offset: BUFFER_OFFSET,
            length: data.len() as u32,
            offset,
            file_id,
            channel: channel::NONE,
            remaining_bytes: 0,
            channel_info_offset: 0,
            channel_info_length: 0,
            flags: 0,
            channel_info: Vec::new(),
            data: Some(data),
        }
    }

    /// The server fetches `length` bytes from our memory.
    pub fn rdma(
        file_id: FileId,
        offset: u64,
        length: u32,
        channel: u32,
        descriptors: &[BufferDescriptor],
    ) -> Self {
        let channel_info = encode(descriptors);
        Self {
            structure_size: 49,
            data_offset: 0,
            length: 0,
            offset,
            file_id,
            channel,
            remaining_bytes: length,
            channel_info_offset: BUFFER_OFFSET,
            channel_info_length: channel_info.len() as u16,
            flags: 0,
            channel_info,
            data: None,
        }
    }

    /// The server fetches `length` bytes from our memory, and transforms them back.
    pub fn transformed(
        file_id: FileId,
        offset: u64,
        length: u32,
        transform: &RdmaTransform,
        descriptors: &[BufferDescriptor],
    ) -> Self {
        let channel_info = transform.channel_info(descriptors);
        Self {
            channel: channel::RDMA_TRANSFORM,
            channel_info_length: channel_info.len() as u16,
            channel_info,
            ..Self::rdma(file_id, offset, length, channel::RDMA_TRANSFORM, &[])
        }
    }

    /// The message, charged for its data.
    ///
    /// # Errors
    /// None in practice.
    pub fn to_request(&self, tree_id: u32) -> Result<Request, SmbError> {
        let mut request = Request::new(Command::Write, self)?
            .in_tree(tree_id)
            .with_payload(self.length.max(self.remaining_bytes));
        match &self.data {
            Some(data) if !data.is_empty() => request.tail = Some(data.clone()),
            // StructureSize counts one byte of the buffer.
            _ if self.channel_info.is_empty() => request.head.push(0),
            _ => {}
        }
        Ok(request)
    }
}

/// Descriptors as they stand in a message: `[MS-SMBD] 2.2.3.1`.
pub(super) fn encode(descriptors: &[BufferDescriptor]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(descriptors.len() * BufferDescriptor::LEN);
    for descriptor in descriptors {
        bytes.extend(descriptor.emit());
    }
    bytes
}

/// Where the buffer of READ and WRITE requests is.
const BUFFER_OFFSET: u16 = 112;
