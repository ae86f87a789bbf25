/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Taking a disk and letting it go.  What attach finds decides what is known about the live epoch:
 *
 *   control page of this boot, live map there    adopt both in place: exact, views go on
 *   else a file marked clean                     its bits: exact, views are gone
 *   else a file left open (the host went down)   its bits, and all blocks of the regions in the intent
 *                                                log; no log that can be believed: every block
 *   else nothing                                 a new disk, or a new epoch behind the sealed ones
 *
 * Before attach returns, so before the first write, an intent log is durable, with all regions in it
 * that may not be, and then the clean mark is taken off, durably: dying between them leaves either a
 * disk that is clean, or one whose log can be believed.  A log that cannot be believed is removed, also
 * durably, before anything is done that it would be believed for; and without one it says so by not
 * being there.  Who only makes a boundary for a disk that nobody serves reads the log and leaves it as
 * it is: the regions in it stay in doubt until a server has made them durable.  If the disk is clean he
 * keeps one with no regions in it, as any server does: his epochs are open until he stops.
 *
 * A clean stop goes the other way: image durable, bits and clean mark durable, log not kept any more.
 *
 * Where runtime files cannot be made, a guest's server goes on without (tracker-private.c).
 *
 * And runtime files that are not adopted are removed, never reused: who holds the old ones sees that
 * they are unlinked.
 */
#include "lib/tracker-internal.h"

#include "lib/disk-lock.h"
#include "lib/epoch-file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIR_MODE 0700

static int make_dir(struct varve_world *w, const char *path, struct varve_err *err)
{
    int r = w->mkdir(w, path, DIR_MODE);

    if (r < 0 && r != -EEXIST)
        return varve_err_sys(err, -r, "cannot create %s", path);
    return r;
}

/* path's parent, made durable to hold it. */
static int sync_parent(struct varve_world *w, const char *path, struct varve_err *err)
{
    char parent[PATH_MAX];
    int r;

    varve_path_folder(path, parent);
    r = w->sync_dir(w, parent);
    return r < 0 ? varve_err_sys(err, -r, "cannot sync %s", parent) : 0;
}

int varve_tracker_claim_pid(struct varve_tracker *t, struct varve_err *err)
{
    return varve_disk_lock_claim(t->w, t->lock_fd, t->role, err);
}

/* --- the identity --------------------------------------------------------------------------------- */

static int identity_make(struct varve_tracker *t, const struct varve_tracker_config *cfg,
                         struct varve_err *err)
{
    int r = varve_geometry_init(&t->id.geometry, cfg->size, cfg->block_size, err);

    if (r < 0)
        return r;
    snprintf(t->id.image, sizeof(t->id.image), "%s", cfg->image);
    r = t->w->random(t->w, t->id.uuid, sizeof(t->id.uuid));
    if (r < 0)
        return varve_err_sys(err, -r, "cannot get random numbers");
    return varve_identity_write(t->w, &t->paths, &t->id, err);
}

static int identity_fits(struct varve_tracker *t, const struct varve_tracker_config *cfg,
                         struct varve_err *err)
{
    struct varve_geometry asked;
    int r;

    if (cfg->block_size != 0) {
        r = varve_geometry_init(&asked, cfg->size, cfg->block_size, err);
        if (r < 0)
            return r;
        if (asked.shift != t->id.geometry.shift)
            return varve_err_set(err, EINVAL,
                                 "disk %s was created with granularity %" PRIu64
                                 ", it cannot become %" PRIu64 ": leave granularity out",
                                 cfg->name, varve_block_size(&t->id.geometry), cfg->block_size);
    }
    if (cfg->image && strcmp(cfg->image, t->id.image) != 0)
        return varve_err_set(err, EINVAL,
                             "disk %s belongs to image %s, not to %s: give this image another "
                             "name=, or, if it was moved, say disk-adopt",
                             cfg->name, t->id.image, cfg->image);
    return 0;
}

