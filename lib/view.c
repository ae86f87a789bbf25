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
 * the scratch was read proves that it was still there.  Bits are only ever set, and the epochs before
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

/* Blocks of one answer about holes. */
#define HOLE_BLKS_MAX ((uint64_t)16384)

/* What a disk that fails at a byte fails at, at least. */
#define READ_PAGE UINT64_C(4096)

/* Slots of the control page copied at once. */
#define SLOTS_AT_ONCE 32u

static int view_is_open(const struct varve_view *v, const struct varve_ctl_view_copy *views,
                        struct varve_err *err)
{
    for (unsigned i = 0; i < VARVE_CTL_VIEWS; i++) {
        if (views[i].id == v->id && views[i].boundary == v->boundary) {
            if (views[i].state == VARVE_VIEW_OPEN)
                return 0;
            break;
        }
    }
    return varve_err_set(err, ESTALE, "the backup has ended or is broken: its point in time is gone");
}

/* Calls each() for the entered epochs from the view's boundary to the live one, oldest first, as the
 * control page says now.  It stops at a nonzero result and returns it. */
static int view_walk(struct varve_source *s, const struct epoch_table *table,
                     const struct varve_view *v,
                     int (*each)(void *arg, struct epoch_files *f,
                                 const struct varve_ctl_epoch_copy *c, struct varve_err *err),
                     void *arg, struct varve_err *err)
{
    struct varve_ctl_view_copy views[VARVE_CTL_VIEWS];
    struct varve_ctl_head head;
    uint64_t live;
    int r = varve_ctl_read_head(s->w, s->ctl_fd, &head, err);

    if (r == 0)
        r = varve_ctl_read_views(s->w, s->ctl_fd, views, err);
    if (r == 0)
        r = view_is_open(v, views, err);
    if (r < 0)
        return r;
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
                return varve_err_set(err, ESTALE,
                                     "epoch %" PRIu64 " did not keep what was overwritten: the "
                                     "backup is broken", number);
            f = varve_source_find(table, number);
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

/* The bytes of a map file that hold the bits [blk, blk + count). */
static int map_bits(struct varve_source *s, int fd, uint64_t blk, uint64_t count, uint8_t *bytes,
                    size_t bytes_len, struct varve_err *err)
{
    uint64_t from = blk / 8, to = (blk + count - 1) / 8 + 1;
    ssize_t n;

    assert(to - from <= bytes_len);
    /* After what was read before, on any processor: image or scratch, and the map that is set later. */
    atomic_thread_fence(memory_order_seq_cst);
    n = s->w->pread(s->w, fd, bytes, (size_t)(to - from), from);
    if (n != (ssize_t)(to - from))
        return varve_err_set(err, EIO, "a map of the disk cannot be read or has been cut short");
    return 0;
}

/* Whether block blk + i is set in what map_bits() read for blk. */
static bool map_bit(const uint8_t *bytes, uint64_t blk, uint64_t i)
{
    uint64_t bit = blk % 8 + i;

    return bytes[bit / 8] >> (bit % 8) & 1;
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
    int r = map_bits(l->s, f->fds[FILE_LIVE], l->blk, l->count, bytes, sizeof(bytes), err);

    (void)c;
    for (uint64_t i = 0; r == 0 && i < l->count; i++) {
        if (!l->first[i] && map_bit(bytes, l->blk, i))
            l->first[i] = f;
    }
    return r;
}

struct request {
    char *buf;
    uint64_t off, end;
    uint64_t *lost_off;
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
        n = s->w->pread(s->w, fd, buf + (at - start), (size_t)(end - at), at);
        if (n < 0)
            return n;
        if ((uint64_t)n != end - at)
            return (ssize_t)(at - start) + n;
    }
    return (ssize_t)(stop - start);
}

/* Reads the blocks [from, to) of the look into the request's buffer, from the image or a scratch. */
static int read_blocks(struct varve_source *s, const struct look *l, const struct request *rq,
                       uint64_t from, uint64_t to, const struct epoch_files *f,
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
    n = s->w->pread(s->w, fd, rq->buf + (start - rq->off), (size_t)(stop - start), start);
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
        r = map_bits(s, f->fds[FILE_LOST], l->blk + from, i - from, bytes, sizeof(bytes), err);
        if (r < 0)
            return r;
        for (uint64_t j = 0; j < i - from; j++) {
            if (map_bit(bytes, l->blk + from, j)) {
                uint64_t off = (l->blk + from + j) << s->g.shift;

                if (off < rq->off)
                    off = rq->off;
                if (rq->lost_off)
                    *rq->lost_off = off;
                return varve_err_set(err, EIO, "what was at offset %" PRIu64
                                     " could not be kept: it is lost to this backup", off);
            }
        }
    }
    return 0;
}

