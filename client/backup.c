/* SPDX-License-Identifier: BSD-3-Clause
 *
 * varve backup: publishes instants of disks for backup appliances, and ends that.
 */
#include "client/cli.h"
#include "client/control.h"
#include "client/out.h"
#include "client/uri.h"
#include "lib/parse.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    BEGIN_ID,
    BEGIN_SINCE,
    BEGIN_BITMAP,
    BEGIN_BITMAP_MODE,
    BEGIN_CHECKPOINT,
    BEGIN_TTL,
    BEGIN_RELEASE,
    BEGIN_PRESERVE,
    BEGIN_EXPORT,
    BEGIN_EXPORTBITMAP,
    BEGIN_FREEZE,
    BEGIN_SPEED,
    BEGIN_ADAPTIVE,
};

static const struct varve_option begin_options[] = {
    {"id", "ID", "the backup's name for 'end' (default: the daemon chooses)"},
    {"since", "NAME", "only what changed since this checkpoint is dirty\n(default: all is)"},
    {"bitmap", "NAME", "what this bitmap holds is dirty, on each of the disks"},
    {"bitmap-mode", "MODE",
     "on-success (default): the bitmap begins anew at this instant if\n"
     "the backup succeeds; never: it goes on as it is; always: as\n"
     "on-success, and of a failed backup what was released leaves it"},
    {"checkpoint", "NAME", "names this instant, for the next backup's --since"},
    {"ttl", "TIME",
     "ends as failed after this time without a client: seconds,\n"
     "or with m, h or d; 0: never (default: 1d)"},
    {"release", NULL,
     "clients may trim what they have done with: it takes no more\n"
     "space, and cannot be read again"},
    {"preserve", "all|dirty",
     "what is kept when it is overwritten: all (default), or only\n"
     "what is dirty; the rest can be read until it is overwritten"},
    {"export", "NAME", "the export's name, with one disk (default: the disk's)"},
    {"exportbitmap", "NAME",
     "the dirty bitmap's name in its meta context, with one\ndisk "
     "(default: backup-DISK)"},
    {"freeze", NULL, "runs the daemon's freeze hook around this instant"},
    {"speed", "SIZE",
     "bytes per second that all its clients together may read,\n"
     "e.g. 50M (default: no limit)"},
    {"adaptive", NULL, "reads slower while that makes the guest's writes slow"},
    {NULL, NULL, NULL},
};

enum { ESTIMATE_SINCE, ESTIMATE_BITMAP };

static const struct varve_option estimate_options[] = {
    {"since", "NAME", "as of a backup since this checkpoint\n(default: a full backup)"},
    {"bitmap", "NAME", "as of a backup from this bitmap"},
    {NULL, NULL, NULL},
};

enum { END_FAILED };

static const struct varve_option end_options[] = {
    {"failed", NULL,
     "the backup is worth nothing: its checkpoint is deleted, the\n"
     "next one carries its changes"},
    {NULL, NULL, NULL},
};

/* Seconds; -1: not a time. */
static json_int_t parse_seconds(const char *text)
{
    static const struct {
        const char *suffix;
        long long seconds;
    } units[] = {{"", 1}, {"s", 1}, {"m", 60}, {"h", 3600}, {"d", 86400}};
    char *end;
    long long n;

    if (text[0] < '0' || text[0] > '9')
        return -1;
    errno = 0;
    n = strtoll(text, &end, 10);
    for (size_t u = 0; u < sizeof(units) / sizeof(units[0]); u++)
        if (strcmp(end, units[u].suffix) == 0 && errno == 0 && n <= INT32_MAX)
            return n * units[u].seconds;
    return -1;
}

static json_t *begin_disks(const struct varve_args *args)
{
    json_t *disks = json_array();

    for (int i = 0; i < args->nwords && disks; i++) {
        json_t *disk =
            json_pack("{s:s, s:s*, s:s*, s:s*, s:s*, s:s*}", "disk", args->words[i], "since",
                      args->option[BEGIN_SINCE], "bitmap", args->option[BEGIN_BITMAP],
                      "bitmap-mode", args->option[BEGIN_BITMAP_MODE], "export",
                      args->option[BEGIN_EXPORT], "exportbitmap", args->option[BEGIN_EXPORTBITMAP]);

        if (json_array_append_new(disks, disk) != 0) {
            json_decref(disks);
            disks = NULL;
        }
    }
    return disks;
}

