/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Between control.c (the listener) and control-conn.c (one connection).  Loop's thread only.
 */
#ifndef VARVE_SERVER_CONTROL_INTERNAL_H
#define VARVE_SERVER_CONTROL_INTERNAL_H

#include "lib/qmp.h"
#include "server/control.h"
#include "server/mailbox.h"
#include "server/nbd/acceptor.h"

#include <stdbool.h>

struct varve_control_conn;

struct varve_control {
    uv_loop_t *loop;
    struct varve_daemon *daemon;
    struct varve_mailbox *mailbox; /* replies of the clerk */
    void (*quit)(void *arg);
    void *quit_arg;
    uv_pipe_t listener; /* has the socket; the acceptor accepts from it */
    struct varve_acceptor acceptor;
    bool listening, accepts, stopped; /* the first two: that have been initialized */
    unsigned nopen;                   /* of listener, acceptor and hurry, not closed yet */
    uv_timer_t hurry;
    struct varve_control_conn *conns;
    unsigned nconns;
    struct varve_control_conn *spare; /* memory for one more; NULL only while one is open */
    void (*closed)(void *arg);
    void *closed_arg;
};

/* Memory for a connection.  NULL: there is none. */
struct varve_control_conn *varve_control_conn_spare(void);

/* Accepts the next connection of the listening socket.  -ENOMEM, or what accept(2) says. */
int varve_control_conn_accept(struct varve_control *c, int socket);

void varve_control_conn_event(struct varve_control_conn *conn, const char *text, size_t len);
struct varve_control_conn *varve_control_conn_next(struct varve_control_conn *conn);

/* Reads no more. */
void varve_control_conn_stop(struct varve_control_conn *conn);
/* Closes, once what is queued is out, or at once.  It is freed when its last command has come back.
 */
void varve_control_conn_close(struct varve_control_conn *conn, bool at_once);

/* A connection has been freed. */
void varve_control_maybe_closed(struct varve_control *c);

#endif
