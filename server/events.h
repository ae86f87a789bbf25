/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Events of the control socket, from any thread to whoever listens.  Sending never waits and never
 * fails: an event that nobody can take is dropped.
 */
#ifndef VARVE_SERVER_EVENTS_H
#define VARVE_SERVER_EVENTS_H

#include "lib/err.h"
#include "lib/qmp.h"

#include <uv.h>

struct varve_events;

/* deliver(arg, text, len) is called on the loop for every event, whole lines. */
int varve_events_new(uv_loop_t *loop, void (*deliver)(void *arg, const char *text, size_t len),
                     void *arg, struct varve_events **out, struct varve_err *err);
/* On the loop; nobody may send any more. */
void varve_events_close(struct varve_events *e);

/* data is taken over; NULL: no memory for it, nothing is sent. */
void varve_events_send(struct varve_events *e, const char *name, json_t *data);

#endif
