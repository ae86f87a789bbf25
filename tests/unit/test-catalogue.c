/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The catalogue: what it keeps comes back, a change over several disks is one, and what it cannot
 * believe it refuses.  As long as the list of what it keeps.
 */
#include "lib/catalogue.h"

#include "tests/lib/fault-world.h"
#include "tests/lib/tmpdir.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const uint8_t uuid_a[16] = {0xaa, 1}, uuid_b[16] = {0xbb, 2};

static void add_jobs(struct varve_catalogue *c)
{
    struct varve_cat_job *j = varve_catalogue_add_job(c, "j1", "diff");

    assert_non_null(j);
    j->args = strdup("{\"node\":\"vda\",\"reference\":\"/\xc3\xbc\"}");
    memcpy(j->uuid, uuid_a, 16);
    snprintf(j->disk, sizeof(j->disk), "vda");
    j->bitmap = strdup("to come");
    j->start = 5;
    j->speed = INT64_MAX;
    j->time_ns = 2001;
    j->current = 65536;
    j->total = 1 << 20;
    snprintf(j->proof, sizeof(j->proof), "8:1 77");
    j->has_blocks = true;
    memset(j->blocks, 0xc4, sizeof(j->blocks));
    j = varve_catalogue_add_job(c, "j0", "push");
    assert_non_null(j);
    j->state = VARVE_JOB_FAILED;
    snprintf(j->disk, sizeof(j->disk), "vdb");
    snprintf(j->backup, sizeof(j->backup), "b1");
    snprintf(j->error, sizeof(j->error), "no room");
    j->ended_ns = 9;
    c->next_job = 7;
}

static void add_extras(struct varve_cat_backup_disk *d)
{
    struct varve_cat_extra *e = varve_catalogue_add_extra(d, "e1", "vda-1");

    assert_non_null(e);
    e = varve_catalogue_add_extra(d, "e2", "vda-2");
    e->description = strdup("for \"B\"");
    e->base = strdup("m\xc3\xb6");
    e->granularity = 1 << 17;
    assert_int_equal(varve_change_set_add_span(&e->set, 2, VARVE_SPAN_OPEN), 0);
    e = varve_catalogue_add_extra(d, "e3", "vda-3");
    e->base = strdup("tuesday");
    assert_int_equal(varve_change_set_add_span(&e->set, 4, VARVE_SPAN_OPEN), 0);
}

static struct varve_catalogue *sample(void)
{
    struct varve_catalogue *c = varve_catalogue_new();
    struct varve_cat_disk *a, *b;
    struct varve_cat_backup *backup;
    struct varve_cat_checkpoint *p;
    struct varve_cat_bitmap *m;

