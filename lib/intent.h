/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The intent log of a disk: which regions of it may differ from what is durable, image or bits.
 * Any number of writers may ask whether a region is hot and heat it; all else is for the tracker's
 * control and flusher threads, as said below.  It knows nothing of epochs, and never touches the image.
 *
 * File STATE/NAME/intent.log, one page, little-endian, overwritten in place, version 1:
 *
 *     0       head, in a sector of 512 bytes: magic "varvelog", version, shift of a region, disk uuid,
 *             size of the disk, whether the log is kept (1) or not (0), realtime in ns when that was
 *             written, zeroes, check (FNV-1a, 64 bits, of what stands before it)
 *     512 n   sectors 1 to 7: magic, number of the sector, disk uuid, 3840 bits, one a region, least
 *             significant first, check
 *
 * A sector that does not pass its check says that all of its regions are hot; a head that does not,
 * that nobody knows.  A region is the smallest power of two from VARVE_PIECE_MAX on with which the
 * disk's regions fit: 1 MiB up to 26 GiB, 64 MiB at 1 TiB, 1 GiB at 16 TiB.  A piece lies in one region.
 */
#ifndef VARVE_LIB_INTENT_H
#define VARVE_LIB_INTENT_H

#include "lib/block.h"
#include "lib/err.h"
#include "lib/paths.h"
#include "lib/world.h"

#include <pthread.h>
#include <stdatomic.h>

#define VARVE_INTENT_SECTOR         512u
#define VARVE_INTENT_SECTORS        8u
#define VARVE_INTENT_BYTES          (VARVE_INTENT_SECTOR * VARVE_INTENT_SECTORS)
#define VARVE_INTENT_SECTOR_REGIONS 3840u
#define VARVE_INTENT_REGIONS        (VARVE_INTENT_SECTOR_REGIONS * (VARVE_INTENT_SECTORS - 1))
#define VARVE_INTENT_WORDS          (VARVE_INTENT_REGIONS / 64)

/* While something is hot the head is written at least this often (with each step of the flusher), and a
 * log is not believed whose image has been changed so long after it.  As nothing is written before
 * something is hot, that is the disk's heartbeat, and an idle disk needs none. */
#define VARVE_INTENT_BEAT_NS  UINT64_C(4000000000)
#define VARVE_INTENT_DOUBT_NS UINT64_C(120000000000)

uint32_t varve_intent_shift(const struct varve_geometry *g);
uint64_t varve_intent_nregions(const struct varve_geometry *g);

/* --- the file (intent-file.c) ---------------------------------------------------------------------------- */

/* What a log says. */
struct varve_intent_found {
    bool trusted;
    const char *why;  /* it is not, for a message: "there is no intent log" */
    uint64_t regions; /* hot ones, of nregions */
    uint64_t bits[VARVE_INTENT_WORDS];
};

/* Reads the log, after making durable what is read.  image_mtime_ns: INT64_MIN if that of the image
 * tells nothing.  Whatever is wrong with the log is told in *found; -ENOTSUP: it has a newer
 * format. */
int varve_intent_read(struct varve_world *w, const struct varve_paths *p, const uint8_t uuid[16],
                      const struct varve_geometry *g, int64_t image_mtime_ns,
                      struct varve_intent_found *found, struct varve_err *err);

/* Until when, in real time, the log's server served the disk, but for the time between two beats.  0: the
 * log tells nothing: it is not kept, not this disk's, not whole, or not there. */
uint64_t varve_intent_served_ns(struct varve_world *w, const struct varve_paths *p,
                                const uint8_t uuid[16]);

/* No log, durably: whoever reads it finds that nobody knows. */
int varve_intent_drop(struct varve_world *w, const struct varve_paths *p, struct varve_err *err);

/* A page as it stands in the file. */
void varve_intent_encode(uint8_t page[VARVE_INTENT_BYTES], const uint8_t uuid[16],
                         const struct varve_geometry *g, const uint64_t *bits, bool kept,
                         uint64_t now_ns);

/* --- the log in use (intent.c) ---------------------------------------------------------------------------- */

/* In the order of their heat: who is at VARVE_INTENT_TOUCHED or above needs nothing. */
enum varve_intent_state {
    VARVE_INTENT_COLD,
    VARVE_INTENT_COOLING, /* hot, and about to be cold if nobody comes */
    VARVE_INTENT_IDLE,    /* hot, not touched since the flusher looked */
    VARVE_INTENT_TOUCHED,
    VARVE_INTENT_STUCK, /* hot for as long as this server lives: the image may have lost it */
};

