/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The reading side of a disk: the disk as it was at a boundary, read while its writer goes on.
 * A source is what a reader has of one disk (open files); a view is a boundary of it.  Any thread may
 * read; nothing here takes a lock that a writer of the disk waits for, and nothing maps a file that a
 * peer could truncate.
 *
 * What it returns is the disk at the boundary or an error (I10), proved after the data were read:
 * view.c has the argument.
 */
#ifndef VARVE_LIB_VIEW_H
#define VARVE_LIB_VIEW_H

#include "lib/bitmap.h"
#include "lib/block.h"
#include "lib/control.h"
#include "lib/err.h"
#include "lib/world.h"

struct varve_source;

/* Takes ctl_fd and image_fd over (also on failure).  -EUCLEAN: the page is of another disk. */
int varve_source_new(struct varve_world *w, const struct varve_geometry *g, const uint8_t uuid[16],
                     int ctl_fd, int image_fd, struct varve_source **out, struct varve_err *err);

/* References; the last one closes all files.  unref of NULL does nothing. */
struct varve_source *varve_source_ref(struct varve_source *s);
void varve_source_unref(struct varve_source *s);

/* Adds epoch `number`; takes the fds over (also on failure; -1 where there is none).  The same epoch
 * with the same files again is no error. */
int varve_source_add_epoch(struct varve_source *s, uint64_t number, int fds[3],
                           struct varve_err *err);
bool varve_source_has_epoch(struct varve_source *s, uint64_t number);
/* Forgets the epochs before `number`; reads under way keep theirs. */
void varve_source_drop_before(struct varve_source *s, uint64_t number);

/* Adds the done map of a view (lib/control.h); takes the fd over (also on failure).  A former one of
 * the same view gives way. */
int varve_source_add_done(struct varve_source *s, uint64_t view, int fd, struct varve_err *err);
/* It is there, and is the file with that inode. */
bool varve_source_has_done(struct varve_source *s, uint64_t view, uint64_t ino);
/* Forgets those of views that are not open in a copy of the control page's VARVE_CTL_VIEWS. */
void varve_source_drop_done(struct varve_source *s, const struct varve_ctl_view_copy *views);

/* The image, to read; it stays the source's. */
int varve_source_image_fd(const struct varve_source *s);
/* The image's time is still that. */
bool varve_source_image_is(struct varve_source *s, int64_t mtime_ns);

/* What the control page says now. */
int varve_source_head(struct varve_source *s, struct varve_ctl_head *head, struct varve_err *err);
int varve_source_views(struct varve_source *s, struct varve_ctl_view_copy out[VARVE_CTL_VIEWS],
                       struct varve_err *err);
/* The control page is the same file as that behind fd. */
bool varve_source_same_control(struct varve_source *s, int ctl_fd);

/* Bits of epoch `number` as they are now, ORed into `into`.  -ENOENT: not one of ours. */
int varve_source_or_live(struct varve_source *s, uint64_t number, struct varve_bitmap *into,
                         struct varve_err *err);

struct varve_view {
    uint64_t id;       /* as given to varve_tracker_swap */
    uint64_t boundary; /* first epoch after it */
};

/* Fills buf with [off, off+len) of the view; len at most 1 MiB.
 * -EIO: some of it could not be kept or read, was released, or need not be kept; err says which and
 * where; *lost_off (may be NULL) its first byte.
 * -ESTALE: the view has ended or is broken, for good.
 * -EAGAIN: the disk is in an epoch whose files the source does not have yet. */
int varve_view_read(struct varve_source *s, const struct varve_view *v, void *buf, uint64_t off,
                    uint32_t len, uint64_t *lost_off, struct varve_err *err);

/* The same if it can be had without waiting for a device.  -EAGAIN: it cannot, or there is an error for
 * varve_view_read to tell. */
int varve_view_read_now(struct varve_source *s, const struct varve_view *v, void *buf, uint64_t off,
                        uint32_t len);

/* A part of the image, as it was when somebody asked the file system, which is slow where much of
 * it is in memory and holds writers up: bytes [from, to) are a hole (1) or data (0).  All zero:
 * none. */
struct varve_image_run {
    uint64_t from, to;
    int hole;
};

/* Whether the disk had a hole at `off` at the boundary (nothing was allocated, it read as zeroes):
 * 1 hole, 0 data; *run_len (bytes, 1..max_len) tells how far the same answer is known to go, whole
 * blocks or to the disk's end.  off must be a multiple of the block size.  Doubt says data.  It may
 * stop early: ask on from there.  *seen (or NULL) is what the image was last seen to have since the
 * view was opened, and becomes what it is seen to have now.  Errors as of varve_view_read. */
int varve_view_hole_run(struct varve_source *s, const struct varve_view *v, uint64_t off,
                        uint64_t max_len, struct varve_image_run *seen, uint64_t *run_len,
                        struct varve_err *err);

/* Whether the view can be read at all: 0, -ESTALE with the reason, or -EAGAIN. */
int varve_view_check(struct varve_source *s, const struct varve_view *v, struct varve_err *err);

/* Bytes of preimages kept, and of preimages lost, in the epochs of the view so far. */
int varve_view_usage(struct varve_source *s, const struct varve_view *v, uint64_t *scratch_bytes,
                     uint64_t *lost_bytes, struct varve_err *err);

/* Bytes that were released. */
int varve_view_released(struct varve_source *s, const struct varve_view *v, uint64_t *bytes,
                        struct varve_err *err);
/* Blocks that were released, ORed into `into`. */
int varve_view_or_released(struct varve_source *s, const struct varve_view *v,
                           struct varve_bitmap *into, struct varve_err *err);

/* Whether the block at `off`, a multiple of the block size, was released, or is not needed and was
 * overwritten: 1 it can never be read again, 0 it can, for now, as far as that goes; *run_len (bytes,
 * 1..max_len) tells how far the same is known, as of varve_view_hole_run. */
int varve_view_gone_run(struct varve_source *s, const struct varve_view *v, uint64_t off,
                        uint64_t max_len, uint64_t *run_len, struct varve_err *err);

/* Blocks lost to the view so far, ORed into `into`. */
int varve_view_or_lost(struct varve_source *s, const struct varve_view *v,
                       struct varve_bitmap *into, struct varve_err *err);

#endif
