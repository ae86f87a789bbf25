/* SPDX-License-Identifier: BSD-3-Clause
 *
 * checkpoint-create, checkpoint-delete.
 */
#include "server/commands.h"

#include "server/args.h"
#include "server/disk.h"
#include "server/transaction.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The disks that a list of names tells; free() *out.  *n is not 0 after success. */
static int find_disks(struct varve_daemon *d, json_t *names, struct varve_disk ***out, size_t *n,
                      struct varve_err *err)
{
    struct varve_disk **disks = calloc(json_array_size(names), sizeof(struct varve_disk *));
    json_t *item;
    size_t i;

    *out = disks;
    *n = json_array_size(names);
    if (!disks)
        return varve_err_set(err, ENOMEM, "no memory");
    json_array_foreach(names, i, item)
    {
        int rc;

        if (!json_is_string(item))
            return varve_err_set(err, EINVAL,
                                 "Invalid parameter type for 'disks', expected: array of strings");
        rc = varve_disks_find(d, json_string_value(item), &disks[i], err);
        if (rc < 0)
            return rc;
        for (size_t k = 0; k < i; k++) {
            if (disks[k] == disks[i])
                return varve_err_set(err, EINVAL, "Disk '%s' is named twice", disks[i]->name);
        }
    }
    return 0;
}

/* --- create
 * ---------------------------------------------------------------------------------------- */

struct create {
    struct varve_action a;
    const char *name;
    struct varve_disk **disks;
    uint64_t *epochs;
    size_t n;
    uint64_t time_ns;
};

static void create_free(struct varve_action *a)
{
    struct create *c = (struct create *)a;

    free(c->epochs);
    free(c->disks);
    free(c);
}

static int create_parse(struct varve_daemon *d, json_t *data, struct varve_action **out,
                        struct varve_err *err)
{
    static const char *const known[] = {"name", "disks", NULL};
    static const char *const later[] = {"freeze", NULL};
    json_t *names;
    struct create *c;
    const char *name;
    int rc;

    if (varve_args_check(data, known, later, err) < 0 ||
        varve_args_name(data, "name", true, &name, err) < 0 ||
        varve_args_list(data, "disks", true, &names, err) < 0)
        return -EINVAL;
    c = calloc(1, sizeof(*c));
    if (!c)
        return varve_err_set(err, ENOMEM, "no memory");
    c->name = name;
    varve_disks_refresh(d);
    rc = find_disks(d, names, &c->disks, &c->n, err);
    if (rc == 0) {
        c->epochs = calloc(c->n, sizeof(*c->epochs));
        if (!c->epochs)
            rc = varve_err_set(err, ENOMEM, "no memory");
    }
    if (rc < 0) {
        create_free(&c->a);
        return rc;
    }
    *out = &c->a;
    return 0;
}

