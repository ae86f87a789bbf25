/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The timeline against a plain list of what was written in each epoch.  However the housekeeper
 * dies, every question between needed boundaries has the same answer before and after.  It is long
 * because the list, the crash loops and the random history share their checks.
 */
#include "lib/timeline.h"

#include "tests/lib/disk-fixture.h"

#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define SEEDS      4u
#define EPOCHS_MAX 400u

static struct disk_fixture d;

/* What was really written: epochs that were entered, the last one is live. */
static struct {
    struct {
        uint64_t number;
        struct varve_bitmap *bits;
    } epochs[EPOCHS_MAX];
    size_t nepochs;
} truth;

static void truth_forget(void)
{
    while (truth.nepochs > 0)
        free(truth.epochs[--truth.nepochs].bits);
}

static int setup(void **state)
{
    (void)state;
    disk_fixture_init(&d, 1000 * 4096, 4096);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    truth_forget();
    disk_fixture_fini(&d);
    return 0;
}

static int fresh(void **state)
{
    (void)state;
    truth_forget();
    disk_fixture_reset(&d);
    return 0;
}

/* --- making a history ------------------------------------------------------------------------- */

static uint64_t live(void)
{
    return truth.epochs[truth.nepochs - 1].number;
}

static int prepare(uint64_t number)
{
    uint64_t prev = truth.nepochs ? live() : 0;

    return varve_epoch_file_create(d.w, &d.paths, d.uuid, &d.geometry, number, prev, NULL);
}

/* Enters epoch `number`, in which some blocks are written. */
static void enter(uint64_t number)
{
    struct varve_bitmap *bits = varve_bitmap_new(d.geometry.nblks);

    assert_int_equal(prepare(number), 0);
    assert_true(truth.nepochs < EPOCHS_MAX);
    varve_bitmap_set(bits, number % 1000, number % 1000 + 1);
    varve_bitmap_set(bits, number * 7919 % 1000, number * 7919 % 1000 + 1 + number % 5);
    truth.epochs[truth.nepochs].number = number;
    truth.epochs[truth.nepochs++].bits = bits;
}

static void seal(size_t i)
{
    assert_int_equal(varve_epoch_file_finish(d.w, &d.paths, &d.geometry, truth.epochs[i].number,
                                             truth.epochs[i].bits->words, VARVE_EPOCH_FILE_SEALED,
                                             NULL),
                     0);
}

/* Epochs 1 to n-1 sealed, n live. */
static void make_epochs(uint64_t n)
{
    truth_forget();
    disk_fixture_reset(&d);
    for (uint64_t number = 1; number <= n; number++) {
        enter(number);
        if (number > 1)
            seal(truth.nepochs - 2);
    }
}

/* --- asking ----------------------------------------------------------------------------------- */

static struct varve_timeline scanned(void)
{
    struct varve_timeline tl;

    assert_int_equal(varve_timeline_scan(d.w, &d.paths, d.uuid, &d.geometry, &tl, NULL), 0);
    return tl;
}

static int ask(uint64_t first, uint64_t end, struct varve_bitmap *into, struct varve_err *err)
{
    struct varve_timeline tl = scanned();
    int rc = varve_timeline_union(d.w, &d.paths, d.uuid, &d.geometry, &tl, first, end, into, err);

    varve_timeline_fini(&tl);
    return rc;
}

static void assert_answer(uint64_t first, uint64_t end)
{
    struct varve_bitmap *want = varve_bitmap_new(d.geometry.nblks);
    struct varve_bitmap *got = varve_bitmap_new(d.geometry.nblks);

    for (size_t i = 0; i < truth.nepochs; i++) {
        if (truth.epochs[i].number >= first && truth.epochs[i].number < end)
            varve_bitmap_or(want, truth.epochs[i].bits);
    }
    assert_int_equal(ask(first, end, got, NULL), 0);
    assert_memory_equal(got->words, want->words, varve_bitmap_nwords(want) * 8);
    free(want);
    free(got);
}

