/* Parameters: defaults, every refusal, and that a refused set leaves the old one in force. */
#include "common.h"

#include <stddef.h>

struct refusal {
	size_t offset;
	uint32_t bad;
	const char *name;
};

#define FIELD(name, bad) { offsetof(struct smbd_params, name), bad, #name }

static const struct refusal refusals[] = {
	FIELD(flags, 0x80000000),
	FIELD(receive_credit_max, 65536),
	FIELD(send_credit_max, 65536),
	FIELD(max_send_size, 127),
	FIELD(max_send_size, 65537),
	FIELD(max_receive_size, 127),
	FIELD(max_receive_size, 65537),
	FIELD(max_fragment_size, 131071),
	FIELD(max_fragment_size, 67108865),
	FIELD(max_read_write_size, 65535),
	FIELD(max_read_write_size, 1073741825),
	FIELD(keepalive_interval_msec, 999),
	FIELD(keepalive_interval_msec, 86400001),
	FIELD(security_blob_length, 16385),
	FIELD(security_mode, 65536),
	FIELD(max_transact_size, 65535),
	FIELD(max_read_size, 1),
	FIELD(max_write_size, 0xffffffff),
};

static void check_in_force(struct smbd_handle *server, uint32_t credits)
{
	struct smbd_params got = default_params();

	got.security_blob = (const uint8_t *)"overwritten";
	CHECK_OK(smbd_get_params(server, &got));
	CHECK_EQ(got.size, sizeof(got));
	CHECK_EQ(got.receive_credit_max, credits);
	CHECK_EQ(got.send_credit_max, 255);
	CHECK_EQ(got.max_send_size, 8136);
	CHECK_EQ(got.max_receive_size, 8192);
	CHECK_EQ(got.max_fragment_size, 1048576);
	CHECK_EQ(got.max_read_write_size, 8388608);
	CHECK_EQ(got.keepalive_interval_msec, 120000);
	CHECK_EQ(got.security_blob_length, 4);
	CHECK(got.security_blob == NULL);
	CHECK_EQ(got.max_read_size, 8388608);
	CHECK_EQ(got.min_dialect, 0x0300);
	CHECK_EQ(got.max_dialect, 0x0311);
}

static void test_open_refusals(void)
{
	struct smbd_handle *handle = NULL;
	struct smbd_open_options options;

	CHECK_EQ(smbd_open(NULL, NULL), -EINVAL);
	options = open_options(0);
	options.size = 4;
	CHECK_EQ(smbd_open(&options, &handle), -EINVAL);
	options = open_options(0x10);
	CHECK_EQ(smbd_open(&options, &handle), -EINVAL);
	options = open_options(0);
	options.rdma_buffers = 4097;
	CHECK_EQ(smbd_open(&options, &handle), -EINVAL);
	CHECK(strstr(smbd_last_error(NULL), "rdma_buffers is 4097") != NULL);
	options = open_options(0);
	options.rdma_buffer_size = 4095;
	CHECK_EQ(smbd_open(&options, &handle), -EINVAL);
	options = open_options(0);
	options.max_connections = 5000;
	CHECK_EQ(smbd_open(&options, &handle), -EINVAL);
	options = open_options(0);
	options.receive_slots = 15;
	CHECK_EQ(smbd_open(&options, &handle), -EINVAL);
	options = open_options(0);
	options.receive_slot_size = 100;
	CHECK_EQ(smbd_open(&options, &handle), -EINVAL);
	options = open_options(0);
	options.send_area_size = 100;
	CHECK_EQ(smbd_open(&options, &handle), -EINVAL);
	options = open_options(0);
	options.socket_path = "/nonexistent/engine";
	CHECK_EQ(smbd_open(&options, &handle), -ENOENT);
	CHECK(strstr(smbd_last_error(NULL), "/nonexistent/engine") != NULL);
	CHECK(handle == NULL);
}

int main(void)
{
	struct smbd_params params = default_params();
	struct smbd_params got = default_params();
	struct smbd_open_options options;
	struct smbd_handle *server;
	struct smbd_handle *second = NULL;
	struct smbd_handle *worker;
	size_t i;

	CHECK_EQ(smbd_abi_version(), SMBD_ABI_VERSION);
	CHECK(smbd_version() != 0);
	CHECK(strchr(smbd_version_string(), '.') != NULL);
	CHECK(strlen(smbd_strerror(-EINVAL)) > 0);
	test_open_refusals();

	start_engine();
	server = open_handle(SMBD_OPEN_PARENT);
	options = open_options(SMBD_OPEN_PARENT);
	CHECK_EQ(smbd_open(&options, &second), -EBUSY);
	worker = open_handle(0);
	told = server;
	CHECK_EQ(smbd_get_params(server, &got), -ENODATA);
	CHECK_EQ(smbd_set_params(server, NULL), -EINVAL);
	CHECK_EQ(smbd_set_params(worker, &params), -EPERM);

	params.receive_credit_max = 100;
	params.security_blob = (const uint8_t *)"blob";
	params.security_blob_length = 4;
	CHECK_OK(smbd_set_params(server, &params));
	check_in_force(server, 100);

	for (i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++) {
		struct smbd_params bad = default_params();

		memcpy((char *)&bad + refusals[i].offset, &refusals[i].bad, 4);
		bad.receive_credit_max += 7 * (bad.receive_credit_max == 0);
		CHECK_EQ(smbd_set_params(server, &bad), -EINVAL);
		if (strstr(smbd_last_error(server), refusals[i].name) == NULL) {
			fprintf(stderr, "%s is not named: %s\n",
				refusals[i].name, smbd_last_error(server));
			return 1;
		}
		check_in_force(server, 100);
	}
	params.min_dialect = 0x0210;
	CHECK_EQ(smbd_set_params(server, &params), -EINVAL);
	params.min_dialect = 0x0311;
	params.max_dialect = 0x0300;
	CHECK_EQ(smbd_set_params(server, &params), -EINVAL);
	params.min_dialect = 0;
	params.max_dialect = 0;
	params.security_blob = NULL;
	CHECK_EQ(smbd_set_params(server, &params), -EINVAL);
	params.size = sizeof(params) - 8;
	CHECK_EQ(smbd_set_params(server, &params), -EINVAL);
	check_in_force(server, 100);

	/* The worker may look. A set that is right replaces the other one. */
	check_in_force(worker, 100);
	params = default_params();
	params.receive_credit_max = 50;
	params.security_blob = (const uint8_t *)"BLOB";
	params.security_blob_length = 4;
	CHECK_OK(smbd_set_params(server, &params));
	check_in_force(server, 50);

	told = NULL;
	CHECK_OK(smbd_close(worker));
	CHECK_OK(smbd_close(server));
	/* When smbd_close has returned, the place of the parent is free. */
	server = open_handle(SMBD_OPEN_PARENT);
	told = NULL;
	CHECK_OK(smbd_close(server));
	CHECK_OK(smbd_close(NULL));
	return 0;
}
