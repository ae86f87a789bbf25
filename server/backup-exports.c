/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The exports of a backup's disk, each of the same view: NAME, with what changed since the backup's
 * base, NAME@BASE for every other base there is, and NAME+delta of each.  And extra exports, which
 * have names of their own; what their bases were when they were added is theirs.
 */
#include "server/backup.h"

#include "lib/epoch-era.h"
#include "server/base.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct varve_view_export *export_new(struct varve_backup_disk *bd, const char *name,
                                            const char *bitmap, bool listed,
                                            struct varve_changes *changes, const char *base,
                                            struct varve_err *err)
{
    struct varve_view_export *x = varve_view_export_new(name, bitmap, listed, bd->served, changes,
                                                        base, bd->backup->throttle);

    if (!x)
        varve_err_set(err, ENOMEM, "no memory for export '%s'", name);
    else
        x->e.releasable = bd->backup->release;
    return x;
}

static int backup_disk_export(struct varve_backup_disk *bd, const char *name, const char *bitmap,
                              bool listed, struct varve_changes *changes, const char *base,
                              struct varve_err *err)
{
    struct varve_view_export *x = export_new(bd, name, bitmap, listed, changes, base, err);

    if (!x)
        return -ENOMEM;
    x->next = bd->exports;
    bd->exports = x;
    return 0;
}

/* NAME and NAME+delta, which reads true bytes where it says holes: a view that lets go of blocks
 * cannot do that. */
static int backup_disk_export_pair(struct varve_backup_disk *bd, const char *name,
                                   const char *bitmap, bool listed, struct varve_changes *changes,
                                   const char *base, struct varve_err *err)
{
    int rc = backup_disk_export(bd, name, bitmap, listed, changes, base, err);
    char *delta = NULL;

    if (rc < 0 || bd->backup->release || bd->backup->preserve_dirty)
        return rc;
    if (asprintf(&delta, "%s+delta", name) < 0)
        return varve_err_set(err, ENOMEM, "no memory for export '%s'", name);
    rc = backup_disk_export(bd, delta, NULL, false, changes, base, err);
    free(delta);
    return rc;
}

/* NAME@BASE and NAME@BASE+delta. */
static int backup_disk_export_base(struct varve_backup_disk *bd,
                                   const struct varve_cat_backup_disk *cbd, const char *base,
                                   const struct varve_change_set *set, uint64_t granularity,
                                   struct varve_err *err)
{
    bool listed = bd->backup->daemon->options->list_bases;
    char text[VARVE_BASE_TEXT_LEN], *name = varve_base_export_name(cbd->export, base);
    struct varve_changes *changes =
        varve_changes_new_lazy(bd->disk, set, granularity, cbd->boundary);
    int rc = varve_base_describe(set, granularity, cbd->boundary, text, err);

    if (rc == 0 && (!changes || !name))
        rc = varve_err_set(err, ENOMEM, "no memory for an export of '%s'", cbd->export);
    if (rc == 0)
        rc = backup_disk_export_pair(bd, name, base, listed, changes, text, err);
    varve_changes_unref(changes);
    free(name);
    return rc;
}

static int backup_disk_export_checkpoint(struct varve_backup_disk *bd,
                                         const struct varve_cat_backup_disk *cbd,
                                         const struct varve_cat_checkpoint *p,
                                         struct varve_err *err)
{
    struct varve_change_set set;
    int rc;

    if (varve_changes_since(p, &set) < 0)
        return varve_err_set(err, ENOMEM, "no memory for an export of '%s'", cbd->export);
    rc = backup_disk_export_base(bd, cbd, p->name, &set, 0, err);
    varve_change_set_clear(&set);
    return rc;
}

/* The backup's own base in words; *text is empty in a full backup. */
static int own_base(const struct varve_catalogue *c, const struct varve_cat_backup_disk *cbd,
                    char text[VARVE_BASE_TEXT_LEN], struct varve_err *err)
{
    struct varve_change_set base;
    int rc;

    text[0] = '\0';
    if (varve_backup_is_full(cbd))
        return 0;
    if (varve_backup_base(c, cbd, &base) < 0)
        return varve_err_set(err, ENOMEM, "no memory for an export of '%s'", cbd->export);
    rc = varve_base_describe(&base, cbd->granularity, cbd->boundary, text, err);
    varve_change_set_clear(&base);
    return rc;
}

