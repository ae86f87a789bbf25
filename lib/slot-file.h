/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A small text that changes atomically: two preallocated files that are written in turn, each with
 * a sequence number and a checksum, so that after any crash the old text or the new one is read.
 * One thread at a time.  It never knows what the text says, and never acts on what is not durable.
 *
 * PREFIX-0 and PREFIX-1, each:
 *     0     one line: "varve-slot FORMAT SEQUENCE LENGTH SHA256\n", the rest of 4096 bytes zero
 *     4096  LENGTH bytes of text; SHA256 is over "FORMAT SEQUENCE LENGTH\n" and the text
 */
#ifndef VARVE_LIB_SLOT_FILE_H
#define VARVE_LIB_SLOT_FILE_H

#include "lib/err.h"
#include "lib/world.h"

#include <stddef.h>
#include <stdint.h>

/* The longest text, in bytes. */
#define VARVE_SLOT_TEXT_MAX ((size_t)64 * 1024 * 1024)

struct varve_slot_file;

/* Opens the pair DIR/NAME-0, DIR/NAME-1, and makes it, with the text `initial`, if there is none.
 * `format` is the caller's: a pair of a higher one is refused.  *text (free() it, a NUL stands
 * behind it) is durable when this returns.  The pair is locked until it is closed.
 * -EBUSY: another process has it; -ENOTSUP: of a newer format; -EUCLEAN: both files are damaged. */
int varve_slot_file_open(struct varve_world *w, const char *dir, const char *name, unsigned format,
                         const char *initial, struct varve_slot_file **out, char **text,
                         struct varve_err *err);
void varve_slot_file_close(struct varve_slot_file *s);

/* Replaces the text: durable when it returns 0.  After an error the old text still holds; only when
 * the failed write could not be taken back either, which err says, a crash may show the new one. */
int varve_slot_file_commit(struct varve_slot_file *s, const char *text, struct varve_err *err);

#endif
