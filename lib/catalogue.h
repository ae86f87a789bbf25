/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the daemon must remember: the checkpoints of all disks and the backups, running and ended.
 * One record for the whole state directory, so that a change over several disks is one commit (I9).
 * One thread at a time.  It decides nothing: it keeps, finds, and refuses what contradicts itself.
 *
 * To change it: clone, change the clone, commit the clone; then the old one is freed, or the clone
 * where the commit failed.
 */
#ifndef VARVE_LIB_CATALOGUE_H
#define VARVE_LIB_CATALOGUE_H

#include "include/varve.h"
#include "lib/change-set.h"
#include "lib/err.h"
#include "lib/world.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* 2: there are bitmaps, whose epochs an older version would free.  3: checkpoints may have blocks
 * that no epoch tells, and boundaries are kept for exported ones.  4: there are jobs, whose boundaries
 * an older version would free.  Catalogues of all older formats are read. */
#define VARVE_CATALOGUE_FORMAT 4u

/* Ended backups that are kept for queries, beside the newest of each disk that ended well. */
#define VARVE_CATALOGUE_ENDED_MAX 100u
/* The same of jobs. */
#define VARVE_CATALOGUE_JOBS_MAX 100u

struct varve_cat_checkpoint {
    char name[VARVE_NAME_MAX + 1];
    char backup[VARVE_NAME_MAX + 1]; /* id of the backup whose boundary it names; empty: none */
    uint64_t time_ns;                /* since 1970; equal for what one command made */
    uint64_t epoch;                  /* the first after the boundary */
    /* Imported when its own boundary was gone: `epoch` is a later one, what was written between the
     * two is in the file of explicit blocks (if anything was), and `made` is the first epoch after
     * its own.  made 0: it has its own. */
    uint64_t made;
    bool has_blocks;
    uint8_t blocks[VARVE_DIGEST_LEN]; /* of lib/blocks-file.h */
    /* What counts as dirty since it although no epoch says so: its backup answered errors there. */
    struct varve_cat_range *heal;
    size_t nheal;
};

/* An exported checkpoint: a file somewhere (lib/checkpoint-file.h) can be imported as long as the
 * boundary up to which it knows is kept, whatever becomes of the checkpoint. */
struct varve_cat_export {
    char name[VARVE_NAME_MAX + 1]; /* of the checkpoint */
    uint64_t time_ns;              /* of the checkpoint, since 1970 */
    uint64_t exported_ns;          /* when it was exported first, the same */
    uint64_t made;                 /* the first epoch after the checkpoint; with `name` it tells one */
    uint64_t known;                /* the first after the boundary that is kept */
};

/* Of one disk: each keeps a map of the disk from being merged. */
#define VARVE_CATALOGUE_EXPORTS_MAX 100u

/* Bytes of a bitmap's granularity: a power of two within these. */
#define VARVE_BITMAP_GRANULARITY_MIN UINT64_C(512)
#define VARVE_BITMAP_GRANULARITY_MAX (UINT64_C(1) << 31)

/* A dirty bitmap as QEMU has them.  It records while its set's last span is open. */
struct varve_cat_bitmap {
    char *name;           /* 1 to VARVE_BITMAP_NAME_MAX bytes of UTF-8, owned */
    uint64_t granularity; /* bytes, as its readers see it; not less than a block */
    bool transient;       /* goes when the daemon ends */
    /* The first boundary at which it had what it has now, but for what was added: from then on
     * nobody made, cleared or moved it.  0: not known. */
    uint64_t since;
    struct varve_change_set set;
};

struct varve_cat_disk {
    uint8_t uuid[16];
    char name[VARVE_NAME_MAX + 1];            /* as it was last seen */
    /* The first epoch after the newest boundary that was ever named, and its birth id (zero: it has
     * none).  0: of older catalogues. */
    uint64_t newest;
    uint8_t birth[16];
    struct varve_cat_checkpoint *checkpoints; /* oldest first */
    size_t ncheckpoints;
    struct varve_cat_bitmap *bitmaps; /* in the order in which they were made */
    size_t nbitmaps;
    struct varve_cat_export *exports; /* in the order in which they were made */
    size_t nexports;
};

