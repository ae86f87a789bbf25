/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/fault-world.h"

#include <errno.h>
#include <string.h>

static struct fault_world *self(struct varve_world *w)
{
    return (struct fault_world *)((char *)w - offsetof(struct fault_world, world));
}

/* Counts the call and says what becomes of it: 0, it goes on, or its error. */
static int enter(struct fault_world *f, enum fault_call kind)
{
    void (*gate)(void *arg) = NULL;
    bool hit;
    int rc = 0;

    pthread_mutex_lock(&f->lock);
    f->calls[kind]++;
    f->calls[FAULT_ANY]++;
    hit = (f->kind == FAULT_ANY || f->kind == kind) && f->calls[f->kind] == f->at;
    if (hit && f->action != FAULT_NOTHING)
        f->fired = true;
    if (hit && f->action == FAULT_CRASH)
        f->crashed = true;
    if (hit && f->action == FAULT_GATE)
        gate = f->gate;
    if (f->crashed)
        rc = -EIO;
    else if (hit && f->action == FAULT_FAIL)
        rc = -f->errnum;
    else if (f->action == FAULT_FAIL_ALWAYS && f->fired &&
             (f->kind == FAULT_ANY || f->kind == kind))
        rc = -f->errnum;
    pthread_mutex_unlock(&f->lock);
    if (gate)
        gate(f->gate_arg);
    return rc;
}

static int fault_open(struct varve_world *w, const char *path, int flags, mode_t mode)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_OPEN);

    return rc < 0 ? rc : f->inner->open(f->inner, path, flags, mode);
}

static int fault_close(struct varve_world *w, int fd)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_CLOSE);
    /* Also of the dead, or tests would run out of them. */
    int done = f->inner->close(f->inner, fd);

    return rc < 0 ? rc : done;
}

static ssize_t note_read(struct fault_world *f, ssize_t got)
{
    if (got > 0) {
        pthread_mutex_lock(&f->lock);
        f->bytes_read += (uint64_t)got;
        pthread_mutex_unlock(&f->lock);
    }
    return got;
}

static ssize_t fault_pread(struct varve_world *w, int fd, void *buf, size_t len, uint64_t off)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_PREAD);

    return rc < 0 ? rc : note_read(f, f->inner->pread(f->inner, fd, buf, len, off));
}

static ssize_t fault_pread_quiet(struct varve_world *w, int fd, void *buf, size_t len, uint64_t off)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_PREAD);

    return rc < 0 ? rc : note_read(f, f->inner->pread_quiet(f->inner, fd, buf, len, off));
}

/* Counts as the same kind of call: nothing of it is told that is not told of pread. */
static ssize_t fault_pread_now(struct varve_world *w, int fd, void *buf, size_t len, uint64_t off)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_PREAD);

    return rc < 0 ? -EAGAIN : f->inner->pread_now(f->inner, fd, buf, len, off);
}

static int fault_pwrite(struct varve_world *w, int fd, const void *buf, size_t len, uint64_t off)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_PWRITE);

    return rc < 0 ? rc : f->inner->pwrite(f->inner, fd, buf, len, off);
}

static int fault_allocate(struct varve_world *w, int fd, uint64_t off, uint64_t len)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_ALLOCATE);

    return rc < 0 ? rc : f->inner->allocate(f->inner, fd, off, len);
}

static int fault_truncate(struct varve_world *w, int fd, uint64_t len)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_TRUNCATE);

    return rc < 0 ? rc : f->inner->truncate(f->inner, fd, len);
}

static int fault_punch(struct varve_world *w, int fd, uint64_t off, uint64_t len)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_PUNCH);

    return rc < 0 ? rc : f->inner->punch(f->inner, fd, off, len);
}

static ssize_t fault_copy(struct varve_world *w, int from, uint64_t from_off, int to,
                          uint64_t to_off, size_t len)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_COPY);

    return rc < 0 ? rc : f->inner->copy(f->inner, from, from_off, to, to_off, len);
}

static int64_t fault_seek_data(struct varve_world *w, int fd, uint64_t off)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_SEEK_DATA);

    return rc < 0 ? rc : f->inner->seek_data(f->inner, fd, off);
}

