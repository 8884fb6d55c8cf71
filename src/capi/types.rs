//! The C API's constants and structures.
//!
//! Every structure that may grow starts with `size`: the caller sets it to `sizeof` of the
//! structure it was compiled with, and the library reads or writes no byte beyond it.

use libc::{c_char, c_void, iovec, sockaddr_storage};

/// Major version of the ABI; the SONAME carries the same number.
pub const SMBD_ABI_VERSION: u32 = 1;

/* ---- smbd_open ---- */

/// smbd_open_options.flags: this handle belongs to the server's parent
/// process. It may set the parameters and it gets the offers of new
/// connections. One such handle exists at a time; a second one gets -EBUSY.
pub const SMBD_OPEN_PARENT: u32 = 0x1;

/// How to open a handle. Zeroed fields take the default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct smbd_open_options {
    /// sizeof(struct smbd_open_options)
    pub size: u32,
    /// SMBD_OPEN_*
    pub flags: u32,
    /// Path of the engine's control socket. NULL: the environment variable
    /// SMBDIRECT_SOCKET, else /run/smbdirect/engine.sock.
    pub socket_path: *const c_char,
    /// How many RDMA buffers the area holds, 1..=4096; 0: 64.
    pub rdma_buffers: u32,
    /// Bytes of one RDMA buffer, a multiple of 4096, 4096..=64 MiB; 0: 1 MiB.
    pub rdma_buffer_size: u32,
    /// Connections this handle can own at the same time, 1..=4096; 0: 32.
    pub max_connections: u32,
    /// Receive slots for all connections of this handle, 16..=65536; 0: the
    /// engine's choice from its parameters (credits of 8 connections).
    pub receive_slots: u32,
    /// Bytes of one receive slot, 128..=65536: no connection of this handle
    /// receives larger SMBD messages; 0: 8192.
    pub receive_slot_size: u32,
    /// Bytes for PDUs on their way out, 64 KiB..=1 GiB; 0: 16 MiB.
    pub send_area_size: u32,
    /// How long a control call waits for the engine, in milliseconds;
    /// 0: 5000.
    pub timeout_msec: u32,
}

/* ---- smbd_set_params ---- */

/// smbd_params.flags: the engine answers SMB2 NEGOTIATE itself with
/// security_blob and routes the connection by the session that
/// SESSION_SETUP binds to. Without it such connections are offered to the
/// parent.
pub const SMBD_PARAMS_ANSWER_NEGOTIATE: u32 = 0x1;

/// The server's parameters ([MS-SMBD] 3.1.1.1) and what the engine needs
/// for an SMB2 NEGOTIATE response of its own. Zeroed numbers take the
/// default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct smbd_params {
    /// sizeof(struct smbd_params)
    pub size: u32,
    /// SMBD_PARAMS_*
    pub flags: u32,
    /// Most credits granted to a peer: receives kept posted, 1..=65535;
    /// 0: 255.
    pub receive_credit_max: u32,
    /// Credits asked from a peer (SendCreditTarget), 1..=65535; 0: 255.
    pub send_credit_max: u32,
    /// Largest message sent, in bytes, 128..=65536; 0: 8136.
    pub max_send_size: u32,
    /// Largest message received, in bytes, 128..=65536; 0: 8192.
    pub max_receive_size: u32,
    /// Largest upper-layer PDU received, in bytes, 131072..=67108864;
    /// 0: 1048576.
    pub max_fragment_size: u32,
    /// Largest RDMA transfer of one SMB2 READ or WRITE, in bytes,
    /// 65536..=1073741824; 0: 8388608.
    pub max_read_write_size: u32,
    /// Silence after which a peer is probed, in milliseconds,
    /// 1000..=86400000; 0: 120000.
    pub keepalive_interval_msec: u32,
    /// Bytes at security_blob, 0..=16384.
    pub security_blob_length: u32,
    /// The GSS token of the SMB2 NEGOTIATE response; may be NULL when its
    /// length is 0. Copied by the call.
    pub security_blob: *const u8,
    /// ServerGuid of the SMB2 NEGOTIATE response.
    pub server_guid: [u8; 16],
    /// SecurityMode of the SMB2 NEGOTIATE response ([MS-SMB2] 2.2.4).
    pub security_mode: u32,
    /// Capabilities of the SMB2 NEGOTIATE response ([MS-SMB2] 2.2.4).
    pub capabilities: u32,
    /// MaxTransactSize of the SMB2 NEGOTIATE response; 0: 1048576.
    pub max_transact_size: u32,
    /// MaxReadSize of the SMB2 NEGOTIATE response; 0: max_read_write_size.
    pub max_read_size: u32,
    /// MaxWriteSize of the SMB2 NEGOTIATE response; 0: max_read_write_size.
    pub max_write_size: u32,
    /// Lowest SMB2 dialect the engine answers with (0x0300, 0x0302 or
    /// 0x0311); 0: 0x0300. SMB Direct carries none below 3.0 ([MS-SMB2] 2.1).
    pub min_dialect: u16,
    /// Highest SMB2 dialect the engine answers with; 0: 0x0311.
    pub max_dialect: u16,
}

