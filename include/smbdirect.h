/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * smbdirect.h: SMB Direct (SMB3 over RDMA, [MS-SMBD]) for C programs.
 *
 * This file is generated from src/capi by cbindgen (`make header`). Do not edit it.
 *
 * For all functions:
 * - They return 0 or a count, or a negative errno; smbd_last_error has the text.
 * - Outputs are written only on success.
 * - Structures start with their own size, set by the caller. A size below that of
 *   the first version is -EINVAL. A larger one is fine as long as the bytes that
 *   this library does not know are 0; else it is -E2BIG.
 * - A handle is used by one thread at a time; different handles are independent.
 * - A handle works only in the process that opened it; elsewhere each call gives
 *   -EPERM, and only smbd_close_after_fork is allowed.
 * - Nothing blocks but the calls that ask the engine, for at most
 *   smbd_open_options.timeout_msec: smbd_open, smbd_close, smbd_reconnect, the
 *   setters, smbd_listen and the like, smbd_connect, smbd_accept, smbd_export.
 * - The library starts no threads, installs no signal or exit handlers, and opens
 *   every file descriptor close-on-exec.
 * - A fault inside the library is -ENOTRECOVERABLE; close the handle then.
 */

#ifndef SMBDIRECT_H
#define SMBDIRECT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>

/**
 * Major version of the ABI; the SONAME carries the same number.
 */
#define SMBD_ABI_VERSION 1

/**
 * smbd_open_options.flags: this handle belongs to the server's parent
 * process. It may set the parameters and it gets the offers of new
 * connections. One such handle exists at a time; a second one gets -EBUSY.
 */
#define SMBD_OPEN_PARENT 1

/**
 * smbd_params.flags: the engine answers SMB2 NEGOTIATE itself with
 * security_blob and routes the connection by the session that
 * SESSION_SETUP binds to. Without it such connections are offered to the
 * parent.
 */
#define SMBD_PARAMS_ANSWER_NEGOTIATE 1

/**
 * smbd_session.flags: session_id is set.
 */
#define SMBD_SESSION_ID 1

/**
 * smbd_session.flags: client_guid is set.
 */
#define SMBD_SESSION_CLIENT_GUID 2

/**
 * smbd_session.flags: unregister instead of register.
 */
#define SMBD_SESSION_REMOVE 4

/**
 * A PDU came. It was copied to smbd_event.buffer, smbd_event.length bytes;
 * or it did not fit: then status is -EMSGSIZE, length is the size it needs,
 * and the event stays for the next call.
 */
#define SMBD_EVENT_PDU_RECEIVED 1

/**
 * A PDU given to smbd_send_pdus has left: status 0, or a negative errno.
 * With software iWARP "left" means that TCP has taken its last byte, not that
 * the peer's TCP has acknowledged it: when the connection ends with another
 * status than 0, PDUs that were told as sent may not have reached the peer.
 * What must not be lost needs an answer of the peer, or a second connection
 * after SMBD_EVENT_DISCONNECTED.
 * With an RDMA device the peer's answer may be told before this event.
 */
#define SMBD_EVENT_PDU_SENT 2

/**
 * An RDMA READ of smbd_rdma_read_write ended; its data is in the area.
 */
#define SMBD_EVENT_RDMA_READ_COMPLETE 3

/**
 * An RDMA WRITE of smbd_rdma_read_write ended.
 */
#define SMBD_EVENT_RDMA_WRITE_COMPLETE 4

/**
 * A new connection waits for smbd_accept or smbd_reject with
 * smbd_event.token. Only the parent handle gets it.
 */
#define SMBD_EVENT_OFFERED 5

/**
 * A connection belongs to this handle now: accepted, routed here, handed
 * over, or connected by smbd_connect. It is a connection's first event.
 */
#define SMBD_EVENT_ATTACHED 6

/**
 * The connection is gone; status tells why (see smbd_disconnect). It is a
 * connection's last event, and the events of all its operations have come
 * before it.
 */
#define SMBD_EVENT_DISCONNECTED 7

/**
 * There is room again after smbd_send_pdus or smbd_rdma_read_write gave
 * -EAGAIN or took fewer than it was offered.
 */
#define SMBD_EVENT_WRITABLE 8

/**
 * The engine is gone. The DISCONNECTED events of all connections came
 * before. Call smbd_reconnect from time to time.
 */
#define SMBD_EVENT_ENGINE_LOST 9

/**
 * smbd_event.flags of PDU_RECEIVED: the peer invalidated
 * smbd_event.invalidated_token of ours together with this PDU.
 */
#define SMBD_EVENT_INVALIDATED 1

/**
 * smbd_event.flags of PDU_RECEIVED: this is the SMB2 NEGOTIATE request that
 * the engine has answered already.
 */
#define SMBD_EVENT_NEGOTIATE_REQUEST 2

