/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/changed.h"

#include "server/disk.h"

#include <stdlib.h>

/* Runs are kept where they take no more than this part of the map's memory. */
#define PART 4u

/* The first run from `from` on.  False: there is none. */
static bool run_next(const struct varve_bitmap *map, uint64_t from, struct varve_block_run *run)
{
    run->from = varve_bitmap_find(map, from, true);
    run->to = varve_bitmap_find(map, run->from, false);
    return run->from < map->nbits;
}

struct varve_block_runs *varve_block_runs_of(const struct varve_bitmap *map)
{
    size_t most = varve_bitmap_nwords(map) * 8 / PART / sizeof(struct varve_block_run), n = 0;
    struct varve_block_run run = {0};
    struct varve_block_runs *r;

    while (n <= most && run_next(map, run.to, &run))
        n++;
    if (n > most)
        return NULL;
    r = malloc(sizeof(*r) + n * sizeof(r->runs[0]));
    if (!r)
        return NULL;
    r->nblks = map->nbits;
    r->n = n;
    run.to = 0;
    for (size_t i = 0; i < n && run_next(map, run.to, &run); i++)
        r->runs[i] = run;
    return r;
}

/* Whether that is the first run that ends behind blk. */
static bool runs_is_at(const struct varve_block_runs *r, size_t i, uint64_t blk)
{
    return i <= r->n && (i == 0 || r->runs[i - 1].to <= blk) && (i == r->n || r->runs[i].to > blk);
}

/* Index of the first run that ends behind blk, or n.  Whoever walks finds it near the one before.
 */
static size_t runs_find(const struct varve_block_runs *r, size_t near, uint64_t blk)
{
    size_t low = 0, high = r->n;

    for (size_t i = near; i < near + 2; i++)
        if (runs_is_at(r, i, blk))
            return i;
    while (low < high) {
        size_t mid = low + (high - low) / 2;

        if (r->runs[mid].to > blk)
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

bool varve_changed_run(struct varve_changed *c, uint64_t blk, uint64_t last, uint64_t *to)
{
    bool among = true;

    *to = last;
    if (c->map) {
        among = varve_bitmap_test(c->map, blk);
        *to = varve_bitmap_find_until(c->map, blk, last, !among);
    } else if (c->runs) {
        size_t i = runs_find(c->runs, c->at, blk);
        uint64_t end = last;

        c->at = i;
        among = i < c->runs->n && c->runs->runs[i].from <= blk;
        if (i < c->runs->n)
            end = among ? c->runs->runs[i].to : c->runs->runs[i].from;
        if (end < last)
            *to = end;
    }
    return among;
}

uint64_t varve_changed_bytes(const struct varve_changed *c, const struct varve_geometry *g)
{
    uint64_t bytes = 0;

    if (c->map)
        return varve_dirty_bytes(g, c->map);
    if (!c->runs)
        return g->size;
    for (size_t i = 0; i < c->runs->n; i++) {
        const struct varve_block_run *run = &c->runs->runs[i];

        bytes += varve_block_end(g, run->to - 1) - (run->from << g->shift);
    }
    return bytes;
}
