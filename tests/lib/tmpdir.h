/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A directory for one test, below $TMPDIR or /tmp.  For a test's own thread.
 * It never outlives tmpdir_remove.
 */
#ifndef VARVE_TESTS_LIB_TMPDIR_H
#define VARVE_TESTS_LIB_TMPDIR_H

/* Makes it; aborts if that fails.  The caller gives the path to tmpdir_remove. */
char *tmpdir_new(void);

/* Removes it with all that is in it, and frees the path. */
void tmpdir_remove(char *path);

/* Removes all that is in it, at any depth. */
void tmpdir_empty(const char *path);

#endif
