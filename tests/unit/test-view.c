/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The reading side: what a view returns is the disk at its boundary or an error (I10).  Races are
 * forced by a callback that runs in the reader, before one chosen call that it makes of the world.
 * It is long because each of them has a test of its own.
 */
#include "lib/view.h"

#include "lib/tracker.h"
#include "tests/lib/core-fixture.h"

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
#define BLKS  40u /* the last is partial */
#define SIZE  ((uint64_t)(BLKS - 1) * BLOCK + 100)

static struct core c;
static struct varve_view v; /* opened by begin(), id 5 */
static uint64_t next_id;
static bool raced; /* the race that was armed has happened */

static int setup(void **state)
{
    (void)state;
    core_init(&c, SIZE, BLOCK);
    next_id = 5;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    core_fini(&c);
    return 0;
}

/* --- shorthands ------------------------------------------------------------------------------- */

/* A disk full of 'x', and v open with a reader. */
static void begin(void)
{
    core_start(&c);
    core_fill(&c, 0, c.g.size, 'x');
    v = (struct varve_view){.id = next_id, .boundary = core_boundary(&c, next_id)};
    next_id++;
    core_open_source(&c);
}

static void write_block(uint64_t blk, int byte)
{
    uint64_t off = blk * BLOCK;

    core_fill(&c, off, varve_block_end(&c.g, blk) - off, byte);
}

static int read_block(uint64_t blk, char *buf)
{
    uint64_t off = blk * BLOCK;

    memset(buf, '?', BLOCK);
    return varve_view_read(c.source, &v, buf, off, (uint32_t)(varve_block_end(&c.g, blk) - off),
                           NULL, NULL);
}

static void assert_block(uint64_t blk, int byte)
{
    uint64_t len = varve_block_end(&c.g, blk) - blk * BLOCK;
    char buf[BLOCK];

    assert_int_equal(read_block(blk, buf), 0);
    for (uint64_t i = 0; i < len; i++)
        assert_int_equal((unsigned char)buf[i], byte);
}

static int read_block_now(uint64_t blk, char *buf)
{
    uint64_t off = blk * BLOCK;

    return varve_view_read_now(c.source, &v, buf, off,
                               (uint32_t)(varve_block_end(&c.g, blk) - off));
}

static void race_at_each_call_of(int (*read)(uint64_t blk, char *buf), void (*prepare)(void),
                                 void (*race)(void *arg), bool may_fail, int later)
{
    for (uint64_t n = 1;; n++) {
        char buf[BLOCK];
        bool fired;
        int r;

        core_fini(&c);
        core_init(&c, SIZE, BLOCK);
        prepare();
        raced = false;
        fault_gate_at(&c.fault, FAULT_ANY, n, race, NULL);
        r = read(3, buf);
        fired = raced;
        fault_disarm(&c.fault);
        if (r == 0) {
            for (unsigned i = 0; i < BLOCK; i++)
                assert_int_equal(buf[i], 'x');
        } else {
            assert_true(may_fail);
            assert_true(r == -ESTALE || r == -EAGAIN || r == -EIO);
        }
        if (!fired) {
            assert_true(n > 4); /* it did look */
            break;
        }
        assert_int_equal(read_block(3, buf), later);
        if (later == 0)
            assert_int_equal(buf[17], 'x');
    }
}

/* Before every call that a reader can make, each in a run of its own, `race` happens.  What comes
 * out must be 'x' or one of the errors; `later` is what the next read gives.  `prepare` makes a
 * fresh disk for each run.  The same for a reader that does not wait: it may say "again" at any
 * time. */
static void race_at_each_call(void (*prepare)(void), void (*race)(void *arg), bool may_fail,
                              int later)
{
    race_at_each_call_of(read_block, prepare, race, may_fail, later);
    race_at_each_call_of(read_block_now, prepare, race, true, later);
}

/* --- what stands in a view -------------------------------------------------------------------- */

