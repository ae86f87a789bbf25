/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/power-world.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SECTOR 512u

enum change_kind { CHANGE_DATA, CHANGE_CREATE, CHANGE_RENAME, CHANGE_UNLINK, CHANGE_MKDIR };

struct power_file {
    struct power_file *next;
    dev_t dev;
    ino_t ino;
    int fd; /* our own, for reading and writing; keeps the inode */
};

struct power_change {
    struct power_change *older;
    enum change_kind kind;
    /* data */
    struct power_file *file;
    uint64_t off, len, old_size;
    bool refused;   /* by a sync that failed */
    size_t old_len; /* bytes of old[], from off on */
    uint8_t *old;
    /* names */
    char *path, *from;
    char *grave; /* where what had the name lies, NULL: nothing had it */
};

/* A test whose tools fail has proved nothing. */
static void must(bool ok, const char *what)
{
    if (ok)
        return;
    perror(what);
    abort();
}

static struct power_world *self(struct varve_world *w)
{
    return (struct power_world *)((char *)w - offsetof(struct power_world, world));
}

/* --- remembering ------------------------------------------------------------------------------ */

static struct power_file *file_of(struct power_world *p, int fd)
{
    char proc[64];
    struct stat st;
    struct power_file *f;

    must(fstat(fd, &st) == 0, "power-world: fstat");
    for (f = p->files; f; f = f->next) {
        if (f->dev == st.st_dev && f->ino == st.st_ino)
            return f;
    }
    f = calloc(1, sizeof(*f));
    must(f != NULL, "power-world");
    snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd);
    f->fd = open(proc, O_RDWR | O_CLOEXEC);
    must(f->fd >= 0, "power-world: open again");
    f->dev = st.st_dev;
    f->ino = st.st_ino;
    f->next = p->files;
    p->files = f;
    return f;
}

static struct power_change *change_new(struct power_world *p, enum change_kind kind)
{
    struct power_change *c = calloc(1, sizeof(*c));

    must(c != NULL, "power-world");
    c->kind = kind;
    c->older = p->changes;
    p->changes = c;
    return c;
}

static void change_free(struct power_change *c)
{
    if (c->grave)
        unlink(c->grave);
    free(c->old);
    free(c->path);
    free(c->from);
    free(c->grave);
    free(c);
}

/* Before [off, off+len) of the file, or its size, changes. */
static void remember_data(struct power_world *p, int fd, uint64_t off, uint64_t len)
{
    struct power_file *f = file_of(p, fd);
    struct power_change *c = change_new(p, CHANGE_DATA);
    struct stat st;
    ssize_t got;

    must(fstat(f->fd, &st) == 0, "power-world: fstat");
    c->file = f;
    c->off = off;
    c->len = len;
    c->old_size = (uint64_t)st.st_size;
    if (off >= c->old_size)
        return;
    if (len > c->old_size - off)
        len = c->old_size - off;
    c->old = malloc((size_t)len + 1);
    must(c->old != NULL, "power-world");
    got = pread(f->fd, c->old, (size_t)len, (off_t)off);
    must(got == (ssize_t)len, "power-world: pread");
    c->old_len = (size_t)len;
}

/* Before `path` gets another meaning: what has the name keeps a second one. */
static void remember_name(struct power_world *p, struct power_change *c, const char *path)
{
    c->path = strdup(path);
    must(c->path != NULL, "power-world");
    if (access(path, F_OK) < 0)
        return;
    must(asprintf(&c->grave, "%s/%" PRIu64, p->graveyard, p->buried++) > 0, "power-world");
    must(link(path, c->grave) == 0, "power-world: link");
}

/* What was about to happen did not. */
static void forget_newest(struct power_world *p)
{
    struct power_change *c = p->changes;

    p->changes = c->older;
    change_free(c);
}

static bool lies_in(const char *path, const char *dir)
{
    const char *slash = strrchr(path, '/');
    size_t len = slash ? (size_t)(slash - path) : 0;

    return len == strlen(dir) && strncmp(path, dir, len) == 0;
}

/* `c` is durable: where it overwrote what older syncs refused, there is nothing to undo. */
static void mend_refused(const struct power_change *c)
{
    for (struct power_change *r = c->older; r; r = r->older) {
        uint64_t from = r->off > c->off ? r->off : c->off;
        uint64_t to = r->off + r->old_len < c->off + c->len ? r->off + r->old_len : c->off + c->len;

        if (r->kind == CHANGE_DATA && r->refused && r->file == c->file && from < to)
            must(pread(c->file->fd, r->old + (from - r->off), to - from, (off_t)from) ==
                     (ssize_t)(to - from),
                 "power-world: pread");
    }
}

