//! Requests by name, and calls that wait for their answer.

use std::net::IpAddr;
use std::sync::Arc;

use binrw::BinRead;
use smb_fscc::{FileAccessMask, FileAttributes, FileDirectoryInformation, QueryDirectoryInfoClass};
use smb_msg::{
    ChangeNotifyRequest, CloseRequest, Command, CreateDisposition, CreateOptions, CreateRequest,
    CreateResponse, EchoRequest, FileId, FlushRequest, FsctlCodes, ImpersonationLevel,
    IoctlRequest, IoctlRequestFlags, IoctlResponse, NetworkInterfacesInfo, NotifyFilter,
    NotifyFlags, OplockLevel, QueryDirectoryFlags, QueryDirectoryRequest, QueryDirectoryResponse,
    ShareAccessFlags, TreeConnectRequest, TreeConnectResponse, TreeDisconnectRequest,
    WriteResponse,
};

use super::connection::Connection;
use super::direct::Memory;
use super::error::{status, SmbError};
use super::message::{ReadRequest, Request, Response, WriteRequest, READ_TRANSFORM};
use super::payload::Protection;
use super::transform::RdmaTransform;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// It has to be there; read only.
    Read,
    /// It is made if it is not there; read and write.
    ReadWrite,
    /// As [`OpenMode::ReadWrite`], and what was in it is gone.
    Overwrite,
    /// As [`OpenMode::ReadWrite`], and it is deleted when it is closed.
    DeleteOnClose,
    /// A directory, to list it.
    Directory,
}

/// A file that was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenedFile {
    /// FileId.
    pub id: FileId,
    /// EndOfFile, bytes.
    pub size: u64,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name.
    pub name: String,
    /// EndOfFile, bytes.
    pub size: u64,
    /// It is a directory.
    pub is_directory: bool,
}

/// A network interface of the server: `[MS-SMB2] 2.2.32.5`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interface {
    /// IfIndex.
    pub index: u32,
    /// RSS_CAPABLE.
    pub is_rss_capable: bool,
    /// RDMA_CAPABLE.
    pub is_rdma_capable: bool,
    /// LinkSpeed, bits per second.
    pub link_speed: u64,
    /// Address.
    pub address: IpAddr,
}

/// CreateContextsOffset in a CREATE request.
const CREATE_CONTEXTS_OFFSET: std::ops::Range<usize> = 112..116;

impl Request {
    /// CREATE.
    ///
    /// # Errors
    /// The name is too long.
    pub fn create(tree_id: u32, name: &str, mode: OpenMode) -> Result<Self, SmbError> {
        let is_directory = mode == OpenMode::Directory;
        let writes = !matches!(mode, OpenMode::Read | OpenMode::Directory);
        let mut access = FileAccessMask::new();
        access.set_file_read_data(true);
        access.set_file_read_attributes(true);
        access.set_file_write_data(writes);
        access.set_file_append_data(writes);
        access.set_delete(mode == OpenMode::DeleteOnClose);
        let body = CreateRequest {
            requested_oplock_level: OplockLevel::None,
            impersonation_level: ImpersonationLevel::Impersonation,
            desired_access: access,
            file_attributes: FileAttributes::new(),
            share_access: ShareAccessFlags::new()
                .with_read(true)
                .with_write(true)
                .with_delete(true),
            create_disposition: match mode {
                OpenMode::Read | OpenMode::Directory => CreateDisposition::Open,
                OpenMode::ReadWrite | OpenMode::DeleteOnClose => CreateDisposition::OpenIf,
                OpenMode::Overwrite => CreateDisposition::OverwriteIf,
            },
            create_options: CreateOptions::new()
                .with_directory_file(is_directory)
                .with_non_directory_file(!is_directory)
                .with_delete_on_close(mode == OpenMode::DeleteOnClose),
            name: name.into(),
            contexts: Vec::new().into(),
        };
        let mut request = Self::new(Command::Create, &body)?.in_tree(tree_id);
        // `[MS-SMB2] 2.2.13`: zero when there are no contexts; smb-msg gives the end of the message,
        // and ksmbd takes that for an error.
        if let Some(field) = request.head.get_mut(CREATE_CONTEXTS_OFFSET) {
            field.fill(0);
        }
        if name.is_empty() {
            // StructureSize counts one byte of the buffer.
            request.head.push(0);
        }
        Ok(request)
    }

    /// CLOSE.
    ///
    /// # Errors
    /// None in practice.
    pub fn close(tree_id: u32, file_id: FileId) -> Result<Self, SmbError> {
        Ok(Self::new(Command::Close, &CloseRequest { file_id })?.in_tree(tree_id))
    }

    /// FLUSH.
    ///
    /// # Errors
    /// None in practice.
    pub fn flush(tree_id: u32, file_id: FileId) -> Result<Self, SmbError> {
        Ok(Self::new(Command::Flush, &FlushRequest { file_id })?.in_tree(tree_id))
    }

