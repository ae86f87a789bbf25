/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The slow part of letting go, and looking whether the kernel could keep what it took.
 *
 * A write to a scratch file that succeeded is in memory.  If it then cannot be written to the device (a
 * thin pool that is full, a bad block), the page is clean again and may be thrown away: later reads
 * return what the device has, without an error.  The kernel tells that once to each description that
 * was open.  Readers look at their own after each read (view.c); the server looks at its own when
 * somebody opens the files, so that what a reader knew and took to its grave is not forgotten, and from
 * time to time, so that the break is told soon.
 */
#include "lib/tracker-internal.h"

#include "lib/scratch.h"

#include <stdlib.h>

#define REAP_MS  100
#define CHECK_MS 1000

void varve_tracker_bury(struct varve_tracker *t, uint64_t number)
{
    if (varve_scratch_bury(t->w, &t->paths, number))
        t->dead = true;
}

void varve_tracker_check_scratch(struct varve_tracker *t, struct varve_tracked_epoch *e)
{
    uint64_t flags = atomic_load(&e->slot->flags);

    if (e->scratch_fd < 0 || !(flags & VARVE_EPOCH_ARMED) || flags & VARVE_EPOCH_BROKEN)
        return;
    if (t->w->written_back(t->w, e->scratch_fd) < 0)
        atomic_fetch_or(&e->slot->flags, VARVE_EPOCH_BROKEN | VARVE_EPOCH_BAD_SCRATCH);
}

/* What a broken epoch has kept is read by nobody, and nothing more is kept in it.  That it is broken was
 * said before.  True: there is more. */
static bool free_broken(struct varve_tracker *t, struct varve_tracked_epoch *e)
{
    atomic_store(&e->preserve, false);
    varve_tracker_uncount(t, e, UINT64_MAX);
    return varve_scratch_empty(t->w, e->scratch_fd, VARVE_SCRATCH_STEP) == 1;
}

int varve_tracker_housekeep(struct varve_tracker *t)
{
    bool armed = false, more = false;

    for (unsigned i = 0; i < VARVE_CTL_EPOCHS; i++) {
        struct varve_tracked_epoch *e = t->epochs[i];

        if (!e || e->scratch_fd < 0)
            continue;
        armed = armed || atomic_load(&e->slot->flags) & VARVE_EPOCH_ARMED;
        varve_tracker_check_scratch(t, e);
        if (atomic_load(&e->slot->flags) & VARVE_EPOCH_BROKEN)
            more = free_broken(t, e) || more;
    }
    if (t->seal_again_ns != 0 && t->w->monotonic_ns(t->w) >= t->seal_again_ns)
        varve_tracker_seal(t, NULL);
    if (t->unfreed)
        varve_tracker_free_unneeded(t, 0, t->id.geometry.nblks);
    if (t->dead)
        t->dead = varve_scratch_reap(t->w, &t->paths, VARVE_SCRATCH_STEP) == 1;
    if (t->dead || t->unfreed || more)
        return REAP_MS;
    return armed || t->seal_again_ns != 0 ? CHECK_MS : -1;
}
