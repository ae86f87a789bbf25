/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Files of explicit blocks: durable once written, told apart from damaged ones, removed only when
 * nobody needs them.
 */
#include "lib/blocks-file.h"

#include "lib/digest.h"
#include "tests/lib/disk-fixture.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SIZE (UINT64_C(1000) * 4096 + 512)

static struct varve_bitmap *map_of(const struct disk_fixture *d, uint64_t from, uint64_t to)
{
    struct varve_bitmap *m = varve_bitmap_new(d->geometry.nblks);

    assert_non_null(m);
    if (to > from)
        varve_bitmap_set(m, from, to);
    return m;
}

static int blocks_write(struct disk_fixture *d, uint64_t from, uint64_t to, uint8_t digest[32])
{
    struct varve_bitmap *m = map_of(d, from, to);
    struct varve_err err = VARVE_ERR_INIT;
    int rc = varve_blocks_write(d->w, &d->paths, d->uuid, &d->geometry, m, digest, &err);

    free(m);
    return rc;
}

static int blocks_load(struct disk_fixture *d, const uint8_t digest[32], struct varve_bitmap *into)
{
    struct varve_err err = VARVE_ERR_INIT;
    int rc = varve_blocks_load(d->w, &d->paths, d->uuid, &d->geometry, digest, into, &err);

    assert_true((rc == 0) == (err.msg[0] == '\0'));
    return rc;
}

static void what_was_written_is_ored_in(void **state)
{
    struct disk_fixture *d = *state;
    struct varve_bitmap *m = map_of(d, 5, 6);
    uint8_t a[32], b[32], again[32];

    assert_int_equal(blocks_write(d, 100, 200, a), 0);
    assert_int_equal(blocks_write(d, 1000, 1001, b), 0);
    assert_int_equal(blocks_write(d, 100, 200, again), 0);
    assert_memory_equal(a, again, 32);
    assert_int_equal(blocks_load(d, a, m), 0);
    assert_int_equal(varve_bitmap_count(m), 101);
    assert_int_equal(blocks_load(d, b, m), 0);
    assert_true(varve_bitmap_test(m, 5) && varve_bitmap_test(m, 199) && varve_bitmap_test(m, 1000));
    assert_int_equal(varve_bitmap_count(m), 102);
    free(m);
}

static void blocks_of_another_size_count_as_set_from_the_smaller_size_on(void **state)
{
    static const uint64_t sizes[] = {1, 100 * 4096, 150 * 4096 + 7, 1 << 20, 1 << 30};
    struct disk_fixture *d = *state;
    uint64_t had = d->geometry.size;
    uint8_t a[32];

    assert_int_equal(blocks_write(d, 100, 200, a), 0);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        struct varve_bitmap *m;
        uint64_t from = (sizes[i] < had ? sizes[i] : had) / 4096;

        assert_int_equal(varve_geometry_init(&d->geometry, sizes[i], 4096, NULL), 0);
        m = map_of(d, 0, 0);
        assert_int_equal(blocks_load(d, a, m), 0);
        for (uint64_t b = 0; b < m->nbits; b++)
            assert_int_equal(varve_bitmap_test(m, b), b >= from || (b >= 100 && b < 200));
        free(m);
    }
    assert_int_equal(varve_geometry_init(&d->geometry, had, 4096, NULL), 0);
}

/* Dying at every call, and the power with it: a digest that was returned finds its blocks. */
static void what_was_returned_survives_the_power(void **state)
{
    struct disk_fixture *d = *state;
    bool died = false;

    for (uint64_t n = 1;; n++) {
        struct varve_bitmap *m = map_of(d, 0, 0);
        uint8_t old[32], new[32];
        int rc;

        disk_fixture_reset(d);
        assert_int_equal(blocks_write(d, 1, 2, old), 0);
        fault_crash_at(&d->fault, FAULT_ANY, n);
        rc = blocks_write(d, 10, 30, new);
        died = !fault_fired(&d->fault);
        disk_fixture_reboot(d, n);
        assert_int_equal(blocks_load(d, old, m), 0);
        if (rc == 0) {
            assert_int_equal(blocks_load(d, new, m), 0);
            assert_int_equal(varve_bitmap_count(m), 21);
        }
        free(m);
        if (died) {
            assert_int_equal(rc, 0);
            break;
        }
    }
}

static void an_error_at_any_call_is_told(void **state)
{
    struct disk_fixture *d = *state;
    uint8_t digest[32];

    for (uint64_t n = 1;; n++) {
        int rc;

        fault_fail_at(&d->fault, FAULT_ANY, n, ENOSPC);
        rc = blocks_write(d, 1, n + 1, digest);
        if (!fault_fired(&d->fault))
            break;
        if (fault_calls(&d->fault, FAULT_CLOSE) == 0)
            assert_true(rc < 0);
    }
    fault_disarm(&d->fault);
}

