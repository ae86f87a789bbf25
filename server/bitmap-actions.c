/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The changes of bitmaps, each one of numbers in the catalogue's draft (design.md §6):
 *
 *     add      {} or {[b, open)}             b: the transaction's boundary
 *     enable   ∪ [b, open)
 *     disable  what lies behind b goes
 *     clear    {} or {[b, open)}
 *     merge    ∪ the others' numbers, as they were at b; their blocks where numbers do not do
 *     copy     the same numbers under another name
 *
 * Numbers do not do where a source is coarser than the target (its readers see more than the epochs
 * say), on another disk, or has explicit blocks other than the target's: then the blocks themselves
 * become a file, durable before the catalogue names it (edges.md 11).  Nothing here touches what
 * the guest does, but the boundary.
 *
 * Messages begin as QEMU's do, for programs that look at them.
 */
#include "server/transaction.h"

#include "lib/blocks-file.h"
#include "server/args.h"
#include "server/bitmap.h"
#include "server/changes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct source {
    struct varve_disk *disk;
    const char *name;
};

struct change {
    struct varve_action a;
    struct varve_disk *disk;
    const char *name; /* of what is changed or made; borrowed from the data, as are the others */
    const char *original; /* copy: of what */
    uint64_t granularity; /* add */
    bool disabled, transient;
    struct source *sources; /* merge */
    size_t nsources;
};

/* --- arguments ------------------------------------------------------------------------------ */

static void change_free(struct varve_action *a)
{
    struct change *c = (struct change *)a;

    free(c->sources);
    free(c);
}

/* node and the bitmap's name, under `key`. */
static int change_new(struct varve_daemon *d, json_t *data, const char *const *known,
                      const char *key, struct change **out, struct varve_err *err)
{
    const char *node, *name;
    struct change *c;
    int rc = varve_args_check(data, known, NULL, err);

    if (rc == 0)
        rc = varve_args_string(data, "node", true, &node, err);
    if (rc == 0)
        rc = varve_args_string(data, key, true, &name, err);
    if (rc < 0)
        return rc;
    c = calloc(1, sizeof(*c));
    if (!c)
        return varve_err_set(err, ENOMEM, "no memory");
    c->name = name;
    varve_disks_refresh(d);
    rc = varve_disks_find(d, node, &c->disk, err);
    if (rc < 0) {
        change_free(&c->a);
        return rc;
    }
    *out = c;
    return 0;
}

static int plain_parse(struct varve_daemon *d, json_t *data, struct varve_action **out,
                       struct varve_err *err)
{
    static const char *const known[] = {"node", "name", NULL};
    struct change *c;
    int rc = change_new(d, data, known, "name", &c, err);

    if (rc == 0)
        *out = &c->a;
    return rc;
}

static int parse_granularity(json_t *data, const struct change *c, uint64_t *out,
                             struct varve_err *err)
{
    uint64_t block = varve_block_size(&c->disk->identity.geometry);
    int rc = varve_args_u63(data, "granularity", VARVE_BITMAP_GRANULARITY_DEFAULT, out, err);

    if (rc < 0)
        return rc;
    if (*out < VARVE_BITMAP_GRANULARITY_MIN || *out > VARVE_BITMAP_GRANULARITY_MAX ||
        (*out & (*out - 1)) != 0)
        return varve_err_set(err, EINVAL,
                             "Granularity must be power of 2 and at least 512, and at most 2 GiB: "
                             "bitmap '%.200s' of disk '%s' was to have %llu",
                             c->name, c->disk->name, (unsigned long long)*out);
    if (*out < block)
        *out = block;
    return 0;
}

static int add_parse(struct varve_daemon *d, json_t *data, struct varve_action **out,
                     struct varve_err *err)
{
    static const char *const known[] = {"node",       "name",     "granularity",
                                        "persistent", "disabled", NULL};
    struct change *c;
    bool persistent = true;
    int rc = change_new(d, data, known, "name", &c, err);

    if (rc < 0)
        return rc;
    rc = varve_bitmap_check_new(d->catalogue, c->disk, c->name, err);
    if (rc == 0)
        rc = parse_granularity(data, c, &c->granularity, err);
    if (rc == 0)
        rc = varve_args_bool(data, "persistent", true, &persistent, err);
    if (rc == 0)
        rc = varve_args_bool(data, "disabled", false, &c->disabled, err);
    if (rc < 0) {
        change_free(&c->a);
        return rc;
    }
    c->transient = !persistent;
    *out = &c->a;
    return 0;
}

static int copy_parse(struct varve_daemon *d, json_t *data, struct varve_action **out,
                      struct varve_err *err)
{
    static const char *const known[] = {"node", "name", "target", NULL};
    struct change *c;
    int rc = change_new(d, data, known, "name", &c, err);

