/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/backup.h"

#include "server/boundary.h"
#include "server/guest-writes.h"
#include "server/log.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* How long an end waits for readers: what they do is theirs to finish, the reply is ours to give.
 */
#define LEAVE_WAIT_MS 2000

void varve_backup_set_reason(struct varve_cat_backup *cb, const char *reason)
{
    snprintf(cb->reason, sizeof(cb->reason), "%.255s", reason);
    for (char *p = cb->reason; *p; p++) {
        if ((unsigned char)*p < ' ' || (unsigned char)*p > '~')
            *p = '?';
    }
}

struct varve_backup *varve_backups_find(struct varve_daemon *d, const char *id)
{
    for (struct varve_backup *b = d->backups; b; b = b->next) {
        if (strcmp(b->id, id) == 0)
            return b;
    }
    return NULL;
}

int varve_backup_base(const struct varve_catalogue *c, const struct varve_cat_backup_disk *cbd,
                      struct varve_change_set *set)
{
    const struct varve_cat_disk *cd = varve_catalogue_disk(c, cbd->uuid);
    const struct varve_cat_checkpoint *p = varve_catalogue_checkpoint(cd, cbd->since);

    memset(set, 0, sizeof(*set));
    if (cbd->bitmap)
        return varve_change_set_copy(set, &cbd->set);
    if (cbd->base == 0)
        return 0;
    if (p && p->epoch == cbd->base)
        return varve_changes_since(p, set);
    return varve_change_set_add_span(set, cbd->base, VARVE_SPAN_OPEN);
}

/* --- making them
 * ---------------------------------------------------------------------------------- */

static void view_last_gone(struct varve_served_view *v, void *arg)
{
    struct varve_backup_disk *bd = arg;
    struct varve_daemon *d = v->disk->daemon;

    pthread_mutex_lock(&d->views_lock);
    bd->gone = true;
    pthread_cond_broadcast(&d->view_gone);
    pthread_mutex_unlock(&d->views_lock);
}

/* Drops our references.  Nothing may be published. */
static void backup_disk_drop(struct varve_backup_disk *bd)
{
    struct varve_view_export *x, *next;

    for (x = bd->exports; x; x = next) {
        next = x->next;
        varve_export_unref(&x->e);
    }
    bd->exports = NULL;
    varve_served_view_unref(bd->served);
    bd->served = NULL;
    varve_changes_unref(bd->changes);
    bd->changes = NULL;
}

static void backup_free(struct varve_backup *b)
{
    varve_throttle_unref(b->throttle);
    free(b);
}

void varve_backup_discard(struct varve_backup *b)
{
    for (size_t i = 0; i < b->ndisks; i++)
        backup_disk_drop(&b->disks[i]);
    backup_free(b);
}

/* What was asked for, over all its disks; not asked for: none. */
static int backup_throttle(struct varve_backup *b, const struct varve_cat_backup *cb,
                           struct varve_disk **disks)
{
    struct varve_daemon *d = b->daemon;
    struct varve_source **sources = NULL;
    struct varve_throttle_guest guest;
    bool memory = true;

    if (!cb->speed && !cb->adaptive)
        return 0;
    if (cb->adaptive) {
        sources = calloc(cb->ndisks, sizeof(struct varve_source *));
        memory = sources != NULL;
        for (size_t i = 0; memory && i < cb->ndisks; i++)
            sources[i] = disks[i]->source;
        memory = memory && varve_guest_writes_of(sources, cb->ndisks, &guest);
        free(sources);
    }
    if (memory)
        b->throttle =
            varve_throttle_new(cb->speed, cb->adaptive ? &guest : NULL, d->w->monotonic_ns(d->w));
    return b->throttle ? 0 : -ENOMEM;
}

int varve_backup_new(struct varve_daemon *d, const struct varve_catalogue *c,
                     const struct varve_cat_backup *cb, struct varve_disk **disks,
                     struct varve_changes **changes, struct varve_backup **out,
                     struct varve_err *err)
{
    struct varve_backup *b = calloc(1, sizeof(*b) + cb->ndisks * sizeof(b->disks[0]));
    int rc;

