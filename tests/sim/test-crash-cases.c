/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What test-crash has found, told as the few steps that it takes.  It is long because each is a
 * test of its own.
 */
#include "tests/sim/crash-life.h"

#include "lib/epoch-file.h"
#include "lib/tracker-internal.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct life l;

/* Nobody comes between, and what is not durable is lost. */
static void begin_with(uint64_t seed)
{
    life_begin(&l, seed);
    l.sim.hook = NULL;
    l.sim.lose_all = true;
    l.careless = 0;
}

static int begin(void **state)
{
    (void)state;
    begin_with(1);
    return 0;
}

static int end(void **state)
{
    (void)state;
    life_end(&l);
    return 0;
}

static void die(void (*doing)(struct life *l), enum sim_call call, const char *where, bool power)
{
    uint64_t before = l.kills + l.powers;

    sim_crash_at(&l.sim, call, where, power);
    doing(&l);
    reap(&l);
    assert_int_equal(l.kills + l.powers, before + 1);
}

static void power_fails(void)
{
    sim_power_fail(&l.sim);
    reap(&l);
}

static void start(void)
{
    plugin_start(&l);
    reap(&l);
    assert_non_null(l.t);
}

static void write_some(void)
{
    for (unsigned i = 0; i < 8; i++)
        guest_write(&l);
}

static void write_at(uint32_t at, uint32_t len, int byte)
{
    struct varve_world *w = sim_of(&l.sim, SIM_PLUGIN);
    char buf[SPOT_BYTES];
    struct varve_piece piece;

    memset(buf, byte, len);
    l.epochs[l.live].written |= blocks_of(at, len);
    l.epochs[l.live].maybe |= blocks_of(at, len);
    varve_piece_begin(l.t, disk_off(at), len, false, &piece);
    heat_note(&l);
    assert_int_equal(w->pwrite(w, l.image_fd, buf, len, disk_off(at)), 0);
    varve_piece_end(l.t, &piece);
}

static void cool_all(void)
{
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(varve_tracker_flush(l.t, true, NULL), 0);
    for (unsigned i = 0; i < SPOTS; i++)
        assert_false(varve_intent_wants(l.t->intent, i));
}

/* From here on the chain's appliance has the disk as it is. */
static void backup(struct chain *c)
{
    c->base = l.live;
    look_at_image(&l, c->copy);
}

static void fail_reads(const char *where, unsigned count)
{
    l.sim.fault =
        (struct sim_fault){.error = EIO, .calls = 1u << SIM_PREAD, .count = count, .where = where};
}

/* plugin A   mkdir STATE/vda
 *            killed
 * plugin B   STATE/vda is there; serves the disk, is stopped
 * power      fails: the name of STATE/vda must not be lost with it */
static void a_folder_whose_maker_died_is_durable_before_it_is_used(void **state)
{
    static const char *const folders[] = {STATE, STATE "/vda"};

    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        die(plugin_start, SIM_SYNC_DIR, i == 0 ? "/" : STATE, false);
        start();
        write_some();
        server_stop(&l);
        power_fails();
        assert_true(sim_exists(&l.sim, folders[i]));
        assert_true(sim_exists(&l.sim, STATE "/vda/disk.json"));
        end(NULL);
        begin(NULL);
    }
}

/* plugin A   is stopped: the epoch's file is marked clean
 * plugin B   starts, takes the mark off
 *            killed before that is durable
 * plugin C   starts, reads that the mark is off; the guest writes
 * power      fails: if the mark is there again, what the guest wrote is clean */
static void a_mark_that_is_taken_off_is_off_durably_before_the_guest_writes(void **state)
{
    (void)state;
    start();
    guest_write(&l);
    server_stop(&l);
    assert_true(l.clean);
    die(plugin_start, SIM_SYNC, "-1.map", false);
    start();
    write_some();
    power_fails();
    start(); /* compares */
}

/* The same where making it durable failed: the next sync would say that all is well. */
static void a_mark_whose_removal_failed_is_removed_again(void **state)
{
    (void)state;
    start();
    guest_write(&l);
    server_stop(&l);
    assert_true(l.clean);
    l.sim.fault =
        (struct sim_fault){.error = EIO, .calls = 1u << SIM_SYNC, .count = 1, .where = "-1.map"};
    plugin_start(&l);
    assert_null(l.t);
    start();
    write_some();
    power_fails();
    start();
}

