/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Regions that become hot and cold while several threads write: the orders of docs/architecture.md,
 * each forced by holding a sync.  What cannot be seen from outside is looked at in the tracker's own
 * structures.
 */
#include "lib/tracker-internal.h"
#include "tests/lib/held-sync.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define BLOCK       4096u
#define MIB         (UINT64_C(1) << 20)
#define REGION_BLKS (MIB / BLOCK)
#define REGIONS     16u
#define SIZE        (REGIONS * MIB)

static struct core c;
static struct varve_view v; /* id 5 */
static struct varve_err why;

static int setup(void **state)
{
    (void)state;
    core_init(&c, SIZE, BLOCK);
    held_init(&c);
    core_start(&c);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    core_fini(&c);
    return 0;
}

static void write_block(uint64_t blk, int byte)
{
    core_fill(&c, blk * BLOCK, BLOCK, byte);
}

static uint8_t state_of(uint64_t region)
{
    return atomic_load(&c.t->intent->state[region]);
}

static void flush(void)
{
    assert_int_equal(varve_tracker_flush(c.t, true, &why), 0);
}

/* Two looks: the first one sees that nobody comes any more. */
static void cool(void)
{
    flush();
    flush();
}

/* --- threads ---------------------------------------------------------------------------------- */

/* A write that stops before it changes the image, and notes what was durable then. */
struct writer {
    pthread_t thread;
    uint64_t blk;
    _Atomic bool begun, go;
    _Atomic bool log_had_it;
};

static void *writer_main(void *arg)
{
    struct writer *w = arg;
    uint64_t off = w->blk * BLOCK;
    struct varve_piece p;
    char buf[BLOCK];

    memset(buf, 'w', sizeof(buf));
    varve_piece_begin(c.t, off, BLOCK, false, &p);
    w->log_had_it = held_log_has(off / MIB);
    w->begun = true;
    HELD_UNTIL(w->go);
    if (pwrite(c.image_fd, buf, BLOCK, (off_t)off) != BLOCK)
        abort();
    varve_piece_end(c.t, &p);
    return NULL;
}

static void writer_start(struct writer *w, uint64_t blk, bool go)
{
    w->blk = blk;
    w->begun = w->log_had_it = false;
    w->go = go;
    assert_int_equal(pthread_create(&w->thread, NULL, writer_main, w), 0);
}

static void writer_join(struct writer *w)
{
    w->go = true;
    assert_int_equal(pthread_join(w->thread, NULL), 0);
    assert_true(w->log_had_it); /* I4 */
}

/* How often writers have come to the gate, and how many are inside. */
static uint64_t entered(uint64_t *inside)
{
    uint64_t n = 0;

    *inside = 0;
    for (unsigned i = 0; i < VARVE_GATE_SHARDS; i++) {
        for (unsigned bank = 0; bank < 2; bank++) {
            uint64_t count = atomic_load(&c.t->gate.shards[i].inside[bank]);

            n += count >> 32;
            *inside += (uint32_t)count;
        }
    }
    return n;
}

static bool has_come_and_left(uint64_t before)
{
    uint64_t inside;

    return entered(&inside) > before && inside == 0;
}

struct flusher {
    pthread_t thread;
    int result;
};

static void *flusher_main(void *arg)
{
    struct flusher *f = arg;

    f->result = varve_tracker_flush(c.t, true, NULL);
    return NULL;
}

static void flusher_start(struct flusher *f)
{
    assert_int_equal(pthread_create(&f->thread, NULL, flusher_main, f), 0);
}

static int flusher_join(struct flusher *f)
{
    assert_int_equal(pthread_join(f->thread, NULL), 0);
    return f->result;
}

/* --- a block that is dirty already ---------------------------------------------------------------- */

/* write block 3; its region cools; write block 3 again, in the same epoch: its bit is set */
static void a_dirty_block_of_a_cooled_region_is_in_the_log_before_it_is_written_again(void **state)
{
    struct writer w;

    (void)state;
    write_block(3, 'a');
    assert_true(held_log_has(0));
    cool();
    assert_false(held_log_has(0));
    writer_start(&w, 3, true);
    writer_join(&w);
    assert_true(held_log_has(0));
}