static int size_fits(struct varve_tracker *t, const struct varve_tracker_config *cfg, uint64_t size,
                     struct varve_err *err)
{
    if (cfg->image && size != t->id.geometry.size)
        return varve_err_set(err, EINVAL,
                             "image %s has %" PRIu64 " bytes, but disk %s has %" PRIu64
                             ": if it was resized, say disk-resize to its new size; else give it "
                             "its size back, or another name=",
                             cfg->image, size, cfg->name, t->id.geometry.size);
    return 0;
}

static int identity_take(struct varve_tracker *t, const struct varve_tracker_config *cfg,
                         struct varve_err *err)
{
    int r = varve_identity_read(t->w, &t->paths, &t->id, err);

    if (r == -ENOENT && !cfg->existing_only)
        return identity_make(t, cfg, err);
    return r < 0 ? r : identity_fits(t, cfg, err);
}

/* --- attach and detach -------------------------------------------------------------------------------- */

static bool on_one_file_system(struct varve_tracker *t)
{
    struct varve_stat image, scratch;

    return t->image_fd >= 0 && t->w->stat(t->w, t->image_fd, &image) == 0 &&
           t->w->stat(t->w, t->lock_fd, &scratch) == 0 &&
           strcmp(t->paths.scratch, t->paths.state) == 0 && image.dev == scratch.dev;
}

/* no_runtime: what is wrong with the runtime folder, which is an error where no guest waits. */
static int make_dirs(struct varve_tracker *t, const struct varve_tracker_config *cfg,
                     struct varve_err *no_runtime, struct varve_err *err)
{
    const char *parents[] = {cfg->state_dir, cfg->runtime_dir,
                             cfg->scratch_dir ? cfg->scratch_dir : cfg->state_dir};
    const char *dirs[] = {t->paths.state, t->paths.runtime, t->paths.scratch};

    for (unsigned i = 0; i < 3; i++) {
        bool spared = i == 1 && cfg->image_fd >= 0;
        int r = 0;

        if (!cfg->existing_only || strcmp(dirs[i], t->paths.state) != 0) {
            r = make_dir(t->w, parents[i], spared ? no_runtime : err);
            if (r >= 0 || r == -EEXIST)
                r = make_dir(t->w, dirs[i], spared ? no_runtime : err);
        }
        /* Also if they are there already: who made them may have died before they were durable. */
        if ((r == 0 || r == -EEXIST) && i == 0) {
            r = sync_parent(t->w, parents[i], err);
            if (r == 0 || r == -EACCES) /* a parent that is not ours to read is not of our making */
                r = sync_parent(t->w, dirs[i], err);
        }
        if (r < 0 && r != -EEXIST && !spared)
            return r;
    }
    return 0;
}

static void tracker_free(struct varve_tracker *t)
{
    if (t->beat)
        varve_beat_close(t->w, t->beat);
    if (t->intent)
        varve_intent_free(t->intent);
    if (t->sync_fd >= 0)
        t->w->close(t->w, t->sync_fd);
    varve_tracker_close_control(t);
    if (t->lock_fd >= 0)
        t->w->close(t->w, t->lock_fd);
    for (unsigned i = 0; i < VARVE_STRIPES; i++)
        pthread_mutex_destroy(&t->stripes[i]);
    pthread_mutex_destroy(&t->epochs_lock);
    pthread_mutex_destroy(&t->files);
    free(t);
}

static struct varve_tracker *tracker_alloc(struct varve_world *w,
                                           const struct varve_tracker_config *cfg)
{
    struct varve_tracker *t = calloc(1, sizeof(*t));

    if (!t)
        return NULL;
    t->w = w;
    t->image_fd = cfg->image_fd;
    t->scratch_max = cfg->scratch_max;
    t->scratch_reserve = cfg->scratch_reserve;
    t->on_scratch_full = cfg->on_scratch_full;
    t->scratch_wait_ms = cfg->scratch_wait_ms;
    t->freeze_timeout_ms = cfg->freeze_timeout_ms;
    snprintf(t->role, sizeof(t->role), "%s", cfg->role);
    t->lock_fd = t->ctl_fd = t->sync_fd = -1;
    pthread_mutex_init(&t->files, NULL);
    for (unsigned i = 0; i < VARVE_STRIPES; i++)
        pthread_mutex_init(&t->stripes[i], NULL);
    pthread_mutex_init(&t->epochs_lock, NULL);
    return t;
}

