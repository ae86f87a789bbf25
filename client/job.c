/* SPDX-License-Identifier: BSD-3-Clause
 *
 * varve job: the daemon's jobs; and what the verbs that begin one share.
 */
#include "client/job.h"

#include "client/control.h"
#include "client/out.h"
#include "client/progress.h"
#include "lib/parse.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LOOK_EVERY_MS 200

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

const char *varve_job_path(const char *word, char path[PATH_MAX])
{
    char here[PATH_MAX];
    int len;

    if (word[0] == '/' || (strncmp(word, "nbd", 3) == 0 && strstr(word, "://")))
        return word;
    if (!getcwd(here, sizeof(here)))
        return word;
    len = snprintf(path, PATH_MAX, "%s/%s", here, word);
    return len < PATH_MAX ? path : word;
}

/* --- following one -------------------------------------------------------------------------- */

/* *job: a new reference; NULL: there is none of that id. */
static int find_job(struct varve_control *c, const char *id, json_t **job, struct varve_err *err)
{
    json_t *jobs, *item;
    size_t i;
    int rc = varve_control_execute(c, "query-jobs", NULL, &jobs, err);

    *job = NULL;
    if (rc != 0)
        return rc;
    json_array_foreach(jobs, i, item)
    {
        if (strcmp(varve_get_string(item, "id"), id) == 0)
            *job = json_incref(item);
    }
    json_decref(jobs);
    return *job ? 0 : varve_err_set(err, ENOENT, "job '%s' was dismissed by somebody else", id);
}

static int judge(const json_t *job, struct varve_err *err)
{
    const char *error = json_string_value(json_object_get(job, "error"));

    if (json_is_true(json_object_get(job, "cancelled")))
        return varve_err_set(err, ECANCELED, "job '%s' was cancelled", varve_get_string(job, "id"));
    return error ? varve_err_set(err, EREMOTEIO, "%s", error) : 0;
}

/* Until there is something to be looked at again: an event came, or it is time. */
static int wait_a_little(struct varve_control *c, struct varve_err *err)
{
    json_t *message = NULL;
    int rc = varve_control_receive(c, LOOK_EVERY_MS, &message, err);

    json_decref(message);
    return rc < 0 ? rc : 0;
}

/* It may have ended by itself meanwhile: the next look tells. */
static void cancel(struct varve_control *c, const char *id)
{
    struct varve_err unsaid = VARVE_ERR_INIT;
    json_t *value = NULL;

    varve_control_execute(c, "job-cancel", json_pack("{s:s}", "id", id), &value, &unsaid);
    json_decref(value);
}

static int follow(struct varve_control *c, const char *what, const char *id, json_t **job,
                  struct varve_err *err)
{
    struct varve_progress bar;
    bool told = false;
    int rc;

    varve_progress_begin(&bar, what);
    for (;;) {
        if (interrupted && !told) {
            told = true;
            cancel(c, id);
        }
        rc = find_job(c, id, job, err);
        if (rc != 0 || strcmp(varve_get_string(*job, "status"), "concluded") == 0)
            break;
        varve_progress_draw(&bar, varve_get_number(*job, "current-progress"),
                            varve_get_number(*job, "total-progress"),
                            varve_get_number(*job, "current-progress"));
        json_decref(*job);
        *job = NULL;
        rc = wait_a_little(c, err);
        if (rc != 0)
            break;
    }
    varve_progress_end(&bar);
    if (rc == 0)
        return judge(*job, err);
    return rc == -ENOENT ? rc
                         : varve_err_prefix(err, "job '%s' goes on, 'varve job list' shows it", id);
}

int varve_job_follow(const struct varve_cli *cli, const char *what, const char *command,
                     json_t *arguments, bool wait, json_t **job, struct varve_err *err)
{
    struct sigaction mine = {.sa_handler = on_interrupt}, before;
    struct varve_control *c = NULL;
    json_t *begun = NULL;
    int rc;

    *job = NULL;
    sigaction(SIGINT, &mine, &before); /* before it begins: none is to be left running */
    rc = varve_control_open(cli->control, &c, err);
    if (rc != 0)
        json_decref(arguments);
    else
        rc = varve_control_execute(c, command, arguments, &begun, err);
    if (rc == 0 && wait)
        rc = follow(c, what, varve_get_string(begun, "id"), job, err);
    else if (rc == 0)
        rc = find_job(c, varve_get_string(begun, "id"), job, err);
    json_decref(begun);
    varve_control_close(c);
    sigaction(SIGINT, &before, NULL);
    return rc;
}

/* --- verbs ---------------------------------------------------------------------------------- */

static const char *state_text(char *out, size_t room, const json_t *job)
{
    const char *error = json_string_value(json_object_get(job, "error"));
    const json_t *left = json_object_get(job, "time-left");

    if (error)
        snprintf(out, room, "failed: %s", error);
    else if (json_is_true(json_object_get(job, "cancelled")))
        snprintf(out, room, "cancelled");
    else if (left)
        snprintf(out, room, "%s, %" PRIu64 " s left", varve_get_string(job, "status"),
                 varve_get_number(job, "time-left"));
    else
        snprintf(out, room, "%s", varve_get_string(job, "status"));
    return out;
}

