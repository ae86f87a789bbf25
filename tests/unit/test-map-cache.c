/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The cache of maps: its bound, who goes first, who stays.
 */
#include "server/map-cache.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#define BITS  4096u
#define BYTES (BITS / 8)

static struct varve_map_cache cache;

/* An entry's map is computed and no longer used. */
static void use(struct varve_cached_map *e)
{
    if (!varve_map_cache_pin(&cache, e)) {
        struct varve_bitmap *map = varve_bitmap_new(BITS);

        assert_non_null(map);
        varve_map_cache_add(&cache, e, map);
    }
    varve_map_cache_unpin(&cache, e);
}

static bool is_there(struct varve_cached_map *e)
{
    return e->map != NULL;
}

static void the_least_recently_used_go_first(void **state)
{
    struct varve_cached_map e[4] = {{.map = NULL}};

    (void)state;
    varve_map_cache_init(&cache, 3 * BYTES);
    use(&e[0]);
    use(&e[1]);
    use(&e[2]);
    assert_true(is_there(&e[0]) && is_there(&e[1]) && is_there(&e[2]));
    use(&e[0]); /* so it is e[1] that is the oldest */
    use(&e[3]);
    assert_true(is_there(&e[0]) && !is_there(&e[1]) && is_there(&e[2]) && is_there(&e[3]));
    assert_int_equal(cache.bytes, 3 * BYTES);
    assert_int_equal(cache.dropped, 1);
    for (unsigned i = 0; i < 4; i++)
        varve_map_cache_forget(&cache, &e[i]);
    assert_int_equal(cache.bytes, 0);
    varve_map_cache_fini(&cache);
}

static void a_map_in_use_stays_and_goes_when_it_is_not(void **state)
{
    struct varve_cached_map e[3] = {{.map = NULL}};
    const struct varve_bitmap *map;

    (void)state;
    varve_map_cache_init(&cache, BYTES);
    use(&e[0]);
    map = varve_map_cache_pin(&cache, &e[0]);
    assert_non_null(map);
    use(&e[1]);
    assert_true(is_there(&e[0]) && !is_there(&e[1])); /* what is used is over the limit already */
    assert_ptr_equal(varve_map_cache_pin(&cache, &e[0]), map);
    varve_map_cache_unpin(&cache, &e[0]);
    assert_true(is_there(&e[0]));
    use(&e[2]);
    varve_map_cache_unpin(&cache, &e[0]);
    assert_int_equal(cache.bytes, BYTES);
    varve_map_cache_forget(&cache, &e[0]);
    varve_map_cache_forget(&cache, &e[1]);
    varve_map_cache_forget(&cache, &e[2]);
    varve_map_cache_fini(&cache);
}

static void without_memory_nothing_stays(void **state)
{
    struct varve_cached_map e = {.map = NULL};
    struct varve_map_cache_counts n;

    (void)state;
    varve_map_cache_init(&cache, 0);
    use(&e);
    use(&e);
    assert_false(is_there(&e));
    varve_map_cache_count(&cache, &n);
    assert_true(n.added == 2 && n.dropped == 2 && n.bytes == 0 && n.limit == 0);
    varve_map_cache_forget(&cache, &e);
    varve_map_cache_fini(&cache);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_least_recently_used_go_first),
        cmocka_unit_test(a_map_in_use_stays_and_goes_when_it_is_not),
        cmocka_unit_test(without_memory_nothing_stays),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
