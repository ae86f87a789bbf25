/* SPDX-License-Identifier: BSD-3-Clause
 *
 * block-dirty-bitmap-diff: what an incremental onto an older copy of the disk needs.
 *
 *     action     a boundary at epoch s; the job is in the catalogue, with s
 *     run        every block of the disk is compared with the reference (diff-run.c)
 *     conclude   the bitmap is {blocks that differed} ∪ [s, open), and what it had before
 *
 *  1. A block that differs from the reference at the end differed when it was compared, or was
 *     written since, and so since s: it is in the bitmap either way.  A write that tears a
 *     comparison is one of the latter.  So it does not matter when a block is compared, and what a
 *     daemon that died had compared need not be compared again, as long as the reference is the
 *     same (`proof`).
 *     The other way round a reference that somebody writes to meanwhile is none.
 *  2. Until its end the job changes nothing but its own entry: a bitmap that is there stays as it
 *     is, and is busy; one that is to be made is not there, and its name is taken.
 *  3. What was known of a bitmap that is inconsistent is nothing, so it becomes what was found:
 * this is how a chain is repaired after others wrote to the image, as s is behind that.  If others
 *     write during the job, s is before it, and the job fails.
 */
#include "server/diff.h"

#include "lib/blocks-file.h"
#include "server/args.h"
#include "server/bitmap.h"
#include "server/endpoint.h"
#include "server/job-internal.h"
#include "server/log.h"
#include "lib/quiet-io.h"
#include "server/transaction.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REFERENCE_MAX 4096u

struct args {
    const char *job_id, *node, *name, *reference; /* borrowed */
    uint64_t speed;
    bool resize, dirty_on_error;
};

static int args_parse(json_t *data, struct args *a, struct varve_err *err)
{
    static const char *const known[] = {"job-id", "node",     "name",   "reference",
                                        "speed",  "on-error", "resize", NULL};
    const char *on_error = NULL;
    int rc = varve_args_check(data, known, NULL, err);

    if (rc == 0)
        rc = varve_args_name(data, "job-id", false, &a->job_id, err);
    if (rc == 0)
        rc = varve_args_string(data, "node", true, &a->node, err);
    if (rc == 0)
        rc = varve_args_string(data, "name", true, &a->name, err);
    if (rc == 0)
        rc = varve_args_string(data, "reference", true, &a->reference, err);
    if (rc == 0)
        rc = varve_args_u63(data, "speed", 0, &a->speed, err);
    if (rc == 0)
        rc = varve_args_bool(data, "resize", false, &a->resize, err);
    if (rc == 0)
        rc = varve_args_string(data, "on-error", false, &on_error, err);
    if (rc < 0)
        return rc;
    a->dirty_on_error = on_error && strcmp(on_error, "dirty") == 0;
    if (on_error && !a->dirty_on_error && strcmp(on_error, "report") != 0)
        return varve_err_set(err, EINVAL, "Parameter 'on-error' does not accept value '%.200s'",
                             on_error);
    if (strlen(a->reference) > REFERENCE_MAX ||
        (a->reference[0] != '/' && !varve_endpoint_is_uri(a->reference)))
        return varve_err_set(err, EINVAL,
                             "Parameter 'reference' must be an absolute path or an NBD URI of at "
                             "most %u bytes, not '%.100s'",
                             REFERENCE_MAX, a->reference);
    return 0;
}

/* --- the action ----------------------------------------------------------------------------- */

struct diff_action {
    struct varve_action a;
    struct args args;
    struct varve_disk *disk;
    char id[VARVE_NAME_MAX + 1]; /* of the job, once it is in the draft */
};

static int diff_parse(struct varve_daemon *d, json_t *data, struct varve_action **out,
                      struct varve_err *err)
{
    struct diff_action *da = calloc(1, sizeof(*da));
    int rc = da ? args_parse(data, &da->args, err) : varve_err_set(err, ENOMEM, "no memory");

    if (rc == 0) {
        varve_disks_refresh(d);
        rc = varve_disks_find(d, da->args.node, &da->disk, err);
    }
    if (rc == 0)
        rc = varve_bitmap_check_new(d->catalogue, da->disk, da->args.name, err);
    if (rc < 0) {
        free(da);
        return rc;
    }
    *out = &da->a;
    return 0;
}

/* One that is there must not be in use; inconsistent it may be. */
static int diff_check_bitmap(const struct varve_tx *tx, const struct diff_action *da,
                             struct varve_err *err)
{
    const struct varve_cat_disk *cd = varve_catalogue_disk(tx->draft, da->disk->identity.uuid);
    const struct varve_cat_bitmap *b = varve_catalogue_bitmap(cd, da->args.name);
    struct varve_err why = VARVE_ERR_INIT;
    int rc;