/**
 * smbd_event.flags of PDU_RECEIVED: this is the SMB2 NEGOTIATE response
 * that the engine has sent.
 */
#define SMBD_EVENT_NEGOTIATE_RESPONSE 4

/**
 * smbd_event.flags of ATTACHED: routed here by ClientGuid or session id,
 * not asked for by smbd_accept or smbd_connect.
 */
#define SMBD_EVENT_ROUTED 8

/**
 * smbd_event.flags of ATTACHED: made by smbd_connect.
 */
#define SMBD_EVENT_ACTIVE 16

/**
 * smbd_pdu.flags: invalidate_token of the peer goes with this PDU (RDMA
 * Send with Invalidate); ignored by fabrics that cannot do it.
 */
#define SMBD_PDU_INVALIDATE 1

/**
 * smbd_pdu.flags: no PDU_SENT event for this PDU, unless it fails.
 */
#define SMBD_PDU_NO_EVENT 2

/**
 * smbd_rdma_op.flags: RDMA READ, from the peer's memory into the area.
 */
#define SMBD_RDMA_READ 1

/**
 * smbd_rdma_op.flags: RDMA WRITE, from the area into the peer's memory.
 */
#define SMBD_RDMA_WRITE 2

/**
 * smbd_rdma_op.flags: the token of the first descriptor is invalidated by
 * the next PDU given to smbd_send_pdus for the same connection, if that
 * PDU names no token itself.
 */
#define SMBD_RDMA_REMOTE_INVALIDATE 4

/**
 * smbd_rdma_op.flags: no completion event for this operation, unless it
 * fails. The local memory must stay untouched until a later PDU_SENT event
 * of the same connection.
 */
#define SMBD_RDMA_NO_EVENT 8

/**
 * smbd_rdma_op.flags: the event of this operation's success does not make
 * the file descriptor of smbd_get_fd readable; it comes with the next event
 * that does. For RDMA WRITEs before a response: all that their end means is
 * that memory is free again. Failures, and events without this flag, are
 * told as always. See smbd_set_lazy for a process that waits for the memory.
 */
#define SMBD_RDMA_LAZY 16

/**
 * smbd_register_buffer access: the peer may read it.
 */
#define SMBD_ACCESS_REMOTE_READ 1

/**
 * smbd_register_buffer access: the peer may write it.
 */
#define SMBD_ACCESS_REMOTE_WRITE 2

/**
 * Fabric: software iWARP over TCP, port 5445 by default.
 */
#define SMBD_FABRIC_SOFT_IWARP 1

/**
 * Fabric: RDMA devices through libibverbs and librdmacm, which the engine
 * loads. Port 445 takes InfiniBand and RoCE devices, 5445 iWARP devices
 * ([MS-SMBD] 1.9), other ports all. On a wildcard address the engine follows
 * the addresses and devices of the host. -EOPNOTSUPP: the engine was built
 * without it. Listening succeeds where there is no device, and waits for one.
 */
#define SMBD_FABRIC_VERBS 2

/**
 * smbd_listen_options.flags, smbd_connect_options.flags: CRC32C in every
 * frame. A listener asks for it in its reply; without it a peer that asks
 * still gets it (RFC 5044 section 7.1).
 */
#define SMBD_FABRIC_CRC 1

/**
 * smbd_interface.capability: several receive queues.
 */
#define SMBD_INTERFACE_RSS 1

/**
 * smbd_interface.capability: the engine takes SMB Direct connections on
 * this address.
 */
#define SMBD_INTERFACE_RDMA 2

/**
 * Log level: something failed.
 */
#define SMBD_LOG_ERROR 1

/**
 * Log level: something looks wrong.
 */
#define SMBD_LOG_WARN 2

/**
 * Log level: connections coming and going.
 */
#define SMBD_LOG_INFO 3

/**
 * Log level: for developers.
 */
#define SMBD_LOG_DEBUG 4

/**
 * A connection to the engine, with its shared memory. Opaque.
 */
struct smbd_handle;

/**
 * Gets each log line, without a newline. It is called in the thread that
 * called the library and must not call the library.
 */
typedef void (*smbd_log_callback)(void *user_data,
                                  int32_t level,
                                  const char *message);

/**
 * How to open a handle. Zeroed fields take the default.
 */
