/* SPDX-License-Identifier: BSD-3-Clause
 *
 * block-export-add, block-export-del, query-block-exports: extra exports of running backups, so
 * that several appliances can have the changes since several bases from one instant.
 *
 *     add     names free | base found, and its changes united, so that a hole is found now |
 * committed, with the base's numbers: what becomes of the base later is nothing to the export |
 * published delete  nobody reads it, or mode hard | committed | withdrawn
 *
 * They end with their backup, and come back with it.  A backup's own exports are listed, too, by
 * their names; only backup-end takes those away.
 */
#include "server/commands.h"

#include "server/args.h"
#include "server/backup.h"
#include "server/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* What block-export-add was asked for; all borrowed. */
struct add {
    const char *id, *node, *name, *description;
    const char *base; /* NULL: the backup's own */
};

/* A disk of an open backup, in a catalogue. */
struct place {
    const struct varve_cat_backup *cb;
    size_t index; /* of the disk */
};

static const struct varve_cat_backup_disk *disk_of(const struct place *at)
{
    return &at->cb->disks[at->index];
}

/* Of an open backup with exports: the first behind *at that matches by its own export's or by its
 * disk's name.  at->cb NULL: the first of all. */
static bool place_next(const struct varve_catalogue *c, const char *name, bool by_disk,
                       struct place *at)
{
    size_t i = at->cb ? (size_t)(at->cb - c->backups) : 0, k = at->cb ? at->index + 1 : 0;

    for (; i < c->nbackups; i++, k = 0) {
        const struct varve_cat_backup *cb = &c->backups[i];

        if (!varve_cat_backup_open(cb) || varve_catalogue_job_of_backup(c, cb->id))
            continue;
        for (; k < cb->ndisks; k++) {
            if (strcmp(by_disk ? cb->disks[k].disk : cb->disks[k].export, name) == 0) {
                *at = (struct place){cb, k};
                return true;
            }
        }
    }
    return false;
}

static int find_node(struct varve_daemon *d, const char *node, struct place *at,
                     struct varve_err *err)
{
    struct place other;
    struct varve_disk *disk;
    int rc;

    *at = (struct place){.cb = NULL};
    if (place_next(d->catalogue, node, false, at))
        return 0;
    if (!place_next(d->catalogue, node, true, at)) {
        rc = varve_disks_find(d, node, &disk, err);
        return rc < 0 ? rc
                      : varve_err_set(err, EINVAL,
                                      "Disk '%s' has no running backup: backup-begin begins one",
                                      node);
    }
    other = *at;
    if (!place_next(d->catalogue, node, true, &other))
        return 0;
    return varve_err_set(err, EINVAL,
                         "Disk '%s' has more than one running backup: name the export of one as "
                         "'node-name', '%s' or '%s'",
                         node, disk_of(at)->export, disk_of(&other)->export);
}

/* What runs for it, and can be read. */
static int find_running(struct varve_daemon *d, const struct place *at,
                        struct varve_backup_disk **out, struct varve_err *err)
{
    struct varve_backup *b = varve_backups_find(d, at->cb->id);

    if (!b || b->withdrawn || !b->disks[at->index].served)
        return varve_err_set(err, EINVAL,
                             "Backup '%s' could not go on when the daemon was started: begin "
                             "another one",
                             at->cb->id);
    *out = &b->disks[at->index];
    if (at->cb->state == VARVE_BACKUP_BROKEN)
        return varve_err_set(err, EINVAL, "Backup '%s' is broken (%s): end it, and begin another",
                             at->cb->id, at->cb->reason);
    if (varve_served_view_check((*out)->served, err) == -ESTALE)
        return varve_err_prefix(err, "Backup '%s' is broken, begin another one: disk '%s'",
                                at->cb->id, disk_of(at)->disk);
    return 0;
}

/* --- add: arguments --------------------------------------------------------------------------- */

static int parse_writable(json_t *args, struct varve_err *err)
{
    bool writable;
    int rc = varve_args_bool(args, "writable", false, &writable, err);

    return rc == 0 && writable
               ? varve_err_set(err, EINVAL,
                               "Cannot export read-only node as writable: a backup's "
                               "bytes never change")
               : rc;
}

