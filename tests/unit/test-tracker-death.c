/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Servers that die at every call they make of the world.  Killed ones are real processes, which die
 * before their n-th call and leave files, shared memory and locks as the kernel leaves them; the
 * next server must know every bit exactly.  Where the power goes, all that was not durable goes with
 * the runtime folder; the next server may know too many bits, and never too few (I7).
 */
#include "tests/lib/core-fixture.h"
#include "tests/lib/power-world.h"
#include "tests/lib/tmpdir.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define BLOCK  4096u
#define BLKS   20u
#define SIZE   ((uint64_t)(BLKS - 1) * BLOCK + 100)
#define EPOCHS 16u

enum { UNKNOWN, STARTED, DONE };

/* What happened, kept in memory that outlives the server. */
struct history {
    uint32_t must[EPOCHS]; /* blocks whose write was let in, by epoch */
    uint32_t may[EPOCHS];  /* and those that asked */
    uint64_t prepared;     /* highest number that a prepare told */
    struct {
        uint64_t boundary;
        int swap, end; /* UNKNOWN, STARTED, DONE */
        int sealed;
        char content[BLKS]; /* what each block was filled with at the boundary */
    } views[3];             /* ids 1 to 3 */
    char now[BLKS];
};

static struct core c;
static struct history *h;

static int setup(void **state)
{
    (void)state;
    h = mmap(NULL, sizeof(*h), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return h == MAP_FAILED ? -1 : 0;
}

static int teardown(void **state)
{
    (void)state;
    return munmap(h, sizeof(*h));
}

/* --- what a server does, telling the history ---------------------------------------------------- */

static bool dead(void)
{
    return c.fault.crashed;
}

static void write_block(uint64_t blk, char byte)
{
    uint64_t off = blk * BLOCK, epoch = varve_tracker_epoch(c.t);
    uint32_t len = (uint32_t)(varve_block_end(&c.g, blk) - off);
    struct varve_piece p;
    char buf[BLOCK];

    if (dead())
        return;
    memset(buf, byte, len);
    h->may[epoch] |= 1u << blk;
    varve_piece_begin(c.t, off, len, false, &p);
    if (!dead()) {
        h->must[epoch] |= 1u << blk;
        h->now[blk] = byte;
        assert_int_equal(pwrite(c.image_fd, buf, len, (off_t)off), len);
    }
    varve_piece_end(c.t, &p);
}

static void boundary(unsigned view_id, uint64_t blk)
{
    uint64_t epoch;

    if (varve_tracker_prepare(c.t, true, &epoch, NULL) < 0)
        return;
    h->prepared = epoch;
    write_block(blk, 'p'); /* still in the old epoch */
    if (varve_tracker_quiesce(c.t, NULL) < 0)
        return;
    h->views[view_id - 1].boundary = epoch;
    memcpy(h->views[view_id - 1].content, h->now, BLKS);
    h->views[view_id - 1].swap = STARTED;
    if (varve_tracker_swap(c.t, epoch, view_id, NULL) < 0 || dead())
        return;
    h->views[view_id - 1].swap = DONE;
    write_block(blk, 'n');
    if (varve_tracker_seal(c.t, NULL) == 0 && !dead())
        h->views[view_id - 1].sealed = DONE;
}

static void end_view(unsigned view_id)
{
    if (dead())
        return;
    h->views[view_id - 1].end = STARTED;
    varve_tracker_end_view(c.t, view_id, NULL);
    if (!dead())
        h->views[view_id - 1].end = DONE;
}

/* A life: epochs of its own, one view after the other, one ended; then it dies or stops. */
static void life_of_boundaries(void)
{
    write_block(1, 'a');
    boundary(1, 2);
    write_block(1, 'b');
    write_block(3, 'b');
    boundary(2, 4);
    write_block(1, 'c');
    write_block(3, 'c');
    write_block(19, 'c');
    end_view(1);
    write_block(5, 'd');
    boundary(3, 6);
    end_view(3);
}

static void life_that_stops(void)
{
    write_block(1, 'a');
    boundary(1, 2);
    write_block(1, 'b');
    varve_tracker_detach(c.t, NULL);
    c.t = NULL;
}

/* --- what the next one must find ---------------------------------------------------------------- */

static uint32_t mask_of(struct varve_bitmap *m)
{
    uint32_t mask = (uint32_t)m->words[0];

    free(m);
    return mask;
}

static void check_view(unsigned view_id)
{
    struct varve_view v = {.id = view_id, .boundary = h->views[view_id - 1].boundary};
    bool must = h->views[view_id - 1].swap == DONE && h->views[view_id - 1].end == UNKNOWN;

    for (uint64_t blk = 0; v.boundary && blk < BLKS; blk++) {
        uint64_t len = varve_block_end(&c.g, blk) - blk * BLOCK;
        char buf[BLOCK];
        int r = varve_view_read(c.source, &v, buf, blk * BLOCK, (uint32_t)len, NULL, NULL);

        if (must)
            assert_int_equal(r, 0);
        if (r < 0)
            assert_int_equal(r, -ESTALE);
        for (uint64_t i = 0; r == 0 && i < len; i++)
            assert_int_equal(buf[i], h->views[view_id - 1].content[blk]);
        if (h->views[view_id - 1].end == DONE)
            assert_int_equal(r, -ESTALE);
    }
}

/* The same page and maps: exact. */
static void check_after_kill(void)
{
    uint64_t live, highest = h->prepared;
    struct varve_timeline tl;

    core_start(&c);
    assert_string_equal(c.notes, "");
    live = varve_tracker_epoch(c.t);
    for (unsigned e = 1; e < EPOCHS; e++) {
        bool entered = e == live || h->must[e] != 0;
        uint32_t mask;

        if (!entered)
            continue;
        assert_true(e <= live);
        mask = mask_of(e == live ? core_live_bits(&c, e) : core_sealed_bits(&c, e));
        assert_int_equal(mask & h->must[e], h->must[e]);
        assert_int_equal(mask & ~h->may[e], 0);
    }
    if (live > 1) {
        struct varve_bitmap *all = varve_bitmap_new(BLKS);

        assert_int_equal(varve_timeline_scan(c.w, varve_tracker_paths(c.t),
                                             varve_tracker_identity(c.t)->uuid, &c.g, &tl, NULL),
                         0);
        assert_int_equal(varve_timeline_union(c.w, varve_tracker_paths(c.t),
                                              varve_tracker_identity(c.t)->uuid, &c.g, &tl, 1,
                                              live, all, NULL), 0);
        for (size_t i = 0; i < tl.nfiles; i++) /* nothing is left of what was never entered */
            assert_true(tl.files[i].state == VARVE_EPOCH_FILE_SEALED || tl.files[i].first == live);
        varve_timeline_fini(&tl);
        free(all);
    }
    core_open_source(&c);
    for (unsigned id = 1; id <= 3; id++)
        check_view(id);
    /* And it goes on: numbers too, and views also when all is overwritten. */
    assert_true(core_boundary(&c, 0) > highest);
    core_fill(&c, 0, SIZE, 'z');
    core_fetch(&c);
    for (unsigned id = 1; id <= 3; id++)
        check_view(id);
}

static void die(void *arg)
{
    (void)arg;
    _exit(7);
}

static void begin_history(void)
{
    memset(h, 0, sizeof(*h));
    core_init(&c, SIZE, BLOCK);
}

/* A child runs `before`, then `life`, in which it dies before its n-th call.  False: it survived. */
static bool child_dies_at(uint64_t n, void (*before)(void), void (*life)(void))
{
    int status;
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        before();
        fault_gate_at(&c.fault, FAULT_ANY, n, die, NULL);
        life();
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && (WEXITSTATUS(status) == 7 || WEXITSTATUS(status) == 0));
    return WEXITSTATUS(status) == 7;
}

