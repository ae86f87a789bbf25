/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The writing side of a disk in one thread: what attach makes of what it finds, boundaries, views,
 * and what is freed when.  It is long because each thing that can be found has a test of its own.
 */
#include "lib/tracker.h"

#include "lib/disk-lock.h"
#include "tests/lib/core-fixture.h"
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

#define BLOCK 4096u
#define BLKS  70u /* the last is partial */
#define SIZE  ((uint64_t)(BLKS - 1) * BLOCK + 100)

static struct core c;

static int setup(void **state)
{
    (void)state;
    core_init(&c, SIZE, BLOCK);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    core_fini(&c);
    return 0;
}

/* --- shorthands ------------------------------------------------------------------------------- */

static void write_block(uint64_t blk, int byte)
{
    core_fill(&c, blk * BLOCK, blk == BLKS - 1 ? 100 : BLOCK, byte);
}

/* The live map of the epoch has exactly these blocks; the list ends with -1. */
static void assert_live_bits(uint64_t epoch, const int *blks)
{
    struct varve_bitmap *m = core_live_bits(&c, epoch);
    uint64_t want = 0;

    for (; blks[want] >= 0; want++)
        assert_true(varve_bitmap_test(m, (uint64_t)blks[want]));
    assert_int_equal(varve_bitmap_count(m), want);
    free(m);
}

static void assert_all_dirty(uint64_t epoch)
{
    struct varve_bitmap *m = core_live_bits(&c, epoch);

    assert_int_equal(varve_bitmap_count(m), BLKS);
    free(m);
}

#define BITS(...) ((const int[]){__VA_ARGS__ __VA_OPT__(,) -1})

static char *path_of(const char *kind, uint64_t epoch)
{
    static char path[PATH_MAX + 64];

    if (strcmp(kind, "map") == 0)
        snprintf(path, sizeof(path), "%s/vda/epoch-%llu-%llu.map", c.state_dir,
                 (unsigned long long)epoch, (unsigned long long)epoch);
    else
        snprintf(path, sizeof(path), "%s/vda/epoch-%llu.%s",
                 strcmp(kind, "scratch") == 0 ? c.state_dir : c.runtime_dir,
                 (unsigned long long)epoch, kind);
    return path;
}

static bool has(const char *kind, uint64_t epoch)
{
    return core_exists(path_of(kind, epoch));
}

/* Number of files in a folder whose names end with `end`. */
static unsigned count_files(const char *dir, const char *end)
{
    char command[PATH_MAX + 100], line[32];
    FILE *p;
    unsigned n;

    snprintf(command, sizeof(command), "ls '%s/vda' | grep -c '%s$'", dir, end);
    p = popen(command, "r");
    assert_non_null(p);
    assert_non_null(fgets(line, sizeof(line), p));
    n = (unsigned)atoi(line);
    pclose(p);
    return n;
}

static struct varve_view view_at(uint64_t id, uint64_t boundary)
{
    return (struct varve_view){.id = id, .boundary = boundary};
}

/* Block blk of the view holds `byte` only. */
static void assert_view_block(const struct varve_view *v, uint64_t blk, int byte)
{
    char buf[BLOCK];
    struct varve_err err = VARVE_ERR_INIT;
    uint32_t len = blk == BLKS - 1 ? 100 : BLOCK;

    if (varve_view_read(c.source, v, buf, blk * BLOCK, len, NULL, &err) < 0)
        fail_msg("block %u: %s", (unsigned)blk, err.msg);
    for (uint32_t i = 0; i < len; i++)
        assert_int_equal((unsigned char)buf[i], byte);
}

static void assert_view_error(const struct varve_view *v, uint64_t blk, int code)
{
    char buf[BLOCK];

    assert_int_equal(varve_view_read(c.source, v, buf, blk * BLOCK, 1, NULL, NULL), code);
}

/* --- attach ----------------------------------------------------------------------------------- */

static void a_new_disk_begins_with_a_clean_epoch_1(void **state)
{
    (void)state;
    core_start(&c);
    assert_string_equal(c.notes, "");
    assert_int_equal(varve_tracker_epoch(c.t), 1);
    assert_live_bits(1, BITS());
    assert_true(has("map", 1));
    assert_string_equal(varve_tracker_identity(c.t)->image, c.image);
}

static void a_disk_of_no_bytes_works(void **state)
{
    struct varve_view v;
    uint64_t run;

    (void)state;
    core_fini(&c);
    core_init(&c, 0, BLOCK);
    core_start(&c);
    v = view_at(1, core_boundary(&c, 1));
    core_open_source(&c);
    assert_int_equal(varve_view_check(c.source, &v, NULL), 0);
    assert_int_equal(varve_view_read(c.source, &v, NULL, 0, 0, NULL, NULL), 0);
    assert_int_equal(varve_view_read(c.source, &v, &run, 0, 1, NULL, NULL), -EINVAL);
    assert_int_equal(varve_view_hole_run(c.source, &v, 0, 1, NULL, &run, NULL), -EINVAL);
    core_stop(&c);
    core_start(&c);
    core_host_crash(&c);
    core_start(&c);
    core_boundary(&c, 0);
}

