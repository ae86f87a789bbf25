/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/changes.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct varve_changes {
    _Atomic unsigned refs;
    struct varve_bitmap *map; /* given ones, as a map or as runs; both NULL: every block */
    struct varve_block_runs *runs;

    /* those to be computed; disk NULL: none */
    struct varve_disk *disk;
    pthread_mutex_t lock; /* one computes; rank: before a disk's timeline_lock and the cache's */
    struct varve_cached_map cached;
    struct varve_change_set set;
    uint64_t granularity, boundary;
};

struct varve_changes *varve_changes_new(struct varve_bitmap *map)
{
    struct varve_changes *c = calloc(1, sizeof(*c));

    if (!c) {
        free(map);
        return NULL;
    }
    c->refs = 1;
    pthread_mutex_init(&c->lock, NULL);
    c->runs = map ? varve_block_runs_of(map) : NULL;
    if (c->runs)
        free(map);
    else
        c->map = map;
    return c;
}

struct varve_changes *varve_changes_new_lazy(struct varve_disk *disk,
                                             const struct varve_change_set *set,
                                             uint64_t granularity, uint64_t boundary)
{
    struct varve_changes *c = varve_changes_new(NULL);

    if (!c)
        return NULL;
    c->disk = disk;
    c->granularity = granularity;
    c->boundary = boundary;
    if (varve_change_set_copy(&c->set, set) < 0) {
        varve_changes_unref(c);
        return NULL;
    }
    return c;
}

struct varve_changes *varve_changes_ref(struct varve_changes *c)
{
    c->refs++;
    return c;
}

void varve_changes_unref(struct varve_changes *c)
{
    if (!c || --c->refs > 0)
        return;
    pthread_mutex_destroy(&c->lock);
    if (c->disk)
        varve_map_cache_forget(&c->disk->daemon->maps, &c->cached);
    varve_change_set_clear(&c->set);
    free(c->runs);
    free(c->map);
    free(c);
}

static int changes_compute(struct varve_changes *c, const struct varve_bitmap **out,
                           struct varve_err *err)
{
    struct varve_bitmap *map = varve_bitmap_new(c->disk->identity.geometry.nblks);
    int rc;

    if (!map)
        return varve_err_set(err, ENOMEM, "Disk '%s': no memory for a map", c->disk->name);
    rc = varve_disk_union(c->disk, &c->set, 0, c->boundary, map, err);
    if (rc < 0) {
        free(map);
        return rc;
    }
    varve_changes_round(&c->disk->identity.geometry, c->granularity, map);
    varve_map_cache_add(&c->disk->daemon->maps, &c->cached, map);
    *out = map;
    return 0;
}

int varve_changes_get(struct varve_changes *c, struct varve_changed *out, struct varve_err *err)
{
    int rc = 0;

    *out = (struct varve_changed){.map = c->map, .runs = c->runs};
    if (!c->disk)
        return 0;
    pthread_mutex_lock(&c->lock);
    out->map = varve_map_cache_pin(&c->disk->daemon->maps, &c->cached);
    if (!out->map)
        rc = changes_compute(c, &out->map, err);
    pthread_mutex_unlock(&c->lock);
    return rc;
}

bool varve_changes_get_now(struct varve_changes *c, struct varve_changed *out)
{
    *out = (struct varve_changed){.map = c->map, .runs = c->runs};
    if (!c->disk)
        return true;
    if (pthread_mutex_trylock(&c->lock) != 0)
        return false;
    out->map = varve_map_cache_pin(&c->disk->daemon->maps, &c->cached);
    pthread_mutex_unlock(&c->lock);
    return out->map != NULL;
}

void varve_changes_put(struct varve_changes *c)
{
    if (c->disk)
        varve_map_cache_unpin(&c->disk->daemon->maps, &c->cached);
}

/* The blocks of a range; none if it lies behind the disk's end. */
static void heal_blocks(const struct varve_geometry *g, const struct varve_cat_range *r,
                        uint64_t *from, uint64_t *to)
{
    uint64_t len = r->len;

    *from = *to = 0;
    if (r->off >= g->size || len == 0)
        return;
    if (len > g->size - r->off)
        len = g->size - r->off;
    *from = r->off >> g->shift;
    *to = ((r->off + len - 1) >> g->shift) + 1;
}

int varve_changes_since(const struct varve_cat_checkpoint *since, struct varve_change_set *set)
{
    memset(set, 0, sizeof(*set));
    if (varve_change_set_add_span(set, since->epoch, VARVE_SPAN_OPEN) < 0 ||
        varve_change_set_add_ranges(set, since->heal, since->nheal) < 0) {
        varve_change_set_clear(set);
        return -ENOMEM;
    }
    set->has_blocks = since->has_blocks;
    memcpy(set->blocks, since->blocks, sizeof(set->blocks));
    return 0;
}

void varve_changes_round(const struct varve_geometry *g, uint64_t granularity,
                         struct varve_bitmap *map)
{
    if (granularity > varve_block_size(g))
        varve_bitmap_round(map, granularity >> g->shift);
}

uint64_t varve_changes_heal_count(const struct varve_geometry *g,
                                  const struct varve_cat_checkpoint *since,
                                  const struct varve_bitmap *map)
{
    uint64_t n = 0, done = 0, from, to;

    for (size_t i = 0; i < since->nheal; i++) {
        heal_blocks(g, &since->heal[i], &from, &to);
        if (from < done)
            from = done; /* ranges are in order, but may share a block */
        while ((from = varve_bitmap_find_until(map, from, to, false)) < to) {
            uint64_t end = varve_bitmap_find_until(map, from, to, true);

            n += end - from;
            from = end;
        }
        if (to > done)
            done = to;
    }
    return n;
}

bool varve_changes_heals(const struct varve_geometry *g, const struct varve_cat_checkpoint *since,
                         uint64_t blk)
{
    for (size_t i = 0; i < since->nheal; i++) {
        uint64_t from, to;

        heal_blocks(g, &since->heal[i], &from, &to);
        if (blk >= from && blk < to)
            return true;
    }
    return false;
}