static int job_list(const struct varve_cli *cli, const struct varve_args *args,
                    struct varve_err *err)
{
    static const char *const heading[] = {"JOB",  "TIME", "TYPE",  "DISK", "BITMAP",
                                          "DONE", "OF",   "SPEED", "RATE", "STATE"};
    json_t *jobs = NULL;
    const json_t *job;
    struct varve_table t;
    size_t i;
    int rc = varve_control_once(cli->control, "query-jobs", NULL, &jobs, err);

    (void)args;
    if (rc != 0)
        return rc;
    if (cli->json) {
        varve_out_json(jobs);
    } else if (json_array_size(jobs) == 0) {
        printf("no jobs\n");
    } else {
        varve_table_init(&t, 10, heading);
        t.state_column = 9;
        json_array_foreach(jobs, i, job)
        {
            char when[VARVE_OUT_TIME_LEN], speed[VARVE_OUT_SIZE_LEN], state[512];
            uint64_t limit = varve_get_number(job, "speed");

            varve_table_add(&t, varve_get_string(job, "id"));
            varve_table_add(&t, varve_out_time(when, (int64_t)varve_get_number(job, "time")));
            varve_table_add(&t, varve_get_string(job, "type"));
            varve_table_add(&t, varve_get_string(job, "disk"));
            varve_table_add(&t, json_string_value(json_object_get(job, "bitmap")));
            varve_table_size(&t, json_object_get(job, "current-progress"));
            varve_table_size(&t, json_object_get(job, "total-progress"));
            varve_table_add(&t, limit ? varve_out_size(speed, limit) : NULL);
            varve_table_size(&t, json_object_get(job, "rate"));
            varve_table_add(&t, state_text(state, sizeof(state), job));
        }
        varve_table_print(&t);
    }
    json_decref(jobs);
    return 0;
}

static int job_tell(const struct varve_cli *cli, const char *command, json_t *arguments,
                    struct varve_err *err)
{
    json_t *value = NULL;
    int rc;

    if (!arguments)
        return varve_cli_usage(err, "ids of jobs must be UTF-8");
    rc = varve_control_once(cli->control, command, arguments, &value, err);
    if (rc == 0 && cli->json)
        varve_out_json(value);
    json_decref(value);
    return rc;
}

static int job_cancel(const struct varve_cli *cli, const struct varve_args *args,
                      struct varve_err *err)
{
    return job_tell(cli, "job-cancel", json_pack("{s:s}", "id", args->words[0]), err);
}

static int job_pause(const struct varve_cli *cli, const struct varve_args *args,
                     struct varve_err *err)
{
    return job_tell(cli, "job-pause", json_pack("{s:s}", "id", args->words[0]), err);
}

static int job_resume(const struct varve_cli *cli, const struct varve_args *args,
                      struct varve_err *err)
{
    return job_tell(cli, "job-resume", json_pack("{s:s}", "id", args->words[0]), err);
}

static int job_dismiss(const struct varve_cli *cli, const struct varve_args *args,
                       struct varve_err *err)
{
    return job_tell(cli, "job-dismiss", json_pack("{s:s}", "id", args->words[0]), err);
}

static int job_speed(const struct varve_cli *cli, const struct varve_args *args,
                     struct varve_err *err)
{
    uint64_t speed = 0;

    if (varve_parse_size(args->words[1], &speed, NULL) < 0 || speed > INT64_MAX)
        return varve_cli_usage(err, "%s: not a number of bytes such as 50M", args->words[1]);
    return job_tell(cli, "block-job-set-speed",
                    json_pack("{s:s, s:I}", "device", args->words[0], "speed", (json_int_t)speed),
                    err);
}

const struct varve_verb varve_job_verbs[] = {
    {.name = "job",
     .sub = "list",
     .synopsis = "",
     .summary = "Lists the daemon's jobs: those that run, and the last that have ended",
     .run = job_list},
    {.name = "job",
     .sub = "pause",
     .synopsis = "ID",
     .summary = "Lets a job rest, also over a restart of the daemon",
     .words_min = 1,
     .words_max = 1,
     .run = job_pause},
    {.name = "job",
     .sub = "resume",
     .synopsis = "ID",
     .summary = "Lets a paused job go on",
     .words_min = 1,
     .words_max = 1,
     .run = job_resume},
    {.name = "job",
     .sub = "cancel",
     .synopsis = "ID",
     .summary = "Ends a job; what it did counts for nothing",
     .words_min = 1,
     .words_max = 1,
     .run = job_cancel},
    {.name = "job",
     .sub = "dismiss",
     .synopsis = "ID",
     .summary = "Forgets a job that has ended",
     .words_min = 1,
     .words_max = 1,
     .run = job_dismiss},
    {.name = "job",
     .sub = "speed",
     .synopsis = "ID SIZE",
     .summary = "Limits a job to so many bytes per second; 0: no limit",
     .words_min = 2,
     .words_max = 2,
     .run = job_speed},
    {.name = NULL},
};