static int view_read(struct varve_source *s, const struct epoch_table *table,
                     const struct varve_view *v, const struct request *rq, struct varve_err *err)
{
    struct epoch_files *have[READ_BLKS_MAX] = {NULL};
    struct look l = {.s = s, .blk = rq->off >> s->g.shift};
    bool again = true;
    int r;

    l.count = ((rq->end - 1) >> s->g.shift) - l.blk + 1;
    assert(l.count <= READ_BLKS_MAX);
    r = read_blocks(s, &l, rq, 0, l.count, NULL, err);
    while (r == 0 && again) {
        memset(l.first, 0, sizeof(l.first));
        r = view_walk(s, table, v, look_at_epoch, &l, err);
        if (r == 0)
            r = reread(s, &l, rq, have, &again, err);
    }
    return r == 0 ? find_lost(s, &l, rq, err) : r;
}

int varve_view_read(struct varve_source *s, const struct varve_view *v, void *buf, uint64_t off,
                    uint32_t len, uint64_t *lost_off, struct varve_err *err)
{
    struct request rq = {buf, off, off + len, lost_off};
    struct epoch_table *table;
    int r;

    if (lost_off)
        *lost_off = off;
    if (!varve_range_ok(&s->g, off, len) || len > READ_MAX)
        return varve_err_set(err, EINVAL, "the range %" PRIu64 "+%u is not within the disk", off,
                             len);
    if (len == 0)
        return 0;
    table = varve_source_table(s);
    r = view_read(s, table, v, &rq, err);
    varve_source_table_unref(s, table);
    return r;
}

/* --- holes ---------------------------------------------------------------------------------------- */

struct hole_look {
    struct varve_source *s;
    uint64_t blk, count;          /* count shrinks to the blocks that share the first one's source */
    struct epoch_files *source;   /* of the first block; NULL: the image */
};

static int hole_look_at_epoch(void *arg, struct epoch_files *f,
                              const struct varve_ctl_epoch_copy *c, struct varve_err *err)
{
    struct hole_look *l = arg;
    uint8_t bytes[HOLE_BLKS_MAX / 8 + 2];
    uint64_t i = 0;
    bool set;
    int r;

    (void)c;
    if (l->source)
        return 0; /* an older epoch has the first block; where it ends is known */
    r = map_bits(l->s, f->fds[FILE_LIVE], l->blk, l->count, bytes, sizeof(bytes), err);
    if (r < 0)
        return r;
    set = map_bit(bytes, l->blk, 0);
    while (i < l->count && map_bit(bytes, l->blk, i) == set)
        i++;
    l->count = i;
    if (set)
        l->source = f;
    return 0;
}

/* Whether [off, ...) of a file begins with a hole, and where that ends (at most `end`). */
static int file_hole(struct varve_source *s, int fd, uint64_t off, uint64_t end, uint64_t *stop)
{
    int64_t data = s->w->seek_data(s->w, fd, off), hole;

    *stop = end;
    if (data == -ENXIO)
        return 1;
    if (data < 0)
        return 0; /* doubt says data */
    if ((uint64_t)data > off) {
        if ((uint64_t)data < end)
            *stop = (uint64_t)data;
        return 1;
    }
    hole = s->w->seek_hole(s->w, fd, off);
    if (hole > 0 && (uint64_t)hole > off && (uint64_t)hole < end)
        *stop = (uint64_t)hole;
    return 0;
}

/* Where an answer for [off, stop) of a file leaves whole blocks: holes shrink, data grows. */
static int whole_blocks(const struct varve_geometry *g, int hole, uint64_t off, uint64_t *stop)
{
    uint64_t size = varve_block_size(g);

    if (*stop >= g->size || *stop % size == 0)
        return hole;
    if (hole && *stop - *stop % size > off) {
        *stop -= *stop % size;
        return 1;
    }
    *stop += size - *stop % size; /* a block that is partly data is data */
    if (*stop > g->size)
        *stop = g->size;
    return 0;
}

static int hole_look_again(void *arg, struct epoch_files *f, const struct varve_ctl_epoch_copy *c,
                           struct varve_err *err)
{
    (void)arg;
    (void)f;
    (void)c;
    (void)err;
    return 0;
}

/* A hole in a scratch is a preimage of zeroes only if it was kept at all (else reading it is to say
 * so: data), and if the scratch has not been emptied meanwhile. */
static int prove_scratch_hole(struct varve_source *s, const struct epoch_table *table,
                              const struct varve_view *v, const struct hole_look *l, int *hole,
                              uint64_t off, uint64_t *stop, struct varve_err *err)
{
    uint8_t bytes[HOLE_BLKS_MAX / 8 + 2];
    uint64_t count = ((*stop - 1) >> s->g.shift) - l->blk + 1, i = 0;
    bool lost;
    int r = map_bits(s, l->source->fds[FILE_LOST], l->blk, count, bytes, sizeof(bytes), err);

    if (r < 0)
        return r;
    lost = map_bit(bytes, l->blk, 0);
    while (i < count && map_bit(bytes, l->blk, i) == lost)
        i++;
    if (varve_block_end(&s->g, l->blk + i - 1) < *stop)
        *stop = varve_block_end(&s->g, l->blk + i - 1);
    assert(*stop > off);
    *hole = !lost;
    return view_walk(s, table, v, hole_look_again, NULL, err);
}