/* Every question between two of these boundaries, or one of them and now. */
static void assert_answers(const uint64_t *needed, size_t nneeded)
{
    for (size_t i = 0; i < nneeded; i++) {
        for (size_t j = 0; j < nneeded; j++) {
            if (needed[i] < needed[j])
                assert_answer(needed[i], needed[j]);
        }
        assert_answer(needed[i], live());
    }
}

static void assert_no_answer(uint64_t first, uint64_t end, const char *names)
{
    struct varve_bitmap *got = varve_bitmap_new(d.geometry.nblks);
    struct varve_err err = VARVE_ERR_INIT;

    assert_int_equal(ask(first, end, got, &err), -EUCLEAN);
    assert_non_null(strstr(err.msg, names));
    free(got);
}

static int tidy(const uint64_t *needed, size_t nneeded, struct varve_err *err)
{
    return varve_timeline_tidy(d.w, &d.paths, d.uuid, &d.geometry, needed, nneeded, err);
}

static char *path_of(uint64_t first, uint64_t last)
{
    static char path[PATH_MAX];

    return varve_path_epoch(&d.paths, first, last, path);
}

static void remove_file(uint64_t first, uint64_t last)
{
    assert_int_equal(unlink(path_of(first, last)), 0);
}

/* Copies the file of epoch n to run/ or back, to bring back what a tidy removed. */
static void stash(uint64_t n, bool back)
{
    char cmd[2 * PATH_MAX];
    const char *path = path_of(n, n);

    if (back)
        snprintf(cmd, sizeof(cmd), "cp '%s/%" PRIu64 "' '%s'", d.paths.runtime, n, path);
    else
        snprintf(cmd, sizeof(cmd), "cp '%s' '%s/%" PRIu64 "'", path, d.paths.runtime, n);
    assert_int_equal(system(cmd), 0);
}

static int name_add(void *arg, const char *name)
{
    char *names = arg;

    assert_true(strlen(names) + strlen(name) + 2 < 4096);
    strcat(strcat(names, name), " ");
    return 0;
}

/* The directory holds just these files. */
static void assert_files(size_t n, const char *const *want)
{
    char names[4096] = "";
    size_t spaces = 0;

    assert_int_equal(d.w->list(d.w, d.paths.state, name_add, names), 0);
    for (const char *s = names; *s; s++)
        spaces += *s == ' ';
    for (size_t i = 0; i < n; i++) {
        char word[64];

        snprintf(word, sizeof(word), "%s ", want[i]);
        assert_non_null(strstr(names, word));
    }
    assert_int_equal(spaces, n);
}

#define FILES(...)                                                                                 \
    assert_files(sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *),                           \
                 (const char *[]){__VA_ARGS__})

/* --- questions -------------------------------------------------------------------------------- */

static void union_is_what_was_written_between_the_boundaries(void **state)
{
    static const uint64_t all[] = {1, 2, 3, 4, 5, 6};
    struct varve_bitmap *none = varve_bitmap_new(d.geometry.nblks);

    (void)state;
    make_epochs(6);
    assert_answers(all, 6);
    assert_int_equal(ask(4, 4, none, NULL), 0);
    assert_int_equal(ask(99, 99, none, NULL), 0);
    assert_int_equal(varve_bitmap_count(none), 0);
    assert_int_equal(ask(5, 4, none, NULL), -EINVAL);
    free(none);
}

static void empty_directory_is_an_empty_timeline(void **state)
{
    struct varve_timeline tl = scanned();

    (void)state;
    assert_int_equal(tl.nfiles, 0);
    assert_int_equal(tl.highest, 0);
    varve_timeline_fini(&tl);
    assert_int_equal(tidy(NULL, 0, NULL), 0);
}

