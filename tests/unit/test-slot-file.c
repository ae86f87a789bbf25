/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The pair of slots: after any failure, crash or power loss the old text is read or the new one.
 */
#include "lib/slot-file.h"

#include "tests/lib/fault-world.h"
#include "tests/lib/power-world.h"
#include "tests/lib/tmpdir.h"

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

/* A text longer than what is allocated at first: commits of it grow the slot. */
#define LONG_TEXT ((size_t)300 * 1024)

static char *long_text(char fill)
{
    char *text = malloc(LONG_TEXT + 1);

    assert_non_null(text);
    memset(text, fill, LONG_TEXT);
    text[LONG_TEXT] = '\0';
    return text;
}

static char *slot_path(const char *dir, unsigned n)
{
    char *path;

    assert_true(asprintf(&path, "%s/t-%u", dir, n) > 0);
    return path;
}

static char *read_text(struct varve_world *w, const char *dir)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_slot_file *s;
    char *text = NULL;
    int rc = varve_slot_file_open(w, dir, "t", 1, "initial", &s, &text, &err);

    if (rc != 0)
        fail_msg("%s", err.msg);
    varve_slot_file_close(s);
    return text;
}

static void expect_text(const char *dir, const char *want)
{
    char *text = read_text(varve_world_posix(), dir);

    assert_string_equal(text, want);
    free(text);
}

static void commit(const char *dir, const char *text)
{
    struct varve_slot_file *s;
    char *was;

    assert_int_equal(
        varve_slot_file_open(varve_world_posix(), dir, "t", 1, "initial", &s, &was, NULL), 0);
    assert_int_equal(varve_slot_file_commit(s, text, NULL), 0);
    varve_slot_file_close(s);
    free(was);
}

static void overwrite(const char *dir, unsigned n, off_t off, const char *bytes)
{
    char *path = slot_path(dir, n);
    int fd = open(path, O_WRONLY);

    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, strlen(bytes), off), (ssize_t)strlen(bytes));
    close(fd);
    free(path);
}

static void what_is_committed_is_read(void **state)
{
    char *dir = *state, *big = long_text('b');

    expect_text(dir, "initial");
    expect_text(dir, "initial");
    commit(dir, "one");
    expect_text(dir, "one");
    commit(dir, "two");
    commit(dir, big);
    expect_text(dir, big);
    commit(dir, "");
    expect_text(dir, "");
    free(big);
}

static void a_torn_slot_leaves_the_other(void **state)
{
    const char *dir = *state;

    commit(dir, "one"); /* in slot 0: the pair was made with slot 1 in force */
    commit(dir, "two"); /* in slot 1 */
    overwrite(dir, 1, 4096, "T");
    expect_text(dir, "one");
    commit(dir, "three");
    expect_text(dir, "three");
    overwrite(dir, 1, 30, "9"); /* its head */
    expect_text(dir, "one");
}

static int open_rc(const char *dir, unsigned format, struct varve_err *err)
{
    struct varve_slot_file *s;
    char *text;
    int rc = varve_slot_file_open(varve_world_posix(), dir, "t", format, "initial", &s, &text, err);

    if (rc == 0) {
        free(text);
        varve_slot_file_close(s);
    }
    return rc;
}

static void two_damaged_slots_are_not_a_new_pair(void **state)
{
    struct varve_err err = VARVE_ERR_INIT;
    const char *dir = *state;

    commit(dir, "one");
    overwrite(dir, 0, 4096, "T");
    overwrite(dir, 1, 4096, "T");
    assert_int_equal(open_rc(dir, 1, &err), -EUCLEAN);
    assert_non_null(strstr(err.msg, "damaged"));
}

static void a_newer_format_is_refused(void **state)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_slot_file *s;
    const char *dir = *state;
    char *text;

    assert_int_equal(
        varve_slot_file_open(varve_world_posix(), dir, "t", 2, "of two", &s, &text, NULL), 0);
    free(text);
    varve_slot_file_close(s);
    assert_int_equal(open_rc(dir, 1, &err), -ENOTSUP);
    assert_non_null(strstr(err.msg, "format 2"));
    assert_int_equal(open_rc(dir, 2, NULL), 0);
}

static void a_pair_has_one_user(void **state)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_slot_file *s;
    const char *dir = *state;
    char *text;

    assert_int_equal(
        varve_slot_file_open(varve_world_posix(), dir, "t", 1, "initial", &s, &text, NULL), 0);
    assert_int_equal(open_rc(dir, 1, &err), -EBUSY);
    varve_slot_file_close(s);
    free(text);
    assert_int_equal(open_rc(dir, 1, NULL), 0);
}

/* Opens and commits `text` in a world; -errno of the commit, or 1 if it could not be opened. */
static int open_and_commit(struct varve_world *w, const char *dir, const char *text)
{
    struct varve_slot_file *s;
    char *was;
    int rc;

    if (varve_slot_file_open(w, dir, "t", 1, "initial", &s, &was, NULL) < 0)
        return 1;
    free(was);
    rc = varve_slot_file_commit(s, text, NULL);
    varve_slot_file_close(s);
    return rc;
}

