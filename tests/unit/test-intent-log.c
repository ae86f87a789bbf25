/* SPDX-License-Identifier: BSD-3-Clause
 *
 * When the intent log is believed, and how much of it: torn, too old, not written, not kept.
 */
#include "lib/intent.h"
#include "tests/lib/disk-fixture.h"
#include "tests/lib/held-sync.h"

#include <errno.h>
#include <fcntl.h>
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

/* --- the file -------------------------------------------------------------------------------------- */

#define BIG_REGIONS 5000u /* in two sectors */
#define WRITTEN_NS  UINT64_C(1700000000000000000)

static struct disk_fixture d;
static struct varve_intent_found found;
static struct varve_err why;

static int file_setup(void **state)
{
    (void)state;
    disk_fixture_init(&d, BIG_REGIONS * MIB, 65536);
    return 0;
}

static int file_teardown(void **state)
{
    (void)state;
    disk_fixture_fini(&d);
    return 0;
}

/* Regions 7, 3839, 3840 and 4999 are hot, of which the last two stand in the second sector. */
static void put_page(bool kept, unsigned torn, size_t len)
{
    static uint64_t bits[VARVE_INTENT_WORDS];
    uint8_t page[VARVE_INTENT_BYTES];
    char path[PATH_MAX];
    int fd;

    memset(bits, 0, sizeof(bits));
    bits[7 / 64] |= UINT64_C(1) << 7 % 64;
    bits[3839 / 64] |= UINT64_C(1) << 3839 % 64;
    bits[3840 / 64] |= UINT64_C(1) << 3840 % 64;
    bits[4999 / 64] |= UINT64_C(1) << 4999 % 64;
    varve_intent_encode(page, d.uuid, &d.geometry, bits, kept, WRITTEN_NS);
    if (torn < VARVE_INTENT_SECTORS) /* half of it is of another time */
        memset(page + torn * VARVE_INTENT_SECTOR + 256, 0x55, 256);
    fd = d.w->open(d.w, varve_path_intent(&d.paths, path), O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(d.w->pwrite(d.w, fd, page, len, 0), 0);
    d.w->close(d.w, fd);
}

static bool hot(uint64_t region)
{
    return found.bits[region / 64] >> region % 64 & 1;
}

static void look(int64_t image_mtime_ns)
{
    assert_int_equal(varve_intent_read(d.w, &d.paths, d.uuid, &d.geometry, image_mtime_ns, &found, &why),
                     0);
}

static void a_torn_sector_makes_its_own_regions_hot_and_no_others(void **state)
{
    (void)state;
    put_page(true, VARVE_INTENT_SECTORS, VARVE_INTENT_BYTES);
    look(INT64_MIN);
    assert_true(found.trusted);
    assert_int_equal(found.regions, 4);
    assert_true(hot(7) && hot(3839) && hot(3840) && hot(4999));

    put_page(true, 1, VARVE_INTENT_BYTES);
    look(INT64_MIN);
    assert_true(found.trusted);
    assert_int_equal(found.regions, VARVE_INTENT_SECTOR_REGIONS + 2);
    for (uint64_t i = 0; i < BIG_REGIONS; i++)
        assert_int_equal(hot(i), i < VARVE_INTENT_SECTOR_REGIONS || i == 3840 || i == 4999);

    put_page(true, 2, VARVE_INTENT_BYTES);
    look(INT64_MIN);
    assert_true(found.trusted);
    assert_int_equal(found.regions, BIG_REGIONS - VARVE_INTENT_SECTOR_REGIONS + 2);
    for (uint64_t i = 0; i < BIG_REGIONS; i++)
        assert_int_equal(hot(i), i >= VARVE_INTENT_SECTOR_REGIONS || i == 7 || i == 3839);
}

static void a_torn_head_a_short_page_and_one_that_was_not_kept_are_not_believed(void **state)
{
    (void)state;
    put_page(true, 0, VARVE_INTENT_BYTES);
    look(INT64_MIN);
    assert_false(found.trusted);
    put_page(true, VARVE_INTENT_SECTORS, VARVE_INTENT_BYTES - 1);
    look(INT64_MIN);
    assert_false(found.trusted);
    put_page(false, VARVE_INTENT_SECTORS, VARVE_INTENT_BYTES);
    look(INT64_MIN);
    assert_false(found.trusted);
    assert_int_equal(varve_intent_drop(d.w, &d.paths, &why), 0);
    look(INT64_MIN);
    assert_false(found.trusted);
}

static void one_that_is_older_than_the_image_is_not_believed(void **state)
{
    (void)state;
    put_page(true, VARVE_INTENT_SECTORS, VARVE_INTENT_BYTES);
    look((int64_t)(WRITTEN_NS + VARVE_INTENT_DOUBT_NS));
    assert_true(found.trusted);
    look((int64_t)(WRITTEN_NS + VARVE_INTENT_DOUBT_NS + 1));
    assert_false(found.trusted);
    d.uuid[0] ^= 1;
    look(INT64_MIN);
    assert_false(found.trusted);
}

/* --- a server that cannot write it, or does not keep it ------------------------------------------------- */

static struct core c;

static int setup(void **state)
{
    (void)state;
    core_init(&c, REGIONS * MIB, BLOCK);
    held_init(&c);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    core_fini(&c);
    return 0;
}

static void write_region(uint64_t region)
{
    core_fill(&c, region * MIB, BLOCK, 'a');
}

/* After a crash of the host: what counts as written in the live epoch. */
static uint64_t dirty_after_crash(uint64_t *outside, uint64_t region)
{
    struct varve_bitmap *m;
    uint64_t n;

    core_host_crash(&c);
    core_start(&c);
    m = core_live_bits(&c, varve_tracker_epoch(c.t));
    n = varve_bitmap_count(m);
    *outside = n;
    for (uint64_t i = 0; i < REGION_BLKS; i++)
        *outside -= varve_bitmap_test(m, region * REGION_BLKS + i);
    free(m);
    return n;
}

/* Its sync fails, or that of the page that says so, too; the guest notices nothing of it. */
static void what_a_log_cannot_be_told_makes_it_durably_unbelievable(void **state)
{
    uint64_t outside;

    (void)state;
    for (unsigned failing = 1; failing <= 2; failing++) {
        core_start(&c);
        write_region(0);
        held_fail(HELD_LOG, failing);
        write_region(4);
        held_fail(HELD_LOG, 0);
        assert_int_equal(dirty_after_crash(&outside, 0), REGIONS * REGION_BLKS);
        assert_non_null(strstr(c.notes, "all of the disk counts as written"));
        teardown(NULL);
        setup(NULL);
    }
}

static void a_log_that_can_be_written_again_is_believed_again(void **state)
{
    uint64_t outside;

    (void)state;
    for (unsigned failing = 1; failing <= 2; failing++) {
        core_start(&c);
        held_fail(HELD_LOG, failing);
        write_region(4);
        held_fail(HELD_LOG, 1);
        assert_int_equal(varve_tracker_flush(c.t, false, &why), -EIO);
        assert_int_equal(varve_tracker_flush(c.t, false, &why), 0);
        assert_int_equal(dirty_after_crash(&outside, 4), REGION_BLKS);
        assert_int_equal(outside, 0);
        teardown(NULL);
        setup(NULL);
    }
}

/* Servers one after the other: H keeps a log, P does not; each writes one block of a region of its
 * own, then stops (s) or is killed (k), the last one with the host. */
static void a_log_is_believed_only_if_it_was_kept_since_all_was_known(void **state)
{
    static const struct {
        const char *servers;
        bool exact;
    } cases[] = {
        {"H", true},      {"P", false},    {"HsP", false},  {"HkP", false},   {"HsH", true},
        {"HkH", true},    {"PsH", true},   {"PkH", false},  {"HsPsH", true},  {"HsPkH", false},
        {"HkPkH", false}, {"HkPsH", true}, {"PkHkH", false}, {"PkHsH", true},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint64_t region = 0, outside, dirty;

        for (const char *s = cases[i].servers; *s; s++) {
            c.cfg.durable_process = *s == 'P';
            core_start(&c);
            write_region(region);
            if (s[1] == 's')
                core_stop(&c);
            else if (s[1] == 'k')
                core_kill(&c);
            if (s[1]) {
                s++;
                region += 3; /* not behind a hot one, which would heat the next one, too */
            }
        }
        c.cfg.durable_process = false;
        dirty = dirty_after_crash(&outside, region);
        if (!cases[i].exact && dirty != REGIONS * REGION_BLKS)
            fail_msg("%s: an old log was believed", cases[i].servers);
        if (cases[i].exact && (dirty > (region / 3 + 1) * REGION_BLKS || outside < region / 3))
            fail_msg("%s: %u blocks are dirty, %u of them outside of region %u", cases[i].servers,
                     (unsigned)dirty, (unsigned)outside, (unsigned)region);
        teardown(NULL);
        setup(NULL);
    }
}

#define FILE_TEST(name) cmocka_unit_test_setup_teardown(name, file_setup, file_teardown)
#define TEST(name)      cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        FILE_TEST(a_torn_sector_makes_its_own_regions_hot_and_no_others),
        FILE_TEST(a_torn_head_a_short_page_and_one_that_was_not_kept_are_not_believed),
        FILE_TEST(one_that_is_older_than_the_image_is_not_believed),
        TEST(what_a_log_cannot_be_told_makes_it_durably_unbelievable),
        TEST(a_log_that_can_be_written_again_is_believed_again),
        TEST(a_log_is_believed_only_if_it_was_kept_since_all_was_known),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
