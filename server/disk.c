/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/disk.h"

#include "server/boundary.h"
#include "server/log.h"
#include "server/release.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define HELLO_TIMEOUT_MS 1000
#define EPOCH_TIMEOUT_MS 5000
#define RETRY_NS         UINT64_C(5000000000)
#define PRIVATE_RETRY_NS UINT64_C(1000000000)
#define WAIT_SLICE_NS    UINT64_C(100000000)

const char *varve_disk_state_name(enum varve_disk_state state)
{
    static const char *const names[] = {
        [VARVE_DISK_UNKNOWN] = "unknown", [VARVE_DISK_LIVE] = "live",
        [VARVE_DISK_OFFLINE] = "offline", [VARVE_DISK_INCONSISTENT] = "inconsistent",
        [VARVE_DISK_MISSING] = "missing",
    };

    return names[state];
}

static void disk_fetch_job(struct varve_job *job, bool stopping);

static uint64_t monotonic_ns(struct varve_disk *disk)
{
    return disk->daemon->w->monotonic_ns(disk->daemon->w);
}

struct varve_disk *varve_disk_new(struct varve_daemon *d, const char *name)
{
    struct varve_disk *disk = calloc(1, sizeof(*disk));
    pthread_condattr_t attr;

    if (!disk)
        return NULL;
    disk->daemon = d;
    snprintf(disk->name, sizeof(disk->name), "%s", name);
    disk->ctl_fd = -1;
    disk->durable = true;
    disk->freeze_timeout_ms = 1000;
    disk->fetch_job.run = disk_fetch_job;
    disk->release_job.run = varve_release_job;
    if (varve_paths_init(&disk->paths, d->options->state_dir, d->options->runtime_dir,
                         d->options->scratch_dir, name, NULL) < 0) {
        free(disk);
        return NULL;
    }
    pthread_mutex_init(&disk->timeline_lock, NULL);
    pthread_mutex_init(&disk->fetch_lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&disk->fetched, &attr);
    pthread_condattr_destroy(&attr);
    return disk;
}

void varve_disk_free(struct varve_disk *disk)
{
    varve_peer_free(disk->peer);
    if (disk->source)
        varve_source_unref(disk->source);
    if (disk->ctl_fd >= 0)
        close(disk->ctl_fd);
    pthread_cond_destroy(&disk->fetched);
    pthread_mutex_destroy(&disk->fetch_lock);
    pthread_mutex_destroy(&disk->timeline_lock);
    free(disk);
}

uint64_t varve_disk_oldest_view(struct varve_disk *disk)
{
    const struct varve_catalogue *c = disk->daemon->catalogue;
    uint64_t oldest = UINT64_MAX;

    for (size_t i = 0; i < c->nbackups; i++) {
        const struct varve_cat_backup *b = &c->backups[i];

        for (size_t k = 0; varve_cat_backup_open(b) && k < b->ndisks; k++) {
            if (memcmp(b->disks[k].uuid, disk->identity.uuid, 16) == 0 &&
                b->disks[k].boundary < oldest)
                oldest = b->disks[k].boundary;
        }
    }
    return oldest;
}

/* --- files ---------------------------------------------------------------------------------- */

/* As long as we have the one open, nothing else can have its numbers. */
static bool image_is(const struct stat *a, const struct stat *b)
{
    if (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode))
        return a->st_rdev == b->st_rdev;
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* Takes both descriptors over.  The page that we have already is not opened twice: views on it go
 * on.  Under a page that stays another image may have come: then views that are open are of bytes
 * that are nowhere whole any more. */
static int disk_use_page(struct varve_disk *disk, int ctl_fd, int image_fd, struct varve_err *err)
{
    bool same = disk->source && varve_source_same_control(disk->source, ctl_fd);
    struct varve_source *source;
    struct stat image;
    int keep_fd, rc;

    if (fstat(image_fd, &image) < 0) {
        rc = varve_err_sys(err, errno, "Disk '%s'", disk->name);
        close(ctl_fd);
        close(image_fd);
        return rc;
    }
    if (same && image_is(&disk->image, &image)) {
        close(ctl_fd);
        close(image_fd);
        return 0;
    }
    keep_fd = fcntl(ctl_fd, F_DUPFD_CLOEXEC, 0);
    if (keep_fd < 0) {
        rc = varve_err_sys(err, errno, "Disk '%s'", disk->name);
        close(ctl_fd);
        close(image_fd);
        return rc;
    }
    rc = varve_source_new(disk->daemon->w, &disk->identity.geometry, disk->identity.uuid, ctl_fd,
                          image_fd, &source, err);
    if (rc < 0) {
        close(keep_fd);
        return varve_err_prefix(err, "Disk '%s'", disk->name);
    }
    if (same) {
        disk->images++;
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .disk = disk->name),
                        "Disk '%s': its image is another file than before", disk->name);
    }
    if (disk->source)
        varve_source_unref(disk->source);
    if (disk->ctl_fd >= 0)
        close(disk->ctl_fd);
    disk->source = source;
    disk->ctl_fd = keep_fd;
    disk->image = image;
    return 0;
}

