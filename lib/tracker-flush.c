/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The flusher's step: what is done now and then, off the data path, so that a crash of the host costs
 * little.
 *
 *     bits     the pages of live maps that have changed go to the epochs' files
 *     cool     seldom: regions that nobody has touched since the last look:
 *                  mark them cooling
 *                  wait until all who were inside the gate have left
 *                  bits of all epochs that are not sealed: to their files, sync
 *                  the image: sync, through an opening of its own
 *                  those that are still untouched are cold                        I5
 *     log      what has become cold, or that we live, is written
 *     told     the control page says what of this failed, for whoever looks (I8: the guest goes on)
 *
 * Who sets a bit, or writes, has been inside the gate; so after the wait all that was done in a cooling
 * region before it was marked is in maps and image, and both are then made durable.  An epoch that is
 * sealed meanwhile is durable by that.  A boundary meanwhile adds an epoch in which nobody has touched
 * the region, or somebody has, and then it does not become cold.
 *
 * What fails:
 *     the wait      a guest's write takes long: nothing cools this time
 *     bits, log     nothing cools; all pages are written again (epoch-file-flush.c, intent.c)
 *     the image     a part of it that readers have seen may be gone, now or when its pages leave memory,
 *                   and nobody can say which part, but that it lies in hot regions.  These count as
 *                   written in the live epoch from now on and their preimages as lost (a reader gets an
 *                   error, never the wrong bytes), and they stay hot: the next sync would say that all
 *                   is well.  Whoever hears of it, the guest's flush too, says so in the control page
 *                   first.  So each later server of this boot does the same when it comes, none makes a
 *                   clean stop, and a crash of the host finds them in the log.
 */
#include "lib/tracker-internal.h"

#include "lib/bitmap.h"
#include "lib/epoch-file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Beside the map of an epoch: names, and what the catalogue may need. */
#define ROOM_SPARE (UINT64_C(256) << 10)

/* --- bits ---------------------------------------------------------------------------- */

static int epoch_open(struct varve_tracker *t, struct varve_tracked_epoch *e, struct varve_err *err)
{
    if (!e->flushed)
        e->flushed =
            calloc((size_t)varve_epoch_file_npages(&t->id.geometry) + 1, sizeof(*e->flushed));
    if (!e->flushed)
        return varve_err_set(err, ENOMEM, "no memory to flush a map");
    if (e->file_fd >= 0)
        return 0;
    e->file_fd = varve_epoch_file_open_flush(t->w, &t->paths, &t->id.geometry, e->number, err);
    return e->file_fd < 0 ? e->file_fd : 0;
}

/* `files` is held. */
static int epoch_flush(struct varve_tracker *t, struct varve_tracked_epoch *e, bool sync,
                       struct varve_err *err)
{
    int64_t pages;
    int r = epoch_open(t, e, err);

    if (r < 0)
        return r;
    pages = varve_epoch_file_flush(t->w, e->file_fd, &t->id.geometry, e->bits, e->flushed, err);
    if (pages < 0)
        return (int)pages;
    e->unsynced |= pages > 0;
    if (!sync || !e->unsynced)
        return 0;
    r = t->w->sync(t->w, e->file_fd);
    if (r < 0) { /* nobody knows what of it is durable */
        memset(e->flushed, 0,
               (size_t)varve_epoch_file_npages(&t->id.geometry) * sizeof(*e->flushed));
        return varve_err_sys(err, -r, "cannot make the map of an epoch durable");
    }
    e->unsynced = false;
    return 0;
}

/* All epochs that are not durably sealed. */
static int flush_bits(struct varve_tracker *t, bool sync, struct varve_err *err)
{
    int first = 0;

    for (unsigned i = 0; i < VARVE_CTL_EPOCHS; i++) {
        struct varve_tracked_epoch *e;
        int r = 0;

        pthread_mutex_lock(&t->files);
        e = t->epochs[i];
        if (e && !e->sealed && e->number <= varve_tracker_epoch(t))
            r = epoch_flush(t, e, sync, first < 0 ? NULL : err);
        pthread_mutex_unlock(&t->files);
        if (r < 0 && first == 0)
            first = r;
    }
    return first;
}

/* --- the image
 * -------------------------------------------------------------------------------------- */

static void lose(struct varve_tracker *t, struct varve_tracked_epoch *e, uint64_t from, uint64_t to)
{
    uint64_t newly = 0;

    for (uint64_t blk = from; blk < to; blk++)
        newly += !varve_abits_test(e->lost, blk);
    varve_abits_set(e->lost, from, to);
    atomic_fetch_add_explicit(&e->slot->lost_blks, newly, memory_order_relaxed);
    atomic_fetch_add_explicit(&t->ctl->lost_blks, newly, memory_order_relaxed);
}

/* Of a log that is not kept nobody knows what was durable; but who only makes boundaries has read what
 * the last server's says. */
static bool may_be_lost(const struct varve_tracker *t, uint64_t region)
{
    if (!t->intent->off)
        return atomic_load(&t->intent->state[region]) == VARVE_INTENT_STUCK;
    if (t->image_fd < 0 && t->found.trusted)
        return t->found.bits[region / 64] >> (region % 64) & 1;
    return true;
}