/* ---- smbd_set_session ---- */

/// smbd_session.flags: session_id is set.
pub const SMBD_SESSION_ID: u32 = 0x1;
/// smbd_session.flags: client_guid is set.
pub const SMBD_SESSION_CLIENT_GUID: u32 = 0x2;
/// smbd_session.flags: unregister instead of register.
pub const SMBD_SESSION_REMOVE: u32 = 0x4;

/// Which new connections belong to this process.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct smbd_session {
    /// sizeof(struct smbd_session)
    pub size: u32,
    /// SMBD_SESSION_*
    pub flags: u32,
    /// SMB2 SessionId: connections that bind to it come here.
    pub session_id: u64,
    /// SMB2 ClientGuid: connections whose NEGOTIATE carries it come here.
    pub client_guid: [u8; 16],
}

/* ---- smbd_get_meminfo ---- */

/// Size and layout of the handle's shared memory. Its pages are committed
/// when they are first used.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct smbd_meminfo {
    /// sizeof(struct smbd_meminfo)
    pub size: u32,
    /// The memfd to mmap with MAP_SHARED. It belongs to the handle: do not
    /// close it.
    pub fd: i32,
    /// Bytes to mmap, from offset 0 of fd.
    pub area_size: u64,
    /// Where the PDU memory (receive slots, PDUs on their way out) starts.
    pub pdu_offset: u64,
    /// Bytes of the PDU memory.
    pub pdu_size: u64,
    /// Where the first RDMA buffer starts. Buffer i starts at
    /// rdma_offset + i * rdma_buffer_size.
    pub rdma_offset: u64,
    /// How many RDMA buffers there are.
    pub rdma_buffers: u32,
    /// Bytes of one RDMA buffer.
    pub rdma_buffer_size: u32,
    /// Where the library itself has mapped the area in this process; valid
    /// until smbd_close or smbd_reconnect, and absent in forked children.
    pub address: *mut c_void,
}

/* ---- smbd_get_events ---- */

/// A PDU came. It was copied to smbd_event.buffer, smbd_event.length bytes;
/// or it did not fit: then status is -EMSGSIZE, length is the size it needs,
/// and the event stays for the next call.
pub const SMBD_EVENT_PDU_RECEIVED: u32 = 1;
/// A PDU given to smbd_send_pdus has left: status 0, or a negative errno.
/// With software iWARP "left" means that TCP has taken its last byte, not that
/// the peer's TCP has acknowledged it: when the connection ends with another
/// status than 0, PDUs that were told as sent may not have reached the peer.
/// What must not be lost needs an answer of the peer, or a second connection
/// after SMBD_EVENT_DISCONNECTED.
/// With an RDMA device the peer's answer may be told before this event.
pub const SMBD_EVENT_PDU_SENT: u32 = 2;
/// An RDMA READ of smbd_rdma_read_write ended; its data is in the area.
pub const SMBD_EVENT_RDMA_READ_COMPLETE: u32 = 3;
/// An RDMA WRITE of smbd_rdma_read_write ended.
pub const SMBD_EVENT_RDMA_WRITE_COMPLETE: u32 = 4;
/// A new connection waits for smbd_accept or smbd_reject with
/// smbd_event.token. Only the parent handle gets it.
pub const SMBD_EVENT_OFFERED: u32 = 5;
/// A connection belongs to this handle now: accepted, routed here, handed
/// over, or connected by smbd_connect. It is a connection's first event.
pub const SMBD_EVENT_ATTACHED: u32 = 6;
/// The connection is gone; status tells why (see smbd_disconnect). It is a
/// connection's last event, and the events of all its operations have come
/// before it.
pub const SMBD_EVENT_DISCONNECTED: u32 = 7;
/// There is room again after smbd_send_pdus or smbd_rdma_read_write gave
/// -EAGAIN or took fewer than it was offered.
pub const SMBD_EVENT_WRITABLE: u32 = 8;
/// The engine is gone. The DISCONNECTED events of all connections came
/// before. Call smbd_reconnect from time to time.
pub const SMBD_EVENT_ENGINE_LOST: u32 = 9;

