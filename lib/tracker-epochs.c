/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The runtime files of epochs: live map, lost map, scratch; made, adopted after a restart, disarmed
 * and dropped.  Whatever is taken away is first said in the control page, then fenced, then done:
 * a reader looks at the page after its read.
 */
#include "lib/tracker-internal.h"

#include "lib/bitmap.h"
#include "lib/bulk.h"
#include "lib/epoch-file.h"
#include "lib/scratch.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define RUNTIME_FILE_MODE 0600

/* Less of a file is not given back. */
#define MAP_PAGE ((uint64_t)4096)

static struct varve_tracked_epoch *epoch_alloc(struct varve_tracker *t, uint64_t number)
{
    struct varve_tracked_epoch *e = calloc(1, sizeof(*e));

    if (!e)
        return NULL;
    e->number = number;
    e->live_fd = e->lost_fd = e->scratch_fd = e->file_fd = -1;
    e->slot = &t->ctl->epochs[number % VARVE_CTL_EPOCHS];
    return e;
}

/* A map file of the disk's size, mapped; with `make` new and empty with all its memory reserved. */
static int epoch_map(struct varve_tracker *t, const char *path, bool make, int *fd,
                     _Atomic uint64_t **bits, struct varve_err *err)
{
    struct varve_world *w = t->w;
    uint64_t bytes = varve_map_bytes(&t->id.geometry);
    struct varve_stat st;
    void *addr;
    int r;

    if (bytes == 0)
        bytes = sizeof(uint64_t); /* an empty disk has a map, of nothing */
    if (t->private_why[0]) {
        *bits = calloc(1, (size_t)bytes);
        return *bits ? 0 : varve_err_set(err, ENOMEM, "no memory for a map");
    }
    if (make)
        w->unlink(w, path);
    *fd = w->open(w, path, make ? O_RDWR | O_CREAT | O_EXCL : O_RDWR, RUNTIME_FILE_MODE);
    if (*fd < 0)
        return varve_err_sys(err, -*fd, "cannot open %s", path);
    if (make && (r = w->allocate(w, *fd, 0, bytes)) < 0)
        return varve_err_sys(err, -r, "cannot reserve %" PRIu64 " bytes for %s", bytes, path);
    r = w->stat(w, *fd, &st);
    if (r < 0)
        return varve_err_sys(err, -r, "cannot stat %s", path);
    if (st.size != bytes)
        return varve_err_set(err, EUCLEAN, "%s has %" PRIu64 " bytes, not %" PRIu64, path, st.size,
                             bytes);
    r = w->map(w, *fd, (size_t)bytes, &addr);
    if (r < 0)
        return varve_err_sys(err, -r, "cannot map %s", path);
    *bits = addr;
    return 0;
}

static int epoch_ino(struct varve_tracker *t, int fd, uint64_t *ino, struct varve_err *err)
{
    struct varve_stat st;
    int r = t->w->stat(t->w, fd, &st);

    if (r < 0)
        return varve_err_sys(err, -r, "cannot stat a file of the disk");
    *ino = st.ino;
    return 0;
}

void varve_tracked_epoch_sealed(struct varve_tracker *t, struct varve_tracked_epoch *e)
{
    e->sealed = true;
    if (e->file_fd >= 0)
        t->w->close(t->w, e->file_fd);
    e->file_fd = -1;
    free(e->flushed);
    e->flushed = NULL;
}

void varve_tracked_epoch_free(struct varve_tracker *t, struct varve_tracked_epoch *e)
{
    struct varve_world *w = t->w;
    uint64_t bytes = varve_map_bytes(&t->id.geometry);

    pthread_mutex_lock(&t->epochs_lock);
    if (*varve_tracker_slot(t, e->number) == e)
        *varve_tracker_slot(t, e->number) = NULL;
    pthread_mutex_unlock(&t->epochs_lock);
    if (bytes == 0)
        bytes = sizeof(uint64_t);
    if (t->private_why[0])
        free((void *)e->bits);
    else if (e->bits)
        w->unmap(w, e->bits, (size_t)bytes);
    if (e->lost)
        w->unmap(w, e->lost, (size_t)bytes);
    if (e->live_fd >= 0)
        w->close(w, e->live_fd);
    if (e->lost_fd >= 0)
        w->close(w, e->lost_fd);
    if (e->scratch_fd >= 0)
        w->close(w, e->scratch_fd);
    varve_tracked_epoch_sealed(t, e);
    free(e);
}

void varve_tracker_forget(struct varve_tracker *t)
{
    for (unsigned i = 0; i < VARVE_CTL_EPOCHS; i++) {
        if (t->epochs[i])
            varve_tracked_epoch_free(t, t->epochs[i]);
    }
    atomic_store(&t->scratch_used, 0);
    varve_tracker_forget_done(t);
}

void varve_tracked_epoch_unlink(struct varve_tracker *t, uint64_t number)
{
    char path[PATH_MAX];

    t->w->unlink(t->w, varve_path_scratch(&t->paths, number, path));
    t->w->unlink(t->w, varve_path_lost(&t->paths, number, path));
    t->w->unlink(t->w, varve_path_live(&t->paths, number, path));
}