static int create_apply(struct varve_tx *tx, struct varve_action *a, struct varve_err *err)
{
    struct create *c = (struct create *)a;

    c->time_ns = tx->time_ns;
    for (size_t i = 0; i < c->n; i++) {
        struct varve_cat_disk *cd = varve_tx_disk(tx, c->disks[i], err);
        int rc = cd ? varve_tx_boundary(tx, c->disks[i], &c->epochs[i], err) : -ENOMEM;

        if (rc == 0)
            rc = varve_catalogue_add_checkpoint(cd, c->name, "", tx->time_ns, c->epochs[i], err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int create_committed(struct varve_tx *tx, struct varve_action *a, struct varve_err *err)
{
    struct create *c = (struct create *)a;
    json_t *names = json_array();

    (void)err;
    for (size_t i = 0; i < c->n; i++)
        json_array_append_new(names, json_string(c->disks[i]->name));
    varve_events_send(tx->d->events, "CHECKPOINT_CREATED",
                      json_pack("{s:s, s:o}", "name", c->name, "disks", names));
    return 0;
}

static json_t *create_result(struct varve_daemon *d, struct varve_action *a)
{
    struct create *c = (struct create *)a;
    json_t *list = json_array();

    (void)d;
    for (size_t i = 0; i < c->n; i++)
        json_array_append_new(list, json_pack("{s:s, s:I}", "disk", c->disks[i]->name, "epoch",
                                              (json_int_t)c->epochs[i]));
    return json_pack("{s:s, s:f, s:o}", "name", c->name, "time", (double)c->time_ns / 1e9, "disks",
                     list);
}

const struct varve_action_ops varve_checkpoint_create_ops = {
    .name = "checkpoint-create",
    .parse = create_parse,
    .apply = create_apply,
    .committed = create_committed,
    .result = create_result,
    .free = create_free,
};

json_t *varve_command_checkpoint_create(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    return varve_transaction_single(d, "checkpoint-create", args, err);
}

/* --- delete
 * ---------------------------------------------------------------------------------------- */

/* A running backup that began from there: a daemon that restarts looks at its ranges and blocks
 * again. */
static const struct varve_cat_backup *based_on(const struct varve_catalogue *c,
                                               const struct varve_cat_disk *cd,
                                               const struct varve_cat_checkpoint *p)
{
    for (size_t i = 0; i < c->nbackups; i++) {
        const struct varve_cat_backup *b = &c->backups[i];

        for (size_t k = 0; varve_cat_backup_open(b) && k < b->ndisks; k++) {
            if (memcmp(b->disks[k].uuid, cd->uuid, 16) == 0 && b->disks[k].base == p->epoch &&
                strcmp(b->disks[k].since, p->name) == 0)
                return b;
        }
    }
    return NULL;
}

/* From one disk.  exported: also the notes of its exports.  -ENOENT: it has none of that name. */
static int delete_from(struct varve_catalogue *draft, struct varve_disk *disk, const char *name,
                       bool exported, struct varve_err *err)
{
    struct varve_cat_disk *cd = varve_catalogue_disk(draft, disk->identity.uuid);
    const struct varve_cat_checkpoint *p = varve_catalogue_checkpoint(cd, name);
    const struct varve_cat_backup *own;
    bool given_up = exported && cd && varve_catalogue_remove_exports(cd, name, 0) > 0;

    if (!p && given_up)
        return 0;
    if (!p)
        return varve_err_set(err, ENOENT,
                             "Disk '%s' has no checkpoint '%.100s': query-checkpoints lists those "
                             "there are",
                             disk->name, name);
    own = p->backup[0] ? varve_catalogue_backup(draft, p->backup) : NULL;
    if (own && varve_cat_backup_open(own))
        return varve_err_set(err, EBUSY,
                             "Disk '%s': checkpoint '%s' belongs to backup '%s', which still "
                             "runs: end that first",
                             disk->name, name, own->id);
    own = p->nheal > 0 || p->has_blocks ? based_on(draft, cd, p) : NULL;
    if (own)
        return varve_err_set(err, EBUSY,
                             "Disk '%s': backup '%s', which still runs, needs what checkpoint '%s' "
                             "%s: end that first",
                             disk->name, own->id, name,
                             p->has_blocks ? "was imported with"
                                           : "knows of its own backup's errors");
    varve_catalogue_remove_checkpoint(cd, name);
    return 0;
}

struct delete
{
    struct varve_action a;
    const char *name;
    struct varve_disk **disks; /* NULL: all that have it */
    size_t n;
    bool exported;
};

static void delete_free(struct varve_action *a)
{
    struct delete *x = (struct delete *)a;

    free(x->disks);
    free(x);
}

static int delete_parse(struct varve_daemon *d, json_t *data, struct varve_action **out,
                        struct varve_err *err)
{
    static const char *const known[] = {"name", "disks", "exported", NULL};
    struct delete *x;
    const char *name;
    json_t *names;
    bool exported;
    int rc = 0;

    if (varve_args_check(data, known, NULL, err) < 0 ||
        varve_args_string(data, "name", true, &name, err) < 0 ||
        varve_args_list(data, "disks", false, &names, err) < 0 ||
        varve_args_bool(data, "exported", false, &exported, err) < 0)
        return -EINVAL;
    x = calloc(1, sizeof(*x));
    if (!x)
        return varve_err_set(err, ENOMEM, "no memory");
    x->name = name;
    x->exported = exported;
    varve_disks_refresh(d);
    if (names)
        rc = find_disks(d, names, &x->disks, &x->n, err);
    if (rc < 0) {
        delete_free(&x->a);
        return rc;
    }
    *out = &x->a;
    return 0;
}

static int delete_apply(struct varve_tx *tx, struct varve_action *a, struct varve_err *err)
{
    const struct delete *x = (struct delete *)a;
    struct varve_daemon *d = tx->d;
    size_t found = 0;
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < x->n; i++)
        rc = delete_from(tx->draft, x->disks[i], x->name, x->exported, err);
    for (struct varve_disk *disk = x->disks ? NULL : d->disks; rc == 0 && disk; disk = disk->next) {
        if (disk->gone || !disk->known)
            continue;
        rc = delete_from(tx->draft, disk, x->name, x->exported, err);
        found += rc == 0;
        if (rc == -ENOENT)
            rc = 0;
    }
    if (rc == 0 && !x->disks && found == 0)
        rc = varve_err_set(err, ENOENT,
                           "There is no checkpoint '%.100s': query-checkpoints lists those there are",
                           x->name);
    for (struct varve_disk *disk = d->disks; rc == 0 && disk; disk = disk->next)
        varve_tx_tidy(tx, disk);
    return rc;
}

const struct varve_action_ops varve_checkpoint_delete_ops = {
    .name = "checkpoint-delete",
    .parse = delete_parse,
    .apply = delete_apply,
    .free = delete_free,
};

json_t *varve_command_checkpoint_delete(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    return varve_transaction_single(d, "checkpoint-delete", args, err);
}
