/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The clerk's side of jobs.  A job's states, as QEMU names them:
 *
 *                 paused
 *                   ▲▼
 *     created ──▶ running ──────────────▶ waiting ──▶ pending ──▶ concluded ──▶ null
 *                    │   (its work is done, its end is committed)     ▲           (dismissed)
 *                    └─▶ aborting ────────────────────────────────────┘
 *                        (cancelled, or failed)
 *
 *  1. A job is open in the catalogue before it runs, and until its end is durable there, together
 *     with what it did: whoever dies in between finds it open, and begins it again.  An end that
 *     cannot be committed is tried again every second; nothing of it holds before.
 *  2. job-cancel is durable before it is answered: such a job does not come back.
 *  3. A runner is freed on the loop, by the last letter about it: so no earlier letter finds it
 * gone.
 */
#include "server/job.h"

#include "lib/blocks-file.h"
#include "lib/json.h"
#include "server/disk.h"
#include "server/job-internal.h"
#include "server/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct varve_runner_ops *const types[] = {
    &varve_diff_ops,
    &varve_push_ops,
};

const struct varve_runner_ops *varve_jobs_type(const char *type)
{
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        if (strcmp(types[i]->type, type) == 0)
            return types[i];
    }
    return NULL;
}

/* --- events --------------------------------------------------------------------------------- */

static void say_status(struct varve_daemon *d, const char *id, const char *status)
{
    varve_events_send(d->events, "JOB_STATUS_CHANGE",
                      json_pack("{s:s, s:s}", "id", id, "status", status));
}

/* BLOCK_JOB_COMPLETED or _CANCELLED, as programs know them from QEMU. */
static void say_end(struct varve_daemon *d, const struct varve_cat_job *j)
{
    bool cancelled = j->state == VARVE_JOB_CANCELLED;

    varve_events_send(d->events, cancelled ? "BLOCK_JOB_CANCELLED" : "BLOCK_JOB_COMPLETED",
                      json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:s*}", "type", j->type, "device",
                                j->id, "disk", j->disk, "len", (json_int_t)j->total, "offset",
                                (json_int_t)j->current, "speed", (json_int_t)j->speed, "error",
                                j->state == VARVE_JOB_FAILED ? j->error : NULL));
    say_status(d, j->id, "concluded");
}

/* --- the beginning -------------------------------------------------------------------------- */

int varve_jobs_draft(struct varve_daemon *d, struct varve_catalogue *draft, const char *id,
                     const char *type, json_t *args, struct varve_cat_job **out,
                     struct varve_err *err)
{
    const struct varve_cat_job *other = id ? varve_catalogue_job(draft, id) : NULL;
    char chosen[VARVE_NAME_MAX + 1];
    struct varve_cat_job *j;

    if (other)
        return varve_err_set(err, EEXIST, "Job ID '%s' already in use: choose another one%s", id,
                             varve_cat_job_open(other) ? "" : ", or forget that with job-dismiss");
    while (!id) {
        snprintf(chosen, sizeof(chosen), "job-%llu", (unsigned long long)draft->next_job++);
        id = varve_catalogue_job(draft, chosen) ? NULL : chosen;
    }
    j = varve_catalogue_add_job(draft, id, type);
    if (j)
        j->args = varve_json_dump(args, JSON_COMPACT | JSON_SORT_KEYS);
    if (!j || !j->args)
        return varve_err_set(err, ENOMEM, "no memory for job '%s'", id);
    j->state = VARVE_JOB_RUNNING;
    j->time_ns = d->w->realtime_ns(d->w);
    *out = j;
    return 0;
}

struct varve_runner *varve_jobs_find(struct varve_daemon *d, const char *id)
{
    for (struct varve_runner *r = d->jobs->runners; r; r = r->next) {
        if (strcmp(r->id, id) == 0)
            return r;
    }
    return NULL;
}

/* Without memory it stays as it is: the next tick tries again. */
static struct varve_runner *runner_new(struct varve_daemon *d, const struct varve_cat_job *j)
{
    struct varve_runner *r = calloc(1, sizeof(*r));

    if (!r)
        return NULL;
    r->daemon = d;
    r->ops = varve_jobs_type(j->type);
    snprintf(r->id, sizeof(r->id), "%s", j->id);
    r->loop = d->jobs->loop;
    r->current = j->current;
    r->total = j->total;
    r->speed = j->speed;
    r->paused = j->paused;
    r->err = (struct varve_err)VARVE_ERR_INIT;
    r->next = d->jobs->runners;
    d->jobs->runners = r;
    return r;
}

