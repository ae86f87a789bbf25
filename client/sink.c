/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What is on disk, in this order, each step durable before the next:
 *
 *     full:         marker | file made, empty | data ... synced | folder synced | no marker
 *     incremental:  marker |                    data ... synced |                 no marker
 *
 * So whoever finds a file without a marker finds a whole backup, or nothing that was changed.
 * The marker is written under another name and renamed: it is whole or it is not there.
 *
 * A dirty range may be pulled again, so an incremental pull that was cut short is finished by doing
 * all of it again; a full copy starts over.
 */
#include "client/sink.h"
#include "lib/qmp.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Zeroes of this length and alignment within data become holes. */
#define ZERO_CHUNK ((size_t)64 * 1024)

/* Finds the folder and the names.  The file itself need not exist. */
static int sink_locate(struct varve_sink *s, const char *path, struct varve_err *err)
{
    const char *base;
    char *folder;
    struct stat st;

    s->path = path;
    s->real = realpath(path, NULL);
    if (!s->real && errno == ENOENT && lstat(path, &st) == 0)
        return varve_err_set(err, ENOENT, "%s is a link that leads nowhere: name its target", path);
    if (!s->real && errno == ENOENT)
        s->real = strdup(path);
    if (!s->real)
        return varve_err_sys(err, errno, "%s", path);
    base = strrchr(s->real, '/');
    base = base ? base + 1 : s->real;
    if (!base[0])
        return varve_err_set(err, EISDIR, "'%s' is no name of a file", path);
    if (asprintf(&s->marker, "%s.partial", base) < 0) {
        s->marker = NULL;
        return varve_err_set(err, ENOMEM, "no memory");
    }
    folder = base == s->real ? strdup(".") : strndup(s->real, (size_t)(base - s->real));
    if (!folder)
        return varve_err_set(err, ENOMEM, "no memory");
    s->dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(folder);
    if (s->dir < 0)
        return varve_err_sys(err, errno, "the folder of %s", path);
    return 0;
}

static const char *sink_base(const struct varve_sink *s)
{
    const char *slash = strrchr(s->real, '/');

    return slash ? slash + 1 : s->real;
}

/* Opens and locks the file.  0 also when there is none: fd stays -1. */
static int sink_open_file(struct varve_sink *s, struct varve_err *err)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    struct stat st;

    if (fstatat(s->dir, sink_base(s), &st, 0) != 0)
        return errno == ENOENT ? 0 : varve_err_sys(err, errno, "%s", s->path);
    if (!S_ISREG(st.st_mode))
        return varve_err_set(err, EINVAL, "%s is not a regular file", s->path);
    s->fd = openat(s->dir, sink_base(s), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (s->fd < 0)
        return varve_err_sys(err, errno, "%s", s->path);
    /* Held by another pull, or by QEMU's tools while they use the image.  File systems without
     * locks are not refused. */
    if (fcntl(s->fd, F_OFD_SETLK, &lock) != 0 && (errno == EAGAIN || errno == EACCES))
        return varve_err_set(err, EBUSY, "%s is in use by another program (another varve pull?)",
                             s->path);
    return 0;
}