static void missing_file_is_missed_and_named(void **state)
{
    (void)state;
    for (uint64_t gone = 1; gone <= 5; gone++) {
        char name[32];

        make_epochs(6);
        remove_file(gone, gone);
        snprintf(name, sizeof(name), "epoch %" PRIu64 " ", gone);
        for (uint64_t first = 1; first <= 6; first++) {
            for (uint64_t end = first + 1; end <= 6; end++) {
                if (first <= gone && gone <= end)
                    assert_no_answer(first, end, name);
                else
                    assert_answer(first, end);
            }
        }
    }
    /* Without the live one nothing tells which was before it. */
    make_epochs(6);
    remove_file(6, 6);
    assert_no_answer(4, 6, "epoch 6 ");
    assert_answer(2, 5);
}

static void unsealed_and_damaged_files_are_named(void **state)
{
    (void)state;
    make_epochs(3);
    enter(4); /* 3 was not sealed */
    assert_no_answer(2, 4, "epoch 3 ");
    assert_answer(1, 3);

    make_epochs(5);
    disk_fixture_flip(&d, path_of(3, 3), 8192 + 10, 4);
    assert_no_answer(2, 5, "epoch-3-3.map");
    assert_answer(1, 3);
    assert_answer(4, 5);

    make_epochs(5);
    disk_fixture_flip(&d, path_of(3, 3), 0, 4); /* left out by scan */
    assert_no_answer(2, 5, "epoch 3 ");
    assert_answer(4, 5);
}

/* 4 and 5 were prepared and dropped, their files stayed; 6 was entered. */
static void numbers_that_were_never_entered_do_no_harm(void **state)
{
    static const uint64_t needed[] = {1, 2, 3, 6, 8};

    (void)state;
    make_epochs(3);
    assert_int_equal(prepare(4), 0);
    assert_int_equal(prepare(5), 0);
    enter(6);
    seal(truth.nepochs - 2);
    enter(8);
    seal(truth.nepochs - 2);
    assert_answers(needed, 5);
    assert_no_answer(4, 8, "epoch 4 ");
    assert_int_equal(prepare(9), 0);
    assert_answers(needed, 5);
    /* Merging across the skipped numbers leaves them alone. */
    assert_int_equal(tidy((uint64_t[]){2}, 1, NULL), 0);
    FILES("epoch-2-6.map", "epoch-4-4.map", "epoch-5-5.map", "epoch-8-8.map", "epoch-9-9.map");
    assert_answer(2, 8);
}

static void highest_number_counts_files_that_cannot_be_used(void **state)
{
    uint8_t other[16] = {1};
    struct varve_timeline tl;

    (void)state;
    make_epochs(3);
    assert_int_equal(varve_epoch_file_create(d.w, &d.paths, other, &d.geometry, 12, 3, NULL), 0);
    tl = scanned();
    assert_int_equal(tl.nfiles, 3);
    assert_int_equal(tl.files[2].first, 3);
    assert_int_equal(tl.files[2].state, VARVE_EPOCH_FILE_OPEN);
    assert_int_equal(tl.highest, 12);
    varve_timeline_fini(&tl);
}

static void file_of_a_newer_format_stops_the_scan(void **state)
{
    struct varve_timeline tl;
    struct varve_err err;

    (void)state;
    make_epochs(3);
    disk_fixture_flip(&d, path_of(2, 2), 8, 2);
    assert_int_equal(varve_timeline_scan(d.w, &d.paths, d.uuid, &d.geometry, &tl, &err), -ENOTSUP);
    assert_non_null(strstr(err.msg, "epoch-2-2.map"));
    assert_int_equal(tidy(NULL, 0, &err), -ENOTSUP);
    FILES("epoch-1-1.map", "epoch-2-2.map", "epoch-3-3.map");
}

