/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The catalogue as JSON text.  Numbers that may not fit a signed 64-bit integer are hexadecimal
 * strings.  Keys that are not known are left alone: a change that old versions must not overlook
 * gets a new VARVE_CATALOGUE_FORMAT.
 */
#include "lib/catalogue-json.h"

#include "lib/json.h"

#include <stdlib.h>
#include <string.h>

static const char *const state_names[] = {
    [VARVE_BACKUP_RUNNING] = "running",
    [VARVE_BACKUP_BROKEN] = "broken",
    [VARVE_BACKUP_COMPLETED] = "completed",
    [VARVE_BACKUP_FAILED] = "failed",
};

/* --- writing -------------------------------------------------------------------------------- */

static json_t *checkpoint_dump(const struct varve_cat_checkpoint *p, bool *bad)
{
    json_t *o = json_object();

    put(o, "name", json_string(p->name), bad);
    put(o, "time", json_integer((json_int_t)p->time_ns), bad);
    put(o, "epoch", json_integer((json_int_t)p->epoch), bad);
    put_text(o, "backup", p->backup, bad);
    if (p->made)
        put(o, "made", json_integer((json_int_t)p->made), bad);
    if (p->has_blocks)
        put(o, "blocks", hex_dump(p->blocks, sizeof(p->blocks)), bad);
    if (p->nheal > 0)
        put(o, "heal", varve_cat_ranges_dump(p->heal, p->nheal, bad), bad);
    return o;
}

static json_t *export_dump(const struct varve_cat_export *e, bool *bad)
{
    json_t *o = json_object();

    put(o, "name", json_string(e->name), bad);
    put(o, "time", json_integer((json_int_t)e->time_ns), bad);
    put(o, "exported", json_integer((json_int_t)e->exported_ns), bad);
    put(o, "made", json_integer((json_int_t)e->made), bad);
    put(o, "known", json_integer((json_int_t)e->known), bad);
    return o;
}

static json_t *disk_dump(const struct varve_cat_disk *d, bool *bad)
{
    json_t *o = json_object(), *list = json_array();

    put(o, "uuid", hex_dump(d->uuid, 16), bad);
    put(o, "name", json_string(d->name), bad);
    if (d->newest != 0) {
        put(o, "newest", json_integer((json_int_t)d->newest), bad);
        put(o, "birth", hex_dump(d->birth, sizeof(d->birth)), bad);
    }
    for (size_t i = 0; i < d->ncheckpoints; i++)
        push(list, checkpoint_dump(&d->checkpoints[i], bad), bad);
    put(o, "checkpoints", list, bad);
    list = d->nexports > 0 ? json_array() : NULL;
    for (size_t i = 0; i < d->nexports; i++)
        push(list, export_dump(&d->exports[i], bad), bad);
    if (list)
        put(o, "exports", list, bad);
    if (d->nbitmaps == 0)
        return o;
    list = json_array();
    for (size_t i = 0; i < d->nbitmaps; i++)
        push(list, varve_cat_bitmap_dump(&d->bitmaps[i], bad), bad);
    put(o, "bitmaps", list, bad);
    return o;
}

static json_t *backup_disk_dump(const struct varve_cat_backup_disk *d, bool *bad)
{
    json_t *o = json_object(), *list;

    put(o, "uuid", hex_dump(d->uuid, 16), bad);
    put(o, "disk", json_string(d->disk), bad);
    put_text(o, "since", d->since, bad);
    put(o, "export", json_string(d->export), bad);
    put(o, "exportbitmap", json_string(d->exportbitmap ? d->exportbitmap : ""), bad);
    put(o, "view", u64_dump(d->view), bad);
    put(o, "base", json_integer((json_int_t)d->base), bad);
    put(o, "boundary", json_integer((json_int_t)d->boundary), bad);
    put(o, "dirty-bytes", json_integer((json_int_t)d->dirty_bytes), bad);
    put(o, "bytes-read", json_integer((json_int_t)d->bytes_read), bad);
    if (d->bytes_released)
        put(o, "bytes-released", json_integer((json_int_t)d->bytes_released), bad);
    if (d->bitmap)
        put(o, "from", varve_cat_from_dump(d, bad), bad);
    if (d->nextras == 0)
        return o;
    list = json_array();
    for (size_t i = 0; i < d->nextras; i++)
        push(list, varve_cat_extra_dump(&d->extras[i], bad), bad);
    put(o, "extras", list, bad);
    return o;
}

