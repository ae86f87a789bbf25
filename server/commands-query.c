/* SPDX-License-Identifier: BSD-3-Clause
 *
 * query-disks, query-nbd-server.
 */
#include "server/commands.h"

#include "lib/image-witness.h"
#include "server/args.h"
#include "server/disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Names of the disk's checkpoints, oldest first. */
static json_t *disk_checkpoints(struct varve_disk *disk)
{
    const struct varve_cat_disk *cd =
        varve_catalogue_disk(disk->daemon->catalogue, disk->identity.uuid);
    json_t *list = json_array();

    for (size_t i = 0; cd && i < cd->ncheckpoints; i++)
        json_array_append_new(list, json_string(cd->checkpoints[i].name));
    return list;
}

static json_t *disk_bitmaps(struct varve_disk *disk)
{
    const struct varve_cat_disk *cd =
        varve_catalogue_disk(disk->daemon->catalogue, disk->identity.uuid);
    json_t *list = json_array();

    for (size_t i = 0; cd && i < cd->nbitmaps; i++)
        json_array_append_new(list, json_string(cd->bitmaps[i].name));
    return list;
}

static json_t *disk_backups(struct varve_disk *disk)
{
    const struct varve_catalogue *c = disk->daemon->catalogue;
    json_t *list = json_array();

    for (size_t i = 0; i < c->nbackups; i++) {
        const struct varve_cat_backup *b = &c->backups[i];

        for (size_t k = 0; varve_cat_backup_open(b) && k < b->ndisks; k++) {
            if (memcmp(b->disks[k].uuid, disk->identity.uuid, 16) == 0)
                json_array_append_new(list, json_string(b->id));
        }
    }
    return list;
}

/* What the epoch files tell: how many there are, and whether they reach from the newest checkpoint
 * to now; if not, nothing that changed since any checkpoint can be told.  err then says why. */
static size_t disk_epochs(struct varve_disk *disk, uint64_t live, bool *broken,
                          struct varve_err *err)
{
    const struct varve_cat_disk *cd =
        varve_catalogue_disk(disk->daemon->catalogue, disk->identity.uuid);
    struct varve_timeline tl;
    size_t n;

    *broken = false;
    if (varve_timeline_scan(disk->daemon->w, &disk->paths, disk->identity.uuid,
                            &disk->identity.geometry, &tl, NULL) < 0)
        return 0;
    n = tl.nfiles;
    *broken = cd && cd->ncheckpoints &&
              varve_timeline_union(
                  disk->daemon->w, &disk->paths, disk->identity.uuid, &disk->identity.geometry, &tl,
                  cd->checkpoints[cd->ncheckpoints - 1].epoch, live, NULL, err) == -EUCLEAN;
    varve_timeline_fini(&tl);
    return n;
}

static void describe_state(struct varve_disk *disk, json_t *o, bool broken, const char *why)
{
    if (broken && (disk->state == VARVE_DISK_LIVE || disk->state == VARVE_DISK_OFFLINE)) {
        json_object_set_new(o, "state",
                            json_string(varve_disk_state_name(VARVE_DISK_INCONSISTENT)));
        json_object_set_new(o, "reason", json_sprintf("%s: begin a full backup", why));
        return;
    }
    json_object_set_new(o, "state", json_string(varve_disk_state_name(disk->state)));
    if (disk->reason[0])
        json_object_set_new(o, "reason", json_string(disk->reason));
    else if (disk->degraded[0])
        json_object_set_new(o, "reason", json_string(disk->degraded));
}

/* What its last server found when it came, and what cannot be said of its image. */
static void describe_found(struct varve_disk *disk, json_t *o)
{
    struct varve_witness wit;

    if (varve_witness_read(disk->daemon->w, &disk->paths, disk->identity.uuid, &wit, NULL) < 0)
        return;
    if (wit.found_ns != 0)
        json_object_set_new(o, "found",
                            json_pack("{s:f, s:s}", "time", (double)wit.found_ns / 1e9, "what",
                                      wit.found));
    if (wit.unproved_ns != 0)
        json_object_set_new(o, "not-proved",
                            json_pack("{s:f, s:s}", "time", (double)wit.unproved_ns / 1e9, "why",
                                      wit.unproved));
    if (wit.doubt_ns != 0)
        json_object_set_new(o, "changed",
                            json_pack("{s:f, s:I, s:s}", "time", (double)wit.doubt_ns / 1e9,
                                      "epoch", (json_int_t)wit.doubt_epoch, "why", wit.doubt));
}

/* VARVE_CTL_INTENT_* of the disk's page. */
static uint64_t disk_intent(struct varve_disk *disk)
{
    struct varve_ctl_head head;

    if (disk->ctl_fd < 0 ||
        varve_ctl_read_head(disk->daemon->w, disk->ctl_fd, &head, NULL) < 0)
        return 0;
    return head.intent;
}

