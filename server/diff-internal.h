/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What diff-run.c (the comparison as a whole) and diff-piece.c (one piece of it) share, and nobody
 * else.  The loop's, but for what says otherwise.
 */
#ifndef VARVE_SERVER_DIFF_INTERNAL_H
#define VARVE_SERVER_DIFF_INTERNAL_H

#include "server/diff.h"
#include "server/endpoint-extents.h"

#define VARVE_DIFF_SLOTS 8u
#define VARVE_DIFF_PIECE (1024u * 1024u)

/* One side, as the cursor moves over it. */
struct varve_diff_side {
    struct varve_diff_run *run;
    struct varve_endpoint *e;
    bool open, closed;
    struct varve_extents extents;
};

/* A piece under way. */
struct varve_diff_slot {
    struct varve_diff_run *run;
    bool busy;
    uint64_t off, end; /* of the piece */
    uint64_t at, len;  /* the part of it that is read now: all, or a unit after an error */
    bool zero;         /* the reference has zeroes there */
    bool image_zero;   /* the image has */
    struct varve_endpoint_req req;
    TAILQ_ENTRY(varve_diff_slot) turn;
    uv_work_t work;
    uint8_t *buf;
    /* of the pool's work */
    uint8_t differs[VARVE_DIFF_PIECE / 4096 / 8 + 1]; /* a bit for each block of the part */
    int rc;
    struct varve_err err;
};

struct varve_diff_run {
    struct varve_diff *diff;
    struct varve_runner *r;
    struct varve_geometry g;
    struct varve_diff_side image, reference;
    struct varve_diff_slot slots[VARVE_DIFF_SLOTS];
    unsigned nbusy;
    unsigned nworks;                     /* pieces in the pool; */
    TAILQ_HEAD(, varve_diff_slot) queue; /* those that wait for it, in their order */
    uint64_t unit;                       /* pieces begin at multiples of it */
    uint64_t cursor, end;                /* of what is to be compared */
    uint64_t done;                       /* bytes */
    uv_fs_t look;                        /* at the reference, if that is a file: */
    bool looking;                        /* under way, */
    bool looked_last;                    /* for the second time */
    void (*looked)(struct varve_diff_run *run);
    bool provable; /* what is found can be believed after a restart, so it is saved */
    uv_timer_t timer;
    bool timer_closed, waiting;
    bool ending;
    int rc;
    struct varve_err err;
    uint64_t saved_ns, save_interval_ns;
};

/* The comparison ends when nothing of it is under way any more.  rc 0: everything was compared;
 * else the first reason counts. */
void varve_diff_end(struct varve_diff_run *run, int rc, const struct varve_err *err);

/* Looks what a reference that is a file looks like, before anything is compared, and when all is.
 * Then next() comes, unless it has ended by that; at once if the reference is none. */
void varve_diff_look(struct varve_diff_run *run, bool last, void (*next)(struct varve_diff_run *));
/* Something that varve_diff_end() waits for is no longer under way. */
void varve_diff_maybe_ended(struct varve_diff_run *run);

/* Begins with [cursor, end); the flags say on which sides it is known to be zeroes.  -ENOMEM; else
 * varve_diff_piece_done() comes, at once only after an error. */
int varve_diff_piece_begin(struct varve_diff_slot *s, struct varve_diff_run *run, uint64_t end,
                           bool image_zero, bool zero);
void varve_diff_piece_done(struct varve_diff_slot *s);

#endif
