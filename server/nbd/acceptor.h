/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Accepts connections of a listening socket on one loop.  It never spins: where descriptors or
 * memory are short, clients wait in the kernel's queue for a moment.  libuv's own way to accept does
 * not return from its loop any more when no descriptor is left and another thread is quicker to take
 * the one that libuv keeps for that.
 */
#ifndef VARVE_SERVER_NBD_ACCEPTOR_H
#define VARVE_SERVER_NBD_ACCEPTOR_H

#include <stdbool.h>
#include <uv.h>

struct varve_acceptor {
    /* set by the caller */
    int (*accept)(void *arg);            /* takes one.  0, -ENOMEM, or what accept(2) says */
    void (*starved)(void *arg, int rc);  /* clients wait, for that reason: once until one is taken */
    void *arg;

    /* its own */
    uv_poll_t poll;
    uv_timer_t pause;
    unsigned handles; /* of these two not yet closed */
    bool short_of;
    void (*closed)(void *arg);
};

/* The socket stays the caller's, and is his to close.  0 or -errno: then nothing is to be closed. */
int varve_acceptor_start(struct varve_acceptor *a, uv_loop_t *loop, int socket);

/* closed(arg) is called later, on the loop; no accept() comes any more. */
void varve_acceptor_close(struct varve_acceptor *a, void (*closed)(void *arg));

#endif