    if (!b)
        return varve_bitmap_check_new(tx->draft, da->disk, da->args.name, err);
    rc = varve_bitmap_check(tx->draft, da->disk, b, &why);
    if (rc == 0 || rc == -EUCLEAN)
        return 0;
    *err = why;
    return rc;
}

static int diff_apply(struct varve_tx *tx, struct varve_action *a, struct varve_err *err)
{
    struct diff_action *da = (struct diff_action *)a;
    struct varve_cat_job *j;
    uint64_t start;
    int rc = diff_check_bitmap(tx, da, err);

    if (rc == 0 && !varve_tx_disk(tx, da->disk, err))
        rc = -ENOMEM;
    if (rc == 0)
        rc = varve_tx_boundary(tx, da->disk, &start, err);
    if (rc == 0)
        rc = varve_jobs_draft(tx->d, tx->draft, da->args.job_id, varve_diff_ops.type, a->data, &j,
                              err);
    if (rc < 0)
        return rc;
    memcpy(j->uuid, da->disk->identity.uuid, sizeof(j->uuid));
    snprintf(j->disk, sizeof(j->disk), "%s", da->disk->name);
    snprintf(da->id, sizeof(da->id), "%s", j->id);
    j->start = start;
    j->speed = da->args.speed;
    j->total = da->disk->identity.geometry.size;
    j->bitmap = strdup(da->args.name);
    return j->bitmap ? 0 : varve_err_set(err, ENOMEM, "no memory for job '%s'", j->id);
}

static int diff_committed(struct varve_tx *tx, struct varve_action *a, struct varve_err *err)
{
    (void)err;
    varve_jobs_launch(tx->d, ((struct diff_action *)a)->id);
    return 0;
}

static json_t *diff_result(struct varve_daemon *d, struct varve_action *a)
{
    (void)d;
    return json_pack("{s:s}", "id", ((struct diff_action *)a)->id);
}

static void diff_action_free(struct varve_action *a)
{
    free(a);
}

const struct varve_action_ops varve_bitmap_diff_ops = {
    .name = "block-dirty-bitmap-diff",
    .parse = diff_parse,
    .apply = diff_apply,
    .committed = diff_committed,
    .result = diff_result,
    .free = diff_action_free,
};

/* --- the runner: beginning ------------------------------------------------------------------ */

/* What the reader of the image does to how it is cached is not to touch readers of views: a
 * description of its own, where that can be had. */
static int open_image(struct varve_diff *diff, struct varve_err *err)
{
    int fd = varve_source_image_fd(diff->disk->source), own;
    char path[64];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    own = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (own >= 0)
        varve_quiet_prepare(own);
    else
        own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (own < 0)
        return varve_err_sys(err, errno, "Disk '%s': cannot open its image", diff->disk->name);
    diff->image_fd = own;
    diff->images = diff->disk->images;
    diff->image_dev = (uint64_t)diff->disk->image.st_dev;
    diff->image_ino = (uint64_t)diff->disk->image.st_ino;
    return 0;
}

static int open_args(struct varve_diff *diff, const struct varve_cat_job *job,
                     struct varve_err *err)
{
    json_t *data = json_loads(job->args, JSON_REJECT_DUPLICATES, NULL);
    struct args a = {.job_id = NULL};
    int rc = data ? args_parse(data, &a, err) : varve_err_set(err, EUCLEAN, "no arguments");

    if (rc == 0) {
        diff->reference = strdup(a.reference);
        diff->resize = a.resize;
        diff->dirty_on_error = a.dirty_on_error;
        if (!diff->reference)
            rc = varve_err_set(err, ENOMEM, "no memory");
    }
    json_decref(data);
    return rc;
}

/* What a former daemon had found, as far as it may be of use: the loop looks whether the reference
 * is still what that compared, as a file's system may take its time to say so. */
static int open_map(struct varve_diff *diff, const struct varve_cat_job *job, struct varve_err *err)
{
    const struct varve_identity *id = &diff->disk->identity;

    diff->map = varve_bitmap_new(id->geometry.nblks);
    if (!diff->map)
        return varve_err_set(err, ENOMEM, "no memory for a map");
    if (!job->has_blocks || job->current > id->geometry.size ||
        job->current % varve_block_size(&id->geometry) != 0 ||
        varve_blocks_load(diff->disk->daemon->w, &diff->disk->paths, id->uuid, &id->geometry,
                          job->blocks, diff->map, NULL) < 0)
        return 0;
    snprintf(diff->proof, sizeof(diff->proof), "%s", job->proof);
    diff->from = job->current;
    return 0;
}

