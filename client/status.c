/* SPDX-License-Identifier: BSD-3-Clause
 *
 * varve status: what the daemon knows of its disks.
 */
#include "client/cli.h"
#include "client/control.h"
#include "client/out.h"
#include "client/trouble.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { STATUS_CLIENTS };

static void status_table(const json_t *disks)
{
    static const char *const heading[] = {"DISK",  "STATE",       "SIZE",    "BLOCK", "EPOCHS",
                                          "DIRTY", "CHECKPOINTS", "BACKUPS", "IMAGE"};
    struct varve_table t;
    const json_t *disk;
    size_t i;

    varve_table_init(&t, 9, heading);
    t.state_column = 1;
    json_array_foreach(disks, i, disk)
    {
        char count[2][32], state[VARVE_DISK_STATE_LEN];

        snprintf(count[0], sizeof(count[0]), "%zu",
                 json_array_size(json_object_get(disk, "checkpoints")));
        snprintf(count[1], sizeof(count[1]), "%zu",
                 json_array_size(json_object_get(disk, "backups")));
        varve_table_add(&t, varve_get_string(disk, "name"));
        varve_table_add(&t, varve_disk_state(disk, state));
        varve_table_size(&t, json_object_get(disk, "size"));
        varve_table_size(&t, json_object_get(disk, "granularity"));
        varve_table_number(&t, json_object_get(disk, "epochs"));
        varve_table_size(&t, json_object_get(disk, "dirty-bytes"));
        varve_table_add_right(&t, count[0]);
        varve_table_add_right(&t, count[1]);
        varve_table_add(&t, varve_get_string(disk, "image"));
    }
    varve_table_print(&t);
}

static void status_clients(const json_t *server)
{
    static const char *const heading[] = {"CLIENT",   "IDENTITY", "TLS",    "EXPORT", "SINCE",
                                          "REQUESTS", "READ",     "ERRORS", "QUEUE"};
    char when[VARVE_OUT_TIME_LEN];
    struct varve_table t;
    const json_t *c;
    size_t i;

    varve_table_init(&t, 9, heading);
    json_array_foreach(json_object_get(server, "clients"), i, c)
    {
        varve_table_add(&t, varve_get_string(c, "peer"));
        varve_table_add(&t, varve_get_string(c, "identity"));
        varve_table_add(&t, json_is_true(json_object_get(c, "tls")) ? "yes" : "no");
        varve_table_add(&t, varve_get_string(c, "export"));
        varve_table_add(&t, varve_out_time(when, (int64_t)varve_get_number(c, "since")));
        varve_table_number(&t, json_object_get(c, "requests"));
        varve_table_size(&t, json_object_get(c, "bytes-read"));
        varve_table_number(&t, json_object_get(c, "errors"));
        varve_table_number(&t, json_object_get(c, "queue"));
    }
    varve_table_print(&t);
}

static void status_server(const json_t *server)
{
    char *listeners = varve_get_names(server, "listeners");

    printf("%-13s%s\n", "listeners", listeners);
    printf("%-13s%zu now (at most %" PRIu64 "), %" PRIu64 " accepted, %" PRIu64 " refused\n",
           "clients", json_array_size(json_object_get(server, "clients")),
           varve_get_number(server, "max-connections"), varve_get_number(server, "accepted"),
           varve_get_number(server, "refused"));
    free(listeners);
}

static void status_line(const char *label, const char *text)
{
    printf("%-13s", label);
    varve_out_text(stdout, text);
    putchar('\n');
}

static void status_names(const json_t *disk, const char *label, const char *key)
{
    char *names = varve_get_names(disk, key);

    status_line(label, names);
    free(names);
}

