/* SPDX-License-Identifier: BSD-3-Clause */
#include "client/top.h"
#include "client/out.h"
#include "client/trouble.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BAR_WIDTH 10

/* What is drawn, and what it is drawn onto. */
struct top_page {
    FILE *f;
    const struct varve_top_look *now, *before;
    bool colour;
};

void varve_top_look_fini(struct varve_top_look *look)
{
    for (int i = 0; i < VARVE_TOP_PARTS; i++)
        json_decref(look->parts[i]);
    *look = (struct varve_top_look){.time = 0};
}

/* --- numbers -------------------------------------------------------------------------------- */

/* The object of an array whose keys (up to two, the second may be NULL) have the values that
 * `like`'s have. */
static const json_t *find_like(const json_t *list, const json_t *like, const char *key,
                               const char *second)
{
    const json_t *item;
    size_t i;

    json_array_foreach(list, i, item)
    {
        if (json_equal(json_object_get(item, key), json_object_get(like, key)) &&
            (!second || json_equal(json_object_get(item, second), json_object_get(like, second))))
            return item;
    }
    return NULL;
}

/* How much more a second; -1: nobody knows. */
static double rate_of(const struct top_page *p, const json_t *now, const json_t *before,
                      const char *key)
{
    int64_t ms = p->now->at_ms - p->before->at_ms;
    uint64_t is = varve_get_number(now, key), was = varve_get_number(before, key);

    if (!before || ms <= 0 || is < was)
        return -1;
    return (double)(is - was) * 1000 / (double)ms;
}

static void add_rate(struct varve_table *t, double rate)
{
    char size[VARVE_OUT_SIZE_LEN], text[VARVE_OUT_SIZE_LEN + 8];

    if (rate < 0) {
        varve_table_add_right(t, NULL);
        return;
    }
    snprintf(text, sizeof(text), "%s/s", varve_out_size(size, (uint64_t)rate));
    varve_table_add_right(t, text);
}

/* "[####......] 45%" */
static void add_bar(struct varve_table *t, uint64_t done, uint64_t total)
{
    double part = total == 0 || done >= total ? 1 : (double)done / (double)total;
    char bar[BAR_WIDTH + 1], text[BAR_WIDTH + 16];

    memset(bar, '.', BAR_WIDTH);
    memset(bar, '#', (size_t)(part * BAR_WIDTH));
    bar[BAR_WIDTH] = '\0';
    snprintf(text, sizeof(text), "[%s] %d%%", bar, (int)(part * 100));
    varve_table_add(t, text);
}

static void add_left(struct varve_table *t, uint64_t done, uint64_t total, double rate)
{
    char span[VARVE_OUT_SPAN_LEN];

    if (rate >= 1 && done < total)
        varve_table_add_right(t, varve_out_span(span, (uint64_t)((double)(total - done) / rate)));
    else
        varve_table_add_right(t, NULL);
}

/* --- disks ---------------------------------------------------------------------------------- */

static void add_scratch(struct varve_table *t, const json_t *scratch)
{
    char used[VARVE_OUT_SIZE_LEN], max[VARVE_OUT_SIZE_LEN], text[2 * VARVE_OUT_SIZE_LEN + 8];

    varve_out_size(used, varve_get_number(scratch, "used"));
    varve_out_size(max, varve_get_number(scratch, "max"));
    if (json_is_integer(json_object_get(scratch, "max")))
        snprintf(text, sizeof(text), "%s of %s", used, max);
    else
        snprintf(text, sizeof(text), "%s", used);
    varve_table_add(t, scratch ? text : NULL);
}

