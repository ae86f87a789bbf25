/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Blocks that a view does not need any more, or never did: they read as errors, what was kept of
 * them is freed, nothing more is kept, and no other view notices (I2, I10).  Races are forced by a
 * callback that runs before one chosen call to the world.  It is long because each of them has a
 * test of its own.
 */
#include "lib/bitmap.h"
#include "lib/view.h"
#include "tests/lib/core-fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define BLOCK 4096u
#define BLKS  40u /* the last is partial */
#define SIZE  ((uint64_t)(BLKS - 1) * BLOCK + 100)

static struct core c;
static struct varve_view v; /* id 5 */
static bool raced;

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

static struct varve_view open_view(uint64_t id)
{
    return (struct varve_view){.id = id, .boundary = core_boundary(&c, id)};
}

/* A disk full of 'x', and v, which may release, with a reader. */
static void begin(void)
{
    core_start(&c);
    core_fill(&c, 0, SIZE, 'x');
    v = open_view(5);
    assert_int_equal(varve_tracker_narrow(c.t, 5, -1, NULL), 0);
    core_open_source(&c);
}

static void write_block(uint64_t blk, int byte)
{
    uint64_t off = blk * BLOCK;

    core_fill(&c, off, varve_block_end(&c.g, blk) - off, byte);
}

static void release(uint64_t id, uint64_t blk, uint64_t count)
{
    uint64_t off = blk * BLOCK;

    assert_int_equal(
        varve_tracker_release(c.t, id, off, varve_block_end(&c.g, blk + count - 1) - off, NULL), 0);
}

static int read_view(const struct varve_view *view, uint64_t blk, char *buf, struct varve_err *err)
{
    uint64_t off = blk * BLOCK;

    memset(buf, '?', BLOCK);
    return varve_view_read(c.source, view, buf, off, (uint32_t)(varve_block_end(&c.g, blk) - off),
                           NULL, err);
}

static void assert_block(const struct varve_view *view, uint64_t blk, int byte)
{
    uint64_t len = varve_block_end(&c.g, blk) - blk * BLOCK;
    char buf[BLOCK];

    assert_int_equal(read_view(view, blk, buf, NULL), 0);
    for (uint64_t i = 0; i < len; i++)
        assert_int_equal((unsigned char)buf[i], byte);
}

/* It is an error that says why. */
static void assert_gone(const struct varve_view *view, uint64_t blk, const char *why)
{
    struct varve_err err = VARVE_ERR_INIT;
    uint64_t lost_off = 0;
    char buf[2 * BLOCK];

    assert_int_equal(read_view(view, blk, buf, &err), -EIO);
    assert_non_null(strstr(err.msg, why));
    /* As a part of a longer read, too, which says where. */
    if (blk > 0 &&
        varve_view_read(c.source, view, buf, (blk - 1) * BLOCK, BLOCK, NULL, NULL) == 0) {
        assert_int_equal(
            varve_view_read(c.source, view, buf, (blk - 1) * BLOCK, BLOCK + 1, &lost_off, NULL),
            -EIO);
        assert_int_equal(lost_off, blk * BLOCK);
    }
}

static void assert_released(const struct varve_view *view, uint64_t blk)
{
    assert_gone(view, blk, "was released");
}

