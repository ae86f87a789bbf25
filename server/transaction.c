/* SPDX-License-Identifier: BSD-3-Clause
 *
 *     trial      every action on a draft: finds what is wrong, and which disks need a boundary
 *     boundary   one, over all of them (boundary.c); none if nobody needs it
 *     apply      every action again, on a fresh draft, now with real numbers; files are written
 *     prepare    what must not fail later: exports
 *     commit     the draft is the catalogue, durably
 *     committed  exports are published, events sent; what nobody needs any more is freed
 *
 *  1. Nothing but the commit changes what is remembered: whoever fails or dies before it leaves a
 *     boundary without a name, and files that no catalogue names (edges.md 11).
 *  2. An action that the trial refused has made no boundary: wrong arguments leave no trace.
 *  3. All actions speak of the same instant, so their order matters only where they name the same
 *     bitmap: no write falls between two of them.
 */
#include "server/transaction.h"

#include "server/args.h"
#include "server/backup.h"
#include "server/boundary.h"
#include "server/commands.h"
#include "server/freeze.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ACTIONS_MAX 4096u

/* --- abort ---------------------------------------------------------------------------------- */

static int abort_parse(struct varve_daemon *d, json_t *data, struct varve_action **out,
                       struct varve_err *err)
{
    static const char *const known[] = {NULL};
    int rc = varve_args_check(data, known, NULL, err);

    (void)d;
    if (rc < 0)
        return rc;
    *out = calloc(1, sizeof(**out));
    return *out ? 0 : varve_err_set(err, ENOMEM, "no memory");
}

static int abort_apply(struct varve_tx *tx, struct varve_action *a, struct varve_err *err)
{
    (void)tx;
    (void)a;
    return varve_err_set(err, ECANCELED, "Transaction aborted using Abort action");
}

static void abort_free(struct varve_action *a)
{
    free(a);
}

static const struct varve_action_ops abort_ops = {
    .name = "abort", .parse = abort_parse, .apply = abort_apply, .free = abort_free};

/* --- the table ------------------------------------------------------------------------------ */

static const struct varve_action_ops *const table[] = {
    &abort_ops,
    &varve_backup_begin_ops,
    &varve_backup_push_ops,
    &varve_bitmap_add_ops,
    &varve_bitmap_clear_ops,
    &varve_bitmap_copy_ops,
    &varve_bitmap_diff_ops,
    &varve_bitmap_disable_ops,
    &varve_bitmap_enable_ops,
    &varve_bitmap_merge_ops,
    &varve_bitmap_remove_ops,
    &varve_checkpoint_create_ops,
    &varve_checkpoint_delete_ops,
    &varve_checkpoint_import_ops,
};

const struct varve_action_ops *varve_action_find(const char *type)
{
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        if (strcmp(table[i]->name, type) == 0)
            return table[i];
    }
    return NULL;
}

/* --- what actions ask for ------------------------------------------------------------------- */

static struct varve_boundary_disk *tx_at(struct varve_tx *tx, struct varve_disk *disk)
{
    for (size_t i = 0; i < tx->nat; i++) {
        if (tx->at[i].disk == disk)
            return &tx->at[i];
    }
    return NULL;
}

int varve_tx_boundary(struct varve_tx *tx, struct varve_disk *disk, uint64_t *epoch,
                      struct varve_err *err)
{
    struct varve_boundary_disk *at = tx_at(tx, disk);

    assert(at || tx->trial); /* the same actions ask for the same disks */
    if (!at) {
        at = reallocarray(tx->at, tx->nat + 1, sizeof(*at));
        if (!at)
            return varve_err_set(err, ENOMEM, "no memory for a transaction");
        tx->at = at;
        at = &tx->at[tx->nat++];
        *at = (struct varve_boundary_disk){.disk = disk};
    }
    *epoch = tx->trial ? VARVE_TX_TO_COME : at->epoch;
    return 0;
}

uint64_t varve_tx_since(struct varve_tx *tx, struct varve_disk *disk)
{
    const struct varve_boundary_disk *at = tx_at(tx, disk);

    if (tx->trial)
        return VARVE_TX_TO_COME;
    return at ? at->epoch : varve_disk_live_epoch(disk) + 1;
}

int varve_tx_view(struct varve_tx *tx, struct varve_disk *disk, uint64_t view, uint64_t *epoch,
                  struct varve_err *err)
{
    int rc = varve_tx_boundary(tx, disk, epoch, err);
    struct varve_boundary_disk *at = rc == 0 ? tx_at(tx, disk) : NULL;

    if (rc < 0)
        return rc;
    if (at->view != 0 && at->view != view)
        return varve_err_set(
            err, EBUSY, "Disk '%s' has two backups in one transaction: begin one of them later",
            disk->name);
    at->view = view;
    return 0;
}