static void after_a_clean_stop_the_bits_are_exact_and_the_epoch_goes_on(void **state)
{
    (void)state;
    core_start(&c);
    write_block(3, 'a');
    core_stop(&c);
    core_start(&c);
    assert_string_equal(c.notes, "");
    assert_int_equal(varve_tracker_epoch(c.t), 1);
    assert_live_bits(1, BITS(3));
    write_block(69, 'b');
    assert_live_bits(1, BITS(3, 69));
}

static void after_a_clean_stop_and_a_reboot_the_bits_are_exact(void **state)
{
    (void)state;
    core_start(&c);
    write_block(3, 'a');
    core_boundary(&c, 0);
    write_block(5, 'a');
    core_stop(&c);
    core_host_crash(&c);
    core_start(&c);
    assert_string_equal(c.notes, "");
    assert_int_equal(varve_tracker_epoch(c.t), 2);
    assert_live_bits(2, BITS(5));
}

static void after_a_kill_the_bits_are_exact(void **state)
{
    (void)state;
    core_start(&c);
    write_block(3, 'a');
    core_boundary(&c, 0);
    write_block(4, 'a');
    core_kill(&c);
    core_start(&c);
    assert_string_equal(c.notes, "");
    assert_int_equal(varve_tracker_epoch(c.t), 2);
    assert_live_bits(2, BITS(4));
}

static void a_kill_between_swap_and_seal_loses_no_bit(void **state)
{
    struct varve_bitmap *m;
    uint64_t epoch;

    (void)state;
    core_start(&c);
    write_block(3, 'a');
    assert_int_equal(varve_tracker_prepare(c.t, false, &epoch, NULL), 0);
    assert_int_equal(varve_tracker_quiesce(c.t, NULL), 0);
    assert_int_equal(varve_tracker_swap(c.t, epoch, 0, NULL), 0);
    write_block(4, 'a');
    core_kill(&c);
    core_start(&c);
    assert_live_bits(2, BITS(4));
    m = core_sealed_bits(&c, 1);
    assert_int_equal(varve_bitmap_count(m), 1);
    assert_true(varve_bitmap_test(m, 3));
    free(m);
}

static void after_a_host_crash_regions_under_way_count_as_written_and_it_says_so(void **state)
{
    (void)state;
    core_start(&c);
    core_boundary(&c, 0);
    write_block(4, 'a');
    core_host_crash(&c);
    core_start(&c);
    assert_non_null(strstr(c.notes, "went down without a clean stop"));
    assert_non_null(strstr(c.notes, "1 region (1M)"));
    assert_true(varve_tracker_epoch(c.t) >= 2);
    assert_all_dirty(varve_tracker_epoch(c.t));
}

static void a_runtime_folder_of_another_boot_is_not_believed(void **state)
{
    (void)state;
    core_start(&c);
    write_block(4, 'a');
    core_kill(&c);
    core_reboot(&c);
    core_start(&c);
    assert_all_dirty(varve_tracker_epoch(c.t));
    core_stop(&c);
    core_reboot(&c);
    core_start(&c);
    assert_all_dirty(varve_tracker_epoch(c.t));
}

static void numbers_go_on_after_a_host_crash(void **state)
{
    (void)state;
    core_start(&c);
    core_boundary(&c, 0);
    core_boundary(&c, 0);
    core_host_crash(&c);
    core_start(&c);
    assert_true(core_boundary(&c, 0) > 3);
}

/* A damaged map means doubt, and doubt means dirty blocks, not a guest without its disk. */
static void a_damaged_clean_map_makes_all_dirty_and_the_disk_starts(void **state)
{
    int fd;

    (void)state;
    core_start(&c);
    write_block(4, 'a');
    core_stop(&c);
    fd = open(path_of("map", 1), O_WRONLY);
    assert_int_equal(pwrite(fd, "?", 1, 8192), 1);
    close(fd);
    core_host_crash(&c);
    core_start(&c);
    assert_all_dirty(varve_tracker_epoch(c.t));
    assert_true(c.notes[0] != '\0');
}

static void other_granularity_is_refused_and_nothing_changes(void **state)
{
    struct varve_err err = VARVE_ERR_INIT;

    (void)state;
    core_start(&c);
    write_block(4, 'a');
    core_stop(&c);
    c.cfg.block_size = 8192;
    assert_int_equal(core_try_start(&c, &err), -EINVAL);
    assert_non_null(strstr(err.msg, "4096"));
    assert_non_null(strstr(err.msg, "8192"));
    c.cfg.block_size = 5000;
    assert_int_equal(core_try_start(&c, &err), -EINVAL);
    c.cfg.block_size = 0;
    core_start(&c);
    assert_live_bits(1, BITS(4));
}

static void other_image_or_size_is_refused(void **state)
{
    struct varve_err err = VARVE_ERR_INIT;

    (void)state;
    core_start(&c);
    core_stop(&c);
    c.cfg.image = "/another/image";
    assert_int_equal(core_try_start(&c, &err), -EINVAL);
    assert_non_null(strstr(err.msg, "/another/image"));
    assert_non_null(strstr(err.msg, c.image));
    c.cfg.image = c.image;
    c.cfg.size = SIZE + 1;
    assert_int_equal(core_try_start(&c, &err), -EINVAL);
    c.cfg.size = SIZE;
    core_start(&c);
}

