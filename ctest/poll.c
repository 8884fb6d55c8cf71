/* The file descriptor in select, poll and epoll: readable exactly while events are outstanding. */
#include "common.h"

#include <sys/epoll.h>
#include <sys/select.h>

static int by_select(int fd, int timeout_msec)
{
	struct timeval timeout = {timeout_msec / 1000, 0};
	fd_set set;

	FD_ZERO(&set);
	FD_SET(fd, &set);
	return select(fd + 1, &set, NULL, NULL, &timeout);
}

static int by_poll(int fd, int timeout_msec)
{
	struct pollfd pfd = {fd, POLLIN, 0};

	return poll(&pfd, 1, timeout_msec);
}

static int by_epoll(int fd, int timeout_msec)
{
	struct epoll_event event = {EPOLLIN, {NULL}};
	int set = epoll_create1(EPOLL_CLOEXEC);
	int ret;

	CHECK(set >= 0);
	CHECK_OK(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
	ret = epoll_wait(set, &event, 1, timeout_msec);
	close(set);
	return ret;
}

int main(void)
{
	int (*const waits[])(int, int) = {by_select, by_poll, by_epoll};
	struct pair pair = connect_pair();
	int fd = smbd_get_fd(pair.server);
	char buffer[16];
	size_t i;

	for (i = 0; i < 3; i++) {
		struct smbd_event event;

		CHECK_EQ(waits[i](fd, 0), 0);
		send_and_wait(pair.client, pair.at_client, "one", 3);
		send_and_wait(pair.client, pair.at_client, "two", 3);
		CHECK_EQ(waits[i](fd, WAIT_MSEC), 1);
		/* Level: it stays so until both were taken. */
		CHECK_EQ(waits[i](fd, 0), 1);
		EXPECT_PDU(pair.server, buffer, sizeof(buffer));
		CHECK_EQ(waits[i](fd, WAIT_MSEC), 1);
		EXPECT_PDU(pair.server, buffer, sizeof(buffer));
		event = event_entry(buffer, sizeof(buffer));
		CHECK_EQ(smbd_get_events(pair.server, &event, 1, NULL), 0);
		CHECK_EQ(waits[i](fd, 0), 0);
		CHECK_EQ(smbd_get_fd(pair.server), fd);
	}
	close_pair(&pair);
	return 0;
}