static void boundary(bool seal)
{
    uint64_t epoch;

    assert_int_equal(varve_tracker_prepare(l.t, false, &epoch, NULL), 0);
    assert_int_equal(varve_tracker_quiesce(l.t, NULL), 0);
    assert_int_equal(varve_tracker_swap(l.t, epoch, 0, NULL), 0);
    l.live = epoch;
    if (!seal)
        return;
    assert_int_equal(varve_tracker_seal(l.t, NULL), 0);
    l.sealed_to = epoch;
}

/* epoch 2    is live, its file marked clean
 * plugin B   cannot read that file, begins anew with epoch 3; the guest writes; boundary: 4
 * power      fails: epoch 2 is not the live one, although it is marked clean */
static void a_clean_epoch_that_others_have_passed_by_is_not_the_live_one(void **state)
{
    (void)state;
    start();
    boundary(true);
    write_some();
    server_stop(&l);
    power_fails();
    fail_reads("epoch-2-2.map", 1);
    start();
    assert_int_equal(l.live, 3);
    write_some();
    boundary(true);
    write_some();
    power_fails();
    start();
    assert_true(l.live >= 4);
}

/* epoch 3    is live
 * power      fails
 * plugin B   cannot read its file once: it must not enter epoch 2 again, nor ever make another
 * epoch 3, whose number a checkpoint may have */
static void a_number_whose_file_cannot_be_read_is_not_used_again(void **state)
{
    (void)state;
    start();
    boundary(true);
    write_some();
    boundary(false);
    write_some();
    assert_int_equal(l.live, 3);
    power_fails();
    fail_reads("epoch-3-3.map", 1);
    start();
    assert_true(l.live > 3);
    power_fails();
    start();
    assert_true(l.live > 3);
    boundary(true);
    assert_true(l.live > 4);
}

/* The guest's flush is told that the image could not be written, and nobody else is before
 *
 * plugin A   is killed
 * (boundary: a backup reads what the page cache has)
 * plugin B   serves the disk; its own syncs say that all is well
 * power      fails: what was not written is gone, and must not be clean */
static void an_error_that_only_the_guests_flush_has_seen_outlives_the_server(void **state)
{
    struct chain *chain = &l.chains[0];

    (void)state;
    for (unsigned kills = 1; kills <= 3; kills++) {
        start();
        write_some();
        l.sim.fault =
            (struct sim_fault){.error = EIO, .calls = 1u << SIM_SYNC, .count = 1, .where = IMAGE};
        guest_flush(&l);
        assert_int_equal(l.sim.faults, 1);
        for (unsigned i = 0; i < kills; i++) {
            sim_kill(&l.sim, SIM_PLUGIN);
            reap(&l);
            start();
        }
        boundary(true);
        chain->base = l.live;
        look_at_image(&l, chain->copy);
        for (unsigned i = 0; i < 3; i++)
            assert_int_equal(varve_tracker_flush(l.t, true, NULL), 0);
        power_fails();
        start(); /* compares the chain */
        assert_true(l.chain_checks > 0);
        end(NULL);
        begin(NULL);
    }
}

/* plugin A   makes epoch 3 ready, is stopped: the file of epoch 3 goes, not durably; 2 is marked
 * clean power      fails: the file of epoch 3 is back plugin B   cannot read that of epoch 2: it
 * must not enter 3, which follows a clean one power      fails: who finds 2 marked clean must see
 * that others came behind it */
static void a_prepared_epoch_is_not_entered_behind_one_that_cannot_be_read(void **state)
{
    uint64_t epoch;

    (void)state;
    start();
    boundary(true);
    guest_write(&l);
    assert_int_equal(varve_tracker_prepare(l.t, false, &epoch, NULL), 0);
    assert_int_equal(epoch, 3);
    server_stop(&l);
    assert_true(l.clean);
    power_fails();
    assert_true(sim_exists(&l.sim, STATE "/vda/epoch-3-3.map"));
    fail_reads("epoch-2-2.map", 2);
    start();
    assert_int_equal(l.live, 4);
    l.sim.fault.count = 0;
    write_some();
    power_fails();
    start(); /* compares */
    assert_true(l.live >= 4);
}

static void flush_once(struct life *life)
{
    varve_tracker_flush(life->t, false, NULL);
}