int varve_tx_freeze(struct varve_tx *tx, const char *backup, struct varve_err *err)
{
    int rc = varve_freeze_check(tx->d, err);

    if (rc == 0 && !tx->freeze[0])
        snprintf(tx->freeze, sizeof(tx->freeze), "%s", backup);
    return rc;
}

void varve_tx_tidy(struct varve_tx *tx, struct varve_disk *disk)
{
    (void)tx;
    disk->untidy = true;
}

struct varve_cat_disk *varve_tx_disk(struct varve_tx *tx, struct varve_disk *disk,
                                     struct varve_err *err)
{
    struct varve_cat_disk *cd =
        varve_catalogue_add_disk(tx->draft, disk->identity.uuid, disk->name);

    if (!cd)
        varve_err_set(err, ENOMEM, "no memory for disk '%s'", disk->name);
    return cd;
}

/* --- running them --------------------------------------------------------------------------- */

static int tx_apply(struct varve_tx *tx, struct varve_action **actions, size_t n,
                    struct varve_err *err)
{
    int rc = 0;

    tx->draft = varve_daemon_draft(tx->d, err);
    if (!tx->draft)
        return -ENOMEM;
    for (size_t i = 0; rc == 0 && i < n; i++)
        rc = actions[i]->ops->apply(tx, actions[i], err);
    return rc;
}

static int tx_commit(struct varve_tx *tx, struct varve_action **actions, size_t n,
                     struct varve_err *err)
{
    struct varve_catalogue *draft = tx->draft;
    struct varve_err other;
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < n; i++)
        rc = actions[i]->ops->prepare ? actions[i]->ops->prepare(tx, actions[i], err) : 0;
    if (rc < 0)
        return rc;
    tx->draft = NULL;
    rc = varve_daemon_commit(tx->d, draft, err);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < n; i++) {
        int failed = actions[i]->ops->committed
                         ? actions[i]->ops->committed(tx, actions[i], rc == 0 ? err : &other)
                         : 0;

        if (rc == 0)
            rc = failed;
    }
    return rc;
}

/* After a failure: views that were opened for nothing. */
static void tx_end_views(struct varve_tx *tx)
{
    for (size_t i = 0; i < tx->nat; i++) {
        if (tx->at[i].view != 0)
            varve_backups_end_stray_views(tx->at[i].disk);
    }
}

static int tx_boundary(struct varve_tx *tx, struct varve_err *err)
{
    struct varve_freeze f;
    int rc;

    if (!tx->freeze[0])
        return varve_boundary_make(tx->at, tx->nat, err);
    varve_freeze_init(&f, tx->d, tx->freeze);
    rc = varve_boundary_make_frozen(tx->at, tx->nat, &f, err);
    memcpy(tx->thaw_error, f.thaw_error, sizeof(tx->thaw_error));
    return rc;
}

/* For whoever finds a folder that came back from an older copy (disk-older.c). */
static void tx_note_boundaries(struct varve_tx *tx)
{
    for (size_t i = 0; i < tx->nat; i++) {
        struct varve_disk *disk = tx->at[i].disk;
        struct varve_cat_disk *cd = varve_catalogue_disk(tx->draft, disk->identity.uuid);

        if (cd)
            varve_disk_note_newest(disk, tx->at[i].epoch, cd);
    }
}

static int tx_run(struct varve_tx *tx, struct varve_action **actions, size_t n,
                  struct varve_err *err)
{
    int rc;

    tx->trial = true;
    rc = tx_apply(tx, actions, n, err);
    varve_catalogue_free(tx->draft);
    tx->draft = NULL;
    tx->trial = false;
    if (rc < 0)
        return rc;
    if (tx->nat > 0)
        rc = tx_boundary(tx, err);
    tx->time_ns = tx->d->w->realtime_ns(tx->d->w);
    if (rc < 0)
        return rc;
    rc = tx_apply(tx, actions, n, err);
    if (rc == 0)
        tx_note_boundaries(tx);
    if (rc == 0)
        rc = tx_commit(tx, actions, n, err);
    varve_catalogue_free(tx->draft);
    tx->draft = NULL;
    if (rc < 0)
        tx_end_views(tx);
    return rc;
}

static int transaction_run(struct varve_daemon *d, struct varve_action **actions, size_t n,
                           struct varve_err *err)
{
    struct varve_tx tx = {.d = d, .nactions = n};
    int rc = tx_run(&tx, actions, n, err);

    free(tx.at);
    for (struct varve_disk *disk = d->disks; disk; disk = disk->next) {
        if (disk->untidy && rc == 0)
            varve_disk_tidy(disk);
        disk->untidy = false;
    }
    return rc;
}

/* --- from and to JSON ----------------------------------------------------------------------- */

static int action_parse(struct varve_daemon *d, const struct varve_action_ops *ops, json_t *data,
                        struct varve_action **out, struct varve_err *err)
{
    int rc = ops->parse(d, data, out, err);

