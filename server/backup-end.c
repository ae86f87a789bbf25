/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The end of a backup: committed first, so that a lost reply can be asked for again and a crash
 * finds it ended; then the exports go, then what the views kept is freed, then epochs that nobody
 * needs.
 */
#include "server/backup.h"

#include "lib/blocks-file.h"
#include "server/log.h"
#include "server/release.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- healing: what was answered with an error counts as changed at the new base
 * -------------------- */

/* The map's runs, as ranges; *out is to be freed. */
static int heal_ranges(const struct varve_geometry *g, const struct varve_bitmap *map,
                       struct varve_change_set *out)
{
    struct varve_cat_range ranges[256];
    uint64_t from = varve_bitmap_find(map, 0, true);

    memset(out, 0, sizeof(*out));
    while (from < map->nbits) {
        size_t n = 0;

        while (from < map->nbits && n < sizeof(ranges) / sizeof(ranges[0])) {
            uint64_t to = varve_bitmap_find(map, from, false);

            ranges[n].off = from << g->shift;
            ranges[n].len = varve_block_end(g, to - 1) - ranges[n].off;
            n++;
            from = varve_bitmap_find(map, to, true);
        }
        if (varve_change_set_add_ranges(out, ranges, n) < 0) {
            varve_change_set_clear(out);
            return -ENOMEM;
        }
    }
    return 0;
}

/* What clients of the disk got errors for; *out is the caller's to clear. */
static int heal_of(const struct varve_backup_disk *bd, struct varve_change_set *out,
                   struct varve_err *err)
{
    const struct varve_geometry *g = &bd->disk->identity.geometry;
    struct varve_bitmap *map;
    int rc = 0;

    memset(out, 0, sizeof(*out));
    if (!bd->served)
        return 0;
    map = varve_bitmap_new(g->nblks);
    if (!map)
        return varve_err_set(err, ENOMEM, "no memory for a map");
    if (varve_failed_reads_or(bd->served->failed, map) && heal_ranges(g, map, out) < 0)
        rc = varve_err_set(err, ENOMEM, "no memory for a map");
    free(map);
    return rc;
}

static int heal_checkpoint(struct varve_cat_checkpoint *p, const struct varve_change_set *heal,
                           struct varve_err *err)
{
    struct varve_change_set all = {.nranges = 0};

    if (heal->nranges == 0)
        return 0;
    if (varve_change_set_add_ranges(&all, p->heal, p->nheal) < 0 ||
        varve_change_set_add_ranges(&all, heal->ranges, heal->nranges) < 0) {
        varve_change_set_clear(&all);
        return varve_err_set(err, ENOMEM, "no memory for checkpoint '%s'", p->name);
    }
    free(p->heal);
    p->heal = all.ranges;
    p->nheal = all.nranges;
    return 0;
}

/* Checkpoints of the backup's instant are bases by it, and from one that is not its own other backups
 * may have begun before this one's end, even if it is deleted now; what is later may stand on those.
 * So all of them have the ranges. */
static int checkpoints_heal(struct varve_catalogue *draft, const struct varve_cat_backup_disk *cbd,
                            const struct varve_change_set *heal, struct varve_err *err)
{
    struct varve_cat_disk *cd = varve_catalogue_disk(draft, cbd->uuid);
    int rc = 0;

    for (size_t i = 0; cd && rc == 0 && i < cd->ncheckpoints; i++) {
        struct varve_cat_checkpoint *p = &cd->checkpoints[i];

        if (p->epoch < cbd->boundary)
            continue;
        rc = heal_checkpoint(p, heal, err);
    }
    return rc;
}

/* --- bitmaps: three rules for one base
 * ---------------------------------------------------------- */

/* The backup's bitmap, if it is still what it was at the beginning; nothing may change one that a
 * backup uses, but a daemon that ends takes transient ones along. */
static struct varve_cat_bitmap *bitmap_of(struct varve_catalogue *draft,
                                          const struct varve_cat_backup_disk *cbd)
{
    struct varve_cat_bitmap *m =
        cbd->bitmap ? varve_catalogue_bitmap(varve_catalogue_disk(draft, cbd->uuid), cbd->bitmap)
                    : NULL;

    return m && varve_change_set_equal(&m->set, &cbd->set) ? m : NULL;
}

/* What becomes of a bitmap now is what it has at the next boundary. */
static uint64_t bitmap_since(const struct varve_backup_disk *bd)
{
    return varve_disk_live_epoch(bd->disk) + 1;
}

/* The bitmap has what was written since the backup's boundary, and what the backup could not
 * deliver. */
