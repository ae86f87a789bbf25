/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reads that leave the page cache as it was.
 */
#include "lib/quiet-io.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <cmocka.h>

#define TMPFS_ID 0x01021994
#define SIZE     (1024u * 1024u + 100u)

static size_t page;

/* In the build folder: it is on a disk, which the folder for temporary files need not be. */
static int make_file(char path[64])
{
    char buf[SIZE];
    int fd;

    snprintf(path, 64, "quiet-io.XXXXXX");
    fd = mkstemp(path);
    assert_true(fd >= 0);
    for (size_t i = 0; i < SIZE; i++)
        buf[i] = (char)(i * 7 + i / 4096);
    assert_int_equal(write(fd, buf, SIZE), SIZE);
    assert_int_equal(fsync(fd), 0);
    return fd;
}

static bool is_cached(int fd, size_t at)
{
    void *map = mmap(NULL, page, PROT_NONE, MAP_SHARED, fd, (off_t)(at * page));
    unsigned char there = 0;

    assert_true(map != MAP_FAILED);
    assert_int_equal(mincore(map, page, &there), 0);
    munmap(map, page);
    return there & 1;
}

/* Nothing of it is cached; false: nothing of it can be anything else. */
static bool forget(int fd)
{
    struct statfs fs;

    assert_int_equal(fstatfs(fd, &fs), 0);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    return fs.f_type != TMPFS_ID && !is_cached(fd, 0);
}

static void what_was_cached_stays_and_what_was_not_does_not(void **state)
{
    static const size_t cached[] = {3, 4, 9, 200};
    char path[64], buf[SIZE], byte;
    int other = make_file(path), fd = open(path, O_RDONLY);

    (void)state;
    unlink(path);
    if (!forget(other)) {
        print_message("pages of this file system are memory: nothing to tell\n");
        close(fd);
        close(other);
        skip();
    }
    posix_fadvise(other, 0, 0, POSIX_FADV_RANDOM);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(pread(other, &byte, 1, (off_t)(cached[i] * page)), 1);
    varve_quiet_prepare(fd);
    for (size_t off = 0; off < SIZE; off += 300000) /* pieces that are not aligned */
        assert_int_equal(
            varve_quiet_pread(fd, buf + off, SIZE - off < 300000 ? SIZE - off : 300000, off),
            SIZE - off < 300000 ? SIZE - off : 300000);
    for (size_t i = 0; i < SIZE; i++)
        assert_int_equal(buf[i], (char)(i * 7 + i / 4096));
    for (size_t at = 0; at < SIZE / page; at++) {
        bool was = at == 3 || at == 4 || at == 9 || at == 200;

        /* A page that two pieces share is cached by neither or by both. */
        if (is_cached(fd, at) != was)
            fail_msg("page %zu is %scached", at, was ? "not " : "");
    }
    close(fd);
    close(other);
}

static void a_dirty_page_of_others_is_not_touched(void **state)
{
    char path[64], buf[4096] = "";
    int other = make_file(path), fd = open(path, O_RDONLY);

    (void)state;
    unlink(path);
    forget(other);
    assert_int_equal(pwrite(other, "new", 3, 5000), 3);
    varve_quiet_prepare(fd);
    assert_int_equal(varve_quiet_pread(fd, buf, sizeof(buf), 4096), sizeof(buf));
    assert_memory_equal(buf + 5000 - 4096, "new", 3);
    assert_true(is_cached(fd, 5000 / page));
    close(fd);
    close(other);
}

static void a_read_ends_where_the_file_does(void **state)
{
    char path[64], buf[8192];
    int fd = make_file(path);

    (void)state;
    unlink(path);
    assert_int_equal(varve_quiet_pread(fd, buf, sizeof(buf), SIZE - 100), 100);
    assert_int_equal(varve_quiet_pread(fd, buf, sizeof(buf), SIZE), 0);
    assert_int_equal(varve_quiet_pread(fd, buf, 0, 0), 0);
    assert_int_equal(varve_quiet_pread(fd, buf, VARVE_QUIET_MAX + 1, 0), -EINVAL);
    assert_int_equal(varve_quiet_pread(fd, buf, 1, INT64_MAX), -EINVAL);
    close(fd);
    assert_int_equal(varve_quiet_pread(fd, buf, 1, 0), -EBADF);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_cached_stays_and_what_was_not_does_not),
        cmocka_unit_test(a_dirty_page_of_others_is_not_touched),
        cmocka_unit_test(a_read_ends_where_the_file_does),
    };

    page = (size_t)sysconf(_SC_PAGESIZE);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
