/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The data path.  For every piece of a request, in this order:
 *
 *     enter the epoch                                          I3 (lib/gate.c)
 *     its region is not durably hot?  leave, make it so, enter again, look again      I4 (lib/intent.c)
 *     under the stripe's lock, for each block with a clear bit:
 *         keep the preimage, or mark the block lost            I2
 *         set the bit, full fence                              I1
 *     (the caller changes the image)
 *     leave the epoch
 *
 * A reader that read the image and then finds a block's bit clear has read the old content; one that
 * finds it set finds the preimage, or is told that it was lost, because those were stored before the
 * bit.  (A bit whose write then waits for room is only early: the preimage is there.)  The second
 * write to a block in an epoch tests its bit (acquire) and takes no lock.
 *
 * Test, copy and mark are one critical section per stripe.  Were the lock dropped between them, a
 * second writer could change the image before the first one has copied it.
 */
#include "lib/tracker.h"

#include "include/varve.h"
#include "lib/bitmap.h"
#include "lib/tracker-internal.h"

#include <assert.h>

const struct varve_identity *varve_tracker_identity(const struct varve_tracker *t)
{
    return &t->id;
}

const struct varve_paths *varve_tracker_paths(const struct varve_tracker *t)
{
    return &t->paths;
}

uint64_t varve_tracker_epoch(const struct varve_tracker *t)
{
    return VARVE_NOW_EPOCH(atomic_load(&t->ctl->now));
}

uint32_t varve_piece_len(uint64_t off, uint64_t len)
{
    uint64_t room = VARVE_PIECE_MAX - off % VARVE_PIECE_MAX;

    return (uint32_t)(len < room ? len : room);
}

/* Keeps and marks the blocks [blk, end).  False: there is no room, and the write should wait for some
 * outside of the epoch. */
static bool piece_mark(struct varve_tracker *t, struct varve_tracked_epoch *e,
                       pthread_mutex_t *stripe, uint64_t blk, uint64_t end, bool cheap_copy)
{
    bool all = true;

    blk = varve_abits_find(e->bits, blk, end, false);
    if (blk == end)
        return true;
    if (!atomic_load_explicit(&e->preserve, memory_order_acquire)) {
        varve_abits_set(e->bits, blk, end);
        return true;
    }
    pthread_mutex_lock(stripe);
    while (all && (blk = varve_abits_find(e->bits, blk, end, false)) < end) {
        uint64_t stop = varve_abits_find(e->bits, blk, end, true);
        uint64_t done = varve_tracker_preserve(t, e, blk, stop, cheap_copy);

        if (done > blk)
            varve_abits_set(e->bits, blk, done);
        all = done == stop;
        blk = done;
    }
    pthread_mutex_unlock(stripe);
    return all;
}

void varve_piece_begin(struct varve_tracker *t, uint64_t off, uint32_t len, bool cheap_copy,
                       struct varve_piece *p)
{
    uint32_t shift = t->id.geometry.shift;
    uint64_t blk = off >> shift, end = ((off + len - 1) >> shift) + 1;

    assert(len > 0 && len <= varve_piece_len(off, len));
    for (;;) {
        p->epoch = varve_tracker_find(t, varve_gate_enter(&t->gate, &p->shard));
        assert(p->epoch);
        if (!varve_intent_is_hot(t->intent, off)) { /* I4: whatever the bits say */
            varve_gate_leave(&t->gate, p->shard);
            varve_intent_heat(t->intent, off);
            continue;
        }
        if (piece_mark(t, p->epoch, &t->stripes[off / VARVE_PIECE_MAX % VARVE_STRIPES], blk, end,
                       cheap_copy))
            return;
        varve_gate_leave(&t->gate, p->shard);
        varve_tracker_wait_for_room(t);
    }
}

void varve_piece_end(struct varve_tracker *t, struct varve_piece *p)
{
    /* For whoever looks at the image after we were killed: our writes are no later than this. */
    varve_gate_note(&t->gate, p->shard, t->w->file_clock_ns(t->w));
    varve_gate_leave(&t->gate, p->shard);
}

void varve_tracker_sample_begin(struct varve_tracker *t, uint64_t count)
{
    atomic_fetch_add_explicit(&t->ctl->writes_begun, count, memory_order_relaxed);
}

void varve_tracker_sample_end(struct varve_tracker *t, uint64_t count, uint64_t ns)
{
    atomic_fetch_add_explicit(&t->ctl->writes_ns, ns, memory_order_relaxed);
    atomic_fetch_add_explicit(&t->ctl->writes_ended, count, memory_order_relaxed);
}
