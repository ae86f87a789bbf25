/* SPDX-License-Identifier: BSD-3-Clause
 *
 * backup-estimate: what a backup would be, told before it is begun.  It makes no boundary, writes
 * nothing, and refuses what backup-begin would refuse for the disks' sake.
 */
#include "server/commands.h"

#include "server/args.h"
#include "server/backup.h"

#include <errno.h>
#include <stdlib.h>

int varve_backup_estimate_map(struct varve_daemon *d, const struct varve_plan_disk *pd,
                              uint64_t live, struct varve_bitmap *map, struct varve_err *err)
{
    struct varve_change_set base;
    uint64_t granularity;
    int rc;

    if (!pd->since[0] && !pd->bitmap[0]) {
        varve_bitmap_set(map, 0, map->nbits);
        return 0;
    }
    rc = varve_backup_plan_base(d->catalogue, pd, &base, &granularity, err);
    if (rc < 0)
        return rc;
    rc = varve_disk_union(pd->disk, &base, 0, live, map, err);
    if (rc < 0)
        rc = varve_err_prefix(err, "cannot tell what changed since '%.200s', begin a full backup",
                              pd->since[0] ? pd->since : pd->bitmap);
    if (rc == 0 && varve_change_set_records(&base))
        rc = varve_disk_or_live_all(pd->disk, map, err);
    if (rc == 0)
        varve_changes_round(&pd->disk->identity.geometry, granularity, map);
    varve_change_set_clear(&base);
    return rc;
}

static uint64_t count_extents(const struct varve_bitmap *map)
{
    uint64_t from = varve_bitmap_find(map, 0, true), n = 0;

    for (; from < map->nbits; n++)
        from = varve_bitmap_find(map, varve_bitmap_find(map, from, false), true);
    return n;
}

/* Of the live epoch; 0 where that cannot be read. */
static uint64_t estimate_rate(struct varve_disk *disk, uint64_t live)
{
    uint64_t bytes;

    if (varve_disk_live_dirty(disk, &bytes) < 0)
        return 0;
    return varve_dirt_rate_get(&disk->dirt, live, disk->daemon->w->monotonic_ns(disk->daemon->w),
                               bytes);
}

static json_t *estimate_disk(struct varve_daemon *d, const struct varve_plan_disk *pd,
                             struct varve_err *err)
{
    const struct varve_geometry *g = &pd->disk->identity.geometry;
    struct varve_bitmap *map = varve_bitmap_new(g->nblks);
    uint64_t live = varve_disk_live_epoch(pd->disk);
    json_t *o = NULL;

    if (!map) {
        varve_err_set(err, ENOMEM, "Disk '%s': no memory for a map", pd->disk->name);
        return NULL;
    }
    if (varve_backup_estimate_map(d, pd, live, map, err) == 0)
        o = json_pack("{s:s, s:I, s:I, s:I, s:I, s:I}", "disk", pd->disk->name, "size",
                      (json_int_t)g->size, "dirty-bytes", (json_int_t)varve_dirty_bytes(g, map),
                      "extents", (json_int_t)count_extents(map), "scratch-free",
                      (json_int_t)varve_disk_scratch_free(pd->disk, live), "dirty-bytes-per-second",
                      (json_int_t)estimate_rate(pd->disk, live));
    free(map);
    return o;
}

json_t *varve_command_backup_estimate(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    static const char *const known[] = {"disks", NULL};
    struct varve_backup_plan plan = {.disks = NULL};
    json_t *list;

    if (varve_args_check(args, known, NULL, err) < 0)
        return NULL;
    varve_disks_refresh(d);
    if (varve_backup_parse_disks(d, args, &plan, err) < 0) {
        free(plan.disks);
        return NULL;
    }
    list = json_array();
    for (size_t i = 0; list && i < plan.ndisks; i++) {
        json_t *o = estimate_disk(d, &plan.disks[i], err);

        if (!o) {
            json_decref(list);
            list = NULL;
        } else {
            json_array_append_new(list, o);
        }
    }
    free(plan.disks);
    return list ? json_pack("{s:o}", "disks", list) : NULL;
}