/* The same; then a boundary, at which a backup reads it; the power fails, and it is what it was. */
static void a_block_that_was_rewritten_in_a_cooled_region_is_dirty_after_a_crash(void **state)
{
    struct varve_bitmap *m;

    (void)state;
    write_block(3, 'a');
    cool();
    write_block(3, 'b');
    core_boundary(&c, 0);
    core_host_crash(&c);
    core_start(&c);
    m = core_live_bits(&c, 2);
    assert_true(varve_bitmap_test(m, 3));
    assert_int_equal(varve_bitmap_count(m), REGION_BLKS);
    free(m);
}

/* --- several writers --------------------------------------------------------------------------- */

/*   A                       B (another region)       D (a third)        C (A's region)
 *   writes the log,
 *   its sync is held
 *                           asks, waits              asks, waits        comes: it is asked for, and not
 *                                                                       durable: waits
 *   the sync returns: A and C go on
 *                           one sync for both of them */
static void a_writer_goes_on_only_when_his_region_is_durable_and_one_sync_is_for_many(void **state)
{
    struct writer a, b, d, again;
    uint64_t before, inside;
    unsigned syncs = held_count(HELD_LOG);

    (void)state;
    held_hold(HELD_LOG);
    writer_start(&a, 0, true);
    held_wait(HELD_LOG);
    writer_start(&b, 4 * REGION_BLKS, true);
    writer_start(&d, 8 * REGION_BLKS, true);
    HELD_UNTIL(varve_intent_wants(c.t->intent, 4) && varve_intent_wants(c.t->intent, 8));
    before = entered(&inside);
    writer_start(&again, 1, true);
    HELD_UNTIL(again.begun || has_come_and_left(before));
    assert_false(a.begun || b.begun || d.begun || again.begun);
    assert_false(held_log_has(0));
    held_go(HELD_LOG);
    writer_join(&a);
    writer_join(&again);
    writer_join(&b);
    writer_join(&d);
    assert_int_equal(held_count(HELD_LOG), syncs + 2);
}

/*   flusher                                     writer
 *   region 0 is cooling; the image's sync is held
 *                                               comes: takes the mark away, goes on at once
 *   the sync returns: the region stays hot */
static void who_comes_while_a_region_cools_keeps_it_hot(void **state)
{
    unsigned syncs;
    struct flusher f;
    struct writer w;

    (void)state;
    write_block(0, 'a');
    write_block(4 * REGION_BLKS, 'a');
    flush();
    held_hold(HELD_IMAGE);
    flusher_start(&f);
    held_wait(HELD_IMAGE);
    assert_int_equal(state_of(0), VARVE_INTENT_COOLING);
    syncs = held_count(HELD_LOG);
    writer_start(&w, 1, false);
    HELD_UNTIL(w.begun);
    assert_int_equal(held_count(HELD_LOG), syncs);
    held_go(HELD_IMAGE);
    assert_int_equal(flusher_join(&f), 0);
    assert_true(held_log_has(0));
    assert_false(held_log_has(4)); /* where nobody came */
    writer_join(&w);
    assert_true(state_of(0) >= VARVE_INTENT_TOUCHED);
}

static _Atomic unsigned data_written, synced_before_data;

static void note_sync(int fd)
{
    (void)fd;
    synced_before_data += !data_written;
}

/*   writer                                      flusher
 *   sees region 0 hot, is inside
 *                                               marks it cooling, waits for whoever is inside
 *   changes the image, leaves
 *                                               syncs the image, so that what was written is durable */
static void a_writer_who_saw_it_hot_is_waited_for_before_the_image_is_synced(void **state)
{
    struct flusher f;
    struct writer w;
    unsigned bank, syncs = held_count(HELD_IMAGE);

    (void)state;
    data_written = synced_before_data = 0;
    writer_start(&w, 0, false);
    HELD_UNTIL(w.begun);
    flush();
    held_on_image(note_sync);
    bank = atomic_load(&c.t->gate.bank);
    flusher_start(&f);
    /* Either he waits, which is what the other count is for, or he has not. */
    HELD_UNTIL(state_of(0) == VARVE_INTENT_COOLING || held_count(HELD_IMAGE) > syncs);
    HELD_UNTIL(atomic_load(&c.t->gate.bank) != bank || held_count(HELD_IMAGE) > syncs);
    data_written = 1;
    writer_join(&w);
    assert_int_equal(flusher_join(&f), 0);
    assert_int_equal(held_count(HELD_IMAGE), syncs + 1);
    assert_int_equal(synced_before_data, 0);
    assert_false(held_log_has(0));
}

