/* SPDX-License-Identifier: BSD-3-Clause
 *
 * disk-adopt, disk-resize, disk-forget: what an operator says of a disk as a whole.
 *
 * Resizing is lib/tracker-resize.c's; afterwards the daemon's disk is another object, as all that reads
 * the old one knows its size.  A running backup stands in the way, also of growing: its view has the
 * disk's size.  Adopting fills the gaps between eras (lib/epoch-era.h) that others' writes have left, each with
 * one durable file.  Forgetting renames the disk's folder, which is the instant at which it is none
 * any more, and then empties it.
 */
#include "server/commands.h"

#include "lib/disk-lock.h"
#include "lib/epoch-era.h"
#include "lib/image-witness.h"
#include "server/args.h"
#include "server/boundary.h"
#include "server/disk.h"
#include "server/log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int find_disk(struct varve_daemon *d, json_t *args, struct varve_disk **disk,
                     struct varve_err *err)
{
    const char *name;
    int rc = varve_args_string(args, "disk", true, &name, err);

    if (rc < 0)
        return rc;
    varve_disks_refresh(d);
    return varve_disks_find(d, name, disk, err);
}

static int refuse_job(struct varve_disk *disk, struct varve_err *err)
{
    const struct varve_catalogue *c = disk->daemon->catalogue;

    for (size_t i = 0; i < c->njobs; i++) {
        if (varve_cat_job_open(&c->jobs[i]) &&
            memcmp(c->jobs[i].uuid, disk->identity.uuid, 16) == 0)
            return varve_err_set(err, EBUSY, "Disk '%s' has job '%s': cancel that first",
                                 disk->name, c->jobs[i].id);
    }
    return 0;
}

static int refuse_live(struct varve_disk *disk, struct varve_err *err)
{
    if (disk->peer)
        return varve_err_set(err, EBUSY, "Disk '%s' is served by process %d: stop that first",
                             disk->name, disk->plugin_pid);
    if (varve_disk_oldest_view(disk) != UINT64_MAX)
        return varve_err_set(err, EBUSY, "Disk '%s' has a running backup: end that first",
                             disk->name);
    return refuse_job(disk, err);
}

/* --- adopt ---------------------------------------------------------------------------------------
 */

static int check_image(struct varve_disk *disk, const char *image, struct varve_err *err)
{
    struct varve_world *w = disk->daemon->w;
    struct varve_stat st;
    int fd, rc;

    if (image[0] != '/' || strlen(image) >= PATH_MAX)
        return varve_err_set(err, EINVAL, "Disk '%s': 'image' must be an absolute path",
                             disk->name);
    for (struct varve_disk *other = disk->daemon->disks; other; other = other->next) {
        if (other != disk && !other->gone && other->known &&
            strcmp(other->identity.image, image) == 0)
            return varve_err_set(err, EEXIST, "Disk '%s': image %.200s is disk '%s'", disk->name,
                                 image, other->name);
    }
    fd = w->open(w, image, O_RDONLY | O_NONBLOCK, 0);
    if (fd < 0)
        return varve_err_sys(err, -fd, "Disk '%s': cannot open image %.200s", disk->name, image);
    rc = w->stat(w, fd, &st);
    w->close(w, fd);
    if (rc < 0)
        return varve_err_sys(err, -rc, "Disk '%s': cannot look at image %.200s", disk->name, image);
    if (!S_ISREG(st.mode) && !S_ISBLK(st.mode))
        return varve_err_set(err, EINVAL, "Disk '%s': %.200s is neither a file nor a block device",
                             disk->name, image);
    if (st.size != disk->identity.geometry.size)
        return varve_err_set(err, EINVAL,
                             "Disk '%s': image %.200s has %llu bytes, the disk has %llu: give it "
                             "its size back",
                             disk->name, image, (unsigned long long)st.size,
                             (unsigned long long)disk->identity.geometry.size);
    return 0;
}

