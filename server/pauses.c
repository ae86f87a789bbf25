/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/pauses.h"

#define US UINT64_C(1000)
#define MS UINT64_C(1000000)

const struct varve_pauses_bound varve_pauses_bounds[VARVE_PAUSES_BOUNDS] = {
    {100 * US, "0.0001"}, {300 * US, "0.0003"}, {1 * MS, "0.001"}, {2 * MS, "0.002"},
    {5 * MS, "0.005"},    {10 * MS, "0.01"},    {20 * MS, "0.02"}, {50 * MS, "0.05"},
    {100 * MS, "0.1"},    {200 * MS, "0.2"},    {500 * MS, "0.5"}, {1000 * MS, "1"},
    {2000 * MS, "2"},
};

void varve_pauses_note(struct varve_pauses *p, uint64_t ns)
{
    unsigned i = 0;

    while (i < VARVE_PAUSES_BOUNDS && ns > varve_pauses_bounds[i].ns)
        i++;
    if (i < VARVE_PAUSES_BOUNDS)
        p->counts[i]++;
    p->total++;
    p->sum_ns += ns;
}
