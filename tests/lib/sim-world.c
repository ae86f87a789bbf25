/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The calls.  Each begins with sim_begin(), which may let others run, fail it, or plan the death of
 * its caller; what it then does is what its caller's death leaves; sim_end() is where the caller
 * dies.
 * Long, because each call of the world has a function here.
 */
#include "tests/lib/sim-world.h"

#include "tests/lib/sim-disk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define UNUSED __attribute__((unused))

/* Since 1970; the machine's first boot. */
#define BEGIN_NS UINT64_C(1700000000000000000)
#define CALL_NS  1000u

static struct sim_world *self(struct varve_world *w)
{
    return (struct sim_world *)((char *)w - offsetof(struct sim_world, world));
}

/* --- begin and end of a call ------------------------------------------------------------------ */

static bool fault_fits(struct sim *s, struct sim_fault *f, enum sim_call call, const char *path)
{
    if (f->error == 0 || f->count == 0 || !(f->calls >> call & 1) ||
        (f->where && !strstr(path, f->where)))
        return false;
    /* What is in memory knows no broken disk. */
    if (f->error == EIO && sim_in_memory(path))
        return false;
    if (f->skip > 0) {
        f->skip--;
        return false;
    }
    f->count--;
    if (s->verbose)
        printf("#          call %d on %s %s\n", (int)call, path,
               f == &s->fault ? strerror(f->error) : "is the last");
    return true;
}

static void die(struct sim_world *w)
{
    if (w->sim->crash_power)
        sim_power_fail(w->sim);
    else
        sim_kill(w->sim, w->proc);
}

static int sim_begin(struct sim_world *w, enum sim_call call, const char *path)
{
    struct sim *s = w->sim;

    s->now_ns += CALL_NS;
    if (w->dead)
        return -EIO;
    if (w->proc == SIM_TEST)
        return 0;
    if (s->hook && !s->in_hook) {
        s->in_hook = true;
        s->hook(s, w->proc, call);
        s->in_hook = false;
        if (w->dead)
            return -EIO;
    }
    s->calls++;
    if (s->crash_in > 0 && --s->crash_in == 0) {
        if (s->verbose)
            printf("#          the last call: %d on %s\n", (int)call, path);
        if (sim_random(s, 2)) {
            s->dying = true; /* at its end */
            return 0;
        }
        die(w);
        return -EIO;
    }
    if (fault_fits(s, &s->crash_at, call, path)) {
        die(w);
        return -EIO;
    }
    /* A witness that could not be written means doubt after a crash, which is right and would be all
     * that is left to see. */
    if (!fault_fits(s, &s->fault, call, path) || strstr(path, "image-witness"))
        return 0;
    s->faults++;
    s->failed_calls |= 1u << call;
    return -s->fault.error;
}

static bool is_dying(const struct sim_world *w)
{
    return w->sim->dying && w->proc != SIM_TEST;
}

static int64_t sim_end(struct sim_world *w, int64_t result)
{
    struct sim *s = w->sim;

    if (!is_dying(w))
        return result;
    s->dying = false;
    die(w);
    return -EIO;
}

/* --- files ------------------------------------------------------------------------------------ */

static struct sim_file *file_of(struct sim_world *w, int fd)
{
    struct sim_file *f = &w->sim->disk->files[fd];

    sim_must(fd >= 0 && fd < (int)SIM_FILES, "not a file descriptor");
    sim_must(w->dead || (f->inode && f->proc == w->proc), "not an open file of this process");
    return f;
}

/* Of a call on a file. */
static int file_begin(struct sim_world *w, enum sim_call call, int fd)
{
    return sim_begin(w, call, file_of(w, fd)->path);
}

static bool parent_exists(struct sim *s, const char *path)
{
    char dir[SIM_PATH_MAX];
    struct sim_inode *n;

    sim_must(strlen(path) < SIM_PATH_MAX && path[0] == '/', "a path");
    strcpy(dir, path);
    *strrchr(dir, '/') = '\0';
    n = dir[0] ? sim_find(&s->disk->now, dir) : NULL;
    return dir[0] == '\0' || (n && n->dir);
}

