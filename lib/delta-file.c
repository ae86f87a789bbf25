/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reading a delta.  The file is hostile until its digests fit, and its numbers are judged even
 * then: an extent lies within the disk, behind the one before it, and its data before the index.
 */
#include "lib/delta-file.h"
#include "lib/delta-internal.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define PIECE ((size_t)VARVE_DELTA_EXTENT * 1024) /* bytes of the index that are read at once */

static_assert(sizeof(struct delta_head) == VARVE_DELTA_HEAD, "the format's head");
static_assert(offsetof(struct delta_head, check) == VARVE_DELTA_HEAD_TEXT, "its digest");
static_assert(sizeof(struct delta_extent) == VARVE_DELTA_EXTENT, "the format's extents");

int varve_delta_digest(const void *buf, size_t len, uint8_t out[VARVE_DIGEST_LEN],
                       struct varve_err *err)
{
    struct varve_digest d;
    int rc = varve_digest_init(&d, err);

    if (rc < 0)
        return rc;
    varve_digest_update(&d, buf, len);
    return varve_digest_final(&d, out, err);
}

static int damaged(const char *path, const char *how, struct varve_err *err)
{
    return varve_err_set(err, EUCLEAN, "%.200s is damaged: %s: use another copy of it", path, how);
}

static bool is_zero(const void *data, size_t len)
{
    const uint8_t *p = data;

    return len == 0 || (p[0] == 0 && memcmp(p, p + 1, len - 1) == 0);
}

static bool text_get(const char from[VARVE_DELTA_TEXT], char to[VARVE_DELTA_TEXT])
{
    size_t len = strnlen(from, VARVE_DELTA_TEXT);

    if (len == VARVE_DELTA_TEXT || !is_zero(from + len, VARVE_DELTA_TEXT - len))
        return false;
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)from[i] < 0x20 || from[i] == 0x7f)
            return false;
    memcpy(to, from, VARVE_DELTA_TEXT);
    return true;
}

static int head_take(const struct delta_head *raw, uint64_t file_size, const char *path,
                     struct varve_delta_head *head, struct varve_err *err)
{
    uint64_t index_bytes;

    memset(head, 0, sizeof(*head));
    memcpy(head->id, raw->id, sizeof(head->id));
    memcpy(head->parent, raw->parent, sizeof(head->parent));
    memcpy(head->index_digest, raw->index_digest, sizeof(head->index_digest));
    head->size = le64toh(raw->size);
    head->time_ns = le64toh(raw->time_ns);
    head->index = le64toh(raw->index);
    head->nextents = le64toh(raw->nextents);
    head->data_bytes = le64toh(raw->data_bytes);
    head->zero_bytes = le64toh(raw->zero_bytes);
    if (is_zero(head->id, sizeof(head->id)) || memcmp(head->id, head->parent, 16) == 0)
        return damaged(path, "its id is none", err);
    if (head->size > VARVE_DELTA_SIZE_MAX || head->time_ns > INT64_MAX)
        return damaged(path, "a number in its head is none", err);
    if (head->index < VARVE_DELTA_HEAD || head->index > file_size)
        return damaged(path, "its index is not in it", err);
    index_bytes = file_size - head->index;
    if (index_bytes % VARVE_DELTA_EXTENT != 0 || head->nextents != index_bytes / VARVE_DELTA_EXTENT)
        return damaged(path, "it does not end where its index ends", err);
    if (head->data_bytes > head->size || head->zero_bytes > head->size - head->data_bytes)
        return damaged(path, "it says that it holds more than there can be", err);
    if (!text_get(raw->point, head->point) || !text_get(raw->base, head->base) ||
        !text_get(raw->context, head->context))
        return damaged(path, "a text in it is none", err);
    return 0;
}

static int head_read(struct varve_delta_reader *r, struct varve_err *err)
{
    uint8_t check[VARVE_DIGEST_LEN];
    struct delta_head raw;
    struct varve_stat st;
    ssize_t got;
    int rc = r->w->stat(r->w, r->fd, &st);

    if (rc < 0)
        return varve_err_sys(err, -rc, "cannot look at %.200s", r->path);
    if (!S_ISREG(st.mode))
        return varve_err_set(err, EINVAL, "%.200s is no file", r->path);
    got = r->w->pread(r->w, r->fd, &raw, sizeof(raw), 0);
    if (got < 0)
        return varve_err_sys(err, (int)-got, "cannot read %.200s", r->path);
    if (got < 12 || memcmp(raw.magic, DELTA_MAGIC, sizeof(raw.magic)) != 0)
        return varve_err_set(err, EINVAL, "%.200s is no delta that varve pull made", r->path);
    if (le32toh(raw.version) != VARVE_DELTA_VERSION)
        return varve_err_set(err, ENOTSUP,
                             "%.200s has format %" PRIu32 ", this varve knows format %u only: use "
                             "the version of varve that wrote it",
                             r->path, le32toh(raw.version), VARVE_DELTA_VERSION);
    if ((size_t)got < sizeof(raw))
        return damaged(r->path, "it ends too early", err);
    rc = varve_delta_digest(&raw, VARVE_DELTA_HEAD_TEXT, check, err);
    if (rc < 0)
        return rc;
    if (memcmp(check, raw.check, sizeof(check)) != 0)
        return damaged(r->path, "the checksum of its head does not match", err);
    return head_take(&raw, st.size, r->path, &r->head, err);
}

