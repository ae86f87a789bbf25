/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One loop of the NBD server with its connections: they live and end on it.  Private to nbd-*.c.
 * What is said to be for any thread leaves news, which the loop takes when it comes to it; nobody
 * waits.  It knows no listener, and no other host.
 */
#ifndef VARVE_SERVER_NBD_HOST_H
#define VARVE_SERVER_NBD_HOST_H

#include "server/nbd/nbd-clients.h"
#include "server/nbd/nbd-pool.h"
#include "server/nbd/nbd-server.h"

#include <pthread.h>
#include <sys/queue.h>

struct varve_nbd_conn;

TAILQ_HEAD(varve_nbd_conns, varve_nbd_conn);

/* What was left for a host; guarded by its lock. */
struct varve_nbd_news {
    struct varve_nbd_conns arrivals;
    bool has_tls, has_access; /* these are to be taken, NULL or not */
    struct varve_tls *tls;
    struct varve_access *access;
    bool kick;
    bool close;
    unsigned deadline_ms;
};

struct varve_nbd_host {
    /* constant */
    uv_loop_t *loop;
    struct varve_exports *exports;
    struct varve_nbd_clients *clients;
    struct varve_nbd_options options;
    void (*closed)(void *arg); /* on the loop: nothing of the host is on it any more */
    void *closed_arg;

    /* the loop's */
    struct varve_tls *tls;       /* for new sessions; NULL: off */
    struct varve_access *access; /* NULL: everybody sees all */
    bool leaving;                /* its connections were told to end */
    struct varve_nbd_conns conns;
    struct varve_nbd_pool pool;
    uv_timer_t deadline;
    uv_idle_t round;             /* runs while somebody is in this line: */
    struct varve_nbd_line again; /* connections that have more to do, after others had their turn */
    unsigned handles;            /* timer, idle and async, not yet closed */
    bool handles_closing;

    /* any thread's */
    _Atomic bool going_down; /* the server is closing: nothing new is begun */
    _Atomic unsigned nconns; /* given to it and not yet gone */
    pthread_mutex_t lock;    /* guards the rest; rank: a leaf */
    bool deaf;               /* it takes no news any more */
    uv_async_t async;        /* there are news */
    struct varve_nbd_news news;
};

/* On the loop's thread, or before that runs.  pool_threads and memory are its part of the server's.
 */
int varve_nbd_host_init(struct varve_nbd_host *h, uv_loop_t *loop, struct varve_exports *exports,
                        struct varve_nbd_clients *clients, const struct varve_nbd_options *o,
                        unsigned pool_threads, size_t memory, struct varve_err *err);
/* After closed(), or instead of running the loop: then the loop has its handles still. */
void varve_nbd_host_fini(struct varve_nbd_host *h);

/* Any thread.  The connection, which was admitted, is the host's; if it takes nothing any more it
 * is closed at once. */
void varve_nbd_host_give(struct varve_nbd_host *h, struct varve_nbd_conn *c);

/* Any thread; these take over the caller's reference. */
void varve_nbd_host_set_tls(struct varve_nbd_host *h, struct varve_tls *tls);
void varve_nbd_host_set_access(struct varve_nbd_host *h, struct varve_access *access);

/* Any thread.  Connections to what their clients may not use any more end. */
void varve_nbd_host_kick(struct varve_nbd_host *h);

/* Any thread, once.  Connections end, within deadline_ms; then closed(closed_arg) is called. */
void varve_nbd_host_close(struct varve_nbd_host *h, unsigned deadline_ms, void (*closed)(void *arg),
                          void *arg);

/* c is ticked again once others on the loop had their turn; it waits in no other line then. */
void varve_nbd_host_again(struct varve_nbd_conn *c);

/* A connection of it was freed.  On the loop. */
void varve_nbd_host_conn_gone(struct varve_nbd_host *h);

/* One line for the log, unless there were too many in this second.  On the loop. */
void varve_nbd_host_log(struct varve_nbd_host *h, const struct varve_client_id *id,
                        const char *what);

#endif