static void start(void)
{
    core_start(&c);
}

static void start_and_live(void)
{
    core_start(&c);
    life_of_boundaries();
}

static void start_live_and_stop(void)
{
    core_start(&c);
    life_that_stops();
}

static void a_kill_at_any_call_of_boundaries_and_ends_of_views_loses_and_invents_no_bit(void **state)
{
    uint64_t n = 1;
    bool died = true;

    (void)state;
    for (; died; n++) {
        begin_history();
        died = child_dies_at(n, start, life_of_boundaries);
        check_after_kill();
        core_fini(&c);
    }
    assert_true(n > 100);
}

static void a_kill_at_any_call_of_a_clean_stop_loses_and_invents_no_bit(void **state)
{
    bool died = true;

    (void)state;
    for (uint64_t n = 1; died; n++) {
        begin_history();
        died = child_dies_at(n, start, life_that_stops);
        check_after_kill();
        core_fini(&c);
    }
}

static void nothing(void)
{
}

static void a_kill_at_any_call_of_an_attach_loses_and_invents_no_bit(void **state)
{
    static void (*const lives[])(void) = {start_and_live, start_live_and_stop};

    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        bool died = true;

        for (uint64_t n = 1; died; n++) {
            begin_history();
            assert_false(child_dies_at(0, nothing, lives[i]));
            died = child_dies_at(n, nothing, start);
            check_after_kill();
            core_fini(&c);
        }
    }
}

/* The runtime folder is gone with the last boot, the map was marked clean. */
static void a_kill_at_any_call_of_the_first_attach_after_a_reboot_stays_exact(void **state)
{
    bool died = true;

    (void)state;
    for (uint64_t n = 1; died; n++) {
        begin_history();
        assert_false(child_dies_at(0, nothing, start_live_and_stop));
        core_host_crash(&c);
        died = child_dies_at(n, nothing, start);
        h->views[0].end = DONE; /* of an earlier boot */
        check_after_kill();
        core_fini(&c);
    }
}