static json_t *backup_dump(const struct varve_cat_backup *b, bool *bad)
{
    json_t *o = json_object(), *list = json_array();

    put(o, "id", json_string(b->id), bad);
    put(o, "state", json_string(state_names[b->state]), bad);
    put(o, "time", json_integer((json_int_t)b->time_ns), bad);
    put(o, "ended", json_integer((json_int_t)b->ended_ns), bad);
    put(o, "ttl", json_integer((json_int_t)b->ttl_s), bad);
    if (b->release)
        put(o, "release", json_true(), bad);
    if (b->preserve_dirty)
        put(o, "preserve-dirty", json_true(), bad);
    if (b->speed)
        put(o, "speed", json_integer((json_int_t)b->speed), bad);
    if (b->adaptive)
        put(o, "adaptive", json_true(), bad);
    put_text(o, "checkpoint", b->checkpoint, bad);
    put_text(o, "reason", b->reason, bad);
    for (size_t i = 0; i < b->ndisks; i++)
        push(list, backup_disk_dump(&b->disks[i], bad), bad);
    put(o, "disks", list, bad);
    return o;
}

char *varve_catalogue_dump(const struct varve_catalogue *c)
{
    json_t *o = json_object(), *disks = json_array(), *backups = json_array();
    json_t *jobs = json_array();
    char *text = NULL;
    bool bad = false;

    put(o, "next-backup", json_integer((json_int_t)c->next_backup), &bad);
    put(o, "next-job", json_integer((json_int_t)c->next_job), &bad);
    for (size_t i = 0; i < c->ndisks; i++)
        push(disks, disk_dump(&c->disks[i], &bad), &bad);
    put(o, "disks", disks, &bad);
    for (size_t i = 0; i < c->nbackups; i++)
        push(backups, backup_dump(&c->backups[i], &bad), &bad);
    put(o, "backups", backups, &bad);
    for (size_t i = 0; i < c->njobs; i++)
        push(jobs, varve_cat_job_dump(&c->jobs[i], &bad), &bad);
    put(o, "jobs", jobs, &bad);
    if (!bad)
        text = varve_json_dump(o, JSON_COMPACT | JSON_SORT_KEYS);
    json_decref(o);
    return text;
}

/* --- reading: each function returns 0 or a negative errno with err -------------------------- */

static int checkpoint_parse(json_t *o, struct varve_cat_disk *d, struct varve_err *err)
{
    char name[VARVE_NAME_MAX + 1] = "", backup[VARVE_NAME_MAX + 1] = "";
    struct varve_cat_checkpoint *p = NULL;
    uint64_t time_ns = 0, epoch = 0;
    int rc = get_name(o, "name", false, name, err);

    if (rc == 0)
        rc = get_name(o, "backup", true, backup, err);
    if (rc == 0)
        rc = get_u63(o, "time", &time_ns, err);
    if (rc == 0)
        rc = get_u63(o, "epoch", &epoch, err);
    if (rc == 0 && varve_catalogue_checkpoint(d, name))
        rc = varve_err_set(err, EUCLEAN, "checkpoint '%s' stands in it twice", name);
    if (rc == 0)
        rc = varve_catalogue_add_checkpoint(d, name, backup, time_ns, epoch, err);
    if (rc < 0)
        return rc;
    p = varve_catalogue_checkpoint(d, name);
    if (json_object_get(o, "made")) /* of few, and of no old one */
        rc = get_u63(o, "made", &p->made, err);
    if (rc == 0 && (p->made > epoch || (!p->made && json_object_get(o, "blocks"))))
        rc = bad_value("made", err);
    if (rc == 0 && json_object_get(o, "blocks")) {
        rc = get_hex(o, "blocks", p->blocks, sizeof(p->blocks), err);
        p->has_blocks = rc == 0;
    }
    if (rc == 0)
        rc = varve_cat_ranges_parse(json_object_get(o, "heal"), &p->heal, &p->nheal, err);
    return rc;
}