enum varve_cat_backup_state {
    VARVE_BACKUP_RUNNING,
    VARVE_BACKUP_BROKEN, /* not ended, but no longer readable */
    VARVE_BACKUP_COMPLETED,
    VARVE_BACKUP_FAILED,
};

/* What becomes of a backup's bitmap at its end. */
enum varve_bitmap_mode {
    VARVE_BITMAP_ON_SUCCESS, /* moves to the backup's boundary if that has succeeded */
    VARVE_BITMAP_NEVER,      /* stays as it is */
    VARVE_BITMAP_ALWAYS,     /* as on success; else what was copied leaves it */
};

/* As users write it. */
const char *varve_bitmap_mode_name(enum varve_bitmap_mode mode);

/* An extra export of a backup's disk: the same bytes, with another base's changes. */
struct varve_cat_extra {
    char id[VARVE_NAME_MAX + 1];
    char name[VARVE_NAME_MAX + 1]; /* of the export */
    char *description;             /* owned; NULL: as other exports have */
    char *base; /* a checkpoint's or bitmap's name, owned; NULL: the backup's own base */
    uint64_t granularity; /* with base only, as is the set; 0: the base is a checkpoint */
    struct varve_change_set set; /* the base's, as it was when the export was added */
};

/* Of one disk of a backup: each keeps the epochs that it tells of. */
#define VARVE_CATALOGUE_EXTRAS_MAX 64u

/* An export's description, in bytes (what NBD's strings may have). */
#define VARVE_DESCRIPTION_MAX 4096u

struct varve_cat_backup_disk {
    uint8_t uuid[16];
    char disk[VARVE_NAME_MAX + 1];
    /* What it is based on: a checkpoint, a bitmap, or nothing, for a full backup. */
    char since[VARVE_NAME_MAX + 1]; /* checkpoint; may be empty */
    char *bitmap;                   /* owned; may be NULL */
    enum varve_bitmap_mode mode;    /* with bitmap only, as are the next two */
    uint64_t granularity;
    struct varve_change_set
        set; /* the bitmap's; what it has from behind the boundary is not meant */
    char export[VARVE_NAME_MAX + 1];
    char *exportbitmap; /* bitmap name, owned */
    uint64_t view;      /* id in the disk's control page */
    uint64_t base;      /* first epoch after `since`; 0: there is no `since` */
    uint64_t boundary;  /* first epoch after the backup's instant */
    uint64_t dirty_bytes;
    uint64_t bytes_read; /* by clients, once it has ended */
    uint64_t bytes_released; /* the same */
    struct varve_cat_extra *extras; /* oldest first; none once it has ended */
    size_t nextras;
};

struct varve_cat_backup {
    char id[VARVE_NAME_MAX + 1];
    char checkpoint[VARVE_NAME_MAX + 1]; /* made at its boundary; empty: none */
    enum varve_cat_backup_state state;
    uint64_t time_ns, ended_ns; /* since 1970; ended 0: not yet */
    uint64_t ttl_s;             /* seconds; 0: none */
    bool release;               /* its exports take TRIM */
    bool preserve_dirty;        /* nothing is kept of what is not dirty */
    uint64_t speed;             /* bytes per second that clients may read; 0: no limit */
    bool adaptive;              /* and less while the guest's writes are slow */
    char reason[256];           /* why it broke or failed; may be empty */
    struct varve_cat_backup_disk *disks;
    size_t ndisks;
};

enum varve_cat_job_state {
    VARVE_JOB_RUNNING,
    VARVE_JOB_ABORTING, /* runs, but was told to end: it is not taken up again */
    VARVE_JOB_COMPLETED,
    VARVE_JOB_FAILED,
    VARVE_JOB_CANCELLED,
};

