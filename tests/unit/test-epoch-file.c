/* SPDX-License-Identifier: BSD-3-Clause
 *
 * An epoch's map through crashes, power failures, bad disks and flipped bits.  One rule judges all:
 * a file that says clean or sealed gives exactly the bits it was given, or an error.  It is long
 * because each way to die has a test of its own, all on the same few shorthands.
 */
#include "lib/epoch-file.h"

#include "tests/lib/disk-fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define SEEDS 5u

/* Five chunks of the writer; the last word is partial, and so is the last block. */
#define DISK_SIZE ((uint64_t)2200005 * 4096 + 1)

static struct disk_fixture d;
static struct varve_bitmap *bits_a, *bits_b;
static const uint8_t id[VARVE_EPOCH_ID_LEN] = "birth of epoch 3";

static int setup(void **state)
{
    (void)state;
    disk_fixture_init(&d, DISK_SIZE, 4096);
    bits_a = varve_bitmap_new(d.geometry.nblks);
    bits_b = varve_bitmap_new(d.geometry.nblks);
    varve_bitmap_set(bits_a, 3, 40);
    varve_bitmap_set(bits_a, 600000, 700000);
    varve_bitmap_or(bits_b, bits_a);
    varve_bitmap_set(bits_b, 32768, 32769);
    varve_bitmap_set(bits_b, d.geometry.nblks - 1, d.geometry.nblks);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    free(bits_a);
    free(bits_b);
    disk_fixture_fini(&d);
    return 0;
}

static int fresh(void **state)
{
    (void)state;
    disk_fixture_reset(&d);
    return 0;
}

/* --- shorthands for epoch 7, which follows 5 ---------------------------------------------------
 */

static int create(void)
{
    return varve_epoch_file_create(d.w, &d.paths, d.uuid, &d.geometry, 7, 5, NULL);
}

static int finish(const struct varve_bitmap *bits, enum varve_epoch_state state)
{
    return varve_epoch_file_finish(d.w, &d.paths, &d.geometry, 7, bits->words, state, NULL);
}

static int info(enum varve_epoch_state *state)
{
    struct varve_epoch_file f;
    int rc = varve_epoch_file_info(d.w, &d.paths, d.uuid, &d.geometry, 7, 7, &f, NULL);

    if (rc < 0)
        return rc;
    assert_int_equal(f.first, 7);
    assert_int_equal(f.last, 7);
    assert_int_equal(f.prev, 5);
    *state = f.state;
    return 0;
}

static enum varve_epoch_state state_now(void)
{
    enum varve_epoch_state state;

    assert_int_equal(info(&state), 0);
    return state;
}

static int load_range(uint64_t first, uint64_t last, struct varve_bitmap *into)
{
    return varve_epoch_file_load(d.w, &d.paths, d.uuid, &d.geometry, first, last, into, NULL);
}

static bool same(const struct varve_bitmap *a, const struct varve_bitmap *b)
{
    return memcmp(a->words, b->words, varve_bitmap_nwords(a) * 8) == 0;
}

static void assert_holds(uint64_t first, uint64_t last, const struct varve_bitmap *want)
{
    struct varve_bitmap *got = varve_bitmap_new(d.geometry.nblks);

    assert_int_equal(load_range(first, last, got), 0);
    assert_true(same(got, want));
    free(got);
}

static char *path_of_7(char *buf)
{
    return varve_path_epoch(&d.paths, 7, 7, buf);
}

