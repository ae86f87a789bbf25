/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The bytes of the file: any threads, on ranges that do not overlap.
 */
#include "client/sink.h"
#include "client/zeroes.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int sink_pwrite(void *opaque, const char *buf, uint64_t off, size_t len,
                       struct varve_err *err)
{
    struct varve_sink *s = opaque;

    while (len > 0) {
        ssize_t n = pwrite(s->fd, buf, len, (off_t)off);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return varve_err_sys(err, n < 0 ? errno : EIO, "writing %s at %" PRIu64, s->path, off);
        buf += n;
        off += (uint64_t)n;
        len -= (size_t)n;
    }
    return 0;
}

int varve_sink_data(void *opaque, const char *buf, uint64_t off, size_t len, struct varve_err *err)
{
    const struct varve_zeroes_to to = {sink_pwrite, varve_sink_zero, opaque};

    return varve_zeroes_split(buf, off, len, &to, err);
}

int varve_sink_zero(void *opaque, uint64_t off, uint64_t len, struct varve_err *err)
{
    static const char zeroes[VARVE_ZEROES_CHUNK];
    struct varve_sink *s = opaque;

    if (s->blank)
        return 0;
    if (fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len) == 0)
        return 0;
    if (errno != EOPNOTSUPP && errno != ENOSYS)
        return varve_err_sys(err, errno, "punching %s at %" PRIu64, s->path, off);
    while (len > 0) {
        size_t chunk = len < VARVE_ZEROES_CHUNK ? (size_t)len : VARVE_ZEROES_CHUNK;
        int rc = sink_pwrite(s, zeroes, off, chunk, err);

        if (rc != 0)
            return rc;
        off += chunk;
        len -= chunk;
    }
    return 0;
}

int varve_sink_compare(void *opaque, const char *buf, uint64_t off, size_t len,
                       struct varve_err *err)
{
    struct varve_sink *s = opaque;
    char *ours = malloc(len);
    size_t got = 0;
    int rc = 0;

    if (!ours)
        return varve_err_set(err, ENOMEM, "no memory");
    while (got < len && rc == 0) {
        ssize_t n = pread(s->fd, ours + got, len - got, (off_t)(off + got));

        if (n > 0)
            got += (size_t)n;
        else if (n == 0 || errno != EINTR)
            rc = varve_err_sys(err, n < 0 ? errno : EIO, "reading %s back at %" PRIu64, s->path,
                               off + got);
    }
    if (rc == 0 && memcmp(ours, buf, len) != 0) {
        size_t i = 0;

        while (ours[i] == buf[i])
            i++;
        rc = varve_err_set(err, EIO, "verifying: %s differs from the export at byte %" PRIu64,
                           s->path, off + i);
    }
    if (rc != 0)
        atomic_store(&s->differs, true);
    free(ours);
    return rc;
}