static void epoch_publish(struct varve_tracker *t, struct varve_tracked_epoch *e)
{
    pthread_mutex_lock(&t->epochs_lock);
    *varve_tracker_slot(t, e->number) = e;
    pthread_mutex_unlock(&t->epochs_lock);
}

static int epoch_make_armed(struct varve_tracker *t, struct varve_tracked_epoch *e,
                            uint64_t *scratch_ino, struct varve_err *err)
{
    struct varve_world *w = t->w;
    char path[PATH_MAX];
    int r = epoch_map(t, varve_path_lost(&t->paths, e->number, path), true, &e->lost_fd, &e->lost,
                      err);

    if (r < 0)
        return r;
    varve_path_scratch(&t->paths, e->number, path);
    w->unlink(w, path);
    e->scratch_fd = w->open(w, path, O_RDWR | O_CREAT | O_EXCL, RUNTIME_FILE_MODE);
    if (e->scratch_fd < 0)
        return varve_err_sys(err, -e->scratch_fd, "cannot create %s", path);
    r = w->truncate(w, e->scratch_fd, t->id.geometry.size);
    if (r < 0)
        return varve_err_sys(err, -r, "cannot set the size of %s", path);
    return epoch_ino(t, e->scratch_fd, scratch_ino, err);
}

int varve_tracked_epoch_create(struct varve_tracker *t, uint64_t number, bool armed,
                               struct varve_err *err)
{
    struct varve_tracked_epoch *e = epoch_alloc(t, number);
    uint64_t map_ino = 0, scratch_ino = 0;
    char path[PATH_MAX];
    int r;

    if (!e)
        return varve_err_set(err, ENOMEM, "no memory for an epoch");
    r = epoch_map(t, varve_path_live(&t->paths, number, path), true, &e->live_fd, &e->bits, err);
    if (r == 0 && !t->private_why[0])
        r = epoch_ino(t, e->live_fd, &map_ino, err);
    if (r == 0 && armed)
        r = epoch_make_armed(t, e, &scratch_ino, err);
    if (r < 0) {
        t->runtime_failed = true;
        varve_tracked_epoch_free(t, e);
        varve_tracked_epoch_unlink(t, number);
        return r;
    }
    atomic_store(&e->preserve, armed);
    atomic_store(&e->slot->flags, armed ? VARVE_EPOCH_ARMED : 0);
    atomic_store(&e->slot->map_ino, map_ino);
    atomic_store(&e->slot->scratch_ino, scratch_ino);
    atomic_store(&e->slot->lost_blks, 0);
    atomic_store(&e->slot->scratch_bytes, 0);
    atomic_store(&e->slot->number, number);
    epoch_publish(t, e);
    return 0;
}

/* Scratch and lost map as they were left, or an error: then they cannot be believed. */
static int epoch_adopt_armed(struct varve_tracker *t, struct varve_tracked_epoch *e,
                             struct varve_err *err)
{
    char path[PATH_MAX];
    uint64_t ino = 0;
    int r = epoch_map(t, varve_path_lost(&t->paths, e->number, path), false, &e->lost_fd, &e->lost,
                      err);

    if (r < 0)
        return r;
    varve_path_scratch(&t->paths, e->number, path);
    e->scratch_fd = t->w->open(t->w, path, O_RDWR, 0);
    if (e->scratch_fd < 0)
        return varve_err_sys(err, -e->scratch_fd, "cannot open %s", path);
    r = epoch_ino(t, e->scratch_fd, &ino, err);
    if (r == 0 && ino != atomic_load(&e->slot->scratch_ino))
        return varve_err_set(err, EUCLEAN, "%s is another file than before", path);
    return r;
}

int varve_tracked_epoch_adopt(struct varve_tracker *t, uint64_t number, struct varve_err *err)
{
    struct varve_tracked_epoch *e = epoch_alloc(t, number);
    char path[PATH_MAX];
    uint64_t ino = 0;
    int r;

    if (!e)
        return varve_err_set(err, ENOMEM, "no memory for an epoch");
    r = epoch_map(t, varve_path_live(&t->paths, number, path), false, &e->live_fd, &e->bits, err);
    if (r == 0)
        r = epoch_ino(t, e->live_fd, &ino, err);
    if (r == 0 && ino != atomic_load(&e->slot->map_ino))
        r = varve_err_set(err, EUCLEAN, "%s is another file than before", path);
    if (r < 0) {
        varve_tracked_epoch_free(t, e);
        return r;
    }
    if (atomic_load(&e->slot->flags) & VARVE_EPOCH_ARMED) {
        r = epoch_adopt_armed(t, e, err);
        if (r == -EMFILE || r == -ENFILE || r == -ENOMEM) {
            varve_tracked_epoch_free(t, e); /* a shortage of ours, which says nothing of the files */
            return r;
        }
        if (r == 0) {
            atomic_store(&e->preserve, !(atomic_load(&e->slot->flags) & VARVE_EPOCH_BROKEN));
            atomic_fetch_add(&t->scratch_used, atomic_load(&e->slot->scratch_bytes));
        } else {
            atomic_fetch_or(&e->slot->flags, VARVE_EPOCH_BROKEN);
        }
    } else {
        /* Its server may have died on the way from saying so to freeing it. */
        varve_tracker_bury(t, number);
    }
    if (!atomic_load(&e->preserve))
        atomic_store(&e->slot->scratch_bytes, 0); /* what was not counted must not be uncounted */
    epoch_publish(t, e);
    return 0;
}

