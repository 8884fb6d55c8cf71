/* A peer that takes nothing: the sender is told to wait, and no PDU is lost. */
#include "common.h"

#define SIZE 65536

int main(void)
{
	struct pair pair = connect_pair();
	struct smbd_statistics statistics;
	static uint8_t sent[SIZE];
	static uint8_t got[SIZE];
	uint32_t taken = 0;
	uint32_t completed = 0;
	uint32_t received = 0;
	bool is_writable = false;
	int ret;

	CHECK_OK(smbd_set_receive(pair.server, pair.at_server, 0));
	for (;;) {
		fill(sent, SIZE, taken);
		ret = send_bytes(pair.client, pair.at_client, taken, sent,
				 SIZE);
		if (ret != 1) {
			break;
		}
		taken++;
		/* The send area has 4 MiB. */
		CHECK(taken <= 64);
	}
	CHECK_EQ(ret, -EAGAIN);
	CHECK_EQ(taken, 64);
	memset(&statistics, 0, sizeof(statistics));
	statistics.size = sizeof(statistics);
	CHECK_OK(smbd_get_statistics(pair.client, &statistics));
	CHECK_EQ(statistics.back_pressure, 1);

	CHECK_OK(smbd_set_receive(pair.server, pair.at_server, 1));
	while (received < taken) {
		struct smbd_event event;

		event = EXPECT_PDU(pair.server, got, SIZE);
		CHECK_EQ(event.length, SIZE);
		fill(sent, SIZE, received);
		CHECK(memcmp(sent, got, SIZE) == 0);
		received++;
	}
	while (completed < taken || !is_writable) {
		struct smbd_event event = next_event(pair.client, NULL, 0);

		CHECK_EQ(event.status, 0);
		if (event.event == SMBD_EVENT_WRITABLE) {
			CHECK(event.connection == 0);
			is_writable = true;
			continue;
		}
		CHECK_EQ(event.event, SMBD_EVENT_PDU_SENT);
		CHECK_EQ(event.cookie, completed);
		completed++;
	}
	send_and_wait(pair.client, pair.at_client, "more", 4);
	EXPECT_PDU(pair.server, got, SIZE);
	close_pair(&pair);
	return 0;
}
