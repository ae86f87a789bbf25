/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Done maps: made for a view, adopted after a restart, freed.  What they mean stands in control.h,
 * what is done about it in tracker-release.c.  A map's inode goes into the control page while the
 * map is still empty: a reader who finds none there knows that nothing it has read was gone.
 */
#include "lib/tracker-internal.h"

#include "lib/bitmap.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define RUNTIME_FILE_MODE 0600

static_assert(sizeof(struct varve_done_head) == 4096, "the maps begin behind it");

static uint64_t done_bytes(const struct varve_tracker *t)
{
    return sizeof(struct varve_done_head) + 2 * varve_map_bytes(&t->id.geometry);
}

static void done_free(struct varve_tracker *t, struct varve_done *d)
{
    if (d->head)
        t->w->unmap(t->w, d->head, (size_t)done_bytes(t));
    if (d->fd >= 0)
        t->w->close(t->w, d->fd);
    free(d);
}

/* Opens and maps it; with `make` new, and with all its memory reserved: a write to it cannot fail.
 */
static int done_open(struct varve_tracker *t, uint64_t view, bool make, struct varve_done **out,
                     uint64_t *ino, struct varve_err *err)
{
    struct varve_done *d = calloc(1, sizeof(*d));
    struct varve_world *w = t->w;
    char path[PATH_MAX];
    struct varve_stat st;
    void *addr;
    int r;

    if (!d)
        return varve_err_set(err, ENOMEM, "no memory for a view");
    varve_path_done(&t->paths, view, path);
    if (make)
        w->unlink(w, path);
    d->view = view;
    r = d->fd = w->open(w, path, make ? O_RDWR | O_CREAT | O_EXCL : O_RDWR, RUNTIME_FILE_MODE);
    if (r < 0) {
        varve_err_sys(err, -r, "cannot open %s", path);
        goto err_free;
    }
    if (make && (r = w->allocate(w, d->fd, 0, done_bytes(t))) < 0) {
        varve_err_sys(err, -r, "cannot reserve %" PRIu64 " bytes for %s", done_bytes(t), path);
        goto err_free;
    }
    r = w->stat(w, d->fd, &st);
    if (r < 0) {
        varve_err_sys(err, -r, "cannot stat %s", path);
        goto err_free;
    }
    if (st.size != done_bytes(t)) {
        r = varve_err_set(err, EUCLEAN, "%s has %" PRIu64 " bytes, not %" PRIu64, path, st.size,
                          done_bytes(t));
        goto err_free;
    }
    r = w->map(w, d->fd, (size_t)done_bytes(t), &addr);
    if (r < 0) {
        varve_err_sys(err, -r, "cannot map %s", path);
        goto err_free;
    }
    d->head = addr;
    d->unneeded = (_Atomic uint64_t *)(d->head + 1);
    d->released = d->unneeded + varve_map_bytes(&t->id.geometry) / 8;
    *ino = st.ino;
    *out = d;
    return 0;

err_free:
    if (make && d->fd >= 0)
        w->unlink(w, path);
    done_free(t, d);
    return r;
}

/* Slot of the open view, or -1. */
static int view_slot(struct varve_tracker *t, uint64_t view_id)
{
    for (int i = 0; view_id != 0 && i < (int)VARVE_CTL_VIEWS; i++) {
        if (atomic_load(&t->ctl->views[i].id) == view_id &&
            atomic_load(&t->ctl->views[i].state) == VARVE_VIEW_OPEN)
            return i;
    }
    return -1;
}

static int done_make(struct varve_tracker *t, int slot, struct varve_err *err)
{
    struct varve_ctl_view *v = &t->ctl->views[slot];
    struct varve_done *d;
    uint64_t ino;
    int r = done_open(t, atomic_load(&v->id), true, &d, &ino, err);

    if (r < 0)
        return r;
    t->ctl->layout = VARVE_CTL_LAYOUT_DONE; /* before the next store, which releases it */
    atomic_store(&v->done_ino, ino);
    atomic_store(&t->done[slot], d);
    atomic_store(&t->has_done, true);
    return 0;
}