static void put_disks(const struct top_page *p)
{
    static const char *const heading[] = {"DISK", "STATE",       "SIZE",   "DIRTY",
                                          "RATE", "CHECKPOINTS", "SCRATCH"};
    const json_t *disks = p->now->parts[VARVE_TOP_DISKS], *disk;
    struct varve_table t;
    size_t i;

    if (json_array_size(disks) == 0) {
        if (json_is_array(disks))
            fprintf(p->f, "\nno disks: serve one with 'nbdkit varve IMAGE'\n");
        return;
    }
    fputs("\n", p->f);
    varve_table_init(&t, 7, heading);
    t.state_column = 1;
    json_array_foreach(disks, i, disk)
    {
        /* What is dirty is counted from a boundary on. */
        const json_t *before = find_like(p->before->parts[VARVE_TOP_DISKS], disk, "name", "epoch");
        char state[VARVE_DISK_STATE_LEN], count[32];

        snprintf(count, sizeof(count), "%zu",
                 json_array_size(json_object_get(disk, "checkpoints")));
        varve_table_add(&t, varve_get_string(disk, "name"));
        varve_table_add(&t, varve_disk_state(disk, state));
        varve_table_size(&t, json_object_get(disk, "size"));
        varve_table_size(&t, json_object_get(disk, "dirty-bytes"));
        add_rate(&t, rate_of(p, disk, before, "dirty-bytes"));
        varve_table_add_right(&t, count);
        add_scratch(&t, json_object_get(disk, "scratch"));
    }
    varve_table_write(&t, p->f, p->colour);
    varve_trouble_disks(p->f, p->colour, disks);
}

/* --- backups -------------------------------------------------------------------------------- */

static void add_backup(const struct top_page *p, struct varve_table *t, const json_t *backup,
                       const json_t *disk)
{
    const json_t *then = find_like(p->before->parts[VARVE_TOP_BACKUPS], backup, "id", "time");
    const json_t *before = find_like(json_object_get(then, "disks"), disk, "disk", NULL);
    const char *since = json_string_value(json_object_get(disk, "since"));
    const char *bitmap = json_string_value(json_object_get(disk, "bitmap"));
    uint64_t done = varve_get_number(disk, "bytes-read");
    uint64_t total = varve_get_number(disk, "dirty-bytes");
    double rate = rate_of(p, disk, before, "bytes-read");

    varve_table_add(t, varve_get_string(backup, "id"));
    varve_table_add(t, varve_get_string(backup, "state"));
    varve_table_add(t, varve_get_string(disk, "disk"));
    varve_table_add(t, since ? since : bitmap ? bitmap : "(full)");
    add_bar(t, done, total);
    varve_table_size(t, json_object_get(disk, "bytes-read"));
    varve_table_size(t, json_object_get(disk, "dirty-bytes"));
    add_rate(t, rate);
    add_left(t, done, total, rate);
    varve_table_number(t, json_object_get(disk, "clients"));
    varve_table_size(t, json_object_get(disk, "scratch-used"));
}

static void put_backups(const struct top_page *p)
{
    static const char *const heading[] = {"BACKUP", "STATE", "DISK", "SINCE",   "DONE",   "READ",
                                          "OF",     "RATE",  "LEFT", "CLIENTS", "SCRATCH"};
    const json_t *backup, *disk;
    struct varve_table t;
    bool any = false;
    size_t i, j;

    json_array_foreach(p->now->parts[VARVE_TOP_BACKUPS], i, backup)
    {
        if (!varve_backup_is_open(backup))
            continue;
        if (!any)
            varve_table_init(&t, 11, heading);
        t.state_column = 1;
        any = true;
        json_array_foreach(json_object_get(backup, "disks"), j, disk)
            add_backup(p, &t, backup, disk);
    }
    if (!any)
        return;
    fputs("\n", p->f);
    varve_table_write(&t, p->f, p->colour);
    varve_trouble_backups(p->f, p->colour, p->now->parts[VARVE_TOP_BACKUPS]);
}

/* --- jobs ----------------------------------------------------------------------------------- */

static bool job_runs(const json_t *job)
{
    return strcmp(varve_get_string(job, "status"), "concluded") != 0;
}

static void add_job(const struct top_page *p, struct varve_table *t, const json_t *job)
{
    const json_t *before = find_like(p->before->parts[VARVE_TOP_JOBS], job, "id", "time");
    uint64_t done = varve_get_number(job, "current-progress");
    uint64_t total = varve_get_number(job, "total-progress");
    double rate = rate_of(p, job, before, "current-progress");

    varve_table_add(t, varve_get_string(job, "id"));
    varve_table_add(t, varve_get_string(job, "status"));
    varve_table_add(t, varve_get_string(job, "disk"));
    varve_table_add(t, varve_get_string(job, "type"));
    add_bar(t, done, total);
    varve_table_size(t, json_object_get(job, "current-progress"));
    varve_table_size(t, json_object_get(job, "total-progress"));
    add_rate(t, rate);
    add_left(t, done, total, rate);
}

