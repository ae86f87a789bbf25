/* SPDX-License-Identifier: BSD-3-Clause
 *
 * varve bitmap: dirty bitmaps of a disk, as QEMU has them.
 */
#include "client/cli.h"
#include "client/control.h"
#include "client/out.h"
#include "lib/parse.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { ADD_GRANULARITY, ADD_DISABLED, ADD_TRANSIENT };

static const struct varve_option add_options[] = {
    {"granularity", "SIZE",
     "its readers' unit, a power of two from 512 to 2G, not less\n"
     "than the disk's block (default: 64K)"},
    {"disabled", NULL, "records nothing until 'bitmap enable'"},
    {"transient", NULL, "it is gone when the daemon ends"},
    {NULL, NULL, NULL},
};

enum { MERGE_FROM };

static const struct varve_option merge_options[] = {
    {"from", "DISK", "the NAMEs are bitmaps of this disk, of the same size"},
    {NULL, NULL, NULL},
};

/* Executes block-dirty-bitmap-VERB; arguments is stolen, NULL: something was not UTF-8. */
static int bitmap_change(const struct varve_cli *cli, const char *verb, json_t *arguments,
                         struct varve_err *err)
{
    char command[64];
    json_t *value = NULL;
    int rc;

    if (!arguments)
        return varve_cli_usage(err, "names of disks and bitmaps must be UTF-8");
    snprintf(command, sizeof(command), "block-dirty-bitmap-%s", verb);
    rc = varve_control_once(cli->control, command, arguments, &value, err);
    if (rc == 0 && cli->json)
        varve_out_json(value);
    json_decref(value);
    return rc;
}

static int bitmap_add(const struct varve_cli *cli, const struct varve_args *args,
                      struct varve_err *err)
{
    const char *size = args->option[ADD_GRANULARITY];
    uint64_t granularity = 0;
    json_t *arguments;
    int rc;

    if (size &&
        (varve_parse_size(size, &granularity, err) < 0 || granularity > INT64_MAX))
        return varve_cli_usage(err, "--granularity %s: not a size such as 64K or 1M", size);
    arguments = json_pack("{s:s, s:s}", "node", args->words[0], "name", args->words[1]);
    if (arguments && size)
        json_object_set_new(arguments, "granularity", json_integer((json_int_t)granularity));
    if (arguments && args->option[ADD_DISABLED])
        json_object_set_new(arguments, "disabled", json_true());
    if (arguments && args->option[ADD_TRANSIENT])
        json_object_set_new(arguments, "persistent", json_false());
    rc = bitmap_change(cli, "add", arguments, err);
    if (rc == 0 && !cli->json)
        printf("bitmap %s added to %s\n", args->words[1], args->words[0]);
    return rc;
}

static int bitmap_plain(const struct varve_cli *cli, const struct varve_args *args,
                        const char *verb, const char *done, struct varve_err *err)
{
    int rc = bitmap_change(
        cli, verb, json_pack("{s:s, s:s}", "node", args->words[0], "name", args->words[1]), err);

    if (rc == 0 && !cli->json)
        printf("bitmap %s of %s %s\n", args->words[1], args->words[0], done);
    return rc;
}

static int bitmap_remove(const struct varve_cli *cli, const struct varve_args *args,
                         struct varve_err *err)
{
    return bitmap_plain(cli, args, "remove", "removed", err);
}

static int bitmap_clear(const struct varve_cli *cli, const struct varve_args *args,
                        struct varve_err *err)
{
    return bitmap_plain(cli, args, "clear", "cleared", err);
}

static int bitmap_enable(const struct varve_cli *cli, const struct varve_args *args,
                         struct varve_err *err)
{
    return bitmap_plain(cli, args, "enable", "enabled", err);
}

static int bitmap_disable(const struct varve_cli *cli, const struct varve_args *args,
                          struct varve_err *err)
{
    return bitmap_plain(cli, args, "disable", "disabled", err);
}

static int bitmap_merge(const struct varve_cli *cli, const struct varve_args *args,
                        struct varve_err *err)
{
    const char *from = args->option[MERGE_FROM];
    json_t *list = json_array(), *arguments;
    int rc;

    for (int i = 2; i < args->nwords && list; i++) {
        json_t *source = from ? json_pack("{s:s, s:s}", "node", from, "name", args->words[i])
                              : json_string(args->words[i]);

        if (json_array_append_new(list, source) != 0) {
            json_decref(list);
            list = NULL;
        }
    }
    arguments = list ? json_pack("{s:s, s:s, s:o}", "node", args->words[0], "target",
                                 args->words[1], "bitmaps", list)
                     : NULL;
    rc = bitmap_change(cli, "merge", arguments, err);
    if (rc == 0 && !cli->json)
        printf("merged into bitmap %s of %s\n", args->words[1], args->words[0]);
    return rc;
}

static int bitmap_copy(const struct varve_cli *cli, const struct varve_args *args,
                       struct varve_err *err)
{
    int rc = bitmap_change(cli, "copy",
                           json_pack("{s:s, s:s, s:s}", "node", args->words[0], "name",
                                     args->words[1], "target", args->words[2]),
                           err);

    if (rc == 0 && !cli->json)
        printf("bitmap %s of %s copied to %s\n", args->words[1], args->words[0], args->words[2]);
    return rc;
}

