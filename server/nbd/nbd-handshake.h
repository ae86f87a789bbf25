/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The handshake of one NBD connection: fixed newstyle, from the greeting to the transmission phase.
 * A part of struct varve_nbd_conn, called by nbd-conn.c on the connection's loop.  It never touches
 * the socket: it eats bytes that it is given and queues answers.
 */
#ifndef VARVE_SERVER_NBD_HANDSHAKE_H
#define VARVE_SERVER_NBD_HANDSHAKE_H

#include "lib/nbd-proto.h"
#include "server/nbd/nbd-metactx.h"

struct varve_nbd_conn;

/* The longest payload of an option that is looked at: a name and some dozens of long queries. */
#define VARVE_NBD_OPTION_MAX (64u * 1024u)

/* The longest payload that is skipped in order to answer TOO_BIG; beyond it the connection ends. */
#define VARVE_NBD_OPTION_SKIP_MAX (1024u * 1024u)

enum varve_nbd_handshake_step {
    VARVE_NBD_STEP_CLIENT_FLAGS,
    VARVE_NBD_STEP_OPTION,  /* its header is next */
    VARVE_NBD_STEP_PAYLOAD, /* of the option */
    VARVE_NBD_STEP_SKIPPED, /* a payload too big was skipped: say so */
};

struct varve_nbd_handshake {
    enum varve_nbd_handshake_step step;
    uint32_t client_flags;
    struct varve_nbd_option opt;
    uint8_t *payload; /* opt.len bytes, `have` of them are here */
    uint32_t have;

    bool starttls; /* it was just granted: the ACK is the last in plain */

    /* what was negotiated; it holds in the transmission phase, too */
    bool structured; /* chunks, in either form */
    bool extended;   /* extended headers */
    struct varve_nbd_metactx meta;
};

/* Queues the greeting. */
void varve_nbd_handshake_begin(struct varve_nbd_conn *c);

/* Eats from buf; returns how much.  0: more bytes are needed, or the peer must take its answers
 * first. */
size_t varve_nbd_handshake_feed(struct varve_nbd_conn *c, const uint8_t *buf, size_t len);

/* The export is still there, and c's client may see it. */
bool varve_nbd_handshake_may_use(const struct varve_nbd_conn *c, const struct varve_export *e);

/* Drops contexts that were selected of an export that c may not use any more. */
void varve_nbd_handshake_forget_lost(struct varve_nbd_conn *c);

/* Frees what only the handshake needs. */
void varve_nbd_handshake_end(struct varve_nbd_conn *c);

#endif
