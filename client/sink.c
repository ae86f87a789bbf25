/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What is on disk, in this order, each step durable before the next:
 *
 *     full:         marker | file made, empty | data ... synced, its folder too | no marker
 *     incremental:  marker |                    data ... synced                 | no marker
 *
 * So whoever finds a file without a marker finds a whole backup, or nothing that was changed.
 * What the file is then, where the server told it, stands in FILE.varve, written between the last
 * sync and the end of the marker.
 *
 * One that was cut short goes on where it was (sink-tail.c), if the server tells that its view is
 * the same still.  Else a full copy starts over, and an incremental one is done again: a dirty
 * range may be pulled twice, and what one view has dirty a later one since the same base has too; an earlier one is refused.
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

/* A marker is there: is this pull the one that it stands for? */
static int sink_resume(struct varve_sink *s, const json_t *marker,
                       const struct varve_sink_want *want, struct varve_err *err)
{
    const char *kind = json_string_value(json_object_get(marker, "kind"));
    const char *was = json_string_value(json_object_get(marker, "context"));
    const char *uri = json_string_value(json_object_get(marker, "uri"));
    const char *base = json_string_value(json_object_get(marker, "base"));
    const char *deltas = json_string_value(json_object_get(marker, "deltas"));
    json_int_t epoch = json_integer_value(json_object_get(marker, "epoch"));
    bool same = was && want->context && strcmp(was, want->context) == 0;

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
        /* It has blocks that were not written yet at an earlier instant, and so are not dirty in it. */
        if (want->epoch != 0 && (uint64_t)epoch > want->epoch)
            return varve_err_set(err, EEXIST,
                                 "%.120s.partial: the unfinished pull was of a later instant (the start "
                                 "of epoch %" PRIu64 ") than this export's: finish it from that backup "
                                 "or a newer one, or remove both files",
                                 s->path, (uint64_t)epoch);
        s->kind = VARVE_SINK_INCREMENTAL;
        return 0;
    }
    if (strcmp(kind, "apply") == 0)
        return varve_err_set(err, EEXIST,
                             "%.120s.partial: an unfinished varve apply of %.200s must be finished "
                             "first: run it again, or remove both files",
                             s->path, deltas ? deltas : "?");
    return varve_err_set(err, EEXIST,
                         "%.120s.partial: an unfinished %s pull of %.120s%s%.100s must "
                         "be finished first: run it again, or remove both files",
                         s->path, strcmp(kind, "full") == 0 ? "full" : "incremental",
                         uri ? uri : "?", was ? " --context " : "", was ? was : "");
}

/* An incremental one's length, or what a pull that died has left of it. */
static int sink_check_size(const struct varve_sink *s, const struct varve_sink_want *want,
                           bool unfinished, struct varve_err *err)
{
    struct stat st;
    uint64_t most = want->export_size + (unfinished ? VARVE_SINK_TAIL : 0);

    if (fstat(s->fd, &st) != 0)
        return varve_err_sys(err, errno, "%s", s->path);
    if ((uint64_t)st.st_size < want->export_size || (uint64_t)st.st_size > most)
        return varve_err_set(err, EINVAL,
                             "%s has %jd bytes and the export %" PRIu64 ": it is no "
                             "earlier backup of it; make a full copy into another file",
                             s->path, (intmax_t)st.st_size, want->export_size);
    return 0;
}

static int sink_decide(struct varve_sink *s, const struct varve_sink_want *want,
                       struct varve_err *err)
{
    json_t *marker;
    bool unfinished;
    int rc = varve_sink_read_marker(s, &marker, err);

    if (rc != 0)
        return rc;
    unfinished = marker != NULL;
    if (marker) {
        rc = sink_resume(s, marker, want, err);
        if (rc == 0)
            varve_sink_keep(s, marker, want);
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
    return s->kind == VARVE_SINK_INCREMENTAL ? sink_check_size(s, want, unfinished, err) : 0;
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

int varve_sink_open_backup(struct varve_sink *s, const char *path, struct varve_err *err)
{
    int rc;

    *s = (struct varve_sink){.dir = -1, .fd = -1, .kind = VARVE_SINK_INCREMENTAL};
    rc = sink_locate(s, path, err);
    if (rc == 0)
        rc = sink_open_file(s, err);
    if (rc == 0 && s->fd < 0)
        rc = varve_err_sys(err, ENOENT, "%s", path);
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

int varve_sink_begin(struct varve_sink *s, const struct varve_sink_want *want,
                     struct varve_err *err)
{
    int rc = 0;

    /* Its marker says it all; but who renamed it may have died before the sync. */
    if (s->kept > 0)
        return fsync(s->dir) == 0 ? 0 : varve_err_sys(err, errno, "syncing %s.partial", s->path);
    if (want->view)
        rc = varve_sink_new_token(s, err);
    if (rc == 0)
        rc = varve_sink_mark(s, want, 0, err);
    if (rc != 0)
        return rc;
    s->blank = s->kind == VARVE_SINK_FULL;
    if (s->fd < 0) {
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

        s->fd = openat(s->dir, sink_base(s), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (s->fd < 0)
            return varve_err_sys(err, errno, "making %s", s->path);
        fcntl(s->fd, F_OFD_SETLK, &lock);
    }
    /* An incremental one may have the tail of a pull that died. */
    if ((s->blank && ftruncate(s->fd, 0) != 0) || ftruncate(s->fd, (off_t)want->export_size) != 0)
        return varve_err_sys(err, errno, "making %s %" PRIu64 " bytes long", s->path,
                             want->export_size);
    return varve_sink_put_tail(s, want->export_size, err);
}

int varve_sink_sync(struct varve_sink *s, struct varve_err *err)
{
    if (fsync(s->fd) != 0)
        return varve_err_sys(err, errno, "syncing %s", s->path);
    if (fsync(s->dir) != 0)
        return varve_err_sys(err, errno, "syncing the folder of %s", s->path);
    return 0;
}

int varve_sink_save(struct varve_sink *s, const struct varve_sink_want *want, uint64_t copied,
                    struct varve_err *err)
{
    int rc = varve_sink_sync(s, err);

    return rc == 0 ? varve_sink_mark(s, want, copied, err) : rc;
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
