/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The beginning of a backup, in this order:
 *
 *     check everything that can be checked
 *     union of the epochs that are sealed already     (long, and nobody waits for it)
 *     boundary over all disks, sealed                 (boundary.c)
 *     union of what the boundary sealed
 *     views narrowed to what is to be kept            (until then they need everything)
 *     exports made, not published
 *     catalogue committed                             from here on there is a backup
 *     exports published, events, reply
 *
 * A failure before the commit leaves a boundary without a name, and its views are ended.
 */
#include "server/backup.h"

#include "server/boundary.h"
#include "server/log.h"
#include "server/release.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What becomes of one disk of the plan. */
struct begin_disk {
    const struct varve_plan_disk *plan;
    struct varve_disk *disk;
    uint64_t base;            /* epoch after `since`; 0: full */
    uint64_t united;          /* epochs before this are in map */
    struct varve_bitmap *map; /* NULL: every block */
};

/* --- checks --------------------------------------------------------------------------------- */

static int check_export_name(struct varve_daemon *d, const struct varve_backup_plan *plan,
                             size_t index, struct varve_err *err)
{
    const char *name = plan->disks[index].export;
    struct varve_export *e = varve_exports_get(d->exports, name, strlen(name));

    if (e) {
        varve_export_unref(e);
        return varve_err_set(err, EEXIST,
                             "Export '%s' exists already: end the backup that offers it, or give "
                             "another name as 'export'",
                             name);
    }
    for (size_t i = 0; i < index; i++) {
        if (strcmp(plan->disks[i].export, name) == 0)
            return varve_err_set(err, EEXIST, "Two disks of the backup have the export name '%s'",
                                 name);
    }
    return 0;
}

int varve_backup_check_since(struct varve_daemon *d, const struct varve_plan_disk *pd,
                             uint64_t *base, struct varve_err *err)
{
    const struct varve_cat_disk *cd = varve_catalogue_disk(d->catalogue, pd->disk->identity.uuid);
    const struct varve_cat_checkpoint *p = varve_catalogue_checkpoint(cd, pd->since);
    const struct varve_cat_backup *own;

    if (!p)
        return varve_err_set(err, ENOENT,
                             "Disk '%s' has no checkpoint '%s': query-checkpoints lists those "
                             "there are",
                             pd->disk->name, pd->since);
    own = p->backup[0] ? varve_catalogue_backup(d->catalogue, p->backup) : NULL;
    if (own && varve_cat_backup_open(own))
        return varve_err_set(err, EBUSY,
                             "Disk '%s': checkpoint '%s' belongs to backup '%s', which still "
                             "runs: end that first",
                             pd->disk->name, pd->since, own->id);
    *base = p->epoch;
    return 0;
}

static int plan_check(struct varve_daemon *d, const struct varve_backup_plan *plan,
                      struct begin_disk *work, struct varve_err *err)
{
    int rc = 0;

    if (plan->id[0] && varve_catalogue_backup(d->catalogue, plan->id))
        return varve_err_set(err, EEXIST, "There is a backup '%s' already: choose another id",
                             plan->id);
    for (size_t i = 0; rc == 0 && i < plan->ndisks; i++) {
        const struct varve_plan_disk *pd = &plan->disks[i];
        const struct varve_cat_disk *cd =
            varve_catalogue_disk(d->catalogue, pd->disk->identity.uuid);

        work[i].plan = pd;
        work[i].disk = pd->disk;
        if (plan->checkpoint[0] && varve_catalogue_checkpoint(cd, plan->checkpoint))
            return varve_err_set(err, EEXIST,
                                 "Disk '%s' has a checkpoint '%s' already: choose another name",
                                 pd->disk->name, plan->checkpoint);
        rc = check_export_name(d, plan, i, err);
        if (rc == 0 && (plan->release || plan->preserve_dirty))
            rc = varve_release_check(pd->disk, err);
        if (rc == 0 && pd->since[0])
            rc = varve_backup_check_since(d, pd, &work[i].base, err);
    }
    return rc;
}

/* --- maps ----------------------------------------------------------------------------------- */

static int begin_unite(struct begin_disk *b, uint64_t end, struct varve_err *err)
{
    int rc;

    if (b->base == 0)
        return 0;
    rc = varve_disk_union(b->disk, b->united, end, b->map, err);
    if (rc < 0)
        return varve_err_prefix(err, "cannot tell what changed since '%s', begin a full backup",
                                b->plan->since);
    b->united = end;
    return 0;
}

