/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Where kernel and file system know RWF_DONTCACHE (Linux 6.14, preadv2(2)), they do all of it.
 * Else:
 *
 *     which pages are cached?      mincore() on a mapping that is never touched
 *     read
 *     those that were not: drop    so a page that others had is never dropped, nor one that is
 * dirty
 *
 * A page that somebody else reads in between is dropped with ours: he reads it again.  Where the
 * kernel does not tell us what is cached (mincore() of a file that is not ours says that all is),
 * nothing is dropped.
 */
#include "lib/quiet-io.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef RWF_DONTCACHE
#define RWF_DONTCACHE 0x80
#endif

/* Of the smallest pages; one more where a read is not aligned. */
#define PAGES_MAX (VARVE_QUIET_MAX / 4096u + 1u)

void varve_quiet_prepare(int fd)
{
    posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
}

/* False: not known.  Pages behind the file's end count as they please. */
static bool look(int fd, uint64_t from, size_t len, unsigned char *cached)
{
    void *map = mmap(NULL, len, PROT_NONE, MAP_SHARED, fd, (off_t)from);
    bool known;

    if (map == MAP_FAILED)
        return false;
    known = mincore(map, len, cached) == 0;
    munmap(map, len);
    return known;
}

static void drop(int fd, uint64_t from, size_t page, size_t npages, const unsigned char *cached)
{
    for (size_t i = 0, end; i < npages; i = end) {
        bool was = cached[i] & 1;

        for (end = i + 1; end < npages && (cached[end] & 1) == was; end++)
            ;
        if (!was)
            posix_fadvise(fd, (off_t)(from + i * page), (off_t)((end - i) * page),
                          POSIX_FADV_DONTNEED);
    }
}

static ssize_t pread_once(int fd, void *buf, size_t len, uint64_t off, int flags)
{
    struct iovec iov = {.iov_base = buf, .iov_len = len};
    ssize_t n;

    do
        n = flags ? preadv2(fd, &iov, 1, (off_t)off, flags) : pread(fd, buf, len, (off_t)off);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

ssize_t varve_pread_all(int fd, void *buf, size_t len, uint64_t off, int flags)
{
    size_t done = 0;

    while (done < len) {
        ssize_t n = pread_once(fd, (char *)buf + done, len - done, off + done, flags);

        if (n < 0)
            return n;
        if (n == 0)
            break;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

ssize_t varve_quiet_pread_now(int fd, void *buf, size_t len, uint64_t off)
{
    ssize_t n = pread_once(fd, buf, len, off, RWF_NOWAIT | RWF_DONTCACHE);

    return n == -EOPNOTSUPP ? pread_once(fd, buf, len, off, RWF_NOWAIT) : n;
}

ssize_t varve_quiet_pread(int fd, void *buf, size_t len, uint64_t off)
{
    unsigned char cached[PAGES_MAX];
    size_t page = (size_t)sysconf(_SC_PAGESIZE), npages;
    uint64_t from = off - off % page;
    ssize_t got;
    bool known;

    if (len > VARVE_QUIET_MAX || off > (uint64_t)INT64_MAX - len - page)
        return -EINVAL;
    got = varve_pread_all(fd, buf, len, off, RWF_DONTCACHE);
    if (got != -EOPNOTSUPP)
        return got;
    npages = (size_t)((off + len - from + page - 1) / page);
    known = len > 0 && look(fd, from, npages * page, cached);
    got = varve_pread_all(fd, buf, len, off, 0);
    if (known)
        drop(fd, from, page, npages, cached);
    return got;
}
