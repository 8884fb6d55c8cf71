/* The shared area: its layout, a mapping of one's own, and that idle memory costs nothing. */
#include "common.h"

#include <sys/mman.h>
#include <sys/stat.h>

int main(void)
{
	struct smbd_open_options options;
	struct smbd_meminfo info;
	struct smbd_handle *handle;
	struct stat st;
	uint8_t *map;

	start_engine();
	options = open_options(0);
	options.rdma_buffers = 64;
	options.rdma_buffer_size = 1 << 20;
	handle = open_with(&options);

	memset(&info, 0, sizeof(info));
	CHECK_EQ(smbd_get_meminfo(handle, &info), -EINVAL);
	CHECK_EQ(smbd_get_meminfo(handle, NULL), -EINVAL);
	info.size = sizeof(info);
	CHECK_OK(smbd_get_meminfo(handle, &info));
	CHECK_EQ(info.rdma_buffers, 64);
	CHECK_EQ(info.rdma_buffer_size, 1 << 20);
	CHECK(info.pdu_offset % 4096 == 0 && info.rdma_offset % 4096 == 0);
	CHECK(info.pdu_offset + info.pdu_size <= info.rdma_offset);
	CHECK_EQ(info.area_size, info.rdma_offset + (64 << 20));
	CHECK(fcntl(info.fd, F_GETFD) & FD_CLOEXEC);
	CHECK(fcntl(smbd_get_fd(handle), F_GETFD) & FD_CLOEXEC);

	CHECK_OK(fstat(info.fd, &st));
	CHECK(st.st_size >= (off_t)info.area_size);
	/* 64 MiB of buffers, and nothing committed for them. */
	CHECK(st.st_blocks * 512 < 1 << 20);
	/* Nobody can pull the memory away from under the other side. */
	CHECK_EQ(ftruncate(info.fd, 4096), -1);
	CHECK_EQ(errno, EPERM);

	map = mmap(NULL, info.area_size, PROT_READ | PROT_WRITE, MAP_SHARED,
		   info.fd, 0);
	CHECK(map != MAP_FAILED);
	memcpy(map + info.rdma_offset, "hello", 6);
	CHECK(memcmp((uint8_t *)info.address + info.rdma_offset, "hello", 6) ==
	      0);
	munmap(map, info.area_size);

	told = NULL;
	CHECK_OK(smbd_close(handle));
	return 0;
}
