/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Nothing is forgotten: lives of a disk in a machine in memory, in which plugin, daemon or power
 * die at any call, again and again, also on the way back (crash-life.h).  After each death the disk
 * is what is left of it, and then: no block that differs from what a chain of backups has is clean;
 * after a kill the epochs have exactly what was written in them; no view ever gives a wrong byte;
 * the catalogue is the old or the new one.
 *
 * SEED=n lives that life only; FIRST=n begins with that one; CRASHES=n is how many there are in
 * all; LONG=1: 100,000.  TRACE=1 tells each step.  A seed that failed becomes a line of
 * `known_seeds` that day.
 */
#include "tests/sim/crash-life.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define CRASHES      3000u
#define CRASHES_LONG 100000u
#define LIFE_CRASHES 40u
#define LIFE_STEPS   6000u
#define SCRIPT_STEPS 40u
#define SCRIPTS      1u
#define LIFE_SECONDS 120u
#define SCRIPTS_LONG 60u

static struct life l;

/* Where an order is wrong it is seen by who dies between the two. */
static void plan_crash_between(void)
{
    static const uint32_t calls[] = {
        1u << SIM_SYNC,   1u << SIM_SYNC_DIR, 1u << SIM_SYNC_DIR | 1u << SIM_UNLINK,
        1u << SIM_RENAME, 1u << SIM_PUNCH,    1u << SIM_TRUNCATE | 1u << SIM_PWRITE,
    };

    l.sim.crash_power = rnd(&l, 3) == 0;
    l.sim.crash_at = (struct sim_fault){.error = EINTR,
                                        .calls = calls[rnd(&l, sizeof(calls) / sizeof(calls[0]))],
                                        .skip = (unsigned)rnd(&l, 20),
                                        .count = 1};
}

static void plan_crash(void)
{
    static const unsigned within[] = {50, 400, 400, 1500};

    l.sim.crash_at.count = 0;
    sim_crash_in(&l.sim, 0, false);
    if (rnd(&l, 3) == 0)
        plan_crash_between();
    else
        sim_crash_in(&l.sim, 1 + rnd(&l, within[rnd(&l, 4)]), rnd(&l, 2));
}

/* Lives in which the log can be neither written nor durably removed end when the power fails: see
 * crash-life.c. */
static void plan_fault(void)
{
    static const struct {
        int error;
        uint32_t calls;
        const char *where;
    } kinds[] = {
        {ENOSPC, 1u << SIM_ALLOCATE | 1u << SIM_PWRITE | 1u << SIM_RENAME | 1u << SIM_MKDIR, NULL},
        {EMFILE, 1u << SIM_OPEN | 1u << SIM_LIST, NULL},
        {ENOMEM, 1u << SIM_MAP | 1u << SIM_OPEN, NULL},
        {EIO, 1u << SIM_PREAD, NULL},
        {EIO, 1u << SIM_PWRITE, NULL},
        {EIO, 1u << SIM_SYNC, STATE},
        {EIO, 1u << SIM_SYNC, ".map"},
        {EIO, 1u << SIM_SYNC_DIR | 1u << SIM_RENAME | 1u << SIM_UNLINK | 1u << SIM_LIST, NULL},
        {EIO, 1u << SIM_PUNCH | 1u << SIM_TRUNCATE | 1u << SIM_STAT | 1u << SIM_SEEK, NULL},
        {EIO, 1u << SIM_SYNC, IMAGE},
        {EIO, 1u << SIM_SYNC, "intent.log"},
        {ENOSPC, 1u << SIM_PWRITE | 1u << SIM_RENAME | 1u << SIM_OPEN, "intent.log"},
    };
    unsigned i = (unsigned)rnd(&l, sizeof(kinds) / sizeof(kinds[0]));

    l.sim.fault = (struct sim_fault){.error = kinds[i].error,
                                     .calls = kinds[i].calls,
                                     .where = kinds[i].where,
                                     .skip = (unsigned)rnd(&l, kinds[i].where ? 3 : 12),
                                     .count = 1 + (unsigned)rnd(&l, rnd(&l, 3) ? 2 : 8)};
    trace(&l, "a fault is planned: %d", l.sim.fault.error);
}

static void kill_now(void)
{
    trace(&l, "a kill");
    sim_kill(&l.sim, rnd(&l, 2) ? SIM_PLUGIN : SIM_DAEMON);
    if (rnd(&l, 4) == 0)
        sim_kill(&l.sim, SIM_PLUGIN);
}

static void power_now(void)
{
    trace(&l, "the power fails");
    sim_power_fail(&l.sim);
}

static void stop(void)
{
    if (l.t)
        server_stop(&l);
}

static void write_back(void)
{
    sim_write_back(&l.sim);
}

static void offline(void)
{
    if (l.t || !l.store || !l.born)
        return;
    offline_start(&l);
    reap(&l);
    for (unsigned i = 0; i < 4 && l.t; i++) {
        switch (rnd(&l, 4)) {
        case 0:
            some_boundary(&l);
            break;
        case 1:
            backup_begin(&l);
            break;
        case 2:
            backup_pull(&l);
            break;
        default:
            backup_end(&l);
            break;
        }
        reap(&l);
    }
    if (l.t)
        server_stop(&l);
}

