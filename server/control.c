/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/control-internal.h"

#include "server/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG  64
#define HURRY_MS 300

int varve_control_new(uv_loop_t *loop, struct varve_daemon *d, void (*quit)(void *arg), void *arg,
                      struct varve_control **out, struct varve_err *err)
{
    struct varve_control *c = calloc(1, sizeof(*c));
    int rc;

    if (!c)
        return varve_err_set(err, ENOMEM, "no memory for the control socket");
    c->loop = loop;
    c->daemon = d;
    c->quit = quit;
    c->quit_arg = arg;
    c->spare = varve_control_conn_spare();
    rc = c->spare ? varve_mailbox_new(loop, &c->mailbox, err)
                  : varve_err_set(err, ENOMEM, "no memory for the control socket");
    if (rc < 0) {
        free(c->spare);
        free(c);
        return rc;
    }
    uv_timer_init(loop, &c->hurry);
    c->hurry.data = c;
    c->nopen = 1;
    *out = c;
    return 0;
}

/* Whether somebody listens there; a socket that nobody does is removed. */
static int control_clear_path(const char *path, struct varve_err *err)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    struct stat st;
    int fd, rc;

    if (strlen(path) >= sizeof(to.sun_path))
        return varve_err_set(err, ENAMETOOLONG,
                             "control socket %s: a socket's path has at most %zu bytes", path,
                             sizeof(to.sun_path) - 1);
    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : varve_err_sys(err, errno, "control socket %s", path);
    if (!S_ISSOCK(st.st_mode))
        return varve_err_set(err, EEXIST, "control socket %s: there is something else", path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return varve_err_sys(err, errno, "control socket %s", path);
    memcpy(to.sun_path, path, strlen(path) + 1);
    rc = connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0 ? -errno : 0;
    close(fd);
    if (rc != -ECONNREFUSED)
        return varve_err_set(err, EADDRINUSE, "control socket %s: another process listens there",
                             path);
    if (unlink(path) < 0)
        return varve_err_sys(err, errno, "cannot remove the old control socket %s", path);
    return 0;
}

static int control_accept(void *arg)
{
    struct varve_control *c = arg;
    uv_os_fd_t fd;
    int rc = uv_fileno((uv_handle_t *)&c->listener, &fd);

    return rc < 0 ? rc : varve_control_conn_accept(c, fd);
}

static void control_on_starved(void *arg, int rc)
{
    (void)arg;
    varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING),
                    "clients wait at the control socket: %s", strerror(-rc));
}

/* The listener has its socket.  0 or -errno. */
static int control_accept_from_now_on(struct varve_control *c)
{
    uv_os_fd_t fd;
    int rc = uv_fileno((uv_handle_t *)&c->listener, &fd);

    if (rc == 0 && listen(fd, BACKLOG) < 0)
        rc = -errno;
    c->acceptor.accept = control_accept;
    c->acceptor.starved = control_on_starved;
    c->acceptor.arg = c;
    if (rc == 0)
        rc = varve_acceptor_start(&c->acceptor, c->loop, fd);
    if (rc < 0)
        return rc;
    c->accepts = true;
    c->nopen++;
    return 0;
}

int varve_control_listen(struct varve_control *c, const char *path, struct varve_err *err)
{
    mode_t mask;
    int rc = control_clear_path(path, err);

    if (rc < 0)
        return rc;
    uv_pipe_init(c->loop, &c->listener, 0);
    c->listener.data = c;
    c->listening = true;
    c->nopen++;
    mask = umask(0177); /* no other thread makes files while the daemon starts to listen */
    rc = uv_pipe_bind(&c->listener, path);
    umask(mask);
    if (rc == 0)
        rc = control_accept_from_now_on(c);
    if (rc < 0)
        return varve_err_set(err, -rc, "cannot listen at control socket %s: %s", path,
                             uv_strerror(rc));
    return 0;
}

int varve_control_adopt(struct varve_control *c, int fd, struct varve_err *err)
{
    int domain = 0, listens = 0, rc;
    socklen_t len = sizeof(int);

    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) || domain != AF_UNIX ||
        getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) || !listens) {
        close(fd);
        return varve_err_set(err, EINVAL,
                             "the control socket that was passed to us is no "
                             "listening unix socket");
    }
    uv_pipe_init(c->loop, &c->listener, 0);
    c->listener.data = c;
    c->listening = true;
    c->nopen++;
    rc = uv_pipe_open(&c->listener, fd);
    if (rc < 0)
        close(fd);
    else
        rc = control_accept_from_now_on(c);
    return rc < 0 ? varve_err_sys(err, -rc, "the control socket that was passed to us") : 0;
}

void varve_control_event(void *control, const char *text, size_t len)
{
    struct varve_control *c = control;

    for (struct varve_control_conn *conn = c->conns; conn; conn = varve_control_conn_next(conn))
        varve_control_conn_event(conn, text, len);
}

/* hurry is closed last, but libuv calls back in another order. */
static void control_one_closed(struct varve_control *c)
{
    if (--c->nopen > 0)
        return;
    c->closed(c->closed_arg);
    free(c->spare);
    free(c);
}

static void control_on_handle_closed(uv_handle_t *handle)
{
    control_one_closed(handle->data);
}

static void control_on_acceptor_closed(void *arg)
{
    control_one_closed(arg);
}

void varve_control_stop(struct varve_control *c)
{
    if (c->accepts && !c->stopped)
        varve_acceptor_close(&c->acceptor, control_on_acceptor_closed);
    c->stopped = true;
    if (c->listening && !uv_is_closing((uv_handle_t *)&c->listener)) /* unlinks the socket */
        uv_close((uv_handle_t *)&c->listener, control_on_handle_closed);
    for (struct varve_control_conn *conn = c->conns; conn; conn = varve_control_conn_next(conn))
        varve_control_conn_stop(conn);
}

void varve_control_maybe_closed(struct varve_control *c)
{
    if (c->closed && !c->conns)
        uv_close((uv_handle_t *)&c->hurry, control_on_handle_closed);
}

static void control_hurry(uv_timer_t *timer)
{
    struct varve_control *c = timer->data;
    struct varve_control_conn *conn, *next;

    for (conn = c->conns; conn; conn = next) {
        next = varve_control_conn_next(conn);
        varve_control_conn_close(conn, true);
    }
}

void varve_control_close(struct varve_control *c, void (*closed)(void *arg), void *arg)
{
    struct varve_control_conn *conn, *next;

    if (!c->stopped)
        varve_control_stop(c);
    varve_mailbox_close(c->mailbox);
    c->closed = closed;
    c->closed_arg = arg;
    uv_timer_start(&c->hurry, control_hurry, HURRY_MS, 0);
    varve_control_maybe_closed(c);
    for (conn = c->conns; conn; conn = next) {
        next = varve_control_conn_next(conn);
        varve_control_conn_close(conn, false);
    }
}
