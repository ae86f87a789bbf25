/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What gives way when there is no room for preimages, or none for the guest; scratch files that the
 * kernel could not write back; and that big ones go in steps.  Clock, free space and write-back errors
 * are the test's.  It is long because each way has a test of its own.
 */
#include "lib/scratch.h"
#include "lib/tracker.h"
#include "lib/view.h"
#include "tests/lib/core-fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define BLOCK 4096u
#define BLKS  64u
#define SIZE  ((uint64_t)BLKS * BLOCK)
#define MIB   (UINT64_C(1) << 20)

static struct core c;
static struct varve_view v; /* id 5 */
static struct varve_err why;

static _Atomic uint64_t clock_ns;
static _Atomic uint64_t fs_total, fs_free;
static _Atomic uint64_t bad_ino; /* of a file that could not be written back */
static uint64_t punched_most, punched_sum;
static unsigned npunched;
static int (*sound_punch)(struct varve_world *w, int fd, uint64_t off, uint64_t len);

static uint64_t the_clock(struct varve_world *w)
{
    (void)w;
    return clock_ns;
}

static int the_room(struct varve_world *w, int fd, uint64_t *total, uint64_t *free)
{
    (void)w;
    (void)fd;
    *total = fs_total;
    *free = fs_free;
    return 0;
}

static int the_write_back(struct varve_world *w, int fd)
{
    struct stat st;

    (void)w;
    assert_int_equal(fstat(fd, &st), 0);
    return bad_ino != 0 && st.st_ino == bad_ino ? -EIO : 0;
}

static int the_punch(struct varve_world *w, int fd, uint64_t off, uint64_t len)
{
    if (len > punched_most)
        punched_most = len;
    punched_sum += len;
    npunched++;
    return sound_punch(w, fd, off, len);
}

/* What was preserved in all; every read looks whether that became less. */
static pthread_mutex_t sum_lock = PTHREAD_MUTEX_INITIALIZER;
static ssize_t (*sound_pread)(struct varve_world *w, int fd, void *buf, size_t len, uint64_t off);
static int sum_fd;
static uint64_t sum_most;
static bool sum_fell;

static uint64_t preserved(void)
{
    struct varve_ctl_head head;

    assert_int_equal(varve_ctl_read_head(varve_world_posix(), sum_fd, &head, NULL), 0);
    return head.preserved_bytes;
}

static ssize_t the_pread(struct varve_world *w, int fd, void *buf, size_t len, uint64_t off)
{
    pthread_mutex_lock(&sum_lock);
    if (sum_fd >= 0) {
        uint64_t sum = preserved();

        sum_fell = sum_fell || sum < sum_most;
        sum_most = sum;
    }
    pthread_mutex_unlock(&sum_lock);
    return sound_pread(w, fd, buf, len, off);
}

static void watch_sum(void)
{
    char path[PATH_MAX + 64];

    snprintf(path, sizeof(path), "%s/vda/control", c.runtime_dir);
    sum_most = 0;
    sum_fell = false;
    sum_fd = open(path, O_RDONLY);
    assert_true(sum_fd >= 0);
}

static void init(uint64_t size, uint64_t block_size)
{
    core_init(&c, size, block_size);
    sum_fd = -1;
    sound_pread = c.machine.pread;
    c.machine.pread = the_pread;
    clock_ns = 1;
    fs_total = fs_free = UINT64_C(1) << 40;
    bad_ino = 0;
    punched_most = punched_sum = npunched = 0;
    sound_punch = c.machine.punch;
    c.machine.punch = the_punch;
    c.machine.monotonic_ns = the_clock;
    c.machine.room = the_room;
    c.machine.written_back = the_write_back;
}

static int setup(void **state)
{
    (void)state;
    init(SIZE, BLOCK);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    core_fini(&c);
    return 0;
}

/* A disk full of 'x', and v open with a reader. */
static void begin(void)
{
    core_start(&c);
    core_fill(&c, 0, c.g.size, 'x');
    v = (struct varve_view){.id = 5, .boundary = core_boundary(&c, 5)};
    core_open_source(&c);
}

