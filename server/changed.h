/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Blocks as their readers are told of them: a map or, where that says little, runs of blocks.  They
 * never change; any thread, but each reader has a varve_changed of his own.  Whose memory it is, is
 * said by who gives them (changes.h).
 */
#ifndef VARVE_SERVER_CHANGED_H
#define VARVE_SERVER_CHANGED_H

#include "lib/bitmap.h"
#include "lib/block.h"

struct varve_block_runs {
    uint64_t nblks;
    size_t n;
    struct varve_block_run {
        uint64_t from, to; /* blocks [from, to) */
    } runs[];              /* sorted; there is something between them */
};

struct varve_changed {
    const struct varve_bitmap *map;
    const struct varve_block_runs *runs; /* both NULL: every block */
    size_t at;                           /* the run that was found last, a hint: begins with 0 */
};

/* What the map has, in much less memory; free() it.  NULL: not much less, or no memory. */
struct varve_block_runs *varve_block_runs_of(const struct varve_bitmap *map);

/* Whether block blk is among them, and where in (blk, last] that changes, or last. */
bool varve_changed_run(struct varve_changed *c, uint64_t blk, uint64_t last, uint64_t *to);

/* Their bytes; the disk's last block may be a partial one. */
uint64_t varve_changed_bytes(const struct varve_changed *c, const struct varve_geometry *g);

#endif
