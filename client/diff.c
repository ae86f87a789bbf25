/* SPDX-License-Identifier: BSD-3-Clause
 *
 * varve diff: fills a bitmap with what differs between a disk and an older copy of it.
 */
#include "client/cli.h"
#include "client/job.h"
#include "client/out.h"
#include "lib/parse.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

enum { DIFF_ID, DIFF_SPEED, DIFF_ON_ERROR, DIFF_RESIZE, DIFF_NO_WAIT };

static const struct varve_option diff_options[] = {
    {"id", "ID", "the job's name (default: the daemon chooses)"},
    {"speed", "SIZE", "bytes per second that it may compare, e.g. 50M\n(default: no limit)"},
    {"on-error", "report|dirty",
     "what cannot be read: report (default) ends the job, dirty\ncounts it as different"},
    {"resize", NULL, "REFERENCE may have another size: what it does not have\ncounts as different"},
    {"no-wait", NULL, "returns when the job has begun; 'varve job' has an eye on it"},
    {NULL, NULL, NULL},
};

static int diff_arguments(const struct varve_args *args, json_t **out, struct varve_err *err)
{
    const char *on_error = args->option[DIFF_ON_ERROR], *rate = args->option[DIFF_SPEED];
    char path[PATH_MAX];
    uint64_t speed = 0;

    if (on_error && strcmp(on_error, "report") != 0 && strcmp(on_error, "dirty") != 0)
        return varve_cli_usage(err, "--on-error %s: say report or dirty", on_error);
    if (rate && (varve_parse_size(rate, &speed, NULL) < 0 || speed > INT64_MAX))
        return varve_cli_usage(err, "--speed %s: not a number of bytes such as 50M", rate);
    *out = json_pack("{s:s*, s:s, s:s, s:s, s:s*, s:b}", "job-id", args->option[DIFF_ID], "node",
                     args->words[0], "name", args->words[1], "reference",
                     varve_job_path(args->words[2], path), "on-error", on_error, "resize",
                     args->option[DIFF_RESIZE] != NULL);
    if (!*out)
        return varve_cli_usage(err, "names must be UTF-8");
    if (rate)
        json_object_set_new(*out, "speed", json_integer((json_int_t)speed));
    return 0;
}

static int diff_run(const struct varve_cli *cli, const struct varve_args *args,
                    struct varve_err *err)
{
    bool wait = !args->option[DIFF_NO_WAIT];
    json_t *arguments = NULL, *job = NULL;
    int rc = diff_arguments(args, &arguments, err);

    if (rc != 0)
        return rc;
    rc = varve_job_follow(cli, args->words[0], "block-dirty-bitmap-diff", arguments, wait, &job,
                          err);
    if (rc == 0 && cli->json)
        varve_out_json(job);
    else if (rc == 0 && wait)
        printf("bitmap %s of %s has what differs from %s\n", args->words[1], args->words[0],
               args->words[2]);
    else if (rc == 0)
        printf("job      %s\n", varve_get_string(job, "id"));
    json_decref(job);
    return rc;
}

const struct varve_verb varve_diff_verbs[] = {
    {.name = "diff",
     .synopsis = "[options] DISK BITMAP REFERENCE",
     .summary = "Fills a bitmap with what differs between a disk and an older copy",
     .options = diff_options,
     .words_min = 3,
     .words_max = 3,
     .run = diff_run},
    {.name = NULL},
};
