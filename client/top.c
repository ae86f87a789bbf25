/* SPDX-License-Identifier: BSD-3-Clause
 *
 * varve top: asks the daemon every interval, and draws what it told.
 *
 *     tick ──▶ four questions ──▶ four answers ──▶ picture ──▶ tick …
 *
 * While an answer is out keys and the terminal's size are heeded all the same.  A daemon that goes
 * away is tried again at the next tick: it is restarted when it is upgraded.
 */
#include "client/top.h"

#include "client/cli.h"
#include "client/control.h"
#include "client/out.h"
#include "client/screen.h"
#include "lib/parse.h"
#include "lib/text.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define INTERVAL_MS     2000
#define INTERVAL_MIN_MS 100
#define ANSWER_MS       10000

enum { TOP_INTERVAL, TOP_COUNT };

struct top {
    const char *path;
    struct varve_control *control; /* NULL: the daemon is away */
    unsigned interval_ms;
    uint64_t left; /* pictures; 0: without end */
    bool json;
    bool colour;
    struct varve_top_look now, before, coming;
    int asked;       /* answers that are out */
    int64_t tick_ms; /* when to ask next, or to give up while answers are out */
    char *picture;   /* the last one */
};

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* --- asking --------------------------------------------------------------------------------- */

static const char *const questions[VARVE_TOP_PARTS] = {
    [VARVE_TOP_DISKS] = "query-disks",
    [VARVE_TOP_BACKUPS] = "query-backups",
    [VARVE_TOP_JOBS] = "query-jobs",
    [VARVE_TOP_SERVER] = "query-nbd-server",
};

static int top_ask(struct top *top, struct varve_err *err)
{
    int rc = 0;

    top->tick_ms = now_ms() + ANSWER_MS;
    if (!top->control)
        rc = varve_control_open(top->path, &top->control, err);
    for (int i = 0; i < VARVE_TOP_PARTS && rc == 0; i++) {
        json_t *question = json_pack("{s:s, s:i}", "execute", questions[i], "id", i);

        rc = question ? varve_control_send(top->control, question, err)
                      : varve_err_set(err, ENOMEM, "no memory");
        json_decref(question);
    }
    top->asked = VARVE_TOP_PARTS;
    return rc;
}

/* 1: all is told. */
static int top_hear(struct top *top, struct varve_err *err)
{
    while (top->asked > 0) {
        json_t *message = NULL, *id;
        int rc = varve_control_receive(top->control, 0, &message, err);

        if (rc <= 0)
            return rc;
        id = json_object_get(message, "id");
        if (json_is_integer(id) && json_integer_value(id) >= 0 &&
            json_integer_value(id) < VARVE_TOP_PARTS) {
            json_t **part = &top->coming.parts[json_integer_value(id)];
            json_t *error = json_object_get(message, "error");

            json_decref(*part);
            *part = error ? json_pack("{s:O}", "error", error)
                          : json_incref(json_object_get(message, "return"));
            top->asked--;
        }
        json_decref(message);
    }
    return 1;
}

/* --- showing -------------------------------------------------------------------------------- */

static int top_show_text(struct top *top, char *picture, struct varve_err *err)
{
    if (!picture)
        return varve_err_set(err, ENOMEM, "no memory");
    free(top->picture);
    top->picture = picture;
    varve_screen_show(picture);
    return 0;
}

static int top_show_json(const struct top *top, struct varve_err *err)
{
    json_t *o = json_pack("{s:I, s:O?, s:O?, s:O?, s:O?}", "time", (json_int_t)top->now.time,
                          "disks", top->now.parts[VARVE_TOP_DISKS], "backups",
                          top->now.parts[VARVE_TOP_BACKUPS], "jobs", top->now.parts[VARVE_TOP_JOBS],
                          "server", top->now.parts[VARVE_TOP_SERVER]);

    if (!o)
        return varve_err_set(err, ENOMEM, "no memory");
    json_dumpf(o, stdout, 0);
    putchar('\n');
    fflush(stdout);
    json_decref(o);
    return 0;
}

/* What was told last becomes what is shown. */
static int top_turn(struct top *top, struct varve_err *err)
{
    varve_top_look_fini(&top->before);
    top->before = top->now;
    top->now = top->coming;
    top->coming = (struct varve_top_look){.time = 0};
    top->now.time = (int64_t)time(NULL);
    top->now.at_ms = now_ms();
    if (top->json)
        return top_show_json(top, err);
    return top_show_text(top, varve_top_draw(&top->now, &top->before, top->colour), err);
}