    if (rc < 0)
        return rc;
    c->original = c->name;
    rc = varve_args_string(data, "target", true, &c->name, err);
    if (rc == 0)
        rc = varve_bitmap_check_new(d->catalogue, c->disk, c->name, err);
    if (rc < 0) {
        change_free(&c->a);
        return rc;
    }
    *out = &c->a;
    return 0;
}

/* A name of a bitmap of the same disk, or {node, name}. */
static int source_parse(struct varve_daemon *d, json_t *item, struct change *c, struct source *s,
                        struct varve_err *err)
{
    static const char *const known[] = {"node", "name", NULL};
    const char *node;
    int rc;

    s->disk = c->disk;
    if (json_is_string(item)) {
        s->name = json_string_value(item);
        if (strlen(s->name) != json_string_length(item))
            return varve_err_set(err, EINVAL, "Parameter 'bitmaps' holds a NUL character");
        return 0;
    }
    if (!json_is_object(item))
        return varve_err_set(err, EINVAL,
                             "Invalid parameter type for 'bitmaps', expected: array of names or of "
                             "objects with 'node' and 'name'");
    rc = varve_args_check(item, known, NULL, err);
    if (rc == 0)
        rc = varve_args_string(item, "node", true, &node, err);
    if (rc == 0)
        rc = varve_args_string(item, "name", true, &s->name, err);
    return rc < 0 ? rc : varve_disks_find(d, node, &s->disk, err);
}

static int merge_parse(struct varve_daemon *d, json_t *data, struct varve_action **out,
                       struct varve_err *err)
{
    static const char *const known[] = {"node", "target", "bitmaps", NULL};
    json_t *list = json_object_get(data, "bitmaps"), *item;
    struct change *c;
    size_t i;
    int rc = change_new(d, data, known, "target", &c, err);

    if (rc < 0)
        return rc;
    if (!list)
        rc = varve_err_set(err, EINVAL, "Parameter 'bitmaps' is missing");
    else if (!json_is_array(list))
        rc = varve_err_set(err, EINVAL, "Invalid parameter type for 'bitmaps', expected: array");
    if (rc == 0) {
        c->sources = calloc(json_array_size(list) + 1, sizeof(*c->sources));
        if (!c->sources)
            rc = varve_err_set(err, ENOMEM, "no memory");
    }
    if (rc == 0) {
        json_array_foreach(list, i, item)
        {
            rc = source_parse(d, item, c, &c->sources[i], err);
            if (rc < 0)
                break;
            c->nsources++;
        }
    }
    if (rc < 0) {
        change_free(&c->a);
        return rc;
    }
    *out = &c->a;
    return 0;
}

/* --- what they do to the draft -------------------------------------------------------------- */

/* The bitmap that a command changes. */
static int change_find(struct varve_tx *tx, const struct change *c, struct varve_cat_bitmap **b,
                       struct varve_err *err)
{
    int rc = varve_bitmap_lookup(tx->draft, c->disk, c->name, b, err);

    return rc < 0 ? rc : varve_bitmap_check(tx->draft, c->disk, *b, err);
}

/* From the boundary on the set records. */
static int record(struct varve_tx *tx, struct varve_disk *disk, struct varve_change_set *set,
                  struct varve_err *err)
{
    uint64_t epoch;
    int rc = varve_tx_boundary(tx, disk, &epoch, err);

    if (rc == 0 && varve_change_set_add_span(set, epoch, VARVE_SPAN_OPEN) < 0)
        rc = varve_err_set(err, ENOMEM, "no memory for a bitmap");
    return rc;
}

static int add_apply(struct varve_tx *tx, struct varve_action *a, struct varve_err *err)
{
    struct change *c = (struct change *)a;
    struct varve_cat_disk *cd = varve_tx_disk(tx, c->disk, err);
    struct varve_cat_bitmap *b;
    int rc;

    if (!cd)
        return -ENOMEM;
    rc = varve_catalogue_add_bitmap(cd, c->name, c->granularity, &b, err);
    if (rc < 0)
        return rc;
    b->transient = c->transient;
    b->since = varve_tx_since(tx, c->disk);
    return c->disabled ? 0 : record(tx, c->disk, &b->set, err);
}

static int remove_apply(struct varve_tx *tx, struct varve_action *a, struct varve_err *err)
{
    struct change *c = (struct change *)a;
    struct varve_cat_bitmap *b;
    int rc = change_find(tx, c, &b, err);

    if (rc < 0 && rc != -EUCLEAN) /* one that is inconsistent can be removed, and only that */
        return rc;
    varve_catalogue_remove_bitmap(varve_catalogue_disk(tx->draft, c->disk->identity.uuid), c->name);
    varve_tx_tidy(tx, c->disk);
    return 0;
}

