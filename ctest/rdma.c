/* RDMA READ and WRITE from the server to memory that the client has registered. */
#include "common.h"

#define BUFFER (1 << 20)

static uint8_t *memory(struct smbd_handle *handle, struct smbd_meminfo *info)
{
	memset(info, 0, sizeof(*info));
	info->size = sizeof(*info);
	CHECK_OK(smbd_get_meminfo(handle, info));
	return info->address;
}

static struct smbd_rdma_op make_op(struct pair *pair,
				   uint32_t flags,
				   const struct smbd_segment *segments,
				   uint32_t segment_count,
				   const struct smbd_descriptor *descriptors,
				   uint32_t descriptor_count)
{
	struct smbd_rdma_op op;

	memset(&op, 0, sizeof(op));
	op.size = sizeof(op);
	op.flags = flags;
	op.connection = pair->at_server;
	op.cookie = 99;
	op.segments = segments;
	op.segment_count = segment_count;
	op.descriptors = descriptors;
	op.descriptor_count = descriptor_count;
	return op;
}

static void test_refusals(struct pair *pair,
			  const struct smbd_meminfo *info,
			  const struct smbd_descriptor *descriptor)
{
	struct smbd_segment good = {info->rdma_offset, 4096};
	struct smbd_segment bad[] = {
		{info->rdma_offset, 0},
		{info->rdma_offset - 1, 10},
		{info->area_size - 5, 6},
		{UINT64_MAX, 2},
	};
	struct smbd_descriptor small = *descriptor;
	struct smbd_rdma_op op;
	size_t i;

	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		op = make_op(pair, SMBD_RDMA_WRITE, &bad[i], 1, descriptor, 1);
		CHECK_EQ(smbd_rdma_read_write(pair->server, &op, 1), -EINVAL);
	}
	op = make_op(pair, 0, &good, 1, descriptor, 1);
	CHECK_EQ(smbd_rdma_read_write(pair->server, &op, 1), -EINVAL);
	op.flags = SMBD_RDMA_READ | SMBD_RDMA_WRITE;
	CHECK_EQ(smbd_rdma_read_write(pair->server, &op, 1), -EINVAL);
	op = make_op(pair, SMBD_RDMA_READ, NULL, 1, descriptor, 1);
	CHECK_EQ(smbd_rdma_read_write(pair->server, &op, 1), -EINVAL);
	op = make_op(pair, SMBD_RDMA_READ, &good, 0, descriptor, 1);
	CHECK_EQ(smbd_rdma_read_write(pair->server, &op, 1), -EINVAL);
	op = make_op(pair, SMBD_RDMA_READ, &good, 1, descriptor, 0);
	CHECK_EQ(smbd_rdma_read_write(pair->server, &op, 1), -EINVAL);
	small.length = 4095;
	op = make_op(pair, SMBD_RDMA_READ, &good, 1, &small, 1);
	CHECK_EQ(smbd_rdma_read_write(pair->server, &op, 1), -EINVAL);
	op = make_op(pair, SMBD_RDMA_READ, &good, 1, descriptor, 1);
	op.connection = 3;
	CHECK_EQ(smbd_rdma_read_write(pair->server, &op, 1), -ENOTCONN);

	CHECK_EQ(smbd_register_buffer(pair->client, pair->at_client, &good, 0,
				      &small),
		 -EINVAL);
	CHECK_EQ(smbd_register_buffer(pair->client, pair->at_client, &bad[1],
				      SMBD_ACCESS_REMOTE_READ, &small),
		 -EINVAL);
	CHECK_EQ(smbd_register_buffer(pair->client, 5, &good,
				      SMBD_ACCESS_REMOTE_READ, &small),
		 -ENOTCONN);
	CHECK_EQ(smbd_deregister_buffer(pair->client, pair->at_client, 1),
		 -ENOENT);
}

