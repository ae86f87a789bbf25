/* SPDX-License-Identifier: BSD-3-Clause
 *
 * query-changes: where on a disk something was written, coarse enough to be drawn.
 */
#include "server/commands.h"

#include "server/args.h"
#include "server/backup.h"

#include <errno.h>
#include <stdlib.h>

#define CELLS_DEFAULT 1024u
#define CELLS_MAX     65536u

/* Bytes that are set in each cell of cell_blks blocks. */
static json_t *cells_of(const struct varve_geometry *g, const struct varve_bitmap *map,
                        uint64_t cell_blks)
{
    json_t *cells = json_array();

    for (uint64_t from = 0; from < g->nblks; from += cell_blks) {
        uint64_t to = g->nblks - from > cell_blks ? from + cell_blks : g->nblks, bytes = 0;
        uint64_t first = varve_bitmap_find_until(map, from, to, true);

        while (first < to) {
            uint64_t end = varve_bitmap_find_until(map, first, to, false);

            bytes += (end - first) << g->shift;
            if (end == g->nblks)
                bytes -= (g->nblks << g->shift) - g->size;
            first = varve_bitmap_find_until(map, end, to, true);
        }
        json_array_append_new(cells, json_integer((json_int_t)bytes));
    }
    return cells;
}

static int changes_map(struct varve_daemon *d, const struct varve_plan_disk *pd,
                       struct varve_bitmap *map, struct varve_err *err)
{
    if (pd->since[0] || pd->bitmap[0])
        return varve_backup_estimate_map(d, pd, varve_disk_live_epoch(pd->disk), map, err);
    return varve_disk_or_live_all(pd->disk, map, err);
}

static json_t *changes_describe(struct varve_daemon *d, const struct varve_plan_disk *pd,
                                uint64_t ncells, struct varve_err *err)
{
    const struct varve_geometry *g = &pd->disk->identity.geometry;
    uint64_t cell_blks = g->nblks / ncells + (g->nblks % ncells != 0);
    struct varve_bitmap *map = varve_bitmap_new(g->nblks);
    json_t *o = NULL;

    if (!map) {
        varve_err_set(err, ENOMEM, "Disk '%s': no memory for a map", pd->disk->name);
        return NULL;
    }
    if (changes_map(d, pd, map, err) == 0)
        o = json_pack("{s:s, s:I, s:I, s:I, s:I, s:o}", "disk", pd->disk->name, "size",
                      (json_int_t)g->size, "granularity", (json_int_t)varve_block_size(g),
                      "dirty-bytes", (json_int_t)varve_dirty_bytes(g, map), "cell-bytes",
                      (json_int_t)(cell_blks << g->shift), "cells", cells_of(g, map, cell_blks));
    free(map);
    return o;
}

json_t *varve_command_query_changes(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    static const char *const known[] = {"disk", "since", "bitmap", "cells", NULL};
    struct varve_plan_disk pd;
    uint64_t cells;
    json_t *one;
    int rc = varve_args_check(args, known, NULL, err);

    if (rc == 0)
        rc = varve_args_u63(args, "cells", CELLS_DEFAULT, &cells, err);
    if (rc == 0 && (cells == 0 || cells > CELLS_MAX))
        rc = varve_err_set(err, EINVAL, "Parameter 'cells' must be from 1 to %u", CELLS_MAX);
    if (rc < 0)
        return NULL;
    varve_disks_refresh(d);
    one = json_copy(args);
    json_object_del(one, "cells");
    rc = one ? varve_backup_parse_disk(d, one, &pd, err) : varve_err_set(err, ENOMEM, "no memory");
    json_decref(one);
    return rc < 0 ? NULL : changes_describe(d, &pd, cells, err);
}