/* plugin A   nothing is hot; cannot write the log, nor disown it, nor make durable that it is gone;
 * a new one gets its name killed before that is durable plugin B   reads the new log and keeps it;
 * the guest writes power      fails: if the old log has the name again, nothing was under way */
static void a_logs_name_is_durable_before_the_log_is_believed(void **state)
{
    (void)state;
    start();
    write_some();
    cool_all();
    l.sim.fault = (struct sim_fault){.error = EIO,
                                     .calls = 1u << SIM_PWRITE | 1u << SIM_SYNC_DIR,
                                     .count = 3,
                                     .where = STATE "/vda"};
    guest_write(&l);
    assert_int_equal(l.sim.faults, 3);
    die(flush_once, SIM_SYNC_DIR, STATE "/vda", false);
    start();
    write_some();
    power_fails();
    start(); /* compares */
}

/* plugin A   leaves in the runtime folder when it wrote last; killed
 * plugin B   has no memory to do so; the guest writes; killed
 * plugin C   must not take that for somebody else's write, by what A has left */
static void a_server_that_cannot_say_when_it_wrote_is_not_judged_by_the_one_before(void **state)
{
    (void)state;
    start();
    write_some();
    sim_kill(&l.sim, SIM_PLUGIN);
    reap(&l);
    l.sim.fault = (struct sim_fault){
        .error = ENOSPC, .calls = 1u << SIM_ALLOCATE, .count = 1, .where = "/beat"};
    start();
    assert_int_equal(l.sim.faults, 1);
    l.sim.now_ns += UINT64_C(5000000000);
    write_some();
    sim_kill(&l.sim, SIM_PLUGIN);
    reap(&l);
    if (setjmp(l.over) == 0)
        start();
    else
        fail_msg("the epochs go on in another era");
    assert_int_not_equal(l.t->verdict, VARVE_IMAGE_CHANGED);
}

/* A block is written, and is dirty; its region cools; it is written again, in the same epoch.
 * boundary   a backup reads what the page cache has
 * power      fails: the block is what it was before, and must not be clean (edges.md 1) */
static void a_block_that_is_rewritten_in_a_cooled_region_is_not_clean(void **state)
{
    (void)state;
    start();
    write_at(0, BLOCK, 'a');
    cool_all();
    write_at(0, BLOCK, 'b');
    boundary(true);
    backup(&l.chains[0]);
    power_fails();
    start(); /* compares the chain */
    assert_int_equal(l.chain_checks, 1);
}

/* Of a region that has left the log are durable (edges.md 2)
 *
 * the bits   of the epoch that is still open
 * the data   that a backup has read since, where they are clean */
static void bits_and_data_of_a_region_that_has_cooled_are_durable(void **state)
{
    (void)state;
    start();
    write_at(0, BLOCK, 'a');
    cool_all();
    power_fails();
    start(); /* compares */
    write_at(SPOT_BYTES, BLOCK, 'b');
    boundary(true);
    backup(&l.chains[0]);
    cool_all();
    power_fails();
    start(); /* compares the chain */
    assert_int_equal(l.chain_checks, 1);
}

/* The log cannot be written, then it cannot be kept at all: the guest goes on, and after a power
 * failure the log of before is not believed (edges.md 13). */
static void a_log_that_could_not_be_written_is_not_believed(void **state)
{
    for (unsigned failing = 1; failing <= 2; failing++) {
        start();
        write_at(0, BLOCK, 'a');
        cool_all();
        l.sim.fault = (struct sim_fault){
            .error = EIO, .calls = 1u << SIM_PWRITE, .count = failing, .where = "intent.log"};
        write_at(SPOT_BYTES, BLOCK, 'b');
        assert_int_equal(l.sim.faults, failing);
        power_fails();
        start(); /* compares */
        assert_false(l.t->found.trusted);
        end(state);
        begin(state);
    }
}

/* plugin A   keeps a log, nothing is hot; is killed
 * plugin B   has durability=process; the guest writes
 * power      fails: the log of A is not believed (edges.md 13) */
static void a_log_of_before_a_server_that_kept_none_is_not_believed(void **state)
{
    (void)state;
    start();
    write_at(0, BLOCK, 'a');
    cool_all();
    sim_kill(&l.sim, SIM_PLUGIN);
    reap(&l);
    l.careless = 4;
    start();
    write_at(SPOT_BYTES, BLOCK, 'b');
    l.careless = 0;
    power_fails();
    start(); /* compares */
    assert_false(l.t->found.trusted);
}

