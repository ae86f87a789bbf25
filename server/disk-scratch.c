/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The room that a disk's preimages take, and what they may still take.
 */
#include "server/disk.h"

#include <stdlib.h>
#include <sys/statvfs.h>

uint64_t varve_disk_scratch_used(struct varve_disk *disk, uint64_t live)
{
    uint64_t first = varve_disk_oldest_view(disk), used = 0;
    struct varve_ctl_epoch_copy *slots;

    if (disk->ctl_fd < 0 || first > live || live - first >= VARVE_CTL_EPOCHS)
        return 0;
    slots = calloc(live - first + 1, sizeof(*slots));
    if (slots &&
        varve_ctl_read_epochs(disk->daemon->w, disk->ctl_fd, first, live, slots, NULL) == 0) {
        for (uint64_t i = 0; i <= live - first; i++) {
            if (slots[i].number == first + i && (slots[i].flags & VARVE_EPOCH_ARMED))
                used += slots[i].scratch_bytes;
        }
    }
    free(slots);
    return used;
}

uint64_t varve_disk_scratch_free(struct varve_disk *disk, uint64_t live)
{
    const struct varve_options *o = disk->daemon->options;
    struct statvfs fs;
    uint64_t room = 0, used;

    /* The disk's own folder may not be there before its first preimage. */
    if (statvfs(disk->paths.scratch, &fs) == 0 ||
        statvfs(o->scratch_dir ? o->scratch_dir : o->state_dir, &fs) == 0)
        room = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (disk->scratch_max == 0)
        return room;
    used = varve_disk_scratch_used(disk, live);
    if (used >= disk->scratch_max)
        return 0;
    return disk->scratch_max - used < room ? disk->scratch_max - used : room;
}