/* What is our own lack is no damage: leaving files out for it would look like a hole. */
static void lack_of_descriptors_is_no_damage(void **state)
{
    bool fired = true;

    (void)state;
    make_epochs(4);
    for (uint64_t n = 1; fired; n++) {
        struct varve_timeline tl;
        struct varve_err err;
        int rc;

        fault_fail_at(&d.fault, FAULT_OPEN, n, EMFILE);
        rc = varve_timeline_scan(d.w, &d.paths, d.uuid, &d.geometry, &tl, &err);
        fired = fault_fired(&d.fault);
        assert_int_equal(rc, fired ? -EMFILE : 0);
        if (rc == 0)
            varve_timeline_fini(&tl);
    }
    fault_disarm(&d.fault);
}

static void other_tidy(void *arg)
{
    (void)arg;
    assert_int_equal(varve_timeline_tidy(&d.power.world, &d.paths, d.uuid, &d.geometry,
                                         (uint64_t[]){2}, 1, NULL),
                     0);
}

/* A reader has listed the directory; before its n-th look at a file another process merges. */
static void scan_while_another_process_merges_sees_a_whole_timeline(void **state)
{
    bool fired = true;

    (void)state;
    for (uint64_t n = 1; fired; n++) {
        struct varve_timeline tl;

        make_epochs(6);
        fault_gate_at(&d.fault, FAULT_OPEN, n, other_tidy, NULL);
        tl = scanned();
        fired = fault_fired(&d.fault);
        fault_disarm(&d.fault);
        /* Either all the parts or the merged one; never a hole. */
        assert_int_equal(tl.files[tl.nfiles - 1].first, 6);
        for (size_t i = 1; i < tl.nfiles; i++)
            assert_int_equal(tl.files[i].prev, tl.files[i - 1].last);
        assert_true(tl.files[0].first <= 2);
        varve_timeline_fini(&tl);
    }
}

/* Epochs 1 to 3 of 1000 blocks, 4 and 5 of `blks` and a byte, 6 and the live 7 of 1000 again. */
static void make_resized(uint64_t blks)
{
    struct varve_geometry was = d.geometry;

    truth_forget();
    disk_fixture_reset(&d);
    for (uint64_t number = 1; number <= 7; number++) {
        uint64_t size = number == 4 || number == 5 ? blks * 4096 + 1 : was.size;

        assert_int_equal(varve_geometry_init(&d.geometry, size, 4096, NULL), 0);
        assert_int_equal(prepare(number), 0);
        truth.epochs[truth.nepochs].number = number;
        truth.epochs[truth.nepochs].bits = varve_bitmap_new(d.geometry.nblks);
        varve_bitmap_set(truth.epochs[truth.nepochs++].bits, number * 10, number * 10 + 1);
        if (number < 7)
            seal(truth.nepochs - 1);
    }
    d.geometry = was;
}

/* The live one has the size of the last sealed one. */
static void assert_resized(uint64_t first, uint64_t end, uint64_t from)
{
    struct varve_bitmap *want = varve_bitmap_new(d.geometry.nblks);
    struct varve_bitmap *got = varve_bitmap_new(d.geometry.nblks);
    struct varve_timeline tl = scanned();
    uint64_t added = 0;

    for (uint64_t e = first; e < end; e++)
        varve_bitmap_set(want, e * 10, e * 10 + 1);
    varve_bitmap_set(want, from, want->nbits);
    assert_int_equal(varve_timeline_union_counting(d.w, &d.paths, d.uuid, &d.geometry, &tl, first,
                                                   end, got, &added, NULL),
                     0);
    assert_memory_equal(got->words, want->words, varve_bitmap_nwords(want) * 8);
    assert_int_equal(added, varve_bitmap_count(want));
    varve_timeline_fini(&tl);
    free(want);
    free(got);
}