/* Each call of open and commit fails once: success means the new text, an error the old one. */
static void each_failing_call_leaves_the_old_text(void **state)
{
    char *dir = *state, *big = long_text('n');
    struct fault_world f;
    uint64_t n;

    fault_world_init(&f, varve_world_posix());
    for (n = 1;; n++) {
        int rc;

        tmpdir_empty(dir);
        commit(dir, "old");
        fault_fail_at(&f, FAULT_ANY, n, ENOSPC);
        rc = open_and_commit(&f.world, dir, big);
        if (!fault_fired(&f))
            break;
        expect_text(dir, rc == 0 ? big : "old");
    }
    assert_true(n > 10);
    fault_world_fini(&f);
    free(big);
}

/* Everything from some call on fails: then even taking back fails, and either text may be found,
 * but nothing else. */
static void each_crash_leaves_old_or_new(void **state)
{
    char *dir = *state, *big = long_text('n');
    struct fault_world f;
    uint64_t n;

    fault_world_init(&f, varve_world_posix());
    for (n = 1;; n++) {
        char *text;

        tmpdir_empty(dir);
        commit(dir, "old");
        fault_crash_at(&f, FAULT_ANY, n);
        open_and_commit(&f.world, dir, big);
        if (!fault_fired(&f))
            break;
        text = read_text(varve_world_posix(), dir);
        assert_true(strcmp(text, "old") == 0 || strcmp(text, big) == 0);
        free(text);
    }
    assert_true(n > 10);
    fault_world_fini(&f);
    free(big);
}

/* The same while the pair is made. */
static void each_crash_of_the_making_leaves_a_pair_or_none(void **state)
{
    const char *dir = *state;
    struct fault_world f;
    uint64_t n;

    fault_world_init(&f, varve_world_posix());
    for (n = 1;; n++) {
        tmpdir_empty(dir);
        fault_crash_at(&f, FAULT_ANY, n);
        open_and_commit(&f.world, dir, "first");
        if (!fault_fired(&f))
            break;
        char *text = read_text(varve_world_posix(), dir);

        assert_true(strcmp(text, "initial") == 0 || strcmp(text, "first") == 0);
        free(text);
    }
    fault_world_fini(&f);
}

/* Power fails after each call of a second commit; what the first one returned stays, in whatever
 * order the rest reached the disk. */
static void power_loss_leaves_old_or_new(void **state)
{
    char *dir = *state, *big = long_text('n'), graveyard[4096], sub[4096];

    snprintf(graveyard, sizeof(graveyard), "%s/graves", dir);
    snprintf(sub, sizeof(sub), "%s/pair", dir);
    for (uint64_t n = 1;; n++) {
        struct power_world p;
        struct fault_world f;
        bool fired;
        char *text;
        int rc;

        tmpdir_empty(dir);
        assert_int_equal(mkdir(graveyard, 0700), 0);
        assert_int_equal(mkdir(sub, 0700), 0);
        power_world_init(&p, graveyard);
        fault_world_init(&f, &p.world);
        assert_int_equal(open_and_commit(&f.world, sub, "old"), 0);
        fault_crash_at(&f, FAULT_ANY, n);
        rc = open_and_commit(&f.world, sub, big);
        fired = fault_fired(&f);
        power_fail(&p, n % 5);
        text = read_text(varve_world_posix(), sub);
        if (rc == 0)
            assert_string_equal(text, big);
        else
            assert_true(strcmp(text, "old") == 0 || strcmp(text, big) == 0);
        free(text);
        fault_world_fini(&f);
        power_world_fini(&p);
        if (!fired)
            break;
    }
    free(big);
}

/* A sync that fails once and then pretends: the commit has failed, so the old text must be what a
 * power loss leaves. */
static void a_failed_sync_is_never_a_commit(void **state)
{
    char *dir = *state, graveyard[4096], sub[4096];
    struct varve_slot_file *s;
    struct power_world p;
    char *text;

    snprintf(graveyard, sizeof(graveyard), "%s/graves", dir);
    snprintf(sub, sizeof(sub), "%s/pair", dir);
    assert_int_equal(mkdir(graveyard, 0700), 0);
    assert_int_equal(mkdir(sub, 0700), 0);
    power_world_init(&p, graveyard);
    assert_int_equal(open_and_commit(&p.world, sub, "old"), 0);
    assert_int_equal(varve_slot_file_open(&p.world, sub, "t", 1, "initial", &s, &text, NULL), 0);
    free(text);
    power_fail_sync(&p, 1);
    assert_true(varve_slot_file_commit(s, "refused", NULL) < 0);
    varve_slot_file_close(s);
    power_fail(&p, 0);
    expect_text(sub, "old");
    power_world_fini(&p);
}

static int setup(void **state)
{
    *state = tmpdir_new();
    return 0;
}

static int teardown(void **state)
{
    tmpdir_remove(*state);
    return 0;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_is_committed_is_read),
        TEST(a_torn_slot_leaves_the_other),
        TEST(two_damaged_slots_are_not_a_new_pair),
        TEST(a_newer_format_is_refused),
        TEST(a_pair_has_one_user),
        TEST(each_failing_call_leaves_the_old_text),
        TEST(each_crash_leaves_old_or_new),
        TEST(each_crash_of_the_making_leaves_a_pair_or_none),
        TEST(power_loss_leaves_old_or_new),
        TEST(a_failed_sync_is_never_a_commit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
