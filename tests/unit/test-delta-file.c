/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A delta: what is read is what was added, or an error that says what is wrong; dying anywhere
 * leaves the whole file or none of its name.
 */
#include "lib/delta-file.h"

#include "tests/lib/disk-fixture.h"

#include <endian.h>
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

#define SIZE  (UINT64_C(40) * 4096 + 512)
#define SEEDS 3u

static struct disk_fixture d;
static char path[PATH_MAX + 16], tmp[PATH_MAX + 32];
static uint8_t disk[SIZE]; /* as the delta leads to it */
static uint8_t old[SIZE];

static int setup(void **state)
{
    (void)state;
    disk_fixture_init(&d, SIZE, 4096);
    assert_true(snprintf(path, sizeof(path), "%s/000001.delta", d.paths.state) < (int)sizeof(path));
    assert_true(snprintf(tmp, sizeof(tmp), "%s.tmp", path) < (int)sizeof(tmp));
    memset(old, 'o', sizeof(old));
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

static struct varve_delta_head sample_head(void)
{
    return (struct varve_delta_head){
        .id = "id of this delta",
        .parent = "id of one before",
        .size = SIZE,
        .time_ns = UINT64_C(1700000000000000001),
        .point = "the start of epoch 9 [ab]",
        .base = "the start of epoch 3 [ab]",
        .context = "qemu:dirty-bitmap:b0",
    };
}

static int add(struct varve_delta_writer *w, uint64_t off, size_t len, int byte,
               struct varve_err *err)
{
    memset(disk + off, byte, len);
    return byte ? varve_delta_add(w, disk + off, off, len, err)
                : varve_delta_add_zeroes(w, off, len, err);
}

/* Out of order, of odd lengths, zeroes in two parts that touch, and the last byte. */
static int sample(struct varve_err *err)
{
    struct varve_delta_head head = sample_head();
    struct varve_delta_writer *w;
    int rc = varve_delta_create(d.w, path, &head, &w, err);

    memcpy(disk, old, sizeof(disk));
    if (rc == 0)
        rc = add(w, 8 * 4096, 4096, 'b', err);
    if (rc == 0)
        rc = add(w, 3 * 4096, 4096, 0, err);
    if (rc == 0)
        rc = add(w, SIZE - 1, 1, 'z', err);
    if (rc == 0)
        rc = add(w, 100, 3000, 'a', err);
    if (rc == 0)
        rc = add(w, 2 * 4096, 4096, 0, err);
    if (rc == 0)
        rc = varve_delta_seal(w, err);
    if (rc == 0)
        rc = varve_delta_compare(w, disk + 8 * 4096 + 7, 8 * 4096 + 7, 4000, err);
    if (rc == 0)
        rc = varve_delta_publish(w, err);
    varve_delta_close(w);
    return rc;
}

/* Replays it onto `to`. */
static int replay(uint8_t *to, struct varve_err *err)
{
    struct varve_delta_extent e;
    struct varve_delta_reader r;
    uint8_t buf[VARVE_DELTA_PIECE_MAX / 8];
    int rc = varve_delta_open(d.w, path, &r, err);

    if (rc < 0)
        return rc;
    assert_true(r.head.size <= SIZE);
    rc = varve_delta_check(&r, err);
    while (rc == 0 && (rc = varve_delta_next(&r, &e, err)) > 0) {
        assert_true(e.len > 0 && e.off <= SIZE && e.len <= SIZE - e.off);
        rc = 0;
        if (!e.at) {
            memset(to + e.off, 0, e.len);
            continue;
        }
        assert_true(e.len <= sizeof(buf));
        rc = varve_delta_read(&r, &e, buf, err);
        if (rc == 0)
            memcpy(to + e.off, buf, e.len);
    }
    varve_delta_reader_close(&r);
    return rc;
}

static void assert_whole(void)
{
    static uint8_t got[SIZE];

    memcpy(got, old, sizeof(got));
    assert_int_equal(replay(got, NULL), 0);
    assert_memory_equal(got, disk, SIZE);
}

static void assert_refused(int code, const char *why)
{
    static uint8_t got[SIZE];
    struct varve_err err = VARVE_ERR_INIT;

    assert_int_equal(replay(got, &err), code);
    assert_int_equal(err.code, -code);
    assert_non_null(strstr(err.msg, path));
    if (!strstr(err.msg, why))
        fail_msg("'%s' does not say '%s'", err.msg, why);
}

static void what_is_replayed_is_what_was_added(void **state)
{
    struct varve_delta_head want = sample_head();
    struct varve_delta_reader r;

    (void)state;
    assert_int_equal(sample(NULL), 0);
    assert_whole();
    assert_int_equal(access(tmp, F_OK), -1);
    assert_int_equal(varve_delta_open(d.w, path, &r, NULL), 0);
    assert_memory_equal(r.head.id, want.id, 16);
    assert_memory_equal(r.head.parent, want.parent, 16);
    assert_true(r.head.time_ns == want.time_ns);
    assert_string_equal(r.head.point, want.point);
    assert_string_equal(r.head.base, want.base);
    assert_string_equal(r.head.context, want.context);
    assert_true(r.head.nextents == 4); /* the zeroes are one */
    assert_true(r.head.data_bytes == 4096 + 3000 + 1 && r.head.zero_bytes == 8192);
    varve_delta_reader_close(&r);
}

/* The format as the header tells it. */
static void the_format_is_as_the_header_says(void **state)
{
    uint8_t all[4096 + 7097 + 4 * 56 + 1], sum[32];
    int fd;

    (void)state;
    assert_int_equal(sample(NULL), 0);
    fd = open(path, O_RDONLY);
    assert_int_equal(pread(fd, all, sizeof(all), 0), sizeof(all) - 1);
    close(fd);
    assert_memory_equal(all, "varvedlt\1\0\0\0\0\0\0\0id of this delta", 32);
    assert_memory_equal(all + 32, "id of one before\0\x82\2\0\0\0\0\0", 24);
    assert_memory_equal(all + 64, "\xb9\x2b\0\0\0\0\0\0\4\0\0\0\0\0\0\0\xb9\x1b\0\0\0\0\0\0", 24);
    assert_memory_equal(all + 88, "\0\40\0\0\0\0\0\0the start of epoch 9 [ab]\0", 34);
    assert_memory_equal(all + 352, "the start of epoch 3 [ab]\0", 26);
    assert_memory_equal(all + 608, "qemu:dirty-bitmap:b0\0", 21);
    assert_int_equal(varve_delta_digest(all, 4064, sum, NULL), 0);
    assert_memory_equal(sum, all + 4064, 32);
    assert_int_equal(varve_delta_digest(all + 11193, 4 * 56, sum, NULL), 0);
    assert_memory_equal(sum, all + 4032, 32);
    /* the extent at 100 came third, behind 4096 + 1 bytes of data */
    assert_memory_equal(all + 11193, "\144\0\0\0\0\0\0\0\xb8\x0b\0\0\0\0\0\0\1\40\0\0\0\0\0\0", 24);
    assert_int_equal(varve_delta_digest(disk + 100, 3000, sum, NULL), 0);
    assert_memory_equal(sum, all + 11193 + 24, 32);
}

static void no_flipped_bit_passes(void **state)
{
    struct stat st;

    (void)state;
    assert_int_equal(sample(NULL), 0);
    assert_int_equal(stat(path, &st), 0);
    for (uint64_t off = 0; off<(uint64_t)st.st_size; off += off> 4200 && off < 11000 ? 97 : 1) {
        disk_fixture_flip(&d, path, off, (unsigned)(off * 5 % 8));
        assert_refused(off < 8 ? -EINVAL : off < 12 ? -ENOTSUP : -EUCLEAN, "");
        disk_fixture_flip(&d, path, off, (unsigned)(off * 5 % 8));
    }
    assert_whole();
}

static void a_file_of_any_other_length_is_refused(void **state)
{
    struct stat st;

    (void)state;
    assert_int_equal(sample(NULL), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(truncate(path, st.st_size + 1), 0);
    assert_refused(-EUCLEAN, "it does not end where its index ends");
    assert_int_equal(truncate(path, st.st_size + 56), 0);
    assert_refused(-EUCLEAN, "it does not end where its index ends");
    assert_int_equal(truncate(path, (off_t)1 << 40), 0); /* huge, and not read */
    fault_disarm(&d.fault);
    assert_refused(-EUCLEAN, "it does not end where its index ends");
    assert_true(fault_bytes_read(&d.fault) <= 65536);
    for (off_t len = st.st_size - 1; len >= 0; len -= len > 4096 ? 101 : 1) {
        assert_int_equal(truncate(path, len), 0);
        assert_refused(len < 12 ? -EINVAL : -EUCLEAN, "");
    }
}

static void what_is_no_file_is_refused(void **state)
{
    (void)state;
    assert_refused(-ENOENT, "cannot open");
    assert_int_equal(mkfifo(path, 0600), 0); /* and nobody waits for its other end */
    assert_refused(-EINVAL, "is no file");
    unlink(path);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_refused(-EINVAL, "is no file");
    rmdir(path);
}

static void put_u64(uint64_t off, uint64_t value)
{
    int fd = open(path, O_RDWR);

    value = htole64(value);
    assert_int_equal(pwrite(fd, &value, 8, (off_t)off), 8);
    close(fd);
}

/* What stands in the file is under its digests again. */
static void reseal(void)
{
    int fd = open(path, O_RDWR);
    off_t len = lseek(fd, 0, SEEK_END);
    uint8_t *all = malloc((size_t)len);

    assert_int_equal(pread(fd, all, (size_t)len, 0), len);
    assert_int_equal(varve_delta_digest(all + 11193, (size_t)len - 11193, all + 4032, NULL), 0);
    assert_int_equal(varve_delta_digest(all, 4064, all + 4064, NULL), 0);
    assert_int_equal(pwrite(fd, all, (size_t)len, 0), len);
    close(fd);
    free(all);
}

/* Whoever can write one can make its digests right. */
static void what_makes_no_sense_is_refused_under_right_digests(void **state)
{
    static const struct {
        uint64_t off, value;
        const char *why;
    } bent[] = {
        {48, UINT64_MAX, "a number in its head is none"},
        {48, SIZE - 1, "an extent in it is not where one can be"},
        {48, 3000, "more than there can be"},
        {56, UINT64_MAX, "a number in its head is none"},
        {64, 0, "its index is not in it"},
        {64, UINT64_MAX, "its index is not in it"},
        {64, UINT64_MAX - 55, "its index is not in it"},
        {64, 11193 + 56, "it does not end where its index ends"},
        {72, 3, "it does not end where its index ends"},
        {72, (UINT64_MAX / 56) + 5, "it does not end where its index ends"},
        {80, 1, "its head counts other extents"},
        {80, UINT64_MAX, "more than there can be"},
        {88, UINT64_MAX, "more than there can be"},
        {88, 1, "its head counts other extents"},
        {96, 0x0a61, "a text in it is none"},
        {96 + 248, UINT64_MAX, "a text in it is none"},
        {11193, UINT64_MAX, "an extent in it is not where one can be"},
        {11193, SIZE, "an extent in it is not where one can be"},
        {11193 + 8, 0, "an extent in it is not where one can be"},
        {11193 + 8, UINT64_MAX, "an extent in it is not where one can be"},
        {11193 + 8, 8193, "the data of an extent are not"},
        {11193 + 8, 8092, "the data of an extent are not"}, /* reaches into the index */
        {11193 + 16, 4095, "the data of an extent are not"},
        {11193 + 16, 11193, "the data of an extent are not"},
        {11193 + 16, UINT64_MAX, "the data of an extent are not"},
        {11193 + 16, 0, "the data of an extent are not"},           /* zeroes have no digest */
        {11193 + 56, 0, "an extent in it is not where one can be"}, /* before the first one's end */
        {11193 + 56 + 24, 1, "the data of an extent are not"},
        {11193 + 16, 4097, "the checksum of its data does not match"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(bent) / sizeof(bent[0]); i++) {
        disk_fixture_reset(&d);
        assert_int_equal(sample(NULL), 0);
        reseal();
        assert_whole();
        put_u64(bent[i].off, bent[i].value);
        reseal();
        assert_refused(-EUCLEAN, bent[i].why);
    }
    disk_fixture_reset(&d);
    assert_int_equal(sample(NULL), 0);
    put_u64(16, 0);
    put_u64(24, 0);
    reseal();
    assert_refused(-EUCLEAN, "its id is none");
}

static void ranges_that_overlap_are_no_delta(void **state)
{
    struct varve_delta_head head = sample_head();
    struct varve_delta_writer *w;

    (void)state;
    assert_int_equal(varve_delta_create(d.w, path, &head, &w, NULL), 0);
    assert_int_equal(add(w, 4096, 4096, 'a', NULL), 0);
    assert_int_equal(add(w, 8191, 4096, 0, NULL), 0);
    assert_int_equal(varve_delta_seal(w, NULL), -EINVAL);
    varve_delta_close(w);
    assert_int_equal(access(tmp, F_OK), -1);
}

static void comparing_finds_what_differs_and_what_is_missing(void **state)
{
    struct varve_delta_head head = sample_head();
    struct varve_delta_writer *w;

    (void)state;
    assert_int_equal(varve_delta_create(d.w, path, &head, &w, NULL), 0);
    assert_int_equal(add(w, 4096, 4096, 'a', NULL), 0);
    assert_int_equal(add(w, 8192, 4096, 0, NULL), 0);
    assert_int_equal(varve_delta_seal(w, NULL), 0);
    assert_int_equal(varve_delta_compare(w, disk + 4096, 4096, 8192, NULL), 0);
    assert_int_equal(varve_delta_compare(w, disk + 6000, 6000, 1, NULL), 0);
    disk[8192]++;
    assert_int_equal(varve_delta_compare(w, disk + 4096, 4096, 8192, NULL), -EIO);
    disk[8192]--;
    disk[4096]++;
    assert_int_equal(varve_delta_compare(w, disk + 4096, 4096, 1, NULL), -EIO);
    disk[4096]--;
    assert_int_equal(varve_delta_compare(w, disk + 4095, 4095, 2, NULL), -EIO);
    assert_int_equal(varve_delta_compare(w, disk + 12287, 12287, 2, NULL), -EIO);
    varve_delta_close(w);
}

/* What another one left under the other name goes; what has the name stays. */
static void nothing_is_overwritten(void **state)
{
    struct varve_err err;

    (void)state;
    assert_int_equal(close(open(tmp, O_WRONLY | O_CREAT | O_EXCL, 0600)), 0);
    assert_int_equal(sample(NULL), 0);
    assert_int_equal(sample(&err), -EEXIST);
    assert_non_null(strstr(err.msg, "exists already"));
    assert_int_equal(access(tmp, F_OK), -1);
    assert_whole();
}

static void any_failing_call_is_told_and_leaves_nothing(void **state)
{
    bool fired = true;

    (void)state;
    for (uint64_t n = 1; fired; n++) {
        struct varve_err err = VARVE_ERR_INIT;
        int rc;

        disk_fixture_reset(&d);
        fault_fail_at(&d.fault, FAULT_ANY, n, ENOSPC);
        rc = sample(&err);
        fired = fault_fired(&d.fault);
        fault_disarm(&d.fault);
        if (rc < 0) {
            assert_non_null(strstr(err.msg, path));
            assert_int_equal(access(tmp, F_OK), -1);
            assert_int_equal(access(path, F_OK), -1);
            assert_int_equal(sample(NULL), 0);
        }
        assert_whole();
    }
    for (uint64_t n = 1;; n++) {
        static uint8_t got[SIZE];
        int rc;

        fault_fail_at(&d.fault, FAULT_ANY, n, EIO);
        rc = replay(got, NULL);
        if (!fault_fired(&d.fault))
            break;
        assert_true(rc == -EIO || fault_calls(&d.fault, FAULT_CLOSE) > 0);
    }
}

/* Dying at every call, and the power with it: the whole file or none of that name. */
static void a_crash_leaves_the_whole_file_or_none(void **state)
{
    bool fired = true;

    (void)state;
    for (uint64_t n = 1; fired; n++) {
        for (uint64_t seed = 0; seed < SEEDS; seed++) {
            struct varve_delta_reader r;
            int rc, found;

            disk_fixture_reset(&d);
            fault_crash_at(&d.fault, FAULT_ANY, n);
            rc = sample(NULL);
            fired = fault_fired(&d.fault);
            disk_fixture_reboot(&d, seed);
            found = varve_delta_open(d.w, path, &r, NULL);
            assert_true(found == 0 || (found == -ENOENT && rc < 0));
            if (found == 0) {
                varve_delta_reader_close(&r);
                assert_whole();
            } else {
                assert_int_equal(sample(NULL), 0);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(what_is_replayed_is_what_was_added, fresh),
        cmocka_unit_test_setup(the_format_is_as_the_header_says, fresh),
        cmocka_unit_test_setup(no_flipped_bit_passes, fresh),
        cmocka_unit_test_setup(a_file_of_any_other_length_is_refused, fresh),
        cmocka_unit_test_setup(what_is_no_file_is_refused, fresh),
        cmocka_unit_test_setup(what_makes_no_sense_is_refused_under_right_digests, fresh),
        cmocka_unit_test_setup(ranges_that_overlap_are_no_delta, fresh),
        cmocka_unit_test_setup(comparing_finds_what_differs_and_what_is_missing, fresh),
        cmocka_unit_test_setup(nothing_is_overwritten, fresh),
        cmocka_unit_test_setup(any_failing_call_is_told_and_leaves_nothing, fresh),
        cmocka_unit_test_setup(a_crash_leaves_the_whole_file_or_none, fresh),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