/* Adds what is given; false: no memory. */
static bool begin_more(json_t *arguments, json_int_t ttl_s, uint64_t speed,
                       const struct varve_args *args)
{
    if (args->option[BEGIN_TTL] && json_object_set_new(arguments, "ttl", json_integer(ttl_s)) != 0)
        return false;
    if (args->option[BEGIN_SPEED] &&
        json_object_set_new(arguments, "speed", json_integer((json_int_t)speed)) != 0)
        return false;
    if (args->option[BEGIN_RELEASE] && json_object_set_new(arguments, "release", json_true()) != 0)
        return false;
    if (args->option[BEGIN_FREEZE] && json_object_set_new(arguments, "freeze", json_true()) != 0)
        return false;
    return !args->option[BEGIN_ADAPTIVE] ||
           json_object_set_new(arguments, "adaptive", json_true()) == 0;
}

static int begin_arguments(const struct varve_args *args, json_t **arguments, struct varve_err *err)
{
    const char *ttl = args->option[BEGIN_TTL], *rate = args->option[BEGIN_SPEED];
    json_int_t seconds = ttl ? parse_seconds(ttl) : 0;
    uint64_t speed = 0;
    json_t *disks;

    if (args->nwords > 1 && (args->option[BEGIN_EXPORT] || args->option[BEGIN_EXPORTBITMAP]))
        return varve_cli_usage(err, "--export and --exportbitmap go with one disk only");
    if (args->option[BEGIN_SINCE] && args->option[BEGIN_BITMAP])
        return varve_cli_usage(err, "--since and --bitmap exclude each other");
    if (args->option[BEGIN_BITMAP_MODE] && !args->option[BEGIN_BITMAP])
        return varve_cli_usage(err, "--bitmap-mode goes with --bitmap");
    if (args->option[BEGIN_PRESERVE] && strcmp(args->option[BEGIN_PRESERVE], "all") != 0 &&
        strcmp(args->option[BEGIN_PRESERVE], "dirty") != 0)
        return varve_cli_usage(err, "--preserve %s: say all or dirty",
                               args->option[BEGIN_PRESERVE]);
    if (seconds < 0)
        return varve_cli_usage(err, "--ttl %s: not a time such as 3600, 90m or 1d", ttl);
    if (rate && (varve_parse_size(rate, &speed, NULL) < 0 || speed > INT64_MAX))
        return varve_cli_usage(err, "--speed %s: not a number of bytes such as 50M", rate);
    disks = begin_disks(args);
    *arguments = disks ? json_pack("{s:s*, s:s*, s:s*, s:o}", "id", args->option[BEGIN_ID],
                                   "checkpoint", args->option[BEGIN_CHECKPOINT], "preserve",
                                   args->option[BEGIN_PRESERVE], "disks", disks)
                       : NULL;
    if (*arguments && !begin_more(*arguments, seconds, speed, args)) {
        json_decref(*arguments);
        *arguments = NULL;
    }
    if (!*arguments)
        return varve_cli_usage(err, "names must be UTF-8");
    return 0;
}

/* Adds "uri" to each disk of a begun backup.  Without a listener there is none, and no failure: the
 * backup has begun. */
static void begin_add_uris(struct varve_control *c, json_t *backup)
{
    char *listener = NULL;
    json_t *disk;
    size_t i;

    if (varve_uri_listener(c, &listener, NULL) != 0)
        return;
    json_array_foreach(json_object_get(backup, "disks"), i, disk)
    {
        const char *export = json_string_value(json_object_get(disk, "export"));
        char *uri = export ? varve_uri_of_export(listener, export) : NULL;

        if (uri)
            json_object_set_new(disk, "uri", json_string(uri));
        free(uri);
    }
    free(listener);
}