static void check_views_of_block_size(uint64_t size, uint64_t block_size)
{
    enum { VIEWS = 4 };
    char *copies[VIEWS], *buf = malloc(size), *now = malloc(1 << 20);
    struct varve_view views[VIEWS];
    uint64_t x = size + block_size;
    unsigned again = 0;

    core_fini(&c);
    core_init(&c, size, block_size);
    core_start(&c);
    for (unsigned i = 0; i < VIEWS; i++) {
        copies[i] = malloc(size);
        core_read_image(&c, 0, copies[i], size);
        views[i] = (struct varve_view){.id = i + 1, .boundary = core_boundary(&c, i + 1)};
        for (unsigned j = 0; j < 6; j++) {
            uint64_t off, len;

            x = x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
            off = (x >> 33) % size;
            len = (x >> 17) % (size - off) % (3 * block_size) + 1;
            if (j == 3)
                core_punch(&c, off, len);
            else
                core_fill(&c, off, len, (int)('A' + i * 6 + j));
        }
        core_fill(&c, size - 1, 1, (int)('1' + i)); /* always the last, partial block */
    }
    core_open_source(&c);
    for (unsigned i = 0; i < VIEWS; i++) {
        struct varve_image_run seen = {0};

        for (unsigned way = 0; way < 3; way++) {
            uint64_t step = way == 0 ? 1 << 20 : way == 1 ? 12345 : 65536 + 512;

            memset(buf, '?', size);
            for (uint64_t off = 0; off < size; off += step) {
                uint64_t len = size - off < step ? size - off : step;

                assert_int_equal(
                    varve_view_read(c.source, &views[i], buf + off, off, (uint32_t)len, NULL, NULL),
                    0);
                if (varve_view_read_now(c.source, &views[i], now, off, (uint32_t)len) == 0)
                    assert_memory_equal(now, buf + off, len);
                else
                    again++;
            }
            if (memcmp(buf, copies[i], size) != 0)
                fail_msg("view %u of size %llu, block size %llu differs", i,
                         (unsigned long long)size, (unsigned long long)block_size);
        }
        /* What is said to be a hole must have been zeroes; with what is not it fills the disk. */
        for (uint64_t off = 0, run; off < size; off += run) {
            int hole = varve_view_hole_run(c.source, &views[i], off, UINT64_MAX, &seen, &run, NULL);

            assert_true(hole >= 0 && run > 0 && run <= size - off);
            assert_true((off + run) % block_size == 0 || off + run == size);
            for (uint64_t at = off; hole && at < off + run; at++)
                assert_int_equal(copies[i][at], 0);
        }
    }
    for (unsigned i = 0; i < VIEWS; i++)
        free(copies[i]);
    free(now);
    free(buf);
    assert_true(again < 3 * VIEWS); /* what was just written is in memory */
}

static void views_keep_their_content_at_every_block_size_and_odd_sizes(void **state)
{
    static const uint64_t sizes[] = {1, 511, 4096, 4097, 65536 * 3 - 1, (3 << 20) + 513};
    static const uint64_t blocks[] = {4096, 65536, 1 << 20};

    (void)state;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        for (size_t j = 0; j < sizeof(blocks) / sizeof(blocks[0]); j++)
            check_views_of_block_size(sizes[i], blocks[j]);
    }
}

static void views_of_three_instants_each_see_theirs(void **state)
{
    struct varve_view at[3];

    (void)state;
    begin();
    at[0] = v;
    write_block(1, 'a');
    write_block(2, 'a');
    at[1] = (struct varve_view){.id = 6, .boundary = core_boundary(&c, 6)};
    write_block(2, 'b');
    write_block(3, 'b');
    at[2] = (struct varve_view){.id = 7, .boundary = core_boundary(&c, 7)};
    write_block(3, 'c');
    write_block(3, 'd');
    core_fetch(&c);
    for (unsigned i = 0; i < 3; i++) {
        v = at[i];
        assert_block(0, 'x');
        assert_block(1, i == 0 ? 'x' : 'a');
        assert_block(2, i == 0 ? 'x' : i == 1 ? 'a' : 'b');
        assert_block(3, i < 2 ? 'x' : 'b');
    }
    assert_int_equal(varve_tracker_end_view(c.t, 5, NULL), 0);
    v = at[1];
    assert_block(2, 'a');
    assert_int_equal(varve_tracker_end_view(c.t, 7, NULL), 0);
    assert_block(3, 'x');
    v = at[2];
    assert_int_equal(varve_view_check(c.source, &v, NULL), -ESTALE);
}

static void ranges_outside_of_the_disk_are_refused(void **state)
{
    static char buf[(1 << 20) + 1];

    (void)state;
    begin();
    assert_int_equal(varve_view_read(c.source, &v, buf, SIZE, 1, NULL, NULL), -EINVAL);
    assert_int_equal(varve_view_read(c.source, &v, buf, SIZE - 1, 2, NULL, NULL), -EINVAL);
    assert_int_equal(varve_view_read(c.source, &v, buf, UINT64_MAX, 2, NULL, NULL), -EINVAL);
    assert_int_equal(varve_view_read(c.source, &v, buf, 0, (1 << 20) + 1, NULL, NULL), -EINVAL);
    assert_int_equal(varve_view_read(c.source, &v, buf, SIZE, 0, NULL, NULL), 0);
    assert_int_equal(varve_view_read(c.source, &v, buf, SIZE - 1, 1, NULL, NULL), 0);
    assert_int_equal(buf[0], 'x');
}

