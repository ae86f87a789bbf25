/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Writes to the image by somebody else: each way to find them has a test that does write, and each
 * thing that must not be taken for one has a test that does that; so it is long.
 */
#include "lib/image-witness.h"

#include "lib/epoch-era.h"
#include "tests/lib/core-fixture.h"
#include "tests/lib/tmpdir.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define BLOCK  4096u
#define BLKS   64u
#define SIZE   ((uint64_t)BLKS * BLOCK)
#define SECOND INT64_C(1000000000)

static struct core c;
static uint64_t boundary; /* of a checkpoint */

/* A disk that was written to before and after a checkpoint. */
static int setup(void **state)
{
    (void)state;
    core_init(&c, SIZE, BLOCK);
    core_start(&c);
    core_fill(&c, 0, BLOCK, 'a');
    boundary = core_boundary(&c, 0);
    core_fill(&c, BLOCK, BLOCK, 'b');
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    core_fini(&c);
    return 0;
}

/* --- shorthands ------------------------------------------------------------------------------- */

/* What changed since the checkpoint can be told. */
static int since_checkpoint(struct varve_bitmap *into)
{
    const uint8_t *uuid = varve_tracker_identity(c.t)->uuid;
    struct varve_timeline tl;
    int r = varve_timeline_scan(c.w, varve_tracker_paths(c.t), uuid, &c.g, &tl, NULL);

    assert_int_equal(r, 0);
    r = varve_timeline_union(c.w, varve_tracker_paths(c.t), uuid, &c.g, &tl, boundary,
                             varve_tracker_epoch(c.t), into, NULL);
    varve_timeline_fini(&tl);
    return r;
}

static void assert_trusted(void)
{
    core_start(&c);
    assert_int_equal(since_checkpoint(NULL), 0);
    assert_int_equal(varve_era(varve_tracker_epoch(c.t)), varve_era(boundary));
}

static void assert_doubted(void)
{
    uint64_t again;

    core_start(&c);
    assert_int_equal(since_checkpoint(NULL), -EUCLEAN);
    assert_non_null(strstr(c.notes, "cannot be believed"));
    /* Durably; and what begins from here is fine. */
    core_kill(&c);
    core_start(&c);
    assert_int_equal(since_checkpoint(NULL), -EUCLEAN);
    again = core_boundary(&c, 0);
    core_stop(&c);
    core_start(&c);
    assert_int_equal(since_checkpoint(NULL), -EUCLEAN);
    boundary = again;
    assert_int_equal(since_checkpoint(NULL), 0);
}

static int64_t image_time(void)
{
    struct stat st;

    assert_int_equal(stat(c.image, &st), 0);
    return (int64_t)st.st_mtim.tv_sec * SECOND + st.st_mtim.tv_nsec;
}

static void set_image_time(int64_t ns)
{
    struct timespec ts[2] = {{0, UTIME_OMIT}, {ns / SECOND, ns % SECOND}};

    assert_int_equal(utimensat(AT_FDCWD, c.image, ts, 0), 0);
}

/* dd, through an open of its own. */
static void foreign_write(void)
{
    int fd = open(c.image, O_WRONLY | O_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, "foreign", 7, 9 * BLOCK), 7);
    close(fd);
}

/* The same, `ns` after the image's time at least; the clock is waited for. */
static void foreign_write_after(int64_t ns)
{
    int64_t was = image_time();

    do
        foreign_write();
    while (image_time() <= was + ns);
}

/* --- after a clean stop ----------------------------------------------------------------------- */

/* A kernel that stamps by the tick, 100 of them a second. */
static int coarse_stat(struct varve_world *w, int fd, struct varve_stat *st)
{
    int r = varve_world_posix()->stat(w, fd, st);

    if (r == 0)
        st->mtime_ns -= st->mtime_ns % (SECOND / 100);
    return r;
}

