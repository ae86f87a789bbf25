/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Blocks of a view that some client got an error for, kept in the disk's runtime folder so that a
 * daemon that is killed or upgraded still knows them when the backup ends: they count as changed at
 * the new base.  Any thread.  It never forgets one; when it cannot keep them it says that it knows
 * nothing.
 */
#ifndef VARVE_SERVER_FAILED_READS_H
#define VARVE_SERVER_FAILED_READS_H

#include "lib/bitmap.h"
#include "lib/block.h"
#include "lib/paths.h"
#include "lib/world.h"

struct varve_failed_reads;

/* With what a former daemon noted of the view; paths and g are copied.  NULL: no memory. */
struct varve_failed_reads *varve_failed_reads_new(struct varve_world *w,
                                                  const struct varve_paths *paths, uint64_t view,
                                                  const struct varve_geometry *g);

/* Remembers the blocks of [off, off+len), a range of the disk, before it returns. */
void varve_failed_reads_note(struct varve_failed_reads *f, uint64_t off, uint64_t len);

/* ORs them into `into`; all blocks if they are not known.  False: there are none. */
bool varve_failed_reads_or(struct varve_failed_reads *f, struct varve_bitmap *into);

/* The view is no more: nothing is left of it once this was freed.  Before the last note may come. */
void varve_failed_reads_forget(struct varve_failed_reads *f);
void varve_failed_reads_free(struct varve_failed_reads *f);

/* Removes what daemons that died left of views for which is_open(arg, view) is false. */
void varve_failed_reads_sweep(struct varve_world *w, const struct varve_paths *paths,
                              bool (*is_open)(void *arg, uint64_t view), void *arg);

#endif
