/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Random lives of a disk against a plain model: an array of its bytes, a copy of it for each open
 * view with the sets of blocks that it released or does not need, and for each epoch the set of blocks
 * that were written in it.  Compared after each step.
 *
 * SEED=n plays that seed only; ROUNDS=n is the number of steps of each.  A seed that failed becomes
 * a line of `known_seeds` that day.
 */
#include "tests/lib/core-fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define BLOCK      4096u
#define BLKS       11u /* the last is partial */
#define SIZE       ((uint64_t)(BLKS - 1) * BLOCK + 777)
#define VIEWS      5u
#define EPOCHS     4096u
#define BOUNDARIES 8u
#define SEEDS      150u
#define ROUNDS     120u

struct epoch {
    uint32_t written; /* blocks */
    bool doubt;       /* after a host crash it may know more than that */
    bool sealed;
};

struct view {
    struct varve_view at;
    struct varve_image_run seen;
    bool narrowed;
    uint32_t released, unneeded; /* blocks */
    char content[SIZE];
};

static struct {
    uint64_t random;
    char now[SIZE];
    uint64_t live;
    struct epoch epochs[EPOCHS];
    struct view views[VIEWS]; /* at.id 0: not open */
    uint64_t next_view;
    uint64_t needed[BOUNDARIES]; /* boundaries that somebody needs; 0: none */
} m;

static struct core c;
static const uint64_t known_seeds[] = {1};

static uint64_t rnd(uint64_t below)
{
    uint64_t z = m.random += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (z ^ (z >> 31)) % below;
}

static uint32_t mask_of(struct varve_bitmap *bits)
{
    uint32_t mask = (uint32_t)bits->words[0];

    free(bits);
    return mask;
}

/* --- comparing ---------------------------------------------------------------------------------- */

static void compare_bits(uint32_t is, uint32_t want, bool doubt)
{
    if (doubt)
        assert_int_equal(is & want, want);
    else
        assert_int_equal(is, want);
}

static void compare_live(void)
{
    assert_int_equal(varve_tracker_epoch(c.t), m.live);
    compare_bits(mask_of(core_live_bits(&c, m.live)), m.epochs[m.live].written,
                 m.epochs[m.live].doubt);
}

static struct view *some_view(void)
{
    struct view *v = &m.views[rnd(VIEWS)];

    return v->at.id ? v : NULL;
}

/* Blocks that the view must not give away, or cannot. */
static uint32_t gone_of(const struct view *v)
{
    uint32_t written = 0;

    for (uint64_t e = v->at.boundary; e <= m.live; e++)
        written |= m.epochs[e].written;
    return v->released | (v->unneeded & written);
}

static uint32_t blocks_of(uint64_t off, uint64_t len)
{
    uint32_t mask = 0;

    for (uint64_t blk = off / BLOCK; blk <= (off + len - 1) / BLOCK; blk++)
        mask |= 1u << blk;
    return mask;
}

static void read_view(void)
{
    struct view *v = some_view();
    uint64_t off = rnd(SIZE), len = rnd(SIZE - off) + 1;
    struct varve_err err = VARVE_ERR_INIT;
    static char buf[SIZE];

    if (!v)
        return;
    core_fetch(&c);
    memset(buf, '?', len);
    if (gone_of(v) & blocks_of(off, len)) {
        assert_int_equal(varve_view_read(c.source, &v->at, buf, off, (uint32_t)len, NULL, &err),
                         -EIO);
        return;
    }
    if (varve_view_read(c.source, &v->at, buf, off, (uint32_t)len, NULL, &err) < 0)
        fail_msg("read of view %u: %s", (unsigned)v->at.id, err.msg);
    assert_memory_equal(buf, v->content + off, len);
}

static void ask_holes(void)
{
    struct view *v = some_view();
    uint64_t off = rnd(BLKS) * BLOCK, run;
    int hole;

    if (!v)
        return;
    core_fetch(&c);
    hole = varve_view_hole_run(c.source, &v->at, off, rnd(SIZE) + 1, &v->seen, &run, NULL);
    assert_true(hole >= 0 && run > 0 && run <= SIZE - off);
    for (uint64_t i = 0; hole && i < run; i++)
        assert_int_equal(v->content[off + i], 0);
}

static void ask_gone(void)
{
    struct view *v = some_view();
    uint64_t off = rnd(BLKS) * BLOCK, run;
    uint32_t gone;
    int is;

    if (!v)
        return;
    core_fetch(&c);
    gone = gone_of(v);
    is = varve_view_gone_run(c.source, &v->at, off, rnd(SIZE) + 1, &run, NULL);
    assert_true(is >= 0 && run > 0 && run <= SIZE - off);
    assert_int_equal(gone & blocks_of(off, run), is ? blocks_of(off, run) : 0);
}

