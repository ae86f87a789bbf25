/* SPDX-License-Identifier: BSD-3-Clause
 *
 * SHA-256, fed piece by piece: the checksum of what we keep on disk.
 * A digest belongs to one thread at a time; different ones are independent.
 * It is no signature: it finds damage, not malice.
 */
#ifndef VARVE_LIB_DIGEST_H
#define VARVE_LIB_DIGEST_H

#include "lib/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VARVE_DIGEST_LEN 32u

struct varve_digest {
    void *state;
    bool failed;
};

/* -ENOMEM and the like.  After success varve_digest_final must follow. */
int varve_digest_init(struct varve_digest *d, struct varve_err *err);

/* What goes wrong here is told by varve_digest_final. */
void varve_digest_update(struct varve_digest *d, const void *data, size_t len);

/* Frees the state, also on failure. */
int varve_digest_final(struct varve_digest *d, uint8_t out[VARVE_DIGEST_LEN],
                       struct varve_err *err);

#endif
