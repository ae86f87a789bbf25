/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/identity.h"

#include "include/varve.h"
#include "lib/whole-file.h"
#include "tests/lib/disk-fixture.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SEEDS 6u

static struct varve_identity identity(const struct disk_fixture *d, const char *image)
{
    struct varve_identity id = {.geometry = d->geometry};

    memcpy(id.uuid, d->uuid, sizeof(id.uuid));
    strcpy(id.image, image);
    return id;
}

static void assert_same(const struct varve_identity *a, const struct varve_identity *b)
{
    assert_memory_equal(a->uuid, b->uuid, sizeof(a->uuid));
    assert_string_equal(a->image, b->image);
    assert_int_equal(a->geometry.size, b->geometry.size);
    assert_int_equal(a->geometry.shift, b->geometry.shift);
    assert_int_equal(a->geometry.nblks, b->geometry.nblks);
}

/* Puts `text` in the identity's place. */
static void plant(struct disk_fixture *d, const char *text, size_t len)
{
    char path[PATH_MAX];

    assert_int_equal(
        varve_whole_file_replace(d->w, varve_path_identity(&d->paths, path), text, len, NULL), 0);
}

static void what_was_written_is_read(void **state)
{
    static const char *const images[] = {"/", "/srv/a disk.img", "/q\"uo\\te\nnew\x01/\xc3\xa4",
                                         "/dev/rbd0"};
    static const uint64_t sizes[] = {0, 1, 4096, (uint64_t)20 << 40, VARVE_DISK_SIZE_MAX};
    struct disk_fixture d;
    struct varve_err err;

    (void)state;
    disk_fixture_init(&d, 1, 4096);
    for (size_t i = 0; i < sizeof(images) / sizeof(images[0]); i++) {
        for (size_t j = 0; j < sizeof(sizes) / sizeof(sizes[0]); j++) {
            struct varve_identity in = identity(&d, images[i]), out;

            assert_int_equal(varve_geometry_init(&in.geometry, sizes[j], 0, NULL), 0);
            in.resize = (struct varve_resize){sizes[j], i % 2 * 1764250000000000000};
            assert_int_equal(varve_identity_write(d.w, &d.paths, &in, &err), 0);
            assert_int_equal(varve_identity_read(d.w, &d.paths, &out, &err), 0);
            assert_same(&in, &out);
        }
    }
    disk_fixture_fini(&d);
}

static void longest_path_in_the_longest_escapes_is_read_back(void **state)
{
    struct disk_fixture d;
    struct varve_err err;
    struct varve_identity in, out;

    (void)state;
    disk_fixture_init(&d, 1, 4096);
    in = identity(&d, "/");
    memset(in.image + 1, '\x02', sizeof(in.image) - 2);
    in.image[sizeof(in.image) - 1] = '\0';
    assert_int_equal(varve_identity_write(d.w, &d.paths, &in, &err), 0);
    assert_int_equal(varve_identity_read(d.w, &d.paths, &out, &err), 0);
    assert_same(&in, &out);
    disk_fixture_fini(&d);
}

static void no_disk_is_told_from_a_damaged_one(void **state)
{
    struct disk_fixture d;
    struct varve_identity out;
    struct varve_err err;

    (void)state;
    disk_fixture_init(&d, 1, 4096);
    assert_int_equal(varve_identity_read(d.w, &d.paths, &out, &err), -ENOENT);
    disk_fixture_fini(&d);
}

static void other_format_is_refused_saying_file_versions_and_what_to_do(void **state)
{
    static const char *const others[] = {
        "{\"format\": 2}", "{\"format\": 0}", "{\"format\": 9000000000, \"uuid\": 5}",
        /* else as ours */
        ("{\"format\": 2, \"uuid\": \"01122334-4556-6778-899a-abbccddeef00\", \"image\": \"/i\","
         " \"size\": 1, \"block-size\": 4096}")};
    struct disk_fixture d;
    struct varve_identity out;
    struct varve_err err;

    (void)state;
    disk_fixture_init(&d, 1, 4096);
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        plant(&d, others[i], strlen(others[i]));
        assert_int_equal(varve_identity_read(d.w, &d.paths, &out, &err), -ENOTSUP);
    }
    assert_non_null(strstr(err.msg, "disk.json"));
    assert_non_null(strstr(err.msg, "format 2"));
    assert_non_null(strstr(err.msg, "format 1 only"));
    assert_non_null(strstr(err.msg, "use the version"));
    disk_fixture_fini(&d);
}

#define GOOD_UUID "\"uuid\": \"01122334-4556-6778-899a-abbccddeef00\""

