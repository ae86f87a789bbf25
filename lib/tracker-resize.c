/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Changing the size of a disk that nobody serves: the image, and the tracking behind it.
 *
 *     judge     whether others wrote to the image before; doubts are acted on under the old size
 *     begun     disk.json says what the size is to be, and since when            durable
 *     image     it gets that size, and is made durable
 *     witness   what it looks like now, "clean"                                   durable
 *     sealed    the live epoch, as it is, under the old size                      durable
 *     forgotten the intent log                                                    durable
 *     next      an epoch of the new size, nothing written in it, clean            durable
 *     done      disk.json has the new size, and says nothing of a resize          durable
 *
 * What is left is a disk that was stopped in peace, and whose runtime folder is of another size, so that
 * it is made anew.  Each epoch is of one
 * size; what the change means for all who knew the disk before is told by the sizes of neighbours
 * (lib/timeline.h), so no map is touched, and nobody can miss it.
 *
 * Dying between `begun` and `done` is found by whoever takes the disk next, plugin or daemon.  The image
 * tells which: has it still its old size, there was no resize; has it the new one, that goes on from
 * where files show it to be.  Until the witness is written nobody has sealed anything, so another's write
 * to the image is found as ever (lib/image-witness.h knows of ours by its time); from then on the witness
 * is that of the new size, and judged when all this is done.
 *
 * The image is cut before the live epoch is sealed, because there is nothing to be lost by it: who dies
 * between has the old epoch with all its bits, and the record.  It is durable before the seal, so what
 * the intent log was needed for has gone.  Should the power fail just while it is sealed, it may count as
 * written as a whole: of a disk that was stopped in peace no log was kept.
 */
#include "lib/tracker-internal.h"

#include "lib/bitmap.h"
#include "lib/epoch-file.h"
#include "lib/timeline.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* --- the image ---------------------------------------------------------------------------------------- */

static int image_open(struct varve_tracker *t, int flags, struct varve_err *err)
{
    int fd = t->w->open(t->w, t->id.image, flags | O_NONBLOCK, 0);

    return fd < 0 ? varve_err_sys(err, -fd, "cannot open image %s", t->id.image) : fd;
}

/* Whether it can get that size, and nobody else has it. */
static int image_check(struct varve_tracker *t, int fd, uint64_t size, struct varve_stat *st,
                       struct varve_err *err)
{
    const char *image = t->id.image;
    int r = t->w->stat(t->w, fd, st);

    if (r < 0)
        return varve_err_sys(err, -r, "cannot look at image %s", image);
    if (!S_ISREG(st->mode) && !S_ISBLK(st->mode))
        return varve_err_set(err, EINVAL, "image %s is neither a file nor a block device", image);
    if (S_ISBLK(st->mode) && st->size != size)
        return varve_err_set(err, EINVAL,
                             "block device %s has %" PRIu64 " bytes: give it %" PRIu64
                             " first, or say the size that it has",
                             image, st->size, size);
    r = t->w->lock(t->w, fd, true);
    if (r == -EAGAIN)
        return varve_err_set(err, EBUSY,
                             "image %s is in use: another process has it locked: stop that first",
                             image);
    return r < 0 ? varve_err_sys(err, -r, "cannot lock image %s", image) : 0;
}

/* What would stop it half way: an image with its new size, and no room for its map. */
static int room_check(struct varve_tracker *t, const struct varve_geometry *g, struct varve_err *err)
{
    uint64_t bytes = varve_map_bytes(g), total, free_bytes;
    struct varve_bitmap *map = NULL;
    int r = t->w->room(t->w, t->lock_fd, &total, &free_bytes);

    if (r < 0)
        return varve_err_sys(err, -r, "cannot tell how much room there is in %s", t->paths.state);
    if (bytes <= free_bytes)
        map = varve_bitmap_new(g->nblks);
    if (!map)
        return varve_err_set(err, ENOSPC,
                             "the map of %" PRIu64 " bytes has %" PRIu64 " bytes, too many for "
                             "memory or for %s, where %" PRIu64 " are free",
                             g->size, bytes, t->paths.state, free_bytes);
    free(map);
    return 0;
}

