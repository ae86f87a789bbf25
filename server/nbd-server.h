/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The NBD server of the daemon: listeners, connections, the protocol of doc/proto.md of the NBD
 * project, read-only.  Created, driven and closed on the thread of one uv loop; reads and status
 * queries run in libuv's pool.  It never looks behind struct varve_export, holds no policy, and a
 * peer can neither make it wait without a limit nor make it use memory without one.
 * The process must ignore SIGPIPE, and leave the pool's threads to the server alone.
 */
#ifndef VARVE_SERVER_NBD_SERVER_H
#define VARVE_SERVER_NBD_SERVER_H

#include "lib/err.h"
#include "server/access.h"
#include "server/export.h"
#include "server/tls.h"

#include <uv.h>

struct varve_nbd_server;

struct varve_nbd_options {
    uint32_t max_request;        /* bytes, largest read; default 32 MiB */
    unsigned max_connections;    /* in all; default 1024 */
    unsigned pool_threads;       /* UV_THREADPOOL_SIZE; default 4, as libuv's */
    size_t memory;               /* bytes, for replies, see nbd-pool.c; default 64 MiB */
    unsigned handshake_timeout_ms; /* from accept to transmission; default 10 s */
    unsigned idle_timeout_ms;    /* a peer that neither sends nor takes anything; 0: never (default) */
    unsigned write_timeout_ms;   /* a peer that takes nothing of a reply for this long; default 60 s */
    /* One line, on the loop; NULL (default): nobody is told.  Not more than ten in a second. */
    void (*log)(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
};

void varve_nbd_options_default(struct varve_nbd_options *o);

/* exports is borrowed for the server's life. */
int varve_nbd_server_new(uv_loop_t *loop, struct varve_exports *exports,
                         const struct varve_nbd_options *o, struct varve_nbd_server **out,
                         struct varve_err *err);

/* Listens at WHERE: unix:PATH, tcp:HOST:PORT (tcp:[::1]:10809, port 0: any).  A stale unix socket is
 * replaced only when nobody listens there.  May be called several times.
 * If `real` is not NULL it gets the address as WHERE, with the real port. */
int varve_nbd_server_listen(struct varve_nbd_server *s, const char *where, char *real,
                            size_t real_len, struct varve_err *err);

/* Stops listening at WHERE as it was given to listen (a unix socket is unlinked).  -ENOENT: not there. */
int varve_nbd_server_unlisten(struct varve_nbd_server *s, const char *where, struct varve_err *err);

/* What new TLS sessions use from now on; takes over the caller's reference.  NULL (as in the
 * beginning): no TLS.  On the loop. */
void varve_nbd_server_set_tls(struct varve_nbd_server *s, struct varve_tls *tls);

/* Who sees which exports from now on; takes over the caller's reference.  NULL (as in the beginning):
 * everybody sees all.  Connections to what their client may see no longer end as if it were
 * withdrawn.  On the loop. */
void varve_nbd_server_set_access(struct varve_nbd_server *s, struct varve_access *access);

/* Closes the connections to withdrawn exports.  May be called from any thread (it wakes the loop). */
void varve_nbd_server_kick(struct varve_nbd_server *s);

/* Ends: stops listening, unlinks unix sockets, answers new requests with ESHUTDOWN, lets replies in
 * flight end for at most deadline_ms, then closes everything whatever clients do.  closed(arg) is
 * called exactly once, on the loop, when nothing of it is left; the server is freed by then. */
void varve_nbd_server_close(struct varve_nbd_server *s, unsigned deadline_ms,
                            void (*closed)(void *arg), void *arg);

#endif
