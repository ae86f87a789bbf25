/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The catalogue in memory.  Its JSON is in catalogue-json.c.
 */
#include "lib/catalogue.h"

#include "lib/slot-file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct varve_catalogue_store {
    struct varve_slot_file *slots;
};

struct varve_catalogue *varve_catalogue_new(void)
{
    struct varve_catalogue *c = calloc(1, sizeof(*c));

    if (c)
        c->next_backup = c->next_job = 1;
    return c;
}

static void extra_fini(struct varve_cat_extra *e)
{
    free(e->description);
    free(e->base);
    varve_change_set_clear(&e->set);
}

void varve_catalogue_remove_extras(struct varve_cat_backup *b)
{
    for (size_t i = 0; i < b->ndisks; i++) {
        struct varve_cat_backup_disk *d = &b->disks[i];

        for (size_t k = 0; k < d->nextras; k++)
            extra_fini(&d->extras[k]);
        free(d->extras);
        d->extras = NULL;
        d->nextras = 0;
    }
}

static void backup_fini(struct varve_cat_backup *b)
{
    varve_catalogue_remove_extras(b);
    for (size_t i = 0; i < b->ndisks; i++) {
        free(b->disks[i].exportbitmap);
        free(b->disks[i].bitmap);
        varve_change_set_clear(&b->disks[i].set);
    }
    free(b->disks);
}

static void job_fini(struct varve_cat_job *j)
{
    free(j->args);
    free(j->bitmap);
}

static void bitmap_fini(struct varve_cat_bitmap *b)
{
    free(b->name);
    varve_change_set_clear(&b->set);
}

static void disk_fini(struct varve_cat_disk *d)
{
    for (size_t k = 0; k < d->ncheckpoints; k++)
        free(d->checkpoints[k].heal);
    for (size_t k = 0; k < d->nbitmaps; k++)
        bitmap_fini(&d->bitmaps[k]);
    free(d->checkpoints);
    free(d->bitmaps);
    free(d->exports);
}

void varve_catalogue_free(struct varve_catalogue *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->ndisks; i++)
        disk_fini(&c->disks[i]);
    for (size_t i = 0; i < c->nbackups; i++)
        backup_fini(&c->backups[i]);
    for (size_t i = 0; i < c->njobs; i++)
        job_fini(&c->jobs[i]);
    free(c->disks);
    free(c->backups);
    free(c->jobs);
    free(c);
}

void varve_catalogue_drop_work(struct varve_catalogue *c)
{
    for (size_t i = 0; i < c->nbackups; i++)
        backup_fini(&c->backups[i]);
    for (size_t i = 0; i < c->njobs; i++)
        job_fini(&c->jobs[i]);
    c->nbackups = c->njobs = 0;
}

struct varve_catalogue *varve_catalogue_clone(const struct varve_catalogue *c)
{
    struct varve_catalogue *copy = NULL;
    char *text = varve_catalogue_dump(c);

    if (text && varve_catalogue_parse(text, &copy, NULL) < 0)
        copy = NULL;
    free(text);
    return copy;
}

struct varve_cat_disk *varve_catalogue_disk(const struct varve_catalogue *c, const uint8_t uuid[16])
{
    for (size_t i = 0; i < c->ndisks; i++) {
        if (memcmp(c->disks[i].uuid, uuid, 16) == 0)
            return &c->disks[i];
    }
    return NULL;
}

struct varve_cat_checkpoint *varve_catalogue_checkpoint(const struct varve_cat_disk *d,
                                                        const char *name)
{
    for (size_t i = 0; d && i < d->ncheckpoints; i++) {
        if (strcmp(d->checkpoints[i].name, name) == 0)
            return &d->checkpoints[i];
    }
    return NULL;
}

struct varve_cat_bitmap *varve_catalogue_bitmap(const struct varve_cat_disk *d, const char *name)
{
    for (size_t i = 0; d && i < d->nbitmaps; i++) {
        if (strcmp(d->bitmaps[i].name, name) == 0)
            return &d->bitmaps[i];
    }
    return NULL;
}

