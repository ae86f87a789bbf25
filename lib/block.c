/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/block.h"

#include "include/varve.h"

#include <errno.h>
#include <inttypes.h>

/* A map of at most 16 MiB has this many bits. */
#define DEFAULT_BLOCKS_MAX ((uint64_t)16 << 20 << 3)

static uint64_t blocks_of(uint64_t size, uint32_t shift)
{
    return (size >> shift) + ((size & (((uint64_t)1 << shift) - 1)) != 0);
}

int varve_geometry_init(struct varve_geometry *g, uint64_t size, uint64_t block_size,
                        struct varve_err *err)
{
    uint32_t shift = 12;

    if (size > VARVE_DISK_SIZE_MAX)
        return varve_err_set(err, EFBIG, "a disk of %" PRIu64 " bytes is too large", size);
    if (block_size == 0) {
        while (((uint32_t)1 << shift) < VARVE_BLOCK_SIZE_MAX &&
               blocks_of(size, shift) > DEFAULT_BLOCKS_MAX)
            shift++;
    } else {
        if (block_size < VARVE_BLOCK_SIZE_MIN || block_size > VARVE_BLOCK_SIZE_MAX ||
            (block_size & (block_size - 1)) != 0)
            return varve_err_set(err, EINVAL,
                                 "granularity %" PRIu64
                                 " is not a power of two between 4K and 1M",
                                 block_size);
        while (((uint64_t)1 << shift) < block_size)
            shift++;
    }
    g->size = size;
    g->shift = shift;
    g->nblks = blocks_of(size, shift);
    return 0;
}