/* The image has its new size: it is durable, and how it looks is written down. */
static int image_settle(struct varve_tracker *t, int fd, const uint8_t boot_id[16],
                        struct varve_err *err)
{
    int r = t->w->sync_all(t->w, fd);

    if (r < 0) {
        atomic_fetch_or(&t->ctl->intent, VARVE_CTL_IMAGE_FAILED); /* nobody will be told again */
        return varve_err_sys(err, -r, "cannot make image %s durable", t->id.image);
    }
    r = varve_image_look_settled(t->w, fd, &t->wit.look, err);
    if (r < 0)
        return r;
    t->wit.kind = VARVE_WITNESS_CLEAN;
    memcpy(t->wit.boot_id, boot_id, sizeof(t->wit.boot_id));
    return varve_witness_write(t->w, &t->paths, t->id.uuid, &t->wit, err);
}

/* --- the epochs ----------------------------------------------------------------------------------------- */

static void let_go(struct varve_tracker *t)
{
    varve_tracker_forget(t);
    varve_gate_fini(&t->gate);
    varve_tracker_close_control(t);
}

/* All that is known under the old size.  What the image may have lost is in doubt for all servers of this
 * boot, which the page says, and a resize would forget. */
static int take_epochs(struct varve_tracker *t, const uint8_t boot_id[16], const char **found,
                       char notes[256], struct varve_err *err)
{
    int r = varve_tracker_find_intent(t, t->id.image, err);

    if (r == 0)
        r = varve_tracker_take_epochs(t, boot_id, false, found, notes, err);
    if (r < 0 || !(atomic_load(&t->ctl->intent) & VARVE_CTL_IMAGE_FAILED))
        return r;
    let_go(t);
    return varve_err_set(err, EIO,
                         "a part of image %s could not be made durable: resize it when the machine "
                         "was started anew",
                         t->id.image);
}

/* All epochs that there are, the live one, too. */
static int seal_all(struct varve_tracker *t, struct varve_err *err)
{
    uint64_t live = varve_tracker_epoch(t);
    int r;

    varve_tracker_abort(t);
    r = varve_tracker_seal(t, err);
    if (r == 0)
        r = varve_epoch_file_finish(t->w, &t->paths, &t->id.geometry, live,
                                    varve_tracker_find(t, live)->bits, VARVE_EPOCH_FILE_SEALED, err);
    return r == -EEXIST ? 0 : r;
}

/* Of what the folder knows as the last epoch: whether it is of the new size, or sealed. */
struct last_epoch {
    uint64_t highest;
    bool known;
    struct varve_epoch_file file; /* if it is known */
};

static int look_last(struct varve_tracker *t, const struct varve_geometry *g, struct last_epoch *l,
                     struct varve_err *err)
{
    struct varve_timeline tl;
    int r = varve_timeline_scan(t->w, &t->paths, t->id.uuid, g, &tl, err);

    memset(l, 0, sizeof(*l));
    if (r < 0)
        return r;
    l->highest = tl.highest;
    for (size_t i = 0; i < tl.nfiles; i++) {
        if (tl.files[i].last == tl.highest) {
            l->known = true;
            l->file = tl.files[i];
        }
    }
    varve_timeline_fini(&tl);
    return 0;
}

