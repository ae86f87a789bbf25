/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Threads at the gate.  No test sleeps to win a race: what must come first is waited for, with a
 * deadline, and where the order cannot be seen every order has to give the same answer.
 */
#include "lib/gate.h"

#include "lib/control.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

/* Longer than any test takes. */
#define NEVER_MS 60000u

static _Atomic uint64_t now_word;
static struct varve_gate gate;

static uint64_t clock_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static int setup(void **state)
{
    (void)state;
    atomic_store(&now_word, 7 << 1);
    varve_gate_init(&gate, &now_word);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    varve_gate_fini(&gate);
    return 0;
}

/* Waits until *flag is at least `want`; cmocka cannot fail from another thread, so this aborts. */
static void wait_for(_Atomic unsigned *flag, unsigned want)
{
    uint64_t until = clock_ms() + 30000;

    while (atomic_load(flag) < want) {
        if (clock_ms() > until) {
            fprintf(stderr, "test-gate: waited in vain\n");
            abort();
        }
        sched_yield();
    }
}

static void wait_until_closed(void)
{
    uint64_t until = clock_ms() + 30000;

    while (!(atomic_load(&now_word) & VARVE_NOW_QUIESCE)) {
        assert_true(clock_ms() < until);
        sched_yield();
    }
}

static void an_open_gate_lets_in_and_tells_the_epoch(void **state)
{
    unsigned a, b;

    (void)state;
    assert_int_equal(varve_gate_enter(&gate, &a), 7);
    assert_int_equal(varve_gate_enter(&gate, &b), 7);
    varve_gate_leave(&gate, a);
    varve_gate_leave(&gate, b);
}

static void closing_an_empty_gate_is_done_at_once_and_swap_opens_it(void **state)
{
    unsigned shard;

    (void)state;
    assert_int_equal(varve_gate_close(&gate, NEVER_MS), 0);
    assert_int_equal(atomic_load(&now_word), 7 << 1 | VARVE_NOW_QUIESCE);
    assert_int_equal(varve_gate_swap(&gate, 8), 0);
    assert_int_equal(varve_gate_enter(&gate, &shard), 8);
    varve_gate_leave(&gate, shard);
}

static void a_gate_left_closed_by_a_dead_server_is_open_after_init(void **state)
{
    unsigned shard;

    (void)state;
    assert_int_equal(varve_gate_close(&gate, NEVER_MS), 0);
    varve_gate_fini(&gate);
    varve_gate_init(&gate, &now_word);
    assert_int_equal(varve_gate_enter(&gate, &shard), 7);
    varve_gate_leave(&gate, shard);
}

static void swap_and_open_of_an_open_gate_change_nothing(void **state)
{
    (void)state;
    assert_int_equal(varve_gate_swap(&gate, 8), -ETIMEDOUT);
    varve_gate_open(&gate);
    assert_int_equal(atomic_load(&now_word), 7 << 1);
    assert_int_equal(varve_gate_close(&gate, NEVER_MS), 0);
    varve_gate_open(&gate);
    assert_int_equal(varve_gate_swap(&gate, 8), -ETIMEDOUT);
    assert_int_equal(atomic_load(&now_word), 7 << 1);
}

/* --- one thread against another --------------------------------------------------------------- */

struct passer {
    pthread_t thread;
    _Atomic unsigned started;
    uint64_t epoch, took_ms;
};

static void *pass_main(void *arg)
{
    struct passer *p = arg;
    uint64_t start = clock_ms();
    unsigned shard;

    atomic_store(&p->started, 1);
    p->epoch = varve_gate_enter(&gate, &shard);
    varve_gate_leave(&gate, shard);
    p->took_ms = clock_ms() - start;
    return NULL;
}

/*   control                    writer
 *   close
 *                              enter ...
 *   swap to 8
 *                              ... is in 8, never in 7 */
