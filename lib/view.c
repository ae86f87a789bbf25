/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reading the disk as it was at a boundary, without holding its writer up.
 *
 *     data = read the image, or the scratch of an epoch e
 *     fence; look: is the view still open? which is the live epoch now? for every epoch from the
 *     boundary to it: still armed and unbroken? which bits does it have?
 *     a block whose first epoch with a set bit is the one its data came from (none: the image) is
 *     proved; any other is read again from that epoch, and looked at again
 *
 * Why it is right.  The writer stores the preimage, then the bit (I2), and the bit before the image
 * changes (I1).  So a bit that is clear after the image was read proves that the old content was
 * read; a set one proves that the preimage can be had.  Whoever takes a preimage away (the view ends,
 * the epoch is disarmed or broken, the block was lost) says so in shared memory first: looking after
 * the scratch was read proves that it was still there.  What a view released or does not need is
 * told the same way, by its done map (control.h): that is looked at last, after the page has said that
 * there is one, or that there was none when everything had been read.  Bits are only ever set, and the epochs before
 * the live one are sealed, so a block's first epoch never changes once it has one: each block is read
 * at most twice, and the loop ends.
 *
 * The page, the maps and the scratch are read by system calls, never mapped.
 */
#include "lib/view-internal.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <string.h>

/* Blocks looked at once: those of 1 MiB at the smallest block size, and a partial one at each end. */
#define READ_BLKS_MAX 258u
#define READ_MAX      ((uint64_t)1 << 20)

/* What a disk that fails at a byte fails at, at least. */
#define READ_PAGE UINT64_C(4096)

/* Slots of the control page copied at once. */
#define SLOTS_AT_ONCE 32u

int varve_view_say_bad_scratch(uint64_t epoch, struct varve_err *err)
{
    return varve_err_set(err, ESTALE,
                         "what epoch %" PRIu64 " kept did not all come to its device (the scratch "
                         "file's file system failed or was full): the backup is broken", epoch);
}

static int view_is_open(const struct varve_view *v, const struct varve_ctl_view_copy *views,
                        uint64_t *done_ino, struct varve_err *err)
{
    for (unsigned i = 0; i < VARVE_CTL_VIEWS; i++) {
        if (views[i].id == v->id && views[i].boundary == v->boundary) {
            *done_ino = views[i].done_ino;
            if (views[i].state == VARVE_VIEW_OPEN)
                return 0;
            break;
        }
    }
    return varve_err_set(err, ESTALE, "the backup has ended or is broken: its point in time is gone");
}

static int say_broken(uint64_t number, const struct varve_ctl_epoch_copy *c, struct varve_err *err)
{
    if (c->number == number && c->flags & VARVE_EPOCH_BAD_SCRATCH)
        return varve_view_say_bad_scratch(number, err);
    if (c->number == number && c->flags & VARVE_EPOCH_GAVE_WAY)
        return varve_err_set(err, ESTALE,
                             "the image's file system was full, and the guest needed the space in "
                             "which epoch %" PRIu64 " kept what was overwritten: the backup is "
                             "broken", number);
    return varve_err_set(err, ESTALE, "epoch %" PRIu64 " did not keep what was overwritten: the "
                         "backup is broken", number);
}

