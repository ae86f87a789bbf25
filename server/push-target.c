/* SPDX-License-Identifier: BSD-3-Clause
 *
 *     full:         marker | file made, empty | data … synced | folder synced | no marker
 *     incremental:  marker |                    data … synced |                 no marker
 *
 * each step durable before the next: whoever finds a file without a marker finds a whole backup, or
 * nothing that was changed.  What may be pushed onto a file that has one: the same push again
 * (`view`), as it does all of its work again; a full one onto an unfinished full one; an
 * incremental onto an unfinished incremental with the same base, since what changed since then up
 * to now has all that had changed up to the earlier instant.
 */
#include "server/push-target.h"

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

static const char *target_base(const struct varve_push_target *t)
{
    return strrchr(t->real, '/') + 1;
}

static int target_locate(struct varve_push_target *t, struct varve_err *err)
{
    struct stat st;
    char *folder;

    t->real = realpath(t->path, NULL);
    if (!t->real && errno == ENOENT && lstat(t->path, &st) == 0)
        return varve_err_set(err, ENOENT, "%.300s is a link that leads nowhere: name its target",
                             t->path);
    if (!t->real && errno == ENOENT)
        t->real = strdup(t->path);
    if (!t->real)
        return varve_err_sys(err, errno, "%.300s", t->path);
    if (!target_base(t)[0])
        return varve_err_set(err, EISDIR, "'%.300s' is no name of a file", t->path);
    folder = strndup(t->real, (size_t)(target_base(t) - t->real));
    if (!folder || asprintf(&t->marker, "%s.partial", target_base(t)) < 0) {
        t->marker = NULL;
        free(folder);
        return varve_err_set(err, ENOMEM, "no memory for %.300s", t->path);
    }
    t->dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(folder);
    return t->dir < 0 ? varve_err_sys(err, errno, "the folder of %.300s", t->path) : 0;
}

/* Held by another push or pull, or by whoever uses it as an image.  File systems without locks are
 * not refused. */
static int target_lock(struct varve_push_target *t, struct varve_err *err)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    if (fcntl(t->fd, F_OFD_SETLK, &lock) != 0 && (errno == EAGAIN || errno == EACCES))
        return varve_err_set(err, EBUSY, "%.300s is in use by another program", t->path);
    return 0;
}

