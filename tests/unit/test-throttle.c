/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How fast a backup may be read: the line, and the law of the adaptive mode.  The clock is a number
 * here, and the guest another.
 */
#include "server/nbd/throttle.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MS    UINT64_C(1000000)
#define S     (1000 * MS)
#define K     UINT64_C(1024)
#define M     (1024 * K)
#define PIECE (256 * K)

/* --- clients ------------------------------------------------------------------------------------
 */

struct client {
    struct varve_ticket ticket;
    uint64_t again; /* ns: when it asks again */
    uint64_t pieces;
};

/* Each of the clients reads pieces, one after the other, for so long; the time it is then. */
static uint64_t run(struct varve_throttle *t, struct client *clients, size_t n, uint64_t now,
                    uint64_t until)
{
    for (;;) {
        struct client *next = &clients[0];
        unsigned ms;

        for (size_t i = 1; i < n; i++) {
            if (clients[i].again < next->again)
                next = &clients[i];
        }
        if (next->again > until)
            return until;
        if (next->again > now)
            now = next->again;
        ms = varve_throttle_ask(t, &next->ticket, PIECE, now);
        if (ms) {
            next->again = now + ms * MS;
            continue;
        }
        varve_throttle_use(t, &next->ticket);
        next->pieces++;
        next->again = now + MS / 10; /* what a read takes */
    }
}

static void leave(struct varve_throttle *t, struct client *clients, size_t n, uint64_t now)
{
    for (size_t i = 0; i < n; i++)
        varve_throttle_give_back(t, &clients[i].ticket, now);
}

static uint64_t bytes_of(struct varve_throttle *t)
{
    struct varve_throttle_stats st;

    varve_throttle_stats(t, 0, &st);
    return st.bytes;
}

static uint64_t current(struct varve_throttle *t)
{
    struct varve_throttle_stats st;

    varve_throttle_stats(t, 0, &st);
    return st.current;
}

static uint64_t backoffs(struct varve_throttle *t)
{
    struct varve_throttle_stats st;

    varve_throttle_stats(t, 0, &st);
    return st.backoffs;
}

/* --- the line -----------------------------------------------------------------------------------
 */

static void a_speed_is_kept_to_and_used_up(void **state)
{
    static const uint64_t speeds[] = {100 * K, M, 10 * M + 1, 777 * M};
    (void)state;

    for (size_t i = 0; i < sizeof(speeds) / sizeof(speeds[0]); i++) {
        struct varve_throttle *t = varve_throttle_new(speeds[i], NULL, 5 * S);
        struct client clients[7] = {{.again = 5 * S}};
        struct varve_throttle_stats st;
        uint64_t now;

        for (size_t k = 0; k < 7; k++)
            clients[k].again = 5 * S + k;
        now = run(t, clients, 7, 5 * S, 105 * S);
        varve_throttle_stats(t, now, &st);
        assert_int_equal(st.age_ns, 100 * S);
        assert_true(st.bytes <= 100 * speeds[i] + speeds[i] / 10 + PIECE);
        assert_true(st.bytes >= 100 * speeds[i] - speeds[i] / 10 - PIECE);
        assert_true(st.waits > 0 && st.waited_ns > 0);
        assert_int_equal(st.current, speeds[i]);
        leave(t, clients, 7, now);
        varve_throttle_unref(t);
    }
}

static void clients_get_equal_shares(void **state)
{
    struct varve_throttle *t = varve_throttle_new(10 * M, NULL, 0);
    struct client clients[5] = {{.again = 0}};
    uint64_t now = run(t, clients, 5, 0, 100 * S);
    (void)state;

    for (size_t i = 1; i < 5; i++) {
        assert_true(clients[i].pieces <= clients[0].pieces + 1);
        assert_true(clients[0].pieces <= clients[i].pieces + 1);
    }
    leave(t, clients, 5, now);
    varve_throttle_unref(t);
}