int varve_view_walk(struct varve_source *s, const struct epoch_table *table,
                    const struct varve_view *v,
                    int (*each)(void *arg, struct epoch_files *f,
                                const struct varve_ctl_epoch_copy *c, struct varve_err *err),
                    void *arg, struct epoch_files **done, struct varve_err *err)
{
    struct varve_ctl_view_copy views[VARVE_CTL_VIEWS];
    struct varve_ctl_head head;
    uint64_t live, done_ino = 0;
    int r = varve_ctl_read_head(s->w, s->ctl_fd, &head, err);

    if (r == 0)
        r = varve_ctl_read_views(s->w, s->ctl_fd, views, err);
    if (r == 0)
        r = view_is_open(v, views, &done_ino, err);
    if (r == 0 && done_ino == 0) {
        uint64_t later;

        /* A copy is no instant: the view may have ended, and lost its done map, while it was made. */
        r = varve_ctl_read_views(s->w, s->ctl_fd, views, err);
        if (r == 0)
            r = view_is_open(v, views, &later, err);
    }
    if (r < 0)
        return r;
    *done = done_ino == 0 ? NULL : varve_source_find_done(table, v->id);
    if (done_ino != 0 && (!*done || (*done)->map_ino != done_ino))
        return varve_err_set(err, EAGAIN, "the backup's map of what was released is not at hand yet");
    live = VARVE_NOW_EPOCH(head.now);
    if (live < v->boundary || live - v->boundary >= VARVE_CTL_EPOCHS)
        return varve_err_set(err, ESTALE, "the control page says epoch %" PRIu64
                             ", which cannot follow the backup's %" PRIu64, live, v->boundary);
    for (uint64_t first = v->boundary; first <= live; first += SLOTS_AT_ONCE) {
        struct varve_ctl_epoch_copy copies[SLOTS_AT_ONCE];
        uint64_t last = live - first < SLOTS_AT_ONCE ? live : first + SLOTS_AT_ONCE - 1;

        r = varve_ctl_read_epochs(s->w, s->ctl_fd, first, last, copies, err);
        for (uint64_t number = first; r == 0 && number <= last; number++) {
            const struct varve_ctl_epoch_copy *c = &copies[number - first];
            struct epoch_files *f;

            if (c->number == number && !(c->flags & VARVE_EPOCH_ENTERED) && number != live)
                continue; /* was prepared, and given up before it began */
            if (c->number != number || !(c->flags & VARVE_EPOCH_ARMED) ||
                (c->flags & VARVE_EPOCH_BROKEN))
                return say_broken(number, c, err);
            f = varve_source_find(table, number);
            if (f && atomic_load(&f->bad))
                return varve_view_say_bad_scratch(number, err);
            if (!f || f->map_ino != c->map_ino || f->scratch_ino != c->scratch_ino ||
                f->fds[FILE_LOST] < 0 || f->fds[FILE_SCRATCH] < 0)
                return varve_err_set(err, EAGAIN, "the files of epoch %" PRIu64
                                     " are not at hand yet", number);
            r = each(arg, f, c, err);
        }
        if (r != 0)
            return r;
    }
    return 0;
}

int varve_view_map_bits(struct varve_source *s, int fd, uint64_t at, uint64_t blk, uint64_t count,
                        uint8_t *bytes, size_t bytes_len, struct varve_err *err)
{
    uint64_t from = blk / 8, to = (blk + count - 1) / 8 + 1;
    ssize_t n;

    assert(to - from <= bytes_len);
    /* After what was read before, on any processor: image or scratch, and the map that is set later. */
    atomic_thread_fence(memory_order_seq_cst);
    n = s->w->pread(s->w, fd, bytes, (size_t)(to - from), at + from);
    if (n != (ssize_t)(to - from))
        return varve_err_set(err, EIO, "a map of the disk cannot be read or has been cut short");
    return 0;
}

/* --- reading -------------------------------------------------------------------------------------- */

/* For each block of a request the first epoch since the boundary that has its bit, NULL: none. */
struct look {
    struct varve_source *s;
    uint64_t blk, count;
    struct epoch_files *first[READ_BLKS_MAX];
};

static int look_at_epoch(void *arg, struct epoch_files *f, const struct varve_ctl_epoch_copy *c,
                         struct varve_err *err)
{
    struct look *l = arg;
    uint8_t bytes[READ_BLKS_MAX / 8 + 2];
    int r = varve_view_map_bits(l->s, f->fds[FILE_LIVE], 0, l->blk, l->count, bytes, sizeof(bytes), err);

    (void)c;
    for (uint64_t i = 0; r == 0 && i < l->count; i++) {
        if (!l->first[i] && varve_view_map_bit(bytes, l->blk, i))
            l->first[i] = f;
    }
    return r;
}

struct request {
    char *buf;
    uint64_t off, end;
    uint64_t *lost_off;
    bool now; /* -EAGAIN instead of waiting for a device */
};

