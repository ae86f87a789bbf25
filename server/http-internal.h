/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Between http.c (listeners, the clerk) and http-conn.c (one connection).  Loop's thread only.
 */
#ifndef VARVE_SERVER_HTTP_INTERNAL_H
#define VARVE_SERVER_HTTP_INTERNAL_H

#include "server/http-request.h"
#include "server/http.h"
#include "server/mailbox.h"
#include "server/nbd/acceptor.h"
#include "server/nbd/nbd-socket.h"

#include <sys/queue.h>

/* A made page on its way to those who asked for it. */
struct varve_http_text {
    unsigned nrefs;
    char *text;
    size_t len;
};

struct varve_http_listener {
    LIST_ENTRY(varve_http_listener) link;
    struct varve_http *http;
    struct varve_acceptor acceptor;
    struct varve_nbd_socket socket;
    char *where; /* as it is */
    char *host;  /* as it was given, for the guard */
    bool is_unix;
};

struct varve_http_conn;

struct varve_http {
    uv_loop_t *loop;
    struct varve_daemon *daemon;
    const struct varve_http_site *site;
    LIST_HEAD(, varve_http_listener) listeners;
    TAILQ_HEAD(varve_http_conns, varve_http_conn) conns; /* oldest first */
    unsigned nconns;
    uint64_t logged_ms; /* when it last was that clients wait; 0: never */

    /* What the clerk makes: the clerk's from the post of the job to the delivery of the letter. */
    struct varve_mailbox *mailbox;
    struct varve_job job;
    struct varve_letter letter;
    const struct varve_http_page *page;
    char query[VARVE_HTTP_HEAD_MAX];
    struct varve_http_answer answer;
    bool at_clerk;

    uv_timer_t hurry;
    bool closing;
    void (*closed)(void *arg);
    void *closed_arg;
};

/* --- http-conn.c --- */

/* Accepts the next connection of the listening socket.  -ENOMEM, or what accept(2) says. */
int varve_http_conn_accept(struct varve_http_listener *l);
/* The longest connected of those that we wait for, not they for us; NULL: there is none. */
struct varve_http_conn *varve_http_conn_idle(struct varve_http *h);
/* At once. */
void varve_http_conn_close(struct varve_http_conn *conn);
/* The daemon ends: closes, but lets an answer out that is on its way. */
void varve_http_conn_stop(struct varve_http_conn *conn);
struct varve_http_conn *varve_http_conn_next(struct varve_http_conn *conn);
/* What the next one that waits for the clerk wants; all who want the same are marked.  false: there
 * is none. */
bool varve_http_conn_wants(struct varve_http *h);
/* Gives those that were marked what the clerk made. */
void varve_http_conn_give(struct varve_http *h);

/* --- http.c --- */

/* Somebody waits for the clerk. */
void varve_http_work(struct varve_http *h);
/* A connection has been freed. */
void varve_http_maybe_closed(struct varve_http *h);

#endif
