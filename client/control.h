/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A connection to varved's control socket: connects, shakes hands, executes one command at a time
 * with a deadline.  One thread at a time.  It never prints and never waits for ever.
 */
#ifndef VARVE_CLIENT_CONTROL_H
#define VARVE_CLIENT_CONTROL_H

#include "lib/qmp.h"

/* How long the greeting may take, and how long a command's reply. */
#define VARVE_CONTROL_GREETING_MS 10000
#define VARVE_CONTROL_REPLY_MS    120000

struct varve_control;

/* Connects to the socket at path and negotiates.  0, *out is the caller's to close; or -errno. */
int varve_control_open(const char *path, struct varve_control **out, struct varve_err *err);
void varve_control_close(struct varve_control *c); /* NULL: nothing */

/* The socket, to poll for input. */
int varve_control_fd(const struct varve_control *c);

/* Sends one message.  message is borrowed. */
int varve_control_send(struct varve_control *c, const json_t *message, struct varve_err *err);

/* The next message of any kind, the caller's to json_decref.  timeout_ms 0: only what is here.
 * 1: *out has it.  0: none within the time.  -errno; -EPIPE: the daemon closed the connection. */
int varve_control_receive(struct varve_control *c, int timeout_ms, json_t **out,
                          struct varve_err *err);

/* Executes a command.  arguments is stolen, NULL: none.  0: *value has what "return" holds, the
 * caller's to json_decref; value may be NULL.  -EREMOTEIO: the daemon refused, err has its
 * sentence.  Events that come meanwhile are dropped. */
int varve_control_execute(struct varve_control *c, const char *command, json_t *arguments,
                          json_t **value, struct varve_err *err);

/* A file's name as the daemon understands it, whose working directory is another one.  *out is the
 * caller's to free. */
int varve_control_absolute(const char *file, char **out, struct varve_err *err);

/* Opens, executes one command, closes. */
int varve_control_once(const char *path, const char *command, json_t *arguments, json_t **value,
                       struct varve_err *err);

#endif
