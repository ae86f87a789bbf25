/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/nbd/nbd-listener.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* Connections accepted before anything else on the loop has its turn. */
#define ACCEPT_AT_ONCE 64u

/* How long nothing is accepted when files or memory are short. */
#define PAUSE_MS 100u

static void listener_on_ready(uv_poll_t *poll, int status, int events);

static void listener_resume(struct varve_nbd_listener *l)
{
    uv_poll_start(&l->poll, UV_READABLE, listener_on_ready);
}

static void listener_on_pause_over(uv_timer_t *timer)
{
    listener_resume(timer->data);
}

static void listener_pause(struct varve_nbd_listener *l, const char *why)
{
    if (!l->short_of && l->options->log &&
        varve_nbd_clients_may_log(l->clients, uv_hrtime() / 1000000000u))
        l->options->log("NBD clients wait at %s: %s", l->where, why);
    l->short_of = true;
    uv_poll_stop(&l->poll);
    uv_timer_start(&l->pause, listener_on_pause_over, PAUSE_MS, 0);
}

/* What accept(2) says of one client that has gone, or of the network it came from. */
static bool concerns_one_client(int code)
{
    switch (code) {
    case EINTR:
    case ECONNABORTED:
    case EPERM:
    case EPROTO:
    case ENOPROTOOPT:
    case EOPNOTSUPP:
    case ENETDOWN:
    case ENONET:
    case ENETUNREACH:
    case EHOSTDOWN:
    case EHOSTUNREACH:
        return true;
    default:
        return false;
    }
}

/* False: there is nothing more to accept now. */
static bool listener_accept(struct varve_nbd_listener *l)
{
    int fd;

    if (!l->next)
        l->next = varve_nbd_conn_new();
    if (!l->next) {
        listener_pause(l, "no memory");
        return false;
    }
    fd = accept4(l->socket.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK)
            return false;
        if (concerns_one_client(errno))
            return true;
        listener_pause(l, strerror(errno));
        return false;
    }
    l->short_of = false;
    if (varve_nbd_conn_take(l->next, fd, l->clients)) {
        struct varve_nbd_conn *c = l->next;

        l->next = NULL;
        l->give(l->arg, c);
    }
    return true;
}

static void listener_on_ready(uv_poll_t *poll, int status, int events)
{
    struct varve_nbd_listener *l = poll->data;

    (void)status;
    (void)events;
    for (unsigned i = 0; i < ACCEPT_AT_ONCE && listener_accept(l); i++)
        continue;
}

struct varve_nbd_listener *varve_nbd_listener_new(uv_loop_t *loop, struct varve_nbd_socket *socket,
                                                  const char *where,
                                                  struct varve_nbd_clients *clients,
                                                  const struct varve_nbd_options *options,
                                                  void (*give)(void *arg, struct varve_nbd_conn *c),
                                                  void *arg, struct varve_err *err)
{
    struct varve_nbd_listener *l = calloc(1, sizeof(*l));
    int rc;

    if (l) {
        l->where = strdup(where);
        l->next = varve_nbd_conn_new();
    }
    if (!l || !l->where || !l->next) {
        varve_err_set(err, ENOMEM, "%s: no memory", where);
        goto err_after_alloc;
    }
    rc = uv_poll_init(loop, &l->poll, socket->fd);
    if (rc) {
        varve_err_sys(err, -rc, "cannot listen at %s", where);
        goto err_after_alloc;
    }
    uv_timer_init(loop, &l->pause);
    l->poll.data = l;
    l->pause.data = l;
    l->handles = 2;
    l->socket = *socket;
    l->clients = clients;
    l->options = options;
    l->give = give;
    l->arg = arg;
    listener_resume(l);
    return l;

err_after_alloc:
    varve_nbd_socket_close(socket);
    if (l)
        varve_nbd_listener_free(l);
    return NULL;
}

static void listener_on_closed(uv_handle_t *handle)
{
    struct varve_nbd_listener *l = handle->data;

    if (!--l->handles)
        l->gone(l);
}

void varve_nbd_listener_close(struct varve_nbd_listener *l,
                              void (*gone)(struct varve_nbd_listener *l))
{
    l->gone = gone;
    uv_poll_stop(&l->poll);
    varve_nbd_socket_close(&l->socket);
    uv_close((uv_handle_t *)&l->poll, listener_on_closed);
    uv_close((uv_handle_t *)&l->pause, listener_on_closed);
}

void varve_nbd_listener_free(struct varve_nbd_listener *l)
{
    free(l->next);
    free(l->where);
    free(l);
}
