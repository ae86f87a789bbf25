/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the daemon's policy code works on: catalogue, disks, running backups.  All of it belongs to
 * the clerk's thread from the moment the clerk starts until it has ended, but for what says
 * otherwise. It knows no socket: the control connection hands commands in, the NBD server sees only
 * exports.
 */
#ifndef VARVE_SERVER_DAEMON_H
#define VARVE_SERVER_DAEMON_H

#include "lib/catalogue.h"
#include "lib/err.h"
#include "lib/world.h"
#include "server/clerk.h"
#include "server/events.h"
#include "server/nbd/export.h"
#include "server/map-cache.h"
#include "server/nbd/nbd-server.h"
#include "server/options.h"
#include "server/pauses.h"
#include "server/sd-listen.h"

#include <pthread.h>

struct varve_backup;
struct varve_disk;
struct varve_jobs;

struct varve_daemon {
    /* constant, any thread */
    struct varve_world *w;
    const struct varve_options *options;
    struct varve_exports *exports;
    struct varve_nbd_server *nbd; /* only what it says that other threads may call */
    struct varve_clerk *clerk;
    struct varve_events *events;
    struct varve_jobs *jobs; /* server/job.h says what is whose */
    /* As they really are.  Those before nfixed are set before commands come; the others, which
     * nbd-server-start made, are the clerk's. */
    char *listeners[2 * VARVE_LISTENERS_MAX + VARVE_SD_SOCKETS_MAX];
    size_t nlisteners, nfixed;

    struct varve_map_cache maps; /* any thread */

    /* Readers of views that leave.  Guards `gone` of struct varve_backup_disk; rank: a leaf. */
    pthread_mutex_t views_lock;
    pthread_cond_t view_gone;

    /* the clerk's */
    struct varve_catalogue_store *store;
    struct varve_catalogue *catalogue; /* what is committed */
    struct varve_disk *disks;          /* all that were ever seen, in order of names */
    struct varve_backup *backups;      /* the open ones of the catalogue */
    struct varve_pauses pauses;        /* of disks that were served */
    int unreadable; /* -errno of the last look at the state directory; 0: it was read */
};

/* First of all: what the locks above need. */
void varve_daemon_init(struct varve_daemon *d);

/* Makes `next` durable and the catalogue.  It is taken over in either case: freed on failure. */
int varve_daemon_commit(struct varve_daemon *d, struct varve_catalogue *next,
                        struct varve_err *err);

/* A clone of the catalogue to change and to commit.  NULL with err: no memory. */
struct varve_catalogue *varve_daemon_draft(struct varve_daemon *d, struct varve_err *err);

/* First job of the clerk: finds the disks and brings the running backups back. */
void varve_daemon_restore(struct varve_daemon *d);

/* Once a second. */
void varve_daemon_tick(void *daemon);

/* After everything else has ended: frees what the clerk had.  Running backups stay as they are in
 * the catalogue and come back with the next daemon. */
void varve_daemon_fini(struct varve_daemon *d);

#endif
