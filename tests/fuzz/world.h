/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The machine's files in a directory of the target's own, without the wait for disks.
 * For the one thread of a fuzz target.
 */
#ifndef VARVE_TESTS_FUZZ_WORLD_H
#define VARVE_TESTS_FUZZ_WORLD_H

#include "lib/world.h"

/* A world whose syncs do nothing and whose files are allocated by their size alone. */
struct varve_world *fuzz_world(void);

/* The directory; made once, removed when the process ends. */
const char *fuzz_dir(void);

/* Makes the file of those bytes; dies if it cannot.  Bytes go where off says, what is before is a
 * hole. */
void fuzz_write_file(const char *path, const void *data, size_t len, uint64_t off);

#endif