static void state_of_another_format_is_refused_and_left_alone(void **state)
{
    struct varve_err err = VARVE_ERR_INIT;
    char path[PATH_MAX + 32], text[64] = "";
    int fd;

    (void)state;
    core_start(&c);
    core_stop(&c);
    snprintf(path, sizeof(path), "%s/vda/disk.json", c.state_dir);
    fd = open(path, O_RDWR | O_TRUNC);
    assert_int_equal(write(fd, "{\"format\": 2}", 13), 13);
    assert_int_equal(core_try_start(&c, &err), -ENOTSUP);
    assert_int_equal(pread(fd, text, 63, 0), 13);
    close(fd);
}

static void runtime_files_of_a_newer_layout_are_refused(void **state)
{
    struct varve_err err = VARVE_ERR_INIT;
    uint32_t layout = VARVE_CTL_LAYOUT_DONE + 1;

    (void)state;
    core_start(&c);
    write_block(4, 'a');
    core_kill(&c);
    core_poke_control(&c, offsetof(struct varve_ctl, layout), &layout, sizeof(layout));
    assert_int_equal(core_try_start(&c, &err), -ENOTSUP);
    layout = VARVE_CTL_LAYOUT;
    core_poke_control(&c, offsetof(struct varve_ctl, layout), &layout, sizeof(layout));
    core_start(&c);
    assert_live_bits(1, BITS(4));
}

static void a_disk_in_use_is_refused_naming_the_pid(void **state)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_tracker *first;
    char pid[32];

    (void)state;
    core_start(&c);
    write_block(4, 'a');
    first = c.t;
    c.t = NULL;
    assert_int_equal(core_try_start(&c, &err), -EBUSY);
    snprintf(pid, sizeof(pid), "pid %d", (int)getpid());
    assert_non_null(strstr(err.msg, pid));
    assert_non_null(strstr(err.msg, "nbdkit"));
    c.t = first;
    assert_live_bits(1, BITS(4));
    core_stop(&c);
    core_start(&c);
}

static int (*real_lock)(struct varve_world *w, int fd, bool exclusive);
static unsigned lock_tries;

static int lock_taken_at_first(struct varve_world *w, int fd, bool exclusive)
{
    return lock_tries++ == 0 ? -EAGAIN : real_lock(w, fd, exclusive);
}

/* The daemon has the lock for a moment, and has not yet written over who had it before. */
static void a_lock_whose_holder_has_no_name_yet_is_tried_again(void **state)
{
    (void)state;
    core_start(&c);
    core_stop(&c);
    real_lock = c.machine.lock;
    lock_tries = 0;
    c.machine.lock = lock_taken_at_first;
    assert_int_equal(core_try_start(&c, NULL), 0);
    assert_int_equal(lock_tries, 2);
    c.machine.lock = real_lock;
}

static void existing_only_makes_nothing(void **state)
{
    char path[PATH_MAX + 8];

    (void)state;
    c.cfg.existing_only = true;
    assert_int_equal(mkdir(c.state_dir, 0700), 0);
    assert_int_equal(core_try_start(&c, NULL), -ENOENT);
    snprintf(path, sizeof(path), "%s/vda", c.state_dir);
    assert_false(core_exists(path));
}

/* --- attach and what a dead server left ------------------------------------------------------- */

static void a_prepared_epoch_of_a_dead_server_is_given_up_and_its_number_with_it(void **state)
{
    struct varve_view v;
    uint64_t epoch;

    (void)state;
    core_start(&c);
    v = view_at(5, core_boundary(&c, 5));
    assert_int_equal(v.boundary, 2);
    write_block(4, 'a');
    assert_int_equal(varve_tracker_prepare(c.t, true, &epoch, NULL), 0);
    assert_int_equal(epoch, 3);
    core_kill(&c);
    core_start(&c);
    assert_int_equal(varve_tracker_epoch(c.t), 2);
    assert_live_bits(2, BITS(4));
    assert_false(has("map", 3) || has("live", 3) || has("lost", 3) || has("scratch", 3));
    assert_int_equal(core_boundary(&c, 0), 4);
    write_block(6, 'a');
    core_open_source(&c);
    assert_view_block(&v, 4, 0);
    assert_view_block(&v, 6, 0);
}

/*   server: opens the view in the page, dies;   the swap is never done */
static void a_view_opened_by_a_server_that_died_before_its_swap_is_none(void **state)
{
    struct varve_ctl_view_copy view = {.id = 9, .state = VARVE_VIEW_OPEN, .boundary = 2};
    struct varve_view v = view_at(9, 2);
    uint64_t epoch;

    (void)state;
    core_start(&c);
    assert_int_equal(varve_tracker_prepare(c.t, true, &epoch, NULL), 0);
    core_kill(&c);
    core_poke_control(&c, offsetof(struct varve_ctl, views), &view, sizeof(view));
    core_start(&c);
    assert_int_equal(core_boundary(&c, 0), 3);
    core_open_source(&c);
    assert_view_error(&v, 0, -ESTALE);
    assert_false(has("scratch", 3)); /* it would be, were a view open */
}