static void a_change_of_size_dirties_all_behind_the_smaller_for_who_knew_it_before(void **state)
{
    static const uint64_t blks[] = {500, 2000};

    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        uint64_t from = blks[i] < 1000 ? blks[i] : 1000;

        make_resized(blks[i]);
        for (unsigned merged = 0; merged < 2; merged++) {
            assert_resized(1, 7, from);
            assert_resized(4, 7, from); /* knew it before it came back */
            assert_resized(6, 7, 1000); /* and after */
            assert_int_equal(tidy((uint64_t[]){1, 4, 6}, 3, NULL), 0);
            FILES("epoch-1-3.map", "epoch-4-5.map", "epoch-6-6.map", "epoch-7-7.map");
        }
        assert_int_equal(tidy((uint64_t[]){1}, 1, NULL), 0); /* sizes separate, too */
        FILES("epoch-1-3.map", "epoch-4-5.map", "epoch-6-6.map", "epoch-7-7.map");
        assert_resized(1, 7, from);
    }
}

/* --- housekeeping ----------------------------------------------------------------------------- */

static void tidy_keeps_what_needed_boundaries_separate(void **state)
{
    static const uint64_t needed[] = {7, 3, 4};

    (void)state;
    make_epochs(9);
    assert_int_equal(prepare(10), 0);
    assert_int_equal(tidy(needed, 3, NULL), 0);
    FILES("epoch-3-3.map", "epoch-4-6.map", "epoch-7-8.map", "epoch-9-9.map", "epoch-10-10.map");
    assert_answers(needed, 3);
    assert_no_answer(5, 9, "epoch 5");
    /* Again: nothing to do, nothing written. */
    fault_disarm(&d.fault);
    assert_int_equal(tidy(needed, 3, NULL), 0);
    assert_int_equal(fault_calls(&d.fault, FAULT_PWRITE), 0);
    assert_int_equal(fault_calls(&d.fault, FAULT_UNLINK), 0);
    /* Fewer boundaries. */
    assert_int_equal(tidy(&needed[2], 1, NULL), 0);
    FILES("epoch-4-8.map", "epoch-9-9.map", "epoch-10-10.map");
    assert_answer(4, 9);
    assert_int_equal(tidy((uint64_t[]){9}, 1, NULL), 0);
    FILES("epoch-9-9.map", "epoch-10-10.map");
}

/* A boundary that was merged away is asked for, by a catalogue from an older copy, say. */
static void merged_file_that_spans_the_oldest_boundary_is_kept(void **state)
{
    (void)state;
    make_epochs(9);
    assert_int_equal(tidy((uint64_t[]){2}, 1, NULL), 0);
    assert_int_equal(tidy((uint64_t[]){5}, 1, NULL), 0);
    FILES("epoch-2-8.map", "epoch-9-9.map");
    assert_no_answer(5, 9, "spans it");
}

static void nothing_needed_frees_all_that_is_sealed(void **state)
{
    (void)state;
    make_epochs(4);
    assert_int_equal(tidy(NULL, 0, NULL), 0);
    FILES("epoch-4-4.map");
    seal(3);
    enter(5);
    assert_answer(4, 5);
}

static void open_and_clean_files_are_never_touched(void **state)
{
    (void)state;
    make_epochs(3);
    enter(4); /* 3 stays open: its seal was lost */
    enter(5);
    seal(truth.nepochs - 2);
    assert_int_equal(varve_epoch_file_finish(d.w, &d.paths, &d.geometry, 5,
                                             truth.epochs[4].bits->words, VARVE_EPOCH_FILE_CLEAN,
                                             NULL),
                     0);
    assert_int_equal(tidy((uint64_t[]){1}, 1, NULL), 0);
    FILES("epoch-1-2.map", "epoch-3-3.map", "epoch-4-4.map", "epoch-5-5.map");
    assert_no_answer(1, 5, "epoch 3 ");
    assert_int_equal(tidy(NULL, 0, NULL), 0);
    FILES("epoch-3-3.map", "epoch-5-5.map");
}

