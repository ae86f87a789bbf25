/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Syncs of a core fixture's files that a test holds, fails, counts and looks into, by what file it is.
 * One fixture at a time.  Syncs come from any thread; all else is for the test's own, unless said
 * otherwise.  It makes nothing durable: it remembers what the intent log held when it was.
 */
#ifndef VARVE_TESTS_LIB_HELD_SYNC_H
#define VARVE_TESTS_LIB_HELD_SYNC_H

#include "tests/lib/core-fixture.h"

enum held_file { HELD_IMAGE, HELD_LOG, HELD_MAP, HELD_FILES };

/* After core_init, before a server is started. */
void held_init(struct core *c);

/* The next sync of such a file stays where it is, before it has done anything, until held_go.  The
 * second waits until one does so. */
void held_hold(enum held_file file);
void held_wait(enum held_file file);
void held_go(enum held_file file);

/* The next n syncs fail; then a map has no bits any more, and the log what was durable of it. */
void held_fail(enum held_file file, unsigned n);

/* Syncs that have begun, since held_init.  Any thread. */
unsigned held_count(enum held_file file);

/* Called before each sync of the image, by its thread; NULL: nothing. */
void held_on_image(void (*each)(int fd));

/* Whether the log that is durable says that the region is hot.  Any thread. */
bool held_log_has(uint64_t region);

/* Waits until the condition holds; a deadline that only a hang meets.  Aborts: cmocka cannot fail
 * from another thread. */
#define HELD_UNTIL(condition) \
    do { \
        for (unsigned held_n = 0; !(condition); held_n++) \
            held_pause(held_n, #condition); \
    } while (0)
void held_pause(unsigned n, const char *what);

#endif