static void a_lost_live_map_makes_dirty_what_was_under_way_and_ends_the_views(void **state)
{
    struct varve_view v;

    (void)state;
    core_start(&c);
    v = view_at(5, core_boundary(&c, 5));
    core_open_source(&c);
    assert_view_block(&v, 0, 0);
    write_block(1, 'a');
    core_kill(&c);
    assert_int_equal(unlink(path_of("live", 2)), 0);
    core_start(&c);
    assert_all_dirty(varve_tracker_epoch(c.t));
    assert_view_error(&v, 0, -ESTALE);
}

static void a_lost_map_of_an_older_epoch_ends_its_views_and_spares_younger_ones(void **state)
{
    struct varve_view a, b;
    uint64_t epoch;

    (void)state;
    core_start(&c);
    a = view_at(5, core_boundary(&c, 5));
    write_block(1, 'a');
    assert_int_equal(varve_tracker_prepare(c.t, true, &epoch, NULL), 0);
    assert_int_equal(varve_tracker_quiesce(c.t, NULL), 0);
    assert_int_equal(varve_tracker_swap(c.t, epoch, 6, NULL), 0);
    b = view_at(6, epoch);
    write_block(1, 'b');
    core_kill(&c); /* epoch 2 was not sealed */
    assert_int_equal(unlink(path_of("live", 2)), 0);
    core_start(&c);
    core_open_source(&c);
    assert_view_error(&a, 1, -ESTALE);
    assert_view_block(&b, 1, 'a');
    assert_live_bits(3, BITS(1));
    /* What nobody knows any more is dirty. */
    struct varve_bitmap *m = core_sealed_bits(&c, 2);
    assert_int_equal(varve_bitmap_count(m), BLKS);
    free(m);
}

/* A shortage is no proof that anything is gone. */
static void a_passing_error_at_attach_costs_nothing(void **state)
{
    struct varve_view v;
    uint64_t epoch;

    (void)state;
    for (unsigned kind = 0; kind < FAULT_CALLS; kind++) {
        core_fini(&c);
        core_init(&c, SIZE, BLOCK);
        core_start(&c);
        v = view_at(5, core_boundary(&c, 5));
        write_block(1, 'a');
        assert_int_equal(varve_tracker_prepare(c.t, true, &epoch, NULL), 0);
        assert_int_equal(varve_tracker_quiesce(c.t, NULL), 0);
        assert_int_equal(varve_tracker_swap(c.t, epoch, 0, NULL), 0);
        write_block(2, 'b');
        core_kill(&c);
        for (uint64_t n = 1;; n++) {
            struct varve_bitmap *m;
            struct varve_err err = VARVE_ERR_INIT;
            int r;

            fault_fail_at(&c.fault, (enum fault_call)kind, n, kind == FAULT_OPEN ? EMFILE : ENOMEM);
            r = core_try_start(&c, &err);
            if (!fault_fired(&c.fault)) {
                fault_disarm(&c.fault);
                core_kill(&c);
                break;
            }
            fault_disarm(&c.fault);
            if (r == 0)
                core_kill(&c);
            else
                c.t = NULL;
            core_start(&c);
            assert_string_equal(c.notes, "");
            assert_live_bits(3, BITS(2));
            m = core_sealed_bits(&c, 2);
            assert_int_equal(varve_bitmap_count(m), 1);
            assert_true(varve_bitmap_test(m, 1));
            free(m);
            core_open_source(&c);
            assert_view_block(&v, 1, 0);
            assert_view_block(&v, 2, 0);
            core_kill(&c);
        }
    }
}

static void missing_scratch_breaks_the_view_and_only_that(void **state)
{
    struct varve_view v;

    (void)state;
    core_start(&c);
    v = view_at(5, core_boundary(&c, 5));
    write_block(1, 'a');
    core_kill(&c);
    assert_int_equal(unlink(path_of("scratch", 2)), 0);
    core_start(&c);
    assert_live_bits(2, BITS(1));
    core_open_source(&c);
    assert_view_error(&v, 1, -ESTALE);
    assert_view_error(&v, 2, -ESTALE);
}

static void a_scratch_that_is_another_file_breaks_the_view(void **state)
{
    char other[PATH_MAX + 80];
    struct varve_view v;
    int fd;

    (void)state;
    core_start(&c);
    v = view_at(5, core_boundary(&c, 5));
    write_block(1, 'a');
    core_kill(&c);
    snprintf(other, sizeof(other), "%s.other", path_of("scratch", 2));
    fd = open(other, O_RDWR | O_CREAT, 0600);
    assert_int_equal(ftruncate(fd, SIZE), 0);
    close(fd);
    assert_int_equal(rename(other, path_of("scratch", 2)), 0);
    core_start(&c);
    assert_live_bits(2, BITS(1));
    core_open_source(&c);
    assert_int_not_equal(varve_view_check(c.source, &v, NULL), 0);
    assert_view_error(&v, 1, -ESTALE);
}

