/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What was written to a disk, told from its epoch files.
 */
#include "server/disk.h"

#include "lib/blocks-file.h"
#include "lib/epoch-era.h"
#include "server/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

uint64_t varve_dirty_bytes(const struct varve_geometry *g, const struct varve_bitmap *map)
{
    uint64_t last = g->nblks - 1, bytes;

    if (g->nblks == 0)
        return 0;
    bytes = varve_bitmap_count(map) << g->shift;
    if (varve_bitmap_test(map, last))
        bytes -= ((last + 1) << g->shift) - g->size;
    return bytes;
}

uint64_t varve_disk_live_epoch(struct varve_disk *disk)
{
    struct varve_ctl_head head;
    struct varve_timeline tl;
    uint64_t live = 0;

    if (disk->source && varve_source_head(disk->source, &head, NULL) == 0)
        return VARVE_NOW_EPOCH(head.now);
    if (varve_timeline_scan(disk->daemon->w, &disk->paths, disk->identity.uuid,
                            &disk->identity.geometry, &tl, NULL) < 0)
        return 0;
    if (tl.nfiles > 0)
        live = tl.files[tl.nfiles - 1].last;
    varve_timeline_fini(&tl);
    return live;
}

static int union_spans(struct varve_disk *disk, const struct varve_change_set *set, uint64_t from,
                       uint64_t end, struct varve_bitmap *into, struct varve_err *err)
{
    struct varve_world *w = disk->daemon->w;
    const struct varve_identity *id = &disk->identity;
    struct varve_timeline tl;
    int rc = varve_timeline_scan(w, &disk->paths, id->uuid, &id->geometry, &tl, err);

    if (rc == 0 && (rc = varve_disk_check_older(disk, err)) < 0)
        varve_timeline_fini(&tl);
    if (rc < 0)
        return rc;
    /* Also what was closed before a gap is no base any more: others wrote after it. */
    for (size_t i = 0; rc == 0 && from == 0 && i < set->nspans; i++) {
        if (varve_era(set->spans[i].first) != varve_era(end) &&
            !varve_timeline_bridged(&tl, set->spans[i].first, end))
            rc = varve_disk_say_doubt(disk, err);
    }
    for (size_t i = 0; rc == 0 && i < set->nspans; i++) {
        uint64_t first = set->spans[i].first > from ? set->spans[i].first : from;
        uint64_t last = set->spans[i].end < end ? set->spans[i].end : end;

        if (first < last)
            rc = varve_timeline_union(w, &disk->paths, id->uuid, &id->geometry, &tl, first, last,
                                      into, err);
    }
    varve_timeline_fini(&tl);
    return rc;
}

static int union_blocks(struct varve_disk *disk, const struct varve_change_set *set,
                        struct varve_bitmap *into, struct varve_err *err)
{
    const struct varve_identity *id = &disk->identity;

    if (!set->has_blocks)
        return 0;
    if (!into)
        return varve_blocks_look(disk->daemon->w, &disk->paths, set->blocks, err);
    return varve_blocks_load(disk->daemon->w, &disk->paths, id->uuid, &id->geometry, set->blocks,
                             into, err);
}

int varve_disk_union(struct varve_disk *disk, const struct varve_change_set *set, uint64_t from,
                     uint64_t end, struct varve_bitmap *into, struct varve_err *err)
{
    int rc = 0;

    pthread_mutex_lock(&disk->timeline_lock);
    if (set->nspans > 0)
        rc = union_spans(disk, set, from, end, into, err);
    if (rc == 0 && from == 0)
        rc = union_blocks(disk, set, into, err);
    pthread_mutex_unlock(&disk->timeline_lock);
    if (rc < 0)
        return varve_err_prefix(err, "Disk '%s'", disk->name);
    if (from == 0 && into)
        varve_disk_or_ranges(disk, set->ranges, set->nranges, into);
    return 0;
}