/* --- what may be a base ---------------------------------------------------------------------- */

/* A checkpoint whose own backup has not succeeded yet is no base. */
static const struct varve_cat_backup *checkpoint_owner(const struct varve_catalogue *c,
                                                       const struct varve_cat_checkpoint *p)
{
    const struct varve_cat_backup *own = p->backup[0] ? varve_catalogue_backup(c, p->backup) : NULL;

    return own && varve_cat_backup_open(own) ? own : NULL;
}

/* NULL: it is one.  A bitmap that was made, cleared or moved since the boundary does not hold any
 * more what this backup's clients began with.  One that is empty would say that nothing changed. */
static const char *bitmap_is_no_base(const struct varve_cat_bitmap *b, uint64_t boundary)
{
    static const char later[] = "was made, cleared or moved after the backup's instant";
    bool any = b->set.has_blocks || b->set.nranges > 0;

    if (b->since > boundary)
        return later;
    if (b->set.nspans == 0 && varve_era(b->since) != varve_era(boundary))
        return "is of before somebody else wrote to the image";
    for (size_t i = 0; i < b->set.nspans; i++) {
        if (b->set.spans[i].first > boundary)
            return later;
        any = any || b->set.spans[i].first < boundary;
    }
    return any ? NULL : "was empty at the backup's instant, and would say that nothing changed";
}

static int base_checkpoint(const struct varve_catalogue *c, const struct varve_cat_backup_disk *cbd,
                           const struct varve_cat_checkpoint *p, struct varve_change_set *set,
                           struct varve_err *err)
{
    const struct varve_cat_backup *own = checkpoint_owner(c, p);

    if (own)
        return varve_err_set(err, EBUSY,
                             "Disk '%s': checkpoint '%s' belongs to backup '%s', which still "
                             "runs: end that first",
                             cbd->disk, p->name, own->id);
    if (p->epoch >= cbd->boundary)
        return varve_err_set(err, EINVAL,
                             "Disk '%s': checkpoint '%s' is not older than the backup of export "
                             "'%s': begin another backup since it",
                             cbd->disk, p->name, cbd->export);
    return varve_changes_since(p, set) < 0 ? varve_err_set(err, ENOMEM, "no memory for an export")
                                           : 0;
}

int varve_backup_find_base(const struct varve_catalogue *c, const struct varve_cat_backup_disk *cbd,
                           const char *name, struct varve_change_set *set, uint64_t *granularity,
                           struct varve_err *err)
{
    const struct varve_cat_disk *cd = varve_catalogue_disk(c, cbd->uuid);
    const struct varve_cat_checkpoint *p = varve_catalogue_checkpoint(cd, name);
    const struct varve_cat_bitmap *b = varve_catalogue_bitmap(cd, name);
    const char *why;

    memset(set, 0, sizeof(*set));
    *granularity = 0;
    if (p)
        return base_checkpoint(c, cbd, p, set, err);
    if (!b)
        return varve_err_set(err, ENOENT,
                             "Dirty bitmap '%.80s' not found: query-block lists those of disk "
                             "'%s', query-checkpoints its checkpoints",
                             name, cbd->disk);
    why = bitmap_is_no_base(b, cbd->boundary);
    if (why)
        return varve_err_set(err, EINVAL,
                             "Disk '%s': bitmap '%.200s' %s: begin another backup from it",
                             cbd->disk, name, why);
    *granularity = b->granularity;
    return varve_change_set_copy(set, &b->set) < 0
               ? varve_err_set(err, ENOMEM, "no memory for an export")
               : 0;
}

/* --- extra exports ---------------------------------------------------------------------------- */

static int extra_own(struct varve_backup_disk *bd, const struct varve_catalogue *c,
                     const struct varve_cat_backup_disk *cbd, struct varve_changes **changes,
                     char text[VARVE_BASE_TEXT_LEN], struct varve_err *err)
{
    *changes = varve_changes_ref(bd->changes);
    return own_base(c, cbd, text, err);
}