/* The identity is another from here on, and so is the daemon's disk: what reads the old one may. */
static int move_disk(struct varve_disk **disk, const char *image, struct varve_err *err)
{
    struct varve_daemon *d = (*disk)->daemon;
    struct varve_identity id = (*disk)->identity;
    char name[VARVE_NAME_MAX + 1];
    int fd, rc;

    fd = varve_disk_lock_take(d->w, &(*disk)->paths, (*disk)->name, "varved", err);
    if (fd < 0)
        return fd;
    snprintf(id.image, sizeof(id.image), "%s", image);
    rc = varve_identity_write(d->w, &(*disk)->paths, &id, err);
    d->w->close(d->w, fd);
    if (rc < 0)
        return varve_err_prefix(err, "Disk '%s'", (*disk)->name);
    snprintf(name, sizeof(name), "%s", (*disk)->name);
    varve_disks_renew(*disk);
    varve_disks_refresh(d);
    return varve_disks_find(d, name, disk, err);
}

/* Finds what there is to find now, and with `distrust` a gap in any case. */
static int take_once(struct varve_disk *disk, const char *distrust, struct varve_err *err)
{
    struct varve_tracker *t;
    int rc = varve_offline_attach_as(disk, distrust, NULL, &t, err);

    if (rc == 0)
        varve_offline_detach(disk, t);
    return rc;
}

static int adopt(struct varve_disk *disk, bool trust, struct varve_err *err)
{
    struct varve_daemon *d = disk->daemon;
    const struct varve_identity *id = &disk->identity;
    struct varve_witness wit;
    unsigned filled = 0;
    int rc = 0;

    if (!disk->peer)
        rc = take_once(disk, trust ? NULL : "the operator said so (disk-adopt)", err);
    if (rc == 0)
        rc = varve_witness_read(d->w, &disk->paths, id->uuid, &wit, err);
    if (rc < 0)
        return rc;
    pthread_mutex_lock(&disk->timeline_lock);
    rc = varve_timeline_bridge(d->w, &disk->paths, id->uuid, &id->geometry,
                               trust && wit.doubt_epoch ? varve_era_gap(wit.doubt_epoch) : 0,
                               wit.doubt_from, &filled, err);
    pthread_mutex_unlock(&disk->timeline_lock);
    if (rc < 0)
        return varve_err_prefix(err, "Disk '%s'", disk->name);
    if (!trust && filled == 0)
        return varve_err_set(
            err, EBUSY,
            "Disk '%s' is served by process %d and nothing speaks against it: stop "
            "that first",
            disk->name, disk->plugin_pid);
    varve_log_about(VARVE_ABOUT(.disk = disk->name),
                    "Disk '%s': image %s is taken as it is%s, because an operator said so",
                    disk->name, id->image, trust ? "" : ", all of it as written");
    return 0;
}

int varve_disk_adopt_all_written(struct varve_daemon *d, const char *name, struct varve_err *err)
{
    struct varve_disk *disk;
    int rc = varve_disks_find(d, name, &disk, err);

    return rc == 0 ? adopt(disk, false, err) : rc;
}

json_t *varve_command_disk_adopt(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    static const char *const known[] = {"disk", "image", "trust", NULL};
    struct varve_disk *disk;
    const char *image;
    bool trust;

    if (varve_args_check(args, known, NULL, err) < 0)
        return NULL;
    if (!json_object_get(args, "trust")) {
        varve_err_set(err, EINVAL, "Parameter 'trust' is missing");
        return NULL;
    }
    if (varve_args_bool(args, "trust", false, &trust, err) < 0 ||
        varve_args_string(args, "image", false, &image, err) < 0 ||
        find_disk(d, args, &disk, err) < 0)
        return NULL;
    if (image && strcmp(image, disk->identity.image) == 0)
        image = NULL;
    if (image && (refuse_live(disk, err) < 0 || check_image(disk, image, err) < 0 ||
                  move_disk(&disk, image, err) < 0))
        return NULL;
    if (adopt(disk, trust, err) < 0)
        return NULL;
    varve_disks_refresh(d);
    return json_object();
}

/* --- resize --------------------------------------------------------------------------------------
 */

static int resize(struct varve_disk *disk, uint64_t size, struct varve_err *err)
{
    struct varve_daemon *d = disk->daemon;
    uint64_t before = disk->identity.geometry.size;
    char name[VARVE_NAME_MAX + 1];
    struct varve_tracker *t;
    int rc = varve_offline_attach_as(disk, NULL, &size, &t, err);

    if (rc < 0)
        return rc;
    varve_offline_detach(disk, t);
    if (size == before)
        return 0;
    varve_log_about(VARVE_ABOUT(.disk = disk->name),
                    "Disk '%s': resized from %llu to %llu bytes, because an operator said so",
                    disk->name, (unsigned long long)before, (unsigned long long)size);
    snprintf(name, sizeof(name), "%s", disk->name);
    varve_disks_renew(disk);
    varve_disks_refresh(d);
    return varve_disks_find(d, name, &disk, err);
}