static int64_t fault_seek_hole(struct varve_world *w, int fd, uint64_t off)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_SEEK_HOLE);

    return rc < 0 ? rc : f->inner->seek_hole(f->inner, fd, off);
}

static int fault_sync(struct varve_world *w, int fd)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_SYNC);

    return rc < 0 ? rc : f->inner->sync(f->inner, fd);
}

static int fault_written_back(struct varve_world *w, int fd)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_WRITTEN_BACK);

    return rc < 0 ? rc : f->inner->written_back(f->inner, fd);
}

static int fault_room(struct varve_world *w, int fd, uint64_t *total, uint64_t *free)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_ROOM);

    return rc < 0 ? rc : f->inner->room(f->inner, fd, total, free);
}

static int fault_sync_all(struct varve_world *w, int fd)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_SYNC);

    return rc < 0 ? rc : f->inner->sync_all(f->inner, fd);
}

static int fault_device(struct varve_world *w, uint64_t rdev, struct varve_device *d)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_STAT);

    return rc < 0 ? rc : f->inner->device(f->inner, rdev, d);
}

static int fault_stat(struct varve_world *w, int fd, struct varve_stat *st)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_STAT);

    return rc < 0 ? rc : f->inner->stat(f->inner, fd, st);
}

static int fault_map(struct varve_world *w, int fd, size_t len, void **addr)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_MAP);

    return rc < 0 ? rc : f->inner->map(f->inner, fd, len, addr);
}

static int fault_unmap(struct varve_world *w, void *addr, size_t len)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_UNMAP);
    /* Also of the dead, or tests would run out of them. */
    int done = f->inner->unmap(f->inner, addr, len);

    return rc < 0 ? rc : done;
}

static int fault_lock(struct varve_world *w, int fd, bool exclusive)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_LOCK);

    return rc < 0 ? rc : f->inner->lock(f->inner, fd, exclusive);
}

static int fault_mkdir(struct varve_world *w, const char *path, mode_t mode)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_MKDIR);

    return rc < 0 ? rc : f->inner->mkdir(f->inner, path, mode);
}

static int fault_rename(struct varve_world *w, const char *from, const char *to)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_RENAME);

    return rc < 0 ? rc : f->inner->rename(f->inner, from, to);
}

static int fault_rename_new(struct varve_world *w, const char *from, const char *to)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_RENAME);

    return rc < 0 ? rc : f->inner->rename_new(f->inner, from, to);
}

static int fault_unlink(struct varve_world *w, const char *path)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_UNLINK);

    return rc < 0 ? rc : f->inner->unlink(f->inner, path);
}

static int fault_sync_dir(struct varve_world *w, const char *path)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_SYNC_DIR);

    return rc < 0 ? rc : f->inner->sync_dir(f->inner, path);
}

static int fault_list(struct varve_world *w, const char *path,
                      int (*each)(void *arg, const char *name), void *arg)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_LIST);

    return rc < 0 ? rc : f->inner->list(f->inner, path, each, arg);
}

static int fault_random(struct varve_world *w, void *buf, size_t len)
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_RANDOM);

    return rc < 0 ? rc : f->inner->random(f->inner, buf, len);
}

static int fault_boot_id(struct varve_world *w, uint8_t id[16])
{
    struct fault_world *f = self(w);
    int rc = enter(f, FAULT_BOOT_ID);

    return rc < 0 ? rc : f->inner->boot_id(f->inner, id);
}

static uint64_t fault_realtime_ns(struct varve_world *w)
{
    struct fault_world *f = self(w);

    return f->inner->realtime_ns(f->inner);
}

static uint64_t fault_monotonic_ns(struct varve_world *w)
{
    struct fault_world *f = self(w);

    return f->inner->monotonic_ns(f->inner);
}

static uint64_t fault_file_clock_ns(struct varve_world *w)
{
    struct fault_world *f = self(w);

    return f->inner->file_clock_ns(f->inner);
}

static void fault_wait_ns(struct varve_world *w, uint64_t ns)
{
    struct fault_world *f = self(w);

    f->inner->wait_ns(f->inner, ns);
}