int varve_delta_open(struct varve_world *w, const char *path, struct varve_delta_reader *r,
                     struct varve_err *err)
{
    int rc;

    *r = (struct varve_delta_reader){.w = w, .path = path, .fd = -1};
    r->fd = w->open(w, path, O_RDONLY | O_NONBLOCK, 0);
    if (r->fd < 0)
        return varve_err_sys(err, -r->fd, "cannot open %.200s", path);
    r->buf = malloc(PIECE);
    rc = r->buf ? head_read(r, err) : varve_err_set(err, ENOMEM, "no memory to read %.200s", path);
    if (rc < 0)
        varve_delta_reader_close(r);
    return rc;
}

void varve_delta_reader_close(struct varve_delta_reader *r)
{
    if (r->fd >= 0)
        r->w->close(r->w, r->fd);
    free(r->buf);
    r->fd = -1;
    r->buf = NULL;
}

void varve_delta_rewind(struct varve_delta_reader *r)
{
    r->next = r->end = 0;
    r->at = r->len = 0;
}

/* More of the index into the buffer. */
static int index_fill(struct varve_delta_reader *r, struct varve_err *err)
{
    uint64_t left = (r->head.nextents - r->next) * VARVE_DELTA_EXTENT;
    size_t len = left < PIECE ? (size_t)left : PIECE;
    ssize_t got =
        r->w->pread(r->w, r->fd, r->buf, len, r->head.index + r->next * VARVE_DELTA_EXTENT);

    if (got < 0)
        return varve_err_sys(err, (int)-got, "cannot read %.200s", r->path);
    if ((size_t)got < len)
        return damaged(r->path, "it ends too early", err);
    r->at = 0;
    r->len = len;
    return 0;
}

int varve_delta_next(struct varve_delta_reader *r, struct varve_delta_extent *e,
                     struct varve_err *err)
{
    const struct varve_delta_head *head = &r->head;
    struct delta_extent raw;

    if (r->next == head->nextents)
        return 0;
    if (r->at == r->len) {
        int rc = index_fill(r, err);

        if (rc < 0)
            return rc;
    }
    memcpy(&raw, r->buf + r->at, sizeof(raw));
    e->off = le64toh(raw.off);
    e->len = le64toh(raw.len);
    e->at = le64toh(raw.at);
    memcpy(e->digest, raw.digest, sizeof(e->digest));
    if (e->len == 0 || e->off < r->end || e->off > head->size || e->len > head->size - e->off)
        return damaged(r->path, "an extent in it is not where one can be", err);
    if (e->at == 0 ? !is_zero(e->digest, sizeof(e->digest))
                   : e->len > VARVE_DELTA_PIECE_MAX || e->at < VARVE_DELTA_HEAD ||
                         e->at > head->index || e->len > head->index - e->at)
        return damaged(r->path, "the data of an extent are not where they can be", err);
    r->end = e->off + e->len;
    r->at += sizeof(raw);
    r->next++;
    return 1;
}

int varve_delta_check(struct varve_delta_reader *r, struct varve_err *err)
{
    uint64_t data_bytes = 0, zero_bytes = 0;
    uint8_t check[VARVE_DIGEST_LEN];
    struct varve_delta_extent e;
    struct varve_digest digest;
    int rc, final;

    rc = varve_digest_init(&digest, err);
    if (rc < 0)
        return rc;
    varve_delta_rewind(r);
    for (;;) {
        rc = varve_delta_next(r, &e, err);
        if (rc <= 0)
            break;
        varve_digest_update(&digest, r->buf + r->at - VARVE_DELTA_EXTENT, VARVE_DELTA_EXTENT);
        *(e.at ? &data_bytes : &zero_bytes) += e.len;
    }
    final = varve_digest_final(&digest, check, err);
    varve_delta_rewind(r);
    if (rc < 0 || final < 0)
        return rc < 0 ? rc : final;
    if (memcmp(check, r->head.index_digest, sizeof(check)) != 0)
        return damaged(r->path, "the checksum of its index does not match", err);
    if (data_bytes != r->head.data_bytes || zero_bytes != r->head.zero_bytes)
        return damaged(r->path, "its head counts other extents than its index has", err);
    return 0;
}

int varve_delta_read(struct varve_delta_reader *r, const struct varve_delta_extent *e, void *buf,
                     struct varve_err *err)
{
    ssize_t got = r->w->pread(r->w, r->fd, buf, (size_t)e->len, e->at);
    uint8_t check[VARVE_DIGEST_LEN];
    int rc;

    if (got < 0)
        return varve_err_sys(err, (int)-got, "cannot read %.200s at %" PRIu64, r->path, e->at);
    if ((uint64_t)got < e->len)
        return damaged(r->path, "it ends too early", err);
    rc = varve_delta_digest(buf, (size_t)e->len, check, err);
    if (rc < 0)
        return rc;
    if (memcmp(check, e->digest, sizeof(check)) != 0)
        return damaged(r->path, "the checksum of its data does not match", err);
    return 0;
}
