/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the files of the tracker share: tracker-*.c and nobody else.
 */
#ifndef VARVE_LIB_TRACKER_INTERNAL_H
#define VARVE_LIB_TRACKER_INTERNAL_H

#include "lib/bitmap.h"
#include "lib/gate.h"
#include "lib/image-witness.h"
#include "lib/intent.h"
#include "lib/tracker.h"

#include <limits.h>
#include <pthread.h>

/* Preserving is serialized per stripe: the piece-sized areas of the disk, hashed. */
#define VARVE_STRIPES 256u

/* An epoch whose files are in the runtime folder. */
struct varve_tracked_epoch {
    uint64_t number;
    int live_fd;            /* -1: private */
    _Atomic uint64_t *bits; /* mapping of live_fd, or memory */
    int lost_fd;            /* -1: not armed */
    _Atomic uint64_t *lost; /* mapping of lost_fd */
    int scratch_fd;         /* -1: not armed */
    _Atomic bool preserve;  /* armed, and some open view still needs it */
    bool sealed;            /* its epoch file is durable */
    int file_fd;            /* that file while it is open, for the flusher; -1: not needed yet */
    uint16_t *flushed;      /* bits that were written to it, by page; NULL: as file_fd */
    bool unsynced;          /* some of them were not made durable */
    struct varve_ctl_epoch *slot;
};

/* A view's done map, mapped. */
struct varve_done {
    uint64_t view;
    int fd;
    struct varve_done_head *head; /* the mapping */
    _Atomic uint64_t *unneeded;
    _Atomic uint64_t *released;
};

struct varve_tracker {
    struct varve_world *w;
    struct varve_identity id;
    struct varve_paths paths;
    int image_fd;
    bool may_clone; /* image and scratch lie on one file system */
    bool found_clean; /* so was the live epoch when we came: the image was synced, nobody wrote */
    bool clean_mark;  /* its file says so still, or may */
    int sync_fd;      /* the image, opened for ourselves: errors of its syncs are told to each opener */
    struct varve_intent *intent;
    struct varve_intent_found found; /* what the intent log said when we came */
    uint64_t scratch_max;
    uint64_t scratch_reserve;
    enum varve_scratch_full on_scratch_full;
    unsigned scratch_wait_ms;
    unsigned freeze_timeout_ms;
    char role[16];

    /* No file of the runtime folder can be made: page and maps are memory of our own (tracker-private.c),
     * for this reason.  Empty: they are files. */
    char private_why[256];
    bool runtime_failed; /* what failed last was the making of such a file */
    uint64_t image_failed; /* VARVE_CTL_IMAGE_FAILED, of a page that was adopted before */

    int lock_fd;
    int ctl_fd; /* -1: private */
    struct varve_ctl *ctl;
    struct varve_gate gate;

    /* Epoch files and the table below, between the control thread, which changes them, and the flusher.
     * Rank: before the gate.  Syncs of epoch files under it; neither between quiesce and swap nor by a
     * writer it is ever taken. */
    pthread_mutex_t files;

    /* Guards the preimages of the blocks of its stripe: test, copy and mark are one step.
     * Rank: taken inside the gate; nothing but scratch and image I/O under it. */
    pthread_mutex_t stripes[VARVE_STRIPES];

    /* Slot number % VARVE_CTL_EPOCHS.  A writer inside the gate may use that of the live epoch; the
     * others are the control thread's, and the flusher's while it has `files`. */
    struct varve_tracked_epoch *epochs[VARVE_CTL_EPOCHS];

    /* Guards the members of epochs[] for a writer outside the gate: none is freed under it.
     * Rank: outside the gate; a leaf but for I/O. */
    pthread_mutex_t epochs_lock;
    uint64_t next; /* the prepared epoch, 0: none */

    /* As in the control page; NULL: the view needs every block, or there is none.  Stored by the
     * control thread, read under a stripe's lock: who took one away and then had every stripe's lock
     * once may free it.  has_done false: all are NULL. */
    _Atomic(struct varve_done *) done[VARVE_CTL_VIEWS];
    _Atomic bool has_done;
    _Atomic uint64_t scratch_used; /* bytes of preimages in all open scratch files */
    _Atomic int64_t budget;           /* bytes that are asked for of the scratch's file system */
    _Atomic uint64_t budget_until_ns; /* monotonic */
    _Atomic uint64_t full_since_ns;   /* monotonic: when room ran out; 0: there is some */
    _Atomic uint64_t waits;           /* how often a write has waited for it */
    bool dead;    /* scratch files to be reaped are left */
    uint64_t seal_again_ns; /* monotonic: then what could not be sealed is tried again; 0: all is */
    bool unfreed; /* and, maybe, preimages that no view needs */

    /* The image before we came (tracker-doubt.c); the flusher's, once it has begun. */
    struct varve_witness wit;
    enum varve_verdict verdict;
    char why[VARVE_WITNESS_TEXT];
    struct varve_image_look look;
    uint64_t floor; /* numbers up to here were used, although the state folder does not know; 0 */
    bool noted;     /* that the folder is doubted stands in it (lib/doubt-note.h) */
    struct varve_beat *beat; /* mapped; NULL: there is none */

