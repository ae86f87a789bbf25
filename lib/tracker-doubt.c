/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The image between two servers: whether somebody else wrote to it (lib/image-witness.h), and what
 * comes of it if so.
 *
 *     judge    before anything is adopted, which would destroy what tells
 *     doubt    only if it was changed: the epochs go on in the next era (lib/epoch-era.h)
 *     witness  "clean" is taken off, and the beat begins
 *     ...      writers may come
 *     witness  at a clean stop, after the image was synced
 *
 * A doubt is a boundary with a number that jumps: all views end, the live epoch is sealed as it is,
 * because it is right about what our writers did, and the next one follows an epoch that never was.
 * The creation of its file and the swap are the old ones' (tracker-boundary.c), so dying anywhere
 * leaves the old era, with all that told of the change still there, or the new one.
 */
#include "lib/tracker-internal.h"

#include "lib/doubt-note.h"
#include "lib/epoch-era.h"
#include "lib/epoch-file.h"
#include "lib/timeline.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* The control page knows of later epochs than the state folder: that came back from a copy. */
static bool state_is_older(struct varve_tracker *t, const uint8_t boot_id[16], uint64_t *prepared)
{
    struct varve_epoch_file info;
    struct varve_ctl_head head;
    struct varve_timeline tl;
    char path[PATH_MAX];
    uint64_t live;
    bool older;
    int fd = t->w->open(t->w, varve_path_control(&t->paths, path), O_RDONLY, 0);

    if (fd < 0)
        return false;
    older = varve_ctl_read_head(t->w, fd, &head, NULL) == 0 &&
            memcmp(head.boot_id, boot_id, 16) == 0 && memcmp(head.disk_uuid, t->id.uuid, 16) == 0;
    t->w->close(t->w, fd);
    live = VARVE_NOW_EPOCH(head.now);
    if (!older || varve_epoch_file_info(t->w, &t->paths, t->id.uuid, &t->id.geometry, live, live,
                                        &info, NULL) != -ENOENT)
        return false;
    if (varve_timeline_scan(t->w, &t->paths, t->id.uuid, &t->id.geometry, &tl, NULL) < 0)
        return false;
    older = tl.highest < live;
    varve_timeline_fini(&tl);
    *prepared = head.prepared > live ? head.prepared : live;
    return older;
}

/* A sync of the image has failed, before the page was mapped: said there for whoever tries again.  Where
 * there is no page of this boot nobody has written in it. */
static void leave_word(struct varve_tracker *t)
{
    struct varve_ctl_head head;
    char path[PATH_MAX];
    int fd = t->w->open(t->w, varve_path_control(&t->paths, path), O_RDWR, 0);

    if (fd < 0)
        return;
    if (varve_ctl_read_head(t->w, fd, &head, NULL) == 0) {
        head.intent |= VARVE_CTL_IMAGE_FAILED;
        t->w->pwrite(t->w, fd, &head.intent, sizeof(head.intent),
                     offsetof(struct varve_ctl, intent));
    }
    t->w->close(t->w, fd);
}

static int judge_image(struct varve_tracker *t, int fd, struct varve_err *err)
{
    int r = varve_witness_check(t->w, &t->paths, &t->id, fd, &t->wit, &t->verdict, t->why, err);

    return r < 0 ? r : varve_image_look(t->w, fd, &t->look, err);
}

/* What the daemon knows against the folder. */
static int judge_note(struct varve_tracker *t, struct varve_err *err)
{
    struct varve_doubt_note note;
    int r = varve_doubt_note_read(t->w, &t->paths, &note, err);

    if (r <= 0)
        return r;
    t->noted = true;
    t->verdict = VARVE_IMAGE_CHANGED;
    memcpy(t->why, note.why, sizeof(t->why));
    if (note.used > t->floor)
        t->floor = note.used;
    return 0;
}

int varve_tracker_judge(struct varve_tracker *t, const char *distrust, const uint8_t boot_id[16],
                        bool new_disk, struct varve_err *err)
{
    const char *image = t->id.image;
    int fd = t->image_fd, r;

    if (fd < 0)
        fd = t->w->open(t->w, image, O_RDONLY | O_NONBLOCK, 0);
    if (fd < 0)
        return varve_err_sys(err, -fd, "cannot open image %s", image);
    r = judge_image(t, fd, err);
    if (r == 0 && new_disk)
        t->verdict = VARVE_IMAGE_PROVED;
    if (r == 0 && !new_disk && state_is_older(t, boot_id, &t->floor)) {
        t->verdict = VARVE_IMAGE_CHANGED;
        snprintf(t->why, sizeof(t->why),
                 "the state folder is older than what served the disk in this boot");
    }
    if (r == 0)
        r = judge_note(t, err);
    if (r == 0 && distrust && t->verdict != VARVE_IMAGE_CHANGED) {
        t->verdict = VARVE_IMAGE_CHANGED;
        snprintf(t->why, sizeof(t->why), "%s", distrust);
    }
    /* Every later change shall show, and the epoch that begins knows nothing of what may be lost.
     */
    if (r == 0 && t->verdict == VARVE_IMAGE_CHANGED) {
        r = t->w->sync_all(t->w, fd);
        if (r < 0)
            varve_err_sys(err, -r, "cannot make image %s durable", image);
        else
            r = varve_image_look_settled(t->w, fd, &t->look, err);
        if (r == -EBUSY && t->image_fd >= 0) /* the guest gets its disk; the stop will see to it */
            r = varve_image_look(t->w, fd, &t->look, err);
    }
    if (r == -EIO || r == -ENOSPC || r == -EDQUOT)
        leave_word(t);
    if (t->image_fd < 0)
        t->w->close(t->w, fd);
    return r;
}

