/* SPDX-License-Identifier: BSD-3-Clause
 *
 * disk-export, disk-import: what is known of a disk, carried beside its image to another host or
 * another state directory (server/disk-move.h).
 *
 * What is exported is the state folder of a disk that was stopped cleanly, which says all by
 * itself, as after a start of the machine; and what the catalogue names in it.  It is worth
 * something beside an image that holds the same bytes as the one here did then, and nothing else
 * can be believed of it. So the destination wants a proof:
 *
 *  1. the same file: inode, size and time are those that its server left, on a store that both
 * hosts see; or
 *  2. a digest of all its bytes, made by who asks (reading takes long, and nothing else would be
 * done meanwhile).  At the source it is noted only if the witness says that nobody has had the disk
 *     since the export; here, only if the file's time is what it was when its reading began; or
 *  3. an operator's word (trust: true).
 *
 * Else it is refused, unless all of the image is to count as written (trust: false).
 *
 *     import   STATE/.importing-NAME filled, with the new image and how it looks | synced
 *              the catalogue has its names | renamed to STATE/NAME | synced
 *
 * Who dies before the rename has names of a disk that is not there, which the next import replaces,
 * and a folder that no disk has, which it removes.  With trust false a doubt note lies in it from
 * the beginning, so that nobody takes it for proved.
 */
#include "server/commands.h"

#include "lib/disk-lock.h"
#include "lib/doubt-note.h"
#include "lib/image-witness.h"
#include "server/args.h"
#include "server/boundary.h"
#include "server/disk-move.h"
#include "server/disk.h"
#include "server/log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int check_path(const char *path, const char *what, struct varve_err *err)
{
    if (path[0] != '/' || strlen(path) >= PATH_MAX - 64 || !path[1])
        return varve_err_set(err, EINVAL,
                             "Parameter '%s' must be an absolute path: varved opens "
                             "it, whose working directory is another",
                             what);
    for (const char *c = path; *c; c++) {
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            return varve_err_set(err, EINVAL, "Parameter '%s' holds a control character", what);
    }
    return 0;
}

static int check_digest(const char *digest, struct varve_err *err)
{
    if (digest && (strlen(digest) != 64 || strspn(digest, "0123456789abcdef") != 64))
        return varve_err_set(err, EINVAL, "Parameter 'digest' is no SHA-256 in hexadecimal digits");
    return 0;
}

/* --- export --------------------------------------------------------------------------------- */

static int refuse_busy(struct varve_disk *disk, struct varve_err *err)
{
    const struct varve_catalogue *c = disk->daemon->catalogue;

    if (disk->peer)
        return varve_err_set(err, EBUSY, "Disk '%s' is served by process %d: stop that first",
                             disk->name, disk->plugin_pid);
    if (varve_disk_oldest_view(disk) != UINT64_MAX)
        return varve_err_set(err, EBUSY, "Disk '%s' has a running backup: end that first",
                             disk->name);
    for (size_t i = 0; i < c->njobs; i++) {
        if (varve_cat_job_open(&c->jobs[i]) &&
            memcmp(c->jobs[i].uuid, disk->identity.uuid, 16) == 0)
            return varve_err_set(err, EBUSY, "Disk '%s' has a running job '%s': wait, or cancel it",
                                 disk->name, c->jobs[i].id);
    }
    return 0;
}

/* Its state folder says all, and its image is what that is about.  The disk's lock is held. */
static int check_clean(struct varve_disk *disk, struct varve_witness *wit, struct varve_err *err)
{
    struct varve_world *w = disk->daemon->w;
    char why[VARVE_WITNESS_TEXT];
    enum varve_verdict verdict;
    int fd = w->open(w, disk->identity.image, O_RDONLY | O_NONBLOCK, 0), rc;

    if (fd < 0)
        return varve_err_sys(err, -fd, "Disk '%s': cannot open image %.200s", disk->name,
                             disk->identity.image);
    rc = varve_witness_check(w, &disk->paths, &disk->identity, fd, wit, &verdict, why, err);
    w->close(w, fd);
    if (rc < 0)
        return rc;
    if (wit->kind != VARVE_WITNESS_CLEAN || verdict != VARVE_IMAGE_PROVED)
        return varve_err_set(err, EBUSY, "Disk '%s': somebody had it meanwhile%s%s: try again",
                             disk->name, why[0] ? ": " : "", why);
    return 0;
}

