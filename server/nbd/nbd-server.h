/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The NBD server of the daemon: listeners, connections, the protocol of doc/proto.md of the NBD
 * project, read-only.  Created, driven and closed on the thread of one uv loop; connections live on
 * loops of their own threads (nbd-host.h), what may wait for a disk runs in libuv's pool.  It never
 * looks behind struct varve_export, holds no policy, and a peer can neither make it wait without a
 * limit nor make it use memory without one.
 * The process must ignore SIGPIPE, and leave the pool's threads to the server alone.
 */
#ifndef VARVE_SERVER_NBD_SERVER_H
#define VARVE_SERVER_NBD_SERVER_H

#include "lib/err.h"
#include "server/nbd/access.h"
#include "server/nbd/export.h"
#include "server/nbd/tls.h"

#include <uv.h>

struct varve_nbd_server;

struct varve_nbd_options {
    uint32_t max_request;     /* bytes, largest read; default 32 MiB */
    unsigned max_connections; /* in all, see nbd-clients.c; default 1024 */
    unsigned max_per_peer;    /* of one address or user; 0: as many (default) */
    unsigned network_threads; /* loops, one a thread, at most pool_threads; 0 (default): all is on
                               * the loop that the server was made on */
    unsigned pool_threads;    /* UV_THREADPOOL_SIZE; default 4, as libuv's */
    size_t memory;            /* bytes, for replies, see nbd-pool.c; default 64 MiB */
    unsigned handshake_timeout_ms; /* from accept to transmission; default 10 s */
    unsigned idle_timeout_ms; /* a peer that neither sends nor takes anything; 0: never (default) */
    unsigned
        write_timeout_ms; /* a peer that takes nothing of a reply for this long; default 60 s */
    /* One line, on the loop; NULL (default): nobody is told.  Not more than ten in a second. */
    void (*log)(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
};

void varve_nbd_options_default(struct varve_nbd_options *o);

/* exports is borrowed for the server's life. */
int varve_nbd_server_new(uv_loop_t *loop, struct varve_exports *exports,
                         const struct varve_nbd_options *o, struct varve_nbd_server **out,
                         struct varve_err *err);

/* Listens at WHERE: unix:PATH, tcp:HOST:PORT (tcp:[::1]:10809, port 0: any), vsock:PORT.  A stale
 * unix socket is replaced only when nobody listens there.  May be called several times. `real` gets
 * the address as WHERE, with the real port. */
int varve_nbd_server_listen(struct varve_nbd_server *s, const char *where, char *real,
                            size_t real_len, struct varve_err *err);

/* The same with a socket that listens already (systemd's); takes over fd, also on failure.  It is
 * not unlinked at the end. */
int varve_nbd_server_adopt(struct varve_nbd_server *s, int fd, char *real, size_t real_len,
                           struct varve_err *err);

/* Stops listening at WHERE as it was given to listen (a unix socket is unlinked).  -ENOENT: not
 * there. */
int varve_nbd_server_unlisten(struct varve_nbd_server *s, const char *where, struct varve_err *err);

/* The same two from another thread, which waits until the loop has done it; what may take its time,
 * a name to be resolved, is done on that thread.  A listener that was added is known by its real
 * address.  -ESHUTDOWN: the server closes. */
int varve_nbd_server_add(struct varve_nbd_server *s, const char *where, char *real, size_t real_len,
                         struct varve_err *err);
int varve_nbd_server_remove(struct varve_nbd_server *s, const char *real, struct varve_err *err);

/* What new TLS sessions use from now on; takes over the caller's reference.  NULL (as in the
 * beginning): no TLS.  On the loop. */
void varve_nbd_server_set_tls(struct varve_nbd_server *s, struct varve_tls *tls);

/* Who sees which exports from now on; takes over the caller's reference.  NULL (as in the
 * beginning): everybody sees all.  Connections to what their client may see no longer end as if it
 * were withdrawn.  On the loop. */
void varve_nbd_server_set_access(struct varve_nbd_server *s, struct varve_access *access);

/* Closes the connections to withdrawn exports.  Any thread, until the server is freed. */
void varve_nbd_server_kick(struct varve_nbd_server *s);

/* One connection, as it was when it was looked at. */
struct varve_nbd_census_client {
    char *peer;     /* varve_client_id_peer */
    char *identity; /* what TLS proved, varve_client_id_identity; "": nothing */
    char *export;   /* its export's name; NULL: it has none (yet, or any more) */
    bool tls;
    uint64_t since_ns; /* realtime: it came */
    uint64_t requests; /* all that it sent */
    uint64_t bytes;    /* of the export's content, that it took */
    uint64_t errors;   /* answered to it */
    unsigned queue;    /* requests in flight */
};

struct varve_nbd_census {
    size_t nclients;
    struct varve_nbd_census_client *clients;
    unsigned max, max_per_peer; /* limits; 0: none */
    uint64_t accepted, refused; /* connections since the server was made */
};

/* Who is there.  Any thread, until the server is freed.  Fini out unless it fails (-ENOMEM). */
int varve_nbd_server_census(struct varve_nbd_server *s, struct varve_nbd_census *out,
                            struct varve_err *err);
void varve_nbd_census_fini(struct varve_nbd_census *c);

/* Ends: stops listening, unlinks unix sockets, answers new requests with ESHUTDOWN, lets replies in
 * flight end for at most deadline_ms, then closes everything whatever clients do.  closed(arg) is
 * called exactly once, on the loop, when nothing of it is left but its memory. */
void varve_nbd_server_close(struct varve_nbd_server *s, unsigned deadline_ms,
                            void (*closed)(void *arg), void *arg);

/* After closed(). */
void varve_nbd_server_free(struct varve_nbd_server *s);

#endif
