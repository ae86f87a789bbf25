/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Who may use a thread of the pool, and who may hold memory.
 *
 * Threads.  A disk that hangs keeps the threads that read it.  So the jobs of one disk may be at
 * most as many as threads are idle: alone it gets half of the pool, beside one that hangs a
 * quarter, and so on; the last thread is never the first disk's.  What a disk may not start waits
 * in its line, in turns of one piece for each connection, and the disks take turns too.  So nothing
 * ever waits in libuv's own queue, where a disk's work would wait for another's.
 *
 *     alone      h h h h . . . .        h: hangs
 *     a second   h h h h b b . .        b: 8 - 4 - 2 = 2 idle, 2 jobs: no more
 *     a third    h h h h b b c .
 *
 * Memory.  A client that reads nothing keeps what was queued for it.  So a connection may hold a
 * quarter of what is free (and VARVE_NBD_HELD_MAX at most), but one piece always: however many
 * stall, others go on, one piece at a time in the worst case.  A reply that must be whole, and is
 * larger than that, is let in for one connection of each disk at a time; block status need not be
 * whole, and is cut when it would have to wait for that (some clients want all of it at once, so it
 * is not cut before).  Hence the bound:
 *
 *     memory + connections * VARVE_NBD_HELD_MIN + disks * the largest reply
 *
 * No deadlock: who holds something goes on when the peer takes it, or ends by the write timeout;
 * who holds nothing may always have a piece; a request that was given its memory needs no more of
 * it.
 */
#include "server/nbd/nbd-pool.h"

#include "server/nbd/nbd-conn.h"

#include <assert.h>
#include <stdlib.h>

static void share_init(struct varve_nbd_share *s, const void *disk)
{
    *s = (struct varve_nbd_share){.disk = disk};
    TAILQ_INIT(&s->waiting);
    TAILQ_INIT(&s->big_waiting);
}

void varve_nbd_pool_init(struct varve_nbd_pool *p, unsigned nthreads, size_t memory)
{
    *p = (struct varve_nbd_pool){.nthreads = nthreads, .memory = memory};
    TAILQ_INIT(&p->shares);
    share_init(&p->common, NULL);
    TAILQ_INSERT_TAIL(&p->shares, &p->common, link);
}

void varve_nbd_pool_join(struct varve_nbd_conn *c, const void *disk)
{
    struct varve_nbd_pool *p = &c->host->pool;
    struct varve_nbd_share *s;

    TAILQ_FOREACH(s, &p->shares, link)
    {
        if (s->disk == disk)
            break;
    }
    if (!s) {
        s = malloc(sizeof(*s));
        if (s) {
            share_init(s, disk);
            TAILQ_INSERT_TAIL(&p->shares, s, link);
        } else {
            s = &p->common;
        }
    }
    s->nconns++;
    c->tx.share = s;
}

void varve_nbd_pool_part(struct varve_nbd_conn *c)
{
    struct varve_nbd_share *s = c->tx.share;

    varve_nbd_pool_leave_lines(c);
    varve_nbd_pool_release(c, c->tx.held);
    assert(s->big != c);
    c->tx.share = NULL;
    if (--s->nconns || s == &c->host->pool.common)
        return;
    assert(!s->njobs);
    TAILQ_REMOVE(&c->host->pool.shares, s, link);
    free(s);
}

/* --- turns ---------------------------------------------------------------------------------- */

void varve_nbd_pool_wait(struct varve_nbd_conn *c)
{
    if (c->tx.line)
        return;
    c->tx.line = &c->tx.share->waiting;
    TAILQ_INSERT_TAIL(c->tx.line, c, tx.in_line);
}

void varve_nbd_pool_leave_lines(struct varve_nbd_conn *c)
{
    if (!c->tx.line)
        return;
    TAILQ_REMOVE(c->tx.line, c, tx.in_line);
    c->tx.line = NULL;
}