/// smbd_event.flags of PDU_RECEIVED: the peer invalidated
/// smbd_event.invalidated_token of ours together with this PDU.
pub const SMBD_EVENT_INVALIDATED: u32 = 0x1;
/// smbd_event.flags of PDU_RECEIVED: this is the SMB2 NEGOTIATE request that
/// the engine has answered already.
pub const SMBD_EVENT_NEGOTIATE_REQUEST: u32 = 0x2;
/// smbd_event.flags of PDU_RECEIVED: this is the SMB2 NEGOTIATE response
/// that the engine has sent.
pub const SMBD_EVENT_NEGOTIATE_RESPONSE: u32 = 0x4;
/// smbd_event.flags of ATTACHED: routed here by ClientGuid or session id,
/// not asked for by smbd_accept or smbd_connect.
pub const SMBD_EVENT_ROUTED: u32 = 0x8;
/// smbd_event.flags of ATTACHED: made by smbd_connect.
pub const SMBD_EVENT_ACTIVE: u32 = 0x10;

/// One event. The caller sets size, buffer and buffer_size of each entry.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct smbd_event {
    /// In: sizeof(struct smbd_event), the same in every entry of an array.
    pub size: u32,
    /// Out: SMBD_EVENT_*
    pub event: u32,
    /// Out: flags of the event, see above.
    pub flags: u32,
    /// Out: 0 or a negative errno.
    pub status: i32,
    /// Out: the connection; 0 for ENGINE_LOST, WRITABLE and OFFERED.
    pub connection: u64,
    /// Out: the cookie given with the operation.
    pub cookie: u64,
    /// In: where a received PDU is copied to; may be NULL when buffer_size
    /// is 0.
    pub buffer: *mut c_void,
    /// In: bytes at buffer.
    pub buffer_size: u32,
    /// Out: bytes of the PDU, or bytes moved by the RDMA operation.
    pub length: u32,
    /// Out: the token that the peer invalidated.
    pub invalidated_token: u32,
    /// Out: 0
    pub reserved: u32,
    /// Out: what to give to smbd_accept or smbd_reject (OFFERED).
    pub token: [u8; 16],
}

/* ---- smbd_send_pdus ---- */

/// smbd_pdu.flags: invalidate_token of the peer goes with this PDU (RDMA
/// Send with Invalidate); ignored by fabrics that cannot do it.
pub const SMBD_PDU_INVALIDATE: u32 = 0x1;
/// smbd_pdu.flags: no PDU_SENT event for this PDU, unless it fails.
pub const SMBD_PDU_NO_EVENT: u32 = 0x2;

/// One PDU to send: an SMB2 message without the 4-byte length that goes
/// before it on TCP.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct smbd_pdu {
    /// sizeof(struct smbd_pdu), the same in every entry of an array.
    pub size: u32,
    /// SMBD_PDU_*
    pub flags: u32,
    /// The connection.
    pub connection: u64,
    /// Comes back in the PDU_SENT event.
    pub cookie: u64,
    /// The pieces of the PDU. Copied by the call.
    pub iov: *const iovec,
    /// How many pieces, 1..=1024.
    pub iov_count: u32,
    /// The peer's token to invalidate, with SMBD_PDU_INVALIDATE.
    pub invalidate_token: u32,
}

/* ---- smbd_rdma_read_write ---- */

/// smbd_rdma_op.flags: RDMA READ, from the peer's memory into the area.
pub const SMBD_RDMA_READ: u32 = 0x1;
/// smbd_rdma_op.flags: RDMA WRITE, from the area into the peer's memory.
pub const SMBD_RDMA_WRITE: u32 = 0x2;
/// smbd_rdma_op.flags: the token of the first descriptor is invalidated by
/// the next PDU given to smbd_send_pdus for the same connection, if that
/// PDU names no token itself.
pub const SMBD_RDMA_REMOTE_INVALIDATE: u32 = 0x4;
/// smbd_rdma_op.flags: no completion event for this operation, unless it
/// fails. The local memory must stay untouched until a later PDU_SENT event
/// of the same connection.
pub const SMBD_RDMA_NO_EVENT: u32 = 0x8;
/// smbd_rdma_op.flags: the event of this operation's success does not make
/// the file descriptor of smbd_get_fd readable; it comes with the next event
/// that does. For RDMA WRITEs before a response: all that their end means is
/// that memory is free again. Failures, and events without this flag, are
/// told as always. See smbd_set_lazy for a process that waits for the memory.
pub const SMBD_RDMA_LAZY: u32 = 0x10;