static uint64_t blocks_of(const char *path)
{
    struct stat st;

    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

/* --- the life of a file ----------------------------------------------------------------------- */

static void sealed_bits_are_read_back(void **state)
{
    struct varve_bitmap *into = varve_bitmap_new(d.geometry.nblks);

    (void)state;
    assert_int_equal(create(), 0);
    assert_int_equal(state_now(), VARVE_EPOCH_FILE_OPEN);
    assert_int_equal(load_range(7, 7, into), -EUCLEAN);
    assert_int_equal(varve_bitmap_count(into), 0);
    assert_int_equal(finish(bits_b, VARVE_EPOCH_FILE_SEALED), 0);
    assert_int_equal(state_now(), VARVE_EPOCH_FILE_SEALED);
    assert_holds(7, 7, bits_b);
    /* Into what is not empty: OR. */
    varve_bitmap_set(into, 1000, 1001);
    assert_int_equal(load_range(7, 7, into), 0);
    assert_int_equal(varve_bitmap_count(into), varve_bitmap_count(bits_b) + 1);
    free(into);
}

static void sealed_file_never_changes(void **state)
{
    (void)state;
    assert_int_equal(create(), 0);
    assert_int_equal(finish(bits_a, VARVE_EPOCH_FILE_SEALED), 0);
    assert_int_equal(finish(bits_b, VARVE_EPOCH_FILE_SEALED), -EEXIST);
    assert_int_equal(finish(bits_b, VARVE_EPOCH_FILE_CLEAN), -EEXIST);
    assert_int_equal(create(), -EEXIST);
    assert_int_equal(varve_epoch_file_reopen(d.w, &d.paths, 7, NULL), -EEXIST);
    assert_holds(7, 7, bits_a);
}

static void clean_file_is_opened_again_and_finished_with_more(void **state)
{
    struct varve_bitmap *into = varve_bitmap_new(d.geometry.nblks);

    (void)state;
    assert_int_equal(create(), 0);
    assert_int_equal(finish(bits_a, VARVE_EPOCH_FILE_CLEAN), 0);
    assert_int_equal(state_now(), VARVE_EPOCH_FILE_CLEAN);
    assert_holds(7, 7, bits_a);
    assert_int_equal(create(), -EEXIST); /* it holds what nothing else may hold */
    assert_int_equal(varve_epoch_file_reopen(d.w, &d.paths, 7, NULL), 0);
    assert_int_equal(state_now(), VARVE_EPOCH_FILE_OPEN);
    assert_int_equal(load_range(7, 7, into), -EUCLEAN);
    assert_int_equal(varve_epoch_file_reopen(d.w, &d.paths, 7, NULL), 0);
    assert_int_equal(finish(bits_b, VARVE_EPOCH_FILE_CLEAN), 0);
    /* Without reopening, and back to fewer bits, which does not happen but must not lie. */
    assert_int_equal(finish(bits_a, VARVE_EPOCH_FILE_SEALED), 0);
    assert_holds(7, 7, bits_a);
    free(into);
}

static void bits_behind_the_last_block_are_not_kept(void **state)
{
    size_t nwords = varve_bitmap_nwords(bits_a);
    uint64_t *dirty = malloc(nwords * 8);

    (void)state;
    memcpy(dirty, bits_a->words, nwords * 8);
    dirty[nwords - 1] |= ~(((uint64_t)1 << d.geometry.nblks % 64) - 1);
    assert_int_equal(create(), 0);
    assert_int_equal(varve_epoch_file_finish(d.w, &d.paths, &d.geometry, 7, dirty,
                                             VARVE_EPOCH_FILE_SEALED, NULL),
                     0);
    assert_holds(7, 7, bits_a);
    free(dirty);
}

static void seal_needs_no_space_and_gives_back_what_is_zero(void **state)
{
    char path[PATH_MAX];
    uint64_t made, clean;

    (void)state;
    assert_int_equal(create(), 0);
    made = blocks_of(path_of_7(path));
    assert_true(made >= varve_map_bytes(&d.geometry) + 8192);
    /* Nothing that asks for space is called. */
    fault_fail_from(&d.fault, FAULT_ALLOCATE, 1, ENOSPC);
    assert_int_equal(finish(bits_b, VARVE_EPOCH_FILE_CLEAN), 0);
    assert_false(fault_fired(&d.fault));
    clean = blocks_of(path);
    assert_true(clean <= made + 4096); /* at most a block of the file system's own */
    assert_int_equal(finish(bits_b, VARVE_EPOCH_FILE_SEALED), 0);
    assert_true(blocks_of(path) + 65536 <= clean);
    assert_holds(7, 7, bits_b);
}

static void seal_stands_where_holes_cannot_be_punched(void **state)
{
    (void)state;
    assert_int_equal(create(), 0);
    fault_fail_from(&d.fault, FAULT_PUNCH, 1, EOPNOTSUPP);
    assert_int_equal(finish(bits_b, VARVE_EPOCH_FILE_SEALED), 0);
    assert_true(fault_fired(&d.fault));
    assert_holds(7, 7, bits_b);
}

/* Another epoch of the same number has another id, and none has none. */
static void an_epoch_has_an_id_of_its_own(void **state)
{
    static const uint8_t none[VARVE_EPOCH_ID_LEN];
    struct varve_epoch_file first, again, other;

    (void)state;
    assert_int_equal(create(), 0);
    assert_int_equal(varve_epoch_file_info(d.w, &d.paths, d.uuid, &d.geometry, 7, 7, &first, NULL),
                     0);
    assert_memory_not_equal(first.id, none, sizeof(none));
    assert_int_equal(finish(bits_a, VARVE_EPOCH_FILE_CLEAN), 0);
    assert_int_equal(varve_epoch_file_reopen(d.w, &d.paths, 7, NULL), 0);
    assert_int_equal(finish(bits_b, VARVE_EPOCH_FILE_SEALED), 0);
    assert_int_equal(varve_epoch_file_info(d.w, &d.paths, d.uuid, &d.geometry, 7, 7, &again, NULL),
                     0);
    assert_memory_equal(first.id, again.id, sizeof(first.id));
    disk_fixture_reset(&d);
    assert_int_equal(create(), 0);
    assert_int_equal(varve_epoch_file_info(d.w, &d.paths, d.uuid, &d.geometry, 7, 7, &other, NULL),
                     0);
    assert_memory_not_equal(first.id, other.id, sizeof(first.id));
}

static void merged_file_is_sealed_and_sparse(void **state)
{
    char path[PATH_MAX];
    struct varve_epoch_file f;

    (void)state;
    assert_int_equal(varve_epoch_file_write_merged(d.w, &d.paths, d.uuid, &d.geometry, 3, 9, 2, id,
                                                   bits_b, NULL),
                     0);
    assert_int_equal(varve_epoch_file_info(d.w, &d.paths, d.uuid, &d.geometry, 3, 9, &f, NULL), 0);
    assert_int_equal(f.first, 3);
    assert_int_equal(f.last, 9);
    assert_int_equal(f.prev, 2);
    assert_int_equal(f.state, VARVE_EPOCH_FILE_SEALED);
    assert_memory_equal(f.id, id, sizeof(f.id));
    assert_holds(3, 9, bits_b);
    varve_path_epoch(&d.paths, 3, 9, path);
    assert_true(blocks_of(path) < varve_map_bytes(&d.geometry) / 2);
}

static void disk_without_blocks_has_epochs_too(void **state)
{
    struct varve_geometry none;
    struct varve_bitmap *empty = varve_bitmap_new(0);

    (void)state;
    assert_int_equal(varve_geometry_init(&none, 0, 4096, NULL), 0);
    assert_int_equal(varve_epoch_file_create(d.w, &d.paths, d.uuid, &none, 7, 5, NULL), 0);
    assert_int_equal(varve_epoch_file_finish(d.w, &d.paths, &none, 7, empty->words,
                                             VARVE_EPOCH_FILE_SEALED, NULL),
                     0);
    assert_int_equal(varve_epoch_file_load(d.w, &d.paths, d.uuid, &none, 7, 7, empty, NULL), 0);
    free(empty);
}

static void nonsense_of_the_caller_is_refused(void **state)
{
    struct varve_bitmap *small = varve_bitmap_new(8);

    (void)state;
    assert_int_equal(varve_epoch_file_create(d.w, &d.paths, d.uuid, &d.geometry, 7, 7, NULL),
                     -EINVAL);
    assert_int_equal(finish(bits_a, VARVE_EPOCH_FILE_SEALED), -ENOENT);
    assert_int_equal(varve_epoch_file_reopen(d.w, &d.paths, 7, NULL), -ENOENT);
    assert_int_equal(create(), 0);
    assert_int_equal(finish(bits_a, VARVE_EPOCH_FILE_OPEN), -EINVAL);
    assert_int_equal(load_range(7, 7, small), -EINVAL);
    assert_int_equal(varve_epoch_file_write_merged(d.w, &d.paths, d.uuid, &d.geometry, 9, 3, 2, id,
                                                   bits_a, NULL),
                     -EINVAL);
    assert_int_equal(
        varve_epoch_file_write_merged(d.w, &d.paths, d.uuid, &d.geometry, 3, 9, 2, id, small, NULL),
        -EINVAL);
    free(small);
}

/* --- what is not ours, or damaged ------------------------------------------------------------- */

static void another_disks_file_is_refused(void **state)
{
    uint8_t other[16] = {9};
    struct varve_geometry grown;
    struct varve_epoch_file f;
    struct varve_err err;
    char from[PATH_MAX], to[PATH_MAX];

    (void)state;
    assert_int_equal(create(), 0);
    assert_int_equal(varve_epoch_file_info(d.w, &d.paths, other, &d.geometry, 7, 7, &f, &err),
                     -EUCLEAN);
    assert_non_null(strstr(err.msg, "another disk"));
    assert_non_null(strstr(err.msg, "epoch-7-7.map"));
    assert_int_equal(varve_epoch_file_create(d.w, &d.paths, other, &d.geometry, 7, 5, NULL),
                     -EUCLEAN);
    assert_int_equal(varve_geometry_init(&grown, DISK_SIZE + 4096, 4096, NULL), 0);
    assert_int_equal(varve_epoch_file_info(d.w, &d.paths, d.uuid, &grown, 7, 7, &f, &err), 0);
    assert_int_equal(f.size, DISK_SIZE);
    assert_int_equal(varve_epoch_file_open_flush(d.w, &d.paths, &grown, 7, NULL), -EUCLEAN);
    assert_int_equal(varve_epoch_file_finish(d.w, &d.paths, &grown, 7, bits_a->words,
                                             VARVE_EPOCH_FILE_SEALED, NULL),
                     -EUCLEAN);
    /* A file under another's name. */
    path_of_7(from);
    varve_path_epoch(&d.paths, 8, 8, to);
    assert_int_equal(rename(from, to), 0);
    assert_int_equal(varve_epoch_file_info(d.w, &d.paths, d.uuid, &d.geometry, 8, 8, &f, &err),
                     -EUCLEAN);
}

/* A sealed map stays as it is when the disk is resized; its readers have other sizes. */
static void a_map_of_another_size_is_read_as_far_as_both_go(void **state)
{
    static const uint64_t sizes[] = {0, 1, 4096, 63 * 4096, 64 * 4096 + 1, DISK_SIZE - 1,
                                     DISK_SIZE + 4096, 3 * DISK_SIZE};

    (void)state;
    assert_int_equal(create(), 0);
    assert_int_equal(varve_epoch_file_finish(d.w, &d.paths, &d.geometry, 7, bits_a->words,
                                             VARVE_EPOCH_FILE_SEALED, NULL),
                     0);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        struct varve_geometry g;
        struct varve_bitmap *into;
        uint64_t added = 0;

        assert_int_equal(varve_geometry_init(&g, sizes[i], 4096, NULL), 0);
        into = varve_bitmap_new(g.nblks);
        assert_non_null(into);
        assert_int_equal(varve_epoch_file_load_counting(d.w, &d.paths, d.uuid, &g, 7, 7, into,
                                                        &added, NULL),
                         0);
        for (uint64_t b = 0; b < g.nblks; b++)
            assert_int_equal(varve_bitmap_test(into, b),
                             b < bits_a->nbits && varve_bitmap_test(bits_a, b));
        assert_int_equal(added, varve_bitmap_count(into));
        free(into);
    }
}

