/* The end of a connection: ours, the peer's, a refused one, a listener that is gone, a closed
 * handle. */
#include "common.h"

static void test_ours(struct pair *pair)
{
	struct smbd_event event;
	char buffer[16];
	int i;

	/* What was taken before still leaves. */
	for (i = 0; i < 8; i++) {
		CHECK_EQ(send_bytes(pair->server, pair->at_server, i, "last",
				    4),
			 1);
	}
	CHECK_OK(smbd_disconnect(pair->server, pair->at_server));
	CHECK_OK(smbd_disconnect(pair->server, pair->at_server));
	CHECK_EQ(send_bytes(pair->server, pair->at_server, 1, "x", 1),
		 -ENOTCONN);
	for (i = 0; i < 8; i++) {
		event = EXPECT(pair->server, SMBD_EVENT_PDU_SENT);
		CHECK_EQ(event.cookie, i);
		CHECK_EQ(event.status, 0);
	}
	event = EXPECT(pair->server, SMBD_EVENT_DISCONNECTED);
	CHECK_EQ(event.status, 0);
	CHECK(event.connection == pair->at_server);
	CHECK_EQ(smbd_disconnect(pair->server, pair->at_server), -ENOTCONN);
	for (i = 0; i < 8; i++) {
		EXPECT_PDU(pair->client, buffer, sizeof(buffer));
	}
	event = EXPECT(pair->client, SMBD_EVENT_DISCONNECTED);
	CHECK_EQ(event.status, -ECONNRESET);
	CHECK(event.connection == pair->at_client);
}

static void test_nobody_there(struct pair *pair)
{
	struct smbd_listen_options listen = listen_options(pair->port);
	struct smbd_connect_options options = connect_options(pair->port);
	struct smbd_event event;
	uint64_t connection = 0;

	told = pair->server;
	CHECK_EQ(smbd_unlisten(pair->client, &listen), -ENOENT);
	CHECK_OK(smbd_unlisten(pair->server, &listen));
	CHECK_EQ(smbd_unlisten(pair->server, &listen), -ENOENT);
	told = pair->client;
	CHECK_OK(smbd_connect(pair->client, &options, &connection));
	event = EXPECT(pair->client, SMBD_EVENT_DISCONNECTED);
	CHECK_EQ(event.status, -ECONNREFUSED);
	CHECK(event.connection == connection);
}

static void test_refusals(struct pair *pair)
{
	struct smbd_listen_options listen = listen_options(0);
	struct smbd_connect_options options = connect_options(0);
	uint64_t connection = 0;

	CHECK_EQ(smbd_listen(pair->server, NULL, NULL), -EINVAL);
	CHECK_EQ(smbd_listen(pair->client, &listen, NULL), -EPERM);
	listen.fabric = 99;
	CHECK_EQ(smbd_listen(pair->server, &listen, NULL), -EOPNOTSUPP);
	listen.fabric = 0;
	listen.address_length = 3;
	CHECK_EQ(smbd_listen(pair->server, &listen, NULL), -EINVAL);
	listen = listen_options(pair->port);
	CHECK_EQ(smbd_listen(pair->server, &listen, NULL), -EADDRINUSE);
	/* TEST-NET-1 (RFC 5737) is no address of this host. */
	((struct sockaddr_in *)&listen.address)->sin_addr.s_addr =
		htonl(0xc0000201);
	CHECK_EQ(smbd_listen(pair->server, &listen, NULL), -EADDRNOTAVAIL);

	CHECK_EQ(smbd_connect(pair->client, NULL, &connection), -EINVAL);
	CHECK_EQ(smbd_connect(pair->client, &options, &connection), -EINVAL);
	options = connect_options(pair->port);
	CHECK_EQ(smbd_connect(pair->client, &options, NULL), -EINVAL);
	options.mpa_revision = 3;
	CHECK_EQ(smbd_connect(pair->client, &options, &connection), -EINVAL);
	options.mpa_revision = 0;
	options.fabric = 99;
	CHECK_EQ(smbd_connect(pair->client, &options, &connection),
		 -EOPNOTSUPP);
}

static void test_interfaces(struct pair *pair)
{
	struct smbd_interface interfaces[64];
	uint32_t total = 0;
	bool is_found = false;
	int count;
	int i;

	memset(interfaces, 0, sizeof(interfaces));
	for (i = 0; i < 64; i++) {
		interfaces[i].size = sizeof(interfaces[i]);
	}
	CHECK_EQ(smbd_query_interfaces(pair->server, NULL, 1, NULL), -EINVAL);
	count = smbd_query_interfaces(pair->server, interfaces, 64, &total);
	CHECK(count >= 1 && total >= (uint32_t)count);
	for (i = 0; i < count; i++) {
		struct sockaddr_in *in =
			(struct sockaddr_in *)&interfaces[i].address;

		CHECK(memchr(interfaces[i].name, 0, 16) != NULL);
		CHECK(interfaces[i].reason[0] != '\0');
		if (in->sin_family == AF_INET &&
		    in->sin_addr.s_addr == test_address()) {
			is_found = true;
			CHECK(interfaces[i].capability & SMBD_INTERFACE_RDMA);
			CHECK_EQ(interfaces[i].fabric,
				 test_fabric());
		}
	}
	CHECK(is_found);
}

int main(void)
{
	struct pair pair = connect_pair();
	struct smbd_handle *other;
	struct smbd_event event;

	test_refusals(&pair);
	test_interfaces(&pair);
	test_ours(&pair);

	/* A handle that is closed takes its connections with it. */
	other = open_handle(0);
	pair.at_client = begin_connection(other, pair.port, 7);
	pair.at_server = accept_offer(pair.server, pair.server, 7);
	told = NULL;
	CHECK_OK(smbd_close(other));
	event = EXPECT(pair.server, SMBD_EVENT_DISCONNECTED);
	CHECK_EQ(event.status, -ECONNRESET);

	test_nobody_there(&pair);
	close_pair(&pair);
	return 0;
}