    uint64_t closed_ns;   /* monotonic: when the gate was closed */
    uint64_t reopened_ns; /* and when it was opened again */
};

static inline struct varve_tracked_epoch **varve_tracker_slot(struct varve_tracker *t,
                                                              uint64_t number)
{
    return &t->epochs[number % VARVE_CTL_EPOCHS];
}

/* The tracked epoch of that number, or NULL. */
static inline struct varve_tracked_epoch *varve_tracker_find(struct varve_tracker *t,
                                                             uint64_t number)
{
    struct varve_tracked_epoch *e = *varve_tracker_slot(t, number);

    return e && e->number == number ? e : NULL;
}

/* --- tracker-epochs.c: the runtime files of epochs --- */

/* Makes live map and, if armed, lost map and scratch of a new epoch, all empty, and fills its slot of
 * the control page without VARVE_EPOCH_ENTERED.  Nothing is left of it on error. */
int varve_tracked_epoch_create(struct varve_tracker *t, uint64_t number, bool armed,
                               struct varve_err *err);

/* Opens the files of an epoch that the control page knows, found after a restart.  Broken or missing
 * scratch breaks the epoch; -ENOENT or -EUCLEAN: its live map is gone. */
int varve_tracked_epoch_adopt(struct varve_tracker *t, uint64_t number, struct varve_err *err);

/* Stops preserving into it, says so in the control page, and frees its scratch. */
void varve_tracked_epoch_disarm(struct varve_tracker *t, struct varve_tracked_epoch *e);

/* Its epoch file is durable: the flusher has nothing to do with it any more.  `files` is held. */
void varve_tracked_epoch_sealed(struct varve_tracker *t, struct varve_tracked_epoch *e);

/* Removes its runtime files and its slot.  Nobody may be writing in it.  `files` is held. */
void varve_tracked_epoch_drop(struct varve_tracker *t, struct varve_tracked_epoch *e);

/* Removes the runtime files of that number, whoever made them. */
void varve_tracked_epoch_unlink(struct varve_tracker *t, uint64_t number);

/* Closes and unmaps; the files stay. */
void varve_tracked_epoch_free(struct varve_tracker *t, struct varve_tracked_epoch *e);

/* Closes all epochs and forgets them; their files stay. */
void varve_tracker_forget(struct varve_tracker *t);

/* The oldest boundary an open view has, or UINT64_MAX. */
uint64_t varve_tracker_oldest_view(struct varve_tracker *t);

/* Disarms, drops and forgets what no open view needs and what is sealed.  Takes `files`. */
void varve_tracker_tidy(struct varve_tracker *t);

/* --- tracker-attach.c --- */

/* Learns what is known of all epochs, and has them.  *found: what was found.  On error nothing is had. */
int varve_tracker_take_epochs(struct varve_tracker *t, const uint8_t boot_id[16], bool new_disk,
                              const char **found, char notes[256], struct varve_err *err);

/* --- tracker-resize.c --- */

/* Finishes a resize that was begun, and does the one that is asked for; the disk's lock is held, and no
 * epoch is had.  *size: of the image, before and after. */
int varve_tracker_resize(struct varve_tracker *t, const struct varve_tracker_config *cfg,
                         const uint8_t boot_id[16], uint64_t *size, char notes[256],
                         struct varve_err *err);

/* --- tracker-adopt.c --- */

/* -ENOENT, -EUCLEAN: there is nothing to adopt, or it is not ours: rebuild.  The control page is
 * closed on error. */
int varve_tracker_adopt(struct varve_tracker *t, const uint8_t boot_id[16], struct varve_err *err);
void varve_tracker_close_control(struct varve_tracker *t);

/* --- tracker-private.c --- */

/* From here on the tracker makes no file in the runtime folder; `err` says why, and is what is told if
 * that cannot be: something there could still be believed.  Nothing is adopted or rebuilt yet. */
int varve_tracker_go_private(struct varve_tracker *t, const uint8_t boot_id[16],
                             struct varve_err *err);

/* --- tracker-rebuild.c --- */

/* `notes` as of varve_tracker_attach.  On error the control page is left for tracker_free().  Neither
 * this nor adopting takes the clean mark off. */
int varve_tracker_rebuild(struct varve_tracker *t, const uint8_t boot_id[16], bool new_disk,
                          char notes[256], struct varve_err *err);

/* Seals the file of an epoch whose bits nobody knows any more, with all of them set (I7). */
int varve_tracker_seal_as_dirty(struct varve_tracker *t, uint64_t number, struct varve_err *err);

/* --- tracker-intent.c --- */

/* Reads the intent log into t->found. */
int varve_tracker_find_intent(struct varve_tracker *t, const char *image, struct varve_err *err);

/* Adds the blocks of the regions that t->found says to `into`. */
void varve_tracker_add_regions(const struct varve_tracker *t, struct varve_bitmap *into);