    assert_non_null(c);
    assert_non_null(varve_catalogue_add_disk(c, uuid_a, "vda"));
    assert_non_null(varve_catalogue_add_disk(c, uuid_b, "vdb"));
    a = varve_catalogue_disk(c, uuid_a);
    b = varve_catalogue_disk(c, uuid_b);
    assert_int_equal(varve_catalogue_add_checkpoint(a, "monday", "", 1000, 2, NULL), 0);
    assert_int_equal(varve_catalogue_add_checkpoint(a, "tuesday", "b1", 2000, 5, NULL), 0);
    assert_int_equal(varve_catalogue_add_checkpoint(b, "monday", "", 1000, 9, NULL), 0);
    a->newest = 5;
    memset(a->birth, 0xb1, sizeof(a->birth));
    p = varve_catalogue_checkpoint(a, "tuesday");
    p->heal = calloc(2, sizeof(*p->heal));
    p->nheal = 2;
    p->heal[0] = (struct varve_cat_range){65536, 4096};
    p->heal[1] = (struct varve_cat_range){1 << 20, 1 << 20};
    p->made = 4;
    p->has_blocks = true;
    memset(p->blocks, 0xd9, sizeof(p->blocks));
    assert_int_equal(
        varve_catalogue_add_export(a, &(struct varve_cat_export){"monday", 1000, 3000, 2, 5}, NULL),
        0);
    assert_int_equal(
        varve_catalogue_add_export(a, &(struct varve_cat_export){"monday", 900, 3001, 1, 3}, NULL),
        0);
    assert_int_equal(varve_catalogue_add_bitmap(a, "b\xc3\xa4r/@+\n", 65536, &m, NULL), 0);
    m->since = 7;
    assert_int_equal(varve_change_set_add_span(&m->set, 2, 4), 0);
    assert_int_equal(varve_change_set_add_span(&m->set, 7, VARVE_SPAN_OPEN), 0);
    assert_int_equal(varve_change_set_add_ranges(&m->set, p->heal, 2), 0);
    assert_int_equal(varve_catalogue_add_bitmap(b, "t", 512, &m, NULL), 0);
    m->transient = true;
    m->set.has_blocks = true;
    memset(m->set.blocks, 0xe7, sizeof(m->set.blocks));
    backup = varve_catalogue_add_backup(c, "b1", 1);
    assert_non_null(backup);
    backup->time_ns = 2000;
    backup->ttl_s = 60;
    backup->speed = INT64_MAX;
    backup->adaptive = true;
    backup->release = backup->preserve_dirty = true;
    backup->disks[0].bytes_released = 77;
    snprintf(backup->checkpoint, sizeof(backup->checkpoint), "tuesday");
    memcpy(backup->disks[0].uuid, uuid_a, 16);
    snprintf(backup->disks[0].disk, sizeof(backup->disks[0].disk), "vda");
    snprintf(backup->disks[0].since, sizeof(backup->disks[0].since), "monday");
    snprintf(backup->disks[0].export, sizeof(backup->disks[0].export), "vda");
    backup->disks[0].exportbitmap = strdup("b\xc3\xa4 \"quoted\"");
    backup->disks[0].view = UINT64_MAX - 7;
    backup->disks[0].base = 2;
    backup->disks[0].boundary = 5;
    backup->disks[0].dirty_bytes = 123;
    backup->disks[0].bitmap = strdup("other");
    backup->disks[0].mode = VARVE_BITMAP_ALWAYS;
    backup->disks[0].granularity = 1 << 20;
    assert_int_equal(varve_change_set_add_span(&backup->disks[0].set, 3, 5), 0);
    add_extras(&backup->disks[0]);
    add_jobs(c);
    return c;
}

static void what_is_kept_comes_back(void **state)
{
    struct varve_catalogue *c = sample(), *again;
    struct varve_cat_checkpoint *p;
    struct varve_cat_backup *b;

    (void)state;
    again = varve_catalogue_clone(c);
    assert_non_null(again);
    p = varve_catalogue_checkpoint(varve_catalogue_disk(again, uuid_a), "tuesday");
    assert_non_null(p);
    assert_int_equal(p->epoch, 5);
    assert_int_equal(p->time_ns, 2000);
    assert_string_equal(p->backup, "b1");
    assert_int_equal(p->nheal, 2);
    assert_int_equal(p->heal[1].off, 1 << 20);
    assert_int_equal(varve_cat_checkpoint_made(p), 4);
    assert_true(p->has_blocks && p->blocks[31] == 0xd9);
    p = varve_catalogue_checkpoint(varve_catalogue_disk(again, uuid_a), "monday");
    assert_int_equal(varve_cat_checkpoint_made(p), 2);
    assert_false(p->has_blocks);
    b = varve_catalogue_backup(again, "b1");
    assert_non_null(b);
    assert_true(varve_cat_backup_open(b));
    assert_int_equal(b->ttl_s, 60);
    assert_true(b->speed == INT64_MAX && b->adaptive);
    assert_true(b->release && b->preserve_dirty);
    assert_int_equal(b->disks[0].bytes_released, 77);
    assert_true(b->disks[0].view == UINT64_MAX - 7);
    assert_string_equal(b->disks[0].exportbitmap, "b\xc3\xa4 \"quoted\"");
    assert_string_equal(b->disks[0].since, "monday");
    assert_memory_equal(b->disks[0].uuid, uuid_a, 16);
    varve_catalogue_free(again);
    varve_catalogue_free(c);
}

