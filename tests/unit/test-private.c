/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A runtime folder in which a new file cannot be made, while a page is there that could be believed.
 * tests/e2e/test_no_runtime.py has the folders that are full, cannot be written or cannot be made.
 */
#include "lib/epoch-era.h"
#include "lib/tracker.h"
#include "tests/lib/core-fixture.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define BLOCK 4096u
#define BLKS  512u /* two regions of the intent log */
#define SIZE  ((uint64_t)BLKS * BLOCK)

static struct core c;

/* A directory has the name of the map that the next era wants, and one write was made in epoch 1. */
static int setup(void **state)
{
    char path[PATH_MAX + 64];

    (void)state;
    core_init(&c, SIZE, BLOCK);
    core_start(&c);
    core_fill(&c, BLOCK, BLOCK, 'a');
    core_kill(&c);
    snprintf(path, sizeof(path), "%s/vda/epoch-%llu.live", c.runtime_dir,
             (unsigned long long)VARVE_ERA + 1);
    assert_int_equal(mkdir(path, 0700), 0);
    c.cfg.distrust = "a test said so";
    return 0;
}

static void give_the_name_back(void)
{
    char path[PATH_MAX + 64];

    snprintf(path, sizeof(path), "%s/vda/epoch-%llu.live", c.runtime_dir,
             (unsigned long long)VARVE_ERA + 1);
    assert_int_equal(rmdir(path), 0);
    c.cfg.distrust = NULL;
}

static int teardown(void **state)
{
    (void)state;
    core_fini(&c);
    return 0;
}

static void the_page_is_removed_and_the_disk_is_served_without(void **state)
{
    char path[PATH_MAX + 64];
    struct varve_bitmap *m;
    uint64_t epoch;

    (void)state;
    core_start(&c);
    assert_non_null(varve_tracker_private(c.t));
    snprintf(path, sizeof(path), "%s/vda/control", c.runtime_dir);
    assert_false(core_exists(path));
    assert_int_equal(varve_tracker_prepare(c.t, false, &epoch, NULL), -ENOTRECOVERABLE);
    core_fill(&c, (BLKS - 1) * BLOCK, BLOCK, 'b');
    core_kill(&c);

    /* As after a crash of the host: the second region was under way, the first is what it was. */
    give_the_name_back();
    core_start(&c);
    assert_null(varve_tracker_private(c.t));
    epoch = varve_tracker_epoch(c.t);
    assert_int_equal(epoch, VARVE_ERA + 1);
    m = core_live_bits(&c, epoch);
    assert_true(varve_bitmap_test(m, BLKS - 1));
    free(m);
    assert_int_equal(core_boundary(&c, 5), epoch + 1);
}

static void a_page_that_cannot_be_removed_either_is_no_trap_for_the_next_server(void **state)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_bitmap *m;

    (void)state;
    fault_fail_from(&c.fault, FAULT_UNLINK, 1, EROFS);
    assert_true(core_try_start(&c, &err) < 0);
    fault_disarm(&c.fault);
    c.t = NULL;
    assert_non_null(strstr(err.msg, "/control"));
    assert_non_null(strstr(err.msg, "can neither be taken over nor removed"));

    give_the_name_back();
    core_start(&c);
    assert_null(varve_tracker_private(c.t));
    m = core_live_bits(&c, 1);
    assert_int_equal(varve_bitmap_count(m), 1);
    assert_true(varve_bitmap_test(m, 1));
    free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_page_is_removed_and_the_disk_is_served_without, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(
            a_page_that_cannot_be_removed_either_is_no_trap_for_the_next_server, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
