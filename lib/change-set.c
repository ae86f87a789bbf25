/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/change-set.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void varve_change_set_clear(struct varve_change_set *s)
{
    free(s->spans);
    free(s->ranges);
    memset(s, 0, sizeof(*s));
}

/* *out is NULL for none. */
static int array_copy(void **out, const void *from, size_t n, size_t each)
{
    *out = NULL;
    if (n == 0)
        return 0;
    *out = calloc(n, each);
    if (!*out)
        return -ENOMEM;
    memcpy(*out, from, n * each);
    return 0;
}

int varve_change_set_copy(struct varve_change_set *to, const struct varve_change_set *from)
{
    void *spans, *ranges;

    if (array_copy(&spans, from->spans, from->nspans, sizeof(*from->spans)) < 0)
        return -ENOMEM;
    if (array_copy(&ranges, from->ranges, from->nranges, sizeof(*from->ranges)) < 0) {
        free(spans);
        return -ENOMEM;
    }
    *to = *from;
    to->spans = spans;
    to->ranges = ranges;
    return 0;
}

bool varve_change_set_equal(const struct varve_change_set *a, const struct varve_change_set *b)
{
    return a->has_blocks == b->has_blocks && a->nspans == b->nspans && a->nranges == b->nranges &&
           (!a->has_blocks || memcmp(a->blocks, b->blocks, sizeof(a->blocks)) == 0) &&
           (a->nspans == 0 || memcmp(a->spans, b->spans, a->nspans * sizeof(*a->spans)) == 0) &&
           (a->nranges == 0 || memcmp(a->ranges, b->ranges, a->nranges * sizeof(*a->ranges)) == 0);
}

bool varve_change_set_is_empty(const struct varve_change_set *s)
{
    return !s->has_blocks && s->nspans == 0 && s->nranges == 0;
}

bool varve_change_set_records(const struct varve_change_set *s)
{
    return s->nspans > 0 && s->spans[s->nspans - 1].end == VARVE_SPAN_OPEN;
}

int varve_change_set_add_span(struct varve_change_set *s, uint64_t first, uint64_t end)
{
    struct varve_span *spans;
    size_t from = 0, to;

    if (first >= end)
        return 0;
    spans = reallocarray(s->spans, s->nspans + 1, sizeof(*spans));
    if (!spans)
        return -ENOMEM;
    s->spans = spans;
    /* spans[from, to) overlap or touch the new one, and become part of it. */
    while (from < s->nspans && spans[from].end < first)
        from++;
    for (to = from; to < s->nspans && spans[to].first <= end; to++) {
        if (spans[to].first < first)
            first = spans[to].first;
        if (spans[to].end > end)
            end = spans[to].end;
    }
    memmove(&spans[from + 1], &spans[to], (s->nspans - to) * sizeof(*spans));
    spans[from] = (struct varve_span){first, end};
    s->nspans = s->nspans - (to - from) + 1;
    return 0;
}

void varve_change_set_end_at(struct varve_change_set *s, uint64_t at)
{
    while (s->nspans > 0 && s->spans[s->nspans - 1].first >= at)
        s->nspans--;
    if (s->nspans > 0 && s->spans[s->nspans - 1].end > at)
        s->spans[s->nspans - 1].end = at;
}

/* --- ranges --------------------------------------------------------------------------------- */

static int range_cmp(const void *va, const void *vb)
{
    const struct varve_cat_range *a = va, *b = vb;

    return (a->off > b->off) - (a->off < b->off);
}

static uint64_t range_end(const struct varve_cat_range *r)
{
    return r->len > UINT64_MAX - r->off ? UINT64_MAX : r->off + r->len;
}

/* Joins neighbours (of a sorted list) with at most `gap` bytes between them; returns how many are
 * left. */
static size_t ranges_join(struct varve_cat_range *r, size_t n, uint64_t gap)
{
    size_t kept = 0;

    for (size_t i = 0; i < n; i++) {
        uint64_t end = kept > 0 ? range_end(&r[kept - 1]) : 0;

        if (kept > 0 && (r[i].off <= end || r[i].off - end <= gap)) {
            if (range_end(&r[i]) > end)
                r[kept - 1].len = range_end(&r[i]) - r[kept - 1].off;
        } else {
            r[kept++] = r[i];
        }
    }
    return kept;
}

int varve_change_set_add_ranges(struct varve_change_set *s, const struct varve_cat_range *ranges,
                                size_t n)
{
    struct varve_cat_range *all;
    uint64_t gap = 0;

    if (n == 0)
        return 0;
    all = reallocarray(s->ranges, s->nranges + n, sizeof(*all));
    if (!all)
        return -ENOMEM;
    memcpy(all + s->nranges, ranges, n * sizeof(*ranges));
    n += s->nranges;
    qsort(all, n, sizeof(*all), range_cmp);
    n = ranges_join(all, n, 0);
    while (n > VARVE_RANGES_MAX) {
        gap = gap * 2 + 4095;
        n = ranges_join(all, n, gap);
    }
    s->ranges = all;
    s->nranges = n;
    return 0;
}

int varve_change_set_add_numbers(struct varve_change_set *s, const struct varve_change_set *from,
                                 uint64_t at)
{
    int rc = varve_change_set_add_ranges(s, from->ranges, from->nranges);

    for (size_t i = 0; rc == 0 && i < from->nspans; i++) {
        uint64_t end = from->spans[i].end < at ? from->spans[i].end : at;

        rc = varve_change_set_add_span(s, from->spans[i].first, end);
    }
    return rc;
}