/*   writer                  control
 *   writes the log,
 *   its sync is held
 *                           a boundary is made, and others write: nobody is inside the epoch
 *   goes on, in the new epoch */
static void a_boundary_is_made_while_a_commit_of_the_log_is_stuck(void **state)
{
    struct varve_bitmap *m;
    struct writer w;

    (void)state;
    write_block(0, 'a');
    held_hold(HELD_LOG);
    writer_start(&w, 4 * REGION_BLKS, true);
    held_wait(HELD_LOG);
    assert_int_equal(core_boundary(&c, 0), 2);
    write_block(1, 'b'); /* of a region that is hot */
    assert_false(w.begun);
    held_go(HELD_LOG);
    writer_join(&w);
    m = core_live_bits(&c, 2);
    assert_true(varve_bitmap_test(m, 4 * REGION_BLKS));
    free(m);
}

/* --- what fails ----------------------------------------------------------------------------------- */

static void a_map_that_was_not_made_durable_is_written_again_and_nothing_cools(void **state)
{
    struct varve_bitmap *m;
    unsigned images;

    (void)state;
    write_block(0, 'a');
    flush();
    images = held_count(HELD_IMAGE);
    held_fail(HELD_MAP, 1);
    assert_int_equal(varve_tracker_flush(c.t, true, &why), -EIO);
    assert_int_equal(held_count(HELD_IMAGE), images);
    assert_true(held_log_has(0));
    cool();
    assert_false(held_log_has(0));
    core_host_crash(&c);
    core_start(&c);
    m = core_live_bits(&c, 1);
    assert_int_equal(varve_bitmap_count(m), 1); /* that one, from the file */
    free(m);
}

static void assert_region_failed(uint64_t region)
{
    struct varve_bitmap *m = core_live_bits(&c, varve_tracker_epoch(c.t));
    char buf[BLOCK];

    for (uint64_t i = 0; i < REGION_BLKS; i++)
        assert_true(varve_bitmap_test(m, region * REGION_BLKS + i));
    free(m);
    core_fetch(&c);
    for (uint64_t i = 0; i < REGION_BLKS; i += REGION_BLKS - 1)
        assert_int_equal(varve_view_read(c.source, &v, buf, region * MIB + i * BLOCK, BLOCK, NULL, &why),
                         -EIO);
}

/* A view is open; region 0 is hot, region 4 cold. */
static void begin_view(void)
{
    write_block(4 * REGION_BLKS, 'a');
    cool();
    assert_false(held_log_has(4));
    v = (struct varve_view){.id = 5, .boundary = core_boundary(&c, 5)};
    core_open_source(&c);
    write_block(0, 'a');
}

static void assert_rest_is_well(void)
{
    struct varve_bitmap *m = core_live_bits(&c, varve_tracker_epoch(c.t));
    char buf[BLOCK];

    assert_int_equal(varve_bitmap_count(m), REGION_BLKS);
    free(m);
    assert_int_equal(varve_view_read(c.source, &v, buf, 4 * MIB, BLOCK, NULL, &why), 0);
    assert_int_equal(buf[0], 'a');
}

/* The kernel may drop what it could not write at any later time: who was here since then gets it again,
 * and views of later instants can read it. */
static void assert_later_epochs_have_it(void)
{
    uint64_t epoch = core_boundary(&c, 0);
    struct varve_bitmap *m;
    char buf[BLOCK];

    v = (struct varve_view){.id = 6, .boundary = core_boundary(&c, 6)};
    m = core_sealed_bits(&c, epoch);
    assert_int_equal(varve_bitmap_count(m), REGION_BLKS);
    assert_int_equal(varve_bitmap_find(m, 0, false), REGION_BLKS);
    free(m);
    core_fetch(&c);
    assert_int_equal(varve_view_read(c.source, &v, buf, 0, BLOCK, NULL, &why), 0);
    assert_int_equal(buf[0], 'a');
}

/* The flusher is told. */
static void an_image_that_failed_makes_its_hot_regions_dirty_and_lost_and_they_stay_hot(void **state)
{
    int stopped;

    (void)state;
    begin_view();
    flush();
    held_fail(HELD_IMAGE, 1);
    assert_int_equal(varve_tracker_flush(c.t, true, &why), -EIO);
    assert_region_failed(0);
    assert_rest_is_well();
    for (unsigned i = 0; i < 3; i++)
        flush(); /* the next sync says that all is well */
    assert_true(held_log_has(0));
    assert_later_epochs_have_it();
    stopped = varve_tracker_detach(c.t, &why);
    c.t = NULL;
    assert_int_equal(stopped, -EIO); /* no clean mark */
    core_start(&c);
    cool();
    assert_true(held_log_has(0));
}