static void whatever_is_not_an_identity_is_damaged(void **state)
{
    static const char *const bad[] = {
        "",
        "{",
        "[]",
        "null",
        "{}",
        "{\"format\": \"1\"}",
        "{\"format\": 1}",
        "{\"format\": 1, \"format\": 1, " GOOD_UUID
        ", \"image\": \"/i\", \"size\": 1, \"block-size\": 4096}",
        "{\"format\": 1, \"uuid\": \"01122334-4556-6778-899a-abbccddeef0\","
        " \"image\": \"/i\", \"size\": 1, \"block-size\": 4096}",
        "{\"format\": 1, \"uuid\": \"01122334-4556-6778-899A-abbccddeef00\","
        " \"image\": \"/i\", \"size\": 1, \"block-size\": 4096}",
        "{\"format\": 1, \"uuid\": \" 1122334-4556-6778-899a-abbccddeef00\","
        " \"image\": \"/i\", \"size\": 1, \"block-size\": 4096}",
        "{\"format\": 1, \"uuid\": \"0112233444556-6778-899a-abbccddeef00\","
        " \"image\": \"/i\", \"size\": 1, \"block-size\": 4096}",
        "{\"format\": 1, " GOOD_UUID ", \"image\": \"i\", \"size\": 1, \"block-size\": 4096}",
        "{\"format\": 1, " GOOD_UUID ", \"image\": \"\", \"size\": 1, \"block-size\": 4096}",
        "{\"format\": 1, " GOOD_UUID ", \"image\": 7, \"size\": 1, \"block-size\": 4096}",
        "{\"format\": 1, " GOOD_UUID ", \"image\": \"/i\", \"size\": -1, \"block-size\": 4096}",
        "{\"format\": 1, " GOOD_UUID ", \"image\": \"/i\", \"size\": 1.5, \"block-size\": 4096}",
        "{\"format\": 1, " GOOD_UUID ", \"image\": \"/i\", \"size\": 1e99, \"block-size\": 4096}",
        "{\"format\": 1, " GOOD_UUID ", \"image\": \"/i\", \"size\": 99999999999999999999,"
        " \"block-size\": 4096}",
        "{\"format\": 1, " GOOD_UUID ", \"image\": \"/i\", \"size\": 1, \"block-size\": 0}",
        "{\"format\": 1, " GOOD_UUID ", \"image\": \"/i\", \"size\": 1, \"block-size\": 4097}",
        "{\"format\": 1, " GOOD_UUID ", \"image\": \"/i\", \"size\": 1, \"block-size\": 2097152}",
        "{\"format\": 1, " GOOD_UUID ", \"image\": \"/i\", \"size\": 1, \"block-size\": 4096}x",
    };
    static const char good[] =
        "{\"format\": 1, " GOOD_UUID ", \"image\": \"/i\", \"size\": 1, \"block-size\": 4096}";
    struct disk_fixture d;
    struct varve_identity out;
    struct varve_err err;

    (void)state;
    disk_fixture_init(&d, 1, 4096);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        plant(&d, bad[i], strlen(bad[i]));
        assert_int_equal(varve_identity_read(d.w, &d.paths, &out, &err), -EUCLEAN);
        assert_non_null(strstr(err.msg, "disk.json"));
    }
    plant(&d, "{\"format\": 1\0}", 14);
    assert_int_equal(varve_identity_read(d.w, &d.paths, &out, &err), -EUCLEAN);
    plant(&d, good, strlen(good));
    assert_int_equal(varve_identity_read(d.w, &d.paths, &out, &err), 0);
    /* Cut anywhere. */
    for (size_t len = 0; len + 1 < sizeof(good); len++) {
        plant(&d, good, len);
        assert_int_equal(varve_identity_read(d.w, &d.paths, &out, &err), -EUCLEAN);
    }
    disk_fixture_fini(&d);
}

static void garbage_of_any_length_is_refused(void **state)
{
    size_t len = 200000;
    char *garbage = malloc(len), *path_long = malloc(PATH_MAX + 300);
    struct disk_fixture d;
    struct varve_identity out;
    struct varve_err err;

    (void)state;
    disk_fixture_init(&d, 1, 4096);
    memset(garbage, '[', len);
    plant(&d, garbage, len);
    assert_int_equal(varve_identity_read(d.w, &d.paths, &out, &err), -EUCLEAN);
    plant(&d, garbage, 1000);
    assert_int_equal(varve_identity_read(d.w, &d.paths, &out, &err), -EUCLEAN);
    /* An image path that does not fit ours. */
    memset(garbage, 'p', PATH_MAX);
    garbage[PATH_MAX] = '\0';
    snprintf(path_long, PATH_MAX + 300,
             "{\"format\": 1, " GOOD_UUID
             ", \"image\": \"/%s\", \"size\": 1, \"block-size\": 4096}",
             garbage);
    plant(&d, path_long, strlen(path_long));
    assert_int_equal(varve_identity_read(d.w, &d.paths, &out, &err), -EUCLEAN);
    free(garbage);
    free(path_long);
    disk_fixture_fini(&d);
}