static void jobs_come_back(void **state)
{
    struct varve_catalogue *c = sample(), *again = varve_catalogue_clone(c);
    struct varve_cat_job *j = varve_catalogue_job(again, "j1");

    (void)state;
    assert_int_equal(again->next_job, 7);
    assert_int_equal(again->njobs, 2);
    assert_non_null(j);
    assert_string_equal(j->type, "diff");
    assert_true(varve_cat_job_open(j));
    assert_non_null(strstr(j->args, "/\xc3\xbc"));
    assert_memory_equal(j->uuid, uuid_a, 16);
    assert_int_equal(j->start, 5);
    assert_true(j->speed == INT64_MAX);
    assert_true(j->current == 65536 && j->total == 1 << 20 && j->time_ns == 2001);
    assert_string_equal(j->proof, "8:1 77");
    assert_true(j->has_blocks && j->blocks[31] == 0xc4);
    assert_ptr_equal(varve_catalogue_job_of_bitmap(again, uuid_a, "to come"), j);
    assert_null(varve_catalogue_job_of_bitmap(again, uuid_b, "to come"));
    assert_null(varve_catalogue_job_of_bitmap(again, uuid_a, "other"));
    j->state = VARVE_JOB_CANCELLED;
    assert_null(varve_catalogue_job_of_bitmap(again, uuid_a, "to come"));
    j = varve_catalogue_job(again, "j0");
    assert_non_null(j);
    assert_false(varve_cat_job_open(j));
    assert_null(j->args);
    assert_null(j->bitmap);
    assert_string_equal(j->backup, "b1");
    assert_string_equal(j->error, "no room");
    assert_true(varve_catalogue_remove_job(again, "j0"));
    assert_false(varve_catalogue_remove_job(again, "j0"));
    varve_catalogue_free(c);
    varve_catalogue_free(again);
}

/* An open job whose arguments are gone could not be begun again. */
static void a_job_that_is_not_whole_is_refused(void **state)
{
    static const struct {
        const char *from, *to;
    } cases[] = {{"\"args\":{", "\"arg\":{"},
                 {"\"bitmap\":\"to come\"", "\"bitmap\":7"},
                 {"\"start\":5", "\"start\":-5"},
                 {"\"type\":\"diff\"", "\"type\":\"\""},
                 {"\"state\":\"failed\",\"time\":0,\"total\":0,\"type\":\"push\"",
                  "\"state\":\"lost\",\"time\":0,\"total\":0,\"type\":\"push\""},
                 {"\"id\":\"j0\"", "\"id\":\"j1\""}};
    struct varve_catalogue *c = sample(), *again;
    char *text = varve_catalogue_dump(c);

    (void)state;
    assert_non_null(text);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *at = strstr(text, cases[i].from), *changed = malloc(strlen(text) + 64);

        assert_non_null(at);
        assert_non_null(changed);
        sprintf(changed, "%.*s%s%s", (int)(at - text), text, cases[i].to,
                at + strlen(cases[i].from));
        assert_int_equal(varve_catalogue_parse(changed, &again, NULL), -EUCLEAN);
        free(changed);
    }
    free(text);
    varve_catalogue_free(c);
}

static void ended_jobs_are_forgotten_oldest_first(void **state)
{
    struct varve_catalogue *c = varve_catalogue_new();
    struct varve_cat_job *j;
    char id[16];

    (void)state;
    assert_non_null(c);
    for (unsigned i = 0; i < VARVE_CATALOGUE_JOBS_MAX + 3; i++) {
        snprintf(id, sizeof(id), "j%u", i);
        j = varve_catalogue_add_job(c, id, "diff");
        assert_non_null(j);
        j->state = i == 0 ? VARVE_JOB_ABORTING : VARVE_JOB_COMPLETED;
        j->ended_ns = i == 0 ? 0 : 1000 - i;
    }
    varve_catalogue_trim_jobs(c);
    assert_int_equal(c->njobs, VARVE_CATALOGUE_JOBS_MAX + 1);
    assert_non_null(varve_catalogue_job(c, "j0")); /* open */
    assert_non_null(varve_catalogue_job(c, "j1"));
    assert_null(varve_catalogue_job(c, "j101"));
    assert_null(varve_catalogue_job(c, "j102"));
    varve_catalogue_free(c);
}