/* The daemon is away; what it told last is of no worth for rates. */
static int top_away(struct top *top, struct varve_err *err)
{
    char when[VARVE_OUT_TIME_LEN], *picture = NULL;

    varve_control_close(top->control);
    top->control = NULL;
    top->asked = 0;
    varve_top_look_fini(&top->coming);
    varve_top_look_fini(&top->now);
    if (top->json)
        return 0;
    varve_text_harmless(err->msg);
    if (asprintf(&picture, "%s  %s; trying again\n", varve_out_time(when, (int64_t)time(NULL)),
                 err->msg) < 0)
        picture = NULL;
    return top_show_text(top, picture, err);
}

/* --- turning -------------------------------------------------------------------------------- */

/* rc > 0: all answers are here; < 0: they will not come.  1: that was the last picture. */
static int top_end_of_tick(struct top *top, int rc, struct varve_err *err)
{
    rc = rc > 0 ? top_turn(top, err) : top_away(top, err);
    top->tick_ms = now_ms() + top->interval_ms;
    if (rc == 0 && top->left > 0 && --top->left == 0)
        return 1;
    return rc;
}

/* Something may have happened.  1: that was the last picture. */
static int top_step(struct top *top, struct varve_err *err)
{
    bool late = now_ms() >= top->tick_ms;
    int rc;

    if (top->asked > 0) {
        rc = top_hear(top, err);
        if (rc == 0 && late)
            rc = varve_err_set(err, ETIMEDOUT, "the daemon at %s does not answer", top->path);
    } else {
        rc = late ? top_ask(top, err) : 0;
    }
    return rc == 0 ? 0 : top_end_of_tick(top, rc, err);
}

static int top_loop(struct top *top, struct varve_err *err)
{
    int rc = 0;

    while (rc == 0 && !ferror(stdout)) {
        int64_t left_ms = top->tick_ms - now_ms();
        int fd = top->asked > 0 ? varve_control_fd(top->control) : -1;

        switch (varve_screen_wait(left_ms > 0 ? (int)left_ms : 0, fd)) {
        case VARVE_SCREEN_QUIT:
            return 0;
        case VARVE_SCREEN_REDRAW:
            if (top->picture)
                varve_screen_show(top->picture);
            break;
        case VARVE_SCREEN_REFRESH:
            if (top->asked == 0)
                top->tick_ms = now_ms();
            break;
        default:
            break;
        }
        rc = top_step(top, err);
    }
    return rc < 0 ? rc : 0; /* main() tells of the standard output */
}

static int top_options(struct top *top, const struct varve_args *args, struct varve_err *err)
{
    const char *interval = args->option[TOP_INTERVAL], *count = args->option[TOP_COUNT];

    top->interval_ms = INTERVAL_MS;
    if (interval && (varve_parse_time_ms(interval, &top->interval_ms, NULL) < 0 ||
                     top->interval_ms < INTERVAL_MIN_MS))
        return varve_cli_usage(err, "--interval %s: at least %d ms, such as 5s", interval,
                               INTERVAL_MIN_MS);
    if (count && (count[strspn(count, "0123456789")] != '\0' ||
                  varve_parse_size(count, &top->left, NULL) < 0 || top->left == 0))
        return varve_cli_usage(err, "--count %s: a number of pictures, at least 1", count);
    return 0;
}

static int top_run(const struct varve_cli *cli, const struct varve_args *args,
                   struct varve_err *err)
{
    struct top top = {.path = cli->control, .json = cli->json};
    int rc = top_options(&top, args, err);

    if (rc == 0)
        rc = top_ask(&top, err); /* a daemon that is not there is an error now, and none later */
    if (rc == 0) {
        top.colour = varve_out_colour(STDOUT_FILENO);
        if (!top.json)
            varve_screen_open();
        rc = top_loop(&top, err);
        varve_screen_close();
    }
    varve_control_close(top.control);
    varve_top_look_fini(&top.now);
    varve_top_look_fini(&top.before);
    varve_top_look_fini(&top.coming);
    free(top.picture);
    return rc;
}

static const struct varve_option top_options_list[] = {
    [TOP_INTERVAL] = {"interval", "TIME", "ask so often (default: 2s)"},
    [TOP_COUNT] = {"count", "N", "end after so many pictures"},
    {NULL, NULL, NULL},
};

const struct varve_verb varve_top_verbs[] = {
    {.name = "top",
     .synopsis = "[--interval TIME] [--count N]",
     .summary = "Shows disks, running backups, jobs and clients as they go; q ends it",
     .options = top_options_list,
     .run = top_run},
    {.name = NULL},
};