/* fd stays -1 where there is nothing. */
static int target_open_file(struct varve_push_target *t, struct varve_err *err)
{
    struct stat st;

    t->fd = openat(t->dir, target_base(t), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (t->fd < 0)
        return errno == ENOENT ? 0 : varve_err_sys(err, errno, "%.300s", t->path);
    if (fstat(t->fd, &st) != 0)
        return varve_err_sys(err, errno, "%.300s", t->path);
    t->device = S_ISBLK(st.st_mode);
    if (!t->device && !S_ISREG(st.st_mode))
        return varve_err_set(err, EINVAL, "%.300s: neither a regular file nor a block device",
                             t->path);
    return target_lock(t, err);
}

/* --- the marker ----------------------------------------------------------------------------- */

static void view_text(uint64_t view, char text[17])
{
    snprintf(text, 17, "%016" PRIx64, view);
}

static int target_read_marker(struct varve_push_target *t, json_t **marker, struct varve_err *err)
{
    int fd = openat(t->dir, t->marker, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    *marker = NULL;
    if (fd < 0)
        return errno == ENOENT ? 0 : varve_err_sys(err, errno, "%.300s.partial", t->path);
    *marker = json_loadfd(fd, JSON_REJECT_DUPLICATES, NULL);
    close(fd);
    t->marked = true;
    if (json_string_value(json_object_get(*marker, "kind")))
        return 0;
    json_decref(*marker);
    *marker = NULL;
    return varve_err_set(err, EINVAL,
                         "%.300s.partial is no marker of varve's: see what it is and move it away",
                         t->path);
}

static bool is_text(const json_t *marker, const char *key, const char *text)
{
    const char *value = json_string_value(json_object_get(marker, key));

    return value && text && strcmp(value, text) == 0;
}

/* Whether the unfinished copy that the marker stands for may become this one. */
static int target_resume(const struct varve_push_target *t, const json_t *marker,
                         const struct varve_push_want *want, struct varve_err *err)
{
    char view[17];

    view_text(want->view, view);
    if (is_text(marker, "push", view))
        return 0;
    if (!want->base && is_text(marker, "kind", "full"))
        return 0;
    if (want->base && is_text(marker, "kind", "incremental") && t->fd >= 0 &&
        is_text(marker, "base", want->base))
        return 0;
    return varve_err_set(err, EEXIST,
                         "%.200s.partial: an unfinished %s copy (%.100s) of something else: finish "
                         "that, or remove both files",
                         t->path, is_text(marker, "kind", "full") ? "full" : "incremental",
                         json_string_value(json_object_get(marker, "note"))
                             ? json_string_value(json_object_get(marker, "note"))
                             : "it does not say what");
}

/* Under another name first, so it is whole or it is not there. */
static int target_put_marker(struct varve_push_target *t, const json_t *marker,
                             struct varve_err *err)
{
    char *tmp;
    int fd, rc = 0;

    if (asprintf(&tmp, ".%s.new", t->marker) < 0)
        return varve_err_set(err, ENOMEM, "no memory");
    fd = openat(t->dir, tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        rc = varve_err_sys(err, errno, "making %.300s.partial", t->path);
        free(tmp);
        return rc;
    }
    errno = 0;
    if (json_dumpfd(marker, fd, JSON_INDENT(2)) != 0 || write(fd, "\n", 1) != 1 || fsync(fd) != 0)
        rc = varve_err_sys(err, errno ? errno : EIO, "writing %.300s.partial", t->path);
    close(fd);
    if (rc == 0 && (renameat(t->dir, tmp, t->dir, t->marker) != 0 || fsync(t->dir) != 0))
        rc = varve_err_sys(err, errno, "making %.300s.partial", t->path);
    if (rc < 0)
        unlinkat(t->dir, tmp, 0);
    free(tmp);
    return rc;
}

static int target_mark(struct varve_push_target *t, const struct varve_push_want *want,
                       struct varve_err *err)
{
    time_t now = time(NULL);
    char when[32] = "", view[17];
    struct tm tm;
    json_t *marker;
    int rc;

    if (gmtime_r(&now, &tm))
        strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%SZ", &tm);
    view_text(want->view, view);
    marker = json_pack("{s:s, s:s, s:s, s:s, s:s*, s:s}", "note",
                       want->base ? "the file beside this is neither the old backup nor the new one"
                                  : "the file beside this is an unfinished copy, not a backup",
                       "kind", want->base ? "incremental" : "full", "disk", want->disk, "push",
                       view, "base", want->base, "time", when);
    rc = marker ? target_put_marker(t, marker, err)
                : varve_err_set(err, ENOMEM, "no memory for a marker");
    json_decref(marker);
    return rc;
}

/* --- opening -------------------------------------------------------------------------------- */

static int target_judge_size(const struct varve_push_target *t, const struct varve_push_want *want,
                             struct varve_err *err)
{
    off_t size = lseek(t->fd, 0, SEEK_END);

    if (size < 0)
        return varve_err_sys(err, errno, "%.300s: its size", t->path);
    if ((uint64_t)size == want->size)
        return 0;
    return varve_err_set(err, EINVAL,
                         "%.200s has %jd bytes and disk '%s' %" PRIu64 ": it is no earlier copy of "
                         "it; push in full to another file",
                         t->path, (intmax_t)size, want->disk, want->size);
}

static int target_judge(struct varve_push_target *t, const struct varve_push_want *want,
                        struct varve_err *err)
{
    if (want->base && t->fd < 0)
        return varve_err_set(err, ENOENT,
                             "%.300s is not there, and changes alone are no backup: push in full "
                             "first",
                             t->path);
    if (!want->base && t->fd >= 0 && !t->marked && !want->overwrite)
        return varve_err_set(
            err, EEXIST,
            "%.200s exists: name another file for a full copy, or say since when it "
            "has to be brought up to date, or \"overwrite\": true",
            t->path);
    if (want->base || t->device)
        return target_judge_size(t, want, err);
    return 0;
}

int varve_push_target_open(struct varve_push_target *t, const struct varve_push_want *want,
                           struct varve_err *err)
{
    json_t *marker = NULL;
    int rc;

    *t = (struct varve_push_target){.path = want->path, .dir = -1, .fd = -1};
    rc = target_locate(t, err);
    if (rc == 0)
        rc = target_open_file(t, err);
    if (rc == 0 && !t->device)
        rc = target_read_marker(t, &marker, err);
    if (rc == 0 && marker)
        rc = target_resume(t, marker, want, err);
    json_decref(marker);
    return rc < 0 ? rc : target_judge(t, want, err);
}

int varve_push_target_begin(struct varve_push_target *t, const struct varve_push_want *want,
                            struct varve_err *err)
{
    int rc = t->device ? 0 : target_mark(t, want, err);

    if (rc < 0 || want->base || t->device)
        return rc;
    if (t->fd < 0) {
        t->fd = openat(t->dir, target_base(t), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (t->fd < 0)
            return varve_err_sys(err, errno, "making %.300s", t->path);
        rc = target_lock(t, err);
        if (rc < 0)
            return rc;
    }
    if (ftruncate(t->fd, 0) != 0 || ftruncate(t->fd, (off_t)want->size) != 0)
        return varve_err_sys(err, errno, "making %.200s %" PRIu64 " bytes long", t->path,
                             want->size);
    t->fresh = true;
    return 0;
}

int varve_push_target_finish(struct varve_push_target *t, struct varve_err *err)
{
    if (t->device)
        return 0;
    if (fsync(t->dir) != 0)
        return varve_err_sys(err, errno, "syncing the folder of %.300s", t->path);
    if (unlinkat(t->dir, t->marker, 0) != 0)
        return varve_err_sys(err, errno, "removing %.300s.partial", t->path);
    if (fsync(t->dir) != 0)
        return varve_err_sys(err, errno, "syncing the folder of %.300s", t->path);
    return 0;
}

void varve_push_target_close(struct varve_push_target *t)
{
    if (t->fd >= 0)
        close(t->fd);
    if (t->dir >= 0)
        close(t->dir);
    free(t->real);
    free(t->marker);
    t->fd = t->dir = -1;
    t->real = t->marker = NULL;
}