static void who_comes_to_a_closed_gate_enters_the_epoch_it_opens_onto(void **state)
{
    struct passer p[4];

    (void)state;
    assert_int_equal(varve_gate_close(&gate, NEVER_MS), 0);
    for (unsigned i = 0; i < 4; i++) {
        atomic_store(&p[i].started, 0);
        assert_int_equal(pthread_create(&p[i].thread, NULL, pass_main, &p[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++)
        wait_for(&p[i].started, 1);
    assert_int_equal(varve_gate_swap(&gate, 8), 0);
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(p[i].thread, NULL);
        assert_int_equal(p[i].epoch, 8);
    }
}

/*   control                    writer
 *   close (30 ms), then dead
 *                              enter: waits, finds the deadline past, opens, is in 7
 *   swap to 8: refused */
static void a_writer_past_the_deadline_opens_the_gate_itself_and_the_swap_is_refused(void **state)
{
    struct passer p;
    unsigned shard;

    (void)state;
    assert_int_equal(varve_gate_close(&gate, 30), 0);
    atomic_store(&p.started, 0);
    assert_int_equal(pthread_create(&p.thread, NULL, pass_main, &p), 0);
    pthread_join(p.thread, NULL);
    assert_int_equal(p.epoch, 7);
    assert_true(p.took_ms < 20000);
    assert_int_equal(varve_gate_swap(&gate, 8), -ETIMEDOUT);
    assert_int_equal(varve_gate_enter(&gate, &shard), 7);
    varve_gate_leave(&gate, shard);
}

/* The deadline is the writers'.  As long as none has gone on, the boundary is one instant. */
static void a_late_swap_that_kept_nobody_waiting_is_made(void **state)
{
    uint64_t until;

    (void)state;
    assert_int_equal(varve_gate_close(&gate, 1), 0);
    until = clock_ms() + 3;
    while (clock_ms() < until)
        sched_yield();
    assert_int_equal(varve_gate_swap(&gate, 8), 0);
    assert_int_equal(atomic_load(&now_word), 8 << 1);
}

static void closing_over_one_who_stays_inside_times_out_and_opens_again(void **state)
{
    unsigned shard, other;

    (void)state;
    varve_gate_enter(&gate, &shard);
    assert_int_equal(varve_gate_close(&gate, 20), -ETIMEDOUT);
    assert_int_equal(atomic_load(&now_word), 7 << 1);
    assert_int_equal(varve_gate_enter(&gate, &other), 7);
    varve_gate_leave(&gate, other);
    varve_gate_leave(&gate, shard);
    assert_int_equal(varve_gate_close(&gate, NEVER_MS), 0);
    varve_gate_open(&gate);
}

struct closer {
    pthread_t thread;
    _Atomic unsigned *left; /* set before the one inside leaves */
    int result;
    unsigned left_when_closed;
};

static void *close_main(void *arg)
{
    struct closer *c = arg;

    c->result = varve_gate_close(&gate, NEVER_MS);
    c->left_when_closed = atomic_load(c->left);
    return NULL;
}

/*   writer                     control
 *   enters
 *                              close: word says closed
 *   left = 1, leaves
 *                              close returns: left is 1 */
static void close_returns_after_the_last_one_inside_has_left(void **state)
{
    (void)state;
    for (unsigned round = 0; round < 200; round++) {
        _Atomic unsigned left = 0;
        struct closer c = {.left = &left};
        unsigned shard;

        varve_gate_enter(&gate, &shard);
        assert_int_equal(pthread_create(&c.thread, NULL, close_main, &c), 0);
        wait_until_closed();
        atomic_store(&left, 1);
        varve_gate_leave(&gate, shard);
        pthread_join(c.thread, NULL);
        assert_int_equal(c.result, 0);
        assert_int_equal(c.left_when_closed, 1);
        varve_gate_open(&gate);
    }
}

/* --- grace periods ---------------------------------------------------------------------------- */

static void a_grace_period_waits_for_whoever_is_inside(void **state)
{
    unsigned shard;

    (void)state;
    assert_int_equal(varve_gate_grace(&gate, 0), 0);
    for (unsigned i = 0; i < 4; i++) { /* by either count of the shard */
        varve_gate_enter(&gate, &shard);
        assert_int_equal(varve_gate_grace(&gate, 5), -ETIMEDOUT);
        varve_gate_leave(&gate, shard);
        assert_int_equal(varve_gate_grace(&gate, i % 2 ? 0 : NEVER_MS), 0);
    }
}

static void *grace_main(void *arg)
{
    *(int *)arg = varve_gate_grace(&gate, NEVER_MS);
    return NULL;
}

static void wait_for_bank(unsigned bank)
{
    uint64_t until = clock_ms() + 10000;

    while (atomic_load(&gate.bank) != bank) {
        if (clock_ms() > until) {
            fprintf(stderr, "test-gate: waited in vain\n");
            abort();
        }
        sched_yield();
    }
}

/*   writers                    flusher
 *   a enters
 *                              grace: later ones enter by the other count
 *   b enters, a leaves
 *                              the first count is zero; and back again
 *   c enters, b leaves
 *                              grace returns, though somebody was inside all the time */
static void a_grace_period_ends_though_the_gate_is_never_empty(void **state)
{
    unsigned bank = atomic_load(&gate.bank), a, b, c;
    pthread_t thread;
    int r = 1;

    (void)state;
    varve_gate_enter(&gate, &a);
    assert_int_equal(pthread_create(&thread, NULL, grace_main, &r), 0);
    wait_for_bank(!bank);
    varve_gate_enter(&gate, &b);
    varve_gate_leave(&gate, a);
    wait_for_bank(bank);
    varve_gate_enter(&gate, &c);
    varve_gate_leave(&gate, b);
    pthread_join(thread, NULL);
    assert_int_equal(r, 0);
    varve_gate_leave(&gate, c);
}

static void a_gate_is_closed_only_when_both_counts_are_zero(void **state)
{
    unsigned shard;

    (void)state;
    varve_gate_enter(&gate, &shard);
    atomic_store(&gate.bank, !atomic_load(&gate.bank));
    assert_int_equal(varve_gate_close(&gate, 5), -ETIMEDOUT);
    varve_gate_leave(&gate, shard);
    varve_gate_enter(&gate, &shard);
    assert_int_equal(varve_gate_close(&gate, 5), -ETIMEDOUT);
    varve_gate_leave(&gate, shard);
    assert_int_equal(varve_gate_close(&gate, 0), 0);
    varve_gate_open(&gate);
}

/* --- many threads ----------------------------------------------------------------------------- */

#define WRITERS 4u

static struct {
    _Atomic bool stop;
    uint64_t owned; /* plain: changed by control while closed, read by writers inside */
    _Atomic unsigned running, inside;
    _Atomic uint64_t entered, wrong;
} many;

static void *writer_main(void *arg)
{
    (void)arg;
    atomic_fetch_add(&many.running, 1);
    while (!atomic_load(&many.stop)) {
        unsigned shard;
        uint64_t epoch = varve_gate_enter(&gate, &shard);

        atomic_fetch_add(&many.inside, 1);
        if (many.owned != epoch)
            atomic_fetch_add(&many.wrong, 1);
        if (VARVE_NOW_EPOCH(atomic_load(&now_word)) != epoch)
            atomic_fetch_add(&many.wrong, 1);
        atomic_fetch_sub(&many.inside, 1);
        varve_gate_leave(&gate, shard);
        atomic_fetch_add(&many.entered, 1);
    }
    return NULL;
}

/* ThreadSanitizer sees a race on `owned` if anyone is inside while control changes it. */
static void nobody_is_inside_a_closed_gate(void **state)
{
    pthread_t threads[WRITERS];
    uint64_t epoch = 7;

    (void)state;
    many.owned = epoch;
    atomic_store(&many.stop, false);
    atomic_store(&many.running, 0);
    for (unsigned i = 0; i < WRITERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, writer_main, NULL), 0);
    wait_for(&many.running, WRITERS);
    for (unsigned round = 0; round < 2000; round++) {
        assert_int_equal(varve_gate_close(&gate, NEVER_MS), 0);
        assert_int_equal(atomic_load(&many.inside), 0);
        if (round % 3 == 0) {
            varve_gate_open(&gate);
            continue;
        }
        many.owned = ++epoch;
        assert_int_equal(varve_gate_swap(&gate, epoch), 0);
    }
    atomic_store(&many.stop, true);
    for (unsigned i = 0; i < WRITERS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(atomic_load(&many.wrong), 0);
    assert_true(atomic_load(&many.entered) > 0);
}

static void *late_writer_main(void *arg)
{
    (void)arg;
    atomic_fetch_add(&many.running, 1);
    while (!atomic_load(&many.stop)) {
        unsigned shard;
        uint64_t epoch = varve_gate_enter(&gate, &shard);

        if (VARVE_NOW_EPOCH(atomic_load(&now_word)) != epoch)
            atomic_fetch_add(&many.wrong, 1);
        varve_gate_leave(&gate, shard);
        atomic_fetch_add(&many.entered, 1);
    }
    return NULL;
}

/* Deadlines of 0 and 1 ms: swap and writers race for the word, and only one of them wins it. */
static void swap_and_deadline_never_both_win(void **state)
{
    pthread_t threads[WRITERS];
    uint64_t epoch = 7;

    (void)state;
    atomic_store(&many.stop, false);
    atomic_store(&many.running, 0);
    atomic_store(&many.wrong, 0);
    for (unsigned i = 0; i < WRITERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, late_writer_main, NULL), 0);
    wait_for(&many.running, WRITERS);
    for (unsigned round = 0; round < 2000; round++) {
        int closed = varve_gate_close(&gate, round % 2);
        int swapped = varve_gate_swap(&gate, epoch + 1);

        assert_true(swapped == 0 || swapped == -ETIMEDOUT);
        if (closed < 0)
            assert_int_equal(swapped, -ETIMEDOUT);
        epoch += swapped == 0;
        assert_int_equal(VARVE_NOW_EPOCH(atomic_load(&now_word)), epoch);
    }
    atomic_store(&many.stop, true);
    for (unsigned i = 0; i < WRITERS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(atomic_load(&many.wrong), 0);
}

int main(void)
{
#define GATE_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        GATE_TEST(an_open_gate_lets_in_and_tells_the_epoch),
        GATE_TEST(closing_an_empty_gate_is_done_at_once_and_swap_opens_it),
        GATE_TEST(a_gate_left_closed_by_a_dead_server_is_open_after_init),
        GATE_TEST(swap_and_open_of_an_open_gate_change_nothing),
        GATE_TEST(who_comes_to_a_closed_gate_enters_the_epoch_it_opens_onto),
        GATE_TEST(a_writer_past_the_deadline_opens_the_gate_itself_and_the_swap_is_refused),
        GATE_TEST(a_late_swap_that_kept_nobody_waiting_is_made),
        GATE_TEST(closing_over_one_who_stays_inside_times_out_and_opens_again),
        GATE_TEST(close_returns_after_the_last_one_inside_has_left),
        GATE_TEST(a_grace_period_waits_for_whoever_is_inside),
        GATE_TEST(a_grace_period_ends_though_the_gate_is_never_empty),
        GATE_TEST(a_gate_is_closed_only_when_both_counts_are_zero),
        GATE_TEST(nobody_is_inside_a_closed_gate),
        GATE_TEST(swap_and_deadline_never_both_win),
    };

    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
