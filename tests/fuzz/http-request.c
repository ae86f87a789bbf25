/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A connection's bytes, as far as they are looked at.
 */
#include "server/http-request.h"
#include "tests/fuzz/fuzz.h"

#include <errno.h>
#include <string.h>

static void look_at(const struct varve_http_request *r)
{
    static const char *const known[] = {"disk", "since", NULL};
    static const char *const names[] = {"host.example", NULL};
    char value[64];
    int rc;

    FUZZ_CHECK(r->path[0] == '/' && !strchr(r->path, '?') && !strchr(r->path, '\n'));
    varve_http_query_known(r->query, known);
    rc = varve_http_query_get(r->query, "disk", value, sizeof(value));
    FUZZ_CHECK(rc == 0 || rc == -EINVAL || (rc == 1 && strlen(value) < sizeof(value)));
    if (r->host)
        varve_http_host_is_ours(r->host, names);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t got = size < VARVE_HTTP_HEAD_MAX ? size : VARVE_HTTP_HEAD_MAX, len;
    char *head = fuzz_string(data, got);
    struct varve_http_request r;
    unsigned status;

    len = varve_http_head_len(head, got);
    FUZZ_CHECK(len <= got && (len == 0 || head[len - 1] == '\n'));
    if (len > 0) {
        status = varve_http_request_parse(head, len, &r);
        FUZZ_CHECK(status == 0 || status == 400 || status == 405 || status == 505);
        if (status == 0)
            look_at(&r);
    }
    free(head);
    return 0;
}