struct varve_cat_backup *varve_catalogue_backup(const struct varve_catalogue *c, const char *id)
{
    for (size_t i = 0; i < c->nbackups; i++) {
        if (strcmp(c->backups[i].id, id) == 0)
            return &c->backups[i];
    }
    return NULL;
}

bool varve_cat_backup_open(const struct varve_cat_backup *b)
{
    return b->state == VARVE_BACKUP_RUNNING || b->state == VARVE_BACKUP_BROKEN;
}

struct varve_cat_disk *varve_catalogue_add_disk(struct varve_catalogue *c, const uint8_t uuid[16],
                                                const char *name)
{
    struct varve_cat_disk *d = varve_catalogue_disk(c, uuid);

    if (!d) {
        d = realloc(c->disks, (c->ndisks + 1) * sizeof(*d));
        if (!d)
            return NULL;
        c->disks = d;
        d = &c->disks[c->ndisks++];
        memset(d, 0, sizeof(*d));
        memcpy(d->uuid, uuid, 16);
    }
    snprintf(d->name, sizeof(d->name), "%s", name);
    return d;
}

int varve_catalogue_add_checkpoint(struct varve_cat_disk *d, const char *name, const char *backup,
                                   uint64_t time_ns, uint64_t epoch, struct varve_err *err)
{
    struct varve_cat_checkpoint *p;
    size_t at = d->ncheckpoints;

    if (varve_catalogue_checkpoint(d, name))
        return varve_err_set(err, EEXIST,
                             "Disk '%s' has a checkpoint '%s' already: choose another name",
                             d->name, name);
    p = realloc(d->checkpoints, (d->ncheckpoints + 1) * sizeof(*p));
    if (!p)
        return varve_err_set(err, ENOMEM, "no memory for checkpoint '%s'", name);
    d->checkpoints = p;
    while (at > 0 && p[at - 1].epoch > epoch)
        at--;
    memmove(&p[at + 1], &p[at], (d->ncheckpoints - at) * sizeof(*p));
    d->ncheckpoints++;
    memset(&p[at], 0, sizeof(*p));
    snprintf(p[at].name, sizeof(p[at].name), "%s", name);
    snprintf(p[at].backup, sizeof(p[at].backup), "%s", backup);
    p[at].time_ns = time_ns;
    p[at].epoch = epoch;
    return 0;
}

bool varve_catalogue_remove_checkpoint(struct varve_cat_disk *d, const char *name)
{
    struct varve_cat_checkpoint *p = varve_catalogue_checkpoint(d, name);

    if (!p)
        return false;
    free(p->heal);
    d->ncheckpoints--;
    memmove(p, p + 1, (size_t)(d->checkpoints + d->ncheckpoints - p) * sizeof(*p));
    return true;
}

struct varve_cat_export *varve_catalogue_export(const struct varve_cat_disk *d, const char *name,
                                                uint64_t made)
{
    for (size_t i = 0; d && i < d->nexports; i++) {
        if (d->exports[i].made == made && strcmp(d->exports[i].name, name) == 0)
            return &d->exports[i];
    }
    return NULL;
}

int varve_catalogue_add_export(struct varve_cat_disk *d, const struct varve_cat_export *e,
                               struct varve_err *err)
{
    struct varve_cat_export *at = varve_catalogue_export(d, e->name, e->made);

    if (!at) {
        if (d->nexports >= VARVE_CATALOGUE_EXPORTS_MAX)
            return varve_err_set(err, ENOSPC,
                                 "Disk '%s' keeps the boundaries of %u exported checkpoints, more "
                                 "there cannot be: give up some with checkpoint-delete and "
                                 "\"exported\": true",
                                 d->name, VARVE_CATALOGUE_EXPORTS_MAX);
        at = realloc(d->exports, (d->nexports + 1) * sizeof(*at));
        if (!at)
            return varve_err_set(err, ENOMEM, "no memory for checkpoint '%s'", e->name);
        d->exports = at;
        at = &d->exports[d->nexports++];
    }
    *at = *e;
    return 0;
}

