/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The timeline of a disk: its epoch files, which the directory itself tells, in order and without
 * gaps or overlaps.  For the reader that answers "what changed between these boundaries" and for the
 * housekeeper that frees and merges; one thread at a time.  It never looks at the live epoch's bits.
 */
#ifndef VARVE_LIB_TIMELINE_H
#define VARVE_LIB_TIMELINE_H

#include "lib/epoch-file.h"

struct varve_timeline {
    struct varve_epoch_file *files; /* sorted by first; parts of a merged file are left out */
    size_t nfiles;
};

/* Reads the directory.  Damaged files are left out (a hole in the timeline is found by union).
 * Fini it after success. */
int varve_timeline_scan(struct varve_world *w, const struct varve_paths *p, const uint8_t uuid[16],
                        const struct varve_geometry *g, struct varve_timeline *tl,
                        struct varve_err *err);
void varve_timeline_fini(struct varve_timeline *tl);

/* ORs what was written in the sealed epochs from `first` on and before `end` into `into`.
 * first == end: nothing.  -EUCLEAN: one of them is missing, unsealed or damaged; err names it. */
int varve_timeline_union(struct varve_world *w, const struct varve_paths *p,
                         const uint8_t uuid[16], const struct varve_geometry *g,
                         const struct varve_timeline *tl, uint64_t first, uint64_t end,
                         struct varve_bitmap *into, struct varve_err *err);

/* Frees sealed epochs before the oldest of the boundaries that are needed (numbers of the epochs
 * that follow them, any order), and merges sealed neighbours that no needed boundary separates.
 * None needed: all sealed ones go.  Dying anywhere leaves a timeline that says the same. */
int varve_timeline_tidy(struct varve_world *w, const struct varve_paths *p, const uint8_t uuid[16],
                        const struct varve_geometry *g, const uint64_t *needed, size_t nneeded,
                        struct varve_err *err);

#endif