static void damaged_file_is_kept_named_and_stops_nothing_else(void **state)
{
    struct varve_err err;

    (void)state;
    make_epochs(9);
    disk_fixture_flip(&d, path_of(5, 5), 8192, 0);
    assert_int_equal(tidy((uint64_t[]){2}, 1, &err), -EUCLEAN);
    assert_non_null(strstr(err.msg, "epoch-5-5.map"));
    FILES("epoch-2-4.map", "epoch-5-5.map", "epoch-6-8.map", "epoch-9-9.map");
    assert_no_answer(2, 9, "epoch-5-5.map");
    assert_answer(6, 9);
}

static void parts_of_a_merged_file_do_not_count_and_go(void **state)
{
    struct varve_timeline tl;

    (void)state;
    make_epochs(6);
    for (uint64_t n = 2; n <= 4; n++)
        stash(n, false);
    assert_int_equal(tidy((uint64_t[]){2, 5}, 2, NULL), 0);
    FILES("epoch-2-4.map", "epoch-5-5.map", "epoch-6-6.map");
    stash(2, true);
    stash(4, true);
    tl = scanned();
    assert_int_equal(tl.nfiles, 3);
    assert_int_equal(tl.files[0].last, 4);
    varve_timeline_fini(&tl);
    assert_answer(2, 6);
    assert_int_equal(tidy((uint64_t[]){2, 5}, 2, NULL), 0);
    FILES("epoch-2-4.map", "epoch-5-5.map", "epoch-6-6.map");
}

static void parts_of_a_damaged_merged_file_are_kept(void **state)
{
    struct varve_err err;

    (void)state;
    make_epochs(6);
    stash(2, false);
    assert_int_equal(tidy((uint64_t[]){2, 5}, 2, NULL), 0);
    stash(2, true);
    disk_fixture_flip(&d, path_of(2, 4), 8192, 0);
    assert_int_equal(tidy((uint64_t[]){2, 5}, 2, &err), -EUCLEAN);
    assert_non_null(strstr(err.msg, "epoch-2-4.map"));
    FILES("epoch-2-2.map", "epoch-2-4.map", "epoch-5-5.map", "epoch-6-6.map");
}

static void leftovers_of_dead_attempts_go_but_not_those_under_way(void **state)
{
    static const char *const names[] = {"epoch-1-3.map.tmp", "epoch-2-2.map.tmp",
                                        "epoch-5-5.map.tmp", "epoch-x.map.tmp"};

    (void)state;
    make_epochs(4);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char path[PATH_MAX + 64];
        FILE *f;

        snprintf(path, sizeof(path), "%s/%s", d.paths.state, names[i]);
        f = fopen(path, "w");
        assert_non_null(f);
        fclose(f);
    }
    assert_int_equal(tidy((uint64_t[]){3}, 1, NULL), 0);
    /* The plugin may be making 5 right now, and what is not ours is not ours. */
    FILES("epoch-3-3.map", "epoch-4-4.map", "epoch-5-5.map.tmp", "epoch-x.map.tmp");
}

/* What begins at a needed boundary can be told from another of its number for ever. */
static void a_merged_file_has_its_first_parts_id(void **state)
{
    static const uint64_t needed[] = {3, 8};
    uint8_t id[VARVE_EPOCH_ID_LEN];
    struct varve_timeline tl;

    (void)state;
    make_epochs(9);
    tl = scanned();
    memcpy(id, varve_timeline_at(&tl, 3)->id, sizeof(id));
    assert_memory_not_equal(id, varve_timeline_at(&tl, 4)->id, sizeof(id));
    varve_timeline_fini(&tl);
    assert_int_equal(tidy(needed, 2, NULL), 0);
    tl = scanned();
    assert_int_equal(varve_timeline_at(&tl, 3)->last, 7);
    assert_memory_equal(id, varve_timeline_at(&tl, 3)->id, sizeof(id));
    assert_null(varve_timeline_at(&tl, 4));
    varve_timeline_fini(&tl);
}

