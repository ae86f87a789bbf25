/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Writers, readers and boundaries at once, as fast as they go.  Each writer owns every fourth sector
 * of 512 bytes, so that blocks are shared and sectors are not, and writes its own count into its
 * sector's words; what a boundary has to show is then known without asking the code under test:
 *
 *     a count in a view is at least what its writer had finished before the boundary was asked for,
 *     at most what it had begun when the boundary was made, and never differs between two reads
 *
 * Takes SEED and ROUNDS (boundaries) from the environment.
 */
#include "lib/bitmap.h"
#include "tests/lib/core-fixture.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define BLOCK    4096u
#define SECTOR   512u
#define BLKS     24u
#define SIZE     ((uint64_t)(BLKS - 1) * BLOCK + 2 * SECTOR)
#define SECTORS  (SIZE / SECTOR)
#define WRITERS  4u
#define READERS  2u
#define VIEWS    3u

/* A writer's counts of the sectors it owns (others are unused). */
struct writer {
    pthread_t thread;
    unsigned number;
    uint64_t random;
    _Atomic uint64_t begun[SECTORS], done[SECTORS];
};

/* A view that readers use.  `users` and the lock keep it open while one does. */
struct slot {
    pthread_mutex_t lock; /* guards all below */
    struct varve_view view;
    bool open;
    uint64_t least[SECTORS], most[SECTORS];
    uint64_t seen[SECTORS]; /* what the first read of this sector gave + 1; 0: none yet */
};

static struct core c;
static struct writer writers[WRITERS];
static struct slot slots[VIEWS];
static _Atomic bool stop;
static _Atomic uint64_t reads, again;
static uint64_t the_seed;

static uint64_t env_number(const char *name, uint64_t otherwise)
{
    const char *s = getenv(name);

    return s && *s ? strtoull(s, NULL, 0) : otherwise;
}

static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* cmocka fails in its own thread only. */
static void judge(bool ok, const char *what, uint64_t sector, uint64_t got, uint64_t least,
                  uint64_t most)
{
    if (ok)
        return;
    fprintf(stderr, "test-threads: SEED=%llu: %s: sector %llu has count %llu, not %llu to %llu\n",
            (unsigned long long)the_seed, what, (unsigned long long)sector,
            (unsigned long long)got, (unsigned long long)least, (unsigned long long)most);
    abort();
}

static void must(bool ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "test-threads: SEED=%llu: %s: %s\n", (unsigned long long)the_seed, what,
            strerror(errno));
    abort();
}

/* --- writers ------------------------------------------------------------------------------------ */

static void *writer_main(void *arg)
{
    struct writer *w = arg;
    uint64_t words[SECTOR / 8];

    while (!atomic_load(&stop)) {
        uint64_t own = next_random(&w->random) % ((SECTORS - w->number + WRITERS - 1) / WRITERS);
        uint64_t sector = own * WRITERS + w->number;
        uint64_t count = atomic_load(&w->begun[sector]) + 1;
        struct varve_piece p;

        for (unsigned i = 0; i < SECTOR / 8; i++)
            words[i] = count;
        atomic_store(&w->begun[sector], count);
        varve_piece_begin(c.t, sector * SECTOR, SECTOR, false, &p);
        must(pwrite(c.image_fd, words, SECTOR, (off_t)(sector * SECTOR)) == SECTOR, "write");
        varve_piece_end(c.t, &p);
        atomic_store(&w->done[sector], count);
    }
    return NULL;
}

/* --- readers ------------------------------------------------------------------------------------ */

static void check_sectors(struct slot *s, const uint64_t *words, uint64_t sector, uint64_t nsectors)
{
    for (uint64_t i = 0; i < nsectors; i++, sector++) {
        uint64_t count = words[i * SECTOR / 8];

        for (unsigned j = 1; j < SECTOR / 8; j++)
            judge(words[i * SECTOR / 8 + j] == count, "torn", sector, words[i * SECTOR / 8 + j],
                  count, count);
        judge(count >= s->least[sector] && count <= s->most[sector], "wrong instant", sector, count,
              s->least[sector], s->most[sector]);
        judge(s->seen[sector] == 0 || s->seen[sector] == count + 1, "changed", sector, count,
              s->seen[sector] - 1, s->seen[sector] - 1);
        s->seen[sector] = count + 1;
    }
}

static void *reader_main(void *arg)
{
    uint64_t random = the_seed * 77 + (uint64_t)(uintptr_t)arg;
    uint64_t words[8 * BLOCK / 8];

    while (!atomic_load(&stop)) {
        struct slot *s = &slots[next_random(&random) % VIEWS];
        uint64_t sector = next_random(&random) % SECTORS, n = next_random(&random) % 64 + 1;
        struct varve_err err = VARVE_ERR_INIT;
        int r;

        if (n > SECTORS - sector)
            n = SECTORS - sector;
        pthread_mutex_lock(&s->lock);
        if (s->open) {
            r = varve_view_read(c.source, &s->view, words, sector * SECTOR, (uint32_t)(n * SECTOR),
                                NULL, &err);
            if (r == 0)
                check_sectors(s, words, sector, n);
            else if (r != -EAGAIN) /* a boundary whose files are on their way */
                fprintf(stderr, "test-threads: %s\n", err.msg), abort();
            atomic_fetch_add(r == 0 ? &reads : &again, 1);
        }
        pthread_mutex_unlock(&s->lock);
    }
    return NULL;
}

