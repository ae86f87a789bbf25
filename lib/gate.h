/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The gate between writers and boundaries (I3: no write spans one).  Writers enter and leave, any
 * number at once, without a lock; one control thread closes the gate, changes the epoch while nobody
 * is inside, and opens it.  It never waits longer than its timeout: a writer that finds the gate
 * closed past the deadline opens it itself, whatever the control thread does.
 */
#ifndef VARVE_LIB_GATE_H
#define VARVE_LIB_GATE_H

#include <pthread.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdint.h>

#define VARVE_GATE_SHARDS 64u

struct varve_gate_shard {
    /* Writers in it now, by two counts; above 32 bits: how many ever entered by each. */
    alignas(64) _Atomic uint64_t inside[2];
    _Atomic uint64_t left_ns; /* when a writer last said that it leaves, by the files' clock */
};

struct varve_gate {
    _Atomic uint64_t *now; /* the word of the control page: epoch << 1 | closed */
    _Atomic unsigned bank; /* which of the two counts writers enter by */
    struct varve_gate_shard *shards; /* `own`, or memory that outlives us */
    struct varve_gate_shard own[VARVE_GATE_SHARDS];

    /* Rank: innermost, nothing is taken under it.  Guards deadline_ns and the two conditions. */
    pthread_mutex_t lock;
    pthread_cond_t opened;
    pthread_cond_t left;
    uint64_t deadline_ns; /* CLOCK_MONOTONIC */
};

/* The gate is open after it, whatever the word said. */
void varve_gate_init(struct varve_gate *g, _Atomic uint64_t *now);
/* Counts there, VARVE_GATE_SHARDS of them, from now on: before the first writer. */
void varve_gate_count_in(struct varve_gate *g, struct varve_gate_shard *shards);
void varve_gate_fini(struct varve_gate *g);

/* Waits while the gate is closed; returns the epoch entered.  *shard, shard and bank of the count, goes
 * to leave. */
uint64_t varve_gate_enter(struct varve_gate *g, unsigned *shard);
/* A writer notes that its write has ended, before it leaves.  ns only grows. */
void varve_gate_note(struct varve_gate *g, unsigned shard, uint64_t ns);
void varve_gate_leave(struct varve_gate *g, unsigned shard);

/* Closes and waits until all have left.  -ETIMEDOUT: they did not in time; the gate is open again. */
int varve_gate_close(struct varve_gate *g, unsigned timeout_ms);

/* Opens a closed gate onto epoch `epoch`.  -ETIMEDOUT: the deadline has opened it before, onto the
 * old epoch. */
int varve_gate_swap(struct varve_gate *g, uint64_t epoch);

/* Opens it onto the old epoch; nothing happens to an open one. */
void varve_gate_open(struct varve_gate *g);

/* Returns when all who were inside have left; nobody is held back for it.  Who enters later than the
 * call sees what the caller had stored (sequentially consistent) before it.  For one thread at a
 * time, any but one that is inside.  -ETIMEDOUT */
int varve_gate_grace(struct varve_gate *g, unsigned timeout_ms);

#endif