/* The catalogue without anything of other disks, and without what goes with the daemon. */
static struct varve_catalogue *catalogue_of(struct varve_disk *disk)
{
    struct varve_catalogue *c = varve_catalogue_clone(disk->daemon->catalogue);

    if (!c)
        return NULL;
    for (size_t i = c->ndisks; i > 0; i--) {
        if (memcmp(c->disks[i - 1].uuid, disk->identity.uuid, 16) != 0)
            varve_catalogue_remove_disk(c, c->disks[i - 1].uuid);
    }
    varve_catalogue_drop_work(c);
    varve_catalogue_remove_transient(c);
    for (size_t i = 0; c->ndisks > 0 && i < c->disks[0].ncheckpoints; i++)
        c->disks[0].checkpoints[i].backup[0] = '\0';
    return c;
}

static int export_new(struct varve_disk *disk, const char *folder, struct varve_err *err)
{
    struct varve_daemon *d = disk->daemon;
    struct varve_catalogue *cat;
    struct varve_tracker *t;
    struct varve_witness wit;
    int rc = varve_offline_attach(disk, &t, err), fd;

    if (rc < 0)
        return rc;
    varve_offline_detach(disk, t);
    fd = varve_disk_lock_take(d->w, &disk->paths, disk->name, "varved", err);
    if (fd < 0)
        return fd;
    rc = check_clean(disk, &wit, err);
    cat = rc == 0 ? catalogue_of(disk) : NULL;
    if (rc == 0 && !cat)
        rc = varve_err_set(err, ENOMEM, "no memory for the catalogue");
    if (rc == 0)
        rc = varve_move_write(d->w, &disk->paths, folder, disk->name, disk->identity.uuid, wit.seq,
                              cat, err);
    varve_catalogue_free(cat);
    d->w->close(d->w, fd);
    if (rc == 0)
        varve_log_about(VARVE_ABOUT(.disk = disk->name), "Disk '%s' is exported to %s", disk->name,
                        folder);
    return rc;
}

/* The digest of the image, if nobody has had the disk since it was exported. */
static int export_digest(struct varve_disk *disk, const char *folder, const char *digest,
                         struct varve_err *err)
{
    struct varve_daemon *d = disk->daemon;
    struct varve_witness wit;
    struct varve_move m;
    int rc = varve_move_read(d->w, folder, &m, err), fd;

    if (rc < 0)
        return rc;
    fd = varve_disk_lock_take(d->w, &disk->paths, disk->name, "varved", err);
    rc = fd < 0 ? fd : check_clean(disk, &wit, err);
    if (rc == 0 && (memcmp(m.uuid, disk->identity.uuid, 16) != 0 || m.witness != wit.seq))
        rc = varve_err_set(err, ESTALE, "Disk '%s' was used since %.200s was made: export it again",
                           disk->name, folder);
    if (rc == 0)
        rc = varve_move_note_digest(d->w, folder, &m, digest, err);
    if (fd >= 0)
        d->w->close(d->w, fd);
    varve_move_fini(&m);
    return rc;
}