static json_t *disk_describe(struct varve_disk *disk)
{
    const struct varve_geometry *g = &disk->identity.geometry;
    uint64_t live = disk->known ? varve_disk_live_epoch(disk) : 0;
    struct varve_err why = VARVE_ERR_INIT;
    bool broken = false;
    size_t epochs = disk->known ? disk_epochs(disk, live, &broken, &why) : 0;
    uint64_t dirty = 0, intent = disk_intent(disk);
    json_t *scratch, *o;

    if (disk->known)
        varve_disk_live_dirty(disk, &dirty);
    o = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:s, s:I, s:I, s:o, s:o, s:o}", "name",
                  disk->name, "image", disk->identity.image, "size", (json_int_t)g->size,
                  "granularity", (json_int_t)(disk->known ? varve_block_size(g) : 0), "epoch",
                  (json_int_t)live, "epochs", (json_int_t)epochs, "durability",
                  disk->durable ? "host" : "process", "dirty-bytes", (json_int_t)dirty,
                  "intent-regions", (json_int_t)(intent & VARVE_CTL_INTENT_REGIONS), "bitmaps", disk_bitmaps(disk), "checkpoints",
                  disk_checkpoints(disk), "backups", disk_backups(disk));
    scratch = json_pack("{s:I}", "used", (json_int_t)varve_disk_scratch_used(disk, live));
    if (!o) { /* an image's name that is not UTF-8 cannot stand in JSON */
        json_decref(scratch);
        return json_pack("{s:s, s:s, s:s}", "name", disk->name, "state",
                         varve_disk_state_name(disk->state), "reason",
                         "its image's path is not UTF-8");
    }
    json_object_set_new(scratch, "max",
                        disk->scratch_max ? json_integer((json_int_t)disk->scratch_max)
                                          : json_null());
    json_object_set_new(o, "scratch", scratch);
    if (disk->known)
        describe_found(disk, o);
    describe_state(disk, o, broken, why.msg);
    json_object_set_new(o, "degraded", json_boolean(disk->degraded[0] != '\0'));
    return o;
}

json_t *varve_command_query_disks(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    static const char *const known[] = {"disk", NULL};
    const char *name;
    json_t *list;

    if (varve_args_check(args, known, NULL, err) < 0 ||
        varve_args_string(args, "disk", false, &name, err) < 0)
        return NULL;
    varve_disks_refresh(d);
    list = json_array();
    for (struct varve_disk *disk = d->disks; disk; disk = disk->next) {
        if (!disk->gone && (!name || strcmp(name, disk->name) == 0))
            json_array_append_new(list, disk_describe(disk));
    }
    if (name && json_array_size(list) == 0) {
        struct varve_disk *none;

        json_decref(list);
        varve_disks_find(d, name, &none, err);
        return NULL;
    }
    return list;
}

/* A name that TLS proved need not be UTF-8; JSON must. */
static json_t *text_json(const char *text)
{
    json_t *value = json_string(text);
    char *plain = value ? NULL : strdup(text);

    for (char *p = plain; p && *p; p++) {
        if ((unsigned char)*p < ' ' || (unsigned char)*p > '~')
            *p = '?';
    }
    if (plain)
        value = json_string(plain);
    free(plain);
    return value;
}

static json_t *client_describe(const struct varve_nbd_census_client *c)
{
    json_t *o = json_pack("{s:o, s:b, s:f, s:I, s:I, s:I, s:i}", "peer", text_json(c->peer), "tls",
                          c->tls, "since", (double)c->since_ns / 1e9, "requests",
                          (json_int_t)c->requests, "bytes-read", (json_int_t)c->bytes, "errors",
                          (json_int_t)c->errors, "queue", (int)c->queue);

    if (o && c->identity[0])
        json_object_set_new(o, "identity", text_json(c->identity));
    if (o && c->export)
        json_object_set_new(o, "export", json_string(c->export));
    return o;
}

json_t *varve_command_query_nbd_server(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    static const char *const known[] = {NULL};
    struct varve_nbd_census census;
    struct varve_map_cache_counts maps;
    json_t *listeners, *clients, *o;

    if (varve_args_check(args, known, NULL, err) < 0 ||
        varve_nbd_server_census(d->nbd, &census, err) < 0)
        return NULL;
    listeners = json_array();
    for (size_t i = 0; i < d->nlisteners; i++)
        json_array_append_new(listeners, json_string(d->listeners[i]));
    clients = json_array();
    for (size_t i = 0; i < census.nclients; i++)
        json_array_append_new(clients, client_describe(&census.clients[i]));
    varve_map_cache_count(&d->maps, &maps);
    o = json_pack("{s:o, s:o, s:{s:I, s:I, s:I, s:I}, s:I, s:I, s:I}", "listeners", listeners,
                  "clients", clients, "maps", "max", (json_int_t)maps.limit, "used",
                  (json_int_t)maps.bytes, "computed", (json_int_t)maps.added, "dropped",
                  (json_int_t)maps.dropped, "max-connections", (json_int_t)census.max, "accepted",
                  (json_int_t)census.accepted, "refused", (json_int_t)census.refused);
    if (o && census.max_per_peer)
        json_object_set_new(o, "max-connections-per-peer",
                            json_integer((json_int_t)census.max_per_peer));
    varve_nbd_census_fini(&census);
    return o;
}
