/* SPDX-License-Identifier: BSD-3-Clause
 *
 * backup-begin, backup-end, query-backups.
 */
#include "server/commands.h"

#include "server/args.h"
#include "server/backup.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TTL_DEFAULT_S 86400u

/* Disks that one backup may have: far more than a machine has. */
#define DISKS_MAX 256u

/* --- begin
 * ----------------------------------------------------------------------------------------- */

static int parse_bitmap_mode(json_t *o, enum varve_bitmap_mode *out, struct varve_err *err)
{
    const char *mode;
    int rc = varve_args_string(o, "bitmap-mode", false, &mode, err);

    *out = VARVE_BITMAP_ON_SUCCESS;
    if (rc < 0 || !mode || strcmp(mode, "on-success") == 0)
        return rc;
    if (strcmp(mode, "never") == 0)
        *out = VARVE_BITMAP_NEVER;
    else if (strcmp(mode, "always") == 0)
        *out = VARVE_BITMAP_ALWAYS;
    else
        return varve_err_set(err, EINVAL, "Parameter 'bitmap-mode' does not accept value '%.200s'",
                             mode);
    return json_object_get(o, "bitmap")
               ? 0
               : varve_err_set(err, EINVAL,
                               "Cannot specify bitmap sync mode without a bitmap: what a backup is "
                               "'since' never moves");
}

static int parse_preserve(json_t *args, bool *dirty, struct varve_err *err)
{
    const char *what;
    int rc = varve_args_string(args, "preserve", false, &what, err);

    if (rc < 0 || !what || strcmp(what, "all") == 0)
        return rc;
    *dirty = strcmp(what, "dirty") == 0;
    if (!*dirty)
        return varve_err_set(err, EINVAL, "Parameter 'preserve' does not accept value '%.200s'", what);
    return 0;
}

int varve_backup_parse_disk(struct varve_daemon *d, json_t *o, struct varve_plan_disk *pd,
                            struct varve_err *err)
{
    static const char *const known[] = {"disk",         "since",       "bitmap", "export",
                                        "exportbitmap", "bitmap-mode", NULL};
    const char *disk, *since, *base, *export, *bitmap;
    int rc;

    if (!json_is_object(o))
        return varve_err_set(err, EINVAL,
                             "Invalid parameter type for 'disks', expected: array of objects");
    rc = varve_args_check(o, known, NULL, err);
    if (rc == 0)
        rc = varve_args_string(o, "disk", true, &disk, err);
    if (rc == 0)
        rc = varve_args_string(o, "since", false, &since, err);
    if (rc == 0)
        rc = varve_args_string(o, "bitmap", false, &base, err);
    if (rc == 0 && since && base)
        rc = varve_err_set(err, EINVAL, "Parameters 'since' and 'bitmap' exclude each other");
    if (rc == 0)
        rc = varve_args_name(o, "export", false, &export, err);
    if (rc == 0)
        rc = varve_args_string(o, "exportbitmap", false, &bitmap, err);
    if (rc == 0)
        rc = parse_bitmap_mode(o, &pd->mode, err);
    if (rc == 0)
        rc = varve_disks_find(d, disk, &pd->disk, err);
    if (rc < 0)
        return rc;
    if (since && (since[0] == '\0' || strlen(since) > VARVE_NAME_MAX))
        return varve_err_set(err, EINVAL,
                             "Disk '%s' has no checkpoint '%.80s': query-checkpoints lists those "
                             "there are",
                             disk, since);
    if (bitmap && (bitmap[0] == '\0' || strlen(bitmap) > VARVE_BITMAP_NAME_MAX))
        return varve_err_set(err, EINVAL, "exportbitmap of disk '%s' must have 1 to %d bytes", disk,
                             VARVE_BITMAP_NAME_MAX);
    if (base && (base[0] == '\0' || strlen(base) > VARVE_BITMAP_NAME_MAX))
        return varve_err_set(err, EINVAL,
                             "Dirty bitmap '%.80s' not found: query-block lists those of disk '%s'",
                             base, disk);
    snprintf(pd->since, sizeof(pd->since), "%s", since ? since : "");
    snprintf(pd->bitmap, sizeof(pd->bitmap), "%s", base ? base : "");
    snprintf(pd->export, sizeof(pd->export), "%s", export ? export : disk);
    if (bitmap)
        snprintf(pd->exportbitmap, sizeof(pd->exportbitmap), "%s", bitmap);
    else
        snprintf(pd->exportbitmap, sizeof(pd->exportbitmap), "backup-%s", disk);
    return 0;
}

