/* SPDX-License-Identifier: BSD-3-Clause
 *
 * varve watch: the daemon's events as they come, until it ends or somebody ends us.
 */
#include "client/cli.h"
#include "client/control.h"
#include "client/out.h"
#include "lib/json.h"
#include "lib/text.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* An hour at a time: nothing has to come. */
#define WATCH_MS 3600000

/* The longest names of events fit. */
#define EVENT_WIDTH 20

/* "vda,vdb"; NULL: not all of them are names.  free() it. */
static char *watch_names(const json_t *list)
{
    char *joined = NULL;
    const json_t *name;
    size_t len, i;
    FILE *f = open_memstream(&joined, &len);

    if (!f)
        return NULL;
    json_array_foreach(list, i, name)
    {
        if (!json_is_string(name)) {
            fclose(f);
            free(joined);
            return NULL;
        }
        fprintf(f, "%s%s", i ? "," : "", json_string_value(name));
    }
    if (fclose(f) == 0)
        return joined;
    free(joined);
    return NULL;
}

/* A value as people read it, a new string; NULL: there is nothing to say of it. */
static char *watch_value(const char *key, const json_t *value)
{
    static const char *const bytes[] = {"lost-bytes", "used", "max", "len", "offset", "speed"};
    char size[VARVE_OUT_SIZE_LEN];
    char *names = json_is_array(value) ? watch_names(value) : NULL;

    if (names)
        return names;
    if (json_is_string(value))
        return json_string_value(value)[0] ? strdup(json_string_value(value)) : NULL;
    if (json_is_false(value))
        return NULL;
    for (size_t i = 0; i < sizeof(bytes) / sizeof(bytes[0]); i++)
        if (strcmp(key, bytes[i]) == 0 && json_is_integer(value) && json_integer_value(value) >= 0)
            return strdup(varve_out_size(size, (uint64_t)json_integer_value(value)));
    return varve_json_dump(value, JSON_ENCODE_ANY);
}

static void watch_data(const json_t *data, bool colour)
{
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)data, key, value)
    {
        bool state = strcmp(key, "state") == 0 || strcmp(key, "status") == 0;
        char *text = watch_value(key, value);
        const char *paint = text && colour && state ? varve_out_state_colour(text) : "";

        if (text)
            varve_text_harmless(text);
        if (text) {
            putchar(' ');
            varve_out_text(stdout, key);
            printf("=%s%s%s", paint, text, paint[0] ? "\033[0m" : "");
        }
        free(text);
    }
}

static const char *event_colour(const char *event)
{
    static const char *const bad[] = {"BACKUP_BROKEN", "THAW_FAILED"};
    static const char *const doubtful[] = {"BACKUP_DEGRADED", "SCRATCH_THRESHOLD"};

    for (size_t i = 0; i < 2; i++) {
        if (strcmp(event, bad[i]) == 0)
            return "\033[31m";
        if (strcmp(event, doubtful[i]) == 0)
            return "\033[33m";
    }
    return "";
}

static void watch_print(const struct varve_cli *cli, const json_t *message)
{
    const json_t *timestamp = json_object_get(message, "timestamp");
    const char *event = varve_get_string(message, "event");
    bool colour = varve_out_colour(STDOUT_FILENO);
    const char *paint = colour ? event_colour(event) : "";
    char when[VARVE_OUT_TIME_LEN];

    if (cli->json) {
        json_dumpf(message, stdout, 0);
    } else {
        int room = EVENT_WIDTH - (int)strlen(event);

        printf("%s %s", varve_out_time(when, (int64_t)varve_get_number(timestamp, "seconds")),
               paint);
        varve_out_text(stdout, event);
        printf("%s%*s", paint[0] ? "\033[0m" : "", room > 0 ? room : 0, "");
        watch_data(json_object_get(message, "data"), colour);
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