size_t varve_catalogue_remove_exports(struct varve_cat_disk *d, const char *name, uint64_t made)
{
    size_t kept = 0, n = d->nexports;

    for (size_t i = 0; i < n; i++) {
        const struct varve_cat_export *e = &d->exports[i];

        if (strcmp(e->name, name) != 0 || (made != 0 && e->made != made))
            d->exports[kept++] = *e;
    }
    d->nexports = kept;
    return n - kept;
}

int varve_catalogue_add_bitmap(struct varve_cat_disk *d, const char *name, uint64_t granularity,
                               struct varve_cat_bitmap **out, struct varve_err *err)
{
    struct varve_cat_bitmap *b;
    char *copy;

    if (varve_catalogue_bitmap(d, name))
        return varve_err_set(err, EEXIST,
                             "Bitmap already exists: %.300s: choose another name on disk '%s'",
                             name, d->name);
    b = realloc(d->bitmaps, (d->nbitmaps + 1) * sizeof(*b));
    copy = strdup(name);
    if (b)
        d->bitmaps = b;
    if (!b || !copy) {
        free(copy);
        return varve_err_set(err, ENOMEM, "no memory for a bitmap");
    }
    b = &d->bitmaps[d->nbitmaps++];
    memset(b, 0, sizeof(*b));
    b->name = copy;
    b->granularity = granularity;
    *out = b;
    return 0;
}

bool varve_catalogue_remove_bitmap(struct varve_cat_disk *d, const char *name)
{
    struct varve_cat_bitmap *b = varve_catalogue_bitmap(d, name);

    if (!b)
        return false;
    bitmap_fini(b);
    d->nbitmaps--;
    memmove(b, b + 1, (size_t)(d->bitmaps + d->nbitmaps - b) * sizeof(*b));
    return true;
}

bool varve_catalogue_remove_transient(struct varve_catalogue *c)
{
    bool any = false;

    for (size_t i = 0; i < c->ndisks; i++) {
        struct varve_cat_disk *d = &c->disks[i];

        for (size_t k = d->nbitmaps; k-- > 0;) {
            if (d->bitmaps[k].transient &&
                !varve_catalogue_job_of_bitmap(c, d->uuid, d->bitmaps[k].name))
                any = varve_catalogue_remove_bitmap(d, d->bitmaps[k].name);
        }
    }
    return any;
}

bool varve_catalogue_remove_disk(struct varve_catalogue *c, const uint8_t uuid[16])
{
    struct varve_cat_disk *d = varve_catalogue_disk(c, uuid);

    if (!d)
        return false;
    disk_fini(d);
    c->ndisks--;
    memmove(d, d + 1, (size_t)(c->disks + c->ndisks - d) * sizeof(*d));
    return true;
}

struct varve_cat_backup *varve_catalogue_add_backup(struct varve_catalogue *c, const char *id,
                                                    size_t ndisks)
{
    struct varve_cat_backup *b = realloc(c->backups, (c->nbackups + 1) * sizeof(*b));

    if (!b)
        return NULL;
    c->backups = b;
    b = &c->backups[c->nbackups];
    memset(b, 0, sizeof(*b));
    b->disks = calloc(ndisks ? ndisks : 1, sizeof(*b->disks));
    if (!b->disks)
        return NULL;
    b->ndisks = ndisks;
    snprintf(b->id, sizeof(b->id), "%s", id);
    c->nbackups++;
    return b;
}

struct varve_cat_extra *varve_catalogue_extra(const struct varve_catalogue *c, const char *id,
                                              struct varve_cat_backup_disk **of)
{
    for (size_t i = 0; i < c->nbackups; i++) {
        const struct varve_cat_backup *b = &c->backups[i];

        for (size_t k = 0; varve_cat_backup_open(b) && k < b->ndisks; k++) {
            struct varve_cat_backup_disk *d = &b->disks[k];

            for (size_t n = 0; n < d->nextras; n++) {
                if (strcmp(d->extras[n].id, id) != 0)
                    continue;
                *of = d;
                return &d->extras[n];
            }
        }
    }
    return NULL;
}

