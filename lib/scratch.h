/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Getting rid of scratch files.  Freeing a big file at once keeps a file system's journal, and all who
 * wait for it, busy for seconds: so a big one is only renamed ("dead") by whoever needs it no more, and
 * emptied in steps by whoever looks after the disk, its server or, where there is none, the daemon.
 * Both at once, or a death between, do no harm.  Nothing here waits.
 */
#ifndef VARVE_LIB_SCRATCH_H
#define VARVE_LIB_SCRATCH_H

#include "lib/paths.h"
#include "lib/world.h"

#include <stdbool.h>
#include <stdint.h>

/* Freed at a stretch.  What has less is removed at once. */
#define VARVE_SCRATCH_STEP (UINT64_C(64) << 20)

/* Frees what is first in the file, about `bytes` of it, and no more than some hundred extents.
 * 1: there is more; 0: it is empty; -errno. */
int varve_scratch_empty(struct varve_world *w, int fd, uint64_t bytes);

/* Takes the scratch of that epoch away by renaming it.  True: it is to be reaped. */
bool varve_scratch_bury(struct varve_world *w, const struct varve_paths *p, uint64_t epoch);

/* One step: frees about `bytes` of dead files, and removes one that is empty.  1: there is more;
 * 0: there is none; -errno. */
int varve_scratch_reap(struct varve_world *w, const struct varve_paths *p, uint64_t bytes);

#endif
