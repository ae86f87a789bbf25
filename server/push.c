/* SPDX-License-Identifier: BSD-3-Clause
 *
 * backup-push: a backup whose client is the daemon itself.
 *
 *     action     backup-begin's, without exports; the job is in the catalogue, with that backup
 *     run        its view is copied to the target (push-run.c), which is flushed, then unmarked
 *     conclude   job and backup end in one commit
 *
 *  1. While the job is open so is its backup, and the other way round: nobody else can end it, and
 *     who finds one of them without the other after a death ends what is left as failed.
 *  2. The base moves in the commit that follows the target's flush.  A death in between repeats the
 *     push, or fails it where the target is a file that is whole by now: nothing is lost either
 * way.
 *  3. A failure gives everything back, as that of any backup, and leaves the target as it is:
 * marked, where it is a file.
 */
#include "server/push.h"

#include "server/args.h"
#include "server/base.h"
#include "server/commands.h"
#include "server/endpoint.h"
#include "server/job-internal.h"
#include "server/transaction.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define TARGET_MAX 4096u

struct args {
    const char *job_id, *target; /* borrowed */
    uint64_t speed;
    bool overwrite;
};

static int args_parse(json_t *data, struct args *a, struct varve_err *err)
{
    static const char *const known[] = {"job-id", "disk",        "since", "bitmap",
                                        "target", "bitmap-mode", "speed", "checkpoint",
                                        "freeze", "overwrite",   NULL};
    int rc = varve_args_check(data, known, NULL, err);

    if (rc == 0)
        rc = varve_args_name(data, "job-id", false, &a->job_id, err);
    if (rc == 0)
        rc = varve_args_string(data, "target", true, &a->target, err);
    if (rc == 0)
        rc = varve_args_u63(data, "speed", 0, &a->speed, err);
    if (rc == 0)
        rc = varve_args_bool(data, "overwrite", false, &a->overwrite, err);
    if (rc < 0)
        return rc;
    if (strlen(a->target) > TARGET_MAX ||
        (a->target[0] != '/' && !varve_endpoint_is_uri(a->target)))
        return varve_err_set(err, EINVAL,
                             "Parameter 'target' must be an absolute path or an NBD URI of at most "
                             "%u bytes, not '%.100s'",
                             TARGET_MAX, a->target);
    return 0;
}

/* The arguments as backup-begin has them. */
static json_t *begin_args(json_t *data)
{
    static const char *const of_disk[] = {"disk", "since", "bitmap", "bitmap-mode"};
    static const char *const of_backup[] = {"checkpoint", "freeze"};
    json_t *args = json_object(), *disk = json_object();

    for (size_t i = 0; i < sizeof(of_disk) / sizeof(of_disk[0]); i++) {
        if (json_object_get(data, of_disk[i]))
            json_object_set(disk, of_disk[i], json_object_get(data, of_disk[i]));
    }
    for (size_t i = 0; i < sizeof(of_backup) / sizeof(of_backup[0]); i++) {
        if (json_object_get(data, of_backup[i]))
            json_object_set(args, of_backup[i], json_object_get(data, of_backup[i]));
    }
    json_object_set_new(args, "disks", json_pack("[o]", disk));
    json_object_set_new(args, "ttl", json_integer(0));
    return args;
}

/* Equal texts: the same base of the same disk.  A new string. */
static int base_text(const struct varve_disk *disk, const struct varve_change_set *set,
                     uint64_t granularity, uint64_t boundary, char **out, struct varve_err *err)
{
    const uint8_t *u = disk->identity.uuid;
    char text[VARVE_BASE_TEXT_LEN];
    int rc = varve_base_describe(set, granularity, boundary, text, err);

    if (rc == 0 && asprintf(out, "%s [%02x%02x%02x%02x%02x%02x%02x%02x]", text, u[0], u[1], u[2],
                            u[3], u[4], u[5], u[6], u[7]) < 0)
        rc = varve_err_set(err, ENOMEM, "no memory for a push");
    return rc;
}

/* --- the action ----------------------------------------------------------------------------- */

struct push_action {
    struct varve_action a;
    struct args args;
    json_t *begin_args;
    struct varve_action *begin;
    char id[VARVE_NAME_MAX + 1]; /* of the job, once it is in the draft */
};

static void push_action_free(struct varve_action *a)
{
    struct push_action *pa = (struct push_action *)a;

    if (pa->begin)
        pa->begin->ops->free(pa->begin);
    json_decref(pa->begin_args);
    free(pa);
}

static int push_parse(struct varve_daemon *d, json_t *data, struct varve_action **out,
                      struct varve_err *err)
{
    struct push_action *pa = calloc(1, sizeof(*pa));
    const char *disk;
    int rc = pa ? args_parse(data, &pa->args, err) : varve_err_set(err, ENOMEM, "no memory");