static void newer_format_is_refused_with_its_number(void **state)
{
    struct varve_epoch_file f;
    struct varve_err err;
    char path[PATH_MAX];

    (void)state;
    assert_int_equal(create(), 0);
    disk_fixture_flip(&d, path_of_7(path), 8, 2); /* 3 becomes 7 */
    assert_int_equal(varve_epoch_file_info(d.w, &d.paths, d.uuid, &d.geometry, 7, 7, &f, &err),
                     -ENOTSUP);
    assert_non_null(strstr(err.msg, "format 7"));
    assert_non_null(strstr(err.msg, "formats 1 to 3 only"));
    assert_int_equal(create(), -ENOTSUP);
    assert_int_equal(finish(bits_a, VARVE_EPOCH_FILE_SEALED), -ENOTSUP);
}

/* Any flipped bit of head, mark, table or bits is found when the file is loaded; in the mark it
 * makes the file open again, never something else. */
static void no_flipped_bit_passes_the_checksum(void **state)
{
    struct varve_geometry small;
    struct varve_bitmap *bits, *got;
    char path[PATH_MAX];

    (void)state;
    assert_int_equal(varve_geometry_init(&small, 300 * 4096, 4096, NULL), 0);
    bits = varve_bitmap_new(small.nblks);
    got = varve_bitmap_new(small.nblks);
    varve_bitmap_set(bits, 10, 20);
    assert_int_equal(varve_epoch_file_create(d.w, &d.paths, d.uuid, &small, 7, 5, NULL), 0);
    assert_int_equal(varve_epoch_file_finish(d.w, &d.paths, &small, 7, bits->words,
                                             VARVE_EPOCH_FILE_SEALED, NULL),
                     0);
    path_of_7(path);
    for (uint64_t off = 0; off < 8192 + varve_map_bytes(&small); off++) {
        if (off == 80)
            off = 4096;
        if (off == 4096 + 72)
            off = 4608;
        for (unsigned bit = 0; bit < 8; bit++) {
            struct varve_epoch_file f;
            int rc;

            disk_fixture_flip(&d, path, off, bit);
            rc = varve_epoch_file_load(d.w, &d.paths, d.uuid, &small, 7, 7, got, NULL);
            assert_true(rc == -EUCLEAN || (rc == -ENOTSUP && off >= 8 && off < 12));
            assert_int_equal(varve_bitmap_count(got), 0);
            if (off >= 4096 && off < 4608) {
                rc = varve_epoch_file_info(d.w, &d.paths, d.uuid, &small, 7, 7, &f, NULL);
                assert_int_equal(rc, 0);
                assert_int_equal(f.state, VARVE_EPOCH_FILE_OPEN);
            }
            disk_fixture_flip(&d, path, off, bit);
        }
    }
    assert_int_equal(varve_epoch_file_load(d.w, &d.paths, d.uuid, &small, 7, 7, got, NULL), 0);
    assert_true(same(got, bits));
    free(bits);
    free(got);
}

