/* SPDX-License-Identifier: BSD-3-Clause
 *
 * query-checkpoints, for hundreds of them.
 */
#include "server/commands.h"

#include "lib/blocks-file.h"
#include "server/args.h"
#include "server/changes.h"
#include "server/disk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

/* One command gives all its checkpoints one name and one time: they are one entry of the list. */
struct entries {
    json_t *list; /* by time, as long as it is made with "time-ns" */
    json_t
        *found; /* "NAME TIME" to the entry's "disks": lists of hundreds are not searched through */
};

static json_t *entry_disks(struct entries *e, const char *name, uint64_t time_ns)
{
    char key[VARVE_NAME_MAX + 32];
    json_t *item;
    size_t i;

    snprintf(key, sizeof(key), "%s %llu", name, (unsigned long long)time_ns);
    item = json_object_get(e->found, key);
    if (item)
        return item;
    item = json_pack("{s:s, s:I, s:f, s:[]}", "name", name, "time-ns", (json_int_t)time_ns, "time",
                     (double)time_ns / 1e9, "disks");
    for (i = 0; i < json_array_size(e->list); i++) {
        json_t *other = json_array_get(e->list, i);

        if ((uint64_t)json_integer_value(json_object_get(other, "time-ns")) > time_ns)
            break;
    }
    if (!item || json_array_insert_new(e->list, i, item) < 0)
        return NULL;
    json_object_set(e->found, key, json_object_get(item, "disks"));
    return json_object_get(item, "disks");
}

/* What changed since each checkpoint, in bytes: that of p is that of the next one, and the epochs
 * between.  So each epoch is read once, newest first, and nothing is looked at twice: the time goes
 * by the size of the disk and by what was written, not by one times the number of checkpoints. */
struct since {
    const struct varve_geometry *g;
    struct varve_timeline tl;
    struct varve_bitmap *map; /* what changed since `end` */
    uint64_t nset;            /* bits in it */
    uint64_t end;
};

static int since_init(struct varve_daemon *d, struct varve_disk *disk, struct since *s,
                      struct varve_err *err)
{
    int rc;

    *s = (struct since){.g = &disk->identity.geometry, .end = varve_disk_live_epoch(disk)};
    s->map = varve_bitmap_new(s->g->nblks);
    if (!s->map)
        return varve_err_set(err, ENOMEM, "no memory for a map");
    rc = varve_disk_or_live(disk, s->map, err);
    s->nset = varve_bitmap_count(s->map);
    /* Nobody tidies meanwhile: that is the clerk's too. */
    return rc < 0 ? rc
                  : varve_timeline_scan(d->w, &disk->paths, disk->identity.uuid, s->g, &s->tl, err);
}

static void since_fini(struct since *s)
{
    varve_timeline_fini(&s->tl);
    free(s->map);
}

/* An imported checkpoint has blocks that those before it do not have. */
static int since_blocks(struct varve_daemon *d, struct varve_disk *disk, const struct since *s,
                        const struct varve_cat_checkpoint *p, struct varve_bitmap **map,
                        struct varve_err *err)
{
    int rc;

    *map = varve_bitmap_new(s->g->nblks);
    if (!*map)
        return varve_err_set(err, ENOMEM, "no memory for a map");
    rc = varve_blocks_load(d->w, &disk->paths, disk->identity.uuid, s->g, p->blocks, *map, err);
    if (rc == 0)
        varve_bitmap_or(*map, s->map);
    else
        free(*map);
    return rc;
}

/* *own: what is wrong with this one only. */
static int since_next(struct varve_daemon *d, struct varve_disk *disk, struct since *s,
                      const struct varve_cat_checkpoint *p, uint64_t *bytes, int *own,
                      struct varve_err *err)
{
    struct varve_bitmap *map = s->map;
    int rc = varve_timeline_union_counting(d->w, &disk->paths, disk->identity.uuid, s->g, &s->tl,
                                           p->epoch, s->end, s->map, &s->nset, err);
    uint64_t nset = s->nset, last = s->g->nblks - 1;

    s->end = p->epoch;
    if (rc < 0 || s->g->nblks == 0)
        return rc;
    if (p->has_blocks) {
        *own = since_blocks(d, disk, s, p, &map, err);
        if (*own < 0)
            return 0;
        nset = varve_bitmap_count(map);
    }
    if (varve_bitmap_test(map, last) || varve_changes_heals(s->g, p, last))
        *bytes -= ((last + 1) << s->g->shift) - s->g->size;
    nset += varve_changes_heal_count(s->g, p, map);
    *bytes += nset << s->g->shift;
    if (map != s->map)
        free(map);
    return 0;
}

