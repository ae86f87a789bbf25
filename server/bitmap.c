/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/bitmap.h"

#include "lib/epoch-era.h"
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

/* -EBUSY: a job fills it. */
static int check_job(const struct varve_catalogue *c, struct varve_disk *disk, const char *name,
                     struct varve_err *err)
{
    const struct varve_cat_job *job = varve_catalogue_job_of_bitmap(c, disk->identity.uuid, name);

    if (!job)
        return 0;
    return varve_err_set(err, EBUSY,
                         "Bitmap '%.200s' is currently in use by another operation and cannot be "
                         "used: job '%s' fills it, wait for its end or cancel it",
                         name, job->id);
}

int varve_bitmap_check_new(const struct varve_catalogue *c, struct varve_disk *disk,
                           const char *name, struct varve_err *err)
{
    if (name[0] == '\0')
        return varve_err_set(err, EINVAL, "Bitmap name cannot be empty: give one on disk '%s'",
                             disk->name);
    if (strlen(name) > VARVE_BITMAP_NAME_MAX)
        return varve_err_set(err, EINVAL,
                             "Bitmap name too long: '%.50s...' on disk '%s' has %zu bytes, at most "
                             "%d are allowed",
                             name, disk->name, strlen(name), VARVE_BITMAP_NAME_MAX);
    return check_job(c, disk, name, err);
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

/* Blocks that no epoch tells are from before a gap, or from after it. */
static int check_blocks_era(struct varve_disk *disk, const struct varve_cat_bitmap *b,
                            struct varve_err *err)
{
    uint64_t live = varve_disk_live_epoch(disk);
    struct varve_timeline tl;
    bool bridged = true;

    if (b->set.nspans > 0 || varve_change_set_is_empty(&b->set) ||
        varve_era(b->since) >= varve_era(live))
        return 0;
    if (varve_timeline_scan(disk->daemon->w, &disk->paths, disk->identity.uuid,
                            &disk->identity.geometry, &tl, NULL) == 0) {
        bridged = varve_timeline_bridged(&tl, b->since, live);
        varve_timeline_fini(&tl);
    }
    return bridged ? 0 : varve_disk_say_doubt(disk, err);
}

int varve_bitmap_check_content(struct varve_disk *disk, const struct varve_cat_bitmap *b,
                               struct varve_err *err)
{
    int rc = varve_bitmap_check_set(disk, &b->set, err);

    return rc < 0 ? rc : check_blocks_era(disk, b, err);
}

int varve_bitmap_check(const struct varve_catalogue *c, struct varve_disk *disk,
                       const struct varve_cat_bitmap *b, struct varve_err *err)
{
    bool never;
    const struct varve_cat_backup *user =
        varve_bitmap_user(c, disk->identity.uuid, b->name, &never);
    struct varve_err why = VARVE_ERR_INIT;
    int rc = check_job(c, disk, b->name, err);

    if (rc < 0)
        return rc;
    if (user)
        return varve_err_set(err, EBUSY,
                             "Bitmap '%.200s' is currently in use by another operation and cannot "
                             "be used: end backup '%s' first",
                             b->name, user->id);
    if (varve_bitmap_check_content(disk, b, &why) < 0)
        return varve_err_set(err, EUCLEAN,
                             "Bitmap '%.100s' is inconsistent and cannot be used: remove it and "
                             "begin a full backup, or let a diff fill it (%.250s)",
                             b->name, why.msg);
    return 0;
}

/* What was written since `end`.  Bitmaps that record are asked for newest first: each adds the
 * epochs between its last beginning and the one's before it, so each epoch is read once, however
 * many there are of both. */
struct recent {
    struct varve_bitmap *map;
    uint64_t end;
};

struct state {
    const struct varve_cat_bitmap *b;
    uint64_t begins; /* its open span; 0: it does not record */
    uint64_t count;
    int rc;
    struct varve_err err;
};

static int begins_cmp(const void *va, const void *vb)
{
    const struct state *a = *(struct state *const *)va, *b = *(struct state *const *)vb;

    return (a->begins < b->begins) - (a->begins > b->begins);
}

/* One that fails tells nothing of those that begin before: they try from where `recent` is. */
static int recent_extend(struct varve_disk *disk, struct recent *r, uint64_t begins,
                         struct varve_err *err)
{
    struct varve_span span = {.first = begins, .end = r->end};
    const struct varve_change_set set = {.spans = &span, .nspans = 1};
    int rc;

    if (begins >= r->end)
        return 0;
    rc = varve_disk_union(disk, &set, 0, r->end, r->map, err);
    if (rc == 0)
        r->end = begins;
    return rc;
}

static void state_ask(struct varve_disk *disk, struct state *s, struct recent *r,
                      struct varve_bitmap *map)
{
    struct varve_change_set rest = s->b->set;
    size_t len = varve_bitmap_nwords(map) * 8;

    s->rc = 0;
    if (s->begins) {
        s->rc = recent_extend(disk, r, s->begins, &s->err);
        memcpy(map->words, r->map->words, len);
        rest.nspans--;
    } else {
        memset(map->words, 0, len);
    }
    if (s->rc == 0)
        s->rc = varve_disk_union(disk, &rest, 0, UINT64_MAX, map, &s->err);
    if (s->rc == 0)
        s->rc = check_blocks_era(disk, s->b, &s->err);
    if (s->rc < 0)
        return;
    varve_changes_round(&disk->identity.geometry, s->b->granularity, map);
    s->count = varve_dirty_bytes(&disk->identity.geometry, map);
}

/* Of all the disk's bitmaps, as of one epoch; false: it has ended meanwhile. */
static bool states_ask(struct varve_disk *disk, struct state **order, size_t n,
                       struct varve_bitmap *recent, struct varve_bitmap *map)
{
    struct recent r = {.map = recent, .end = varve_disk_live_epoch(disk)};
    uint64_t live = r.end;
    struct varve_err err = VARVE_ERR_INIT;
    int rc;

    memset(recent->words, 0, varve_bitmap_nwords(recent) * 8);
    rc = varve_disk_or_live_all(disk, recent, &err);
    for (size_t i = 0; i < n; i++) {
        if (order[i]->begins && rc < 0) {
            order[i]->rc = rc;
            order[i]->err = err;
        } else {
            state_ask(disk, order[i], &r, map);
        }
    }
    return varve_disk_live_epoch(disk) == live;
}

static void states_fail(const struct varve_disk *disk, struct state *states, size_t n, int code,
                        const char *why)
{
    for (size_t i = 0; i < n; i++)
        states[i].rc = varve_err_set(&states[i].err, code, "Disk '%s': %s", disk->name, why);
}

static json_t *state_describe(struct varve_disk *disk, const struct state *s)
{
    const struct varve_catalogue *c = disk->daemon->catalogue;
    const struct varve_cat_bitmap *b = s->b;
    bool never;
    json_t *o = json_pack(
        "{s:s, s:I, s:I, s:b, s:b, s:b, s:b}", "name", b->name, "count",
        (json_int_t)(s->rc == 0 ? s->count : 0), "granularity", (json_int_t)b->granularity,
        "recording", s->rc == 0 && s->begins, /* QEMU: inconsistent implies it is not */
        "busy",
        varve_bitmap_user(c, disk->identity.uuid, b->name, &never) != NULL ||
            varve_catalogue_job_of_bitmap(c, disk->identity.uuid, b->name) != NULL,
        "persistent", (int)!b->transient, "inconsistent", s->rc < 0);

    if (o && s->rc < 0)
        json_object_set_new(o, "reason", json_string(s->err.msg));
    return o;
}

bool varve_bitmap_nobody_looked(int rc)
{
    return rc == -ENOMEM || rc == -EMFILE || rc == -ENFILE;
}

/* NULL: nobody could look at one of them. */
static json_t *states_describe(struct varve_disk *disk, const struct state *states, size_t n,
                               struct varve_err *err)
{
    json_t *list = json_array();

    for (size_t i = 0; i < n; i++) {
        if (varve_bitmap_nobody_looked(states[i].rc)) {
            *err = states[i].err;
            json_decref(list);
            return NULL;
        }
        json_array_append_new(list, state_describe(disk, &states[i]));
    }
    return list;
}

static void states_of(struct varve_disk *disk, const struct varve_cat_disk *cd,
                      struct state *states, struct state **order, struct varve_bitmap *recent,
                      struct varve_bitmap *map)
{
    int tries = 0;

    for (size_t i = 0; i < cd->nbitmaps; i++) {
        const struct varve_change_set *set = &cd->bitmaps[i].set;

        order[i] = &states[i];
        states[i] = (struct state){.b = &cd->bitmaps[i]};
        if (varve_change_set_records(set))
            states[i].begins = set->spans[set->nspans - 1].first;
    }
    qsort(order, cd->nbitmaps, sizeof(*order), begins_cmp);
    while (!states_ask(disk, order, cd->nbitmaps, recent, map) && ++tries < NOW_TRIES)
        ;
    if (tries == NOW_TRIES)
        states_fail(disk, states, cd->nbitmaps, EAGAIN, "its epochs keep changing");
}

json_t *varve_bitmaps_describe(struct varve_disk *disk, struct varve_err *err)
{
    const struct varve_cat_disk *cd =
        varve_catalogue_disk(disk->daemon->catalogue, disk->identity.uuid);
    size_t n = cd ? cd->nbitmaps : 0;
    struct varve_bitmap *recent = varve_bitmap_new(n ? disk->identity.geometry.nblks : 0);
    struct varve_bitmap *map = varve_bitmap_new(n ? disk->identity.geometry.nblks : 0);
    struct state *states = calloc(n + 1, sizeof(*states));
    struct state **order = calloc(n + 1, sizeof(struct state *));
    json_t *list = NULL;

    if (recent && map && states && order) {
        if (n > 0)
            states_of(disk, cd, states, order, recent, map);
        list = states_describe(disk, states, n, err);
    } else {
        varve_err_set(err, ENOMEM, "Disk '%s': no memory for its bitmaps", disk->name);
    }
    free(order);
    free(states);
    free(map);
    free(recent);
    return list;
}