static void file_cut_anywhere_is_refused(void **state)
{
    static const uint64_t keep[] = {0, 1, 63, 64, 4095, 4096, 4100, 4168, 8192, 8193, 65536 + 8192};
    struct varve_bitmap *got = varve_bitmap_new(d.geometry.nblks);
    char path[PATH_MAX];

    (void)state;
    for (size_t i = 0; i < sizeof(keep) / sizeof(keep[0]); i++) {
        disk_fixture_reset(&d);
        assert_int_equal(create(), 0);
        assert_int_equal(finish(bits_b, VARVE_EPOCH_FILE_SEALED), 0);
        assert_int_equal(truncate(path_of_7(path), (off_t)keep[i]), 0);
        assert_int_equal(load_range(7, 7, got), -EUCLEAN);
        assert_int_equal(varve_bitmap_count(got), 0);

        disk_fixture_reset(&d);
        assert_int_equal(create(), 0);
        assert_int_equal(truncate(path_of_7(path), (off_t)keep[i]), 0);
        assert_int_equal(finish(bits_b, VARVE_EPOCH_FILE_SEALED), -EUCLEAN);
    }
    free(got);
}

/* --- crashes ---------------------------------------------------------------------------------- */

static void crash_while_it_is_made_leaves_none_or_an_open_one(void **state)
{
    bool fired = true;

    (void)state;
    for (int existed = 0; existed < 2; existed++, fired = true) {
        for (uint64_t n = 1; fired; n++) {
            for (uint64_t seed = 0; seed < SEEDS; seed++) {
                enum varve_epoch_state got;
                int rc;

                disk_fixture_reset(&d);
                if (existed)
                    assert_int_equal(create(), 0);
                fault_crash_at(&d.fault, FAULT_ANY, n);
                rc = create();
                fired = fault_fired(&d.fault);
                disk_fixture_reboot(&d, seed);
                if (rc == 0 || existed)
                    assert_int_equal(state_now(), VARVE_EPOCH_FILE_OPEN);
                else
                    assert_true(info(&got) == -ENOENT || state_now() == VARVE_EPOCH_FILE_OPEN);
                assert_int_equal(create(), 0);
                assert_int_equal(finish(bits_a, VARVE_EPOCH_FILE_SEALED), 0);
                assert_holds(7, 7, bits_a);
            }
        }
    }
}

