/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A checkpoint's file: what is read is what was written, or an error that says what is wrong; dying
 * anywhere leaves the whole file or none, and never something else in another file's place.
 */
#include "lib/checkpoint-file.h"

#include "lib/digest.h"
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

/* Three chunks of the map, the last one and the last word partial, and the last block. */
#define SIZE  (UINT64_C(10001) * 4096 + 512)
#define SEEDS 3u

static struct disk_fixture d;
static char path[PATH_MAX + 16], tmp[PATH_MAX + 32];

static int setup(void **state)
{
    (void)state;
    disk_fixture_init(&d, SIZE, 4096);
    assert_true(snprintf(path, sizeof(path), "%s/checkpoint", d.paths.state) < (int)sizeof(path));
    assert_true(snprintf(tmp, sizeof(tmp), "%s.tmp", path) < (int)sizeof(tmp));
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

/* Epochs 5 to 8, blocks 3 to 9 and the last one, and two ranges. */
static struct varve_checkpoint_file sample(void)
{
    struct varve_checkpoint_file f = {
        .geometry = d.geometry,
        .name = "monday",
        .disk = "vda",
        .time_ns = UINT64_C(1700000000000000001),
        .exported_ns = UINT64_C(1700000001000000002),
        .epoch = 5,
        .epoch_id = "birth of epoch5",
        .known = 9,
        .known_id = "birth of epoch9",
        .ranges = calloc(2, sizeof(struct varve_cat_range)),
        .nranges = 2,
        .blocks = varve_bitmap_new(d.geometry.nblks),
    };

    memcpy(f.uuid, d.uuid, sizeof(f.uuid));
    f.ranges[0] = (struct varve_cat_range){4096, 100};
    f.ranges[1] = (struct varve_cat_range){SIZE - 1, 1};
    varve_bitmap_set(f.blocks, 3, 10);
    varve_bitmap_set(f.blocks, d.geometry.nblks - 1, d.geometry.nblks);
    return f;
}

static int export(const struct varve_checkpoint_file *f, struct varve_err *err)
{
    int rc = varve_checkpoint_file_stage(d.w, path, f, err);

    return rc < 0 ? rc : varve_checkpoint_file_publish(d.w, path, err);
}

static int import(struct varve_checkpoint_file *f, struct varve_err *err)
{
    return varve_checkpoint_file_read(d.w, path, d.uuid, &d.geometry, f, err);
}

static void assert_same(const struct varve_checkpoint_file *a,
                        const struct varve_checkpoint_file *b)
{
    assert_memory_equal(a->uuid, b->uuid, 16);
    assert_string_equal(a->name, b->name);
    assert_string_equal(a->disk, b->disk);
    assert_true(a->time_ns == b->time_ns && a->exported_ns == b->exported_ns);
    assert_true(a->epoch == b->epoch && a->known == b->known);
    assert_memory_equal(a->epoch_id, b->epoch_id, VARVE_EPOCH_ID_LEN);
    assert_memory_equal(a->known_id, b->known_id, VARVE_EPOCH_ID_LEN);
    assert_int_equal(a->nranges, b->nranges);
    assert_memory_equal(a->ranges, b->ranges, a->nranges * sizeof(*a->ranges));
    assert_memory_equal(a->blocks->words, b->blocks->words, varve_bitmap_nwords(a->blocks) * 8);
}

static void assert_refused(int code, const char *why)
{
    struct varve_checkpoint_file f;
    struct varve_err err = VARVE_ERR_INIT;

    assert_int_equal(import(&f, &err), code);
    assert_int_equal(err.code, -code);
    assert_non_null(strstr(err.msg, path));
    if (!strstr(err.msg, why))
        fail_msg("'%s' does not say '%s'", err.msg, why);
    assert_true(f.ranges == NULL && f.blocks == NULL);
}

/* What stands in the file is under its digests again. */
static void reseal(void)
{
    int fd = open(path, O_RDWR);
    off_t len = lseek(fd, 0, SEEK_END);
    uint8_t *all = malloc((size_t)len);
    struct varve_digest sum;

    assert_int_equal(pread(fd, all, (size_t)len, 0), len);
    varve_digest_init(&sum, NULL);
    varve_digest_update(&sum, all, VARVE_CHECKPOINT_FILE_HEAD_TEXT);
    varve_digest_final(&sum, all + VARVE_CHECKPOINT_FILE_HEAD_TEXT, NULL);
    varve_digest_init(&sum, NULL);
    varve_digest_update(&sum, all, (size_t)len - 32);
    varve_digest_final(&sum, all + len - 32, NULL);
    assert_int_equal(pwrite(fd, all, (size_t)len, 0), len);
    close(fd);
    free(all);
}

static void put(uint64_t off, const void *bytes, size_t len)
{
    int fd = open(path, O_RDWR);

    assert_int_equal(pwrite(fd, bytes, len, (off_t)off), len);
    close(fd);
}

static void put_u64(uint64_t off, uint64_t value)
{
    value = htole64(value);
    put(off, &value, 8);
}

/* --- what it holds -------------------------------------------------------------------------- */

static void what_is_read_is_what_was_written(void **state)
{
    struct varve_checkpoint_file f = sample(), got;

    (void)state;
    assert_int_equal(export(&f, NULL), 0);
    assert_int_equal(import(&got, NULL), 0);
    assert_same(&f, &got);
    assert_int_equal(access(tmp, F_OK), -1);
    varve_checkpoint_file_fini(&got);

    /* nothing changed, no error: neither ranges nor chunks, and the same boundary */
    disk_fixture_reset(&d);
    memset(f.blocks->words, 0, varve_bitmap_nwords(f.blocks) * 8);
    f.nranges = 0;
    f.known = f.epoch;
    memcpy(f.known_id, f.epoch_id, sizeof(f.known_id));
    assert_int_equal(export(&f, NULL), 0);
    assert_int_equal(import(&got, NULL), 0);
    assert_same(&f, &got);
    varve_checkpoint_file_fini(&got);

    /* everything did: many pieces of reading and writing, too */
    disk_fixture_reset(&d);
    f.known = 77;
    varve_bitmap_set(f.blocks, 0, f.blocks->nbits);
    assert_int_equal(export(&f, NULL), 0);
    assert_int_equal(import(&got, NULL), 0);
    assert_same(&f, &got);
    varve_checkpoint_file_fini(&got);
    varve_checkpoint_file_fini(&f);
}

/* The format as the header tells it, byte for byte. */
static void the_format_is_as_the_header_says(void **state)
{
    struct varve_checkpoint_file f = sample();
    uint8_t all[304 + 2 * 16 + 2 * 520 + 32 + 1], sum[32];
    uint64_t word;
    struct varve_digest digest;
    int fd;

    (void)state;
    assert_int_equal(export(&f, NULL), 0);
    fd = open(path, O_RDONLY);
    assert_int_equal(pread(fd, all, sizeof(all), 0), sizeof(all) - 1);
    close(fd);
    assert_memory_equal(all, "varveckp\1\0\0\0\14\0\0\0", 16);
    assert_memory_equal(all + 16, d.uuid, 16);
    memcpy(&word, all + 32, 8);
    assert_true(le64toh(word) == SIZE);
    memcpy(&word, all + 40, 8);
    assert_true(le64toh(word) == f.time_ns);
    memcpy(&word, all + 56, 8);
    assert_true(le64toh(word) == 5);
    assert_memory_equal(all + 64, f.epoch_id, 16);
    assert_memory_equal(all + 80, "\11\0\0\0\0\0\0\0", 8);
    assert_memory_equal(all + 88, f.known_id, 16);
    assert_memory_equal(all + 104, "\10\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0monday\0", 31);
    assert_memory_equal(all + 200, "vda\0", 4);
    assert_memory_equal(all + 304, "\0\20\0\0\0\0\0\0\144\0\0\0\0\0\0\0", 16);
    assert_memory_equal(all + 336, "\0\0\0\0\0\0\0\0\370\3\0", 11);
    assert_memory_equal(all + 336 + 520, "\2\0\0\0\0\0\0\0", 8);
    varve_digest_init(&digest, NULL);
    varve_digest_update(&digest, all, sizeof(all) - 33);
    varve_digest_final(&digest, sum, NULL);
    assert_memory_equal(sum, all + sizeof(all) - 33, 32);
    varve_checkpoint_file_fini(&f);
}

/* --- what is refused ------------------------------------------------------------------------ */

static void no_flipped_bit_passes(void **state)
{
    struct varve_checkpoint_file f = sample(), got;
    struct stat st;

    (void)state;
    assert_int_equal(export(&f, NULL), 0);
    assert_int_equal(stat(path, &st), 0);
    for (uint64_t off = 0; off < (uint64_t)st.st_size; off++) {
        struct varve_err err = VARVE_ERR_INIT;
        int rc;

        disk_fixture_flip(&d, path, off, (unsigned)(off * 5 % 8));
        rc = import(&got, &err);
        assert_int_equal(rc, off < 8 ? -EINVAL : off < 12 ? -ENOTSUP : -EUCLEAN);
        assert_non_null(strstr(err.msg, path));
        disk_fixture_flip(&d, path, off, (unsigned)(off * 5 % 8));
    }
    assert_int_equal(import(&got, NULL), 0);
    varve_checkpoint_file_fini(&got);
    varve_checkpoint_file_fini(&f);
}

static void a_file_of_any_other_length_is_refused(void **state)
{
    struct varve_checkpoint_file f = sample();
    struct stat st;

    (void)state;
    assert_int_equal(export(&f, NULL), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(truncate(path, st.st_size + 1), 0);
    assert_refused(-EUCLEAN, "is damaged: it has 1409 bytes, not the 1408");
    assert_int_equal(truncate(path, (off_t)1 << 40), 0); /* huge, and not read */
    fault_disarm(&d.fault);
    assert_refused(-EUCLEAN, "is damaged: it has 1099511627776 bytes");
    assert_true(fault_bytes_read(&d.fault) <= 65536);
    for (off_t len = st.st_size - 1; len >= 0; len--) {
        assert_int_equal(truncate(path, len), 0);
        if (len < 12)
            assert_refused(-EINVAL, "is no file that checkpoint-export made");
        else
            assert_refused(-EUCLEAN, len < 304 ? "it ends too early" : "bytes, not the 1408");
    }
    varve_checkpoint_file_fini(&f);
}

static void what_does_not_fit_the_disk_is_refused(void **state)
{
    struct varve_checkpoint_file f = sample();
    struct varve_geometry g = d.geometry;

    (void)state;
    assert_int_equal(export(&f, NULL), 0);
    d.uuid[0] ^= 1;
    assert_refused(-EINVAL, "is of another disk, which was called 'vda'");
    d.uuid[0] ^= 1;
    assert_int_equal(varve_geometry_init(&d.geometry, SIZE, 8192, NULL), 0);
    assert_refused(-EINVAL, "has blocks of 4096 bytes, the disk's have 8192");
    d.geometry = g;
    put(8, "\2\0\0\0", 4);
    assert_refused(-ENOTSUP, "has format 2, this varve knows format 1 only");
    varve_checkpoint_file_fini(&f);
}

static void one_of_another_size_is_of_todays_with_all_behind_the_smaller_dirty(void **state)
{
    static const uint64_t sizes[] = {1, 4096, 300000, SIZE - 1, SIZE + 512, 2 * SIZE};
    struct varve_checkpoint_file f = sample(), got;

    (void)state;
    assert_int_equal(export(&f, NULL), 0);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        uint64_t from = (sizes[i] < SIZE ? sizes[i] : SIZE) / 4096;
        struct varve_geometry g;

        assert_int_equal(varve_geometry_init(&g, sizes[i], 4096, NULL), 0);
        assert_int_equal(varve_checkpoint_file_read(d.w, path, d.uuid, &g, &got, NULL), 0);
        assert_int_equal(got.blocks->nbits, g.nblks);
        assert_int_equal(got.geometry.size, sizes[i]);
        for (uint64_t b = 0; b < g.nblks; b++)
            assert_int_equal(varve_bitmap_test(got.blocks, b),
                             b >= from || varve_bitmap_test(f.blocks, b));
        varve_checkpoint_file_fini(&got);
    }
    varve_checkpoint_file_fini(&f);
}

static void what_is_no_file_is_refused(void **state)
{
    (void)state;
    assert_refused(-ENOENT, "cannot open");
    assert_int_equal(mkfifo(path, 0600), 0); /* and nobody waits for its other end */
    assert_refused(-EINVAL, "is not a regular file");
    unlink(path);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_refused(-EINVAL, "is not a regular file");
    rmdir(path);
    assert_int_equal(symlink("/dev/zero", path), 0);
    assert_refused(-EINVAL, "is not a regular file");
    unlink(path);
    assert_int_equal(symlink(path, path), 0);
    assert_refused(-ELOOP, "cannot open");
    unlink(path);
}

/* Whoever can write one can make its digests right. */
static void what_makes_no_sense_is_refused_under_right_digests(void **state)
{
    static const struct {
        uint64_t off, value;
        int code;
        const char *why;
    } bent[] = {
        {40, UINT64_MAX, -EUCLEAN, "a time in it is none"},
        {56, 0, -EUCLEAN, "its epochs make no sense"},
        {56, 10, -EUCLEAN, "its epochs make no sense"},
        {56, 9, -EUCLEAN, "more than there can be"}, /* the same boundary, yet chunks */
        {80, UINT64_MAX, -EUCLEAN, "its epochs make no sense"},
        {104, 7, -EUCLEAN, "it has not as many blocks as it says"},
        {112, UINT64_MAX, -EUCLEAN, "more than there can be"},
        {112, 1, -EUCLEAN, "bytes, not the 1392"},
        {120, UINT64_MAX, -EUCLEAN, "more than there can be"},
        {120, 3, -EUCLEAN, "bytes, not the 1928"},
        {128, 0x2f, -EUCLEAN, "a name in it is none"},
        {128, 0, -EUCLEAN, "a name in it is none"},
        {128 + 64, UINT64_MAX, -EUCLEAN, "a name in it is none"}, /* no zero behind it */
        {200, 0x202020, -EUCLEAN, "a name in it is none"},
        {304, SIZE, -EUCLEAN, "its ranges make no sense"},
        {312, 0, -EUCLEAN, "its ranges make no sense"},
        {312, UINT64_MAX, -EUCLEAN, "its ranges make no sense"},
        {320, 4100, -EUCLEAN, "its ranges make no sense"}, /* overlaps the first */
        {336, 2, -EUCLEAN, "its chunks make no sense"},    /* as the next one */
        {336 + 520, 3, -EUCLEAN, "its chunks make no sense"},
        {336 + 520, UINT64_MAX / 64, -EUCLEAN, "its chunks make no sense"},
        {336 + 8, 0, -EUCLEAN, "its chunks make no sense"}, /* one that is zero */
        {1408 - 32 - 8, 1, -EUCLEAN, "it has blocks behind the disk's end"},
    };
    struct varve_checkpoint_file f = sample(), got;

    (void)state;
    for (size_t i = 0; i < sizeof(bent) / sizeof(bent[0]); i++) {
        disk_fixture_reset(&d);
        assert_int_equal(export(&f, NULL), 0);
        reseal();
        assert_int_equal(import(&got, NULL), 0);
        varve_checkpoint_file_fini(&got);
        put_u64(bent[i].off, bent[i].value);
        reseal();
        assert_refused(bent[i].code, bent[i].why);
    }
    /* the last word's bits behind the last block */
    disk_fixture_reset(&d);
    assert_int_equal(export(&f, NULL), 0);
    put_u64(336 + 520 + 8 + (d.geometry.nblks / 64 - 128) * 8, UINT64_C(1) << 63);
    reseal();
    assert_refused(-EUCLEAN, "it has blocks behind the disk's end");
    /* an id that is none */
    disk_fixture_reset(&d);
    assert_int_equal(export(&f, NULL), 0);
    put(88, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16);
    reseal();
    assert_refused(-EUCLEAN, "its epochs make no sense");
    varve_checkpoint_file_fini(&f);
}

/* --- writing -------------------------------------------------------------------------------- */

static void assert_text(const char *file, const char *text)
{
    char got[16] = "";
    int fd = open(file, O_RDONLY);

    assert_true(fd >= 0 && read(fd, got, sizeof(got) - 1) >= 0);
    close(fd);
    assert_string_equal(got, text);
}

static void text_new(const char *file, const char *text)
{
    int fd = open(file, O_WRONLY | O_CREAT | O_EXCL, 0600);

    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}

/*     export                         somebody else
 *     stage: PATH is free
 *                                    makes PATH
 *     publish: refuses */
static void nothing_is_overwritten(void **state)
{
    struct varve_checkpoint_file f = sample();
    struct varve_err err;

    (void)state;
    text_new(path, "mine");
    assert_int_equal(export(&f, &err), -EEXIST);
    assert_non_null(strstr(err.msg, "exists already: give another name, or remove it"));
    assert_text(path, "mine");
    assert_int_equal(access(tmp, F_OK), -1);
    unlink(path);
    assert_int_equal(symlink("nowhere", path), 0);
    assert_int_equal(export(&f, &err), -EEXIST);
    unlink(path);

    text_new(tmp, "mine, too");
    assert_int_equal(export(&f, &err), -EEXIST);
    assert_non_null(strstr(err.msg, ".tmp exists already"));
    assert_text(tmp, "mine, too");
    unlink(tmp);

    assert_int_equal(varve_checkpoint_file_stage(d.w, path, &f, NULL), 0);
    text_new(path, "mine");
    assert_int_equal(varve_checkpoint_file_publish(d.w, path, &err), -EEXIST);
    assert_text(path, "mine");
    assert_int_equal(access(tmp, F_OK), -1);
    unlink(path);

    assert_int_equal(varve_checkpoint_file_stage(d.w, path, &f, NULL), 0);
    varve_checkpoint_file_discard(d.w, path);
    assert_int_equal(access(tmp, F_OK), -1);
    varve_checkpoint_file_fini(&f);
}

static void any_failing_call_is_told_and_leaves_nothing(void **state)
{
    struct varve_checkpoint_file f = sample(), got;
    bool fired = true;

    (void)state;
    for (uint64_t n = 1; fired; n++) {
        struct varve_err err = VARVE_ERR_INIT;
        int rc;

        disk_fixture_reset(&d);
        fault_fail_at(&d.fault, FAULT_ANY, n, ENOSPC);
        rc = export(&f, &err);
        fired = fault_fired(&d.fault);
        fault_disarm(&d.fault);
        if (rc < 0) {
            assert_non_null(strstr(err.msg, path));
            assert_int_equal(access(tmp, F_OK), -1);
            assert_int_equal(access(path, F_OK), -1);
            assert_int_equal(export(&f, NULL), 0);
        }
        assert_int_equal(import(&got, NULL), 0);
        assert_same(&f, &got);
        varve_checkpoint_file_fini(&got);
    }
    for (uint64_t n = 1;; n++) {
        struct varve_err err = VARVE_ERR_INIT;
        int rc;

        fault_fail_at(&d.fault, FAULT_ANY, n, EIO);
        rc = import(&got, &err);
        if (!fault_fired(&d.fault))
            break;
        assert_true(rc == -EIO || fault_calls(&d.fault, FAULT_CLOSE) > 0);
        if (rc == 0)
            varve_checkpoint_file_fini(&got);
    }
    varve_checkpoint_file_fini(&got);
    varve_checkpoint_file_fini(&f);
}

/* Dying at every call, and the power with it: the whole file or none of that name. */
static void a_crash_leaves_the_whole_file_or_none(void **state)
{
    struct varve_checkpoint_file f = sample(), got;
    bool fired = true;

    (void)state;
    for (uint64_t n = 1; fired; n++) {
        for (uint64_t seed = 0; seed < SEEDS; seed++) {
            int rc, found;

            disk_fixture_reset(&d);
            fault_crash_at(&d.fault, FAULT_ANY, n);
            rc = export(&f, NULL);
            fired = fault_fired(&d.fault);
            disk_fixture_reboot(&d, seed);
            found = import(&got, NULL);
            assert_true(found == 0 || (found == -ENOENT && rc < 0));
            if (found == 0) {
                assert_same(&f, &got);
                varve_checkpoint_file_fini(&got);
            }
        }
    }
    varve_checkpoint_file_fini(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(what_is_read_is_what_was_written, fresh),
        cmocka_unit_test_setup(the_format_is_as_the_header_says, fresh),
        cmocka_unit_test_setup(no_flipped_bit_passes, fresh),
        cmocka_unit_test_setup(a_file_of_any_other_length_is_refused, fresh),
        cmocka_unit_test_setup(what_does_not_fit_the_disk_is_refused, fresh),
        cmocka_unit_test_setup(one_of_another_size_is_of_todays_with_all_behind_the_smaller_dirty,
                               fresh),
        cmocka_unit_test_setup(what_is_no_file_is_refused, fresh),
        cmocka_unit_test_setup(what_makes_no_sense_is_refused_under_right_digests, fresh),
        cmocka_unit_test_setup(nothing_is_overwritten, fresh),
        cmocka_unit_test_setup(any_failing_call_is_told_and_leaves_nothing, fresh),
        cmocka_unit_test_setup(a_crash_leaves_the_whole_file_or_none, fresh),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
