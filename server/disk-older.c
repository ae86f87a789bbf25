/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A disk's folder that came back from an older copy, while the catalogue did not.  The catalogue has the
 * number of the newest epoch that anything was named by, and its birth id.
 *
 *     folder                              then
 *     knows that epoch                    it is as new as the catalogue, or newer
 *     has no number as high               it is older
 *     has another epoch of that number    it was older, and has gone on since
 *     goes on in a later era              somebody has doubted it already
 *
 * What was written in the epochs that are gone stands nowhere, and the next ones would get their
 * numbers; so everything from before is doubted as if others had written to the image
 * (lib/epoch-era.h).  Who serves the disk cannot do that in between: the note that is left for his
 * successor says so (lib/doubt-note.h), and until then nothing new is named.
 */
#include "server/disk.h"

#include "lib/doubt-note.h"
#include "lib/epoch-era.h"
#include "server/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

void varve_disk_note_newest(struct varve_disk *disk, uint64_t epoch, struct varve_cat_disk *cd)
{
    const struct varve_identity *id = &disk->identity;
    struct varve_epoch_file info;

    cd->newest = epoch;
    memset(cd->birth, 0, sizeof(cd->birth));
    if (varve_epoch_file_info(disk->daemon->w, &disk->paths, id->uuid, &id->geometry, epoch, epoch,
                              &info, NULL) == 0)
        memcpy(cd->birth, info.id, sizeof(cd->birth));
}

static int see_number(void *arg, const char *name)
{
    uint64_t *highest = arg, first, last;

    if (varve_path_parse_epoch(name, &first, &last) && last > *highest)
        *highest = last;
    return 0;
}

static bool same_birth(const uint8_t a[VARVE_EPOCH_ID_LEN], const uint8_t b[VARVE_EPOCH_ID_LEN])
{
    static const uint8_t none[VARVE_EPOCH_ID_LEN]; /* of an older version: nobody can tell */

    return memcmp(a, none, sizeof(none)) == 0 || memcmp(b, none, sizeof(none)) == 0 ||
           memcmp(a, b, sizeof(none)) == 0;
}

static bool folder_is_older(struct varve_disk *disk, struct varve_doubt_note *note)
{
    const struct varve_identity *id = &disk->identity;
    const struct varve_cat_disk *cd = varve_catalogue_disk(disk->daemon->catalogue, id->uuid);
    struct varve_epoch_file info;
    uint64_t highest = 0;
    bool there;

    if (!cd || cd->newest == 0)
        return false;
    there = varve_epoch_file_info(disk->daemon->w, &disk->paths, id->uuid, &id->geometry,
                                  cd->newest, cd->newest, &info, NULL) == 0;
    if (there && same_birth(cd->birth, info.id)) /* each look comes here: no list is needed */
        return false;
    if (disk->daemon->w->list(disk->daemon->w, disk->paths.state, see_number, &highest) < 0 ||
        varve_era(highest) > varve_era(cd->newest))
        return false;
    note->used = cd->newest;
    if (highest < cd->newest)
        snprintf(note->why, sizeof(note->why),
                 "its folder in the state directory is from an older copy: it knows epoch %" PRIu64
                 ", the catalogue knows %" PRIu64, highest, cd->newest);
    else if (there)
        snprintf(note->why, sizeof(note->why),
                 "its folder in the state directory went on from an older copy: epoch %" PRIu64
                 " is another one than the catalogue knows", cd->newest);
    else
        return false;
    return true;
}

void varve_disk_check_folder(struct varve_disk *disk)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_doubt_note note;

    disk->older = folder_is_older(disk, &note);
    if (!disk->older) {
        disk->doubt_noted = false;
        /* One that was left by others, such as by the import of a disk that is not trusted. */
        if (!disk->peer && !disk->link_error[0] &&
            varve_doubt_note_read(disk->daemon->w, &disk->paths, &note, NULL) == 1)
            varve_disk_note_change(disk);
        return;
    }
    if (!disk->doubt_noted &&
        varve_doubt_note_write(disk->daemon->w, &disk->paths, &note, &err) < 0)
        return; /* again with the next look; what is refused is refused */
    disk->doubt_noted = true;
    if (disk->peer || disk->link_error[0])
        return;
    varve_disk_note_change(disk);
    disk->older = folder_is_older(disk, &note);
}

int varve_disk_check_older(struct varve_disk *disk, struct varve_err *err)
{
    if (!disk->older)
        return 0;
    return varve_err_set(err, EUCLEAN,
                         "its folder %.200s is from an older copy than the catalogue, and what was written "
                         "meanwhile is not known: start its nbdkit again, then begin a full backup",
                         disk->paths.state);
}
