/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What catalogue-json.c, catalogue-json-set.c and catalogue-json-job.c share, and nobody else:
 * values into JSON and out of it.  Threads as of lib/catalogue.h.  It prints nothing and keeps
 * nothing.
 */
#ifndef VARVE_LIB_CATALOGUE_JSON_H
#define VARVE_LIB_CATALOGUE_JSON_H

#include "lib/catalogue.h"
#include "lib/paths.h"
#include "lib/qmp.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* --- catalogue-json-set.c: *_dump note in *bad that memory was short; *_parse return 0, -EUCLEAN
 * or -ENOMEM with err, and take NULL for a value that is not there ---------------------------- */

json_t *varve_cat_ranges_dump(const struct varve_cat_range *ranges, size_t n, bool *bad);
int varve_cat_ranges_parse(json_t *list, struct varve_cat_range **out, size_t *n,
                           struct varve_err *err);
json_t *varve_cat_bitmap_dump(const struct varve_cat_bitmap *b, bool *bad);
int varve_cat_bitmap_parse(json_t *o, struct varve_cat_disk *d, struct varve_err *err);
/* Of a backup's disk: its bitmap and what goes with that. */
json_t *varve_cat_from_dump(const struct varve_cat_backup_disk *d, bool *bad);
int varve_cat_from_parse(json_t *o, struct varve_cat_backup_disk *d, struct varve_err *err);
json_t *varve_cat_extra_dump(const struct varve_cat_extra *e, bool *bad);
int varve_cat_extra_parse(json_t *o, struct varve_cat_backup_disk *d, struct varve_err *err);

/* --- catalogue-json-job.c: the same ---------------------------------------------------------- */

json_t *varve_cat_job_dump(const struct varve_cat_job *j, bool *bad);
int varve_cat_job_parse(json_t *o, struct varve_catalogue *c, struct varve_err *err);

/* --- writing -------------------------------------------------------------------------------- */

static inline json_t *hex_dump(const uint8_t *bytes, size_t n)
{
    char text[65];

    for (size_t i = 0; i < n && i < 32; i++)
        snprintf(text + 2 * i, 3, "%02x", bytes[i]);
    return json_string(text);
}

static inline json_t *u64_dump(uint64_t value)
{
    char text[17];

    snprintf(text, sizeof(text), "%016" PRIx64, value);
    return json_string(text);
}

/* What cannot be added for want of memory is noticed: *bad. */
static inline void put(json_t *object, const char *key, json_t *value, bool *bad)
{
    if (json_object_set_new(object, key, value) < 0)
        *bad = true;
}

static inline void put_text(json_t *object, const char *key, const char *text, bool *bad)
{
    if (text[0])
        put(object, key, json_string(text), bad);
}

static inline void push(json_t *array, json_t *value, bool *bad)
{
    if (json_array_append_new(array, value) < 0)
        *bad = true;
}

/* --- reading: each function returns 0 or a negative errno with err -------------------------- */

static inline int bad_value(const char *key, struct varve_err *err)
{
    return varve_err_set(err, EUCLEAN, "the value of \"%s\" is missing or not as it must be", key);
}

static inline int get_u63(json_t *object, const char *key, uint64_t *out, struct varve_err *err)
{
    json_t *value = json_object_get(object, key);

    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return bad_value(key, err);
    *out = (uint64_t)json_integer_value(value);
    return 0;
}

/* As much as there is room for, in whole characters: half of one could not be dumped again. */
static inline void text_cut(char *out, size_t room, const char *text)
{
    size_t len = strnlen(text, room - 1);

    while (len > 0 && ((unsigned char)text[len] & 0xc0) == 0x80)
        len--;
    memcpy(out, text, len);
    out[len] = '\0';
}

/* A name, or nothing where optional. */
static inline int get_name(json_t *object, const char *key, bool optional,
                           char out[VARVE_NAME_MAX + 1], struct varve_err *err)
{
    const char *text = json_string_value(json_object_get(object, key));

    if (!text && optional)
        return 0;
    if (!text || varve_name_check(text, key, NULL) < 0)
        return bad_value(key, err);
    snprintf(out, VARVE_NAME_MAX + 1, "%s", text);
    return 0;
}

static inline int get_hex(json_t *object, const char *key, uint8_t *out, size_t nbytes,
                          struct varve_err *err)
{
    const char *text = json_string_value(json_object_get(object, key));

    if (!text || strlen(text) != 2 * nbytes || strspn(text, "0123456789abcdef") != 2 * nbytes)
        return bad_value(key, err);
    for (size_t i = 0; i < nbytes; i++) {
        unsigned byte = 0;

        sscanf(text + 2 * i, "%2x", &byte);
        out[i] = (uint8_t)byte;
    }
    return 0;
}

#endif