static void write_block(uint64_t blk, int byte)
{
    core_fill(&c, blk * BLOCK, BLOCK, byte);
}

static int read_block(uint64_t blk, char *buf)
{
    memset(buf, '?', BLOCK);
    return varve_view_read(c.source, &v, buf, blk * BLOCK, BLOCK, NULL, &why);
}

static void assert_block(uint64_t blk, int byte)
{
    char buf[BLOCK];

    assert_int_equal(read_block(blk, buf), 0);
    for (unsigned i = 0; i < BLOCK; i++)
        assert_int_equal(buf[i], byte);
}

static void assert_error(uint64_t blk, int error)
{
    char buf[BLOCK];

    assert_int_equal(read_block(blk, buf), error);
}

static uint64_t lost_bytes(void)
{
    uint64_t kept, lost;

    assert_int_equal(varve_view_usage(c.source, &v, &kept, &lost, &why), 0);
    return lost;
}

static uint64_t kept_bytes(void)
{
    uint64_t kept, lost;

    assert_int_equal(varve_view_usage(c.source, &v, &kept, &lost, &why), 0);
    return kept;
}

static void scratch_path(uint64_t epoch, const char *kind, char path[PATH_MAX + 64])
{
    snprintf(path, PATH_MAX + 64, "%s/vda/epoch-%llu.%s", c.state_dir, (unsigned long long)epoch,
             kind);
}

static uint64_t on_disk(uint64_t epoch, const char *kind)
{
    char path[PATH_MAX + 64];
    struct stat st;

    scratch_path(epoch, kind, path);
    return stat(path, &st) == 0 ? (uint64_t)st.st_blocks * 512 : UINT64_MAX;
}

/* --- waiting ---------------------------------------------------------------------------------- */

struct writer {
    pthread_t thread;
    uint64_t blk, nblks;
    int byte;
    _Atomic bool done;
};

static void *writer_main(void *arg)
{
    struct writer *w = arg;

    core_fill(&c, w->blk * BLOCK, w->nblks * BLOCK, w->byte);
    w->done = true;
    return NULL;
}

/* Starts to write, and returns when the write has found no room three times: each time it has read
 * the image again, with nothing held between. */
static void start_waiting(struct writer *w, uint64_t blk, uint64_t nblks, int byte)
{
    w->blk = blk;
    w->nblks = nblks;
    w->byte = byte;
    w->done = false;
    fault_disarm(&c.fault); /* counts from 0 */
    assert_int_equal(pthread_create(&w->thread, NULL, writer_main, w), 0);
    while (fault_calls(&c.fault, FAULT_PREAD) < 3) {
        assert_false(w->done);
        sched_yield();
    }
    assert_false(w->done);
}

static void finish(struct writer *w)
{
    assert_int_equal(pthread_join(w->thread, NULL), 0);
    assert_true(w->done);
}

static void begin_full(void)
{
    c.cfg.on_scratch_full = VARVE_SCRATCH_WAIT;
    c.cfg.scratch_wait_ms = 1000;
    c.cfg.scratch_max = 2 * BLOCK;
    begin();
    assert_int_equal(varve_tracker_narrow(c.t, 5, -1, &why), 0);
    core_fetch(&c);
    write_block(0, 'a');
    write_block(1, 'a');
}

/*   writer                      control
 *   block 9: no room, waits
 *                               a boundary is made meanwhile: nobody is in the epoch
 *                               another block is written: nobody has its lock
 *                               the view lets go of block 0
 *   keeps block 9, writes */
static void a_write_waits_for_room_and_holds_up_neither_a_boundary_nor_other_writes(void **state)
{
    struct writer w;

    (void)state;
    begin_full();
    start_waiting(&w, 9, 1, 'b');
    core_boundary(&c, 0);
    core_fetch(&c);
    assert_block(9, 'x');
    assert_int_equal(varve_tracker_release(c.t, 5, 20 * BLOCK, BLOCK, &why), 0);
    write_block(20, 'c'); /* of the same stripe; nobody needs it */
    assert_false(w.done);
    assert_int_equal(varve_tracker_release(c.t, 5, 0, BLOCK, &why), 0);
    finish(&w);
    assert_block(9, 'x');
    assert_block(1, 'x');
    assert_int_equal(lost_bytes(), 0);
    assert_int_equal(kept_bytes(), 2 * BLOCK);
}

