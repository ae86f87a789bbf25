/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One NBD connection: its socket, its buffers, its clocks, and the parts that speak the protocol.
 * Private to nbd-*.c; everything runs on the loop of the connection's host.
 * It uses no global state and knows nothing of listeners, so hosts may be as many as loops.
 */
#ifndef VARVE_SERVER_NBD_CONN_H
#define VARVE_SERVER_NBD_CONN_H

#include "server/client-id.h"
#include "server/nbd-handshake.h"
#include "server/nbd-server.h"
#include "server/nbd-tls.h"
#include "server/nbd-transmit.h"

#include <stdalign.h>
#include <sys/queue.h>

/* Input that is buffered: at least one header.  While it is full the socket is not read. */
#define VARVE_NBD_INPUT_LEN 4096u

/* What the connections of one loop share. */
struct varve_nbd_host {
    uv_loop_t *loop;
    struct varve_exports *exports;
    struct varve_nbd_options options;
    struct varve_tls *tls;       /* for new sessions; NULL: off */
    struct varve_access *access; /* NULL: everybody sees all */
    uint64_t log_second;         /* the one in which log_count lines were written */
    unsigned log_count;
    bool going_down; /* the server is closing: nothing new is begun */
    TAILQ_HEAD(, varve_nbd_conn) conns;
    unsigned nconns;
    struct varve_nbd_pool pool;
    struct varve_nbd_conn *spare; /* memory for one more; NULL only while a connection is open */
    void (*conn_gone)(struct varve_nbd_host *host); /* one was freed */
};

/* A message, or several, on the way to the peer. */
struct varve_nbd_out {
    TAILQ_ENTRY(varve_nbd_out) link;
    size_t len;        /* bytes to send */
    size_t held;       /* bytes of the connection's budget that it gives back */
    size_t data_len;   /* bytes of the export's content among them */
    bool ends_request; /* its last byte ends a request */
    alignas(16) uint8_t data[];
};

TAILQ_HEAD(varve_nbd_outs, varve_nbd_out);

enum varve_nbd_state {
    VARVE_NBD_HANDSHAKE,
    VARVE_NBD_TRANSMIT,
    VARVE_NBD_LEAVING,
    VARVE_NBD_LINGER,
    VARVE_NBD_CLOSING,
};

struct varve_nbd_conn {
    struct varve_nbd_host *host;
    TAILQ_ENTRY(varve_nbd_conn) link; /* in host->conns */
    enum varve_nbd_state state;
    _Atomic bool dead; /* state is CLOSING: the pool may stop working for it */

    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    } io;
    uv_timer_t timer;
    unsigned handles; /* of these two not yet closed */
    uv_shutdown_t shutdown;
    struct varve_client_id id;

    /* input */
    bool reading;  /* uv_read_start is on */
    bool eof;      /* the peer sends no more */
    bool deaf;     /* what the peer sends is of no interest any more */
    uint64_t skip; /* bytes of input to throw away first */
    size_t in_len;
    uint8_t in[VARVE_NBD_INPUT_LEN];

    /* output */
    struct varve_nbd_outs queue; /* not yet given to libuv */
    struct varve_nbd_outs batch; /* given to it, in one write */
    bool writing;
    uv_write_t write;
    size_t untaken; /* bytes libuv had to write when we last looked */

    /* the loop's time in ms: when the peer last took and sent something; when this state ends
     * (0: never) */
    uint64_t took_ms, heard_ms;
    uint64_t deadline_ms;

    struct varve_nbd_tls tls;
    struct varve_nbd_handshake hs;
    struct varve_nbd_transmit tx;
};

/* Accepts what waits at the listener (a uv_pipe_t or uv_tcp_t of the host's loop).  Above the limit
 * of connections the peer is closed at once.  -ENOMEM: it still waits, and libuv does not call for
 * it again; call this when a connection has gone. */
int varve_nbd_conn_accept(struct varve_nbd_host *host, uv_stream_t *listener);

/* To be called last in every callback that did something to c; c may be gone afterwards. */
void varve_nbd_conn_tick(struct varve_nbd_conn *c);

/* The handshake is over: the transmission phase begins. */
void varve_nbd_conn_transmit(struct varve_nbd_conn *c);

/* What is in flight ends, then the connection does; within deadline_ms if that is not 0. */
void varve_nbd_conn_leave(struct varve_nbd_conn *c, unsigned deadline_ms);

/* Closes now, whatever is in flight.  Does nothing if it is closing already. */
void varve_nbd_conn_close(struct varve_nbd_conn *c);

/* Something is queued or being written. */
static inline bool varve_nbd_conn_has_output(const struct varve_nbd_conn *c)
{
    return c->writing || !TAILQ_EMPTY(&c->queue) ||
           (c->tls.session && varve_tls_session_output_len(c->tls.session));
}

/* A message of len bytes with undefined content.  NULL: no memory.  Give it to
 * varve_nbd_conn_send or free() it. */
struct varve_nbd_out *varve_nbd_out_new(size_t len);

/* Queues out and owns it.  It is written at the next tick. */
void varve_nbd_conn_send(struct varve_nbd_conn *c, struct varve_nbd_out *out);

#endif