static int bitmap_move(struct varve_cat_bitmap *m, const struct varve_backup_disk *bd,
                       const struct varve_cat_backup_disk *cbd, const struct varve_change_set *heal,
                       struct varve_err *err)
{
    bool records = varve_change_set_records(&m->set);

    varve_change_set_clear(&m->set);
    m->since = bitmap_since(bd);
    if ((records && varve_change_set_add_span(&m->set, cbd->boundary, VARVE_SPAN_OPEN) < 0) ||
        varve_change_set_add_ranges(&m->set, heal->ranges, heal->nranges) < 0)
        return varve_err_set(err, ENOMEM, "no memory for bitmap '%.200s'", m->name);
    return 0;
}

static bool bitmap_begins_at(const struct varve_cat_bitmap *m, uint64_t boundary)
{
    for (size_t i = 0; i < m->set.nspans; i++) {
        if (m->set.spans[i].first == boundary)
            return true;
    }
    return false;
}

/* Bitmaps that begin at the backup's instant, as those added in its transaction do, are bases by
 * it, too: they have what it could not deliver.  One that another backup uses differs by that from
 * what it was at that one's beginning, so it stays where it is. */
static int bitmaps_heal(struct varve_catalogue *draft, const struct varve_cat_backup_disk *cbd,
                        const struct varve_change_set *heal, struct varve_err *err)
{
    struct varve_cat_disk *cd = varve_catalogue_disk(draft, cbd->uuid);

    for (size_t i = 0; cd && i < cd->nbitmaps; i++) {
        struct varve_cat_bitmap *m = &cd->bitmaps[i];

        if (!bitmap_begins_at(m, cbd->boundary))
            continue;
        if (varve_change_set_add_ranges(&m->set, heal->ranges, heal->nranges) < 0)
            return varve_err_set(err, ENOMEM, "no memory for bitmap '%.200s'", m->name);
    }
    return 0;
}

static int draft_succeed(struct varve_catalogue *draft, const struct varve_cat_backup *cb,
                         const struct varve_backup *b, struct varve_err *err)
{
    for (size_t i = 0; i < cb->ndisks; i++) {
        const struct varve_cat_backup_disk *cbd = &cb->disks[i];
        struct varve_cat_bitmap *m = cbd->mode == VARVE_BITMAP_NEVER ? NULL : bitmap_of(draft, cbd);
        struct varve_change_set heal;
        int rc = heal_of(&b->disks[i], &heal, err);

        if (rc == 0 && m)
            rc = bitmap_move(m, &b->disks[i], cbd, &heal, err);
        if (rc == 0)
            rc = bitmaps_heal(draft, cbd, &heal, err);
        if (rc == 0)
            rc = checkpoints_heal(draft, cbd, &heal, err);
        varve_change_set_clear(&heal);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* What was released and can have been copied before: what is lost to the view cannot, unless it was
 * read before it was lost, which nobody knows. */
static int released_copied(const struct varve_backup_disk *bd, struct varve_bitmap *released,
                           struct varve_bitmap *lost, struct varve_err *err)
{
    struct varve_source *source = bd->served->source;
    int rc = varve_view_or_released(source, &bd->served->view, released, err);

    if (rc == 0)
        rc = varve_view_or_lost(source, &bd->served->view, lost, err);
    for (size_t i = 0; rc == 0 && i < varve_bitmap_nwords(lost); i++) {
        released->words[i] &= ~lost->words[i];
        lost->words[i] = 0;
    }
    return rc;
}

/* What the bitmap held at the boundary, without what was released, with what was lost or answered
 * with an error; NULL: nothing was released, or that cannot be told, with err. */
static struct varve_bitmap *bitmap_unreleased(const struct varve_backup_disk *bd,
                                              const struct varve_cat_backup_disk *cbd,
                                              struct varve_err *err)
{
    struct varve_disk *disk = bd->disk;
    const struct varve_geometry *g = &disk->identity.geometry;
    struct varve_bitmap *released = varve_bitmap_new(g->nblks), *map = varve_bitmap_new(g->nblks);
    struct varve_change_set heal = {.nranges = 0};
    int rc = released && map ? varve_release_fetch(disk, err)
                             : varve_err_set(err, ENOMEM, "no memory for a map");

    if (rc == 0)
        rc = released_copied(bd, released, map, err); /* the map is empty again */
    if (rc == 0 && varve_bitmap_find(released, 0, true) == released->nbits)
        rc = -ENODATA;
    if (rc == 0)
        rc = varve_disk_union(disk, &cbd->set, 0, cbd->boundary, map, err);
    if (rc == 0) {
        varve_changes_round(g, cbd->granularity, map);
        for (size_t i = 0; i < varve_bitmap_nwords(map); i++)
            map->words[i] &= ~released->words[i];
        rc = heal_of(bd, &heal, err);
    }
    if (rc == 0)
        varve_disk_or_ranges(disk, heal.ranges, heal.nranges, map);
    varve_change_set_clear(&heal);
    free(released);
    if (rc == 0)
        return map;
    free(map);
    return NULL;
}

/* Mode `always` of a backup that has failed: what its clients released counts as copied.  Where
 * that cannot be told or kept, the bitmap keeps all that it had, which only adds. */
static void bitmap_drop_released(struct varve_cat_bitmap *m, const struct varve_backup_disk *bd,
                                 const struct varve_cat_backup_disk *cbd)
{
    struct varve_disk *disk = bd->disk;
    const struct varve_identity *id = &disk->identity;
    struct varve_change_set set = {.nspans = 0};
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_bitmap *map = bd->served ? bitmap_unreleased(bd, cbd, &err) : NULL;
    int rc = map ? 0 : -ENODATA;

    if (map && varve_bitmap_find(map, 0, true) < map->nbits) {
        rc = varve_blocks_write(disk->daemon->w, &disk->paths, id->uuid, &id->geometry, map,
                                set.blocks, &err);
        set.has_blocks = rc == 0;
    }
    if (rc == 0 && varve_change_set_records(&m->set) &&
        varve_change_set_add_span(&set, cbd->boundary, VARVE_SPAN_OPEN) < 0)
        rc = varve_err_set(&err, ENOMEM, "no memory for a bitmap");
    if (err.code != 0)
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .disk = disk->name),
                        "Disk '%s': bitmap '%.200s' keeps what was released, too: %s", disk->name,
                        m->name, err.msg);
    free(map);
    varve_change_set_clear(rc == 0 ? &m->set : &set);
    if (rc == 0) {
        m->set = set;
        m->since = bitmap_since(bd);
    }
}

