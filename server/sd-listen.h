/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Sockets that systemd opened for us: the protocol of sd_listen_fds(3), without its library.  Main
 * thread, once, before there are others.  It looks at no socket.
 */
#ifndef VARVE_SERVER_SD_LISTEN_H
#define VARVE_SERVER_SD_LISTEN_H

#include "lib/err.h"

#define VARVE_SD_SOCKETS_MAX 32

struct varve_sd_list {
    unsigned n;
    int fds[VARVE_SD_SOCKETS_MAX]; /* close-on-exec; the caller's */
};

struct varve_sd_sockets {
    int control;                       /* the one named "control"; -1: none */
    struct varve_sd_list metrics, web; /* those of these names */
    struct varve_sd_list nbd;          /* of any other name */
};

/* Takes them; none if they are not meant for this process.  Children see nothing of it.  -EINVAL:
 * the environment is wrong, or there are too many. */
int varve_sd_listen(struct varve_sd_sockets *out, struct varve_err *err);

#endif
