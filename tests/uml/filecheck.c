/*
 * Works on files of a mounted file system and checks what comes back.
 *
 *     filecheck cached FILE SEED OPERATIONS SIZE
 *         Random reads, writes, mappings, truncations and holes within SIZE
 *         bytes, each checked against a copy in memory.
 *     filecheck direct FILE SEED OPERATIONS SIZE
 *         The same with direct I/O in place of mappings. Linux 6.12's client
 *         does not keep direct I/O and written mappings of one file coherent,
 *         over TCP neither, so they are not mixed.
 *     filecheck fill FILE SEED BYTES BLOCK
 *         Writes BYTES of a pattern in direct I/O of BLOCK bytes.
 *     filecheck check FILE SEED BYTES BLOCK
 *         Reads them with direct I/O and compares.
 *     filecheck acknowledged FILE SEED BYTES BLOCK
 *         Like fill, but after each block that was acknowledged a line with the
 *         number of bytes so far goes to standard output.
 *     filecheck insist FILE SEED BYTES BLOCK
 *         Like check.
 *         These two try again when a call fails because the connection is lost.
 *
 * With FILECHECK_FLUSH in the environment, what was written goes to the server
 * before something is read or mapped to be read. Linux 6.12's client needs
 * that where it registers memory: it cannot read what is around written bytes
 * of a page. Before a mapping to write that is always so.
 *
 * Exit status: 0 good, 1 a difference or a failed call (told on standard
 * error), 2 wrong usage.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE ((size_t)4096)
#define LARGEST ((size_t)2 << 20) /* one random operation */

static const char *path;
static int tries; /* left, for calls that fail with the connection */

static void fail(const char *format, ...)
{
	va_list arguments;

	fprintf(stderr, "%s: ", path);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	exit(1);
}

/* Whether to make a failed call again. */
static bool again(void)
{
	static const int passing[] = {EAGAIN, EIO,	EHOSTDOWN, ECONNRESET,
				      EBADF,  ECONNABORTED, ETIMEDOUT};
	size_t i;

	for (i = 0; i < sizeof(passing) / sizeof(passing[0]); i++) {
		if (errno == passing[i] && tries > 0) {
			tries--;
			usleep(100 * 1000);
			return true;
		}
	}
	return false;
}

static void *allocate(size_t bytes)
{
	void *memory = NULL;

	if (posix_memalign(&memory, PAGE, bytes ? bytes : PAGE) != 0) {
		fail("no memory for %zu bytes", bytes);
	}
	memset(memory, 0, bytes);
	return memory;
}

static int open_file(int flags)
{
	int fd;

	do {
		fd = open(path, flags | O_CLOEXEC, 0666);
	} while (fd < 0 && again());
	if (fd < 0) {
		fail("open with %#x: %s", (unsigned int)flags,
		     strerror(errno));
	}
	return fd;
}

static void expect_success(const char *what, int result)
{
	if (result != 0) {
		fail("%s: %s", what, strerror(errno));
	}
}

/* Reads all of it; a file that ends before is an error. */
static void read_all(int fd, uint8_t *buffer, size_t length, off_t offset)
{
	while (length > 0) {
		ssize_t count;

		do {
			count = pread(fd, buffer, length, offset);
		} while (count < 0 && again());
		if (count <= 0) {
			fail("read of %zu bytes at %lld: %s", length,
			     (long long)offset,
			     count < 0 ? strerror(errno) : "end of file");
		}
		buffer += count;
		offset += count;
		length -= (size_t)count;
	}
}

static void write_all(int fd, const uint8_t *buffer, size_t length,
		      off_t offset)
{
	while (length > 0) {
		ssize_t count;

		do {
			errno = EIO; /* of a count of 0 */
			count = pwrite(fd, buffer, length, offset);
		} while (count <= 0 && again());
		if (count <= 0) {
			fail("write of %zu bytes at %lld: %s", length,
			     (long long)offset, strerror(errno));
		}
		buffer += count;
		offset += count;
		length -= (size_t)count;
	}
}