struct smbd_open_options {
  /**
   * sizeof(struct smbd_open_options)
   */
  uint32_t size;
  /**
   * SMBD_OPEN_*
   */
  uint32_t flags;
  /**
   * Path of the engine's control socket. NULL: the environment variable
   * SMBDIRECT_SOCKET, else /run/smbdirect/engine.sock.
   */
  const char *socket_path;
  /**
   * How many RDMA buffers the area holds, 1..=4096; 0: 64.
   */
  uint32_t rdma_buffers;
  /**
   * Bytes of one RDMA buffer, a multiple of 4096, 4096..=64 MiB; 0: 1 MiB.
   */
  uint32_t rdma_buffer_size;
  /**
   * Connections this handle can own at the same time, 1..=4096; 0: 32.
   */
  uint32_t max_connections;
  /**
   * Receive slots for all connections of this handle, 16..=65536; 0: the
   * engine's choice from its parameters (credits of 8 connections).
   */
  uint32_t receive_slots;
  /**
   * Bytes of one receive slot, 128..=65536: no connection of this handle
   * receives larger SMBD messages; 0: 8192.
   */
  uint32_t receive_slot_size;
  /**
   * Bytes for PDUs on their way out, 64 KiB..=1 GiB; 0: 16 MiB.
   */
  uint32_t send_area_size;
  /**
   * How long a control call waits for the engine, in milliseconds;
   * 0: 5000.
   */
  uint32_t timeout_msec;
};

/**
 * The server's parameters ([MS-SMBD] 3.1.1.1) and what the engine needs
 * for an SMB2 NEGOTIATE response of its own. Zeroed numbers take the
 * default.
 */
struct smbd_params {
  /**
   * sizeof(struct smbd_params)
   */
  uint32_t size;
  /**
   * SMBD_PARAMS_*
   */
  uint32_t flags;
  /**
   * Most credits granted to a peer: receives kept posted, 1..=65535;
   * 0: 255.
   */
  uint32_t receive_credit_max;
  /**
   * Credits asked from a peer (SendCreditTarget), 1..=65535; 0: 255.
   */
  uint32_t send_credit_max;
  /**
   * Largest message sent, in bytes, 128..=65536; 0: 8136.
   */
  uint32_t max_send_size;
  /**
   * Largest message received, in bytes, 128..=65536; 0: 8192.
   */
  uint32_t max_receive_size;
  /**
   * Largest upper-layer PDU received, in bytes, 131072..=67108864;
   * 0: 1048576.
   */
  uint32_t max_fragment_size;
  /**
   * Largest RDMA transfer of one SMB2 READ or WRITE, in bytes,
   * 65536..=1073741824; 0: 8388608.
   */
  uint32_t max_read_write_size;
  /**
   * Silence after which a peer is probed, in milliseconds,
   * 1000..=86400000; 0: 120000.
   */
  uint32_t keepalive_interval_msec;
  /**
   * Bytes at security_blob, 0..=16384.
   */
  uint32_t security_blob_length;
  /**
   * The GSS token of the SMB2 NEGOTIATE response; may be NULL when its
   * length is 0. Copied by the call.
   */
  const uint8_t *security_blob;
  /**
   * ServerGuid of the SMB2 NEGOTIATE response.
   */
  uint8_t server_guid[16];
  /**
   * SecurityMode of the SMB2 NEGOTIATE response ([MS-SMB2] 2.2.4).
   */
  uint32_t security_mode;
  /**
   * Capabilities of the SMB2 NEGOTIATE response ([MS-SMB2] 2.2.4).
   */
  uint32_t capabilities;
  /**
   * MaxTransactSize of the SMB2 NEGOTIATE response; 0: 1048576.
   */
  uint32_t max_transact_size;
  /**
   * MaxReadSize of the SMB2 NEGOTIATE response; 0: max_read_write_size.
   */
  uint32_t max_read_size;
  /**
   * MaxWriteSize of the SMB2 NEGOTIATE response; 0: max_read_write_size.
   */
  uint32_t max_write_size;
  /**
   * Lowest SMB2 dialect the engine answers with (0x0300, 0x0302 or
   * 0x0311); 0: 0x0300. SMB Direct carries none below 3.0 ([MS-SMB2] 2.1).
   */
  uint16_t min_dialect;
  /**
   * Highest SMB2 dialect the engine answers with; 0: 0x0311.
   */
  uint16_t max_dialect;
};

/**
 * Which new connections belong to this process.
 */
struct smbd_session {
  /**
   * sizeof(struct smbd_session)
   */
  uint32_t size;
  /**
   * SMBD_SESSION_*
   */
  uint32_t flags;
  /**
   * SMB2 SessionId: connections that bind to it come here.
   */
  uint64_t session_id;
  /**
   * SMB2 ClientGuid: connections whose NEGOTIATE carries it come here.
   */
  uint8_t client_guid[16];
};

/**
 * Size and layout of the handle's shared memory. Its pages are committed
 * when they are first used.
 */
