/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Small files that are read and replaced as a whole.
 * Any thread; writers of the same file take turns.  They know nothing of the contents.
 */
#ifndef VARVE_LIB_WHOLE_FILE_H
#define VARVE_LIB_WHOLE_FILE_H

#include "lib/err.h"
#include "lib/world.h"

#include <stddef.h>

/* Reads all of the file into *buf (the caller frees it), a NUL behind it.  -ENOENT: there is none;
 * -EFBIG: it has more than max bytes. */
int varve_whole_file_read(struct varve_world *w, const char *path, size_t max, char **buf,
                          size_t *len, struct varve_err *err);

/* Replaces the file, or makes it, durably: after any crash it is the old one or the new one.  On
 * error it may be either; what is left beside it, path.tmp, is overwritten by the next attempt. */
int varve_whole_file_replace(struct varve_world *w, const char *path, const void *buf, size_t len,
                             struct varve_err *err);

/* Gives a file that is durable as `tmp` a name that nothing has yet, durably.  -EEXIST: something has it,
 * nothing has changed.  After another error the name is not there, or err says that it is; tmp may be. */
int varve_whole_file_publish(struct varve_world *w, const char *tmp, const char *path,
                             struct varve_err *err);

#endif