/* --- control ------------------------------------------------------------------------------------ */

/* Which blocks must, and which may, have been written since the boundary before. */
static uint64_t before_least[SECTORS], before_most[SECTORS];

static void remember_counts(uint64_t *counts, bool done)
{
    for (uint64_t s = 0; s < SECTORS; s++) {
        struct writer *w = &writers[s % WRITERS];

        counts[s] = atomic_load(done ? &w->done[s] : &w->begun[s]);
    }
}

/* A block with a sector that was certainly written in the epoch is dirty in it; one none of whose
 * sectors can have been written is clean. */
static void check_epoch_bits(uint64_t epoch, const uint64_t *least, const uint64_t *most)
{
    struct varve_bitmap *bits = core_sealed_bits(&c, epoch);

    for (uint64_t s = 0; s < SECTORS; s++) {
        if (least[s] > before_most[s])
            judge(varve_bitmap_test(bits, s * SECTOR / BLOCK), "not dirty", s, 0, before_most[s],
                  least[s]);
    }
    for (uint64_t b = 0; b < BLKS; b++) {
        bool possible = false;

        for (uint64_t s = b * BLOCK / SECTOR; s < (b + 1) * BLOCK / SECTOR && s < SECTORS; s++)
            possible |= most[s] > before_least[s];
        if (!possible)
            judge(!varve_bitmap_test(bits, b), "dirty", b * BLOCK / SECTOR, 1, 0, 0);
    }
    free(bits);
    memcpy(before_least, least, sizeof(before_least));
    memcpy(before_most, most, sizeof(before_most));
}

static void control_round(uint64_t id, uint64_t *random)
{
    struct slot *s = &slots[next_random(random) % VIEWS];
    uint64_t least[SECTORS], most[SECTORS], live = varve_tracker_epoch(c.t), epoch;
    bool with_view = next_random(random) % 3 != 0;
    struct varve_err err = VARVE_ERR_INIT;

    pthread_mutex_lock(&s->lock);
    if (s->open)
        must(varve_tracker_end_view(c.t, s->view.id, &err) == 0, "end view");
    s->open = false;
    pthread_mutex_unlock(&s->lock);

    must(varve_tracker_prepare(c.t, with_view, &epoch, &err) == 0, err.msg);
    core_fetch(&c);
    remember_counts(least, true);
    must(varve_tracker_quiesce(c.t, &err) == 0, err.msg);
    remember_counts(most, false);
    if (next_random(random) % 8 == 0) {
        varve_tracker_abort(c.t);
        return;
    }
    must(varve_tracker_swap(c.t, epoch, with_view ? id : 0, &err) == 0, err.msg);
    must(varve_tracker_seal(c.t, &err) == 0, err.msg);
    check_epoch_bits(live, least, most);
    if (with_view) {
        pthread_mutex_lock(&s->lock);
        s->view = (struct varve_view){.id = id, .boundary = epoch};
        memcpy(s->least, least, sizeof(least));
        memcpy(s->most, most, sizeof(most));
        memset(s->seen, 0, sizeof(s->seen));
        s->open = true;
        pthread_mutex_unlock(&s->lock);
    }
}

static void every_view_shows_its_instant_while_all_write(void **state)
{
    uint64_t rounds = env_number("ROUNDS", 150), random = the_seed;
    pthread_t readers[READERS];

    (void)state;
    core_init(&c, SIZE, BLOCK);
    core_start(&c);
    core_open_source(&c);
    for (unsigned i = 0; i < VIEWS; i++)
        pthread_mutex_init(&slots[i].lock, NULL);
    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i].number = i;
        writers[i].random = the_seed + i;
        assert_int_equal(pthread_create(&writers[i].thread, NULL, writer_main, &writers[i]), 0);
    }
    for (unsigned i = 0; i < READERS; i++)
        assert_int_equal(pthread_create(&readers[i], NULL, reader_main, (void *)(uintptr_t)i), 0);
    for (uint64_t id = 1; id <= rounds; id++) {
        uint64_t want = atomic_load(&reads) + 3, oldest = UINT64_MAX;

        control_round(id, &random);
        /* On a busy machine readers get their turn too: a few looks a round, while there are views
         * (ends at the deadline of the whole test otherwise). */
        for (unsigned i = 0; i < VIEWS; i++) {
            if (slots[i].open && slots[i].view.boundary < oldest)
                oldest = slots[i].view.boundary;
        }
        while (oldest != UINT64_MAX && id % 4 == 0 && atomic_load(&reads) < want)
            sched_yield();
        varve_source_drop_before(c.source, oldest == UINT64_MAX ? varve_tracker_epoch(c.t) : oldest);
    }
    atomic_store(&stop, true);
    for (unsigned i = 0; i < WRITERS; i++)
        pthread_join(writers[i].thread, NULL);
    for (unsigned i = 0; i < READERS; i++)
        pthread_join(readers[i], NULL);
    printf("# %llu reads proved, %llu told to come again\n", (unsigned long long)atomic_load(&reads),
           (unsigned long long)atomic_load(&again));
    assert_true(atomic_load(&reads) > rounds / 2);
    core_fini(&c);
    for (unsigned i = 0; i < VIEWS; i++)
        pthread_mutex_destroy(&slots[i].lock);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_view_shows_its_instant_while_all_write),
    };

    the_seed = env_number("SEED", (uint64_t)time(NULL));
    printf("# SEED=%llu\n", (unsigned long long)the_seed);
    fflush(stdout);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
