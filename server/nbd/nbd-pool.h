/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the connections of one loop share: the threads of the pool and the memory for replies; whose
 * turn it is.  Private to nbd-*.c, on the host's loop.  It never waits and launches nothing itself.
 */
#ifndef VARVE_SERVER_NBD_POOL_H
#define VARVE_SERVER_NBD_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/queue.h>

struct varve_nbd_conn;

TAILQ_HEAD(varve_nbd_line, varve_nbd_conn);

/* The connections that read one disk. */
struct varve_nbd_share {
    TAILQ_ENTRY(varve_nbd_share) link; /* in the pool's shares */
    const void *disk;
    unsigned nconns;
    unsigned njobs;                    /* of them in the pool's threads */
    struct varve_nbd_line waiting;     /* for a thread: their turn is in this order */
    struct varve_nbd_conn *big;        /* holds more than its part of the memory; NULL: none */
    struct varve_nbd_line big_waiting; /* hold nothing, and need more than their part at once */
};

struct varve_nbd_pool {
    unsigned nthreads;
    unsigned njobs;
    size_t memory; /* bytes that replies may hold, see nbd-pool.c */
    size_t held;
    TAILQ_HEAD(, varve_nbd_share) shares; /* the next to get a turn first */
    struct varve_nbd_share common;        /* of those for which there was no memory for their own */
    bool turning;
};

void varve_nbd_pool_init(struct varve_nbd_pool *p, unsigned nthreads, size_t memory);

/* c reads this disk from now on, until it parts; it has nothing in the pool then. */
void varve_nbd_pool_join(struct varve_nbd_conn *c, const void *disk);
void varve_nbd_pool_part(struct varve_nbd_conn *c);

/* c has work for the pool: it waits for its turn.  Nothing happens if it does already. */
void varve_nbd_pool_wait(struct varve_nbd_conn *c);

/* c waits for nothing any more. */
void varve_nbd_pool_leave_lines(struct varve_nbd_conn *c);

/* Gives turns while there are threads.  May tick connections. */
void varve_nbd_pool_turns(struct varve_nbd_pool *p);

/* A job of the share runs in the pool; it does no longer. */
void varve_nbd_pool_started(struct varve_nbd_pool *p, struct varve_nbd_share *s);
void varve_nbd_pool_ended(struct varve_nbd_pool *p, struct varve_nbd_share *s);

/* Bytes that c may hold more without asking for more than its part; not 0 while it holds nothing.
 */
size_t varve_nbd_pool_room(const struct varve_nbd_conn *c);

/* Whether c may hold `cost` bytes more. */
bool varve_nbd_pool_fits(const struct varve_nbd_conn *c, size_t cost);

/* The same for c whose turn it is.  False: it is to come again when it holds less, or, if it
 * holds nothing, was put into the line for that. */
bool varve_nbd_pool_has_room(struct varve_nbd_conn *c, size_t cost);

/* c holds len bytes more, or less. */
void varve_nbd_pool_hold(struct varve_nbd_conn *c, size_t len);
void varve_nbd_pool_release(struct varve_nbd_conn *c, size_t len);

#endif
