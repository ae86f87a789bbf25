/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Writing a delta.
 *
 *     PATH.tmp: data as it comes | sync | index, head | sync     -- rename, sync dir -->  PATH
 *
 * So what is called PATH is whole.  A head that is durable before its data could only be found
 * under the other name; the first sync is not needed for that, but an index that is right over data
 * that are not would be found only when it is replayed.
 */
#include "lib/delta-file.h"
#include "lib/delta-internal.h"
#include "lib/paths.h"
#include "lib/whole-file.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct varve_delta_writer {
    struct varve_world *w;
    int fd;
    bool published;
    char path[PATH_MAX], tmp[PATH_MAX];
    struct varve_delta_head head;
    pthread_mutex_t lock; /* guards all below; no other lock is taken under it */
    uint64_t end;         /* of the data, in the file */
    struct varve_delta_extent *extents;
    size_t count, cap;
};

int varve_delta_create(struct varve_world *w, const char *path, const struct varve_delta_head *head,
                       struct varve_delta_writer **out, struct varve_err *err)
{
    struct varve_delta_writer *d = calloc(1, sizeof(*d));

    *out = NULL;
    if (!d)
        return varve_err_set(err, ENOMEM, "no memory");
    d->w = w;
    d->head = *head;
    d->end = VARVE_DELTA_HEAD;
    if (snprintf(d->path, sizeof(d->path), "%s", path) >= (int)sizeof(d->path) ||
        snprintf(d->tmp, sizeof(d->tmp), "%s.tmp", path) >= (int)sizeof(d->tmp)) {
        free(d);
        return varve_err_set(err, ENAMETOOLONG, "the file name '%.200s...' is too long", path);
    }
    w->unlink(w, d->tmp);
    d->fd = w->open(w, d->tmp, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (d->fd < 0) {
        int rc = varve_err_sys(err, -d->fd, "cannot create %.200s", d->tmp);

        free(d);
        return rc;
    }
    pthread_mutex_init(&d->lock, NULL);
    *out = d;
    return 0;
}

const struct varve_delta_head *varve_delta_head_of(const struct varve_delta_writer *d)
{
    return &d->head;
}

static int extents_push(struct varve_delta_writer *d, const struct varve_delta_extent *e)
{
    if (d->count == d->cap) {
        size_t cap = d->cap ? 2 * d->cap : 1024;
        struct varve_delta_extent *grown = realloc(d->extents, cap * sizeof(*grown));

        if (!grown)
            return -ENOMEM;
        d->extents = grown;
        d->cap = cap;
    }
    d->extents[d->count++] = *e;
    return 0;
}

int varve_delta_add(struct varve_delta_writer *d, const void *buf, uint64_t off, size_t len,
                    struct varve_err *err)
{
    struct varve_delta_extent e = {.off = off, .len = len};
    int rc;

    assert(len > 0 && len <= VARVE_DELTA_PIECE_MAX);
    rc = varve_delta_digest(buf, len, e.digest, err);
    if (rc < 0)
        return rc;
    pthread_mutex_lock(&d->lock);
    e.at = d->end;
    rc = extents_push(d, &e);
    if (rc == 0) {
        d->end += len;
        d->head.data_bytes += len;
    }
    pthread_mutex_unlock(&d->lock);
    if (rc < 0)
        return varve_err_set(err, ENOMEM, "no memory for the index of %.200s", d->path);
    rc = d->w->pwrite(d->w, d->fd, buf, len, e.at);
    return rc == 0 ? 0 : varve_err_sys(err, -rc, "cannot write %.200s", d->tmp);
}

int varve_delta_add_zeroes(struct varve_delta_writer *d, uint64_t off, uint64_t len,
                           struct varve_err *err)
{
    struct varve_delta_extent e = {.off = off, .len = len};
    int rc;

