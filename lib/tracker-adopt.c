/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Adopting in place what a former server of this boot left in the runtime folder: the same control
 * page, maps and scratch, the same inodes, so that readers in other processes go on.
 */
#include "lib/tracker-internal.h"

#include "lib/epoch-file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

static int control_open(struct varve_tracker *t, struct varve_err *err)
{
    char path[PATH_MAX];
    struct varve_stat st;
    void *addr;
    int r;

    varve_path_control(&t->paths, path);
    t->ctl_fd = t->w->open(t->w, path, O_RDWR, 0);
    if (t->ctl_fd == -ENOTDIR)
        return varve_err_set(err, ENOENT, "there is no %s", path);
    if (t->ctl_fd < 0)
        return varve_err_sys(err, -t->ctl_fd, "cannot open %s", path);
    r = t->w->stat(t->w, t->ctl_fd, &st);
    if (r < 0)
        return varve_err_sys(err, -r, "cannot stat %s", path);
    if (st.size < sizeof(struct varve_ctl))
        return varve_err_set(err, EUCLEAN, "%s has been cut short", path);
    r = t->w->map(t->w, t->ctl_fd, sizeof(struct varve_ctl), &addr);
    if (r < 0)
        return varve_err_sys(err, -r, "cannot map %s", path);
    t->ctl = addr;
    return 0;
}

void varve_tracker_close_control(struct varve_tracker *t)
{
    if (t->private_why[0])
        free(t->ctl);
    else if (t->ctl)
        t->w->unmap(t->w, t->ctl, sizeof(struct varve_ctl));
    if (t->ctl_fd >= 0)
        t->w->close(t->w, t->ctl_fd);
    t->ctl = NULL;
    t->ctl_fd = -1;
}

static int control_fits(struct varve_tracker *t, const uint8_t boot_id[16], struct varve_err *err)
{
    const struct varve_ctl *c = t->ctl;

    if (c->magic != VARVE_CTL_MAGIC)
        return varve_err_set(err, EUCLEAN, "the control page was not finished");
    if (c->layout > VARVE_CTL_LAYOUT_DONE)
        return varve_err_set(err, ENOTSUP,
                             "the runtime folder %s was made by a newer varve (layout %u, known is "
                             "%u): use that version",
                             t->paths.runtime, c->layout, VARVE_CTL_LAYOUT_DONE);
    if (c->layout < VARVE_CTL_LAYOUT || memcmp(c->boot_id, boot_id, 16) != 0 ||
        memcmp(c->disk_uuid, t->id.uuid, 16) != 0 || c->size != t->id.geometry.size ||
        c->shift != t->id.geometry.shift)
        return varve_err_set(err, EUCLEAN, "the control page is of another boot or disk");
    return 0;
}

/* Whether the epoch's own file says that its bits are still to be written.  One that is not there has
 * been freed or merged by the housekeeper, who touches sealed files only; one that is damaged cannot
 * be mended here and is found by whoever needs it.  An error that says nothing of the file is one. */
static int epoch_is_unsealed(struct varve_tracker *t, uint64_t number, bool *unsealed,
                             struct varve_err *err)
{
    struct varve_epoch_file info;
    int r = varve_epoch_file_info(t->w, &t->paths, t->id.uuid, &t->id.geometry, number, number,
                                  &info, err);

    *unsealed = r == 0 && info.state != VARVE_EPOCH_FILE_SEALED;
    return r == -ENOENT || r == -EUCLEAN ? 0 : r;
}

/* Whether the mark of an epoch's file that reads as sealed is there to stay: who wrote it may have died
 * before that was durable.  If not, sealing it is tried again. */
static bool is_durable(struct varve_tracker *t, uint64_t number)
{
    int r = varve_epoch_file_finish(t->w, &t->paths, &t->id.geometry, number,
                                    varve_tracker_find(t, number)->bits, VARVE_EPOCH_FILE_SEALED,
                                    NULL);

    return r == 0 || r == -EEXIST || r == -ENOENT || r == -EUCLEAN;
}

/* Prepared by a server that died before it was entered.  The slot keeps the number, without flags:
 * readers that walk over it must know that it never was. */
static int give_up_prepared(struct varve_tracker *t, uint64_t number, struct varve_err *err)
{
    struct varve_ctl_epoch *slot = &t->ctl->epochs[number % VARVE_CTL_EPOCHS];
    char path[PATH_MAX];
    bool unsealed;
    int r = epoch_is_unsealed(t, number, &unsealed, err);

    if (r < 0)
        return r;
    atomic_store(&slot->flags, 0);
    atomic_store(&slot->scratch_bytes, 0);
    atomic_store(&slot->number, number);
    varve_tracked_epoch_unlink(t, number);
    if (unsealed)
        t->w->unlink(t->w, varve_path_epoch(&t->paths, number, number, path));
    return 0;
}