/* What has changed since a needed boundary. */
static void ask_union(void)
{
    uint64_t boundary = m.needed[rnd(BOUNDARIES)];
    struct varve_timeline tl;
    struct varve_bitmap *bits;
    struct varve_err err = VARVE_ERR_INIT;
    uint32_t want = 0;
    bool doubt = false;

    if (!boundary)
        return;
    assert_int_equal(varve_tracker_seal(c.t, NULL), 0);
    for (uint64_t e = boundary; e <= m.live; e++) {
        want |= m.epochs[e].written;
        doubt |= m.epochs[e].doubt;
        m.epochs[e].sealed = e < m.live;
    }
    bits = core_live_bits(&c, m.live);
    assert_int_equal(varve_timeline_scan(c.w, varve_tracker_paths(c.t),
                                         varve_tracker_identity(c.t)->uuid, &c.g, &tl, NULL), 0);
    if (varve_timeline_union(c.w, varve_tracker_paths(c.t), varve_tracker_identity(c.t)->uuid, &c.g,
                             &tl, boundary, m.live, bits, &err) < 0)
        fail_msg("union since %u: %s", (unsigned)boundary, err.msg);
    varve_timeline_fini(&tl);
    compare_bits(mask_of(bits), want, doubt);
}

/* --- living ------------------------------------------------------------------------------------- */

static void write_something(void)
{
    uint64_t off = rnd(SIZE), len = rnd(4) ? rnd(2 * BLOCK) + 1 : 1;
    bool punch = rnd(4) == 0;
    int byte = punch ? 0 : (int)rnd(200) + 1;

    if (rnd(3) == 0)
        off -= off % BLOCK;
    if (len > SIZE - off)
        len = SIZE - off;
    memset(m.now + off, byte, len);
    for (uint64_t blk = off / BLOCK; blk <= (off + len - 1) / BLOCK; blk++)
        m.epochs[m.live].written |= 1u << blk;
    if (punch)
        core_punch(&c, off, len);
    else
        core_fill(&c, off, len, byte);
}

static void make_boundary(void)
{
    struct view *v = rnd(2) ? &m.views[rnd(VIEWS)] : NULL;
    uint64_t epoch, how = rnd(10);

    if (v && v->at.id)
        v = NULL;
    assert_int_equal(varve_tracker_prepare(c.t, v != NULL, &epoch, NULL), 0);
    assert_true(epoch > m.live && epoch < EPOCHS);
    if (how == 0)
        return; /* left prepared */
    assert_int_equal(varve_tracker_quiesce(c.t, NULL), 0);
    if (how == 1) {
        varve_tracker_abort(c.t);
        return;
    }
    if (v) {
        v->at = (struct varve_view){.id = ++m.next_view, .boundary = epoch};
        v->seen = (struct varve_image_run){0};
        v->narrowed = false;
        v->released = v->unneeded = 0;
        memcpy(v->content, m.now, SIZE);
    }
    assert_int_equal(varve_tracker_swap(c.t, epoch, v ? v->at.id : 0, NULL), 0);
    m.live = epoch;
    m.needed[rnd(BOUNDARIES)] = epoch;
    if (how == 2)
        return; /* not sealed yet */
    assert_int_equal(varve_tracker_seal(c.t, NULL), 0);
    for (uint64_t e = 0; e < epoch; e++)
        m.epochs[e].sealed = true;
}

static void end_view(void)
{
    struct view *v = some_view();

    if (!v)
        return;
    assert_int_equal(varve_tracker_end_view(c.t, v->at.id, NULL), 0);
    assert_int_equal(varve_view_read(c.source, &v->at, (char[1]){0}, 0, 1, NULL, NULL), -ESTALE);
    v->at.id = 0;
}

static void narrow_view(void)
{
    struct view *v = some_view();
    uint64_t map = rnd(2) ? rnd(1u << BLKS) : 0;
    char path[PATH_MAX + 8];
    int fd;

    if (!v)
        return;
    snprintf(path, sizeof(path), "%s/map", c.top);
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_int_equal(write(fd, &map, sizeof(map)), sizeof(map));
    assert_int_equal(varve_tracker_narrow(c.t, v->at.id, map ? fd : -1, NULL), 0);
    close(fd);
    v->narrowed = true;
    v->unneeded |= (uint32_t)map;
}

static void release(void)
{
    struct view *v = some_view();
    uint64_t off = rnd(SIZE), len;

    if (rnd(3))
        off -= off % BLOCK;
    len = rnd(3) ? rnd(SIZE - off) + 1 : SIZE - off;
    if (!v)
        return;
    if (!v->narrowed) {
        assert_int_equal(varve_tracker_release(c.t, v->at.id, off, len, NULL), -EINVAL);
        return;
    }
    assert_int_equal(varve_tracker_release(c.t, v->at.id, off, len, NULL), 0);
    for (uint64_t blk = 0; blk < BLKS; blk++) {
        if (blk * BLOCK >= off && varve_block_end(&c.g, blk) <= off + len) {
            v->released |= 1u << blk;
            v->unneeded |= 1u << blk;
        }
    }
}