static int open_inode(struct sim *s, const char *path, int flags, struct sim_inode **out)
{
    struct sim_inode *n = sim_find(&s->disk->now, path);

    if (n && (flags & O_CREAT) && (flags & O_EXCL))
        return -EEXIST;
    if (!n && (!(flags & O_CREAT) || !parent_exists(s, path)))
        return -ENOENT;
    if (n && n->dir)
        return -EISDIR;
    if (!n) {
        n = sim_inode_new(s->disk, false, sim_in_memory(path));
        sim_rename(s->disk, path, NULL, n);
    }
    if ((flags & O_TRUNC) && n->size > 0)
        sim_resize(s, n, 0);
    *out = n;
    return 0;
}

static int sim_open(struct varve_world *vw, const char *path, int flags, UNUSED mode_t mode)
{
    struct sim_world *w = self(vw);
    struct sim_disk *d = w->sim->disk;
    struct sim_inode *n = NULL;
    unsigned slot = 0;
    int r = sim_begin(w, SIM_OPEN, path);

    if (r == 0)
        r = open_inode(w->sim, path, flags, &n);
    if (r < 0)
        return (int)sim_end(w, r);
    while (slot < SIM_FILES && d->files[slot].inode)
        slot++;
    sim_must(slot < SIM_FILES, "too many open files");
    d->files[slot] = (struct sim_file){.inode = n,
                                       .proc = w->proc,
                                       .writable = (flags & O_ACCMODE) != O_RDONLY,
                                       .errors_told = n->errors - (n->errors && !n->error_told)};
    strcpy(d->files[slot].path, path);
    r = (int)sim_end(w, (int)slot);
    return r; /* who has died has its file closed when it is buried */
}

static int sim_close(struct varve_world *vw, int fd)
{
    struct sim_world *w = self(vw);

    if (w->dead || file_begin(w, SIM_CLOSE, fd) == -EIO)
        return 0;
    sim_file_close(w->sim, (unsigned)fd);
    if (sim_random(w->sim, 16) == 0)
        sim_sweep(w->sim->disk);
    return (int)sim_end(w, 0);
}

static ssize_t sim_pread(struct varve_world *vw, int fd, void *buf, size_t len, uint64_t off)
{
    struct sim_world *w = self(vw);
    struct sim_inode *n = file_of(w, fd)->inode;
    int64_t r = file_begin(w, SIM_PREAD, fd);

    if (r == 0) {
        r = off >= n->size ? 0 : (int64_t)(len < n->size - off ? len : n->size - off);
        sim_load(n, buf, off, (uint64_t)r);
    }
    return (ssize_t)sim_end(w, r);
}

static int sim_pwrite(struct varve_world *vw, int fd, const void *buf, size_t len, uint64_t off)
{
    struct sim_world *w = self(vw);
    struct sim_file *f = file_of(w, fd);
    int r = file_begin(w, SIM_PWRITE, fd);
    size_t whole = len;

    if (w->dead)
        return r;
    sim_must(f->writable, "the file is open for reading");
    /* A part of it may be all that there is of it; of a caller that dies, whole pages. */
    if (r < 0 || (is_dying(w) && sim_random(w->sim, 2)))
        len = sim_random(w->sim, len + 1);
    if (r == 0 && is_dying(w) && (off + len) % SIM_PAGE > 0 && len < whole)
        len -= len < (off + len) % SIM_PAGE ? len : (off + len) % SIM_PAGE;
    sim_store(w->sim, f->inode, buf, off, len);
    return (int)sim_end(w, r);
}

static int sim_allocate(struct varve_world *vw, int fd, uint64_t off, uint64_t len)
{
    struct sim_world *w = self(vw);
    struct sim_inode *n = file_of(w, fd)->inode;
    int r = file_begin(w, SIM_ALLOCATE, fd);

    if (r == 0 && off + len > n->size)
        sim_resize(w->sim, n, off + len);
    if (r == 0 && off <= n->reserved && off + len > n->reserved)
        n->reserved = off + len;
    return (int)sim_end(w, r);
}

static int sim_truncate(struct varve_world *vw, int fd, uint64_t len)
{
    struct sim_world *w = self(vw);
    struct sim_inode *n = file_of(w, fd)->inode;
    int r = file_begin(w, SIM_TRUNCATE, fd);

    if (r == 0)
        sim_resize(w->sim, n, len);
    return (int)sim_end(w, r);
}