/* xorshift64 */
static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static uint64_t start_random(uint64_t seed)
{
	return (seed * UINT64_C(0x9e3779b97f4a7c15)) | 1;
}

static void compare(const uint8_t *got, const uint8_t *wanted, size_t length,
		    off_t offset, const char *what)
{
	size_t i = 0;

	if (memcmp(got, wanted, length) == 0) {
		return;
	}
	while (got[i] == wanted[i]) {
		i++;
	}
	fail("%s of %zu bytes at %lld: byte %lld is %#x instead of %#x", what,
	     length, (long long)offset, (long long)offset + (long long)i,
	     got[i], wanted[i]);
}

/* --- random ------------------------------------------------------------- */

struct run {
	int fd;		 /* through the page cache */
	int direct;	 /* O_DIRECT */
	uint8_t *shadow; /* what the file has to contain */
	uint8_t *buffer; /* LARGEST bytes */
	size_t limit;	 /* bytes of the shadow */
	size_t size;	 /* of the file */
	uint64_t random;
};

static size_t below(struct run *run, size_t bound)
{
	return bound ? (size_t)(next_random(&run->random) % bound) : 0;
}

/* Small, page-like and large lengths are about equally likely. */
static size_t some_length(struct run *run, size_t bound)
{
	static const size_t limits[] = {64, PAGE, 70000, LARGEST};
	size_t limit = limits[below(run, 4)];

	limit = limit < bound ? limit : bound;
	return limit ? 1 + below(run, limit) : 0;
}

static void fill_buffer(struct run *run, size_t length)
{
	size_t i;

	for (i = 0; i < length; i += 8) {
		uint64_t value = next_random(&run->random);

		memcpy(run->buffer + i, &value,
		       length - i < 8 ? length - i : 8);
	}
}

/* The next read of the page cache has to ask the server. */
static void drop_cache(struct run *run)
{
	expect_success("fsync", fsync(run->fd));
	posix_fadvise(run->fd, 0, 0, POSIX_FADV_DONTNEED);
}

/* The file takes what is in the buffer; holes in between read as zeros. */
static void take_over(struct run *run, size_t offset, size_t length)
{
	if (offset > run->size) {
		memset(run->shadow + run->size, 0, offset - run->size);
	}
	memcpy(run->shadow + offset, run->buffer, length);
	if (offset + length > run->size) {
		run->size = offset + length;
	}
}

/* Before pages are read. */
static void prepare_read(struct run *run)
{
	if (below(run, 2)) {
		drop_cache(run);
	} else if (getenv("FILECHECK_FLUSH")) {
		expect_success("fsync", fsync(run->fd));
	}
}

static void op_read(struct run *run)
{
	size_t offset = below(run, run->size);
	size_t length = some_length(run, run->size - offset);

	prepare_read(run);
	read_all(run->fd, run->buffer, length, (off_t)offset);
	compare(run->buffer, run->shadow + offset, length, (off_t)offset,
		"read");
}

static void op_write(struct run *run)
{
	size_t offset = below(run, run->limit);
	size_t length = some_length(run, run->limit - offset);

	fill_buffer(run, length);
	write_all(run->fd, run->buffer, length, (off_t)offset);
	take_over(run, offset, length);
}

static void op_direct_read(struct run *run)
{
	size_t pages = run->size / PAGE;
	size_t first = below(run, pages);
	size_t count = some_length(run, (pages - first) * PAGE);
	size_t length = (count + PAGE - 1) / PAGE * PAGE;

	if (length > LARGEST) {
		length = LARGEST;
	}
	drop_cache(run);
	read_all(run->direct, run->buffer, length, (off_t)(first * PAGE));
	compare(run->buffer, run->shadow + first * PAGE, length,
		(off_t)(first * PAGE), "direct read");
}

static void op_direct_write(struct run *run)
{
	size_t pages = run->limit / PAGE;
	size_t first = below(run, pages);
	size_t count = some_length(run, (pages - first) * PAGE);
	size_t length = (count + PAGE - 1) / PAGE * PAGE;

	if (length > LARGEST) {
		length = LARGEST;
	}
	fill_buffer(run, length);
	drop_cache(run);
	write_all(run->direct, run->buffer, length, (off_t)(first * PAGE));
	posix_fadvise(run->fd, 0, 0, POSIX_FADV_DONTNEED);
	take_over(run, first * PAGE, length);
}