static void a_write_right_after_a_clean_stop_is_found(void **state)
{
    (void)state;
    c.machine.stat = coarse_stat;
    for (int i = 0; i < 10; i++) {
        core_fill(&c, BLOCK, BLOCK, i);
        core_stop(&c);
        foreign_write(); /* no tick has to pass: the stop has waited for it */
        core_start(&c);
        assert_non_null(strstr(c.notes, "cannot be believed"));
    }
    core_stop(&c);
    foreign_write();
    assert_doubted();
}

static void a_write_after_a_clean_stop_and_a_reboot_is_found(void **state)
{
    (void)state;
    core_stop(&c);
    core_host_crash(&c);
    foreign_write();
    assert_doubted();
}

static void a_write_through_a_mapping_is_found(void **state)
{
    int fd = open(c.image, O_RDWR | O_CLOEXEC);
    char *at;

    (void)state;
    core_stop(&c);
    at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(at != MAP_FAILED);
    at[5 * BLOCK] = 'm';
    assert_int_equal(munmap(at, SIZE), 0);
    close(fd);
    assert_doubted();
}

static void a_punched_hole_is_found(void **state)
{
    (void)state;
    core_stop(&c);
    assert_int_equal(fallocate(c.image_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, BLOCK),
                     0);
    assert_doubted();
}

static void an_older_image_in_its_place_is_found(void **state)
{
    (void)state;
    core_stop(&c);
    foreign_write();
    set_image_time(image_time() - 3600 * SECOND);
    assert_doubted();
}

/* cp -a and mv: the time is the same, the file is not. */
static void another_file_in_its_place_is_found(void **state)
{
    char other[PATH_MAX + 8];
    int64_t time = image_time();
    int fd;

    (void)state;
    core_stop(&c);
    snprintf(other, sizeof(other), "%s.new", c.image);
    fd = open(other, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, SIZE), 0);
    assert_int_equal(rename(other, c.image), 0);
    set_image_time(time);
    assert_int_equal(dup3(fd, c.image_fd, O_CLOEXEC), c.image_fd);
    close(fd);
    assert_doubted();
}

static void a_write_while_the_daemon_has_the_disk_for_a_moment_is_found(void **state)
{
    struct varve_err err = VARVE_ERR_INIT;
    int fd = c.cfg.image_fd;

    (void)state;
    core_stop(&c);
    c.cfg.image_fd = -1;
    core_start(&c);
    core_boundary(&c, 0);
    foreign_write();
    assert_int_equal(varve_tracker_detach(c.t, &err), 0);
    core_start(&c);
    assert_int_equal(since_checkpoint(NULL), -EUCLEAN);
    core_stop(&c);
    c.cfg.image_fd = fd;
    core_start(&c);
    assert_int_equal(since_checkpoint(NULL), -EUCLEAN);
    assert_string_equal(c.notes, ""); /* it was found before */
}

/* --- after a kill ------------------------------------------------------------------------------
 */

static void a_write_after_a_kill_is_found(void **state)
{
    (void)state;
    core_kill(&c);
    foreign_write_after(SECOND / 20);
    assert_doubted();
}

static void a_write_after_the_kill_of_a_server_that_never_wrote_is_found(void **state)
{
    (void)state;
    core_stop(&c);
    core_start(&c);
    core_kill(&c);
    foreign_write();
    assert_doubted();
}

static void an_older_image_after_a_kill_is_found(void **state)
{
    (void)state;
    core_kill(&c);
    set_image_time(image_time() - 3600 * SECOND);
    assert_doubted();
}

