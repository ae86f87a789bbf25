/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One NBD connection: its socket, its buffers, its clocks, and the parts that speak the protocol.
 * Private to nbd-*.c; everything runs on the loop of the connection's host.
 * It uses no global state and knows nothing of listeners, so hosts may be as many as loops.  It is
 * made on the server's thread, and is its host's from varve_nbd_host_give on.
 */
#ifndef VARVE_SERVER_NBD_CONN_H
#define VARVE_SERVER_NBD_CONN_H

#include "server/nbd/client-id.h"
#include "server/nbd/nbd-clients.h"
#include "server/nbd/nbd-handshake.h"
#include "server/nbd/nbd-host.h"
#include "server/nbd/nbd-tls.h"
#include "server/nbd/nbd-transmit.h"

#include <stdalign.h>
#include <sys/queue.h>

/* Input that is buffered: at least one header.  While it is full the socket is not read. */
#define VARVE_NBD_INPUT_LEN 4096u

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
    TAILQ_ENTRY(varve_nbd_conn) link; /* in host->conns, before that in its arrivals */
    struct varve_nbd_clients *clients;
    struct varve_nbd_client client; /* its entry in that register */
    struct varve_err refusal;       /* code != 0: it is one too many, and is told so */
    int fd;                         /* before it has `io` */
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

/* Memory for a connection, or NULL. */
struct varve_nbd_conn *varve_nbd_conn_new(void);

/* The accepted socket fd becomes c's.  False: its peer has gone, or there are too many even to be
 * told; fd is closed, and c is as it was. */
bool varve_nbd_conn_take(struct varve_nbd_conn *c, int fd, struct varve_nbd_clients *clients);

/* Ends and frees one that took a socket and has not started. */
void varve_nbd_conn_discard(struct varve_nbd_conn *c);

/* On the loop of c->host: begins. */
void varve_nbd_conn_start(struct varve_nbd_conn *c);

/* To be called last in every callback that did something to c; c may be gone afterwards. */
void varve_nbd_conn_tick(struct varve_nbd_conn *c);

/* The handshake is over: the transmission phase begins. */
void varve_nbd_conn_transmit(struct varve_nbd_conn *c);

/* What is in flight ends, then the connection does; within deadline_ms if that is not 0. */
void varve_nbd_conn_leave(struct varve_nbd_conn *c, unsigned deadline_ms);

/* Has c ticked when it must do something next; after something came that is earlier. */
void varve_nbd_conn_update_timer(struct varve_nbd_conn *c);

/* Closes now, whatever is in flight.  Does nothing if it is closing already. */
void varve_nbd_conn_close(struct varve_nbd_conn *c);

/* Ends the connection for what the peer did or did not do.  TLS is shut down first if it runs, so
 * that the peer can tell the end from one that somebody on the way made. */
void varve_nbd_conn_hang_up(struct varve_nbd_conn *c);

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
