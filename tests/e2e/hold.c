/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Forces the order of a race in a program that knows nothing of it: preloaded into nbdkit, it holds
 * a thread at a named point of its I/O for as long as a file of that name exists.  Used by
 * held.py alone.
 *
 *     HOLD_DIR/OP.FILE.WHEN      hold the first one that comes here
 *     HOLD_DIR/OP.FILE.WHEN.hit  made by us: a thread is held here now (or was)
 *
 * OP is read, write or punch (any fallocate); FILE is image (the path HOLD_IMAGE) or scratch (a
 * name that ends so); WHEN is before or after.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

ssize_t pread(int fd, void *buf, size_t len, off_t off);
ssize_t pwrite(int fd, const void *buf, size_t len, off_t off);
ssize_t pread64(int fd, void *buf, size_t len, off64_t off);
ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t off);
int fallocate(int fd, int mode, off_t off, off_t len);
int fallocate64(int fd, int mode, off64_t off, off64_t len);

static const char *kind_of(int fd)
{
    const char *image = getenv("HOLD_IMAGE");
    char link[64], path[PATH_MAX];
    ssize_t n;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof(path) - 1);
    if (n < 0)
        return NULL;
    path[n] = '\0';
    if (image && strcmp(path, image) == 0)
        return "image";
    return n > 8 && strcmp(path + n - 8, ".scratch") == 0 ? "scratch" : NULL;
}

static void hold(const char *op, int fd, const char *when)
{
    const char *dir = getenv("HOLD_DIR"), *kind;
    char name[PATH_MAX], hit[PATH_MAX + 4];
    int made;

    if (!dir || !(kind = kind_of(fd)))
        return;
    if (snprintf(name, sizeof(name), "%s/%s.%s.%s", dir, op, kind, when) >= (int)sizeof(name) ||
        access(name, F_OK) != 0)
        return;
    snprintf(hit, sizeof(hit), "%s.hit", name);
    made = open(hit, O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (made < 0)
        return; /* another thread is held here */
    close(made);
    while (access(name, F_OK) == 0)
        usleep(1000);
}

/* The next one in the order of libraries. */
#define NEXT(name) ((__typeof__(&(name)))dlsym(RTLD_NEXT, #name))

#define HELD(op, fd, call)          \
    do {                            \
        __typeof__(call) result;    \
                                    \
        hold(op, fd, "before");     \
        result = call;              \
        hold(op, fd, "after");      \
        return result;              \
    } while (0)

ssize_t pread(int fd, void *buf, size_t len, off_t off)
{
    HELD("read", fd, NEXT(pread)(fd, buf, len, off));
}

ssize_t pread64(int fd, void *buf, size_t len, off64_t off)
{
    HELD("read", fd, NEXT(pread64)(fd, buf, len, off));
}

ssize_t pwrite(int fd, const void *buf, size_t len, off_t off)
{
    HELD("write", fd, NEXT(pwrite)(fd, buf, len, off));
}

ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t off)
{
    HELD("write", fd, NEXT(pwrite64)(fd, buf, len, off));
}

int fallocate(int fd, int mode, off_t off, off_t len)
{
    HELD("punch", fd, NEXT(fallocate)(fd, mode, off, len));
}

int fallocate64(int fd, int mode, off64_t off, off64_t len)
{
    HELD("punch", fd, NEXT(fallocate64)(fd, mode, off, len));
}
