#![forbid(unsafe_code)]
//! What is asked and answered.

use std::borrow::Cow;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::status::StatusPage;
use crate::ring::{AreaOptions, Descriptor};
use crate::wire;

/// What a handle or a tool asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Makes this socket a handle. Answer: Opened with the area's descriptors.
    Open(OpenRequest),
    /// Ends the handle in good order. Answer: Ok, then the engine closes.
    Close,
    /// Sets the server's parameters. Answer: Ok.
    SetParams(Params),
    /// Asks for the parameters in force. Answer: Params, or ENODATA.
    GetParams,
    /// Registers or unregisters what routes connections here. Answer: Ok.
    SetSession(SessionSpec),
    /// Listens. Answer: Address.
    Listen(ListenSpec),
    /// Stops listening. Answer: Ok.
    Unlisten(ListenSpec),
    /// Connects to a peer. Answer: Connection.
    Connect(ConnectSpec),
    /// Takes over an offered or exported connection. Its Attached entry is published before the
    /// answer: Connection.
    Accept {
        /// Names the offer or export.
        token: [u8; 16],
    },
    /// Refuses an offer. Answer: Ok.
    Reject {
        /// Names the offer.
        token: [u8; 16],
    },
    /// Makes a connection ready to be taken over. Answer: Token.
    Export {
        /// The connection.
        connection: u64,
    },
    /// Takes that back. Answer: Ok, also when it was not exported.
    CancelExport {
        /// The connection.
        connection: u64,
    },
    /// Lets the peer of a connection reach a piece of the RDMA buffers. Answer: Registered.
    Register {
        /// The connection.
        connection: u64,
        /// Where the piece starts, from the start of the area.
        offset: u64,
        /// Bytes.
        length: u32,
        /// The peer may read it.
        remote_read: bool,
        /// The peer may write it.
        remote_write: bool,
    },
    /// Takes that back. Answer: Ok.
    Deregister {
        /// The connection.
        connection: u64,
        /// The token.
        token: u32,
    },
    /// The addresses of this host. Answer: Interfaces.
    Interfaces {
        /// How many of them to skip.
        from: u32,
    },
    /// What the engine does. Answer: Status.
    Status {
        /// How many items to skip.
        from: u32,
    },
    /// Ends any connection, whoever owns it; only for root and the engine's own user. Answer: Ok,
    /// or ENOENT.
    Disconnect {
        /// The connection. Its low 16 bits, which change when it gets another owner, do not count.
        connection: u64,
        /// At once; otherwise what was submitted before leaves first, for a few seconds.
        abort: bool,
    },
}

/// The engine's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Ok,
    /// Refused, or failed.
    Error {
        /// A positive errno.
        errno: i32,
        /// What was refused, with its value, and the cure.
        text: String,
    },
    /// The handle is open; with it come the memory and the bell.
    Opened {
        /// The options with the engine's choices filled in.
        area: AreaOptions,
        /// The engine's version.
        version: String,
    },
    /// The parameters in force, security blob included.
    Params(Params),
    /// The address taken.
    Address(SocketAddr),
    /// The connection.
    Connection(u64),
    /// Names an exported connection.
    Token([u8; 16]),
    /// What to tell the peer.
    Registered(Descriptor),
    /// Some of the host's addresses.
    Interfaces {
        /// They.
        interfaces: Vec<InterfaceRecord>,
        /// How many there are altogether.
        total: u32,
    },
    /// A part of the status.
    Status(StatusPage),
}

/// How to open a handle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenRequest {
    /// [`crate::ring::ABI`] of the library.
    pub abi: u32,
    /// The library's version, for logs.
    pub version: String,
    /// The server's parent process.
    pub parent: bool,
    /// The area. receive_slots 0 leaves the choice to the engine: credits of 8 connections.
    pub area: AreaOptions,
}