static void the_line_is_served_in_order(void **state)
{
    struct varve_throttle *t = varve_throttle_new(20 * M, NULL, 0);
    struct varve_ticket a = {.held = false}, b = a, c = a;
    (void)state;

    assert_int_equal(varve_throttle_ask(t, &a, M, 0), 0);
    varve_throttle_use(t, &a);
    assert_in_range(varve_throttle_ask(t, &b, M, 0), 50, 51);
    /* small, and behind all the same */
    assert_in_range(varve_throttle_ask(t, &c, 1, 0), 100, 101);
    assert_in_range(varve_throttle_ask(t, &c, 1, 50 * MS), 50, 51);
    assert_int_equal(varve_throttle_ask(t, &b, M, 50 * MS), 0);
    assert_int_equal(varve_throttle_ask(t, &b, M, 50 * MS), 0); /* its turn stays */
    assert_in_range(varve_throttle_ask(t, &c, 1, 50 * MS), 50, 51);
    varve_throttle_use(t, &b);
    assert_int_equal(varve_throttle_ask(t, &c, 1, 100 * MS), 0);
    varve_throttle_use(t, &c);
    varve_throttle_unref(t);
}

static void a_burst_after_a_pause_is_small(void **state)
{
    struct varve_throttle *t = varve_throttle_new(10 * M, NULL, 0);
    struct client client = {.again = 3600 * S};
    uint64_t now = run(t, &client, 1, 3600 * S, 3600 * S + 2 * MS);
    (void)state;

    assert_true(bytes_of(t) >= M);
    assert_true(bytes_of(t) <= M + PIECE);
    leave(t, &client, 1, now);
    varve_throttle_unref(t);
}

static void who_gives_back_lets_those_behind_move_up(void **state)
{
    struct varve_throttle *t = varve_throttle_new(20 * M, NULL, 0);
    struct varve_ticket a = {.held = false}, b = a, c = a, d = a;
    (void)state;

    assert_int_equal(varve_throttle_ask(t, &a, M, 0), 0);
    varve_throttle_use(t, &a);
    assert_in_range(varve_throttle_ask(t, &b, M, 0), 50, 51);
    assert_in_range(varve_throttle_ask(t, &c, 7 * M, 0), 100, 101);
    assert_in_range(varve_throttle_ask(t, &d, M, 0), 450, 451);
    varve_throttle_give_back(t, &c, 0);
    varve_throttle_give_back(t, &c, 0); /* once is enough */
    assert_in_range(varve_throttle_ask(t, &b, M, 0), 50, 51);
    assert_in_range(varve_throttle_ask(t, &d, M, 0), 100, 101);
    /* Its turn has come, and it goes: the same. */
    assert_int_equal(varve_throttle_ask(t, &b, M, 50 * MS), 0);
    varve_throttle_give_back(t, &b, 50 * MS);
    assert_int_equal(varve_throttle_ask(t, &d, M, 50 * MS), 0);
    varve_throttle_use(t, &d);
    assert_int_equal(bytes_of(t), 2 * M);
    varve_throttle_unref(t);
}

/* Were the bytes of a place that is given back added to what may be read, this would read without
 * limit. */
static void clients_that_come_and_go_win_nothing(void **state)
{
    struct varve_throttle *t = varve_throttle_new(M, NULL, 0);
    struct client reader = {.again = 0};
    struct varve_ticket fickle = {.held = false};
    uint64_t now = 0;
    (void)state;

    while (now < 20 * S) {
        varve_throttle_ask(t, &fickle, 32 * M, now);
        now = run(t, &reader, 1, now, now + MS);
        varve_throttle_give_back(t, &fickle, now);
        reader.again = now; /* more often than it is told to */
    }
    assert_true(bytes_of(t) <= 20 * M + M / 10 + PIECE);
    leave(t, &reader, 1, now);
    varve_throttle_unref(t);
}

