/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Maps of epochs that are over: whoever still has one open reads in it what he did, and holds
 * little memory by it.
 */
#include "tests/lib/core-fixture.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define BLOCK 4096u
#define SIZE  (UINT64_C(16) << 30)
#define BYTES ((size_t)(SIZE / BLOCK / 8))

static struct core c;

static int setup(void **state)
{
    (void)state;
    core_init(&c, SIZE, BLOCK);
    core_start(&c);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    core_fini(&c);
    return 0;
}

/* As the daemon has it. */
static int open_live(uint64_t epoch)
{
    char path[PATH_MAX];
    int fd = open(varve_path_live(varve_tracker_paths(c.t), epoch, path), O_RDONLY | O_CLOEXEC);

    assert_true(fd >= 0);
    return fd;
}

static uint8_t *read_map(int fd)
{
    uint8_t *map = malloc(BYTES);

    assert_non_null(map);
    assert_int_equal(pread(fd, map, BYTES, 0), BYTES);
    return map;
}

static uint64_t memory_of(int fd)
{
    struct stat st;

    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_size, BYTES);
    return (uint64_t)st.st_blocks * 512;
}

/* Writes, ends the epoch, and returns what its map takes then. */
static uint64_t memory_after(const uint64_t *blks, size_t n)
{
    int fd = open_live(1);
    uint8_t *before, *after;
    uint64_t memory;

    assert_true(memory_of(fd) >= BYTES); /* no write of the guest may find none */
    for (size_t i = 0; i < n; i++)
        core_fill(&c, blks[i] * BLOCK, BLOCK, 'x');
    before = read_map(fd);
    core_boundary(&c, 0);
    after = read_map(fd);
    assert_memory_equal(before, after, BYTES);
    memory = memory_of(fd);
    free(before);
    free(after);
    close(fd);
    return memory;
}

static void a_map_that_is_over_holds_what_it_says_and_no_more(void **state)
{
    const uint64_t blks[] = {0, SIZE / BLOCK / 2 + 5, SIZE / BLOCK - 1};

    (void)state;
    assert_in_range(memory_after(blks, 3), 3 * 4096, 6 * 4096);
}

static void an_empty_map_that_is_over_holds_nothing(void **state)
{
    (void)state;
    assert_int_equal(memory_after(NULL, 0), 0);
}

static void a_map_that_is_in_use_keeps_its_memory(void **state)
{
    int fd;

    (void)state;
    core_boundary(&c, 7); /* its view needs what comes after */
    fd = open_live(2);
    core_boundary(&c, 0);
    assert_true(memory_of(fd) >= BYTES);
    close(fd);
    core_stop(&c); /* and the next server goes on with them */
    core_start(&c);
    fd = open_live(3);
    assert_true(memory_of(fd) >= BYTES);
    close(fd);
}

#define MEMORY_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        MEMORY_TEST(a_map_that_is_over_holds_what_it_says_and_no_more),
        MEMORY_TEST(an_empty_map_that_is_over_holds_nothing),
        MEMORY_TEST(a_map_that_is_in_use_keeps_its_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
