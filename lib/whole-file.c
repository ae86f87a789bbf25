/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/whole-file.h"

#include "lib/paths.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int read_fd(struct varve_world *w, int fd, const char *path, size_t max, char **buf,
                   size_t *len, struct varve_err *err)
{
    struct varve_stat st;
    int rc = w->stat(w, fd, &st);
    ssize_t got;

    if (rc < 0)
        return varve_err_sys(err, -rc, "cannot look at %s", path);
    if (st.size > max)
        return varve_err_set(err, EFBIG, "%s has %" PRIu64 " bytes, at most %zu make sense", path,
                             st.size, max);
    *buf = malloc((size_t)st.size + 1);
    if (!*buf)
        return varve_err_sys(err, ENOMEM, "cannot read %s", path);
    got = w->pread(w, fd, *buf, (size_t)st.size, 0);
    if (got < 0) {
        free(*buf);
        return varve_err_sys(err, (int)-got, "cannot read %s", path);
    }
    (*buf)[got] = '\0';
    *len = (size_t)got;
    return 0;
}

int varve_whole_file_read(struct varve_world *w, const char *path, size_t max, char **buf,
                          size_t *len, struct varve_err *err)
{
    int fd = w->open(w, path, O_RDONLY, 0);
    int rc;

    if (fd < 0)
        return varve_err_sys(err, -fd, "cannot open %s", path);
    rc = read_fd(w, fd, path, max, buf, len, err);
    w->close(w, fd);
    return rc;
}

static int write_durably(struct varve_world *w, const char *path, const void *buf, size_t len,
                         struct varve_err *err)
{
    const int flags = O_WRONLY | O_CREAT | O_EXCL; /* nobody's link is followed */
    int fd = w->open(w, path, flags, 0644);
    int rc;

    if (fd == -EEXIST) { /* of who died here */
        w->unlink(w, path);
        fd = w->open(w, path, flags, 0644);
    }
    if (fd < 0)
        return varve_err_sys(err, -fd, "cannot create %s", path);
    rc = w->pwrite(w, fd, buf, len, 0);
    if (rc == 0)
        rc = w->sync(w, fd);
    w->close(w, fd);
    return rc < 0 ? varve_err_sys(err, -rc, "cannot write %s", path) : 0;
}

/* What path's folder holds. */
static int names_sync(struct varve_world *w, const char *path)
{
    char folder[PATH_MAX];

    varve_path_folder(path, folder);
    return w->sync_dir(w, folder);
}

int varve_whole_file_replace(struct varve_world *w, const char *path, const void *buf, size_t len,
                             struct varve_err *err)
{
    char tmp[PATH_MAX];
    int rc;

    if (snprintf(tmp, sizeof(tmp), "%s.tmp", path) >= (int)sizeof(tmp))
        return varve_err_set(err, ENAMETOOLONG, "the file name '%.200s...' is too long", path);
    rc = write_durably(w, tmp, buf, len, err);
    if (rc < 0) {
        w->unlink(w, tmp);
        return rc;
    }
    rc = w->rename(w, tmp, path);
    if (rc < 0) {
        w->unlink(w, tmp);
        return varve_err_sys(err, -rc, "cannot replace %s", path);
    }
    rc = names_sync(w, path);
    return rc < 0 ? varve_err_sys(err, -rc, "cannot make %s durable", path) : 0;
}

int varve_whole_file_publish(struct varve_world *w, const char *tmp, const char *path,
                             struct varve_err *err)
{
    int rc = w->rename_new(w, tmp, path);

    if (rc == -EEXIST)
        return varve_err_set(err, EEXIST, "%.200s exists already", path);
    if (rc < 0)
        return varve_err_sys(err, -rc, "cannot create %.200s", path);
    rc = names_sync(w, path);
    if (rc == 0)
        return 0;
    varve_err_sys(err, -rc, "cannot make %.200s durable", path);
    if (w->unlink(w, path) < 0)
        varve_err_prefix(err, "%.200s is there, but is not to be relied on", path);
    return rc;
}