static void the_smallest_and_the_largest_speed_do_not_overflow(void **state)
{
    struct varve_ticket a = {.held = false}, b = a;
    struct varve_throttle *t = varve_throttle_new(1, NULL, 0);
    (void)state;

    assert_int_equal(varve_throttle_ask(t, &a, PIECE, 0),
                     0); /* the first begins, and is paid later */
    varve_throttle_use(t, &a);
    assert_in_range(varve_throttle_ask(t, &b, PIECE, MS), 1000, 1000);
    for (uint64_t now = 2 * MS; now < 20 * S; now += MS) /* no nanosecond is lost by asking often */
        assert_int_not_equal(varve_throttle_ask(t, &b, PIECE, now), 0);
    assert_int_not_equal(varve_throttle_ask(t, &b, PIECE, (PIECE - 1) * S), 0);
    assert_int_equal(varve_throttle_ask(t, &b, PIECE, PIECE * S), 0);
    varve_throttle_use(t, &b);
    varve_throttle_unref(t);

    for (unsigned shift = 40; shift < 64; shift++) {
        uint64_t speed = shift < 63 ? UINT64_C(1) << shift : INT64_MAX;

        t = varve_throttle_new(speed, NULL, 0);
        for (uint64_t i = 0; i < 1000; i++) {
            uint64_t now = i * i * i * S;

            while (varve_throttle_ask(t, &a, UINT64_C(1) << 32, now))
                now += MS;
            varve_throttle_use(t, &a);
        }
        varve_throttle_unref(t);
    }

    t = varve_throttle_new(UINT64_C(1) << 62, NULL, 0);
    assert_int_equal(varve_throttle_ask(t, &a, UINT64_C(1) << 62, 0), 0);
    assert_in_range(varve_throttle_ask(t, &b, 1, 0), 1000, 1001);
    assert_in_range(varve_throttle_ask(t, &b, 1, S / 2), 500, 501);
    assert_int_equal(varve_throttle_ask(t, &b, 1, 9 * S / 2), 0);
    varve_throttle_use(t, &a);
    varve_throttle_use(t, &b);
    varve_throttle_unref(t);
}

static void a_clock_that_stands_or_goes_back_does_no_harm(void **state)
{
    struct varve_throttle *t = varve_throttle_new(M, NULL, 10 * S);
    struct varve_ticket a = {.held = false}, b = a;
    (void)state;

    assert_int_equal(varve_throttle_ask(t, &a, M, 9 * S), 0);
    varve_throttle_use(t, &a);
    assert_int_not_equal(varve_throttle_ask(t, &b, M, 9 * S), 0);
    assert_int_not_equal(varve_throttle_ask(t, &b, M, 8 * S), 0);
    assert_int_equal(varve_throttle_ask(t, &b, M, 11 * S), 0);
    varve_throttle_give_back(t, &b, 0);
    varve_throttle_unref(t);
}

/* --- adapting -----------------------------------------------------------------------------------
 */

struct guest {
    struct varve_guest_writes sum;
    bool known;
    unsigned freed;
};

static bool guest_look(void *arg, struct varve_guest_writes *sum)
{
    struct guest *g = arg;

    *sum = g->sum;
    return g->known;
}

static void guest_free(void *arg)
{
    ((struct guest *)arg)->freed++;
}

static struct varve_throttle *adaptive(uint64_t speed, struct guest *g, uint64_t now)
{
    struct varve_throttle_guest guest = {.look = guest_look, .free = guest_free, .arg = g};
    struct varve_throttle *t = varve_throttle_new(speed, &guest, now);

    assert_non_null(t);
    return t;
}

static void writes(struct guest *g, uint64_t n, uint64_t each_ns)
{
    g->sum.begun += n;
    g->sum.ended += n;
    g->sum.ns += n * each_ns;
}

/* The client reads for so long, while the guest makes 10 writes in each 100 ms. */
static uint64_t beside(struct varve_throttle *t, struct client *c, struct guest *g,
                       uint64_t each_ns, uint64_t now, uint64_t for_ns)
{
    uint64_t until = now + for_ns;

    while (now < until) {
        writes(g, 10, each_ns);
        now = run(t, c, 1, now, now + 100 * MS);
    }
    return now;
}

