/* SPDX-License-Identifier: BSD-3-Clause
 *
 *     init ──▶ OPEN ──news: close──▶ connections leave ──deadline──▶ they are closed
 *                                        │
 *                                        ▼ no connection is left (host_maybe_closed)
 *                                    its handles close ──▶ closed(arg)
 *
 * News are taken all at once and heeded in one order: rules and keys first, so that who arrives
 * meets the newest; then arrivals, then the kick, then the end.
 */
#include "server/nbd/nbd-host.h"

#include "server/nbd/nbd-conn.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

/* How long clients of a withdrawn export have to take what was in flight. */
#define KICK_GRACE_MS 1000u

void varve_nbd_host_log(struct varve_nbd_host *h, const struct varve_client_id *id,
                        const char *what)
{
    char who[VARVE_CLIENT_TEXT_MAX];

    if (h->options.log && varve_nbd_clients_may_log(h->clients, uv_hrtime() / 1000000000u))
        h->options.log("NBD client %s: %s", varve_client_id_text(id, who, sizeof(who)), what);
}

/* --- rounds --------------------------------------------------------------------------------- */

/* Who comes again in this round waits for the next. */
static void host_on_round(uv_idle_t *idle)
{
    struct varve_nbd_host *h = idle->data;
    struct varve_nbd_conn *c;
    unsigned n = 0;

    TAILQ_FOREACH(c, &h->again, tx.in_line)
    n++;
    while (n-- && (c = TAILQ_FIRST(&h->again))) {
        varve_nbd_pool_leave_lines(c);
        varve_nbd_conn_tick(c);
    }
    if (TAILQ_EMPTY(&h->again))
        uv_idle_stop(idle);
}

void varve_nbd_host_again(struct varve_nbd_conn *c)
{
    varve_nbd_pool_leave_lines(c);
    c->tx.line = &c->host->again;
    TAILQ_INSERT_TAIL(c->tx.line, c, tx.in_line);
    uv_idle_start(&c->host->round, host_on_round);
}

/* --- the end -------------------------------------------------------------------------------- */

static void host_on_handle_closed(uv_handle_t *handle)
{
    struct varve_nbd_host *h = handle->data;

    if (!--h->handles)
        h->closed(h->closed_arg);
}

/* All that must be gone before the host is. */
static void host_maybe_closed(struct varve_nbd_host *h)
{
    if (!h->leaving || h->handles_closing || h->nconns)
        return;
    h->handles_closing = true;
    pthread_mutex_lock(&h->lock);
    h->deaf = true;
    pthread_mutex_unlock(&h->lock);
    uv_close((uv_handle_t *)&h->async, host_on_handle_closed);
    uv_close((uv_handle_t *)&h->deadline, host_on_handle_closed);
    uv_close((uv_handle_t *)&h->round, host_on_handle_closed);
}

void varve_nbd_host_conn_gone(struct varve_nbd_host *h)
{
    h->nconns--;
    host_maybe_closed(h);
}

static void host_on_deadline(uv_timer_t *timer)
{
    struct varve_nbd_host *h = timer->data;
    struct varve_nbd_conn *c;

    TAILQ_FOREACH(c, &h->conns, link)
    varve_nbd_conn_close(c);
}

static void host_go_down(struct varve_nbd_host *h, unsigned deadline_ms)
{
    struct varve_nbd_conn *c, *next;

    assert(!h->leaving);
    h->leaving = true;
    uv_update_time(h->loop);
    for (c = TAILQ_FIRST(&h->conns); c; c = next) {
        next = TAILQ_NEXT(c, link);
        varve_nbd_conn_leave(c, deadline_ms);
        varve_nbd_conn_tick(c);
    }
    uv_timer_start(&h->deadline, host_on_deadline, deadline_ms, 0);
    host_maybe_closed(h);
}

/* --- news ----------------------------------------------------------------------------------- */

