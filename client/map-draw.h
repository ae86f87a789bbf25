/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A disk as a grid of cells, on the terminal or as SVG.  Single-threaded.  It asks nobody for
 * anything: pieces are added, then it is printed.
 */
#ifndef VARVE_CLIENT_MAP_DRAW_H
#define VARVE_CLIENT_MAP_DRAW_H

#include "lib/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a piece of the disk is. */
enum varve_map_class {
    VARVE_MAP_MARKED,  /* dirty, or data; of two bases: changed since the newer one */
    VARVE_MAP_EARLIER, /* of two bases: changed since the older one only */
    VARVE_MAP_CLEAN,
    VARVE_MAP_HOLE, /* clean, and reads as zeroes or is not allocated */
    VARVE_MAP_CLASSES
};

/* What a cell looks like: of the first class here that it has a byte of. */
enum varve_map_look {
    VARVE_LOOK_MARKED,
    VARVE_LOOK_MARKED_PARTLY,
    VARVE_LOOK_EARLIER,
    VARVE_LOOK_EARLIER_PARTLY,
    VARVE_LOOK_CLEAN,
    VARVE_LOOK_HOLE,
    VARVE_LOOKS
};

struct varve_picture {
    const char *title;                    /* what is shown; borrowed, as all names */
    const char *names[VARVE_MAP_CLASSES]; /* in the legend; NULL: none of that class is to come */
    uint64_t export_size;
    uint64_t cell_bytes; /* a power of two */
    size_t ncells;
    int columns;
    struct varve_picture_cell {
        uint64_t bytes[VARVE_MAP_CLASSES];
    } * cells;
    struct varve_picture_sum {
        uint64_t bytes, runs, end; /* runs: how many; end: where the last of them does */
    } sums[VARVE_MAP_CLASSES];
};

/* At most rows of so many columns.  0, or -ENOMEM. */
int varve_picture_init(struct varve_picture *p, uint64_t export_size, int columns, int rows,
                       struct varve_err *err);
void varve_picture_fini(struct varve_picture *p);
/* Pieces come in the order of the disk. */
void varve_picture_add(struct varve_picture *p, uint64_t off, uint64_t len,
                       enum varve_map_class what);
enum varve_map_look varve_picture_look(const struct varve_picture *p, size_t cell);

#define VARVE_LEGEND_LEN 320

/* "dirty 1M in 3 extents".  False: the class has no line in the legend. */
bool varve_picture_legend(const struct varve_picture *p, enum varve_map_class what,
                          char out[VARVE_LEGEND_LEN]);

/* As wide as the standard output's terminal, onto the standard output. */
int varve_picture_init_terminal(struct varve_picture *p, uint64_t export_size,
                                struct varve_err *err);
void varve_picture_print(const struct varve_picture *p);

/* map-svg.c: one that fits a page, with `subject` as its heading; the file at path is replaced as a
 * whole. -EINVAL: what is there is no file. */
int varve_picture_init_svg(struct varve_picture *p, uint64_t export_size, struct varve_err *err);
int varve_picture_save_svg(const struct varve_picture *p, const char *subject, const char *path,
                           struct varve_err *err);

#endif