int varve_backup_parse_disks(struct varve_daemon *d, json_t *args, struct varve_backup_plan *plan,
                             struct varve_err *err)
{
    json_t *disks, *item;
    size_t i;
    int rc = varve_args_list(args, "disks", true, &disks, err);

    if (rc < 0)
        return rc;
    if (json_array_size(disks) > DISKS_MAX)
        return varve_err_set(err, EINVAL, "A backup has at most %u disks", DISKS_MAX);
    plan->disks = calloc(json_array_size(disks), sizeof(*plan->disks));
    if (!plan->disks)
        return varve_err_set(err, ENOMEM, "no memory");
    plan->ndisks = json_array_size(disks);
    json_array_foreach(disks, i, item)
    {
        rc = varve_backup_parse_disk(d, item, &plan->disks[i], err);
        if (rc < 0)
            return rc;
        for (size_t k = 0; k < i; k++) {
            if (plan->disks[k].disk == plan->disks[i].disk)
                return varve_err_set(err, EINVAL, "Disk '%s' is named twice",
                                     plan->disks[i].disk->name);
        }
    }
    return 0;
}

int varve_backup_parse_plan(struct varve_daemon *d, json_t *args, struct varve_backup_plan *plan,
                            struct varve_err *err)
{
    static const char *const known[] = {"id",      "ttl",      "disks",  "checkpoint", "speed",
                                        "release", "preserve", "freeze", "adaptive",   NULL};
    const char *id, *checkpoint;
    int rc = varve_args_check(args, known, NULL, err);

    if (rc == 0)
        rc = varve_args_name(args, "id", false, &id, err);
    if (rc == 0)
        rc = varve_args_name(args, "checkpoint", false, &checkpoint, err);
    if (rc == 0)
        rc = varve_args_u63(args, "ttl", TTL_DEFAULT_S, &plan->ttl_s, err);
    if (rc == 0)
        rc = varve_args_u63(args, "speed", 0, &plan->speed, err);
    if (rc == 0)
        rc = varve_args_bool(args, "adaptive", false, &plan->adaptive, err);
    if (rc == 0)
        rc = varve_args_bool(args, "release", false, &plan->release, err);
    if (rc == 0)
        rc = varve_args_bool(args, "freeze", false, &plan->freeze, err);
    if (rc == 0)
        rc = parse_preserve(args, &plan->preserve_dirty, err);
    if (rc < 0)
        return rc;
    snprintf(plan->id, sizeof(plan->id), "%s", id ? id : "");
    snprintf(plan->checkpoint, sizeof(plan->checkpoint), "%s", checkpoint ? checkpoint : "");
    varve_disks_refresh(d);
    return varve_backup_parse_disks(d, args, plan, err);
}

json_t *varve_backup_begun(const struct varve_cat_backup *cb)
{
    json_t *list = json_array();

    for (size_t i = 0; i < cb->ndisks; i++) {
        const struct varve_cat_backup_disk *bd = &cb->disks[i];

        json_array_append_new(
            list, json_pack("{s:s, s:s, s:o, s:I, s:I}", "disk", bd->disk, "export", bd->export,
                            "context",
                            json_sprintf("%s%s", VARVE_CTX_DIRTY_PREFIX, bd->exportbitmap), "epoch",
                            (json_int_t)bd->boundary, "dirty-bytes", (json_int_t)bd->dirty_bytes));
    }
    return json_pack("{s:s, s:o}", "id", cb->id, "disks", list);
}

/* --- end
 * ------------------------------------------------------------------------------------------- */

json_t *varve_command_backup_end(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    static const char *const known[] = {"id", "success", NULL};
    const struct varve_cat_job *job;
    const char *id;
    bool success;

    if (varve_args_check(args, known, NULL, err) < 0 ||
        varve_args_string(args, "id", true, &id, err) < 0 ||
        varve_args_bool(args, "success", true, &success, err) < 0)
        return NULL;
    job = varve_catalogue_job_of_backup(d->catalogue, id);
    if (job) {
        varve_err_set(err, EBUSY,
                      "Backup '%s' is what job '%s' copies, and ends with it: job-cancel ends both",
                      id, job->id);
        return NULL;
    }
    varve_disks_refresh(d);
    if (varve_backup_end(d, id, success, "ended with success false", err) < 0)
        return NULL;
    return json_object();
}

/* --- query
 * ----------------------------------------------------------------------------------------- */

