/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The plugin's end of the link (lib/link-proto.h): a socket in the disk's runtime folder and one
 * thread, the tracker's control thread, that does what a daemon asks.  The guest's requests never
 * wait for it beyond the bounded freeze, and it never waits for a peer.
 */
#ifndef VARVE_PLUGIN_LINK_H
#define VARVE_PLUGIN_LINK_H

#include "lib/err.h"
#include "lib/tracker.h"
#include "plugin/params.h"
#include "plugin/image.h"

struct varve_link;

/* Makes the socket, replacing one that a former server left; says so if it is not where it should be, or
 * cannot be made.  Tracker, image and config are borrowed until stop. */
int varve_link_listen(struct varve_tracker *t, const struct varve_image *image,
                      const struct varve_params *config, struct varve_link **out,
                      struct varve_err *err);

/* Starts the thread.  In the process that stays after nbdkit's fork. */
int varve_link_start(struct varve_link *l, struct varve_err *err);

/* Ends the thread if it runs, removes the socket, frees. */
void varve_link_stop(struct varve_link *l);

#endif