static void host_end_lost(struct varve_nbd_host *h)
{
    struct varve_nbd_conn *c, *next;

    for (c = TAILQ_FIRST(&h->conns); c; c = next) {
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

static void news_init(struct varve_nbd_news *n)
{
    *n = (struct varve_nbd_news){.kick = false};
    TAILQ_INIT(&n->arrivals);
}

static void host_take_news(struct varve_nbd_host *h, struct varve_nbd_news *n)
{
    news_init(n);
    pthread_mutex_lock(&h->lock);
    TAILQ_CONCAT(&n->arrivals, &h->news.arrivals, link);
    n->has_tls = h->news.has_tls;
    n->has_access = h->news.has_access;
    n->tls = h->news.tls;
    n->access = h->news.access;
    n->kick = h->news.kick;
    n->close = h->news.close;
    n->deadline_ms = h->news.deadline_ms;
    news_init(&h->news);
    pthread_mutex_unlock(&h->lock);
}

static void host_on_news(uv_async_t *async)
{
    struct varve_nbd_host *h = async->data;
    struct varve_nbd_news n;
    struct varve_nbd_conn *c;

    host_take_news(h, &n);
    if (n.has_tls) {
        varve_tls_unref(h->tls);
        h->tls = n.tls;
    }
    if (n.has_access) {
        varve_access_unref(h->access);
        h->access = n.access;
    }
    while ((c = TAILQ_FIRST(&n.arrivals))) {
        TAILQ_REMOVE(&n.arrivals, c, link);
        varve_nbd_conn_start(c);
    }
    if (n.kick || n.has_access)
        host_end_lost(h);
    if (n.close)
        host_go_down(h, n.deadline_ms);
}

/* Locks; the caller changes h->news and calls host_post.  False, unlocked: nobody takes any. */
static bool host_begin_post(struct varve_nbd_host *h)
{
    pthread_mutex_lock(&h->lock);
    if (!h->deaf)
        return true;
    pthread_mutex_unlock(&h->lock);
    return false;
}

static void host_post(struct varve_nbd_host *h)
{
    uv_async_send(&h->async); /* inside the lock: its end cannot come between */
    pthread_mutex_unlock(&h->lock);
}

void varve_nbd_host_give(struct varve_nbd_host *h, struct varve_nbd_conn *c)
{
    if (!host_begin_post(h)) {
        varve_nbd_conn_discard(c);
        return;
    }
    c->host = h;
    h->nconns++;
    TAILQ_INSERT_TAIL(&h->news.arrivals, c, link);
    host_post(h);
}

void varve_nbd_host_set_tls(struct varve_nbd_host *h, struct varve_tls *tls)
{
    if (!host_begin_post(h)) {
        varve_tls_unref(tls);
        return;
    }
    varve_tls_unref(h->news.tls);
    h->news.tls = tls;
    h->news.has_tls = true;
    host_post(h);
}

void varve_nbd_host_set_access(struct varve_nbd_host *h, struct varve_access *access)
{
    if (!host_begin_post(h)) {
        varve_access_unref(access);
        return;
    }
    varve_access_unref(h->news.access);
    h->news.access = access;
    h->news.has_access = true;
    host_post(h);
}

void varve_nbd_host_kick(struct varve_nbd_host *h)
{
    if (!host_begin_post(h))
        return;
    h->news.kick = true;
    host_post(h);
}

void varve_nbd_host_close(struct varve_nbd_host *h, unsigned deadline_ms, void (*closed)(void *arg),
                          void *arg)
{
    h->closed = closed;
    h->closed_arg = arg;
    h->going_down = true;
    if (!host_begin_post(h))
        return;
    h->news.close = true;
    h->news.deadline_ms = deadline_ms;
    host_post(h);
}

/* --- beginning ------------------------------------------------------------------------------ */

int varve_nbd_host_init(struct varve_nbd_host *h, uv_loop_t *loop, struct varve_exports *exports,
                        struct varve_nbd_clients *clients, const struct varve_nbd_options *o,
                        unsigned pool_threads, size_t memory, struct varve_err *err)
{
    int rc;

    *h = (struct varve_nbd_host){
        .loop = loop, .exports = exports, .clients = clients, .options = *o};
    rc = uv_async_init(loop, &h->async, host_on_news);
    if (rc)
        return varve_err_sys(err, -rc, "NBD server");
    uv_timer_init(loop, &h->deadline);
    h->async.data = h;
    h->deadline.data = h;
    uv_idle_init(loop, &h->round);
    h->round.data = h;
    h->handles = 3;
    TAILQ_INIT(&h->again);
    pthread_mutex_init(&h->lock, NULL);
    varve_nbd_pool_init(&h->pool, pool_threads, memory);
    TAILQ_INIT(&h->conns);
    news_init(&h->news);
    return 0;
}

void varve_nbd_host_fini(struct varve_nbd_host *h)
{
    varve_tls_unref(h->news.tls);
    varve_access_unref(h->news.access);
    varve_tls_unref(h->tls);
    varve_access_unref(h->access);
    pthread_mutex_destroy(&h->lock);
}