static void image_path_that_json_cannot_hold_is_refused(void **state)
{
    struct disk_fixture d;
    struct varve_identity in, out;
    struct varve_err err;

    (void)state;
    disk_fixture_init(&d, 1, 4096);
    in = identity(&d, "/srv/\xff.img");
    assert_int_equal(varve_identity_write(d.w, &d.paths, &in, &err), -EINVAL);
    assert_non_null(strstr(err.msg, "UTF-8"));
    assert_int_equal(varve_identity_read(d.w, &d.paths, &out, NULL), -ENOENT);
    disk_fixture_fini(&d);
}

static void crash_at_any_call_leaves_the_old_or_the_new(void **state)
{
    struct disk_fixture d;
    bool fired = true;

    (void)state;
    disk_fixture_init(&d, 1, 4096);
    for (uint64_t n = 1; fired; n++) {
        for (uint64_t seed = 0; seed < SEEDS; seed++) {
            struct varve_identity old = identity(&d, "/old"), new = identity(&d, "/new"), out;
            int rc;

            disk_fixture_reset(&d);
            assert_int_equal(varve_identity_write(d.w, &d.paths, &old, NULL), 0);
            fault_crash_at(&d.fault, FAULT_ANY, n);
            rc = varve_identity_write(d.w, &d.paths, &new, NULL);
            fired = fault_fired(&d.fault);
            disk_fixture_reboot(&d, seed);
            assert_int_equal(varve_identity_read(d.w, &d.paths, &out, NULL), 0);
            assert_true(rc == 0 || fired);
            assert_same(&out, rc == 0 || strcmp(out.image, "/new") == 0 ? &new : &old);
            assert_int_equal(varve_identity_write(d.w, &d.paths, &new, NULL), 0);
        }
    }
    disk_fixture_fini(&d);
}

static void any_failing_call_is_told_and_leaves_the_old_or_the_new(void **state)
{
    struct disk_fixture d;
    struct varve_identity old, new, out;
    bool fired = true;

    (void)state;
    disk_fixture_init(&d, 1, 4096);
    old = identity(&d, "/old");
    new = identity(&d, "/new");
    for (uint64_t n = 1; fired; n++) {
        struct varve_err err = VARVE_ERR_INIT;
        int rc;

        disk_fixture_reset(&d);
        assert_int_equal(varve_identity_write(d.w, &d.paths, &old, NULL), 0);
        fault_fail_at(&d.fault, FAULT_ANY, n, ENOSPC);
        rc = varve_identity_write(d.w, &d.paths, &new, &err);
        fired = fault_fired(&d.fault);
        if (rc < 0) {
            assert_int_equal(rc, -ENOSPC);
            assert_non_null(strstr(err.msg, "disk.json"));
        }
        fault_disarm(&d.fault);
        assert_int_equal(varve_identity_read(d.w, &d.paths, &out, NULL), 0);
        assert_same(&out, strcmp(out.image, "/new") == 0 ? &new : &old);
    }
    for (uint64_t n = 1; n < 5; n++) {
        struct varve_err err = VARVE_ERR_INIT;
        int rc;

        fault_fail_at(&d.fault, FAULT_ANY, n, EIO);
        rc = varve_identity_read(d.w, &d.paths, &out, &err);
        assert_true(fault_fired(&d.fault));
        assert_true(rc == (n == 4 ? 0 : -EIO)); /* the last one closes */
    }
    disk_fixture_fini(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_written_is_read),
        cmocka_unit_test(longest_path_in_the_longest_escapes_is_read_back),
        cmocka_unit_test(no_disk_is_told_from_a_damaged_one),
        cmocka_unit_test(other_format_is_refused_saying_file_versions_and_what_to_do),
        cmocka_unit_test(whatever_is_not_an_identity_is_damaged),
        cmocka_unit_test(garbage_of_any_length_is_refused),
        cmocka_unit_test(image_path_that_json_cannot_hold_is_refused),
        cmocka_unit_test(crash_at_any_call_leaves_the_old_or_the_new),
        cmocka_unit_test(any_failing_call_is_told_and_leaves_the_old_or_the_new),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
