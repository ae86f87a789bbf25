/* SPDX-License-Identifier: BSD-3-Clause
 *
 * checkpoint-export, checkpoint-import: a checkpoint's facts kept outside of the state directory
 * (lib/checkpoint-file.h), and brought back from there.
 *
 *     made        known                     now
 *      |  blocks    |   epochs, contiguous   |
 *      X------------Y------------------------|      what changed since X = blocks and epochs since
 * Y
 *
 * The file has the blocks written between the checkpoint's boundary X and the newest boundary there
 * is, Y: no boundary is made for it, and nothing waits.  What was written since Y is in the epochs;
 * so the file is worth something as long as the disk's timeline goes from Y to now without a gap.
 *
 *  1. Tidying would merge Y away once nothing needs it.  So an export is noted in the catalogue,
 * and keeps Y, until somebody gives it up; deleting the checkpoint does not, that is what exports
 *     are for.  It costs one map of the disk at most, and there is a limit to their number.
 *  2. A second export of the same checkpoint tells the same Y: all its files stay good, under one
 *     note.  So export, delete and import in any order and number leave one note and one
 * checkpoint.
 *  3. Numbers of epochs begin anew where a state directory came back from an older copy.  The birth
 *     id of Y says whether it is the same boundary.
 *  4. Import looks for X first, which is as good; then for Y, and then the checkpoint has the
 * file's blocks, durably, before the catalogue names them (edges.md 11, 15).  Else it is refused:
 * what was written since would be guessed.
 *  5. The note is durable before the file has its name, so no file is there that was never kept;
 * who dies between the two leaves a note that query-checkpoints shows.
 */
#include "server/transaction.h"

#include "lib/blocks-file.h"
#include "lib/checkpoint-file.h"
#include "server/args.h"
#include "server/changes.h"
#include "server/commands.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const uint8_t no_id[VARVE_EPOCH_ID_LEN];

/* --- arguments ------------------------------------------------------------------------------ */

struct arguments {
    struct varve_disk *disk;
    const char *name, *file; /* borrowed from the JSON */
};

static int arguments_parse(struct varve_daemon *d, json_t *data, struct arguments *a,
                           struct varve_err *err)
{
    static const char *const known[] = {"disk", "name", "file", NULL};
    const char *disk;
    int rc = varve_args_check(data, known, NULL, err);

    if (rc == 0)
        rc = varve_args_string(data, "disk", true, &disk, err);
    if (rc == 0)
        rc = varve_args_name(data, "name", true, &a->name, err);
    if (rc == 0)
        rc = varve_args_string(data, "file", true, &a->file, err);
    if (rc < 0)
        return rc;
    if (a->file[0] != '/')
        return varve_err_set(err, EINVAL,
                             "Parameter 'file' must be an absolute path: varved opens it, whose "
                             "working directory is another");
    for (const char *c = a->file; *c; c++) {
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            return varve_err_set(err, EINVAL, "Parameter 'file' holds a control character");
    }
    varve_disks_refresh(d);
    return varve_disks_find(d, disk, &a->disk, err);
}

static int timeline_scan(struct varve_disk *disk, struct varve_timeline *tl, struct varve_err *err)
{
    return varve_timeline_scan(disk->daemon->w, &disk->paths, disk->identity.uuid,
                               &disk->identity.geometry, tl, err);
}

static int timeline_union(struct varve_disk *disk, const struct varve_timeline *tl, uint64_t first,
                          uint64_t end, struct varve_bitmap *into, struct varve_err *err)
{
    return varve_timeline_union(disk->daemon->w, &disk->paths, disk->identity.uuid,
                                &disk->identity.geometry, tl, first, end, into, err);
}

/* --- export --------------------------------------------------------------------------------- */

/* A checkpoint of that boundary which the backup did not make. */
static bool others_at(const struct varve_cat_disk *cd, const struct varve_cat_backup *b,
                      uint64_t boundary)
{
    for (size_t i = 0; i < cd->ncheckpoints; i++) {
        if (cd->checkpoints[i].epoch == boundary && strcmp(cd->checkpoints[i].backup, b->id) != 0)
            return true;
    }
    return false;
}

/* A running backup whose end may still add ranges to the checkpoint (see checkpoints_heal() of
 * backup-end.c): a file written before that would lack them for ever.  NULL: there is none. */
