/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What push.c (policy, on the clerk's thread) and push-run.c (the copy, on the loop's) share, and
 * nobody else.
 */
#ifndef VARVE_SERVER_PUSH_H
#define VARVE_SERVER_PUSH_H

#include "server/backup.h"
#include "server/job.h"
#include "server/push-target.h"

struct varve_push_run;

/* The work of a runner; constant while it runs. */
struct varve_push {
    struct varve_runner *runner;
    char *where; /* path or URI */
    char *base;  /* what the changes are since; NULL: a full copy */
    struct varve_push_want want;
    struct varve_geometry g;
    struct varve_served_view *view; /* our references */
    struct varve_changes *changes;
    struct varve_changed changed;   /* of changes */
    struct varve_push_run *run;     /* the loop's */
};

/* Loop: as of struct varve_runner_ops. */
void varve_push_run(struct varve_runner *r);
void varve_push_stop(struct varve_runner *r);

#endif