struct smbd_meminfo {
  /**
   * sizeof(struct smbd_meminfo)
   */
  uint32_t size;
  /**
   * The memfd to mmap with MAP_SHARED. It belongs to the handle: do not
   * close it.
   */
  int32_t fd;
  /**
   * Bytes to mmap, from offset 0 of fd.
   */
  uint64_t area_size;
  /**
   * Where the PDU memory (receive slots, PDUs on their way out) starts.
   */
  uint64_t pdu_offset;
  /**
   * Bytes of the PDU memory.
   */
  uint64_t pdu_size;
  /**
   * Where the first RDMA buffer starts. Buffer i starts at
   * rdma_offset + i * rdma_buffer_size.
   */
  uint64_t rdma_offset;
  /**
   * How many RDMA buffers there are.
   */
  uint32_t rdma_buffers;
  /**
   * Bytes of one RDMA buffer.
   */
  uint32_t rdma_buffer_size;
  /**
   * Where the library itself has mapped the area in this process; valid
   * until smbd_close or smbd_reconnect, and absent in forked children.
   */
  void *address;
};

/**
 * Where to wait for peers.
 */
struct smbd_listen_options {
  /**
   * sizeof(struct smbd_listen_options)
   */
  uint32_t size;
  /**
   * SMBD_FABRIC_CRC or 0.
   */
  uint32_t flags;
  /**
   * SMBD_FABRIC_*; 0: SMBD_FABRIC_SOFT_IWARP.
   */
  uint32_t fabric;
  /**
   * Bytes used of address.
   */
  uint32_t address_length;
  /**
   * sockaddr_in or sockaddr_in6. Port 0 takes a free port.
   */
  struct sockaddr_storage address;
};

/**
 * Whom to connect to.
 */
struct smbd_connect_options {
  /**
   * sizeof(struct smbd_connect_options)
   */
  uint32_t size;
  /**
   * SMBD_FABRIC_CRC or 0.
   */
  uint32_t flags;
  /**
   * SMBD_FABRIC_*; 0: SMBD_FABRIC_SOFT_IWARP.
   */
  uint32_t fabric;
  /**
   * MPA revision to start with, 1 or 2; 0: 2.
   */
  uint32_t mpa_revision;
  /**
   * Bytes used of address.
   */
  uint32_t address_length;
  /**
   * How long the whole set-up may take, in milliseconds; 0: 120000.
   */
  uint32_t timeout_msec;
  /**
   * sockaddr_in or sockaddr_in6.
   */
  struct sockaddr_storage address;
  /**
   * This connection's own [MS-SMBD] values; the fields that concern an
   * SMB2 NEGOTIATE response are ignored. NULL: defaults, with
   * max_send_size 1364.
   */
  const struct smbd_params *params;
};

/**
 * A connection as it is now.
 */
struct smbd_connection_info {
  /**
   * sizeof(struct smbd_connection_info)
   */
  uint32_t size;
  /**
   * SMBD_FABRIC_*
   */
  uint32_t fabric;
  /**
   * Our address, as sockaddr_in or sockaddr_in6 with the port.
   */
  struct sockaddr_storage local;
  /**
   * The peer's address.
   */
  struct sockaddr_storage peer;
  /**
   * Largest message we send, header included.
   */
  uint32_t max_send_size;
  /**
   * Largest message the peer may send, header included.
   */
  uint32_t max_receive_size;
  /**
   * Largest PDU the peer takes (its MaxFragmentedSize).
   */
  uint32_t max_fragmented_send_size;
  /**
   * Largest PDU we take.
   */
  uint32_t max_fragmented_receive_size;
  /**
   * Largest RDMA transfer of one SMB2 READ or WRITE.
   */
  uint32_t max_read_write_size;
  /**
   * Credits we hold now.
   */
  uint32_t send_credits;
  /**
   * Credits the peer holds now.
   */
  uint32_t receive_credits;
  /**
   * RDMA READs that may be outstanding towards the peer.
   */
  uint32_t max_rdma_reads;
  /**
   * PDUs received.
   */
  uint64_t pdus_received;
  /**
   * PDUs sent.
   */
  uint64_t pdus_sent;
  /**
   * SMBD messages received.
   */
  uint64_t messages_received;
  /**
   * SMBD messages sent.
   */
  uint64_t messages_sent;
  /**
   * Bytes of PDUs received.
   */
  uint64_t bytes_received;
  /**
   * Bytes of PDUs sent.
   */
  uint64_t bytes_sent;
  /**
   * RDMA READs completed.
   */
  uint64_t rdma_reads;
  /**
   * RDMA WRITEs completed.
   */
  uint64_t rdma_writes;
  /**
   * Bytes moved by RDMA READs.
   */
  uint64_t rdma_read_bytes;
  /**
   * Bytes moved by RDMA WRITEs.
   */
  uint64_t rdma_write_bytes;
};

/**
 * What this handle has done since smbd_open.
 */