/* Long work of the daemon (server/job.h), with what is needed to begin it again. */
struct varve_cat_job {
    char id[VARVE_NAME_MAX + 1];
    char type[16]; /* a name, as queries say it */
    enum varve_cat_job_state state;
    char *args;       /* of the command that began it, a JSON object, owned; NULL once it has ended */
    uint8_t uuid[16]; /* of the disk */
    char disk[VARVE_NAME_MAX + 1];
    char *bitmap;                    /* that it fills, owned; NULL: none */
    char backup[VARVE_NAME_MAX + 1]; /* that it copies; empty: none */
    uint64_t start;                  /* the first epoch after its boundary */
    uint64_t speed;                  /* bytes per second; 0: no limit */
    bool paused;                     /* nothing of it begins until somebody says so */
    uint64_t time_ns, ended_ns;      /* since 1970; ended 0: not yet */
    uint64_t current, total;         /* bytes; while it runs, current is from where it can go on */
    char proof[128];                 /* if it looks at this again and finds the same; may be empty */
    bool has_blocks;                 /* what it found before that, */
    uint8_t blocks[VARVE_DIGEST_LEN]; /* in a file of lib/blocks-file.h */
    char error[256];                 /* why it failed; may be empty */
};

struct varve_catalogue {
    uint64_t next_backup; /* number in the next id that we choose */
    uint64_t next_job;    /* the same */
    struct varve_cat_disk *disks;
    size_t ndisks;
    struct varve_cat_backup *backups; /* oldest first */
    size_t nbackups;
    struct varve_cat_job *jobs; /* oldest first */
    size_t njobs;
};

struct varve_catalogue *varve_catalogue_new(void);
struct varve_catalogue *varve_catalogue_clone(const struct varve_catalogue *c);
void varve_catalogue_free(struct varve_catalogue *c);

/* NULL: there is none.  Pointers hold until something is added to or removed from the same list. */
struct varve_cat_disk *varve_catalogue_disk(const struct varve_catalogue *c,
                                            const uint8_t uuid[16]);
struct varve_cat_checkpoint *varve_catalogue_checkpoint(const struct varve_cat_disk *d,
                                                        const char *name);
struct varve_cat_bitmap *varve_catalogue_bitmap(const struct varve_cat_disk *d, const char *name);
struct varve_cat_backup *varve_catalogue_backup(const struct varve_catalogue *c, const char *id);

struct varve_cat_job *varve_catalogue_job(const struct varve_catalogue *c, const char *id);
/* The open job that fills the disk's bitmap of that name, be there one already or not.  NULL: none. */
struct varve_cat_job *varve_catalogue_job_of_bitmap(const struct varve_catalogue *c,
                                                    const uint8_t uuid[16], const char *bitmap);

/* The open job that copies the backup; NULL: there is none, its clients do. */
struct varve_cat_job *varve_catalogue_job_of_backup(const struct varve_catalogue *c, const char *id);

/* Neither completed nor failed. */
bool varve_cat_backup_open(const struct varve_cat_backup *b);
/* Running or aborting. */
bool varve_cat_job_open(const struct varve_cat_job *j);

/* Adds the disk if it is new, and notes its name.  NULL: no memory. */
struct varve_cat_disk *varve_catalogue_add_disk(struct varve_catalogue *c, const uint8_t uuid[16],
                                                const char *name);
/* Forgets the disk's checkpoints and bitmaps; false: there is no such disk. */
bool varve_catalogue_remove_disk(struct varve_catalogue *c, const uint8_t uuid[16]);
/* -EEXIST: the disk has one of that name.  -ENOMEM */
int varve_catalogue_add_checkpoint(struct varve_cat_disk *d, const char *name, const char *backup,
                                   uint64_t time_ns, uint64_t epoch, struct varve_err *err);
/* false: there is none. */
bool varve_catalogue_remove_checkpoint(struct varve_cat_disk *d, const char *name);
/* The first epoch after the checkpoint's own boundary. */
static inline uint64_t varve_cat_checkpoint_made(const struct varve_cat_checkpoint *p)
{
    return p->made ? p->made : p->epoch;
}
/* NULL: the checkpoint of that name and boundary was not exported, or that was given up. */
struct varve_cat_export *varve_catalogue_export(const struct varve_cat_disk *d, const char *name,
                                                uint64_t made);
