/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What is known of a view beside its content: whether it can be read, what it uses, what is lost to it
 * and what it released.
 */
#include "lib/view-internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>

struct usage {
    struct varve_source *s;
    uint64_t scratch_bytes, lost_blks;
};

static int usage_of_epoch(void *arg, struct epoch_files *f, const struct varve_ctl_epoch_copy *c,
                          struct varve_err *err)
{
    struct usage *u = arg;

    if (varve_source_scratch_bad(u->s, f))
        return varve_view_say_bad_scratch(f->number, err);
    u->scratch_bytes += c->scratch_bytes;
    u->lost_blks += c->lost_blks;
    return 0;
}

int varve_view_usage(struct varve_source *s, const struct varve_view *v, uint64_t *scratch_bytes,
                     uint64_t *lost_bytes, struct varve_err *err)
{
    struct usage u = {.s = s};
    struct epoch_table *table = varve_source_table(s);
    struct epoch_files *done;
    int r = varve_view_walk(s, table, v, usage_of_epoch, &u, &done, err);

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
    struct epoch_files *done;
    size_t nwords = varve_bitmap_nwords(into);
    int r = 0;

    for (size_t at = 0; r == 0 && at < nwords; at += 512) {
        struct lost_look l = {.s = s, .into = into, .word = at};

        l.nwords = nwords - at < 512 ? nwords - at : 512;
        r = varve_view_walk(s, table, v, lost_of_epoch, &l, &done, err);
    }
    varve_source_table_unref(s, table);
    return r;
}

/* --- what was released ---------------------------------------------------------------------------- */

static int released_of_epoch(void *arg, struct epoch_files *f, const struct varve_ctl_epoch_copy *c,
                             struct varve_err *err)
{
    (void)arg;
    (void)f;
    (void)c;
    (void)err;
    return 0;
}

int varve_view_released(struct varve_source *s, const struct varve_view *v, uint64_t *bytes,
                        struct varve_err *err)
{
    struct epoch_table *table = varve_source_table(s);
    struct epoch_files *done;
    int r = varve_view_walk(s, table, v, released_of_epoch, NULL, &done, err);

    *bytes = 0;
    if (r == 0 && done &&
        s->w->pread(s->w, done->fds[FILE_LIVE], bytes, sizeof(*bytes),
                    offsetof(struct varve_done_head, released_bytes)) != sizeof(*bytes))
        r = varve_err_set(err, EIO, "the map of what was released has been cut short");
    varve_source_table_unref(s, table);
    return r;
}

int varve_view_or_released(struct varve_source *s, const struct varve_view *v,
                           struct varve_bitmap *into, struct varve_err *err)
{
    struct epoch_table *table = varve_source_table(s);
    size_t nwords = varve_bitmap_nwords(into);
    struct epoch_files *done;
    int r = varve_view_walk(s, table, v, released_of_epoch, NULL, &done, err);

    for (size_t at = 0; r == 0 && done && at < nwords; at += 512) {
        size_t n = nwords - at < 512 ? nwords - at : 512;
        uint64_t words[512];

        if (s->w->pread(s->w, done->fds[FILE_LIVE], words, n * 8,
                        varve_done_released_at(&s->g) + at * 8) != (ssize_t)(n * 8))
            r = varve_err_set(err, EIO, "the map of what was released has been cut short");
        for (size_t i = 0; r == 0 && i < n; i++)
            into->words[at + i] |= words[i];
    }
    varve_source_table_unref(s, table);
    return r;
}

/* Blocks of one answer. */
#define GONE_BLKS_MAX ((uint64_t)16384)
#define GONE_BYTES    (GONE_BLKS_MAX / 8 + 2)

struct gone_look {
    struct varve_source *s;
    uint64_t blk, count;
    struct epoch_files *done; /* NULL: nothing is gone */
    uint8_t written[GONE_BYTES];
};

static int written_in_epoch(void *arg, struct epoch_files *f, const struct varve_ctl_epoch_copy *c,
                            struct varve_err *err)
{
    struct gone_look *l = arg;
    uint8_t bytes[GONE_BYTES] = {0};
    int r;

    (void)c;
    if (!l->done)
        return 0;
    r = varve_view_map_bits(l->s, f->fds[FILE_LIVE], 0, l->blk, l->count, bytes, sizeof(bytes), err);
    for (size_t i = 0; r == 0 && i < sizeof(bytes); i++)
        l->written[i] |= bytes[i];
    return r;
}

static int gone_look(struct gone_look *l, uint64_t *count, struct varve_err *err)
{
    uint8_t released[GONE_BYTES], unneeded[GONE_BYTES];
    bool gone = false;
    uint64_t i;
    int fd = l->done->fds[FILE_LIVE];
    int r = varve_view_map_bits(l->s, fd, varve_done_released_at(&l->s->g), l->blk, l->count,
                                released, sizeof(released), err);

    if (r == 0)
        r = varve_view_map_bits(l->s, fd, varve_done_unneeded_at(), l->blk, l->count, unneeded,
                                sizeof(unneeded), err);
    for (i = 0; r == 0 && i < l->count; i++) {
        bool is = varve_view_map_bit(released, l->blk, i) ||
                  (varve_view_map_bit(unneeded, l->blk, i) &&
                   varve_view_map_bit(l->written, l->blk, i));

        if (i > 0 && is != gone)
            break;
        gone = is;
    }
    *count = i;
    return r < 0 ? r : gone;
}

int varve_view_gone_run(struct varve_source *s, const struct varve_view *v, uint64_t off,
                        uint64_t max_len, uint64_t *run_len, struct varve_err *err)
{
    struct gone_look l = {.s = s, .blk = off >> s->g.shift};
    struct epoch_table *table;
    uint64_t end, count, known;
    int r;

    if (off >= s->g.size || max_len == 0 || off % varve_block_size(&s->g) != 0)
        return varve_err_set(err, EINVAL, "offset %" PRIu64 " starts no block of the disk", off);
    end = max_len < s->g.size - off ? off + max_len : s->g.size;
    count = l.count = ((end - 1) >> s->g.shift) - l.blk + 1;
    if (l.count > GONE_BLKS_MAX)
        l.count = GONE_BLKS_MAX;
    table = varve_source_table(s);
    r = varve_view_walk(s, table, v, written_in_epoch, &l, &l.done, err);
    if (r == 0 && l.done)
        r = gone_look(&l, &count, err);
    varve_source_table_unref(s, table);
    known = varve_block_end(&s->g, l.blk + count - 1);
    *run_len = (known < end ? known : end) - off;
    return r;
}
