/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/dirt-rate.h"

#define SECOND_NS UINT64_C(1000000000)

bool varve_dirt_rate_due(const struct varve_dirt_rate *r, uint64_t epoch, uint64_t now_ns)
{
    return r->epoch != epoch || now_ns - r->newer.at_ns >= VARVE_DIRT_RATE_NS;
}

void varve_dirt_rate_note(struct varve_dirt_rate *r, uint64_t epoch, uint64_t now_ns,
                          uint64_t bytes)
{
    struct varve_dirt_count now = {.at_ns = now_ns, .bytes = bytes};

    r->older = r->epoch == epoch ? r->newer : now;
    r->newer = now;
    r->epoch = epoch;
}

uint64_t varve_dirt_rate_get(const struct varve_dirt_rate *r, uint64_t epoch, uint64_t now_ns,
                             uint64_t bytes)
{
    uint64_t ns, more;

    if (r->epoch != epoch || bytes <= r->older.bytes)
        return 0;
    more = bytes - r->older.bytes;
    ns = now_ns - r->older.at_ns;
    if (ns < SECOND_NS)
        ns = SECOND_NS;
    /* more * SECOND_NS may be longer than 64 bits. */
    return (uint64_t)((double)more * (double)SECOND_NS / (double)ns) + 1;
}
