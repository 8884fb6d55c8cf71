/* Offers: accepted by another process, refused, unknown. Then the hand-over of a connection. */
#include "common.h"

static void test_offers(struct smbd_handle *server,
			struct smbd_handle *client,
			uint16_t port)
{
	uint8_t token[16] = {0};
	struct smbd_event event;
	uint64_t connection;
	uint64_t accepted = 77;

	CHECK_EQ(smbd_accept(server, token, &accepted), -ENOENT);
	CHECK_EQ(smbd_accept(server, NULL, &accepted), -EINVAL);
	CHECK_EQ(smbd_accept(server, token, NULL), -EINVAL);
	CHECK_EQ(smbd_reject(server, token), -ENOENT);
	CHECK_EQ(smbd_reject(client, token), -EPERM);
	CHECK_EQ(accepted, 77);
	connection = begin_connection(client, port, 1);
	event = EXPECT(server, SMBD_EVENT_OFFERED);
	CHECK_OK(smbd_reject(server, event.token));
	CHECK_EQ(smbd_accept(server, event.token, &accepted), -ENOENT);
	event = EXPECT(client, SMBD_EVENT_DISCONNECTED);
	CHECK(event.connection == connection);
}

/* The child of a server: it opens a handle of its own and answers one PDU. */
static int child(struct smbd_handle *inherited, const uint8_t *token)
{
	struct smbd_handle *own;
	struct smbd_event event;
	char buffer[256];
	uint64_t connection;

	CHECK_OK(smbd_close_after_fork(inherited));
	own = open_handle(0);
	CHECK_OK(smbd_accept(own, token, &connection));
	EXPECT(own, SMBD_EVENT_ATTACHED);
	event = EXPECT_PDU(own, buffer, sizeof(buffer));
	CHECK_EQ(event.length, NEGOTIATE_SIZE);
	send_and_get(own, connection, "from the child", 14, buffer,
		     sizeof(buffer));
	CHECK(memcmp(buffer, "bye", 3) == 0);
	event = EXPECT(own, SMBD_EVENT_DISCONNECTED);
	CHECK_EQ(event.status, -ECONNRESET);
	told = NULL;
	CHECK_OK(smbd_close(own));
	return 0;
}

static void test_child(struct smbd_handle *server,
		       struct smbd_handle *client,
		       uint16_t port)
{
	struct smbd_event event;
	char buffer[256];
	uint64_t connection;
	int status = -1;
	pid_t pid;

	connection = begin_connection(client, port, 2);
	event = EXPECT(server, SMBD_EVENT_OFFERED);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		_exit(child(server, event.token));
	}
	event = EXPECT_PDU(client, buffer, sizeof(buffer));
	CHECK_EQ(event.length, 14);
	send_and_wait(client, connection, "bye", 3);
	CHECK_OK(smbd_disconnect(client, connection));
	EXPECT(client, SMBD_EVENT_DISCONNECTED);
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK_EQ(status, 0);
}

static void test_handover(struct smbd_handle *server,
			  struct smbd_handle *client,
			  uint16_t port)
{
	struct smbd_handle *heir = open_handle(0);
	struct smbd_event event;
	char buffer[256];
	uint8_t token[16];
	uint64_t at_client;
	uint64_t at_server;
	uint64_t at_heir;

	at_client = begin_connection(client, port, 3);
	at_server = accept_offer(server, server, 3);
	CHECK_EQ(smbd_export(server, 12345, token), -ENOTCONN);
	CHECK_EQ(smbd_export(server, at_server, NULL), -EINVAL);

	/* A PDU that waits here would be lost to the heir. */
	send_and_wait(client, at_client, "first", 5);
	CHECK(is_readable(server, WAIT_MSEC));
	CHECK_EQ(smbd_export(server, at_server, token), -EBUSY);
	EXPECT_PDU(server, buffer, sizeof(buffer));

	/* Exported, and taken back: nothing is lost either way. */
	CHECK_OK(smbd_export(server, at_server, token));
	send_and_wait(client, at_client, "second", 6);
	CHECK_OK(smbd_set_receive(server, at_server, 1));
	event = EXPECT_PDU(server, buffer, sizeof(buffer));
	CHECK_EQ(event.length, 6);
	CHECK_EQ(smbd_accept(heir, token, &at_heir), -ENOENT);

	CHECK_OK(smbd_export(server, at_server, token));
	send_and_wait(client, at_client, "third PDU", 9);
	CHECK_OK(smbd_accept(heir, token, &at_heir));
	event = EXPECT(server, SMBD_EVENT_DISCONNECTED);
	CHECK_EQ(event.status, -EREMCHG);
	CHECK(event.connection == at_server);
	EXPECT(heir, SMBD_EVENT_ATTACHED);
	event = EXPECT_PDU(heir, buffer, sizeof(buffer));
	CHECK(event.connection == at_heir);
	CHECK(memcmp(buffer, "third PDU", 9) == 0);
	send_and_wait(heir, at_heir, "from the heir", 13);
	EXPECT_PDU(client, buffer, sizeof(buffer));
	CHECK_EQ(send_bytes(server, at_server, 1, "x", 1), -ENOTCONN);
	told = NULL;
	CHECK_OK(smbd_close(heir));
	event = EXPECT(client, SMBD_EVENT_DISCONNECTED);
	CHECK_EQ(event.status, -ECONNRESET);
}

int main(void)
{
	struct smbd_handle *server;
	struct smbd_handle *client;
	uint16_t port;

	start_engine();
	server = open_server(NULL, &port);
	client = open_handle(0);
	test_offers(server, client, port);
	test_child(server, client, port);
	test_handover(server, client, port);
	told = NULL;
	CHECK_OK(smbd_close(client));
	CHECK_OK(smbd_close(server));
	return 0;
}
