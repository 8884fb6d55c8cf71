/*
 * A server in one process: it listens, takes one connection, and answers
 * each PDU with the same bytes until the peer goes away.
 *
 *     cc -std=c11 -o server server.c -lsmbdirect
 *     smbdirect engine --socket ./engine.sock &
 *     ./server ./engine.sock 5445
 */
#include <smbdirect.h>

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint8_t buffer[1 << 20]; /* smbd_params.max_fragment_size */

/* Negative results are errnos; the text names the value and the cure. */
static int check(struct smbd_handle *handle, const char *what, int result)
{
	if (result < 0) {
		fprintf(stderr, "%s: %s: %s\n", what, smbd_strerror(result),
			smbd_last_error(handle));
		exit(1);
	}
	return result;
}

/* Sends one PDU; the library has copied it when this returns. */
static void answer(struct smbd_handle *handle, const struct smbd_event *event)
{
	struct iovec iov = {.iov_base = event->buffer,
			    .iov_len = event->length};
	struct smbd_pdu pdu = {.size = sizeof(pdu),
			       .connection = event->connection,
			       .iov = &iov,
			       .iov_count = 1,
			       .flags = SMBD_PDU_NO_EVENT};

	if (smbd_send_pdus(handle, &pdu, 1) == 1) {
		return;
	}
	/*
	 * -EAGAIN: the peer does not read its answers. A real server keeps
	 * the PDU until SMBD_EVENT_WRITABLE, this one ends the connection.
	 */
	fprintf(stderr, "%s\n", smbd_last_error(handle));
	smbd_disconnect(handle, event->connection);
}

/* Handles one event; returns 0 after the last one of the connection. */
static int handle_event(struct smbd_handle *handle,
			const struct smbd_event *event)
{
	uint64_t connection;

	switch (event->event) {
	case SMBD_EVENT_OFFERED:
		/*
		 * Here smbd forks: the child drops this handle with
		 * smbd_close_after_fork(), opens its own one and accepts.
		 */
		check(handle, "smbd_accept",
		      smbd_accept(handle, event->token, &connection));
		break;
	case SMBD_EVENT_PDU_RECEIVED:
		printf("PDU of %u bytes\n", event->length);
		answer(handle, event);
		break;
	case SMBD_EVENT_DISCONNECTED:
		printf("end: %s\n", smbd_strerror(event->status));
		return 0;
	case SMBD_EVENT_ENGINE_LOST:
		fprintf(stderr, "the engine is gone\n");
		exit(1);
	}
	return 1;
}

int main(int argc, char **argv)
{
	struct smbd_open_options open = {.size = sizeof(open),
					 .flags = SMBD_OPEN_PARENT};
	struct smbd_params params = {.size = sizeof(params)}; /* defaults */
	struct smbd_listen_options listen = {.size = sizeof(listen)};
	struct sockaddr_storage bound;
	struct sockaddr_in address = {.sin_family = AF_INET};
	struct smbd_handle *handle = NULL;
	int running = 1;

	if (argc != 3) {
		fprintf(stderr, "usage: server SOCKET PORT\n");
		return 2;
	}
	open.socket_path = argv[1];
	check(NULL, "smbd_open", smbd_open(&open, &handle));
	check(handle, "smbd_set_params", smbd_set_params(handle, &params));

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	address.sin_port = htons((uint16_t)atoi(argv[2]));
	memcpy(&listen.address, &address, sizeof(address));
	listen.address_length = sizeof(address);
	check(handle, "smbd_listen", smbd_listen(handle, &listen, &bound));
	memcpy(&address, &bound, sizeof(address));
	printf("listening on port %u\n", ntohs(address.sin_port));
	fflush(stdout);

	while (running) {
		struct smbd_event event = {.size = sizeof(event),
					   .buffer = buffer,
					   .buffer_size = sizeof(buffer)};
		struct pollfd pfd = {.fd = smbd_get_fd(handle),
				     .events = POLLIN};

		/* No system call while events wait; then one poll(). */
		if (check(handle, "smbd_get_events",
			  smbd_get_events(handle, &event, 1, NULL)) == 0) {
			poll(&pfd, 1, -1);
			continue;
		}
		running = handle_event(handle, &event);
	}
	return check(NULL, "smbd_close", smbd_close(handle));
}