static const struct varve_cat_backup *to_come(const struct varve_catalogue *c,
                                              const struct varve_cat_disk *cd,
                                              const struct varve_cat_checkpoint *p)
{
    uint64_t made = varve_cat_checkpoint_made(p);

    for (size_t i = 0; i < c->nbackups; i++) {
        const struct varve_cat_backup *b = &c->backups[i];

        for (size_t k = 0; varve_cat_backup_open(b) && k < b->ndisks; k++) {
            uint64_t boundary = b->disks[k].boundary;

            if (memcmp(b->disks[k].uuid, cd->uuid, 16) == 0 &&
                (made == boundary || (made > boundary && others_at(cd, b, boundary))))
                return b;
        }
    }
    return NULL;
}

static int exportable(const struct varve_catalogue *c, const struct arguments *a,
                      const struct varve_cat_checkpoint **out, struct varve_err *err)
{
    const struct varve_cat_disk *cd = varve_catalogue_disk(c, a->disk->identity.uuid);
    const struct varve_cat_checkpoint *p = varve_catalogue_checkpoint(cd, a->name);
    const struct varve_cat_backup *own;

    if (!p)
        return varve_err_set(err, ENOENT,
                             "Disk '%s' has no checkpoint '%s': query-checkpoints lists those "
                             "there are",
                             a->disk->name, a->name);
    own = p->backup[0] ? varve_catalogue_backup(c, p->backup) : NULL;
    if (own && varve_cat_backup_open(own))
        return varve_err_set(err, EBUSY,
                             "Disk '%s': checkpoint '%s' belongs to backup '%s', which still "
                             "runs: end that first",
                             a->disk->name, a->name, own->id);
    own = to_come(c, cd, p);
    if (own)
        return varve_err_set(err, EBUSY,
                             "Disk '%s': what backup '%s', which still runs, cannot read belongs "
                             "to checkpoint '%s', too: end that first",
                             a->disk->name, own->id, a->name);
    *out = p;
    return 0;
}

/* The boundary up to which the file is to know: the one that an earlier export has, if that can
 * still be told, else the newest. */
static int export_until(struct varve_disk *disk, const struct varve_timeline *tl,
                        const struct varve_cat_checkpoint *p, const struct varve_cat_export *before,
                        struct varve_checkpoint_file *f, struct varve_err *err)
{
    uint64_t live = varve_disk_live_epoch(disk);
    const struct varve_epoch_file *at = before ? varve_timeline_at(tl, before->known) : NULL;

    if (!at || at->first < p->epoch || memcmp(at->id, no_id, sizeof(no_id)) == 0 ||
        timeline_union(disk, tl, at->first, live, NULL, NULL) < 0)
        at = varve_timeline_at(tl, live);
    if (!at)
        return varve_err_set(err, EUCLEAN,
                             "the map of epoch %" PRIu64 " is missing from %s, or damaged", live,
                             disk->paths.state);
    if (memcmp(at->id, no_id, sizeof(no_id)) == 0)
        return varve_err_set(err, ENOTSUP,
                             "epoch %" PRIu64 " was begun by an older version of varve, whose "
                             "epochs cannot be told apart for ever: have nbdkit use the plugin of "
                             "this version, create a checkpoint, and then export again",
                             at->first);
    f->known = at->first;
    memcpy(f->known_id, at->id, sizeof(f->known_id));
    return 0;
}

/* Ranges within the disk, in order. */
static int export_ranges(const struct varve_cat_checkpoint *p, struct varve_checkpoint_file *f,
                         struct varve_err *err)
{
    struct varve_change_set set = {.has_blocks = false};
    int rc = varve_change_set_add_ranges(&set, p->heal, p->nheal);

    f->ranges = calloc(set.nranges + 1, sizeof(*f->ranges));
    if (rc < 0 || !f->ranges) {
        varve_change_set_clear(&set);
        return varve_err_set(err, ENOMEM, "no memory for checkpoint '%s'", p->name);
    }
    for (size_t i = 0; i < set.nranges; i++) {
        struct varve_cat_range r = set.ranges[i];

        if (r.off >= f->geometry.size)
            continue;
        if (r.len > f->geometry.size - r.off)
            r.len = f->geometry.size - r.off;
        f->ranges[f->nranges++] = r;
    }
    varve_change_set_clear(&set);
    return 0;
}

static int export_blocks(struct varve_disk *disk, const struct varve_timeline *tl,
                         const struct varve_cat_checkpoint *p, struct varve_checkpoint_file *f,
                         struct varve_err *err)
{
    const struct varve_epoch_file *at = varve_timeline_at(tl, p->epoch);
    int rc;

