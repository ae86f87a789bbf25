/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The server's own life: listeners and connections of one loop, the kick, the end.
 *
 *     new ──▶ OPEN ──close──▶ CLOSING: connections leave ──deadline──▶ they are closed
 *                                │
 *                                ▼ no listener, no connection (server_maybe_closed)
 *                             two handles close ──▶ freed, closed(arg)
 */
#include "server/nbd-server.h"

#include "server/nbd-conn.h"
#include "server/nbd-listener.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* How long clients of a withdrawn export have to take what was in flight. */
#define KICK_GRACE_MS 1000u

struct varve_nbd_server {
    struct varve_nbd_host host;
    TAILQ_HEAD(, varve_nbd_listener) listeners;
    unsigned closing_listeners;
    uv_async_t kick;
    uv_timer_t deadline;
    unsigned handles; /* of these two not yet closed */
    bool handles_closing;
    void (*closed)(void *arg);
    void *closed_arg;
};

void varve_nbd_options_default(struct varve_nbd_options *o)
{
    *o = (struct varve_nbd_options){
        .max_request = 32 * 1024 * 1024,
        .max_connections = 1024,
        .pool_threads = 4,
        .memory = 64 * 1024 * 1024,
        .handshake_timeout_ms = 10 * 1000,
        .idle_timeout_ms = 0,
        .write_timeout_ms = 60 * 1000,
    };
}

/* --- the end -------------------------------------------------------------------------------- */

static void server_on_handle_closed(uv_handle_t *handle)
{
    struct varve_nbd_server *s = handle->data;
    void (*closed)(void *arg) = s->closed;
    void *arg = s->closed_arg;

    if (--s->handles)
        return;
    varve_tls_unref(s->host.tls);
    varve_access_unref(s->host.access);
    free(s->host.spare);
    free(s);
    closed(arg);
}

/* All that must be gone before the server is. */
static void server_maybe_closed(struct varve_nbd_server *s)
{
    if (!s->host.going_down || s->handles_closing)
        return;
    if (s->host.nconns || s->closing_listeners || !TAILQ_EMPTY(&s->listeners))
        return;
    s->handles_closing = true;
    uv_close((uv_handle_t *)&s->kick, server_on_handle_closed);
    uv_close((uv_handle_t *)&s->deadline, server_on_handle_closed);
}

static struct varve_nbd_server *server_of_host(struct varve_nbd_host *host)
{
    return (struct varve_nbd_server *)((char *)host - offsetof(struct varve_nbd_server, host));
}

static void server_on_conn_gone(struct varve_nbd_host *host)
{
    struct varve_nbd_server *s = server_of_host(host);
    struct varve_nbd_listener *l;

    TAILQ_FOREACH(l, &s->listeners, link)
    varve_nbd_listener_retry(l);
    server_maybe_closed(s);
}

static void server_on_listener_gone(struct varve_nbd_listener *l)
{
    struct varve_nbd_server *s = server_of_host(l->host);

    varve_nbd_listener_free(l);
    s->closing_listeners--;
    server_maybe_closed(s);
}

static void server_close_listener(struct varve_nbd_server *s, struct varve_nbd_listener *l)
{
    TAILQ_REMOVE(&s->listeners, l, link);
    s->closing_listeners++;
    varve_nbd_listener_close(l, server_on_listener_gone);
}

static void server_on_deadline(uv_timer_t *timer)
{
    struct varve_nbd_server *s = timer->data;
    struct varve_nbd_conn *c;

    TAILQ_FOREACH(c, &s->host.conns, link)
    varve_nbd_conn_close(c);
}

void varve_nbd_server_close(struct varve_nbd_server *s, unsigned deadline_ms,
                            void (*closed)(void *arg), void *arg)
{
    struct varve_nbd_listener *l;
    struct varve_nbd_conn *c, *next;

    assert(!s->host.going_down);
    s->host.going_down = true;
    s->closed = closed;
    s->closed_arg = arg;
    while ((l = TAILQ_FIRST(&s->listeners)))
        server_close_listener(s, l);
    uv_update_time(s->host.loop);
    for (c = TAILQ_FIRST(&s->host.conns); c; c = next) {
        next = TAILQ_NEXT(c, link);
        varve_nbd_conn_leave(c, deadline_ms);
        varve_nbd_conn_tick(c);
    }
    uv_timer_start(&s->deadline, server_on_deadline, deadline_ms, 0);
    server_maybe_closed(s);
}