void varve_disk_or_ranges(struct varve_disk *disk, const struct varve_cat_range *ranges, size_t n,
                          struct varve_bitmap *into)
{
    const struct varve_geometry *g = &disk->identity.geometry;

    for (size_t i = 0; i < n; i++) {
        uint64_t off = ranges[i].off, len = ranges[i].len;

        if (off >= g->size)
            continue;
        if (len > g->size - off)
            len = g->size - off;
        varve_bitmap_set(into, off >> g->shift, ((off + len - 1) >> g->shift) + 1);
    }
}

int varve_disk_or_live(struct varve_disk *disk, struct varve_bitmap *into, struct varve_err *err)
{
    uint64_t live = varve_disk_live_epoch(disk);
    int rc;

    if (disk->source) {
        rc = varve_source_or_live(disk->source, live, into, err);
        return rc < 0 ? varve_err_prefix(err, "Disk '%s'", disk->name) : 0;
    }
    if (live == 0)
        return varve_err_set(err, ENOENT, "Disk '%s' has no epochs yet", disk->name);
    rc = varve_epoch_file_load(disk->daemon->w, &disk->paths, disk->identity.uuid,
                               &disk->identity.geometry, live, live, into, err);
    return rc < 0 ? varve_err_prefix(err, "Disk '%s'", disk->name) : 0;
}

int varve_disk_live_dirty(struct varve_disk *disk, uint64_t *bytes)
{
    struct varve_err unsaid = VARVE_ERR_INIT; /* it takes no NULL */
    const struct varve_geometry *g = &disk->identity.geometry;
    struct varve_bitmap *map = varve_bitmap_new(g->nblks);
    int rc = map ? varve_disk_or_live(disk, map, &unsaid) : -ENOMEM;

    *bytes = rc == 0 ? varve_dirty_bytes(g, map) : 0;
    free(map);
    return rc;
}

void varve_disk_note_dirt(struct varve_disk *disk)
{
    struct varve_world *w = disk->daemon->w;
    uint64_t now = w->monotonic_ns(w), live, bytes;

    if (disk->gone || !disk->source)
        return;
    live = varve_disk_live_epoch(disk);
    if (varve_dirt_rate_due(&disk->dirt, live, now) && varve_disk_live_dirty(disk, &bytes) == 0)
        varve_dirt_rate_note(&disk->dirt, live, now, bytes);
}

int varve_disk_or_live_all(struct varve_disk *disk, struct varve_bitmap *into,
                           struct varve_err *err)
{
    int rc = varve_disk_or_live(disk, into, err);

    if (rc != -EUCLEAN)
        return rc;
    varve_bitmap_set(into, 0, into->nbits);
    return 0;
}

static int add_number(uint64_t **list, size_t *n, uint64_t number)
{
    uint64_t *more = realloc(*list, (*n + 1) * sizeof(**list));

    if (!more)
        return -ENOMEM;
    more[(*n)++] = number;
    *list = more;
    return 0;
}

/* What the catalogue refers to, of one disk. */
struct needed {
    uint64_t *boundaries;
    size_t nboundaries;
    uint8_t (*blocks)[VARVE_DIGEST_LEN];
    size_t nblocks;
};

static int need_blocks(struct needed *n, const uint8_t blocks[VARVE_DIGEST_LEN])
{
    uint8_t(*more)[VARVE_DIGEST_LEN] = realloc(n->blocks, (n->nblocks + 1) * sizeof(*n->blocks));

    if (!more)
        return -ENOMEM;
    n->blocks = more;
    memcpy(more[n->nblocks++], blocks, VARVE_DIGEST_LEN);
    return 0;
}

static int need_set(struct needed *n, const struct varve_change_set *s)
{
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < s->nspans; i++) {
        rc = add_number(&n->boundaries, &n->nboundaries, s->spans[i].first);
        if (rc == 0 && s->spans[i].end != VARVE_SPAN_OPEN)
            rc = add_number(&n->boundaries, &n->nboundaries, s->spans[i].end);
    }
    return rc == 0 && s->has_blocks ? need_blocks(n, s->blocks) : rc;
}