/* The epoch behind `last` (0: the highest that there is), whose number is behind `used`. */
static int make_next(struct varve_tracker *t, const struct varve_geometry *g, uint64_t last,
                     uint64_t used, struct varve_err *err)
{
    struct varve_bitmap *none;
    struct last_epoch l;
    uint64_t number, prev;
    int r = look_last(t, g, &l, err);

    if (r < 0)
        return r;
    if (l.known && l.file.state == VARVE_EPOCH_FILE_CLEAN)
        return 0;
    if (l.known && l.file.state == VARVE_EPOCH_FILE_OPEN) {
        number = l.file.first;
        prev = l.file.prev;
    } else {
        number = (l.highest > used ? l.highest : used) + 1;
        prev = last != 0 ? last : l.highest;
    }
    none = varve_bitmap_new(g->nblks);
    if (!none)
        return varve_err_set(err, ENOMEM, "no memory for a map");
    r = varve_epoch_file_create(t->w, &t->paths, t->id.uuid, g, number, prev, err);
    if (r == 0)
        r = varve_epoch_file_finish(t->w, &t->paths, g, number, none->words, VARVE_EPOCH_FILE_CLEAN,
                                    err);
    free(none);
    return r;
}

/* From the witness on; `taken`: the epochs of the old size are ours. */
static int convert(struct varve_tracker *t, const struct varve_geometry *g, bool taken,
                   struct varve_err *err)
{
    uint64_t last = 0, used = 0;
    char path[PATH_MAX];
    int r = 0;

    /* Of a server that was killed before: it knows nothing of the image's new time. */
    t->w->unlink(t->w, varve_path_beat(&t->paths, path));
    if (taken) {
        last = varve_tracker_epoch(t);
        used = atomic_load(&t->ctl->prepared);
        r = seal_all(t, err);
        let_go(t);
    }
    if (r < 0)
        return r;
    r = varve_intent_drop(t->w, &t->paths, err);
    if (r == 0)
        r = make_next(t, g, last, used, err);
    if (r < 0)
        return r;
    t->id.geometry = *g;
    t->id.resize = (struct varve_resize){0, 0};
    return varve_identity_write(t->w, &t->paths, &t->id, err);
}

/* --- the two ways to it ------------------------------------------------------------------------------- */

static int new_geometry(const struct varve_tracker *t, uint64_t size, struct varve_geometry *g,
                        struct varve_err *err)
{
    return varve_geometry_init(g, size, varve_block_size(&t->id.geometry), err);
}

static int go_on_with(struct varve_tracker *t, int fd, const uint8_t boot_id[16], char notes[256],
                      struct varve_err *err)
{
    uint64_t size = t->id.resize.size;
    struct varve_geometry g;
    struct last_epoch l;
    const char *found;
    bool settled, taken;
    int r = new_geometry(t, size, &g, err);

    if (r == 0)
        r = varve_witness_read(t->w, &t->paths, t->id.uuid, &t->wit, err);
    if (r == 0)
        r = look_last(t, &g, &l, err);
    if (r < 0)
        return r;
    settled = t->wit.kind == VARVE_WITNESS_CLEAN && t->wit.look.size == size &&
              t->wit.time_ns >= t->id.resize.time_ns;
    taken = !settled || !l.known;
    if (!settled)
        r = varve_tracker_judge(t, NULL, boot_id, false, err);
    if (r == 0 && taken)
        r = take_epochs(t, boot_id, &found, notes, err);
    if (r < 0)
        return r;
    if (!settled)
        r = varve_tracker_take_image(t, boot_id, found, notes, err);
    if (r == 0 && !settled)
        r = image_settle(t, fd, boot_id, err);
    if (r < 0) {
        let_go(t);
        return r;
    }
    return convert(t, &g, taken, err);
}

/* One that was begun, and whose image has its new size. */
static int go_on(struct varve_tracker *t, const uint8_t boot_id[16], char notes[256],
                 struct varve_err *err)
{
    int fd = image_open(t, O_RDONLY, err), r;

    if (fd < 0)
        return fd;
    r = go_on_with(t, fd, boot_id, notes, err);
    t->w->close(t->w, fd);
    return r;
}

static int note_begun(struct varve_tracker *t, uint64_t size, uint64_t time_ns,
                      struct varve_err *err)
{
    t->id.resize = (struct varve_resize){size, time_ns};
    return varve_identity_write(t->w, &t->paths, &t->id, err);
}