    /// CHANGE_NOTIFY: pending until something changes in the directory, or until it is cancelled.
    ///
    /// # Errors
    /// None in practice.
    pub fn change_notify(tree_id: u32, directory: FileId) -> Result<Self, SmbError> {
        let body = ChangeNotifyRequest {
            flags: NotifyFlags::new(),
            output_buffer_length: 1024,
            file_id: directory,
            completion_filter: NotifyFilter::new().with_file_name(true),
        };
        Ok(Self::new(Command::ChangeNotify, &body)?.in_tree(tree_id))
    }

    /// ECHO.
    ///
    /// # Errors
    /// None in practice.
    pub fn echo() -> Result<Self, SmbError> {
        Self::new(Command::Echo, &EchoRequest::default())
    }
}

impl Connection {
    /// Connects to a share, `\\server\share`. Returns the TreeId.
    ///
    /// # Errors
    /// [`SmbError::Status`], as with all calls here, besides the end of the connection.
    pub fn tree_connect(&mut self, share: &str) -> Result<u32, SmbError> {
        let body = TreeConnectRequest::new(share);
        let response = self.call(Request::new(Command::TreeConnect, &body)?)?;
        let encrypts = response
            .body::<TreeConnectResponse>()?
            .share_flags
            .encrypt_data();
        let tree_id = response
            .header
            .tree_id
            .ok_or_else(|| SmbError::Message("a TREE_CONNECT response without TreeId".into()))?;
        match &self.channel.crypt {
            Some(crypt) => crypt.set_tree(tree_id, encrypts),
            None if encrypts => {
                return Err(SmbError::Usage(format!(
                    "{share} wants encryption: offer a cipher that the server has"
                )))
            }
            None => {}
        }
        Ok(tree_id)
    }

    /// Disconnects from a share.
    ///
    /// # Errors
    /// See [`Connection::tree_connect`].
    pub fn tree_disconnect(&mut self, tree_id: u32) -> Result<(), SmbError> {
        let body = TreeDisconnectRequest::default();
        let request = Request::new(Command::TreeDisconnect, &body)?;
        self.call(request.in_tree(tree_id)).map(drop)
    }

    /// Opens a file.
    ///
    /// # Errors
    /// See [`Connection::tree_connect`].
    pub fn open(
        &mut self,
        tree_id: u32,
        name: &str,
        mode: OpenMode,
    ) -> Result<OpenedFile, SmbError> {
        let response = self.call(Request::create(tree_id, name, mode)?)?;
        response.opened_file()
    }

    /// Closes a file.
    ///
    /// # Errors
    /// See [`Connection::tree_connect`].
    pub fn close(&mut self, tree_id: u32, file_id: FileId) -> Result<(), SmbError> {
        self.call(Request::close(tree_id, file_id)?).map(drop)
    }

    /// Has everything written to the disk.
    ///
    /// # Errors
    /// See [`Connection::tree_connect`].
    pub fn flush(&mut self, tree_id: u32, file_id: FileId) -> Result<(), SmbError> {
        self.call(Request::flush(tree_id, file_id)?).map(drop)
    }

    /// Asks for a sign of life.
    ///
    /// # Errors
    /// See [`Connection::tree_connect`].
    pub fn echo(&mut self) -> Result<(), SmbError> {
        self.call(Request::echo()?).map(drop)
    }

    /// Reads with the data in the response; fewer bytes at the end of the file.
    ///
    /// # Errors
    /// See [`Connection::tree_connect`].
    pub fn read(
        &mut self,
        tree_id: u32,
        file_id: FileId,
        offset: u64,
        length: u32,
    ) -> Result<Vec<u8>, SmbError> {
        let request = ReadRequest::inline(file_id, offset, length);
        let response = self.call(request.to_request(tree_id)?)?;
        Ok(response.read_result()?.data.to_vec())
    }

    /// Writes with the data in the request. Returns how much was written.
    ///
    /// # Errors
    /// See [`Connection::tree_connect`].
    pub fn write(
        &mut self,
        tree_id: u32,
        file_id: FileId,
        offset: u64,
        data: &[u8],
    ) -> Result<u32, SmbError> {
        let request = WriteRequest::inline(file_id, offset, Arc::new(data.to_vec()));
        let response = self.call(request.to_request(tree_id)?)?;
        response.written()
    }

    /// Reads `length` bytes into registered memory. Returns how many the server placed, and its
    /// response. What came with an RDMA transform is verified and decrypted.
    ///
    /// # Errors
    /// See [`Connection::tree_connect`] and [`Connection::open_payload`].
    pub fn rdma_read(
        &mut self,
        tree_id: u32,
        file_id: FileId,
        offset: u64,
        length: u32,
        channel: u32,
        memory: &Memory,
    ) -> Result<(u32, Response), SmbError> {
        let request = ReadRequest::rdma(file_id, offset, length, channel, memory.descriptors());
        let response = self.call(request.to_request(tree_id)?)?;
        let remaining = self.open_payload(&response, memory.memory())?;
        let result = response.read_result()?;
        if !result.data.is_empty() && result.flags & READ_TRANSFORM == 0 {
            let inside = result.data.len();
            return Err(SmbError::Message(format!(
                "a READ response with {inside} bytes inside instead of by RDMA"
            )));
        }
        Ok((remaining, response))
    }