/* What it kept no longer counts against scratch-max. */
static void epoch_uncount(struct varve_tracker *t, struct varve_tracked_epoch *e)
{
    atomic_fetch_sub(&t->scratch_used, atomic_exchange(&e->slot->scratch_bytes, 0));
}

void varve_tracked_epoch_disarm(struct varve_tracker *t, struct varve_tracked_epoch *e)
{
    char path[PATH_MAX];
    bool big;

    if (!(atomic_load(&e->slot->flags) & VARVE_EPOCH_ARMED))
        return;
    /* What a broken one kept may not count any more. */
    big = atomic_load(&e->slot->scratch_bytes) > VARVE_SCRATCH_STEP ||
          atomic_load(&e->slot->flags) & VARVE_EPOCH_BROKEN;
    atomic_fetch_and(&e->slot->flags, ~(uint64_t)VARVE_EPOCH_ARMED);
    atomic_store(&e->preserve, false);
    epoch_uncount(t, e);
    /* On arm64 the stores alone do not keep later ones, those that empty the file, behind them. */
    atomic_thread_fence(memory_order_seq_cst);
    /* A writer may be on its way into the scratch: the file stays open until the epoch is dropped,
     * but its space goes now, or step by step. */
    if (big) {
        varve_tracker_bury(t, e->number);
        return;
    }
    t->w->unlink(t->w, varve_path_scratch(&t->paths, e->number, path));
    if (e->scratch_fd >= 0)
        t->w->truncate(t->w, e->scratch_fd, 0);
}

/* Of a map that nobody changes any more, and whose file is to go.  What is empty reads the same
 * when its memory is gone; else whoever closes the file last, maybe the daemon, frees all of it at
 * a stretch. */
static void epoch_give_back(struct varve_tracker *t, int fd, _Atomic uint64_t *map)
{
    const uint64_t page = MAP_PAGE * 8, piece = VARVE_BULK_PIECE * 8;
    uint64_t nbits = map && fd >= 0 ? varve_map_bytes(&t->id.geometry) * 8 : 0, at = 0;
    struct varve_bulk bulk = {.bytes = 0};

    while (at < nbits) {
        uint64_t end = nbits - at < piece ? nbits : at + piece;
        uint64_t found = varve_abits_find(map, at, end, true);
        uint64_t to = found == end ? end : found / page * page;

        if (to > at)
            t->w->punch(t->w, fd, at / 8, (to - at) / 8);
        varve_bulk_worked(&bulk, (to - at) / 8);
        at = found == end ? end : to + page;
    }
}

void varve_tracked_epoch_drop(struct varve_tracker *t, struct varve_tracked_epoch *e)
{
    uint64_t number = e->number;
    struct varve_ctl_epoch *slot = e->slot;

    varve_tracked_epoch_disarm(t, e);
    epoch_uncount(t, e); /* of writers that were on their way when it was disarmed */
    atomic_store(&slot->flags, 0);
    atomic_store(&slot->number, 0);
    epoch_give_back(t, e->live_fd, e->bits);
    epoch_give_back(t, e->lost_fd, e->lost);
    varve_tracked_epoch_free(t, e);
    varve_tracked_epoch_unlink(t, number);
}

uint64_t varve_tracker_oldest_view(struct varve_tracker *t)
{
    uint64_t oldest = UINT64_MAX;

    for (unsigned i = 0; i < VARVE_CTL_VIEWS; i++) {
        struct varve_ctl_view *v = &t->ctl->views[i];
        uint64_t boundary = atomic_load(&v->boundary);

        if (atomic_load(&v->state) == VARVE_VIEW_OPEN && boundary < oldest)
            oldest = boundary;
    }
    return oldest;
}

void varve_tracker_tidy(struct varve_tracker *t)
{
    uint64_t live = varve_tracker_epoch(t), oldest = varve_tracker_oldest_view(t);

    pthread_mutex_lock(&t->files);
    for (unsigned i = 0; i < VARVE_CTL_EPOCHS; i++) {
        struct varve_tracked_epoch *e = t->epochs[i];
        struct varve_ctl_epoch *slot = &t->ctl->epochs[i];

        if (e && e->number < oldest && e->number != t->next)
            varve_tracked_epoch_disarm(t, e);
        if (e && e->number < oldest && e->number < live && e->sealed)
            varve_tracked_epoch_drop(t, e);
        else if (!e && atomic_load(&slot->number) < oldest)
            atomic_store(&slot->number, 0); /* was prepared and never entered */
    }
    pthread_mutex_unlock(&t->files);
    varve_tracker_tidy_done(t);
}
