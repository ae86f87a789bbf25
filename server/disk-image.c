/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the daemon makes of an image that somebody else may have written to (lib/image-witness.h).
 * A disk that is served is its plugin's to judge, when that starts; one that nobody serves is
 * looked at whenever disks are: what is found is made durable by taking the disk for a moment,
 * which ends its views and lets its epochs go on in another era.  A file only: a block device is
 * looked at when the disk is taken.
 */
#include "server/disk.h"

#include "lib/epoch-era.h"
#include "lib/image-witness.h"
#include "server/boundary.h"
#include "server/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Somebody who keeps writing is waited for, as long as no view is open. */
#define QUIET_NS INT64_C(2000000000)

bool varve_disk_doubt(struct varve_disk *disk, uint64_t since_ns, char *text, size_t size)
{
    struct varve_witness wit;
    char when[VARVE_TIME_TEXT];

    if (varve_witness_read(disk->daemon->w, &disk->paths, disk->identity.uuid, &wit, NULL) < 0 ||
        wit.doubt_epoch == 0 || wit.doubt_ns < since_ns)
        return false;
    snprintf(text, size, "its image %.100s: %.200s (found %s)", disk->identity.image, wit.doubt,
             varve_time_text(wit.doubt_ns, when));
    return true;
}

int varve_disk_say_doubt(struct varve_disk *disk, struct varve_err *err)
{
    char text[400];

    if (!varve_disk_doubt(disk, 0, text, sizeof(text)))
        return varve_err_set(err, EUCLEAN,
                             "nobody knows what was written to it by others: begin a full backup, "
                             "or say disk-adopt");
    return varve_err_set(err, EUCLEAN, "%s: begin a full backup, or say disk-adopt", text);
}

/* The first epoch of the newest checkpoint or bitmap.  0: there is none. */
static uint64_t newest_named(struct varve_disk *disk)
{
    const struct varve_cat_disk *cd =
        varve_catalogue_disk(disk->daemon->catalogue, disk->identity.uuid);
    uint64_t newest = 0;

    for (size_t i = 0; cd && i < cd->ncheckpoints; i++) {
        if (cd->checkpoints[i].epoch > newest)
            newest = cd->checkpoints[i].epoch;
    }
    for (size_t i = 0; cd && i < cd->nbitmaps; i++) {
        const struct varve_change_set *set = &cd->bitmaps[i].set;

        if (set->nspans > 0 && set->spans[0].first > newest)
            newest = set->spans[0].first;
    }
    return newest;
}

bool varve_disk_is_doubted(struct varve_disk *disk, char *why, size_t size)
{
    uint64_t live = varve_disk_live_epoch(disk), newest = newest_named(disk);
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_timeline tl;
    bool bridged = true;

    if (newest == 0 || varve_era(newest) >= varve_era(live))
        return false;
    if (varve_timeline_scan(disk->daemon->w, &disk->paths, disk->identity.uuid,
                            &disk->identity.geometry, &tl, NULL) == 0) {
        bridged = varve_timeline_bridged(&tl, newest, live);
        varve_timeline_fini(&tl);
    }
    if (bridged)
        return false;
    varve_disk_say_doubt(disk, &err);
    snprintf(why, size, "%s", err.msg);
    return true;
}

void varve_disk_note_change(struct varve_disk *disk)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_tracker *t;
    int rc = varve_offline_attach(disk, &t, &err);

    if (rc == 0) {
        varve_offline_detach(disk, t);
        disk->image_said = false;
        return;
    }
    if (!disk->image_said && rc != -EBUSY)
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .disk = disk->name), "%s", err.msg);
    disk->image_said = true;
}

void varve_disk_check_image(struct varve_disk *disk)
{
    struct varve_world *w = disk->daemon->w;
    char why[VARVE_WITNESS_TEXT];
    enum varve_verdict verdict;
    struct varve_ctl_head head;
    struct varve_witness wit;
    struct stat st;
    int fd, rc;

    disk->still = false;
    if (disk->peer || disk->link_error[0])
        return;
    fd = open(disk->identity.image, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return;
    }
    rc = varve_witness_check(w, &disk->paths, &disk->identity, fd, &wit, &verdict, why, NULL);
    close(fd);
    if (rc < 0 || (uint64_t)st.st_size != disk->identity.geometry.size)
        return;
    if (verdict == VARVE_IMAGE_CHANGED) {
        int64_t mtime = (int64_t)st.st_mtim.tv_sec * INT64_C(1000000000) + st.st_mtim.tv_nsec;

        if (varve_disk_oldest_view(disk) != UINT64_MAX ||
            (int64_t)w->realtime_ns(w) >= mtime + QUIET_NS)
            varve_disk_note_change(disk);
        return;
    }
    /* Reads of its views look whether it stays so. */
    if (verdict == VARVE_IMAGE_PROVED && wit.kind == VARVE_WITNESS_CLEAN && disk->source &&
        varve_source_head(disk->source, &head, NULL) == 0 && head.served == 0) {
        disk->still_incarnation = head.incarnation;
        disk->still_mtime_ns = wit.look.mtime_ns;
        disk->still = true;
    }
}

bool varve_disk_finish_resize(struct varve_disk *disk)
{
    if (!disk->known || disk->peer || disk->identity.resize.time_ns == 0)
        return false;
    varve_disk_note_change(disk);
    return true;
}

bool varve_disk_size_differs(struct varve_disk *disk, const struct stat *image, char *why,
                             size_t size)
{
    unsigned long long has = (unsigned long long)image->st_size;
    unsigned long long had = (unsigned long long)disk->identity.geometry.size;

    if (!S_ISREG(image->st_mode) || has == had)
        return false;
    snprintf(why, size,
             "its image %.200s has %llu bytes, but the disk has %llu: say disk-resize to its new "
             "size, or give it its size back",
             disk->identity.image, has, had);
    return true;
}

int varve_disk_check_still(struct varve_disk *disk, struct varve_source *source,
                           struct varve_err *err)
{
    uint64_t incarnation = disk->still_incarnation;
    int64_t mtime = disk->still_mtime_ns;
    struct varve_ctl_head head;

    if (!disk->still || varve_source_image_is(source, mtime))
        return 0;
    /* A server may have come meanwhile, whose page says so before it writes; or the clerk has
     * looked again between our looks. */
    if (varve_source_head(source, &head, NULL) < 0 || head.served != 0 ||
        head.incarnation != incarnation || disk->still_incarnation != incarnation ||
        disk->still_mtime_ns != mtime)
        return 0;
    return varve_err_set(err, ESTALE, "somebody else wrote to its image %s", disk->identity.image);
}