    if (!b) {
        for (size_t i = 0; i < cb->ndisks; i++)
            varve_changes_unref(changes[i]);
        return varve_err_set(err, ENOMEM, "no memory for backup '%s'", cb->id);
    }
    b->daemon = d;
    snprintf(b->id, sizeof(b->id), "%s", cb->id);
    b->since_ns = d->w->monotonic_ns(d->w);
    b->release = cb->release;
    b->preserve_dirty = cb->preserve_dirty;
    b->ndisks = cb->ndisks;
    for (size_t i = 0; i < b->ndisks; i++) {
        struct varve_backup_disk *bd = &b->disks[i];

        bd->backup = b;
        bd->disk = disks[i];
        bd->view = cb->disks[i].view;
        bd->changes = changes[i];
        bd->gone = true;
    }
    rc = backup_throttle(b, cb, disks);
    if (rc < 0)
        varve_err_set(err, -rc, "no memory for backup '%s'", cb->id);
    for (size_t i = 0; rc == 0 && i < b->ndisks; i++) {
        struct varve_backup_disk *bd = &b->disks[i];

        bd->served =
            varve_served_view_new(bd->disk, bd->view, cb->disks[i].boundary, view_last_gone, bd);
        if (!bd->served)
            rc = varve_err_set(err, ENOMEM, "no memory for backup '%s'", cb->id);
        else
            bd->gone = false;
        if (rc == 0 && !varve_catalogue_job_of_backup(c, cb->id))
            rc = varve_backup_disk_exports(bd, c, &cb->disks[i], err);
    }
    if (rc < 0) {
        varve_backup_discard(b);
        return rc;
    }
    *out = b;
    return 0;
}

int varve_backup_publish(struct varve_backup *b, struct varve_err *err)
{
    struct varve_daemon *d = b->daemon;

    b->next = d->backups;
    d->backups = b;
    for (size_t i = 0; i < b->ndisks; i++) {
        for (struct varve_view_export *x = b->disks[i].exports; x; x = x->next) {
            int rc;

            varve_export_ref(&x->e); /* the registry's */
            rc = varve_exports_add(d->exports, &x->e, err);
            if (rc < 0) {
                varve_export_unref(&x->e);
                return varve_err_prefix(err, "backup '%s'", b->id);
            }
        }
    }
    return 0;
}

void varve_backup_extra_publish(struct varve_backup_disk *bd, struct varve_view_export *x)
{
    int rc;

    x->next = bd->exports;
    bd->exports = x;
    varve_export_ref(&x->e); /* the registry's */
    rc = varve_exports_add(bd->backup->daemon->exports, &x->e, NULL);
    assert(rc == 0);
    (void)rc;
}

/* --- taking them back
 * ------------------------------------------------------------------------------ */

static bool backup_all_gone(const struct varve_backup *b)
{
    for (size_t i = 0; i < b->ndisks; i++) {
        if (!b->disks[i].gone)
            return false;
    }
    return true;
}

void varve_backup_extra_withdraw(struct varve_backup_disk *bd, struct varve_view_export *x)
{
    struct varve_daemon *d = bd->backup->daemon;
    uint64_t last = x->e.clients ? d->w->monotonic_ns(d->w) : x->e.last_client_ns;
    struct varve_view_export **at = &bd->exports;

    while (*at != x)
        at = &(*at)->next;
    *at = x->next;
    bd->past.bytes_read += x->e.bytes_read;
    bd->past.requests += x->e.requests;
    bd->past.errors += x->e.errors;
    if (last > bd->past.last_client_ns)
        bd->past.last_client_ns = last;
    varve_exports_remove(d->exports, &x->e);
    varve_export_unref(&x->e);
    varve_nbd_server_kick(d->nbd);
}

static void backup_remove_exports(struct varve_backup *b)
{
    for (size_t i = 0; i < b->ndisks; i++) {
        struct varve_backup_disk *bd = &b->disks[i];

        if (bd->served)
            bd->served->stopping = true;
        for (struct varve_view_export *x = bd->exports; x; x = x->next)
            varve_exports_remove(b->daemon->exports, &x->e);
        backup_disk_drop(bd);
    }
    b->withdrawn = true;
}

