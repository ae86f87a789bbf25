/* SPDX-License-Identifier: BSD-3-Clause
 *
 * query-metrics, and the site of --metrics.
 */
#include "server/metrics.h"

#include "server/args.h"
#include "server/bitmap.h"
#include "server/commands.h"
#include "server/disk.h"
#include "server/pauses.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- how a metric is written -------------------------------------------------------------- */

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

static const char *get_string(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

/* --- disks -------------------------------------------------------------------------------- */

/* Of the disks that have it: of object `object`, or their own. */
static void metric_of_disks(FILE *f, const json_t *disks, const char *name, const char *about,
                            const char *object, const char *key)
{
    const json_t *disk;
    size_t i;

    metric_about(f, name, "gauge", about);
    json_array_foreach(disks, i, disk)
    {
        const json_t *from = object ? json_object_get(disk, object) : disk;
        const json_t *number = json_object_get(from, key);

        if (json_is_integer(number))
            metric(f, name, "disk", get_string(disk, "name"), (uint64_t)json_integer_value(number));
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
            metric_label(f, "{", "disk", get_string(disk, "name"));
            metric_label(f, ",", "state", states[s]);
            fprintf(f, "} %d\n", strcmp(states[s], get_string(disk, "state")) == 0);
        }
    }
    metric_about(f, "disk_degraded", "gauge", "1 for a disk whose server cannot do everything.");
    json_array_foreach(disks, i, disk)
    {
        metric(f, "disk_degraded", "disk", get_string(disk, "name"),
               json_is_true(json_object_get(disk, "degraded")));
    }
}

/* Adds them to *n.  Fails where nobody could look. */
static int inconsistent_bitmaps(struct varve_daemon *d, struct varve_disk *disk, uint64_t *n,
                                struct varve_err *err)
{
    const struct varve_cat_disk *cd = varve_catalogue_disk(d->catalogue, disk->identity.uuid);

    for (size_t i = 0; cd && i < cd->nbitmaps; i++) {
        int rc = varve_bitmap_check_content(disk, &cd->bitmaps[i], err);

        if (varve_bitmap_nobody_looked(rc))
            return rc;
        *n += rc < 0;
        *err = (struct varve_err)VARVE_ERR_INIT;
    }
    return 0;
}

/* What no query tells in numbers. */
static int metric_inside(FILE *f, struct varve_daemon *d, struct varve_err *err)
{
    struct varve_ctl_head head;
    struct varve_disk *disk;

    metric_about(f, "bitmaps_inconsistent", "gauge", "Bitmaps that cannot be used.");
    for (disk = d->disks; disk; disk = disk->next) {
        uint64_t n = 0;
        int rc;

        if (disk->gone || !disk->known)
            continue;
        rc = inconsistent_bitmaps(d, disk, &n, err);
        if (rc < 0)
            return rc;
        metric(f, "bitmaps_inconsistent", "disk", disk->name, n);
    }
    metric_about(f, "preserved_bytes_total", "counter",
                 "Copied for backups before the guest overwrote them.");
    for (disk = d->disks; disk; disk = disk->next) {
        if (!disk->gone && disk->ctl_fd >= 0 &&
            varve_ctl_read_head(d->w, disk->ctl_fd, &head, NULL) == 0)
            metric(f, "preserved_bytes_total", "disk", disk->name, head.preserved_bytes);
    }
    return 0;
}

/* --- backups ------------------------------------------------------------------------------ */

/* When the newest backup of each disk was taken that ended well: seconds by disks' names. */
static json_t *last_successes(const json_t *backups)
{
    json_t *last = json_object();
    const json_t *backup, *disk;
    size_t i, k;

    json_array_foreach(backups, i, backup)
    {
        json_int_t time = (json_int_t)json_number_value(json_object_get(backup, "time"));

        if (strcmp(get_string(backup, "state"), "completed") != 0)
            continue;
        json_array_foreach(json_object_get(backup, "disks"), k, disk)
        {
            const char *name = get_string(disk, "disk");

            if (time > json_integer_value(json_object_get(last, name)))
                json_object_set_new(last, name, json_integer(time));
        }
    }
    return last;
}

static void metric_backups(FILE *f, const json_t *disks, const json_t *backups)
{
    static const char *const states[] = {"running", "degraded", "broken"};
    json_t *last = last_successes(backups);
    uint64_t count[3] = {0};
    const json_t *o;
    size_t i;

    metric_about(f, "last_success_timestamp_seconds", "gauge",
                 "Instant of the newest backup that ended well, 0 if none is remembered.");
    json_array_foreach(disks, i, o)
        metric(f, "last_success_timestamp_seconds", "disk", get_string(o, "name"),
               (uint64_t)json_integer_value(json_object_get(last, get_string(o, "name"))));
    json_decref(last);
    json_array_foreach(backups, i, o)
    {
        for (size_t s = 0; s < 3; s++)
            count[s] += strcmp(get_string(o, "state"), states[s]) == 0;
    }
    metric_about(f, "backups", "gauge", "Backups that have not ended.");
    for (size_t s = 0; s < 3; s++)
        metric(f, "backups", "state", states[s], count[s]);
}