static void exports_and_the_newest_epoch_come_back_and_exports_are_limited(void **state)
{
    struct varve_catalogue *c = sample(), *again = varve_catalogue_clone(c);
    struct varve_cat_disk *a = varve_catalogue_disk(again, uuid_a);
    struct varve_cat_export e = {"other", 1, 2, 3, 500};
    struct varve_err err;

    (void)state;
    assert_int_equal(a->newest, 5);
    assert_int_equal(a->birth[15], 0xb1);
    assert_int_equal(varve_catalogue_disk(again, uuid_b)->newest, 0);
    assert_int_equal(a->nexports, 2);
    assert_int_equal(varve_catalogue_disk(again, uuid_b)->nexports, 0);
    assert_int_equal(varve_catalogue_export(a, "monday", 2)->exported_ns, 3000);
    assert_int_equal(varve_catalogue_export(a, "monday", 1)->known, 3);
    assert_null(varve_catalogue_export(a, "monday", 5));
    assert_null(varve_catalogue_export(a, "tuesday", 2));

    for (; a->nexports < VARVE_CATALOGUE_EXPORTS_MAX; e.made++)
        assert_int_equal(varve_catalogue_add_export(a, &e, NULL), 0);
    assert_int_equal(varve_catalogue_add_export(a, &e, &err), -ENOSPC);
    assert_non_null(strstr(err.msg, "Disk 'vda' keeps the boundaries of 100 exported checkpoints"));
    e.made--; /* one that is there is replaced all the same */
    e.known = 1000;
    assert_int_equal(varve_catalogue_add_export(a, &e, NULL), 0);
    assert_int_equal(a->nexports, VARVE_CATALOGUE_EXPORTS_MAX);
    assert_int_equal(varve_catalogue_export(a, "other", e.made)->known, 1000);
    varve_catalogue_free(c);
    c = varve_catalogue_clone(again);
    assert_non_null(c);
    varve_catalogue_free(c);

    assert_int_equal(varve_catalogue_remove_exports(a, "monday", 2), 1);
    assert_int_equal(varve_catalogue_remove_exports(a, "monday", 2), 0);
    assert_int_equal(varve_catalogue_remove_exports(a, "other", 0), 98);
    assert_int_equal(a->nexports, 1);
    assert_int_equal(a->exports[0].made, 1);
    varve_catalogue_free(again);
}

static void bitmaps_come_back(void **state)
{
    struct varve_catalogue *c = sample(), *again = varve_catalogue_clone(c);
    struct varve_cat_disk *a, *b;
    struct varve_cat_bitmap *m;
    struct varve_cat_backup *backup;

    (void)state;
    assert_non_null(again);
    a = varve_catalogue_disk(again, uuid_a);
    b = varve_catalogue_disk(again, uuid_b);
    m = varve_catalogue_bitmap(a, "b\xc3\xa4r/@+\n");
    assert_non_null(m);
    assert_int_equal(m->granularity, 65536);
    assert_false(m->transient || m->set.has_blocks);
    assert_int_equal(m->since, 7);
    assert_int_equal(m->set.nspans, 2);
    assert_int_equal(m->set.spans[0].end, 4);
    assert_true(varve_change_set_records(&m->set));
    assert_int_equal(m->set.nranges, 2);
    assert_int_equal(m->set.ranges[1].len, 1 << 20);
    m = varve_catalogue_bitmap(b, "t");
    assert_true(m->transient && m->set.has_blocks);
    assert_int_equal(m->set.blocks[31], 0xe7);
    assert_int_equal(m->set.nspans, 0);
    backup = varve_catalogue_backup(again, "b1");
    assert_string_equal(backup->disks[0].bitmap, "other");
    assert_int_equal(backup->disks[0].mode, VARVE_BITMAP_ALWAYS);
    assert_int_equal(backup->disks[0].granularity, 1 << 20);
    assert_int_equal(backup->disks[0].set.spans[0].first, 3);

    assert_int_equal(varve_catalogue_add_bitmap(b, "t", 512, &m, NULL), -EEXIST);
    assert_true(varve_catalogue_remove_transient(again));
    assert_null(varve_catalogue_bitmap(b, "t"));
    assert_int_equal(a->nbitmaps, 1);
    assert_false(varve_catalogue_remove_transient(again));
    varve_catalogue_free(again);
    varve_catalogue_free(c);
}

