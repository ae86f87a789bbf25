/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/served-view.h"

#include "server/release.h"

#include <errno.h>
#include <stdlib.h>

#define EPOCH_WAIT_NS UINT64_C(5000000000)

struct varve_served_view *
varve_served_view_new(struct varve_disk *disk, uint64_t id, uint64_t boundary,
                      void (*last_gone)(struct varve_served_view *v, void *arg), void *arg)
{
    struct varve_served_view *v = calloc(1, sizeof(*v));

    if (!v)
        return NULL;
    v->disk = disk;
    v->source = varve_source_ref(disk->source);
    v->view.id = id;
    v->view.boundary = boundary;
    v->images = disk->images;
    v->refs = 1;
    v->last_gone = last_gone;
    v->arg = arg;
    pthread_mutex_init(&v->lock, NULL);
    v->allocation = varve_allocation_new(v->source, &v->view, &disk->identity.geometry);
    v->failed = varve_failed_reads_new(disk->daemon->w, &disk->paths, id, &disk->identity.geometry);
    if (!v->allocation || !v->failed) {
        v->last_gone = NULL;
        varve_served_view_unref(v);
        return NULL;
    }
    return v;
}

struct varve_served_view *varve_served_view_ref(struct varve_served_view *v)
{
    v->refs++;
    return v;
}

void varve_served_view_unref(struct varve_served_view *v)
{
    if (!v || --v->refs > 0)
        return;
    if (v->last_gone)
        v->last_gone(v, v->arg);
    varve_allocation_free(v->allocation);
    varve_failed_reads_free(v->failed);
    varve_source_unref(v->source);
    pthread_mutex_destroy(&v->lock);
    free(v->lost);
    free(v);
}

/* After -EAGAIN: true when it is worth asking again. */
static bool served_view_wait(struct varve_served_view *v, uint64_t *deadline, struct varve_err *err)
{
    struct varve_world *w = v->disk->daemon->w;

    if (*deadline == 0)
        *deadline = w->monotonic_ns(w) + EPOCH_WAIT_NS;
    if (!v->stopping && w->monotonic_ns(w) < *deadline &&
        varve_disk_wait_epochs(v->disk, *deadline) == 0)
        return true;
    varve_err_set(err, EIO, "Disk '%s': it is in an epoch whose files could not be had in time",
                  v->disk->name);
    return false;
}

static int served_view_check_image(struct varve_served_view *v, struct varve_err *err)
{
    if (v->disk->images == v->images)
        return varve_disk_check_still(v->disk, v->source, err);
    return varve_err_set(err, ESTALE, "its image %s was replaced by another file",
                         v->disk->identity.image);
}

int varve_served_view_check(struct varve_served_view *v, struct varve_err *err)
{
    int rc = served_view_check_image(v, err);

    return rc < 0 ? rc : varve_view_check(v->source, &v->view, err);
}

int varve_served_view_read(struct varve_served_view *v, void *buf, uint64_t off, uint32_t len,
                           uint64_t *bad_off, struct varve_err *err)
{
    uint64_t deadline = 0;
    int rc;

    do
        rc = varve_view_read(v->source, &v->view, buf, off, len, bad_off, err);
    while (rc == -EAGAIN && served_view_wait(v, &deadline, err));
    if (rc == 0)
        rc = served_view_check_image(v, err);
    return rc == -EAGAIN ? -EIO : rc;
}

int varve_served_view_read_now(struct varve_served_view *v, void *buf, uint64_t off, uint32_t len)
{
    int rc = varve_view_read_now(v->source, &v->view, buf, off, len);
    struct varve_err unsaid = VARVE_ERR_INIT;

    return rc == 0 && served_view_check_image(v, &unsaid) < 0 ? -EAGAIN : rc;
}

int varve_served_view_hole_run(struct varve_served_view *v, uint64_t off, uint64_t end,
                               uint64_t *run_end, struct varve_err *err)
{
    uint64_t deadline = 0;
    int rc;

    do
        rc = varve_allocation_run(v->allocation, off, end, run_end, err);
    while (rc == -EAGAIN && served_view_wait(v, &deadline, err));
    if (rc >= 0 && served_view_check_image(v, err) < 0)
        return -ESTALE;
    return rc == -EAGAIN ? -EIO : rc;
}

int varve_served_view_release(struct varve_served_view *v, uint64_t off, uint64_t len,
                              struct varve_err *err)
{
    int rc = served_view_check_image(v, err);

    return rc < 0 ? rc : varve_release_range(v->disk, v->view.id, off, len, &v->stopping, err);
}

static int lost_compute(struct varve_served_view *v, struct varve_bitmap *map,
                        struct varve_err *err)
{
    uint64_t deadline = 0;
    int rc;

    do
        rc = varve_view_or_lost(v->source, &v->view, map, err);
    while (rc == -EAGAIN && served_view_wait(v, &deadline, err));
    return rc == -EAGAIN ? -EIO : rc;
}

/* The count is read before the map, and the map's bits are set before they are counted: so the map
 * has at least what was counted, and who finds the same count later finds the same blocks. */
int varve_served_view_look_lost(struct varve_served_view *v, struct varve_err *err)
{
    uint64_t deadline = 0, scratch_bytes, lost_bytes;
    struct varve_bitmap *map;
    bool same;
    int rc;

    do
        rc = varve_view_usage(v->source, &v->view, &scratch_bytes, &lost_bytes, err);
    while (rc == -EAGAIN && served_view_wait(v, &deadline, err));
    if (rc < 0)
        return rc == -EAGAIN ? -EIO : rc;
    pthread_mutex_lock(&v->lock);
    same = lost_bytes == v->lost_bytes;
    pthread_mutex_unlock(&v->lock);
    if (same)
        return 0;
    map = varve_bitmap_new(v->disk->identity.geometry.nblks);
    if (!map)
        return varve_err_set(err, ENOMEM, "Disk '%s': no memory for a map", v->disk->name);
    rc = lost_compute(v, map, err);
    pthread_mutex_lock(&v->lock);
    if (rc == 0 && v->lost)
        varve_bitmap_or(v->lost, map);
    if (rc == 0 && lost_bytes > v->lost_bytes)
        v->lost_bytes = lost_bytes;
    if (rc == 0 && !v->lost) {
        v->lost = map;
        map = NULL;
    }
    pthread_mutex_unlock(&v->lock);
    free(map);
    return rc;
}

bool varve_served_view_lost_run(struct varve_served_view *v, uint64_t off, uint64_t end,
                                uint64_t *run_end)
{
    const struct varve_geometry *g = &v->disk->identity.geometry;
    uint64_t blk = off >> g->shift, last = ((end - 1) >> g->shift) + 1, to = last;
    bool lost = false;

    pthread_mutex_lock(&v->lock);
    if (v->lost) {
        lost = varve_bitmap_test(v->lost, blk);
        to = varve_bitmap_find_until(v->lost, blk, last, !lost);
    }
    pthread_mutex_unlock(&v->lock);
    *run_end = to < last ? to << g->shift : end;
    return lost;
}

int varve_served_view_gone_run(struct varve_served_view *v, uint64_t off, uint64_t end,
                               uint64_t *run_end, struct varve_err *err)
{
    uint64_t block = varve_block_size(&v->disk->identity.geometry), from = off - off % block;
    uint64_t deadline = 0, run_len = 0;
    int rc;

    do
        rc = varve_view_gone_run(v->source, &v->view, from, end - from, &run_len, err);
    while (rc == -EAGAIN && served_view_wait(v, &deadline, err));
    *run_end = from + run_len;
    return rc == -EAGAIN ? -EIO : rc;
}
