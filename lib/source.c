/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The files a reader holds of one disk.  The set of epochs is a table that never changes once it is
 * published: readers take a reference and keep their files whatever is added or dropped meanwhile.
 */
#include "lib/view-internal.h"

#include "lib/bulk.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Bits of a live map are read this many bytes at a time. */
#define MAP_CHUNK 65536u

static void files_unref(struct varve_source *s, struct epoch_files *f)
{
    if (atomic_fetch_sub(&f->refs, 1) != 1)
        return;
    for (unsigned i = 0; i < FILE_COUNT; i++) {
        if (f->fds[i] >= 0)
            s->w->close(s->w, f->fds[i]);
    }
    free(f);
}

void varve_source_table_unref(struct varve_source *s, struct epoch_table *t)
{
    if (atomic_fetch_sub(&t->refs, 1) != 1)
        return;
    for (size_t i = 0; i < t->count; i++)
        files_unref(s, t->epochs[i]);
    for (size_t i = 0; i < t->ndone; i++)
        files_unref(s, t->done[i]);
    free(t);
}

struct epoch_table *varve_source_table(struct varve_source *s)
{
    struct epoch_table *t;

    pthread_mutex_lock(&s->lock);
    t = s->table;
    atomic_fetch_add(&t->refs, 1);
    pthread_mutex_unlock(&s->lock);
    return t;
}

struct epoch_files *varve_source_find(const struct epoch_table *t, uint64_t number)
{
    size_t lo = 0, hi = t->count;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;

        if (t->epochs[mid]->number == number)
            return t->epochs[mid];
        if (t->epochs[mid]->number < number)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

bool varve_source_scratch_bad(struct varve_source *s, struct epoch_files *f)
{
    /* Told once to each description, so it is to be kept. */
    if (!atomic_load(&f->bad) && s->w->written_back(s->w, f->fds[FILE_SCRATCH]) < 0)
        atomic_store(&f->bad, true);
    return atomic_load(&f->bad);
}

struct epoch_files *varve_source_find_done(const struct epoch_table *t, uint64_t view)
{
    for (size_t i = 0; i < t->ndone; i++) {
        if (t->done[i]->number == view)
            return t->done[i];
    }
    return NULL;
}

static struct epoch_table *table_new(size_t count)
{
    struct epoch_table *t = calloc(1, sizeof(*t) + count * sizeof(t->epochs[0]));

