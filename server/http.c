/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/http-internal.h"

#include "lib/json.h"
#include "server/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CONNECTIONS_MAX 64u

/* Answers in flight get this long at the end. */
#define HURRY_MS 300

#define LOG_EVERY_MS 60000

/* --- the end ------------------------------------------------------------------------------ */

static void http_on_hurry_closed(uv_handle_t *handle)
{
    struct varve_http *h = handle->data;

    h->closed(h->closed_arg);
    free(h);
}

void varve_http_maybe_closed(struct varve_http *h)
{
    if (!h->closing || h->at_clerk || h->nconns > 0 || !LIST_EMPTY(&h->listeners) ||
        uv_is_closing((uv_handle_t *)&h->hurry))
        return;
    varve_mailbox_close(h->mailbox);
    uv_close((uv_handle_t *)&h->hurry, http_on_hurry_closed);
}

static void listener_free(struct varve_http_listener *l)
{
    free(l->where);
    free(l->host);
    free(l);
}

static void listener_on_closed(void *arg)
{
    struct varve_http_listener *l = arg;
    struct varve_http *h = l->http;

    LIST_REMOVE(l, link);
    listener_free(l);
    varve_http_maybe_closed(h);
}

static void http_on_hurry(uv_timer_t *timer)
{
    struct varve_http *h = timer->data;

    for (struct varve_http_conn *c = TAILQ_FIRST(&h->conns); c; c = varve_http_conn_next(c))
        varve_http_conn_close(c);
}

void varve_http_close(struct varve_http *h, void (*closed)(void *arg), void *arg)
{
    struct varve_http_listener *l;

    h->closing = true;
    h->closed = closed;
    h->closed_arg = arg;
    uv_timer_start(&h->hurry, http_on_hurry, HURRY_MS, 0);
    LIST_FOREACH(l, &h->listeners, link)
    {
        varve_acceptor_close(&l->acceptor, listener_on_closed);
        varve_nbd_socket_close(&l->socket);
    }
    for (struct varve_http_conn *c = TAILQ_FIRST(&h->conns); c; c = varve_http_conn_next(c))
        varve_http_conn_stop(c);
    varve_http_maybe_closed(h);
}

/* --- the clerk ---------------------------------------------------------------------------- */

/* On the clerk's thread. */
static void http_make(struct varve_job *job, bool stopping)
{
    struct varve_http *h = (struct varve_http *)((char *)job - offsetof(struct varve_http, job));

    unsigned refused = varve_json_refused();

    h->answer = (struct varve_http_answer){.status = 200};
    if (stopping)
        h->answer.status = 503;
    else
        h->page->make(h->daemon, h->page, h->query, &h->answer);
    if (varve_json_refused() != refused) { /* it lacks something */
        free(h->answer.text);
        h->answer = (struct varve_http_answer){.status = 500};
    }
    varve_mailbox_post(h->mailbox, &h->letter);
}

static void http_on_made(struct varve_letter *letter)
{
    struct varve_http *h =
        (struct varve_http *)((char *)letter - offsetof(struct varve_http, letter));

    h->at_clerk = false;
    varve_http_conn_give(h);
    varve_http_work(h);
    varve_http_maybe_closed(h);
}

void varve_http_work(struct varve_http *h)
{
    if (h->at_clerk || h->closing || !varve_http_conn_wants(h))
        return;
    h->at_clerk = true;
    varve_clerk_post(h->daemon->clerk, &h->job);
}

/* --- listeners ---------------------------------------------------------------------------- */

/* Whoever sends nothing makes room for who may; if all are being answered, others wait. */
static int listener_accept(void *arg)
{
    struct varve_http_listener *l = arg;
    struct varve_http_conn *idle = NULL;
    int rc;

    if (l->http->nconns >= CONNECTIONS_MAX) {
        idle = varve_http_conn_idle(l->http);
        if (!idle)
            return -EUSERS;
    }
    rc = varve_http_conn_accept(l);
    if (rc == 0 && idle) /* only now is there somebody to make room for */
        varve_http_conn_close(idle);
    return rc;
}

static void listener_on_starved(void *arg, int rc)
{
    struct varve_http_listener *l = arg;
    struct varve_http *h = l->http;
    uint64_t now = uv_now(h->loop);

    if (h->logged_ms && now - h->logged_ms < LOG_EVERY_MS)
        return;
    h->logged_ms = now;
    varve_log("clients of %s wait at %s: %s", h->site->name, l->where, strerror(-rc));
}

/* HOST of tcp:HOST:PORT, without brackets: where there is none, "". */
static char *where_host(const char *where)
{
    const char *host = strncmp(where, "tcp:", 4) == 0 ? where + 4 : "", *colon = strrchr(host, ':');

    return strndup(host, colon ? (size_t)(colon - host) : 0);
}

/* Takes the socket over. */
static int http_add_listener(struct varve_http *h, struct varve_nbd_socket *socket,
                             const char *given, const char *real, struct varve_err *err)
{
    struct varve_http_listener *l = calloc(1, sizeof(*l));
    int rc = -ENOMEM;

    if (!l || !(l->where = strdup(real)) || !(l->host = where_host(given)))
        goto err_after_socket;
    l->http = h;
    l->socket = *socket;
    l->is_unix = strncmp(real, "unix:", 5) == 0;
    l->acceptor.accept = listener_accept;
    l->acceptor.starved = listener_on_starved;
    l->acceptor.arg = l;
    rc = varve_acceptor_start(&l->acceptor, h->loop, socket->fd);
    if (rc < 0)
        goto err_after_socket;
    LIST_INSERT_HEAD(&h->listeners, l, link);
    varve_log("%s at %s", h->site->name, real);
    return 0;

err_after_socket:
    varve_nbd_socket_close(socket);
    if (l)
        listener_free(l);
    return varve_err_set(err, -rc, "cannot listen at %s: %s", real, strerror(-rc));
}

int varve_http_listen(struct varve_http *h, const char *where, struct varve_err *err)
{
    struct varve_nbd_socket socket;
    char real[512];
    int rc = varve_nbd_socket_open(&socket, where, real, sizeof(real), err);

    return rc < 0 ? varve_err_prefix(err, "%s", h->site->name)
                  : http_add_listener(h, &socket, where, real, err);
}

int varve_http_adopt(struct varve_http *h, int fd, struct varve_err *err)
{
    struct varve_nbd_socket socket;
    char real[512];
    int rc = varve_nbd_socket_adopt(&socket, fd, real, sizeof(real), err);

    return rc < 0 ? varve_err_prefix(err, "%s", h->site->name)
                  : http_add_listener(h, &socket, real, real, err);
}

int varve_http_new(uv_loop_t *loop, struct varve_daemon *d, const struct varve_http_site *site,
                   struct varve_http **out, struct varve_err *err)
{
    struct varve_http *h = calloc(1, sizeof(*h));
    int rc;

    if (!h)
        return varve_err_set(err, ENOMEM, "no memory for %s", site->name);
    rc = varve_mailbox_new(loop, &h->mailbox, err);
    if (rc < 0) {
        free(h);
        return rc;
    }
    h->loop = loop;
    h->daemon = d;
    h->site = site;
    LIST_INIT(&h->listeners);
    TAILQ_INIT(&h->conns);
    h->job.run = http_make;
    h->letter.deliver = http_on_made;
    uv_timer_init(loop, &h->hurry);
    h->hurry.data = h;
    *out = h;
    return 0;
}
