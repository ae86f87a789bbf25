/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A view that clients read: one of a backup's disks, shared by all exports of it,
 * reference-counted. Any thread.  It outlives its backup as long as somebody reads, and tells when
 * the last one has gone, so that nothing of the view is freed under a reader.
 */
#ifndef VARVE_SERVER_SERVED_VIEW_H
#define VARVE_SERVER_SERVED_VIEW_H

#include "lib/view.h"
#include "server/allocation.h"
#include "server/disk.h"
#include "server/failed-reads.h"

#include <pthread.h>
#include <stdatomic.h>

struct varve_served_view {
    struct varve_disk *disk;
    struct varve_source *source;
    struct varve_view view;
    unsigned images; /* disk->images when it was opened */
    struct varve_allocation *allocation;
    struct varve_failed_reads *failed;

    _Atomic unsigned refs;
    void (*last_gone)(struct varve_served_view *v, void *arg); /* any thread; then it is freed */
    void *arg;

    pthread_mutex_t lock;      /* guards all down to lost_bytes; rank: a leaf */
    struct varve_bitmap *lost; /* as of the last look; NULL: nothing was */
    uint64_t lost_bytes;       /* that look's */
    _Atomic bool stopping;       /* no more waiting for missing epochs */
};

/* With one reference.  NULL: no memory. */
struct varve_served_view *
varve_served_view_new(struct varve_disk *disk, uint64_t id, uint64_t boundary,
                      void (*last_gone)(struct varve_served_view *v, void *arg), void *arg);
struct varve_served_view *varve_served_view_ref(struct varve_served_view *v);
void varve_served_view_unref(struct varve_served_view *v);

/* Any thread.  As varve_view_check; -ESTALE, too, once the disk has another image. */
int varve_served_view_check(struct varve_served_view *v, struct varve_err *err);

/* Pool threads.  As varve_view_read, but waits up to 5 s for an epoch that is not here yet. */
int varve_served_view_read(struct varve_served_view *v, void *buf, uint64_t off, uint32_t len,
                           uint64_t *bad_off, struct varve_err *err);
/* Any thread.  As varve_view_read_now. */
int varve_served_view_read_now(struct varve_served_view *v, void *buf, uint64_t off, uint32_t len);
/* Pool threads.  As varve_allocation_run, with the same patience. */
int varve_served_view_hole_run(struct varve_served_view *v, uint64_t off, uint64_t end,
                               uint64_t *run_end, struct varve_err *err);

/* Pool threads.  As varve_release_range. */
int varve_served_view_release(struct varve_served_view *v, uint64_t off, uint64_t len,
                              struct varve_err *err);

/* Pool threads.  Looks whether more was lost since the last look; where nothing was, that costs
 * little.  Errors as of varve_view_usage, with the same patience. */
int varve_served_view_look_lost(struct varve_served_view *v, struct varve_err *err);
/* Any thread.  Whether the block at off was lost at the last look, and where in (off, end] that
 * changes. */
bool varve_served_view_lost_run(struct varve_served_view *v, uint64_t off, uint64_t end,
                                uint64_t *run_end);

/* Pool threads.  As varve_view_gone_run, with the same patience; [off, *run_end) is the run. */
int varve_served_view_gone_run(struct varve_served_view *v, uint64_t off, uint64_t end,
                               uint64_t *run_end, struct varve_err *err);

#endif
