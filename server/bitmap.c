/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/bitmap.h"

#include "server/changes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* An epoch may end while its map is read: then once more. */
#define NOW_TRIES 8

const struct varve_cat_backup *varve_bitmap_user(const struct varve_catalogue *c,
                                                 const uint8_t uuid[16], const char *name,
                                                 bool *never)
{
    const struct varve_cat_backup *user = NULL;

    *never = true;
    for (size_t i = 0; i < c->nbackups; i++) {
        const struct varve_cat_backup *b = &c->backups[i];

        for (size_t k = 0; varve_cat_backup_open(b) && k < b->ndisks; k++) {
            const struct varve_cat_backup_disk *bd = &b->disks[k];

            if (!bd->bitmap || memcmp(bd->uuid, uuid, 16) != 0 || strcmp(bd->bitmap, name) != 0)
                continue;
            if (!user || bd->mode != VARVE_BITMAP_NEVER)
                user = b;
            *never = *never && bd->mode == VARVE_BITMAP_NEVER;
        }
    }
    return user;
}

int varve_bitmap_lookup(const struct varve_catalogue *c, struct varve_disk *disk, const char *name,
                        struct varve_cat_bitmap **out, struct varve_err *err)
{
    const struct varve_cat_disk *cd = varve_catalogue_disk(c, disk->identity.uuid);

    *out = varve_catalogue_bitmap(cd, name);
    if (*out)
        return 0;
    return varve_err_set(err, ENOENT,
                         "Dirty bitmap '%.200s' not found: query-block lists those of disk '%s'",
                         name, disk->name);
}

int varve_bitmap_check_set(struct varve_disk *disk, const struct varve_change_set *set,
                           struct varve_err *err)
{
    uint64_t live;

    if (varve_change_set_is_empty(set))
        return 0;
    live = varve_disk_live_epoch(disk);
    if (live == 0 && set->nspans > 0)
        return varve_err_set(err, EUCLEAN, "Disk '%s' has no epochs any more", disk->name);
    return varve_disk_union(disk, set, 0, live, NULL, err);
}

int varve_bitmap_check(const struct varve_catalogue *c, struct varve_disk *disk,
                       const struct varve_cat_bitmap *b, struct varve_err *err)
{
    bool never;
    const struct varve_cat_backup *user =
        varve_bitmap_user(c, disk->identity.uuid, b->name, &never);
    struct varve_err why = VARVE_ERR_INIT;

    if (user)
        return varve_err_set(err, EBUSY,
                             "Bitmap '%.200s' is currently in use by another operation and cannot "
                             "be used: end backup '%s' first",
                             b->name, user->id);
    if (varve_bitmap_check_set(disk, &b->set, &why) < 0)
        return varve_err_set(err, EUCLEAN,
                             "Bitmap '%.100s' is inconsistent and cannot be used: remove it and "
                             "begin a full backup (%.250s)",
                             b->name, why.msg);
    return 0;
}

int varve_bitmap_now(struct varve_disk *disk, const struct varve_cat_bitmap *b,
                     struct varve_bitmap *map, struct varve_err *err)
{
    const struct varve_geometry *g = &disk->identity.geometry;

    for (int i = 0; i < NOW_TRIES; i++) {
        uint64_t live = varve_disk_live_epoch(disk);
        int rc = varve_disk_union(disk, &b->set, 0, live, map, err);

        if (rc == 0 && varve_change_set_records(&b->set))
            rc = varve_disk_or_live_all(disk, map, err);
        if (varve_disk_live_epoch(disk) == live) {
            if (rc == 0)
                varve_changes_round(g, b->granularity, map);
            return rc;
        }
        memset(map->words, 0, varve_bitmap_nwords(map) * 8);
    }
    return varve_err_set(err, EAGAIN, "Disk '%s': its epochs keep changing", disk->name);
}

static json_t *bitmap_describe(struct varve_disk *disk, const struct varve_cat_bitmap *b)
{
    const struct varve_geometry *g = &disk->identity.geometry;
    struct varve_bitmap *map = varve_bitmap_new(g->nblks);
    struct varve_err err = VARVE_ERR_INIT;
    uint64_t count = 0;
    bool never;
    json_t *o;
    int rc = map ? varve_bitmap_now(disk, b, map, &err) : varve_err_set(&err, ENOMEM, "no memory");

    if (rc == 0)
        count = varve_dirty_bytes(g, map);
    free(map);
    o = json_pack(
        "{s:s, s:I, s:I, s:b, s:b, s:b, s:b}", "name", b->name, "count", (json_int_t)count,
        "granularity", (json_int_t)b->granularity, "recording",
        rc == 0 && varve_change_set_records(&b->set), /* QEMU: inconsistent implies it is not */
        "busy",
        varve_bitmap_user(disk->daemon->catalogue, disk->identity.uuid, b->name, &never) != NULL,
        "persistent", (int)!b->transient, "inconsistent", rc < 0);
    if (o && rc < 0)
        json_object_set_new(o, "reason", json_string(err.msg));
    return o;
}

json_t *varve_bitmaps_describe(struct varve_disk *disk)
{
    const struct varve_cat_disk *cd =
        varve_catalogue_disk(disk->daemon->catalogue, disk->identity.uuid);
    json_t *list = json_array();

    for (size_t i = 0; cd && i < cd->nbitmaps; i++)
        json_array_append_new(list, bitmap_describe(disk, &cd->bitmaps[i]));
    return list;
}