/* A mapping of some pages within the file. */
static uint8_t *map_some(struct run *run, int protection, size_t *offset,
			 size_t *length)
{
	uint8_t *memory;

	*offset = below(run, run->size) / PAGE * PAGE;
	*length = some_length(run, run->size - *offset);
	memory = mmap(NULL, *length, protection, MAP_SHARED, run->fd,
		      (off_t)*offset);
	if (memory == MAP_FAILED) {
		fail("mmap of %zu bytes at %zu: %s", *length, *offset,
		     strerror(errno));
	}
	return memory;
}

static void op_map_read(struct run *run)
{
	size_t offset, length;
	uint8_t *memory;

	prepare_read(run);
	memory = map_some(run, PROT_READ, &offset, &length);
	compare(memory, run->shadow + offset, length, (off_t)offset,
		"mapped read");
	munmap(memory, length);
}

static void op_map_write(struct run *run)
{
	size_t offset, length;
	uint8_t *memory;

	prepare_read(run);
	/*
	 * Linux 6.12's client, over TCP, too, loses what is written through
	 * a mapping to a page that has a part which was written and not yet
	 * flushed, if the rest of that page was read meanwhile.
	 */
	expect_success("fsync", fsync(run->fd));
	memory = map_some(run, PROT_READ | PROT_WRITE, &offset, &length);
	fill_buffer(run, length);
	memcpy(memory, run->buffer, length);
	if (below(run, 2)) {
		expect_success("msync", msync(memory, length, MS_SYNC));
	}
	munmap(memory, length);
	take_over(run, offset, length);
}

static void op_truncate(struct run *run)
{
	size_t size = below(run, run->limit);

	expect_success("ftruncate", ftruncate(run->fd, (off_t)size));
	if (size > run->size) {
		memset(run->shadow + run->size, 0, size - run->size);
	}
	run->size = size;
}

static void op_punch(struct run *run)
{
	size_t offset = below(run, run->size);
	size_t length = some_length(run, run->size - offset);

	if (fallocate(run->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		      (off_t)offset, (off_t)length) != 0) {
		if (errno == EOPNOTSUPP) {
			return;
		}
		fail("hole of %zu bytes at %zu: %s", length, offset,
		     strerror(errno));
	}
	memset(run->shadow + offset, 0, length);
}

static void open_both(struct run *run)
{
	run->fd = open_file(O_RDWR);
	run->direct = open_file(O_RDWR | O_DIRECT);
}

static void op_reopen(struct run *run)
{
	struct stat status;

	expect_success("close", close(run->direct));
	expect_success("close", close(run->fd));
	open_both(run);
	expect_success("fstat", fstat(run->fd, &status));
	if ((size_t)status.st_size != run->size) {
		fail("size is %lld instead of %zu", (long long)status.st_size,
		     run->size);
	}
}

/* Everything once more, from the server. */
static void check_whole(struct run *run)
{
	size_t offset = 0;

	op_reopen(run);
	drop_cache(run);
	while (offset < run->size) {
		size_t length = run->size - offset;

		length = length < LARGEST ? length : LARGEST;
		read_all(run->fd, run->buffer, length, (off_t)offset);
		compare(run->buffer, run->shadow + offset, length,
			(off_t)offset, "last read");
		offset += length;
	}
}

typedef void operation(struct run *run);

static operation *const cached_kinds[] = {
	op_read,  op_read,     op_read,	     op_write, op_write,
	op_write, op_map_read, op_map_write, op_map_write, op_truncate,
	op_punch, op_reopen,
};

