/* SPDX-License-Identifier: BSD-3-Clause */
#include "client/control.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* The daemon is trusted further than its clients are: lists of many checkpoints are long. */
#define REPLY_MAX ((size_t)256 * 1024 * 1024)

struct varve_control {
    int fd;
    struct varve_qmp_reader *reader;
    char path[sizeof(((struct sockaddr_un *)NULL)->sun_path)];
};

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* 1: ready, 0: the deadline has passed. */
static int control_wait(struct varve_control *c, short events, int64_t deadline_ms,
                        struct varve_err *err)
{
    for (;;) {
        struct pollfd p = {.fd = c->fd, .events = events};
        int64_t left = deadline_ms - now_ms();
        int rc = poll(&p, 1, left > 0 ? (int)left : 0);

        if (rc >= 0)
            return rc;
        if (errno != EINTR)
            return varve_err_sys(err, errno, "waiting for the daemon at %s", c->path);
    }
}

static int control_connect(struct varve_control *c, const char *path, struct varve_err *err)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    int64_t deadline = now_ms() + VARVE_CONTROL_GREETING_MS;

    if (strlen(path) >= sizeof(sa.sun_path))
        return varve_err_set(err, ENAMETOOLONG,
                             "control socket %s: a socket's path has at most "
                             "%zu bytes",
                             path, sizeof(sa.sun_path) - 1);
    strcpy(c->path, path);
    strcpy(sa.sun_path, path);
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->fd < 0)
        return varve_err_sys(err, errno, "making a socket");
    /* EAGAIN: the daemon's backlog is full; nothing tells when it no longer is. */
    while (connect(c->fd, (struct sockaddr *)&sa, sizeof(sa)) != 0) {
        if ((errno != EAGAIN && errno != EINTR) || now_ms() >= deadline) {
            int code = errno;

            return varve_err_set(err, code,
                                 "no daemon at %s: %s (is varved running? --control "
                                 "names another socket)",
                                 path, strerror(code));
        }
        poll(NULL, 0, 50);
    }
    return 0;
}

int varve_control_open(const char *path, struct varve_control **out, struct varve_err *err)
{
    struct varve_control *c = calloc(1, sizeof(*c));
    json_t *greeting = NULL;
    int rc;

    *out = NULL;
    if (!c)
        return varve_err_set(err, ENOMEM, "no memory");
    c->fd = -1;
    c->reader = varve_qmp_reader_new(REPLY_MAX);
    rc = c->reader ? control_connect(c, path, err) : varve_err_set(err, ENOMEM, "no memory");
    if (rc != 0)
        goto err_open;
    rc = varve_control_receive(c, VARVE_CONTROL_GREETING_MS, &greeting, err);
    if (rc == 0)
        rc = varve_err_set(err, ETIMEDOUT, "the daemon at %s does not answer", path);
    if (rc < 0)
        goto err_open;
    rc = 0;
    if (!json_is_object(json_object_get(greeting, "QMP")))
        rc = varve_err_set(err, EPROTO, "what listens at %s is not varved", path);
    json_decref(greeting);
    if (rc == 0)
        rc = varve_control_execute(c, "qmp_capabilities", NULL, NULL, err);
    if (rc != 0)
        goto err_open;
    *out = c;
    return 0;

err_open:
    varve_control_close(c);
    return rc;
}

void varve_control_close(struct varve_control *c)
{
    if (!c)
        return;
    if (c->fd >= 0)
        close(c->fd);
    varve_qmp_reader_free(c->reader);
    free(c);
}

int varve_control_fd(const struct varve_control *c)
{
    return c->fd;
}