/* One merge writes the same whether a dozen or hundreds of checkpoints exist. */
static void cost_of_a_merge_does_not_grow_with_checkpoints(void **state)
{
    uint64_t writes[2], syncs[2];

    (void)state;
    for (int big = 0; big < 2; big++) {
        uint64_t n = big ? 300 : 12, needed[EPOCHS_MAX];
        size_t nneeded = 0;

        make_epochs(n);
        for (uint64_t e = 1; e <= n; e++) {
            if (e != 7)
                needed[nneeded++] = e;
        }
        fault_disarm(&d.fault);
        assert_int_equal(tidy(needed, nneeded, NULL), 0);
        writes[big] = fault_calls(&d.fault, FAULT_PWRITE);
        syncs[big] = fault_calls(&d.fault, FAULT_SYNC) + fault_calls(&d.fault, FAULT_SYNC_DIR);
        assert_answer(6, 8);
    }
    assert_int_equal(writes[0], writes[1]);
    assert_int_equal(syncs[0], syncs[1]);
}

static void crash_at_any_call_changes_no_answer(void **state)
{
    static const uint64_t needed[] = {3, 4, 7};
    bool fired = true;

    (void)state;
    for (uint64_t n = 1; fired; n++) {
        for (uint64_t seed = 0; seed < SEEDS; seed++) {
            make_epochs(9);
            fault_crash_at(&d.fault, FAULT_ANY, n);
            tidy(needed, 3, NULL);
            fired = fault_fired(&d.fault);
            disk_fixture_reboot(&d, seed);
            assert_answers(needed, 3);
            /* And once more, while tidying what the first crash left. */
            fault_crash_at(&d.fault, FAULT_ANY, 40 + n % 30);
            tidy(needed, 3, NULL);
            disk_fixture_reboot(&d, seed + 1);
            assert_answers(needed, 3);
            assert_int_equal(tidy(needed, 3, NULL), 0);
            FILES("epoch-3-3.map", "epoch-4-6.map", "epoch-7-8.map", "epoch-9-9.map");
            assert_answers(needed, 3);
        }
    }
}

/* Killed when the merged file had its name in memory only, then tidied by another process, then the
 * power fails: the parts may go only once the name is durable. */
static void parts_outlive_a_merged_name_that_is_not_durable(void **state)
{
    static const uint64_t needed[] = {2, 5};

    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        make_epochs(6);
        fault_crash_at(&d.fault, FAULT_SYNC_DIR, 1);
        assert_int_equal(tidy(needed, 2, NULL), -EIO);
        fault_disarm(&d.fault);
        assert_int_equal(access(path_of(2, 4), F_OK), 0);
        assert_int_equal(tidy(needed, 2, NULL), 0);
        power_fail(&d.power, seed);
        assert_answers(needed, 2);
    }
}

static void any_failing_call_is_told_or_harmless(void **state)
{
    static const uint64_t needed[] = {3, 4, 7};
    bool fired = true;

    (void)state;
    for (uint64_t n = 1; fired; n++) {
        struct varve_err err = VARVE_ERR_INIT;
        int rc;

        make_epochs(9);
        fault_fail_at(&d.fault, FAULT_ANY, n, ENOSPC);
        rc = tidy(needed, 3, &err);
        fired = fault_fired(&d.fault);
        fault_disarm(&d.fault);
        assert_true(rc == 0 || rc == -ENOSPC);
        if (rc < 0)
            assert_true(err.msg[0] != '\0');
        assert_answers(needed, 3);
        assert_int_equal(tidy(needed, 3, NULL), 0);
        FILES("epoch-3-3.map", "epoch-4-6.map", "epoch-7-8.map", "epoch-9-9.map");
        assert_answers(needed, 3);
    }
}

/* --- a random history ------------------------------------------------------------------------- */

static uint64_t below(uint64_t n)
{
    return (uint64_t)random() % n;
}

/* Boundaries come and go, epochs are prepared, dropped, entered and sealed, and the housekeeper
 * dies half of the time.  Seeds from VARVE_TEST_SEED on, if it is set. */
