/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How fast a disk has become dirty lately, from a count of its dirty bytes that is taken now and
 * then.  Pure arithmetic, one thread at a time.  It looks at no disk and no clock.
 *
 * A block counts once in an epoch, however often it is written: the rate is what a backup begun now
 * would at least have to keep, not what the guest writes.
 */
#ifndef VARVE_SERVER_DIRT_RATE_H
#define VARVE_SERVER_DIRT_RATE_H

#include <stdbool.h>
#include <stdint.h>

/* A count is due this long after the last one, so "lately" is between one and two of these. */
#define VARVE_DIRT_RATE_NS (UINT64_C(60) * 1000000000)

/* Zeroed: nothing is known. */
struct varve_dirt_rate {
    uint64_t epoch; /* that the counts are of */
    struct varve_dirt_count {
        uint64_t at_ns; /* monotonic */
        uint64_t bytes;
    } older, newer;
};

/* Whether a count of that epoch should be taken now; that may cost, so it is asked first. */
bool varve_dirt_rate_due(const struct varve_dirt_rate *r, uint64_t epoch, uint64_t now_ns);

/* Notes a count of the live epoch's dirty bytes. */
void varve_dirt_rate_note(struct varve_dirt_rate *r, uint64_t epoch, uint64_t now_ns,
                          uint64_t bytes);

/* Bytes per second that became dirty since the older of the counts that are known, rounded up, from
 * what is dirty now.  Less than a second is taken for one.  0 without a count of this epoch. */
uint64_t varve_dirt_rate_get(const struct varve_dirt_rate *r, uint64_t epoch, uint64_t now_ns,
                             uint64_t bytes);

#endif
