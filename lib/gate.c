/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Why it is right.  A writer counts itself in, then looks at the word; the closer changes the word,
 * then looks at the counts; both orders are sequentially consistent, so one of them sees the other:
 * either the writer finds the gate closed and counts itself out, or the closer finds the writer
 * inside and waits.  Counts are spread over shards so that writers share no cache line; each writer
 * leaves by the shard it came by, so a shard that was seen empty while the gate is closed stays
 * empty but for passers-by who turn back.
 *
 * Opening is always one compare-and-swap from a closed word: the swap and the deadline cannot both
 * win.
 *
 * A grace period is over when each count was seen to be zero once since it began: who was inside then
 * has left, and who counted himself in behind that look sees, by the same order, what was stored before
 * it.  Under load a count might never be found zero; so each shard has two, writers enter by one, and
 * whoever waits sends them to the other first.  Which of the two a late one takes does not matter.
 */
#include "lib/gate.h"

#include "lib/control.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

/* A shard's count has its writers below 32 bits, and above how many ever entered. */
#define ENTERED ((uint64_t)1 << 32)

static uint32_t gate_writers(_Atomic uint64_t *inside)
{
    return (uint32_t)atomic_load(inside);
}

static uint64_t gate_clock_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Until woken or the deadline; the lock is held. */
static void gate_wait(struct varve_gate *g, pthread_cond_t *cond)
{
    struct timespec ts = {
        .tv_sec = (time_t)(g->deadline_ns / 1000000000u),
        .tv_nsec = (long)(g->deadline_ns % 1000000000u),
    };

    pthread_cond_timedwait(cond, &g->lock, &ts);
}

static bool gate_closed(struct varve_gate *g)
{
    return atomic_load(g->now) & VARVE_NOW_QUIESCE;
}

/* From closed to `word`; false: it was open.  The lock is held. */
static bool gate_open_locked(struct varve_gate *g, uint64_t word)
{
    uint64_t closed = atomic_load(g->now);

    if (!(closed & VARVE_NOW_QUIESCE) || !atomic_compare_exchange_strong(g->now, &closed, word))
        return false;
    pthread_cond_broadcast(&g->opened);
    pthread_cond_broadcast(&g->left);
    return true;
}

void varve_gate_init(struct varve_gate *g, _Atomic uint64_t *now)
{
    pthread_condattr_t attr;

    memset(g->own, 0, sizeof(g->own));
    g->shards = g->own;
    g->now = now;
    g->bank = 0;
    g->deadline_ns = 0;
    pthread_mutex_init(&g->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&g->opened, &attr);
    pthread_cond_init(&g->left, &attr);
    pthread_condattr_destroy(&attr);
    atomic_fetch_and(now, ~VARVE_NOW_QUIESCE);
}

void varve_gate_count_in(struct varve_gate *g, struct varve_gate_shard *shards)
{
    g->shards = shards;
}

void varve_gate_fini(struct varve_gate *g)
{
    pthread_cond_destroy(&g->left);
    pthread_cond_destroy(&g->opened);
    pthread_mutex_destroy(&g->lock);
}

/* A thread keeps to one shard while its stack stays where it is. */
static unsigned gate_shard(void)
{
    uint64_t x = (uint64_t)pthread_self() >> 12;

    return (unsigned)((x * UINT64_C(0x9e3779b97f4a7c15)) >> 58) % VARVE_GATE_SHARDS;
}

/* Past the deadline whoever closed the gate has lost: the first writer to notice opens it. */
static void gate_wait_opened(struct varve_gate *g)
{
    pthread_mutex_lock(&g->lock);
    while (gate_closed(g)) {
        if (gate_clock_ns() >= g->deadline_ns)
            gate_open_locked(g, atomic_load(g->now) & ~VARVE_NOW_QUIESCE);
        else
            gate_wait(g, &g->opened);
    }
    pthread_mutex_unlock(&g->lock);
}