/* --- the doubt
 * ------------------------------------------------------------------------------------- */

static uint64_t doubt_number(struct varve_tracker *t)
{
    uint64_t prepared = atomic_load(&t->ctl->prepared), live = varve_tracker_epoch(t);
    uint64_t latest = prepared > live ? prepared : live;
    uint64_t number;

    if (latest < t->floor)
        latest = t->floor;
    number = (varve_era(latest) + 1) * VARVE_ERA + 1;
    while (*varve_tracker_slot(t, number))
        number++;
    return number;
}

int varve_tracker_doubt(struct varve_tracker *t, struct varve_err *err)
{
    uint64_t live = varve_tracker_epoch(t), number = doubt_number(t);
    int r;

    varve_tracker_abort(t);
    for (unsigned i = 0; i < VARVE_CTL_VIEWS; i++) {
        uint64_t open = VARVE_VIEW_OPEN;

        atomic_compare_exchange_strong(&t->ctl->views[i].state, &open, VARVE_VIEW_ENDED);
    }
    r = varve_tracker_prepare_as(t, false, number, varve_era_gap(number), err);
    if (r == 0)
        r = varve_tracker_quiesce(t, err);
    if (r == 0)
        r = varve_tracker_swap(t, number, 0, err);
    if (r < 0) {
        varve_tracker_abort(t);
        return r;
    }
    t->found_clean = true; /* nothing of it is known, and the image was synced */
    t->wit.doubt_epoch = number;
    t->wit.doubt_from = live;
    t->wit.doubt_ns = t->w->realtime_ns(t->w);
    snprintf(t->wit.doubt, sizeof(t->wit.doubt), "%s", t->why);
    varve_tracker_seal(t, NULL); /* tried again at the next boundary */
    return 0;
}

/* --- what is written down
 * -------------------------------------------------------------------------- */

void varve_tracker_say(char notes[256], const char *what, const char *why)
{
    size_t len = strlen(notes);

    snprintf(notes + len, 256 - len, "%s%s%s", len > 0 ? "; " : "", what, why);
}

int varve_tracker_take_image(struct varve_tracker *t, const uint8_t boot_id[16], const char *found,
                             char notes[256], struct varve_err *err)
{
    struct varve_err why = VARVE_ERR_INIT;
    bool offline = t->image_fd < 0;
    int r;

    if (t->verdict == VARVE_IMAGE_CHANGED) {
        r = varve_tracker_doubt(t, err);
        if (r < 0)
            return r;
        if (t->noted)
            varve_doubt_note_remove(t->w, &t->paths);
        varve_tracker_say(notes, "its bitmaps and checkpoints cannot be believed any more: ", t->why);
    } else if (t->verdict == VARVE_IMAGE_UNPROVED) {
        varve_tracker_say(notes, "it is not proved that nobody else wrote to it: ", t->why);
        t->wit.unproved_ns = t->w->realtime_ns(t->w);
        memcpy(t->wit.unproved, t->why, sizeof(t->wit.unproved));
    } else if (offline) {
        return 0; /* what is known stays as it is: nobody writes */
    }
    if (offline && t->verdict == VARVE_IMAGE_UNPROVED && t->wit.kind != VARVE_WITNESS_NONE)
        return 0;
    memcpy(t->wit.boot_id, boot_id, 16);
    t->wit.look = t->look;
    t->wit.kind = offline ? VARVE_WITNESS_CLEAN : VARVE_WITNESS_SERVED;
    t->wit.found_ns = t->w->realtime_ns(t->w);
    snprintf(t->wit.found, sizeof(t->wit.found), "%s%s%s", found, found[0] && notes[0] ? "; " : "",
             notes);
    /* Not durable: the next one doubts more than it need, and the guest gets its disk. */
    if (varve_witness_write(t->w, &t->paths, t->id.uuid, &t->wit, &why) < 0)
        varve_tracker_say(notes, "", why.msg);
    if (offline)
        return 0;
    t->beat = varve_beat_open(t->w, &t->paths);
    if (t->beat) {
        varve_beat_begin(t->w, t->beat, boot_id, t->id.uuid, t->look.dev, t->look.ino,
                         t->look.mtime_ns);
        varve_gate_count_in(&t->gate, t->beat->shards);
    }
    return 0;
}

void varve_tracker_beat(struct varve_tracker *t)
{
    if (t->beat)
        varve_beat_tick(t->w, t->beat);
}

int varve_tracker_heartbeat(struct varve_tracker *t, struct varve_err *err)
{
    struct varve_stat st;

    varve_tracker_beat(t);
    if (t->image_fd < 0 || t->wit.kind != VARVE_WITNESS_SERVED || varve_intent_is_kept(t->intent))
        return 0;
    if (!t->wit.look.block && t->w->stat(t->w, t->image_fd, &st) == 0)
        t->wit.look.mtime_ns = st.mtime_ns;
    return varve_witness_write(t->w, &t->paths, t->id.uuid, &t->wit, err);
}

int varve_tracker_leave_image(struct varve_tracker *t, struct varve_err *err)
{
    int r;

    if (t->image_fd < 0)
        return 0;
    r = t->w->sync_all(t->w, t->image_fd);
    if (r < 0)
        varve_err_sys(err, -r, "cannot make the image durable");
    else
        r = varve_image_look_settled(t->w, t->image_fd, &t->wit.look, err);
    if (r < 0) {
        if (r != -EBUSY)
            varve_tracker_image_failed(t); /* nobody will be told again */
        return r;
    }
    t->wit.kind = VARVE_WITNESS_CLEAN;
    return varve_witness_write(t->w, &t->paths, t->id.uuid, &t->wit, err);
}
