/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What an image holds, as one digest: equal ones are of equal bytes, whatever is a hole in them.
 * Any thread.  It only reads, and takes as long as reading takes.
 */
#ifndef VARVE_LIB_IMAGE_DIGEST_H
#define VARVE_LIB_IMAGE_DIGEST_H

#include "lib/digest.h"
#include "lib/err.h"
#include "lib/world.h"

#define VARVE_IMAGE_DIGEST_UNIT (1024u * 1024u)

/* SHA-256 over the size, and over number and bytes of each unit that is not zero, all numbers as 8
 * bytes, little-endian.  The last unit has what is left.  progress may be NULL. */
int varve_image_digest(struct varve_world *w, int fd, uint64_t image_size,
                       void (*progress)(void *arg, uint64_t done), void *arg,
                       uint8_t out[VARVE_DIGEST_LEN], struct varve_err *err);

#endif
