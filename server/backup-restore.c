/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Backups after a start of the daemon: those whose views are still kept come back under the same
 * names; the others have failed, and say why.  Where that cannot be noted (a full disk), it is as
 * soon as it can: nobody serves them, and their ttl does not run.  Nor does it of those that cannot
 * be looked at for want of memory or descriptors: they are looked at again.
 */
#include "server/backup.h"

#include "server/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The view is open in the control page, at its boundary, and can be read. */
static int restore_check_view(struct varve_disk *disk, const struct varve_cat_backup_disk *cbd,
                              struct varve_err *err)
{
    struct varve_view view = {.id = cbd->view, .boundary = cbd->boundary};
    struct varve_ctl_view_copy views[VARVE_CTL_VIEWS];
    int rc;

    if (!disk->source)
        return varve_err_set(err, ESTALE,
                             "Disk '%s': what it kept did not survive (the machine was started "
                             "anew, or its runtime directory is gone)",
                             cbd->disk);
    rc = varve_source_views(disk->source, views, err);
    if (rc < 0)
        return rc;
    for (unsigned i = 0; i < VARVE_CTL_VIEWS; i++) {
        if (views[i].id == cbd->view && views[i].state == VARVE_VIEW_OPEN &&
            views[i].boundary == cbd->boundary) {
            rc = varve_view_check(disk->source, &view, err);
            return rc == -EAGAIN ? 0 : rc; /* reads wait for what is missing */
        }
    }
    return varve_err_set(err, ESTALE, "Disk '%s': its view is no longer kept", cbd->disk);
}

/* What changed, computed now, so that a hole in the timeline is found now. */
static int restore_changes(struct varve_daemon *d, struct varve_disk *disk,
                           const struct varve_cat_backup_disk *cbd, struct varve_changes **out,
                           struct varve_err *err)
{
    struct varve_change_set base;
    struct varve_changed changed;
    int rc;

    if (varve_backup_base(d->catalogue, cbd, &base) < 0)
        return varve_err_set(err, ENOMEM, "no memory for a map");
    *out = varve_backup_is_full(cbd)
               ? varve_changes_new(NULL)
               : varve_changes_new_lazy(disk, &base, cbd->granularity, cbd->boundary);
    varve_change_set_clear(&base);
    if (!*out)
        return varve_err_set(err, ENOMEM, "no memory for a map");
    rc = varve_changes_get(*out, &changed, err);
    if (rc == 0)
        varve_changes_put(*out);
    return rc;
}

static int restore_backup(struct varve_daemon *d, const struct varve_cat_backup *cb,
                          struct varve_err *err)
{
    struct varve_changes **changes = calloc(cb->ndisks + 1, sizeof(*changes));
    struct varve_disk **disks = calloc(cb->ndisks + 1, sizeof(struct varve_disk *));
    struct varve_backup *b;
    int rc = changes && disks ? 0 : varve_err_set(err, ENOMEM, "no memory");

    if (rc == 0 && cb->state == VARVE_BACKUP_BROKEN)
        rc = varve_err_set(err, ESTALE, "%s", cb->reason);
    for (size_t i = 0; rc == 0 && i < cb->ndisks; i++) {
        disks[i] = varve_disks_by_uuid(d, cb->disks[i].uuid);
        if (!disks[i])
            rc = varve_err_set(err, ENODEV, "Disk '%s' is gone", cb->disks[i].disk);
        if (rc == 0)
            rc = restore_check_view(disks[i], &cb->disks[i], err);
        if (rc == 0)
            rc = restore_changes(d, disks[i], &cb->disks[i], &changes[i], err);
    }
    if (rc == 0) {
        rc = varve_backup_new(d, d->catalogue, cb, disks, changes, &b, err);
        if (rc == 0)
            rc = varve_backup_publish(b, err);
    } else {
        for (size_t i = 0; changes && i < cb->ndisks; i++)
            varve_changes_unref(changes[i]);
    }
    free(changes);
    free(disks);
    return rc;
}

static bool view_is_open(void *arg, uint64_t view)
{
    const struct varve_disk *disk = arg;
    const struct varve_catalogue *c = disk->daemon->catalogue;

    for (size_t i = 0; i < c->nbackups; i++) {
        const struct varve_cat_backup *cb = &c->backups[i];

        for (size_t k = 0; varve_cat_backup_open(cb) && k < cb->ndisks; k++) {
            if (cb->disks[k].view == view &&
                memcmp(cb->disks[k].uuid, disk->identity.uuid, sizeof(disk->identity.uuid)) == 0)
                return true;
        }
    }
    return false;
}

/* 0: it goes on.  -EAGAIN: nobody knows yet. */
static int restore_or_end(struct varve_daemon *d, const char *id, bool start)
{
    const struct varve_cat_backup *cb = varve_catalogue_backup(d->catalogue, id);
    struct varve_err err = VARVE_ERR_INIT, other = VARVE_ERR_INIT;

    if (restore_backup(d, cb, &err) == 0) {
        varve_log_about(VARVE_ABOUT(.backup = id), "Backup '%s' goes on", id);
        return 0;
    }
    if (varve_err_is_shortage(err.code) || varve_disks_starved(d)) {
        if (start)
            varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .backup = id),
                            "Backup '%s' waits: %s", id, err.msg);
        return -EAGAIN;
    }
    if (varve_backup_end(d, id, false, err.msg, &other) == 0)
        return 0;
    if (start)
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_ERROR, .backup = id),
                        "Backup '%s' has failed (%s), which cannot be noted: %s", id, err.msg,
                        other.msg);
    return -EAGAIN;
}

static void restore_all(struct varve_daemon *d, bool start)
{
    char id[VARVE_NAME_MAX + 1];
    size_t i = 0;

    /* Ending one commits another catalogue: begin again behind each. */
    while (i < d->catalogue->nbackups) {
        const struct varve_cat_backup *cb = &d->catalogue->backups[i];

        memcpy(id, cb->id, sizeof(id));
        if (!varve_cat_backup_open(cb) || varve_backups_find(d, id) ||
            restore_or_end(d, id, start) < 0)
            i++;
        else
            i = 0;
    }
}

void varve_backups_restore(struct varve_daemon *d)
{
    restore_all(d, true);
    for (struct varve_disk *disk = d->disks; disk; disk = disk->next)
        varve_failed_reads_sweep(d->w, &disk->paths, view_is_open, disk);
}

void varve_backups_restore_rest(struct varve_daemon *d)
{
    restore_all(d, false);
}