/* What an appliance does not want from the start, from a file of another process. */
static int done_or_map(struct varve_tracker *t, struct varve_done *d, int map_fd,
                       struct varve_err *err)
{
    uint64_t words[512], bytes = varve_map_bytes(&t->id.geometry);
    struct varve_stat st;
    int r = t->w->stat(t->w, map_fd, &st);

    if (r < 0)
        return varve_err_sys(err, -r, "cannot stat the map of what a view does not need");
    if (st.size != bytes)
        return varve_err_set(
            err, EINVAL, "the map of what a view does not need has %" PRIu64 " bytes, not %" PRIu64,
            st.size, bytes);
    for (uint64_t at = 0; at < bytes; at += sizeof(words)) {
        size_t len = bytes - at < sizeof(words) ? (size_t)(bytes - at) : sizeof(words);
        ssize_t n = t->w->pread(t->w, map_fd, words, len, at);

        if (n < 0)
            return varve_err_sys(err, (int)-n, "cannot read the map of what a view does not need");
        if ((size_t)n != len)
            return varve_err_set(err, EIO, "the map of what a view does not need was cut short");
        for (size_t i = 0; i < len / 8; i++)
            atomic_fetch_or(&d->unneeded[at / 8 + i], words[i]);
    }
    /* Seen by readers before a writer that goes by it changes the image. */
    atomic_thread_fence(memory_order_seq_cst);
    return 0;
}

int varve_tracker_narrow(struct varve_tracker *t, uint64_t view_id, int map_fd,
                         struct varve_err *err)
{
    int slot = view_slot(t, view_id), r = 0;

    if (slot < 0)
        return varve_err_set(err, ESTALE, "there is no such view any more");
    if (!atomic_load(&t->done[slot]))
        r = done_make(t, slot, err);
    if (r == 0 && map_fd >= 0) {
        r = done_or_map(t, atomic_load(&t->done[slot]), map_fd, err);
        varve_tracker_free_unneeded(t, 0, t->id.geometry.nblks);
    }
    return r;
}

int varve_tracker_release(struct varve_tracker *t, uint64_t view_id, uint64_t off, uint64_t len,
                          struct varve_err *err)
{
    const struct varve_geometry *g = &t->id.geometry;
    int slot = view_slot(t, view_id);
    struct varve_done *d = slot < 0 ? NULL : atomic_load(&t->done[slot]);
    uint64_t from, to, blk, newly = 0;

    if (slot < 0)
        return varve_err_set(err, ESTALE, "there is no such view any more");
    if (!d)
        return varve_err_set(err, EINVAL, "the view was not opened to be released in parts");
    if (!varve_range_ok(g, off, len))
        return varve_err_set(err, EINVAL,
                             "the range %" PRIu64 "+%" PRIu64 " is not within the disk", off, len);
    from = (off >> g->shift) + (off % varve_block_size(g) != 0);
    to = off + len == g->size ? g->nblks : (off + len) >> g->shift;
    if (from >= to)
        return 0;
    for (blk = from; (blk = varve_abits_find(d->released, blk, to, false)) < to;) {
        uint64_t stop = varve_abits_find(d->released, blk, to, true);

        newly += varve_block_end(g, stop - 1) - (blk << g->shift);
        blk = stop;
    }
    varve_abits_set(d->released, from, to);
    varve_abits_set(d->unneeded, from, to); /* a fence: said before it is acted on */
    atomic_fetch_add(&d->head->released_bytes, newly);
    varve_tracker_free_unneeded(t, from, to);
    return 0;
}

int varve_tracker_open_done(struct varve_tracker *t, uint64_t view_id, struct varve_err *err)
{
    int slot = view_slot(t, view_id), fd;
    char path[PATH_MAX];

    if (slot < 0 || !atomic_load(&t->done[slot]))
        return varve_err_set(err, ENOENT, "there is no such view, or it needs every block");
    fd = t->w->open(t->w, varve_path_done(&t->paths, view_id, path), O_RDONLY, 0);
    return fd < 0 ? varve_err_sys(err, -fd, "cannot open %s", path) : fd;
}