static void status_one(const json_t *disk)
{
    const json_t *scratch = json_object_get(disk, "scratch");
    const json_t *max = json_object_get(scratch, "max");
    const char *reason = json_string_value(json_object_get(disk, "reason"));
    char buf[VARVE_OUT_SIZE_LEN], state[VARVE_DISK_STATE_LEN];
    uint64_t size = varve_get_number(disk, "size");

    status_line("disk", varve_get_string(disk, "name"));
    printf("%-13s%s%s", "state", varve_disk_state(disk, state), reason ? ": " : "");
    varve_out_text(stdout, reason ? reason : "");
    putchar('\n');
    status_line("image", varve_get_string(disk, "image"));
    printf("%-13s%s (%" PRIu64 " bytes)\n", "size", varve_out_size(buf, size), size);
    printf("%-13s%s\n", "block", varve_out_size(buf, varve_get_number(disk, "granularity")));
    printf("%-13s%" PRIu64 " (%" PRIu64 " kept)\n", "epoch", varve_get_number(disk, "epoch"),
           varve_get_number(disk, "epochs"));
    printf("%-13s%s since the last boundary\n", "dirty",
           varve_out_size(buf, varve_get_number(disk, "dirty-bytes")));
    printf("%-13s%s\n", "durability", varve_get_string(disk, "durability"));
    printf("%-13s%" PRIu64 " regions\n", "intent", varve_get_number(disk, "intent-regions"));
    printf("%-13s%s used", "scratch", varve_out_size(buf, varve_get_number(scratch, "used")));
    if (json_is_integer(max))
        printf(" of %s", varve_out_size(buf, varve_get_number(scratch, "max")));
    printf("\n");
    status_names(disk, "checkpoints", "checkpoints");
    status_names(disk, "bitmaps", "bitmaps");
    status_names(disk, "backups", "backups");
}

/* Below the table: what is wrong with disks, and with backups that run. */
static int status_trouble(const struct varve_cli *cli, const json_t *disks, struct varve_err *err)
{
    bool colour = varve_out_colour(STDOUT_FILENO), any = false;
    json_t *backups = NULL;
    const json_t *disk;
    size_t i;
    int rc = 0;

    varve_trouble_disks(stdout, colour, disks);
    json_array_foreach(disks, i, disk)
    {
        if (json_array_size(json_object_get(disk, "backups")) > 0)
            any = true;
    }
    if (any)
        rc = varve_control_once(cli->control, "query-backups", NULL, &backups, err);
    varve_trouble_backups(stdout, colour, backups);
    json_decref(backups);
    return rc;
}

/* The clients of the NBD server; `all`: what else is known of it, and also when there is none. */
static int status_run_clients(const struct varve_cli *cli, bool all, struct varve_err *err)
{
    json_t *server = NULL;
    int rc = varve_control_once(cli->control, "query-nbd-server", NULL, &server, err);
    bool any = json_array_size(json_object_get(server, "clients")) > 0;

    if (rc != 0)
        return rc;
    if (cli->json) {
        varve_out_json(server);
    } else {
        if (all)
            status_server(server);
        if (any) {
            putchar('\n');
            status_clients(server);
        }
    }
    json_decref(server);
    return 0;
}

static int status_run(const struct varve_cli *cli, const struct varve_args *args,
                      struct varve_err *err)
{
    const char *disk = args->nwords > 0 ? args->words[0] : NULL;
    bool clients = args->option[STATUS_CLIENTS] != NULL;
    json_t *arguments = disk ? json_pack("{s:s}", "disk", disk) : NULL;
    json_t *disks = NULL;
    int rc;

    if (disk && !arguments)
        return varve_cli_usage(err, "names of disks must be UTF-8");
    if (clients && disk) {
        json_decref(arguments);
        return varve_cli_usage(err, "--clients are those of all disks: leave out %s", disk);
    }
    if (clients)
        return status_run_clients(cli, true, err);
    rc = varve_control_once(cli->control, "query-disks", arguments, &disks, err);
    if (rc != 0)
        return rc;
    if (cli->json) {
        varve_out_json(disks);
    } else if (disk) {
        size_t i;
        const json_t *one;

        json_array_foreach(disks, i, one) status_one(one);
    } else if (json_array_size(disks) == 0) {
        printf("no disks: serve one with 'nbdkit varve IMAGE'\n");
    } else {
        status_table(disks);
        rc = status_trouble(cli, disks, err);
    }
    json_decref(disks);
    return rc != 0 || cli->json || disk ? rc : status_run_clients(cli, false, err);
}

static const struct varve_option status_options[] = {
    [STATUS_CLIENTS] = {"clients", NULL, "the NBD server and its clients instead"},
    {NULL, NULL, NULL},
};

const struct varve_verb varve_status_verbs[] = {
    {.name = "status",
     .synopsis = "[DISK | --clients]",
     .summary = "Shows the disks and the NBD server's clients, or one disk in full",
     .options = status_options,
     .words_max = 1,
     .run = status_run},
    {.name = NULL},
};
