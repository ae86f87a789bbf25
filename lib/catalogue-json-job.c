/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Jobs as JSON.
 */
#include "lib/catalogue-json.h"

#include "lib/json.h"

#include <stdlib.h>

static const char *const state_names[] = {
    [VARVE_JOB_RUNNING] = "running",     [VARVE_JOB_ABORTING] = "aborting",
    [VARVE_JOB_COMPLETED] = "completed", [VARVE_JOB_FAILED] = "failed",
    [VARVE_JOB_CANCELLED] = "cancelled",
};

json_t *varve_cat_job_dump(const struct varve_cat_job *j, bool *bad)
{
    json_t *o = json_object();

    put(o, "id", json_string(j->id), bad);
    put(o, "type", json_string(j->type), bad);
    put(o, "state", json_string(state_names[j->state]), bad);
    put(o, "uuid", hex_dump(j->uuid, 16), bad);
    put(o, "disk", json_string(j->disk), bad);
    if (j->args)
        put(o, "args", json_loads(j->args, JSON_REJECT_DUPLICATES, NULL), bad);
    if (j->bitmap)
        put(o, "bitmap", json_string(j->bitmap), bad);
    put_text(o, "backup", j->backup, bad);
    put(o, "start", json_integer((json_int_t)j->start), bad);
    put(o, "speed", json_integer((json_int_t)j->speed), bad);
    if (j->paused)
        put(o, "paused", json_true(), bad);
    put(o, "time", json_integer((json_int_t)j->time_ns), bad);
    put(o, "ended", json_integer((json_int_t)j->ended_ns), bad);
    put(o, "current", json_integer((json_int_t)j->current), bad);
    put(o, "total", json_integer((json_int_t)j->total), bad);
    put_text(o, "proof", j->proof, bad);
    if (j->has_blocks)
        put(o, "blocks", hex_dump(j->blocks, sizeof(j->blocks)), bad);
    put_text(o, "error", j->error, bad);
    return o;
}

static int state_parse(json_t *o, struct varve_cat_job *j, struct varve_err *err)
{
    const char *text = json_string_value(json_object_get(o, "state"));

    for (unsigned i = 0; text && i < sizeof(state_names) / sizeof(state_names[0]); i++) {
        if (strcmp(text, state_names[i]) == 0) {
            j->state = (enum varve_cat_job_state)i;
            return 0;
        }
    }
    return bad_value("state", err);
}

static int numbers_parse(json_t *o, struct varve_cat_job *j, struct varve_err *err)
{
    const struct {
        const char *key;
        uint64_t *out;
    } numbers[] = {{"start", &j->start},    {"speed", &j->speed},     {"time", &j->time_ns},
                   {"ended", &j->ended_ns}, {"current", &j->current}, {"total", &j->total}};
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < sizeof(numbers) / sizeof(numbers[0]); i++)
        rc = get_u63(o, numbers[i].key, numbers[i].out, err);
    if (rc == 0 && json_object_get(o, "blocks")) {
        rc = get_hex(o, "blocks", j->blocks, sizeof(j->blocks), err);
        j->has_blocks = rc == 0;
    }
    return rc;
}

/* What an open one needs must be there; -EUCLEAN. */
static int owned_parse(json_t *o, struct varve_cat_job *j, struct varve_err *err)
{
    json_t *args = json_object_get(o, "args"), *bitmap = json_object_get(o, "bitmap");
    const char *name = json_string_value(bitmap);

    if (args ? !json_is_object(args) : varve_cat_job_open(j))
        return bad_value("args", err);
    if (bitmap && (!name || !name[0] || strlen(name) > VARVE_BITMAP_NAME_MAX))
        return bad_value("bitmap", err);
    if (args)
        j->args = varve_json_dump(args, JSON_COMPACT | JSON_SORT_KEYS);
    if (name)
        j->bitmap = strdup(name);
    return (args && !j->args) || (name && !j->bitmap) ? varve_err_set(err, ENOMEM, "no memory") : 0;
}

int varve_cat_job_parse(json_t *o, struct varve_catalogue *c, struct varve_err *err)
{
    const char *error = json_string_value(json_object_get(o, "error"));
    const char *proof = json_string_value(json_object_get(o, "proof"));
    char id[VARVE_NAME_MAX + 1] = "", type[VARVE_NAME_MAX + 1] = "";
    struct varve_cat_job *j;
    int rc = get_name(o, "id", false, id, err);

    if (rc == 0)
        rc = get_name(o, "type", false, type, err);
    if (rc < 0)
        return rc;
    if (strlen(type) >= sizeof(j->type))
        return bad_value("type", err);
    if (varve_catalogue_job(c, id))
        return varve_err_set(err, EUCLEAN, "job '%s' stands in it twice", id);
    j = varve_catalogue_add_job(c, id, type);
    if (!j)
        return varve_err_set(err, ENOMEM, "no memory");
    rc = state_parse(o, j, err);
    if (rc == 0)
        rc = get_hex(o, "uuid", j->uuid, sizeof(j->uuid), err);
    if (rc == 0)
        rc = get_name(o, "disk", false, j->disk, err);
    if (rc == 0)
        rc = get_name(o, "backup", true, j->backup, err);
    if (rc == 0)
        rc = numbers_parse(o, j, err);
    if (rc == 0)
        rc = owned_parse(o, j, err);
    j->paused = json_is_true(json_object_get(o, "paused"));
    if (error)
        text_cut(j->error, sizeof(j->error), error);
    if (proof)
        text_cut(j->proof, sizeof(j->proof), proof);
    return rc;
}
