/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How long boundaries held writers back: a histogram since the daemon began.  For the clerk's
 * thread.  It measures nothing itself.
 */
#ifndef VARVE_SERVER_PAUSES_H
#define VARVE_SERVER_PAUSES_H

#include <stdint.h>

#define VARVE_PAUSES_BOUNDS 13u

/* Upper bounds, ascending, each with its text in seconds. */
struct varve_pauses_bound {
    uint64_t ns;
    const char *seconds;
};
extern const struct varve_pauses_bound varve_pauses_bounds[VARVE_PAUSES_BOUNDS];

struct varve_pauses {
    uint64_t counts[VARVE_PAUSES_BOUNDS]; /* not longer than the bound, but than the one before */
    uint64_t total;                       /* with those that are longer than all bounds */
    uint64_t sum_ns;
};

void varve_pauses_note(struct varve_pauses *p, uint64_t ns);

#endif
