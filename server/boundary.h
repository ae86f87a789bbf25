/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Boundaries: one instant over one disk or several, by plugins over their links, or by ourselves
 * where nobody serves a disk.  For the clerk's thread.  A boundary either is made on all disks or
 * the call fails, and then no view of it is left open; it never holds writers longer than each
 * plugin's own deadline.
 */
#ifndef VARVE_SERVER_BOUNDARY_H
#define VARVE_SERVER_BOUNDARY_H

#include "lib/tracker.h"
#include "server/disk.h"

struct varve_freeze;

struct varve_boundary_disk {
    struct varve_disk *disk;
    uint64_t view;  /* in: id of the view to open there; 0: none */
    uint64_t epoch; /* out: the first epoch after the boundary */

    /* varve_boundary_make's own */
    struct varve_tracker *tracker; /* while it is ours: nobody serves it */
    bool asked;
    bool prepared, swapped;
};

/* Makes the boundary, and seals what lies before it: durable when it returns 0. */
int varve_boundary_make(struct varve_boundary_disk *disks, size_t ndisks, struct varve_err *err);

/* The same with a freeze hook: it is run after everything has been prepared, thawed as soon as writers
 * go on, and also after an error.  If anything was thawed too early there is no boundary.  f NULL:
 * none. */
int varve_boundary_make_frozen(struct varve_boundary_disk *disks, size_t ndisks,
                               struct varve_freeze *f, struct varve_err *err);

/* Seals what a daemon that died left unsealed behind a boundary.  Only where a plugin serves the disk:
 * who attaches one that nobody serves seals it. */
int varve_boundary_seal(struct varve_disk *disk, struct varve_err *err);

/* Ends a view of the disk and frees what it needed. */
int varve_boundary_end_view(struct varve_disk *disk, uint64_t view, struct varve_err *err);

/* Whether the disk's plugin answers: what takes longer may be asked of it then. */
int varve_boundary_probe(struct varve_disk *disk, struct varve_err *err);

/* Takes a disk that nobody serves, for a moment; -EBUSY: somebody does.  Detaching logs what goes
 * wrong. */
int varve_offline_attach(struct varve_disk *disk, struct varve_tracker **t, struct varve_err *err);
/* The same; distrust, if not NULL: a reason to doubt the image, whatever it looks like; resize, if not
 * NULL: bytes that image and disk are to have, after which the disk object is of another size. */
int varve_offline_attach_as(struct varve_disk *disk, const char *distrust, const uint64_t *resize,
                            struct varve_tracker **t,
                            struct varve_err *err);
void varve_offline_detach(struct varve_disk *disk, struct varve_tracker *t);

#endif
