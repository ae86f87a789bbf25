/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a disk's server cannot do, told by its control page or by itself.
 */
#include "server/disk.h"

#include <stdio.h>
#include <string.h>

int varve_disk_refuse_private(struct varve_disk *disk, struct varve_err *err)
{
    if (!disk->private)
        return 0;
    return varve_err_set(err, VARVE_LINK_PRIVATE, "Disk '%s': %s", disk->name, disk->link_error);
}

/* Of what the control page's word `served` says, the worst. */
static void state_trouble(const struct varve_disk *disk, uint64_t served, char *text, size_t size)
{
    const char *what = "there is no room for the map of another epoch, so no checkpoint and no backup can begin";
    const char *error = strerrordesc_np((int)(served >> VARVE_CTL_ERRNO_SHIFT & 0xfff));

    if (served & VARVE_CTL_NO_BITS)
        what = "the maps of its epochs cannot be written: a crash of the host will cost more";
    else if (served & VARVE_CTL_NO_WITNESS)
        what = "image-witness cannot be written: after a crash of the host its image may be taken for changed";
    snprintf(text, size, "in %.160s %s: %s", disk->paths.state, what, error ? error : "unknown error");
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
    else if (head.served & VARVE_CTL_TROUBLE)
        state_trouble(disk, head.served, text, size);
}
