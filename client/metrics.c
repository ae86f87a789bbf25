/* SPDX-License-Identifier: BSD-3-Clause
 *
 * varve metrics: what one alerts on, in Prometheus' text format: for a file that node_exporter reads,
 * or over HTTP for one connection that systemd accepted (varve-metrics.socket).
 *
 * With --http the peer is anybody.  It has SECONDS to ask, a request of at most REQUEST_MAX bytes is
 * read and never looked at beyond its first line, and each connection has a process of its own.
 */
#include "client/cli.h"
#include "client/control.h"
#include "client/out.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REQUEST_MAX 8192
#define SECONDS     10

enum { METRICS_HTTP };

/* --- the text ----------------------------------------------------------------------------- */

static void metric_about(FILE *f, const char *name, const char *type, const char *about)
{
    fprintf(f, "# HELP varve_%s %s\n# TYPE varve_%s %s\n", name, about, name, type);
}

static void metric_label(FILE *f, const char *before, const char *key, const char *value)
{
    fprintf(f, "%s%s=\"", before, key);
    for (; *value; value++) {
        if (*value == '\\' || *value == '"')
            fputc('\\', f);
        if (*value == '\n')
            fputs("\\n", f);
        else
            fputc(*value, f);
    }
    fputc('"', f);
}

/* key NULL: no label. */
static void metric(FILE *f, const char *name, const char *key, const char *value, uint64_t number)
{
    fprintf(f, "varve_%s", name);
    if (key) {
        metric_label(f, "{", key, value);
        fputc('}', f);
    }
    fprintf(f, " %" PRIu64 "\n", number);
}

static void metric_of_disks(FILE *f, const json_t *disks, const char *name, const char *about,
                            const char *object, const char *key)
{
    const json_t *disk;
    size_t i;

    metric_about(f, name, "gauge", about);
    json_array_foreach(disks, i, disk)
    {
        const json_t *from = object ? json_object_get(disk, object) : disk;

        if (json_is_number(json_object_get(from, key)))
            metric(f, name, "disk", varve_get_string(disk, "name"), varve_get_number(from, key));
    }
}

static void metric_states(FILE *f, const json_t *disks)
{
    static const char *const states[] = {"live", "offline", "inconsistent", "missing"};
    const json_t *disk;
    size_t i;

    metric_about(f, "disk_state", "gauge", "1 for the state that the disk is in.");
    json_array_foreach(disks, i, disk)
    {
        for (size_t s = 0; s < sizeof(states) / sizeof(states[0]); s++) {
            fputs("varve_disk_state", f);
            metric_label(f, "{", "disk", varve_get_string(disk, "name"));
            metric_label(f, ",", "state", states[s]);
            fprintf(f, "} %d\n", strcmp(states[s], varve_get_string(disk, "state")) == 0);
        }
    }
}

/* When the newest backup of the disk was taken that ended well; 0: none that is remembered. */
static uint64_t last_success(const json_t *backups, const char *name)
{
    const json_t *backup, *disk;
    uint64_t last = 0;
    size_t i, k;

    json_array_foreach(backups, i, backup)
    {
        uint64_t time = varve_get_number(backup, "time");

        if (strcmp(varve_get_string(backup, "state"), "completed") != 0 || time <= last)
            continue;
        json_array_foreach(json_object_get(backup, "disks"), k, disk)
            if (strcmp(varve_get_string(disk, "disk"), name) == 0)
                last = time;
    }
    return last;
}

static void metric_backups(FILE *f, const json_t *disks, const json_t *backups)
{
    static const char *const states[] = {"running", "degraded", "broken"};
    uint64_t count[3] = {0};
    const json_t *o;
    size_t i;

    metric_about(f, "last_success_timestamp_seconds", "gauge",
                 "Instant of the newest backup that ended well, 0 if none is remembered.");
    json_array_foreach(disks, i, o)
        metric(f, "last_success_timestamp_seconds", "disk", varve_get_string(o, "name"),
               last_success(backups, varve_get_string(o, "name")));
    json_array_foreach(backups, i, o)
        for (size_t s = 0; s < 3; s++)
            count[s] += strcmp(varve_get_string(o, "state"), states[s]) == 0;
    metric_about(f, "backups", "gauge", "Backups that have not ended.");
    for (size_t s = 0; s < 3; s++)
        metric(f, "backups", "state", states[s], count[s]);
}

static void metric_server(FILE *f, const json_t *server)
{
    metric_about(f, "nbd_clients", "gauge", "Clients of the NBD server.");
    metric(f, "nbd_clients", NULL, NULL, json_array_size(json_object_get(server, "clients")));
    metric_about(f, "nbd_connections_total", "counter", "Connections that came.");
    metric(f, "nbd_connections_total", NULL, NULL, varve_get_number(server, "accepted"));
    metric_about(f, "nbd_refused_total", "counter", "Connections that were refused.");
    metric(f, "nbd_refused_total", NULL, NULL, varve_get_number(server, "refused"));
}

