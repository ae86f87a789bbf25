/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A file system in memory that can lose power: lossfs -f MOUNTPOINT.  For lossy.py alone.  It is
 * long because libfuse wants each call of a file system.
 *
 * Of each file it has what programs see, what is durable, and all versions of each sector (and of
 * the size) since the last fsync of that file; of each directory likewise what programs see, what
 * is durable, and the changes since the last fsync of that directory.  A file's fsync says nothing
 * of its name, a directory's nothing of its files' content.  Writing to /.lossfs does
 *
 *     sync          everything is durable
 *     lose SEED     power is lost: everything is what was durable, and by the seed some of what was
 *                   not synced: any version of any sector and of the size; of a directory's changes
 *                   the first ones, or any (a rename happens wholly or not at all)
 *
 * No program may have a file open then: the machine has gone down with all of them.
 */
#define FUSE_USE_VERSION 31
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define SECTOR   512
#define FILE_MAX (64u << 20) /* of address space; memory is taken as it is touched */
#define CONTROL  "/.lossfs"

struct version {
    uint32_t sector;
    uint8_t data[SECTOR];
};

struct entry {
    char name[256];
    struct inode *inode;
};

/* The entry `name` becomes inode; NULL: it goes.  from: that one goes with it. */
struct change {
    char name[256], from[256];
    struct inode *inode;
};

struct inode {
    struct inode *next;
    uint64_t ino;
    mode_t mode;
    uid_t uid;
    gid_t gid;
    struct timespec mtime;
    unsigned opened;
    bool used;

    uint8_t *now, *durable;
    uint64_t size, durable_size;
    struct version *versions;
    size_t nversions, room;
    uint64_t *sizes;
    size_t nsizes;

    struct entry *entries, *durable_entries;
    size_t nentries, ndurable;
    struct change *changes;
    size_t nchanges;
};

static pthread_mutex_t lock =
    PTHREAD_MUTEX_INITIALIZER; /* guards all; no rank, there is no other */
static struct inode *inodes, *root;
static uint64_t last_ino, random_state;

static void *must(void *p)
{
    if (!p || p == MAP_FAILED)
        abort();
    return p;
}

/* xorshift64*: the same seed, the same losses. */
static uint64_t next_random(void)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * UINT64_C(2685821657736338717) >> 16;
}

