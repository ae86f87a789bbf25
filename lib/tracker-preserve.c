/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Copy before write: the preimages of blocks go from the image to the same offsets of the epoch's
 * scratch file.  Zeroes are not stored, the scratch is sparse: a hole in it under a set bit is a
 * preimage of zeroes.  No memory is allocated and nothing of another stripe is waited for.
 */
#include "lib/tracker-internal.h"

#include "lib/bitmap.h"

#include <errno.h>
#include <stdalign.h>
#include <string.h>

/* Copied at once; on the stack of the writer. */
#define COPY_BUFFER ((uint64_t)64 * 1024)
/* The grain at which zeroes are left out. */
#define ZERO_GRAIN ((uint64_t)4096)
/* Below this, sharing extents costs more than copying. */
#define CLONE_MIN ((uint64_t)64 * 1024)

static bool is_zero(const char *buf, uint64_t len)
{
    return buf[0] == 0 && memcmp(buf, buf + 1, len - 1) == 0;
}

static int preserve_store(struct varve_tracker *t, struct varve_tracked_epoch *e, const char *buf,
                          uint64_t off, uint64_t len, uint64_t *stored)
{
    int r;

    if (!varve_tracker_take_room(t, e, len))
        return -ENOSPC;
    r = t->w->pwrite(t->w, e->scratch_fd, buf, len, off);
    if (r < 0) {
        varve_tracker_give_room(t, len);
        return r;
    }
    *stored += len;
    atomic_fetch_add_explicit(&e->slot->scratch_bytes, len, memory_order_relaxed);
    return 0;
}

/* Of what stays: the sum never becomes less. */
static void preserve_sum(struct varve_tracker *t, uint64_t stored)
{
    atomic_fetch_add_explicit(&t->ctl->preserved_bytes, stored, memory_order_relaxed);
}

/* Bytes of [off, end) that the file holds as data. */
static uint64_t data_bytes(struct varve_tracker *t, int fd, uint64_t off, uint64_t end)
{
    uint64_t sum = 0;

    while (off < end) {
        int64_t data = t->w->seek_data(t->w, fd, off), hole;

        if (data == -ENXIO || (data >= 0 && (uint64_t)data >= end))
            return sum;
        if (data < 0)
            return sum + (end - off);
        hole = t->w->seek_hole(t->w, fd, (uint64_t)data);
        off = hole > data && (uint64_t)hole < end ? (uint64_t)hole : end;
        sum += off - (uint64_t)data;
    }
    return sum;
}

/* [off, end), at most COPY_BUFFER.  *stored grows by what was kept, also before an error. */
static int preserve_chunk(struct varve_tracker *t, struct varve_tracked_epoch *e, uint64_t off,
                          uint64_t end, uint64_t *stored)
{
    alignas(4096) char buf[COPY_BUFFER];
    uint64_t len = end - off, pos = 0;
    ssize_t n = t->w->pread(t->w, t->image_fd, buf, len, off);

    if (n < 0)
        return (int)n;
    if ((uint64_t)n < len)
        return -EIO; /* the image has become shorter than the disk */
    while (pos < len) {
        uint64_t stop = pos;

        while (stop < len) {
            uint64_t grain = len - stop < ZERO_GRAIN ? len - stop : ZERO_GRAIN;

            if (is_zero(buf + stop, grain))
                break;
            stop += grain;
        }
        if (stop > pos) {
            int r = preserve_store(t, e, buf + pos, off + pos, stop - pos, stored);

            if (r < 0)
                return r;
        }
        pos = stop + (stop < len ? ZERO_GRAIN : 0);
    }
    return 0;
}

/* Shares the extents of [off, end) where the file system can; 0: done. */
static int preserve_clone(struct varve_tracker *t, struct varve_tracked_epoch *e, uint64_t off,
                          uint64_t end)
{
    int64_t data = t->w->seek_data(t->w, t->image_fd, off);
    uint64_t stored;

    if (data == -ENXIO || (data >= 0 && (uint64_t)data >= end))
        return 0; /* one hole: zeroes */
    if (!t->may_clone || end - off < CLONE_MIN || !varve_tracker_take_room(t, e, end - off))
        return -ENOTSUP;
    for (uint64_t at = off; at < end;) {
        ssize_t n = t->w->copy(t->w, t->image_fd, at, e->scratch_fd, at, end - at);

        if (n <= 0) {
            varve_tracker_give_room(t, end - off);
            return n < 0 ? (int)n : -EIO;
        }
        at += (uint64_t)n;
    }
    stored = data_bytes(t, e->scratch_fd, off, end);
    varve_tracker_give_room(t, end - off - stored);
    atomic_fetch_add_explicit(&e->slot->scratch_bytes, stored, memory_order_relaxed);
    preserve_sum(t, stored);
    return 0;
}

static void preserve_failed(struct varve_tracker *t, struct varve_tracked_epoch *e, uint64_t from,
                            uint64_t to)
{
    uint64_t newly = 0;

    for (uint64_t blk = from; blk < to; blk++)
        newly += !varve_abits_test(e->lost, blk);
    /* Said before the bit: whoever finds the bit finds this (I2). */
    varve_abits_set(e->lost, from, to);
    if (t->on_scratch_full == VARVE_SCRATCH_BREAK) { /* housekeeping frees what it has kept */
        atomic_fetch_or(&e->slot->flags, VARVE_EPOCH_BROKEN);
        atomic_store(&e->preserve, false);
    }
    atomic_fetch_add_explicit(&e->slot->lost_blks, newly, memory_order_relaxed);
    atomic_fetch_add_explicit(&t->ctl->lost_blks, newly, memory_order_relaxed);
}

static bool is_full(int r)
{
    return r == -ENOSPC || r == -EDQUOT;
}

/* Up to which block; see varve_tracker_preserve(). */
static uint64_t preserve_run(struct varve_tracker *t, struct varve_tracked_epoch *e, uint64_t from,
                             uint64_t to, bool cheap_copy)
{
    const struct varve_geometry *g = &t->id.geometry;
    uint64_t start = from << g->shift, end = varve_block_end(g, to - 1), stored = 0;

    if (cheap_copy && preserve_clone(t, e, start, end) == 0)
        return to;
    for (uint64_t off = start; off < end;) {
        uint64_t stop = end - off < COPY_BUFFER ? end : off + COPY_BUFFER;
        int r = preserve_chunk(t, e, off, stop, &stored);

        if (is_full(r) && varve_tracker_may_wait(t)) {
            varve_tracker_uncount(t, e, stored); /* the block is begun again later */
            return off >> g->shift;
        }
        if (r < 0)
            preserve_failed(t, e, off >> g->shift, ((stop - 1) >> g->shift) + 1);
        off = stop;
        if (off % varve_block_size(g) == 0 || off == end) { /* chunks are blocks, or parts of one */
            preserve_sum(t, stored);
            stored = 0;
        }
    }
    return to;
}

uint64_t varve_tracker_preserve(struct varve_tracker *t, struct varve_tracked_epoch *e,
                                uint64_t from, uint64_t to, bool cheap_copy)
{
    while (from < to) {
        uint64_t stop, done;

        if (varve_tracker_needed(t, e->number, from, to, &stop)) {
            done = preserve_run(t, e, from, stop, cheap_copy);
            if (done < stop)
                return done;
        }
        from = stop;
    }
    return to;
}