/* --- life
 * ----------------------------------------------------------------------------------------- */

/* A server may have died between setting bits and counting them. */
static void done_recount(struct varve_tracker *t, struct varve_done *d)
{
    const struct varve_geometry *g = &t->id.geometry;
    uint64_t bytes = 0, blk = 0;

    while ((blk = varve_abits_find(d->released, blk, g->nblks, true)) < g->nblks) {
        uint64_t to = varve_abits_find(d->released, blk, g->nblks, false);

        bytes += varve_block_end(g, to - 1) - (blk << g->shift);
        blk = to;
    }
    atomic_store(&d->head->released_bytes, bytes);
}

/* One whose server died between making it and saying so. */
static int remove_stray_done(void *arg, const char *name)
{
    struct varve_tracker *t = arg;
    char path[PATH_MAX];
    uint64_t view;
    int slot, len = 0;

    if (sscanf(name, "view-%16" SCNx64 ".done%n", &view, &len) != 1 || len == 0 || name[len])
        return 0;
    slot = view_slot(t, view);
    if (slot < 0 || atomic_load(&t->ctl->views[slot].done_ino) == 0)
        t->w->unlink(t->w, varve_path_done(&t->paths, view, path));
    return 0;
}

int varve_tracker_adopt_done(struct varve_tracker *t, struct varve_err *err)
{
    for (unsigned i = 0; i < VARVE_CTL_VIEWS; i++) {
        struct varve_ctl_view *v = &t->ctl->views[i];
        struct varve_done *d = NULL;
        uint64_t ino;
        int r;

        if (atomic_load(&v->state) != VARVE_VIEW_OPEN || atomic_load(&v->done_ino) == 0)
            continue;
        r = done_open(t, atomic_load(&v->id), false, &d, &ino, err);
        if (r == -EMFILE || r == -ENFILE || r == -ENOMEM)
            return r; /* a shortage of ours, which says nothing of the file */
        if (r == 0 && ino == atomic_load(&v->done_ino)) {
            done_recount(t, d);
            atomic_store(&t->done[i], d);
            atomic_store(&t->has_done, true);
            continue;
        }
        if (d)
            done_free(t, d);
        atomic_store(&v->state, VARVE_VIEW_ENDED);
    }
    /* A server that died may have set bits and not freed what they say. */
    t->unfreed = atomic_load(&t->has_done);
    t->w->list(t->w, t->paths.runtime, remove_stray_done, t);
    return 0;
}

bool varve_tracker_tidy_done(struct varve_tracker *t)
{
    bool left = false;

    for (unsigned i = 0; i < VARVE_CTL_VIEWS; i++) {
        struct varve_ctl_view *v = &t->ctl->views[i];
        struct varve_done *d = atomic_load(&t->done[i]);
        char path[PATH_MAX];

        if (atomic_load(&v->state) == VARVE_VIEW_OPEN) {
            left = left || d;
            continue;
        }
        if (d) {
            atomic_store(&t->done[i], NULL);
            varve_tracker_pass_stripes(t);
            done_free(t, d);
        }
        if (atomic_load(&v->done_ino) != 0) {
            t->w->unlink(t->w, varve_path_done(&t->paths, atomic_load(&v->id), path));
            atomic_store(&v->done_ino, 0);
        }
    }
    atomic_store(&t->has_done, left);
    if (!left && t->ctl->layout != VARVE_CTL_LAYOUT) {
        /* Who finds the old layout must find the views ended: the layout is no atomic. */
        atomic_thread_fence(memory_order_seq_cst);
        t->ctl->layout = VARVE_CTL_LAYOUT;
    }
    return left;
}

void varve_tracker_forget_done(struct varve_tracker *t)
{
    for (unsigned i = 0; i < VARVE_CTL_VIEWS; i++) {
        struct varve_done *d = atomic_exchange(&t->done[i], NULL);

        if (d)
            done_free(t, d);
    }
    atomic_store(&t->has_done, false);
}
