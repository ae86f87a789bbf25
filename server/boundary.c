/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The two-phase freeze:
 *
 *     abort all        what may be left of a former one; finds a plugin that is stopped before
 * anything slow is asked of it prepare all      nobody waits; each disk's next files are made, and
 * we open them quiesce all      writers wait, by their own deadline swap all         only after
 * every quiesce was confirmed; lets writers go on seal all         the epochs before the boundary
 * become durable and final
 *
 * In each step all plugins are asked before any is waited for, so that the freeze lasts as long as
 * the slowest, not as long as all of them.  Invariants:
 *
 *  1. No swap is sent before all disks are quiet.  So if a write to B was begun after one to A was
 *     acknowledged, and the one to B lies before the boundary, then so does the one to A: it ended
 *     before B was quiet, hence before A's swap.
 *  2. After a failure everything that was not swapped is told to abort; what was swapped has a
 *     boundary without a name, which is harmless, and its view is ended.
 *  3. Our source has the next epoch's files before a writer can be in it.
 */
#include "server/boundary.h"

#include "server/freeze.h"
#include "server/log.h"

#include <errno.h>
#include <unistd.h>

#define PREPARE_TIMEOUT_MS  30000
#define SWAP_TIMEOUT_MS     5000
#define ABORT_TIMEOUT_MS    2000
#define SEAL_TIMEOUT_MS     60000
#define END_VIEW_TIMEOUT_MS 30000
#define QUIESCE_GRACE_MS    2000

/* Nobody writes to a disk that we have attached. */
#define OFFLINE_FREEZE_MS 60000

/* --- one disk, one step: over the link, or on our own
 * ---------------------------------------------- */

static int step_ask(struct varve_boundary_disk *b, enum varve_link_type type, struct varve_err *err)
{
    uint64_t arg0 = 0, arg1 = 0;

    if (type == VARVE_LINK_PREPARE) {
        arg0 = b->view != 0;
    } else if (type == VARVE_LINK_SWAP) {
        arg0 = b->epoch;
        arg1 = b->view;
    }
    return varve_peer_ask(b->disk->peer, type, arg0, arg1, err);
}

static int step_add_epoch(struct varve_boundary_disk *b, int fds[3], struct varve_err *err)
{
    int rc = varve_source_add_epoch(b->disk->source, b->epoch, fds, err);

    if (rc < 0)
        return varve_err_prefix(err, "Disk '%s'", b->disk->name);
    b->prepared = true;
    return 0;
}

static unsigned step_timeout_ms(const struct varve_disk *disk, enum varve_link_type type)
{
    switch (type) {
    case VARVE_LINK_PREPARE:
        return PREPARE_TIMEOUT_MS;
    case VARVE_LINK_QUIESCE:
        return disk->freeze_timeout_ms + QUIESCE_GRACE_MS;
    case VARVE_LINK_SEAL:
        return SEAL_TIMEOUT_MS;
    case VARVE_LINK_SWAP:
        return SWAP_TIMEOUT_MS;
    default:
        return ABORT_TIMEOUT_MS;
    }
}

static int step_answer(struct varve_boundary_disk *b, enum varve_link_type type,
                       struct varve_err *err)
{
    uint64_t epoch;
    int fds[3], rc;

    rc = varve_peer_answer(b->disk->peer, step_timeout_ms(b->disk, type), &epoch, fds, err);
    if (rc < 0)
        return rc;
    if (type == VARVE_LINK_PREPARE) {
        b->epoch = epoch;
        return step_add_epoch(b, fds, err);
    }
    return 0;
}

static int step_offline(struct varve_boundary_disk *b, enum varve_link_type type,
                        struct varve_err *err)
{
    int fds[3], rc = 0;

    switch (type) {
    case VARVE_LINK_PREPARE:
        rc = varve_tracker_prepare(b->tracker, b->view != 0, &b->epoch, err);
        if (rc == 0)
            rc = varve_tracker_open_epoch(b->tracker, b->epoch, fds, err);
        return rc < 0 ? varve_err_prefix(err, "Disk '%s'", b->disk->name)
                      : step_add_epoch(b, fds, err);
    case VARVE_LINK_QUIESCE:
        rc = varve_tracker_quiesce(b->tracker, err);
        break;
    case VARVE_LINK_SWAP:
        rc = varve_tracker_swap(b->tracker, b->epoch, b->view, err);
        break;
    case VARVE_LINK_SEAL:
        rc = varve_tracker_seal(b->tracker, err);
        break;
    default:
        varve_tracker_abort(b->tracker);
    }
    return rc < 0 ? varve_err_prefix(err, "Disk '%s'", b->disk->name) : 0;
}

/* --- attaching a disk that nobody serves
 * ----------------------------------------------------------- */

