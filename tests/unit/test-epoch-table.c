/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What it costs to read epochs' maps: what was written in them, however large the disk is.  And the
 * files of the former format, which have no table of what is not zero.
 */
#include "lib/epoch-file-internal.h"
#include "lib/timeline.h"

#include "tests/lib/disk-fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* 64 GiB less a bit: a map of 2 MiB, 512 chunks; the last is not whole. */
#define DISK_SIZE (((uint64_t)64 << 30) - 100 * 4096 - 1)
#define MANY      200u
#define HEADS     (sizeof(struct varve_epoch_head) + sizeof(struct varve_epoch_mark))

static struct disk_fixture d;

static int setup(void **state)
{
    (void)state;
    disk_fixture_init(&d, DISK_SIZE, 4096);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    disk_fixture_fini(&d);
    return 0;
}

static int fresh(void **state)
{
    (void)state;
    disk_fixture_reset(&d);
    return 0;
}

static bool same(const struct varve_bitmap *a, const struct varve_bitmap *b)
{
    return memcmp(a->words, b->words, varve_bitmap_nwords(a) * 8) == 0;
}

static void seal(uint64_t epoch, const struct varve_bitmap *bits)
{
    assert_int_equal(
        varve_epoch_file_create(d.w, &d.paths, d.uuid, &d.geometry, epoch, epoch - 1, NULL), 0);
    assert_int_equal(varve_epoch_file_finish(d.w, &d.paths, &d.geometry, epoch, bits->words,
                                             VARVE_EPOCH_FILE_SEALED, NULL),
                     0);
}

static void a_map_costs_what_is_set_in_it(void **state)
{
    struct varve_bitmap *bits = varve_bitmap_new(d.geometry.nblks);
    struct varve_bitmap *got = varve_bitmap_new(d.geometry.nblks);
    uint64_t added = 5;

    (void)state;
    seal(1, bits);
    varve_bitmap_set(bits, 7, 8);                                   /* first chunk */
    varve_bitmap_set(bits, 3 * 32768 - 1, 4 * 32768 + 1);           /* 3 neighbours */
    varve_bitmap_set(bits, d.geometry.nblks - 1, d.geometry.nblks); /* last chunk */
    seal(2, bits);

    fault_disarm(&d.fault);
    assert_int_equal(varve_epoch_file_load(d.w, &d.paths, d.uuid, &d.geometry, 1, 1, got, NULL), 0);
    assert_int_equal(varve_bitmap_count(got), 0);
    assert_int_equal(fault_bytes_read(&d.fault), HEADS + VARVE_EPOCH_TABLE_LEN);

    varve_bitmap_set(got, 3 * 32768, 3 * 32768 + 10);
    fault_disarm(&d.fault);
    assert_int_equal(
        varve_epoch_file_load_counting(d.w, &d.paths, d.uuid, &d.geometry, 2, 2, got, &added, NULL),
        0);
    assert_true(same(got, bits));
    assert_int_equal(added, 5 + varve_bitmap_count(bits) - 10);
    assert_true(fault_bytes_read(&d.fault) <= HEADS + VARVE_EPOCH_TABLE_LEN + 5 * 4096);
    assert_int_equal(fault_calls(&d.fault, FAULT_PREAD), 3 + 3); /* a run of chunks at a time */
    free(bits);
    free(got);
}

/* What is in the file behind the table's back is not looked at, so it cannot be believed either. */
static void what_the_table_calls_zero_is_zero(void **state)
{
    struct varve_bitmap *bits = varve_bitmap_new(d.geometry.nblks);
    struct varve_bitmap *got = varve_bitmap_new(d.geometry.nblks);
    char path[PATH_MAX];

    (void)state;
    varve_bitmap_set(bits, 7, 8);
    seal(1, bits);
    disk_fixture_flip(&d, varve_path_epoch(&d.paths, 1, 1, path), VARVE_EPOCH_BITS_OFF + 4096, 3);
    assert_int_equal(varve_epoch_file_load(d.w, &d.paths, d.uuid, &d.geometry, 1, 1, got, NULL), 0);
    assert_true(same(got, bits));
    /* A table with more or fewer chunks is damage. */
    disk_fixture_flip(&d, path, VARVE_EPOCH_TABLE_OFF, 1);
    assert_int_equal(varve_epoch_file_load(d.w, &d.paths, d.uuid, &d.geometry, 1, 1, got, NULL),
                     -EUCLEAN);
    disk_fixture_flip(&d, path, VARVE_EPOCH_TABLE_OFF, 1);
    disk_fixture_flip(&d, path, VARVE_EPOCH_TABLE_OFF, 0);
    assert_int_equal(varve_epoch_file_load(d.w, &d.paths, d.uuid, &d.geometry, 1, 1, got, NULL),
                     -EUCLEAN);
    free(bits);
    free(got);
}

