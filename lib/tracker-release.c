/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Which blocks are still to be kept, and freeing what is not.
 *
 *      an appliance or the daemon           a guest's first write to the block     a reader
 *      bits in the done map, fence          under the stripe's lock:
 *      every stripe's lock once               needed?  keep it : don't             read the scratch
 *      punch the scratch                      set the live bit, fence              fence, look at
 * the map
 *
 * A writer that found the block needed has kept it before the stripes were passed, so what it kept
 * is punched as well; one that comes later finds the bits.  A reader that read a scratch after it
 * was punched, or where nothing was kept, finds the bits too: they were set before either (I2,
 * I10). Should the server die between the bits and the punch, its successor's housekeeping frees it.
 *
 * A block is needed in an epoch as long as one open view since before that epoch does not have it
 * in its done map.  It is looked at only where a block is about to be kept: on its first write in
 * an epoch.  Punching holds the scratch's inode lock, which such a write needs too: it is done in
 * short pieces, and as much time as it took is left between.
 */
#include "lib/tracker-internal.h"

#include "include/varve.h"
#include "lib/bitmap.h"

#include <time.h>

/* At a stretch. */
#define WORK_NS UINT64_C(1000000)
/* For what is not one request's: longer, and the control thread is missed.  What is left is freed
 * later. */
#define WORK_MAX_NS     UINT64_C(2000000000)
#define WORK_OFFLINE_NS UINT64_C(500000000)

/* Done maps of the views that need something of an epoch. */
struct needs {
    bool all; /* one of them needs every block */
    unsigned n;
    _Atomic uint64_t *unneeded[VARVE_CTL_VIEWS];
};

static void needs_of(struct varve_tracker *t, uint64_t epoch, struct needs *n)
{
    n->all = !atomic_load_explicit(&t->has_done, memory_order_acquire);
    n->n = 0;
    for (unsigned i = 0; !n->all && i < VARVE_CTL_VIEWS; i++) {
        struct varve_ctl_view *v = &t->ctl->views[i];
        struct varve_done *d;

        if (atomic_load(&v->state) != VARVE_VIEW_OPEN || atomic_load(&v->boundary) > epoch)
            continue;
        d = atomic_load(&t->done[i]);
        if (d)
            n->unneeded[n->n++] = d->unneeded;
        else
            n->all = true;
    }
}

static bool needs_block(const struct needs *n, uint64_t blk)
{
    for (unsigned i = 0; i < n->n; i++) {
        if (!varve_abits_test(n->unneeded[i], blk))
            return true;
    }
    return n->all;
}

static bool needs_run(const struct needs *n, uint64_t from, uint64_t to, uint64_t *stop)
{
    bool needed = needs_block(n, from);

    *stop = to;
    if (n->all)
        return needed;
    for (*stop = from + 1; *stop < to && needs_block(n, *stop) == needed; ++*stop)
        continue;
    return needed;
}

bool varve_tracker_needed(struct varve_tracker *t, uint64_t epoch, uint64_t from, uint64_t to,
                          uint64_t *stop)
{
    struct needs n;

    needs_of(t, epoch, &n);
    return needs_run(&n, from, to, stop);
}

void varve_tracker_pass_stripes(struct varve_tracker *t)
{
    for (unsigned i = 0; i < VARVE_STRIPES; i++) {
        pthread_mutex_lock(&t->stripes[i]);
        pthread_mutex_unlock(&t->stripes[i]);
    }
}

/* --- freeing
 * -------------------------------------------------------------------------------------- */

struct pace {
    uint64_t worked_ns, since_ns;
};

/* Guests first.  False: it has taken long enough. */
static bool pace(struct varve_tracker *t, struct pace *p)
{
    uint64_t took = t->w->monotonic_ns(t->w) - p->since_ns;
    struct timespec ts = {.tv_nsec = (long)(took < WORK_NS * 10 ? took : WORK_NS * 10)};

    if (took < WORK_NS)
        return true;
    p->worked_ns += took;
    if (p->worked_ns >= (t->image_fd >= 0 ? WORK_MAX_NS : WORK_OFFLINE_NS))
        return false;
    if (t->image_fd < 0) { /* there is no guest, but one may be waiting for the disk's lock */
        p->since_ns = t->w->monotonic_ns(t->w);
        return true;
    }
    nanosleep(&ts, NULL);
    p->since_ns = t->w->monotonic_ns(t->w);
    return true;
}

/* [off, end) of the scratch is data.  False: enough. */
static bool free_extent(struct varve_tracker *t, struct varve_tracked_epoch *e,
                        const struct needs *n, struct pace *p, uint64_t off, uint64_t end)
{
    const struct varve_geometry *g = &t->id.geometry;
    bool more = true;

    while (more && off < end) {
        uint64_t last = off + varve_piece_len(off, end - off), run_end, stop, punch_end;
        bool needed = needs_run(n, off >> g->shift, ((last - 1) >> g->shift) + 1, &stop);

        run_end = varve_block_end(g, stop - 1);
        if (run_end > last)
            run_end = last;
        /* Of a file system's block only a part of which is punched nothing is freed. */
        punch_end = run_end == g->size ? g->nblks << g->shift : run_end;
        if (!needed && t->w->punch(t->w, e->scratch_fd, off, punch_end - off) == 0)
            varve_tracker_uncount(t, e, run_end - off);
        off = run_end;
        more = pace(t, p);
    }
    return more;
}

static bool free_of_epoch(struct varve_tracker *t, struct varve_tracked_epoch *e, struct pace *p,
                          uint64_t off, uint64_t end)
{
    bool more = true;
    struct needs n;

    needs_of(t, e->number, &n);
    while (more && !n.all && off < end) {
        int64_t data = t->w->seek_data(t->w, e->scratch_fd, off), hole;
        uint64_t stop = end;

        if (data < 0 || (uint64_t)data >= end)
            break;
        hole = t->w->seek_hole(t->w, e->scratch_fd, (uint64_t)data);
        if (hole > data && (uint64_t)hole < end)
            stop = (uint64_t)hole;
        more = free_extent(t, e, &n, p, (uint64_t)data, stop);
        off = stop;
    }
    return more;
}

void varve_tracker_free_unneeded(struct varve_tracker *t, uint64_t from, uint64_t to)
{
    const struct varve_geometry *g = &t->id.geometry;
    struct pace p = {.since_ns = t->w->monotonic_ns(t->w)};
    bool more = from < to, all = from == 0 && to == g->nblks;

    varve_tracker_pass_stripes(t);
    for (unsigned i = 0; more && i < VARVE_CTL_EPOCHS; i++) {
        struct varve_tracked_epoch *e = t->epochs[i];

        if (e && e->scratch_fd >= 0 && e->number != t->next && atomic_load(&e->preserve))
            more = free_of_epoch(t, e, &p, from << g->shift, varve_block_end(g, to - 1));
    }
    if (!more)
        t->unfreed = from < to;
    else if (all)
        t->unfreed = false;
}
