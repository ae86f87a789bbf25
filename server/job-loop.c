/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The loop's side of jobs: it begins and stops runners, and hands them back to the clerk when they
 * have ended.  When the daemon ends they are stopped and not handed back: the catalogue still has
 * them, so the next daemon begins them again.
 */
#include "server/job-internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

/* What a job may do at once after it has waited. */
#define BURST_S     0.1
#define PACE_MAX_MS 200u

/* --- letters -------------------------------------------------------------------------------- */

static void runner_run(struct varve_letter *letter)
{
    struct varve_runner *r = (struct varve_runner *)((char *)(letter - VARVE_JOBS_RUN) -
                                                     offsetof(struct varve_runner, letters));
    struct varve_jobs *jobs = r->daemon->jobs;

    if (jobs->stopping)
        return;
    r->running = true;
    TAILQ_INSERT_TAIL(&jobs->running, r, link);
    r->ops->run(r);
}

static void runner_stop(struct varve_runner *r)
{
    if (!r->running || r->stopping)
        return;
    r->stopping = true;
    r->ops->stop(r);
}

static void runner_stop_letter(struct varve_letter *letter)
{
    runner_stop((struct varve_runner *)((char *)(letter - VARVE_JOBS_STOP) -
                                        offsetof(struct varve_runner, letters)));
}

static void runner_free(struct varve_letter *letter)
{
    free((char *)(letter - VARVE_JOBS_FREE) - offsetof(struct varve_runner, letters));
}

void varve_jobs_post(struct varve_runner *r, enum varve_jobs_letter what)
{
    static void (*const deliver[])(struct varve_letter * letter) = {
        [VARVE_JOBS_RUN] = runner_run,
        [VARVE_JOBS_STOP] = runner_stop_letter,
        [VARVE_JOBS_FREE] = runner_free,
    };

    r->letters[what].deliver = deliver[what];
    varve_mailbox_post(r->daemon->jobs->mailbox, &r->letters[what]);
}

/* --- the end of one ------------------------------------------------------------------------- */

/* On the clerk's thread. */
static void runner_end_job(struct varve_job *job, bool stopping)
{
    struct varve_runner *r =
        (struct varve_runner *)((char *)job - offsetof(struct varve_runner, end_job));

    if (stopping)
        return;
    r->ended = true;
    varve_jobs_settle(r->daemon);
}

static void jobs_maybe_closed(struct varve_jobs *jobs)
{
    if (!jobs->mailbox_closed || !TAILQ_EMPTY(&jobs->running) || !jobs->closed)
        return;
    jobs->closed(jobs->closed_arg);
    jobs->closed = NULL;
}

void varve_runner_ended(struct varve_runner *r, int rc, const struct varve_err *err)
{
    struct varve_jobs *jobs = r->daemon->jobs;

    assert(r->running);
    r->running = false;
    TAILQ_REMOVE(&jobs->running, r, link);
    r->rc = rc;
    if (rc < 0)
        r->err = *err;
    if (jobs->stopping) {
        jobs_maybe_closed(jobs);
        return;
    }
    r->end_job.run = runner_end_job;
    varve_clerk_post(r->daemon->clerk, &r->end_job);
}

/* --- pace ----------------------------------------------------------------------------------- */

/* Credit grows with time, to what a tenth of a second is worth; what begins takes it, and may leave
 * a debt.  So any size of pieces keeps the mean, and another speed counts from now on. */
unsigned varve_runner_pace(struct varve_runner *r, uint64_t bytes)
{
    uint64_t speed = r->speed, now = uv_hrtime();
    double wait_ms;

    if (speed == 0) {
        r->paced_ns = 0;
        r->credit = 0;
        return 0;
    }
    if (r->paced_ns) {
        double more = (double)speed * (double)(now - r->paced_ns) / 1e9;
        double most = (double)speed * BURST_S, credit = (double)r->credit + more;

        if (more < 1) /* parts of a byte are not to be lost */
            return speed < 1000 / PACE_MAX_MS ? PACE_MAX_MS : (unsigned)(1000 / speed + 1);
        r->credit = (int64_t)(credit < most ? credit : most);
    }
    r->paced_ns = now;
    if (r->credit >= 0) {
        r->credit -= (int64_t)bytes;
        return 0;
    }
    wait_ms = (double)-r->credit * 1000 / (double)speed + 1;
    return wait_ms < PACE_MAX_MS ? (unsigned)wait_ms : PACE_MAX_MS;
}

unsigned varve_runner_pause(struct varve_runner *r)
{
    if (!r->paused)
        return 0;
    r->paced_ns = 0; /* what it did not do meanwhile is no credit */
    return PACE_MAX_MS;
}

/* --- the machine ---------------------------------------------------------------------------- */

int varve_jobs_new(uv_loop_t *loop, struct varve_daemon *d, struct varve_err *err)
{
    struct varve_jobs *jobs = calloc(1, sizeof(*jobs));
    int rc;

    if (!jobs)
        return varve_err_set(err, ENOMEM, "no memory for jobs");
    rc = varve_mailbox_new(loop, &jobs->mailbox, err);
    if (rc < 0) {
        free(jobs);
        return rc;
    }
    jobs->daemon = d;
    jobs->loop = loop;
    TAILQ_INIT(&jobs->running);
    d->jobs = jobs;
    return 0;
}

void varve_jobs_stop(struct varve_jobs *jobs)
{
    struct varve_runner *r, *next;

    jobs->stopping = true;
    for (r = TAILQ_FIRST(&jobs->running); r; r = next) {
        next = TAILQ_NEXT(r, link);
        runner_stop(r);
    }
}

void varve_jobs_close(struct varve_jobs *jobs, void (*closed)(void *arg), void *arg)
{
    jobs->closed = closed;
    jobs->closed_arg = arg;
    varve_mailbox_close(jobs->mailbox);
    jobs->mailbox_closed = true;
    jobs_maybe_closed(jobs);
}

void varve_jobs_free(struct varve_jobs *jobs)
{
    struct varve_runner *r;

    while (jobs && (r = jobs->runners) != NULL) {
        jobs->runners = r->next;
        if (r->ops)
            r->ops->free(r);
        free(r);
    }
    free(jobs);
}