    f->blocks = varve_bitmap_new(f->geometry.nblks);
    if (!f->blocks)
        return varve_err_set(err, ENOMEM, "no memory for a map");
    rc = timeline_union(disk, tl, p->epoch, f->known, f->blocks, err);
    if (rc == 0 && p->has_blocks)
        rc = varve_blocks_load(disk->daemon->w, &disk->paths, f->uuid, &f->geometry, p->blocks,
                               f->blocks, err);
    if (rc == 0 && at && f->epoch == p->epoch)
        memcpy(f->epoch_id, at->id, sizeof(f->epoch_id));
    return rc;
}

/* What the file is to say; fini f in any case. */
static int export_make(struct varve_disk *disk, const struct varve_cat_checkpoint *p,
                       const struct varve_cat_export *before, struct varve_checkpoint_file *f,
                       struct varve_err *err)
{
    struct varve_world *w = disk->daemon->w;
    struct varve_timeline tl;
    int rc;

    memset(f, 0, sizeof(*f));
    f->geometry = disk->identity.geometry;
    memcpy(f->uuid, disk->identity.uuid, sizeof(f->uuid));
    memcpy(f->name, p->name, sizeof(f->name));
    memcpy(f->disk, disk->name, sizeof(f->disk));
    f->time_ns = p->time_ns;
    f->exported_ns = w->realtime_ns(w);
    f->epoch = varve_cat_checkpoint_made(p);
    rc = export_ranges(p, f, err);
    if (rc < 0)
        return rc;
    pthread_mutex_lock(&disk->timeline_lock);
    rc = timeline_scan(disk, &tl, err);
    if (rc == 0) {
        rc = export_until(disk, &tl, p, before, f, err);
        if (rc == 0)
            rc = export_blocks(disk, &tl, p, f, err);
        varve_timeline_fini(&tl);
    }
    pthread_mutex_unlock(&disk->timeline_lock);
    return rc;
}

/* The catalogue with the note that this was exported, or with what was there before. */
static int export_note(struct varve_disk *disk, const char *name, uint64_t made,
                       const struct varve_cat_export *note, struct varve_err *err)
{
    struct varve_daemon *d = disk->daemon;
    struct varve_catalogue *draft = varve_daemon_draft(d, err);
    struct varve_cat_disk *cd =
        draft ? varve_catalogue_add_disk(draft, disk->identity.uuid, disk->name) : NULL;
    int rc = 0;

    if (!cd) {
        varve_catalogue_free(draft);
        return varve_err_set(err, ENOMEM, "no memory for the catalogue");
    }
    if (note)
        rc = varve_catalogue_add_export(cd, note, err);
    else
        varve_catalogue_remove_exports(cd, name, made);
    if (rc < 0) {
        varve_catalogue_free(draft);
        return rc;
    }
    return varve_daemon_commit(d, draft, err);
}

/* Writes the file and notes it; on error neither is there, unless err says so. */
static int export_write(struct varve_disk *disk, const char *file,
                        const struct varve_checkpoint_file *f,
                        const struct varve_cat_export *before, struct varve_err *err)
{
    struct varve_world *w = disk->daemon->w;
    struct varve_cat_export old = {.name = ""}, note = {.name = ""};
    bool known = before && before->known == f->known;
    int rc;

    if (before)
        old = *before; /* a commit frees it */
    memcpy(note.name, f->name, sizeof(note.name));
    note.time_ns = f->time_ns;
    note.exported_ns = f->exported_ns;
    note.made = f->epoch;
    note.known = f->known;
    rc = varve_checkpoint_file_stage(w, file, f, err);
    if (rc < 0)
        return rc;
    rc = known ? 0 : export_note(disk, f->name, f->epoch, &note, err);
    if (rc < 0) {
        varve_checkpoint_file_discard(w, file);
        return rc;
    }
    rc = varve_checkpoint_file_publish(w, file, err);
    if (rc < 0 && !known) {
        struct varve_err why = VARVE_ERR_INIT;

        if (export_note(disk, f->name, f->epoch, old.name[0] ? &old : NULL, &why) < 0)
            varve_err_prefix(err, "the note of the export stays, since %.100s", why.msg);
    }
    if (!known)
        varve_disk_tidy(
            disk); /* the boundary of the note that was there, or is not there any more */
    return rc;
}

