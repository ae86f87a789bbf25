/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The server's own life: listeners on the loop that made it, hosts on loops of their own threads.
 *
 *     new ──▶ OPEN ──close──▶ listeners and hosts close, side by side
 *                                │
 *                                ▼ every listener is gone, every host has ended and its thread is
 * joined the async closes ──▶ closed(arg) ──▶ free
 *
 * A connection goes to the host that has the fewest.  The pool's threads and the memory for replies
 * are dealt out to the hosts: so no host ever waits for another's lock or work, and nothing of one
 * waits in libuv's queue behind another's.
 */
#include "server/nbd/nbd-server.h"

#include "server/nbd/nbd-conn.h"
#include "server/nbd/nbd-listener.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

struct server_host {
    struct varve_nbd_host host;
    struct varve_nbd_server *server;
    uv_loop_t loop; /* its own thread's */
    pthread_t thread;
    bool ended; /* guarded by the server's lock */
};

/* What another thread wants of the loop; on that thread's stack until it is done. */
struct server_order {
    struct server_order *next;
    struct varve_nbd_socket *socket; /* to listen at; taken over.  NULL: stop listening */
    const char *where;
    struct varve_err *err;
    int rc;
    bool done;
};

struct varve_nbd_server {
    uv_loop_t *loop;
    struct varve_nbd_options options;
    struct varve_nbd_clients clients;
    TAILQ_HEAD(, varve_nbd_listener) listeners;
    unsigned nlisteners;  /* with those that are closing */
    uv_async_t ends;      /* a host has ended, or there are orders */
    pthread_mutex_t lock; /* guards `ended` of hosts, orders, and closing as others see it; rank: a
                           * leaf */
    pthread_cond_t ordered; /* an order is done */
    struct server_order *orders;
    bool closing, async_closing; /* changed on the loop */
    void (*closed)(void *arg);
    void *closed_arg;
    unsigned nthreads; /* 0: the one host is on the server's loop */
    unsigned nhosts;
    struct server_host hosts[];
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

static void server_on_async_closed(uv_handle_t *handle)
{
    struct varve_nbd_server *s = handle->data;

    s->closed(s->closed_arg);
}

static bool server_hosts_ended(struct varve_nbd_server *s)
{
    bool all = true;

    pthread_mutex_lock(&s->lock);
    for (unsigned i = 0; i < s->nhosts; i++)
        all = all && s->hosts[i].ended;
    pthread_mutex_unlock(&s->lock);
    return all;
}

static void server_maybe_closed(struct varve_nbd_server *s)
{
    if (!s->closing || s->async_closing || s->nlisteners || !server_hosts_ended(s))
        return;
    s->async_closing = true;
    for (unsigned i = 0; i < s->nthreads; i++)
        pthread_join(s->hosts[i].thread, NULL);
    uv_close((uv_handle_t *)&s->ends, server_on_async_closed);
}

static int server_obey(struct varve_nbd_server *s, struct server_order *o);

/* All that are there; they are refused once the server closes. */
static void server_obey_all(struct varve_nbd_server *s)
{
    struct server_order *o, *next;

    pthread_mutex_lock(&s->lock);
    o = s->orders;
    s->orders = NULL;
    pthread_mutex_unlock(&s->lock);
    for (; o; o = next) {
        int rc = server_obey(s, o);

        next = o->next;
        pthread_mutex_lock(&s->lock);
        o->rc = rc;
        o->done = true; /* its memory is the other thread's again */
        pthread_cond_broadcast(&s->ordered);
        pthread_mutex_unlock(&s->lock);
    }
}

static void server_on_ends(uv_async_t *async)
{
    server_obey_all(async->data);
    server_maybe_closed(async->data);
}

/* On the host's loop, or on its thread after that. */
static void server_host_ended(struct server_host *h)
{
    struct varve_nbd_server *s = h->server;

    pthread_mutex_lock(&s->lock);
    h->ended = true;
    uv_async_send(&s->ends); /* inside the lock: it is closed only after all have left this */
    pthread_mutex_unlock(&s->lock);
}

static void server_on_host_closed(void *arg)
{
    struct server_host *h = arg;

    if (!h->server->nthreads)
        server_host_ended(h); /* with a thread that has more to do, the thread tells */
}

static void server_on_listener_gone(struct varve_nbd_listener *l)
{
    struct varve_nbd_server *s = l->arg;

    varve_nbd_listener_free(l);
    s->nlisteners--;
    server_maybe_closed(s);
}

static void server_close_listener(struct varve_nbd_server *s, struct varve_nbd_listener *l)
{
    TAILQ_REMOVE(&s->listeners, l, link);
    varve_nbd_listener_close(l, server_on_listener_gone);
}

void varve_nbd_server_close(struct varve_nbd_server *s, unsigned deadline_ms,
                            void (*closed)(void *arg), void *arg)
{
    struct varve_nbd_listener *l;

    assert(!s->closing);
    pthread_mutex_lock(&s->lock);
    s->closing = true; /* from here on nobody adds an order */
    pthread_mutex_unlock(&s->lock);
    server_obey_all(s);
    s->closed = closed;
    s->closed_arg = arg;
    for (unsigned i = 0; i < s->nhosts; i++)
        varve_nbd_host_close(&s->hosts[i].host, deadline_ms, server_on_host_closed, &s->hosts[i]);
    while ((l = TAILQ_FIRST(&s->listeners)))
        server_close_listener(s, l);
}

void varve_nbd_server_free(struct varve_nbd_server *s)
{
    for (unsigned i = 0; i < s->nhosts; i++)
        varve_nbd_host_fini(&s->hosts[i].host);
    varve_nbd_clients_fini(&s->clients);
    pthread_cond_destroy(&s->ordered);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

/* --- threads -------------------------------------------------------------------------------- */

static void *server_thread(void *arg)
{
    struct server_host *h = arg;
    int rc;

    uv_run(&h->loop, UV_RUN_DEFAULT);
    rc = uv_loop_close(&h->loop);
    assert(rc == 0);
    (void)rc;
    server_host_ended(h);
    return NULL;
}

/* Signals are the main thread's. */
static int start_thread(struct server_host *h)
{
    sigset_t all, before;
    int rc;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(&h->thread, NULL, server_thread, h);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc;
}

/* With its part of what is dealt out. */
static int server_init_host(struct varve_nbd_server *s, struct varve_exports *exports, unsigned i,
                            struct varve_err *err)
{
    const struct varve_nbd_options *o = &s->options;
    struct server_host *h = &s->hosts[i];
    unsigned threads = o->pool_threads / s->nhosts + (i < o->pool_threads % s->nhosts);
    uv_loop_t *loop = s->nthreads ? &h->loop : s->loop;
    int rc = s->nthreads ? uv_loop_init(loop) : 0;

    if (rc)
        return varve_err_sys(err, -rc, "NBD server");
    h->server = s;
    rc = varve_nbd_host_init(&h->host, loop, exports, &s->clients, o, threads,
                             o->memory / s->nhosts, err);
    if (rc && s->nthreads)
        uv_loop_close(loop);
    return rc;
}

/* --- the beginning -------------------------------------------------------------------------- */

static void server_on_failed_start(uv_handle_t *handle)
{
    free(handle->data);
}

/* Ends the first of the hosts, of which some have threads. */
static void server_stop_hosts(struct varve_nbd_server *s, unsigned nhosts, unsigned nthreads)
{
    for (unsigned i = 0; i < nhosts; i++) {
        struct server_host *h = &s->hosts[i];

        varve_nbd_host_close(&h->host, 0, server_on_host_closed, h);
        if (i < nthreads)
            pthread_join(h->thread, NULL);
        else
            server_thread(h);
        varve_nbd_host_fini(&h->host);
    }
}

static int server_start_hosts(struct varve_nbd_server *s, struct varve_exports *exports,
                              struct varve_err *err)
{
    unsigned nhosts = 0, nthreads = 0;
    int rc = 0;

    for (; nhosts < s->nhosts && rc == 0; nhosts += rc == 0)
        rc = server_init_host(s, exports, nhosts, err);
    for (; nthreads < s->nthreads && rc == 0; nthreads += rc == 0) {
        rc = start_thread(&s->hosts[nthreads]);
        if (rc)
            rc = varve_err_sys(err, rc, "NBD server: a thread");
    }
    if (rc)
        server_stop_hosts(s, nhosts, nthreads);
    return rc;
}

int varve_nbd_server_new(uv_loop_t *loop, struct varve_exports *exports,
                         const struct varve_nbd_options *o, struct varve_nbd_server **out,
                         struct varve_err *err)
{
    unsigned nhosts = o->network_threads ? o->network_threads : 1;
    struct varve_nbd_server *s = calloc(1, sizeof(*s) + nhosts * sizeof(s->hosts[0]));
    int rc;

    assert(o->network_threads <= o->pool_threads);
    if (!s)
        return varve_err_set(err, ENOMEM, "NBD server: no memory");
    s->loop = loop;
    s->options = *o;
    s->nhosts = nhosts;
    s->nthreads = o->network_threads;
    TAILQ_INIT(&s->listeners);
    rc = uv_async_init(loop, &s->ends, server_on_ends);
    if (rc) {
        free(s);
        return varve_err_sys(err, -rc, "NBD server");
    }
    s->ends.data = s;
    varve_nbd_clients_init(&s->clients, o);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->ordered, NULL);
    rc = server_start_hosts(s, exports, err);
    if (rc) {
        varve_nbd_clients_fini(&s->clients);
        pthread_cond_destroy(&s->ordered);
        pthread_mutex_destroy(&s->lock);
        uv_close((uv_handle_t *)&s->ends, server_on_failed_start);
        return rc;
    }
    *out = s;
    return 0;
}

/* --- listeners ------------------------------------------------------------------------------ */

static void server_give(void *arg, struct varve_nbd_conn *c)
{
    struct varve_nbd_server *s = arg;
    struct varve_nbd_host *least = &s->hosts[0].host;

    for (unsigned i = 1; i < s->nhosts; i++) {
        if (s->hosts[i].host.nconns < least->nconns)
            least = &s->hosts[i].host;
    }
    varve_nbd_host_give(least, c);
}

static int server_add_listener(struct varve_nbd_server *s, struct varve_nbd_socket *socket,
                               const char *where, struct varve_err *err)
{
    struct varve_nbd_listener *l = varve_nbd_listener_new(s->loop, socket, where, &s->clients,
                                                          &s->options, server_give, s, err);

    if (!l)
        return err->code ? -err->code : -ENOMEM;
    TAILQ_INSERT_TAIL(&s->listeners, l, link);
    s->nlisteners++;
    return 0;
}

int varve_nbd_server_listen(struct varve_nbd_server *s, const char *where, char *real,
                            size_t real_len, struct varve_err *err)
{
    struct varve_nbd_socket socket;
    int rc = varve_nbd_socket_open(&socket, where, real, real_len, err);

    return rc ? rc : server_add_listener(s, &socket, where, err);
}

int varve_nbd_server_adopt(struct varve_nbd_server *s, int fd, char *real, size_t real_len,
                           struct varve_err *err)
{
    struct varve_nbd_socket socket;
    int rc = varve_nbd_socket_adopt(&socket, fd, real, real_len, err);

