/* SPDX-License-Identifier: BSD-3-Clause
 *
 * checkpoint-create, checkpoint-delete.
 */
#include "server/commands.h"

#include "server/args.h"
#include "server/boundary.h"
#include "server/disk.h"
#include "server/log.h"

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

static int create_check(struct varve_daemon *d, const char *name, struct varve_disk **disks,
                        size_t n, struct varve_err *err)
{
    for (size_t i = 0; i < n; i++) {
        const struct varve_cat_disk *cd =
            varve_catalogue_disk(d->catalogue, disks[i]->identity.uuid);

        if (varve_catalogue_checkpoint(cd, name))
            return varve_err_set(err, EEXIST,
                                 "Disk '%s' has a checkpoint '%s' already: choose another name",
                                 disks[i]->name, name);
    }
    return 0;
}

static int create_commit(struct varve_daemon *d, const char *name, uint64_t time_ns,
                         const struct varve_boundary_disk *at, size_t n, struct varve_err *err)
{
    struct varve_catalogue *draft = varve_daemon_draft(d, err);

    if (!draft)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++) {
        struct varve_disk *disk = at[i].disk;
        struct varve_cat_disk *cd =
            varve_catalogue_add_disk(draft, disk->identity.uuid, disk->name);
        int rc = cd ? varve_catalogue_add_checkpoint(cd, name, "", time_ns, at[i].epoch, err)
                    : varve_err_set(err, ENOMEM, "no memory for checkpoint '%s'", name);

        if (rc < 0) {
            varve_catalogue_free(draft);
            return rc;
        }
    }
    return varve_daemon_commit(d, draft, err);
}

static json_t *create_reply(struct varve_daemon *d, const char *name, uint64_t time_ns,
                            const struct varve_boundary_disk *at, size_t n)
{
    json_t *list = json_array(), *names = json_array();

    for (size_t i = 0; i < n; i++) {
        json_array_append_new(list, json_pack("{s:s, s:I}", "disk", at[i].disk->name, "epoch",
                                              (json_int_t)at[i].epoch));
        json_array_append_new(names, json_string(at[i].disk->name));
    }
    varve_events_send(d->events, "CHECKPOINT_CREATED",
                      json_pack("{s:s, s:o}", "name", name, "disks", names));
    return json_pack("{s:s, s:f, s:o}", "name", name, "time", (double)time_ns / 1e9, "disks", list);
}

json_t *varve_command_checkpoint_create(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    static const char *const known[] = {"name", "disks", NULL};
    static const char *const later[] = {"freeze", NULL};
    struct varve_boundary_disk *at = NULL;
    struct varve_disk **disks = NULL;
    json_t *names, *reply = NULL;
    const char *name;
    uint64_t now;
    size_t n = 0;
    int rc;

    if (varve_args_check(args, known, later, err) < 0 ||
        varve_args_name(args, "name", true, &name, err) < 0 ||
        varve_args_list(args, "disks", true, &names, err) < 0)
        return NULL;
    varve_disks_refresh(d);
    rc = find_disks(d, names, &disks, &n, err);
    if (rc == 0)
        rc = create_check(d, name, disks, n, err);
    if (rc == 0) {
        at = calloc(n, sizeof(*at));
        if (!at)
            rc = varve_err_set(err, ENOMEM, "no memory");
    }
    for (size_t i = 0; rc == 0 && i < n; i++)
        at[i].disk = disks[i];
    if (rc == 0)
        rc = varve_boundary_make(at, n, err);
    now = d->w->realtime_ns(d->w);
    if (rc == 0)
        rc = create_commit(d, name, now, at, n, err);
    if (rc == 0)
        reply = create_reply(d, name, now, at, n);
    free(at);
    free(disks);
    return reply;
}

/* --- delete
 * ---------------------------------------------------------------------------------------- */

/* A running backup that began from there: a daemon that restarts looks at the heal ranges again. */
static const struct varve_cat_backup *based_on(const struct varve_catalogue *c,
                                               const struct varve_cat_disk *cd, uint64_t epoch)
{
    for (size_t i = 0; i < c->nbackups; i++) {
        const struct varve_cat_backup *b = &c->backups[i];

        for (size_t k = 0; varve_cat_backup_open(b) && k < b->ndisks; k++) {
            if (memcmp(b->disks[k].uuid, cd->uuid, 16) == 0 && b->disks[k].base == epoch)
                return b;
        }
    }
    return NULL;
}

/* From one disk.  -ENOENT: it has none of that name. */
static int delete_from(struct varve_catalogue *draft, struct varve_disk *disk, const char *name,
                       struct varve_err *err)
{
    struct varve_cat_disk *cd = varve_catalogue_disk(draft, disk->identity.uuid);
    const struct varve_cat_checkpoint *p = varve_catalogue_checkpoint(cd, name);
    const struct varve_cat_backup *own;

    if (!p)
        return varve_err_set(err, ENOENT,
                             "Disk '%s' has no checkpoint '%s': query-checkpoints lists those "
                             "there are",
                             disk->name, name);
    own = p->backup[0] ? varve_catalogue_backup(draft, p->backup) : NULL;
    if (own && varve_cat_backup_open(own))
        return varve_err_set(err, EBUSY,
                             "Disk '%s': checkpoint '%s' belongs to backup '%s', which still "
                             "runs: end that first",
                             disk->name, name, own->id);
    own = p->nheal > 0 ? based_on(draft, cd, p->epoch) : NULL;
    if (own)
        return varve_err_set(err, EBUSY,
                             "Disk '%s': backup '%s', which still runs, needs what checkpoint '%s' "
                             "knows of its own backup's errors: end that first",
                             disk->name, own->id, name);
    varve_catalogue_remove_checkpoint(cd, name);
    return 0;
}

static int delete_run(struct varve_daemon *d, const char *name, struct varve_disk **disks, size_t n,
                      struct varve_err *err)
{
    struct varve_catalogue *draft = varve_daemon_draft(d, err);
    size_t found = 0;
    int rc = 0;

    if (!draft)
        return -ENOMEM;
    for (size_t i = 0; rc == 0 && i < n; i++)
        rc = delete_from(draft, disks[i], name, err);
    for (struct varve_disk *disk = disks ? NULL : d->disks; rc == 0 && disk; disk = disk->next) {
        if (disk->gone || !disk->known)
            continue;
        rc = delete_from(draft, disk, name, err);
        found += rc == 0;
        if (rc == -ENOENT)
            rc = 0;
    }
    if (rc == 0 && !disks && found == 0)
        rc = varve_err_set(err, ENOENT,
                           "There is no checkpoint '%s': query-checkpoints lists those there are",
                           name);
    if (rc < 0) {
        varve_catalogue_free(draft);
        return rc;
    }
    rc = varve_daemon_commit(d, draft, err);
    for (struct varve_disk *disk = rc == 0 ? d->disks : NULL; disk; disk = disk->next)
        varve_disk_tidy(disk);
    return rc;
}

json_t *varve_command_checkpoint_delete(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    static const char *const known[] = {"name", "disks", NULL};
    struct varve_disk **disks = NULL;
    const char *name;
    json_t *names;
    size_t n = 0;
    int rc = 0;

    if (varve_args_check(args, known, NULL, err) < 0 ||
        varve_args_string(args, "name", true, &name, err) < 0 ||
        varve_args_list(args, "disks", false, &names, err) < 0)
        return NULL;
    varve_disks_refresh(d);
    if (names)
        rc = find_disks(d, names, &disks, &n, err);
    if (rc == 0)
        rc = delete_run(d, name, disks, n, err);
    free(disks);
    return rc < 0 ? NULL : json_object();
}
