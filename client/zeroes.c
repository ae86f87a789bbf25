/* SPDX-License-Identifier: BSD-3-Clause */
#include "client/zeroes.h"

#include <stdbool.h>
#include <string.h>

static bool all_zero(const char *buf, size_t len)
{
    return buf[0] == 0 && memcmp(buf, buf + 1, len - 1) == 0;
}

int varve_zeroes_split(const char *buf, uint64_t off, size_t len, const struct varve_zeroes_to *to,
                       struct varve_err *err)
{
    size_t from = 0; /* [from, at) is data that was not given yet */
    size_t at = 0;
    int rc = 0;

    while (at < len && rc == 0) {
        size_t chunk = VARVE_ZEROES_CHUNK - (size_t)((off + at) % VARVE_ZEROES_CHUNK);

        if (chunk > len - at)
            chunk = len - at;
        if (all_zero(buf + at, chunk)) {
            if (at > from)
                rc = to->data(to->opaque, buf + from, off + from, at - from, err);
            if (rc == 0)
                rc = to->zero(to->opaque, off + at, chunk, err);
            from = at + chunk;
        }
        at += chunk;
    }
    if (rc == 0 && len > from)
        rc = to->data(to->opaque, buf + from, off + from, len - from, err);
    return rc;
}
