/* SPDX-License-Identifier: BSD-3-Clause
 *
 * TLS of one NBD connection: from the accepted STARTTLS on, what stands between its buffers and its
 * socket.  A part of struct varve_nbd_conn, called by nbd-conn.c on the connection's loop.  It
 * never touches the socket, and never takes a byte that came in plain for one that came under TLS.
 */
#ifndef VARVE_SERVER_NBD_TLS_H
#define VARVE_SERVER_NBD_TLS_H

#include "server/nbd/tls-session.h"

#include <uv.h>

struct varve_nbd_conn;

/* Plain bytes that become records before one write. */
#define VARVE_NBD_TLS_BATCH (256u * 1024u)

enum varve_nbd_tls_state {
    VARVE_NBD_TLS_NONE,
    VARVE_NBD_TLS_ACK,   /* STARTTLS is granted: what is queued goes out in plain, input is TLS */
    VARVE_NBD_TLS_SHAKE, /* the TLS handshake */
    VARVE_NBD_TLS_OPEN,
    VARVE_NBD_TLS_FAILED, /* an alert is the last that goes out */
    VARVE_NBD_TLS_ENDED,  /* close_notify is */
};

struct varve_nbd_tls {
    struct varve_tls_session *session; /* NULL: NONE */
    enum varve_nbd_tls_state state;
    size_t sealed;    /* bytes of the queue's first message that are records already */
    uint8_t *records; /* being written */
};

/* STARTTLS is granted.  `behind`: bytes that came in plain behind it; they end the connection, for
 * who sends them could be anybody on the way. */
void varve_nbd_tls_start(struct varve_nbd_conn *c, size_t behind);

/* What was queued in plain is with the kernel. */
void varve_nbd_tls_acked(struct varve_nbd_conn *c);

/* Goes on with the handshake or puts decrypted bytes into c->in.  True: call again after c->in was
 * looked at. */
bool varve_nbd_tls_pull(struct varve_nbd_conn *c);

/* Makes records of what is queued; whole messages move to c->batch.  True: buf, which is
 * tls.records, wants to be written. */
bool varve_nbd_tls_seal(struct varve_nbd_conn *c, uv_buf_t *buf);

/* The write of tls.records has ended. */
void varve_nbd_tls_written(struct varve_nbd_conn *c);

/* Says goodbye if it was not said yet; there may be output then. */
void varve_nbd_tls_bye(struct varve_nbd_conn *c);

/* Frees all of it. */
void varve_nbd_tls_end(struct varve_nbd_conn *c);

#endif