static void a_write_that_has_waited_long_enough_goes_on_and_others_do_not_wait_again(void **state)
{
    struct writer w;

    (void)state;
    begin_full();
    start_waiting(&w, 9, 1, 'b');
    clock_ns += UINT64_C(999000000);
    fault_disarm(&c.fault);
    while (fault_calls(&c.fault, FAULT_PREAD) < 3)
        sched_yield();
    assert_false(w.done);
    clock_ns += UINT64_C(1000000);
    finish(&w);
    assert_int_equal(lost_bytes(), BLOCK);
    assert_error(9, -EIO);
    write_block(10, 'b'); /* at once: this thread is the one that moves the clock */
    assert_error(10, -EIO);
    assert_block(1, 'x');
    assert_block(11, 'x');
}

static void waiting_begins_anew_when_there_was_room(void **state)
{
    struct writer w;

    (void)state;
    begin_full();
    start_waiting(&w, 9, 1, 'b');
    clock_ns += UINT64_C(5000000000);
    finish(&w);
    assert_int_equal(varve_tracker_release(c.t, 5, 0, 2 * BLOCK, &why), 0);
    write_block(12, 'b'); /* kept: there is room again */
    write_block(13, 'b');
    start_waiting(&w, 14, 1, 'b');
    assert_int_equal(varve_tracker_release(c.t, 5, 12 * BLOCK, BLOCK, &why), 0);
    finish(&w);
    assert_block(13, 'x');
    assert_block(14, 'x');
    assert_int_equal(lost_bytes(), BLOCK);
}

static void a_write_that_waits_goes_on_when_the_backup_ends(void **state)
{
    struct writer w;

    (void)state;
    begin_full();
    start_waiting(&w, 9, 3, 'b');
    assert_int_equal(varve_tracker_end_view(c.t, 5, &why), 0);
    finish(&w);
}

/* One block fits, the next does not: of 128 KiB, kept in two chunks of 64, the first of which did. */
static void a_block_that_was_kept_in_part_is_kept_again_and_counted_once(void **state)
{
    struct writer w;
    char *buf = malloc(2 * 131072);

    (void)state;
    core_fini(&c);
    init(8 * 131072, 131072);
    c.cfg.on_scratch_full = VARVE_SCRATCH_WAIT;
    c.cfg.scratch_wait_ms = 1000;
    c.cfg.scratch_max = 5 * 65536;
    begin();
    assert_int_equal(varve_tracker_narrow(c.t, 5, -1, &why), 0);
    core_fetch(&c);
    core_fill(&c, 0, 1, 'a');
    watch_sum();
    start_waiting(&w, 2 * 32, 2 * 32, 'b'); /* blocks 2 and 3 */
    assert_int_equal(kept_bytes(), 2 * 131072); /* 0 and 2 */
    assert_int_equal(varve_tracker_release(c.t, 5, 0, 131072, &why), 0);
    finish(&w);
    assert_int_equal(preserved(), 3 * 131072);
    assert_false(sum_fell);
    close(sum_fd);
    sum_fd = -1;
    assert_int_equal(kept_bytes(), 2 * 131072); /* 2 and 3 */
    assert_int_equal(lost_bytes(), 0);
    assert_int_equal(varve_view_read(c.source, &v, buf, 2 * 131072, 2 * 131072, NULL, &why), 0);
    for (unsigned i = 0; i < 2 * 131072; i++)
        assert_int_equal(buf[i], 'x');
    free(buf);
}

/* --- the file system's room ------------------------------------------------------------------- */