static void random_history_keeps_every_answer(void **state)
{
    const char *from = getenv("VARVE_TEST_SEED");
    unsigned seed0 = from ? (unsigned)strtoul(from, NULL, 0) : 1;

    (void)state;
    for (unsigned seed = seed0; seed < seed0 + 8; seed++) {
        uint64_t needed[EPOCHS_MAX], number = 1;
        size_t nneeded = 0;

        print_message("seed %u\n", seed);
        srandom(seed);
        truth_forget();
        disk_fixture_reset(&d);
        enter(number);
        for (int step = 0; step < 60; step++) {
            switch (below(4)) {
            case 0:
            case 1: /* a boundary, which gets a name or not */
                number += 1 + (below(4) == 0);
                enter(number);
                seal(truth.nepochs - 2);
                if (below(2))
                    needed[nneeded++] = number;
                break;
            case 2: /* prepared and dropped, the file stays or goes */
                assert_int_equal(prepare(++number), 0);
                if (below(2))
                    remove_file(number, number);
                break;
            case 3: /* a name goes, and the housekeeper comes */
                if (nneeded > 0 && below(2)) {
                    size_t i = below(nneeded);

                    needed[i] = needed[--nneeded];
                }
                if (below(2))
                    fault_crash_at(&d.fault, FAULT_ANY, 1 + below(150));
                tidy(needed, nneeded, NULL);
                disk_fixture_reboot(&d, below(3));
                break;
            }
            assert_answers(needed, nneeded);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(union_is_what_was_written_between_the_boundaries, fresh),
        cmocka_unit_test_setup(empty_directory_is_an_empty_timeline, fresh),
        cmocka_unit_test_setup(missing_file_is_missed_and_named, fresh),
        cmocka_unit_test_setup(unsealed_and_damaged_files_are_named, fresh),
        cmocka_unit_test_setup(numbers_that_were_never_entered_do_no_harm, fresh),
        cmocka_unit_test_setup(highest_number_counts_files_that_cannot_be_used, fresh),
        cmocka_unit_test_setup(file_of_a_newer_format_stops_the_scan, fresh),
        cmocka_unit_test_setup(lack_of_descriptors_is_no_damage, fresh),
        cmocka_unit_test_setup(scan_while_another_process_merges_sees_a_whole_timeline, fresh),
        cmocka_unit_test_setup(a_change_of_size_dirties_all_behind_the_smaller_for_who_knew_it_before,
                               fresh),
        cmocka_unit_test_setup(tidy_keeps_what_needed_boundaries_separate, fresh),
        cmocka_unit_test_setup(merged_file_that_spans_the_oldest_boundary_is_kept, fresh),
        cmocka_unit_test_setup(nothing_needed_frees_all_that_is_sealed, fresh),
        cmocka_unit_test_setup(open_and_clean_files_are_never_touched, fresh),
        cmocka_unit_test_setup(damaged_file_is_kept_named_and_stops_nothing_else, fresh),
        cmocka_unit_test_setup(parts_of_a_merged_file_do_not_count_and_go, fresh),
        cmocka_unit_test_setup(parts_of_a_damaged_merged_file_are_kept, fresh),
        cmocka_unit_test_setup(leftovers_of_dead_attempts_go_but_not_those_under_way, fresh),
        cmocka_unit_test_setup(a_merged_file_has_its_first_parts_id, fresh),
        cmocka_unit_test_setup(cost_of_a_merge_does_not_grow_with_checkpoints, fresh),
        cmocka_unit_test_setup(crash_at_any_call_changes_no_answer, fresh),
        cmocka_unit_test_setup(parts_outlive_a_merged_name_that_is_not_durable, fresh),
        cmocka_unit_test_setup(any_failing_call_is_told_or_harmless, fresh),
        cmocka_unit_test_setup(random_history_keeps_every_answer, fresh),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
