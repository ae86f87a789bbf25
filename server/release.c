/* SPDX-License-Identifier: BSD-3-Clause
 *
 *     pool thread                       clerk
 *     puts a range into the queue ────▶ takes the whole queue
 *     waits                             asks the plugin, range by range; where nobody serves the
 *                                       disk, attaches it once and does it
 *     answers its client         ◀───── tells each what came of it
 *
 * A range that was taken will be answered: its memory, on the pool thread's stack, is in use until
 * then.  One that was not can be taken back.
 */
#include "server/release.h"

#include "server/boundary.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define NARROW_TIMEOUT_MS  30000
#define DONE_TIMEOUT_MS    5000
#define RELEASE_TIMEOUT_MS 10000
#define PATIENCE_NS        UINT64_C(5000000000)
#define SLICE_NS           UINT64_C(100000000)
#define HOLD_MAX_NS        UINT64_C(500000000) /* and one range more */
#define LEAVE_FREE_NS      50000000

struct varve_release {
    struct varve_release *next;
    uint64_t view, off, len;
    bool taken, done;
    int rc;
    struct varve_err err;
};

/* --- narrowing ------------------------------------------------------------------------------ */

int varve_release_check(struct varve_disk *disk, struct varve_err *err)
{
    if (!disk->peer || varve_peer_can_narrow(disk->peer))
        return 0;
    return varve_err_set(err, ENOTSUP,
                         "Disk '%s' is served by a plugin of an older varve (process %d), which "
                         "knows neither 'release' nor preserve 'dirty': start nbdkit anew with the "
                         "plugin of this version",
                         disk->name, disk->plugin_pid);
}

/* A file in memory with the blocks that are not in the map. */
static int complement_file(const struct varve_bitmap *map, struct varve_err *err)
{
    size_t nwords = varve_bitmap_nwords(map);
    int fd = memfd_create("varve-unneeded", MFD_CLOEXEC), rc = 0;

    if (fd < 0)
        return varve_err_sys(err, errno, "no memory for a map");
    for (size_t at = 0; rc == 0 && at < nwords; at += 512) {
        size_t n = nwords - at < 512 ? nwords - at : 512;
        uint64_t words[512];

        for (size_t i = 0; i < n; i++)
            words[i] = ~map->words[at + i];
        if (at + n == nwords && map->nbits % 64 != 0)
            words[n - 1] &= (UINT64_C(1) << map->nbits % 64) - 1;
        if (pwrite(fd, words, n * 8, (off_t)(at * 8)) != (ssize_t)(n * 8))
            rc = varve_err_set(err, ENOMEM, "no memory for a map");
    }
    if (rc == 0)
        return fd;
    close(fd);
    return rc;
}

/* The done map's descriptor. */
static int narrow_view(struct varve_disk *disk, uint64_t view, int map_fd, struct varve_err *err)
{
    uint64_t arg[3] = {view, 0, 0}, id;
    struct varve_tracker *t;
    int fds[3], rc;

    if (disk->peer) {
        rc = varve_release_check(disk, err);
        if (rc == 0)
            rc = varve_peer_ask_with(disk->peer, VARVE_LINK_NARROW, arg, map_fd, err);
        if (rc == 0)
            rc = varve_peer_answer(disk->peer, NARROW_TIMEOUT_MS, &id, fds, err);
        return rc < 0 ? rc : fds[0];
    }
    rc = varve_offline_attach(disk, &t, err);
    if (rc < 0)
        return rc;
    rc = varve_tracker_narrow(t, view, map_fd, err);
    if (rc == 0)
        rc = varve_tracker_open_done(t, view, err);
    varve_offline_detach(disk, t);
    return rc < 0 ? varve_err_prefix(err, "Disk '%s'", disk->name) : rc;
}

int varve_release_narrow(struct varve_disk *disk, uint64_t view, const struct varve_bitmap *needed,
                         struct varve_err *err)
{
    int map_fd = needed ? complement_file(needed, err) : -1, rc;