static void preserving_leaves_the_reserve_and_the_guest_notices_nothing(void **state)
{
    (void)state;
    c.cfg.scratch_reserve = 100 * MIB;
    begin();
    fs_free = 200 * MIB;
    write_block(0, 'a');
    fs_free = 100 * MIB + BLOCK - 1;
    clock_ns += UINT64_C(1000000000); /* what was asked for in advance is for a moment only */
    write_block(1, 'a');
    assert_block(0, 'x');
    assert_error(1, -EIO);
    fs_free = 100 * MIB + BLOCK;
    write_block(2, 'a');
    assert_block(2, 'x');
    fs_free = 0;
    clock_ns += UINT64_C(1000000000);
    write_block(3, 'a');
    assert_error(3, -EIO);
    fs_free = 200 * MIB;
    write_block(4, 'a');
    assert_block(4, 'x');
    assert_int_equal(lost_bytes(), 2 * BLOCK);
}

static void check_reserve(uint64_t total, uint64_t reserve)
{
    core_fini(&c);
    init(SIZE, BLOCK);
    c.cfg.scratch_reserve = VARVE_SCRATCH_RESERVE_DEFAULT;
    fs_total = total;
    begin();
    fs_free = reserve + BLOCK - 1;
    write_block(0, 'a');
    assert_error(0, -EIO);
    fs_free = reserve + BLOCK;
    write_block(1, 'a');
    assert_block(1, 'x');
}

static void the_reserve_is_one_percent_but_64_mib_and_at_most_a_tenth(void **state)
{
    (void)state;
    check_reserve(UINT64_C(1) << 40, (UINT64_C(1) << 40) / 100);
    check_reserve(1000 * MIB, 64 * MIB);
    check_reserve(100 * MIB, 10 * MIB);
}

static void what_is_asked_for_in_advance_is_used_up(void **state)
{
    (void)state;
    core_fini(&c);
    init(64 * MIB, BLOCK);
    c.cfg.scratch_reserve = 100 * MIB;
    begin();
    fs_free = 100 * MIB + 16 * MIB; /* and says so however much is written */
    core_fill(&c, 0, 3 * MIB, 'a');
    fs_free = 100 * MIB;
    core_fill(&c, 3 * MIB, 8 * MIB, 'a'); /* the clock stands still */
    assert_true(lost_bytes() >= 8 * MIB - 4 * MIB);
}

/* --- no room for the guest -------------------------------------------------------------------- */

static void a_guest_without_space_gets_that_of_the_backups_which_break(void **state)
{
    char path[PATH_MAX + 64];
    struct stat st;

    (void)state;
    c.cfg.scratch_max = 20 * BLOCK;
    begin();
    for (unsigned blk = 0; blk < 15; blk++)
        write_block(blk, 'a');
    core_boundary(&c, 0);
    core_fetch(&c);
    write_block(20, 'a');
    assert_block(20, 'x');
    varve_tracker_make_room(c.t);
    scratch_path(v.boundary, "scratch", path);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_blocks, 0);
    assert_error(0, -ESTALE);
    assert_non_null(strstr(why.msg, "the guest needed the space"));
    assert_error(30, -ESTALE);
    write_block(21, 'a'); /* nothing is kept for it any more */
    assert_int_equal(on_disk(v.boundary + 1, "scratch"), 0);

    core_kill(&c); /* and so it stays */
    core_start(&c);
    write_block(22, 'a');
    assert_int_equal(on_disk(v.boundary + 1, "scratch"), 0);
    assert_int_equal(varve_tracker_end_view(c.t, 5, &why), 0);
    v = (struct varve_view){.id = 6, .boundary = core_boundary(&c, 6)};
    core_fetch(&c);
    for (unsigned blk = 0; blk < 20; blk++) /* all of scratch-max is there again */
        write_block(blk, 'b');
    assert_block(0, 'a');
    assert_block(19, 'x');
    assert_block(22, 'a');
    write_block(40, 'b');
    assert_error(40, -EIO);
}

static void nothing_breaks_where_nothing_would_be_won(void **state)
{
    (void)state;
    begin();
    varve_tracker_make_room(c.t);
    write_block(0, 'a');
    assert_block(0, 'x');
}

/* --- what the kernel could not write back ----------------------------------------------------- */

static uint64_t ino_of_scratch(uint64_t epoch)
{
    char path[PATH_MAX + 64];
    struct stat st;

    scratch_path(epoch, "scratch", path);
    assert_int_equal(stat(path, &st), 0);
    return st.st_ino;
}