static int diff_open(struct varve_runner *r, const struct varve_cat_job *job, struct varve_err *err)
{
    struct varve_diff *diff = calloc(1, sizeof(*diff));
    int rc = 0;

    if (!diff)
        return varve_err_set(err, ENOMEM, "no memory");
    r->work = diff;
    diff->runner = r;
    diff->image_fd = -1;
    diff->disk = varve_disks_by_uuid(r->daemon, job->uuid);
    if (!diff->disk)
        return varve_err_set(err, ENODEV, "Disk '%s' is gone", job->disk);
    if (!diff->disk->source)
        rc = varve_disk_open_source(diff->disk, err);
    if (rc == 0)
        rc = open_args(diff, job, err);
    if (rc == 0)
        rc = open_image(diff, err);
    if (rc == 0)
        rc = open_map(diff, job, err);
    r->current = diff->from;
    r->total = diff->disk->identity.geometry.size;
    return rc;
}

static void diff_free(struct varve_runner *r)
{
    struct varve_diff *diff = r->work;

    if (!diff)
        return;
    if (diff->image_fd >= 0)
        close(diff->image_fd);
    free(diff->reference);
    free(diff->map);
    free(diff);
}

/* --- the runner: end ------------------------------------------------------------------------ */

/* The set that the bitmap is to have; *set is the caller's to clear. */
static int make_set(struct varve_diff *diff, const struct varve_cat_job *job,
                    const struct varve_cat_bitmap *b, struct varve_change_set *set,
                    struct varve_err *err)
{
    const struct varve_identity *id = &diff->disk->identity;
    struct varve_world *w = diff->disk->daemon->w;
    struct varve_err why = VARVE_ERR_INIT;
    int rc = 0;

    if (b && varve_bitmap_check_content(diff->disk, b, &why) == 0) {
        if (varve_change_set_copy(set, &b->set) < 0)
            return varve_err_set(err, ENOMEM, "no memory for a bitmap");
        if (set->has_blocks)
            rc = varve_blocks_load(w, &diff->disk->paths, id->uuid, &id->geometry, set->blocks,
                                   diff->map, err);
    } else if (b) {
        varve_log_about(
            VARVE_ABOUT(.level = VARVE_LOG_WARNING, .disk = diff->disk->name, .job = job->id),
            "Disk '%s': bitmap '%s' holds what job '%s' found and nothing of before: %s",
            diff->disk->name, b->name, job->id, why.msg);
    }
    if (rc == 0 && varve_change_set_add_span(set, job->start, VARVE_SPAN_OPEN) < 0)
        rc = varve_err_set(err, ENOMEM, "no memory for a bitmap");
    if (rc == 0)
        rc = varve_bitmap_check_set(diff->disk, set, err);
    if (rc < 0 || varve_bitmap_find(diff->map, 0, true) == diff->map->nbits)
        return rc;
    set->has_blocks = true;
    return varve_blocks_write(w, &diff->disk->paths, id->uuid, &id->geometry, diff->map,
                              set->blocks, err);
}

static int conclude_bitmap(struct varve_diff *diff, struct varve_catalogue *draft,
                           const struct varve_cat_job *job, struct varve_err *err)
{
    struct varve_disk *disk = diff->disk;
    struct varve_cat_disk *cd = varve_catalogue_add_disk(draft, disk->identity.uuid, disk->name);
    struct varve_cat_bitmap *b = varve_catalogue_bitmap(cd, job->bitmap);
    struct varve_change_set set = {.nspans = 0};
    uint64_t block = varve_block_size(&disk->identity.geometry);
    int rc = cd ? make_set(diff, job, b, &set, err) : varve_err_set(err, ENOMEM, "no memory");

    if (rc == 0 && !b)
        rc = varve_catalogue_add_bitmap(
            cd, job->bitmap,
            block > VARVE_BITMAP_GRANULARITY_DEFAULT ? block : VARVE_BITMAP_GRANULARITY_DEFAULT, &b,
            err);
    if (rc < 0) {
        varve_change_set_clear(&set);
        return rc;
    }
    varve_change_set_clear(&b->set);
    b->set = set;
    b->since = varve_disk_live_epoch(disk) + 1; /* what was compared, was so at no older boundary */
    return 0;
}

static int diff_conclude(struct varve_runner *r, struct varve_catalogue *draft, bool cancelled,
                         int rc, struct varve_err *err)
{
    struct varve_diff *diff = r->work;

    if (cancelled || rc < 0)
        return 0;
    varve_disks_refresh(r->daemon); /* what others did to the image is found first */
    if (diff->disk->images != diff->images)
        rc = varve_err_set(err, ESTALE,
                           "Disk '%s': its image was replaced by another file meanwhile",
                           diff->disk->name);
    if (rc == 0)
        rc = conclude_bitmap(diff, draft, varve_catalogue_job(draft, r->id), err);
    if (rc == 0 && diff->unreadable > 0)
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .job = r->id),
                        "Job '%s': %" PRIu64 " bytes could not be read, and count as different",
                        r->id, diff->unreadable);
    return rc;
}

const struct varve_runner_ops varve_diff_ops = {
    .type = "diff",
    .open = diff_open,
    .run = varve_diff_run,
    .stop = varve_diff_stop,
    .conclude = diff_conclude,
    .free = diff_free,
};
