/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What preimages may take, and what is done when there is no more of it.
 *
 * Two limits: scratch-max, counted exactly, and the reserve that is left to others on the scratch's
 * file system, where the guest's image and the state directory may lie as well.  The latter is asked
 * for so many bytes in advance and so long (BUDGET_*), not for each block.
 *
 * With on-scratch-full=wait a write that finds no room goes back out of the epoch, holds no lock and
 * looks again after a while; so neither a boundary nor another write waits for it.  The time runs from
 * when room first ran out, for all writes at once: a guest does not wait for it once per write.  It
 * begins anew when there was room for a piece again.
 *
 * A guest whose own write finds the file system full goes before all backups: what they keep there
 * cannot be believed from then on (said first), and goes.
 */
#include "lib/tracker-internal.h"

#include "include/varve.h"
#include "lib/scratch.h"

#include <errno.h>
#include <time.h>

#define BUDGET_BYTES (UINT64_C(16) << 20)
#define BUDGET_NS    UINT64_C(100000000)
#define LOOK_AGAIN   20000000 /* ns */

#define RESERVE_DEFAULT (UINT64_C(64) << 20)

/* One percent, at least 64 MiB, at most a tenth. */
static uint64_t reserve_of(const struct varve_tracker *t, uint64_t total)
{
    uint64_t bytes = total / 100;

    if (t->scratch_reserve != VARVE_SCRATCH_RESERVE_DEFAULT)
        return t->scratch_reserve;
    if (bytes < RESERVE_DEFAULT)
        bytes = RESERVE_DEFAULT;
    return bytes < total / 10 ? bytes : total / 10;
}

/* What the file system can spare now; one that does not say is asked by writing to it. */
static uint64_t room_spare(struct varve_tracker *t, int fd)
{
    uint64_t total, free, reserve;

    if (t->w->room(t->w, fd, &total, &free) < 0)
        return UINT64_MAX;
    reserve = reserve_of(t, total);
    return free > reserve ? free - reserve : 0;
}

static bool room_on_file_system(struct varve_tracker *t, int fd, uint64_t len)
{
    uint64_t now, spare;

    if (t->scratch_reserve == 0)
        return true;
    now = t->w->monotonic_ns(t->w);
    if (now < atomic_load_explicit(&t->budget_until_ns, memory_order_relaxed) &&
        atomic_fetch_sub_explicit(&t->budget, (int64_t)len, memory_order_relaxed) >= (int64_t)len)
        return true;
    spare = room_spare(t, fd);
    if (spare < len) {
        atomic_store_explicit(&t->budget, 0, memory_order_relaxed);
        return false;
    }
    spare = (spare - len) / 4; /* others take of it, too */
    atomic_store_explicit(&t->budget, (int64_t)(spare < BUDGET_BYTES ? spare : BUDGET_BYTES),
                          memory_order_relaxed);
    atomic_store_explicit(&t->budget_until_ns, now + BUDGET_NS, memory_order_relaxed);
    return true;
}

/* Who waited, or did not any more, has seen the end of it. */
static void room_is_back(struct varve_tracker *t, int fd, uint64_t used)
{
    uint64_t want = VARVE_PIECE_MAX;

    if (t->scratch_max != 0 && t->scratch_max / 4 < want)
        want = t->scratch_max / 4;
    if ((t->scratch_max == 0 || used + want <= t->scratch_max) &&
        (t->scratch_reserve == 0 || room_spare(t, fd) >= want))
        atomic_store(&t->full_since_ns, 0);
}

bool varve_tracker_take_room(struct varve_tracker *t, struct varve_tracked_epoch *e, uint64_t len)
{
    uint64_t used = atomic_fetch_add(&t->scratch_used, len) + len;

    if ((t->scratch_max == 0 || used <= t->scratch_max) &&
        room_on_file_system(t, e->scratch_fd, len)) {
        if (atomic_load_explicit(&t->full_since_ns, memory_order_relaxed) != 0)
            room_is_back(t, e->scratch_fd, used);
        return true;
    }
    atomic_fetch_sub(&t->scratch_used, len);
    return false;
}