/* From open or from clean with fewer bits. */
static void crash_while_it_is_finished_never_leaves_a_wrong_bit(void **state)
{
    static const enum varve_epoch_state ends[] = {VARVE_EPOCH_FILE_CLEAN, VARVE_EPOCH_FILE_SEALED};

    (void)state;
    for (int variant = 0; variant < 4; variant++) {
        enum varve_epoch_state end = ends[variant % 2];
        bool was_clean = variant >= 2, fired = true;

        for (uint64_t n = 1; fired; n++) {
            for (uint64_t seed = 0; seed < SEEDS; seed++) {
                enum varve_epoch_state got;
                int rc;

                disk_fixture_reset(&d);
                assert_int_equal(create(), 0);
                if (was_clean)
                    assert_int_equal(finish(bits_a, VARVE_EPOCH_FILE_CLEAN), 0);
                fault_crash_at(&d.fault, FAULT_ANY, n);
                rc = finish(bits_b, end);
                fired = fault_fired(&d.fault);
                disk_fixture_reboot(&d, seed);
                got = state_now();
                if (rc == 0) {
                    assert_int_equal(got, end);
                    assert_holds(7, 7, bits_b);
                } else if (got == VARVE_EPOCH_FILE_SEALED) {
                    assert_int_equal(end, got);
                    assert_holds(7, 7, bits_b);
                } else if (got == VARVE_EPOCH_FILE_CLEAN) {
                    struct varve_bitmap *bits = varve_bitmap_new(d.geometry.nblks);

                    assert_int_equal(load_range(7, 7, bits), 0);
                    assert_true((was_clean && same(bits, bits_a)) ||
                                (end == VARVE_EPOCH_FILE_CLEAN && same(bits, bits_b)));
                    free(bits);
                }
                rc = finish(bits_b, VARVE_EPOCH_FILE_SEALED);
                assert_int_equal(rc, got == VARVE_EPOCH_FILE_SEALED ? -EEXIST : 0);
                assert_holds(7, 7, bits_b);
            }
        }
    }
}