/* A write was under way: it may be later than the last one that ended, not later than the beat. */
static void a_write_that_was_under_way_is_not_taken_for_foreign_and_a_later_one_is(void **state)
{
    static char page[sizeof(struct varve_beat)];
    char path[PATH_MAX];
    struct varve_piece p;
    int fd;

    (void)state;
    varve_tracker_beat(c.t);
    varve_piece_begin(c.t, 0, BLOCK, false, &p);
    varve_path_beat(varve_tracker_paths(c.t), path);
    fd = open(path, O_RDWR | O_CLOEXEC);
    assert_int_equal(pread(fd, page, sizeof(page), 0), sizeof(page));
    varve_piece_end(c.t, &p);
    core_kill(&c);
    assert_int_equal(pwrite(fd, page, sizeof(page), 0),
                     sizeof(page)); /* as if it had died inside */
    close(fd);
    set_image_time(image_time() + SECOND);
    assert_trusted();

    varve_piece_begin(c.t, 0, BLOCK, false, &p);
    fd = open(path, O_RDWR | O_CLOEXEC);
    assert_int_equal(pread(fd, page, sizeof(page), 0), sizeof(page));
    varve_piece_end(c.t, &p);
    core_kill(&c);
    assert_int_equal(pwrite(fd, page, sizeof(page), 0), sizeof(page));
    close(fd);
    set_image_time(image_time() + 60 * SECOND);
    assert_doubted();
}

/* --- after a crash of the host ------------------------------------------------------------------
 */

static void a_write_after_a_crash_of_the_host_is_found(void **state)
{
    (void)state;
    core_host_crash(&c);
    foreign_write_after(0);
    assert_doubted();
}

static uint64_t two_minutes_later(struct varve_world *w)
{
    (void)w;
    return varve_world_posix()->realtime_ns(w) + UINT64_C(120000000000);
}

/* fsck after the kill, a minute later, and then the machine was started anew. */
static void a_write_between_a_kill_and_a_crash_is_found_when_it_is_late(void **state)
{
    (void)state;
    core_kill(&c);
    foreign_write();
    set_image_time(image_time() + 60 * SECOND);
    core_host_crash(&c);
    c.machine.realtime_ns = two_minutes_later;
    assert_doubted();
}

/* --- no false alarm ------------------------------------------------------------------------------
 */

static void stops_kills_crashes_and_what_changes_no_byte_raise_no_alarm(void **state)
{
    char buf[BLOCK], path[PATH_MAX + 8];
    int fd;

    (void)state;
    for (int i = 0; i < 3; i++) {
        core_stop(&c);
        assert_int_equal(chmod(c.image, 0640), 0);
        assert_int_equal(chown(c.image, getuid(), getgid()), 0);
        fd = open(c.image, O_RDWR | O_CLOEXEC);
        assert_int_equal(pread(fd, buf, sizeof(buf), 0), sizeof(buf));
        assert_int_equal(fdatasync(fd), 0);
        assert_int_equal(fsync(fd), 0);
        close(fd);
        snprintf(path, sizeof(path), "%s.link", c.image);
        assert_int_equal(link(c.image, path), 0);
        assert_int_equal(unlink(path), 0);
        assert_trusted();
        core_fill(&c, 3 * BLOCK, BLOCK, i);
        core_kill(&c);
        assert_trusted();
        core_kill(&c);
        assert_trusted();
        core_fill(&c, 4 * BLOCK, BLOCK, i);
        core_host_crash(&c);
        assert_trusted();
        core_stop(&c);
        core_host_crash(&c);
        assert_trusted();
        varve_tracker_flush(c.t, false, NULL);
    }
}

static void
a_daemon_that_takes_a_killed_disk_for_a_moment_changes_nothing_of_the_evidence(void **state)
{
    int fd = c.cfg.image_fd;

    (void)state;
    core_kill(&c);
    for (int i = 0; i < 2; i++) {
        c.cfg.image_fd = -1;
        assert_trusted();
        core_boundary(&c, 0);
        core_stop(&c);
    }
    c.cfg.image_fd = fd;
    assert_trusted();
    core_kill(&c);
    c.cfg.image_fd = -1;
    assert_trusted();
    core_stop(&c);
    c.cfg.image_fd = fd;
    foreign_write_after(SECOND / 20);
    assert_doubted();
}

static void runtime_files_that_are_gone_raise_no_alarm(void **state)
{
    char path[PATH_MAX + 8];

    (void)state;
    core_kill(&c);
    snprintf(path, sizeof(path), "%s/vda", c.runtime_dir);
    tmpdir_empty(path);
    assert_trusted();
    core_kill(&c);
    tmpdir_empty(path);
    foreign_write();
    set_image_time(image_time() + 60 * SECOND);
    assert_doubted();
}

