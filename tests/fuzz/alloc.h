/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Memory that runs out, for targets that are linked with -Wl,--wrap of malloc, calloc, realloc and
 * strdup: what the code under test asks for, in any thread, but not what libraries ask for.
 */
#ifndef VARVE_TESTS_FUZZ_ALLOC_H
#define VARVE_TESTS_FUZZ_ALLOC_H

#include <stdbool.h>

/* The n-th allocation from now (from 1 on) fails, and with `on` all that come after it. */
void fuzz_alloc_fail(unsigned n, bool on);
/* No more of that. */
void fuzz_alloc_works(void);

/* While set, this thread's own allocations succeed and do not count. */
extern _Thread_local bool fuzz_alloc_exempt;

#endif
