/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Backups: begun at one boundary over their disks, served as exports, ended.  The catalogue says
 * what there is; this is what runs for the open ones.  For the clerk's thread.  It never frees a
 * view somebody still reads, and never says that a backup has ended before that is durable.
 */
#ifndef VARVE_SERVER_BACKUP_H
#define VARVE_SERVER_BACKUP_H

#include "lib/catalogue.h"
#include "lib/qmp.h"
#include "server/changes.h"
#include "server/daemon.h"
#include "server/disk.h"
#include "server/transaction.h"
#include "server/served-view.h"
#include "server/view-export.h"

/* Counters over the exports of one of its disks. */
struct varve_backup_counts {
    unsigned clients;
    uint64_t bytes_read, requests, errors;
    uint64_t scratch_bytes, lost_bytes, released_bytes;
    uint64_t last_client_ns;
};

struct varve_backup_disk {
    struct varve_backup *backup;
    struct varve_disk *disk;
    uint64_t view;
    struct varve_served_view *served; /* our reference; NULL once it was dropped */
    struct varve_changes *changes;
    struct varve_view_export *exports; /* our references */
    struct varve_backup_counts past;   /* of extra exports that were deleted */
    bool gone; /* nobody reads the view any more; guarded by the daemon's views_lock */
};

struct varve_backup {
    struct varve_backup *next;
    struct varve_daemon *daemon;
    char id[VARVE_NAME_MAX + 1];
    uint64_t since_ns; /* monotonic: from when its time to live runs while no client comes */
    bool withdrawn;    /* it has ended: kept only until the last reader has gone */
    bool degraded;     /* said so */
    bool release, preserve_dirty; /* as in the catalogue */
    struct varve_throttle *throttle; /* our reference; NULL: none */
    size_t ndisks;
    struct varve_backup_disk disks[];
};

/* What backup-begin was asked for. */
struct varve_backup_plan {
    char id[VARVE_NAME_MAX + 1];         /* empty: choose one */
    char checkpoint[VARVE_NAME_MAX + 1]; /* empty: none */
    uint64_t ttl_s;
    bool release, preserve_dirty;
    bool freeze; /* run the freeze hook around the boundary */
    uint64_t speed; /* bytes per second; 0: no limit */
    bool adaptive;
    bool push; /* it is for a job of the daemon: without exports */
    size_t ndisks;
    struct varve_plan_disk {
        struct varve_disk *disk;
        char since[VARVE_NAME_MAX + 1]; /* these two empty: full */
        char bitmap[VARVE_BITMAP_NAME_MAX + 1];
        enum varve_bitmap_mode mode; /* of bitmap */
        char export[VARVE_NAME_MAX + 1];
        char exportbitmap[VARVE_BITMAP_NAME_MAX + 1];
    } * disks;
};

/* The argument `disks` of backup-begin.  free() plan->disks in either case.  The daemon's disks
 * were refreshed. */
int varve_backup_parse_disks(struct varve_daemon *d, json_t *args, struct varve_backup_plan *plan,
                             struct varve_err *err);
/* One of its objects. */
int varve_backup_parse_disk(struct varve_daemon *d, json_t *o, struct varve_plan_disk *pd,
                            struct varve_err *err);

/* ORs what changed since the disk's base as of now, where `live` is its live epoch; without a base
 * it is everything. */
int varve_backup_estimate_map(struct varve_daemon *d, const struct varve_plan_disk *pd,
                              uint64_t live, struct varve_bitmap *map, struct varve_err *err);

/* What the disk's backup would be based on: the changes since `since`, or `bitmap`, which must be
 * there and usable; empty for a full backup.  *granularity: of the bitmap, else 0.  The set is the
 * caller's to clear. */
int varve_backup_plan_base(const struct varve_catalogue *c, const struct varve_plan_disk *pd,
                           struct varve_change_set *set, uint64_t *granularity,
                           struct varve_err *err);

/* All arguments of backup-begin.  free() plan->disks in either case. */
int varve_backup_parse_plan(struct varve_daemon *d, json_t *args, struct varve_backup_plan *plan,
                            struct varve_err *err);

/* The action backup-begin with these arguments; data is the caller's to keep as long. */
int varve_backup_begin_push(struct varve_daemon *d, json_t *data, struct varve_action **out,
                            struct varve_err *err);
/* Its id, once it was applied. */
const char *varve_backup_begin_id(const struct varve_action *a);
/* The only one of its disks. */
const struct varve_plan_disk *varve_backup_begin_disk(const struct varve_action *a);

