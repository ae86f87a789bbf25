/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A clock that a test sets forward: preloaded into varved, it adds to the monotonic clock what the
 * file says, so that a deadline of a minute is met without waiting for it.  Sleepers do not hear of
 * it: the test wakes them.  Used by test_stalled_peer.py alone, which maps the same file:
 *
 *     CLOCK_FILE    uint64_t seconds
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tests/e2e/orders.h"

#include <dlfcn.h>
#include <stdint.h>
#include <time.h>

static const uint64_t *forward;
static int (*next)(clockid_t clock, struct timespec *ts);

__attribute__((constructor)) static void clock_init(void)
{
    next = (__typeof__(next))dlsym(RTLD_NEXT, "clock_gettime");
    forward = orders_map("CLOCK_FILE", sizeof(*forward));
}

int clock_gettime(clockid_t clock, struct timespec *ts)
{
    int rc;

    if (!next) /* before our constructor */
        next = (__typeof__(next))dlsym(RTLD_NEXT, "clock_gettime");
    rc = next(clock, ts);
    if (rc == 0 && forward && (clock == CLOCK_MONOTONIC || clock == CLOCK_MONOTONIC_COARSE))
        ts->tv_sec += (time_t)__atomic_load_n(forward, __ATOMIC_SEQ_CST);
    return rc;
}