/* A description that reads like those that we make would be taken for one (include/varve.h). */
static int parse_description(json_t *args, const char **out, struct varve_err *err)
{
    int rc = varve_args_string(args, "description", false, out, err);

    if (rc < 0 || !*out)
        return rc;
    if (strlen(*out) > VARVE_DESCRIPTION_MAX)
        return varve_err_set(err, EINVAL,
                             "Parameter 'description' has %zu bytes: at most %u are allowed",
                             strlen(*out), VARVE_DESCRIPTION_MAX);
    if (strstr(*out, VARVE_DESC_EPOCH) || strstr(*out, VARVE_DESC_CHANGES))
        return varve_err_set(err, EINVAL,
                             "Parameter 'description' reads as one that varved makes: leave it "
                             "out, or say it in other words");
    return 0;
}

/* At most one: a name, or {node, name}. */
static int parse_bitmaps(json_t *args, const char **base, const char **node, struct varve_err *err)
{
    static const char *const known[] = {"node", "name", NULL};
    json_t *list = json_object_get(args, "bitmaps"), *item = json_array_get(list, 0);
    int rc;

    *base = *node = NULL;
    if (list && !json_is_array(list))
        return varve_err_set(err, EINVAL, "Invalid parameter type for 'bitmaps', expected: array");
    if (json_array_size(list) > 1)
        return varve_err_set(err, EINVAL,
                             "Parameter 'bitmaps' names %zu: an export has one, as clients "
                             "expect; add an export for each",
                             json_array_size(list));
    if (!item)
        return 0;
    if (json_is_object(item)) {
        rc = varve_args_check(item, known, NULL, err);
        if (rc == 0)
            rc = varve_args_string(item, "node", true, node, err);
        return rc < 0 ? rc : varve_args_string(item, "name", true, base, err);
    }
    if (!json_is_string(item) || strlen(json_string_value(item)) != json_string_length(item))
        return varve_err_set(err, EINVAL,
                             "Invalid parameter type for 'bitmaps', expected: array of names or of "
                             "objects with 'node' and 'name'");
    *base = json_string_value(item);
    return 0;
}

static int parse_type(json_t *args, struct varve_err *err)
{
    const char *type;
    int rc = varve_args_string(args, "type", true, &type, err);

    return rc == 0 && strcmp(type, "nbd") != 0
               ? varve_err_set(err, EINVAL, "Parameter 'type' does not accept value '%.100s': nbd",
                               type)
               : rc;
}

static int add_parse(json_t *args, struct add *a, const char **bitmap_node, struct varve_err *err)
{
    static const char *const known[] = {"type",        "id",      "node-name", "name",
                                        "description", "bitmaps", "writable",  NULL};
    static const char *const later[] = {"writethrough", "iothread", "fixed-iothread",
                                        "allocation-depth", NULL};
    int rc = varve_args_check(args, known, later, err);

    if (rc == 0)
        rc = parse_type(args, err);
    if (rc == 0)
        rc = varve_args_name(args, "id", true, &a->id, err);
    if (rc == 0)
        rc = varve_args_string(args, "node-name", true, &a->node, err);
    if (rc == 0)
        rc = varve_args_name(args, "name", false, &a->name, err);
    if (rc == 0)
        rc = parse_description(args, &a->description, err);
    if (rc == 0)
        rc = parse_bitmaps(args, &a->base, bitmap_node, err);
    return rc < 0 ? rc : parse_writable(args, err);
}

/* --- add -------------------------------------------------------------------------------------- */

static int check_free(struct varve_daemon *d, const struct add *a, struct varve_err *err)
{
    struct place own = {.cb = NULL};
    struct varve_cat_backup_disk *of;
    struct varve_export *e;

    if (varve_catalogue_extra(d->catalogue, a->id, &of) ||
        place_next(d->catalogue, a->id, false, &own))
        return varve_err_set(err, EEXIST,
                             "Block export id '%s' is already in use: query-block-exports lists "
                             "those there are, choose another",
                             a->id);
    e = varve_exports_get(d->exports, a->name, strlen(a->name));
    if (!e)
        return 0;
    varve_export_unref(e);
    return varve_err_set(err, EEXIST, "Export '%s' exists already: give another name as 'name'",
                         a->name);
}

/* Makes the entry in the draft. */
static int add_entry(const struct varve_catalogue *c, struct varve_cat_backup_disk *cbd,
                     const struct add *a, struct varve_cat_extra **out, struct varve_err *err)
{
    struct varve_cat_extra *e;
    int rc = 0;

    if (cbd->nextras >= VARVE_CATALOGUE_EXTRAS_MAX)
        return varve_err_set(err, ENOSPC,
                             "Export '%s' has %u extra exports, more there cannot be: delete one "
                             "with block-export-del",
                             cbd->export, VARVE_CATALOGUE_EXTRAS_MAX);
    e = varve_catalogue_add_extra(cbd, a->id, a->name);
    if (!e)
        return varve_err_set(err, ENOMEM, "no memory for export '%s'", a->name);
    *out = e;
    if (a->base)
        rc = varve_backup_find_base(c, cbd, a->base, &e->set, &e->granularity, err);
    if (rc < 0)
        return rc;
    if ((a->base && !(e->base = strdup(a->base))) ||
        (a->description && !(e->description = strdup(a->description))))
        return varve_err_set(err, ENOMEM, "no memory for export '%s'", a->name);
    return 0;
}

