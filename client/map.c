/* SPDX-License-Identifier: BSD-3-Clause
 *
 * varve map: block status as a picture or as JSON.
 */
#include "client/cli.h"
#include "client/map-draw.h"
#include "client/nbd.h"
#include "client/out.h"
#include "client/uri.h"
#include "include/varve.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAP_SINCE, MAP_CONTEXT };

static const struct varve_option map_options[] = {
    {"since", "NAME",
     "what changed since this checkpoint or bitmap of varved's:\n"
     "the export NAME@BASE"},
    {"context", "CTX",
     "the meta context to show (default: the export's first dirty\n"
     "bitmap, else base:allocation)"},
    {NULL, NULL, NULL},
};

/* The export under which the newest running backup publishes the disk; NULL: none.  Borrowed from
 * backups. */
static const char *newest_export(const json_t *backups, const char *disk)
{
    const json_t *backup, *one;
    const char *export = NULL;
    double newest = 0;
    size_t i, j;

    json_array_foreach(backups, i, backup)
    {
        const char *state = varve_get_string(backup, "state");
        double begun = json_number_value(json_object_get(backup, "time"));

        if ((strcmp(state, "running") != 0 && strcmp(state, "degraded") != 0) || begun < newest)
            continue;
        json_array_foreach(json_object_get(backup, "disks"), j, one)
        {
            if (strcmp(varve_get_string(one, "disk"), disk) != 0)
                continue;
            export = json_string_value(json_object_get(one, "export"));
            newest = begun;
        }
    }
    return export;
}

static int uri_of_disk(const struct varve_cli *cli, const char *disk, char **uri,
                       struct varve_err *err)
{
    struct varve_control *c;
    json_t *backups = NULL;
    char *listener = NULL;
    const char *export;
    int rc = varve_control_open(cli->control, &c, err);

    if (rc != 0)
        return rc;
    rc = varve_control_execute(c, "query-backups", NULL, &backups, err);
    if (rc == 0)
        rc = varve_uri_listener(c, &listener, err);
    if (rc == 0) {
        export = newest_export(backups, disk);
        *uri = export ? varve_uri_of_export(listener, export) : NULL;
        if (!*uri)
            rc = varve_err_set(err, ENOENT,
                               "disk %s has no running backup to show: 'varve backup "
                               "begin %s' begins one",
                               disk, disk);
    }
    free(listener);
    json_decref(backups);
    varve_control_close(c);
    return rc;
}

/* Which context is wanted, a new string. */
static int choose_context(struct nbd_handle *h, const struct varve_args *args, char **context,
                          struct varve_err *err)
{
    const char *since = args->option[MAP_SINCE];
    char *comma;
    int rc = 0;

    *context = NULL;
    if (since) {
        rc = asprintf(context, "%s%s", VARVE_CTX_DIRTY_PREFIX, since);
    } else if (args->option[MAP_CONTEXT]) {
        *context = strdup(args->option[MAP_CONTEXT]);
    } else {
        *context = varve_nbd_list(h, VARVE_CTX_DIRTY_PREFIX);
        comma = *context ? strstr(*context, ", " VARVE_CTX_DIRTY_PREFIX) : NULL;
        if (comma)
            *comma = '\0';
        if (!*context)
            *context = strdup(VARVE_CTX_ALLOCATION);
    }
    if (rc < 0 || !*context)
        return varve_err_set(err, ENOMEM, "no memory");
    return 0;
}

static const char *describe(const char *context, uint64_t flags, char buf[48])
{
    static const char *const allocation[] = {"data", "hole", "zero", "hole,zero"};
    static const char *const dirty[] = {"clean", "dirty"};

    if (strcmp(context, VARVE_CTX_ALLOCATION) == 0)
        return flags < 4 ? allocation[flags] : NULL;
    if (strncmp(context, VARVE_CTX_DIRTY_PREFIX, strlen(VARVE_CTX_DIRTY_PREFIX)) == 0)
        return flags < 2 ? dirty[flags] : NULL;
    if (strcmp(context, "qemu:allocation-depth") == 0) {
        if (flags < 2)
            return flags ? "local" : "absent";
        snprintf(buf, 48, "backing depth %" PRIu64, flags);
        return buf;
    }
    return NULL;
}

