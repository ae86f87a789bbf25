/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/dirt-rate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define S  UINT64_C(1000000000)
#define T0 (1000 * S)

static void a_rate_is_of_the_last_minutes_not_of_the_epoch(void **state)
{
    struct varve_dirt_rate r = {0};

    (void)state;
    assert_true(varve_dirt_rate_due(&r, 7, T0));
    varve_dirt_rate_note(&r, 7, T0, 5000000);
    /* what was dirty when it was first looked at came who knows when */
    assert_int_equal(varve_dirt_rate_get(&r, 7, T0 + 10 * S, 5000000), 0);
    assert_in_range(varve_dirt_rate_get(&r, 7, T0 + 10 * S, 5100000), 10000, 10001);
    assert_false(varve_dirt_rate_due(&r, 7, T0 + 59 * S));
    assert_true(varve_dirt_rate_due(&r, 7, T0 + 60 * S));
    varve_dirt_rate_note(&r, 7, T0 + 60 * S, 11000000);
    assert_in_range(varve_dirt_rate_get(&r, 7, T0 + 60 * S, 11000000), 100000, 100001);
    varve_dirt_rate_note(&r, 7, T0 + 120 * S, 11000000);
    /* the first minute is no longer "lately" */
    assert_int_equal(varve_dirt_rate_get(&r, 7, T0 + 150 * S, 11000000), 0);
}

static void a_new_epoch_begins_anew(void **state)
{
    struct varve_dirt_rate r = {0};

    (void)state;
    varve_dirt_rate_note(&r, 7, T0, 5000000);
    assert_true(varve_dirt_rate_due(&r, 8, T0 + S));
    assert_int_equal(varve_dirt_rate_get(&r, 8, T0 + S, 9000000), 0);
    varve_dirt_rate_note(&r, 8, T0 + S, 0);
    assert_in_range(varve_dirt_rate_get(&r, 8, T0 + 3 * S, 2000000), 1000000, 1000001);
    /* a server that was killed may have had to forget bits of nobody's: no negative rate */
    varve_dirt_rate_note(&r, 8, T0 + 70 * S, 2000000);
    assert_int_equal(varve_dirt_rate_get(&r, 8, T0 + 71 * S, 0), 0);
}

static void a_rate_has_no_edge(void **state)
{
    struct varve_dirt_rate r = {0};

    (void)state;
    varve_dirt_rate_note(&r, 7, T0, 0);
    assert_in_range(varve_dirt_rate_get(&r, 7, T0, 4096), 4096, 4097); /* not infinite */
    assert_int_equal(varve_dirt_rate_get(&r, 7, T0 + 3600 * S, 1), 1); /* not nothing */
    assert_in_range(varve_dirt_rate_get(&r, 7, T0 + S, INT64_MAX), INT64_MAX - 1024,
                    (uint64_t)INT64_MAX + 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_rate_is_of_the_last_minutes_not_of_the_epoch),
        cmocka_unit_test(a_new_epoch_begins_anew),
        cmocka_unit_test(a_rate_has_no_edge),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