static void extra_exports_come_back_and_go_with_their_backup(void **state)
{
    struct varve_catalogue *c = sample(), *again = varve_catalogue_clone(c);
    struct varve_cat_backup_disk *d = NULL;
    struct varve_cat_extra *e;

    (void)state;
    assert_non_null(again);
    e = varve_catalogue_extra(again, "e1", &d);
    assert_ptr_equal(d, &varve_catalogue_backup(again, "b1")->disks[0]);
    assert_int_equal(d->nextras, 3);
    assert_string_equal(e->name, "vda-1");
    assert_true(!e->base && !e->description && varve_change_set_is_empty(&e->set));
    e = varve_catalogue_extra(again, "e2", &d);
    assert_string_equal(e->description, "for \"B\"");
    assert_string_equal(e->base, "m\xc3\xb6");
    assert_int_equal(e->granularity, 1 << 17);
    assert_true(e->set.nspans == 1 && e->set.spans[0].first == 2);
    e = varve_catalogue_extra(again, "e3", &d);
    assert_true(e->granularity == 0 && e->set.spans[0].first == 4);
    varve_catalogue_remove_extra(d, varve_catalogue_extra(again, "e2", &d));
    assert_null(varve_catalogue_extra(again, "e2", &d));
    assert_string_equal(varve_catalogue_extra(again, "e3", &d)->base, "tuesday");
    varve_catalogue_backup(again, "b1")->state = VARVE_BACKUP_COMPLETED;
    assert_null(varve_catalogue_extra(again, "e3", &d));
    varve_catalogue_remove_extras(varve_catalogue_backup(again, "b1"));
    assert_int_equal(d->nextras, 0);
    varve_catalogue_free(again);
    varve_catalogue_free(c);
}

/* What a version without bitmaps wrote. */
static void an_old_catalogue_is_read(void **state)
{
    static const char text[] =
        "{\"next-backup\":2,\"disks\":[{\"uuid\":\"aa010000000000000000000000000000\","
        "\"name\":\"vda\",\"checkpoints\":[{\"name\":\"m\",\"time\":1,\"epoch\":2}]}],"
        "\"backups\":[{\"id\":\"b\",\"state\":\"running\",\"time\":1,\"ended\":0,\"ttl\":0,"
        "\"disks\":[{\"uuid\":\"aa010000000000000000000000000000\",\"disk\":\"vda\","
        "\"since\":\"m\",\"export\":\"vda\",\"exportbitmap\":\"x\",\"view\":"
        "\"0000000000000007\",\"base\":2,\"boundary\":3,\"dirty-bytes\":0,\"bytes-read\":0}]}]}";
    struct varve_catalogue *c = NULL;

    (void)state;
    assert_int_equal(varve_catalogue_parse(text, &c, NULL), 0);
    assert_int_equal(c->disks[0].ncheckpoints, 1);
    assert_int_equal(c->disks[0].nbitmaps, 0);
    assert_null(c->backups[0].disks[0].bitmap);
    varve_catalogue_free(c);
}

static void checkpoints_keep_the_order_of_epochs(void **state)
{
    struct varve_catalogue *c = varve_catalogue_new();
    struct varve_cat_disk *d = varve_catalogue_add_disk(c, uuid_a, "vda");
    struct varve_err err = VARVE_ERR_INIT;

    (void)state;
    assert_int_equal(varve_catalogue_add_checkpoint(d, "c", "", 3, 30, NULL), 0);
    assert_int_equal(varve_catalogue_add_checkpoint(d, "a", "", 1, 10, NULL), 0);
    assert_int_equal(varve_catalogue_add_checkpoint(d, "b", "", 2, 20, NULL), 0);
    assert_string_equal(d->checkpoints[0].name, "a");
    assert_string_equal(d->checkpoints[2].name, "c");
    assert_int_equal(varve_catalogue_add_checkpoint(d, "b", "", 2, 40, &err), -EEXIST);
    assert_true(varve_catalogue_remove_checkpoint(d, "b"));
    assert_false(varve_catalogue_remove_checkpoint(d, "b"));
    assert_int_equal(d->ncheckpoints, 2);
    assert_string_equal(d->checkpoints[1].name, "c");
    varve_catalogue_free(c);
}

static void the_last_hundred_ended_backups_stay(void **state)
{
    struct varve_catalogue *c = varve_catalogue_new();
    char id[VARVE_NAME_MAX];

    (void)state;
    for (unsigned i = 0; i < 150; i++) {
        snprintf(id, sizeof(id), "b%u", i);
        varve_catalogue_add_backup(c, id, 0)->state =
            i == 3 ? VARVE_BACKUP_RUNNING : VARVE_BACKUP_COMPLETED;
    }
    varve_catalogue_trim(c);
    assert_int_equal(c->nbackups, VARVE_CATALOGUE_ENDED_MAX + 1);
    assert_non_null(varve_catalogue_backup(c, "b3"));
    assert_null(varve_catalogue_backup(c, "b49"));
    assert_non_null(varve_catalogue_backup(c, "b50"));
    varve_catalogue_free(c);
}