/* The marker as JSON, NULL: there is none. */
static int sink_read_marker(struct varve_sink *s, json_t **marker, struct varve_err *err)
{
    int fd = openat(s->dir, s->marker, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    *marker = NULL;
    if (fd < 0)
        return errno == ENOENT ? 0 : varve_err_sys(err, errno, "%s.partial", s->path);
    *marker = json_loadfd(fd, JSON_REJECT_DUPLICATES, NULL);
    close(fd);
    if (!json_string_value(json_object_get(*marker, "kind"))) {
        json_decref(*marker);
        *marker = NULL;
        return varve_err_set(err, EINVAL,
                             "%s.partial is not a marker of varve pull's: see what it "
                             "is and move it away",
                             s->path);
    }
    return 0;
}

/* A marker is there: is this pull the one that it stands for? */
static int sink_resume(struct varve_sink *s, const json_t *marker,
                       const struct varve_sink_want *want, struct varve_err *err)
{
    const char *kind = json_string_value(json_object_get(marker, "kind"));
    const char *was = json_string_value(json_object_get(marker, "context"));
    const char *uri = json_string_value(json_object_get(marker, "uri"));
    const char *base = json_string_value(json_object_get(marker, "base"));
    bool same = was && want->context && strcmp(was, want->context) == 0;

    s->resumed = true;
    if (strcmp(kind, "full") == 0 && (!want->context || same)) {
        s->kind = VARVE_SINK_FULL;
        return 0;
    }
    if (strcmp(kind, "incremental") == 0 && same && s->fd >= 0) {
        if (base && (!want->base || strcmp(base, want->base) != 0))
            return varve_err_set(err, EEXIST,
                                 "%.120s.partial: the unfinished pull was of the changes since "
                                 "%.100s, this export has those since %.100s: finish it from a "
                                 "backup with the same base, or remove both files",
                                 s->path, base, want->base ? want->base : "it does not say when");
        s->kind = VARVE_SINK_INCREMENTAL;
        return 0;
    }
    return varve_err_set(err, EEXIST,
                         "%.120s.partial: an unfinished %s pull of %.120s%s%.100s must "
                         "be finished first: run it again, or remove both files",
                         s->path, strcmp(kind, "full") == 0 ? "full" : "incremental",
                         uri ? uri : "?", was ? " --context " : "", was ? was : "");
}

static int sink_decide(struct varve_sink *s, const struct varve_sink_want *want,
                       struct varve_err *err)
{
    json_t *marker;
    struct stat st;
    int rc = sink_read_marker(s, &marker, err);

    if (rc != 0)
        return rc;
    if (marker) {
        rc = sink_resume(s, marker, want, err);
        json_decref(marker);
        if (rc != 0)
            return rc;
    } else if (s->fd < 0) {
        s->kind = VARVE_SINK_FULL;
    } else if (want->context) {
        s->kind = VARVE_SINK_INCREMENTAL;
    } else {
        return varve_err_set(err, EEXIST,
                             "%s exists: name another file for a full copy, or say "
                             "with --context or --since which changes to pull onto it",
                             s->path);
    }
    if (s->kind != VARVE_SINK_INCREMENTAL)
        return 0;
    if (fstat(s->fd, &st) != 0)
        return varve_err_sys(err, errno, "%s", s->path);
    if ((uint64_t)st.st_size != want->export_size)
        return varve_err_set(err, EINVAL,
                             "%s has %jd bytes and the export %" PRIu64 ": it is no "
                             "earlier backup of it; make a full copy into another file",
                             s->path, (intmax_t)st.st_size, want->export_size);
    return 0;
}

int varve_sink_open(struct varve_sink *s, const char *path, const struct varve_sink_want *want,
                    struct varve_err *err)
{
    int rc;

    *s = (struct varve_sink){.dir = -1, .fd = -1};
    rc = sink_locate(s, path, err);
    if (rc == 0)
        rc = sink_open_file(s, err);
    if (rc == 0)
        rc = sink_decide(s, want, err);
    if (rc != 0)
        varve_sink_close(s);
    return rc;
}

void varve_sink_close(struct varve_sink *s)
{
    if (s->fd >= 0)
        close(s->fd);
    if (s->dir >= 0)
        close(s->dir);
    free(s->real);
    free(s->marker);
}

/* Writes the marker under another name, syncs it, renames it, syncs the folder. */
static int sink_put_marker(struct varve_sink *s, const json_t *marker, struct varve_err *err)
{
    char *tmp;
    int fd, rc = 0;

    if (asprintf(&tmp, ".%s.%ld", s->marker, (long)getpid()) < 0)
        return varve_err_set(err, ENOMEM, "no memory");
    fd = openat(s->dir, tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        rc = varve_err_sys(err, errno, "making %s.partial", s->path);
        free(tmp);
        return rc;
    }
    errno = 0;
    if (json_dumpfd(marker, fd, JSON_INDENT(2)) != 0 || write(fd, "\n", 1) != 1 || fsync(fd) != 0)
        rc = varve_err_sys(err, errno ? errno : EIO, "writing %s.partial", s->path);
    close(fd);
    if (rc == 0 && (renameat(s->dir, tmp, s->dir, s->marker) != 0 || fsync(s->dir) != 0))
        rc = varve_err_sys(err, errno, "making %s.partial", s->path);
    if (rc != 0)
        unlinkat(s->dir, tmp, 0);
    free(tmp);
    return rc;
}

static int sink_mark(struct varve_sink *s, const struct varve_sink_want *want,
                     struct varve_err *err)
{
    bool full = s->kind == VARVE_SINK_FULL;
    time_t now = time(NULL);
    char when[32] = "";
    struct tm tm;
    json_t *marker;
    int rc;

    if (gmtime_r(&now, &tm))
        strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%SZ", &tm);
    marker = json_pack("{s:s, s:s, s:s*, s:s*, s:s, s:i, s:s}", "note",
                       full ? "the file beside this is an unfinished copy, not a backup"
                            : "the file beside this is neither the old backup nor the new one",
                       "kind", full ? "full" : "incremental", "context", want->context, "base",
                       full ? NULL : want->base, "uri", want->uri, "pid", (int)getpid(), "time",
                       when);
    if (!marker)
        return varve_err_set(err, EINVAL, "URI and context must be UTF-8");
    rc = sink_put_marker(s, marker, err);
    json_decref(marker);
    return rc;
}

int varve_sink_begin(struct varve_sink *s, const struct varve_sink_want *want,
                     struct varve_err *err)
{
    int rc;

    /* A marker that is there says the same; but who renamed it may have died before the sync. */
    if (!s->resumed)
        rc = sink_mark(s, want, err);
    else
        rc = fsync(s->dir) == 0 ? 0 : varve_err_sys(err, errno, "syncing %s.partial", s->path);
    if (rc != 0)
        return rc;
    if (s->kind != VARVE_SINK_FULL)
        return 0;
    if (s->fd < 0) {
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

        s->fd = openat(s->dir, sink_base(s), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (s->fd < 0)
            return varve_err_sys(err, errno, "making %s", s->path);
        fcntl(s->fd, F_OFD_SETLK, &lock);
    }
    if (ftruncate(s->fd, 0) != 0 || ftruncate(s->fd, (off_t)want->export_size) != 0)
        return varve_err_sys(err, errno, "making %s %" PRIu64 " bytes long", s->path,
                             want->export_size);
    return 0;
}

static int sink_pwrite(struct varve_sink *s, const char *buf, uint64_t off, size_t len,
                       struct varve_err *err)
{
    while (len > 0) {
        ssize_t n = pwrite(s->fd, buf, len, (off_t)off);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return varve_err_sys(err, n < 0 ? errno : EIO, "writing %s at %" PRIu64, s->path, off);
        buf += n;
        off += (uint64_t)n;
        len -= (size_t)n;
    }
    return 0;
}

static bool all_zero(const char *buf, size_t len)
{
    return buf[0] == 0 && memcmp(buf, buf + 1, len - 1) == 0;
}

int varve_sink_data(void *opaque, const char *buf, uint64_t off, size_t len, struct varve_err *err)
{
    struct varve_sink *s = opaque;
    size_t from = 0; /* [from, at) is data that was not written yet */
    size_t at = 0;
    int rc = 0;

    while (at < len && rc == 0) {
        size_t chunk = ZERO_CHUNK - (size_t)((off + at) % ZERO_CHUNK);

        if (chunk > len - at)
            chunk = len - at;
        if (all_zero(buf + at, chunk)) {
            rc = sink_pwrite(s, buf + from, off + from, at - from, err);
            if (rc == 0)
                rc = varve_sink_zero(s, off + at, chunk, err);
            from = at + chunk;
        }
        at += chunk;
    }
    return rc == 0 ? sink_pwrite(s, buf + from, off + from, at - from, err) : rc;
}

int varve_sink_zero(void *opaque, uint64_t off, uint64_t len, struct varve_err *err)
{
    static const char zeroes[ZERO_CHUNK];
    struct varve_sink *s = opaque;

    if (s->kind == VARVE_SINK_FULL)
        return 0; /* the file began as one hole */
    if (fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len) == 0)
        return 0;
    if (errno != EOPNOTSUPP && errno != ENOSYS)
        return varve_err_sys(err, errno, "punching %s at %" PRIu64, s->path, off);
    while (len > 0) {
        size_t chunk = len < ZERO_CHUNK ? (size_t)len : ZERO_CHUNK;
        int rc = sink_pwrite(s, zeroes, off, chunk, err);

        if (rc != 0)
            return rc;
        off += chunk;
        len -= chunk;
    }
    return 0;
}

int varve_sink_compare(void *opaque, const char *buf, uint64_t off, size_t len,
                       struct varve_err *err)
{
    struct varve_sink *s = opaque;
    char *ours = malloc(len);
    size_t got = 0;
    int rc = 0;

    if (!ours)
        return varve_err_set(err, ENOMEM, "no memory");
    while (got < len && rc == 0) {
        ssize_t n = pread(s->fd, ours + got, len - got, (off_t)(off + got));

        if (n > 0)
            got += (size_t)n;
        else if (n == 0 || errno != EINTR)
            rc = varve_err_sys(err, n < 0 ? errno : EIO, "reading %s back at %" PRIu64, s->path,
                               off + got);
    }
    if (rc == 0 && memcmp(ours, buf, len) != 0) {
        size_t i = 0;

        while (ours[i] == buf[i])
            i++;
        rc = varve_err_set(err, EIO, "verifying: %s differs from the export at byte %" PRIu64,
                           s->path, off + i);
    }
    free(ours);
    return rc;
}

int varve_sink_sync(struct varve_sink *s, struct varve_err *err)
{
    if (fsync(s->fd) != 0)
        return varve_err_sys(err, errno, "syncing %s", s->path);
    if (fsync(s->dir) != 0)
        return varve_err_sys(err, errno, "syncing the folder of %s", s->path);
    return 0;
}

void varve_sink_forget(struct varve_sink *s)
{
    posix_fadvise(s->fd, 0, 0, POSIX_FADV_DONTNEED);
}

int varve_sink_finish(struct varve_sink *s, struct varve_err *err)
{
    if (unlinkat(s->dir, s->marker, 0) != 0)
        return varve_err_sys(err, errno, "removing %s.partial", s->path);
    if (fsync(s->dir) != 0)
        return varve_err_sys(err, errno, "syncing the folder of %s", s->path);
    return 0;
}