static void slow_writes_of_the_guest_slow_the_backup_down(void **state)
{
    struct guest g = {.known = true};
    struct varve_throttle *t = adaptive(64 * M, &g, 0);
    struct client c = {.again = 0};
    uint64_t now = beside(t, &c, &g, MS / 10, 0, 5 * S), before, rate;
    (void)state;

    assert_int_equal(current(t), 64 * M);
    assert_int_equal(backoffs(t), 0);
    now = beside(t, &c, &g, 20 * MS, now, S);
    rate = current(t);
    assert_true(rate < 64 * M / 2 && backoffs(t) > 0);
    /* At the floor it still gets on. */
    now = beside(t, &c, &g, 20 * MS, now, 3 * S);
    assert_int_equal(current(t), M);
    before = bytes_of(t);
    now = beside(t, &c, &g, 20 * MS, now, 10 * S);
    assert_true(bytes_of(t) >= before + 9 * M);
    assert_true(bytes_of(t) <= before + 11 * M);
    /* And it comes back, in steps. */
    now = beside(t, &c, &g, MS / 10, now, S);
    assert_true(current(t) > M && current(t) < 64 * M);
    now = beside(t, &c, &g, MS / 10, now, 10 * S);
    assert_int_equal(current(t), 64 * M);
    leave(t, &c, 1, now);
    varve_throttle_unref(t);
    assert_int_equal(g.freed, 1);
}

static void without_a_speed_it_is_free_until_the_guest_suffers(void **state)
{
    struct guest g = {.known = true};
    struct varve_throttle *t = adaptive(0, &g, 0);
    struct client c = {.again = 0};
    uint64_t now = beside(t, &c, &g, MS / 10, 0, 5 * S), before = bytes_of(t);
    (void)state;

    assert_int_equal(current(t), 0);
    assert_true(before > 1000 * M); /* as fast as reads are: 2.5 GB/s here */
    now = beside(t, &c, &g, 50 * MS, now, 300 * MS);
    assert_true(current(t) > 0 && current(t) < 2000 * M);
    now = beside(t, &c, &g, 50 * MS, now, 10 * S);
    assert_int_equal(current(t), M);
    now = beside(t, &c, &g, MS / 10, now, 20 * S);
    assert_int_equal(current(t), 0);
    leave(t, &c, 1, now);
    varve_throttle_unref(t);
}

static void noise_and_idle_guests_slow_nothing_down(void **state)
{
    struct guest g = {.known = true};
    struct varve_throttle *t = adaptive(64 * M, &g, 0);
    struct client c = {.again = 0};
    uint64_t now = beside(t, &c, &g, MS / 100, 0, S);
    (void)state;

    now = beside(t, &c, &g, MS, now, S);    /* 100 times as long, and nobody feels it */
    now = run(t, &c, 1, now, now + 10 * S); /* nothing is written */
    g.known = false;                        /* nothing is known */
    g.sum = (struct varve_guest_writes){.begun = 7};
    now = run(t, &c, 1, now, now + 10 * S);
    g.known = true; /* counters begin anew */
    now = run(t, &c, 1, now, now + 2 * S);
    assert_int_equal(backoffs(t), 0);
    assert_int_equal(current(t), 64 * M);
    leave(t, &c, 1, now);
    varve_throttle_unref(t);
}

static void a_guest_that_is_slow_by_itself_becomes_normal(void **state)
{
    struct guest g = {.known = true};
    struct varve_throttle *t = adaptive(64 * M, &g, 0);
    struct client c = {.again = 0};
    uint64_t now = beside(t, &c, &g, 2 * MS, 0, 5 * S);
    (void)state;

    now = beside(t, &c, &g, 6 * MS, now, 10 * S);
    assert_int_equal(current(t), M);
    now = beside(t, &c, &g, 6 * MS, now, 300 * S); /* the base creeps up to it */
    assert_int_equal(current(t), 64 * M);
    leave(t, &c, 1, now);
    varve_throttle_unref(t);
}

