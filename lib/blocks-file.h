/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Files of explicit blocks: maps that no epoch tells (what was merged from another disk, or from a
 * coarser bitmap).  A file is called by the SHA-256 of what is in it, so it never changes, and who
 * has the digest knows whether it is damaged.  One thread at a time writes and tidies; readers may
 * be others.  They never say to whom the blocks belong: the catalogue does.
 *
 * STATE/NAME/blocks-HEX.map, HEX being the first half of the digest; little-endian:
 *     0     64-byte head: magic "varveset", version, block shift, disk uuid, size of the disk then,
 *           zeroes
 *     64    bits, one a block, least significant first, in whole 64-bit words
 */
#ifndef VARVE_LIB_BLOCKS_FILE_H
#define VARVE_LIB_BLOCKS_FILE_H

#include "lib/bitmap.h"
#include "lib/block.h"
#include "lib/digest.h"
#include "lib/err.h"
#include "lib/paths.h"
#include "lib/world.h"

/* Writes the map, durable when it returns (its directory too); *digest names it. */
int varve_blocks_write(struct varve_world *w, const struct varve_paths *p, const uint8_t uuid[16],
                       const struct varve_geometry *g, const struct varve_bitmap *bits,
                       uint8_t digest[VARVE_DIGEST_LEN], struct varve_err *err);

/* ORs the map into `into`; if the disk had another size when it was written, all from the smaller size on
 * counts as set.  On error `into` is unchanged.  -EUCLEAN: missing, damaged or of another
 * disk. */
int varve_blocks_load(struct varve_world *w, const struct varve_paths *p, const uint8_t uuid[16],
                      const struct varve_geometry *g, const uint8_t digest[VARVE_DIGEST_LEN],
                      struct varve_bitmap *into, struct varve_err *err);

/* Whether there is a file of that name.  -EUCLEAN: there is none. */
int varve_blocks_look(struct varve_world *w, const struct varve_paths *p,
                      const uint8_t digest[VARVE_DIGEST_LEN], struct varve_err *err);

/* Removes all but the n that are kept, and what attempts that died left behind.  What cannot be
 * removed costs only space. */
void varve_blocks_tidy(struct varve_world *w, const struct varve_paths *p,
                       const uint8_t (*keep)[VARVE_DIGEST_LEN], size_t n);

#endif