static void add_ended(struct varve_catalogue *c, unsigned number, unsigned disk, bool good)
{
    struct varve_cat_backup *b;
    char id[VARVE_NAME_MAX];

    snprintf(id, sizeof(id), "b%u", number);
    b = varve_catalogue_add_backup(c, id, 1);
    b->state = good ? VARVE_BACKUP_COMPLETED : VARVE_BACKUP_FAILED;
    b->time_ns = number;
    b->ended_ns = number + 1;
    b->disks[0].uuid[0] = (uint8_t)disk;
}

/* That is what one asks for: when was this disk backed up last? */
static void the_newest_backup_of_a_disk_that_ended_well_stays(void **state)
{
    struct varve_catalogue *c = varve_catalogue_new();
    uint8_t uuid[16] = {0};

    (void)state;
    for (uuid[0] = 0; uuid[0] < 200; uuid[0]++) { /* 200 to 204 are forgotten ones */
        assert_non_null(varve_catalogue_add_disk(c, uuid, "vda"));
        add_ended(c, uuid[0], uuid[0], true);
    }
    for (unsigned i = 200; i < 205; i++)
        add_ended(c, i, i, true);
    for (unsigned i = 205; i < 405; i++)
        add_ended(c, i, i % 2, i == 221); /* of 0 and 1: all but one fail */
    varve_catalogue_trim(c);
    assert_int_equal(c->nbackups, 200 + VARVE_CATALOGUE_ENDED_MAX);
    assert_non_null(varve_catalogue_backup(c, "b0"));
    assert_null(varve_catalogue_backup(c, "b1"));
    assert_non_null(varve_catalogue_backup(c, "b2"));
    assert_non_null(varve_catalogue_backup(c, "b199"));
    assert_null(varve_catalogue_backup(c, "b200"));
    assert_non_null(varve_catalogue_backup(c, "b221"));
    assert_null(varve_catalogue_backup(c, "b304"));
    assert_non_null(varve_catalogue_backup(c, "b305"));
    varve_catalogue_trim(c);
    assert_int_equal(c->nbackups, 200 + VARVE_CATALOGUE_ENDED_MAX);
    varve_catalogue_free(c);
}

#define WITH_EXTRA(extra)                                                                          \
    "{\"next-backup\":1,\"disks\":[],\"backups\":[{\"id\":\"b\",\"state\":\"running\",\"time\":1," \
    "\"ended\":0,\"ttl\":0,\"disks\":[{\"uuid\":\"aa010000000000000000000000000000\",\"disk\":" \
    "\"vda\",\"export\":\"vda\",\"exportbitmap\":\"x\",\"view\":\"0000000000000007\",\"base\":2," \
    "\"boundary\":3,\"dirty-bytes\":0,\"bytes-read\":0,\"extras\":[" extra "]}]}]}"

