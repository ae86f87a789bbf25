/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Both kinds of bitmaps against arrays of bools.
 */
#include "lib/bitmap.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define NBITS 200u /* neither a multiple of 64 nor within one word */

static void set_marks_exactly_its_range(void **state)
{
    (void)state;
    for (uint64_t from = 0; from <= NBITS; from++) {
        for (uint64_t to = from; to <= NBITS; to++) {
            _Atomic uint64_t shared[(NBITS + 63) / 64] = {0};
            struct varve_bitmap *plain = varve_bitmap_new(NBITS);

            assert_non_null(plain);
            varve_abits_set(shared, from, to);
            varve_bitmap_set(plain, from, to);
            for (uint64_t bit = 0; bit < NBITS; bit++) {
                bool want = bit >= from && bit < to;

                assert_int_equal(varve_abits_test(shared, bit), want);
                assert_int_equal(varve_bitmap_test(plain, bit), want);
            }
            assert_int_equal(varve_bitmap_count(plain), to - from);
            assert_int_equal(varve_bitmap_find(plain, 0, true), from < to ? from : NBITS);
            assert_int_equal(varve_bitmap_find(plain, from, false), to < NBITS ? to : NBITS);
            assert_int_equal(varve_abits_find(shared, 0, NBITS, true), from < to ? from : NBITS);
            assert_int_equal(varve_abits_find(shared, from, NBITS, false), to);
            free(plain);
        }
    }
}

static void find_never_leaves_its_range(void **state)
{
    _Atomic uint64_t shared[4] = {0};

    (void)state;
    varve_abits_set(shared, 100, 101);
    for (uint64_t from = 0; from <= 100; from++) {
        for (uint64_t to = from; to <= 200; to++)
            assert_int_equal(varve_abits_find(shared, from, to, true), to > 100 ? 100 : to);
    }
    assert_int_equal(varve_abits_find(shared, 101, 200, true), 200);
    assert_int_equal(varve_abits_find(shared, 300, 200, true), 200);
}

static void bits_behind_the_end_stay_clear(void **state)
{
    struct varve_bitmap *m = varve_bitmap_new(70);

    (void)state;
    varve_bitmap_set(m, 60, 1000);
    assert_int_equal(varve_bitmap_count(m), 10);
    assert_int_equal(m->words[1], 0x3f);
    assert_int_equal(varve_bitmap_find(m, 60, false), 70);
    assert_int_equal(varve_bitmap_find(m, 1000, false), 70);
    free(m);

    m = varve_bitmap_new(0);
    assert_non_null(m);
    assert_int_equal(varve_bitmap_find(m, 0, true), 0);
    assert_int_equal(varve_bitmap_count(m), 0);
    free(m);
}

static void or_is_the_union(void **state)
{
    struct varve_bitmap *a = varve_bitmap_new(NBITS), *b = varve_bitmap_new(NBITS);

    (void)state;
    varve_bitmap_set(a, 3, 70);
    varve_bitmap_set(b, 60, 130);
    varve_bitmap_set(b, 199, 200);
    varve_bitmap_or(a, b);
    for (uint64_t bit = 0; bit < NBITS; bit++)
        assert_int_equal(varve_bitmap_test(a, bit), (bit >= 3 && bit < 130) || bit == 199);
    assert_int_equal(varve_bitmap_count(b), 71);
    free(a);
    free(b);
}