static int need_checkpoint(struct needed *n, const struct varve_cat_checkpoint *p)
{
    int rc = add_number(&n->boundaries, &n->nboundaries, p->epoch);

    return rc == 0 && p->has_blocks ? need_blocks(n, p->blocks) : rc;
}

static int need_job(struct needed *n, const struct varve_cat_job *j)
{
    int rc = j->start ? add_number(&n->boundaries, &n->nboundaries, j->start) : 0;

    return rc == 0 && j->has_blocks ? need_blocks(n, j->blocks) : rc;
}

static int need_backup_disk(struct needed *n, const struct varve_cat_backup_disk *bd)
{
    int rc = add_number(&n->boundaries, &n->nboundaries, bd->boundary);

    if (rc == 0 && bd->base != 0)
        rc = add_number(&n->boundaries, &n->nboundaries, bd->base);
    for (size_t i = 0; rc == 0 && i < bd->nextras; i++)
        rc = need_set(n, &bd->extras[i].set);
    return rc < 0 ? rc : need_set(n, &bd->set);
}

/* Exports NAME@BASE of open backups go by checkpoints and bitmaps: one that is deleted takes its
 * exports' answers along.  Extra exports have what they need of their own. */
static int disk_needed(struct varve_disk *disk, struct needed *n)
{
    const struct varve_catalogue *c = disk->daemon->catalogue;
    const struct varve_cat_disk *cd = varve_catalogue_disk(c, disk->identity.uuid);
    int rc = 0;

    for (size_t i = 0; cd && rc == 0 && i < cd->ncheckpoints; i++)
        rc = need_checkpoint(n, &cd->checkpoints[i]);
    for (size_t i = 0; cd && rc == 0 && i < cd->nexports; i++)
        rc = add_number(&n->boundaries, &n->nboundaries, cd->exports[i].known);
    for (size_t i = 0; cd && rc == 0 && i < cd->nbitmaps; i++)
        rc = need_set(n, &cd->bitmaps[i].set);
    for (size_t i = 0; i < c->nbackups; i++) {
        const struct varve_cat_backup *b = &c->backups[i];

        for (size_t k = 0; varve_cat_backup_open(b) && rc == 0 && k < b->ndisks; k++) {
            if (memcmp(b->disks[k].uuid, disk->identity.uuid, 16) == 0)
                rc = need_backup_disk(n, &b->disks[k]);
        }
    }
    for (size_t i = 0; i < c->njobs && rc == 0; i++) {
        if (varve_cat_job_open(&c->jobs[i]) &&
            memcmp(c->jobs[i].uuid, disk->identity.uuid, 16) == 0)
            rc = need_job(n, &c->jobs[i]);
    }
    return rc;
}

void varve_disk_tidy(struct varve_disk *disk)
{
    const struct varve_identity *id = &disk->identity;
    struct varve_err err = VARVE_ERR_INIT;
    struct needed n = {.boundaries = NULL};

    if (!disk->known || disk->gone)
        return;
    if (disk_needed(disk, &n) == 0) {
        pthread_mutex_lock(&disk->timeline_lock);
        if (varve_timeline_tidy(disk->daemon->w, &disk->paths, id->uuid, &id->geometry,
                                n.boundaries, n.nboundaries, &err) < 0)
            varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .disk = disk->name),
                            "Disk '%s': cannot free old epochs: %s", disk->name, err.msg);
        varve_blocks_tidy(disk->daemon->w, &disk->paths,
                          (const uint8_t(*)[VARVE_DIGEST_LEN])n.blocks, n.nblocks);
        pthread_mutex_unlock(&disk->timeline_lock);
    }
    free(n.boundaries);
    free(n.blocks);
}