static void put_jobs(const struct top_page *p)
{
    static const char *const heading[] = {"JOB",  "STATE", "DISK", "TYPE", "DONE",
                                          "READ", "OF",    "RATE", "LEFT"};
    struct varve_table t;
    const json_t *job;
    bool any = false;
    size_t i;

    json_array_foreach(p->now->parts[VARVE_TOP_JOBS], i, job)
    {
        if (!job_runs(job))
            continue;
        if (!any)
            varve_table_init(&t, 9, heading);
        t.state_column = 1;
        any = true;
        add_job(p, &t, job);
    }
    if (!any)
        return;
    fputs("\n", p->f);
    varve_table_write(&t, p->f, p->colour);
}

/* --- clients -------------------------------------------------------------------------------- */

static void put_clients(const struct top_page *p)
{
    static const char *const heading[] = {"CLIENT", "IDENTITY", "EXPORT", "READ",
                                          "RATE",   "REQUESTS", "QUEUE",  "ERRORS"};
    const json_t *clients = json_object_get(p->now->parts[VARVE_TOP_SERVER], "clients"), *c;
    struct varve_table t;
    size_t i;

    if (json_array_size(clients) == 0)
        return;
    fputs("\n", p->f);
    varve_table_init(&t, 8, heading);
    json_array_foreach(clients, i, c)
    {
        const json_t *before = find_like(
            json_object_get(p->before->parts[VARVE_TOP_SERVER], "clients"), c, "peer", "since");

        varve_table_add(&t, varve_get_string(c, "peer"));
        varve_table_add(&t, varve_get_string(c, "identity"));
        varve_table_add(&t, varve_get_string(c, "export"));
        varve_table_size(&t, json_object_get(c, "bytes-read"));
        add_rate(&t, rate_of(p, c, before, "bytes-read"));
        varve_table_number(&t, json_object_get(c, "requests"));
        varve_table_number(&t, json_object_get(c, "queue"));
        varve_table_number(&t, json_object_get(c, "errors"));
    }
    varve_table_write(&t, p->f, p->colour);
}

/* --- what was not told ---------------------------------------------------------------------- */

static void put_refusals(const struct top_page *p)
{
    static const char *const parts[VARVE_TOP_PARTS] = {"disks", "backups", "jobs", "clients"};

    for (int i = 0; i < VARVE_TOP_PARTS; i++) {
        const json_t *error = json_object_get(p->now->parts[i], "error");

        if (!error)
            continue;
        fprintf(p->f, "\n%s: the daemon refused: ", parts[i]);
        varve_out_text(p->f, varve_get_string(error, "desc"));
        fputs("\n", p->f);
    }
}

/* --- all of it ------------------------------------------------------------------------------ */

static const char *counted(char out[48], size_t n, const char *one, const char *more)
{
    snprintf(out, 48, "%zu %s", n, n == 1 ? one : more);
    return out;
}

static void put_head(const struct top_page *p)
{
    char when[VARVE_OUT_TIME_LEN], text[4][48];
    size_t backups = 0, jobs = 0, i;
    const json_t *item;

    json_array_foreach(p->now->parts[VARVE_TOP_BACKUPS], i, item) backups +=
        varve_backup_is_open(item);
    json_array_foreach(p->now->parts[VARVE_TOP_JOBS], i, item) jobs += job_runs(item);
    fprintf(p->f, "%s  %s, %s, %s, %s\n", varve_out_time(when, p->now->time),
            counted(text[0], json_array_size(p->now->parts[VARVE_TOP_DISKS]), "disk", "disks"),
            counted(text[1], backups, "backup", "backups"), counted(text[2], jobs, "job", "jobs"),
            counted(text[3],
                    json_array_size(json_object_get(p->now->parts[VARVE_TOP_SERVER], "clients")),
                    "client", "clients"));
}

char *varve_top_draw(const struct varve_top_look *now, const struct varve_top_look *before,
                     bool colour)
{
    struct top_page p = {.now = now, .before = before, .colour = colour};
    char *text = NULL;
    size_t len = 0;

    p.f = open_memstream(&text, &len);
    if (!p.f)
        return NULL;
    put_head(&p);
    put_refusals(&p);
    put_disks(&p);
    put_backups(&p);
    put_jobs(&p);
    put_clients(&p);
    if (fclose(p.f) == 0)
        return text;
    free(text);
    return NULL;
}
