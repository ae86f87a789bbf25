/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What must hold before the daemon may start: its directories are there and can be written, nobody
 * else runs on them, and the process may open enough.  Before there are threads.
 */
#ifndef VARVE_SERVER_RUNTIME_H
#define VARVE_SERVER_RUNTIME_H

#include "lib/err.h"
#include "lib/world.h"
#include "server/options.h"

struct varve_runtime {
    struct varve_world *w;
    int lock_fd; /* RUNTIME/varved.lock */
};

/* -EBUSY: another varved runs, its pid is in err. */
int varve_runtime_prepare(struct varve_runtime *r, struct varve_world *w,
                          const struct varve_options *o, struct varve_err *err);
void varve_runtime_release(struct varve_runtime *r);

#endif