/* --- races ------------------------------------------------------------------------------------ */

static void prepare_fresh(void)
{
    begin();
}

static void prepare_overwritten(void)
{
    begin();
    write_block(3, 'a');
}

static void race_overwrite(void *arg)
{
    (void)arg;
    fault_disarm(&c.fault); /* the race's own calls are not counted */
    write_block(3, 'b');
    raced = true;
}

/*   reader                       writer
 *   any call (image, page, map, scratch)
 *                                copies block 3, sets its bit, overwrites it
 *   the next ones
 *   reads 'x' */
static void a_block_overwritten_at_any_moment_of_a_read_is_read_as_it_was(void **state)
{
    (void)state;
    race_at_each_call(prepare_fresh, race_overwrite, false, 0);
    race_at_each_call(prepare_overwritten, race_overwrite, false, 0);
}

static void race_boundary_and_overwrite(void *arg)
{
    race_overwrite(arg);
    core_boundary(&c, 0);
    write_block(3, 'c');
    write_block(2, 'c');
    raced = true;
}

/* The reader does not have the new epoch's files: it is told to fetch them, or proved its data
 * before. */
static void a_boundary_at_any_moment_of_a_read_asks_for_the_new_files(void **state)
{
    (void)state;
    race_at_each_call(prepare_fresh, race_boundary_and_overwrite, true, -EAGAIN);
    race_at_each_call(prepare_overwritten, race_boundary_and_overwrite, true, -EAGAIN);
    core_fetch(&c);
    write_block(3, 'd');
    assert_block(3, 'x');
}

static void race_end_view(void *arg)
{
    (void)arg;
    fault_disarm(&c.fault);
    assert_int_equal(varve_tracker_end_view(c.t, v.id, NULL), 0);
    write_block(3, 'e');
    raced = true;
}

/*   reader                       control
 *   reads the scratch or is about to
 *                                ends the view, empties the scratch; block 3 is overwritten
 *   looks: an error, unless it had looked after it had its data */
static void a_view_that_ends_at_any_moment_of_a_read_gives_its_bytes_or_an_error(void **state)
{
    (void)state;
    race_at_each_call(prepare_fresh, race_end_view, true, -ESTALE);
    race_at_each_call(prepare_overwritten, race_end_view, true, -ESTALE);
}

static void race_break(void *arg)
{
    uint64_t flags = VARVE_EPOCH_ENTERED | VARVE_EPOCH_ARMED | VARVE_EPOCH_BROKEN;
    char path[PATH_MAX + 64];
    char junk[BLOCK];
    int fd;

    (void)arg;
    fault_disarm(&c.fault);
    core_poke_control(&c,
                      offsetof(struct varve_ctl, epochs) +
                          v.boundary * sizeof(struct varve_ctl_epoch) +
                          offsetof(struct varve_ctl_epoch, flags),
                      &flags, sizeof(flags));
    /* From here on the scratch may hold anything. */
    snprintf(path, sizeof(path), "%s/vda/epoch-%llu.scratch", c.state_dir,
             (unsigned long long)v.boundary);
    memset(junk, '!', sizeof(junk));
    fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, junk, sizeof(junk), 3 * BLOCK), BLOCK);
    close(fd);
    raced = true;
}

static void an_epoch_that_breaks_at_any_moment_of_a_read_gives_no_wrong_byte(void **state)
{
    (void)state;
    race_at_each_call(prepare_fresh, race_break, true, -ESTALE);
    race_at_each_call(prepare_overwritten, race_break, true, -ESTALE);
}

static void race_kill_and_restart(void *arg)
{
    (void)arg;
    fault_disarm(&c.fault);
    core_kill(&c);
    core_start(&c);
    write_block(3, 'k');
    raced = true;
}

static void a_server_that_dies_and_comes_back_during_a_read_is_not_noticed(void **state)
{
    (void)state;
    race_at_each_call(prepare_fresh, race_kill_and_restart, false, 0);
    race_at_each_call(prepare_overwritten, race_kill_and_restart, false, 0);
}