struct smbd_statistics {
  /**
   * sizeof(struct smbd_statistics)
   */
  uint32_t size;
  /**
   * Connections attached now.
   */
  uint32_t connections;
  /**
   * Calls of smbd_get_events.
   */
  uint64_t get_events_calls;
  /**
   * Events returned.
   */
  uint64_t events;
  /**
   * System calls made by the data path of this handle.
   */
  uint64_t syscalls;
  /**
   * Wake-ups of the engine (part of syscalls).
   */
  uint64_t doorbells;
  /**
   * PDUs copied straight from receive slots to the caller's buffer.
   */
  uint64_t pdus_direct;
  /**
   * PDUs put together in memory of the library first.
   */
  uint64_t pdus_reassembled;
  /**
   * Times smbd_send_pdus or smbd_rdma_read_write gave -EAGAIN.
   */
  uint64_t back_pressure;
};

/**
 * One address of this host and whether SMB Direct works on it.
 */
struct smbd_interface {
  /**
   * sizeof(struct smbd_interface), the same in every entry of an array.
   */
  uint32_t size;
  /**
   * Index of the network interface.
   */
  uint32_t if_index;
  /**
   * SMBD_INTERFACE_*
   */
  uint32_t capability;
  /**
   * SMBD_FABRIC_* that takes connections on it; 0: none.
   */
  uint32_t fabric;
  /**
   * Bits per second, of the lower devices if it is a VLAN, a bond or a
   * bridge; 0: unknown, as for loopback.
   */
  uint64_t link_speed;
  /**
   * The address, port 0; or the port listened on with
   * SMBD_INTERFACE_RDMA. Clients that find the address by
   * FSCTL_QUERY_NETWORK_INTERFACE_INFO of SMB2 try 5445 and 445 only.
   */
  struct sockaddr_storage address;
  /**
   * Name of the interface, ended by NUL.
   */
  char name[16];
  /**
   * Why SMB Direct works or does not work here, ended by NUL.
   */
  char reason[104];
};

/**
 * One event. The caller sets size, buffer and buffer_size of each entry.
 */
struct smbd_event {
  /**
   * In: sizeof(struct smbd_event), the same in every entry of an array.
   */
  uint32_t size;
  /**
   * Out: SMBD_EVENT_*
   */
  uint32_t event;
  /**
   * Out: flags of the event, see above.
   */
  uint32_t flags;
  /**
   * Out: 0 or a negative errno.
   */
  int32_t status;
  /**
   * Out: the connection; 0 for ENGINE_LOST, WRITABLE and OFFERED.
   */
  uint64_t connection;
  /**
   * Out: the cookie given with the operation.
   */
  uint64_t cookie;
  /**
   * In: where a received PDU is copied to; may be NULL when buffer_size
   * is 0.
   */
  void *buffer;
  /**
   * In: bytes at buffer.
   */
  uint32_t buffer_size;
  /**
   * Out: bytes of the PDU, or bytes moved by the RDMA operation.
   */
  uint32_t length;
  /**
   * Out: the token that the peer invalidated.
   */
  uint32_t invalidated_token;
  /**
   * Out: 0
   */
  uint32_t reserved;
  /**
   * Out: what to give to smbd_accept or smbd_reject (OFFERED).
   */
  uint8_t token[16];
};

/**
 * One PDU to send: an SMB2 message without the 4-byte length that goes
 * before it on TCP.
 */
struct smbd_pdu {
  /**
   * sizeof(struct smbd_pdu), the same in every entry of an array.
   */
  uint32_t size;
  /**
   * SMBD_PDU_*
   */
  uint32_t flags;
  /**
   * The connection.
   */
  uint64_t connection;
  /**
   * Comes back in the PDU_SENT event.
   */
  uint64_t cookie;
  /**
   * The pieces of the PDU. Copied by the call.
   */
  const struct iovec *iov;
  /**
   * How many pieces, 1..=1024.
   */
  uint32_t iov_count;
  /**
   * The peer's token to invalidate, with SMBD_PDU_INVALIDATE.
   */
  uint32_t invalidate_token;
};

/**
 * A piece of the handle's area.
 */
struct smbd_segment {
  /**
   * Where it starts, from the start of the area; inside the RDMA buffers.
   */
  uint64_t offset;
  /**
   * Bytes, at least 1.
   */
  uint64_t length;
};

/**
 * Memory of a peer, or of ours offered to a peer ([MS-SMBD] 2.2.3.1), in
 * host byte order.
 */
struct smbd_descriptor {
  /**
   * Where the memory starts, in the owner's addressing.
   */
  uint64_t offset;
  /**
   * The steering tag / remote key.
   */
  uint32_t token;
  /**
   * Bytes.
   */
  uint32_t length;
};

/**
 * One RDMA operation. It moves the sum of the segments' lengths; the
 * descriptors together must be at least that long.
 */
