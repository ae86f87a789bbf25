/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/sd-listen.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FIRST_FD     3
#define CONTROL_NAME "control"
#define METRICS_NAME "metrics"
#define WEB_NAME     "web"

/* A decimal number up to max; -1: it is none. */
static long env_number(const char *text, long max)
{
    char *end;
    long n;

    errno = 0;
    n = strtol(text, &end, 10);
    return text[0] < '0' || text[0] > '9' || *end || errno || n > max ? -1 : n;
}

/* Name number i of a:b:c is `name`. */
static bool name_is(const char *names, unsigned i, const char *name)
{
    size_t len = strlen(name);

    for (; names && i; i--) {
        names = strchr(names, ':');
        names = names ? names + 1 : NULL;
    }
    return names && strncmp(names, name, len) == 0 && (names[len] == ':' || !names[len]);
}

static void list_add(struct varve_sd_list *list, int fd)
{
    list->fds[list->n++] = fd;
}

static int take(struct varve_sd_sockets *out, unsigned n, const char *names, struct varve_err *err)
{
    for (unsigned i = 0; i < n; i++) {
        int fd = FIRST_FD + (int)i;

        if (fcntl(fd, F_SETFD, FD_CLOEXEC))
            return varve_err_sys(err, errno, "LISTEN_FDS: file descriptor %d", fd);
        if (name_is(names, i, METRICS_NAME))
            list_add(&out->metrics, fd);
        else if (name_is(names, i, WEB_NAME))
            list_add(&out->web, fd);
        else if (!name_is(names, i, CONTROL_NAME))
            list_add(&out->nbd, fd);
        else if (out->control < 0)
            out->control = fd;
        else
            return varve_err_set(err, EINVAL, "LISTEN_FDNAMES: two sockets named " CONTROL_NAME);
    }
    return 0;
}

int varve_sd_listen(struct varve_sd_sockets *out, struct varve_err *err)
{
    const char *pid = getenv("LISTEN_PID"), *fds = getenv("LISTEN_FDS");
    long n;
    int rc = 0;

    *out = (struct varve_sd_sockets){.control = -1};
    if (pid && fds && env_number(pid, INT32_MAX) == getpid()) {
        n = env_number(fds, VARVE_SD_SOCKETS_MAX);
        if (n < 0)
            rc = varve_err_set(err, EINVAL, "LISTEN_FDS '%.32s': expected a number up to %d", fds,
                               VARVE_SD_SOCKETS_MAX);
        else
            rc = take(out, (unsigned)n, getenv("LISTEN_FDNAMES"), err);
    }
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    return rc;
}