json_t *varve_command_checkpoint_export(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    const struct varve_cat_checkpoint *p = NULL;
    const struct varve_cat_export *before;
    struct varve_checkpoint_file f;
    struct arguments a;
    json_t *reply = NULL;
    int rc;

    if (arguments_parse(d, args, &a, err) < 0 || exportable(d->catalogue, &a, &p, err) < 0)
        return NULL;
    before = varve_catalogue_export(varve_catalogue_disk(d->catalogue, a.disk->identity.uuid),
                                    p->name, varve_cat_checkpoint_made(p));
    rc = export_make(a.disk, p, before, &f, err);
    if (rc == 0)
        rc = export_write(a.disk, a.file, &f, before, err);
    if (rc == 0)
        reply = json_pack("{s:s, s:s, s:s, s:f, s:I, s:I, s:I}", "disk", a.disk->name, "name",
                          f.name, "file", a.file, "time", (double)f.time_ns / 1e9, "epoch",
                          (json_int_t)f.epoch, "known-until", (json_int_t)f.known, "dirty-bytes",
                          (json_int_t)varve_dirty_bytes(&f.geometry, f.blocks));
    else
        varve_err_prefix(err, "Disk '%s': checkpoint '%s' cannot be exported", a.disk->name,
                         a.name);
    varve_checkpoint_file_fini(&f);
    return reply;
}

/* --- import --------------------------------------------------------------------------------- */

struct import {
    struct varve_action a;
    struct arguments args;
    struct varve_checkpoint_file f;
    uint64_t epoch; /* that the checkpoint begins with in the catalogue */
};

static void import_free(struct varve_action *a)
{
    struct import *x = (struct import *)a;

    varve_checkpoint_file_fini(&x->f);
    free(x);
}

static int import_refused(const struct import *x, struct varve_err *err)
{
    return varve_err_prefix(err, "Disk '%s': checkpoint '%s' cannot be imported",
                            x->args.disk->name, x->args.name);
}

static int import_parse(struct varve_daemon *d, json_t *data, struct varve_action **out,
                        struct varve_err *err)
{
    struct import *x = calloc(1, sizeof(*x));
    int rc;

    if (!x)
        return varve_err_set(err, ENOMEM, "no memory");
    rc = arguments_parse(d, data, &x->args, err);
    if (rc == 0) {
        const struct varve_identity *id = &x->args.disk->identity;

        rc = varve_checkpoint_file_read(d->w, x->args.file, id->uuid, &id->geometry, &x->f, err);
        if (rc == 0 && strcmp(x->f.name, x->args.name) != 0)
            rc = varve_err_set(err, EINVAL,
                               "%.200s holds checkpoint '%s': give that name, or another file",
                               x->args.file, x->f.name);
        if (rc < 0)
            rc = import_refused(x, err);
    }
    if (rc < 0) {
        import_free(&x->a);
        return rc;
    }
    *out = &x->a;
    return 0;
}

/* Whether the epochs go from that boundary to now, it being the one that the id tells.  map: what
 * is in them is read, too, so that damage is found. */
static int import_boundary(const struct import *x, const struct varve_timeline *tl, uint64_t epoch,
                           const uint8_t id[VARVE_EPOCH_ID_LEN], struct varve_bitmap *map,
                           struct varve_err *err)
{
    struct varve_disk *disk = x->args.disk;
    const struct varve_epoch_file *at = varve_timeline_at(tl, epoch);
    uint64_t live = varve_disk_live_epoch(disk);

    if (epoch > live)
        return varve_err_set(err, EUCLEAN,
                             "it was exported in epoch %" PRIu64 ", and the state directory, which "
                             "is from an older copy, knows %" PRIu64 " only",
                             epoch, live);
    if (!at)
        return varve_err_set(err, EUCLEAN,
                             "what was written since it was exported cannot be told, the boundary "
                             "before epoch %" PRIu64 " is not kept any more",
                             epoch);
    if (memcmp(id, no_id, sizeof(no_id)) == 0 || memcmp(at->id, id, sizeof(at->id)) != 0)
        return varve_err_set(err, EUCLEAN,
                             "epoch %" PRIu64 " is another one than that in which it was exported, "
                             "the state directory went on from an older copy",
                             epoch);
    return timeline_union(disk, tl, epoch, live, map, err);
}

