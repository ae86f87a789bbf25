/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A disk as a grid of cells on the terminal.  Single-threaded.  It asks nobody for anything: runs
 * are added, then it is printed.
 */
#ifndef VARVE_CLIENT_MAP_DRAW_H
#define VARVE_CLIENT_MAP_DRAW_H

#include "client/nbd.h"

struct varve_picture {
    const char *context; /* borrowed */
    bool dirty;          /* the first context is a dirty bitmap, else an allocation */
    uint64_t export_size;
    uint64_t cell_bytes; /* a power of two */
    size_t ncells;
    int columns;
    struct varve_picture_cell {
        uint64_t marked; /* bytes: dirty, or data */
        uint64_t holes;  /* bytes that read as zeroes or are not allocated, and are not marked */
    } * cells;
    uint64_t marked, holes, runs; /* of the whole disk; runs: how many marked ones */
    uint64_t marked_end;          /* where the last of them ends */
};

int varve_picture_init(struct varve_picture *p, const char *context, bool dirty,
                       uint64_t export_size, struct varve_err *err);
void varve_picture_fini(struct varve_picture *p);
void varve_picture_add(struct varve_picture *p, const struct varve_status_run *run);
void varve_picture_print(const struct varve_picture *p);

#endif