/* Forgets changes of this file, or of names in this directory: they are durable. */
static void forget(struct power_world *p, const struct power_file *file, const char *dir)
{
    struct power_change **at = &p->changes;

    while (*at) {
        struct power_change *c = *at;
        bool durable =
            c->kind == CHANGE_DATA ? c->file == file && !c->refused : dir && lies_in(c->path, dir);

        if (durable) {
            if (c->kind == CHANGE_DATA)
                mend_refused(c);
            *at = c->older;
            change_free(c);
        } else {
            at = &c->older;
        }
    }
}

/* --- undoing ---------------------------------------------------------------------------------- */

static uint64_t next_random(uint64_t *state)
{
    *state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = *state;

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static void undo_data(const struct power_change *c, uint64_t seed, uint64_t *random)
{
    struct stat st;
    bool back = seed == 0 || next_random(random) % 2 == 0;

    must(fstat(c->file->fd, &st) == 0, "power-world: fstat");
    for (size_t at = 0; at < c->old_len;) {
        uint64_t off = c->off + at;
        size_t len = SECTOR - (size_t)(off % SECTOR);

        if (len > c->old_len - at)
            len = c->old_len - at;
        if (seed == 0 || next_random(random) % 2 == 0)
            must(pwrite(c->file->fd, c->old + at, len, (off_t)off) == (ssize_t)len,
                 "power-world: pwrite");
        at += len;
    }
    if ((uint64_t)st.st_size != c->old_size && back)
        must(ftruncate(c->file->fd, (off_t)c->old_size) == 0, "power-world: ftruncate");
}

static void undo_name(const struct power_change *c)
{
    switch (c->kind) {
    case CHANGE_CREATE:
        must(unlink(c->path) == 0, "power-world: undo create");
        break;
    case CHANGE_MKDIR:
        must(rmdir(c->path) == 0, "power-world: undo mkdir");
        break;
    case CHANGE_RENAME:
        must(rename(c->path, c->from) == 0, "power-world: undo rename");
        if (c->grave)
            must(rename(c->grave, c->path) == 0, "power-world: undo rename");
        break;
    case CHANGE_UNLINK:
        must(rename(c->grave, c->path) == 0, "power-world: undo unlink");
        break;
    case CHANGE_DATA:
        break;
    }
}

static bool names_meet(const struct power_change *a, const struct power_change *b)
{
    return strcmp(a->path, b->path) == 0 || (a->from && strcmp(a->from, b->path) == 0) ||
           (b->from &&
            (strcmp(a->path, b->from) == 0 || (a->from && strcmp(a->from, b->from) == 0)));
}

/* A change of a name stays if a later one of the same name did. */
static bool name_stays(const struct power_change *c, const struct power_change *stayed)
{
    for (; stayed; stayed = stayed->older) {
        if (names_meet(c, stayed))
            return true;
    }
    return false;
}

void power_fail(struct power_world *p, uint64_t seed)
{
    struct power_change *stayed = NULL;
    uint64_t random = seed;

    while (p->changes) {
        struct power_change *c = p->changes;

        p->changes = c->older;
        if (c->kind == CHANGE_DATA) {
            undo_data(c, seed, &random);
        } else if (seed != 0 && (name_stays(c, stayed) || next_random(&random) % 2 == 0)) {
            c->older = stayed;
            stayed = c;
            continue;
        } else {
            undo_name(c);
        }
        change_free(c);
    }
    while (stayed) {
        struct power_change *c = stayed;

        stayed = c->older;
        change_free(c);
    }
}

void power_fail_sync(struct power_world *p, unsigned n)
{
    p->failing_sync = n;
}

/* --- the calls -------------------------------------------------------------------------------- */

static int power_open(struct varve_world *w, const char *path, int flags, mode_t mode)
{
    struct power_world *p = self(w);
    bool is_new = (flags & O_CREAT) && access(path, F_OK) < 0;
    int fd;

    if ((flags & O_TRUNC) && !is_new) {
        int old = p->inner->open(p->inner, path, O_RDWR, 0);

        if (old < 0)
            return old;
        remember_data(p, old, 0, UINT64_MAX);
        p->inner->close(p->inner, old);
    }
    if (is_new)
        remember_name(p, change_new(p, CHANGE_CREATE), path);
    fd = p->inner->open(p->inner, path, flags, mode);
    if (fd < 0 && is_new)
        forget_newest(p);
    return fd;
}

static int power_pwrite(struct varve_world *w, int fd, const void *buf, size_t len, uint64_t off)
{
    struct power_world *p = self(w);

    remember_data(p, fd, off, len);
    return p->inner->pwrite(p->inner, fd, buf, len, off);
}

static int power_allocate(struct varve_world *w, int fd, uint64_t off, uint64_t len)
{
    struct power_world *p = self(w);

    remember_data(p, fd, off, 0);
    return p->inner->allocate(p->inner, fd, off, len);
}

static int power_truncate(struct varve_world *w, int fd, uint64_t len)
{
    struct power_world *p = self(w);

    remember_data(p, fd, len, UINT64_MAX);
    return p->inner->truncate(p->inner, fd, len);
}

static int power_punch(struct varve_world *w, int fd, uint64_t off, uint64_t len)
{
    struct power_world *p = self(w);

    remember_data(p, fd, off, len);
    return p->inner->punch(p->inner, fd, off, len);
}

static ssize_t power_copy(struct varve_world *w, int from, uint64_t from_off, int to,
                          uint64_t to_off, size_t len)
{
    struct power_world *p = self(w);

    remember_data(p, to, to_off, len);
    return p->inner->copy(p->inner, from, from_off, to, to_off, len);
}

static int power_sync(struct varve_world *w, int fd)
{
    struct power_world *p = self(w);
    struct power_file *file = file_of(p, fd);

    if (p->failing_sync == 0 || --p->failing_sync > 0) {
        forget(p, file, NULL);
        return 0;
    }
    for (struct power_change *c = p->changes; c; c = c->older) {
        if (c->kind == CHANGE_DATA && c->file == file)
            c->refused = true;
    }
    return -EIO;
}

static int power_mkdir(struct varve_world *w, const char *path, mode_t mode)
{
    struct power_world *p = self(w);
    int rc = p->inner->mkdir(p->inner, path, mode);
    struct power_change *c;

    if (rc < 0)
        return rc;
    c = change_new(p, CHANGE_MKDIR);
    c->path = strdup(path);
    must(c->path != NULL, "power-world");
    return 0;
}

static int rename_by(struct varve_world *w, const char *from, const char *to,
                     int (*by)(struct varve_world *w, const char *from, const char *to))
{
    struct power_world *p = self(w);
    struct power_change *c = change_new(p, CHANGE_RENAME);
    int rc;

    c->from = strdup(from);
    must(c->from != NULL, "power-world");
    remember_name(p, c, to);
    rc = by(p->inner, from, to);
    if (rc < 0)
        forget_newest(p);
    return rc;
}

static int power_rename(struct varve_world *w, const char *from, const char *to)
{
    return rename_by(w, from, to, self(w)->inner->rename);
}

static int power_rename_new(struct varve_world *w, const char *from, const char *to)
{
    return rename_by(w, from, to, self(w)->inner->rename_new);
}

static int power_unlink(struct varve_world *w, const char *path)
{
    struct power_world *p = self(w);
    int rc;

    remember_name(p, change_new(p, CHANGE_UNLINK), path);
    rc = p->inner->unlink(p->inner, path);
    if (rc < 0)
        forget_newest(p);
    return rc;
}

static int power_sync_dir(struct varve_world *w, const char *path)
{
    struct power_world *p = self(w);

    if (access(path, F_OK) < 0)
        return -errno;
    forget(p, NULL, path);
    return 0;
}

void power_world_init(struct power_world *p, const char *graveyard)
{
    memset(p, 0, sizeof(*p));
    p->inner = varve_world_posix();
    p->graveyard = strdup(graveyard);
    must(p->graveyard != NULL, "power-world");
    /* What changes nothing needs no memory of its own. */
    p->world = *p->inner;
    p->world.open = power_open;
    p->world.pwrite = power_pwrite;
    p->world.allocate = power_allocate;
    p->world.truncate = power_truncate;
    p->world.punch = power_punch;
    p->world.copy = power_copy;
    p->world.sync = power_sync;
    p->world.sync_all = power_sync;
    p->world.mkdir = power_mkdir;
    p->world.rename = power_rename;
    p->world.rename_new = power_rename_new;
    p->world.unlink = power_unlink;
    p->world.sync_dir = power_sync_dir;
}

void power_world_fini(struct power_world *p)
{
    while (p->changes)
        forget_newest(p);
    while (p->files) {
        struct power_file *f = p->files;

        p->files = f->next;
        close(f->fd);
        free(f);
    }
    free(p->graveyard);
}
