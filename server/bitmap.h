/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What bitmaps mean on a disk: who uses one, whether it can be believed, which blocks it has now.
 * Changing them is bitmap-actions.c's.  For the clerk's thread.
 */
#ifndef VARVE_SERVER_BITMAP_H
#define VARVE_SERVER_BITMAP_H

#include "lib/bitmap.h"
#include "lib/catalogue.h"
#include "lib/qmp.h"
#include "server/disk.h"

/* What a bitmap is rounded up to, in bytes. */
#define VARVE_BITMAP_GRANULARITY_DEFAULT 65536u

/* The open backup that is based on the disk's bitmap, or NULL; one that may change it rather than
 * one that will not. */
const struct varve_cat_backup *varve_bitmap_user(const struct varve_catalogue *c,
                                                 const uint8_t uuid[16], const char *name,
                                                 bool *never);

/* In catalogue c.  -ENOENT: there is none. */
int varve_bitmap_lookup(const struct varve_catalogue *c, struct varve_disk *disk, const char *name,
                        struct varve_cat_bitmap **out, struct varve_err *err);

/* The name of a bitmap that is to be made.  -EINVAL; -EBUSY: a job makes it. */
int varve_bitmap_check_new(const struct varve_catalogue *c, struct varve_disk *disk,
                           const char *name, struct varve_err *err);

/* Whether a command may use it.  -EBUSY: a backup or a job does; -EUCLEAN: it is inconsistent. */
int varve_bitmap_check(const struct varve_catalogue *c, struct varve_disk *disk,
                       const struct varve_cat_bitmap *b, struct varve_err *err);

/* The same, but whoever uses it: -EUCLEAN. */
int varve_bitmap_check_content(struct varve_disk *disk, const struct varve_cat_bitmap *b,
                               struct varve_err *err);

/* Whether what it is made of is still there, by the files' heads; -EUCLEAN. */
int varve_bitmap_check_set(struct varve_disk *disk, const struct varve_change_set *set,
                           struct varve_err *err);

/* Whether that code says that nobody could look for want of memory or descriptors: it tells nothing
 * of a bitmap. */
bool varve_bitmap_nobody_looked(int rc);

/* QEMU's BlockDirtyInfo of all bitmaps of the disk: each with its blocks now, rounded to its
 * granularity, with what the live epoch has, if it records.  NULL: nobody could look. */
json_t *varve_bitmaps_describe(struct varve_disk *disk, struct varve_err *err);

#endif
