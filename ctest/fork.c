/* A forked child: every call is refused, dropping the handle disturbs nobody, and the death of a
 * process with children is noticed. */
#include "common.h"

static void in_child(struct pair *pair)
{
	struct smbd_event event = event_entry(NULL, 0);
	struct smbd_meminfo info;

	memset(&info, 0, sizeof(info));
	info.size = sizeof(info);
	CHECK_EQ(smbd_get_fd(pair->server), -EPERM);
	CHECK_EQ(smbd_get_events(pair->server, &event, 1, NULL), -EPERM);
	CHECK_EQ(smbd_get_meminfo(pair->server, &info), -EPERM);
	CHECK_EQ(send_bytes(pair->server, pair->at_server, 1, "x", 1), -EPERM);
	CHECK_EQ(smbd_disconnect(pair->server, pair->at_server), -EPERM);
	CHECK_EQ(smbd_reconnect(pair->server), -EPERM);
	CHECK_EQ(smbd_close(pair->server), -EPERM);
	CHECK(strstr(smbd_last_error(pair->server), "another process") !=
	      NULL);
	told = NULL;
	CHECK_OK(smbd_close_after_fork(pair->server));
	CHECK_OK(smbd_close_after_fork(pair->client));
}

/* A process that opens a handle, leaves a child behind that has copies of all its file descriptors,
 * connects, and waits to be killed. */
static void killed_owner(uint16_t port, int end)
{
	struct smbd_handle *handle = open_handle(0);

	if (fork() == 0) {
		char byte;

		/* Ends when the test does: the other end of the pipe closes. */
		while (read(end, &byte, 1) > 0) {
		}
		_exit(0);
	}
	begin_connection(handle, port, 9);
	for (;;) {
		pause();
	}
}

int main(void)
{
	struct pair pair = connect_pair();
	struct smbd_event event;
	char buffer[256];
	int status = -1;
	int end[2];
	pid_t pid;

	CHECK_EQ(smbd_close_after_fork(pair.server), -EPERM);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		in_child(&pair);
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK_EQ(status, 0);
	send_and_wait(pair.client, pair.at_client, "still here", 10);
	event = EXPECT_PDU(pair.server, buffer, sizeof(buffer));
	CHECK_EQ(event.length, 10);

	CHECK_OK(pipe2(end, O_CLOEXEC));
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		close(end[1]);
		killed_owner(pair.port, end[0]);
	}
	close(end[0]);
	pair.at_server = accept_offer(pair.server, pair.server, 9);
	CHECK_OK(kill(pid, SIGKILL));
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK(WIFSIGNALED(status));
	event = EXPECT(pair.server, SMBD_EVENT_DISCONNECTED);
	CHECK_EQ(event.status, -ECONNRESET);
	close(end[1]);
	close_pair(&pair);
	return 0;
}