json_t *varve_command_disk_resize(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    static const char *const known[] = {"disk", "size", NULL};
    struct varve_disk *disk;
    uint64_t size;

    if (varve_args_check(args, known, NULL, err) < 0)
        return NULL;
    if (!json_object_get(args, "size")) {
        varve_err_set(err, EINVAL, "Parameter 'size' is missing");
        return NULL;
    }
    if (varve_args_u63(args, "size", 0, &size, err) < 0 || find_disk(d, args, &disk, err) < 0 ||
        refuse_live(disk, err) < 0)
        return NULL;
    if (size == 0) {
        varve_err_set(err, EINVAL, "Disk '%s': 'size' must be at least 1", disk->name);
        return NULL;
    }
    if (resize(disk, size, err) < 0)
        return NULL;
    return json_object();
}

/* --- forget --------------------------------------------------------------------------------------
 */

void varve_folder_remove(const char *path)
{
    DIR *dir = opendir(path);
    struct dirent *entry;

    if (!dir)
        return;
    while ((entry = readdir(dir)) != NULL) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            unlinkat(dirfd(dir), entry->d_name, 0);
    }
    closedir(dir);
    if (rmdir(path) < 0 && errno != ENOENT)
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING), "cannot remove %s: %s", path,
                        strerror(errno));
}

static int forget_begun(void *arg, const char *name)
{
    struct varve_daemon *d = arg;
    char path[PATH_MAX];

    if ((strncmp(name, ".forgotten-", 11) == 0 || strncmp(name, ".importing-", 11) == 0) &&
        snprintf(path, sizeof(path), "%s/%s", d->options->state_dir, name) < (int)sizeof(path))
        varve_folder_remove(path);
    return 0;
}

void varve_disks_finish_forgetting(struct varve_daemon *d)
{
    d->w->list(d->w, d->options->state_dir, forget_begun, d);
}

static int forget(struct varve_disk *disk, struct varve_err *err)
{
    struct varve_daemon *d = disk->daemon;
    struct varve_err other = VARVE_ERR_INIT;
    struct varve_catalogue *draft;
    char aside[PATH_MAX + 16];
    int fd, rc;

    fd = varve_disk_lock_take(d->w, &disk->paths, disk->name, "varved", err);
    if (fd < 0)
        return fd;
    snprintf(aside, sizeof(aside), "%s/.forgotten-%s", d->options->state_dir, disk->name);
    varve_folder_remove(aside);
    rc = d->w->rename(d->w, disk->paths.state, aside);
    if (rc == 0)
        rc = d->w->sync_dir(d->w, d->options->state_dir);
    if (rc < 0) {
        d->w->close(d->w, fd);
        return varve_err_sys(err, -rc, "Disk '%s': cannot put its folder aside", disk->name);
    }
    varve_disks_renew(disk);
    draft = varve_daemon_draft(d, &other);
    if (draft && varve_catalogue_remove_disk(draft, disk->identity.uuid))
        rc = varve_daemon_commit(d, draft, &other);
    else
        varve_catalogue_free(draft);
    if (other.msg[0])
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .disk = disk->name),
                        "Disk '%s' is forgotten, but not its names: %s", disk->name, other.msg);
    varve_folder_remove(disk->paths.runtime);
    if (strcmp(disk->paths.scratch, disk->paths.state) != 0)
        varve_folder_remove(disk->paths.scratch);
    varve_folder_remove(aside);
    d->w->close(d->w, fd);
    varve_log_about(VARVE_ABOUT(.disk = disk->name),
                    "Disk '%s' is forgotten, because an operator said so", disk->name);
    return 0;
}

json_t *varve_command_disk_forget(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    static const char *const known[] = {"disk", NULL};
    struct varve_disk *disk;

    if (varve_args_check(args, known, NULL, err) < 0 || find_disk(d, args, &disk, err) < 0 ||
        refuse_live(disk, err) < 0 || forget(disk, err) < 0)
        return NULL;
    return json_object();
}