/* Opens the image to read.  It may be anything by now: nothing here waits for it. */
static int disk_open_image(struct varve_disk *disk, struct varve_err *err)
{
    int fd = open(disk->identity.image, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    struct stat st;

    if (fd < 0)
        return varve_err_sys(err, errno, "Disk '%s': cannot open its image %s", disk->name,
                             disk->identity.image);
    if (fstat(fd, &st) < 0 || (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))) {
        close(fd);
        return varve_err_set(err, EINVAL, "Disk '%s': %s is neither a file nor a block device",
                             disk->name, disk->identity.image);
    }
    return fd;
}

int varve_disk_open_source(struct varve_disk *disk, struct varve_err *err)
{
    char path[PATH_MAX];
    int ctl_fd, image_fd;

    ctl_fd = open(varve_path_control(&disk->paths, path), O_RDONLY | O_CLOEXEC);
    if (ctl_fd < 0)
        return varve_err_sys(err, errno, "Disk '%s': cannot open %s", disk->name, path);
    image_fd = disk_open_image(disk, err);
    if (image_fd < 0) {
        close(ctl_fd);
        return image_fd;
    }
    return disk_use_page(disk, ctl_fd, image_fd, err);
}

/* -ENOENT: they are not all there.  Too few descriptors, or no memory, say nothing of the files. */
static int disk_open_epoch_files(struct varve_disk *disk, uint64_t number, bool armed, int fds[3],
                                 struct varve_err *err)
{
    char path[PATH_MAX];
    int rc = 0;

    fds[0] = fds[1] = fds[2] = -1;
    for (unsigned i = 0; rc == 0 && i < (armed ? 3 : 1); i++) {
        switch (i) {
        case 0:
            varve_path_live(&disk->paths, number, path);
            break;
        case 1:
            varve_path_lost(&disk->paths, number, path);
            break;
        default:
            varve_path_scratch(&disk->paths, number, path);
        }
        fds[i] = open(path, O_RDONLY | O_CLOEXEC);
        if (fds[i] < 0 && varve_err_is_shortage(errno))
            rc = varve_err_sys(err, errno, "cannot open %s", path);
        else if (fds[i] < 0)
            rc = -ENOENT;
    }
    for (unsigned i = 0; rc < 0 && i < 3; i++) {
        if (fds[i] >= 0)
            close(fds[i]);
    }
    return rc;
}

static int disk_fetch_epoch(struct varve_disk *disk, uint64_t number, struct varve_err *err)
{
    struct varve_ctl_epoch_copy slot;
    uint64_t got = number;
    int fds[3], rc;

    if (disk->peer) {
        rc = varve_peer_ask(disk->peer, VARVE_LINK_EPOCH, number, 0, err);
        if (rc == 0)
            rc = varve_peer_answer(disk->peer, EPOCH_TIMEOUT_MS, &got, fds, err);
        if (rc == -ENOENT)
            return 0;
    } else {
        rc = varve_ctl_read_epochs(disk->daemon->w, disk->ctl_fd, number, number, &slot, err);
        if (rc == 0 && slot.number != number)
            return 0; /* never used, or freed */
        if (rc == 0)
            rc = disk_open_epoch_files(disk, number, slot.flags & VARVE_EPOCH_ARMED, fds, err);
        if (rc == -ENOENT)
            return 0; /* the view that needs it will say so */
    }
    if (rc < 0)
        return rc;
    return varve_source_add_epoch(disk->source, got, fds, err);
}

int varve_disk_fetch_epochs(struct varve_disk *disk, uint64_t first, struct varve_err *err)
{
    struct varve_ctl_head head;
    uint64_t live;
    int rc = varve_source_head(disk->source, &head, err);

    if (rc < 0)
        return rc;
    live = VARVE_NOW_EPOCH(head.now);
    if (first > live)
        first = live;
    if (live - first >= VARVE_CTL_EPOCHS)
        first = live - VARVE_CTL_EPOCHS + 1;
    for (uint64_t number = first; number <= live; number++) {
        if (varve_source_has_epoch(disk->source, number))
            continue;
        rc = disk_fetch_epoch(disk, number, err);
        if (rc < 0)
            return rc;
    }
    varve_source_drop_before(disk->source, first);
    return varve_release_fetch(disk, err);
}