static uint64_t fault_uptime_ns(struct varve_world *w)
{
    struct fault_world *f = self(w);

    return f->inner->uptime_ns(f->inner);
}

void fault_world_init(struct fault_world *f, struct varve_world *inner)
{
    memset(f, 0, sizeof(*f));
    f->inner = inner;
    pthread_mutex_init(&f->lock, NULL);
    f->world = (struct varve_world){
        .open = fault_open,
        .close = fault_close,
        .pread = fault_pread,
        .pread_now = fault_pread_now,
        .pread_quiet = fault_pread_quiet,
        .pwrite = fault_pwrite,
        .allocate = fault_allocate,
        .truncate = fault_truncate,
        .punch = fault_punch,
        .copy = fault_copy,
        .seek_data = fault_seek_data,
        .seek_hole = fault_seek_hole,
        .sync = fault_sync,
        .written_back = fault_written_back,
        .room = fault_room,
        .sync_all = fault_sync_all,
        .device = fault_device,
        .file_clock_ns = fault_file_clock_ns,
        .wait_ns = fault_wait_ns,
        .uptime_ns = fault_uptime_ns,
        .stat = fault_stat,
        .map = fault_map,
        .unmap = fault_unmap,
        .lock = fault_lock,
        .mkdir = fault_mkdir,
        .rename = fault_rename,
        .rename_new = fault_rename_new,
        .unlink = fault_unlink,
        .sync_dir = fault_sync_dir,
        .list = fault_list,
        .random = fault_random,
        .boot_id = fault_boot_id,
        .realtime_ns = fault_realtime_ns,
        .monotonic_ns = fault_monotonic_ns,
    };
}

void fault_world_fini(struct fault_world *f)
{
    pthread_mutex_destroy(&f->lock);
}

static void arm(struct fault_world *f, enum fault_action action, enum fault_call kind, uint64_t n)
{
    memset(f->calls, 0, sizeof(f->calls));
    f->action = action;
    f->kind = kind;
    f->at = n;
    f->fired = false;
    f->crashed = false;
    f->bytes_read = 0;
}

void fault_fail_at(struct fault_world *f, enum fault_call kind, uint64_t n, int errnum)
{
    pthread_mutex_lock(&f->lock);
    arm(f, FAULT_FAIL, kind, n);
    f->errnum = errnum;
    pthread_mutex_unlock(&f->lock);
}

void fault_fail_from(struct fault_world *f, enum fault_call kind, uint64_t n, int errnum)
{
    pthread_mutex_lock(&f->lock);
    arm(f, FAULT_FAIL_ALWAYS, kind, n);
    f->errnum = errnum;
    pthread_mutex_unlock(&f->lock);
}

void fault_crash_at(struct fault_world *f, enum fault_call kind, uint64_t n)
{
    pthread_mutex_lock(&f->lock);
    arm(f, FAULT_CRASH, kind, n);
    pthread_mutex_unlock(&f->lock);
}

void fault_gate_at(struct fault_world *f, enum fault_call kind, uint64_t n, void (*gate)(void *arg),
                   void *arg)
{
    pthread_mutex_lock(&f->lock);
    arm(f, FAULT_GATE, kind, n);
    f->gate = gate;
    f->gate_arg = arg;
    pthread_mutex_unlock(&f->lock);
}

void fault_disarm(struct fault_world *f)
{
    pthread_mutex_lock(&f->lock);
    arm(f, FAULT_NOTHING, FAULT_ANY, 0);
    pthread_mutex_unlock(&f->lock);
}

bool fault_fired(struct fault_world *f)
{
    bool fired;

    pthread_mutex_lock(&f->lock);
    fired = f->fired;
    pthread_mutex_unlock(&f->lock);
    return fired;
}

uint64_t fault_calls(struct fault_world *f, enum fault_call kind)
{
    uint64_t calls;

    pthread_mutex_lock(&f->lock);
    calls = f->calls[kind];
    pthread_mutex_unlock(&f->lock);
    return calls;
}

uint64_t fault_bytes_read(struct fault_world *f)
{
    uint64_t bytes;

    pthread_mutex_lock(&f->lock);
    bytes = f->bytes_read;
    pthread_mutex_unlock(&f->lock);
    return bytes;
}
