/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Sets told by numbers against sets told by listing: any order of additions, ends at any boundary.
 */
#include "lib/change-set.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#define EPOCHS 24u
#define ROUNDS 20000

static unsigned seed;

/* Every epoch from EPOCHS on is one: an open span holds it. */
static void assert_is(const struct varve_change_set *s, const bool *model)
{
    bool found[EPOCHS + 1] = {false};

    for (size_t i = 0; i < s->nspans; i++) {
        assert_true(s->spans[i].first < s->spans[i].end);
        if (i > 0)
            assert_true(s->spans[i - 1].end < s->spans[i].first); /* neither overlap nor touch */
        for (unsigned e = 0; e <= EPOCHS; e++)
            found[e] = found[e] || (s->spans[i].first <= e && e < s->spans[i].end);
    }
    assert_memory_equal(found, model, sizeof(found));
    assert_true(varve_change_set_records(s) == model[EPOCHS]);
}

static void random_span(uint64_t *first, uint64_t *end)
{
    *first = 1 + (unsigned)rand() % (EPOCHS - 1);
    *end = *first + (unsigned)rand() % (EPOCHS - *first + 1);
    if (*end == EPOCHS && rand() % 2)
        *end = VARVE_SPAN_OPEN;
    else if (*end == EPOCHS)
        *end = EPOCHS - 1 < *first ? *first : EPOCHS - 1;
}

static void add(struct varve_change_set *s, bool *model, uint64_t first, uint64_t end)
{
    assert_int_equal(varve_change_set_add_span(s, first, end), 0);
    for (unsigned e = 0; e <= EPOCHS; e++)
        model[e] = model[e] || (first <= e && e < end);
}

static void spans_are_the_epochs_that_were_added(void **state)
{
    (void)state;
    for (int round = 0; round < ROUNDS; round++) {
        struct varve_change_set s = {.nspans = 0}, other = {.nspans = 0}, copy = {.nspans = 0};
        bool model[EPOCHS + 1] = {false}, more[EPOCHS + 1] = {false};
        uint64_t first, end, at = 1 + (unsigned)rand() % EPOCHS;

        for (int n = rand() % 7; n > 0; n--) {
            random_span(&first, &end);
            add(&s, model, first, end);
            assert_is(&s, model);
        }
        for (int n = rand() % 5; n > 0; n--) {
            random_span(&first, &end);
            add(&other, more, first, end);
        }
        assert_int_equal(varve_change_set_copy(&copy, &s), 0);
        assert_int_equal(varve_change_set_add_numbers(&copy, &other, at), 0);
        assert_is(&s, model); /* a copy is its own */
        for (unsigned e = 0; e <= EPOCHS; e++)
            more[e] = model[e] || (more[e] && e < at);
        assert_is(&copy, more);
        varve_change_set_end_at(&s, at);
        for (unsigned e = 0; e <= EPOCHS; e++)
            model[e] = model[e] && e < at;
        assert_is(&s, model);
        varve_change_set_clear(&s);
        assert_true(varve_change_set_is_empty(&s));
        varve_change_set_clear(&other);
        varve_change_set_clear(&copy);
    }
}

static bool in_ranges(const struct varve_change_set *s, uint64_t byte)
{
    for (size_t i = 0; i < s->nranges; i++) {
        if (byte >= s->ranges[i].off && byte - s->ranges[i].off < s->ranges[i].len)
            return true;
    }
    return false;
}

static void ranges_lose_nothing_and_stay_few(void **state)
{
    struct varve_change_set s = {.nspans = 0};

    (void)state;
    for (uint64_t i = 0; i < 5000; i++) {
        struct varve_cat_range r = {(i * 7919) % 5000 * 65536, 512 + i};

        assert_int_equal(varve_change_set_add_ranges(&s, &r, 1), 0);
        assert_true(s.nranges <= VARVE_RANGES_MAX);
        for (size_t k = 1; k < s.nranges; k++)
            assert_true(s.ranges[k].off > s.ranges[k - 1].off + s.ranges[k - 1].len);
    }
    for (uint64_t i = 0; i < 5000; i++) {
        assert_true(in_ranges(&s, (i * 7919) % 5000 * 65536));
        assert_true(in_ranges(&s, (i * 7919) % 5000 * 65536 + 511 + i));
    }
    varve_change_set_clear(&s);
}

static void few_ranges_gain_nothing(void **state)
{
    const struct varve_cat_range r[] = {{8192, 4096}, {0, 4096}, {6000, 3000}, {65536, 1}};
    struct varve_change_set s = {.nspans = 0};

    (void)state;
    assert_int_equal(varve_change_set_add_ranges(&s, r, 4), 0);
    assert_int_equal(s.nranges, 3);
    assert_int_equal(s.ranges[1].off, 6000);
    assert_int_equal(s.ranges[1].len, 12288 - 6000);
    assert_false(in_ranges(&s, 4096));
    assert_false(in_ranges(&s, 65537));
    varve_change_set_clear(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(spans_are_the_epochs_that_were_added),
        cmocka_unit_test(ranges_lose_nothing_and_stay_few),
        cmocka_unit_test(few_ranges_gain_nothing),
    };
    const char *given = getenv("SEED");

    seed = given ? (unsigned)strtoul(given, NULL, 10) : (unsigned)time(NULL);
    printf("# seed %u (repeat with SEED=%u)\n", seed, seed);
    fflush(stdout);
    srand(seed);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
