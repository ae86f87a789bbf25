/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Views that do not need every block of their disk: told so when a backup begins, and range by
 * range when its clients have done with it.  The disk's plugin does it, or we, where nobody serves
 * the disk. For the clerk's thread, but for what says otherwise.  It never frees anything itself.
 */
#ifndef VARVE_SERVER_RELEASE_H
#define VARVE_SERVER_RELEASE_H

#include "lib/bitmap.h"
#include "server/disk.h"

/* Whether the disk's views can be narrowed, and if not why: its plugin is too old. */
int varve_release_check(struct varve_disk *disk, struct varve_err *err);

/* The open view needs only the blocks in `needed` (NULL: all) and may be released in parts from now
 * on.  On error the view is to end. */
int varve_release_narrow(struct varve_disk *disk, uint64_t view, const struct varve_bitmap *needed,
                         struct varve_err *err);

/* Gets the done maps of open views that the disk's source does not have. */
int varve_release_fetch(struct varve_disk *disk, struct varve_err *err);

/* Pool threads.  The view's clients have done with the whole blocks of [off, off+len).  Waits for
 * the clerk and, up to 5 s, for a plugin that just comes or goes, but no longer once *stopping is
 * true. -ESTALE: the view has ended.  On error a part of it may have happened. */
int varve_release_range(struct varve_disk *disk, uint64_t view, uint64_t off, uint64_t len,
                        const _Atomic bool *stopping, struct varve_err *err);

/* The disk's own: what varve_release_range waits for. */
void varve_release_job(struct varve_job *job, bool stopping);

#endif