static void race_rebuild(void *arg)
{
    (void)arg;
    fault_disarm(&c.fault);
    core_host_crash(&c);
    core_start(&c);
    write_block(3, 'k');
    raced = true;
}

static void a_runtime_folder_that_is_replaced_during_a_read_gives_no_wrong_byte(void **state)
{
    (void)state;
    race_at_each_call(prepare_fresh, race_rebuild, true, -ESTALE);
    race_at_each_call(prepare_overwritten, race_rebuild, true, -ESTALE);
}

/* --- looks in between ---------------------------------------------------------------------------
 */

static bool may_end;

static void look(void *arg)
{
    char buf[BLOCK];
    int r;

    (void)arg;
    fault_disarm(&c.fault);
    r = read_block(3, buf);
    raced = true;
    if (may_end && r == -ESTALE)
        return;
    assert_int_equal(r, 0);
    for (unsigned i = 0; i < BLOCK; i++)
        assert_int_equal(buf[i], 'x');
}

/* Before every call that a server makes in `action`, a reader reads block 3. */
static void look_at_each_call_of(void (*action)(void), bool overwritten, bool ends)
{
    raced = true;
    may_end = ends;
    for (uint64_t n = 1; raced; n++) {
        core_fini(&c);
        core_init(&c, SIZE, BLOCK);
        begin();
        if (overwritten)
            write_block(3, 'a');
        raced = false;
        fault_gate_at(&c.fault, FAULT_ANY, n, look, NULL);
        action();
        fault_disarm(&c.fault);
        assert_true(raced || n > 1);
    }
}

static void write_3(void)
{
    core_fill(&c, 2 * BLOCK + 5, 2 * BLOCK, 'w');
}

static void punch_3(void)
{
    core_punch(&c, 3 * BLOCK, BLOCK);
}

static void end(void)
{
    assert_int_equal(varve_tracker_end_view(c.t, v.id, NULL), 0);
}

/*   writer                       reader
 *   any call on the way to overwriting block 3
 *                                reads 'x' */
static void a_look_at_any_moment_of_a_write_sees_the_old_bytes(void **state)
{
    (void)state;
    look_at_each_call_of(write_3, false, false);
    look_at_each_call_of(write_3, true, false);
    look_at_each_call_of(punch_3, false, false);
}

/*   control                      reader
 *   ends the view: any call of it (freeing the scratch among them)
 *                                reads 'x', or is told that the view has ended */
static void a_look_at_any_moment_of_a_views_end_sees_the_old_bytes_or_the_end(void **state)
{
    (void)state;
    look_at_each_call_of(end, true, true);
}

/*   server                       reader
 *   starts again after a kill: any call of its attach
 *                                reads 'x' */
static void a_look_at_any_moment_of_a_restart_sees_the_old_bytes(void **state)
{
    (void)state;
    raced = true;
    may_end = false;
    for (uint64_t n = 1; raced; n++) {
        core_fini(&c);
        core_init(&c, SIZE, BLOCK);
        begin();
        write_block(3, 'a');
        core_kill(&c);
        raced = false;
        fault_gate_at(&c.fault, FAULT_ANY, n, look, NULL);
        core_start(&c);
        fault_disarm(&c.fault);
    }
}

/* --- what is missing -------------------------------------------------------------------------- */

static void reopen_after_bad_scratch(void)
{
    fault_disarm(&c.fault);
    core_close_source(&c);
    core_open_source(&c);
}

static void every_failing_call_of_a_reader_is_an_error_or_costs_nothing(void **state)
{
    char buf[BLOCK];

    (void)state;
    begin();
    write_block(3, 'a');
    for (uint64_t n = 1;; n++) {
        int r;

        fault_fail_at(&c.fault, FAULT_ANY, n, EIO);
        r = read_block(3, buf);
        if (!fault_fired(&c.fault))
            break;
        for (unsigned i = 0; r == 0 && i < BLOCK; i++)
            assert_int_equal(buf[i], 'x');
        if (r == -ESTALE) /* the scratch could not be written back: that is for good, for this reader */
            reopen_after_bad_scratch();
        else
            assert_true(r == 0 || r == -EIO);
        fault_disarm(&c.fault);
        assert_block(3, 'x');
    }
    fault_disarm(&c.fault);
}

static ssize_t (*sound_pread)(struct varve_world *w, int fd, void *buf, size_t len, uint64_t off);
static uint64_t bad_page; /* reads of its last byte fail */