/* What backup-begin returns of it. */
json_t *varve_backup_begun(const struct varve_cat_backup *cb);

/* What an end does to the draft, after all checks: for who commits it with something else.  reason
 * as below.  -EINVAL: it cannot succeed; the draft is spoilt then. */
int varve_backup_draft_end(struct varve_daemon *d, struct varve_catalogue *draft, const char *id,
                           bool success, const char *reason, struct varve_err *err);
/* After that commit. */
void varve_backup_ended(struct varve_daemon *d, const char *id);

/* Ends it; the same end again is no error.  reason: why it failed, "" if asked to. */
int varve_backup_end(struct varve_daemon *d, const char *id, bool success, const char *reason,
                     struct varve_err *err);

/* After a start: the catalogue's open backups are served again, or failed. */
void varve_backups_restore(struct varve_daemon *d);

/* Later: the same with those that could neither go on then nor be noted as failed. */
void varve_backups_restore_rest(struct varve_daemon *d);

/* Looks whether any broke, lost something, or outlived its time; frees what readers have left. */
void varve_backups_tick(struct varve_daemon *d);

/* The open or lingering backup of that id, or NULL. */
struct varve_backup *varve_backups_find(struct varve_daemon *d, const char *id);

/* All exports go; the catalogue stays as it is. */
void varve_backups_fini(struct varve_daemon *d);

/* Of all exports of one of its disks, of those, too, that were deleted. */
void varve_backup_count(const struct varve_backup_disk *bd, struct varve_backup_counts *n);

/* --- between backup*.c ---------------------------------------------------------------------- */

/* Exports for backup `cb` of catalogue c, not yet published.  changes[i] (references are taken
 * over, also on failure) are those of disk i; sources must be open. */
int varve_backup_new(struct varve_daemon *d, const struct varve_catalogue *c,
                     const struct varve_cat_backup *cb, struct varve_disk **disks,
                     struct varve_changes **changes, struct varve_backup **out,
                     struct varve_err *err);
int varve_backup_publish(struct varve_backup *b, struct varve_err *err);
/* Makes what bd->exports has to hold; bd->served is there.  After a failure some may be in it. */
int varve_backup_disk_exports(struct varve_backup_disk *bd, const struct varve_catalogue *c,
                              const struct varve_cat_backup_disk *cbd, struct varve_err *err);

/* The base of that name, a checkpoint or else a bitmap, for an export of cbd: *set is the caller's to
 * clear, *granularity 0 for a checkpoint.  -ENOENT, -EBUSY, -EINVAL: it cannot be one.  It looks at
 * no epoch. */
int varve_backup_find_base(const struct varve_catalogue *c, const struct varve_cat_backup_disk *cbd,
                           const char *name, struct varve_change_set *set, uint64_t *granularity,
                           struct varve_err *err);
/* The export of e, of cbd, with one reference; not in bd->exports, not published. */
int varve_backup_extra_new(struct varve_backup_disk *bd, const struct varve_catalogue *c,
                           const struct varve_cat_backup_disk *cbd, const struct varve_cat_extra *e,
                           struct varve_view_export **out, struct varve_err *err);
/* Publishes what varve_backup_extra_new made, whose reference is taken over.  Its name is free. */
void varve_backup_extra_publish(struct varve_backup_disk *bd, struct varve_view_export *x);
/* Takes it back: clients are disconnected. */
void varve_backup_extra_withdraw(struct varve_backup_disk *bd, struct varve_view_export *x);
/* Frees one that was never published. */
void varve_backup_discard(struct varve_backup *b);
/* Takes the exports back and waits a little for readers to leave. */
void varve_backup_withdraw(struct varve_backup *b);
/* Ends views of the disk that neither an open backup nor a reader has. */
void varve_backups_end_stray_views(struct varve_disk *disk);

/* What a disk of a backup is based on; *set is the caller's to clear.  It is empty, too, for a full
 * backup.  -ENOMEM */
int varve_backup_base(const struct varve_catalogue *c, const struct varve_cat_backup_disk *cbd,
                      struct varve_change_set *set);
static inline bool varve_backup_is_full(const struct varve_cat_backup_disk *cbd)
{
    return cbd->base == 0 && !cbd->bitmap;
}

/* reason is cut and made plain ASCII, as the catalogue must be able to keep it. */
void varve_backup_set_reason(struct varve_cat_backup *cb, const char *reason);

#endif