int varve_tracker_take_epochs(struct varve_tracker *t, const uint8_t boot_id[16], bool new_disk,
                              const char **found, char notes[256], struct varve_err *err)
{
    int r = -ENOENT;

    t->runtime_failed = false;
    if (!t->private_why[0])
        r = varve_tracker_adopt(t, boot_id, err);
    if (r == 0)
        *found = atomic_load(&t->ctl->served)
                     ? "its server was killed, all was taken over as it was"
                     : "its server had stopped";
    if (r != -ENOENT && r != -EUCLEAN)
        return r;
    r = varve_tracker_rebuild(t, boot_id, new_disk, notes, err);
    *found = new_disk ? "a new disk" : notes[0] ? "" : "its server had stopped";
    if (r < 0)
        varve_tracker_close_control(t);
    return r;
}

/* Has them, and makes it so that writers may come.  Nothing is held on error. */
static int take_over(struct varve_tracker *t, const struct varve_tracker_config *cfg,
                     const uint8_t boot_id[16], bool new_disk, char notes[256],
                     struct varve_err *err)
{
    const char *found;
    int r;

    notes[0] = '\0';
    r = varve_tracker_take_epochs(t, boot_id, new_disk, &found, notes, err);
    if (r < 0)
        return r;
    r = varve_tracker_take_image(t, boot_id, found, notes, err);
    if (r == 0)
        r = varve_tracker_start_intent(t, cfg, new_disk, notes, err);
    /* After page and log are good: who dies here leaves one of them that knows the bits. */
    if (r == 0 && t->clean_mark)
        r = varve_epoch_file_reopen(t->w, &t->paths, varve_tracker_epoch(t), err);
    if (r == 0)
        return 0;
    t->image_failed = atomic_load(&t->ctl->intent) & VARVE_CTL_IMAGE_FAILED;
    varve_tracker_forget(t);
    varve_gate_fini(&t->gate);
    varve_tracker_close_control(t);
    return r;
}

int varve_tracker_attach(struct varve_world *w, const struct varve_tracker_config *cfg,
                         struct varve_tracker **out, char notes[256], struct varve_err *err)
{
    struct varve_tracker *t = tracker_alloc(w, cfg);
    struct varve_err no_runtime = VARVE_ERR_INIT, other = VARVE_ERR_INIT;
    struct varve_err *why;
    struct varve_geometry asked;
    struct varve_identity before;
    uint64_t size = cfg->size;
    uint8_t boot_id[16];
    bool new_disk;
    int r;

    notes[0] = '\0';
    if (!t)
        return varve_err_set(err, ENOMEM, "no memory for disk %s", cfg->name);
    r = varve_geometry_init(&asked, cfg->size, cfg->block_size, err);
    if (r == 0)
        r = varve_paths_init(&t->paths, cfg->state_dir, cfg->runtime_dir, cfg->scratch_dir,
                             cfg->name, err);
    if (r == 0)
        r = make_dirs(t, cfg, &no_runtime, err);
    if (r == 0)
        r = t->lock_fd = varve_disk_lock_take(w, &t->paths, cfg->name, cfg->role, err);
    if (r < 0)
        goto err_after_alloc;
    new_disk = varve_identity_read(w, &t->paths, &before, NULL) == -ENOENT;
    r = identity_take(t, cfg, err);
    if (r == 0 && (r = w->boot_id(w, boot_id)) < 0)
        varve_err_sys(err, -r, "cannot tell this boot of the machine from others");
    if (r == 0)
        r = varve_tracker_resize(t, cfg, boot_id, &size, notes, err);
    if (r == 0)
        r = size_fits(t, cfg, size, err);
    if (r < 0)
        goto err_after_alloc;
    t->may_clone = on_one_file_system(t);

