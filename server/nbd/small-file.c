/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/nbd/small-file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int read_all(int fd, const char *path, char *data, size_t max, size_t *len,
                    struct varve_err *err)
{
    size_t have = 0;

    while (have < max) {
        ssize_t n = read(fd, data + have, max - have);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return varve_err_sys(err, errno, "cannot read %s", path);
        if (n == 0)
            break;
        have += (size_t)n;
    }
    if (have > VARVE_SMALL_FILE_MAX)
        return varve_err_set(err, E2BIG, "%s is longer than %u bytes", path, VARVE_SMALL_FILE_MAX);
    data[have] = 0;
    *len = have;
    return 0;
}

int varve_small_file_read(const char *path, char **data, size_t *len, struct varve_err *err)
{
    struct stat st;
    char *buf;
    int fd, rc;

    /* Not to hang on a FIFO. */
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return varve_err_sys(err, errno, "cannot open %s", path);
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        close(fd);
        return varve_err_set(err, EINVAL, "%s is not a regular file", path);
    }
    buf = malloc(VARVE_SMALL_FILE_MAX + 2u);
    if (!buf) {
        close(fd);
        return varve_err_set(err, ENOMEM, "%s: no memory", path);
    }
    rc = read_all(fd, path, buf, VARVE_SMALL_FILE_MAX + 1u, len, err);
    close(fd);
    if (rc) {
        varve_small_file_wipe(buf, VARVE_SMALL_FILE_MAX + 1u);
        return rc;
    }
    *data = buf;
    return 0;
}

void varve_small_file_wipe(char *data, size_t len)
{
    if (!data)
        return;
    explicit_bzero(data, len);
    free(data);
}