static void begin_print(const json_t *backup)
{
    static const char *const told[] = {"disk", "export", "context", "uri"};
    const json_t *disk;
    size_t i;

    printf("backup   %s\n", varve_get_string(backup, "id"));
    json_array_foreach(json_object_get(backup, "disks"), i, disk)
    {
        uint64_t dirty = varve_get_number(disk, "dirty-bytes");
        char buf[VARVE_OUT_SIZE_LEN];

        for (size_t k = 0; k < sizeof(told) / sizeof(told[0]); k++) {
            printf("%-9s", told[k]);
            varve_out_text(stdout, varve_get_string(disk, told[k]));
            putchar('\n');
        }
        printf("dirty    %s (%" PRIu64 " bytes)\n", varve_out_size(buf, dirty), dirty);
    }
}

static int backup_begin(const struct varve_cli *cli, const struct varve_args *args,
                        struct varve_err *err)
{
    struct varve_control *c = NULL;
    json_t *arguments = NULL, *backup = NULL;
    int rc = begin_arguments(args, &arguments, err);

    if (rc != 0)
        return rc;
    rc = varve_control_open(cli->control, &c, err);
    if (rc != 0) {
        json_decref(arguments);
        return rc;
    }
    rc = varve_control_execute(c, "backup-begin", arguments, &backup, err);
    if (rc == 0) {
        const char *thaw = json_string_value(json_object_get(backup, "thaw-error"));

        if (thaw) { /* the backup is good, the guest may not be */
            fputs("varve: THE THAW FAILED, what was frozen may still be: ", stderr);
            varve_out_text(stderr, thaw);
            fputs("\n", stderr);
        }
        begin_add_uris(c, backup);
        if (cli->json)
            varve_out_json(backup);
        else
            begin_print(backup);
        json_decref(backup);
    }
    varve_control_close(c);
    return rc;
}

static int backup_end(const struct varve_cli *cli, const struct varve_args *args,
                      struct varve_err *err)
{
    bool failed = args->option[END_FAILED] != NULL;
    json_t *arguments = json_pack("{s:s, s:b}", "id", args->words[0], "success", !failed);
    json_t *value = NULL;
    int rc;

    if (!arguments)
        return varve_cli_usage(err, "ids of backups must be UTF-8");
    rc = varve_control_once(cli->control, "backup-end", arguments, &value, err);
    if (rc != 0)
        return rc;
    if (cli->json)
        varve_out_json(value);
    else
        printf("backup %s ended%s\n", args->words[0], failed ? " as failed" : "");
    json_decref(value);
    return 0;
}

static int backup_estimate(const struct varve_cli *cli, const struct varve_args *args,
                           struct varve_err *err)
{
    static const char *const heading[] = {"DISK",    "SIZE",         "DIRTY",
                                          "EXTENTS", "SCRATCH-FREE", "DIRTIED/S"};
    json_t *disks = json_array(), *value = NULL;
    const json_t *disk;
    struct varve_table t;
    bool utf8 = disks != NULL;
    size_t i;
    int rc;

    for (int w = 0; w < args->nwords && utf8; w++)
        utf8 =
            json_array_append_new(disks, json_pack("{s:s, s:s*, s:s*}", "disk", args->words[w],
                                                   "since", args->option[ESTIMATE_SINCE], "bitmap",
                                                   args->option[ESTIMATE_BITMAP])) == 0;
    if (!utf8) {
        json_decref(disks);
        return varve_cli_usage(err, "names must be UTF-8");
    }
    rc = varve_control_once(cli->control, "backup-estimate", json_pack("{s:o}", "disks", disks),
                            &value, err);
    if (rc != 0)
        return rc;
    if (cli->json) {
        varve_out_json(value);
    } else {
        varve_table_init(&t, 6, heading);
        json_array_foreach(json_object_get(value, "disks"), i, disk)
        {
            varve_table_add(&t, varve_get_string(disk, "disk"));
            varve_table_size(&t, json_object_get(disk, "size"));
            varve_table_size(&t, json_object_get(disk, "dirty-bytes"));
            varve_table_number(&t, json_object_get(disk, "extents"));
            varve_table_size(&t, json_object_get(disk, "scratch-free"));
            varve_table_size(&t, json_object_get(disk, "dirty-bytes-per-second"));
        }
        varve_table_print(&t);
    }
    json_decref(value);
    return 0;
}