static void query_disk(struct varve_daemon *d, struct varve_disk *disk, struct entries *entries)
{
    const struct varve_cat_disk *cd = varve_catalogue_disk(d->catalogue, disk->identity.uuid);
    struct varve_err err = VARVE_ERR_INIT;
    struct since since;
    char doubt[400];
    int rc = since_init(d, disk, &since, &err);

    for (size_t i = cd ? cd->ncheckpoints : 0; i-- > 0;) {
        const struct varve_cat_checkpoint *p = &cd->checkpoints[i];
        const struct varve_cat_backup *own =
            p->backup[0] ? varve_catalogue_backup(d->catalogue, p->backup) : NULL;
        bool busy = own && varve_cat_backup_open(own);
        json_t *disks = entry_disks(entries, p->name, p->time_ns), *o;
        struct varve_err why = VARVE_ERR_INIT;
        uint64_t bytes = 0;
        int own_rc = 0;

        if (rc == 0) {
            rc = since_next(d, disk, &since, p, &bytes, &own_rc, &why);
            if (rc < 0)
                err = why;
            if (rc < 0 && varve_disk_doubt(disk, p->time_ns, doubt, sizeof(doubt)))
                varve_err_set(&err, EUCLEAN, "%s", doubt);
        }
        o = json_pack("{s:s, s:I, s:I, s:b}", "disk", disk->name, "epoch", (json_int_t)p->epoch,
                      "dirty-bytes", (json_int_t)bytes, "usable", rc == 0 && own_rc == 0 && !busy);
        if (o && varve_catalogue_export(cd, p->name, varve_cat_checkpoint_made(p)))
            json_object_set_new(o, "exported", json_true());
        if (o && rc < 0)
            json_object_set_new(o, "reason", json_string(err.msg));
        else if (o && own_rc < 0)
            json_object_set_new(o, "reason", json_string(why.msg));
        else if (o && busy)
            json_object_set_new(o, "reason", json_sprintf("its backup '%s' still runs", own->id));
        if (disks)
            json_array_append_new(disks, o);
        else
            json_decref(o);
    }
    since_fini(&since);
}

/* The boundaries that are kept because files know up to them. */
static void query_exports(struct varve_daemon *d, struct varve_disk *disk, struct entries *entries)
{
    const struct varve_cat_disk *cd = varve_catalogue_disk(d->catalogue, disk->identity.uuid);

    for (size_t i = 0; cd && i < cd->nexports; i++) {
        const struct varve_cat_export *e = &cd->exports[i];
        const struct varve_cat_checkpoint *p = varve_catalogue_checkpoint(cd, e->name);
        json_t *disks = entry_disks(entries, e->name, e->time_ns);

        if (disks)
            json_array_append_new(disks, json_pack("{s:s, s:I, s:I, s:f, s:b}", "disk", disk->name,
                                                   "epoch", (json_int_t)e->made, "known-until",
                                                   (json_int_t)e->known, "exported-time",
                                                   (double)e->exported_ns / 1e9, "deleted",
                                                   !p || varve_cat_checkpoint_made(p) != e->made));
    }
}

json_t *varve_command_query_checkpoints(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    static const char *const known[] = {"disk", "exported", NULL};
    struct varve_disk *only = NULL;
    struct entries entries;
    const char *name;
    bool exported;
    json_t *item;
    size_t i;

    if (varve_args_check(args, known, NULL, err) < 0 ||
        varve_args_string(args, "disk", false, &name, err) < 0 ||
        varve_args_bool(args, "exported", false, &exported, err) < 0)
        return NULL;
    varve_disks_refresh(d);
    if (name && varve_disks_find(d, name, &only, err) < 0)
        return NULL;
    entries.list = json_array();
    entries.found = json_object();
    for (struct varve_disk *disk = d->disks; disk; disk = disk->next) {
        if (disk->gone || !disk->known || (only && disk != only))
            continue;
        if (exported)
            query_exports(d, disk, &entries);
        else
            query_disk(d, disk, &entries);
    }
    json_array_foreach(entries.list, i, item) json_object_del(item, "time-ns");
    json_decref(entries.found);
    return entries.list;
}
