/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The writing side of a disk: marks what is written, keeps what is overwritten, makes boundaries.
 * Whoever attaches is the disk's one server (it has the lock): the plugin while a guest may write,
 * the daemon for the moment of a boundary on an offline disk.  It holds no policy, knows no names
 * of checkpoints, and never talks to a network.
 *
 * Threads: any number may be between varve_piece_begin and varve_piece_end.  varve_tracker_flush is for
 * one thread at a time, beside the others.  All other functions are for one control thread at a time.
 */
#ifndef VARVE_LIB_TRACKER_H
#define VARVE_LIB_TRACKER_H

#include "lib/block.h"
#include "lib/control.h"
#include "lib/err.h"
#include "lib/identity.h"
#include "lib/paths.h"
#include "lib/world.h"

struct varve_tracker;

enum varve_scratch_full {
    VARVE_SCRATCH_DEGRADE, /* what could not be kept is lost to open views, and only that */
    VARVE_SCRATCH_BREAK,   /* the epoch, and with it every view that needs it, is broken */
    VARVE_SCRATCH_WAIT,    /* the write waits for room, scratch_wait_ms at most; then as DEGRADE */
};

#define VARVE_SCRATCH_RESERVE_DEFAULT UINT64_MAX

struct varve_tracker_config {
    const char *state_dir;
    const char *runtime_dir;
    const char *scratch_dir; /* NULL: state_dir */
    const char *name;
    const char *image;   /* absolute path, for the identity */
    int image_fd;        /* read for preimages; borrowed; -1: no writer will come (offline): then the
                          * intent log is left as it is, unless the disk is clean */
    uint64_t size;       /* of the image now, bytes */
    uint64_t block_size; /* bytes; 0: the disk's own, or the default for a new one */
    uint64_t scratch_max; /* bytes of preimages per disk; 0: no limit */
    enum varve_scratch_full on_scratch_full;
    unsigned scratch_wait_ms; /* from when room ran out, for all writes */
    uint64_t scratch_reserve; /* bytes of the scratch's file system that preimages leave free; 0: none;
                               * VARVE_SCRATCH_RESERVE_DEFAULT: 1 %, at least 64 MiB, at most a tenth */
    unsigned freeze_timeout_ms;
    bool durable_process; /* a crash of the host may cost everything: keeps no intent log, syncs nothing */
    const char *role; /* "nbdkit" or "varved": what a message about the lock calls us */
    const char *distrust; /* a reason to take the image for changed by others; NULL: none but it */
    bool existing_only; /* -ENOENT instead of making a new disk */
    const uint64_t *resize; /* bytes that image and disk are to have, with image_fd -1; NULL: as they are */
};

/* Takes the disk: locks it, makes or checks its state, finishes a resize that was begun, adopts the
 * runtime files in place if they are this boot's, else rebuilds them.  Where they cannot be made, a guest's server goes on without (see
 * varve_tracker_private).  What it found stands in `notes` (one line, may be empty).
 * -EBUSY: another process serves it (its pid is in err).  -EINVAL: granularity or size do not fit;
 * -ENOTSUP: state of another format; others as of the world. */
int varve_tracker_attach(struct varve_world *w, const struct varve_tracker_config *cfg,
                         struct varve_tracker **out, char notes[256], struct varve_err *err);

/* Writes down the live epoch as clean and lets the disk go.  No piece may be under way.
 * Open views stay open.  An error means only that the next start after a reboot must doubt. */
int varve_tracker_detach(struct varve_tracker *t, struct varve_err *err);

/* For a child of fork(): the lock file names this process from now on. */
int varve_tracker_claim_pid(struct varve_tracker *t, struct varve_err *err);

const struct varve_identity *varve_tracker_identity(const struct varve_tracker *t);
const struct varve_paths *varve_tracker_paths(const struct varve_tracker *t);
uint64_t varve_tracker_epoch(const struct varve_tracker *t);

/* Why the disk is served without a runtime folder: nothing can be read by others, no boundary is made,
 * and a kill costs what a crash of the host does.  NULL: it is not. */
const char *varve_tracker_private(const struct varve_tracker *t);

/* Whether the region of that byte would count as written after a crash of the host, and how many bytes
 * regions have.  Without a log all would. */
bool varve_tracker_is_hot(struct varve_tracker *t, uint64_t off);
uint64_t varve_tracker_region_bytes(const struct varve_tracker *t);

/* --- the data path ---------------------------------------------------------------------------- */

struct varve_piece {
    struct varve_tracked_epoch *epoch;
    unsigned shard;
};

/* Length of the first piece of [off, off+len): pieces never cross a multiple of VARVE_PIECE_MAX. */
uint32_t varve_piece_len(uint64_t off, uint64_t len);

/* Before the image is changed in [off, off+len), a piece within the disk: waits until its region is
 * durable in the intent log, while a boundary is made and, with VARVE_SCRATCH_WAIT, for room; enters
 * the epoch, keeps what must be kept, sets the bits.  Cannot fail.  `cheap_copy`: the
 * caller is about to free the range, so sharing extents (reflink) is worth trying. */
void varve_piece_begin(struct varve_tracker *t, uint64_t off, uint32_t len, bool cheap_copy,
                       struct varve_piece *p);