static int sim_punch(struct varve_world *vw, int fd, uint64_t off, uint64_t len)
{
    struct sim_world *w = self(vw);
    struct sim_inode *n = file_of(w, fd)->inode;
    int r = file_begin(w, SIM_PUNCH, fd);

    if (r == 0)
        sim_store(w->sim, n, NULL, off, len);
    return (int)sim_end(w, r);
}

static ssize_t sim_copy(struct varve_world *vw, int from, uint64_t from_off, int to,
                        uint64_t to_off, size_t len)
{
    struct sim_world *w = self(vw);
    struct sim_inode *a = file_of(w, from)->inode, *b = file_of(w, to)->inode;
    int64_t r = file_begin(w, SIM_COPY, to);

    if (r == 0) {
        char buf[SIM_PAGE];

        r = from_off >= a->size ? 0
                                : (int64_t)(len < a->size - from_off ? len : a->size - from_off);
        if (r > (int64_t)sizeof(buf))
            r = sizeof(buf);
        sim_load(a, buf, from_off, (uint64_t)r);
        sim_store(w->sim, b, buf, to_off, (uint64_t)r);
    }
    return (ssize_t)sim_end(w, r);
}

static int64_t seek(struct sim_world *w, int fd, uint64_t off, bool want)
{
    struct sim_inode *n = file_of(w, fd)->inode;
    int64_t r = file_begin(w, SIM_SEEK, fd);

    if (r == 0 && off >= n->size) {
        r = -ENXIO;
    } else if (r == 0) {
        r = (int64_t)sim_seek(n, off, want);
        if (want && (uint64_t)r >= n->size)
            r = -ENXIO;
    }
    return sim_end(w, r);
}

static int64_t sim_seek_data(struct varve_world *vw, int fd, uint64_t off)
{
    return seek(self(vw), fd, off, true);
}

static int64_t sim_seek_hole(struct varve_world *vw, int fd, uint64_t off)
{
    return seek(self(vw), fd, off, false);
}

static int sim_sync(struct varve_world *vw, int fd)
{
    struct sim_world *w = self(vw);
    struct sim_file *f = file_of(w, fd);
    struct sim_inode *n = f->inode;
    int r = file_begin(w, SIM_SYNC, fd);

    if (w->dead)
        return r;
    if (r < 0) {
        n->errors++;
        n->error_told = false;
        sim_sync_data(w->sim, n, true);
    } else {
        sim_sync_data(w->sim, n, false);
    }
    if (f->errors_told != n->errors) {
        f->errors_told = n->errors;
        n->error_told = true;
        r = -EIO;
    }
    return (int)sim_end(w, r);
}

static int sim_written_back(struct varve_world *vw, int fd)
{
    struct sim_world *w = self(vw);
    struct sim_file *f = file_of(w, fd);
    int r = file_begin(w, SIM_WRITTEN_BACK, fd);

    if (r == 0 && f->errors_told != f->inode->errors) {
        f->errors_told = f->inode->errors;
        f->inode->error_told = true;
        r = -EIO;
    }
    return (int)sim_end(w, r);
}

static int sim_room(struct varve_world *vw, int fd, uint64_t *total, uint64_t *free)
{
    struct sim_world *w = self(vw);
    int r = file_begin(w, SIM_ROOM, fd);

    *total = *free = UINT64_C(1) << 40;
    return (int)sim_end(w, r);
}

static int sim_stat(struct varve_world *vw, int fd, struct varve_stat *st)
{
    struct sim_world *w = self(vw);
    struct sim_disk *d = w->sim->disk;
    struct sim_inode *n = file_of(w, fd)->inode;
    int r = file_begin(w, SIM_STAT, fd);

    if (r == 0) {
        *st = (struct varve_stat){.size = n->size,
                                  .dev = n->memory ? 2 : 1,
                                  .ino = n->ino,
                                  .mtime_ns = n->mtime_ns,
                                  .mode = S_IFREG | 0600};
        for (size_t i = 0; i < d->now.count; i++)
            st->nlink += d->now.names[i].inode == n;
    }
    return (int)sim_end(w, r);
}

