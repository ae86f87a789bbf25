/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The clerk: one thread that does all that touches policy (catalogue, disks, backups), one job
 * after the other in the order in which they were posted, with plain code that may wait.  Jobs come
 * from any thread.  It never runs two jobs at once, and nothing on the loop ever waits for it.
 */
#ifndef VARVE_SERVER_CLERK_H
#define VARVE_SERVER_CLERK_H

#include "lib/err.h"

#include <stdbool.h>

struct varve_job {
    struct varve_job *next;
    /* On the clerk's thread.  `stopping`: the daemon ends; answer, and do nothing else.  The job
     * may free itself. */
    void (*run)(struct varve_job *job, bool stopping);
};

struct varve_clerk;

/* tick(tick_arg) runs on the clerk's thread once a second, between jobs, also when there are many;
 * done(done_arg) is its last deed after varve_clerk_stop. */
int varve_clerk_start(void (*tick)(void *arg), void *tick_arg, void (*done)(void *arg),
                      void *done_arg, struct varve_clerk **out, struct varve_err *err);

/* The job's memory belongs to the clerk until run() is called, which happens exactly once. */
void varve_clerk_post(struct varve_clerk *c, struct varve_job *job);

/* Any thread: jobs from here on run with stopping = true, and whoever waits for
 * varve_clerk_stop_fd wakes. */
void varve_clerk_stop(struct varve_clerk *c);

/* Waits until the thread has ended, runs the jobs that came too late, and frees the clerk. */
void varve_clerk_join(struct varve_clerk *c);

/* A descriptor that is readable once varve_clerk_stop was called: for poll() in jobs that wait. */
int varve_clerk_stop_fd(const struct varve_clerk *c);
bool varve_clerk_stopping(const struct varve_clerk *c);

#endif
