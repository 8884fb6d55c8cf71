/* Routing of new connections: by ClientGuid, and by session when the engine answers NEGOTIATE. */
#include "common.h"

#define SESSION_SETUP_SIZE 92

static const uint64_t session_id = 0x1122334455667788;

static struct smbd_session by_guid(uint8_t guid, uint32_t flags)
{
	struct smbd_session session;

	memset(&session, 0, sizeof(session));
	session.size = sizeof(session);
	session.flags = SMBD_SESSION_CLIENT_GUID | flags;
	memset(session.client_guid, guid, 16);
	return session;
}

static struct smbd_session by_id(uint64_t id, uint32_t flags)
{
	struct smbd_session session;

	memset(&session, 0, sizeof(session));
	session.size = sizeof(session);
	session.flags = SMBD_SESSION_ID | flags;
	session.session_id = id;
	return session;
}

/* A SESSION_SETUP request that binds to a session ([MS-SMB2] 2.2.5), signed as it must be. */
static void make_session_setup(uint8_t pdu[SESSION_SETUP_SIZE], uint64_t id)
{
	make_header(pdu, 1, 1);
	pdu[16] = 0x08;
	memcpy(pdu + 40, &id, 8);
	memset(pdu + 64, 0, SESSION_SETUP_SIZE - 64);
	pdu[64] = 25;
	pdu[66] = 0x01;
	pdu[67] = 1;
	pdu[76] = 88;
	pdu[78] = 4;
	memcpy(pdu + 88, "gss!", 4);
}

static void test_registration(struct smbd_handle *server,
			      struct smbd_handle *worker)
{
	struct smbd_session session;

	told = worker;
	memset(&session, 0, sizeof(session));
	CHECK_EQ(smbd_set_session(worker, &session), -EINVAL);
	CHECK_EQ(smbd_set_session(worker, NULL), -EINVAL);
	session.size = sizeof(session);
	CHECK_EQ(smbd_set_session(worker, &session), -EINVAL);
	session = by_id(0, 0);
	CHECK_EQ(smbd_set_session(worker, &session), -EINVAL);
	session = by_id(5, 0x100);
	CHECK_EQ(smbd_set_session(worker, &session), -EINVAL);
	session = by_id(5, SMBD_SESSION_REMOVE);
	CHECK_EQ(smbd_set_session(worker, &session), -ENOENT);
	session = by_id(5, 0);
	CHECK_OK(smbd_set_session(worker, &session));
	CHECK_EQ(smbd_set_session(server, &session), -EEXIST);
	session = by_id(5, SMBD_SESSION_REMOVE);
	CHECK_OK(smbd_set_session(worker, &session));
	session = by_id(5, 0);
	CHECK_OK(smbd_set_session(server, &session));
}

static void test_by_guid(struct smbd_handle *worker,
			 struct smbd_handle *client,
			 uint16_t port)
{
	struct smbd_session session = by_guid(0x22, 0);
	uint8_t expected[NEGOTIATE_SIZE];
	uint8_t got[256];
	struct smbd_event event;
	uint64_t connection;
	uint64_t routed;

	CHECK_OK(smbd_set_session(worker, &session));
	connection = begin_connection(client, port, 0x22);
	event = EXPECT(worker, SMBD_EVENT_ATTACHED);
	CHECK_EQ(event.flags, SMBD_EVENT_ROUTED);
	routed = event.connection;
	event = EXPECT_PDU(worker, got, sizeof(got));
	make_negotiate(expected, 0x22);
	CHECK(event.connection == routed);
	CHECK_EQ(event.length, sizeof(expected));
	CHECK(memcmp(got, expected, sizeof(expected)) == 0);
	CHECK_OK(smbd_disconnect(client, connection));
	EXPECT(client, SMBD_EVENT_DISCONNECTED);
	EXPECT(worker, SMBD_EVENT_DISCONNECTED);
}