/* Its end is committed by the next tick. */
static void runner_fail(struct varve_runner *r, int rc)
{
    r->rc = rc;
    r->ended = true;
}

static void job_begin(struct varve_daemon *d, const struct varve_cat_job *j)
{
    struct varve_runner *r = runner_new(d, j);
    int rc;

    if (!r) {
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_ERROR, .job = j->id, .disk = j->disk),
                        "Job '%s' cannot begin: no memory", j->id);
        return;
    }
    if (!r->ops) {
        rc = varve_err_set(&r->err, ENOTSUP,
                           "Job '%s' is of type '%s', which this varve does not know: use the "
                           "version that began it",
                           j->id, j->type);
    } else {
        rc = j->state == VARVE_JOB_ABORTING ? -ECANCELED : r->ops->open(r, j, &r->err);
    }
    if (rc < 0) {
        runner_fail(r, rc);
        return;
    }
    r->launched = true;
    r->rated_bytes = r->current;
    r->rated_ns = d->w->monotonic_ns(d->w);
    varve_jobs_post(r, VARVE_JOBS_RUN);
}

void varve_jobs_launch(struct varve_daemon *d, const char *id)
{
    const struct varve_cat_job *j = varve_catalogue_job(d->catalogue, id);

    varve_log_about(VARVE_ABOUT(.job = j->id, .disk = j->disk), "Job '%s' (%s of disk '%s') begins",
                    j->id, j->type, j->disk);
    say_status(d, id, "created");
    say_status(d, id, "running");
    job_begin(d, j);
    varve_jobs_settle(d);
}

void varve_jobs_restore(struct varve_daemon *d)
{
    for (size_t i = 0; i < d->catalogue->njobs; i++) {
        const struct varve_cat_job *j = &d->catalogue->jobs[i];

        if (!varve_cat_job_open(j) || varve_jobs_find(d, j->id))
            continue;
        if (j->state == VARVE_JOB_RUNNING)
            varve_log_about(VARVE_ABOUT(.job = j->id, .disk = j->disk), "Job '%s' %s", j->id,
                            j->paused ? "is paused still" : "goes on");
        job_begin(d, j);
    }
    varve_jobs_settle(d);
}

/* --- the end -------------------------------------------------------------------------------- */

/* As catalogue and wire can have it. */
static void set_error(struct varve_cat_job *j, const char *text)
{
    snprintf(j->error, sizeof(j->error), "%.255s", text);
    for (char *p = j->error; *p; p++) {
        if ((unsigned char)*p < ' ' || (unsigned char)*p > '~')
            *p = '?';
    }
}

static void job_close(struct varve_runner *r, struct varve_cat_job *j, bool cancelled, int rc,
                      const struct varve_err *err)
{
    j->state = cancelled ? VARVE_JOB_CANCELLED : rc < 0 ? VARVE_JOB_FAILED : VARVE_JOB_COMPLETED;
    if (j->state == VARVE_JOB_FAILED)
        set_error(j, err->msg);
    j->ended_ns = r->daemon->w->realtime_ns(r->daemon->w);
    j->current = r->current;
    j->total = r->total;
    j->paused = false;
    j->has_blocks = false;
    j->proof[0] = '\0';
    free(j->args);
    j->args = NULL;
}

/* Commits the end.  -EAGAIN: what the job did cannot be had, so it has failed: once more. */
static int job_conclude(struct varve_runner *r, struct varve_err *err)
{
    struct varve_daemon *d = r->daemon;
    const struct varve_cat_job *was = varve_catalogue_job(d->catalogue, r->id);
    bool cancelled = was->state == VARVE_JOB_ABORTING;
    struct varve_catalogue *draft = varve_daemon_draft(d, err);
    int rc = draft ? 0 : -ENOMEM;

    if (rc == 0 && r->ops)
        rc = r->ops->conclude(r, draft, cancelled, r->rc, err);
    if (rc < 0) {
        varve_catalogue_free(draft);
        if (rc == -ENOMEM || cancelled || r->rc < 0)
            return rc;
        r->rc = rc;
        r->err = *err;
        return -EAGAIN;
    }
    job_close(r, varve_catalogue_job(draft, r->id), cancelled, r->rc, &r->err);
    varve_catalogue_trim_jobs(draft);
    return varve_daemon_commit(d, draft, err);
}