/* A read of [start, stop) failed: reads it again by as little as a disk fails at, so that *bad is
 * where it fails.  The bytes read (all of them, if it does not fail this time) or -errno. */
static ssize_t read_by_pages(struct varve_source *s, int fd, char *buf, uint64_t start,
                             uint64_t stop, uint64_t *bad)
{
    uint64_t at, end;

    for (at = start; at < stop; at = end) {
        ssize_t n;

        end = at - at % READ_PAGE + READ_PAGE;
        if (end > stop)
            end = stop;
        *bad = at;
        n = s->w->pread_quiet(s->w, fd, buf + (at - start), (size_t)(end - at), at);
        if (n < 0)
            return n;
        if ((uint64_t)n != end - at)
            return (ssize_t)(at - start) + n;
    }
    return (ssize_t)(stop - start);
}

/* Reads the blocks [from, to) of the look into the request's buffer, from the image or a scratch. */
static int read_blocks(struct varve_source *s, const struct look *l, const struct request *rq,
                       uint64_t from, uint64_t to, struct epoch_files *f,
                       struct varve_err *err)
{
    uint64_t start = (l->blk + from) << s->g.shift, stop = varve_block_end(&s->g, l->blk + to - 1);
    int fd = f ? f->fds[FILE_SCRATCH] : s->image_fd;
    uint64_t bad = start;
    ssize_t n;

    if (start < rq->off)
        start = rq->off;
    if (stop > rq->end)
        stop = rq->end;
    if (rq->now) {
        n = s->w->pread_now(s->w, fd, rq->buf + (start - rq->off), (size_t)(stop - start), start);
        return n == (ssize_t)(stop - start) && !(f && varve_source_scratch_bad(s, f)) ? 0 : -EAGAIN;
    }
    n = s->w->pread_quiet(s->w, fd, rq->buf + (start - rq->off), (size_t)(stop - start), start);
    if (n < 0)
        n = read_by_pages(s, fd, rq->buf + (start - rq->off), start, stop, &bad);
    if (n < 0) {
        if (rq->lost_off)
            *rq->lost_off = bad;
        return varve_err_sys(err, (int)-n, "cannot read the %s at offset %" PRIu64,
                             f ? "scratch file" : "image", bad);
    }
    if ((uint64_t)n != stop - start) {
        if (rq->lost_off)
            *rq->lost_off = start + (uint64_t)n;
        return varve_err_set(err, EIO, "the %s ends before offset %" PRIu64,
                             f ? "scratch file" : "image", stop);
    }
    if (f && varve_source_scratch_bad(s, f))
        return varve_view_say_bad_scratch(f->number, err);
    return 0;
}

/* Reads again what did not come from where `l` says; *again tells whether there was any. */
static int reread(struct varve_source *s, const struct look *l, const struct request *rq,
                  struct epoch_files **have, bool *again, struct varve_err *err)
{
    int r = 0;

    *again = false;
    for (uint64_t i = 0; r == 0 && i < l->count;) {
        uint64_t from = i;
        struct epoch_files *f = l->first[i];

        if (f == have[i]) {
            i++;
            continue;
        }
        while (i < l->count && l->first[i] == f && have[i] != f)
            have[i++] = f;
        *again = true;
        r = read_blocks(s, l, rq, from, i, f, err);
    }
    return r;
}

/* The error for block l->blk + i, which cannot be had. */
static int say_lost(struct varve_source *s, const struct look *l, const struct request *rq,
                    uint64_t i, const char *why, struct varve_err *err)
{
    uint64_t off = (l->blk + i) << s->g.shift;

    if (off < rq->off)
        off = rq->off;
    if (rq->lost_off)
        *rq->lost_off = off;
    return varve_err_set(err, EIO, "what was at offset %" PRIu64 " %s", off, why);
}