/* --- the kick ------------------------------------------------------------------------------- */

static void server_on_kick(uv_async_t *async)
{
    struct varve_nbd_server *s = async->data;
    struct varve_nbd_conn *c, *next;

    for (c = TAILQ_FIRST(&s->host.conns); c; c = next) {
        next = TAILQ_NEXT(c, link);
        if (c->state == VARVE_NBD_HANDSHAKE)
            varve_nbd_handshake_forget_lost(c);
        if (c->state != VARVE_NBD_TRANSMIT && c->state != VARVE_NBD_LEAVING)
            continue;
        if (varve_nbd_handshake_may_use(c, c->tx.export))
            continue;
        varve_nbd_transmit_abandon(c);
        varve_nbd_conn_leave(c, KICK_GRACE_MS);
        varve_nbd_conn_tick(c);
    }
}

void varve_nbd_server_kick(struct varve_nbd_server *s)
{
    uv_async_send(&s->kick);
}

void varve_nbd_server_set_tls(struct varve_nbd_server *s, struct varve_tls *tls)
{
    varve_tls_unref(s->host.tls);
    s->host.tls = tls;
}

void varve_nbd_server_set_access(struct varve_nbd_server *s, struct varve_access *access)
{
    varve_access_unref(s->host.access);
    s->host.access = access;
    varve_nbd_server_kick(s);
}

/* --- the rest ------------------------------------------------------------------------------- */

int varve_nbd_server_new(uv_loop_t *loop, struct varve_exports *exports,
                         const struct varve_nbd_options *o, struct varve_nbd_server **out,
                         struct varve_err *err)
{
    struct varve_nbd_server *s = calloc(1, sizeof(*s));
    int rc;

    if (!s)
        return varve_err_set(err, ENOMEM, "NBD server: no memory");
    s->host.spare = calloc(1, sizeof(*s->host.spare));
    if (!s->host.spare) {
        rc = varve_err_set(err, ENOMEM, "NBD server: no memory");
        goto err_after_alloc;
    }
    rc = uv_async_init(loop, &s->kick, server_on_kick);
    if (rc) {
        rc = varve_err_sys(err, -rc, "NBD server");
        goto err_after_spare;
    }
    uv_timer_init(loop, &s->deadline);
    s->kick.data = s;
    s->deadline.data = s;
    s->handles = 2;
    s->host.loop = loop;
    s->host.exports = exports;
    s->host.options = *o;
    varve_nbd_pool_init(&s->host.pool, o->pool_threads, o->memory);
    s->host.conn_gone = server_on_conn_gone;
    TAILQ_INIT(&s->host.conns);
    TAILQ_INIT(&s->listeners);
    *out = s;
    return 0;

err_after_spare:
    free(s->host.spare);
err_after_alloc:
    free(s);
    return rc;
}

int varve_nbd_server_listen(struct varve_nbd_server *s, const char *where, char *real,
                            size_t real_len, struct varve_err *err)
{
    struct varve_nbd_listener *l;
    int rc;

    rc = varve_nbd_listener_open(&s->host, where, real, real_len, &l, err);
    if (l)
        TAILQ_INSERT_TAIL(&s->listeners, l, link);
    if (rc && l)
        server_close_listener(s, l);
    return rc;
}

int varve_nbd_server_unlisten(struct varve_nbd_server *s, const char *where, struct varve_err *err)
{
    struct varve_nbd_listener *l;

    TAILQ_FOREACH(l, &s->listeners, link)
    {
        if (strcmp(l->where, where) == 0) {
            server_close_listener(s, l);
            return 0;
        }
    }
    return varve_err_set(err, ENOENT, "the NBD server does not listen at %s", where);
}
