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
    _Atomic bool bad; /* not all of the scratch came to its device: see varve_source_scratch_bad */
};

/* Never changes once it is the source's; sorted by number.  A done map is kept like an epoch that has
 * only a live map; its number is the view's id. */
struct epoch_table {
    _Atomic unsigned refs;
    size_t ndone;
    struct epoch_files *done[VARVE_CTL_VIEWS];
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
/* Whether something that was kept in the scratch did not come to its device; then nothing that was read
 * from it is to be believed, for good.  To be asked after it was read: the kernel says so before it
 * throws a page away. */
bool varve_source_scratch_bad(struct varve_source *s, struct epoch_files *f);

/* The done map of that view, borrowed from the table, or NULL. */
struct epoch_files *varve_source_find_done(const struct epoch_table *t, uint64_t view);

/* --- view.c, for view-*.c ------------------------------------------------------------------------- */

/* Calls each() for the entered epochs from the view's boundary to the live one, oldest first, as the
 * control page says now.  It stops at a nonzero result and returns it.  *done gets the view's done map
 * as the page said before the epochs were looked at; NULL: it had none. */
int varve_view_walk(struct varve_source *s, const struct epoch_table *table,
                    const struct varve_view *v,
                    int (*each)(void *arg, struct epoch_files *f,
                                const struct varve_ctl_epoch_copy *c, struct varve_err *err),
                    void *arg, struct epoch_files **done, struct varve_err *err);

/* -ESTALE, with a message. */
int varve_view_say_bad_scratch(uint64_t epoch, struct varve_err *err);

/* The bytes of a file that hold the bits [blk, blk + count) of the map that begins at `at`. */
int varve_view_map_bits(struct varve_source *s, int fd, uint64_t at, uint64_t blk, uint64_t count,
                        uint8_t *bytes, size_t bytes_len, struct varve_err *err);

/* Whether block blk + i is set in what varve_view_map_bits() read for blk. */
static inline bool varve_view_map_bit(const uint8_t *bytes, uint64_t blk, uint64_t i)
{
    uint64_t bit = blk % 8 + i;

    return bytes[bit / 8] >> (bit % 8) & 1;
}

/* Where the two maps of a done map begin. */
static inline uint64_t varve_done_unneeded_at(void)
{
    return sizeof(struct varve_done_head);
}

static inline uint64_t varve_done_released_at(const struct varve_geometry *g)
{
    return sizeof(struct varve_done_head) + varve_map_bytes(g);
}

#endif
