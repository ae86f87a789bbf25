/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/scratch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define EXTENTS_MAX 500u

/* Where the first data lies, about `bytes` of it and no more than so many extents, holes between
 * them included.  1: there may be more behind it; 0: there is not; -errno. */
static int scratch_first(struct varve_world *w, int fd, uint64_t bytes, uint64_t *from,
                         uint64_t *to)
{
    *from = *to = 0;
    for (unsigned i = 0; i < EXTENTS_MAX && bytes > 0; i++) {
        int64_t data = w->seek_data(w, fd, *to), hole;
        uint64_t len;

        if (data == -ENXIO)
            return 0;
        if (data < 0)
            return (int)data;
        hole = w->seek_hole(w, fd, (uint64_t)data);
        len = hole > data ? (uint64_t)(hole - data) : bytes;
        if (len > bytes)
            len = bytes;
        if (i == 0)
            *from = (uint64_t)data;
        *to = (uint64_t)data + len;
        bytes -= len;
    }
    return 1;
}

int varve_scratch_empty(struct varve_world *w, int fd, uint64_t bytes)
{
    uint64_t from, to;
    int more, r = 0;

    /* Who finds it empty finds what the caller has said of it before. */
    atomic_thread_fence(memory_order_seq_cst);
    more = scratch_first(w, fd, bytes, &from, &to);
    if (more < 0)
        return w->truncate(w, fd, 0); /* then at once */
    if (to > from)
        r = w->punch(w, fd, from, to - from);
    if (r == -EOPNOTSUPP || r == -ENOSYS)
        return w->truncate(w, fd, 0);
    /* Where a file system does not tell what is a hole, the next step would find the same again. */
    if (r == 0 && more > 0 && w->seek_data(w, fd, from) == (int64_t)from)
        return w->truncate(w, fd, 0);
    return r < 0 ? r : more;
}

bool varve_scratch_bury(struct varve_world *w, const struct varve_paths *p, uint64_t epoch)
{
    char from[PATH_MAX], to[PATH_MAX];

    varve_path_scratch(p, epoch, from);
    if (w->rename(w, from, varve_path_dead(p, epoch, to)) == 0)
        return true;
    w->unlink(w, from);
    return false;
}

struct find {
    struct varve_world *w;
    const struct varve_paths *p;
    char path[PATH_MAX];
};

static int find_dead(void *arg, const char *name)
{
    struct find *f = arg;
    size_t len = strlen(name);

    return len > 5 && strcmp(name + len - 5, ".dead") == 0 &&
           snprintf(f->path, sizeof(f->path), "%s/%s", f->p->scratch, name) <
               (int)sizeof(f->path);
}

int varve_scratch_reap(struct varve_world *w, const struct varve_paths *p, uint64_t bytes)
{
    struct find f = {.w = w, .p = p};
    int r = w->list(w, p->scratch, find_dead, &f), fd;

    if (r <= 0)
        return r;
    fd = w->open(w, f.path, O_RDWR, 0);
    if (fd < 0)
        return fd == -ENOENT ? 1 : fd; /* another was faster */
    r = varve_scratch_empty(w, fd, bytes);
    if (r == 0)
        w->unlink(w, f.path);
    w->close(w, fd);
    return r < 0 ? r : 1;
}