/* --- list ----------------------------------------------------------------------------------- */

/* "recording, busy" and the like. */
static void list_state(const json_t *bitmap, char *buf, size_t len)
{
    const char *reason = json_string_value(json_object_get(bitmap, "reason"));
    bool recording = json_is_true(json_object_get(bitmap, "recording"));

    if (json_is_true(json_object_get(bitmap, "inconsistent")))
        snprintf(buf, len, "inconsistent: %s", reason ? reason : "it cannot be used");
    else
        snprintf(buf, len, "%s%s%s", recording ? "recording" : "disabled",
                 json_is_true(json_object_get(bitmap, "busy")) ? ", busy" : "",
                 json_is_false(json_object_get(bitmap, "persistent")) ? ", transient" : "");
}

/* Those of one node, or of all (only NULL). */
static void list_rows(struct varve_table *t, const json_t *nodes, const char *only)
{
    const json_t *node, *bitmap;
    size_t i, j;

    json_array_foreach(nodes, i, node)
    {
        const char *disk = varve_get_string(node, "node-name");

        if (only && strcmp(disk, only) != 0)
            continue;
        json_array_foreach(json_object_get(node, "dirty-bitmaps"), j, bitmap)
        {
            char state[512];

            list_state(bitmap, state, sizeof(state));
            varve_table_add(t, disk);
            varve_table_add(t, varve_get_string(bitmap, "name"));
            varve_table_size(t, json_object_get(bitmap, "count"));
            varve_table_size(t, json_object_get(bitmap, "granularity"));
            varve_table_add(t, state);
        }
    }
}

/* {"DISK": [bitmaps]}; without an entry of `only` if there is none. */
static json_t *list_json(const json_t *nodes, const char *only)
{
    json_t *o = json_object(), *node;
    size_t i;

    json_array_foreach(nodes, i, node)
    {
        const char *disk = varve_get_string(node, "node-name");

        if (!only || strcmp(disk, only) == 0)
            json_object_set(o, disk, json_object_get(node, "dirty-bitmaps"));
    }
    return o;
}

static int bitmap_list(const struct varve_cli *cli, const struct varve_args *args,
                       struct varve_err *err)
{
    static const char *const heading[] = {"DISK", "BITMAP", "DIRTY", "GRANULARITY", "STATE"};
    const char *only = args->nwords > 0 ? args->words[0] : NULL;
    json_t *nodes = NULL, *o;
    struct varve_table t;
    int rc = varve_control_once(cli->control, "query-named-block-nodes", NULL, &nodes, err);

    if (rc != 0)
        return rc;
    o = list_json(nodes, only);
    if (only && !json_object_get(o, only)) {
        rc = varve_err_set(err, ENODEV, "there is no disk '%s': varve status lists them", only);
    } else if (cli->json) {
        varve_out_json(o);
    } else {
        varve_table_init(&t, 5, heading);
        t.state_column = 4;
        list_rows(&t, nodes, only);
        varve_table_print(&t);
    }
    json_decref(o);
    json_decref(nodes);
    return rc;
}

const struct varve_verb varve_bitmap_verbs[] = {
    {.name = "bitmap",
     .sub = "add",
     .synopsis = "[options] DISK NAME",
     .summary = "Adds a dirty bitmap, which records from now on what is written",
     .options = add_options,
     .words_min = 2,
     .words_max = 2,
     .run = bitmap_add},
    {.name = "bitmap",
     .sub = "remove",
     .synopsis = "DISK NAME",
     .summary = "Removes a bitmap, also one that is inconsistent",
     .words_min = 2,
     .words_max = 2,
     .run = bitmap_remove},
    {.name = "bitmap",
     .sub = "clear",
     .synopsis = "DISK NAME",
     .summary = "Forgets what a bitmap has recorded; it goes on as it was",
     .words_min = 2,
     .words_max = 2,
     .run = bitmap_clear},
    {.name = "bitmap",
     .sub = "enable",
     .synopsis = "DISK NAME",
     .summary = "Records from now on, beside what the bitmap holds",
     .words_min = 2,
     .words_max = 2,
     .run = bitmap_enable},
    {.name = "bitmap",
     .sub = "disable",
     .synopsis = "DISK NAME",
     .summary = "Records no more; the bitmap keeps what it holds",
     .words_min = 2,
     .words_max = 2,
     .run = bitmap_disable},
    {.name = "bitmap",
     .sub = "merge",
     .synopsis = "[--from DISK] DISK TARGET [NAME...]",
     .summary = "Adds to TARGET what the other bitmaps hold",
     .options = merge_options,
     .words_min = 2,
     .words_max = -1,
     .run = bitmap_merge},
    {.name = "bitmap",
     .sub = "copy",
     .synopsis = "DISK NAME TARGET",
     .summary = "Makes TARGET, a bitmap of its own with the same contents",
     .words_min = 3,
     .words_max = 3,
     .run = bitmap_copy},
    {.name = "bitmap",
     .sub = "list",
     .synopsis = "[DISK]",
     .summary = "Lists bitmaps, and how much is dirty in each",
     .words_max = 1,
     .run = bitmap_list},
    {.name = NULL},
};
