/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/nbd/nbd-listener.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static void listener_on_starved(void *arg, int rc)
{
    struct varve_nbd_listener *l = arg;

    if (l->options->log && varve_nbd_clients_may_log(l->clients, uv_hrtime() / 1000000000u))
        l->options->log("NBD clients wait at %s: %s", l->where,
                        rc == -ENOMEM ? "no memory" : strerror(-rc));
}

static int listener_accept(void *arg)
{
    struct varve_nbd_listener *l = arg;
    struct varve_nbd_conn *c;
    int fd;

    if (!l->next)
        l->next = varve_nbd_conn_new();
    if (!l->next)
        return -ENOMEM;
    fd = accept4(l->socket.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (varve_nbd_conn_take(l->next, fd, l->clients)) {
        c = l->next;
        l->next = NULL;
        l->give(l->arg, c);
    }
    return 0;
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
    l->acceptor.accept = listener_accept;
    l->acceptor.starved = listener_on_starved;
    l->acceptor.arg = l;
    rc = varve_acceptor_start(&l->acceptor, loop, socket->fd);
    if (rc < 0) {
        varve_err_sys(err, -rc, "cannot listen at %s", where);
        goto err_after_alloc;
    }
    l->socket = *socket;
    l->clients = clients;
    l->options = options;
    l->give = give;
    l->arg = arg;
    return l;

err_after_alloc:
    varve_nbd_socket_close(socket);
    if (l)
        varve_nbd_listener_free(l);
    return NULL;
}

static void listener_on_closed(void *arg)
{
    struct varve_nbd_listener *l = arg;

    l->gone(l);
}

void varve_nbd_listener_close(struct varve_nbd_listener *l,
                              void (*gone)(struct varve_nbd_listener *l))
{
    l->gone = gone;
    varve_acceptor_close(&l->acceptor, listener_on_closed);
    varve_nbd_socket_close(&l->socket);
}

void varve_nbd_listener_free(struct varve_nbd_listener *l)
{
    free(l->next);
    free(l->where);
    free(l);
}