    /// Writes the first `length` bytes of registered memory. Returns how many the server wrote,
    /// and its response. With an RDMA transform if there is one for the session; encryption is in
    /// place, see [`Connection::seal_payload`]. Without, data goes as it is.
    ///
    /// # Errors
    /// See [`Connection::tree_connect`].
    pub fn rdma_write(
        &mut self,
        tree_id: u32,
        file_id: FileId,
        offset: u64,
        length: u32,
        channel: u32,
        memory: &Memory,
    ) -> Result<(u32, Response), SmbError> {
        let protection = self.protection(tree_id).unwrap_or(Protection::Plain);
        let transform = self.seal_payload(protection, memory.memory(), length as usize)?;
        let descriptors = memory.descriptors();
        let request = match transform {
            Some(transform) => {
                let transform = RdmaTransform::of_write(channel, transform, descriptors);
                WriteRequest::transformed(file_id, offset, length, &transform, descriptors)
            }
            None => WriteRequest::rdma(file_id, offset, length, channel, descriptors),
        };
        let response = self.call(request.to_request(tree_id)?)?;
        Ok((response.written()?, response))
    }

    /// The entries of a directory ("" is the root) that match a pattern.
    ///
    /// # Errors
    /// See [`Connection::tree_connect`].
    pub fn list(
        &mut self,
        tree_id: u32,
        directory: &str,
        pattern: &str,
    ) -> Result<Vec<Entry>, SmbError> {
        let file = self.open(tree_id, directory, OpenMode::Directory)?;
        let mut entries = Vec::new();
        loop {
            let body = QueryDirectoryRequest {
                file_information_class: QueryDirectoryInfoClass::DirectoryInformation,
                flags: QueryDirectoryFlags::new(),
                file_index: 0,
                file_id: file.id,
                output_buffer_length: LIST_BYTES,
                file_name: pattern.into(),
            };
            let request = Request::new(Command::QueryDirectory, &body)?;
            let id = self.submit(request.in_tree(tree_id).with_payload(LIST_BYTES))?;
            let response = self.wait(id)?;
            if response.status() == status::NO_MORE_FILES {
                break;
            }
            let response = response.success()?;
            let found = response
                .body::<QueryDirectoryResponse>()?
                .read_output::<FileDirectoryInformation>()?;
            entries.extend(found.into_iter().map(|it| Entry {
                name: it.file_name.to_string(),
                size: it.end_of_file,
                is_directory: it.file_attributes.directory(),
            }));
        }
        self.close(tree_id, file.id)?;
        Ok(entries)
    }

    /// What FSCTL_QUERY_NETWORK_INTERFACE_INFO answers, as it is.
    ///
    /// # Errors
    /// See [`Connection::tree_connect`].
    pub fn interface_info(&mut self, tree_id: u32) -> Result<Vec<u8>, SmbError> {
        let body = IoctlRequest {
            ctl_code: FsctlCodes::QueryNetworkInterfaceInfo as u32,
            file_id: FileId::FULL,
            max_input_response: 0,
            max_output_response: INTERFACE_BYTES,
            flags: IoctlRequestFlags::new().with_is_fsctl(true),
            buffer: smb_msg::QueryNetworkInterfaceInfoRequest::new(()).into(),
        };
        let request = Request::new(Command::Ioctl, &body)?
            .in_tree(tree_id)
            .with_payload(INTERFACE_BYTES);
        Ok(self.call(request)?.body::<IoctlResponse>()?.out_buffer)
    }

    /// The network interfaces that the server tells of.
    ///
    /// # Errors
    /// See [`Connection::tree_connect`].
    pub fn interfaces(&mut self, tree_id: u32) -> Result<Vec<Interface>, SmbError> {
        let info = self.interface_info(tree_id)?;
        let list = NetworkInterfacesInfo::read_le(&mut std::io::Cursor::new(info))?;
        let interfaces = list.iter().map(|it| Interface {
            index: it.if_index,
            is_rss_capable: it.capability.rss(),
            is_rdma_capable: it.capability.rdma(),
            link_speed: it.link_speed,
            address: it.sockaddr.socket_addr().ip(),
        });
        Ok(interfaces.collect())
    }
}

impl Response {
    /// Count of a WRITE response: bytes written.
    ///
    /// # Errors
    /// It is none.
    pub fn written(&self) -> Result<u32, SmbError> {
        Ok(self.body::<WriteResponse>()?.count)
    }

    /// What a CREATE response tells.
    ///
    /// # Errors
    /// It is none.
    pub fn opened_file(&self) -> Result<OpenedFile, SmbError> {
        let body = self.body::<CreateResponse>()?;
        Ok(OpenedFile {
            id: body.file_id,
            size: body.endof_file,
        })
    }
}

const LIST_BYTES: u32 = 65_536;
const INTERFACE_BYTES: u32 = 65_536;
