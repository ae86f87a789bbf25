/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The beginning of a backup, an action of a transaction (transaction.c):
 *
 *     trial      all checks; where the backup is all there is to do, the epochs that are sealed
 *                already are united (long, and nobody waits for it)
 *     boundary   over all disks, with a view opened in each, sealed
 *     apply      what the boundary sealed is united; the backup is written into the draft
 *     prepare    views narrowed to what is to be kept (until then they need everything);
 *                exports made, not published
 *     commit     from here on there is a backup
 *     committed  exports published, events
 *
 * A failure before the commit leaves a boundary without a name, and its views are ended.
 */
#include "server/backup.h"

#include "server/bitmap.h"
#include "server/boundary.h"
#include "server/commands.h"
#include "server/log.h"
#include "server/release.h"
#include "server/transaction.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What becomes of one disk of the plan. */
struct begin_disk {
    const struct varve_plan_disk *plan;
    struct varve_disk *disk;
    uint64_t view;
    struct varve_change_set base; /* empty: full */
    uint64_t granularity;         /* of the bitmap; 0: blocks */
    uint64_t united;              /* epochs before this are in map */
    struct varve_bitmap *map;     /* NULL: every block, or nothing united yet */
};

struct begin {
    struct varve_action a;
    struct varve_backup_plan plan;
    bool id_given;
    char thaw_error[256];
    struct begin_disk *work;
    struct varve_backup *backup; /* between prepare and publication */
};

/* --- checks --------------------------------------------------------------------------------- */

static bool export_is_taken(const struct varve_tx *tx, const char *name)
{
    struct varve_export *e = varve_exports_get(tx->d->exports, name, strlen(name));

    if (e) {
        varve_export_unref(e);
        return true;
    }
    /* By a backup that begins in the same transaction. */
    for (size_t i = 0; i < tx->draft->nbackups; i++) {
        const struct varve_cat_backup *b = &tx->draft->backups[i];

        for (size_t k = 0; varve_cat_backup_open(b) && k < b->ndisks; k++) {
            if (!varve_catalogue_job_of_backup(tx->draft, b->id) &&
                strcmp(b->disks[k].export, name) == 0)
                return true;
        }
    }
    return false;
}

static int check_export_name(const struct varve_tx *tx, const struct varve_backup_plan *plan,
                             size_t index, struct varve_err *err)
{
    const char *name = plan->disks[index].export;
    struct varve_cat_backup_disk *of;
    const struct varve_cat_extra *extra;

    if (plan->push)
        return 0;
    extra = varve_catalogue_extra(tx->draft, name, &of); /* its export's name is its id */
    if (extra)
        return varve_err_set(err, EEXIST,
                             "Block export id '%s' is already in use, by the extra export '%s': "
                             "delete that, or give another name as 'export'",
                             name, extra->name);
    if (export_is_taken(tx, name))
        return varve_err_set(err, EEXIST,
                             "Export '%s' exists already: end the backup that offers it, or give "
                             "another name as 'export'",
                             name);
    for (size_t i = 0; i < index; i++) {
        if (strcmp(plan->disks[i].export, name) == 0)
            return varve_err_set(err, EEXIST, "Two disks of the backup have the export name '%s'",
                                 name);
    }
    return 0;
}

static int base_since(const struct varve_catalogue *c, const struct varve_plan_disk *pd,
                      struct varve_change_set *set, struct varve_err *err)
{
    const struct varve_cat_disk *cd = varve_catalogue_disk(c, pd->disk->identity.uuid);
    const struct varve_cat_checkpoint *p = varve_catalogue_checkpoint(cd, pd->since);
    const struct varve_cat_backup *own;