/* --- a state folder that is not the image's
 * ------------------------------------------------------- */

static void copy_state(const char *to, const char *from)
{
    char cmd[4 * PATH_MAX];

    snprintf(cmd, sizeof(cmd), "rm -rf %s && cp -a %s %s", to, from, to);
    assert_int_equal(system(cmd), 0);
}

static void an_older_state_folder_is_found(void **state)
{
    char copy[PATH_MAX + 8];

    (void)state;
    snprintf(copy, sizeof(copy), "%s.copy", c.state_dir);
    core_stop(&c);
    copy_state(copy, c.state_dir);
    core_start(&c);
    core_fill(&c, 7 * BLOCK, BLOCK, 'n');
    core_boundary(&c, 0);
    core_stop(&c);
    copy_state(c.state_dir, copy);
    assert_doubted();
}

/* The image was not written meanwhile: only the control page tells, and numbers must not come
 * twice. */
static void an_older_state_folder_is_found_by_the_epochs_it_does_not_know(void **state)
{
    char copy[PATH_MAX + 8];
    uint64_t later;

    (void)state;
    snprintf(copy, sizeof(copy), "%s.copy", c.state_dir);
    core_stop(&c);
    copy_state(copy, c.state_dir);
    core_start(&c);
    later = core_boundary(&c, 0);
    core_stop(&c);
    copy_state(c.state_dir, copy);
    core_start(&c);
    assert_int_equal(since_checkpoint(NULL), -EUCLEAN);
    assert_true(varve_tracker_epoch(c.t) > later);
    assert_non_null(strstr(c.notes, "older"));
}

/* --- dying, damage
 * -------------------------------------------------------------------------------- */

static void dying_at_any_call_of_an_attach_that_doubts_loses_no_doubt(void **state)
{
    bool died = true;

    (void)state;
    for (uint64_t n = 1; died; n++) {
        struct varve_err err = VARVE_ERR_INIT;
        int r;

        core_fini(&c);
        setup(NULL);
        if (n % 2)
            core_stop(&c);
        else
            core_kill(&c);
        foreign_write_after(SECOND / 20);
        fault_crash_at(&c.fault, FAULT_ANY, n);
        r = core_try_start(&c, &err);
        died = fault_fired(&c.fault);
        if (r == 0) {
            varve_tracker_detach(c.t,
                                 NULL); /* in a world where nothing is done any more, if it died */
            c.t = NULL;
        }
        fault_disarm(&c.fault);
        core_start(&c);
        assert_int_equal(since_checkpoint(NULL), -EUCLEAN);
    }
}

static void views_end_with_a_doubt(void **state)
{
    struct varve_view v = {.id = 7};
    char buf[BLOCK];

    (void)state;
    v.boundary = core_boundary(&c, v.id);
    core_open_source(&c);
    assert_int_equal(varve_view_read(c.source, &v, buf, 0, BLOCK, NULL, NULL), 0);
    core_kill(&c);
    foreign_write_after(SECOND / 20);
    core_start(&c);
    assert_int_equal(varve_view_read(c.source, &v, buf, 0, BLOCK, NULL, NULL), -ESTALE);
}

/* What was written before the doubt stays known: who trusts the image needs it. */
static void the_epoch_before_a_doubt_keeps_its_bits(void **state)
{
    struct varve_bitmap *m;

    (void)state;
    core_kill(&c);
    foreign_write_after(SECOND / 20);
    core_start(&c);
    m = core_sealed_bits(&c, boundary);
    assert_int_equal(varve_bitmap_count(m), 1);
    assert_true(varve_bitmap_test(m, 1));
    free(m);
}

