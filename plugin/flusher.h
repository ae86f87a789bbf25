/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The flusher: one thread that has the tracker's state made durable every few seconds, and does
 * whatever else is to be done now and then (varve_tracker_flush).  No request of the guest waits
 * for it, and it waits for none beyond what the tracker says.
 */
#ifndef VARVE_PLUGIN_FLUSHER_H
#define VARVE_PLUGIN_FLUSHER_H

#include "lib/err.h"
#include "lib/tracker.h"

struct varve_flusher;

/* Starts the thread, in the process that stays after nbdkit's fork.  Tracker and name (the disk's,
 * for messages) are borrowed until stop. */
int varve_flusher_start(struct varve_tracker *t, const char *name, struct varve_flusher **out,
                        struct varve_err *err);

/* Ends the thread and frees; waits for the step under way.  Before the tracker is detached. */
void varve_flusher_stop(struct varve_flusher *f);

#endif
