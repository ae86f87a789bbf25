/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The durable map of one epoch, or of several neighbours merged: a file in the disk's state folder.
 * Called by whoever has the disk's lock, and by readers once it is sealed; never in the data path.
 * A sealed file never changes (I6) and carries a checksum that is verified when it is loaded.
 *
 * Format, little-endian, version 3:
 *     0     80-byte head: magic "varvemap", version, block shift, disk uuid, size of the disk then,
 *           first and last epoch, number of the epoch before the first (0: none), birth id: 16
 *           random bytes of the first epoch
 *     4096  mark, in a sector of its own: state (0 open, 1 clean, 2 sealed), 4 zero bytes, SHA-256
 *           of head, chunks and table, SHA-256 of the mark up to here; one that fails that says open
 *     4224  record of the list, in the mark's sector: words in the list (0: there is none), SHA-256 of
 *           head and list, SHA-256 of mark and record up to here
 *     4608  table, one bit a chunk, least significant first, rest zero: the chunk is not all zero.
 *           Other chunks are neither in the digest nor looked at: what it costs to read a map goes
 *           by what was written in its epochs, not by the size of the disk
 *     8192  bits, one a block, least significant first, in whole 64-bit words; rest of file zero.
 *           A chunk is 4096 bytes of them, or as many times twice that as the table needs to hold all
 *     then  the list, from the next 4096 bytes on: of a sealed file with few bits in many chunks
 *           each word of the bits that is not zero, index and word, 16 bytes.  It says what the
 *           chunks say: who has verified it needs no chunks, who ignores it loses nothing
 * open: bits are missing, those there are true (epoch-file-flush.c).  clean: the epoch is live, and
 * these were its bits when its server stopped.  sealed: final.  The mark is written after what it
 * speaks of is durable.
 * Version 2 has a 64-byte head, without a birth id, and zeroes there.  Version 1 has no table
 * either: the digest is of head and all bits.  Such files are still read and finished.
 *
 * The birth id tells an epoch from another of the same number, in a state directory that came back
 * from an older copy and went on from there: who kept both knows that it is the same boundary.
 */
#ifndef VARVE_LIB_EPOCH_FILE_H
#define VARVE_LIB_EPOCH_FILE_H

#include "lib/bitmap.h"
#include "lib/block.h"
#include "lib/err.h"
#include "lib/paths.h"
#include "lib/world.h"

enum varve_epoch_state {
    VARVE_EPOCH_FILE_OPEN = 0,
    VARVE_EPOCH_FILE_CLEAN = 1,
    VARVE_EPOCH_FILE_SEALED = 2,
};

#define VARVE_EPOCH_ID_LEN 16u

struct varve_epoch_file {
    uint64_t first, last, prev;
    uint64_t size; /* of the disk in these epochs, bytes */
    uint8_t id[VARVE_EPOCH_ID_LEN]; /* of the first epoch's birth; zero: it has none */
    enum varve_epoch_state state;
};

/* Creates the open, preallocated file of epoch `epoch`, durable when it returns (its directory too).
 * An open file of that name is replaced.  -EEXIST: it is clean or sealed; -EUCLEAN: what has that
 * name cannot be used; -ENOSPC: no room for it. */
int varve_epoch_file_create(struct varve_world *w, const struct varve_paths *p,
                            const uint8_t uuid[16], const struct varve_geometry *g, uint64_t epoch,
                            uint64_t prev, struct varve_err *err);

/* Bytes of its file system that a new file takes at most. */
uint64_t varve_epoch_file_room(const struct varve_geometry *g);

/* Writes bits (varve_map_bytes() of them) and marks the file clean or sealed, durable when it
 * returns.  Dying anywhere before leaves it open, and so does an error, after which it may be tried
 * again; a clean file is marked open first.  -EEXIST: it is sealed already, durably. */
int varve_epoch_file_finish(struct varve_world *w, const struct varve_paths *p,
                            const struct varve_geometry *g, uint64_t epoch, const void *bits,
                            enum varve_epoch_state state, struct varve_err *err);

/* Marks a clean file open again, durably. */
int varve_epoch_file_reopen(struct varve_world *w, const struct varve_paths *p, uint64_t epoch,
                            struct varve_err *err);

/* --- the bits of an open file (epoch-file-flush.c) --- */

/* Entries of `counts` below: bits that stand in each page of the file, all 0 for a file that is as it was
 * made, or to have all of it written again. */
uint64_t varve_epoch_file_npages(const struct varve_geometry *g);

/* Opens it for flushing; the fd.  -EEXIST: it is not open. */
int varve_epoch_file_open_flush(struct varve_world *w, const struct varve_paths *p,
                                const struct varve_geometry *g, uint64_t epoch,
                                struct varve_err *err);

/* Writes the pages that have more bits than `counts` says, and counts them.  The bits may be set
 * meanwhile, and are never cleared.  How many pages; they are durable after a sync of fd.  Nobody
 * finishes the file meanwhile. */
int64_t varve_epoch_file_flush(struct varve_world *w, int fd, const struct varve_geometry *g,
                               const _Atomic uint64_t *bits, uint16_t *counts,
                               struct varve_err *err);

/* ORs what an open file holds into `into`: bits that are all true, but need not be all.  -EUCLEAN: it is
 * damaged, not open or of another disk. */
int varve_epoch_file_load_open(struct varve_world *w, const struct varve_paths *p,
                               const uint8_t uuid[16], const struct varve_geometry *g,
                               uint64_t epoch, struct varve_bitmap *into, struct varve_err *err);

/* Reads head and mark; of a disk of any size.  -EUCLEAN: not such a file, damaged, or of another disk or
 * granularity; -ENOTSUP: of a newer format. */
int varve_epoch_file_info(struct varve_world *w, const struct varve_paths *p,
                          const uint8_t uuid[16], const struct varve_geometry *g, uint64_t first,
                          uint64_t last, struct varve_epoch_file *info, struct varve_err *err);

/* ORs the bits of a clean or sealed file into `into` (nblks bits), after verifying the checksum.  If the
 * disk had another size then, its blocks that both sizes have; what the change of size itself means for
 * the others is not told (lib/timeline.h).
 * *added, if not NULL, grows by the bits that were not set before.  On error nothing changes.
 * -EUCLEAN: open, damaged or of another disk. */
int varve_epoch_file_load_counting(struct varve_world *w, const struct varve_paths *p,
                                   const uint8_t uuid[16], const struct varve_geometry *g,
                                   uint64_t first, uint64_t last, struct varve_bitmap *into,
                                   uint64_t *added, struct varve_err *err);
/* The same, not counting. */
int varve_epoch_file_load(struct varve_world *w, const struct varve_paths *p,
                          const uint8_t uuid[16], const struct varve_geometry *g, uint64_t first,
                          uint64_t last, struct varve_bitmap *into, struct varve_err *err);

/* Writes a sealed file of epochs first..last, durable when it returns: what a merge leaves.  `id` is
 * the first part's.  The files of the parts are the caller's to remove afterwards. */
int varve_epoch_file_write_merged(struct varve_world *w, const struct varve_paths *p,
                                  const uint8_t uuid[16], const struct varve_geometry *g,
                                  uint64_t first, uint64_t last, uint64_t prev,
                                  const uint8_t id[VARVE_EPOCH_ID_LEN],
                                  const struct varve_bitmap *bits, struct varve_err *err);

#endif