/* Bits that were set when the server stopped, and no longer are, do not stay in the file. */
static void a_chunk_that_becomes_zero_is_zero(void **state)
{
    struct varve_bitmap *bits = varve_bitmap_new(d.geometry.nblks);
    struct varve_bitmap *got = varve_bitmap_new(d.geometry.nblks);

    (void)state;
    varve_bitmap_set(bits, 40000, 50000);
    assert_int_equal(varve_epoch_file_create(d.w, &d.paths, d.uuid, &d.geometry, 1, 0, NULL), 0);
    assert_int_equal(varve_epoch_file_finish(d.w, &d.paths, &d.geometry, 1, bits->words,
                                             VARVE_EPOCH_FILE_CLEAN, NULL),
                     0);
    assert_int_equal(varve_epoch_file_finish(d.w, &d.paths, &d.geometry, 1, got->words,
                                             VARVE_EPOCH_FILE_SEALED, NULL),
                     0);
    assert_int_equal(varve_epoch_file_load(d.w, &d.paths, d.uuid, &d.geometry, 1, 1, got, NULL), 0);
    assert_int_equal(varve_bitmap_count(got), 0);
    free(bits);
    free(got);
}

/* Of a map of 2 MiB; without the table it is 400 MiB. */
static void a_union_of_hundreds_of_epochs_reads_what_was_written(void **state)
{
    struct varve_bitmap *want = varve_bitmap_new(d.geometry.nblks);
    struct varve_bitmap *got = varve_bitmap_new(d.geometry.nblks);
    struct varve_timeline tl;
    uint64_t added = 0;

    (void)state;
    for (uint64_t epoch = 1; epoch <= MANY; epoch++) {
        struct varve_bitmap *bits = varve_bitmap_new(d.geometry.nblks);

        for (uint64_t k = 1; k <= 3; k++) {
            uint64_t blk = epoch * k * 7919777 % d.geometry.nblks;

            varve_bitmap_set(bits, blk, blk + 1);
        }
        seal(epoch, bits);
        varve_bitmap_or(want, bits);
        free(bits);
    }
    assert_int_equal(
        varve_epoch_file_create(d.w, &d.paths, d.uuid, &d.geometry, MANY + 1, MANY, NULL), 0);
    fault_disarm(&d.fault);
    assert_int_equal(varve_timeline_scan(d.w, &d.paths, d.uuid, &d.geometry, &tl, NULL), 0);
    assert_int_equal(varve_timeline_union_counting(d.w, &d.paths, d.uuid, &d.geometry, &tl, 1,
                                                   MANY + 1, got, &added, NULL),
                     0);
    assert_true(same(got, want));
    assert_int_equal(added, varve_bitmap_count(want));
    assert_true(fault_bytes_read(&d.fault) <=
                (MANY + 1) * 2 * HEADS + MANY * (VARVE_EPOCH_TABLE_LEN + 3 * 4096));
    assert_true(fault_calls(&d.fault, FAULT_OPEN) <= 2 * MANY + 1);
    varve_timeline_fini(&tl);
    free(want);
    free(got);
}

/* A table has room for 28672 chunks: those of larger maps are larger, and still whole pages. */
static const uint8_t no_id[VARVE_EPOCH_ID_LEN];

