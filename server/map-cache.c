/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/map-cache.h"

#include <assert.h>
#include <stdlib.h>

static uint64_t map_bytes(const struct varve_bitmap *map)
{
    return varve_bitmap_nwords(map) * sizeof(map->words[0]);
}

void varve_map_cache_init(struct varve_map_cache *c, uint64_t limit)
{
    *c = (struct varve_map_cache){.limit = limit};
    pthread_mutex_init(&c->lock, NULL);
    TAILQ_INIT(&c->maps);
}

void varve_map_cache_fini(struct varve_map_cache *c)
{
    assert(TAILQ_EMPTY(&c->maps));
    pthread_mutex_destroy(&c->lock);
}

static void cache_remove(struct varve_map_cache *c, struct varve_cached_map *e)
{
    TAILQ_REMOVE(&c->maps, e, link);
    c->bytes -= map_bytes(e->map);
    free(e->map);
    e->map = NULL;
}

static void cache_shrink(struct varve_map_cache *c)
{
    struct varve_cached_map *e, *next;

    for (e = TAILQ_FIRST(&c->maps); e && c->bytes > c->limit; e = next) {
        next = TAILQ_NEXT(e, link);
        if (e->pins)
            continue;
        cache_remove(c, e);
        c->dropped++;
    }
}

const struct varve_bitmap *varve_map_cache_pin(struct varve_map_cache *c,
                                               struct varve_cached_map *e)
{
    const struct varve_bitmap *map;

    pthread_mutex_lock(&c->lock);
    map = e->map;
    if (map) {
        e->pins++;
        TAILQ_REMOVE(&c->maps, e, link);
        TAILQ_INSERT_TAIL(&c->maps, e, link);
    }
    pthread_mutex_unlock(&c->lock);
    return map;
}

void varve_map_cache_unpin(struct varve_map_cache *c, struct varve_cached_map *e)
{
    pthread_mutex_lock(&c->lock);
    assert(e->pins > 0);
    e->pins--;
    cache_shrink(c);
    pthread_mutex_unlock(&c->lock);
}

void varve_map_cache_add(struct varve_map_cache *c, struct varve_cached_map *e,
                         struct varve_bitmap *map)
{
    pthread_mutex_lock(&c->lock);
    assert(!e->map && !e->pins);
    e->map = map;
    e->pins = 1;
    TAILQ_INSERT_TAIL(&c->maps, e, link);
    c->bytes += map_bytes(map);
    c->added++;
    cache_shrink(c);
    pthread_mutex_unlock(&c->lock);
}

void varve_map_cache_forget(struct varve_map_cache *c, struct varve_cached_map *e)
{
    pthread_mutex_lock(&c->lock);
    assert(!e->pins);
    if (e->map)
        cache_remove(c, e);
    pthread_mutex_unlock(&c->lock);
}

void varve_map_cache_count(struct varve_map_cache *c, struct varve_map_cache_counts *n)
{
    pthread_mutex_lock(&c->lock);
    *n = (struct varve_map_cache_counts){
        .limit = c->limit, .bytes = c->bytes, .added = c->added, .dropped = c->dropped};
    pthread_mutex_unlock(&c->lock);
}
