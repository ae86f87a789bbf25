/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/paths.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define LONGEST "a234567890123456789012345678901234567890123456789012345678901234"

static void names_are_what_the_manual_says(void **state)
{
    static const char *const good[] = {"a", "9", "vda", "Disk-1_b.c", "a..", LONGEST};
    static const char *const bad[] = {"",    ".",        "..",  ".a",  "-a",
                                      "_a",  "a/b",      "/a",  "a b", "a\n",
                                      "a:b", "\xc3\xa4", "a\\", "a%",  LONGEST "5"};
    struct varve_err err;

    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_int_equal(varve_name_check(good[i], "disk name", &err), 0);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        err.msg[0] = '\0';
        assert_int_equal(varve_name_check(bad[i], "checkpoint name", &err), -EINVAL);
        assert_non_null(strstr(err.msg, "checkpoint name"));
        assert_null(strchr(err.msg, '\n'));
    }
}

static void files_lie_where_the_header_says(void **state)
{
    struct varve_paths p;
    struct varve_err err;
    char buf[PATH_MAX];

    (void)state;
    assert_int_equal(varve_paths_init(&p, "/s", "/r", "/x", "vda", &err), 0);
    assert_string_equal(varve_path_identity(&p, buf), "/s/vda/disk.json");
    assert_string_equal(varve_path_lock(&p, buf), "/s/vda/lock");
    assert_string_equal(varve_path_epoch(&p, 3, 17, buf), "/s/vda/epoch-3-17.map");
    assert_string_equal(varve_path_scratch(&p, 4, buf), "/x/vda/epoch-4.scratch");
    assert_string_equal(varve_path_control(&p, buf), "/r/vda/control");
    assert_string_equal(varve_path_live(&p, 5, buf), "/r/vda/epoch-5.live");
    assert_string_equal(varve_path_lost(&p, 6, buf), "/r/vda/epoch-6.lost");
    assert_string_equal(varve_path_link(&p, buf), "/r/vda/link.sock");
    assert_int_equal(varve_paths_init(&p, "/s", "/r", NULL, "vda", &err), 0);
    assert_string_equal(varve_path_scratch(&p, 4, buf), "/s/vda/epoch-4.scratch");
}

static void names_that_would_leave_the_directory_are_refused(void **state)
{
    struct varve_paths p;
    struct varve_err err;

    (void)state;
    assert_int_equal(varve_paths_init(&p, "/s", "/r", NULL, "../b", &err), -EINVAL);
    assert_int_equal(varve_paths_init(&p, "/s", "/r", NULL, "..", &err), -EINVAL);
    assert_int_equal(varve_paths_init(&p, "", "/r", NULL, "vda", &err), -EINVAL);
}

/* Whatever directory is accepted, the longest name below it is whole, with room for ".tmp". */
static void accepted_directories_have_room_for_every_file(void **state)
{
    static char dir[PATH_MAX + 10];
    struct varve_paths p;
    struct varve_err err;
    char buf[PATH_MAX];
    size_t accepted = 0;

    (void)state;
    for (size_t len = PATH_MAX - 200; len < PATH_MAX + 5; len++) {
        memset(dir, 'd', len);
        dir[0] = '/';
        dir[len] = '\0';
        if (varve_paths_init(&p, dir, "/r", NULL, "vda", &err) == 0) {
            assert_int_equal(accepted, len - (PATH_MAX - 200)); /* all the shorter ones were too */
            accepted++;
            varve_path_epoch(&p, UINT64_MAX, UINT64_MAX, buf);
            assert_string_equal(buf + len,
                                "/vda/epoch-18446744073709551615-18446744073709551615.map");
            assert_true(strlen(buf) + sizeof(".tmp") <= PATH_MAX);
        } else {
            assert_int_equal(err.code, ENAMETOOLONG);
            assert_int_equal(varve_paths_init(&p, "/s", dir, NULL, "vda", &err), -ENAMETOOLONG);
            assert_int_equal(varve_paths_init(&p, "/s", "/r", dir, "vda", &err), -ENAMETOOLONG);
        }
    }
    assert_true(accepted > 0);
}

static void only_names_that_we_write_are_epoch_files(void **state)
{
    static const char *const bad[] = {
        "",
        "epoch-",
        "epoch-1.map",
        "epoch-1-.map",
        "epoch--1.map",
        "epoch-1-2.map.tmp",
        "epoch-1-2.mapx",
        "epoch-1-2",
        "xepoch-1-2.map",
        "Epoch-1-2.map",
        "epoch-01-2.map",
        "epoch-1-02.map",
        "epoch-0-2.map",
        "epoch-2-1.map",
        "epoch-+1-2.map",
        "epoch- 1-2.map",
        "epoch-1--2.map",
        "epoch-1-18446744073709551616.map",
        "epoch-99999999999999999999-99999999999999999999.map",
        "epoch-0x1-2.map",
    };
    uint64_t first, last;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_false(varve_path_parse_epoch(bad[i], &first, &last));
    assert_true(varve_path_parse_epoch("epoch-1-1.map", &first, &last));
    assert_int_equal(first, 1);
    assert_int_equal(last, 1);
    assert_true(varve_path_parse_epoch("epoch-10-18446744073709551615.map", &first, &last));
    assert_int_equal(first, 10);
    assert_int_equal(last, UINT64_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_what_the_manual_says),
        cmocka_unit_test(files_lie_where_the_header_says),
        cmocka_unit_test(names_that_would_leave_the_directory_are_refused),
        cmocka_unit_test(accepted_directories_have_room_for_every_file),
        cmocka_unit_test(only_names_that_we_write_are_epoch_files),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