static int sim_map(struct varve_world *vw, int fd, size_t len, void **addr)
{
    struct sim_world *w = self(vw);
    struct sim_disk *d = w->sim->disk;
    struct sim_inode *n = file_of(w, fd)->inode;
    int r = file_begin(w, SIM_MAP, fd);
    unsigned slot = 0;

    if (r < 0)
        return (int)sim_end(w, r);
    sim_must(n->memory, "a file on a disk is mapped");
    sim_must(len <= n->size, "a map reaches behind its file");
    while (slot < SIM_MAPS && d->maps[slot].inode)
        slot++;
    sim_must(slot < SIM_MAPS, "too many maps");
    d->maps[slot] = (struct sim_map){n, w->proc};
    *addr = n->bytes;
    return (int)sim_end(w, 0);
}

static int sim_unmap(struct varve_world *vw, void *addr, UNUSED size_t len)
{
    struct sim_world *w = self(vw);
    struct sim_disk *d = w->sim->disk;

    if (w->dead || sim_begin(w, SIM_UNMAP, "") == -EIO)
        return 0;
    for (unsigned i = 0; i < SIM_MAPS; i++) {
        if (d->maps[i].inode && d->maps[i].inode->bytes == addr && d->maps[i].proc == w->proc) {
            d->maps[i].inode = NULL;
            return (int)sim_end(w, 0);
        }
    }
    sim_must(false, "what is unmapped was not mapped");
    return 0;
}

static int sim_lock(struct varve_world *vw, int fd, UNUSED bool exclusive)
{
    struct sim_world *w = self(vw);
    struct sim_inode *n = file_of(w, fd)->inode;
    int r = file_begin(w, SIM_LOCK, fd);

    if (r == 0 && n->locked_by >= 0 && n->locked_by != fd)
        r = -EAGAIN;
    if (r == 0)
        n->locked_by = fd;
    return (int)sim_end(w, r);
}

/* --- names ------------------------------------------------------------------------------------ */

static int sim_mkdir(struct varve_world *vw, const char *path, UNUSED mode_t mode)
{
    struct sim_world *w = self(vw);
    struct sim_disk *d = w->sim->disk;
    int r = sim_begin(w, SIM_MKDIR, path);

    if (r == 0 && sim_find(&d->now, path))
        r = -EEXIST;
    if (r == 0 && !parent_exists(w->sim, path))
        r = -ENOENT;
    if (r == 0)
        sim_rename(d, path, NULL, sim_inode_new(d, true, sim_in_memory(path)));
    return (int)sim_end(w, r);
}

static int sim_move(struct varve_world *vw, const char *from, const char *to)
{
    struct sim_world *w = self(vw);
    struct sim_disk *d = w->sim->disk;
    struct sim_inode *n = sim_find(&d->now, from);
    int r = sim_begin(w, SIM_RENAME, to);

    if (r == 0 && (!n || !parent_exists(w->sim, to)))
        r = -ENOENT;
    if (r == 0)
        sim_rename(d, to, from, n);
    return (int)sim_end(w, r);
}

static int sim_move_new(struct varve_world *vw, const char *from, const char *to)
{
    struct sim_world *w = self(vw);
    struct sim_disk *d = w->sim->disk;
    struct sim_inode *n = sim_find(&d->now, from);
    int r = sim_begin(w, SIM_RENAME, to);

    if (r == 0 && sim_find(&d->now, to))
        r = -EEXIST;
    if (r == 0 && (!n || !parent_exists(w->sim, to)))
        r = -ENOENT;
    if (r == 0)
        sim_rename(d, to, from, n);
    return (int)sim_end(w, r);
}

static int sim_unlink(struct varve_world *vw, const char *path)
{
    struct sim_world *w = self(vw);
    struct sim_disk *d = w->sim->disk;
    int r = sim_begin(w, SIM_UNLINK, path);

    if (r == 0 && !sim_find(&d->now, path))
        r = -ENOENT;
    if (r == 0)
        sim_rename(d, path, NULL, NULL);
    return (int)sim_end(w, r);
}

static int sim_sync_dir(struct varve_world *vw, const char *path)
{
    struct sim_world *w = self(vw);
    struct sim_disk *d = w->sim->disk;
    int r = sim_begin(w, SIM_SYNC_DIR, path);

    if (r == 0 && path[1] != '\0' && !sim_find(&d->now, path))
        r = -ENOENT;
    if (r == 0)
        sim_sync_names(d, path[1] == '\0' ? "" : path);
    return (int)sim_end(w, r);
}