int varve_offline_attach(struct varve_disk *disk, struct varve_tracker **t, struct varve_err *err)
{
    return varve_offline_attach_as(disk, NULL, NULL, t, err);
}

int varve_offline_attach_as(struct varve_disk *disk, const char *distrust, const uint64_t *resize,
                            struct varve_tracker **t, struct varve_err *err)
{
    const struct varve_options *o = disk->daemon->options;
    struct varve_world *w = disk->daemon->w;
    struct varve_tracker_config cfg = {
        .state_dir = o->state_dir,
        .runtime_dir = o->runtime_dir,
        .scratch_dir = o->scratch_dir,
        .name = disk->name,
        .image = disk->identity.image,
        .image_fd = -1,
        .on_scratch_full = VARVE_SCRATCH_DEGRADE,
        .freeze_timeout_ms = OFFLINE_FREEZE_MS,
        .role = "varved",
        .existing_only = true,
        .distrust = distrust,
        .resize = resize,
    };
    struct varve_stat st;
    char notes[256] = "";
    int fd, rc;

    rc = varve_disk_refuse_private(disk, err);
    if (rc < 0)
        return rc;
    fd = w->open(w, disk->identity.image, 0, 0);
    if (fd < 0)
        return varve_err_sys(err, -fd, "Disk '%s': cannot open its image %s", disk->name,
                             disk->identity.image);
    rc = w->stat(w, fd, &st);
    w->close(w, fd);
    if (rc < 0)
        return varve_err_sys(err, -rc, "Disk '%s': %s", disk->name, disk->identity.image);
    cfg.size = st.size;
    rc = varve_tracker_attach(w, &cfg, t, notes, err);
    if (rc < 0)
        return varve_err_prefix(err, "Disk '%s'", disk->name);
    if (notes[0])
        varve_log_about(VARVE_ABOUT(.disk = disk->name), "Disk '%s': %s", disk->name, notes);
    return 0;
}

void varve_offline_detach(struct varve_disk *disk, struct varve_tracker *t)
{
    struct varve_err err = VARVE_ERR_INIT;

    if (varve_tracker_detach(t, &err) < 0)
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .disk = disk->name),
                        "Disk '%s': %s", disk->name, err.msg);
}

/* --- all disks ------------------------------------------------------------------------------ */

/* One step on every disk for which `wanted` says so.  Every answer is waited for, also after an
 * error: the first error is returned. */
static int all_step(struct varve_boundary_disk *disks, size_t ndisks, enum varve_link_type type,
                    bool (*wanted)(const struct varve_boundary_disk *b), struct varve_err *err)
{
    struct varve_err other = VARVE_ERR_INIT;
    int first = 0, rc;

    for (size_t i = 0; i < ndisks; i++) {
        struct varve_boundary_disk *b = &disks[i];

        b->asked = false;
        if (b->tracker || !b->disk->peer || !wanted(b))
            continue;
        rc = step_ask(b, type, first < 0 ? &other : err);
        b->asked = rc == 0;
        if (rc < 0 && first == 0)
            first = rc;
    }
    for (size_t i = 0; i < ndisks; i++) {
        struct varve_boundary_disk *b = &disks[i];

        if (!b->asked && !(b->tracker && wanted(b)))
            continue;
        rc = b->tracker ? step_offline(b, type, first < 0 ? &other : err)
                        : step_answer(b, type, first < 0 ? &other : err);
        if (rc == 0 && type == VARVE_LINK_SWAP)
            b->swapped = true;
        if (rc < 0 && first == 0)
            first = rc;
    }
    return first;
}

static bool wanted_all(const struct varve_boundary_disk *b)
{
    (void)b;
    return true;
}

static bool wanted_not_swapped(const struct varve_boundary_disk *b)
{
    return !b->swapped;
}

static int all_attach(struct varve_boundary_disk *disks, size_t ndisks, struct varve_err *err)
{
    for (size_t i = 0; i < ndisks; i++) {
        struct varve_disk *disk = disks[i].disk;
        int rc;

        disks[i].tracker = NULL;
        disks[i].prepared = disks[i].swapped = false;
        rc = varve_disk_check_older(disk, err); /* its numbers would be used twice */
        if (rc < 0)
            return varve_err_prefix(err, "Disk '%s'", disk->name);
        if (disk->peer)
            continue;
        rc = varve_offline_attach(disk, &disks[i].tracker, err);
        if (rc == 0)
            rc = varve_disk_open_source(disk, err); /* attaching may have made the page */
        if (rc < 0)
            return rc;
    }
    return 0;
}

static void all_detach(struct varve_boundary_disk *disks, size_t ndisks)
{
    for (size_t i = 0; i < ndisks; i++) {
        if (disks[i].tracker)
            varve_offline_detach(disks[i].disk, disks[i].tracker);
        disks[i].tracker = NULL;
    }
}

