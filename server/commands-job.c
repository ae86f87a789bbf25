/* SPDX-License-Identifier: BSD-3-Clause
 *
 * query-jobs, job-pause, job-resume, job-cancel, job-dismiss, block-job-set-speed;
 * block-dirty-bitmap-diff, a transaction of one action.
 */
#include "server/commands.h"

#include "server/args.h"
#include "server/job.h"
#include "server/transaction.h"

#include <errno.h>

json_t *varve_command_bitmap_diff(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    return varve_transaction_single(d, "block-dirty-bitmap-diff", args, err);
}

static const char *describe_status(const struct varve_cat_job *j, const struct varve_runner *r)
{
    if (!varve_cat_job_open(j))
        return "concluded";
    if (j->state == VARVE_JOB_ABORTING || (r && r->ended && r->rc < 0))
        return "aborting";
    return !r ? "created" : r->ended ? "pending" : j->paused ? "paused" : "running";
}

static json_t *describe_job(struct varve_daemon *d, const struct varve_cat_job *j)
{
    const struct varve_runner *r = varve_cat_job_open(j) ? varve_jobs_find(d, j->id) : NULL;
    uint64_t current = r ? r->current : j->current, total = r ? r->total : j->total;
    json_t *o =
        json_pack("{s:s, s:s, s:s, s:I, s:I, s:s, s:s*, s:I, s:f}", "id", j->id, "type", j->type,
                  "status", describe_status(j, r), "current-progress", (json_int_t)current,
                  "total-progress", (json_int_t)total, "disk", j->disk, "bitmap", j->bitmap,
                  "speed", (json_int_t)j->speed, "time", (double)j->time_ns / 1e9);

    if (!o)
        return NULL;
    if (r && r->rate > 0) {
        json_object_set_new(o, "rate", json_integer((json_int_t)r->rate));
        if (total >= current)
            json_object_set_new(o, "time-left",
                                json_integer((json_int_t)((total - current) / r->rate)));
    }
    if (j->ended_ns)
        json_object_set_new(o, "ended", json_real((double)j->ended_ns / 1e9));
    if (j->state == VARVE_JOB_CANCELLED)
        json_object_set_new(o, "cancelled", json_true());
    if (j->error[0])
        json_object_set_new(o, "error", json_string(j->error));
    return o;
}

json_t *varve_command_query_jobs(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    static const char *const known[] = {NULL};
    json_t *list;

    if (varve_args_check(args, known, NULL, err) < 0)
        return NULL;
    list = json_array();
    for (size_t i = 0; i < d->catalogue->njobs; i++)
        json_array_append_new(list, describe_job(d, &d->catalogue->jobs[i]));
    return list;
}

/* A command whose only argument is a job's id. */
static json_t *with_id(struct varve_daemon *d, json_t *args,
                       int (*verb)(struct varve_daemon *d, const char *id, struct varve_err *err),
                       struct varve_err *err)
{
    static const char *const known[] = {"id", NULL};
    const char *id;

    if (varve_args_check(args, known, NULL, err) < 0 ||
        varve_args_string(args, "id", true, &id, err) < 0 || verb(d, id, err) < 0)
        return NULL;
    return json_object();
}

json_t *varve_command_job_cancel(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    return with_id(d, args, varve_jobs_cancel, err);
}

json_t *varve_command_job_pause(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    return with_id(d, args, varve_jobs_pause, err);
}

json_t *varve_command_job_resume(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    return with_id(d, args, varve_jobs_resume, err);
}

json_t *varve_command_job_dismiss(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    return with_id(d, args, varve_jobs_dismiss, err);
}

json_t *varve_command_job_set_speed(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    static const char *const known[] = {"device", "speed", NULL};
    const char *id;
    uint64_t speed;

    if (varve_args_check(args, known, NULL, err) < 0 ||
        varve_args_string(args, "device", true, &id, err) < 0)
        return NULL;
    if (!json_object_get(args, "speed")) {
        varve_err_set(err, EINVAL, "Parameter 'speed' is missing");
        return NULL;
    }
    if (varve_args_u63(args, "speed", 0, &speed, err) < 0 ||
        varve_jobs_set_speed(d, id, speed, err) < 0)
        return NULL;
    return json_object();
}
