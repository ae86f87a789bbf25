/* SPDX-License-Identifier: BSD-3-Clause
 *
 * varve top: what the daemon told at one moment, and the picture of it.  Single-threaded.  It asks
 * nobody and writes nothing.
 */
#ifndef VARVE_CLIENT_TOP_H
#define VARVE_CLIENT_TOP_H

#include "lib/qmp.h"

#include <stdbool.h>
#include <stdint.h>

enum varve_top_part {
    VARVE_TOP_DISKS,
    VARVE_TOP_BACKUPS,
    VARVE_TOP_JOBS,
    VARVE_TOP_SERVER,
    VARVE_TOP_PARTS
};

struct varve_top_look {
    json_t *parts[VARVE_TOP_PARTS]; /* NULL: not told; {"error": …}: refused */
    int64_t time;                   /* seconds since 1970; 0: there was no such look */
    int64_t at_ms;                  /* on a clock that nobody sets */
};

void varve_top_look_fini(struct varve_top_look *look);

/* The picture as a new string, free() it; NULL: no memory.  Rates are what changed since `before`.
 */
char *varve_top_draw(const struct varve_top_look *now, const struct varve_top_look *before,
                     bool colour);

#endif
