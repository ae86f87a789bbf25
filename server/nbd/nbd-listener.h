/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A listening socket at work: it accepts connections, those that the register admits, and gives
 * them away.  Private to nbd-*.c, on the server's loop.  It knows nothing of the protocol.
 */
#ifndef VARVE_SERVER_NBD_LISTENER_H
#define VARVE_SERVER_NBD_LISTENER_H

#include "server/nbd/acceptor.h"
#include "server/nbd/nbd-conn.h"
#include "server/nbd/nbd-socket.h"

struct varve_nbd_listener {
    TAILQ_ENTRY(varve_nbd_listener) link;
    struct varve_nbd_clients *clients;
    const struct varve_nbd_options *options;
    void (*give)(void *arg, struct varve_nbd_conn *c);
    void *arg;
    char *where; /* as it was given */
    struct varve_nbd_socket socket;
    struct varve_nbd_conn *next; /* memory for the next one, or NULL */
    struct varve_acceptor acceptor;
    void (*gone)(struct varve_nbd_listener *l);
};

/* Listens with a socket that becomes the listener's (also on failure: it is closed then).  Each
 * connection goes to give(arg, c).  `where` is copied.  NULL with err. */
struct varve_nbd_listener *varve_nbd_listener_new(uv_loop_t *loop, struct varve_nbd_socket *socket,
                                                  const char *where,
                                                  struct varve_nbd_clients *clients,
                                                  const struct varve_nbd_options *options,
                                                  void (*give)(void *arg, struct varve_nbd_conn *c),
                                                  void *arg, struct varve_err *err);

/* Stops listening and unlinks; gone(l) is called later, on the loop. */
void varve_nbd_listener_close(struct varve_nbd_listener *l,
                              void (*gone)(struct varve_nbd_listener *l));

void varve_nbd_listener_free(struct varve_nbd_listener *l);

#endif