static int sim_list(struct varve_world *vw, const char *path,
                    int (*each)(void *arg, const char *name), void *arg)
{
    struct sim_world *w = self(vw);
    struct sim_disk *d = w->sim->disk;
    char(*names)[SIM_PATH_MAX];
    size_t len = strlen(path), count = 0;
    int r = sim_begin(w, SIM_LIST, path);

    if (r == 0 && !sim_find(&d->now, path))
        r = -ENOENT;
    if (r < 0)
        return (int)sim_end(w, r);
    names = calloc(d->now.count + 1, sizeof(*names));
    sim_must(names != NULL, "memory");
    for (size_t i = 0; i < d->now.count; i++) {
        const char *name = d->now.names[i].path;

        if (strncmp(name, path, len) == 0 && name[len] == '/' && !strchr(name + len + 1, '/'))
            strcpy(names[count++], name + len + 1);
    }
    for (size_t i = 0; i < count && r == 0 && !w->dead; i++)
        r = each(arg, names[i]);
    free(names);
    if (w->dead)
        return -EIO;
    return (int)sim_end(w, r);
}

/* --- the rest --------------------------------------------------------------------------------- */

static uint64_t sim_now(struct varve_world *vw)
{
    struct sim_world *w = self(vw);

    if (sim_begin(w, SIM_CLOCK, "") == 0)
        sim_end(w, 0);
    return w->sim->now_ns;
}

static void sim_wait_ns(struct varve_world *vw, uint64_t ns)
{
    self(vw)->sim->now_ns += ns;
}

static uint64_t sim_uptime_ns(struct varve_world *vw)
{
    return self(vw)->sim->now_ns - self(vw)->sim->booted_ns;
}

static int sim_device(UNUSED struct varve_world *vw, UNUSED uint64_t rdev,
                      UNUSED struct varve_device *d)
{
    return -ENOENT;
}

static int sim_random_bytes(struct varve_world *vw, void *buf, size_t len)
{
    for (size_t i = 0; i < len; i++)
        ((uint8_t *)buf)[i] = (uint8_t)sim_random(self(vw)->sim, 256);
    return 0;
}

static int sim_boot_id(struct varve_world *vw, uint8_t id[16])
{
    memset(id, 0, 16);
    id[0] = self(vw)->sim->boot;
    return self(vw)->dead ? -EIO : 0;
}

void sim_init(struct sim *s, uint64_t seed)
{
    static const struct varve_world calls = {
        .open = sim_open,
        .close = sim_close,
        .pread = sim_pread,
        .pread_now = sim_pread,
        .pread_quiet = sim_pread,
        .pwrite = sim_pwrite,
        .allocate = sim_allocate,
        .truncate = sim_truncate,
        .punch = sim_punch,
        .copy = sim_copy,
        .seek_data = sim_seek_data,
        .seek_hole = sim_seek_hole,
        .sync = sim_sync,
        .written_back = sim_written_back,
        .room = sim_room,
        .sync_all = sim_sync,
        .device = sim_device,
        .file_clock_ns = sim_now,
        .wait_ns = sim_wait_ns,
        .uptime_ns = sim_uptime_ns,
        .stat = sim_stat,
        .map = sim_map,
        .unmap = sim_unmap,
        .lock = sim_lock,
        .mkdir = sim_mkdir,
        .rename = sim_move,
        .rename_new = sim_move_new,
        .unlink = sim_unlink,
        .sync_dir = sim_sync_dir,
        .list = sim_list,
        .realtime_ns = sim_now,
        .monotonic_ns = sim_now,
        .random = sim_random_bytes,
        .boot_id = sim_boot_id,
    };

    memset(s, 0, sizeof(*s));
    s->random = seed;
    s->now_ns = BEGIN_NS;
    s->boot = 1;
    s->disk = sim_disk_new();
    for (enum sim_proc i = 0; i < SIM_PROCS; i++)
        s->procs[i] = (struct sim_world){.world = calls, .sim = s, .proc = i};
    sim_rename(s->disk, "/run", NULL, sim_inode_new(s->disk, true, true));
}

void sim_fini(struct sim *s)
{
    sim_disk_free(s->disk);
}