static int find_lost(struct varve_source *s, const struct look *l, const struct request *rq,
                     struct varve_err *err)
{
    for (uint64_t i = 0; i < l->count;) {
        struct epoch_files *f = l->first[i];
        uint8_t bytes[READ_BLKS_MAX / 8 + 2];
        uint64_t from = i;
        int r;

        while (i < l->count && l->first[i] == f)
            i++;
        if (!f)
            continue;
        r = varve_view_map_bits(s, f->fds[FILE_LOST], 0, l->blk + from, i - from, bytes, sizeof(bytes), err);
        if (r < 0)
            return r;
        for (uint64_t j = 0; j < i - from; j++) {
            if (varve_view_map_bit(bytes, l->blk + from, j))
                return say_lost(s, l, rq, from + j,
                                "could not be kept: it is lost to this backup", err);
        }
    }
    return 0;
}

/* What was released is not told, wherever it could be read from; what is not needed is known as long
 * as it came from the image. */
static int find_gone(struct varve_source *s, const struct look *l, const struct request *rq,
                     const struct epoch_files *done, struct varve_err *err)
{
    uint8_t released[READ_BLKS_MAX / 8 + 2], unneeded[READ_BLKS_MAX / 8 + 2];
    int fd = done->fds[FILE_LIVE];
    int r = varve_view_map_bits(s, fd, varve_done_released_at(&s->g), l->blk, l->count, released,
                                sizeof(released), err);

    if (r == 0)
        r = varve_view_map_bits(s, fd, varve_done_unneeded_at(), l->blk, l->count, unneeded,
                                sizeof(unneeded), err);
    for (uint64_t i = 0; r == 0 && i < l->count; i++) {
        if (varve_view_map_bit(released, l->blk, i))
            return say_lost(s, l, rq, i, "was released: this backup has it no more", err);
        if (l->first[i] && varve_view_map_bit(unneeded, l->blk, i))
            return say_lost(s, l, rq, i,
                            "was overwritten, and was not to be kept: this backup keeps what was "
                            "dirty (preserve 'dirty')", err);
    }
    return r;
}

static int view_read(struct varve_source *s, const struct epoch_table *table,
                     const struct varve_view *v, const struct request *rq, struct varve_err *err)
{
    struct epoch_files *have[READ_BLKS_MAX] = {NULL};
    struct look l = {.s = s, .blk = rq->off >> s->g.shift};
    struct epoch_files *done = NULL;
    bool again = true;
    int r;

    l.count = ((rq->end - 1) >> s->g.shift) - l.blk + 1;
    assert(l.count <= READ_BLKS_MAX);
    r = read_blocks(s, &l, rq, 0, l.count, NULL, err);
    while (r == 0 && again) {
        memset(l.first, 0, sizeof(l.first));
        r = varve_view_walk(s, table, v, look_at_epoch, &l, &done, err);
        if (r == 0)
            r = reread(s, &l, rq, have, &again, err);
    }
    if (r == 0 && done)
        r = find_gone(s, &l, rq, done, err);
    return r == 0 ? find_lost(s, &l, rq, err) : r;
}

static int request_run(struct varve_source *s, const struct varve_view *v,
                       const struct request *rq, struct varve_err *err)
{
    uint64_t len = rq->end - rq->off;
    struct epoch_table *table;
    int r;

    if (!varve_range_ok(&s->g, rq->off, len) || len > READ_MAX)
        return varve_err_set(err, EINVAL, "the range %" PRIu64 "+%" PRIu64 " is not within the disk",
                             rq->off, len);
    if (len == 0)
        return 0;
    table = varve_source_table(s);
    r = view_read(s, table, v, rq, err);
    varve_source_table_unref(s, table);
    return r;
}

int varve_view_read(struct varve_source *s, const struct varve_view *v, void *buf, uint64_t off,
                    uint32_t len, uint64_t *lost_off, struct varve_err *err)
{
    struct request rq = {.buf = buf, .off = off, .end = off + len, .lost_off = lost_off};

    if (lost_off)
        *lost_off = off;
    return request_run(s, v, &rq, err);
}

int varve_view_read_now(struct varve_source *s, const struct varve_view *v, void *buf, uint64_t off,
                        uint32_t len)
{
    struct request rq = {.buf = buf, .off = off, .end = off + len, .now = true};
    struct varve_err unsaid = VARVE_ERR_INIT;

    return request_run(s, v, &rq, &unsaid) ? -EAGAIN : 0;
}