static void job_said(struct varve_daemon *d, const struct varve_cat_job *j)
{
    if (j->state == VARVE_JOB_COMPLETED) {
        say_status(d, j->id, "waiting");
        say_status(d, j->id, "pending");
        varve_log_about(VARVE_ABOUT(.job = j->id, .disk = j->disk), "Job '%s' has completed",
                        j->id);
    } else if (j->state == VARVE_JOB_FAILED) {
        say_status(d, j->id, "aborting");
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .job = j->id, .disk = j->disk),
                        "Job '%s' has failed: %s", j->id, j->error);
    } else {
        varve_log_about(VARVE_ABOUT(.job = j->id, .disk = j->disk), "Job '%s' was cancelled",
                        j->id);
    }
    say_end(d, j);
}

static void runner_unlink(struct varve_runner *r)
{
    struct varve_runner **at = &r->daemon->jobs->runners;

    while (*at != r)
        at = &(*at)->next;
    *at = r->next;
}

/* False: it has to be tried again. */
static bool runner_conclude(struct varve_runner *r)
{
    struct varve_daemon *d = r->daemon;
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_disk *disk;
    int rc;

    do
        rc = job_conclude(r, &err);
    while (rc == -EAGAIN);
    if (rc < 0) {
        if (!r->unsaid)
            varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .job = r->id),
                            "Job '%s' has ended, which cannot be noted: %s", r->id, err.msg);
        r->unsaid = true;
        return false;
    }
    job_said(d, varve_catalogue_job(d->catalogue, r->id));
    if (r->ops && r->ops->concluded)
        r->ops->concluded(r);
    disk = varve_disks_by_uuid(d, varve_catalogue_job(d->catalogue, r->id)->uuid);
    if (disk)
        varve_disk_tidy(disk);
    runner_unlink(r);
    if (r->ops)
        r->ops->free(r);
    varve_jobs_post(r, VARVE_JOBS_FREE);
    return true;
}

void varve_jobs_settle(struct varve_daemon *d)
{
    struct varve_runner *r, *next;

    for (r = d->jobs->runners; r; r = next) {
        next = r->next;
        if (r->ended)
            runner_conclude(r);
    }
}

/* --- what is asked of them ------------------------------------------------------------------ */

static int find_open(struct varve_daemon *d, const char *id, const char *verb,
                     const struct varve_cat_job **out, struct varve_err *err)
{
    const struct varve_cat_job *j = varve_catalogue_job(d->catalogue, id);

    if (!j)
        return varve_err_set(
            err, ENOENT, "Job not found: there is no '%.100s', query-jobs lists those there are",
            id);
    if (!varve_cat_job_open(j))
        return varve_err_set(err, EBUSY,
                             "Job '%s' in state 'concluded' cannot accept command verb '%s': it "
                             "has ended",
                             id, verb);
    *out = j;
    return 0;
}

/* Changes the job's entry, durably. */
static int job_change(struct varve_daemon *d, const char *id, enum varve_cat_job_state state,
                      uint64_t speed, struct varve_err *err)
{
    struct varve_catalogue *draft = varve_daemon_draft(d, err);
    struct varve_cat_job *j;

    if (!draft)
        return -ENOMEM;
    j = varve_catalogue_job(draft, id);
    j->state = state;
    j->speed = speed;
    return varve_daemon_commit(d, draft, err);
}

int varve_jobs_cancel(struct varve_daemon *d, const char *id, struct varve_err *err)
{
    const struct varve_cat_job *j;
    struct varve_runner *r;
    int rc = find_open(d, id, "cancel", &j, err);

    if (rc < 0 || j->state == VARVE_JOB_ABORTING)
        return rc;
    rc = job_change(d, id, VARVE_JOB_ABORTING, j->speed, err);
    if (rc < 0)
        return rc;
    say_status(d, id, "aborting");
    r = varve_jobs_find(d, id);
    if (r && r->launched && !r->ended)
        varve_jobs_post(r, VARVE_JOBS_STOP);
    varve_jobs_restore(d); /* one that could not begin for want of memory ends so */
    return 0;
}

int varve_jobs_set_speed(struct varve_daemon *d, const char *id, uint64_t speed,
                         struct varve_err *err)
{
    const struct varve_cat_job *j;
    struct varve_runner *r;
    int rc = find_open(d, id, "set-speed", &j, err);

    if (rc == 0)
        rc = job_change(d, id, j->state, speed, err);
    r = varve_jobs_find(d, id);
    if (rc == 0 && r)
        r->speed = speed;
    return rc;
}

