/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The timeline of a disk: its epoch files, which the directory itself tells, in order and without
 * gaps or overlaps.  For the reader that answers "what changed between these boundaries" and for the
 * housekeeper that frees and merges; one thread at a time.  It never looks at the live epoch's bits.
 *
 * Each epoch is of one size of the disk: whoever changes that makes a boundary (lib/tracker-resize.c).
 * Where the sizes of neighbours differ, all from the smaller size on counts as written between them,
 * whatever their maps say: so a sealed map needs not to change when the disk is resized, and an area that
 * was cut off and came back is dirty to all who knew it before.
 */
#ifndef VARVE_LIB_TIMELINE_H
#define VARVE_LIB_TIMELINE_H

#include "lib/epoch-file.h"

struct varve_timeline {
    struct varve_epoch_file *files; /* sorted by first; parts of a merged file are left out */
    size_t nfiles;
    /* Highest number in any epoch file's name, also of files that were left out: numbers up to here
     * are used up.  0: no file. */
    uint64_t highest;
};

/* Reads the directory.  Files that are damaged, unreadable or of another disk are left out (a hole
 * in the timeline is found by union), and so are unsealed ones of another size than the disk has.  -ENOTSUP: one is of a newer format.  Fini after success. */
int varve_timeline_scan(struct varve_world *w, const struct varve_paths *p, const uint8_t uuid[16],
                        const struct varve_geometry *g, struct varve_timeline *tl,
                        struct varve_err *err);
void varve_timeline_fini(struct varve_timeline *tl);

/* ORs what was written in the sealed epochs from `first` on and before `end` into `into`.
 * first == end: nothing.  Both are boundaries; the file that begins at `end`, sealed or live,
 * proves that nothing before it is missing.  -EUCLEAN: one of them is missing, unsealed or damaged,
 * err names it; `into` may then hold some of the others.  into NULL: looks only whether the files
 * are there, by their heads and marks. */
int varve_timeline_union(struct varve_world *w, const struct varve_paths *p,
                         const uint8_t uuid[16], const struct varve_geometry *g,
                         const struct varve_timeline *tl, uint64_t first, uint64_t end,
                         struct varve_bitmap *into, struct varve_err *err);

/* The same; *added grows by the bits that were not set in `into` before. */
int varve_timeline_union_counting(struct varve_world *w, const struct varve_paths *p,
                                  const uint8_t uuid[16], const struct varve_geometry *g,
                                  const struct varve_timeline *tl, uint64_t first, uint64_t end,
                                  struct varve_bitmap *into, uint64_t *added,
                                  struct varve_err *err);

/* The file that begins at the boundary before epoch `first`, sealed or live.  NULL: there is none. */
const struct varve_epoch_file *varve_timeline_at(const struct varve_timeline *tl, uint64_t first);

/* Frees sealed epochs before the oldest of the boundaries that are needed (numbers of the epochs
 * that follow them, any order), and merges sealed neighbours that neither a needed boundary nor a change
 * of the disk's size separates.
 * None needed: all sealed ones go.  Dying anywhere leaves a timeline that says the same.  May run
 * while the disk's server makes, seals and opens epochs: open and clean files are never touched.
 * -EUCLEAN, -EIO: a damaged file was in the way and left where it is, all else was done. */
int varve_timeline_tidy(struct varve_world *w, const struct varve_paths *p, const uint8_t uuid[16],
                        const struct varve_geometry *g, const uint64_t *needed, size_t nneeded,
                        struct varve_err *err);

/* No gap between eras (lib/epoch-era.h) lies between these epochs, but such as were filled. */
bool varve_timeline_bridged(const struct varve_timeline *tl, uint64_t from, uint64_t to);

/* Fills all gaps between eras, durably: with every block, but gap `gap` (0: none), if the last sealed
 * epoch before it is `from`, with none.  *filled: how many.  By whoever may tidy. */
int varve_timeline_bridge(struct varve_world *w, const struct varve_paths *p,
                          const uint8_t uuid[16], const struct varve_geometry *g, uint64_t gap,
                          uint64_t from, unsigned *filled, struct varve_err *err);

#endif
