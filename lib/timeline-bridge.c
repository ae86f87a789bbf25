/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Gaps between eras, and what an operator who knows better puts into them: the file of the epoch
 * that never was, which says that nothing was written there, or everything.
 */
#include "lib/timeline.h"

#include "lib/epoch-era.h"

#include <errno.h>
#include <stdlib.h>

static bool gap_is_filled(const struct varve_timeline *tl, uint64_t gap)
{
    for (size_t i = 0; i < tl->nfiles; i++) {
        if (tl->files[i].first <= gap && tl->files[i].last >= gap)
            return true;
    }
    return false;
}

bool varve_timeline_bridged(const struct varve_timeline *tl, uint64_t from, uint64_t to)
{
    /* Only eras that have files: a doubt may pass over some. */
    for (size_t i = 0; i < tl->nfiles; i++) {
        uint64_t gap = tl->files[i].prev;

        if (varve_is_era_gap(gap) && gap > from && gap < to && !gap_is_filled(tl, gap))
            return false;
    }
    return true;
}

/* The last epoch before the gap that has a sealed file.  0: there is none. */
static uint64_t last_before(const struct varve_timeline *tl, uint64_t gap)
{
    uint64_t last = 0;

    for (size_t i = 0; i < tl->nfiles; i++) {
        const struct varve_epoch_file *f = &tl->files[i];

        if (f->last < gap && f->last > last && f->state == VARVE_EPOCH_FILE_SEALED)
            last = f->last;
    }
    return last;
}

int varve_timeline_bridge(struct varve_world *w, const struct varve_paths *p,
                          const uint8_t uuid[16], const struct varve_geometry *g, uint64_t gap,
                          uint64_t from, unsigned *filled, struct varve_err *err)
{
    struct varve_bitmap *all = NULL, *none = NULL;
    uint8_t id[VARVE_EPOCH_ID_LEN];
    struct varve_timeline tl;
    int r = varve_timeline_scan(w, p, uuid, g, &tl, err);

    if (r < 0)
        return r;
    *filled = 0;
    all = varve_bitmap_new(g->nblks);
    none = varve_bitmap_new(g->nblks);
    if (!all || !none)
        r = varve_err_set(err, ENOMEM, "no memory for a map");
    else
        varve_bitmap_set(all, 0, all->nbits);
    for (size_t i = 0; r == 0 && i < tl.nfiles; i++) {
        uint64_t at = tl.files[i].prev, prev;
        bool exact;

        if (!varve_is_era_gap(at) || gap_is_filled(&tl, at))
            continue;
        prev = last_before(&tl, at);
        exact = at == gap && prev == from && from != 0;
        r = w->random(w, id, sizeof(id));
        if (r < 0)
            varve_err_sys(err, -r, "cannot get random numbers");
        else
            r = varve_epoch_file_write_merged(w, p, uuid, g, at, at, prev, id, exact ? none : all,
                                              err);
        if (r == 0)
            ++*filled;
    }
    free(all);
    free(none);
    varve_timeline_fini(&tl);
    return r;
}