/* Only memory is touched inside the gate. */
bool varve_tracker_doubt_image(struct varve_tracker *t)
{
    uint32_t blks = t->intent->shift - t->id.geometry.shift;
    struct varve_tracked_epoch *live;
    unsigned shard;

    if (!varve_intent_take_image_doubt(t->intent))
        return false;
    varve_intent_stick(t->intent);
    pthread_mutex_lock(&t->files);
    live = varve_tracker_find(t, varve_gate_enter(&t->gate, &shard));
    for (uint64_t i = 0; i < t->intent->nregions; i++) {
        uint64_t from = i << blks, to = (i + 1) << blks;

        if (!may_be_lost(t, i))
            continue;
        if (to > t->id.geometry.nblks)
            to = t->id.geometry.nblks;
        for (unsigned n = 0; n < VARVE_CTL_EPOCHS; n++) {
            /* Said before the bit: whoever finds the bit finds this (I2). */
            if (t->epochs[n] && atomic_load(&t->epochs[n]->preserve))
                lose(t, t->epochs[n], from, to);
        }
        varve_abits_set(live->bits, from, to);
    }
    varve_gate_leave(&t->gate, shard);
    pthread_mutex_unlock(&t->files);
    return true;
}

/* What the kernel could not write it may drop whenever it wants to, until the host is started anew.  In
 * the epoch that was live when it was told views have lost it; in later ones only the file says that it
 * was written: views read what is there, and the next increment has it again. */
void varve_tracker_add_doubted(struct varve_tracker *t, struct varve_bitmap *into)
{
    uint32_t blks = t->intent->shift - t->id.geometry.shift;

    for (uint64_t i = 0; i < t->intent->nregions; i++) {
        if (may_be_lost(t, i))
            varve_bitmap_set(into, i << blks, (i + 1) << blks);
    }
}

void varve_tracker_image_failed(struct varve_tracker *t)
{
    varve_intent_fail_image(t->intent);
}

static int sync_image(struct varve_tracker *t, struct varve_err *err)
{
    int r = t->w->sync(t->w, t->sync_fd);

    if (r == 0)
        return 0;
    varve_intent_fail_image(t->intent);
    varve_tracker_doubt_image(t);
    return varve_err_sys(err, -r,
                         "the image could not be made durable, what was written lately counts as "
                         "written again");
}

/* --- cooling -------------------------------------------------------------------------- */

static int cool_down(struct varve_tracker *t, struct varve_err *err)
{
    bool cold = false;
    int r = 0;

    if (varve_intent_begin_cool(t->intent) == 0)
        return 0;
    if (varve_gate_grace(&t->gate, t->freeze_timeout_ms) == 0) {
        r = flush_bits(t, true, err);
        if (r == 0)
            r = sync_image(t, err);
        cold = r == 0;
    }
    varve_intent_end_cool(t->intent, cold);
    return r;
}

/* --- what does not work --------------------------------------------------------------- */

/* All else is overwritten in place, so this alone tells that the state folder is full. */
static int look_for_room(struct varve_tracker *t, struct varve_err *err)
{
    uint64_t total, free, want = varve_epoch_file_room(&t->id.geometry) + ROOM_SPARE;

    if (t->w->room(t->w, t->lock_fd, &total, &free) < 0 || total == 0 || free >= want)
        return 0;
    return varve_err_sys(err, ENOSPC,
                         "there is no room for the map of another epoch in %s, so no checkpoint and no "
                         "backup can begin: %" PRIu64 " of %" PRIu64 " bytes are free",
                         t->paths.state, free, want);
}

static void trouble_add(uint64_t *trouble, uint64_t what, int r)
{
    if (r >= 0)
        return;
    if (!(*trouble & VARVE_CTL_TROUBLE))
        *trouble |= (uint64_t)-r << VARVE_CTL_ERRNO_SHIFT;
    *trouble |= what;
}

static int first_of(int first, struct varve_err *err, int r, const struct varve_err *other)
{
    if (first < 0 || r >= 0)
        return first;
    return varve_err_set(err, -r, "%s", other->msg);
}

/* --- the step ------------------------------------------------------------------------- */

static int flush_all(struct varve_tracker *t, bool cool, int *bits, struct varve_err *err)
{
    struct varve_err other = VARVE_ERR_INIT;
    int first, r;

    /* First: syncing the image can take long, and meanwhile it is changed. */
    first = varve_intent_flush(t->intent, err);
    *bits = flush_bits(t, false, first < 0 ? &other : err);
    first = first < 0 ? first : *bits;
    if (cool && first == 0) {
        first = cool_down(t, err);
        r = varve_intent_flush(t->intent, first < 0 ? &other : err);
        first = first < 0 ? first : r;
    }
    return first;
}

int varve_tracker_flush(struct varve_tracker *t, bool cool, struct varve_err *err)
{
    struct varve_err no_witness = VARVE_ERR_INIT, no_room = VARVE_ERR_INIT;
    int witness = varve_tracker_heartbeat(t, &no_witness), bits = 0, first = 0, room;
    uint64_t trouble = VARVE_CTL_SERVED;

    varve_tracker_doubt_image(t); /* of an error that only the guest has got */
    if (!t->intent->off)
        first = flush_all(t, cool, &bits, err);
    room = look_for_room(t, &no_room);
    trouble_add(&trouble, VARVE_CTL_NO_BITS, bits);
    trouble_add(&trouble, VARVE_CTL_NO_WITNESS, witness);
    trouble_add(&trouble, VARVE_CTL_NO_ROOM, room);
    atomic_store(&t->ctl->served, trouble);
    first = first_of(first, err, witness, &no_witness);
    return first_of(first, err, room, &no_room);
}