static void metric_pauses(FILE *f, const struct varve_pauses *p)
{
    static const char name[] = "freeze_pause_seconds";
    uint64_t below = 0;

    metric_about(f, name, "histogram", "How long boundaries held back guests' writes.");
    for (unsigned i = 0; i < VARVE_PAUSES_BOUNDS; i++) {
        below += p->counts[i];
        fprintf(f, "varve_%s_bucket{le=\"%s\"} %" PRIu64 "\n", name, varve_pauses_bounds[i].seconds,
                below);
    }
    fprintf(f, "varve_%s_bucket{le=\"+Inf\"} %" PRIu64 "\n", name, p->total);
    fprintf(f, "varve_%s_sum %" PRIu64 ".%09" PRIu64 "\n", name, p->sum_ns / 1000000000,
            p->sum_ns % 1000000000);
    fprintf(f, "varve_%s_count %" PRIu64 "\n", name, p->total);
}

static void metric_server(FILE *f, const json_t *server)
{
    metric_about(f, "nbd_clients", "gauge", "Clients of the NBD server.");
    metric(f, "nbd_clients", NULL, NULL, json_array_size(json_object_get(server, "clients")));
    metric_about(f, "nbd_connections_total", "counter", "Connections that came.");
    metric(f, "nbd_connections_total", NULL, NULL,
           (uint64_t)json_integer_value(json_object_get(server, "accepted")));
    metric_about(f, "nbd_refused_total", "counter", "Connections that were refused.");
    metric(f, "nbd_refused_total", NULL, NULL,
           (uint64_t)json_integer_value(json_object_get(server, "refused")));
}

/* --- all of it ---------------------------------------------------------------------------- */

static int metrics_write(FILE *f, struct varve_daemon *d, const json_t *disks,
                         const json_t *backups, const json_t *server, struct varve_err *err)
{
    int rc;

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
    rc = metric_inside(f, d, err);
    metric_backups(f, disks, backups);
    metric_pauses(f, &d->pauses);
    metric_server(f, server);
    return rc;
}

int varve_metrics_text(struct varve_daemon *d, char **out, size_t *len, struct varve_err *err)
{
    json_t *none = json_object();
    json_t *disks = varve_command_query_disks(d, none, err);
    json_t *backups = disks ? varve_command_query_backups(d, none, err) : NULL;
    json_t *server = backups ? varve_command_query_nbd_server(d, none, err) : NULL;
    FILE *f = server ? open_memstream(out, len) : NULL;
    int rc = 0;

    if (f) {
        rc = metrics_write(f, d, disks, backups, server, err);
        if (fclose(f) != 0)
            rc = varve_err_set(err, ENOMEM, "no memory for metrics");
        if (rc < 0)
            free(*out);
    } else {
        rc = err->code ? -err->code : varve_err_set(err, ENOMEM, "no memory for metrics");
    }
    json_decref(server);
    json_decref(backups);
    json_decref(disks);
    json_decref(none);
    return rc;
}

json_t *varve_command_query_metrics(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    static const char *const known[] = {NULL};
    json_t *o = NULL;
    char *text;
    size_t len;

    if (varve_args_check(args, known, NULL, err) < 0 || varve_metrics_text(d, &text, &len, err) < 0)
        return NULL;
    o = json_pack("{s:s}", "text", text);
    free(text);
    return o;
}

/* --- the site ----------------------------------------------------------------------------- */

static void metrics_make(struct varve_daemon *d, const struct varve_http_page *page,
                         const char *query, struct varve_http_answer *a)
{
    struct varve_err err = VARVE_ERR_INIT;

    (void)page;
    (void)query; /* Prometheus may be told to send parameters to all it scrapes */
    if (varve_metrics_text(d, &a->text, &a->len, &err) < 0) {
        a->text = NULL;
        a->status = 500;
    }
}

static const struct varve_http_page pages[] = {
    {.path = "/metrics", .type = "text/plain; version=0.0.4; charset=utf-8", .make = metrics_make},
    {.path = NULL},
};

/* Names of hosts are not guarded: Prometheus is told any, and whoever scrapes has to be let in. */
const struct varve_http_site varve_metrics_site = {.name = "metrics", .fields = "", .pages = pages};
