/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A regular file or block device, through the page cache but without filling it: reads drop what
 * they brought in (quiet-io.h); what is written is sent to the disk at once, and waited for and
 * dropped RING ranges later.  So a big copy has few dirty pages, and its last flush is short.
 *
 * F1. An error of write-back is told once per description, and it may be a wait of ours that hears
 * it: that one is remembered, and every later write and flush tells it.
 */
#include "server/endpoint-pool.h"
#include "lib/quiet-io.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Written ranges that are on their way to the disk. */
#define RING 32u

/* Zeroes are made in steps of this, and written, where they have to be, in pieces. */
#define ZERO_STEP  (UINT64_C(1) << 30)
#define ZERO_PIECE (256u * 1024u)

/* Asking a file system where holes are holds locks that a writer of the file needs: after so long …
 */
#define SEEK_BUSY_NS UINT64_C(100000)
/* … others get so long; and one request asks no longer than that. */
#define SEEK_PAUSE_NS 1000000L
#define SEEK_ASK_NS   UINT64_C(50000000)

struct range {
    uint64_t off, len; /* len 0: none */
};

struct file {
    struct varve_endpoint_pool p; /* first */
    int fd;
    bool write;
    _Atomic bool no_punch; /* the file system cannot */
    pthread_mutex_t lock;  /* guards the ring; a leaf */
    struct range ring[RING];
    unsigned next;
    _Atomic int wb_error; /* F1: a positive errno value */
    _Atomic uint64_t seek_busy_ns;
};

static struct file *of(struct varve_endpoint_pool *p)
{
    return (struct file *)p;
}

/* --- opening
 * ---------------------------------------------------------------------------------------- */

static int file_open(struct varve_endpoint_pool *p, struct varve_endpoint_info *info,
                     struct varve_err *err)
{
    struct file *f = of(p);
    struct stat st;
    off_t end;

    /* A FIFO that nobody writes to, say, would hold us up. */
    if (f->fd < 0)
        f->fd = open(p->e.name, (f->write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (f->fd < 0)
        return varve_err_sys(err, errno, "%.200s", p->e.name);
    if (fstat(f->fd, &st) != 0)
        return varve_err_sys(err, errno, "%.200s", p->e.name);
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return varve_err_set(err, EINVAL, "%.200s: neither a regular file nor a block device",
                             p->e.name);
    end = lseek(f->fd, 0, SEEK_END);
    if (end < 0)
        return varve_err_sys(err, errno, "%.200s: its size", p->e.name);
    varve_quiet_prepare(f->fd);
    *info = (struct varve_endpoint_info){
        .size = (uint64_t)end,
        .block_min = 1,
        .writable = f->write,
        .has_extents = S_ISREG(st.st_mode),
    };
    return 0;
}

/* --- reading
 * ---------------------------------------------------------------------------------------- */

static int file_read(struct file *f, struct varve_endpoint_req *req)
{
    ssize_t n = varve_quiet_pread(f->fd, req->buf, (size_t)req->len, req->off);

    if (n < 0)
        return varve_err_sys(&req->err, (int)-n, "%.200s: reading %" PRIu64 " bytes at %" PRIu64,
                             req->e->name, req->len, req->off);
    if ((uint64_t)n < req->len)
        return varve_err_set(&req->err, EIO,
                             "%.200s: it ends at %" PRIu64 ", it had %" PRIu64 " bytes",
                             req->e->name, req->off + (uint64_t)n, req->e->info.size);
    return 0;
}

/* --- writing
 * ---------------------------------------------------------------------------------------- */

static int file_failed_before(struct file *f, struct varve_endpoint_req *req)
{
    int code = f->wb_error;

    if (!code)
        return 0;
    return varve_err_sys(&req->err, code, "%.200s: what was written before did not get to the disk",
                         req->e->name);
}

/* The range is on its way; the one whose place it takes has to be there. */
static void file_settle(struct file *f, uint64_t off, uint64_t len)
{
    struct range old;

    sync_file_range(f->fd, (off_t)off, (off_t)len, SYNC_FILE_RANGE_WRITE);
    pthread_mutex_lock(&f->lock);
    old = f->ring[f->next];
    f->ring[f->next] = (struct range){off, len};
    f->next = (f->next + 1) % RING;
    pthread_mutex_unlock(&f->lock);
    if (old.len == 0)
        return;
    if (sync_file_range(f->fd, (off_t)old.off, (off_t)old.len,
                        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                            SYNC_FILE_RANGE_WAIT_AFTER) != 0 &&
        errno != ENOSYS && errno != EINVAL && errno != ESPIPE)
        f->wb_error = errno; /* F1 */
    posix_fadvise(f->fd, (off_t)old.off, (off_t)old.len, POSIX_FADV_DONTNEED);
}

static int file_pwrite(struct file *f, const void *buf, uint64_t off, uint64_t len)
{
    uint64_t done = 0;

    while (done < len) {
        ssize_t n =
            pwrite(f->fd, (const char *)buf + done, (size_t)(len - done), (off_t)(off + done));

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -ENOSPC; /* the end of a block device */
        done += (uint64_t)n;
    }
    file_settle(f, off, len);
    return 0;
}

static int file_write(struct file *f, struct varve_endpoint_req *req)
{
    int rc = file_failed_before(f, req);

    if (rc < 0)
        return rc;
    rc = file_pwrite(f, req->buf, req->off, req->len);
    if (rc < 0)
        return varve_err_sys(&req->err, -rc, "%.200s: writing %" PRIu64 " bytes at %" PRIu64,
                             req->e->name, req->len, req->off);
    return 0;
}

/* A discard would do on a file only: what a device reads as after one is anybody's guess, which is
 * why its PUNCH_HOLE is one that writes zeroes or fails. */
static int file_zero_range(struct file *f, uint64_t off, uint64_t len)
{
    static const char zeroes[ZERO_PIECE];
    int rc = 0;

    if (!f->no_punch) {
        if (fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len) ==
            0)
            return 0;
        if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL)
            return -errno;
        f->no_punch = true;
    }
    for (uint64_t done = 0; done < len && rc == 0; done += ZERO_PIECE)
        rc = f->p.stopping ? -ECANCELED
                           : file_pwrite(f, zeroes, off + done,
                                         len - done < ZERO_PIECE ? len - done : ZERO_PIECE);
    return rc;
}