static void what_could_not_be_written_back_is_not_believed(void **state)
{
    (void)state;
    begin();
    write_block(3, 'a');
    assert_block(3, 'x');
    bad_ino = ino_of_scratch(v.boundary);
    assert_error(3, -ESTALE);
    assert_non_null(strstr(why.msg, "did not all come to its device"));
    bad_ino = 0; /* the kernel tells it once to each */
    assert_error(3, -ESTALE);
    assert_error(4, -ESTALE);
    assert_int_equal(varve_view_check(c.source, &v, &why), -ESTALE);
}

static void nor_is_it_by_who_does_not_wait(void **state)
{
    char buf[BLOCK];

    (void)state;
    begin();
    write_block(3, 'a');
    assert_block(3, 'x');
    assert_int_equal(varve_view_read_now(c.source, &v, buf, 3 * BLOCK, BLOCK), 0);
    bad_ino = ino_of_scratch(v.boundary);
    assert_int_equal(varve_view_read_now(c.source, &v, buf, 3 * BLOCK, BLOCK), -EAGAIN);
}

static void a_look_at_the_view_finds_it_before_anybody_reads(void **state)
{
    (void)state;
    begin();
    write_block(3, 'a');
    bad_ino = ino_of_scratch(v.boundary);
    assert_int_equal(varve_view_check(c.source, &v, &why), -ESTALE);
}

static void holes_of_a_scratch_that_could_not_be_written_back_are_not_believed(void **state)
{
    uint64_t run;

    (void)state;
    core_start(&c);
    v = (struct varve_view){.id = 5, .boundary = core_boundary(&c, 5)};
    core_open_source(&c);
    write_block(3, 'a');
    assert_int_equal(varve_view_hole_run(c.source, &v, 3 * BLOCK, BLOCK, NULL, &run, &why), 1);
    bad_ino = ino_of_scratch(v.boundary);
    assert_true(varve_view_hole_run(c.source, &v, 3 * BLOCK, BLOCK, NULL, &run, &why) != 1);
}

/* A reader that was told, and died before it could say so; its successor is told nothing. */
static void the_server_keeps_in_mind_what_could_not_be_written_back(void **state)
{
    (void)state;
    begin();
    write_block(3, 'a');
    core_close_source(&c);
    bad_ino = ino_of_scratch(v.boundary);
    core_open_source(&c); /* the server looks while it hands the files out */
    bad_ino = 0;
    assert_error(3, -ESTALE);
    core_kill(&c);
    core_start(&c);
    core_fetch(&c);
    assert_error(3, -ESTALE);
}

static void housekeeping_finds_what_could_not_be_written_back(void **state)
{
    (void)state;
    begin();
    assert_true(varve_tracker_housekeep(c.t) > 0);
    bad_ino = ino_of_scratch(v.boundary);
    varve_tracker_housekeep(c.t);
    bad_ino = 0;
    assert_error(3, -ESTALE);
}

/* --- big scratch files ------------------------------------------------------------------------ */

#define BIG (150 * MIB)

static void begin_big(void)
{
    core_fini(&c);
    init(BIG, BLOCK);
    begin();
    core_fill(&c, 0, BIG, 'a');
    assert_true(on_disk(v.boundary, "scratch") >= BIG);
}

/* Calls step() until it has nothing to do; each frees no more than a step. */
static void reap_in_steps(int (*step)(void), unsigned at_least)
{
    unsigned steps = 0;
    bool more = true;

    while (more) {
        uint64_t before = punched_sum;

        more = step() == 1;
        assert_true(punched_sum - before <= VARVE_SCRATCH_STEP);
        steps += punched_sum > before;
        assert_true(steps < 100);
    }
    assert_true(steps >= at_least);
    assert_int_equal(on_disk(v.boundary, "dead"), UINT64_MAX);
}

static int step_of_server(void)
{
    return varve_tracker_housekeep(c.t) > 0;
}

static int step_of_daemon(void)
{
    struct varve_paths p;

    assert_int_equal(
        varve_paths_init(&p, c.state_dir, c.runtime_dir, NULL, "vda", &why), 0);
    return varve_scratch_reap(c.w, &p, VARVE_SCRATCH_STEP);
}

