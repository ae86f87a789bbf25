/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a disk's server cannot do, told by its control page or by itself.
 */
#include "server/disk.h"

#include <stdio.h>

int varve_disk_refuse_private(struct varve_disk *disk, struct varve_err *err)
{
    if (!disk->private)
        return 0;
    return varve_err_set(err, VARVE_LINK_PRIVATE, "Disk '%s': %s", disk->name, disk->link_error);
}

void varve_disk_trouble(struct varve_disk *disk, char *text, size_t size)
{
    struct varve_ctl_head head;

    text[0] = '\0';
    if (disk->private) {
        snprintf(text, size, "%s", disk->link_error);
        return;
    }
    if (!disk->peer || varve_ctl_read_head(disk->daemon->w, disk->ctl_fd, &head, NULL) < 0)
        return;
    if (head.intent & VARVE_CTL_INTENT_FAILED)
        snprintf(text, size, "its intent log cannot be written: after a crash of the host all of it "
                             "would count as written");
    else if (head.intent & VARVE_CTL_IMAGE_FAILED)
        snprintf(text, size, "its image could not be made durable: what was written last may be lost, and "
                             "counts as written until the host is started anew");
}