struct varve_cat_extra *varve_catalogue_add_extra(struct varve_cat_backup_disk *d, const char *id,
                                                  const char *name)
{
    struct varve_cat_extra *e = realloc(d->extras, (d->nextras + 1) * sizeof(*e));

    if (!e)
        return NULL;
    d->extras = e;
    e = &d->extras[d->nextras++];
    memset(e, 0, sizeof(*e));
    snprintf(e->id, sizeof(e->id), "%s", id);
    snprintf(e->name, sizeof(e->name), "%s", name);
    return e;
}

void varve_catalogue_remove_extra(struct varve_cat_backup_disk *d, struct varve_cat_extra *e)
{
    extra_fini(e);
    d->nextras--;
    memmove(e, e + 1, (size_t)(d->extras + d->nextras - e) * sizeof(*e));
}

/* Whether a backup taken later than b has ended well for b's disk k. */
static bool is_outdone(const struct varve_catalogue *c, const struct varve_cat_backup *b, size_t k)
{
    const uint8_t *uuid = b->disks[k].uuid;

    for (const struct varve_cat_backup *o = c->backups + c->nbackups; o-- > c->backups;) {
        if (o->state != VARVE_BACKUP_COMPLETED || o->time_ns < b->time_ns ||
            (o->time_ns == b->time_ns && o <= b))
            continue;
        /* Most have the same disks in the same order. */
        if (k < o->ndisks && memcmp(o->disks[k].uuid, uuid, 16) == 0)
            return true;
        for (size_t i = 0; i < o->ndisks; i++)
            if (memcmp(o->disks[i].uuid, uuid, 16) == 0)
                return true;
    }
    return false;
}

/* It is the newest that ended well of a disk that there is. */
static bool is_a_newest(const struct varve_catalogue *c, const struct varve_cat_backup *b)
{
    for (size_t k = 0; b->state == VARVE_BACKUP_COMPLETED && k < b->ndisks; k++)
        if (!is_outdone(c, b, k) && varve_catalogue_disk(c, b->disks[k].uuid))
            return true;
    return false;
}

void varve_catalogue_trim(struct varve_catalogue *c)
{
    while (c->nbackups > VARVE_CATALOGUE_ENDED_MAX) {
        struct varve_cat_backup *oldest = NULL;
        size_t ended = 0;

        for (size_t i = 0; i < c->nbackups; i++) {
            struct varve_cat_backup *b = &c->backups[i];

            if (varve_cat_backup_open(b) || is_a_newest(c, b))
                continue;
            ended++;
            if (!oldest || b->ended_ns < oldest->ended_ns)
                oldest = b;
        }
        if (ended <= VARVE_CATALOGUE_ENDED_MAX)
            return;
        backup_fini(oldest);
        c->nbackups--;
        memmove(oldest, oldest + 1, (size_t)(c->backups + c->nbackups - oldest) * sizeof(*oldest));
    }
}

/* --- jobs ----------------------------------------------------------------------------------- */

struct varve_cat_job *varve_catalogue_job(const struct varve_catalogue *c, const char *id)
{
    for (size_t i = 0; i < c->njobs; i++) {
        if (strcmp(c->jobs[i].id, id) == 0)
            return &c->jobs[i];
    }
    return NULL;
}

struct varve_cat_job *varve_catalogue_job_of_backup(const struct varve_catalogue *c, const char *id)
{
    for (size_t i = 0; i < c->njobs; i++) {
        struct varve_cat_job *j = &c->jobs[i];

        if (varve_cat_job_open(j) && strcmp(j->backup, id) == 0)
            return j;
    }
    return NULL;
}