static void a_big_scratch_goes_in_steps_when_its_view_has_ended(void **state)
{
    (void)state;
    begin_big();
    assert_int_equal(varve_tracker_end_view(c.t, 5, &why), 0);
    assert_int_equal(on_disk(v.boundary, "scratch"), UINT64_MAX);
    assert_true(on_disk(v.boundary, "dead") >= BIG); /* nobody waited for it */
    assert_int_equal(punched_sum, 0);
    reap_in_steps(step_of_server, 3);
}

static void what_a_server_left_of_a_big_scratch_its_successor_frees(void **state)
{
    (void)state;
    begin_big();
    assert_int_equal(varve_tracker_end_view(c.t, 5, &why), 0);
    varve_tracker_housekeep(c.t);
    core_kill(&c);
    core_start(&c);
    assert_true(on_disk(v.boundary, "dead") >= BIG - VARVE_SCRATCH_STEP);
    reap_in_steps(step_of_server, 2);
}

static void scratch_of_before_a_host_crash_goes_in_steps(void **state)
{
    (void)state;
    begin_big();
    core_host_crash(&c);
    core_start(&c);
    assert_true(on_disk(v.boundary, "dead") >= BIG);
    core_stop(&c);
    reap_in_steps(step_of_daemon, 3);
}

/* Each in one piece, and none with more than some hundred extents. */
static void scattered_preimages_go_in_few_steps(void **state)
{
    unsigned steps = 0;

    (void)state;
    core_fini(&c);
    init(BIG, BLOCK);
    begin();
    for (uint64_t blk = 1; blk < BIG / BLOCK; blk += 2) /* 19,200 of them, 75 MiB */
        write_block(blk, 'a');
    assert_int_equal(varve_tracker_end_view(c.t, 5, &why), 0);
    while (step_of_server() == 1)
        assert_true(npunched <= ++steps);
    assert_true(npunched >= BIG / BLOCK / 2 / 500 && npunched < 60);
    assert_true(punched_sum < BIG && punched_most < 1000 * BLOCK);
    assert_int_equal(on_disk(v.boundary, "dead"), UINT64_MAX);
}

/* As the kernel does it for file systems that do not tell holes: all is data. */
static int64_t all_is_data(struct varve_world *w, int fd, uint64_t off)
{
    struct stat st;

    (void)w;
    assert_int_equal(fstat(fd, &st), 0);
    return off < (uint64_t)st.st_size ? (int64_t)off : -ENXIO;
}

static int64_t all_is_data_until_the_end(struct varve_world *w, int fd, uint64_t off)
{
    struct stat st;

    (void)w;
    assert_int_equal(fstat(fd, &st), 0);
    return off < (uint64_t)st.st_size ? st.st_size : -ENXIO;
}

static void scratch_goes_where_the_file_system_does_not_tell_holes(void **state)
{
    (void)state;
    core_fini(&c);
    init(BIG, BLOCK);
    c.machine.seek_data = all_is_data;
    c.machine.seek_hole = all_is_data_until_the_end;
    begin();
    core_fill(&c, 0, BIG, 'a');
    assert_int_equal(varve_tracker_end_view(c.t, 5, &why), 0);
    reap_in_steps(step_of_server, 1);
}

static void what_gave_way_goes_in_steps_while_its_backup_is_still_there(void **state)
{
    (void)state;
    begin_big();
    varve_tracker_make_room(c.t);
    assert_true(punched_sum <= VARVE_SCRATCH_STEP && punched_sum > 0); /* the guest waits for it */
    while (varve_tracker_housekeep(c.t) == 100)
        assert_true(punched_sum <= BIG);
    assert_int_equal(on_disk(v.boundary, "scratch"), 0);
    assert_true(punched_most <= VARVE_SCRATCH_STEP);
}

/* Breaks at the last block, with all the others kept. */
static void begin_broken(void)
{
    core_fini(&c);
    init(BIG, BLOCK);
    c.cfg.on_scratch_full = VARVE_SCRATCH_BREAK;
    c.cfg.scratch_max = BIG - BLOCK;
    begin();
    core_fill(&c, 0, BIG, 'a');
    assert_error(0, -ESTALE);
}

