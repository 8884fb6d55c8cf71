/* The engine dies; the handles notice, and go on with the next engine. */
#include "common.h"

int main(void)
{
	struct pair pair = connect_pair();
	struct smbd_params got = default_params();
	struct smbd_event event;
	char buffer[16];
	int fd = smbd_get_fd(pair.server);
	int ret;

	CHECK_EQ(smbd_reconnect(pair.server), -EALREADY);
	kill_engine(SIGKILL);
	event = EXPECT(pair.server, SMBD_EVENT_DISCONNECTED);
	CHECK_EQ(event.status, -ENETDOWN);
	CHECK(event.connection == pair.at_server);
	EXPECT(pair.server, SMBD_EVENT_ENGINE_LOST);
	CHECK(!is_readable(pair.server, 0));
	CHECK_EQ(smbd_get_params(pair.server, &got), -ENOTCONN);
	CHECK_EQ(send_bytes(pair.server, pair.at_server, 1, "x", 1),
		 -ENOTCONN);
	CHECK_EQ(smbd_reconnect(pair.server), -ECONNREFUSED);
	EXPECT(pair.client, SMBD_EVENT_DISCONNECTED);
	EXPECT(pair.client, SMBD_EVENT_ENGINE_LOST);

	/* The socket that the killed one has left does not matter. */
	spawn_engine();
	do {
		struct timespec pause = {0, 5000000};

		nanosleep(&pause, NULL);
		ret = smbd_reconnect(pair.server);
	} while (ret == -ECONNREFUSED || ret == -ENOENT);
	told = pair.server;
	CHECK_OK(ret);
	CHECK_OK(smbd_reconnect(pair.client));
	CHECK_EQ(smbd_get_fd(pair.server), fd);
	CHECK_OK(smbd_get_params(pair.server, &got));
	CHECK_EQ(got.receive_credit_max, 255);

	/* Parameters and listener are there again. */
	pair.at_client = begin_connection(pair.client, pair.port, 5);
	pair.at_server = accept_offer(pair.server, pair.server, 5);
	send_and_wait(pair.server, pair.at_server, "again", 5);
	EXPECT_PDU(pair.client, buffer, sizeof(buffer));
	close_pair(&pair);
	return 0;
}
