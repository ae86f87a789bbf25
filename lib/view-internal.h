/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What source.c and view.c share, and nobody else: the files of epochs a reader holds.
 */
#ifndef VARVE_LIB_VIEW_INTERNAL_H
#define VARVE_LIB_VIEW_INTERNAL_H

#include "lib/view.h"

#include <pthread.h>

enum { FILE_LIVE, FILE_LOST, FILE_SCRATCH, FILE_COUNT };

struct epoch_files {
    _Atomic unsigned refs;
    uint64_t number;
    int fds[FILE_COUNT]; /* -1: none */
    uint64_t map_ino, scratch_ino;
};

/* Never changes once it is the source's; sorted by number. */
struct epoch_table {
    _Atomic unsigned refs;
    size_t count;
    struct epoch_files *epochs[];
};

struct varve_source {
    _Atomic unsigned refs;
    struct varve_world *w;
    struct varve_geometry g;
    uint8_t uuid[16];
    int ctl_fd, image_fd;
    uint64_t ctl_dev, ctl_ino;

    pthread_mutex_t lock; /* guards `table` (the pointer); rank: innermost */
    struct epoch_table *table;
};

/* A reference to today's table. */
struct epoch_table *varve_source_table(struct varve_source *s);
void varve_source_table_unref(struct varve_source *s, struct epoch_table *t);

/* The files of that epoch, borrowed from the table, or NULL. */
struct epoch_files *varve_source_find(const struct epoch_table *t, uint64_t number);

#endif
