/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the user said on nbdkit's command line.  Filled in before anything is opened, by nbdkit's main
 * thread; constant afterwards.  It opens nothing.
 */
#ifndef VARVE_PLUGIN_PARAMS_H
#define VARVE_PLUGIN_PARAMS_H

#include "lib/tracker.h"

#include <stdbool.h>

struct varve_params {
    char *image;       /* absolute */
    char *name;
    char *state_dir;
    char *runtime_dir;
    char *scratch_dir; /* NULL: state_dir */
    uint64_t granularity; /* bytes; 0: not said */
    uint64_t scratch_max; /* bytes; 0: no limit */
    enum varve_scratch_full on_scratch_full;
    unsigned scratch_wait_ms;
    uint64_t scratch_reserve; /* bytes; as of struct varve_tracker_config */
    bool durable_process; /* durability=process */
    unsigned freeze_timeout_ms;
};

void varve_params_init(struct varve_params *c);
void varve_params_fini(struct varve_params *c);

/* One key=value.  Errors are told to nbdkit; 0 or -1, as nbdkit's callbacks return. */
int varve_params_set(struct varve_params *c, const char *key, const char *value);

/* After the last one: defaults, and what must be there is. */
int varve_params_complete(struct varve_params *c);

extern const char varve_params_help[];

#endif