static ssize_t pread_of_a_bad_page(struct varve_world *w, int fd, void *buf, size_t len,
                                   uint64_t off)
{
    if (off <= bad_page + 4095 && off + len > bad_page + 4095 && lseek(fd, 0, SEEK_END) == SIZE)
        return -EIO;
    return sound_pread(w, fd, buf, len, off);
}

static void a_failing_disk_is_told_by_the_page_that_fails(void **state)
{
    char buf[6 * BLOCK];
    uint64_t at = 0;
    int r;

    (void)state;
    begin();
    bad_page = 4 * BLOCK;
    sound_pread = c.w->pread_quiet;
    c.w->pread_quiet = pread_of_a_bad_page;
    r = varve_view_read(c.source, &v, buf, 7, 6 * BLOCK - 7, &at, NULL);
    c.w->pread_quiet = sound_pread;
    assert_int_equal(r, -EIO);
    assert_int_equal(at, 4 * BLOCK);
}

static void a_page_that_was_removed_is_stale(void **state)
{
    char path[PATH_MAX + 16];

    (void)state;
    begin();
    snprintf(path, sizeof(path), "%s/vda/control", c.runtime_dir);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(varve_view_check(c.source, &v, NULL), -ESTALE);
    assert_int_equal(read_block(3, (char[BLOCK]){0}), -ESTALE);
}

static void maps_pages_and_scratch_that_are_cut_short_are_errors_and_no_signals(void **state)
{
    static const char *const files[] = {"run/vda/epoch-2.live", "run/vda/epoch-2.lost",
                                        "state/vda/epoch-2.scratch", "image", "run/vda/control"};

    (void)state;
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        char path[PATH_MAX + 64];

        core_fini(&c);
        core_init(&c, SIZE, BLOCK);
        begin();
        write_block(3, 'a');
        assert_block(3, 'x');
        snprintf(path, sizeof(path), "%s/%s", c.top, files[i]);
        if (i == 4) {
            /* The server's own page: it has to be gone before we may cut it. */
            core_stop(&c);
        }
        assert_int_equal(truncate(path, 0), 0);
        assert_int_equal(read_block(3, (char[BLOCK]){0}), -EIO);
        if (i < 2)
            assert_int_equal(truncate(path, 8), 0);
    }
}

static void an_epoch_whose_files_are_not_at_hand_says_again(void **state)
{
    (void)state;
    begin();
    core_boundary(&c, 0);
    assert_int_equal(read_block(3, (char[BLOCK]){0}), -EAGAIN);
    core_fetch(&c);
    assert_block(3, 'x');
    varve_source_drop_before(c.source, 3);
    assert_int_equal(read_block(3, (char[BLOCK]){0}), -EAGAIN);
}

static void a_source_of_another_disk_is_refused(void **state)
{
    struct varve_source *s;
    uint8_t uuid[16];
    int ctl_fd;

    (void)state;
    begin();
    memcpy(uuid, varve_tracker_identity(c.t)->uuid, 16);
    uuid[7] ^= 1;
    ctl_fd = varve_tracker_open_control(c.t, NULL);
    assert_int_equal(varve_source_new(c.w, &c.g, uuid, ctl_fd, open(c.image, O_RDONLY), &s, NULL),
                     -EUCLEAN);
}

/* --- lost blocks ------------------------------------------------------------------------------ */

static void lost_blocks_give_an_error_with_their_offset_and_others_are_read(void **state)
{
    struct varve_err err = VARVE_ERR_INIT;
    char buf[6 * BLOCK];
    struct varve_bitmap *lost;
    uint64_t at, scratch_bytes, lost_bytes;

    (void)state;
    begin();
    write_block(2, 'a');
    fault_fail_at(&c.fault, FAULT_PWRITE, 1, ENOSPC);
    write_block(3, 'a');
    fault_fail_at(&c.fault, FAULT_PREAD, 1, EIO);
    write_block(5, 'a');
    fault_disarm(&c.fault);
    write_block(3, 'b');

    assert_block(2, 'x');
    assert_block(4, 'x');
    at = 0;
    assert_int_equal(varve_view_read_now(c.source, &v, buf, 0, 6 * BLOCK), -EAGAIN);
    assert_int_equal(varve_view_read(c.source, &v, buf, 0, 6 * BLOCK, &at, &err), -EIO);
    assert_int_equal(at, 3 * BLOCK);
    assert_non_null(strstr(err.msg, "12288"));
    assert_int_equal(varve_view_read(c.source, &v, buf, 3 * BLOCK + 7, 1, &at, NULL), -EIO);
    assert_int_equal(at, 3 * BLOCK + 7);
    assert_int_equal(varve_view_read(c.source, &v, buf, 4 * BLOCK, 2 * BLOCK, &at, NULL), -EIO);
    assert_int_equal(at, 5 * BLOCK);
    assert_int_equal(varve_view_read(c.source, &v, buf, 4 * BLOCK - 1, 1, &at, NULL), -EIO);
    assert_int_equal(varve_view_read(c.source, &v, buf, 4 * BLOCK, BLOCK, &at, NULL), 0);

    assert_int_equal(varve_view_usage(c.source, &v, &scratch_bytes, &lost_bytes, NULL), 0);
    assert_int_equal(lost_bytes, 2 * BLOCK);
    assert_int_equal(scratch_bytes, BLOCK);
    lost = varve_bitmap_new(BLKS);
    assert_int_equal(varve_view_or_lost(c.source, &v, lost, NULL), 0);
    assert_int_equal(varve_bitmap_count(lost), 2);
    assert_true(varve_bitmap_test(lost, 3) && varve_bitmap_test(lost, 5));
    free(lost);
}