static int clear_apply(struct varve_tx *tx, struct varve_action *a, struct varve_err *err)
{
    struct change *c = (struct change *)a;
    struct varve_cat_bitmap *b;
    bool records;
    int rc = change_find(tx, c, &b, err);

    if (rc < 0)
        return rc;
    records = varve_change_set_records(&b->set);
    varve_change_set_clear(&b->set);
    b->since = varve_tx_since(tx, c->disk);
    varve_tx_tidy(tx, c->disk);
    return records ? record(tx, c->disk, &b->set, err) : 0;
}

static int enable_apply(struct varve_tx *tx, struct varve_action *a, struct varve_err *err)
{
    struct change *c = (struct change *)a;
    struct varve_cat_bitmap *b;
    int rc = change_find(tx, c, &b, err);

    if (rc < 0 || varve_change_set_records(&b->set))
        return rc;
    return record(tx, c->disk, &b->set, err);
}

static int disable_apply(struct varve_tx *tx, struct varve_action *a, struct varve_err *err)
{
    struct change *c = (struct change *)a;
    struct varve_cat_bitmap *b;
    uint64_t epoch;
    int rc = change_find(tx, c, &b, err);

    if (rc < 0 || !varve_change_set_records(&b->set))
        return rc;
    rc = varve_tx_boundary(tx, c->disk, &epoch, err);
    if (rc == 0)
        varve_change_set_end_at(&b->set, epoch);
    return rc;
}

static int copy_apply(struct varve_tx *tx, struct varve_action *a, struct varve_err *err)
{
    struct change *c = (struct change *)a;
    struct varve_cat_bitmap *from, *to;
    size_t index;
    int rc = varve_bitmap_lookup(tx->draft, c->disk, c->original, &from, err);
    struct varve_cat_disk *cd = varve_catalogue_disk(tx->draft, c->disk->identity.uuid);

    if (rc == 0)
        rc = varve_bitmap_check(tx->draft, c->disk, from, err);
    if (rc < 0)
        return rc;
    index = (size_t)(from - cd->bitmaps);
    rc = varve_catalogue_add_bitmap(cd, c->name, from->granularity, &to, err);
    if (rc < 0)
        return rc;
    from = &cd->bitmaps[index];
    to->transient = from->transient;
    to->since = varve_tx_since(tx, c->disk);
    return varve_change_set_copy(&to->set, &from->set) < 0
               ? varve_err_set(err, ENOMEM, "no memory for a bitmap")
               : 0;
}

/* --- merge ---------------------------------------------------------------------------------- */

/* What becomes of the target: numbers, and blocks where those do not do. */
struct merged {
    struct varve_disk *disk;
    struct varve_change_set set;
    struct varve_bitmap *blocks; /* NULL: none so far */
};

static int merged_blocks(struct merged *m, struct varve_err *err)
{
    if (!m->blocks)
        m->blocks = varve_bitmap_new(m->disk->identity.geometry.nblks);
    return m->blocks ? 0 : varve_err_set(err, ENOMEM, "no memory for a bitmap");
}

/* Blocks of one geometry as those of another, for a disk of the same size. */
static void blocks_convert(const struct varve_geometry *from, const struct varve_bitmap *map,
                           const struct varve_geometry *to, struct varve_bitmap *into)
{
    for (uint64_t at = varve_bitmap_find(map, 0, true), end; at < map->nbits;
         at = varve_bitmap_find(map, end, true)) {
        end = varve_bitmap_find(map, at, false);
        varve_bitmap_set(into, at << from->shift >> to->shift,
                         ((varve_block_end(from, end - 1) - 1) >> to->shift) + 1);
    }
}

/* The source's blocks at epoch `at`, as its readers see them. */
static int merge_blocks(struct merged *m, struct varve_disk *disk,
                        const struct varve_cat_bitmap *source, uint64_t at, struct varve_err *err)
{
    const struct varve_geometry *g = &disk->identity.geometry;
    struct varve_bitmap *map = varve_bitmap_new(g->nblks);
    int rc = map ? merged_blocks(m, err) : varve_err_set(err, ENOMEM, "no memory for a bitmap");

    if (rc == 0)
        rc = varve_disk_union(disk, &source->set, 0, at, map, err);
    if (rc == 0) {
        varve_changes_round(g, source->granularity, map);
        blocks_convert(g, map, &m->disk->identity.geometry, m->blocks);
    }
    free(map);
    return rc;
}