/* scratch_used must not run below zero when an epoch goes that was not counted. */
static void scratch_room_is_right_after_a_broken_epoch_went(void **state)
{
    struct varve_view v;

    (void)state;
    c.cfg.scratch_max = 4 * BLOCK;
    core_start(&c);
    core_fill(&c, 0, SIZE, 'x');
    core_boundary(&c, 5);
    core_fill(&c, 0, 3 * BLOCK, 'a');
    core_kill(&c);
    assert_int_equal(unlink(path_of("scratch", 2)), 0);
    core_start(&c);
    assert_int_equal(varve_tracker_end_view(c.t, 5, NULL), 0);
    core_boundary(&c, 0); /* epoch 2 goes */
    v = view_at(6, core_boundary(&c, 6));
    core_fill(&c, 0, 4 * BLOCK, 'b');
    core_open_source(&c);
    for (uint64_t blk = 0; blk < 4; blk++)
        assert_view_block(&v, blk, blk < 3 ? 'a' : 'x');
    core_fill(&c, 4 * BLOCK, BLOCK, 'b');
    assert_view_error(&v, 4, -EIO);
}

/* The same when the server died between saying that the epoch is disarmed and uncounting it. */
static void scratch_room_is_right_after_a_kill_while_disarming(void **state)
{
    uint64_t flags = VARVE_EPOCH_ENTERED;
    struct varve_view v;

    (void)state;
    c.cfg.scratch_max = 4 * BLOCK;
    core_start(&c);
    core_fill(&c, 0, SIZE, 'x');
    core_boundary(&c, 5);
    core_fill(&c, 0, 3 * BLOCK, 'a');
    core_kill(&c);
    core_poke_control(&c, offsetof(struct varve_ctl, epochs) + 2 * sizeof(struct varve_ctl_epoch) +
                              offsetof(struct varve_ctl_epoch, flags), &flags, sizeof(flags));
    core_start(&c);
    assert_int_equal(varve_tracker_end_view(c.t, 5, NULL), 0);
    core_boundary(&c, 0);
    assert_false(has("scratch", 2));
    v = view_at(6, core_boundary(&c, 6));
    for (uint64_t blk = 0; blk < 4; blk++)
        write_block(blk, 'b');
    core_open_source(&c);
    for (uint64_t blk = 0; blk < 4; blk++)
        assert_view_block(&v, blk, blk < 3 ? 'a' : 'x');
}

static void scratch_room_comes_back_when_views_end_whatever_happens_between(void **state)
{
    (void)state;
    c.cfg.scratch_max = 8 * BLOCK;
    core_start(&c);
    core_fill(&c, 0, SIZE, 'x');
    for (uint64_t id = 1; id < 30; id++) {
        struct varve_view v = view_at(id, core_boundary(&c, id));

        core_fill(&c, 0, 8 * BLOCK, (int)id);
        core_open_source(&c);
        assert_view_block(&v, 7, id == 1 ? 'x' : (int)id - 1);
        core_fill(&c, 8 * BLOCK, BLOCK, 'x');
        assert_view_error(&v, 8, -EIO); /* no room: lost */
        if (id % 3 == 0) {
            core_kill(&c);
            core_start(&c);
        } else if (id % 3 == 1) {
            core_stop(&c);
            core_start(&c);
        }
        assert_int_equal(varve_tracker_end_view(c.t, id, NULL), 0);
    }
}

/* --- boundaries ------------------------------------------------------------------------------- */

static void epoch_numbers_are_never_used_again(void **state)
{
    uint64_t epoch, highest = 1;

    (void)state;
    core_start(&c);
    for (unsigned i = 0; i < 30; i++) {
        assert_int_equal(varve_tracker_prepare(c.t, i % 2, &epoch, NULL), 0);
        assert_true(epoch > highest);
        highest = epoch;
        switch (i % 6) {
        case 0:
            varve_tracker_abort(c.t);
            break;
        case 1:
            core_kill(&c);
            core_start(&c);
            break;
        case 2:
            assert_int_equal(varve_tracker_quiesce(c.t, NULL), 0);
            assert_int_equal(varve_tracker_swap(c.t, epoch, 0, NULL), 0);
            break;
        case 3:
            core_stop(&c);
            core_start(&c);
            break;
        case 4:
            assert_int_equal(varve_tracker_quiesce(c.t, NULL), 0);
            varve_tracker_abort(c.t);
            break;
        default:
            break; /* prepared again over it */
        }
    }
}

/* Every way a prepare can fail, with a view open: the next boundary works and the view goes on. */
static void a_failed_prepare_costs_the_views_nothing(void **state)
{
    struct varve_view v;

    (void)state;
    core_start(&c);
    v = view_at(5, core_boundary(&c, 5));
    write_block(1, 'a');
    for (uint64_t n = 1;; n++) {
        uint64_t epoch;
        int r;

        fault_fail_at(&c.fault, FAULT_ANY, n, ENOSPC);
        r = varve_tracker_prepare(c.t, true, &epoch, NULL);
        if (r == 0)
            varve_tracker_abort(c.t);
        if (!fault_fired(&c.fault))
            break;
        fault_disarm(&c.fault);
    }
    fault_disarm(&c.fault);
    core_boundary(&c, 0);
    write_block(2, 'a');
    core_open_source(&c);
    assert_view_block(&v, 1, 0);
    assert_view_block(&v, 2, 0);
}

static void boundaries_that_come_to_nothing_never_use_up_the_disk(void **state)
{
    uint64_t epoch;

    (void)state;
    core_start(&c);
    write_block(1, 'a');
    for (unsigned i = 0; i < 1100; i++) {
        assert_int_equal(varve_tracker_prepare(c.t, false, &epoch, NULL), 0);
        varve_tracker_abort(c.t);
    }
    core_kill(&c);
    core_start(&c);
    assert_live_bits(1, BITS(1));
    core_boundary(&c, 0);
    assert_live_bits(varve_tracker_epoch(c.t), BITS());
}

