/* SPDX-License-Identifier: BSD-3-Clause
 *
 * varve checkpoint: names for instants of one or more disks.
 */
#include "client/cli.h"
#include "client/control.h"
#include "client/out.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* {"name": words[0], "disks": [the others]}; without others no "disks". */
static json_t *checkpoint_arguments(const struct varve_args *args)
{
    json_t *arguments = json_pack("{s:s}", "name", args->words[0]);
    json_t *disks = json_array();
    int rc = arguments && disks ? 0 : -1;

    for (int i = 1; i < args->nwords && rc == 0; i++)
        rc = json_array_append_new(disks, json_string(args->words[i]));
    if (rc == 0 && args->nwords > 1)
        rc = json_object_set(arguments, "disks", disks);
    json_decref(disks);
    if (rc != 0) {
        json_decref(arguments);
        return NULL;
    }
    return arguments;
}

static int checkpoint_change(const struct varve_cli *cli, const char *command,
                             const struct varve_args *args, json_t **value, struct varve_err *err)
{
    json_t *arguments = checkpoint_arguments(args);
    int rc;

    /* Of create and delete, only the latter has an option. */
    if (arguments && args->option[0] &&
        json_object_set_new(arguments, "exported", json_true()) < 0) {
        json_decref(arguments);
        arguments = NULL;
    }
    if (!arguments)
        return varve_cli_usage(err, "names of checkpoints and disks must be UTF-8");
    rc = varve_control_once(cli->control, command, arguments, value, err);
    if (rc == 0 && cli->json)
        varve_out_json(*value);
    return rc;
}

static int checkpoint_create(const struct varve_cli *cli, const struct varve_args *args,
                             struct varve_err *err)
{
    json_t *value = NULL;
    int rc = checkpoint_change(cli, "checkpoint-create", args, &value, err);

    if (rc == 0 && !cli->json) {
        char when[VARVE_OUT_TIME_LEN];

        printf("checkpoint %s at %s:", args->words[0],
               varve_out_time(when, (int64_t)varve_get_number(value, "time")));
        for (int i = 1; i < args->nwords; i++)
            printf("%s %s", i > 1 ? "," : "", args->words[i]);
        printf("\n");
    }
    json_decref(value);
    return rc;
}

static const struct varve_option delete_options[] = {
    {"exported", NULL,
     "also give up what is kept for its exports: their files can\nno longer be imported"},
    {NULL, NULL, NULL},
};

static int checkpoint_delete(const struct varve_cli *cli, const struct varve_args *args,
                             struct varve_err *err)
{
    json_t *value = NULL;
    int rc = checkpoint_change(cli, "checkpoint-delete", args, &value, err);

    if (rc == 0 && !cli->json)
        printf("checkpoint %s deleted%s\n", args->words[0],
               args->option[0] ? ", and its exports given up" : "");
    json_decref(value);
    return rc;
}

/* NAME DISK FILE */
static int checkpoint_file(const struct varve_cli *cli, const char *command,
                           const struct varve_args *args, json_t **value, struct varve_err *err)
{
    json_t *arguments;
    char *file;
    int rc = varve_control_absolute(args->words[2], &file, err);

    if (rc < 0)
        return rc;
    arguments =
        json_pack("{s:s, s:s, s:s}", "name", args->words[0], "disk", args->words[1], "file", file);
    free(file);
    if (!arguments)
        return varve_cli_usage(err, "names of checkpoints, disks and files must be UTF-8");
    rc = varve_control_once(cli->control, command, arguments, value, err);
    if (rc == 0 && cli->json)
        varve_out_json(*value);
    return rc;
}

static int checkpoint_export(const struct varve_cli *cli, const struct varve_args *args,
                             struct varve_err *err)
{
    json_t *value = NULL;
    int rc = checkpoint_file(cli, "checkpoint-export", args, &value, err);

    if (rc == 0 && !cli->json) {
        char when[VARVE_OUT_TIME_LEN], size[VARVE_OUT_SIZE_LEN];

        printf("checkpoint %s of %s, made at %s, and the %s that changed since are in %s\n",
               args->words[0], args->words[1],
               varve_out_time(when, (int64_t)varve_get_number(value, "time")),
               varve_out_size(size, varve_get_number(value, "dirty-bytes")),
               varve_get_string(value, "file"));
    }
    json_decref(value);
    return rc;
}

static int checkpoint_import(const struct varve_cli *cli, const struct varve_args *args,
                             struct varve_err *err)
{
    json_t *value = NULL;
    int rc = checkpoint_file(cli, "checkpoint-import", args, &value, err);

    if (rc == 0 && !cli->json) {
        char when[VARVE_OUT_TIME_LEN];

        printf("checkpoint %s of %s, made at %s, is there again\n", args->words[0], args->words[1],
               varve_out_time(when, (int64_t)varve_get_number(value, "time")));
    }
    json_decref(value);
    return rc;
}

