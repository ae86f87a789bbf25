/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The machine's own world: Linux system calls, with what they leave to the caller done here (short
 * transfers, interruptions, sizes of block devices).  An error of sync is never retried: the kernel
 * tells it once and the next call would say that all is well.
 */
#include "lib/world.h"

#include "lib/bulk.h"
#include "lib/parse.h"
#include "lib/quiet-io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define UNUSED __attribute__((unused))

#define NS_PER_SEC 1000000000

/* Bytes that allocate() copies at once where the file system cannot allocate. */
#define FILL_CHUNK 65536u

static bool range_fits_off_t(uint64_t off, uint64_t len)
{
    return off <= INT64_MAX && len <= (uint64_t)INT64_MAX - off;
}

static int posix_open(UNUSED struct varve_world *w, const char *path, int flags, mode_t mode)
{
    int fd;

    do
        fd = open(path, flags | O_CLOEXEC, mode);
    while (fd < 0 && errno == EINTR);
    return fd < 0 ? -errno : fd;
}

static int posix_close(UNUSED struct varve_world *w, int fd)
{
    /* On Linux the descriptor is gone after EINTR too. */
    if (close(fd) < 0 && errno != EINTR)
        return -errno;
    return 0;
}

static ssize_t posix_pread(UNUSED struct varve_world *w, int fd, void *buf, size_t len,
                           uint64_t off)
{
    if (len > SSIZE_MAX || !range_fits_off_t(off, len))
        return -EINVAL;
    return varve_pread_all(fd, buf, len, off, 0);
}