static int image_resize(struct varve_tracker *t, int fd, const struct varve_stat *st, uint64_t size,
                        struct varve_err *err)
{
    int r = 0;

    if (!S_ISBLK(st->mode) && st->size != size)
        r = t->w->truncate(t->w, fd, size);
    if (r == 0)
        return 0;
    varve_err_sys(err, -r, "cannot give image %s %" PRIu64 " bytes", t->id.image, size);
    note_begun(t, 0, 0, NULL); /* should that fail, too, the image's size says that nothing was done */
    return r;
}

static int begin_with(struct varve_tracker *t, int fd, uint64_t size, uint64_t asked,
                      const uint8_t boot_id[16], char notes[256], struct varve_err *err)
{
    struct varve_geometry g;
    struct varve_stat st;
    const char *found;
    int r = new_geometry(t, asked, &g, err);

    if (r == 0)
        r = new_geometry(t, size, &g, err);
    if (r == 0)
        r = image_check(t, fd, asked, &st, err);
    if (r == 0)
        r = room_check(t, &g, err);
    if (r < 0)
        return r;
    /* Another size of a device is what is asked for; of a file nobody knows who else gave it that. */
    if (S_ISBLK(st.mode))
        t->id.resize = (struct varve_resize){size, t->w->realtime_ns(t->w)};
    r = varve_tracker_judge(t, NULL, boot_id, false, err);
    if (r == 0)
        r = take_epochs(t, boot_id, &found, notes, err);
    if (r < 0)
        return r;
    r = varve_tracker_take_image(t, boot_id, found, notes, err);
    if (r == 0)
        r = note_begun(t, size, t->w->realtime_ns(t->w), err);
    if (r == 0)
        r = image_resize(t, fd, &st, size, err);
    if (r == 0)
        r = image_settle(t, fd, boot_id, err);
    if (r < 0) {
        let_go(t);
        return r;
    }
    return convert(t, &g, true, err);
}

/* To `size`, on the way to what is asked for. */
static int begin(struct varve_tracker *t, uint64_t size, uint64_t asked, const uint8_t boot_id[16],
                 char notes[256], struct varve_err *err)
{
    int fd = image_open(t, O_RDWR, err), r;

    if (fd < 0)
        return fd;
    r = begin_with(t, fd, size, asked, boot_id, notes, err);
    t->w->close(t->w, fd);
    return r;
}

static int settle_begun(struct varve_tracker *t, bool asked, uint64_t size,
                        const uint8_t boot_id[16], char notes[256], struct varve_err *err)
{
    if (size == t->id.resize.size)
        return go_on(t, boot_id, notes, err);
    if (size == t->id.geometry.size || asked)
        return note_begun(t, 0, 0, err);
    return varve_err_set(err, EINVAL,
                         "image %s has %" PRIu64 " bytes, but was being resized from %" PRIu64
                         " to %" PRIu64 ": say disk-resize",
                         t->id.image, size, t->id.geometry.size, t->id.resize.size);
}

int varve_tracker_resize(struct varve_tracker *t, const struct varve_tracker_config *cfg,
                         const uint8_t boot_id[16], uint64_t *size, char notes[256],
                         struct varve_err *err)
{
    int image_fd = t->image_fd, r = 0;

    t->image_fd = -1; /* no writer comes meanwhile */
    if (t->id.resize.time_ns != 0)
        r = settle_begun(t, cfg->resize != NULL, *size, boot_id, notes, err);
    /* The size that somebody else gave the image first: what he cut off is not known, should it be the
     * same again. */
    if (r == 0 && cfg->resize && *size != t->id.geometry.size)
        r = begin(t, *size, *cfg->resize, boot_id, notes, err);
    if (r == 0 && cfg->resize && *cfg->resize != t->id.geometry.size)
        r = begin(t, *cfg->resize, *cfg->resize, boot_id, notes, err);
    if (r == 0 && cfg->resize)
        *size = *cfg->resize;
    t->image_fd = image_fd;
    return r;
}