    return rc ? rc : server_add_listener(s, &socket, real, err);
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

static int server_obey(struct varve_nbd_server *s, struct server_order *o)
{
    if (!s->closing)
        return o->socket ? server_add_listener(s, o->socket, o->where, o->err)
                         : varve_nbd_server_unlisten(s, o->where, o->err);
    if (o->socket)
        varve_nbd_socket_close(o->socket);
    return varve_err_set(o->err, ESHUTDOWN, "the NBD server ends");
}

static int server_order(struct varve_nbd_server *s, struct server_order *o)
{
    bool closing;

    pthread_mutex_lock(&s->lock);
    closing = s->closing;
    if (!closing) {
        o->next = s->orders;
        s->orders = o;
        uv_async_send(&s->ends); /* inside the lock, as where a host ends */
        while (!o->done)
            pthread_cond_wait(&s->ordered, &s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return closing ? server_obey(s, o) : o->rc;
}

int varve_nbd_server_add(struct varve_nbd_server *s, const char *where, char *real, size_t real_len,
                         struct varve_err *err)
{
    struct varve_nbd_socket socket;
    struct server_order o = {.socket = &socket, .where = real, .err = err};
    int rc = varve_nbd_socket_open(&socket, where, real, real_len, err);

    return rc ? rc : server_order(s, &o);
}

int varve_nbd_server_remove(struct varve_nbd_server *s, const char *real, struct varve_err *err)
{
    struct server_order o = {.where = real, .err = err};

    return server_order(s, &o);
}

/* --- the rest ------------------------------------------------------------------------------- */

void varve_nbd_server_kick(struct varve_nbd_server *s)
{
    for (unsigned i = 0; i < s->nhosts; i++)
        varve_nbd_host_kick(&s->hosts[i].host);
}

void varve_nbd_server_set_tls(struct varve_nbd_server *s, struct varve_tls *tls)
{
    for (unsigned i = 0; i < s->nhosts; i++)
        varve_nbd_host_set_tls(&s->hosts[i].host, varve_tls_ref(tls));
    varve_tls_unref(tls);
}

void varve_nbd_server_set_access(struct varve_nbd_server *s, struct varve_access *access)
{
    for (unsigned i = 0; i < s->nhosts; i++)
        varve_nbd_host_set_access(&s->hosts[i].host, varve_access_ref(access));
    varve_access_unref(access);
}

int varve_nbd_server_census(struct varve_nbd_server *s, struct varve_nbd_census *out,
                            struct varve_err *err)
{
    return varve_nbd_clients_census(&s->clients, out, err);
}
