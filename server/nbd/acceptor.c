/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/nbd/acceptor.h"

#include <errno.h>

/* Connections accepted before anything else on the loop has its turn. */
#define ACCEPT_AT_ONCE 64u

/* How long nothing is accepted when descriptors or memory are short. */
#define PAUSE_MS 100u

static void acceptor_on_ready(uv_poll_t *poll, int status, int events);

static void acceptor_on_pause_over(uv_timer_t *timer)
{
    struct varve_acceptor *a = timer->data;

    uv_poll_start(&a->poll, UV_READABLE, acceptor_on_ready);
}

static void acceptor_pause(struct varve_acceptor *a, int rc)
{
    if (!a->short_of)
        a->starved(a->arg, rc);
    a->short_of = true;
    uv_poll_stop(&a->poll);
    uv_timer_start(&a->pause, acceptor_on_pause_over, PAUSE_MS, 0);
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
static bool acceptor_accept(struct varve_acceptor *a)
{
    int rc = a->accept(a->arg);

    if (rc == 0) {
        a->short_of = false;
        return true;
    }
    if (rc == -EAGAIN || rc == -EWOULDBLOCK)
        return false;
    if (concerns_one_client(-rc))
        return true;
    acceptor_pause(a, rc);
    return false;
}

static void acceptor_on_ready(uv_poll_t *poll, int status, int events)
{
    struct varve_acceptor *a = poll->data;

    (void)status;
    (void)events;
    for (unsigned i = 0; i < ACCEPT_AT_ONCE && acceptor_accept(a); i++)
        continue;
}

int varve_acceptor_start(struct varve_acceptor *a, uv_loop_t *loop, int socket)
{
    int rc = uv_poll_init(loop, &a->poll, socket);

    if (rc < 0)
        return rc;
    uv_timer_init(loop, &a->pause);
    a->poll.data = a;
    a->pause.data = a;
    a->handles = 2;
    uv_poll_start(&a->poll, UV_READABLE, acceptor_on_ready);
    return 0;
}

static void acceptor_on_closed(uv_handle_t *handle)
{
    struct varve_acceptor *a = handle->data;

    if (--a->handles == 0)
        a->closed(a->arg);
}

void varve_acceptor_close(struct varve_acceptor *a, void (*closed)(void *arg))
{
    a->closed = closed;
    uv_close((uv_handle_t *)&a->poll, acceptor_on_closed);
    uv_close((uv_handle_t *)&a->pause, acceptor_on_closed);
}
