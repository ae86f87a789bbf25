/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Boundaries: prepare, quiesce, swap or abort, seal; and the end of views.
 *
 *      idle ──prepare──▶ prepared ──quiesce──▶ closed ──swap──▶ idle, in the new epoch
 *       ▲                   │  ▲                  │
 *       └─────abort─────────┘  └── deadline ──────┘   (a waiting writer, or a late swap)
 *
 * All that can be slow (making and syncing files) is done while prepared; between close and swap
 * only memory is touched.  A number once prepared is never used again, entered or not.
 */
#include "lib/tracker-internal.h"

#include "lib/epoch-era.h"
#include "lib/epoch-file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* What could not be sealed is tried again by housekeeping so much later. */
#define SEAL_AGAIN_NS UINT64_C(5000000000)

/* A number that was taken and will not be entered.  Its slot keeps it, without flags: readers that
 * walk over it must know that it never was. */
static void tracker_never_was(struct varve_tracker *t, uint64_t number)
{
    struct varve_ctl_epoch *slot = &t->ctl->epochs[number % VARVE_CTL_EPOCHS];
    char path[PATH_MAX];

    t->w->unlink(t->w, varve_path_epoch(&t->paths, number, number, path));
    atomic_store(&slot->flags, 0);
    atomic_store(&slot->number, number);
}

static void tracker_drop_prepared(struct varve_tracker *t)
{
    struct varve_tracked_epoch *e = t->next ? varve_tracker_find(t, t->next) : NULL;

    if (!e)
        return;
    pthread_mutex_lock(&t->files);
    varve_tracked_epoch_drop(t, e);
    pthread_mutex_unlock(&t->files);
    tracker_never_was(t, t->next);
    t->next = 0;
}

int varve_tracker_prepare_as(struct varve_tracker *t, bool arm, uint64_t number, uint64_t prev,
                             struct varve_err *err)
{
    int r;

    atomic_store(&t->ctl->prepared, number);
    r = varve_epoch_file_create(t->w, &t->paths, t->id.uuid, &t->id.geometry, number, prev, err);
    if (r == 0) {
        pthread_mutex_lock(&t->files);
        r = varve_tracked_epoch_create(t, number, arm, err);
        pthread_mutex_unlock(&t->files);
    }
    if (r < 0) {
        tracker_never_was(t, number);
        return r;
    }
    t->next = number;
    return 0;
}

int varve_tracker_prepare(struct varve_tracker *t, bool arm, uint64_t *epoch,
                          struct varve_err *err)
{
    uint64_t live = varve_tracker_epoch(t), view = varve_tracker_oldest_view(t), number;
    int r;

    if (t->private_why[0])
        return varve_err_set(err, ENOTRECOVERABLE, "%s", t->private_why);
    tracker_drop_prepared(t);
    number = atomic_load(&t->ctl->prepared) + 1;
    /* The slot of an epoch that is still here is passed over; views reach no further than the table. */
    for (unsigned i = 0; *varve_tracker_slot(t, number) && i < VARVE_CTL_EPOCHS; i++)
        number++;
    if (view != UINT64_MAX && number - view >= VARVE_CTL_EPOCHS)
        return varve_err_set(err, ENOSPC,
                             "%u boundaries were made since the oldest running backup began: "
                             "end that backup first",
                             VARVE_CTL_EPOCHS);
    if (*varve_tracker_slot(t, number))
        return varve_err_set(err, ENOSPC, "%u epochs could not be sealed", VARVE_CTL_EPOCHS);
    if (varve_era(number) != varve_era(live))
        return varve_err_set(err, EOVERFLOW, "there were too many boundaries");
    r = varve_tracker_prepare_as(t, arm || view != UINT64_MAX, number, live, err);
    if (r < 0)
        return r;
    *epoch = number;
    return 0;
}

/* The freeze has ended now, or when its deadline passed. */
static void tracker_count_freeze(struct varve_tracker *t, bool made)
{
    uint64_t now = t->w->monotonic_ns(t->w);
    uint64_t latest = t->closed_ns + (uint64_t)t->freeze_timeout_ms * 1000000u;
    struct varve_ctl *ctl = t->ctl;
    uint64_t took;

    t->reopened_ns = now < latest ? now : latest;
    took = t->reopened_ns - t->closed_ns;
    atomic_store(&ctl->freeze_ns_last, took);
    if (took > atomic_load(&ctl->freeze_ns_max))
        atomic_store(&ctl->freeze_ns_max, took);
    atomic_fetch_add(made ? &ctl->freezes : &ctl->freezes_failed, 1);
}

/* Guests get at least as much time between two boundaries as the last one took from them. */
static void tracker_leave_a_gap(struct varve_tracker *t)
{
    uint64_t gap = t->reopened_ns - t->closed_ns, now = t->w->monotonic_ns(t->w);
    uint64_t until = t->reopened_ns + gap;

    if (now < until) {
        struct timespec ts = {(time_t)((until - now) / 1000000000u),
                              (long)((until - now) % 1000000000u)};

        nanosleep(&ts, NULL);
    }
}

int varve_tracker_quiesce(struct varve_tracker *t, struct varve_err *err)
{
    int r;

    if (t->next == 0)
        return varve_err_set(err, EINVAL, "no boundary is prepared");
    /* A second deadline would keep waiting writers longer than the first one promised. */
    if (atomic_load(&t->ctl->now) & VARVE_NOW_QUIESCE)
        return varve_err_set(err, EINVAL, "writes are being held back already");
    if (t->reopened_ns < t->closed_ns) /* writers let themselves go on, and nobody has told us yet */
        tracker_count_freeze(t, false);
    tracker_leave_a_gap(t);
    t->closed_ns = t->w->monotonic_ns(t->w);
    r = varve_gate_close(&t->gate, t->freeze_timeout_ms);
    if (r < 0) {
        tracker_count_freeze(t, false);
        return varve_err_set(err, -r, "writes under way did not end within %u ms",
                             t->freeze_timeout_ms);
    }
    return 0;
}