/* One run as nbdinfo --map --json writes it. */
static void print_run(const char *context, const struct varve_status_run *run)
{
    char buf[48];
    const char *description = describe(context, run->flags[0], buf);

    printf("%s{ \"offset\": %" PRIu64 ", \"length\": %" PRIu64 ", \"type\": %" PRIu64,
           run->off ? ",\n" : "[\n", run->off, run->len, run->flags[0]);
    if (description)
        printf(", \"description\": \"%s\"", description);
    printf("}");
}

/* Walks the whole export; equal neighbours come as one. */
static int map_walk(struct nbd_handle *h, const char *const ctx[2], uint64_t export_size,
                    struct varve_picture *picture, struct varve_err *err)
{
    struct varve_status_run held = {0}, run;
    struct varve_status status;
    int rc = 0;

    varve_status_init(&status, h, ctx, export_size);
    while (held.off + held.len < export_size && rc == 0) {
        rc = varve_status_get(&status, h, held.off + held.len, err);
        while (rc == 0 && varve_status_next(&status, &run)) {
            if (picture)
                varve_picture_add(picture, &run);
            if (held.len > 0 && held.flags[0] == run.flags[0]) {
                held.len += run.len;
                continue;
            }
            if (held.len > 0 && !picture)
                print_run(ctx[0], &held);
            held = run;
        }
    }
    if (rc == 0 && !picture) {
        if (held.len > 0)
            print_run(ctx[0], &held);
        else
            printf("[");
        printf("\n]\n");
    }
    varve_status_fini(&status);
    return rc;
}

static int map_export(const struct varve_cli *cli, const struct varve_nbd_target *target,
                      const struct varve_args *args, struct varve_err *err)
{
    const char *ctx[2] = {NULL, NULL};
    struct varve_picture picture;
    struct nbd_handle *h = NULL;
    char *context = NULL;
    int64_t export_size;
    bool dirty;
    int rc = varve_nbd_dial(&h, target, NULL, err);

    if (rc != 0)
        return rc;
    rc = choose_context(h, args, &context, err);
    if (rc != 0)
        goto out;
    dirty = varve_nbd_is_dirty_context(context);
    if (!dirty && !cli->json && strcmp(context, VARVE_CTX_ALLOCATION) != 0) {
        rc =
            varve_err_set(err, ENOTSUP, "there is no picture of context '%s': use --json", context);
        goto out;
    }
    ctx[0] = context;
    if (dirty && !cli->json)
        ctx[1] = VARVE_CTX_ALLOCATION;
    rc = varve_nbd_go(h, target, ctx, NULL, err);
    if (rc != 0)
        goto out;
    export_size = nbd_get_size(h);
    if (export_size < 0) {
        rc = varve_nbd_failed(err, target->uri);
        goto out;
    }
    if (cli->json) {
        rc = map_walk(h, ctx, (uint64_t)export_size, NULL, err);
        goto out;
    }
    rc = varve_picture_init(&picture, context, dirty, (uint64_t)export_size, err);
    if (rc != 0)
        goto out;
    rc = map_walk(h, ctx, (uint64_t)export_size, &picture, err);
    if (rc == 0)
        varve_picture_print(&picture);
    varve_picture_fini(&picture);
out:
    varve_nbd_close(h);
    free(context);
    return rc;
}

static int map_run(const struct varve_cli *cli, const struct varve_args *args,
                   struct varve_err *err)
{
    struct varve_nbd_target target = {.uri = args->words[0], .since = args->option[MAP_SINCE]};
    char *uri = NULL;
    int rc;

    if (args->option[MAP_SINCE] && args->option[MAP_CONTEXT])
        return varve_cli_usage(err, "--context and --since exclude each other");
    if (!strstr(args->words[0], "://")) {
        rc = uri_of_disk(cli, args->words[0], &uri, err);
        if (rc != 0)
            return rc;
        target.uri = uri;
    }
    rc = map_export(cli, &target, args, err);
    free(uri);
    return rc;
}

const struct varve_verb varve_map_verbs[] = {
    {.name = "map",
     .synopsis = "DISK|URI [--since NAME | --context CTX]",
     .summary = "Draws what changed on a disk with a running backup, or on an NBD export",
     .options = map_options,
     .words_min = 1,
     .words_max = 1,
     .run = map_run},
    {.name = NULL},
};
