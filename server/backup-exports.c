/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The exports of a backup's disk, each of the same view: NAME, with what changed since the backup's
 * base, NAME@BASE for every other base there is, and NAME+delta of each.
 */
#include "server/backup.h"

#include "lib/epoch-era.h"
#include "server/base.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static int backup_disk_export(struct varve_backup_disk *bd, const char *name, const char *bitmap,
                              bool listed, struct varve_changes *changes, const char *base,
                              struct varve_err *err)
{
    struct varve_view_export *x = varve_view_export_new(name, bitmap, listed, bd->served, changes,
                                                        base, bd->backup->throttle);

    if (!x)
        return varve_err_set(err, ENOMEM, "no memory for export '%s'", name);
    x->e.releasable = bd->backup->release;
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

/* A checkpoint whose own backup has not succeeded yet is no base. */
static bool checkpoint_is_base(const struct varve_catalogue *c,
                               const struct varve_cat_checkpoint *p, uint64_t boundary)
{
    const struct varve_cat_backup *own = p->backup[0] ? varve_catalogue_backup(c, p->backup) : NULL;

    return p->epoch < boundary && (!own || !varve_cat_backup_open(own));
}

/* A daemon that starts may meet one that was made, cleared or moved since the boundary: it does not
 * hold any more what this backup's clients began with.  One that is empty would say that nothing
 * changed; one called like a checkpoint stands behind that. */
static bool bitmap_is_base(const struct varve_cat_disk *cd, const struct varve_cat_bitmap *b,
                           uint64_t boundary)
{
    bool any = b->set.has_blocks || b->set.nranges > 0;

    if (b->since > boundary)
        return false;
    if (b->set.nspans == 0 && varve_era(b->since) != varve_era(boundary))
        return false;
    for (size_t i = 0; i < b->set.nspans; i++) {
        if (b->set.spans[i].first > boundary)
            return false;
        any = any || b->set.spans[i].first < boundary;
    }
    return any && !varve_catalogue_checkpoint(cd, b->name);
}

int varve_backup_disk_exports(struct varve_backup_disk *bd, const struct varve_catalogue *c,
                              const struct varve_cat_backup_disk *cbd, struct varve_err *err)
{
    const struct varve_cat_disk *cd = varve_catalogue_disk(c, cbd->uuid);
    char text[VARVE_BASE_TEXT_LEN];
    struct varve_change_set base;
    int rc;

    if (varve_backup_base(c, cbd, &base) < 0)
        return varve_err_set(err, ENOMEM, "no memory for an export of '%s'", cbd->export);
    rc = varve_base_describe(&base, cbd->granularity, cbd->boundary, text, err);
    varve_change_set_clear(&base);
    if (rc == 0)
        rc = backup_disk_export_pair(bd, cbd->export, cbd->exportbitmap, true, bd->changes,
                                     varve_backup_is_full(cbd) ? NULL : text, err);
    for (size_t i = 0; cd && rc == 0 && i < cd->ncheckpoints; i++) {
        if (checkpoint_is_base(c, &cd->checkpoints[i], cbd->boundary))
            rc = backup_disk_export_checkpoint(bd, cbd, &cd->checkpoints[i], err);
    }
    for (size_t i = 0; cd && rc == 0 && i < cd->nbitmaps; i++) {
        const struct varve_cat_bitmap *b = &cd->bitmaps[i];

        if (bitmap_is_base(cd, b, cbd->boundary))
            rc = backup_disk_export_base(bd, cbd, b->name, &b->set, b->granularity, err);
    }
    return rc;
}