/* Finds x->epoch. */
static int import_fits(struct import *x, bool all, struct varve_err *err)
{
    struct varve_disk *disk = x->args.disk;
    struct varve_bitmap *map = all ? varve_bitmap_new(x->f.geometry.nblks) : NULL;
    struct varve_timeline tl;
    int rc;

    if (all && !map)
        return varve_err_set(err, ENOMEM, "no memory for a map");
    pthread_mutex_lock(&disk->timeline_lock);
    rc = timeline_scan(disk, &tl, err);
    if (rc == 0) {
        x->epoch = x->f.epoch;
        rc = import_boundary(x, &tl, x->f.epoch, x->f.epoch_id, map, NULL);
        if (rc < 0) {
            x->epoch = x->f.known;
            rc = import_boundary(x, &tl, x->f.known, x->f.known_id, map, err);
        }
        if (rc == -EUCLEAN) {
            struct varve_err why = *err;

            varve_err_set(err, EUCLEAN, "%.380s: begin a full backup", why.msg);
        }
        varve_timeline_fini(&tl);
    }
    pthread_mutex_unlock(&disk->timeline_lock);
    free(map);
    return rc;
}

/* The checkpoint in the draft gets what the file has and no epoch tells. */
static int import_fill(const struct varve_tx *tx, const struct import *x,
                       struct varve_cat_checkpoint *p, struct varve_err *err)
{
    struct varve_disk *disk = x->args.disk;
    const struct varve_checkpoint_file *f = &x->f;
    int rc;

    if (f->nranges > 0) {
        p->heal = calloc(f->nranges, sizeof(*p->heal));
        if (!p->heal)
            return varve_err_set(err, ENOMEM, "no memory for checkpoint '%s'", p->name);
        memcpy(p->heal, f->ranges, f->nranges * sizeof(*p->heal));
        p->nheal = f->nranges;
    }
    if (x->epoch == f->epoch)
        return 0;
    p->made = f->epoch;
    if (varve_bitmap_find(f->blocks, 0, true) == f->blocks->nbits || varve_tx_is_trial(tx))
        return 0;
    rc = varve_blocks_write(disk->daemon->w, &disk->paths, f->uuid, &f->geometry, f->blocks,
                            p->blocks, err);
    p->has_blocks = rc == 0;
    return rc;
}

static int import_apply(struct varve_tx *tx, struct varve_action *a, struct varve_err *err)
{
    struct import *x = (struct import *)a;
    struct varve_cat_disk *cd = varve_tx_disk(tx, x->args.disk, err);
    int rc;

    if (!cd)
        return -ENOMEM;
    if (varve_catalogue_checkpoint(cd, x->f.name))
        return varve_err_set(err, EEXIST,
                             "Disk '%s' has a checkpoint '%s' already: delete that first, if the "
                             "file's is to take its place",
                             cd->name, x->f.name);
    rc = import_fits(x, varve_tx_is_trial(tx), err);
    if (rc == 0)
        rc = varve_catalogue_add_checkpoint(cd, x->f.name, "", x->f.time_ns, x->epoch, err);
    if (rc == 0)
        rc = import_fill(tx, x, varve_catalogue_checkpoint(cd, x->f.name), err);
    varve_tx_tidy(tx, x->args.disk); /* blocks of a checkpoint that was deleted in the same go */
    return rc < 0 ? import_refused(x, err) : 0;
}

static int import_committed(struct varve_tx *tx, struct varve_action *a, struct varve_err *err)
{
    const struct import *x = (struct import *)a;

    (void)err;
    varve_events_send(tx->d->events, "CHECKPOINT_CREATED",
                      json_pack("{s:s, s:[s], s:b}", "name", x->f.name, "disks", x->args.disk->name,
                                "imported", 1));
    return 0;
}

static json_t *import_result(struct varve_daemon *d, struct varve_action *a)
{
    const struct import *x = (struct import *)a;

    (void)d;
    return json_pack("{s:s, s:s, s:f, s:I}", "disk", x->args.disk->name, "name", x->f.name, "time",
                     (double)x->f.time_ns / 1e9, "epoch", (json_int_t)x->epoch);
}

const struct varve_action_ops varve_checkpoint_import_ops = {
    .name = "checkpoint-import",
    .parse = import_parse,
    .apply = import_apply,
    .committed = import_committed,
    .result = import_result,
    .free = import_free,
};

json_t *varve_command_checkpoint_import(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    return varve_transaction_single(d, "checkpoint-import", args, err);
}