static int tidy_behind(uint64_t epoch)
{
    return varve_timeline_tidy(sim_of(&l.sim, SIM_DAEMON), &l.paths, l.id.uuid, &l.g, &epoch, 1,
                               NULL);
}

/* daemon A   merges epochs 2 to 4; killed before the merged file's name is durable
 * daemon B   finds the merged file, and its parts, which go
 * power      fails: of the names some are there and some are not */
static void parts_stay_until_the_name_of_the_whole_is_durable(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        struct varve_timeline tl;
        struct varve_bitmap *bits;

        end(NULL);
        begin_with(seed);
        l.sim.lose_all = false;
        start();
        for (unsigned i = 0; i < 4; i++) {
            guest_write(&l);
            boundary(true);
        }
        sim_crash_at(&l.sim, SIM_SYNC_DIR, STATE "/vda", false);
        tidy_behind(2);
        reap(&l);
        assert_int_equal(l.kills, 1);
        assert_int_equal(tidy_behind(2), 0);
        power_fails();
        start();
        bits = varve_bitmap_new(l.g.nblks);
        assert_int_equal(
            varve_timeline_scan(sim_of(&l.sim, SIM_TEST), &l.paths, l.id.uuid, &l.g, &tl, NULL), 0);
        assert_int_equal(varve_timeline_union(sim_of(&l.sim, SIM_TEST), &l.paths, l.id.uuid, &l.g,
                                              &tl, 2, 5, bits, NULL),
                         0);
        varve_timeline_fini(&tl);
        free(bits);
    }
}

/* A sync of the mark fails; what follows says that all is well, but does not write it.
 * power      fails: what is under way then must not count as written in epoch 1 */
static void a_mark_that_could_not_be_made_durable_is_written_again(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 8; seed++) {
        struct varve_bitmap *bits;
        uint32_t written;

        end(NULL);
        begin_with(seed);
        start();
        guest_write(&l);
        boundary(false);
        written = l.epochs[1].written;
        l.sim.fault = (struct sim_fault){
            .error = EIO, .calls = 1u << SIM_SYNC, .skip = 1, .count = 1, .where = "-1.map"};
        assert_int_equal(varve_tracker_seal(l.t, NULL), -EIO);
        assert_int_equal(varve_tracker_seal(l.t, NULL), 0);
        for (unsigned i = 0; i < 8; i++)
            write_some();
        power_fails();
        start();
        bits = varve_bitmap_new(l.g.nblks);
        assert_int_equal(varve_epoch_file_load(sim_of(&l.sim, SIM_TEST), &l.paths, l.id.uuid, &l.g,
                                               1, 1, bits, NULL),
                         0);
        assert_int_equal(mask_of(bits), written);
        free(bits);
    }
}

/* plugin A   seals epoch 1; killed before the mark is durable
 * plugin B   finds the epoch sealed; the guest writes
 * power      fails: what is under way now must not count as written in epoch 1 */
static void an_epoch_that_was_found_sealed_stays_as_it_is(void **state)
{
    struct varve_bitmap *bits = varve_bitmap_new(l.g.nblks);
    uint32_t written;

    (void)state;
    start();
    guest_write(&l);
    boundary(false);
    written = l.epochs[1].written;
    l.sim.crash_at = (struct sim_fault){
        .error = EINTR, .calls = 1u << SIM_SYNC, .skip = 1, .count = 1, .where = "-1.map"};
    varve_tracker_seal(l.t, NULL);
    reap(&l);
    assert_null(l.t);
    start();
    for (unsigned i = 0; i < 8; i++)
        write_some();
    power_fails();
    start();
    assert_int_equal(varve_epoch_file_load(sim_of(&l.sim, SIM_TEST), &l.paths, l.id.uuid, &l.g, 1,
                                           1, bits, NULL),
                     0);
    assert_int_equal(mask_of(bits), written);
    free(bits);
}

/* daemon A   commits; killed before the sync
 * daemon B   reads what A has written; its sync fails
 * daemon C   reads it too; its sync says that all is well, and C goes by what it has read
 * power      fails: what C went by must not be taken back */