/* Epoch 2 keeps block 3, epoch 3 loses it: lost to the younger view only. */
static void what_an_older_epoch_kept_is_not_lost_to_an_older_view(void **state)
{
    struct varve_bitmap *lost = varve_bitmap_new(BLKS);
    struct varve_view young;

    (void)state;
    begin();
    write_block(3, 'a');
    young = (struct varve_view){.id = 6, .boundary = core_boundary(&c, 6)};
    core_fetch(&c);
    fault_fail_at(&c.fault, FAULT_PWRITE, 1, ENOSPC);
    write_block(3, 'b');
    fault_disarm(&c.fault);
    assert_block(3, 'x');
    assert_int_equal(varve_view_or_lost(c.source, &v, lost, NULL), 0);
    assert_int_equal(varve_bitmap_count(lost), 0);
    assert_int_equal(varve_view_or_lost(c.source, &young, lost, NULL), 0);
    assert_int_equal(varve_bitmap_count(lost), 1);
    v = young;
    assert_int_equal(read_block(3, (char[BLOCK]){0}), -EIO);
    free(lost);
}

static void scratch_that_is_full_breaks_the_view_where_that_is_wanted(void **state)
{
    (void)state;
    c.cfg.on_scratch_full = VARVE_SCRATCH_BREAK;
    c.cfg.scratch_max = BLOCK;
    begin();
    write_block(2, 'a');
    assert_block(2, 'x');
    write_block(3, 'a');
    assert_int_equal(read_block(3, (char[BLOCK]){0}), -ESTALE);
    assert_int_equal(read_block(9, (char[BLOCK]){0}), -ESTALE);
}

/* --- holes ------------------------------------------------------------------------------------ */

static int hole_at(uint64_t blk, uint64_t *nblks)
{
    uint64_t run;
    int r = varve_view_hole_run(c.source, &v, blk * BLOCK, UINT64_MAX, NULL, &run, NULL);

    if (nblks)
        *nblks = (run + BLOCK - 1) / BLOCK;
    return r;
}

/* Blocks 10 to 19 are a hole, and so is the end from 30 on; v is open. */
static void begin_with_holes(void)
{
    core_start(&c);
    core_fill(&c, 0, 10 * BLOCK, 'x');
    core_fill(&c, 20 * BLOCK, 10 * BLOCK, 'x');
    v = (struct varve_view){.id = next_id, .boundary = core_boundary(&c, next_id)};
    next_id++;
    core_open_source(&c);
}

static void holes_of_the_image_are_holes_whatever_is_written_later(void **state)
{
    uint64_t n;

    (void)state;
    begin_with_holes();
    assert_int_equal(hole_at(0, &n), 0);
    assert_int_equal(n, 10);
    assert_int_equal(hole_at(10, &n), 1);
    assert_int_equal(n, 10);
    assert_int_equal(hole_at(30, &n), 1);
    assert_int_equal(n, BLKS - 30);

    write_block(12, 'a'); /* its preimage is a hole of the scratch */
    write_block(13, 'a');
    write_block(39, 'a');
    for (uint64_t blk = 10; blk < 20; blk += n)
        assert_int_equal(hole_at(blk, &n), 1);
    assert_int_equal(hole_at(39, &n), 1);
    assert_block(12, 0);

    core_punch(&c, 2 * BLOCK, BLOCK); /* a hole now, data then */
    assert_int_equal(hole_at(2, &n), 0);
    assert_block(2, 'x');
    assert_int_equal(hole_at(1, &n), 0);
}

