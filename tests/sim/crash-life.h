/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The life of one disk in a machine in memory (tests/lib/sim-world.h), and the plain model that it
 * is compared with.  crash-*.c share this and nobody else does; one thread.
 *
 * Two processes: the plugin, which serves the guest, and the daemon, which has the catalogue, reads
 * views, and makes boundaries itself while nobody serves the disk.  The model knows for each epoch
 * which blocks were written, for each open view what the disk held at its boundary, and for each
 * chain of backups what its appliance has.  The image's own bytes are the machine's: after a power
 * failure the disk is what is left of it.
 *
 * The disk is a few spots of some blocks with nothing between them; offsets in the model (`at`)
 * count only the spots.
 */
#ifndef VARVE_TESTS_SIM_CRASH_LIFE_H
#define VARVE_TESTS_SIM_CRASH_LIFE_H

#include "lib/catalogue.h"
#include "lib/timeline.h"
#include "lib/tracker.h"
#include "lib/view.h"
#include "tests/lib/sim-world.h"

#include <setjmp.h>

#define BLOCK      4096u
#define SPOTS      6u
#define SPOT_BLKS  4u
#define BLKS       (SPOTS * SPOT_BLKS)
#define SPOT_BYTES (SPOT_BLKS * BLOCK)
#define STRIDE     (UINT64_C(1) << 20)
#define CUT        (BLOCK - 777u) /* of the last block */
#define BYTES      (BLKS * BLOCK - CUT)
#define DISK_SIZE  ((SPOTS - 1) * STRIDE + SPOT_BYTES - CUT)
#define ALL        ((UINT32_C(1) << BLKS) - 1)

#define EPOCHS 8192u
#define VIEWS  4u
#define CHAINS 2u
#define HELD   3u
#define MAYBES 8u

#define STATE   "/state"
#define RUNTIME "/run/varve"
#define IMAGE   "/img/disk"

struct epoch {
    uint32_t written; /* blocks, by requests that are known to have begun */
    uint32_t maybe;   /* by requests whose server died */
    bool doubt;       /* it may count more as written than that */
    bool tight;       /* but only these: */
    uint32_t regions; /* blocks of regions that were in the intent log */
};

struct view {
    struct varve_view at; /* id 0: not open */
    bool chained;         /* a backup's */
    bool narrowed;
    uint32_t released, unneeded, maybe_gone; /* blocks; the last: their server died on the way */
    uint64_t faults; /* of the machine when it began: more of them may have cost it something */
    char content[BYTES];
};

struct chain {
    uint64_t base; /* the first epoch behind what the appliance has; 0: nothing */
    char copy[BYTES];
    struct view *view; /* of the backup that runs, or NULL */
    uint64_t boundary;
    bool ending; /* a commit that ends it with success may have happened */
    uint32_t dirty, pulled;
    char next[BYTES];
};

/* The catalogue's text, and what the blocks of its bitmap are. */
struct committed {
    char *text;
    uint32_t blocks;
};

struct held {
    bool on;
    uint32_t at, len;
    int byte; /* 0: punch */
    struct varve_piece piece;
};

/* What is going on, and so what may happen meanwhile. */
enum doing { NOTHING, STARTING, WRITING, CONTROLLING, READING, KEEPING };

struct life {
    struct sim sim;
    uint64_t seed, random; /* of what is done; the machine has its own */
    unsigned faulty;       /* in 100 steps that many plan a fault */
    unsigned careless;     /* of 4 servers that many have durability=process */
    enum doing doing;
    enum sim_proc doer;
    char what[160]; /* the step, for messages */

    struct varve_geometry g;
    struct varve_paths paths;
    struct varve_identity id; /* of the disk, once it has started */

    /* the disk's server */
    struct varve_tracker *t;
    enum sim_proc server;
    int image_fd; /* the plugin's, -1: none */
    struct held held[HELD];
    bool born, clean;    /* has started once; was stopped in peace and not touched since */
    uint64_t live, next; /* next: a boundary to it may have happened, 0: none */
    struct view *opening;
    bool foreign;        /* somebody else has written to the image, and who comes must find out */
    uint64_t faults_at_start;
    bool can_end; /* over is set */
    jmp_buf over; /* where to go when the life is one that the model cannot follow */
    uint64_t sealed_to; /* epochs before it are durably sealed */
    struct epoch epochs[EPOCHS];
    uint64_t next_view;
    struct view views[VIEWS];

    /* the intent log (crash-doubt.c); a spot is a region */
    bool logless;  /* nobody keeps one, or did when it was last needed */
    uint32_t hot;  /* regions that its file may have */
    uint64_t calm[SPOTS], touches[SPOTS];