json_t *varve_command_disk_export(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    static const char *const known[] = {"disk", "directory", "digest", NULL};
    const char *name, *folder, *digest;
    struct varve_disk *disk;

    if (varve_args_check(args, known, NULL, err) < 0 ||
        varve_args_string(args, "disk", true, &name, err) < 0 ||
        varve_args_string(args, "directory", true, &folder, err) < 0 ||
        varve_args_string(args, "digest", false, &digest, err) < 0 ||
        check_path(folder, "directory", err) < 0 || check_digest(digest, err) < 0)
        return NULL;
    varve_disks_refresh(d);
    if (varve_disks_find(d, name, &disk, err) < 0 || refuse_busy(disk, err) < 0)
        return NULL;
    if ((digest ? export_digest(disk, folder, digest, err) : export_new(disk, folder, err)) < 0)
        return NULL;
    return json_pack("{s:s, s:s}", "directory", folder, "image", disk->identity.image);
}

/* --- import --------------------------------------------------------------------------------- */

struct import {
    struct varve_daemon *d;
    const char *folder, *image, *name, *digest; /* borrowed */
    uint64_t mtime_ns;
    bool has_trust, trust;
    struct varve_move m;
    struct varve_paths stage; /* only state is meant */
    struct varve_identity id;
    struct varve_image_look look;
};

static int import_parse(struct varve_daemon *d, json_t *args, struct import *im,
                        struct varve_err *err)
{
    static const char *const known[] = {"directory", "image", "disk", "digest",
                                        "mtime-ns",  "trust", NULL};
    int rc = varve_args_check(args, known, NULL, err);

    *im = (struct import){.d = d, .has_trust = json_object_get(args, "trust") != NULL};
    if (rc == 0)
        rc = varve_args_string(args, "directory", true, &im->folder, err);
    if (rc == 0)
        rc = varve_args_string(args, "image", true, &im->image, err);
    if (rc == 0)
        rc = varve_args_name(args, "disk", false, &im->name, err);
    if (rc == 0)
        rc = varve_args_string(args, "digest", false, &im->digest, err);
    if (rc == 0)
        rc = varve_args_u63(args, "mtime-ns", 0, &im->mtime_ns, err);
    if (rc == 0)
        rc = varve_args_bool(args, "trust", false, &im->trust, err);
    if (rc == 0)
        rc = check_path(im->folder, "directory", err);
    if (rc == 0)
        rc = check_path(im->image, "image", err);
    if (rc == 0)
        rc = check_digest(im->digest, err);
    if (rc == 0)
        rc = varve_move_read(d->w, im->folder, &im->m, err);
    if (rc == 0 && !im->name)
        im->name = im->m.disk;
    return rc;
}

static int import_free(struct import *im, struct varve_err *err)
{
    char path[PATH_MAX];
    struct stat st;
    struct varve_disk *same = varve_disks_by_uuid(im->d, im->m.uuid);

    if (same)
        return varve_err_set(err, EEXIST,
                             "Disk '%s' is the one in %.200s: say disk-forget if that "
                             "is to take its place",
                             same->name, im->folder);
    if (snprintf(path, sizeof(path), "%s/%s", im->d->options->state_dir, im->name) >=
        (int)sizeof(path))
        return varve_err_set(err, ENAMETOOLONG, "the disk's name is too long");
    if (lstat(path, &st) == 0 || errno != ENOENT)
        return varve_err_set(err, EEXIST, "There is a disk '%s' already: give another name",
                             im->name);
    for (struct varve_disk *other = im->d->disks; other; other = other->next) {
        if (!other->gone && other->known && strcmp(other->identity.image, im->image) == 0)
            return varve_err_set(err, EEXIST, "Image %.200s is disk '%s'", im->image, other->name);
    }
    return 0;
}