static void what_a_broken_backup_has_kept_goes_in_steps_while_it_is_still_there(void **state)
{
    (void)state;
    begin_broken();
    assert_int_equal(punched_sum, 0); /* the guest's write was not held up */
    while (varve_tracker_housekeep(c.t) == 100)
        assert_true(punched_sum <= BIG);
    assert_int_equal(on_disk(v.boundary, "scratch"), 0);
    assert_true(punched_most <= VARVE_SCRATCH_STEP);
    assert_error(0, -ESTALE);

    /* And the next one has all of scratch-max, the broken one never ended. */
    v = (struct varve_view){.id = 6, .boundary = core_boundary(&c, 6)};
    core_fetch(&c);
    core_fill(&c, 0, BIG - BLOCK, 'b');
    assert_block(0, 'a');
    assert_block(BIG / BLOCK - 1, 'a');
    assert_int_equal(kept_bytes(), BIG - BLOCK);
}

static void a_broken_backup_stays_freed_after_a_kill_on_the_way(void **state)
{
    (void)state;
    begin_broken();
    varve_tracker_housekeep(c.t);
    core_kill(&c);
    core_start(&c);
    core_fill(&c, 0, BIG, 'c'); /* keeps nothing more for it */
    while (varve_tracker_housekeep(c.t) == 100)
        assert_true(punched_sum <= BIG);
    assert_int_equal(on_disk(v.boundary, "scratch"), 0);
    assert_int_equal(varve_tracker_end_view(c.t, 5, &why), 0);
    v = (struct varve_view){.id = 6, .boundary = core_boundary(&c, 6)};
    core_open_source(&c);
    core_fill(&c, 0, BIG - BLOCK, 'd');
    assert_block(1, 'c');
}

int main(void)
{
#define ROOM_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        ROOM_TEST(a_write_waits_for_room_and_holds_up_neither_a_boundary_nor_other_writes),
        ROOM_TEST(a_write_that_has_waited_long_enough_goes_on_and_others_do_not_wait_again),
        ROOM_TEST(waiting_begins_anew_when_there_was_room),
        ROOM_TEST(a_write_that_waits_goes_on_when_the_backup_ends),
        ROOM_TEST(a_block_that_was_kept_in_part_is_kept_again_and_counted_once),
        ROOM_TEST(preserving_leaves_the_reserve_and_the_guest_notices_nothing),
        ROOM_TEST(the_reserve_is_one_percent_but_64_mib_and_at_most_a_tenth),
        ROOM_TEST(what_is_asked_for_in_advance_is_used_up),
        ROOM_TEST(a_guest_without_space_gets_that_of_the_backups_which_break),
        ROOM_TEST(nothing_breaks_where_nothing_would_be_won),
        ROOM_TEST(what_could_not_be_written_back_is_not_believed),
        ROOM_TEST(nor_is_it_by_who_does_not_wait),
        ROOM_TEST(a_look_at_the_view_finds_it_before_anybody_reads),
        ROOM_TEST(holes_of_a_scratch_that_could_not_be_written_back_are_not_believed),
        ROOM_TEST(the_server_keeps_in_mind_what_could_not_be_written_back),
        ROOM_TEST(housekeeping_finds_what_could_not_be_written_back),
        ROOM_TEST(a_big_scratch_goes_in_steps_when_its_view_has_ended),
        ROOM_TEST(what_a_server_left_of_a_big_scratch_its_successor_frees),
        ROOM_TEST(scratch_of_before_a_host_crash_goes_in_steps),
        ROOM_TEST(scattered_preimages_go_in_few_steps),
        ROOM_TEST(scratch_goes_where_the_file_system_does_not_tell_holes),
        ROOM_TEST(what_gave_way_goes_in_steps_while_its_backup_is_still_there),
        ROOM_TEST(what_a_broken_backup_has_kept_goes_in_steps_while_it_is_still_there),
        ROOM_TEST(a_broken_backup_stays_freed_after_a_kill_on_the_way),
    };

    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
