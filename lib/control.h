/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The control page of a disk: what its server (plugin, or daemon for an offline disk) tells readers
 * in other processes through shared memory.  One file in the disk's runtime folder, never replaced
 * while anyone may hold it; only the process that has the disk's lock writes it.  Readers never map
 * it: they pread copies (a peer that truncates its file then costs an error, not a SIGBUS).
 *
 * Layout: native byte order (it never leaves the host), all fields naturally aligned.
 */
#ifndef VARVE_LIB_CONTROL_H
#define VARVE_LIB_CONTROL_H

#include "lib/err.h"
#include "lib/world.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdint.h>

#define VARVE_CTL_MAGIC  UINT64_C(0x314c544356524156) /* "VARVCTL1" */
#define VARVE_CTL_LAYOUT 1u
/* While an open view has a done map: who does not know of them would read what is gone. */
#define VARVE_CTL_LAYOUT_DONE 2u

/* Epochs that readers may need at once: those since the oldest open view, and the next one. */
#define VARVE_CTL_EPOCHS 1024u
#define VARVE_CTL_VIEWS  64u

/* The word `now`: the live epoch's number, and whether a boundary is being made. */
#define VARVE_NOW_QUIESCE    UINT64_C(1)
#define VARVE_NOW_EPOCH(now) ((now) >> 1)

enum varve_epoch_flag {
    VARVE_EPOCH_ENTERED = 1, /* writers have been let in; without it the number was never used */
    VARVE_EPOCH_ARMED = 2,   /* preserves, since its first write */
    VARVE_EPOCH_BROKEN = 4,  /* preimages can no longer be believed: views that need it are broken */
    /* Why it is broken; for messages only. */
    VARVE_EPOCH_GAVE_WAY = 8,    /* the guest needed the space */
    VARVE_EPOCH_BAD_SCRATCH = 16, /* what was kept did not all come to the device */
};

/* The word `intent`: how many regions are in the intent log, and how it is. */
#define VARVE_CTL_INTENT_REGIONS UINT64_C(0xffffffff)
/* A sync of the image has failed in this boot: what is in the log stays there, whoever serves it. */
#define VARVE_CTL_IMAGE_FAILED   (UINT64_C(1) << 61)
#define VARVE_CTL_INTENT_KEPT    (UINT64_C(1) << 62) /* it tells what a crash of the host would cost */
#define VARVE_CTL_INTENT_FAILED  (UINT64_C(1) << 63) /* it cannot be written: then all would be dirty */

/* The word `served`: whether a server has it now (a hint; the lock decides), and what it cannot do in the
 * state folder, with the error that the first of them has got. */
#define VARVE_CTL_SERVED         UINT64_C(1)
#define VARVE_CTL_NO_WITNESS     UINT64_C(2) /* note when it was there last */
#define VARVE_CTL_NO_BITS        UINT64_C(4) /* write down what was written in its epochs */
#define VARVE_CTL_NO_ROOM        UINT64_C(8) /* make the file of another epoch: so no boundary */
#define VARVE_CTL_TROUBLE        UINT64_C(14)
#define VARVE_CTL_ERRNO_SHIFT    32u

/* Slot number % VARVE_CTL_EPOCHS. */
struct varve_ctl_epoch {
    _Atomic uint64_t number; /* 0: free */
    _Atomic uint64_t flags;
    _Atomic uint64_t map_ino;     /* inode of the live map in the runtime folder */
    _Atomic uint64_t scratch_ino; /* of the scratch file; 0: none (not armed) */
    _Atomic uint64_t lost_blks;   /* blocks whose preimage could not be kept */
    _Atomic uint64_t scratch_bytes; /* preserved so far */
};

enum varve_view_state {
    VARVE_VIEW_FREE = 0,
    VARVE_VIEW_OPEN = 1,
    VARVE_VIEW_ENDED = 2, /* said before anything of it is freed */
};

