/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Runs of blocks say what the map said that they were made of.
 */
#include "server/changed.h"

#include "server/disk.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define NBLKS 20011u

static struct varve_geometry g;

static void assert_same(const struct varve_bitmap *map, const struct varve_block_runs *runs)
{
    struct varve_changed a = {.map = map}, b = {.runs = runs};

    assert_int_equal(varve_changed_bytes(&a, &g), varve_changed_bytes(&b, &g));
    for (uint64_t blk = 0; blk < map->nbits; blk++) {
        const uint64_t lasts[] = {blk + 1, blk + 7, map->nbits};

        for (size_t i = 0; i < 3; i++) {
            uint64_t last = lasts[i] < map->nbits ? lasts[i] : map->nbits, to_a, to_b;

            assert_int_equal(varve_changed_run(&a, blk, last, &to_a),
                             varve_changed_run(&b, blk, last, &to_b));
            assert_int_equal(to_a, to_b);
            assert_true(to_b > blk && to_b <= last);
        }
    }
    for (uint64_t i = 0; i < map->nbits; i++) { /* to and fro, from wherever it was */
        uint64_t blk = i * 7919 % map->nbits, to_a, to_b;

        assert_int_equal(varve_changed_run(&a, blk, map->nbits, &to_a),
                         varve_changed_run(&b, blk, map->nbits, &to_b));
        assert_int_equal(to_a, to_b);
    }
}

static void check(const struct varve_bitmap *map)
{
    struct varve_block_runs *runs = varve_block_runs_of(map);

    assert_non_null(runs);
    assert_same(map, runs);
    free(runs);
}

static void runs_say_what_the_map_says(void **state)
{
    struct varve_bitmap *map = varve_bitmap_new(NBLKS);

    (void)state;
    check(map); /* nothing */
    varve_bitmap_set(map, 0, 1);
    check(map);
    varve_bitmap_set(map, NBLKS - 1, NBLKS); /* the partial one */
    check(map);
    varve_bitmap_set(map, 63, 65);
    varve_bitmap_set(map, 66, 67);
    varve_bitmap_set(map, 640, 1281);
    check(map);
    varve_bitmap_set(map, 0, NBLKS);
    check(map);
    free(map);
}

static void random_runs_say_what_the_map_says(void **state)
{
    uint64_t seed = 20261127;

    (void)state;
    for (int round = 0; round < 20; round++) {
        struct varve_bitmap *map = varve_bitmap_new(NBLKS);

        for (int i = 0; i < 30; i++) {
            uint64_t from, to;

            seed = seed * 6364136223846793005u + 1442695040888963407u;
            from = (seed >> 33) % NBLKS;
            to = from + 1 + (seed >> 20) % 200;
            varve_bitmap_set(map, from, to < NBLKS ? to : NBLKS);
        }
        check(map);
        free(map);
    }
}

static void every_block_is_the_disk(void **state)
{
    struct varve_changed all = {.map = NULL};
    uint64_t to;

    (void)state;
    assert_true(varve_changed_run(&all, 3, 9, &to));
    assert_int_equal(to, 9);
    assert_int_equal(varve_changed_bytes(&all, &g), g.size);
}

/* Runs take 16 bytes each, and at most a fourth of the map's memory. */
static void a_map_of_many_runs_stays_a_map(void **state)
{
    struct varve_bitmap *map = varve_bitmap_new(NBLKS);
    uint64_t most = varve_bitmap_nwords(map) * 8 / 64;

    (void)state;
    for (uint64_t i = 0; i < most; i++)
        varve_bitmap_set(map, 2 * i, 2 * i + 1);
    check(map);
    varve_bitmap_set(map, 2 * most, 2 * most + 1);
    assert_null(varve_block_runs_of(map));
    free(map);
}

static int setup(void **state)
{
    (void)state;
    return varve_geometry_init(&g, (uint64_t)NBLKS * 4096 - 1000, 4096, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(runs_say_what_the_map_says),
        cmocka_unit_test(random_runs_say_what_the_map_says),
        cmocka_unit_test(every_block_is_the_disk),
        cmocka_unit_test(a_map_of_many_runs_stays_a_map),
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}