static struct varve_ctl_view *tracker_free_view(struct varve_tracker *t)
{
    for (unsigned i = 0; i < VARVE_CTL_VIEWS; i++) {
        if (atomic_load(&t->ctl->views[i].state) != VARVE_VIEW_OPEN)
            return &t->ctl->views[i];
    }
    return NULL;
}

int varve_tracker_swap(struct varve_tracker *t, uint64_t epoch, uint64_t view_id,
                       struct varve_err *err)
{
    struct varve_tracked_epoch *e = varve_tracker_find(t, epoch);
    struct varve_ctl_view *view = NULL;
    int r;

    if (!e || epoch != t->next)
        return varve_err_set(err, EINVAL, "epoch %" PRIu64 " is not prepared", epoch);
    if (view_id != 0) {
        if (!atomic_load(&e->preserve))
            return varve_err_set(err, EINVAL, "epoch %" PRIu64 " was not prepared for a view",
                                 epoch);
        view = tracker_free_view(t);
        if (!view)
            return varve_err_set(err, ENOSPC, "%u backups of this disk run already",
                                 VARVE_CTL_VIEWS);
        atomic_store(&view->id, view_id);
        atomic_store(&view->boundary, epoch);
        atomic_store(&view->state, VARVE_VIEW_OPEN);
    }
    atomic_fetch_or(&e->slot->flags, VARVE_EPOCH_ENTERED);
    r = varve_gate_swap(&t->gate, epoch);
    if (r == 0 || t->reopened_ns < t->closed_ns)
        tracker_count_freeze(t, r == 0);
    if (r < 0) {
        atomic_fetch_and(&e->slot->flags, ~(uint64_t)VARVE_EPOCH_ENTERED);
        if (view)
            atomic_store(&view->state, VARVE_VIEW_FREE);
        return varve_err_set(err, -r, "the boundary came too late: writes went on after %u ms",
                             t->freeze_timeout_ms);
    }
    t->next = 0;
    return 0;
}

void varve_tracker_abort(struct varve_tracker *t)
{
    varve_gate_open(&t->gate);
    if (t->reopened_ns < t->closed_ns)
        tracker_count_freeze(t, false);
    tracker_drop_prepared(t);
}

static int seal(struct varve_tracker *t, const struct varve_tracked_epoch *e, struct varve_err *err)
{
    struct varve_bitmap *more;
    int r;

    /* Who takes the disk over seals before it has a log; its live epoch gets what is in doubt. */
    if (!t->intent || !varve_intent_image_failed(t->intent))
        return varve_epoch_file_finish(t->w, &t->paths, &t->id.geometry, e->number, e->bits,
                                       VARVE_EPOCH_FILE_SEALED, err);
    more = varve_bitmap_new(t->id.geometry.nblks);
    if (!more)
        return varve_err_set(err, ENOMEM, "no memory for the map of epoch %" PRIu64, e->number);
    for (size_t i = 0; i < varve_bitmap_nwords(more); i++)
        more->words[i] = atomic_load(&e->bits[i]);
    varve_tracker_add_doubted(t, more);
    r = varve_epoch_file_finish(t->w, &t->paths, &t->id.geometry, e->number, more->words,
                                VARVE_EPOCH_FILE_SEALED, err);
    free(more);
    return r;
}

int varve_tracker_seal(struct varve_tracker *t, struct varve_err *err)
{
    uint64_t live = varve_tracker_epoch(t);
    int r = 0;

    for (unsigned i = 0; i < VARVE_CTL_EPOCHS; i++) {
        struct varve_tracked_epoch *e = t->epochs[i];
        int sealed;

        if (!e || e->sealed || e->number >= live)
            continue;
        pthread_mutex_lock(&t->files); /* what the flusher writes would be of before */
        sealed = seal(t, e, err);
        /* Gone: it was sealed, and has been merged or freed, before we learned that it was. */
        if (sealed == 0 || sealed == -EEXIST || sealed == -ENOENT)
            varve_tracked_epoch_sealed(t, e);
        else
            r = sealed;
        pthread_mutex_unlock(&t->files);
    }
    t->seal_again_ns = r < 0 ? t->w->monotonic_ns(t->w) + SEAL_AGAIN_NS : 0;
    varve_tracker_tidy(t);
    return r;
}

int varve_tracker_end_view(struct varve_tracker *t, uint64_t view_id, struct varve_err *err)
{
    bool any = false;

    if (view_id == 0)
        return varve_err_set(err, EINVAL, "0 is no view");
    for (unsigned i = 0; i < VARVE_CTL_VIEWS; i++) {
        struct varve_ctl_view *v = &t->ctl->views[i];

        if (atomic_load(&v->id) == view_id && atomic_load(&v->state) == VARVE_VIEW_OPEN) {
            atomic_store(&v->state, VARVE_VIEW_ENDED);
            any = true;
        }
    }
    varve_tracker_tidy(t);
    if (any && atomic_load(&t->has_done)) /* what it alone needed of epochs that stay */
        varve_tracker_free_unneeded(t, 0, t->id.geometry.nblks);
    return 0;
}