static void what_writes_took_before_is_the_first_base(void **state)
{
    struct guest g = {.known = true};
    struct varve_throttle *t;
    struct client c = {.again = 0};
    uint64_t now;
    (void)state;

    writes(&g, 1000, MS / 10);
    t = adaptive(64 * M, &g, 0);
    now = beside(t, &c, &g, 20 * MS, 0, S); /* from the backup's first moment on */
    assert_true(backoffs(t) > 0 && current(t) < 32 * M);
    leave(t, &c, 1, now);
    varve_throttle_unref(t);
}

static void writes_that_do_not_end_count_for_some_seconds(void **state)
{
    struct guest g = {.known = true};
    struct varve_throttle *t = adaptive(64 * M, &g, 0);
    struct client c = {.again = 0};
    uint64_t now = beside(t, &c, &g, MS / 10, 0, 2 * S);
    (void)state;

    g.sum.begun++;
    now = run(t, &c, 1, now, now + 5 * S);
    assert_true(backoffs(t) > 0);
    assert_int_equal(current(t), M);
    now = run(t, &c, 1, now, now + 20 * S); /* its server was killed */
    assert_int_equal(current(t), 64 * M);
    leave(t, &c, 1, now);
    varve_throttle_unref(t);
}

static void who_reads_nothing_is_not_slowed_down(void **state)
{
    struct guest g = {.known = true};
    struct varve_throttle *t = adaptive(64 * M, &g, 0);
    struct client c = {.again = 0};
    struct varve_ticket waits = {.held = false};
    uint64_t now = beside(t, &c, &g, MS / 10, 0, 2 * S);
    (void)state;

    leave(t, &c, 1, now);
    for (unsigned i = 0; i < 20; i++) {
        writes(&g, 10, 30 * MS);
        now += 200 * MS;
        varve_throttle_ask(t, &waits, PIECE, now);
        varve_throttle_give_back(t, &waits, now);
    }
    assert_true(backoffs(t) <= 1); /* for what was read just before */
    varve_throttle_unref(t);
}

/* --- threads ------------------------------------------------------------------------------------
 */

#define THREADS 4
#define ASKS    20000

static void *asker(void *arg)
{
    struct varve_throttle *t = arg;
    struct varve_ticket ticket = {.held = false};

    for (uint64_t i = 0; i < ASKS; i++) {
        if (varve_throttle_ask(t, &ticket, 1, i * MS) == 0)
            varve_throttle_use(t, &ticket);
        else if (i % 7 == 0)
            varve_throttle_give_back(t, &ticket, i * MS);
    }
    varve_throttle_give_back(t, &ticket, ASKS * MS);
    varve_throttle_unref(t);
    return NULL;
}

static void any_thread_may_ask(void **state)
{
    struct varve_throttle *t = varve_throttle_new(1000, NULL, 0);
    pthread_t threads[THREADS];
    (void)state;

    for (unsigned i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, asker, varve_throttle_ref(t)), 0);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    assert_true(bytes_of(t) <= ASKS + 101);
    varve_throttle_unref(t);
    varve_throttle_unref(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_speed_is_kept_to_and_used_up),
        cmocka_unit_test(clients_get_equal_shares),
        cmocka_unit_test(the_line_is_served_in_order),
        cmocka_unit_test(a_burst_after_a_pause_is_small),
        cmocka_unit_test(who_gives_back_lets_those_behind_move_up),
        cmocka_unit_test(clients_that_come_and_go_win_nothing),
        cmocka_unit_test(the_smallest_and_the_largest_speed_do_not_overflow),
        cmocka_unit_test(a_clock_that_stands_or_goes_back_does_no_harm),
        cmocka_unit_test(slow_writes_of_the_guest_slow_the_backup_down),
        cmocka_unit_test(without_a_speed_it_is_free_until_the_guest_suffers),
        cmocka_unit_test(noise_and_idle_guests_slow_nothing_down),
        cmocka_unit_test(a_guest_that_is_slow_by_itself_becomes_normal),
        cmocka_unit_test(what_writes_took_before_is_the_first_base),
        cmocka_unit_test(writes_that_do_not_end_count_for_some_seconds),
        cmocka_unit_test(who_reads_nothing_is_not_slowed_down),
        cmocka_unit_test(any_thread_may_ask),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