static void a_damaged_witness_is_not_believed(void **state)
{
    struct varve_witness wit;
    char path[PATH_MAX];
    uint64_t seq;
    int fd;

    (void)state;
    varve_path_witness(varve_tracker_paths(c.t), path);
    core_stop(&c);
    core_start(&c);
    assert_int_equal(varve_witness_read(c.w, varve_tracker_paths(c.t),
                                        varve_tracker_identity(c.t)->uuid, &wit, NULL),
                     0);
    seq = wit.seq;
    assert_true(seq > 1);
    fd = open(path, O_RDWR | O_CLOEXEC);
    for (unsigned slot = 0; slot < 2; slot++) {
        assert_int_equal(pwrite(fd, "?", 1, (off_t)(((seq + slot) % 2) * 4096 + 100)), 1);
        assert_int_equal(varve_witness_read(c.w, varve_tracker_paths(c.t),
                                            varve_tracker_identity(c.t)->uuid, &wit, NULL),
                         0);
        assert_int_equal(wit.seq, slot == 0 ? seq - 1 : 0);
    }
    close(fd);
    core_kill(&c);
    core_start(&c);
    assert_non_null(strstr(c.notes, "not proved"));
}

/* --- block devices: by the judgement alone
 * ---------------------------------------------------------- */

static enum varve_verdict judge_device(struct varve_judge *j)
{
    char why[VARVE_WITNESS_TEXT];

    return varve_judge_image(j, why);
}

static void a_block_device_is_proved_within_a_boot_only(void **state)
{
    struct varve_witness wit = {
        .kind = VARVE_WITNESS_CLEAN,
        .boot_id = {1},
        .look = {.block = true, .dev = 7, .size = SIZE, .diskseq = 3, .sectors = 100}};
    struct varve_beat_copy beat = {.beat_ns = 1};
    struct varve_judge j = {.wit = &wit, .look = wit.look, .boot_id = {1}};

    (void)state;
    assert_int_equal(judge_device(&j), VARVE_IMAGE_PROVED);
    j.look.sectors = 108;
    assert_int_equal(judge_device(&j), VARVE_IMAGE_CHANGED);
    j.look.sectors = 100;
    j.look.diskseq = 4;
    assert_int_equal(judge_device(&j), VARVE_IMAGE_UNPROVED);
    j.look.diskseq = wit.look.diskseq = 0; /* a kernel that does not tell */
    assert_int_equal(judge_device(&j), VARVE_IMAGE_UNPROVED);
    j.look.diskseq = wit.look.diskseq = 3;
    j.boot_id[0] = 2;
    assert_int_equal(judge_device(&j), VARVE_IMAGE_UNPROVED);
    j.boot_id[0] = 1;
    j.look.size++;
    assert_int_equal(judge_device(&j), VARVE_IMAGE_CHANGED);
    j.look.size--;
    wit.kind = VARVE_WITNESS_SERVED;
    assert_int_equal(judge_device(&j), VARVE_IMAGE_UNPROVED);
    j.beat = &beat;
    assert_int_equal(judge_device(&j), VARVE_IMAGE_PROVED);
    beat.entered = true;
    assert_int_equal(judge_device(&j), VARVE_IMAGE_UNPROVED);
    j.look.block = false;
    assert_int_equal(judge_device(&j), VARVE_IMAGE_CHANGED);
}

