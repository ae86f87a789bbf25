/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What diff.c (policy, on the clerk's thread) and diff-run.c (the comparison, on the loop's) share,
 * and nobody else.
 */
#ifndef VARVE_SERVER_DIFF_H
#define VARVE_SERVER_DIFF_H

#include "server/disk.h"
#include "server/job.h"

struct varve_diff_run;

/* The work of a runner. */
struct varve_diff {
    struct varve_runner *runner;
    /* constant while it runs */
    struct varve_disk *disk;
    char *reference; /* path or URI */
    bool resize;     /* a reference of another size will do */
    bool dirty_on_error;
    int image_fd;    /* our own description, for reading; closed with this */
    unsigned images; /* disk->images when that was opened */
    uint64_t image_dev, image_ino;

    /* The loop's until it has ended, then the clerk's. */
    char proof[128]; /* what a file looks like that is the reference; empty: it is none.  Before it
                      * runs: what it has to look like, if `from` and `map` are to be of use. */
    uint64_t from;   /* bytes below are compared already: a multiple of the block size */
    struct varve_bitmap *map; /* blocks that differ */
    uint64_t unreadable;      /* bytes that are in it for that reason */
    struct varve_diff_run *run;
};

/* Loop: as of struct varve_runner_ops. */
void varve_diff_run(struct varve_runner *r);
void varve_diff_stop(struct varve_runner *r);

#endif