int varve_view_hole_run(struct varve_source *s, const struct varve_view *v, uint64_t off,
                        uint64_t max_len, uint64_t *run_len, struct varve_err *err)
{
    struct hole_look l = {.s = s, .blk = off >> s->g.shift};
    struct epoch_table *table;
    uint64_t end, stop;
    int hole, r;

    if (off >= s->g.size || max_len == 0 || off % varve_block_size(&s->g) != 0)
        return varve_err_set(err, EINVAL, "offset %" PRIu64 " starts no block of the disk", off);
    end = max_len < s->g.size - off ? off + max_len : s->g.size;
    l.count = ((end - 1) >> s->g.shift) - l.blk + 1;
    if (l.count > HOLE_BLKS_MAX) {
        l.count = HOLE_BLKS_MAX;
        end = varve_block_end(&s->g, l.blk + l.count - 1);
    }
    /* The image is asked before the bits: then a clear bit proves the answer. */
    hole = file_hole(s, s->image_fd, off, end, &stop);
    hole = whole_blocks(&s->g, hole, off, &stop);
    l.count = ((stop - 1) >> s->g.shift) - l.blk + 1;
    table = varve_source_table(s);
    r = view_walk(s, table, v, hole_look_at_epoch, &l, err);
    if (r == 0) {
        uint64_t known = varve_block_end(&s->g, l.blk + l.count - 1);

        if (l.source) {
            hole = file_hole(s, l.source->fds[FILE_SCRATCH], off, known, &stop);
            hole = whole_blocks(&s->g, hole, off, &stop);
        }
        if (stop > known)
            stop = known;
        if (stop > end)
            stop = end;
        if (l.source && hole)
            r = prove_scratch_hole(s, table, v, &l, &hole, off, &stop, err);
        *run_len = stop - off;
        if (r == 0)
            r = hole;
    }
    varve_source_table_unref(s, table);
    return r;
}

/* --- what is known of a view ------------------------------------------------------------------------ */

struct usage {
    uint64_t scratch_bytes, lost_blks;
};

static int usage_of_epoch(void *arg, struct epoch_files *f, const struct varve_ctl_epoch_copy *c,
                          struct varve_err *err)
{
    struct usage *u = arg;

    (void)f;
    (void)err;
    u->scratch_bytes += c->scratch_bytes;
    u->lost_blks += c->lost_blks;
    return 0;
}

int varve_view_usage(struct varve_source *s, const struct varve_view *v, uint64_t *scratch_bytes,
                     uint64_t *lost_bytes, struct varve_err *err)
{
    struct usage u = {0, 0};
    struct epoch_table *table = varve_source_table(s);
    int r = view_walk(s, table, v, usage_of_epoch, &u, err);

    varve_source_table_unref(s, table);
    *scratch_bytes = u.scratch_bytes;
    *lost_bytes = u.lost_blks << s->g.shift;
    return r;
}

int varve_view_check(struct varve_source *s, const struct varve_view *v, struct varve_err *err)
{
    uint64_t scratch_bytes, lost_bytes;

    return varve_view_usage(s, v, &scratch_bytes, &lost_bytes, err);
}

struct lost_look {
    struct varve_source *s;
    struct varve_bitmap *into;
    uint64_t word; /* of the chunk */
    size_t nwords;
    uint64_t seen[512]; /* blocks of the chunk that an older epoch has */
};

static int lost_of_epoch(void *arg, struct epoch_files *f, const struct varve_ctl_epoch_copy *c,
                         struct varve_err *err)
{
    struct lost_look *l = arg;
    uint64_t lost[512], dirty[512];
    ssize_t len = (ssize_t)(l->nwords * 8);

    /* The live map first: what is lost is set in the other before it is set here. */
    (void)c;
    if (l->s->w->pread(l->s->w, f->fds[FILE_LIVE], dirty, (size_t)len, l->word * 8) != len)
        return varve_err_set(err, EIO, "a map of the disk cannot be read or has been cut short");
    atomic_thread_fence(memory_order_seq_cst);
    if (l->s->w->pread(l->s->w, f->fds[FILE_LOST], lost, (size_t)len, l->word * 8) != len)
        return varve_err_set(err, EIO, "a map of the disk cannot be read or has been cut short");
    for (size_t i = 0; i < l->nwords; i++) {
        l->into->words[l->word + i] |= lost[i] & ~l->seen[i];
        l->seen[i] |= dirty[i];
    }
    return 0;
}

int varve_view_or_lost(struct varve_source *s, const struct varve_view *v,
                       struct varve_bitmap *into, struct varve_err *err)
{
    struct epoch_table *table = varve_source_table(s);
    size_t nwords = varve_bitmap_nwords(into);
    int r = 0;

    for (size_t at = 0; r == 0 && at < nwords; at += 512) {
        struct lost_look l = {.s = s, .into = into, .word = at};

        l.nwords = nwords - at < 512 ? nwords - at : 512;
        r = view_walk(s, table, v, lost_of_epoch, &l, err);
    }
    varve_source_table_unref(s, table);
    return r;
}