static unsigned asked;
static int64_t (*sound_seek_data)(struct varve_world *w, int fd, uint64_t off);

static int64_t seek_data_counted(struct varve_world *w, int fd, uint64_t off)
{
    asked++;
    return sound_seek_data(w, fd, off);
}

/* What the image was seen to have holds wherever nothing was written since; elsewhere the scratch
 * tells. */
static void the_image_is_not_asked_again_for_what_it_was_seen_to_have(void **state)
{
    struct varve_image_run seen = {0};
    uint64_t run;

    (void)state;
    begin_with_holes();
    sound_seek_data = c.w->seek_data;
    c.w->seek_data = seek_data_counted;
    asked = 0;
    assert_int_equal(varve_view_hole_run(c.source, &v, 0, BLOCK, &seen, &run, NULL), 0);
    assert_int_equal(asked, 1);
    assert_int_equal(varve_view_hole_run(c.source, &v, 9 * BLOCK, UINT64_MAX, &seen, &run, NULL),
                     0);
    assert_int_equal(run, BLOCK);
    assert_int_equal(asked, 1);
    assert_int_equal(varve_view_hole_run(c.source, &v, 10 * BLOCK, BLOCK, &seen, &run, NULL), 1);
    assert_int_equal(asked, 2);
    core_fill(&c, 14 * BLOCK, BLOCK, 'a');
    core_punch(&c, 25 * BLOCK, BLOCK);
    asked = 0;
    assert_int_equal(varve_view_hole_run(c.source, &v, 11 * BLOCK, UINT64_MAX, &seen, &run, NULL),
                     1);
    assert_int_equal(run, 3 * BLOCK);
    assert_int_equal(asked, 0);
    assert_int_equal(varve_view_hole_run(c.source, &v, 20 * BLOCK, UINT64_MAX, &seen, &run, NULL),
                     0);
    assert_int_equal(varve_view_hole_run(c.source, &v, 25 * BLOCK, UINT64_MAX, &seen, &run, NULL),
                     0);
    c.w->seek_data = sound_seek_data;
}

static void race_punch(void *arg)
{
    (void)arg;
    fault_disarm(&c.fault);
    core_punch(&c, 3 * BLOCK, BLOCK);
    raced = true;
}

/*   reader                       writer
 *   any call
 *                                keeps block 3 of data, punches it out of the image
 *   answers: data */
static void data_punched_at_any_moment_of_the_question_is_no_hole(void **state)
{
    (void)state;
    for (uint64_t n = 1;; n++) {
        bool fired;

        core_fini(&c);
        core_init(&c, SIZE, BLOCK);
        begin();
        raced = false;
        fault_gate_at(&c.fault, FAULT_ANY, n, race_punch, NULL);
        assert_int_equal(hole_at(3, NULL), 0);
        fired = raced;
        fault_disarm(&c.fault);
        if (!fired)
            break;
    }
}

/*   reader                       control
 *   finds the bit of block 3 set
 *                                ends the view, empties the scratch: a hole
 *   asks the scratch: a hole; looks again: an error */
static void a_scratch_emptied_at_any_moment_of_the_question_is_no_hole(void **state)
{
    (void)state;
    for (uint64_t n = 1;; n++) {
        bool fired;
        int r;

        core_fini(&c);
        core_init(&c, SIZE, BLOCK);
        begin();
        write_block(3, 'a');
        raced = false;
        fault_gate_at(&c.fault, FAULT_ANY, n, race_end_view, NULL);
        r = hole_at(3, NULL);
        assert_true(r == 0 || r == -ESTALE);
        fired = raced;
        fault_disarm(&c.fault);
        if (!fired)
            break;
        assert_int_equal(hole_at(3, NULL), -ESTALE);
    }
}

static void a_lost_block_is_no_hole(void **state)
{
    uint64_t n;

    (void)state;
    begin();
    fault_fail_from(&c.fault, FAULT_PWRITE, 1, ENOSPC);
    write_block(3, 'a');
    write_block(4, 'a');
    fault_disarm(&c.fault);
    assert_int_equal(hole_at(3, &n), 0);
    assert_int_equal(read_block(3, (char[BLOCK]){0}), -EIO);
    assert_int_equal(hole_at(4, NULL), 0);

    /* Also where a hole that was kept comes before it: blocks 10 to 12 are zeroes. */
    core_fini(&c);
    core_init(&c, SIZE, BLOCK);
    begin_with_holes();
    write_block(10, 'a');
    write_block(11, 'a');
    fault_fail_from(&c.fault, FAULT_PREAD, 1, EIO);
    write_block(12, 'a');
    fault_disarm(&c.fault);
    assert_int_equal(hole_at(10, &n), 1);
    assert_int_equal(n, 2);
    assert_int_equal(hole_at(12, &n), 0);
}