    if (needed && map_fd < 0)
        return varve_err_prefix(err, "Disk '%s'", disk->name);
    rc = narrow_view(disk, view, map_fd, err);
    if (map_fd >= 0)
        close(map_fd);
    if (rc < 0)
        return rc;
    rc = varve_source_add_done(disk->source, view, rc, err);
    return rc < 0 ? varve_err_prefix(err, "Disk '%s'", disk->name) : 0;
}

/* --- done maps of views that were narrowed before ------------------------------------------- */

static int fetch_done(struct varve_disk *disk, uint64_t view, struct varve_err *err)
{
    int fds[3] = {-1, -1, -1}, rc;
    char path[PATH_MAX];
    uint64_t id;

    if (disk->peer) {
        rc = varve_peer_can_narrow(disk->peer)
                 ? varve_peer_ask(disk->peer, VARVE_LINK_DONE, view, 0, err)
                 : -ENOENT;
        if (rc == 0)
            rc = varve_peer_answer(disk->peer, DONE_TIMEOUT_MS, &id, fds, err);
    } else {
        fds[0] = open(varve_path_done(&disk->paths, view, path), O_RDONLY | O_CLOEXEC);
        rc = fds[0] < 0 ? varve_err_sys(err, errno, "cannot open %s", path) : 0;
    }
    if (rc == -ENOENT)
        return 0; /* the view that needs it has ended, or will say so */
    return rc < 0 ? rc : varve_source_add_done(disk->source, view, fds[0], err);
}

int varve_release_fetch(struct varve_disk *disk, struct varve_err *err)
{
    struct varve_ctl_view_copy views[VARVE_CTL_VIEWS];
    int rc = varve_source_views(disk->source, views, err);

    for (unsigned i = 0; rc == 0 && i < VARVE_CTL_VIEWS; i++) {
        if (views[i].state == VARVE_VIEW_OPEN && views[i].done_ino != 0 &&
            !varve_source_has_done(disk->source, views[i].id, views[i].done_ino))
            rc = fetch_done(disk, views[i].id, err);
    }
    if (rc == 0)
        varve_source_drop_done(disk->source, views);
    return rc;
}

/* --- ranges, the clerk's side --------------------------------------------------------------- */

static uint64_t now_ns(struct varve_disk *disk)
{
    return disk->daemon->w->monotonic_ns(disk->daemon->w);
}

static int release_over_link(struct varve_disk *disk, struct varve_release *r)
{
    uint64_t arg[3] = {r->view, r->off, r->len};
    int rc = varve_release_check(disk, &r->err);

    if (rc == 0)
        rc = varve_peer_ask_with(disk->peer, VARVE_LINK_RELEASE, arg, -1, &r->err);
    return rc < 0 ? rc : varve_peer_answer(disk->peer, RELEASE_TIMEOUT_MS, NULL, NULL, &r->err);
}

/* A plugin that starts looks every 10 ms whether the disk's lock is free, for a few seconds (edge: a
 * starting plugin always wins): who has had it for long, at once or in many short turns, leaves it free
 * for some of those looks. */
static void let_a_plugin_in(struct varve_disk *disk)
{
    struct timespec ts = {.tv_nsec = LEAVE_FREE_NS};

    if (disk->held_ns < HOLD_MAX_NS)
        return;
    nanosleep(&ts, NULL);
    disk->held_ns = 0;
}

/* From `list` on as many as may be done in one go; returns the next one. */
static struct varve_release *release_some(struct varve_disk *disk, struct varve_release *list)
{
    struct varve_tracker *t = NULL;
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_release *r;
    uint64_t since;
    int rc;

