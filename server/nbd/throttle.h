/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How fast a backup may be read: one object for all its exports and clients, reference-counted. Any
 * thread.  It never waits, reads no clock (now_ns is CLOCK_MONOTONIC's, given by the caller) and
 * knows neither sockets nor disks: it says who has to wait for how long.
 */
#ifndef VARVE_SERVER_THROTTLE_H
#define VARVE_SERVER_THROTTLE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

struct varve_throttle;

/* What was measured of guests' writes so far: those begun, those ended, and how long these took. */
struct varve_guest_writes {
    uint64_t begun, ended, ns;
};

/* Where an adaptive throttle looks. */
struct varve_throttle_guest {
    /* Fills *sum.  Called with the throttle's lock held: must not wait, may lock nothing that is
     * held around calls of the throttle.  False: nothing is known now. */
    bool (*look)(void *arg, struct varve_guest_writes *sum);
    void (*free)(void *arg); /* with the throttle; may be NULL */
    void *arg;
};

/* A place in the line; zeroed by whoever has it, and not moved while it is held.  All but `held` is
 * the throttle's. */
struct varve_ticket {
    TAILQ_ENTRY(varve_ticket) link;
    bool held;
    bool waited;
    uint64_t at, bytes, taken_ns;
};

/* speed: bytes per second, 0: no limit of its own.  guest: NULL for one that does not adapt; else
 * arg is taken over, also on failure.  One reference.  NULL: no memory. */
struct varve_throttle *varve_throttle_new(uint64_t speed, const struct varve_throttle_guest *guest,
                                          uint64_t now_ns);
struct varve_throttle *varve_throttle_ref(struct varve_throttle *t);
/* NULL does nothing. */
void varve_throttle_unref(struct varve_throttle *t);

/* Takes a place for `bytes` at the end of the line, unless the ticket has one.  0: its turn has
 * come (and stays); else milliseconds after which to ask again. */
unsigned varve_throttle_ask(struct varve_throttle *t, struct varve_ticket *ticket, uint64_t bytes,
                            uint64_t now_ns);

/* What the ticket was for begins.  Its turn must have come. */
void varve_throttle_use(struct varve_throttle *t, struct varve_ticket *ticket);

/* It will not begin: those behind move up.  Does nothing if the ticket is not held. */
void varve_throttle_give_back(struct varve_throttle *t, struct varve_ticket *ticket,
                              uint64_t now_ns);

struct varve_throttle_stats {
    uint64_t speed; /* bytes per second that may not be exceeded; 0: none */
    bool adaptive;
    uint64_t current;                 /* bytes per second now; 0: no limit */
    uint64_t bytes;                   /* that began */
    uint64_t age_ns;                  /* since it was made */
    uint64_t waits;                   /* pieces that had to wait, */
    uint64_t waited_ns;               /* and how long, of those that wait no more */
    uint64_t backoffs;                /* times that the guest's writes had it slow down */
    uint64_t guest_ns, guest_base_ns; /* a guest's write, as of the last look and undisturbed; 0:
                                       * not known */
};
void varve_throttle_stats(struct varve_throttle *t, uint64_t now_ns,
                          struct varve_throttle_stats *out);

#endif