static int export_parse(json_t *o, struct varve_cat_disk *d, struct varve_err *err)
{
    struct varve_cat_export e = {.name = ""};
    int rc = get_name(o, "name", false, e.name, err);

    if (rc == 0)
        rc = get_u63(o, "time", &e.time_ns, err);
    if (rc == 0)
        rc = get_u63(o, "exported", &e.exported_ns, err);
    if (rc == 0)
        rc = get_u63(o, "made", &e.made, err);
    if (rc == 0)
        rc = get_u63(o, "known", &e.known, err);
    if (rc == 0 && (e.made > e.known || varve_catalogue_export(d, e.name, e.made)))
        rc = bad_value("exports", err);
    if (rc == 0)
        rc = varve_catalogue_add_export(d, &e, err);
    return rc == -ENOSPC ? bad_value("exports", err) : rc;
}

static int disk_parse(json_t *o, struct varve_catalogue *c, struct varve_err *err)
{
    char name[VARVE_NAME_MAX + 1] = "";
    struct varve_cat_disk *d;
    uint8_t uuid[16];
    json_t *item;
    size_t i;
    int rc = get_hex(o, "uuid", uuid, sizeof(uuid), err);

    if (rc == 0)
        rc = get_name(o, "name", false, name, err);
    if (rc < 0)
        return rc;
    if (varve_catalogue_disk(c, uuid))
        return varve_err_set(err, EUCLEAN, "disk '%s' stands in it twice", name);
    d = varve_catalogue_add_disk(c, uuid, name);
    if (!d)
        return varve_err_set(err, ENOMEM, "no memory");
    if (json_object_get(o, "newest")) { /* older ones have none */
        rc = get_u63(o, "newest", &d->newest, err);
        if (rc == 0)
            rc = get_hex(o, "birth", d->birth, sizeof(d->birth), err);
    }
    if (rc < 0)
        return rc;
    json_array_foreach(json_object_get(o, "checkpoints"), i, item)
    {
        rc = checkpoint_parse(item, d, err);
        if (rc < 0)
            return rc;
    }
    json_array_foreach(json_object_get(o, "exports"), i, item)
    {
        rc = export_parse(item, d, err);
        if (rc < 0)
            return rc;
    }
    json_array_foreach(json_object_get(o, "bitmaps"), i, item)
    {
        rc = varve_cat_bitmap_parse(item, d, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int backup_disk_parse(json_t *o, struct varve_cat_backup_disk *d, struct varve_err *err)
{
    const char *bitmap = json_string_value(json_object_get(o, "exportbitmap"));
    uint8_t view[8];
    json_t *item;
    size_t k;
    int rc = get_hex(o, "uuid", d->uuid, sizeof(d->uuid), err);

    if (rc == 0)
        rc = get_name(o, "disk", false, d->disk, err);
    if (rc == 0)
        rc = get_name(o, "since", true, d->since, err);
    if (rc == 0)
        rc = get_name(o, "export", false, d->export, err);
    if (rc == 0)
        rc = get_hex(o, "view", view, sizeof(view), err);
    if (rc == 0)
        rc = get_u63(o, "base", &d->base, err);
    if (rc == 0)
        rc = get_u63(o, "boundary", &d->boundary, err);
    if (rc == 0)
        rc = get_u63(o, "dirty-bytes", &d->dirty_bytes, err);
    if (rc == 0)
        rc = get_u63(o, "bytes-read", &d->bytes_read, err);
    if (rc == 0 && json_object_get(o, "bytes-released"))
        rc = get_u63(o, "bytes-released", &d->bytes_released, err);
    if (rc < 0)
        return rc;
    for (unsigned i = 0; i < 8; i++)
        d->view = d->view << 8 | view[i];
    if (!bitmap || strlen(bitmap) > VARVE_BITMAP_NAME_MAX)
        return bad_value("exportbitmap", err);
    d->exportbitmap = strdup(bitmap);
    if (!d->exportbitmap)
        return varve_err_set(err, ENOMEM, "no memory");
    rc = varve_cat_from_parse(json_object_get(o, "from"), d, err);
    json_array_foreach(json_object_get(o, "extras"), k, item)
    {
        if (rc == 0)
            rc = varve_cat_extra_parse(item, d, err);
    }
    return rc;
}

static int backup_state_parse(json_t *o, struct varve_cat_backup *b, struct varve_err *err)
{
    const char *text = json_string_value(json_object_get(o, "state"));

    for (unsigned i = 0; text && i < sizeof(state_names) / sizeof(state_names[0]); i++) {
        if (strcmp(text, state_names[i]) == 0) {
            b->state = (enum varve_cat_backup_state)i;
            return 0;
        }
    }
    return bad_value("state", err);
}

static int backup_parse(json_t *o, struct varve_catalogue *c, struct varve_err *err)
{
    json_t *list = json_object_get(o, "disks");
    const char *reason = json_string_value(json_object_get(o, "reason"));
    char id[VARVE_NAME_MAX + 1] = "";
    struct varve_cat_backup *b;
    int rc = get_name(o, "id", false, id, err);

    if (rc < 0)
        return rc;
    if (varve_catalogue_backup(c, id))
        return varve_err_set(err, EUCLEAN, "backup '%s' stands in it twice", id);
    b = varve_catalogue_add_backup(c, id, json_array_size(list));
    if (!b)
        return varve_err_set(err, ENOMEM, "no memory");
    rc = backup_state_parse(o, b, err);
    if (rc == 0)
        rc = get_name(o, "checkpoint", true, b->checkpoint, err);
    if (rc == 0)
        rc = get_u63(o, "time", &b->time_ns, err);
    if (rc == 0)
        rc = get_u63(o, "ended", &b->ended_ns, err);
    if (rc == 0)
        rc = get_u63(o, "ttl", &b->ttl_s, err);
    b->release = json_is_true(json_object_get(o, "release"));
    b->preserve_dirty = json_is_true(json_object_get(o, "preserve-dirty"));
    if (rc == 0 && json_object_get(o, "speed")) /* older ones have none */
        rc = get_u63(o, "speed", &b->speed, err);
    b->adaptive = json_is_true(json_object_get(o, "adaptive"));
    if (reason)
        text_cut(b->reason, sizeof(b->reason), reason);
    for (size_t i = 0; rc == 0 && i < b->ndisks; i++)
        rc = backup_disk_parse(json_array_get(list, i), &b->disks[i], err);
    return rc;
}

int varve_catalogue_parse(const char *text, struct varve_catalogue **out, struct varve_err *err)
{
    struct varve_catalogue *c = varve_catalogue_new();
    unsigned refused = varve_json_refused();
    json_error_t where;
    json_t *o = json_loads(text, JSON_REJECT_DUPLICATES, &where), *item;
    size_t i;
    int rc = 0;

    if (!c || varve_json_refused() != refused)
        rc = varve_err_set(err, ENOMEM, "no memory");
    else if (!json_is_object(o))
        rc = varve_err_set(err, EUCLEAN, "not a JSON object: %s", o ? "another value" : where.text);
    if (rc == 0)
        rc = get_u63(o, "next-backup", &c->next_backup, err);
    if (rc == 0 && json_object_get(o, "next-job")) /* older ones have none */
        rc = get_u63(o, "next-job", &c->next_job, err);
    if (rc == 0) {
        json_array_foreach(json_object_get(o, "disks"), i, item)
        {
            rc = disk_parse(item, c, err);
            if (rc < 0)
                break;
        }
    }
    if (rc == 0) {
        json_array_foreach(json_object_get(o, "backups"), i, item)
        {
            rc = backup_parse(item, c, err);
            if (rc < 0)
                break;
        }
    }
    if (rc == 0) {
        json_array_foreach(json_object_get(o, "jobs"), i, item)
        {
            rc = varve_cat_job_parse(item, c, err);
            if (rc < 0)
                break;
        }
    }
    json_decref(o);
    if (rc < 0) {
        varve_catalogue_free(c);
        return rc;
    }
    *out = c;
    return 0;
}