    if (t)
        atomic_store(&t->refs, 1);
    return t;
}

static void table_take_done(struct epoch_table *t, struct epoch_files *f)
{
    atomic_fetch_add(&f->refs, 1);
    t->done[t->ndone++] = f;
}

static void table_take_all_done(struct epoch_table *t, const struct epoch_table *from)
{
    for (size_t i = 0; i < from->ndone; i++)
        table_take_done(t, from->done[i]);
}

static void table_take_epochs(struct epoch_table *t, const struct epoch_table *from, uint64_t first)
{
    for (size_t i = 0; i < from->count; i++) {
        if (from->epochs[i]->number < first)
            continue;
        atomic_fetch_add(&from->epochs[i]->refs, 1);
        t->epochs[t->count++] = from->epochs[i];
    }
}

static void source_publish(struct varve_source *s, struct epoch_table *t)
{
    struct epoch_table *old;

    pthread_mutex_lock(&s->lock);
    old = s->table;
    s->table = t;
    pthread_mutex_unlock(&s->lock);
    varve_source_table_unref(s, old);
}

int varve_source_new(struct varve_world *w, const struct varve_geometry *g, const uint8_t uuid[16],
                     int ctl_fd, int image_fd, struct varve_source **out, struct varve_err *err)
{
    struct varve_source *s = calloc(1, sizeof(*s));
    struct epoch_table *table = table_new(0);
    struct varve_ctl_head head;
    struct varve_stat st;
    int r;

    if (!s || !table) {
        r = varve_err_set(err, ENOMEM, "no memory for a disk");
        goto err_after_alloc;
    }
    r = varve_ctl_read_head(w, ctl_fd, &head, err);
    if (r < 0)
        goto err_after_alloc;
    if (memcmp(head.disk_uuid, uuid, 16) != 0 || head.size != g->size || head.shift != g->shift) {
        r = varve_err_set(err, EUCLEAN, "the control page is of another disk");
        goto err_after_alloc;
    }
    r = w->stat(w, ctl_fd, &st);
    if (r < 0) {
        varve_err_sys(err, -r, "cannot stat the control page");
        goto err_after_alloc;
    }
    atomic_store(&s->refs, 1);
    s->w = w;
    s->g = *g;
    memcpy(s->uuid, uuid, 16);
    s->ctl_fd = ctl_fd;
    s->image_fd = image_fd;
    s->ctl_dev = st.dev;
    s->ctl_ino = st.ino;
    s->table = table;
    pthread_mutex_init(&s->lock, NULL);
    *out = s;
    return 0;

err_after_alloc:
    free(table);
    free(s);
    w->close(w, ctl_fd);
    w->close(w, image_fd);
    return r;
}

struct varve_source *varve_source_ref(struct varve_source *s)
{
    atomic_fetch_add(&s->refs, 1);
    return s;
}

void varve_source_unref(struct varve_source *s)
{
    if (!s || atomic_fetch_sub(&s->refs, 1) != 1)
        return;
    varve_source_table_unref(s, s->table);
    s->w->close(s->w, s->ctl_fd);
    s->w->close(s->w, s->image_fd);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

static int files_new(struct varve_source *s, uint64_t number, const int fds[3],
                     struct epoch_files **out, struct varve_err *err)
{
    struct epoch_files *f = calloc(1, sizeof(*f));
    struct varve_stat st;
    int r;

    if (!f)
        return varve_err_set(err, ENOMEM, "no memory for an epoch");
    atomic_store(&f->refs, 1);
    f->number = number;
    memcpy(f->fds, fds, sizeof(f->fds));
    r = s->w->stat(s->w, fds[FILE_LIVE], &st);
    f->map_ino = st.ino;
    if (r == 0 && fds[FILE_SCRATCH] >= 0) {
        r = s->w->stat(s->w, fds[FILE_SCRATCH], &st);
        f->scratch_ino = st.ino;
    }
    if (r < 0) {
        free(f);
        return varve_err_sys(err, -r, "cannot stat the files of epoch %" PRIu64, number);
    }
    *out = f;
    return 0;
}

int varve_source_add_epoch(struct varve_source *s, uint64_t number, int fds[3],
                           struct varve_err *err)
{
    struct epoch_table *old = varve_source_table(s), *t = table_new(old->count + 1);
    struct epoch_files *f = NULL;
    bool placed = false;
    int r = t ? files_new(s, number, fds, &f, err)
              : varve_err_set(err, ENOMEM, "no memory for an epoch");

    if (r < 0) {
        for (unsigned i = 0; i < FILE_COUNT; i++) {
            if (fds[i] >= 0)
                s->w->close(s->w, fds[i]);
        }
        free(t);
        varve_source_table_unref(s, old);
        return r;
    }
    for (size_t i = 0; i < old->count; i++) {
        struct epoch_files *o = old->epochs[i];

        if (!placed && o->number >= number) {
            t->epochs[t->count++] = f;
            placed = true;
        }
        if (o->number == number)
            continue; /* a restarted server may have made its files anew: the newer ones count */
        atomic_fetch_add(&o->refs, 1);
        t->epochs[t->count++] = o;
    }
    if (!placed)
        t->epochs[t->count++] = f;
    table_take_all_done(t, old);
    source_publish(s, t);
    varve_source_table_unref(s, old);
    return 0;
}

bool varve_source_has_epoch(struct varve_source *s, uint64_t number)
{
    struct epoch_table *t = varve_source_table(s);
    bool has = varve_source_find(t, number) != NULL;

    varve_source_table_unref(s, t);
    return has;
}

void varve_source_drop_before(struct varve_source *s, uint64_t number)
{
    struct epoch_table *old = varve_source_table(s), *t = table_new(old->count);

    /* Without memory for a shorter table the old epochs stay a little longer. */
    if (t) {
        table_take_epochs(t, old, number);
        table_take_all_done(t, old);
        source_publish(s, t);
    }
    varve_source_table_unref(s, old);
}

int varve_source_add_done(struct varve_source *s, uint64_t view, int fd, struct varve_err *err)
{
    int fds[FILE_COUNT] = {[FILE_LIVE] = fd, [FILE_LOST] = -1, [FILE_SCRATCH] = -1};
    struct epoch_table *old = varve_source_table(s), *t = table_new(old->count);
    struct epoch_files *f = NULL;
    int r = t ? files_new(s, view, fds, &f, err) : varve_err_set(err, ENOMEM, "no memory for a view");

    if (r < 0) {
        s->w->close(s->w, fd);
        free(t);
        varve_source_table_unref(s, old);
        return r;
    }
    table_take_epochs(t, old, 0);
    t->done[t->ndone++] = f;
    for (size_t i = 0; i < old->ndone && t->ndone < VARVE_CTL_VIEWS; i++) {
        if (old->done[i]->number != view)
            table_take_done(t, old->done[i]);
    }
    source_publish(s, t);
    varve_source_table_unref(s, old);
    return 0;
}

bool varve_source_has_done(struct varve_source *s, uint64_t view, uint64_t ino)
{
    struct epoch_table *t = varve_source_table(s);
    const struct epoch_files *f = varve_source_find_done(t, view);
    bool has = f && f->map_ino == ino;

    varve_source_table_unref(s, t);
    return has;
}

void varve_source_drop_done(struct varve_source *s, const struct varve_ctl_view_copy *views)
{
    struct epoch_table *old = varve_source_table(s), *t = old->ndone ? table_new(old->count) : NULL;

    for (size_t i = 0; t && i < old->ndone; i++) {
        for (unsigned k = 0; k < VARVE_CTL_VIEWS; k++) {
            if (views[k].state == VARVE_VIEW_OPEN && views[k].id == old->done[i]->number)
                table_take_done(t, old->done[i]);
        }
    }
    if (t) {
        table_take_epochs(t, old, 0);
        source_publish(s, t);
    }
    varve_source_table_unref(s, old);
}

int varve_source_image_fd(const struct varve_source *s)
{
    return s->image_fd;
}

bool varve_source_image_is(struct varve_source *s, int64_t mtime_ns)
{
    struct varve_stat st;

    return s->w->stat(s->w, s->image_fd, &st) < 0 || st.mtime_ns == mtime_ns;
}

int varve_source_head(struct varve_source *s, struct varve_ctl_head *head, struct varve_err *err)
{
    return varve_ctl_read_head(s->w, s->ctl_fd, head, err);
}

int varve_source_views(struct varve_source *s, struct varve_ctl_view_copy out[VARVE_CTL_VIEWS],
                       struct varve_err *err)
{
    return varve_ctl_read_views(s->w, s->ctl_fd, out, err);
}

bool varve_source_same_control(struct varve_source *s, int ctl_fd)
{
    struct varve_stat st;

    return s->w->stat(s->w, ctl_fd, &st) == 0 && st.dev == s->ctl_dev && st.ino == s->ctl_ino;
}

int varve_source_or_live(struct varve_source *s, uint64_t number, struct varve_bitmap *into,
                         struct varve_err *err)
{
    struct epoch_table *t = varve_source_table(s);
    struct epoch_files *f = varve_source_find(t, number);
    size_t nwords = varve_bitmap_nwords(into);
    uint64_t words[MAP_CHUNK / 8];
    struct varve_bulk bulk = {.bytes = 0};
    int r = 0;

    if (!f)
        r = varve_err_set(err, ENOENT, "epoch %" PRIu64 " is not at hand", number);
    for (size_t at = 0; r == 0 && at < nwords; at += MAP_CHUNK / 8) {
        size_t n = nwords - at < MAP_CHUNK / 8 ? nwords - at : MAP_CHUNK / 8;
        ssize_t got = s->w->pread(s->w, f->fds[FILE_LIVE], words, n * 8, at * 8);

        if (got != (ssize_t)(n * 8))
            r = varve_err_set(err, EIO, "the live map of epoch %" PRIu64 " has been cut short",
                              number);
        if (r == 0)
            varve_bitmap_or_words(into, at, words, n);
        varve_bulk_worked(&bulk, n * 8);
    }
    varve_source_table_unref(s, t);
    return r;
}
