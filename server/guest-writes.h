/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How guests' writes to some disks fare, as the plugins that serve them measure it: what an
 * adaptive throttle looks at.  It reads the disks' control pages (small files on tmpfs), and never
 * waits.
 */
#ifndef VARVE_SERVER_GUEST_WRITES_H
#define VARVE_SERVER_GUEST_WRITES_H

#include "lib/view.h"
#include "server/nbd/throttle.h"

#include <stddef.h>

/* Fills *out, whose arg varve_throttle_new() takes over; references to the n sources are added.
 * False: no memory. */
bool varve_guest_writes_of(struct varve_source *const *sources, size_t n,
                           struct varve_throttle_guest *out);

#endif
