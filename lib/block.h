/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The geometry of a disk: its size in bytes cut into blocks, the unit of tracking and preserving.
 * Pure arithmetic, any thread.  Ranges are half-open.
 */
#ifndef VARVE_LIB_BLOCK_H
#define VARVE_LIB_BLOCK_H

#include "lib/err.h"

#include <stdbool.h>
#include <stdint.h>

struct varve_geometry {
    uint64_t size;  /* bytes; the last block may be partial */
    uint32_t shift; /* a block is 1 << shift bytes */
    uint64_t nblks;
};

/* block_size 0: the default, the smallest from 4 KiB up whose map is at most 16 MiB.
 * -EINVAL: not a power of two in [4 KiB, 1 MiB]; -EFBIG: the disk is too large. */
int varve_geometry_init(struct varve_geometry *g, uint64_t size, uint64_t block_size,
                        struct varve_err *err);

static inline uint64_t varve_block_size(const struct varve_geometry *g)
{
    return (uint64_t)1 << g->shift;
}

/* Bytes of a bitmap with one bit a block, rounded up to whole 64-bit words. */
static inline uint64_t varve_map_bytes(const struct varve_geometry *g)
{
    return (g->nblks + 63) / 64 * 8;
}

/* [off, off+len) lies within the disk, without overflow. */
static inline bool varve_range_ok(const struct varve_geometry *g, uint64_t off, uint64_t len)
{
    return off <= g->size && len <= g->size - off;
}

/* The first block of which nothing is known after the disk's size went from one to the other, either way:
 * what is behind it was not there, or is another area now, and a last block that was not whole counts
 * among it. */
static inline uint64_t varve_resized_from(const struct varve_geometry *g, uint64_t size1,
                                          uint64_t size2)
{
    return (size1 < size2 ? size1 : size2) >> g->shift;
}

/* First byte behind block blk, at most the disk's size. */
static inline uint64_t varve_block_end(const struct varve_geometry *g, uint64_t blk)
{
    uint64_t end = (blk + 1) << g->shift;

    return end < g->size ? end : g->size;
}

#endif