static void maps_of_any_size_fit_the_table(void **state)
{
    struct varve_geometry g;
    struct varve_bitmap *bits, *got;

    (void)state;
    for (unsigned shift = 20; shift < 63; shift++) {
        uint64_t chunk;

        assert_int_equal(varve_geometry_init(&g, ((uint64_t)1 << shift) + 1, 4096, NULL), 0);
        chunk = varve_epoch_chunk_bytes(&g);
        assert_true(varve_epoch_nchunks(&g) <= VARVE_EPOCH_TABLE_LEN * 8);
        assert_int_equal(chunk % VARVE_EPOCH_PAGE, 0);
        assert_true(varve_epoch_nchunks(&g) * chunk >= varve_map_bytes(&g));
        assert_true(chunk == VARVE_EPOCH_PAGE ||
                    varve_map_bytes(&g) > VARVE_EPOCH_TABLE_LEN * 4 * chunk);
    }
    /* 112 MiB and a bit: chunks of two pages */
    assert_int_equal(varve_geometry_init(&g, (uint64_t)28673 * 4096 * 8 * 4096, 4096, NULL), 0);
    assert_int_equal(varve_epoch_chunk_bytes(&g), 2 * VARVE_EPOCH_PAGE);
    bits = varve_bitmap_new(g.nblks);
    got = varve_bitmap_new(g.nblks);
    varve_bitmap_set(bits, 0, 1);
    varve_bitmap_set(bits, 32768 * 5 + 3, 32768 * 5 + 4);
    varve_bitmap_set(bits, g.nblks - 1, g.nblks);
    assert_int_equal(
        varve_epoch_file_write_merged(d.w, &d.paths, d.uuid, &g, 3, 9, 2, no_id, bits, NULL), 0);
    fault_disarm(&d.fault);
    assert_int_equal(varve_epoch_file_load(d.w, &d.paths, d.uuid, &g, 3, 9, got, NULL), 0);
    assert_true(same(got, bits));
    assert_true(fault_bytes_read(&d.fault) <= HEADS + VARVE_EPOCH_TABLE_LEN + 3 * 8192);
    free(bits);
    free(got);
}

/* --- former formats ----------------------------------------------------------------------------
 */

/* As a former version made it: 3 becomes 1 or 2. */
static void make_former(uint32_t version)
{
    static const uint8_t none[VARVE_EPOCH_ID_LEN];
    char path[PATH_MAX];
    int fd;

    assert_int_equal(varve_epoch_file_create(d.w, &d.paths, d.uuid, &d.geometry, 1, 0, NULL), 0);
    varve_path_epoch(&d.paths, 1, 1, path);
    disk_fixture_flip(&d, path, offsetof(struct varve_epoch_head, version),
                      version == VARVE_EPOCH_NO_ID ? 0 : 1);
    fd = open(path, O_RDWR);
    assert_int_equal(pwrite(fd, none, sizeof(none), VARVE_EPOCH_HEAD_NO_ID), sizeof(none));
    close(fd);
}

/* Its digest is of 64 bytes of head, chunks and table, and it has no id. */
static void a_file_without_id_is_finished_as_its_version_does(void **state)
{
    struct varve_bitmap *bits = varve_bitmap_new(d.geometry.nblks);
    struct varve_bitmap *got = varve_bitmap_new(d.geometry.nblks);
    uint8_t digest[VARVE_DIGEST_LEN], table[VARVE_EPOCH_TABLE_LEN];
    struct varve_epoch_mark mark;
    struct varve_epoch_file f;
    struct varve_digest sum;
    char path[PATH_MAX], head[VARVE_EPOCH_HEAD_NO_ID];
    int fd;

    (void)state;
    varve_bitmap_set(bits, 3, 5);
    make_former(VARVE_EPOCH_NO_ID);
    assert_int_equal(varve_epoch_file_finish(d.w, &d.paths, &d.geometry, 1, bits->words,
                                             VARVE_EPOCH_FILE_SEALED, NULL),
                     0);
    fd = open(varve_path_epoch(&d.paths, 1, 1, path), O_RDONLY);
    assert_int_equal(pread(fd, head, sizeof(head), 0), sizeof(head));
    assert_int_equal(pread(fd, &mark, sizeof(mark), VARVE_EPOCH_MARK_OFF), sizeof(mark));
    assert_int_equal(pread(fd, table, sizeof(table), VARVE_EPOCH_TABLE_OFF), sizeof(table));
    close(fd);
    assert_int_equal(varve_digest_init(&sum, NULL), 0);
    varve_digest_update(&sum, head, sizeof(head));
    varve_digest_update(&sum, bits->words, varve_epoch_chunk_bytes(&d.geometry));
    varve_digest_update(&sum, table, sizeof(table));
    assert_int_equal(varve_digest_final(&sum, digest, NULL), 0);
    assert_memory_equal(digest, mark.digest, sizeof(digest));

    assert_int_equal(varve_epoch_file_load(d.w, &d.paths, d.uuid, &d.geometry, 1, 1, got, NULL), 0);
    assert_true(same(got, bits));
    /* and what stands where an id would is none */
    disk_fixture_flip(&d, path, VARVE_EPOCH_HEAD_NO_ID, 0);
    assert_int_equal(varve_epoch_file_info(d.w, &d.paths, d.uuid, &d.geometry, 1, 1, &f, NULL), 0);
    assert_memory_equal(f.id, no_id, sizeof(f.id));
    free(bits);
    free(got);
}