/* Bytes that the file system gives to the scratch of that epoch. */
static uint64_t scratch_on_disk(uint64_t epoch)
{
    char path[PATH_MAX];
    struct stat st;

    assert_int_equal(stat(varve_path_scratch(varve_tracker_paths(c.t), epoch, path), &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static uint64_t scratch_counted(const struct varve_view *view)
{
    uint64_t scratch, lost;

    assert_int_equal(varve_view_usage(c.source, view, &scratch, &lost, NULL), 0);
    return scratch;
}

static uint64_t released_bytes(const struct varve_view *view)
{
    struct varve_bitmap *map = varve_bitmap_new(BLKS);
    uint64_t bytes, counted = 0;

    assert_int_equal(varve_view_released(c.source, view, &bytes, NULL), 0);
    assert_int_equal(varve_view_or_released(c.source, view, map, NULL), 0);
    for (uint64_t blk = 0; blk < BLKS; blk++)
        counted += varve_bitmap_test(map, blk) ? varve_block_end(&c.g, blk) - blk * BLOCK : 0;
    assert_int_equal(bytes, counted);
    free(map);
    return bytes;
}

/* A file with a map of the disk's blocks in which `first` and those of [from, to) are set. */
static int map_file(uint64_t first, uint64_t from, uint64_t to)
{
    struct varve_bitmap *map = varve_bitmap_new(BLKS);
    char path[PATH_MAX + 8];
    int fd;

    snprintf(path, sizeof(path), "%s/map", c.top);
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    varve_bitmap_set(map, first, first + 1);
    varve_bitmap_set(map, from, to);
    assert_int_equal(write(fd, map->words, varve_bitmap_nwords(map) * 8),
                     varve_bitmap_nwords(map) * 8);
    free(map);
    return fd;
}

/* Block 3, and 10 to 19, are not dirty. */
static void narrow(uint64_t id)
{
    int fd = map_file(3, 10, 20);

    assert_int_equal(varve_tracker_narrow(c.t, id, fd, NULL), 0);
    close(fd);
}

/* --- what is released ------------------------------------------------------------------------- */

static void a_released_block_is_an_error_even_where_it_could_be_read(void **state)
{
    (void)state;
    begin();
    write_block(4, 'a');
    release(5, 3, 2);
    assert_released(&v, 3); /* the image still has it */
    assert_released(&v, 4);
    assert_block(&v, 2, 'x');
    assert_block(&v, 5, 'x');
    assert_int_equal(released_bytes(&v), 2 * BLOCK);
    release(5, 3, 3); /* counted once */
    assert_int_equal(released_bytes(&v), 3 * BLOCK);
}

static void released_scratch_is_freed_and_not_filled_again(void **state)
{
    (void)state;
    c.cfg.scratch_max = 10 * BLOCK;
    begin();
    for (uint64_t blk = 0; blk < 10; blk++)
        write_block(blk, 'a');
    assert_int_equal(scratch_on_disk(v.boundary), 10 * BLOCK);
    assert_int_equal(scratch_counted(&v), 10 * BLOCK);
    release(5, 2, 8);
    assert_int_equal(scratch_on_disk(v.boundary), 2 * BLOCK);
    assert_int_equal(scratch_counted(&v), 2 * BLOCK);
    release(5, 20, 5);
    for (uint64_t blk = 2; blk < 10; blk++)
        write_block(blk, 'b'); /* the second write of the epoch */
    for (uint64_t blk = 20; blk < 25; blk++)
        write_block(blk, 'b'); /* the first */
    core_boundary(&c, 0);
    core_fetch(&c);
    for (uint64_t blk = 2; blk < 10; blk++)
        write_block(blk, 'c'); /* in another epoch */
    assert_int_equal(scratch_counted(&v), 2 * BLOCK);
    assert_int_equal(scratch_on_disk(v.boundary), 2 * BLOCK);
    assert_int_equal(scratch_on_disk(v.boundary + 1), 0);
    /* The room can be had by others. */
    for (uint64_t blk = 30; blk < 38; blk++)
        write_block(blk, 'd');
    for (uint64_t blk = 0; blk < BLKS; blk++) {
        if ((blk >= 2 && blk < 10) || (blk >= 20 && blk < 25))
            assert_released(&v, blk);
        else
            assert_block(&v, blk, 'x');
    }
    write_block(39, 'd');
    assert_gone(&v, 39, "lost"); /* scratch-max holds */
}

static void released_ranges_are_rounded_inwards(void **state)
{
    (void)state;
    begin();
    assert_int_equal(varve_tracker_release(c.t, 5, 3 * BLOCK + 1, 2 * BLOCK - 2, NULL), 0);
    assert_int_equal(released_bytes(&v), 0);
    assert_int_equal(varve_tracker_release(c.t, 5, 3 * BLOCK + 1, 2 * BLOCK - 1, NULL), 0);
    assert_int_equal(released_bytes(&v), BLOCK);
    assert_block(&v, 3, 'x');
    assert_released(&v, 4);
    assert_block(&v, 5, 'x');
    /* The last block has no more than this. */
    assert_int_equal(varve_tracker_release(c.t, 5, 39 * BLOCK, 99, NULL), 0);
    assert_block(&v, 39, 'x');
    assert_int_equal(varve_tracker_release(c.t, 5, 39 * BLOCK, 100, NULL), 0);
    assert_released(&v, 39);
    assert_int_equal(released_bytes(&v), BLOCK + 100);
    assert_int_equal(varve_tracker_release(c.t, 5, 0, SIZE, NULL), 0);
    assert_int_equal(released_bytes(&v), SIZE);
}

static void what_cannot_be_released_is_refused_and_changes_nothing(void **state)
{
    struct varve_view other;

    (void)state;
    begin();
    other = open_view(6);
    core_fetch(&c);
    assert_int_equal(varve_tracker_release(c.t, 6, 0, SIZE, NULL), -EINVAL);
    assert_int_equal(varve_tracker_release(c.t, 7, 0, SIZE, NULL), -ESTALE);
    assert_int_equal(varve_tracker_release(c.t, 0, 0, SIZE, NULL), -ESTALE);
    assert_int_equal(varve_tracker_release(c.t, 5, 1, SIZE, NULL), -EINVAL);
    assert_int_equal(varve_tracker_release(c.t, 5, UINT64_MAX, 2, NULL), -EINVAL);
    assert_int_equal(varve_tracker_release(c.t, 5, SIZE, 0, NULL), 0);
    assert_int_equal(varve_tracker_narrow(c.t, 7, -1, NULL), -ESTALE);
    assert_int_equal(varve_tracker_open_done(c.t, 6, NULL), -ENOENT);
    assert_int_equal(released_bytes(&v), 0);
    assert_block(&other, 3, 'x');
    assert_int_equal(varve_tracker_end_view(c.t, 5, NULL), 0);
    assert_int_equal(varve_tracker_release(c.t, 5, 0, SIZE, NULL), -ESTALE);
}

/* --- several views ---------------------------------------------------------------------------- */

static void what_another_view_needs_stays(void **state)
{
    struct varve_view second;

    (void)state;
    begin();
    write_block(3, 'a');
    second = open_view(6);
    assert_int_equal(varve_tracker_narrow(c.t, 6, -1, NULL), 0);
    core_fetch(&c);
    write_block(3, 'b'); /* in the second's epoch */
    write_block(4, 'b'); /* both read it there */
    release(6, 3, 2);
    assert_released(&second, 3);
    assert_released(&second, 4);
    assert_block(&v, 3, 'x');
    assert_block(&v, 4, 'x');
    write_block(5, 'b');
    release(6, 5, 1);
    assert_block(&v, 5, 'x');
    assert_int_equal(scratch_on_disk(v.boundary), BLOCK);
    release(5, 4, 1);
    assert_int_equal(scratch_on_disk(second.boundary), 2 * BLOCK); /* 3 for v, 5 */
    assert_released(&v, 4);
    assert_block(&v, 3, 'x');
    release(5, 3, 1);
    assert_int_equal(scratch_on_disk(v.boundary), 0);
    assert_int_equal(scratch_on_disk(second.boundary), BLOCK);
    assert_block(&v, 5, 'x');
}

static void what_only_an_ended_view_needed_is_freed(void **state)
{
    struct varve_view whole;

    (void)state;
    begin();
    whole = open_view(6);
    core_fetch(&c);
    release(5, 0, 10);
    for (uint64_t blk = 5; blk < 12; blk++)
        write_block(blk, 'a');
    for (uint64_t blk = 0; blk < 12; blk++)
        assert_block(&whole, blk, 'x');
    assert_int_equal(scratch_on_disk(whole.boundary), 7 * BLOCK);
    assert_int_equal(varve_tracker_end_view(c.t, 6, NULL), 0);
    assert_int_equal(scratch_on_disk(whole.boundary), 2 * BLOCK);
    assert_int_equal(scratch_counted(&v), 2 * BLOCK);
    assert_block(&v, 10, 'x');
    assert_released(&v, 5);
}

/* The slot of a view that ended is used again; the new one needs everything. */
static void a_new_view_needs_every_block_again(void **state)
{
    struct varve_view next;

    (void)state;
    begin();
    release(5, 0, BLKS);
    assert_int_equal(varve_tracker_end_view(c.t, 5, NULL), 0);
    next = open_view(7);
    core_fetch(&c);
    for (uint64_t blk = 0; blk < BLKS; blk++)
        write_block(blk, 'a');
    for (uint64_t blk = 0; blk < BLKS; blk++)
        assert_block(&next, blk, 'x');
}

/* --- preserve dirty --------------------------------------------------------------------------- */

static void what_was_not_dirty_is_readable_until_it_is_overwritten(void **state)
{
    (void)state;
    core_start(&c);
    core_fill(&c, 0, SIZE, 'x');
    v = open_view(5);
    write_block(12, 'a'); /* kept: nobody knew yet */
    write_block(20, 'a');
    assert_int_equal(scratch_on_disk(v.boundary), 2 * BLOCK);
    narrow(5);
    core_open_source(&c);
    assert_int_equal(scratch_on_disk(v.boundary), BLOCK);
    assert_gone(&v, 12, "was overwritten");
    for (uint64_t blk = 0; blk < BLKS; blk++) {
        if (blk != 12)
            assert_block(&v, blk, 'x');
    }
    for (uint64_t blk = 0; blk < BLKS; blk++)
        write_block(blk, 'b');
    assert_int_equal(scratch_counted(&v), 28 * BLOCK + 100);
    for (uint64_t blk = 0; blk < BLKS; blk++) {
        if (blk == 3 || (blk >= 10 && blk < 20))
            assert_gone(&v, blk, "was overwritten");
        else
            assert_block(&v, blk, 'x');
    }
    assert_int_equal(released_bytes(&v), 0);
    release(5, 20, 1);
    assert_released(&v, 20);
    release(5, 12, 1);
    assert_released(&v, 12);
}

static void a_map_that_does_not_fit_is_refused(void **state)
{
    int fd;

    (void)state;
    begin();
    fd = map_file(3, 10, 20);
    assert_int_equal(ftruncate(fd, 16), 0);
    assert_int_equal(varve_tracker_narrow(c.t, 5, fd, NULL), -EINVAL);
    close(fd);
    write_block(3, 'a');
    assert_block(&v, 3, 'x');
}

/* --- holes ------------------------------------------------------------------------------------ */

static void an_emptied_scratch_is_no_hole(void **state)
{
    uint64_t run;

    (void)state;
    begin();
    for (uint64_t blk = 3; blk < 8; blk++)
        write_block(blk, 'a');
    release(5, 4, 2);
    for (uint64_t blk = 3; blk < 8; blk++)
        assert_int_equal(varve_view_hole_run(c.source, &v, blk * BLOCK, BLOCK, NULL, &run, NULL),
                         0);
}

static void race_release(void *arg)
{
    (void)arg;
    fault_disarm(&c.fault);
    release(5, 3, 1);
    raced = true;
}

/*   reader                       control
 *   any call of the question
 *                                says that block 3 is released, empties its scratch
 *   goes on: no hole, ever
 */
static void a_scratch_emptied_at_any_moment_of_the_question_is_no_hole(void **state)
{
    (void)state;
    for (uint64_t n = 1;; n++) {
        uint64_t run;

        core_fini(&c);
        core_init(&c, SIZE, BLOCK);
        begin();
        write_block(3, 'a');
        raced = false;
        fault_gate_at(&c.fault, FAULT_ANY, n, race_release, NULL);
        assert_int_equal(varve_view_hole_run(c.source, &v, 3 * BLOCK, BLOCK, NULL, &run, NULL), 0);
        fault_disarm(&c.fault);
        if (!raced)
            break;
    }
}

/* --- races with readers ----------------------------------------------------------------------- */

static int read_block_3(bool now, char *buf)
{
    if (now)
        return varve_view_read_now(c.source, &v, buf, 3 * BLOCK, BLOCK);
    return read_view(&v, 3, buf, NULL);
}

/* Before every call of a read of block 3, each in a run of its own, `race` happens. */
static void race_at_each_call_of(bool now, void (*prepare)(void), void (*race)(void *arg))
{
    for (uint64_t n = 1;; n++) {
        char buf[BLOCK];
        int r;

        core_fini(&c);
        core_init(&c, SIZE, BLOCK);
        prepare();
        raced = false;
        fault_gate_at(&c.fault, FAULT_ANY, n, race, NULL);
        r = read_block_3(now, buf);
        fault_disarm(&c.fault);
        if (r == 0) {
            for (unsigned i = 0; i < BLOCK; i++)
                assert_int_equal(buf[i], 'x');
        } else {
            assert_true(r == -EIO || r == -EAGAIN);
        }
        if (!raced) {
            assert_true(n > 6);
            break;
        }
        core_fetch(&c);
        assert_int_equal(read_view(&v, 3, buf, NULL), -EIO);
    }
}

static void race_at_each_call(void (*prepare)(void), void (*race)(void *arg))
{
    race_at_each_call_of(false, prepare, race);
    race_at_each_call_of(true, prepare, race);
}

static void prepare_overwritten(void)
{
    begin();
    write_block(3, 'a');
}

static void race_release_and_write(void *arg)
{
    race_release(arg);
    write_block(3, 'b');
}

static void prepare_whole(void)
{
    core_start(&c);
    core_fill(&c, 0, SIZE, 'x');
    v = open_view(5);
    core_open_source(&c);
}

static void race_narrow_and_write(void *arg)
{
    (void)arg;
    fault_disarm(&c.fault);
    narrow(5);
    write_block(3, 'b');
    raced = true;
}

/*   reader                       control                      guest
 *   any call
 *                                releases block 3, punches
 *                                                             (writes it, nothing is kept)
 *   goes on: 'x' or an error
 */
static void a_release_at_any_moment_of_a_read_gives_its_bytes_or_an_error(void **state)
{
    (void)state;
    race_at_each_call(prepare_overwritten, race_release);
    race_at_each_call(begin, race_release_and_write);
    race_at_each_call(prepare_whole, race_narrow_and_write);
}

static ssize_t (*whole_pread)(struct varve_world *w, int fd, void *buf, size_t len, uint64_t off);

static unsigned looks;

/* Copies the table of views up to each one's done map; view 5 ends; copies the rest. */
static ssize_t torn_pread(struct varve_world *w, int fd, void *buf, size_t len, uint64_t off)
{
    struct varve_ctl_view_copy later[VARVE_CTL_VIEWS], *views = buf;
    ssize_t n = whole_pread(w, fd, buf, len, off);

    /* At the second look, that at what the scratch gave. */
    if (len != sizeof(later) || off != offsetof(struct varve_ctl, views) || ++looks != 2)
        return n;
    raced = true;
    assert_int_equal(varve_tracker_end_view(c.t, 5, NULL), 0);
    assert_int_equal(whole_pread(w, fd, later, len, off), n);
    for (unsigned i = 0; i < VARVE_CTL_VIEWS; i++)
        views[i].done_ino = later[i].done_ino;
    return n;
}

/*   reader                                  control
 *   copies: view 5 is open
 *                                           view 5 ends, its done map is gone
 *   copies: it has no done map
 *   must not take that for a view that needs every block
 *
 * An older view, which released the block too, goes on: so the epoch stays armed.
 */
static void a_view_that_ends_while_its_entry_is_copied_is_not_whole(void **state)
{
    char buf[BLOCK];

    (void)state;
    for (int now = 0; now < 2; now++) {
        core_fini(&c);
        core_init(&c, SIZE, BLOCK);
        core_start(&c);
        core_fill(&c, 0, SIZE, 'x');
        open_view(4);
        v = open_view(5);
        core_open_source(&c);
        for (uint64_t id = 4; id <= 5; id++) {
            assert_int_equal(varve_tracker_narrow(c.t, id, -1, NULL), 0);
            release(id, 3, 1);
        }
        core_fetch(&c);
        write_block(3, 'a');
        raced = false;
        looks = 0;
        whole_pread = c.machine.pread;
        c.machine.pread = torn_pread;
        assert_int_equal(read_block_3(now, buf), now ? -EAGAIN : -ESTALE);
        c.machine.pread = whole_pread;
        assert_true(raced);
    }
}

/* --- races with writers ----------------------------------------------------------------------- */

static pthread_t releaser;
static _Atomic bool release_ended;

static void *release_thread(void *arg)
{
    (void)arg;
    release(5, 3, 1);
    release_ended = true;
    return NULL;
}

static void sleep_ms(long ms)
{
    struct timespec ts = {.tv_nsec = ms * 1000000};

    nanosleep(&ts, NULL);
}

static void race_release_under_stripe(void *arg)
{
    uint64_t bytes = 0;

    (void)arg;
    fault_disarm(&c.fault);
    release_ended = false;
    assert_int_equal(pthread_create(&releaser, NULL, release_thread, NULL), 0);
    while (bytes == 0)
        assert_int_equal(varve_view_released(c.source, &v, &bytes, NULL), 0);
    /* It has said so, and must wait for us; if it does not, it is done by then. */
    for (unsigned i = 0; i < 200 && !release_ended; i++)
        sleep_ms(1);
    raced = true;
}

/*   guest                                    control
 *   finds block 3 needed, reads the image
 *                                            says that it is released
 *   stores the preimage, sets the bit
 *                                            empties the scratch, which it waited for
 */
static void what_a_writer_was_about_to_keep_is_freed(void **state)
{
    (void)state;
    begin();
    raced = false;
    fault_gate_at(&c.fault, FAULT_PREAD, 1, race_release_under_stripe, NULL);
    write_block(3, 'a');
    assert_true(raced);
    assert_int_equal(pthread_join(releaser, NULL), 0);
    assert_int_equal(scratch_on_disk(v.boundary), 0);
    assert_int_equal(scratch_counted(&v), 0);
    assert_released(&v, 3);
}

static void race_write(void *arg)
{
    (void)arg;
    fault_disarm(&c.fault);
    write_block(4, 'b');
    write_block(3, 'b');
    raced = true;
}

/*   control                                  guest
 *   says that 3 and 4 are released
 *   before any of its calls
 *                                            writes both, keeps nothing
 *   empties the scratch
 */
static void a_write_at_any_moment_of_a_release_keeps_nothing(void **state)
{
    (void)state;
    for (uint64_t n = 1;; n++) {
        core_fini(&c);
        core_init(&c, SIZE, BLOCK);
        begin();
        write_block(3, 'a');
        raced = false;
        fault_gate_at(&c.fault, FAULT_ANY, n, race_write, NULL);
        release(5, 3, 2);
        fault_disarm(&c.fault);
        assert_int_equal(scratch_on_disk(v.boundary), 0);
        assert_int_equal(scratch_counted(&v), 0);
        assert_released(&v, 3);
        assert_released(&v, 4);
        if (!raced) {
            assert_true(n > 2);
            break;
        }
    }
}

/* --- servers that die ------------------------------------------------------------------------- */

static void what_was_released_stays_so_when_the_server_is_killed(void **state)
{
    struct varve_view other;

    (void)state;
    begin();
    other = open_view(6);
    core_fetch(&c);
    write_block(3, 'a');
    release(5, 3, 2);
    core_kill(&c);
    assert_released(&v, 3); /* nobody serves it */
    assert_block(&other, 3, 'x');
    core_start(&c);
    assert_released(&v, 3);
    assert_released(&v, 4);
    assert_int_equal(released_bytes(&v), 2 * BLOCK);
    assert_int_equal(varve_tracker_end_view(c.t, 6, NULL), 0);
    assert_int_equal(scratch_on_disk(other.boundary), 0);
    write_block(4, 'b');
    assert_int_equal(scratch_counted(&v), 0);
    write_block(5, 'b');
    assert_block(&v, 5, 'x');
    core_stop(&c);
    core_start(&c);
    assert_released(&v, 4);
    assert_block(&v, 5, 'x');
    release(5, 5, 1);
    assert_released(&v, 5);
}

/* At every call of a release: the block's bytes or an error, and the space can be had afterwards.
 */
static void a_server_that_dies_during_a_release_leaves_no_wrong_byte(void **state)
{
    (void)state;
    for (uint64_t n = 1;; n++) {
        char buf[BLOCK];
        bool fired;
        int r;

        core_fini(&c);
        core_init(&c, SIZE, BLOCK);
        begin();
        for (uint64_t blk = 3; blk < 6; blk++)
            write_block(blk, 'a');
        fault_crash_at(&c.fault, FAULT_ANY, n);
        varve_tracker_release(c.t, 5, 3 * BLOCK, 2 * BLOCK, NULL);
        fired = fault_fired(&c.fault);
        core_kill(&c);
        core_start(&c);
        for (uint64_t blk = 3; blk < 5; blk++) {
            r = read_view(&v, blk, buf, NULL);
            assert_true(r == -EIO); /* the bits were set before the first call */
        }
        assert_block(&v, 5, 'x');
        release(5, 3, 2);
        assert_int_equal(scratch_on_disk(v.boundary), BLOCK);
        assert_int_equal(scratch_counted(&v), BLOCK);
        if (!fired)
            break;
    }
}

/* At every call of narrowing a view: it needs everything, or what was dirty. */
static void a_server_that_dies_while_a_view_is_narrowed_leaves_no_wrong_byte(void **state)
{
    (void)state;
    for (uint64_t n = 1;; n++) {
        char buf[BLOCK];
        bool fired;
        int fd, r;

        core_fini(&c);
        core_init(&c, SIZE, BLOCK);
        prepare_whole();
        write_block(12, 'a');
        fd = map_file(3, 10, 20);
        fault_crash_at(&c.fault, FAULT_ANY, n);
        varve_tracker_narrow(c.t, 5, fd, NULL);
        close(fd);
        fired = fault_fired(&c.fault);
        core_kill(&c);
        core_start(&c);
        core_open_source(&c);
        write_block(3, 'b');
        write_block(4, 'b');
        r = read_view(&v, 12, buf, NULL);
        assert_true(r == -EIO || (r == 0 && buf[0] == 'x' && buf[BLOCK - 1] == 'x'));
        r = read_view(&v, 3, buf, NULL);
        assert_true(r == -EIO || (r == 0 && buf[0] == 'x' && buf[BLOCK - 1] == 'x'));
        assert_block(&v, 4, 'x');
        if (!fired) {
            assert_int_equal(r, -EIO);
            break;
        }
    }
}

static void a_view_whose_done_map_is_gone_ends(void **state)
{
    char path[PATH_MAX];
    char buf[BLOCK];

    (void)state;
    begin();
    write_block(3, 'a');
    release(5, 3, 1);
    varve_path_done(varve_tracker_paths(c.t), 5, path);
    core_kill(&c);
    assert_int_equal(unlink(path), 0);
    core_start(&c);
    assert_int_equal(read_view(&v, 3, buf, NULL), -ESTALE);
    assert_int_equal(read_view(&v, 9, buf, NULL), -ESTALE);
    write_block(9, 'a'); /* the guest goes on */
}

/* A shortage of our own says nothing of the map. */
static void a_server_that_cannot_open_a_done_map_for_now_does_not_start(void **state)
{
    unsigned refused = 0;

    (void)state;
    begin();
    write_block(3, 'a');
    release(5, 3, 1);
    core_kill(&c);
    for (uint64_t n = 1;; n++) {
        bool fired;
        int r;

        fault_fail_at(&c.fault, FAULT_OPEN, n, EMFILE);
        r = core_try_start(&c, NULL);
        fired = fault_fired(&c.fault);
        fault_disarm(&c.fault);
        if (r == 0) {
            assert_released(&v, 3);
            assert_block(&v, 9, 'x');
            core_kill(&c);
        }
        refused += r < 0;
        if (!fired)
            break;
    }
    assert_true(refused > 0);
    core_start(&c);
    assert_released(&v, 3);
}

static int find_done_map(void *arg, const char *name)
{
    (void)arg;
    return strstr(name, ".done") != NULL;
}

/* A server that dies at any call of NARROW, the one that makes the file among them. */
static void no_done_map_is_left_that_no_view_has(void **state)
{
    char folder[PATH_MAX + 8];
    bool fired = true;
    int fd;

    (void)state;
    core_start(&c);
    snprintf(folder, sizeof(folder), "%s/vda", c.runtime_dir);
    for (uint64_t n = 1; fired; n++) {
        v = open_view(n + 100);
        fault_crash_at(&c.fault, FAULT_ANY, n);
        varve_tracker_narrow(c.t, n + 100, -1, NULL);
        fired = fault_fired(&c.fault);
        fault_disarm(&c.fault);
        core_kill(&c);
        core_start(&c);
        fd = varve_tracker_open_done(c.t, n + 100, NULL);
        if (fd >= 0)
            close(fd);
        else
            assert_int_equal(c.w->list(c.w, folder, find_done_map, NULL), 0);
        assert_int_equal(varve_tracker_end_view(c.t, n + 100, NULL), 0);
    }
}

static void what_a_server_that_died_had_not_freed_its_successor_frees(void **state)
{
    (void)state;
    begin();
    write_block(3, 'a');
    write_block(4, 'a');
    assert_int_equal(scratch_on_disk(v.boundary), 2 * BLOCK);
    fault_crash_at(&c.fault, FAULT_PUNCH, 1);
    varve_tracker_release(c.t, 5, 3 * BLOCK, BLOCK, NULL);
    assert_true(fault_fired(&c.fault));
    fault_disarm(&c.fault);
    core_kill(&c);
    core_start(&c);
    assert_int_equal(scratch_on_disk(v.boundary), 2 * BLOCK);
    varve_tracker_housekeep(c.t);
    assert_int_equal(scratch_on_disk(v.boundary), BLOCK);
    assert_released(&v, 3);
    assert_block(&v, 4, 'x');
}

static void done_maps_go_with_their_views(void **state)
{
    char path[PATH_MAX];

    (void)state;
    begin();
    varve_path_done(varve_tracker_paths(c.t), 5, path);
    assert_true(core_exists(path));
    assert_int_equal(varve_tracker_end_view(c.t, 5, NULL), 0);
    assert_false(core_exists(path));
    v = open_view(8);
    assert_int_equal(varve_tracker_narrow(c.t, 8, -1, NULL), 0);
    varve_path_done(varve_tracker_paths(c.t), 8, path);
    assert_true(core_exists(path));
    core_kill(&c);
    core_reboot(&c); /* the host went down, and the runtime folder is on a disk against all advice */
    core_start(&c);
    assert_false(core_exists(path));
}

/* --- who does not know of done maps ----------------------------------------------------------- */

static uint32_t layout(void)
{
    struct varve_ctl_head head;

    assert_int_equal(varve_source_head(c.source, &head, NULL), 0);
    return head.layout;
}

static void older_programs_refuse_the_page_as_long_as_there_is_a_done_map(void **state)
{
    (void)state;
    prepare_whole();
    assert_int_equal(layout(), VARVE_CTL_LAYOUT);
    assert_int_equal(varve_tracker_narrow(c.t, 5, -1, NULL), 0);
    assert_int_equal(layout(), VARVE_CTL_LAYOUT_DONE);
    core_kill(&c);
    core_start(&c);
    assert_int_equal(layout(), VARVE_CTL_LAYOUT_DONE);
    assert_int_equal(varve_tracker_end_view(c.t, 5, NULL), 0);
    assert_int_equal(layout(), VARVE_CTL_LAYOUT);
}

static void a_reader_without_the_done_map_says_again(void **state)
{
    char buf[BLOCK];

    (void)state;
    prepare_whole();
    assert_int_equal(varve_tracker_narrow(c.t, 5, -1, NULL), 0);
    assert_int_equal(read_view(&v, 3, buf, NULL), -EAGAIN);
    core_fetch(&c);
    assert_block(&v, 3, 'x');
}

int main(void)
{
#define RELEASE_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        RELEASE_TEST(a_released_block_is_an_error_even_where_it_could_be_read),
        RELEASE_TEST(released_scratch_is_freed_and_not_filled_again),
        RELEASE_TEST(released_ranges_are_rounded_inwards),
        RELEASE_TEST(what_cannot_be_released_is_refused_and_changes_nothing),
        RELEASE_TEST(what_another_view_needs_stays),
        RELEASE_TEST(what_only_an_ended_view_needed_is_freed),
        RELEASE_TEST(a_new_view_needs_every_block_again),
        RELEASE_TEST(what_was_not_dirty_is_readable_until_it_is_overwritten),
        RELEASE_TEST(a_map_that_does_not_fit_is_refused),
        RELEASE_TEST(an_emptied_scratch_is_no_hole),
        RELEASE_TEST(a_scratch_emptied_at_any_moment_of_the_question_is_no_hole),
        RELEASE_TEST(a_release_at_any_moment_of_a_read_gives_its_bytes_or_an_error),
        RELEASE_TEST(a_view_that_ends_while_its_entry_is_copied_is_not_whole),
        RELEASE_TEST(what_a_writer_was_about_to_keep_is_freed),
        RELEASE_TEST(a_write_at_any_moment_of_a_release_keeps_nothing),
        RELEASE_TEST(what_was_released_stays_so_when_the_server_is_killed),
        RELEASE_TEST(a_server_that_dies_during_a_release_leaves_no_wrong_byte),
        RELEASE_TEST(a_server_that_dies_while_a_view_is_narrowed_leaves_no_wrong_byte),
        RELEASE_TEST(a_view_whose_done_map_is_gone_ends),
        RELEASE_TEST(a_server_that_cannot_open_a_done_map_for_now_does_not_start),
        RELEASE_TEST(no_done_map_is_left_that_no_view_has),
        RELEASE_TEST(what_a_server_that_died_had_not_freed_its_successor_frees),
        RELEASE_TEST(done_maps_go_with_their_views),
        RELEASE_TEST(older_programs_refuse_the_page_as_long_as_there_is_a_done_map),
        RELEASE_TEST(a_reader_without_the_done_map_says_again),
    };

    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