/* No more is kept than what the views need: data in the scratch of an epoch means that one that is not
 * younger needs that block, and wherever one needs it no other's release has taken it (read_view). */
static void look_at_scratch(void)
{
    for (uint64_t e = m.live > 8 ? m.live - 8 : 1; e <= m.live; e++) {
        uint32_t needed = 0;
        char path[PATH_MAX];
        off_t at = 0;
        int fd;

        for (unsigned i = 0; i < VIEWS; i++) {
            if (m.views[i].at.id && m.views[i].at.boundary <= e)
                needed |= ~m.views[i].unneeded;
        }
        fd = open(varve_path_scratch(varve_tracker_paths(c.t), e, path), O_RDONLY | O_CLOEXEC);
        while (fd >= 0 && (at = lseek(fd, at, SEEK_DATA)) >= 0) {
            assert_true(needed & 1u << at / BLOCK);
            at = (at / BLOCK + 1) * BLOCK;
        }
        if (fd >= 0)
            close(fd);
    }
}

static void tidy_timeline(void)
{
    uint64_t needed[BOUNDARIES];
    size_t n = 0;

    m.needed[rnd(BOUNDARIES)] = 0;
    for (unsigned i = 0; i < BOUNDARIES; i++) {
        if (m.needed[i])
            needed[n++] = m.needed[i];
    }
    assert_int_equal(varve_timeline_tidy(c.w, varve_tracker_paths(c.t),
                                         varve_tracker_identity(c.t)->uuid, &c.g, needed, n, NULL),
                     0);
}

static void come_back(void)
{
    core_start(&c);
    m.live = varve_tracker_epoch(c.t);
    assert_true(m.live < EPOCHS);
    core_open_source(&c);
}

static void restart(void)
{
    uint64_t live = m.live, how = rnd(5);
    bool clean = how < 2 || how == 4;

    if (clean)
        core_stop(&c);
    else
        core_kill(&c);
    if (how < 3) { /* stop or kill, same boot: all as it was */
        if (how == 1 && rnd(2))
            core_kill(&c);
        come_back();
        assert_int_equal(m.live, live);
        assert_string_equal(c.notes, "");
        for (uint64_t e = 0; e < live; e++)
            m.epochs[e].sealed = true; /* by attach */
        return;
    }
    core_host_crash(&c);
    for (unsigned i = 0; i < VIEWS; i++)
        m.views[i].at.id = 0;
    for (uint64_t e = 0; e <= live; e++) {
        if (!clean && !m.epochs[e].sealed)
            m.epochs[e].doubt = true;
        m.epochs[e].sealed = true;
    }
    come_back();
    m.epochs[m.live].sealed = false;
    for (uint64_t e = live + 1; e <= m.live; e++)
        m.epochs[e].doubt = true;
    if (clean)
        assert_int_equal(m.live, live);
}

static void play(uint64_t seed, uint64_t rounds)
{
    static const struct {
        void (*step)(void);
        unsigned weight;
    } steps[] = {{write_something, 40}, {make_boundary, 14}, {read_view, 14},    {ask_holes, 8},
                 {ask_union, 8},        {end_view, 5},       {tidy_timeline, 5}, {restart, 5},
                 {narrow_view, 5},      {release, 10},       {ask_gone, 5}};
    unsigned weights = 0;

    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++)
        weights += steps[i].weight;
    memset(&m, 0, sizeof(m));
    m.random = seed;
    core_init(&c, SIZE, BLOCK);
    come_back();
    m.needed[0] = 1;
    for (uint64_t round = 0; round < rounds; round++) {
        uint64_t pick = rnd(weights);
        size_t i = 0;

        while (pick >= steps[i].weight)
            pick -= steps[i++].weight;
        steps[i].step();
        compare_live();
        read_view();
        look_at_scratch();
    }
    core_fini(&c);
}

static void play_aloud(uint64_t seed, uint64_t rounds)
{
    /* Said before it is played: then it is known of an abort too. */
    printf("# SEED=%llu\n", (unsigned long long)seed);
    fflush(stdout);
    play(seed, rounds);
}

static uint64_t env_number(const char *name, uint64_t otherwise)
{
    const char *s = getenv(name);

    return s && *s ? strtoull(s, NULL, 0) : otherwise;
}

static void a_disk_and_its_model_never_differ(void **state)
{
    uint64_t rounds = env_number("ROUNDS", ROUNDS), seed = env_number("SEED", 0);

    (void)state;
    if (seed) {
        play_aloud(seed, rounds);
        return;
    }
    for (size_t i = 0; i < sizeof(known_seeds) / sizeof(known_seeds[0]); i++)
        play_aloud(known_seeds[i], rounds);
    seed = (uint64_t)time(NULL) * SEEDS;
    for (unsigned i = 0; i < SEEDS; i++)
        play_aloud(seed + i, rounds);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_disk_and_its_model_never_differ),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