static void draft_fail(struct varve_catalogue *draft, const struct varve_cat_backup *cb,
                       const struct varve_backup *b)
{
    for (size_t i = 0; b && i < cb->ndisks; i++) {
        const struct varve_cat_backup_disk *cbd = &cb->disks[i];
        struct varve_cat_bitmap *m =
            cbd->mode == VARVE_BITMAP_ALWAYS ? bitmap_of(draft, cbd) : NULL;

        if (m && cb->release)
            bitmap_drop_released(m, &b->disks[i], cbd);
    }
}

/* --- ending
 * ---------------------------------------------------------------------------------------- */

static void draft_drop_checkpoint(struct varve_catalogue *draft, const struct varve_cat_backup *cb)
{
    for (size_t i = 0; i < cb->ndisks && cb->checkpoint[0]; i++) {
        struct varve_cat_disk *cd = varve_catalogue_disk(draft, cb->disks[i].uuid);
        struct varve_cat_checkpoint *p = varve_catalogue_checkpoint(cd, cb->checkpoint);

        if (p && strcmp(p->backup, cb->id) == 0)
            varve_catalogue_remove_checkpoint(cd, cb->checkpoint);
    }
}

/* Who has succeeded owns nothing any more: its id may be another's one day. */
static void draft_free_checkpoint(struct varve_catalogue *draft, const struct varve_cat_backup *cb)
{
    for (size_t i = 0; i < cb->ndisks && cb->checkpoint[0]; i++) {
        struct varve_cat_checkpoint *p = varve_catalogue_checkpoint(
            varve_catalogue_disk(draft, cb->disks[i].uuid), cb->checkpoint);

        if (p && strcmp(p->backup, cb->id) == 0)
            p->backup[0] = '\0';
    }
}

/* Success is believed only of views that can be read to the end. */
static int end_check(struct varve_daemon *d, const struct varve_cat_backup *cb,
                     struct varve_err *err)
{
    const struct varve_backup *b = varve_backups_find(d, cb->id);
    struct varve_err why = VARVE_ERR_INIT;

    if (cb->state == VARVE_BACKUP_BROKEN)
        return varve_err_set(err, EINVAL, "Backup '%s' is broken (%s): end it with success false",
                             cb->id, cb->reason);
    if (!b)
        return varve_err_set(err, EINVAL,
                             "Backup '%s' could not go on when the daemon was started: end it with "
                             "success false",
                             cb->id);
    for (size_t i = 0; i < b->ndisks; i++) {
        const struct varve_backup_disk *bd = &b->disks[i];

        if (bd->served && varve_served_view_check(bd->served, &why) == -ESTALE)
            return varve_err_set(err, EINVAL,
                                 "Backup '%s' is broken (disk '%s': %s): end it with success false",
                                 cb->id, bd->disk->name, why.msg);
    }
    return 0;
}