static int import_look(struct import *im, struct varve_err *err)
{
    struct varve_world *w = im->d->w;
    struct varve_stat st;
    int fd = w->open(w, im->image, O_RDONLY | O_NONBLOCK, 0), rc;

    if (fd < 0)
        return varve_err_sys(err, -fd, "cannot open image %.200s", im->image);
    rc = w->stat(w, fd, &st);
    if (rc < 0)
        varve_err_sys(err, -rc, "cannot look at image %.200s", im->image);
    else if (!S_ISREG(st.mode) && !S_ISBLK(st.mode))
        rc = varve_err_set(err, EINVAL, "%.200s is neither a file nor a block device", im->image);
    else
        rc = varve_image_look_settled(w, fd, &im->look, err);
    w->close(w, fd);
    if (rc == 0 && im->look.size != im->id.geometry.size)
        rc = varve_err_set(err, EINVAL,
                           "image %.200s has %" PRIu64 " bytes, and disk '%s' had %" PRIu64
                           " when it was exported: this is not its image",
                           im->image, im->look.size, im->m.disk, im->id.geometry.size);
    return rc;
}

static int import_prove(struct import *im, const struct varve_witness *wit, struct varve_err *err)
{
    const struct varve_image_look *was = &wit->look, *is = &im->look;

    if (im->has_trust)
        return 0;
    if (im->digest && im->m.digest) {
        if (strcmp(im->digest, im->m.digest) != 0)
            return varve_err_set(err, EINVAL,
                                 "image %.200s does not hold what the image of disk '%s' held when "
                                 "it was exported: bring the right one, or say trust false, then "
                                 "all of it counts as written and block-dirty-bitmap-diff finds "
                                 "what differs from a backup",
                                 im->image, im->m.disk);
        if (!is->block && (uint64_t)is->mtime_ns != im->mtime_ns)
            return varve_err_set(err, ESTALE, "image %.200s was written after it was read",
                                 im->image);
        return 0;
    }
    if (wit->kind == VARVE_WITNESS_CLEAN && !was->block && !is->block && is->ino == was->ino &&
        is->mtime_ns == was->mtime_ns)
        return 0;
    return varve_err_set(
        err, EINVAL,
        "nothing proves that image %.180s is what disk '%s' was when it was exported: export it "
        "with a digest; or say trust true if nobody wrote to it since, or trust false, then all of "
        "it counts as written and block-dirty-bitmap-diff finds what differs from a backup",
        im->image, im->m.disk);
}

static uint64_t highest_epoch(const struct import *im)
{
    uint64_t highest = im->m.cat->ndisks > 0 ? im->m.cat->disks[0].newest : 0;
    size_t i;
    json_t *file;

    json_array_foreach(json_object_get(im->m.export, "files"), i, file)
    {
        const char *name = json_string_value(json_object_get(file, "name"));
        uint64_t first, last;

        if (name && varve_path_parse_epoch(name, &first, &last) && last > highest)
            highest = last;
    }
    return highest;
}

/* What the folder says of the image is true of the new one; or is doubted by who takes it. */
static int import_settle(struct import *im, struct varve_witness *wit, struct varve_err *err)
{
    struct varve_doubt_note note = {.used = highest_epoch(im)};
    struct varve_world *w = im->d->w;
    int rc;

    snprintf(im->id.image, sizeof(im->id.image), "%s", im->image);
    memset(&im->id.resize, 0, sizeof(im->id.resize)); /* the image has the size that it has */
    rc = varve_identity_write(w, &im->stage, &im->id, err);
    if (rc < 0)
        return rc;
    if (im->has_trust && !im->trust) {
        snprintf(note.why, sizeof(note.why), "the operator said so (disk-import)");
        return varve_doubt_note_write(w, &im->stage, &note, err);
    }
    wit->kind = VARVE_WITNESS_CLEAN;
    wit->look = im->look;
    rc = w->boot_id(w, wit->boot_id);
    if (rc < 0)
        return varve_err_sys(err, -rc, "cannot tell this boot of the machine from others");
    return varve_witness_write(w, &im->stage, im->id.uuid, wit, err);
}