struct varve_intent {
    struct varve_world *w;
    const struct varve_paths *p;
    uint8_t uuid[16];
    struct varve_geometry g;
    uint32_t shift;
    uint64_t nregions;
    bool off; /* no log is kept: all regions are hot for ever */

    /* From COLD to hot under the lock, by who has seen the sync return; from COOLING to COLD under
     * it; other changes without. */
    _Atomic uint8_t *state;

    /* Guards all below.  Rank: a leaf; nothing slow is done under it, and never inside the gate. */
    pthread_mutex_t lock;
    pthread_cond_t committed;
    bool committing; /* somebody writes the file; only he touches fd, without the lock */
    bool failed;     /* the file is not to be believed: nobody waits for it */
    bool dropped;    /* and is gone, or has to be: it takes a new one to heal */
    bool changed;    /* want differs from the file */
    bool image_failed; /* a sync of the image has, in this boot: told to those who come later */
    bool image_doubt;  /* and nobody has acted on it yet */
    int fd;          /* -1: not open */
    uint64_t nhot;
    uint64_t written_ns;                /* realtime in the head */
    uint64_t want[VARVE_INTENT_WORDS];  /* hot, or asked for */
    uint64_t asked[VARVE_INTENT_WORDS]; /* since the last commit began */
    _Atomic uint64_t *told;             /* VARVE_CTL_INTENT_*, for readers in other processes */
};

/* Begins to use a log in memory only: off, all regions are hot and nothing is written.  told:
 * borrowed; what it says of the image stays.  NULL: no memory. */
struct varve_intent *varve_intent_new(struct varve_world *w, const struct varve_paths *p,
                                      const uint8_t uuid[16], const struct varve_geometry *g,
                                      _Atomic uint64_t *told);
void varve_intent_free(struct varve_intent *l);

/* Begins to keep it, durable when it returns, with these regions hot (NULL: all).  in_place: the
 * file there may be overwritten, half of it too; else it is replaced.  0, with l->failed if it
 * cannot be kept but is durably not there; or an error: there may be a log that is wrong. */
int varve_intent_start(struct varve_intent *l, const uint64_t *bits, bool in_place,
                       struct varve_err *err);

/* After a clean stop was made durable: the log says that nobody keeps it.  Failure costs nothing.
 */
void varve_intent_stop(struct varve_intent *l);

/* Another state than TOUCHED: hot regions are touched, and who sees COLD is told so. */
bool varve_intent_touch(struct varve_intent *l, uint64_t region);

/* For a writer inside the gate: whether the region is durably hot.  False: leave the gate, heat it,
 * enter and ask again. */
static inline bool varve_intent_is_hot(struct varve_intent *l, uint64_t off)
{
    uint64_t region = off >> l->shift;

    /* Sequentially consistent, as entering the gate was: see intent.c, rule 3. */
    return atomic_load(&l->state[region]) >= VARVE_INTENT_TOUCHED || varve_intent_touch(l, region);
}

/* Outside the gate: the region of that byte is durably hot when it returns, or the log has failed.
 * Waits for syncs, its own or another writer's. */
void varve_intent_heat(struct varve_intent *l, uint64_t off);

/* Any thread: a sync of the image has failed.  Who comes later in this boot knows it when it
 * returns. */
void varve_intent_fail_image(struct varve_intent *l);
/* Whether it has, since the host was started. */
bool varve_intent_image_failed(struct varve_intent *l);

/* --- the flusher's thread --- */

/* Whether an image that failed has to be acted on; true once for each failure, and to each server
 * that comes after one. */
bool varve_intent_take_image_doubt(struct varve_intent *l);

/* Regions that nobody has touched since the last call begin to cool; how many. */
uint64_t varve_intent_begin_cool(struct varve_intent *l);
/* All who were inside the gate have left it, bits and image are durable: those that are still
 * untouched are cold.  Or it did not come to that: they are hot as before. */
void varve_intent_end_cool(struct varve_intent *l, bool cold);
/* A sync of the image failed: what is hot stays so. */
void varve_intent_stick(struct varve_intent *l);
/* The file tells what has become cold, and that we live; tries to heal a log that failed.  An error
 * means that it has failed, or still does. */
int varve_intent_flush(struct varve_intent *l, struct varve_err *err);

/* Whether the log is kept, so that its time is the disk's heartbeat.  Any thread. */
bool varve_intent_is_kept(struct varve_intent *l);

/* Whether the log says, or is about to say, that the region is hot.  For tests and queries. */
bool varve_intent_wants(struct varve_intent *l, uint64_t region);

#endif