/* Any flipped bit, a cut, another disk's: -EUCLEAN, and nothing was changed. */
static void damage_is_found(void **state)
{
    struct disk_fixture *d = *state;
    struct varve_bitmap *m = map_of(d, 3, 4);
    char path[PATH_MAX];
    uint8_t digest[32];

    assert_int_equal(blocks_write(d, 100, 200, digest), 0);
    varve_path_blocks(&d->paths, digest, path);
    for (uint64_t off = 0; off < 64 + varve_map_bytes(&d->geometry); off++) {
        unsigned bit = (unsigned)off % 8;

        disk_fixture_flip(d, path, off, bit);
        assert_int_equal(blocks_load(d, digest, m), -EUCLEAN);
        assert_int_equal(varve_bitmap_count(m), 1);
        disk_fixture_flip(d, path, off, bit);
    }
    assert_int_equal(blocks_load(d, digest, m), 0);
    d->uuid[0] ^= 1;
    assert_int_equal(blocks_load(d, digest, m), -EUCLEAN);
    d->uuid[0] ^= 1;
    assert_int_equal(d->w->unlink(d->w, path), 0);
    assert_int_equal(blocks_load(d, digest, m), -EUCLEAN);
    assert_int_equal(varve_blocks_look(d->w, &d->paths, digest, NULL), -EUCLEAN);
    free(m);
}

static void only_what_nobody_keeps_goes(void **state)
{
    struct disk_fixture *d = *state;
    struct varve_bitmap *m = map_of(d, 0, 0);
    uint8_t keep[2][32], go[32];
    char path[PATH_MAX];
    int fd;

    assert_int_equal(blocks_write(d, 1, 2, keep[0]), 0);
    assert_int_equal(blocks_write(d, 3, 4, go), 0);
    assert_int_equal(blocks_write(d, 5, 6, keep[1]), 0);
    strcat(varve_path_blocks(&d->paths, go, path), ".tmp");
    fd = d->w->open(d->w, path, 0101 /* O_WRONLY|O_CREAT */, 0600);
    assert_true(fd >= 0);
    d->w->close(d->w, fd);
    varve_blocks_tidy(d->w, &d->paths, (const uint8_t(*)[32])keep, 2);
    assert_int_equal(blocks_load(d, keep[0], m), 0);
    assert_int_equal(blocks_load(d, keep[1], m), 0);
    assert_int_equal(blocks_load(d, go, m), -EUCLEAN);
    assert_int_equal(d->w->open(d->w, path, 0, 0), -ENOENT);
    free(m);
}

/* Whole, and as the catalogue names it, but of a format that is not known. */
static void a_file_of_a_newer_format_is_refused_and_not_called_damaged(void **state)
{
    struct disk_fixture *d = *state;
    struct varve_bitmap *m = map_of(d, 0, 0);
    struct varve_err err = VARVE_ERR_INIT;
    uint8_t old[32], new[32];
    char path[PATH_MAX], buf[8192];
    struct varve_digest sum;
    FILE *f;
    size_t len;

    assert_int_equal(blocks_write(d, 1, 2, old), 0);
    f = fopen(varve_path_blocks(&d->paths, old, path), "rb");
    assert_non_null(f);
    len = fread(buf, 1, sizeof(buf), f);
    fclose(f);
    assert_true(len > 12 && len < sizeof(buf));
    buf[8]++;
    assert_int_equal(varve_digest_init(&sum, &err), 0);
    varve_digest_update(&sum, buf, len);
    assert_int_equal(varve_digest_final(&sum, new, &err), 0);
    f = fopen(varve_path_blocks(&d->paths, new, path), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(buf, 1, len, f), len);
    fclose(f);
    assert_int_equal(
        varve_blocks_load(d->w, &d->paths, d->uuid, &d->geometry, new, m, &err), -ENOTSUP);
    assert_non_null(strstr(err.msg, path));
    assert_non_null(strstr(err.msg, "format 2, this varve knows format 1 only"));
    assert_int_equal(varve_bitmap_count(m), 0);
    assert_int_equal(remove(path), 0);
    free(m);
}

static int setup(void **state)
{
    struct disk_fixture *d = calloc(1, sizeof(*d));

    disk_fixture_init(d, SIZE, 4096);
    *state = d;
    return 0;
}

static int teardown(void **state)
{
    disk_fixture_fini(*state);
    free(*state);
    return 0;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(blocks_of_another_size_count_as_set_from_the_smaller_size_on),
        TEST(what_was_written_is_ored_in),  TEST(what_was_returned_survives_the_power),
        TEST(an_error_at_any_call_is_told), TEST(damage_is_found),
        TEST(only_what_nobody_keeps_goes),
        TEST(a_file_of_a_newer_format_is_refused_and_not_called_damaged),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