/* The limit, "adaptive", or both; and where it has slowed down, to what. */
static const char *speed_text(char *out, size_t room, const json_t *backup)
{
    uint64_t speed = varve_get_number(backup, "speed");
    uint64_t now = varve_get_number(backup, "current-speed");
    bool differs = now != speed && json_object_get(backup, "current-speed");
    char limit[VARVE_OUT_SIZE_LEN], current[VARVE_OUT_SIZE_LEN];

    if (!json_is_true(json_object_get(backup, "adaptive")))
        return speed ? varve_out_size(out, speed) : NULL;
    varve_out_size(limit, speed);
    varve_out_size(current, now);
    snprintf(out, room, "%s%sadaptive%s%s", speed ? limit : "", speed ? ", " : "",
             differs ? ": " : "", differs ? current : "");
    return out;
}

static void list_row(struct varve_table *t, const json_t *backup, const json_t *disk)
{
    const char *reason = json_string_value(json_object_get(backup, "reason"));
    const char *since = json_string_value(json_object_get(disk, "since"));
    const char *bitmap = json_string_value(json_object_get(disk, "bitmap"));
    char when[VARVE_OUT_TIME_LEN];
    char state[256], speed[3 * VARVE_OUT_SIZE_LEN];

    snprintf(state, sizeof(state), "%s%s%s", varve_get_string(backup, "state"), reason ? ": " : "",
             reason ? reason : "");
    varve_table_add(t, varve_get_string(backup, "id"));
    varve_table_add(t, varve_out_time(when, (int64_t)varve_get_number(backup, "time")));
    varve_table_add(t, varve_get_string(disk, "disk"));
    varve_table_add(t, since ? since : bitmap ? bitmap : "(full)");
    varve_table_add(t, varve_get_string(disk, "export"));
    varve_table_size(t, json_object_get(disk, "dirty-bytes"));
    varve_table_size(t, json_object_get(disk, "bytes-read"));
    varve_table_size(t, json_object_get(disk, "bytes-released"));
    varve_table_number(t, json_object_get(disk, "clients"));
    varve_table_size(t, json_object_get(disk, "scratch-used"));
    varve_table_add(t, speed_text(speed, sizeof(speed), backup));
    varve_table_add(t, state);
}

static int backup_list(const struct varve_cli *cli, const struct varve_args *args,
                       struct varve_err *err)
{
    static const char *const heading[] = {"BACKUP",  "TIME",    "DISK",  "SINCE",
                                          "EXPORT",  "DIRTY",   "READ",  "RELEASED",
                                          "CLIENTS", "SCRATCH", "SPEED", "STATE"};
    json_t *backups = NULL;
    const json_t *backup, *disk;
    struct varve_table t;
    size_t i, j;
    int rc;

    (void)args;
    rc = varve_control_once(cli->control, "query-backups", NULL, &backups, err);
    if (rc != 0)
        return rc;
    if (cli->json) {
        varve_out_json(backups);
    } else if (json_array_size(backups) == 0) {
        printf("no backups\n");
    } else {
        varve_table_init(&t, 12, heading);
        t.state_column = 11;
        json_array_foreach(backups, i, backup)
            json_array_foreach(json_object_get(backup, "disks"), j, disk)
                list_row(&t, backup, disk);
        varve_table_print(&t);
    }
    json_decref(backups);
    return 0;
}

const struct varve_verb varve_backup_verbs[] = {
    {.name = "backup",
     .sub = "begin",
     .synopsis = "[options] DISK...",
     .summary = "Publishes this instant of the disks as NBD exports",
     .options = begin_options,
     .words_min = 1,
     .words_max = -1,
     .run = backup_begin},
    {.name = "backup",
     .sub = "end",
     .synopsis = "ID [--failed]",
     .summary = "Ends a backup: its exports go, its space is freed",
     .options = end_options,
     .words_min = 1,
     .words_max = 1,
     .run = backup_end},
    {.name = "backup",
     .sub = "estimate",
     .synopsis = "[--since NAME | --bitmap NAME] DISK...",
     .summary = "Tells what a backup would have to read, and begins none",
     .options = estimate_options,
     .words_min = 1,
     .words_max = -1,
     .run = backup_estimate},
    {.name = "backup",
     .sub = "list",
     .synopsis = "",
     .summary = "Lists backups, those that run and those that ended lately",
     .run = backup_list},
    {.name = NULL},
};