void varve_tracker_give_room(struct varve_tracker *t, uint64_t len)
{
    atomic_fetch_sub(&t->scratch_used, len);
}

void varve_tracker_uncount(struct varve_tracker *t, struct varve_tracked_epoch *e, uint64_t bytes)
{
    uint64_t counted = atomic_load(&e->slot->scratch_bytes), less;

    do
        less = bytes < counted ? bytes : counted;
    while (!atomic_compare_exchange_weak(&e->slot->scratch_bytes, &counted, counted - less));
    atomic_fetch_sub(&t->scratch_used, less);
}

bool varve_tracker_may_wait(struct varve_tracker *t)
{
    uint64_t since = 0, now;

    if (t->on_scratch_full != VARVE_SCRATCH_WAIT)
        return false;
    now = t->w->monotonic_ns(t->w);
    if (atomic_compare_exchange_strong(&t->full_since_ns, &since, now))
        since = now;
    return now - since < (uint64_t)t->scratch_wait_ms * 1000000u;
}

void varve_tracker_wait_for_room(struct varve_tracker *t)
{
    struct timespec ts = {.tv_nsec = LOOK_AGAIN};

    atomic_fetch_add(&t->waits, 1);
    nanosleep(&ts, NULL);
}

#define LIVES ((uint64_t)(VARVE_EPOCH_ENTERED | VARVE_EPOCH_ARMED))

/* Its preimages take space that the image could have. */
static bool takes_space(struct varve_tracker *t, const struct varve_tracked_epoch *e, uint64_t dev)
{
    struct varve_stat st;

    return e && e->scratch_fd >= 0 &&
           (atomic_load(&e->slot->flags) & LIVES) == LIVES &&
           t->w->stat(t->w, e->scratch_fd, &st) == 0 && st.dev == dev;
}

/* The guest waits for one step of each, and no more. */
static void empty_those_that_are_broken(struct varve_tracker *t)
{
    for (unsigned i = 0; i < VARVE_CTL_EPOCHS; i++) {
        struct varve_tracked_epoch *e = t->epochs[i];

        if (!e || e->scratch_fd < 0 || !(atomic_load(&e->slot->flags) & VARVE_EPOCH_BROKEN))
            continue;
        varve_tracker_uncount(t, e, UINT64_MAX);
        varve_scratch_empty(t->w, e->scratch_fd, VARVE_SCRATCH_STEP);
    }
    varve_scratch_reap(t->w, &t->paths, VARVE_SCRATCH_STEP);
}

void varve_tracker_make_room(struct varve_tracker *t)
{
    struct varve_stat image;
    uint64_t bytes = 0;

    if (t->image_fd < 0 || t->w->stat(t->w, t->image_fd, &image) < 0)
        return;
    pthread_mutex_lock(&t->epochs_lock); /* a second one comes when there is room */
    for (unsigned i = 0; i < VARVE_CTL_EPOCHS; i++) {
        if (takes_space(t, t->epochs[i], image.dev))
            bytes += atomic_load(&t->epochs[i]->slot->scratch_bytes);
    }
    for (unsigned i = 0; bytes > 0 && i < VARVE_CTL_EPOCHS; i++) {
        struct varve_tracked_epoch *e = t->epochs[i];

        if (!takes_space(t, e, image.dev))
            continue;
        atomic_fetch_or(&e->slot->flags, VARVE_EPOCH_BROKEN | VARVE_EPOCH_GAVE_WAY);
        atomic_store(&e->preserve, false);
    }
    atomic_thread_fence(memory_order_seq_cst); /* said before it is done */
    empty_those_that_are_broken(t);
    pthread_mutex_unlock(&t->epochs_lock);
}