    if (rc == 0)
        rc = varve_args_string(data, "disk", true, &disk, err);
    if (rc == 0) {
        pa->begin_args = begin_args(data);
        rc = varve_backup_begin_push(d, pa->begin_args, &pa->begin, err);
    }
    if (rc < 0) {
        if (pa)
            push_action_free(&pa->a);
        return rc;
    }
    *out = &pa->a;
    return 0;
}

/* It is no image that we know. */
static int check_no_image(struct varve_daemon *d, int fd, const char *target, struct varve_err *err)
{
    struct stat st;

    if (fd < 0 || fstat(fd, &st) != 0)
        return 0;
    for (struct varve_disk *disk = d->disks; disk; disk = disk->next) {
        if (S_ISBLK(st.st_mode)
                ? st.st_rdev == disk->image.st_rdev && S_ISBLK(disk->image.st_mode)
                : st.st_dev == disk->image.st_dev && st.st_ino == disk->image.st_ino)
            return varve_err_set(err, EINVAL, "%.300s is the image of disk '%s'", target,
                                 disk->name);
    }
    return 0;
}

/* What can be said of a file before anything is begun. */
static int check_target(struct varve_tx *tx, const struct push_action *pa, struct varve_err *err)
{
    const struct varve_plan_disk *pd = varve_backup_begin_disk(pa->begin);
    struct varve_push_want want = {.path = pa->args.target,
                                   .size = pd->disk->identity.geometry.size,
                                   .disk = pd->disk->name,
                                   .overwrite = pa->args.overwrite};
    struct varve_change_set set;
    struct varve_push_target t;
    char *base = NULL;
    uint64_t granularity;
    int rc = varve_backup_plan_base(tx->draft, pd, &set, &granularity, err);

    if (rc == 0 && (pd->since[0] || pd->bitmap[0]))
        rc = base_text(pd->disk, &set, granularity, VARVE_TX_TO_COME, &base, err);
    varve_change_set_clear(&set);
    want.base = base;
    if (rc == 0) {
        rc = varve_push_target_open(&t, &want, err);
        if (rc == 0)
            rc = check_no_image(tx->d, t.fd, want.path, err);
        varve_push_target_close(&t);
    }
    free(base);
    return rc;
}

static int push_apply(struct varve_tx *tx, struct varve_action *a, struct varve_err *err)
{
    struct push_action *pa = (struct push_action *)a;
    const struct varve_cat_backup *cb;
    struct varve_cat_job *j;
    int rc = 0;

    if (varve_tx_is_trial(tx) && !varve_endpoint_is_uri(pa->args.target))
        rc = check_target(tx, pa, err);
    if (rc == 0)
        rc = pa->begin->ops->apply(tx, pa->begin, err);
    if (rc == 0)
        rc = varve_jobs_draft(tx->d, tx->draft, pa->args.job_id, varve_push_ops.type, a->data, &j,
                              err);
    if (rc < 0)
        return rc;
    cb = varve_catalogue_backup(tx->draft, varve_backup_begin_id(pa->begin));
    memcpy(j->uuid, cb->disks[0].uuid, sizeof(j->uuid));
    snprintf(j->disk, sizeof(j->disk), "%s", cb->disks[0].disk);
    snprintf(j->backup, sizeof(j->backup), "%s", cb->id);
    snprintf(pa->id, sizeof(pa->id), "%s", j->id);
    j->start = cb->disks[0].boundary;
    j->speed = pa->args.speed;
    j->total = cb->disks[0].dirty_bytes;
    return 0;
}

static int push_prepare(struct varve_tx *tx, struct varve_action *a, struct varve_err *err)
{
    struct push_action *pa = (struct push_action *)a;

    return pa->begin->ops->prepare(tx, pa->begin, err);
}

static int push_committed(struct varve_tx *tx, struct varve_action *a, struct varve_err *err)
{
    struct push_action *pa = (struct push_action *)a;
    int rc = pa->begin->ops->committed(tx, pa->begin, err);

    varve_jobs_launch(tx->d, pa->id);
    return rc;
}

static json_t *push_result(struct varve_daemon *d, struct varve_action *a)
{
    const struct push_action *pa = (const struct push_action *)a;

    (void)d;
    return json_pack("{s:s, s:s}", "id", pa->id, "backup", varve_backup_begin_id(pa->begin));
}

const struct varve_action_ops varve_backup_push_ops = {
    .name = "backup-push",
    .parse = push_parse,
    .apply = push_apply,
    .prepare = push_prepare,
    .committed = push_committed,
    .result = push_result,
    .free = push_action_free,
};

json_t *varve_command_backup_push(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    return varve_transaction_single(d, "backup-push", args, err);
}

/* --- the runner: beginning ------------------------------------------------------------------ */

