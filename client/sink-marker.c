/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The two small files beside a backup: FILE.partial says what has been begun on it, FILE.varve what
 * it is.  Each is whole or not there.  Neither is believed further than its types: the marker is
 * compared with what is asked, the stamp holds for a file of the size and time that it names only.
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

#define TIME_TEXT 32

static const char *time_text(char when[TIME_TEXT])
{
    time_t now = time(NULL);
    struct tm tm;

    when[0] = '\0';
    if (gmtime_r(&now, &tm))
        strftime(when, TIME_TEXT, "%Y-%m-%dT%H:%M:%SZ", &tm);
    return when;
}

int varve_sink_read_marker(struct varve_sink *s, json_t **marker, struct varve_err *err)
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
                             "%s.partial is not a marker of varve's: see what it "
                             "is and move it away",
                             s->path);
    }
    return 0;
}

/* Writes NAME under another name, syncs it, renames it, syncs the folder. */
static int sink_put(struct varve_sink *s, const char *name, const json_t *object,
                    struct varve_err *err)
{
    char *tmp;
    int fd, rc = 0;

    if (asprintf(&tmp, ".%s.%ld", name, (long)getpid()) < 0)
        return varve_err_set(err, ENOMEM, "no memory");
    fd = openat(s->dir, tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        rc = varve_err_sys(err, errno, "making %s beside %s", name, s->path);
        free(tmp);
        return rc;
    }
    errno = 0;
    if (json_dumpfd(object, fd, JSON_INDENT(2)) != 0 || write(fd, "\n", 1) != 1 || fsync(fd) != 0)
        rc = varve_err_sys(err, errno ? errno : EIO, "writing %s beside %s", name, s->path);
    close(fd);
    if (rc == 0 && (renameat(s->dir, tmp, s->dir, name) != 0 || fsync(s->dir) != 0))
        rc = varve_err_sys(err, errno, "making %s beside %s", name, s->path);
    if (rc != 0)
        unlinkat(s->dir, tmp, 0);
    free(tmp);
    return rc;
}

int varve_sink_mark(struct varve_sink *s, const struct varve_sink_want *want, uint64_t copied,
                    struct varve_err *err)
{
    bool full = s->kind == VARVE_SINK_FULL;
    char when[TIME_TEXT];
    json_t *marker;
    int rc;

    marker = json_pack("{s:s, s:s, s:s*, s:s*, s:s*, s:I, s:s*, s:I, s:s, s:i, s:s}", "note",
                       full ? "the file beside this is an unfinished copy, not a backup"
                            : "the file beside this is neither the old backup nor the new one",
                       "kind", full ? "full" : "incremental", "context", want->context, "base",
                       full ? NULL : want->base, "view", want->view, "epoch", (json_int_t)want->epoch, "token",
                       s->token[0] ? s->token : NULL, "copied", (json_int_t)copied, "uri",
                       want->uri, "pid", (int)getpid(), "time", time_text(when));
    if (!marker)
        return varve_err_set(err, EINVAL, "URI and context must be UTF-8");
    rc = sink_put(s, s->marker, marker, err);
    json_decref(marker);
    return rc;
}

int varve_sink_mark_apply(struct varve_sink *s, const struct varve_sink_apply *a,
                          struct varve_err *err)
{
    char when[TIME_TEXT];
    json_t *marker = json_pack("{s:s, s:s, s:s, s:s, s:s, s:i, s:s}", "note",
                               "the file beside this is half a backup until the same command has "
                               "finished it",
                               "kind", "apply", "deltas", a->deltas, "first", a->first, "last",
                               a->last, "pid", (int)getpid(), "time", time_text(when));
    int rc;

    if (!marker)
        return varve_err_set(err, EINVAL, "the folder's name must be UTF-8");
    rc = sink_put(s, s->marker, marker, err);
    json_decref(marker);
    return rc;
}

/* --- the stamp ---------------------------------------------------------------------------------
 */

static char *stamp_name(const struct varve_sink *s, struct varve_err *err)
{
    char *name;
    int base = (int)(strlen(s->marker) - strlen(".partial"));

    if (asprintf(&name, "%.*s.varve", base, s->marker) >= 0)
        return name;
    varve_err_set(err, ENOMEM, "no memory");
    return NULL;
}

static int64_t mtime_ns(const struct stat *st)
{
    return (int64_t)st->st_mtim.tv_sec * INT64_C(1000000000) + st->st_mtim.tv_nsec;
}

int varve_sink_read_stamp(struct varve_sink *s, struct varve_stamp *stamp, struct varve_err *err)
{
    char *name = stamp_name(s, err);
    json_t *object;
    const char *point, *delta;
    struct stat st;
    int fd;

    memset(stamp, 0, sizeof(*stamp));
    if (!name)
        return -ENOMEM;
    fd = openat(s->dir, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    free(name);
    if (fd < 0)
        return errno == ENOENT ? 0 : varve_err_sys(err, errno, "%s.varve", s->path);
    object = json_loadfd(fd, JSON_REJECT_DUPLICATES, NULL);
    close(fd);
    point = json_string_value(json_object_get(object, "point"));
    delta = json_string_value(json_object_get(object, "delta"));
    stamp->found = true;
    if (fstat(s->fd, &st) == 0 && json_is_integer(json_object_get(object, "size")) &&
        json_is_integer(json_object_get(object, "mtime-ns")) &&
        json_integer_value(json_object_get(object, "size")) == st.st_size &&
        json_integer_value(json_object_get(object, "mtime-ns")) == mtime_ns(&st) &&
        (!point || strlen(point) < sizeof(stamp->point)) &&
        (!delta || strlen(delta) < sizeof(stamp->delta))) {
        stamp->holds = true;
        snprintf(stamp->point, sizeof(stamp->point), "%s", point ? point : "");
        snprintf(stamp->delta, sizeof(stamp->delta), "%s", delta ? delta : "");
    }
    json_decref(object);
    return 0;
}

int varve_sink_put_stamp(struct varve_sink *s, const char *point, const char *delta,
                         struct varve_err *err)
{
    char when[TIME_TEXT], *name = stamp_name(s, err);
    json_t *object;
    struct stat st;
    int rc = 0;

    if (!name)
        return -ENOMEM;
    if (!point && !delta) {
        if (unlinkat(s->dir, name, 0) != 0 && errno != ENOENT)
            rc = varve_err_sys(err, errno, "removing %s.varve", s->path);
        free(name);
        return rc;
    }
    if (fstat(s->fd, &st) != 0) {
        free(name);
        return varve_err_sys(err, errno, "%s", s->path);
    }
    object = json_pack("{s:s, s:s*, s:s*, s:I, s:I, s:s}", "note",
                       "what the file beside this is, as long as its size and time are these",
                       "point", point, "delta", delta, "size", (json_int_t)st.st_size, "mtime-ns",
                       (json_int_t)mtime_ns(&st), "time", time_text(when));
    /* A server's description that is no UTF-8 says nothing. */
    rc = object ? sink_put(s, name, object, err) : varve_err_set(err, EINVAL, "%s.varve", s->path);
    json_decref(object);
    free(name);
    return rc;
}