static void backup_tell_exports_gone(const struct varve_backup *b)
{
    for (size_t i = 0; i < b->ndisks; i++) {
        for (const struct varve_view_export *x = b->disks[i].exports; x; x = x->next) {
            if (x->e.listed)
                varve_events_send(b->daemon->events, "BLOCK_EXPORT_DELETED",
                                  json_pack("{s:s}", "id", x->id[0] ? x->id : x->e.name));
        }
    }
}

void varve_backup_withdraw(struct varve_backup *b)
{
    struct varve_daemon *d = b->daemon;
    struct timespec until;

    backup_tell_exports_gone(b);
    backup_remove_exports(b);
    varve_nbd_server_kick(d->nbd);
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += LEAVE_WAIT_MS / 1000;
    pthread_mutex_lock(&d->views_lock);
    while (!backup_all_gone(b) && !varve_clerk_stopping(d->clerk)) {
        struct timespec slice;

        clock_gettime(CLOCK_MONOTONIC, &slice);
        if (slice.tv_sec > until.tv_sec ||
            (slice.tv_sec == until.tv_sec && slice.tv_nsec >= until.tv_nsec))
            break;
        slice.tv_nsec += 100 * 1000000L; /* to see that the daemon ends */
        if (slice.tv_nsec >= 1000000000L) {
            slice.tv_nsec -= 1000000000L;
            slice.tv_sec++;
        }
        pthread_cond_timedwait(&d->view_gone, &d->views_lock, &slice);
    }
    pthread_mutex_unlock(&d->views_lock);
}

static bool view_is_wanted(struct varve_disk *disk, uint64_t view)
{
    const struct varve_daemon *d = disk->daemon;
    const struct varve_catalogue *c = d->catalogue;

    for (size_t i = 0; i < c->nbackups; i++) {
        for (size_t k = 0; varve_cat_backup_open(&c->backups[i]) && k < c->backups[i].ndisks; k++) {
            if (c->backups[i].disks[k].view == view)
                return true;
        }
    }
    for (struct varve_backup *b = d->backups; b; b = b->next) {
        for (size_t k = 0; k < b->ndisks; k++) {
            if (b->disks[k].view == view && !b->disks[k].gone)
                return true;
        }
    }
    return false;
}

void varve_backups_end_stray_views(struct varve_disk *disk)
{
    struct varve_ctl_view_copy views[VARVE_CTL_VIEWS];
    struct varve_daemon *d = disk->daemon;
    struct varve_err err = VARVE_ERR_INIT;

    if (disk->gone || !disk->source || varve_source_views(disk->source, views, NULL) < 0)
        return;
    for (unsigned i = 0; i < VARVE_CTL_VIEWS; i++) {
        bool wanted;

        if (views[i].state != VARVE_VIEW_OPEN)
            continue;
        pthread_mutex_lock(&d->views_lock);
        wanted = view_is_wanted(disk, views[i].id);
        pthread_mutex_unlock(&d->views_lock);
        if (!wanted && varve_boundary_end_view(disk, views[i].id, &err) < 0) {
            varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .disk = disk->name),
                            "%s; what view %llx kept is freed later", err.msg,
                            (unsigned long long)views[i].id);
            return;
        }
    }
}

static void backups_reap(struct varve_daemon *d)
{
    struct varve_backup **at = &d->backups, *b;

    while ((b = *at) != NULL) {
        bool gone;

        pthread_mutex_lock(&d->views_lock);
        gone = backup_all_gone(b);
        pthread_mutex_unlock(&d->views_lock);
        if (b->withdrawn && gone) {
            *at = b->next;
            backup_free(b);
        } else {
            at = &b->next;
        }
    }
}

void varve_backups_fini(struct varve_daemon *d)
{
    for (struct varve_backup *b = d->backups; b; b = b->next)
        backup_remove_exports(b);
    backups_reap(d);
}

/* --- looking after them
 * ---------------------------------------------------------------------------- */