static int import_fill(struct import *im, struct varve_err *err)
{
    struct varve_world *w = im->d->w;
    struct varve_witness wit;
    int rc = w->mkdir(w, im->stage.state, 0700);

    if (rc < 0)
        return varve_err_sys(err, -rc, "cannot make %s", im->stage.state);
    rc = varve_move_take(w, im->folder, &im->m, im->stage.state, err);
    if (rc == 0)
        rc = varve_identity_read(w, &im->stage, &im->id, err);
    if (rc == 0 && memcmp(im->id.uuid, im->m.uuid, 16) != 0)
        rc = varve_err_set(err, EUCLEAN, "%.200s is damaged: it holds another disk", im->folder);
    if (rc == 0)
        rc = import_look(im, err);
    if (rc == 0)
        rc = varve_witness_read(w, &im->stage, im->id.uuid, &wit, err);
    if (rc == 0)
        rc = import_prove(im, &wit, err);
    return rc == 0 ? import_settle(im, &wit, err) : rc;
}

static int import_commit(struct import *im, struct varve_err *err)
{
    struct varve_catalogue *draft = varve_daemon_draft(im->d, err);
    struct varve_cat_disk *to, *from = im->m.cat->ndisks > 0 ? &im->m.cat->disks[0] : NULL;

    if (!draft)
        return -ENOMEM;
    varve_catalogue_remove_disk(draft, im->m.uuid);
    to = varve_catalogue_add_disk(draft, im->m.uuid, im->name);
    if (!to) {
        varve_catalogue_free(draft);
        return varve_err_set(err, ENOMEM, "no memory for the catalogue");
    }
    if (from) { /* what it owns goes over */
        *to = *from;
        snprintf(to->name, sizeof(to->name), "%s", im->name);
        for (size_t i = 0; i < to->ncheckpoints; i++)
            to->checkpoints[i].backup[0] = '\0';
        *from = (struct varve_cat_disk){.newest = 0};
    }
    return varve_daemon_commit(im->d, draft, err);
}

static int import_place(struct import *im, struct varve_err *err)
{
    struct varve_world *w = im->d->w;
    const char *state = im->d->options->state_dir;
    char path[PATH_MAX];
    int rc;

    snprintf(path, sizeof(path), "%s/%s", state, im->name);
    rc = w->rename_new(w, im->stage.state, path);
    if (rc == 0)
        rc = w->sync_dir(w, state);
    if (rc < 0)
        return varve_err_sys(err, -rc, "Disk '%s': cannot make %s", im->name, path);
    varve_log_about(VARVE_ABOUT(.disk = im->name), "Disk '%s' is imported from %s, with image %s%s",
                    im->name, im->folder, im->image,
                    !im->has_trust ? ""
                    : im->trust    ? ", because an operator said that it is the same"
                                   : ", all of it as written");
    return 0;
}

static int import_run(struct import *im, struct varve_err *err)
{
    int rc;

    varve_disks_refresh(im->d);
    rc = import_free(im, err);
    if (rc == 0 && snprintf(im->stage.state, sizeof(im->stage.state), "%s/.importing-%s",
                            im->d->options->state_dir, im->name) >= (int)sizeof(im->stage.state))
        rc = varve_err_set(err, ENAMETOOLONG, "the disk's name is too long");
    if (rc < 0)
        return rc;
    varve_folder_remove(im->stage.state);
    rc = import_fill(im, err);
    if (rc == 0)
        rc = import_commit(im, err);
    if (rc == 0)
        rc = import_place(im, err);
    if (rc < 0) {
        varve_folder_remove(im->stage.state);
        return rc;
    }
    varve_disks_refresh(im->d);
    return 0;
}

json_t *varve_command_disk_import(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    struct import im;
    json_t *answer = NULL;

    if (import_parse(d, args, &im, err) == 0 && import_run(&im, err) == 0) {
        if (im.has_trust && !im.trust && varve_disk_adopt_all_written(d, im.name, err) < 0)
            varve_err_prefix(err, "Disk '%s' is imported; say disk-adopt", im.name);
        else
            answer = json_pack("{s:s}", "disk", im.name);
    }
    varve_move_fini(&im.m);
    return answer;
}
