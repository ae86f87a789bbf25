/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Makes calls of a program that knows nothing of it fail: preloaded into nbdkit or varved, those on files
 * whose path holds a text get an error, as long as failing.py says so, which maps the same file:
 *
 *     FAIL_FILE   uint32_t error    0: nothing fails
 *                 uint32_t classes  bits of enum fail_class: which calls
 *                 uint32_t hits     counted by us: those that failed
 *                 char where[]      a part of the path
 *
 * Paths of descriptors are what /proc tells, so what was removed ends with " (deleted)".
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tests/e2e/orders.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum fail_class { FAIL_OPEN = 1, FAIL_READ = 2, FAIL_WRITE = 4, FAIL_SYNC = 8, FAIL_SPACE = 16, FAIL_NAME = 32 };

struct orders {
    uint32_t error, classes, hits;
    char where[1024];
};

ssize_t pwrite(int fd, const void *buf, size_t len, off_t off);
ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t off);
ssize_t pread(int fd, void *buf, size_t len, off_t off);
ssize_t pread64(int fd, void *buf, size_t len, off64_t off);
int fallocate(int fd, int mode, off_t off, off_t len);
int fallocate64(int fd, int mode, off64_t off, off64_t len);
int ftruncate(int fd, off_t len);
int ftruncate64(int fd, off64_t len);
int open(const char *path, int flags, ...);
int open64(const char *path, int flags, ...);

static struct orders *orders;

__attribute__((constructor)) static void fail_init(void)
{
    orders = orders_map("FAIL_FILE", sizeof(*orders));
}

static bool fails_path(enum fail_class class, const char *path)
{
    uint32_t error = orders ? __atomic_load_n(&orders->error, __ATOMIC_SEQ_CST) : 0;

    if (error == 0 || !(orders->classes & class) || !strstr(path, orders->where))
        return false;
    __atomic_add_fetch(&orders->hits, 1, __ATOMIC_SEQ_CST);
    errno = (int)error;
    return true;
}

static bool fails(enum fail_class class, int fd)
{
    char link[32], path[1024];
    ssize_t n;

    if (!orders || __atomic_load_n(&orders->error, __ATOMIC_SEQ_CST) == 0)
        return false;
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof(path) - 1);
    if (n < 0)
        return false;
    path[n] = '\0';
    return fails_path(class, path);
}

/* The next one in the order of libraries. */
#define NEXT(name) ((__typeof__(&(name)))dlsym(RTLD_NEXT, #name))

int open(const char *path, int flags, ...)
{
    mode_t mode;
    va_list ap;

    va_start(ap, flags);
    mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, mode_t) : 0;
    va_end(ap);
    return fails_path(FAIL_OPEN, path) ? -1 : NEXT(open)(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    mode_t mode;
    va_list ap;

    va_start(ap, flags);
    mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, mode_t) : 0;
    va_end(ap);
    return fails_path(FAIL_OPEN, path) ? -1 : NEXT(open64)(path, flags, mode);
}

ssize_t pread(int fd, void *buf, size_t len, off_t off)
{
    return fails(FAIL_READ, fd) ? -1 : NEXT(pread)(fd, buf, len, off);
}

ssize_t pread64(int fd, void *buf, size_t len, off64_t off)
{
    return fails(FAIL_READ, fd) ? -1 : NEXT(pread64)(fd, buf, len, off);
}

ssize_t pwrite(int fd, const void *buf, size_t len, off_t off)
{
    return fails(FAIL_WRITE, fd) ? -1 : NEXT(pwrite)(fd, buf, len, off);
}

ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t off)
{
    return fails(FAIL_WRITE, fd) ? -1 : NEXT(pwrite64)(fd, buf, len, off);
}

int fallocate(int fd, int mode, off_t off, off_t len)
{
    return fails(FAIL_SPACE, fd) ? -1 : NEXT(fallocate)(fd, mode, off, len);
}

int fallocate64(int fd, int mode, off64_t off, off64_t len)
{
    return fails(FAIL_SPACE, fd) ? -1 : NEXT(fallocate64)(fd, mode, off, len);
}

int ftruncate(int fd, off_t len)
{
    return fails(FAIL_SPACE, fd) ? -1 : NEXT(ftruncate)(fd, len);
}

int ftruncate64(int fd, off64_t len)
{
    return fails(FAIL_SPACE, fd) ? -1 : NEXT(ftruncate64)(fd, len);
}

int fsync(int fd)
{
    return fails(FAIL_SYNC, fd) ? -1 : NEXT(fsync)(fd);
}

int fdatasync(int fd)
{
    return fails(FAIL_SYNC, fd) ? -1 : NEXT(fdatasync)(fd);
}

int rename(const char *from, const char *to)
{
    return fails_path(FAIL_NAME, to) ? -1 : NEXT(rename)(from, to);
}

int mkdir(const char *path, mode_t mode)
{
    return fails_path(FAIL_NAME, path) ? -1 : NEXT(mkdir)(path, mode);
}