static int set_paused(struct varve_daemon *d, const char *id, bool paused, struct varve_err *err)
{
    const char *verb = paused ? "pause" : "resume";
    const struct varve_cat_job *j;
    struct varve_catalogue *draft;
    struct varve_runner *r = varve_jobs_find(d, id);
    int rc = find_open(d, id, verb, &j, err);

    if (rc < 0)
        return rc;
    if (j->state == VARVE_JOB_ABORTING || (r && r->ended))
        return varve_err_set(
            err, EBUSY, "Job '%s' cannot accept command verb '%s': it is about to end", id, verb);
    if (j->paused == paused)
        return varve_err_set(err, EINVAL, "Job '%s' is %s: there is nothing to %s", id,
                             paused ? "paused already" : "not paused", verb);
    draft = varve_daemon_draft(d, err);
    if (!draft)
        return -ENOMEM;
    varve_catalogue_job(draft, id)->paused = paused;
    rc = varve_daemon_commit(d, draft, err);
    if (rc < 0)
        return rc;
    if (r) {
        r->paused = paused;
        r->rate = 0;
        r->rated_ns = d->w->monotonic_ns(d->w);
        r->rated_bytes = r->current;
    }
    say_status(d, id, paused ? "paused" : "running");
    return 0;
}

int varve_jobs_pause(struct varve_daemon *d, const char *id, struct varve_err *err)
{
    return set_paused(d, id, true, err);
}

int varve_jobs_resume(struct varve_daemon *d, const char *id, struct varve_err *err)
{
    return set_paused(d, id, false, err);
}

int varve_jobs_dismiss(struct varve_daemon *d, const char *id, struct varve_err *err)
{
    const struct varve_cat_job *j = varve_catalogue_job(d->catalogue, id);
    struct varve_catalogue *draft;
    int rc;

    if (!j)
        return varve_err_set(
            err, ENOENT, "Job not found: there is no '%.100s', query-jobs lists those there are",
            id);
    if (varve_cat_job_open(j))
        return varve_err_set(err, EBUSY,
                             "Job '%s' in state '%s' cannot accept command verb 'dismiss': wait "
                             "for its end, or cancel it first",
                             id,
                             j->state == VARVE_JOB_ABORTING ? "aborting"
                             : j->paused                    ? "paused"
                                                            : "running");
    draft = varve_daemon_draft(d, err);
    if (!draft)
        return -ENOMEM;
    varve_catalogue_remove_job(draft, id);
    rc = varve_daemon_commit(d, draft, err);
    if (rc == 0)
        say_status(d, id, "null");
    return rc;
}

/* --- from second to second ------------------------------------------------------------------ */

/* What was done lately counts more than what was done long ago. */
static void runner_rate(struct varve_runner *r, uint64_t now)
{
    uint64_t current = r->current, ns = now - r->rated_ns, rate;

    if (!r->launched || r->ended || r->paused || ns < 500000000)
        return;
    rate = current > r->rated_bytes
               ? (uint64_t)((double)(current - r->rated_bytes) * 1e9 / (double)ns)
               : 0;
    r->rate = r->rate ? (3 * r->rate + rate) / 4 : rate;
    r->rated_ns = now;
    r->rated_bytes = current;
}

void varve_jobs_tick(struct varve_daemon *d)
{
    uint64_t now = d->w->monotonic_ns(d->w);

    for (struct varve_runner *r = d->jobs->runners; r; r = r->next)
        runner_rate(r, now);
    varve_jobs_settle(d);
    varve_jobs_restore(d); /* those that could not begin for want of memory */
}

void varve_jobs_save(struct varve_runner *r, uint64_t current, const struct varve_bitmap *blocks,
                     const char *proof)
{
    struct varve_daemon *d = r->daemon;
    const struct varve_cat_job *was = varve_catalogue_job(d->catalogue, r->id);
    struct varve_disk *disk = varve_disks_by_uuid(d, was->uuid);
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_catalogue *draft = disk ? varve_daemon_draft(d, &err) : NULL;
    struct varve_cat_job *j;
    int rc = draft ? 0 : -ENOMEM;

    if (rc == 0) {
        j = varve_catalogue_job(draft, r->id);
        j->current = current;
        snprintf(j->proof, sizeof(j->proof), "%.127s", proof);
        j->has_blocks = true;
        rc = varve_blocks_write(d->w, &disk->paths, disk->identity.uuid, &disk->identity.geometry,
                                blocks, j->blocks, &err);
        if (rc == 0)
            rc = varve_daemon_commit(d, draft, &err);
        else
            varve_catalogue_free(draft);
    }
    if (rc == 0)
        varve_disk_tidy(disk);
    else if (!r->unsaid)
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .job = r->id),
                        "Job '%s': where it is cannot be noted: %s", r->id, err.msg);
    r->unsaid = rc < 0;
}