static struct varve_nbd_conn *line_next(struct varve_nbd_line *line)
{
    struct varve_nbd_conn *c = TAILQ_FIRST(line);

    if (c)
        varve_nbd_pool_leave_lines(c);
    return c;
}

/* Out of its line, or NULL.  Its disk goes behind the others. */
static struct varve_nbd_conn *pool_next(struct varve_nbd_pool *p)
{
    struct varve_nbd_share *s;
    struct varve_nbd_conn *c;

    TAILQ_FOREACH(s, &p->shares, link)
    {
        if (s->njobs + p->njobs >= p->nthreads)
            continue;
        c = line_next(&s->waiting);
        if (!c)
            continue;
        TAILQ_REMOVE(&p->shares, s, link);
        TAILQ_INSERT_TAIL(&p->shares, s, link);
        return c;
    }
    return NULL;
}

void varve_nbd_pool_turns(struct varve_nbd_pool *p)
{
    struct varve_nbd_conn *c;

    if (p->turning)
        return;
    p->turning = true;
    while ((c = pool_next(p))) {
        switch (varve_nbd_transmit_turn(c)) {
        case VARVE_NBD_TURN_TAKEN:
            varve_nbd_pool_wait(c);
            break;
        case VARVE_NBD_TURN_FAILED:
            varve_nbd_conn_tick(c);
            break;
        case VARVE_NBD_TURN_NONE:
            break;
        }
    }
    p->turning = false;
}

void varve_nbd_pool_started(struct varve_nbd_pool *p, struct varve_nbd_share *s)
{
    s->njobs++;
    p->njobs++;
}

void varve_nbd_pool_ended(struct varve_nbd_pool *p, struct varve_nbd_share *s)
{
    assert(s->njobs > 0 && p->njobs > 0);
    s->njobs--;
    p->njobs--;
}

/* --- memory --------------------------------------------------------------------------------- */

/* What one connection may hold now. */
static size_t pool_part(const struct varve_nbd_pool *p)
{
    size_t part = p->held < p->memory ? (p->memory - p->held) / 4 : 0;

    if (part > VARVE_NBD_HELD_MAX)
        return VARVE_NBD_HELD_MAX;
    return part < VARVE_NBD_HELD_MIN ? VARVE_NBD_HELD_MIN : part;
}

size_t varve_nbd_pool_room(const struct varve_nbd_conn *c)
{
    size_t part = pool_part(&c->host->pool);

    return c->tx.held < part ? part - c->tx.held : 0;
}

bool varve_nbd_pool_fits(const struct varve_nbd_conn *c, size_t cost)
{
    if (!cost || c->tx.held + cost <= pool_part(&c->host->pool))
        return true;
    return !c->tx.held && !c->tx.share->big;
}

bool varve_nbd_pool_has_room(struct varve_nbd_conn *c, size_t cost)
{
    if (varve_nbd_pool_fits(c, cost))
        return true;
    if (!c->tx.held && !c->tx.line) {
        c->tx.line = &c->tx.share->big_waiting;
        TAILQ_INSERT_TAIL(c->tx.line, c, tx.in_line);
    }
    return false;
}

void varve_nbd_pool_hold(struct varve_nbd_conn *c, size_t len)
{
    if (c->tx.held + len > pool_part(&c->host->pool) && !c->tx.share->big)
        c->tx.share->big = c;
    c->tx.held += len;
    c->host->pool.held += len;
}

void varve_nbd_pool_release(struct varve_nbd_conn *c, size_t len)
{
    struct varve_nbd_share *s = c->tx.share;
    struct varve_nbd_conn *next;

    assert(c->tx.held >= len && c->host->pool.held >= len);
    c->tx.held -= len;
    c->host->pool.held -= len;
    if (s->big != c || c->tx.held > pool_part(&c->host->pool))
        return;
    s->big = NULL;
    next = line_next(&s->big_waiting);
    if (next)
        varve_nbd_pool_wait(next);
}