static void checkpoint_table(const json_t *checkpoints)
{
    static const char *const heading[] = {"CHECKPOINT", "TIME", "DISK", "EPOCH", "DIRTY", "STATE"};
    struct varve_table t;
    const json_t *checkpoint, *disk;
    size_t i, j;

    varve_table_init(&t, 6, heading);
    t.state_column = 5;
    json_array_foreach(checkpoints, i, checkpoint)
    {
        char when[VARVE_OUT_TIME_LEN];

        varve_out_time(when, (int64_t)varve_get_number(checkpoint, "time"));
        json_array_foreach(json_object_get(checkpoint, "disks"), j, disk)
        {
            const char *reason = json_string_value(json_object_get(disk, "reason"));
            bool usable = json_is_true(json_object_get(disk, "usable"));

            varve_table_add(&t, varve_get_string(checkpoint, "name"));
            varve_table_add(&t, when);
            varve_table_add(&t, varve_get_string(disk, "disk"));
            varve_table_number(&t, json_object_get(disk, "epoch"));
            if (usable || varve_get_number(disk, "dirty-bytes") > 0)
                varve_table_size(&t, json_object_get(disk, "dirty-bytes"));
            else
                varve_table_add(&t, "-");
            varve_table_add(&t, usable ? "usable" : reason ? reason : "not usable");
        }
    }
    varve_table_print(&t);
}

static void exports_table(const json_t *checkpoints)
{
    static const char *const heading[] = {"CHECKPOINT", "TIME", "DISK", "EXPORTED", "STATE"};
    struct varve_table t;
    const json_t *checkpoint, *disk;
    size_t i, j;

    varve_table_init(&t, 5, heading);
    json_array_foreach(checkpoints, i, checkpoint)
    {
        char when[VARVE_OUT_TIME_LEN];

        json_array_foreach(json_object_get(checkpoint, "disks"), j, disk)
        {
            bool deleted = json_is_true(json_object_get(disk, "deleted"));

            varve_table_add(&t, varve_get_string(checkpoint, "name"));
            varve_table_add(&t,
                            varve_out_time(when, (int64_t)varve_get_number(checkpoint, "time")));
            varve_table_add(&t, varve_get_string(disk, "disk"));
            varve_table_add(&t,
                            varve_out_time(when, (int64_t)varve_get_number(disk, "exported-time")));
            varve_table_add(&t, deleted ? "deleted, can be imported" : "there");
        }
    }
    varve_table_print(&t);
}

static const struct varve_option list_options[] = {
    {"exported", NULL, "list what is kept for exported checkpoints instead"},
    {NULL, NULL, NULL},
};

static int checkpoint_list(const struct varve_cli *cli, const struct varve_args *args,
                           struct varve_err *err)
{
    const char *disk = args->nwords > 0 ? args->words[0] : NULL;
    bool exported = args->option[0] != NULL;
    json_t *arguments = disk ? json_pack("{s:s}", "disk", disk) : NULL;
    json_t *checkpoints = NULL;
    int rc;

    if (exported && !disk)
        arguments = json_pack("{s:b}", "exported", 1);
    else if (exported && arguments)
        json_object_set_new(arguments, "exported", json_true());
    if (disk && !arguments)
        return varve_cli_usage(err, "names of disks must be UTF-8");
    rc = varve_control_once(cli->control, "query-checkpoints", arguments, &checkpoints, err);
    if (rc != 0)
        return rc;
    if (cli->json)
        varve_out_json(checkpoints);
    else if (json_array_size(checkpoints) == 0)
        printf(exported ? "no exported checkpoints\n" : "no checkpoints\n");
    else if (exported)
        exports_table(checkpoints);
    else
        checkpoint_table(checkpoints);
    json_decref(checkpoints);
    return 0;
}

const struct varve_verb varve_checkpoint_verbs[] = {
    {.name = "checkpoint",
     .sub = "create",
     .synopsis = "NAME DISK...",
     .summary = "Names this instant of the disks, the same one for all of them",
     .words_min = 2,
     .words_max = -1,
     .run = checkpoint_create},
    {.name = "checkpoint",
     .sub = "delete",
     .synopsis = "[--exported] NAME [DISK...]",
     .summary = "Forgets the checkpoint; what changed since falls to the one before it",
     .options = delete_options,
     .words_min = 1,
     .words_max = -1,
     .run = checkpoint_delete},
    {.name = "checkpoint",
     .sub = "list",
     .synopsis = "[--exported] [DISK]",
     .summary = "Lists checkpoints, oldest first, and how much changed since each",
     .options = list_options,
     .words_max = 1,
     .run = checkpoint_list},
    {.name = "checkpoint",
     .sub = "export",
     .synopsis = "NAME DISK FILE",
     .summary = "Writes the checkpoint into a new file, to be kept with the backups",
     .words_min = 3,
     .words_max = 3,
     .run = checkpoint_export},
    {.name = "checkpoint",
     .sub = "import",
     .synopsis = "NAME DISK FILE",
     .summary = "Brings the checkpoint back from such a file",
     .words_min = 3,
     .words_max = 3,
     .run = checkpoint_import},
    {.name = NULL},
};