/* Ours that was begun: the size, and the time of a file, are its doing; anything else is not. */
static void another_size_is_ours_only_where_a_resize_was_begun(void **state)
{
    const int64_t s = INT64_C(1000000000);
    struct varve_witness wit = {
        .kind = VARVE_WITNESS_CLEAN,
        .boot_id = {1},
        .look = {.dev = 7, .ino = 8, .size = SIZE, .mtime_ns = 1000 * s}};
    struct varve_judge j = {.wit = &wit, .look = wit.look, .boot_id = {1}};

    (void)state;
    j.look.size = 2 * SIZE;
    j.look.mtime_ns = 5000 * s + 1;
    assert_int_equal(judge_device(&j), VARVE_IMAGE_CHANGED);
    j.resize = (struct varve_resize){2 * SIZE, 5000 * (uint64_t)s};
    assert_int_equal(judge_device(&j), VARVE_IMAGE_PROVED);
    j.look.mtime_ns = 5060 * s; /* somebody wrote when it was done */
    assert_int_equal(judge_device(&j), VARVE_IMAGE_CHANGED);
    j.look.mtime_ns = 4990 * s; /* it had that size before */
    assert_int_equal(judge_device(&j), VARVE_IMAGE_CHANGED);
    j.resize.time_ns = INT64_MAX; /* of a disk.json that nobody of ours wrote */
    assert_int_equal(judge_device(&j), VARVE_IMAGE_CHANGED);
    j.look.mtime_ns = INT64_MAX;
    assert_int_equal(judge_device(&j), VARVE_IMAGE_PROVED);
    j.resize.time_ns = 5000 * (uint64_t)s;
    assert_int_equal(judge_device(&j), VARVE_IMAGE_CHANGED);
    j.look.mtime_ns = 5001 * s;
    j.look.ino++;
    assert_int_equal(judge_device(&j), VARVE_IMAGE_CHANGED);
    j.look.ino--;
    j.look.size++;
    assert_int_equal(judge_device(&j), VARVE_IMAGE_CHANGED);
    j.look.size = SIZE; /* it was not done: nothing of ours has touched it */
    assert_int_equal(judge_device(&j), VARVE_IMAGE_CHANGED);
    j.look.mtime_ns = wit.look.mtime_ns;
    assert_int_equal(judge_device(&j), VARVE_IMAGE_PROVED);

    wit.look = (struct varve_image_look){
        .block = true, .dev = 7, .size = SIZE, .diskseq = 3, .sectors = 100};
    j.look = wit.look;
    j.look.size = 2 * SIZE;
    assert_int_equal(judge_device(&j), VARVE_IMAGE_PROVED);
    j.look.sectors++;
    assert_int_equal(judge_device(&j), VARVE_IMAGE_CHANGED);
}

int main(void)
{
#define WITNESS_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        WITNESS_TEST(a_write_right_after_a_clean_stop_is_found),
        WITNESS_TEST(a_write_after_a_clean_stop_and_a_reboot_is_found),
        WITNESS_TEST(a_write_through_a_mapping_is_found),
        WITNESS_TEST(a_punched_hole_is_found),
        WITNESS_TEST(an_older_image_in_its_place_is_found),
        WITNESS_TEST(another_file_in_its_place_is_found),
        WITNESS_TEST(a_write_while_the_daemon_has_the_disk_for_a_moment_is_found),
        WITNESS_TEST(a_write_after_a_kill_is_found),
        WITNESS_TEST(a_write_after_the_kill_of_a_server_that_never_wrote_is_found),
        WITNESS_TEST(an_older_image_after_a_kill_is_found),
        WITNESS_TEST(a_write_that_was_under_way_is_not_taken_for_foreign_and_a_later_one_is),
        WITNESS_TEST(a_write_after_a_crash_of_the_host_is_found),
        WITNESS_TEST(a_write_between_a_kill_and_a_crash_is_found_when_it_is_late),
        WITNESS_TEST(stops_kills_crashes_and_what_changes_no_byte_raise_no_alarm),
        WITNESS_TEST(
            a_daemon_that_takes_a_killed_disk_for_a_moment_changes_nothing_of_the_evidence),
        WITNESS_TEST(runtime_files_that_are_gone_raise_no_alarm),
        WITNESS_TEST(an_older_state_folder_is_found),
        WITNESS_TEST(an_older_state_folder_is_found_by_the_epochs_it_does_not_know),
        WITNESS_TEST(dying_at_any_call_of_an_attach_that_doubts_loses_no_doubt),
        WITNESS_TEST(views_end_with_a_doubt),
        WITNESS_TEST(the_epoch_before_a_doubt_keeps_its_bits),
        WITNESS_TEST(a_damaged_witness_is_not_believed),
        WITNESS_TEST(a_block_device_is_proved_within_a_boot_only),
        WITNESS_TEST(another_size_is_ours_only_where_a_resize_was_begun),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
