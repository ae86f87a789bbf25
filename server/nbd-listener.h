/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A listening socket: unix or TCP, from its WHERE to the connections it accepts.
 * Private to nbd-*.c, on the loop of its host.  It knows nothing of the protocol.
 */
#ifndef VARVE_SERVER_NBD_LISTENER_H
#define VARVE_SERVER_NBD_LISTENER_H

#include "server/nbd-conn.h"

#include <netinet/in.h>
#include <sys/un.h>

struct varve_nbd_listener {
    struct varve_nbd_host *host;
    TAILQ_ENTRY(varve_nbd_listener) link;
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    } io;
    char *where;  /* as it was given */
    char *path;   /* of a unix socket, or NULL; */
    uint64_t dev; /* only while it is still this file is it unlinked */
    uint64_t ino;
    bool starved;                               /* a connection waits for memory */
    void (*gone)(struct varve_nbd_listener *l); /* closed; frees it with varve_nbd_listener_free */
};

/* Listens at where.  real may be NULL, see varve_nbd_server_listen.  After an error *out is NULL,
 * or a listener that does nothing but must be closed as any other. */
int varve_nbd_listener_open(struct varve_nbd_host *host, const char *where, char *real,
                            size_t real_len, struct varve_nbd_listener **out,
                            struct varve_err *err);

/* Stops listening and unlinks; gone(l) is called later, on the loop. */
void varve_nbd_listener_close(struct varve_nbd_listener *l,
                              void (*gone)(struct varve_nbd_listener *l));

/* A connection has gone, so there is memory for one that waits. */
void varve_nbd_listener_retry(struct varve_nbd_listener *l);

void varve_nbd_listener_free(struct varve_nbd_listener *l);

#endif