/* Words are ORed in pieces, of maps that are as long or longer; what was set newly is counted. */
static void words_are_ored_counted_and_cut(void **state)
{
    uint64_t seed = 20261128, from[8];

    (void)state;
    for (unsigned round = 0; round < 2000; round++) {
        struct varve_bitmap *m = varve_bitmap_new(1 + round % 300);
        size_t nwords = varve_bitmap_nwords(m), word, n;
        bool cut = round & 1, was[320], want;
        uint64_t newly = 0, count = 0, got;

        for (unsigned i = 0; i < 8; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            from[i] = seed >> 62 ? seed ^ seed << 29 : 0; /* many are empty */
        }
        for (unsigned i = 0; i < m->nbits; i += 1 + (seed >> 40) % 9)
            varve_bitmap_set(m, i, i + 1);
        for (unsigned i = 0; i < m->nbits; i++)
            was[i] = varve_bitmap_test(m, i);
        word = (seed >> 20) % (nwords + (cut ? 2 : 0));
        n = cut ? (seed >> 10) % 8 : (seed >> 10) % (nwords - word + 1);
        if (!cut && word + n == nwords && m->nbits % 64) /* bits from nbits on are 0 */
            from[n ? n - 1 : 0] &= (UINT64_C(1) << m->nbits % 64) - 1;
        got = cut ? varve_bitmap_or_words_cut(m, word, from, n)
                  : varve_bitmap_or_words(m, word, from, n);
        for (unsigned i = 0; i < nwords * 64; i++) {
            want = i >= word * 64 && i < (word + n) * 64 && i < m->nbits &&
                   from[i / 64 - word] >> i % 64 & 1;
            newly += want && !was[i];
            want = want || (i < m->nbits && was[i]);
            count += want;
            assert_int_equal(m->words[i / 64] >> i % 64 & 1, want);
        }
        assert_int_equal(got, newly);
        assert_int_equal(varve_bitmap_count(m), count);
        free(m);
    }
}

#define RACERS    4u
#define RACE_BITS 65536u

static _Atomic uint64_t race_map[RACE_BITS / 64];
static pthread_barrier_t race_start;

static void *racer(void *arg)
{
    uint64_t me = *(uint64_t *)arg;

    pthread_barrier_wait(&race_start);
    for (uint64_t bit = me; bit < RACE_BITS; bit += RACERS)
        varve_abits_set(race_map, bit, bit + 1);
    return NULL;
}

/* Every word is set bit by bit by four threads at once. */
static void no_bit_is_lost_when_writers_share_words(void **state)
{
    (void)state;
    assert_int_equal(pthread_barrier_init(&race_start, NULL, RACERS), 0);
    for (int round = 0; round < 50; round++) {
        pthread_t threads[RACERS];
        uint64_t numbers[RACERS];

        memset(race_map, 0, sizeof(race_map));
        for (uint64_t i = 0; i < RACERS; i++) {
            numbers[i] = i;
            assert_int_equal(pthread_create(&threads[i], NULL, racer, &numbers[i]), 0);
        }
        for (uint64_t i = 0; i < RACERS; i++)
            pthread_join(threads[i], NULL);
        assert_int_equal(varve_abits_find(race_map, 0, RACE_BITS, false), RACE_BITS);
    }
    pthread_barrier_destroy(&race_start);
}

static void rounding_fills_units(void **state)
{
    static const uint64_t units[] = {1, 2, 16, 64, 128, 1 << 20};

    (void)state;
    for (size_t u = 0; u < sizeof(units) / sizeof(units[0]); u++) {
        struct varve_bitmap *m = varve_bitmap_new(1001), *was = varve_bitmap_new(1001);

        for (uint64_t i = 0; i < 12; i++)
            varve_bitmap_set(m, i * i * 7 % 1001, i * i * 7 % 1001 + 1);
        varve_bitmap_set(m, 1000, 1001);
        varve_bitmap_or(was, m);
        varve_bitmap_round(m, units[u]);
        for (uint64_t i = 0; i < 1001; i++) {
            bool want = false;

            for (uint64_t k = i / units[u] * units[u]; k < 1001 && k / units[u] == i / units[u];
                 k++)
                want = want || varve_bitmap_test(was, k);
            assert_true(varve_bitmap_test(m, i) == want);
        }
        free(m);
        free(was);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rounding_fills_units),
        cmocka_unit_test(set_marks_exactly_its_range),
        cmocka_unit_test(find_never_leaves_its_range),
        cmocka_unit_test(bits_behind_the_end_stay_clear),
        cmocka_unit_test(or_is_the_union),
        cmocka_unit_test(words_are_ored_counted_and_cut),
        cmocka_unit_test(no_bit_is_lost_when_writers_share_words),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
