/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The freeze hook: a command of the operator that quiesces what writes to the disks (a guest's file
 * systems, a database) before a boundary and lets it go on behind it.  For the clerk's thread.  It
 * never leaves anything frozen: the thaw belongs to a process of its own (freeze-keeper.c), which
 * needs no daemon, and a record of it in the state directory outlives both.
 */
#ifndef VARVE_SERVER_FREEZE_H
#define VARVE_SERVER_FREEZE_H

#include "server/boundary.h"

struct varve_freeze {
    struct varve_daemon *daemon;
    const char *backup;   /* its id, borrowed */
    int sock;             /* to the keeper; -1: there is none */
    char thaw_error[256]; /* out: why the thaw failed; empty: it did not */
};

/* -EINVAL: the daemon has no hook. */
int varve_freeze_check(struct varve_daemon *d, struct varve_err *err);

void varve_freeze_init(struct varve_freeze *f, struct varve_daemon *d, const char *backup);

/* Runs the hook with `freeze`.  When it fails or is late, it has been run with `thaw` too before
 * this returns.  After success varve_freeze_thaw must follow. */
int varve_freeze_freeze(struct varve_freeze *f, const struct varve_boundary_disk *disks,
                        size_t ndisks, struct varve_err *err);

/* Has the hook run with `thaw`, and waits for it.  0 also if that fails: then it has been logged,
 * thaw_error says why, and the thaw is still owed.  -ETIME: all was thawed before this was called.
 */
int varve_freeze_thaw(struct varve_freeze *f, struct varve_err *err);

/* At the daemon's start: has a thaw that is owed since a former one done, and does not wait. */
void varve_freeze_redeem(struct varve_daemon *d);

/* --- between freeze.c and freeze-keeper.c ----------------------------------------------------- */

#define VARVE_FREEZE_RECORD     "thaw-owed.json" /* in the state directory */
#define VARVE_FREEZE_RECORD_MAX 65536u

/* The keeper's first argument; the others are the mode and the record's path. */
#define VARVE_FREEZE_KEEPER_ARG "--freeze-keeper"
#define VARVE_FREEZE_MODE       "freeze" /* freeze, wait, thaw */
#define VARVE_FREEZE_MODE_THAW  "thaw"   /* thaw what is owed */
#define VARVE_FREEZE_MODE_ALONE "alone"  /* the same, and nobody listens */
#define VARVE_FREEZE_SOCK       3        /* its descriptor, but alone */

#define VARVE_FREEZE_THAW_TRIES 3u

/* First byte of a message; the rest is why. */
enum varve_freeze_message {
    VARVE_FREEZE_ASK_THAW = 'T', /* the only one to the keeper */
    VARVE_FREEZE_FROZEN = 'F',
    VARVE_FREEZE_REFUSED = 'E', /* the hook failed, and what it may have done is undone */
    VARVE_FREEZE_THAWED = 'O',
    VARVE_FREEZE_TOO_LATE = 'L',    /* thawed at the deadline, before it was asked for */
    VARVE_FREEZE_STILL_OWED = 'X',  /* the thaw failed */
    VARVE_FREEZE_OTHER_KEEPER = 'B' /* another process has the record */
};

/* main() of the keeper. */
int varve_freeze_keeper(const char *mode, const char *record);

#endif