/// Memory of a peer, or of ours offered to a peer ([MS-SMBD] 2.2.3.1), in
/// host byte order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct smbd_descriptor {
    /// Where the memory starts, in the owner's addressing.
    pub offset: u64,
    /// The steering tag / remote key.
    pub token: u32,
    /// Bytes.
    pub length: u32,
}

/// A piece of the handle's area.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct smbd_segment {
    /// Where it starts, from the start of the area; inside the RDMA buffers.
    pub offset: u64,
    /// Bytes, at least 1.
    pub length: u64,
}

/// One RDMA operation. It moves the sum of the segments' lengths; the
/// descriptors together must be at least that long.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct smbd_rdma_op {
    /// sizeof(struct smbd_rdma_op), the same in every entry of an array.
    pub size: u32,
    /// SMBD_RDMA_*; exactly one of READ and WRITE.
    pub flags: u32,
    /// The connection.
    pub connection: u64,
    /// Comes back in the completion event.
    pub cookie: u64,
    /// Local memory, in order.
    pub segments: *const smbd_segment,
    /// The peer's memory, in order.
    pub descriptors: *const smbd_descriptor,
    /// How many segments, 1..=1024.
    pub segment_count: u32,
    /// How many descriptors, 1..=65536.
    pub descriptor_count: u32,
}

/* ---- memory offered to a peer ---- */

/// smbd_register_buffer access: the peer may read it.
pub const SMBD_ACCESS_REMOTE_READ: u32 = 0x1;
/// smbd_register_buffer access: the peer may write it.
pub const SMBD_ACCESS_REMOTE_WRITE: u32 = 0x2;

/* ---- listen, connect ---- */

/// Fabric: software iWARP over TCP, port 5445 by default.
pub const SMBD_FABRIC_SOFT_IWARP: u32 = 1;
/// Fabric: RDMA devices through libibverbs and librdmacm, which the engine
/// loads. Port 445 takes InfiniBand and RoCE devices, 5445 iWARP devices
/// ([MS-SMBD] 1.9), other ports all. On a wildcard address the engine follows
/// the addresses and devices of the host. -EOPNOTSUPP: the engine was built
/// without it. Listening succeeds where there is no device, and waits for one.
pub const SMBD_FABRIC_VERBS: u32 = 2;

/// smbd_listen_options.flags, smbd_connect_options.flags: CRC32C in every
/// frame. A listener asks for it in its reply; without it a peer that asks
/// still gets it (RFC 5044 section 7.1).
pub const SMBD_FABRIC_CRC: u32 = 0x1;

/// Where to wait for peers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct smbd_listen_options {
    /// sizeof(struct smbd_listen_options)
    pub size: u32,
    /// SMBD_FABRIC_CRC or 0.
    pub flags: u32,
    /// SMBD_FABRIC_*; 0: SMBD_FABRIC_SOFT_IWARP.
    pub fabric: u32,
    /// Bytes used of address.
    pub address_length: u32,
    /// sockaddr_in or sockaddr_in6. Port 0 takes a free port.
    pub address: sockaddr_storage,
}

/// Whom to connect to.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct smbd_connect_options {
    /// sizeof(struct smbd_connect_options)
    pub size: u32,
    /// SMBD_FABRIC_CRC or 0.
    pub flags: u32,
    /// SMBD_FABRIC_*; 0: SMBD_FABRIC_SOFT_IWARP.
    pub fabric: u32,
    /// MPA revision to start with, 1 or 2; 0: 2.
    pub mpa_revision: u32,
    /// Bytes used of address.
    pub address_length: u32,
    /// How long the whole set-up may take, in milliseconds; 0: 120000.
    pub timeout_msec: u32,
    /// sockaddr_in or sockaddr_in6.
    pub address: sockaddr_storage,
    /// This connection's own [MS-SMBD] values; the fields that concern an
    /// SMB2 NEGOTIATE response are ignored. NULL: defaults, with
    /// max_send_size 1364.
    pub params: *const smbd_params,
}