static void too_many_boundaries_over_one_view_are_refused_in_clear_words(void **state)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_view v;
    uint64_t epoch;
    unsigned made = 0;
    int r;

    (void)state;
    core_start(&c);
    v = view_at(5, core_boundary(&c, 5));
    while ((r = varve_tracker_prepare(c.t, false, &epoch, &err)) == 0) {
        assert_true(++made < 1100);
        assert_int_equal(varve_tracker_quiesce(c.t, NULL), 0);
        assert_int_equal(varve_tracker_swap(c.t, epoch, 0, NULL), 0);
        if (made % 100 == 7)
            write_block(made / 100, 'a');
        if (made % 50 == 0)
            assert_int_equal(varve_tracker_seal(c.t, NULL), 0);
    }
    assert_int_equal(r, -ENOSPC);
    assert_int_equal(made, VARVE_CTL_EPOCHS - 1);
    assert_non_null(strstr(err.msg, "end that backup first"));
    core_open_source(&c);
    assert_view_block(&v, 3, 0);
    assert_int_equal(varve_tracker_seal(c.t, NULL), 0);
    assert_int_equal(varve_tracker_end_view(c.t, 5, NULL), 0);
    core_boundary(&c, 0);
    assert_int_equal(count_files(c.runtime_dir, "live"), 1);
    assert_int_equal(count_files(c.state_dir, "scratch"), 0);
}

static void a_full_table_of_views_is_refused_and_the_disk_goes_on(void **state)
{
    struct varve_err err = VARVE_ERR_INIT;
    uint64_t epoch;

    (void)state;
    core_start(&c);
    for (uint64_t id = 1; id <= VARVE_CTL_VIEWS; id++)
        core_boundary(&c, id);
    assert_int_equal(varve_tracker_prepare(c.t, true, &epoch, NULL), 0);
    assert_int_equal(varve_tracker_quiesce(c.t, NULL), 0);
    assert_int_equal(varve_tracker_swap(c.t, epoch, 100, &err), -ENOSPC);
    assert_non_null(strstr(err.msg, "64 backups"));
    varve_tracker_abort(c.t);
    write_block(1, 'a');
    assert_int_equal(varve_tracker_end_view(c.t, 17, NULL), 0);
    core_boundary(&c, 100);
}

static void a_quiesce_over_a_closed_gate_is_refused_so_that_no_freeze_is_prolonged(void **state)
{
    uint64_t epoch;

    (void)state;
    core_start(&c);
    assert_int_equal(varve_tracker_prepare(c.t, false, &epoch, NULL), 0);
    assert_int_equal(varve_tracker_quiesce(c.t, NULL), 0);
    assert_true(varve_tracker_quiesce(c.t, NULL) < 0);
    assert_int_equal(varve_tracker_swap(c.t, epoch, 0, NULL), 0);
}

static void swap_without_quiesce_or_prepare_is_refused(void **state)
{
    uint64_t epoch;

    (void)state;
    core_start(&c);
    assert_true(varve_tracker_quiesce(c.t, NULL) < 0);
    assert_true(varve_tracker_swap(c.t, 2, 0, NULL) < 0);
    assert_int_equal(varve_tracker_prepare(c.t, false, &epoch, NULL), 0);
    assert_int_equal(varve_tracker_swap(c.t, epoch, 0, NULL), -ETIMEDOUT);
    assert_int_equal(varve_tracker_swap(c.t, epoch + 1, 0, NULL), -EINVAL);
    assert_int_equal(varve_tracker_quiesce(c.t, NULL), 0);
    assert_int_equal(varve_tracker_swap(c.t, epoch, 3, NULL), -EINVAL); /* not armed */
    assert_int_equal(varve_tracker_swap(c.t, epoch, 0, NULL), 0);
    varve_tracker_abort(c.t);
    assert_int_equal(varve_tracker_epoch(c.t), epoch);
}

/*   control                      writer
 *   prepare, quiesce (20 ms)
 *                                begin: waits, lets itself in: in epoch 1
 *   swap with a view: refused, no view is left */
static void a_late_swap_opens_no_view(void **state)
{
    struct varve_view v;
    uint64_t epoch;

    (void)state;
    c.cfg.freeze_timeout_ms = 20;
    core_start(&c);
    assert_int_equal(varve_tracker_prepare(c.t, true, &epoch, NULL), 0);
    assert_int_equal(varve_tracker_quiesce(c.t, NULL), 0);
    write_block(1, 'a');
    assert_int_equal(varve_tracker_swap(c.t, epoch, 5, NULL), -ETIMEDOUT);
    v = view_at(5, epoch);
    assert_live_bits(1, BITS(1));
    varve_tracker_abort(c.t);
    core_boundary(&c, 0);
    core_open_source(&c);
    assert_view_error(&v, 1, -ESTALE);
    assert_false(has("scratch", varve_tracker_epoch(c.t)));
}

