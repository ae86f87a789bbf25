/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/disk-lock.h"

#include "lib/identity.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define FILE_MODE 0600

/* How long a guest's server waits for the daemon to finish a boundary of an offline disk. */
#define PATIENCE_MS 5000u
#define RETRY_MS    10u
/* And for one that has the lock to write into it who it is: until then a former server is named. */
#define NAME_RETRIES 3u

static void lock_read_holder(struct varve_world *w, int fd, struct varve_disk_holder *h)
{
    char who[64];
    ssize_t n = w->pread(w, fd, who, sizeof(who) - 1, 0);

    who[n > 0 ? n : 0] = '\0';
    if (sscanf(who, "%15s %d", h->role, &h->pid) != 2) {
        strcpy(h->role, "a process");
        h->pid = 0;
    }
}

int varve_disk_lock_claim(struct varve_world *w, int fd, const char *role, struct varve_err *err)
{
    char who[64];
    int len = snprintf(who, sizeof(who), "%-15s %d\n", role, (int)getpid());
    int r = w->pwrite(w, fd, who, (size_t)len, 0);

    if (r == 0)
        r = w->truncate(w, fd, (uint64_t)len);
    return r < 0 ? varve_err_sys(err, -r, "cannot write the lock file of the disk") : 0;
}

int varve_disk_lock_take(struct varve_world *w, const struct varve_paths *p, const char *name,
                         const char *role, struct varve_err *err)
{
    uint64_t until = w->monotonic_ns(w) + PATIENCE_MS * UINT64_C(1000000);
    struct varve_disk_holder h;
    char path[PATH_MAX];
    unsigned others = 0;
    int fd, r;

    varve_path_lock(p, path);
    fd = w->open(w, path, O_RDWR | O_CREAT, FILE_MODE);
    if (fd < 0)
        return varve_err_sys(err, -fd, "cannot open %s", path);
    while ((r = w->lock(w, fd, true)) == -EAGAIN) {
        lock_read_holder(w, fd, &h);
        if (strcmp(h.role, "varved") == 0)
            others = 0;
        else
            others++;
        if (others > NAME_RETRIES || w->monotonic_ns(w) >= until) {
            w->close(w, fd);
            return varve_err_set(err, EBUSY, "disk %s is in use: %s, pid %d, serves it", name,
                                 h.role, h.pid);
        }
        usleep(RETRY_MS * 1000);
    }
    if (r < 0)
        varve_err_sys(err, -r, "cannot lock %s", path);
    else
        r = varve_disk_lock_claim(w, fd, role, err);
    if (r < 0) {
        w->close(w, fd);
        return r;
    }
    return fd;
}

struct lock_search {
    struct varve_world *w;
    const char *state_dir, *image;
    struct varve_disk_holder *holder;
};

static int lock_search_disk(void *arg, const char *name)
{
    struct lock_search *s = arg;
    struct varve_identity id;
    struct varve_paths p;
    char path[PATH_MAX];
    int fd, held;

    if (varve_paths_init(&p, s->state_dir, s->state_dir, NULL, name, NULL) < 0 ||
        varve_identity_read(s->w, &p, &id, NULL) < 0 || strcmp(id.image, s->image) != 0)
        return 0;
    fd = s->w->open(s->w, varve_path_lock(&p, path), O_RDWR, 0);
    if (fd < 0)
        return 0;
    held = s->w->lock(s->w, fd, true) == -EAGAIN;
    if (held)
        lock_read_holder(s->w, fd, s->holder);
    s->w->close(s->w, fd);
    return held;
}

int varve_disk_lock_find(struct varve_world *w, const char *state_dir, const char *image,
                         struct varve_disk_holder *holder)
{
    struct lock_search s = {w, state_dir, image, holder};

    return w->list(w, state_dir, lock_search_disk, &s) == 1;
}