static void what_dump_does_not_make_is_refused(void **state)
{
    static const char *const bad[] = {
        "",
        "[]",
        "{}",
        "{\"next-backup\":-1}",
        "{\"next-backup\":\"1\"}",
        "{\"next-backup\":1,\"disks\":[{}]}",
        "{\"next-backup\":1,\"disks\":[{\"uuid\":\"zz\",\"name\":\"vda\"}]}",
        "{\"next-backup\":1,\"disks\":[{\"uuid\":\"00000000000000000000000000000000\","
        "\"name\":\"../x\"}]}",
        "{\"next-backup\":1,\"disks\":[{\"uuid\":\"00000000000000000000000000000000\","
        "\"name\":\"vda\",\"bitmaps\":[7]}]}",
        "{\"next-backup\":1,\"disks\":[{\"uuid\":\"00000000000000000000000000000000\","
        "\"name\":\"vda\",\"bitmaps\":[{\"name\":\"\",\"granularity\":512,\"spans\":[]}]}]}",
        "{\"next-backup\":1,\"disks\":[{\"uuid\":\"00000000000000000000000000000000\","
        "\"name\":\"vda\",\"bitmaps\":[{\"name\":\"x\",\"granularity\":768,\"spans\":[]}]}]}",
        "{\"next-backup\":1,\"disks\":[{\"uuid\":\"00000000000000000000000000000000\","
        "\"name\":\"vda\",\"bitmaps\":[{\"name\":\"x\",\"granularity\":512,\"spans\":[[3,3]]}]}]}",
        "{\"next-backup\":1,\"disks\":[{\"uuid\":\"00000000000000000000000000000000\","
        "\"name\":\"vda\",\"bitmaps\":[{\"name\":\"x\",\"granularity\":512,\"spans\":[[0]]}]}]}",
        "{\"next-backup\":1,\"disks\":[{\"uuid\":\"00000000000000000000000000000000\","
        "\"name\":\"vda\",\"bitmaps\":[{\"name\":\"x\",\"granularity\":512,\"spans\":[[]]}]}]}",
        "{\"next-backup\":1,\"disks\":[{\"uuid\":\"00000000000000000000000000000000\","
        "\"name\":\"vda\",\"bitmaps\":[{\"name\":\"x\",\"granularity\":512,\"spans\":[],\"blocks\":"
        "\"7f\"}]}]}",
        "{\"next-backup\":1,\"disks\":[{\"uuid\":\"00000000000000000000000000000000\","
        "\"name\":\"vda\",\"checkpoints\":[{\"name\":\"x\",\"time\":1,\"epoch\":2,\"made\":3}]}]}",
        /* blocks of no earlier boundary */
        "{\"next-backup\":1,\"disks\":[{\"uuid\":\"00000000000000000000000000000000\","
        "\"name\":\"vda\",\"checkpoints\":[{\"name\":\"x\",\"time\":1,\"epoch\":2,\"blocks\":"
        "\"0000000000000000000000000000000000000000000000000000000000000000\"}]}]}",
        "{\"next-backup\":1,\"disks\":[{\"uuid\":\"00000000000000000000000000000000\","
        "\"name\":\"vda\",\"checkpoints\":[{\"name\":\"x\",\"time\":1,\"epoch\":2,\"made\":1,"
        "\"blocks\":\"00\"}]}]}",
        "{\"next-backup\":1,\"disks\":[{\"uuid\":\"00000000000000000000000000000000\","
        "\"name\":\"vda\",\"exports\":[{\"name\":\"x\",\"time\":1,\"exported\":1,\"made\":3,"
        "\"known\":2}]}]}",
        "{\"next-backup\":1,\"disks\":[{\"uuid\":\"00000000000000000000000000000000\","
        "\"name\":\"vda\",\"exports\":[{\"name\":\"x\",\"time\":1,\"exported\":1,\"made\":2,"
        "\"known\":2},{\"name\":\"x\",\"time\":1,\"exported\":1,\"made\":2,\"known\":2}]}]}",
        "{\"next-backup\":1,\"backups\":[{\"id\":\"b\",\"state\":\"new\",\"time\":1,\"ended\":0,"
        "\"ttl\":0,\"disks\":[]}]}",
        "{\"next-backup\":1,\"backups\":[{\"id\":\"b\",\"state\":\"running\",\"time\":1,"
        "\"ended\":0,\"ttl\":0,\"disks\":[7]}]}",
        "{\"next-backup\":1,\"backups\":[{\"id\":\"b\",\"state\":\"running\",\"time\":1,"
        "\"ended\":0,\"ttl\":0,\"speed\":-1,\"disks\":[]}]}",
        WITH_EXTRA("7"),
        WITH_EXTRA("{\"id\":\"e\"}"),
        WITH_EXTRA("{\"id\":\"e\",\"name\":\"a@b\"}"),
        WITH_EXTRA("{\"id\":\"e\",\"name\":\"n\",\"base\":\"\",\"spans\":[[1]]}"),
        WITH_EXTRA("{\"id\":\"e\",\"name\":\"n\",\"base\":\"m\",\"granularity\":3,"
                   "\"spans\":[[1]]}"),
        WITH_EXTRA("{\"id\":\"e\",\"name\":\"n\",\"base\":\"m\",\"spans\":[[0]]}"),
    };
    struct varve_catalogue *good = NULL;

    (void)state;
    assert_int_equal(varve_catalogue_parse(WITH_EXTRA("{\"id\":\"e\",\"name\":\"n\",\"base\":\"m\","
                                                      "\"spans\":[[1]]}"),
                                           &good, NULL),
                     0);
    varve_catalogue_free(good);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct varve_catalogue *c = NULL;
        struct varve_err err = VARVE_ERR_INIT;

        assert_int_equal(varve_catalogue_parse(bad[i], &c, &err), -EUCLEAN);
        assert_true(err.msg[0] != '\0');
        assert_null(c);
    }
}