static void a_kill_at_any_call_of_the_very_first_attach_leaves_a_disk_that_starts(void **state)
{
    bool died = true;

    (void)state;
    for (uint64_t n = 1; died; n++) {
        begin_history();
        died = child_dies_at(n, nothing, start);
        core_start(&c);
        core_boundary(&c, 0);
        core_fini(&c);
    }
}

/* --- the power goes ----------------------------------------------------------------------------- */

static int power_boot_id(struct varve_world *w, uint8_t id[16])
{
    (void)w;
    memset(id, 0, 16);
    id[0] = c.boot;
    return 0;
}

static uint64_t power_uptime_ns(struct varve_world *w)
{
    (void)w;
    return core_uptime_ns(&c);
}

/* Whatever was asked to be written in the epochs from each sealed boundary on is dirty since it. */
static void check_after_power_loss(void)
{
    struct varve_timeline tl;
    uint64_t live;

    core_start(&c);
    live = varve_tracker_epoch(c.t);
    assert_int_equal(varve_timeline_scan(c.w, varve_tracker_paths(c.t),
                                         varve_tracker_identity(c.t)->uuid, &c.g, &tl, NULL), 0);
    for (unsigned id = 0; id <= 3; id++) {
        uint64_t boundary = id == 0 ? 1 : h->views[id - 1].boundary;
        struct varve_bitmap *all;
        uint32_t want = 0;

        if (id > 0 && h->views[id - 1].sealed != DONE)
            continue;
        all = core_live_bits(&c, live);
        assert_true(boundary <= live);
        assert_int_equal(varve_timeline_union(c.w, varve_tracker_paths(c.t),
                                              varve_tracker_identity(c.t)->uuid, &c.g, &tl,
                                              boundary, live, all, NULL), 0);
        for (uint64_t e = boundary; e < EPOCHS; e++)
            want |= h->must[e];
        assert_int_equal(mask_of(all) & want, want);
    }
    varve_timeline_fini(&tl);
    core_boundary(&c, 0);
}

static void make_folders(void)
{
    static const char *const folders[] = {"state", "state/vda", "run", "run/vda", "grave"};
    char path[PATH_MAX + 16];

    for (unsigned i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", c.top, folders[i]);
        assert_int_equal(mkdir(path, 0700), 0);
    }
}

static void power_fails_at_every_call(void (*life)(void), bool restart)
{
    for (uint64_t n = 1;; n++) {
        bool fired;

        for (uint64_t seed = 0; seed < 3; seed++) {
            struct power_world power;
            char grave[PATH_MAX + 8];

            begin_history();
            make_folders(); /* the power world takes files' names back, not folders with files in */
            snprintf(grave, sizeof(grave), "%s/grave", c.top);
            power_world_init(&power, grave);
            power.world.boot_id = power_boot_id;
            power.world.uptime_ns = power_uptime_ns;
            c.fault.inner = &power.world;
            core_start(&c);
            if (restart) {
                life_that_stops();
                core_start(&c);
                memset(h->views, 0, sizeof(h->views));
            }
            fault_crash_at(&c.fault, FAULT_ANY, n);
            life();
            fired = fault_fired(&c.fault);
            if (c.t) {
                fault_crash_at(&c.fault, FAULT_ANY, 1);
                varve_tracker_detach(c.t, NULL);
                c.t = NULL;
            }
            fault_disarm(&c.fault);
            power_fail(&power, seed);
            core_host_crash(&c); /* the runtime folder is wiped */
            check_after_power_loss();
            core_fini(&c);
            power_world_fini(&power);
        }
        if (!fired)
            break;
    }
}

static void a_power_loss_at_any_call_of_boundaries_and_ends_of_views_loses_no_bit(void **state)
{
    (void)state;
    power_fails_at_every_call(life_of_boundaries, false);
}

static void a_power_loss_at_any_call_of_a_clean_stop_loses_no_bit(void **state)
{
    (void)state;
    power_fails_at_every_call(life_that_stops, false);
    power_fails_at_every_call(life_that_stops, true);
}

int main(void)
{
#define DEATH_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        DEATH_TEST(a_kill_at_any_call_of_boundaries_and_ends_of_views_loses_and_invents_no_bit),
        DEATH_TEST(a_kill_at_any_call_of_a_clean_stop_loses_and_invents_no_bit),
        DEATH_TEST(a_kill_at_any_call_of_an_attach_loses_and_invents_no_bit),
        DEATH_TEST(a_kill_at_any_call_of_the_first_attach_after_a_reboot_stays_exact),
        DEATH_TEST(a_kill_at_any_call_of_the_very_first_attach_leaves_a_disk_that_starts),
        DEATH_TEST(a_power_loss_at_any_call_of_boundaries_and_ends_of_views_loses_no_bit),
        DEATH_TEST(a_power_loss_at_any_call_of_a_clean_stop_loses_no_bit),
    };

    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