    let_a_plugin_in(disk);
    varve_disk_refresh(disk);
    since = now_ns(disk);
    rc = disk->peer ? varve_boundary_probe(disk, &err) : varve_offline_attach(disk, &t, &err);
    for (r = list; r; r = r->next) {
        if (t && r != list && disk->held_ns + now_ns(disk) - since >= HOLD_MAX_NS)
            break;
        if (rc < 0) {
            r->rc = rc;
            r->err = err;
        } else if (t) {
            r->rc = varve_tracker_release(t, r->view, r->off, r->len, &r->err);
        } else {
            r->rc = release_over_link(disk, r);
        }
    }
    if (t) {
        varve_offline_detach(disk, t);
        disk->held_ns += now_ns(disk) - since;
    }
    return r;
}

static void release_all(struct varve_disk *disk, struct varve_release *list)
{
    while (list)
        list = release_some(disk, list);
}

void varve_release_job(struct varve_job *job, bool stopping)
{
    struct varve_disk *disk =
        (struct varve_disk *)((char *)job - offsetof(struct varve_disk, release_job));
    struct varve_release *list, *r, *next;

    pthread_mutex_lock(&disk->fetch_lock);
    list = disk->releases;
    disk->releases = NULL;
    disk->release_posted = false;
    for (r = list; r; r = r->next)
        r->taken = true;
    pthread_mutex_unlock(&disk->fetch_lock);
    if (stopping) {
        for (r = list; r; r = r->next)
            r->rc = varve_err_set(&r->err, ESHUTDOWN, "varved ends");
    } else if (list) {
        release_all(disk, list);
    }
    pthread_mutex_lock(&disk->fetch_lock);
    for (r = list; r; r = next) {
        next = r->next; /* once it is done it is gone */
        r->done = true;
    }
    pthread_cond_broadcast(&disk->fetched);
    pthread_mutex_unlock(&disk->fetch_lock);
}

/* --- ranges, the pool's side ---------------------------------------------------------------- */

static void wait_slice(struct varve_disk *disk)
{
    uint64_t until = now_ns(disk) + SLICE_NS;
    struct timespec ts = {.tv_sec = (time_t)(until / 1000000000),
                          .tv_nsec = (long)(until % 1000000000)};

    pthread_cond_timedwait(&disk->fetched, &disk->fetch_lock, &ts);
}

static void take_back(struct varve_disk *disk, struct varve_release *r)
{
    struct varve_release **at = &disk->releases;

    while (*at != r)
        at = &(*at)->next;
    *at = r->next;
}

static int release_once(struct varve_disk *disk, struct varve_release *r,
                        const _Atomic bool *stopping)
{
    struct varve_clerk *clerk = disk->daemon->clerk;

    r->taken = r->done = false;
    pthread_mutex_lock(&disk->fetch_lock);
    r->next = disk->releases;
    disk->releases = r;
    if (!disk->release_posted) {
        disk->release_posted = true;
        varve_clerk_post(clerk, &disk->release_job);
    }
    while (!r->done && (r->taken || (!*stopping && !varve_clerk_stopping(clerk))))
        wait_slice(disk);
    if (!r->done) {
        take_back(disk, r);
        r->rc = varve_err_set(&r->err, ESHUTDOWN, "the export is going away");
    }
    pthread_mutex_unlock(&disk->fetch_lock);
    return r->rc;
}

/* It went away while it was asked, or has not come yet. */
static bool may_come_back(int rc)
{
    return rc == -ECONNRESET || rc == -EPIPE || rc == -ENOTCONN || rc == -EBUSY;
}

int varve_release_range(struct varve_disk *disk, uint64_t view, uint64_t off, uint64_t len,
                        const _Atomic bool *stopping, struct varve_err *err)
{
    struct varve_release r = {.view = view, .off = off, .len = len, .err = VARVE_ERR_INIT};
    uint64_t deadline = now_ns(disk) + PATIENCE_NS;
    int rc;

    while ((rc = release_once(disk, &r, stopping)) < 0 && may_come_back(rc) && !*stopping &&
           now_ns(disk) < deadline) {
        struct timespec ts = {.tv_nsec = (long)SLICE_NS};

        nanosleep(&ts, NULL);
    }
    if (rc < 0)
        *err = r.err;
    return rc;
}