static void one_of_before_there_were_throttles_is_read(void **state)
{
    static const char text[] = "{\"next-backup\":1,\"disks\":[],\"backups\":[{\"id\":\"b\","
                               "\"state\":\"running\",\"time\":1,\"ended\":0,\"ttl\":7,"
                               "\"disks\":[]}]}";
    struct varve_catalogue *c;

    (void)state;
    assert_int_equal(varve_catalogue_parse(text, &c, NULL), 0);
    assert_int_equal(c->backups[0].ttl_s, 7);
    assert_true(c->backups[0].speed == 0 && !c->backups[0].adaptive);
    varve_catalogue_free(c);
}

/* Cutting the text anywhere gives an error, never a crash or half a catalogue. */
static void a_cut_text_is_refused(void **state)
{
    struct varve_catalogue *c = sample(), *cut;
    char *text = varve_catalogue_dump(c);

    (void)state;
    assert_non_null(text);
    for (size_t len = strlen(text); len-- > 0;) {
        text[len] = '\0';
        assert_true(varve_catalogue_parse(text, &cut, NULL) < 0);
    }
    free(text);
    varve_catalogue_free(c);
}

/* Crash at every call of a commit that changes two disks: both have the checkpoint, or neither. */
static void a_change_of_two_disks_is_one(void **state)
{
    const char *dir = *state;
    struct fault_world f;
    unsigned old = 0;

    fault_world_init(&f, varve_world_posix());
    for (uint64_t n = 1;; n++) {
        struct varve_catalogue_store *s = NULL;
        struct varve_catalogue *c, *c2 = sample();
        bool a, b;
        int rc;

        tmpdir_empty(dir);
        assert_int_equal(varve_catalogue_open(varve_world_posix(), dir, &s, &c, NULL), 0);
        varve_catalogue_free(c);
        assert_int_equal(varve_catalogue_commit(s, c2, NULL), 0);
        varve_catalogue_close(s);

        fault_disarm(&f);
        assert_int_equal(varve_catalogue_open(&f.world, dir, &s, &c, NULL), 0);
        for (size_t i = 0; i < c->ndisks; i++)
            varve_catalogue_add_checkpoint(&c->disks[i], "both", "", 3000, 11, NULL);
        fault_crash_at(&f, FAULT_ANY, n);
        rc = varve_catalogue_commit(s, c, NULL);
        varve_catalogue_close(s);
        varve_catalogue_free(c);
        varve_catalogue_free(c2);
        if (!fault_fired(&f)) {
            assert_int_equal(rc, 0);
            break;
        }
        assert_int_equal(varve_catalogue_open(varve_world_posix(), dir, &s, &c, NULL), 0);
        a = varve_catalogue_checkpoint(varve_catalogue_disk(c, uuid_a), "both") != NULL;
        b = varve_catalogue_checkpoint(varve_catalogue_disk(c, uuid_b), "both") != NULL;
        assert_true(a == b);
        assert_non_null(varve_catalogue_checkpoint(varve_catalogue_disk(c, uuid_b), "monday"));
        old += !a;
        varve_catalogue_free(c);
        varve_catalogue_close(s);
    }
    fault_world_fini(&f);
    assert_true(old > 0); /* the crashes did happen before the change */
}

static int setup(void **state)
{
    *state = tmpdir_new();
    return 0;
}

static int teardown(void **state)
{
    tmpdir_remove(*state);
    return 0;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_is_kept_comes_back),
        TEST(jobs_come_back),
        TEST(a_job_that_is_not_whole_is_refused),
        TEST(ended_jobs_are_forgotten_oldest_first),
        TEST(exports_and_the_newest_epoch_come_back_and_exports_are_limited),
        TEST(bitmaps_come_back),
        TEST(extra_exports_come_back_and_go_with_their_backup),
        TEST(an_old_catalogue_is_read),
        TEST(checkpoints_keep_the_order_of_epochs),
        TEST(the_last_hundred_ended_backups_stay),
        TEST(the_newest_backup_of_a_disk_that_ended_well_stays),
        TEST(what_dump_does_not_make_is_refused),
        TEST(one_of_before_there_were_throttles_is_read),
        TEST(a_cut_text_is_refused),
        TEST(a_change_of_two_disks_is_one),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