    if (!p)
        return varve_err_set(err, ENOENT,
                             "Disk '%s' has no checkpoint '%s': query-checkpoints lists those "
                             "there are",
                             pd->disk->name, pd->since);
    own = p->backup[0] ? varve_catalogue_backup(c, p->backup) : NULL;
    if (own && varve_cat_backup_open(own))
        return varve_err_set(err, EBUSY,
                             "Disk '%s': checkpoint '%s' belongs to backup '%s', which still "
                             "runs: end that first",
                             pd->disk->name, pd->since, own->id);
    return varve_changes_since(p, set) < 0 ? varve_err_set(err, ENOMEM, "no memory for a backup")
                                           : 0;
}

/* A bitmap may be the base of several backups if none of them moves it (edges.md 15). */
static int base_bitmap(const struct varve_catalogue *c, const struct varve_plan_disk *pd,
                       struct varve_change_set *set, uint64_t *granularity, struct varve_err *err)
{
    const struct varve_cat_backup *user;
    struct varve_cat_bitmap *b;
    bool never;
    int rc = varve_bitmap_lookup(c, pd->disk, pd->bitmap, &b, err);

    if (rc < 0)
        return rc;
    user = varve_bitmap_user(c, pd->disk->identity.uuid, pd->bitmap, &never);
    rc = user && never && pd->mode == VARVE_BITMAP_NEVER
             ? varve_bitmap_check_set(pd->disk, &b->set, err)
             : varve_bitmap_check(c, pd->disk, b, err);
    if (rc < 0)
        return rc;
    *granularity = b->granularity;
    return varve_change_set_copy(set, &b->set) < 0
               ? varve_err_set(err, ENOMEM, "no memory for a backup")
               : 0;
}

int varve_backup_plan_base(const struct varve_catalogue *c, const struct varve_plan_disk *pd,
                           struct varve_change_set *set, uint64_t *granularity,
                           struct varve_err *err)
{
    memset(set, 0, sizeof(*set));
    *granularity = 0;
    if (pd->since[0])
        return base_since(c, pd, set, err);
    return pd->bitmap[0] ? base_bitmap(c, pd, set, granularity, err) : 0;
}

/* Its plugin would refuse one more in the middle of the boundary, with writers waiting. */
static int check_room(const struct varve_tx *tx, struct varve_disk *disk, struct varve_err *err)
{
    unsigned n = 0;

    for (size_t i = 0; i < tx->draft->nbackups; i++) {
        const struct varve_cat_backup *b = &tx->draft->backups[i];

        for (size_t k = 0; varve_cat_backup_open(b) && k < b->ndisks; k++)
            n += memcmp(b->disks[k].uuid, disk->identity.uuid, 16) == 0;
    }
    return n < VARVE_CTL_VIEWS
               ? 0
               : varve_err_set(err, ENOSPC,
                               "Disk '%s' has %u running backups, and can have no more: end one "
                               "of them first",
                               disk->name, n);
}

static bool is_full(const struct begin_disk *b)
{
    return !b->plan->since[0] && !b->plan->bitmap[0];
}

