/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/bulk.h"

#include <time.h>

/* What the kernel adds for its timers is more: some 50 us. */
#define REST_NS 1000

void varve_bulk_worked(struct varve_bulk *b, uint64_t bytes)
{
    const struct timespec rest = {.tv_nsec = REST_NS};

    b->bytes += bytes;
    if (b->bytes < VARVE_BULK_PIECE)
        return;
    b->bytes = 0;
    nanosleep(&rest, NULL);
}