static uint8_t *buffer(void)
{
    return must(mmap(NULL, FILE_MAX, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
}

static struct inode *inode_new(mode_t mode)
{
    struct inode *i = must(calloc(1, sizeof(*i)));

    i->ino = ++last_ino;
    i->mode = mode;
    i->uid = getuid();
    i->gid = getgid();
    clock_gettime(CLOCK_REALTIME, &i->mtime);
    if (S_ISREG(mode)) {
        i->now = buffer();
        i->durable = buffer();
    }
    i->next = inodes;
    inodes = i;
    return i;
}

static void inode_free(struct inode *i)
{
    if (i->now) {
        munmap(i->now, FILE_MAX);
        munmap(i->durable, FILE_MAX);
    }
    free(i->versions);
    free(i->sizes);
    free(i->entries);
    free(i->durable_entries);
    free(i->changes);
    free(i);
}

/* --- files ------------------------------------------------------------------------------------ */

/* What programs see in [off, off+len) has changed. */
static void file_changed(struct inode *i, uint64_t off, uint64_t len)
{
    if (len == 0)
        return;
    for (uint64_t s = off / SECTOR; s <= (off + len - 1) / SECTOR; s++) {
        if (i->nversions == i->room) {
            i->room = i->room ? i->room * 2 : 64;
            i->versions = must(realloc(i->versions, i->room * sizeof(*i->versions)));
        }
        i->versions[i->nversions].sector = (uint32_t)s;
        memcpy(i->versions[i->nversions++].data, i->now + s * SECTOR, SECTOR);
    }
    clock_gettime(CLOCK_REALTIME, &i->mtime);
}

static void file_resize(struct inode *i, uint64_t size)
{
    uint64_t old = i->size;

    if (size == old)
        return;
    if (size < old) {
        memset(i->now + size, 0, old - size);
        file_changed(i, size, old - size);
    }
    i->size = size;
    i->sizes = must(realloc(i->sizes, (i->nsizes + 1) * sizeof(*i->sizes)));
    i->sizes[i->nsizes++] = size;
}

static void file_sync(struct inode *i)
{
    for (size_t k = 0; k < i->nversions; k++) {
        uint64_t at = (uint64_t)i->versions[k].sector * SECTOR;

        memcpy(i->durable + at, i->now + at, SECTOR);
    }
    i->durable_size = i->size;
    i->nversions = i->nsizes = 0;
}

static void file_lose(struct inode *i)
{
    /* All of it is lost, or much, half, little or nothing. */
    uint64_t of_16 = next_random() % 3 * 8 + (next_random() % 2 ? next_random() % 8 : 0);

    for (size_t k = 0; k < i->nversions; k++) {
        if (next_random() % 16 < of_16)
            memcpy(i->durable + (uint64_t)i->versions[k].sector * SECTOR, i->versions[k].data,
                   SECTOR);
    }
    for (size_t k = 0; k < i->nsizes; k++) {
        if (next_random() % 16 < of_16)
            i->durable_size = i->sizes[k];
    }
    for (size_t k = 0; k < i->nversions; k++) {
        uint64_t at = (uint64_t)i->versions[k].sector * SECTOR;

        for (uint64_t b = at; b < at + SECTOR; b++) {
            if (b >= i->durable_size)
                i->durable[b] = 0;
        }
        memcpy(i->now + at, i->durable + at, SECTOR);
    }
    if (i->durable_size < i->size) {
        memset(i->now + i->durable_size, 0, i->size - i->durable_size);
        memset(i->durable + i->durable_size, 0, i->size - i->durable_size);
    }
    i->size = i->durable_size;
    i->nversions = i->nsizes = 0;
}

/* --- directories ------------------------------------------------------------------------------ */

static struct entry *dir_find(struct inode *d, const char *name)
{
    for (size_t k = 0; k < d->nentries; k++) {
        if (strcmp(d->entries[k].name, name) == 0)
            return &d->entries[k];
    }
    return NULL;
}

static void entries_set(struct entry **list, size_t *n, const char *name, struct inode *inode)
{
    for (size_t k = 0; k < *n; k++) {
        if (strcmp((*list)[k].name, name) != 0)
            continue;
        if (inode)
            (*list)[k].inode = inode;
        else
            (*list)[k] = (*list)[--*n];
        return;
    }
    if (!inode)
        return;
    *list = must(realloc(*list, (*n + 1) * sizeof(**list)));
    snprintf((*list)[*n].name, sizeof((*list)[*n].name), "%s", name);
    (*list)[(*n)++].inode = inode;
}

static void dir_change(struct inode *d, const char *name, struct inode *inode, const char *from)
{
    struct change *c;

    d->changes = must(realloc(d->changes, (d->nchanges + 1) * sizeof(*d->changes)));
    c = &d->changes[d->nchanges++];
    snprintf(c->name, sizeof(c->name), "%s", name);
    snprintf(c->from, sizeof(c->from), "%s", from);
    c->inode = inode;
    entries_set(&d->entries, &d->nentries, name, inode);
    if (from[0])
        entries_set(&d->entries, &d->nentries, from, NULL);
    clock_gettime(CLOCK_REALTIME, &d->mtime);
}

static void dir_copy(struct entry **to, size_t *nto, const struct entry *from, size_t n)
{
    *to = must(realloc(*to, (n + 1) * sizeof(**to)));
    if (n > 0)
        memcpy(*to, from, n * sizeof(**to));
    *nto = n;
}

static void dir_sync(struct inode *d)
{
    dir_copy(&d->durable_entries, &d->ndurable, d->entries, d->nentries);
    d->nchanges = 0;
}

static void dir_lose(struct inode *d)
{
    bool in_order = next_random() % 2;
    size_t first = d->nchanges ? next_random() % (d->nchanges + 1) : 0;

    for (size_t k = 0; k < d->nchanges; k++) {
        const struct change *c = &d->changes[k];

        if (in_order ? k >= first : next_random() % 2)
            continue;
        entries_set(&d->durable_entries, &d->ndurable, c->name, c->inode);
        if (c->from[0])
            entries_set(&d->durable_entries, &d->ndurable, c->from, NULL);
    }
    dir_copy(&d->entries, &d->nentries, d->durable_entries, d->ndurable);
    d->nchanges = 0;
}

/* --- all of it -------------------------------------------------------------------------------- */

static void mark(struct inode *i)
{
    if (i->used)
        return;
    i->used = true;
    for (size_t k = 0; k < i->nentries; k++)
        mark(i->entries[k].inode);
    for (size_t k = 0; k < i->ndurable; k++)
        mark(i->durable_entries[k].inode);
}

static void lose_power(uint64_t seed)
{
    struct inode **at = &inodes;

    random_state = seed * 2 + 1;
    for (struct inode *i = inodes; i; i = i->next) {
        if (S_ISDIR(i->mode))
            dir_lose(i);
        else
            file_lose(i);
        i->used = i->opened > 0;
    }
    mark(root);
    while (*at) {
        struct inode *i = *at;

        if (i->used) {
            at = &i->next;
        } else {
            *at = i->next;
            inode_free(i);
        }
    }
}

static struct inode *find_len(const char *path, size_t len)
{
    struct inode *i = root;
    const char *end = path + len;

    while (path < end) {
        const char *slash;
        struct entry *e;
        char name[256];

        if (*path == '/') {
            path++;
            continue;
        }
        slash = memchr(path, '/', (size_t)(end - path));
        if (!slash)
            slash = end;
        if ((size_t)(slash - path) >= sizeof(name) || !S_ISDIR(i->mode))
            return NULL;
        memcpy(name, path, (size_t)(slash - path));
        name[slash - path] = '\0';
        e = dir_find(i, name);
        if (!e)
            return NULL;
        i = e->inode;
        path = slash;
    }
    return i;
}

static struct inode *find(const char *path, struct fuse_file_info *fi)
{
    if (fi && fi->fh)
        return (struct inode *)(uintptr_t)fi->fh; // NOLINT: libfuse keeps pointers so
    return path ? find_len(path, strlen(path)) : NULL;
}

/* The directory that holds the path's last name. */
static struct inode *parent(const char *path, const char **name)
{
    *name = strrchr(path, '/') + 1;
    return find_len(path, (size_t)(*name - path));
}

/* --- what libfuse calls ----------------------------------------------------------------------- */

static int op_getattr(const char *path, struct stat *st, struct fuse_file_info *fi)
{
    struct inode *i;

    memset(st, 0, sizeof(*st));
    if (path && strcmp(path, CONTROL) == 0) {
        st->st_mode = S_IFREG | 0600;
        st->st_nlink = 1;
        return 0;
    }
    pthread_mutex_lock(&lock);
    i = find(path, fi);
    if (i) {
        st->st_ino = i->ino;
        st->st_mode = i->mode;
        st->st_nlink = 1;
        st->st_uid = i->uid;
        st->st_gid = i->gid;
        st->st_size = (off_t)i->size;
        st->st_blocks = (blkcnt_t)((i->size + SECTOR - 1) / SECTOR);
        st->st_blksize = 4096;
        st->st_mtim = st->st_ctim = st->st_atim = i->mtime;
    }
    pthread_mutex_unlock(&lock);
    return i ? 0 : -ENOENT;
}

static int make(const char *path, mode_t mode, struct fuse_file_info *fi)
{
    const char *name;
    struct inode *d, *i;
    int rc = 0;

    pthread_mutex_lock(&lock);
    d = parent(path, &name);
    if (!d)
        rc = -ENOENT;
    else if (dir_find(d, name))
        rc = -EEXIST;
    else if (strlen(name) > 255)
        rc = -ENAMETOOLONG;
    if (rc == 0) {
        i = inode_new(mode);
        dir_change(d, name, i, "");
        if (fi) {
            i->opened++;
            fi->fh = (uintptr_t)i;
        }
    }
    pthread_mutex_unlock(&lock);
    return rc;
}

static int op_create(const char *path, mode_t mode, struct fuse_file_info *fi)
{
    return make(path, S_IFREG | (mode & 07777), fi);
}

static int op_mkdir(const char *path, mode_t mode)
{
    return make(path, S_IFDIR | (mode & 07777), NULL);
}

static int op_open(const char *path, struct fuse_file_info *fi)
{
    struct inode *i;

    fi->fh = 0;
    if (strcmp(path, CONTROL) == 0) {
        fi->direct_io = 1;
        return 0;
    }
    pthread_mutex_lock(&lock);
    i = find(path, NULL);
    if (i) {
        i->opened++;
        fi->fh = (uintptr_t)i;
        if (fi->flags & O_TRUNC)
            file_resize(i, 0);
    }
    pthread_mutex_unlock(&lock);
    return i ? 0 : -ENOENT;
}

static int op_opendir(const char *path, struct fuse_file_info *fi)
{
    return op_open(path, fi);
}

static int op_release(const char *path, struct fuse_file_info *fi)
{
    struct inode *i;

    (void)path;
    pthread_mutex_lock(&lock);
    i = find(NULL, fi);
    if (i)
        i->opened--;
    pthread_mutex_unlock(&lock);
    return 0;
}

static int op_read(const char *path, char *buf, size_t len, off_t off, struct fuse_file_info *fi)
{
    struct inode *i;
    uint64_t at = (uint64_t)off;

    (void)path;
    pthread_mutex_lock(&lock);
    i = find(NULL, fi);
    if (!i || at >= i->size)
        len = 0;
    else if (len > i->size - at)
        len = i->size - at;
    if (len > 0)
        memcpy(buf, i->now + at, len);
    pthread_mutex_unlock(&lock);
    return (int)len;
}

static int control(const char *buf, size_t len)
{
    char text[64];
    unsigned long long seed;

    snprintf(text, sizeof(text), "%.*s", (int)(len < 63 ? len : 63), buf);
    if (strncmp(text, "sync", 4) == 0) {
        for (struct inode *i = inodes; i; i = i->next) {
            if (S_ISDIR(i->mode))
                dir_sync(i);
            else
                file_sync(i);
        }
    } else if (sscanf(text, "lose %llu", &seed) == 1) {
        lose_power(seed);
    } else {
        return -EINVAL;
    }
    return (int)len;
}

static int op_write(const char *path, const char *buf, size_t len, off_t off,
                    struct fuse_file_info *fi)
{
    struct inode *i;
    uint64_t end = (uint64_t)off + len;
    int rc = (int)len;

    (void)path;
    pthread_mutex_lock(&lock);
    i = find(NULL, fi);
    if (!i) {
        rc = control(buf, len);
    } else if (end > FILE_MAX) {
        rc = -EFBIG;
    } else {
        memcpy(i->now + off, buf, len);
        if (end > i->size)
            file_resize(i, end);
        file_changed(i, (uint64_t)off, len);
    }
    pthread_mutex_unlock(&lock);
    return rc;
}

static int op_truncate(const char *path, off_t size, struct fuse_file_info *fi)
{
    struct inode *i;
    int rc = 0;

    pthread_mutex_lock(&lock);
    i = find(path, fi);
    if (i && (uint64_t)size <= FILE_MAX)
        file_resize(i, (uint64_t)size);
    else if (!path || strcmp(path, CONTROL) != 0)
        rc = i ? -EFBIG : -ENOENT;
    pthread_mutex_unlock(&lock);
    return rc;
}

static int op_fallocate(const char *path, int mode, off_t off, off_t len, struct fuse_file_info *fi)
{
    struct inode *i;
    uint64_t at = (uint64_t)off, end = at + (uint64_t)len;
    int rc = 0;

    (void)path;
    if (mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
        return -EOPNOTSUPP;
    pthread_mutex_lock(&lock);
    i = find(NULL, fi);
    if (!i || end > FILE_MAX) {
        rc = i ? -EFBIG : -EBADF;
    } else {
        if (end > i->size && !(mode & FALLOC_FL_KEEP_SIZE))
            file_resize(i, end);
        if (end > i->size)
            end = i->size;
        if ((mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) && at < end) {
            memset(i->now + at, 0, end - at);
            file_changed(i, at, end - at);
        }
    }
    pthread_mutex_unlock(&lock);
    return rc;
}

static int op_fsync(const char *path, int datasync, struct fuse_file_info *fi)
{
    struct inode *i;

    (void)path;
    (void)datasync;
    pthread_mutex_lock(&lock);
    i = find(NULL, fi);
    if (i)
        file_sync(i);
    pthread_mutex_unlock(&lock);
    return 0;
}

static int op_fsyncdir(const char *path, int datasync, struct fuse_file_info *fi)
{
    struct inode *i;

    (void)datasync;
    pthread_mutex_lock(&lock);
    i = find(path, fi);
    if (i)
        dir_sync(i);
    pthread_mutex_unlock(&lock);
    return i ? 0 : -ENOENT;
}

static int drop(const char *path, bool dir)
{
    const char *name;
    struct inode *d;
    struct entry *e;
    int rc = 0;

    pthread_mutex_lock(&lock);
    d = parent(path, &name);
    e = d ? dir_find(d, name) : NULL;
    if (!e)
        rc = -ENOENT;
    else if (dir != S_ISDIR(e->inode->mode))
        rc = dir ? -ENOTDIR : -EISDIR;
    else if (e->inode->nentries > 0)
        rc = -ENOTEMPTY;
    else
        dir_change(d, name, NULL, "");
    pthread_mutex_unlock(&lock);
    return rc;
}

static int op_unlink(const char *path)
{
    return drop(path, false);
}

static int op_rmdir(const char *path)
{
    return drop(path, true);
}

static int op_rename(const char *from, const char *to, unsigned flags)
{
    const char *from_name, *to_name;
    struct inode *d;
    struct entry *e;
    int rc = 0;

    pthread_mutex_lock(&lock);
    d = parent(from, &from_name);
    e = d ? dir_find(d, from_name) : NULL;
    if (!e)
        rc = -ENOENT;
    else if (parent(to, &to_name) != d)
        rc = -EXDEV;
    else if (flags)
        rc = -EINVAL;
    else if (strcmp(from_name, to_name) != 0)
        dir_change(d, to_name, e->inode, from_name);
    pthread_mutex_unlock(&lock);
    return rc;
}

static int op_readdir(const char *path, void *buf, fuse_fill_dir_t fill, off_t off,
                      struct fuse_file_info *fi, enum fuse_readdir_flags flags)
{
    struct inode *i;

    (void)off;
    (void)flags;
    pthread_mutex_lock(&lock);
    i = find(path, fi);
    fill(buf, ".", NULL, 0, 0);
    fill(buf, "..", NULL, 0, 0);
    for (size_t k = 0; i && k < i->nentries; k++)
        fill(buf, i->entries[k].name, NULL, 0, 0);
    pthread_mutex_unlock(&lock);
    return i ? 0 : -ENOENT;
}

static int op_chmod(const char *path, mode_t mode, struct fuse_file_info *fi)
{
    struct inode *i;

    pthread_mutex_lock(&lock);
    i = find(path, fi);
    if (i)
        i->mode = (i->mode & S_IFMT) | (mode & 07777);
    pthread_mutex_unlock(&lock);
    return i ? 0 : -ENOENT;
}

static int op_chown(const char *path, uid_t uid, gid_t gid, struct fuse_file_info *fi)
{
    (void)path;
    (void)uid;
    (void)gid;
    (void)fi;
    return 0;
}

/* Sparse as far as whole pages are zero. */
static off_t op_lseek(const char *path, off_t off, int whence, struct fuse_file_info *fi)
{
    static const uint8_t zero[4096];
    struct inode *i;
    uint64_t at = (uint64_t)off;
    off_t rc;

    (void)path;
    pthread_mutex_lock(&lock);
    i = find(NULL, fi);
    while (i && at < i->size &&
           (memcmp(i->now + at / 4096 * 4096, zero, 4096) == 0) == (whence == SEEK_DATA))
        at = (at / 4096 + 1) * 4096;
    if (!i || (uint64_t)off >= i->size || (whence == SEEK_DATA && at >= i->size))
        rc = -ENXIO;
    else
        rc = (off_t)(at < i->size ? at : i->size);
    pthread_mutex_unlock(&lock);
    return rc;
}

static int op_statfs(const char *path, struct statvfs *st)
{
    (void)path;
    memset(st, 0, sizeof(*st));
    st->f_bsize = st->f_frsize = 4096;
    st->f_blocks = 4u << 20;
    st->f_bfree = st->f_bavail = 3u << 20;
    st->f_files = st->f_ffree = 1u << 20;
    st->f_namemax = 255;
    return 0;
}

static void *op_init(struct fuse_conn_info *conn, struct fuse_config *cfg)
{
    (void)conn;
    cfg->use_ino = 1;
    cfg->hard_remove = 1;
    cfg->nullpath_ok = 1;
    cfg->attr_timeout = cfg->entry_timeout = cfg->negative_timeout = 0;
    return NULL;
}

static const struct fuse_operations operations = {
    .getattr = op_getattr,
    .mkdir = op_mkdir,
    .unlink = op_unlink,
    .rmdir = op_rmdir,
    .rename = op_rename,
    .chmod = op_chmod,
    .chown = op_chown,
    .truncate = op_truncate,
    .open = op_open,
    .read = op_read,
    .write = op_write,
    .statfs = op_statfs,
    .release = op_release,
    .fsync = op_fsync,
    .opendir = op_opendir,
    .readdir = op_readdir,
    .releasedir = op_release,
    .fsyncdir = op_fsyncdir,
    .init = op_init,
    .create = op_create,
    .fallocate = op_fallocate,
    .lseek = op_lseek,
};

int main(int argc, char **argv)
{
    int rc;

    prctl(PR_SET_PDEATHSIG, SIGTERM); /* unmounts, whatever becomes of the test */
    root = inode_new(S_IFDIR | 0700);
    rc = fuse_main(argc, argv, &operations, NULL);
    while (inodes) {
        struct inode *next = inodes->next;

        inode_free(inodes);
        inodes = next;
    }
    return rc;
}
