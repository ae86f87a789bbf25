/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A listening socket from its WHERE, or from whoever opened it before us (systemd).  Any thread;
 * making one may wait (for a name to be resolved).  It accepts nothing.
 */
#ifndef VARVE_SERVER_NBD_SOCKET_H
#define VARVE_SERVER_NBD_SOCKET_H

#include "lib/err.h"

#include <stddef.h>
#include <stdint.h>

struct varve_nbd_socket {
    int fd;       /* listens, does not block; -1: none */
    char *path;   /* of a unix socket that we made, or NULL; */
    uint64_t dev; /* only while it is still this file is it unlinked */
    uint64_t ino;
};

/* Listens at `where`; `real` gets the address as WHERE, with the real port.  After an error there
 * is nothing to close. */
int varve_nbd_socket_open(struct varve_nbd_socket *s, const char *where, char *real,
                          size_t real_len, struct varve_err *err);

/* Takes over fd, also on failure.  -EINVAL: it is no listening stream socket. */
int varve_nbd_socket_adopt(struct varve_nbd_socket *s, int fd, char *real, size_t real_len,
                           struct varve_err *err);

/* Unlinks what we made, and closes. */
void varve_nbd_socket_close(struct varve_nbd_socket *s);

#endif