static void disk_fetch_job(struct varve_job *job, bool stopping)
{
    struct varve_disk *disk =
        (struct varve_disk *)((char *)job - offsetof(struct varve_disk, fetch_job));
    struct varve_err err = VARVE_ERR_INIT;

    pthread_mutex_lock(&disk->fetch_lock);
    disk->fetch_posted = false; /* who asks from here on gets another look */
    pthread_mutex_unlock(&disk->fetch_lock);
    if (!stopping) {
        varve_disk_refresh(disk);
        if (disk->source && varve_disk_fetch_epochs(disk, varve_disk_oldest_view(disk), &err) < 0)
            varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .disk = disk->name), "%s",
                            err.msg);
    }
    pthread_mutex_lock(&disk->fetch_lock);
    disk->fetches++;
    pthread_cond_broadcast(&disk->fetched);
    pthread_mutex_unlock(&disk->fetch_lock);
}

int varve_disk_wait_epochs(struct varve_disk *disk, uint64_t deadline_ns)
{
    struct varve_clerk *clerk = disk->daemon->clerk;
    uint64_t want;
    bool done;

    pthread_mutex_lock(&disk->fetch_lock);
    want = disk->fetches + 1;
    if (!disk->fetch_posted) {
        disk->fetch_posted = true;
        varve_clerk_post(clerk, &disk->fetch_job);
    }
    /* In slices: a clerk that has ended takes no jobs any more. */
    while (disk->fetches < want && !varve_clerk_stopping(clerk)) {
        uint64_t now = monotonic_ns(disk), until = now + WAIT_SLICE_NS;
        struct timespec ts = {.tv_sec = (time_t)(until / 1000000000),
                              .tv_nsec = (long)(until % 1000000000)};

        if (now >= deadline_ns)
            break;
        pthread_cond_timedwait(&disk->fetched, &disk->fetch_lock, &ts);
    }
    done = disk->fetches >= want;
    pthread_mutex_unlock(&disk->fetch_lock);
    if (varve_clerk_stopping(clerk))
        return -ESHUTDOWN;
    return done ? 0 : -ETIMEDOUT;
}

/* --- state ---------------------------------------------------------------------------------- */

static void disk_set_state(struct varve_disk *disk, enum varve_disk_state state, const char *reason,
                           const char *degraded)
{
    bool same = state == disk->state && strcmp(degraded, disk->degraded) == 0;
    bool well = state == VARVE_DISK_LIVE || state == VARVE_DISK_OFFLINE;

    snprintf(disk->reason, sizeof(disk->reason), "%.479s", reason);
    if (same)
        return;
    if (state != disk->state && (disk->state != VARVE_DISK_UNKNOWN || state != VARVE_DISK_OFFLINE))
        varve_log_about(
            VARVE_ABOUT(.level = well ? VARVE_LOG_INFO : VARVE_LOG_WARNING, .disk = disk->name),
            "Disk '%s' is %s%s%s", disk->name, varve_disk_state_name(state), reason[0] ? ": " : "",
            reason);
    if (degraded[0])
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .disk = disk->name),
                        "Disk '%s' is degraded: %s", disk->name, degraded);
    else if (disk->degraded[0])
        varve_log_about(VARVE_ABOUT(.disk = disk->name), "Disk '%s' is not degraded any more",
                        disk->name);
    disk->state = state;
    snprintf(disk->degraded, sizeof(disk->degraded), "%s", degraded);
    varve_events_send(disk->daemon->events, "DISK_STATE_CHANGED",
                      json_pack("{s:s, s:s, s:b, s:s*}", "disk", disk->name, "state",
                                varve_disk_state_name(state), "degraded", degraded[0] != '\0',
                                "reason", disk->reason[0]   ? disk->reason
                                          : disk->degraded[0] ? disk->degraded
                                                              : NULL));
}

/* Logged once, not at every attempt; of a private one it is its state, which is logged. */
static void disk_note_link_error(struct varve_disk *disk, const char *msg)
{
    char prefix[VARVE_NAME_MAX + 16], *reason = disk->link_error;
    int len = snprintf(prefix, sizeof(prefix), "Disk '%s': ", disk->name);

    if (strncmp(msg, prefix, (size_t)len) == 0)
        msg += len; /* where it will stand, the disk is named */
    if (!disk->private && strncmp(reason, msg, sizeof(disk->link_error) - 1) != 0)
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .disk = disk->name),
                        "Disk '%s': %s", disk->name, msg);
    snprintf(reason, sizeof(disk->link_error), "%.255s", msg);
}

/* What is not there for want of memory or descriptors may be there all the same. */
static void disk_note_shortage(struct varve_disk *disk, const struct varve_err *err)
{
    if (varve_err_is_shortage(err->code))
        disk->starved = true;
}

