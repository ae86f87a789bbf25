/* SPDX-License-Identifier: BSD-3-Clause
 *
 * All disks: every folder of the state directory with a disk.json in it is one.
 */
#include "server/disk.h"

#include "server/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static struct varve_disk *disks_by_name(struct varve_daemon *d, const char *name)
{
    for (struct varve_disk *disk = d->disks; disk; disk = disk->next) {
        if (!disk->gone && strcmp(disk->name, name) == 0)
            return disk;
    }
    return NULL;
}

static void disks_insert(struct varve_daemon *d, struct varve_disk *disk)
{
    struct varve_disk **at = &d->disks;

    while (*at && strcmp((*at)->name, disk->name) < 0)
        at = &(*at)->next;
    disk->next = *at;
    *at = disk;
}

enum identity { IDENTITY_UNKNOWN, IDENTITY_SAME, IDENTITY_OTHER };

/* Whose the folder is.  One of another size is another's: all that reads the disk knows its size. */
static enum identity disk_identity(struct varve_disk *disk)
{
    struct varve_identity now;

    if (!disk->known || varve_identity_read(disk->daemon->w, &disk->paths, &now, NULL) < 0)
        return IDENTITY_UNKNOWN;
    if (memcmp(now.uuid, disk->identity.uuid, sizeof(now.uuid)) != 0 ||
        now.geometry.size != disk->identity.geometry.size)
        return IDENTITY_OTHER;
    disk->identity.resize = now.resize;
    return IDENTITY_SAME;
}

/* One whose folder was away, and is there again. */
static struct varve_disk *disks_returned(struct varve_daemon *d, const char *name)
{
    for (struct varve_disk *disk = d->disks; disk; disk = disk->next) {
        if (disk->gone && !disk->renewed && strcmp(disk->name, name) == 0 &&
            disk_identity(disk) == IDENTITY_SAME)
            return disk;
    }
    return NULL;
}

static void disk_leaves(struct varve_disk *disk)
{
    disk->gone = true;
    varve_peer_free(disk->peer);
    disk->peer = NULL;
}

void varve_disks_renew(struct varve_disk *disk)
{
    disk_leaves(disk);
    disk->renewed = true;
}

static int disks_see(void *arg, const char *name)
{
    struct varve_daemon *d = arg;
    struct varve_disk *disk;
    char path[PATH_MAX];
    struct stat st;
    int len;

    if (varve_name_check(name, "disk name", NULL) < 0)
        return 0;
    len = snprintf(path, sizeof(path), "%s/%s/disk.json", d->options->state_dir, name);
    if (len < 0 || (size_t)len >= sizeof(path) || stat(path, &st) < 0)
        return 0;
    disk = disks_by_name(d, name);
    /* A folder that was removed and made anew is another disk. */
    if (disk && disk_identity(disk) == IDENTITY_OTHER) {
        disk_leaves(disk);
        disk = NULL;
    }
    if (!disk) {
        disk = disks_returned(d, name);
        if (disk)
            disk->gone = false;
    }
    if (!disk) {
        disk = varve_disk_new(d, name);
        if (!disk)
            return -ENOMEM;
        disks_insert(d, disk);
    }
    disk->seen = true;
    return 0;
}

/* Once for as long as it lasts: there is a look with each command, and with each tick. */
static void disks_say(struct varve_daemon *d, int rc)
{
    if (rc == d->unreadable)
        return;
    d->unreadable = rc;
    if (rc < 0)
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING), "cannot read %s: %s",
                        d->options->state_dir, strerror(-rc));
    else
        varve_log("%s can be read again", d->options->state_dir);
}

static int disks_look(struct varve_daemon *d)
{
    int rc;

    for (struct varve_disk *disk = d->disks; disk; disk = disk->next)
        disk->seen = false;
    rc = d->w->list(d->w, d->options->state_dir, disks_see, d);
    disks_say(d, rc);
    return rc;
}

void varve_disks_refresh(struct varve_daemon *d)
{
    bool resized = false;

    if (disks_look(d) < 0)
        return;
    for (struct varve_disk *disk = d->disks; disk; disk = disk->next) {
        if (!disk->gone && disk->seen && varve_disk_finish_resize(disk))
            resized = true;
    }
    if (resized && disks_look(d) < 0)
        return;
    for (struct varve_disk *disk = d->disks; disk; disk = disk->next) {
        if (!disk->seen && !disk->gone) {
            disk_leaves(disk);
            varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .disk = disk->name),
                            "Disk '%s': its folder %s is gone", disk->name, disk->paths.state);
        }
        if (!disk->gone)
            varve_disk_refresh(disk);
    }
}

bool varve_disks_starved(const struct varve_daemon *d)
{
    for (const struct varve_disk *disk = d->disks; disk; disk = disk->next) {
        if (!disk->gone && disk->starved)
            return true;
    }
    return d->unreadable < 0;
}

int varve_disks_find(struct varve_daemon *d, const char *name, struct varve_disk **out,
                     struct varve_err *err)
{
    struct varve_disk *disk = disks_by_name(d, name);

    if (!disk)
        return varve_err_set(
            err, ENODEV, "There is no disk '%.100s' in %.250s: query-disks lists those there are",
            name, d->options->state_dir);
    if (!disk->known)
        return varve_err_set(err, EIO, "Disk '%s' cannot be used: %s", name, disk->reason);
    *out = disk;
    return 0;
}

struct varve_disk *varve_disks_by_uuid(struct varve_daemon *d, const uint8_t uuid[16])
{
    for (struct varve_disk *disk = d->disks; disk; disk = disk->next) {
        if (!disk->gone && disk->known && memcmp(disk->identity.uuid, uuid, 16) == 0)
            return disk;
    }
    return NULL;
}
