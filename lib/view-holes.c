/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Which parts of a view were holes, proved as reads are (view.c).  Doubt says data.
 */
#include "lib/view-internal.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>

/* Blocks of one answer about holes. */
#define HOLE_BLKS_MAX ((uint64_t)16384)

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
    r = varve_view_map_bits(l->s, f->fds[FILE_LIVE], 0, l->blk, l->count, bytes, sizeof(bytes),
                            err);
    if (r < 0)
        return r;
    set = varve_view_map_bit(bytes, l->blk, 0);
    while (i < l->count && varve_view_map_bit(bytes, l->blk, i) == set)
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

/* The same of the image, which need not be asked again for what it has answered before: bits that
 * are looked at later and are clear prove that nothing was written there since the boundary. */
static int image_hole(struct varve_source *s, struct varve_image_run *seen, uint64_t off,
                      uint64_t end, uint64_t *stop)
{
    struct varve_image_run now = seen ? *seen : (struct varve_image_run){0};

    if (off < now.from || off >= now.to) {
        now.from = off;
        now.hole = file_hole(s, s->image_fd, off, s->g.size, &now.to);
    }
    if (seen)
        *seen = now;
    *stop = now.to < end ? now.to : end;
    return now.hole;
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

static bool map_bit_of_two(const uint8_t *a, const uint8_t *b, uint64_t blk, uint64_t i)
{
    return varve_view_map_bit(a, blk, i) || varve_view_map_bit(b, blk, i);
}

/* A hole in a scratch is a preimage of zeroes only if it was kept at all, still is (else reading it is
 * to say so: data), and if the scratch has not been emptied meanwhile. */
static int prove_scratch_hole(struct varve_source *s, const struct epoch_table *table,
                              const struct varve_view *v, const struct hole_look *l, int *hole,
                              uint64_t off, uint64_t *stop, struct varve_err *err)
{
    uint8_t lost[HOLE_BLKS_MAX / 8 + 2], gone[HOLE_BLKS_MAX / 8 + 2] = {0};
    uint64_t count = ((*stop - 1) >> s->g.shift) - l->blk + 1, i;
    struct epoch_files *done;
    int r = varve_view_map_bits(s, l->source->fds[FILE_LOST], 0, l->blk, count, lost, sizeof(lost),
                                err);

    if (r == 0)
        r = varve_view_walk(s, table, v, hole_look_again, NULL, &done, err);
    if (r == 0 && done)
        r = varve_view_map_bits(s, done->fds[FILE_LIVE], varve_done_unneeded_at(), l->blk, count,
                                gone, sizeof(gone), err);
    if (r < 0)
        return r;
    *hole = !map_bit_of_two(lost, gone, l->blk, 0);
    for (i = 1; i < count && map_bit_of_two(lost, gone, l->blk, i) == !*hole; i++)
        continue;
    if (varve_block_end(&s->g, l->blk + i - 1) < *stop)
        *stop = varve_block_end(&s->g, l->blk + i - 1);
    assert(*stop > off);
    return 0;
}

int varve_view_hole_run(struct varve_source *s, const struct varve_view *v, uint64_t off,
                        uint64_t max_len, struct varve_image_run *seen, uint64_t *run_len,
                        struct varve_err *err)
{
    struct hole_look l = {.s = s, .blk = off >> s->g.shift};
    struct epoch_files *done;
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
    hole = image_hole(s, seen, off, end, &stop);
    hole = whole_blocks(&s->g, hole, off, &stop);
    l.count = ((stop - 1) >> s->g.shift) - l.blk + 1;
    table = varve_source_table(s);
    r = varve_view_walk(s, table, v, hole_look_at_epoch, &l, &done, err);
    if (r == 0) {
        uint64_t known = varve_block_end(&s->g, l.blk + l.count - 1);

        if (l.source) {
            hole = file_hole(s, l.source->fds[FILE_SCRATCH], off, known, &stop);
            if (varve_source_scratch_bad(s, l.source))
                hole = 0; /* reading is to say so; and the walk below, from now on */
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
