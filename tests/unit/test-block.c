/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/block.h"

#include "include/varve.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define GIB ((uint64_t)1 << 30)
#define TIB ((uint64_t)1 << 40)

static void default_block_is_smallest_whose_map_fits_16_mib(void **state)
{
    static const struct {
        uint64_t size, block;
    } cases[] = {
        {0, 4096},
        {1, 4096},
        {512 * GIB, 4096},
        {512 * GIB + 1, 8192},
        {TIB, 8192},
        {TIB + 1, 16384},
        {16 * TIB, 128 * 1024},
        {128 * TIB, 1024 * 1024},
        {VARVE_DISK_SIZE_MAX, 1024 * 1024}, /* no larger block, whatever the map takes */
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct varve_geometry g;

        assert_int_equal(varve_geometry_init(&g, cases[i].size, 0, NULL), 0);
        assert_int_equal(varve_block_size(&g), cases[i].block);
        assert_int_equal(g.size, cases[i].size);
        if (cases[i].size <= 128 * TIB)
            assert_true(varve_map_bytes(&g) <= 16 << 20);
    }
}

static void partial_last_block_counts(void **state)
{
    struct varve_geometry g;

    (void)state;
    assert_int_equal(varve_geometry_init(&g, 3 * 65536 + 1, 65536, NULL), 0);
    assert_int_equal(g.nblks, 4);
    assert_int_equal(g.shift, 16);
    assert_int_equal(varve_block_end(&g, 0), 65536);
    assert_int_equal(varve_block_end(&g, 2), 3 * 65536);
    assert_int_equal(varve_block_end(&g, 3), 3 * 65536 + 1);
    assert_int_equal(varve_map_bytes(&g), 8);
    assert_int_equal(varve_geometry_init(&g, 64 * 4096, 4096, NULL), 0);
    assert_int_equal(varve_map_bytes(&g), 8);
    assert_int_equal(varve_geometry_init(&g, 64 * 4096 + 1, 4096, NULL), 0);
    assert_int_equal(varve_map_bytes(&g), 16);
}

static void bad_granularity_and_size_are_refused_with_the_number(void **state)
{
    static const uint64_t bad[] = {1,         2048, 4095, 4097, 12288, 2 << 20, (uint64_t)1 << 63,
                                   UINT64_MAX};
    struct varve_geometry g;
    struct varve_err err = VARVE_ERR_INIT;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(varve_geometry_init(&g, 65536, bad[i], &err), -EINVAL);
        assert_int_equal(err.code, EINVAL);
    }
    varve_geometry_init(&g, 65536, 12288, &err);
    assert_non_null(strstr(err.msg, "12288"));
    assert_int_equal(varve_geometry_init(&g, VARVE_DISK_SIZE_MAX + 1, 0, &err), -EFBIG);
    assert_int_equal(varve_geometry_init(&g, UINT64_MAX, 4096, &err), -EFBIG);
}

static void ranges_that_wrap_are_outside(void **state)
{
    struct varve_geometry g;

    (void)state;
    assert_int_equal(varve_geometry_init(&g, 1 << 20, 4096, NULL), 0);
    assert_true(varve_range_ok(&g, 0, 1 << 20));
    assert_true(varve_range_ok(&g, 1 << 20, 0));
    assert_true(varve_range_ok(&g, (1 << 20) - 1, 1));
    assert_false(varve_range_ok(&g, (1 << 20) - 1, 2));
    assert_false(varve_range_ok(&g, (1 << 20) + 1, 0));
    assert_false(varve_range_ok(&g, UINT64_MAX, 2));
    assert_false(varve_range_ok(&g, 2, UINT64_MAX));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(default_block_is_smallest_whose_map_fits_16_mib),
        cmocka_unit_test(partial_last_block_counts),
        cmocka_unit_test(bad_granularity_and_size_are_refused_with_the_number),
        cmocka_unit_test(ranges_that_wrap_are_outside),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