void varve_backup_count(const struct varve_backup_disk *bd, struct varve_backup_counts *n)
{
    *n = bd->past;
    for (const struct varve_view_export *x = bd->exports; x; x = x->next) {
        uint64_t last = x->e.last_client_ns;

        n->clients += x->e.clients;
        n->bytes_read += x->e.bytes_read;
        n->requests += x->e.requests;
        n->errors += x->e.errors;
        if (last > n->last_client_ns)
            n->last_client_ns = last;
    }
    if (!bd->served)
        return;
    varve_view_usage(bd->served->source, &bd->served->view, &n->scratch_bytes, &n->lost_bytes,
                     NULL);
    varve_view_released(bd->served->source, &bd->served->view, &n->released_bytes, NULL);
}

static void backup_break(struct varve_backup *b, const char *reason)
{
    struct varve_daemon *d = b->daemon;
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_catalogue *draft = varve_daemon_draft(d, &err);
    struct varve_cat_backup *cb = draft ? varve_catalogue_backup(draft, b->id) : NULL;

    if (!cb) {
        varve_catalogue_free(draft);
        return;
    }
    cb->state = VARVE_BACKUP_BROKEN;
    varve_backup_set_reason(cb, reason);
    if (varve_daemon_commit(d, draft, &err) < 0) {
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .backup = b->id), "%s",
                        err.msg); /* the next tick tries again */
        return;
    }
    varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_ERROR, .backup = b->id),
                    "Backup '%s' is broken: %s", b->id, reason);
    varve_events_send(d->events, "BACKUP_BROKEN",
                      json_pack("{s:s, s:s}", "id", b->id, "reason",
                                varve_catalogue_backup(d->catalogue, b->id)->reason));
}

static void backup_tick(struct varve_backup *b, const struct varve_cat_backup *cb)
{
    struct varve_daemon *d = b->daemon;
    uint64_t now = d->w->monotonic_ns(d->w), last = b->since_ns, lost = 0;
    struct varve_err err = VARVE_ERR_INIT;
    unsigned clients = 0;

    for (size_t i = 0; i < b->ndisks; i++) {
        struct varve_backup_disk *bd = &b->disks[i];
        struct varve_backup_counts n;

        varve_backup_count(bd, &n);
        clients += n.clients;
        lost += n.lost_bytes;
        if (n.last_client_ns > last)
            last = n.last_client_ns;
        if (cb->state == VARVE_BACKUP_RUNNING && bd->served &&
            varve_served_view_check(bd->served, &err) == -ESTALE) {
            char doubt[400];

            if (varve_disk_doubt(bd->disk, cb->time_ns, doubt, sizeof(doubt)))
                varve_err_set(&err, ESTALE, "%s", doubt);
            varve_err_prefix(&err, "Disk '%s'", bd->disk->name);
            backup_break(b, err.msg);
            return;
        }
    }
    if (lost > 0 && !b->degraded) {
        b->degraded = true;
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .backup = b->id),
                        "Backup '%s': %llu bytes could not be kept and are unreadable", b->id,
                        (unsigned long long)lost);
        varve_events_send(d->events, "BACKUP_DEGRADED",
                          json_pack("{s:s, s:I}", "id", b->id, "lost-bytes", (json_int_t)lost));
    }
    if (cb->ttl_s > 0 && clients == 0 && now > last && (now - last) / 1000000000 >= cb->ttl_s) {
        char reason[128];

        snprintf(reason, sizeof(reason), "no client for %llu seconds (ttl)",
                 (unsigned long long)cb->ttl_s);
        if (varve_backup_end(d, b->id, false, reason, &err) < 0)
            varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .backup = b->id), "%s",
                            err.msg);
    }
}

void varve_backups_tick(struct varve_daemon *d)
{
    struct varve_backup *next;

    for (struct varve_backup *b = d->backups; b; b = next) {
        const struct varve_cat_backup *cb = varve_catalogue_backup(d->catalogue, b->id);

        next = b->next;
        if (cb && !b->withdrawn && varve_cat_backup_open(cb))
            backup_tick(b, cb);
    }
    backups_reap(d);
    varve_backups_restore_rest(d);
    for (struct varve_disk *disk = d->disks; disk; disk = disk->next)
        varve_backups_end_stray_views(disk);
}
