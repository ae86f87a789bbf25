/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Data taken apart into what is zero and what is not.  Any thread.  It changes nothing.
 */
#ifndef VARVE_CLIENT_ZEROES_H
#define VARVE_CLIENT_ZEROES_H

#include "lib/err.h"

#include <stddef.h>
#include <stdint.h>

/* Zeroes of this length and alignment within data become holes. */
#define VARVE_ZEROES_CHUNK ((size_t)64 * 1024)

struct varve_zeroes_to {
    int (*data)(void *opaque, const char *buf, uint64_t off, size_t len, struct varve_err *err);
    int (*zero)(void *opaque, uint64_t off, uint64_t len, struct varve_err *err);
    void *opaque;
};

/* Gives the range [off, off+len) of the disk, whose bytes are buf's, to the two, in ascending parts
 * that are not empty.  The first error. */
int varve_zeroes_split(const char *buf, uint64_t off, size_t len, const struct varve_zeroes_to *to,
                       struct varve_err *err);

#endif
