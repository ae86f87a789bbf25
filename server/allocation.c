/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/allocation.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#define UNIT_MIN UINT64_C(65536)
#define BUSY_NS  100000   /* after so much asking … */
#define PAUSE_NS 1000000L /* … writers get so much time */

/* Units that one question covers at most, so that a lock is not held for a whole empty disk. */
#define ASK_UNITS 65536u

struct varve_allocation {
    struct varve_source *source;
    const struct varve_view *view;
    const struct varve_geometry *g;
    uint64_t unit, nunits;
    pthread_mutex_t lock; /* guards the two maps and what was seen; rank: a leaf */
    struct varve_bitmap *known, *hole;
    struct varve_image_run seen;
    _Atomic uint64_t busy_ns; /* since the last pause */
};

struct varve_allocation *varve_allocation_new(struct varve_source *source,
                                              const struct varve_view *view,
                                              const struct varve_geometry *g)
{
    struct varve_allocation *a = calloc(1, sizeof(*a));

    if (!a)
        return NULL;
    a->source = source;
    a->view = view;
    a->g = g;
    a->unit = varve_block_size(g) > UNIT_MIN ? varve_block_size(g) : UNIT_MIN;
    a->nunits = g->size / a->unit + (g->size % a->unit != 0);
    a->known = varve_bitmap_new(a->nunits);
    a->hole = varve_bitmap_new(a->nunits);
    pthread_mutex_init(&a->lock, NULL);
    if (!a->known || !a->hole) {
        varve_allocation_free(a);
        return NULL;
    }
    return a;
}

void varve_allocation_free(struct varve_allocation *a)
{
    if (!a)
        return;
    pthread_mutex_destroy(&a->lock);
    free(a->known);
    free(a->hole);
    free(a);
}

uint64_t varve_allocation_unit(const struct varve_allocation *a)
{
    return a->unit;
}

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* 1 hole, 0 data, for at least a byte from off. */
static int allocation_ask(struct varve_allocation *a, uint64_t off, uint64_t len, uint64_t *run_len,
                          struct varve_err *err)
{
    uint64_t start = now_ns();
    struct varve_image_run seen;
    int rc;

    pthread_mutex_lock(&a->lock);
    seen = a->seen;
    pthread_mutex_unlock(&a->lock);
    rc = varve_view_hole_run(a->source, a->view, off, len, &seen, run_len, err);
    pthread_mutex_lock(&a->lock);
    a->seen = seen;
    pthread_mutex_unlock(&a->lock);
    if (atomic_fetch_add(&a->busy_ns, now_ns() - start) >= BUSY_NS) {
        struct timespec pause = {.tv_nsec = PAUSE_NS};

        atomic_store(&a->busy_ns, 0);
        nanosleep(&pause, NULL);
    }
    if (rc == -EIO) { /* lost blocks: what was there was data */
        *run_len = varve_block_size(a->g);
        rc = 0;
    }
    if (rc >= 0 && (*run_len == 0 || *run_len > len))
        *run_len = len < varve_block_size(a->g) ? len : varve_block_size(a->g);
    return rc;
}

static void allocation_note(struct varve_allocation *a, uint64_t from, uint64_t to, bool hole)
{
    if (from >= to)
        return;
    pthread_mutex_lock(&a->lock);
    varve_bitmap_set(a->known, from, to);
    if (hole)
        varve_bitmap_set(a->hole, from, to);
    pthread_mutex_unlock(&a->lock);
}

/* Makes unit `first` known, and those behind it, up to `last`, that the same answer tells of. */
static int allocation_learn(struct varve_allocation *a, uint64_t first, uint64_t last,
                            struct varve_err *err)
{
    uint64_t off = first * a->unit, len, run_len;
    uint64_t stop = last - first > ASK_UNITS ? first + ASK_UNITS : last;
    int hole;

    len = (stop == a->nunits ? a->g->size : stop * a->unit) - off;
    hole = allocation_ask(a, off, len, &run_len, err);
    if (hole < 0)
        return hole;
    if (!hole) {
        allocation_note(a, first, (off + run_len - 1) / a->unit + 1, false);
        return 0;
    }
    /* Holes count in whole units; one that ends inside its unit may go on behind a block that the
     * answer stopped at. */
    while (run_len < len && run_len < a->unit) {
        uint64_t more;

        hole = allocation_ask(a, off + run_len, len - run_len, &more, err);
        if (hole < 0)
            return hole;
        if (!hole) {
            allocation_note(a, first, first + 1, false);
            return 0;
        }
        run_len += more;
    }
    allocation_note(a, first, run_len == len ? stop : first + run_len / a->unit, true);
    return 0;
}

int varve_allocation_run(struct varve_allocation *a, uint64_t off, uint64_t end, uint64_t *run_end,
                         struct varve_err *err)
{
    uint64_t unit = off / a->unit, last = (end - 1) / a->unit + 1, to;
    bool known, hole;
    int rc;

    for (;;) {
        pthread_mutex_lock(&a->lock);
        known = varve_bitmap_test(a->known, unit);
        if (known) {
            hole = varve_bitmap_test(a->hole, unit);
            to = varve_bitmap_find_until(a->hole, unit, last, !hole);
            to = varve_bitmap_find_until(a->known, unit, to, false);
            pthread_mutex_unlock(&a->lock);
            *run_end = to >= last ? end : to * a->unit;
            return hole;
        }
        pthread_mutex_unlock(&a->lock);
        rc = allocation_learn(a, unit, last, err);
        if (rc < 0)
            return rc;
    }
}