uint64_t varve_gate_enter(struct varve_gate *g, unsigned *shard)
{
    unsigned at = gate_shard() * 2;

    for (;;) {
        uint64_t now;

        *shard = at + atomic_load_explicit(&g->bank, memory_order_relaxed);
        atomic_fetch_add(&g->shards[*shard / 2].inside[*shard % 2], ENTERED + 1);
        now = atomic_load(g->now);
        if (!(now & VARVE_NOW_QUIESCE))
            return VARVE_NOW_EPOCH(now);
        varve_gate_leave(g, *shard);
        gate_wait_opened(g);
    }
}

/* Mostly the tick is the one that stands there, and nothing is stored. */
void varve_gate_note(struct varve_gate *g, unsigned shard, uint64_t ns)
{
    _Atomic uint64_t *left = &g->shards[shard / 2].left_ns;
    uint64_t was = atomic_load_explicit(left, memory_order_relaxed);

    while (was < ns && !atomic_compare_exchange_weak(left, &was, ns))
        ;
}

void varve_gate_leave(struct varve_gate *g, unsigned shard)
{
    atomic_fetch_sub(&g->shards[shard / 2].inside[shard % 2], 1);
    if (gate_closed(g)) {
        pthread_mutex_lock(&g->lock);
        pthread_cond_signal(&g->left);
        pthread_mutex_unlock(&g->lock);
    }
}

static bool gate_empty(struct varve_gate *g)
{
    for (unsigned i = 0; i < VARVE_GATE_SHARDS; i++) {
        if (gate_writers(&g->shards[i].inside[0]) != 0 || gate_writers(&g->shards[i].inside[1]) != 0)
            return false;
    }
    return true;
}

/* Looks again until the count was zero once.  Writes take long when they take long: looking seldom
 * costs whoever waits little, and the writers nothing. */
static bool gate_wait_zero(_Atomic uint64_t *inside, uint64_t until_ns)
{
    struct timespec pause = {.tv_nsec = 20000};

    while (gate_writers(inside) != 0) {
        if (gate_clock_ns() >= until_ns)
            return false;
        nanosleep(&pause, NULL);
        if (pause.tv_nsec < 2000000)
            pause.tv_nsec *= 2;
    }
    return true;
}

int varve_gate_grace(struct varve_gate *g, unsigned timeout_ms)
{
    uint64_t until_ns = gate_clock_ns() + (uint64_t)timeout_ms * 1000000u;

    for (unsigned pass = 0; pass < 2; pass++) {
        unsigned bank = atomic_load(&g->bank);

        atomic_store(&g->bank, !bank);
        for (unsigned i = 0; i < VARVE_GATE_SHARDS; i++) {
            if (!gate_wait_zero(&g->shards[i].inside[bank], until_ns))
                return -ETIMEDOUT;
        }
    }
    return 0;
}

int varve_gate_close(struct varve_gate *g, unsigned timeout_ms)
{
    int r = 0;

    pthread_mutex_lock(&g->lock);
    g->deadline_ns = gate_clock_ns() + (uint64_t)timeout_ms * 1000000u;
    atomic_fetch_or(g->now, VARVE_NOW_QUIESCE);
    while (gate_closed(g) && !gate_empty(g)) {
        if (gate_clock_ns() >= g->deadline_ns)
            gate_open_locked(g, atomic_load(g->now) & ~VARVE_NOW_QUIESCE);
        else
            gate_wait(g, &g->left);
    }
    if (!gate_closed(g))
        r = -ETIMEDOUT;
    pthread_mutex_unlock(&g->lock);
    return r;
}

int varve_gate_swap(struct varve_gate *g, uint64_t epoch)
{
    bool swapped;

    pthread_mutex_lock(&g->lock);
    swapped = gate_open_locked(g, epoch << 1);
    pthread_mutex_unlock(&g->lock);
    return swapped ? 0 : -ETIMEDOUT;
}

void varve_gate_open(struct varve_gate *g)
{
    pthread_mutex_lock(&g->lock);
    gate_open_locked(g, atomic_load(g->now) & ~VARVE_NOW_QUIESCE);
    pthread_mutex_unlock(&g->lock);
}