struct smbd_rdma_op {
  /**
   * sizeof(struct smbd_rdma_op), the same in every entry of an array.
   */
  uint32_t size;
  /**
   * SMBD_RDMA_*; exactly one of READ and WRITE.
   */
  uint32_t flags;
  /**
   * The connection.
   */
  uint64_t connection;
  /**
   * Comes back in the completion event.
   */
  uint64_t cookie;
  /**
   * Local memory, in order.
   */
  const struct smbd_segment *segments;
  /**
   * The peer's memory, in order.
   */
  const struct smbd_descriptor *descriptors;
  /**
   * How many segments, 1..=1024.
   */
  uint32_t segment_count;
  /**
   * How many descriptors, 1..=65536.
   */
  uint32_t descriptor_count;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The library's version as (major << 16 | minor << 8 | patch).
 *
 * Returns: the version. Never fails.
 */
uint32_t smbd_version(void);

/**
 * The ABI that the library offers, to be compared with SMBD_ABI_VERSION of the header.
 *
 * Returns: the ABI's number.
 */
uint32_t smbd_abi_version(void);

/**
 * The library's version as text, for instance "0.1.0".
 *
 * Returns: a static string.
 */
const char *smbd_version_string(void);

/**
 * A text for a negative errno as the functions below return it.
 *
 * Parameters: error: the negative (or positive) errno.
 * Returns: a static string, never NULL.
 */
const char *smbd_strerror(int error);

/**
 * The text of the last error, with the value that was refused and the cure.
 *
 * Parameters: handle: the handle; NULL: the last failed smbd_open of this thread.
 * Returns: a string, "" if there was no error.
 * Ownership: the library's; valid until the next call with the same handle.
 */
const char *smbd_last_error(const struct smbd_handle *handle);

/**
 * Sends the library's log lines to callback. Without it they are dropped.
 *
 * Parameters: callback: NULL stops it; user_data: given to callback; max_level: SMBD_LOG_*.
 * Returns: 0; -EINVAL: no such level; -EBUSY: the program, written in Rust, has its own logger.
 * Threads: process-wide; call it before the first smbd_open.
 */
int smbd_set_log_callback(smbd_log_callback callback,
                          void *user_data,
                          int max_level);

/**
 * Opens a handle: connects to the engine and maps the shared area.
 *
 * Parameters: options: NULL takes all defaults; out_handle: gets the handle.
 * Returns: 0; -ENOENT or -ECONNREFUSED: no engine at that path; -EACCES: the engine refuses this
 * user; -EBUSY: another parent handle exists; -EINVAL: a bad option; -EPROTO: engine and library
 * do not fit together; -EMFILE: this process or the engine has no file descriptor left; -EFBIG: the
 * shared area is larger than the engine's RLIMIT_FSIZE; -ENOMEM; -ETIMEDOUT.
 * Ownership: the caller's, to be given to smbd_close.
 */
int smbd_open(const struct smbd_open_options *options,
              struct smbd_handle **out_handle);

/**
 * Closes a handle: its connections end, its registrations go.
 *
 * Parameters: handle: NULL is allowed.
 * Returns: 0; -EPERM in a process that did not open it (use smbd_close_after_fork there).
 */
int smbd_close(struct smbd_handle *handle);

/**
 * Drops an inherited handle in a forked child: closes the file descriptors and frees the memory,
 * and tells the engine nothing, so that the opener's handle goes on working.
 *
 * Parameters: handle: NULL is allowed.
 * Returns: 0; -EPERM in the process that opened it.
 */
int smbd_close_after_fork(struct smbd_handle *handle);

/**
 * Connects again after SMBD_EVENT_ENGINE_LOST and repeats smbd_set_params, smbd_set_session and
 * smbd_listen. The file descriptor of smbd_get_fd stays the same; the shared area is new (see
 * smbd_get_meminfo).
 *
 * Parameters: handle.
 * Returns: 0; -EALREADY: the engine was not lost; -EBUSY: events are left, ENGINE_LOST being the
 * last of them; else as smbd_open, and it can be tried again.
 */
int smbd_reconnect(struct smbd_handle *handle);

/**
 * The one file descriptor to wait on: readable (level) as long as events are outstanding. Works
 * with select, poll and epoll.
 *
 * Parameters: handle.
 * Returns: the file descriptor, or -EPERM.
 * Ownership: the handle's; do not read or close it.
 */
int smbd_get_fd(struct smbd_handle *handle);

/**
 * Sets the server's parameters. Connections are refused until it was called. Only the parent
 * handle may call it. A later call counts for new connections.
 *
 * Parameters: handle; params.
 * Returns: 0; -EINVAL: a value is out of range, the old set stays in force; -EPERM: not the
 * parent handle; -ENOTCONN: the engine is lost.
 */
int smbd_set_params(struct smbd_handle *handle,
                    const struct smbd_params *params);

/**
 * The parameters in force.
 *
 * Parameters: handle; out_params: size set by the caller; security_blob is returned as NULL with
 * its length.
 * Returns: 0; -ENODATA: none were set.
 */
int smbd_get_params(struct smbd_handle *handle,
                    struct smbd_params *out_params);

/**
 * Registers (or with SMBD_SESSION_REMOVE unregisters) a session id, a ClientGuid or both: new
 * connections that name them come to this handle. They also go when the handle is closed or its
 * process dies.
 *
 * Parameters: handle; session.
 * Returns: 0; -EEXIST: another handle has it; -ENOENT: to be removed and not there; -EINVAL.
 */
int smbd_set_session(struct smbd_handle *handle,
                     const struct smbd_session *session);

/**
 * Size and layout of the shared area.
 *
 * Parameters: handle; out_info: size set by the caller.
 * Returns: 0; -EINVAL.
 */
int smbd_get_meminfo(struct smbd_handle *handle, struct smbd_meminfo *out_info);

/**
 * Ends one connection. PDUs taken before still leave, for at most 5 seconds. The DISCONNECTED
 * event follows with a status: 0: ended by us; -ECONNRESET: by the peer; -ETIMEDOUT: the peer
 * went silent; -EPROTO: the peer broke the protocol; -EREMCHG: handed over to another handle;
 * -ECONNREFUSED: the peer refused; -ENETDOWN: the engine is gone; -ECONNABORTED: the fabric
 * failed.
 *
 * Parameters: handle; connection.
 * Returns: 0; -ENOTCONN.
 */
int smbd_disconnect(struct smbd_handle *handle,
                    uint64_t connection);

/**
 * Takes over an offered connection, or one that smbd_export has given a token for.
 *
 * Parameters: handle; token: 16 bytes; out_connection: gets the connection.
 * Returns: 0; -ENOENT: unknown or expired token; -EACCES: the token is another user's; -ENOSPC:
 * the handle has max_connections already, or no receive slots; -EMSGSIZE: its receive slots are
 * too small; -EBUSY: the connection's owner has operations in flight; -EALREADY: it belongs to
 * this handle.
 */
int smbd_accept(struct smbd_handle *handle,
                const uint8_t *token,
                uint64_t *out_connection);

/**
 * Refuses an offered connection.
 *
 * Parameters: handle: the parent's; token: 16 bytes.
 * Returns: 0; -ENOENT; -EPERM: not the parent handle.
 */
int smbd_reject(struct smbd_handle *handle, const uint8_t *token);

/**
 * Makes a token with which another handle of the same user (or of root) takes this connection over. Until
 * then the connection stays here, but delivers no PDUs: those that come go to the new owner.
 * At the hand-over it ends here with -EREMCHG. If this process ends first the engine keeps the
 * connection for 10 seconds. smbd_set_receive makes the token void and the PDUs come here again.
 *
 * Parameters: handle; connection; out_token: gets 16 bytes.
 * Returns: 0; -ENOTCONN; -EBUSY: PDUs wait here, or one is half received: take them with
 * smbd_get_events first.
 */
int smbd_export(struct smbd_handle *handle,
                uint64_t connection,
                uint8_t *out_token);

/**
 * Listens for peers on an address, until smbd_unlisten or the end of the handle.
 *
 * Parameters: handle: the parent's; options; out_address: gets the address with the port taken,
 * may be NULL.
 * Returns: 0; -EADDRINUSE; -EADDRNOTAVAIL; -EACCES; -EINVAL; -EPERM: not the parent handle;
 * -EOPNOTSUPP: no such fabric in this build.
 */
int smbd_listen(struct smbd_handle *handle,
                const struct smbd_listen_options *options,
                struct sockaddr_storage *out_address);

/**
 * Stops listening on an address.
 *
 * Parameters: handle; options: as given to smbd_listen, with the port that was taken.
 * Returns: 0; -ENOENT.
 */
int smbd_unlisten(struct smbd_handle *handle,
                  const struct smbd_listen_options *options);

/**
 * Connects to a peer as a client. ATTACHED follows when the connection is negotiated, else
 * DISCONNECTED with the reason.
 *
 * Parameters: handle; options; out_connection: gets the connection.
 * Returns: 0; -EINVAL; -ENOSPC: max_connections; -EOPNOTSUPP: no such fabric in this build.
 */
int smbd_connect(struct smbd_handle *handle,
                 const struct smbd_connect_options *options,
                 uint64_t *out_connection);

/**
 * A connection's addresses, negotiated values and counters. Makes no system call.
 *
 * Parameters: handle; connection; out_info: size set by the caller.
 * Returns: 0; -ENOTCONN.
 */
int smbd_get_connection_info(struct smbd_handle *handle,
                             uint64_t connection,
                             struct smbd_connection_info *out_info);

/**
 * What the handle has done so far. Makes no system call.
 *
 * Parameters: handle; out_statistics: size set by the caller.
 * Returns: 0; -EINVAL.
 */
int smbd_get_statistics(struct smbd_handle *handle,
                        struct smbd_statistics *out_statistics);

/**
 * The addresses of this host, and on which of them the engine takes SMB Direct connections now.
 * Loopback addresses and those of interfaces that are down are among them. What the kernel knows
 * of an address is at most a second old.
 *
 * Parameters: handle; interfaces: array, size set in each entry; count: its entries; out_total:
 * gets how many there are, may be NULL.
 * Returns: how many entries were filled.
 */
int smbd_query_interfaces(struct smbd_handle *handle,
                          struct smbd_interface *interfaces,
                          uint32_t count,
                          uint32_t *out_total);

/**
 * Takes events: fills the array with as many as there are and fit. With events waiting it makes
 * no system call. Never blocks.
 *
 * Parameters: handle; events: array, size, buffer and buffer_size set in each entry; count: its
 * entries, 1..=65536; out_remaining: gets how many events are known to remain (0: none), may be
 * NULL.
 * Returns: how many entries were filled. An entry with status -EMSGSIZE is the last one filled:
 * its PDU stays, and all events behind it. -EINVAL: count, the first entry's size, or a buffer that
 * is NULL with a buffer_size; no event is lost then.
 */
int smbd_get_events(struct smbd_handle *handle,
                    struct smbd_event *events,
                    uint32_t count,
                    uint32_t *out_remaining);

/**
 * Stops (or starts again) the delivery of received PDUs of one connection. While it is stopped
 * they stay where they are and the peer runs out of credits; if the connection ends meanwhile they
 * are dropped, so that DISCONNECTED is told at once. Starting also takes back an smbd_export.
 *
 * Parameters: handle; connection; enable: 0 stops, 1 starts.
 * Returns: 0; -ENOTCONN: no such connection.
 */
int smbd_set_receive(struct smbd_handle *handle,
                     uint64_t connection,
                     int enable);

/**
 * Sends PDUs. Their bytes are copied before it returns.
 *
 * Parameters: handle; pdus: array; count: its entries, 1..=65536.
 * Returns: how many were taken, the first n of the array; fewer than count means back-pressure
 * (or, at the entry after, an error that a call starting there returns). Nothing taken: -EAGAIN:
 * wait for SMBD_EVENT_WRITABLE; -EMSGSIZE: larger than the peer's MaxFragmentedSize or than the
 * send area; -ENOTCONN; -EINVAL.
 */
int smbd_send_pdus(struct smbd_handle *handle,
                   const struct smbd_pdu *pdus,
                   uint32_t count);

/**
 * Starts RDMA READs and WRITEs. A WRITE followed by smbd_send_pdus on the same connection needs
 * no wait between them: the peer sees the data before the PDU.
 *
 * Parameters: handle; ops: array; count: its entries, 1..=65536.
 * Returns: how many were taken, as smbd_send_pdus. Nothing taken: -EAGAIN; -ENOTCONN; -EINVAL:
 * a segment outside the RDMA buffers, an empty segment, descriptors shorter than the segments;
 * -EMSGSIZE: longer than the connection's max_read_write_size.
 */
int smbd_rdma_read_write(struct smbd_handle *handle,
                         const struct smbd_rdma_op *ops,
                         uint32_t count);

/**
 * Tells whether SMBD_RDMA_LAZY holds, as it does at first. A process that has to wait for RDMA
 * buffers which such operations still use turns it off meanwhile: from then on they are told as if
 * they had no such flag, also those that were started before. No system call, unless one of them
 * has completed already.
 *
 * Parameters: handle; lazy: 1, or 0.
 * Returns: 0; -ENOTCONN: the engine is gone. The setting outlives smbd_reconnect.
 */
int smbd_set_lazy(struct smbd_handle *handle,
                  int lazy);

/**
 * Lets the peer of one connection read or write a piece of the RDMA buffers ([MS-SMBD] 3.1.4.3).
 * A client needs it. The token holds for a peer that has got a PDU which was given to smbd_send_pdus
 * afterwards: on an RDMA device that may bind a memory window, PDUs wait for the binding. A peer that
 * learns the token by another way may use it too early, which ends the connection.
 *
 * Parameters: handle; connection; segment; access: SMBD_ACCESS_*; out_descriptor: what to tell
 * the peer.
 * Returns: 0; -EINVAL; -ENOTCONN; -ENOSPC: too many registrations.
 */
int smbd_register_buffer(struct smbd_handle *handle,
                         uint64_t connection,
                         const struct smbd_segment *segment,
                         uint32_t access,
                         struct smbd_descriptor *out_descriptor);

/**
 * Takes that right back ([MS-SMBD] 3.1.4.4). After it returned the peer cannot reach the memory.
 *
 * Parameters: handle; connection; token.
 * Returns: 0; -ENOENT: not registered, or the peer has invalidated it; -ENOTCONN.
 */
int smbd_deregister_buffer(struct smbd_handle *handle,
                           uint64_t connection,
                           uint32_t token);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* SMBDIRECT_H */