/* After the image was changed, or was not because of an error. */
void varve_piece_end(struct varve_tracker *t, struct varve_piece *p);

/* Any thread, outside of a piece: a change of the image has found its file system full.  What is kept
 * there for views goes, which breaks them; then the change is worth one more try. */
void varve_tracker_make_room(struct varve_tracker *t);

/* Any thread, outside of a piece: a sync of the image has failed, and the guest is about to be told.
 * What may be lost counts as written from the flusher's next step on, or, should the server be killed
 * before, from the next one's start. */
void varve_tracker_image_failed(struct varve_tracker *t);

/* For readers who want to know whether the guest suffers: around one write in a sample of all, with
 * the same `count` (1 and more for a write that is much larger than others).  Any thread; one or two
 * relaxed additions to a cache line that the data path does not read. */
void varve_tracker_sample_begin(struct varve_tracker *t, uint64_t count);
void varve_tracker_sample_end(struct varve_tracker *t, uint64_t count, uint64_t ns);

/* --- boundaries ------------------------------------------------------------------------------- */

/* Makes the next epoch ready; nobody waits meanwhile.  arm: it shall preserve (it does so too while
 * any view is open).  A former one that was not entered is dropped. */
int varve_tracker_prepare(struct varve_tracker *t, bool arm, uint64_t *epoch,
                          struct varve_err *err);

/* Holds new pieces back and waits, at most the freeze timeout, for those under way.  From here the
 * timeout runs: past it the first writer that waits lets all go on, and then the swap is refused.
 * -ETIMEDOUT; -EINVAL: held back already, or nothing is prepared. */
int varve_tracker_quiesce(struct varve_tracker *t, struct varve_err *err);

/* Enters the prepared epoch, with view `view_id` (0: none) opened at this boundary, and lets writers
 * go on.  -ETIMEDOUT: writers had been let go before; nothing has happened.  -ENOSPC: no view free. */
int varve_tracker_swap(struct varve_tracker *t, uint64_t epoch, uint64_t view_id,
                       struct varve_err *err);

/* Lets writers go on in the old epoch and drops the prepared one.  May be called at any time. */
void varve_tracker_abort(struct varve_tracker *t);

/* Seals all epochs before the live one that are not sealed yet: durable when it returns. */
int varve_tracker_seal(struct varve_tracker *t, struct varve_err *err);

/* Ends a view and frees what no open view needs any more.  An unknown id is not an error. */
int varve_tracker_end_view(struct varve_tracker *t, uint64_t view_id, struct varve_err *err);

/* What is to be done from time to time: empties what nobody needs any more, step by step, and looks
 * whether what is kept came to its device.  Returns the milliseconds after which it wants to be called
 * again, -1: not before something was done here. */
int varve_tracker_housekeep(struct varve_tracker *t);

/* --- what views need -------------------------------------------------------------------------- */

/* From here on the view has a done map (lib/control.h), and the blocks set in the file map_fd (a map
 * of the disk's blocks, read by copies, borrowed; -1: none) are not needed by it: they are readable
 * until they are overwritten.  What was kept of them and nobody else needs is freed.  Guests wait for
 * none of it.  Again is no error.  -ESTALE: there is no such open view; -EINVAL: map_fd is no such
 * map; of the world: then only a part of the map may count, and the view should end. */
int varve_tracker_narrow(struct varve_tracker *t, uint64_t view_id, int map_fd,
                         struct varve_err *err);

/* The view is done with the blocks that lie within [off, off+len): they read as errors, nothing is
 * kept for it of them any more, and what was kept and nobody else needs is freed.  -ESTALE: no such
 * open view; -EINVAL: it has no done map, or the range is not within the disk. */
int varve_tracker_release(struct varve_tracker *t, uint64_t view_id, uint64_t off, uint64_t len,
                          struct varve_err *err);

/* --- making it durable ------------------------------------------------------------------------- */

/* One step of the flusher, to be called every few seconds by a thread that may be another than the
 * control thread, until before detach.  `cool`: looks too which regions are quiet, which may take as
 * long as the image's sync; to be said less often.  Nobody waits for it.  An error is tried again by
 * the next step. */
int varve_tracker_flush(struct varve_tracker *t, bool cool, struct varve_err *err);

/* To be called once a second (VARVE_BEAT_PERIOD_NS), by any thread: says that the server is there. */
void varve_tracker_beat(struct varve_tracker *t);

/* --- for readers in other processes ----------------------------------------------------------- */

/* Files of an epoch from the oldest that an open view needs to the prepared one, each opened
 * read-only on its own: [0] live map, and if it is armed [1] lost map, [2] scratch, else -1.
 * The caller closes them.  -ENOENT: no such epoch. */
int varve_tracker_open_epoch(struct varve_tracker *t, uint64_t epoch, int fds[3],
                             struct varve_err *err);

/* The done map of an open view, read-only.  -ENOENT: it has none. */
int varve_tracker_open_done(struct varve_tracker *t, uint64_t view_id, struct varve_err *err);

/* The control page, read-only. */
int varve_tracker_open_control(struct varve_tracker *t, struct varve_err *err);

#endif