    r = varve_tracker_judge(t, cfg->distrust, boot_id, new_disk, err);
    if (r == 0)
        r = varve_tracker_find_intent(t, t->id.image, err);
    if (r < 0)
        goto err_after_alloc;
    why = no_runtime.msg[0] ? &other : &no_runtime;
    r = take_over(t, cfg, boot_id, new_disk, notes, why);
    if (r < 0 && t->runtime_failed && cfg->image_fd >= 0) { /* the guest gets its disk */
        why = &no_runtime;
        r = varve_tracker_go_private(t, boot_id, why);
        if (r == 0)
            r = take_over(t, cfg, boot_id, new_disk, notes, why);
    }
    if (r < 0) {
        varve_err_set(err, -r, "%s", why->msg);
        goto err_after_alloc;
    }
    if (varve_tracker_doubt_image(t))
        varve_tracker_say(notes, "a part of the image could not be made durable: what was not counts as written again", "");
    atomic_fetch_add(&t->ctl->incarnation, 1);
    atomic_store(&t->ctl->served, VARVE_CTL_SERVED);
    /* Those that were under way in a server that died will not end. */
    atomic_store(&t->ctl->writes_begun, atomic_load(&t->ctl->writes_ended));
    t->dead = true; /* maybe */
    /* What was left unsealed by a former server; an error here is tried again at the next boundary. */
    varve_tracker_seal(t, NULL);
    *out = t;
    return 0;

err_after_alloc:
    tracker_free(t);
    return r;
}

int varve_tracker_detach(struct varve_tracker *t, struct varve_err *err)
{
    uint64_t live = varve_tracker_epoch(t);
    int r;

    varve_tracker_abort(t);
    r = varve_tracker_seal(t, err);
    /* Blocks that a backup has read from the page cache and that are clean since must not go back to
     * what they were: the image is durable before the mark that says that the bits can be believed. */
    if (r == 0)
        r = varve_tracker_leave_image(t, err);
    if (r == 0 && t->image_fd >= 0 && varve_intent_image_failed(t->intent))
        r = varve_err_set(err, EIO, "a part of the image could not be made durable");
    if (r == 0 && (t->image_fd >= 0 || t->found_clean))
        r = varve_epoch_file_finish(t->w, &t->paths, &t->id.geometry, live,
                                    varve_tracker_find(t, live)->bits, VARVE_EPOCH_FILE_CLEAN, err);
    if (r == 0)
        varve_intent_stop(t->intent);
    atomic_store(&t->ctl->served, 0);
    varve_tracker_forget(t);
    varve_gate_fini(&t->gate);
    tracker_free(t);
    return r;
}

/* --- for readers in other processes ---------------------------------------------------------------------- */

int varve_tracker_open_control(struct varve_tracker *t, struct varve_err *err)
{
    char path[PATH_MAX];
    int fd = t->w->open(t->w, varve_path_control(&t->paths, path), O_RDONLY, 0);

    return fd < 0 ? varve_err_sys(err, -fd, "cannot open %s", path) : fd;
}

int varve_tracker_open_epoch(struct varve_tracker *t, uint64_t epoch, int fds[3],
                             struct varve_err *err)
{
    struct varve_tracked_epoch *e = varve_tracker_find(t, epoch);
    char path[3][PATH_MAX];
    unsigned n = 1;

    fds[0] = fds[1] = fds[2] = -1;
    if (!e)
        return varve_err_set(err, ENOENT, "there is no epoch %" PRIu64 " to read from", epoch);
    /* Errors that we are told are not told to descriptions opened later. */
    varve_tracker_check_scratch(t, e);
    varve_path_live(&t->paths, epoch, path[0]);
    varve_path_lost(&t->paths, epoch, path[1]);
    varve_path_scratch(&t->paths, epoch, path[2]);
    if (atomic_load(&e->slot->flags) & VARVE_EPOCH_ARMED)
        n = 3;
    for (unsigned i = 0; i < n; i++) {
        fds[i] = t->w->open(t->w, path[i], O_RDONLY, 0);
        if (fds[i] < 0) {
            int r = varve_err_sys(err, -fds[i], "cannot open %s", path[i]);

            while (i-- > 0)
                t->w->close(t->w, fds[i]);
            fds[0] = fds[1] = fds[2] = -1;
            return r;
        }
    }
    return 0;
}
