/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The lock that makes a process the one server of a disk, and the file that names it.
 * For the control thread of a server.  It waits only for the daemon, whose hold is short.
 */
#ifndef VARVE_LIB_DISK_LOCK_H
#define VARVE_LIB_DISK_LOCK_H

#include "lib/err.h"
#include "lib/paths.h"
#include "lib/world.h"

/* Who has it: what it calls itself, and its pid. */
struct varve_disk_holder {
    char role[16];
    int pid;
};

/* Takes the lock, waiting a few seconds if the daemon holds it; the fd to close, or -EBUSY with who
 * has it in err. */
int varve_disk_lock_take(struct varve_world *w, const struct varve_paths *p, const char *name,
                         const char *role, struct varve_err *err);

/* Writes role and this process's pid into the lock file we hold. */
int varve_disk_lock_claim(struct varve_world *w, int fd, const char *role, struct varve_err *err);

/* Which process serves an image as a disk of this state directory: 1 and *holder, or 0. */
int varve_disk_lock_find(struct varve_world *w, const char *state_dir, const char *image,
                         struct varve_disk_holder *holder);

#endif