static void break_views(struct varve_tracker *t, uint64_t boundary_up_to)
{
    for (unsigned i = 0; i < VARVE_CTL_VIEWS; i++) {
        struct varve_ctl_view *v = &t->ctl->views[i];

        if (atomic_load(&v->state) == VARVE_VIEW_OPEN &&
            atomic_load(&v->boundary) <= boundary_up_to)
            atomic_store(&v->state, VARVE_VIEW_ENDED);
    }
}

/* Its bits are gone: they all count as set, and no view that needs it can be read.  Said in the page
 * before the slot is given up, so that dying between is found again. */
static int give_up_bits(struct varve_tracker *t, uint64_t number, struct varve_err *err)
{
    struct varve_ctl_epoch *slot = &t->ctl->epochs[number % VARVE_CTL_EPOCHS];
    bool unsealed;
    int r = epoch_is_unsealed(t, number, &unsealed, err);

    if (r == 0 && unsealed)
        r = varve_tracker_seal_as_dirty(t, number, err);
    if (r < 0 && r != -EEXIST)
        return r;
    break_views(t, number);
    atomic_store(&slot->number, 0);
    return 0;
}

static int adopt_epochs(struct varve_tracker *t, struct varve_err *err)
{
    uint64_t live = varve_tracker_epoch(t), prepared = atomic_load(&t->ctl->prepared);
    int r = 0;

    for (unsigned i = 0; r == 0 && i < VARVE_CTL_EPOCHS; i++) {
        struct varve_ctl_epoch *slot = &t->ctl->epochs[i];
        uint64_t number = atomic_load(&slot->number);
        bool unsealed = true;

        if (number == 0 || number % VARVE_CTL_EPOCHS != i)
            continue;
        if (number > live || !(atomic_load(&slot->flags) & VARVE_EPOCH_ENTERED)) {
            r = give_up_prepared(t, number, err);
            continue;
        }
        r = varve_tracked_epoch_adopt(t, number, err);
        if ((r == -ENOENT || r == -EUCLEAN) && number != live) {
            r = give_up_bits(t, number, err);
            continue;
        }
        if (r == 0 && number != live)
            r = epoch_is_unsealed(t, number, &unsealed, err);
        if (r == 0)
            varve_tracker_find(t, number)->sealed = !unsealed && is_durable(t, number);
    }
    /* Prepared by one that died before the page had it: only its number was taken. */
    if (r == 0 && prepared > live && !*varve_tracker_slot(t, prepared) &&
        atomic_load(&t->ctl->epochs[prepared % VARVE_CTL_EPOCHS].number) != prepared)
        r = give_up_prepared(t, prepared, err);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < VARVE_CTL_VIEWS; i++) {
        struct varve_ctl_view *v = &t->ctl->views[i];

        /* The server died between opening the view and the swap. */
        if (atomic_load(&v->state) == VARVE_VIEW_OPEN && atomic_load(&v->boundary) > live)
            atomic_store(&v->state, VARVE_VIEW_FREE);
    }
    r = varve_tracker_adopt_done(t, err);
    if (r < 0)
        return r;
    return varve_tracker_find(t, live)
               ? 0
               : varve_err_set(err, EUCLEAN, "the control page does not know its live epoch");
}

int varve_tracker_adopt(struct varve_tracker *t, const uint8_t boot_id[16], struct varve_err *err)
{
    int r = control_open(t, err);

    if (r == 0)
        r = control_fits(t, boot_id, err);
    if (r == 0) {
        varve_gate_init(&t->gate, &t->ctl->now);
        r = adopt_epochs(t, err);
        if (r < 0) {
            varve_tracker_forget(t);
            varve_gate_fini(&t->gate);
        }
    }
    if (r == 0) {
        uint64_t live = varve_tracker_epoch(t);
        struct varve_epoch_file info;

        r = varve_epoch_file_info(t->w, &t->paths, t->id.uuid, &t->id.geometry, live, live, &info,
                                  err);
        /* No live epoch of this disk: of a state folder that came back from a copy. */
        if (r == 0 &&
            (info.state == VARVE_EPOCH_FILE_SEALED || info.size != t->id.geometry.size))
            r = varve_err_set(err, EUCLEAN, "the map of the live epoch is sealed, or of another size");
        t->found_clean = r == 0 && info.state == VARVE_EPOCH_FILE_CLEAN;
        /* Also if it reads as open: who took the mark off may have died before that was durable. */
        t->clean_mark = r == 0;
        if (r < 0) {
            varve_tracker_forget(t);
            varve_gate_fini(&t->gate);
        }
    }
    if (r < 0)
        varve_tracker_close_control(t);
    return r;
}
