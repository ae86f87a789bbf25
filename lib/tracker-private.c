/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Serving a disk whose runtime folder cannot hold its files: it is full, or cannot be written or made.
 * A guest gets its disk all the same.  The control page and the live map are memory of this process:
 *
 *     marking, the intent log, the flusher, a clean stop     as ever: they need the state folder only
 *     boundaries, views, readers in other processes          there are none
 *     a kill                                                 as a crash of the host: what was flushed, and
 *                                                            the regions in the intent log
 *
 * The next server finds no page, and rebuilds from the state folder.  It must not find one: a page of this
 * boot knows nothing of what is written now, yet the next server would go on with it, and a reader would
 * believe what it says.  So where one is left that can neither be taken over nor removed, or where nobody
 * can tell, the disk is refused.
 */
#include "lib/tracker-internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

const char *varve_tracker_private(const struct varve_tracker *t)
{
    return t->private_why[0] ? t->private_why : NULL;
}

/* A page that nobody would take for this disk's and boot's does no harm. */
static bool page_is_harmless(struct varve_tracker *t, const uint8_t boot_id[16], int fd)
{
    struct varve_ctl_head head;
    ssize_t n = t->w->pread(t->w, fd, &head, sizeof(head), 0);

    if (n < 0)
        return false;
    return (size_t)n < sizeof(head) || head.magic != VARVE_CTL_MAGIC ||
           memcmp(head.boot_id, boot_id, 16) != 0 || memcmp(head.disk_uuid, t->id.uuid, 16) != 0;
}

int varve_tracker_go_private(struct varve_tracker *t, const uint8_t boot_id[16],
                             struct varve_err *err)
{
    char path[PATH_MAX];
    bool harmless;
    int fd;

    t->w->unlink(t->w, varve_path_control(&t->paths, path));
    fd = t->w->open(t->w, path, O_RDONLY, 0);
    harmless = fd == -ENOENT || fd == -ENOTDIR;
    if (fd >= 0) {
        harmless = page_is_harmless(t, boot_id, fd);
        t->w->close(t->w, fd);
    }
    if (!harmless) {
        varve_err_prefix(err, "the server before left %.120s, which can neither be taken over nor "
                              "removed: remove it", path);
        return -err->code;
    }
    snprintf(t->private_why, sizeof(t->private_why),
             "it is served without its runtime directory, so no checkpoints and backups until nbdkit is "
             "started again: %.150s", err->msg);
    return 0;
}
