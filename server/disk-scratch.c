/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The room that a disk's preimages take, and what they may still take.
 */
#include "server/disk.h"

#include "lib/scratch.h"
#include "server/log.h"

#include <stdlib.h>
#include <sys/statvfs.h>

#define THRESHOLD_REST 20u /* percent that are still free */
#define REAP_BYTES     (4 * VARVE_SCRATCH_STEP)

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

/* The disk's own folder may not be there before its first preimage. */
static bool scratch_statvfs(const struct varve_disk *disk, struct statvfs *fs)
{
    const struct varve_options *o = disk->daemon->options;

    return statvfs(disk->paths.scratch, fs) == 0 ||
           statvfs(o->scratch_dir ? o->scratch_dir : o->state_dir, fs) == 0;
}

static bool over_threshold(uint64_t used, uint64_t max)
{
    return max > 0 && used >= max - max / 100 * THRESHOLD_REST;
}

static void note_crossing(struct varve_disk *disk, bool *said, bool over, const char *limit,
                          uint64_t used, uint64_t max)
{
    if (over && !*said) {
        varve_log_about(
            VARVE_ABOUT(.level = VARVE_LOG_WARNING, .disk = disk->name),
            "Disk '%s': %llu of %llu bytes are taken (%s): overwritten blocks may soon not be "
            "kept",
            disk->name, (unsigned long long)used, (unsigned long long)max, limit);
        varve_events_send(disk->daemon->events, "SCRATCH_THRESHOLD",
                          json_pack("{s:s, s:s, s:I, s:I}", "disk", disk->name, "limit", limit,
                                    "used", (json_int_t)used, "max", (json_int_t)max));
    }
    *said = over;
}

void varve_disk_note_scratch(struct varve_disk *disk)
{
    uint64_t used, max = disk->scratch_max, fs_used = 0, fs_max = 0;
    struct statvfs fs;

    if (!disk->known || disk->gone)
        return;
    used = varve_disk_scratch_used(disk, varve_disk_live_epoch(disk));
    if (used > 0 && scratch_statvfs(disk, &fs)) {
        fs_max = (uint64_t)fs.f_blocks * fs.f_frsize;
        fs_used = fs_max - (uint64_t)fs.f_bavail * fs.f_frsize;
    }
    note_crossing(disk, &disk->scratch_over_max, over_threshold(used, max), "scratch-max", used,
                  max);
    note_crossing(disk, &disk->scratch_over_fs, over_threshold(fs_used, fs_max), "file-system",
                  fs_used, fs_max);
}

void varve_disk_reap_scratch(struct varve_disk *disk)
{
    if (disk->known && !disk->gone && !disk->peer)
        varve_scratch_reap(disk->daemon->w, &disk->paths, REAP_BYTES);
}

uint64_t varve_disk_scratch_free(struct varve_disk *disk, uint64_t live)
{
    struct statvfs fs;
    uint64_t room = 0, used;

    if (scratch_statvfs(disk, &fs))
        room = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (disk->scratch_max == 0)
        return room;
    used = varve_disk_scratch_used(disk, live);
    if (used >= disk->scratch_max)
        return 0;
    return disk->scratch_max - used < room ? disk->scratch_max - used : room;
}
