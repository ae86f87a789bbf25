/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Transactions: several changes of the catalogue at one boundary over all disks they concern, all
 * of them or none.  Every command that changes the catalogue, but for the end of a backup, the export
 * of a checkpoint and extra exports of a backup, is one, of one action.  For the clerk's thread.  It knows no action from within, only this page's
 * functions.
 */
#ifndef VARVE_SERVER_TRANSACTION_H
#define VARVE_SERVER_TRANSACTION_H

#include "lib/catalogue.h"
#include "lib/qmp.h"
#include "server/daemon.h"
#include "server/disk.h"

struct varve_action;
struct varve_tx;

/* All functions but parse and apply may be NULL. */
struct varve_action_ops {
    const char *name; /* of the command, and of the action's type */

    /* Takes the arguments apart; `data` is an object, and stays as long as the action.  *out's
     * fields of struct varve_action are the transaction's to fill in. */
    int (*parse)(struct varve_daemon *d, json_t *data, struct varve_action **out,
                 struct varve_err *err);

    /* Changes tx->draft.  Called twice, before the boundary (varve_tx_is_trial) and after it, each
     * time on a fresh draft, in which the actions before it have done what they do. */
    int (*apply)(struct varve_tx *tx, struct varve_action *a, struct varve_err *err);

    /* All actions were applied; makes ready what must not fail after the commit. */
    int (*prepare)(struct varve_tx *tx, struct varve_action *a, struct varve_err *err);

    /* The draft is the catalogue now.  An error is told as the transaction's, but undoes nothing.
     */
    int (*committed)(struct varve_tx *tx, struct varve_action *a, struct varve_err *err);

    /* What the command returns; NULL: an empty object. */
    json_t *(*result)(struct varve_daemon *d, struct varve_action *a);

    /* Also after a failure, whatever was done before. */
    void (*free)(struct varve_action *a);
};

/* Embedded in what an action needs, as its first field. */
struct varve_action {
    const struct varve_action_ops *ops;
    json_t *data;
};

/* The table, by type; NULL: there is none of that name. */
const struct varve_action_ops *varve_action_find(const char *type);

/* A command that is an action: its result, or NULL with err. */
json_t *varve_transaction_single(struct varve_daemon *d, const char *type, json_t *data,
                                 struct varve_err *err);

/* --- for actions ---------------------------------------------------------------------------- */

struct varve_tx {
    struct varve_daemon *d;
    struct varve_catalogue *draft;
    size_t nactions;
    uint64_t time_ns; /* since 1970: of the boundary, once that is made */
    char thaw_error[256]; /* why the freeze hook's thaw failed; empty: it did not, or there was none */

    /* the transaction's own */
    bool trial;
    struct varve_boundary_disk *at;
    size_t nat;
    char freeze[VARVE_NAME_MAX + 1]; /* the backup that wants the freeze hook; empty: none does */
};

/* The boundary's epoch before it is made: later than every real one. */
#define VARVE_TX_TO_COME ((uint64_t)INT64_MAX)

/* Nothing is to be written yet. */
static inline bool varve_tx_is_trial(const struct varve_tx *tx)
{
    return tx->trial;
}

/* The first epoch of the disk after the transaction's boundary; who asks for it makes that there is
 * one.  -ENOMEM */
int varve_tx_boundary(struct varve_tx *tx, struct varve_disk *disk, uint64_t *epoch,
                      struct varve_err *err);

/* The first boundary that has what the transaction does to the disk: its own, or the next one that
 * anybody makes. */
uint64_t varve_tx_since(struct varve_tx *tx, struct varve_disk *disk);

/* As varve_tx_boundary, and a view with that id is opened there.  -EBUSY: another one is. */
int varve_tx_view(struct varve_tx *tx, struct varve_disk *disk, uint64_t view, uint64_t *epoch,
                  struct varve_err *err);

/* The freeze hook is to run around the boundary, for this backup.  -EINVAL: there is none. */
int varve_tx_freeze(struct varve_tx *tx, const char *backup, struct varve_err *err);

/* After the commit there may be something to free on the disk. */
void varve_tx_tidy(struct varve_tx *tx, struct varve_disk *disk);

/* The disk's entry in the draft, made if there is none.  NULL with err: no memory. */
struct varve_cat_disk *varve_tx_disk(struct varve_tx *tx, struct varve_disk *disk,
                                     struct varve_err *err);

/* --- the actions, by file ------------------------------------------------------------------- */

extern const struct varve_action_ops varve_checkpoint_create_ops, varve_checkpoint_delete_ops,
    varve_checkpoint_import_ops, varve_backup_begin_ops, varve_backup_push_ops, varve_bitmap_add_ops, varve_bitmap_remove_ops, varve_bitmap_clear_ops,
    varve_bitmap_enable_ops, varve_bitmap_disable_ops, varve_bitmap_merge_ops,
    varve_bitmap_copy_ops, varve_bitmap_diff_ops;

#endif