static void a_former_file_is_finished_as_its_version_does(void **state)
{
    struct varve_bitmap *bits = varve_bitmap_new(d.geometry.nblks);
    struct varve_bitmap *got = varve_bitmap_new(d.geometry.nblks);
    uint8_t digest[VARVE_DIGEST_LEN], table[VARVE_EPOCH_TABLE_LEN];
    static const uint8_t none[VARVE_EPOCH_TABLE_LEN];
    struct varve_epoch_head head;
    struct varve_epoch_mark mark;
    struct varve_digest sum;
    char path[PATH_MAX];
    int fd;

    (void)state;
    varve_bitmap_set(bits, 40000, 50000);
    make_former(VARVE_EPOCH_NO_TABLE);
    assert_int_equal(varve_epoch_file_finish(d.w, &d.paths, &d.geometry, 1, bits->words,
                                             VARVE_EPOCH_FILE_SEALED, NULL),
                     0);
    fd = open(varve_path_epoch(&d.paths, 1, 1, path), O_RDONLY);
    assert_int_equal(pread(fd, &head, sizeof(head), 0), sizeof(head));
    assert_int_equal(pread(fd, &mark, sizeof(mark), VARVE_EPOCH_MARK_OFF), sizeof(mark));
    assert_int_equal(pread(fd, table, sizeof(table), VARVE_EPOCH_TABLE_OFF), sizeof(table));
    close(fd);
    assert_memory_equal(table, none, sizeof(none));
    assert_int_equal(varve_digest_init(&sum, NULL), 0);
    varve_digest_update(&sum, &head, VARVE_EPOCH_HEAD_NO_ID);
    varve_digest_update(&sum, bits->words, varve_bitmap_nwords(bits) * 8);
    assert_int_equal(varve_digest_final(&sum, digest, NULL), 0);
    assert_memory_equal(digest, mark.digest, sizeof(digest));

    assert_int_equal(varve_epoch_file_load(d.w, &d.paths, d.uuid, &d.geometry, 1, 1, got, NULL), 0);
    assert_true(same(got, bits));
    /* and all of it is under its checksum */
    memset(got->words, 0, varve_bitmap_nwords(got) * 8);
    disk_fixture_flip(&d, path, VARVE_EPOCH_BITS_OFF + 1000000, 3);
    assert_int_equal(varve_epoch_file_load(d.w, &d.paths, d.uuid, &d.geometry, 1, 1, got, NULL),
                     -EUCLEAN);
    assert_int_equal(varve_bitmap_count(got), 0);
    free(bits);
    free(got);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_map_costs_what_is_set_in_it, fresh),
        cmocka_unit_test_setup(what_the_table_calls_zero_is_zero, fresh),
        cmocka_unit_test_setup(a_chunk_that_becomes_zero_is_zero, fresh),
        cmocka_unit_test_setup(a_union_of_hundreds_of_epochs_reads_what_was_written, fresh),
        cmocka_unit_test_setup(maps_of_any_size_fit_the_table, fresh),
        cmocka_unit_test_setup(a_former_file_is_finished_as_its_version_does, fresh),
        cmocka_unit_test_setup(a_file_without_id_is_finished_as_its_version_does, fresh),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