struct varve_cat_job *varve_catalogue_job_of_bitmap(const struct varve_catalogue *c,
                                                    const uint8_t uuid[16], const char *bitmap)
{
    for (size_t i = 0; i < c->njobs; i++) {
        struct varve_cat_job *j = &c->jobs[i];

        if (varve_cat_job_open(j) && j->bitmap && memcmp(j->uuid, uuid, 16) == 0 &&
            strcmp(j->bitmap, bitmap) == 0)
            return j;
    }
    return NULL;
}

bool varve_cat_job_open(const struct varve_cat_job *j)
{
    return j->state == VARVE_JOB_RUNNING || j->state == VARVE_JOB_ABORTING;
}

struct varve_cat_job *varve_catalogue_add_job(struct varve_catalogue *c, const char *id,
                                              const char *type)
{
    struct varve_cat_job *j = realloc(c->jobs, (c->njobs + 1) * sizeof(*j));

    if (!j)
        return NULL;
    c->jobs = j;
    j = &c->jobs[c->njobs++];
    memset(j, 0, sizeof(*j));
    snprintf(j->id, sizeof(j->id), "%s", id);
    snprintf(j->type, sizeof(j->type), "%s", type);
    return j;
}

static void remove_job(struct varve_catalogue *c, struct varve_cat_job *j)
{
    job_fini(j);
    c->njobs--;
    memmove(j, j + 1, (size_t)(c->jobs + c->njobs - j) * sizeof(*j));
}

bool varve_catalogue_remove_job(struct varve_catalogue *c, const char *id)
{
    struct varve_cat_job *j = varve_catalogue_job(c, id);

    if (!j)
        return false;
    remove_job(c, j);
    return true;
}

void varve_catalogue_trim_jobs(struct varve_catalogue *c)
{
    for (;;) {
        struct varve_cat_job *oldest = NULL;
        size_t ended = 0;

        for (size_t i = 0; i < c->njobs; i++) {
            struct varve_cat_job *j = &c->jobs[i];

            if (varve_cat_job_open(j))
                continue;
            ended++;
            if (!oldest || j->ended_ns < oldest->ended_ns)
                oldest = j;
        }
        if (ended <= VARVE_CATALOGUE_JOBS_MAX)
            return;
        remove_job(c, oldest);
    }
}

/* --- on disk -------------------------------------------------------------------------------- */

int varve_catalogue_open(struct varve_world *w, const char *state_dir,
                         struct varve_catalogue_store **out, struct varve_catalogue **c,
                         struct varve_err *err)
{
    struct varve_catalogue_store *s = calloc(1, sizeof(*s));
    struct varve_catalogue *empty = varve_catalogue_new();
    char *initial = empty ? varve_catalogue_dump(empty) : NULL, *text = NULL;
    int rc;

    varve_catalogue_free(empty);
    if (!s || !initial) {
        rc = varve_err_set(err, ENOMEM, "no memory for the catalogue");
        goto err_free;
    }
    rc = varve_slot_file_open(w, state_dir, "catalogue", VARVE_CATALOGUE_FORMAT, initial, &s->slots,
                              &text, err);
    if (rc < 0)
        goto err_free;
    rc = varve_catalogue_parse(text, c, err);
    if (rc < 0) {
        rc = varve_err_prefix(err, "%s/catalogue-0 and -1", state_dir);
        goto err_close;
    }
    free(text);
    free(initial);
    *out = s;
    return 0;

err_close:
    varve_slot_file_close(s->slots);
err_free:
    free(text);
    free(initial);
    free(s);
    return rc;
}

void varve_catalogue_close(struct varve_catalogue_store *s)
{
    if (!s)
        return;
    varve_slot_file_close(s->slots);
    free(s);
}

int varve_catalogue_commit(struct varve_catalogue_store *s, const struct varve_catalogue *c,
                           struct varve_err *err)
{
    char *text = varve_catalogue_dump(c);
    int rc;

    if (!text)
        return varve_err_set(err, ENOMEM, "no memory for the catalogue");
    rc = varve_slot_file_commit(s->slots, text, err);
    free(text);
    return rc;
}