static void crash_while_it_is_opened_again_leaves_clean_or_open(void **state)
{
    bool fired = true;

    (void)state;
    for (uint64_t n = 1; fired; n++) {
        for (uint64_t seed = 0; seed < SEEDS; seed++) {
            int rc;

            disk_fixture_reset(&d);
            assert_int_equal(create(), 0);
            assert_int_equal(finish(bits_a, VARVE_EPOCH_FILE_CLEAN), 0);
            fault_crash_at(&d.fault, FAULT_ANY, n);
            rc = varve_epoch_file_reopen(d.w, &d.paths, 7, NULL);
            fired = fault_fired(&d.fault);
            disk_fixture_reboot(&d, seed);
            if (rc == 0)
                assert_int_equal(state_now(), VARVE_EPOCH_FILE_OPEN);
            if (state_now() != VARVE_EPOCH_FILE_OPEN)
                assert_holds(7, 7, bits_a);
        }
    }
}

/* Killed after the mark was written, before it was durable; then another process reads it as
 * sealed, asks for the seal, is told that it is there, and the power fails. */
static void seal_that_is_reported_as_done_is_durable(void **state)
{
    (void)state;
    assert_int_equal(create(), 0);
    fault_crash_at(&d.fault, FAULT_SYNC, 2);
    assert_int_equal(finish(bits_b, VARVE_EPOCH_FILE_SEALED), -EIO);
    fault_disarm(&d.fault);
    assert_int_equal(state_now(), VARVE_EPOCH_FILE_SEALED);
    assert_int_equal(finish(bits_b, VARVE_EPOCH_FILE_SEALED), -EEXIST);
    power_fail(&d.power, 0);
    assert_int_equal(state_now(), VARVE_EPOCH_FILE_SEALED);
    assert_holds(7, 7, bits_b);
}