static operation *const direct_kinds[] = {
	op_read,	op_read,	 op_write,	  op_write,
	op_direct_read, op_direct_read,	 op_direct_write, op_direct_write,
	op_truncate,	op_punch,	 op_reopen,
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static void command_random(operation *const *kinds, size_t count,
			   const uint64_t *numbers)
{
	struct run run = {.limit = numbers[2],
			  .random = start_random(numbers[0])};
	uint64_t number;

	close(open_file(O_RDWR | O_CREAT | O_TRUNC));
	open_both(&run);
	run.shadow = allocate(run.limit);
	run.buffer = allocate(LARGEST);
	for (number = 0; number < numbers[1]; number++) {
		/* most kinds need something in the file */
		if (run.size < PAGE) {
			op_write(&run);
		} else {
			kinds[below(&run, count)](&run);
		}
	}
	check_whole(&run);
	expect_success("close", close(run.direct));
	expect_success("close", close(run.fd));
	free(run.shadow);
	free(run.buffer);
}

/* --- patterns ----------------------------------------------------------- */

/* Whole pages; the same whatever the blocks are. */
static void pattern(uint8_t *buffer, size_t length, uint64_t seed,
		    uint64_t offset)
{
	uint64_t state = 0;
	size_t i;

	for (i = 0; i < length; i += 8) {
		uint64_t value;

		if (i % PAGE == 0) {
			state = start_random(seed ^ ((offset + i) << 16));
		}
		value = next_random(&state);
		memcpy(buffer + i, &value, 8);
	}
}

static void command_write(uint64_t seed, uint64_t bytes, size_t block,
			  bool tell)
{
	int fd = open_file(O_WRONLY | O_CREAT | O_DIRECT);
	uint8_t *buffer = allocate(block);
	uint64_t offset;

	for (offset = 0; offset < bytes; offset += block) {
		pattern(buffer, block, seed, offset);
		write_all(fd, buffer, block, (off_t)offset);
		if (tell) {
			printf("%llu\n", (unsigned long long)(offset + block));
			fflush(stdout);
		}
	}
	expect_success("close", close(fd));
	free(buffer);
}

static void command_check(uint64_t seed, uint64_t bytes, size_t block)
{
	int fd = open_file(O_RDONLY | O_DIRECT);
	uint8_t *buffer = allocate(block);
	uint8_t *wanted = allocate(block);
	uint64_t offset;

	for (offset = 0; offset < bytes; offset += block) {
		pattern(wanted, block, seed, offset);
		read_all(fd, buffer, block, (off_t)offset);
		compare(buffer, wanted, block, (off_t)offset, "check");
	}
	expect_success("close", close(fd));
	free(buffer);
	free(wanted);
}

int main(int argc, char **argv)
{
	uint64_t numbers[3];
	const char *command;
	int i;

	if (argc != 6) {
		fprintf(stderr, "usage: see the head of filecheck.c\n");
		return 2;
	}
	command = argv[1];
	path = argv[2];
	for (i = 0; i < 3; i++) {
		numbers[i] = strtoull(argv[3 + i], NULL, 0);
	}
	if (numbers[2] >= 4 * PAGE && strcmp(command, "cached") == 0) {
		command_random(cached_kinds, COUNT(cached_kinds), numbers);
		return 0;
	}
	if (numbers[2] >= 4 * PAGE && strcmp(command, "direct") == 0) {
		command_random(direct_kinds, COUNT(direct_kinds), numbers);
		return 0;
	}
	if (numbers[2] == 0 || numbers[2] % PAGE != 0 ||
	    numbers[1] % numbers[2] != 0) {
		fprintf(stderr, "BLOCK has to be whole pages, BYTES whole "
				"blocks\n");
		return 2;
	}
	if (strcmp(command, "acknowledged") == 0 ||
	    strcmp(command, "insist") == 0) {
		tries = 600;
	}
	if (strcmp(command, "check") == 0 || strcmp(command, "insist") == 0) {
		command_check(numbers[0], numbers[1], numbers[2]);
	} else if (strcmp(command, "fill") == 0) {
		command_write(numbers[0], numbers[1], numbers[2], false);
	} else if (strcmp(command, "acknowledged") == 0) {
		command_write(numbers[0], numbers[1], numbers[2], true);
	} else {
		fprintf(stderr, "unknown command '%s'\n", command);
		return 2;
	}
	return 0;
}
