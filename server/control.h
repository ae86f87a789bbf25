/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The control socket: QMP for our own user and root.  Lives on the loop's thread; commands run on
 * the clerk's.  A client that reads slowly or never holds up nobody but itself, and what is kept
 * for it is bounded.
 */
#ifndef VARVE_SERVER_CONTROL_H
#define VARVE_SERVER_CONTROL_H

#include "lib/err.h"
#include "server/daemon.h"

#include <uv.h>

struct varve_control;

/* quit(arg) is called on the loop after a client's `quit` was answered. */
int varve_control_new(uv_loop_t *loop, struct varve_daemon *d, void (*quit)(void *arg), void *arg,
                      struct varve_control **out, struct varve_err *err);

/* Listens.  A socket that nobody listens at any more is replaced.  -EADDRINUSE */
int varve_control_listen(struct varve_control *c, const char *path, struct varve_err *err);

/* The same with a socket that listens already; takes over fd, also on failure.  It is not unlinked. */
int varve_control_adopt(struct varve_control *c, int fd, struct varve_err *err);

/* An event for everyone who has negotiated. */
void varve_control_event(void *control, const char *text, size_t len);

/* No more connections, no more commands; the socket is unlinked. */
void varve_control_stop(struct varve_control *c);

/* After stop, when the clerk has ended: lets replies out for a moment, then closes all and frees
 * it. closed(arg) is called on the loop when nothing of it is left. */
void varve_control_close(struct varve_control *c, void (*closed)(void *arg), void *arg);

#endif
