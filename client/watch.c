/* SPDX-License-Identifier: BSD-3-Clause
 *
 * varve watch: the daemon's events as they come, until it ends or somebody ends us.
 */
#include "client/cli.h"
#include "client/control.h"
#include "client/out.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

/* An hour at a time: nothing has to come. */
#define WATCH_MS 3600000

/* key=value, strings without quotes, the rest as JSON; nothing in it drives the terminal. */
static void watch_data(const json_t *data)
{
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)data, key, value)
    {
        char *text = json_is_string(value) ? NULL : json_dumps(value, JSON_ENCODE_ANY);

        printf(" %s=", key);
        for (const char *p = text ? text : json_string_value(value); p && *p; p++)
            putchar((unsigned char)*p < ' ' || *p == 0x7f ? '?' : *p);
        free(text);
    }
}

static void watch_print(const struct varve_cli *cli, const json_t *message)
{
    const json_t *timestamp = json_object_get(message, "timestamp");
    char when[VARVE_OUT_TIME_LEN];

    if (cli->json) {
        json_dumpf(message, stdout, 0);
    } else {
        printf("%s %s", varve_out_time(when, (int64_t)varve_get_number(timestamp, "seconds")),
               varve_get_string(message, "event"));
        watch_data(json_object_get(message, "data"));
    }
    putchar('\n');
    fflush(stdout);
}

static int watch_run(const struct varve_cli *cli, const struct varve_args *args,
                     struct varve_err *err)
{
    struct varve_control *c;
    int rc = varve_control_open(cli->control, &c, err);

    (void)args;
    if (rc != 0)
        return rc;
    while (rc >= 0 && !ferror(stdout)) {
        json_t *message = NULL;

        rc = varve_control_receive(c, WATCH_MS, &message, err);
        if (rc > 0 && json_object_get(message, "event"))
            watch_print(cli, message);
        json_decref(message);
    }
    varve_control_close(c);
    return rc < 0 ? rc : 0; /* main() tells of the standard output */
}

const struct varve_verb varve_watch_verbs[] = {
    {.name = "watch",
     .synopsis = "",
     .summary = "Prints what happens, one line an event, until the daemon ends",
     .run = watch_run},
    {.name = NULL},
};
