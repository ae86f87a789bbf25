/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/fuzz/world.h"

#include "tests/fuzz/fuzz.h"
#include "tests/lib/tmpdir.h"

#include <fcntl.h>
#include <unistd.h>

static char *dir;

static int no_sync(struct varve_world *w, int fd)
{
    (void)w;
    (void)fd;
    return 0;
}

static int no_sync_dir(struct varve_world *w, const char *path)
{
    (void)w;
    (void)path;
    return 0;
}

static int size_only(struct varve_world *w, int fd, uint64_t off, uint64_t len)
{
    struct varve_stat st;
    int rc = w->stat(w, fd, &st);

    return rc < 0 || st.size >= off + len ? rc : w->truncate(w, fd, off + len);
}

struct varve_world *fuzz_world(void)
{
    static struct varve_world w;

    if (!w.open) {
        w = *varve_world_posix();
        w.sync = no_sync;
        w.sync_all = no_sync;
        w.sync_dir = no_sync_dir;
        w.allocate = size_only;
    }
    return &w;
}

static void remove_dir(void)
{
    tmpdir_remove(dir);
}

const char *fuzz_dir(void)
{
    if (!dir) {
        dir = tmpdir_new();
        atexit(remove_dir);
    }
    return dir;
}

void fuzz_write_file(const char *path, const void *data, size_t len, uint64_t off)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

    FUZZ_CHECK(fd >= 0);
    FUZZ_CHECK(pwrite(fd, data, len, (off_t)off) == (ssize_t)len);
    close(fd);
}
