/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The file that a push makes or brings up to date, and the marker FILE.partial beside it, which
 * says that it is not, or no longer, a backup: the same as varve pull's.  One thread at a time,
 * which may wait for the file's disk.  It never touches a byte of the file before the marker is
 * durable, and never takes the marker away before the file is.
 */
#ifndef VARVE_SERVER_PUSH_TARGET_H
#define VARVE_SERVER_PUSH_TARGET_H

#include "lib/err.h"

#include <stdbool.h>
#include <stdint.h>

/* What is to be pushed. */
struct varve_push_want {
    const char *path; /* absolute */
    uint64_t size;    /* of the disk, bytes */
    const char *disk; /* its name, for people */
    const char *
        base; /* what the changes are since (server/base.h), with the disk's identity; NULL: full */
    uint64_t view;  /* tells this push from all others */
    bool overwrite; /* a full push may take the place of what is there */
};

struct varve_push_target {
    const char *path; /* borrowed from the want */
    char *real;       /* without links; owned */
    char *marker;     /* name in dir, owned */
    int dir, fd;      /* fd: opened and locked; -1: none yet */
    bool device;      /* has no marker, and no other size */
    bool marked;      /* a marker is there */
    bool fresh;       /* reads as zeroes, all of it */
};

/* Finds the file and says whether it will do, changing nothing.  -EEXIST: it is there and should
 * not be, or an unfinished copy of something else; -ENOENT, -EINVAL, -EBUSY.  To be closed in
 * either case. */
int varve_push_target_open(struct varve_push_target *t, const struct varve_push_want *want,
                           struct varve_err *err);

/* Behind that: the marker, then a file of the right size. */
int varve_push_target_begin(struct varve_push_target *t, const struct varve_push_want *want,
                            struct varve_err *err);

/* All of the file's content is durable: so is its name, then it is a backup. */
int varve_push_target_finish(struct varve_push_target *t, struct varve_err *err);

/* Leaves everything as it is. */
void varve_push_target_close(struct varve_push_target *t);

#endif
