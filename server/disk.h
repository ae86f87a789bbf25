/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A disk as the daemon sees it: a folder of the state directory, its plugin's link while one serves
 * it, and the open files that views are read from.  For the clerk's thread, but for what says "any
 * thread".  It never writes to a disk, and never holds one locked longer than a boundary takes.
 *
 * Disks are never freed before the daemon ends, so that exports may point to them.
 */
#ifndef VARVE_SERVER_DISK_H
#define VARVE_SERVER_DISK_H

#include "include/varve.h"
#include "lib/change-set.h"
#include "lib/identity.h"
#include "lib/timeline.h"
#include "lib/view.h"
#include "server/clerk.h"
#include "server/daemon.h"
#include "server/dirt-rate.h"
#include "server/peer.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

enum varve_disk_state {
    VARVE_DISK_UNKNOWN, /* not looked at yet */
    VARVE_DISK_LIVE,
    VARVE_DISK_OFFLINE,
    VARVE_DISK_INCONSISTENT,
    VARVE_DISK_MISSING,
};

struct varve_release;

struct varve_disk {
    struct varve_disk *next;
    struct varve_daemon *daemon;

    /* constant once known is true; any thread may read them then */
    char name[VARVE_NAME_MAX + 1];
    struct varve_paths paths;
    struct varve_identity identity; /* identity.resize is the clerk's own */
    bool known; /* the identity was read */

    bool gone;   /* its folder is no longer there, or is another disk's now */
    bool renewed; /* and it does not come back */
    bool seen;   /* by the scan under way */
    bool untidy; /* a transaction under way leaves something to free */
    enum varve_disk_state state;
    char reason[480];     /* why it is in that state; may be empty */
    char degraded[384];   /* what does not work although it is served; may be empty */
    char link_error[256]; /* why its plugin, if there is one, is not asked */
    bool private;         /* its plugin says that there is nothing to be read and asked */

    struct varve_peer *peer; /* NULL: nobody serves it, or nobody that answers */
    int plugin_pid;
    unsigned freeze_timeout_ms;
    bool durable; /* as the last plugin said; true before there was one */
    uint64_t scratch_max;
    bool scratch_over_max, scratch_over_fs; /* said so; see varve_disk_note_scratch */
    uint64_t retry_ns; /* monotonic: not asked again before */
    struct varve_dirt_rate dirt;

    struct varve_source *source; /* NULL: there is no control page */
    int ctl_fd;                  /* the page that source reads; -1 */
    struct stat image;           /* of the file or device that source reads */
    _Atomic bool older; /* its folder came back from an older copy, and its server does not know; any thread */
    bool starved; /* the last look lacked memory or descriptors for something */
    _Atomic unsigned images;     /* how often another came in its place; any thread may look */
    bool doubt_noted;            /* that it is older stands in it */
    bool image_said;             /* why a change of it cannot be written down was logged */
    /* Nobody serves it and its time was this, while the page's server was that; any thread. */
    _Atomic bool still;
    _Atomic int64_t still_mtime_ns;
    _Atomic uint64_t still_incarnation;

    /* Tidying against computing unions.  Rank: taken before any other lock. */
    pthread_mutex_t timeline_lock;

    /* Reads that met an epoch we have no files of wait for the clerk. */
    pthread_mutex_t fetch_lock; /* guards the two below; rank: a leaf */
    pthread_cond_t fetched;
    uint64_t fetches; /* done so far */
    bool fetch_posted;
    struct varve_job fetch_job;

    /* Ranges that clients released wait for the clerk, too; the same lock and condition. */
    struct varve_release *releases;
    uint64_t held_ns; /* the clerk's own: how long it had the lock of a disk that is offline for them */
    bool release_posted;
    struct varve_job release_job;
};

const char *varve_disk_state_name(enum varve_disk_state state);

/* The disk in folder `name` of the state directory.  NULL: no memory. */
struct varve_disk *varve_disk_new(struct varve_daemon *d, const char *name);
void varve_disk_free(struct varve_disk *disk);

/* Looks what became of it: plugin come or gone, files to open, epochs to fetch, state. */
void varve_disk_refresh(struct varve_disk *disk);

/* Opens the control page if that was not possible before; what a boundary on an offline disk needs
 * after it has been attached. */
int varve_disk_open_source(struct varve_disk *disk, struct varve_err *err);

/* Gets the files of all epochs from `first` to the live one that the source does not have. */
int varve_disk_fetch_epochs(struct varve_disk *disk, uint64_t first, struct varve_err *err);

/* Any thread but the clerk's: has the clerk fetch missing epochs and waits for it, until the
 * monotonic clock says deadline_ns at most.  -ETIMEDOUT */
int varve_disk_wait_epochs(struct varve_disk *disk, uint64_t deadline_ns);

/* The oldest boundary of the open backups on the disk; UINT64_MAX: there is none. */
uint64_t varve_disk_oldest_view(struct varve_disk *disk);

/* The live epoch's number: from the control page, else the newest in the timeline.  0: unknown. */
uint64_t varve_disk_live_epoch(struct varve_disk *disk);

/* ORs the set as it was at the boundary before epoch `end` (that and all before it are sealed) into
 * `into`, but for what it has from before epoch `from`; 0: all of it.  Both are boundaries.  Any
 * thread.  into NULL: looks only whether all files are there.  -EUCLEAN: one is missing or damaged,
 * err names it. */
