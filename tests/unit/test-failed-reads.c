/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Failed reads: remembered over the daemon's death, and where they cannot be, everything counts.
 */
#include "server/failed-reads.h"

#include "tests/lib/disk-fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SIZE (UINT64_C(1000) * 4096 + 512)
#define BLKS 1001u
#define VIEW 7u

static struct varve_failed_reads *open_view(struct disk_fixture *d)
{
    struct varve_failed_reads *f = varve_failed_reads_new(d->w, &d->paths, VIEW, &d->geometry);

    assert_non_null(f);
    return f;
}

/* Blocks that count, and whether it says that there are any. */
static uint64_t count(struct varve_failed_reads *f, struct varve_bitmap **map, bool any)
{
    *map = varve_bitmap_new(BLKS);
    assert_non_null(*map);
    assert_int_equal(varve_failed_reads_or(f, *map), any);
    return varve_bitmap_count(*map);
}

static bool file_exists(struct disk_fixture *d)
{
    char path[PATH_MAX];
    int fd = d->w->open(d->w, varve_path_failed(&d->paths, VIEW, path), O_RDONLY, 0);

    if (fd >= 0)
        d->w->close(d->w, fd);
    return fd >= 0;
}

static void what_was_noted_is_there_again_after_a_kill(void **state)
{
    struct disk_fixture *d = *state;
    struct varve_failed_reads *f = open_view(d);
    struct varve_bitmap *map;

    assert_int_equal(count(f, &map, false), 0);
    free(map);
    varve_failed_reads_free(f);
    assert_false(file_exists(d)); /* who had no error leaves nothing */
    f = open_view(d);
    varve_failed_reads_note(f, 5 * 4096 + 1, 4096); /* parts of two blocks */
    varve_failed_reads_note(f, SIZE - 1, 1);
    varve_failed_reads_note(f, 0, 0);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(count(f, &map, true), 3);
        assert_true(varve_bitmap_test(map, 5) && varve_bitmap_test(map, 6));
        assert_true(varve_bitmap_test(map, BLKS - 1));
        free(map);
        varve_failed_reads_free(f);
        f = open_view(d);
    }
    varve_failed_reads_note(f, 100 * 4096, 4096);
    varve_failed_reads_free(f);
    f = open_view(d);
    assert_int_equal(count(f, &map, true), 4);
    free(map);
    varve_failed_reads_forget(f);
    varve_failed_reads_free(f);
    assert_false(file_exists(d));
}

static void what_cannot_be_noted_is_everything(void **state)
{
    struct disk_fixture *d = *state;

    for (uint64_t n = 1;; n++) {
        struct varve_failed_reads *f = open_view(d);
        struct varve_bitmap *map;
        bool failed;

        fault_fail_at(&d->fault, FAULT_ANY, n, ENOSPC);
        varve_failed_reads_note(f, 0, 4096);
        failed = fault_fired(&d->fault);
        fault_disarm(&d->fault);
        assert_int_equal(count(f, &map, true), failed ? BLKS : 1);
        free(map);
        varve_failed_reads_free(f);
        f = open_view(d);
        /* Where no file could be made its successor knows nothing of it. */
        assert_int_equal(count(f, &map, n > 1), !failed ? 1 : n > 1 ? BLKS : 0);
        free(map);
        varve_failed_reads_forget(f);
        varve_failed_reads_free(f);
        if (!failed)
            return;
    }
}

static void what_cannot_be_read_back_is_everything(void **state)
{
    struct disk_fixture *d = *state;
    struct varve_failed_reads *f = open_view(d);
    struct varve_bitmap *map;
    char path[PATH_MAX];
    int fd;

    varve_failed_reads_note(f, 0, 4096);
    varve_failed_reads_free(f);
    fault_fail_at(&d->fault, FAULT_PREAD, 1, EIO);
    f = open_view(d);
    assert_int_equal(count(f, &map, true), BLKS);
    free(map);
    varve_failed_reads_free(f);
    fault_fail_at(&d->fault, FAULT_OPEN, 1, EMFILE);
    f = open_view(d);
    assert_int_equal(count(f, &map, true), BLKS);
    free(map);
    varve_failed_reads_free(f);
    fault_disarm(&d->fault);
    fd = d->w->open(d->w, varve_path_failed(&d->paths, VIEW, path), O_RDWR, 0);
    assert_true(fd >= 0);
    assert_int_equal(d->w->truncate(d->w, fd, 8), 0);
    d->w->close(d->w, fd);
    f = open_view(d);
    assert_int_equal(count(f, &map, true), BLKS);
    free(map);
    varve_failed_reads_free(f);
}

static bool nothing_is_open(void *arg, uint64_t view)
{
    uint64_t *seen = arg;

    *seen = view;
    return false;
}

static bool it_is_open(void *arg, uint64_t view)
{
    (void)arg;
    return view == VIEW;
}

static void the_sweep_removes_what_nobody_needs(void **state)
{
    struct disk_fixture *d = *state;
    struct varve_failed_reads *f = open_view(d);
    uint64_t seen = 0;

    varve_failed_reads_note(f, 0, 4096);
    varve_failed_reads_free(f);
    varve_failed_reads_sweep(d->w, &d->paths, it_is_open, NULL);
    assert_true(file_exists(d));
    varve_failed_reads_sweep(d->w, &d->paths, nothing_is_open, &seen);
    assert_false(file_exists(d));
    assert_int_equal(seen, VIEW);
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
        TEST(what_was_noted_is_there_again_after_a_kill),
        TEST(what_cannot_be_noted_is_everything),
        TEST(what_cannot_be_read_back_is_everything),
        TEST(the_sweep_removes_what_nobody_needs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
