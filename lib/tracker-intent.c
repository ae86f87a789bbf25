/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the tracker does with the intent log when it comes: reading it, and beginning to keep it.
 */
#include "lib/tracker-internal.h"

#include "lib/bitmap.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

/* When the image was changed last; INT64_MIN: nothing tells.  Nodes of devices do not. */
static int64_t image_mtime(struct varve_tracker *t, const char *image)
{
    struct varve_stat st;
    int fd = t->image_fd, r;

    if (fd < 0 && image)
        fd = t->w->open(t->w, image, O_RDONLY, 0);
    if (fd < 0)
        return INT64_MIN;
    r = t->w->stat(t->w, fd, &st);
    if (fd != t->image_fd)
        t->w->close(t->w, fd);
    return r == 0 && S_ISREG(st.mode) ? st.mtime_ns : INT64_MIN;
}

int varve_tracker_find_intent(struct varve_tracker *t, const char *image, struct varve_err *err)
{
    return varve_intent_read(t->w, &t->paths, t->id.uuid, &t->id.geometry, image_mtime(t, image),
                             &t->found, err);
}

void varve_tracker_add_regions(const struct varve_tracker *t, struct varve_bitmap *into)
{
    uint32_t blks = varve_intent_shift(&t->id.geometry) - t->id.geometry.shift;

    for (uint64_t i = 0; i < varve_intent_nregions(&t->id.geometry); i++) {
        if (t->found.bits[i / 64] >> (i % 64) & 1)
            varve_bitmap_set(into, i << blks, (i + 1) << blks);
    }
}

/* Errors of an image's sync are told once to each who opened it: the guest must get his own. */
static int open_for_sync(struct varve_tracker *t, const char *image, struct varve_err *err)
{
    struct varve_stat guests, ours;
    int r;

    t->sync_fd = t->w->open(t->w, image, O_RDONLY, 0);
    if (t->sync_fd < 0)
        return varve_err_sys(err, -t->sync_fd, "cannot open image %s a second time", image);
    r = t->w->stat(t->w, t->image_fd, &guests);
    if (r == 0)
        r = t->w->stat(t->w, t->sync_fd, &ours);
    if (r < 0)
        return varve_err_sys(err, -r, "cannot stat image %s", image);
    if (guests.dev != ours.dev || guests.ino != ours.ino)
        return varve_err_set(err, EBUSY, "image %s is being replaced", image);
    return 0;
}

int varve_tracker_start_intent(struct varve_tracker *t, const struct varve_tracker_config *cfg,
                               bool new_disk, char notes[256], struct varve_err *err)
{
    static const uint64_t none[VARVE_INTENT_WORDS];
    int r;

    t->intent = varve_intent_new(t->w, &t->paths, t->id.uuid, &t->id.geometry, &t->ctl->intent);
    if (!t->intent)
        return varve_err_set(err, ENOMEM, "no memory for the intent log");
    if (t->image_fd < 0 && (!t->found_clean || varve_intent_image_failed(t->intent))) {
        /* what the next server will find */
        atomic_fetch_or(&t->ctl->intent, t->found.trusted ? t->found.regions : 0);
        return 0;
    }
    if (t->image_fd >= 0 && cfg->durable_process)
        return varve_intent_drop(t->w, &t->paths, err);
    if (t->image_fd >= 0 && (r = open_for_sync(t, cfg->image, err)) < 0)
        return r;
    if (t->found_clean && !varve_intent_image_failed(t->intent))
        r = varve_intent_start(t->intent, none, !new_disk, err);
    else
        r = varve_intent_start(t->intent, t->found.trusted ? t->found.bits : NULL, t->found.trusted,
                               err);
    if (r == 0 && t->intent->failed)
        varve_tracker_say(notes, "the intent log cannot be written: until it can, a crash of the host means "
                                 "that all of the disk counts as written", "");
    return r;
}

bool varve_tracker_is_hot(struct varve_tracker *t, uint64_t off)
{
    return t->intent->off || varve_intent_wants(t->intent, off >> t->intent->shift);
}

uint64_t varve_tracker_region_bytes(const struct varve_tracker *t)
{
    return (uint64_t)1 << t->intent->shift;
}
