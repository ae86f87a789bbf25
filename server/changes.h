/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Changes: the blocks of a disk that its readers are told of as changed, reference-counted,
 * computed when somebody asks unless they were given.  Any thread.  They never change; those that
 * were computed may be dropped while nobody uses them, and are computed again (map-cache.h).
 */
#ifndef VARVE_SERVER_CHANGES_H
#define VARVE_SERVER_CHANGES_H

#include "lib/bitmap.h"
#include "lib/catalogue.h"
#include "lib/err.h"
#include "server/changed.h"
#include "server/disk.h"

struct varve_changes;

/* Known ones; map (one bit a block) is taken over, also on failure; NULL: every block.
 * NULL: no memory. */
struct varve_changes *varve_changes_new(struct varve_bitmap *map);

/* Those of the set, as it was at the boundary before epoch `boundary`, in units of `granularity`
 * bytes (0: blocks), to be computed.  NULL: no memory. */
struct varve_changes *varve_changes_new_lazy(struct varve_disk *disk,
                                             const struct varve_change_set *set,
                                             uint64_t granularity, uint64_t boundary);

struct varve_changes *varve_changes_ref(struct varve_changes *c);
void varve_changes_unref(struct varve_changes *c);

/* *out stays valid until varve_changes_put, which every success must be followed by.  May read many
 * megabytes.  -EUCLEAN: the epochs are no longer complete. */
int varve_changes_get(struct varve_changes *c, struct varve_changed *out, struct varve_err *err);

/* The same, never waiting.  False: that needs the other. */
bool varve_changes_get_now(struct varve_changes *c, struct varve_changed *out);

void varve_changes_put(struct varve_changes *c);

/* How many blocks its ranges would set in the map, and whether they have this one. */
uint64_t varve_changes_heal_count(const struct varve_geometry *g,
                                  const struct varve_cat_checkpoint *since,
                                  const struct varve_bitmap *map);
bool varve_changes_heals(const struct varve_geometry *g, const struct varve_cat_checkpoint *since,
                         uint64_t blk);

/* The set of what changed since a checkpoint; *set is the caller's to clear.  -ENOMEM */
int varve_changes_since(const struct varve_cat_checkpoint *since, struct varve_change_set *set);

/* Rounds the map to units of `granularity` bytes (0: blocks). */
void varve_changes_round(const struct varve_geometry *g, uint64_t granularity,
                         struct varve_bitmap *map);

#endif