/* From quiesce to swap, or to abort: what guests' writes may wait for.  Nobody writes to disks that
 * are not served. */
static int all_pause(struct varve_boundary_disk *disks, size_t ndisks, struct varve_err *err)
{
    struct varve_err other = VARVE_ERR_INIT;
    struct varve_daemon *d;
    bool served = false;
    uint64_t begun_ns;
    int rc;

    if (ndisks == 0) /* a transaction that needs no boundary */
        return 0;
    d = disks[0].disk->daemon;
    begun_ns = d->w->monotonic_ns(d->w);
    rc = all_step(disks, ndisks, VARVE_LINK_QUIESCE, wanted_all, err);
    if (rc == 0)
        rc = all_step(disks, ndisks, VARVE_LINK_SWAP, wanted_all, err);
    if (rc < 0)
        all_step(disks, ndisks, VARVE_LINK_ABORT, wanted_not_swapped, &other);
    for (size_t i = 0; i < ndisks; i++)
        served = served || !disks[i].tracker;
    if (served)
        varve_pauses_note(&d->pauses, d->w->monotonic_ns(d->w) - begun_ns);
    return rc;
}

int varve_boundary_make(struct varve_boundary_disk *disks, size_t ndisks, struct varve_err *err)
{
    return varve_boundary_make_frozen(disks, ndisks, NULL, err);
}

int varve_boundary_make_frozen(struct varve_boundary_disk *disks, size_t ndisks,
                               struct varve_freeze *f, struct varve_err *err)
{
    struct varve_err other = VARVE_ERR_INIT;
    bool frozen = false;
    int rc;

    for (size_t i = 0; i < ndisks; i++)
        disks[i].tracker = NULL;
    rc = all_attach(disks, ndisks, err);
    if (rc == 0)
        rc = all_step(disks, ndisks, VARVE_LINK_ABORT, wanted_all, err);
    if (rc == 0)
        rc = all_step(disks, ndisks, VARVE_LINK_PREPARE, wanted_all, err);
    if (rc == 0 && f) {
        rc = varve_freeze_freeze(f, disks, ndisks, err);
        frozen = rc == 0;
    }
    if (rc == 0)
        rc = all_pause(disks, ndisks, err);
    else
        all_step(disks, ndisks, VARVE_LINK_ABORT, wanted_not_swapped, &other);
    if (frozen) { /* writers go on by now: thawing may need them to */
        int thawed = varve_freeze_thaw(f, rc < 0 ? &other : err);

        if (rc == 0)
            rc = thawed;
    }
    if (rc == 0)
        rc = all_step(disks, ndisks, VARVE_LINK_SEAL, wanted_all, err);
    all_detach(disks, ndisks);
    if (rc == 0)
        return 0;
    for (size_t i = 0; i < ndisks; i++) {
        if (disks[i].swapped && disks[i].view != 0 &&
            varve_boundary_end_view(disks[i].disk, disks[i].view, &other) < 0)
            varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .disk = disks[i].disk->name),
                            "%s", other.msg);
    }
    return rc;
}

int varve_boundary_probe(struct varve_disk *disk, struct varve_err *err)
{
    int rc = varve_peer_ask(disk->peer, VARVE_LINK_ABORT, 0, 0, err);

    return rc < 0 ? rc : varve_peer_answer(disk->peer, ABORT_TIMEOUT_MS, NULL, NULL, err);
}

int varve_boundary_seal(struct varve_disk *disk, struct varve_err *err)
{
    int rc = varve_peer_ask(disk->peer, VARVE_LINK_SEAL, 0, 0, err);

    return rc < 0 ? rc : varve_peer_answer(disk->peer, SEAL_TIMEOUT_MS, NULL, NULL, err);
}

int varve_boundary_end_view(struct varve_disk *disk, uint64_t view, struct varve_err *err)
{
    struct varve_tracker *t;
    int rc;

    if (disk->peer) {
        /* Freeing may take its time; a plugin that is stopped is found before. */
        rc = varve_boundary_probe(disk, err);
        if (rc < 0)
            return rc;
        rc = varve_peer_ask(disk->peer, VARVE_LINK_END_VIEW, view, 0, err);
        return rc < 0 ? rc : varve_peer_answer(disk->peer, END_VIEW_TIMEOUT_MS, NULL, NULL, err);
    }
    rc = varve_offline_attach(disk, &t, err);
    if (rc < 0)
        return rc;
    rc = varve_tracker_end_view(t, view, err);
    varve_offline_detach(disk, t);
    return rc < 0 ? varve_err_prefix(err, "Disk '%s'", disk->name) : 0;
}
