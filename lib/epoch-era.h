/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Eras: what tells epochs before and after a doubt apart.  When nobody can say what was written to
 * a disk, because somebody else wrote, its epochs go on in the next era: numbers begin anew behind
 * a multiple of VARVE_ERA.  That multiple itself is the number of the epoch before the first one of
 * the era, and the file of that epoch is not there: so whatever needs to know what was written
 * across the gap finds it missing, by name.  An operator who knows better gives the file
 * (lib/tracker-doubt.h). Arithmetic only.
 */
#ifndef VARVE_LIB_EPOCH_ERA_H
#define VARVE_LIB_EPOCH_ERA_H

#include <stdbool.h>
#include <stdint.h>

/* One boundary a second makes as many in 31 years. */
#define VARVE_ERA UINT64_C(1000000000)

static inline uint64_t varve_era(uint64_t epoch)
{
    return epoch / VARVE_ERA;
}

/* The gap before the era of `epoch`.  0: there is none, it is the first era. */
static inline uint64_t varve_era_gap(uint64_t epoch)
{
    return epoch / VARVE_ERA * VARVE_ERA;
}

static inline bool varve_is_era_gap(uint64_t epoch)
{
    return epoch != 0 && epoch % VARVE_ERA == 0;
}

#endif