/* Explicit blocks of the same disk. */
static int merge_file(struct merged *m, const struct varve_change_set *from, struct varve_err *err)
{
    const struct varve_identity *id = &m->disk->identity;
    struct varve_world *w = m->disk->daemon->w;
    int rc;

    if (!from->has_blocks ||
        (m->set.has_blocks && memcmp(m->set.blocks, from->blocks, sizeof(from->blocks)) == 0))
        return 0;
    if (!m->set.has_blocks) {
        m->set.has_blocks = true;
        memcpy(m->set.blocks, from->blocks, sizeof(from->blocks));
        return 0;
    }
    rc = merged_blocks(m, err);
    return rc < 0 ? rc
                  : varve_blocks_load(w, &m->disk->paths, id->uuid, &id->geometry, from->blocks,
                                      m->blocks, err);
}

static int merge_source(struct varve_tx *tx, struct merged *m,
                        const struct varve_cat_bitmap *target, const struct source *s,
                        struct varve_err *err)
{
    const struct varve_geometry *g = &s->disk->identity.geometry;
    struct varve_cat_bitmap *source;
    uint64_t at = VARVE_SPAN_OPEN;
    int rc = varve_bitmap_lookup(tx->draft, s->disk, s->name, &source, err);

    if (rc == 0)
        rc = varve_bitmap_check(tx->draft, s->disk, source, err);
    if (rc < 0)
        return rc;
    if (g->size != m->disk->identity.geometry.size)
        return varve_err_set(
            err, EINVAL,
            "Bitmaps are of different sizes (destination size is %llu, source size "
            "is %llu) and can't be merged: '%.100s' of disk '%s', '%.100s' of disk '%s'",
            (unsigned long long)m->disk->identity.geometry.size, (unsigned long long)g->size,
            target->name, m->disk->name, source->name, s->disk->name);
    if (varve_change_set_records(&source->set))
        rc = varve_tx_boundary(tx, s->disk, &at, err);
    if (rc < 0 || varve_tx_is_trial(tx))
        return rc;
    if (s->disk != m->disk || source->granularity > target->granularity)
        return merge_blocks(m, s->disk, source, at, err);
    if (varve_change_set_add_numbers(&m->set, &source->set, at) < 0)
        return varve_err_set(err, ENOMEM, "no memory for a bitmap");
    return merge_file(m, &source->set, err);
}

/* The blocks become a file, with those that are there. */
static int merged_write(struct merged *m, struct varve_err *err)
{
    const struct varve_identity *id = &m->disk->identity;
    struct varve_world *w = m->disk->daemon->w;
    int rc = 0;

    if (!m->blocks)
        return 0;
    if (m->set.has_blocks)
        rc = varve_blocks_load(w, &m->disk->paths, id->uuid, &id->geometry, m->set.blocks,
                               m->blocks, err);
    if (rc == 0 && varve_bitmap_find(m->blocks, 0, true) == m->blocks->nbits)
        return 0;
    if (rc == 0)
        rc = varve_blocks_write(w, &m->disk->paths, id->uuid, &id->geometry, m->blocks,
                                m->set.blocks, err);
    m->set.has_blocks = rc == 0;
    return rc < 0 ? varve_err_prefix(err, "Disk '%s'", m->disk->name) : 0;
}

static int merge_apply(struct varve_tx *tx, struct varve_action *a, struct varve_err *err)
{
    struct change *c = (struct change *)a;
    struct merged m = {.disk = c->disk};
    struct varve_cat_bitmap *target;
    int rc = change_find(tx, c, &target, err);

    if (rc < 0)
        return rc;
    if (varve_change_set_copy(&m.set, &target->set) < 0)
        return varve_err_set(err, ENOMEM, "no memory for a bitmap");
    for (size_t i = 0; rc == 0 && i < c->nsources; i++)
        rc = merge_source(tx, &m, target, &c->sources[i], err);
    if (rc == 0)
        rc = merged_write(&m, err);
    if (rc == 0) {
        varve_change_set_clear(&target->set);
        target->set = m.set;
        varve_tx_tidy(tx, c->disk);
    } else {
        varve_change_set_clear(&m.set);
    }
    free(m.blocks);
    return rc;
}

/* --- the actions ---------------------------------------------------------------------------- */

#define ACTION(which, parse_)                                                                      \
    const struct varve_action_ops varve_bitmap_##which##_ops = {                                   \
        .name = "block-dirty-bitmap-" #which,                                                      \
        .parse = parse_,                                                                           \
        .apply = which##_apply,                                                                    \
        .free = change_free,                                                                       \
    }

ACTION(add, add_parse);
ACTION(remove, plain_parse);
ACTION(clear, plain_parse);
ACTION(enable, plain_parse);
ACTION(disable, plain_parse);
ACTION(merge, merge_parse);
ACTION(copy, copy_parse);