    /* the daemon */
    struct varve_source *source;
    struct varve_catalogue_store *store;
    struct varve_catalogue *cat;
    struct committed now;           /* what is committed */
    struct committed maybe[MAYBES]; /* what commits that did not end, or not well, may have left */
    unsigned nmaybe;
    struct chain chains[CHAINS];

    uint64_t found_foreign;
    uint64_t tight_checks, cooled; /* an over-estimate was within less than all; looks for quiet regions */
    uint64_t kills, powers, boundaries, backups, incrementals, chain_checks, view_reads, steps;
};

/* --- crash-life.c: processes and the machine --- */

void life_begin(struct life *l, uint64_t seed);
void life_end(struct life *l);

uint64_t rnd(struct life *l, uint64_t below);
/* Ends the test: what is wrong, with the seed. */
void broken(struct life *l, const char *fmt, ...) __attribute__((format(printf, 2, 3), noreturn));
void trace(struct life *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static inline bool is_dead(struct life *l, enum sim_proc proc)
{
    return l->sim.procs[proc].dead;
}

/* No process has met more than the faults it was told of since `before`. */
static inline bool no_faults_since(struct life *l, uint64_t before)
{
    return l->sim.faults == before;
}

static inline uint64_t disk_off(uint32_t at)
{
    return at / SPOT_BYTES * STRIDE + at % SPOT_BYTES;
}

static inline uint32_t blk_end(uint32_t blk)
{
    return (blk + 1) * BLOCK < BYTES ? (blk + 1) * BLOCK : BYTES;
}

static inline uint32_t blocks_of(uint32_t at, uint32_t len)
{
    uint32_t mask = 0;

    for (uint32_t blk = at / BLOCK; blk <= (at + len - 1) / BLOCK; blk++)
        mask |= UINT32_C(1) << blk;
    return mask;
}

/* Model's blocks of a map of the disk's. */
uint32_t mask_of(const struct varve_bitmap *bits);
/* The image as it is. */
void look_at_image(struct life *l, char *bytes);

/* Whoever died is buried, if nothing of it is still running; what that means for the model. */
void reap(struct life *l);

void plugin_start(struct life *l);
void server_stop(struct life *l);
void offline_start(struct life *l);
void daemon_start(struct life *l);
void daemon_restart(struct life *l);
/* Opens the reader's files of epochs and views that it lacks. */
void fetch(struct life *l);
void open_source(struct life *l);

/* --- crash-doubt.c: the intent log, and a power failure --- */

/* Looks what the log has, before its server is lost. */
void heat_note(struct life *l);
/* Around the beginning of a write. */
uint32_t heat_before(struct life *l, uint32_t at);
void heat_after(struct life *l, uint32_t at, uint32_t before);
/* Around a server's start, which may take the log away. */
void heat_starting(struct life *l, bool process);
void heat_started(struct life *l, enum sim_proc proc);
/* A step of the flusher has gone well; looked: for quiet regions, with no writer inside. */
void heat_flushed(struct life *l, bool looked, const uint64_t touches[SPOTS]);
/* Which epochs may count more as written than was. */
void doubt_after_power(struct life *l);

/* --- crash-guest.c: the guest, and readers of views --- */

void guest_write(struct life *l);
void guest_hold(struct life *l);
void guest_let_go(struct life *l, unsigned i);
void guest_let_all_go(struct life *l);
void guest_flush(struct life *l);
/* The plugin's flusher. */
void flusher_step(struct life *l);
/* If a sync of the image has failed in this boot, the disk's server has acted on it by now: blocks of
 * the live epoch may count as written, and views may have lost some. */
void note_failed_image(struct life *l);
struct view *some_view(struct life *l);
/* 0, or an error that may be. */
int read_view(struct life *l, struct view *v, uint32_t at, uint32_t len, char *into);
void read_some_view(struct life *l);
void housekeep(struct life *l);
void narrow_view(struct life *l);
void release_view(struct life *l);
void view_close(struct life *l, struct view *v);
void end_view(struct life *l);
/* May run while others' calls do. */
void meanwhile(struct sim *s, enum sim_proc proc, enum sim_call call);

/* --- crash-backup.c: boundaries, backups, the catalogue --- */

void some_boundary(struct life *l);
void backup_begin(struct life *l);
void backup_pull(struct life *l);
void backup_end(struct life *l);
void tidy(struct life *l);
void keep_blocks(struct life *l);
/* After the daemon has read the catalogue. */
void catalogue_came_back(struct life *l);

/* --- crash-check.c --- */

/* What the disk says of its epochs against the model, and the chains, if it is served. */
void check_disk(struct life *l);
/* After somebody else has written: nothing can be told across that, and no view is open. */
void check_foreign(struct life *l);

#endif