/* The same for opening: the dying process had written the open mark already. */
static void reopen_that_is_reported_as_done_is_durable(void **state)
{
    (void)state;
    assert_int_equal(create(), 0);
    assert_int_equal(finish(bits_a, VARVE_EPOCH_FILE_CLEAN), 0);
    fault_crash_at(&d.fault, FAULT_SYNC, 1);
    assert_int_equal(varve_epoch_file_reopen(d.w, &d.paths, 7, NULL), -EIO);
    fault_disarm(&d.fault);
    assert_int_equal(state_now(), VARVE_EPOCH_FILE_OPEN);
    assert_int_equal(varve_epoch_file_reopen(d.w, &d.paths, 7, NULL), 0);
    power_fail(&d.power, 0);
    assert_int_equal(state_now(), VARVE_EPOCH_FILE_OPEN);
}

static void crash_while_merging_leaves_none_or_all_of_it(void **state)
{
    bool fired = true;

    (void)state;
    for (uint64_t n = 1; fired; n++) {
        for (uint64_t seed = 0; seed < SEEDS; seed++) {
            struct varve_epoch_file f;
            int rc, found;

            disk_fixture_reset(&d);
            fault_crash_at(&d.fault, FAULT_ANY, n);
            rc = varve_epoch_file_write_merged(d.w, &d.paths, d.uuid, &d.geometry, 3, 9, 2, id,
                                               bits_b, NULL);
            fired = fault_fired(&d.fault);
            disk_fixture_reboot(&d, seed);
            found = varve_epoch_file_info(d.w, &d.paths, d.uuid, &d.geometry, 3, 9, &f, NULL);
            assert_true(found == 0 || (found == -ENOENT && rc < 0));
            if (found == 0) {
                assert_int_equal(f.state, VARVE_EPOCH_FILE_SEALED);
                assert_holds(3, 9, bits_b);
            }
        }
    }
}

/* --- failing calls ---------------------------------------------------------------------------- */

