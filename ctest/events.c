/* Taking events: several per call, how many remain, a buffer that is too small, a stopped
 * connection, and PDUs of every size. */
#include "common.h"

#define COUNT 32

static void test_several(struct pair *pair)
{
	struct smbd_event events[COUNT];
	char buffers[COUNT][16];
	uint32_t remaining = 77;
	char text[16];
	int got = 0;
	int i;

	for (i = 0; i < COUNT; i++) {
		snprintf(text, sizeof(text), "pdu %d", i);
		send_and_wait(pair->client, pair->at_client, text,
			      strlen(text));
	}
	/* All have left, and a turn of the engine brings them all here. */
	while (remaining != COUNT - 1) {
		struct smbd_event event = event_entry(NULL, 0);

		CHECK(is_readable(pair->server, WAIT_MSEC));
		CHECK_EQ(smbd_get_events(pair->server, &event, 1, &remaining),
			 1);
		CHECK_EQ(event.status, -EMSGSIZE);
		CHECK_EQ(event.length, 5);
		/* The event itself is among those that remain. */
		remaining -= 1;
	}
	for (i = 0; i < COUNT; i++) {
		events[i] = event_entry(buffers[i], sizeof(buffers[i]));
	}
	got = smbd_get_events(pair->server, events, 20, &remaining);
	CHECK_EQ(got, 20);
	CHECK_EQ(remaining, COUNT - 20);
	got += smbd_get_events(pair->server, events + 20, COUNT - 20,
			       &remaining);
	CHECK_EQ(got, COUNT);
	CHECK_EQ(remaining, 0);
	for (i = 0; i < COUNT; i++) {
		int length = snprintf(text, sizeof(text), "pdu %d", i);

		CHECK_EQ(events[i].event, SMBD_EVENT_PDU_RECEIVED);
		CHECK_EQ(events[i].status, 0);
		CHECK_EQ(events[i].length, length);
		CHECK(events[i].connection == pair->at_server);
		CHECK(memcmp(buffers[i], text, length) == 0);
		CHECK(events[i].buffer == buffers[i]);
	}
}

static void test_small_buffer(struct pair *pair)
{
	struct smbd_event events[2];
	uint32_t remaining = 0;
	uint8_t sent[5000];
	uint8_t got[5000];
	int i;

	fill(sent, sizeof(sent), 1);
	send_and_wait(pair->client, pair->at_client, sent, sizeof(sent));
	for (i = 0; i < 3; i++) {
		events[0] = next_event(pair->server, got, sizeof(sent) - 1);
		CHECK_EQ(events[0].event, SMBD_EVENT_PDU_RECEIVED);
		CHECK_EQ(events[0].status, -EMSGSIZE);
		CHECK_EQ(events[0].length, sizeof(sent));
		CHECK(is_readable(pair->server, 0));
	}
	events[0] = event_entry(got, sizeof(got));
	events[1] = event_entry(NULL, 0);
	CHECK_EQ(smbd_get_events(pair->server, events, 2, &remaining), 1);
	CHECK_EQ(events[0].status, 0);
	CHECK_EQ(remaining, 0);
	CHECK(memcmp(sent, got, sizeof(sent)) == 0);
}

static void test_refusals(struct pair *pair)
{
	struct smbd_event event = event_entry(NULL, 0);

	CHECK_EQ(smbd_get_events(pair->server, NULL, 1, NULL), -EINVAL);
	CHECK_EQ(smbd_get_events(pair->server, &event, 0, NULL), -EINVAL);
	CHECK_EQ(smbd_get_events(pair->server, &event, 65537, NULL), -EINVAL);
	event.size = 8;
	CHECK_EQ(smbd_get_events(pair->server, &event, 1, NULL), -EINVAL);
	CHECK_EQ(smbd_get_events(NULL, &event, 1, NULL), -EINVAL);
	/* Room without a place loses nothing. */
	send_and_wait(pair->client, pair->at_client, "kept", 4);
	CHECK(is_readable(pair->server, WAIT_MSEC));
	event = event_entry(NULL, 100);
	CHECK_EQ(smbd_get_events(pair->server, &event, 1, NULL), -EINVAL);
	CHECK(is_readable(pair->server, 0));
	event = EXPECT_PDU(pair->server, (char[8]){0}, 8);
	CHECK_EQ(event.length, 4);
}

static void test_stopped(struct pair *pair)
{
	struct smbd_event event = event_entry(NULL, 0);
	char buffer[8];

	CHECK_EQ(smbd_set_receive(pair->server, 12345, 0), -ENOTCONN);
	CHECK_OK(smbd_set_receive(pair->server, pair->at_server, 0));
	send_and_wait(pair->client, pair->at_client, "one", 3);
	send_and_wait(pair->client, pair->at_client, "two", 3);
	/* An answer of the other direction shows that time has passed. */
	send_and_wait(pair->server, pair->at_server, "ping", 4);
	EXPECT_PDU(pair->client, buffer, sizeof(buffer));
	CHECK_EQ(smbd_get_events(pair->server, &event, 1, NULL), 0);
	CHECK_OK(smbd_set_receive(pair->server, pair->at_server, 1));
	EXPECT_PDU(pair->server, buffer, sizeof(buffer));
	CHECK(memcmp(buffer, "one", 3) == 0);
	EXPECT_PDU(pair->server, buffer, sizeof(buffer));
	CHECK(memcmp(buffer, "two", 3) == 0);
}

static void test_sizes(struct pair *pair)
{
	static const uint32_t sizes[] = {1,     1339,  1340,   1341,  8168,
					 8169,  65535, 131072, 500000, 1048576};
	static uint8_t sent[1048576];
	static uint8_t got[1048576];
	size_t i;

	fill(sent, sizeof(sent), 2);
	for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		struct smbd_event event;

		memset(got, 0, sizes[i]);
		CHECK_EQ(send_bytes(pair->client, pair->at_client, 1, sent,
				    sizes[i]),
			 1);
		event = EXPECT_PDU(pair->server, got, sizeof(got));
		CHECK_EQ(event.length, sizes[i]);
		CHECK(memcmp(sent, got, sizes[i]) == 0);
		EXPECT(pair->client, SMBD_EVENT_PDU_SENT);
	}
}

int main(void)
{
	struct pair pair = connect_pair();
	struct smbd_statistics statistics;

	test_several(&pair);
	test_small_buffer(&pair);
	test_refusals(&pair);
	test_stopped(&pair);
	test_sizes(&pair);
	memset(&statistics, 0, sizeof(statistics));
	statistics.size = sizeof(statistics);
	CHECK_OK(smbd_get_statistics(pair.server, &statistics));
	CHECK_EQ(statistics.connections, 1);
	CHECK(statistics.events > COUNT);
	CHECK(statistics.pdus_direct > COUNT);
	close_pair(&pair);
	return 0;
}
