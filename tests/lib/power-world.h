/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The machine's world on a machine whose power can fail: what was not synced before is then lost,
 * wholly or in part.  It writes through and remembers how to undo; power_fail undoes.  One thread
 * at a time.  It knows nothing of what is written through maps, and never loses what other worlds
 * wrote.
 *
 * A file's data and size are durable after sync; names after sync_dir of their directory.  What
 * was not synced may be lost in any order: data by the sector, each changed name by itself.
 */
#ifndef VARVE_TESTS_LIB_POWER_WORLD_H
#define VARVE_TESTS_LIB_POWER_WORLD_H

#include "lib/world.h"

struct power_change;
struct power_file;

struct power_world {
    struct varve_world world;
    struct varve_world *inner;
    char *graveyard;              /* directory that keeps what was unlinked */
    uint64_t buried;              /* names used in it */
    struct power_file *files;     /* inodes with changes */
    struct power_change *changes; /* not durable, newest first */
    unsigned failing_sync;        /* how many syncs from now; 0: none */
};

/* graveyard: an empty directory on the same file system as the files; the caller removes it. */
void power_world_init(struct power_world *p, const char *graveyard);
void power_world_fini(struct power_world *p);

/* The n-th sync from now (from 1 on) gets EIO as from a disk that refused the data: later syncs say
 * that all is well, but what was not durable then is not until it is written again. */
void power_fail_sync(struct power_world *p, unsigned n);

/* seed 0: everything that is not durable is lost; others: some of it, by chance. */
void power_fail(struct power_world *p, uint64_t seed);

#endif