/* Takes the place of the one of that name and boundary, if there is one.  -ENOSPC: the disk has
 * VARVE_CATALOGUE_EXPORTS_MAX.  -ENOMEM */
int varve_catalogue_add_export(struct varve_cat_disk *d, const struct varve_cat_export *e,
                               struct varve_err *err);
/* Removes all of that name (whose checkpoint's boundary is `made`, unless that is 0); returns how
 * many. */
size_t varve_catalogue_remove_exports(struct varve_cat_disk *d, const char *name, uint64_t made);
/* An empty bitmap that records nothing.  -EEXIST: the disk has one of that name.  -ENOMEM */
int varve_catalogue_add_bitmap(struct varve_cat_disk *d, const char *name, uint64_t granularity,
                               struct varve_cat_bitmap **out, struct varve_err *err);
/* false: there is none. */
bool varve_catalogue_remove_bitmap(struct varve_cat_disk *d, const char *name);
/* Forgets the transient bitmaps of all disks, but those that an open job fills; false: there was none. */
bool varve_catalogue_remove_transient(struct varve_catalogue *c);
/* A zeroed backup of that id with room for ndisks zeroed disks.  NULL: no memory. */
struct varve_cat_backup *varve_catalogue_add_backup(struct varve_catalogue *c, const char *id,
                                                    size_t ndisks);
/* The extra export of that id, and the open backup's disk that has it.  NULL: there is none. */
struct varve_cat_extra *varve_catalogue_extra(const struct varve_catalogue *c, const char *id,
                                              struct varve_cat_backup_disk **of);
/* A zeroed one of that id and name.  NULL: no memory. */
struct varve_cat_extra *varve_catalogue_add_extra(struct varve_cat_backup_disk *d, const char *id,
                                                  const char *name);
void varve_catalogue_remove_extra(struct varve_cat_backup_disk *d, struct varve_cat_extra *e);
/* All of its disks. */
void varve_catalogue_remove_extras(struct varve_cat_backup *b);
/* Forgets those of the ended backups beyond VARVE_CATALOGUE_ENDED_MAX that ended first; not the
 * newest of a known disk that ended well. */
void varve_catalogue_trim(struct varve_catalogue *c);
/* A zeroed job of that id and type.  NULL: no memory. */
struct varve_cat_job *varve_catalogue_add_job(struct varve_catalogue *c, const char *id,
                                              const char *type);
/* false: there is none. */
bool varve_catalogue_remove_job(struct varve_catalogue *c, const char *id);
/* Forgets those of the ended jobs beyond VARVE_CATALOGUE_JOBS_MAX that ended first. */
void varve_catalogue_trim_jobs(struct varve_catalogue *c);

/* Forgets all backups and jobs. */
void varve_catalogue_drop_work(struct varve_catalogue *c);

/* As JSON text; free() it.  NULL: no memory. */
char *varve_catalogue_dump(const struct varve_catalogue *c);
/* -EUCLEAN: the text is not what dump makes. */
int varve_catalogue_parse(const char *text, struct varve_catalogue **out, struct varve_err *err);

/* --- on disk: STATE/catalogue-0 and -1 (lib/slot-file.h) ------------------------------------ */

struct varve_catalogue_store;

/* Opens STATE's catalogue, made empty if there is none, and locks it.  *c is the caller's to free.
 * -EBUSY, -ENOTSUP, -EUCLEAN: as varve_slot_file_open. */
int varve_catalogue_open(struct varve_world *w, const char *state_dir,
                         struct varve_catalogue_store **out, struct varve_catalogue **c,
                         struct varve_err *err);
void varve_catalogue_close(struct varve_catalogue_store *s);

/* Durable when it returns 0; after an error what was committed before still holds. */
int varve_catalogue_commit(struct varve_catalogue_store *s, const struct varve_catalogue *c,
                           struct varve_err *err);

#endif