/* ---- information ---- */

/// A connection as it is now.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct smbd_connection_info {
    /// sizeof(struct smbd_connection_info)
    pub size: u32,
    /// SMBD_FABRIC_*
    pub fabric: u32,
    /// Our address, as sockaddr_in or sockaddr_in6 with the port.
    pub local: sockaddr_storage,
    /// The peer's address.
    pub peer: sockaddr_storage,
    /// Largest message we send, header included.
    pub max_send_size: u32,
    /// Largest message the peer may send, header included.
    pub max_receive_size: u32,
    /// Largest PDU the peer takes (its MaxFragmentedSize).
    pub max_fragmented_send_size: u32,
    /// Largest PDU we take.
    pub max_fragmented_receive_size: u32,
    /// Largest RDMA transfer of one SMB2 READ or WRITE.
    pub max_read_write_size: u32,
    /// Credits we hold now.
    pub send_credits: u32,
    /// Credits the peer holds now.
    pub receive_credits: u32,
    /// RDMA READs that may be outstanding towards the peer.
    pub max_rdma_reads: u32,
    /// PDUs received.
    pub pdus_received: u64,
    /// PDUs sent.
    pub pdus_sent: u64,
    /// SMBD messages received.
    pub messages_received: u64,
    /// SMBD messages sent.
    pub messages_sent: u64,
    /// Bytes of PDUs received.
    pub bytes_received: u64,
    /// Bytes of PDUs sent.
    pub bytes_sent: u64,
    /// RDMA READs completed.
    pub rdma_reads: u64,
    /// RDMA WRITEs completed.
    pub rdma_writes: u64,
    /// Bytes moved by RDMA READs.
    pub rdma_read_bytes: u64,
    /// Bytes moved by RDMA WRITEs.
    pub rdma_write_bytes: u64,
}

/// What this handle has done since smbd_open.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct smbd_statistics {
    /// sizeof(struct smbd_statistics)
    pub size: u32,
    /// Connections attached now.
    pub connections: u32,
    /// Calls of smbd_get_events.
    pub get_events_calls: u64,
    /// Events returned.
    pub events: u64,
    /// System calls made by the data path of this handle.
    pub syscalls: u64,
    /// Wake-ups of the engine (part of syscalls).
    pub doorbells: u64,
    /// PDUs copied straight from receive slots to the caller's buffer.
    pub pdus_direct: u64,
    /// PDUs put together in memory of the library first.
    pub pdus_reassembled: u64,
    /// Times smbd_send_pdus or smbd_rdma_read_write gave -EAGAIN.
    pub back_pressure: u64,
}

/// smbd_interface.capability: several receive queues.
pub const SMBD_INTERFACE_RSS: u32 = 0x1;
/// smbd_interface.capability: the engine takes SMB Direct connections on
/// this address.
pub const SMBD_INTERFACE_RDMA: u32 = 0x2;

/// One address of this host and whether SMB Direct works on it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct smbd_interface {
    /// sizeof(struct smbd_interface), the same in every entry of an array.
    pub size: u32,
    /// Index of the network interface.
    pub if_index: u32,
    /// SMBD_INTERFACE_*
    pub capability: u32,
    /// SMBD_FABRIC_* that takes connections on it; 0: none.
    pub fabric: u32,
    /// Bits per second, of the lower devices if it is a VLAN, a bond or a
    /// bridge; 0: unknown, as for loopback.
    pub link_speed: u64,
    /// The address, port 0; or the port listened on with
    /// SMBD_INTERFACE_RDMA. Clients that find the address by
    /// FSCTL_QUERY_NETWORK_INTERFACE_INFO of SMB2 try 5445 and 445 only.
    pub address: sockaddr_storage,
    /// Name of the interface, ended by NUL.
    pub name: [c_char; 16],
    /// Why SMB Direct works or does not work here, ended by NUL.
    pub reason: [c_char; 104],
}

/* ---- log ---- */

/// Log level: something failed.
pub const SMBD_LOG_ERROR: i32 = 1;
/// Log level: something looks wrong.
pub const SMBD_LOG_WARN: i32 = 2;
/// Log level: connections coming and going.
pub const SMBD_LOG_INFO: i32 = 3;
/// Log level: for developers.
pub const SMBD_LOG_DEBUG: i32 = 4;

/// Gets each log line, without a newline. It is called in the thread that
/// called the library and must not call the library.
pub type smbd_log_callback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, level: i32, message: *const c_char)>;