static int open_args(struct varve_push *p, const struct varve_cat_job *job, struct varve_err *err)
{
    json_t *data = json_loads(job->args, JSON_REJECT_DUPLICATES, NULL);
    struct args a = {.job_id = NULL};
    int rc = data ? args_parse(data, &a, err) : varve_err_set(err, EUCLEAN, "no arguments");

    if (rc == 0) {
        p->where = strdup(a.target);
        p->want.overwrite = a.overwrite;
        if (!p->where)
            rc = varve_err_set(err, ENOMEM, "no memory for a push");
    }
    json_decref(data);
    return rc;
}

static int open_base(struct varve_push *p, const struct varve_backup_disk *bd,
                     const struct varve_cat_backup_disk *cbd, struct varve_err *err)
{
    struct varve_change_set set;
    int rc;

    if (varve_backup_is_full(cbd))
        return 0;
    if (varve_backup_base(p->runner->daemon->catalogue, cbd, &set) < 0)
        return varve_err_set(err, ENOMEM, "no memory for a push");
    rc = base_text(bd->disk, &set, cbd->granularity, cbd->boundary, &p->base, err);
    varve_change_set_clear(&set);
    return rc;
}

static int push_open(struct varve_runner *r, const struct varve_cat_job *job, struct varve_err *err)
{
    struct varve_push *p = calloc(1, sizeof(*p));
    struct varve_backup *b = varve_backups_find(r->daemon, job->backup);
    const struct varve_cat_backup *cb = varve_catalogue_backup(r->daemon->catalogue, job->backup);
    const struct varve_backup_disk *bd;
    int rc;

    if (!p)
        return varve_err_set(err, ENOMEM, "no memory for a push");
    r->work = p;
    p->runner = r;
    if (!b || b->withdrawn || !cb)
        return varve_err_set(err, ESTALE, "%.400s",
                             cb && cb->reason[0] ? cb->reason : "its backup could not go on");
    bd = &b->disks[0];
    rc = open_args(p, job, err);
    if (rc == 0)
        rc = open_base(p, bd, &cb->disks[0], err);
    if (rc < 0)
        return rc;
    p->g = bd->disk->identity.geometry;
    p->view = varve_served_view_ref(bd->served);
    p->want.path = p->where;
    p->want.size = p->g.size;
    p->want.disk = bd->disk->name;
    p->want.base = p->base;
    p->want.view = bd->view;
    rc = varve_changes_get(bd->changes, &p->changed, err);
    if (rc < 0)
        return rc;
    p->changes = varve_changes_ref(bd->changes);
    r->current = 0;
    r->total = varve_changed_bytes(&p->changed, &p->g);
    return 0;
}

/* Nobody reads the view any more. */
static void push_leave(struct varve_push *p)
{
    if (p->changes) {
        varve_changes_put(p->changes);
        varve_changes_unref(p->changes);
    }
    varve_served_view_unref(p->view);
    p->changes = NULL;
    p->view = NULL;
}

static void push_free(struct varve_runner *r)
{
    struct varve_push *p = r->work;

    if (!p)
        return;
    push_leave(p);
    free(p->base);
    free(p->where);
    free(p);
}

/* --- the runner: end ------------------------------------------------------------------------ */

static int push_conclude(struct varve_runner *r, struct varve_catalogue *draft, bool cancelled,
                         int rc, struct varve_err *err)
{
    const struct varve_cat_job *job = varve_catalogue_job(draft, r->id);
    const struct varve_cat_backup *cb = varve_catalogue_backup(draft, job->backup);
    bool success = rc == 0 && !cancelled;
    char reason[VARVE_NAME_MAX + 32], id[VARVE_NAME_MAX + 1];

    snprintf(id, sizeof(id), "%s", job->backup);
    if (!cb || !varve_cat_backup_open(cb))
        return success ? varve_err_set(err, ESTALE, "its backup '%s' has ended before", id) : 0;
    snprintf(reason, sizeof(reason), "job '%s' was cancelled", r->id);
    return varve_backup_draft_end(r->daemon, draft, id, success,
                                  cancelled ? reason
                                  : rc < 0  ? r->err.msg
                                            : "",
                                  err);
}

static void push_concluded(struct varve_runner *r)
{
    struct varve_daemon *d = r->daemon;
    const struct varve_cat_job *job = varve_catalogue_job(d->catalogue, r->id);

    if (r->work)
        push_leave(r->work);
    if (varve_backups_find(d, job->backup)) /* else it ended when the daemon began */
        varve_backup_ended(d, job->backup);
}

const struct varve_runner_ops varve_push_ops = {
    .type = "push",
    .open = push_open,
    .run = varve_push_run,
    .stop = varve_push_stop,
    .conclude = push_conclude,
    .concluded = push_concluded,
    .free = push_free,
};
