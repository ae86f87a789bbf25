/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/daemon.h"

#include "server/backup.h"
#include "server/disk.h"
#include "server/freeze.h"
#include "server/job.h"
#include "server/log.h"

#include <errno.h>
#include <time.h>

void varve_daemon_init(struct varve_daemon *d)
{
    pthread_condattr_t attr;

    pthread_mutex_init(&d->views_lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&d->view_gone, &attr);
    pthread_condattr_destroy(&attr);
    varve_map_cache_init(&d->maps, d->options->map_memory);
}

struct varve_catalogue *varve_daemon_draft(struct varve_daemon *d, struct varve_err *err)
{
    struct varve_catalogue *draft = varve_catalogue_clone(d->catalogue);

    if (!draft)
        varve_err_set(err, ENOMEM, "no memory for the catalogue");
    return draft;
}

int varve_daemon_commit(struct varve_daemon *d, struct varve_catalogue *next, struct varve_err *err)
{
    int rc = varve_catalogue_commit(d->store, next, err);

    if (rc < 0) {
        varve_catalogue_free(next);
        return rc;
    }
    varve_catalogue_free(d->catalogue);
    d->catalogue = next;
    return 0;
}

/* Bitmaps that were not to be kept; running backups from them go on.  A job keeps what it had found
 * in its one when it began, so that stays until the next end of a daemon. */
static void drop_transient_bitmaps(struct varve_daemon *d)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_catalogue *draft = varve_daemon_draft(d, &err);

    if (!draft || !varve_catalogue_remove_transient(draft))
        varve_catalogue_free(draft);
    else if (varve_daemon_commit(d, draft, &err) < 0)
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING), "%s", err.msg);
}

void varve_daemon_restore(struct varve_daemon *d)
{
    varve_freeze_redeem(d);
    varve_disks_finish_forgetting(d);
    varve_disks_refresh(d);
    drop_transient_bitmaps(d);
    varve_backups_restore(d);
    for (struct varve_disk *disk = d->disks; disk; disk = disk->next) {
        varve_backups_end_stray_views(disk);
        varve_disk_tidy(disk);
    }
    varve_jobs_restore(d);
}

void varve_daemon_tick(void *daemon)
{
    struct varve_daemon *d = daemon;

    varve_disks_refresh(d);
    varve_backups_tick(d);
    varve_jobs_tick(d);
    for (struct varve_disk *disk = d->disks; disk; disk = disk->next) {
        varve_disk_note_dirt(disk);
        varve_disk_note_scratch(disk);
        varve_disk_reap_scratch(disk);
    }
}

void varve_daemon_fini(struct varve_daemon *d)
{
    struct varve_disk *disk, *next;

    varve_jobs_free(d->jobs);
    varve_backups_fini(d);
    for (disk = d->disks; disk; disk = next) {
        next = disk->next;
        varve_disk_free(disk);
    }
    d->disks = NULL;
    varve_catalogue_free(d->catalogue);
    varve_catalogue_close(d->store);
    varve_map_cache_fini(&d->maps);
    pthread_cond_destroy(&d->view_gone);
    pthread_mutex_destroy(&d->views_lock);
}
