/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Bitmaps, and what backups and extra exports are based on, as JSON.  A span is [first, end], or
 * [first] while it is open.
 */
#include "lib/catalogue-json.h"

#include <stdlib.h>

static const char *const mode_names[] = {
    [VARVE_BITMAP_ON_SUCCESS] = "on-success",
    [VARVE_BITMAP_NEVER] = "never",
    [VARVE_BITMAP_ALWAYS] = "always",
};

const char *varve_bitmap_mode_name(enum varve_bitmap_mode mode)
{
    return mode_names[mode];
}

/* --- ranges and sets ------------------------------------------------------------------------ */

json_t *varve_cat_ranges_dump(const struct varve_cat_range *ranges, size_t n, bool *bad)
{
    json_t *list = json_array();

    for (size_t i = 0; i < n; i++) {
        json_t *range = json_array();

        push(range, json_integer((json_int_t)ranges[i].off), bad);
        push(range, json_integer((json_int_t)ranges[i].len), bad);
        push(list, range, bad);
    }
    return list;
}

int varve_cat_ranges_parse(json_t *list, struct varve_cat_range **out, size_t *n,
                           struct varve_err *err)
{
    size_t count = json_array_size(list);
    struct varve_cat_range *ranges;

    if (count == 0)
        return 0;
    ranges = calloc(count, sizeof(*ranges));
    if (!ranges)
        return varve_err_set(err, ENOMEM, "no memory");
    for (size_t i = 0; i < count; i++) {
        json_t *range = json_array_get(list, i);
        json_int_t off = json_integer_value(json_array_get(range, 0));
        json_int_t len = json_integer_value(json_array_get(range, 1));

        if (json_array_size(range) != 2 || off < 0 || len <= 0) {
            free(ranges);
            return bad_value("heal", err);
        }
        ranges[i] = (struct varve_cat_range){(uint64_t)off, (uint64_t)len};
    }
    *out = ranges;
    *n = count;
    return 0;
}

static void set_dump(json_t *o, const struct varve_change_set *s, bool *bad)
{
    json_t *list = json_array();

    if (s->has_blocks)
        put(o, "blocks", hex_dump(s->blocks, sizeof(s->blocks)), bad);
    for (size_t i = 0; i < s->nspans; i++) {
        json_t *span = json_array();

        push(span, json_integer((json_int_t)s->spans[i].first), bad);
        if (s->spans[i].end != VARVE_SPAN_OPEN)
            push(span, json_integer((json_int_t)s->spans[i].end), bad);
        push(list, span, bad);
    }
    put(o, "spans", list, bad);
    if (s->nranges > 0)
        put(o, "heal", varve_cat_ranges_dump(s->ranges, s->nranges, bad), bad);
}

static int span_parse(json_t *span, struct varve_change_set *s, struct varve_err *err)
{
    json_t *first = json_array_get(span, 0), *end = json_array_get(span, 1);
    size_t n = json_array_size(span);
    uint64_t from, to = VARVE_SPAN_OPEN;

    if (n < 1 || n > 2 || !json_is_integer(first) || (end && !json_is_integer(end)) ||
        json_integer_value(first) < 1 ||
        (end && json_integer_value(end) <= json_integer_value(first)))
        return bad_value("spans", err);
    from = (uint64_t)json_integer_value(first);
    if (end)
        to = (uint64_t)json_integer_value(end);
    return varve_change_set_add_span(s, from, to) < 0 ? varve_err_set(err, ENOMEM, "no memory") : 0;
}

static int set_parse(json_t *o, struct varve_change_set *s, struct varve_err *err)
{
    struct varve_cat_range *ranges = NULL;
    size_t n = 0, i;
    json_t *span;
    int rc = 0;

    if (json_object_get(o, "blocks")) {
        rc = get_hex(o, "blocks", s->blocks, sizeof(s->blocks), err);
        s->has_blocks = true;
    }
    json_array_foreach(json_object_get(o, "spans"), i, span)
    {
        if (rc == 0)
            rc = span_parse(span, s, err);
    }
    if (rc == 0)
        rc = varve_cat_ranges_parse(json_object_get(o, "heal"), &ranges, &n, err);
    if (rc == 0 && varve_change_set_add_ranges(s, ranges, n) < 0)
        rc = varve_err_set(err, ENOMEM, "no memory");
    free(ranges);
    return rc;
}

static int get_granularity(json_t *o, uint64_t *out, struct varve_err *err)
{
    int rc = get_u63(o, "granularity", out, err);

    if (rc == 0 && (*out < VARVE_BITMAP_GRANULARITY_MIN || *out > VARVE_BITMAP_GRANULARITY_MAX ||
                    (*out & (*out - 1)) != 0))
        rc = bad_value("granularity", err);
    return rc;
}

