/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Jobs: long work of the daemon, as QEMU has them (query-jobs, job-pause, job-cancel, job-dismiss).
 * The catalogue says which there are and what is needed to begin each again (struct varve_cat_job);
 * a *runner* is what runs for an open one.  Policy belongs to the clerk's thread, the work itself
 * to the main loop's; each function says whose it is.  A job is never lost silently: it is open in
 * the catalogue until its end is durable there, and ended ones stay until they are dismissed.
 *
 *     clerk   varve_jobs_draft ─ commit ─ varve_jobs_launch: open()                 conclude() ─
 * commit ─ concluded() ─ free() │ letter                              ▲ job loop └──▶ run() ─ … ─
 * varve_runner_ended() ┘ stop() may come in between
 */
#ifndef VARVE_SERVER_JOB_H
#define VARVE_SERVER_JOB_H

#include "lib/catalogue.h"
#include "lib/qmp.h"
#include "server/daemon.h"
#include "server/mailbox.h"

#include <stdatomic.h>
#include <sys/queue.h>
#include <uv.h>

struct varve_jobs;
struct varve_runner;

/* A type of job. */
struct varve_runner_ops {
    const char *type; /* as query-jobs says it */

    /* Clerk.  Makes r->work, also of a job that a former daemon began.  Sets r->total, and
     * r->current where it goes on from.  On an error the job fails with it. */
    int (*open)(struct varve_runner *r, const struct varve_cat_job *job, struct varve_err *err);
    /* Loop.  Begins; varve_runner_ended() comes later, once, whatever happens. */
    void (*run)(struct varve_runner *r);
    /* Loop, after run() and before the end.  Whatever it waits for, it is to end soon. */
    void (*stop)(struct varve_runner *r);
    /* Clerk.  It has ended: rc and err are what it said, or what open() did (then r->work may be
     * NULL).  `cancelled`: somebody wanted that; what it did counts for nothing then, as after an
     * error.  Does to the draft what belongs into the commit of its end; an error fails the job. */
    int (*conclude)(struct varve_runner *r, struct varve_catalogue *draft, bool cancelled, int rc,
                    struct varve_err *err);
    /* Clerk, after that commit.  NULL: nothing. */
    void (*concluded)(struct varve_runner *r);
    /* Clerk, or when the daemon ends.  r->work, which may be NULL. */
    void (*free)(struct varve_runner *r);
};

struct varve_runner {
    struct varve_runner *next; /* clerk's */
    /* constant */
    struct varve_daemon *daemon;
    const struct varve_runner_ops *ops;
    char id[VARVE_NAME_MAX + 1];
    void *work;      /* the type's */
    uv_loop_t *loop; /* to be used on its thread */

    /* bytes; any thread */
    _Atomic uint64_t current, total;
    _Atomic uint64_t speed; /* per second; 0: no limit */
    _Atomic bool paused;    /* any thread */

    /* the clerk's */
    uint64_t rate; /* bytes per second, lately; 0: not known yet */
    uint64_t rated_ns, rated_bytes;
    bool launched; /* the loop has it, or had */
    bool ended;    /* its end waits to be committed */
    bool unsaid;   /* why that does not work was logged */

    /* the loop's until it has ended, then the clerk's */
    TAILQ_ENTRY(varve_runner) link;
    bool running, stopping;
    uint64_t paced_ns; /* when credit was counted last; 0: never */
    int64_t credit;    /* bytes that may begin now */
    int rc;
    struct varve_err err;
    struct varve_job end_job;
    struct varve_letter letters[3]; /* of enum varve_jobs_letter: each is posted once at most */
};

/* --- the clerk's ---------------------------------------------------------------------------- */

/* A job into the draft: `id` (NULL: one is chosen) and its type, the arguments of its command as
 * they are, running.  The caller fills in the rest.  -EEXIST: there is one of that id, which may
 * have ended.  -ENOMEM */
int varve_jobs_draft(struct varve_daemon *d, struct varve_catalogue *draft, const char *id,
                     const char *type, json_t *args, struct varve_cat_job **out,
                     struct varve_err *err);
/* Begins a job of the catalogue. */
void varve_jobs_launch(struct varve_daemon *d, const char *id);
/* The open ones of the catalogue are taken up again. */
void varve_jobs_restore(struct varve_daemon *d);
/* Once a second. */
void varve_jobs_tick(struct varve_daemon *d);
/* The runner of an open job; NULL: there is none. */
struct varve_runner *varve_jobs_find(struct varve_daemon *d, const char *id);
/* Durable when it returns 0; the job ends soon.  -ENOENT, -EBUSY: it has ended. */
int varve_jobs_cancel(struct varve_daemon *d, const char *id, struct varve_err *err);
int varve_jobs_set_speed(struct varve_daemon *d, const char *id, uint64_t speed,
                         struct varve_err *err);
/* Durable when they return 0, also over a restart.  What is under way ends; nothing begins while it
 * is paused, not its end either.  -ENOENT; -EBUSY: it has ended, or is about to; -EINVAL: it is so
 * already. */
int varve_jobs_pause(struct varve_daemon *d, const char *id, struct varve_err *err);
int varve_jobs_resume(struct varve_daemon *d, const char *id, struct varve_err *err);
/* An ended job is forgotten.  -ENOENT, -EBUSY: it has not ended. */
int varve_jobs_dismiss(struct varve_daemon *d, const char *id, struct varve_err *err);

/* What the job found so far, for a restart: `current`, with `blocks` (in the geometry of the job's
 * disk), as long as `proof` can be had again.  An error is logged: then it begins further back. */
void varve_jobs_save(struct varve_runner *r, uint64_t current, const struct varve_bitmap *blocks,
                     const char *proof);

/* What job-… has to say of a job of that type; NULL: this daemon does not know it. */
const struct varve_runner_ops *varve_jobs_type(const char *type);

/* --- the loop's ----------------------------------------------------------------------------- */

/* Last deed of run(): nothing of it is under way any more.  rc 0, or -errno with err. */
void varve_runner_ended(struct varve_runner *r, int rc, const struct varve_err *err);

/* 0: so many bytes may begin, and are counted.  Else milliseconds after which to ask again. */
unsigned varve_runner_pace(struct varve_runner *r, uint64_t bytes);
/* 0: it may go on.  Else the same: it is paused. */
unsigned varve_runner_pause(struct varve_runner *r);

/* At the start, before the clerk.  d->jobs is set. */
int varve_jobs_new(uv_loop_t *loop, struct varve_daemon *d, struct varve_err *err);
/* The daemon ends: what runs is stopped, what would begin does not; the catalogue stays as it is.
 */
void varve_jobs_stop(struct varve_jobs *jobs);
/* After that, and once the clerk has done its last: closed(arg) when nothing runs any more. */
void varve_jobs_close(struct varve_jobs *jobs, void (*closed)(void *arg), void *arg);
/* After closed(), on any thread. */
void varve_jobs_free(struct varve_jobs *jobs);

#endif