static void a_torn_seal_is_done_again(void **state)
{
    struct varve_bitmap *m;
    uint64_t epoch;

    (void)state;
    core_start(&c);
    write_block(1, 'a');
    for (uint64_t n = 1;; n++) {
        bool fired;

        assert_int_equal(varve_tracker_prepare(c.t, false, &epoch, NULL), 0);
        assert_int_equal(varve_tracker_quiesce(c.t, NULL), 0);
        assert_int_equal(varve_tracker_swap(c.t, epoch, 0, NULL), 0);
        write_block(n % BLKS, 'b');
        fault_fail_at(&c.fault, FAULT_ANY, n, EIO);
        varve_tracker_seal(c.t, NULL);
        fired = fault_fired(&c.fault);
        fault_disarm(&c.fault);
        assert_int_equal(varve_tracker_seal(c.t, NULL), 0);
        m = core_sealed_bits(&c, epoch - 1);
        assert_int_equal(varve_bitmap_count(m), 1);
        assert_true(varve_bitmap_test(m, n == 1 ? 1 : n - 1));
        free(m);
        if (!fired)
            break;
    }
}

/* --- what is freed when ----------------------------------------------------------------------- */

static void ending_a_view_frees_what_no_other_needs(void **state)
{
    struct varve_view b;

    (void)state;
    core_start(&c);
    core_boundary(&c, 10);         /* 2 */
    core_boundary(&c, 0);          /* 3: armed, as 10 is open */
    b = view_at(11, core_boundary(&c, 11)); /* 4 */
    core_boundary(&c, 0);          /* 5 */
    for (uint64_t e = 2; e <= 5; e++)
        assert_true(has("live", e) && has("lost", e) && has("scratch", e));
    assert_false(has("live", 1));
    write_block(1, 'a');
    core_open_source(&c);
    assert_int_equal(varve_tracker_end_view(c.t, 10, NULL), 0);
    for (uint64_t e = 2; e <= 3; e++)
        assert_false(has("live", e) || has("lost", e) || has("scratch", e));
    for (uint64_t e = 4; e <= 5; e++)
        assert_true(has("live", e) && has("lost", e) && has("scratch", e));
    assert_view_block(&b, 1, 0);
    assert_int_equal(varve_tracker_end_view(c.t, 10, NULL), 0); /* again, and unknown ones */
    assert_int_equal(varve_tracker_end_view(c.t, 12, NULL), 0);
    assert_int_equal(varve_tracker_end_view(c.t, 11, NULL), 0);
    assert_false(has("live", 4) || has("scratch", 4) || has("scratch", 5));
    assert_true(has("live", 5));
    assert_view_error(&b, 1, -ESTALE);
    for (uint64_t e = 1; e <= 5; e++)
        assert_true(has("map", e));
}

static void epochs_of_no_view_preserve_nothing(void **state)
{
    (void)state;
    core_start(&c);
    core_boundary(&c, 5);
    assert_int_equal(varve_tracker_end_view(c.t, 5, NULL), 0);
    write_block(1, 'a');
    write_block(1, 'b');
    core_boundary(&c, 0);
    assert_false(has("scratch", 3));
    assert_int_equal(count_files(c.state_dir, "scratch"), 0);
}

static void what_a_dead_server_said_had_ended_is_freed_by_the_next(void **state)
{
    uint64_t ended = VARVE_VIEW_ENDED;

    (void)state;
    core_start(&c);
    core_boundary(&c, 5);
    write_block(1, 'a');
    core_boundary(&c, 0);
    core_kill(&c);
    core_poke_control(&c, offsetof(struct varve_ctl, views) +
                              offsetof(struct varve_ctl_view, state), &ended, sizeof(ended));
    core_start(&c);
    assert_false(has("scratch", 2) || has("scratch", 3) || has("live", 2));
}

/* --- durability of a clean stop --------------------------------------------------------------- */

/* Blocks that a backup has pulled from the page cache must not be believed clean in the epoch that
 * follows, if they have not reached the disk: the image is synced before the clean mark. */
static void a_clean_mark_is_written_only_over_a_synced_image(void **state)
{
    struct varve_err err = VARVE_ERR_INIT;

    (void)state;
    core_start(&c);
    write_block(1, 'a');
    core_boundary(&c, 0);
    c.image_sync_fails = true;
    assert_true(varve_tracker_detach(c.t, &err) < 0);
    assert_non_null(strstr(err.msg, "image"));
    c.t = NULL;
    core_host_crash(&c);
    core_start(&c);
    assert_all_dirty(varve_tracker_epoch(c.t));
}

/* The daemon's moment on a disk whose server was killed: it cannot sync the image. */
static void a_server_without_the_image_never_marks_clean_what_it_found_open(void **state)
{
    int image_fd = c.image_fd;

    (void)state;
    core_start(&c);
    write_block(1, 'a');
    core_kill(&c);
    c.cfg.image_fd = -1;
    core_start(&c);
    core_boundary(&c, 0);
    core_stop(&c);
    core_host_crash(&c);
    c.cfg.image_fd = image_fd;
    core_start(&c);
    assert_all_dirty(varve_tracker_epoch(c.t));

    /* But one that was clean stays clean. */
    core_boundary(&c, 0);
    core_stop(&c);
    c.cfg.image_fd = -1;
    core_start(&c);
    core_boundary(&c, 0);
    core_stop(&c);
    core_host_crash(&c);
    c.cfg.image_fd = image_fd;
    core_start(&c);
    assert_live_bits(varve_tracker_epoch(c.t), BITS());
}

