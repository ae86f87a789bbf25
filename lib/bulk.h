/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Work on whole maps, in pieces.  A thread that computes keeps its processor until the scheduler's
 * next tick, up to 4 ms, from whoever becomes ready there meanwhile; if that is a guest's write, it
 * waits so long.  Whoever has much to do, and nobody that waits for it, rests between pieces.  Any
 * thread; none that holds back guests may do so.
 */
#ifndef VARVE_LIB_BULK_H
#define VARVE_LIB_BULK_H

#include <stdint.h>

/* Bytes of a map between two rests: some 100 us of work. */
#define VARVE_BULK_PIECE ((uint64_t)256 * 1024)

struct varve_bulk {
    uint64_t bytes; /* since the last rest; begins with 0 */
};

/* So many bytes were worked through; rests if it is time. */
void varve_bulk_worked(struct varve_bulk *b, uint64_t bytes);

#endif