static void step(void)
{
    static const struct {
        void (*step)(struct life *l);
        void (*plain)(void);
        unsigned weight;
    } steps[] = {
        {guest_write, NULL, 40}, {guest_hold, NULL, 6},    {guest_let_all_go, NULL, 4},
        {guest_flush, NULL, 4},  {flusher_step, NULL, 12}, {some_boundary, NULL, 8}, {backup_begin, NULL, 8},
        {backup_pull, NULL, 24}, {backup_end, NULL, 12},   {read_some_view, NULL, 10},
        {narrow_view, NULL, 4},  {release_view, NULL, 6},  {end_view, NULL, 4},
        {tidy, NULL, 6},         {housekeep, NULL, 4},     {keep_blocks, NULL, 2},
        {check_disk, NULL, 4},   {NULL, stop, 2},          {NULL, kill_now, 1},
        {NULL, power_now, 1},    {NULL, write_back, 4},
    };
    unsigned weights = 0, i = 0;
    uint64_t pick;

    l.steps++;
    if (rnd(&l, 100) < l.faulty)
        plan_fault();
    if (!l.store && rnd(&l, 3)) {
        daemon_start(&l);
    } else if (!l.t && rnd(&l, 2)) {
        if (rnd(&l, 3))
            plugin_start(&l);
        else
            offline();
    } else {
        for (size_t k = 0; k < sizeof(steps) / sizeof(steps[0]); k++)
            weights += steps[k].weight;
        pick = rnd(&l, weights);
        while (pick >= steps[i].weight)
            pick -= steps[i++].weight;
        if (steps[i].plain)
            steps[i].plain();
        else
            steps[i].step(&l);
    }
    reap(&l);
}

static void calm_down(void)
{
    sim_crash_in(&l.sim, 0, false);
    l.sim.crash_at.count = 0;
    l.sim.fault.count = 0;
    l.faulty = 0;
    reap(&l);
}

/* The disk has no server any more, and somebody else writes to the image.  Whoever comes next finds out,
 * however often he dies on the way; the life ends there. */
static void foreign_write(void)
{
    struct varve_world *w = sim_of(&l.sim, SIM_TEST);
    uint64_t off = disk_off((uint32_t)rnd(&l, BLKS) * BLOCK);
    int fd;

    calm_down();
    if (l.t && rnd(&l, 2))
        server_stop(&l);
    else if (rnd(&l, 2))
        sim_power_fail(&l.sim);
    sim_kill(&l.sim, SIM_PLUGIN);
    sim_kill(&l.sim, SIM_DAEMON);
    reap(&l);
    l.sim.now_ns += UINT64_C(3600000000000);
    fd = w->open(w, IMAGE, O_RDWR, 0);
    w->pwrite(w, fd, "foreign", 7, off);
    w->close(w, fd);
    trace(&l, "somebody else writes");
    l.foreign = true;
    for (unsigned tries = 0; tries < 5; tries++) {
        sim_crash_in(&l.sim, tries < 4 ? 1 + rnd(&l, 150) : 0, rnd(&l, 8) == 0);
        if (rnd(&l, 3))
            plugin_start(&l);
        else
            offline_start(&l);
        reap(&l);
    }
    broken(&l, "nobody has looked at the image");
}

/* All comes back, and each chain gets a last backup. */
static void conclude(void)
{
    uint64_t live;

    calm_down();
    if (!l.store)
        daemon_start(&l);
    live = l.live;
    if (l.t && (l.server != SIM_PLUGIN || l.sim.faults > 0)) /* or it has no runtime folder */
        server_stop(&l);
    if (!l.t)
        plugin_start(&l);
    if (!l.source)
        open_source(&l);
    check_disk(&l);
    for (unsigned i = 0; i < VIEWS; i++) {
        if (l.views[i].at.id && !l.views[i].chained)
            view_close(&l, &l.views[i]);
    }
    for (unsigned tries = 0; tries < 500 && (l.chains[0].base <= live || l.chains[1].base <= live);
         tries++) {
        backup_begin(&l);
        backup_pull(&l);
        backup_end(&l);
        read_some_view(&l);
    }
    check_disk(&l);
    if (l.chains[0].base <= live || l.chains[1].base <= live)
        broken(&l, "there is no backup in the end");
}

static struct {
    uint64_t kills, powers, boundaries, backups, incrementals, chain_checks, view_reads, faults;
    uint64_t tight_checks, cooled, found_foreign;
    uint64_t calls;
} sum;

static void count(void)
{
    sum.kills += l.kills;
    sum.powers += l.powers;
    sum.boundaries += l.boundaries;
    sum.backups += l.backups;
    sum.incrementals += l.incrementals;
    sum.chain_checks += l.chain_checks;
    sum.view_reads += l.view_reads;
    sum.faults += l.sim.faults;
    sum.tight_checks += l.tight_checks;
    sum.cooled += l.cooled;
    sum.found_foreign += l.found_foreign;
    sum.calls += l.sim.calls;
}