static int file_zero(struct file *f, struct varve_endpoint_req *req)
{
    int rc = file_failed_before(f, req);

    while (rc == 0 && req->at < req->len) {
        uint64_t left = req->len - req->at, len = left < ZERO_STEP ? left : ZERO_STEP;

        rc = f->p.stopping ? -ECANCELED : file_zero_range(f, req->off + req->at, len);
        if (rc == -ECANCELED)
            return varve_endpoint_canceled(req->e, &req->err);
        if (rc < 0)
            return varve_err_sys(&req->err, -rc, "%.200s: zeroing %" PRIu64 " bytes at %" PRIu64,
                                 req->e->name, len, req->off + req->at);
        req->at += len;
    }
    return rc;
}

static int file_flush(struct file *f, struct varve_endpoint_req *req)
{
    int rc = file_failed_before(f, req);

    if (rc < 0)
        return rc;
    if (fsync(f->fd) != 0) {
        int code = errno;

        f->wb_error = code; /* F1 */
        return varve_err_sys(&req->err, code, "%.200s: syncing", req->e->name);
    }
    return file_failed_before(f, req);
}

/* --- holes
 * ------------------------------------------------------------------------------------------ */

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* lseek, with pauses between.  -ENXIO: none behind off. */
static int64_t file_seek(struct file *f, uint64_t off, int whence)
{
    uint64_t start = now_ns();
    off_t at = lseek(f->fd, (off_t)off, whence);
    int64_t found = at < 0 ? -errno : at;

    if (atomic_fetch_add(&f->seek_busy_ns, now_ns() - start) >= SEEK_BUSY_NS) {
        struct timespec pause = {.tv_nsec = SEEK_PAUSE_NS};

        atomic_store(&f->seek_busy_ns, 0);
        nanosleep(&pause, NULL);
    }
    return found;
}

static int file_extents(struct file *f, struct varve_endpoint_req *req)
{
    uint64_t end = req->off + req->len, at = req->off, start = now_ns();

    if (!req->e->info.has_extents) {
        varve_endpoint_add_extent(req, req->len, 0);
        return 0;
    }
    while (at < end) {
        int64_t found = file_seek(f, at, SEEK_DATA);
        bool hole = found == -ENXIO || (found > 0 && (uint64_t)found > at);
        uint64_t to = end;

        if (!hole && found >= 0)
            found = file_seek(f, at, SEEK_HOLE);
        if (found < 0 && found != -ENXIO) {
            if (req->nextents > 0)
                return 0; /* as far as it is known */
            return varve_err_sys(&req->err, (int)-found, "%.200s: looking for holes at %" PRIu64,
                                 req->e->name, at);
        }
        if (found > 0 && (uint64_t)found > at && (uint64_t)found < end)
            to = (uint64_t)found;
        if (!varve_endpoint_add_extent(
                req, to - at, hole ? VARVE_ENDPOINT_IS_ZERO | VARVE_ENDPOINT_IS_HOLE : 0) ||
            f->p.stopping || now_ns() - start >= SEEK_ASK_NS)
            break;
        at = to;
    }
    return 0;
}

/* --- the kind
 * ---------------------------------------------------------------------------------------- */

static int file_run(struct varve_endpoint_pool *p, struct varve_endpoint_req *req)
{
    switch (req->op) {
    case VARVE_ENDPOINT_READ:
        return file_read(of(p), req);
    case VARVE_ENDPOINT_WRITE:
        return file_write(of(p), req);
    case VARVE_ENDPOINT_ZERO:
        return file_zero(of(p), req);
    case VARVE_ENDPOINT_FLUSH:
        return file_flush(of(p), req);
    case VARVE_ENDPOINT_EXTENTS:
        return file_extents(of(p), req);
    }
    abort();
}

/* Of a file on the net that writes what is left. */
static void file_close(struct varve_endpoint_pool *p)
{
    if (of(p)->fd >= 0)
        close(of(p)->fd);
}

static void file_free(struct varve_endpoint *e)
{
    struct file *f = (struct file *)e;

    pthread_mutex_destroy(&f->lock);
    free(f);
}

static const struct varve_endpoint_ops file_ops = {
    .start = varve_endpoint_pool_start,
    .stop = varve_endpoint_pool_stop,
    .free = file_free,
};

int varve_endpoint_open_file(uv_loop_t *loop, const char *path, int fd,
                             const struct varve_endpoint_options *opts,
                             void (*opened)(void *arg, int rc, const struct varve_err *err),
                             void *arg, struct varve_endpoint **out, struct varve_err *err)
{
    struct file *f = calloc(1, sizeof(*f));

    *out = NULL;
    if (!f || varve_endpoint_init(&f->p.e, &file_ops, loop, path, opened, arg, err) < 0) {
        free(f);
        if (fd >= 0)
            close(fd);
        return varve_err_set(err, ENOMEM, "no memory for %.200s", path);
    }
    f->fd = fd;
    f->write = opts->write;
    pthread_mutex_init(&f->lock, NULL);
    f->p.open = file_open;
    f->p.run = file_run;
    f->p.close = file_close;
    varve_endpoint_pool_begin(&f->p);
    *out = &f->p.e;
    return 0;
}
