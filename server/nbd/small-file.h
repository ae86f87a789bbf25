/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Files that an operator writes: rules, keys, certificates, read whole into memory.
 * Any thread; it waits for the disk.  It never reads more than it was told to.
 */
#ifndef VARVE_SERVER_SMALL_FILE_H
#define VARVE_SERVER_SMALL_FILE_H

#include "lib/err.h"

#include <stddef.h>

#define VARVE_SMALL_FILE_MAX (1024u * 1024u)

/* Reads path whole: *data is the caller's to free (varve_small_file_wipe), and has a NUL behind its
 * *len bytes.  -E2BIG: longer than VARVE_SMALL_FILE_MAX.  err names the path. */
int varve_small_file_read(const char *path, char **data, size_t *len, struct varve_err *err);

/* Overwrites and frees; data may be NULL. */
void varve_small_file_wipe(char *data, size_t len);

#endif