static void tell(const char *what)
{
    printf("# %s: %" PRIu64 " kills, %" PRIu64 " power failures, %" PRIu64 " calls, %" PRIu64
           " faults; %" PRIu64 " boundaries, %" PRIu64 " backups (%" PRIu64
           " incremental), %" PRIu64 " chains compared, %" PRIu64 " reads of views\n",
           what, sum.kills, sum.powers, sum.calls, sum.faults, sum.boundaries, sum.backups,
           sum.incrementals, sum.chain_checks, sum.view_reads);
    printf("# %" PRIu64 " looks for quiet regions, %" PRIu64 " over-estimates within the intent log, "
           "%" PRIu64 " foreign writes found\n",
           sum.cooled, sum.tight_checks, sum.found_foreign);
}

/* A life takes milliseconds.  One that does not end tells which it is. */
static void too_long(int signal)
{
    (void)signal;
    fflush(stdout);
    fprintf(stderr, "SEED=%" PRIu64 " does not end: step %" PRIu64 ", %s\n", l.seed, l.steps,
            l.what);
    _exit(1);
}

static uint64_t live_once(uint64_t seed, uint64_t crashes)
{
    volatile uint64_t seen = 0;

    if (getenv("SEED"))
        printf("# SEED=%" PRIu64 "\n", seed);
    alarm(LIFE_SECONDS);
    life_begin(&l, seed);
    l.can_end = true;
    if (setjmp(l.over) == 0) {
        plan_crash();
        for (unsigned i = 0; i < LIFE_STEPS && seen < crashes && l.live < EPOCHS - 600; i++) {
            step();
            if (l.kills + l.powers != seen) {
                seen = l.kills + l.powers;
                plan_crash();
            }
        }
        if (l.born && l.sim.faults == 0 && rnd(&l, 4) == 0)
            foreign_write();
        conclude();
    }
    count();
    life_end(&l);
    return seen;
}

static uint64_t env_number(const char *name, uint64_t otherwise)
{
    const char *s = getenv(name);

    return s && *s ? strtoull(s, NULL, 0) : otherwise;
}

static const uint64_t known_seeds[] = {1, 1795783704000000, 1795783838000577, 1795783838001285,
                                       1795784975000043};

static void nothing_is_forgotten_whatever_dies_and_when(void **state)
{
    uint64_t crashes = env_number("CRASHES", getenv("LONG") ? CRASHES_LONG : CRASHES);
    uint64_t seed = env_number("SEED", 0), seen = 0;

    (void)state;
    if (seed) {
        live_once(seed, LIFE_CRASHES);
        return;
    }
    for (size_t i = 0; i < sizeof(known_seeds) / sizeof(known_seeds[0]); i++)
        live_once(known_seeds[i], LIFE_CRASHES);
    seed = env_number("FIRST", (uint64_t)time(NULL) * 1000000);
    printf("# lives from SEED=%" PRIu64 " on\n", seed);
    fflush(stdout);
    while (seen < crashes)
        seen += live_once(seed++, LIFE_CRASHES);
    tell("lives");
}

/* The steps of a seed, in which somebody dies at call `at` (0: at none), and maybe on the way back.
 * How many calls there were. */
static uint64_t script(uint64_t seed, uint64_t at, bool power)
{
    alarm(LIFE_SECONDS);
    life_begin(&l, seed);
    l.can_end = true;
    if (setjmp(l.over) == 0) {
        sim_crash_in(&l.sim, at, power);
        for (unsigned i = 0; i < SCRIPT_STEPS; i++) {
            uint64_t died = l.kills + l.powers;

            step();
            if (at && l.kills + l.powers != died)
                sim_crash_in(&l.sim, rnd(&l, 3) ? 1 + rnd(&l, 80) : 0, rnd(&l, 2));
        }
        if (at)
            conclude();
    }
    count();
    life_end(&l);
    return l.sim.calls;
}

static void nothing_is_forgotten_at_any_call_of_a_life(void **state)
{
    uint64_t seeds = getenv("LONG") ? SCRIPTS_LONG : SCRIPTS, seed = env_number("SEED", 0);

    (void)state;
    if (seed)
        seeds = 1;
    else
        seed = (uint64_t)time(NULL) * 1000000;
    printf("# each call of SEED=%" PRIu64 " to %" PRIu64 "\n", seed, seed + seeds - 1);
    fflush(stdout);
    memset(&sum, 0, sizeof(sum));
    for (uint64_t i = 0; i < seeds; i++) {
        uint64_t calls = script(seed + i, 0, false);

        for (uint64_t at = 1; at <= calls; at++) {
            script(seed + i, at, false);
            script(seed + i, at, true);
        }
    }
    tell("scripts");
}

int main(void)
{
    signal(SIGALRM, too_long);

    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_forgotten_whatever_dies_and_when),
        cmocka_unit_test(nothing_is_forgotten_at_any_call_of_a_life),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
