/* SPDX-License-Identifier: BSD-3-Clause
 *
 * varve push: the daemon copies a point in time of a disk to a file or an NBD export.
 */
#include "client/job.h"
#include "client/out.h"
#include "lib/parse.h"

#include <limits.h>
#include <stdio.h>

enum {
    PUSH_SINCE,
    PUSH_BITMAP,
    PUSH_BITMAP_MODE,
    PUSH_CHECKPOINT,
    PUSH_OVERWRITE,
    PUSH_SPEED,
    PUSH_FREEZE,
    PUSH_ID,
    PUSH_NO_WAIT,
};

static const struct varve_option push_options[] = {
    {"since", "NAME",
     "only what changed since this checkpoint, onto a copy as of it\n"
     "(default: all of the disk, to a new file)"},
    {"bitmap", "NAME", "only what this bitmap holds"},
    {"bitmap-mode", "MODE",
     "on-success (default), always: the bitmap begins anew at this\n"
     "instant if the push succeeds; never: it goes on as it is"},
    {"checkpoint", "NAME", "names this instant, for the next push's --since"},
    {"overwrite", NULL, "all of the disk, onto the file or device that is there"},
    {"speed", "SIZE", "bytes per second that are read, e.g. 50M\n(default: no limit)"},
    {"freeze", NULL, "runs the daemon's freeze hook around this instant"},
    {"id", "ID", "the job's name (default: the daemon chooses)"},
    {"no-wait", NULL, "does not wait for the end: 'varve job list' shows it"},
    {NULL, NULL, NULL},
};

static int push_arguments(const struct varve_args *args, json_t **arguments, struct varve_err *err)
{
    const char *rate = args->option[PUSH_SPEED];
    uint64_t speed = 0;
    char path[PATH_MAX];

    if (rate && (varve_parse_size(rate, &speed, NULL) < 0 || speed > INT64_MAX))
        return varve_cli_usage(err, "--speed %s: not a number of bytes such as 50M", rate);
    *arguments = json_pack(
        "{s:s, s:s, s:s*, s:s*, s:s*, s:s*, s:s*, s:I}", "disk", args->words[0], "target",
        varve_job_path(args->words[1], path), "since", args->option[PUSH_SINCE], "bitmap",
        args->option[PUSH_BITMAP], "bitmap-mode", args->option[PUSH_BITMAP_MODE], "checkpoint",
        args->option[PUSH_CHECKPOINT], "job-id", args->option[PUSH_ID], "speed", (json_int_t)speed);
    if (!*arguments)
        return varve_cli_usage(err, "names and targets must be UTF-8");
    if (args->option[PUSH_OVERWRITE])
        json_object_set_new(*arguments, "overwrite", json_true());
    if (args->option[PUSH_FREEZE])
        json_object_set_new(*arguments, "freeze", json_true());
    return 0;
}

static int push(const struct varve_cli *cli, const struct varve_args *args, struct varve_err *err)
{
    bool wait = !args->option[PUSH_NO_WAIT];
    json_t *arguments, *job = NULL;
    char size[VARVE_OUT_SIZE_LEN];
    int rc = push_arguments(args, &arguments, err);

    if (rc != 0)
        return rc;
    rc = varve_job_follow(cli, "pushing", "backup-push", arguments, wait, &job, err);
    if (rc == 0 && cli->json)
        varve_out_json(job);
    else if (rc == 0 && wait)
        printf("%s: %s pushed\n", args->words[1],
               varve_out_size(size, varve_get_number(job, "current-progress")));
    else if (rc == 0)
        printf("job %s\n", varve_get_string(job, "id"));
    json_decref(job);
    return rc;
}

const struct varve_verb varve_push_verbs[] = {
    {.name = "push",
     .synopsis = "[options] DISK COPY",
     .summary = "Copies a disk as it is now, or its changes, to a file or an NBD export",
     .options = push_options,
     .words_min = 2,
     .words_max = 2,
     .run = push},
    {.name = NULL},
};
