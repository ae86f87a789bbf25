/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What job.c and job-loop.c share, and nobody else: the machine, and the letters between its two
 * threads.
 */
#ifndef VARVE_SERVER_JOB_INTERNAL_H
#define VARVE_SERVER_JOB_INTERNAL_H

#include "server/job.h"

TAILQ_HEAD(varve_runner_list, varve_runner);

struct varve_jobs {
    struct varve_daemon *daemon;
    uv_loop_t *loop;
    struct varve_mailbox *mailbox;

    struct varve_runner *runners; /* the clerk's: of the open jobs */

    /* the loop's */
    struct varve_runner_list running;
    bool stopping, mailbox_closed;
    void (*closed)(void *arg);
    void *closed_arg;
};

/* What the clerk asks of the loop. */
enum varve_jobs_letter { VARVE_JOBS_RUN, VARVE_JOBS_STOP, VARVE_JOBS_FREE };

/* The clerk's. */
void varve_jobs_post(struct varve_runner *r, enum varve_jobs_letter what);

/* The clerk's: commits the ends that wait for it. */
void varve_jobs_settle(struct varve_daemon *d);

/* --- the types, by file --------------------------------------------------------------------- */

extern const struct varve_runner_ops varve_diff_ops, varve_push_ops;

#endif