static void errors_of_the_hole_questions_are_data_or_errors(void **state)
{
    (void)state;
    begin_with_holes();
    write_block(3, 'a');
    for (unsigned blk = 3; blk <= 12; blk += 9) {
        for (uint64_t n = 1;; n++) {
            int r;

            fault_fail_at(&c.fault, FAULT_ANY, n, EIO);
            r = hole_at(blk, NULL);
            if (!fault_fired(&c.fault))
                break;
            if (r == -ESTALE)
                reopen_after_bad_scratch();
            else
                assert_true(r == 0 || r == -EIO);
            fault_disarm(&c.fault);
        }
        fault_disarm(&c.fault);
    }
}

static void offsets_that_start_no_block_are_refused(void **state)
{
    uint64_t run;

    (void)state;
    begin();
    assert_int_equal(varve_view_hole_run(c.source, &v, 1, 10, NULL, &run, NULL), -EINVAL);
    assert_int_equal(varve_view_hole_run(c.source, &v, 0, 0, NULL, &run, NULL), -EINVAL);
    assert_int_equal(varve_view_hole_run(c.source, &v, BLKS * BLOCK, 1, NULL, &run, NULL), -EINVAL);
    assert_int_equal(varve_view_hole_run(c.source, &v, 0, 1, NULL, &run, NULL), 0);
    assert_int_equal(run, 1);
}

int main(void)
{
#define VIEW_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        VIEW_TEST(views_keep_their_content_at_every_block_size_and_odd_sizes),
        VIEW_TEST(views_of_three_instants_each_see_theirs),
        VIEW_TEST(ranges_outside_of_the_disk_are_refused),
        VIEW_TEST(a_block_overwritten_at_any_moment_of_a_read_is_read_as_it_was),
        VIEW_TEST(a_boundary_at_any_moment_of_a_read_asks_for_the_new_files),
        VIEW_TEST(a_view_that_ends_at_any_moment_of_a_read_gives_its_bytes_or_an_error),
        VIEW_TEST(an_epoch_that_breaks_at_any_moment_of_a_read_gives_no_wrong_byte),
        VIEW_TEST(a_server_that_dies_and_comes_back_during_a_read_is_not_noticed),
        VIEW_TEST(a_runtime_folder_that_is_replaced_during_a_read_gives_no_wrong_byte),
        VIEW_TEST(a_look_at_any_moment_of_a_write_sees_the_old_bytes),
        VIEW_TEST(a_look_at_any_moment_of_a_views_end_sees_the_old_bytes_or_the_end),
        VIEW_TEST(a_look_at_any_moment_of_a_restart_sees_the_old_bytes),
        VIEW_TEST(every_failing_call_of_a_reader_is_an_error_or_costs_nothing),
        VIEW_TEST(a_failing_disk_is_told_by_the_page_that_fails),
        VIEW_TEST(a_page_that_was_removed_is_stale),
        VIEW_TEST(maps_pages_and_scratch_that_are_cut_short_are_errors_and_no_signals),
        VIEW_TEST(an_epoch_whose_files_are_not_at_hand_says_again),
        VIEW_TEST(a_source_of_another_disk_is_refused),
        VIEW_TEST(lost_blocks_give_an_error_with_their_offset_and_others_are_read),
        VIEW_TEST(what_an_older_epoch_kept_is_not_lost_to_an_older_view),
        VIEW_TEST(scratch_that_is_full_breaks_the_view_where_that_is_wanted),
        VIEW_TEST(holes_of_the_image_are_holes_whatever_is_written_later),
        VIEW_TEST(the_image_is_not_asked_again_for_what_it_was_seen_to_have),
        VIEW_TEST(data_punched_at_any_moment_of_the_question_is_no_hole),
        VIEW_TEST(a_scratch_emptied_at_any_moment_of_the_question_is_no_hole),
        VIEW_TEST(a_lost_block_is_no_hole),
        VIEW_TEST(errors_of_the_hole_questions_are_data_or_errors),
        VIEW_TEST(offsets_that_start_no_block_are_refused),
    };

    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