static int begin_check(struct varve_tx *tx, struct begin *b, struct varve_err *err)
{
    const struct varve_backup_plan *plan = &b->plan;

    if (b->id_given && varve_catalogue_backup(tx->draft, plan->id))
        return varve_err_set(err, EEXIST, "There is a backup '%s' already: choose another id",
                             plan->id);
    for (size_t i = 0; i < plan->ndisks; i++) {
        struct begin_disk *w = &b->work[i];
        const struct varve_cat_disk *cd = varve_catalogue_disk(tx->draft, w->disk->identity.uuid);
        int rc;

        if (plan->checkpoint[0] && varve_catalogue_checkpoint(cd, plan->checkpoint))
            return varve_err_set(err, EEXIST,
                                 "Disk '%s' has a checkpoint '%s' already: choose another name",
                                 w->disk->name, plan->checkpoint);
        rc = check_export_name(tx, plan, i, err);
        if (rc == 0)
            rc = check_room(tx, w->disk, err);
        if (rc == 0 && (plan->release || plan->preserve_dirty))
            rc = varve_release_check(w->disk, err);
        varve_change_set_clear(&w->base);
        if (rc == 0)
            rc = varve_backup_plan_base(tx->draft, w->plan, &w->base, &w->granularity, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* --- maps ----------------------------------------------------------------------------------- */

/* What the base has of the epochs before `end` and is not in the map yet. */
static int begin_unite(struct begin_disk *w, uint64_t end, struct varve_err *err)
{
    int rc;

    if (is_full(w))
        return 0;
    if (!w->map)
        w->map = varve_bitmap_new(w->disk->identity.geometry.nblks);
    if (!w->map)
        return varve_err_set(err, ENOMEM, "Disk '%s': no memory for a map", w->disk->name);
    rc = varve_disk_union(w->disk, &w->base, w->united, end, w->map, err);
    if (rc < 0)
        return varve_err_prefix(err, "cannot tell what changed since '%.100s', begin a full backup",
                                w->plan->since[0] ? w->plan->since : w->plan->bitmap);
    w->united = end;
    return 0;
}

static int begin_unite_early(struct begin_disk *w, struct varve_err *err)
{
    uint64_t live = varve_disk_live_epoch(w->disk);
    struct varve_err other = VARVE_ERR_INIT;
    int rc = live > 0 ? begin_unite(w, live, err) : 0;

    /* What the last boundary could not seal may wait for the next one. */
    if (rc == -EUCLEAN && w->disk->peer && varve_boundary_seal(w->disk, &other) == 0)
        rc = begin_unite(w, live, err);
    return rc;
}

/* --- the draft ------------------------------------------------------------------------------ */

static void choose_id(struct begin *b, struct varve_catalogue *draft)
{
    char *id = b->plan.id;

    if (b->id_given)
        return;
    do
        snprintf(id, sizeof(b->plan.id), "backup-%llu", (unsigned long long)draft->next_backup++);
    while (varve_catalogue_backup(draft, id));
}

static int fill_disk(struct varve_tx *tx, const struct begin *b, const struct begin_disk *w,
                     uint64_t boundary, struct varve_cat_backup_disk *bd, struct varve_err *err)
{
    const struct varve_identity *id = &w->disk->identity;
    struct varve_cat_disk *cd = varve_tx_disk(tx, w->disk, err);

    if (!cd)
        return -ENOMEM;
    memcpy(bd->uuid, id->uuid, sizeof(bd->uuid));
    snprintf(bd->disk, sizeof(bd->disk), "%s", w->disk->name);
    snprintf(bd->since, sizeof(bd->since), "%s", w->plan->since);
    snprintf(bd->export, sizeof(bd->export), "%s", w->plan->export);
    bd->exportbitmap = strdup(w->plan->exportbitmap);
    bd->view = w->view;
    bd->boundary = boundary;
    if (w->plan->since[0]) {
        bd->base = w->base.spans[0].first;
    } else if (w->plan->bitmap[0]) {
        bd->bitmap = strdup(w->plan->bitmap);
        bd->mode = w->plan->mode;
        bd->granularity = w->granularity;
        if (!bd->bitmap || varve_change_set_copy(&bd->set, &w->base) < 0)
            return varve_err_set(err, ENOMEM, "no memory for a backup");
    }
    bd->dirty_bytes = w->map ? varve_dirty_bytes(&id->geometry, w->map) : id->geometry.size;
    if (!bd->exportbitmap)
        return varve_err_set(err, ENOMEM, "no memory for a backup");
    if (!b->plan.checkpoint[0])
        return 0;
    return varve_catalogue_add_checkpoint(cd, b->plan.checkpoint, b->plan.id, tx->time_ns, boundary,
                                          err);
}

static int begin_apply(struct varve_tx *tx, struct varve_action *a, struct varve_err *err)
{
    struct begin *b = (struct begin *)a;
    struct varve_backup_plan *plan = &b->plan;
    struct varve_cat_backup *cb;
    int rc = begin_check(tx, b, err);

    if (rc < 0)
        return rc;
    choose_id(b, tx->draft);
    cb = varve_catalogue_add_backup(tx->draft, plan->id, plan->ndisks);
    if (!cb)
        return varve_err_set(err, ENOMEM, "no memory for backup '%s'", plan->id);
    snprintf(cb->checkpoint, sizeof(cb->checkpoint), "%s", plan->checkpoint);
    cb->state = VARVE_BACKUP_RUNNING;
    cb->time_ns = tx->time_ns;
    cb->ttl_s = plan->ttl_s;
    cb->speed = plan->speed;
    cb->adaptive = plan->adaptive;
    cb->release = plan->release;
    cb->preserve_dirty = plan->preserve_dirty;
    if (plan->freeze)
        rc = varve_tx_freeze(tx, plan->id, err);
    for (size_t i = 0; rc == 0 && i < plan->ndisks; i++) {
        struct begin_disk *w = &b->work[i];
        uint64_t boundary;

        rc = varve_tx_view(tx, w->disk, w->view, &boundary, err);
        if (rc == 0 && !varve_tx_is_trial(tx))
            rc = begin_unite(w, boundary, err);
        else if (rc == 0 && tx->nactions == 1)
            rc = begin_unite_early(w, err);
        if (rc == 0 && w->map && !varve_tx_is_trial(tx))
            varve_changes_round(&w->disk->identity.geometry, w->granularity, w->map);
        if (rc == 0)
            rc = fill_disk(tx, b, w, boundary, &cb->disks[i], err);
        varve_tx_tidy(tx, w->disk);
    }
    return rc;
}

/* --- exports -------------------------------------------------------------------------------- */

/* With a full backup everything is dirty. */
static int begin_narrow(const struct varve_backup_plan *plan, const struct begin_disk *w,
                        struct varve_err *err)
{
    if (!plan->release && !(plan->preserve_dirty && w->map))
        return 0;
    return varve_release_narrow(w->disk, w->view, plan->preserve_dirty ? w->map : NULL, err);
}

/* The maps are taken over. */
static int begin_exports(struct varve_tx *tx, struct begin *b, struct varve_err *err)
{
    const struct varve_backup_plan *plan = &b->plan;
    const struct varve_cat_backup *cb = varve_catalogue_backup(tx->draft, plan->id);
    struct varve_changes **changes = calloc(plan->ndisks, sizeof(*changes));
    struct varve_disk **disks = calloc(plan->ndisks, sizeof(struct varve_disk *));
    bool memory = changes && disks;
    int rc;

    for (size_t i = 0; memory && i < plan->ndisks; i++) {
        disks[i] = b->work[i].disk;
        changes[i] = varve_changes_new(b->work[i].map);
        b->work[i].map = NULL;
        memory = changes[i] != NULL;
    }
    if (memory) {
        rc = varve_backup_new(tx->d, tx->draft, cb, disks, changes, &b->backup, err);
    } else {
        for (size_t i = 0; changes && i < plan->ndisks; i++)
            varve_changes_unref(changes[i]);
        rc = varve_err_set(err, ENOMEM, "no memory for backup '%s'", plan->id);
    }
    free(changes);
    free(disks);
    return rc;
}

static int begin_prepare(struct varve_tx *tx, struct varve_action *a, struct varve_err *err)
{
    struct begin *b = (struct begin *)a;

    for (size_t i = 0; i < b->plan.ndisks; i++) {
        int rc = begin_narrow(&b->plan, &b->work[i], err);

        if (rc < 0)
            return rc;
    }
    return begin_exports(tx, b, err);
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

static int begin_committed(struct varve_tx *tx, struct varve_action *a, struct varve_err *err)
{
    struct begin *b = (struct begin *)a;
    struct varve_backup *backup = b->backup;
    int rc;

    b->backup = NULL; /* the daemon's */
    if (b->plan.freeze)
        memcpy(b->thaw_error, tx->thaw_error, sizeof(b->thaw_error));
    rc = varve_backup_publish(backup, err);
    if (rc < 0) {
        struct varve_err other = VARVE_ERR_INIT;

        if (varve_backup_end(tx->d, b->plan.id, false, err->msg, &other) < 0)
            varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .backup = b->plan.id), "%s",
                            other.msg);
        return rc;
    }
    varve_log_about(VARVE_ABOUT(.backup = b->plan.id,
                                .checkpoint = b->plan.checkpoint[0] ? b->plan.checkpoint : NULL,
                                .disk = b->plan.ndisks == 1 ? b->plan.disks[0].disk->name : NULL),
                    "Backup '%s' begins", b->plan.id);
    begin_events(tx->d, &b->plan);
    return 0;
}

/* --- the action ----------------------------------------------------------------------------- */

static void begin_free(struct varve_action *a)
{
    struct begin *b = (struct begin *)a;

    if (b->backup)
        varve_backup_discard(b->backup);
    for (size_t i = 0; b->work && i < b->plan.ndisks; i++) {
        varve_change_set_clear(&b->work[i].base);
        free(b->work[i].map);
    }
    free(b->work);
    free(b->plan.disks);
    free(b);
}

static int begin_views(struct varve_daemon *d, struct begin *b, struct varve_err *err)
{
    for (size_t i = 0; i < b->plan.ndisks; i++) {
        struct begin_disk *w = &b->work[i];

        w->plan = &b->plan.disks[i];
        w->disk = w->plan->disk;
        do {
            int rc = d->w->random(d->w, &w->view, sizeof(w->view));

            if (rc < 0)
                return varve_err_sys(err, -rc, "no random numbers");
        } while (w->view == 0);
    }
    return 0;
}

static int begin_new(struct varve_daemon *d, json_t *data, bool push, struct varve_action **out,
                     struct varve_err *err)
{
    struct begin *b = calloc(1, sizeof(*b));
    int rc;

    if (!b)
        return varve_err_set(err, ENOMEM, "no memory for a backup");
    rc = varve_backup_parse_plan(d, data, &b->plan, err);
    if (rc == 0) {
        b->plan.push = push;
        b->id_given = b->plan.id[0] != '\0';
        b->work = calloc(b->plan.ndisks, sizeof(*b->work));
        rc =
            b->work ? begin_views(d, b, err) : varve_err_set(err, ENOMEM, "no memory for a backup");
    }
    if (rc < 0) {
        begin_free(&b->a);
        return rc;
    }
    *out = &b->a;
    return 0;
}

static int begin_parse(struct varve_daemon *d, json_t *data, struct varve_action **out,
                       struct varve_err *err)
{
    return begin_new(d, data, false, out, err);
}

int varve_backup_begin_push(struct varve_daemon *d, json_t *data, struct varve_action **out,
                            struct varve_err *err)
{
    int rc = begin_new(d, data, true, out, err);

    if (rc == 0)
        (*out)->ops = &varve_backup_begin_ops;
    return rc;
}

const char *varve_backup_begin_id(const struct varve_action *a)
{
    return ((const struct begin *)a)->plan.id;
}

const struct varve_plan_disk *varve_backup_begin_disk(const struct varve_action *a)
{
    return &((const struct begin *)a)->plan.disks[0];
}

static json_t *begin_result(struct varve_daemon *d, struct varve_action *a)
{
    const struct begin *b = (const struct begin *)a;

    json_t *o = varve_backup_begun(varve_catalogue_backup(d->catalogue, b->plan.id));

    if (o && b->thaw_error[0])
        json_object_set_new(o, "thaw-error", json_string(b->thaw_error));
    return o;
}

const struct varve_action_ops varve_backup_begin_ops = {
    .name = "backup-begin",
    .parse = begin_parse,
    .apply = begin_apply,
    .prepare = begin_prepare,
    .committed = begin_committed,
    .result = begin_result,
    .free = begin_free,
};

json_t *varve_command_backup_begin(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    return varve_transaction_single(d, "backup-begin", args, err);
}