/// The server's parameters. No field is 0 but those that say so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Params {
    /// Answer SMB2 NEGOTIATE in the engine and route by session.
    pub answer_negotiate: bool,
    /// ReceiveCreditMax, 1..=65535.
    pub receive_credit_max: u32,
    /// SendCreditTarget, 1..=65535.
    pub send_credit_max: u32,
    /// MaxSendSize, 128..=65536.
    pub max_send_size: u32,
    /// MaxReceiveSize, 128..=65536.
    pub max_receive_size: u32,
    /// MaxFragmentedSize, 131072..=67108864.
    pub max_fragment_size: u32,
    /// MaxReadWriteSize, 65536..=1073741824.
    pub max_read_write_size: u32,
    /// KeepaliveInterval, 1000..=86400000 milliseconds.
    pub keepalive_interval_msec: u32,
    /// The GSS token of the SMB2 NEGOTIATE response, at most 16384 bytes.
    pub security_blob: Vec<u8>,
    /// ServerGuid.
    pub server_guid: [u8; 16],
    /// SecurityMode; may be 0.
    pub security_mode: u16,
    /// Capabilities; may be 0.
    pub capabilities: u32,
    /// MaxTransactSize.
    pub max_transact_size: u32,
    /// MaxReadSize.
    pub max_read_size: u32,
    /// MaxWriteSize.
    pub max_write_size: u32,
    /// Lowest dialect, 0x0300, 0x0302 or 0x0311.
    pub min_dialect: u16,
    /// Highest dialect, not below the lowest.
    pub max_dialect: u16,
}

/// What routes connections to a handle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionSpec {
    /// An SMB2 SessionId.
    pub session_id: Option<u64>,
    /// An SMB2 ClientGuid.
    pub client_guid: Option<[u8; 16]>,
    /// Unregister.
    pub remove: bool,
}

/// A kind of fabric, with the numbers of SMBD_FABRIC_*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Fabric {
    /// Software iWARP.
    #[serde(rename = "soft-iwarp")]
    SoftIwarp,
    /// RDMA devices: InfiniBand, RoCE, iWARP.
    #[serde(rename = "verbs")]
    Verbs,
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenSpec {
    /// The fabric.
    pub fabric: Fabric,
    /// Address and port; port 0 takes a free one.
    pub address: SocketAddr,
    /// Ask peers for CRCs.
    pub crc: bool,
}

/// Whom to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectSpec {
    /// The fabric.
    pub fabric: Fabric,
    /// The peer.
    pub address: SocketAddr,
    /// Ask for CRCs.
    pub crc: bool,
    /// MPA revision, 1 or 2.
    pub mpa_revision: u8,
    /// How long the set-up may take, 1..=3600000 milliseconds.
    pub timeout_msec: u32,
    /// This connection's own values.
    pub params: Params,
}

/// An address of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceRecord {
    /// Index of the network interface.
    pub if_index: u32,
    /// SMBD_INTERFACE_*.
    pub capability: u32,
    /// The fabric that takes connections there.
    pub fabric: Option<Fabric>,
    /// Bits per second; 0: unknown.
    pub link_speed: u64,
    /// The address; port 0, or the port listened on.
    pub address: SocketAddr,
    /// The interface's name, at most 15 bytes.
    pub name: String,
    /// Why SMB Direct works or does not work there, at most 103 bytes.
    pub reason: String,
}

/// Several receive queues (SMBD_INTERFACE_RSS).
pub const INTERFACE_RSS: u32 = 0x1;
/// The engine takes connections there (SMBD_INTERFACE_RDMA).
pub const INTERFACE_RDMA: u32 = 0x2;

/// A value out of range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeError {
    /// The field, as the C structure names it.
    pub field: &'static str,
    /// Its value.
    pub value: u64,
    /// What it may be.
    pub allowed: Cow<'static, str>,
}

impl std::fmt::Display for RangeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} is {}, it may be {}",
            self.field, self.value, self.allowed
        )
    }
}

impl std::error::Error for RangeError {}

impl Fabric {
    /// Its SMBD_FABRIC_* number.
    pub fn number(self) -> u32 {
        match self {
            Self::SoftIwarp => 1,
            Self::Verbs => 2,
        }
    }

    /// The fabric with an SMBD_FABRIC_* number.
    pub fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::SoftIwarp),
            2 => Some(Self::Verbs),
            _ => None,
        }
    }

    /// Its name in tables and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::SoftIwarp => "soft-iwarp",
            Self::Verbs => "verbs",
        }
    }
}