/* Sends a PDU whose end is not told. */
static void send_quietly(struct smbd_handle *handle,
			 uint64_t connection,
			 const char *text)
{
	struct iovec iov = {.iov_base = (void *)text,
			    .iov_len = strlen(text)};
	struct smbd_pdu pdu = {.size = sizeof(pdu),
			       .flags = SMBD_PDU_NO_EVENT,
			       .connection = connection,
			       .iov = &iov,
			       .iov_count = 1};

	CHECK_EQ(smbd_send_pdus(handle, &pdu, 1), 1);
}

/* A token holds for a peer that has been told of it by the connection. */
static void tell_tokens(struct pair *pair)
{
	char buffer[16];

	send_quietly(pair->client, pair->at_client, "tokens");
	EXPECT_PDU(pair->server, buffer, sizeof(buffer));
}

int main(void)
{
	struct pair pair = connect_pair();
	struct smbd_meminfo at_server;
	struct smbd_meminfo at_client;
	uint8_t *server = memory(pair.server, &at_server);
	uint8_t *client = memory(pair.client, &at_client);
	struct smbd_segment theirs[2];
	struct smbd_segment ours[2];
	struct smbd_descriptor descriptors[2];
	struct smbd_rdma_op op;
	struct smbd_event event;
	char buffer[16];
	int invalidates = can_be_invalidated();
	int is_first;
	int i;

	for (i = 0; i < 2; i++) {
		theirs[i].offset = at_client.rdma_offset + (2 * i) * BUFFER +
				   100 * i;
		theirs[i].length = BUFFER - 100 * i;
		CHECK_OK(smbd_register_buffer(pair.client, pair.at_client,
					      &theirs[i],
					      SMBD_ACCESS_REMOTE_READ |
						      SMBD_ACCESS_REMOTE_WRITE,
					      &descriptors[i]));
		CHECK_EQ(descriptors[i].length, theirs[i].length);
	}
	test_refusals(&pair, &at_server, &descriptors[0]);
	tell_tokens(&pair);

	/* READ: both of the client's pieces into two of the server's. */
	fill(client + theirs[0].offset, theirs[0].length, 4);
	fill(client + theirs[1].offset, theirs[1].length, 5);
	ours[0].offset = at_server.rdma_offset + 7;
	ours[0].length = BUFFER + 1000;
	ours[1].offset = at_server.rdma_offset + 2 * BUFFER;
	ours[1].length = BUFFER - 1100;
	op = make_op(&pair, SMBD_RDMA_READ, ours, 2, descriptors, 2);
	CHECK_EQ(smbd_rdma_read_write(pair.server, &op, 1), 1);
	event = EXPECT(pair.server, SMBD_EVENT_RDMA_READ_COMPLETE);
	CHECK_EQ(event.status, 0);
	CHECK_EQ(event.cookie, 99);
	CHECK_EQ(event.length, 2 * BUFFER - 100);
	CHECK(memcmp(server + ours[0].offset, client + theirs[0].offset,
		     BUFFER) == 0);
	CHECK(memcmp(server + ours[0].offset + BUFFER,
		     client + theirs[1].offset, 1000) == 0);
	CHECK(memcmp(server + ours[1].offset, client + theirs[1].offset + 1000,
		     BUFFER - 1100) == 0);

	/* WRITE, and the response right behind it: it finds the data. */
	fill(server + ours[0].offset, ours[0].length, 6);
	fill(server + ours[1].offset, ours[1].length, 7);
	op = make_op(&pair, SMBD_RDMA_WRITE, ours, 2, descriptors, 2);
	if (invalidates) {
		op.flags |= SMBD_RDMA_REMOTE_INVALIDATE;
	}
	CHECK_EQ(smbd_rdma_read_write(pair.server, &op, 1), 1);
	CHECK_EQ(send_bytes(pair.server, pair.at_server, 1, "response", 8), 1);
	event = EXPECT_PDU(pair.client, buffer, sizeof(buffer));
	CHECK_EQ(event.flags, invalidates ? SMBD_EVENT_INVALIDATED : 0);
	CHECK_EQ(event.invalidated_token,
		 invalidates ? descriptors[0].token : 0);
	CHECK(memcmp(server + ours[0].offset, client + theirs[0].offset,
		     BUFFER) == 0);
	CHECK(memcmp(server + ours[1].offset, client + theirs[1].offset + 1000,
		     BUFFER - 1100) == 0);
	event = EXPECT(pair.server, SMBD_EVENT_RDMA_WRITE_COMPLETE);
	CHECK_EQ(event.status, 0);
	CHECK_EQ(event.length, 2 * BUFFER - 100);
	EXPECT(pair.server, SMBD_EVENT_PDU_SENT);

	/* The first one went with the response, the second one goes now. */
	CHECK_EQ(smbd_deregister_buffer(pair.client, pair.at_client,
					descriptors[0].token),
		 invalidates ? -ENOENT : 0);
	CHECK_OK(smbd_deregister_buffer(pair.client, pair.at_client,
					descriptors[1].token));

	CHECK_OK(smbd_register_buffer(pair.client, pair.at_client, theirs,
				      SMBD_ACCESS_REMOTE_WRITE, descriptors));
	tell_tokens(&pair);

	/* A lazy one that has ended comes with the next event. A device may
	 * end it after the peer's answer: it waits for an acknowledgement. */
	op = make_op(&pair, SMBD_RDMA_WRITE | SMBD_RDMA_LAZY, &ours[1], 1,
		     descriptors, 1);
	op.cookie = 77;
	CHECK_EQ(smbd_rdma_read_write(pair.server, &op, 1), 1);
	send_quietly(pair.server, pair.at_server, "response");
	EXPECT_PDU(pair.client, buffer, sizeof(buffer));
	CHECK_EQ(send_bytes(pair.client, pair.at_client, 1, "request", 7), 1);
	event = next_event(pair.server, buffer, sizeof(buffer));
	is_first = event.event == SMBD_EVENT_RDMA_WRITE_COMPLETE;
	CHECK(is_first || test_fabric() == SMBD_FABRIC_VERBS);
	if (is_first) {
		CHECK_EQ(event.cookie, 77);
		CHECK_EQ(event.status, 0);
		event = next_event(pair.server, buffer, sizeof(buffer));
	}
	CHECK_EQ(event.event, SMBD_EVENT_PDU_RECEIVED);
	EXPECT(pair.client, SMBD_EVENT_PDU_SENT);
	if (!is_first) {
		CHECK_OK(smbd_set_lazy(pair.server, 0));
		event = EXPECT(pair.server, SMBD_EVENT_RDMA_WRITE_COMPLETE);
		CHECK_EQ(event.cookie, 77);
		CHECK_EQ(event.status, 0);
		CHECK_OK(smbd_set_lazy(pair.server, 1));
	}

	/* Or at once, for somebody who has to wait for it. */
	CHECK_EQ(smbd_rdma_read_write(pair.server, &op, 1), 1);
	CHECK_OK(smbd_set_lazy(pair.server, 0));
	event = EXPECT(pair.server, SMBD_EVENT_RDMA_WRITE_COMPLETE);
	CHECK_EQ(event.cookie, 77);
	CHECK_OK(smbd_set_lazy(pair.server, 1));
	CHECK_OK(smbd_deregister_buffer(pair.client, pair.at_client,
					descriptors[0].token));

	/* Reaching for memory that is not offered any more ends the
	 * connection, and nothing is written. */
	memset(client + theirs[0].offset, 0x55, 4096);
	op = make_op(&pair, SMBD_RDMA_WRITE | SMBD_RDMA_NO_EVENT, ours, 1,
		     descriptors, 2);
	CHECK_EQ(smbd_rdma_read_write(pair.server, &op, 1), 1);
	do {
		event = next_event(pair.server, NULL, 0);
	} while (event.event != SMBD_EVENT_DISCONNECTED);
	CHECK(event.status < 0);
	EXPECT(pair.client, SMBD_EVENT_DISCONNECTED);
	CHECK_EQ(client[theirs[0].offset], 0x55);
	close_pair(&pair);
	return 0;
}
