/* SPDX-License-Identifier: BSD-3-Clause
 *
 * kill -9 at a named step of a program that knows nothing of it: preloaded into nbdkit, varved or
 * varve, it counts the calls that change files or send a message with file descriptors, and kills the
 * process with SIGKILL right before or after the one that it was told.  Used by dying.py alone,
 * which maps the same file:
 *
 *     DIE_FILE    uint32_t nth      die at the nth call from now on, 0: go on for ever
 *                 uint32_t after    0: die before that call, 1: after it
 *                 uint32_t calls    counted by us while nth is not 0
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tests/e2e/orders.h"

#include <dlfcn.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

struct orders {
    uint32_t nth, after, calls;
};

ssize_t pwrite(int fd, const void *buf, size_t len, off_t off);
ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t off);
int fallocate(int fd, int mode, off_t off, off_t len);
int fallocate64(int fd, int mode, off64_t off, off64_t len);
int ftruncate(int fd, off_t len);
int ftruncate64(int fd, off64_t len);

static struct orders *orders;

__attribute__((constructor)) static void die_init(void)
{
    orders = orders_map("DIE_FILE", sizeof(*orders));
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

/* True: this is the call to die at, and it shall be made first. */
static bool step(void)
{
    uint32_t nth = orders ? __atomic_load_n(&orders->nth, __ATOMIC_SEQ_CST) : 0;

    if (nth == 0 || __atomic_add_fetch(&orders->calls, 1, __ATOMIC_SEQ_CST) != nth)
        return false;
    if (!orders->after)
        die();
    return true;
}

/* The next one in the order of libraries. */
#define NEXT(name) ((__typeof__(&(name)))dlsym(RTLD_NEXT, #name))

#define STEP(call)                                                                                 \
    do {                                                                                           \
        bool last = step();                                                                        \
        __typeof__(call) r;                                                                        \
                                                                                                   \
        r = call;                                                                                  \
        if (last)                                                                                  \
            die();                                                                                 \
        return r;                                                                                  \
    } while (0)

ssize_t pwrite(int fd, const void *buf, size_t len, off_t off)
{
    STEP(NEXT(pwrite)(fd, buf, len, off));
}

ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t off)
{
    STEP(NEXT(pwrite64)(fd, buf, len, off));
}

int fallocate(int fd, int mode, off_t off, off_t len)
{
    STEP(NEXT(fallocate)(fd, mode, off, len));
}

int fallocate64(int fd, int mode, off64_t off, off64_t len)
{
    STEP(NEXT(fallocate64)(fd, mode, off, len));
}

int ftruncate(int fd, off_t len)
{
    STEP(NEXT(ftruncate)(fd, len));
}

int ftruncate64(int fd, off64_t len)
{
    STEP(NEXT(ftruncate64)(fd, len));
}

int fsync(int fd)
{
    STEP(NEXT(fsync)(fd));
}

int fdatasync(int fd)
{
    STEP(NEXT(fdatasync)(fd));
}

int rename(const char *from, const char *to)
{
    STEP(NEXT(rename)(from, to));
}

int renameat(int from_dir, const char *from, int to_dir, const char *to)
{
    STEP(NEXT(renameat)(from_dir, from, to_dir, to));
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags)
{
    STEP(NEXT(renameat2)(from_dir, from, to_dir, to, flags));
}

int unlink(const char *path)
{
    STEP(NEXT(unlink)(path));
}

int unlinkat(int dir, const char *path, int flags)
{
    STEP(NEXT(unlinkat)(dir, path, flags));
}

int mkdir(const char *path, mode_t mode)
{
    STEP(NEXT(mkdir)(path, mode));
}

ssize_t copy_file_range(int from, off64_t *from_off, int to, off64_t *to_off, size_t len,
                        unsigned flags)
{
    STEP(NEXT(copy_file_range)(from, from_off, to, to_off, len, flags));
}

ssize_t sendmsg(int fd, const struct msghdr *m, int flags)
{
    STEP(NEXT(sendmsg)(fd, m, flags));
}