/* The guest is told, and nobody else; its server lives, or is killed before the flusher's next step. */
static void the_guests_own_error_does_the_same(void **state)
{
    (void)state;
    for (unsigned killed = 0; killed < 2; killed++) {
        begin_view();
        varve_tracker_image_failed(c.t);
        if (killed) {
            core_kill(&c);
            core_start(&c);
        } else {
            assert_int_equal(varve_tracker_flush(c.t, false, &why), 0);
        }
        assert_region_failed(0);
        assert_rest_is_well();
        for (unsigned i = 0; i < 3; i++)
            flush();
        assert_true(held_log_has(0));
        assert_later_epochs_have_it();
        teardown(NULL);
        setup(NULL);
    }
}

static _Atomic unsigned shared, separate;

/* What is opened anew has an offset of its own. */
static void note_opening(int fd)
{
    if (lseek(fd, 0, SEEK_CUR) == lseek(c.image_fd, 0, SEEK_CUR))
        shared++;
    else
        separate++;
}

static void the_flusher_takes_no_error_of_the_guests_for_its_own(void **state)
{
    (void)state;
    write_block(0, 'a');
    shared = separate = 0;
    assert_int_equal(lseek(c.image_fd, 4711, SEEK_SET), 4711);
    held_on_image(note_opening);
    cool();
    assert_int_equal(shared, 0);
    assert_int_equal(separate, 1);
}

/* --- a disk that is idle ------------------------------------------------------------------------------ */

static void nothing_of_an_idle_disk_is_written(void **state)
{
    (void)state;
    write_block(0, 'a');
    cool();
    fault_disarm(&c.fault); /* counts from 0 */
    for (unsigned i = 0; i < 12; i++)
        assert_int_equal(varve_tracker_flush(c.t, i % 6 == 0, &why), 0);
    assert_int_equal(fault_calls(&c.fault, FAULT_SYNC), 0);
    assert_int_equal(fault_calls(&c.fault, FAULT_PWRITE), 0);
    write_block(0, 'b');
    assert_true(fault_calls(&c.fault, FAULT_SYNC) > 0);
}

#define HOUR_NS UINT64_C(3600000000000)

static _Atomic uint64_t ago_ns;

static uint64_t some_time_ago(struct varve_world *w)
{
    return varve_world_posix()->realtime_ns(w) - ago_ns;
}

/* Nothing was written down for an hour; the guest writes, and the host goes down: the log's own time
 * says that it was served.  Where no log is kept the witness says so at each step. */
static void a_write_after_a_long_pause_is_not_taken_for_anothers(void **state)
{
    (void)state;
    for (unsigned process = 0; process < 2; process++) {
        teardown(NULL);
        core_init(&c, SIZE, BLOCK);
        held_init(&c);
        c.machine.realtime_ns = some_time_ago;
        c.cfg.durable_process = process;
        ago_ns = HOUR_NS;
        core_start(&c);
        cool();
        ago_ns = 0;
        if (process)
            flush();
        write_block(0, 'a');
        core_host_crash(&c);
        core_start(&c);
        assert_int_equal(varve_tracker_epoch(c.t), 1);
        assert_null(strstr(c.notes, "somebody else"));
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_dirty_block_of_a_cooled_region_is_in_the_log_before_it_is_written_again),
        TEST(a_block_that_was_rewritten_in_a_cooled_region_is_dirty_after_a_crash),
        TEST(a_writer_goes_on_only_when_his_region_is_durable_and_one_sync_is_for_many),
        TEST(who_comes_while_a_region_cools_keeps_it_hot),
        TEST(a_writer_who_saw_it_hot_is_waited_for_before_the_image_is_synced),
        TEST(a_boundary_is_made_while_a_commit_of_the_log_is_stuck),
        TEST(a_map_that_was_not_made_durable_is_written_again_and_nothing_cools),
        TEST(an_image_that_failed_makes_its_hot_regions_dirty_and_lost_and_they_stay_hot),
        TEST(the_guests_own_error_does_the_same),
        TEST(the_flusher_takes_no_error_of_the_guests_for_its_own),
        TEST(nothing_of_an_idle_disk_is_written),
        TEST(a_write_after_a_long_pause_is_not_taken_for_anothers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
