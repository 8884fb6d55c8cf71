/* The library loaded at run time, as smbd does it; and its log. */
#include "smbdirect.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int lines;

static void on_line(void *user_data, int32_t level, const char *message)
{
	if (user_data == (void *)&lines && level >= SMBD_LOG_ERROR &&
	    message != NULL) {
		lines++;
	}
}

/* ISO C has no conversion from an object to a function pointer. */
static void load(void *library, const char *name, void *out_function)
{
	void *symbol = dlsym(library, name);

	if (symbol == NULL) {
		fprintf(stderr, "%s\n", dlerror());
		exit(1);
	}
	memcpy(out_function, &symbol, sizeof(symbol));
}

int main(void)
{
	uint32_t (*abi_version)(void);
	int (*set_log)(smbd_log_callback, void *, int);
	int (*open_handle)(const struct smbd_open_options *,
			   struct smbd_handle **);
	const char *(*last_error)(const struct smbd_handle *);
	struct smbd_handle *handle = NULL;
	const char *path = getenv("SMBDIRECT_LIBRARY");
	void *library;
	int i;

	if (path == NULL) {
		fprintf(stderr, "SMBDIRECT_LIBRARY is not set\n");
		return 77;
	}
	/* Twice: what was unloaded comes back. */
	for (i = 0; i < 2; i++) {
		library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
		if (library == NULL) {
			fprintf(stderr, "%s\n", dlerror());
			return 1;
		}
		load(library, "smbd_abi_version", &abi_version);
		load(library, "smbd_set_log_callback", &set_log);
		load(library, "smbd_open", &open_handle);
		load(library, "smbd_last_error", &last_error);
		if (abi_version() != SMBD_ABI_VERSION ||
		    set_log(on_line, &lines, 9) != -EINVAL ||
		    set_log(on_line, &lines, SMBD_LOG_DEBUG) != 0 ||
		    open_handle(NULL, NULL) != -EINVAL ||
		    strstr(last_error(NULL), "out_handle") == NULL ||
		    handle != NULL || set_log(NULL, NULL, 1) != 0) {
			fprintf(stderr, "a call went wrong\n");
			return 1;
		}
		dlclose(library);
	}
	return 0;
}