static const char *get_bitmap_name(json_t *o, const char *key)
{
    const char *name = json_string_value(json_object_get(o, key));

    return name && name[0] && strlen(name) <= VARVE_BITMAP_NAME_MAX ? name : NULL;
}

/* --- bitmaps -------------------------------------------------------------------------------- */

json_t *varve_cat_bitmap_dump(const struct varve_cat_bitmap *b, bool *bad)
{
    json_t *o = json_object();

    put(o, "name", json_string(b->name), bad);
    put(o, "granularity", json_integer((json_int_t)b->granularity), bad);
    if (b->transient)
        put(o, "transient", json_true(), bad);
    if (b->since)
        put(o, "since", json_integer((json_int_t)b->since), bad);
    set_dump(o, &b->set, bad);
    return o;
}

int varve_cat_bitmap_parse(json_t *o, struct varve_cat_disk *d, struct varve_err *err)
{
    const char *name = get_bitmap_name(o, "name");
    struct varve_cat_bitmap *b;
    uint64_t granularity;
    int rc = name ? get_granularity(o, &granularity, err) : bad_value("name", err);

    if (rc < 0)
        return rc;
    rc = varve_catalogue_add_bitmap(d, name, granularity, &b, err);
    if (rc < 0)
        return rc == -EEXIST
                   ? varve_err_set(err, EUCLEAN, "bitmap '%.300s' stands in it twice", name)
                   : rc;
    b->transient = json_is_true(json_object_get(o, "transient"));
    if (json_object_get(o, "since")) /* older ones have none */
        rc = get_u63(o, "since", &b->since, err);
    return rc < 0 ? rc : set_parse(o, &b->set, err);
}

json_t *varve_cat_from_dump(const struct varve_cat_backup_disk *d, bool *bad)
{
    json_t *o = json_object();

    put(o, "bitmap", json_string(d->bitmap), bad);
    put(o, "mode", json_string(mode_names[d->mode]), bad);
    put(o, "granularity", json_integer((json_int_t)d->granularity), bad);
    set_dump(o, &d->set, bad);
    return o;
}

int varve_cat_from_parse(json_t *o, struct varve_cat_backup_disk *d, struct varve_err *err)
{
    const char *name = get_bitmap_name(o, "bitmap");
    const char *mode = json_string_value(json_object_get(o, "mode"));
    size_t i = 0;
    int rc;

    if (!o)
        return 0;
    while (mode && i < sizeof(mode_names) / sizeof(mode_names[0]) &&
           strcmp(mode, mode_names[i]) != 0)
        i++;
    if (!name || !mode || i == sizeof(mode_names) / sizeof(mode_names[0]))
        return bad_value("from", err);
    d->mode = (enum varve_bitmap_mode)i;
    rc = get_granularity(o, &d->granularity, err);
    if (rc < 0)
        return rc;
    d->bitmap = strdup(name);
    if (!d->bitmap)
        return varve_err_set(err, ENOMEM, "no memory");
    return set_parse(o, &d->set, err);
}

json_t *varve_cat_extra_dump(const struct varve_cat_extra *e, bool *bad)
{
    json_t *o = json_object();

    put(o, "id", json_string(e->id), bad);
    put(o, "name", json_string(e->name), bad);
    if (e->description)
        put(o, "description", json_string(e->description), bad);
    if (!e->base)
        return o;
    put(o, "base", json_string(e->base), bad);
    if (e->granularity)
        put(o, "granularity", json_integer((json_int_t)e->granularity), bad);
    set_dump(o, &e->set, bad);
    return o;
}

int varve_cat_extra_parse(json_t *o, struct varve_cat_backup_disk *d, struct varve_err *err)
{
    const char *description = json_string_value(json_object_get(o, "description"));
    char id[VARVE_NAME_MAX + 1] = "", name[VARVE_NAME_MAX + 1] = "";
    bool base = json_object_get(o, "base") != NULL;
    struct varve_cat_extra *e;
    int rc = get_name(o, "id", false, id, err);

    if (rc == 0)
        rc = get_name(o, "name", false, name, err);
    if (rc == 0 && base && !get_bitmap_name(o, "base"))
        rc = bad_value("base", err);
    if (rc == 0 && description && strlen(description) > VARVE_DESCRIPTION_MAX)
        rc = bad_value("description", err);
    if (rc < 0)
        return rc;
    e = varve_catalogue_add_extra(d, id, name);
    if (e && description)
        e->description = strdup(description);
    if (e && base)
        e->base = strdup(get_bitmap_name(o, "base"));
    if (!e || (description && !e->description) || (base && !e->base))
        return varve_err_set(err, ENOMEM, "no memory");
    if (base && json_object_get(o, "granularity"))
        rc = get_granularity(o, &e->granularity, err);
    return rc < 0 || !base ? rc : set_parse(o, &e->set, err);
}