static json_t *describe_disk(const struct varve_cat_backup_disk *cbd,
                             const struct varve_backup_disk *bd, uint64_t *lost)
{
    struct varve_backup_counts n = {.bytes_read = cbd->bytes_read,
                                    .released_bytes = cbd->bytes_released};
    json_t *o;

    if (bd)
        varve_backup_count(bd, &n);
    *lost += n.lost_bytes;
    o = json_pack("{s:s, s:s, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "disk", cbd->disk,
                  "export", cbd->export, "context",
                  json_sprintf("%s%s", VARVE_CTX_DIRTY_PREFIX, cbd->exportbitmap), "epoch",
                  (json_int_t)cbd->boundary, "dirty-bytes", (json_int_t)cbd->dirty_bytes, "clients",
                  (json_int_t)n.clients, "bytes-read", (json_int_t)n.bytes_read, "requests",
                  (json_int_t)n.requests, "errors", (json_int_t)n.errors, "bytes-released",
                  (json_int_t)n.released_bytes, "scratch-used", (json_int_t)n.scratch_bytes);
    if (o && cbd->since[0])
        json_object_set_new(o, "since", json_string(cbd->since));
    if (o && cbd->bitmap) {
        json_object_set_new(o, "bitmap", json_string(cbd->bitmap));
        json_object_set_new(o, "bitmap-mode", json_string(varve_bitmap_mode_name(cbd->mode)));
    }
    return o;
}

static const char *describe_state(const struct varve_cat_backup *cb, uint64_t lost)
{
    switch (cb->state) {
    case VARVE_BACKUP_RUNNING:
        return lost > 0 ? "degraded" : "running";
    case VARVE_BACKUP_BROKEN:
        return "broken";
    case VARVE_BACKUP_COMPLETED:
        return "completed";
    default:
        return "failed";
    }
}

static void describe_throttle(struct varve_daemon *d, const struct varve_cat_backup *cb,
                              const struct varve_backup *b, json_t *o)
{
    struct varve_throttle_stats st;
    json_t *more;

    json_object_set_new(o, "speed", json_integer((json_int_t)cb->speed));
    json_object_set_new(o, "adaptive", json_boolean(cb->adaptive));
    if (!b || !b->throttle)
        return;
    varve_throttle_stats(b->throttle, d->w->monotonic_ns(d->w), &st);
    more = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "current-speed",
                     (json_int_t)st.current, "throttle-age-ms", (json_int_t)(st.age_ns / 1000000),
                     "throttled-bytes", (json_int_t)st.bytes, "throttle-waits",
                     (json_int_t)st.waits, "throttled-ms", (json_int_t)(st.waited_ns / 1000000),
                     "backoffs", (json_int_t)st.backoffs, "guest-write-ns", (json_int_t)st.guest_ns,
                     "guest-write-base-ns", (json_int_t)st.guest_base_ns);
    json_object_update(o, more);
    json_decref(more);
}

static json_t *describe_backup(struct varve_daemon *d, const struct varve_cat_backup *cb)
{
    const struct varve_backup *b = varve_cat_backup_open(cb) ? varve_backups_find(d, cb->id) : NULL;
    json_t *list = json_array(), *o;
    uint64_t lost = 0;

    for (size_t i = 0; i < cb->ndisks; i++)
        json_array_append_new(list, describe_disk(&cb->disks[i], b ? &b->disks[i] : NULL, &lost));
    o = json_pack("{s:s, s:s, s:f, s:o}", "id", cb->id, "state", describe_state(cb, lost), "time",
                  (double)cb->time_ns / 1e9, "disks", list);
    if (!o)
        return NULL;
    if (cb->ended_ns)
        json_object_set_new(o, "ended", json_real((double)cb->ended_ns / 1e9));
    if (cb->reason[0])
        json_object_set_new(o, "reason", json_string(cb->reason));
    if (cb->checkpoint[0])
        json_object_set_new(o, "checkpoint", json_string(cb->checkpoint));
    if (cb->release)
        json_object_set_new(o, "release", json_true());
    if (cb->preserve_dirty)
        json_object_set_new(o, "preserve", json_string("dirty"));
    if (lost > 0)
        json_object_set_new(o, "lost-bytes", json_integer((json_int_t)lost));
    describe_throttle(d, cb, b, o);
    return o;
}

json_t *varve_command_query_backups(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    static const char *const known[] = {NULL};
    json_t *list;

    if (varve_args_check(args, known, NULL, err) < 0)
        return NULL;
    varve_backups_tick(d); /* what broke since the last look */
    list = json_array();
    for (size_t i = 0; i < d->catalogue->nbackups; i++)
        json_array_append_new(list, describe_backup(d, &d->catalogue->backups[i]));
    return list;
}