/* Connects; the engine answers NEGOTIATE. Returns the length of the answer. */
static uint32_t negotiate_with_engine(struct smbd_handle *client,
				      uint16_t port,
				      uint64_t *out_connection,
				      uint8_t *response,
				      uint32_t size)
{
	uint64_t connection = open_connection(client, port);
	uint8_t request[NEGOTIATE_SIZE];
	struct smbd_event event;

	*out_connection = connection;
	make_negotiate(request, 0x33);
	event = send_and_get(client, connection, request, sizeof(request),
			     response, size);
	CHECK(event.length > 64 + 64);
	CHECK(memcmp(response, "\xfeSMB", 4) == 0);
	CHECK_EQ(response[12], 0);
	/* Status, and the dialect: 3.0.2 is the highest that was offered. */
	CHECK(memcmp(response + 8, "\0\0\0\0", 4) == 0);
	CHECK_EQ(response[68] | response[69] << 8, 0x0302);
	CHECK(memmem(response, event.length, "the blob", 8) != NULL);
	return event.length;
}

static void test_by_session(struct smbd_handle *server,
			    struct smbd_handle *worker,
			    struct smbd_handle *client,
			    uint16_t port)
{
	struct smbd_session session = by_id(session_id, 0);
	struct smbd_params params = default_params();
	uint8_t request[NEGOTIATE_SIZE];
	uint8_t setup[SESSION_SETUP_SIZE];
	uint8_t response[2048];
	uint8_t got[2048];
	struct smbd_event event;
	uint64_t connection;
	uint32_t length;

	params.flags = SMBD_PARAMS_ANSWER_NEGOTIATE;
	params.security_blob = (const uint8_t *)"the blob";
	params.security_blob_length = 8;
	CHECK_OK(smbd_set_params(server, &params));
	CHECK_OK(smbd_set_session(worker, &session));
	length = negotiate_with_engine(client, port, &connection, response,
				       sizeof(response));
	make_session_setup(setup, session_id);
	send_and_wait(client, connection, setup, sizeof(setup));
	event = EXPECT(worker, SMBD_EVENT_ATTACHED);
	CHECK_EQ(event.flags, SMBD_EVENT_ROUTED);
	/* What the owner needs for its pre-auth hash, then the request. */
	event = EXPECT_PDU(worker, got, sizeof(got));
	CHECK_EQ(event.flags, SMBD_EVENT_NEGOTIATE_REQUEST);
	CHECK_EQ(event.length, sizeof(request));
	make_negotiate(request, 0x33);
	CHECK(memcmp(got, request, sizeof(request)) == 0);
	event = EXPECT_PDU(worker, got, sizeof(got));
	CHECK_EQ(event.flags, SMBD_EVENT_NEGOTIATE_RESPONSE);
	CHECK_EQ(event.length, length);
	CHECK(memcmp(got, response, length) == 0);
	event = EXPECT_PDU(worker, got, sizeof(got));
	CHECK_EQ(event.flags, 0);
	CHECK_EQ(event.length, sizeof(setup));
	CHECK(memcmp(got, setup, sizeof(setup)) == 0);
	send_and_wait(worker, event.connection, "answer", 6);
	EXPECT_PDU(client, got, sizeof(got));

	/* A session that nobody has: an error response, and the end. */
	negotiate_with_engine(client, port, &connection, response,
			      sizeof(response));
	make_session_setup(setup, session_id + 1);
	send_and_get(client, connection, setup, sizeof(setup), got,
		     sizeof(got));
	CHECK_EQ(got[12], 1);
	CHECK(memcmp(got + 8, "\0\0\0\0", 4) != 0);
	event = EXPECT(client, SMBD_EVENT_DISCONNECTED);
	CHECK(event.connection == connection);
}

int main(void)
{
	struct smbd_handle *server;
	struct smbd_handle *worker;
	struct smbd_handle *client;
	uint16_t port;

	start_engine();
	server = open_server(NULL, &port);
	worker = open_handle(0);
	client = open_handle(0);
	test_registration(server, worker);
	test_by_guid(worker, client, port);
	test_by_session(server, worker, client, port);
	told = NULL;
	CHECK_OK(smbd_close(client));
	CHECK_OK(smbd_close(worker));
	CHECK_OK(smbd_close(server));
	return 0;
}
