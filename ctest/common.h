/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * What the test programs share: checks, an engine of their own, and two handles that are
 * connected through it. Everything else comes from smbdirect.h.
 */
#ifndef CTEST_COMMON_H
#define CTEST_COMMON_H

#include "smbdirect.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WAIT_MSEC 60000
#define NEGOTIATE_SIZE 104

#define CHECK(condition) \
	do { \
		if (!(condition)) { \
			fail(__FILE__, __LINE__, #condition); \
		} \
	} while (0)

/* Both sides are told when they differ; value is a long long. */
#define CHECK_EQ(got, want) \
	check_eq(__FILE__, __LINE__, #got, (long long)(got), (long long)(want))

#define CHECK_OK(call) CHECK_EQ(call, 0)

static pid_t engine_pid;
/* The process that started it, which alone stops it. */
static pid_t main_pid;
static char engine_dir[] = "/tmp/smbdirect-ctest-XXXXXX";
static char engine_socket[sizeof(engine_dir) + 16];
static struct smbd_handle *told;

static inline void fail(const char *file, int line, const char *what)
{
	fprintf(stderr, "%s:%d: %s\n", file, line, what);
	if (told != NULL) {
		fprintf(stderr, "last error: %s\n", smbd_last_error(told));
	}
	fprintf(stderr, "last error without handle: %s\n",
		smbd_last_error(NULL));
	exit(1);
}

static inline void check_eq(const char *file,
			    int line,
			    const char *what,
			    long long got,
			    long long want)
{
	char text[512];

	if (got == want) {
		return;
	}
	snprintf(text, sizeof(text), "%s is %lld, not %lld", what, got, want);
	fail(file, line, text);
}

/* ---- the engine ---- */

static inline void spawn_engine(void)
{
	const char *program = getenv("SMBDIRECT_PROGRAM");

	if (program == NULL) {
		fprintf(stderr, "SMBDIRECT_PROGRAM is not set\n");
		exit(77);
	}
	engine_pid = fork();
	CHECK(engine_pid >= 0);
	if (engine_pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execl(program, program, "engine", "--socket", engine_socket,
		      (char *)NULL);
		_exit(127);
	}
}

static inline void kill_engine(int sig)
{
	int status = 0;

	if (engine_pid <= 0) {
		return;
	}
	kill(engine_pid, sig);
	waitpid(engine_pid, &status, 0);
	engine_pid = 0;
}

static inline void stop_engine(void)
{
	if (getpid() != main_pid) {
		return;
	}
	kill_engine(SIGTERM);
	unlink(engine_socket);
	rmdir(engine_dir);
}

static inline void start_engine(void)
{
	main_pid = getpid();
	CHECK(mkdtemp(engine_dir) != NULL);
	snprintf(engine_socket, sizeof(engine_socket), "%s/engine", engine_dir);
	atexit(stop_engine);
	spawn_engine();
}

/* ---- handles ---- */

static inline struct smbd_open_options open_options(uint32_t flags)
{
	struct smbd_open_options options;

	memset(&options, 0, sizeof(options));
	options.size = sizeof(options);
	options.flags = flags;
	options.socket_path = engine_socket;
	options.rdma_buffers = 4;
	options.rdma_buffer_size = 1 << 20;
	options.max_connections = 8;
	options.send_area_size = 4 << 20;
	options.timeout_msec = WAIT_MSEC;
	return options;
}

/* Opens a handle; an engine that is just starting gets time to listen. */
static inline struct smbd_handle *open_with(
	const struct smbd_open_options *options)
{
	struct smbd_handle *handle = NULL;
	struct timespec pause = {0, 5000000};
	int tries;
	int ret = -ENOENT;

	for (tries = 0; tries < WAIT_MSEC / 5; tries++) {
		ret = smbd_open(options, &handle);
		if (ret != -ENOENT && ret != -ECONNREFUSED) {
			break;
		}
		/* An engine that could not start has said why. */
		if (engine_pid > 0 && getpid() == main_pid) {
			CHECK_EQ(waitpid(engine_pid, NULL, WNOHANG), 0);
		}
		nanosleep(&pause, NULL);
	}
	CHECK_EQ(ret, 0);
	CHECK(handle != NULL);
	told = handle;
	return handle;
}

static inline struct smbd_handle *open_handle(uint32_t flags)
{
	struct smbd_open_options options = open_options(flags);

	return open_with(&options);
}

static inline struct smbd_params default_params(void)
{
	struct smbd_params params;

	memset(&params, 0, sizeof(params));
	params.size = sizeof(params);
	return params;
}

/* Where the tests are: 127.0.0.1, or SMBDIRECT_TEST_ADDRESS. */
static inline in_addr_t test_address(void)
{
	const char *text = getenv("SMBDIRECT_TEST_ADDRESS");

	return text != NULL ? inet_addr(text) : htonl(INADDR_LOOPBACK);
}

/* Software iWARP, or what SMBDIRECT_TEST_FABRIC says. */
static inline uint32_t test_fabric(void)
{
	const char *text = getenv("SMBDIRECT_TEST_FABRIC");

	if (text != NULL && strcmp(text, "verbs") == 0) {
		return SMBD_FABRIC_VERBS;
	}
	return SMBD_FABRIC_SOFT_IWARP;
}

/* Whether the peer may invalidate a token of ours: on RDMA devices that takes
 * memory windows of type 2, which siw has not. */
static inline int can_be_invalidated(void)
{
	const char *device = getenv("SMBDIRECT_TEST_DEVICE");

	return test_fabric() != SMBD_FABRIC_VERBS || device == NULL ||
	       strcmp(device, "siw") != 0;
}

static inline void set_address(struct sockaddr_storage *storage,
			       uint32_t *length,
			       uint16_t port)
{
	struct sockaddr_in *in = (struct sockaddr_in *)storage;

	memset(storage, 0, sizeof(*storage));
	in->sin_family = AF_INET;
	in->sin_addr.s_addr = test_address();
	in->sin_port = htons(port);
	*length = sizeof(*in);
}

static inline uint16_t port_of(const struct sockaddr_storage *storage)
{
	return ntohs(((const struct sockaddr_in *)storage)->sin_port);
}

static inline struct smbd_listen_options listen_options(uint16_t port)
{
	struct smbd_listen_options options;

	memset(&options, 0, sizeof(options));
	options.size = sizeof(options);
	options.fabric = test_fabric();
	set_address(&options.address, &options.address_length, port);
	return options;
}

static inline struct smbd_connect_options connect_options(uint16_t port)
{
	struct smbd_connect_options options;

	memset(&options, 0, sizeof(options));
	options.size = sizeof(options);
	options.fabric = test_fabric();
	set_address(&options.address, &options.address_length, port);
	return options;
}

/* The parent of a server that listens on a free port. */
static inline struct smbd_handle *open_server(const struct smbd_params *params,
					      uint16_t *out_port)
{
	struct smbd_handle *server = open_handle(SMBD_OPEN_PARENT);
	struct smbd_listen_options options = listen_options(0);
	struct smbd_params defaults = default_params();
	struct sockaddr_storage address;

	CHECK_OK(smbd_set_params(server, params ? params : &defaults));
	CHECK_OK(smbd_listen(server, &options, &address));
	*out_port = port_of(&address);
	CHECK(*out_port != 0);
	return server;
}

/* ---- events ---- */

static inline bool is_readable(struct smbd_handle *handle, int timeout_msec)
{
	struct pollfd pfd;

	pfd.fd = smbd_get_fd(handle);
	pfd.events = POLLIN;
	pfd.revents = 0;
	CHECK(pfd.fd >= 0);
	return poll(&pfd, 1, timeout_msec) == 1;
}

static inline struct smbd_event event_entry(void *buffer, uint32_t size)
{
	struct smbd_event event;

	memset(&event, 0, sizeof(event));
	event.size = sizeof(event);
	event.buffer = buffer;
	event.buffer_size = size;
	return event;
}

/* The next event, waiting for it on the file descriptor. */
static inline struct smbd_event next_event(struct smbd_handle *handle,
					   void *buffer,
					   uint32_t size)
{
	struct smbd_event event = event_entry(buffer, size);
	int ret;

	told = handle;
	while ((ret = smbd_get_events(handle, &event, 1, NULL)) == 0) {
		CHECK(is_readable(handle, WAIT_MSEC));
	}
	CHECK_EQ(ret, 1);
	return event;
}

#define EXPECT(handle, kind) \
	expect(__FILE__, __LINE__, handle, kind, NULL, 0)
#define EXPECT_PDU(handle, buffer, size) \
	expect(__FILE__, __LINE__, handle, SMBD_EVENT_PDU_RECEIVED, buffer, size)

static inline struct smbd_event expect(const char *file,
				       int line,
				       struct smbd_handle *handle,
				       uint32_t kind,
				       void *buffer,
				       uint32_t size)
{
	struct smbd_event event = next_event(handle, buffer, size);

	if (event.event != kind) {
		fprintf(stderr, "status %d (%s)\n", event.status,
			smbd_strerror(event.status));
	}
	check_eq(file, line, "event", event.event, kind);
	return event;
}

/* ---- PDUs ---- */

static inline int send_bytes(struct smbd_handle *handle,
			     uint64_t connection,
			     uint64_t cookie,
			     const void *bytes,
			     size_t length)
{
	struct iovec iov;
	struct smbd_pdu pdu;

	iov.iov_base = (void *)bytes;
	iov.iov_len = length;
	memset(&pdu, 0, sizeof(pdu));
	pdu.size = sizeof(pdu);
	pdu.connection = connection;
	pdu.cookie = cookie;
	pdu.iov = &iov;
	pdu.iov_count = 1;
	told = handle;
	return smbd_send_pdus(handle, &pdu, 1);
}

static inline void send_and_wait(struct smbd_handle *handle,
				 uint64_t connection,
				 const void *bytes,
				 size_t length)
{
	struct smbd_event event;

	CHECK_EQ(send_bytes(handle, connection, 42, bytes, length), 1);
	event = EXPECT(handle, SMBD_EVENT_PDU_SENT);
	CHECK_EQ(event.status, 0);
	CHECK_EQ(event.cookie, 42);
	CHECK(event.connection == connection);
}

/*
 * Sends what is answered without a further call of this program; returns the
 * answer. An RDMA device may tell of it before it tells that the send is done.
 */
static inline struct smbd_event send_and_get(struct smbd_handle *handle,
					     uint64_t connection,
					     const void *bytes,
					     size_t length,
					     void *buffer,
					     uint32_t size)
{
	struct smbd_event event;
	struct smbd_event answer;
	int sent = 0;
	int answered = 0;

	memset(&answer, 0, sizeof(answer));
	CHECK_EQ(send_bytes(handle, connection, 43, bytes, length), 1);
	while (!sent || !answered) {
		event = next_event(handle, buffer, size);
		CHECK(event.connection == connection);
		if (event.event == SMBD_EVENT_PDU_SENT) {
			CHECK_EQ(event.status, 0);
			CHECK_EQ(event.cookie, 43);
			sent++;
		} else {
			CHECK_EQ(event.event, SMBD_EVENT_PDU_RECEIVED);
			answer = event;
			answered++;
		}
	}
	CHECK_EQ(sent, 1);
	CHECK_EQ(answered, 1);
	return answer;
}

/* An SMB2 header ([MS-SMB2] 2.2.1.2). */
static inline void make_header(uint8_t *pdu, uint8_t command, uint64_t message)
{
	memset(pdu, 0, 64);
	memcpy(pdu, "\xfeSMB", 4);
	pdu[4] = 64;
	pdu[12] = command;
	pdu[14] = 1;
	pdu[24] = (uint8_t)message;
}

/* An SMB2 NEGOTIATE request for 3.0 and 3.0.2 ([MS-SMB2] 2.2.3). */
static inline void make_negotiate(uint8_t pdu[NEGOTIATE_SIZE], uint8_t guid)
{
	make_header(pdu, 0, 0);
	memset(pdu + 64, 0, NEGOTIATE_SIZE - 64);
	pdu[64] = 36;
	pdu[66] = 2;
	pdu[68] = 1;
	memset(pdu + 76, guid, 16);
	pdu[100] = 0x00;
	pdu[101] = 0x03;
	pdu[102] = 0x02;
	pdu[103] = 0x03;
}

/* ---- a connected pair ---- */

struct pair {
	struct smbd_handle *server;
	struct smbd_handle *client;
	uint16_t port;
	/* The connection, as each of them names it. */
	uint64_t at_server;
	uint64_t at_client;
};

/* Connects. */
static inline uint64_t open_connection(struct smbd_handle *client, uint16_t port)
{
	struct smbd_connect_options options = connect_options(port);
	struct smbd_event event;
	uint64_t connection = 0;

	told = client;
	CHECK_OK(smbd_connect(client, &options, &connection));
	event = EXPECT(client, SMBD_EVENT_ATTACHED);
	CHECK(event.connection == connection);
	CHECK_EQ(event.flags, SMBD_EVENT_ACTIVE);
	return connection;
}

/* Connects and sends NEGOTIATE; the server has not accepted yet. */
static inline uint64_t begin_connection(struct smbd_handle *client,
					uint16_t port,
					uint8_t guid)
{
	uint64_t connection = open_connection(client, port);
	uint8_t negotiate[NEGOTIATE_SIZE];

	make_negotiate(negotiate, guid);
	send_and_wait(client, connection, negotiate, sizeof(negotiate));
	return connection;
}

/* The server takes an offer, and the NEGOTIATE that comes with it. */
static inline uint64_t accept_offer(struct smbd_handle *offered_to,
				    struct smbd_handle *server,
				    uint8_t guid)
{
	uint8_t expected[NEGOTIATE_SIZE];
	uint8_t got[256];
	struct smbd_event event;
	uint64_t connection = 0;

	event = EXPECT(offered_to, SMBD_EVENT_OFFERED);
	CHECK(event.connection == 0);
	told = server;
	CHECK_OK(smbd_accept(server, event.token, &connection));
	event = EXPECT(server, SMBD_EVENT_ATTACHED);
	CHECK(event.connection == connection);
	CHECK_EQ(event.flags, 0);
	event = EXPECT_PDU(server, got, sizeof(got));
	make_negotiate(expected, guid);
	CHECK_EQ(event.length, sizeof(expected));
	CHECK(memcmp(got, expected, sizeof(expected)) == 0);
	return connection;
}

static inline struct pair connect_pair_with(const struct smbd_params *params)
{
	struct pair pair;

	start_engine();
	pair.server = open_server(params, &pair.port);
	pair.client = open_handle(0);
	pair.at_client = begin_connection(pair.client, pair.port, 0x11);
	pair.at_server = accept_offer(pair.server, pair.server, 0x11);
	return pair;
}

static inline struct pair connect_pair(void)
{
	return connect_pair_with(NULL);
}

static inline void close_pair(struct pair *pair)
{
	told = NULL;
	CHECK_OK(smbd_close(pair->client));
	CHECK_OK(smbd_close(pair->server));
}

/* Bytes that differ from place to place. */
static inline void fill(uint8_t *bytes, size_t length, uint32_t seed)
{
	size_t i;

	for (i = 0; i < length; i++) {
		seed = seed * 1664525 + 1013904223;
		bytes[i] = (uint8_t)(seed >> 24);
	}
}

#endif