int varve_control_send(struct varve_control *c, const json_t *message, struct varve_err *err)
{
    int64_t deadline = now_ms() + VARVE_CONTROL_REPLY_MS;
    size_t len = 0, sent = 0;
    char *line = varve_qmp_dump(message, &len);
    int rc = 0;

    if (!line)
        return varve_err_set(err, ENOMEM, "no memory");
    while (sent < len) {
        ssize_t n = send(c->fd, line + sent, len - sent, MSG_NOSIGNAL);

        if (n >= 0) {
            sent += (size_t)n;
        } else if (errno == EAGAIN) {
            rc = control_wait(c, POLLOUT, deadline, err);
            if (rc == 0)
                rc = varve_err_set(err, ETIMEDOUT, "the daemon at %s takes no more commands",
                                   c->path);
            if (rc < 0)
                break;
            rc = 0;
        } else if (errno != EINTR) {
            rc = varve_err_sys(err, errno, "sending to the daemon at %s", c->path);
            break;
        }
    }
    free(line);
    return rc;
}

int varve_control_receive(struct varve_control *c, int timeout_ms, json_t **out,
                          struct varve_err *err)
{
    int64_t deadline = now_ms() + timeout_ms;
    char buf[65536];

    for (;;) {
        int rc = varve_qmp_reader_next(c->reader, out, err);
        ssize_t n;

        if (rc < 0)
            return varve_err_prefix(err, "the daemon at %s sent what is not QMP", c->path);
        if (rc > 0)
            return rc;
        n = recv(c->fd, buf, sizeof(buf), 0);
        if (n == 0)
            return varve_err_set(err, EPIPE, "the daemon at %s closed the connection", c->path);
        if (n > 0) {
            rc = varve_qmp_reader_feed(c->reader, buf, (size_t)n, err);
        } else if (errno == EAGAIN) {
            rc = control_wait(c, POLLIN, deadline, err);
            if (rc == 0)
                return 0;
        } else if (errno != EINTR) {
            rc = varve_err_sys(err, errno, "reading from the daemon at %s", c->path);
        }
        if (rc < 0)
            return rc;
    }
}

/* The reply's value or error, taken out of message.  1: message is no reply. */
static int control_judge(const json_t *message, json_t **value, struct varve_err *err)
{
    json_t *result = json_object_get(message, "return");
    json_t *error = json_object_get(message, "error");
    const char *desc = json_string_value(json_object_get(error, "desc"));

    if (error)
        return varve_err_set(err, EREMOTEIO, "%s", desc ? desc : "the daemon refused");
    if (!result)
        return 1;
    if (value)
        *value = json_incref(result);
    return 0;
}

int varve_control_execute(struct varve_control *c, const char *command, json_t *arguments,
                          json_t **value, struct varve_err *err)
{
    json_t *message = json_pack("{s:s, s:o*}", "execute", command, "arguments", arguments);
    int64_t deadline = now_ms() + VARVE_CONTROL_REPLY_MS;
    int rc;

    if (!message)
        return varve_err_set(err, ENOMEM, "no memory for the command %s", command);
    rc = varve_control_send(c, message, err);
    json_decref(message);
    while (rc == 0) {
        int64_t left = deadline - now_ms();
        json_t *reply = NULL;

        rc = varve_control_receive(c, left > 0 ? (int)left : 0, &reply, err);
        if (rc == 0)
            return varve_err_set(err, ETIMEDOUT, "the daemon at %s does not answer %s", c->path,
                                 command);
        if (rc < 0)
            return rc;
        rc = control_judge(reply, value, err);
        json_decref(reply);
        if (rc <= 0)
            return rc;
        rc = 0;
    }
    return rc;
}

int varve_control_once(const char *path, const char *command, json_t *arguments, json_t **value,
                       struct varve_err *err)
{
    struct varve_control *c;
    int rc = varve_control_open(path, &c, err);

    if (rc != 0) {
        json_decref(arguments);
        return rc;
    }
    rc = varve_control_execute(c, command, arguments, value, err);
    varve_control_close(c);
    return rc;
}

int varve_control_absolute(const char *file, char **out, struct varve_err *err)
{
    char *cwd = file[0] == '/' ? NULL : getcwd(NULL, 0);
    int n;

    *out = NULL;
    if (file[0] != '/' && !cwd)
        return varve_err_sys(err, errno, "cannot tell the working directory");
    n = cwd ? asprintf(out, "%s/%s", cwd, file) : asprintf(out, "%s", file);
    free(cwd);
    if (n >= 0)
        return 0;
    *out = NULL;
    return varve_err_set(err, ENOMEM, "no memory");
}