struct varve_ctl_view {
    _Atomic uint64_t id; /* chosen by the daemon, unique per disk for ever, not 0 */
    _Atomic uint64_t state;
    _Atomic uint64_t boundary; /* the first epoch after it */
    _Atomic uint64_t done_ino; /* inode of its done map; 0: none, so it needs every block */
};

/* A view's done map, RUNTIME/NAME/view-ID.done: this head, then two maps of the disk's blocks.  Bits
 * are only ever set: what a view needs only shrinks.
 *   first map   not needed: nothing is kept for it any more, what was kept may be gone.  The block can
 *               be read while it was not overwritten.
 *   second map  released: it is not to be read, whatever may still be there.  Then it is not needed.
 * Whoever sets bits does so before he acts on them; who reads looks after his reads. */
struct varve_done_head {
    _Atomic uint64_t released_bytes;
    uint64_t reserved[511];
};

struct varve_ctl {
    uint64_t magic;
    uint32_t layout; /* VARVE_CTL_LAYOUT or VARVE_CTL_LAYOUT_DONE; the rest is constant */
    uint32_t shift; /* of a block */
    uint64_t size;  /* of the disk, bytes */
    uint8_t boot_id[16];
    uint8_t disk_uuid[16];

    _Atomic uint64_t now;         /* VARVE_NOW_* */
    _Atomic uint64_t incarnation; /* counts the servers that took this page over */
    _Atomic uint64_t prepared;    /* highest epoch number ever prepared; never goes back */
    _Atomic uint64_t served;      /* VARVE_CTL_SERVED and so on */

    /* counters since the page was made, for queries */
    _Atomic uint64_t preserved_bytes;
    _Atomic uint64_t lost_blks;
    _Atomic uint64_t freezes;
    _Atomic uint64_t freeze_ns_last;
    _Atomic uint64_t freeze_ns_max;
    _Atomic uint64_t freezes_failed;
    /* a sample of the guest's writes, a write counting once for each MiB it touches or begins: those
     * begun, those ended, and ns that the latter took */
    _Atomic uint64_t writes_begun;
    _Atomic uint64_t writes_ended;
    _Atomic uint64_t writes_ns;
    _Atomic uint64_t intent; /* VARVE_CTL_INTENT_*; 0 in pages of servers that know of no log */

    struct varve_ctl_view views[VARVE_CTL_VIEWS];
    struct varve_ctl_epoch epochs[VARVE_CTL_EPOCHS];
};

static_assert(sizeof(_Atomic uint64_t) == 8, "the page is read by copies");

/* A reader's copy of the head of the page, field by field the start of struct varve_ctl. */
struct varve_ctl_head {
    uint64_t magic;
    uint32_t layout, shift;
    uint64_t size;
    uint8_t boot_id[16], disk_uuid[16];
    uint64_t now, incarnation, prepared, served;
    uint64_t preserved_bytes, lost_blks, freezes, freeze_ns_last, freeze_ns_max, freezes_failed;
    uint64_t writes_begun, writes_ended, writes_ns;
    uint64_t intent;
};

struct varve_ctl_epoch_copy {
    uint64_t number, flags, map_ino, scratch_ino, lost_blks, scratch_bytes;
};

struct varve_ctl_view_copy {
    uint64_t id, state, boundary, done_ino;
};

/* Copies.  -EIO: the file is too short or is no control page; -ESTALE: it was removed (a reader must
 * not believe it any more). */
int varve_ctl_read_head(struct varve_world *w, int fd, struct varve_ctl_head *head,
                        struct varve_err *err);
int varve_ctl_read_epochs(struct varve_world *w, int fd, uint64_t first, uint64_t last,
                          struct varve_ctl_epoch_copy *out /* last - first + 1 */,
                          struct varve_err *err);
int varve_ctl_read_views(struct varve_world *w, int fd,
                         struct varve_ctl_view_copy out[VARVE_CTL_VIEWS], struct varve_err *err);

#endif