    assert(len > 0);
    pthread_mutex_lock(&d->lock);
    rc = extents_push(d, &e);
    if (rc == 0)
        d->head.zero_bytes += len;
    pthread_mutex_unlock(&d->lock);
    return rc == 0 ? 0 : varve_err_set(err, ENOMEM, "no memory for the index of %.200s", d->path);
}

static int by_place(const void *a, const void *b)
{
    const struct varve_delta_extent *x = a, *y = b;

    return x->off < y->off ? -1 : x->off > y->off;
}

/* Sorts them, joins zeroes, and finds what cannot be. */
static int extents_order(struct varve_delta_writer *d, struct varve_err *err)
{
    size_t n = 0;

    if (d->count > 1)
        qsort(d->extents, d->count, sizeof(*d->extents), by_place);
    for (size_t i = 0; i < d->count; i++) {
        const struct varve_delta_extent e = d->extents[i];
        struct varve_delta_extent *last = n > 0 ? &d->extents[n - 1] : NULL;

        if (e.off > d->head.size || e.len > d->head.size - e.off ||
            (last && last->off + last->len > e.off))
            return varve_err_set(err, EINVAL, "two ranges overlap at %" PRIu64, e.off);
        if (last && !last->at && !e.at && last->off + last->len == e.off)
            last->len += e.len;
        else
            d->extents[n++] = e;
    }
    d->count = n;
    return 0;
}

static int index_write(struct varve_delta_writer *d, struct varve_err *err)
{
    struct delta_extent *raw = malloc(1024 * sizeof(*raw));
    struct varve_digest digest;
    uint64_t off = d->end;
    int rc, final;

    if (!raw)
        return varve_err_set(err, ENOMEM, "no memory for the index of %.200s", d->path);
    rc = varve_digest_init(&digest, err);
    if (rc < 0) {
        free(raw);
        return rc;
    }
    for (size_t i = 0; rc == 0 && i < d->count;) {
        size_t n = 0;

        for (; n < 1024 && i < d->count; n++, i++) {
            const struct varve_delta_extent *e = &d->extents[i];

            raw[n] = (struct delta_extent){htole64(e->off), htole64(e->len), htole64(e->at), {0}};
            memcpy(raw[n].digest, e->digest, sizeof(e->digest));
        }
        varve_digest_update(&digest, raw, n * sizeof(*raw));
        rc = d->w->pwrite(d->w, d->fd, raw, n * sizeof(*raw), off);
        off += n * sizeof(*raw);
        if (rc < 0)
            varve_err_sys(err, -rc, "cannot write %.200s", d->tmp);
    }
    free(raw);
    final = varve_digest_final(&digest, d->head.index_digest, rc == 0 ? err : NULL);
    return rc < 0 ? rc : final;
}

static int head_write(struct varve_delta_writer *d, struct varve_err *err)
{
    const struct varve_delta_head *head = &d->head;
    struct delta_head raw = {
        .magic = DELTA_MAGIC,
        .version = htole32(VARVE_DELTA_VERSION),
        .size = htole64(head->size),
        .time_ns = htole64(head->time_ns),
        .index = htole64(head->index),
        .nextents = htole64(head->nextents),
        .data_bytes = htole64(head->data_bytes),
        .zero_bytes = htole64(head->zero_bytes),
    };
    int rc;

    memcpy(raw.id, head->id, sizeof(raw.id));
    memcpy(raw.parent, head->parent, sizeof(raw.parent));
    memcpy(raw.point, head->point, strnlen(head->point, VARVE_DELTA_TEXT - 1));
    memcpy(raw.base, head->base, strnlen(head->base, VARVE_DELTA_TEXT - 1));
    memcpy(raw.context, head->context, strnlen(head->context, VARVE_DELTA_TEXT - 1));
    memcpy(raw.index_digest, head->index_digest, sizeof(raw.index_digest));
    rc = varve_delta_digest(&raw, VARVE_DELTA_HEAD_TEXT, raw.check, err);
    if (rc < 0)
        return rc;
    rc = d->w->pwrite(d->w, d->fd, &raw, sizeof(raw), 0);
    return rc == 0 ? 0 : varve_err_sys(err, -rc, "cannot write %.200s", d->tmp);
}

static int sync_tmp(struct varve_delta_writer *d, struct varve_err *err)
{
    int rc = d->w->sync(d->w, d->fd);

    return rc == 0 ? 0 : varve_err_sys(err, -rc, "cannot make %.200s durable", d->tmp);
}

int varve_delta_seal(struct varve_delta_writer *d, struct varve_err *err)
{
    int rc = extents_order(d, err);

    d->head.index = d->end;
    d->head.nextents = d->count;
    if (rc == 0)
        rc = sync_tmp(d, err);
    if (rc == 0)
        rc = index_write(d, err);
    if (rc == 0)
        rc = head_write(d, err);
    return rc == 0 ? sync_tmp(d, err) : rc;
}

/* The first extent that ends behind off. */
static size_t extent_find(const struct varve_delta_writer *d, uint64_t off)
{
    size_t lo = 0, hi = d->count;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;

        if (d->extents[mid].off + d->extents[mid].len <= off)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static int compare_extent(struct varve_delta_writer *d, const struct varve_delta_extent *e,
                          uint64_t from, const uint8_t *theirs, size_t len, uint8_t *ours,
                          struct varve_err *err)
{
    ssize_t got;

    memset(ours, 0, len);
    if (e->at) {
        got = d->w->pread(d->w, d->fd, ours, len, e->at + (from - e->off));
        if (got < 0 || (size_t)got < len)
            return varve_err_sys(err, got < 0 ? (int)-got : EIO, "reading %.200s back", d->tmp);
    }
    if (memcmp(ours, theirs, len) != 0)
        return varve_err_set(err, EIO,
                             "verifying: %.200s differs from the export between bytes %" PRIu64
                             " and %" PRIu64 " of the disk",
                             d->tmp, from, from + len);
    return 0;
}

int varve_delta_compare(struct varve_delta_writer *d, const void *buf, uint64_t off, size_t len,
                        struct varve_err *err)
{
    const uint8_t *theirs = buf;
    uint64_t at = off, end = off + len;
    uint8_t *ours = malloc(len);
    int rc = 0;

    if (!ours)
        return varve_err_set(err, ENOMEM, "no memory");
    for (size_t i = extent_find(d, off); rc == 0 && at < end; i++) {
        const struct varve_delta_extent *e = i < d->count ? &d->extents[i] : NULL;
        uint64_t to = e && e->off + e->len < end ? e->off + e->len : end;

        if (e && e->off <= at)
            rc = compare_extent(d, e, at, theirs + (at - off), (size_t)(to - at), ours, err);
        else
            rc = varve_err_set(err, EIO,
                               "verifying: %.200s has nothing at byte %" PRIu64
                               " of the disk, which is dirty",
                               d->tmp, at);
        at = to;
    }
    free(ours);
    return rc;
}

int varve_delta_publish(struct varve_delta_writer *d, struct varve_err *err)
{
    int rc = varve_whole_file_publish(d->w, d->tmp, d->path, err);

    d->published = rc == 0;
    return rc;
}

void varve_delta_close(struct varve_delta_writer *d)
{
    if (!d)
        return;
    if (!d->published)
        d->w->unlink(d->w, d->tmp);
    d->w->close(d->w, d->fd);
    pthread_mutex_destroy(&d->lock);
    free(d->extents);
    free(d);
}
