/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The file is a map of the disk's blocks in native order, made at the first failed read with all
 * its memory reserved, so that later notes cannot fail for space.  Whoever finds one that is too
 * short (its maker died on the way, and its client may have had its answer from another thread)
 * knows nothing, and then every block counts.
 */
#include "server/failed-reads.h"

#include "server/log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_MODE 0600

struct varve_failed_reads {
    struct varve_world *w;
    char path[PATH_MAX];
    struct varve_geometry g;
    _Atomic bool forgotten;

    pthread_mutex_t lock;     /* guards all below; rank: a leaf, the file's own I/O under it */
    int fd;                   /* -1: there is no file */
    struct varve_bitmap *map; /* NULL: none failed, or unknown */
    bool unknown;
};

static void failed_reads_load(struct varve_failed_reads *f)
{
    uint64_t bytes = varve_map_bytes(&f->g);
    ssize_t n = -ENOMEM;

    f->fd = f->w->open(f->w, f->path, O_RDWR, 0);
    if (f->fd == -ENOENT) {
        f->fd = -1;
        return;
    }
    f->map = varve_bitmap_new(f->g.nblks);
    if (f->fd >= 0 && f->map)
        n = f->w->pread(f->w, f->fd, f->map->words, (size_t)bytes, 0);
    f->unknown = n < 0 || (uint64_t)n != bytes;
    if (f->unknown)
        varve_log_about(
            VARVE_ABOUT(.level = VARVE_LOG_WARNING),
            "%s cannot be read: every block of the view counts as one that could not be read",
            f->path);
    else if (f->g.nblks % 64)
        f->map->words[varve_bitmap_nwords(f->map) - 1] &= (UINT64_C(1) << (f->g.nblks % 64)) - 1;
}

struct varve_failed_reads *varve_failed_reads_new(struct varve_world *w,
                                                  const struct varve_paths *paths, uint64_t view,
                                                  const struct varve_geometry *g)
{
    struct varve_failed_reads *f = calloc(1, sizeof(*f));

    if (!f)
        return NULL;
    f->w = w;
    f->g = *g;
    varve_path_failed(paths, view, f->path);
    pthread_mutex_init(&f->lock, NULL);
    failed_reads_load(f);
    return f;
}

/* The lock is held. */
static int failed_reads_make(struct varve_failed_reads *f)
{
    int rc;

    if (!f->map)
        f->map = varve_bitmap_new(f->g.nblks);
    if (!f->map)
        return -ENOMEM;
    if (f->fd >= 0)
        return 0;
    f->fd = f->w->open(f->w, f->path, O_RDWR | O_CREAT | O_EXCL, FILE_MODE);
    if (f->fd < 0) {
        rc = f->fd;
        f->fd = -1;
        return rc;
    }
    return f->w->allocate(f->w, f->fd, 0, varve_map_bytes(&f->g));
}

/* The lock is held. */
static int failed_reads_set(struct varve_failed_reads *f, uint64_t from, uint64_t to)
{
    size_t first = (size_t)(from / 64), last = (size_t)((to - 1) / 64);
    int rc = failed_reads_make(f);

    if (rc < 0 || varve_bitmap_find_until(f->map, from, to, false) == to)
        return rc;
    varve_bitmap_set(f->map, from, to);
    return f->w->pwrite(f->w, f->fd, &f->map->words[first], (last - first + 1) * sizeof(uint64_t),
                        first * sizeof(uint64_t));
}

void varve_failed_reads_note(struct varve_failed_reads *f, uint64_t off, uint64_t len)
{
    int rc = 0;

    if (len == 0)
        return;
    pthread_mutex_lock(&f->lock);
    if (!f->unknown)
        rc = failed_reads_set(f, off >> f->g.shift, ((off + len - 1) >> f->g.shift) + 1);
    if (rc < 0) {
        f->unknown = true;
        varve_log_about(
            VARVE_ABOUT(.level = VARVE_LOG_WARNING),
            "%s cannot be written (%s): every block of the view counts as one that could not "
            "be read",
            f->path, strerror(-rc));
        if (f->fd >= 0)
            f->w->truncate(f->w, f->fd, 0); /* whoever finds it knows nothing, too */
    }
    pthread_mutex_unlock(&f->lock);
}

bool varve_failed_reads_or(struct varve_failed_reads *f, struct varve_bitmap *into)
{
    bool any;

    pthread_mutex_lock(&f->lock);
    any = f->unknown || f->map;
    if (f->unknown)
        varve_bitmap_set(into, 0, into->nbits);
    else if (any)
        varve_bitmap_or(into, f->map);
    pthread_mutex_unlock(&f->lock);
    return any;
}

void varve_failed_reads_forget(struct varve_failed_reads *f)
{
    atomic_store(&f->forgotten, true);
}

void varve_failed_reads_free(struct varve_failed_reads *f)
{
    if (!f)
        return;
    if (f->fd >= 0)
        f->w->close(f->w, f->fd);
    if (atomic_load(&f->forgotten))
        f->w->unlink(f->w, f->path);
    pthread_mutex_destroy(&f->lock);
    free(f->map);
    free(f);
}

struct sweep {
    struct varve_world *w;
    const struct varve_paths *paths;
    bool (*is_open)(void *arg, uint64_t view);
    void *arg;
};

static int sweep_one(void *arg, const char *name)
{
    struct sweep *s = arg;
    char path[PATH_MAX], want[64];
    uint64_t view;

    if (sscanf(name, "view-%16" SCNx64 ".failed", &view) != 1)
        return 0;
    snprintf(want, sizeof(want), "%s", strrchr(varve_path_failed(s->paths, view, path), '/') + 1);
    if (strcmp(name, want) == 0 && !s->is_open(s->arg, view))
        s->w->unlink(s->w, path);
    return 0;
}

void varve_failed_reads_sweep(struct varve_world *w, const struct varve_paths *paths,
                              bool (*is_open)(void *arg, uint64_t view), void *arg)
{
    struct sweep s = {w, paths, is_open, arg};

    w->list(w, paths->runtime, sweep_one, &s);
}