/* What is sealed before the boundary is made. */
static int begin_unite_early(struct varve_daemon *d, struct begin_disk *b, struct varve_err *err)
{
    const struct varve_geometry *g = &b->disk->identity.geometry;
    const struct varve_cat_disk *cd = varve_catalogue_disk(d->catalogue, b->disk->identity.uuid);
    uint64_t live;

    if (b->base == 0)
        return 0;
    b->map = varve_bitmap_new(g->nblks);
    if (!b->map)
        return varve_err_set(err, ENOMEM, "Disk '%s': no memory for a map", b->disk->name);
    varve_changes_heal(g, varve_catalogue_checkpoint(cd, b->plan->since), b->map);
    b->united = b->base;
    live = varve_disk_live_epoch(b->disk);
    return live > b->base ? begin_unite(b, live, err) : 0;
}

/* With a full backup everything is dirty. */
static int begin_narrow(const struct varve_backup_plan *plan, const struct begin_disk *b,
                        uint64_t view, struct varve_err *err)
{
    if (!plan->release && !(plan->preserve_dirty && b->map))
        return 0;
    return varve_release_narrow(b->disk, view, plan->preserve_dirty ? b->map : NULL, err);
}

/* --- catalogue ------------------------------------------------------------------------------ */

static int draft_fill(struct varve_daemon *d, struct varve_catalogue *draft,
                      const struct varve_backup_plan *plan, const struct begin_disk *work,
                      const struct varve_boundary_disk *at, struct varve_err *err)
{
    struct varve_cat_backup *cb = varve_catalogue_add_backup(draft, plan->id, plan->ndisks);
    uint64_t now = d->w->realtime_ns(d->w);

    if (!cb)
        return varve_err_set(err, ENOMEM, "no memory for backup '%s'", plan->id);
    snprintf(cb->checkpoint, sizeof(cb->checkpoint), "%s", plan->checkpoint);
    cb->state = VARVE_BACKUP_RUNNING;
    cb->time_ns = now;
    cb->ttl_s = plan->ttl_s;
    cb->release = plan->release;
    cb->preserve_dirty = plan->preserve_dirty;
    for (size_t i = 0; i < plan->ndisks; i++) {
        struct varve_cat_backup_disk *bd = &cb->disks[i];
        const struct varve_identity *id = &work[i].disk->identity;
        struct varve_cat_disk *cd = varve_catalogue_add_disk(draft, id->uuid, work[i].disk->name);
        int rc;

        memcpy(bd->uuid, id->uuid, sizeof(bd->uuid));
        snprintf(bd->disk, sizeof(bd->disk), "%s", work[i].disk->name);
        snprintf(bd->since, sizeof(bd->since), "%s", work[i].plan->since);
        snprintf(bd->export, sizeof(bd->export), "%s", work[i].plan->export);
        bd->exportbitmap = strdup(work[i].plan->exportbitmap);
        bd->view = at[i].view;
        bd->base = work[i].base;
        bd->boundary = at[i].epoch;
        bd->dirty_bytes =
            work[i].map ? varve_dirty_bytes(&id->geometry, work[i].map) : id->geometry.size;
        if (!cd || !bd->exportbitmap)
            return varve_err_set(err, ENOMEM, "no memory for backup '%s'", plan->id);
        if (!plan->checkpoint[0])
            continue;
        rc = varve_catalogue_add_checkpoint(cd, plan->checkpoint, plan->id, now, at[i].epoch, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* Makes the exports, commits, publishes.  The maps are taken over. */
static int begin_serve(struct varve_daemon *d, const struct varve_backup_plan *plan,
                       struct begin_disk *work, struct varve_catalogue *draft,
                       struct varve_err *err)
{
    const struct varve_cat_backup *cb = varve_catalogue_backup(draft, plan->id);
    struct varve_changes **changes = calloc(plan->ndisks, sizeof(*changes));
    struct varve_disk **disks = calloc(plan->ndisks, sizeof(struct varve_disk *));
    struct varve_backup *b = NULL;
    bool memory = changes && disks;
    int rc;

    for (size_t i = 0; memory && i < plan->ndisks; i++) {
        disks[i] = work[i].disk;
        changes[i] = varve_changes_new(work[i].map);
        work[i].map = NULL;
        memory = changes[i] != NULL;
    }
    if (memory) {
        rc = varve_backup_new(d, cb, disks, changes, &b, err);
    } else {
        for (size_t i = 0; changes && i < plan->ndisks; i++)
            varve_changes_unref(changes[i]);
        rc = varve_err_set(err, ENOMEM, "no memory for backup '%s'", plan->id);
    }
    free(changes);
    free(disks);
    if (rc < 0) {
        varve_catalogue_free(draft);
        return rc;
    }
    rc = varve_daemon_commit(d, draft, err);
    if (rc < 0) {
        varve_backup_discard(b);
        return rc;
    }
    rc = varve_backup_publish(b, err);
    if (rc < 0) {
        struct varve_err other = VARVE_ERR_INIT;

        if (varve_backup_end(d, plan->id, false, err->msg, &other) < 0)
            varve_log("%s", other.msg);
    }
    return rc;
}

static void begin_events(struct varve_daemon *d, const struct varve_backup_plan *plan)
{
    json_t *names = json_array();

    for (size_t i = 0; i < plan->ndisks; i++)
        json_array_append_new(names, json_string(plan->disks[i].disk->name));
    if (plan->checkpoint[0])
        varve_events_send(d->events, "CHECKPOINT_CREATED",
                          json_pack("{s:s, s:O}", "name", plan->checkpoint, "disks", names));
    varve_events_send(d->events, "BACKUP_STARTED",
                      json_pack("{s:s, s:o}", "id", plan->id, "disks", names));
}

static int choose_ids(struct varve_daemon *d, struct varve_backup_plan *plan,
                      struct varve_catalogue *draft, struct varve_boundary_disk *at,
                      struct varve_err *err)
{
    while (!plan->id[0] || varve_catalogue_backup(draft, plan->id))
        snprintf(plan->id, sizeof(plan->id), "backup-%llu",
                 (unsigned long long)draft->next_backup++);
    for (size_t i = 0; i < plan->ndisks; i++) {
        at[i].disk = plan->disks[i].disk;
        do {
            int rc = d->w->random(d->w, &at[i].view, sizeof(at[i].view));

            if (rc < 0)
                return varve_err_sys(err, -rc, "no random numbers");
        } while (at[i].view == 0);
    }
    return 0;
}

static int begin_run(struct varve_daemon *d, struct varve_backup_plan *plan,
                     struct begin_disk *work, struct varve_boundary_disk *at, struct varve_err *err)
{
    struct varve_catalogue *draft;
    int rc = plan_check(d, plan, work, err);

    for (size_t i = 0; rc == 0 && i < plan->ndisks; i++)
        rc = begin_unite_early(d, &work[i], err);
    if (rc < 0)
        return rc;
    draft = varve_daemon_draft(d, err);
    if (!draft)
        return -ENOMEM;
    rc = choose_ids(d, plan, draft, at, err);
    if (rc == 0)
        rc = varve_boundary_make(at, plan->ndisks, err);
    if (rc < 0) {
        varve_catalogue_free(draft);
        return rc;
    }
    for (size_t i = 0; rc == 0 && i < plan->ndisks; i++)
        rc = begin_unite(&work[i], at[i].epoch, err);
    for (size_t i = 0; rc == 0 && i < plan->ndisks; i++)
        rc = begin_narrow(plan, &work[i], at[i].view, err);
    if (rc == 0)
        rc = draft_fill(d, draft, plan, work, at, err);
    if (rc == 0)
        rc = begin_serve(d, plan, work, draft, err);
    else
        varve_catalogue_free(draft);
    for (size_t i = 0; rc < 0 && i < plan->ndisks; i++)
        varve_backups_end_stray_views(plan->disks[i].disk);
    return rc;
}

int varve_backup_begin(struct varve_daemon *d, struct varve_backup_plan *plan,
                       struct varve_err *err)
{
    struct begin_disk *work = calloc(plan->ndisks, sizeof(*work));
    struct varve_boundary_disk *at = calloc(plan->ndisks, sizeof(*at));
    int rc = work && at ? begin_run(d, plan, work, at, err)
                        : varve_err_set(err, ENOMEM, "no memory for a backup");

    for (size_t i = 0; work && i < plan->ndisks; i++)
        free(work[i].map);
    free(work);
    free(at);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < plan->ndisks; i++)
        varve_disk_tidy(plan->disks[i].disk);
    varve_log("Backup '%s' begins", plan->id);
    begin_events(d, plan);
    return 0;
}