static void metrics_write(FILE *f, const json_t *disks, const json_t *backups, const json_t *server)
{
    metric_states(f, disks);
    metric_of_disks(f, disks, "disk_size_bytes", "Size of the disk.", NULL, "size");
    metric_of_disks(f, disks, "disk_dirty_bytes", "Written since the last boundary.", NULL,
                    "dirty-bytes");
    metric_of_disks(f, disks, "disk_intent_regions",
                    "Regions that would count as written after a crash of the host.", NULL,
                    "intent-regions");
    metric_of_disks(f, disks, "scratch_used_bytes", "What preimages take.", "scratch", "used");
    metric_of_disks(f, disks, "scratch_max_bytes", "What they may take, where it is limited.",
                    "scratch", "max");
    metric_backups(f, disks, backups);
    metric_server(f, server);
}

/* The text into *out, to be freed. */
static int metrics_text(const char *control, char **out, struct varve_err *err)
{
    json_t *disks = NULL, *backups = NULL, *server = NULL;
    struct varve_control *c;
    size_t len;
    FILE *f;
    int rc = varve_control_open(control, &c, err);

    if (rc != 0)
        return rc;
    rc = varve_control_execute(c, "query-disks", NULL, &disks, err);
    if (rc == 0)
        rc = varve_control_execute(c, "query-backups", NULL, &backups, err);
    if (rc == 0)
        rc = varve_control_execute(c, "query-nbd-server", NULL, &server, err);
    varve_control_close(c);
    f = rc == 0 ? open_memstream(out, &len) : NULL;
    if (f) {
        metrics_write(f, disks, backups, server);
        if (fclose(f) != 0)
            rc = varve_err_set(err, ENOMEM, "no memory");
    } else if (rc == 0) {
        rc = varve_err_set(err, ENOMEM, "no memory");
    }
    json_decref(disks);
    json_decref(backups);
    json_decref(server);
    return rc;
}

/* --- HTTP --------------------------------------------------------------------------------- */

/* The request's head, up to its empty line.  false: it is none, or too long, or did not come. */
static bool request_read(char *head)
{
    size_t len = 0;

    while (len < REQUEST_MAX) {
        struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
        ssize_t n = poll(&p, 1, SECONDS * 1000) == 1
                        ? read(STDIN_FILENO, head + len, REQUEST_MAX - len)
                        : -1;

        if (n <= 0)
            return false;
        len += (size_t)n;
        head[len] = '\0';
        if (memchr(head, '\0', len))
            return false;
        if (strstr(head, "\r\n\r\n") || strstr(head, "\n\n"))
            return true;
    }
    return false;
}

static void reply(const char *status, const char *text)
{
    printf("HTTP/1.1 %s\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
           "Content-Length: %zu\r\nConnection: close\r\n\r\n%s",
           status, strlen(text), text);
}

static int metrics_http(const struct varve_cli *cli)
{
    char head[REQUEST_MAX + 1], *text = NULL;
    struct varve_err err = VARVE_ERR_INIT;

    alarm(3 * SECONDS); /* whoever sends or takes a byte a second is cut off */
    if (!request_read(head))
        reply("400 Bad Request", "ask: GET /metrics\n");
    else if (strncmp(head, "GET ", 4) != 0)
        reply("405 Method Not Allowed", "ask: GET /metrics\n");
    else if (strncmp(head + 4, "/metrics", 8) != 0 || !strchr(" ?", head[12]) || !head[12])
        reply("404 Not Found", "ask: GET /metrics\n");
    else if (metrics_text(cli->control, &text, &err) != 0)
        reply("503 Service Unavailable", "varved does not answer\n");
    else
        reply("200 OK", text);
    free(text);
    return 0;
}

static int metrics_run(const struct varve_cli *cli, const struct varve_args *args,
                       struct varve_err *err)
{
    char *text;
    int rc;

    if (args->option[METRICS_HTTP])
        return metrics_http(cli);
    rc = metrics_text(cli->control, &text, err);
    if (rc == 0) {
        fputs(text, stdout);
        free(text);
    }
    return rc;
}

static const struct varve_option metrics_options[] = {
    [METRICS_HTTP] = {"http", NULL, "answers one HTTP request from the standard input"},
    {NULL, NULL, NULL},
};

const struct varve_verb varve_metrics_verbs[] = {
    {.name = "metrics",
     .synopsis = "[--http]",
     .summary = "Prints what one alerts on, as Prometheus reads it",
     .options = metrics_options,
     .run = metrics_run},
    {.name = NULL},
};
