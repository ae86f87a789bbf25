/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A checkpoint in a file of its own, which is kept with the backups: whose it is, when it was, and
 * what was written since, up to a boundary that it names.  What it says stays true for ever; whether
 * it still fits a disk is for whoever has the disk's timeline to say.
 * One thread at a time for each file.  It never decides what becomes of a checkpoint.
 *
 * Format, little-endian, version 1:
 *     0     304-byte head:
 *             0    magic "varveckp"
 *             8    u32   version
 *             12   u32   block shift: a block is 1 << shift bytes
 *             16         uuid of the disk, 16 bytes
 *             32   u64   size of the disk in bytes
 *             40   u64   time of the checkpoint, nanoseconds since 1970
 *             48   u64   time of the export, the same
 *             56   u64   first epoch after the checkpoint
 *             64         birth id of that epoch, 16 bytes; zero: it is not known any more
 *             80   u64   first epoch of which the file says nothing: it has what was written before
 *             88         birth id of that epoch, 16 bytes, not zero
 *             104  u64   blocks that are set in the map
 *             112  u64   number of ranges
 *             120  u64   number of chunks
 *             128        name of the checkpoint, 72 bytes, the rest zero
 *             200        name of the disk when it was exported, 72 bytes, the rest zero
 *             272        SHA-256 of the head up to here
 *     304   ranges, each u64 offset and u64 length in bytes: what the checkpoint's own backup could
 *           not read, and so counts as written.  Ascending, not overlapping, within the disk
 *     ...   chunks of the map of what was written between the two epochs, each u64 number and 512
 *           bytes of bits, one a block, least significant first; ascending.  Chunks that are not
 *           there are zero, those that are there are not
 *     ...   SHA-256 of everything before
 * The digests find damage, not malice: who can write the file can make it say that less was written.
 */
#ifndef VARVE_LIB_CHECKPOINT_FILE_H
#define VARVE_LIB_CHECKPOINT_FILE_H

#include "include/varve.h"
#include "lib/bitmap.h"
#include "lib/block.h"
#include "lib/change-set.h"
#include "lib/epoch-file.h"
#include "lib/err.h"
#include "lib/world.h"

#define VARVE_CHECKPOINT_FILE_VERSION   1u
#define VARVE_CHECKPOINT_FILE_HEAD      304u /* bytes */
#define VARVE_CHECKPOINT_FILE_HEAD_TEXT 272u /* bytes of them that their digest is of */
#define VARVE_CHECKPOINT_FILE_CHUNK     512u /* bytes of bits */

struct varve_checkpoint_file {
    uint8_t uuid[16];
    struct varve_geometry geometry;
    char name[VARVE_NAME_MAX + 1];
    char disk[VARVE_NAME_MAX + 1];
    uint64_t time_ns, exported_ns;
    uint64_t epoch; /* the first after the checkpoint */
    uint8_t epoch_id[VARVE_EPOCH_ID_LEN];
    uint64_t known; /* the first that `blocks` has nothing of; epoch <= known */
    uint8_t known_id[VARVE_EPOCH_ID_LEN];
    struct varve_cat_range *ranges; /* owned, as are the blocks */
    size_t nranges;                 /* at most VARVE_RANGES_MAX */
    struct varve_bitmap *blocks;
};

void varve_checkpoint_file_fini(struct varve_checkpoint_file *f);

/* Writes PATH.tmp, durably.  Then publish gives it its name, durably, or discard removes it.
 * -EEXIST: there is a file PATH, or PATH.tmp.  On error nothing is left. */
int varve_checkpoint_file_stage(struct varve_world *w, const char *path,
                                const struct varve_checkpoint_file *f, struct varve_err *err);
/* Never in the place of another file: -EEXIST.  On error PATH.tmp is gone, and PATH is not there
 * unless err says so. */
int varve_checkpoint_file_publish(struct varve_world *w, const char *path, struct varve_err *err);
void varve_checkpoint_file_discard(struct varve_world *w, const char *path);

/* Reads a checkpoint of that disk; *f is the caller's to fini after success, and is of the disk's size
 * now: if it was exported at another, all from the smaller one on counts as written.  Takes no more memory
 * than a map of the disk, whatever the file says, and waits for no FIFO's other end.
 * -EINVAL: it is no such file, or of another disk or granularity; -ENOTSUP: of a newer
 * version; -EUCLEAN: it is damaged; err names the file. */
int varve_checkpoint_file_read(struct varve_world *w, const char *path, const uint8_t uuid[16],
                               const struct varve_geometry *g, struct varve_checkpoint_file *f,
                               struct varve_err *err);

#endif