/* What a base without its epochs would be asked for only when a client comes is asked now. */
static int check_changes(struct varve_view_export *x, const struct add *a, struct varve_err *err)
{
    struct varve_changed changed;
    int rc = varve_changes_get(x->changes, &changed, err);

    if (rc < 0)
        return varve_err_prefix(err, "cannot tell what changed since '%.100s'",
                                a->base ? a->base : a->node);
    varve_changes_put(x->changes);
    return 0;
}

static int add_run(struct varve_daemon *d, const struct add *a, const struct place *at,
                   struct varve_backup_disk *bd, struct varve_err *err)
{
    struct varve_catalogue *draft = varve_daemon_draft(d, err);
    struct varve_cat_backup *cb = draft ? varve_catalogue_backup(draft, at->cb->id) : NULL;
    struct varve_view_export *x = NULL;
    struct varve_cat_extra *e = NULL;
    int rc;

    if (!cb)
        return -ENOMEM;
    rc = add_entry(draft, &cb->disks[at->index], a, &e, err);
    if (rc == 0)
        rc = varve_backup_extra_new(bd, draft, &cb->disks[at->index], e, &x, err);
    if (rc == 0)
        rc = check_changes(x, a, err);
    if (rc < 0)
        varve_catalogue_free(draft);
    else
        rc = varve_daemon_commit(d, draft, err);
    if (rc < 0) {
        if (x)
            varve_export_unref(&x->e);
        return rc;
    }
    varve_backup_extra_publish(bd, x);
    varve_log_about(VARVE_ABOUT(.backup = bd->backup->id, .disk = bd->disk->name),
                    "Backup '%s' offers export '%s', too", bd->backup->id, a->name);
    return 0;
}

json_t *varve_command_block_export_add(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    struct add a = {.id = NULL};
    struct varve_backup_disk *bd = NULL;
    const char *bitmap_node;
    struct place at;
    int rc = add_parse(args, &a, &bitmap_node, err);

    if (rc < 0)
        return NULL;
    if (!a.name)
        a.name = a.node; /* as QEMU */
    varve_disks_refresh(d);
    rc = find_node(d, a.node, &at, err);
    if (rc == 0)
        rc = find_running(d, &at, &bd, err);
    if (rc == 0)
        rc = check_free(d, &a, err);
    if (rc == 0 && bitmap_node && strcmp(bitmap_node, a.node) != 0 &&
        strcmp(bitmap_node, disk_of(&at)->disk) != 0)
        rc = varve_err_set(err, EINVAL,
                           "Bitmap '%.80s' of '%.80s' cannot be told by an export of disk '%s'",
                           a.base, bitmap_node, disk_of(&at)->disk);
    if (rc == 0)
        rc = add_run(d, &a, &at, bd, err);
    return rc < 0 ? NULL : json_object();
}

/* --- delete ----------------------------------------------------------------------------------- */

static int parse_mode(json_t *args, bool *hard, struct varve_err *err)
{
    const char *mode;
    int rc = varve_args_string(args, "mode", false, &mode, err);

    *hard = rc == 0 && mode && strcmp(mode, "hard") == 0;
    return rc == 0 && mode && !*hard && strcmp(mode, "safe") != 0
               ? varve_err_set(err, EINVAL, "Parameter 'mode' does not accept value '%.100s'", mode)
               : rc;
}

/* What is published of it; NULL: its backup could not go on. */
static struct varve_view_export *find_published(struct varve_daemon *d, const char *id,
                                                struct varve_backup_disk **bd)
{
    for (struct varve_backup *b = d->backups; b; b = b->next) {
        for (size_t i = 0; i < b->ndisks; i++) {
            for (struct varve_view_export *x = b->disks[i].exports; x; x = x->next) {
                *bd = &b->disks[i];
                if (strcmp(x->id, id) == 0)
                    return x;
            }
        }
    }
    return NULL;
}

