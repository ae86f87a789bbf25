/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A sealed map whose few bits lie far apart is read from its list; whatever is wrong with the list, its
 * chunks tell the same, and whatever is wrong with both is an error.
 */
#include "lib/epoch-file-internal.h"

#include "tests/lib/disk-fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* 64 GiB less a bit: a map of 2 MiB, 512 chunks; the last word is not whole. */
#define DISK_SIZE (((uint64_t)64 << 30) - 100 * 4096 - 1)
#define CHUNK     32768u /* bits */
#define RECORD    (VARVE_EPOCH_MARK_OFF + VARVE_EPOCH_RECORD_OFF)
#define HEADS     (sizeof(struct varve_epoch_head) + sizeof(struct varve_epoch_mark))
#define SMALL     (HEADS + VARVE_EPOCH_TABLE_LEN + VARVE_EPOCH_MARK_SECTOR)

static struct disk_fixture d;
static struct varve_bitmap *scattered;

static int setup(void **state)
{
    (void)state;
    disk_fixture_init(&d, DISK_SIZE, 4096);
    scattered = varve_bitmap_new(d.geometry.nblks);
    for (uint64_t i = 0; i < 100; i++) {
        uint64_t blk = i * 5 * CHUNK + i * 7;

        varve_bitmap_set(scattered, blk, blk + 1 + i % 90);
    }
    varve_bitmap_set(scattered, d.geometry.nblks - 1, d.geometry.nblks);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    free(scattered);
    disk_fixture_fini(&d);
    return 0;
}

static int fresh(void **state)
{
    (void)state;
    disk_fixture_reset(&d);
    return 0;
}

static int seal(const struct varve_bitmap *bits)
{
    assert_int_equal(varve_epoch_file_create(d.w, &d.paths, d.uuid, &d.geometry, 1, 0, NULL), 0);
    return varve_epoch_file_finish(d.w, &d.paths, &d.geometry, 1, bits->words,
                                   VARVE_EPOCH_FILE_SEALED, NULL);
}

static const char *path_of_1(void)
{
    static char path[PATH_MAX];

    return varve_path_epoch(&d.paths, 1, 1, path);
}

/* The bytes that it read. */
static uint64_t assert_holds(const struct varve_bitmap *want)
{
    struct varve_bitmap *got = varve_bitmap_new(d.geometry.nblks);
    uint64_t added = 5;

    varve_bitmap_set(got, 1, 2);
    fault_disarm(&d.fault);
    assert_int_equal(
        varve_epoch_file_load_counting(d.w, &d.paths, d.uuid, &d.geometry, 1, 1, got, &added, NULL),
        0);
    for (uint64_t blk = 0; blk < d.geometry.nblks; blk++)
        assert_int_equal(varve_bitmap_test(got, blk), blk == 1 || varve_bitmap_test(want, blk));
    assert_int_equal(added, 5 + varve_bitmap_count(want) - varve_bitmap_test(want, 1));
    free(got);
    return fault_bytes_read(&d.fault);
}

static uint64_t list_off(void)
{
    return varve_epoch_file_bytes(&d.geometry);
}

static void few_bits_far_apart_are_read_from_a_list(void **state)
{
    (void)state;
    assert_int_equal(seal(scattered), 0);
    assert_true(assert_holds(scattered) <= SMALL + 400 * sizeof(struct varve_epoch_word));
}

/* Its chunks are not looked at then, so that damage there is none. */
static void who_has_the_list_needs_no_chunks(void **state)
{
    (void)state;
    assert_int_equal(seal(scattered), 0);
    disk_fixture_flip(&d, path_of_1(), VARVE_EPOCH_BITS_OFF + 1, 3);
    assert_holds(scattered);
}

static void a_damaged_list_is_done_without(void **state)
{
    static const uint64_t record[] = {0, 8, 8 + 31, 40, 40 + 31};

    (void)state;
    assert_int_equal(seal(scattered), 0);
    for (size_t i = 0; i < sizeof(record) / sizeof(record[0]); i++) {
        disk_fixture_flip(&d, path_of_1(), RECORD + record[i], 2);
        assert_true(assert_holds(scattered) > 101 * 4096);
        disk_fixture_flip(&d, path_of_1(), RECORD + record[i], 2);
    }
    for (uint64_t at = 0; at < 64; at++) {
        disk_fixture_flip(&d, path_of_1(), list_off() + at, at % 8);
        assert_true(assert_holds(scattered) > 101 * 4096);
        disk_fixture_flip(&d, path_of_1(), list_off() + at, at % 8);
    }
    assert_true(assert_holds(scattered) < 101 * 4096);
}

static void what_is_damaged_in_both_is_an_error(void **state)
{
    struct varve_bitmap *got = varve_bitmap_new(d.geometry.nblks);

    (void)state;
    assert_int_equal(seal(scattered), 0);
    disk_fixture_flip(&d, path_of_1(), VARVE_EPOCH_BITS_OFF + 1, 3);
    disk_fixture_flip(&d, path_of_1(), list_off(), 3);
    assert_int_equal(varve_epoch_file_load(d.w, &d.paths, d.uuid, &d.geometry, 1, 1, got, NULL),
                     -EUCLEAN);
    assert_int_equal(varve_bitmap_count(got), 0);
    free(got);
}