/* --- pieces ----------------------------------------------------------------------------------- */

static void pieces_end_at_multiples_of_their_greatest_length(void **state)
{
    (void)state;
    assert_int_equal(varve_piece_len(0, 5), 5);
    assert_int_equal(varve_piece_len(0, 1 << 20), 1 << 20);
    assert_int_equal(varve_piece_len(0, (1 << 20) + 1), 1 << 20);
    assert_int_equal(varve_piece_len((1 << 20) - 1, 2), 1);
    assert_int_equal(varve_piece_len(5, UINT64_MAX - 5), (1 << 20) - 5);
    assert_int_equal(varve_piece_len((uint64_t)INT64_MAX, 1), 1);
}

static void a_piece_dirties_exactly_the_blocks_it_touches(void **state)
{
    (void)state;
    core_start(&c);
    core_fill(&c, 10 * BLOCK - 1, 2, 'a');
    core_fill(&c, 20 * BLOCK, BLOCK, 'a');
    core_fill(&c, 30 * BLOCK + 5, 1, 'a');
    core_fill(&c, SIZE - 1, 1, 'a');
    core_punch(&c, 40 * BLOCK, 2 * BLOCK);
    core_fill(&c, 50 * BLOCK, 0, 'a');
    assert_live_bits(1, BITS(9, 10, 20, 30, 69, 40, 41));
}

int main(void)
{
#define TRACKER_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TRACKER_TEST(a_new_disk_begins_with_a_clean_epoch_1),
        TRACKER_TEST(a_disk_of_no_bytes_works),
        TRACKER_TEST(after_a_clean_stop_the_bits_are_exact_and_the_epoch_goes_on),
        TRACKER_TEST(after_a_clean_stop_and_a_reboot_the_bits_are_exact),
        TRACKER_TEST(after_a_kill_the_bits_are_exact),
        TRACKER_TEST(a_kill_between_swap_and_seal_loses_no_bit),
        TRACKER_TEST(after_a_host_crash_regions_under_way_count_as_written_and_it_says_so),
        TRACKER_TEST(a_runtime_folder_of_another_boot_is_not_believed),
        TRACKER_TEST(numbers_go_on_after_a_host_crash),
        TRACKER_TEST(a_damaged_clean_map_makes_all_dirty_and_the_disk_starts),
        TRACKER_TEST(other_granularity_is_refused_and_nothing_changes),
        TRACKER_TEST(other_image_or_size_is_refused),
        TRACKER_TEST(state_of_another_format_is_refused_and_left_alone),
        TRACKER_TEST(runtime_files_of_a_newer_layout_are_refused),
        TRACKER_TEST(a_disk_in_use_is_refused_naming_the_pid),
        TRACKER_TEST(a_lock_whose_holder_has_no_name_yet_is_tried_again),
        TRACKER_TEST(existing_only_makes_nothing),
        TRACKER_TEST(a_prepared_epoch_of_a_dead_server_is_given_up_and_its_number_with_it),
        TRACKER_TEST(a_view_opened_by_a_server_that_died_before_its_swap_is_none),
        TRACKER_TEST(a_lost_live_map_makes_dirty_what_was_under_way_and_ends_the_views),
        TRACKER_TEST(a_lost_map_of_an_older_epoch_ends_its_views_and_spares_younger_ones),
        TRACKER_TEST(a_passing_error_at_attach_costs_nothing),
        TRACKER_TEST(missing_scratch_breaks_the_view_and_only_that),
        TRACKER_TEST(a_scratch_that_is_another_file_breaks_the_view),
        TRACKER_TEST(scratch_room_is_right_after_a_broken_epoch_went),
        TRACKER_TEST(scratch_room_is_right_after_a_kill_while_disarming),
        TRACKER_TEST(scratch_room_comes_back_when_views_end_whatever_happens_between),
        TRACKER_TEST(epoch_numbers_are_never_used_again),
        TRACKER_TEST(a_failed_prepare_costs_the_views_nothing),
        TRACKER_TEST(boundaries_that_come_to_nothing_never_use_up_the_disk),
        TRACKER_TEST(too_many_boundaries_over_one_view_are_refused_in_clear_words),
        TRACKER_TEST(a_full_table_of_views_is_refused_and_the_disk_goes_on),
        TRACKER_TEST(a_quiesce_over_a_closed_gate_is_refused_so_that_no_freeze_is_prolonged),
        TRACKER_TEST(swap_without_quiesce_or_prepare_is_refused),
        TRACKER_TEST(a_late_swap_opens_no_view),
        TRACKER_TEST(a_torn_seal_is_done_again),
        TRACKER_TEST(ending_a_view_frees_what_no_other_needs),
        TRACKER_TEST(epochs_of_no_view_preserve_nothing),
        TRACKER_TEST(what_a_dead_server_said_had_ended_is_freed_by_the_next),
        TRACKER_TEST(a_clean_mark_is_written_only_over_a_synced_image),
        TRACKER_TEST(a_server_without_the_image_never_marks_clean_what_it_found_open),
        TRACKER_TEST(pieces_end_at_multiples_of_their_greatest_length),
        TRACKER_TEST(a_piece_dirties_exactly_the_blocks_it_touches),
    };

    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