    if (rc < 0)
        return rc;
    (*out)->ops = ops;
    (*out)->data = json_incref(data);
    return 0;
}

static void action_free(struct varve_action *a)
{
    json_t *data;

    if (!a)
        return;
    data = a->data;
    a->ops->free(a);
    json_decref(data);
}

static json_t *action_result(struct varve_daemon *d, struct varve_action *a)
{
    return a->ops->result ? a->ops->result(d, a) : json_object();
}

json_t *varve_transaction_single(struct varve_daemon *d, const char *type, json_t *data,
                                 struct varve_err *err)
{
    struct varve_action *a = NULL;
    json_t *result = NULL;

    if (action_parse(d, varve_action_find(type), data, &a, err) < 0)
        return NULL;
    if (transaction_run(d, &a, 1, err) == 0)
        result = action_result(d, a);
    action_free(a);
    return result;
}

static int parse_item(struct varve_daemon *d, json_t *item, struct varve_action **out,
                      struct varve_err *err)
{
    static const char *const known[] = {"type", "data", NULL};
    json_t *data = json_object_get(item, "data");
    const struct varve_action_ops *ops;
    const char *type;
    int rc;

    if (!json_is_object(item))
        return varve_err_set(err, EINVAL,
                             "Invalid parameter type for 'actions', expected: array of objects");
    rc = varve_args_check(item, known, NULL, err);
    if (rc == 0)
        rc = varve_args_string(item, "type", true, &type, err);
    if (rc < 0)
        return rc;
    ops = varve_action_find(type);
    if (!ops)
        return varve_err_set(err, EINVAL, "Parameter 'type' does not accept value '%.200s'", type);
    if (!data)
        return varve_err_set(err, EINVAL, "Parameter 'data' is missing");
    if (!json_is_object(data))
        return varve_err_set(err, EINVAL, "Invalid parameter type for 'data', expected: object");
    return action_parse(d, ops, data, out, err);
}

/* Only what QEMU does if it is not told. */
static int parse_properties(json_t *args, struct varve_err *err)
{
    static const char *const known[] = {"completion-mode", NULL};
    json_t *properties = json_object_get(args, "properties");
    const char *mode;
    int rc;

    if (!properties)
        return 0;
    if (!json_is_object(properties))
        return varve_err_set(err, EINVAL,
                             "Invalid parameter type for 'properties', expected: object");
    rc = varve_args_check(properties, known, NULL, err);
    if (rc == 0)
        rc = varve_args_string(properties, "completion-mode", false, &mode, err);
    if (rc == 0 && mode && strcmp(mode, "grouped") == 0)
        rc = varve_err_set(err, EINVAL,
                           "Transaction property completion-mode = grouped is not supported: leave "
                           "it out, each backup ends by itself");
    else if (rc == 0 && mode && strcmp(mode, "individual") != 0)
        rc = varve_err_set(err, EINVAL,
                           "Parameter 'completion-mode' does not accept value '%.200s'", mode);
    return rc;
}

/* {}, as QEMU says it, unless an action has something to say. */
static json_t *results(struct varve_daemon *d, struct varve_action **actions, size_t n)
{
    json_t *list = json_array(), *o = json_object();
    bool any = false;

    for (size_t i = 0; i < n; i++) {
        any = any || actions[i]->ops->result;
        json_array_append_new(list, action_result(d, actions[i]));
    }
    if (any)
        json_object_set(o, "results", list);
    json_decref(list);
    return o;
}

json_t *varve_command_transaction(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    static const char *const known[] = {"actions", "properties", NULL};
    json_t *list = json_object_get(args, "actions"), *item, *reply = NULL;
    struct varve_action **actions;
    size_t n = json_array_size(list), i;
    int rc = varve_args_check(args, known, NULL, err);

    if (rc == 0 && !list)
        rc = varve_err_set(err, EINVAL, "Parameter 'actions' is missing");
    else if (rc == 0 && !json_is_array(list))
        rc = varve_err_set(err, EINVAL, "Invalid parameter type for 'actions', expected: array");
    else if (rc == 0 && n > ACTIONS_MAX)
        rc = varve_err_set(err, EINVAL, "A transaction has at most %u actions", ACTIONS_MAX);
    if (rc == 0)
        rc = parse_properties(args, err);
    if (rc < 0)
        return NULL;
    actions = calloc(n + 1, sizeof(*actions));
    if (!actions) {
        varve_err_set(err, ENOMEM, "no memory for a transaction");
        return NULL;
    }
    json_array_foreach(list, i, item)
    {
        rc = parse_item(d, item, &actions[i], err);
        if (rc < 0)
            break;
    }
    if (rc == 0)
        rc = transaction_run(d, actions, n, err);
    if (rc == 0)
        reply = results(d, actions, n);
    for (i = 0; i < n; i++)
        action_free(actions[i]);
    free(actions);
    return reply;
}
