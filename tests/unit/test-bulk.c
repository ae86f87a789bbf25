/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Whoever works on a whole map rests after each piece, and not before.
 */
#include "lib/bulk.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <time.h>

#include <cmocka.h>

static unsigned rests;

int nanosleep(const struct timespec *rest, struct timespec *left)
{
    (void)left;
    assert_true(rest->tv_sec == 0 && rest->tv_nsec > 0 && rest->tv_nsec < 1000000);
    rests++;
    return 0;
}

static void a_rest_comes_after_each_piece(void **state)
{
    struct varve_bulk b = {.bytes = 0};

    (void)state;
    rests = 0;
    for (unsigned i = 0; i < 4 * VARVE_BULK_PIECE / 4096; i++) {
        assert_int_equal(rests, i * 4096 / VARVE_BULK_PIECE);
        varve_bulk_worked(&b, 4096);
    }
    assert_int_equal(rests, 4);
}

static void little_work_needs_no_rest(void **state)
{
    struct varve_bulk b = {.bytes = 0};

    (void)state;
    rests = 0;
    varve_bulk_worked(&b, VARVE_BULK_PIECE - 1);
    assert_int_equal(rests, 0);
    varve_bulk_worked(&b, UINT32_MAX); /* one piece, however long it was */
    assert_int_equal(rests, 1);
    varve_bulk_worked(&b, VARVE_BULK_PIECE - 1);
    assert_int_equal(rests, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_rest_comes_after_each_piece),
        cmocka_unit_test(little_work_needs_no_rest),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