int varve_backup_draft_end(struct varve_daemon *d, struct varve_catalogue *draft, const char *id,
                           bool success, const char *reason, struct varve_err *err)
{
    const struct varve_backup *b = varve_backups_find(d, id);
    struct varve_cat_backup *cb = varve_catalogue_backup(draft, id);
    int rc = success ? end_check(d, cb, err) : 0;

    if (rc < 0)
        return rc;
    varve_catalogue_trim(
        draft); /* as long as this one is open: whatever the clock says, it stays */
    cb = varve_catalogue_backup(draft, id);
    for (size_t i = 0; b && i < cb->ndisks; i++) {
        struct varve_backup_counts n;

        varve_backup_count(&b->disks[i], &n);
        cb->disks[i].bytes_read = n.bytes_read;
        cb->disks[i].bytes_released = n.released_bytes;
    }
    cb->ended_ns = d->w->realtime_ns(d->w);
    varve_catalogue_remove_extras(cb);
    if (success) {
        rc = draft_succeed(draft, cb, b, err);
        if (rc < 0)
            return rc;
        draft_free_checkpoint(draft, cb);
        cb->state = VARVE_BACKUP_COMPLETED;
    } else {
        draft_fail(draft, cb, b);
        draft_drop_checkpoint(draft, cb);
        cb->state = VARVE_BACKUP_FAILED;
        if (!cb->reason[0])
            varve_backup_set_reason(cb, reason);
    }
    return 0;
}

/* The end that was asked for has come before, or another one. */
static int end_again(const struct varve_cat_backup *cb, bool success, struct varve_err *err)
{
    bool completed = cb->state == VARVE_BACKUP_COMPLETED;

    if (completed == success)
        return 0;
    return varve_err_set(err, EINVAL, "Backup '%s' has ended before, as %s%s%s", cb->id,
                         completed ? "completed" : "failed", cb->reason[0] ? ": " : "", cb->reason);
}

/* After the commit: nothing here can fail the command any more. */
static void end_clean_up(struct varve_daemon *d, const char *id)
{
    const struct varve_cat_backup *cb = varve_catalogue_backup(d->catalogue, id);
    struct varve_backup *b = varve_backups_find(d, id);

    for (size_t i = 0; b && i < b->ndisks; i++) {
        if (b->disks[i].served)
            varve_failed_reads_forget(b->disks[i].served->failed);
    }
    if (b)
        varve_backup_withdraw(b);
    for (size_t i = 0; i < cb->ndisks; i++) {
        struct varve_disk *disk = varve_disks_by_uuid(d, cb->disks[i].uuid);

        if (!disk)
            continue;
        varve_backups_end_stray_views(disk);
        varve_disk_tidy(disk);
    }
}

void varve_backup_ended(struct varve_daemon *d, const char *id)
{
    const struct varve_cat_backup *cb = varve_catalogue_backup(d->catalogue, id);
    const char *how = cb->state == VARVE_BACKUP_COMPLETED ? "completed" : "failed";

    end_clean_up(d, id);
    varve_log_about(VARVE_ABOUT(.level = cb->state == VARVE_BACKUP_COMPLETED ? VARVE_LOG_INFO
                                                                             : VARVE_LOG_WARNING,
                                .backup = id),
                    "Backup '%s' has %s%s%s", id, how, cb->reason[0] ? ": " : "", cb->reason);
    varve_events_send(d->events, "BACKUP_COMPLETED",
                      json_pack("{s:s, s:s, s:s}", "id", id, "state", how, "reason", cb->reason));
}

int varve_backup_end(struct varve_daemon *d, const char *id, bool success, const char *reason,
                     struct varve_err *err)
{
    const struct varve_cat_backup *cb = varve_catalogue_backup(d->catalogue, id);
    struct varve_catalogue *draft;
    int rc;

    if (!cb)
        return varve_err_set(
            err, ENOENT, "There is no backup '%.100s': query-backups lists those there are", id);
    if (!varve_cat_backup_open(cb))
        return end_again(cb, success, err);
    draft = varve_daemon_draft(d, err);
    if (!draft)
        return -ENOMEM;
    rc = varve_backup_draft_end(d, draft, id, success, reason, err);
    if (rc < 0) {
        varve_catalogue_free(draft);
        return rc;
    }
    rc = varve_daemon_commit(d, draft, err);
    if (rc < 0)
        return rc;
    varve_backup_ended(d, id);
    return 0;
}