int varve_disk_union(struct varve_disk *disk, const struct varve_change_set *set, uint64_t from,
                     uint64_t end, struct varve_bitmap *into, struct varve_err *err);
/* Any thread. */
void varve_disk_or_ranges(struct varve_disk *disk, const struct varve_cat_range *ranges, size_t n,
                          struct varve_bitmap *into);
/* ORs what was written in the live epoch so far. */
int varve_disk_or_live(struct varve_disk *disk, struct varve_bitmap *into, struct varve_err *err);
/* The same; but where its map is gone with its server, that is every block, as a boundary will find
 * it (I7). */
int varve_disk_or_live_all(struct varve_disk *disk, struct varve_bitmap *into,
                           struct varve_err *err);
/* Bytes of that.  On error they are 0. */
int varve_disk_live_dirty(struct varve_disk *disk, uint64_t *bytes);

/* Once a second: counts for disk->dirt, when that is due. */
void varve_disk_note_dirt(struct varve_disk *disk);

/* Bytes of preimages that are kept now: those of the epochs since the oldest open view. */
uint64_t varve_disk_scratch_used(struct varve_disk *disk, uint64_t live);
/* Once a second: sends SCRATCH_THRESHOLD when what is kept passes 80 % of scratch-max, or the file
 * system it is kept in is that full while something is; once until it has been below. */
void varve_disk_note_scratch(struct varve_disk *disk);
/* Once a second: where no plugin does it, frees a little of big scratch files nobody needs any more. */
void varve_disk_reap_scratch(struct varve_disk *disk);
/* Bytes that more preimages could take. */
uint64_t varve_disk_scratch_free(struct varve_disk *disk, uint64_t live);

/* --- disk-older.c --- */

/* The boundary before `epoch` is named from now on: notes it in the catalogue's disk. */
void varve_disk_note_newest(struct varve_disk *disk, uint64_t epoch, struct varve_cat_disk *cd);
/* Looks whether the folder knows what the catalogue has named, and if not, sees to it that whoever
 * takes the disk next doubts it; nobody serves it: does so at once. */
void varve_disk_check_folder(struct varve_disk *disk);
/* Where it is so: sets the error, which says what to do; -EUCLEAN.  Any thread. */
int varve_disk_check_older(struct varve_disk *disk, struct varve_err *err);

/* --- disk-trouble.c --- */

/* What its server, if there is one, cannot do now; empty: nothing. */
void varve_disk_trouble(struct varve_disk *disk, char *text, size_t size);
/* -VARVE_LINK_PRIVATE if nothing can be read or asked because its server says so. */
int varve_disk_refuse_private(struct varve_disk *disk, struct varve_err *err);

/* --- disk-image.c --- */

/* Takes the disk, which nobody serves, for a moment, which writes down what is found. */
void varve_disk_note_change(struct varve_disk *disk);

/* Of a disk that nobody serves: looks whether somebody else wrote to the image; if so, that is made
 * durable, and its views end. */
void varve_disk_check_image(struct varve_disk *disk);
/* Any thread, after a read of the source's image: -ESTALE: somebody else wrote to it. */
int varve_disk_check_still(struct varve_disk *disk, struct varve_source *source,
                           struct varve_err *err);
/* Of a disk that nobody serves, whose resize was begun and not finished: finishes it; true: its folder may
 * tell another size now. */
bool varve_disk_finish_resize(struct varve_disk *disk);
/* Of such a disk, or one whose image has another size than it: says so.  false: neither. */
bool varve_disk_size_differs(struct varve_disk *disk, const struct stat *image, char *why,
                             size_t size);
/* What the last doubt was about, if it was found at `since_ns` or later. */
bool varve_disk_doubt(struct varve_disk *disk, uint64_t since_ns, char *text, size_t size);
/* Sets the error for who needs what was written before it; -EUCLEAN.  Any thread. */
int varve_disk_say_doubt(struct varve_disk *disk, struct varve_err *err);
/* Nothing is named since, so that everything that is named cannot be used. */
bool varve_disk_is_doubted(struct varve_disk *disk, char *why, size_t size);

/* Frees and merges what no checkpoint, bitmap, export or open backup of the catalogue needs. */
void varve_disk_tidy(struct varve_disk *disk);

/* Bytes of the blocks in the map: the last block counts what it has. */
uint64_t varve_dirty_bytes(const struct varve_geometry *g, const struct varve_bitmap *map);

/* --- all disks ------------------------------------------------------------------------------ */

/* Looks for new folders, and refreshes every disk. */
void varve_disks_refresh(struct varve_daemon *d);

/* -ENODEV: no such disk; -EIO: it cannot be used, err says why. */
int varve_disks_find(struct varve_daemon *d, const char *name, struct varve_disk **out,
                     struct varve_err *err);
/* Its folder is not the disk's any more, or another identity is in it: the object stays for who reads
 * it, and the next refresh makes another. */
void varve_disks_renew(struct varve_disk *disk);
/* Removes what a daemon that died left of a disk that was to be forgotten. */
void varve_disks_finish_forgetting(struct varve_daemon *d);
/* Whether a disk, or that there is one, was not seen as it is for want of memory or descriptors. */
bool varve_disks_starved(const struct varve_daemon *d);

struct varve_disk *varve_disks_by_uuid(struct varve_daemon *d, const uint8_t uuid[16]);

#endif