static int extra_other(struct varve_backup_disk *bd, const struct varve_cat_backup_disk *cbd,
                       const struct varve_cat_extra *e, struct varve_changes **changes,
                       char text[VARVE_BASE_TEXT_LEN], struct varve_err *err)
{
    *changes = varve_changes_new_lazy(bd->disk, &e->set, e->granularity, cbd->boundary);
    if (!*changes)
        return varve_err_set(err, ENOMEM, "no memory for an export of '%s'", cbd->export);
    return varve_base_describe(&e->set, e->granularity, cbd->boundary, text, err);
}

static int extra_description(struct varve_view_export *x, const struct varve_cat_extra *e,
                             struct varve_err *err)
{
    char *text = e->description ? strdup(e->description) : NULL;

    if (!e->description)
        return 0;
    if (!text)
        return varve_err_set(err, ENOMEM, "no memory for export '%s'", e->name);
    free(x->e.description);
    x->e.description = text;
    return 0;
}

int varve_backup_extra_new(struct varve_backup_disk *bd, const struct varve_catalogue *c,
                           const struct varve_cat_backup_disk *cbd, const struct varve_cat_extra *e,
                           struct varve_view_export **out, struct varve_err *err)
{
    struct varve_changes *changes = NULL;
    char text[VARVE_BASE_TEXT_LEN];
    int rc = e->base ? extra_other(bd, cbd, e, &changes, text, err)
                     : extra_own(bd, c, cbd, &changes, text, err);

    if (rc == 0) {
        *out = export_new(bd, e->name, e->base ? e->base : cbd->exportbitmap, true, changes,
                          text[0] ? text : NULL, err);
        rc = *out ? extra_description(*out, e, err) : -ENOMEM;
        if (rc < 0 && *out)
            varve_export_unref(&(*out)->e);
    }
    varve_changes_unref(changes);
    if (rc == 0)
        memcpy((*out)->id, e->id, sizeof((*out)->id));
    return rc;
}

static int backup_disk_extras(struct varve_backup_disk *bd, const struct varve_catalogue *c,
                              const struct varve_cat_backup_disk *cbd, struct varve_err *err)
{
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < cbd->nextras; i++) {
        struct varve_view_export *x;

        rc = varve_backup_extra_new(bd, c, cbd, &cbd->extras[i], &x, err);
        if (rc == 0) {
            x->next = bd->exports;
            bd->exports = x;
        }
    }
    return rc;
}

/* --- all of them ------------------------------------------------------------------------------ */

int varve_backup_disk_exports(struct varve_backup_disk *bd, const struct varve_catalogue *c,
                              const struct varve_cat_backup_disk *cbd, struct varve_err *err)
{
    const struct varve_cat_disk *cd = varve_catalogue_disk(c, cbd->uuid);
    char text[VARVE_BASE_TEXT_LEN];
    int rc = own_base(c, cbd, text, err);

    if (rc == 0)
        rc = backup_disk_export_pair(bd, cbd->export, cbd->exportbitmap, true, bd->changes,
                                     text[0] ? text : NULL, err);
    for (size_t i = 0; cd && rc == 0 && i < cd->ncheckpoints; i++) {
        const struct varve_cat_checkpoint *p = &cd->checkpoints[i];

        if (p->epoch < cbd->boundary && !checkpoint_owner(c, p))
            rc = backup_disk_export_checkpoint(bd, cbd, p, err);
    }
    for (size_t i = 0; cd && rc == 0 && i < cd->nbitmaps; i++) {
        const struct varve_cat_bitmap *b = &cd->bitmaps[i];

        /* One called like a checkpoint stands behind that. */
        if (!varve_catalogue_checkpoint(cd, b->name) && !bitmap_is_no_base(b, cbd->boundary))
            rc = backup_disk_export_base(bd, cbd, b->name, &b->set, b->granularity, err);
    }
    return rc < 0 ? rc : backup_disk_extras(bd, c, cbd, err);
}
