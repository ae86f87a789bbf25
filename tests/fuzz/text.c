/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Sizes, times, names and file names as people and directories give them.
 */
#include "lib/parse.h"
#include "lib/paths.h"
#include "tests/fuzz/fuzz.h"

#include <errno.h>
#include <string.h>

static void parse_numbers(const char *text)
{
    struct varve_err err = VARVE_ERR_INIT;
    uint64_t bytes;
    unsigned ms;
    int rc = varve_parse_size(text, &bytes, &err);

    FUZZ_CHECK(rc == 0 || ((rc == -EINVAL || rc == -ERANGE) && err.msg[0]));
    rc = varve_parse_time_ms(text, &ms, &err);
    FUZZ_CHECK(rc == 0 || ((rc == -EINVAL || rc == -ERANGE) && err.msg[0]));
    if (rc == 0)
        FUZZ_CHECK(ms <= 0x7fffffff);
}

/* The text as a folder and as a name. */
static void make_paths(const char *text)
{
    static struct varve_paths p;
    struct varve_err err = VARVE_ERR_INIT;
    char path[PATH_MAX];
    int rc = varve_name_check(text, "name", &err);

    if (rc == 0) {
        FUZZ_CHECK(strlen(text) <= 64 && !strchr(text, '/') && text[0] != '.');
        FUZZ_CHECK(varve_paths_init(&p, "/s", "/r", NULL, text, &err) == 0);
    } else {
        FUZZ_CHECK(rc == -EINVAL && err.msg[0]);
        FUZZ_CHECK(varve_paths_init(&p, "/s", "/r", NULL, text, &err) == -EINVAL);
    }
    rc = varve_paths_init(&p, text, "/r", text, "disk", &err);
    FUZZ_CHECK(rc == 0 || rc == -EINVAL || rc == -ENAMETOOLONG);
    if (rc)
        return;
    varve_path_epoch(&p, UINT64_MAX, UINT64_MAX, path);
    FUZZ_CHECK(strlen(path) + 5 < sizeof(path) && strstr(path, ".map"));
    varve_path_lost(&p, UINT64_MAX, path);
    varve_path_scratch(&p, UINT64_MAX, path);
    FUZZ_CHECK(strlen(path) < sizeof(path) && strstr(path, ".scratch"));
}

static void epoch_name(const char *text)
{
    static struct varve_paths p;
    char path[PATH_MAX];
    uint64_t first, last;

    if (!varve_path_parse_epoch(text, &first, &last))
        return;
    FUZZ_CHECK(first > 0 && first <= last);
    FUZZ_CHECK(varve_paths_init(&p, "/s", "/r", NULL, "d", NULL) == 0);
    varve_path_epoch(&p, first, last, path);
    FUZZ_CHECK(strcmp(strrchr(path, '/') + 1, text) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = fuzz_string(data, size);

    parse_numbers(text);
    make_paths(text);
    epoch_name(text);
    free(text);
    return 0;
}