impl Default for Params {
    fn default() -> Self {
        let max_read_write_size = 8 << 20;
        Self {
            answer_negotiate: false,
            receive_credit_max: 255,
            send_credit_max: 255,
            max_send_size: 8136,
            max_receive_size: 8192,
            max_fragment_size: 1 << 20,
            max_read_write_size,
            keepalive_interval_msec: 120_000,
            security_blob: Vec::new(),
            server_guid: [0; 16],
            security_mode: 0,
            capabilities: 0,
            max_transact_size: 1 << 20,
            max_read_size: max_read_write_size,
            max_write_size: max_read_write_size,
            min_dialect: 0x0300,
            max_dialect: 0x0311,
        }
    }
}

impl Params {
    /// Checks every value against its range ([MS-SMBD] 3.1.1.1 and the limits of this engine).
    pub fn check(&self) -> Result<(), RangeError> {
        let in_range = |field, value: u32, min: u32, max: u32| {
            if (min..=max).contains(&value) {
                return Ok(());
            }
            Err(RangeError {
                field,
                value: value.into(),
                allowed: format!("{min}..={max}").into(),
            })
        };
        in_range("receive_credit_max", self.receive_credit_max, 1, 65535)?;
        in_range("send_credit_max", self.send_credit_max, 1, 65535)?;
        // [MS-SMBD] 3.1.5.2: a peer ends the connection below 128, and for fragmented ones below
        // 131072.
        let (min, max) = (wire::MIN_MESSAGE_SIZE, wire::MAX_MESSAGE_SIZE);
        in_range("max_send_size", self.max_send_size, min, max)?;
        in_range("max_receive_size", self.max_receive_size, min, max)?;
        let (min, max) = (wire::MIN_FRAGMENTED_SIZE, wire::MAX_FRAGMENTED_SIZE);
        in_range("max_fragment_size", self.max_fragment_size, min, max)?;
        let size = self.max_read_write_size;
        in_range("max_read_write_size", size, 65536, 1 << 30)?;
        let interval = self.keepalive_interval_msec;
        in_range("keepalive_interval_msec", interval, 1000, 86_400_000)?;
        let blob = u32::try_from(self.security_blob.len()).unwrap_or(u32::MAX);
        in_range("security_blob_length", blob, 0, 16384)?;
        let smb2_sizes = [
            ("max_transact_size", self.max_transact_size),
            ("max_read_size", self.max_read_size),
            ("max_write_size", self.max_write_size),
        ];
        for (field, value) in smb2_sizes {
            // [MS-SMB2] 2.2.4: a client gives up below 65536.
            in_range(field, value, 65536, 1 << 30)?;
        }
        let dialects = [
            ("min_dialect", self.min_dialect),
            ("max_dialect", self.max_dialect),
        ];
        for (field, value) in dialects {
            if !matches!(value, 0x0300 | 0x0302 | 0x0311) {
                return Err(RangeError {
                    field,
                    value: value.into(),
                    allowed: "768 (0x0300), 770 (0x0302) or 785 (0x0311)".into(),
                });
            }
        }
        if self.max_dialect < self.min_dialect {
            return Err(RangeError {
                field: "max_dialect",
                value: self.max_dialect.into(),
                allowed: "min_dialect or above".into(),
            });
        }
        Ok(())
    }
}

impl SessionSpec {
    /// Checks that it names something.
    pub fn check(&self) -> Result<(), RangeError> {
        if self.session_id.is_none() && self.client_guid.is_none() {
            return Err(RangeError {
                field: "flags",
                value: 0,
                allowed: "SMBD_SESSION_ID, SMBD_SESSION_CLIENT_GUID or both".into(),
            });
        }
        if self.session_id == Some(0) {
            return Err(RangeError {
                field: "session_id",
                value: 0,
                allowed: "any other number".into(),
            });
        }
        Ok(())
    }
}

impl ConnectSpec {
    /// Checks every value against its range.
    pub fn check(&self) -> Result<(), RangeError> {
        if !matches!(self.mpa_revision, 1 | 2) {
            return Err(RangeError {
                field: "mpa_revision",
                value: self.mpa_revision.into(),
                allowed: "1 or 2".into(),
            });
        }
        if !(1..=3_600_000).contains(&self.timeout_msec) {
            return Err(RangeError {
                field: "timeout_msec",
                value: self.timeout_msec.into(),
                allowed: "1..=3600000".into(),
            });
        }
        if self.address.port() == 0 {
            return Err(RangeError {
                field: "address port",
                value: 0,
                allowed: "1..=65535".into(),
            });
        }
        self.params.check()
    }
}
