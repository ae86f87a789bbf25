/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Maps that can be computed again: kept within a bound, the least recently used go first; those in
 * use stay.  Any thread.  It computes nothing and knows no disk.
 */
#ifndef VARVE_SERVER_MAP_CACHE_H
#define VARVE_SERVER_MAP_CACHE_H

#include "lib/bitmap.h"

#include <pthread.h>
#include <sys/queue.h>

/* A map's place in the cache, a part of what it belongs to.  All zero: it has none. */
struct varve_cached_map {
    TAILQ_ENTRY(varve_cached_map) link;
    struct varve_bitmap *map;
    unsigned pins;
};

struct varve_map_cache {
    pthread_mutex_t lock; /* guards all of it, and the entries in it; rank: a leaf */
    TAILQ_HEAD(varve_cached_maps, varve_cached_map) maps; /* the least recently used first */
    uint64_t limit, bytes;
    uint64_t added, dropped; /* maps, since the cache was made */
};

struct varve_map_cache_counts {
    uint64_t limit, bytes, added, dropped;
};

/* limit: bytes of maps that nobody uses just now. */
void varve_map_cache_init(struct varve_map_cache *c, uint64_t limit);
/* All entries must have been forgotten. */
void varve_map_cache_fini(struct varve_map_cache *c);

/* The entry's map, which stays until it is unpinned, or NULL: it is not there (any more). */
const struct varve_bitmap *varve_map_cache_pin(struct varve_map_cache *c,
                                               struct varve_cached_map *e);
void varve_map_cache_unpin(struct varve_map_cache *c, struct varve_cached_map *e);

/* Gives an entry without a map one, which is taken over, and pins it. */
void varve_map_cache_add(struct varve_map_cache *c, struct varve_cached_map *e,
                         struct varve_bitmap *map);

/* Frees the entry's map, if it has one; nobody has it pinned. */
void varve_map_cache_forget(struct varve_map_cache *c, struct varve_cached_map *e);

void varve_map_cache_count(struct varve_map_cache *c, struct varve_map_cache_counts *n);

#endif
