/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Which parts of a view were holes, found out when first asked and kept: asking a file system is
 * slow and holds up writers (edges.md 20), so it is done once for each part, and with pauses. Any
 * thread.  It reads nothing but allocation, and doubt says data.
 */
#ifndef VARVE_SERVER_ALLOCATION_H
#define VARVE_SERVER_ALLOCATION_H

#include "lib/block.h"
#include "lib/err.h"
#include "lib/view.h"

struct varve_allocation;

/* source and view are borrowed.  NULL: no memory. */
struct varve_allocation *varve_allocation_new(struct varve_source *source,
                                              const struct varve_view *view,
                                              const struct varve_geometry *g);
void varve_allocation_free(struct varve_allocation *a);

/* What is told is uniform over a unit: 64 KiB, or the block size if that is larger. */
uint64_t varve_allocation_unit(const struct varve_allocation *a);

/* Whether the disk had a hole at off (1) or data (0), and how far, at most to `end`, the same is
 * known: *run_end (bytes; a unit's boundary, or end).  A unit is a hole only if all of it is.
 * Errors as of varve_view_hole_run, -EAGAIN among them: nothing is lost by asking again. */
int varve_allocation_run(struct varve_allocation *a, uint64_t off, uint64_t end, uint64_t *run_end,
                         struct varve_err *err);

#endif