/* The list is of this head and this mark: no other file's fits. */
static void a_head_that_the_list_is_not_of_is_an_error(void **state)
{
    struct varve_bitmap *got = varve_bitmap_new(d.geometry.nblks);

    (void)state;
    assert_int_equal(seal(scattered), 0);
    disk_fixture_flip(&d, path_of_1(), offsetof(struct varve_epoch_head, id), 0);
    assert_int_equal(varve_epoch_file_load(d.w, &d.paths, d.uuid, &d.geometry, 1, 1, got, NULL),
                     -EUCLEAN);
    free(got);
}

/* Writes this list of one word into the sealed file as if it were its own. */
static void put_list(uint64_t index)
{
    struct varve_epoch_word word = {htole64(index), htole64(1)};
    struct varve_epoch_list list = {.words = &word, .n = 1, .chunk_bytes = VARVE_EPOCH_LIST_MIN};
    struct varve_epoch_record record;
    struct varve_epoch_head head;
    struct varve_epoch_mark mark;
    int fd = d.w->open(d.w, path_of_1(), O_RDWR, 0);

    assert_true(fd >= 0);
    assert_int_equal(d.w->pread(d.w, fd, &head, sizeof(head), 0), sizeof(head));
    assert_int_equal(d.w->pread(d.w, fd, &mark, sizeof(mark), VARVE_EPOCH_MARK_OFF), sizeof(mark));
    assert_true(varve_epoch_list_write(d.w, fd, &head, &d.geometry, &list, &record));
    assert_true(varve_epoch_record_finish(&mark, &record));
    assert_int_equal(d.w->pwrite(d.w, fd, &record, sizeof(record), RECORD), 0);
    d.w->close(d.w, fd);
}

static void an_index_behind_the_map_is_no_list(void **state)
{
    struct varve_bitmap *got = varve_bitmap_new(d.geometry.nblks);

    (void)state;
    assert_int_equal(seal(scattered), 0);
    put_list(varve_map_bytes(&d.geometry) / 8);
    assert_holds(scattered);
    put_list(UINT64_MAX);
    assert_holds(scattered);
    put_list(varve_map_bytes(&d.geometry) / 8 - 1); /* that one is believed */
    assert_int_equal(varve_epoch_file_load(d.w, &d.paths, d.uuid, &d.geometry, 1, 1, got, NULL), 0);
    assert_int_equal(varve_bitmap_count(got), 1);
    free(got);
}

static void bits_that_lie_together_have_no_list(void **state)
{
    struct varve_bitmap *bits = varve_bitmap_new(d.geometry.nblks);

    (void)state;
    varve_bitmap_set(bits, 100, 100 + 40 * CHUNK);
    assert_int_equal(seal(bits), 0);
    assert_true(assert_holds(bits) > 40 * 4096);
    free(bits);
}

/* The list is written last but one, before the mark. */
static void a_map_without_room_for_its_list_is_sealed_without_it(void **state)
{
    uint64_t writes;

    (void)state;
    fault_disarm(&d.fault);
    assert_int_equal(seal(scattered), 0);
    writes = fault_calls(&d.fault, FAULT_PWRITE);
    disk_fixture_reset(&d);
    fault_fail_at(&d.fault, FAULT_PWRITE, writes - 1, ENOSPC);
    assert_int_equal(seal(scattered), 0);
    assert_true(fault_fired(&d.fault));
    assert_true(assert_holds(scattered) > 101 * 4096);
}

static void a_power_failure_leaves_all_or_an_open_map(void **state)
{
    uint64_t calls, sealed = 0, open = 0;

    (void)state;
    fault_disarm(&d.fault);
    assert_int_equal(seal(scattered), 0);
    calls = fault_calls(&d.fault, FAULT_ANY);
    for (uint64_t n = calls - 12; n <= calls; n++) {
        for (uint64_t seed = 1; seed <= 8; seed++) {
            struct varve_epoch_file info;

            disk_fixture_reset(&d);
            fault_crash_at(&d.fault, FAULT_ANY, n);
            seal(scattered);
            disk_fixture_reboot(&d, seed);
            assert_int_equal(
                varve_epoch_file_info(d.w, &d.paths, d.uuid, &d.geometry, 1, 1, &info, NULL), 0);
            if (info.state == VARVE_EPOCH_FILE_SEALED) {
                assert_true(assert_holds(scattered) < 101 * 4096);
                sealed++;
            } else {
                open++;
            }
        }
    }
    assert_true(sealed > 0 && open > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(few_bits_far_apart_are_read_from_a_list, fresh),
        cmocka_unit_test_setup(who_has_the_list_needs_no_chunks, fresh),
        cmocka_unit_test_setup(a_damaged_list_is_done_without, fresh),
        cmocka_unit_test_setup(what_is_damaged_in_both_is_an_error, fresh),
        cmocka_unit_test_setup(a_head_that_the_list_is_not_of_is_an_error, fresh),
        cmocka_unit_test_setup(an_index_behind_the_map_is_no_list, fresh),
        cmocka_unit_test_setup(bits_that_lie_together_have_no_list, fresh),
        cmocka_unit_test_setup(a_map_without_room_for_its_list_is_sealed_without_it, fresh),
        cmocka_unit_test_setup(a_power_failure_leaves_all_or_an_open_map, fresh),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