static void any_failing_call_is_told_and_trying_again_works(void **state)
{
    bool fired = true;

    (void)state;
    for (uint64_t n = 1; fired; n++) {
        struct varve_err err = VARVE_ERR_INIT;
        int rc;

        disk_fixture_reset(&d);
        fault_fail_at(&d.fault, FAULT_ANY, n, ENOSPC);
        rc = varve_epoch_file_create(d.w, &d.paths, d.uuid, &d.geometry, 7, 5, &err);
        if (rc == 0)
            rc = varve_epoch_file_finish(d.w, &d.paths, &d.geometry, 7, bits_b->words,
                                         VARVE_EPOCH_FILE_CLEAN, &err);
        if (rc == 0)
            rc = varve_epoch_file_reopen(d.w, &d.paths, 7, &err);
        if (rc == 0)
            rc = varve_epoch_file_finish(d.w, &d.paths, &d.geometry, 7, bits_b->words,
                                         VARVE_EPOCH_FILE_SEALED, &err);
        fired = fault_fired(&d.fault);
        fault_disarm(&d.fault);
        if (rc < 0) {
            char tmp[PATH_MAX];

            assert_int_equal(rc, -ENOSPC);
            assert_non_null(strstr(err.msg, "epoch-7-7.map"));
            strcat(path_of_7(tmp), ".tmp");
            assert_int_equal(access(tmp, F_OK), -1);
            rc = create();
            assert_true(rc == 0 || rc == -EEXIST);
            assert_int_equal(finish(bits_b, VARVE_EPOCH_FILE_SEALED), 0);
        }
        power_fail(&d.power, 0);
        assert_int_equal(state_now(), VARVE_EPOCH_FILE_SEALED);
        assert_holds(7, 7, bits_b);
    }
}

/* The disk refuses data once and the kernel forgets: the next sync says that all is well. */
static void finish_after_a_refused_sync_writes_everything_again(void **state)
{
    (void)state;
    for (unsigned n = 1; n <= 2; n++) {
        disk_fixture_reset(&d);
        assert_int_equal(create(), 0);
        power_fail_sync(&d.power, n);
        assert_int_equal(finish(bits_b, VARVE_EPOCH_FILE_SEALED), -EIO);
        assert_int_equal(state_now(), VARVE_EPOCH_FILE_OPEN);
        assert_int_equal(finish(bits_b, VARVE_EPOCH_FILE_SEALED), 0);
        power_fail(&d.power, 0);
        assert_int_equal(state_now(), VARVE_EPOCH_FILE_SEALED);
        assert_holds(7, 7, bits_b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(sealed_bits_are_read_back, fresh),
        cmocka_unit_test_setup(sealed_file_never_changes, fresh),
        cmocka_unit_test_setup(clean_file_is_opened_again_and_finished_with_more, fresh),
        cmocka_unit_test_setup(bits_behind_the_last_block_are_not_kept, fresh),
        cmocka_unit_test_setup(seal_needs_no_space_and_gives_back_what_is_zero, fresh),
        cmocka_unit_test_setup(seal_stands_where_holes_cannot_be_punched, fresh),
        cmocka_unit_test_setup(an_epoch_has_an_id_of_its_own, fresh),
        cmocka_unit_test_setup(merged_file_is_sealed_and_sparse, fresh),
        cmocka_unit_test_setup(disk_without_blocks_has_epochs_too, fresh),
        cmocka_unit_test_setup(nonsense_of_the_caller_is_refused, fresh),
        cmocka_unit_test_setup(another_disks_file_is_refused, fresh),
        cmocka_unit_test_setup(a_map_of_another_size_is_read_as_far_as_both_go, fresh),
        cmocka_unit_test_setup(newer_format_is_refused_with_its_number, fresh),
        cmocka_unit_test_setup(no_flipped_bit_passes_the_checksum, fresh),
        cmocka_unit_test_setup(file_cut_anywhere_is_refused, fresh),
        cmocka_unit_test_setup(crash_while_it_is_made_leaves_none_or_an_open_one, fresh),
        cmocka_unit_test_setup(crash_while_it_is_finished_never_leaves_a_wrong_bit, fresh),
        cmocka_unit_test_setup(crash_while_it_is_opened_again_leaves_clean_or_open, fresh),
        cmocka_unit_test_setup(seal_that_is_reported_as_done_is_durable, fresh),
        cmocka_unit_test_setup(reopen_that_is_reported_as_done_is_durable, fresh),
        cmocka_unit_test_setup(crash_while_merging_leaves_none_or_all_of_it, fresh),
        cmocka_unit_test_setup(any_failing_call_is_told_and_trying_again_works, fresh),
        cmocka_unit_test_setup(finish_after_a_refused_sync_writes_everything_again, fresh),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