static void disk_try_peer(struct varve_disk *disk)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_peer_hello hello;
    int rc;

    if (monotonic_ns(disk) < disk->retry_ns)
        return;
    disk->private = false;
    rc = varve_peer_open(disk->name, &disk->paths, &disk->identity,
                         varve_clerk_stop_fd(disk->daemon->clerk), HELLO_TIMEOUT_MS, &disk->peer,
                         &hello, &err);
    if (rc == 0) {
        rc = disk_use_page(disk, hello.ctl_fd, hello.image_fd, &err);
        if (rc < 0) {
            varve_peer_free(disk->peer);
            disk->peer = NULL;
        }
    }
    if (rc < 0) {
        if (rc == -ENOENT || rc == -ECONNREFUSED) {
            disk->link_error[0] = '\0';
            return;
        }
        disk_note_shortage(disk, &err);
        disk->private = rc == -VARVE_LINK_PRIVATE;
        disk->retry_ns = monotonic_ns(disk) + (disk->private ? PRIVATE_RETRY_NS : RETRY_NS);
        disk_note_link_error(disk, err.msg);
        return;
    }
    disk->link_error[0] = '\0';
    disk->plugin_pid = hello.pid;
    disk->freeze_timeout_ms = hello.freeze_timeout_ms;
    disk->durable = hello.durable;
    disk->scratch_max = hello.scratch_max;
    varve_log_about(VARVE_ABOUT(.disk = disk->name), "Disk '%s': served by process %d", disk->name,
                    disk->plugin_pid);
    /* Dying between a boundary and its seal must not look like a map that is gone. */
    if (varve_boundary_seal(disk, &err) < 0)
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .disk = disk->name), "%s",
                        err.msg); /* tried again at the next boundary */
}

/* The page that we read is still the one in the runtime directory, and the image the one at its
 * path, if there is any. */
static bool disk_source_is_current(struct varve_disk *disk)
{
    struct varve_ctl_head head;
    struct stat st;

    if (!disk->source || varve_source_head(disk->source, &head, NULL) < 0)
        return false;
    return stat(disk->identity.image, &st) < 0 || image_is(&disk->image, &st);
}

void varve_disk_refresh(struct varve_disk *disk)
{
    struct varve_err err = VARVE_ERR_INIT, unsaid = VARVE_ERR_INIT;
    char doubt[sizeof(disk->reason)], degraded[sizeof(disk->degraded)];
    struct stat st;

    disk->starved = false;
    if (!disk->known) {
        if (varve_identity_read(disk->daemon->w, &disk->paths, &disk->identity, &err) < 0) {
            disk_note_shortage(disk, &err);
            disk_set_state(disk, VARVE_DISK_INCONSISTENT, err.msg, "");
            return;
        }
        disk->known = true;
    }
    if (disk->peer && varve_peer_lost(disk->peer)) {
        varve_log_about(VARVE_ABOUT(.disk = disk->name),
                        "Disk '%s': process %d no longer serves it", disk->name, disk->plugin_pid);
        varve_peer_free(disk->peer);
        disk->peer = NULL;
    }
    if (!disk->peer)
        disk_try_peer(disk);
    if (!disk->peer && !disk_source_is_current(disk))
        varve_disk_open_source(disk, &unsaid); /* no page yet: a boundary makes one */
    disk_note_shortage(disk, &unsaid);
    varve_disk_check_folder(disk);
    varve_disk_check_image(disk);
    if (disk->source && varve_disk_fetch_epochs(disk, varve_disk_oldest_view(disk), &err) < 0 &&
        err.code != ESTALE)
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .disk = disk->name),
                        "Disk '%s': cannot get the files of its epochs: %s", disk->name, err.msg);
    disk_note_shortage(disk, &err);

    varve_disk_trouble(disk, degraded, sizeof(degraded));
    if (varve_disk_check_older(disk, &err) < 0)
        disk_set_state(disk, VARVE_DISK_INCONSISTENT, err.msg, degraded);
    else if (varve_disk_is_doubted(disk, doubt, sizeof(doubt)))
        disk_set_state(disk, VARVE_DISK_INCONSISTENT, doubt, degraded);
    else if (disk->peer || disk->private)
        disk_set_state(disk, VARVE_DISK_LIVE, "", degraded);
    else if (stat(disk->identity.image, &st) < 0) {
        varve_err_sys(&err, errno, "cannot find its image %s", disk->identity.image);
        disk_set_state(disk, VARVE_DISK_MISSING, err.msg, degraded);
    } else if (varve_disk_size_differs(disk, &st, doubt, sizeof(doubt))) {
        disk_set_state(disk, VARVE_DISK_INCONSISTENT, doubt, degraded);
    } else {
        disk_set_state(disk, VARVE_DISK_OFFLINE, disk->link_error, degraded);
    }
}