/* Files on tmpfs are memory, but do not take the flag. */
static bool is_memory(int fd)
{
    struct statfs fs;

    return fstatfs(fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC;
}

static ssize_t posix_pread_now(struct varve_world *w, int fd, void *buf, size_t len, uint64_t off)
{
    ssize_t n;

    if (len > SSIZE_MAX || !range_fits_off_t(off, len))
        return -EINVAL;
    n = varve_quiet_pread_now(fd, buf, len, off);
    if (n == (ssize_t)len)
        return n;
    if (n == -EOPNOTSUPP && is_memory(fd))
        return posix_pread(w, fd, buf, len, off);
    return -EAGAIN; /* a part is as good as none, and errors are told by who may wait */
}

static ssize_t posix_pread_quiet(struct varve_world *w, int fd, void *buf, size_t len, uint64_t off)
{
    return len > VARVE_QUIET_MAX ? posix_pread(w, fd, buf, len, off)
                                 : varve_quiet_pread(fd, buf, len, off);
}

static int posix_pwrite(UNUSED struct varve_world *w, int fd, const void *buf, size_t len,
                        uint64_t off)
{
    size_t done = 0;

    if (!range_fits_off_t(off, len))
        return -EFBIG;
    while (done < len) {
        ssize_t n = pwrite(fd, (const char *)buf + done, len - done, (off_t)(off + done));

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return -ENOSPC; /* the end of a block device */
        done += (size_t)n;
    }
    return 0;
}

/* Writes what is there already, and zeroes behind the end: real blocks, same content. */
static int posix_fill(struct varve_world *w, int fd, uint64_t off, uint64_t len)
{
    char *buf = malloc(FILL_CHUNK);
    int rc = 0;

    if (!buf)
        return -ENOMEM;
    while (len > 0 && rc == 0) {
        size_t chunk = len < FILL_CHUNK ? (size_t)len : FILL_CHUNK;
        ssize_t got = posix_pread(w, fd, buf, chunk, off);

        if (got < 0) {
            rc = (int)got;
            break;
        }
        memset(buf + got, 0, chunk - (size_t)got);
        rc = posix_pwrite(w, fd, buf, chunk, off);
        off += chunk;
        len -= chunk;
    }
    free(buf);
    return rc;
}

/* On tmpfs the kernel clears each page. */
static int posix_allocate(struct varve_world *w, int fd, uint64_t off, uint64_t len)
{
    struct varve_bulk bulk = {.bytes = 0};

    if (!range_fits_off_t(off, len))
        return -EFBIG;
    while (len > 0) {
        uint64_t piece = len < VARVE_BULK_PIECE ? len : VARVE_BULK_PIECE;

        if (fallocate(fd, 0, (off_t)off, (off_t)piece) == 0) {
            off += piece;
            len -= piece;
            varve_bulk_worked(&bulk, piece);
        } else if (errno != EINTR) {
            return errno == EOPNOTSUPP ? posix_fill(w, fd, off, len) : -errno;
        }
    }
    return 0;
}

static int posix_truncate(UNUSED struct varve_world *w, int fd, uint64_t len)
{
    int rc;

    if (!range_fits_off_t(0, len))
        return -EFBIG;
    do
        rc = ftruncate(fd, (off_t)len);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : 0;
}

static int posix_punch(UNUSED struct varve_world *w, int fd, uint64_t off, uint64_t len)
{
    int rc;

    if (len == 0)
        return 0;
    if (!range_fits_off_t(off, len))
        return -EFBIG;
    do
        rc = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : 0;
}

static ssize_t posix_copy(UNUSED struct varve_world *w, int from, uint64_t from_off, int to,
                          uint64_t to_off, size_t len)
{
    ssize_t n;

    if (!range_fits_off_t(from_off, len) || !range_fits_off_t(to_off, len))
        return -EFBIG;
    do {
        off64_t in = (off64_t)from_off, out = (off64_t)to_off;

        n = copy_file_range(from, &in, to, &out, len, 0);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

static int64_t posix_seek(int fd, uint64_t off, int whence)
{
    off_t at;

    if (!range_fits_off_t(off, 0))
        return -ENXIO;
    at = lseek(fd, (off_t)off, whence);
    return at < 0 ? -errno : at;
}

static int64_t posix_seek_data(UNUSED struct varve_world *w, int fd, uint64_t off)
{
    return posix_seek(fd, off, SEEK_DATA);
}

static int64_t posix_seek_hole(UNUSED struct varve_world *w, int fd, uint64_t off)
{
    return posix_seek(fd, off, SEEK_HOLE);
}

static int posix_sync(UNUSED struct varve_world *w, int fd)
{
    int rc;

    do
        rc = fdatasync(fd);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : 0;
}

/* Waiting for the pages of a range looks at the file's error too, and so far out there are no pages. */
static int posix_written_back(UNUSED struct varve_world *w, int fd)
{
    int rc = sync_file_range(fd, INT64_MAX - 8191, 4096, SYNC_FILE_RANGE_WAIT_BEFORE);

    return rc < 0 && errno != ESPIPE ? -errno : 0;
}

static int posix_room(UNUSED struct varve_world *w, int fd, uint64_t *total, uint64_t *free)
{
    struct statvfs fs;

    if (fstatvfs(fd, &fs) < 0)
        return -errno;
    *total = (uint64_t)fs.f_blocks * fs.f_frsize;
    *free = (uint64_t)fs.f_bavail * fs.f_frsize;
    return 0;
}

static int posix_sync_all(UNUSED struct varve_world *w, int fd)
{
    int rc;

    do
        rc = fsync(fd);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : 0;
}

static int posix_stat(UNUSED struct varve_world *w, int fd, struct varve_stat *st)
{
    struct stat s;

    if (fstat(fd, &s) < 0)
        return -errno;
    st->size = (uint64_t)s.st_size;
    if (S_ISBLK(s.st_mode)) {
        uint64_t size;

        if (ioctl(fd, BLKGETSIZE64, &size) < 0)
            return -errno;
        st->size = size;
    }
    st->dev = s.st_dev;
    st->ino = s.st_ino;
    st->nlink = s.st_nlink;
    st->mtime_ns = (int64_t)s.st_mtim.tv_sec * NS_PER_SEC + s.st_mtim.tv_nsec;
    st->rdev = S_ISBLK(s.st_mode) ? s.st_rdev : 0;
    st->mode = s.st_mode;
    return 0;
}

/* A file of sysfs, with a NUL behind it.  Bytes or -errno. */
static ssize_t sysfs_read(struct varve_world *w, uint64_t rdev, const char *name, char *text,
                          size_t size)
{
    char path[96];
    ssize_t got;
    int fd;

    snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s", major((dev_t)rdev),
             minor((dev_t)rdev), name);
    fd = posix_open(w, path, O_RDONLY, 0);
    if (fd < 0)
        return fd;
    got = posix_pread(w, fd, text, size - 1, 0);
    posix_close(w, fd);
    if (got >= 0)
        text[got] = '\0';
    return got;
}

/* Partitions have no diskseq of their own: their disk has. */
static int posix_device(struct varve_world *w, uint64_t rdev, struct varve_device *d)
{
    unsigned long long n[15] = {0};
    char text[512], *at = text, *end;
    unsigned fields = 0;
    ssize_t got;

    *d = (struct varve_device){0, 0};
    got = sysfs_read(w, rdev, "diskseq", text, sizeof(text));
    if (got == -ENOENT)
        got = sysfs_read(w, rdev, "../diskseq", text, sizeof(text));
    if (got > 0)
        d->diskseq = strtoull(text, NULL, 10);
    got = sysfs_read(w, rdev, "stat", text, sizeof(text));
    if (got < 0)
        return (int)got;
    for (; fields < 15; fields++, at = end) {
        n[fields] = strtoull(at, &end, 10);
        if (end == at)
            break;
    }
    if (fields < 7)
        return -EOPNOTSUPP;
    d->sectors = n[6] + n[13]; /* written, and discarded (since 4.18) */
    return 0;
}

static int posix_map(UNUSED struct varve_world *w, int fd, size_t len, void **addr)
{
    void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (p == MAP_FAILED)
        return -errno;
    *addr = p;
    return 0;
}

static int posix_unmap(UNUSED struct varve_world *w, void *addr, size_t len)
{
    struct varve_bulk bulk = {.bytes = 0};

    /* Also because a guest's first touch of another page waits for it. */
    while (len > 0) {
        size_t piece = len < VARVE_BULK_PIECE ? len : VARVE_BULK_PIECE;

        if (munmap(addr, piece) < 0)
            return -errno;
        addr = (char *)addr + piece;
        len -= piece;
        varve_bulk_worked(&bulk, piece);
    }
    return 0;
}

static int posix_lock(UNUSED struct varve_world *w, int fd, bool exclusive)
{
    struct flock lock = {
        .l_type = exclusive ? F_WRLCK : F_RDLCK,
        .l_whence = SEEK_SET,
    };

    if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
        return 0;
    return errno == EACCES ? -EAGAIN : -errno;
}

static int posix_mkdir(UNUSED struct varve_world *w, const char *path, mode_t mode)
{
    return mkdir(path, mode) < 0 ? -errno : 0;
}

static int posix_rename(UNUSED struct varve_world *w, const char *from, const char *to)
{
    return rename(from, to) < 0 ? -errno : 0;
}

/* Some network file systems know of links only. */
static int posix_rename_new(UNUSED struct varve_world *w, const char *from, const char *to)
{
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0)
        return 0;
    if (errno != EINVAL && errno != ENOSYS)
        return -errno;
    if (link(from, to) < 0)
        return -errno;
    return unlink(from) < 0 ? -errno : 0;
}

static int posix_unlink(UNUSED struct varve_world *w, const char *path)
{
    return unlink(path) < 0 ? -errno : 0;
}

static int posix_sync_dir(struct varve_world *w, const char *path)
{
    int fd = posix_open(w, path, O_RDONLY | O_DIRECTORY, 0);
    int rc;

    if (fd < 0)
        return fd;
    do
        rc = fsync(fd);
    while (rc < 0 && errno == EINTR);
    rc = rc < 0 ? -errno : 0;
    posix_close(w, fd);
    return rc;
}

static int posix_list(UNUSED struct varve_world *w, const char *path,
                      int (*each)(void *arg, const char *name), void *arg)
{
    DIR *dir = opendir(path);
    int rc = 0;

    if (!dir)
        return -errno;
    while (rc == 0) {
        struct dirent *entry;

        errno = 0;
        entry = readdir(dir);
        if (!entry) {
            rc = -errno;
            break;
        }
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            rc = each(arg, entry->d_name);
    }
    closedir(dir);
    return rc;
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec ts;

    clock_gettime(clock, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

static uint64_t posix_realtime_ns(UNUSED struct varve_world *w)
{
    return clock_ns(CLOCK_REALTIME);
}

static uint64_t posix_monotonic_ns(UNUSED struct varve_world *w)
{
    return clock_ns(CLOCK_MONOTONIC);
}

static uint64_t posix_file_clock_ns(UNUSED struct varve_world *w)
{
    return clock_ns(CLOCK_REALTIME_COARSE);
}

static uint64_t posix_uptime_ns(UNUSED struct varve_world *w)
{
    return clock_ns(CLOCK_BOOTTIME);
}

static void posix_wait_ns(UNUSED struct varve_world *w, uint64_t ns)
{
    struct timespec ts = {(time_t)(ns / NS_PER_SEC), (long)(ns % NS_PER_SEC)};

    nanosleep(&ts, NULL);
}

static int posix_random(UNUSED struct varve_world *w, void *buf, size_t len)
{
    size_t done = 0;

    while (done < len) {
        ssize_t n = getrandom((char *)buf + done, len - done, 0);

        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0)
            done += (size_t)n;
    }
    return 0;
}

static int posix_boot_id(struct varve_world *w, uint8_t id[16])
{
    char text[36]; /* 32 hex digits and four dashes */
    int fd = posix_open(w, "/proc/sys/kernel/random/boot_id", O_RDONLY, 0);
    ssize_t got;
    unsigned digits = 0;

    if (fd < 0)
        return fd;
    got = posix_pread(w, fd, text, sizeof(text), 0);
    posix_close(w, fd);
    if (got < 0)
        return (int)got;
    memset(id, 0, 16);
    for (ssize_t i = 0; i < got; i++) {
        int digit = varve_parse_hex_digit(text[i]);

        if (digit < 0)
            continue;
        id[digits / 2] = (uint8_t)(id[digits / 2] << 4 | digit);
        digits++;
        if (digits == 32)
            return 0;
    }
    return -EIO;
}

struct varve_world *varve_world_posix(void)
{
    static struct varve_world world = {
        .open = posix_open,
        .close = posix_close,
        .pread = posix_pread,
        .pread_now = posix_pread_now,
        .pread_quiet = posix_pread_quiet,
        .pwrite = posix_pwrite,
        .allocate = posix_allocate,
        .truncate = posix_truncate,
        .punch = posix_punch,
        .copy = posix_copy,
        .seek_data = posix_seek_data,
        .seek_hole = posix_seek_hole,
        .sync = posix_sync,
        .written_back = posix_written_back,
        .room = posix_room,
        .sync_all = posix_sync_all,
        .device = posix_device,
        .file_clock_ns = posix_file_clock_ns,
        .wait_ns = posix_wait_ns,
        .uptime_ns = posix_uptime_ns,
        .stat = posix_stat,
        .map = posix_map,
        .unmap = posix_unmap,
        .lock = posix_lock,
        .mkdir = posix_mkdir,
        .rename = posix_rename,
        .rename_new = posix_rename_new,
        .unlink = posix_unlink,
        .sync_dir = posix_sync_dir,
        .list = posix_list,
        .realtime_ns = posix_realtime_ns,
        .monotonic_ns = posix_monotonic_ns,
        .random = posix_random,
        .boot_id = posix_boot_id,
    };

    return &world;
}
