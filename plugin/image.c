/* SPDX-License-Identifier: BSD-3-Clause */
#include "plugin/image.h"

#include "lib/disk-lock.h"
#include "lib/world.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static int image_in_use(const char *path, const char *state_dir, struct varve_err *err)
{
    struct varve_disk_holder h;

    if (varve_disk_lock_find(varve_world_posix(), state_dir, path, &h))
        return varve_err_set(err, EBUSY, "image %s is in use: %s, pid %d, serves it", path, h.role,
                             h.pid);
    return varve_err_set(err, EBUSY, "image %s is in use: another process has it locked", path);
}

/* Looks at it once it is ours: until then varved may be resizing it. */
static int image_take(struct varve_image *im, const char *path, const char *state_dir,
                      struct varve_stat *st, struct varve_err *err)
{
    struct varve_world *w = varve_world_posix();
    int r = w->lock(w, im->fd, im->writable);

    if (r == -EAGAIN)
        return image_in_use(path, state_dir, err);
    if (r < 0)
        return varve_err_sys(err, -r, "cannot lock image %s", path);
    r = w->stat(w, im->fd, st);
    if (r < 0)
        return varve_err_sys(err, -r, "cannot stat image %s", path);
    if (!S_ISREG(st->mode) && !S_ISBLK(st->mode))
        return varve_err_set(err, EINVAL, "image %s is neither a file nor a block device", path);
    return 0;
}

int varve_image_open(struct varve_image *im, const char *path, const char *state_dir,
                     struct varve_err *err)
{
    struct varve_world *w = varve_world_posix();
    struct varve_stat st;
    int r;

    im->writable = true;
    im->fd = w->open(w, path, O_RDWR, 0);
    if (im->fd == -EACCES || im->fd == -EPERM || im->fd == -EROFS) {
        im->writable = false;
        im->fd = w->open(w, path, O_RDONLY, 0);
    }
    if (im->fd < 0)
        return varve_err_sys(err, -im->fd, "cannot open image %s", path);
    r = image_take(im, path, state_dir, &st, err);
    if (r < 0) {
        w->close(w, im->fd);
        im->fd = -1;
        return r;
    }
    im->size = st.size;
    atomic_store(&im->can_punch, true);
    atomic_store(&im->can_zero_range, true);
    return 0;
}

void varve_image_close(struct varve_image *im)
{
    if (im->fd >= 0)
        close(im->fd);
    im->fd = -1;
}

int varve_image_reopen(const struct varve_image *im, struct varve_err *err)
{
    char path[64];
    int fd;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", im->fd);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd >= 0 ? fd : varve_err_sys(err, errno, "cannot open the image again, read-only");
}

int varve_image_read(struct varve_image *im, void *buf, uint32_t len, uint64_t off)
{
    while (len > 0) {
        ssize_t n = pread(im->fd, buf, len, (off_t)off);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return -EIO; /* the image has become shorter than the disk */
        buf = (char *)buf + n;
        off += (uint64_t)n;
        len -= (uint32_t)n;
    }
    return 0;
}

int varve_image_write(struct varve_image *im, const void *buf, uint32_t len, uint64_t off)
{
    while (len > 0) {
        ssize_t n = pwrite(im->fd, buf, len, (off_t)off);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        buf = (const char *)buf + n;
        off += (uint64_t)n;
        len -= (uint32_t)n;
    }
    return 0;
}

int varve_image_flush(struct varve_image *im)
{
    return fdatasync(im->fd) < 0 ? -errno : 0;
}

/* One fallocate, remembering in *can when the file system does not know it. */
static int image_fallocate(struct varve_image *im, int mode, uint64_t off, uint64_t len,
                           _Atomic bool *can)
{
    int r;

    if (!atomic_load_explicit(can, memory_order_relaxed))
        return -EOPNOTSUPP;
    do {
        r = fallocate(im->fd, mode, (off_t)off, (off_t)len) < 0 ? -errno : 0;
    } while (r == -EINTR);
    if (r == -EOPNOTSUPP || r == -ENODEV || r == -ENOSYS) {
        atomic_store_explicit(can, false, memory_order_relaxed);
        return -EOPNOTSUPP;
    }
    /* A device that wants whole sectors: this range only. */
    return r == -EINVAL ? -EOPNOTSUPP : r;
}

int varve_image_punch(struct varve_image *im, uint64_t off, uint64_t len)
{
    return image_fallocate(im, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, len,
                           &im->can_punch);
}

int varve_image_zero(struct varve_image *im, uint64_t off, uint64_t len)
{
    return image_fallocate(im, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, off, len,
                           &im->can_zero_range);
}