static void a_commit_that_could_not_be_made_durable_is_written_again(void **state)
{
    (void)state;
    start();
    daemon_start(&l);
    keep_blocks(&l);
    die(keep_blocks, SIM_SYNC, "catalogue", false);
    l.sim.fault =
        (struct sim_fault){.error = EIO, .calls = 1u << SIM_SYNC, .count = 1, .where = "catalogue"};
    daemon_start(&l);
    assert_null(l.store);
    daemon_start(&l);
    assert_non_null(l.store);
    power_fails();
    daemon_start(&l); /* compares */
}

/* plugin A   is stopped: the log says that nobody keeps it
 * daemon     takes the disk and makes a boundary
 *            killed, or the power fails: nobody has written, and nothing may count as written */
static void a_boundary_on_a_stopped_disk_leaves_a_log_that_can_be_believed(void **state)
{
    (void)state;
    for (unsigned power = 0; power < 2; power++) {
        start();
        write_some();
        server_stop(&l);
        assert_true(l.clean);
        offline_start(&l);
        boundary(true);
        if (power)
            power_fails();
        sim_kill(&l.sim, SIM_DAEMON);
        reap(&l);
        start(); /* compares */
        assert_true(l.t->found.trusted);
        assert_int_equal(l.t->found.regions, 0);
        end(NULL);
        begin(NULL);
    }
}

/* The power fails while the first daemon makes the catalogue: with the first file's name lost, and
 * the second one half written, another would not start. */
static void a_catalogue_whose_making_was_cut_short_is_made_again(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 100; seed++) {
        for (uint64_t at = 1; at <= 20; at++) {
            end(NULL);
            life_begin(&l, seed);
            sim_crash_in(&l.sim, at, true);
            daemon_start(&l);
            reap(&l);
            sim_crash_in(&l.sim, 0, false);
            if (!l.store)
                daemon_start(&l);
            assert_non_null(l.store);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_folder_whose_maker_died_is_durable_before_it_is_used,
                                        begin, end),
        cmocka_unit_test_setup_teardown(
            a_mark_that_is_taken_off_is_off_durably_before_the_guest_writes, begin, end),
        cmocka_unit_test_setup_teardown(a_mark_whose_removal_failed_is_removed_again, begin, end),
        cmocka_unit_test_setup_teardown(
            a_clean_epoch_that_others_have_passed_by_is_not_the_live_one, begin, end),
        cmocka_unit_test_setup_teardown(a_number_whose_file_cannot_be_read_is_not_used_again, begin,
                                        end),
        cmocka_unit_test_setup_teardown(
            an_error_that_only_the_guests_flush_has_seen_outlives_the_server, begin, end),
        cmocka_unit_test_setup_teardown(
            a_prepared_epoch_is_not_entered_behind_one_that_cannot_be_read, begin, end),
        cmocka_unit_test_setup_teardown(a_logs_name_is_durable_before_the_log_is_believed, begin,
                                        end),
        cmocka_unit_test_setup_teardown(parts_stay_until_the_name_of_the_whole_is_durable, begin,
                                        end),
        cmocka_unit_test_setup_teardown(a_mark_that_could_not_be_made_durable_is_written_again,
                                        begin, end),
        cmocka_unit_test_setup_teardown(a_block_that_is_rewritten_in_a_cooled_region_is_not_clean,
                                        begin, end),
        cmocka_unit_test_setup_teardown(bits_and_data_of_a_region_that_has_cooled_are_durable,
                                        begin, end),
        cmocka_unit_test_setup_teardown(a_log_that_could_not_be_written_is_not_believed, begin,
                                        end),
        cmocka_unit_test_setup_teardown(a_log_of_before_a_server_that_kept_none_is_not_believed,
                                        begin, end),
        cmocka_unit_test_setup_teardown(
            a_server_that_cannot_say_when_it_wrote_is_not_judged_by_the_one_before, begin, end),
        cmocka_unit_test_setup_teardown(an_epoch_that_was_found_sealed_stays_as_it_is, begin, end),
        cmocka_unit_test_setup_teardown(a_commit_that_could_not_be_made_durable_is_written_again,
                                        begin, end),
        cmocka_unit_test_setup_teardown(
            a_boundary_on_a_stopped_disk_leaves_a_log_that_can_be_believed, begin, end),
        cmocka_unit_test_setup_teardown(a_catalogue_whose_making_was_cut_short_is_made_again, begin,
                                        end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
