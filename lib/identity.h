/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Who a disk is: the small JSON file that makes a folder of the state directory a disk.
 * Written by the first server of the disk, and again when an operator moves or resizes it; read by
 * everyone.  It says nothing that changes while the disk is served.
 */
#ifndef VARVE_LIB_IDENTITY_H
#define VARVE_LIB_IDENTITY_H

#include "lib/block.h"
#include "lib/err.h"
#include "lib/paths.h"
#include "lib/world.h"

#include <limits.h>

#define VARVE_STATE_FORMAT 1

/* A change of the image's size that was begun (lib/tracker-resize.c). */
struct varve_resize {
    uint64_t size;    /* bytes that the image is to have */
    uint64_t time_ns; /* real time when it was begun; 0: none was */
};

struct varve_identity {
    uint8_t uuid[16];
    char image[PATH_MAX]; /* absolute */
    struct varve_geometry geometry;
    struct varve_resize resize;
};

/* -ENOENT: there is none; -ENOTSUP: of another format version; -EUCLEAN: damaged. */
int varve_identity_read(struct varve_world *w, const struct varve_paths *p,
                        struct varve_identity *id, struct varve_err *err);

/* Durable when it returns.  -EINVAL: the image's path is not UTF-8, which JSON wants. */
int varve_identity_write(struct varve_world *w, const struct varve_paths *p,
                         const struct varve_identity *id, struct varve_err *err);

#endif