static int check_extra(struct varve_daemon *d, const char *id, struct varve_err *err)
{
    struct varve_cat_backup_disk *of;
    struct place own = {.cb = NULL};

    if (varve_catalogue_extra(d->catalogue, id, &of))
        return 0;
    if (place_next(d->catalogue, id, false, &own))
        return varve_err_set(err, EINVAL,
                             "Export '%s' is what backup '%s' is read by, and ends with it: "
                             "backup-end",
                             id, own.cb->id);
    return varve_err_set(
        err, ENOENT, "Export '%.100s' is not found: query-block-exports lists those there are", id);
}

static int del_run(struct varve_daemon *d, const char *id, struct varve_err *err)
{
    struct varve_catalogue *draft = varve_daemon_draft(d, err);
    struct varve_cat_backup_disk *of;
    struct varve_cat_extra *e;
    struct varve_disk *disk;

    if (!draft)
        return -ENOMEM;
    e = varve_catalogue_extra(draft, id, &of);
    disk = varve_disks_by_uuid(d, of->uuid);
    varve_catalogue_remove_extra(of, e);
    if (varve_daemon_commit(d, draft, err) < 0)
        return -err->code;
    if (disk)
        varve_disk_tidy(disk);
    return 0;
}

json_t *varve_command_block_export_del(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    static const char *const known[] = {"id", "mode", NULL};
    struct varve_backup_disk *bd;
    struct varve_view_export *x;
    const char *id;
    bool hard;

    if (varve_args_check(args, known, NULL, err) < 0 ||
        varve_args_string(args, "id", true, &id, err) < 0 || parse_mode(args, &hard, err) < 0 ||
        check_extra(d, id, err) < 0)
        return NULL;
    x = find_published(d, id, &bd);
    if (x && x->e.clients && !hard) {
        varve_err_set(err, EBUSY,
                      "export '%s' still in use: %u clients are connected, mode \"hard\" "
                      "disconnects them",
                      id, (unsigned)x->e.clients);
        return NULL;
    }
    if (del_run(d, id, err) < 0)
        return NULL;
    varve_log("Export '%s' is deleted", id);
    if (x)
        varve_backup_extra_withdraw(bd, x);
    varve_events_send(d->events, "BLOCK_EXPORT_DELETED", json_pack("{s:s}", "id", id));
    return json_object();
}

/* --- query ------------------------------------------------------------------------------------ */

static json_t *describe(const struct varve_backup *b, const struct varve_cat_backup_disk *cbd,
                        const char *id, const char *name, const char *bitmap, bool extra,
                        unsigned clients)
{
    json_t *context = json_sprintf("%s%s", VARVE_CTX_DIRTY_PREFIX, bitmap);

    /* QEMU's four members, and ours. */
    return json_pack("{s:s, s:s, s:s, s:b, s:s, s:s, s:o, s:b, s:I}", "id", id, "type", "nbd",
                     "node-name", cbd->disk, "shutting-down", 0, "name", name, "backup", b->id,
                     "context", context, "extra", extra, "clients", (json_int_t)clients);
}

static unsigned clients_of(const struct varve_backup_disk *bd, const char *name)
{
    for (const struct varve_view_export *x = bd->exports; x; x = x->next) {
        if (strcmp(x->e.name, name) == 0)
            return x->e.clients;
    }
    return 0;
}

static void describe_disk(const struct varve_backup *b, size_t index,
                          const struct varve_cat_backup_disk *cbd, json_t *list)
{
    const struct varve_backup_disk *bd = &b->disks[index];

    json_array_append_new(list, describe(b, cbd, cbd->export, cbd->export, cbd->exportbitmap, false,
                                         clients_of(bd, cbd->export)));
    for (size_t i = 0; i < cbd->nextras; i++) {
        const struct varve_cat_extra *e = &cbd->extras[i];

        json_array_append_new(list, describe(b, cbd, e->id, e->name,
                                             e->base ? e->base : cbd->exportbitmap, true,
                                             clients_of(bd, e->name)));
    }
}

json_t *varve_command_query_block_exports(struct varve_daemon *d, json_t *args,
                                          struct varve_err *err)
{
    static const char *const known[] = {NULL};
    const struct varve_catalogue *c = d->catalogue;
    json_t *list;

    if (varve_args_check(args, known, NULL, err) < 0)
        return NULL;
    list = json_array();
    for (size_t i = 0; i < c->nbackups; i++) {
        const struct varve_cat_backup *cb = &c->backups[i];
        const struct varve_backup *b = varve_backups_find(d, cb->id);

        if (!b || !varve_cat_backup_open(cb) || varve_catalogue_job_of_backup(c, cb->id))
            continue;
        for (size_t k = 0; k < cb->ndisks; k++)
            describe_disk(b, k, &cb->disks[k], list);
    }
    return list;
}