/* After adopting or rebuilding, before the clean mark is taken off: the log is kept, durably, or it is
 * durably not there.  `notes` may be added to. */
int varve_tracker_start_intent(struct varve_tracker *t, const struct varve_tracker_config *cfg,
                               bool new_disk, char notes[256], struct varve_err *err);

/* --- tracker-flush.c --- */

/* If the image has failed and nobody has acted on it yet: what it may have lost counts as written, and
 * as lost to views.  True: so it was. */
bool varve_tracker_doubt_image(struct varve_tracker *t);
/* Of an image that has failed: all that it may have lost, or may lose yet. */
void varve_tracker_add_doubted(struct varve_tracker *t, struct varve_bitmap *into);

/* --- tracker-done.c --- */

/* Takes over the done maps of open views; a view whose map is gone ends, nobody knows what it may
 * read.  Others are removed.  After the epochs were adopted: who dies between adopts both again. */
int varve_tracker_adopt_done(struct varve_tracker *t, struct varve_err *err);

/* Frees and removes the done maps of views that are not open.  True: some are left. */
bool varve_tracker_tidy_done(struct varve_tracker *t);

/* Closes and unmaps all; the files stay. */
void varve_tracker_forget_done(struct varve_tracker *t);

/* --- tracker-release.c --- */

/* Whether an open view needs what block `from` held before `epoch`; the answer is the same up to
 * *stop, from < *stop <= to.  The stripe's lock is held. */
bool varve_tracker_needed(struct varve_tracker *t, uint64_t epoch, uint64_t from, uint64_t to,
                          uint64_t *stop);

/* Has every stripe's lock once: what was stored before is known to whoever keeps a block later. */
void varve_tracker_pass_stripes(struct varve_tracker *t);

/* Frees what is kept of the blocks [from, to) and no open view needs. */
void varve_tracker_free_unneeded(struct varve_tracker *t, uint64_t from, uint64_t to);

/* --- tracker-room.c --- */

/* Whether e may keep so many bytes more; they are counted then.  give: they were not kept. */
bool varve_tracker_take_room(struct varve_tracker *t, struct varve_tracked_epoch *e, uint64_t len);
void varve_tracker_give_room(struct varve_tracker *t, uint64_t len);
/* Bytes that e has kept, and that have gone; not more than are counted: who disarms it counts none. */
void varve_tracker_uncount(struct varve_tracker *t, struct varve_tracked_epoch *e, uint64_t bytes);

/* Whether a write that finds no room goes back and waits; said at the first failure. */
bool varve_tracker_may_wait(struct varve_tracker *t);
/* Outside of the gate and of all locks: a moment. */
void varve_tracker_wait_for_room(struct varve_tracker *t);

/* --- tracker-reap.c --- */

/* Takes the epoch's scratch away; a big one is left for housekeeping. */
void varve_tracker_bury(struct varve_tracker *t, uint64_t number);

/* Breaks e if some of what it kept did not come to the device. */
void varve_tracker_check_scratch(struct varve_tracker *t, struct varve_tracked_epoch *e);

/* --- tracker-boundary.c --- */

/* varve_tracker_prepare, with the number and the epoch before it given. */
int varve_tracker_prepare_as(struct varve_tracker *t, bool arm, uint64_t number, uint64_t prev,
                             struct varve_err *err);

/* --- tracker-doubt.c --- */

/* Looks what became of the image since it was served last, before anything is adopted. */
int varve_tracker_judge(struct varve_tracker *t, const char *distrust, const uint8_t boot_id[16],
                        bool new_disk, struct varve_err *err);

/* Acts on it, adding to `notes`, and writes down that the image is served now; before the first
 * writer.  found: what else was found, may be empty. */
int varve_tracker_take_image(struct varve_tracker *t, const uint8_t boot_id[16], const char *found,
                             char notes[256], struct varve_err *err);

/* Adds to what attach has to say. */
void varve_tracker_say(char notes[256], const char *what, const char *why);

/* The epochs go on in the next era: no view stays open, nothing can be told across the gap. */
int varve_tracker_doubt(struct varve_tracker *t, struct varve_err *err);

/* At a clean stop, with no writer left: the image is durable, and how it looks is written down. */
int varve_tracker_leave_image(struct varve_tracker *t, struct varve_err *err);

/* Says durably that the image is still served, unless the intent log does. */
int varve_tracker_heartbeat(struct varve_tracker *t, struct varve_err *err);

/* --- tracker-preserve.c --- */

/* Keeps those of the blocks [from, to) of e that an open view needs: their preimages are in its
 * scratch, or they are marked lost (or the epoch broken), up to the block that it returns; from there
 * on (if that is not `to`) the write has to go back and wait for room.  The stripe's lock is held. */
uint64_t varve_tracker_preserve(struct varve_tracker *t, struct varve_tracked_epoch *e, uint64_t from,
                            uint64_t to, bool cheap_copy);

#endif
