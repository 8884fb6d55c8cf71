/* Sending: iovecs, several PDUs per call, completions, refusals, connection information. */
#include "common.h"

static void test_iovecs(struct pair *pair)
{
	static uint8_t sent[1024 * 3];
	uint8_t got[sizeof(sent)];
	struct iovec iov[1024];
	struct smbd_pdu pdu;
	struct smbd_event event;
	int i;

	fill(sent, sizeof(sent), 3);
	for (i = 0; i < 1024; i++) {
		iov[i].iov_base = sent + i * 3;
		iov[i].iov_len = 3;
	}
	memset(&pdu, 0, sizeof(pdu));
	pdu.size = sizeof(pdu);
	pdu.connection = pair->at_client;
	pdu.cookie = UINT64_MAX;
	pdu.iov = iov;
	pdu.iov_count = 1024;
	CHECK_EQ(smbd_send_pdus(pair->client, &pdu, 1), 1);
	/* Copied: what happens to the bytes now does not matter. */
	fill(got, sizeof(got), 3);
	memset(sent, 0, sizeof(sent));
	event = EXPECT(pair->client, SMBD_EVENT_PDU_SENT);
	CHECK(event.cookie == UINT64_MAX);
	event = EXPECT_PDU(pair->server, sent, sizeof(sent));
	CHECK_EQ(event.length, sizeof(sent));
	CHECK(memcmp(sent, got, sizeof(sent)) == 0);
}

static void test_several(struct pair *pair)
{
	struct smbd_pdu pdus[16];
	struct iovec iov[16];
	char text[16];
	int i;

	memset(pdus, 0, sizeof(pdus));
	for (i = 0; i < 16; i++) {
		iov[i].iov_base = (void *)"0123456789abcdef";
		iov[i].iov_len = i + 1;
		pdus[i].size = sizeof(pdus[i]);
		pdus[i].connection = pair->at_client;
		pdus[i].cookie = i;
		pdus[i].iov = &iov[i];
		pdus[i].iov_count = 1;
		/* Every other one is silent. */
		pdus[i].flags = i % 2 ? SMBD_PDU_NO_EVENT : 0;
	}
	CHECK_EQ(smbd_send_pdus(pair->client, pdus, 16), 16);
	for (i = 0; i < 16; i++) {
		struct smbd_event event;

		event = EXPECT_PDU(pair->server, text, sizeof(text));
		CHECK_EQ(event.length, i + 1);
		if (i % 2 == 0) {
			event = EXPECT(pair->client, SMBD_EVENT_PDU_SENT);
			CHECK_EQ(event.cookie, i);
		}
	}
	/* The first n are taken, the error comes when it is the first. */
	iov[3].iov_base = NULL;
	CHECK_EQ(smbd_send_pdus(pair->client, pdus, 16), 3);
	CHECK_EQ(smbd_send_pdus(pair->client, pdus + 3, 13), -EINVAL);
	for (i = 0; i < 3; i++) {
		EXPECT_PDU(pair->server, text, sizeof(text));
	}
	EXPECT(pair->client, SMBD_EVENT_PDU_SENT);
	EXPECT(pair->client, SMBD_EVENT_PDU_SENT);
}

static void test_refusals(struct pair *pair)
{
	static uint8_t large[1048577];
	struct iovec iov = {large, 10};
	struct smbd_pdu pdu;

	memset(&pdu, 0, sizeof(pdu));
	CHECK_EQ(smbd_send_pdus(pair->client, NULL, 1), -EINVAL);
	CHECK_EQ(smbd_send_pdus(pair->client, &pdu, 1), -EINVAL);
	pdu.size = sizeof(pdu);
	pdu.connection = pair->at_client;
	CHECK_EQ(smbd_send_pdus(pair->client, &pdu, 1), -EINVAL);
	pdu.iov_count = 1;
	CHECK_EQ(smbd_send_pdus(pair->client, &pdu, 1), -EINVAL);
	pdu.iov = &iov;
	CHECK_EQ(smbd_send_pdus(pair->client, &pdu, 0), -EINVAL);
	pdu.flags = 0x100;
	CHECK_EQ(smbd_send_pdus(pair->client, &pdu, 1), -EINVAL);
	pdu.flags = 0;
	pdu.iov_count = 1025;
	CHECK_EQ(smbd_send_pdus(pair->client, &pdu, 1), -EINVAL);
	pdu.iov_count = 1;
	pdu.connection = pair->at_client + 1;
	CHECK_EQ(smbd_send_pdus(pair->client, &pdu, 1), -ENOTCONN);
	CHECK_EQ(send_bytes(pair->client, pair->at_client, 1, large, 0),
		 -EINVAL);
	/* The server's MaxFragmentedSize is 1048576. */
	CHECK_EQ(send_bytes(pair->client, pair->at_client, 1, large,
			    sizeof(large)),
		 -EMSGSIZE);
}

static void test_info(struct pair *pair)
{
	struct smbd_connection_info info;
	struct sockaddr_in *in;

	memset(&info, 0, sizeof(info));
	CHECK_EQ(smbd_get_connection_info(pair->server, pair->at_server,
					  &info),
		 -EINVAL);
	info.size = sizeof(info);
	CHECK_EQ(smbd_get_connection_info(pair->server, 1, &info), -ENOTCONN);
	CHECK_OK(smbd_get_connection_info(pair->server, pair->at_server,
					  &info));
	CHECK_EQ(info.fabric, test_fabric());
	in = (struct sockaddr_in *)&info.local;
	CHECK_EQ(in->sin_family, AF_INET);
	CHECK_EQ(ntohs(in->sin_port), pair->port);
	CHECK_EQ(in->sin_addr.s_addr, test_address());
	in = (struct sockaddr_in *)&info.peer;
	CHECK_EQ(in->sin_addr.s_addr, test_address());
	CHECK(in->sin_port != 0);
	CHECK_EQ(info.max_fragmented_send_size, 1048576);
	CHECK_EQ(info.max_receive_size, 1364);
	CHECK(info.pdus_received > 16);
	CHECK(info.bytes_received > 3072);
}

int main(void)
{
	struct pair pair = connect_pair();

	test_iovecs(&pair);
	test_several(&pair);
	test_refusals(&pair);
	test_info(&pair);
	close_pair(&pair);
	return 0;
}
